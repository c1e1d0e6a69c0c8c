//! Real clients, each in its own words, and what they were answered.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use enforcer_tests::netns::Namespace;
use enforcer_tests::origin::venv;
use enforcer_tests::{folder, process};
use serde::Deserialize;

/// A client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    /// The command.
    Curl,
    /// Python's, blocking: it reads nothing before all is sent.
    Requests,
    /// Python's, blocking.
    Httpx,
    /// Python's, asynchronous.
    Aiohttp,
    /// Node's `fetch`.
    Node,
    /// Java's `HttpClient`.
    Java,
    /// Headless Chromium's `fetch`, in a page of the server; it keeps connections where the server does.
    Chromium,
}

/// A request, as the clients make it.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// The method.
    pub(crate) method: &'static str,
    /// The path.
    pub(crate) path: String,
    /// A field beside the client's own, as `Name: value`.
    pub(crate) field: Option<String>,
    /// Bytes of its body.
    pub(crate) size: usize,
}

impl Request {
    /// A GET of `path` with a further field.
    pub(crate) fn get(path: &str, field: Option<String>) -> Self {
        Self { method: "GET", path: path.to_owned(), field, size: 0 }
    }
}

/// What a client saw of an answer.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Response {
    /// The status.
    pub(crate) status: u16,
    /// Names and values of the fields.
    pub(crate) fields: Vec<(String, String)>,
    /// The body.
    pub(crate) body: String,
    /// The client's number of the connection, if it has such.
    pub(crate) connection: Option<u64>,
}

/// What came of a request.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Outcome {
    Answered(Response),
    Failed { error: String },
}

impl Client {
    /// All of them.
    pub(crate) const ALL: [Self; 7] =
        [Self::Curl, Self::Requests, Self::Httpx, Self::Aiohttp, Self::Node, Self::Java, Self::Chromium];

    /// Whether it lets its user ask for an upgrade.
    pub(crate) const fn can_upgrade(self) -> bool {
        !matches!(self, Self::Node | Self::Java | Self::Chromium)
    }

    /// Makes the requests of the server at each of the URLs, one after the other, each on a connection of its own if the server keeps
    /// none.
    ///
    /// # Errors
    /// When the client cannot be started, or one of its requests was not answered.
    pub(crate) fn run(self, namespace: &Namespace, urls: &[String], requests: &[Request]) -> Result<Vec<Response>> {
        let clients = folder().join("clients");
        let python = |script: &str, name: &[&str]| -> Result<_> {
            let mut command = namespace.command(venv("python")?);
            command.arg("-B").arg(clients.join(script)).args(name);
            Ok(command)
        };
        let mut command = match self {
            Self::Curl => python("refused.py", &["curl"])?,
            Self::Requests => python("refused.py", &["requests"])?,
            Self::Httpx => python("refused.py", &["httpx"])?,
            Self::Aiohttp => python("refused.py", &["aiohttp"])?,
            Self::Chromium => python("browser.py", &[])?,
            Self::Node => {
                let mut command = namespace.command("node");
                command.arg(clients.join("refused.mjs"));
                command
            }
            Self::Java => {
                let mut command = namespace.command("java");
                // It runs for a second: what takes long to compile is not worth it.
                command.args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]).arg(clients.join("Refused.java"));
                command
            }
        };
        for url in urls {
            for Request { method, path, field, size } in requests {
                let field = field.as_deref().unwrap_or("-");
                command.args([method, &*format!("{url}{path}"), field, &*size.to_string()]);
            }
        }
        let printed = process::run(&mut command)?;
        let outcomes: Vec<Outcome> =
            serde_json::from_str(&printed).with_context(|| format!("{self:?} printed {printed:?}"))?;
        let answered = outcomes.into_iter().zip(requests.iter().cycle()).map(|(outcome, request)| match outcome {
            Outcome::Answered(response) => Ok(response),
            Outcome::Failed { error } => {
                bail!(
                    "{self:?} got no answer to {} {:.40} with {} bytes: {error}",
                    request.method,
                    request.path,
                    request.size
                )
            }
        });
        let answered: Vec<Response> = answered.collect::<Result<_>>()?;
        let wanted = urls.len() * requests.len();
        ensure!(answered.len() == wanted, "{self:?} made {} of {wanted} requests", answered.len());
        Ok(answered)
    }
}

/// Runs wrk for a second without a key; how many answers of another status than 2xx and 3xx it read, of how many in all.
///
/// # Errors
/// When it fails, or could not read an answer.
pub(crate) fn wrk(namespace: &Namespace, url: &str) -> Result<(u64, u64)> {
    let mut command = namespace.command("wrk");
    let printed = process::run(command.args(["--threads", "1", "--connections", "8", "--duration", "1s", url]))?;
    let lines: BTreeMap<&str, &str> = printed.lines().filter_map(|line| line.trim().split_once(": ")).collect();
    if let Some(errors) = lines.get("Socket errors") {
        bail!("wrk had errors: {errors}");
    }
    let all = printed.lines().find_map(|line| line.trim().split_once(" requests in "));
    let all = all.with_context(|| format!("wrk printed {printed:?}"))?.0.parse()?;
    Ok((lines.get("Non-2xx or 3xx responses").map_or(Ok(0), |count| count.parse())?, all))
}
