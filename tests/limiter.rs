//! The limiters against plain models that remember every instant, and under threads.
//!
//! Time is a number that the tests choose; nothing here reads a clock.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use enforcer_ebpf::abi::{Algorithm, LIMITS, Limit};
use enforcer_ebpf::limit::{self, Outcome, TICK_NS};
use enforcer_tests::bucket::{self, Shared, fixed, gcra, sliding};
use enforcer_tests::limiter_model::{FixedModel, LeakyModel, SlidingModel};
use enforcer_tests::tables;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

/// Where the tests' clocks begin: any instant will do, but 0 is what marks an unused bucket.
const BEGIN: u64 = 1 << 40;
const SECOND: u64 = 1_000_000_000;
const MINUTE: u64 = 60 * SECOND;
const DAY: u64 = 86_400 * SECOND;

fn passes(bucket: &Shared, limit: &Limit, now: u64) -> bool {
    matches!(bucket::charge(&bucket.cells(), limit, now, 1), Outcome::Charged(_))
}

/// Instants that rise by these steps from [`BEGIN`], until a machine would have been up for 70 years.
fn instants(steps: &[u64]) -> impl Iterator<Item = u64> {
    let last = 70 * 365 * DAY;
    steps.iter().scan(BEGIN, move |now, step| {
        *now = now.checked_add(*step).filter(|now| *now < last)?;
        Some(*now)
    })
}

/// Steps that are mostly small against `window`, with some of about a window and some longer.
fn steps(window: u64) -> impl Strategy<Value = Vec<u64>> {
    let step = prop_oneof![
        4 => Just(0),
        6 => 0..window / 10,
        2 => 0..window,
        1 => window - window / 10..window + window / 10,
        1 => window..window * 3,
    ];
    vec(step, 1..300)
}

/// Windows from a second to a year, in whole ticks.
fn windows() -> impl Strategy<Value = u64> {
    prop_oneof![Just(SECOND), Just(MINUTE), Just(3600 * SECOND), Just(DAY), Just(365 * DAY)]
}

/// The most of `admitted` (rising) in any interval of `length` that includes one of its ends.
fn most_within(admitted: &[u64], length: u64) -> usize {
    let mut recent = VecDeque::new();
    let mut most = 0;
    for &instant in admitted {
        recent.push_back(instant);
        while recent.front().is_some_and(|first| instant - first >= length) {
            recent.pop_front();
        }
        most = most.max(recent.len());
    }
    most
}

proptest! {
    #[test]
    fn fixed_is_the_first_hit_anchored_window(count in 0u32..20, (window, steps) in windows().prop_flat_map(|window| (Just(window), steps(window)))) {
        let (bucket, limit) = (Shared::default(), fixed(count, window));
        let mut model = FixedModel::default();
        for now in instants(&steps) {
            prop_assert_eq!(passes(&bucket, &limit, now), model.passes(&limit, now), "at {}", now - BEGIN);
        }
    }

    #[test]
    fn fixed_is_the_first_hit_anchored_window_also_when_the_clock_goes_backwards(
        count in 0u32..10, jumps in vec((any::<bool>(), 0..MINUTE * 2), 1..200),
    ) {
        let (bucket, limit) = (Shared::default(), fixed(count, MINUTE));
        let mut model = FixedModel::default();
        let mut now = BEGIN;
        for (back, jump) in jumps {
            now = if back { now.saturating_sub(jump).max(BEGIN / 2) } else { now + jump };
            prop_assert_eq!(passes(&bucket, &limit, now), model.passes(&limit, now));
        }
    }

    #[test]
    fn sliding_is_its_definition_and_for_long_windows_never_admits_more(
        count in 0u32..20, (window, steps) in windows().prop_flat_map(|window| (Just(window), steps(window))),
    ) {
        let (bucket, limit) = (Shared::default(), sliding(count, window));
        let mut model = SlidingModel::default();
        for now in instants(&steps) {
            let (expected, start) = model.would_pass(&limit, now);
            let passed = passes(&bucket, &limit, now);
            if limit.window >> 32 == 0 {
                prop_assert_eq!(passed, expected, "at {}", now - BEGIN);
            } else {
                prop_assert!(expected || !passed, "at {}", now - BEGIN);
            }
            if passed {
                model.admit(start, now);
            }
        }
    }

    #[test]
    fn sliding_never_admits_more_than_n_in_an_anchored_window_nor_2n_less_1_in_any(
        count in 1u32..20, (window, steps) in windows().prop_flat_map(|window| (Just(window), steps(window))),
    ) {
        let (bucket, limit) = (Shared::default(), sliding(count, window));
        let mut anchored = SlidingModel::default();
        let mut admitted = Vec::new();
        for now in instants(&steps) {
            let (_, start) = anchored.would_pass(&limit, now);
            if passes(&bucket, &limit, now) {
                anchored.admit(start, now);
                admitted.push(now / TICK_NS);
                let within = anchored.within(start);
                prop_assert!(within <= count as usize, "{} in one window", within);
            }
        }
        let most = most_within(&admitted, limit.window);
        prop_assert!(most < 2 * count as usize, "{} in {} ticks", most, limit.window);
    }

    #[test]
    fn after_a_burst_of_n_a_sliding_window_admits_at_most_its_share(
        count in 1u32..50, times in vec(0..MINUTE, 1..200),
    ) {
        let (bucket, limit) = (Shared::default(), sliding(count, MINUTE));
        for _ in 0..count {
            prop_assert!(passes(&bucket, &limit, BEGIN));
        }
        let mut times = times;
        times.sort_unstable();
        let mut admitted = 0u64;
        for time in times {
            admitted += u64::from(passes(&bucket, &limit, BEGIN + MINUTE + time));
            let share = (u128::from(count) * u128::from(time) / u128::from(MINUTE)) as u64;
            prop_assert!(admitted <= share, "{} after {}, share {}", admitted, time, share);
        }
    }

    #[test]
    fn the_first_n_within_a_window_of_the_first_always_pass(
        count in 1u32..200, (window, times) in windows().prop_flat_map(|window| (Just(window), vec(0..window - TICK_NS, 200))),
    ) {
        let mut times = times;
        times.sort_unstable();
        let first = times[0];
        let burst = gcra(count, window / u64::from(count));
        for limit in [sliding(count, window), fixed(count, window), burst] {
            let bucket = Shared::default();
            for time in times.iter().take(count as usize) {
                prop_assert!(passes(&bucket, &limit, BEGIN + time - first));
            }
        }
    }

    #[test]
    fn gcra_is_the_continuous_leaky_bucket(
        burst in 1u32..20, interval in 1..MINUTE, steps in steps(MINUTE),
    ) {
        let (bucket, limit) = (Shared::default(), gcra(burst, interval));
        let mut model = LeakyModel::at(BEGIN);
        for now in instants(&steps) {
            prop_assert_eq!(passes(&bucket, &limit, now), model.passes(&limit, now), "at {}", now - BEGIN);
        }
    }

    #[test]
    fn gcra_never_admits_more_than_rate_and_burst_in_any_interval(
        burst in 1u32..20, interval in 1..MINUTE, steps in steps(MINUTE), length in 1..MINUTE * 10,
    ) {
        let (bucket, limit) = (Shared::default(), gcra(burst, interval));
        let admitted: Vec<u64> = instants(&steps).filter(|&now| passes(&bucket, &limit, now)).collect();
        let allowed = u64::from(burst) + length / interval;
        prop_assert!(most_within(&admitted, length) as u64 <= allowed);
    }

    #[test]
    fn a_clock_that_goes_back_gives_no_new_quota(
        count in 1u32..50, window in windows(), backs in vec(0..BEGIN / 2, 1..50),
    ) {
        let burst = gcra(count, window);
        for limit in [sliding(count, window), fixed(count, window), burst] {
            let bucket = Shared::default();
            for _ in 0..count {
                prop_assert!(passes(&bucket, &limit, BEGIN));
            }
            for back in &backs {
                prop_assert!(!passes(&bucket, &limit, BEGIN - back));
            }
        }
    }

    #[test]
    fn clocks_of_cpus_that_differ_a_little_admit_no_more_than_n_in_a_window(
        count in 1u32..50, skews in vec(0..1000u64, 100..300),
    ) {
        for limit in [sliding(count, MINUTE), fixed(count, MINUTE)] {
            let bucket = Shared::default();
            let admitted = skews.iter().filter(|&skew| passes(&bucket, &limit, BEGIN + MINUTE / 2 - skew)).count();
            prop_assert_eq!(admitted, skews.len().min(count as usize));
        }
    }

    #[test]
    fn a_changed_limit_keeps_the_count(before in 1u32..100, sent in 1u32..150, after in 0u32..150) {
        for shape in [sliding as fn(u32, u64) -> Limit, fixed] {
            let bucket = Shared::default();
            let mut used = 0;
            for _ in 0..sent {
                used += u32::from(passes(&bucket, &shape(before, MINUTE), BEGIN));
            }
            prop_assert_eq!(used, sent.min(before));
            let now = BEGIN + SECOND;
            let changed = shape(after, MINUTE);
            prop_assert_eq!(limit::usage(&bucket.bucket(), &changed, now).used, u64::from(used));
            let mut more = 0;
            for _ in 0..200 {
                more += u32::from(passes(&bucket, &changed, now));
            }
            prop_assert_eq!(more, after.saturating_sub(used));
        }
    }

    #[test]
    fn a_changed_gcra_limit_keeps_what_was_used(sent in 1u32..20, before in 20u32..40, after in 1u32..60) {
        let bucket = Shared::default();
        for _ in 0..sent {
            prop_assert!(passes(&bucket, &gcra(before, SECOND), BEGIN));
        }
        let mut more = 0;
        for _ in 0..100 {
            more += u32::from(passes(&bucket, &gcra(after, SECOND), BEGIN));
        }
        prop_assert_eq!(more, after.saturating_sub(sent));
    }

    #[test]
    fn what_remains_is_what_passes(
        count in 1u32..60, shape in 0..3usize, steps in steps(MINUTE),
    ) {
        let limit = [sliding(count, MINUTE), fixed(count, MINUTE), gcra(count, SECOND)][shape];
        let bucket = Shared::default();
        let mut last = BEGIN;
        for now in instants(&steps) {
            passes(&bucket, &limit, now);
            last = now;
        }
        let remaining = limit::remaining(&bucket.bucket(), &limit, last);
        for _ in 0..remaining {
            prop_assert!(passes(&bucket, &limit, last));
        }
        prop_assert!(!passes(&bucket, &limit, last));
    }

    #[test]
    fn after_the_time_to_retry_a_request_passes_and_after_the_reset_all_do(
        count in 1u32..60, shape in 0..3usize, steps in steps(MINUTE),
    ) {
        let limit = [sliding(count, MINUTE), fixed(count, MINUTE), gcra(count, SECOND)][shape];
        let bucket = Shared::default();
        let mut last = BEGIN;
        for now in instants(&steps) {
            passes(&bucket, &limit, now);
            last = now;
        }
        let usage = limit::usage(&bucket.bucket(), &limit, last);
        prop_assert_eq!(usage.retry == 0, usage.remaining > 0);
        // A tick is the clock's own grain.
        prop_assert!(limit::remaining(&bucket.bucket(), &limit, last + usage.retry + TICK_NS) > 0);
        let after = last + usage.reset + TICK_NS;
        prop_assert_eq!(limit::usage(&bucket.bucket(), &limit, after).used, 0);
        prop_assert_eq!(limit::remaining(&bucket.bucket(), &limit, after), u64::from(count));
    }

    #[test]
    fn several_limits_charge_all_or_none(
        counts in vec((1u32..10, 0..4usize), 1..=LIMITS), steps in steps(MINUTE),
    ) {
        let limits: Vec<Limit> = counts
            .iter()
            .map(|&(count, window)| fixed(count, [SECOND, 10 * SECOND, MINUTE, 3600 * SECOND][window]))
            .collect();
        several(&limits, &steps)?;
    }
}

/// Runs one policy beside one model for each limit, and holds them equal after every request.
fn several(limits: &[Limit], steps: &[u64]) -> TestCaseResult {
    let policy = tables::policy(limits);
    let buckets: [Shared; LIMITS] = Default::default();
    let singles: Vec<Shared> = limits.iter().map(|_| Shared::default()).collect();
    for now in instants(steps) {
        let refusing =
            limits.iter().zip(&singles).position(|(limit, single)| limit::remaining(&single.bucket(), limit, now) == 0);
        let cells = std::array::from_fn(|index| buckets[index].cells());
        let charged = bucket::charge_all(&cells, &policy, now, 1);
        prop_assert_eq!(charged.err(), refusing.map(|index| index as u32));
        for (limit, single) in limits.iter().zip(&singles) {
            if refusing.is_none() {
                prop_assert!(passes(single, limit, now));
            }
        }
        for ((limit, single), bucket) in limits.iter().zip(&singles).zip(&buckets) {
            let (ours, model) =
                (limit::usage(&bucket.bucket(), limit, now), limit::usage(&single.bucket(), limit, now));
            prop_assert_eq!(ours, model);
        }
    }
    Ok(())
}

#[test]
fn a_count_of_zero_refuses_everything() {
    for algorithm in [Algorithm::Sliding, Algorithm::Fixed, Algorithm::Gcra] {
        let bucket = Shared::default();
        let limit = Limit { algorithm: algorithm as u32, window: MINUTE / TICK_NS, interval: 1, ..Limit::default() };
        assert!(!passes(&bucket, &limit, BEGIN), "{algorithm:?}");
        assert_eq!(limit::usage(&bucket.bucket(), &limit, BEGIN).retry, u64::MAX, "{algorithm:?}");
    }
}

#[test]
fn the_largest_count_and_window_do_not_overflow() {
    let limit = sliding(limit::MAX_COUNT, 366 * DAY);
    let bucket = Shared::default();
    let cost = u64::from(limit::MAX_COUNT);
    assert!(matches!(bucket::charge(&bucket.cells(), &limit, BEGIN, cost), Outcome::Charged(_)));
    assert!(!passes(&bucket, &limit, BEGIN + 366 * DAY));
    assert!(passes(&bucket, &limit, BEGIN + 366 * DAY + DAY));
}

#[test]
fn a_cost_above_what_remains_is_refused_and_charges_nothing() {
    let burst = gcra(10, SECOND);
    for limit in [sliding(10, MINUTE), fixed(10, MINUTE), burst] {
        let bucket = Shared::default();
        assert_eq!(bucket::charge(&bucket.cells(), &limit, BEGIN, 11), Outcome::Refused);
        assert_eq!(limit::remaining(&bucket.bucket(), &limit, BEGIN), 10);
        assert!(matches!(bucket::charge(&bucket.cells(), &limit, BEGIN, 10), Outcome::Charged(_)));
    }
}

#[test]
fn an_idle_bucket_is_as_good_as_new_after_any_number_of_windows() {
    for windows in [2u64, 3, 127, 128, 254, 255, 256, 257, 1000] {
        for limit in [sliding(3, SECOND), fixed(3, SECOND)] {
            let bucket = Shared::default();
            let mut now = BEGIN;
            for _ in 0..600 {
                let admitted = (0..5).filter(|_| passes(&bucket, &limit, now)).count();
                assert_eq!(admitted, 3, "after {windows} windows");
                now += windows * SECOND;
            }
        }
    }
}

/// Lets four threads send until `tries` requests have been sent; gives how many passed.
fn hammer(limit: &Limit, tries: u64, now: impl Fn(u64) -> u64 + Sync) -> u64 {
    let bucket = Shared::default();
    let (sent, passed) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let number = sent.fetch_add(1, Ordering::Relaxed);
                    if number >= tries {
                        break;
                    }
                    if passes(&bucket, limit, now(number)) {
                        passed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    passed.into_inner()
}

#[test]
fn exactly_n_pass_however_many_threads_send() {
    for count in [1u32, 100, 100_000] {
        let burst = gcra(count, DAY);
        for limit in [sliding(count, MINUTE), fixed(count, MINUTE), burst] {
            let passed = hammer(&limit, u64::from(count) * 2 + 1000, |_| BEGIN);
            assert_eq!(passed, u64::from(count), "of {count} under {limit:?}");
        }
    }
}

#[test]
fn exactly_n_pass_in_each_of_many_windows_however_many_threads_send() {
    // 1000 tries in each window, of which the threads race to open the next.
    let passed = hammer(&fixed(100, SECOND), 50_000, |number| BEGIN + number / 1000 * SECOND);
    // A thread that is late with a try meets the next window, or a much later one: it counts there, and once.
    assert_eq!(passed, 5000);
}
