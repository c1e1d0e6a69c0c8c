//! A payload, read in steps: each sees a window of it, and does a bounded amount of work.

use super::{Decision, Desk, Party, Tally, Verdict, World, again, cut, kept, observed, refuse};
use crate::abi::{KeyTag, Rule, Ruleset, Service, Sighting};
use crate::charge::Charge;
use crate::connection::Hold;
use crate::flow::{Flow, Place, after};
use crate::http::bytes::{BASE, CAPACITY, Window};
use crate::http::{Cursor, Refusal, Step, Terms};
use crate::opaque::zero;
use crate::source::Source;
use crate::verdict::{Count, Event, Malformation, Reason};
use crate::wire::{Segment, flag};
use crate::words;

/// The part of a segment's payload that is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Bytes of payload before it.
    pub from: u32,
    /// Its bytes.
    pub len: u32,
    /// 1 if it was judged before.
    pub again: u32,
}

impl Piece {
    /// What a segment has beyond what was judged.
    #[must_use]
    #[inline(always)]
    pub fn fresh(segment: &Segment, flow: &Flow) -> Self {
        let judged = flow.next().wrapping_sub(segment.seq);
        let from = if judged > segment.len { segment.len } else { judged };
        Self { from, len: segment.len - from, again: 0 }
    }
}

/// A payload being read.
#[repr(C)]
pub struct Reading {
    /// How far it has come.
    pub scan: Scan,
    /// Whom it is for.
    pub service: Service,
    /// The service's rules.
    pub rules: Ruleset,
    /// The rule of the request under decision.
    pub rule: Rule,
    /// Who that is from.
    pub party: Party,
    /// Likewise, and by which rule, as one value.
    pub identity: KeyTag,
    /// Its source and its key.
    pub sighting: Sighting,
    /// What its connection is to count in.
    pub hold: Hold,
    /// What it is charged to.
    pub charge: Charge,
    /// The piece of it that is in memory.
    pub window: Window,
}

impl Default for Reading {
    fn default() -> Self {
        Self {
            scan: Scan::default(),
            service: Service::DEFAULT,
            rules: Ruleset::default(),
            rule: Rule::default(),
            party: Party::default(),
            identity: KeyTag::default(),
            sighting: Sighting::default(),
            hold: Hold::default(),
            charge: Charge::default(),
            window: Window::new(),
        }
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
    /// 1 if the bytes were judged before.
    again: u32,
    /// Bytes of the segment's payload before those that are read.
    from: u32,
    /// What is kept of where reading began, a [`keep`].
    keep: u32,
    /// Bytes that could be skipped when it began.
    body: u64,
    /// Bytes of the stream before the payload's first that is read.
    position: u64,
    /// For [`end::REFUSED`]: a reason, and 1 + a kind of malformation or 0.
    reason: u8,
    kind: u8,
    /// Likewise: 1 if the request's method is HEAD.
    bodiless: u8,
    /// 1 if the request that is decided on comes from a trusted proxy.
    pub(super) proxied: u8,
    /// Likewise: [`kept::left`] of the request.
    left: u32,
}

/// Where the state is kept that reading began with.
mod keep {
    /// With the connection; 0 is nowhere.
    pub(super) const NEAR: u32 = 1;
    /// In the map of marks.
    pub(super) const FAR: u32 = 2;
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

/// Reads a piece of a segment's payload, and settles what becomes of the segment.
#[inline(always)]
pub fn read<W: World>(world: &W, desk: &mut Desk, segment: &Segment, flow: &mut Flow, piece: Piece) -> Verdict {
    let again = piece.again != 0;
    let begin = segment.seq.wrapping_add(piece.from);
    if !again {
        let refused = if segment.has(flag::URG) {
            // The receiver takes urgent data out of the stream (RFC 6093): what it reads is not what is here.
            Some(Reason::Unorderly)
        } else if is_late(&desk.reading.service, flow) {
            Some(Reason::SlowHead)
        } else {
            None
        };
        if let Some(reason) = refused {
            let Some(refusal) = observed(world, &desk.reading.service, reason.into()) else {
                flow.machine.make_opaque();
                flow.advance(segment.len, false);
                return Verdict::PASS;
            };
            return refuse(world, desk, segment, flow, begin, refusal);
        }
    }
    let place = flow.place(begin);
    let Desk { reading, mark, .. } = desk;
    // What is known here is written down and read again behind the loop: carried along in registers, the verifier
    // would walk the loop once for every combination.
    reading.scan = Scan::new(flow.touched, segment.payload, piece, place.position);
    reading.scan.body = flow.machine.skippable();
    // Within one body any bytes may come again: no mark is needed for what is nothing else.
    let within = flow.machine.is_in_plain_body() && begin != flow.body && reading.scan.body > u64::from(piece.len);
    if !again && piece.len > 0 && !within {
        if flow.marked == u64::MAX || !after(flow.mark.end, flow.accepted) {
            reading.scan.keep = keep::NEAR;
            words::copy(&flow.machine, &mut flow.mark.machine);
        } else {
            reading.scan.keep = keep::FAR;
            words::copy(&flow.machine, &mut mark.machine);
        }
    }
    if reading.scan.len > 0 {
        let pos = flow.machine.resume(&mut reading.window);
        reading.scan.cursor = Cursor { pos, end: BASE };
        world.drive(reading, flow);
    } else {
        reading.scan.outcome = end::READ;
    }
    settle(world, desk, segment, flow)
}

/// What becomes of a segment whose piece was read.
#[inline(always)]
fn settle<W: World>(world: &W, desk: &mut Desk, segment: &Segment, flow: &mut Flow) -> Verdict {
    let scan = &desk.reading.scan;
    let again = scan.again != 0;
    let begin = segment.seq.wrapping_add(scan.from);
    let is_cut = scan.outcome == end::CUT && !again;
    let mut refusal = if is_cut { None } else { scan.refusal() };
    // Some servers run a request whose head ends so.
    if refusal.is_none() && segment.has(flag::FIN) && flow.machine.is_in_head() && !is_cut {
        refusal = observed(world, &desk.reading.service, Refusal::from(Reason::FinInHead));
    }
    if again {
        let piece = Piece { from: desk.reading.scan.from, len: desk.reading.scan.len, again: 1 };
        return again::compare(world, desk, segment, flow, piece, refusal);
    }
    if let Some(refusal) = refusal {
        // What was judged ends where it did before; what comes again before that must lead to the same state.
        if desk.reading.scan.keep == keep::NEAR {
            words::copy(&flow.mark.machine, &mut flow.machine);
        } else if desk.reading.scan.keep == keep::FAR {
            words::copy(&desk.mark.machine, &mut flow.machine);
        }
        return refuse(world, desk, segment, flow, begin, refusal);
    }
    let Desk { reading: Reading { scan, .. }, mark, written, .. } = desk;
    let len = if is_cut { scan.boundary } else { scan.len };
    if is_cut {
        // A head among what is cut off may have been charged: see `decide`.
        flow.decided = scan.position.wrapping_add(u64::from(scan.position()));
        flow.machine.rewind();
    }
    if is_cut || (scan.boundary > 0 && scan.boundary < scan.len) {
        flow.pipelined = 1;
    }
    if !flow.machine.is_in_head() {
        flow.asked = *written;
    }
    // A body that could not end within these bytes goes on; another begins behind them at the earliest.
    flow.advance(len, scan.body > u64::from(len));
    if !flow.machine.is_awaited() {
        flow.head_since = 0;
    } else if flow.head_since == 0 {
        flow.head_since = flow.touched;
    }
    if scan.keep == keep::NEAR {
        flow.marked = scan.position;
        flow.mark.end = flow.next();
    } else if scan.keep == keep::FAR {
        mark.end = flow.next();
        world.put_mark(Place { flow: flow.id, position: scan.position }, mark);
    }
    let passed = scan.from.wrapping_add(len);
    if is_cut {
        return cut(world, desk, segment, passed);
    }
    if segment.has(flag::FIN) {
        flow.finished = 1;
    }
    Verdict::PASS
}

/// Whether the head under way should have ended by now.
#[inline(always)]
fn is_late(service: &Service, flow: &Flow) -> bool {
    flow.head_since != 0 && flow.touched.saturating_sub(flow.head_since) > service.head_timeout_ns
}

impl Scan {
    /// Of `piece` of the payload at `payload`, which stands at `position` in the stream, met at `now`.
    #[inline(always)]
    pub(super) fn new(now: u64, payload: u32, piece: Piece, position: u64) -> Self {
        let zero = zero() as u32;
        Self {
            now,
            cursor: Cursor { pos: zero, end: zero },
            payload: payload + piece.from,
            len: piece.len,
            next: zero,
            boundary: zero,
            outcome: zero,
            again: piece.again,
            from: piece.from,
            keep: zero,
            body: u64::from(zero),
            position,
            reason: zero as u8,
            kind: zero as u8,
            bodiless: zero as u8,
            proxied: zero as u8,
            left: kept::CANNOT,
        }
    }

    /// Bytes of the payload that were read or skipped.
    #[inline(always)]
    pub(super) fn position(&self) -> u32 {
        self.next.wrapping_sub(self.cursor.unread())
    }

    /// Why the bytes are refused; `None` if they were read to their end.
    #[inline(always)]
    fn refusal(&self) -> Option<Refusal> {
        if self.outcome == end::READ {
            return None;
        }
        let reason = Reason::from_index(self.reason).unwrap_or(Reason::Unparsable);
        let kind = Malformation::from_index(self.kind.wrapping_sub(1));
        Some(Refusal { reason, kind })
    }

    /// Whether all of the payload was loaded or skipped.
    #[inline(always)]
    pub(super) fn is_loaded(&self) -> bool {
        self.next == self.len
    }

    /// Whether the bytes were judged before.
    #[inline(always)]
    pub(super) fn is_again(&self) -> bool {
        self.again != 0
    }

    /// Whether the request that is refused may be answered with no body: 1 or 0.
    #[inline(always)]
    pub(super) fn bodiless(&self) -> u32 {
        u32::from(self.bodiless)
    }

    /// Bytes of the refused request that are still to come, or [`kept::CANNOT`].
    #[inline(always)]
    pub(super) fn left(&self) -> u32 {
        self.left
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
    /// Bytes were skipped, or read already.
    Skipped = 1,
    /// The payload is at its end, or is refused, or could not be read.
    Ended = 2,
}

/// Sees to it that the window holds what the next step must see, or skips what is none of HTTP's: what nobody reads, and the
/// header before it.
#[inline(always)]
pub fn refill<W: World>(world: &W, reading: &mut Reading, flow: &mut Flow) -> Refill {
    match fill(world, reading, flow) {
        Refill::Ready if flow.machine.is_before_http() => world.introduce(reading, flow),
        refill => refill,
    }
}

/// Reads on by a step in the header before HTTP.
#[inline(always)]
pub fn introduce<W: World>(world: &W, reading: &mut Reading, flow: &mut Flow) -> Refill {
    let Reading { scan, window, service, .. } = reading;
    match flow.machine.header(window, &mut scan.cursor) {
        Step::Refused(refusal) => match observed(world, service, refusal) {
            Some(refusal) => {
                scan.refuse(refusal);
                Refill::Ended
            }
            None => {
                flow.machine.make_opaque();
                Refill::Skipped
            }
        },
        Step::Starved if scan.next == scan.len => {
            scan.outcome = end::READ;
            Refill::Ended
        }
        _ => Refill::Skipped,
    }
}

#[inline(always)]
fn fill<W: World>(world: &W, reading: &mut Reading, flow: &mut Flow) -> Refill {
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
        if machine.is_behind_request() {
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

/// [`crate::http::Machine::step`] on what is being read.
#[inline(always)]
pub fn advance<W: World>(world: &W, reading: &mut Reading, flow: &mut Flow) -> Step {
    // The last request has passed.
    if reading.service.number != reading.service.leader {
        world.release(reading, flow);
    }
    let Reading { scan, window, service, rules, .. } = reading;
    let terms = Terms { service, rules, peer: flow.tuple.mapped_source(), secret: world.key_secret() };
    flow.machine.step(window, &mut scan.cursor, &terms, world)
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
        Step::Starved if reading.scan.is_loaded() => {
            flow.machine.suspend(&reading.window, reading.scan.cursor);
            reading.scan.outcome = end::READ;
            return false;
        }
        Step::Starved => return true,
        Step::Head => {
            let scan = &reading.scan;
            let bodiless = flow.machine.is_bodiless();
            let left = match flow.machine.plain_body() {
                Some(body) => kept::left(scan.len.wrapping_sub(scan.position()), body),
                None => kept::CANNOT,
            };
            let position = scan.position.wrapping_add(u64::from(scan.position()));
            let decision = world.decide(reading, flow, position);
            flow.machine.forget_key();
            flow.head_since = 0;
            if !reading.scan.is_again() {
                if flow.machine.has_key_in_url() {
                    world.count(Count::Event(Event::KeyInUrl));
                    if decision.principal != 0 {
                        world.tally(decision.principal, Tally::KeyInUrl);
                    }
                }
                if decision.refused == Some(Reason::Unkeyed) && flow.machine.has_key_elsewhere() {
                    world.count(Count::Event(Event::CarrierMismatch));
                }
            }
            reading.scan.bodiless = u8::from(bodiless);
            reading.scan.left = left;
            if !account(world, reading, decision) {
                return false;
            }
            flow.served = 1;
            if decision.refused.is_none() && decision.principal != 0 && reading.service.penalty_ns != 0 {
                world.served(Source::of(&flow.tuple, &reading.service), reading.scan.now);
            }
        }
        Step::Refused(refusal) => {
            let Some(refusal) = observed(world, &reading.service, refusal) else {
                flow.machine.make_opaque();
                return true;
            };
            reading.scan.bodiless = u8::from(flow.machine.is_bodiless());
            reading.scan.refuse(refusal);
            return false;
        }
    }
    if flow.machine.is_behind_request() {
        if reading.scan.boundary > 0 {
            flow.pipelined = 1;
        }
        reading.scan.boundary = reading.scan.position();
    }
    true
}

/// Counts a decision; `false` if the payload ends with it.
#[inline(always)]
fn account<W: World>(world: &W, reading: &mut Reading, decision: Decision) -> bool {
    let Decision { principal, refused, again } = decision;
    let Some(reason) = refused else {
        if again {
            return true;
        }
        world.count(Count::Event(Event::Allowed));
        if principal != 0 {
            world.tally(principal, Tally::Allowed);
        }
        return true;
    };
    let observes = reading.service.spares();
    // The rest of a segment that is cut comes again, and is counted then.
    if principal != 0 && (observes || reading.scan.boundary == 0) {
        let tally = match reason {
            _ if observes => Tally::WouldRefuse,
            Reason::OverLimit => Tally::Limited,
            _ => Tally::Denied,
        };
        world.tally(principal, tally);
    }
    if observes {
        world.count(Count::WouldRefuse(reason));
        return true;
    }
    reading.scan.refuse(reason.into());
    false
}
