//! Building the fuzzers: on the stable toolchain, with the instructions that count which code an input reaches.

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result};

use crate::{process, workspace::Workspace};

/// What libFuzzer needs of the compiler (LLVM's SanitizerCoverage); no sanitizer, which would need a nightly one.
const FLAGS: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];

/// The built fuzzers.
pub(super) struct Fuzzers {
    drivers: PathBuf,
    replay: PathBuf,
}

impl Fuzzers {
    /// Builds the drivers, in a folder of their own since all they use is instrumented, and the program that tries
    /// inputs again.
    pub(super) fn build(workspace: &Workspace) -> Result<Self> {
        let host = host()?;
        let folder = workspace.target().join("fuzz/build");
        let mut command = workspace.cargo();
        command.args(["build", "--locked", "--profile=fuzz", "--package=enforcer-fuzz", "--features=libfuzzer"]);
        command.args(super::TARGETS.map(|target| format!("--bin=fuzz-{target}")));
        // With a target named, build scripts and macros are not instrumented.
        command.arg(format!("--target={host}")).arg(format!("--target-dir={}", folder.display()));
        command.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}"));
        process::run(&mut command)?;
        process::run(workspace.cargo().args(["build", "--locked", "--package=enforcer-fuzz", "--bin=fuzz-replay"]))?;
        Ok(Self { drivers: folder.join(host).join("fuzz"), replay: workspace.binary("fuzz-replay") })
    }

    /// libFuzzer over a target.
    pub(super) fn command(&self, target: &str) -> Command {
        Command::new(self.drivers.join(format!("fuzz-{target}")))
    }

    /// The program that writes a target's first inputs, and tries others again.
    pub(super) fn replay(&self, target: &str) -> Command {
        let mut command = Command::new(&self.replay);
        command.arg(target);
        command
    }
}

/// The triple that the compiler builds for by default.
fn host() -> Result<String> {
    let version = process::output(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("`rustc -vV` named no host")
}
