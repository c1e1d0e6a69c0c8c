//! What a decision costs, by the loaded program.

use std::fs;

use anyhow::{Context as _, Result};

use crate::{
    process::{self, at},
    setup,
    workspace::Workspace,
};

/// What the figures are, for the end of the help.
pub(super) const AFTER_HELP: &str = "Prints a table, and writes target/bench/decision.json. Absolute numbers are this \
machine's and this minute's: compare columns of one run.";

/// How often is measured.
#[derive(clap::Args)]
#[group(id = "decision")]
pub(super) struct Options {
    /// Rounds; each runs every case once, and each case reports its median and its least.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Runs of the program in a round of a case.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    repeat: u32,
    /// Also renew the table in docs/.
    #[arg(long)]
    docs: bool,
}

/// Builds the measuring program, and runs it as root.
///
/// # Errors
/// The set-up, the build or the measurement failed.
pub(super) fn run(options: &Options) -> Result<()> {
    let workspace = Workspace::read()?;
    setup::for_tests(&workspace)?;
    process::run(workspace.cargo().args(["build", "--locked", "--package=enforcer-user", "--bin=enforcer"]))?;
    process::run(workspace.cargo().args(["build", "--locked", "--package=enforcer-tests", "--bin=bench"]))?;
    let folder = workspace.target().join("bench");
    fs::create_dir_all(&folder).with_context(at("make", &folder))?;
    let mut command = process::as_root(workspace.binary("bench"), "loading the BPF program")?;
    command
        .arg(setup::object(&workspace))
        .arg(format!("--rounds={}", options.rounds))
        .arg(format!("--repeat={}", options.repeat));
    command.arg(format!("--json={}", folder.join("decision.json").display()));
    if options.docs {
        command.arg(format!("--page={}", workspace.root().join("docs/bench.md").display()));
    }
    process::run(&mut command)
}
