//! What a decision costs: the loaded program by BPF_PROG_TEST_RUN, beside one that only drops.
//! Run by `cargo xtask bench`, as root. Nothing is attached or pinned, and no packet is sent.
//!
//! Rounds go through all cases in turn, so that what slows the machine for a while slows them all.

mod case;
mod program;
mod report;
mod scale;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::Parser;

use enforcer_tests::{
    netns::Namespace,
    page,
    peer::{Listener, Peer},
};

use crate::{
    case::{Case, PORT},
    program::Judge,
    report::Report,
    scale::Course,
};

/// Measure nanoseconds per decision.
#[derive(Parser)]
struct Options {
    /// The BPF object.
    object: PathBuf,
    /// Rounds, each through all cases.
    #[arg(long)]
    rounds: u32,
    /// Runs of the program for one figure.
    #[arg(long)]
    repeat: u32,
    /// Where to write the figures as JSON.
    #[arg(long)]
    json: PathBuf,
    /// Where to renew the table by the size of the policy: a page of the documentation.
    #[arg(long)]
    page: Option<PathBuf>,
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
    // The connection whose packets are judged is a real one, in a namespace of its own.
    Namespace::new()?.run(|| {
        let server = (Ipv4Addr::LOCALHOST, PORT).into();
        let listener = Listener::new(server, false)?;
        let connection = listener.connect()?;
        measure(options, &connection, server)
    })
}

fn measure(options: &Options, connection: &Peer, server: SocketAddr) -> Result<()> {
    let cases = &Case::all(connection, server);
    let object = fs::read(&options.object).with_context(|| format!("cannot read {}", options.object.display()))?;
    let mut judge = Judge::load(&object)?;
    for case in cases {
        judge.check(case)?;
    }
    let mut course = Course::new(&mut judge, connection, server, options.repeat)?;
    let mut bare = Vec::new();
    let mut figures = vec![Vec::new(); cases.len()];
    for _ in 0..options.rounds {
        bare.push(judge.time_bare(&cases[0], options.repeat)?);
        for (case, figures) in cases.iter().zip(&mut figures) {
            figures.push(judge.time(case, options.repeat)?);
        }
        course.round(&mut judge, options.repeat)?;
        judge.resize(1, false)?;
    }
    let report = Report::new(options.rounds, options.repeat, &bare, cases.iter().zip(&figures), course.end()?)?;
    fs::write(&options.json, report.to_json()?).with_context(|| format!("cannot write {}", options.json.display()))?;
    if let Some(page) = &options.page {
        page::renew_table(page, &report.by_size())?;
    }
    print!("{report}");
    println!("\nThe figures are in {}.", options.json.display());
    Ok(())
}
