//! Child processes that end, by their id, with the value that holds them.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long anything that is waited for may take; only a failed test ever waits so long.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `done` answers `Some`.
///
/// # Errors
/// After [`PATIENCE`], naming `what`; or the error of `done`.
pub fn wait_for<T>(what: &str, mut done: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let begin = Instant::now();
    loop {
        if let Some(value) = done()? {
            return Ok(value);
        }
        if begin.elapsed() > PATIENCE {
            bail!("waited {PATIENCE:?} in vain for {what}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A running child, with its output in a file.
#[derive(Debug)]
pub struct Process {
    child: Child,
    output: PathBuf,
}

impl Process {
    /// Starts `command`; its stdout and stderr go, appended, to the file `output`.
    ///
    /// # Errors
    /// When the file cannot be opened or the program not started.
    pub fn start(mut command: Command, output: &Path) -> Result<Self> {
        let file = fs::OpenOptions::new().create(true).append(true).open(output)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {:?}", command.get_program()))?;
        Ok(Self { child, output: output.to_owned() })
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// All that it printed so far.
    #[must_use]
    pub fn output(&self) -> String {
        let mut text = Vec::new();
        if let Ok(mut file) = fs::File::open(&self.output) {
            let _ = file.read_to_end(&mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Its exit status, if it has ended.
    ///
    /// # Errors
    /// When the process cannot be waited for.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it has already been waited for.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), signal).context("sending a signal")
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end within [`PATIENCE`].
    pub fn wait(&mut self) -> Result<ExitStatus> {
        wait_for("the end of a child", || Ok(self.child.try_wait()?))
    }

    /// The ids of its direct children.
    #[must_use]
    pub fn children(&self) -> Vec<u32> {
        let id = self.child.id();
        let list = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        list.split_whitespace().filter_map(|id| id.parse().ok()).collect()
    }

    /// Asks it to end, and ends it and its direct children if it does not within a few seconds.
    pub fn end(&mut self) {
        let children = self.children();
        if let Ok(Some(_)) = self.child.try_wait() {
            return;
        }
        let _ = self.signal(Signal::SIGTERM);
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(5) {
            if let Ok(Some(_)) = self.child.try_wait() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        for id in children.into_iter().filter_map(|id| i32::try_from(id).ok()) {
            let _ = kill(Pid::from_raw(id), Signal::SIGKILL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// Runs a command to its end and gives its stdout.
///
/// # Errors
/// When it cannot be started or ends with another status than 0; with its stderr.
pub fn run(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("starting {:?}", command.get_program()))?;
    if !output.status.success() {
        bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
