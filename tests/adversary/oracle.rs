//! What may happen to a script, held against what did.

use enforcer_tests::corpus::Case;

use crate::exchange::Ending;
use crate::script::Script;

/// What a server makes of a case without the enforcer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Alone {
    /// The keys of the requests that it executed, as the app saw them and as the corpus calls them.
    pub(crate) executed: Vec<String>,
    /// How many final answers it gave.
    pub(crate) answers: usize,
}

/// What happened in one run behind the enforcer.
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    /// The keys of the executed requests, as the app saw them.
    pub(crate) executed: Vec<String>,
    /// What the kernel charged each of the script's keys.
    pub(crate) charged: Vec<u64>,
    /// How the connection stood when the client left it.
    pub(crate) ending: Ending,
    /// Whether the server held the connection for long after.
    pub(crate) held: bool,
}

/// The key that the app sees, without blanks behind it: they are no part of the value (RFC 9110 5.5), but some servers
/// leave them there. The kernel takes them off, and charges the key.
pub(crate) fn trimmed(seen: &str) -> &str {
    let mut rest = seen;
    while let Some(shorter) = rest.strip_suffix(' ').or_else(|| rest.strip_suffix("\\t")) {
        rest = shorter;
    }
    rest
}

/// How many of `executed` were not to be executed: of nobody's key or of no key, or more than a key was allowed.
pub(crate) fn excess(case: &Case, executed: &[String]) -> usize {
    let mut allowed = case.allowed();
    executed
        .iter()
        .filter(|key| match allowed.iter().position(|allowed| allowed == key) {
            Some(place) => {
                allowed.remove(place);
                false
            }
            None => true,
        })
        .count()
}

/// What is wrong with a run; nothing if all is as it has to be.
pub(crate) fn judge(case: &Case, script: &Script, alone: &Alone, observed: &Observed) -> Vec<String> {
    let mut faults = Vec::new();
    let executed: Vec<String> = observed.executed.iter().map(|key| script.original(key)).collect();
    for key in &observed.executed {
        if !script.keys.iter().any(|own| own.value == *key) {
            faults.push(format!("executed with {key:?}, which is no registered key"));
        }
    }
    for (own, &charged) in script.keys.iter().zip(&observed.charged) {
        let count = observed.executed.iter().filter(|key| **key == own.value).count();
        let charged = usize::try_from(charged).unwrap_or(usize::MAX);
        if count > charged {
            faults.push(format!("{} was executed {count} times and charged {charged} times", own.original));
        }
        if count > own.allowed || charged > own.allowed {
            let allowed = own.allowed;
            faults.push(format!("{}: {allowed} allowed, {charged} charged, {count} executed", own.original));
        }
    }
    let total: u64 = observed.charged.iter().sum();
    if case.is_legitimate() {
        // What the server refuses by itself, or does not read any more, is its own affair.
        if executed.len() < alone.executed.len() - excess(case, &alone.executed) {
            faults.push(format!("legitimate, but executed {executed:?}; without the enforcer {:?}", alone.executed));
        } else if executed.len() == case.expected.len() && total != executed.len() as u64 {
            faults.push(format!("legitimate: {} executed, {total} charged", executed.len()));
        }
    }
    if observed.ending == Ending::Silent {
        faults.push("the client was left waiting".to_owned());
    }
    if observed.held {
        faults.push("the server was left holding the connection".to_owned());
    }
    faults
}
