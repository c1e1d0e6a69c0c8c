//! `enforcer status`

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use super::output::{Format, Watch, duration, number, say, second, table, text, time};
use super::service;
use crate::api::{Envelope, Status, Totals};
use crate::client::{self, Client};
use crate::config;
use crate::kernel;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Directory of the pins, to look for enforcement that goes on while no daemon runs
    #[arg(long, env = "ENFORCER_BPFFS_DIR", value_name = "DIR", default_value = config::DEFAULT_BPFFS_DIR,
          hide_env_values = true)]
    bpffs_dir: PathBuf,
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    watch: Watch,
}

impl Arguments {
    pub(super) async fn execute(self, client: &Client) -> anyhow::Result<()> {
        let Self { bpffs_dir, format, watch } = self;
        let ask = async || match client.get::<Status>("/v1/status").await {
            Err(error @ client::Error::Unreachable { .. }) => {
                without_daemon(format, &bpffs_dir)?;
                Err(anyhow::Error::from(error))
            }
            answer => Ok(answer?),
        };
        watch.show(format, ask, |status| show(&status.body, Timestamp::now())).await
    }
}

/// Says what is attached although no daemon runs.
fn without_daemon(format: Format, bpffs_dir: &Path) -> anyhow::Result<()> {
    #[derive(Serialize)]
    struct Pinned {
        running: bool,
        /// Absent if the directory cannot be read.
        #[serde(skip_serializing_if = "Option::is_none")]
        pinned: Option<Vec<String>>,
    }
    let pinned = kernel::pinned(&kernel::reach(bpffs_dir));
    match &pinned {
        Some(links) if links.is_empty() => say(&format!("Nothing is pinned in {}.", bpffs_dir.display())),
        Some(links) => say(&format!(
            "The program is still attached to {}, without a daemon (pinned in {}).",
            links.join(", "),
            bpffs_dir.display()
        )),
        None => say(&format!("Whether something is pinned in {} cannot be read by this user.", bpffs_dir.display())),
    }
    match format.is_json() {
        true => format.show(&Envelope::new(Pinned { running: false, pinned }), |_| String::new()),
        false => Ok(()),
    }
}

fn show(status: &Status, now: Timestamp) -> String {
    let mut shown = head(status, now);
    let attachments = status.attachments.iter().map(|at| {
        let taken_over = if at.taken_over { "yes" } else { "no" };
        [
            text(&at.interface),
            text(&at.mode),
            text(&at.endpoints),
            text(at.cannot_answer.as_ref().map_or("yes".to_owned(), |why| format!("no: {why}"))),
            time(at.since),
            number(at.program),
            text(taken_over),
            text(&at.reason),
        ]
    });
    let header = ["INTERFACE", "MODE", "ENDPOINTS", "ANSWERS", "SINCE", "PROGRAM", "TAKEN-OVER", "WHY-THIS-MODE"];
    section(&mut shown, &table(header, attachments));
    if status.services.len() > 1 {
        section(&mut shown, &service::listing(&status.services));
    }
    shown.push_str(&totals(&status.totals));
    let mut reaped = Vec::new();
    for (cause, &ended) in &status.reaped {
        let would = status.would_reap.get(cause).copied().unwrap_or(0);
        if ended != 0 || would != 0 {
            reaped.push([text(cause), number(ended), number(would)]);
        }
    }
    section(&mut shown, &table(["CONNECTIONS", "ENDED", "WOULD-END"], reaped));
    let maps = status.maps.iter().map(|fill| {
        let percent = 100.0 * fill.entries as f64 / (fill.capacity.max(1)) as f64;
        [text(&fill.map), number(fill.entries), number(fill.capacity), number(format!("{percent:.1} %"))]
    });
    section(&mut shown, &table(["MAP", "ENTRIES", "CAPACITY", "FILL"], maps));
    shown
}

/// The lines above the tables.
fn head(status: &Status, now: Timestamp) -> String {
    let up = u64::try_from(now.duration_since(status.since).as_nanos()).unwrap_or(0);
    let mut lines = vec![
        ("daemon", format!("{} (layout {}), pid {}, up {}", status.version, status.abi, status.pid, duration(up))),
        ("since", second(status.since).to_string()),
    ];
    if let [only] = &status.services[..] {
        lines.extend(service::lines(only));
    }
    lines.extend([
        ("older", format!("connections older than the guard: {}", status.existing)),
        (
            "keys",
            format!("{} of {} principals, default limit {}", status.keys, status.principals, status.default_limit),
        ),
        ("metrics", status.metrics.as_ref().map_or("off".to_owned(), |address| format!("http://{address}/metrics"))),
        ("state", status.state_dir.display().to_string()),
        ("pins", status.bpffs_dir.display().to_string()),
    ]);
    let warnings = status.warnings.iter().map(|warning| ("warning", warning.clone()));
    labelled(lines.into_iter().chain(warnings))
}

/// Lines that begin with what they are about.
pub(super) fn labelled(lines: impl IntoIterator<Item = (&'static str, String)>) -> String {
    let mut shown = String::new();
    for (label, value) in lines {
        // Writing to a String cannot fail.
        let _ = writeln!(shown, "{label:<9}{value}");
    }
    shown
}

/// The tables of what was counted, an empty line before each.
pub(super) fn totals(totals: &Totals) -> String {
    let mut shown = String::new();
    let verdicts = [("allowed", totals.allowed), ("refused", totals.refused), ("would_refuse", totals.would_refuse)];
    section(&mut shown, &table(["VERDICT", "COUNT"], verdicts.map(|(verdict, count)| [text(verdict), number(count)])));
    let mut reasons = Vec::new();
    for (reason, &refused) in &totals.refused_by {
        let would = totals.would_refuse_by.get(reason).copied().unwrap_or(0);
        if refused != 0 || would != 0 {
            reasons.push([text(reason), number(refused), number(would)]);
        }
    }
    section(&mut shown, &table(["REASON", "REFUSED", "WOULD-REFUSE"], reasons));
    section(&mut shown, &counts("MALFORMED", &totals.malformed_by));
    section(&mut shown, &counts("EVENT", &totals.events));
    shown
}

fn section(shown: &mut String, table: &str) {
    if !table.is_empty() {
        shown.push('\n');
        shown.push_str(table);
    }
}

/// The counts that are not 0.
fn counts(header: &str, counts: &BTreeMap<String, u64>) -> String {
    let rows = counts.iter().filter(|(_, count)| **count != 0).map(|(word, count)| [text(word), number(count)]);
    table([header, "COUNT"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Attachment, MapFill, Totals};

    fn attachment(interface: &str, cannot_answer: Option<&str>) -> Attachment {
        Attachment {
            interface: interface.into(),
            index: 1,
            mode: "xdp-generic".into(),
            reason: "its driver has no native XDP".into(),
            answers: cannot_answer.is_none(),
            cannot_answer: cannot_answer.map(str::to_owned),
            endpoints: "local".into(),
            since: Timestamp::UNIX_EPOCH,
            program: 7,
            taken_over: false,
        }
    }

    fn status() -> Status {
        let named = |counts: &[(&str, u64)]| counts.iter().map(|&(word, count)| (word.to_owned(), count)).collect();
        Status {
            version: "0.1.0".into(),
            abi: 1,
            pid: 42,
            since: Timestamp::UNIX_EPOCH,
            existing: "reset".into(),
            services: vec![service::tests::example("default")],
            ports: vec![8000, 8001],
            attachments: vec![attachment("eth0", None), attachment("lo", Some("no clsact"))],
            warnings: vec!["lo forwards now".into()],
            on_trial_until: None,
            default_limit: "100/minute".into(),
            keys: 2,
            principals: 1,
            totals: Totals {
                allowed: 100,
                refused: 12,
                refused_by: named(&[("unkeyed", 12), ("over_limit", 0)]),
                events: named(&[("reset", 12)]),
                ..Totals::default()
            },
            reaped: named(&[("silent", 3), ("source", 0)]),
            would_reap: named(&[("silent", 0), ("source", 0)]),
            maps: vec![MapFill { map: "KEYS".into(), entries: 2, capacity: 1000 }],
            socket: "/c".into(),
            metrics: None,
            state_dir: "/s".into(),
            bpffs_dir: "/b".into(),
        }
    }

    #[test]
    fn shows_where_and_how_and_what_was_refused() {
        let later = Timestamp::from_second(3_700).expect("a time");
        let shown = show(&status(), later);
        assert_eq!(
            shown,
            "daemon   0.1.0 (layout 1), pid 42, up 1h 1m\n\
             since    1970-01-01T00:00:00Z\n\
             mode     enforce (on refuse: answer, malformed: reset)\n\
             ports    8000, 8001\n\
             waiting  10s for a first byte or a head, 64 connections of one source at once\n\
             bounds   head 16384 bytes, 100 fields, target 8190 bytes, body 1099511627776 bytes\n\
             older    connections older than the guard: reset\n\
             keys     2 of 1 principals, default limit 100/minute\n\
             metrics  off\n\
             state    /s\n\
             pins     /b\n\
             warning  lo forwards now\n\
             \n\
             INTERFACE  MODE         ENDPOINTS  ANSWERS        SINCE                 PROGRAM  TAKEN-OVER  WHY-THIS-MODE\n\
             eth0       xdp-generic  local      yes            1970-01-01T00:00:00Z        7  no          its driver has \
             no native XDP\n\
             lo         xdp-generic  local      no: no clsact  1970-01-01T00:00:00Z        7  no          its driver has \
             no native XDP\n\
             \n\
             VERDICT       COUNT\n\
             allowed         100\n\
             refused          12\n\
             would_refuse      0\n\
             \n\
             REASON   REFUSED  WOULD-REFUSE\n\
             unkeyed       12             0\n\
             \n\
             EVENT  COUNT\n\
             reset     12\n\
             \n\
             CONNECTIONS  ENDED  WOULD-END\n\
             silent           3          0\n\
             \n\
             MAP   ENTRIES  CAPACITY  FILL\n\
             KEYS        2      1000  0.2 %\n"
        );
    }

    #[test]
    fn an_answer_survives_its_envelope() {
        let json = serde_json::to_value(Envelope::new(status())).expect("JSON");
        assert_eq!((json["schema"].as_str(), json["since"].as_str()), (Some("v1"), Some("1970-01-01T00:00:00Z")));
        let back: Envelope<Status> = serde_json::from_value(json).expect("a status");
        assert_eq!(back.body, status());
    }
}
