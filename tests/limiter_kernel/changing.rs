//! Several limits of one request, of two principals that share some of them, charged from all CPUs at once while each is
//! lowered and raised: by numbers that look random and are the same in every run.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use enforcer_ebpf::abi::{
    Bucket, Buckets, LIMITS, Leaf, Limit, METHODS, Per, Principal, Rule, Ruleset, Service, State, map, scope,
};
use enforcer_ebpf::limit::{self, Clock};
use enforcer_tests::bucket::{fixed, gcra, sliding};
use enforcer_tests::client::get;
use enforcer_tests::kernel::{Loaded, Program};
use enforcer_tests::packet::Frame;
use enforcer_tests::random::Random;
use enforcer_tests::tables::{Tables, policy};
use nix::sched::sched_setaffinity;
use nix::sys::sysinfo::sysinfo;
use nix::unistd::Pid;

use super::{HOUR, cpus, only};

const KEYS: [&str; 2] = ["changing_principal_1", "changing_principal_2"];
const PRINCIPALS: [u32; 2] = [7, 8];
/// How often each set of limits is another.
const VERSIONS: u32 = 4;
/// The route's number among the scopes.
const ROUTE: u64 = scope::ROUTES;
/// Requests of a CPU at once, and how often at least and at most.
const REPEAT: u32 = 500;
const TIMES: usize = 8;
const MOST_TIMES: usize = 2000;
/// Changes while they are sent, at least: the changer has no CPU of its own.
const CHANGES: u32 = 11;

/// Limits that are there in several versions, in slots side by side: of the same windows, with other counts.
struct Versions {
    first: u32,
    limits: Vec<Vec<Limit>>,
}

impl Versions {
    fn new(random: &mut Random, tables: &mut Tables, first: u32, most: usize) -> Self {
        let kinds: Vec<usize> = (0..=random.below(most)).map(|_| random.below(3)).collect();
        let limit = |kind: usize, count: u32| match kind {
            0 => sliding(count, HOUR),
            1 => fixed(count, 2 * HOUR),
            // One comes back in an hour, which no run takes.
            _ => gcra(count, HOUR),
        };
        let mut version = || kinds.iter().map(|&kind| limit(kind, 1 + random.below(900) as u32)).collect();
        let limits: Vec<Vec<Limit>> = (0..VERSIONS).map(|_| version()).collect();
        for (slot, limits) in (first..).zip(&limits) {
            tables.policies.insert(slot, policy(limits));
        }
        Self { first, limits }
    }

    /// The most that any version allows of its limit of this number.
    fn most(&self, number: usize) -> u64 {
        self.limits.iter().map(|version| u64::from(version[number].count)).max().unwrap_or(0)
    }

    /// Holds what lies in buckets against how much was admitted; whether the last version has no room for `cost` more.
    fn hold(&self, buckets: &[Bucket; LIMITS], admitted: u64, cost: u64, now: Clock) -> Result<bool> {
        let last = self.limits.last().context("no version")?;
        let mut is_full = false;
        for (number, (limit, bucket)) in last.iter().zip(buckets).enumerate() {
            let usage = limit::usage(bucket, limit, now);
            ensure!(usage.used == admitted, "{limit:?} has {} used of {admitted} admitted", usage.used);
            ensure!(admitted <= self.most(number), "{admitted} of at most {} by {limit:?}", self.most(number));
            is_full |= usage.remaining < cost;
        }
        Ok(is_full)
    }
}

fn request(key: &str) -> Vec<u8> {
    let client = SocketAddr::from(([10, 9, 0, 1], 40_000));
    let server = SocketAddr::from(([10, 9, 0, 2], 8000));
    Frame::data(client, server, 1, &get("/", Some(key))).build()
}

fn uptime() -> Result<Clock> {
    // In whole seconds; not before the first charge, and not long after it beside windows of hours.
    Ok(Clock::of_boot(sysinfo()?.uptime().as_nanos() as u64 + 1_000_000_000))
}

/// Sends from all CPUs, each for both principals in turn, while `change` is called over and over, and for as long as it has
/// not been often enough.
fn storm(loaded: &Loaded, mut change: impl FnMut() -> Result<()> + Send) -> Result<()> {
    let frames = KEYS.map(request);
    let (done, changes) = (AtomicBool::new(false), &AtomicU32::new(0));
    std::thread::scope(|scope| {
        let changer = scope.spawn(|| -> Result<()> {
            while !done.load(Ordering::Relaxed) {
                change()?;
                changes.fetch_add(1, Ordering::Relaxed);
                std::thread::yield_now();
            }
            Ok(())
        });
        let senders: Vec<_> = cpus()?
            .into_iter()
            .map(|cpu| {
                let frames = &frames;
                scope.spawn(move || -> Result<()> {
                    sched_setaffinity(Pid::from_raw(0), &only(cpu)?).context("pinning a thread to its CPU")?;
                    let ends = |time: usize| time >= TIMES && changes.load(Ordering::Relaxed) >= CHANGES;
                    (0..MOST_TIMES)
                        .take_while(|&time| !ends(time))
                        .try_for_each(|time| loaded.repeat(&frames[(time + cpu) % 2], REPEAT))
                })
            })
            .collect();
        let sent: Vec<_> = senders.into_iter().map(|sender| sender.join()).collect();
        done.store(true, Ordering::Relaxed);
        let Ok(changed) = changer.join() else { bail!("the changer panicked") };
        for sent in sent {
            sent.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        changed?;
        let changes = changes.load(Ordering::Relaxed);
        ensure!(changes >= CHANGES, "only {changes} changes");
        Ok(())
    })
}

/// One policy, by a seed.
fn hold(seed: u64) -> Result<()> {
    let mut random = Random::new(seed);
    let mut tables = Tables::new();
    let own = PRINCIPALS.map(|principal| Versions::new(&mut random, &mut tables, 100 * principal, LIMITS));
    let ceiling = Versions::new(&mut random, &mut tables, 1000, 2);
    let source = Versions::new(&mut random, &mut tables, 1100, 2);
    let route = Versions::new(&mut random, &mut tables, 1200, 1);
    let cost = 1 + random.below(3) as u32;
    for ((key, principal), own) in KEYS.iter().zip(PRINCIPALS).zip(&own) {
        tables = tables.with_key(key, principal, 0);
        tables.policies.insert(principal, policy(&own.limits[0]));
    }
    // Of the ceiling and the source there is a version in each set of rules, by which the service changes to it.
    for version in 0..VERSIONS {
        let (service, source) = (ceiling.first + version, source.first + version);
        tables.rulesets.insert(1 + version, Ruleset { routes: 1, service, source, ..Ruleset::default() });
    }
    tables.services.entry(8000).or_insert(Service::DEFAULT).rules = 1;
    tables.states = vec![State::default(), State { other: 0, leaf: 1 }];
    tables.leaves = vec![Leaf::default(), Leaf { rules: [1; METHODS], ..Leaf::default() }];
    let shared = Rule { scope: ROUTE as u32, policy: route.first, per: Per::Service as u32, cost, ..Rule::default() };
    tables.rules = vec![Rule::default(), shared];

    let loaded = Loaded::new(Program::Judge, &tables)?;
    let meters = loaded.meters()?;
    let mut services = loaded.open_array::<Service>(map::SERVICES)?;
    let mut rules = loaded.open_array::<Rule>(map::RULES)?;
    let mut put = |principal: usize, version: u32, all: u32, of_route: u32| -> Result<()> {
        let slot = own[principal].first + version;
        meters.set_principal(PRINCIPALS[principal], Principal { policy: slot, trial: 0 });
        services.set(0, Service { rules: 1 + all, ..Service::DEFAULT }, 0)?;
        Ok(rules.set(1, Rule { policy: route.first + of_route, ..shared }, 0)?)
    };
    let mut version = || random.below(VERSIONS as usize) as u32;
    let mut turn = 0;
    storm(&loaded, || {
        turn += 1;
        put(turn % 2, version(), version(), version())
    })?;

    // Once nothing changes any more, as many are admitted as there is room for.
    let last = VERSIONS - 1;
    (0..2).try_for_each(|principal| put(principal, last, last, last))?;
    for key in KEYS {
        loaded.repeat(&request(key), 2 * REPEAT)?;
    }
    let counted = [loaded.meter(PRINCIPALS[0])?, loaded.meter(PRINCIPALS[1])?];
    let cost = u64::from(cost);
    let admitted = counted.map(|meter| cost * meter.allowed);
    let all: u64 = admitted.iter().sum();
    let now = uptime()?;
    let buckets = |name: &str, rule: u64| -> Result<Buckets> {
        let all = loaded.buckets(name)?;
        let [buckets] =
            all.into_iter().filter(|(scope, _)| scope.rule == rule).map(|(_, buckets)| buckets).collect::<Vec<_>>()[..]
        else {
            bail!("not one bucket of {rule} in {name}");
        };
        Ok(buckets)
    };
    let mut is_full =
        ceiling.hold(&buckets(map::BUCKETS, scope::SERVICE)?.limits, all, cost, now).context("the ceiling")?;
    is_full |=
        source.hold(&buckets(map::SOURCE_BUCKETS, scope::SOURCE)?.limits, all, cost, now).context("the source")?;
    is_full |= route.hold(&buckets(map::BUCKETS, ROUTE)?.limits, all, cost, now).context("the route")?;
    for ((own, meter), admitted) in own.iter().zip(counted).zip(admitted) {
        let own = own.hold(&meter.buckets.limits, admitted, cost, now).context("a principal")?;
        ensure!(own || is_full, "a principal was refused though there is room");
    }
    ensure!(all > 0, "nothing was admitted");
    Ok(())
}

#[test]
fn no_limit_of_several_is_exceeded_while_all_change_and_what_is_refused_leaves_nothing_charged() -> Result<()> {
    (1..=8).try_for_each(|seed| hold(seed).with_context(|| format!("seed {seed}")))
}

/// Windows of about a millisecond, so that they roll while the limit changes.
#[test]
fn short_windows_of_each_algorithm_keep_to_their_bound_while_the_limit_changes() -> Result<()> {
    const WINDOW: u64 = 1 << 20;
    const COUNTS: [u32; 4] = [2, 10, 3, 7];
    const STORMS: usize = 50;
    let versions: [fn(u32) -> Limit; 3] =
        [|count| sliding(count, WINDOW), |count| fixed(count, WINDOW), |count| gcra(count, WINDOW)];
    for (algorithm, version) in versions.into_iter().enumerate() {
        let mut tables = Tables::new();
        for ((key, principal), slot) in KEYS.iter().zip(PRINCIPALS).zip(PRINCIPALS) {
            tables = tables.with_key(key, PRINCIPALS[0], 0);
            tables.policies.insert(principal, policy(&[version(COUNTS[0])]));
            tables.policies.extend((100 * slot..).zip(COUNTS.map(|count| policy(&[version(count)]))));
        }
        let loaded = Loaded::new(Program::Judge, &tables)?;
        let meters = loaded.meters()?;
        let mut turn = 0;
        let begin = Instant::now();
        let mut allowed = 0;
        // By the least of the limits a storm may be over before more pass than one window of the most would hold.
        for _ in 0..STORMS {
            storm(&loaded, || {
                turn = (turn + 1) % COUNTS.len() as u32;
                let slot = Principal { policy: 100 * PRINCIPALS[0] + turn, trial: 0 };
                meters.set_principal(PRINCIPALS[0], slot);
                Ok(())
            })?;
            allowed = loaded.meter(PRINCIPALS[0])?.allowed;
            if allowed > 10 {
                break;
            }
        }
        let windows = begin.elapsed().as_nanos() as u64 / WINDOW + 2;
        // A rate of one in a window, and a burst, of which one more than it holds is never ahead.
        let most = if algorithm == 2 { windows + 10 } else { 10 * windows };
        ensure!(allowed <= most, "algorithm {algorithm}: {allowed} passed in at most {windows} windows");
        ensure!(allowed > 10, "algorithm {algorithm}: no window rolled");
    }
    Ok(())
}
