//! What the judge needs, from helpers and maps.

use core::ffi::c_void;
use core::ops::{Deref, DerefMut};

use aya_ebpf::helpers::generated::{bpf_ktime_get_boot_ns, bpf_loop};
use enforcer_ebpf::abi::{Client, Host, Key, KeyTag, Meter, Principal, Ruleset, Service, Share};
use enforcer_ebpf::charge::{CLAIMS, table};
use enforcer_ebpf::flow::{Flow, Handshake, Mark, Place, Receiver, Set};
use enforcer_ebpf::http::bytes::{CAPACITY, Window};
use enforcer_ebpf::http::{Lookup, Step};
use enforcer_ebpf::judge::{self, Decision, Reading, Refill, Sum, Tally, World};
use enforcer_ebpf::limit::Cell;
use enforcer_ebpf::shortcut;
use enforcer_ebpf::source::{Address, Level, Source};
use enforcer_ebpf::verdict::{Count, Reason};
use enforcer_ebpf::wire::Tuple;
use enforcer_ebpf::words;

use crate::atomic::Word;
use crate::maps::{
    CHARGES, CLIENTS, FLOW_MASK, FLOW_SECRET, FLOWS, HANDSHAKES, HOSTS, KEY_SECRET, KEYS, MARKS, METERS, PENALTIES,
    POLICIES, PORTS, RULESETS, SERVICES, SHORTCUTS, SOURCES, TRIAL,
};
use crate::packet::{Packet, XdpPacket};
use crate::{charge, connection, explain, maps, part};

/// More steps than the longest super-frame can need, each of which reads a byte at least.
const MAX_STEPS: u32 = 1 << 18;
/// Tries to lock a set before the packet is given up.
const LOCK_TRIES: u32 = 256;

/// The world of one packet; if it is `DRY`, of a request that is asked about: nothing is written for others, and what is
/// charged are copies ([`crate::explain`]).
#[derive(Clone, Copy)]
pub(crate) struct Kernel<P, const DRY: bool = false> {
    pub(crate) packet: P,
}

impl<P: Packet> Kernel<P> {
    /// The world of this packet.
    #[inline(always)]
    pub(crate) fn new(packet: P) -> Self {
        Self { packet }
    }
}

/// The world of what looks at no packet.
#[inline(always)]
pub(crate) fn sightless() -> Kernel<XdpPacket> {
    Kernel::new(XdpPacket(core::ptr::null_mut()))
}

impl<P: Packet> Kernel<P, true> {
    /// The world of a request that is asked about.
    #[inline(always)]
    pub(crate) fn dry(packet: P) -> Self {
        Self { packet }
    }
}

/// A locked set of connections.
pub(crate) struct Guard(*mut Set);

impl Deref for Guard {
    type Target = Set;

    #[inline(always)]
    fn deref(&self) -> &Set {
        // SAFETY: a map's value; the lock is ours.
        unsafe { &*self.0 }
    }
}

impl DerefMut for Guard {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Set {
        // SAFETY: a map's value; the lock is ours.
        unsafe { &mut *self.0 }
    }
}

impl Drop for Guard {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: an aligned word of a map's value.
        unsafe { Word::new(&raw mut (*self.0).lock) }.release(0);
    }
}

/// What a step needs, handed through `bpf_loop`.
#[repr(C)]
struct Steps<P> {
    packet: P,
    reading: *mut Reading,
    flow: *mut Flow,
}

unsafe extern "C" fn step<P: Packet>(_index: u32, steps: *mut c_void) -> i64 {
    // SAFETY: `drive` made it of references that outlive the loop.
    let Steps { packet, reading, flow } = *unsafe { &*steps.cast::<Steps<P>>() };
    // SAFETY: as above.
    let more = unsafe { judge::step(&Kernel::new(packet), &mut *reading, &mut *flow) };
    i64::from(!more)
}

/// What a step of a sum needs.
#[repr(C)]
struct Sums<P> {
    packet: P,
    sum: *mut Sum,
    window: *mut Window,
}

unsafe extern "C" fn sum_step<P: Packet>(_index: u32, sums: *mut c_void) -> i64 {
    // SAFETY: `drive_sum` made it of references that outlive the loop.
    let Sums { packet, sum, window } = *unsafe { &*sums.cast::<Sums<P>>() };
    // SAFETY: as above.
    let more = unsafe { judge::sum_step(&Kernel::new(packet), &mut *sum, &mut *window) };
    i64::from(!more)
}

impl<P, const DRY: bool> Kernel<P, DRY> {
    /// Copies the service in a slot, for which is counted from now on.
    #[inline(always)]
    fn copy_service(&self, slot: u32, service: &mut Service) -> bool {
        let Some(guard) = SERVICES.get(slot) else { return false };
        words::copy(guard, service);
        if !DRY {
            maps::count_for(slot);
        }
        true
    }
}

impl<P: Packet, const DRY: bool> Lookup for Kernel<P, DRY> {
    #[inline(always)]
    fn next(&self, state: u32, segment: KeyTag) -> u32 {
        let KeyTag([low, high]) = segment;
        part::next_state(state, low, high)
    }

    #[inline(always)]
    fn is_trusted(&self, address: Address, trusts: u64) -> bool {
        let [first, second] = address;
        part::is_trusted(first, second, trusts) != 0
    }
}

impl<P: Packet, const DRY: bool> World for Kernel<P, DRY> {
    type Guard = Guard;

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: takes nothing.
        unsafe { bpf_ktime_get_boot_ns() }
    }

    #[inline(always)]
    fn time_of_day(&self, now: u64) -> u64 {
        maps::time_of_day(now)
    }

    #[inline(always)]
    fn service(&self, port: u16, service: &mut Service) -> bool {
        let Some(&slot) = PORTS.get(u32::from(port)) else { return false };
        self.copy_service(slot.wrapping_sub(1), service)
    }

    #[inline(always)]
    fn service_of(&self, mut host: Host, service: &mut Service) -> bool {
        // SAFETY: copied at once.
        let mut slot = unsafe { HOSTS.get(host) }.copied();
        if slot.is_none() {
            host.name = [0; 2];
            // SAFETY: as above.
            slot = unsafe { HOSTS.get(host) }.copied();
        }
        let Some(slot) = slot else { return false };
        self.copy_service(slot as u32, service)
    }

    #[inline(always)]
    fn flow_secret(&self) -> [u64; 2] {
        FLOW_SECRET.load()
    }

    #[inline(always)]
    fn key_secret(&self) -> [u64; 2] {
        KEY_SECRET.load()
    }

    #[inline(always)]
    fn lock(&self, hash: u64) -> Option<Guard> {
        let set = FLOWS.get_ptr_mut(hash as u32 & FLOW_MASK.load())?;
        // SAFETY: an aligned word of a map's value.
        let lock = unsafe { Word::new(&raw mut (*set).lock) };
        for _ in 0..LOCK_TRIES {
            if lock.swap(0, 1) {
                return Some(Guard(set));
            }
        }
        None
    }

    #[inline(always)]
    fn receiver(&self, tuple: &Tuple) -> Receiver {
        let mut known = Receiver::ABSENT;
        self.packet.find_socket(tuple, &mut known);
        known
    }

    #[inline(always)]
    fn mark(&self, place: Place, mark: &mut Mark) -> bool {
        part::find_mark(place.flow, place.position, mark) != 0
    }

    #[inline(always)]
    fn put_mark(&self, place: Place, mark: &Mark) {
        // Without it the bytes are not passed again: see `Memory::None`.
        let _ = MARKS.insert(place, mark, 0);
    }

    #[inline(always)]
    fn payer(&self, place: Place) -> KeyTag {
        // SAFETY: copied at once; see `find_mark`.
        unsafe { CHARGES.get(place) }.copied().unwrap_or_default()
    }

    #[inline(always)]
    fn put_payer(&self, place: Place, tag: KeyTag) {
        // Without it the request is charged again if it comes again.
        let _ = CHARGES.insert(place, tag, 0);
    }

    #[inline(always)]
    fn handshake(&self, tuple: &Tuple) -> Handshake {
        // SAFETY: copied at once.
        unsafe { HANDSHAKES.get(tuple) }.copied().unwrap_or_default()
    }

    #[inline(always)]
    fn put_handshake(&self, tuple: &Tuple, handshake: Handshake) {
        // Without it the connection is refused.
        let _ = HANDSHAKES.insert(tuple, handshake, 0);
    }

    #[inline(always)]
    fn end_handshake(&self, tuple: &Tuple) {
        let _ = HANDSHAKES.remove(tuple);
    }

    #[inline(always)]
    fn load(&self, window: &mut Window, at: u32, len: u32) -> bool {
        // SAFETY: the window has room for CAPACITY fresh bytes.
        unsafe { self.packet.load::<{ CAPACITY as u64 }>(at, window.fresh().as_mut_ptr(), len) }
    }

    #[inline(always)]
    fn key(&self, tag: KeyTag) -> Option<Key> {
        let principal = SHORTCUTS.get(shortcut::set(tag)).map_or(0, |set| shortcut::find(set, tag));
        if principal != 0 && METERS.get(principal).is_some_and(|meter| shortcut::is_of(meter, tag)) {
            return Some(Key { principal, ..Key::PLAIN });
        }
        // SAFETY: copied at once; an entry that is replaced meanwhile reads as one of the two.
        unsafe { KEYS.get(tag) }.copied()
    }

    #[inline(always)]
    fn rules(&self, service: &Service, rules: &mut Ruleset) {
        let on_trial = service.rules_trial != 0 && is_on_trial(self.now());
        let slot = if on_trial { service.rules_trial } else { service.rules };
        if let Some(written) = RULESETS.get(slot) {
            words::copy(written, rules);
        }
    }

    #[inline(always)]
    fn rule(&self, flow: &Flow, reading: &mut Reading) -> bool {
        let Reading { service, rules, rule, .. } = reading;
        part::find_rule(flow.machine.route(), rules.leaf, flow.machine.method_number(), service.number, rule) != 0
    }

    #[inline(always)]
    fn is_exempt(&self, exemptions: u64, address: Address, now: u64) -> bool {
        let [first, second] = address;
        part::is_exempt(first, second, exemptions, now) != 0
    }

    #[inline(always)]
    fn policy(&self, principal: u32, now: u64) -> u32 {
        let Some(meter) = METERS.get_ptr(principal) else { return 0 };
        // SAFETY: an aligned word of a map's value, which the daemon may store to meanwhile.
        let principal = Principal::from_word(unsafe { core::ptr::read_volatile(&raw const (*meter).principal) });
        let slot = principal.slot(principal.trial != 0 && is_on_trial(now));
        match POLICIES.get(slot) {
            Some(policy) if policy.until != u64::MAX && maps::time_of_day(now) >= policy.until => policy.next,
            _ => slot,
        }
    }

    #[inline(always)]
    fn tenant(&self, slot: u32) -> (u32, u64) {
        POLICIES.get(slot).map_or((0, 0), |policy| (policy.tenant, u64::from(policy.tenant_scope)))
    }

    #[inline(always)]
    fn share(&self, client: Client) -> Option<Share> {
        // SAFETY: copied at once.
        let declared = unsafe { CLIENTS.get(client) }.copied();
        let word = match declared {
            Some(word) => word,
            // SAFETY: as above.
            None => unsafe { CLIENTS.get(Client { id: [0; 2], ..client }) }.copied()?,
        };
        Some(Share::from_word(word))
    }

    #[inline(always)]
    fn open(&self, reading: &mut Reading) {
        for claim in 0..CLAIMS {
            if claim < reading.charge.len() && reading.charge.at(claim).table != table::PRINCIPAL {
                if DRY {
                    explain::open_dry(claim as u32)
                } else {
                    charge::open_claim(claim as u32)
                };
            }
        }
    }

    #[inline(always)]
    fn is_blocked(&self, _reading: &Reading) -> bool {
        if DRY { explain::is_blocked_dry() != 0 } else { charge::is_blocked() != 0 }
    }

    #[inline(always)]
    fn block(&self, _reading: &Reading) {
        if !DRY {
            charge::block_source();
        }
    }

    #[inline(always)]
    fn sight(&self, _reading: &mut Reading, claim: usize) -> bool {
        if DRY { explain::sight_dry(claim as u32) != 0 } else { charge::sight_pair(claim as u32) != 0 }
    }

    #[inline(always)]
    fn penalise(&self, source: Source, now: u64, service: &Service) {
        if !DRY {
            part::penalise_source(source.prefix, source.family, now, service);
        }
    }

    #[inline(always)]
    fn charge(&self, reading: &mut Reading) -> bool {
        if DRY {
            self.open(reading);
            return explain::charge_copies() != 0;
        }
        let mut answer = charge::charge_claims();
        // Most find all buckets there, and need not look twice.
        if answer == charge::LACKS {
            self.open(reading);
            answer = charge::charge_claims();
        }
        let passes = answer == 1;
        if !passes || reading.charge.has_shadows() {
            charge::count_refusals();
        }
        passes
    }

    #[inline(always)]
    fn tally(&self, principal: u32, tally: Tally) {
        if DRY {
            return;
        }
        let Some(meter) = METERS.get_ptr_mut(principal) else { return };
        let meter: *mut Meter = meter;
        // SAFETY: aligned words of a map's value.
        unsafe {
            Word::new(match tally {
                Tally::Allowed => &raw mut (*meter).allowed,
                Tally::Limited => &raw mut (*meter).limited,
                Tally::Denied => &raw mut (*meter).denied,
                Tally::WouldRefuse => &raw mut (*meter).would_refuse,
                Tally::KeyInUrl => &raw mut (*meter).key_in_url,
            })
        }
        .add(1);
    }

    #[inline(always)]
    fn count(&self, count: Count) {
        if DRY {
            return;
        }
        if let Some(total) = maps::total(count.index()) {
            // SAFETY: this CPU's own word.
            unsafe { *total += 1 };
        }
    }

    #[inline(always)]
    fn refused(&self, source: Source, now: u64, service: &Service) -> Level {
        Level::from_number(part::refuse_source(source.prefix, source.family, now, service))
    }

    #[inline(always)]
    fn served(&self, source: Source, now: u64) {
        part::serve_source(source.prefix, source.family, now);
    }

    #[inline(always)]
    fn is_penalised(&self, source: Source) -> bool {
        let Some(&last) = PENALTIES.get(0) else { return false };
        if last == 0 {
            return false;
        }
        let now = self.now();
        // SAFETY: an aligned word of a map's value.
        now < last && unsafe { SOURCES.get(source) }.is_some_and(|record| now < record.until)
    }

    #[inline(always)]
    fn drive(&self, reading: &mut Reading, flow: &mut Flow) {
        let mut steps = Steps { packet: self.packet, reading, flow };
        // SAFETY: the callback takes what is handed to it here.
        unsafe { bpf_loop(MAX_STEPS, step::<P> as *mut c_void, (&raw mut steps).cast(), 0) };
    }

    #[inline(always)]
    fn drive_sum(&self, sum: &mut Sum, window: &mut Window) {
        let mut sums = Sums { packet: self.packet, sum, window };
        // SAFETY: the callback takes what is handed to it here.
        unsafe { bpf_loop(MAX_STEPS, sum_step::<P> as *mut c_void, (&raw mut sums).cast(), 0) };
    }

    #[inline(always)]
    fn find(&self, set: &Set, hash: u64, tuple: &Tuple) -> Option<u32> {
        part::way(part::find_way(set, tuple, hash))
    }

    #[inline(always)]
    fn room(&self, set: &Set, now: u64, refused: bool) -> Option<u32> {
        part::way(part::find_room(set, now, u32::from(refused)))
    }

    #[inline(always)]
    fn has_left(&self, tuple: &Tuple, client: u32, server: u32) -> bool {
        part::has_left(tuple, client, server) != 0
    }

    #[inline(always)]
    fn refill(&self, reading: &mut Reading, flow: &mut Flow) -> Refill {
        part::refilled(self.packet.refill(reading, flow))
    }

    #[inline(always)]
    fn advance(&self, reading: &mut Reading, flow: &mut Flow) -> Step {
        Step::from_word(part::advance_machine(reading, flow))
    }

    #[inline(always)]
    fn introduce(&self, reading: &mut Reading, flow: &mut Flow) -> Refill {
        part::refilled(part::introduce_connection(reading, flow))
    }

    #[inline(always)]
    fn decide(&self, reading: &mut Reading, flow: &mut Flow, position: u64) -> Decision {
        Decision::from_word(part::decide_request(reading, flow, position))
    }

    #[inline(always)]
    fn assign(&self, reading: &mut Reading, flow: &Flow) -> Option<Reason> {
        if DRY { judge::assign(self, reading, flow) } else { part::reason(part::assign_service(reading, flow)) }
    }

    #[inline(always)]
    fn release(&self, reading: &mut Reading, flow: &Flow) {
        part::release_service(reading, flow);
    }

    #[inline(always)]
    fn is_paid(&self, reading: &Reading, flow: &Flow, position: u64) -> bool {
        part::is_paid(reading, flow, position) != 0
    }

    #[inline(always)]
    fn pay(&self, reading: &Reading, flow: &mut Flow, position: u64) {
        if !DRY {
            part::pay(reading, flow, position);
        }
    }

    #[inline(always)]
    fn identify(&self, reading: &mut Reading, flow: &Flow) -> Option<Reason> {
        if DRY { judge::identify(self, reading, flow) } else { part::reason(part::identify_party(reading, flow)) }
    }

    #[inline(always)]
    fn claim_pair(&self, reading: &mut Reading, flow: &Flow) {
        part::claim_pair(reading, flow);
    }

    #[inline(always)]
    fn spread(&self, reading: &mut Reading) -> Option<Reason> {
        if DRY { judge::spread(self, reading) } else { part::reason(part::count_spread(reading)) }
    }

    #[inline(always)]
    fn hold(&self, reading: &mut Reading, flow: &Flow) -> Option<Reason> {
        let refused = if DRY {
            connection::would_hold_connection(reading, flow)
        } else {
            connection::hold_connection(reading, flow)
        };
        part::reason(refused)
    }

    #[inline(always)]
    fn hold_again(&self, reading: &mut Reading, flow: &mut Flow) -> Option<Reason> {
        part::reason(connection::hold_again(reading, flow))
    }

    #[inline(always)]
    fn settle(&self, reading: &Reading, flow: &mut Flow, passes: bool) -> bool {
        DRY || connection::settle_connection(reading, flow, u32::from(passes)) != 0
    }

    #[inline(always)]
    fn claim(&self, reading: &mut Reading, flow: &Flow) -> Option<Reason> {
        part::reason(part::claim_limits(reading, flow))
    }
}

/// Whether what is on trial holds.
#[inline(always)]
fn is_on_trial(now: u64) -> bool {
    let Some(until) = TRIAL.get_ptr(0) else { return false };
    // SAFETY: an aligned word of a map's value, which the daemon may store to meanwhile.
    now < unsafe { core::ptr::read_volatile(until) }
}
