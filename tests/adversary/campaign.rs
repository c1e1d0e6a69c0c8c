//! The runs: every case by every server alone, then every case behind the enforcer under all pairs of conditions.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use enforcer_tests::corpus::{self, Case};
use enforcer_tests::enforcer::Enforcer;
use enforcer_tests::origin::{Executed, Server};
use enforcer_tests::process::PATIENCE;

use crate::cell::{Cell, Family, HOOKS, pairwise};
use crate::exchange::{Outcome, Until, exchange};
use crate::fleet::{Fleet, joined};
use crate::oracle::{Alone, Observed, judge, trimmed};
use crate::script::Script;

/// Clients at once behind the enforcer.
const CLIENTS: usize = 64;
/// Clients at once for each server alone, where a stream may block one of its threads.
const CLIENTS_ALONE: usize = 8;
/// How long a server alone may hold connections after its clients have gone.
const PATIENCE_ALONE: Duration = Duration::from_secs(5);
/// The principal of the requests that show that a server is well.
const PROBE: &str = "probe";

/// A run behind the enforcer.
pub(crate) struct Run {
    /// The case's place.
    pub(crate) case: usize,
    pub(crate) cell: Cell,
    /// The keys of the executed requests, as the corpus calls them.
    pub(crate) executed: Vec<String>,
    /// What was wrong.
    pub(crate) faults: Vec<String>,
}

/// All runs and their results.
pub(crate) struct Campaign {
    pub(crate) cases: Vec<Case>,
    /// By case and by place of the server in [`Server::EACH`].
    pub(crate) alone: Vec<Vec<Alone>>,
    pub(crate) runs: Vec<Run>,
}

/// A run that is still to be judged.
struct Pending {
    case: usize,
    cell: Cell,
    script: Script,
    sent: Option<(usize, Outcome)>,
    held: bool,
    charged: Vec<u64>,
}

/// Part of the names of the cases that are to be run, from `ADVERSARY_CASE`; all are if it is not set.
pub(crate) fn chosen_part() -> Option<String> {
    std::env::var("ADVERSARY_CASE").ok()
}

/// Runs everything.
///
/// # Errors
/// When servers or enforcer do not come up, or an ordinary request is not served in between.
pub(crate) fn run() -> Result<Campaign> {
    let mut cases = corpus::load()?;
    if let Some(part) = chosen_part() {
        cases.retain(|case| case.name.contains(&part));
        ensure!(!cases.is_empty(), "no case has {part:?} in its name");
    }
    let fleet = Fleet::start()?;
    let alone = run_alone(&fleet, &cases)?;
    let mut pending: Vec<Pending> = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        for cell in pairwise(number) {
            // The numbers before these are those of the runs without the enforcer.
            let script = Script::new(case, cases.len() * Server::EACH.len() + pending.len())?;
            pending.push(Pending { case: number, cell, script, sent: None, held: false, charged: Vec::new() });
        }
    }
    for hook in HOOKS {
        let mut chosen: Vec<&mut Pending> = pending.iter_mut().filter(|run| run.cell.hook == hook).collect();
        run_guarded(&fleet, &cases, &alone, hook, &mut chosen).with_context(|| format!("at {hook}"))?;
    }
    let executed = fleet.executed()?;
    let runs = pending.into_iter().map(|run| finish(run, &cases, &alone, &executed)).collect::<Result<Vec<_>>>()?;
    Ok(Campaign { cases, alone, runs })
}

/// Every case by every server, without the enforcer, whole and over IPv4.
fn run_alone(fleet: &Fleet, cases: &[Case]) -> Result<Vec<Vec<Alone>>> {
    let outcomes = Mutex::new(BTreeMap::new());
    let next: Vec<AtomicUsize> = Server::EACH.iter().map(|_| AtomicUsize::new(0)).collect();
    let client = |server: usize| -> Result<()> {
        let (place, member) = fleet.member(Server::EACH[server], Family::V4)?;
        loop {
            let case = next[server].fetch_add(1, Ordering::Relaxed);
            let Some(read) = cases.get(case) else { return Ok(()) };
            let script = Script::new(read, case * Server::EACH.len() + server)?;
            let outcome = exchange(member.origin.address, &member.ports, &[&script.stream], Until::Quiet)?;
            lock(&outcomes)?.insert((case, server), (script, place, outcome));
        }
    };
    fleet.link.client().run(|| {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..Server::EACH.len() * CLIENTS_ALONE)
                .map(|number| scope.spawn(move || client(number % Server::EACH.len())))
                .collect();
            threads.into_iter().try_for_each(|thread| joined(thread.join()))
        })
    })?;
    fleet.settle(PATIENCE_ALONE)?;
    let executed = fleet.executed()?;
    let outcomes = lock(&outcomes)?;
    let alone = |case: usize, server: usize| {
        let (script, place, outcome) = outcomes.get(&(case, server)).context("a case was not run")?;
        let executed = executed[*place].get(&outcome.port).into_iter().flatten();
        let executed = executed.map(|request| script.original(trimmed(&request.key))).collect();
        Ok(Alone { executed, answers: outcome.answers })
    };
    (0..cases.len()).map(|case| (0..Server::EACH.len()).map(|server| alone(case, server)).collect()).collect()
}

/// The runs of one hook.
fn run_guarded(
    fleet: &Fleet,
    cases: &[Case],
    alone: &[Vec<Alone>],
    hook: &str,
    runs: &mut [&mut Pending],
) -> Result<()> {
    let ports = fleet.ports().join(",");
    let arguments = ["--interface", &fleet.link.interface, "--port", &ports, "--hook", hook];
    let mut enforcer = Enforcer::new(&fleet.link.server, &arguments)?;
    enforcer.start()?;
    import(&enforcer, runs)?;
    let probe = enforcer.add_key(PROBE, "unlimited")?;
    for family in Family::EACH {
        for offload in [true, false] {
            fleet.link.set_checksum_offload(offload)?;
            let mut batch: Vec<&mut Pending> = runs
                .iter_mut()
                .map(|run| &mut **run)
                .filter(|run| run.cell.family == family && run.cell.offload == offload)
                .collect();
            send(fleet, cases, alone, &mut batch)?;
            let held = fleet.settle(PATIENCE)?;
            for run in batch {
                run.held = run.sent.is_some_and(|(place, outcome)| held.contains(&(place, outcome.port)));
            }
            fleet.probe(family, &probe)?;
        }
    }
    let counts = charged(&enforcer)?;
    for run in runs {
        let of = |principal: &str| counts.get(principal).copied().context("a principal has no counts");
        run.charged = run.script.keys.iter().map(|key| of(&key.principal)).collect::<Result<_>>()?;
    }
    Ok(())
}

/// Registers the keys of all runs.
fn import(enforcer: &Enforcer<'_>, runs: &[&mut Pending]) -> Result<()> {
    let mut lines = String::new();
    for key in runs.iter().flat_map(|run| &run.script.keys) {
        let limit = if key.most == usize::MAX { "unlimited".to_owned() } else { format!("{}/hour", key.most) };
        lines += &format!("{},{},{limit}\n", key.principal, key.value);
    }
    let ran = enforcer.run_with_input(&["key", "import", "--weak", "-"], &lines)?;
    ensure!(ran.code == 0, "the keys cannot be imported: {}", ran.stderr);
    Ok(())
}

/// What each principal has been charged.
fn charged(enforcer: &Enforcer<'_>) -> Result<BTreeMap<String, u64>> {
    let listed = enforcer.json(&["key", "ls"])?;
    let keys = listed["keys"].as_array().context("`key ls` lists no keys")?;
    let count = |key: &serde_json::Value| Some((key["name"].as_str()?.to_owned(), key["counts"]["allowed"].as_u64()?));
    keys.iter().map(|key| count(key).with_context(|| format!("no counts in {key}"))).collect()
}

/// Sends the streams of a batch.
fn send(fleet: &Fleet, cases: &[Case], alone: &[Vec<Alone>], batch: &mut [&mut Pending]) -> Result<()> {
    let queue = Mutex::new(batch.iter_mut());
    fleet.link.client().run(|| {
        std::thread::scope(|scope| {
            let client = || -> Result<()> {
                loop {
                    let Some(run) = lock(&queue)?.next() else { return Ok(()) };
                    let (place, member) = fleet.member(run.cell.server, run.cell.family)?;
                    let seed = ((run.case as u64 + 1) << 8) | place as u64;
                    let pieces = run.cell.cut.pieces(&run.script.stream, seed);
                    let until = until(&cases[run.case], alone_of(alone, run)?);
                    let sent = exchange(member.origin.address, &member.ports, &pieces, until);
                    run.sent = Some((place, sent.with_context(|| format!("{}: {}", run.cell, cases[run.case].name))?));
                }
            };
            let threads: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
            threads.into_iter().try_for_each(|thread| joined(thread.join()))
        })
    })
}

/// What the client of a run waits for.
fn until(case: &Case, alone: &Alone) -> Until {
    match (case.is_legitimate(), alone.answers) {
        (false, _) => Until::End,
        (true, 0) => Until::Quiet,
        (true, answers) => Until::Answers(answers),
    }
}

fn alone_of<'a>(alone: &'a [Vec<Alone>], run: &Pending) -> Result<&'a Alone> {
    let server = Server::EACH.iter().position(|server| *server == run.cell.server).context("an unknown server")?;
    Ok(&alone[run.case][server])
}

fn finish(
    run: Pending,
    cases: &[Case],
    alone: &[Vec<Alone>],
    executed: &[BTreeMap<u16, Vec<Executed>>],
) -> Result<Run> {
    let Some((place, outcome)) = run.sent else { bail!("a run of {} was not sent", cases[run.case].name) };
    let executed = executed[place].get(&outcome.port).into_iter().flatten();
    let executed: Vec<String> = executed.map(|request| trimmed(&request.key).to_owned()).collect();
    let observed = Observed { executed, charged: run.charged.clone(), ending: outcome.ending, held: run.held };
    let faults = judge(&cases[run.case], &run.script, alone_of(alone, &run)?, &observed);
    let executed = observed.executed.iter().map(|key| run.script.original(key)).collect();
    Ok(Run { case: run.case, cell: run.cell, executed, faults })
}

fn lock<T>(mutex: &Mutex<T>) -> Result<std::sync::MutexGuard<'_, T>> {
    mutex.lock().map_err(|_| anyhow::anyhow!("another thread panicked"))
}
