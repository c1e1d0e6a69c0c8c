//! `cargo xtask bench`: what a decision costs, and what a flood costs the app and its clients.

mod decision;
mod flood;

use anyhow::Result;

/// Measure nanoseconds per decision in the kernel, or, with `flood`, an app under a flood.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, after_help = decision::AFTER_HELP)]
pub(crate) struct Options {
    #[command(subcommand)]
    other: Option<Other>,
    #[command(flatten)]
    decision: decision::Options,
}

#[derive(clap::Subcommand)]
enum Other {
    Flood(flood::Options),
}

/// Runs the one that was asked for.
///
/// # Errors
/// The set-up, the build or the measurement failed.
pub(crate) fn run(options: &Options) -> Result<()> {
    match &options.other {
        Some(Other::Flood(options)) => flood::run(options),
        None => decision::run(&options.decision),
    }
}
