//! The example app, served by gunicorn from its own virtual environment: an ordinary Flask app, not told that it is
//! guarded.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::{
    run::{child::Child, settings::Settings},
    setup,
    workspace::Workspace,
};

/// How long gunicorn may take until it listens.
const PATIENCE: Duration = Duration::from_secs(30);

/// The example app, ready to be started.
pub(crate) struct App {
    address: SocketAddr,
    gunicorn: PathBuf,
    folder: PathBuf,
}

impl App {
    /// Makes its environment; `None` if something listens on the guarded port already, or if an app on loopback would
    /// not be guarded.
    ///
    /// # Errors
    /// The environment cannot be made.
    pub(crate) fn prepare(workspace: &Workspace, settings: &Settings) -> Result<Option<Self>> {
        let Some(port) = settings.port().filter(|_| settings.guards_loopback()) else {
            eprintln!(
                "run: no example app, since it would listen on 127.0.0.1, and no port of lo is named to be guarded"
            );
            return Ok(None);
        };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if listens(address) {
            eprintln!("run: something listens on {address} already, and is what is guarded");
            return Ok(None);
        }
        let gunicorn = setup::example(workspace)?.join("bin/gunicorn");
        Ok(Some(Self { address, gunicorn, folder: workspace.root().join("examples/flask") }))
    }

    /// Starts gunicorn with four workers.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start(&self) -> Result<Child> {
        let mut command = Command::new(&self.gunicorn);
        command
            .args(["--workers=4", "--no-control-socket", &format!("--bind={}", self.address), "app:app"])
            .current_dir(&self.folder)
            // Compiled files would lie in the checkout.
            .env("PYTHONDONTWRITEBYTECODE", "1");
        Child::start("the example app", &mut command, false)
    }

    /// Waits until it listens.
    ///
    /// # Errors
    /// It ends, or does not listen in time.
    pub(crate) fn wait(&self, child: &mut Child) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !listens(self.address) {
            if child.try_wait()?.is_some() {
                bail!("the example app has ended; what it printed above says why");
            }
            if Instant::now() > deadline {
                bail!("the example app does not listen on {} after {} seconds", self.address, PATIENCE.as_secs());
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

fn listens(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
}
