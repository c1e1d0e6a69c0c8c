//! One libFuzzer process, and what its log says.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};

use crate::process::{self, at};

/// How a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It goes on.
    Running,
    /// It ended, and every property held.
    Clean,
    /// It ended at an input for which one did not.
    Failed,
}

/// A fuzzer that runs; it ends with this value.
pub(super) struct Job {
    child: Child,
    log: PathBuf,
}

impl Job {
    /// Starts a fuzzer with its output in the file `log`.
    pub(super) fn start(mut command: Command, log: &Path) -> Result<Self> {
        process::show(&command);
        let file = fs::File::create(log).with_context(at("write", log))?;
        let child = command
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(file.try_clone().with_context(at("write", log))?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Self { child, log: log.to_path_buf() })
    }

    pub(super) fn log(&self) -> &Path {
        &self.log
    }

    pub(super) fn state(&mut self) -> Result<State> {
        let ended = self.child.try_wait().context("cannot wait for a fuzzer")?;
        Ok(ended.map_or(State::Running, |status| if status.success() { State::Clean } else { State::Failed }))
    }

    /// Inputs that were tried so far, as the log says; it is behind while the fuzzer runs.
    pub(super) fn executed(&self) -> u64 {
        executed(&self.text())
    }

    /// The input at which it failed.
    pub(super) fn kept_input(&self) -> Option<PathBuf> {
        self.text().lines().find_map(|line| line.split_once("Test unit written to ")).map(|(_, path)| path.into())
    }

    pub(super) fn end(&mut self) {
        // One that has ended already is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn text(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.end();
    }
}

/// The number in the last line that counts executions.
fn executed(log: &str) -> u64 {
    let number = |line: &str| {
        let number = match line.strip_prefix("stat::number_of_executed_units:") {
            Some(rest) => rest,
            None => line.strip_prefix('#')?.split_ascii_whitespace().next()?,
        };
        number.trim().parse().ok()
    };
    log.lines().rev().find_map(number).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::executed;

    #[test]
    fn reads_how_many_inputs_were_tried() {
        let running =
            "INFO: seed corpus: files: 178\n#178\tINITED cov: 9 exec/s: 0\n#4096\tpulse  cov: 12 exec/s: 2048\n";
        assert_eq!(executed(running), 4096);
        assert_eq!(executed(&format!("{running}Done 5000 runs\nstat::number_of_executed_units: 5000\n")), 5000);
        assert_eq!(executed("INFO: Running\n"), 0);
    }
}
