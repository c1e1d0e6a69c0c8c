//! The well-behaved client: a keyed request at a fixed rate, whether or not the earlier ones have been answered.
//!
//! A request's latency runs from the moment when it was due, connection included, so that a server that stalls does
//! not slow the clock that it is measured by. Each has a connection of its own.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags},
        time::TimeSpec,
    },
};

use crate::{
    connection::{Connection, Ending, Progress},
    kind::Request,
};

/// Requests a second.
pub(crate) const RATE: u32 = 50;
/// How long the client waits for an answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// How the client fared.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    /// Requests that were answered with 2xx in time.
    pub(crate) served: u64,
    /// Of every request, in rising order; of one that was not served, [`PATIENCE`].
    pub(crate) latencies: Vec<Duration>,
}

/// A request under way.
struct Exchange {
    connection: Option<Connection>,
    due: Instant,
    is_sent: bool,
}

/// Sends for `time`, from the calling thread's network namespace, and waits for the last answers.
///
/// # Errors
/// The system has no room for its connections.
pub(crate) fn ask(server: SocketAddrV4, source: Ipv4Addr, time: Duration) -> Result<Service> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let mut request = Request::good();
    let (begin, wanted) = (Instant::now(), (time.as_secs_f64() * f64::from(RATE)) as usize);
    let mut exchanges: Vec<Exchange> = Vec::with_capacity(wanted);
    let mut latencies = Vec::with_capacity(wanted);
    let mut events = vec![EpollEvent::empty(); 64];
    loop {
        let now = Instant::now();
        let due = begin + Duration::from_secs(1) * exchanges.len() as u32 / RATE;
        if exchanges.len() < wanted && due <= now {
            let connection = Connection::open(source, server).ok();
            if let Some(connection) = &connection {
                let ready = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
                epoll.add(connection.stream(), EpollEvent::new(ready, exchanges.len() as u64))?;
            }
            exchanges.push(Exchange { connection, due, is_sent: false });
            continue;
        }
        let last = begin + time + PATIENCE;
        let is_open = exchanges.iter().any(|exchange| exchange.connection.is_some());
        if exchanges.len() == wanted && (!is_open || now >= last) {
            break;
        }
        let until = if exchanges.len() < wanted { due } else { last };
        // To the microsecond, which epoll's own time is not.
        let wait = TimeSpec::from_duration(until.saturating_duration_since(now));
        match ppoll(&mut [PollFd::new(epoll.0.as_fd(), PollFlags::POLLIN)], Some(wait), None) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error).context("waiting for answers"),
        }
        let ready = epoll.wait(&mut events, 0_u8)?;
        for event in &events[..ready] {
            if let Some(ending) = exchanges[event.data() as usize].go_on(&mut request, event.events()) {
                let latency = exchanges[event.data() as usize].due.elapsed();
                if ending == Ending::Served && latency < PATIENCE {
                    latencies.push(latency);
                }
            }
        }
    }
    let served = latencies.len() as u64;
    latencies.resize(wanted, PATIENCE);
    latencies.sort_unstable();
    Ok(Service { served, latencies })
}

impl Exchange {
    /// Does what can be done, and says how it ended, once it has.
    fn go_on(&mut self, request: &mut Request, ready: EpollFlags) -> Option<Ending> {
        let connection = self.connection.as_mut()?;
        let mut progress = Progress::Waiting;
        if !self.is_sent {
            if !ready.contains(EpollFlags::EPOLLOUT) && !ready.contains(EpollFlags::EPOLLERR) {
                return None;
            }
            self.is_sent = true;
            progress = connection.send(request.numbered(0));
        }
        if progress == Progress::Waiting {
            progress = connection.read();
        }
        let (Progress::Answered(ending) | Progress::Ended(ending)) = progress else { return None };
        self.connection = None;
        Some(ending)
    }
}

impl Service {
    /// The share of its requests that were served, in percent.
    pub(crate) fn success(&self) -> f64 {
        self.served as f64 * 100.0 / self.latencies.len().max(1) as f64
    }

    /// The latency, in ms, that this share of its requests did not exceed.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let rank = (self.latencies.len() as f64 * share).ceil() as usize;
        let latency = self.latencies.get(rank.saturating_sub(1)).copied().unwrap_or(PATIENCE);
        latency.as_secs_f64() * 1000.0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{PATIENCE, Service};

    #[test]
    fn a_quantile_counts_requests_that_were_not_served() {
        let mut latencies: Vec<Duration> = (1..=98).map(Duration::from_millis).collect();
        latencies.extend([PATIENCE; 2]);
        let service = Service { served: 98, latencies };
        assert_eq!([0.5, 0.98, 0.99].map(|share| service.quantile(share)), [50.0, 98.0, 2000.0]);
        assert!((service.success() - 98.0).abs() < 1e-9);
    }
}
