//! `enforcer key`: add, ls, rm, disable, enable, import, rotate, limit, label; `show` has a file of its own.

mod show;

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use hyper::Method;
use jiff::Timestamp;
use zeroize::Zeroizing;

use super::exit::Usage;
use super::import::Lines;
use super::lasts::{Lasts, point, up_to};
use super::output::{Format, Watch, number, say, table, text, time};
use crate::api::{
    AddKey, ChangedKey, Envelope, ImportKeys, KeyAdded, KeyRotated, Keys, KeysChanged, KeysImported, MAX_BODY,
    RotateKey, SetKeyLimit, SetLabel,
};
use crate::client::{self, Client};
use crate::name::{self, Selector};
use crate::policy::Limits;
use show::Show;

const ADD_HELP: &str = "\
The key is printed once, on standard output, and cannot be shown again: the enforcer keeps only its tag. A principal \
can have several keys; all of them share its limit and its counts, so a second key gives no second budget.

There is no argument for a key of your own: it would show in `ps` and in the shell's history. Take over keys that \
exist with `enforcer key import`, from a file or from standard input.

  KEY=$(enforcer key add alice --limit '100/minute')
  curl -H \"X-API-Key: $KEY\" http://localhost:8000/

Where `key_headers` of the policy names other fields, it is sent in one of those: which, is printed with it.";

const LIMIT_HELP: &str = "\
Both limits hold: what the key may do is never more than its principal may, however high its own limit is. Each key \
that is named gets the limit for itself, and each has its own count. It takes effect with the next request, and what was \
used stays used. LIMIT is what `enforcer limit set` takes; `unlimited` takes the key's own limit away.

  enforcer key limit 1f8a0c3d '20/minute'";

const IMPORT_HELP: &str = "\
One key a line: `name,key` or `name,key,limit`. Blank lines and lines that begin with # are skipped. A limit may hold \
commas itself, since it is all behind the second comma; a key may not.

  # customers of 2024
  alice,6f1ed002ab5595859014ebf0951522d9
  bob,9b1deb4d-3b7d-4bad-9bdd-2b0d7b3dcb6d,1000/hour; 10/second

All lines are taken, or none: an error names its line and field. A name that is new gets the limit that any of its \
lines gives, or the default one. A key that another principal has is refused; one that its own principal has stays as \
it is.

A key that could be guessed is refused, with all others: one whose length and letters leave room for fewer than 128 \
bits, as 21 letters and digits or 31 hexadecimal digits do, or that repeats itself. `--weak` takes such keys too, and \
warns of each.";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a key for a principal, and print it once
    #[command(after_help = ADD_HELP)]
    Add(Add),
    /// List all keys by id, name, limit and counts; never the keys themselves
    #[command(visible_alias = "list")]
    Ls(List),
    /// Show what holds for a key: state, times, plan, limits and what is left of them; never the key itself
    Show(Show),
    /// Revoke keys: all of a principal's, or one by its id
    ///
    /// The principal keeps its limit and its counts, so that adding a key again does not give it a fresh budget.
    #[command(visible_alias = "remove")]
    Rm(Select),
    /// Refuse keys until they are enabled again
    Disable(Select),
    /// Accept keys that were disabled
    Enable(Select),
    /// Take over keys that exist, from a file or from standard input
    #[command(after_help = IMPORT_HELP)]
    Import(Import),
    /// Make a new key beside one that ends after a time: both count for the same principal, and the new one has the dates
    /// that the old one had
    Rotate(Rotate),
    /// Put a key under a limit of its own, beside its principal's
    #[command(after_help = LIMIT_HELP)]
    Limit(Limit),
    /// Call a key something, to tell it from its principal's other keys
    Label(Label),
}

#[derive(Debug, Args)]
pub(super) struct Add {
    /// Name of the principal, made if it is new: 1 to 64 of A-Z a-z 0-9 . _ -
    name: String,
    /// Limit of a new principal, such as '100/minute; 10/second' [default: the daemon's --default-limit]
    #[arg(long, value_name = "LIMIT")]
    limit: Option<Limits>,
    /// Plan of a new principal, whose limit holds for it
    #[arg(long, value_name = "NAME", conflicts_with = "limit")]
    plan: Option<String>,
    /// What the key is called beside its principal's others, of the same letters as a name
    #[arg(long, value_name = "LABEL")]
    label: Option<String>,
    /// How long it is good, such as 90d [default: for ever]
    #[arg(long, value_name = "TIME")]
    lasts: Option<Lasts>,
    /// From when on it is good, such as 2027-01-01T00:00:00Z [default: at once]
    #[arg(long, value_name = "TIME", value_parser = point)]
    not_before: Option<Timestamp>,
    #[command(flatten)]
    format: Format,
    /// Only to be refused with a reason that does not repeat it.
    #[arg(hide = true)]
    key: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    watch: Watch,
}

#[derive(Debug, Args)]
pub(super) struct Select {
    /// A principal's name, for all its keys, or a key's id (`name:X` or `id:X` where X could be either)
    #[arg(value_name = "NAME|ID")]
    selector: String,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, Args)]
pub(super) struct Import {
    /// The file, or - for standard input
    #[arg(value_name = "FILE|-")]
    file: PathBuf,
    /// Also take keys that could be guessed
    #[arg(long)]
    weak: bool,
    #[command(flatten)]
    format: Format,
}

impl Command {
    pub(super) async fn execute(self, client: &Client) -> anyhow::Result<()> {
        match self {
            Self::Add(arguments) => arguments.execute(client).await,
            Self::Ls(arguments) => arguments.execute(client).await,
            Self::Show(arguments) => arguments.execute(client).await,
            Self::Rm(arguments) => arguments.execute(client, Method::DELETE, "", "removed").await,
            Self::Disable(arguments) => arguments.execute(client, Method::POST, "/disable", "disabled").await,
            Self::Enable(arguments) => arguments.execute(client, Method::POST, "/enable", "enabled").await,
            Self::Import(arguments) => arguments.execute(client).await,
            Self::Rotate(arguments) => arguments.execute(client).await,
            Self::Limit(arguments) => arguments.execute(client).await,
            Self::Label(arguments) => arguments.execute(client).await,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Limit {
    /// A key's id, or a principal's name for each of its keys
    #[arg(value_name = "NAME|ID")]
    selector: String,
    /// The limit, such as '20/minute'; `unlimited` takes it away
    limit: Limits,
    #[command(flatten)]
    format: Format,
}

impl Limit {
    async fn execute(self, client: &Client) -> anyhow::Result<()> {
        let Self { selector, limit, format } = self;
        check_selector(&selector)?;
        let request = SetKeyLimit { limit: limit.to_string() };
        let path = format!("/v1/keys/{selector}/limit");
        let changed: Envelope<KeysChanged> = client.send(Method::PUT, &path, &request).await?;
        let done = match limit {
            Limits::Unlimited => "without a limit of its own".to_owned(),
            limit => format!("under `{limit}`, and under its principal's limit"),
        };
        format.show(&changed, |changed| lines(&changed.body, &done))
    }
}

#[derive(Debug, Args)]
pub(super) struct Label {
    /// A key's id, or a principal's name for all its keys
    #[arg(value_name = "NAME|ID")]
    selector: String,
    /// What it is called, of the same letters as a name [default: nothing]
    label: Option<String>,
    #[command(flatten)]
    format: Format,
}

impl Label {
    async fn execute(self, client: &Client) -> anyhow::Result<()> {
        let Self { selector, label, format } = self;
        check_selector(&selector)?;
        check_label(label.as_deref())?;
        let done = label.as_ref().map_or_else(|| "without a label".to_owned(), |label| format!("called `{label}`"));
        let path = format!("/v1/keys/{selector}/label");
        let changed: Envelope<KeysChanged> = client.send(Method::PUT, &path, &SetLabel { label }).await?;
        format.show(&changed, |changed| lines(&changed.body, &done))
    }
}

fn check_selector(text: &str) -> Result<(), Usage> {
    match Selector::parse(text) {
        Some(_) => Ok(()),
        None => Err(Usage(format!("NAME|ID: this is neither; accepted: {}", Selector::ACCEPTED))),
    }
}

fn check_label(label: Option<&str>) -> Result<(), Usage> {
    let check =
        |label| name::check(label).map_err(|error| Usage(format!("LABEL: {error}; accepted: {}", name::ACCEPTED)));
    label.map_or(Ok(()), check)
}

/// A line for each key.
fn lines(KeysChanged { keys }: &KeysChanged, done: &str) -> String {
    let line = |key: &ChangedKey| match key.changed {
        true => format!("{} of `{}` {done}\n", key.id, key.name),
        false => format!("{} of `{}` was {done} already\n", key.id, key.name),
    };
    keys.iter().map(line).collect()
}

#[derive(Debug, Args)]
pub(super) struct Rotate {
    /// A key's id, or the name of a principal with one good key
    #[arg(value_name = "NAME|ID")]
    selector: String,
    /// How long the old key goes on, such as 24h; at most 365d
    #[arg(long, value_name = "TIME", value_parser = up_to(365 * 86_400, "365d"))]
    overlap: Lasts,
    #[command(flatten)]
    format: Format,
}

impl Rotate {
    async fn execute(self, client: &Client) -> anyhow::Result<()> {
        let Self { selector, overlap, format } = self;
        let request = RotateKey { key: selector, overlap_seconds: overlap.seconds() };
        let rotated: Envelope<KeyRotated> = client.send(Method::POST, "/v1/keys/rotate", &request).await?;
        format.show(&rotated, |rotated| {
            let KeyRotated { key, id, name, old, old_expires, fields } = &rotated.body;
            say(&format!(
                "Key {id} of `{name}`, for the field {}. It is shown once: keep it. Key {old} ends at {old_expires}; until then both count \
                 against the same limits.",
                fields.join(" or ")
            ));
            format!("{}\n", key.as_str())
        })
    }
}

impl Add {
    async fn execute(self, client: &Client) -> anyhow::Result<()> {
        let Self { name, limit, plan, label, lasts, not_before, format, key } = self;
        if key.map(Zeroizing::new).is_some() {
            let message = "a key is never taken from the command line, where `ps` shows it: `enforcer key add NAME` \
                           makes one, `enforcer key import FILE` (or -) takes over one that exists";
            return Err(Usage(message.into()).into());
        }
        check_name(&name)?;
        check_label(label.as_deref())?;
        let begin = not_before.unwrap_or_else(Timestamp::now);
        let expires = lasts.map(|lasts| begin + lasts.0);
        let limit = limit.map(|limits| limits.to_string());
        let request = AddKey { name, label, limit, plan, not_before, expires };
        let added: Envelope<KeyAdded> = client.send(Method::POST, "/v1/keys", &request).await?;
        format.show(&added, |added| {
            let KeyAdded { key, id, name, limit, new_principal, fields } = &added.body;
            let whose = if *new_principal { "the new principal" } else { "the principal" };
            let fields = fields.join(" or ");
            say(&format!(
                "Key {id} of {whose} `{name}`, limit {limit}, for the field {fields}. It is shown once: keep it."
            ));
            format!("{}\n", key.as_str())
        })
    }
}

pub(super) fn check_name(text: &str) -> Result<(), Usage> {
    name::check(text).map_err(|error| Usage(format!("NAME: {error}; accepted: {}", name::ACCEPTED)))
}

impl List {
    async fn execute(self, client: &Client) -> anyhow::Result<()> {
        let Self { format, watch } = self;
        watch.show(format, async || Ok(client.get::<Keys>("/v1/keys").await?), |keys| listing(&keys.body)).await
    }
}

fn listing(Keys { keys }: &Keys) -> String {
    if keys.is_empty() {
        return "There are no keys yet: `enforcer key add NAME` makes one.\n".to_owned();
    }
    let header = [
        "ID",
        "NAME",
        "LABEL",
        "STATE",
        "LIMIT",
        "OWN-LIMIT",
        "ALLOWED",
        "LIMITED",
        "DENIED",
        "WOULD-REFUSE",
        "CREATED",
    ];
    let or_none = |value: &Option<String>| text(value.as_deref().unwrap_or("-"));
    table(
        header,
        keys.iter().map(|key| {
            [
                text(&key.id),
                text(&key.name),
                or_none(&key.label),
                text(&key.state),
                text(&key.limit),
                or_none(&key.own_limit),
                number(key.counts.allowed),
                number(key.counts.limited),
                number(key.counts.denied),
                number(key.counts.would_refuse),
                time(key.created),
            ]
        }),
    )
}

impl Select {
    async fn execute(self, client: &Client, method: Method, verb: &str, done: &str) -> anyhow::Result<()> {
        let Self { selector, format } = self;
        check_selector(&selector)?;
        let changed: Envelope<KeysChanged> = client.act(method, &format!("/v1/keys/{selector}{verb}")).await?;
        format.show(&changed, |changed| lines(&changed.body, done))
    }
}

impl Import {
    async fn execute(self, client: &Client) -> anyhow::Result<()> {
        let Self { file, weak, format } = self;
        let shown = if is_stdin(&file) { "standard input".to_owned() } else { file.display().to_string() };
        let content = self::read(&file).with_context(|| format!("{shown} cannot be read"))?;
        let content = str::from_utf8(&content).map_err(|error| {
            let line = content[..error.valid_up_to()].iter().filter(|&&byte| byte == b'\n').count() + 1;
            Usage(format!("{shown}: line {line}: this is no UTF-8 text"))
        })?;
        let mut lines =
            Lines::parse(content, weak).map_err(|error| Usage(format!("{shown}: {error}; nothing was imported")))?;
        for (line, why) in &lines.warnings {
            say(&format!("warning: {shown}: line {line}, key: {why}"));
        }
        let request = ImportKeys { entries: std::mem::take(&mut lines.entries), weak };
        let answer = client.send::<KeysImported>(Method::POST, "/v1/keys/import", &request).await;
        let imported = answer.map_err(|error| match &error {
            client::Error::Refused { refusal, .. } => match lines.locate(refusal) {
                Some(located) => Usage(format!("{shown}: {located}; nothing was imported")).into(),
                None => anyhow::Error::from(error),
            },
            _ => error.into(),
        })?;
        format.show(&imported, |imported| {
            let KeysImported { imported, unchanged, new_principals } = imported.body;
            format!("{imported} keys imported, {unchanged} were there already; {new_principals} new principals\n")
        })
    }
}

fn is_stdin(file: &std::path::Path) -> bool {
    file.as_os_str() == "-"
}

/// Reads at most what the daemon takes, into memory that is zeroed again.
fn read(file: &std::path::Path) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let source: Box<dyn Read> = if is_stdin(file) { Box::new(io::stdin()) } else { Box::new(File::open(file)?) };
    // Full capacity at once: a growing buffer would leave copies of keys behind.
    let mut content = Zeroizing::new(Vec::with_capacity(MAX_BODY + 1));
    source.take(MAX_BODY as u64 + 1).read_to_end(&mut content)?;
    anyhow::ensure!(content.len() <= MAX_BODY, "it is larger than {} MiB: import it in parts", MAX_BODY >> 20);
    Ok(content)
}
