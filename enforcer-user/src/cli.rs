//! The command line: what can be asked, and how the answers look.
//!
//! Data goes to standard output, talk to standard error. `run` is the daemon; every other command asks it over its
//! socket. One file per noun holds a noun's arguments, its requests and its tables.
//!
//! # Layout
//! - `run`: the daemon's settings from flags and environment
//! - `doctor`: what is not guarded, asked of the system itself
//! - `verify`: whether the program enforces the policy, on a link of its own; `proof`: that, signed, as a file
//! - `status`, `key`, `limit`, `policy`, `exempt`, `penalty`, `explain`, `detach`: the commands
//! - `lasts`: a length of time on the command line
//! - `import`: the lines of `key import`
//! - `flask_limiter`: an app's own limits as a policy
//! - `output`: tables, JSON, repetition
//! - `exit`: which error ends with which code

mod detach;
mod doctor;
mod exempt;
mod exit;
mod explain;
mod flask_limiter;
mod import;
mod key;
mod lasts;
mod limit;
mod output;
mod penalty;
mod policy;
mod proof;
mod run;
mod service;
mod status;
mod usage;
mod verify;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::client::Client;
use crate::config;

pub use exit::{Usage, code, sentence};

const EXAMPLES: &str = "\
Examples:
  enforcer run --interface eth0 --port 8000       guard port 8000 on eth0
  enforcer key add alice --limit '100/minute'     make a key, shown once
  enforcer key import keys.csv                    take over keys that exist
  enforcer limit set alice '100/minute; 10/second'
  enforcer apply -f policy.toml                   plans, routes, sources: everything in one file
  enforcer limits --watch                         limit, used, remaining, reset
  enforcer explain GET /search --source 192.0.2.7 --as alice      would it pass, and by which limits
  enforcer exempt add /ready --source 192.0.2.7 --for 1h --reason OPS-12
  enforcer status                                 where it is attached, what was refused and why
  enforcer penalty ls                             who is kept out for flooding, and for how long
  enforcer doctor                                 what reaches the app unguarded, and what to do
  enforcer verify                                 the policy that holds, tried apart from live traffic
  enforcer import flask-limiter app:app           the app's own limits as a policy
  enforcer detach                                 end enforcement

Limits: COUNT/UNIT or COUNT per N UNITS, up to four separated by `;`, as Flask-Limiter writes them.
  100/minute   5 per 2 hours   100/7days   1000/hour; 10/second   50/second burst=200   unlimited   blocked

Exit codes:
   0  done                               10  the kernel is older than 6.1
   1  another error                      11  the kernel has no BTF
   2  wrong usage or input               12  no such interface
   3  a check failed                     13  another program is attached there
   4  the daemon is not reachable        14  another daemon runs with these directories
   5  no permission                      15  the interface cannot be attached in this mode
   6  no such key, principal, source, service or exemption";

/// Rate limits and key checks for plaintext HTTP, in the kernel, before any worker wakes.
#[derive(Debug, Parser)]
#[command(
    name = "enforcer",
    version,
    about = "Checks API keys and enforces their rate limits in the kernel, before any worker wakes",
    long_about = "Reads the HTTP/1.1 requests on guarded ports in an XDP program, finds the X-API-Key of each, counts \
                  it against its principal's limits, and refuses what is unkeyed, unknown, over its limit or ambiguous \
                  before any process of the application wakes. The application is not changed or restarted.\n\n\
                  `enforcer run` is the daemon; every other command talks to it over its control socket. Enforcement \
                  is pinned in the kernel and outlives the daemon; `enforcer detach` ends it.",
    after_help = EXAMPLES,
    after_long_help = EXAMPLES,
    disable_help_subcommand = true
)]
pub struct Cli {
    /// Control socket of the daemon [default: /run/enforcer/control.sock]
    #[arg(long, global = true, env = "ENFORCER_SOCKET", value_name = "PATH", hide_env_values = true)]
    socket: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon: attach, enforce, serve the control socket and the metrics
    Run(run::Arguments),
    /// Show where the program is attached, and what it passed and refused
    Status(status::Arguments),
    /// Show what is guarded: the services, and what each has passed and refused
    #[command(subcommand)]
    Service(service::Command),
    /// Add, list, remove, switch and import keys
    #[command(subcommand)]
    Key(key::Command),
    /// Change a principal's limit
    #[command(subcommand)]
    Limit(limit::Command),
    /// Show limits, and what is used and left of them
    Limits(limit::ListArguments),
    /// Make a policy file the policy that holds
    #[command(after_help = policy::APPLY_HELP)]
    Apply(policy::Apply),
    /// Read a policy file, and say what is wrong with it; needs no daemon
    Check(policy::Check),
    /// Print the policy that holds, as a file
    Export(policy::Export),
    /// Keep a policy that was applied with --confirm
    Confirm(policy::End),
    /// End a policy that was applied with --confirm
    Rollback(policy::End),
    /// Show whom candidates, and rules that observe, would have refused
    #[command(after_help = policy::PLAN_HELP)]
    Plan(policy::Plan),
    /// Show what would become of a request, and every limit that it is measured by
    #[command(after_help = explain::HELP)]
    Explain(explain::Arguments),
    /// Exempt known sources from key and limit at a path for a time, and list and remove exemptions
    #[command(subcommand)]
    Exempt(exempt::Command),
    /// List the sources that are kept out for a time, and let them in again
    #[command(subcommand)]
    Penalty(penalty::Command),
    /// Name every way around the guard, and check the system; needs no daemon
    Doctor(doctor::Arguments),
    /// Try the program and the policy with keys and a link of their own, apart from live traffic
    Verify(verify::Arguments),
    /// Make a policy of the limits that an app has; needs no daemon
    #[command(subcommand)]
    Import(Import),
    /// End enforcement: detach the program and remove all pins
    Detach(detach::Arguments),
    /// Show the version of this program and of the maps' layout
    Version(output::Format),
}

#[derive(Debug, Subcommand)]
enum Import {
    /// The limits of a Flask app with Flask-Limiter, as a policy
    #[command(after_help = flask_limiter::HELP)]
    FlaskLimiter(flask_limiter::Arguments),
}

impl Cli {
    /// Carries out the command.
    ///
    /// # Errors
    /// Each with its own exit code, see [`code`].
    pub fn execute(self) -> anyhow::Result<()> {
        let Self { socket, command } = self;
        let command = match command {
            Command::Run(arguments) => return arguments.execute(socket),
            Command::Doctor(arguments) => return arguments.execute(),
            Command::Check(arguments) => return arguments.execute(),
            Command::Verify(arguments) => return arguments.execute(socket),
            Command::Import(Import::FlaskLimiter(arguments)) => return arguments.execute(),
            command => command,
        };
        let socket = socket.unwrap_or_else(|| config::DEFAULT_SOCKET.into());
        let client = Client::new(&socket);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            match command {
                Command::Run(_) | Command::Doctor(_) | Command::Check(_) | Command::Verify(_) | Command::Import(_) => {
                    Ok(())
                }
                Command::Apply(arguments) => arguments.execute(&client).await,
                Command::Plan(arguments) => arguments.execute(&client).await,
                Command::Explain(arguments) => arguments.execute(&client).await,
                Command::Export(arguments) => arguments.execute(&client).await,
                Command::Confirm(arguments) => arguments.execute(&client, "confirm").await,
                Command::Rollback(arguments) => arguments.execute(&client, "rollback").await,
                Command::Status(arguments) => arguments.execute(&client).await,
                Command::Service(command) => command.execute(&client).await,
                Command::Key(command) => command.execute(&client).await,
                Command::Limit(command) => command.execute(&client).await,
                Command::Limits(arguments) => arguments.execute(&client).await,
                Command::Exempt(command) => command.execute(&client).await,
                Command::Penalty(command) => command.execute(&client).await,
                Command::Detach(arguments) => arguments.execute(&client).await,
                Command::Version(format) => version(format),
            }
        })
    }
}

fn version(format: output::Format) -> anyhow::Result<()> {
    #[derive(serde::Serialize)]
    struct Version {
        version: &'static str,
        abi: u32,
    }
    let version = Version { version: env!("CARGO_PKG_VERSION"), abi: enforcer_ebpf::abi::ABI };
    format.show(&crate::api::Envelope::new(version), |envelope| {
        let Version { version, abi } = &envelope.body;
        format!("enforcer {version} (layout of the maps: {abi})\n")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_understands_the_socket() {
        for line in [
            "status",
            "service ls",
            "service show a",
            "key ls",
            "limit set a 1/second",
            "limits a",
            "exempt ls",
            "exempt add /ready --source 192.0.2.7 --for 1h --reason OPS-12",
            "exempt rm /ready --source 192.0.2.7",
            "penalty ls",
            "explain GET / --source 192.0.2.7",
            "doctor",
            "verify",
            "import flask-limiter a:b",
            "detach",
            "version",
            "run",
        ] {
            let arguments = ["enforcer"].into_iter().chain(line.split(' ')).chain(["--socket", "/x"]);
            let cli = Cli::try_parse_from(arguments).unwrap_or_else(|error| panic!("{line}: {error}"));
            assert_eq!(cli.socket, Some("/x".into()), "{line}");
        }
    }

    #[test]
    fn a_wrong_limit_never_leaves_the_command_line() {
        let error = Cli::try_parse_from(["enforcer", "limit", "set", "alice", "100/mintue"]).expect_err("a typo");
        assert!(error.to_string().contains("column 5: \"mintue\" is no unit of time"), "{error}");
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn a_hook_that_does_not_exist_is_answered_with_those_that_do() {
        let error = Cli::try_parse_from(["enforcer", "run", "--hook", "xdp"]).expect_err("no hook");
        assert!(error.to_string().contains("auto, xdp-native, xdp-generic or tc"), "{error}");
        assert!(Cli::try_parse_from(["enforcer", "run", "--hook", "tc"]).is_ok());
    }
}
