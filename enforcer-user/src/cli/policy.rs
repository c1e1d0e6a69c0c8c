//! `enforcer apply`, `check`, `export`, `confirm`, `rollback`, `plan`.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use hyper::Method;
use jiff::Timestamp;

use super::exit::Usage;
use super::lasts::{Lasts, up_to};
use super::output::{Format, Watch, number, print, say, table, text};
use crate::api::{
    ApplyPolicy, Envelope, Forecast, PolicyApplied, PolicyText, PrincipalForecast, Refusal, RuleForecast, TrialEnded,
};
use crate::client::{self, Client};
use crate::policy::file::{self, Level, Problems};

pub(super) const APPLY_HELP: &str = "\
All of the file holds from the next request on, also on open connections, or nothing of it does; what was used of a limit \
stays used. A principal that the file does not name keeps what it has. `enforcer export` prints the policy that holds in \
the same form, `enforcer check FILE` reads a file without a daemon.

With --confirm the kernel goes back to what held before once the time is over, with or without a daemon, unless `enforcer \
confirm` comes first.

  enforcer apply -f policy.toml --dry-run        show what would change
  enforcer apply -f policy.toml --confirm 60s    try it; then `enforcer confirm`, or `enforcer rollback`
  enforcer export | enforcer apply -f -";

pub(super) const PLAN_HELP: &str = "\
A `candidate` in a policy file is counted beside the limit that holds, on the requests that pass, and refuses nobody; a limit \
with `mode = \"observe\"`, or in a service's `observe`, is counted as if it were enforced. CANDIDATE and OBSERVED are the \
requests that such limits would have refused: of a principal all that it is measured by, its source's and the service's too.";

/// Largest policy file in bytes.
const MOST: u64 = 64 << 20;

#[derive(Debug, Args)]
pub(super) struct Apply {
    /// The policy file, or - for standard input
    #[arg(short, long, value_name = "FILE|-")]
    file: PathBuf,
    /// Only show what would change
    #[arg(long)]
    dry_run: bool,
    /// Go back by itself after this time, such as 60s, unless it is confirmed; at most 24h
    #[arg(long, value_name = "TIME", value_parser = up_to(86_400, "24h"), conflicts_with = "dry_run")]
    confirm: Option<Lasts>,
    /// Remove principals without keys that the file does not name
    #[arg(long)]
    prune: bool,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, Args)]
pub(super) struct Check {
    /// The policy file, or - for standard input
    #[arg(value_name = "FILE|-")]
    file: PathBuf,
    /// End with 1 if there is a warning
    #[arg(long)]
    strict: bool,
}

#[derive(Debug, Args)]
pub(super) struct Export {
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, Args)]
pub(super) struct End {
    #[command(flatten)]
    format: Format,
}

/// The text of a file, or of standard input, and what it is called in errors.
fn read(path: &Path) -> anyhow::Result<(String, String)> {
    let (name, text) = if path.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().take(MOST + 1).read_to_string(&mut text).context("standard input cannot be read")?;
        ("standard input".to_owned(), text)
    } else {
        let text = std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()));
        (path.display().to_string(), text.map_err(|error| Usage(format!("{error:#}")))?)
    };
    if text.len() as u64 > MOST {
        return Err(Usage(format!("{name} is larger than {MOST} bytes")).into());
    }
    Ok((name, text))
}

/// A policy file that is right.
pub(super) struct Checked {
    /// What it is called in messages.
    pub(super) name: String,
    pub(super) text: String,
    /// What of it does nothing, or more than is likely to be meant.
    warnings: Option<Problems>,
}

/// Reads the file as the daemon will, so that its errors need none.
pub(super) fn checked(path: &Path) -> anyhow::Result<Checked> {
    let (name, text) = read(path)?;
    match file::review(&name, &text, Timestamp::now()) {
        Ok((_, warnings)) => Ok(Checked { name, text, warnings }),
        Err(problems) => Err(Usage(format!("the policy is not right\n{problems}")).into()),
    }
}

impl Apply {
    pub(super) async fn execute(self, client: &Client) -> anyhow::Result<()> {
        let Self { file, dry_run, confirm, prune, format } = self;
        let Checked { name: file, text, warnings } = checked(&file)?;
        if let Some(warnings) = warnings.filter(|_| dry_run) {
            say(&warnings.to_string());
        }
        let request = ApplyPolicy { text, file, dry_run, confirm_seconds: confirm.map(Lasts::seconds), prune };
        let applied: Envelope<PolicyApplied> = match client.send(Method::POST, "/v1/policy", &request).await {
            // The file is known: it was named on the command line.
            Err(client::Error::Refused { status, refusal }) if refusal.field.as_deref() == Some("text") => {
                let refusal = Refusal { field: None, accepted: None, ..refusal };
                return Err(client::Error::Refused { status, refusal }.into());
            }
            applied => applied?,
        };
        format.show(&applied, |applied| show(&applied.body))
    }
}

pub(super) fn show(PolicyApplied { changes, applied, on_trial_until }: &PolicyApplied) -> String {
    if changes.is_empty() {
        return "Nothing differs from the policy that holds.\n".to_owned();
    }
    let lines: String = changes.iter().map(|change| format!("{change}\n")).collect();
    match (applied, on_trial_until) {
        (false, _) => say(&format!("{} would change; nothing has.", things(changes.len()))),
        (true, None) => say(&format!("{} changed.", things(changes.len()))),
        (true, Some(until)) => say(&format!(
            "{} changed, until {until}: `enforcer confirm` keeps it, `enforcer rollback` ends it.",
            things(changes.len())
        )),
    }
    lines
}

fn things(count: usize) -> String {
    if count == 1 { "1 thing".to_owned() } else { format!("{count} things") }
}

#[derive(Debug, Args)]
pub(super) struct Plan {
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    watch: Watch,
}

impl Plan {
    pub(super) async fn execute(self, client: &Client) -> anyhow::Result<()> {
        let Self { format, watch } = self;
        watch.show(format, async || Ok(client.get::<Forecast>("/v1/plan").await?), |plan| forecast(&plan.body)).await
    }
}

fn forecast(Forecast { principals, rules }: &Forecast) -> String {
    let mut shown = String::new();
    if principals.is_empty() {
        shown.push_str("Nobody would have been refused by a candidate, or by a limit that observes.\n");
    } else {
        let row = |one: &PrincipalForecast| {
            let candidate = one.candidate.as_deref().unwrap_or("-");
            let [passed, would, by_candidate] = [one.allowed, one.would_refuse, one.candidate_would_refuse].map(number);
            [text(&one.name), text(&one.limit), text(candidate), passed, by_candidate, would]
        };
        let head = ["NAME", "LIMIT", "CANDIDATE LIMIT", "PASSED", "CANDIDATE", "OBSERVED"];
        shown.push_str(&table(head, principals.iter().map(row)));
    }
    let row = |one: &RuleForecast| {
        let counts = [one.refused, one.candidate_would_refuse, one.would_refuse].map(number);
        let [refused, candidate, observed] = counts;
        [text(one.service.as_deref().unwrap_or("-")), text(&one.rule), refused, candidate, observed]
    };
    shown.push_str(&table(["SERVICE", "RULE", "REFUSED", "CANDIDATE", "OBSERVED"], rules.iter().map(row)));
    shown
}

impl Check {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        let Self { file, strict } = self;
        let Checked { name, text: _, warnings } = checked(&file)?;
        let warned = warnings.iter().flat_map(|all| &all.problems).filter(|one| one.level == Level::Warning).count();
        if let Some(warnings) = warnings {
            say(&warnings.to_string());
        }
        if strict && warned > 0 {
            anyhow::bail!("{name} is a policy, with {} to look at", things(warned));
        }
        print(&format!("{name} is a policy\n"))?;
        Ok(())
    }
}

impl Export {
    pub(super) async fn execute(self, client: &Client) -> anyhow::Result<()> {
        let policy: Envelope<PolicyText> = client.get("/v1/policy").await?;
        self.format.show(&policy, |policy| policy.body.text.clone())
    }
}

impl End {
    pub(super) async fn execute(self, client: &Client, how: &str) -> anyhow::Result<()> {
        let ended: Envelope<TrialEnded> = client.send(Method::POST, &format!("/v1/policy/{how}"), &()).await?;
        self.format.show(&ended, |ended| match ended.body.kept {
            true => "The policy holds for good.\n".to_owned(),
            false => "What held before holds again.\n".to_owned(),
        })
    }
}
