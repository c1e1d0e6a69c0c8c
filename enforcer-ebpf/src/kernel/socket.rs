//! Asks the local host for a connection's socket.
//!
//! `bpf_skc_lookup_tcp` finds established, request, listening and TIME-WAIT sockets alike; what we read of them lies
//! at offsets that the loader takes from the running kernel's BTF.

use core::ffi::c_void;

use aya_ebpf::bindings::{bpf_sock, bpf_sock_tuple};
use aya_ebpf::helpers::generated::{
    bpf_probe_read_kernel, bpf_sk_release, bpf_skc_to_tcp_request_sock, bpf_skc_to_tcp_sock,
};
use enforcer_ebpf::flow::{Receiver, receiver as state};
use enforcer_ebpf::wire::Tuple;

use crate::maps::SOCKET_OFFSETS;
use crate::packet::Packet;

/// include/net/tcp_states.h.
const TIME_WAIT: u32 = 6;
const LISTEN: u32 = 10;
const NEW_SYN_RECV: u32 = 12;

/// `bpf_sock_tuple` in words of known alignment.
#[repr(C, align(8))]
struct SockTuple([u32; 9], u32);

/// What the host knows of the connection.
#[inline(always)]
pub(crate) fn lookup(packet: impl Packet, tuple: &Tuple) -> Receiver {
    let ports = u32::from(tuple.source_port().to_be()) | (u32::from(tuple.destination_port().to_be()) << 16);
    let halves = |word: u64| [word as u32, (word >> 32) as u32];
    let (words, size) = if tuple.is_v6() {
        let ([a, b], [c, d]) = (halves(tuple.source[0]), halves(tuple.source[1]));
        let ([e, f], [g, h]) = (halves(tuple.destination[0]), halves(tuple.destination[1]));
        ([a, b, c, d, e, f, g, h, ports], 36)
    } else {
        ([tuple.source[0] as u32, tuple.destination[0] as u32, ports, 0, 0, 0, 0, 0, 0], 12)
    };
    let mut words = SockTuple(words, 0);
    let words: *mut SockTuple = &mut words;
    // SAFETY: the tuple is on the stack and as long as `size` says; the socket is released below.
    let socket = unsafe { packet.socket(words.cast::<bpf_sock_tuple>(), size) };
    if socket.is_null() {
        return Receiver::ABSENT;
    }
    // SAFETY: not null, and ours until it is released.
    let known = unsafe { read(socket) };
    // SAFETY: taken above.
    unsafe { bpf_sk_release(socket.cast()) };
    known
}

/// # Safety
/// The socket is held.
#[inline(always)]
pub(crate) unsafe fn read(socket: *mut bpf_sock) -> Receiver {
    let offsets = SOCKET_OFFSETS.load();
    let mut known = Receiver { state: state::LISTENING, next: 0, base: 0, server: 0, written: 0 };
    // SAFETY: the socket is held.
    match unsafe { core::ptr::read_volatile(&raw const (*socket).state) } {
        LISTEN => {}
        TIME_WAIT => known.state = state::CLOSING,
        NEW_SYN_RECV => {
            // SAFETY: the socket is held.
            let request = unsafe { bpf_skc_to_tcp_request_sock(socket.cast()) }.cast::<u8>();
            if !request.is_null() {
                known.state = state::REQUEST;
                // SAFETY: the offset is within the structure.
                known.next = unsafe { read_u32(request.wrapping_add(offsets.request_rcv_nxt as usize)) };
                known.base = known.next;
                // SAFETY: the offset is within the structure.
                let isn = unsafe { read_u32(request.wrapping_add(offsets.request_snt_isn as usize)) };
                known.server = isn.wrapping_add(1);
                known.written = known.server;
            }
        }
        _ => {
            // SAFETY: the socket is held.
            let stream = unsafe { bpf_skc_to_tcp_sock(socket.cast()) }.cast::<u8>();
            if !stream.is_null() {
                known.state = state::STREAM;
                // SAFETY: the offset is within the structure.
                known.next = unsafe { read_u32(stream.wrapping_add(offsets.rcv_nxt as usize)) };
                // The lower half of a little-endian u64.
                // SAFETY: the offset is within the structure.
                let received = unsafe { read_u32(stream.wrapping_add(offsets.bytes_received as usize)) };
                known.base = known.next.wrapping_sub(received);
                // SAFETY: the offset is within the structure.
                let acked = unsafe { read_u32(stream.wrapping_add(offsets.bytes_acked as usize)) };
                // SAFETY: the offset is within the structure.
                let unacked = unsafe { read_u32(stream.wrapping_add(offsets.snd_una as usize)) };
                known.server = unacked.wrapping_sub(acked);
                // SAFETY: the offset is within the structure.
                known.written = unsafe { read_u32(stream.wrapping_add(offsets.write_seq as usize)) };
            }
        }
    }
    known
}

/// # Safety
/// The pointer is to kernel memory; a fault reads as 0.
#[inline(always)]
unsafe fn read_u32(from: *const u8) -> u32 {
    let mut value = 0u32;
    let to: *mut u32 = &mut value;
    // SAFETY: four bytes on the stack.
    unsafe { bpf_probe_read_kernel(to.cast::<c_void>(), 4, from.cast::<c_void>()) };
    value
}
