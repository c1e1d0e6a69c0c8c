//! All servers at once on one link, each with one instance for IPv4 and one for IPv6.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use enforcer_tests::client::get;
use enforcer_tests::netns::{Link, Way};
use enforcer_tests::origin::{Executed, Origin, Server};

use crate::cell::Family;
use crate::exchange::{Ending, Ports, Until, exchange};

/// The app that all of them serve: it takes every method and path.
const APP: &str = "permissive";
/// The first of the ports.
const PORT: u16 = 8000;
/// How long connections have to be gone, and the record unchanged, before the servers are taken to be at rest.
const REST: Duration = Duration::from_millis(300);

/// One server, for one family.
pub(crate) struct Member {
    pub(crate) server: Server,
    pub(crate) family: Family,
    pub(crate) origin: Origin,
    /// The client ports used towards it.
    pub(crate) ports: Ports,
}

/// All servers.
pub(crate) struct Fleet {
    pub(crate) link: Link,
    pub(crate) members: Vec<Member>,
}

impl Fleet {
    /// Lays a veth link and starts all servers.
    ///
    /// # Errors
    /// When one does not come up.
    pub(crate) fn start() -> Result<Self> {
        let link = Link::new(Way::VethNative)?;
        let members = std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for (family, ip) in [(Family::V4, link.v4), (Family::V6, link.v6)] {
                for server in Server::EACH {
                    let address = SocketAddr::new(ip, PORT + u16::try_from(threads.len())?);
                    let namespace = &link.server;
                    threads.push(scope.spawn(move || {
                        let origin = Origin::start(namespace, APP, server, address)?;
                        Ok(Member { server, family, origin, ports: Ports::default() })
                    }));
                }
            }
            threads.into_iter().map(|thread| joined(thread.join())).collect::<Result<Vec<_>>>()
        })?;
        Ok(Self { link, members })
    }

    /// The ports that are to be guarded.
    pub(crate) fn ports(&self) -> Vec<String> {
        self.members.iter().map(|member| member.origin.address.port().to_string()).collect()
    }

    /// The server's instance for a family, and its place among the members.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn member(&self, server: Server, family: Family) -> Result<(usize, &Member)> {
        let wanted = |(_, member): &(usize, &Member)| member.server == server && member.family == family;
        self.members.iter().enumerate().find(wanted).with_context(|| format!("no {server} for {family:?}"))
    }

    /// What each member has executed so far, by the client's port.
    ///
    /// # Errors
    /// When a record cannot be read.
    pub(crate) fn executed(&self) -> Result<Vec<BTreeMap<u16, Vec<Executed>>>> {
        self.members
            .iter()
            .map(|member| {
                let mut by_port = BTreeMap::<u16, Vec<Executed>>::new();
                for request in member.origin.executed()? {
                    by_port.entry(request.port).or_default().push(request);
                }
                Ok(by_port)
            })
            .collect()
    }

    /// The connections that servers hold, as place of the member and client's port; those in a backlog are among them.
    ///
    /// # Errors
    /// When the kernel's list cannot be read.
    pub(crate) fn held(&self) -> Result<Vec<(usize, u16)>> {
        let lists = self.link.server.run(|| {
            let read =
                |list: &str| fs::read_to_string(format!("/proc/thread-self/net/{list}")).context("reading sockets");
            Ok(read("tcp")? + &read("tcp6")?)
        })?;
        let mut held = Vec::new();
        for line in lists.lines() {
            let [_, local, remote, state, ..] = line.split_whitespace().collect::<Vec<_>>()[..] else { continue };
            // Established, or closed by the client only.
            if !matches!(state, "01" | "08") {
                continue;
            }
            let (Some(local), Some(remote)) = (port_of(local), port_of(remote)) else { bail!("no socket: {line:?}") };
            if let Some(place) = self.members.iter().position(|member| member.origin.address.port() == local) {
                held.push((place, remote));
            }
        }
        Ok(held)
    }

    /// Waits until no server holds a connection and no record grows, and gives the connections that are held still
    /// after `patience`.
    ///
    /// # Errors
    /// When the kernel's list or a record cannot be read.
    pub(crate) fn settle(&self, patience: Duration) -> Result<Vec<(usize, u16)>> {
        let begin = Instant::now();
        let mut last = (usize::MAX, Instant::now());
        loop {
            let held = self.held()?;
            let executed =
                self.members.iter().map(|member| Ok(member.origin.executed()?.len())).sum::<Result<usize>>()?;
            if !held.is_empty() || executed != last.0 {
                last = (executed, Instant::now());
            }
            if last.1.elapsed() > REST || begin.elapsed() > patience {
                return Ok(held);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends each server of a family one ordinary request, which has to be served.
    ///
    /// # Errors
    /// When one is not.
    pub(crate) fn probe(&self, family: Family, key: &str) -> Result<()> {
        for member in self.members.iter().filter(|member| member.family == family) {
            let request = get("/probe", Some(key));
            let outcome = self
                .link
                .client()
                .run(|| exchange(member.origin.address, &member.ports, &[&request], Until::Answers(1)))?;
            let ending = outcome.ending;
            ensure!(
                ending == Ending::Answered,
                "{} does not serve an ordinary request afterwards: {ending:?}; it printed {}",
                member.server,
                member.origin.output()
            );
        }
        Ok(())
    }
}

/// The port of an address as the kernel lists it.
fn port_of(address: &str) -> Option<u16> {
    u16::from_str_radix(address.rsplit_once(':')?.1, 16).ok()
}

/// The result of a thread.
///
/// # Errors
/// Its error, or that it panicked.
pub(crate) fn joined<T>(result: std::thread::Result<Result<T>>) -> Result<T> {
    result.unwrap_or_else(|_| bail!("a thread panicked"))
}
