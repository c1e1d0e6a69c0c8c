//! A packet's whole way, from frame to verdict. The kernel and the tests each provide a [`World`]; all else is here.
//!
//! [`packet`] is the road: wire, service, flow, then [`step`] for every line of HTTP, [`decide`] for every request,
//! and [`Verdict`] at the end. A verdict is for requests, never for packets: each request of a segment is judged,
//! and a segment whose later request fails is cut behind its last good one.

use core::ops::DerefMut;

use crate::abi::{Key, KeyTag, Policy, Service};
use crate::flow::{self, Flow, Plan, Set, Socket, stage};
use crate::http::bytes::{BASE, CAPACITY, Window};
use crate::http::{Cursor, Machine, Refusal, Step};
use crate::reply::{self, Rewrite};
use crate::verdict::{Action, Count, Event, Reason};
use crate::wire::{self, Head, NotTcp, Segment, Tuple, flag};

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

/// What the judge needs of its surroundings: tables, clock, packet. `'m` is the tables' lifetime.
pub trait World<'m> {
    /// A set of the flow table, locked until it is dropped.
    type Guard: DerefMut<Target = Set>;

    /// CLOCK_BOOTTIME in ns.
    fn now(&self) -> u64;
    /// The service that guards a port.
    fn service(&self, port: u16) -> Option<&'m Service>;
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
    /// A principal's policy.
    fn policy(&self, principal: u32) -> Option<&'m Policy>;
    /// Charges one request to all of a principal's limits, or to none: see [`crate::limit::charge_all`].
    fn charge(&self, principal: u32, policy: &'m Policy, now: u64) -> bool;
    /// Counts for a principal.
    fn tally(&self, principal: u32, tally: Tally);
    /// Counts.
    fn count(&self, count: Count);
    /// Runs [`step`] until it says no.
    fn drive(&self, scan: &mut Scan, window: &mut Window, service: &'m Service, flow: &mut Flow);
    /// Runs [`sum_step`] until it says no.
    fn drive_sum(&self, sum: &mut Sum, window: &mut Window);
}

/// What lies in memory while a packet is judged.
#[repr(C)]
pub struct Scratch {
    /// The frame's first bytes.
    pub head: Head,
    /// The piece of the payload being read.
    pub window: Window,
    /// The headers, parsed.
    pub segment: Segment,
    /// How far reading has come.
    pub scan: Scan,
    /// The sum under way, for a segment that is cut.
    pub sum: Sum,
}

impl Scratch {
    /// Empty.
    #[must_use]
    pub fn new() -> Self {
        Self {
            head: Head::new(),
            window: Window::new(),
            segment: Segment::default(),
            scan: Scan::default(),
            sum: Sum::default(),
        }
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
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

/// What is done with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on unchanged.
    Pass,
    /// It ends here.
    Drop,
    /// It goes on as the head now says.
    Rewritten(Rewrite),
}

/// Judges a frame of `frame` bytes whose first bytes are in `scratch.head`.
#[inline(always)]
pub fn packet<'m, W: World<'m>>(world: &W, scratch: &mut Scratch, frame: u32) -> Verdict {
    match wire::parse(&scratch.head, frame, &mut scratch.segment) {
        Ok(()) => {}
        Err(NotTcp::Other) => return Verdict::Pass,
        Err(NotTcp::Unreadable(reason)) => return drop_unread(world, reason),
    }
    let segment = scratch.segment;
    let Some(service) = world.service(segment.tuple.destination_port()) else { return Verdict::Pass };
    if segment.fragment != 0 {
        return drop_unread(world, Reason::Fragment);
    }
    if segment.has(flag::RST) {
        return Verdict::Pass;
    }
    // Urgent data is taken out of the stream by the receiver (RFC 6093); data without ACK, or in a SYN, is not of
    // the stream that its handshake begins.
    let carries = flow::carries(&segment);
    if segment.has(flag::URG) || (carries && (segment.has(flag::SYN) || !segment.has(flag::ACK))) {
        return drop_unread(world, Reason::Unorderly);
    }
    if segment.has(flag::SYN) {
        return handshake(world, &segment);
    }
    if !carries {
        return Verdict::Pass;
    }
    data(world, scratch, &segment, service)
}

#[inline(always)]
fn drop_unread<'m, W: World<'m>>(world: &W, reason: Reason) -> Verdict {
    world.count(Count::Refused(reason));
    drop_as(world, Event::Dropped)
}

#[inline(always)]
fn drop_as<'m, W: World<'m>>(world: &W, event: Event) -> Verdict {
    world.count(Count::Event(event));
    Verdict::Drop
}

/// A SYN: remembered where no local socket will vouch for the connection.
#[inline(always)]
fn handshake<'m, W: World<'m>>(world: &W, segment: &Segment) -> Verdict {
    if segment.has(flag::ACK) || world.socket(&segment.tuple) != Socket::Absent {
        return Verdict::Pass;
    }
    let hash = flow::hash(world.flow_secret(), &segment.tuple);
    let Some(mut set) = world.lock(hash) else { return drop_as(world, Event::Contended) };
    let now = world.now();
    let first = segment.seq.wrapping_add(1);
    let way = match set.find(hash, &segment.tuple) {
        Some(way) => {
            let flow = set.flow(way);
            if flow.stage == stage::FOLLOWED && flow.local == 0 {
                // Whether the receiver takes it as a new connection shows in its bytes.
                flow.candidate = first;
                flow.has_candidate = 1;
                return Verdict::Pass;
            }
            way
        }
        None => match set.room(now, true) {
            Some(way) => way,
            None => return Verdict::Pass,
        },
    };
    set.enter(way, hash, &segment.tuple, first, stage::HANDSHAKE, now);
    Verdict::Pass
}

/// A segment with data or a FIN.
#[inline(always)]
fn data<'m, W: World<'m>>(world: &W, scratch: &mut Scratch, segment: &Segment, service: &'m Service) -> Verdict {
    let hash = flow::hash(world.flow_secret(), &segment.tuple);
    let Some(mut set) = world.lock(hash) else { return drop_as(world, Event::Contended) };
    let now = world.now();
    let socket = world.socket(&segment.tuple);
    let found = set.find(hash, &segment.tuple);
    let plan = match found {
        Some(way) => flow::plan(Some(set.flow(way)), segment, socket),
        None => flow::plan(None, segment, socket),
    };
    let way = match plan {
        Plan::Read => found,
        Plan::Enter(base) => {
            let Some(way) = (match found {
                Some(way) => Some(way),
                None => set.room(now, false),
            }) else {
                return refuse_unknown(world, scratch, segment, service, base, Reason::FlowTableFull);
            };
            let local = matches!(socket, Socket::Stream { .. });
            set.enter(way, hash, &segment.tuple, base, stage::FOLLOWED, now).local = u32::from(local);
            Some(way)
        }
        Plan::Old => {
            world.count(Count::Event(Event::OldData));
            return Verdict::Pass;
        }
        Plan::Repeated => return drop_as(world, Event::Retransmitted),
        Plan::Ahead => return drop_as(world, Event::OutOfOrder),
        Plan::Unknown(next) => return refuse_unknown(world, scratch, segment, service, next, Reason::MidStream),
        Plan::Reset(next) => {
            return after_refusal(world, scratch, segment, found.map(|way| set.flow(way)), Some(next));
        }
        Plan::Strip => return after_refusal(world, scratch, segment, found.map(|way| set.flow(way)), None),
    };
    // `Plan::Read` comes only of a flow that was found.
    let Some(way) = way else { return Verdict::Drop };
    let flow = set.flow(way);
    flow.touched = now;
    read(world, scratch, segment, service, flow)
}

/// Reads the payload, which is next in order, and settles what becomes of it.
#[inline(always)]
pub fn read<'m, W: World<'m>>(
    world: &W,
    scratch: &mut Scratch,
    segment: &Segment,
    service: &'m Service,
    flow: &mut Flow,
) -> Verdict {
    let scan = &mut scratch.scan;
    *scan = Scan { now: flow.touched, payload: segment.payload, len: segment.len, ..Scan::default() };
    if segment.len > 0 {
        let pos = flow.machine.resume(&mut scratch.window);
        scan.cursor = Cursor { pos, end: BASE };
        world.drive(scan, &mut scratch.window, service, flow);
    } else {
        scan.outcome = end::READ;
    }
    let scan = scratch.scan;
    let mut refusal = match scan.outcome {
        end::READ => None,
        end::CUT => {
            flow.machine = Machine::new();
            flow.next = segment.seq.wrapping_add(scan.boundary);
            world.count(Count::Event(Event::Cut));
            let from = reply::summed_from(segment);
            scratch.sum = Sum { at: from, left: reply::summed(segment, scan.boundary), total: 0 };
            world.drive_sum(&mut scratch.sum, &mut scratch.window);
            if scratch.sum.left > 0 {
                return Verdict::Drop;
            }
            return Verdict::Rewritten(reply::cut(&mut scratch.head, segment, scan.boundary, scratch.sum.total));
        }
        end::REFUSED => Some(scan.refusal()),
        _ => Some(Refusal::from(Reason::Unparsable)),
    };
    // Some servers run a request whose head ends so.
    if refusal.is_none() && segment.has(flag::FIN) && flow.machine.is_in_head() {
        refusal = observed(world, service, Refusal::from(Reason::FinInHead));
    }
    let Some(refusal) = refusal else {
        flow.next = segment.end();
        return Verdict::Pass;
    };
    count_refusal(world, refusal);
    flow.stage = stage::REFUSED;
    act(world, scratch, segment, service, segment.seq, refusal.reason)
}

impl Scan {
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

/// Reads on by one step; `false` ends the payload.
#[inline(always)]
pub fn step<'m, W: World<'m>>(
    world: &W,
    scan: &mut Scan,
    window: &mut Window,
    service: &'m Service,
    flow: &mut Flow,
) -> bool {
    let machine = &mut flow.machine;
    let left = scan.len.wrapping_sub(scan.next);
    if left > 0 && scan.cursor.unread() < BASE {
        let skippable = machine.skippable();
        if skippable > 0 && scan.cursor.unread() == 0 {
            let count = if skippable < u64::from(left) { skippable as u32 } else { left };
            machine.skip(count);
            scan.next = scan.next.wrapping_add(count);
            if machine.is_between_requests() {
                scan.boundary = scan.next;
            }
            if count == left {
                scan.outcome = end::READ;
            }
            return count != left;
        }
        if scan.next > 0 {
            machine.suspend(window, scan.cursor);
            scan.cursor.pos = machine.resume(window);
        }
        let len = if left > CAPACITY { CAPACITY } else { left };
        if !world.load(window, scan.payload.wrapping_add(scan.next), len) {
            return false;
        }
        scan.next = scan.next.wrapping_add(len);
        scan.cursor.end = BASE + len;
    }
    match machine.step(window, &mut scan.cursor, service, world.key_secret()) {
        Step::More => {}
        Step::Starved if scan.next == scan.len => {
            machine.suspend(window, scan.cursor);
            scan.outcome = end::READ;
            return false;
        }
        Step::Starved => return true,
        Step::Head => match decide(world, machine.key(), scan.now) {
            Ok(principal) => {
                world.count(Count::Event(Event::Allowed));
                world.tally(principal, Tally::Allowed);
            }
            Err((reason, principal)) => {
                let observes = service.flags & Service::OBSERVE != 0;
                // The rest of a segment that is cut comes again, and is counted then.
                if observes || scan.boundary == 0 {
                    let tally = match reason {
                        _ if observes => Tally::WouldRefuse,
                        Reason::OverLimit => Tally::Limited,
                        _ => Tally::Denied,
                    };
                    if principal != 0 {
                        world.tally(principal, tally);
                    }
                }
                if observed(world, service, reason.into()).is_some() {
                    scan.refuse(reason.into());
                    return false;
                }
            }
        },
        Step::Refused(refusal) => {
            let Some(refusal) = observed(world, service, refusal) else {
                machine.make_opaque();
                return true;
            };
            scan.refuse(refusal);
            return false;
        }
    }
    if machine.is_between_requests() {
        scan.boundary = scan.position();
    }
    true
}

/// Whether a request with this key may pass; `Err` names the principal too, 0 if there is none. Charges if it may.
#[inline(always)]
fn decide<'m, W: World<'m>>(world: &W, tag: Option<KeyTag>, now: u64) -> Result<u32, (Reason, u32)> {
    let Some(tag) = tag else { return Err((Reason::Unkeyed, 0)) };
    let Some(key) = world.key(tag) else { return Err((Reason::UnknownKey, 0)) };
    let principal = key.principal;
    if key.flags & Key::DISABLED != 0 {
        return Err((Reason::KeyDisabled, principal));
    }
    if now < key.not_before || now >= key.expires {
        return Err((Reason::KeyExpired, principal));
    }
    // A principal without a policy has no limit that could be kept: refused.
    let Some(policy) = world.policy(principal) else { return Err((Reason::OverLimit, principal)) };
    if policy.flags & Policy::IN_USE != 0 && world.charge(principal, policy, now) {
        Ok(principal)
    } else {
        Err((Reason::OverLimit, principal))
    }
}

/// `None`, and counted, where the service only observes.
#[inline(always)]
fn observed<'m, W: World<'m>>(world: &W, service: &Service, refusal: Refusal) -> Option<Refusal> {
    if service.flags & Service::OBSERVE == 0 {
        return Some(refusal);
    }
    world.count(Count::WouldRefuse(refusal.reason));
    if let Some(kind) = refusal.kind {
        world.count(Count::Malformed(kind));
    }
    None
}

#[inline(always)]
fn count_refusal<'m, W: World<'m>>(world: &W, refusal: Refusal) {
    world.count(Count::Refused(refusal.reason));
    if let Some(kind) = refusal.kind {
        world.count(Count::Malformed(kind));
    }
}

/// Refuses a segment of a connection that is not followed.
#[inline(always)]
fn refuse_unknown<'m, W: World<'m>>(
    world: &W,
    scratch: &mut Scratch,
    segment: &Segment,
    service: &Service,
    next: u32,
    reason: Reason,
) -> Verdict {
    let Some(refusal) = observed(world, service, reason.into()) else { return Verdict::Pass };
    count_refusal(world, refusal);
    act(world, scratch, segment, service, next, reason)
}

/// Does to a refused segment what the service says.
#[inline(always)]
fn act<'m, W: World<'m>>(
    world: &W,
    scratch: &mut Scratch,
    segment: &Segment,
    service: &Service,
    next: u32,
    reason: Reason,
) -> Verdict {
    if service.actions[reason as usize & 31] == Action::Reset as u8 {
        world.count(Count::Event(Event::Reset));
        Verdict::Rewritten(reply::reset(&mut scratch.head, segment, next))
    } else {
        drop_as(world, Event::Dropped)
    }
}

/// A later segment of a refused connection, or one of a connection that nobody holds.
#[inline(always)]
fn after_refusal<'m, W: World<'m>>(
    world: &W,
    scratch: &mut Scratch,
    segment: &Segment,
    flow: Option<&mut Flow>,
    next: Option<u32>,
) -> Verdict {
    world.count(Count::Event(Event::AfterRefusal));
    if let Some(flow) = flow {
        flow.after = flow.after.wrapping_add(1);
    }
    Verdict::Rewritten(match next {
        Some(next) => reply::reset(&mut scratch.head, segment, next),
        None => reply::strip(&mut scratch.head, segment),
    })
}

/// A sum over bytes of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Sum {
    /// The next byte.
    at: u32,
    /// Bytes that are left.
    left: u32,
    total: u64,
}

/// Adds the next 64 bytes to the sum; `false` at its end.
#[inline(always)]
pub fn sum_step<'m, W: World<'m>>(world: &W, sum: &mut Sum, window: &mut Window) -> bool {
    let len = if sum.left > 64 { 64 } else { sum.left };
    if len == 0 || !world.load(window, sum.at, len) {
        return false;
    }
    macro_rules! word {
        ($behind:literal) => {
            let count = len.saturating_sub($behind);
            sum.total = reply::add(
                sum.total,
                crate::http::bytes::lowest(window.word_behind::<$behind>(BASE), count).to_le(),
            );
        };
    }
    word!(0);
    word!(8);
    word!(16);
    word!(24);
    word!(32);
    word!(40);
    word!(48);
    word!(56);
    sum.at = sum.at.wrapping_add(len);
    sum.left = sum.left.wrapping_sub(len);
    sum.left > 0
}
