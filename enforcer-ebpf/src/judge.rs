//! A packet's whole way, from frame to verdict. The kernel and the tests each provide a [`World`]; all else is here.
//!
//! [`packet`] is the road: wire, service, flow, then [`step`] for every line of HTTP, [`decide`] for every request,
//! and [`Verdict`] at the end. A verdict is for requests, never for packets: each request of a segment is judged,
//! and a segment whose later request fails is cut behind its last good one.
//!
//! # Layout, in the order of a packet
//! - this file: from the frame to what is to be done with a segment, and what becomes of a refused one
//! - [`reading`]: a payload, read in steps
//! - [`decision`]: one request
//! - [`holding`]: whether its connection is one too many
//! - [`explain`]: what would become of a request, for people who ask
//! - [`again`]: bytes that were judged before
//! - [`sum`]: the checksum of a segment that is cut
//! - [`bare`]: segments that carry nothing; handshakes that wait for the first request
//! - [`kept`]: a connection that goes on although a request of it was refused
//! - [`told`]: the connection of a refused request whose client is answered
//! - [`mod@watch`]: what the servers of forwarded connections say

mod again;
mod bare;
mod decision;
pub mod explain;
mod holding;
mod kept;
mod reading;
mod sum;
mod told;
mod watch;

use core::ops::DerefMut;

use crate::abi::{Client, Host, Key, KeyTag, Ruleset, Service, Share};
use crate::connection;
use crate::flow::{self, Course, Flow, Handshake, Mark, Place, Plan, Receiver, Set, receiver, stage};
use crate::http::bytes::Window;
use crate::http::{Lookup, Refusal, Step};
use crate::reply::{self, Rewrite};
use crate::source::{Address, Level, Source};
use crate::verdict::{Action, Count, Event, Reason};
use crate::wire::{self, Head, NotTcp, Segment, Tuple, flag};
use again::Memory;
pub use decision::{
    Decision, Party, admission, assign, claim, claim_pair, decide, identify, is_of_principal, is_paid, is_shared, open,
    party, pay, release, spread,
};
pub use holding::{hold, hold_again, settle, would_hold};
use kept::Meanwhile;
pub use reading::{Piece, Reading, Refill, Scan, advance, introduce, read, refill, step};
pub use sum::{Sum, sum_step};
pub use watch::watch;

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
    /// [`crate::abi::Meter::key_in_url`].
    KeyInUrl,
}

/// What the judge needs of its surroundings: tables, clock, packet.
///
/// The methods with a body are parts of the judge itself. The kernel makes functions of them that the verifier
/// checks once each, instead of in every state of their callers.
pub trait World: Lookup + connection::Tables + Sized {
    /// A set of the flow table, locked until it is dropped.
    type Guard: DerefMut<Target = Set>;

    /// CLOCK_BOOTTIME in ns.
    fn now(&self) -> u64;
    /// Unix time in ns at `now`. It goes with the clock when that is set.
    fn time_of_day(&self, now: u64) -> u64;
    /// Copies the service that guards a port; `false` if none does.
    fn service(&self, port: u16, service: &mut Service) -> bool;
    /// Secret of the flow table's hash.
    fn flow_secret(&self) -> [u64; 2];
    /// Secret of the key tags.
    fn key_secret(&self) -> [u64; 2];
    /// Locks the set that a hash falls into; `None` if another CPU will not let go of it.
    fn lock(&self, hash: u64) -> Option<Self::Guard>;
    /// Asks the local host for the connection's socket.
    fn receiver(&self, tuple: &Tuple) -> Receiver;
    /// Copies a mark; `false` if there is none at this place.
    fn mark(&self, place: Place, mark: &mut Mark) -> bool;
    /// Keeps a mark.
    fn put_mark(&self, place: Place, mark: &Mark);
    /// Who was charged for the head that ended at this place; all 0 if nobody is known to have been.
    fn payer(&self, place: Place) -> KeyTag;
    /// Keeps who was charged for a head.
    fn put_payer(&self, place: Place, tag: KeyTag);
    /// The handshake of a forwarded connection that waits for its first byte; all 0 if there is none.
    fn handshake(&self, tuple: &Tuple) -> Handshake;
    /// Keeps a handshake.
    fn put_handshake(&self, tuple: &Tuple, handshake: Handshake);
    /// Forgets a handshake.
    fn end_handshake(&self, tuple: &Tuple);
    /// Copies `len` bytes (1–[`crate::http::bytes::CAPACITY`]) of the frame, from `at`, into the window behind
    /// [`crate::http::bytes::BASE`].
    fn load(&self, window: &mut Window, at: u32, len: u32) -> bool;
    /// A registered key.
    fn key(&self, tag: KeyTag) -> Option<Key>;
    /// Copies the rules of a service; all 0 if it has none.
    fn rules(&self, service: &Service, rules: &mut Ruleset);
    /// Copies the service that a host is of, of those that are told apart by it: of one that none is for the service that
    /// takes all others. `false` if there is none.
    fn service_of(&self, host: Host, service: &mut Service) -> bool;
    /// Copies the rule that the reading's service has of the path and method of the request whose head is complete; `false` if
    /// there is none.
    fn rule(&self, flow: &Flow, reading: &mut Reading) -> bool;
    /// Whether one of these exemptions is for an address, and has not ended.
    fn is_exempt(&self, exemptions: u64, address: Address, now: u64) -> bool;
    /// The slot of a principal's policy; 0 if it has none, and so no limit that could be kept.
    fn policy(&self, principal: u32, now: u64) -> u32;
    /// [`crate::abi::Policy::tenant`] of a slot, and its scope.
    fn tenant(&self, slot: u32) -> (u32, u64);
    /// What a client id has of its principal's budget: as declared, or what all others share; `None` if nothing is said.
    fn share(&self, client: Client) -> Option<Share>;
    /// [`open`] for each of the reading's claims.
    fn open(&self, reading: &mut Reading);
    /// Whether the source of the reading's first claim is refused for the bad keys that it has sent.
    fn is_blocked(&self, reading: &Reading) -> bool;
    /// Refuses that source for as long as the rules say, and counts that.
    fn block(&self, reading: &Reading);
    /// [`crate::spread::sight`] of the reading's pair, in the buckets of a claim.
    fn sight(&self, reading: &mut Reading, claim: usize) -> bool;
    /// Begins a penalty of a source.
    fn penalise(&self, source: Source, now: u64, service: &Service);
    /// Runs the reading's charge to its end, and counts what its limits have refused; whether it may pass. Buckets that are not
    /// there are made when they are come to, by [`World::open`].
    fn charge(&self, reading: &mut Reading) -> bool;
    /// Counts for a principal.
    fn tally(&self, principal: u32, tally: Tally);
    /// Counts.
    fn count(&self, count: Count);
    /// Counts a refusal of a source: [`crate::source::Record::refuse`].
    fn refused(&self, source: Source, now: u64, service: &Service) -> Level;
    /// Notes that a registered key was served from a source.
    fn served(&self, source: Source, now: u64);
    /// Whether a source is under a penalty.
    fn is_penalised(&self, source: Source) -> bool;
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
    fn room(&self, set: &Set, now: u64, refused: bool) -> Option<u32> {
        set.room(now, refused)
    }

    /// Whether the server's SYN-ACK of this handshake was met where what it sends can be translated.
    #[inline(always)]
    fn has_left(&self, tuple: &Tuple, client: u32, server: u32) -> bool {
        self.handshake(&tuple.reversed()) == Handshake { client, server }
    }

    /// [`refill`].
    #[inline(always)]
    fn refill(&self, reading: &mut Reading, flow: &mut Flow) -> Refill {
        refill(self, reading, flow)
    }

    /// [`advance`].
    #[inline(always)]
    fn advance(&self, reading: &mut Reading, flow: &mut Flow) -> Step {
        advance(self, reading, flow)
    }

    /// [`introduce`].
    #[inline(always)]
    fn introduce(&self, reading: &mut Reading, flow: &mut Flow) -> Refill {
        introduce(self, reading, flow)
    }

    /// [`decide`].
    #[inline(always)]
    fn decide(&self, reading: &mut Reading, flow: &mut Flow, position: u64) -> Decision {
        decide(self, reading, flow, position)
    }

    /// [`assign`].
    #[inline(always)]
    fn assign(&self, reading: &mut Reading, flow: &Flow) -> Option<Reason> {
        assign(self, reading, flow)
    }

    /// [`release`].
    #[inline(always)]
    fn release(&self, reading: &mut Reading, flow: &Flow) {
        release(self, reading, flow);
    }

    /// [`is_paid`].
    #[inline(always)]
    fn is_paid(&self, reading: &Reading, flow: &Flow, position: u64) -> bool {
        is_paid(self, reading, flow, position)
    }

    /// [`pay`].
    #[inline(always)]
    fn pay(&self, reading: &Reading, flow: &mut Flow, position: u64) {
        pay(self, reading, flow, position);
    }

    /// [`identify`].
    #[inline(always)]
    fn identify(&self, reading: &mut Reading, flow: &Flow) -> Option<Reason> {
        identify(self, reading, flow)
    }

    /// [`hold`].
    #[inline(always)]
    fn hold(&self, reading: &mut Reading, flow: &Flow) -> Option<Reason> {
        hold(self, reading, flow)
    }

    /// [`hold_again`].
    #[inline(always)]
    fn hold_again(&self, reading: &mut Reading, flow: &mut Flow) -> Option<Reason> {
        hold_again(self, reading, flow)
    }

    /// [`settle`].
    #[inline(always)]
    fn settle(&self, reading: &Reading, flow: &mut Flow, passes: bool) -> bool {
        settle(self, reading, flow, passes)
    }

    /// [`claim_pair`].
    #[inline(always)]
    fn claim_pair(&self, reading: &mut Reading, flow: &Flow) {
        claim_pair(reading, flow);
    }

    /// [`spread`].
    #[inline(always)]
    fn spread(&self, reading: &mut Reading) -> Option<Reason> {
        spread(self, reading)
    }

    /// [`claim`].
    #[inline(always)]
    fn claim(&self, reading: &mut Reading, flow: &Flow) -> Option<Reason> {
        claim(self, reading, flow)
    }
}

/// What lies in memory while a packet is judged; it holds keys in clear, and is wiped behind each packet.
#[repr(C)]
pub struct Scratch {
    /// The headers, parsed. Beside the desk, so that they can be read where they are while the desk is worked on.
    pub segment: Segment,
    /// All else.
    pub desk: Desk,
}

/// What changes while a segment is judged.
#[repr(C)]
pub struct Desk {
    /// The frame's first bytes.
    pub head: Head,
    /// The payload being read.
    pub reading: Reading,
    /// The sum under way, for a segment that is cut.
    pub sum: Sum,
    /// The mark that is being made, or that is read from again.
    pub mark: Mark,
    /// Where the connection stood before bytes were read again.
    pub stood: crate::http::Machine,
    /// What the server had written of its side when the packet came.
    pub written: u32,
    /// The segment's sequence number, as the client counts; where its connection was kept, the server counts otherwise.
    pub seq: u32,
    /// What it acknowledges, likewise.
    pub ack: u32,
    /// 1 if its handshake waits for its end.
    pub unaccepted: u32,
}

impl Scratch {
    /// Empty.
    #[must_use]
    pub fn new() -> Self {
        Self {
            segment: Segment::default(),
            desk: Desk {
                head: Head::new(),
                reading: Reading::default(),
                sum: Sum::default(),
                mark: Mark::default(),
                stood: crate::http::Machine::default(),
                written: 0,
                seq: 0,
                ack: 0,
                unaccepted: 0,
            },
        }
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

/// What is done with a packet. Every field is always set, for the reason that [`Receiver`] gives.
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

/// Judges a frame of `frame` bytes whose first bytes are in the scratch.
#[inline(always)]
pub fn packet<W: World>(world: &W, scratch: &mut Scratch, frame: u32) -> Verdict {
    let Scratch { segment, desk } = scratch;
    match wire::parse(&desk.head, frame, segment) {
        Ok(()) => {}
        Err(NotTcp::Other) => return Verdict::PASS,
        Err(NotTcp::Unreadable(reason)) => return drop_unread(world, reason),
    }
    if !world.service(segment.tuple.destination_port(), &mut desk.reading.service) {
        return Verdict::PASS;
    }
    let verdict = guarded(world, desk, segment);
    // Who only observes changes nothing.
    if desk.reading.service.observes() { Verdict::PASS } else { verdict }
}

/// A segment for a guarded port.
#[inline(always)]
fn guarded<W: World>(world: &W, desk: &mut Desk, segment: &mut Segment) -> Verdict {
    if segment.fragment != 0 {
        return refuse_unread(world, desk, Reason::Fragment);
    }
    if segment.has(flag::RST) {
        return Verdict::PASS;
    }
    // A source under a penalty begins no connection. What comes on those that it has is judged as ever: dropped, a refused
    // request would keep its worker waiting for as long as the penalty takes.
    if segment.has(flag::SYN)
        && desk.reading.service.penalty_ns != 0
        && world.is_penalised(Source::of(&segment.tuple, &desk.reading.service))
    {
        return drop_as(world, Event::Penalised);
    }
    // Data without ACK, or in a SYN, is not of the stream that its handshake begins. An urgent pointer alone changes
    // what later data means.
    let carries = flow::carries(segment);
    if if carries { segment.has(flag::SYN) || !segment.has(flag::ACK) } else { segment.has(flag::URG) } {
        return refuse_unread(world, desk, Reason::Unorderly);
    }
    if !carries {
        let begins = segment.has(flag::SYN);
        return if begins || desk.reading.service.observes() { Verdict::PASS } else { bare::judge(world, segment) };
    }
    data(world, desk, segment)
}

/// Whatever the service does to requests, what cannot be placed in a connection is dropped: a RST for it would let
/// anybody end the connections of others.
#[inline(always)]
fn refuse_unread<W: World>(world: &W, desk: &Desk, reason: Reason) -> Verdict {
    if observed(world, &desk.reading.service, reason.into()).is_none() {
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

/// A segment with data or a FIN.
#[inline(always)]
fn data<W: World>(world: &W, desk: &mut Desk, segment: &mut Segment) -> Verdict {
    let hash = flow::hash(world.flow_secret(), &segment.tuple);
    let Some(mut set) = world.lock(hash) else { return drop_as(world, Event::Contended) };
    let now = world.now();
    let receiver = world.receiver(&segment.tuple);
    let handshake = match receiver.state {
        receiver::ABSENT | receiver::LISTENING => world.handshake(&segment.tuple),
        _ => Handshake::default(),
    };
    let found = world.find(&set, hash, &segment.tuple);
    desk.seq = segment.seq;
    desk.ack = segment.ack;
    desk.unaccepted = u32::from(receiver.state == receiver::REQUEST);
    if let Some(way) = found {
        let flow = set.flow(way);
        if told::is_of(flow, segment, receiver, handshake) {
            return told::go_on(world, desk, segment, flow, receiver, now);
        }
        if flow.shift.is_kept != 0 && flow.is_of(receiver, handshake) {
            if flow.stage == stage::FOLLOWED && flow.shift.holds(segment.seq, segment.end()) {
                return kept::take(world, desk, segment, flow, now);
            }
            kept::shift(segment, flow);
            match kept::meanwhile(desk, segment, flow, now) {
                Meanwhile::GoesOn => {}
                Meanwhile::Dropped => return drop_as(world, Event::AfterRefusal),
                Meanwhile::Ended => {
                    world.count(Count::Event(Event::AfterRefusal));
                    return Verdict::rewritten(reply::reset(&mut desk.head, segment, segment.seq));
                }
            }
        }
    }
    let segment = &*segment;
    let Plan { course, at } = match found {
        Some(way) => {
            let flow = set.flow(way);
            flow.catch_up(receiver);
            flow::plan(Some(flow), segment, receiver, handshake, now)
        }
        None => flow::plan(None, segment, receiver, handshake, now),
    };
    if segment.has(flag::URG) && course != Course::Read && course != Course::Enter {
        return refuse_unread(world, desk, Reason::Unorderly);
    }
    let way = match course {
        Course::Read | Course::Again => found,
        Course::Enter => {
            let way = match found {
                Some(way) => Some(way),
                None => world.room(&set, now, false),
            };
            let Some(way) = way else {
                return refuse_unknown(world, desk, segment, at, Reason::FlowTableFull);
            };
            let flow = set.enter(way, hash, &segment.tuple, at, stage::FOLLOWED, now);
            flow.server = receiver.server;
            if receiver.state < receiver::STREAM {
                flow.server = handshake.server;
                flow.written = handshake.server;
                world.end_handshake(&segment.tuple);
            }
            Some(way)
        }
        Course::Old => {
            world.count(Count::Event(Event::OldData));
            return Verdict::PASS;
        }
        Course::Ahead => return drop_as(world, Event::OutOfOrder),
        Course::Unknown => {
            if found.is_none()
                && receiver.state == receiver::ABSENT
                && let Some(way) = world.room(&set, now, true)
            {
                // Its later segments end both sides in turn.
                let flow = set.enter(way, hash, &segment.tuple, at, stage::REFUSED, now);
                flow.reason = Reason::MidStream as u32;
            }
            return refuse_unknown(world, desk, segment, at, Reason::MidStream);
        }
        Course::Reset => return after_refusal(world, desk, segment, found.map(|way| set.flow(way)), Some(at)),
        Course::Strip => return after_refusal(world, desk, segment, found.map(|way| set.flow(way)), None),
    };
    // The courses that are left come only of a flow that was found or entered.
    let Some(way) = way else { return Verdict::DROP };
    let flow = set.flow(way);
    flow.touched = now;
    if receiver.state >= receiver::STREAM {
        // Or from now on, where a SYN cookie stood in its place before.
        flow.local = 1;
        flow.accepted = receiver.next;
    }
    world.rules(&desk.reading.service, &mut desk.reading.rules);
    let headers = desk.reading.rules.flags & (Ruleset::PROXY_1 | Ruleset::PROXY_2);
    if course == Course::Enter && headers != 0 && is_proxied(world, &desk.reading.rules, &segment.tuple) {
        flow.machine.await_header(headers & Ruleset::PROXY_2 != 0);
    }
    desk.written = flow.written(receiver);
    let piece = if course == Course::Again {
        if desk.reading.service.observes() {
            return Verdict::PASS;
        }
        let (memory, end) = again::recall(world, desk, flow, at);
        let from = at.wrapping_sub(segment.seq);
        let left = segment.len.wrapping_sub(from);
        let judged = end.wrapping_sub(at);
        let len = if judged < left { judged } else { left };
        match memory {
            Memory::None => return again::forgotten(world, desk, segment, flow, at),
            Memory::Body => return again::pass(world, desk, segment, from.wrapping_add(len)),
            Memory::Read => Piece { from, len, again: 1 },
        }
    } else {
        // Before anything was written behind the last request, its response has not begun.
        if flow.served != 0 && flow.asked == desk.written && flow.machine.is_between_requests() {
            flow.pipelined = 1;
        }
        Piece::fresh(segment, flow)
    };
    read(world, desk, segment, flow, piece)
}

/// Whether a connection comes from a proxy that tells where its requests come from.
#[inline(always)]
fn is_proxied<W: World>(world: &W, rules: &Ruleset, tuple: &Tuple) -> bool {
    rules.trusts != 0 && world.is_trusted(tuple.mapped_source(), rules.trusts)
}

/// Refuses a connection's bytes from `begin` on, and with them all that follow.
#[inline(always)]
fn refuse<W: World>(
    world: &W,
    desk: &mut Desk,
    segment: &Segment,
    flow: &mut Flow,
    begin: u32,
    refusal: Refusal,
) -> Verdict {
    count_refusal(world, refusal);
    flow.machine.forget_key();
    flow.reason = refusal.reason as u32;
    // What a trusted proxy hands on is not its own doing, and the addresses that it tells begin no connections here: none of
    // them gets a penalty, and no answer is left out that others behind the proxy would miss.
    let level = if is_proxied(world, &desk.reading.rules, &segment.tuple) {
        Level::AsSet
    } else {
        world.refused(Source::of(&segment.tuple, &desk.reading.service), flow.touched, &desk.reading.service)
    };
    if told::answer(desk, segment, flow, refusal.reason, level) {
        kept::note_way(world, desk, segment, flow);
        if kept::keep(desk, segment, flow, begin, refusal.reason) {
            flow.told.keeps = 1;
        } else {
            flow.stage = stage::ANSWERED;
        }
        return Verdict::rewritten(reply::reset(&mut desk.head, segment, begin));
    }
    flow.stage = stage::REFUSED;
    act(world, desk, segment, begin, refusal.reason)
}

/// Passes the first `len` bytes of a segment's payload; the rest is judged when it is sent again. Where no length field
/// can say what would be kept, all of it is: behind a loss TCP sends one segment at a time (RFC 5681 §3.1).
#[inline(always)]
fn cut<W: World>(world: &W, desk: &mut Desk, segment: &Segment, len: u32) -> Verdict {
    if !reply::can_cut(segment, len) {
        return drop_as(world, Event::Dropped);
    }
    world.count(Count::Event(Event::Cut));
    desk.sum = Sum::new(reply::summed_from(segment), reply::summed(segment, len));
    world.drive_sum(&mut desk.sum, &mut desk.reading.window);
    match desk.sum.total() {
        Some(total) => Verdict::rewritten(reply::cut(&mut desk.head, segment, len, total)),
        None => Verdict::DROP,
    }
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
fn refuse_unknown<W: World>(world: &W, desk: &mut Desk, segment: &Segment, next: u32, reason: Reason) -> Verdict {
    let Some(refusal) = observed(world, &desk.reading.service, reason.into()) else { return Verdict::PASS };
    count_refusal(world, refusal);
    act(world, desk, segment, next, reason)
}

/// Does to a refused segment what the service says.
#[inline(always)]
fn act<W: World>(world: &W, desk: &mut Desk, segment: &Segment, next: u32, reason: Reason) -> Verdict {
    if desk.reading.service.action(reason as u32) == Action::Drop as u8 {
        return drop_as(world, Event::Dropped);
    }
    world.count(Count::Event(Event::Reset));
    Verdict::rewritten(reply::reset(&mut desk.head, segment, next))
}

/// A later segment of a refused connection, or one of a connection that nobody holds.
#[inline(always)]
fn after_refusal<W: World>(
    world: &W,
    desk: &mut Desk,
    segment: &Segment,
    flow: Option<&mut Flow>,
    next: Option<u32>,
) -> Verdict {
    world.count(Count::Event(Event::AfterRefusal));
    let mut seq = segment.seq;
    if let Some(flow) = flow
        && flow.stage == stage::REFUSED
    {
        flow.after = flow.after.wrapping_add(1);
        // As it is, it may be what a SYN cookie waits for, and begin the refused connection anew. The lowest bits of a
        // cookie say which MSS it is for (net/ipv4/syncookies.c): no number that is close by is one either.
        seq = segment.end().wrapping_add(16);
        if desk.reading.service.action(flow.reason) == Action::Drop as u8 {
            return Verdict::DROP;
        }
    }
    Verdict::rewritten(match next {
        Some(next) => reply::reset(&mut desk.head, segment, next),
        None => reply::strip(&mut desk.head, segment, seq),
    })
}
