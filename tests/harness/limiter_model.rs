//! The limiters by their definitions, in models that remember every instant: what the real ones are held against.
//!
//! Times are ns, and rise; limits are as the kernel gets them.

use std::collections::VecDeque;

use enforcer_ebpf::abi::{Algorithm, Limit};
use enforcer_ebpf::limit::TICK_NS;

/// A window that opens with a first request and forgets everything when it has passed: the `limits` library's fixed
/// window.
#[derive(Debug, Default)]
pub struct FixedModel {
    start: Option<u64>,
    used: u64,
}

impl FixedModel {
    fn is_over(&self, limit: &Limit, now: u64) -> bool {
        self.start.is_none_or(|start| (now / TICK_NS).saturating_sub(start) >= limit.window)
    }

    /// Whether a request would pass.
    #[must_use]
    pub fn would_pass(&self, limit: &Limit, now: u64) -> bool {
        let used = if self.is_over(limit, now) { 0 } else { self.used };
        used < u64::from(limit.count)
    }

    /// Counts a request that passed.
    pub fn admit(&mut self, limit: &Limit, now: u64) {
        if self.is_over(limit, now) {
            (self.start, self.used) = (Some(now / TICK_NS), 0);
        }
        self.used += 1;
    }

    /// Counts a request if it passes.
    pub fn passes(&mut self, limit: &Limit, now: u64) -> bool {
        let passes = self.would_pass(limit, now);
        if passes {
            self.admit(limit, now);
        }
        passes
    }
}

/// A sliding window by its definition: remembers every admitted instant and its window.
#[derive(Debug, Default)]
pub struct SlidingModel {
    start: Option<u64>,
    admitted: VecDeque<(u64, u64)>,
}

impl SlidingModel {
    /// Whether a request would pass, and the begin of its window in ticks.
    #[must_use]
    pub fn would_pass(&self, limit: &Limit, now: u64) -> (bool, u64) {
        let now = now / TICK_NS;
        let start = match self.start {
            Some(start) if now - start < limit.window => start,
            Some(start) if now - start < 2 * limit.window => start + limit.window,
            _ => now,
        };
        let count = |from: u64| self.within(from) as u128;
        let current = count(start);
        let previous = start.checked_sub(limit.window).map_or(0, count);
        let left = u128::from(limit.window - (now - start));
        let used = current + (previous * left).div_ceil(u128::from(limit.window));
        (used < u128::from(limit.count), start)
    }

    /// Counts a request that passed in the window that begins at `start`.
    pub fn admit(&mut self, start: u64, now: u64) {
        self.start = Some(start);
        self.admitted.push_back((start, now));
    }

    /// How many passed in the window that begins at `start`.
    #[must_use]
    pub fn within(&self, start: u64) -> usize {
        self.admitted.iter().filter(|(window, _)| *window == start).count()
    }
}

/// The generic cell rate algorithm in its other form (ITU-T I.371): a bucket that leaks continuously.
#[derive(Debug, Default)]
pub struct LeakyModel {
    level: u128,
    last: u64,
}

impl LeakyModel {
    /// An empty bucket.
    #[must_use]
    pub const fn at(last: u64) -> Self {
        Self { level: 0, last }
    }

    fn level(&self, now: u64) -> u128 {
        self.level.saturating_sub(u128::from(now - self.last))
    }

    /// Whether a request would pass.
    #[must_use]
    pub fn would_pass(&self, limit: &Limit, now: u64) -> bool {
        limit.count > 0 && self.level(now) <= u128::from(limit.tolerance)
    }

    /// Counts a request that passed.
    pub fn admit(&mut self, limit: &Limit, now: u64) {
        self.level = self.level(now) + u128::from(limit.interval);
        self.last = now;
    }

    /// Counts a request if it passes.
    pub fn passes(&mut self, limit: &Limit, now: u64) -> bool {
        let passes = self.would_pass(limit, now);
        if passes {
            self.admit(limit, now);
        }
        passes
    }
}

/// The model of a limit of any kind.
#[derive(Debug)]
pub enum Model {
    /// Of a fixed window.
    Fixed(FixedModel),
    /// Of a sliding window.
    Sliding(SlidingModel),
    /// Of a rate with a burst.
    Leaky(LeakyModel),
}

impl Model {
    /// The model of `limit`, unused, on a clock that begins at `begin`.
    #[must_use]
    pub fn of(limit: &Limit, begin: u64) -> Self {
        if limit.algorithm == Algorithm::Gcra as u32 {
            Self::Leaky(LeakyModel::at(begin))
        } else if limit.algorithm == Algorithm::Fixed as u32 {
            Self::Fixed(FixedModel::default())
        } else {
            Self::Sliding(SlidingModel::default())
        }
    }

    /// Whether a request would pass.
    #[must_use]
    pub fn would_pass(&self, limit: &Limit, now: u64) -> bool {
        match self {
            Self::Fixed(model) => model.would_pass(limit, now),
            Self::Sliding(model) => model.would_pass(limit, now).0,
            Self::Leaky(model) => model.would_pass(limit, now),
        }
    }

    /// Counts a request that passed.
    pub fn admit(&mut self, limit: &Limit, now: u64) {
        match self {
            Self::Fixed(model) => model.admit(limit, now),
            Self::Sliding(model) => {
                let (_, start) = model.would_pass(limit, now);
                model.admit(start, now);
            }
            Self::Leaky(model) => model.admit(limit, now),
        }
    }

    /// Whether the real limiter may refuse what this passes: it rounds the weights of long sliding windows up.
    #[must_use]
    pub fn is_bound(&self, limit: &Limit) -> bool {
        matches!(self, Self::Sliding(_)) && limit.window >> 32 != 0
    }
}
