//! The values that matter: the key, the client's id, the body's length and its coding, and what becomes of the connection.

use super::bytes::{Window, first, folded, invisible, lowest, uncommon};
use super::{CLOSE, CR, Cursor, KEEP, LF, LineEnd, Machine, Step, is_blank, line_end, phase};
use crate::abi::{KeyTag, Service};
use crate::key::{self, Tagger};
use crate::verdict::{Malformation, Reason};

/// A word that is a field's only value, in lower case, and its length.
pub(super) type Word = ([u64; 2], u32);

/// The one transfer coding (RFC 9112 §7.1).
pub(super) const CHUNKED: Word = ([u64::from_le_bytes(*b"chunked\0"), 0], 7);
/// The one expectation (RFC 9110 §10.1.1).
pub(super) const CONTINUE: Word = ([u64::from_le_bytes(*b"100-cont"), u64::from_le_bytes(*b"inue\0\0\0\0")], 12);

/// Connection options (RFC 9112 §9.3, §9.6).
const CLOSES: u64 = u64::from_le_bytes(*b"close\0\0\0");
const KEEPS: [u64; 2] = [u64::from_le_bytes(*b"keep-ali"), u64::from_le_bytes(*b"ve\0\0\0\0\0\0")];
/// Bytes of an option that are looked at together: more than those that matter have.
const OPTION: u32 = 16;

impl Machine {
    /// The value of the key's field or of the client's.
    #[inline(always)]
    pub(super) fn identifier(&mut self, window: &Window, cursor: &mut Cursor) -> Step {
        let is_client = self.phase >= phase::CLIENT_LEAD;
        let (least, kind) =
            if is_client { (1, Malformation::ClientId) } else { (key::MIN_LEN, Malformation::KeyValue) };
        if matches!(self.phase, phase::KEY_LEAD | phase::CLIENT_LEAD) {
            if is_blank(window.byte(cursor.pos)) {
                self.take(cursor, 1);
                if cursor.unread() == 0 || is_blank(window.byte(cursor.pos)) {
                    return Step::More;
                }
            }
            self.phase += 1;
        }
        if matches!(self.phase, phase::KEY | phase::CLIENT) {
            let taken = self.hash(window, cursor, invisible, |word| word);
            self.take(cursor, taken);
            let tagger = Tagger::from_words(self.value);
            if tagger.len() > key::MAX_LEN {
                return Step::Refused(kind.into());
            }
            if taken >= 32 || cursor.unread() == 0 {
                return Step::More;
            }
            if tagger.len() < least {
                return Step::Refused(kind.into());
            }
            let KeyTag(tag) = tagger.finish();
            if is_client {
                self.client = tag;
            } else {
                self.key = tag;
            }
            self.phase += 1;
        }
        self.trail(window, cursor, kind)
    }

    /// Takes up to 32 bytes before the first of a class into the tag under way, as `change` makes them; how many. They are
    /// still unread.
    #[inline(always)]
    pub(super) fn hash(
        &mut self,
        window: &Window,
        cursor: &Cursor,
        class: impl Fn(u64) -> u64,
        change: impl Fn(u64) -> u64,
    ) -> u32 {
        let mut tagger = Tagger::from_words(self.value);
        let mut taken = 0;
        for _ in 0..4 {
            let at = cursor.pos.wrapping_add(taken);
            let word = window.word(at);
            let mask = class(word);
            let mut count = if mask == 0 { 8 } else { first(mask) };
            let unread = cursor.end.wrapping_sub(at);
            if count > unread {
                count = unread;
            }
            if count > 0 {
                tagger.push(change(word), count);
                taken += count;
            }
            if count < 8 {
                break;
            }
        }
        self.value = tagger.to_words();
        taken
    }

    /// Blanks up to the end of a line; anything else is malformed.
    #[inline(always)]
    pub(super) fn trail(&mut self, window: &Window, cursor: &mut Cursor, kind: Malformation) -> Step {
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
    pub(super) fn length(&mut self, window: &Window, cursor: &mut Cursor, bounds: &Service) -> Step {
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
                return Step::Refused(Reason::BodyTooLarge.into());
            }
            self.phase = phase::LENGTH_TRAIL;
        }
        self.trail(window, cursor, Malformation::ContentLength)
    }

    /// A value that must be one certain word; what may follow it is read in the next phase.
    #[inline(always)]
    pub(super) fn word(&mut self, window: &Window, cursor: &mut Cursor, word: Word, kind: Malformation) -> Step {
        if is_blank(window.byte(cursor.pos)) {
            self.take(cursor, 1);
            return Step::More;
        }
        let ([low, high], len) = word;
        let unread = if cursor.unread() > len { len } else { cursor.unread() };
        let behind = unread.saturating_sub(8);
        let (first, second) = (window.word(cursor.pos), window.word_behind::<8>(cursor.pos));
        // Folded, a control byte may look like a digit or a hyphen.
        let controls = lowest(invisible(first), unread) | lowest(invisible(second), behind);
        if controls != 0
            || lowest(folded(first), unread) != lowest(low, unread)
            || lowest(folded(second), behind) != lowest(high, behind)
        {
            return Step::Refused(kind.into());
        }
        if unread < len {
            return Step::Starved;
        }
        self.take(cursor, len);
        self.phase += 1;
        Step::More
    }

    /// A list of connection options: a byte that separates them, a part of an option, or the line's end.
    #[inline(always)]
    pub(super) fn options(&mut self, window: &Window, cursor: &mut Cursor) -> Step {
        let at = cursor.pos;
        let byte = window.byte(at);
        if is_separator(byte) {
            match line_end(window, at, cursor.unread()) {
                LineEnd::Yes => {
                    self.take(cursor, 2);
                    self.phase = phase::LINE;
                }
                LineEnd::Cut => return Step::Starved,
                LineEnd::No if byte == CR || byte == LF => return Step::Refused(Malformation::LineEnding.into()),
                LineEnd::No => self.take(cursor, 1),
            }
            self.seen = 0;
            return Step::More;
        }
        if (byte < b' ' && byte != b'\t') || byte == 0x7f {
            return Step::Refused(Malformation::ControlByte.into());
        }
        let (low, high) = (window.word(at), window.word_behind::<8>(at));
        let len = match (uncommon(low), uncommon(high)) {
            (0, 0) => OPTION,
            (0, mask) => 8 + first(mask),
            (mask, _) => first(mask),
        };
        if len >= cursor.unread() && cursor.unread() < OPTION {
            return Step::Starved;
        }
        let ends = is_separator(window.byte(at.wrapping_add(len)));
        if self.seen == 0 && ends {
            let (low, high) = (folded(low), folded(high));
            if len == 5 && lowest(low, 5) == CLOSES {
                self.flags |= CLOSE;
            }
            if len == 10 && low == KEEPS[0] && lowest(high, 2) == KEEPS[1] {
                self.flags |= KEEP;
            }
            // Servers differ in which of them holds.
            if self.flags & (CLOSE | KEEP) == CLOSE | KEEP {
                return Step::Refused(Malformation::Connection.into());
            }
        }
        self.seen = 1;
        self.take(cursor, if len == 0 { 1 } else { len });
        Step::More
    }
}

/// What may stand between connection options, or end their line.
#[inline(always)]
const fn is_separator(byte: u8) -> bool {
    matches!(byte, b',' | b' ' | b'\t' | CR | LF)
}
