//! Parts of the judge as global functions: the verifier checks each of them once, by itself, instead of in every
//! state of its callers (kernel 5.6, commit 51c39bb1d5d1). They take pointers that may be null, since that is all
//! that the verifier knows of them, and hand on numbers.

use aya_ebpf::bindings::{__sk_buff, BPF_NOEXIST, xdp_md};
use aya_ebpf::btf_maps::lpm_trie::Key;
use enforcer_ebpf::abi::{EXEMPTIONS as EXEMPTIONS_MOST, Edge, METHODS, Rule, Service, State};
use enforcer_ebpf::flow::{Flow, Handshake, Mark, Place, Receiver, Set, WAYS};
use enforcer_ebpf::http::Step;
use enforcer_ebpf::judge::{self, Decision, Reading, Refill, World as _};
use enforcer_ebpf::limit::Cell as _;
use enforcer_ebpf::source::{Record, Source};
use enforcer_ebpf::verdict::{Count, Event, Reason};
use enforcer_ebpf::wire::Tuple;
use enforcer_ebpf::words;

use crate::atomic::Word;
use crate::maps::{EXEMPT, EXEMPTIONS, HANDSHAKES, LEAVES, MARKS, PENALTIES, PROXIES, ROUTES, RULES, SOURCES, STATES};
use crate::packet::{Packet, TcPacket, XdpPacket};
use crate::world::{Kernel, sightless};
use crate::{maps, socket};

/// No place.
const NOWHERE: u32 = WAYS as u32;
/// How often another CPU may be first with a shared word.
const RACES: u32 = 8;

/// The place that a number of this module stands for.
#[inline(always)]
pub(crate) fn way(number: u32) -> Option<u32> {
    if number < NOWHERE { Some(number) } else { None }
}

/// [`enforcer_ebpf::judge::World::receiver`], for XDP: the type of the context is part of what the verifier checks.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn find_socket_xdp(ctx: *mut xdp_md, tuple: *const Tuple, known: *mut Receiver) -> u32 {
    find_socket(XdpPacket(ctx), tuple, known)
}

/// [`enforcer_ebpf::judge::World::receiver`], for TC.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn find_socket_tc(ctx: *mut __sk_buff, tuple: *const Tuple, known: *mut Receiver) -> u32 {
    find_socket(TcPacket::leaving(ctx), tuple, known)
}

#[inline(always)]
fn find_socket(packet: impl Packet, tuple: *const Tuple, known: *mut Receiver) -> u32 {
    // SAFETY: of this size, or null.
    let (Some(tuple), Some(known)) = (unsafe { tuple.as_ref() }, unsafe { known.as_mut() }) else { return 0 };
    *known = socket::lookup(packet, tuple);
    1
}

/// [`enforcer_ebpf::judge::World::has_left`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn has_left(tuple: *const Tuple, client: u32, server: u32) -> u32 {
    // SAFETY: of this size, or null.
    let Some(tuple) = (unsafe { tuple.as_ref() }) else { return 0 };
    // On the stack: see `refuse_source`.
    let ends = tuple.reversed();
    // SAFETY: copied at once.
    let met = unsafe { HANDSHAKES.get(ends) }.copied().unwrap_or_default();
    u32::from(met == Handshake { client, server })
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
pub(crate) extern "C" fn find_room(set: *const Set, now: u64, refused: u32) -> u32 {
    // SAFETY: of this size, or null.
    let Some(set) = (unsafe { set.as_ref() }) else { return NOWHERE };
    set.room(now, refused != 0).unwrap_or(NOWHERE)
}

/// [`judge::refill`], for XDP.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn refill_xdp(ctx: *mut xdp_md, reading: *mut Reading, flow: *mut Flow) -> u32 {
    refill(XdpPacket(ctx), reading, flow)
}

/// [`judge::refill`], for TC.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn refill_tc(ctx: *mut __sk_buff, hidden: u32, reading: *mut Reading, flow: *mut Flow) -> u32 {
    refill(TcPacket::with_hidden(ctx, hidden), reading, flow)
}

#[inline(always)]
fn refill(packet: impl Packet, reading: *mut Reading, flow: *mut Flow) -> u32 {
    // SAFETY: of this size, or null.
    let (Some(reading), Some(flow)) = (unsafe { reading.as_mut() }, unsafe { flow.as_mut() }) else {
        return Refill::Ended as u32;
    };
    judge::refill(&Kernel::new(packet), reading, flow) as u32
}

/// [`judge::advance`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn advance_machine(reading: *mut Reading, flow: *mut Flow) -> u32 {
    // SAFETY: of this size, or null.
    let (Some(reading), Some(flow)) = (unsafe { reading.as_mut() }, unsafe { flow.as_mut() }) else {
        return Step::Refused(Reason::Unparsable.into()).to_word();
    };
    judge::advance(&sightless(), reading, flow).to_word()
}

/// What a number of this module says of filling the window.
#[inline(always)]
pub(crate) fn refilled(number: u32) -> Refill {
    match number {
        0 => Refill::Ready,
        1 => Refill::Skipped,
        _ => Refill::Ended,
    }
}

/// [`judge::introduce`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn introduce_connection(reading: *mut Reading, flow: *mut Flow) -> u32 {
    // SAFETY: of this size, or null.
    let (Some(reading), Some(flow)) = (unsafe { reading.as_mut() }, unsafe { flow.as_mut() }) else {
        return Refill::Ended as u32;
    };
    judge::introduce(&sightless(), reading, flow) as u32
}

/// [`enforcer_ebpf::http::Lookup::next`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn next_state(state: u32, low: u64, high: u64) -> u32 {
    // SAFETY: copied at once; edges of states in use are never changed.
    if let Some(&next) = unsafe { ROUTES.get(Edge { state: u64::from(state), segment: [low, high] }) } {
        return next as u32;
    }
    STATES.get(state).map_or(0, |state| state.other)
}

/// [`enforcer_ebpf::http::Lookup::is_trusted`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn is_trusted(first: u64, second: u64, trusts: u64) -> u32 {
    u32::from(PROXIES.get(&address(first, second)).is_some_and(|sets| sets & trusts != 0))
}

/// [`judge::decide`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn decide_request(reading: *mut Reading, flow: *mut Flow, position: u64) -> u64 {
    // SAFETY: of this size, or null.
    let (Some(reading), Some(flow)) = (unsafe { reading.as_mut() }, unsafe { flow.as_mut() }) else {
        return Decision { principal: 0, refused: Some(Reason::Unparsable), again: false }.to_word();
    };
    judge::decide(&sightless(), reading, flow, position).to_word()
}

/// The reason that a number of this module stands for: 1 + its index, or 0 for none.
#[inline(always)]
pub(crate) fn reason(number: u32) -> Option<Reason> {
    match number {
        0 => None,
        number => Some(Reason::from_index((number - 1) as u8).unwrap_or(Reason::Unparsable)),
    }
}

#[inline(always)]
pub(crate) fn number(reason: Option<Reason>) -> u32 {
    match reason {
        None => 0,
        Some(reason) => reason as u32 + 1,
    }
}

/// [`judge::assign`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn assign_service(reading: *mut Reading, flow: *const Flow) -> u32 {
    // SAFETY: of this size, or null.
    let (Some(reading), Some(flow)) = (unsafe { reading.as_mut() }, unsafe { flow.as_ref() }) else {
        return number(Some(Reason::Unparsable));
    };
    number(judge::assign(&sightless(), reading, flow))
}

/// [`judge::release`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn release_service(reading: *mut Reading, flow: *const Flow) -> u32 {
    // SAFETY: of this size, or null.
    let (Some(reading), Some(flow)) = (unsafe { reading.as_mut() }, unsafe { flow.as_ref() }) else { return 0 };
    judge::release(&sightless(), reading, flow);
    1
}

/// [`judge::is_paid`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn is_paid(reading: *const Reading, flow: *const Flow, position: u64) -> u32 {
    // SAFETY: of this size, or null.
    let (Some(reading), Some(flow)) = (unsafe { reading.as_ref() }, unsafe { flow.as_ref() }) else { return 0 };
    u32::from(judge::is_paid(&sightless(), reading, flow, position))
}

/// [`judge::pay`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn pay(reading: *const Reading, flow: *mut Flow, position: u64) -> u32 {
    // SAFETY: of this size, or null.
    let (Some(reading), Some(flow)) = (unsafe { reading.as_ref() }, unsafe { flow.as_mut() }) else { return 0 };
    judge::pay(&sightless(), reading, flow, position);
    1
}

/// [`judge::identify`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn identify_party(reading: *mut Reading, flow: *const Flow) -> u32 {
    // SAFETY: of this size, or null.
    let (Some(reading), Some(flow)) = (unsafe { reading.as_mut() }, unsafe { flow.as_ref() }) else {
        return number(Some(Reason::Unparsable));
    };
    number(judge::identify(&sightless(), reading, flow))
}

/// [`judge::spread`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn count_spread(reading: *mut Reading) -> u32 {
    // SAFETY: of this size, or null.
    let Some(reading) = (unsafe { reading.as_mut() }) else { return number(Some(Reason::Unparsable)) };
    number(judge::spread(&sightless(), reading))
}

/// [`judge::claim`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn claim_limits(reading: *mut Reading, flow: *const Flow) -> u32 {
    // SAFETY: of this size, or null.
    let (Some(reading), Some(flow)) = (unsafe { reading.as_mut() }, unsafe { flow.as_ref() }) else {
        return number(Some(Reason::Unparsable));
    };
    number(judge::claim(&sightless(), reading, flow))
}

/// [`judge::claim_pair`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn claim_pair(reading: *mut Reading, flow: *const Flow) -> u32 {
    // SAFETY: of these sizes, or null.
    let (Some(reading), Some(flow)) = (unsafe { reading.as_mut() }, unsafe { flow.as_ref() }) else {
        return 0;
    };
    judge::claim_pair(reading, flow);
    1
}

/// [`enforcer_ebpf::judge::World::rule`], by the state, the place and number of the service, and the method.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn find_rule(state: u32, place: u32, method: u32, service: u32, rule: *mut Rule) -> u32 {
    // SAFETY: of this size, or null.
    let Some(rule) = (unsafe { rule.as_mut() }) else { return 0 };
    let Some(State { leaf, .. }) = STATES.get(state) else { return 0 };
    if *leaf == 0 {
        return 0;
    }
    let Some(leaf) = LEAVES.get(leaf.wrapping_add(place)) else { return 0 };
    if leaf.service != service {
        return 0;
    }
    let index = leaf.rules[method as usize & (METHODS - 1)];
    let Some(found) = RULES.get(index) else { return 0 };
    words::copy(found, rule);
    index
}

/// [`enforcer_ebpf::judge::World::is_exempt`], by the address.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn is_exempt(first: u64, second: u64, exemptions: u64, now: u64) -> u32 {
    let Some(&found) = EXEMPT.get(&address(first, second)) else { return 0 };
    let (both, time) = (found & exemptions, maps::time_of_day(now));
    for exemption in 0..EXEMPTIONS_MOST {
        if both & (1 << exemption) != 0
            && let Some(&until) = EXEMPTIONS.get(exemption)
            && time < until
        {
            return 1;
        }
    }
    0
}

/// [`enforcer_ebpf::judge::World::penalise`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn penalise_source(prefix: u64, family: u64, now: u64, service: *const Service) -> u32 {
    // SAFETY: of this size, or null.
    let Some(service) = (unsafe { service.as_ref() }) else { return 0 };
    if service.penalty_ns == 0 {
        return 0;
    }
    let Some(record) = record(Source { prefix, family }) else { return 0 };
    // SAFETY: a map's value; another CPU may change it too: see `enforcer_ebpf::source`.
    let record = unsafe { &mut *record };
    let before = record.until;
    record.penalise(now, service);
    note_penalty(before, record.until);
    1
}

/// An address to be looked up among prefixes.
#[inline(always)]
fn address(first: u64, second: u64) -> Key<[u8; 16]> {
    // The first word lies first in memory, whichever byte comes first in a word: this target is little endian.
    let both = (u128::from(second) << 64) | u128::from(first);
    Key::new(128, both.to_le_bytes())
}

/// What is known of a source, be it from now on.
#[inline(always)]
fn record(source: Source) -> Option<*mut Record> {
    if SOURCES.get_ptr_mut(source).is_none() {
        // Without it the refusal is met with what the service says.
        let _ = SOURCES.insert(source, Record::default(), u64::from(BPF_NOEXIST));
    }
    SOURCES.get_ptr_mut(source)
}

/// Counts a penalty if one has begun, and takes note of when it ends.
#[inline(always)]
fn note_penalty(before: u64, until: u64) {
    if until == before {
        return;
    }
    if let Some(last) = PENALTIES.get_ptr_mut(0) {
        // SAFETY: an aligned word of a map's value.
        let last = unsafe { Word::new(last) };
        // Of penalties that begin at once on several CPUs the latest end stays.
        for _ in 0..RACES {
            let known = last.load();
            if known >= until || last.swap(known, until) {
                break;
            }
        }
    }
    sightless().count(Count::Event(Event::Penalty));
}

/// [`enforcer_ebpf::judge::World::refused`]; the number of the level. The source comes as numbers: what a pointer leads to
/// is no key of a map for kernels before 6.3.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn refuse_source(prefix: u64, family: u64, now: u64, service: *const Service) -> u32 {
    // SAFETY: of this size, or null.
    let Some(service) = (unsafe { service.as_ref() }) else { return 0 };
    let source = Source { prefix, family };
    if service.answers_per_second == 0 && service.tolerated_per_second == 0 {
        return 0;
    }
    let Some(record) = record(source) else { return 0 };
    // SAFETY: a map's value; another CPU may change it too: see `enforcer_ebpf::source`.
    let record = unsafe { &mut *record };
    let before = record.until;
    let level = record.refuse(now, service);
    note_penalty(before, record.until);
    level as u32
}

/// [`enforcer_ebpf::judge::World::served`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn serve_source(prefix: u64, family: u64, now: u64) -> u32 {
    let source = Source { prefix, family };
    match SOURCES.get_ptr_mut(source) {
        // SAFETY: an aligned word of a map's value.
        Some(record) => unsafe { (*record).served = now },
        // Before there are refusals: a flood may bring a penalty before the next key is served.
        None => drop(SOURCES.insert(source, Record { served: now, ..Record::default() }, u64::from(BPF_NOEXIST))),
    }
    1
}

/// [`enforcer_ebpf::judge::World::mark`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn find_mark(flow: u64, position: u64, mark: *mut Mark) -> u32 {
    // SAFETY: of this size, or null.
    let Some(mark) = (unsafe { mark.as_mut() }) else { return 0 };
    // SAFETY: copied at once; one that is replaced meanwhile belongs to another connection, and its set is locked.
    let Some(kept) = (unsafe { MARKS.get(Place { flow, position }) }) else { return 0 };
    words::copy(kept, mark);
    1
}
