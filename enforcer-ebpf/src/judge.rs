//! A packet's whole way, from frame to verdict. The kernel and the tests each provide a [`World`]; all else is here.
//!
//! [`packet`] is the road: wire, service, flow, then [`step`] for every line of HTTP, [`decide`] for every request,
//! and [`Verdict`] at the end. A verdict is for requests, never for packets: each request of a segment is judged,
//! and a segment whose later request fails is cut behind its last good one.

mod decision;
mod sum;

use core::ops::DerefMut;

use crate::abi::{Key, KeyTag, Service};
use crate::flow::{self, Flow, Plan, Set, Socket, socket, stage};
use crate::http::bytes::{BASE, CAPACITY, Window};
use crate::http::{Cursor, Refusal, Step};
use crate::opaque::zero;
use crate::reply::{self, Rewrite};
use crate::verdict::{Action, Count, Event, Reason};
use crate::wire::{self, Head, NotTcp, Segment, Tuple, flag};
pub use decision::{Decision, decide};
pub use sum::{Sum, sum_step};

/// What is counted for a principal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tally {
    /// [`crate::abi::Meter::allowed`].
    Allowed,
    /// [`crate::abi::Meter::limited`].
    Limited,
    /// [`crate::abi::Meter::denied`].
    Denied,
    /// [`crate::abi::Meter::would_refuse`].
    WouldRefuse,
}

/// What the judge needs of its surroundings: tables, clock, packet.
///
/// The methods with a body are parts of the judge itself. The kernel makes functions of them that the verifier
/// checks once each, instead of in every state of their callers.
pub trait World: Sized {
    /// A set of the flow table, locked until it is dropped.
    type Guard: DerefMut<Target = Set>;

    /// CLOCK_BOOTTIME in ns.
    fn now(&self) -> u64;
    /// The service that guards a port.
    fn service(&self, port: u16) -> Option<Service>;
    /// Secret of the flow table's hash.
    fn flow_secret(&self) -> [u64; 2];
    /// Secret of the key tags.
    fn key_secret(&self) -> [u64; 2];
    /// Locks the set that a hash falls into; `None` if another CPU will not let go of it.
    fn lock(&self, hash: u64) -> Option<Self::Guard>;
    /// Asks the local host for the connection's socket.
    fn socket(&self, tuple: &Tuple) -> Socket;
    /// Copies `len` bytes (1–[`CAPACITY`]) of the frame, from `at`, into the window behind [`BASE`].
    fn load(&self, window: &mut Window, at: u32, len: u32) -> bool;
    /// A registered key.
    fn key(&self, tag: KeyTag) -> Option<Key>;
    /// Charges one request to all of a principal's limits, or to none: see [`crate::limit::charge_all`]. `false` too
    /// where it has no policy, and so no limit that could be kept.
    fn charge(&self, principal: u32, now: u64) -> bool;
    /// Counts for a principal.
    fn tally(&self, principal: u32, tally: Tally);
    /// Counts.
    fn count(&self, count: Count);
    /// Runs [`step`] until it says no.
    fn drive(&self, reading: &mut Reading, flow: &mut Flow);
    /// Runs [`sum_step`] until it says no.
    fn drive_sum(&self, sum: &mut Sum, window: &mut Window);

    /// [`Set::find`].
    #[inline(always)]
    fn find(&self, set: &Set, hash: u64, tuple: &Tuple) -> Option<u32> {
        set.find(hash, tuple)
    }

    /// [`Set::room`].
    #[inline(always)]
    fn room(&self, set: &Set, now: u64, for_syn: bool) -> Option<u32> {
        set.room(now, for_syn)
    }

    /// [`refill`].
    #[inline(always)]
    fn refill(&self, reading: &mut Reading, flow: &mut Flow) -> Refill {
        refill(self, reading, flow)
    }

    /// [`crate::http::Machine::step`].
    #[inline(always)]
    fn advance(&self, reading: &mut Reading, flow: &mut Flow) -> Step {
        let Reading { scan, window, service } = reading;
        flow.machine.step(window, &mut scan.cursor, service, self.key_secret())
    }

    /// [`decide`].
    #[inline(always)]
    fn decide(&self, flow: &Flow, now: u64) -> Decision {
        decide(self, flow.machine.key(), now)
    }
}

/// What lies in memory while a packet is judged; it holds keys in clear, and is wiped behind each packet.
#[repr(C)]
pub struct Scratch {
    /// The frame's first bytes.
    pub head: Head,
    /// The payload being read.
    pub reading: Reading,
    /// The headers, parsed.
    pub segment: Segment,
    /// The sum under way, for a segment that is cut.
    pub sum: Sum,
}

impl Scratch {
    /// Empty.
    #[must_use]
    pub fn new() -> Self {
        Self {
            head: Head::new(),
            reading: Reading { scan: Scan::default(), service: Service::DEFAULT, window: Window::new() },
            segment: Segment::default(),
            sum: Sum::default(),
        }
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

/// A payload being read.
#[repr(C)]
pub struct Reading {
    /// How far it has come.
    pub scan: Scan,
    /// Whom it is for.
    pub service: Service,
    /// The piece of it that is in memory.
    pub window: Window,
}

/// How far reading a payload has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Scan {
    /// When the packet was met.
    pub now: u64,
    /// The place in the window.
    pub cursor: Cursor,
    /// Where the payload begins in the frame.
    pub payload: u32,
    /// Bytes of payload, and how many of them were loaded or skipped.
    pub len: u32,
    next: u32,
    /// Bytes of payload that end with a request that was passed.
    boundary: u32,
    /// An [`end`]; 0 while there is none.
    outcome: u32,
    /// For [`end::REFUSED`]: a reason, and 1 + a kind of malformation or 0.
    reason: u8,
    kind: u8,
    reserved: [u8; 2],
}

/// How reading a payload ended.
mod end {
    /// At its last byte.
    pub(super) const READ: u32 = 1;
    /// At a request that is refused.
    pub(super) const REFUSED: u32 = 2;
    /// At a request that is refused, behind one that is not.
    pub(super) const CUT: u32 = 3;
}

/// What is done with a packet. Every field is always set, for the reason that [`Socket`] gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Where it goes.
    pub fate: Fate,
    /// What it is turned into, if it is [`Fate::Rewritten`].
    pub rewrite: Rewrite,
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Fate {
    /// On, unchanged.
    Pass,
    /// It ends here.
    Drop,
    /// On, as the head now says.
    Rewritten,
}

impl Verdict {
    /// On, unchanged.
    pub const PASS: Self = Self { fate: Fate::Pass, rewrite: Rewrite { head: 0, frame: 0 } };
    /// It ends here.
    pub const DROP: Self = Self { fate: Fate::Drop, ..Self::PASS };

    /// On, as the head now says.
    #[must_use]
    #[inline(always)]
    pub const fn rewritten(rewrite: Rewrite) -> Self {
        Self { fate: Fate::Rewritten, rewrite }
    }
}

/// Judges a frame of `frame` bytes whose first bytes are in `scratch.head`.
#[inline(always)]
pub fn packet<W: World>(world: &W, scratch: &mut Scratch, frame: u32) -> Verdict {
    match wire::parse(&scratch.head, frame, &mut scratch.segment) {
        Ok(()) => {}
        Err(NotTcp::Other) => return Verdict::PASS,
        Err(NotTcp::Unreadable(reason)) => return drop_unread(world, reason),
    }
    let segment = scratch.segment;
    let Some(service) = world.service(segment.tuple.destination_port()) else { return Verdict::PASS };
    scratch.reading.service = service;
    let verdict = guarded(world, scratch, &segment);
    // Who only observes changes nothing.
    if scratch.reading.service.observes() { Verdict::PASS } else { verdict }
}

/// A segment for a guarded port.
#[inline(always)]
fn guarded<W: World>(world: &W, scratch: &mut Scratch, segment: &Segment) -> Verdict {
    if segment.fragment != 0 {
        return refuse_unread(world, scratch, Reason::Fragment);
    }
    if segment.has(flag::RST) {
        return Verdict::PASS;
    }
    // Data without ACK, or in a SYN, is not of the stream that its handshake begins. An urgent pointer alone changes
    // what later data means.
    let carries = flow::carries(segment);
    if if carries { segment.has(flag::SYN) || !segment.has(flag::ACK) } else { segment.has(flag::URG) } {
        return refuse_unread(world, scratch, Reason::Unorderly);
    }
    if segment.has(flag::SYN) {
        return handshake(world, segment);
    }
    if !carries {
        return Verdict::PASS;
    }
    data(world, scratch, segment)
}

/// Whatever the service does to requests, what cannot be placed in a connection is dropped: a RST for it would let
/// anybody end the connections of others.
#[inline(always)]
fn refuse_unread<W: World>(world: &W, scratch: &Scratch, reason: Reason) -> Verdict {
    if observed(world, &scratch.reading.service, reason.into()).is_none() {
        return Verdict::PASS;
    }
    drop_unread(world, reason)
}

#[inline(always)]
fn drop_unread<W: World>(world: &W, reason: Reason) -> Verdict {
    world.count(Count::Refused(reason));
    drop_as(world, Event::Dropped)
}

#[inline(always)]
fn drop_as<W: World>(world: &W, event: Event) -> Verdict {
    world.count(Count::Event(event));
    Verdict::DROP
}

/// A SYN: remembered where no local socket will vouch for the connection.
#[inline(always)]
fn handshake<W: World>(world: &W, segment: &Segment) -> Verdict {
    if segment.has(flag::ACK) || world.socket(&segment.tuple).state != socket::ABSENT {
        return Verdict::PASS;
    }
    let hash = flow::hash(world.flow_secret(), &segment.tuple);
    let Some(mut set) = world.lock(hash) else { return drop_as(world, Event::Contended) };
    let now = world.now();
    let first = segment.seq.wrapping_add(1);
    let way = match world.find(&set, hash, &segment.tuple) {
        Some(way) => {
            let flow = set.flow(way);
            if flow.stage == stage::FOLLOWED && flow.local == 0 {
                // Whether the receiver takes it as a new connection shows in its bytes.
                flow.candidate = first;
                flow.has_candidate = 1;
                return Verdict::PASS;
            }
            way
        }
        None => match world.room(&set, now, true) {
            Some(way) => way,
            None => return Verdict::PASS,
        },
    };
    set.enter(way, hash, &segment.tuple, first, stage::HANDSHAKE, now);
    Verdict::PASS
}

/// A segment with data or a FIN.
#[inline(always)]
fn data<W: World>(world: &W, scratch: &mut Scratch, segment: &Segment) -> Verdict {
    let hash = flow::hash(world.flow_secret(), &segment.tuple);
    let Some(mut set) = world.lock(hash) else { return drop_as(world, Event::Contended) };
    let now = world.now();
    let socket = world.socket(&segment.tuple);
    let found = world.find(&set, hash, &segment.tuple);
    let plan = match found {
        Some(way) => flow::plan(Some(set.flow(way)), segment, socket),
        None => flow::plan(None, segment, socket),
    };
    if segment.has(flag::URG) && !matches!(plan, Plan::Read | Plan::Enter(_)) {
        return refuse_unread(world, scratch, Reason::Unorderly);
    }
    let way = match plan {
        Plan::Read => found,
        Plan::Enter(base) => {
            let Some(way) = (match found {
                Some(way) => Some(way),
                None => world.room(&set, now, false),
            }) else {
                return refuse_unknown(world, scratch, segment, base, Reason::FlowTableFull);
            };
            let flow = set.enter(way, hash, &segment.tuple, base, stage::FOLLOWED, now);
            flow.local = u32::from(socket.state == socket::STREAM);
            Some(way)
        }
        Plan::Old => {
            world.count(Count::Event(Event::OldData));
            return Verdict::PASS;
        }
        Plan::Repeated => return drop_as(world, Event::Retransmitted),
        Plan::Ahead => return drop_as(world, Event::OutOfOrder),
        Plan::Unknown(next) => return refuse_unknown(world, scratch, segment, next, Reason::MidStream),
        Plan::Reset(next) => {
            return after_refusal(world, scratch, segment, found.map(|way| set.flow(way)), Some(next));
        }
        Plan::Strip => return after_refusal(world, scratch, segment, found.map(|way| set.flow(way)), None),
    };
    // `Plan::Read` comes only of a flow that was found.
    let Some(way) = way else { return Verdict::DROP };
    let flow = set.flow(way);
    flow.touched = now;
    read(world, scratch, segment, flow)
}

/// Reads the payload, which is next in order, and settles what becomes of it.
#[inline(always)]
pub fn read<W: World>(world: &W, scratch: &mut Scratch, segment: &Segment, flow: &mut Flow) -> Verdict {
    // The receiver takes urgent data out of the stream (RFC 6093): what it reads is not what is here.
    if segment.has(flag::URG) {
        let Some(refusal) = observed(world, &scratch.reading.service, Reason::Unorderly.into()) else {
            flow.machine.make_opaque();
            flow.next = segment.end();
            return Verdict::PASS;
        };
        return refuse(world, scratch, segment, flow, refusal);
    }
    let reading = &mut scratch.reading;
    let known = known(segment, flow);
    let body = flow.machine.skippable();
    reading.scan = Scan::new(flow.touched, segment.payload + known, segment.len - known);
    if reading.scan.len > 0 {
        let pos = flow.machine.resume(&mut reading.window);
        reading.scan.cursor = Cursor { pos, end: BASE };
        world.drive(reading, flow);
    } else {
        reading.scan.outcome = end::READ;
    }
    let scan = &reading.scan;
    let mut refusal = match scan.outcome {
        end::READ => None,
        end::CUT => return cut(world, scratch, segment, flow),
        end::REFUSED => Some(scan.refusal()),
        _ => Some(Refusal::from(Reason::Unparsable)),
    };
    // Some servers run a request whose head ends so.
    if refusal.is_none() && segment.has(flag::FIN) && flow.machine.is_in_head() {
        refusal = observed(world, &reading.service, Refusal::from(Reason::FinInHead));
    }
    let Some(refusal) = refusal else {
        flow.head_since = match flow.machine.is_in_head() {
            true if flow.head_since == 0 || reading.scan.boundary > 0 => flow.touched,
            true => flow.head_since,
            false => 0,
        };
        flow.next = segment.end();
        // A body that could not end within these bytes goes on; another begins behind them at the earliest.
        if body <= u64::from(reading.scan.len) {
            flow.body = flow.next;
        }
        return Verdict::PASS;
    };
    refuse(world, scratch, segment, flow, refusal)
}

/// Refuses the connection's next bytes, and with them all that follow.
#[inline(always)]
fn refuse<W: World>(world: &W, scratch: &mut Scratch, segment: &Segment, flow: &mut Flow, refusal: Refusal) -> Verdict {
    count_refusal(world, refusal);
    flow.machine.forget_key();
    flow.stage = stage::REFUSED;
    flow.reason = refusal.reason as u32;
    act(world, scratch, segment, flow.next, refusal.reason)
}

/// Bytes of the payload that were judged before.
#[inline(always)]
fn known(segment: &Segment, flow: &Flow) -> u32 {
    let known = flow.next.wrapping_sub(segment.seq);
    if known > segment.len { segment.len } else { known }
}

/// Passes the requests of a segment that come before a refused one; that one is judged when it is sent again.
#[inline(always)]
fn cut<W: World>(world: &W, scratch: &mut Scratch, segment: &Segment, flow: &mut Flow) -> Verdict {
    let len = known(segment, flow).wrapping_add(scratch.reading.scan.boundary);
    world.count(Count::Event(Event::Cut));
    scratch.sum = Sum::new(reply::summed_from(segment), reply::summed(segment, len));
    world.drive_sum(&mut scratch.sum, &mut scratch.reading.window);
    flow.machine.restart();
    flow.head_since = 0;
    flow.next = segment.seq.wrapping_add(len);
    flow.body = flow.next;
    match scratch.sum.total() {
        Some(total) => Verdict::rewritten(reply::cut(&mut scratch.head, segment, len, total)),
        None => Verdict::DROP,
    }
}

impl Scan {
    /// Of `len` bytes at `payload`, met at `now`.
    #[inline(always)]
    fn new(now: u64, payload: u32, len: u32) -> Self {
        let zero = zero() as u32;
        Self {
            now,
            cursor: Cursor { pos: zero, end: zero },
            payload,
            len,
            next: zero,
            boundary: zero,
            outcome: zero,
            reason: zero as u8,
            kind: zero as u8,
            reserved: [zero as u8; 2],
        }
    }

    /// Bytes of the payload that were read or skipped.
    #[inline(always)]
    fn position(&self) -> u32 {
        self.next.wrapping_sub(self.cursor.unread())
    }

    #[inline(always)]
    fn refusal(&self) -> Refusal {
        let reason = Reason::from_index(self.reason).unwrap_or(Reason::Unparsable);
        let kind = crate::verdict::Malformation::from_index(self.kind.wrapping_sub(1));
        Refusal { reason, kind }
    }

    #[inline(always)]
    fn refuse(&mut self, refusal: Refusal) {
        self.reason = refusal.reason as u8;
        self.kind = match refusal.kind {
            Some(kind) => kind as u8 + 1,
            None => 0,
        };
        self.outcome = if self.boundary > 0 { end::CUT } else { end::REFUSED };
    }
}

/// What became of filling the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Refill {
    /// It holds all that a step must see.
    Ready = 0,
    /// Bytes were skipped instead.
    Skipped = 1,
    /// The payload is at its end, or could not be read.
    Ended = 2,
}

/// Sees to it that the window holds what the next step must see, or skips what nobody reads.
#[inline(always)]
pub fn refill<W: World>(world: &W, reading: &mut Reading, flow: &mut Flow) -> Refill {
    let Reading { scan, window, .. } = reading;
    let machine = &mut flow.machine;
    let left = scan.len.wrapping_sub(scan.next);
    if left == 0 || scan.cursor.unread() >= BASE {
        return Refill::Ready;
    }
    let skippable = machine.skippable();
    if skippable > 0 && scan.cursor.unread() == 0 {
        let count = if skippable < u64::from(left) { skippable as u32 } else { left };
        machine.skip(count);
        scan.next = scan.next.wrapping_add(count);
        if machine.is_between_requests() {
            scan.boundary = scan.next;
        }
        if count != left {
            return Refill::Skipped;
        }
        scan.outcome = end::READ;
        return Refill::Ended;
    }
    if scan.next > 0 {
        machine.suspend(window, scan.cursor);
        scan.cursor.pos = machine.resume(window);
    }
    let len = if left > CAPACITY { CAPACITY } else { left };
    if !world.load(window, scan.payload.wrapping_add(scan.next), len) {
        return Refill::Ended;
    }
    scan.next = scan.next.wrapping_add(len);
    scan.cursor.end = BASE + len;
    Refill::Ready
}

/// Reads on by one step; `false` ends the payload.
#[inline(always)]
pub fn step<W: World>(world: &W, reading: &mut Reading, flow: &mut Flow) -> bool {
    match world.refill(reading, flow) {
        Refill::Ready => {}
        Refill::Skipped => return true,
        Refill::Ended => return false,
    }
    match world.advance(reading, flow) {
        Step::More => {}
        Step::Starved if reading.scan.next == reading.scan.len => {
            flow.machine.suspend(&reading.window, reading.scan.cursor);
            reading.scan.outcome = end::READ;
            return false;
        }
        Step::Starved => return true,
        Step::Head => {
            let decision = world.decide(flow, reading.scan.now);
            flow.machine.forget_key();
            if !settle(world, reading, decision) {
                return false;
            }
        }
        Step::Refused(refusal) => {
            let Some(refusal) = observed(world, &reading.service, refusal) else {
                flow.machine.make_opaque();
                return true;
            };
            reading.scan.refuse(refusal);
            return false;
        }
    }
    if flow.machine.is_between_requests() {
        reading.scan.boundary = reading.scan.position();
    }
    true
}

/// Counts a decision; `false` if the payload ends with it.
#[inline(always)]
fn settle<W: World>(world: &W, reading: &mut Reading, decision: Decision) -> bool {
    let Decision { principal, refused } = decision;
    let Some(reason) = refused else {
        world.count(Count::Event(Event::Allowed));
        world.tally(principal, Tally::Allowed);
        return true;
    };
    let observes = reading.service.observes();
    // The rest of a segment that is cut comes again, and is counted then.
    if principal != 0 && (observes || reading.scan.boundary == 0) {
        let tally = match reason {
            _ if observes => Tally::WouldRefuse,
            Reason::OverLimit => Tally::Limited,
            _ => Tally::Denied,
        };
        world.tally(principal, tally);
    }
    if observed(world, &reading.service, reason.into()).is_none() {
        return true;
    }
    reading.scan.refuse(reason.into());
    false
}

/// `None`, and counted, where the service only observes.
#[inline(always)]
fn observed<W: World>(world: &W, service: &Service, refusal: Refusal) -> Option<Refusal> {
    if !service.observes() {
        return Some(refusal);
    }
    world.count(Count::WouldRefuse(refusal.reason));
    if let Some(kind) = refusal.kind {
        world.count(Count::Malformed(kind));
    }
    None
}

#[inline(always)]
fn count_refusal<W: World>(world: &W, refusal: Refusal) {
    world.count(Count::Refused(refusal.reason));
    if let Some(kind) = refusal.kind {
        world.count(Count::Malformed(kind));
    }
}

/// Refuses a segment of a connection that is not followed.
#[inline(always)]
fn refuse_unknown<W: World>(world: &W, scratch: &mut Scratch, segment: &Segment, next: u32, reason: Reason) -> Verdict {
    let Some(refusal) = observed(world, &scratch.reading.service, reason.into()) else { return Verdict::PASS };
    count_refusal(world, refusal);
    act(world, scratch, segment, next, reason)
}

/// Does to a refused segment what the service says.
#[inline(always)]
fn act<W: World>(world: &W, scratch: &mut Scratch, segment: &Segment, next: u32, reason: Reason) -> Verdict {
    if scratch.reading.service.action(reason as u32) == Action::Reset as u8 {
        world.count(Count::Event(Event::Reset));
        Verdict::rewritten(reply::reset(&mut scratch.head, segment, next))
    } else {
        drop_as(world, Event::Dropped)
    }
}

/// A later segment of a refused connection, or one of a connection that nobody holds.
#[inline(always)]
fn after_refusal<W: World>(
    world: &W,
    scratch: &mut Scratch,
    segment: &Segment,
    flow: Option<&mut Flow>,
    next: Option<u32>,
) -> Verdict {
    world.count(Count::Event(Event::AfterRefusal));
    if let Some(flow) = flow
        && flow.stage == stage::REFUSED
    {
        flow.after = flow.after.wrapping_add(1);
        if scratch.reading.service.action(flow.reason) == Action::Drop as u8 {
            return Verdict::DROP;
        }
    }
    Verdict::rewritten(match next {
        Some(next) => reply::reset(&mut scratch.head, segment, next),
        None => reply::strip(&mut scratch.head, segment),
    })
}
