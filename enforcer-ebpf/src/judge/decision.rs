//! Whether one request may pass: its key, its principal, the principal's limits.

use super::World;
use crate::abi::{Key, KeyTag};
use crate::flow::{Flow, Place};
use crate::verdict::Reason;

/// Whether a request may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whose it is; 0 if nobody's.
    pub principal: u32,
    /// Why it may not pass.
    pub refused: Option<Reason>,
    /// Whether it was charged when its bytes came first.
    pub again: bool,
}

impl Decision {
    /// As a number, for where the kernel can hand on nothing else: the principal above, then whether it came
    /// again, then 1 + the reason or 0.
    #[must_use]
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        let reason = match self.refused {
            Some(reason) => reason as u64 + 1,
            None => 0,
        };
        ((self.principal as u64) << 9) | ((self.again as u64) << 8) | reason
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
        Self { principal: (word >> 9) as u32, refused, again: word & 0x100 != 0 }
    }
}

/// Decides on the request whose head is complete and ends at `position` of the stream, and charges it if it may pass.
/// One that was charged there before, when its bytes came first, is not charged again: `again` says that they were
/// judged before; those that were read and then cut off are known to the connection.
#[inline(always)]
pub fn decide<W: World>(world: &W, flow: &mut Flow, position: u64, again: bool, now: u64) -> Decision {
    let refused = |principal, reason| Decision { principal, refused: Some(reason), again: false };
    let Some(tag) = flow.machine.key() else { return refused(0, Reason::Unkeyed) };
    let place = Place { flow: flow.id, position };
    if (again || position <= flow.decided) && payer(world, flow, place) == tag {
        return Decision { principal: 0, refused: None, again: true };
    }
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
    if flow.has_accepted(flow.charged) {
        flow.charged = position;
        flow.payer = tag;
    } else {
        world.put_payer(place, tag);
    }
    Decision { principal, refused: None, again: false }
}

/// Who was charged for the head that ended at this place.
#[inline(always)]
fn payer<W: World>(world: &W, flow: &Flow, place: Place) -> KeyTag {
    if flow.charged == place.position { flow.payer } else { world.payer(place) }
}
