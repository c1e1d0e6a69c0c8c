//! The BPF programs: `enforcer_xdp` and `enforcer_tc` judge the packets of an interface.
//!
//! This side holds pointers, helpers and maps and makes no decision: all of those are in the library of this crate,
//! which [`world::Kernel`] serves.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![expect(internal_features, reason = "BPF's atomics exist only as intrinsics")]

mod atomic;
mod bench;
mod charge;
mod connection;
mod explain;
mod maps;
mod packet;
mod part;
mod post;
mod socket;
mod world;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use aya_log_ebpf::debug;
use enforcer_ebpf::judge::{self, Desk, Fate, Scratch, Verdict};
use enforcer_ebpf::wire::{HEAD, Head, Segment};

use packet::{Packet, TcPacket, XdpPacket};
use world::Kernel;

/// Judges every packet of the interface that it is attached to, before an skb is made of it.
#[xdp(frags)]
#[inline(always)] // the wrapper's frame counts on the stack
pub(crate) fn enforcer_xdp(ctx: XdpContext) -> u32 {
    if passes(&ctx, XdpPacket(ctx.ctx)) { XDP_PASS } else { XDP_DROP }
}

/// The same where XDP cannot be: on the ingress of traffic control, where packets may be merged already.
#[classifier]
#[inline(always)] // the wrapper's frame counts on the stack
pub(crate) fn enforcer_tc(ctx: TcContext) -> i32 {
    let packet = TcPacket::arriving(ctx.skb.skb);
    // What passes goes on to the programs behind this one.
    if passes_tc(packet) { post::deliver(packet) } else { TC_ACT_SHOT }
}

/// Sends what is due to the clients of refused requests, on the ingress of traffic control, where XDP judges.
#[classifier]
#[inline(always)] // the wrapper's frame counts on the stack
pub(crate) fn enforcer_answer(ctx: TcContext) -> i32 {
    post::deliver(TcPacket::arriving(ctx.skb.skb))
}

/// Takes note of what the servers of forwarded connections send, and translates what those of kept ones do, on the egress
/// of traffic control.
#[classifier]
#[inline(always)] // the wrapper's frame counts on the stack
pub(crate) fn enforcer_watch(ctx: TcContext) -> i32 {
    let packet = TcPacket::leaving(ctx.skb.skb);
    if packet.is_local() {
        return if post::leave(packet) { TC_ACT_UNSPEC } else { TC_ACT_SHOT };
    }
    if let Some((scratch, frame)) = begin(packet) {
        judge::watch(&Kernel::new(packet), scratch, frame);
        packet::wipe(&mut scratch.desk, frame);
    }
    TC_ACT_UNSPEC
}

/// Beside [`post::deliver`], whose stack does not add to this one's.
#[inline(never)]
fn passes_tc(packet: TcPacket) -> bool {
    passes(&TcContext::new(packet.skb), packet)
}

/// Judges a packet; whether it goes on, as it was or rewritten.
#[inline(always)]
fn passes(ctx: &impl EbpfContext, packet: impl Packet) -> bool {
    // The first bytes of a frame can always be copied; were it otherwise, nothing could be said of it.
    let Some((scratch, frame)) = begin(packet) else { return false };
    let verdict = judge::packet(&Kernel::new(packet), scratch, frame);
    let passes = act(packet, &mut scratch.desk, verdict);
    packet::wipe(&mut scratch.desk, frame);
    if verdict.fate != Fate::Pass {
        let Segment { tuple, seq, len, .. } = scratch.segment;
        let (from, to) = (tuple.source_port(), tuple.destination_port());
        // Compiled out of what the verifier sees unless the daemon was started with `-v`.
        debug!(ctx, "not passed as it was: port {} to {}, sequence {}, {} bytes", from, to, seq, len);
    }
    passes
}

/// This CPU's scratch with the frame's first bytes, and the frame's length.
#[inline(always)]
fn begin(packet: impl Packet) -> Option<(&'static mut Scratch, u32)> {
    let scratch = maps::scratch()?;
    let frame = load_head(packet, &mut scratch.desk.head)?;
    Some((scratch, frame))
}

/// Begins with a packet, of which it is not known yet what it is for: copies the frame's first bytes; how long it is.
#[inline(always)]
fn load_head(packet: impl Packet, head: &mut Head) -> Option<u32> {
    maps::count_for(0);
    let frame = packet.len();
    let len = if frame < HEAD { frame } else { HEAD };
    packet.load_head(head, len).then_some(frame)
}

/// Does what the verdict says; whether the packet goes on.
#[inline(always)]
fn act(packet: impl Packet, desk: &mut Desk, verdict: Verdict) -> bool {
    let Verdict { fate, rewrite } = verdict;
    match fate {
        Fate::Pass => return true,
        Fate::Drop => return false,
        Fate::Rewritten => {}
    }
    if !packet.store_head(&mut desk.head, rewrite.head) {
        return false;
    }
    packet.truncate(rewrite.frame);
    true
}

/// A panic that is reachable is refused by the verifier: this never ends.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

// Helpers such as bpf_probe_read_kernel are open to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
