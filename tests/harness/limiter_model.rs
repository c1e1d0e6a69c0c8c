//! The limiters by their definitions, in models that remember every request that passed: what the real ones are held
//! against.
//!
//! Limits are as the kernel gets them. Time rises, but for the calendar's.

use enforcer_ebpf::abi::{Algorithm, Limit, align};
use enforcer_ebpf::limit::{Clock, MAX_COUNT, TICK_NS};
use jiff::civil::DateTime;
use jiff::tz::Offset;
use jiff::{Span, Timestamp, ToSpan};

/// A request that passed: its instant in ticks, or the window that it counts in; and what it cost.
type Passed = (u64, u64);

fn sum<'a>(passed: impl IntoIterator<Item = &'a Passed>) -> u64 {
    passed.into_iter().map(|(_, cost)| cost).sum()
}

/// A window that opens with a first request and forgets everything when it has passed: the `limits` library's fixed
/// window.
#[derive(Debug, Default)]
pub struct FixedModel {
    start: Option<u64>,
    passed: Vec<Passed>,
}

impl FixedModel {
    /// The begin of the window that is open.
    fn open(&self, limit: &Limit, now: u64) -> Option<u64> {
        self.start.filter(|start| now.saturating_sub(*start) < limit.window)
    }

    /// Whether a request would pass.
    #[must_use]
    pub fn would_pass(&self, limit: &Limit, now: u64, cost: u64) -> bool {
        // What passed before the window was opened is not in it, even if the clock has gone back behind that since.
        let used = self.open(limit, now / TICK_NS).map_or(0, |_| sum(&self.passed));
        used + cost <= u64::from(limit.count)
    }

    /// Counts a request that passed.
    pub fn admit(&mut self, limit: &Limit, now: u64, cost: u64) {
        let now = now / TICK_NS;
        if self.open(limit, now).is_none() {
            (self.start, self.passed) = (Some(now), Vec::new());
        }
        self.passed.push((now, cost));
    }
}

/// Windows of UTC by a calendar that is not ours.
#[derive(Debug, Default)]
pub struct CalendarModel {
    /// The begin of the latest window that was used.
    open: Option<u64>,
    /// By the begin of the window that each counts in.
    passed: Vec<Passed>,
}

impl CalendarModel {
    /// The window that an instant is in: its first second of Unix time, and the first behind it.
    ///
    /// # Panics
    /// Beyond the years of the calendar.
    #[must_use]
    pub fn window(limit: &Limit, now: Clock) -> (u64, u64) {
        let unix = now.boot.wrapping_add(now.offset) / 1_000_000_000;
        let instant = Timestamp::from_second(unix as i64).expect("a year of the calendar");
        let day = Offset::UTC.to_datetime(instant).date();
        let from = |start: DateTime, span: Span| {
            let second = |date: DateTime| Offset::UTC.to_timestamp(date).expect("UTC").as_second() as u64;
            (second(start), second(start.checked_add(span).expect("a year of the calendar")))
        };
        let length = limit.window * TICK_NS / 1_000_000_000;
        match limit.interval {
            align::MONTH => from(day.first_of_month().at(0, 0, 0, 0), 1.month()),
            align::YEAR => from(day.first_of_year().at(0, 0, 0, 0), 1.year()),
            _ if length == 7 * 86_400 => {
                let monday =
                    day.checked_sub(i64::from(day.weekday().to_monday_zero_offset()).days()).expect("a Monday");
                from(monday.at(0, 0, 0, 0), 7.days())
            }
            _ => (unix / length * length, (unix / length + 1) * length),
        }
    }

    fn used(&self, start: u64) -> u64 {
        sum(self.passed.iter().filter(|(window, _)| *window == start))
    }

    /// Sees a request, whether it passes or not.
    pub fn meet(&mut self, limit: &Limit, now: Clock) {
        let (start, end) = Self::window(limit, now);
        let Some(open) = self.open.filter(|open| *open > end + 60) else { return };
        // A minute behind the window before: what is remembered is this window's.
        let remembered = [self.last_before(open), Some(open)];
        self.passed.retain(|(window, _)| remembered.contains(&Some(*window)));
        self.passed.iter_mut().for_each(|passed| passed.0 = start);
        self.open = Some(start);
    }

    /// Whether a request that has been met would pass.
    #[must_use]
    pub fn would_pass(&self, limit: &Limit, now: Clock, cost: u64) -> bool {
        let (start, end) = Self::window(limit, now);
        let used = match self.open {
            // Of the windows before it, the last that was used is remembered.
            Some(open) if open == end => self.last_before(open).map_or(0, |last| self.used(last)),
            Some(open) if open > end => self.used(open),
            _ => self.used(start),
        };
        used + cost <= u64::from(limit.count)
    }

    /// Counts a request that passed.
    pub fn admit(&mut self, limit: &Limit, now: Clock, cost: u64) {
        let (start, end) = Self::window(limit, now);
        match self.open {
            // From now on what was used last is this window's.
            Some(open) if open == end => {
                if let Some(last) = self.last_before(open) {
                    self.passed.iter_mut().filter(|(window, _)| *window == last).for_each(|passed| passed.0 = start);
                }
            }
            // Late.
            Some(open) if open > end => return self.passed.push((open, cost)),
            _ => self.open = Some(start),
        }
        self.passed.push((start, cost));
    }

    /// The last window before this one that was used.
    fn last_before(&self, start: u64) -> Option<u64> {
        self.passed.iter().map(|(window, _)| *window).filter(|window| *window < start).max()
    }

    /// What passed while the clock was in the window that it is in.
    #[must_use]
    pub fn passed_within(&self, limit: &Limit, now: Clock) -> u64 {
        self.used(Self::window(limit, now).0)
    }
}

/// A sliding window by its definition.
#[derive(Debug, Default)]
pub struct SlidingModel {
    start: Option<u64>,
    /// By the begin of the window that each counts in.
    passed: Vec<Passed>,
}

impl SlidingModel {
    /// Whether a request would pass, and the begin of its window in ticks.
    #[must_use]
    pub fn would_pass(&self, limit: &Limit, now: u64, cost: u64) -> (bool, u64) {
        let now = now / TICK_NS;
        let start = match self.start {
            Some(start) if now - start < limit.window => start,
            Some(start) if now - start < 2 * limit.window => start + limit.window,
            _ => now,
        };
        let current = u128::from(self.within(start));
        let previous = start.checked_sub(limit.window).map_or(0, |start| u128::from(self.within(start)));
        let left = u128::from(limit.window - (now - start));
        let used = current + (previous * left).div_ceil(u128::from(limit.window));
        (used + u128::from(cost) <= u128::from(limit.count), start)
    }

    /// Counts a request that passed in the window that begins at `start`.
    pub fn admit(&mut self, start: u64, cost: u64) {
        self.start = Some(start);
        self.passed.push((start, cost));
    }

    /// Counts a request that did not pass in the window that begins at `start`, as far as there is not twice the limit.
    pub fn penalize(&mut self, limit: &Limit, start: u64, cost: u64) {
        let room = (2 * u64::from(limit.count)).min(MAX_COUNT.into()).saturating_sub(self.within(start));
        if room > 0 {
            self.admit(start, cost.min(room));
        }
    }

    /// What passed in the window that begins at `start`, or was counted as if it had.
    #[must_use]
    pub fn within(&self, start: u64) -> u64 {
        sum(self.passed.iter().filter(|(window, _)| *window == start))
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
    pub fn would_pass(&self, limit: &Limit, now: u64, cost: u64) -> bool {
        let others = u128::from(limit.interval) * u128::from(cost - 1);
        limit.count > 0 && self.level(now) + others <= u128::from(limit.tolerance)
    }

    /// Counts a request that passed.
    pub fn admit(&mut self, limit: &Limit, now: u64, cost: u64) {
        self.level = self.level(now) + u128::from(limit.interval) * u128::from(cost);
        self.last = now;
    }

    /// Counts a request that did not pass, as far as that leaves no more than a burst above what lets one pass.
    pub fn penalize(&mut self, limit: &Limit, now: u64, cost: u64) {
        let most = 2 * u128::from(limit.tolerance) + u128::from(limit.interval);
        let counted = self.level(now) + u128::from(limit.interval) * u128::from(cost);
        self.level = counted.min(most).max(self.level(now));
        self.last = now;
    }
}

/// The model of a limit of any kind.
#[derive(Debug)]
pub enum Model {
    /// Of a window that begins with a request.
    Fixed(FixedModel),
    /// Of a window of the calendar.
    Calendar(CalendarModel),
    /// Of a sliding window.
    Sliding(SlidingModel),
    /// Of a rate with a burst.
    Leaky(LeakyModel),
}

impl Model {
    /// The model of `limit`, unused, on a clock that begins at `begin`.
    #[must_use]
    pub fn of(limit: &Limit, begin: u64) -> Self {
        if limit.algorithm == Algorithm::Gcra as u16 {
            Self::Leaky(LeakyModel::at(begin))
        } else if limit.algorithm == Algorithm::Sliding as u16 {
            Self::Sliding(SlidingModel::default())
        } else if limit.interval == align::NONE {
            Self::Fixed(FixedModel::default())
        } else {
            Self::Calendar(CalendarModel::default())
        }
    }

    /// Sees a request, whether it passes or not.
    pub fn meet(&mut self, limit: &Limit, now: Clock) {
        if let Self::Calendar(model) = self {
            model.meet(limit, now);
        }
    }

    /// Whether a request that has been met would pass.
    #[must_use]
    pub fn would_pass(&self, limit: &Limit, now: Clock, cost: u64) -> bool {
        match self {
            Self::Fixed(model) => model.would_pass(limit, now.boot, cost),
            Self::Calendar(model) => model.would_pass(limit, now, cost),
            Self::Sliding(model) => model.would_pass(limit, now.boot, cost).0,
            Self::Leaky(model) => model.would_pass(limit, now.boot, cost),
        }
    }

    /// Counts a request that passed.
    pub fn admit(&mut self, limit: &Limit, now: Clock, cost: u64) {
        match self {
            Self::Fixed(model) => model.admit(limit, now.boot, cost),
            Self::Calendar(model) => model.admit(limit, now, cost),
            Self::Sliding(model) => {
                let (_, start) = model.would_pass(limit, now.boot, cost);
                model.admit(start, cost);
            }
            Self::Leaky(model) => model.admit(limit, now.boot, cost),
        }
    }

    /// Sees a request that this limit has no room for, and that is refused: whether it counts is the limit's to say.
    pub fn refuse(&mut self, limit: &Limit, now: Clock, cost: u64) {
        if limit.flags & Limit::PENALIZES == 0 {
            return;
        }
        match self {
            Self::Fixed(_) | Self::Calendar(_) => {}
            Self::Sliding(model) => {
                let (_, start) = model.would_pass(limit, now.boot, cost);
                model.penalize(limit, start, cost);
            }
            Self::Leaky(model) => model.penalize(limit, now.boot, cost),
        }
    }

    /// Whether the real limiter may refuse what this passes: it rounds the weights of long sliding windows up.
    #[must_use]
    pub fn is_bound(&self, limit: &Limit) -> bool {
        matches!(self, Self::Sliding(_)) && limit.window >> 32 != 0
    }
}
