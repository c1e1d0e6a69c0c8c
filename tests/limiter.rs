//! The limiters against plain models that remember every request, and under threads.
//!
//! Time is a number that the tests choose; nothing here reads a clock.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use enforcer_ebpf::abi::{Algorithm, Limit, align};
use enforcer_ebpf::limit::{self, Clock, Outcome, TICK_NS};
use enforcer_tests::bucket::{self, Shared, calendar, fixed, gcra, penalizing, sliding};
use enforcer_tests::limiter_model::{CalendarModel, FixedModel, LeakyModel, Model, SlidingModel};
use proptest::collection::vec;
use proptest::prelude::*;

/// Where the tests' clocks begin: any instant will do, but 0 is what marks an unused bucket.
const BEGIN: u64 = 1 << 40;
const SECOND: u64 = 1_000_000_000;
const MINUTE: u64 = 60 * SECOND;
const DAY: u64 = 86_400 * SECOND;
/// 2026-01-31T23:59:50Z.
const UNIX: u64 = 1_769_903_990;

/// A reading of the clocks at which it is `boot` since [`BEGIN`] and, as the clock of the day has it, `unix` ns since
/// [`UNIX`].
const fn clock(boot: u64, unix: u64) -> Clock {
    let boot = BEGIN + boot;
    Clock { boot, offset: (UNIX * SECOND + unix).wrapping_sub(boot) }
}

fn charges(bucket: &Shared, limit: &Limit, now: Clock, cost: u64) -> bool {
    matches!(bucket::charge(&bucket.cells(), limit, now, cost), Outcome::Charged(_))
}

fn passes(bucket: &Shared, limit: &Limit, now: u64) -> bool {
    charges(bucket, limit, Clock::of_boot(now), 1)
}

/// Of requests that each come some ns behind the one before and cost something, the instants since [`BEGIN`] and the
/// costs, until a machine would have been up for 70 years.
fn instants(steps: &[(u64, u64)]) -> impl Iterator<Item = (u64, u64)> {
    let last = 70 * 365 * DAY;
    steps.iter().scan(BEGIN, move |now, (step, cost)| {
        *now = now.checked_add(*step).filter(|now| *now < last)?;
        Some((*now, *cost))
    })
}

/// Mostly 1.
fn cost() -> impl Strategy<Value = u64> {
    prop_oneof![6 => Just(1), 3 => 2u64..6, 1 => 6..=limit::MAX_COST]
}

/// Steps that are mostly small against `window`, with some of about a window and some longer; and costs.
fn steps(window: u64) -> impl Strategy<Value = Vec<(u64, u64)>> {
    let step = prop_oneof![
        4 => Just(0),
        6 => 0..window / 10,
        2 => 0..window,
        1 => window - window / 10..window + window / 10,
        1 => window..window * 3,
    ];
    vec((step, cost()), 1..300)
}

/// Windows from a second to a year, in whole ticks.
fn windows() -> impl Strategy<Value = u64> {
    prop_oneof![Just(SECOND), Just(MINUTE), Just(3600 * SECOND), Just(DAY), Just(365 * DAY)]
}

/// A window and steps in it.
fn traces() -> impl Strategy<Value = (u64, Vec<(u64, u64)>)> {
    windows().prop_flat_map(|window| (Just(window), steps(window)))
}

/// Windows of the calendar, with their longest length.
fn calendars() -> impl Strategy<Value = (Limit, u64)> {
    let multiple = |window| (calendar(0, window, align::MULTIPLE), window);
    let multiples = [SECOND, MINUTE, 900 * SECOND, 3600 * SECOND, DAY, 7 * DAY, 10 * DAY].map(multiple);
    let month = (calendar(0, 30 * DAY, align::MONTH), 31 * DAY);
    let year = (calendar(0, 365 * DAY, align::YEAR), 366 * DAY);
    prop::sample::select([&multiples[..], &[month, year]].concat())
}

/// A limit of one of six shapes, its bucket once these steps were taken, and the clock then; the clock of the day is ahead by
/// `skew` ns.
fn used(count: u32, shape: usize, window: u64, steps: &[(u64, u64)], skew: u64) -> (Limit, Shared, Clock) {
    let limit = [
        sliding(count, window),
        fixed(count, window),
        gcra(count, window / u64::from(count)),
        calendar(count, window, align::MULTIPLE),
        penalizing(sliding(count, window)),
        penalizing(gcra(count, window / u64::from(count))),
    ][shape];
    let bucket = Shared::default();
    let mut last = clock(0, skew);
    for (now, cost) in instants(steps) {
        last = clock(now - BEGIN, now - BEGIN + skew);
        charges(&bucket, &limit, last, cost);
    }
    (limit, bucket, last)
}

/// The most that passed in any interval of `length` that includes one of its ends, of what passed at these rising instants
/// for these costs.
fn most_within(passed: &[(u64, u64)], length: u64) -> u64 {
    let mut recent = VecDeque::new();
    let mut most = 0;
    for &(instant, cost) in passed {
        recent.push_back((instant, cost));
        while recent.front().is_some_and(|(first, _)| instant - first >= length) {
            recent.pop_front();
        }
        most = most.max(recent.iter().map(|(_, cost)| cost).sum());
    }
    most
}

proptest! {
    #[test]
    fn fixed_is_the_first_hit_anchored_window(count in 0u32..20, (window, steps) in traces()) {
        let (bucket, limit) = (Shared::default(), fixed(count, window));
        let mut model = Model::of(&limit, BEGIN);
        for (now, cost) in instants(&steps) {
            let now = Clock::of_boot(now);
            let expected = model.would_pass(&limit, now, cost);
            prop_assert_eq!(charges(&bucket, &limit, now, cost), expected, "at {}", now.boot - BEGIN);
            if expected {
                model.admit(&limit, now, cost);
            }
        }
    }

    #[test]
    fn fixed_is_the_first_hit_anchored_window_also_when_the_clock_goes_backwards(
        count in 0u32..10, jumps in vec((any::<bool>(), 0..MINUTE * 2, cost()), 1..200),
    ) {
        let (bucket, limit) = (Shared::default(), fixed(count, MINUTE));
        let mut model = FixedModel::default();
        let mut now = BEGIN;
        for (back, jump, cost) in jumps {
            now = if back { now.saturating_sub(jump).max(BEGIN / 2) } else { now + jump };
            let expected = model.would_pass(&limit, now, cost);
            prop_assert_eq!(charges(&bucket, &limit, Clock::of_boot(now), cost), expected);
            if expected {
                model.admit(&limit, now, cost);
            }
        }
    }

    #[test]
    fn fixed_never_admits_more_than_2n_in_any_interval_of_a_window(count in 1u32..20, (window, steps) in traces()) {
        let (bucket, limit) = (Shared::default(), fixed(count, window));
        let passed: Vec<_> =
            instants(&steps).filter(|(now, cost)| charges(&bucket, &limit, Clock::of_boot(*now), *cost)).collect();
        prop_assert!(most_within(&passed, window) <= 2 * u64::from(count));
    }

    #[test]
    fn sliding_is_its_definition_and_for_long_windows_never_admits_more(count in 0u32..20, (window, steps) in traces()) {
        let (bucket, limit) = (Shared::default(), sliding(count, window));
        let mut model = SlidingModel::default();
        for (now, cost) in instants(&steps) {
            let (expected, start) = model.would_pass(&limit, now, cost);
            let passed = charges(&bucket, &limit, Clock::of_boot(now), cost);
            if limit.window >> 32 == 0 {
                prop_assert_eq!(passed, expected, "at {}", now - BEGIN);
            } else {
                prop_assert!(expected || !passed, "at {}", now - BEGIN);
            }
            if passed {
                model.admit(start, cost);
            }
        }
    }

    #[test]
    fn sliding_never_admits_more_than_n_in_an_anchored_window_nor_2n_less_1_in_any(
        count in 1u32..20, (window, steps) in traces(),
    ) {
        let (bucket, limit) = (Shared::default(), sliding(count, window));
        let mut anchored = SlidingModel::default();
        let mut passed = Vec::new();
        for (now, cost) in instants(&steps) {
            let (_, start) = anchored.would_pass(&limit, now, cost);
            if charges(&bucket, &limit, Clock::of_boot(now), cost) {
                anchored.admit(start, cost);
                passed.push((now / TICK_NS, cost));
                let within = anchored.within(start);
                prop_assert!(within <= u64::from(count), "{} in one window", within);
            }
        }
        let most = most_within(&passed, limit.window);
        prop_assert!(most < 2 * u64::from(count), "{} in {} ticks", most, limit.window);
    }

    #[test]
    fn after_a_burst_of_n_a_sliding_window_admits_at_most_its_share(
        count in 1u32..50, times in vec((0..MINUTE, cost()), 1..200),
    ) {
        let (bucket, limit) = (Shared::default(), sliding(count, MINUTE));
        prop_assert!(charges(&bucket, &limit, Clock::of_boot(BEGIN), u64::from(count)));
        let mut times = times;
        times.sort_unstable();
        let mut admitted = 0u64;
        for (time, cost) in times {
            admitted += cost * u64::from(charges(&bucket, &limit, Clock::of_boot(BEGIN + MINUTE + time), cost));
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
    fn gcra_is_the_continuous_leaky_bucket(burst in 1u32..20, interval in 1..MINUTE, steps in steps(MINUTE)) {
        let (bucket, limit) = (Shared::default(), gcra(burst, interval));
        let mut model = LeakyModel::at(BEGIN);
        for (now, cost) in instants(&steps) {
            let expected = model.would_pass(&limit, now, cost);
            prop_assert_eq!(charges(&bucket, &limit, Clock::of_boot(now), cost), expected, "at {}", now - BEGIN);
            if expected {
                model.admit(&limit, now, cost);
            }
        }
    }

    #[test]
    fn gcra_never_admits_more_than_rate_and_burst_in_any_interval(
        burst in 1u32..20, interval in 1..MINUTE, steps in steps(MINUTE), length in 1..MINUTE * 10,
    ) {
        let (bucket, limit) = (Shared::default(), gcra(burst, interval));
        let passed: Vec<_> =
            instants(&steps).filter(|(now, cost)| charges(&bucket, &limit, Clock::of_boot(*now), *cost)).collect();
        prop_assert!(most_within(&passed, length) <= u64::from(burst) + length / interval);
    }

    #[test]
    fn calendar_windows_are_those_of_utc_and_n_pass_in_each(
        count in 0u32..20, ((shape, steps), skew) in calendars()
            .prop_flat_map(|(limit, window)| (Just(limit), steps(window))).prop_flat_map(|trace| (Just(trace), 0..DAY)),
    ) {
        let (bucket, limit) = (Shared::default(), Limit { count, ..shape });
        let mut model = CalendarModel::default();
        for (now, cost) in instants(&steps) {
            let now = clock(now - BEGIN, now - BEGIN + skew);
            let expected = model.would_pass(&limit, now, cost);
            prop_assert_eq!(charges(&bucket, &limit, now, cost), expected, "at {:?}", now);
            if expected {
                model.admit(&limit, now, cost);
            }
            prop_assert!(model.passed_within(&limit, now) <= u64::from(count));
        }
    }

    #[test]
    fn a_clock_that_is_set_to_and_fro_over_a_boundary_admits_n_in_each_window_of_utc(
        count in 0u32..10, times in vec((-30i64..30, 0..SECOND, cost()), 1..200),
    ) {
        // A minute that the clock goes in, whose middle is a boundary of all windows; and a trace of it onwards.
        for (limit, _) in [MINUTE, 3600 * SECOND, DAY].map(|window| (calendar(count, window, align::MULTIPLE), window))
            .into_iter().chain([(calendar(count, 30 * DAY, align::MONTH), 0)])
        {
            let bucket = Shared::default();
            let mut model = CalendarModel::default();
            let mut boot = 0;
            for (second, pause, cost) in &times {
                boot += pause;
                let now = clock(boot, 10 * SECOND).boot;
                let unix = (UNIX as i64 + 10 + second) as u64 * SECOND;
                let now = Clock { boot: now, offset: unix.wrapping_sub(now) };
                let expected = model.would_pass(&limit, now, *cost);
                prop_assert_eq!(charges(&bucket, &limit, now, *cost), expected);
                if expected {
                    model.admit(&limit, now, *cost);
                }
                prop_assert!(model.passed_within(&limit, now) <= u64::from(count));
            }
        }
    }

    #[test]
    fn a_clock_that_was_ahead_for_a_time_admits_no_more_than_n_in_the_window_that_it_left(
        count in 1u32..30, (shape, window) in calendars(), before in vec(cost(), 0..40), windows in 0..100u64,
        meanwhile in vec(cost(), 0..20), behind in vec(cost(), 1..60),
    ) {
        let (bucket, limit) = (Shared::default(), Limit { count, ..shape });
        // So little that a CPU may have been held up for it counts where it is.
        prop_assume!(windows <= 1 || windows * window > 3 * MINUTE);
        let (now, ahead) = (clock(0, DAY), clock(0, DAY + windows * window));
        let charge = |now, costs: &[u64]| -> u64 {
            costs.iter().map(|cost| cost * u64::from(charges(&bucket, &limit, now, *cost))).sum()
        };
        let mut passed = charge(now, &before);
        let elsewhere = charge(ahead, &meanwhile);
        if CalendarModel::window(&limit, ahead) == CalendarModel::window(&limit, now) {
            passed += elsewhere;
        }
        passed += charge(now, &behind);
        prop_assert!(passed <= u64::from(count), "{} of {}", passed, count);
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
    fn a_count_that_changes_at_any_time_holds_from_then_on(
        shape in 0..6usize, counts in vec((1usize..40, 0u32..30), 1..10), steps in steps(MINUTE),
    ) {
        let limit = |count| [
            sliding(count, MINUTE), fixed(count, MINUTE), gcra(count, SECOND), calendar(count, MINUTE, align::MULTIPLE),
            penalizing(sliding(count, MINUTE)), penalizing(gcra(count, SECOND)),
        ][shape];
        let counts: Vec<u32> = counts.iter().flat_map(|(times, count)| vec![*count; *times]).collect();
        let bucket = Shared::default();
        let mut model = Model::of(&limit(1), BEGIN);
        for ((now, cost), count) in instants(&steps).zip(counts) {
            let (now, limit) = (clock(now - BEGIN, now - BEGIN), limit(count));
            let expected = model.would_pass(&limit, now, cost);
            prop_assert_eq!(charges(&bucket, &limit, now, cost), expected, "at {:?} under {:?}", now, limit);
            match expected {
                true => model.admit(&limit, now, cost),
                false => model.refuse(&limit, now, cost),
            }
        }
    }

    #[test]
    fn a_window_that_changes_at_any_time_holds_from_then_on(
        shape in 0..4usize,
        limits in vec((1u32..20, prop::sample::select(vec![SECOND, 10 * SECOND, MINUTE]), steps(10 * SECOND)), 1..6),
    ) {
        let bucket = Shared::default();
        let mut begin = BEGIN;
        for (count, window, steps) in limits {
            let limit = [
                sliding(count, window), fixed(count, window), gcra(count, window / u64::from(count)),
                calendar(count, window, align::MULTIPLE),
            ][shape];
            let mut passed = Vec::new();
            let mut last = begin;
            for (now, cost) in instants(&steps) {
                let now = now - BEGIN + begin;
                last = now;
                if charges(&bucket, &limit, clock(now - BEGIN, now - BEGIN), cost) {
                    passed.push((now / TICK_NS, cost));
                }
            }
            begin = last;
            prop_assert!(most_within(&passed, window / TICK_NS) <= 2 * u64::from(count));
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
            prop_assert_eq!(limit::usage(&bucket.bucket(), &changed, Clock::of_boot(now)).used, u64::from(used));
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
    fn a_limit_that_turns_to_the_calendar_and_back_lets_nobody_wait_for_years(
        count in 1u32..30, sent in vec(cost(), 0..40), shape in any::<bool>(), days in 1..2000u64,
    ) {
        // The same words mean ticks to one of them and seconds to the other.
        let plain = if shape { sliding(count, MINUTE) } else { fixed(count, MINUTE) };
        let aligned = calendar(count, MINUTE, align::MULTIPLE);
        for (before, behind) in [(plain, aligned), (aligned, plain)] {
            let bucket = Shared::default();
            let now = clock(days * DAY, days * DAY);
            for cost in &sent {
                charges(&bucket, &before, now, *cost);
            }
            charges(&bucket, &behind, now, 1);
            let later = clock(days * DAY + 2 * MINUTE, days * DAY + 2 * MINUTE);
            prop_assert_eq!(limit::remaining(&bucket.bucket(), &behind, later), u64::from(count));
        }
    }

    #[test]
    fn limits_that_penalize_are_their_definition(count in 0u32..20, shape in any::<bool>(), steps in steps(MINUTE)) {
        let limit = penalizing(if shape { sliding(count, MINUTE) } else { gcra(count, SECOND) });
        let bucket = Shared::default();
        let mut model = Model::of(&limit, BEGIN);
        for (now, cost) in instants(&steps) {
            let now = Clock::of_boot(now);
            let expected = model.would_pass(&limit, now, cost);
            prop_assert_eq!(charges(&bucket, &limit, now, cost), expected, "at {}", now.boot - BEGIN);
            match expected {
                true => model.admit(&limit, now, cost),
                false => model.refuse(&limit, now, cost),
            }
        }
    }

    #[test]
    fn limits_that_penalize_admit_no_more_than_others(
        count in 1u32..20, (window, steps) in traces(), length in 1..MINUTE * 10,
    ) {
        let interval = window / u64::from(count);
        let within = |limit: Limit, length| {
            let bucket = Shared::default();
            let passed: Vec<_> =
                instants(&steps).filter(|(now, cost)| charges(&bucket, &limit, Clock::of_boot(*now), *cost)).collect();
            most_within(&passed, length)
        };
        let (sliding, burst) = (penalizing(sliding(count, window)), penalizing(gcra(count, interval)));
        prop_assert!(within(sliding, window) < 2 * u64::from(count));
        prop_assert!(within(burst, length) <= u64::from(count) + length / interval);
    }

    /// Whoever is faster than the limit all the time gets what it lets pass at once, and then nothing for ever.
    #[test]
    fn under_a_limit_that_penalizes_who_does_not_slow_down_stays_refused(
        count in 1u32..30, window in windows(), paces in vec(0.0..1.0f64, 200),
    ) {
        let interval = window / u64::from(count);
        for limit in [penalizing(sliding(count, window)), penalizing(gcra(count, interval))] {
            let bucket = Shared::default();
            let steps: Vec<_> = paces.iter().map(|pace| ((pace * (interval - TICK_NS) as f64) as u64, 1)).collect();
            let mut refused = false;
            for (now, _) in instants(&steps) {
                let passes = passes(&bucket, &limit, now);
                prop_assert!(!(refused && passes), "let in at {} under {:?}", now - BEGIN, limit);
                refused |= !passes;
            }
        }
    }

    /// And whoever then waits is let in when it was told to be, which is never far.
    #[test]
    fn under_a_limit_that_penalizes_who_waits_is_let_in(count in 1u32..60, shape in 4..6usize, (window, steps) in traces()) {
        let (limit, bucket, last) = used(count, shape, window, &steps, 0);
        let retry = limit::retry(&bucket.bucket(), &limit, last, 1);
        let most = if shape == 4 { window / 2 * 3 } else { window };
        // One request more or less than half of the doubled limit, and long windows are rounded up.
        prop_assert!(retry <= most + window / u64::from(count) + (window >> 24) + TICK_NS, "{} of {}", retry, window);
        prop_assert!(passes(&bucket, &limit, last.boot + retry));
    }

    #[test]
    fn what_remains_is_what_passes(count in 1u32..60, shape in 0..4usize, steps in steps(MINUTE)) {
        let limit = [
            sliding(count, MINUTE), fixed(count, MINUTE), gcra(count, SECOND), calendar(count, MINUTE, align::MULTIPLE),
        ][shape];
        let bucket = Shared::default();
        let mut last = clock(0, 0);
        for (now, cost) in instants(&steps) {
            last = clock(now - BEGIN, now - BEGIN);
            charges(&bucket, &limit, last, cost);
        }
        let remaining = limit::remaining(&bucket.bucket(), &limit, last);
        for _ in 0..remaining {
            prop_assert!(charges(&bucket, &limit, last, 1));
        }
        prop_assert!(!charges(&bucket, &limit, last, 1));
    }

    #[test]
    fn a_bucket_that_is_moved_to_another_boot_is_used_as_if_the_first_had_gone_on(
        count in 1u32..60, shape in 0..6usize, (window, steps) in traces(), skew in 0..2 * MINUTE,
        age in 0..2 * 366 * DAY, up in 0..1u64 << 50, later in 0..366 * DAY,
    ) {
        let (limit, bucket, last) = used(count, shape, window, &steps, skew);
        for age in [0, age % window, age % (2 * window), age] {
            let on = Clock { boot: last.boot + age, ..last };
            // Seen in whole ticks, both boots began at the same instant.
            let boot = up - up % TICK_NS + on.boot % TICK_NS;
            let anew = Clock { boot, offset: on.boot.wrapping_add(on.offset).wrapping_sub(boot) };
            let moved = limit::moved(&bucket.bucket(), last.boot, anew.boot, age);
            for later in [0, later % window, later] {
                let [on, anew] = [on, anew].map(|clock| Clock { boot: clock.boot + later, ..clock });
                prop_assert_eq!(
                    limit::usage(&moved, &limit, anew), limit::usage(&bucket.bucket(), &limit, on),
                    "{} ns and {} later", age, later
                );
            }
        }
    }

    #[test]
    fn after_the_time_to_retry_a_cost_passes_and_after_the_reset_all_do(
        count in 1u32..60, shape in 0..6usize, (window, steps) in traces(), cost in 1u64..70, skew in 0..2 * MINUTE,
    ) {
        let (limit, bucket, last) = used(count, shape, window, &steps, skew);
        let later = |time| Clock { boot: last.boot + time, ..last };
        let remaining = |time| limit::remaining(&bucket.bucket(), &limit, later(time));
        let usage = limit::usage(&bucket.bucket(), &limit, last);
        prop_assert_eq!(usage.retry, limit::retry(&bucket.bucket(), &limit, last, 1));
        let retry = limit::retry(&bucket.bucket(), &limit, last, cost);
        prop_assert_eq!(retry == 0, usage.remaining >= cost);
        if cost > u64::from(count) {
            prop_assert_eq!(retry, u64::MAX);
        } else {
            prop_assert!(remaining(retry) >= cost);
            // Where the weights of long windows are rounded, a little later than need be; else not.
            let early = if matches!(shape, 0 | 4) { window >> 24 } else { 0 } + TICK_NS;
            prop_assert!(retry <= early || remaining(retry - early) < cost, "{} ns", retry);
        }
        let after = usage.reset + TICK_NS;
        prop_assert_eq!(limit::usage(&bucket.bucket(), &limit, later(after)).used, 0);
        prop_assert_eq!(remaining(after), u64::from(count));
    }

    #[test]
    fn a_clock_that_was_set_back_over_a_boundary_tells_when_a_cost_passes(
        count in 1u32..10, before in vec(cost(), 0..20), behind in vec(cost(), 0..20), cost in 1u64..10,
    ) {
        let (bucket, limit) = (Shared::default(), calendar(count, MINUTE, align::MULTIPLE));
        for (costs, now) in [(before, clock(0, 9 * SECOND)), (behind, clock(1, 10 * SECOND))] {
            for cost in costs {
                charges(&bucket, &limit, now, cost);
            }
        }
        let now = clock(2, 9 * SECOND + 5);
        let retry = limit::retry(&bucket.bucket(), &limit, now, cost);
        if cost > u64::from(count) {
            prop_assert_eq!(retry, u64::MAX);
        } else {
            prop_assert!([0, SECOND - 5, SECOND - 5 + MINUTE].contains(&retry), "{}", retry);
            for earlier in [0, SECOND - 5, SECOND - 5 + MINUTE] {
                let remaining = limit::remaining(&bucket.bucket(), &limit, Clock { boot: now.boot + earlier, ..now });
                prop_assert!(earlier >= retry || remaining < cost);
                prop_assert!(earlier != retry || remaining >= cost);
            }
        }
    }
}

#[test]
fn a_count_of_zero_refuses_everything() {
    for algorithm in [Algorithm::Sliding, Algorithm::Fixed, Algorithm::Gcra] {
        let bucket = Shared::default();
        let limit = Limit { algorithm: algorithm as u16, window: MINUTE / TICK_NS, interval: 1, ..Limit::default() };
        assert!(!passes(&bucket, &limit, BEGIN), "{algorithm:?}");
        assert_eq!(limit::usage(&bucket.bucket(), &limit, Clock::of_boot(BEGIN)).retry, u64::MAX, "{algorithm:?}");
    }
}

#[test]
fn the_largest_count_and_window_do_not_overflow() {
    let limit = sliding(limit::MAX_COUNT, 366 * DAY);
    let bucket = Shared::default();
    assert!(charges(&bucket, &limit, Clock::of_boot(BEGIN), u64::from(limit::MAX_COUNT)));
    assert!(!passes(&bucket, &limit, BEGIN + 366 * DAY));
    assert!(passes(&bucket, &limit, BEGIN + 366 * DAY + DAY));
}

#[test]
fn the_largest_count_of_the_calendar_does_not_overflow_when_counts_are_taken_over() {
    let limit = calendar(limit::MAX_COUNT, DAY, align::MULTIPLE);
    let (bucket, most) = (Shared::default(), u64::from(limit::MAX_COUNT));
    assert!(charges(&bucket, &limit, clock(0, 10 * DAY), most));
    assert!(charges(&bucket, &limit, clock(0, 20 * DAY), most));
    assert!(!charges(&bucket, &limit, clock(0, 10 * DAY), 1));
    assert_eq!(limit::usage(&bucket.bucket(), &limit, clock(0, 10 * DAY)).used, most);
}

#[test]
fn what_was_used_in_a_time_far_ahead_counts_in_the_window_that_it_really_was_and_in_no_other() {
    let limit = calendar(3, DAY, align::MULTIPLE);
    for asked in [0, 5] {
        let bucket = Shared::default();
        assert!((0..3).all(|_| charges(&bucket, &limit, clock(0, 4000 * DAY), 1)));
        assert!((0..asked).all(|_| !charges(&bucket, &limit, clock(0, 0), 1)));
        let usage = limit::usage(&bucket.bucket(), &limit, clock(0, 0));
        assert_eq!((usage.used, usage.remaining, usage.retry), (3, 0, 10 * SECOND));
        assert_eq!(charges(&bucket, &limit, clock(0, 10 * SECOND), 1), asked > 0);
    }
}

#[test]
fn a_charge_to_the_window_before_is_given_back_to_that() {
    let (bucket, limit) = (Shared::default(), calendar(10, MINUTE, align::MULTIPLE));
    let (before, behind) = (clock(0, 9 * SECOND), clock(0, 10 * SECOND));
    let used = |now| limit::usage(&bucket.bucket(), &limit, now).used;
    assert!(charges(&bucket, &limit, before, 3));
    assert!(charges(&bucket, &limit, behind, 5));
    let Outcome::Charged(token) = bucket::charge(&bucket.cells(), &limit, before, 4) else { panic!("refused") };
    assert_eq!((used(before), used(behind)), (7, 5));
    assert!(limit::refund(&bucket.cells(), &limit, token, 4));
    assert_eq!((used(before), used(behind)), (3, 5));
}

#[test]
fn a_cost_above_what_remains_is_refused_and_charges_nothing() {
    let burst = gcra(10, SECOND);
    for limit in [sliding(10, MINUTE), fixed(10, MINUTE), burst, calendar(10, MINUTE, align::MULTIPLE)] {
        let (bucket, now) = (Shared::default(), clock(0, 0));
        assert_eq!(bucket::charge(&bucket.cells(), &limit, now, 11), Outcome::Refused);
        assert_eq!(limit::remaining(&bucket.bucket(), &limit, now), 10);
        assert!(charges(&bucket, &limit, now, 10));
    }
}

#[test]
fn what_is_counted_of_refused_requests_ends_at_twice_the_limit_and_stays_in_its_field() {
    for count in [1, 100, limit::MAX_COUNT / 2, limit::MAX_COUNT / 2 + 1, limit::MAX_COUNT - 1, limit::MAX_COUNT] {
        let limit = penalizing(sliding(count, MINUTE));
        let twice = u64::from(count) * 2;
        let most = twice.min(limit::MAX_COUNT.into());
        let bucket = Shared::default();
        // All at once, more often than any cost needs.
        assert!(charges(&bucket, &limit, clock(0, 0), count.into()));
        let mut used = 0;
        for cost in [1, limit::MAX_COST, count.into(), count.into(), limit::MAX_COUNT.into(), limit::MAX_COUNT.into()] {
            assert!(!charges(&bucket, &limit, clock(1, 1), cost), "{cost} of {count}");
            let now = limit::usage(&bucket.bucket(), &limit, clock(1, 1)).used;
            assert!(now >= used && now <= most, "{now} of {count}");
            used = now;
        }
        assert_eq!(used, most, "{count}");
        // One window on it is the previous count, whole, and the window's own is none.
        let next = clock(MINUTE, MINUTE);
        assert_eq!(limit::usage(&bucket.bucket(), &limit, next).used, most);
        assert_eq!(limit::usage(&bucket.bucket(), &limit, clock(2 * MINUTE, 2 * MINUTE)).used, 0);
    }
    let limit = penalizing(gcra(10, SECOND));
    let bucket = Shared::default();
    assert!((0..1000).map(|_| passes(&bucket, &limit, BEGIN)).filter(|passed| *passed).count() == 10);
    assert_eq!(bucket.bucket().arrival, BEGIN + 19 * SECOND);
    assert_eq!(limit::retry(&bucket.bucket(), &limit, Clock::of_boot(BEGIN), 1), 10 * SECOND);
}

#[test]
fn what_was_counted_stays_if_the_limit_is_lowered_and_no_more_is_added() {
    let (bucket, before) = (Shared::default(), penalizing(sliding(100, MINUTE)));
    (0..300).for_each(|_| _ = passes(&bucket, &before, BEGIN));
    let used = |limit: &Limit| limit::usage(&bucket.bucket(), limit, Clock::of_boot(BEGIN)).used;
    assert_eq!(used(&before), 200);
    let lowered = penalizing(sliding(20, MINUTE));
    assert!(!passes(&bucket, &lowered, BEGIN));
    assert_eq!(used(&lowered), 200);
    // Raised, it has as much more as it is raised by above what was counted.
    let raised = sliding(250, MINUTE);
    assert_eq!((0..300).filter(|_| passes(&bucket, &raised, BEGIN)).count(), 50);
}

#[test]
fn a_fixed_limit_counts_nothing_that_it_refuses() {
    for limit in [penalizing(fixed(3, MINUTE)), penalizing(calendar(3, MINUTE, align::MULTIPLE))] {
        let bucket = Shared::default();
        (0..10).for_each(|_| _ = charges(&bucket, &limit, clock(0, 0), 1));
        assert_eq!(limit::usage(&bucket.bucket(), &limit, clock(0, 0)).used, 3, "{limit:?}");
    }
}

#[test]
fn an_idle_bucket_is_as_good_as_new_after_any_number_of_windows() {
    for windows in [2u64, 3, 127, 128, 254, 255, 256, 257, 1000] {
        for limit in [sliding(3, SECOND), fixed(3, SECOND), calendar(3, SECOND, align::MULTIPLE)] {
            let bucket = Shared::default();
            let mut time = 0;
            for _ in 0..600 {
                let admitted = (0..5).filter(|_| charges(&bucket, &limit, clock(time, time), 1)).count();
                assert_eq!(admitted, 3, "after {windows} windows");
                time += windows * SECOND;
            }
        }
    }
}

/// Lets four threads send until `tries` requests have been sent; gives what passed.
fn hammer(limit: &Limit, tries: u64, cost: u64, now: impl Fn(u64) -> Clock + Sync) -> u64 {
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
                    if charges(&bucket, limit, now(number), cost) {
                        passed.fetch_add(cost, Ordering::Relaxed);
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
        for limit in [
            sliding(count, MINUTE),
            fixed(count, MINUTE),
            burst,
            calendar(count, MINUTE, align::MULTIPLE),
            penalizing(sliding(count, MINUTE)),
            penalizing(burst),
        ] {
            let passed = hammer(&limit, u64::from(count) * 2 + 1000, 1, |_| clock(0, 0));
            assert_eq!(passed, u64::from(count), "of {count} under {limit:?}");
        }
    }
}

#[test]
fn as_many_as_fit_pass_of_requests_that_cost_more_however_many_threads_send() {
    for cost in [3, 7, limit::MAX_COST] {
        let burst = gcra(10_000, DAY);
        for limit in [sliding(10_000, MINUTE), fixed(10_000, MINUTE), burst, calendar(10_000, MINUTE, align::MULTIPLE)]
        {
            let passed = hammer(&limit, 10_000, cost, |_| clock(0, 0));
            assert_eq!(passed, 10_000 / cost * cost, "of {cost} each under {limit:?}");
        }
    }
}

#[test]
fn exactly_n_pass_in_each_of_many_windows_however_many_threads_send() {
    // 1000 tries in each window, of which the threads race to open the next.
    for limit in [fixed(100, SECOND), calendar(100, SECOND, align::MULTIPLE)] {
        let passed = hammer(&limit, 50_000, 1, |number| clock(number / 1000 * SECOND, number / 1000 * SECOND));
        // A thread that is late with a try meets the next window, or a much later one: it counts there, and once.
        assert_eq!(passed, 5000);
    }
}

#[test]
fn exactly_n_pass_in_each_of_two_windows_whose_boundary_threads_see_apart() {
    // Every other one is still before it.
    let limit = calendar(1000, MINUTE, align::MULTIPLE);
    let passed = hammer(&limit, 10_000, 1, |number| clock(0, 10 * SECOND - number % 2));
    assert_eq!(passed, 2000);
}
