//! The clients as child processes in the client's namespace, and what they report.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use enforcer_tests::netns::Namespace;
use enforcer_tests::origin::venv;
use enforcer_tests::{folder, process};
use serde::Deserialize;

use crate::plan::{Step, requests};

/// A client that goes by a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    /// The command.
    Curl,
    /// Python's, blocking.
    Requests,
    /// Python's, blocking.
    Httpx,
    /// Python's, asynchronous.
    Aiohttp,
    /// Node's `fetch`.
    Node,
}

impl Client {
    /// All of them.
    pub(crate) const ALL: [Self; 5] = [Self::Curl, Self::Requests, Self::Httpx, Self::Aiohttp, Self::Node];

    /// Its name, and that of its principal.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Curl => "curl",
            Self::Requests => "requests",
            Self::Httpx => "httpx",
            Self::Aiohttp => "aiohttp",
            Self::Node => "node",
        }
    }

    /// Makes the plan's requests at each of the URLs in turn.
    fn run(self, namespace: &Namespace, key: &str, plan: &[Step], urls: &[String]) -> Result<Report> {
        let clients = folder().join("clients");
        let mut command = if self == Self::Node {
            let mut node = namespace.command("node");
            node.arg(clients.join("honest.mjs"));
            node
        } else {
            let mut python = namespace.command(venv("python")?);
            python.arg("-B").arg(clients.join("honest.py")).arg(self.name());
            python
        };
        let printed = process::run(command.arg(key).arg(serde_json::to_string(plan)?).args(urls))?;
        serde_json::from_str(&printed).with_context(|| format!("{} printed {printed:?}", self.name()))
    }
}

/// What a client saw.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Report {
    /// Requests that were answered with 200 and the right body.
    pub(crate) served: usize,
    /// What became of the others.
    pub(crate) failures: Vec<String>,
    /// How long each kind of request took in all, in seconds.
    pub(crate) seconds: BTreeMap<String, f64>,
}

/// What a job does.
#[derive(Clone, Debug)]
pub(crate) enum Task {
    /// A client's requests, to both servers.
    Planned(Client, Vec<Step>),
    /// As many requests as wrk can make of the server at this place.
    Wrk(usize),
}

/// Connections of wrk.
const WRK_CONNECTIONS: u64 = 4;
/// For how long wrk sends.
const WRK_SECONDS: u32 = 2;

impl Task {
    /// How many requests it makes; `None` if that is not known beforehand.
    pub(crate) fn requests(&self) -> Option<u64> {
        match self {
            Self::Planned(_, plan) => Some(SERVERS as u64 * requests(plan) as u64),
            Self::Wrk(_) => None,
        }
    }

    /// How many connections it has at once.
    pub(crate) const fn connections(&self) -> u64 {
        match self {
            Self::Planned(..) => 1,
            Self::Wrk(_) => WRK_CONNECTIONS,
        }
    }
}

/// How many servers there are.
pub(crate) const SERVERS: usize = 2;

/// A client at work, with a key of its own.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// Its name, and that of its principal.
    pub(crate) name: &'static str,
    /// Its key.
    pub(crate) key: String,
    /// What it does.
    pub(crate) task: Task,
}

impl Job {
    /// Does it.
    ///
    /// # Errors
    /// When the client could not be started, or reported nothing.
    pub(crate) fn run(&self, namespace: &Namespace, urls: &[String; SERVERS]) -> Result<Report> {
        match &self.task {
            Task::Planned(client, plan) => client.run(namespace, &self.key, plan, urls),
            Task::Wrk(server) => wrk(namespace, &self.key, &format!("{}/", urls[*server])),
        }
    }
}

/// Runs wrk, which does not count what was under way at its end.
fn wrk(namespace: &Namespace, key: &str, url: &str) -> Result<Report> {
    let mut command = namespace.command("wrk");
    command.args(["--threads", "1", "--connections", &WRK_CONNECTIONS.to_string()]);
    command.args(["--duration", &format!("{WRK_SECONDS}s"), "--timeout", "60s"]);
    let printed = process::run(command.args(["--header", &format!("X-API-Key: {key}"), url]))?;
    let mut failures = Vec::new();
    let mut served = None;
    for line in printed.lines().map(str::trim) {
        if line.starts_with("Socket errors:") || line.starts_with("Non-2xx") {
            failures.push(line.to_owned());
        }
        if let Some((count, _)) = line.split_once(" requests in ") {
            served = Some(count.parse()?);
        }
    }
    let Some(served) = served else { bail!("wrk printed {printed:?}") };
    ensure!(served > 0, "wrk completed nothing: {printed}");
    Ok(Report { served, failures, seconds: BTreeMap::from([("get".to_owned(), f64::from(WRK_SECONDS))]) })
}
