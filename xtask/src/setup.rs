//! `cargo xtask setup`: installs what is missing, says what it does, and changes nothing that is there already.
//!
//! The other subcommands call the part that they need. What cannot be installed is named, with what to do about it.

mod apt;
mod bpf;
mod bpffs;
mod python;
mod tools;

use std::{fmt::Display, path::PathBuf, process::Command};

use anyhow::Result;

pub(crate) use self::{
    bpf::{linter, object},
    tools::path as tools_path,
};
use crate::{process, workspace::Workspace};

/// Install what building, running and, with --tests, testing needs, as far as it is missing.
///
/// On Debian and Ubuntu this uses apt-get (as root, or through sudo) and never removes a package. An ordinary rustup
/// nightly with rust-src and a bpf-linker on PATH are used as they are.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Also what `cargo xtask test`, `cargo xtask check` and `cargo xtask fuzz` need.
    #[arg(long)]
    tests: bool,
    /// Only show what is missing, and the commands that would install it.
    #[arg(long)]
    dry_run: bool,
}

/// Sets up everything.
///
/// # Errors
/// Something is missing and cannot be installed.
pub(crate) fn run(options: &Options) -> Result<()> {
    let workspace = Workspace::read()?;
    let setup = Setup { workspace: &workspace, dry: options.dry_run };
    bpf::ensure(&setup)?;
    bpffs::ensure(&setup)?;
    setup.environment("example-venv", "examples/flask/requirements.txt")?;
    if options.tests {
        setup.environment("venv", "tests/requirements.txt")?;
        tools::ensure(&setup)?;
        tools::ensure_compiler(&setup)?;
        bpf::ensure_linter(&setup)?;
    }
    if setup.dry {
        eprintln!("setup: nothing was changed");
    } else {
        eprintln!("setup: done; `cargo xtask run` guards the example app");
    }
    Ok(())
}

/// What the daemon needs: that it can be built, and a BPF file system for its pins.
pub(crate) fn for_run(workspace: &Workspace) -> Result<()> {
    let setup = Setup::new(workspace);
    bpf::ensure(&setup)?;
    bpffs::ensure(&setup)
}

/// The virtual environment of the example app.
pub(crate) fn example(workspace: &Workspace) -> Result<PathBuf> {
    Setup::new(workspace).environment("example-venv", "examples/flask/requirements.txt")
}

/// What the tests need: real servers and clients, and the tools that they are driven with.
pub(crate) fn for_tests(workspace: &Workspace) -> Result<()> {
    for_run(workspace)?;
    let setup = Setup::new(workspace);
    setup.environment("venv", "tests/requirements.txt")?;
    tools::ensure(&setup)
}

/// What the benchmark of floods needs: the tests' tools, the servers that the enforcer is compared with, and a virtual
/// environment with what they serve, which is returned.
pub(crate) fn for_flood(workspace: &Workspace) -> Result<PathBuf> {
    for_run(workspace)?;
    let setup = Setup::new(workspace);
    tools::ensure(&setup)?;
    tools::ensure_peers(&setup)?;
    setup.environment("flood-venv", "tests/flood/requirements.txt")
}

/// What the fuzzers need: a compiler for libFuzzer.
pub(crate) fn for_fuzz(workspace: &Workspace) -> Result<()> {
    tools::ensure_compiler(&Setup::new(workspace))
}

/// What the checks need: that everything can be built and linted, and the program loaded.
pub(crate) fn for_check(workspace: &Workspace) -> Result<()> {
    for_run(workspace)?;
    for_fuzz(workspace)?;
    bpf::ensure_linter(&Setup::new(workspace))
}

/// A set-up under way.
struct Setup<'a> {
    workspace: &'a Workspace,
    /// Show the commands, and run none.
    dry: bool,
}

impl<'a> Setup<'a> {
    fn new(workspace: &'a Workspace) -> Self {
        Self { workspace, dry: false }
    }

    /// Runs a command that changes something, or only shows it.
    fn run(&self, command: &mut Command) -> Result<()> {
        if self.dry {
            process::show(command);
            return Ok(());
        }
        process::run(command)
    }

    fn environment(&self, name: &str, requirements: &str) -> Result<PathBuf> {
        python::ensure(self, name, requirements)
    }
}

/// Says how it stands with something.
fn say(what: &str, state: impl Display) {
    eprintln!("setup: {what}: {state}");
}
