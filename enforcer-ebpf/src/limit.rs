//! The limiters: pure decisions over words that any number of CPUs change by compare-and-swap alone.
//!
//! # Sliding and fixed windows
//! Two words. `window` says where the current window begins; `counts` holds this window's count and the last one's:
//!
//! ```text
//! window  [ start in ticks : 55 ][ carry : 1 ][ sequence : 8 ]      changed once per window
//! counts  [ sequence : 8 ][ previous : 28 ][ current : 28 ]         changed by every charge
//! ```
//! `counts` belongs to `window` when their sequences are equal. A sequence one behind means that nothing was
//! charged since the window rolled: then the old current count is the previous one if `carry` is set, else nothing
//! is left of it. Older counts are void, so one swap of `window` is the whole roll, and a charge that was decided
//! before the roll but lands after it still counts, in the window that it was decided in.
//!
//! Windows begin with a bucket's first request, not at a multiple of the clock, so N requests within a window of
//! their first are exact. They go by CLOCK_BOOTTIME, which nobody sets. A sliding window of `count` N weighs the previous count P by what of it still overlaps,
//! rounded up: `current + ceil(P × (W − elapsed) / W) ≤ N`. Hence at most N in each window, after a burst of N never
//! more than N × t / W in the next t, and at most 2N − 1 in the worst interval of W (a burst at a window's very end).
//! Ticks are counted from [`EPOCH`], so that a bucket can be [`moved`] to the clock of another boot.
//!
//! # Fixed windows of the calendar
//! Those of a limit with an [`align`] begin where a day, say, does in UTC; `start` is in seconds of Unix time then. They
//! go by a clock that is set, and slewed, so a window is told by where it begins, and not by how much of it has passed:
//! - Within a window nothing that the clock does changes a count.
//! - Set on, the clock is in a later window, which begins with nothing used; `previous` is the count of the last one used
//!   before it.
//! - Set back into the window just before, that one counts again, from `previous` on, which is at least what it used; the
//!   later one's count waits until the clock is back in it. So no window has more than N by the clock's going to and fro
//!   over a boundary, nor by CPUs that see the daemon's latest reading of it a little apart.
//! - Behind that by up to a minute, a CPU was more likely held up since it read the clock than the clock set back. What it
//!   charges counts in the window that is open.
//! - Set back further, the clock is right now and was wrong, or the other way round. The window that it is in takes both
//!   counts over: nothing used in it is forgotten if it was left for a wrong time, and it is not refused until that comes.
//!   If the wrong time is the earlier one, the later window begins anew when the clock is right again.
//!
//! # GCRA
//! One word: the theoretical arrival time (ITU-T I.371); at most N + burst in any W.
//!
//! # Refused requests
//! They leave all words as they are, but where a sliding window or GCRA [penalizes](Limit::PENALIZES). Then they count as if
//! they had passed, until twice the limit is counted: so whoever goes on faster than the limit stays refused, and whoever
//! waits is let in after a window and a half, or a burst's time to refill, at the latest.

use crate::abi::{Algorithm, Bucket, Limit, align};
use crate::calendar::Period;

/// Unit of window times in ns.
pub const TICK_NS: u64 = 64;
/// Ticks that windows are told by before CLOCK_BOOTTIME began: some 834 days, so that a window of before the last boot has a
/// begin, too. A begin of a window of the calendar, in seconds of Unix time, is never as large.
pub const EPOCH: u64 = 1 << 50;
/// Largest count of a sliding or fixed limit.
pub const MAX_COUNT: u32 = (1 << COUNT_BITS) - 1;
/// Largest cost of a request.
pub const MAX_COST: u64 = 256;
/// Swaps tried before a charge gives up; each failure means that another CPU's charge succeeded.
pub const ATTEMPTS: u32 = 64;

const SECOND_NS: u64 = 1_000_000_000;
/// What no second of Unix time is beyond, in 30,000 years, and no window's begin in ticks before.
const CALENDAR: u64 = 1 << 40;
/// Seconds for which a CPU may be held up between its look at the clock and its charge: a host may run others meanwhile.
const HELD_UP: u64 = 60;
const COUNT_BITS: u32 = 28;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;
const SEQUENCE_MASK: u64 = 0xff;

/// A reading of the clocks that limits go by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Clock {
    /// CLOCK_BOOTTIME in ns.
    pub boot: u64,
    /// CLOCK_REALTIME − CLOCK_BOOTTIME in ns, modulo 2⁶⁴: [`crate::abi::map::CLOCK`]. Only limits with an [`align`] look
    /// at it.
    pub offset: u64,
}

impl Clock {
    /// A reading for limits that do not follow the calendar.
    #[must_use]
    #[inline(always)]
    pub const fn of_boot(boot: u64) -> Self {
        Self { boot, offset: 0 }
    }

    /// ns of Unix time.
    #[inline(always)]
    const fn unix_ns(self) -> u64 {
        self.boot.wrapping_add(self.offset)
    }
}

/// A reading of the clocks as one limit sees it: with the window of the calendar, for one that has such.
///
/// It is taken apart from what is done with it, since on the BPF stack there is no room for the calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Moment {
    pub(crate) clock: Clock,
    /// [`Period::NONE`] for other limits.
    period: Period,
}

impl Moment {
    /// A reading as `limit` sees it.
    #[must_use]
    #[inline(always)]
    pub fn of(clock: Clock, limit: &Limit) -> Self {
        let mut moment = Self { clock, period: Period::NONE };
        if is_aligned(limit) {
            moment.period.find(limit, clock.unix_ns() / SECOND_NS);
        }
        moment
    }

    /// A reading of CLOCK_BOOTTIME in ns, for limits that do not follow the calendar.
    #[must_use]
    #[inline(always)]
    pub const fn of_boot(boot: u64) -> Self {
        Self { clock: Clock::of_boot(boot), period: Period::NONE }
    }

    /// A reading as `limit` sees it, at which its bucket is to be charged.
    #[inline(always)]
    pub fn to_charge<C: Cell>(clock: Clock, limit: &Limit, cells: &Cells<C>) -> Self {
        let mut moment = Self { clock, period: Period::NONE };
        moment.enter(limit, cells);
        moment
    }

    /// Turns to this limit and its bucket.
    #[inline(always)]
    pub(crate) fn enter<C: Cell>(&mut self, limit: &Limit, cells: &Cells<C>) {
        if is_aligned(limit) {
            self.period.find(limit, self.clock.unix_ns() / SECOND_NS);
            take_over(cells, &self.period);
        } else {
            self.leave_calendar();
        }
    }

    /// Turns to limits that do not follow the calendar.
    #[inline(always)]
    pub(crate) const fn leave_calendar(&mut self) {
        self.period.end = Period::NONE.end;
    }

    /// Whether the limit follows the calendar.
    #[inline(always)]
    const fn is_aligned(&self) -> bool {
        self.period.end != Period::NONE.end
    }

    #[inline(always)]
    const fn ticks(&self) -> u64 {
        self.clock.boot / TICK_NS + EPOCH
    }

    /// ns until a second of Unix time, two windows ahead at most: then no product wraps.
    #[inline(always)]
    const fn until(&self, second: u64) -> u64 {
        let unix = self.clock.unix_ns();
        let seconds = second.saturating_sub(unix / SECOND_NS);
        seconds.wrapping_mul(SECOND_NS).saturating_sub(unix % SECOND_NS)
    }
}

#[inline(always)]
const fn is_aligned(limit: &Limit) -> bool {
    limit.algorithm == Algorithm::Fixed as u16 && limit.interval != align::NONE
}

/// A word that CPUs share.
pub trait Cell {
    /// Its value now.
    fn load(&self) -> u64;
    /// Replaces `old` by `new`, or says that another CPU was first.
    fn swap(&self, old: u64, new: u64) -> bool;
}

/// A limit's shared state.
#[derive(Clone, Copy)]
pub struct Cells<C> {
    /// [`Bucket::window`].
    pub window: C,
    /// [`Bucket::counts`].
    pub counts: C,
    /// [`Bucket::arrival`].
    pub arrival: C,
}

/// What an attempt to charge came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Charged; the word tells [`refund`] what to give back.
    Charged(u64),
    /// Refused, nothing changed.
    Refused,
    /// Another CPU was faster; nothing changed.
    Raced,
}

#[derive(Clone, Copy)]
struct Window {
    start: u64,
    carry: bool,
    sequence: u64,
}

impl Window {
    #[inline(always)]
    const fn from_word(word: u64) -> Self {
        Self { start: word >> 9, carry: word & 0x100 != 0, sequence: word & SEQUENCE_MASK }
    }

    #[inline(always)]
    const fn to_word(self) -> u64 {
        (self.start << 9) | ((self.carry as u64) << 8) | self.sequence
    }

    /// Ticks of it that have passed; means nothing if it follows the calendar.
    #[inline(always)]
    const fn elapsed(self, now: &Moment) -> u64 {
        now.ticks().saturating_sub(self.start)
    }

    /// ns until it ends.
    #[inline(always)]
    fn left(self, now: &Moment, limit: &Limit) -> u64 {
        if !now.is_aligned() {
            return limit.window.saturating_sub(self.elapsed(now)).saturating_mul(TICK_NS);
        }
        let mut period = Period::NONE;
        period.find(limit, self.start);
        now.until(period.end)
    }

    /// The window that counts at `now`; `None` if it is this one.
    #[inline(always)]
    const fn rolled(self, now: &Moment, limit: &Limit) -> Option<Self> {
        if now.is_aligned() { self.rolled_in_calendar(&now.period) } else { self.rolled_in_ticks(now.ticks(), limit) }
    }

    #[inline(always)]
    const fn rolled_in_calendar(self, period: &Period) -> Option<Self> {
        let start = period.start;
        if self.start >= start {
            return None;
        }
        Some(Self { start, carry: true, sequence: (self.sequence + 1) & SEQUENCE_MASK })
    }

    /// Whether the clock was set back so far that this one is of a wrong time.
    #[inline(always)]
    const fn is_lost(self, period: &Period) -> bool {
        self.start > period.end.saturating_add(HELD_UP)
    }

    /// The window of the calendar that takes the counts of this one over. It is of the same sequence, so that they are its
    /// own.
    #[inline(always)]
    const fn found(self, period: &Period) -> Self {
        Self { start: period.start, ..self }
    }

    /// Whether the clock was set back over its begin, so that the window before it counts.
    #[inline(always)]
    const fn is_ahead(self, now: &Moment) -> bool {
        now.is_aligned() && self.start == now.period.end
    }

    #[inline(always)]
    const fn rolled_in_ticks(self, now: u64, limit: &Limit) -> Option<Self> {
        let elapsed = now.saturating_sub(self.start);
        if self.start != 0 && elapsed < limit.window {
            return None;
        }
        let sequence = (self.sequence + 1) & SEQUENCE_MASK;
        if limit.algorithm == Algorithm::Sliding as u16 && self.start != 0 && elapsed - limit.window < limit.window {
            return Some(Self { start: self.start + limit.window, carry: true, sequence });
        }
        Some(Self { start: now, carry: false, sequence })
    }
}

#[derive(Clone, Copy)]
struct Counts {
    sequence: u64,
    previous: u64,
    current: u64,
}

impl Counts {
    #[inline(always)]
    const fn from_word(word: u64) -> Self {
        Self { sequence: word >> 56, previous: (word >> COUNT_BITS) & COUNT_MASK, current: word & COUNT_MASK }
    }

    #[inline(always)]
    const fn to_word(self) -> u64 {
        (self.sequence << 56) | (self.previous << COUNT_BITS) | self.current
    }

    /// These counts as they stand in `window`; `None` if they are of a later one (the two words were read across
    /// other CPUs' rolls, any number of them).
    #[inline(always)]
    const fn within(self, window: Window) -> Option<Self> {
        let Self { sequence, previous, current } = self;
        let behind = window.sequence.wrapping_sub(sequence) & SEQUENCE_MASK;
        let (previous, current) = match behind {
            0 => (previous, current),
            1 if window.carry => (current, 0),
            0x80..=0xff => return None,
            _ => (0, 0),
        };
        Some(Self { sequence: window.sequence, previous, current })
    }

    /// Both counts as one.
    #[inline(always)]
    const fn together(self) -> Self {
        let sum = self.previous + self.current;
        Self { previous: 0, current: if sum > COUNT_MASK { COUNT_MASK } else { sum }, ..self }
    }

    /// Requests that weigh on the window, or on the one before it, which `now` is in.
    #[inline(always)]
    const fn used(self, window: Window, now: &Moment, limit: &Limit) -> u64 {
        if window.is_ahead(now) {
            return self.previous;
        }
        let elapsed = window.elapsed(now);
        if self.previous == 0 || limit.algorithm != Algorithm::Sliding as u16 {
            return self.current;
        }
        self.current + weighted(self.previous, limit.window.saturating_sub(elapsed), limit.window)
    }
}

/// Bits by which times are cut, so that a product of one and a count of 28 bits does not overflow.
#[inline(always)]
const fn cut(window: u64) -> u32 {
    (64 - window.leading_zeros()).saturating_sub(32)
}

/// `ceil(count × left / window)`.
#[inline(always)]
const fn weighted(count: u64, left: u64, window: u64) -> u64 {
    let shift = cut(window);
    let window = window >> shift;
    // Rounded up, so that a cut never lightens the weight; and never above the window.
    let left = (left >> shift) + ((shift != 0) as u64);
    let left = if left > window { window } else { left };
    if window == 0 { 0 } else { (count * left).div_ceil(window) }
}

/// Tries once to charge `cost` requests (1–[`MAX_COST`]) to one limit, at `now` as that sees it, which
/// [`Moment::to_charge`] says anew for each try.
#[inline(always)]
pub fn attempt<C: Cell>(cells: &Cells<C>, limit: &Limit, now: &Moment, cost: u64) -> Outcome {
    if limit.algorithm == Algorithm::Gcra as u16 {
        return attempt_gcra(cells, limit, now.clock.boot, cost);
    }
    let window_word = cells.window.load();
    let counts_word = cells.counts.load();
    let mut window = Window::from_word(window_word);
    let Some(mut counts) = Counts::from_word(counts_word).within(window) else { return Outcome::Raced };
    let rolled = window.rolled(now, limit);
    if let Some(next) = rolled {
        let Some(moved) = counts.within(next) else { return Outcome::Raced };
        counts = moved;
        window = next;
    }
    if counts.used(window, now, limit) + cost > limit.count as u64 {
        return Outcome::Refused;
    }
    if rolled.is_some() && !cells.window.swap(window_word, window.to_word()) {
        return Outcome::Raced;
    }
    // The window before has the sequence before, and its count further up in the word.
    let is_ahead = window.is_ahead(now);
    let charged = counts.to_word() + if is_ahead { cost << COUNT_BITS } else { cost };
    if !cells.counts.swap(counts_word, charged) {
        return Outcome::Raced;
    }
    Outcome::Charged(counts.sequence.wrapping_sub(is_ahead as u64) & SEQUENCE_MASK)
}

/// Tries once to count a request of `cost` that the limit has refused, if that [penalizes](Limit::PENALIZES) by a way of
/// counting in which it means anything: a fixed window ends when it ends. `false` if another CPU was faster.
///
/// No count becomes less by it, nor more than twice the limit: a client is to wait for what it sent, and not for ever.
#[inline(always)]
pub fn penalize<C: Cell>(cells: &Cells<C>, limit: &Limit, now: &Moment, cost: u64) -> bool {
    if limit.algorithm == Algorithm::Gcra as u16 {
        return penalize_gcra(cells, limit, now.clock.boot, cost);
    }
    if limit.algorithm != Algorithm::Sliding as u16 {
        return true;
    }
    let window_word = cells.window.load();
    let counts_word = cells.counts.load();
    let mut window = Window::from_word(window_word);
    let Some(mut counts) = Counts::from_word(counts_word).within(window) else { return false };
    let rolled = window.rolled_in_ticks(now.ticks(), limit);
    if let Some(next) = rolled {
        let Some(moved) = counts.within(next) else { return false };
        counts = moved;
        window = next;
    }
    let most = 2 * limit.count as u64;
    let most = if most > COUNT_MASK { COUNT_MASK } else { most };
    // It may be more than that if the limit was lowered since.
    if counts.current >= most {
        return true;
    }
    let counted = counts.current + cost;
    counts.current = if counted > most { most } else { counted };
    if rolled.is_some() && !cells.window.swap(window_word, window.to_word()) {
        return false;
    }
    cells.counts.swap(counts_word, counts.to_word())
}

#[inline(always)]
fn penalize_gcra<C: Cell>(cells: &Cells<C>, limit: &Limit, now: u64, cost: u64) -> bool {
    let word = cells.arrival.load();
    let arrival = if word > now { word } else { now };
    // A burst's time behind the last arrival at which a request passes at once.
    let most = now.saturating_add(2 * limit.tolerance + limit.interval);
    if arrival >= most {
        return true;
    }
    let counted = arrival.saturating_add(limit.interval.wrapping_mul(cost));
    cells.arrival.swap(word, if counted > most { most } else { counted })
}

/// Lets the window that the clock is in have the counts of one of a wrong time. Done for requests that are refused too:
/// else they would be, whatever time it became.
#[inline(always)]
fn take_over<C: Cell>(cells: &Cells<C>, period: &Period) {
    let window_word = cells.window.load();
    let window = Window::from_word(window_word);
    if !window.is_lost(period) {
        return;
    }
    let counts_word = cells.counts.load();
    let Some(counts) = Counts::from_word(counts_word).within(window) else { return };
    // The counts first: who sees them without the window takes over what is one count already.
    if cells.counts.swap(counts_word, counts.together().to_word()) {
        cells.window.swap(window_word, window.found(period).to_word());
    }
}

#[inline(always)]
fn attempt_gcra<C: Cell>(cells: &Cells<C>, limit: &Limit, now: u64, cost: u64) -> Outcome {
    let word = cells.arrival.load();
    let arrival = if word > now { word } else { now };
    // No interval is so long that a product up to MAX_COST wraps: the grammar refuses such rates.
    let step = limit.interval.wrapping_mul(cost);
    let ahead = (arrival - now).saturating_add(step - limit.interval);
    if limit.count == 0 || ahead > limit.tolerance {
        return Outcome::Refused;
    }
    if cells.arrival.swap(word, arrival.saturating_add(step)) { Outcome::Charged(0) } else { Outcome::Raced }
}

/// Tries once to give back a charge; `token` is what [`Outcome::Charged`] held. `false` if another CPU was faster.
#[inline(always)]
pub fn refund<C: Cell>(cells: &Cells<C>, limit: &Limit, token: u64, cost: u64) -> bool {
    if limit.algorithm == Algorithm::Gcra as u16 {
        let word = cells.arrival.load();
        return cells.arrival.swap(word, word.saturating_sub(limit.interval.wrapping_mul(cost)));
    }
    let word = cells.counts.load();
    let mut counts = Counts::from_word(word);
    match counts.sequence.wrapping_sub(token) & SEQUENCE_MASK {
        0 => counts.current = counts.current.saturating_sub(cost),
        1 => counts.previous = counts.previous.saturating_sub(cost),
        _ => return true,
    }
    cells.counts.swap(word, counts.to_word())
}

/// Whether a charge would pass, likewise; changes nothing.
#[inline(always)]
pub fn would_pass<C: Cell>(cells: &Cells<C>, limit: &Limit, now: &Moment, cost: u64) -> bool {
    let bucket = Bucket { window: cells.window.load(), counts: cells.counts.load(), arrival: cells.arrival.load() };
    remaining_at(&bucket, limit, now) >= cost
}

/// A bucket of another boot, as it is when CLOCK_BOOTTIME, which read `then`, reads `now`, both in ns, and `age` ns have
/// passed meanwhile. What it held so long ago that it has no begin any more is void; the calendar's windows stay.
#[must_use]
pub fn moved(bucket: &Bucket, then: u64, now: u64, age: u64) -> Bucket {
    let shift = i128::from(now) - i128::from(then) - i128::from(age);
    let at = |time: u64| u64::try_from(i128::from(time) + shift).unwrap_or(0);
    let arrival = if bucket.arrival == 0 { 0 } else { at(bucket.arrival) };
    let window = Window::from_word(bucket.window);
    if window.start <= CALENDAR {
        return Bucket { arrival, ..*bucket };
    }
    let start = i128::from(window.start) + shift.div_euclid(i128::from(TICK_NS));
    match u64::try_from(start) {
        Ok(start) if start > CALENDAR => Bucket { window: Window { start, ..window }.to_word(), arrival, ..*bucket },
        _ => Bucket { arrival, ..Bucket::default() },
    }
}

/// A limit's state as a person reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Requests that weigh on the limit now.
    pub used: u64,
    /// Requests that would pass now.
    pub remaining: u64,
    /// ns until all of `used` has left the limit, if nothing more is sent and the clock is not set.
    pub reset: u64,
    /// ns until one more request would pass; 0 if it would now, `u64::MAX` if never.
    pub retry: u64,
}

/// Requests that would pass at `now`.
#[must_use]
pub fn remaining(bucket: &Bucket, limit: &Limit, now: Clock) -> u64 {
    remaining_at(bucket, limit, &Moment::of(now, limit))
}

#[inline(always)]
fn remaining_at(bucket: &Bucket, limit: &Limit, now: &Moment) -> u64 {
    if limit.algorithm == Algorithm::Gcra as u16 {
        let ahead = bucket.arrival.saturating_sub(now.clock.boot);
        if limit.count == 0 || ahead > limit.tolerance || limit.interval == 0 {
            return 0;
        }
        return (limit.tolerance - ahead) / limit.interval + 1;
    }
    let (counts, window) = current(bucket, limit, now);
    (limit.count as u64).saturating_sub(counts.used(window, now, limit))
}

#[inline(always)]
fn current(bucket: &Bucket, limit: &Limit, now: &Moment) -> (Counts, Window) {
    let old = Window::from_word(bucket.window);
    let counts = Counts::from_word(bucket.counts);
    // A torn read shows counts that are newer than the window: they are the ones that hold.
    let counts = counts.within(old).unwrap_or(counts);
    if now.is_aligned() && old.is_lost(&now.period) {
        return (counts.together(), old.found(&now.period));
    }
    let Some(window) = old.rolled(now, limit) else { return (counts, old) };
    (counts.within(window).unwrap_or(counts), window)
}

/// The state of one limit at `now`, for people and for answers.
#[must_use]
pub fn usage(bucket: &Bucket, limit: &Limit, now: Clock) -> Usage {
    let retry = retry(bucket, limit, now, 1);
    let now = &Moment::of(now, limit);
    let remaining = remaining_at(bucket, limit, now);
    if limit.algorithm == Algorithm::Gcra as u16 {
        let ahead = bucket.arrival.saturating_sub(now.clock.boot);
        let used = if limit.interval == 0 { 0 } else { ahead.div_ceil(limit.interval) };
        return Usage { used, remaining, reset: ahead, retry };
    }
    let (counts, window) = current(bucket, limit, now);
    let used = counts.used(window, now, limit);
    let left = window.left(now, limit);
    let sliding = limit.algorithm == Algorithm::Sliding as u16;
    let reset = match (used, sliding, counts.current) {
        (0, ..) => 0,
        // The current count weighs on through the whole of the next window.
        (_, true, 1..) => left.saturating_add(limit.window.saturating_mul(TICK_NS)),
        _ => left,
    };
    Usage { used, remaining, reset, retry }
}

/// ns until `cost` more requests at once would pass, if nothing is sent until then; 0 if they would now, `u64::MAX` if
/// never.
#[must_use]
pub fn retry(bucket: &Bucket, limit: &Limit, now: Clock, cost: u64) -> u64 {
    if limit.count == 0 {
        return u64::MAX;
    }
    if limit.algorithm == Algorithm::Gcra as u16 {
        let more = limit.interval.wrapping_mul(cost.saturating_sub(1));
        if more > limit.tolerance {
            return u64::MAX;
        }
        return bucket.arrival.saturating_sub(now.boot).saturating_sub(limit.tolerance - more);
    }
    if cost > limit.count as u64 {
        return u64::MAX;
    }
    let now = &Moment::of(now, limit);
    let (counts, window) = current(bucket, limit, now);
    let most = limit.count as u64 - cost;
    if counts.used(window, now, limit) <= most {
        return 0;
    }
    if limit.algorithm != Algorithm::Sliding as u16 {
        let is_next_free = window.is_ahead(now) && counts.current <= most;
        return if is_next_free { now.until(window.start) } else { window.left(now, limit) };
    }
    let elapsed = window.elapsed(now);
    let ticks = if counts.current > most {
        // It weighs on in the next window.
        let left = limit.window.saturating_sub(elapsed);
        left.saturating_add(until_weight(counts.current, most, limit.window, 0))
    } else {
        until_weight(counts.previous, most - counts.current, limit.window, elapsed)
    };
    ticks.saturating_mul(TICK_NS)
}

/// Ticks from `elapsed` until `count` weighs at most `room`, as [`weighted`] has it.
#[inline(always)]
const fn until_weight(count: u64, room: u64, window: u64, elapsed: u64) -> u64 {
    if count <= room {
        return 0;
    }
    let shift = cut(window);
    // The most that may be left of the window, cut; there what is left is rounded up to one more.
    let left = (window >> shift) * room / count;
    let left = if shift == 0 { left } else { (left << shift).saturating_sub(1) };
    window.saturating_sub(left).saturating_sub(elapsed)
}
