//! The scripts, `adversary/tcp/*.toml`: what a client sends, why, and what must become of it.
//!
//! A file may list variants; each of its scripts that names `{with}` then stands for one script per variant. The
//! language of the steps is in `step.rs`, and explained in `adversary/tcp/README.md`.

use std::collections::HashSet;
use std::fmt;
use std::fs;

use anyhow::{Context, Result, bail, ensure};
use enforcer_tests::folder;
use serde::Deserialize;

use crate::step::{Family, Step, Verb};

/// What must become of a script's requests. With a registered key or without: nothing else is ever executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expectation {
    /// Legitimate: exactly so many are executed, charged and answered.
    Served(u64),
    /// None is executed, and the worker is free as soon as the request was refused, with the client still there.
    Refused,
    /// None is executed; a worker may wait for the client.
    Dropped,
    /// At most so many are executed and charged.
    AtMost(u64),
}

impl fmt::Display for Expectation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Served(count) => write!(formatter, "served {count}"),
            Self::Refused => formatter.write_str("refused"),
            Self::Dropped => formatter.write_str("dropped"),
            Self::AtMost(count) => write!(formatter, "at most {count}"),
        }
    }
}

/// A script.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    /// Its name, unique among all.
    pub(crate) id: String,
    /// The file that it stands in.
    pub(crate) group: String,
    /// Why it does what it does, and what follows from which RFC.
    pub(crate) why: String,
    /// What must become of it.
    pub(crate) expect: Expectation,
    /// The limit of its key.
    pub(crate) limit: String,
    /// The only family that it can be said in.
    pub(crate) family: Option<Family>,
    /// Whether it sends several requests on one connection; a server that keeps none executes the first only.
    pub(crate) kept: bool,
    /// What it does.
    pub(crate) steps: Vec<Step>,
}

impl Script {
    /// Whether it begins without the enforcer, and attaches it.
    pub(crate) fn attaches(&self) -> bool {
        self.steps.iter().any(|step| step.verb == Verb::Attach)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    variant: Vec<Variant>,
    script: Vec<Entry>,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Variant {
    name: String,
    why: String,
    with: String,
    #[serde(default)]
    connect: String,
    family: Option<Family>,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    id: String,
    why: String,
    expect: String,
    steps: String,
    #[serde(default = "ample")]
    limit: String,
    family: Option<Family>,
    #[serde(default)]
    kept: bool,
}

fn ample() -> String {
    "1000/hour".to_owned()
}

/// All scripts, by file and place.
///
/// # Errors
/// When a file cannot be read or a script not understood; names both.
pub(crate) fn load() -> Result<Vec<Script>> {
    let mut paths: Vec<_> = fs::read_dir(folder().join("adversary/tcp"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<_>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    let mut scripts = Vec::new();
    for path in paths {
        let group = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path)?;
        let file: File = toml::from_str(&text).with_context(|| format!("in {}", path.display()))?;
        for entry in &file.script {
            let context = || format!("in script {} of {}", entry.id, path.display());
            for entry in expand(entry, &file.variant).with_context(context)? {
                scripts.push(read(&group, &entry).with_context(context)?);
            }
        }
    }
    let mut ids = HashSet::new();
    for script in &scripts {
        ensure!(ids.insert(&script.id), "two scripts are named {}", script.id);
    }
    Ok(scripts)
}

fn expand(entry: &Entry, variants: &[Variant]) -> Result<Vec<Entry>> {
    if !["{with}", "{connect}"].iter().any(|name| entry.steps.contains(name)) {
        return Ok(vec![entry.clone()]);
    }
    ensure!(!variants.is_empty(), "it names a variant, and the file has none");
    let expanded = variants.iter().map(|variant| {
        let Variant { name, why, with, connect, family } = variant;
        let fill = |text: &str| {
            text.replace("{name}", name).replace("{why}", why).replace("{with}", with).replace("{connect}", connect)
        };
        Entry {
            id: fill(&entry.id),
            why: fill(&entry.why),
            steps: fill(&entry.steps),
            family: family.or(entry.family),
            ..entry.clone()
        }
    });
    Ok(expanded.collect())
}

fn read(group: &str, entry: &Entry) -> Result<Script> {
    let Entry { id, why, expect, steps, limit, family, kept } = entry;
    let well_named = id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    ensure!(well_named && (1..=56).contains(&id.len()), "a name is 1 to 56 of a-z, 0-9 and -");
    ensure!(why.len() > 20, "it gives no reason");
    let lines = steps.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let steps =
        lines.map(|line| Step::read(line).with_context(|| format!("in step {line:?}"))).collect::<Result<Vec<_>>>()?;
    for step in &steps {
        if let Some(only) = step.family() {
            ensure!(*family == Some(only), "step {:?} is of one IP version, and the script of both", step.line);
        }
    }
    ensure!(
        steps.first().is_some_and(|step| matches!(step.verb, Verb::Connect | Verb::Decoy | Verb::Syn)),
        "it connects to nothing"
    );
    Ok(Script {
        id: id.clone(),
        group: group.to_owned(),
        why: why.trim().to_owned(),
        expect: expectation(expect)?,
        limit: limit.clone(),
        family: *family,
        kept: *kept,
        steps,
    })
}

fn expectation(text: &str) -> Result<Expectation> {
    Ok(match text.rsplit_once(' ') {
        Some(("served", count)) => Expectation::Served(count.parse()?),
        Some(("at most", count)) => Expectation::AtMost(count.parse()?),
        None if text == "refused" => Expectation::Refused,
        None if text == "dropped" => Expectation::Dropped,
        _ => bail!("{text:?} is no expectation"),
    })
}
