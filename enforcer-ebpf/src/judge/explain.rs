//! What would become of a request, without anything coming of it: the same reading and the same decision as a packet's,
//! on copies of the buckets that it would be charged to.
//!
//! Nothing of the world changes but the two values of this file. The [`World`] sees to that: whatever would be written
//! for others is left out, and what is charged is a copy ([`Explaining::copies`]).

use super::reading::{Piece, Reading, Refill, Scan};
use super::{Decision, World, decide, is_proxied};
use crate::abi::{Buckets, KeyTag, Rule, Ruleset, Service};
use crate::charge::{CLAIMS, Charge};
use crate::flow::{Flow, stage};
use crate::http::bytes::BASE;
use crate::http::{Cursor, Step};
use crate::source::{Address, Record, Source};
use crate::wire::Tuple;
use crate::words;

/// How far it came; numbers, since they lie in a map.
pub mod outcome {
    /// Nothing guards the port.
    pub const UNGUARDED: u64 = 0;
    /// The head did not end.
    pub const INCOMPLETE: u64 = 1;
    /// It was refused while its head was read.
    pub const REFUSED: u64 = 2;
    /// It was decided on.
    pub const DECIDED: u64 = 3;
}

/// The question, then its answer.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Explanation {
    /// Asked: whose connection it comes on.
    pub tuple: Tuple,
    /// Asked: 1 if `tag` is taken for that of the head's key, which stands in for one that nobody knows.
    pub stands_in: u64,
    /// Asked: that tag. Answered: the one that was decided by; all 0 without a key.
    pub tag: KeyTag,
    /// Asked: 1 if there is no room for buckets of named subjects that have none.
    pub full: u64,
    /// An [`outcome`].
    pub outcome: u64,
    /// For [`outcome::REFUSED`]: a [`crate::verdict::Reason`].
    pub reason: u64,
    /// Likewise: 1 + a [`crate::verdict::Malformation`], or 0.
    pub kind: u64,
    /// For [`outcome::DECIDED`]: [`Decision::to_word`].
    pub decision: u64,
    /// When, CLOCK_BOOTTIME in ns.
    pub now: u64,
    /// CLOCK_REALTIME − CLOCK_BOOTTIME in ns.
    pub offset: u64,
    /// Where the request comes from.
    pub address: Address,
    /// 1 if its connection comes from a trusted proxy.
    pub proxied: u64,
    /// What is known of the connection's own source as one that was refused.
    pub record: Record,
    /// Whom it is for.
    pub service: Service,
    /// The service's rules.
    pub rules: Ruleset,
    /// The rule of its path and method.
    pub rule: Rule,
    /// Who it is from: a [`super::party`].
    pub party: u64,
    /// The words of [`crate::spread`] that its pair is counted in, as they were: keys of the source, sources of the key.
    pub pairs: [u64; 2],
    /// Whether it is one too many in each, as bits.
    pub exceeded: u64,
    /// What was used of the limits of each of the charge's claims.
    pub buckets: [Buckets; CLAIMS],
    /// What it would be charged to, and which limit refuses.
    pub charge: Charge,
}

impl Explanation {
    /// The question: a request on this connection, with the key of this tag in the place of the head's, where there is room
    /// for new named subjects or not.
    #[must_use]
    pub fn question(tuple: Tuple, key: Option<KeyTag>, has_room: bool) -> Self {
        Self {
            tuple,
            stands_in: u64::from(key.is_some()),
            tag: key.unwrap_or_default(),
            full: u64::from(!has_room),
            outcome: outcome::UNGUARDED,
            reason: 0,
            kind: 0,
            decision: 0,
            now: 0,
            offset: 0,
            address: [0; 2],
            proxied: 0,
            record: Record::default(),
            service: Service::DEFAULT,
            rules: Ruleset::default(),
            rule: Rule::default(),
            party: 0,
            pairs: [0; 2],
            exceeded: 0,
            buckets: [Buckets::default(); CLAIMS],
            charge: Charge::default(),
        }
    }
}

/// What lies in memory meanwhile; it holds the head, and is wiped at the end. Not the [`super::Scratch`], which a packet
/// that comes in between may need.
#[repr(C)]
pub struct Explaining {
    /// The head being read.
    pub reading: Reading,
    /// A connection that only this request is on.
    pub flow: Flow,
    /// The buckets that are charged in the place of those of each claim.
    pub copies: [Buckets; CLAIMS],
    /// Likewise, of the limit that lets new sources in.
    pub admission: Buckets,
}

/// Begins with a frame that is nothing but a head of `len` bytes; `false` if nothing guards its port.
#[inline(always)]
pub fn begin<W: World>(world: &W, desk: &mut Explaining, said: &mut Explanation, len: u32) -> bool {
    let Explaining { reading, flow, .. } = desk;
    if !world.service(said.tuple.destination_port(), &mut reading.service) {
        return false;
    }
    world.rules(&reading.service, &mut reading.rules);
    said.now = world.now();
    flow.begin(0, &said.tuple, 0, stage::FOLLOWED, said.now);
    reading.scan = Scan::new(said.now, 0, Piece { from: 0, len, again: 0 }, 0);
    let pos = flow.machine.resume(&mut reading.window);
    reading.scan.cursor = Cursor { pos, end: BASE };
    said.outcome = outcome::INCOMPLETE;
    words::copy(&reading.service, &mut said.service);
    words::copy(&reading.rules, &mut said.rules);
    said.proxied = u64::from(is_proxied(world, &reading.rules, &said.tuple));
    true
}

/// Reads on by one step; `false` ends the head.
#[inline(always)]
pub fn step<W: World>(world: &W, desk: &mut Explaining, said: &mut Explanation) -> bool {
    let Explaining { reading, flow, .. } = desk;
    match world.refill(reading, flow) {
        Refill::Ready => {}
        Refill::Skipped => return true,
        Refill::Ended => return false,
    }
    match world.advance(reading, flow) {
        Step::More => true,
        Step::Starved if reading.scan.is_loaded() => false,
        Step::Starved => true,
        Step::Head => {
            said.outcome = outcome::DECIDED;
            false
        }
        Step::Refused(refusal) => {
            said.outcome = outcome::REFUSED;
            said.reason = refusal.reason as u64;
            said.kind = match refusal.kind {
                Some(kind) => kind as u64 + 1,
                None => 0,
            };
            false
        }
    }
}

/// Decides on the request whose head is complete.
#[inline(always)]
pub fn conclude<W: World>(world: &W, desk: &mut Explaining, said: &mut Explanation) {
    let Explaining { reading, flow, .. } = desk;
    if said.stands_in != 0 {
        flow.machine.take_key(said.tag);
    }
    let position = u64::from(reading.scan.position());
    said.decision = Decision::to_word(decide(world, reading, flow, position));
    let KeyTag(tag) = flow.machine.key().unwrap_or_default();
    said.tag.0[0] = tag[0];
    said.tag.0[1] = tag[1];
    let address = flow.address();
    said.address[0] = address[0];
    said.address[1] = address[1];
    // It may be for another service than the port leads to.
    words::copy(&reading.service, &mut said.service);
    words::copy(&reading.rules, &mut said.rules);
    words::copy(&reading.rule, &mut said.rule);
    said.party = u64::from(reading.party.kind);
    words::copy(&reading.charge, &mut said.charge);
}

/// The source that answers and penalties of such a request go by: the connection's own.
#[must_use]
#[inline(always)]
pub const fn peer(said: &Explanation) -> Source {
    Source::of(&said.tuple, &said.service)
}

const _: () = assert!(
    size_of::<Explanation>()
        == 40 + 8 + 16 + 7 * 8 + 16 + 8 + 48 + 112 + 256 + 32 + 8 + 16 + 8 + 192 * CLAIMS + size_of::<Charge>()
);
