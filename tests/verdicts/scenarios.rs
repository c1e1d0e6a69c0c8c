//! What becomes of packets: one behaviour a test, for the host library alone and for the loaded program beside it.
//!
//! The addresses belong to nobody here, so every connection is one that the host forwards: it is anchored by its handshake.

#[path = "hosts.rs"]
mod hosts;

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use enforcer_ebpf::abi::{
    BUCKETS, Buckets, Key, Leaf, Limit, METHODS, Meter, Policy, Rule, Ruleset, Scope, Service, Spread, SpreadAction,
    State, TOTALS, scope,
};
use enforcer_ebpf::limit::{self, Clock};
use enforcer_ebpf::verdict::{Action, Count, Event, Malformation, Reason};
use enforcer_tests::bucket::{gcra, penalizing, sliding};
use enforcer_tests::client::get;
use enforcer_tests::corpus::{self, Expected, KEY};
use enforcer_tests::kernel::{Loaded, boot};
use enforcer_tests::packet::{Frame, QINQ, VLAN, flag};
use enforcer_tests::tables::{Tables, policy};
use enforcer_tests::world::{Fate, Host, tuple};
use etherparse::{NetHeaders, PacketHeaders, TcpHeader, TransportHeader};

const SECOND: u64 = 1_000_000_000;
const HOUR: u64 = 3600 * SECOND;
const DISABLED: &str = "disabled_key";
const EXPIRED: &str = "expired_key_1";
const FEW: &str = "key_of_a_few_requests";
/// First sequence numbers of the client and of the server.
const BEGIN: u32 = 0xffff_ff00;
const SERVER: u32 = 76;

fn tables() -> Tables {
    let mut tables = Tables::new()
        .with_key(KEY, 1, 0)
        .with_key("other_key_1", 1, 0)
        .with_key("other_key_2", 2, 0)
        .with_key("other_key_3", 3, 0)
        .with_key(DISABLED, 1, Key::DISABLED)
        .with_key(EXPIRED, 1, 0)
        .with_key(FEW, 4, 0)
        .with_limits(1, &[sliding(1_000_000, HOUR)])
        .with_limits(2, &[sliding(1_000_000, HOUR)])
        .with_limits(3, &[])
        .with_limits(4, &[sliding(3, HOUR)]);
    let tag = enforcer_ebpf::key::tag(enforcer_tests::reader::SECRET, EXPIRED.as_bytes());
    if let Some(key) = tables.keys.get_mut(&tag) {
        key.expires = 0;
    }
    tables
}

/// The host library and, where it is loaded, the program, which get the same frames and must do the same.
struct Both {
    kernel: Option<Loaded>,
    host: Host,
    connections: u16,
    /// The port that connections are opened to.
    port: u16,
}

impl Both {
    fn new(tables: &Tables) -> Result<Self> {
        Ok(Self { kernel: super::load(module_path!(), tables)?, host: Host::new(tables), connections: 0, port: 8000 })
    }

    fn judge(&self, frame: &[u8]) -> Result<Fate> {
        let mut host = self.host.judge(frame);
        if let Some(kernel) = &self.kernel {
            let kernel = kernel.judge(frame)?;
            if let Fate::Passed(bytes) = &host
                && super::answers(module_path!())
            {
                host = self.host.answer(bytes).0;
            }
            ensure!(kernel == host, "the kernel {kernel:02x?}, the host {host:02x?} for {frame:02x?}");
        }
        Ok(host)
    }

    /// Puts both under other rules.
    fn write_rules(&mut self, tables: &Tables) -> Result<()> {
        self.host.write(tables);
        self.kernel.as_mut().map_or(Ok(()), |kernel| kernel.write_rules(tables))
    }

    /// Sets the time of day of both, in seconds of Unix time.
    fn set_time_of_day(&mut self, unix: u64) -> Result<()> {
        self.host.set_date(unix);
        let boot = boot()?.as_nanos() as u64;
        self.kernel.as_mut().map_or(Ok(()), |kernel| kernel.set_clock((unix * SECOND).wrapping_sub(boot)))
    }

    /// Holds the counters of both against each other and gives them.
    fn totals(&self) -> Result<[u64; TOTALS as usize]> {
        if let Some(kernel) = &self.kernel {
            let (kernel, host) = (kernel.totals_by_service()?, self.host.totals_by_service());
            ensure!(kernel == host, "the kernel counted {kernel:?}, the host {host:?}");
        }
        Ok(self.host.totals())
    }

    fn count(&self, count: Count) -> Result<u64> {
        Ok(self.totals()?[count.index() as usize])
    }

    fn meter(&self, principal: u32) -> Result<Meter> {
        let host = self.host.meter(principal);
        if let Some(kernel) = &self.kernel {
            let kernel = Meter { buckets: host.buckets, ..kernel.meter(principal)? };
            ensure!(kernel == host, "the kernel counted {kernel:?}, the host {host:?}");
        }
        Ok(host)
    }

    /// What is used of a principal's one limit, by both.
    fn used(&self, principal: u32, limit: &Limit) -> Result<u64> {
        let used = |buckets: &Buckets, boot| limit::usage(&buckets.limits[0], limit, Clock::of_boot(boot)).used;
        let host = used(&self.host.used_by(principal), self.host.boot());
        if let Some(kernel) = &self.kernel {
            // Of a rate some of the first hour's share is back at once.
            let kernel = used(&kernel.meter(principal)?.buckets, boot()?.as_nanos() as u64 + SECOND);
            ensure!(kernel == host, "the kernel has counted {kernel}, the host {host} under {limit:?}");
        }
        Ok(host)
    }

    /// Shows both a frame that leaves for a client.
    fn watch(&self, frame: &[u8]) -> Result<()> {
        self.host.watch(frame);
        self.kernel.as_ref().map_or(Ok(()), |kernel| kernel.watch(frame))
    }

    /// Opens a connection of its own by its handshake.
    fn connect(&mut self, shape: Shape) -> Result<Connection> {
        self.connections += 1;
        let (port, server) = (10_000 + self.connections, self.port);
        let connection = Connection { shape, port, server, seq: BEGIN.wrapping_add(1) };
        let syn = shape.dress(Frame::bare(connection.client(), connection.server(), BEGIN, flag::SYN)).build();
        ensure!(self.judge(&syn)? == Fate::Passed(syn), "a SYN did not pass");
        self.watch(&connection.answer(SERVER, BEGIN.wrapping_add(1), flag::SYN | flag::ACK))?;
        let ack = connection.frame(b"", flag::ACK).build();
        ensure!(self.judge(&ack)? == Fate::Passed(ack), "an acknowledgement did not pass");
        Ok(connection)
    }

    /// Sends the next bytes of a connection; gives what became of the segment.
    fn send(&self, connection: &mut Connection, bytes: &[u8]) -> Result<Outcome> {
        let frame = connection.data(bytes);
        let fate = self.judge(&frame)?;
        connection.seq = connection.seq.wrapping_add(bytes.len() as u32);
        Outcome::of(&frame, bytes.len(), fate)
    }

    /// Sends a stream in these segments; gives what became of the last that was sent, and stops at a refusal.
    fn stream<'a>(&mut self, shape: Shape, segments: impl IntoIterator<Item = &'a [u8]>) -> Result<Outcome> {
        let mut connection = self.connect(shape)?;
        let mut last = Outcome::Passed;
        for segment in segments.into_iter().filter(|segment| !segment.is_empty()) {
            last = self.send(&mut connection, segment)?;
            if last != Outcome::Passed {
                break;
            }
        }
        Ok(last)
    }
}

/// How a connection's frames look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    V4,
    V4Options,
    V6,
    V6Extensions,
    Vlan,
    VlanV6,
    QinQ,
}

const SHAPES: [Shape; 7] =
    [Shape::V4, Shape::V4Options, Shape::V6, Shape::V6Extensions, Shape::Vlan, Shape::VlanV6, Shape::QinQ];

impl Shape {
    fn is_v6(self) -> bool {
        matches!(self, Self::V6 | Self::V6Extensions | Self::VlanV6)
    }

    fn dress(self, mut frame: Frame) -> Frame {
        match self {
            Self::V4 | Self::V6 => {}
            Self::V4Options => frame.ip_options = vec![1; 8],
            Self::V6Extensions => {
                let padding = vec![0, 1, 4, 0, 0, 0, 0];
                frame.extensions = vec![(0, padding.clone()), (60, padding)];
            }
            Self::Vlan | Self::VlanV6 => frame.tags = vec![(VLAN, 5)],
            Self::QinQ => frame.tags = vec![(QINQ, 7), (VLAN, 5)],
        }
        frame.tcp_options = vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
        frame
    }
}

/// A client's side of a connection.
struct Connection {
    shape: Shape,
    port: u16,
    /// The server's port.
    server: u16,
    seq: u32,
}

impl Connection {
    fn client(&self) -> SocketAddr {
        match self.shape.is_v6() {
            true => SocketAddr::from(([0xfd09, 0, 0, 0, 0, 0, 0, 1], self.port)),
            false => SocketAddr::from(([10, 9, 0, 1], self.port)),
        }
    }

    fn server(&self) -> SocketAddr {
        match self.shape.is_v6() {
            true => SocketAddr::from(([0xfd09, 0, 0, 0, 0, 0, 0, 2], self.server)),
            false => SocketAddr::from(([10, 9, 0, 2], self.server)),
        }
    }

    fn frame(&self, bytes: &[u8], flags: u8) -> Frame {
        let frame = Frame { flags, ..Frame::data(self.client(), self.server(), self.seq, bytes) };
        self.shape.dress(frame.acking(SERVER + 1))
    }

    /// What the server sends, without data.
    fn answer(&self, seq: u32, ack: u32, flags: u8) -> Vec<u8> {
        let frame = Frame::bare(self.server(), self.client(), seq, flags);
        self.shape.dress(frame.acking(ack)).build()
    }

    /// The server's acknowledgement of all bytes before `ack`.
    fn accepts(&self, ack: u32) -> Vec<u8> {
        self.answer(SERVER + 1, ack, flag::ACK)
    }

    fn data(&self, bytes: &[u8]) -> Vec<u8> {
        self.frame(bytes, flag::ACK | flag::PSH).build()
    }
}

/// What became of a segment, as its receiver sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Dropped,
    /// A RST with this sequence number.
    Reset(u32),
    /// Only so many bytes of its payload go on.
    Cut(usize),
    /// Goes on as an acknowledgement without its payload.
    Stripped,
}

impl Outcome {
    fn of(sent: &[u8], len: usize, fate: Fate) -> Result<Self> {
        let Fate::Passed(bytes) = fate else { return Ok(Self::Dropped) };
        if bytes == sent {
            return Ok(Self::Passed);
        }
        let (before, after) = (read(sent)?, read(&bytes)?);
        ensure!(before.0.source_port == after.0.source_port, "a rewritten segment changed its ends");
        ensure!(
            after.0.acknowledgment_number == SERVER + 1,
            "a rewritten segment lost its acknowledgement: {:?}",
            after.0
        );
        Ok(match after {
            (tcp, 0) if tcp.rst => Self::Reset(tcp.sequence_number),
            (_, 0) => Self::Stripped,
            (tcp, kept) if kept < len && !tcp.fin => Self::Cut(kept),
            other => anyhow::bail!("rewritten to {other:?}"),
        })
    }
}

/// TCP header and length of the payload of a frame, whose lengths and checksums must all be right.
fn read(frame: &[u8]) -> Result<(TcpHeader, usize)> {
    let read = PacketHeaders::from_ethernet_slice(frame)?;
    let Some(TransportHeader::Tcp(tcp)) = read.transport else { anyhow::bail!("no TCP in {frame:02x?}") };
    let payload = read.payload.slice();
    let sum = match &read.net {
        Some(NetHeaders::Ipv4(ip, _)) => {
            ensure!(ip.header_checksum == ip.calc_header_checksum(), "a wrong checksum of IPv4");
            let total = usize::from(ip.total_len);
            ensure!(total == ip.header_len() + tcp.header_len() + payload.len(), "a wrong length of IPv4");
            tcp.calc_checksum_ipv4(ip, payload)?
        }
        Some(NetHeaders::Ipv6(ip, extensions)) => {
            let total = usize::from(ip.payload_length);
            ensure!(total == extensions.header_len() + tcp.header_len() + payload.len(), "a wrong length of IPv6");
            tcp.calc_checksum_ipv6(ip, payload)?
        }
        other => anyhow::bail!("no IP: {other:?}"),
    };
    ensure!(sum == tcp.checksum, "a wrong checksum of TCP: {:#x} for {sum:#x}", tcp.checksum);
    Ok((tcp, payload.len()))
}

#[test]
fn a_keyed_request_passes_and_is_counted_in_every_shape_of_frame() -> Result<()> {
    let mut both = Both::new(&tables())?;
    for (passed, shape) in (1..).zip(SHAPES) {
        ensure!(both.stream(shape, [&get("/", Some(KEY))[..]])? == Outcome::Passed, "{shape:?} did not pass");
        ensure!(both.count(Count::Event(Event::Allowed))? == passed, "{shape:?} was not counted");
        ensure!(both.meter(1)?.allowed == passed, "{shape:?} was not charged");
    }
    Ok(())
}

#[test]
fn what_is_refused_becomes_a_reset_with_the_segments_own_sequence_number() -> Result<()> {
    let mut both = Both::new(&tables())?;
    let cases = [
        (get("/", None), Reason::Unkeyed),
        (get("/", Some("never_registered")), Reason::UnknownKey),
        (get("/", Some(DISABLED)), Reason::KeyDisabled),
        (get("/", Some(EXPIRED)), Reason::KeyExpired),
        (b"GET / HTTP/1.1\r\nHost : t\r\n\r\n".to_vec(), Reason::Malformed),
        (b"CONNECT t:1 HTTP/1.1\r\n\r\n".to_vec(), Reason::Upgrade),
    ];
    for shape in SHAPES {
        for (request, reason) in &cases {
            let before = both.count(Count::Refused(*reason))?;
            let outcome = both.stream(shape, [&request[..]])?;
            ensure!(outcome == Outcome::Reset(BEGIN.wrapping_add(1)), "{shape:?}, {reason:?}: {outcome:?}");
            ensure!(both.count(Count::Refused(*reason))? == before + 1, "{shape:?}: {reason:?} was not counted");
        }
    }
    ensure!(both.count(Count::Event(Event::Allowed))? == 0, "something was allowed");
    Ok(())
}

#[test]
fn times_of_keys_and_policies_go_with_the_clock_when_it_is_set() -> Result<()> {
    const NOON: u64 = 1_900_000_000;
    let mut tables = tables();
    let tag = enforcer_ebpf::key::tag(enforcer_tests::reader::SECRET, KEY.as_bytes());
    let key = tables.keys.get_mut(&tag).context("no key")?;
    (key.not_before, key.expires) = (NOON * SECOND, (NOON + 3600) * SECOND);
    // One an hour, and from NOON + 1800 on as many as principal 1 has.
    let few = tables.policies.get_mut(&4).context("no policy")?;
    *few = Policy { until: (NOON + 1800) * SECOND, next: 1, ..policy(&[sliding(1, HOUR)]) };
    let mut both = Both::new(&tables)?;
    let refused = || Outcome::Reset(BEGIN.wrapping_add(1));
    for (time, expected) in [
        (NOON - 60, refused()),
        (NOON + 60, Outcome::Passed),
        (NOON + 3540, Outcome::Passed),
        (NOON + 3660, refused()),
        // Set back.
        (NOON + 1800, Outcome::Passed),
        (NOON - 3600, refused()),
    ] {
        both.set_time_of_day(time)?;
        let outcome = both.stream(Shape::V4, [&get("/", Some(KEY))[..]])?;
        ensure!(outcome == expected, "{outcome:?} at {time}");
    }
    ensure!(both.count(Count::Refused(Reason::KeyExpired))? == 3, "the reason is another");
    for (time, expected) in [
        (NOON, Outcome::Passed),
        (NOON + 60, refused()),
        (NOON + 1860, Outcome::Passed),
        (NOON + 1920, Outcome::Passed),
        (NOON + 1740, refused()),
    ] {
        both.set_time_of_day(time)?;
        let outcome = both.stream(Shape::V4, [&get("/", Some(FEW))[..]])?;
        ensure!(outcome == expected, "{outcome:?} under the policies at {time}");
    }
    Ok(())
}

#[test]
fn a_service_that_drops_drops() -> Result<()> {
    let mut tables = tables();
    tables.services.insert(8000, Service { actions: [Action::Drop as u8; 32], ..Service::DEFAULT });
    let mut both = Both::new(&tables)?;
    let mut connection = both.connect(Shape::V4)?;
    ensure!(both.send(&mut connection, &get("/", None))? == Outcome::Dropped, "an unkeyed request was not dropped");
    ensure!(both.count(Count::Event(Event::Dropped))? == 1, "the drop was not counted");
    Ok(())
}

#[test]
fn a_service_that_observes_passes_all_and_counts_what_it_would_refuse() -> Result<()> {
    let mut tables = tables();
    tables.services.insert(8000, Service { flags: Service::OBSERVE, ..Service::DEFAULT });
    let mut both = Both::new(&tables)?;
    let malformed = b"GET / HTTP/1.1\nHost: t\n\n".to_vec();
    for request in [get("/", None), get("/", Some("never_registered")), malformed, get("/", Some(DISABLED))] {
        ensure!(both.stream(Shape::V4, [&request[..]])? == Outcome::Passed, "an observed request did not pass");
    }
    for _ in 0..5 {
        ensure!(both.stream(Shape::V4, [&get("/", Some(FEW))[..]])? == Outcome::Passed, "an observed request");
    }
    let expected = [
        (Reason::Unkeyed, 1),
        (Reason::UnknownKey, 1),
        (Reason::Malformed, 1),
        (Reason::KeyDisabled, 1),
        (Reason::OverLimit, 2),
    ];
    for (reason, times) in expected {
        ensure!(both.count(Count::WouldRefuse(reason))? == times, "{reason:?} was counted otherwise");
        ensure!(both.count(Count::Refused(reason))? == 0, "{reason:?} was counted as refused");
    }
    ensure!(both.count(Count::Malformed(Malformation::Version))? == 1, "the kind was not counted");
    ensure!((both.meter(4)?.allowed, both.meter(4)?.would_refuse) == (3, 2), "{:?}", both.meter(4)?);
    Ok(())
}

#[test]
fn the_limit_holds_over_connections_and_over_requests_of_one() -> Result<()> {
    let mut both = Both::new(&tables())?;
    let request = get("/", Some(FEW));
    let mut kept = both.connect(Shape::V4)?;
    ensure!(both.send(&mut kept, &request)? == Outcome::Passed, "the first");
    ensure!(both.stream(Shape::V6, [&request[..]])? == Outcome::Passed, "the second");
    ensure!(both.send(&mut kept, &request)? == Outcome::Passed, "the third");
    let next = kept.seq;
    ensure!(both.send(&mut kept, &request)? == Outcome::Reset(next), "a fourth on the kept connection");
    ensure!(both.stream(Shape::V4, [&request[..]])? == Outcome::Reset(BEGIN.wrapping_add(1)), "a fifth on a new one");
    ensure!(both.count(Count::Refused(Reason::OverLimit))? == 2, "refusals were counted otherwise");
    ensure!((both.meter(4)?.allowed, both.meter(4)?.limited) == (3, 2), "{:?}", both.meter(4)?);
    Ok(())
}

#[test]
fn a_limit_that_penalizes_counts_what_it_refuses_once_and_nothing_else() -> Result<()> {
    for (limit, passes, most) in
        [(penalizing(sliding(3, HOUR)), 3, 6), (penalizing(gcra(3, HOUR)), 3, 5), (sliding(3, HOUR), 3, 3)]
    {
        let mut both = Both::new(&tables().with_limits(4, &[limit]))?;
        let request = get("/", Some(FEW));
        for number in 0..passes {
            ensure!(both.stream(Shape::V4, [&request[..]])? == Outcome::Passed, "request {number} under {limit:?}");
        }
        ensure!(both.used(4, &limit)? == 3, "{} passed", both.used(4, &limit)?);
        // Not for the limit, but for how it is written.
        let malformed = [&request[..request.len() - 2], b"X_Api_Key: a\r\n\r\n"].concat();
        ensure!(both.stream(Shape::V4, [&malformed[..]])? != Outcome::Passed, "a malformed one passed");
        ensure!(both.used(4, &limit)? == 3, "a malformed request was counted");
        let mut connection = both.connect(Shape::V4)?;
        let begin = connection.seq;
        for _ in 0..4 {
            connection.seq = begin;
            ensure!(both.send(&mut connection, &request)? != Outcome::Passed, "one too many passed under {limit:?}");
        }
        let once = if limit.flags == 0 { 3 } else { 4 };
        ensure!(
            both.used(4, &limit)? == once,
            "{} counted of one that came four times under {limit:?}",
            both.used(4, &limit)?
        );
        for _ in 0..9 {
            ensure!(both.stream(Shape::V6, [&request[..]])? != Outcome::Passed, "one too many passed under {limit:?}");
        }
        ensure!(both.used(4, &limit)? == most, "{} counted in all under {limit:?}", both.used(4, &limit)?);
    }
    Ok(())
}

#[test]
fn a_head_cut_at_any_byte_gives_the_same_verdict_on_its_last_segment() -> Result<()> {
    let mut both = Both::new(&tables())?;
    let (keyed, unkeyed) = (get("/", Some(KEY)), get("/", None));
    for cut in 1..keyed.len() {
        let (first, second) = keyed.split_at(cut);
        ensure!(both.stream(Shape::V4, [first, second])? == Outcome::Passed, "keyed, cut at {cut}");
    }
    for cut in 1..unkeyed.len() {
        let (first, second) = unkeyed.split_at(cut);
        let outcome = both.stream(Shape::V6, [first, second])?;
        ensure!(outcome == Outcome::Reset(BEGIN.wrapping_add(1 + cut as u32)), "unkeyed, cut at {cut}: {outcome:?}");
    }
    ensure!(both.count(Count::Event(Event::Allowed))? == keyed.len() as u64 - 1, "allowed otherwise");
    ensure!(both.count(Count::Refused(Reason::Unkeyed))? == unkeyed.len() as u64 - 1, "refused otherwise");
    for size in [1, 2, 3, 5, 8, 13] {
        ensure!(both.stream(Shape::V4, keyed.chunks(size))? == Outcome::Passed, "keyed, in segments of {size}");
        ensure!(both.stream(Shape::V4, unkeyed.chunks(size))? != Outcome::Passed, "unkeyed, in segments of {size}");
    }
    Ok(())
}

#[test]
fn every_case_of_the_corpus_ends_as_it_says() -> Result<()> {
    let cases = corpus::load()?;
    for size in [1400, 61, 7] {
        let mut both = Both::new(&tables())?;
        for case in &cases {
            let outcome = both.stream(Shape::V4, case.stream.chunks(size))?;
            let registered = |expected: &Expected| match expected {
                Expected::Keyed(key) => [KEY, "other_key_1", "other_key_2", "other_key_3"].contains(&&key[..]),
                Expected::Unkeyed | Expected::Refused(..) => false,
            };
            let all_pass = case.expected.iter().all(registered);
            ensure!((outcome == Outcome::Passed) == all_pass, "{} in segments of {size}: {outcome:?}", case.name);
        }
        both.count(Count::Event(Event::Allowed))?;
    }
    Ok(())
}

#[test]
fn one_segment_of_a_whole_super_frame_is_read_to_its_end() -> Result<()> {
    if !super::takes_any_frame(module_path!()) {
        return Ok(());
    }
    let mut both = Both::new(&tables())?;
    // As GRO and TSO hand it up: hundreds of requests in one frame of many buffers.
    let many: Vec<u8> = (0..300).flat_map(|_| get("/", Some(KEY))).collect();
    let mut connection = both.connect(Shape::V4)?;
    ensure!(both.send(&mut connection, &many)? == Outcome::Passed, "300 requests in {} bytes", many.len());
    ensure!(both.count(Count::Event(Event::Allowed))? == 300, "counted otherwise");
    let body = [
        &b"POST / HTTP/1.1\r\nX-API-Key: live_0123456789abcdefghijklmnop\r\nContent-Length: 40000\r\n\r\n"[..],
        &[b'x'; 40_000],
        &get("/", None),
    ]
    .concat();
    let last = get("/", None).len();
    let outcome = both.send(&mut connection, &body)?;
    ensure!(outcome == Outcome::Cut(body.len() - last), "an unkeyed request behind a body: {outcome:?}");
    Ok(())
}

#[test]
fn pipelined_requests_pass_up_to_the_first_that_is_refused() -> Result<()> {
    let mut both = Both::new(&tables())?;
    for shape in SHAPES {
        let good = [get("/1", Some(KEY)), get("/2", Some("other_key_2")), get("/3", Some("other_key_3"))].concat();
        ensure!(both.stream(shape, [&good[..]])? == Outcome::Passed, "{shape:?}: three good ones");
        let bad = [&good[..], &get("/4", None), &get("/5", Some(KEY))].concat();
        let mut connection = both.connect(shape)?;
        let before = both.count(Count::Refused(Reason::Unkeyed))?;
        let outcome = both.send(&mut connection, &bad)?;
        ensure!(outcome == Outcome::Cut(good.len()), "{shape:?}: {outcome:?}");
        ensure!(both.count(Count::Refused(Reason::Unkeyed))? == before, "{shape:?}: counted before it came again");
        // What was cut off comes again, and is judged then.
        connection.seq = BEGIN.wrapping_add(1 + good.len() as u32);
        let next = connection.seq;
        let outcome = both.send(&mut connection, &bad[good.len()..])?;
        ensure!(outcome == Outcome::Reset(next), "{shape:?}: what was cut off: {outcome:?}");
        ensure!(both.count(Count::Refused(Reason::Unkeyed))? == before + 1, "{shape:?}: not counted");
    }
    Ok(())
}

#[test]
fn bodies_are_skipped_and_the_request_behind_them_is_judged() -> Result<()> {
    let mut both = Both::new(&tables())?;
    let head = format!("POST /u HTTP/1.1\r\nX-API-Key: {KEY}\r\n");
    let length = [format!("{head}Content-Length: 5000\r\n\r\n").into_bytes(), vec![b'b'; 5000]].concat();
    let chunked = [
        format!("{head}Transfer-Encoding: chunked\r\n\r\n1388\r\n").into_bytes(),
        vec![b'b'; 5000],
        b"\r\n0\r\n\r\n".to_vec(),
    ]
    .concat();
    for upload in [length, chunked] {
        for size in [1400, 333] {
            let mut connection = both.connect(Shape::V4)?;
            for segment in upload.chunks(size) {
                ensure!(both.send(&mut connection, segment)? == Outcome::Passed, "a segment of an upload");
            }
            ensure!(both.send(&mut connection, &get("/", Some(KEY)))? == Outcome::Passed, "a keyed request behind it");
            let next = connection.seq;
            ensure!(both.send(&mut connection, &get("/", None))? == Outcome::Reset(next), "an unkeyed one");
        }
    }
    ensure!(both.count(Count::Event(Event::Allowed))? == 8, "{}", both.count(Count::Event(Event::Allowed))?);
    Ok(())
}

#[test]
fn only_the_next_bytes_are_read() -> Result<()> {
    let mut both = Both::new(&tables())?;
    let request = get("/", Some(KEY));
    let mut connection = both.connect(Shape::V4)?;
    let begin = connection.seq;
    connection.seq = begin.wrapping_add(10);
    ensure!(both.send(&mut connection, &request[10..])? == Outcome::Dropped, "bytes ahead passed");
    ensure!(both.count(Count::Event(Event::OutOfOrder))? == 1, "not counted as out of order");
    connection.seq = begin;
    ensure!(both.send(&mut connection, &request[..10])? == Outcome::Passed, "the first bytes");
    connection.seq = begin.wrapping_add(20);
    ensure!(both.send(&mut connection, &request[20..])? == Outcome::Dropped, "bytes ahead passed, later");
    ensure!(both.count(Count::Event(Event::OutOfOrder))? == 2, "not counted as out of order, later");
    connection.seq = begin.wrapping_add(10);
    ensure!(both.send(&mut connection, &request[10..])? == Outcome::Passed, "the rest");
    // Sent again, as if its acknowledgement had been lost: judged once, charged once.
    connection.seq = begin;
    both.send(&mut connection, &request)?;
    ensure!(both.count(Count::Event(Event::Allowed))? == 1, "a retransmission was charged");
    Ok(())
}

/// Sends `bytes` at `at` bytes behind the connection's first.
fn send_at(both: &Both, connection: &Connection, at: usize, bytes: &[u8]) -> Result<Outcome> {
    let mut there = Connection { seq: BEGIN.wrapping_add(1 + at as u32), ..*connection };
    both.send(&mut there, bytes)
}

#[test]
fn judged_bytes_that_were_lost_may_come_again_in_any_pieces_and_are_charged_once() -> Result<()> {
    let head = format!("POST /u HTTP/1.1\r\nX-API-Key: {KEY}\r\nContent-Length: 6\r\n\r\n");
    let stream = [head.as_bytes(), b"abcdef", &get("/", Some("other_key_2")), &get("/", Some(KEY))].concat();
    let mut both = Both::new(&tables())?;
    let cuts = (1..stream.len()).step_by(7).flat_map(|first| [(first, first / 2), (first, first + 9)]);
    for (number, (first, size)) in (1..).zip(cuts) {
        let connection = both.connect(Shape::V4)?;
        let pieces = [0, first, (first + 40).min(stream.len()), stream.len()];
        for piece in pieces.windows(2).filter(|piece| piece[0] < piece[1]) {
            let outcome = send_at(&both, &connection, piece[0], &stream[piece[0]..piece[1]])?;
            ensure!(outcome == Outcome::Passed, "{pieces:?}: {outcome:?}");
        }
        // None of it was accepted. Now other pieces, each sent from where the receiver has come to.
        let mut at = 0;
        while at < stream.len() {
            let end = (at + size.max(1)).min(stream.len());
            at = match send_at(&both, &connection, at, &stream[at..end])? {
                Outcome::Passed => end,
                Outcome::Cut(len) if len > 0 => at + len,
                other => anyhow::bail!("cut at {first}, pieces of {size}, at {at}: {other:?}"),
            };
            both.watch(&connection.accepts(BEGIN.wrapping_add(1 + at as u32)))?;
        }
        let allowed = both.count(Count::Event(Event::Allowed))?;
        ensure!(allowed == 3 * number, "{allowed} were charged in {number} connections of three requests");
        ensure!(both.meter(2)?.allowed == number && both.meter(1)?.allowed == 2 * number, "charged to another");
    }
    Ok(())
}

/// Tables by which all paths have the rule of this identity, by which a request counts as two and which lies at this place.
fn ruled(identity: u32, place: usize) -> Tables {
    let mut tables = tables().with_rules(Ruleset { routes: 1, ..Ruleset::default() });
    tables.states = vec![State::default(), State { other: 1, leaf: 1 }];
    tables.leaves = vec![Leaf::default(), Leaf { rules: [place as u32; METHODS], ..Leaf::default() }];
    tables.rules = vec![Rule { identity: 99, cost: 1, ..Rule::default() }; place];
    tables.rules.push(Rule { identity, cost: 2, ..Rule::default() });
    tables
}

#[test]
fn a_request_is_charged_once_by_a_rule_wherever_that_lies() -> Result<()> {
    // Of the same rule it is known to be paid; of another that lies in its place it is not, and has no room left.
    for (identity, place, outcome) in
        [(7, 1, Outcome::Passed), (7, 3, Outcome::Passed), (8, 1, Outcome::Reset(BEGIN.wrapping_add(1)))]
    {
        let mut both = Both::new(&ruled(7, 1))?;
        let connection = both.connect(Shape::V4)?;
        let request = get("/", Some(FEW));
        ensure!(send_at(&both, &connection, 0, &request)? == Outcome::Passed, "the first time");
        both.write_rules(&ruled(identity, place))?;
        let again = send_at(&both, &connection, 0, &request)?;
        ensure!(again == outcome, "rule {identity} at {place}: {again:?}");
        ensure!(both.used(4, &sliding(3, HOUR))? == 2, "rule {identity} at {place}: charged again");
    }
    Ok(())
}

#[test]
fn a_head_whose_path_was_begun_under_rules_that_are_gone_is_refused() -> Result<()> {
    // Of the first layout, of the second, and none.
    let laid = |layout: u32| {
        let mut tables = ruled(7, 1);
        tables
            .rulesets
            .insert(1, Ruleset { routes: if layout == 0 { 0 } else { 1 | layout << 16 }, ..Ruleset::default() });
        tables
    };
    let request = get("/search/x", Some(KEY));
    for (from, to, passes) in [(1, 1, true), (1, 2, false), (0, 2, false), (1, 0, true), (0, 0, true)] {
        for cut in [3, 8, 14, request.len() - 2] {
            let mut both = Both::new(&laid(from))?;
            let mut connection = both.connect(Shape::V4)?;
            let next = connection.seq.wrapping_add(cut as u32);
            ensure!(both.send(&mut connection, &request[..cut])? == Outcome::Passed, "the first {cut} bytes");
            both.write_rules(&laid(to))?;
            let outcome = both.send(&mut connection, &request[cut..])?;
            let expected = if passes || cut == 3 { Outcome::Passed } else { Outcome::Reset(next) };
            ensure!(outcome == expected, "begun under {from}, ended under {to}, cut at {cut}: {outcome:?}");
            ensure!(both.count(Count::Refused(Reason::Conflict))? == u64::from(expected != Outcome::Passed));
            // What is begun now is of these rules.
            ensure!(both.stream(Shape::V4, [&request[..]])? == Outcome::Passed, "a new one under {to}");
        }
    }
    Ok(())
}

#[test]
fn other_bytes_in_the_place_of_judged_ones_end_the_connection() -> Result<()> {
    // As long, and refused for itself; as long, and another's request, which leads to the same state and is charged.
    let head = |key: &str| format!("GET / HTTP/1.1\r\nX-API-Key: {key}\r\n\r\n").into_bytes();
    let mut both = Both::new(&tables())?;
    let connection = both.connect(Shape::V4)?;
    ensure!(send_at(&both, &connection, 0, &head("other_key_1"))? == Outcome::Passed, "the first");
    ensure!(send_at(&both, &connection, 0, &head("other_key_2"))? == Outcome::Passed, "another's");
    ensure!(both.meter(1)?.allowed == 1 && both.meter(2)?.allowed == 1, "not both were charged");
    let outcome = send_at(&both, &connection, 0, &head("other_key_9"))?;
    ensure!(matches!(outcome, Outcome::Reset(_)), "nobody's: {outcome:?}");
    // A decoy of half a head, and a key that only the decoy's end made part of a value.
    let mut both = Both::new(&tables())?;
    let connection = both.connect(Shape::V4)?;
    let decoy = b"GET /u HTTP/1.1\r\nHost: t\r\nA: ";
    let other = b"GET /u HTTP/1.1\r\nHost: t\r\n\r\nG";
    ensure!(send_at(&both, &connection, 0, decoy)? == Outcome::Passed, "the decoy");
    let rest = format!("b\r\nX-API-Key: {KEY}\r\n\r\n");
    ensure!(send_at(&both, &connection, decoy.len(), rest.as_bytes())? == Outcome::Passed, "its end");
    let outcome = send_at(&both, &connection, 0, other)?;
    ensure!(matches!(outcome, Outcome::Reset(_)), "an unkeyed request in its place: {outcome:?}");
    // Likewise one that leads elsewhere without being wrong in itself, whole or in parts.
    for cut in [decoy.len(), decoy.len() - 1, 3] {
        let mut both = Both::new(&tables())?;
        let connection = both.connect(Shape::V4)?;
        let other = b"GET /u HTTP/1.1\r\nHost: t\r\nAbc";
        send_at(&both, &connection, 0, decoy)?;
        send_at(&both, &connection, decoy.len(), rest.as_bytes())?;
        let mut last = Outcome::Passed;
        for piece in [&other[..cut], &other[cut..]] {
            if last == Outcome::Passed && !piece.is_empty() {
                let at = if piece.len() == cut { 0 } else { cut };
                last = send_at(&both, &connection, at, piece)?;
            }
        }
        ensure!(matches!(last, Outcome::Reset(_)), "another text, cut at {cut}: {last:?}");
        ensure!(both.count(Count::Refused(Reason::Conflict))? == 1, "not counted as a conflict");
    }
    Ok(())
}

#[test]
fn who_has_its_key_for_a_client_id_pays_for_nobody_else() -> Result<()> {
    let mut name = [0; 32];
    name[..11].copy_from_slice(b"x-client-id");
    let client = std::array::from_fn(|word| u64::from_le_bytes(name[8 * word..][..8].try_into().unwrap_or_default()));
    let mut tables = tables().with_rules(Ruleset { unregistered: 9, client, client_len: 11, ..Ruleset::default() });
    tables.policies.insert(9, policy(&[sliding(100, HOUR)]));
    let head = |key: &str| format!("GET / HTTP/1.1\r\nX-API-Key: {key}\r\nX-Client-Id: {key}\r\n\r\n").into_bytes();
    let mut both = Both::new(&tables)?;
    let connection = both.connect(Shape::V4)?;
    ensure!(send_at(&both, &connection, 0, &head("made_up_key1"))? == Outcome::Passed, "a key that is not registered");
    // In its place, before it was taken, one that is no good, and just as long.
    let outcome = send_at(&both, &connection, 0, &head(DISABLED))?;
    ensure!(matches!(outcome, Outcome::Reset(_)), "a disabled key in its place: {outcome:?}");
    Ok(())
}

#[test]
fn a_copy_that_runs_on_past_a_judged_stretch_passes_only_up_to_its_end() -> Result<()> {
    let mut both = Both::new(&tables())?;
    let connection = both.connect(Shape::V6)?;
    let stream = [get("/", Some(KEY)), get("/b", Some(KEY))].concat();
    for (begin, end) in [(0, 10), (10, 30), (30, stream.len())] {
        ensure!(send_at(&both, &connection, begin, &stream[begin..end])? == Outcome::Passed, "{begin}..{end}");
    }
    let outcome = send_at(&both, &connection, 0, &stream)?;
    ensure!(outcome == Outcome::Cut(10), "the whole again: {outcome:?}");
    let outcome = send_at(&both, &connection, 10, &stream[10..25])?;
    ensure!(outcome == Outcome::Passed, "a part: {outcome:?}");
    let outcome = send_at(&both, &connection, 20, &stream[20..30])?;
    ensure!(outcome == Outcome::Dropped, "from where nothing is known: {outcome:?}");
    let outcome = send_at(&both, &connection, 25, &stream[25..])?;
    ensure!(outcome == Outcome::Cut(5), "from the new end on: {outcome:?}");
    ensure!(both.count(Count::Event(Event::Forgotten))? == 1, "not counted as forgotten");
    Ok(())
}

#[test]
fn bytes_of_a_body_that_are_sent_again_pass_and_what_is_new_behind_them_is_judged() -> Result<()> {
    let mut both = Both::new(&tables())?;
    let head = format!("POST /u HTTP/1.1\r\nX-API-Key: {KEY}\r\nContent-Length: 400\r\n\r\n").into_bytes();
    let body = vec![b'b'; 400];
    let unkeyed = get("/", None);
    let mut connection = both.connect(Shape::V4)?;
    let begin = connection.seq;
    ensure!(both.send(&mut connection, &head)? == Outcome::Passed, "the head");
    let first = connection.seq;
    ensure!(both.send(&mut connection, &body[..200])? == Outcome::Passed, "half of the body");
    connection.seq = first;
    ensure!(both.send(&mut connection, &body[..200])? == Outcome::Passed, "the same half again");
    connection.seq = first.wrapping_add(100);
    ensure!(both.send(&mut connection, &body[100..300])? == Outcome::Passed, "some of it again, and more");
    connection.seq = begin;
    ensure!(both.send(&mut connection, &head)? == Outcome::Passed, "the head again");
    // Known bytes, the rest of the body and two requests behind it, of which the second is not keyed.
    connection.seq = first.wrapping_add(250);
    let keyed = get("/", Some(KEY));
    let outcome = both.send(&mut connection, &[&body[250..], &keyed[..], &unkeyed[..]].concat())?;
    ensure!(outcome == Outcome::Cut(150 + keyed.len()), "known and new bytes together: {outcome:?}");
    ensure!(both.count(Count::Event(Event::Allowed))? == 2, "{}", both.count(Count::Event(Event::Allowed))?);
    connection.seq = first.wrapping_add(400 + keyed.len() as u32);
    let next = connection.seq;
    ensure!(both.send(&mut connection, &unkeyed)? == Outcome::Reset(next), "the unkeyed request, sent again");
    Ok(())
}

#[test]
fn a_refused_request_that_is_sent_again_is_refused_again_and_counted_once() -> Result<()> {
    let mut both = Both::new(&tables())?;
    let request = get("/", None);
    let mut connection = both.connect(Shape::V4)?;
    let begin = connection.seq;
    ensure!(both.send(&mut connection, &request)? == Outcome::Reset(begin), "the first time");
    for _ in 0..6 {
        connection.seq = begin;
        let outcome = both.send(&mut connection, &request)?;
        ensure!(matches!(outcome, Outcome::Reset(_) | Outcome::Stripped | Outcome::Dropped), "sent again: {outcome:?}");
    }
    // Nor does anything else of it go on.
    let outcome = both.send(&mut connection, &get("/", Some(KEY)))?;
    ensure!(!matches!(outcome, Outcome::Passed | Outcome::Cut(_)), "a keyed request behind it: {outcome:?}");
    ensure!(both.count(Count::Refused(Reason::Unkeyed))? == 1, "counted more than once");
    ensure!(both.count(Count::Event(Event::Allowed))? == 0, "something was allowed");
    Ok(())
}

#[test]
fn bytes_of_a_connection_whose_beginning_was_not_seen_do_not_pass() -> Result<()> {
    let both = Both::new(&tables())?;
    for shape in SHAPES {
        let mut connection = Connection { shape, port: 50_000, server: 8000, seq: 1 };
        let outcome = both.send(&mut connection, &get("/", Some(KEY)))?;
        ensure!(!matches!(outcome, Outcome::Passed | Outcome::Cut(_)), "{shape:?}: {outcome:?}");
    }
    ensure!(both.count(Count::Event(Event::Allowed))? == 0, "something was charged");
    Ok(())
}

#[test]
fn a_fin_inside_a_head_is_refused_and_one_behind_a_request_passes() -> Result<()> {
    let mut both = Both::new(&tables())?;
    let mut connection = both.connect(Shape::V4)?;
    ensure!(both.send(&mut connection, b"GET / HTTP/1.1\r\nHost: t\r\n")? == Outcome::Passed, "half a head");
    let fin = connection.frame(b"", flag::ACK | flag::FIN).build();
    let outcome = Outcome::of(&fin, 0, both.judge(&fin)?)?;
    ensure!(outcome == Outcome::Reset(connection.seq), "a FIN inside a head: {outcome:?}");
    ensure!(both.count(Count::Refused(Reason::FinInHead))? == 1, "not counted");

    let connection = both.connect(Shape::V4)?;
    let last = connection.frame(&get("/", Some(KEY)), flag::ACK | flag::PSH | flag::FIN).build();
    ensure!(both.judge(&last)? == Fate::Passed(last), "a request with a FIN");
    Ok(())
}

#[test]
fn urgent_data_data_in_a_syn_and_data_without_an_acknowledgement_do_not_pass() -> Result<()> {
    let mut both = Both::new(&tables())?;
    for (count, flags) in (1..).zip([flag::SYN, flag::PSH, 0]) {
        let connection = both.connect(Shape::V4)?;
        let frame = connection.frame(&get("/", Some(KEY)), flags).build();
        ensure!(both.judge(&frame)? == Fate::Dropped, "flags {flags:#x} passed");
        ensure!(both.count(Count::Refused(Reason::Unorderly))? == count, "flags {flags:#x} were not counted");
    }
    // Urgent data that is next in order frees the receiver; any other ends nobody's connection.
    let mut connection = both.connect(Shape::V4)?;
    ensure!(both.send(&mut connection, b"GET / HTTP/1.1\r\n")? == Outcome::Passed, "the begin of a head");
    let request = get("/", Some(KEY));
    let ahead = Frame { seq: connection.seq.wrapping_add(1), ..connection.frame(&request, flag::ACK | flag::URG) };
    ensure!(both.judge(&ahead.build())? == Fate::Dropped, "urgent data ahead was not dropped");
    let next = connection.frame(&request, flag::ACK | flag::URG).build();
    let outcome = Outcome::of(&next, request.len(), both.judge(&next)?)?;
    ensure!(outcome == Outcome::Reset(connection.seq), "urgent data in order: {outcome:?}");
    both.watch(&connection.accepts(connection.seq))?;
    let outcome = both.send(&mut connection, &request)?;
    ensure!(outcome == Outcome::Stripped, "what came behind it: {outcome:?}");
    ensure!(both.count(Count::Refused(Reason::Unorderly))? == 5, "urgent data was not counted");
    Ok(())
}

#[test]
fn fragments_and_frames_that_cannot_be_parsed_are_dropped_and_counted() -> Result<()> {
    let mut both = Both::new(&tables())?;
    let connection = both.connect(Shape::V4)?;
    let request = get("/", Some(KEY));
    let first = Frame { fragment: 0x2000, ..connection.frame(&request, flag::ACK) }.build();
    ensure!(both.judge(&first)? == Fate::Dropped, "a first fragment passed");
    let six = both.connect(Shape::V6)?;
    let extension = vec![0, 0, 1, 0, 0, 0, 1];
    let first = Frame { extensions: vec![(44, extension)], ..six.frame(&request, flag::ACK) }.build();
    ensure!(both.judge(&first)? == Fate::Dropped, "a first fragment of IPv6 passed");
    ensure!(both.count(Count::Refused(Reason::Fragment))? == 2, "fragments were not counted");

    let tags = [(QINQ, 1), (VLAN, 2), (VLAN, 3)];
    let deep = connection.frame(&request, flag::ACK).tagged(&tags).build();
    ensure!(both.judge(&deep)? == Fate::Dropped, "three VLAN tags passed");
    let padding = vec![0, 1, 4, 0, 0, 0, 0];
    let long = Frame { extensions: vec![(60, padding); 12], ..six.frame(&request, flag::ACK) }.build();
    ensure!(both.judge(&long)? == Fate::Dropped, "twelve extension headers passed");
    ensure!(both.count(Count::Refused(Reason::Unparsable))? == 2, "unparsable frames were not counted");
    Ok(())
}

#[test]
fn the_payload_ends_at_the_ip_length_not_at_the_frames_end() -> Result<()> {
    let mut both = Both::new(&tables())?;
    let request = b"GET / HTTP/1.1\r\nHost: t\r\n\r\n";
    let connection = both.connect(Shape::V4)?;
    let trailer = format!("X-API-Key: {KEY}\r\n\r\n").into_bytes();
    let frame = Frame { trailer, ..connection.frame(request, flag::ACK) }.build();
    let Fate::Passed(bytes) = both.judge(&frame)? else { anyhow::bail!("the frame was dropped") };
    ensure!(read(&bytes)?.0.rst, "an unkeyed request passed on a key behind the packet's end");
    ensure!(both.count(Count::Refused(Reason::Unkeyed))? == 1, "not counted as unkeyed");
    Ok(())
}

#[test]
fn ports_that_are_not_guarded_and_other_protocols_are_untouched() -> Result<()> {
    let both = Both::new(&tables())?;
    let client = SocketAddr::from(([10, 9, 0, 1], 40_000));
    let other = SocketAddr::from(([10, 9, 0, 2], 8001));
    let answer = Frame::data(SocketAddr::from(([10, 9, 0, 2], 8000)), client, 1, b"HTTP/1.1 200 OK\r\n\r\n").build();
    let unguarded = Frame::data(client, other, 1, &get("/", None)).build();
    let urgent = Frame { flags: flag::URG | flag::SYN, ..Frame::data(client, other, 1, b"x") }.build();
    let mut udp = Frame::data(client, SocketAddr::from(([10, 9, 0, 2], 8000)), 1, b"x").build();
    udp[23] = 17;
    let arp = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], &[8, 6], &[0; 46]].concat();
    for frame in [answer, unguarded, urgent, udp, arp, vec![0xff; 14], vec![0; 60]] {
        ensure!(both.judge(&frame)? == Fate::Passed(frame.clone()), "touched: {frame:02x?}");
    }
    ensure!(both.totals()?.iter().all(|&total| total == 0), "something was counted");
    Ok(())
}

#[test]
fn frames_of_random_bytes_and_damaged_frames_are_judged_alike() -> Result<()> {
    if !super::takes_any_frame(module_path!()) {
        return Ok(());
    }
    let mut both = Both::new(&tables())?;
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..3000 {
        let shape = SHAPES[random() as usize % SHAPES.len()];
        let connection = both.connect(shape)?;
        let mut frame = connection.data(&get("/", (round % 2 == 0).then_some(KEY)));
        for _ in 0..=random() % 4 {
            // Mostly in the headers, where a frame is taken apart.
            let at = random() as usize % if random() % 4 == 0 { frame.len() } else { 100.min(frame.len()) };
            frame[at] = random() as u8;
        }
        if random() % 8 == 0 {
            frame.truncate(14 + random() as usize % (frame.len() - 14));
        }
        both.judge(&frame)?;
    }
    both.count(Count::Event(Event::Allowed))?;
    Ok(())
}

#[test]
fn the_principals_of_a_tenant_share_its_limit() -> Result<()> {
    let mut tables = tables();
    tables.policies.insert(9, policy(&[sliding(3, HOUR)]));
    for principal in [2, 3] {
        let own = tables.policies.get_mut(&principal).context("no such principal")?;
        (own.tenant, own.tenant_scope) = (9, scope::ROUTES as u32);
    }
    let mut both = Both::new(&tables)?;
    let refused = Outcome::Reset(BEGIN.wrapping_add(1));
    for (key, expected) in [
        ("other_key_2", Outcome::Passed),
        ("other_key_3", Outcome::Passed),
        ("other_key_2", Outcome::Passed),
        ("other_key_3", refused.clone()),
        ("other_key_2", refused),
        (KEY, Outcome::Passed),
    ] {
        let outcome = both.stream(Shape::V4, [&get("/", Some(key))[..]])?;
        ensure!(outcome == expected, "{key}: {outcome:?}");
    }
    ensure!(both.count(Count::Refused(Reason::OverLimit))? == 2, "refusals were counted otherwise");
    Ok(())
}

#[test]
fn who_comes_when_all_places_are_taken_shares_one_and_is_counted() -> Result<()> {
    let mut tables = tables();
    tables.policies.insert(9, policy(&[sliding(2, HOUR)]));
    for value in ["other_key_2", "other_key_3", FEW] {
        let tag = enforcer_ebpf::key::tag(enforcer_tests::reader::SECRET, value.as_bytes());
        tables.keys.get_mut(&tag).context("no such key")?.policy = 9;
    }
    // Of all places one is free.
    let others = u64::from(BUCKETS) - tables.opened().len() as u64 - 2;
    tables.named.push(Scope { rule: scope::KEY, subject: [0, scope::OVERFLOW] });
    tables.named.extend((0..others).map(|number| Scope { rule: scope::KEY, subject: [number, 0] }));
    let mut both = Both::new(&tables)?;
    let refused = Outcome::Reset(BEGIN.wrapping_add(1));
    for (number, (key, expected)) in [
        ("other_key_2", Outcome::Passed),
        ("other_key_3", Outcome::Passed),
        (FEW, Outcome::Passed),
        ("other_key_3", refused.clone()),
        (FEW, refused.clone()),
        ("other_key_2", Outcome::Passed),
        ("other_key_2", refused),
        // One limit fewer, and no place is needed.
        (KEY, Outcome::Passed),
    ]
    .into_iter()
    .enumerate()
    {
        let outcome = both.stream(Shape::V4, [&get("/", Some(key))[..]])?;
        ensure!(outcome == expected, "request {number}, {key}: {outcome:?}");
    }
    let counted = both.count(Count::Event(Event::BucketOverflow))?;
    ensure!(counted == 4, "counted: {counted}");
    Ok(())
}

/// A request with a key, told to come from there.
fn forwarded(key: Option<&str>, source: &str) -> Vec<u8> {
    let mut request = get("/", key);
    request.truncate(request.len() - 2);
    request.extend(format!("X-Forwarded-For: {source}\r\n\r\n").into_bytes());
    request
}

/// Tables in which the IPv4 client is a trusted proxy, and each source has one request.
fn behind_a_proxy() -> Tables {
    let mut tables = tables().with_rules(Ruleset { trusts: 2, source: 9, ..Ruleset::default() });
    tables.policies.insert(9, policy(&[sliding(1, HOUR)]));
    let proxy = Connection { shape: Shape::V4, port: 1, server: 8000, seq: 0 };
    tables.proxies.insert(tuple(proxy.client(), proxy.server()).mapped_source(), 3);
    tables
}

#[test]
fn limits_by_source_are_by_the_address_that_a_trusted_proxy_tells() -> Result<()> {
    let mut both = Both::new(&behind_a_proxy())?;
    let refused = Outcome::Reset(BEGIN.wrapping_add(1));
    let key = Some("other_key_3");
    let one = forwarded(key, "192.0.2.1");
    for (shape, request, expected) in [
        (Shape::V4, &one, Outcome::Passed),
        (Shape::V4, &one, refused.clone()),
        (Shape::V4, &forwarded(key, "192.0.2.2, [::ffff:10.9.0.1]:80"), Outcome::Passed),
        (Shape::V4, &forwarded(key, "192.0.2.3, 192.0.2.2"), refused.clone()),
        (Shape::V4, &forwarded(key, "192.0.2.4, unknown"), Outcome::Passed),
        (Shape::V4, &get("/", key), refused.clone()),
        (Shape::V6, &forwarded(key, "192.0.2.5"), Outcome::Passed),
        (Shape::V6, &forwarded(key, "192.0.2.6"), refused),
        (Shape::V4, &forwarded(key, "192.0.2.5"), Outcome::Passed),
    ] {
        let outcome = both.stream(shape, [&request[..]])?;
        ensure!(outcome == expected, "{}: {outcome:?}", String::from_utf8_lossy(request));
    }
    ensure!(both.count(Count::Refused(Reason::OverLimit))? == 4, "refusals were counted otherwise");
    Ok(())
}

#[test]
fn a_proxy_that_other_rules_trust_is_not_believed() -> Result<()> {
    let mut tables = behind_a_proxy();
    for sets in tables.proxies.values_mut() {
        *sets = 1;
    }
    let mut both = Both::new(&tables)?;
    let key = Some("other_key_3");
    ensure!(both.stream(Shape::V4, [&forwarded(key, "192.0.2.1")[..]])? == Outcome::Passed, "the first of the peer");
    let outcome = both.stream(Shape::V4, [&forwarded(key, "192.0.2.2")[..]])?;
    ensure!(outcome == Outcome::Reset(BEGIN.wrapping_add(1)), "{outcome:?} for another address that it tells");
    Ok(())
}

#[test]
fn what_a_trusted_proxy_hands_on_brings_it_no_penalty() -> Result<()> {
    let mut tables = behind_a_proxy();
    let service = tables.services.entry(8000).or_insert(Service::DEFAULT);
    (service.tolerated_per_second, service.penalty_ns, service.penalty_most_ns) = (5, HOUR, HOUR);
    let mut both = Both::new(&tables)?;
    let bad = forwarded(None, "fd09::1");
    for _ in 0..10 {
        let outcome = both.stream(Shape::V4, [&bad[..]])?;
        ensure!(outcome == Outcome::Reset(BEGIN.wrapping_add(1)), "{outcome:?}");
    }
    ensure!(both.count(Count::Event(Event::Penalty))? == 0, "a proxy has a penalty, or who it tells of");
    ensure!(both.stream(Shape::V4, [&forwarded(Some(KEY), "192.0.2.1")[..]])? == Outcome::Passed, "nobody is served");
    for _ in 0..10 {
        // Once it has its penalty, its connections do not begin.
        drop(both.stream(Shape::V6, [&bad[..]]));
    }
    ensure!(both.count(Count::Event(Event::Penalty))? == 1, "another client has none");
    ensure!(both.count(Count::Event(Event::Penalised))? > 0, "its connections begin");
    Ok(())
}

/// Tables in which the IPv4 client is a trusted proxy that sends a header of the version of this flag, and each source has
/// one request.
fn behind_a_header(version: u32) -> Tables {
    let mut tables = behind_a_proxy();
    let rules = Ruleset { flags: version, trusts: 2, source: 9, ..Ruleset::default() };
    tables = tables.with_rules(rules);
    tables
}

/// A header of version 1 that tells this IPv4 address.
fn header(source: &str) -> Vec<u8> {
    format!("PROXY TCP4 {source} 10.9.0.2 4000 8000\r\n").into_bytes()
}

/// One of version 2.
fn binary_header(source: [u8; 4]) -> Vec<u8> {
    let lead = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x10";
    [&lead[..], &source, &[10, 9, 0, 2, 0, 1, 0, 80], &[4, 0, 1, 0]].concat()
}

#[test]
fn limits_by_source_are_by_the_address_in_a_header_however_it_is_cut() -> Result<()> {
    let request = get("/", Some("other_key_3"));
    let refused = Outcome::Reset(BEGIN.wrapping_add(1));
    for (version, one, other) in [
        (Ruleset::PROXY_1, header("192.0.2.1"), header("192.0.2.2")),
        (Ruleset::PROXY_2, binary_header([192, 0, 2, 1]), binary_header([192, 0, 2, 2])),
    ] {
        let mut both = Both::new(&behind_a_header(version))?;
        let one = [&one[..], &request].concat();
        let other = [&other[..], &request].concat();
        ensure!(both.stream(Shape::V4, [&one[..]])? == Outcome::Passed, "the first of a source");
        ensure!(both.stream(Shape::V4, [&one[..]])? == refused, "its second");
        let (first, second) = other.split_at(9);
        ensure!(both.stream(Shape::V4, [first, second])? == Outcome::Passed, "another source, cut");
        ensure!(both.stream(Shape::V4, [&other[..]])? == refused, "its second");
        let mut last = Outcome::Passed;
        for byte in 0..one.len() - request.len() {
            let (first, second) = one.split_at(byte);
            last = both.stream(Shape::V4, [first, second])?;
            let begin = BEGIN.wrapping_add(1 + byte as u32);
            ensure!(last == Outcome::Reset(begin), "cut at {byte}: {last:?}");
        }
        ensure!(last != Outcome::Passed, "nothing was cut");
        // What is told within the stream, by a client, is no header.
        ensure!(both.stream(Shape::V4, [&[&other[..], &one].concat()[..]])? != Outcome::Passed, "a header further on");
    }
    Ok(())
}

#[test]
fn a_trusted_proxy_that_sends_no_header_is_refused_and_a_header_of_anybody_else_too() -> Result<()> {
    let mut both = Both::new(&behind_a_header(Ruleset::PROXY_1))?;
    let request = get("/", Some("other_key_3"));
    let whole = [&header("192.0.2.1")[..], &request].concat();
    let refused = Outcome::Reset(BEGIN.wrapping_add(1));
    let binary = [&binary_header([192, 0, 2, 1])[..], &request].concat();
    for bytes in [&request[..], &binary, &b"PROXY TCP4 192.0.2.1 10.9.0.2 4000 99999\r\n"[..]] {
        ensure!(both.stream(Shape::V4, [bytes])? == refused, "{}", bytes.escape_ascii());
    }
    ensure!(both.count(Count::Refused(Reason::ProxyHeader))? == 3, "refused for another reason");
    ensure!(both.stream(Shape::V6, [&whole[..]])? == refused, "a header of a peer that is not trusted");
    ensure!(both.count(Count::Refused(Reason::Malformed))? == 1, "refused for another reason");
    ensure!(both.stream(Shape::V6, [&request[..]])? == Outcome::Passed, "a peer that is not trusted sends none");
    ensure!(both.stream(Shape::V4, [&whole[..]])? == Outcome::Passed, "nothing of all that was charged");
    // Its end within the header is none of a request either; a proxy that only tries the port is no attack.
    let mut connection = both.connect(Shape::V4)?;
    let tried = connection.frame(b"", flag::ACK | flag::FIN).build();
    ensure!(both.judge(&tried)? == Fate::Passed(tried), "an end without a byte");
    connection = both.connect(Shape::V4)?;
    ensure!(both.send(&mut connection, b"PROXY UNK")? == Outcome::Passed, "the first bytes of a header");
    let ended = connection.frame(b"", flag::ACK | flag::FIN).build();
    ensure!(both.judge(&ended)? != Fate::Passed(ended), "an end within a header");
    ensure!(both.count(Count::Refused(Reason::FinInHead))? == 1, "refused for another reason");
    Ok(())
}

#[test]
fn a_header_that_was_judged_cannot_be_replaced() -> Result<()> {
    let refused = Outcome::Reset(BEGIN.wrapping_add(1));
    let request = get("/", Some("other_key_3"));
    for (version, one, other) in [
        (Ruleset::PROXY_1, header("192.0.2.1"), header("192.0.2.2")),
        (Ruleset::PROXY_2, binary_header([192, 0, 2, 1]), binary_header([192, 0, 2, 2])),
    ] {
        let mut both = Both::new(&behind_a_header(version))?;
        let [one, other] = [one, other].map(|header| (header.len(), [&header[..], &request].concat()));
        // Alone, and with its request.
        for len in [one.0, one.1.len()] {
            let mut connection = both.connect(Shape::V4)?;
            let begin = connection.seq;
            let first = both.send(&mut connection, &one.1[..len])?;
            if first == refused {
                // Its source has had its request: the header is refused with it, and another in its place is as well.
                connection.seq = begin;
                ensure!(both.send(&mut connection, &other.1)? != Outcome::Passed, "behind a refusal");
                continue;
            }
            ensure!(first == Outcome::Passed, "{first:?}");
            connection.seq = begin;
            ensure!(both.send(&mut connection, &one.1[..len])? == Outcome::Passed, "the same again");
            connection.seq = begin;
            ensure!(both.send(&mut connection, &other.1[..len])? == refused, "another in its place, {len} bytes");
            ensure!(both.send(&mut connection, &request)? != Outcome::Passed, "what follows");
        }
        ensure!(both.count(Count::Refused(Reason::Conflict))? == 2, "refused for another reason");
    }
    Ok(())
}

#[test]
fn guesses_that_are_counted_only_keep_nobody_out_any_more() -> Result<()> {
    let rules = Ruleset { guesses: 9, guess_penalty_ns: HOUR, flags: Ruleset::STRICT_GUESSES, ..Ruleset::default() };
    let mut tables = tables().with_rules(rules);
    tables.policies.insert(9, policy(&[sliding(2, HOUR)]));
    let observed = Policy { flags: Policy::IN_USE | Policy::OBSERVE, ..policy(&[sliding(2, HOUR)]) };
    tables.policies.insert(10, observed);
    let mut both = Both::new(&tables)?;
    let (guess, good) = (get("/", Some("never_registered")), get("/", Some(KEY)));
    for _ in 0..3 {
        both.stream(Shape::V4, [&guess[..]])?;
    }
    ensure!(both.stream(Shape::V4, [&good[..]])? != Outcome::Passed, "its good keys are refused as well");
    ensure!(both.count(Count::Refused(Reason::Guessing))? == 2, "the third guess, and the good key");
    // The same limit, which refuses nobody now.
    tables.rulesets.insert(1, Ruleset { guesses: 10, guess_penalty_ns: 0, ..rules });
    both.write_rules(&tables)?;
    ensure!(both.stream(Shape::V4, [&good[..]])? == Outcome::Passed, "a good key is refused still");
    both.stream(Shape::V4, [&guess[..]])?;
    ensure!(both.count(Count::Refused(Reason::UnknownKey))? == 3, "a guess is one again");
    // A bad key of somebody's is a guess of its source, and no request of theirs that a limit would have refused.
    both.stream(Shape::V4, [&get("/", Some(DISABLED))[..]])?;
    let meter = both.meter(1)?;
    ensure!((meter.denied, meter.would_refuse) == (2, 0), "counted for its principal: {meter:?}");
    Ok(())
}

#[test]
fn what_comes_behind_a_header_brings_its_proxy_no_penalty() -> Result<()> {
    let mut tables = behind_a_header(Ruleset::PROXY_1);
    let service = tables.services.entry(8000).or_insert(Service::DEFAULT);
    (service.tolerated_per_second, service.penalty_ns, service.penalty_most_ns) = (5, HOUR, HOUR);
    let mut both = Both::new(&tables)?;
    for bad in [[&header("192.0.2.9")[..], &get("/", None)].concat(), get("/", None)] {
        for _ in 0..10 {
            let outcome = both.stream(Shape::V4, [&bad[..]])?;
            ensure!(outcome == Outcome::Reset(BEGIN.wrapping_add(1)), "{outcome:?}");
        }
    }
    ensure!(both.count(Count::Event(Event::Penalty))? == 0, "a proxy has a penalty, or who it tells of");
    Ok(())
}

/// Tables of two services, on ports 8000 and 8001, under rules that say the same.
fn two_services(rules: Ruleset) -> Tables {
    let mut tables = tables().with_rules(rules);
    tables.policies.insert(9, policy(&[sliding(3, HOUR)]));
    let first = tables.services[&8000];
    tables.rulesets.insert(2, rules);
    tables.services.insert(8001, Service { rules: 2, number: 5, leader: 5, ..first });
    tables
}

#[test]
fn what_one_service_counts_is_not_another_s_but_a_principal_is_the_same_to_both() -> Result<()> {
    let spread = Spread { most: 1, action: SpreadAction::Limit as u32, window: HOUR };
    let key = |number: u32| get("/", Some(&format!("other_key_{number}")));
    let refused = Outcome::Reset(BEGIN.wrapping_add(1));
    // Each of these lets three of one source through, or one key of it, or one source of a key.
    for (rules, requests, passes, reason) in [
        (Ruleset { source: 9, ..Ruleset::default() }, vec![key(3); 4], 3, Reason::OverLimit),
        (Ruleset { service: 9, ..Ruleset::default() }, vec![key(3); 4], 3, Reason::OverLimit),
        (Ruleset { keys_of_source: spread, ..Ruleset::default() }, vec![key(3), key(2)], 1, Reason::KeyRotation),
        (
            Ruleset { guesses: 9, guess_penalty_ns: HOUR, ..Ruleset::default() },
            vec![get("/", Some("never_registered")); 4],
            0,
            Reason::Guessing,
        ),
    ] {
        let mut both = Both::new(&two_services(rules))?;
        for (place, port) in [8000, 8001].into_iter().enumerate() {
            both.port = port;
            for (number, request) in requests.iter().enumerate() {
                let expected = if number < passes { Outcome::Passed } else { refused.clone() };
                let outcome = both.stream(Shape::V4, [&request[..]])?;
                ensure!(outcome == expected, "{reason:?} at {port}, request {number}: {outcome:?}");
            }
            let counts = both.host.totals_by_service();
            let of = |count: Count| counts.iter().map(|totals| totals[count.index() as usize]).collect::<Vec<_>>();
            let expected = if place == 0 { [1, 0] } else { [1, 1] };
            ensure!(of(Count::Refused(reason)) == expected, "{reason:?} at {port}: {:?}", of(Count::Refused(reason)));
        }
        both.totals()?;
    }
    // Sources of one key, from two addresses.
    let mut both = Both::new(&two_services(Ruleset { sources_of_key: spread, ..Ruleset::default() }))?;
    for port in [8000, 8001] {
        both.port = port;
        ensure!(both.stream(Shape::V4, [&key(3)[..]])? == Outcome::Passed, "the first source of the key at {port}");
        ensure!(both.stream(Shape::V6, [&key(3)[..]])? == refused, "its second");
    }
    // A principal of three requests.
    let mut both = Both::new(&two_services(Ruleset::default()))?;
    for (port, expected) in
        [(8000, &Outcome::Passed), (8001, &Outcome::Passed), (8000, &Outcome::Passed), (8001, &refused)]
    {
        both.port = port;
        ensure!(both.stream(Shape::V4, [&get("/", Some(FEW))[..]])? == *expected, "at {port}");
    }
    Ok(())
}

#[test]
fn sources_without_room_are_one_in_each_service() -> Result<()> {
    // No new source is let in at all: all share what a service has for such.
    let rules = Ruleset { source: 9, admission: 10, ..Ruleset::default() };
    let mut tables = two_services(rules);
    tables.policies.insert(10, policy(&[sliding(0, HOUR)]));
    let mut both = Both::new(&tables)?;
    let refused = Outcome::Reset(BEGIN.wrapping_add(1));
    for port in [8000, 8001] {
        both.port = port;
        for (shape, expected) in [
            (Shape::V4, &Outcome::Passed),
            (Shape::V6, &Outcome::Passed),
            (Shape::V4, &Outcome::Passed),
            (Shape::V6, &refused),
        ] {
            let outcome = both.stream(shape, [&get("/", Some("other_key_3"))[..]])?;
            ensure!(outcome == *expected, "{shape:?} at {port}: {outcome:?}");
        }
    }
    Ok(())
}

#[test]
fn strangers_are_counted_by_source_or_by_key_in_each_service() -> Result<()> {
    let refused = Outcome::Reset(BEGIN.wrapping_add(1));
    let plain = get("/", None);
    let stranger = |number: u32| get("/", Some(&format!("never_registered_{number}")));
    // Of each source three pass without a key.
    let mut both = Both::new(&two_services(Ruleset { unkeyed: 9, ..Ruleset::default() }))?;
    for (port, shape) in [(8000, Shape::V4), (8001, Shape::V4), (8000, Shape::V6)] {
        both.port = port;
        for number in 0..5 {
            let expected = if number < 3 { &Outcome::Passed } else { &refused };
            let outcome = both.stream(shape, [&plain[..]])?;
            ensure!(outcome == *expected, "{shape:?} at {port}, request {number}: {outcome:?}");
        }
        ensure!(both.stream(shape, [&stranger(0)[..]])? == refused, "a key that nobody knows passes");
    }
    ensure!(both.count(Count::Event(Event::Unkeyed))? == 15, "those without a key");
    // Of each key that is not registered three pass, wherever it comes from; of two that are let in, and of all others together.
    let rules = Ruleset { unregistered: 9, unregistered_admission: 10, ..Ruleset::default() };
    let mut tables = two_services(rules);
    tables.policies.insert(10, policy(&[sliding(2, HOUR)]));
    let mut both = Both::new(&tables)?;
    for port in [8000, 8001] {
        both.port = port;
        for (number, passes) in [(0, 3), (1, 3), (2, 3), (3, 0), (1, 0)] {
            for request in 0..4 {
                let shape = if request % 2 == 0 { Shape::V4 } else { Shape::V6 };
                let expected = if request < passes { &Outcome::Passed } else { &refused };
                let outcome = both.stream(shape, [&stranger(number)[..]])?;
                ensure!(outcome == *expected, "key {number} at {port}, request {request}: {outcome:?}");
            }
        }
        ensure!(both.stream(Shape::V4, [&plain[..]])? == refused, "no key at all passes");
        for key in [DISABLED, EXPIRED] {
            ensure!(both.stream(Shape::V4, [&get("/", Some(key))[..]])? == refused, "{key} passes");
        }
        ensure!(both.stream(Shape::V4, [&get("/", Some(KEY))[..]])? == Outcome::Passed, "a principal");
    }
    ensure!(both.count(Count::Event(Event::UnregisteredOverflow))? == 16, "those without a count of their own");
    ensure!(both.count(Count::Event(Event::Unregistered))? == 40, "those with a key that is not registered");
    both.totals()?;
    Ok(())
}

#[test]
fn a_penalty_of_one_service_keeps_nobody_out_of_another() -> Result<()> {
    let mut tables = two_services(Ruleset::default());
    for service in tables.services.values_mut() {
        (service.tolerated_per_second, service.penalty_ns, service.penalty_most_ns) = (5, HOUR, HOUR);
    }
    let mut both = Both::new(&tables)?;
    for _ in 0..10 {
        // Once it has its penalty, its connections do not begin.
        drop(both.stream(Shape::V4, [&get("/", None)[..]]));
    }
    ensure!(both.connect(Shape::V4).is_err(), "it is let in");
    both.port = 8001;
    ensure!(both.stream(Shape::V4, [&get("/", Some(KEY))[..]])? == Outcome::Passed, "the other service");
    Ok(())
}
