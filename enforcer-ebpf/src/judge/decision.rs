//! Whether one request may pass: its path's rule, its key, its principal, and every limit that applies.
//!
//! All limits are charged together or none is ([`crate::charge`]). What needs no key is decided first: an exemption, a
//! public path, a CORS preflight. Then the key; one that is not good costs its source a guess. A good key that is new to
//! its source, or a source that is new to its key, is counted. Then the limits: the principal's, the key's own, the
//! rule's, the client's share, the source's, the service's.

use super::{Reading, World};
use crate::abi::{Client, Key, KeyTag, Per, Rule, Ruleset, Scope, Share, Spread, SpreadAction, scope};
use crate::charge::{Claim, table};
use crate::flow::{Flow, Place};
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

/// Decides on the request whose head is complete and ends at `position` of the stream, and charges it if it may pass.
/// One that was charged there before, when its bytes came first, is not charged again: the scan says whether they were
/// judged before; those that were read and then cut off are known to the connection.
#[inline(always)]
pub fn decide<W: World>(world: &W, reading: &mut Reading, flow: &mut Flow, position: u64) -> Decision {
    let index = if reading.rules.routes == 0 { 0 } else { world.rule(flow, &mut reading.rule) };
    if index == 0 {
        none(&mut reading.rule);
    }
    let identity = identity(flow, index);
    let place = Place { flow: flow.id, position };
    if (reading.scan.is_again() || position <= flow.decided) && payer(world, flow, place) == identity {
        return Decision { principal: 0, refused: None, again: true };
    }
    let refused = |principal, reason| Decision { principal, refused: Some(reason), again: false };
    let source = Source::at(flow.address(), &reading.service);
    reading.scan.proxied = u8::from(flow.machine.is_proxied());
    let principal = match world.claim(reading, flow, source) {
        Ok(principal) => principal,
        Err((principal, reason)) => return refused(principal, reason),
    };
    if !reading.charge.is_empty() && !world.charge(reading) {
        return refused(principal, Reason::OverLimit);
    }
    if flow.has_accepted(flow.charged) {
        flow.charged = position;
        flow.payer = identity;
    } else {
        world.put_payer(place, identity);
    }
    Decision { principal, refused: None, again: false }
}

/// No rule.
#[inline(always)]
fn none(rule: &mut Rule) {
    rule.exempt = crate::opaque::zero();
    rule.scope = 0;
    rule.policy = 0;
    rule.per = 0;
    rule.cost = 1;
    rule.flags = 0;
}

/// Writes down what a request is to be charged to, in the reading's charge; whose it is, 0 if no key is needed.
///
/// # Errors
/// Why it may not pass whatever its limits are, and whose it is.
#[inline(always)]
pub fn claim<W: World>(world: &W, reading: &mut Reading, flow: &Flow, source: Source) -> Result<u32, (u32, Reason)> {
    let now = reading.scan.now;
    let cost = u64::from(reading.rule.cost);
    if reading.rule.exempt != 0 && world.is_exempt(reading.rule.exempt, flow.address(), now) {
        reading.charge.begin(now, cost);
        world.count(Count::Event(Event::Exempt));
        return Ok(0);
    }
    if reading.rule.flags & Rule::PUBLIC != 0 {
        let scope = admitted(world, &reading.rules, u64::from(reading.rule.scope), source, now);
        reading.charge.begin(now, cost);
        reading.charge.claim(Claim { table: table::SOURCE, policy: reading.rule.policy, scope });
        return of_all(world, reading, 0);
    }
    let Some(tag) = flow.machine.key() else {
        if reading.rules.preflight == 0 || !flow.machine.is_preflight() {
            return Err((0, Reason::Unkeyed));
        }
        let scope = admitted(world, &reading.rules, scope::PREFLIGHT, source, now);
        reading.charge.begin(now, cost);
        reading.charge.claim(Claim { table: table::SOURCE, policy: reading.rules.preflight, scope });
        return of_all(world, reading, 0);
    };
    let Some(Key { principal, flags, not_before, expires, policy, reserved: _ }) = world.key(tag) else {
        return Err((0, world.guess(reading, source, Reason::UnknownKey)));
    };
    if flags & Key::DISABLED != 0 {
        return Err((principal, world.guess(reading, source, Reason::KeyDisabled)));
    }
    if now < not_before || now >= expires {
        return Err((principal, world.guess(reading, source, Reason::KeyExpired)));
    }
    if reading.rules.flags & Ruleset::STRICT_GUESSES != 0 && world.is_blocked(source, now) {
        return Err((principal, Reason::Guessing));
    }
    if let Some(reason) = world.spread(reading, source, tag) {
        return Err((principal, reason));
    }
    let sourced = match reading.rule.per {
        per if per == Per::Source as u32 && reading.rule.policy != 0 => {
            admitted(world, &reading.rules, u64::from(reading.rule.scope), source, now)
        }
        _ => Scope::default(),
    };
    let by_source = match reading.rules.source {
        0 => Scope::default(),
        _ => admitted(world, &reading.rules, scope::SOURCE, source, now),
    };
    reading.charge.begin(now, cost);
    let slot = world.policy(principal, now);
    if slot == 0 {
        return Err((principal, Reason::OverLimit));
    }
    let own = Scope { rule: 0, subject: [u64::from(principal), 0] };
    reading.charge.claim(Claim { table: table::PRINCIPAL, policy: slot, scope: own });
    reading.charge.claim(Claim { table: table::SOURCE, policy: reading.rules.source, scope: by_source });
    if policy != 0 {
        named(world, reading, policy, Scope { rule: scope::KEY, subject: tag.0 })?;
    }
    if reading.rule.policy != 0 {
        let (rule, policy) = (u64::from(reading.rule.scope), reading.rule.policy);
        if reading.rule.per == Per::Source as u32 {
            reading.charge.claim(Claim { table: table::SOURCE, policy, scope: sourced });
        } else {
            let subject = if reading.rule.per == Per::Service as u32 { 0 } else { u64::from(principal) };
            named(world, reading, policy, Scope { rule, subject: [subject, 0] })?;
        }
    }
    if reading.rules.client_len != 0 {
        let client = Client { principal: u64::from(principal), id: flow.machine.client() };
        if let Some(Share { policy, number }) = world.share(client) {
            let subject = [u64::from(principal), u64::from(number)];
            named(world, reading, policy, Scope { rule: scope::CLIENT, subject })?;
        }
    }
    of_all(world, reading, principal)
}

/// Adds the limits of all requests together.
#[inline(always)]
fn of_all<W: World>(world: &W, reading: &mut Reading, principal: u32) -> Result<u32, (u32, Reason)> {
    let policy = reading.rules.service;
    if policy != 0 {
        named(world, reading, policy, Scope { rule: scope::SERVICE, subject: [0; 2] })
            .map_err(|(_, reason)| (principal, reason))?;
    }
    Ok(principal)
}

/// Adds limits whose subject an operator has named.
#[inline(always)]
fn named<W: World>(world: &W, reading: &mut Reading, policy: u32, scope: Scope) -> Result<(), (u32, Reason)> {
    let scope = if world.open(table::NAMED, scope) {
        scope
    } else {
        // The daemon makes these ahead.
        Scope { rule: scope.rule, subject: [0, scope::OVERFLOW] }
    };
    reading.charge.claim(Claim { table: table::NAMED, policy, scope });
    Ok(())
}

/// Where the buckets of a source are: its own, or those that all share who came too late to have some.
///
/// None that counts gives way to them: more sources than there is room for are not let in within the longest window.
#[inline(always)]
fn admitted<W: World>(world: &W, rules: &Ruleset, rule: u64, source: Source, now: u64) -> Scope {
    let scope = Scope { rule, subject: [source.prefix, source.family] };
    if world.is_open(scope) || (world.admit(rules.admission, now) && world.open(table::SOURCE, scope)) {
        return scope;
    }
    world.count(Count::Event(Event::SourceOverflow));
    let scope = Scope { rule, subject: [0, scope::OVERFLOW] };
    world.open(table::SOURCE, scope);
    scope
}

/// Counts a bad key of a source; the reason that it is refused for.
#[inline(always)]
pub fn guess<W: World>(world: &W, reading: &mut Reading, source: Source, reason: Reason) -> Reason {
    let now = reading.scan.now;
    if reading.rules.guesses == 0 {
        return reason;
    }
    let scope = admitted(world, &reading.rules, scope::GUESSES, source, now);
    reading.charge.begin(now, 1);
    reading.charge.claim(Claim { table: table::SOURCE, policy: reading.rules.guesses, scope });
    if world.blocked_until(scope) > now {
        return Reason::Guessing;
    }
    if world.charge(reading) {
        return reason;
    }
    world.block(scope, now.saturating_add(reading.rules.guess_penalty_ns));
    world.count(Count::Event(Event::GuessPenalty));
    Reason::Guessing
}

/// Whether a source is refused for the bad keys that it has sent.
#[inline(always)]
pub fn is_blocked<W: World>(world: &W, source: Source, now: u64) -> bool {
    let scope = Scope { rule: scope::GUESSES, subject: [source.prefix, source.family] };
    world.blocked_until(scope) > now
}

/// Counts the keys of a source and the sources of a key; why the request is refused, if it is.
#[inline(always)]
pub fn spread<W: World>(world: &W, reading: &mut Reading, source: Source, tag: KeyTag) -> Option<Reason> {
    let now = reading.scan.now;
    let places = [source.prefix, source.family];
    let Spread { most, action, .. } = reading.rules.keys_of_source;
    if most != 0 {
        let scope = Scope { rule: scope::KEYS_OF_SOURCE, subject: places };
        let scope = if world.is_open(scope) { scope } else { admitted(world, &reading.rules, scope.rule, source, now) };
        // Sources that share a place would be taken for one.
        if scope.subject[1] != scope::OVERFLOW
            && world.sight(table::SOURCE, scope, &reading.rules.keys_of_source, places, tag.0, now)
        {
            world.count(Count::Event(Event::KeyRotation));
            penalise(world, reading, action, source);
            if action != SpreadAction::Alert as u32 {
                reading.charge.begin(now, 1);
                return Some(Reason::KeyRotation);
            }
        }
    }
    let Spread { most, action, .. } = reading.rules.sources_of_key;
    if most != 0 {
        let scope = Scope { rule: scope::SOURCES_OF_KEY, subject: tag.0 };
        if world.open(table::NAMED, scope)
            && world.sight(table::NAMED, scope, &reading.rules.sources_of_key, places, tag.0, now)
        {
            world.count(Count::Event(Event::KeyShared));
            penalise(world, reading, action, source);
            if action != SpreadAction::Alert as u32 {
                reading.charge.begin(now, 1);
                return Some(Reason::KeyShared);
            }
        }
    }
    None
}

/// Begins the penalty that this action asks for. Behind a proxy nobody is kept out by it: see [`super::refuse`].
#[inline(always)]
fn penalise<W: World>(world: &W, reading: &Reading, action: u32, source: Source) {
    if action == SpreadAction::Penalty as u32 && reading.scan.proxied == 0 {
        world.penalise(source, reading.scan.now, &reading.service);
    }
}

/// Whose request it is, from where, and by which rule: what is paid for under one is not paid for under another.
#[inline(always)]
fn identity(flow: &Flow, rule: u32) -> KeyTag {
    let KeyTag([low, high]) = flow.machine.key().unwrap_or(KeyTag([0, u64::MAX]));
    let [first, second] = flow.machine.client();
    // The connection's own peer is the same for all that comes on it.
    let [third, fourth] = flow.machine.forwarded().unwrap_or_default();
    let rule = (u64::from(rule) << 32) ^ u64::from(flow.machine.is_preflight());
    KeyTag([low ^ first ^ third, high ^ second ^ fourth ^ rule])
}

/// Who was charged for the head that ended at this place.
#[inline(always)]
fn payer<W: World>(world: &W, flow: &Flow, place: Place) -> KeyTag {
    if flow.charged == place.position { flow.payer } else { world.payer(place) }
}
