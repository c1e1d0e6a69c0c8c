//! The model is the kernel: random sequences of packets through the loaded program and through the host library, which
//! must agree after every packet about its fate and bytes, about all counts, and about every followed connection.
//!
//! Some connections are forwarded, of others the host has real sockets: those accept what the script says that the
//! stack accepts, by real bytes that their real peers send.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use enforcer_ebpf::abi::Service;
use enforcer_ebpf::flow::{self, due, receiver};
use enforcer_ebpf::verdict::{Action, Count, Event, Reason};
use enforcer_tests::bucket::{penalizing, sliding};
use enforcer_tests::client::get;
use enforcer_tests::corpus::{self, KEY};
use enforcer_tests::kernel::{Loaded, Program};
use enforcer_tests::netns::Namespace;
use enforcer_tests::packet::flag;
use enforcer_tests::peer::{Listener, Peer};
use enforcer_tests::random::Random;
use enforcer_tests::receiver::Receiver;
use enforcer_tests::script::{self, Bytes, CONNECTIONS, Client, Manner, Script};
use enforcer_tests::script_mutation;
use enforcer_tests::tables::Tables;
use enforcer_tests::world::{Fate, Host, tuple};

use super::HOUR;

const PRINCIPALS: u32 = 3;
/// Port of the service whose refused clients are answered.
const ANSWERED: u16 = 8002;
/// Port of the service whose listener defers.
const DEFERRING: u16 = 8001;
/// Sequences that each test plays on a table of one size.
const SEQUENCES: usize = 300;
/// What must happen in them, so that they are worth something.
const MET: &[Count] = &[
    Count::Event(Event::Allowed),
    Count::Event(Event::OutOfOrder),
    Count::Event(Event::OldData),
    Count::Event(Event::Retransmitted),
    Count::Event(Event::AfterRefusal),
    Count::Event(Event::Cut),
    Count::Event(Event::Reset),
    Count::Event(Event::Dropped),
    Count::Refused(Reason::Unkeyed),
    Count::Refused(Reason::UnknownKey),
    Count::Refused(Reason::OverLimit),
    Count::Refused(Reason::Malformed),
    Count::Refused(Reason::Upgrade),
    Count::Refused(Reason::FinInHead),
    Count::Refused(Reason::Unorderly),
    Count::Refused(Reason::Conflict),
];

fn tables() -> Tables {
    let plenty = [sliding(1_000_000, HOUR)];
    let mut tables = Tables::new()
        .with_key(KEY, 1, 0)
        .with_key("other_key_1", 1, 0)
        .with_key("other_key_2", 2, 0)
        .with_key("key_of_a_few_requests", 3, 0)
        .with_limits(1, &plenty)
        .with_limits(2, &plenty)
        .with_limits(3, &[penalizing(sliding(3, HOUR))]);
    let service = tables.services[&8000];
    tables.services.insert(8001, service);
    let answers = Service { flags: Service::ANSWER, actions: [Action::Answer as u8; 32], ..service };
    tables.services.insert(ANSWERED, answers);
    tables
}

/// The loaded program and the host library.
struct Pair {
    kernel: Loaded,
    host: Host,
    sets: u32,
    /// ns since the boot at which the kernel last judged a connection.
    clock: Cell<u64>,
    /// What was due to clients, of [`flow::due`].
    dues: RefCell<BTreeSet<u32>>,
}

impl Pair {
    fn new(sets: u32) -> Result<Self> {
        let tables = tables();
        let (kernel, host) = (Loaded::with_sockets(Program::Xdp, &tables, sets)?, Host::with_sets(&tables, sets));
        Ok(Self { kernel, host, sets, clock: Cell::default(), dues: RefCell::default() })
    }

    /// Fails if something of this has never happened.
    fn has_met(&self, all: &[Count]) -> Result<()> {
        let totals = self.host.totals();
        let missed: Vec<_> = all.iter().filter(|count| totals[count.index() as usize] == 0).collect();
        ensure!(missed.is_empty(), "it never happened: {missed:?}");
        let dues = self.dues.borrow();
        ensure!([due::ANSWER, due::RESET].iter().all(|due| dues.contains(due)), "only {dues:?} were due");
        Ok(())
    }

    /// Shows both a frame that leaves for a client.
    fn watch(&self, frame: &[u8]) -> Result<()> {
        self.host.watch(frame);
        self.kernel.watch(frame)
    }

    /// Hands both the frame, and holds all that they keep against each other.
    fn judge(&self, frame: &[u8]) -> Result<Fate> {
        let kernel = self.kernel.judge(frame)?;
        // What a client was told is taken for lost after a while: so the host judges at the kernel's very instant.
        let flows = self.kernel.flows(self.sets)?;
        self.clock.set(flows.values().map(|flow| flow.touched).fold(self.clock.get(), u64::max));
        self.host.set_clock(self.clock.get());
        let host = self.host.judge(frame);
        ensure!(kernel == host, "the kernel {kernel:02x?}, the host {host:02x?}");
        let (kernel, model) = (self.kernel.totals_by_service()?, self.host.totals_by_service());
        ensure!(kernel == model, "the kernel counted {kernel:?}, the host {model:?}");
        for principal in 1..=PRINCIPALS {
            let (mut kernel, model) = (self.kernel.meter(principal)?, self.host.meter(principal));
            kernel.buckets = model.buckets;
            ensure!(kernel == model, "of principal {principal} the kernel counted {kernel:?}, the host {model:?}");
        }
        let (kernel, model) = (flows, self.host.flows());
        ensure!(kernel == model, "the kernel's connections are\n{kernel:#?}\nthe host's\n{model:#?}");
        self.dues.borrow_mut().extend(model.values().map(|flow| flow.told.due));
        Ok(host)
    }
}

/// Streams that are good, bad, and good up to a place.
fn streams() -> Result<Vec<Vec<u8>>> {
    let keyed = |key| get("/", Some(key));
    let upload = format!("POST /u HTTP/1.1\r\nX-API-Key: {KEY}\r\nContent-Length: 300\r\n\r\n{}", "b".repeat(300));
    let chunked = format!(
        "PUT /u HTTP/1.1\r\nX-API-Key: {KEY}\r\nTransfer-Encoding: chunked\r\n\r\n12c\r\n{}\r\n0\r\n\r\n",
        "c".repeat(300)
    );
    let mut streams = vec![
        [keyed(KEY), keyed("other_key_2"), keyed(KEY)].concat(),
        [upload.as_bytes(), &keyed(KEY), chunked.as_bytes(), &get("/", None)].concat(),
        [chunked.as_bytes(), upload.as_bytes(), b"\r\n", &keyed("other_key_1")].concat(),
        [keyed("key_of_a_few_requests"), keyed("key_of_a_few_requests")].concat(),
        [keyed(KEY), get("/", Some("never_registered")), keyed(KEY)].concat(),
        [&keyed(KEY)[..], b"CONNECT t:1 HTTP/1.1\r\nHost: t\r\n\r\n"].concat(),
    ];
    streams.extend(corpus::load()?.into_iter().map(|case| case.stream).filter(|stream| stream.len() < 1000));
    Ok(streams)
}

/// A sequence over a few connections; nothing waits, since the kernel's clock is its own.
fn sequence(streams: &[Vec<u8>], random: &mut Random) -> Script {
    // The first ones go furthest.
    let some = |random: &mut Random| {
        if random.once_in(2) { random.pick(&streams[..6]).clone() } else { random.pick(streams).clone() }
    };
    let mut script = Script { events: Vec::new(), stream: some(random), other: some(random) };
    let chosen: Vec<usize> = (0..1 + random.below(4)).map(|_| random.below(CONNECTIONS)).collect();
    for connection in &chosen {
        let open = script::Event::Open { connection: *connection, isn: None, manner: Manner::default() };
        script.events.push(open);
    }
    let mut sent = [0; CONNECTIONS];
    let plain = |connection, bytes| script::Event::Send { connection, bytes, manner: Manner::default() };
    for _ in 0..30 {
        let on = *random.pick(&chosen);
        // What goes on in order makes the longest histories.
        if random.once_in(2) {
            let len = 1 + random.below(300);
            sent[on] += len;
            script.events.push(plain(on, Bytes::Next(len)));
        }
        // Bytes that are lost behind the hook, and others in their place.
        if random.once_in(4) {
            let (at, len) = (sent[on], 1 + random.below(60));
            sent[on] += len;
            let lost = Manner { lost: true, ..Manner::default() };
            script.events.push(script::Event::Send { connection: on, bytes: Bytes::Next(len), manner: lost });
            script.events.push(plain(on, Bytes::Other(at, len)));
            continue;
        }
        // An end, often inside a head.
        if random.once_in(20) {
            let manner = Manner { flags: flag::FIN, ..Manner::default() };
            script.events.push(script::Event::Send {
                connection: on,
                bytes: Bytes::Next(1 + random.below(60)),
                manner,
            });
        }
        if random.once_in(3) {
            let back = 1 + random.below(80);
            script.events.push(plain(on, Bytes::Stream(sent[on].saturating_sub(back), 1 + random.below(80))));
            continue;
        }
        let mut event = script_mutation::event(&script, random);
        match &mut event {
            script::Event::Open { connection, .. }
            | script::Event::Send { connection, .. }
            | script::Event::Reset { connection, .. } => *connection = on,
            script::Event::Wait { .. } => continue,
        }
        script.events.push(event);
    }
    script
}

/// The same without changed bytes in headers: of an address that they name, a host with real sockets has its own view.
fn ungarbled(mut script: Script) -> Script {
    for event in &mut script.events {
        if let script::Event::Open { manner, .. } | script::Event::Send { manner, .. } = event {
            manner.garbled = None;
        }
    }
    script
}

fn told(script: &Script, client: &Client, number: usize) -> String {
    let before: Vec<String> = script.events[..=number].iter().map(ToString::to_string).collect();
    format!(
        "after\n{}\nof the stream \"{}\"\nand the other \"{}\"\nwith {client:?}",
        before.join("\n"),
        script.stream.escape_ascii(),
        script.other.escape_ascii()
    )
}

#[test]
fn sequences_on_forwarded_connections_leave_kernel_and_model_alike() -> Result<()> {
    let streams = streams()?;
    let mut random = Random::new(3);
    // Few sets, so that connections also give way to each other.
    for sets in [16, 1] {
        let pair = Pair::new(sets)?;
        for _ in 0..SEQUENCES {
            let script = sequence(&streams, &mut random);
            let mut client = Client::default();
            for (_, server) in client.ends.iter_mut().skip(2).step_by(3) {
                server.set_port(ANSWERED);
            }
            let mut receivers: [Receiver; CONNECTIONS] = Default::default();
            for (number, event) in script.events.iter().enumerate() {
                let (Some(frame), Some(on)) = (client.play(event, &script), event.connection()) else { continue };
                let fate = pair.judge(&frame).with_context(|| told(&script, &client, number))?;
                let before = receivers[on].next();
                if let (Fate::Passed(bytes), false) = (fate, event.is_lost()) {
                    receivers[on].deliver(&bytes);
                }
                if let Some(next) = receivers[on].next() {
                    if before.is_none() {
                        client.acks[on] = receivers[on].server();
                    }
                    pair.watch(&client.answer(on, next, before.is_none()))?;
                }
            }
        }
        pair.has_met(MET)?;
    }
    Ok(())
}

/// A connection of the script whose receiver is this host.
struct Local {
    peer: Peer,
    receiver: Receiver,
    /// Whether it stays a request until data comes.
    is_deferred: bool,
    /// What the host says of it once it is over.
    after: flow::Receiver,
}

impl Local {
    /// Lets the real socket accept what the model of it does.
    fn deliver(&mut self, frame: &[u8]) -> Result<()> {
        let Some(before) = self.receiver.next() else { return Ok(()) };
        let finished = self.is_finished();
        self.receiver.deliver(frame);
        let Some(next) = self.receiver.next() else { return self.peer.reset() };
        let ends = u32::from(self.is_finished() && !finished);
        self.peer.send(next.wrapping_sub(before) - ends)?;
        if ends == 1 { self.peer.finish() } else { Ok(()) }
    }

    fn is_finished(&self) -> bool {
        self.receiver.received().last().is_some_and(|received| received.is_finished)
    }

    fn socket(&self) -> flow::Receiver {
        if self.receiver.next().is_none() {
            return self.after;
        }
        let server = self.peer.acknowledges();
        let known = flow::Receiver { server, written: server, ..self.receiver.socket() };
        let is_request = self.is_deferred && known.next == known.base;
        flow::Receiver { state: if is_request { receiver::REQUEST } else { known.state }, ..known }
    }
}

const LISTENING: flow::Receiver = flow::Receiver { state: receiver::LISTENING, ..flow::Receiver::ABSENT };
const CLOSING: flow::Receiver = flow::Receiver { state: receiver::CLOSING, ..flow::Receiver::ABSENT };

/// Gives the first connections of the script real sockets.
fn settle(client: &mut Client, listeners: &[Listener; 5]) -> Result<Vec<Local>> {
    let mut locals = Vec::new();
    for number in 0..9 {
        let listener = &listeners[number % listeners.len()];
        let mut peer = listener.connect()?;
        client.ends[number] = (peer.address(), listener.address());
        client.isns[number] = peer.first().wrapping_sub(1);
        client.acks[number] = peer.acknowledges();
        let (server, port) = (listener.address(), peer.address().port());
        let mut receiver = Receiver::default();
        let syn = client.frame(number, client.isns[number], flag::SYN, &[]).build();
        receiver.deliver(&syn);
        ensure!(receiver.next() == Some(peer.first()), "the connection from {port} to {server} is modelled otherwise");
        if number == 7 {
            // It has received bytes that no packet of the script brought.
            peer.send(10)?;
            receiver.deliver(&client.frame(number, client.seq(number, 0), flag::ACK, &[0; 10]).build());
        }
        locals.push(Local { peer, receiver, is_deferred: server.port() == DEFERRING, after: LISTENING });
    }
    // The server ends one of them: its socket stays for a while, and reads nothing.
    let over = &mut locals[8];
    over.peer.close_server()?;
    over.receiver = Receiver::default();
    over.after = CLOSING;
    // Nobody has connected from here.
    client.ends[9] = (SocketAddr::new(client.ends[0].0.ip(), 9), client.ends[0].1);
    Ok(locals)
}

#[test]
fn sequences_on_connections_of_real_sockets_leave_kernel_and_model_alike() -> Result<()> {
    let streams = streams()?;
    let namespace = Namespace::new()?;
    namespace.run(|| {
        let listeners = [
            Listener::new((Ipv4Addr::LOCALHOST, 8000).into(), false)?,
            Listener::new((Ipv6Addr::LOCALHOST, 8000).into(), false)?,
            // Its connections stay requests until data comes.
            Listener::new((Ipv4Addr::LOCALHOST, DEFERRING).into(), true)?,
            Listener::new((Ipv4Addr::LOCALHOST, ANSWERED).into(), false)?,
            Listener::new((Ipv6Addr::LOCALHOST, ANSWERED).into(), false)?,
        ];
        let mut random = Random::new(4);
        let pair = Pair::new(16)?;
        for _ in 0..SEQUENCES {
            let script = ungarbled(sequence(&streams, &mut random));
            let mut client = Client::default();
            let mut locals = settle(&mut client, &listeners)?;
            for (number, event) in script.events.iter().enumerate() {
                let Some(frame) = client.play(event, &script) else { continue };
                for (local, (client, server)) in locals.iter().zip(client.ends) {
                    pair.host.tell(tuple(client, server), local.socket());
                }
                let (nobody, server) = client.ends[9];
                pair.host.tell(tuple(nobody, server), LISTENING);
                let fate = pair.judge(&frame).with_context(|| told(&script, &client, number))?;
                let local = event.connection().and_then(|connection| locals.get_mut(connection));
                if let (Some(local), Fate::Passed(bytes), false) = (local, fate, event.is_lost()) {
                    local.deliver(&bytes)?;
                }
            }
        }
        pair.has_met(MET)?;
        pair.has_met(&[Count::Refused(Reason::MidStream), Count::Event(Event::Deferred)])?;
        Ok(())
    })
}
