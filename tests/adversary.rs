//! Every case of the HTTP corpus against six real servers, without the enforcer and behind it, at every hook, over both
//! families, with partial and full checksums, whole and cut.
//!
//! What counts is what the apps executed, by their own record, held against what the kernel charged. Writes
//! `target/adversary-http.md`; with `ADVERSARY_REPORT=1` in the environment also `docs/adversary-http.md`. With
//! `ADVERSARY_CASE=TEXT` only the cases with that text in their names are run, and no report is written.

#[path = "adversary/campaign.rs"]
mod campaign;
#[path = "adversary/cell.rs"]
mod cell;
#[path = "adversary/cuts.rs"]
mod cuts;
#[path = "adversary/exchange.rs"]
mod exchange;
#[path = "adversary/fleet.rs"]
mod fleet;
#[path = "adversary/oracle.rs"]
mod oracle;
#[path = "adversary/report.rs"]
mod report;
#[path = "adversary/script.rs"]
mod script;

use std::fs;

use anyhow::{Result, ensure};
use enforcer_tests::corpus::{self, Case, KEY};
use enforcer_tests::folder;
use enforcer_tests::origin::Server;

use crate::cell::{Cell, HOOKS, pairwise};
use crate::exchange::Ending;
use crate::oracle::{Alone, Observed, judge};
use crate::script::Script;

#[test]
fn no_case_on_any_server_executes_what_was_not_charged_and_every_legitimate_one_is_served() -> Result<()> {
    let campaign = campaign::run()?;
    eprint!("{}", campaign.summary());
    if campaign::chosen_part().is_none() {
        fs::write(folder().join("../target/adversary-http.md"), campaign.full())?;
        if std::env::var_os("ADVERSARY_REPORT").is_some() {
            fs::write(folder().join("../docs/adversary-http.md"), campaign.brief())?;
        }
        let bypassed = campaign.alone.iter().flatten().flat_map(|alone| &alone.executed).any(|key| key == "-");
        ensure!(bypassed, "without the enforcer nothing unkeyed was executed: the record shows no bypass");
    }
    let complaints: Vec<_> =
        campaign.runs.iter().filter(|run| !run.faults.is_empty()).map(|run| run.complaint(&campaign)).collect();
    ensure!(complaints.is_empty(), "{} runs went wrong:\n{}", complaints.len(), complaints.join("\n"));
    Ok(())
}

#[test]
fn each_case_meets_every_server_every_hook_and_every_pair_of_conditions() -> Result<()> {
    for number in 0..corpus::load()?.len() {
        let cells = pairwise(number);
        for server in Server::EACH {
            ensure!(cells.iter().any(|cell| cell.server == server), "case {number} does not meet {server}");
            for hook in HOOKS {
                let meets = |cell: &Cell| cell.server == server && cell.hook == hook;
                ensure!(cells.iter().any(meets), "case {number} does not meet {server} at {hook}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_run_in_which_anything_is_executed_that_must_not_be_is_found() -> Result<()> {
    let case = Case {
        name: "two requests".to_owned(),
        why: "one of them legitimate".to_owned(),
        stream: format!("GET / HTTP/1.1\r\nX-API-Key: {KEY}\r\n\r\nGET / HTTP/1.1\r\n\r\n").into_bytes(),
        expected: vec![corpus::Expected::Keyed(KEY.to_owned()), corpus::Expected::Unkeyed],
        whole: true,
    };
    let script = Script::new(&case, 7)?;
    let (own, alone) = (script.keys[0].value.clone(), Alone::default());
    let observed = |executed: &[&str], charged: u64, ending: Ending, held: bool| Observed {
        executed: executed.iter().map(|&key| key.to_owned()).collect(),
        charged: vec![charged],
        ending,
        held,
    };
    let right = observed(&[&own], 1, Ending::Ended, false);
    ensure!(judge(&case, &script, &alone, &right).is_empty(), "a run as it has to be is complained of");
    let wrong = [
        observed(&["-"], 1, Ending::Ended, false),
        observed(&[&own, "-"], 1, Ending::Ended, false),
        observed(&[&format!("{own},{own}")], 1, Ending::Ended, false),
        observed(&[&own], 0, Ending::Ended, false),
        observed(&[&own, &own], 2, Ending::Ended, false),
        observed(&[&own], 2, Ending::Ended, false),
        observed(&[&own], 1, Ending::Silent, false),
        observed(&[&own], 1, Ending::Ended, true),
    ];
    for observed in wrong {
        ensure!(!judge(&case, &script, &alone, &observed).is_empty(), "not found: {observed:?}");
    }
    Ok(())
}

#[test]
fn a_legitimate_case_that_is_not_served_or_not_charged_once_is_found() -> Result<()> {
    let case = Case {
        name: "a request".to_owned(),
        why: "legitimate".to_owned(),
        stream: format!("GET / HTTP/1.1\r\nX-API-Key: {KEY}\r\n\r\n").into_bytes(),
        expected: vec![corpus::Expected::Keyed(KEY.to_owned())],
        whole: true,
    };
    let script = Script::new(&case, 7)?;
    let (own, alone) = (script.keys[0].value.clone(), Alone { executed: vec![KEY.to_owned()], answers: 1 });
    let observed = |executed: &[&String], charged: u64| Observed {
        executed: executed.iter().map(|&key| key.clone()).collect(),
        charged: vec![charged],
        ending: Ending::Answered,
        held: false,
    };
    ensure!(judge(&case, &script, &alone, &observed(&[&own], 1)).is_empty(), "a served request is complained of");
    ensure!(!judge(&case, &script, &alone, &observed(&[], 0)).is_empty(), "a refused one is not found");
    ensure!(!judge(&case, &script, &alone, &observed(&[], 1)).is_empty(), "one that was charged only is not found");
    let refused_alone = Alone::default();
    ensure!(judge(&case, &script, &refused_alone, &observed(&[], 1)).is_empty(), "the server's own refusal is a fault");
    Ok(())
}
