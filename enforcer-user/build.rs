//! Puts the BPF object where the daemon embeds it from: `OUT_DIR/enforcer-bpf`.
//!
//! `cargo build` is the only thing that builds the object; it runs a second cargo, for the BPF target, in a target
//! directory of its own. The object keeps its BTF: the kernel refuses `bpf_loop` callbacks without it.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

#[expect(dead_code, reason = "some of the pins are for xtask, which includes the same file")]
mod toolchain;

use toolchain::{PREBUILT, Toolchain};

fn main() {
    if let Err(message) = run() {
        println!("cargo::error={message}");
    }
}

fn run() -> Result<(), String> {
    let manifest_dir = variable("CARGO_MANIFEST_DIR")?;
    let workspace = manifest_dir.parent().ok_or("the package does not lie in its workspace")?;
    for name in ["build.rs", "toolchain.rs", "../Cargo.toml", "../Cargo.lock"] {
        println!("cargo::rerun-if-changed={name}");
    }
    for name in ["enforcer-ebpf/src", "enforcer-ebpf/Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", workspace.join(name).display());
    }
    for name in [PREBUILT, "CARGO_TARGET_DIR"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let object = match env::var_os(PREBUILT) {
        Some(path) => {
            let path = PathBuf::from(path);
            println!("cargo::rerun-if-changed={}", path.display());
            path
        }
        None => build(workspace)?,
    };
    let embedded = variable("OUT_DIR")?.join("enforcer-bpf");
    fs::copy(&object, &embedded)
        .map_err(|error| format!("the BPF object {} cannot be copied: {error}", object.display()))?;
    Ok(())
}

/// Builds the object and says where it lies.
fn build(workspace: &Path) -> Result<PathBuf, String> {
    let toolchain = Toolchain::find().map_err(|missing| format!("the BPF program cannot be built: {missing}"))?;
    let target_dir = toolchain::target_dir(workspace);
    let status = toolchain
        .cargo("build", workspace, &target_dir)
        .status()
        .map_err(|error| format!("the BPF program cannot be built: cargo does not start: {error}"))?;
    if !status.success() {
        return Err(format!("the BPF program was not built, see above ({PREBUILT} names a prebuilt object)"));
    }
    Ok(Toolchain::object(&target_dir))
}

fn variable(name: &str) -> Result<PathBuf, String> {
    env::var_os(name).map(PathBuf::from).ok_or_else(|| format!("cargo did not set {name}"))
}
