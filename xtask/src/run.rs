//! `cargo xtask run`: the daemon in the foreground, with an app to guard and a key to try it with.
//!
//! Its state lies in the build folder and it detaches at its end, so that trying it leaves nothing on the system.
//! This process only watches: children have process groups of their own, get one signal each, by their id, and the
//! daemon's exit status becomes this one's.

mod app;
mod child;
mod client;
mod settings;

use std::{ffi::OsString, fs, process::ExitCode, thread};

use anyhow::{Context as _, Result, bail};
use signal_hook::{
    consts::{SIGCHLD, SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::{
    process::{self, at},
    run::{app::App, child::Child, client::Client, settings::Settings},
    setup,
    workspace::Workspace,
};

/// Set up, build and start the daemon in the foreground, by default guarding port 8000 on lo.
///
/// If nothing listens on 127.0.0.1:8000 it also starts the example Flask app there. With an empty store it creates a
/// first key, with a limit that a short loop runs into, and prints three commands to try.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Arguments for `enforcer run`; an interface, port, state directory or socket named here replaces the default.
    #[arg(last = true, value_name = "ARGS")]
    arguments: Vec<OsString>,
}

/// Runs until the daemon ends or this process is told to.
///
/// # Errors
/// The set-up or the build failed, or a process could not be started or watched.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let workspace = Workspace::read()?;
    setup::for_run(&workspace)?;
    process::run(workspace.cargo().args(["build", "--locked", "--package=enforcer-user", "--bin=enforcer"]))?;

    let folder = workspace.target().join("run");
    fs::create_dir_all(&folder).with_context(at("make", &folder))?;
    let settings = Settings::read(&options.arguments, &folder);
    let app = App::prepare(&workspace, &settings)?;
    process::authenticate("attaching to an interface")?;
    // Before there is a child, so that its end is not missed.
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGCHLD]).context("cannot watch for signals")?;

    let enforcer = workspace.binary("enforcer");
    let client = Client::new(&enforcer, settings.socket());
    let mut command = process::as_root(&enforcer, "attaching to an interface")?;
    let daemon = Child::start("enforcer", command.arg("run").args(settings.arguments()), !process::is_root())?;
    let mut running = Running { daemon, app: None };
    let outcome = running.watch(&mut signals, &client, app, &settings);
    running.end(outcome)
}

/// What runs.
struct Running {
    daemon: Child,
    app: Option<Child>,
}

impl Running {
    /// Waits for the daemon, starts `app` behind it, introduces both, and returns when one ends or a signal asks for it.
    fn watch(
        &mut self,
        signals: &mut Signals,
        client: &Client,
        app: Option<App>,
        settings: &Settings,
    ) -> Result<ExitCode> {
        while !client.is_answered()? {
            if let Some(code) = self.ended(signals.pending())? {
                return Ok(code);
            }
            thread::sleep(client::PAUSE);
        }
        if let Some(app) = app {
            let child = self.app.insert(app.start()?);
            app.wait(child)?;
        }
        client.introduce(settings)?;
        for signal in signals {
            if let Some(code) = self.ended([signal])? {
                return Ok(code);
            }
        }
        bail!("no more signals arrive")
    }

    /// Whether `signals` are a reason to end, and with which status.
    fn ended(&mut self, signals: impl IntoIterator<Item = i32>) -> Result<Option<ExitCode>> {
        for signal in signals {
            if signal != SIGCHLD {
                return Ok(Some(ExitCode::SUCCESS));
            }
            if let Some(status) = self.daemon.try_wait()? {
                return Ok(Some(status));
            }
            if let Some(app) = &mut self.app
                && app.try_wait()?.is_some()
            {
                bail!("the example app has ended; what it printed above says why");
            }
        }
        Ok(None)
    }

    /// Stops what still runs, the daemon last, so that the app never runs unguarded.
    fn end(mut self, outcome: Result<ExitCode>) -> Result<ExitCode> {
        let app = self.app.as_mut().map_or(Ok(ExitCode::SUCCESS), Child::stop);
        let daemon = self.daemon.stop();
        let asked_to_end = outcome.as_ref().is_ok_and(|code| *code == ExitCode::SUCCESS);
        app?;
        if asked_to_end { daemon } else { outcome }
    }
}
