//! What a decision costs: the loaded program by BPF_PROG_TEST_RUN, beside one that only drops.
//! Run by `cargo xtask bench`, as root. Nothing is attached or pinned, and no packet is sent.
//!
//! Rounds go through all cases in turn, so that what slows the machine for a while slows them all.

mod case;
mod program;
mod report;

use std::{fs, net::Ipv4Addr, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::Parser;

use enforcer_tests::{netns::Namespace, peer::Listener};

use crate::{
    case::{Case, PORT},
    program::Judge,
    report::Report,
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
        measure(options, &Case::all(&listener.connect()?, server))
    })
}

fn measure(options: &Options, cases: &[Case]) -> Result<()> {
    let object = fs::read(&options.object).with_context(|| format!("cannot read {}", options.object.display()))?;
    let mut judge = Judge::load(&object)?;
    for case in cases {
        judge.check(case)?;
    }
    let mut bare = Vec::new();
    let mut figures = vec![Vec::new(); cases.len()];
    for _ in 0..options.rounds {
        bare.push(judge.time_bare(&cases[0], options.repeat)?);
        for (case, figures) in cases.iter().zip(&mut figures) {
            figures.push(judge.time(case, options.repeat)?);
        }
    }
    let report = Report::new(options.rounds, options.repeat, &bare, cases.iter().zip(&figures))?;
    fs::write(&options.json, report.to_json()?).with_context(|| format!("cannot write {}", options.json.display()))?;
    print!("{report}");
    println!("\nThe figures are in {}.", options.json.display());
    Ok(())
}
