//! `cargo xtask`: everything that is done with this checkout. One file per subcommand.
//!
//! It builds with an ordinary stable toolchain and without the daemon's crates, because `setup` must run before
//! they can be built: the BPF program needs a toolchain of its own, which `setup` installs.

mod bench;
mod check;
mod fuzz;
mod process;
mod run;
mod setup;
mod test;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Set up, run, test, check, measure and fuzz the enforcer from this checkout.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    Setup(setup::Options),
    Run(run::Options),
    Test(test::Options),
    Check(check::Options),
    Bench(bench::Options),
    Fuzz(fuzz::Options),
}

fn main() -> ExitCode {
    let result = match &Cli::parse().task {
        Task::Setup(options) => setup::run(options).map(|()| ExitCode::SUCCESS),
        Task::Run(options) => run::run(options),
        Task::Test(options) => test::run(options),
        Task::Check(options) => check::run(options).map(|()| ExitCode::SUCCESS),
        Task::Bench(options) => bench::run(options).map(|()| ExitCode::SUCCESS),
        Task::Fuzz(options) => fuzz::run(options),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
