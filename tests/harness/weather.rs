//! What befalls frames on their way, drawn from a seed: lost, doubled, held back until others overtook them, delayed.
//!
//! Pure: a [`Lane`] is told the time, and its queue is bounded. The same seed, frames and times give the same fates.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

/// Frames that may be under way in one direction; what comes on top is lost, as in a router.
const QUEUE: usize = 4096;
/// Least time that a frame is held back.
const LEAST_HOLD: Duration = Duration::from_micros(200);
/// By how much that time varies.
const HOLD_SPREAD: Duration = Duration::from_micros(1800);

/// What happens to the frames of one direction. Rates are per mille of the frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weather {
    /// Lost.
    pub lost: u32,
    /// Delivered twice.
    pub doubled: u32,
    /// Held back for 0.2–2 ms more, so that what follows closely overtakes.
    pub held: u32,
    /// How long every frame takes at least.
    pub delay: Duration,
    /// By how much that varies; frames that are not held back keep their order.
    pub jitter: Duration,
}

/// What became of the frames of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fates {
    /// Came in.
    pub seen: u64,
    /// Lost at will.
    pub lost: u64,
    /// Lost because too many were under way.
    pub overflowed: u64,
    /// Delivered twice.
    pub doubled: u64,
    /// Held back.
    pub held: u64,
    /// Delivered, both copies of the doubled ones counted.
    pub delivered: u64,
}

/// SplitMix64.
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    const fn happens(&mut self, per_mille: u32) -> bool {
        self.next() % 1000 < per_mille as u64
    }

    /// Less than `spread`; 0 if that is 0.
    fn within(&mut self, spread: Duration) -> Duration {
        let spread = u64::try_from(spread.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(if spread == 0 { 0 } else { self.next() % spread })
    }
}

/// A frame under way; ordered by when it is due, then by when it came.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    due: Duration,
    number: u64,
    frame: Vec<u8>,
}

/// One direction. Times are durations since an origin of the caller's choice.
#[derive(Debug)]
pub struct Lane {
    weather: Weather,
    random: Random,
    queue: BinaryHeap<Reverse<Waiting>>,
    last: Duration,
    number: u64,
    fates: Fates,
}

impl Lane {
    /// A lane with this weather.
    #[must_use]
    pub const fn new(weather: Weather, seed: u64) -> Self {
        Self {
            weather,
            random: Random(seed),
            queue: BinaryHeap::new(),
            last: Duration::ZERO,
            number: 0,
            fates: Fates { seen: 0, lost: 0, overflowed: 0, doubled: 0, held: 0, delivered: 0 },
        }
    }

    /// A frame enters at `now`.
    pub fn take(&mut self, frame: &[u8], now: Duration) {
        self.fates.seen += 1;
        if self.random.happens(self.weather.lost) {
            self.fates.lost += 1;
            return;
        }
        self.queue(frame, now);
        if self.random.happens(self.weather.doubled) {
            self.fates.doubled += 1;
            self.queue(frame, now);
        }
    }

    fn queue(&mut self, frame: &[u8], now: Duration) {
        if self.queue.len() >= QUEUE {
            self.fates.overflowed += 1;
            return;
        }
        let mut due = now + self.weather.delay + self.random.within(self.weather.jitter);
        if self.random.happens(self.weather.held) {
            self.fates.held += 1;
            due += LEAST_HOLD + self.random.within(HOLD_SPREAD);
        } else {
            due = due.max(self.last);
            self.last = due;
        }
        self.queue.push(Reverse(Waiting { due, number: self.number, frame: frame.to_vec() }));
        self.number += 1;
    }

    /// When the next frame leaves.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        self.queue.peek().map(|Reverse(waiting)| waiting.due)
    }

    /// The next frame, if it leaves by `now`.
    pub fn leave(&mut self, now: Duration) -> Option<Vec<u8>> {
        if self.due()? > now {
            return None;
        }
        let Reverse(waiting) = self.queue.pop()?;
        self.fates.delivered += 1;
        Some(waiting.frame)
    }

    /// A frame that left was lost after all, since its interface took no more.
    pub const fn overflow(&mut self) {
        self.fates.delivered -= 1;
        self.fates.overflowed += 1;
    }

    /// What became of the frames so far.
    #[must_use]
    pub const fn fates(&self) -> Fates {
        self.fates
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(1);

    /// Sends numbered frames, 10 µs apart, and gives the numbers that leave, in their order.
    fn send(lane: &mut Lane, count: u32) -> Vec<u32> {
        let mut left = Vec::new();
        let mut leave = |lane: &mut Lane, now| {
            while let Some(frame) = lane.leave(now) {
                left.push(u32::from_be_bytes(frame.try_into().expect("four bytes")));
            }
        };
        for number in 0..count {
            let now = Duration::from_micros(10) * number;
            lane.take(&number.to_be_bytes(), now);
            leave(lane, now);
        }
        leave(lane, LONG);
        left
    }

    #[test]
    fn a_clear_lane_delivers_everything_once_and_in_order() {
        let mut lane = Lane::new(Weather::default(), 1);
        assert_eq!(send(&mut lane, 1000), (0..1000).collect::<Vec<_>>());
        assert_eq!(lane.fates(), Fates { seen: 1000, delivered: 1000, ..Fates::default() });
    }

    #[test]
    fn jitter_alone_keeps_the_order() {
        let (delay, jitter) = (Duration::from_millis(2), Duration::from_millis(3));
        let mut lane = Lane::new(Weather { delay, jitter, ..Weather::default() }, 2);
        lane.take(&[0; 4], Duration::ZERO);
        assert!(lane.due() >= Some(delay), "leaves before the delay");
        assert_eq!(lane.leave(delay - Duration::from_nanos(1)), None);
        assert_eq!(send(&mut lane, 1000).split_off(1), (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn each_misfortune_has_about_its_rate() {
        let mut lane = Lane::new(Weather { lost: 50, doubled: 100, held: 250, ..Weather::default() }, 3);
        let left = send(&mut lane, 10_000);
        let fates = lane.fates();
        assert!((400..600).contains(&fates.lost), "lost {}", fates.lost);
        assert!((850..1050).contains(&fates.doubled), "doubled {}", fates.doubled);
        assert!((2450..2850).contains(&fates.held), "held {}", fates.held);
        assert_eq!(left.len() as u64, fates.seen - fates.lost + fates.doubled);
        let overtaken = left.windows(2).filter(|pair| pair[0] > pair[1]).count();
        assert!(overtaken > 1000, "only {overtaken} frames were overtaken");
    }

    #[test]
    fn the_same_seed_gives_the_same_fates() {
        let weather = Weather { lost: 50, doubled: 50, held: 250, ..Weather::default() };
        let run = |seed| send(&mut Lane::new(weather, seed), 1000);
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
    }

    #[test]
    fn what_is_under_way_is_bounded() {
        let mut lane = Lane::new(Weather { delay: LONG, ..Weather::default() }, 4);
        for _ in 0..2 * QUEUE {
            lane.take(&[0], Duration::ZERO);
        }
        assert_eq!(lane.queue.len(), QUEUE);
        assert_eq!(lane.fates().overflowed, QUEUE as u64);
    }
}
