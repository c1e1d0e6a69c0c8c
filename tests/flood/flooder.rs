//! Flooding connections: each sends a request as soon as the last one has ended, whatever its end.
//!
//! One thread serves all of them by epoll. A connection that is reset, refused or closed is replaced at once. Connections
//! that are to be kept begin with a request that is served, as those of a client's pool do; those that replace them do not,
//! or a server that ends what it refuses would be flooded with good requests, too.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags},
};

use crate::{
    connection::{Connection, Ending, Progress},
    kind::{Flood, Request, Reuse},
};

/// How long the connections may take for their first requests, which are served.
pub(crate) const BEGINNING: Duration = Duration::from_secs(10);
/// Between two looks for connections that have waited too long, or could not be opened. Each gives up at a time of its own: were
/// all looked at seldom, all would be replaced at once, in bursts that are the flooder's and not the flood's.
const ROUND: Duration = Duration::from_millis(1);

/// How many requests ended how, for other threads to read at any time.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    endings: [AtomicU64; Ending::ALL.len()],
    /// Connections that have begun to flood.
    begun: AtomicU64,
}

/// A reading of a [`Tally`], at the place of each [`Ending`]'s number.
pub(crate) type Counts = [u64; Ending::ALL.len()];

impl Tally {
    fn add(&self, ending: Ending) {
        self.endings[ending as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How many of the connections have begun to flood.
    pub(crate) fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// What it stands at.
    pub(crate) fn read(&self) -> Counts {
        self.endings.each_ref().map(|count| count.load(Ordering::Relaxed))
    }
}

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// To be established.
    Connecting,
    /// The answer to a first request that is served.
    Beginning,
    /// An answer.
    Asking,
    /// The server's end, after the answer.
    Leaving,
}

/// A place for a connection.
struct Slot {
    connection: Option<Connection>,
    state: State,
    /// Since when it is in this state.
    since: Instant,
    /// Whether it has flooded already, or another in its place.
    has_begun: bool,
}

/// Floods `server` from the calling thread's network namespace until `ending`. A connection waits for `patience` for an
/// answer before it is replaced.
///
/// # Errors
/// The system has no room for as many connections.
pub(crate) fn flood(
    server: SocketAddrV4,
    flood: &Flood,
    patience: Duration,
    tally: &Tally,
    ending: &AtomicBool,
) -> Result<()> {
    let mut flooder = Flooder {
        source: flood.source(),
        server,
        keep: flood.reuse == Reuse::Kept,
        patience,
        first: Request::first(),
        request: Request::of(flood),
        sent: 0,
        tally,
        epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
        slots: Vec::new(),
    };
    for index in 0..flood.connections as usize {
        let (state, since) = (State::Connecting, Instant::now());
        flooder.slots.push(Slot { connection: None, state, since, has_begun: false });
        flooder.replace(index)?;
    }
    flooder.run(ending)
}

struct Flooder<'a> {
    source: Ipv4Addr,
    server: SocketAddrV4,
    keep: bool,
    patience: Duration,
    first: Request,
    request: Request,
    sent: u64,
    tally: &'a Tally,
    epoll: Epoll,
    slots: Vec<Slot>,
}

impl Flooder<'_> {
    fn run(&mut self, ending: &AtomicBool) -> Result<()> {
        let mut events = vec![EpollEvent::empty(); 256];
        let mut looked = Instant::now();
        while !ending.load(Ordering::Relaxed) {
            let ready = match self.epoll.wait(&mut events, ROUND.as_millis() as u16) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error).context("waiting for connections"),
            };
            for event in &events[..ready] {
                self.go_on(event.data() as usize, event.events())?;
            }
            if looked.elapsed() >= ROUND {
                looked = Instant::now();
                self.give_up()?;
            }
        }
        Ok(())
    }

    /// Does what can be done on the connection at `index`, of which `ready` has come.
    fn go_on(&mut self, index: usize, ready: EpollFlags) -> Result<()> {
        let Slot { connection, state, has_begun, .. } = &mut self.slots[index];
        let Some(connection) = connection else { return Ok(()) };
        if *state == State::Connecting {
            if !ready.contains(EpollFlags::EPOLLOUT) && !ready.contains(EpollFlags::EPOLLERR) {
                return Ok(());
            }
            let begins = self.keep && !*has_begun;
            let sent = if begins { connection.send(self.first.numbered(0)) } else { self.ask(index) };
            if let Progress::Ended(ending) = sent {
                if !begins {
                    self.tally.add(ending);
                }
                return self.replace(index);
            }
            let slot = &mut self.slots[index];
            (slot.state, slot.since) = (if begins { State::Beginning } else { State::Asking }, Instant::now());
        }
        // Each arrival is told once, so all that is there is read.
        loop {
            let Slot { connection, state, since, .. } = &mut self.slots[index];
            let Some(connection) = connection else { return Ok(()) };
            match connection.read() {
                Progress::Waiting => return Ok(()),
                Progress::Ended(ending) => {
                    if *state == State::Asking {
                        self.tally.add(ending);
                    }
                    return self.replace(index);
                }
                Progress::Answered(ending) => {
                    match *state {
                        State::Beginning if ending != Ending::Served => return self.replace(index),
                        State::Beginning => *state = State::Asking,
                        _ => self.tally.add(ending),
                    }
                    *since = Instant::now();
                    if !self.keep {
                        *state = State::Leaving;
                        continue;
                    }
                    if let Progress::Ended(_) = self.ask(index) {
                        // It was closed after the answer; nobody has refused this request.
                        return self.replace(index);
                    }
                }
            }
        }
    }

    /// Sends a request of the flood on the connection at `index`.
    fn ask(&mut self, index: usize) -> Progress {
        let Slot { connection: Some(connection), has_begun, .. } = &mut self.slots[index] else {
            return Progress::Waiting;
        };
        if !*has_begun {
            *has_begun = true;
            self.tally.begun.fetch_add(1, Ordering::Relaxed);
        }
        self.sent += 1;
        connection.send(self.request.numbered(self.sent))
    }

    /// Replaces connections that have waited too long.
    fn give_up(&mut self) -> Result<()> {
        let now = Instant::now();
        for index in 0..self.slots.len() {
            let Slot { connection, state, since, .. } = &mut self.slots[index];
            // The first answers of all connections come one after the other.
            let patience = if *state == State::Beginning { BEGINNING } else { self.patience };
            if now.saturating_duration_since(*since) < patience && connection.is_some() {
                continue;
            }
            if connection.is_some() && !matches!(*state, State::Leaving | State::Beginning) {
                self.tally.add(Ending::Silent);
            }
            self.replace(index)?;
        }
        Ok(())
    }

    /// Opens another connection in place of the one at `index`. One that cannot be opened counts as refused, and is
    /// tried again later.
    fn replace(&mut self, index: usize) -> Result<()> {
        let slot = &mut self.slots[index];
        // The old one ends first, so that there are never more.
        slot.connection = None;
        (slot.state, slot.since) = (State::Connecting, Instant::now());
        let Ok(connection) = Connection::open(self.source, self.server) else {
            self.tally.add(Ending::Reset);
            return Ok(());
        };
        let ready = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        self.epoll.add(connection.stream(), EpollEvent::new(ready, index as u64)).context("watching a connection")?;
        slot.connection = Some(connection);
        Ok(())
    }
}
