//! The TCP/IP half of the adversarial suite: scripted raw clients against real servers, with and without the enforcer.
//!
//! The scripts, their language and how to run a few of them are in `adversary/tcp/README.md`.

#[path = "adversary_tcp/data.rs"]
mod data;
#[path = "adversary_tcp/oracle.rs"]
mod oracle;
#[path = "adversary_tcp/play.rs"]
mod play;
#[path = "adversary_tcp/report.rs"]
mod report;
#[path = "adversary_tcp/script.rs"]
mod script;
#[path = "adversary_tcp/stage.rs"]
mod stage;
#[path = "adversary_tcp/step.rs"]
mod step;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};
use enforcer_tests::folder;
use enforcer_tests::origin::{Server, Workers};

use crate::play::Pace::{Burst, Paced};
use crate::script::Script;
use crate::stage::{Manner, Stage};
use crate::step::Family::{V4, V6};

/// Plays only the scripts whose name begins so, and only on the stages whose name holds the other.
const ONLY_SCRIPTS: &str = "ADVERSARY_SCRIPTS";
const ONLY_STAGES: &str = "ADVERSARY_STAGES";
/// Where else the report of a whole run goes.
const REPORT: &str = "ADVERSARY_REPORT";
/// Of how many runs one more than the first may need bytes to be sent again, because the host reordered a burst.
const RESENT: usize = 500;
/// Stages at work at once: they wait most of their time.
const AT_ONCE: usize = 3;

const SYNC: Server = Server::Gunicorn(Workers::Sync(1));
const THREADS: Server = Server::Gunicorn(Workers::Threads(1));
/// The hooks of the enforcer that every script is played behind.
const HOOKS: [&str; 3] = ["xdp-native", "xdp-generic", "tc"];

/// Each server without the enforcer, then each behind it; gunicorn behind each hook, over both families, with whole
/// checksums and with partial ones, slowly and at once.
fn stages() -> Vec<Stage> {
    let manner = |family, pace, partial| Manner { family, pace, partial };
    let mut stages = Vec::new();
    for hook in HOOKS {
        let native = hook == HOOKS[0];
        let four =
            vec![manner(V4, Paced, false), manner(V6, Burst, false), manner(V4, Burst, true), manner(V6, Paced, true)];
        let two = vec![manner(V4, Burst, false), manner(V4, Paced, true)];
        stages.push(Stage {
            server: SYNC,
            listens_on_v6: native,
            hook: Some(hook),
            manners: if native { four.clone() } else { two.clone() },
        });
        stages.push(Stage {
            server: THREADS,
            listens_on_v6: !native,
            hook: Some(hook),
            manners: if native { two } else { four },
        });
    }
    let others = [Server::Waitress, Server::Werkzeug, Server::UvicornH11, Server::UvicornHttptools];
    for (index, server) in others.into_iter().enumerate() {
        // waitress and uvicorn listen on one family only.
        let family = if index % 2 == 0 { V4 } else { V6 };
        let pace = if index < 2 { Paced } else { Burst };
        let hook = Some(HOOKS[index % HOOKS.len()]);
        let manners = vec![manner(family, pace, index % 2 == 1)];
        stages.push(Stage { server, listens_on_v6: family == V6, hook, manners });
        stages.push(Stage {
            server,
            listens_on_v6: family == V6,
            hook: None,
            manners: vec![manner(family, Paced, false)],
        });
    }
    for server in [SYNC, THREADS] {
        let manners = vec![manner(V4, Paced, false), manner(V6, Paced, false)];
        stages.push(Stage { server, listens_on_v6: true, hook: None, manners });
    }
    stages
}

fn only(variable: &str) -> String {
    std::env::var(variable).unwrap_or_default()
}

#[test]
fn every_script_comes_to_what_it_must_before_every_server() -> Result<()> {
    let (scripts_named, stages_named) = (only(ONLY_SCRIPTS), only(ONLY_STAGES));
    let scripts: Vec<Script> = script::load()?
        .into_iter()
        .filter(|script| !script.attaches() && script.id.starts_with(&scripts_named))
        .collect();
    let stages: Vec<Stage> = stages().into_iter().filter(|stage| stage.name().contains(&stages_named)).collect();
    ensure!(!scripts.is_empty() && !stages.is_empty(), "nothing is of these names");

    let played = play_all(&stages, &scripts)?;
    let mut failed: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (stage, outcomes) in &played {
        for outcome in outcomes {
            let script = &scripts[outcome.script];
            let faults = oracle::faults(stage, script, outcome);
            if !faults.is_empty() {
                let run = format!("{}, {}: {}", stage.name(), outcome.manner, faults.join("; "));
                failed.entry(&script.id).or_default().push(run);
            }
        }
    }
    let report = report::markdown(&scripts, &played, &failed);
    let path = folder().join("../target/adversary-tcp.md");
    fs::write(&path, &report).with_context(|| format!("writing {}", path.display()))?;
    if let Some(path) = std::env::var_os(REPORT).map(PathBuf::from) {
        ensure!(scripts_named.is_empty() && stages_named.is_empty(), "the report is for a whole run");
        fs::write(folder().join("..").join(path), &report)?;
    }
    let resent: Vec<String> = played
        .iter()
        .flat_map(|(stage, outcomes)| outcomes.iter().map(move |outcome| (stage, outcome)))
        .filter(|(_, outcome)| outcome.resent)
        .map(|(stage, outcome)| format!("{}: {}, {}", scripts[outcome.script].id, stage.name(), outcome.manner))
        .collect();
    let runs: usize = played.iter().map(|(_, outcomes)| outcomes.len()).sum();
    ensure!(resent.len() <= 1 + runs / RESENT, "bytes had to be sent again in too many runs:\n{}", resent.join("\n"));
    let list = |(id, runs): (&&str, &Vec<String>)| format!("{id}:\n    {}", runs.join("\n    "));
    let lists: Vec<String> = failed.iter().map(list).collect();
    ensure!(lists.is_empty(), "{} scripts came to something else:\n{}", lists.len(), lists.join("\n"));
    Ok(())
}

#[test]
fn connections_older_than_the_enforcer_are_no_way_around_it() -> Result<()> {
    let scripts: Vec<Script> = script::load()?.into_iter().filter(Script::attaches).collect();
    ensure!(!scripts.is_empty(), "there are no such scripts");
    let manners = vec![Manner { family: V4, pace: Paced, partial: false }];
    for hook in HOOKS {
        let stage = Stage { server: THREADS, listens_on_v6: false, hook: Some(hook), manners: manners.clone() };
        for outcome in stage.run_attaching(&scripts)? {
            let script = &scripts[outcome.script];
            let faults = oracle::faults_when_attached(script, &outcome);
            ensure!(faults.is_empty(), "{} behind {hook}: {}", script.id, faults.join("; "));
        }
    }
    Ok(())
}

/// Runs the stages, a few at once; the outcomes are in their order.
fn play_all(stages: &[Stage], scripts: &[Script]) -> Result<Vec<report::Played>> {
    let queue = Mutex::new(stages.iter().enumerate());
    let played = Mutex::new(Vec::new());
    let work = || -> Result<()> {
        loop {
            let next = queue.lock().ok().and_then(|mut queue| queue.next());
            let Some((index, stage)) = next else { return Ok(()) };
            let outcomes = stage.run(scripts).with_context(|| format!("on stage {}", stage.name()))?;
            if let Ok(mut played) = played.lock() {
                played.push((index, (stage.clone(), outcomes)));
            }
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    let mut played = played.into_inner().unwrap_or_default();
    played.sort_by_key(|(index, _)| *index);
    Ok(played.into_iter().map(|(_, played)| played).collect())
}
