//! What the servers of forwarded connections say, on its way back to their clients: which connections they have agreed
//! to, and how much of each they have accepted. It takes the place of the socket that is not here.

use super::{Scratch, World};
use crate::flow::{self, Handshake, after};
use crate::wire::{self, Segment, flag};

/// Takes note of a frame of `frame` bytes whose first bytes are in the scratch, on its way out of the interface. The
/// caller has made sure that no local socket sent it.
#[inline(always)]
pub fn watch<W: World>(world: &W, scratch: &mut Scratch, frame: u32) {
    let Scratch { segment, desk } = scratch;
    if wire::parse(&desk.head, frame, segment).is_err() {
        return;
    }
    let Segment { seq, ack, fragment, .. } = *segment;
    let end = segment.end();
    if fragment != 0 || !segment.has(flag::ACK) {
        return;
    }
    if !world.service(segment.tuple.source_port(), &mut desk.reading.service) {
        return;
    }
    let tuple = segment.tuple.reversed();
    if segment.has(flag::SYN) {
        world.put_handshake(&tuple, Handshake { client: ack, server: seq.wrapping_add(1) });
        return;
    }
    let hash = flow::hash(world.flow_secret(), &tuple);
    let Some(mut set) = world.lock(hash) else { return };
    let Some(way) = world.find(&set, hash, &tuple) else { return };
    let flow = set.flow(way);
    if flow.local != 0 {
        return;
    }
    if after(ack, flow.accepted) {
        flow.accepted = ack;
    }
    if after(end, flow.written) {
        flow.written = end;
    }
    if segment.has(flag::RST) {
        flow.finished = 1;
    }
}
