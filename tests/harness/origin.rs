//! The guarded application: a real server that serves one of `apps/` unchanged, with a record of what it executed.

mod server;

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

pub use self::server::{Server, Workers};
use crate::folder;
use crate::netns::Namespace;
use crate::process::{Process, wait_for};

/// A request that the app has executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executed {
    /// The key as the app saw it; `-` for none.
    pub key: String,
    /// The method.
    pub method: String,
    /// The path.
    pub path: String,
    /// The worker's process id.
    pub worker: u32,
    /// The client's port.
    pub port: u16,
}

/// A running application.
#[derive(Debug)]
pub struct Origin {
    process: Process,
    log: PathBuf,
    /// Where it listens.
    pub address: SocketAddr,
    _folder: TempDir,
}

/// A program of the virtual environment: the tests' own, or the one that `ENFORCER_VENV` names.
///
/// # Errors
/// When it is not there; says how to make it.
pub fn venv(program: &str) -> Result<PathBuf> {
    let named = std::env::var_os("ENFORCER_VENV").map(PathBuf::from);
    let path = named.unwrap_or_else(|| folder().join("../target/venv")).join("bin").join(program);
    ensure!(path.exists(), "{} is missing: `cargo xtask setup --tests` installs it", path.display());
    Ok(path)
}

impl Origin {
    /// Starts a server of `app` (a file of `apps/`, without `.py`) in `namespace` and waits until it is up, with all
    /// its workers.
    ///
    /// # Errors
    /// When it does not come up; with what it printed.
    pub fn start(namespace: &Namespace, app: &str, server: impl Into<Server>, address: SocketAddr) -> Result<Self> {
        let server = server.into();
        let temporary = tempfile::tempdir()?;
        let log = temporary.path().join("executed");
        fs::write(&log, "")?;
        let mut command = server.command(namespace, app, address)?;
        command.env("EXECUTION_LOG", &log);
        let mut process = Process::start(command, &temporary.path().join("output"))?;
        wait_for("the server and its workers", || {
            if let Some(status) = process.ended()? {
                bail!("{server} ended with {status}: {}", process.output());
            }
            let up = process.children().len() == server.children()
                && namespace.run(|| Ok(TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()))?;
            Ok(up.then_some(()))
        })?;
        Ok(Self { process, log, address, _folder: temporary })
    }

    /// All that the server printed so far.
    #[must_use]
    pub fn output(&self) -> String {
        self.process.output()
    }

    /// Its master process's id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// How many processes execute requests.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.process.children().len().max(1)
    }

    /// The requests executed so far, in their order.
    ///
    /// # Errors
    /// When the record cannot be read or understood.
    pub fn executed(&self) -> Result<Vec<Executed>> {
        read_record(&self.log)
    }

    /// How many requests with this key were executed; `-` for requests without a key.
    ///
    /// # Errors
    /// When the record cannot be read or understood.
    pub fn executed_with(&self, key: &str) -> Result<usize> {
        Ok(self.executed()?.iter().filter(|request| request.key == key).count())
    }

    /// Waits until `count` requests have been executed in all, and fails if there are more.
    ///
    /// # Errors
    /// When there are fewer or more.
    pub fn await_executed(&self, count: usize) -> Result<Vec<Executed>> {
        let executed = wait_for("the app to execute its requests", || {
            let executed = self.executed()?;
            Ok((executed.len() >= count).then_some(executed))
        })?;
        ensure!(executed.len() == count, "the app executed {} requests, not {count}", executed.len());
        Ok(executed)
    }
}

fn read_record(path: &Path) -> Result<Vec<Executed>> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    text.lines()
        .map(|line| {
            let [key, method, path, worker, port] = line.split('\t').collect::<Vec<_>>()[..] else {
                bail!("no record of an execution: {line:?}");
            };
            let (worker, port) = (worker.parse()?, port.parse()?);
            Ok(Executed { key: key.into(), method: method.into(), path: path.into(), worker, port })
        })
        .collect()
}
