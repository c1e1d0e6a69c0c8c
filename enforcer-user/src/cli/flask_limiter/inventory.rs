//! What an app's Flask-Limiter limits, as the app itself tells: `inventory.py` runs in its interpreter.

use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use serde::Deserialize;

const SCRIPT: &str = include_str!("inventory.py");

/// All that Flask-Limiter holds of an app.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Inventory {
    /// Flask-Limiter's.
    pub(super) version: String,
    /// `fixed-window`, `moving-window` or `sliding-window-counter`.
    pub(super) strategy: String,
    /// For each endpoint that has no limit of its own.
    pub(super) defaults: Vec<Limit>,
    /// Over all endpoints together.
    pub(super) application: Vec<Limit>,
    /// The app's URL rules.
    pub(super) routes: Vec<Rule>,
    /// The key functions, which limits name by their place.
    pub(super) keys: Vec<KeyFunction>,
    /// The converters whose variables can hold slashes.
    pub(super) spanning: Vec<String>,
    /// The settings in use that stand for code of the app, or for answers.
    pub(super) settings: Vec<String>,
    /// The app believes a proxy's X-Forwarded-For.
    pub(super) behind_proxy: bool,
}

/// A URL rule, with the limits on its view.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rule {
    /// As Flask writes it: `/user/<int:id>`.
    pub(super) rule: String,
    pub(super) endpoint: String,
    pub(super) methods: Vec<String>,
    /// The host or subdomain that it is bound to.
    pub(super) host: Option<String>,
    /// Flask-Limiter never limits an endpoint of this name.
    pub(super) is_static: bool,
    pub(super) exempt_from_defaults: bool,
    pub(super) exempt_from_application: bool,
    pub(super) decorated: Vec<Limit>,
    pub(super) blueprint: Vec<Limit>,
}

/// One string of limits and the conditions on it.
#[derive(Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(super) struct Limit {
    /// The place of its key function.
    pub(super) key: usize,
    pub(super) windows: Vec<Window>,
    pub(super) scope: Option<String>,
    pub(super) shared: bool,
    pub(super) per_method: bool,
    /// Absent: all.
    pub(super) methods: Option<Vec<String>>,
    /// It stands in the place of the defaults, not beside them.
    pub(super) overrides: bool,
    /// Absent: computed for each request.
    pub(super) cost: Option<u32>,
    /// The arguments given that no policy can hold.
    pub(super) ignored: Vec<String>,
    /// The function that makes the string for each request.
    #[serde(default)]
    pub(super) dynamic: Option<Function>,
    /// A string that Flask-Limiter does not understand.
    #[serde(default)]
    pub(super) malformed: Option<String>,
}

/// Code of the app.
#[derive(Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(super) struct Function {
    pub(super) name: String,
    /// `FILE:LINE`, if it is written in Python.
    pub(super) place: Option<String>,
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, place } = self;
        match place {
            Some(place) => write!(f, "`{name}` ({place})"),
            None => write!(f, "`{name}`"),
        }
    }
}

/// `count` requests in `every` units.
#[derive(Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(super) struct Window {
    pub(super) count: u64,
    pub(super) every: u64,
    pub(super) unit: String,
}

/// A function that tells whose request it is, and what made it tell something else.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeyFunction {
    pub(super) name: String,
    /// `source`, `query`, or a header.
    pub(super) looks_at: Vec<String>,
    /// The exception that it ended with.
    #[serde(default)]
    pub(super) failed: Option<String>,
}

impl Inventory {
    /// Imports `app` (`MODULE:APP`) with an interpreter and asks it.
    pub(super) fn take(python: &Path, app: &str) -> anyhow::Result<Self> {
        let output = Command::new(python)
            .args(["-B", "-c", SCRIPT, app])
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("the interpreter {} cannot be started", python.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().last().unwrap_or("it said nothing");
        ensure!(output.status.success(), "{app} cannot be read with {}: {last}", python.display());
        serde_json::from_slice(&output.stdout).context("what the app's interpreter printed is no inventory")
    }
}
