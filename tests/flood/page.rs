//! The page of the documentation: which figures are drawn, and where the table stands.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use enforcer_tests::page;

use crate::{
    kind::{Flood, Kind, Reuse},
    peer::PEERS,
    plot::Chart,
    report::{Line, Report},
};

/// The page.
const PAGE: &str = "flood.md";

/// Draws the plots into `folder`.
///
/// # Errors
/// A file cannot be written.
pub(crate) fn write_plots(report: &Report, folder: &Path) -> Result<()> {
    for (name, chart) in [("flood-cost.svg", cost(report)), ("flood-p99.svg", latency(report))] {
        let path = folder.join(name);
        fs::write(&path, chart.to_svg()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Renews the plots and the table of the documentation.
///
/// # Errors
/// The page cannot be read or written, or has no place for the table.
pub(crate) fn renew(report: &Report, docs: &Path) -> Result<()> {
    write_plots(report, docs)?;
    page::renew_table(&docs.join(PAGE), &report.to_string())
}

/// What a refusal costs, of the peers that refuse, with the fewest connections.
fn cost(report: &Report) -> Chart {
    let fewest = connections(report).into_iter().min();
    let floods: Vec<Flood> = [Kind::Unkeyed, Kind::OverLimit]
        .into_iter()
        .flat_map(|kind| Reuse::ALL.map(|reuse| (kind, reuse)))
        .filter_map(|(kind, reuse)| Some(Flood { kind, reuse, connections: fewest? }))
        .collect();
    let bar = |peer: &str, flood: &Flood| {
        report.lines.iter().find(|line| line.peer == peer && line.flood == Some(*flood)).and_then(|line| line.cpu_us)
    };
    let groups = names(report)
        .filter(|peer| report.lines.iter().any(|line| line.peer == *peer && line.cpu_us.is_some()))
        .map(|peer| (peer.to_owned(), floods.iter().map(|flood| bar(peer, flood)).collect()));
    Chart {
        title: "Server CPU per refused request, µs".to_owned(),
        series: floods.iter().map(ToString::to_string).collect(),
        groups: groups.collect(),
    }
}

/// The well-behaved client's p99: without a flood, and in the worst flood of each number of connections.
fn latency(report: &Report) -> Chart {
    let connections = connections(report);
    let worst = |peer: &str, of: &dyn Fn(&Line) -> bool| {
        let lines = report.lines.iter().filter(|line| line.peer == peer && of(line));
        lines.map(|line| line.p99_ms).max_by(f64::total_cmp)
    };
    let bars = |peer: &str| {
        let mut bars = vec![worst(peer, &|line| line.flood.is_none())];
        bars.extend(
            connections
                .iter()
                .map(|&number| worst(peer, &|line| line.flood.is_some_and(|flood| flood.connections == number))),
        );
        bars
    };
    let mut series = vec!["without a flood".to_owned()];
    series.extend(connections.iter().map(|number| format!("worst flood of {number} connections")));
    Chart {
        title: "The good client's p99 latency, ms (2000: not served)".to_owned(),
        series,
        groups: names(report).map(|peer| (peer.to_owned(), bars(peer))).collect(),
    }
}

/// The peers that were measured.
fn names(report: &Report) -> impl Iterator<Item = &'static str> {
    PEERS.iter().map(|peer| peer.name).filter(|name| report.lines.iter().any(|line| line.peer == *name))
}

/// The numbers of connections that were flooded with, in rising order.
fn connections(report: &Report) -> Vec<u32> {
    let flooded = report.lines.iter().filter_map(|line| Some(line.flood?.connections));
    let mut connections: Vec<u32> = flooded.collect();
    connections.sort_unstable();
    connections.dedup();
    connections
}
