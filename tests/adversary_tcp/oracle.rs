//! What a run must have come to: the app's record against the kernel's counters.
//!
//! The app's record says what was executed, the kernel's meter what was charged. Whatever a script expects, nothing is
//! executed without its own registered key, and nothing that was not charged.

use std::fmt;

use crate::script::{Expectation, Script};
use crate::stage::{Outcome, Stage};

/// What is wrong with an outcome, in words; empty if nothing is.
pub(crate) fn faults(stage: &Stage, script: &Script, outcome: &Outcome) -> Vec<String> {
    let mut faults = Vec::new();
    let Outcome { executed, charged, answers, .. } = *outcome;
    if let Some(error) = &outcome.error {
        faults.push(error.clone());
    }
    if !outcome.worker_free {
        faults.push("another client was not served after it".to_owned());
    }
    let guarded = stage.hook.is_some();
    if guarded && !outcome.foreign.is_empty() {
        faults.push(format!("executed without its key: {}", outcome.foreign.join(", ")));
    }
    if guarded && executed > charged {
        faults.push(format!("{executed} executed, {charged} charged"));
    }
    match script.expect {
        Expectation::Served(count) => {
            let all = !script.kept || stage.keeps_connections();
            if executed != count && (all || executed == 0 || executed > count) {
                faults.push(format!("{executed} of {count} executed"));
            }
            if guarded && charged != count && (all || charged > count) {
                faults.push(format!("{charged} charged, not {count}"));
            }
            if answers < stage.answers_of(script, count) as u64 {
                faults.push(format!("{answers} answered"));
            }
        }
        Expectation::Refused | Expectation::Dropped if guarded && executed > 0 => {
            faults.push(format!("{executed} executed, none expected"));
        }
        Expectation::AtMost(count) if guarded && charged > count => {
            faults.push(format!("{charged} charged, at most {count} expected"));
        }
        Expectation::Refused | Expectation::Dropped | Expectation::AtMost(_) => {}
    }
    faults
}

/// The same for a script that attaches the enforcer: what was executed before, nobody charged.
pub(crate) fn faults_when_attached(script: &Script, outcome: &Outcome) -> Vec<String> {
    let mut faults: Vec<String> = outcome.error.iter().cloned().collect();
    let Outcome { executed, charged, .. } = *outcome;
    if !outcome.foreign.is_empty() {
        faults.push(format!("executed without its key: {}", outcome.foreign.join(", ")));
    }
    match script.expect {
        Expectation::Served(count) if executed != count => faults.push(format!("{executed} of {count} executed")),
        Expectation::Refused | Expectation::Dropped if executed > 0 => faults.push(format!("{executed} executed")),
        Expectation::AtMost(count) if executed > count || charged > count => {
            faults.push(format!("{executed} executed and {charged} charged, at most {count} expected"));
        }
        _ => {}
    }
    faults
}

/// What the app executed, in words.
impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        if self.executed > 0 {
            words.push(format!("{} with its key", self.executed));
        }
        for kind in ["unkeyed", "unknown key"] {
            let count = self.foreign.iter().filter(|name| *name == kind).count();
            if count > 0 {
                words.push(format!("**{count} {kind}**"));
            }
        }
        let others = self.foreign.iter().filter(|name| name.starts_with("other")).count();
        if others > 0 {
            words.push(format!("**{others} garbled**"));
        }
        if words.is_empty() {
            words.push("nothing".to_owned());
        }
        formatter.write_str(&words.join(" + "))
    }
}
