//! The BPF program: `enforcer_xdp` judges the packets of an interface.
//!
//! This side holds pointers, helpers and maps and makes no decision: all of those are in the library of this crate,
//! which [`world::Kernel`] serves.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![expect(internal_features, reason = "BPF's atomics exist only as intrinsics")]

mod atomic;
mod charge;
mod maps;
mod packet;
mod part;
mod socket;
mod world;

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::debug;
use enforcer_ebpf::flow::stage;
use enforcer_ebpf::judge::{self, Fate, Scratch, Verdict, World};
use enforcer_ebpf::wire::{self, HEAD, Segment};

use packet::Packet;
use world::Kernel;

/// Judges every packet of the interface that it is attached to.
#[xdp(frags)]
pub(crate) fn enforcer_xdp(ctx: XdpContext) -> u32 {
    let Some((kernel, scratch, frame)) = begin(&ctx) else { return XDP_PASS };
    let verdict = judge::packet(&kernel, scratch, frame);
    let action = act(Packet::new(ctx.ctx), scratch, frame, verdict);
    packet::wipe(scratch, frame);
    if verdict.fate != Fate::Pass {
        let Segment { tuple, seq, len, .. } = scratch.segment;
        let (from, to) = (tuple.source_port(), tuple.destination_port());
        // Compiled out of what the verifier sees unless the daemon was started with `-v`.
        debug!(&ctx, "not passed as it was: port {} to {}, sequence {}, {} bytes", from, to, seq, len);
    }
    action
}

/// Judges a packet as the first of its connection, without the table of connections: for measurements and tests of
/// the decision alone. Never attached.
#[xdp(frags)]
pub(crate) fn bench_judge(ctx: XdpContext) -> u32 {
    let Some((kernel, scratch, frame)) = begin(&ctx) else { return XDP_PASS };
    if wire::parse(&scratch.head, frame, &mut scratch.segment).is_err() {
        return XDP_PASS;
    }
    let segment = scratch.segment;
    let Some(service) = kernel.service(segment.tuple.destination_port()) else { return XDP_PASS };
    let Some(flow) = maps::bench_flow() else { return XDP_PASS };
    flow.begin(&segment.tuple, segment.seq, stage::FOLLOWED, kernel.now());
    scratch.reading.service = service;
    let verdict = judge::read(&kernel, scratch, &segment, flow);
    packet::wipe(scratch, frame);
    if verdict.fate == Fate::Pass { XDP_PASS } else { XDP_DROP }
}

/// The least that an XDP program can do: what the others are measured beside. Never attached.
#[xdp(frags)]
pub(crate) fn bench_drop(_ctx: XdpContext) -> u32 {
    XDP_DROP
}

/// This CPU's scratch with the frame's first bytes, and the frame's length.
#[inline(always)]
fn begin(ctx: &XdpContext) -> Option<(Kernel, &'static mut Scratch, u32)> {
    let scratch = maps::scratch()?;
    let packet = Packet::new(ctx.ctx);
    let frame = packet.len();
    let len = if frame < HEAD { frame } else { HEAD };
    // SAFETY: the head has room for HEAD bytes.
    let loaded = unsafe { packet.load::<{ HEAD as u64 }>(0, scratch.head.bytes_mut().as_mut_ptr(), len) };
    loaded.then_some((Kernel::new(packet), scratch, frame))
}

#[inline(always)]
fn act(packet: Packet, scratch: &mut Scratch, frame: u32, verdict: Verdict) -> u32 {
    let Verdict { fate, rewrite } = verdict;
    match fate {
        Fate::Pass => return XDP_PASS,
        Fate::Drop => return XDP_DROP,
        Fate::Rewritten => {}
    }
    // SAFETY: the head has HEAD bytes.
    if !unsafe { packet.store::<{ HEAD as u64 }>(scratch.head.bytes_mut().as_mut_ptr(), rewrite.head) } {
        return XDP_DROP;
    }
    packet.truncate(frame, rewrite.frame);
    XDP_PASS
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
