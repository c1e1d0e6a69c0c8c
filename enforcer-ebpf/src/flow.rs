//! The connections: which bytes of a segment are new to the receiver, and from which state they are read.
//!
//! A bypass is any difference between the bytes that are judged here and those that the receiver's TCP accepts
//! (Ptacek & Newsham 1998). So only bytes at exactly the next place are read. What lies beyond waits for its
//! retransmission, unless it is within the body under way, of which no byte matters. What the receiver has accepted
//! already passes, since it overlooks it. What lies between, judged but not accepted, is read once more from the state
//! that it was read from, and passes if it leads to the same state at the same place: whichever copy the receiver takes,
//! what follows is read rightly ([`Mark`]).
//!
//! What the receiver has accepted is not guessed. Where it is local its socket is asked; where the connection is
//! forwarded its own acknowledgements tell, on their way back ([`Receiver`]).
//!
//! The table is set-associative: a keyed hash chooses a set of [`WAYS`] places, one lock guards a set, and only
//! connections that nobody waits for give way. An entry is made by the first payload of a connection whose socket
//! exists or whose handshake was seen to its end, never by a SYN.

use crate::abi::{KeyTag, Name, Scope};
use crate::http::Machine;
use crate::opaque::{opaque, zero};
use crate::shift::Shift;
use crate::source::Address;
use crate::wire::{Segment, Tuple, flag};

/// Places of a set.
pub const WAYS: usize = 8;
/// ns without a segment after which a connection may give way to another.
pub const IDLE_NS: u64 = 60_000_000_000;

/// ns for which a socket's numbers may not belong together: more than any pause between two of its stores.
const TORN_NS: u64 = 1_000_000_000;

/// Stages of a [`Flow`]; numbers, since they lie in a map.
pub mod stage {
    /// Nothing.
    pub const FREE: u32 = 0;
    /// Its bytes are followed.
    pub const FOLLOWED: u32 = 1;
    /// Bytes of it were refused: none from there on reaches the receiver any more.
    pub const REFUSED: u32 = 2;
    /// Likewise, and its client is answered in the receiver's place.
    pub const ANSWERED: u32 = 3;
}

/// The state that judged bytes were read from, and where that reading ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Mark {
    /// The state at the first of the bytes.
    pub machine: Machine,
    /// Sequence number behind the last.
    pub end: u32,
    /// 0.
    pub reserved: u32,
}

/// A place in the stream of a connection: what marks and charges are found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Place {
    /// [`Flow::id`].
    pub flow: u64,
    /// Bytes of the stream before it.
    pub position: u64,
}

/// A handshake that the server of a forwarded connection has agreed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Handshake {
    /// Sequence number of the client's first byte.
    pub client: u32,
    /// Sequence number of the server's first byte: who knows it has seen the SYN-ACK.
    pub server: u32,
}

/// What the client of a refused request is told in the server's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Told {
    /// When it was told last, CLOCK_BOOTTIME in ns.
    pub at: u64,
    /// What is to be sent to it now, a [`due`] number.
    pub due: u32,
    /// Sequence number of the answer's first byte.
    pub seq: u32,
    /// Sequence numbers that the answer takes, its FIN's among them; 0 before it is written.
    pub len: u32,
    /// Sequence number of the next byte that the client is to send.
    pub ack: u32,
    /// TCP timestamps (RFC 7323) for the client: value and echo; both 0 if it sends none.
    pub stamps: [u32; 2],
    /// Which answer: its index in [`crate::abi::map::ANSWERS`], or [`Told::END`].
    pub kind: u32,
    /// 1 if it has no body, since its request's method is HEAD.
    pub bodiless: u32,
    /// The claim whose limits are used up: its [`crate::charge::table`].
    pub table: u32,
    /// Its policy slot; 0 if there is none.
    pub policy: u32,
    /// Requests that the refused one would have counted as.
    pub cost: u32,
    /// Filled in: seconds of Unix time.
    pub date: u32,
    /// Filled in: [`crate::abi::Value::RetryAfter`].
    pub retry: u32,
    /// Filled in: [`crate::abi::Value::Quota`].
    pub quota: u32,
    /// Filled in: [`crate::abi::Value::Window`].
    pub window: u32,
    /// 1 if the connection goes on behind the answer.
    pub keeps: u32,
    /// Whose buckets the claim is of.
    pub scope: Scope,
    /// Filled in: [`crate::abi::Value::Name`].
    pub name: Name,
}

impl Told {
    /// No answer, but the server's end of a connection behind its last one.
    pub const END: u32 = u32::MAX;

    /// Nothing.
    pub const NOTHING: Self = Self {
        at: 0,
        due: due::NOTHING,
        seq: 0,
        len: 0,
        ack: 0,
        stamps: [0; 2],
        kind: 0,
        bodiless: 0,
        table: 0,
        policy: 0,
        cost: 0,
        date: 0,
        retry: 0,
        quota: 0,
        window: 0,
        keeps: 0,
        scope: Scope { rule: 0, subject: [0; 2] },
        name: [0; 2],
    };
}

/// What is due to a client: numbers, since they lie in a map.
pub mod due {
    /// Nothing.
    pub const NOTHING: u32 = 0;
    /// The answer.
    pub const ANSWER: u32 = 1;
    /// An acknowledgment of what came behind the request.
    pub const ACKNOWLEDGMENT: u32 = 2;
    /// A RST.
    pub const RESET: u32 = 3;
}

/// A connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Flow {
    /// Its two ends.
    pub tuple: Tuple,
    /// Where in HTTP its judged bytes end.
    pub machine: Machine,
    /// The latest mark that was free to be kept here; the others are in the map of marks.
    pub mark: Mark,
    /// Where [`Flow::mark`] begins.
    pub marked: u64,
    /// Where the last head ended that was charged; earlier ones are in the map of charges.
    pub charged: u64,
    /// To whom.
    pub payer: KeyTag,
    /// Names the connection in other maps: no two that exist have the same.
    pub id: u64,
    /// Bytes judged.
    pub judged: u64,
    /// Up to here heads were decided on, although what is judged may end before: a segment was cut.
    pub decided: u64,
    /// When a segment of it was last judged, CLOCK_BOOTTIME in ns.
    pub touched: u64,
    /// When the head under way began; 0 if there is none.
    pub head_since: u64,
    /// Sequence number of its first byte; tells it from an earlier or later connection of the same tuple.
    pub base: u32,
    /// Sequence number of the server's first byte; likewise, where the client chooses the same again.
    pub server: u32,
    /// A [`stage`].
    pub stage: u32,
    /// What the receiver had accepted when a segment was last judged.
    pub accepted: u32,
    /// From here up to the next byte to judge the bytes are of one body and mean nothing, whatever they are.
    pub body: u32,
    /// An earlier such stretch, first byte and end.
    pub past: [u32; 2],
    /// Segments met since the refusal.
    pub after: u32,
    /// After a refusal: its [`crate::verdict::Reason`].
    pub reason: u32,
    /// 1 if a local socket vouched for it.
    pub local: u32,
    /// 1 once an end has closed it.
    pub finished: u32,
    /// What the server had written when the last bytes of a request's body passed, or of a head without one.
    pub asked: u32,
    /// 1 once a request has passed.
    pub served: u32,
    /// 1 once a request was sent before the response to the one before it began.
    pub pipelined: u32,
    /// For a forwarded connection: sequence number behind the last byte that its server was seen to send.
    pub written: u32,
    /// 1 once a packet of its server was met on its way out: what is sent that way can be translated.
    pub leaves: u32,
    /// 1 once it counts for its source for as long as its socket is open.
    pub counts: u32,
    /// The principal that it counts for, likewise; 0 = none.
    pub holder: u32,
    /// What its client is told once it is refused.
    pub told: Told,
    /// How its ends count.
    pub shift: Shift,
}

/// Connections whose hashes end alike, under one lock.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Set {
    /// 1 while a CPU is at work on the set.
    pub lock: u64,
    /// Hashes of the connections, 0 where there is none.
    pub hashes: [u64; WAYS],
    /// The connections.
    pub flows: [Flow; WAYS],
}

impl Default for Set {
    fn default() -> Self {
        Self { lock: 0, hashes: [0; WAYS], flows: [Flow::default(); WAYS] }
    }
}

const _: () = {
    assert!(size_of::<Tuple>() == 40);
    assert!(size_of::<Machine>() == 192);
    assert!(size_of::<Mark>() == 200);
    assert!(size_of::<Told>() == 8 + 4 * 16 + 24 + 16);
    assert!(size_of::<Flow>() == 40 + 192 + 200 + 8 * 9 + 4 * 18 + 112 + 40);
    assert!(size_of::<Set>() == 8 + WAYS * (8 + size_of::<Flow>()));
};

/// What is known of the receiving end of a connection. A structure whose every field is set, not an enum: the BPF
/// compiler spills what an enum's variant leaves undefined, and the verifier refuses to read that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receiver {
    /// A [`receiver`] state.
    pub state: u32,
    /// The next byte that it will accept.
    pub next: u32,
    /// The first byte that it ever could.
    pub base: u32,
    /// Sequence number of the first byte that the other way has. Clients choose `base` as they like, and servers
    /// choose this by the clock: it tells a connection from an earlier one between the same ends.
    pub server: u32,
    /// Sequence number behind the last byte that the server has written, sent or not.
    pub written: u32,
}

/// States of a [`Receiver`].
pub mod receiver {
    /// No local socket: the endpoint is elsewhere, or the connection is gone.
    pub const ABSENT: u32 = 0;
    /// A listener: the connection is gone, or so young that it has no socket.
    pub const LISTENING: u32 = 1;
    /// The remains of a connection (TIME-WAIT, FIN-WAIT-2): no application reads what comes.
    pub const CLOSING: u32 = 2;
    /// One that receives.
    pub const STREAM: u32 = 3;
    /// One whose handshake waits for its last acknowledgement.
    pub const REQUEST: u32 = 4;
}

impl Receiver {
    /// No socket.
    pub const ABSENT: Self = Self { state: receiver::ABSENT, next: 0, base: 0, server: 0, written: 0 };
}

/// What is to be done with a segment that carries data or a FIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Course {
    /// Its bytes from the next to judge on are new: read them.
    Read = 0,
    /// Nothing holds it yet: enter it and read. `at` is its first byte.
    Enter = 1,
    /// Judged before, and not accepted yet: `at` is the first byte that the receiver may still take.
    Again = 2,
    /// Nothing in it matters: the receiver has it, or it lies within the body under way, even if bytes before it are
    /// missing.
    Old = 3,
    /// Bytes before it are missing.
    Ahead = 4,
    /// No bytes of this connection may pass; the receiver may still hold it, and expects byte `at`.
    Reset = 5,
    /// No bytes of this connection may pass, and nobody holds it as far as is known.
    Strip = 6,
    /// The next bytes, at `at`, of a connection whose earlier bytes are not known.
    Unknown = 7,
}

/// A [`Course`], and the sequence number that it is about. Both are always set: see [`Receiver`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What is to be done.
    pub course: Course,
    /// Where.
    pub at: u32,
}

impl Plan {
    #[inline(always)]
    const fn new(course: Course, at: u32) -> Self {
        Self { course, at }
    }
}

/// `a` comes after `b`, in sequence space (RFC 9293 §3.4).
#[must_use]
#[inline(always)]
pub const fn after(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}

/// SipHash-1-3 of a tuple under the table's secret; never 0.
#[must_use]
#[inline(always)]
pub fn hash(secret: [u64; 2], tuple: &Tuple) -> u64 {
    let mut hasher = Hasher::new(secret);
    if tuple.is_v6() {
        hasher.take(tuple.source[1]);
        hasher.take(tuple.destination[0]);
        hasher.take(tuple.destination[1]);
        hasher.take(tuple.source[0]);
    } else {
        hasher.take(tuple.source[0] | (tuple.destination[0] << 32));
    }
    hasher.take(tuple.ports);
    hasher.finish()
}

/// SipHash-1-3 of whole words. How many there are is no part of it: whoever uses it has one number of words for each kind.
pub(crate) struct Hasher([u64; 4]);

impl Hasher {
    #[inline(always)]
    pub(crate) const fn new([k0, k1]: [u64; 2]) -> Self {
        Self([
            k0 ^ 0x736f_6d65_7073_6575,
            k1 ^ 0x646f_7261_6e64_6f6d,
            k0 ^ 0x6c79_6765_6e65_7261,
            k1 ^ 0x7465_6462_7974_6573,
        ])
    }

    #[inline(always)]
    pub(crate) fn take(&mut self, word: u64) {
        self.0[3] ^= word;
        crate::key::round(&mut self.0);
        self.0[0] ^= word;
    }

    /// The hash; never 0.
    #[inline(always)]
    pub(crate) fn finish(mut self) -> u64 {
        let v = &mut self.0;
        v[2] ^= 0xff;
        crate::key::round(v);
        crate::key::round(v);
        crate::key::round(v);
        let hash = v[0] ^ v[1] ^ v[2] ^ v[3];
        if hash == 0 { 1 } else { hash }
    }
}

impl Set {
    /// The place of a connection.
    #[inline(always)]
    pub fn find(&self, hash: u64, tuple: &Tuple) -> Option<u32> {
        for way in 0..WAYS {
            if self.hashes[way] == hash && self.flows[way].tuple == *tuple {
                return Some(way as u32);
            }
        }
        None
    }

    /// The connection at a place.
    #[inline(always)]
    pub fn flow(&mut self, way: u32) -> &mut Flow {
        &mut self.flows[opaque(way) as usize & (WAYS - 1)]
    }

    /// Makes room: a free place, else the longest quiet of those that may go. One that is refused at once (`refused`)
    /// displaces no followed connection.
    #[inline(always)]
    pub fn room(&self, now: u64, refused: bool) -> Option<u32> {
        let mut best = None;
        let mut longest = 0;
        for way in 0..WAYS {
            if self.hashes[way] == 0 {
                return Some(way as u32);
            }
            let flow = &self.flows[way];
            let quiet = now.saturating_sub(flow.touched);
            let followed = flow.stage == stage::FOLLOWED && flow.finished == 0;
            let waiting = followed && (refused || quiet < IDLE_NS);
            if !waiting && quiet >= longest {
                longest = quiet;
                best = Some(way as u32);
            }
        }
        best
    }

    /// Makes a place free.
    #[inline(always)]
    pub fn forget(&mut self, way: u32) {
        self.hashes[opaque(way) as usize & (WAYS - 1)] = 0;
    }

    /// Enters a connection at a place.
    #[inline(always)]
    pub fn enter(&mut self, way: u32, hash: u64, tuple: &Tuple, base: u32, stage: u32, now: u64) -> &mut Flow {
        self.hashes[opaque(way) as usize & (WAYS - 1)] = hash;
        let flow = self.flow(way);
        flow.begin(hash, tuple, base, stage, now);
        flow
    }
}

impl Flow {
    /// Begins a connection whose first byte has the sequence number `base`.
    #[inline(always)]
    pub fn begin(&mut self, hash: u64, tuple: &Tuple, base: u32, stage: u32, now: u64) {
        self.tuple = *tuple;
        self.base = base;
        self.go_back();
        // Of the same tuple, no two begin at the same time.
        self.id = hash ^ now;
        self.touched = now;
        self.stage = stage;
        self.accepted = base;
        self.after = zero() as u32;
        self.reason = zero() as u32;
        self.local = zero() as u32;
        self.finished = zero() as u32;
        self.server = zero() as u32;
        self.asked = zero() as u32;
        self.served = zero() as u32;
        self.pipelined = zero() as u32;
        self.written = zero() as u32;
        self.leaves = zero() as u32;
        self.counts = zero() as u32;
        self.holder = zero() as u32;
        self.told.due = due::NOTHING;
        self.shift.clear();
    }

    /// Whether the socket that was found, or else the handshake that was seen last, is of this connection.
    #[must_use]
    #[inline(always)]
    pub const fn is_of(&self, receiver: Receiver, handshake: Handshake) -> bool {
        if receiver.state >= receiver::STREAM {
            return self.base == receiver.base && self.server == receiver.server;
        }
        let agreed = handshake.client != 0 || handshake.server != 0;
        !agreed || (self.base == handshake.client && self.server == handshake.server)
    }

    /// Sequence number behind the last byte that its server has written.
    #[must_use]
    #[inline(always)]
    pub const fn written(&self, receiver: Receiver) -> u32 {
        if self.local != 0 { receiver.written } else { self.written }
    }

    /// Whether its client goes on behind refused requests, of which its server knows nothing but the SYN: the handshake waits
    /// for the first request that passes.
    #[must_use]
    #[inline(always)]
    pub const fn waits(&self) -> bool {
        self.stage == stage::FOLLOWED && self.shift.is_kept != 0 && self.judged == 0 && self.finished == 0
    }

    /// Sequence number of the next byte to judge, as the client counts.
    #[must_use]
    #[inline(always)]
    pub const fn expected(&self) -> u32 {
        self.next().wrapping_add(self.shift.behind)
    }

    /// Goes back to the connection's first byte, as if none had been judged.
    #[inline(always)]
    pub fn go_back(&mut self) {
        self.machine.restart();
        self.marked = u64::MAX;
        self.charged = zero();
        self.judged = zero();
        self.decided = zero();
        self.head_since = zero();
        self.body = self.base;
        self.past = [self.base; 2];
    }

    /// Where the request whose head is complete comes from.
    #[must_use]
    #[inline(always)]
    pub const fn address(&self) -> Address {
        match self.machine.forwarded() {
            Some(address) => address,
            None => self.tuple.mapped_source(),
        }
    }

    /// Sequence number of the next byte to judge.
    #[must_use]
    #[inline(always)]
    pub const fn next(&self) -> u32 {
        self.base.wrapping_add(self.judged as u32)
    }

    /// The place of a sequence number that is not beyond the next byte to judge.
    #[must_use]
    #[inline(always)]
    pub const fn place(&self, seq: u32) -> Place {
        Place { flow: self.id, position: self.judged.wrapping_sub(self.next().wrapping_sub(seq) as u64) }
    }

    /// Whether the receiver has accepted the bytes before a place.
    #[must_use]
    #[inline(always)]
    pub const fn has_accepted(&self, position: u64) -> bool {
        position <= self.place(self.accepted).position
    }

    /// Goes on to what the receiver has accepted, where that is more than was judged: parts of a body that passed ahead.
    #[inline(always)]
    pub fn catch_up(&mut self, receiver: Receiver) {
        let (accepted, is_this) = if self.local != 0 {
            (receiver.next, receiver.base == self.base && receiver.server == self.server)
        } else {
            (self.accepted, receiver.state < receiver::STREAM)
        };
        let ahead = accepted.wrapping_sub(self.next());
        if is_this && after(accepted, self.next()) && u64::from(ahead) <= self.machine.skippable() {
            let goes_on = u64::from(ahead) < self.machine.skippable();
            self.machine.skip(ahead);
            self.advance(ahead, goes_on);
        }
    }

    /// Goes on by `len` judged bytes; `in_body` if all of them are of the body that was under way before.
    #[inline(always)]
    pub fn advance(&mut self, len: u32, in_body: bool) {
        let from = self.next();
        self.judged = self.judged.wrapping_add(len as u64);
        if !in_body {
            if from != self.body {
                self.past = [self.body, from];
            }
            self.body = self.next();
        }
    }
}

/// What to do with `segment`, which has data or a FIN, given what is known of its connection. `handshake` is the one
/// that was seen last between its two ends, all 0 if there was none.
#[must_use]
#[inline(always)]
pub fn plan(flow: Option<&Flow>, segment: &Segment, known: Receiver, handshake: Handshake, now: u64) -> Plan {
    match known.state {
        receiver::STREAM => plan_stream(flow, segment, known, now),
        // Who does not know the acknowledgement has not seen the SYN-ACK: no connection yet, and perhaps never one.
        receiver::REQUEST if segment.ack == known.server => plan_stream(flow, segment, known, now),
        receiver::REQUEST => Plan::new(Course::Strip, 0),
        receiver::CLOSING => Plan::new(Course::Old, 0),
        _ => plan_forwarded(flow, segment, known, handshake, now),
    }
}

#[inline(always)]
fn plan_stream(flow: Option<&Flow>, segment: &Segment, receiver: Receiver, now: u64) -> Plan {
    let Receiver { next: accepted, base, server, .. } = receiver;
    if !after(segment.end(), accepted) {
        return Plan::new(Course::Old, 0);
    }
    let known = match flow {
        Some(flow) if flow.base == base && flow.server == server => flow,
        // Not ours, or an earlier connection of the same tuple: this one can be entered at its first byte only.
        _ if segment.seq != accepted => return Plan::new(Course::Ahead, 0),
        _ if accepted == base => return Plan::new(Course::Enter, base),
        // A socket that is asked while it takes a segment may tell numbers that do not belong together; it will come
        // again to one that does.
        Some(flow) if flow.local != 0 && now.saturating_sub(flow.touched) < TORN_NS => {
            return Plan::new(Course::Ahead, 0);
        }
        _ => return Plan::new(Course::Unknown, accepted),
    };
    let refused = known.stage == stage::REFUSED;
    let next = known.next();
    // The receiver has bytes that were never judged here.
    if after(accepted, next) {
        return Plan::new(if refused { Course::Reset } else { Course::Unknown }, accepted);
    }
    // The receiver overlooks what it has accepted.
    let begin = if after(accepted, segment.seq) { accepted } else { segment.seq };
    // What came before the refused bytes, and has not arrived yet, may still come, and does so first.
    if refused && !after(next, begin) {
        return Plan::new(if accepted == next { Course::Reset } else { Course::Ahead }, accepted);
    }
    let course = if begin == next {
        Course::Read
    } else if after(begin, next) {
        // What is missing is of the same body, whatever it will be.
        let ends_within = u64::from(segment.end().wrapping_sub(next)) <= known.machine.skippable();
        if ends_within && !segment.has(flag::FIN) { Course::Old } else { Course::Ahead }
    } else if after(known.body, begin) || refused {
        Course::Again
    } else if after(segment.end(), next) {
        // Judged bytes of a body, and new ones behind them.
        Course::Read
    } else {
        Course::Old
    };
    Plan::new(course, begin)
}

/// Where no local socket holds the connection.
#[inline(always)]
fn plan_forwarded(flow: Option<&Flow>, segment: &Segment, known: Receiver, handshake: Handshake, now: u64) -> Plan {
    let forwarded = match flow {
        Some(flow) if flow.local == 0 => Some(flow),
        _ => None,
    };
    let agreed = handshake.client != 0 || handshake.server != 0;
    let begun = match forwarded {
        Some(flow) => flow.base == handshake.client && flow.server == handshake.server,
        None => false,
    };
    // The server has agreed to another connection than the one that is followed: that one is over.
    if agreed && !begun {
        return if segment.seq == handshake.client && segment.ack == handshake.server {
            Plan::new(Course::Enter, handshake.client)
        } else if after(segment.seq, handshake.client) {
            Plan::new(Course::Ahead, 0)
        } else {
            Plan::new(Course::Strip, 0)
        };
    }
    match forwarded {
        Some(flow) => {
            let receiver = Receiver { next: flow.accepted, base: flow.base, server: flow.server, ..known };
            // Where nothing was judged, nothing is known of what was accepted.
            let plan = if flow.stage == stage::REFUSED && flow.judged == 0 {
                Plan::new(Course::Reset, 0)
            } else {
                plan_stream(Some(flow), segment, receiver, now)
            };
            // Twice in turn: a RST for a receiver that may still hold it, then a bare ACK that a closed one answers.
            match plan.course {
                Course::Reset if flow.after & 1 != 0 => Plan::new(Course::Reset, segment.seq),
                Course::Reset => Plan::new(Course::Strip, 0),
                _ => plan,
            }
        }
        // Passed without its bytes, it is answered by the stack: with a RST where the connection is gone, and where
        // a SYN cookie comes back, it makes the socket, which the retransmission then meets.
        None if known.state == receiver::LISTENING || flow.is_some() => Plan::new(Course::Strip, 0),
        None => Plan::new(Course::Unknown, segment.seq),
    }
}

/// Whether a segment can change what the receiver's application reads.
#[must_use]
#[inline(always)]
pub const fn carries(segment: &Segment) -> bool {
    segment.len > 0 || segment.has(flag::FIN)
}
