//! The host that a request is for, where services are told apart by it: as the target names it in absolute form, and as its
//! `Host` field does (RFC 9110 §7.2, RFC 9112 §3.2).
//!
//! Servers agree on names of letters, digits, `-` and `_` with single dots between them, and on addresses in brackets;
//! all else is refused, since it could be one host for us and another for them. What a name is compared by has small
//! letters, and neither a port nor the one dot that may end it.

use super::bytes::{Window, folded, unnamed};
use super::{ABSOLUTE, Cursor, HOST, HTTP_1_0, Machine, Step, is_blank, phase};
use crate::abi::KeyTag;
use crate::key::Tagger;
use crate::opaque::zero;
use crate::verdict::{Malformation, Reason};

/// What there is of a host so far; numbers, since they lie in a map.
pub(super) mod part {
    pub(in crate::http) const NOTHING: u8 = 0;
    /// A label's bytes.
    pub(in crate::http) const LABEL: u8 = 1;
    /// A dot behind a label: it counts if another label follows.
    pub(in crate::http) const DOT: u8 = 2;
    /// An address in brackets, and its end.
    pub(in crate::http) const ADDRESS: u8 = 3;
    pub(in crate::http) const ADDRESS_END: u8 = 4;
    /// A port, which may have no digits.
    pub(in crate::http) const PORT: u8 = 5;
}

/// Bytes of a label that are taken in a step.
const STEP: u32 = 32;

/// The tag that a host's name is compared by, without a port and a dot at its end.
#[must_use]
pub fn tag(secret: [u64; 2], name: &str) -> KeyTag {
    let mut tagger = Tagger::new(secret);
    for byte in name.bytes() {
        tagger.push(folded(u64::from(byte)), 1);
    }
    tagger.finish()
}

impl Machine {
    /// The tag of the host that the request whose head is complete is for; all 0 if it names none.
    #[must_use]
    #[inline(always)]
    pub fn host(&self) -> [u64; 2] {
        if self.flags & (HOST | ABSOLUTE) == 0 { [0; 2] } else { self.host }
    }

    /// The value of `Host`.
    #[inline(always)]
    pub(super) fn host_field(&mut self, window: &Window, cursor: &mut Cursor) -> Step {
        if self.phase == phase::HOST_TRAIL {
            return self.trail(window, cursor, Malformation::Host);
        }
        if self.seen == part::NOTHING && is_blank(window.byte(cursor.pos)) {
            self.take(cursor, 1);
            return Step::More;
        }
        if self.pass_host(window, cursor) {
            return Step::More;
        }
        if self.seen == part::ADDRESS {
            return Step::Refused(Malformation::Host.into());
        }
        let [low, high] = self.host_tag();
        // RFC 9112 §3.2.2: what the target says counts, and some servers take the field all the same.
        if self.flags & ABSOLUTE != 0 && (low ^ self.host[0]) | (high ^ self.host[1]) != 0 {
            return Step::Refused(Malformation::Host.into());
        }
        self.host[0] = low;
        self.host[1] = high;
        self.seen = part::NOTHING;
        self.phase = phase::HOST_TRAIL;
        self.trail(window, cursor, Malformation::Host)
    }

    /// The host of a target in absolute form.
    #[inline(always)]
    pub(super) fn host_in_target(&mut self, window: &Window, cursor: &mut Cursor, secret: [u64; 2]) -> Step {
        let before = cursor.pos;
        let goes_on = self.pass_host(window, cursor);
        self.target = self.target.wrapping_add(cursor.pos.wrapping_sub(before));
        if goes_on {
            return Step::More;
        }
        if window.byte(cursor.pos) != b'/' || matches!(self.seen, part::NOTHING | part::ADDRESS) {
            return Step::Refused(Reason::Path.into());
        }
        let [low, high] = self.host_tag();
        self.host[0] = low;
        self.host[1] = high;
        self.flags |= ABSOLUTE;
        self.seen = part::NOTHING;
        self.value = Tagger::new(secret).to_words();
        self.phase = phase::SEGMENT;
        Step::More
    }

    /// Begins to read `Host`.
    #[inline(always)]
    pub(super) fn begin_host(&mut self, secret: [u64; 2]) {
        if self.flags & ABSOLUTE == 0 {
            self.host = [zero(); 2];
        }
        self.value = Tagger::new(secret).to_words();
        self.phase = phase::HOST;
    }

    /// Whether a head that ends here lacks the field that it must have (RFC 9112 §3.2).
    #[inline(always)]
    pub(super) const fn lacks_host(&self) -> bool {
        self.flags & (HOST | HTTP_1_0) == 0
    }

    #[inline(always)]
    fn host_tag(&self) -> [u64; 2] {
        let KeyTag([low, high]) = Tagger::from_words(self.value).finish();
        if self.seen == part::NOTHING { [0; 2] } else { [low, high] }
    }

    /// Takes a part of a host; `false` at the first byte that is none of it, or without which none is whole.
    #[inline(always)]
    fn pass_host(&mut self, window: &Window, cursor: &mut Cursor) -> bool {
        if self.seen <= part::DOT {
            let is_behind_dot = self.seen == part::DOT;
            let mut tagger = Tagger::from_words(self.value);
            if is_behind_dot && unnamed(u64::from(window.byte(cursor.pos))) & 0x80 == 0 {
                tagger.push(u64::from(b'.'), 1);
            }
            self.value = tagger.to_words();
            let taken = self.hash(window, cursor, unnamed, folded);
            self.take(cursor, taken);
            if taken > 0 {
                self.seen = part::LABEL;
                if taken >= STEP || cursor.unread() == 0 {
                    return true;
                }
            }
        }
        let byte = window.byte(cursor.pos);
        let next = match (self.seen, byte) {
            (part::LABEL, b'.') => part::DOT,
            (part::LABEL | part::DOT | part::ADDRESS_END, b':') => part::PORT,
            (part::PORT, b'0'..=b'9') => part::PORT,
            (part::NOTHING, b'[') => part::ADDRESS,
            (part::ADDRESS, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F' | b':' | b'.') => part::ADDRESS,
            (part::ADDRESS, b']') => part::ADDRESS_END,
            _ => return false,
        };
        if matches!(next, part::ADDRESS | part::ADDRESS_END) {
            let mut tagger = Tagger::from_words(self.value);
            tagger.push(folded(u64::from(byte)), 1);
            self.value = tagger.to_words();
        }
        self.seen = next;
        self.take(cursor, 1);
        true
    }
}
