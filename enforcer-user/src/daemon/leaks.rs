//! Says in the log that clients put keys into URLs, which proxies, browsers and access logs keep.

use std::sync::Arc;
use std::time::{Duration, Instant};

use enforcer_ebpf::verdict::{Count, Event};
use tokio::sync::watch;

use super::{Daemon, registry};

/// How often it is looked whether there are more of them.
const INTERVAL: Duration = Duration::from_secs(5);
/// For so long it is not said again.
const QUIET: Duration = Duration::from_secs(600);

/// Warns of requests with a key in the URL until the daemon stops.
pub(super) async fn watch(daemon: Arc<Daemon>, mut stopped: watch::Receiver<bool>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    let mut known: Option<u64> = None;
    let mut said: Option<Instant> = None;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = stopped.wait_for(|stop| *stop) => return,
        }
        let place = Count::Event(Event::KeyInUrl).index() as usize;
        let look = move |registry: &mut registry::Registry| {
            let tables = &registry.tables;
            let counts = tables.seats().values().map(|seat| Ok(tables.kernel().totals(seat.slot)?[place]));
            counts.sum::<Result<u64, registry::Error>>()
        };
        let count = match daemon.with(look).await {
            Ok(count) => count,
            Err(registry::Error::Stopping) => return,
            Err(error) => {
                tracing::warn!("whether keys are in URLs cannot be told: {error}");
                continue;
            }
        };
        let before = *known.get_or_insert(count);
        if count > before && said.is_none_or(|time| time.elapsed() >= QUIET) {
            tracing::warn!(
                "{} requests had a query parameter that is named like a key: URLs end in the logs of proxies and \
                 browsers, so let clients send keys in a header alone, and rotate those that were sent so \
                 (enforcer_key_in_url_total tells whose they were)",
                count - before
            );
            (known, said) = (Some(count), Some(Instant::now()));
        }
    }
}
