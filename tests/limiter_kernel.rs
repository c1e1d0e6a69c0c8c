//! The limiter in the real kernel: packets for one bucket from all CPUs at once, by BPF_PROG_TEST_RUN.

#[path = "limiter_kernel/changing.rs"]
mod changing;

use std::net::SocketAddr;
use std::sync::Barrier;

use anyhow::{Context, Result, ensure};
use enforcer_ebpf::abi::{Algorithm, Limit, align};
use enforcer_ebpf::limit::{self, Clock, TICK_NS};
use enforcer_ebpf::verdict::{Count, Event, Reason};
use enforcer_tests::bucket::{calendar, fixed, gcra, penalizing, sliding};
use enforcer_tests::client::get;
use enforcer_tests::kernel::{Loaded, Program, boot};
use enforcer_tests::packet::Frame;
use enforcer_tests::tables::Tables;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

const KEY: &str = "bucket_of_all_cpus";
const SECOND: u64 = 1_000_000_000;
const HOUR: u64 = 3600 * SECOND;

fn request() -> Vec<u8> {
    let client = SocketAddr::from(([10, 9, 0, 1], 40_000));
    let server = SocketAddr::from(([10, 9, 0, 2], 8000));
    Frame::data(client, server, 1, &get("/", Some(KEY))).build()
}

/// The CPUs that the test may run on.
fn cpus() -> Result<Vec<usize>> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let cpus: Vec<usize> = (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap_or(false)).collect();
    ensure!(cpus.len() > 1, "one CPU only: nothing can race here, so this test tells nothing");
    Ok(cpus)
}

/// A set of this CPU alone.
fn only(cpu: usize) -> Result<CpuSet> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(set)
}

/// Sends `tries` packets from each CPU, all at once.
fn send_from_all_cpus(loaded: &Loaded, tries: u32) -> Result<u64> {
    let cpus = cpus()?;
    let frame = request();
    let barrier = Barrier::new(cpus.len());
    std::thread::scope(|scope| {
        let threads: Vec<_> = cpus
            .iter()
            .map(|&cpu| {
                let (frame, barrier) = (&frame, &barrier);
                scope.spawn(move || -> Result<()> {
                    let pinned =
                        sched_setaffinity(Pid::from_raw(0), &only(cpu)?).context("pinning a thread to its CPU");
                    barrier.wait();
                    pinned?;
                    loaded.repeat(frame, tries)
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    Ok(cpus.len() as u64 * u64::from(tries))
}

fn exactly(limit: Limit, count: u64) -> Result<()> {
    let tables = Tables::new().with_key(KEY, 7, 0).with_limits(7, &[limit]);
    let loaded = Loaded::new(Program::Judge, &tables)?;
    let sent = send_from_all_cpus(&loaded, (count as u32).max(1000))?;
    let (meter, totals) = (loaded.meter(7)?, loaded.totals()?);
    let passed = totals[Count::Event(Event::Allowed).index() as usize];
    let refused = totals[Count::Refused(Reason::OverLimit).index() as usize];
    ensure!(passed == count, "{passed} of {sent} passed under {limit:?}");
    ensure!(passed + refused == sent, "{passed} passed and {refused} were refused of {sent}");
    ensure!((meter.allowed, meter.limited) == (passed, refused), "the principal's own counts: {meter:?}");
    Ok(())
}

#[test]
fn exactly_n_of_the_packets_from_all_cpus_pass_a_sliding_limit() -> Result<()> {
    [1, 100, 100_000].into_iter().try_for_each(|count| exactly(sliding(count, HOUR), u64::from(count)))
}

#[test]
fn exactly_n_of_the_packets_from_all_cpus_pass_a_fixed_limit() -> Result<()> {
    [1, 100, 100_000].into_iter().try_for_each(|count| exactly(fixed(count, HOUR), u64::from(count)))
}

#[test]
fn exactly_n_of_the_packets_from_all_cpus_pass_a_gcra_limit() -> Result<()> {
    [1, 100, 100_000].into_iter().try_for_each(|count| exactly(gcra(count, HOUR), u64::from(count)))
}

#[test]
fn exactly_n_of_the_packets_from_all_cpus_pass_a_limit_that_penalizes_and_twice_as_many_count() -> Result<()> {
    for limit in [sliding(1000, HOUR), gcra(1000, HOUR), sliding(1, HOUR)].map(penalizing) {
        exactly(limit, limit.count.into())?;
        let tables = Tables::new().with_key(KEY, 7, 0).with_limits(7, &[limit, sliding(2000, HOUR)]);
        let loaded = Loaded::new(Program::Judge, &tables)?;
        send_from_all_cpus(&loaded, 5000)?;
        let meter = loaded.meter(7)?;
        ensure!(meter.allowed == u64::from(limit.count), "{meter:?} under {limit:?}");
        let used = |place, limit: &Limit| -> Result<u64> {
            // Of a rate some of an hour's share is back by now.
            let now = Clock::of_boot(boot()?.as_nanos() as u64 + SECOND);
            Ok(limit::usage(&meter.buckets.limits[place], limit, now).used)
        };
        let most = if limit.algorithm == Algorithm::Gcra as u16 { 2 * limit.count - 1 } else { 2 * limit.count };
        ensure!(used(0, &limit)? == u64::from(most), "{} counted under {limit:?}", used(0, &limit)?);
        let beside = sliding(2000, HOUR);
        ensure!(used(1, &beside)? == u64::from(limit.count), "{} counted beside it", used(1, &beside)?);
    }
    Ok(())
}

#[test]
fn two_limits_at_once_let_no_more_through_than_the_tighter() -> Result<()> {
    let tables = Tables::new().with_key(KEY, 7, 0).with_limits(7, &[sliding(100_000, HOUR), fixed(100, HOUR)]);
    let loaded = Loaded::new(Program::Judge, &tables)?;
    send_from_all_cpus(&loaded, 2000)?;
    // Of two requests that race for the last place both may be refused; tried on, the place is taken.
    let meter = loaded.meter(7)?;
    ensure!(meter.allowed == 100, "{meter:?}");
    Ok(())
}

#[test]
fn windows_that_roll_while_all_cpus_send_never_let_more_than_their_share_through() -> Result<()> {
    // A window of about a millisecond: thousands of packets each, so that the CPUs race over each of its ends.
    let limit =
        Limit { algorithm: Algorithm::Fixed as u16, count: 10, window: (1 << 20) / TICK_NS, ..Limit::default() };
    let tables = Tables::new().with_key(KEY, 7, 0).with_limits(7, &[limit]);
    let loaded = Loaded::new(Program::Judge, &tables)?;
    let begin = std::time::Instant::now();
    send_from_all_cpus(&loaded, 200_000)?;
    let windows = begin.elapsed().as_nanos() as u64 / (1 << 20) + 2;
    let meter = loaded.meter(7)?;
    ensure!(meter.allowed <= windows * 10, "{} passed in at most {windows} windows", meter.allowed);
    ensure!(meter.allowed > 10, "no window rolled: {meter:?}");
    Ok(())
}

#[test]
fn windows_of_the_calendar_follow_the_clock_that_the_daemon_sets() -> Result<()> {
    const DAY: u64 = 24 * HOUR;
    let tables = Tables::new()
        .with_key(KEY, 7, 0)
        .with_limits(7, &[calendar(100, DAY, align::MULTIPLE), calendar(150, 30 * DAY, align::MONTH)]);
    let mut loaded = Loaded::new(Program::Judge, &tables)?;
    // Now is noon of 2026-02-27.
    let uptime = std::fs::read_to_string("/proc/uptime")?;
    let uptime: u64 = uptime.split('.').next().unwrap_or_default().parse().context("/proc/uptime")?;
    let noon = (1_772_193_600 * SECOND).wrapping_sub(uptime * SECOND);
    // Days from then on, and what has passed by then in all.
    for (day, passed) in [(0, 100), (1, 150), (0, 150), (1, 150), (2, 250), (3, 300), (2, 300), (400, 400), (3, 400)] {
        loaded.set_clock(noon.wrapping_add(day * DAY))?;
        send_from_all_cpus(&loaded, 1000)?;
        let meter = loaded.meter(7)?;
        ensure!(meter.allowed == passed, "on day {day}: {} passed by then, not {passed}", meter.allowed);
    }
    Ok(())
}
