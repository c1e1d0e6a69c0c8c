//! Charges of several claims beside a model of each of their limits, and under threads.

use std::sync::atomic::{AtomicU64, Ordering};

use enforcer_ebpf::abi::{Bucket, LIMITS, Limit, Policy, Scope, align, scope};
use enforcer_ebpf::charge::{CLAIMS, Charge, Claim, Place, table};
use enforcer_ebpf::limit::{self, Clock};
use enforcer_tests::bucket::{Shared, calendar, fixed, gcra, penalizing, sliding};
use enforcer_tests::limiter_model::Model;
use enforcer_tests::tables;
use proptest::collection::vec;
use proptest::prelude::*;

const SECOND: u64 = 1_000_000_000;
const MINUTE: u64 = 60 * SECOND;
const BEGIN: u64 = 1 << 40;
/// 2026-01-01T00:00:00Z.
const UNIX: u64 = 1_767_225_600 * SECOND;

/// As much since [`BEGIN`] as since [`UNIX`].
const fn clock(time: u64) -> Clock {
    Clock { boot: BEGIN + time, offset: UNIX.wrapping_sub(BEGIN) }
}

/// Limits that apply together, and their buckets.
#[derive(Debug, Default)]
struct Set {
    limits: Vec<Limit>,
    buckets: [Shared; LIMITS],
}

impl Set {
    fn new(limits: &[Limit]) -> Self {
        Self { limits: limits.to_vec(), ..Self::default() }
    }

    fn words(&self) -> Vec<Bucket> {
        self.buckets.iter().map(Shared::bucket).collect()
    }

    fn used(&self, now: Clock) -> Vec<u64> {
        let used = |(limit, bucket): (&Limit, &Shared)| limit::usage(&bucket.bucket(), limit, now).used;
        self.limits.iter().zip(&self.buckets).map(used).collect()
    }
}

/// What a claim is about.
#[derive(Debug, Default)]
struct Subject {
    own: Set,
    observes: bool,
    candidate: Option<Set>,
}

impl Subject {
    fn policy(&self, number: usize) -> Policy {
        Policy {
            flags: Policy::IN_USE | if self.observes { Policy::OBSERVE } else { 0 },
            // Of another slot than any claim's.
            candidate: if self.candidate.is_some() { (CLAIMS + number) as u32 } else { 0 },
            ..tables::policy(&self.own.limits)
        }
    }
}

/// Charges all subjects at once.
fn charge(subjects: &[Subject], now: Clock, cost: u64) -> Charge {
    charge_between(subjects, now, cost, |_, _| {})
}

/// Likewise; `before` each step, which it gets by its number, something may happen.
fn charge_between(subjects: &[Subject], now: Clock, cost: u64, before: impl Fn(u32, &mut Charge)) -> Charge {
    let mut charge = Charge::default();
    charge.begin(now.boot, cost);
    charge.set_offset(now.offset);
    for number in 0..subjects.len() {
        let scope = Scope { rule: number as u64, subject: [0; 2] };
        assert!(charge.claim(Claim { table: table::NAMED, policy: 1 + number as u32, scope }));
    }
    for (number, subject) in subjects.iter().enumerate() {
        charge.look_at(number, &subject.policy(number));
    }
    let mut steps = 0;
    loop {
        before(steps, &mut charge);
        let Place { claim, candidate, limit } = charge.place();
        assert_eq!(charge.at(claim).scope.rule, claim as u64);
        let subject = &subjects[claim];
        let (set, policy) = match &subject.candidate {
            Some(set) if candidate => (set, tables::policy(&set.limits)),
            _ => (&subject.own, subject.policy(claim)),
        };
        steps += 1;
        assert!(steps <= Charge::MAX_STEPS);
        if !charge.step(&set.buckets[limit].cells(), &policy) {
            break;
        }
    }
    let mut goes_on = charge.settle();
    steps = 0;
    while goes_on {
        let Place { claim, candidate, limit } = charge.place();
        let subject = &subjects[claim];
        let set = if candidate { subject.candidate.as_ref().expect("a candidate") } else { &subject.own };
        goes_on = charge.penalize(Some((&set.buckets[limit].cells(), &tables::policy(&set.limits))));
        steps += 1;
        assert!(steps <= Charge::MAX_PENALTIES);
    }
    charge
}

/// Ends it where something is not there, and lets it go on.
fn interrupt(charge: &mut Charge) {
    charge.fail();
    assert!(charge.lacks());
    charge.resume();
    assert!(!charge.lacks());
}

#[test]
fn a_charge_that_lacks_something_twice_is_refused() {
    let mut charge = Charge::default();
    charge.begin(BEGIN, 1);
    interrupt(&mut charge);
    assert!(charge.result().is_ok());
    charge.fail();
    assert!(!charge.lacks() && charge.result().is_err());
    charge.begin(BEGIN, 1);
    assert!(charge.result().is_ok());
    interrupt(&mut charge);
}

/// Somebody takes the last place of the second limit between its test and its charge.
#[test]
fn what_is_interrupted_while_it_is_given_back_is_given_back_and_stays_refused() {
    // Two tests, two charges of which one is refused, and four places in which something may have to be given back.
    for interrupted in 0..8 {
        let subjects = [sliding(5, MINUTE), sliding(1, MINUTE)]
            .map(|limit| Subject { own: Set::new(&[limit]), ..Subject::default() });
        let charged = charge_between(&subjects, clock(0), 1, |step, charge| {
            if step == 2 {
                let cells = subjects[1].own.buckets[0].cells();
                let moment = limit::Moment::of(clock(0), &subjects[1].own.limits[0]);
                assert!(matches!(
                    limit::attempt(&cells, &subjects[1].own.limits[0], &moment, 1),
                    limit::Outcome::Charged(_)
                ));
            }
            if step == interrupted {
                interrupt(charge);
            }
        });
        assert_eq!(charged.result(), Err(Place { claim: 1, candidate: false, limit: 0 }));
        assert_eq!(subjects[0].own.used(clock(0)), [0], "interrupted before step {interrupted}");
    }
}

fn limits() -> impl Strategy<Value = Vec<Limit>> {
    let limit = (0..6usize, 0u32..12, prop::sample::select(vec![SECOND, 10 * SECOND, MINUTE])).prop_map(
        |(shape, count, window)| match shape {
            0 => sliding(count, window),
            1 => fixed(count, window),
            2 => gcra(count, window / 4),
            3 => calendar(count, window, align::MULTIPLE),
            4 => penalizing(sliding(count, window)),
            _ => penalizing(gcra(count, window / 4)),
        },
    );
    vec(limit, 0..=LIMITS)
}

fn subjects() -> impl Strategy<Value = Vec<Subject>> {
    let subject = (limits(), prop::bool::weighted(0.25), prop::option::weighted(0.3, limits())).prop_map(
        |(own, observes, candidate)| Subject {
            own: Set::new(&own),
            observes,
            candidate: candidate.map(|limits| Set::new(&limits)),
        },
    );
    vec(subject, 1..=CLAIMS)
}

/// The models of a set.
fn models(set: &Set) -> Vec<Model> {
    set.limits.iter().map(|limit| Model::of(limit, BEGIN)).collect()
}

fn refuses(set: &Set, models: &[Model], now: Clock, cost: u64) -> Option<usize> {
    set.limits.iter().zip(models).position(|(limit, model)| !model.would_pass(limit, now, cost))
}

/// Has those that have no room for a refused request see it.
fn refuse(set: &Set, models: &mut [Model], now: Clock, cost: u64) {
    let full = set.limits.iter().zip(models).filter(|(limit, model)| !model.would_pass(limit, now, cost));
    full.for_each(|(limit, model)| model.refuse(limit, now, cost));
}

fn admit(set: &Set, models: &mut [Model], now: Clock, cost: u64) {
    set.limits.iter().zip(models).for_each(|(limit, model)| model.admit(limit, now, cost));
}

proptest! {
    #[test]
    fn all_claims_are_charged_or_none_and_what_observes_is_counted_and_refuses_nobody(
        subjects in subjects(), steps in vec((0..3 * SECOND, 1u64..4, 0u32..40), 1..60),
    ) {
        let mut own: Vec<_> = subjects.iter().map(|subject| models(&subject.own)).collect();
        let mut candidates: Vec<_> = subjects.iter().map(|subject| subject.candidate.as_ref().map_or(vec![], models)).collect();
        let mut time = 0;
        for (step, cost, interrupted) in steps {
            time += step;
            let now = clock(time);
            let before: Vec<_> = subjects.iter().map(|subject| subject.own.words()).collect();
            let refusing = subjects.iter().zip(&own).enumerate().find_map(|(claim, (subject, models))| {
                let limit = refuses(&subject.own, models, now, cost).filter(|_| !subject.observes)?;
                Some(Place { claim, candidate: false, limit })
            });
            let charge = charge_between(&subjects, now, cost, |step, charge| {
                if step == interrupted {
                    interrupt(charge);
                }
            });
            prop_assert_eq!(charge.result(), refusing.map_or(Ok(()), Err), "at {}", time);
            prop_assert_eq!(charge.refused().scope.rule, refusing.map_or(0, |place| place.claim as u64));
            if refusing.is_some() {
                let behind: Vec<_> = subjects.iter().map(|subject| subject.own.words()).collect();
                for (subject, (before, behind)) in subjects.iter().zip(before.iter().zip(&behind)) {
                    let may_count = |limit: &Limit| limit.flags & Limit::PENALIZES != 0 && !subject.observes;
                    let words = subject.own.limits.iter().zip(before.iter().zip(behind));
                    let changed = words.filter(|(limit, (before, behind))| before != behind && !may_count(limit));
                    prop_assert_eq!(changed.count(), 0, "charged although refused at {}", time);
                }
            }
            for (claim, subject) in subjects.iter().enumerate() {
                let sets = [(Some(&subject.own), &mut own[claim]), (subject.candidate.as_ref(), &mut candidates[claim])];
                for (is_candidate, (set, models)) in [false, true].into_iter().zip(sets) {
                    let Some(set) = set else { continue };
                    let would_refuse = refuses(set, models, now, cost).is_some();
                    let refuses_nobody = is_candidate || subject.observes;
                    let expected = refusing.is_none() && refuses_nobody && would_refuse;
                    prop_assert_eq!(charge.would_refuse(claim, is_candidate), expected, "claim {} at {}", claim, time);
                    match (refusing.is_some(), refuses_nobody) {
                        (false, _) if !would_refuse => admit(set, models, now, cost),
                        (false, _) | (true, false) => refuse(set, models, now, cost),
                        (true, true) => {}
                    }
                }
            }
        }
    }
}

#[test]
fn a_refused_request_counts_at_the_limits_that_penalize_and_have_no_room_for_it() {
    let subject = |limits: &[Limit]| Subject { own: Set::new(limits), ..Subject::default() };
    let subjects = [
        // The first that refuses; one that has room; one that is over, too; one that is over and does not penalize.
        subject(&[sliding(3, MINUTE), penalizing(sliding(9, MINUTE))]),
        subject(&[penalizing(gcra(3, MINUTE)), sliding(3, 2 * MINUTE)]),
        subject(&[penalizing(sliding(3, MINUTE)), penalizing(sliding(2, SECOND))]),
    ];
    let used = || subjects.iter().map(|subject| subject.own.used(clock(0))).collect::<Vec<_>>();
    (0..2).for_each(|_| assert!(charge(&subjects, clock(0), 1).result().is_ok()));
    // The short window alone is over, and keeps the request from all others.
    assert_eq!(charge(&subjects, clock(0), 1).result(), Err(Place { claim: 2, candidate: false, limit: 1 }));
    assert_eq!(used(), [[2, 2], [2, 2], [2, 3]]);
    // A request that is too large for all but one.
    assert_eq!(charge(&subjects, clock(0), 2).result(), Err(Place { claim: 0, candidate: false, limit: 0 }));
    assert_eq!(used(), [[2, 2], [4, 2], [4, 4]]);
    assert_eq!(charge(&subjects, clock(0), 1).result(), Err(Place { claim: 1, candidate: false, limit: 0 }));
    assert_eq!(used(), [[2, 2], [5, 2], [5, 4]]);
}

#[test]
fn limits_that_refuse_nobody_count_what_they_would_have_refused() {
    let subjects = [
        Subject {
            own: Set::new(&[penalizing(sliding(2, MINUTE))]),
            observes: true,
            candidate: Some(Set::new(&[penalizing(gcra(2, MINUTE))])),
        },
        Subject { own: Set::new(&[fixed(5, MINUTE)]), ..Subject::default() },
    ];
    let used = || {
        let [observing, enforced] = &subjects;
        let candidate = observing.candidate.as_ref().expect("a candidate");
        (observing.own.used(clock(0)), candidate.used(clock(0)), enforced.own.used(clock(0)))
    };
    (0..3).for_each(|_| assert!(charge(&subjects, clock(0), 1).result().is_ok()));
    assert_eq!(used(), (vec![3], vec![3], vec![3]));
    (0..2).for_each(|_| assert!(charge(&subjects, clock(0), 1).result().is_ok()));
    assert_eq!(used(), (vec![4], vec![3], vec![5]));
    // What is refused comes to none of them.
    assert!(charge(&subjects, clock(0), 1).result().is_err());
    assert_eq!(used(), (vec![4], vec![3], vec![5]));
}

#[test]
fn where_many_share_a_bucket_no_refused_request_counts() {
    for subject in [[0, scope::OVERFLOW], [1 << 32, scope::OVERFLOW], [7, 0]] {
        let (set, policy) =
            (Set::new(&[penalizing(sliding(2, MINUTE))]), tables::policy(&[penalizing(sliding(2, MINUTE))]));
        for _ in 0..9 {
            let mut charge = Charge::default();
            charge.begin(BEGIN, 1);
            charge.claim(Claim { table: table::SOURCE, policy: 1, scope: Scope { rule: scope::SOURCE, subject } });
            charge.look_at(0, &policy);
            while charge.step(&set.buckets[0].cells(), &policy) {}
            let mut goes_on = charge.settle();
            while goes_on {
                goes_on = charge.penalize(Some((&set.buckets[charge.place().limit].cells(), &policy)));
            }
        }
        let counted = if subject[1] == scope::OVERFLOW { 2 } else { 4 };
        assert_eq!(set.used(clock(0)), [counted], "{subject:?}");
    }
}

#[test]
fn a_charge_for_which_something_is_missing_counts_nowhere() {
    let set = Set::new(&[penalizing(sliding(0, MINUTE))]);
    let mut charge = Charge::default();
    charge.begin(BEGIN, 1);
    charge.claim(Claim { table: table::NAMED, policy: 1, scope: Scope::default() });
    charge.look_at(0, &tables::policy(&set.limits));
    interrupt(&mut charge);
    charge.fail();
    assert!(charge.result().is_err() && !charge.settle());
}

#[test]
fn where_what_only_counts_is_missing_nobody_is_refused() {
    let set = Set::new(&[sliding(5, MINUTE)]);
    let policy = Policy { candidate: 2, ..tables::policy(&set.limits) };
    let mut charge = Charge::default();
    charge.begin(BEGIN, 1);
    charge.claim(Claim { table: table::NAMED, policy: 1, scope: Scope::default() });
    charge.look_at(0, &policy);
    while !charge.place().candidate {
        assert!(charge.step(&set.buckets[0].cells(), &policy));
    }
    for _ in 0..2 {
        charge.fail();
        assert!(charge.result().is_ok());
        charge.resume();
    }
    assert!(charge.result().is_ok());
    assert_eq!(set.used(clock(0)), [1]);
}

/// Has four threads charge `subjects` at one time until `tries` requests have been sent, then one until it is refused;
/// gives how many passed.
fn hammer(subjects: &[Subject], tries: u64, cost: u64) -> u64 {
    let (sent, passed) = (AtomicU64::new(0), AtomicU64::new(0));
    let send =
        || charge(subjects, clock(0), cost).result().is_ok() && passed.fetch_add(1, Ordering::Relaxed) < u64::MAX;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while sent.fetch_add(1, Ordering::Relaxed) < tries {
                    send();
                }
            });
        }
    });
    // Of two that race for the last place of two limits both may be refused.
    while send() {}
    passed.into_inner()
}

#[test]
fn as_many_as_the_tightest_limit_lets_pass_and_every_other_is_charged_for_those_alone() {
    let day = 1440 * MINUTE;
    for cost in [1, 3] {
        let subjects = [
            Subject { own: Set::new(&[fixed(9000, MINUTE), sliding(6001, MINUTE)]), ..Subject::default() },
            Subject { own: Set::new(&[calendar(6001, day, align::MULTIPLE), fixed(6001, day)]), ..Subject::default() },
            Subject { own: Set::new(&[gcra(6001, day), fixed(8000, day)]), ..Subject::default() },
        ];
        let passed = hammer(&subjects, 20_000, cost);
        assert_eq!(passed, 6001 / cost);
        for subject in &subjects {
            assert_eq!(subject.own.used(clock(0)), vec![passed * cost; 2], "{:?}", subject.own.limits);
        }
    }
}

#[test]
fn limits_that_refuse_nobody_count_no_more_than_they_would_let_pass_however_many_threads_send() {
    let subject = Subject {
        own: Set::new(&[fixed(2000, MINUTE), fixed(1000, MINUTE)]),
        observes: true,
        candidate: Some(Set::new(&[sliding(500, MINUTE)])),
    };
    let enforced = Subject { own: Set::new(&[fixed(4000, MINUTE)]), ..Subject::default() };
    let subjects = [subject, enforced];
    assert_eq!(hammer(&subjects, 8000, 1), 4000);
    let [Subject { own, candidate, .. }, enforced] = &subjects;
    let candidate = candidate.as_ref().expect("a candidate").used(clock(0));
    assert_eq!(own.used(clock(0))[1], 1000);
    assert_eq!((candidate, enforced.own.used(clock(0))), (vec![500], vec![4000]));
}

#[test]
fn counts_of_a_time_far_ahead_are_taken_over_by_what_only_looks_at_them() {
    // The second limit is over in the wrong time, so that the first is only looked at.
    let day = 1440 * MINUTE;
    let subjects = [Subject {
        own: Set::new(&[calendar(9, day, align::MULTIPLE), calendar(3, day, align::MULTIPLE)]),
        ..Subject::default()
    }];
    let time = |days| Clock { offset: UNIX.wrapping_sub(BEGIN) + days * day, ..clock(0) };
    assert!((0..3).all(|_| charge(&subjects, time(4000), 1).result().is_ok()));
    assert!(charge(&subjects, time(0), 1).result().is_err());
    assert_eq!(subjects[0].own.used(time(0)), [3, 3]);
    assert!(charge(&subjects, time(1), 1).result().is_ok());
    assert_eq!(subjects[0].own.used(time(1)), [1, 1]);
}

#[test]
fn nothing_to_charge_passes_and_no_claim_is_beyond_the_last() {
    let unlimited: Vec<_> = (0..CLAIMS).map(|_| Subject::default()).collect();
    assert!(charge(&unlimited, clock(0), 1).result().is_ok());
    let mut full = charge(&unlimited, clock(0), 1);
    assert!(!full.claim(Claim { table: table::NAMED, policy: 1, scope: Scope::default() }));
    // A slot of 0 is no claim.
    assert!(full.claim(Claim::default()));
    assert_eq!(full.len(), CLAIMS);
}
