//! Bytes that were judged before and that the receiver has not accepted yet: lost behind the hook, not accepted yet, or
//! another text in their place.
//!
//! They are read once more, from the state that they were read from. If that leads to the state that it led to before,
//! it does not matter which copy the receiver takes, and they pass; no head among them is charged twice. If not, what
//! was judged behind them was judged from a state that is not the receiver's, and the connection is refused.
//!
//! The stretches between two marks never overlap, and a segment passes no further than to the end of one: a copy that
//! ran on into the next could make the receiver take the beginning of one copy and the end of another.

use super::reading::Piece;
use super::{Desk, Verdict, World, cut, drop_as, observed, refuse};
use crate::flow::{Flow, Mark, Place, after};
use crate::http::{Refusal, Step};
use crate::opaque::opaque;
use crate::verdict::{Count, Event, Reason};
use crate::wire::Segment;
use crate::words;

/// What is remembered of judged bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Memory {
    /// Nothing.
    None = 0,
    /// They are to be read again.
    Read = 1,
    /// They are a body's, whatever they are.
    Body = 2,
}

/// How the bytes from `begin` on were read before; for [`Memory::Read`] the mark is in the desk and the connection
/// is set back to it. The number is the place where that stretch ends.
#[inline(always)]
pub(super) fn recall<W: World>(world: &W, desk: &mut Desk, flow: &mut Flow, begin: u32) -> (Memory, u32) {
    if !after(flow.body, begin) {
        return (Memory::Body, flow.next());
    }
    let [first, end] = flow.past;
    if !after(first, begin) && after(end, begin) {
        return (Memory::Body, end);
    }
    if !find(world, flow, flow.place(begin), &mut desk.mark) || !after(desk.mark.end, begin) {
        return (Memory::None, begin);
    }
    words::copy(&flow.machine, &mut desk.stood);
    words::copy(&desk.mark.machine, &mut flow.machine);
    (Memory::Read, desk.mark.end)
}

/// Finds the mark at a place.
#[inline(always)]
fn find<W: World>(world: &W, flow: &Flow, place: Place, mark: &mut Mark) -> bool {
    if flow.marked == place.position {
        words::copy(&flow.mark, mark);
        return true;
    }
    world.mark(place, mark)
}

/// Settles what becomes of a segment whose piece was read again, with `refusal` if it may not pass for itself.
#[inline(always)]
pub(super) fn compare<W: World>(
    world: &W,
    desk: &mut Desk,
    segment: &Segment,
    flow: &mut Flow,
    piece: Piece,
    refusal: Option<Refusal>,
) -> Verdict {
    // As a number, all of which is set: see [`crate::flow::Receiver`].
    let step = opaque(match refusal {
        Some(refusal) => Step::Refused(refusal).to_word(),
        None => Step::More.to_word(),
    });
    let begin = segment.seq.wrapping_add(piece.from);
    let end = begin.wrapping_add(piece.len);
    let whole = desk.mark.end;
    let (same, known) = if step != Step::More.to_word() || piece.len == 0 {
        (true, true)
    } else if end == flow.next() {
        (flow.machine.is_as(&desk.stood), true)
    } else if end == whole {
        let known = find(world, flow, flow.place(end), &mut desk.mark);
        (flow.machine.is_as(&desk.mark.machine), known)
    } else {
        // A part of it: from now on there are two stretches.
        divide(world, desk, flow, begin, end);
        (true, true)
    };
    words::copy(&desk.stood, &mut flow.machine);
    if !known {
        return forgotten(world, desk, segment, flow, begin);
    }
    let refusal = match Step::from_word(step) {
        Step::Refused(refusal) => Some(refusal),
        _ if !same => observed(world, &desk.reading.service, Reason::Conflict.into()),
        _ => None,
    };
    if let Some(refusal) = refusal {
        return refuse(world, desk, segment, flow, begin, refusal);
    }
    pass(world, desk, segment, piece.from.wrapping_add(piece.len))
}

#[inline(always)]
fn divide<W: World>(world: &W, desk: &mut Desk, flow: &mut Flow, begin: u32, end: u32) {
    let first = flow.place(begin);
    let whole = desk.mark.end;
    if flow.marked == first.position {
        flow.mark.end = end;
    } else {
        desk.mark.end = end;
        world.put_mark(first, &desk.mark);
    }
    words::copy(&flow.machine, &mut desk.mark.machine);
    desk.mark.end = whole;
    world.put_mark(flow.place(end), &desk.mark);
}

/// Passes the first `len` bytes of payload.
#[inline(always)]
pub(super) fn pass<W: World>(world: &W, desk: &mut Desk, segment: &Segment, len: u32) -> Verdict {
    world.count(Count::Event(Event::Retransmitted));
    if len == segment.len { Verdict::PASS } else { cut(world, desk, segment, len) }
}

/// Judged bytes from `begin` on of which it is not known how they were judged.
#[inline(always)]
pub(super) fn forgotten<W: World>(
    world: &W,
    desk: &mut Desk,
    segment: &Segment,
    flow: &mut Flow,
    begin: u32,
) -> Verdict {
    // Only the receiver's very next bytes are worth an answer: anybody can make up others.
    if begin != flow.accepted {
        return drop_as(world, Event::Forgotten);
    }
    match observed(world, &desk.reading.service, Reason::MidStream.into()) {
        Some(refusal) => refuse(world, desk, segment, flow, begin, refusal),
        None => Verdict::PASS,
    }
}
