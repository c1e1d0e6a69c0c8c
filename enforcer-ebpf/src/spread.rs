//! Too many of one thing for one of another within a window: keys of a source, sources of a key.
//!
//! Each pair is counted once a window. That it was seen is an entry of a table that takes each once; how many there were
//! is one word, changed by compare-and-swap. So any number of CPUs counts a pair once, and lets in no more than the most.

use crate::abi::{Sighting, Spread, SpreadAction};
use crate::limit::Cell;
use crate::opaque::zero;

/// Unit of the word's time, as a shift: about a millisecond.
const UNIT: u32 = 20;
const COUNT_BITS: u32 = 24;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;
/// Swaps tried before a pair passes uncounted: each failure means that another CPU's succeeded.
const ATTEMPTS: u32 = 16;

/// The pairs that were seen.
pub trait Sightings {
    /// Whether a pair is there.
    fn knows(&self, sighting: &Sighting) -> bool;
    /// Adds a pair; `false` if it is there already, or there is no room.
    fn insert(&self, sighting: &Sighting) -> bool;
    /// Takes a pair away.
    fn remove(&self, sighting: &Sighting);
}

/// How many pairs a word counts at `now` (ns of CLOCK_BOOTTIME).
#[must_use]
pub const fn counted(word: u64, spread: &Spread, now: u64) -> u64 {
    let (start, count) = (word >> COUNT_BITS, word & COUNT_MASK);
    let is_over = start == 0 || ((now >> UNIT) + 1).saturating_sub(start) >= spread.window >> UNIT;
    if is_over { 0 } else { count }
}

/// Counts a pair, which `sighting` names but for the window, in its word at `now` (ns of CLOCK_BOOTTIME); whether it is one
/// too many.
///
/// Where the spread only alerts, all are counted, and each beyond the most is one too many once. Else those beyond it are
/// not let in, and are so each time.
#[inline(always)]
pub fn sight<C: Cell>(
    word: &C,
    spread: &Spread,
    sighting: &mut Sighting,
    now: u64,
    sightings: &impl Sightings,
) -> bool {
    let lets_in = spread.action == SpreadAction::Alert as u32;
    // 0 marks a word never used.
    let now = (now >> UNIT) + 1;
    sighting.window = zero();
    let mut is_ours = false;
    for _ in 0..ATTEMPTS {
        let old = word.load();
        let (start, count) = (old >> COUNT_BITS, old & COUNT_MASK);
        if start == 0 || now.saturating_sub(start) >= spread.window >> UNIT {
            word.swap(old, now << COUNT_BITS);
            is_ours = false;
            continue;
        }
        if sighting.window != start {
            sighting.window = start;
            if sightings.knows(sighting) {
                return false;
            }
            is_ours = sightings.insert(sighting);
        }
        if !is_ours {
            return false;
        }
        let is_beyond = count >= u64::from(spread.most);
        if is_beyond && !lets_in {
            sightings.remove(sighting);
            return true;
        }
        if word.swap(old, old + 1) {
            return is_beyond;
        }
    }
    false
}
