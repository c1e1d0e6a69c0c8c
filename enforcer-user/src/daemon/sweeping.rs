//! Takes out of the kernel's tables what is of no use any more, every few seconds: connections that were entered and never
//! came to be, and what was used of limits that are long gone.
//!
//! While no daemon runs such connections stay, and count, until others need their places or a daemon is there again.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::{Daemon, registry};
use crate::kernel;

/// How often. A connection is taken out no sooner than [`enforcer_ebpf::connection::STALE_NS`].
const INTERVAL: Duration = Duration::from_secs(2);

/// Sweeps, connections only where they are bounded, until the daemon stops.
pub(super) async fn watch(daemon: Arc<Daemon>, mut stopped: watch::Receiver<bool>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = stopped.wait_for(|stop| *stop) => return,
        }
        let sweep = |registry: &mut registry::Registry| {
            let tables = &mut registry.tables;
            let kernel = tables.kernel();
            let bounds = |rules| Ok::<_, registry::Error>(rules != 0 && kernel.ruleset(rules)?.counts_connections());
            let mut is_bounded = false;
            for seat in tables.seats().values() {
                let service = kernel.service(seat.slot)?;
                is_bounded |= bounds(service.rules)? || bounds(service.rules_trial)?;
            }
            if is_bounded {
                tables.kernel_mut().sweep()?;
            }
            Ok(())
        };
        match daemon.with(sweep).await {
            Ok(()) => {}
            Err(registry::Error::Stopping) => return,
            Err(error) => tracing::warn!("connections that never came to be go on counting: {error}"),
        }
        match daemon.with(|registry| Ok(registry.tables.sweep_buckets(kernel::now())?)).await {
            Ok(()) => {}
            Err(registry::Error::Stopping) => return,
            Err(error) => tracing::warn!("what was used of limits that are gone goes on taking place: {error}"),
        }
    }
}
