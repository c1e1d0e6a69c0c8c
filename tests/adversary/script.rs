//! A case of the corpus with keys of its own, so that whatever is executed or charged can be told by its key.

use anyhow::{Result, ensure};
use enforcer_tests::corpus::{Case, KEY, REGISTERED};

/// One run's stream and keys.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    /// The client's bytes.
    pub(crate) stream: Vec<u8>,
    /// The keys that the corpus registers, as they are in this run.
    pub(crate) keys: Vec<OwnKey>,
}

/// A key of one run.
#[derive(Clone, Debug)]
pub(crate) struct OwnKey {
    /// The key as the corpus has it.
    pub(crate) original: &'static str,
    /// The key of this run, of the same length.
    pub(crate) value: String,
    /// The name of its principal.
    pub(crate) principal: String,
    /// How many requests it allows.
    pub(crate) most: usize,
    /// How many of the stream's requests with it may be executed.
    pub(crate) allowed: usize,
}

impl Script {
    /// The script of run number `run` of a case.
    ///
    /// # Errors
    /// When the numbers are used up.
    pub(crate) fn new(case: &Case, run: usize) -> Result<Self> {
        let allowed = case.allowed();
        let (mut stream, mut keys) = (case.stream.clone(), Vec::new());
        for (number, (original, most)) in REGISTERED.into_iter().enumerate() {
            if !contains(&stream, original.as_bytes()) {
                continue;
            }
            let begin = if original == KEY { "live_".to_owned() } else { format!("k{number}_") };
            let value = format!("{begin}{run:0width$}", width = original.len() - begin.len());
            ensure!(value.len() == original.len(), "no key of run {run} is as long as {original}");
            stream = replaced(&stream, original.as_bytes(), value.as_bytes());
            let allowed = allowed.iter().filter(|key| **key == original).count();
            keys.push(OwnKey { original, value, principal: format!("run-{run}-{number}"), most, allowed });
        }
        Ok(Self { stream, keys })
    }

    /// How the corpus calls a key that the app saw: by its own name where it is one of this run's.
    pub(crate) fn original(&self, seen: &str) -> String {
        self.keys.iter().fold(seen.to_owned(), |text, key| text.replace(&key.value, key.original))
    }
}

fn contains(stream: &[u8], wanted: &[u8]) -> bool {
    stream.windows(wanted.len()).any(|window| window == wanted)
}

fn replaced(stream: &[u8], old: &[u8], new: &[u8]) -> Vec<u8> {
    let mut result = Vec::with_capacity(stream.len());
    let mut rest = stream;
    while !rest.is_empty() {
        if rest.starts_with(old) {
            result.extend(new);
            rest = &rest[old.len()..];
        } else {
            result.push(rest[0]);
            rest = &rest[1..];
        }
    }
    result
}
