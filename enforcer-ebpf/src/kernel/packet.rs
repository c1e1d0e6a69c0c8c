//! The packet behind a program's context: read and written through helpers, so that fragments and the non-linear part
//! of an skb are reached too; bounds-checked pointers would see the first buffer only.

use aya_ebpf::bindings::{__sk_buff, BPF_F_RECOMPUTE_CSUM, bpf_sock, bpf_sock_tuple, xdp_md};
use aya_ebpf::helpers::generated::{
    bpf_probe_read_kernel, bpf_skb_change_head, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_load_bytes_relative,
    bpf_skb_store_bytes, bpf_skc_lookup_tcp, bpf_xdp_get_buff_len, bpf_xdp_load_bytes, bpf_xdp_store_bytes,
};
use enforcer_ebpf::flow::{Flow, Receiver};
use enforcer_ebpf::http::bytes::CAPACITY;
use enforcer_ebpf::judge::{Desk, Reading};
use enforcer_ebpf::wire::Tuple;

use crate::{part, socket};

/// The network namespace of the packet's interface (BPF_F_CURRENT_NETNS).
const CURRENT_NETNS: u64 = u64::MAX;

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

/// What a TC program is given: it may be merged of several segments, and lie in many pieces.
#[derive(Clone, Copy)]
pub(crate) struct TcPacket(pub(crate) *mut __sk_buff);

impl TcPacket {
    /// Sees to it that the packet begins with its Ethernet header, as on the ingress of traffic control it should.
    ///
    /// It does not where the generic XDP hook has copied the packet before, to give its program headroom: the copy's
    /// `mac_len` is 0 (skb_pp_cow_data, net/core/skbuff.c, seen on 6.18), and classifiers see the IP header first. Making
    /// room for the Ethernet header sets that right.
    #[inline(always)]
    pub(crate) fn settle(self) -> bool {
        const BPF_HDR_START_MAC: u32 = 0;
        const ETHERNET: u32 = 14;
        let (mut found, mut ethernet) = ([0u64; 2], [0u64; 2]);
        let (to, header): (*mut [u64; 2], *mut [u64; 2]) = (&mut found, &mut ethernet);
        // SAFETY: both have room for what is copied.
        let failed = unsafe {
            bpf_skb_load_bytes(self.0.cast(), 0, to.cast(), ETHERNET)
                | bpf_skb_load_bytes_relative(self.0.cast(), 0, header.cast(), ETHERNET, BPF_HDR_START_MAC)
        };
        if failed != 0 || found == ethernet {
            return failed == 0;
        }
        // Room is made in packets of 16 KiB at most (BPF_SKB_MAX_LEN). XDP leaves behind a RST what it was made of.
        let ip = ip_length(found);
        if ip != 0 && ip < self.len() {
            self.truncate(ip);
        }
        // SAFETY: the context is this program's; as above.
        unsafe {
            bpf_skb_change_head(self.0, ETHERNET, 0) == 0
                && bpf_skb_store_bytes(self.0, 0, header.cast(), ETHERNET, u64::from(BPF_F_RECOMPUTE_CSUM)) == 0
        }
    }

    /// The socket that sent it.
    #[inline(always)]
    pub(crate) fn sender(self) -> Receiver {
        // SAFETY: the context is this program's.
        let socket = unsafe { core::ptr::read_volatile(&raw const (*self.0).__bindgen_anon_2.sk) };
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
        // SAFETY: the context is this program's.
        let socket = unsafe { core::ptr::read_volatile(&raw const (*self.0).__bindgen_anon_2.sk) };
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

/// Bytes of the IP packet that begins so, by its own word; 0 if it does not say.
#[inline(always)]
fn ip_length(begin: [u64; 2]) -> u32 {
    const IPV6_HEADER: u32 = 40;
    let first = u64::from_be(begin[0]);
    let said = if first >> 60 == 6 { (first >> 16) as u16 } else { (first >> 32) as u16 };
    match said {
        0 => 0,
        said if first >> 60 == 6 => u32::from(said) + IPV6_HEADER,
        said => u32::from(said),
    }
}

impl Packet for TcPacket {
    #[inline(always)]
    fn len(self) -> u32 {
        // SAFETY: the context is this program's.
        unsafe { (*self.0).len }
    }

    #[inline(always)]
    unsafe fn load<const MAX: u64>(self, at: u32, to: *mut u8, len: u32) -> bool {
        let Some(len) = bounded::<MAX>(len) else { return false };
        // SAFETY: the caller's, and `len` is at most `MAX`.
        unsafe { bpf_skb_load_bytes(self.0.cast(), at, to.cast(), len) == 0 }
    }

    #[inline(always)]
    unsafe fn store<const MAX: u64>(self, at: u32, from: *mut u8, len: u32) -> bool {
        let Some(len) = bounded::<MAX>(len) else { return false };
        // A sum that the card made of the whole packet must go on holding.
        // SAFETY: the caller's, and `len` is at most `MAX`.
        unsafe { bpf_skb_store_bytes(self.0, at, from.cast(), len, u64::from(BPF_F_RECOMPUTE_CSUM)) == 0 }
    }

    /// Always: of what was merged, the pieces' size is forgotten with it.
    #[inline(always)]
    fn truncate(self, len: u32) {
        // SAFETY: the context is this program's.
        unsafe { bpf_skb_change_tail(self.0, len, 0) };
    }

    #[inline(always)]
    unsafe fn socket(self, tuple: *mut bpf_sock_tuple, size: u32) -> *mut bpf_sock {
        // SAFETY: the caller's.
        unsafe { bpf_skc_lookup_tcp(self.0.cast(), tuple, size, CURRENT_NETNS, 0) }
    }

    #[inline(always)]
    fn find_socket(self, tuple: &Tuple, known: &mut Receiver) {
        part::find_socket_tc(self.0, tuple, known);
    }

    #[inline(always)]
    fn refill(self, reading: &mut Reading, flow: &mut Flow) -> u32 {
        part::refill_tc(self.0, reading, flow)
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
