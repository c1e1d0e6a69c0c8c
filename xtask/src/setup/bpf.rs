//! The toolchain of the BPF program: a compiler with the source of `core`, bpf-linker, and clippy if it can be had.
//!
//! How one is found, and with which versions, stands in `enforcer-user/toolchain.rs`, which the build script uses too.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, anyhow, bail};

#[path = "../../../enforcer-user/toolchain.rs"]
mod toolchain;

use self::toolchain::Toolchain;
use crate::{
    process,
    setup::{Setup, apt, say, tools},
    workspace::Workspace,
};

/// Debian's package of the clippy that belongs to its compiler.
const LINTER_PACKAGE: &str = "rust-web-clippy";
/// The program in it that compiles and lints.
const LINTER: &str = "clippy-driver";
/// Where it lies in the package.
const LINTER_FILE: &str = "usr/bin/clippy-driver";

/// Finds the toolchain, or installs one.
///
/// # Errors
/// One is missing and cannot be installed; says what, and how to get it.
pub(crate) fn ensure(setup: &Setup<'_>) -> Result<()> {
    if Toolchain::find().is_ok() {
        say("BPF toolchain", "there");
        return Ok(());
    }
    let packages = apt::missing(toolchain::DEBIAN_PACKAGES);
    if !packages.is_empty() {
        if !apt::can_install(setup, &packages)? {
            bail!(
                "the BPF program needs Rust 1.{} or newer with the source of `core`, and bpf-linker, and this system's \
                 packages do not have them ({}): with rustup, run `rustup toolchain install nightly --component \
                 rust-src` and put a bpf-linker on PATH (https://github.com/aya-rs/bpf-linker)",
                toolchain::MIN_RUST_MINOR,
                packages.join(", "),
            );
        }
        say("BPF compiler", "missing");
        apt::install(setup, &packages, "installing the BPF compiler")?;
    }
    if Toolchain::find().is_err() {
        say("bpf-linker", "missing; building it takes a minute or two");
        setup.run(&mut build_linker()?)?;
    }
    if setup.dry {
        return Ok(());
    }
    Toolchain::find().map(|_| ()).map_err(|missing| anyhow!("{missing}"))
}

/// `cargo install` of the linker, against the LLVM of Debian's packages.
fn build_linker() -> Result<Command> {
    let llvm = PathBuf::from(format!("/usr/lib/llvm-{}", toolchain::LLVM_MAJOR));
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(["install", "bpf-linker", "--locked", "--no-default-features"])
        .arg(format!("--version=={}", toolchain::BPF_LINKER_VERSION))
        .arg(format!("--features=llvm-{}", toolchain::LLVM_MAJOR))
        .env("PATH", before_path(&llvm.join("bin"))?)
        .env("LLVM_PREFIX", llvm)
        // Outside of the checkout, so that its settings are not the linker's.
        .current_dir("/");
    Ok(command)
}

/// Gets clippy for the BPF toolchain where that is Debian's; elsewhere it is rustup's matter. The system's toolchain
/// stays as it is: the program is only unpacked.
///
/// # Errors
/// apt-get fails.
pub(crate) fn ensure_linter(setup: &Setup<'_>) -> Result<()> {
    let debian = apt::is_here() && apt::missing(toolchain::DEBIAN_PACKAGES).is_empty();
    if linter(setup.workspace).is_some() {
        say("clippy of the BPF toolchain", "there");
    } else if debian && apt::can_install(setup, &[LINTER_PACKAGE])? {
        tools::unpack(setup, LINTER, LINTER_PACKAGE, LINTER_FILE)?;
    }
    Ok(())
}

/// The command that lints the BPF program and denies warnings; `None` where there is no toolchain, or it has no clippy.
pub(crate) fn linter(workspace: &Workspace) -> Option<Command> {
    let toolchain = Toolchain::find().ok()?;
    let target = workspace.target().join("bpf-clippy");
    let driver = tools::folder(workspace).join(LINTER);
    // One of another version than the compiler's finds no library to run with.
    if process::succeeds(Command::new(&driver).arg("--version")) {
        let mut command = toolchain.cargo("check", workspace.root(), &target);
        // As `cargo clippy` does, which would take the first cargo-clippy on PATH and with it another version's driver.
        command.env("RUSTC_WORKSPACE_WRAPPER", driver).env("CLIPPY_ARGS", "--deny=warnings");
        return Some(command);
    }
    let clippy = || toolchain.cargo("clippy", workspace.root(), &target);
    // A cargo that is called by its path may find rustup's clippy, of another version, which cannot read its crates.
    let own = Path::new(clippy().get_program())
        .parent()
        .is_none_or(|folder| folder.as_os_str().is_empty() || folder.join("cargo-clippy").is_file());
    let mut command = clippy();
    command.args(["--", "--deny=warnings"]);
    (own && process::succeeds(clippy().arg("--version"))).then_some(command)
}

/// The object that the daemon embeds: where its build script leaves it, or takes it from.
pub(crate) fn object(workspace: &Workspace) -> PathBuf {
    env::var_os(toolchain::PREBUILT)
        .map_or_else(|| Toolchain::object(&toolchain::target_dir(workspace.root())), PathBuf::from)
}

fn before_path(folder: &Path) -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(folder.to_path_buf()).chain(env::split_paths(&path));
    env::join_paths(folders).with_context(|| format!("{} cannot stand in PATH", folder.display()))
}
