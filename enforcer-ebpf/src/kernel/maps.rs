//! The maps and constants, as [`enforcer_ebpf::abi`] describes them.

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray};
use aya_ebpf::macros::btf_map;
use enforcer_ebpf::abi::{
    self, Answer, Buckets, Client, Edge, EndsOffsets, Host, Key, KeyTag, Leaf, Meter, Policy, Rule, Ruleset, Scope,
    Service, Sighting, SocketOffsets, State, Turn, tally,
};
use enforcer_ebpf::answer::Sheet;
use enforcer_ebpf::connection::{Connections, Subjects};
use enforcer_ebpf::flow::{Flow, Handshake, Mark, Place, Set};
use enforcer_ebpf::judge::Scratch;
use enforcer_ebpf::judge::explain::{Explaining, Explanation};
use enforcer_ebpf::shortcut::Shortcuts;
use enforcer_ebpf::source::{Record, Source};
use enforcer_ebpf::wire::Tuple;

const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

#[btf_map]
pub(crate) static PORTS: Array<u32, { abi::PORTS as usize }> = Array::new();
#[btf_map]
pub(crate) static SERVICES: Array<Service, { abi::SERVICES as usize }> = Array::new();
#[btf_map]
pub(crate) static HOSTS: HashMap<Host, u64, { abi::HOSTS as usize }> = HashMap::new();
#[btf_map]
pub(crate) static KEYS: HashMap<KeyTag, Key, { abi::KEYS as usize }> = HashMap::new();
#[btf_map]
pub(crate) static SHORTCUTS: Array<Shortcuts, { abi::SHORTCUTS as usize }, MMAPABLE> = Array::new();
#[btf_map]
pub(crate) static POLICIES: Array<Policy, { abi::POLICIES as usize }> = Array::new();
#[btf_map]
pub(crate) static METERS: Array<Meter, { abi::PRINCIPALS as usize }, MMAPABLE> = Array::new();
#[btf_map]
pub(crate) static RULESETS: Array<Ruleset, { abi::RULESETS as usize }> = Array::new();
#[btf_map]
pub(crate) static ROUTES: HashMap<Edge, u64, { abi::ROUTES as usize }> = HashMap::new();
#[btf_map]
pub(crate) static STATES: Array<State, { abi::STATES as usize }> = Array::new();
#[btf_map]
pub(crate) static LEAVES: Array<Leaf, { abi::LEAVES as usize }> = Array::new();
#[btf_map]
pub(crate) static RULES: Array<Rule, { abi::RULES as usize }> = Array::new();
#[btf_map]
pub(crate) static EXEMPT: LpmTrie<[u8; 16], u64, { 2 * abi::PREFIXES as usize }> = LpmTrie::new();
#[btf_map]
pub(crate) static EXEMPTIONS: Array<u64, { abi::EXEMPTIONS as usize }> = Array::new();
#[btf_map]
pub(crate) static PROXIES: LpmTrie<[u8; 16], u64, { 2 * abi::PREFIXES as usize }> = LpmTrie::new();
#[btf_map]
pub(crate) static CLIENTS: HashMap<Client, u64, { abi::CLIENTS as usize }> = HashMap::new();
#[btf_map]
pub(crate) static BUCKETS: HashMap<Scope, Buckets, { abi::BUCKETS as usize }> = HashMap::new();
#[btf_map]
pub(crate) static SOURCE_BUCKETS: LruHashMap<Scope, Buckets, { abi::SOURCE_BUCKETS as usize }> = LruHashMap::new();
#[btf_map]
pub(crate) static SIGHTINGS: LruHashMap<Sighting, u64, { abi::SIGHTINGS as usize }> = LruHashMap::new();
#[btf_map]
pub(crate) static CONNECTIONS: Array<Connections, { abi::CONNECTION_SETS as usize }> = Array::new();
#[btf_map]
pub(crate) static SUBJECTS: Array<Subjects, { abi::SUBJECT_SETS as usize }> = Array::new();
#[btf_map]
pub(crate) static TALLIES: PerCpuArray<[u64; tally::LEN], { abi::TALLIES as usize }> = PerCpuArray::new();
#[btf_map]
pub(crate) static TRIAL: Array<u64, 1> = Array::new();
#[btf_map]
static TOTALS: PerCpuArray<u64, { (abi::TOTALS * abi::SERVICES) as usize }> = PerCpuArray::new();
#[btf_map]
static COUNTING: PerCpuArray<u32, 1> = PerCpuArray::new();
#[btf_map]
pub(crate) static FLOWS: Array<Set, { abi::FLOW_SETS as usize }, MMAPABLE> = Array::new();
#[btf_map]
pub(crate) static MARKS: LruHashMap<Place, Mark, { abi::MARKS as usize }> = LruHashMap::new();
#[btf_map]
pub(crate) static CHARGES: LruHashMap<Place, KeyTag, { abi::CHARGES as usize }> = LruHashMap::new();
#[btf_map]
pub(crate) static HANDSHAKES: LruHashMap<Tuple, Handshake, { abi::HANDSHAKES as usize }> = LruHashMap::new();
#[btf_map]
pub(crate) static ANSWERS: Array<Answer, { abi::ANSWERS as usize }> = Array::new();
#[btf_map]
pub(crate) static CLOCK: Array<u64, 1, MMAPABLE> = Array::new();
#[btf_map]
pub(crate) static SOURCES: LruHashMap<Source, Record, { abi::SOURCES as usize }> = LruHashMap::new();
#[btf_map]
pub(crate) static PENALTIES: Array<u64, 1> = Array::new();
#[btf_map]
static SHEET: PerCpuArray<Sheet, 1> = PerCpuArray::new();
#[btf_map]
static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();
#[btf_map]
static BENCH: PerCpuArray<Flow, 1> = PerCpuArray::new();
#[btf_map]
static EXPLANATION: Array<Explanation, 1> = Array::new();
#[btf_map]
static EXPLAINING: Array<Explaining, 1> = Array::new();
#[btf_map]
pub(crate) static TURN: Array<Turn, 1> = Array::new();

#[unsafe(no_mangle)]
pub(crate) static KEY_SECRET: Global<[u64; 2]> = Global::new([0; 2]);
#[unsafe(no_mangle)]
pub(crate) static FLOW_SECRET: Global<[u64; 2]> = Global::new([0; 2]);
#[unsafe(no_mangle)]
pub(crate) static FLOW_MASK: Global<u32> = Global::new(abi::FLOW_SETS - 1);
#[unsafe(no_mangle)]
pub(crate) static SOCKET_OFFSETS: Global<SocketOffsets> = Global::new(SocketOffsets {
    rcv_nxt: 0,
    bytes_received: 0,
    snd_una: 0,
    bytes_acked: 0,
    request_rcv_nxt: 0,
    request_snt_isn: 0,
    write_seq: 0,
    reserved: 0,
});

#[unsafe(no_mangle)]
pub(crate) static ENDS_OFFSETS: Global<EndsOffsets> = Global::new(EndsOffsets {
    port: 0,
    remote_port: 0,
    family: 0,
    state: 0,
    v4: 0,
    remote_v4: 0,
    v6: 0,
    remote_v6: 0,
    net: 0,
    inum: 0,
    protocol: 0,
    reserved: 0,
});
#[unsafe(no_mangle)]
pub(crate) static NAMESPACE: Global<u32> = Global::new(0);

/// This CPU's scratch; a program runs to its end before another begins on the CPU, so there is one user at a time.
#[inline(always)]
pub(crate) fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: the value lives as long as the map, and nothing else on this CPU uses it meanwhile.
    SCRATCH.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
}

/// This CPU's sheet; not the scratch, since what is sent from here meets [`crate::enforcer_watch`] at once.
#[inline(always)]
pub(crate) fn sheet() -> Option<&'static mut Sheet> {
    // SAFETY: as for the scratch.
    SHEET.get_ptr_mut(0).map(|sheet| unsafe { &mut *sheet })
}

/// This CPU's connection for `bench_judge`.
#[inline(always)]
pub(crate) fn bench_flow() -> Option<&'static mut Flow> {
    // SAFETY: as for the scratch.
    BENCH.get_ptr_mut(0).map(|flow| unsafe { &mut *flow })
}

/// The request that is asked about, and what would become of it.
#[inline(always)]
pub(crate) fn explanation() -> Option<&'static mut Explanation> {
    // SAFETY: the value lives as long as the map, and the daemon asks one thing at a time.
    EXPLANATION.get_ptr_mut(0).map(|explanation| unsafe { &mut *explanation })
}

/// That request while it is judged.
#[inline(always)]
pub(crate) fn explaining() -> Option<&'static mut Explaining> {
    // SAFETY: as for the explanation.
    EXPLAINING.get_ptr_mut(0).map(|explaining| unsafe { &mut *explaining })
}

/// Lets what is counted on this CPU from now on be counted for the service in a slot.
#[inline(always)]
pub(crate) fn count_for(slot: u32) {
    if let Some(first) = COUNTING.get_ptr_mut(0) {
        // SAFETY: this CPU's own word.
        unsafe { *first = slot * abi::TOTALS };
    }
}

/// This CPU's count of this index, of the service that is counted for.
#[inline(always)]
pub(crate) fn total(index: u32) -> Option<*mut u64> {
    let first = COUNTING.get_ptr(0)?;
    // SAFETY: as above.
    TOTALS.get_ptr_mut(unsafe { *first } + index)
}

/// CLOCK_REALTIME − CLOCK_BOOTTIME in ns; 0 before the daemon has said it.
#[inline(always)]
pub(crate) fn clock_offset() -> u64 {
    let Some(offset) = CLOCK.get_ptr(0) else { return 0 };
    // SAFETY: an aligned word of a map's value, which the daemon may store to meanwhile.
    unsafe { core::ptr::read_volatile(offset) }
}

/// Unix time in ns at `now`.
#[inline(always)]
pub(crate) fn time_of_day(now: u64) -> u64 {
    now.wrapping_add(clock_offset())
}
