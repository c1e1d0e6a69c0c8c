//! One weather, with each hook: the way, the servers, the enforcer, all clients at once, and what must be true then.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use enforcer_tests::client::url;
use enforcer_tests::enforcer::Enforcer;
use enforcer_tests::origin::{Origin, Workers};
use enforcer_tests::passage::{INTERFACE, Passage};
use enforcer_tests::process::wait_for;
use enforcer_tests::weather::{Fates, Weather};

use crate::client::{Client, Job, Report, SERVERS, Task};
use crate::plan::{LARGE, PLAN};
use crate::table;

/// The hooks that the program runs at.
const HOOKS: [&str; 2] = ["xdp-native", "xdp-generic"];
/// Where the server that keeps connections listens, and the one that closes each after one request.
const PORTS: [u16; SERVERS] = [8000, 8001];
/// More than any client sends.
const LIMIT: &str = "1000000/hour";

/// What is done to the clients' and the servers' segments.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conditions {
    name: &'static str,
    weather: Weather,
    behind: u32,
}

impl Conditions {
    /// This weather in both directions.
    pub(crate) const fn new(name: &'static str, weather: Weather) -> Self {
        Self { name, weather, behind: 0 }
    }

    /// And segments, per mille, that are lost after they have been judged.
    pub(crate) const fn with_loss_behind_the_hook(mut self, per_mille: u32) -> Self {
        self.behind = per_mille;
        self
    }
}

/// What a run showed.
pub(crate) struct Outcome {
    /// The weather's name.
    pub(crate) weather: &'static str,
    /// The hook.
    pub(crate) hook: &'static str,
    /// Each job's name and report.
    pub(crate) reports: Vec<(&'static str, Report)>,
    /// The fates of the frames from the clients, and from the server.
    pub(crate) fates: [Fates; 2],
    /// Segments lost behind the hook.
    pub(crate) lost_behind: u64,
    /// Segments sent again by the clients, and by the servers.
    pub(crate) retransmitted: [u64; 2],
    /// The enforcer's metrics, by series.
    pub(crate) metrics: BTreeMap<String, u64>,
}

impl Outcome {
    /// The value of a series; 0 if there is none.
    pub(crate) fn metric(&self, series: &str) -> u64 {
        self.metrics.get(series).copied().unwrap_or(0)
    }

    fn requests(&self, principal: &str, verdict: &str) -> u64 {
        self.metric(&format!("enforcer_requests_total{{principal=\"{principal}\",verdict=\"{verdict}\"}}"))
    }
}

/// Runs all clients with each hook.
pub(crate) fn run(conditions: &Conditions) -> Result<()> {
    for (round, hook) in HOOKS.into_iter().enumerate() {
        run_with(conditions, hook, round).with_context(|| format!("{}, {hook}", conditions.name))?;
    }
    Ok(())
}

fn run_with(conditions: &Conditions, hook: &'static str, round: usize) -> Result<()> {
    let passage = Passage::new()?;
    // Each server is reached over the other family with the next hook.
    let mut hosts = [passage.v4, passage.v6];
    hosts.rotate_left(round % 2);
    let addresses = [SocketAddr::new(hosts[0], PORTS[0]), SocketAddr::new(hosts[1], PORTS[1])];
    let origins = [
        Origin::start(&passage.server, "bulk", Workers::Threads(3), addresses[0])?,
        Origin::start(&passage.server, "bulk", Workers::Sync(8), addresses[1])?,
    ];
    let ports = PORTS.map(|port| port.to_string());
    let arguments = ["--interface", INTERFACE, "--hook", hook, "--port", &ports[0], "--port", &ports[1]];
    let mut enforcer = Enforcer::new(&passage.server, &arguments)?;
    enforcer.start()?;
    let urls = addresses.map(|address| url(address, ""));
    let jobs = jobs(&enforcer, round)?;

    if conditions.behind > 0 {
        passage.lose_behind_the_hook(conditions.behind)?;
    }
    let relay = passage.relay(conditions.weather, 0x5eed + round as u64)?;
    let reports = all_at_once(&passage, &jobs, &urls)?;
    let executed = await_the_last(&enforcer, &origins, &jobs)?;
    let outcome = Outcome {
        weather: conditions.name,
        hook,
        reports: jobs.iter().map(|job| job.name).zip(reports).collect(),
        fates: relay.finish()?,
        lost_behind: if conditions.behind > 0 { passage.lost_behind_the_hook()? } else { 0 },
        retransmitted: passage.retransmitted()?,
        metrics: metrics(&enforcer)?,
    };
    table::print(&outcome)?;
    let mut wrong = befell(conditions, &outcome);
    for ((job, executed), (_, report)) in jobs.iter().zip(executed).zip(&outcome.reports) {
        wrong.extend(report.failures.iter().map(|failure| format!("{}: {failure}", job.name)));
        wrong.extend(miscounted(job, &outcome, report.served as u64, executed));
    }
    let refused = outcome.metrics.iter().filter(|(series, count)| is_refusal(series) && **count > 0);
    wrong.extend(refused.map(|(series, count)| format!("{series} is {count}")));
    ensure!(wrong.is_empty(), "{}\nthe daemon: {}", wrong.join("\n"), enforcer.log()?);
    Ok(())
}

/// The clients, each with a key of its own; the large bodies are another client's in each round.
fn jobs(enforcer: &Enforcer<'_>, round: usize) -> Result<Vec<Job>> {
    let planned = Client::ALL.into_iter().enumerate().map(|(place, client)| {
        let large = place == round % Client::ALL.len();
        (client.name(), Task::Planned(client, if large { [PLAN, LARGE].concat() } else { PLAN.to_vec() }))
    });
    planned
        .chain([("wrk", Task::Wrk(0)), ("wrk-new", Task::Wrk(1))])
        .map(|(name, task)| Ok(Job { name, key: enforcer.add_key(name, LIMIT)?, task }))
        .collect()
}

fn all_at_once(passage: &Passage, jobs: &[Job], urls: &[String; SERVERS]) -> Result<Vec<Report>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = jobs.iter().map(|job| scope.spawn(|| job.run(&passage.client, urls))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| bail!("a client's thread panicked")))
            .collect()
    })
}

/// How many requests of each job the apps have executed, once all that was passed for wrk, which waits for nothing at
/// its end, can have been executed.
fn await_the_last(enforcer: &Enforcer<'_>, origins: &[Origin; SERVERS], jobs: &[Job]) -> Result<Vec<u64>> {
    let mut last = (Vec::new(), BTreeMap::new());
    wait_for("the apps to be done", || {
        let executed = origins.iter().map(Origin::executed).collect::<Result<Vec<_>>>()?.concat();
        let by_job = jobs.iter().map(|job| executed.iter().filter(|request| request.key == job.key).count() as u64);
        let now = (by_job.collect(), metrics(enforcer)?);
        let done = now == last;
        last = now;
        Ok(done.then(|| last.0.clone()))
    })
}

/// The metrics that count, by series.
fn metrics(enforcer: &Enforcer<'_>) -> Result<BTreeMap<String, u64>> {
    let text = enforcer.metrics()?;
    let counters =
        text.lines().filter_map(|line| line.rsplit_once(' ')).filter(|(series, _)| series.contains("_total{"));
    counters.map(|(series, count)| Ok((series.to_owned(), count.parse::<f64>()? as u64))).collect()
}

fn is_refusal(series: &str) -> bool {
    ["enforcer_refused_total", "enforcer_malformed_total"].iter().any(|name| series.starts_with(name))
        || (series.starts_with("enforcer_requests_total") && !series.contains("verdict=\"allowed\""))
}

/// What is wrong with a job's counts.
fn miscounted(job: &Job, outcome: &Outcome, served: u64, executed: u64) -> Option<String> {
    let allowed = outcome.requests(job.name, "allowed");
    let right = match job.task.requests() {
        Some(requests) => [served, executed, allowed] == [requests; 3],
        // What was under way at its end it does not count, and the app may not have read it.
        None => served <= executed && executed <= allowed && allowed <= served + job.task.connections(),
    };
    let wanted = job.task.requests().map_or_else(|| "any number".to_owned(), |requests| requests.to_string());
    (!right).then(|| format!("{}: of {wanted}, {served} were served, {executed} executed, {allowed} allowed", job.name))
}

/// What the weather should have done, and did not.
fn befell(conditions: &Conditions, outcome: &Outcome) -> Vec<String> {
    let Weather { lost, doubled, held, delay: _, jitter: _ } = conditions.weather;
    let mut wrong = Vec::new();
    for fates in outcome.fates {
        for (what, rate, count) in
            [("lost", lost, fates.lost), ("doubled", doubled, fates.doubled), ("held back", held, fates.held)]
        {
            if (rate > 0) != (count > 0) {
                wrong.push(format!("{count} frames were {what} at a rate of {rate}"));
            }
        }
    }
    if (conditions.behind > 0) != (outcome.lost_behind > 0) {
        wrong.push(format!("{} segments were lost behind the hook", outcome.lost_behind));
    }
    wrong
}
