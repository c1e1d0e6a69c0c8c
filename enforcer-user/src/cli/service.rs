//! `enforcer service`: ls, show.

use clap::{Args, Subcommand};

use super::exit::Missing;
use super::output::{Format, Watch, duration, number, table, text};
use super::status::{labelled, totals};
use crate::api::{Envelope, ServiceStatus, Status};
use crate::client::Client;

const LS_HELP: &str = "\
A service is what the configuration gives a name, ports and maybe hosts: `[[service]]` in the file. All of them share the keys and \
principals; what a principal may do counts over all of them. Limits, routes and rules of each are in the policy, under the \
same name: `enforcer export`.

  PASSED, REFUSED, WOULD-REFUSE   requests, since the service has its place in the kernel's maps";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the services, and what each has passed and refused
    #[command(visible_alias = "list", after_help = LS_HELP)]
    Ls(List),
    /// Show one service: its ports, bounds and counts
    Show(Show),
}

#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    watch: Watch,
}

#[derive(Debug, Args)]
pub(super) struct Show {
    /// The service
    name: String,
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    watch: Watch,
}

impl Command {
    pub(super) async fn execute(self, client: &Client) -> anyhow::Result<()> {
        match self {
            Self::Ls(List { format, watch }) => {
                let ask = async || Ok(Envelope::new(services(client).await?));
                watch.show(format, ask, |services| listing(&services.body.services)).await
            }
            Self::Show(Show { name, format, watch }) => {
                let ask = async || {
                    let all = services(client).await?.services;
                    let there = all.iter().map(|service| service.name.as_str()).collect::<Vec<_>>().join(", ");
                    let missing = Missing(format!("there is no service {name:?}; accepted: {there}"));
                    Ok(Envelope::new(all.into_iter().find(|service| service.name == name).ok_or(missing)?))
                };
                watch.show(format, ask, |service| show(&service.body)).await
            }
        }
    }
}

/// What `ls --json` shows.
#[derive(serde::Serialize)]
struct Services {
    services: Vec<ServiceStatus>,
}

async fn services(client: &Client) -> anyhow::Result<Services> {
    let status: Envelope<Status> = client.get("/v1/status").await?;
    Ok(Services { services: status.body.services })
}

fn ports(service: &ServiceStatus) -> String {
    service.ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
}

/// Its hosts, where they tell it from others.
fn hosts(service: &ServiceStatus) -> String {
    if service.hosts.is_empty() { "-".to_owned() } else { service.hosts.join(", ") }
}

/// A line for each service.
pub(super) fn listing(services: &[ServiceStatus]) -> String {
    let row = |one: &ServiceStatus| {
        let counts = [one.totals.allowed, one.totals.refused, one.totals.would_refuse].map(number);
        let [passed, refused, would] = counts;
        let [ports, hosts, mode] = [ports(one), hosts(one), one.mode.clone()].map(text);
        [text(&one.name), ports, hosts, mode, text(&one.on_refuse), passed, refused, would]
    };
    let header = ["SERVICE", "PORTS", "HOSTS", "MODE", "ON-REFUSE", "PASSED", "REFUSED", "WOULD-REFUSE"];
    table(header, services.iter().map(row))
}

/// The lines that say how a service is set up.
pub(super) fn lines(service: &ServiceStatus) -> Vec<(&'static str, String)> {
    let mode = match service.mode.as_str() {
        "observe" => "observe (refusals are counted, and the requests pass)".to_owned(),
        mode => {
            let exceptions = service.on_refuse_by.iter().map(|(reason, word)| format!(", {reason}: {word}"));
            format!("{mode} (on refuse: {}{})", service.on_refuse, exceptions.collect::<String>())
        }
    };
    let waiting = format!(
        "{} for a first byte or a head, {} connections of one source at once",
        duration(service.head_timeout_ns),
        service.max_open_heads
    );
    let ServiceStatus { max_head, max_fields, max_target, max_body, .. } = service;
    let bounds =
        format!("head {max_head} bytes, {max_fields} fields, target {max_target} bytes, body {max_body} bytes");
    let mut lines = vec![("mode", mode), ("ports", ports(service))];
    if !service.hosts.is_empty() {
        lines.push(("hosts", hosts(service)));
    }
    lines.extend([("waiting", waiting), ("bounds", bounds)]);
    lines
}

fn show(service: &ServiceStatus) -> String {
    let mut all = vec![("service", service.name.clone())];
    all.extend(lines(service));
    all.push(("penalty", if service.penalties { "on".to_owned() } else { "off".to_owned() }));
    labelled(all) + &totals(&service.totals)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::api::Totals;

    pub(in crate::cli) fn example(name: &str) -> ServiceStatus {
        ServiceStatus {
            name: name.to_owned(),
            ports: vec![8000, 8001],
            hosts: Vec::new(),
            mode: "enforce".into(),
            on_refuse: "answer".into(),
            on_refuse_by: [("malformed".into(), "reset".into())].into(),
            head_timeout_ns: 10_000_000_000,
            max_open_heads: 64,
            max_head: 16_384,
            max_fields: 100,
            max_target: 8_190,
            max_body: 1 << 40,
            penalties: true,
            totals: Totals {
                allowed: 100,
                refused: 12,
                refused_by: [("unkeyed".into(), 12)].into(),
                ..Totals::default()
            },
        }
    }

    #[test]
    fn each_service_has_its_line() {
        let web = ServiceStatus {
            ports: vec![9000],
            hosts: vec!["a.test".into(), "b.test".into()],
            mode: "observe".into(),
            ..example("web")
        };
        assert_eq!(
            listing(&[example("api"), web]),
            "SERVICE  PORTS       HOSTS           MODE     ON-REFUSE  PASSED  REFUSED  WOULD-REFUSE\n\
             api      8000, 8001  -               enforce  answer        100       12             0\n\
             web      9000        a.test, b.test  observe  answer        100       12             0\n"
        );
    }

    #[test]
    fn one_is_shown_with_its_counts() {
        assert_eq!(
            show(&example("api")),
            "service  api\n\
             mode     enforce (on refuse: answer, malformed: reset)\n\
             ports    8000, 8001\n\
             waiting  10s for a first byte or a head, 64 connections of one source at once\n\
             bounds   head 16384 bytes, 100 fields, target 8190 bytes, body 1099511627776 bytes\n\
             penalty  on\n\
             \n\
             VERDICT       COUNT\n\
             allowed         100\n\
             refused          12\n\
             would_refuse      0\n\
             \n\
             REASON   REFUSED  WOULD-REFUSE\n\
             unkeyed       12             0\n"
        );
    }
}
