//! The connections: which bytes of a segment are new to the receiver, and from which state they are read.
//!
//! A bypass is any difference between the bytes that are judged here and those that the receiver's TCP accepts
//! (Ptacek & Newsham 1998). So only bytes at exactly `next` are read; what lies beyond waits for its
//! retransmission; what lies before passes only if the receiver has accepted all of it already, or if it lies within
//! the body under way, whose bytes mean nothing. What it has accepted is not guessed: where the endpoint is local, its socket is asked ([`Socket`]).
//!
//! The table is set-associative: a keyed hash chooses a set of [`WAYS`] places, one lock guards a set, and only
//! connections that nobody waits for give way. An entry is made by the first payload of a connection whose socket
//! exists, or, for forwarded connections, by a SYN; a SYN never displaces a followed connection.

use crate::http::Machine;
use crate::opaque::{opaque, zero};
use crate::wire::{Segment, Tuple, flag};

/// Places of a set.
pub const WAYS: usize = 8;
/// ns without a segment after which a connection may give way to another.
pub const IDLE_NS: u64 = 60_000_000_000;

/// Stages of a [`Flow`]; numbers, since they lie in a map.
pub mod stage {
    /// Nothing.
    pub const FREE: u32 = 0;
    /// A forwarded connection's SYN was seen.
    pub const HANDSHAKE: u32 = 1;
    /// Its bytes are followed.
    pub const FOLLOWED: u32 = 2;
    /// A request of it was refused: none of its bytes reaches the receiver any more.
    pub const REFUSED: u32 = 3;
}

/// A connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Flow {
    /// Its two ends.
    pub tuple: Tuple,
    /// Where in HTTP its judged bytes end.
    pub machine: Machine,
    /// When a segment of it was last judged, CLOCK_BOOTTIME in ns.
    pub touched: u64,
    /// When the first byte of the head under way was judged, CLOCK_BOOTTIME in ns; 0 when none is under way.
    pub head_since: u64,
    /// Sequence number of the next byte to judge.
    pub next: u32,
    /// Sequence number of its first byte; tells it from an earlier or later connection of the same tuple.
    pub base: u32,
    /// A [`stage`].
    pub stage: u32,
    /// Forwarded connections: the first byte after a later SYN.
    pub candidate: u32,
    /// 1 if `candidate` counts.
    pub has_candidate: u32,
    /// Segments met since the refusal.
    pub after: u32,
    /// 1 if a local socket vouched for it.
    pub local: u32,
    /// After a refusal: its [`crate::verdict::Reason`].
    pub reason: u32,
    /// From here up to `next` the bytes are of one body and mean nothing, whatever they are.
    pub body: u32,
    /// 0.
    pub reserved: u32,
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
    assert!(size_of::<Machine>() == 104);
    assert!(size_of::<Flow>() == 40 + 104 + 8 * 2 + 4 * 10);
    assert!(size_of::<Set>() == 8 + WAYS * (8 + size_of::<Flow>()));
};

/// What the receiving host knows of a connection. A structure whose every field is set, not an enum: the BPF
/// compiler spills what an enum's variant leaves undefined, and the verifier refuses to read that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// A [`socket`] state.
    pub state: u32,
    /// `rcv_nxt` of a stream: the next byte that it will accept.
    pub next: u32,
    /// `rcv_nxt − bytes_received`: the first byte that it ever could.
    pub base: u32,
}

/// States of a [`Socket`].
pub mod socket {
    /// None: the endpoint is elsewhere, or the connection is gone.
    pub const ABSENT: u32 = 0;
    /// A listener: the connection is gone, or so young that it has no socket.
    pub const LISTENING: u32 = 1;
    /// The remains of a connection (TIME-WAIT, FIN-WAIT-2): no application reads what comes.
    pub const CLOSING: u32 = 2;
    /// One that receives.
    pub const STREAM: u32 = 3;
}

impl Socket {
    /// No socket.
    pub const ABSENT: Self = Self { state: socket::ABSENT, next: 0, base: 0 };
}

/// What is to be done with a segment that carries data or a FIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Its bytes from the flow's `next` on are new: read them.
    Read,
    /// Nothing in it is new: the receiver has it, or it is a body's.
    Old,
    /// Judged before, not accepted yet, and not a body's: other bytes might come in its place.
    Repeated,
    /// Bytes before it are missing.
    Ahead,
    /// No bytes of this connection may pass; the receiver may still hold it, and expects this byte next.
    Reset(u32),
    /// No bytes of this connection may pass, and nobody holds it as far as is known.
    Strip,
    /// The next bytes of a connection whose earlier bytes are not known.
    Unknown(u32),
    /// Nothing holds it yet: enter it and read.
    Enter(u32),
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
    let [k0, k1] = secret;
    let mut v = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    let mut take = |word: u64| {
        v[3] ^= word;
        crate::key::round(&mut v);
        v[0] ^= word;
    };
    if tuple.is_v6() {
        take(tuple.source[1]);
        take(tuple.destination[0]);
        take(tuple.destination[1]);
        take(tuple.source[0]);
    } else {
        take(tuple.source[0] | (tuple.destination[0] << 32));
    }
    take(tuple.ports);
    v[2] ^= 0xff;
    crate::key::round(&mut v);
    crate::key::round(&mut v);
    crate::key::round(&mut v);
    let hash = v[0] ^ v[1] ^ v[2] ^ v[3];
    if hash == 0 { 1 } else { hash }
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

    /// Makes room: a free place, else the longest quiet of those that may go. A SYN displaces no followed connection.
    #[inline(always)]
    pub fn room(&self, now: u64, for_syn: bool) -> Option<u32> {
        let mut best = None;
        let mut longest = 0;
        for way in 0..WAYS {
            if self.hashes[way] == 0 {
                return Some(way as u32);
            }
            let flow = &self.flows[way];
            let quiet = now.saturating_sub(flow.touched);
            let waiting = flow.stage == stage::FOLLOWED && (for_syn || quiet < IDLE_NS);
            if !waiting && quiet >= longest {
                longest = quiet;
                best = Some(way as u32);
            }
        }
        best
    }

    /// Enters a connection at a place.
    #[inline(always)]
    pub fn enter(&mut self, way: u32, hash: u64, tuple: &Tuple, base: u32, stage: u32, now: u64) -> &mut Flow {
        self.hashes[opaque(way) as usize & (WAYS - 1)] = hash;
        let flow = self.flow(way);
        flow.begin(tuple, base, stage, now);
        flow
    }
}

impl Flow {
    /// Begins a connection whose first byte has the sequence number `base`.
    #[inline(always)]
    pub fn begin(&mut self, tuple: &Tuple, base: u32, stage: u32, now: u64) {
        self.tuple = *tuple;
        self.machine.restart();
        self.touched = now;
        self.head_since = zero();
        self.next = base;
        self.base = base;
        self.stage = stage;
        self.candidate = zero() as u32;
        self.has_candidate = zero() as u32;
        self.after = zero() as u32;
        self.local = zero() as u32;
        self.reason = zero() as u32;
        self.body = base;
        self.reserved = zero() as u32;
    }
}

/// What to do with `segment`, which has data or a FIN, given what is known of its connection.
#[must_use]
#[inline(always)]
pub fn plan(flow: Option<&Flow>, segment: &Segment, socket: Socket) -> Plan {
    match socket.state {
        socket::STREAM => plan_local(flow, segment, socket.next, socket.base),
        // Passed without its bytes, it is answered by the stack: with a RST where the connection is gone, and where
        // a SYN cookie comes back, it makes the socket, which the retransmission then meets.
        socket::LISTENING => Plan::Strip,
        socket::CLOSING => Plan::Old,
        _ => plan_forwarded(flow, segment),
    }
}

#[inline(always)]
fn plan_local(flow: Option<&Flow>, segment: &Segment, accepted: u32, base: u32) -> Plan {
    if !after(segment.end(), accepted) {
        return Plan::Old;
    }
    let known = match flow {
        Some(flow) if flow.base == base && flow.stage >= stage::FOLLOWED => flow,
        // Not ours, or an earlier connection of the same tuple: this one can be entered at its first byte only.
        _ if segment.seq != accepted => return Plan::Ahead,
        _ if accepted == base => return Plan::Enter(base),
        _ => return Plan::Unknown(accepted),
    };
    if known.stage == stage::REFUSED {
        return Plan::Reset(accepted);
    }
    // The receiver has bytes that were never judged here.
    if after(accepted, known.next) {
        return Plan::Unknown(accepted);
    }
    // The receiver overlooks what it has accepted.
    let begin = if after(accepted, segment.seq) { accepted } else { segment.seq };
    in_order(known, segment, begin)
}

#[inline(always)]
fn plan_forwarded(flow: Option<&Flow>, segment: &Segment) -> Plan {
    let Some(flow) = flow else { return Plan::Strip };
    if flow.local != 0 && flow.stage == stage::FOLLOWED {
        return Plan::Strip;
    }
    match flow.stage {
        stage::HANDSHAKE if segment.seq == flow.next => Plan::Enter(flow.next),
        stage::HANDSHAKE if after(segment.seq, flow.next) => Plan::Ahead,
        // Twice in turn: a RST for a receiver that may still hold it, then a bare ACK that a closed one answers.
        stage::REFUSED if flow.after & 1 != 0 => Plan::Reset(segment.seq),
        stage::FOLLOWED if flow.has_candidate != 0 && segment.seq == flow.candidate => {
            // The same byte of two possible connections cannot be told apart.
            if segment.seq == flow.next { Plan::Unknown(segment.seq) } else { Plan::Enter(flow.candidate) }
        }
        stage::FOLLOWED => in_order(flow, segment, segment.seq),
        _ => Plan::Strip,
    }
}

/// `begin` is the first byte of the segment that the receiver may still take.
#[inline(always)]
fn in_order(flow: &Flow, segment: &Segment, begin: u32) -> Plan {
    if segment.seq == flow.next {
        Plan::Read
    } else if after(segment.seq, flow.next) {
        Plan::Ahead
    } else if after(flow.body, begin) {
        Plan::Repeated
    } else if after(segment.end(), flow.next) {
        // Judged bytes of a body, and new ones behind them.
        Plan::Read
    } else {
        Plan::Old
    }
}

/// Whether a segment can change what the receiver's application reads.
#[must_use]
#[inline(always)]
pub const fn carries(segment: &Segment) -> bool {
    segment.len > 0 || segment.has(flag::FIN)
}
