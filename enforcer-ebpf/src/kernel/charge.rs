//! Charges a principal's limits in its meter.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use enforcer_ebpf::abi::{Bucket, Meter, Policy};
use enforcer_ebpf::limit::{Cells, Charge};

use crate::atomic::Word;
use crate::maps::{self, METERS, POLICIES};

/// What a step of a charge needs, handed through `bpf_loop`. The charge itself lies in a map: of what is on the stack
/// the verifier would follow every value through every step.
#[repr(C)]
struct Charges {
    charge: *mut Charge,
    meter: *mut Meter,
    policy: *const Policy,
}

/// Charges one request under the policy of this slot; 0 if it may not pass. A global function: see [`crate::part`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn charge_principal(principal: u32, slot: u32, now: u64) -> u32 {
    let (Some(meter), Some(policy)) = (METERS.get_ptr_mut(principal), POLICIES.get(slot)) else { return 0 };
    if policy.flags & Policy::IN_USE == 0 {
        return 0;
    }
    let Some(charge) = maps::charge() else { return 0 };
    *charge = Charge::new(policy, now, 1);
    let mut charges = Charges { charge, meter, policy };
    // SAFETY: the callback takes what is handed to it here.
    unsafe { bpf_loop(Charge::MAX_STEPS, step as *mut c_void, (&raw mut charges).cast(), 0) };
    u32::from(charge.result().is_ok())
}

unsafe extern "C" fn step(_index: u32, charges: *mut c_void) -> i64 {
    // SAFETY: `charge_principal` made it of what outlives the loop.
    let Charges { charge, meter, policy } = *unsafe { &*charges.cast::<Charges>() };
    // SAFETY: as above.
    let charge = unsafe { &mut *charge };
    // SAFETY: the index is below the length.
    let bucket = unsafe { (&raw mut (*meter).buckets).cast::<Bucket>().add(charge.index()) };
    // SAFETY: a policy is never changed while it is in use.
    let more = charge.step(&cells(bucket), unsafe { &*policy });
    i64::from(!more)
}

#[inline(always)]
fn cells(bucket: *mut Bucket) -> Cells<Word> {
    // SAFETY: aligned words of a map's value.
    unsafe {
        Cells {
            window: Word::new(&raw mut (*bucket).window),
            counts: Word::new(&raw mut (*bucket).counts),
            arrival: Word::new(&raw mut (*bucket).arrival),
        }
    }
}
