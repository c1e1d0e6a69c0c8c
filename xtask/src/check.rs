//! `cargo xtask check`: what must hold before a change is shown to others. All checks run, whichever fail.

mod object;

use anyhow::{Result, bail};

use crate::{process, setup, workspace::Workspace};

/// Check format, lints, documentation and the BPF object, and show what the kernel's verifier says of each program.
#[derive(clap::Args)]
pub(crate) struct Options {}

type Check = fn(&Workspace) -> Result<()>;

const CHECKS: &[(&str, Check)] = &[
    ("format", format),
    ("lints", lints),
    ("lints of the BPF program", bpf_lints),
    ("documentation", documentation),
    ("BPF object", object::check),
    ("verifier", verifier),
];

/// Runs all checks.
///
/// # Errors
/// The set-up failed, or a check did; names those.
pub(crate) fn run(Options {}: &Options) -> Result<()> {
    let workspace = Workspace::read()?;
    setup::for_check(&workspace)?;
    let mut failed = Vec::new();
    for (name, check) in CHECKS {
        eprintln!("\n== {name}");
        if let Err(error) = check(&workspace) {
            eprintln!("error: {error:#}");
            failed.push(*name);
        }
    }
    eprintln!();
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    println!("{} checks passed", CHECKS.len());
    Ok(())
}

fn format(workspace: &Workspace) -> Result<()> {
    process::run(workspace.cargo().args(["fmt", "--all", "--check"]))
}

fn lints(workspace: &Workspace) -> Result<()> {
    process::run(workspace.cargo().args([
        "clippy",
        "--locked",
        "--workspace",
        "--all-targets",
        "--features=enforcer-fuzz/libfuzzer",
        "--",
        "--deny=warnings",
    ]))
}

fn bpf_lints(workspace: &Workspace) -> Result<()> {
    let Some(mut clippy) = setup::linter(workspace) else {
        eprintln!("note: the BPF toolchain has no clippy, so only the library of the BPF program was linted, above");
        return Ok(());
    };
    process::run(&mut clippy)
}

fn documentation(workspace: &Workspace) -> Result<()> {
    let mut command = workspace.cargo();
    command.args(["doc", "--locked", "--workspace", "--no-deps", "--document-private-items"]);
    // Readers of this code see the private items too.
    process::run(command.env("RUSTDOCFLAGS", "--deny=warnings --allow=rustdoc::private_intra_doc_links"))
}

/// Loads every program, as only the kernel can say whether it may be.
fn verifier(workspace: &Workspace) -> Result<()> {
    process::run(workspace.cargo().args(["build", "--locked", "--package=enforcer-tests", "--bin=verify"]))?;
    let mut verify = process::as_root(workspace.binary("verify"), "loading the BPF program")?;
    process::run(verify.arg(setup::object(workspace)))
}
