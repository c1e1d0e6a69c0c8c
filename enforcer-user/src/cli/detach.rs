//! `enforcer detach`: ends enforcement, with or without a daemon.

use std::path::PathBuf;

use clap::Args;
use hyper::Method;

use super::output::Format;
use crate::api::{Detached, Envelope};
use crate::client::{self, Client};
use crate::{config, kernel};

const HELP: &str = "\
Requests reach the application unchecked from then on; connections that went on behind a refused request are reset. A \
daemon that runs detaches and stops; without one the pins are removed directly, which needs root. The store with the \
keys and limits stays; the counts, which live in the pinned maps, are gone. Stopping the daemon does not end \
enforcement: this does.";

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Arguments {
    /// Directory of the pins, for when no daemon runs
    #[arg(long, env = "ENFORCER_BPFFS_DIR", value_name = "DIR", default_value = config::DEFAULT_BPFFS_DIR,
          hide_env_values = true)]
    bpffs_dir: PathBuf,
    #[command(flatten)]
    format: Format,
}

impl Arguments {
    pub(super) async fn execute(self, client: &Client) -> anyhow::Result<()> {
        let Self { bpffs_dir, format } = self;
        let (detached, by_daemon) = match client.act::<Detached>(Method::POST, "/v1/detach").await {
            Ok(detached) => (detached, true),
            Err(client::Error::Unreachable { .. }) => {
                (Envelope::new(Detached { interfaces: kernel::detach(&kernel::reach(&bpffs_dir))? }), false)
            }
            Err(error) => return Err(error.into()),
        };
        format.show(&detached, |detached| {
            let interfaces = detached.body.interfaces.join(", ");
            match (detached.body.interfaces.is_empty(), by_daemon) {
                (false, true) => format!("enforcement on {interfaces} has ended, and the daemon stops\n"),
                (false, false) => format!("enforcement on {interfaces} has ended; no daemon was running\n"),
                (true, true) => "nothing was attached; the daemon stops\n".to_owned(),
                (true, false) => format!("nothing is attached: no pins in {}, and no daemon\n", bpffs_dir.display()),
            }
        })
    }
}
