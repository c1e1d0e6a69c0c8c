//! Whether one request may pass: its key, its principal, the principal's limits.

use super::World;
use crate::abi::{Key, KeyTag};
use crate::verdict::Reason;

/// Whether a request may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whose it is; 0 if nobody's.
    pub principal: u32,
    /// Why it may not pass.
    pub refused: Option<Reason>,
}

impl Decision {
    /// As a number, for where the kernel can hand on nothing else: the principal above, 1 + the reason or 0 below.
    #[must_use]
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        let reason = match self.refused {
            Some(reason) => reason as u64 + 1,
            None => 0,
        };
        ((self.principal as u64) << 8) | reason
    }

    /// Reads the number.
    #[must_use]
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        let refused = match word as u8 {
            0 => None,
            index => match Reason::from_index(index - 1) {
                Some(reason) => Some(reason),
                None => Some(Reason::Unparsable),
            },
        };
        Self { principal: (word >> 8) as u32, refused }
    }
}

/// Decides on a request with this key, and charges it if it may pass.
#[inline(always)]
pub fn decide<W: World>(world: &W, tag: Option<KeyTag>, now: u64) -> Decision {
    let refused = |principal, reason| Decision { principal, refused: Some(reason) };
    let Some(tag) = tag else { return refused(0, Reason::Unkeyed) };
    let Some(Key { principal, flags, not_before, expires }) = world.key(tag) else {
        return refused(0, Reason::UnknownKey);
    };
    if flags & Key::DISABLED != 0 {
        return refused(principal, Reason::KeyDisabled);
    }
    if now < not_before || now >= expires {
        return refused(principal, Reason::KeyExpired);
    }
    if !world.charge(principal, now) {
        return refused(principal, Reason::OverLimit);
    }
    Decision { principal, refused: None }
}
