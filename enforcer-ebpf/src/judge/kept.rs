//! A connection that goes on although a request of it was refused: the request is kept back from the server, its client
//! is answered, and from then on the numbers of one side are made those of the other ([`crate::shift`]).
//!
//! Only where the bytes of the request are known to their end, none of them has reached the server, and no worker waits for
//! it: either the response before it has been taken, or nobody has accepted the connection yet, since its handshake waits for
//! a request that passes ([`super::bare`]).

use super::{Desk, Verdict, World};
use crate::abi::Service;
use crate::flow::{Flow, Told, after, due, stage};
use crate::opaque::zero;
use crate::reply;
use crate::verdict::{Count, Event, Reason};
use crate::wire::{Segment, flag};

/// Most bytes of a refused request's body that are taken to keep its connection.
const LONGEST_BODY: u32 = 65_536;

/// That a connection cannot be kept.
pub(super) const CANNOT: u32 = u32::MAX;

/// Bytes of the body that are to come behind a segment in which `ahead` bytes follow the head of a request with a body of
/// `body` bytes; [`CANNOT`] if more than the body follows, or the body is too long to be taken.
#[inline(always)]
pub(super) fn left(ahead: u32, body: u64) -> u32 {
    if body > u64::from(LONGEST_BODY) || u64::from(ahead) > body { CANNOT } else { body as u32 - ahead }
}

/// Keeps a refused request back, that begins with the segment at the server's number `begin`; whether it could. A function of
/// its own: its stack does not add to that of the judge.
#[inline(never)]
pub(super) fn keep(desk: &Desk, segment: &Segment, flow: &mut Flow, begin: u32, reason: Reason) -> bool {
    let left = desk.reading.scan.left();
    let whole = matches!(
        reason,
        Reason::Unkeyed | Reason::UnknownKey | Reason::KeyDisabled | Reason::KeyExpired | Reason::OverLimit
    );
    let is_kept = desk.reading.service.flags & Service::KEEP != 0
        && whole
        && left != CANNOT
        && (flow.served != 0 || (desk.unaccepted != 0 && begin == flow.base))
        && flow.local != 0
        && flow.leaves != 0
        && flow.accepted == begin
        && segment.seq == begin
        // Else the server has the request's first bytes, and would read what follows as the rest of it; of bytes that come
        // again it is not known how it stands before them.
        && flow.next() == begin
        && flow.machine.is_behind_request()
        && !segment.has(flag::FIN);
    if !is_kept {
        return false;
    }
    let shift = &mut flow.shift;
    shift.from = desk.seq;
    shift.to = desk.seq.wrapping_add(segment.len);
    shift.before = shift.behind;
    shift.behind = shift.before.wrapping_add(segment.len);
    shift.inserted = desk.written;
    shift.told_before = shift.told_behind;
    shift.left = left;
    shift.is_kept = 1;
    shift.settled = zero() as u32;
    if left > 0 {
        flow.told.due = due::ACKNOWLEDGMENT;
    }
    true
}

/// Notes whether what the server sends leaves where it can be translated, of a connection that has sent nothing but its
/// SYN-ACK.
#[inline(always)]
pub(super) fn note_way<W: World>(world: &W, desk: &Desk, segment: &Segment, flow: &mut Flow) {
    if flow.leaves == 0 && desk.unaccepted != 0 && desk.reading.scan.left() != CANNOT {
        flow.leaves = u32::from(world.has_left(&segment.tuple, flow.base, flow.server));
    }
}

/// What becomes of a segment of a connection that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Meanwhile {
    /// It can be what its server waits for.
    GoesOn = 0,
    /// It comes late, or again: its server would take it for another connection's.
    Dropped = 1,
    /// It is its client's end.
    Ended = 2,
}

/// Settles what becomes of a translated segment; at the client's end it is to be told that its server has ended, too. Until it
/// has the last answer, its end may not be acknowledged: it comes again. A function of its own: its stack does not add to
/// that of the judge.
#[inline(never)]
pub(super) fn meanwhile(desk: &Desk, segment: &Segment, flow: &mut Flow, now: u64) -> Meanwhile {
    if !flow.waits() || desk.unaccepted == 0 {
        return Meanwhile::GoesOn;
    }
    if segment.len > 0 && segment.ack == flow.server && after(segment.end(), flow.base) {
        return Meanwhile::GoesOn;
    }
    if !segment.has(flag::FIN) || segment.seq != flow.base || flow.shift.settled == 0 {
        return Meanwhile::Dropped;
    }
    flow.touched = now;
    flow.stage = stage::ANSWERED;
    flow.told.at = now;
    flow.told.due = due::ANSWER;
    flow.told.seq = desk.ack;
    flow.told.len = 0;
    flow.told.ack = desk.seq.wrapping_add(1);
    flow.told.keeps = 0;
    flow.told.kind = Told::END;
    super::told::stamp(&mut flow.told, &desk.head, segment);
    Meanwhile::Ended
}

/// A segment among what is kept back, as the client counts: the rest of the body, or what comes again.
#[inline(always)]
pub(super) fn take<W: World>(world: &W, desk: &mut Desk, segment: &Segment, flow: &mut Flow, now: u64) -> Verdict {
    world.count(Count::Event(Event::AfterRefusal));
    flow.touched = now;
    let shift = &mut flow.shift;
    let ahead = segment.seq.wrapping_add(segment.len).wrapping_sub(shift.to);
    let in_order = segment.seq.wrapping_sub(shift.to) as i32 <= 0;
    if in_order && ahead as i32 > 0 && shift.left > 0 {
        let count = if ahead < shift.left { ahead } else { shift.left };
        shift.to = shift.to.wrapping_add(count);
        shift.behind = shift.behind.wrapping_add(count);
        shift.left -= count;
        flow.told.ack = shift.to;
    }
    shift.acknowledge(segment.ack);
    // Complete, it is acknowledged by the answer alone, until the client has that.
    flow.told.due =
        if shift.left > 0 || (shift.settled != 0 && flow.told.len != 0) { due::ACKNOWLEDGMENT } else { due::ANSWER };
    super::told::stamp(&mut flow.told, &desk.head, segment);
    Verdict::rewritten(reply::reset(&mut desk.head, segment, flow.next()))
}

/// Makes the numbers of a client's segment those of its server.
#[inline(always)]
pub(super) fn shift(segment: &mut Segment, flow: &mut Flow) {
    flow.shift.acknowledge(segment.ack);
    segment.seq = flow.shift.seq_to_server(segment.seq);
    segment.ack = flow.shift.ack_to_server(segment.ack);
}
