//! Charges what applies to a request, in the buckets of principals, of named subjects and of sources.

#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "what is handed on by value is copied to the stack first"
)]

use core::ffi::c_void;

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::bpf_loop;
use enforcer_ebpf::abi::{self, Bucket, Buckets, LIMITS, Policy, Scope, scope, tally};
use enforcer_ebpf::charge::{CLAIMS, Charge, Claim, Place, table};
use enforcer_ebpf::judge::{self, Reading, World as _};
use enforcer_ebpf::limit::{self, Cell as _, Cells, Moment, Outcome};
use enforcer_ebpf::spread;
use enforcer_ebpf::verdict::{Count, Event};

use crate::atomic::Word;
use crate::maps::{self, BUCKETS, METERS, POLICIES, SIGHTINGS, SOURCE_BUCKETS, TALLIES};
use crate::packet::XdpPacket;
use crate::world::Kernel;

/// Nothing used.
pub(crate) static EMPTY: Buckets = Buckets {
    limits: [Bucket { window: 0, counts: 0, arrival: 0 }; LIMITS],
    candidate: [Bucket { window: 0, counts: 0, arrival: 0 }; LIMITS],
};

/// Swaps tried to let in what is new; each failure means that another CPU has let something in.
const ADMISSIONS: u32 = 4;

/// What [`charge_claims`] says where buckets have to be made first.
pub(crate) const LACKS: u32 = 2;

/// [`enforcer_ebpf::judge::World::charge`]; 0 if the request may not pass. Called again, it goes on. A global function: see [`crate::part`].
///
/// Here and below the scratch is looked up again: what a global function is handed is no key of a map for kernels before
/// 6.3, but what lies in a map is, and needs no copy on the stack.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn charge_claims() -> u32 {
    let Some(scratch) = maps::scratch() else { return 0 };
    let charge = &mut scratch.desk.reading.charge;
    if charge.lacks() {
        charge.resume();
    } else {
        prepare(charge);
    }
    // SAFETY: the callback takes nothing.
    unsafe { bpf_loop(Charge::MAX_STEPS, step as *mut c_void, core::ptr::null_mut(), 0) };
    if charge.lacks() {
        return LACKS;
    }
    if charge.settle() {
        // SAFETY: as above.
        unsafe { bpf_loop(Charge::MAX_PENALTIES, penalize as *mut c_void, core::ptr::null_mut(), 0) };
    }
    u32::from(charge.result().is_ok())
}

/// Tells a charge the time of day and what its policies are like, before its first step.
#[inline(always)]
pub(crate) fn prepare(charge: &mut Charge) {
    charge.set_offset(maps::clock_offset());
    for claim in 0..CLAIMS {
        if claim < charge.len()
            && let Some(policy) = POLICIES.get(charge.at(claim).policy)
        {
            charge.look_at(claim, policy);
        }
    }
}

unsafe extern "C" fn step(_index: u32, _nothing: *mut c_void) -> i64 {
    let Some(scratch) = maps::scratch() else { return 1 };
    let charge = &mut scratch.desk.reading.charge;
    i64::from(!go_on(charge, |charge| {
        let claim = charge.at(charge.place().claim);
        find(claim.table, &claim.scope)
    }))
}

/// One step behind a charge: [`Charge::penalize`].
unsafe extern "C" fn penalize(_index: u32, _nothing: *mut c_void) -> i64 {
    let Some(scratch) = maps::scratch() else { return 1 };
    let charge = &mut scratch.desk.reading.charge;
    let Place { claim, candidate, limit } = charge.place();
    let &Claim { table, policy, .. } = charge.at(claim);
    let policy = POLICIES.get(policy).and_then(|policy| match candidate {
        true => POLICIES.get(policy.candidate),
        false => Some(policy),
    });
    let buckets = find(table, &charge.at(claim).scope);
    let place = policy.zip(buckets).map(|(policy, buckets)| (cells(bucket(buckets, candidate, limit)), policy));
    i64::from(!charge.penalize(place.as_ref().map(|(cells, policy)| (cells, *policy))))
}

/// The bucket of a limit.
#[inline(always)]
fn bucket(buckets: *mut Buckets, candidate: bool, limit: usize) -> *mut Bucket {
    // SAFETY: the places are below the lengths.
    unsafe {
        let first = if candidate { &raw mut (*buckets).candidate } else { &raw mut (*buckets).limits };
        first.cast::<Bucket>().add(limit)
    }
}

/// One step of a charge, whose present claim's buckets `find` finds; `false` ends it.
#[inline(always)]
pub(crate) fn go_on(charge: &mut Charge, find: impl FnOnce(&Charge) -> Option<*mut Buckets>) -> bool {
    let Place { claim, candidate, limit } = charge.place();
    let (Some(mut policy), Some(buckets)) = (POLICIES.get(charge.at(claim).policy), find(charge)) else {
        charge.fail();
        return false;
    };
    let bucket = bucket(buckets, candidate, limit);
    if candidate {
        let Some(other) = POLICIES.get(policy.candidate) else { return false };
        policy = other;
    }
    if policy.flags & Policy::IN_USE == 0 {
        charge.fail();
        return false;
    }
    // A policy is never changed while it is in use.
    charge.step(&cells(bucket), policy)
}

/// The buckets of a claim, by its [`table`] and scope, which lies in a map or on the stack.
#[inline(always)]
pub(crate) fn find(place: u32, scope: &Scope) -> Option<*mut Buckets> {
    if place == table::PRINCIPAL {
        let meter = METERS.get_ptr_mut(scope.subject[0] as u32)?;
        // SAFETY: within the value.
        return Some(unsafe { &raw mut (*meter).buckets });
    }
    if place == table::NAMED { BUCKETS.get_ptr_mut(scope) } else { SOURCE_BUCKETS.get_ptr_mut(scope) }
}

/// Counts what the limits of a charge have refused, or would have.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn count_refusals() -> u32 {
    let Some(scratch) = maps::scratch() else { return 0 };
    let Reading { service, party, charge, .. } = &scratch.desk.reading;
    let is_of_principal = judge::is_of_principal(party, charge);
    if charge.result().is_err() {
        count(charge.refused(), if service.spares() { tally::WOULD_REFUSE } else { tally::REFUSED });
    }
    let (mut observed, mut candidate) = (0, 0);
    for claim in 0..CLAIMS {
        if charge.would_refuse(claim, false) {
            count(charge.at(claim), tally::WOULD_REFUSE);
            observed = 1;
        }
        if charge.would_refuse(claim, true) {
            count(charge.at(claim), tally::CANDIDATE);
            candidate = 1;
        }
    }
    if is_of_principal
        && observed | candidate != 0
        && let Some(meter) = METERS.get_ptr_mut(party.principal)
    {
        // SAFETY: aligned words of a map's value.
        unsafe {
            Word::new(&raw mut (*meter).would_refuse).add(observed);
            Word::new(&raw mut (*meter).candidate).add(candidate);
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
}

/// [`enforcer_ebpf::judge::World::open`], for one claim.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn open_claim(number: u32) -> u32 {
    let Some(scratch) = maps::scratch() else { return 0 };
    let Reading { scan, rules, charge, .. } = &mut scratch.desk.reading;
    let claim = charge.at_mut(number as usize);
    let is_open = find(claim.table, &claim.scope).is_some();
    let make = |claim: &Claim| {
        let _ = if claim.table == table::NAMED {
            BUCKETS.insert(&claim.scope, &EMPTY, u64::from(BPF_NOEXIST))
        } else {
            SOURCE_BUCKETS.insert(&claim.scope, &EMPTY, u64::from(BPF_NOEXIST))
        };
        // Another CPU may have made them first.
        find(claim.table, &claim.scope).is_some()
    };
    let opened = judge::open(claim, is_open, |claim| take_place(judge::admission(rules, claim), scan.now), make);
    // Of the sources of a key there are none to share: a key that came too late is not watched.
    if judge::is_shared(claim) && find(claim.table, &claim.scope).is_some() {
        Kernel::new(XdpPacket(core::ptr::null_mut())).count(Count::Event(Event::BucketOverflow));
    }
    u32::from(opened)
}

/// Charges one more source, or key that is not registered, to the limits in a slot, by the rule of that number.
#[inline(always)]
fn take_place((slot, rule): (u32, u64), now: u64) -> bool {
    if slot == 0 {
        return true;
    }
    let (Some(policy), Some(buckets)) = (POLICIES.get(slot), admissions(rule)) else { return false };
    // SAFETY: within the value.
    let cells = cells(unsafe { &raw mut (*buckets).limits }.cast());
    let now = Moment::of_boot(now);
    for _ in 0..ADMISSIONS {
        match limit::attempt(&cells, &policy.limits[0], &now, 1) {
            Outcome::Charged(_) => return true,
            Outcome::Refused => break,
            Outcome::Raced => {}
        }
    }
    let event = if rule == scope::ADMISSION { Event::SourceOverflow } else { Event::UnregisteredOverflow };
    Kernel::new(XdpPacket(core::ptr::null_mut())).count(Count::Event(event));
    false
}

/// Where it is counted what is new, by a rule of that number.
#[inline(always)]
pub(crate) fn admissions(rule: u64) -> Option<*mut Buckets> {
    BUCKETS.get_ptr_mut(&Scope { rule, subject: [0; 2] })
}

/// Until when the source of the first claim is refused for its bad keys.
#[inline(always)]
pub(crate) fn blocked_until(charge: &Charge) -> Option<Word> {
    let buckets = SOURCE_BUCKETS.get_ptr_mut(&charge.at(0).scope)?;
    // SAFETY: an aligned word of a map's value.
    Some(unsafe { Word::new(&raw mut (*buckets).candidate[0].arrival) })
}

/// [`enforcer_ebpf::judge::World::is_blocked`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn is_blocked() -> u32 {
    let Some(scratch) = maps::scratch() else { return 0 };
    let Reading { scan, charge, .. } = &scratch.desk.reading;
    u32::from(blocked_until(charge).is_some_and(|until| scan.now < until.load()))
}

/// [`enforcer_ebpf::judge::World::block`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn block_source() -> u32 {
    let Some(scratch) = maps::scratch() else { return 0 };
    let Reading { scan, rules, charge, .. } = &scratch.desk.reading;
    if let Some(until) = blocked_until(charge) {
        until.release(scan.now.saturating_add(rules.guess_penalty_ns));
        Kernel::new(XdpPacket(core::ptr::null_mut())).count(Count::Event(Event::GuessPenalty));
    }
    1
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

/// [`enforcer_ebpf::judge::World::sight`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sight_pair(number: u32) -> u32 {
    let Some(scratch) = maps::scratch() else { return 0 };
    let Reading { scan, rules, charge, sighting, .. } = &mut scratch.desk.reading;
    let claim = charge.at(number as usize);
    let Some(buckets) = find(claim.table, &claim.scope) else { return 0 };
    // SAFETY: an aligned word of a map's value.
    let word = unsafe { Word::new(&raw mut (*buckets).limits[0].counts) };
    sighting.rule = claim.scope.rule;
    let spread = if claim.table == table::SOURCE { &rules.keys_of_source } else { &rules.sources_of_key };
    u32::from(spread::sight(&word, spread, sighting, scan.now, &Sightings))
}

#[inline(always)]
pub(crate) fn cells(bucket: *mut Bucket) -> Cells<Word> {
    // SAFETY: aligned words of a map's value.
    unsafe {
        Cells {
            window: Word::new(&raw mut (*bucket).window),
            counts: Word::new(&raw mut (*bucket).counts),
            arrival: Word::new(&raw mut (*bucket).arrival),
        }
    }
}
