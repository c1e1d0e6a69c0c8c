//! What clients are sent, and the packets of kept connections: the bytes of the loaded program beside those of the library,
//! and both beside what another implementation reads in them.
//!
//! The program sends to the interface that the packet came by, in a test run `lo`: there its letters are heard. Packets that
//! leave are the library's alone: the kernel gives those of a test run no socket, and only a socket's are translated.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use enforcer_ebpf::abi::{AnswerKind, Service};
use enforcer_ebpf::flow::{self, receiver};
use enforcer_ebpf::verdict::{Action, Count, Event};
use enforcer_tests::bucket::sliding;
use enforcer_tests::client::get;
use enforcer_tests::corpus::KEY;
use enforcer_tests::kernel::{Loaded, Program, boot};
use enforcer_tests::netns::Namespace;
use enforcer_tests::packet::{Frame, flag};
use enforcer_tests::peer::{Listener, Peer};
use enforcer_tests::raw::{Received, Wire};
use enforcer_tests::receiver as stack;
use enforcer_tests::tables::Tables;
use enforcer_tests::world::{Fate, Host, tuple};

use super::HOUR;

const PORT: u16 = 8000;
const SETS: u32 = 16;
/// A key whose only request is used up by the first.
const FEW: &str = "key_of_a_single_request";
/// The client's timestamp, and its echo (RFC 7323).
const STAMPS: [u32; 2] = [0x0102_0304, 0xa1a2_a3a4];
/// Bytes of each response.
const RESPONSE: u32 = 300;
/// How long a letter is waited for.
const PATIENCE: Duration = Duration::from_millis(100);

fn tables() -> Tables {
    let head = |status: &str, more: &str| {
        format!("HTTP/1.1 {status}\r\nDate: {{date}}\r\n{more}Content-Length: 6\r\nConnection: {{connection}}\r\n\r\n")
    };
    let unauthorized = head("401 Unauthorized", "");
    let too_many =
        head("429 Too Many Requests", "Retry-After: {retry}\r\nRateLimit-Policy: \"a\";q={quota};w={window}\r\n");
    let mut tables = Tables::new()
        .with_key(KEY, 1, 0)
        .with_key(FEW, 2, 0)
        .with_limits(1, &[sliding(1_000_000, HOUR)])
        .with_limits(2, &[sliding(1, HOUR)])
        .with_answer(AnswerKind::Unauthorized as u32, &unauthorized, "none.\n")
        .with_answer(AnswerKind::TooManyRequests as u32, &too_many, "later\n");
    let service = Service {
        flags: Service::ANSWER | Service::KEEP,
        actions: [Action::Answer as u8; 32],
        ..tables.services[&PORT]
    };
    tables.services.insert(PORT, service);
    tables
}

/// A connection of a real socket, before the loaded program and the library.
struct Scene {
    kernel: Loaded,
    host: Host,
    wire: Wire,
    peer: Peer,
    client: SocketAddr,
    server: SocketAddr,
    /// The client's next byte, and what it acknowledges, as it counts.
    next: u32,
    seen: u32,
    /// What the server has received and written, as it counts.
    accepted: u32,
    written: u32,
    /// When the library's clock was last set by the kernel's.
    clock: Instant,
    /// When the first frame was judged.
    began: Option<Instant>,
}

impl Scene {
    fn new(listener: &Listener) -> Result<Self> {
        let (tables, peer) = (tables(), listener.connect()?);
        let scene = Self {
            kernel: Loaded::with_sockets(Program::Tc, &tables, SETS)?,
            host: Host::with_sets(&tables, SETS),
            wire: Wire::open("lo")?,
            client: peer.address(),
            server: listener.address(),
            next: peer.first(),
            seen: peer.acknowledges(),
            accepted: peer.first(),
            written: peer.acknowledges(),
            clock: Instant::now(),
            began: None,
            peer,
        };
        scene.tell();
        Ok(scene)
    }

    /// Tells the library what the socket is for the program.
    fn tell(&self) {
        let socket = flow::Receiver {
            state: receiver::STREAM,
            next: self.accepted,
            base: self.peer.first(),
            server: self.peer.acknowledges(),
            written: self.written,
        };
        self.host.tell(tuple(self.client, self.server), socket);
    }

    /// The client's next segment.
    fn segment(&self, flags: u8, bytes: &[u8]) -> Frame {
        let stamps = [&[1, 1, 8, 10][..], &STAMPS[0].to_be_bytes(), &STAMPS[1].to_be_bytes()].concat();
        let frame = Frame::data(self.client, self.server, self.next, bytes).acking(self.seen);
        Frame { flags, tcp_options: stamps, ..frame }
    }

    /// Hands both the frame; what becomes of it, and what its client is sent, which must be the same bytes of both.
    fn judge(&mut self, frame: &Frame) -> Result<(Fate, Option<Received>)> {
        // Both write seconds: of the clock since the boot, which nothing has set otherwise here, and since the first charge.
        // Near the end of one they need not write the same.
        let is_clear = |time: Duration| (50..700).contains(&time.subsec_millis());
        let mut date = boot()?;
        while !is_clear(date) || self.began.is_some_and(|began| !is_clear(began.elapsed())) {
            std::thread::sleep(Duration::from_millis(20));
            date = boot()?;
        }
        let now = Instant::now();
        self.host.wait(now.duration_since(std::mem::replace(&mut self.clock, now)).as_nanos() as u64);
        self.host.set_date(date.as_secs());
        self.began.get_or_insert_with(Instant::now);
        let frame = frame.build();
        while self.wire.receive(Instant::now())?.is_some() {}
        let (kernel, sent_back) = self.kernel.meet(&frame)?;
        let letter = if sent_back.is_some() { sent_back } else { self.letter()? };
        let (fate, modelled) = match self.host.judge(&frame) {
            Fate::Passed(bytes) => self.host.answer(&bytes),
            Fate::Dropped => (Fate::Dropped, None),
        };
        ensure!(kernel == fate, "of the kernel {kernel:02x?}\nof the library {fate:02x?}");
        ensure!(letter == modelled, "of the kernel {letter:02x?}\nof the library {modelled:02x?}");
        for bytes in letter.iter().chain(if let Fate::Passed(bytes) = &fate { Some(bytes) } else { None }) {
            ensure!(stack::read(bytes).is_some(), "no stack takes {bytes:02x?}");
        }
        let (kernel, model) = (self.kernel.totals_by_service()?, self.host.totals_by_service());
        ensure!(kernel == model, "the kernel counted {kernel:?}, the library {model:?}");
        letter.map(|bytes| Received::read(&bytes).context("no segment")).transpose().map(|letter| (fate, letter))
    }

    /// What the program has sent. Of the real connection's frames no end has a hardware address.
    fn letter(&mut self) -> Result<Option<Vec<u8>>> {
        let deadline = Instant::now() + PATIENCE;
        while let Some(frame) = self.wire.receive(deadline)? {
            if frame.starts_with(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]) {
                return Ok(Some(frame.to_vec()));
            }
        }
        Ok(None)
    }

    /// Sends a request that is served: it must reach the server as it counts, and is answered.
    fn serve(&mut self, request: &[u8]) -> Result<()> {
        let (fate, letter) = self.judge(&self.segment(flag::ACK | flag::PSH, request))?;
        let Fate::Passed(bytes) = fate else { anyhow::bail!("a good request did not pass") };
        let passed = Received::read(&bytes).context("no segment")?;
        ensure!(letter.is_none(), "the client was sent {letter:?}");
        ensure!((passed.seq, passed.ack) == (self.accepted, self.written), "passed as {passed:?}");
        ensure!(passed.payload == request, "passed with other bytes: {passed:?}");
        self.next = self.next.wrapping_add(request.len() as u32);
        self.accepted = self.accepted.wrapping_add(request.len() as u32);
        self.peer.send(request.len() as u32)?;
        self.peer.respond(RESPONSE)?;
        let response = Frame::data(self.server, self.client, self.written, &[b'r'; RESPONSE as usize]);
        self.written = self.written.wrapping_add(RESPONSE);
        self.tell();
        // It leaves as its client counts.
        let Fate::Passed(bytes) = self.host.leave(&response.acking(self.accepted).build()) else {
            anyhow::bail!("a response did not leave")
        };
        let left = Received::read(&bytes).context("no segment")?;
        ensure!(stack::read(&bytes).is_some(), "no stack takes {bytes:02x?}");
        ensure!((left.seq, left.ack) == (self.seen, self.next), "left as {left:?}");
        self.kernel.see_leaving(SETS)?;
        self.seen = self.seen.wrapping_add(RESPONSE);
        Ok(())
    }

    /// Sends a request that is refused, twice, as if the answer to the first was lost; gives the answer. What is behind it
    /// is not acknowledged.
    fn refuse(&mut self, request: &[u8], status: u16, keeps: bool) -> Result<Received> {
        let frame = self.segment(flag::ACK | flag::PSH, request);
        let (fate, letter) = self.judge(&frame)?;
        ensure!((fate == Fate::Dropped) == keeps, "behind a refused request the server is sent {fate:02x?}");
        let answer = letter.context("no answer")?;
        let (again, letter) = self.judge(&frame)?;
        ensure!(again == fate && letter.as_ref() == Some(&answer), "told again: {letter:?}, not {answer:?}");
        self.next = self.next.wrapping_add(request.len() as u32);
        ensure!((answer.seq, answer.ack, answer.fin) == (self.seen, self.next, !keeps), "the answer is {answer:?}");
        ensure!(answer.timestamp == Some(STAMPS[1]), "stamped {:?}", answer.timestamp);
        let text = String::from_utf8_lossy(&answer.payload);
        ensure!(text.starts_with(&format!("HTTP/1.1 {status} ")) && !text.contains('{'), "told {text}");
        let connection = if keeps { "Connection: keep-alive\r\n" } else { "Connection: close\r\n" };
        ensure!(text.contains(connection), "told {text}");
        self.seen = self.seen.wrapping_add(answer.payload.len() as u32 + u32::from(answer.fin));
        Ok(answer)
    }
}

/// Calls `play` with a new scene of each family.
fn scenes(play: impl Fn(Scene) -> Result<()> + Sync) -> Result<()> {
    let namespace = Namespace::new()?;
    namespace.run(|| {
        for ip in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
            let address = SocketAddr::new(ip, PORT);
            play(Scene::new(&Listener::new(address, false)?)?).with_context(|| address.to_string())?;
        }
        Ok(())
    })
}

#[test]
fn packets_of_kept_connections_and_their_answers_are_the_librarys() -> Result<()> {
    scenes(|mut scene| {
        let body = |key: Option<&str>| {
            let field = key.map(|key| format!("X-API-Key: {key}\r\n")).unwrap_or_default();
            format!("POST / HTTP/1.1\r\nHost: a\r\n{field}Content-Length: 700\r\n\r\n{}", "b".repeat(700)).into_bytes()
        };
        scene.serve(&get("/", Some(FEW)))?;
        for _ in 0..3 {
            scene.refuse(&get("/", None), 401, true)?;
            scene.serve(&body(Some(KEY)))?;
            let answer = scene.refuse(&get("/longer", Some(FEW)), 429, true)?;
            let text = String::from_utf8_lossy(&answer.payload);
            ensure!(text.contains("\"a\";q=1;w=3600\r\n"), "told {text}");
            scene.serve(&get("/", Some(KEY)))?;
            scene.refuse(&body(None), 401, true)?;
            scene.serve(&get("/", Some(KEY)))?;
        }
        // The last response was lost but for its end: that is acknowledged selectively, and in its client's numbers.
        let (first, end) = (scene.seen.wrapping_sub(100), scene.seen);
        let blocks = [&[1, 1, 5, 10][..], &first.to_be_bytes(), &end.to_be_bytes()].concat();
        let bare = scene.segment(flag::ACK, b"").acking(scene.seen.wrapping_sub(RESPONSE));
        let options = [bare.tcp_options.clone(), blocks].concat();
        let (fate, _) = scene.judge(&Frame { tcp_options: options, ..bare })?;
        let Fate::Passed(bytes) = fate else { anyhow::bail!("an acknowledgment did not pass") };
        let blocks = [&[1, 1, 5, 10][..], &(scene.written - 100).to_be_bytes(), &scene.written.to_be_bytes()].concat();
        ensure!(bytes.ends_with(&blocks), "translated to {bytes:02x?}, without {blocks:02x?}");
        // The client ends it.
        let (fate, _) = scene.judge(&scene.segment(flag::ACK | flag::FIN, b""))?;
        let Fate::Passed(bytes) = fate else { anyhow::bail!("a FIN did not pass") };
        let end = Received::read(&bytes).context("no segment")?;
        ensure!((end.seq, end.ack, end.fin) == (scene.accepted, scene.written, true), "it ends by {end:?}");
        let count = |event| scene.host.totals()[Count::Event(event).index() as usize];
        ensure!([count(Event::Answered), count(Event::AnsweredAgain)] == [9, 9], "answered otherwise");
        Ok(())
    })
}

#[test]
fn what_a_client_is_sent_behind_a_refused_first_request_is_the_librarys() -> Result<()> {
    scenes(|mut scene| {
        let head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 700\r\n\r\n";
        scene.refuse(head, 401, false)?;
        // The body comes late, and is acknowledged.
        for part in [400, 300] {
            let (fate, letter) = scene.judge(&scene.segment(flag::ACK | flag::PSH, &vec![b'b'; part]))?;
            scene.next = scene.next.wrapping_add(part as u32);
            let letter = letter.context("no acknowledgment")?;
            ensure!((letter.seq, letter.ack) == (scene.seen, scene.next), "acknowledged by {letter:?}");
            ensure!(letter.payload.is_empty() && !letter.rst && fate != Fate::Dropped, "{letter:?}, {fate:02x?}");
        }
        Ok(())
    })
}
