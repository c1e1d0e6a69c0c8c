//! The checksum of the bytes that are kept of a segment that is cut, 64 a step.

use super::World;
use crate::http::bytes::{BASE, Window, lowest};
use crate::reply;

/// A sum over bytes of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Sum {
    /// The next byte.
    at: u32,
    /// Bytes that are left.
    left: u32,
    total: u64,
}

impl Sum {
    /// Of `left` bytes of the frame, from `at`.
    #[must_use]
    pub(super) const fn new(at: u32, left: u32) -> Self {
        Self { at, left, total: 0 }
    }

    /// The sum; `None` if bytes could not be read.
    #[must_use]
    #[inline(always)]
    pub(super) const fn total(&self) -> Option<u64> {
        if self.left == 0 { Some(self.total) } else { None }
    }
}

/// Adds the next 64 bytes to the sum; `false` at its end.
#[inline(always)]
pub fn sum_step<W: World>(world: &W, sum: &mut Sum, window: &mut Window) -> bool {
    let len = if sum.left > 64 { 64 } else { sum.left };
    if len == 0 || !world.load(window, sum.at, len) {
        return false;
    }
    macro_rules! word {
        ($behind:literal) => {
            let count = len.saturating_sub($behind);
            sum.total = reply::add(sum.total, lowest(window.word_behind::<$behind>(BASE), count).to_le());
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
    sum.at = sum.at.wrapping_add(len);
    sum.left = sum.left.wrapping_sub(len);
    sum.left > 0
}
