//! Programs that are measured beside each other and never attached: parts of a packet's way, and the whole of it on
//! connections that are set back before each packet.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use enforcer_ebpf::abi::Turn;
use enforcer_ebpf::flow::{self, Flow, Set, stage};
use enforcer_ebpf::judge::{self, Fate, Piece, Scratch, World};
use enforcer_ebpf::wire;

use crate::packet::{Packet as _, XdpPacket};
use crate::world::Kernel;
use crate::{begin, maps, packet, passes};

/// Judges a packet as the first of its connection, without the table of connections: for measurements and tests of
/// the decision alone. Never attached.
#[xdp(frags)]
#[inline(always)] // the wrapper's frame counts on the stack
pub(crate) fn bench_judge(ctx: XdpContext) -> u32 {
    judge_alone(XdpPacket(ctx.ctx))
}

#[inline(always)]
fn judge_alone(packet: XdpPacket) -> u32 {
    let Some((scratch, frame)) = begin(packet) else { return XDP_PASS };
    let kernel = Kernel::new(packet);
    if wire::parse(&scratch.desk.head, frame, &mut scratch.segment).is_err() {
        return XDP_PASS;
    }
    let segment = scratch.segment;
    if !kernel.service(segment.tuple.destination_port(), &mut scratch.desk.reading.service) {
        return XDP_PASS;
    }
    kernel.rules(&scratch.desk.reading.service, &mut scratch.desk.reading.rules);
    let Some(flow) = maps::bench_flow() else { return XDP_PASS };
    flow.begin(0, &segment.tuple, segment.seq, stage::FOLLOWED, kernel.now());
    let passes = first(packet, scratch, flow) != 0;
    packet::wipe(&mut scratch.desk, frame);
    if passes { XDP_PASS } else { XDP_DROP }
}

/// Reads the segment in the scratch; 0 if it does not pass as it is. A function, as the judge of a whole packet is one:
/// the verifier walks it with fewer registers to tell apart.
#[inline(never)]
fn first(packet: XdpPacket, scratch: &mut Scratch, flow: &mut Flow) -> u32 {
    let Scratch { segment, desk } = scratch;
    let piece = Piece::fresh(segment, flow);
    u32::from(judge::read(&Kernel::new(packet), desk, segment, flow, piece).fate == Fate::Pass)
}

/// Judges a packet on its whole way, as the first of its connection: what is known of that is forgotten before, which is
/// part of the time that this takes. Never attached.
#[xdp(frags)]
#[inline(always)] // the wrapper's frame counts on the stack
pub(crate) fn bench_first(ctx: XdpContext) -> u32 {
    let packet = XdpPacket(ctx.ctx);
    if !with_flow(packet, |set, way| set.forget(way)) {
        return XDP_DROP;
    }
    if passes(&ctx, packet) { XDP_PASS } else { XDP_DROP }
}

/// Judges a packet on its whole way, as a later one of its connection, which is set back to its beginning before.
/// Never attached.
#[xdp(frags)]
#[inline(always)] // the wrapper's frame counts on the stack
pub(crate) fn bench_later(ctx: XdpContext) -> u32 {
    let packet = XdpPacket(ctx.ctx);
    if !with_flow(packet, |set, way| set.flow(way).go_back()) {
        return XDP_DROP;
    }
    if passes(&ctx, packet) { XDP_PASS } else { XDP_DROP }
}

/// The decision alone, as by [`bench_judge`], on the next key's request. Never attached.
#[xdp(frags)]
#[inline(always)] // the wrapper's frame counts on the stack
pub(crate) fn bench_judge_next(ctx: XdpContext) -> u32 {
    let packet = XdpPacket(ctx.ctx);
    if take_turn(packet) { judge_alone(packet) } else { XDP_DROP }
}

/// The whole way, as by [`bench_later`], of the next key's request. Never attached.
#[xdp(frags)]
#[inline(always)] // the wrapper's frame counts on the stack
pub(crate) fn bench_later_next(ctx: XdpContext) -> u32 {
    let packet = XdpPacket(ctx.ctx);
    if !take_turn(packet) || !with_flow(packet, |set, way| set.flow(way).go_back()) {
        return XDP_DROP;
    }
    if passes(&ctx, packet) { XDP_PASS } else { XDP_DROP }
}

/// Makes the request the next key's, and no more: what that costs the two above. Never attached.
#[xdp(frags)]
#[inline(always)] // the wrapper's frame counts on the stack
pub(crate) fn bench_next(ctx: XdpContext) -> u32 {
    take_turn(XdpPacket(ctx.ctx));
    XDP_DROP
}

/// Writes the next key into the packet; `false` if it has no place for one.
#[inline(never)]
fn take_turn(packet: XdpPacket) -> bool {
    let Some(turn) = maps::TURN.get_ptr_mut(0) else { return false };
    // SAFETY: a map's value, which nobody else uses: programs are measured one at a time.
    let turn = unsafe { &mut *turn };
    let number = turn.number + turn.stride;
    turn.number = if number >= turn.keys { number - turn.keys } else { number };
    turn.letters = Turn::letters(turn.number);
    // SAFETY: the word has eight bytes.
    unsafe { packet.store::<8>(turn.at as u32, (&raw mut turn.letters).cast(), 8) }
}

/// Does something to the entry of the packet's connection, if it has one; `false` if the packet cannot be read. A function of
/// its own: its stack does not add to that of the judge.
#[inline(never)]
fn with_flow(packet: XdpPacket, change: impl FnOnce(&mut Set, u32)) -> bool {
    let Some((scratch, frame)) = begin(packet) else { return false };
    let kernel = Kernel::new(packet);
    if wire::parse(&scratch.desk.head, frame, &mut scratch.segment).is_err() {
        return false;
    }
    let tuple = scratch.segment.tuple;
    let hash = flow::hash(kernel.flow_secret(), &tuple);
    let Some(mut set) = kernel.lock(hash) else { return false };
    if let Some(way) = kernel.find(&set, hash, &tuple) {
        change(&mut set, way);
    }
    true
}

/// The least that an XDP program can do: what the others are measured beside. Never attached.
#[xdp(frags)]
#[inline(always)] // the wrapper's frame counts on the stack
pub(crate) fn bench_drop(_ctx: XdpContext) -> u32 {
    XDP_DROP
}

/// The least that keeps addresses out: drops IPv4 packets of 10.77.0.16 to 10.77.0.31, from which floods come that are
/// measured. What one costs beyond this is the judge's, the rest is the link's. Attached for such measurements only.
#[xdp(frags)]
#[inline(always)] // the wrapper's frame counts on the stack
pub(crate) fn bench_wall(ctx: XdpContext) -> u32 {
    const SOURCE: u32 = 14 + 12;
    let mut source = [0_u8; 4];
    // SAFETY: the array has four bytes.
    let is_read = unsafe { XdpPacket(ctx.ctx).load::<4>(SOURCE, source.as_mut_ptr(), 4) };
    if is_read && matches!(source, [10, 77, 0, 16..=31]) { XDP_DROP } else { XDP_PASS }
}
