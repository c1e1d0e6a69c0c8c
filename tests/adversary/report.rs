//! What was prevented, as Markdown: all of it, or in brief.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use enforcer_tests::corpus::{KEY, REGISTERED};
use enforcer_tests::origin::Server;

use crate::campaign::{Campaign, Run};
use crate::cell::HOOKS;
use crate::oracle::excess;

/// The longest piece of a foreign value that is shown.
const SHOWN: usize = 20;

impl Campaign {
    /// A table of all cases.
    pub(crate) fn full(&self) -> String {
        self.table("all of them", |_| true)
    }

    /// A table of the cases in which a server alone executes what it must not.
    pub(crate) fn brief(&self) -> String {
        self.table("those in which a server alone executes what the enforcer prevents", |case| {
            (0..Server::EACH.len()).any(|server| self.prevented(case, server) > 0)
        })
    }

    /// How many requests a server alone executed of a case that it must not.
    fn prevented(&self, case: usize, server: usize) -> usize {
        excess(&self.cases[case], &self.alone[case][server].executed)
    }

    /// The executed keys of the run of this case and server in which most were executed.
    fn most_executed(&self, case: usize, server: usize) -> &[String] {
        let runs = self.runs.iter().filter(|run| run.case == case && run.cell.server == Server::EACH[server]);
        runs.map(|run| &run.executed[..]).max_by_key(|executed| executed.len()).unwrap_or_default()
    }

    /// One line on each thing that is counted.
    pub(crate) fn summary(&self) -> String {
        let pairs = || (0..self.cases.len()).flat_map(|case| (0..Server::EACH.len()).map(move |server| (case, server)));
        let bypassed = pairs().filter(|&(case, server)| self.prevented(case, server) > 0).count();
        let requests: usize = pairs().map(|(case, server)| self.prevented(case, server)).sum();
        let alone = || self.alone.iter().flatten().flat_map(|alone| &alone.executed);
        let foreign = alone().filter(|key| !REGISTERED.iter().any(|(known, _)| known == key)).count();
        let left: usize = self.runs.iter().map(|run| excess(&self.cases[run.case], &run.executed)).sum();
        let legitimate = self.cases.iter().filter(|case| case.is_legitimate()).count();
        let faulty = self.runs.iter().filter(|run| !run.faults.is_empty()).count();
        let mut text = String::new();
        let _ = writeln!(
            text,
            "- {} cases, {legitimate} of them legitimate, on {} servers.",
            self.cases.len(),
            Server::EACH.len()
        );
        let _ = writeln!(
            text,
            "- Without the enforcer: {} runs. In {bypassed} of them the app executed what it must not: {foreign} requests \
             without a registered key, and {} with one that are ambiguous, too large or over a limit.",
            self.cases.len() * Server::EACH.len(),
            requests - foreign
        );
        let _ = writeln!(
            text,
            "- With the enforcer: {} runs at {}, over IPv4 and IPv6, with checksum offload on and off, each stream whole \
             and cut in three ways. Requests executed that must not be: {left}. Runs with any fault: {faulty}.",
            self.runs.len(),
            HOOKS.join(" and ")
        );
        text
    }

    fn table(&self, which: &str, is_shown: impl Fn(usize) -> bool) -> String {
        let mut text = "# HTTP attacks on real servers, without and with the enforcer\n\n".to_owned();
        text += &self.summary();
        let _ = write!(
            text,
            "\nThe cases are those of `tests/corpus/http`; here are {which}. Each cell says what the app executed without the \
             enforcer → with it, in the run in which that was most: `K` and `K1` to `K3` are registered keys, `T` one that \
             allows two requests, `·` is nothing.\n\n\
             Made by `ADVERSARY_REPORT=1 cargo test -p enforcer-tests --test adversary`, as root.\n\n| case | why |"
        );
        for server in Server::EACH {
            let _ = write!(text, " {server} |");
        }
        text += "\n|---|---|";
        text += &"---|".repeat(Server::EACH.len());
        text += "\n";
        for (number, case) in self.cases.iter().enumerate().filter(|(number, _)| is_shown(*number)) {
            let _ = write!(text, "| {} | {} |", escaped(&case.name), escaped(&case.why));
            for server in 0..Server::EACH.len() {
                let (alone, guarded) = (&self.alone[number][server].executed, self.most_executed(number, server));
                let mark = if self.prevented(number, server) > 0 { "**" } else { "" };
                let _ = write!(text, " {mark}{}{mark} → {} |", listed(alone), listed(guarded));
            }
            text += "\n";
        }
        text
    }
}

impl Run {
    /// The run and what was wrong with it, on one line.
    pub(crate) fn complaint(&self, campaign: &Campaign) -> String {
        format!("{}: {}: {}", campaign.cases[self.case].name, self.cell, self.faults.join("; "))
    }
}

/// Executed keys, in short.
fn listed(executed: &[String]) -> String {
    if executed.is_empty() {
        return "·".to_owned();
    }
    let mut counts = BTreeMap::new();
    for key in executed {
        *counts.entry(label(key)).or_insert(0) += 1;
    }
    let words = counts.into_iter().map(|(label, count)| if count == 1 { label } else { format!("{count} {label}") });
    words.collect::<Vec<_>>().join(", ")
}

fn label(key: &str) -> String {
    match key {
        KEY => "K".to_owned(),
        "-" => "unkeyed".to_owned(),
        "" => "empty key".to_owned(),
        "twice_key_1" => "T".to_owned(),
        _ if REGISTERED.iter().any(|(known, _)| *known == key) => format!("K{}", &key[key.len() - 1..]),
        _ => {
            let short =
                REGISTERED.iter().fold(key.replace(KEY, "K"), |text, (known, _)| text.replace(known, &label(known)));
            let cut: String = short.chars().take(SHOWN).collect();
            format!("`{}{}`", escaped(&cut), if cut.len() < short.len() { "…" } else { "" })
        }
    }
}

fn escaped(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;")
}
