//! The daemon as a user meets it: asked through its own command line, and introduced with commands to try.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{process, run::settings::Settings};

/// Between two questions whether the daemon is there yet.
pub(crate) const PAUSE: Duration = Duration::from_millis(200);

/// The first key's principal.
const NAME: &str = "demo";
/// The first key's limit: a loop over a dozen requests runs into it.
const LIMIT: &str = "10/minute";

/// `enforcer` with a socket.
pub(crate) struct Client {
    enforcer: PathBuf,
    socket: OsString,
}

impl Client {
    /// A client of the daemon behind `socket`.
    pub(crate) fn new(enforcer: &Path, socket: &OsStr) -> Self {
        Self { enforcer: enforcer.to_path_buf(), socket: socket.to_owned() }
    }

    /// Whether the daemon answers yet.
    ///
    /// # Errors
    /// There are no rights to ask.
    pub(crate) fn is_answered(&self) -> Result<bool> {
        Ok(process::succeeds(&mut self.command(&["status"])?))
    }

    /// Creates a key if there is none, and prints what to try.
    ///
    /// # Errors
    /// The daemon does not answer as documented.
    pub(crate) fn introduce(&self, settings: &Settings) -> Result<()> {
        let listed = process::output(&mut self.command(&["key", "ls", "-o", "json"])?)?;
        let listed: Value = serde_json::from_str(&listed).context("`enforcer key ls` wrote no JSON")?;
        let Some(keys) = listed["keys"].as_array() else { bail!("`enforcer key ls -o json` listed no `keys`") };
        println!();
        if keys.is_empty() {
            let mut add = self.command(&["key", "add", NAME, "--limit", LIMIT])?;
            // The key alone is on standard output; what the command says besides is said below.
            let key = process::output(add.stderr(std::process::Stdio::null()))?;
            println!("A first key, which is shown only now. It is \"{NAME}\"'s, who may send {LIMIT}:\n");
            println!("    KEY={}\n", key.trim());
        } else {
            println!("{} from an earlier run; another one: {} key add NAME\n", count(keys.len()), self.prefix());
        }
        if let Some(port) = settings.port() {
            let url = format!("http://127.0.0.1:{port}/rates");
            println!("Try, in another terminal, with the key, without one, and over the limit:\n");
            println!("    curl -i -H \"X-API-Key: $KEY\" {url}");
            println!("    curl -i {url}");
            println!(
                "    for n in $(seq 12); do curl -s -o /dev/null -w '%{{http_code}}\\n' -H \"X-API-Key: $KEY\" {url}; done\n"
            );
        }
        println!("See what it did: {} status", self.prefix());
        println!("Ctrl-C ends it, and detaches.\n");
        Ok(())
    }

    fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = process::as_root(&self.enforcer, "asking the daemon")?;
        command.args(arguments).arg("--socket").arg(&self.socket);
        Ok(command)
    }

    /// How one types it.
    fn prefix(&self) -> String {
        format!("{} --socket {}", self.enforcer.display(), self.socket.to_string_lossy())
    }
}

fn count(keys: usize) -> String {
    if keys == 1 { "The store holds one key".into() } else { format!("The store holds {keys} keys") }
}
