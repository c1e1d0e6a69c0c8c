//! The host's world for the judge: the kernel's part played by plain memory, to hold the loaded program against.

use std::cell::{Cell as StdCell, RefCell, RefMut};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

use enforcer_ebpf::abi::{Key, KeyTag, LIMITS, Meter, POINTS, Service, TOTALS};
use enforcer_ebpf::answer::{self, Letter, Post, Sheet, Text};
use enforcer_ebpf::flow::{Flow, Handshake, Mark, Place, Receiver, Set, Told};
use enforcer_ebpf::http::bytes::Window;
use enforcer_ebpf::judge::{self, Reading, Scratch, Sum, Tally, Verdict, World};
use enforcer_ebpf::limit;
use enforcer_ebpf::reply;
use enforcer_ebpf::source::{Level, Record, Source};
use enforcer_ebpf::verdict::Count;
use enforcer_ebpf::wire::{self, HEAD, Head, Segment, Tuple};

use crate::bucket::Shared;
use crate::reader::SECRET;
use crate::tables::Tables;

/// Sets of the table of connections, where a test does not say otherwise.
const SETS: u32 = 256;

/// What becomes of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Goes on as these bytes.
    Passed(Vec<u8>),
    /// Ends.
    Dropped,
}

/// All state that outlives a packet.
pub struct Host {
    tables: Tables,
    buckets: BTreeMap<u32, [Shared; LIMITS]>,
    meters: RefCell<BTreeMap<u32, Meter>>,
    totals: RefCell<[u64; TOTALS as usize]>,
    sets: Vec<RefCell<Set>>,
    marks: RefCell<BTreeMap<Place, Mark>>,
    payers: RefCell<BTreeMap<Place, KeyTag>>,
    handshakes: RefCell<HashMap<Tuple, Handshake>>,
    sockets: RefCell<Vec<(Tuple, Receiver)>>,
    sources: RefCell<BTreeMap<Source, Record>>,
    scratch: RefCell<Box<Scratch>>,
    sheet: RefCell<Box<Sheet>>,
    now: StdCell<u64>,
    unix: StdCell<u64>,
}

/// The followed connections of a set, with their hashes.
pub fn flows(set: &Set) -> Vec<(u64, Flow)> {
    set.hashes.into_iter().zip(set.flows).filter(|(hash, _)| *hash != 0).collect()
}

/// The ends of a connection as its client's packets name them.
///
/// # Panics
/// When the two are of different families.
#[must_use]
pub fn tuple(source: SocketAddr, destination: SocketAddr) -> Tuple {
    let ports = u64::from(source.port()) << 32 | u64::from(destination.port());
    let four = |address: [u8; 4]| [u64::from(u32::from_ne_bytes(address)), 0];
    let six = |address: [u8; 16]| {
        let (words, _) = address.as_chunks();
        [u64::from_ne_bytes(words[0]), u64::from_ne_bytes(words[1])]
    };
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            Tuple { source: four(source.octets()), destination: four(destination.octets()), ports }
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            Tuple { source: six(source.octets()), destination: six(destination.octets()), ports: ports | 1 << 63 }
        }
        _ => panic!("a connection has addresses of one family"),
    }
}

/// One packet in the host's world.
struct Packet<'m> {
    host: &'m Host,
    frame: &'m [u8],
    /// The frame with the numbers that were replaced in it.
    replaced: RefCell<Vec<u8>>,
    /// The socket that sent it.
    sender: Receiver,
}

impl<'m> Packet<'m> {
    fn new(host: &'m Host, frame: &'m [u8]) -> Self {
        Self { host, frame, replaced: RefCell::new(frame.to_vec()), sender: Receiver::ABSENT }
    }

    /// The frame's first bytes into `head`, and its length.
    fn load_head(&self, head: &mut Head) -> u32 {
        let len = self.frame.len().min(HEAD as usize);
        head.bytes_mut()[..len].copy_from_slice(&self.frame[..len]);
        self.frame.len() as u32
    }
}

impl Host {
    /// A world with these tables.
    #[must_use]
    pub fn new(tables: &Tables) -> Self {
        Self::with_sets(tables, SETS)
    }

    /// A world with these tables and a table of connections of so many sets, a power of two.
    #[must_use]
    pub fn with_sets(tables: &Tables, sets: u32) -> Self {
        Self {
            tables: tables.clone(),
            buckets: tables.policies.keys().map(|&principal| (principal, Default::default())).collect(),
            meters: RefCell::default(),
            totals: RefCell::new([0; TOTALS as usize]),
            sets: (0..sets).map(|_| RefCell::default()).collect(),
            marks: RefCell::default(),
            payers: RefCell::default(),
            handshakes: RefCell::default(),
            sockets: RefCell::default(),
            sources: RefCell::default(),
            scratch: RefCell::default(),
            sheet: RefCell::default(),
            now: StdCell::new(1 << 40),
            unix: StdCell::new(0),
        }
    }

    /// Lets the local host answer so when it is asked for a connection's socket; of any other it has none.
    pub fn tell(&self, tuple: Tuple, socket: Receiver) {
        let mut sockets = self.sockets.borrow_mut();
        match sockets.iter_mut().find(|(known, _)| *known == tuple) {
            Some((_, known)) => *known = socket,
            None => sockets.push((tuple, socket)),
        }
    }

    /// Lets time pass, in ns.
    pub fn wait(&self, time: u64) {
        self.now.set(self.now.get() + time);
    }

    /// Sets the calendar, in seconds of Unix time.
    pub fn set_date(&self, unix: u64) {
        self.unix.set(unix);
    }

    /// The followed connections, by their hashes.
    #[must_use]
    pub fn flows(&self) -> BTreeMap<u64, Flow> {
        self.sets.iter().flat_map(|set| flows(&set.borrow())).collect()
    }

    /// Judges a frame.
    pub fn judge(&self, frame: &[u8]) -> Fate {
        self.now.set(self.now.get() + 1000);
        let mut scratch = self.scratch.borrow_mut();
        let packet = Packet::new(self, frame);
        let len = packet.load_head(&mut scratch.desk.head);
        match judge::packet(&packet, &mut scratch, len) {
            Verdict { fate: judge::Fate::Pass, .. } => Fate::Passed(frame.to_vec()),
            Verdict { fate: judge::Fate::Drop, .. } => Fate::Dropped,
            Verdict { fate: judge::Fate::Rewritten, rewrite } => {
                let mut bytes = frame[..rewrite.frame as usize].to_vec();
                let head = rewrite.head as usize;
                bytes[..head].copy_from_slice(&scratch.desk.head.bytes_mut()[..head]);
                Fate::Passed(bytes)
            }
        }
    }

    /// Shows it a frame that leaves for a client.
    pub fn watch(&self, frame: &[u8]) {
        let mut scratch = self.scratch.borrow_mut();
        let packet = Packet::new(self, frame);
        let len = packet.load_head(&mut scratch.desk.head);
        judge::watch(&packet, &mut scratch, len);
    }

    /// Hands a frame that has passed the judge to what tells clients: what becomes of it, and what its client is sent.
    pub fn answer(&self, frame: &[u8]) -> (Fate, Option<Vec<u8>>) {
        let mut sheet = self.sheet.borrow_mut();
        let packet = Packet::new(self, frame);
        let len = packet.load_head(&mut sheet.head);
        let Letter { envelope, text: payload, ends } = answer::answer(&packet, &mut sheet, len);
        let fate = if ends { Fate::Dropped } else { Fate::Passed(packet.replaced.into_inner()) };
        if envelope == 0 {
            return (fate, None);
        }
        let mut bytes = sheet.envelope.bytes_mut()[..envelope as usize].to_vec();
        let text = sheet.text.bytes_mut();
        bytes.extend(&text[..payload as usize]);
        text.fill(0);
        (fate, Some(bytes))
    }

    /// What becomes of a frame that a socket of this host sends to a client.
    pub fn leave(&self, frame: &[u8]) -> Fate {
        let mut sheet = self.sheet.borrow_mut();
        let mut packet = Packet::new(self, frame);
        let len = packet.load_head(&mut sheet.head);
        let mut segment = Segment::EMPTY;
        if wire::parse(&sheet.head, len, &mut segment).is_ok() {
            packet.sender = packet.receiver(&segment.tuple.reversed());
        }
        let leaves = answer::leave(&packet, &mut sheet, len);
        if leaves { Fate::Passed(packet.replaced.into_inner()) } else { Fate::Dropped }
    }

    /// The counters, by [`Count::index`].
    #[must_use]
    pub fn totals(&self) -> [u64; TOTALS as usize] {
        *self.totals.borrow()
    }

    /// A principal's counts; its buckets are left empty.
    #[must_use]
    pub fn meter(&self, principal: u32) -> Meter {
        self.meters.borrow().get(&principal).copied().unwrap_or_default()
    }
}

impl<'m> World for Packet<'m> {
    type Guard = RefMut<'m, Set>;

    fn now(&self) -> u64 {
        self.host.now.get()
    }

    fn service(&self, port: u16, service: &mut Service) -> bool {
        let Some(guard) = self.host.tables.services.get(&port) else { return false };
        *service = *guard;
        true
    }

    fn flow_secret(&self) -> [u64; 2] {
        SECRET
    }

    fn key_secret(&self) -> [u64; 2] {
        SECRET
    }

    fn lock(&self, hash: u64) -> Option<RefMut<'m, Set>> {
        self.host.sets[hash as usize & (self.host.sets.len() - 1)].try_borrow_mut().ok()
    }

    fn receiver(&self, tuple: &Tuple) -> Receiver {
        let sockets = self.host.sockets.borrow();
        sockets.iter().find(|(known, _)| known == tuple).map_or(Receiver::ABSENT, |(_, socket)| *socket)
    }

    fn mark(&self, place: Place, mark: &mut Mark) -> bool {
        let Some(kept) = self.host.marks.borrow().get(&place).copied() else { return false };
        *mark = kept;
        true
    }

    fn put_mark(&self, place: Place, mark: &Mark) {
        self.host.marks.borrow_mut().insert(place, *mark);
    }

    fn payer(&self, place: Place) -> KeyTag {
        self.host.payers.borrow().get(&place).copied().unwrap_or_default()
    }

    fn put_payer(&self, place: Place, tag: KeyTag) {
        self.host.payers.borrow_mut().insert(place, tag);
    }

    fn handshake(&self, tuple: &Tuple) -> Handshake {
        self.host.handshakes.borrow().get(tuple).copied().unwrap_or_default()
    }

    fn put_handshake(&self, tuple: &Tuple, handshake: Handshake) {
        self.host.handshakes.borrow_mut().insert(*tuple, handshake);
    }

    fn end_handshake(&self, tuple: &Tuple) {
        self.host.handshakes.borrow_mut().remove(tuple);
    }

    fn load(&self, window: &mut Window, at: u32, len: u32) -> bool {
        let Some(bytes) = self.frame.get(at as usize..).and_then(|rest| rest.get(..len as usize)) else { return false };
        window.fresh()[..bytes.len()].copy_from_slice(bytes);
        true
    }

    fn key(&self, tag: KeyTag) -> Option<Key> {
        self.host.tables.keys.get(&tag).copied()
    }

    fn charge(&self, principal: u32, now: u64) -> bool {
        let (Some(buckets), Some(policy)) =
            (self.host.buckets.get(&principal), self.host.tables.policies.get(&principal))
        else {
            return false;
        };
        limit::charge_all(&std::array::from_fn(|index| buckets[index].cells()), policy, now, 1).is_ok()
    }

    fn tally(&self, principal: u32, tally: Tally) {
        let mut meters = self.host.meters.borrow_mut();
        let meter = meters.entry(principal).or_default();
        match tally {
            Tally::Allowed => meter.allowed += 1,
            Tally::Limited => meter.limited += 1,
            Tally::Denied => meter.denied += 1,
            Tally::WouldRefuse => meter.would_refuse += 1,
        }
    }

    fn count(&self, count: Count) {
        self.host.totals.borrow_mut()[count.index() as usize] += 1;
    }

    fn refused(&self, source: Source, now: u64, service: &Service) -> Level {
        self.host.sources.borrow_mut().entry(source).or_default().refuse(now, service)
    }

    fn served(&self, source: Source, now: u64) {
        self.host.sources.borrow_mut().entry(source).or_default().served = now;
    }

    fn is_penalised(&self, source: Source) -> bool {
        self.host.sources.borrow().get(&source).is_some_and(|record| self.now() < record.until)
    }

    fn drive(&self, reading: &mut Reading, flow: &mut Flow) {
        while judge::step(self, reading, flow) {}
    }

    fn drive_sum(&self, sum: &mut Sum, window: &mut Window) {
        while judge::sum_step(self, sum, window) {}
    }
}

impl Post for Packet<'_> {
    fn unix(&self) -> u64 {
        self.host.unix.get()
    }

    fn write(&self, index: u32, told: &Told, text: &mut Text) -> bool {
        let Some(answer) = self.host.tables.answers.get(&index) else { return false };
        for piece in 0..=POINTS as u32 {
            let more = answer::piece(answer, piece, told, text, |bytes, at, from, len| {
                let len = len as usize;
                bytes[at..at + len].copy_from_slice(&answer.text[from..from + len]);
            });
            if !more {
                break;
            }
        }
        true
    }

    fn measure(&self, told: &mut Told, now: u64) {
        let (Some(buckets), Some(policy)) =
            (self.host.buckets.get(&told.principal), self.host.tables.policies.get(&told.principal))
        else {
            return;
        };
        let meter = Meter { buckets: std::array::from_fn(|index| buckets[index].bucket()), ..Meter::default() };
        answer::measure(told, policy, &meter, now);
    }

    /// By RFC 1624.
    fn replace(&self, segment: &Segment, at: u32, from: u32, to: u32) {
        let mut frame = self.replaced.borrow_mut();
        let (at, sum) = (at as usize, segment.tcp as usize + 16);
        assert_eq!(frame[at..at + 4], from.to_be_bytes(), "another number stands there");
        frame[at..at + 4].copy_from_slice(&to.to_be_bytes());
        let halves = |number: u32| (number >> 16) + (number & 0xffff);
        let old = u16::from_be_bytes([frame[sum], frame[sum + 1]]);
        let mut new = u32::from(!old) + halves(!from) + halves(to);
        while new > 0xffff {
            new = halves(new);
        }
        frame[sum..sum + 2].copy_from_slice(&(!new as u16).to_be_bytes());
    }

    fn sender(&self) -> Receiver {
        self.sender
    }

    fn sum(&self, text: &Text) -> u64 {
        let (words, _) = text.bytes()[..text.len().next_multiple_of(8) as usize].as_chunks();
        words.iter().fold(0, |sum, word| reply::add(sum, u64::from_ne_bytes(*word)))
    }
}
