//! Segments that carry nothing, and what a handshake waits for.
//!
//! The acknowledgment that ends a handshake is dropped. The segment with the client's first bytes carries the same one,
//! and ends the handshake in its place if it passes. So a connection whose first request is refused, or never comes, is
//! never accepted and wakes no worker; what is left of it is a request in the listener's queue, which a RST or the kernel's
//! own timer ends. TCP_DEFER_ACCEPT does the same, for an app that asks for it.

use super::{Verdict, World, drop_as, told};
use crate::flow::{self, receiver, stage};
use crate::verdict::Event;
use crate::wire::Segment;

/// Judges a segment without data, SYN, FIN and RST, for a service that enforces.
#[inline(always)]
pub(super) fn judge<W: World>(world: &W, segment: &Segment) -> Verdict {
    let hash = flow::hash(world.flow_secret(), &segment.tuple);
    let Some(mut set) = world.lock(hash) else { return drop_as(world, Event::Contended) };
    let mut waits = false;
    if let Some(way) = world.find(&set, hash, &segment.tuple) {
        let flow = set.flow(way);
        if told::acknowledges(flow, segment) {
            return drop_as(world, Event::AfterRefusal);
        }
        waits = flow.waits();
        if waits {
            flow.shift.acknowledge(segment.ack);
        } else if flow.stage == stage::FOLLOWED && segment.seq == flow.expected() {
            // Nothing else than this connection's own stands at this number.
            return Verdict::PASS;
        }
    }
    if is_early(world, segment, waits) { drop_as(world, Event::Deferred) } else { Verdict::PASS }
}

/// Whether the segment is one of a handshake with a local socket that has taken no byte: its end, or of a connection that
/// waits behind refused requests any.
#[inline(always)]
fn is_early<W: World>(world: &W, segment: &Segment, waits: bool) -> bool {
    let receiver = world.receiver(&segment.tuple);
    match receiver.state {
        receiver::REQUEST => waits || segment.ack == receiver.server,
        // The listener has kept nothing, and would know a SYN cookie again; so does who has seen it leave. Anything else it
        // answers with a RST, by which clients learn that a connection is gone.
        receiver::LISTENING => {
            let handshake = world.handshake(&segment.tuple);
            handshake.server != 0 && segment.ack == handshake.server && segment.seq == handshake.client
        }
        _ => false,
    }
}
