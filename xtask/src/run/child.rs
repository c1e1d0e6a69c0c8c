//! A child process that is ended by its id, first asked, then made to.

use std::{
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    process::{self, Command, ExitCode, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::process as commands;

/// How long a child may take from SIGTERM to its end.
const PATIENCE: Duration = Duration::from_secs(15);

/// A running child.
pub(crate) struct Child {
    name: &'static str,
    child: process::Child,
    /// It runs as root and this process does not, so signals go through sudo.
    foreign: bool,
}

impl Child {
    /// Starts `command` in a process group of its own: the terminal's Ctrl-C reaches this process alone, which passes
    /// it on once.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start(name: &'static str, command: &mut Command, foreign: bool) -> Result<Self> {
        commands::show(command);
        // sudo asks for its password on the terminal, which only the foreground group may read.
        if !foreign {
            command.process_group(0);
        }
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name, child, foreign })
    }

    /// Its exit status as one of ours, if it has ended.
    ///
    /// # Errors
    /// The system does not say.
    pub(crate) fn try_wait(&mut self) -> Result<Option<ExitCode>> {
        let status = self.child.try_wait().with_context(|| format!("cannot watch {}", self.name))?;
        if let Some(signal) = status.and_then(|status| status.signal()) {
            eprintln!("run: {} was ended by signal {signal}", self.name);
        }
        Ok(status.map(code))
    }

    /// Asks it to end, waits, and makes it end if it does not.
    ///
    /// # Errors
    /// It cannot be told, or does not end.
    pub(crate) fn stop(&mut self) -> Result<ExitCode> {
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            if let Some(code) = self.try_wait()? {
                return Ok(code);
            }
            self.signal(signal)?;
            let deadline = Instant::now() + PATIENCE;
            while Instant::now() < deadline {
                if let Some(code) = self.try_wait()? {
                    return Ok(code);
                }
                thread::sleep(Duration::from_millis(20));
            }
        }
        bail!("{} (process {}) does not end", self.name, self.child.id())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let id = self.child.id();
        if self.foreign {
            let mut kill = commands::as_root("kill", "ending the daemon")?;
            // It may have ended since; then there is nothing to tell it.
            commands::succeeds(kill.args(["-s", signal.as_str().trim_start_matches("SIG"), &id.to_string()]));
            return Ok(());
        }
        let id = Pid::from_raw(i32::try_from(id).context("a process id is out of range")?);
        kill(id, signal).with_context(|| format!("cannot end {} (process {id})", self.name))
    }
}

fn code(status: ExitStatus) -> ExitCode {
    status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}
