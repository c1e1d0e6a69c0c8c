//! Follows the connections of local sockets: when each is established and when it is over.

use core::ffi::c_void;
use core::ops::{Deref, DerefMut};

use aya_ebpf::bindings::bpf_spin_lock;
use aya_ebpf::bindings::xdp_action::XDP_DROP;
use aya_ebpf::helpers::generated::{self as helpers, bpf_ktime_get_boot_ns, bpf_loop, bpf_probe_read_kernel};
use aya_ebpf::macros::{btf_tracepoint, xdp};
use aya_ebpf::programs::{BtfTracePointContext, XdpContext};
use enforcer_ebpf::abi::{CONNECTION_SETS, EndsOffsets, SUBJECT_SETS};
use enforcer_ebpf::connection::{self, Connections, Subjects, Tables, WAYS};
use enforcer_ebpf::flow::{self, Flow};
use enforcer_ebpf::judge::{self, Reading, World as _};
use enforcer_ebpf::verdict::{Count, Event, Reason};
use enforcer_ebpf::wire::Tuple;

use crate::maps::{self, CONNECTIONS, ENDS_OFFSETS, FLOW_SECRET, NAMESPACE, PORTS, SUBJECTS};
use crate::packet::Packet;
use crate::part;
use crate::world::{Kernel, sightless};

// include/net/tcp_states.h.
const ESTABLISHED: i32 = 1;
const SYN_RECV: i32 = 3;
const TIME_WAIT: u8 = 6;
const CLOSE: i32 = 7;
const LISTEN: u8 = 10;
const NEW_SYN_RECV: u8 = 12;

const IPPROTO_TCP: u16 = 6;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// A locked value of a map.
pub(crate) struct Guard<T: Lockable>(*mut T);

/// The value of a map that has a lock.
pub(crate) trait Lockable {
    /// Where the lock is.
    fn lock(value: *mut Self) -> *mut bpf_spin_lock;
}

impl Lockable for Connections {
    #[inline(always)]
    fn lock(value: *mut Self) -> *mut bpf_spin_lock {
        // SAFETY: the address alone is taken.
        unsafe { (&raw mut (*value).lock).cast() }
    }
}

impl Lockable for Subjects {
    #[inline(always)]
    fn lock(value: *mut Self) -> *mut bpf_spin_lock {
        // SAFETY: as above.
        unsafe { (&raw mut (*value).lock).cast() }
    }
}

impl<T: Lockable> Guard<T> {
    #[inline(always)]
    fn new(value: *mut T) -> Self {
        // SAFETY: the lock of a map's value; it is given back when this is dropped.
        unsafe { helpers::bpf_spin_lock(T::lock(value)) };
        Self(value)
    }
}

impl<T: Lockable> Deref for Guard<T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: a map's value; the lock is ours.
        unsafe { &*self.0 }
    }
}

impl<T: Lockable> DerefMut for Guard<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above.
        unsafe { &mut *self.0 }
    }
}

impl<T: Lockable> Drop for Guard<T> {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: taken by `new`.
        unsafe { helpers::bpf_spin_unlock(T::lock(self.0)) };
    }
}

impl<P: Packet, const DRY: bool> Tables for Kernel<P, DRY> {
    type Connections = Guard<Connections>;
    type Subjects = Guard<Subjects>;

    #[inline(always)]
    fn connections(&self, hash: u64) -> Option<Guard<Connections>> {
        CONNECTIONS.get_ptr_mut(hash as u32 & (CONNECTION_SETS - 1)).map(Guard::new)
    }

    #[inline(always)]
    fn subjects(&self, hash: u64) -> Option<Guard<Subjects>> {
        SUBJECTS.get_ptr_mut(self.subject_set(hash)).map(Guard::new)
    }

    #[inline(always)]
    fn subject_set(&self, hash: u64) -> u32 {
        hash as u32 & (SUBJECT_SETS - 1)
    }
}

/// [`judge::hold`]. A global function, as all below that are not inlined: see [`crate::part`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn hold_connection(reading: *mut Reading, flow: *const Flow) -> u32 {
    // SAFETY: of this size, or null.
    let (Some(reading), Some(flow)) = (unsafe { reading.as_mut() }, unsafe { flow.as_ref() }) else {
        return part::number(Some(Reason::Unparsable));
    };
    part::number(judge::hold(&sightless(), reading, flow))
}

/// [`judge::hold_again`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn hold_again(reading: *mut Reading, flow: *mut Flow) -> u32 {
    // SAFETY: of this size, or null.
    let (Some(reading), Some(flow)) = (unsafe { reading.as_mut() }, unsafe { flow.as_mut() }) else {
        return part::number(Some(Reason::Unparsable));
    };
    part::number(judge::hold_again(&sightless(), reading, flow))
}

/// [`judge::would_hold`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn would_hold_connection(reading: *const Reading, flow: *const Flow) -> u32 {
    // SAFETY: of this size, or null.
    let (Some(reading), Some(flow)) = (unsafe { reading.as_ref() }, unsafe { flow.as_ref() }) else {
        return part::number(Some(Reason::Unparsable));
    };
    part::number(judge::would_hold(&sightless(), reading, flow))
}

/// [`judge::settle`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn settle_connection(reading: *const Reading, flow: *mut Flow, passes: u32) -> u32 {
    // SAFETY: of this size, or null.
    let (Some(reading), Some(flow)) = (unsafe { reading.as_ref() }, unsafe { flow.as_mut() }) else { return 0 };
    u32::from(judge::settle(&sightless(), reading, flow, passes != 0))
}

/// Takes note of connections that are established or over.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub(crate) fn enforcer_sockets(ctx: BtfTracePointContext) -> i32 {
    let (socket, old, new): (*const u8, i32, i32) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    // One that this host has begun comes from SYN-SENT.
    if (new == ESTABLISHED && old == SYN_RECV) || new == CLOSE {
        // SAFETY: the kernel's, of a socket that exists.
        unsafe { note(socket, new == ESTABLISHED) };
    }
    0
}

/// What an iterator over sockets is given (struct bpf_iter__tcp, net/ipv4/tcp_ipv4.c).
#[repr(C)]
struct TcpIteration {
    meta: u64,
    socket: *const u8,
    uid: u64,
}

/// Takes note of a connection that was there before [`enforcer_sockets`]. The kernel holds its socket's lock meanwhile, so it
/// cannot end unseen.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
extern "C" fn enforcer_older(iteration: *const TcpIteration) -> i32 {
    // SAFETY: what the kernel hands over.
    let socket = unsafe { core::ptr::read_volatile(&raw const (*iteration).socket) };
    if socket.is_null() {
        return 0;
    }
    let EndsOffsets { state, .. } = ENDS_OFFSETS.load();
    let mut now = 0u8;
    // SAFETY: a fault reads as 0.
    unsafe { read(socket, state, &mut now) };
    // All others are full sockets of connections.
    if !matches!(now, 0 | TIME_WAIT | LISTEN | NEW_SYN_RECV) && i32::from(now) != CLOSE {
        // SAFETY: as above.
        unsafe { note(socket, true) };
    }
    0
}

/// # Safety
/// A socket of IP that is no request's and no remains' of one.
#[inline(always)]
unsafe fn note(socket: *const u8, is_open: bool) {
    // SAFETY: the caller's.
    let Some(tuple) = (unsafe { ends(socket) }) else { return };
    let hash = flow::hash(FLOW_SECRET.load(), &tuple);
    if !is_open {
        connection::close(&sightless(), hash);
        return;
    }
    // SAFETY: takes nothing.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    if !connection::open(&sightless(), hash, now) {
        // The last packet on this CPU was for any.
        let slot = PORTS.get(u32::from(tuple.destination_port())).copied().unwrap_or(0);
        maps::count_for(slot.saturating_sub(1));
        sightless().count(Count::Event(Event::ConnectionsFull));
    }
}

/// The two ends of a connection as its client's packets name them; `None` if its port is not guarded.
///
/// # Safety
/// As [`note`].
#[inline(always)]
unsafe fn ends(socket: *const u8) -> Option<Tuple> {
    let offsets = ENDS_OFFSETS.load();
    let mut port = 0u16;
    // SAFETY: here and below, the offsets are those of the running kernel, and a fault reads as 0.
    unsafe { read(socket, offsets.port, &mut port) };
    let port = u16::from_be(port);
    if PORTS.get(u32::from(port)).is_none_or(|slot| *slot == 0) {
        return None;
    }
    let (mut protocol, mut net, mut inum) = (0u16, 0u64, 0u32);
    // SAFETY: as above.
    unsafe {
        read(socket, offsets.protocol, &mut protocol);
        read(socket, offsets.net, &mut net);
        read(net as *const u8, offsets.inum, &mut inum);
    }
    // SCTP, DCCP and MPTCP tell of the states of their sockets, too; an MPTCP connection's are TCP's beneath it.
    if inum != NAMESPACE.load() || protocol != IPPROTO_TCP {
        return None;
    }
    let (mut family, mut remote_port) = (0u16, 0u16);
    // SAFETY: as above.
    unsafe {
        read(socket, offsets.family, &mut family);
        read(socket, offsets.remote_port, &mut remote_port);
    }
    let ports = (u64::from(u16::from_be(remote_port)) << 32) | u64::from(port);
    let (mut source, mut destination) = ([0u64; 2], [0u64; 2]);
    if family == AF_INET6 {
        // SAFETY: as above.
        unsafe {
            read(socket, offsets.remote_v6, &mut source);
            read(socket, offsets.v6, &mut destination);
        }
        // A socket of IPv6 that talks IPv4 has mapped addresses (RFC 4291 section 2.5.5.2).
        if source[0] != 0 || source[1] as u32 != 0xffff_0000 {
            return Some(Tuple { source, destination, ports: ports | (1 << 63) });
        }
    } else if family != AF_INET {
        return None;
    }
    let (mut from, mut to) = (0u32, 0u32);
    // SAFETY: as above.
    unsafe {
        read(socket, offsets.remote_v4, &mut from);
        read(socket, offsets.v4, &mut to);
    }
    Some(Tuple { source: [u64::from(from), 0], destination: [u64::from(to), 0], ports })
}

/// # Safety
/// Whatever lies there is of the kernel's; a fault reads as 0.
#[inline(always)]
unsafe fn read<T>(from: *const u8, offset: u32, to: &mut T) {
    let to: *mut T = to;
    // SAFETY: the caller's.
    unsafe {
        bpf_probe_read_kernel(to.cast::<c_void>(), size_of::<T>() as u32, from.wrapping_add(offset as usize).cast())
    };
}

/// Takes out the connections that were entered and have never come to be. Never attached: the daemon runs it.
#[xdp]
pub(crate) fn enforcer_sweep(_ctx: XdpContext) -> u32 {
    // SAFETY: takes nothing.
    let mut now = unsafe { bpf_ktime_get_boot_ns() };
    // SAFETY: the callback takes what is handed to it here.
    unsafe { bpf_loop(CONNECTION_SETS, sweep as *mut c_void, (&raw mut now).cast(), 0) };
    XDP_DROP
}

unsafe extern "C" fn sweep(set: u32, now: *mut c_void) -> i64 {
    // SAFETY: `enforcer_sweep` made it of a value that outlives the loop.
    let now = unsafe { *now.cast::<u64>() };
    let Some(ways) = CONNECTIONS.get(set & (CONNECTION_SETS - 1)) else { return 1 };
    // Without the lock: most sets have none, and those that come meanwhile are not stale.
    if (0..WAYS).any(|way| ways.ways[way].since != 0) {
        sweep_set(set, now);
    }
    0
}

/// [`connection::sweep`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sweep_set(set: u32, now: u64) -> u32 {
    connection::sweep(&sightless(), set, now);
    1
}
