//! Writes down what was counted every few seconds, and puts it back where the maps are new: behind a boot, behind
//! `enforcer detach`, and under a release whose maps have another layout.

use std::fs;
use std::path::Path;
use std::time::Duration;

use enforcer_ebpf::abi::{Bucket, Buckets, Meter, Principal};
use enforcer_ebpf::limit;
use jiff::Timestamp;
use tokio::sync::watch;

use super::rulebook::unix_ns;
use super::tables::Tables;
use crate::kernel::{self, Counted};
use crate::store;
use crate::store::counts::{Counts, Reading, State};

/// How often. So much is lost where the machine loses its power.
const INTERVAL: Duration = Duration::from_secs(5);

/// What was counted, where it is written down.
#[derive(Debug)]
pub(super) struct Keeper {
    counted: Counted,
    counts: Counts,
    /// Whether the last try to write has failed, and somebody was told.
    has_failed: bool,
}

impl Keeper {
    /// Opens the database at `path`, and says what it holds if that `is_wanted`. One that cannot be read is put aside, for
    /// people to look at; `None` if there can be no other in its place, either.
    pub(super) fn open(path: &Path, counted: Counted, is_wanted: bool) -> Option<(Self, Option<State>)> {
        let opened = |counts: Counts| {
            let state = if is_wanted { counts.read()? } else { None };
            Ok::<_, store::Error>((state, counts))
        };
        let (state, counts) = match Counts::open(path).and_then(opened) {
            Ok(found) => found,
            Err(error) => {
                let aside = path.with_extension("unread");
                tracing::error!(
                    "what was counted before cannot be read: {error}; {} is put aside as {}, and limits begin with nothing used",
                    path.display(),
                    aside.display()
                );
                let anew = fs::rename(path, &aside).map_err(|error| error.to_string());
                match anew.and_then(|()| Counts::open(path).map_err(|error| error.to_string())) {
                    Ok(counts) => (None, counts),
                    Err(error) => {
                        tracing::error!("what is counted will not outlive this boot: {error}");
                        return None;
                    }
                }
            }
        };
        Some((Self { counted, counts, has_failed: false }, state))
    }

    /// Writes down what was counted until now.
    fn write(&mut self) {
        let written = self.counted.buckets().map_err(|error| error.to_string()).and_then(|scopes| {
            let meters = self.counted.meters();
            self.counts.write(reading(), meters, scopes.into_iter()).map_err(|error| error.to_string())
        });
        match written {
            Ok(()) => self.has_failed = false,
            Err(error) if !self.has_failed => {
                self.has_failed = true;
                tracing::error!("what was counted cannot be written down, and would be lost with this boot: {error}");
            }
            Err(_) => {}
        }
    }

    /// Writes it down every few seconds, and when the daemon stops.
    pub(super) async fn watch(mut self, mut stopped: watch::Receiver<bool>) {
        let mut ticks = tokio::time::interval(INTERVAL);
        loop {
            let is_over = tokio::select! {
                _ = ticks.tick() => false,
                _ = stopped.wait_for(|stop| *stop) => true,
            };
            let write = move || {
                self.write();
                self
            };
            match tokio::task::spawn_blocking(write).await {
                Ok(keeper) if !is_over => self = keeper,
                _ => return,
            }
        }
    }
}

/// Puts back what was counted in an earlier boot or by earlier maps, of principals and limits that are still there.
pub(super) fn put_back(state: &State, tables: &mut Tables) -> Result<(), kernel::Error> {
    let now = reading();
    // Of a clock that was set back nothing is known but that the counts are no younger than they were.
    let age = now.unix.saturating_sub(state.reading.unix);
    let one = |bucket: Bucket| limit::moved(&bucket, state.reading.boot, now.boot, age);
    let moved =
        |Buckets { limits, candidate }: &Buckets| Buckets { limits: limits.map(one), candidate: candidate.map(one) };
    let kernel = tables.kernel_mut();
    let mut count = 0;
    for (index, meter) in &state.meters {
        if kernel.principal(*index).is_ok_and(|principal| principal != Principal::default()) {
            kernel.set_meter(*index, &Meter { buckets: moved(&meter.buckets), ..*meter })?;
            count += 1;
        }
    }
    for (scope, buckets) in &state.scopes {
        kernel.set_buckets(*scope, &moved(buckets))?;
    }
    tracing::info!(
        "put back what was counted up to {} s ago for {count} principals and {} limits of others",
        age / 1_000_000_000,
        state.scopes.len()
    );
    Ok(())
}

fn reading() -> Reading {
    Reading { boot: kernel::now(), unix: unix_ns(Timestamp::now()) }
}
