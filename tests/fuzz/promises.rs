//! Promises that the fuzzers hold the enforcer to once they are kept; each is switched on where what breaks it is
//! mended, and then stays on.

/// A judged head that the receiver's stack did not take passes when it comes again.
pub const HEADS_COME_AGAIN: bool = true;

/// What follows a SYN that the receiver of a followed, forwarded connection ignores is kept from it (the seed
/// `segments/ignored-syn`).
pub const IGNORED_SYNS_ARE_HARMLESS: bool = true;

/// A connection that begins with the same sequence number as an earlier one between the same two ends is another one
/// (the seeds `segments/same-first-number` and `segments/same-first-number-other-bytes`).
pub const FIRST_NUMBERS_MAY_COME_AGAIN: bool = false;

/// At most one empty line passes before a request, also where a segment is cut behind it (the seed
/// `segments/empty-lines`).
pub const EMPTY_LINES_ARE_COUNTED_ACROSS_CUTS: bool = false;

/// A request that is refused in its body, behind a good one in the same segment, is charged once (the seed
/// `segments/charged-behind-a-cut`).
pub const CUTS_CHARGE_NOTHING_TWICE: bool = false;

/// Not only that a stream is refused, also the reason does not depend on how it is cut (the seed `http/two-reasons`).
pub const REASONS_DO_NOT_DEPEND_ON_CUTS: bool = false;

/// Rules about `Connection` and `Expect`: nothing behind a request with `close`, not both `close` and `keep-alive`, and
/// no expectation but `100-continue`, once, in HTTP/1.1.
pub const CONNECTION_RULES: bool = true;

/// `Expect: 100-continue` is read byte for byte: CR, DLE and DC1 do not pass for `-`, `0` and `1` (the seed
/// `http/expect-with-cr`).
pub const EXPECTATIONS_ARE_EXACT: bool = false;
