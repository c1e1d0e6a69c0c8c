//! Whether a request's connection may be one of its source's and its principal's: [`crate::connection`].
//!
//! Before the request is charged, what is wanted is taken; once it is known whether it passes, that is written to the
//! connection or given back. A connection counts for one principal at a time, that of the last request on it that passed.
//! Services that are told apart by host count together: a connection is no one's of them.
//! What has no socket here does not count, and neither does a connection that carries the requests of many: a trusted
//! proxy's that has not told whose it is.

use super::decision::find_party;
use super::{Reading, World, party};
use crate::connection::{self, Held, Left, Taken, Who};
use crate::flow::{self, Flow};
use crate::opaque::zero;
use crate::source::Source;
use crate::verdict::{Count, Event, Reason};

/// Whether the connections of this request's kind and of this connection's are counted.
#[inline(always)]
fn counts(reading: &Reading, flow: &Flow) -> bool {
    reading.party.kind != party::EXEMPT && !flow.machine.is_pooled()
}

/// The principal to count for; 0 if there is none or its connections are not bounded.
#[inline(always)]
fn principal(reading: &Reading) -> u32 {
    let is_bounded = reading.rules.connections_of_principal != 0 && reading.party.kind == party::KEYED;
    if is_bounded { reading.party.principal } else { 0 }
}

#[inline(always)]
fn hash_of(world: &impl World, reading: &Reading, flow: &Flow, principal: u32) -> u64 {
    let who = if principal == 0 {
        Who::Source(Source::at(flow.address(), &reading.service).at_port(&reading.service))
    } else {
        Who::Principal(principal, reading.service.leader)
    };
    who.hash(world.flow_secret())
}

/// Takes what the connection of a request that may pass otherwise is to count in; why the request may not pass, if there is nothing left.
#[inline(always)]
pub fn hold<W: World>(world: &W, reading: &mut Reading, flow: &Flow) -> Option<Reason> {
    let principal = principal(reading);
    let wants_source = reading.rules.connections_of_source != 0 && flow.counts == 0;
    let wants_principal = principal != 0 && flow.holder != principal;
    if flow.local == 0 || !(wants_source || wants_principal) || !counts(reading, flow) {
        return None;
    }
    let hash = flow::hash(world.flow_secret(), &flow.tuple);
    let Some(entry) = connection::look(world, hash, reading.scan.now) else { return no_room(world) };
    if !entry.has_room {
        return no_room(world);
    }
    reading.hold.source = zero() as u32;
    reading.hold.principal = zero() as u32;
    if wants_source && entry.source == 0 {
        match connection::take(world, hash_of(world, reading, flow, 0), reading.rules.connections_of_source) {
            Taken::At(place) => reading.hold.source = place,
            Taken::Full => return Some(Reason::Connections),
            Taken::NoRoom => return no_room(world),
        }
    }
    if wants_principal && entry.holder != principal {
        match connection::take(world, hash_of(world, reading, flow, principal), reading.rules.connections_of_principal)
        {
            Taken::At(place) => reading.hold.principal = place,
            found => {
                connection::give(world, Left { source: reading.hold.source, principal: 0 });
                return if found == Taken::Full { Some(Reason::Connections) } else { no_room(world) };
            }
        }
    }
    reading.hold.connection = hash;
    None
}

/// Likewise for a request that was charged when its bytes came first: its connection has counted, unless it was long in
/// coming to be.
#[inline(always)]
pub fn hold_again<W: World>(world: &W, reading: &mut Reading, flow: &mut Flow) -> Option<Reason> {
    // That its key may have been switched off since does not matter.
    find_party(world, reading, flow);
    let refused = world.hold(reading, flow);
    if reading.hold.connection != 0 && !world.settle(reading, flow, true) {
        return Some(Reason::Connections);
    }
    refused
}

#[inline(always)]
fn no_room<W: World>(world: &W) -> Option<Reason> {
    world.count(Count::Event(Event::ConnectionsFull));
    Some(Reason::Connections)
}

/// Lets the connection count in what was taken, if the request passes, or gives that back; whether it may pass still.
#[inline(always)]
pub fn settle<W: World>(world: &W, reading: &Reading, flow: &mut Flow, passes: bool) -> bool {
    let hold = &reading.hold;
    if !passes {
        connection::give(world, Left { source: hold.source, principal: hold.principal });
        return true;
    }
    let principal = principal(reading);
    match connection::hold(world, hold, principal, reading.scan.now) {
        // Before it is established it may be taken out again, and is asked for with each request.
        Held::Entered => true,
        Held::Open => {
            flow.counts = u32::from(reading.rules.connections_of_source != 0);
            flow.holder = principal;
            true
        }
        // Others have come in between.
        Held::NoRoom => {
            no_room(world);
            false
        }
    }
}

/// Why a request may not pass on a connection of its own, as it stands; nothing is taken.
#[inline(always)]
pub fn would_hold<W: World>(world: &W, reading: &Reading, flow: &Flow) -> Option<Reason> {
    if !counts(reading, flow) {
        return None;
    }
    let is_full = |most: u32, principal: u32| {
        most != 0 && connection::count(world, hash_of(world, reading, flow, principal)) >= u64::from(most)
    };
    let principal = principal(reading);
    let is_refused = is_full(reading.rules.connections_of_source, 0)
        || (principal != 0 && is_full(reading.rules.connections_of_principal, principal));
    if is_refused { Some(Reason::Connections) } else { None }
}
