//! Charges what applies to a request, in the buckets of principals, of named subjects and of sources.

use core::ffi::c_void;

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::bpf_loop;
use enforcer_ebpf::abi::{self, Bucket, Buckets, LIMITS, Policy, Scope, Spread, tally};
use enforcer_ebpf::charge::{CLAIMS, Charge, Claim, Place, table};
use enforcer_ebpf::judge::Reading;
use enforcer_ebpf::limit::{self, Cell as _, Cells, Outcome};
use enforcer_ebpf::spread;

use crate::atomic::Word;
use crate::maps::{BUCKETS, METERS, POLICIES, SIGHTINGS, SOURCE_BUCKETS, TALLIES};

/// Nothing used.
static EMPTY: Buckets = Buckets {
    limits: [Bucket { window: 0, counts: 0, arrival: 0 }; LIMITS],
    candidate: [Bucket { window: 0, counts: 0, arrival: 0 }; LIMITS],
};

/// Swaps tried to let a source in; each failure means that another CPU has let one in.
const ADMISSIONS: u32 = 4;

/// What a step of a charge needs, handed through `bpf_loop`. The charge itself lies in a map: of what is on the stack
/// the verifier would follow every value through every step.
#[repr(C)]
struct Steps {
    charge: *mut Charge,
}

/// [`enforcer_ebpf::judge::World::charge`]; 0 if the request may not pass. A global function: see [`crate::part`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn charge_claims(reading: *mut Reading) -> u32 {
    // SAFETY: of this size, or null.
    let Some(reading) = (unsafe { reading.as_mut() }) else { return 0 };
    let charge = &mut reading.charge;
    let mut steps = Steps { charge };
    // SAFETY: the callback takes what is handed to it here.
    unsafe { bpf_loop(Charge::MAX_STEPS, step as *mut c_void, (&raw mut steps).cast(), 0) };
    u32::from(charge.result().is_ok())
}

unsafe extern "C" fn step(_index: u32, steps: *mut c_void) -> i64 {
    // SAFETY: `charge_claims` made it of what outlives the loop.
    let charge = unsafe { &mut *(*steps.cast::<Steps>()).charge };
    let Place { claim, candidate, limit } = charge.place();
    let claim = charge.at(claim);
    let (Some(mut policy), Some(buckets)) = (POLICIES.get(claim.policy), find(claim.table, &claim.scope)) else {
        charge.fail();
        return 1;
    };
    // SAFETY: the places are below the lengths.
    let bucket = unsafe {
        let first = if candidate { &raw mut (*buckets).candidate } else { &raw mut (*buckets).limits };
        first.cast::<Bucket>().add(limit)
    };
    if candidate {
        let Some(other) = POLICIES.get(policy.candidate) else { return 1 };
        policy = other;
    }
    if policy.flags & Policy::IN_USE == 0 {
        charge.fail();
        return 1;
    }
    // A policy is never changed while it is in use.
    i64::from(!charge.step(&cells(bucket), policy))
}

/// The buckets of a claim, by its [`table`] and scope.
#[inline(always)]
pub(crate) fn find(place: u32, scope: &Scope) -> Option<*mut Buckets> {
    if place == table::PRINCIPAL {
        let meter = METERS.get_ptr_mut(scope.subject[0] as u32)?;
        // SAFETY: within the value.
        return Some(unsafe { &raw mut (*meter).buckets });
    }
    buckets(place, Scope { rule: scope.rule, subject: [scope.subject[0], scope.subject[1]] })
}

/// The buckets of a scope, by its [`table`].
#[inline(always)]
fn buckets(place: u32, scope: Scope) -> Option<*mut Buckets> {
    if place == table::NAMED { BUCKETS.get_ptr_mut(scope) } else { SOURCE_BUCKETS.get_ptr_mut(scope) }
}

/// Counts what the limits of a charge have refused, or would have.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn count_refusals(reading: *mut Reading) -> u32 {
    // SAFETY: of this size, or null.
    let Some(reading) = (unsafe { reading.as_mut() }) else { return 0 };
    let charge = &reading.charge;
    if let Err(claim) = charge.result() {
        count(charge.at(claim), tally::REFUSED);
    }
    for claim in 0..CLAIMS {
        if charge.would_refuse(claim, false) {
            count(charge.at(claim), tally::WOULD_REFUSE);
        }
        if charge.would_refuse(claim, true) {
            count(charge.at(claim), tally::CANDIDATE);
        }
    }
    1
}

#[inline(always)]
fn count(claim: &Claim, what: usize) {
    let Some(policy) = POLICIES.get(claim.policy) else { return };
    if let Some(counts) = TALLIES.get_ptr_mut(policy.tally) {
        // SAFETY: this CPU's own words, and the place is below the length.
        unsafe { *counts.cast::<u64>().add(what & (tally::LEN - 1)) += 1 };
    }
    if claim.table != table::PRINCIPAL {
        return;
    }
    let Some(meter) = METERS.get_ptr_mut(claim.scope.subject[0] as u32) else { return };
    // SAFETY: aligned words of a map's value.
    unsafe {
        match what {
            tally::WOULD_REFUSE => Word::new(&raw mut (*meter).would_refuse).add(1),
            tally::CANDIDATE => Word::new(&raw mut (*meter).candidate).add(1),
            _ => {}
        }
    }
}

/// [`enforcer_ebpf::judge::World::open`]; 0 if there is no room.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn open_buckets(place: u32, rule: u64, first: u64, second: u64) -> u32 {
    let scope = Scope { rule, subject: [first, second] };
    if buckets(place, scope).is_some() {
        return 1;
    }
    let _ = if place == table::NAMED {
        BUCKETS.insert(scope, &EMPTY, u64::from(BPF_NOEXIST))
    } else {
        SOURCE_BUCKETS.insert(scope, &EMPTY, u64::from(BPF_NOEXIST))
    };
    u32::from(buckets(place, scope).is_some())
}

/// [`enforcer_ebpf::judge::World::admit`]; 0 if it is not let in.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn admit_source(slot: u32, now: u64) -> u32 {
    let scope = Scope { rule: abi::scope::ADMISSION, subject: [0; 2] };
    let (Some(policy), Some(buckets)) = (POLICIES.get(slot), BUCKETS.get_ptr_mut(scope)) else { return 0 };
    // SAFETY: within the value.
    let cells = cells(unsafe { &raw mut (*buckets).limits }.cast());
    for _ in 0..ADMISSIONS {
        match limit::attempt(&cells, &policy.limits[0], now, 1) {
            Outcome::Charged(_) => return 1,
            Outcome::Refused => return 0,
            Outcome::Raced => {}
        }
    }
    0
}

/// [`enforcer_ebpf::judge::World::blocked_until`].
#[inline(always)]
pub(crate) fn blocked_until(scope: Scope) -> u64 {
    match SOURCE_BUCKETS.get_ptr_mut(scope) {
        // SAFETY: an aligned word of a map's value.
        Some(buckets) => unsafe { Word::new(&raw mut (*buckets).candidate[0].arrival) }.load(),
        None => 0,
    }
}

/// [`enforcer_ebpf::judge::World::block`].
#[inline(always)]
pub(crate) fn block(scope: Scope, until: u64) {
    if let Some(buckets) = SOURCE_BUCKETS.get_ptr_mut(scope) {
        // SAFETY: an aligned word of a map's value.
        unsafe { Word::new(&raw mut (*buckets).candidate[0].arrival) }.release(until);
    }
}

/// The pairs, in their map.
struct Sightings;

impl spread::Sightings for Sightings {
    #[inline(always)]
    fn knows(&self, sighting: &abi::Sighting) -> bool {
        SIGHTINGS.get_ptr(sighting).is_some()
    }

    #[inline(always)]
    fn insert(&self, sighting: &abi::Sighting) -> bool {
        SIGHTINGS.insert(sighting, 1, u64::from(BPF_NOEXIST)).is_ok()
    }

    #[inline(always)]
    fn remove(&self, sighting: &abi::Sighting) {
        let _ = SIGHTINGS.remove(sighting);
    }
}

/// [`enforcer_ebpf::judge::World::sight`]: the reading's source and the key of the buckets; 1 if it is one too many.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sight_pair(pair: *const Pair) -> u32 {
    // SAFETY: of this size, or null.
    let Some(Pair { scope, source, key, spread, now, place }) = (unsafe { pair.as_ref() }) else { return 0 };
    let scope = Scope { rule: scope.rule, subject: [scope.subject[0], scope.subject[1]] };
    let Some(buckets) = buckets(*place as u32, scope) else { return 0 };
    // SAFETY: an aligned word of a map's value.
    let word = unsafe { Word::new(&raw mut (*buckets).limits[0].counts) };
    u32::from(spread::sight(&word, spread, &scope, *source, *key, *now, &Sightings))
}

/// What [`sight_pair`] takes.
#[repr(C)]
pub(crate) struct Pair {
    pub(crate) scope: Scope,
    pub(crate) source: [u64; 2],
    pub(crate) key: [u64; 2],
    pub(crate) spread: Spread,
    pub(crate) now: u64,
    pub(crate) place: u64,
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
