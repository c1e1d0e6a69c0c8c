//! Ends, once a second, connections to guarded ports that keep a worker waiting for a request that does not come.
//!
//! The kernel's program judges what arrives; a client that sends nothing, or stops within a head, gives it nothing to
//! judge, and a worker that has accepted the connection waits for it. Both ends are told: the client gets a RST, the
//! worker's call fails. The decision is [`overdue()`]'s; right before the end of a connection it is looked at again.

mod existing;
mod overdue;
pub(crate) mod tally;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use crate::config::{Guarded, Mode};
use crate::kernel::{self, Connections, Followed};
use crate::sockets::{self, Connection, Error};
pub(super) use existing::end_existing;
use overdue::{Bounds, Heads, Overdue, Wait, forwarded, heads, overdue};
use tally::{Cause, Tally};

/// Time from one round to the next.
const ROUND: Duration = Duration::from_secs(1);

/// The task.
pub(super) struct Reaper {
    followed: Connections,
    ports: Vec<u16>,
    bounds: Bounds,
    /// Whether connections are ended, or counted only.
    ends: bool,
    tally: Arc<Tally>,
    /// What was counted without being ended, as long as it is there.
    counted: HashSet<Counted>,
    /// The last round's failure, which is told once.
    trouble: Option<String>,
}

/// What is to be counted once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Counted {
    /// A connection by its cookie.
    Here(u64, Cause),
    /// A head by its connection's ends and the time when it began.
    Elsewhere(SocketAddr, SocketAddr, u64),
}

impl Reaper {
    /// A task for the ports and bounds of a service.
    pub(super) fn new(service: &Guarded, followed: Connections, tally: Arc<Tally>) -> Self {
        let bounds = Bounds {
            head_timeout: service.head_timeout.duration(),
            max_open_heads: service.max_open_heads.get() as usize,
            max_head: service.service().max_head,
        };
        Self {
            followed,
            ports: service.ports.clone(),
            bounds,
            ends: service.mode == Mode::Enforce,
            tally,
            counted: HashSet::new(),
            trouble: None,
        }
    }

    /// Works until `stopped` says so.
    pub(super) async fn run(self, mut stopped: watch::Receiver<bool>) {
        let mut rounds = interval(ROUND);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reaper = self;
        loop {
            tokio::select! {
                _ = rounds.tick() => {}
                _ = stopped.wait_for(|stop| *stop) => return,
            }
            let stop = stopped.clone();
            let round = tokio::task::spawn_blocking(move || {
                reaper.round(&stop);
                reaper
            });
            match round.await {
                Ok(after) => reaper = after,
                // The runtime ends.
                Err(_) => return,
            }
        }
    }

    fn round(&mut self, stop: &watch::Receiver<bool>) {
        let trouble = self.reap(stop).err().map(|error| error.to_string());
        if trouble != self.trouble
            && let Some(error) = &trouble
        {
            tracing::error!("silent and slow connections are not ended: {error}");
        }
        self.trouble = trouble;
    }

    fn reap(&mut self, stop: &watch::Receiver<bool>) -> Result<(), Error> {
        // The sockets first: bytes that one of them has received were judged before, so its head is in the table.
        let connections = sockets::connections(&self.ports)?;
        let mut followed = self.followed.all();
        followed.retain(|one: &Followed| self.ports.contains(&one.local.port()));
        let now = kernel::now();
        let overdue = overdue(&connections, &heads(&followed), now, self.bounds);
        let mut left = HashSet::new();
        if self.ends {
            let still = if overdue.is_empty() { Heads::new() } else { heads(&self.followed.all()) };
            for one in overdue.iter().take_while(|_| !*stop.borrow()) {
                self.end(one, &still)?;
            }
        } else {
            left.extend(overdue.iter().map(|one| Counted::Here(one.connection.cookie, one.cause)));
        }
        left.extend(
            forwarded(&followed, now, self.bounds).map(|(peer, local, since)| Counted::Elsewhere(peer, local, since)),
        );
        for counted in left.difference(&self.counted) {
            self.tally.would_end(match counted {
                Counted::Here(_, cause) => *cause,
                Counted::Elsewhere(..) => Cause::Forwarded,
            });
        }
        self.counted = left;
        Ok(())
    }

    /// Ends a connection that still waits for what it was seen to wait for.
    fn end(&self, overdue: &Overdue<'_>, heads: &Heads) -> Result<(), Error> {
        let Overdue { connection, cause, wait } = *overdue;
        let waits = match wait {
            Wait::FirstByte => sockets::again(connection)?.is_some_and(|now| now.activity.bytes_received == 0),
            Wait::Head(since) => heads.get(&(connection.peer, connection.local)) == Some(&since),
        };
        if waits && destroy(connection)? {
            self.tally.ended(cause);
            tracing::debug!("ended the connection of {connection}: {}", cause.as_str());
        }
        Ok(())
    }
}

/// Ends a connection; `false` if there is nothing to end any more, or this one cannot be ended.
fn destroy(connection: &Connection) -> Result<bool, Error> {
    match sockets::destroy(connection) {
        // One connection must not keep the others from being ended.
        Err(error @ Error::Destroy { .. }) => {
            tracing::warn!("{error}");
            Ok(false)
        }
        ended => ended,
    }
}
