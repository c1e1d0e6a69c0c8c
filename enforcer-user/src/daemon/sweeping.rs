//! Takes connections out of the kernel's table that were entered and never came to be, every few seconds.
//!
//! While no daemon runs they stay, and count, until others need their places or a daemon is there again.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::{Daemon, registry};

/// How often. A connection is taken out no sooner than [`enforcer_ebpf::connection::STALE_NS`].
const INTERVAL: Duration = Duration::from_secs(2);

/// Sweeps where connections are bounded, until the daemon stops.
pub(super) async fn watch(daemon: Arc<Daemon>, mut stopped: watch::Receiver<bool>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = stopped.wait_for(|stop| *stop) => return,
        }
        let sweep = |registry: &mut registry::Registry| {
            let kernel = registry.tables.kernel_mut();
            let service = kernel.service(0)?;
            let bounds = |slot| Ok::<_, registry::Error>(slot != 0 && kernel.ruleset(slot)?.counts_connections());
            if bounds(service.rules)? || bounds(service.rules_trial)? {
                kernel.sweep()?;
            }
            Ok(())
        };
        match daemon.with(sweep).await {
            Ok(()) => {}
            Err(registry::Error::Stopping) => return,
            Err(error) => tracing::warn!("connections that never came to be go on counting: {error}"),
        }
    }
}
