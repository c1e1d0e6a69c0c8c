//! `enforcer penalty`: ls, rm.

use clap::{Args, Subcommand};
use hyper::Method;

use super::exit::Usage;
use super::output::{Format, Watch, duration, number, table, text, time};
use crate::api::{EndedPenalty, Envelope, Penalties, PenaltiesEnded};
use crate::client::Client;
use crate::policy::document::DEFAULT_SERVICE;
use crate::prefix::Prefix;

const LS_HELP: &str = "\
A source is an IPv4 address or an IPv6 /64, unless `[penalty]` in the configuration file says otherwise, and each service \
knows it for itself. It opens no connection to a service while its penalty there lasts; what it sends on connections that are open is refused or served as ever.

  REFUSED    requests of it that were refused
  STRIKES    penalties so far; each takes twice as long as the last one, and all are forgotten after a time without
  REMAINING  until this penalty ends, which needs no daemon
  SERVED     when a registered key was last served from it, if that was noted: within a minute of it there is no penalty";

const RM_HELP: &str = "\
The source is let in at once, and its next penalty will be a first one. One that is under none stays as it is, which is \
no error; one that is not known is (`enforcer penalty ls --all` shows those that are). A prefix means every source \
that it meets: those within it, and the one that it is a part of.

  enforcer penalty rm 192.0.2.7
  enforcer penalty rm 2001:db8:0:1::/64
  enforcer penalty rm --all";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the sources that are kept out because they went on sending what is refused
    #[command(visible_alias = "list", after_help = LS_HELP)]
    Ls(List),
    /// End penalties before their time
    #[command(visible_alias = "remove", after_help = RM_HELP)]
    Rm(Remove),
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// All sources that are known, not only those under a penalty
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    watch: Watch,
}

#[derive(Debug, Args)]
pub(super) struct Remove {
    /// The source, or a prefix that means several
    #[arg(value_name = "ADDRESS|PREFIX", required_unless_present = "all", conflicts_with = "all")]
    source: Option<Prefix>,
    /// Every penalty there is
    #[arg(long)]
    all: bool,
    /// In this service alone [default: in all]
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    #[command(flatten)]
    format: Format,
}

impl Command {
    pub(super) async fn execute(self, client: &Client) -> anyhow::Result<()> {
        match self {
            Self::Ls(arguments) => arguments.execute(client).await,
            Self::Rm(arguments) => arguments.execute(client).await,
        }
    }
}

impl List {
    async fn execute(self, client: &Client) -> anyhow::Result<()> {
        let Self { all, format, watch } = self;
        let path = if all { "/v1/penalties?all=true" } else { "/v1/penalties" };
        let ask = async || Ok(client.get::<Penalties>(path).await?);
        watch.show(format, ask, |penalties| listing(&penalties.body, all)).await
    }
}

fn listing(Penalties { enabled, sources }: &Penalties, all: bool) -> String {
    if sources.is_empty() {
        let words = match (enabled, all) {
            (false, _) => "Penalties are off: `enforcer run --penalty on` turns them on.\n",
            (true, false) => "No source is under a penalty.\n",
            (true, true) => "No source is known yet.\n",
        };
        return words.to_owned();
    }
    let header = ["SERVICE", "SOURCE", "FAMILY", "REFUSED", "STRIKES", "REMAINING", "UNTIL", "SERVED"];
    table(
        header,
        sources.iter().map(|source| {
            let remaining = if source.remaining_ns == 0 { "-".to_owned() } else { duration(source.remaining_ns) };
            [
                text(&source.service),
                text(&source.source),
                text(format!("IPv{}", source.family)),
                number(source.refused),
                number(source.strikes),
                number(remaining),
                source.until.map_or_else(|| text("-"), time),
                source.served.map_or_else(|| text("-"), time),
            ]
        }),
    )
}

impl Remove {
    async fn execute(self, client: &Client) -> anyhow::Result<()> {
        let Self { source, all: _, service, format } = self;
        let mut path = match source {
            Some(source) => format!("/v1/penalties/{source}"),
            None => "/v1/penalties".to_owned(),
        };
        if let Some(service) = service {
            crate::name::check(&service).map_err(|error| Usage(format!("--service: {error}")))?;
            path.push_str(&format!("?service={service}"));
        }
        let ended: Envelope<PenaltiesEnded> = client.act(Method::DELETE, &path).await?;
        format.show(&ended, |ended| {
            let PenaltiesEnded { sources } = &ended.body;
            if sources.is_empty() {
                return "No source was under a penalty\n".to_owned();
            }
            let line = |EndedPenalty { service, source, changed }: &EndedPenalty| {
                let at = if service == DEFAULT_SERVICE { String::new() } else { format!(" in {service}") };
                match changed {
                    true => format!("Penalty of {source}{at} ended\n"),
                    false => format!("{source} was under no penalty{at}\n"),
                }
            };
            sources.iter().map(line).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::PenalisedSource;
    use jiff::Timestamp;

    #[test]
    fn each_source_has_its_line_and_none_is_said_in_words() {
        let second = |second| Timestamp::from_second(second).expect("a time");
        let kept_out = PenalisedSource {
            service: "api".into(),
            source: "192.0.2.7/32".into(),
            family: 4,
            refused: 512,
            strikes: 2,
            until: Some(second(1_800_000_000)),
            remaining_ns: 19_500_000_000,
            served: None,
        };
        let let_in = PenalisedSource {
            service: "web".into(),
            source: "2001:db8::/64".into(),
            family: 6,
            refused: 3,
            strikes: 0,
            until: None,
            remaining_ns: 0,
            served: Some(second(1_700_000_000)),
        };
        let penalties = Penalties { enabled: true, sources: vec![kept_out, let_in] };
        assert_eq!(
            listing(&penalties, true),
            "SERVICE  SOURCE         FAMILY  REFUSED  STRIKES  REMAINING  UNTIL                 SERVED\n\
             api      192.0.2.7/32   IPv4        512        2        20s  2027-01-15T08:00:00Z  -\n\
             web      2001:db8::/64  IPv6          3        0          -  -                     2023-11-14T22:13:20Z\n"
        );
        assert_eq!(listing(&Penalties { enabled: true, sources: vec![] }, false), "No source is under a penalty.\n");
        assert!(listing(&Penalties { enabled: false, sources: vec![] }, true).starts_with("Penalties are off"));
    }
}
