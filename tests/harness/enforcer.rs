//! The real daemon, run as a child with everything of its own: state, socket, BPF file system, metrics port.
//!
//! The BPF file system is a mount of its own: what the daemon pins is all that lies in it, and unmounting it ends
//! whatever a failed test left attached.
//!
//! Floods from one address are what most tests are made of, so no source gets a penalty unless a test asks for it with
//! `--penalty on`, and none may guess too many keys unless a policy says so.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::netns::{Link, Namespace};
use crate::process::{self, Process, wait_for};
use crate::root;

/// The `enforcer` binary: the one that `ENFORCER_BIN` names, else built now.
///
/// # Errors
/// When it cannot be built.
pub fn binary() -> Result<PathBuf> {
    static BINARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BINARY.get_or_init(|| find_binary().map_err(|error| format!("{error:#}"))).clone().map_err(anyhow::Error::msg)
}

fn find_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("ENFORCER_BIN") {
        return Ok(path.into());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    process::run(Command::new(cargo).args(["build", "--quiet", "--package", "enforcer-user", "--bin", "enforcer"]))?;
    // The test runs from target/PROFILE/deps.
    let folder = std::env::current_exe()?;
    let folder = folder.parent().and_then(Path::parent).context("the test runs outside a target folder")?;
    Ok(folder.join("enforcer"))
}

/// A mounted BPF file system.
#[derive(Debug)]
struct BpfFs {
    path: PathBuf,
}

impl BpfFs {
    fn mount(path: PathBuf) -> Result<Self> {
        fs::create_dir_all(&path)?;
        process::run(Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&path))?;
        Ok(Self { path })
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        let _ = process::run(Command::new("umount").arg("--lazy").arg(&self.path));
    }
}

/// How a command of the CLI ended.
#[derive(Debug)]
pub struct Ran {
    /// The exit code.
    pub code: i32,
    /// The data.
    pub stdout: String,
    /// The talk.
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// An instance of the enforcer: its folders, and its daemon while that runs.
#[derive(Debug)]
pub struct Enforcer<'a> {
    namespace: &'a Namespace,
    arguments: Vec<String>,
    daemon: Option<Process>,
    /// Whether the policy of the tests was applied.
    is_lenient: bool,
    binary: PathBuf,
    bpffs: BpfFs,
    folder: TempDir,
}

impl<'a> Enforcer<'a> {
    /// Makes the folders and mounts the BPF file system; starts nothing. `arguments` go to every `enforcer run`.
    ///
    /// # Errors
    /// Without root, or when the binary cannot be built.
    pub fn new(namespace: &'a Namespace, arguments: &[&str]) -> Result<Self> {
        root::require()?;
        let binary = binary()?;
        let folder = tempfile::Builder::new().prefix("enforcer-test").tempdir()?;
        let bpffs = BpfFs::mount(folder.path().join("bpf"))?;
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        Ok(Self { namespace, arguments, daemon: None, is_lenient: false, binary, bpffs, folder })
    }

    /// Guards port `port` of a link's server with the link's hook, and waits until the daemon answers.
    ///
    /// # Errors
    /// When the daemon does not come up; with what it printed.
    pub fn guard(link: &'a Link, port: u16, more: &[&str]) -> Result<Self> {
        let port = port.to_string();
        let mut arguments = vec!["--interface", &link.interface, "--port", &port, "--hook", link.hook()];
        arguments.extend(more);
        let mut enforcer = Self::new(&link.server, &arguments)?;
        enforcer.start()?;
        Ok(enforcer)
    }

    /// Takes away all that is pinned, as a boot does: maps, programs, attachments.
    ///
    /// # Errors
    /// When the BPF file system cannot be mounted anew.
    pub fn boot(&mut self) -> Result<()> {
        let path = self.bpffs.path.clone();
        process::run(Command::new("umount").arg(&path))?;
        process::run(Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&path))?;
        Ok(())
    }

    /// A command of the binary with this instance's environment, in its namespace.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = self.namespace.command(&self.binary);
        let folder = self.folder.path();
        command
            .env("ENFORCER_CONFIG", folder.join("enforcer.toml"))
            .env("ENFORCER_STATE_DIR", folder.join("state"))
            .env("ENFORCER_SOCKET", folder.join("control.sock"))
            .env("ENFORCER_BPFFS_DIR", self.bpffs_dir())
            .env("ENFORCER_METRICS", "127.0.0.1:9464")
            .env("ENFORCER_PENALTY", "off")
            .env_remove("RUST_LOG")
            .env("NO_COLOR", "1");
        command
    }

    /// Where the instance keeps its files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its state folder.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Its control socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("control.sock")
    }

    /// Where it pins.
    #[must_use]
    pub fn bpffs_dir(&self) -> PathBuf {
        self.bpffs.path.join("enforcer")
    }

    /// All that is pinned, as paths below the mount; without the two iterators that the kernel puts into each.
    ///
    /// # Errors
    /// When the mount cannot be read.
    pub fn pinned(&self) -> Result<Vec<PathBuf>> {
        fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
            for entry in fs::read_dir(folder)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    walk(&entry.path(), found)?;
                } else {
                    found.push(entry.path());
                }
            }
            Ok(())
        }
        let mut found = Vec::new();
        walk(&self.bpffs.path, &mut found)?;
        found.retain(|path| !path.ends_with("progs.debug") && !path.ends_with("maps.debug"));
        Ok(found)
    }

    /// Writes its configuration file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn configure(&self, text: &str) -> Result<()> {
        Ok(fs::write(self.folder.path().join("enforcer.toml"), text)?)
    }

    /// Starts the daemon and waits until it answers.
    ///
    /// # Errors
    /// When it does not come up; with what it printed.
    pub fn start(&mut self) -> Result<()> {
        // A named file must exist.
        let config = self.folder.path().join("enforcer.toml");
        if !config.exists() {
            fs::write(config, "")?;
        }
        let mut command = self.command();
        command.arg("run").args(&self.arguments);
        let mut daemon = Process::start(command, &self.folder.path().join("log"))?;
        wait_for("the daemon to answer", || {
            if let Some(status) = daemon.ended()? {
                bail!("`enforcer run` ended with {status}: {}", daemon.output());
            }
            Ok((self.run(&["status", "-o", "json"])?.code == 0).then_some(()))
        })?;
        self.daemon = Some(daemon);
        if !std::mem::replace(&mut self.is_lenient, true) {
            self.be_lenient()?;
        }
        Ok(())
    }

    /// Lets guesses be as many as they like, once: a test that asks for a policy of its own applies it.
    fn be_lenient(&self) -> Result<()> {
        let policy = self.folder.path().join("lenient.toml");
        let status = self.json(&["status"])?;
        let names = status["services"].as_array().context("no list of services")?.iter();
        let lenient = |service: &Value| {
            let name = service["name"].as_str().unwrap_or_default();
            format!("[[service]]\nname = \"{name}\"\nguesses = \"unlimited\"\n")
        };
        fs::write(&policy, format!("version = 1\n{}", names.map(lenient).collect::<String>()))?;
        let ran = self.run(&["apply", "--file", &policy.display().to_string()])?;
        ensure!(ran.code == 0, "the policy of the tests: {}", ran.stderr);
        Ok(())
    }

    /// Runs `enforcer run` with the instance's and these arguments, which must fail; says how it ended.
    ///
    /// # Errors
    /// When it does not end.
    pub fn fail_to_start(&self, more: &[&str]) -> Result<Ran> {
        let mut command = Command::new("timeout");
        let inner = self.command();
        command.arg("30").arg(inner.get_program()).args(inner.get_args());
        for (name, value) in inner.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let config = self.folder.path().join("enforcer.toml");
        if !config.exists() {
            fs::write(config, "")?;
        }
        let ran: Ran = command.arg("run").args(&self.arguments).args(more).output()?.into();
        ensure!(ran.code != 124, "`enforcer run` did not end: {}", ran.stderr);
        Ok(ran)
    }

    /// The running daemon.
    ///
    /// # Errors
    /// When none runs.
    pub fn daemon(&mut self) -> Result<&mut Process> {
        self.daemon.as_mut().context("no daemon runs")
    }

    /// Ends the daemon with `signal` and gives its exit code; −1 if the signal ended it.
    ///
    /// # Errors
    /// When none runs or it does not end.
    pub fn stop(&mut self, signal: nix::sys::signal::Signal) -> Result<i32> {
        let mut daemon = self.daemon.take().context("no daemon runs")?;
        daemon.signal(signal)?;
        Ok(daemon.wait()?.code().unwrap_or(-1))
    }

    /// All that the daemons of this instance printed.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.folder.path().join("log"))?)
    }

    /// Runs a command of the CLI.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, arguments: &[&str]) -> Result<Ran> {
        let mut command = self.command();
        Ok(command.args(arguments).stdin(std::process::Stdio::null()).output()?.into())
    }

    /// Runs a command of the CLI with `input` as its stdin.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run_with_input(&self, arguments: &[&str], input: &str) -> Result<Ran> {
        let path = self.folder.path().join("input");
        fs::write(&path, input)?;
        let mut command = self.command();
        let output = command.args(arguments).stdin(fs::File::open(&path)?).output()?;
        fs::remove_file(path)?;
        Ok(output.into())
    }

    /// Runs a command of the CLI, which must succeed.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub fn cli(&self, arguments: &[&str]) -> Result<String> {
        let ran = self.run(arguments)?;
        ensure!(ran.code == 0, "enforcer {arguments:?} ended with {}: {}", ran.code, ran.stderr);
        Ok(ran.stdout)
    }

    /// Runs a command of the CLI with `-o json` and reads what it prints.
    ///
    /// # Errors
    /// When it fails or prints no JSON of schema v1.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let printed = self.cli(&[arguments, &["-o", "json"]].concat())?;
        let value: Value =
            serde_json::from_str(&printed).with_context(|| format!("{arguments:?} printed {printed:?}"))?;
        ensure!(value["schema"] == "v1", "{arguments:?} printed no envelope of schema v1: {printed}");
        Ok(value)
    }

    /// Adds a key and gives it.
    ///
    /// # Errors
    /// When it is refused.
    pub fn add_key(&self, name: &str, limit: &str) -> Result<String> {
        let printed = self.cli(&["key", "add", name, "--limit", limit])?;
        let key = printed.trim();
        ensure!(!key.is_empty() && !key.contains(char::is_whitespace), "`key add` printed {printed:?}, not a bare key");
        Ok(key.to_owned())
    }

    /// The metrics, as Prometheus reads them.
    ///
    /// # Errors
    /// When they cannot be fetched.
    pub fn metrics(&self) -> Result<String> {
        process::run(self.namespace.command("curl").args(["--silent", "--fail", "http://127.0.0.1:9464/metrics"]))
    }

    /// The value of one series, exactly as it is written; 0 if it is not there.
    ///
    /// # Errors
    /// When the metrics cannot be fetched or the value is no number.
    pub fn metric(&self, series: &str) -> Result<u64> {
        let text = self.metrics()?;
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(Ok(0), |value| value.trim().parse::<f64>().map(|value| value as u64).context("no number"))
    }
}

impl Drop for Enforcer<'_> {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.end();
        }
        let _ = self.command().arg("detach").output();
    }
}
