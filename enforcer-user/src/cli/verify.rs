//! `enforcer verify`: the program and the policy, tried on a link of their own.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use super::output::{Format, number, table, text};
use super::{Usage, policy};
use crate::api::{Envelope, PolicyText, Status};
use crate::client::Client;
use crate::config::{self, Mode, Overrides, Settings, Switch};
use crate::verify::{Check, Report, Stage, Subject, run};

const HELP: &str = "\
Loads the installed program beside the one that guards, on a veth pair between two network namespaces of this process, \
with the policy that holds and keys of its own whose limit is 5 an hour, and sends real requests: one key from three \
sources, two keys from one, no key, unknown, revoked and doubled ones, pipelined and split requests. What reaches the \
origin behind it must be the limit exactly. Live traffic, its counts and the store are not touched, and nothing is left, \
not even after a kill.

It shows that the program and the policy do what they say; that no traffic comes past the guard is what `enforcer doctor` \
looks at. Where the daemon observes, so does the test, and fails. It needs root, and takes some seconds.

The exit code is 0 if all checks passed, and 3 if one failed.

  enforcer verify
  enforcer verify --policy policy.toml -o json    a policy before it is applied; needs no daemon";

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
        let Self { policy, path, config, format } = self;
        let socket = socket.unwrap_or_else(|| config::DEFAULT_SOCKET.into());
        let (file, policy, mode, port) = match policy {
            Some(file) => {
                let (file, policy) = policy::checked(&file)?;
                (file, policy, Mode::Enforce, 80)
            }
            None => held(&Client::new(&socket))?,
        };
        let overrides = Overrides {
            config,
            interfaces: vec!["lo".to_owned()],
            ports: vec![port],
            mode: Some(mode),
            // Its sources are of nobody's, and what they send is refused on purpose.
            penalty: Some(Switch::Off),
            ..Overrides::default()
        };
        let settings = Settings::resolve(overrides)?;
        let report = run(Stage::enter()?, Subject { settings, policy, file, path })?;
        let report = Envelope::new(report);
        format.show(&report, |report| show(&report.body))?;
        let Report { passed: _, mode: _, checks } = &report.body;
        match checks.iter().filter(|check| !check.passed).count() {
            0 => Ok(()),
            failed => Err(Failed { failed, all: checks.len() }.into()),
        }
    }
}

/// What the daemon holds: the policy under a name, the mode, and a port that it guards.
fn held(client: &Client) -> anyhow::Result<(String, String, Mode, u16)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let status: Envelope<Status> = client.get("/v1/status").await?;
        let policy: Envelope<PolicyText> = client.get("/v1/policy").await?;
        let mode = status.body.mode.parse().map_err(|error| Usage(format!("the daemon's mode: {error}")))?;
        let port = *status.body.ports.first().context("the daemon guards no port")?;
        Ok(("the daemon's policy".to_owned(), policy.body.text, mode, port))
    })
}

fn show(Report { passed: _, mode, checks }: &Report) -> String {
    let row = |Check { check, passed, sent, expected, executed, answers }: &Check| {
        let verdict = if *passed { "ok" } else { "FAILED" };
        let counts = [*sent, *expected, *executed].map(number);
        let [sent, expected, executed] = counts;
        [text(verdict), text(check), sent, expected, executed, text(summary(answers))]
    };
    let mut shown = table(["", "CHECK", "SENT", "TO PASS", "PASSED", "ANSWERS"], checks.iter().map(row));
    if *mode == Mode::Observe.as_str() {
        shown.push_str("The daemon observes: it counts what it would refuse, and refuses nothing.\n");
    }
    shown
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
