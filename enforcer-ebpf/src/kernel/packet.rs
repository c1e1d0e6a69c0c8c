//! The packet behind an XDP context: read and written through helpers, so that fragments and the non-linear part of
//! an skb are reached too; bounds-checked pointers would see the first buffer only.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::{
    bpf_probe_read_kernel, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len, bpf_xdp_load_bytes, bpf_xdp_store_bytes,
};
use enforcer_ebpf::http::bytes::CAPACITY;
use enforcer_ebpf::judge::Scratch;

/// The packet under judgement.
#[derive(Clone, Copy)]
pub(crate) struct Packet(*mut xdp_md);

/// A length of 1–`MAX` as the verifier can bound it: what is compared is hidden from the compiler, which would fold
/// the comparison away, and it is the length less one, since kernels before 6.8 learn nothing from "not zero".
#[inline(always)]
fn bounded<const MAX: u64>(len: u32) -> Option<u32> {
    let mut less = u64::from(len).wrapping_sub(1);
    // SAFETY: a move of a register onto itself.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) less, options(nomem, nostack, preserves_flags)) };
    if less < MAX { Some(less as u32 + 1) } else { None }
}

impl Packet {
    /// The packet of a program's context.
    #[inline(always)]
    pub(crate) fn new(ctx: *mut xdp_md) -> Self {
        Self(ctx)
    }

    /// The context, for helpers that ask for it.
    #[inline(always)]
    pub(crate) fn context(self) -> *mut xdp_md {
        self.0
    }

    /// Bytes of the frame.
    #[inline(always)]
    pub(crate) fn len(self) -> u32 {
        // SAFETY: the context is this program's.
        (unsafe { bpf_xdp_get_buff_len(self.0) }) as u32
    }

    /// Copies `len` bytes at `at` to `to`; `false` if the frame does not have them, or `len` is not 1–`MAX`.
    ///
    /// # Safety
    /// `to` has room for `MAX` bytes.
    #[inline(always)]
    pub(crate) unsafe fn load<const MAX: u64>(self, at: u32, to: *mut u8, len: u32) -> bool {
        let Some(len) = bounded::<MAX>(len) else { return false };
        // SAFETY: the caller's, and `len` is at most `MAX`.
        unsafe { bpf_xdp_load_bytes(self.0, at, to.cast(), len) == 0 }
    }

    /// Writes the frame's first `len` bytes from `from`; as [`Packet::load`].
    ///
    /// # Safety
    /// `from` has `MAX` bytes.
    #[inline(always)]
    pub(crate) unsafe fn store<const MAX: u64>(self, from: *mut u8, len: u32) -> bool {
        let Some(len) = bounded::<MAX>(len) else { return false };
        // SAFETY: the caller's, and `len` is at most `MAX`.
        unsafe { bpf_xdp_store_bytes(self.0, 0, from.cast(), len) == 0 }
    }

    /// Shortens the frame to `len` bytes. A driver may not let go of them: receivers trim to the IP length anyway.
    #[inline(always)]
    pub(crate) fn truncate(self, frame: u32, len: u32) {
        // SAFETY: the context is this program's.
        unsafe { bpf_xdp_adjust_tail(self.0, len as i32 - frame as i32) };
    }
}

/// Wipes what was copied of a frame of this length: keys in clear must not stay in a map.
///
/// A read from address 0 fails without a fault and fills its destination with zeros (bpf_probe_read_kernel,
/// kernel/trace/bpf_trace.c): the one helper that clears a variable length.
#[inline(always)]
pub(crate) fn wipe(scratch: &mut Scratch, frame: u32) {
    const FRESH: u64 = CAPACITY as u64;
    let len = if frame > CAPACITY { CAPACITY } else { frame };
    let Some(len) = bounded::<FRESH>(len) else { return };
    let fresh = scratch.reading.window.fresh().as_mut_ptr().cast();
    // SAFETY: the window has room for CAPACITY fresh bytes.
    unsafe { bpf_probe_read_kernel(fresh, len, core::ptr::null()) };
    let head = scratch.head.bytes_mut();
    // SAFETY: as long as it is.
    unsafe { bpf_probe_read_kernel(head.as_mut_ptr().cast(), head.len() as u32, core::ptr::null()) };
}
