//! `enforcer doctor`: every way around the guard, worst first.

use std::path::PathBuf;

use clap::Args;

use super::Usage;
use super::output::{Format, table, text};
use crate::api::Envelope;
use crate::config::{Overrides, Targets};
use crate::doctor::{Level, Namespace, Report, Scope, examine};
use crate::kernel;

const HELP: &str = "\
Interfaces, ports and the directory of the pins come from where `enforcer run` takes them, and what is attached is found \
by the pins. Nothing is sent or changed, and no daemon is needed. Where nothing is attached, the interfaces named count \
as guarded.

Each finding has a level: bypass (requests reach the app unjudged), error (it could not be looked at, or `enforcer run` \
would fail), warning, note, ok. The exit code is 3 if there is a bypass; else 5 or 1 if there is an error (5 for lack of \
permission); else 0.

  enforcer doctor
  enforcer doctor --interface eth0 --port 8000 --netns blue --netns /proc/812/ns/net -o json";

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Arguments {
    /// Network interface that is to be guarded; repeat it, or separate several by commas
    #[arg(
        long = "interface",
        env = "ENFORCER_INTERFACE",
        value_name = "IF",
        value_delimiter = ',',
        hide_env_values = true
    )]
    interfaces: Vec<String>,

    /// TCP port that is to be guarded; repeat it, or separate several by commas
    #[arg(long = "port", env = "ENFORCER_PORT", value_name = "N", value_delimiter = ',', hide_env_values = true)]
    ports: Vec<u16>,

    /// Another network namespace to look into, such as a container's: a name of `ip netns`, or a file; repeat it
    #[arg(long = "netns", value_name = "NAME|PATH")]
    namespaces: Vec<String>,

    /// Configuration file [default: /etc/enforcer/enforcer.toml, which need not exist]
    #[arg(long, env = "ENFORCER_CONFIG", value_name = "FILE", hide_env_values = true)]
    config: Option<PathBuf>,

    /// Directory of the pins, on a BPF file system [default: /sys/fs/bpf/enforcer]
    #[arg(long, env = "ENFORCER_BPFFS_DIR", value_name = "DIR", hide_env_values = true)]
    bpffs_dir: Option<PathBuf>,

    #[command(flatten)]
    format: Format,
}

/// An examination that does not end well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failed {
    #[error("{} around the guard", ways(*.0))]
    Bypass(usize),
    #[error("{}", unchecked(*.count, *.denied))]
    Unchecked { count: usize, denied: bool },
}

fn ways(count: usize) -> String {
    if count == 1 { "there is a way".to_owned() } else { format!("there are {count} ways") }
}

fn unchecked(count: usize, denied: bool) -> String {
    let checks = if count == 1 { "a check".to_owned() } else { format!("{count} checks") };
    let why = if denied { ", for lack of permission: run it as root" } else { "" };
    format!("{checks} failed or could not be made{why}")
}

impl Failed {
    pub(super) const fn exit_code(self) -> u8 {
        match self {
            Self::Bypass(_) => 3,
            Self::Unchecked { denied: true, .. } => 5,
            Self::Unchecked { denied: false, .. } => 1,
        }
    }

    fn of(report: &Report) -> Option<Self> {
        let denied = report.findings.iter().any(|finding| finding.denied);
        match (report.count(Level::Bypass), report.count(Level::Error)) {
            (0, 0) => None,
            (0, count) => Some(Self::Unchecked { count, denied }),
            (count, _) => Some(Self::Bypass(count)),
        }
    }
}

impl Arguments {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        let Self { interfaces, ports, namespaces, config, bpffs_dir, format } = self;
        let overrides = Overrides { config, interfaces, ports, bpffs_dir, ..Overrides::default() };
        let Targets { interfaces, ports, bpffs_dir } = Targets::resolve(overrides)?;
        let namespaces = namespaces.iter().map(|name| Namespace::named(name)).collect();
        let pins = kernel::reach(&bpffs_dir);
        let scope = Scope { interfaces, ports, namespaces, bpffs_dir, pins };
        let report = examine(&scope);
        if report.ports.is_empty() {
            return Err(Usage(format!(
                "no port to examine: none is guarded by the pins in {}; give --port N, set ENFORCER_PORT, or write \
                 `ports = [8000]` in the configuration",
                scope.bpffs_dir.display()
            ))
            .into());
        }
        let report = Envelope::new(report);
        format.show(&report, |report| show(&report.body))?;
        Failed::of(&report.body).map_or(Ok(()), |failed| Err(failed.into()))
    }
}

fn show(report: &Report) -> String {
    let rows = report.findings.iter().map(|finding| {
        let level = match finding.level {
            Level::Bypass => "BYPASS",
            level => level.as_str(),
        };
        [text(level), text(&finding.place), text(&finding.what), text(&finding.next)]
    });
    table(["LEVEL", "WHERE", "WHAT", "NEXT"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Finding;

    fn report(levels: &[(Level, bool)]) -> Report {
        let finding = |&(level, denied): &(Level, bool)| Finding {
            level,
            check: "coverage".into(),
            what: "what is".into(),
            place: "lo".into(),
            next: if level == Level::Ok { String::new() } else { "do this".into() },
            denied,
        };
        Report { ports: vec![8000], namespaces: vec![], findings: levels.iter().map(finding).collect() }
    }

    #[test]
    fn a_bypass_ends_with_3_whatever_else_was_found() {
        let code = |levels: &[(Level, bool)]| Failed::of(&report(levels)).map(Failed::exit_code);
        assert_eq!(code(&[(Level::Bypass, false), (Level::Error, true)]), Some(3));
        assert_eq!(code(&[(Level::Error, false), (Level::Error, true)]), Some(5));
        assert_eq!(code(&[(Level::Error, false), (Level::Warning, false)]), Some(1));
        assert_eq!(code(&[(Level::Warning, false), (Level::Note, false), (Level::Ok, false)]), None);
    }

    #[test]
    fn says_how_many_ways_there_are() {
        assert_eq!(Failed::Bypass(1).to_string(), "there is a way around the guard");
        assert_eq!(Failed::Bypass(2).to_string(), "there are 2 ways around the guard");
        let failed = Failed::Unchecked { count: 2, denied: true };
        assert_eq!(failed.to_string(), "2 checks failed or could not be made, for lack of permission: run it as root");
    }

    #[test]
    fn each_finding_is_a_line() {
        let shown = show(&report(&[(Level::Bypass, false), (Level::Ok, false)]));
        assert_eq!(
            shown,
            "LEVEL   WHERE  WHAT     NEXT\n\
             BYPASS  lo     what is  do this\n\
             ok      lo     what is\n"
        );
    }

    #[test]
    fn findings_are_json_under_the_envelopes_schema() {
        let json = serde_json::to_value(Envelope::new(report(&[(Level::Bypass, false)]))).expect("JSON");
        let finding = serde_json::json!(
            {"level": "bypass", "check": "coverage", "what": "what is", "where": "lo", "next": "do this"}
        );
        let expected = serde_json::json!({"schema": "v1", "ports": [8000], "namespaces": [], "findings": [finding]});
        assert_eq!(json, expected);
    }
}
