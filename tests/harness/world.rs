//! The host's world for the judge: the kernel's part played by plain memory, to hold the loaded program against.

use std::cell::{Cell as StdCell, RefCell, RefMut};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use enforcer_ebpf::abi::{
    self, BUCKETS, Buckets, Client, Edge, Key, KeyTag, LIMITS, Meter, POINTS, Ruleset, Scope, Service, Share, Sighting,
    TOTALS, scope,
};
use enforcer_ebpf::answer::{self, Letter, Post, Sheet, Text};
use enforcer_ebpf::charge::{Claim, table};
use enforcer_ebpf::connection::{self, Connections, Subjects};
use enforcer_ebpf::flow::{self, Flow, Handshake, Mark, Place, Receiver, Set, Told};
use enforcer_ebpf::http::Lookup;
use enforcer_ebpf::http::bytes::Window;
use enforcer_ebpf::judge::{self, Reading, Scratch, Sum, Tally, Verdict, World};
use enforcer_ebpf::limit::{self, Cell as _, Clock, Moment, Outcome};
use enforcer_ebpf::reply;
use enforcer_ebpf::source::{Address, Level, Record, Source};
use enforcer_ebpf::spread;
use enforcer_ebpf::verdict::{Count, Event};
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
    used: RefCell<BTreeMap<(u32, Scope), Rc<Used>>>,
    sightings: Sightings,
    connections: Vec<RefCell<Connections>>,
    subjects: Vec<RefCell<Subjects>>,
    meters: RefCell<BTreeMap<u32, Meter>>,
    /// Of each service, in the order of their ports, then those that only hosts lead to.
    totals: RefCell<Vec<[u64; TOTALS as usize]>>,
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

/// ns that pass before each frame.
const STEP: u64 = 1000;

/// What is used of the limits of a claim.
#[derive(Debug, Default)]
struct Used {
    limits: [Shared; LIMITS],
    candidate: [Shared; LIMITS],
}

impl Used {
    fn buckets(&self) -> Buckets {
        let set = |set: &[Shared; LIMITS]| std::array::from_fn(|index| set[index].bucket());
        Buckets { limits: set(&self.limits), candidate: set(&self.candidate) }
    }
}

/// The pairs that were seen.
#[derive(Debug, Default)]
struct Sightings(RefCell<BTreeSet<Sighting>>);

impl spread::Sightings for Sightings {
    fn knows(&self, sighting: &Sighting) -> bool {
        self.0.borrow().contains(sighting)
    }

    fn insert(&self, sighting: &Sighting) -> bool {
        self.0.borrow_mut().insert(*sighting)
    }

    fn remove(&self, sighting: &Sighting) {
        self.0.borrow_mut().remove(sighting);
    }
}

/// The followed connections of a set, with their hashes.
pub fn flows(set: &Set) -> Vec<(u64, Flow)> {
    set.hashes.into_iter().zip(set.flows).filter(|(hash, _)| *hash != 0).collect()
}

/// Who has connections in a set, and how many.
pub fn subjects(set: &Subjects) -> impl Iterator<Item = (u64, u64)> {
    set.ways.into_iter().filter(|way| way.count != 0).map(|way| (way.hash, way.count))
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
    /// The service that it is counted for; the first while it is not known to be another's.
    service: StdCell<usize>,
}

impl<'m> Packet<'m> {
    fn new(host: &'m Host, frame: &'m [u8]) -> Self {
        let replaced = RefCell::new(frame.to_vec());
        Self { host, frame, replaced, sender: Receiver::ABSENT, service: StdCell::new(0) }
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
            used: RefCell::new(tables.opened().into_iter().map(|place| (place, Rc::default())).collect()),
            sightings: Sightings::default(),
            connections: (0..SETS).map(|_| RefCell::default()).collect(),
            subjects: (0..SETS).map(|_| RefCell::default()).collect(),
            meters: RefCell::default(),
            totals: RefCell::new(vec![[0; TOTALS as usize]; tables.services.len() + tables.hosted.len()]),
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

    /// Puts other tables in the place of those that it has.
    pub fn write(&mut self, tables: &Tables) {
        self.tables = tables.clone();
    }

    /// Lets the local host answer so when it is asked for a connection's socket; of any other it has none.
    pub fn tell(&self, tuple: Tuple, socket: Receiver) {
        let mut sockets = self.sockets.borrow_mut();
        match sockets.iter_mut().find(|(known, _)| *known == tuple) {
            Some((_, known)) => *known = socket,
            None => sockets.push((tuple, socket)),
        }
    }

    /// A local socket's connection is established.
    pub fn established(&self, tuple: &Tuple) {
        let now = self.now.get();
        if !connection::open(&Packet::new(self, &[]), flow::hash(SECRET, tuple), now) {
            let services = self.tables.services.keys();
            let slot = services.into_iter().position(|port| *port == tuple.destination_port()).unwrap_or(0);
            self.totals.borrow_mut()[slot][Count::Event(Event::ConnectionsFull).index() as usize] += 1;
        }
    }

    /// It is over.
    pub fn over(&self, tuple: &Tuple) {
        connection::close(&Packet::new(self, &[]), flow::hash(SECRET, tuple));
    }

    /// Takes out the connections that never came to be.
    pub fn sweep(&self) {
        for set in 0..SETS {
            connection::sweep(&Packet::new(self, &[]), set, self.now.get());
        }
    }

    /// How many connections each source and principal has that has any, by its hash.
    #[must_use]
    pub fn subjects(&self) -> BTreeMap<u64, u64> {
        self.subjects.iter().flat_map(|set| subjects(&set.borrow()).collect::<Vec<_>>()).collect()
    }

    fn used(&self, place: (u32, Scope)) -> Rc<Used> {
        Rc::clone(self.used.borrow_mut().entry(place).or_default())
    }

    /// Whether there is room for the buckets of one more named subject.
    fn has_room(&self) -> bool {
        let used = self.used.borrow();
        used.keys().filter(|(place, _)| *place == table::NAMED).count() < BUCKETS as usize
    }

    /// ns of CLOCK_BOOTTIME as it stands.
    #[must_use]
    pub fn boot(&self) -> u64 {
        self.now.get()
    }

    /// What is used of a principal's limits.
    #[must_use]
    pub fn used_by(&self, principal: u32) -> Buckets {
        let own = Scope { rule: 0, subject: [principal.into(), 0] };
        self.used.borrow().get(&(table::PRINCIPAL, own)).map_or_else(Buckets::default, |used| used.buckets())
    }

    /// Lets time pass, in ns.
    pub fn wait(&self, time: u64) {
        self.now.set(self.now.get() + time);
    }

    /// Sets the clock so that the next frame is judged at `boot`, ns since the boot.
    pub fn set_clock(&self, boot: u64) {
        self.now.set(boot.saturating_sub(STEP));
    }

    /// Sets the calendar, in seconds of Unix time.
    pub fn set_date(&self, unix: u64) {
        self.unix.set(unix);
    }

    /// The clocks at `boot`; the date stands still.
    fn clock(&self, boot: u64) -> Clock {
        Clock { boot, offset: (self.unix.get() * 1_000_000_000).wrapping_sub(boot) }
    }

    /// The followed connections, by their hashes.
    #[must_use]
    pub fn flows(&self) -> BTreeMap<u64, Flow> {
        self.sets.iter().flat_map(|set| flows(&set.borrow())).collect()
    }

    /// Judges a frame.
    pub fn judge(&self, frame: &[u8]) -> Fate {
        self.wait(STEP);
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

    /// The counters of all services together, by [`Count::index`].
    #[must_use]
    pub fn totals(&self) -> [u64; TOTALS as usize] {
        let totals = self.totals.borrow();
        std::array::from_fn(|index| totals.iter().map(|totals| totals[index]).sum())
    }

    /// Those of each service, in the order of their ports, then of those that only hosts lead to.
    #[must_use]
    pub fn totals_by_service(&self) -> Vec<[u64; TOTALS as usize]> {
        self.totals.borrow().clone()
    }

    /// A principal's counts; its buckets are left empty.
    #[must_use]
    pub fn meter(&self, principal: u32) -> Meter {
        self.meters.borrow().get(&principal).copied().unwrap_or_default()
    }
}

impl Lookup for Packet<'_> {
    fn next(&self, state: u32, segment: KeyTag) -> u32 {
        let Tables { states, edges, .. } = &self.host.tables;
        let other = || states.get(state as usize).map_or(0, |state| state.other);
        let edge = Edge { state: u64::from(state), segment: segment.0 };
        edges.get(&edge).copied().unwrap_or_else(other)
    }

    fn is_trusted(&self, address: Address, trusts: u64) -> bool {
        self.host.tables.proxies.get(&address).is_some_and(|sets| sets & trusts != 0)
    }
}

impl<'m> connection::Tables for Packet<'m> {
    type Connections = RefMut<'m, Connections>;
    type Subjects = RefMut<'m, Subjects>;

    fn connections(&self, hash: u64) -> Option<RefMut<'m, Connections>> {
        Some(self.host.connections[hash as usize & (self.host.connections.len() - 1)].borrow_mut())
    }

    fn subjects(&self, hash: u64) -> Option<RefMut<'m, Subjects>> {
        Some(self.host.subjects[self.subject_set(hash) as usize].borrow_mut())
    }

    fn subject_set(&self, hash: u64) -> u32 {
        hash as u32 & (self.host.subjects.len() as u32 - 1)
    }
}

impl<'m> World for Packet<'m> {
    type Guard = RefMut<'m, Set>;

    fn now(&self) -> u64 {
        self.host.now.get()
    }

    fn time_of_day(&self, now: u64) -> u64 {
        now.wrapping_add(self.host.clock(now).offset)
    }

    fn service(&self, port: u16, service: &mut Service) -> bool {
        let services = self.host.tables.services.iter().enumerate();
        let Some((slot, (_, guard))) = services.into_iter().find(|(_, (of, _))| **of == port) else { return false };
        *service = *guard;
        self.service.set(slot);
        true
    }

    fn service_of(&self, host: abi::Host, service: &mut Service) -> bool {
        let Tables { services, hosted, hosts, .. } = &self.host.tables;
        let Some(&slot) = hosts.get(&host).or_else(|| hosts.get(&abi::Host { name: [0; 2], ..host })) else {
            return false;
        };
        let slot = slot as usize;
        let Some(found) = services.values().chain(hosted).nth(slot) else { return false };
        *service = *found;
        self.service.set(slot);
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

    fn rules(&self, service: &Service, rules: &mut Ruleset) {
        *rules = self.host.tables.rulesets.get(&service.rules).copied().unwrap_or_default();
    }

    fn rule(&self, flow: &Flow, reading: &mut Reading) -> bool {
        let Tables { states, leaves, rules, .. } = &self.host.tables;
        let (route, method) = (flow.machine.route() as usize, flow.machine.method_number() as usize);
        let Some(first) = states.get(route).map(|state| state.leaf).filter(|leaf| *leaf != 0) else { return false };
        let leaf = leaves.get((first + reading.rules.leaf) as usize);
        let Some(leaf) = leaf.filter(|leaf| leaf.service == reading.service.number) else { return false };
        let index = leaf.rules[method];
        if let Some(found) = rules.get(index as usize) {
            reading.rule = *found;
        }
        index != 0
    }

    fn is_exempt(&self, exemptions: u64, address: Address, now: u64) -> bool {
        let [first, second] = address.map(u64::to_ne_bytes);
        let address: Vec<u8> = first.into_iter().chain(second).collect();
        let time = self.time_of_day(now);
        self.host.tables.exemptions.iter().enumerate().any(|(index, (addresses, until))| {
            exemptions & (1 << index) != 0 && time < *until && addresses.iter().any(|known| known[..] == address[..])
        })
    }

    fn policy(&self, principal: u32, now: u64) -> u32 {
        match self.host.tables.policies.get(&principal) {
            Some(policy) if self.time_of_day(now) >= policy.until => policy.next,
            Some(_) => principal,
            None => 0,
        }
    }

    fn tenant(&self, slot: u32) -> (u32, u64) {
        let policy = self.host.tables.policies.get(&slot);
        policy.map_or((0, 0), |policy| (policy.tenant, u64::from(policy.tenant_scope)))
    }

    fn share(&self, client: Client) -> Option<Share> {
        let clients = &self.host.tables.clients;
        clients.get(&client).or_else(|| clients.get(&Client { id: [0; 2], ..client })).copied()
    }

    fn open(&self, reading: &mut Reading) {
        let now = reading.scan.now;
        for claim in 0..reading.charge.len() {
            let claim = reading.charge.at_mut(claim);
            let is_there = |claim: &Claim| self.host.used.borrow().contains_key(&(claim.table, claim.scope));
            let is_open = is_there(claim);
            let make = |claim: &Claim| {
                let has_room = claim.table != table::NAMED || self.host.has_room();
                if has_room {
                    self.host.used((claim.table, claim.scope));
                }
                has_room
            };
            judge::open(claim, is_open, |claim| self.take_place(judge::admission(&reading.rules, claim), now), make);
            if judge::is_shared(claim) && is_there(claim) {
                self.count(Count::Event(Event::BucketOverflow));
            }
        }
    }

    fn is_blocked(&self, reading: &Reading) -> bool {
        let used = self.host.used((table::SOURCE, reading.charge.at(0).scope));
        reading.scan.now < used.candidate[0].cells().arrival.load()
    }

    fn block(&self, reading: &Reading) {
        let used = self.host.used((table::SOURCE, reading.charge.at(0).scope));
        let word = used.candidate[0].cells().arrival;
        assert!(word.swap(word.load(), reading.scan.now + reading.rules.guess_penalty_ns));
        self.count(Count::Event(Event::GuessPenalty));
    }

    fn sight(&self, reading: &mut Reading, claim: usize) -> bool {
        let Reading { scan, rules, charge, sighting, .. } = reading;
        let Claim { table, scope, .. } = *charge.at(claim);
        let used = self.host.used((table, scope));
        sighting.rule = scope.rule;
        let spread = if table == table::SOURCE { &rules.keys_of_source } else { &rules.sources_of_key };
        spread::sight(&used.limits[0].cells().counts, spread, sighting, scan.now, &self.host.sightings)
    }

    fn penalise(&self, source: Source, now: u64, service: &Service) {
        self.punish(source, |record| record.penalise(now, service));
    }

    fn charge(&self, reading: &mut Reading) -> bool {
        let charge = &mut reading.charge;
        charge.set_offset(self.host.clock(self.now()).offset);
        for claim in 0..charge.len() {
            if let Some(policy) = self.host.tables.policies.get(&charge.at(claim).policy) {
                charge.look_at(claim, policy);
            }
        }
        loop {
            let place = reading.charge.place();
            let Claim { table, policy, scope } = *reading.charge.at(place.claim);
            let is_there = table == table::PRINCIPAL || self.host.used.borrow().contains_key(&(table, scope));
            let policy = self.host.tables.policies.get(&policy).filter(|_| is_there);
            let Some(mut policy) = policy else {
                reading.charge.fail();
                if !reading.charge.lacks() {
                    break;
                }
                self.open(reading);
                reading.charge.resume();
                continue;
            };
            if place.candidate {
                policy = &self.host.tables.policies[&policy.candidate];
            }
            let used = self.host.used((table, scope));
            let set = if place.candidate { &used.candidate } else { &used.limits };
            if !reading.charge.step(&set[place.limit].cells(), policy) {
                break;
            }
        }
        let mut goes_on = reading.charge.settle();
        while goes_on {
            let place = reading.charge.place();
            let Claim { table, policy, scope } = *reading.charge.at(place.claim);
            let mut policy = &self.host.tables.policies[&policy];
            if place.candidate {
                policy = &self.host.tables.policies[&policy.candidate];
            }
            let used = self.host.used.borrow().get(&(table, scope)).cloned();
            let set = used.as_ref().map(|used| if place.candidate { &used.candidate } else { &used.limits });
            let cells = set.map(|set| set[place.limit].cells());
            goes_on = reading.charge.penalize(cells.as_ref().map(|cells| (cells, policy)));
        }
        let charge = &reading.charge;
        let mut meters = self.host.meters.borrow_mut();
        if judge::is_of_principal(&reading.party, charge) {
            let would = |candidate| (0..charge.len()).any(|claim| charge.would_refuse(claim, candidate));
            let meter = meters.entry(reading.party.principal).or_default();
            meter.would_refuse += u64::from(would(false));
            meter.candidate += u64::from(would(true));
        }
        charge.result().is_ok()
    }

    fn tally(&self, principal: u32, tally: Tally) {
        let mut meters = self.host.meters.borrow_mut();
        let meter = meters.entry(principal).or_default();
        match tally {
            Tally::Allowed => meter.allowed += 1,
            Tally::Limited => meter.limited += 1,
            Tally::Denied => meter.denied += 1,
            Tally::WouldRefuse => meter.would_refuse += 1,
            Tally::KeyInUrl => meter.key_in_url += 1,
        }
    }

    fn count(&self, count: Count) {
        self.host.totals.borrow_mut()[self.service.get()][count.index() as usize] += 1;
    }

    fn refused(&self, source: Source, now: u64, service: &Service) -> Level {
        self.punish(source, |record| record.refuse(now, service))
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

impl Packet<'_> {
    /// Changes what is known of a source; a penalty that begins with it is counted.
    fn punish<T>(&self, source: Source, change: impl FnOnce(&mut Record) -> T) -> T {
        let mut sources = self.host.sources.borrow_mut();
        let record = sources.entry(source).or_default();
        let before = record.until;
        let result = change(record);
        if record.until != before {
            self.count(Count::Event(Event::Penalty));
        }
        result
    }

    /// Charges one more source, or key that is not registered, to the limits in a slot, by the rule of that number.
    fn take_place(&self, (slot, rule): (u32, u64), now: u64) -> bool {
        let Some(policy) = self.host.tables.policies.get(&slot) else { return slot == 0 };
        let used = self.host.used((table::NAMED, Scope { rule, subject: [0; 2] }));
        let admitted = matches!(
            limit::attempt(&used.limits[0].cells(), &policy.limits[0], &Moment::of_boot(now), 1),
            Outcome::Charged(_)
        );
        if !admitted {
            let is_source = rule == scope::ADMISSION;
            self.count(Count::Event(if is_source { Event::SourceOverflow } else { Event::UnregisteredOverflow }));
        }
        admitted
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

    fn count_for(&self, slot: u32) {
        self.service.set(slot as usize);
    }

    fn measure(&self, told: &mut Told, now: u64) {
        let Some(policy) = self.host.tables.policies.get(&told.policy) else { return };
        let used = self.host.used((told.table, told.scope));
        let clock = self.host.clock(now);
        answer::measure(told, policy, &used.buckets(), now, |bucket, limit, cost| {
            limit::retry(bucket, limit, clock, cost)
        });
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
