//! Whether one request may pass: its path's rule, its key, its principal, and every limit that applies.
//!
//! All limits are charged together or none is ([`crate::charge`]). What needs no key is decided first: an exemption, a
//! public path, a CORS preflight. Before all of it the host says whose rules these are, where that is so. Then the key; one that is not good costs its source a guess. A good key that is new to
//! its source, or a source that is new to its key, is counted, and so is the connection ([`super::holding`]). Then the limits: the principal's, its tenant's, the
//! source's, the key's own, the rule's, the client's share, the service's.

use super::{Reading, World};
use crate::abi::{Client, Host, Key, KeyTag, Per, Rule, Ruleset, Scope, Service, Share, SpreadAction, scope};
use crate::charge::{Charge, Claim, table};
use crate::flow::{Flow, Place};
use crate::opaque::zero;
use crate::source::Source;
use crate::verdict::{Count, Event, Reason};

/// Whether a request may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whose it is; 0 if nobody's.
    pub principal: u32,
    /// Why it may not pass.
    pub refused: Option<Reason>,
    /// Whether it was charged when its bytes came first.
    pub again: bool,
}

impl Decision {
    /// As a number, for where the kernel can hand on nothing else: the principal above, then whether it came
    /// again, then 1 + the reason or 0.
    #[must_use]
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        let reason = match self.refused {
            Some(reason) => reason as u64 + 1,
            None => 0,
        };
        ((self.principal as u64) << 9) | ((self.again as u64) << 8) | reason
    }

    /// Reads the number.
    #[must_use]
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        let refused = match word as u8 {
            0 => None,
            index => match Reason::from_index(index - 1) {
                Some(reason) => Some(reason),
                None => Some(Reason::Unparsable),
            },
        };
        Self { principal: (word >> 9) as u32, refused, again: word & 0x100 != 0 }
    }
}

/// Who a request is from, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Party {
    /// A [`party`].
    pub kind: u32,
    /// Whose key it is; 0 if nobody's.
    pub principal: u32,
    /// Slot of the key's own limits; 0 = none.
    pub policy: u32,
    /// 0.
    pub reserved: u32,
}

/// Kinds of a [`Party`]; numbers, since it lies in a map.
pub mod party {
    /// Anybody, on a path that is exempt for the source.
    pub const EXEMPT: u32 = 0;
    /// Anybody, on a public path.
    pub const PUBLIC: u32 = 1;
    /// A browser that asks whether it may send a request.
    pub const PREFLIGHT: u32 = 2;
    /// A principal.
    pub const KEYED: u32 = 3;
    /// Anybody without a key, where such requests have limits.
    pub const UNKEYED: u32 = 4;
    /// Who has a key that is not registered, where such keys have limits.
    pub const UNREGISTERED: u32 = 5;
}

/// Decides on the request whose head is complete and ends at `position` of the stream, and charges it if it may pass.
/// One that was charged there before, when its bytes came first, is not charged again: the scan says whether they were
/// judged before; those that were read and then cut off are known to the connection.
///
/// It is in parts that do not call each other, since the BPF stack is for a chain of calls.
#[inline(always)]
pub fn decide<W: World>(world: &W, reading: &mut Reading, flow: &mut Flow, position: u64) -> Decision {
    let refused = world.assign(reading, flow);
    if refused.is_some() {
        return Decision { principal: 0, refused, again: false };
    }
    reading.hold.connection = zero();
    let may_be_paid = reading.scan.is_again() || position <= flow.decided;
    if may_be_paid && world.is_paid(reading, flow, position) {
        // What its connection counts in may have been given back since.
        let refused = if reading.rules.counts_connections() { world.hold_again(reading, flow) } else { None };
        return Decision { principal: 0, refused, again: true };
    }
    let mut refused = world.identify(reading, flow);
    if refused.is_some_and(Reason::is_guess) && reading.rules.guesses != 0 {
        claim_guess(reading, flow);
        world.open(reading);
        if is_kept_out(world, reading) {
            refused = Some(Reason::Guessing);
        } else if !world.charge(reading) {
            world.block(reading);
            refused = Some(Reason::Guessing);
        }
    }
    let has_key = refused.is_none() && reading.party.kind == party::KEYED;
    if has_key && (reading.rules.keys_of_source.most | reading.rules.sources_of_key.most) != 0 {
        world.claim_pair(reading, flow);
        world.open(reading);
        refused = world.spread(reading);
    }
    if refused.is_none() && reading.rules.counts_connections() {
        refused = world.hold(reading, flow);
    }
    if refused.is_none() && reading.party.kind != party::EXEMPT {
        refused = world.claim(reading, flow);
        if refused.is_none() && !world.charge(reading) {
            refused = Some(Reason::OverLimit);
        }
    }
    let principal = reading.party.principal;
    if reading.hold.connection != 0 && !world.settle(reading, flow, refused.is_none()) {
        refused = Some(Reason::Connections);
    }
    if refused.is_none() {
        world.pay(reading, flow, position);
    }
    Decision { principal, refused, again: false }
}

/// Finds out by which service's rules a request is judged, and by which of them, and writes that down; why it may not pass,
/// if its host is no service's, or its path was begun under rules that hold no longer: what it has come to says nothing to
/// those that do, and by none of them whoever begins many heads ahead of a change would get past the limits of paths.
///
/// Where services are told apart by host, that of the request's takes the place of the one that its port leads to.
#[inline(always)]
pub fn assign<W: World>(world: &W, reading: &mut Reading, flow: &Flow) -> Option<Reason> {
    if reading.service.flags & Service::HOSTS != 0 {
        let host = Host { leader: u64::from(reading.service.leader), name: flow.machine.host() };
        if !world.service_of(host, &mut reading.service) {
            // The service that the port leads to may spare its own.
            reading.service.flags &= !Service::SPARE;
            return Some(Reason::Misdirected);
        }
        world.rules(&reading.service, &mut reading.rules);
    }
    if flow.machine.is_of_other_layout(&reading.rules) {
        return Some(Reason::Conflict);
    }
    if reading.rules.routes == 0 || !world.rule(flow, reading) {
        none(&mut reading.rule);
    }
    identity(flow, reading.rule.identity, reading.service.number, &mut reading.identity);
    None
}

/// Puts back what a port leads to: the next request may be for another host.
#[inline(always)]
pub fn release<W: World>(world: &W, reading: &mut Reading, flow: &Flow) {
    if world.service(flow.tuple.destination_port(), &mut reading.service) {
        world.rules(&reading.service, &mut reading.rules);
    }
}

/// No rule.
#[inline(always)]
fn none(rule: &mut Rule) {
    rule.exempt = zero();
    rule.scope = zero() as u32;
    rule.policy = zero() as u32;
    rule.per = zero() as u32;
    rule.cost = 1;
    rule.flags = zero() as u32;
    rule.identity = zero() as u32;
}

/// Finds out who a request is from, and writes it down; why it may not pass, whatever limits there are.
#[inline(always)]
pub fn identify<W: World>(world: &W, reading: &mut Reading, flow: &Flow) -> Option<Reason> {
    let refused = find_party(world, reading, flow);
    match reading.party.kind {
        party::EXEMPT => world.count(Count::Event(Event::Exempt)),
        // What is refused for itself is counted as that.
        _ if refused.is_some() => {}
        party::UNKEYED => {
            world.count(Count::Event(Event::Unkeyed));
            if flow.machine.has_key_elsewhere() {
                world.count(Count::Event(Event::CarrierMismatch));
            }
        }
        party::UNREGISTERED => world.count(Count::Event(Event::Unregistered)),
        _ => {}
    }
    refused
}

/// [`identify`], uncounted.
#[inline(always)]
pub(super) fn find_party<W: World>(world: &W, reading: &mut Reading, flow: &Flow) -> Option<Reason> {
    let now = reading.scan.now;
    let Party { kind, principal, policy, .. } = &mut reading.party;
    *principal = zero() as u32;
    *policy = zero() as u32;
    if reading.rule.exempt != 0 && world.is_exempt(reading.rule.exempt, flow.address(), now) {
        *kind = party::EXEMPT;
        return None;
    }
    if reading.rule.flags & Rule::PUBLIC != 0 {
        *kind = party::PUBLIC;
        return None;
    }
    let tag = flow.machine.key();
    if tag.is_none() && reading.rules.preflight != 0 && flow.machine.is_preflight() {
        *kind = party::PREFLIGHT;
        return None;
    }
    *kind = party::KEYED;
    if let Some(key) = tag.and_then(|tag| world.key(tag)) {
        *principal = key.principal;
        *policy = key.policy;
        if key.flags & Key::DISABLED != 0 {
            return Some(Reason::KeyDisabled);
        }
        let time = world.time_of_day(now);
        if time < key.not_before || time >= key.expires {
            return Some(Reason::KeyExpired);
        }
    } else if tag.is_some() {
        if reading.rules.unregistered == 0 {
            return Some(Reason::UnknownKey);
        }
        *kind = party::UNREGISTERED;
    } else {
        *kind = party::UNKEYED;
        if reading.rules.unkeyed == 0 {
            return Some(Reason::Unkeyed);
        }
    }
    if reading.rules.flags & Ruleset::STRICT_GUESSES != 0 {
        claim_guess(reading, flow);
        if is_kept_out(world, reading) {
            return Some(Reason::Guessing);
        }
    }
    None
}

/// Writes down what a request is to be charged to, in the reading's charge; why it may not pass all the same.
#[inline(always)]
pub fn claim<W: World>(world: &W, reading: &mut Reading, flow: &Flow) -> Option<Reason> {
    let now = reading.scan.now;
    let source = Source::at(flow.address(), &reading.service);
    reading.charge.begin(now, u64::from(reading.rule.cost));
    let Party { kind, principal, policy, .. } = reading.party;
    if kind == party::PUBLIC || kind == party::PREFLIGHT {
        let (policy, rule) = if kind == party::PUBLIC {
            (reading.rule.policy, u64::from(reading.rule.scope))
        } else {
            (reading.rules.preflight, scope::PREFLIGHT)
        };
        by_source(reading, policy, rule, source);
        of_all(reading);
        return None;
    }
    let KeyTag(key) = flow.machine.key().unwrap_or_default();
    if kind == party::KEYED {
        let slot = world.policy(principal, now);
        if slot == 0 {
            return Some(Reason::OverLimit);
        }
        let own = Scope { rule: 0, subject: [u64::from(principal), 0] };
        reading.charge.claim(Claim { table: table::PRINCIPAL, policy: slot, scope: own });
        let (tenant, rule) = world.tenant(slot);
        named(reading, tenant, Scope { rule, subject: [0; 2] });
    } else if kind == party::UNKEYED {
        by_source(reading, reading.rules.unkeyed, scope::UNKEYED, source);
    }
    by_source(reading, reading.rules.source, scope::SOURCE, source);
    if policy != 0 {
        named(reading, policy, Scope { rule: scope::KEY, subject: key });
    }
    if reading.rule.policy != 0 {
        let (rule, policy) = (u64::from(reading.rule.scope), reading.rule.policy);
        if reading.rule.per == Per::Service as u32 {
            named(reading, policy, Scope { rule, subject: [0; 2] });
        } else if reading.rule.per == Per::Source as u32 || kind != party::KEYED {
            // Who is no principal is known by where it comes from: a key that anyone can make up is no subject to count by.
            by_source(reading, policy, rule, source);
        } else {
            named(reading, policy, Scope { rule, subject: [u64::from(principal), 0] });
        }
    }
    if reading.rules.client_len != 0 && kind == party::KEYED {
        let client = Client { principal: u64::from(principal), id: flow.machine.client() };
        if let Some(Share { policy, number }) = world.share(client) {
            let subject = [u64::from(principal), u64::from(number)];
            named(reading, policy, Scope { rule: scope::CLIENT, subject });
        }
    }
    of_all(reading);
    if kind == party::UNREGISTERED {
        // The last: a new key's bucket is made, and so takes a place, once all before it lets the request pass.
        let rule = scope::of_service(scope::UNREGISTERED, reading.service.number);
        let claim =
            Claim { table: table::SOURCE, policy: reading.rules.unregistered, scope: Scope { rule, subject: key } };
        reading.charge.claim(claim);
    }
    None
}

/// Adds the limits of all requests together.
#[inline(always)]
fn of_all(reading: &mut Reading) {
    let rule = scope::of_service(scope::SERVICE, reading.service.number);
    named(reading, reading.rules.service, Scope { rule, subject: [0; 2] });
}

/// Adds limits whose subject an operator has named.
#[inline(always)]
fn named(reading: &mut Reading, policy: u32, scope: Scope) {
    reading.charge.claim(Claim { table: table::NAMED, policy, scope });
}

/// Adds limits by source, which each service knows for itself.
#[inline(always)]
fn by_source(reading: &mut Reading, policy: u32, rule: u64, source: Source) {
    let scope = Scope { rule, subject: [source.prefix, source.family] };
    reading.charge.claim(Claim { table: table::SOURCE, policy, scope });
}

/// Writes down what a bad key of a source is charged to.
#[inline(always)]
fn claim_guess(reading: &mut Reading, flow: &Flow) {
    let source = Source::at(flow.address(), &reading.service);
    reading.charge.begin(reading.scan.now, 1);
    by_source(reading, reading.rules.guesses, scope::GUESSES, source);
}

/// Whether what limits of this charge would have refused is a principal's: a guess is a source's, whosever key it was with.
#[must_use]
#[inline(always)]
pub const fn is_of_principal(party: &Party, charge: &Charge) -> bool {
    party.principal != 0 && charge.at(0).scope.rule != scope::GUESSES
}

/// Whether the source of a claimed guess is refused unread. Where nobody is any more, that of before holds no longer either.
#[inline(always)]
fn is_kept_out<W: World>(world: &W, reading: &Reading) -> bool {
    reading.rules.guess_penalty_ns != 0 && world.is_blocked(reading)
}

/// Number of the claim that stands for the keys of a source, and of that for the sources of a key. Of these nothing is
/// charged: they say where the pair is counted.
const KEYS_OF_SOURCE: usize = 0;
const SOURCES_OF_KEY: usize = 1;
/// No policy is asked for it.
const ANY: u32 = 1;

/// Writes down where a source and its key are counted.
#[inline(always)]
pub fn claim_pair(reading: &mut Reading, flow: &Flow) {
    let source = Source::at(flow.address(), &reading.service);
    let KeyTag(key) = flow.machine.key().unwrap_or_default();
    reading.charge.begin(reading.scan.now, 1);
    by_source(reading, ANY, scope::KEYS_OF_SOURCE, source);
    let rule = scope::of_service(scope::SOURCES_OF_KEY, reading.service.number);
    named(reading, ANY, Scope { rule, subject: key });
    reading.scan.proxied = u8::from(flow.machine.is_proxied());
    reading.sighting.source = [source.prefix, source.family];
    reading.sighting.key = key;
}

/// Counts the keys of a source and the sources of a key; why the request is refused, if it is.
#[inline(always)]
pub fn spread<W: World>(world: &W, reading: &mut Reading) -> Option<Reason> {
    let action = reading.rules.keys_of_source.action;
    // Sources that share buckets would be taken for one.
    let is_in = reading.charge.at(KEYS_OF_SOURCE).scope.subject[1] != scope::OVERFLOW;
    if reading.rules.keys_of_source.most != 0 && is_in && world.sight(reading, KEYS_OF_SOURCE) {
        world.count(Count::Event(Event::KeyRotation));
        if exceeds(world, reading, action) {
            return Some(Reason::KeyRotation);
        }
    }
    let action = reading.rules.sources_of_key.action;
    let is_in = reading.charge.at(SOURCES_OF_KEY).scope.subject[1] != scope::OVERFLOW;
    if reading.rules.sources_of_key.most != 0 && is_in && world.sight(reading, SOURCES_OF_KEY) {
        world.count(Count::Event(Event::KeyShared));
        if exceeds(world, reading, action) {
            return Some(Reason::KeyShared);
        }
    }
    None
}

/// What follows of one too many; whether the request is refused. Behind a proxy nobody is kept out by it: see
/// [`super::refuse`].
#[inline(always)]
fn exceeds<W: World>(world: &W, reading: &Reading, action: u32) -> bool {
    if action == SpreadAction::Penalty as u32 && reading.scan.proxied == 0 {
        let [prefix, family] = reading.sighting.source;
        let source = Source { prefix, family }.at_port(&reading.service);
        world.penalise(source, reading.scan.now, &reading.service);
    }
    action != SpreadAction::Alert as u32
}

/// Sees to it that the buckets of a claim are there, by what the caller knows of them: those of `claim` itself, else, of a
/// source for which there is no room, or of another subject that came too late, those that all such share; of sources and
/// of keys that are not registered, all of one service.
///
/// No source whose buckets count gives way: more than there is room for are not let in within the longest window, which
/// `take_place` sees to, as to such keys.
#[inline(always)]
pub fn open(
    claim: &mut Claim,
    is_open: bool,
    take_place: impl FnOnce(&Claim) -> bool,
    make: impl Fn(&Claim) -> bool,
) -> bool {
    if claim.table == table::PRINCIPAL || is_open {
        return true;
    }
    let may = claim.table == table::NAMED || take_place(claim);
    if may && make(claim) {
        return true;
    }
    // Of a key the rule says the service already.
    let is_source = claim.table == table::SOURCE && scope::own(claim.scope.rule) != scope::UNREGISTERED;
    let service = if is_source { claim.scope.subject[1] >> 32 } else { 0 };
    claim.scope.subject[0] = service;
    claim.scope.subject[1] = scope::OVERFLOW;
    // The daemon has made those of named subjects ahead.
    claim.table == table::SOURCE && make(claim)
}

/// Whether a claim is of the buckets that all named subjects share which came too late.
#[must_use]
#[inline(always)]
pub const fn is_shared(claim: &Claim) -> bool {
    claim.table == table::NAMED && claim.scope.subject[1] == scope::OVERFLOW
}

/// By which policy slot, and as which rule, a claim by source is let in whose buckets are new.
#[must_use]
#[inline(always)]
pub const fn admission(rules: &Ruleset, claim: &Claim) -> (u32, u64) {
    if scope::own(claim.scope.rule) == scope::UNREGISTERED {
        let service = scope::service(claim.scope.rule);
        (rules.unregistered_admission, scope::of_service(scope::UNREGISTERED_ADMISSION, service))
    } else {
        (rules.admission, scope::ADMISSION)
    }
}

/// Whose request it is, from where, for which service and by which rule: what is paid for under one is not paid for under
/// another. The rule is known by what it is of, not by where it lies: behind a change of the policy that is elsewhere.
#[inline(always)]
fn identity(flow: &Flow, rule: u32, service: u32, identity: &mut KeyTag) {
    let KeyTag([low, high]) = flow.machine.key().unwrap_or(KeyTag([0, u64::MAX]));
    // Turned round, lest a client's id that is the key itself takes the key out of it.
    let [first, second] = flow.machine.client().map(|word| word.rotate_left(29));
    // The connection's own peer is the same for all that comes on it.
    let [third, fourth] = flow.machine.forwarded().unwrap_or_default();
    identity.0[0] = low ^ first ^ third ^ u64::from(service);
    identity.0[1] = high ^ second ^ fourth ^ (u64::from(rule) << 32) ^ u64::from(flow.machine.is_preflight());
}

/// Whether the head that ends at this place was charged, and to the same.
#[inline(always)]
pub fn is_paid<W: World>(world: &W, reading: &Reading, flow: &Flow, position: u64) -> bool {
    let payer = if flow.charged == position { flow.payer } else { world.payer(Place { flow: flow.id, position }) };
    payer == reading.identity
}

/// Takes note of who was charged for the head that ends at this place.
#[inline(always)]
pub fn pay<W: World>(world: &W, reading: &Reading, flow: &mut Flow, position: u64) {
    if flow.has_accepted(flow.charged) {
        flow.charged = position;
        flow.payer = reading.identity;
    } else {
        world.put_payer(Place { flow: flow.id, position }, reading.identity);
    }
}
