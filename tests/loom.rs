//! The limiter under loom: all interleavings of threads that charge one bucket, not only those that happen to occur.

use enforcer_ebpf::abi::{Algorithm, Limit};
use enforcer_ebpf::limit::{Cell, Cells, Outcome, TICK_NS};
use enforcer_tests::bucket::{self, fixed, gcra, sliding};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;

const BEGIN: u64 = 1 << 40;
const WINDOW: u64 = 1024 * TICK_NS;

#[derive(Clone, Copy)]
struct Word<'a>(&'a AtomicU64);

impl Cell for Word<'_> {
    fn load(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    fn swap(&self, old: u64, new: u64) -> bool {
        self.0.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

struct Bucket {
    window: AtomicU64,
    counts: AtomicU64,
    arrival: AtomicU64,
}

impl Bucket {
    fn new() -> Arc<Self> {
        Arc::new(Self { window: AtomicU64::new(0), counts: AtomicU64::new(0), arrival: AtomicU64::new(0) })
    }

    fn passes(&self, limit: &Limit, now: u64) -> u64 {
        let cells = Cells { window: Word(&self.window), counts: Word(&self.counts), arrival: Word(&self.arrival) };
        u64::from(matches!(bucket::charge(&cells, limit, now, 1), Outcome::Charged(_)))
    }
}

/// Explores the interleavings of `threads` threads that try `tries` times each.
fn explore(limit: Limit, threads: usize, tries: usize, expected: u64) {
    let mut model = loom::model::Builder::new();
    // With three threads the full space takes hours; three forced switches find every race of a swap loop.
    model.preemption_bound = (threads > 2).then_some(3);
    model.check(move || {
        let bucket = Bucket::new();
        let others: Vec<_> = (1..threads)
            .map(|_| {
                let bucket = Arc::clone(&bucket);
                thread::spawn(move || (0..tries).map(|_| bucket.passes(&limit, BEGIN)).sum::<u64>())
            })
            .collect();
        let own: u64 = (0..tries).map(|_| bucket.passes(&limit, BEGIN)).sum();
        let passed = own + others.into_iter().map(|other| other.join().expect("no panic")).sum::<u64>();
        assert_eq!(passed, expected);
    });
}

#[test]
fn two_threads_get_exactly_the_limit_in_every_interleaving() {
    for count in [1, 2] {
        for limit in [sliding(count, WINDOW), fixed(count, WINDOW), gcra(count, 1 << 30)] {
            explore(limit, 2, 2, u64::from(count));
        }
    }
}

#[test]
fn three_threads_get_exactly_the_limit_in_every_interleaving() {
    for count in [1, 2] {
        for limit in [sliding(count, WINDOW), fixed(count, WINDOW), gcra(count, 1 << 30)] {
            explore(limit, 3, 1, u64::from(count));
        }
    }
}

/// Two threads on either side of a window's end, before which the bucket is full; `next` pass after it.
fn explore_roll(limit: Limit, second: u64, next: u64) {
    loom::model(move || {
        let bucket = Bucket::new();
        let full: u64 = (0..limit.count + 1).map(|_| bucket.passes(&limit, BEGIN)).sum();
        assert_eq!(full, u64::from(limit.count));
        let other = {
            let bucket = Arc::clone(&bucket);
            thread::spawn(move || {
                let late = bucket.passes(&limit, BEGIN + WINDOW - TICK_NS);
                (late, bucket.passes(&limit, second))
            })
        };
        let own: u64 = (0..2).map(|_| bucket.passes(&limit, second)).sum();
        let (late, after) = other.join().expect("no panic");
        // The late one is of the full window, or already of the next, when the other thread has opened that.
        assert_eq!(late + after + own, next);
    });
}

#[test]
fn threads_that_race_over_the_end_of_a_window_get_the_next_one_once() {
    for count in [1, 2] {
        let limit = fixed(count, WINDOW);
        explore_roll(limit, BEGIN + WINDOW, u64::from(count));
        let limit = Limit { algorithm: Algorithm::Sliding as u32, ..limit };
        // Right at the end the last window still weighs fully; two windows on it is forgotten.
        explore_roll(limit, BEGIN + WINDOW, 0);
        explore_roll(limit, BEGIN + 2 * WINDOW, u64::from(count));
    }
}

#[test]
fn a_thread_that_sleeps_over_several_windows_disturbs_none_of_them() {
    for count in [1, 2] {
        let limit = fixed(count, WINDOW);
        loom::model(move || {
            let bucket = Bucket::new();
            let full: u64 = (0..limit.count).map(|_| bucket.passes(&limit, BEGIN)).sum();
            assert_eq!(full, u64::from(limit.count));
            let sleeper = {
                let bucket = Arc::clone(&bucket);
                thread::spawn(move || bucket.passes(&limit, BEGIN + WINDOW - TICK_NS))
            };
            let windows = [BEGIN + WINDOW, BEGIN + 2 * WINDOW, BEGIN + 3 * WINDOW];
            let own: u64 = windows.iter().map(|&now| bucket.passes(&limit, now)).sum();
            let late = sleeper.join().expect("no panic");
            let rest: u64 = (0..limit.count).map(|_| bucket.passes(&limit, windows[2])).sum();
            // One in each of the first two windows, all of the last one's; the sleeper's is one of theirs, or beside
            // the one that an earlier window had room for.
            let last = u64::from(limit.count);
            assert!(own + late + rest <= 2 + late.min(last - 1) + last, "{own} + {late} + {rest}");
        });
    }
}
