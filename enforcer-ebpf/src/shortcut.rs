//! From a key's tag to its principal by one line of memory.
//!
//! Most keys only say whose they are: they are enabled, without dates and without limits of their own. Of a principal's
//! such keys one, the last that came, lies here too: a word for it in the set that its tag leads to, and the rest of the tag
//! beside the principal's counts, which are looked at next anyway. Who is not found here, for whatever reason, is looked up in
//! [`crate::abi::map::KEYS`]; so a set that is full costs time alone.
//!
//! ```text
//! word  [ tag's first word, upper bits : 47 ][ principal : 17 ]      0 = none; written whole
//! ```
//! The lower 14 bits of the first word lead to the set, and the second word is compared in [`Meter::key`]: of 128 bits of a
//! tag 125 are. A word is written after the meter's, and zeroed before anything else of its key or meter changes.

use crate::abi::{KeyTag, Meter, PRINCIPALS, SHORTCUTS};

/// Words of a set: a line of 64 bytes.
pub const WAYS: usize = 8;

/// The words whose tags lead to the same line.
pub type Shortcuts = [u64; WAYS];

const PRINCIPAL_BITS: u32 = PRINCIPALS.trailing_zeros();
const PRINCIPAL_MASK: u64 = PRINCIPALS as u64 - 1;

const _: () = assert!(PRINCIPALS.is_power_of_two() && SHORTCUTS.is_power_of_two());

/// Index of the set that a tag leads to.
#[must_use]
#[inline(always)]
pub const fn set(tag: KeyTag) -> u32 {
    tag.0[0] as u32 & (SHORTCUTS - 1)
}

/// The word of a tag whose key is `principal`'s.
#[must_use]
#[inline(always)]
pub const fn word(tag: KeyTag, principal: u32) -> u64 {
    (tag.0[0] & !PRINCIPAL_MASK) | principal as u64 & PRINCIPAL_MASK
}

/// The principal that a word leads to.
#[must_use]
#[inline(always)]
pub const fn principal(word: u64) -> u32 {
    (word & PRINCIPAL_MASK) as u32
}

/// The principal of this tag's word in its set, 0 if it has none. Whether it is the tag's all the same, [`is_of`] says.
#[must_use]
#[inline(always)]
pub fn find(set: &Shortcuts, tag: KeyTag) -> u32 {
    let wanted = word(tag, 0);
    let mut found = 0;
    // No branch that goes one way with one key and the other with the next.
    for word in set {
        let other = (word ^ wanted) >> PRINCIPAL_BITS;
        // All ones where nothing differs; a difference has 47 bits at most.
        let same = (other.wrapping_sub(1) as i64 >> 63) as u64;
        found |= word & same;
    }
    principal(found)
}

/// Whether the shortcut that leads to `meter` is this tag's.
#[must_use]
#[inline(always)]
pub const fn is_of(meter: &Meter, tag: KeyTag) -> bool {
    meter.key == tag.0[1]
}
