//! `enforcer verify`: the program and the policy, tried on a link of their own.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;

use super::exit::Missing;
use super::output::{Format, number, print, say, second, table, text};
use super::proof::{self, Destination};
use super::{Usage, policy};
use crate::api::{Envelope, PolicyText, Status};
use crate::client::Client;
use crate::config::{self, Mode, Overrides, Settings, Switch};
use crate::doctor::{Workers, workers};
use crate::policy::document::DEFAULT_SERVICE;
use crate::policy::file;
use crate::verify::proof::sign;
use crate::verify::signer::{PublicKey, Signer};
use crate::verify::{Check, Matter, PolicyOf, Report, Stage, Statement, Subject, run};

const HELP: &str = "\
Loads the installed program beside the one that guards, on a veth pair between two network namespaces of this process, \
with the policy that holds and keys of its own whose limit is 5 an hour, and sends real requests: one key from three \
sources, two keys from one, no key, unknown, revoked and doubled ones, pipelined and split requests. What reaches the \
origin behind it must be the limit exactly. Live traffic, its counts and the store are not touched, and nothing is left, \
not even after a kill.

It shows that the program and the policy do what they say; that no traffic comes past the guard is what `enforcer doctor` \
looks at. Where the daemon observes, so does the test, and fails. It needs root, and takes some seconds.

With --proof it also writes what came of it, when, where, of which program and policy, and how many workers serve on the \
guarded ports, signed with the Ed25519 key of this installation, which is made when it is first needed. Who has the public \
key can check the file with --check, or with openssl, anywhere and without this program (docs/security.md).

The exit code is 0 if all checks passed, and 3 if one failed or a proof is not signed with the key.

  enforcer verify
  enforcer verify --policy policy.toml -o json    a policy before it is applied; needs no daemon
  enforcer verify --proof proof.json
  enforcer verify --show-public-key > enforcer.pub
  enforcer verify --check proof.json --public-key enforcer.pub    needs neither root nor a daemon";

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Arguments {
    /// Policy file to try instead of the daemon's policy; it is enforced
    #[arg(long, value_name = "FILE|-")]
    policy: Option<PathBuf>,

    /// Path to ask for: one that needs a key, and has no limit below 5 an hour
    #[arg(long, value_name = "PATH", default_value = "/", value_parser = path)]
    path: String,

    /// Configuration file, for what the answers say and the like [default: /etc/enforcer/enforcer.toml, which need not exist]
    #[arg(long, env = "ENFORCER_CONFIG", value_name = "FILE", hide_env_values = true)]
    config: Option<PathBuf>,

    /// The service whose policy and settings are tried [default: the only one]
    #[arg(long, value_name = "NAME")]
    service: Option<String>,

    /// Write what came of it as a signed proof too; - prints that in place of the table
    #[arg(long, value_name = "FILE|-")]
    proof: Option<PathBuf>,

    /// Check a proof instead, and show what it states
    #[arg(long, value_name = "FILE|-", conflicts_with_all = ["policy", "path", "service", "proof"])]
    check: Option<PathBuf>,

    /// The public key to check with: its file, or the middle line of that [default: this installation's]
    #[arg(long, value_name = "FILE|KEY", requires = "check")]
    public_key: Option<String>,

    /// Print this installation's public key instead
    #[arg(long, conflicts_with_all = ["policy", "path", "service", "proof", "check", "output"])]
    show_public_key: bool,

    /// Directory of the key that signs [default: the daemon's state directory, or else what the configuration says]
    #[arg(long, env = "ENFORCER_STATE_DIR", value_name = "DIR", hide_env_values = true)]
    state_dir: Option<PathBuf>,

    #[command(flatten)]
    format: Format,
}

fn path(text: &str) -> Result<String, &'static str> {
    match text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(text.to_owned()),
        false => Err("accepted: a path that begins with /, of printable ASCII without spaces"),
    }
}

/// Checks that did not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{failed} of {all} checks failed")]
pub(super) struct Failed {
    failed: usize,
    all: usize,
}

impl Arguments {
    pub(super) fn execute(self, socket: Option<PathBuf>) -> anyhow::Result<()> {
        let Self { policy, path, config, service, proof, check, public_key, show_public_key, state_dir, format } = self;
        // No daemon is asked for these two: who checks has none.
        let default_state_dir = |state_dir: Option<PathBuf>| match state_dir {
            Some(state_dir) => Ok(state_dir),
            None => settings(config.clone(), DEFAULT_SERVICE.to_owned(), Mode::Enforce, 80).map(|all| all.state_dir),
        };
        if show_public_key {
            let signer = Signer::of(&default_state_dir(state_dir)?)?;
            return Ok(print(&signer.public_key().to_string())?);
        }
        if let Some(file) = check {
            let key = match public_key {
                Some(key) => proof::public_key(&key)?,
                None => proof::own_key(&default_state_dir(state_dir)?)?,
            };
            let stated = proof::check(&file, &key)?;
            format.show(&stated, |stated| signed(&stated.body, &key) + &show(&stated.body))?;
            return outcome(&stated.body.report);
        }
        let socket = socket.unwrap_or_else(|| config::DEFAULT_SOCKET.into());
        let Tried { file, policy, service, mode, port, live } = match policy {
            Some(file) => of_file(&file, service)?,
            None => held(&Client::new(&socket), service)?,
        };
        let workers = live.as_ref().and_then(|live| behind(&live.ports));
        let settings = settings(config.clone(), service.clone(), mode, port)?;
        let policy_of = if live.is_some() { PolicyOf::Daemon } else { PolicyOf::File };
        let matter = Matter::new(&policy, policy_of, &service, &path, workers);
        let state_dir = state_dir.or(live.map(|live| live.state_dir)).unwrap_or_else(|| settings.state_dir.clone());
        let seal = |file: PathBuf| anyhow::Ok((Signer::of(&state_dir)?, Destination::of(&file)?));
        let seal = proof.map(seal).transpose()?;
        let report = run(Stage::enter()?, Subject { settings, policy, file, path })?;
        let stated = Envelope::new(matter.state(report)?);
        if let Some((signer, destination)) = &seal {
            destination.write(&sign(&stated, signer)?).context("the proof cannot be written")?;
        }
        if !matches!(seal, Some((_, Destination::Stdout))) {
            format.show(&stated, |stated| show(&stated.body))?;
        }
        outcome(&stated.body.report)
    }
}

/// Who serves on the guarded ports; who cannot be seen is no reason not to test.
fn behind(ports: &[u16]) -> Option<Workers> {
    workers(ports).inspect_err(|error| say(&format!("the workers are not counted: {error:#}"))).ok()
}

fn outcome(Report { passed: _, mode: _, checks }: &Report) -> anyhow::Result<()> {
    match checks.iter().filter(|check| !check.passed).count() {
        0 => Ok(()),
        failed => Err(Failed { failed, all: checks.len() }.into()),
    }
}

/// What is tried.
struct Tried {
    /// The policy, and its name.
    file: String,
    policy: String,
    /// The service, how it is guarded, and at which port.
    service: String,
    mode: Mode,
    port: u16,
    /// What only a daemon has.
    live: Option<Live>,
}

/// Of the daemon that was asked.
struct Live {
    /// The ports of the service.
    ports: Vec<u16>,
    state_dir: PathBuf,
}

/// The one that was asked for of these services, or the only one.
fn one_of(mut names: Vec<String>, wanted: Option<String>) -> anyhow::Result<String> {
    match wanted {
        Some(name) if names.contains(&name) => Ok(name),
        Some(name) => Err(Missing(format!("there is no service {name:?}; accepted: {}", names.join(", "))).into()),
        None if names.len() == 1 => Ok(names.swap_remove(0)),
        None => Err(Usage(format!("--service: there are several; accepted: {}", names.join(", "))).into()),
    }
}

/// What a policy file says of a service.
fn of_file(file: &Path, service: Option<String>) -> anyhow::Result<Tried> {
    let policy::Checked { name, text, .. } = policy::checked(file)?;
    let mut services: Vec<String> = match file::parse(&name, &text) {
        Ok(policy) => policy.services.into_keys().collect(),
        Err(problems) => return Err(Usage(format!("the policy is not right\n{problems}")).into()),
    };
    if services.is_empty() {
        services.push(DEFAULT_SERVICE.to_owned());
    }
    Ok(Tried {
        file: name,
        policy: text,
        service: one_of(services, service)?,
        mode: Mode::Enforce,
        port: 80,
        live: None,
    })
}

/// What the daemon holds of a service.
fn held(client: &Client, service: Option<String>) -> anyhow::Result<Tried> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let status: Envelope<Status> = client.get("/v1/status").await?;
        let policy: Envelope<PolicyText> = client.get("/v1/policy").await?;
        let services = status.body.services;
        let name = one_of(services.iter().map(|service| service.name.clone()).collect(), service)?;
        let service = services.into_iter().find(|service| service.name == name).context("the service is gone")?;
        let mode = service.mode.parse().map_err(|error| Usage(format!("the daemon's mode: {error}")))?;
        let port = *service.ports.first().context("the daemon guards no port")?;
        let live = Some(Live { ports: service.ports, state_dir: status.body.state_dir });
        Ok(Tried { file: "the daemon's policy".to_owned(), policy: policy.body.text, service: name, mode, port, live })
    })
}

/// The settings for a service: what the configuration says of it, or of all where it does not name it.
fn settings(config: Option<PathBuf>, service: String, mode: Mode, port: u16) -> anyhow::Result<Settings> {
    let resolve = |ports| {
        Settings::resolve(Overrides {
            config: config.clone(),
            interfaces: vec!["lo".to_owned()],
            ports,
            mode: Some(mode),
            // Its sources are of nobody's, and what they send is refused on purpose.
            penalty: Some(Switch::Off),
            ..Overrides::default()
        })
    };
    let mut settings = match resolve(Vec::new()) {
        Err(config::Error::Missing { .. }) => resolve(vec![port])?,
        resolved => resolved?,
    };
    let own = settings.services.iter().position(|guarded| guarded.name == service).unwrap_or(0);
    let mut guarded = settings.services.swap_remove(own);
    guarded.name = service;
    guarded.ports = vec![port];
    // It is alone on the stage, and takes what comes.
    guarded.hosts = Vec::new();
    settings.services = vec![guarded];
    Ok(settings)
}

/// What a proof is of, before what came of it.
fn signed(stated: &Statement, key: &PublicKey) -> String {
    let Statement { time, host, kernel, version, abi, object_sha256, service, path, policy_of, policy_sha256, .. } =
        stated;
    let policy_of = match policy_of {
        PolicyOf::Daemon => "held by the daemon",
        PolicyOf::File => "of a file",
    };
    let rows = [
        ("signed with", format!("key {}", key.id())),
        ("time", second(*time).to_string()),
        ("host", format!("{host}, Linux {kernel}")),
        ("program", format!("enforcer {version} (layout of the maps: {abi}), BPF object {object_sha256}")),
        ("policy", format!("{policy_of}, {policy_sha256}, service {service}, path {path}")),
    ];
    table(["PROOF", ""], rows.map(|(what, value)| [text(what), text(value.escape_debug())])) + "\n"
}

fn show(Statement { workers, report: Report { passed: _, mode, checks }, .. }: &Statement) -> String {
    let row = |Check { check, passed, sent, expected, executed, answers }: &Check| {
        let verdict = if *passed { "ok" } else { "FAILED" };
        let counts = [*sent, *expected, *executed].map(number);
        let [sent, expected, executed] = counts;
        [text(verdict), text(check), sent, expected, executed, text(summary(answers))]
    };
    let mut shown = table(["", "CHECK", "SENT", "TO PASS", "PASSED", "ANSWERS"], checks.iter().map(row));
    if let Some(workers) = workers {
        shown.push_str(&served_by(workers));
    }
    if mode == Mode::Observe.as_str() {
        shown.push_str("The daemon observes: it counts what it would refuse, and refuses nothing.\n");
    }
    shown
}

/// Who is behind the guard.
fn served_by(Workers { ports, workers, names }: &Workers) -> String {
    let ports = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    // Processes choose their names themselves.
    let names = names.iter().map(|name| name.escape_debug().to_string()).collect::<Vec<_>>().join(", ");
    match workers {
        0 => format!("Behind port {ports}: nobody listens.\n"),
        1 => format!("Behind port {ports}: 1 worker ({names}).\n"),
        more => format!("Behind port {ports}: {more} workers ({names}), for all of which one count holds.\n"),
    }
}

/// How often which status was answered, in the order of their first.
fn summary(answers: &[u16]) -> String {
    let mut counts: Vec<(u16, usize)> = Vec::new();
    for &status in answers {
        match counts.iter_mut().find(|(known, _)| *known == status) {
            Some((_, count)) => *count += 1,
            None => counts.push((status, 1)),
        }
    }
    let mut shown = String::new();
    for (status, count) in counts {
        let gap = if shown.is_empty() { "" } else { ", " };
        // Writing to a string does not fail.
        let _ = write!(shown, "{gap}{count} x {status}");
    }
    if shown.is_empty() { "none".to_owned() } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_in_the_order_that_they_first_came() {
        assert_eq!(summary(&[200, 200, 429, 200]), "3 x 200, 1 x 429");
        assert_eq!(summary(&[]), "none");
    }

    #[test]
    fn a_path_that_would_break_the_request_line_is_refused() {
        assert!(path("/data?x=1").is_ok());
        assert!(["", "data", "/a b", "/a\r\nX: y"].iter().all(|text| path(text).is_err()));
    }
}
