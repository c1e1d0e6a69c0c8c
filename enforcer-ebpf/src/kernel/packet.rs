//! The packet behind a program's context: read and written through helpers, so that fragments and the non-linear part
//! of an skb are reached too; bounds-checked pointers would see the first buffer only.

use aya_ebpf::bindings::{__sk_buff, BPF_F_RECOMPUTE_CSUM, bpf_sock, bpf_sock_tuple, xdp_md};
use aya_ebpf::helpers::generated::{
    bpf_l4_csum_replace, bpf_probe_read_kernel, bpf_skb_change_head, bpf_skb_change_tail, bpf_skb_load_bytes,
    bpf_skb_load_bytes_relative, bpf_skb_store_bytes, bpf_skc_lookup_tcp, bpf_xdp_get_buff_len, bpf_xdp_load_bytes,
    bpf_xdp_store_bytes,
};
use enforcer_ebpf::flow::{Flow, Receiver};
use enforcer_ebpf::http::bytes::CAPACITY;
use enforcer_ebpf::judge::{Desk, Reading};
use enforcer_ebpf::wire::{HEAD, Head, Tuple};

use crate::{part, socket};

/// The network namespace of the packet's interface (BPF_F_CURRENT_NETNS).
const CURRENT_NETNS: u64 = u64::MAX;
/// Offsets count from the Ethernet header (include/uapi/linux/bpf.h).
const BPF_HDR_START_MAC: u32 = 0;
/// A sum that the card made of the whole packet must go on holding.
const RECOMPUTE: u64 = BPF_F_RECOMPUTE_CSUM as u64;
/// Most bytes of a head behind its Ethernet header.
const SHOWN: u64 = (HEAD - ETHERNET) as u64;

/// A packet under judgement, as its hook hands it over.
pub(crate) trait Packet: Copy {
    /// Bytes of the frame.
    fn len(self) -> u32;

    /// Copies `len` bytes at `at` to `to`; `false` if the frame does not have them, or `len` is not 1–`MAX`.
    ///
    /// # Safety
    /// `to` has room for `MAX` bytes.
    unsafe fn load<const MAX: u64>(self, at: u32, to: *mut u8, len: u32) -> bool;

    /// Writes `len` bytes at `at` from `from`; as [`Packet::load`].
    ///
    /// # Safety
    /// `from` has `MAX` bytes.
    unsafe fn store<const MAX: u64>(self, at: u32, from: *mut u8, len: u32) -> bool;

    /// Copies the frame's first `len` bytes, at most [`HEAD`]; `false` if it does not have them.
    #[inline(always)]
    fn load_head(self, head: &mut Head, len: u32) -> bool {
        // SAFETY: the head has HEAD bytes.
        unsafe { self.load::<{ HEAD as u64 }>(0, head.bytes_mut().as_mut_ptr(), len) }
    }

    /// Writes the frame's first `len` bytes, at most [`HEAD`]; `false` if it does not have them.
    #[inline(always)]
    fn store_head(self, head: &mut Head, len: u32) -> bool {
        // SAFETY: the head has HEAD bytes.
        unsafe { self.store::<{ HEAD as u64 }>(0, head.bytes_mut().as_mut_ptr(), len) }
    }

    /// Ends the frame behind `len` bytes, where it must: receivers trim to the IP length anyway.
    fn truncate(self, len: u32);

    /// Looks a connection's socket up; the caller releases it.
    ///
    /// # Safety
    /// `tuple` has `size` bytes.
    unsafe fn socket(self, tuple: *mut bpf_sock_tuple, size: u32) -> *mut bpf_sock;

    /// [`enforcer_ebpf::judge::World::receiver`], as a function that the verifier checks once.
    fn find_socket(self, tuple: &Tuple, known: &mut Receiver);

    /// [`enforcer_ebpf::judge::World::refill`], likewise.
    fn refill(self, reading: &mut Reading, flow: &mut Flow) -> u32;
}

/// A length of 1–`MAX` as the verifier can bound it: what is compared is hidden from the compiler, which would fold
/// the comparison away, and it is the length less one, since kernels before 6.8 learn nothing from "not zero".
#[inline(always)]
pub(crate) fn bounded<const MAX: u64>(len: u32) -> Option<u32> {
    let mut less = u64::from(len).wrapping_sub(1);
    // SAFETY: a move of a register onto itself.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) less, options(nomem, nostack, preserves_flags)) };
    if less < MAX { Some(less as u32 + 1) } else { None }
}

/// What an XDP program is given.
#[derive(Clone, Copy)]
pub(crate) struct XdpPacket(pub(crate) *mut xdp_md);

impl Packet for XdpPacket {
    #[inline(always)]
    fn len(self) -> u32 {
        // SAFETY: the context is this program's.
        (unsafe { bpf_xdp_get_buff_len(self.0) }) as u32
    }

    #[inline(always)]
    unsafe fn load<const MAX: u64>(self, at: u32, to: *mut u8, len: u32) -> bool {
        let Some(len) = bounded::<MAX>(len) else { return false };
        // SAFETY: the caller's, and `len` is at most `MAX`.
        unsafe { bpf_xdp_load_bytes(self.0, at, to.cast(), len) == 0 }
    }

    #[inline(always)]
    unsafe fn store<const MAX: u64>(self, at: u32, from: *mut u8, len: u32) -> bool {
        let Some(len) = bounded::<MAX>(len) else { return false };
        // SAFETY: the caller's, and `len` is at most `MAX`.
        unsafe { bpf_xdp_store_bytes(self.0, at, from.cast(), len) == 0 }
    }

    /// Never: when the generic hook has shortened the fragments of an skb, it forgets the skb's own length
    /// (bpf_prog_run_generic_xdp, net/core/dev.c, seen on 6.18), and other bytes than those judged are received.
    #[inline(always)]
    fn truncate(self, _len: u32) {}

    #[inline(always)]
    unsafe fn socket(self, tuple: *mut bpf_sock_tuple, size: u32) -> *mut bpf_sock {
        // SAFETY: the caller's.
        unsafe { bpf_skc_lookup_tcp(self.0.cast(), tuple, size, CURRENT_NETNS, 0) }
    }

    #[inline(always)]
    fn find_socket(self, tuple: &Tuple, known: &mut Receiver) {
        part::find_socket_xdp(self.0, tuple, known);
    }

    #[inline(always)]
    fn refill(self, reading: &mut Reading, flow: &mut Flow) -> u32 {
        part::refill_xdp(self.0, reading, flow)
    }
}

/// Bytes of an Ethernet header.
const ETHERNET: u32 = 14;

/// What a TC program is given: it may be merged of several segments, and lie in many pieces.
#[derive(Clone, Copy)]
pub(crate) struct TcPacket {
    pub(crate) skb: *mut __sk_buff,
    /// Bytes of the frame that the program is not shown: its Ethernet header, or none.
    hidden: u32,
}

impl TcPacket {
    /// One that arrives.
    ///
    /// Where the generic XDP hook has copied the packet before, to give its program headroom, the copy's `mac_len` is 0
    /// (skb_pp_cow_data, net/core/skbuff.c, seen on 6.18), and classifiers see the IP header first.
    #[inline(always)]
    pub(crate) fn arriving(skb: *mut __sk_buff) -> Self {
        let (mut shown, mut ethernet) = ([0u64; 2], [0u64; 2]);
        let (to, header): (*mut [u64; 2], *mut [u64; 2]) = (&mut shown, &mut ethernet);
        // SAFETY: both have room for what is copied.
        let failed = unsafe {
            bpf_skb_load_bytes(skb.cast(), 0, to.cast(), ETHERNET)
                | bpf_skb_load_bytes_relative(skb.cast(), 0, header.cast(), ETHERNET, BPF_HDR_START_MAC)
        };
        Self { skb, hidden: if failed == 0 && shown != ethernet { ETHERNET } else { 0 } }
    }

    /// One that leaves.
    #[inline(always)]
    pub(crate) fn leaving(skb: *mut __sk_buff) -> Self {
        Self { skb, hidden: 0 }
    }

    /// One of which as much is hidden as was found before.
    #[inline(always)]
    pub(crate) fn with_hidden(skb: *mut __sk_buff, hidden: u32) -> Self {
        Self { skb, hidden }
    }

    /// Makes room for the Ethernet header, if it is hidden, in a packet of less than 16 KiB (BPF_SKB_MAX_LEN): it is to be
    /// written then.
    #[inline(always)]
    pub(crate) fn uncover(self) -> Option<Self> {
        // SAFETY: the context is this program's.
        if self.hidden != 0 && unsafe { bpf_skb_change_head(self.skb, ETHERNET, 0) } != 0 {
            return None;
        }
        Some(Self { hidden: 0, ..self })
    }

    /// Puts a number at a place of the packet in the place of another, and into the TCP checksum at `sum`. Both helpers keep
    /// a sum of the whole packet right, and know partial ones.
    #[inline(always)]
    pub(crate) fn replace(self, sum: u32, at: u32, from: u32, to: u32) {
        let (from, to) = (from.to_be(), to.to_be());
        let bytes = (&raw const to).cast_mut().cast();
        // SAFETY: the context is this program's; four bytes on the stack.
        unsafe {
            bpf_l4_csum_replace(self.skb, sum.wrapping_sub(self.hidden), u64::from(from), u64::from(to), 4);
            bpf_skb_store_bytes(self.skb, at.wrapping_sub(self.hidden), bytes, 4, 0);
        }
    }

    /// Whether a socket belongs to it: of a packet that arrives over veth, its sender's in another namespace (skb_scrub_packet,
    /// net/core/skbuff.c), which a copy of it has no more. What leaves with one counts as its own.
    #[inline(always)]
    pub(crate) fn has_socket(self) -> bool {
        !self.socket_of().is_null()
    }

    /// The socket that belongs to it, or null.
    #[inline(always)]
    fn socket_of(self) -> *mut bpf_sock {
        // SAFETY: the context is this program's.
        unsafe { core::ptr::read_volatile(&raw const (*self.skb).__bindgen_anon_2.sk) }
    }

    /// The socket that sent it.
    #[inline(always)]
    pub(crate) fn sender(self) -> Receiver {
        let socket = self.socket_of();
        // SAFETY: the packet holds it.
        if socket.is_null() { Receiver::ABSENT } else { unsafe { socket::read(socket) } }
    }

    /// Whether a socket of this host sent it.
    #[inline(always)]
    pub(crate) fn is_local(self) -> bool {
        const AF_INET: u32 = 2;
        const AF_INET6: u32 = 10;
        /// include/net/tcp_states.h: of such a socket nothing but a RST comes.
        const CLOSE: u32 = 7;
        let socket = self.socket_of();
        if socket.is_null() {
            return false;
        }
        // SAFETY: the packet holds it.
        let family = unsafe { core::ptr::read_volatile(&raw const (*socket).family) };
        // SAFETY: as above.
        let state = unsafe { core::ptr::read_volatile(&raw const (*socket).state) };
        (family == AF_INET || family == AF_INET6) && state != CLOSE
    }
}

impl Packet for TcPacket {
    #[inline(always)]
    fn len(self) -> u32 {
        // SAFETY: the context is this program's.
        unsafe { (*self.skb).len }.wrapping_add(self.hidden)
    }

    #[inline(always)]
    unsafe fn load<const MAX: u64>(self, at: u32, to: *mut u8, len: u32) -> bool {
        let Some(len) = bounded::<MAX>(len) else { return false };
        // SAFETY: the caller's, and `len` is at most `MAX`.
        unsafe { bpf_skb_load_bytes(self.skb.cast(), at.wrapping_sub(self.hidden), to.cast(), len) == 0 }
    }

    #[inline(always)]
    unsafe fn store<const MAX: u64>(self, at: u32, from: *mut u8, len: u32) -> bool {
        let Some(len) = bounded::<MAX>(len) else { return false };
        // SAFETY: the caller's, and `len` is at most `MAX`.
        unsafe { bpf_skb_store_bytes(self.skb, at.wrapping_sub(self.hidden), from.cast(), len, RECOMPUTE) == 0 }
    }

    #[inline(always)]
    fn load_head(self, head: &mut Head, len: u32) -> bool {
        let to = head.bytes_mut().as_mut_ptr();
        if self.hidden == 0 {
            // SAFETY: the head has HEAD bytes.
            return unsafe { self.load::<{ HEAD as u64 }>(0, to, len) };
        }
        let Some(len) = bounded::<SHOWN>(len.wrapping_sub(ETHERNET)) else { return false };
        // SAFETY: the head has room for both.
        unsafe {
            bpf_skb_load_bytes_relative(self.skb.cast(), 0, to.cast(), ETHERNET, BPF_HDR_START_MAC) == 0
                && bpf_skb_load_bytes(self.skb.cast(), 0, to.add(ETHERNET as usize).cast(), len) == 0
        }
    }

    #[inline(always)]
    fn store_head(self, head: &mut Head, len: u32) -> bool {
        let from = head.bytes_mut().as_mut_ptr();
        if self.hidden == 0 {
            // SAFETY: the head has HEAD bytes.
            return unsafe { self.store::<{ HEAD as u64 }>(0, from, len) };
        }
        // The judge leaves the Ethernet header as it is.
        let Some(len) = bounded::<SHOWN>(len.wrapping_sub(ETHERNET)) else { return false };
        // SAFETY: the head has as many bytes behind the Ethernet header.
        unsafe { bpf_skb_store_bytes(self.skb, 0, from.add(ETHERNET as usize).cast(), len, RECOMPUTE) == 0 }
    }

    /// Always: of what was merged, the pieces' size is forgotten with it.
    #[inline(always)]
    fn truncate(self, len: u32) {
        // SAFETY: the context is this program's.
        unsafe { bpf_skb_change_tail(self.skb, len.wrapping_sub(self.hidden), 0) };
    }

    #[inline(always)]
    unsafe fn socket(self, tuple: *mut bpf_sock_tuple, size: u32) -> *mut bpf_sock {
        // SAFETY: the caller's.
        unsafe { bpf_skc_lookup_tcp(self.skb.cast(), tuple, size, CURRENT_NETNS, 0) }
    }

    #[inline(always)]
    fn find_socket(self, tuple: &Tuple, known: &mut Receiver) {
        part::find_socket_tc(self.skb, tuple, known);
    }

    #[inline(always)]
    fn refill(self, reading: &mut Reading, flow: &mut Flow) -> u32 {
        part::refill_tc(self.skb, self.hidden, reading, flow)
    }
}

/// Wipes what was copied of a frame of this length: keys in clear must not stay in a map.
///
/// A read from address 0 fails without a fault and fills its destination with zeros (bpf_probe_read_kernel,
/// kernel/trace/bpf_trace.c): the one helper that clears a variable length.
#[inline(always)]
pub(crate) fn wipe(desk: &mut Desk, frame: u32) {
    const FRESH: u64 = CAPACITY as u64;
    let len = if frame > CAPACITY { CAPACITY } else { frame };
    let Some(len) = bounded::<FRESH>(len) else { return };
    let fresh = desk.reading.window.fresh().as_mut_ptr().cast();
    // SAFETY: the window has room for CAPACITY fresh bytes.
    unsafe { bpf_probe_read_kernel(fresh, len, core::ptr::null()) };
    let head = desk.head.bytes_mut();
    // SAFETY: as long as it is.
    unsafe { bpf_probe_read_kernel(head.as_mut_ptr().cast(), head.len() as u32, core::ptr::null()) };
}
