//! `Cookie`: whether one is named like a key (RFC 6265 §5.4). None is taken from there.

use super::bytes::{Window, controls, equal, first, invisible};
use super::head::run;
use super::target::{PARAMETER, is_key_name};
use super::{Cursor, KEY_ELSEWHERE, Machine, Step, is_blank, phase};

/// Before the name of a cookie: what was seen of the list.
pub(super) const NAME: u8 = 2;
/// Behind one.
pub(super) const REST: u8 = 3;

impl Machine {
    /// A cookie up to the `;` behind it, or a part of one.
    #[inline(always)]
    pub(super) fn cookies(&mut self, window: &Window, cursor: &mut Cursor) -> Step {
        if self.seen == NAME {
            let at = cursor.pos;
            if is_blank(window.byte(at)) {
                self.take(cursor, 1);
                return Step::More;
            }
            let (low, high) = (window.word(at), window.word_behind::<8>(at));
            let ends = |word| invisible(word) | equal(word, b'=') | equal(word, b';');
            let len = match (ends(low), ends(high)) {
                (0, 0) => 16,
                (0, mask) => 8 + first(mask),
                (mask, _) => first(mask),
            };
            let unread = cursor.unread();
            if len >= unread && unread < PARAMETER {
                return Step::Starved;
            }
            if is_key_name(low, high, len) && window.byte(at.wrapping_add(len)) == b'=' {
                self.flags |= KEY_ELSEWHERE;
            }
            self.seen = REST;
        }
        let (len, stopped) = run(window, cursor, |word| controls(word) | equal(word, b';'));
        self.take(cursor, len);
        if !stopped {
            return Step::More;
        }
        if window.byte(cursor.pos) == b';' {
            self.take(cursor, 1);
            self.seen = NAME;
            return Step::More;
        }
        let step = self.value_end(window, cursor);
        if self.phase == phase::LINE {
            self.seen = 0;
        }
        step
    }
}
