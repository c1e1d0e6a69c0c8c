//! Parts of the judge as global functions: the verifier checks each of them once, by itself, instead of in every
//! state of its callers (kernel 5.6, commit 51c39bb1d5d1). They take pointers that may be null, since that is all
//! that the verifier knows of them, and hand on numbers.

use aya_ebpf::bindings::xdp_md;
use enforcer_ebpf::flow::{Flow, Set, Socket, WAYS};
use enforcer_ebpf::http::Step;
use enforcer_ebpf::judge::{self, Decision, Reading, Refill};
use enforcer_ebpf::verdict::Reason;
use enforcer_ebpf::wire::Tuple;

use crate::maps::KEY_SECRET;
use crate::packet::Packet;
use crate::socket;
use crate::world::Kernel;

/// No place.
const NOWHERE: u32 = WAYS as u32;

/// The place that a number of this module stands for.
#[inline(always)]
pub(crate) fn way(number: u32) -> Option<u32> {
    if number < NOWHERE { Some(number) } else { None }
}

/// [`enforcer_ebpf::judge::World::socket`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn find_socket(ctx: *mut xdp_md, tuple: *const Tuple, known: *mut Socket) -> u32 {
    // SAFETY: of this size, or null.
    let (Some(tuple), Some(known)) = (unsafe { tuple.as_ref() }, unsafe { known.as_mut() }) else { return 0 };
    *known = socket::lookup(Packet::new(ctx), tuple);
    1
}

/// [`Set::find`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn find_way(set: *const Set, tuple: *const Tuple, hash: u64) -> u32 {
    // SAFETY: of this size, or null.
    let (Some(set), Some(tuple)) = (unsafe { set.as_ref() }, unsafe { tuple.as_ref() }) else { return NOWHERE };
    set.find(hash, tuple).unwrap_or(NOWHERE)
}

/// [`Set::room`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn find_room(set: *const Set, now: u64, for_syn: u32) -> u32 {
    // SAFETY: of this size, or null.
    let Some(set) = (unsafe { set.as_ref() }) else { return NOWHERE };
    set.room(now, for_syn != 0).unwrap_or(NOWHERE)
}

/// [`judge::refill`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn refill_window(ctx: *mut xdp_md, reading: *mut Reading, flow: *mut Flow) -> u32 {
    // SAFETY: of this size, or null.
    let (Some(reading), Some(flow)) = (unsafe { reading.as_mut() }, unsafe { flow.as_mut() }) else {
        return Refill::Ended as u32;
    };
    judge::refill(&Kernel::new(Packet::new(ctx)), reading, flow) as u32
}

/// [`enforcer_ebpf::http::Machine::step`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn advance_machine(reading: *mut Reading, flow: *mut Flow) -> u32 {
    // SAFETY: of this size, or null.
    let (Some(reading), Some(flow)) = (unsafe { reading.as_mut() }, unsafe { flow.as_mut() }) else {
        return Step::Refused(Reason::Unparsable.into()).to_word();
    };
    let Reading { scan, window, service } = reading;
    flow.machine.step(window, &mut scan.cursor, service, KEY_SECRET.load()).to_word()
}

/// [`judge::decide`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn decide_request(flow: *const Flow, now: u64) -> u64 {
    // SAFETY: of this size, or null.
    let Some(flow) = (unsafe { flow.as_ref() }) else {
        return Decision { principal: 0, refused: Some(Reason::Unparsable) }.to_word();
    };
    // A decision looks at no packet.
    let kernel = Kernel::new(Packet::new(core::ptr::null_mut()));
    judge::decide(&kernel, flow.machine.key(), now).to_word()
}
