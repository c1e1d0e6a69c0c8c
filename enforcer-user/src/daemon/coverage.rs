//! What the daemon says once at its start: which ways to the application it does not guard.
//!
//! It starts all the same; `enforcer doctor` says the same again at any time, and more.

use crate::config::Settings;
use crate::doctor::{self, Level, Scope};
use crate::kernel::Options;

/// Examines in the background what is attached, and logs what an operator must know.
pub(super) fn warn(settings: &Settings, options: &Options) {
    let scope = Scope {
        interfaces: options.interfaces.clone(),
        ports: settings.ports(),
        namespaces: Vec::new(),
        bpffs_dir: settings.bpffs_dir.clone(),
        pins: options.bpffs_dir.clone(),
    };
    tokio::task::spawn_blocking(move || {
        for finding in doctor::examine(&scope).findings {
            match finding.level {
                Level::Bypass => tracing::warn!("a way around the guard: {finding}"),
                Level::Error | Level::Warning => tracing::warn!("{finding}"),
                Level::Note | Level::Ok => tracing::debug!("{finding}"),
            }
        }
    });
}
