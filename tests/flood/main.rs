//! A flood of requests that are to be refused, against a Flask app alone, behind what others refuse with, and behind
//! the enforcer: what a well-behaved client still gets, and what a refusal costs the server.
//! Run by `cargo xtask bench flood`, as root. All of it happens in network namespaces of its own.

mod connection;
mod course;
mod cpu;
mod flooder;
mod good;
mod kind;
mod page;
mod peer;
mod plot;
mod report;
mod stage;
mod wall;

use std::{fs, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{
    connection::Ending,
    course::Measured,
    kind::{Flood, Kind},
    peer::{PEERS, Peer},
    report::{Report, Row},
    stage::Stage,
};

/// Measure an app under floods.
#[derive(Parser)]
struct Options {
    /// Seconds of each flood.
    #[arg(long)]
    seconds: u64,
    /// Rounds, each through all floods.
    #[arg(long)]
    rounds: usize,
    /// Flooding connections.
    #[arg(long)]
    connections: Vec<u32>,
    /// Parts of the names of the floods to run; all without.
    #[arg(long)]
    only: Vec<String>,
    /// The folder for figures and plots.
    #[arg(long)]
    output: PathBuf,
    /// The folder of the documentation, if that is to be renewed.
    #[arg(long)]
    docs: Option<PathBuf>,
    /// The command that this was started by, to be stated with the figures.
    #[arg(long)]
    command: String,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let cpus = cpu::count()?;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("raising the limit of open files")?;
    // Whatever is started from here runs on the server's CPU; the clients' threads leave it.
    cpu::bind(0, cpu::SERVER)?;

    let mut rows = rows(options);
    ensure!(!rows.is_empty(), "no flood has any of {:?} in its name", options.only);
    for round in 1..=options.rounds {
        for peer in PEERS {
            measure(peer, &mut rows, options, round).with_context(|| peer.name)?;
        }
    }
    let report = Report::new(&options.command, cpus, options.seconds, options.rounds, &rows)?;
    let path = options.output.join("flood.json");
    fs::write(&path, report.to_json()?).with_context(|| format!("cannot write {}", path.display()))?;
    page::write_plots(&report, &options.output)?;
    if let Some(docs) = &options.docs {
        page::renew(&report, docs)?;
    }
    print!("{report}");
    println!("\nThe figures are in {}, the plots beside.", path.display());
    Ok(())
}

/// The rows that are wanted: for each peer the client alone, and each flood.
fn rows(options: &Options) -> Vec<Row> {
    let mut rows = Vec::new();
    for peer in PEERS {
        let mut floods = Vec::new();
        for &kind in peer.kinds() {
            for &reuse in peer.reuses() {
                floods.extend(options.connections.iter().map(|&connections| Flood { kind, reuse, connections }));
            }
        }
        floods.retain(|flood| {
            let name = format!("{}, {flood}", peer.name);
            options.only.is_empty() || options.only.iter().any(|words| name.contains(words))
        });
        if !floods.is_empty() {
            rows.push(Row::new(peer, None));
            rows.extend(floods.into_iter().map(|flood| Row::new(peer, Some(flood))));
        }
    }
    rows
}

/// Runs a peer's rows once.
fn measure(peer: &'static Peer, rows: &mut [Row], options: &Options, round: usize) -> Result<()> {
    let mut rows: Vec<&mut Row> = rows.iter_mut().filter(|row| row.peer.name == peer.name).collect();
    if rows.is_empty() {
        return Ok(());
    }
    let stage = Stage::new()?;
    let mut running = peer.start(&stage)?;
    for row in &mut rows {
        let flood = row.flood.map_or_else(|| "no flood".to_owned(), |flood| flood.to_string());
        let time = Duration::from_secs(options.seconds);
        let measured =
            course::run(&stage, peer, &mut running, row.flood.as_ref(), time).with_context(|| flood.clone())?;
        let served = measured.service.success();
        eprintln!("round {round}: {}, {flood}: {served:.1} % of the good requests were served", peer.name);
        check(peer, row.flood.as_ref(), &measured)?;
        row.rounds.push(measured);
    }
    Ok(())
}

/// Makes sure that a peer does what it is compared by.
fn check(peer: &Peer, flood: Option<&Flood>, measured: &Measured) -> Result<()> {
    let Some(flood) = flood else {
        let service = &measured.service;
        ensure!(service.success() > 95.0, "without a flood only {:.1} % were served", service.success());
        return Ok(());
    };
    let served = measured.endings[Ending::Served as usize];
    let may_serve = peer.refusals.is_empty() || flood.kind == Kind::OverLimit;
    ensure!(may_serve || served == 0, "{flood}: {served} requests were served");
    Ok(())
}
