//! The values that matter: the key, the body's length and its coding.

use super::bytes::{Window, first, folded, invisible, lowest};
use super::{Cursor, LineEnd, Machine, Step, is_blank, line_end, phase};
use crate::abi::Service;
use crate::key;
use crate::verdict::{Malformation, Reason};

/// The one transfer coding, lower case.
const CHUNKED: u64 = u64::from_le_bytes(*b"chunked\0");

impl Machine {
    #[inline(always)]
    pub(super) fn key_value(&mut self, window: &Window, cursor: &mut Cursor) -> Step {
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
                return Step::Refused(Reason::TooLarge.into());
            }
            self.phase = phase::LENGTH_TRAIL;
        }
        self.trail(window, cursor, Malformation::ContentLength)
    }

    #[inline(always)]
    pub(super) fn coding(&mut self, window: &Window, cursor: &mut Cursor) -> Step {
        if is_blank(window.byte(cursor.pos)) {
            self.take(cursor, 1);
            return Step::More;
        }
        let unread = if cursor.unread() > 7 { 7 } else { cursor.unread() };
        if lowest(folded(window.word(cursor.pos)), unread) != lowest(CHUNKED, unread) {
            return Step::Refused(Malformation::TransferEncoding.into());
        }
        if unread < 7 {
            return Step::Starved;
        }
        self.take(cursor, 7);
        self.phase = phase::CODING_TRAIL;
        Step::More
    }
}
