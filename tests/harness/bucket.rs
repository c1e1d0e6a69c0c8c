//! A limiter's state as host threads share it, in place of the kernel's map.

use std::sync::atomic::{AtomicU64, Ordering};

use enforcer_ebpf::abi::{Algorithm, Bucket, LIMITS, Limit, Policy, Scope};
use enforcer_ebpf::charge::{Charge, Claim, table};
use enforcer_ebpf::limit::{self, Cell, Cells, Clock, Moment, Outcome, TICK_NS};

/// The words of one bucket.
#[derive(Debug, Default)]
pub struct Shared {
    window: AtomicU64,
    counts: AtomicU64,
    arrival: AtomicU64,
}

/// One of the words.
#[derive(Clone, Copy, Debug)]
pub struct Word<'a>(&'a AtomicU64);

impl Cell for Word<'_> {
    fn load(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    fn swap(&self, old: u64, new: u64) -> bool {
        self.0.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

impl Shared {
    /// The words as the limiter takes them.
    #[must_use]
    pub fn cells(&self) -> Cells<Word<'_>> {
        Cells { window: Word(&self.window), counts: Word(&self.counts), arrival: Word(&self.arrival) }
    }

    /// The words as they lie in the map.
    #[must_use]
    pub fn bucket(&self) -> Bucket {
        let Cells { window, counts, arrival } = self.cells();
        Bucket { window: window.load(), counts: counts.load(), arrival: arrival.load() }
    }
}

/// A sliding limit of `count` in `window` ns, a multiple of [`TICK_NS`].
#[must_use]
pub fn sliding(count: u32, window: u64) -> Limit {
    Limit { count, window: window / TICK_NS, ..Limit::default() }
}

/// A fixed limit of `count` in `window` ns, a multiple of [`TICK_NS`].
#[must_use]
pub fn fixed(count: u32, window: u64) -> Limit {
    Limit { algorithm: Algorithm::Fixed as u16, ..sliding(count, window) }
}

/// A fixed limit of `count` in windows of `window` ns that begin as an [`align`](enforcer_ebpf::abi::align) has it.
#[must_use]
pub fn calendar(count: u32, window: u64, align: u64) -> Limit {
    Limit { interval: align, ..fixed(count, window) }
}

/// A GCRA limit: one request each `interval` ns, `burst` of them at once.
#[must_use]
pub fn gcra(burst: u32, interval: u64) -> Limit {
    let tolerance = u64::from(burst.saturating_sub(1)) * interval;
    Limit { algorithm: Algorithm::Gcra as u16, count: burst, interval, tolerance, ..Limit::default() }
}

/// The same limit, which also counts what it refuses.
#[must_use]
pub fn penalizing(limit: Limit) -> Limit {
    Limit { flags: Limit::PENALIZES, ..limit }
}

/// Charges all limits of a policy, or none but those that penalize.
///
/// # Errors
/// The number of the limit that refused.
pub fn charge_all<C: Cell>(cells: &[Cells<C>; LIMITS], policy: &Policy, now: Clock, cost: u64) -> Result<(), u32> {
    let mut charge = Charge::default();
    charge.begin(now.boot, cost);
    charge.set_offset(now.offset);
    charge.claim(Claim { table: table::PRINCIPAL, policy: 1, scope: Scope::default() });
    charge.look_at(0, policy);
    while charge.step(&cells[charge.place().limit], policy) {}
    if charge.settle() {
        while charge.penalize(Some((&cells[charge.place().limit], policy))) {}
    }
    charge.result().map_err(|place| place.limit as u32)
}

/// Charges one limit alone, trying again while other threads are faster, as often as a [`Charge`] does.
pub fn charge<C: Cell>(cells: &Cells<C>, limit: &Limit, now: Clock, cost: u64) -> Outcome {
    let outcome = (0..limit::ATTEMPTS)
        .map(|_| limit::attempt(cells, limit, &Moment::to_charge(now, limit, cells), cost))
        .find(|outcome| *outcome != Outcome::Raced)
        .unwrap_or(Outcome::Refused);
    if outcome == Outcome::Refused && limit.flags & Limit::PENALIZES != 0 {
        (0..limit::ATTEMPTS).find(|_| limit::penalize(cells, limit, &Moment::of(now, limit), cost));
    }
    outcome
}
