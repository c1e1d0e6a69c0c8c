//! The `enforcer` command: parse, carry out, and end with a code that says how it went.

use std::process::ExitCode;

use clap::Parser;
use enforcer_user::cli::{Cli, code, sentence};

fn main() -> ExitCode {
    match Cli::parse().execute() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", sentence(&error));
            ExitCode::from(code(&error))
        }
    }
}
