//! The HTTP/1.1 framing machine: where each request begins and ends, and the few fields that matter.
//!
//! It accepts what RFC 9112 lets no server read in two ways and refuses the rest, at the first byte that is wrong.
//! It is fed in-order bytes in any pieces and goes on from its own state; [`Machine::step`] does a bounded amount of
//! work, so that one `bpf_loop` callback in the kernel and one `while` on the host drive the same code. Bodies are
//! skipped by count and never read.
//!
//! A step sees at least the next [`bytes::BASE`] bytes of the stream, or all that there are: elements that must be
//! seen whole (a method, a field name) are shorter, or known to be of no interest.

mod body;
pub mod bytes;
mod cookie;
mod element;
mod head;
pub mod host;
mod proxy_header;
mod target;
mod value;

use crate::abi::{KeyTag, Ruleset, Service};
use crate::opaque::zero;
use crate::source::Address;
use crate::verdict::{Malformation, Reason};
use bytes::{BASE, Window};

/// Why a request is refused, and what was wrong with it where it is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The reason.
    pub reason: Reason,
    /// The kind, for [`Reason::Malformed`].
    pub kind: Option<Malformation>,
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self { reason, kind: None }
    }
}

impl From<Malformation> for Refusal {
    fn from(kind: Malformation) -> Self {
        Self { reason: Reason::Malformed, kind: Some(kind) }
    }
}

/// What a head is read by.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// The bounds.
    pub service: &'a Service,
    /// The service's rules; all 0 if it has none.
    pub rules: &'a Ruleset,
    /// Where the connection comes from, unless it has told otherwise in a header of the PROXY protocol.
    pub peer: Address,
    /// Secret of the tags.
    pub secret: [u64; 2],
}

/// What is looked up while a head is read.
pub trait Lookup {
    /// The state of the automaton of paths that a segment leads to from `state`, which is not 0: by its edge, else
    /// [`crate::abi::State::other`].
    fn next(&self, state: u32, segment: KeyTag) -> u32;
    /// Whether an address is a proxy's that rules with this bit trust, [`crate::abi::map::PROXIES`].
    fn is_trusted(&self, address: Address, trusts: u64) -> bool;
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It went on.
    More,
    /// It can go on only with more bytes; what is left unread (at most 31 bytes) must be kept.
    Starved,
    /// A request head is complete: [`Machine::key`] tells whose. The request is to be judged before any more steps.
    Head,
    /// No server may see this.
    Refused(Refusal),
}

impl Step {
    /// As a number, for where the kernel can hand on nothing else: 0–2, or 3, the reason, and 1 + the kind or 0, a byte
    /// each.
    #[must_use]
    #[inline(always)]
    pub const fn to_word(self) -> u32 {
        match self {
            Self::More => 0,
            Self::Starved => 1,
            Self::Head => 2,
            Self::Refused(Refusal { reason, kind }) => {
                let kind = match kind {
                    Some(kind) => kind as u32 + 1,
                    None => 0,
                };
                3 | ((reason as u32) << 8) | (kind << 16)
            }
        }
    }

    /// Reads the number.
    #[must_use]
    #[inline(always)]
    pub const fn from_word(word: u32) -> Self {
        match word & 0xff {
            0 => Self::More,
            1 => Self::Starved,
            2 => Self::Head,
            _ => Self::Refused(Refusal {
                reason: match Reason::from_index((word >> 8) as u8) {
                    Some(reason) => reason,
                    None => Reason::Unparsable,
                },
                kind: Malformation::from_index(((word >> 16) as u8).wrapping_sub(1)),
            }),
        }
    }
}

/// A place in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Cursor {
    /// The next byte.
    pub pos: u32,
    /// The end of the bytes that are there.
    pub end: u32,
}

impl Cursor {
    /// Bytes that are there.
    #[must_use]
    #[inline(always)]
    pub const fn unread(self) -> u32 {
        self.end.wrapping_sub(self.pos)
    }
}

/// Where in a request the machine is. Numbers, not an enum: they lie in a map.
mod phase {
    pub(super) const START: u8 = 0;
    /// A target that nobody looks into.
    pub(super) const TARGET: u8 = 1;
    /// The first bytes of a target whose path is looked at; in this phase and the next two the value is a segment's.
    pub(super) const FORM: u8 = 2;
    pub(super) const AUTHORITY: u8 = 3;
    pub(super) const SEGMENT: u8 = 4;
    /// A path that is not looked at, before a query that is.
    pub(super) const PATH: u8 = 5;
    /// The name of a query's parameter.
    pub(super) const PARAMETER: u8 = 6;
    pub(super) const QUERY: u8 = 7;
    pub(super) const VERSION: u8 = 8;
    pub(super) const LINE: u8 = 9;
    pub(super) const VALUE: u8 = 10;
    /// A host, where services are told apart by it; the value is its tag.
    pub(super) const HOST: u8 = 11;
    pub(super) const HOST_TRAIL: u8 = 12;
    pub(super) const KEY_LEAD: u8 = 13;
    pub(super) const KEY: u8 = 14;
    pub(super) const KEY_TRAIL: u8 = 15;
    pub(super) const CLIENT_LEAD: u8 = 16;
    pub(super) const CLIENT: u8 = 17;
    pub(super) const CLIENT_TRAIL: u8 = 18;
    pub(super) const FORWARDED: u8 = 19;
    pub(super) const LENGTH_LEAD: u8 = 20;
    pub(super) const LENGTH: u8 = 21;
    pub(super) const LENGTH_TRAIL: u8 = 22;
    pub(super) const CODING_LEAD: u8 = 23;
    pub(super) const CODING_TRAIL: u8 = 24;
    pub(super) const EXPECT_LEAD: u8 = 25;
    pub(super) const EXPECT_TRAIL: u8 = 26;
    /// Connection options; or cookies, if [`super::cookie::NAME`] or [`super::cookie::REST`] is what was seen.
    pub(super) const LIST: u8 = 27;
    /// A header of the PROXY protocol, version 1 or 2, before the first request.
    pub(super) const HEADER_1: u8 = 28;
    pub(super) const HEADER_2: u8 = 29;
    /// The rest of one, which nobody reads.
    pub(super) const HEADER_REST: u8 = 30;
    /// From here on the head is complete.
    pub(super) const BODY: u8 = 31;
    pub(super) const CHUNK_SIZE: u8 = 32;
    pub(super) const CHUNK_DATA: u8 = 33;
    pub(super) const CHUNK_END: u8 = 34;
    pub(super) const LAST_CHUNK: u8 = 35;
    /// What follows is not judged: an observed stream that was malformed, or an allowed upgrade.
    pub(super) const OPAQUE: u8 = 36;
}

const HTTP_1_0: u32 = 1;
const KEYED: u32 = 2;
const LENGTH: u32 = 4;
const CHUNKED: u32 = 8;
const HOST: u32 = 16;
/// A CRLF before the request line was taken.
const LED: u32 = 32;
/// The name under way holds a `_`.
const UNDERSCORE: u32 = 64;
/// The name under way is longer than any that matters.
const LONG: u32 = 128;
const EXPECT: u32 = 256;
/// The connection option `keep-alive`.
const KEEP: u32 = 512;
/// The connection option `close`: no request follows this one.
const CLOSE: u32 = 1024;
/// The method is HEAD: its response has no body.
const BODILESS: u32 = 2048;
/// An `Origin` field.
const ORIGIN: u32 = 4096;
/// An `Access-Control-Request-Method` field.
const ASKS_METHOD: u32 = 8192;
/// A field with the client's id.
const CLIENT: u32 = 1 << 14;
/// The connection comes from a proxy that is trusted.
const PROXIED: u32 = 1 << 15;
/// It has told where the request comes from.
const FORWARDED: u32 = 1 << 16;
/// The query has a parameter that is named like a key.
const KEY_IN_URL: u32 = 1 << 17;
/// A field that keys are often in and that the service takes none from, or a cookie that is named like a key.
const KEY_ELSEWHERE: u32 = 1 << 19;
/// A header of the PROXY protocol was read, and nothing behind it.
const HEADED: u32 = 1 << 18;
/// The target has named the host.
const ABSOLUTE: u32 = 1 << 20;

/// The machine's state between two bytes of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Machine {
    /// Bytes left of a body or chunk; while a length is read, what it amounts to so far.
    left: u64,
    /// What is read of a value so far: a [`crate::key::Tagger`]'s state, or an [`element::Element`]'s.
    value: [u64; 6],
    /// The unread end of the last segment, right-aligned.
    carry: [u64; 4],
    /// Bytes of the current head, and of its target.
    head: u32,
    target: u32,
    flags: u32,
    /// State of the automaton of paths, with the number of its layout: [`crate::abi::Ruleset::routes`].
    route: u32,
    fields: u16,
    phase: u8,
    /// Bytes of `carry` that count.
    carried: u8,
    /// Bytes of the name under way that are known to be a token's; in a path, a [`target::seen`] number, in a host a
    /// [`host::part`]; in a list, 1 within an option, and what [`phase::LIST`] says.
    seen: u8,
    /// Digits of the length under way.
    digits: u8,
    /// A [`method`] number.
    method: u8,
    reserved: u8,
    /// Tag of the key, where there is one.
    key: [u64; 2],
    /// Tag of the client's id, likewise.
    client: [u64; 2],
    /// Tag of the host, likewise, where services are told apart by it.
    host: [u64; 2],
    /// Where a proxy says that the request comes from, likewise.
    source: Address,
    /// Where it says in its header that the connection does; all 0 if it has said nothing.
    told: Address,
}

/// Methods that rules tell apart; numbers, since they lie in a map. Their case does not: RFC 9110 §9.1 has it count, but
/// Werkzeug's routing takes `get` for GET, and a rule must be met by all that its route is.
pub mod method {
    /// `GET`.
    pub const GET: u32 = 0;
    /// `HEAD`.
    pub const HEAD: u32 = 1;
    /// `POST`.
    pub const POST: u32 = 2;
    /// `PUT`.
    pub const PUT: u32 = 3;
    /// `PATCH`.
    pub const PATCH: u32 = 4;
    /// `DELETE`.
    pub const DELETE: u32 = 5;
    /// `OPTIONS`.
    pub const OPTIONS: u32 = 6;
    /// All others.
    pub const OTHER: u32 = 7;
}

/// 0 if both are the same words.
#[inline(always)]
fn difference<const N: usize>(words: &[u64; N], others: &[u64; N]) -> u64 {
    let mut differs = 0;
    for (word, other) in words.iter().zip(others) {
        differs |= word ^ other;
    }
    differs
}

const CR: u8 = b'\r';
const LF: u8 = b'\n';

const fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

/// What stands where a line's end may be.
enum LineEnd {
    Yes,
    No,
    /// A CR whose LF is not there yet.
    Cut,
}

#[inline(always)]
fn line_end(window: &Window, at: u32, unread: u32) -> LineEnd {
    if window.byte(at) != CR {
        LineEnd::No
    } else if unread < 2 {
        LineEnd::Cut
    } else if window.byte(at.wrapping_add(1)) == LF {
        LineEnd::Yes
    } else {
        LineEnd::No
    }
}

impl Machine {
    /// The state before the first byte of a connection.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Goes back to the state before the first byte of a connection.
    #[inline(always)]
    pub fn restart(&mut self) {
        // What else there is counts only in the phases that set it.
        self.left = zero();
        self.head = zero() as u32;
        self.target = zero() as u32;
        self.flags = zero() as u32;
        self.fields = zero() as u16;
        self.phase = zero() as u8;
        self.carried = zero() as u8;
        self.seen = zero() as u8;
        self.digits = zero() as u8;
        self.told = [zero(); 2];
    }

    /// Goes back to where the last request ended, from inside the next, or from bytes that may not follow it.
    #[inline(always)]
    pub fn rewind(&mut self) {
        let closed = if self.phase == phase::START { self.flags & CLOSE } else { 0 };
        let [first, second] = self.told;
        self.restart();
        self.flags = closed;
        self.told = [first, second];
    }

    /// Whether the bytes so far end between two requests.
    #[must_use]
    #[inline(always)]
    pub fn is_between_requests(&self) -> bool {
        self.phase == phase::START && self.carried == 0
    }

    /// Whether the bytes so far end with a request, and with nothing behind it that the next one may not have again.
    #[must_use]
    #[inline(always)]
    pub fn is_behind_request(&self) -> bool {
        self.is_between_requests() && self.flags & (LED | HEADED) == 0
    }

    /// Whether the bytes so far end inside a request head, or inside a header before it.
    #[must_use]
    #[inline(always)]
    pub fn is_in_head(&self) -> bool {
        let is_awaited = self.is_before_http() && self.head == 0;
        self.phase < phase::BODY && !self.is_between_requests() && !is_awaited
    }

    /// Whether a worker waits for the rest of a head: inside one, or behind the header of the PROXY protocol, with which its
    /// connection was accepted.
    #[must_use]
    #[inline(always)]
    pub fn is_awaited(&self) -> bool {
        self.is_in_head() || (self.is_between_requests() && self.flags & HEADED != 0)
    }

    /// Whether the bytes so far end inside something that only its length, known before, ends.
    #[must_use]
    #[inline(always)]
    pub fn is_in_plain_body(&self) -> bool {
        matches!(self.phase, phase::BODY | phase::OPAQUE)
    }

    /// Whether the method of the request under way, or of the one whose head has just ended, is HEAD.
    #[must_use]
    #[inline(always)]
    pub fn is_bodiless(&self) -> bool {
        self.flags & BODILESS != 0
    }

    /// Bytes of the body of the request whose head is complete, where its length is known and another request may follow
    /// it whatever it is answered.
    #[must_use]
    #[inline(always)]
    pub fn plain_body(&self) -> Option<u64> {
        // A client that has asked whether to send its body may leave it out once it is refused (RFC 9110 §10.1.1).
        let is_sure = self.flags & (HTTP_1_0 | CLOSE | EXPECT | CHUNKED) == 0;
        match self.phase {
            phase::START if is_sure => Some(0),
            phase::BODY if is_sure => Some(self.left),
            _ => None,
        }
    }

    /// Whether what follows is read from both in the same way.
    #[must_use]
    #[inline(always)]
    pub fn is_as(&self, other: &Self) -> bool {
        if difference(&self.told, &other.told) != 0 {
            return false;
        }
        if self.is_between_requests() && other.is_between_requests() {
            // The rest is left over from the request before.
            return (self.flags ^ other.flags) & (LED | CLOSE | HEADED) == 0;
        }
        let mut differs = (self.left ^ other.left)
            | u64::from(self.head ^ other.head)
            | u64::from(self.target ^ other.target)
            | u64::from(self.flags ^ other.flags)
            | u64::from(self.fields ^ other.fields)
            | u64::from(self.phase ^ other.phase)
            | u64::from(self.carried ^ other.carried)
            | u64::from(self.seen ^ other.seen)
            | u64::from(self.digits ^ other.digits);
        if self.carried > 0 {
            differs |= difference(&self.carry, &other.carry);
        }
        // Otherwise left over from the last request, or done with.
        if self.phase > phase::START && self.phase < phase::BODY {
            differs |= u64::from(self.route ^ other.route) | u64::from(self.method ^ other.method);
            if matches!(
                self.phase,
                phase::FORM..=phase::SEGMENT
                    | phase::HOST..=phase::FORWARDED
                    | phase::HEADER_1..=phase::HEADER_REST
            ) {
                differs |= difference(&self.value, &other.value);
            }
            if self.flags & KEYED != 0 {
                differs |= difference(&self.key, &other.key);
            }
            if self.flags & CLIENT != 0 {
                differs |= difference(&self.client, &other.client);
            }
            if self.flags & (HOST | ABSOLUTE) != 0 {
                differs |= difference(&self.host, &other.host);
            }
            if self.flags & FORWARDED != 0 {
                differs |= difference(&self.source, &other.source);
            }
        }
        differs == 0
    }

    /// Whether what follows is not judged.
    #[must_use]
    #[inline(always)]
    pub fn is_opaque(&self) -> bool {
        self.phase == phase::OPAQUE
    }

    /// Stops judging what follows.
    #[inline(always)]
    pub fn make_opaque(&mut self) {
        self.phase = phase::OPAQUE;
        self.carried = 0;
    }

    /// Bytes that can be skipped without a look.
    #[must_use]
    #[inline(always)]
    pub fn skippable(&self) -> u64 {
        match self.phase {
            phase::BODY | phase::CHUNK_DATA | phase::HEADER_REST => self.left,
            phase::OPAQUE => u64::MAX,
            _ => 0,
        }
    }

    /// Skips `count` bytes, at most [`Machine::skippable`].
    #[inline(always)]
    pub fn skip(&mut self, count: u32) {
        if self.phase == phase::OPAQUE {
            return;
        }
        self.left = self.left.wrapping_sub(u64::from(count));
        if self.left == 0 {
            match self.phase {
                phase::HEADER_REST => self.end_header(),
                phase::BODY => self.phase = phase::START,
                _ => self.phase = phase::CHUNK_END,
            }
        }
    }

    /// Skips what of the loaded bytes need not be looked at; whether they begin with such.
    #[inline(always)]
    fn pass_over(&mut self, cursor: &mut Cursor) -> bool {
        let (skippable, unread) = (self.skippable(), cursor.unread());
        if skippable == 0 {
            return false;
        }
        let count = if skippable < u64::from(unread) { skippable as u32 } else { unread };
        cursor.pos = cursor.pos.wrapping_add(count);
        self.skip(count);
        true
    }

    /// The tag of the request whose head is complete; `None` if it has no key.
    #[must_use]
    #[inline(always)]
    pub fn key(&self) -> Option<KeyTag> {
        if self.flags & KEYED == 0 { None } else { Some(KeyTag(self.key)) }
    }

    /// Takes a tag for that of the key of the request whose head is complete, if it has one: who asks what would become of a
    /// request does not know its key.
    #[inline(always)]
    pub fn take_key(&mut self, tag: KeyTag) {
        self.key[0] = tag.0[0];
        self.key[1] = tag.0[1];
    }

    /// Tag of the client's id of the request whose head is complete; 0 if it has none.
    #[must_use]
    #[inline(always)]
    pub fn client(&self) -> [u64; 2] {
        if self.flags & CLIENT == 0 { [0; 2] } else { self.client }
    }

    /// State of the automaton of paths that the target of the request whose head is complete ended in; 0 if no rule is for
    /// its path.
    #[must_use]
    #[inline(always)]
    pub fn route(&self) -> u32 {
        self.route & ((1 << Ruleset::LAYOUT) - 1)
    }

    /// Whether its path was read by another automaton than that of these rules, so that they have none for it.
    #[must_use]
    #[inline(always)]
    pub fn is_of_other_layout(&self, rules: &Ruleset) -> bool {
        rules.routes != 0 && (self.route ^ rules.routes) >> Ruleset::LAYOUT != 0
    }

    /// The [`method`] of the request whose head is complete.
    #[must_use]
    #[inline(always)]
    pub fn method_number(&self) -> u32 {
        u32::from(self.method)
    }

    /// Whether the request whose head is complete is a CORS preflight (Fetch §3.2.2): browsers send it without a key.
    #[must_use]
    #[inline(always)]
    pub fn is_preflight(&self) -> bool {
        self.method_number() == method::OPTIONS && self.flags & (ORIGIN | ASKS_METHOD) == ORIGIN | ASKS_METHOD
    }

    /// Where the request whose head is complete comes from, if a trusted proxy has told: the rightmost of its
    /// `X-Forwarded-For` that is no trusted proxy itself, else what its PROXY header says. `None` where it is the connection's own peer that counts.
    #[must_use]
    #[inline(always)]
    pub const fn forwarded(&self) -> Option<Address> {
        if self.flags & FORWARDED == 0 { None } else { Some(self.source) }
    }

    /// Whether the request whose head is complete comes from a trusted proxy, whatever that has told of it.
    #[must_use]
    #[inline(always)]
    pub const fn is_proxied(&self) -> bool {
        self.flags & (PROXIED | FORWARDED) != 0
    }

    /// Whether the connection that the request whose head is complete came on carries those of many clients: it is a trusted
    /// proxy's that has not told in a header of the PROXY protocol whose it is.
    #[must_use]
    #[inline(always)]
    pub const fn is_pooled(&self) -> bool {
        self.flags & PROXIED != 0
    }

    /// Whether the query of the request whose head is complete has a parameter that is named like a key. No key is taken
    /// from there.
    #[must_use]
    #[inline(always)]
    pub fn has_key_in_url(&self) -> bool {
        self.flags & KEY_IN_URL != 0
    }

    /// Whether the head that is complete has what is often a key where the service takes none from: in the URL, in another
    /// field, or in a cookie before the key.
    #[must_use]
    #[inline(always)]
    pub fn has_key_elsewhere(&self) -> bool {
        self.flags & (KEY_IN_URL | KEY_ELSEWHERE) != 0
    }

    /// Takes up the bytes kept from the last segment: puts them in front of the window and says where they begin.
    #[inline(always)]
    pub fn resume(&mut self, window: &mut Window) -> u32 {
        window.keep(self.carry);
        let carried = u32::from(self.carried) & (BASE - 1);
        self.carried = 0;
        BASE - carried
    }

    /// Keeps the unread end of a segment.
    #[inline(always)]
    pub fn suspend(&mut self, window: &Window, cursor: Cursor) {
        let carried = cursor.unread() & (BASE - 1);
        self.carry = window.last(cursor.end);
        // What was read is kept nowhere: a key may be among it.
        for (index, word) in self.carry.iter_mut().enumerate() {
            let read = (BASE - carried).saturating_sub(8 * index as u32);
            *word = if read >= 8 { 0 } else { (*word >> (8 * read)) << (8 * read) };
        }
        self.carried = carried as u8;
    }

    /// Forgets the key of the request whose head is complete.
    #[inline(always)]
    pub fn forget_key(&mut self) {
        // As [`crate::key::Tagger`] keeps the bytes that are not hashed yet.
        self.value[4] = self.value[0];
    }

    #[inline(always)]
    fn take(&mut self, cursor: &mut Cursor, count: u32) {
        cursor.pos = cursor.pos.wrapping_add(count);
        self.head = self.head.wrapping_add(count);
    }

    /// Goes on by at most a line or 64 bytes.
    #[inline(always)]
    pub fn step(&mut self, window: &Window, cursor: &mut Cursor, terms: &Terms<'_>, lookup: &impl Lookup) -> Step {
        if cursor.unread() == 0 {
            return Step::Starved;
        }
        if self.phase >= phase::BODY {
            return self.body(window, cursor);
        }
        let phase = self.phase;
        let step = match phase {
            phase::START => self.method(window, cursor, terms, lookup),
            phase::TARGET => self.target(window, cursor),
            phase::FORM => self.form(window, cursor),
            phase::AUTHORITY if terms.service.flags & Service::HOSTS != 0 => {
                self.host_in_target(window, cursor, terms.secret)
            }
            phase::AUTHORITY => self.authority(window, cursor),
            phase::SEGMENT => self.segment(window, cursor, terms, lookup),
            phase::PARAMETER => self.parameter(window, cursor),
            phase::PATH | phase::QUERY => self.query(window, cursor),
            phase::VERSION => self.version(window, cursor),
            phase::LINE | phase::VALUE => self.line(window, cursor, terms),
            phase::HOST | phase::HOST_TRAIL => self.host_field(window, cursor),
            phase::KEY_LEAD..=phase::KEY_TRAIL | phase::CLIENT_LEAD..=phase::CLIENT_TRAIL => {
                self.identifier(window, cursor)
            }
            phase::FORWARDED => self.elements(window, cursor, terms.rules.trusts, lookup),
            phase::CODING_LEAD => self.word(window, cursor, value::CHUNKED, Malformation::TransferEncoding),
            phase::CODING_TRAIL => self.trail(window, cursor, Malformation::TransferEncoding),
            phase::EXPECT_LEAD => self.word(window, cursor, value::CONTINUE, Malformation::Expect),
            phase::EXPECT_TRAIL => self.trail(window, cursor, Malformation::Expect),
            phase::LIST if self.seen < cookie::NAME => self.options(window, cursor),
            phase::LIST => self.cookies(window, cursor),
            _ => self.length(window, cursor, terms.service),
        };
        // Also where something else is wrong behind a bound, so that the reason does not depend on the cuts.
        if self.head > terms.service.max_head {
            return Step::Refused(Reason::HeadTooLarge.into());
        }
        if matches!(phase, phase::TARGET..=phase::QUERY) && self.target > terms.service.max_target {
            return Step::Refused(Reason::TargetTooLong.into());
        }
        if matches!(step, Step::Head) {
            self.head = 0;
        }
        step
    }
}
