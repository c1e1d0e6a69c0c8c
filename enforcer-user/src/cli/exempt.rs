//! `enforcer exempt`: add, ls, rm.

use clap::{Args, Subcommand};
use hyper::Method;
use jiff::Timestamp;

use super::exit::Usage;
use super::lasts::Lasts;
use super::output::{Format, duration, number, second, table, text, time};
use super::policy;
use crate::api::{AddExemption, Envelope, Exemptions, HeldExemption, PolicyApplied, RemoveExemption};
use crate::client::Client;
use crate::policy::document::Exemption;

const ADD_HELP: &str = "\
Requests from these sources for this path need no key and count for no limit until the time is over, on connections \
that are open, too. It ends by itself, in the kernel, also if no daemon runs; there is none without an end. Adding the same \
path, methods and sources again gives it the new end and reason.

The bounds are those of [[exempt]] in a policy file: no source wider than /8, of IPv6 /7, and 64 exemptions of all \
services. The source is the address that a connection comes from, or the one that a trusted proxy tells.

It is part of the policy that holds: `enforcer export` prints it, and it outlives the daemon. `enforcer apply` of a file \
that does not have it takes it away, as all of a service that the file does not name: export first, or write it into the \
file. While a policy is on trial, exemptions do not change.

  enforcer exempt add /ready --source 10.0.0.0/8 --for 14d --reason 'load balancer, OPS-12'
  enforcer exempt add '/docs/*' --source 192.0.2.7,2001:db8::/64 --method GET --for 1h --reason OPS-13 --service web";

const RM_HELP: &str = "\
It is named by its path, its methods and all of its sources, as `enforcer exempt ls` shows them.

  enforcer exempt rm /ready --source 10.0.0.0/8";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Let requests of known sources pass without key and limit at a path, for a time
    #[command(after_help = ADD_HELP)]
    Add(Add),
    /// List the exemptions, those of the policy file among them
    #[command(visible_alias = "list")]
    Ls(List),
    /// Take an exemption away before its time
    #[command(visible_alias = "remove", after_help = RM_HELP)]
    Rm(Remove),
}

/// Which one.
#[derive(Debug, Args)]
pub(super) struct Named {
    /// The path; with /* at its end, what lies beneath it too
    path: String,
    /// An address or a prefix; repeat it, or separate several by commas
    #[arg(long = "source", value_name = "CIDR", required = true, value_delimiter = ',')]
    sources: Vec<String>,
    /// A method; repeat it, or separate several by commas [default: all]
    #[arg(long = "method", value_name = "METHOD", value_delimiter = ',')]
    methods: Vec<String>,
    /// The service [default: the only one]
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Add {
    #[command(flatten)]
    named: Named,
    /// For how long, such as 1h
    #[arg(long = "for", value_name = "TIME")]
    lasts: Lasts,
    /// Why it is there, such as a ticket
    #[arg(long, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, Args)]
pub(super) struct Remove {
    #[command(flatten)]
    named: Named,
    #[command(flatten)]
    format: Format,
}

impl Command {
    pub(super) async fn execute(self, client: &Client) -> anyhow::Result<()> {
        match self {
            Self::Add(arguments) => arguments.execute(client).await,
            Self::Ls(arguments) => arguments.execute(client).await,
            Self::Rm(arguments) => arguments.execute(client).await,
        }
    }
}

impl Add {
    async fn execute(self, client: &Client) -> anyhow::Result<()> {
        let Self { named: Named { path, sources, methods, service }, lasts, reason, format } = self;
        let now = Timestamp::now();
        // To the second, and never for less than was asked for.
        let until = second(now + lasts.0);
        let until = if until < now + lasts.0 { until + jiff::SignedDuration::from_secs(1) } else { until };
        // As the daemon will read it, so that its errors need none.
        Exemption::read(&path, &methods, &sources, (now, until), &reason).map_err(|error| Usage(error.to_string()))?;
        let request = AddExemption { service, path, methods, sources, until, reason };
        let applied: Envelope<PolicyApplied> = client.send(Method::POST, "/v1/exemptions", &request).await?;
        format.show(&applied, |applied| policy::show(&applied.body))
    }
}

impl List {
    async fn execute(self, client: &Client) -> anyhow::Result<()> {
        let all: Envelope<Exemptions> = client.get("/v1/exemptions").await?;
        self.format.show(&all, |all| listing(&all.body))
    }
}

impl Remove {
    async fn execute(self, client: &Client) -> anyhow::Result<()> {
        let Self { named: Named { path, sources, methods, service }, format } = self;
        Exemption::named(&path, &methods, &sources).map_err(|error| Usage(error.to_string()))?;
        let request = RemoveExemption { service, path, methods, sources };
        let applied: Envelope<PolicyApplied> = client.send(Method::DELETE, "/v1/exemptions", &request).await?;
        format.show(&applied, |applied| policy::show(&applied.body))
    }
}

fn listing(Exemptions { exemptions }: &Exemptions) -> String {
    if exemptions.is_empty() {
        return "Nobody is exempt.\n".to_owned();
    }
    let row = |one: &HeldExemption| {
        let HeldExemption { service, path, methods, sources, until, remaining_ns, reason } = one;
        let remaining = if *remaining_ns == 0 { "over".to_owned() } else { duration(*remaining_ns) };
        let methods = if methods.is_empty() { "*".to_owned() } else { methods.join(",") };
        let sources = sources.join(",");
        let [service, path, methods, sources] = [service, path, &methods, &sources].map(text);
        [service, path, methods, sources, time(*until), number(remaining), text(reason)]
    };
    table(["SERVICE", "PATH", "METHODS", "SOURCES", "UNTIL", "REMAINING", "REASON"], exemptions.iter().map(row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_exemption_has_its_line_and_none_is_said_in_words() {
        let one = |path: &str, methods: &[&str], remaining_ns| HeldExemption {
            service: "default".into(),
            path: path.into(),
            methods: methods.iter().map(|&method| method.to_owned()).collect(),
            sources: vec!["10.0.0.0/8".into(), "192.0.2.7/32".into()],
            until: Timestamp::from_second(1_800_000_000).expect("a time"),
            remaining_ns,
            reason: "OPS-12".into(),
        };
        let exemptions = vec![one("/docs/*", &["GET", "POST"], 90_000_000_000), one("/ready", &[], 0)];
        assert_eq!(
            listing(&Exemptions { exemptions }),
            "SERVICE  PATH     METHODS   SOURCES                  UNTIL                 REMAINING  REASON\n\
             default  /docs/*  GET,POST  10.0.0.0/8,192.0.2.7/32  2027-01-15T08:00:00Z     1m 30s  OPS-12\n\
             default  /ready   *         10.0.0.0/8,192.0.2.7/32  2027-01-15T08:00:00Z       over  OPS-12\n"
        );
        assert_eq!(listing(&Exemptions { exemptions: vec![] }), "Nobody is exempt.\n");
    }
}
