//! The self-test of `enforcer verify`: the installed program and a policy, held against real requests on a link of their own.
//!
//! A daemon like any other guards one end of a veth pair, with a store, pins and keys that nothing else sees, and an
//! origin behind it notes what reaches it. Live traffic and its counts are not touched. Everything lies in namespaces of
//! this process, so that it is gone when the process is, whatever ends it.
//!
//! # Layout
//! - `stage`: the namespaces, the link and the mounts
//! - `link`: the veth pair, over netlink
//! - `origin`: the server behind the guard
//! - `visitor`: a client, at any of its addresses
//! - `checks`: what is sent, and what must come of it
//! - `statement`: what came of it, and of what it is true
//! - `proof`: a statement that is signed, as a file
//! - `signer`: the keys that it is signed and checked with

mod checks;
mod link;
mod origin;
pub mod proof;
pub mod signer;
mod stage;
mod statement;
mod visitor;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::api::{AddKey, ApplyPolicy, Envelope, KeyAdded, KeysChanged, PolicyApplied, Status};
use crate::client::{self, Client};
use crate::config::{Metrics, Settings};
use crate::daemon;
use crate::policy::{Limits, Policy, file};
use checks::{Keys, Strangers};
use origin::Origin;
pub use stage::{Error, Stage};
pub use statement::{Matter, PolicyOf, Statement};

/// How long the daemon of the test may take to be ready.
const READY: Duration = Duration::from_secs(30);

/// What is verified.
#[derive(Debug)]
pub struct Subject {
    /// The settings, of which interface, directories and metrics are replaced; it guards the first port of the first service.
    pub settings: Settings,
    /// The policy file.
    pub policy: String,
    /// Its name, for errors.
    pub file: String,
    /// The path that is asked for. It must need a key, and no limit at it may be below those of the test.
    pub path: String,
}

/// What came of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What it is called.
    pub check: String,
    /// Whether as many requests as must reached the app, and all others were refused.
    pub passed: bool,
    /// Requests that were sent.
    pub sent: usize,
    /// Requests that must reach the app.
    pub expected: usize,
    /// Requests that did.
    pub executed: usize,
    /// Statuses that the clients were answered, in order; a request without an answer has none.
    pub answers: Vec<u16>,
}

/// What came of all of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Whether all passed.
    pub passed: bool,
    /// `enforce` or `observe`: what the daemon was told to do with refusals.
    pub mode: String,
    /// One for each question.
    pub checks: Vec<Check>,
}

/// Runs all checks. Blocks, and leaves the calling thread within the stage's namespaces.
///
/// # Errors
/// The stage or the daemon on it could not be set up, the policy was refused, or a signal ended it.
pub fn run(stage: Stage, subject: Subject) -> anyhow::Result<Report> {
    // Its threads begin in the namespaces of this one.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        tokio::select! {
            report = play(stage, subject) => report,
            _ = interrupt.recv() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
        }
    })
}

async fn play(stage: Stage, subject: Subject) -> anyhow::Result<Report> {
    let Subject { mut settings, policy, file, path } = subject;
    let mut service = settings.services.swap_remove(0);
    let policy = policy_of(&service.name, &file, &policy)?;
    let (field, strangers) = taken(&service.name, &file, &policy)?;
    let port = *service.ports.first().context("no port to guard")?;
    let mode = service.mode;
    service.ports = vec![port];
    settings.interfaces = vec![link::GUARDED.to_owned()];
    settings.services = vec![service];
    settings.state_dir = stage.folder().join("state");
    settings.socket = stage.folder().join("control.sock");
    settings.bpffs_dir = stage.pins();
    settings.metrics = Metrics::Off;
    settings.detach_on_exit = true;

    let address = SocketAddr::new(link::SERVER.into(), port);
    let origin = Origin::listen(address).await?;
    let client = Client::new(&settings.socket);
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async move {
        // An end of the other half, too, is an end.
        let _ = stopped.await;
    };
    let mut guard = tokio::spawn(daemon::run(settings, false, shutdown));
    tokio::select! {
        ready = ready(&client) => ready?,
        ended = &mut guard => { ended??; bail!("the daemon of the test has ended by itself") }
    }
    let request = ApplyPolicy { text: policy, file, dry_run: false, confirm_seconds: None, prune: false };
    let _: Envelope<PolicyApplied> = client.send(hyper::Method::POST, "/v1/policy", &request).await?;
    let keys = keys(&client).await?;
    let executed = origin.executed();
    let asked = tokio::task::spawn_blocking(move || {
        stage.as_client(move |runtime| {
            runtime.block_on(checks::all(address, &path, &field, &keys, strangers, &executed))
        })
    });
    let checks = asked.await??;
    let _ = stop.send(());
    guard.await??;
    Ok(Report { passed: checks.iter().all(|check| check.passed), mode: mode.as_str().to_owned(), checks })
}

/// A policy without what it says of other services, which the test's daemon does not guard.
fn policy_of(service: &str, name: &str, text: &str) -> anyhow::Result<String> {
    let mut policy = parsed(name, text)?;
    if policy.services.keys().all(|one| one == service) {
        return Ok(text.to_owned());
    }
    policy.services.retain(|one, _| one == service);
    Ok(policy.with_services([&service.to_owned()]).export())
}

/// The field that the policy takes keys from, the first where there are several, and whom it lets pass without a good one.
fn taken(service: &str, name: &str, text: &str) -> anyhow::Result<(String, Strangers)> {
    let site = parsed(name, text)?.services.remove(service).unwrap_or_default();
    let first = site.service.key_headers.first().context("the policy takes keys from no field")?;
    let strangers = Strangers {
        unkeyed: site.service.unkeyed != Limits::Blocked,
        unregistered: site.service.unregistered.is_some(),
    };
    Ok((first.as_str().to_owned(), strangers))
}

fn parsed(name: &str, text: &str) -> anyhow::Result<Policy> {
    file::parse(name, text).map_err(|problems| anyhow::anyhow!("the policy is not right\n{problems}"))
}

async fn ready(client: &Client) -> anyhow::Result<()> {
    let asked = async {
        loop {
            match client.get::<Status>("/v1/status").await {
                Err(client::Error::Unreachable { .. }) => tokio::time::sleep(Duration::from_millis(20)).await,
                answer => return answer.map(|_| ()),
            }
        }
    };
    Ok(tokio::time::timeout(READY, asked).await.context("the daemon of the test is not ready")??)
}

/// Makes the principals and keys of the checks; they live in the test's own store alone.
async fn keys(client: &Client) -> anyhow::Result<Keys> {
    let add = async |name: &str| -> anyhow::Result<KeyAdded> {
        let request = AddKey {
            name: format!("enforcer-verify-{name}"),
            label: None,
            limit: Some(format!("{}/hour", checks::LIMIT)),
            plan: None,
            not_before: None,
            expires: None,
        };
        let added: Envelope<KeyAdded> = client.send(hyper::Method::POST, "/v1/keys", &request).await?;
        if !added.body.new_principal {
            bail!("the policy names a principal {} itself", added.body.name);
        }
        Ok(added.body)
    };
    let revoked = add("revoked").await?;
    let _: Envelope<KeysChanged> = client.act(hyper::Method::DELETE, &format!("/v1/keys/id:{}", revoked.id)).await?;
    Ok(Keys {
        roaming: add("roaming").await?.key,
        neighbours: [add("first").await?.key, add("second").await?.key],
        revoked: revoked.key,
        twice: add("twice").await?.key,
        pipelined: add("pipelined").await?.key,
        split: add("split").await?.key,
    })
}
