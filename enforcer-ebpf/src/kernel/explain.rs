//! The program that says what would become of a request, for `enforcer explain`. It is never attached: the daemon runs it
//! on a head, one at a time, while packets are judged as ever.
//!
//! It writes to its own two maps and to nothing else. The functions here stand in the places of those of
//! [`crate::charge`] that write.

use core::ffi::c_void;

use aya_ebpf::bindings::xdp_action::XDP_DROP;
use aya_ebpf::helpers::generated::{bpf_loop, bpf_probe_read_kernel};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use enforcer_ebpf::abi::{self, Buckets, scope};
use enforcer_ebpf::charge::{CLAIMS, Charge, Claim, table};
use enforcer_ebpf::judge::explain::{self, Explaining, outcome};
use enforcer_ebpf::judge::{self, Reading};
use enforcer_ebpf::limit::{self, Cell as _, Moment, Outcome};
use enforcer_ebpf::{spread, words};

use crate::atomic::Word;
use crate::charge;
use crate::maps::{self, POLICIES, SIGHTINGS, SOURCES};
use crate::packet::{Packet as _, XdpPacket};
use crate::world::Kernel;

/// More steps than the longest head can need.
const MAX_STEPS: u32 = 1 << 16;

/// Says what would become of the request whose head is the whole frame. Never attached.
#[xdp(frags)]
#[inline(always)] // the wrapper's frame counts on the stack
pub(crate) fn enforcer_explain(ctx: XdpContext) -> u32 {
    explain(XdpPacket(ctx.ctx));
    XDP_DROP
}

#[inline(always)]
fn explain(packet: XdpPacket) -> Option<()> {
    let (desk, said) = (maps::explaining()?, maps::explanation()?);
    let kernel = Kernel::dry(packet);
    if !explain::begin(&kernel, desk, said, packet.len()) {
        return None;
    }
    said.offset = maps::clock_offset();
    copy(charge::admissions(scope::ADMISSION), &mut desk.admission);
    let mut steps = packet;
    // SAFETY: the callback takes what is handed to it here.
    unsafe { bpf_loop(MAX_STEPS, step as *mut c_void, (&raw mut steps).cast(), 0) };
    if maps::explanation()?.outcome == outcome::DECIDED {
        conclude_explanation();
    }
    note_record();
    let desk: *mut Explaining = maps::explaining()?;
    // SAFETY: as long as it is; a read from address 0 fails and fills its destination with zeros, see `packet::wipe`.
    unsafe { bpf_probe_read_kernel(desk.cast(), size_of::<Explaining>() as u32, core::ptr::null()) };
    Some(())
}

unsafe extern "C" fn step(_index: u32, packet: *mut c_void) -> i64 {
    // SAFETY: `explain` made it of a reference that outlives the loop.
    let packet = unsafe { *packet.cast::<XdpPacket>() };
    let (Some(desk), Some(said)) = (maps::explaining(), maps::explanation()) else { return 1 };
    if explain::step(&Kernel::dry(packet), desk, said) { 0 } else { 1 }
}

/// [`explain::conclude`]. A global function, as all below that are not inlined: see [`crate::part`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn conclude_explanation() -> u32 {
    let (Some(desk), Some(said)) = (maps::explaining(), maps::explanation()) else { return 0 };
    explain::conclude(&Kernel::dry(XdpPacket(core::ptr::null_mut())), desk, said);
    1
}

/// Notes what is known of the connection's source as one that was refused.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn note_record() -> u32 {
    let Some(said) = maps::explanation() else { return 0 };
    let Some(record) = SOURCES.get_ptr_mut(explain::peer(said)) else { return 0 };
    // SAFETY: a map's value, which another CPU may change meanwhile.
    words::copy(unsafe { &*record }, &mut said.record);
    1
}

/// [`enforcer_ebpf::judge::World::open`], for one claim: whose buckets it would be charged to, were they made.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn open_dry(number: u32) -> u32 {
    let (Some(desk), Some(said)) = (maps::explaining(), maps::explanation()) else { return 0 };
    let Explaining { reading: Reading { scan, rules, charge, .. }, admission, .. } = desk;
    let claim = charge.at_mut(number as usize);
    let is_open = charge::find(claim.table, &claim.scope).is_some();
    let (now, full) = (scan.now, said.full);
    let take_place = |claim: &Claim| take_place(judge::admission(rules, claim), admission, now);
    let make = |claim: &Claim| claim.table != table::NAMED || full == 0;
    u32::from(judge::open(claim, is_open, take_place, make))
}

/// Whether one more source, or key that is not registered, would be let in.
#[inline(always)]
fn take_place((slot, rule): (u32, u64), admission: &mut Buckets, now: u64) -> bool {
    if slot == 0 {
        return true;
    }
    let Some(policy) = POLICIES.get(slot) else { return false };
    let now = Moment::of_boot(now);
    if rule == scope::ADMISSION {
        let cells = charge::cells((&raw mut admission.limits).cast());
        return matches!(limit::attempt(&cells, &policy.limits[0], &now, 1), Outcome::Charged(_));
    }
    // A request has one key: what it is counted by is looked at and left as it is.
    let Some(buckets) = charge::admissions(rule) else { return false };
    // SAFETY: within the value.
    let cells = charge::cells(unsafe { &raw mut (*buckets).limits }.cast());
    limit::would_pass(&cells, &policy.limits[0], &now, 1)
}

/// [`enforcer_ebpf::judge::World::is_blocked`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn is_blocked_dry() -> u32 {
    copy_buckets(0);
    let Some(desk) = maps::explaining() else { return 0 };
    let Reading { scan, charge, .. } = &desk.reading;
    u32::from(charge::blocked_until(charge).is_some_and(|until| scan.now < until.load()))
}

/// [`enforcer_ebpf::judge::World::charge`], to copies.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn charge_copies() -> u32 {
    let Some(desk) = maps::explaining() else { return 0 };
    for claim in 0..CLAIMS {
        if claim < desk.reading.charge.len() {
            copy_buckets(claim as u32);
        }
    }
    charge::prepare(&mut desk.reading.charge);
    // SAFETY: the callback takes nothing.
    unsafe { bpf_loop(Charge::MAX_STEPS, charge_step as *mut c_void, core::ptr::null_mut(), 0) };
    u32::from(desk.reading.charge.result().is_ok())
}

unsafe extern "C" fn charge_step(_index: u32, _nothing: *mut c_void) -> i64 {
    let Some(desk) = maps::explaining() else { return 1 };
    let Explaining { reading, copies, .. } = desk;
    i64::from(!charge::go_on(&mut reading.charge, |charge| Some(&raw mut copies[charge.place().claim & (CLAIMS - 1)])))
}

/// Copies what is used of a claim's limits, to be charged and to be shown.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn copy_buckets(number: u32) -> u32 {
    let (Some(desk), Some(said)) = (maps::explaining(), maps::explanation()) else { return 0 };
    let number = number as usize & (CLAIMS - 1);
    let claim = desk.reading.charge.at(number);
    let found = charge::find(claim.table, &claim.scope);
    copy(found, &mut desk.copies[number]);
    words::copy(&desk.copies[number], &mut said.buckets[number]);
    1
}

/// What is used as it is there, or nothing.
#[inline(always)]
fn copy(found: Option<*mut Buckets>, to: &mut Buckets) {
    match found {
        // SAFETY: a map's value; each word of it is read whole.
        Some(found) => words::copy(unsafe { &*found }, to),
        None => words::copy(&charge::EMPTY, to),
    }
}

/// The pairs as they are; none is added.
struct Seen;

impl spread::Sightings for Seen {
    #[inline(always)]
    fn knows(&self, sighting: &abi::Sighting) -> bool {
        SIGHTINGS.get_ptr(sighting).is_some()
    }

    #[inline(always)]
    fn insert(&self, _sighting: &abi::Sighting) -> bool {
        true
    }

    #[inline(always)]
    fn remove(&self, _sighting: &abi::Sighting) {}
}

/// [`enforcer_ebpf::judge::World::sight`], in a copy of the word.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sight_dry(number: u32) -> u32 {
    let (Some(desk), Some(said)) = (maps::explaining(), maps::explanation()) else { return 0 };
    let Explaining { reading: Reading { scan, rules, charge, sighting, .. }, copies, .. } = desk;
    let claim = charge.at(number as usize);
    let found = charge::find(claim.table, &claim.scope);
    let word = &raw mut copies[0].limits[0].counts;
    // SAFETY: aligned words of maps' values.
    let count = found.map_or(0, |buckets| unsafe { Word::new(&raw mut (*buckets).limits[0].counts) }.load());
    // SAFETY: as above.
    unsafe { *word = count };
    let place = usize::from(claim.table != table::SOURCE);
    said.pairs[place] = count;
    sighting.rule = claim.scope.rule;
    let spread = if place == 0 { &rules.keys_of_source } else { &rules.sources_of_key };
    // SAFETY: as above.
    let exceeds = spread::sight(&unsafe { Word::new(word) }, spread, sighting, scan.now, &Seen);
    said.exceeded |= u64::from(exceeds) << place;
    u32::from(exceeds)
}
