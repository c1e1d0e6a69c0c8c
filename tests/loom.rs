//! The limiter under loom: all interleavings of threads that charge the same buckets, not only those that happen to occur.

use enforcer_ebpf::abi::{self, Algorithm, LIMITS, Limit, Policy, Scope, align};
use enforcer_ebpf::charge::{Charge, Claim, Place, table};
use enforcer_ebpf::limit::{self, Cell, Cells, Clock, Outcome, TICK_NS};
use enforcer_tests::bucket::{self, calendar, fixed, gcra, sliding};
use enforcer_tests::tables;
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

    fn cells(&self) -> Cells<Word<'_>> {
        Cells { window: Word(&self.window), counts: Word(&self.counts), arrival: Word(&self.arrival) }
    }

    fn charges(&self, limit: &Limit, now: Clock) -> u64 {
        u64::from(matches!(bucket::charge(&self.cells(), limit, now, 1), Outcome::Charged(_)))
    }

    fn passes(&self, limit: &Limit, now: u64) -> u64 {
        self.charges(limit, Clock::of_boot(now))
    }

    fn used(&self, limit: &Limit, now: Clock) -> u64 {
        let Cells { window, counts, arrival } = self.cells();
        let bucket = abi::Bucket { window: window.load(), counts: counts.load(), arrival: arrival.load() };
        limit::usage(&bucket, limit, now).used
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
        let limit = Limit { algorithm: Algorithm::Sliding as u16, ..limit };
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

/// An instant this many seconds behind a boundary of days.
fn second(second: i64) -> Clock {
    let unix = (1_767_225_600 + second) as u64 * 1_000_000_000;
    Clock { boot: BEGIN, offset: unix.wrapping_sub(BEGIN) }
}

#[test]
fn threads_on_either_side_of_a_boundary_of_the_calendar_get_each_window_once() {
    let limit = calendar(1, 86_400_000_000_000, align::MULTIPLE);
    loom::model(move || {
        let bucket = Bucket::new();
        let other = {
            let bucket = Arc::clone(&bucket);
            thread::spawn(move || (bucket.charges(&limit, second(-1)), bucket.charges(&limit, second(1))))
        };
        let own: u64 = (0..2).map(|_| bucket.charges(&limit, second(1))).sum();
        let (before, behind) = other.join().expect("no panic");
        assert_eq!((before, own + behind), (1, 1));
        assert_eq!((bucket.used(&limit, second(-1)), bucket.used(&limit, second(1))), (1, 1));
    });
}

#[test]
fn threads_that_race_to_take_the_counts_of_a_wrong_time_over_take_them_once() {
    let limit = calendar(3, 86_400_000_000_000, align::MULTIPLE);
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(4);
    model.check(move || {
        let bucket = Bucket::new();
        for days in [100, 200] {
            assert_eq!(bucket.charges(&limit, second(days * 86_400)), 1);
        }
        let other = {
            let bucket = Arc::clone(&bucket);
            thread::spawn(move || bucket.charges(&limit, second(0)))
        };
        let passed = bucket.charges(&limit, second(0)) + other.join().expect("no panic");
        assert_eq!((passed, bucket.used(&limit, second(0))), (1, 3));
    });
}

/// Charges one request to these buckets, each under limits of its own; whether it passed.
fn charge(subjects: &[(&Bucket, Limit)]) -> u64 {
    let mut charge = Charge::default();
    charge.begin(BEGIN, 1);
    for policy in 1..=subjects.len() {
        charge.claim(Claim { table: table::NAMED, policy: policy as u32, scope: Scope::default() });
    }
    let policies: Vec<Policy> = subjects.iter().map(|(_, limit)| tables::policy(&[*limit])).collect();
    for (claim, policy) in policies.iter().enumerate() {
        charge.look_at(claim, policy);
    }
    loop {
        let Place { claim, limit, .. } = charge.place();
        // Of the others there is no limit.
        let cells = subjects[claim].0.cells();
        assert!(limit < LIMITS);
        if !charge.step(&cells, &policies[claim]) {
            return u64::from(charge.result().is_ok());
        }
    }
}

#[test]
fn threads_that_race_for_the_last_place_of_a_limit_leave_no_charge_on_the_others() {
    for shape in [sliding as fn(u32, u64) -> Limit, fixed, gcra] {
        let (own, shared) = (shape(2, WINDOW), shape(1, WINDOW));
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(move || {
            let [first, second, both] = [Bucket::new(), Bucket::new(), Bucket::new()];
            let other = {
                let (second, both) = (Arc::clone(&second), Arc::clone(&both));
                // The same limits in another order.
                thread::spawn(move || charge(&[(&both, shared), (&second, own)]))
            };
            let passed = charge(&[(&first, own), (&both, shared)]);
            let others = other.join().expect("no panic");
            let now = Clock::of_boot(BEGIN);
            assert!(passed + others <= 1, "{passed} and {others}");
            assert_eq!(both.used(&shared, now), passed + others);
            assert_eq!((first.used(&own, now), second.used(&own, now)), (passed, others));
        });
    }
}

#[test]
fn threads_that_race_for_the_last_places_of_two_limits_never_get_more_than_those() {
    for shape in [sliding as fn(u32, u64) -> Limit, fixed, gcra] {
        let limit = shape(1, WINDOW);
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(move || {
            let [left, right] = [Bucket::new(), Bucket::new()];
            let other = {
                let (left, right) = (Arc::clone(&left), Arc::clone(&right));
                thread::spawn(move || charge(&[(&right, limit), (&left, limit)]))
            };
            let passed = charge(&[(&left, limit), (&right, limit)]) + other.join().expect("no panic");
            let now = Clock::of_boot(BEGIN);
            // Both may have been refused.
            assert!(passed <= 1);
            assert_eq!((left.used(&limit, now), right.used(&limit, now)), (passed, passed));
        });
    }
}
