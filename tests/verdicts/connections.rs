//! Connections of real sockets that are counted, by the loaded programs, which the kernel tells of them, and by the library
//! beside them.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use enforcer_ebpf::abi::{Ruleset, Service};
use enforcer_ebpf::connection::{STALE_NS, Who};
use enforcer_ebpf::flow::{self, receiver};
use enforcer_ebpf::source::Source;
use enforcer_ebpf::verdict::{Count, Event, Reason};
use enforcer_tests::bucket::sliding;
use enforcer_tests::client::get;
use enforcer_tests::corpus::KEY;
use enforcer_tests::kernel::{Loaded, Program};
use enforcer_tests::netns::Namespace;
use enforcer_tests::packet::Frame;
use enforcer_tests::peer::{Listener, Peer};
use enforcer_tests::reader::SECRET;
use enforcer_tests::tables::Tables;
use enforcer_tests::world::{Fate, Host, tuple};

use super::HOUR;

const PORT: u16 = 8000;
const SETS: u32 = 16;
/// Keys of principals 2 and 3; that of 3 has one request.
const OTHER: &str = "other_key_2";
const FEW: &str = "key_of_a_single_request";

fn tables(of_source: u32, of_principal: u32) -> Tables {
    let rules =
        Ruleset { connections_of_source: of_source, connections_of_principal: of_principal, ..Ruleset::default() };
    Tables::new()
        .with_key(KEY, 1, 0)
        .with_key(OTHER, 2, 0)
        .with_key(FEW, 3, 0)
        .with_limits(1, &[sliding(1000, HOUR)])
        .with_limits(2, &[sliding(1000, HOUR)])
        .with_limits(3, &[sliding(1, HOUR)])
        .with_rules(rules)
}

/// The programs and the library, told of the same connections.
struct Both {
    kernel: Loaded,
    host: Host,
}

/// One of them: its peer, and the client's next byte.
struct Connection {
    peer: Peer,
    server: SocketAddr,
    next: u32,
}

impl Both {
    fn new(tables: &Tables) -> Result<Self> {
        let kernel = Loaded::following(Program::Xdp, tables, SETS)?;
        Ok(Self { kernel, host: Host::with_sets(tables, SETS) })
    }

    /// Connects to a listener; one that defers has a request in the place of a socket.
    fn connect(&self, listener: &Listener, state: u32) -> Result<Connection> {
        let peer = listener.connect()?;
        let (client, server) = (peer.address(), listener.address());
        let (first, seen) = (peer.first(), peer.acknowledges());
        let socket = flow::Receiver { state, next: first, base: first, server: seen, written: seen };
        self.host.tell(tuple(client, server), socket);
        if state == receiver::STREAM {
            self.host.established(&tuple(client, server));
        }
        Ok(Connection { next: first, peer, server })
    }

    /// Whether a request with a key passes on it.
    fn ask(&self, connection: &mut Connection, key: &str) -> Result<bool> {
        let request = get("/", Some(key));
        let (client, server) = (connection.peer.address(), connection.server);
        let frame =
            Frame::data(client, server, connection.next, &request).acking(connection.peer.acknowledges()).build();
        let (kernel, host) = (self.kernel.judge(&frame)?, self.host.judge(&frame));
        ensure!(kernel == host, "the kernel {kernel:02x?}, the host {host:02x?}");
        let passes = host == Fate::Passed(frame);
        if passes {
            connection.next = connection.next.wrapping_add(request.len() as u32);
        }
        self.alike()?;
        Ok(passes)
    }

    /// One more connection, if a request with this key passes on it.
    fn open(&self, listener: &Listener, key: &str) -> Result<Option<Connection>> {
        let mut connection = self.connect(listener, receiver::STREAM)?;
        if self.ask(&mut connection, key)? {
            return Ok(Some(connection));
        }
        self.end(connection, |peer| peer.reset())?;
        Ok(None)
    }

    /// Lets a connection end in some way.
    fn end(&self, mut connection: Connection, way: impl FnOnce(&mut Peer) -> Result<()>) -> Result<()> {
        way(&mut connection.peer)?;
        let ends = tuple(connection.peer.address(), connection.server);
        drop(connection);
        self.host.over(&ends);
        self.alike()
    }

    /// Holds the counts of both against each other.
    fn alike(&self) -> Result<()> {
        let (kernel, host) = (self.kernel.subjects()?, self.host.subjects());
        ensure!(kernel == host, "the kernel counts {kernel:x?}, the host {host:x?}");
        ensure!(self.kernel.totals()? == self.host.totals(), "events or refusals are counted otherwise");
        Ok(())
    }

    fn count(&self, who: Who) -> u64 {
        self.host.subjects().get(&who.hash(SECRET)).copied().unwrap_or(0)
    }
}

fn source(address: SocketAddr) -> Who {
    Who::Source(Source::of(&tuple(address, address), &Service::DEFAULT))
}

#[test]
fn each_source_and_each_principal_has_as_many_as_it_may() -> Result<()> {
    Namespace::new()?.run(|| {
        let v4 = Listener::new((Ipv4Addr::LOCALHOST, PORT).into(), false)?;
        let v6 = Listener::new((Ipv6Addr::LOCALHOST, PORT).into(), false)?;
        let both = Both::new(&tables(3, 4))?;
        let mut held = Vec::new();
        for listener in [&v4, &v4, &v4, &v6] {
            held.extend(both.open(listener, KEY)?);
        }
        ensure!(held.len() == 4, "{} of four", held.len());
        ensure!(both.open(&v4, OTHER)?.is_none(), "a fourth of a source");
        ensure!(both.open(&v6, KEY)?.is_none(), "a fifth of a principal");
        let (first, second) = (Who::Principal(1, 0), Who::Principal(2, 0));
        ensure!((both.count(source(v4.address())), both.count(source(v6.address()))) == (3, 1), "of the sources");
        // Another principal's request takes the connection with it, and one that is refused leaves it.
        ensure!(both.ask(&mut held[0], OTHER)? && (both.count(first), both.count(second)) == (3, 1), "moved");
        let other = both.open(&v6, KEY)?;
        ensure!(other.is_some() && both.count(first) == 4, "in its place");
        held.extend(other);
        ensure!(!both.ask(&mut held[0], KEY)?, "and back, where there is no place");
        ensure!((both.count(first), both.count(second)) == (4, 1), "a refused move");
        ensure!(both.host.totals()[Count::Refused(Reason::Connections).index() as usize] == 3, "refusals");
        let before = both.host.subjects();
        held[1].peer.finish()?;
        both.alike()?;
        ensure!(both.host.subjects() == before, "half closed it counts still");
        for (connection, way) in
            held.into_iter().zip([Peer::reset, |_: &mut Peer| Ok(()), Peer::close_server].into_iter().cycle())
        {
            both.end(connection, way)?;
        }
        ensure!(both.host.subjects().is_empty(), "left: {:x?}", both.host.subjects());
        Ok(())
    })
}

#[test]
fn a_request_that_is_refused_for_its_limit_takes_no_place() -> Result<()> {
    Namespace::new()?.run(|| {
        let listener = Listener::new((Ipv4Addr::LOCALHOST, PORT).into(), false)?;
        let both = Both::new(&tables(2, 2))?;
        let first = both.open(&listener, FEW)?;
        ensure!(first.is_some() && both.open(&listener, FEW)?.is_none(), "its limit");
        ensure!(both.count(source(listener.address())) == 1 && both.count(Who::Principal(3, 0)) == 1, "counted");
        let mut second = both.open(&listener, KEY)?;
        let Some(kept) = &mut second else { anyhow::bail!("no place was left") };
        ensure!(!both.ask(kept, FEW)? && both.count(Who::Principal(1, 0)) == 1, "a move that is refused for a limit");
        Ok(())
    })
}

#[test]
fn a_connection_that_never_comes_to_be_is_given_up() -> Result<()> {
    Namespace::new()?.run(|| {
        // Until their first byte arrives, which here it does not, its connections are requests.
        let listener = Listener::new((Ipv4Addr::LOCALHOST, PORT).into(), true)?;
        let both = Both::new(&tables(1, 0))?;
        let mut connection = both.connect(&listener, receiver::REQUEST)?;
        ensure!(both.ask(&mut connection, KEY)?, "the first");
        let mut next = both.connect(&listener, receiver::REQUEST)?;
        ensure!(!both.ask(&mut next, KEY)?, "a second of one");
        both.kernel.sweep()?;
        both.host.sweep();
        both.alike()?;
        ensure!(both.count(source(listener.address())) == 1, "given up too soon");
        std::thread::sleep(Duration::from_nanos(STALE_NS) + Duration::from_millis(100));
        both.host.wait(STALE_NS);
        both.kernel.sweep()?;
        both.host.sweep();
        both.alike()?;
        ensure!(both.host.subjects().is_empty(), "it counts for ever");
        Ok(())
    })
}

#[test]
fn connections_that_are_older_count_from_their_next_request_to_their_end() -> Result<()> {
    Namespace::new()?.run(|| {
        let listener = Listener::new((Ipv4Addr::LOCALHOST, PORT).into(), false)?;
        let older = listener.connect()?;
        let mut both = Both::new(&tables(1, 0))?;
        both.kernel.tell_of_older()?;
        both.kernel.tell_of_older()?;
        let (first, seen) = (older.first(), older.acknowledges());
        let socket = flow::Receiver { state: receiver::STREAM, next: first, base: first, server: seen, written: seen };
        let ends = tuple(older.address(), listener.address());
        both.host.tell(ends, socket);
        both.host.established(&ends);
        let mut older = Connection { peer: older, server: listener.address(), next: first };
        ensure!(both.ask(&mut older, KEY)? && both.ask(&mut older, KEY)?, "one that is older");
        // Established, it stays for as long as it likes.
        both.host.wait(2 * STALE_NS);
        both.host.sweep();
        both.alike()?;
        ensure!(both.open(&listener, KEY)?.is_none(), "a second of one");
        both.end(older, |peer| peer.finish())?;
        ensure!(both.open(&listener, KEY)?.is_some(), "behind its end");
        Ok(())
    })
}

#[test]
fn connections_of_other_namespaces_and_ports_are_none() -> Result<()> {
    let elsewhere = Namespace::new()?;
    Namespace::new()?.run(|| {
        let both = Both::new(&tables(1, 0))?;
        let foreign = elsewhere.run(|| {
            let listener = Listener::new((Ipv4Addr::LOCALHOST, PORT).into(), false)?;
            listener.connect()
        })?;
        let other = Listener::new((Ipv4Addr::LOCALHOST, PORT + 1).into(), false)?.connect()?;
        ensure!(both.kernel.connections()? == 0, "{} are followed", both.kernel.connections()?);
        drop((foreign, other));
        let listener = Listener::new((Ipv4Addr::LOCALHOST, PORT).into(), false)?;
        let own = both.open(&listener, KEY)?;
        ensure!(own.is_some() && both.kernel.connections()? == 1, "{} are followed", both.kernel.connections()?);
        ensure!(both.host.totals()[Count::Event(Event::ConnectionsFull).index() as usize] == 0, "no room");
        Ok(())
    })
}
