//! `cargo xtask test`: all tests of the checkout, those that need root included, and their totals.
//!
//! A failing group does not keep the later ones from running. Which tests need root stands where the tests are: as
//! `root-tests` under `[package.metadata.enforcer]` in their package's manifest.

mod totals;

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    process, setup,
    test::totals::Totals,
    workspace::{TestTarget, Workspace},
};

/// Run every test: of the libraries, of the loaded program, and, in network namespaces, with real servers.
///
/// Sets up first what the tests need. Ends with the runners' totals.
#[derive(clap::Args)]
pub(crate) struct Options {}

/// Runs all groups; the status says whether all of them passed.
///
/// # Errors
/// The set-up failed, a group could not be run, or this is not root.
pub(crate) fn run(Options {}: &Options) -> Result<ExitCode> {
    if !process::is_root() {
        bail!(
            "many tests load the program into the kernel and make network namespaces, which needs root: become root \
             and run `cargo xtask test` again (without root, `cargo test -p enforcer-ebpf` tests the library)"
        );
    }
    let workspace = Workspace::read()?;
    setup::for_tests(&workspace)?;
    process::run(workspace.cargo().args(["build", "--locked", "--package=enforcer-user", "--bin=enforcer"]))?;

    let mut totals = Totals::default();
    let mut failed = Vec::new();
    for Group { name, mut command } in groups(&workspace)? {
        eprintln!("\n== {name}");
        if !stream(&mut command, &mut totals)? {
            failed.push(name);
        }
    }
    eprintln!();
    let passed = failed.is_empty() && totals.failed == 0;
    if !passed {
        eprintln!("error: not all tests passed: {}", failed.join(", "));
    }
    // The last line, whatever happened.
    println!("{totals}");
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One run of cargo's test runner.
struct Group {
    name: String,
    command: Command,
}

fn groups(workspace: &Workspace) -> Result<Vec<Group>> {
    let mut host = workspace.cargo();
    host.args(["test", "--locked", "--no-fail-fast", "--workspace"]);
    let mut groups = vec![Group { name: "without rights".into(), command: host }];
    for TestTarget { package, name } in workspace.root_tests() {
        let mut command = workspace.cargo();
        command.args(["test", "--locked", "--package", &package, "--test", &name, "--", "--test-threads=1"]);
        groups.push(Group { name: format!("as root: {name}"), command });
    }
    for group in &mut groups {
        group.command.env("PATH", setup::tools_path(workspace)?);
    }
    Ok(groups)
}

/// Runs a group and adds up its results as they come; `false` if the group failed.
fn stream(command: &mut Command, totals: &mut Totals) -> Result<bool> {
    process::show(command);
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let stdout = child.stdout.take().context("cargo has no output")?;
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.context("cannot read cargo's output")?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        totals.add(&line);
    }
    Ok(child.wait().context("cannot wait for cargo")?.success())
}
