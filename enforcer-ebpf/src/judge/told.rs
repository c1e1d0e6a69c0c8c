//! The connection of a refused request whose client is answered: the server's side is ended by a RST, and from then on
//! nothing of it reaches the host but such. What the client is to be told is left in the connection's entry, and sent by
//! the program that the RST meets next ([`crate::answer`]); without that program the connection has just ended.

use super::{Desk, Verdict, World, drop_as};
use crate::abi::{AnswerKind, Service};
use crate::answer;
use crate::flow::{Flow, Handshake, Receiver, Told, after, due, receiver, stage};
use crate::opaque::zero;
use crate::reply;
use crate::source::Level;
use crate::verdict::{Action, Count, Event, Reason};
use crate::wire::{Head, Segment};

/// ns after which it is taken that what a client was told is lost, if it goes on sending as if it had not been told.
const LOST_NS: u64 = 100_000_000;
/// ns after which it is taken that nothing answers, if nothing has: the program that does runs behind this one at once.
const UNANSWERED_NS: u64 = 500_000_000;
/// How far ahead a client may send what is taken: the window that it is offered, under the largest scale (RFC 7323).
const AHEAD: u32 = 1024 << 14;
/// More than the sequence numbers of any answer.
const LONGEST: u32 = 2048;

/// Sees to it that the client of a request that is refused for `reason` is answered, or else is sent a RST; whether it is
/// answered.
///
/// A client takes whatever comes for the response to its earliest request that has none. So there is an answer only
/// where no earlier one is without its response, and where the client has acknowledged all that the server has written:
/// where the answer begins is known then.
#[inline(always)]
pub(super) fn answer(desk: &Desk, segment: &Segment, flow: &mut Flow, reason: Reason, level: Level) -> bool {
    let action = desk.reading.service.action(reason as u32);
    if action == Action::Drop as u8 || level == Level::Silence {
        flow.told.due = due::NOTHING;
        return false;
    }
    let kind = match reason.answer() {
        Some(kind) => kind as u32,
        None => Told::END,
    };
    let answers = desk.reading.service.flags & Service::ANSWER != 0
        && action == Action::Answer as u8
        && level == Level::AsSet
        && kind <= AnswerKind::Misdirected as u32
        && flow.pipelined == 0
        && flow.shift.settled == flow.shift.is_kept
        && desk.ack == flow.shift.seq_to_client(desk.written);
    flow.told.at = flow.touched;
    flow.told.due = if answers { due::ANSWER } else { due::RESET };
    flow.told.seq = desk.ack;
    flow.told.len = 0;
    flow.told.ack = desk.seq.wrapping_add(segment.end().wrapping_sub(segment.seq));
    flow.told.keeps = 0;
    flow.told.kind = if kind == Told::END { kind } else { desk.reading.service.answers.wrapping_add(kind) };
    flow.told.bodiless = desk.reading.scan.bodiless();
    let rules = &desk.reading.rules;
    let spread = if reason == Reason::KeyShared { &rules.sources_of_key } else { &rules.keys_of_source };
    flow.told.retry = answer::seconds(spread.window);
    flow.told.quota = spread.most;
    flow.told.window = flow.told.retry;
    flow.told.policy = zero() as u32;
    flow.told.table = zero() as u32;
    flow.told.cost = zero() as u32;
    flow.told.scope.rule = zero();
    flow.told.scope.subject[0] = zero();
    flow.told.scope.subject[1] = zero();
    // A limit tells more exactly when it is asked.
    if matches!(reason, Reason::OverLimit | Reason::Guessing) {
        let charge = &desk.reading.charge;
        let claim = charge.refused();
        flow.told.policy = claim.policy;
        flow.told.table = claim.table;
        flow.told.cost = charge.cost();
        flow.told.scope.rule = claim.scope.rule;
        flow.told.scope.subject[0] = claim.scope.subject[0];
        flow.told.scope.subject[1] = claim.scope.subject[1];
    }
    stamp(&mut flow.told, &desk.head, segment);
    answers
}

/// Whether a segment with data or a FIN is of this connection, and the connection is answered.
///
/// A SYN that was on its way twice begins another connection in the place of the one that has ended. Of that one knows
/// who acknowledges its SYN-ACK; its server would answer any other number with a RST, which the client would believe.
#[inline(always)]
pub(super) fn is_of(flow: &Flow, segment: &Segment, receiver: Receiver, handshake: Handshake) -> bool {
    if flow.stage != stage::ANSWERED {
        return false;
    }
    if flow.is_of(receiver, handshake) {
        return true;
    }
    let server = if receiver.state == receiver::REQUEST { receiver.server } else { handshake.server };
    receiver.state != receiver::STREAM && segment.ack != server && segment.ack.wrapping_sub(flow.told.seq) <= LONGEST
}

/// A later segment of an answered connection, with data or a FIN.
#[inline(always)]
pub(super) fn go_on<W: World>(
    world: &W,
    desk: &mut Desk,
    segment: &Segment,
    flow: &mut Flow,
    receiver: Receiver,
    now: u64,
) -> Verdict {
    world.count(Count::Event(Event::AfterRefusal));
    flow.after = flow.after.wrapping_add(1);
    flow.touched = now;
    let is_held = receiver.state >= receiver::STREAM && receiver.base == flow.base;
    let next = if is_held { receiver.next } else { flow.next() };
    let told = &mut flow.told;
    if told.len != 0 && !after(told.seq.wrapping_add(told.len), segment.ack) {
        // It has the answer. What it still sends is taken, lest a RST overtakes what it has not read yet; what is lost
        // of it or comes late, too: nobody misses it, and the client would wait long for each such segment.
        if segment.end().wrapping_sub(told.ack) <= AHEAD {
            told.ack = segment.end();
        }
        told.due = due::ACKNOWLEDGMENT;
    } else if told.len == 0 && now.saturating_sub(told.at) >= UNANSWERED_NS {
        // What answers is not there any more. The host ends what it does not know, so its client need not wait.
        return Verdict::rewritten(reply::strip(&mut desk.head, segment, segment.end().wrapping_add(16)));
    } else if after(told.ack, segment.seq) || now.saturating_sub(told.at) >= LOST_NS {
        if told.len != 0 {
            told.at = now;
        }
        told.due = due::ANSWER;
    } else {
        // Acknowledged, it would not be sent again, and an answer that is lost would not be missed.
        return drop_as(world, Event::Dropped);
    }
    stamp(told, &desk.head, segment);
    Verdict::rewritten(reply::reset(&mut desk.head, segment, next))
}

/// Whether a bare acknowledgment is of this connection, and the connection is answered: the host would reply to it with a
/// RST, which could overtake what the client has not read yet. One that begins a later connection of the same ends
/// acknowledges another number.
#[inline(always)]
pub(super) const fn acknowledges(flow: &Flow, segment: &Segment) -> bool {
    flow.stage == stage::ANSWERED && segment.ack.wrapping_sub(flow.told.seq) <= LONGEST
}

/// Takes note of the client's timestamps, where they stand as all systems write them (RFC 7323 appendix A).
#[inline(always)]
pub(super) fn stamp(told: &mut Told, head: &Head, segment: &Segment) {
    const NOP_NOP_TIMESTAMPS: u32 = 0x0101_080a;
    let options = segment.tcp.wrapping_add(20);
    let has = segment.payload.wrapping_sub(segment.tcp) >= 32 && head.u32(options) == NOP_NOP_TIMESTAMPS;
    let (value, echo) =
        if has { (head.u32(options.wrapping_add(8)), head.u32(options.wrapping_add(4))) } else { (0, 0) };
    told.stamps = [value, echo];
}
