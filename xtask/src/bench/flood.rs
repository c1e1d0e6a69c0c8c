//! What a flood costs: the app's server, and a well-behaved client beside it.

use std::{env, ffi::OsString, fs};

use anyhow::{Context as _, Result};

use crate::{
    process::{self, at},
    setup,
    workspace::Workspace,
};

/// Flood a Flask app behind gunicorn, alone, behind what others refuse with, and behind the enforcer; all in one run.
///
/// A well-behaved client sends 50 requests a second meanwhile. Prints for each flood how the client fared and what a
/// refused request cost the server, and writes target/bench/flood.json and plots beside it. nginx, HAProxy and Redis
/// are taken out of their packages if they are not on PATH, and are not left running. Takes about six minutes.
/// Absolute numbers are this machine's and this minute's: compare rows of one run.
#[derive(clap::Args)]
pub(super) struct Options {
    /// Seconds of each flood: a third of them it is alone, then the client sends too.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// Rounds through all floods; every figure is the median of its rounds.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
    /// Flooding connections; repeatable, or a list with commas.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [32, 1000],
          value_parser = clap::value_parser!(u32).range(1..=4000))]
    connections: Vec<u32>,
    /// Only floods that have this in their name, such as `nginx` or `unkeyed, 32 kept`; repeatable. Names are a row's
    /// first three cells, with commas.
    #[arg(long, value_name = "WORDS")]
    only: Vec<String>,
    /// Also renew table and plots in docs/.
    #[arg(long)]
    docs: bool,
}

/// Builds the flooding program and the daemon as they are shipped, and runs it as root.
///
/// # Errors
/// The set-up, the build or the measurement failed.
pub(super) fn run(options: &Options) -> Result<()> {
    let workspace = Workspace::read()?;
    let environment = setup::for_flood(&workspace)?;
    let build = ["build", "--locked", "--release", "--package=enforcer-user", "--bin=enforcer"];
    process::run(workspace.cargo().args(build))?;
    let build = ["build", "--locked", "--release", "--package=enforcer-tests", "--bin=flood"];
    process::run(workspace.cargo().args(build))?;
    let folder = workspace.target().join("bench");
    fs::create_dir_all(&folder).with_context(at("make", &folder))?;

    let mut command = process::as_root("env", "making network namespaces and loading the BPF program")?;
    // Named to the program itself, since sudo keeps none of ours.
    let variables = [
        ("PATH", setup::tools_path(&workspace)?),
        ("ENFORCER_BIN", workspace.release_binary("enforcer").into()),
        ("ENFORCER_VENV", environment.into()),
    ];
    for (name, value) in variables {
        let mut variable = OsString::from(name);
        variable.push("=");
        variable.push(value);
        command.arg(variable);
    }
    command.arg(workspace.release_binary("flood"));
    command.arg(format!("--seconds={}", options.seconds)).arg(format!("--rounds={}", options.rounds));
    command.args(options.connections.iter().map(|connections| format!("--connections={connections}")));
    command.args(options.only.iter().map(|words| format!("--only={words}")));
    command.arg(format!("--output={}", folder.display()));
    if options.docs {
        command.arg(format!("--docs={}", workspace.root().join("docs").display()));
    }
    let given = env::args_os().skip(1).map(|word| process::quoted(&word)).collect::<Vec<_>>().join(" ");
    process::run(command.arg(format!("--command=cargo xtask {given}")))
}
