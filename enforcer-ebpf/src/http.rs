//! The HTTP/1.1 framing machine: where each request begins and ends, and the few fields that matter.
//!
//! It accepts what RFC 9112 lets no server read in two ways and refuses the rest, at the first byte that is wrong.
//! It is fed in-order bytes in any pieces and goes on from its own state; [`Machine::step`] does a bounded amount of
//! work, so that one `bpf_loop` callback in the kernel and one `while` on the host drive the same code. Bodies are
//! skipped by count and never read.
//!
//! A step sees at least the next [`bytes::BASE`] bytes of the stream, or all that there are: elements that must be
//! seen whole (a method, a field name) are shorter, or known to be of no interest.

pub mod bytes;

use crate::abi::{KeyTag, Service};
use crate::key::{self, Tagger};
use crate::verdict::{Malformation, Reason};
use bytes::{BASE, Window, controls, first, folded, hyphened, invisible, is_token, lowest, uncommon};

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
    pub(super) const TARGET: u8 = 1;
    pub(super) const VERSION: u8 = 2;
    pub(super) const LINE: u8 = 3;
    pub(super) const VALUE: u8 = 4;
    pub(super) const KEY_LEAD: u8 = 5;
    pub(super) const KEY: u8 = 6;
    pub(super) const KEY_TRAIL: u8 = 7;
    pub(super) const LENGTH_LEAD: u8 = 8;
    pub(super) const LENGTH: u8 = 9;
    pub(super) const LENGTH_TRAIL: u8 = 10;
    pub(super) const CODING_LEAD: u8 = 11;
    pub(super) const CODING_TRAIL: u8 = 12;
    /// From here on the head is complete.
    pub(super) const BODY: u8 = 13;
    pub(super) const CHUNK_SIZE: u8 = 14;
    pub(super) const CHUNK_DATA: u8 = 15;
    pub(super) const CHUNK_END: u8 = 16;
    pub(super) const LAST_CHUNK: u8 = 17;
    /// What follows is not judged: an observed stream that was malformed, or an allowed upgrade.
    pub(super) const OPAQUE: u8 = 18;
}

const HTTP_1_0: u16 = 1;
const KEYED: u16 = 2;
const LENGTH: u16 = 4;
const CHUNKED: u16 = 8;
const HOST: u16 = 16;
/// A CRLF before the request line was taken.
const LED: u16 = 32;
/// The name under way holds a `_`.
const UNDERSCORE: u16 = 64;
/// The name under way is longer than any that matters.
const LONG: u16 = 128;

/// The machine's state between two bytes of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Machine {
    /// Bytes left of a body or chunk; while a length is read, what it amounts to so far.
    left: u64,
    /// The key's value so far.
    tagger: Tagger,
    /// The unread end of the last segment, right-aligned.
    carry: [u64; 4],
    /// Bytes of the current head, and of its target.
    head: u32,
    target: u32,
    flags: u16,
    fields: u16,
    phase: u8,
    /// Bytes of `carry` that count.
    carried: u8,
    /// Bytes of the name under way that are known to be a token's.
    seen: u8,
    /// Digits of the length under way.
    digits: u8,
}

const fn name<const N: usize>(bytes: &[u8; N]) -> [u64; 4] {
    let mut words = [0u64; 4];
    let mut i = 0;
    while i < N {
        words[i / 8] |= (bytes[i] as u64) << (8 * (i % 8));
        i += 1;
    }
    words
}

const X_API_KEY: [u64; 4] = name(b"x-api-key");
const CONTENT_LENGTH: [u64; 4] = name(b"content-length");
const TRANSFER_ENCODING: [u64; 4] = name(b"transfer-encoding");
const HTTP2_SETTINGS: [u64; 4] = name(b"http2-settings");
const UPGRADE: [u64; 4] = name(b"upgrade");
const HOST_NAME: [u64; 4] = name(b"host");
const CONNECT: [u64; 4] = name(b"connect");
const PRI: [u64; 4] = name(b"pri");
const CHUNKED_CODING: u64 = name(b"chunked")[0];
const VERSION_1_1: u64 = u64::from_le_bytes(*b"HTTP/1.1");
const VERSION_1_0: u64 = u64::from_le_bytes(*b"HTTP/1.0");

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

    /// Whether the bytes so far end between two requests.
    #[must_use]
    #[inline(always)]
    pub fn is_between_requests(&self) -> bool {
        self.phase == phase::START && self.carried == 0
    }

    /// Whether the bytes so far end inside a request head.
    #[must_use]
    #[inline(always)]
    pub fn is_in_head(&self) -> bool {
        self.phase < phase::BODY && !self.is_between_requests()
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
            phase::BODY | phase::CHUNK_DATA => self.left,
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
            self.phase = if self.phase == phase::BODY { phase::START } else { phase::CHUNK_END };
        }
    }

    /// The tag of the request whose head is complete; `None` if it has no key.
    #[must_use]
    #[inline(always)]
    pub fn key(&self) -> Option<KeyTag> {
        if self.flags & KEYED == 0 { None } else { Some(self.tagger.finish()) }
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
        self.tagger = Tagger::default();
    }

    #[inline(always)]
    fn take(&mut self, cursor: &mut Cursor, count: u32) {
        cursor.pos = cursor.pos.wrapping_add(count);
        self.head = self.head.wrapping_add(count);
    }

    /// Goes on by at most a line or 64 bytes.
    #[inline(always)]
    pub fn step(&mut self, window: &Window, cursor: &mut Cursor, bounds: &Service, secret: [u64; 2]) -> Step {
        if cursor.unread() == 0 {
            return Step::Starved;
        }
        if self.phase >= phase::BODY {
            return self.body(window, cursor);
        }
        let step = match self.phase {
            phase::START => self.method(window, cursor, bounds),
            phase::TARGET => self.target(window, cursor, bounds),
            phase::VERSION => self.version(window, cursor),
            phase::LINE | phase::VALUE => self.line(window, cursor, bounds, secret),
            phase::KEY_LEAD | phase::KEY | phase::KEY_TRAIL => self.key_value(window, cursor),
            phase::CODING_LEAD => self.coding(window, cursor),
            phase::CODING_TRAIL => self.trail(window, cursor, Malformation::TransferEncoding),
            _ => self.length(window, cursor, bounds),
        };
        // Also where something else is wrong behind the bound, so that the reason does not depend on the cuts.
        if self.head > bounds.max_head {
            return Step::Refused(Reason::TooLarge.into());
        }
        if matches!(step, Step::Head) {
            self.head = 0;
        }
        step
    }

    /// The first byte that is no letter or `-` among those that a name may have; at least 32 if there is none.
    #[inline(always)]
    fn name_end(&self, window: &Window, cursor: &Cursor) -> u32 {
        let seen = u32::from(self.seen) & (BASE - 1);
        let at = cursor.pos.wrapping_add(seen);
        let mask = uncommon(window.word_behind::<0>(at));
        if mask != 0 {
            return seen + first(mask);
        }
        let mask = uncommon(window.word_behind::<8>(at));
        if mask != 0 {
            return seen + 8 + first(mask);
        }
        let mask = uncommon(window.word_behind::<16>(at));
        if mask != 0 {
            return seen + 16 + first(mask);
        }
        let mask = uncommon(window.word_behind::<24>(at));
        if mask != 0 { seen + 24 + first(mask) } else { BASE + seen }
    }

    #[inline(always)]
    fn method(&mut self, window: &Window, cursor: &mut Cursor, bounds: &Service) -> Step {
        if self.seen == 0 {
            self.flags &= LED;
            self.fields = 0;
            self.head = 0;
            match line_end(window, cursor.pos, cursor.unread()) {
                // RFC 9112 §2.2: one CRLF before the request line is to be overlooked.
                LineEnd::Yes if self.flags & LED == 0 => {
                    self.flags |= LED;
                    cursor.pos = cursor.pos.wrapping_add(2);
                    return Step::More;
                }
                LineEnd::Cut if self.flags & LED == 0 => return Step::Starved,
                _ => {}
            }
        }
        let len = self.name_end(window, cursor);
        if len >= BASE && cursor.unread() >= BASE {
            return Step::Refused(Malformation::Method.into());
        }
        if len >= cursor.unread() {
            return Step::Starved;
        }
        let stop = window.byte(cursor.pos.wrapping_add(len));
        if stop != b' ' {
            if is_token(stop) {
                return self.pass_uncommon(cursor, len, stop);
            }
            let kind = match (len, stop) {
                (0, CR | LF) => Malformation::LineEnding,
                (0, _) => Malformation::NotHttp,
                (_, 0x20..=0x7e | b'\t' | CR | LF) => Malformation::Method,
                _ => Malformation::NotHttp,
            };
            return Step::Refused(kind.into());
        }
        if len == 0 {
            return Step::Refused(Malformation::Method.into());
        }
        let word = folded(window.word(cursor.pos));
        // The preface of HTTP/2 is a request for servers that do not know it (RFC 9113 §3.4).
        if len == 3 && lowest(word, 3) == PRI[0] {
            return Step::Refused(Malformation::NotHttp.into());
        }
        if len == 7 && lowest(word, 7) == CONNECT[0] && bounds.flags & Service::UPGRADE == 0 {
            return Step::Refused(Reason::Upgrade.into());
        }
        self.flags &= !(LED | UNDERSCORE);
        self.seen = 0;
        self.target = 0;
        self.take(cursor, len.wrapping_add(1));
        self.phase = phase::TARGET;
        Step::More
    }

    /// A token's byte that is neither letter nor `-`, at `len` below [`BASE`]: goes on behind it.
    #[inline(always)]
    fn pass_uncommon(&mut self, cursor: &mut Cursor, len: u32, byte: u8) -> Step {
        if byte == b'_' {
            self.flags |= UNDERSCORE;
        }
        self.seen = (len + 1) as u8;
        if len + 1 < BASE {
            return Step::More;
        }
        if self.phase == phase::START {
            return Step::Refused(Malformation::Method.into());
        }
        self.pass_long(cursor)
    }

    /// The first [`BASE`] bytes of a name are a token's: it is none that matters.
    #[inline(always)]
    fn pass_long(&mut self, cursor: &mut Cursor) -> Step {
        self.take(cursor, BASE);
        self.flags |= LONG;
        self.seen = 0;
        Step::More
    }

    #[inline(always)]
    fn target(&mut self, window: &Window, cursor: &mut Cursor, bounds: &Service) -> Step {
        let (len, stopped) = run(window, cursor, invisible);
        self.target = self.target.wrapping_add(len);
        self.take(cursor, len);
        if self.target > bounds.max_target {
            return Step::Refused(Reason::TooLarge.into());
        }
        if !stopped {
            return Step::More;
        }
        match window.byte(cursor.pos) {
            b' ' if self.target > 0 => {
                self.take(cursor, 1);
                self.phase = phase::VERSION;
                Step::More
            }
            // HTTP/0.9 has no version.
            CR | LF if self.target > 0 => Step::Refused(Malformation::Version.into()),
            _ => Step::Refused(Malformation::Target.into()),
        }
    }

    #[inline(always)]
    fn version(&mut self, window: &Window, cursor: &mut Cursor) -> Step {
        let unread = cursor.unread();
        let word = window.word(cursor.pos);
        // Refused at the first wrong byte: some servers run a request line that has no version.
        if lowest(word, unread) != lowest(VERSION_1_1, unread) && lowest(word, unread) != lowest(VERSION_1_0, unread) {
            return Step::Refused(Malformation::Version.into());
        }
        if unread <= 8 {
            return Step::Starved;
        }
        match line_end(window, cursor.pos.wrapping_add(8), unread - 8) {
            LineEnd::Cut => Step::Starved,
            LineEnd::No => Step::Refused(Malformation::Version.into()),
            LineEnd::Yes => {
                if word == VERSION_1_0 {
                    self.flags |= HTTP_1_0;
                }
                self.take(cursor, 10);
                self.phase = phase::LINE;
                Step::More
            }
        }
    }

    /// A field line up to its value, the value too where it does not matter, or the end of the head.
    #[inline(always)]
    fn line(&mut self, window: &Window, cursor: &mut Cursor, bounds: &Service, secret: [u64; 2]) -> Step {
        if self.phase == phase::LINE {
            if self.seen == 0 && self.flags & LONG == 0 {
                match line_end(window, cursor.pos, cursor.unread()) {
                    LineEnd::Yes => {
                        self.take(cursor, 2);
                        return self.head_end();
                    }
                    LineEnd::Cut => return Step::Starved,
                    LineEnd::No => {}
                }
            }
            let len = self.name_end(window, cursor);
            if len >= BASE && cursor.unread() >= BASE {
                return self.pass_long(cursor);
            }
            if len >= cursor.unread() {
                return Step::Starved;
            }
            let stop = window.byte(cursor.pos.wrapping_add(len));
            if stop != b':' {
                return self.no_colon(cursor, len, stop);
            }
            if let Some(step) = self.name(window, cursor, len, bounds, secret) {
                return step;
            }
        }
        let (len, stopped) = run(window, cursor, controls);
        self.take(cursor, len);
        if !stopped {
            return Step::More;
        }
        let stop = window.byte(cursor.pos);
        if stop == b'\t' {
            self.take(cursor, 1);
            return Step::More;
        }
        match line_end(window, cursor.pos, cursor.unread()) {
            LineEnd::Yes => {
                self.take(cursor, 2);
                self.phase = phase::LINE;
                Step::More
            }
            LineEnd::Cut => Step::Starved,
            LineEnd::No if stop == CR || stop == LF => Step::Refused(Malformation::LineEnding.into()),
            LineEnd::No => Step::Refused(Malformation::ControlByte.into()),
        }
    }

    #[inline(always)]
    fn no_colon(&mut self, cursor: &mut Cursor, len: u32, stop: u8) -> Step {
        if is_token(stop) {
            return self.pass_uncommon(cursor, len, stop);
        }
        let begins = len == 0 && self.flags & LONG == 0;
        let kind = match stop {
            b' ' | b'\t' if begins => Malformation::ObsFold,
            CR | LF => Malformation::LineEnding,
            _ => Malformation::FieldName,
        };
        Step::Refused(kind.into())
    }

    /// The field named by the `len` bytes before a colon. `None`: its value does not matter.
    #[inline(always)]
    fn name(
        &mut self,
        window: &Window,
        cursor: &mut Cursor,
        len: u32,
        bounds: &Service,
        secret: [u64; 2],
    ) -> Option<Step> {
        let long = self.flags & LONG != 0;
        if len == 0 && !long {
            return Some(Step::Refused(Malformation::FieldName.into()));
        }
        self.fields += 1;
        if u32::from(self.fields) > bounds.max_fields {
            return Some(Step::Refused(Reason::TooLarge.into()));
        }
        let at = cursor.pos;
        let underscore = self.flags & UNDERSCORE != 0;
        self.flags &= !(LONG | UNDERSCORE);
        self.seen = 0;
        self.take(cursor, len.wrapping_add(1));
        self.phase = phase::VALUE;
        // Names of one length at most meet here, so one or two comparisons settle what the field is.
        let mut first = folded(window.word_behind::<0>(at));
        let mut second = folded(window.word_behind::<8>(at));
        let mut third = folded(window.word_behind::<16>(at));
        if underscore {
            first = hyphened(first);
            second = hyphened(second);
            third = hyphened(third);
        }
        let step = match len {
            _ if long => return None,
            9 if first == X_API_KEY[0] && lowest(second, 1) == X_API_KEY[1] => {
                let again = self.flags & KEYED != 0;
                self.flags |= KEYED;
                self.phase = phase::KEY_LEAD;
                self.tagger = Tagger::new(secret);
                again.then_some(Malformation::Duplicate)
            }
            14 if first == CONTENT_LENGTH[0] && lowest(second, 6) == CONTENT_LENGTH[1] => {
                let again = self.flags & LENGTH != 0;
                let both = self.flags & CHUNKED != 0;
                self.flags |= LENGTH;
                self.phase = phase::LENGTH_LEAD;
                self.left = 0;
                self.digits = 0;
                if both { Some(Malformation::Framing) } else { again.then_some(Malformation::Duplicate) }
            }
            17 if first == TRANSFER_ENCODING[0]
                && second == TRANSFER_ENCODING[1]
                && lowest(third, 1) == TRANSFER_ENCODING[2] =>
            {
                let again = self.flags & CHUNKED != 0;
                let both = self.flags & LENGTH != 0;
                let old = self.flags & HTTP_1_0 != 0;
                self.flags |= CHUNKED;
                self.phase = phase::CODING_LEAD;
                if both {
                    Some(Malformation::Framing)
                } else if old {
                    // RFC 9112 §6.1: a 1.0 message with Transfer-Encoding has faulty framing.
                    Some(Malformation::TransferEncoding)
                } else {
                    again.then_some(Malformation::Duplicate)
                }
            }
            4 if lowest(first, 4) == HOST_NAME[0] => {
                let again = self.flags & HOST != 0;
                self.flags |= HOST;
                again.then_some(Malformation::Duplicate)
            }
            7 if lowest(first, 7) == UPGRADE[0] && bounds.flags & Service::UPGRADE == 0 => {
                return Some(Step::Refused(Reason::Upgrade.into()));
            }
            14 if first == HTTP2_SETTINGS[0] && lowest(second, 6) == HTTP2_SETTINGS[1] => {
                return Some(Step::Refused(Reason::Upgrade.into()));
            }
            _ => return None,
        };
        if underscore {
            return Some(Step::Refused(Malformation::AliasedName.into()));
        }
        if let Some(kind) = step {
            return Some(Step::Refused(kind.into()));
        }
        if self.phase == phase::VALUE { None } else { Some(Step::More) }
    }

    #[inline(always)]
    fn head_end(&mut self) -> Step {
        self.phase = if self.flags & CHUNKED != 0 {
            self.left = 0;
            self.digits = 0;
            phase::CHUNK_SIZE
        } else if self.flags & LENGTH != 0 && self.left > 0 {
            phase::BODY
        } else {
            phase::START
        };
        Step::Head
    }

    #[inline(always)]
    fn key_value(&mut self, window: &Window, cursor: &mut Cursor) -> Step {
        if self.phase == phase::KEY_LEAD {
            if is_blank(window.byte(cursor.pos)) {
                self.take(cursor, 1);
                if cursor.unread() == 0 || is_blank(window.byte(cursor.pos)) {
                    return Step::More;
                }
            }
            self.phase = phase::KEY;
        }
        if self.phase == phase::KEY {
            let mut tagger = self.tagger;
            let mut taken = 0;
            for _ in 0..4 {
                let at = cursor.pos.wrapping_add(taken);
                let word = window.word(at);
                let mask = invisible(word);
                let mut count = if mask == 0 { 8 } else { first(mask) };
                let unread = cursor.end.wrapping_sub(at);
                if count > unread {
                    count = unread;
                }
                if count > 0 {
                    tagger.push(word, count);
                    taken += count;
                }
                if count < 8 {
                    break;
                }
            }
            self.tagger = tagger;
            self.take(cursor, taken);
            if tagger.len() > key::MAX_LEN {
                return Step::Refused(Malformation::KeyValue.into());
            }
            if taken >= 32 || cursor.unread() == 0 {
                return Step::More;
            }
            if tagger.len() < key::MIN_LEN {
                return Step::Refused(Malformation::KeyValue.into());
            }
            self.phase = phase::KEY_TRAIL;
        }
        self.trail(window, cursor, Malformation::KeyValue)
    }

    /// Blanks up to the end of a line; anything else is malformed.
    #[inline(always)]
    fn trail(&mut self, window: &Window, cursor: &mut Cursor, kind: Malformation) -> Step {
        if is_blank(window.byte(cursor.pos)) {
            self.take(cursor, 1);
            return Step::More;
        }
        match line_end(window, cursor.pos, cursor.unread()) {
            LineEnd::Yes => {
                self.take(cursor, 2);
                self.phase = phase::LINE;
                Step::More
            }
            LineEnd::Cut => Step::Starved,
            LineEnd::No => Step::Refused(kind.into()),
        }
    }

    #[inline(always)]
    fn length(&mut self, window: &Window, cursor: &mut Cursor, bounds: &Service) -> Step {
        let byte = window.byte(cursor.pos);
        if self.phase == phase::LENGTH_LEAD {
            if is_blank(byte) {
                self.take(cursor, 1);
                return Step::More;
            }
            self.phase = phase::LENGTH;
        }
        if self.phase == phase::LENGTH {
            if byte.is_ascii_digit() {
                if self.digits >= 19 {
                    return Step::Refused(Malformation::ContentLength.into());
                }
                self.digits += 1;
                self.left = self.left.wrapping_mul(10).wrapping_add(u64::from(byte - b'0'));
                self.take(cursor, 1);
                return Step::More;
            }
            if self.digits == 0 {
                return Step::Refused(Malformation::ContentLength.into());
            }
            if self.left > bounds.max_body {
                return Step::Refused(Reason::TooLarge.into());
            }
            self.phase = phase::LENGTH_TRAIL;
        }
        self.trail(window, cursor, Malformation::ContentLength)
    }

    #[inline(always)]
    fn coding(&mut self, window: &Window, cursor: &mut Cursor) -> Step {
        if is_blank(window.byte(cursor.pos)) {
            self.take(cursor, 1);
            return Step::More;
        }
        let unread = if cursor.unread() > 7 { 7 } else { cursor.unread() };
        if lowest(folded(window.word(cursor.pos)), unread) != lowest(CHUNKED_CODING, unread) {
            return Step::Refused(Malformation::TransferEncoding.into());
        }
        if unread < 7 {
            return Step::Starved;
        }
        self.take(cursor, 7);
        self.phase = phase::CODING_TRAIL;
        Step::More
    }

    #[inline(always)]
    fn body(&mut self, window: &Window, cursor: &mut Cursor) -> Step {
        let unread = cursor.unread();
        let skippable = self.skippable();
        if skippable > 0 {
            let count = if skippable < u64::from(unread) { skippable as u32 } else { unread };
            cursor.pos = cursor.pos.wrapping_add(count);
            self.skip(count);
            return Step::More;
        }
        if self.phase == phase::CHUNK_SIZE {
            let digit = match window.byte(cursor.pos) {
                byte @ b'0'..=b'9' => byte - b'0',
                byte @ (b'a'..=b'f' | b'A'..=b'F') => (byte | 0x20) - b'a' + 10,
                _ => 16,
            };
            if digit < 16 {
                if self.digits >= 15 {
                    return Step::Refused(Malformation::Chunk.into());
                }
                self.digits += 1;
                self.left = (self.left << 4) | u64::from(digit);
                cursor.pos = cursor.pos.wrapping_add(1);
                return Step::More;
            }
            if self.digits == 0 {
                return Step::Refused(Malformation::Chunk.into());
            }
        }
        match line_end(window, cursor.pos, unread) {
            LineEnd::Cut => Step::Starved,
            LineEnd::No if self.phase == phase::LAST_CHUNK => Step::Refused(Malformation::Trailer.into()),
            LineEnd::No => Step::Refused(Malformation::Chunk.into()),
            LineEnd::Yes => {
                cursor.pos = cursor.pos.wrapping_add(2);
                self.phase = match self.phase {
                    phase::CHUNK_SIZE if self.left > 0 => phase::CHUNK_DATA,
                    phase::CHUNK_SIZE => phase::LAST_CHUNK,
                    phase::LAST_CHUNK => phase::START,
                    _ => phase::CHUNK_SIZE,
                };
                self.digits = 0;
                Step::More
            }
        }
    }
}

/// How many of the next 64 bytes come before the first of a class, and whether there is one.
#[inline(always)]
fn run(window: &Window, cursor: &Cursor, class: impl Fn(u64) -> u64) -> (u32, bool) {
    let at = cursor.pos;
    let unread = cursor.unread();
    let masks = |mask: u64, before: u32| {
        let len = before + first(mask);
        if len < unread { (len, true) } else { (unread, false) }
    };
    macro_rules! word {
        ($behind:literal) => {
            let mask = class(window.word_behind::<$behind>(at));
            if mask != 0 {
                return masks(mask, $behind);
            }
        };
    }
    word!(0);
    word!(8);
    word!(16);
    word!(24);
    word!(32);
    word!(40);
    word!(48);
    word!(56);
    if unread > 64 { (64, false) } else { (unread, false) }
}
