//! How many connections the daemon has ended, by cause; or would have.
//!
//! It counts from the start of the daemon: unlike requests, connections are ended only while one runs.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Why a connection is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Cause {
    /// Nothing at all has come on it for longer than the time for a head.
    Silent,
    /// Its request head has been unfinished for longer than that.
    SlowHead,
    /// Its source has more connections waiting for a first byte or within a head than one may have.
    Source,
    /// A slow head of a connection that is forwarded: there is no socket here that could be ended.
    Forwarded,
    /// It was there before the guard, and bytes had come on it.
    Existing,
}

/// The counts.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    ended: [AtomicU64; Cause::ALL.len()],
    would_end: [AtomicU64; Cause::ALL.len()],
}

impl Cause {
    /// All of them, in the order of their declaration.
    pub(crate) const ALL: [Self; 5] = [Self::Silent, Self::SlowHead, Self::Source, Self::Forwarded, Self::Existing];

    /// The word for it in metrics, JSON and tables; stable.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::SlowHead => "slow_head",
            Self::Source => "source",
            Self::Forwarded => "forwarded",
            Self::Existing => "existing",
        }
    }
}

impl Tally {
    /// One more that was ended.
    pub(super) fn ended(&self, cause: Cause) {
        self.ended[cause as usize].fetch_add(1, Relaxed);
    }

    /// One more that was left alone, where it would have been ended.
    pub(super) fn would_end(&self, cause: Cause) {
        self.would_end[cause as usize].fetch_add(1, Relaxed);
    }

    /// Cause, number ended, and number that would have been.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (&'static str, u64, u64)> {
        let count = |counts: &[AtomicU64], cause: Cause| counts[cause as usize].load(Relaxed);
        Cause::ALL.iter().map(move |&cause| (cause.as_str(), count(&self.ended, cause), count(&self.would_end, cause)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_is_counted_by_itself_and_apart_from_what_was_left_alone() {
        let tally = Tally::default();
        for (times, &cause) in Cause::ALL.iter().enumerate() {
            (0..times).for_each(|_| tally.ended(cause));
            (0..10 * times).for_each(|_| tally.would_end(cause));
        }
        let counts: Vec<_> = tally.counts().collect();
        assert_eq!(
            counts,
            [("silent", 0, 0), ("slow_head", 1, 10), ("source", 2, 20), ("forwarded", 3, 30), ("existing", 4, 40)]
        );
    }
}
