//! What answers need, from helpers and maps; and how they are sent.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::generated::{
    bpf_clone_redirect, bpf_csum_diff, bpf_ktime_get_boot_ns, bpf_probe_read_kernel, bpf_redirect,
};
use enforcer_ebpf::abi::{ANSWER_TEXT, Bucket, Limit, POINTS, Scope};
use enforcer_ebpf::answer::{self, Letter, Post, SECOND, Sheet, TEXT, Text};
use enforcer_ebpf::flow::{Receiver, Told};
use enforcer_ebpf::limit::{self, Clock};
use enforcer_ebpf::wire::{HEAD, Segment};

use crate::maps::{self, ANSWERS, POLICIES};
use crate::packet::{Packet, TcPacket, bounded};
use crate::world::Kernel;
use crate::{charge, load_head};

impl Post for Kernel<TcPacket> {
    #[inline(always)]
    fn unix(&self) -> u64 {
        // SAFETY: takes nothing.
        let now = unsafe { bpf_ktime_get_boot_ns() };
        maps::time_of_day(now) / SECOND
    }

    #[inline(always)]
    fn write(&self, index: u32, told: &Told, text: &mut Text) -> bool {
        for piece in 0..=POINTS as u32 {
            match write_piece(index, piece, told, text) {
                0 => return true,
                1 => {}
                _ => return false,
            }
        }
        true
    }

    #[inline(always)]
    fn count_for(&self, slot: u32) {
        maps::count_for(slot);
    }

    #[inline(always)]
    fn measure(&self, told: &mut Told, now: u64) {
        measure_limits(told, now);
    }

    #[inline(always)]
    fn replace(&self, segment: &Segment, at: u32, from: u32, to: u32) {
        self.packet.replace(segment.tcp + 16, at, from, to);
    }

    #[inline(always)]
    fn sender(&self) -> Receiver {
        self.packet.sender()
    }

    /// In parts as long as the helper takes; behind the text there are zeros, which add nothing.
    #[inline(always)]
    fn sum(&self, text: &Text) -> u64 {
        const PART: usize = 512;
        const { assert!(TEXT.is_multiple_of(PART)) };
        let mut sum = 0;
        for part in 0..TEXT / PART {
            // SAFETY: the text has room for TEXT bytes; the helper only reads.
            let from = unsafe { text.bytes().as_ptr().add(part * PART) }.cast_mut();
            // SAFETY: as above.
            sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, from.cast(), PART as u32, sum as u32) } as u64;
            sum &= 0xffff_ffff;
        }
        sum
    }
}

/// [`answer::piece`] of the answer at this index; 2 if there is none. A global function: see [`crate::part`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn write_piece(index: u32, piece: u32, told: *const Told, text: *mut Text) -> u32 {
    // SAFETY: of this size, or null.
    let (Some(told), Some(text)) = (unsafe { told.as_ref() }, unsafe { text.as_mut() }) else { return 2 };
    let Some(answer) = ANSWERS.get(index) else { return 2 };
    if answer.len == 0 {
        return 2;
    }
    let more = answer::piece(answer, piece, told, text, |bytes, at, from, len| {
        let Some(len) = bounded::<{ ANSWER_TEXT as u64 }>(len) else { return };
        // SAFETY: `at` and `from` are masked, and the memory behind them is that long.
        unsafe { bpf_probe_read_kernel(bytes.as_mut_ptr().add(at).cast(), len, answer.text.as_ptr().add(from).cast()) };
    });
    u32::from(more)
}

/// [`answer::measure`], by the tables. Likewise.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn measure_limits(told: *mut Told, now: u64) -> u32 {
    // SAFETY: of this size, or null.
    let Some(told) = (unsafe { told.as_mut() }) else { return 0 };
    // On the stack: what a global function is handed is no key of a map for kernels before 6.3.
    let scope = Scope { rule: told.scope.rule, subject: [told.scope.subject[0], told.scope.subject[1]] };
    let (Some(policy), Some(buckets)) = (POLICIES.get(told.policy), charge::find(told.table, &scope)) else {
        return 0;
    };
    let offset = maps::clock_offset();
    // SAFETY: a map's value, which other CPUs may change meanwhile.
    answer::measure(told, policy, unsafe { &*buckets }, now, |bucket, limit, cost| {
        retry_limit(bucket, limit, now, offset, cost)
    });
    1
}

/// [`limit::retry`] at these readings of the clocks. Likewise.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn retry_limit(bucket: *const Bucket, limit: *const Limit, boot: u64, offset: u64, cost: u64) -> u64 {
    // SAFETY: of this size, or null.
    let (Some(bucket), Some(limit)) = (unsafe { bucket.as_ref() }, unsafe { limit.as_ref() }) else { return 0 };
    limit::retry(bucket, limit, Clock { boot, offset }, cost)
}

/// Sends what is due to the client of this packet, if anything is; what traffic control shall do with the packet. A function
/// of its own: its stack does not add to that of the judge.
#[inline(never)]
pub(crate) fn deliver(packet: TcPacket) -> i32 {
    let Some(sheet) = maps::sheet() else { return TC_ACT_UNSPEC };
    let Some(frame) = load_head(packet, &mut sheet.head) else { return TC_ACT_SHOT };
    let letter = answer::answer(&Kernel::new(packet), sheet, frame);
    let mut action = if letter.ends { TC_ACT_SHOT } else { TC_ACT_UNSPEC };
    if letter.envelope > 0 {
        action = send(packet, sheet, letter);
        wipe_text(sheet);
    }
    wipe_head(sheet);
    action
}

/// Translates what leaves for the client of a kept connection; whether it may leave.
#[inline(never)]
pub(crate) fn leave(packet: TcPacket) -> bool {
    let Some(sheet) = maps::sheet() else { return true };
    let Some(frame) = load_head(packet, &mut sheet.head) else { return true };
    let may_leave = answer::leave(&Kernel::new(packet), sheet, frame);
    wipe_head(sheet);
    may_leave
}

/// Sends a letter to where the packet came from: in the packet, if that ends here, or else in a copy, behind which the packet
/// is made again what it was; what traffic control shall do with the packet.
#[inline(always)]
fn send(packet: TcPacket, sheet: &mut Sheet, letter: Letter) -> i32 {
    let Letter { envelope, text, ends } = letter;
    packet.truncate(envelope + text);
    let Some(packet) = packet.uncover() else { return TC_ACT_SHOT };
    if !packet.store_head(&mut sheet.envelope, envelope) {
        return TC_ACT_SHOT;
    }
    // SAFETY: the text has TEXT bytes.
    if text > 0 && !unsafe { packet.store::<{ TEXT as u64 }>(envelope, sheet.text.bytes_mut().as_mut_ptr(), text) } {
        return TC_ACT_SHOT;
    }
    // SAFETY: the context is this program's.
    let interface = unsafe { (*packet.skb).ifindex };
    if ends && !packet.has_socket() {
        // SAFETY: takes two numbers.
        return unsafe { bpf_redirect(interface, 0) } as i32;
    }
    // SAFETY: the context is this program's.
    unsafe { bpf_clone_redirect(packet.skb, interface, 0) };
    if ends {
        return TC_ACT_SHOT;
    }
    let frame = sheet.segment.payload;
    packet.truncate(frame);
    packet.store_head(&mut sheet.head, frame);
    TC_ACT_UNSPEC
}

/// Wipes what was copied of the frame: of one that passes, a key may be in it.
#[inline(always)]
fn wipe_head(sheet: &mut Sheet) {
    // SAFETY: the head has HEAD bytes; see `packet::wipe`.
    unsafe { bpf_probe_read_kernel(sheet.head.bytes_mut().as_mut_ptr().cast(), HEAD, core::ptr::null()) };
}

/// Wipes the text, whose rest counts as zeros.
#[inline(always)]
fn wipe_text(sheet: &mut Sheet) {
    // SAFETY: the text has TEXT bytes; see `packet::wipe`.
    unsafe { bpf_probe_read_kernel(sheet.text.bytes_mut().as_mut_ptr().cast(), TEXT as u32, core::ptr::null()) };
}
