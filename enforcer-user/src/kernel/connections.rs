//! The connections that the program follows, read out of its table while it goes on writing there.
//!
//! Nothing is locked against it: a place counts only if it was read alike right before and right after its set was seen
//! free. A set is held for microseconds and looked at again until it is free.

use std::{
    mem::offset_of,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Acquire},
    },
    thread,
};

use aya::maps::{Map, MapData};
use enforcer_ebpf::{
    abi::map,
    flow::{Flow, Set, WAYS, stage},
    shift::Shift,
    wire::Tuple,
};

use super::{mapped::Mapped, pins::Pins, tables};

const WORD: usize = size_of::<u64>();
/// Words of a set.
pub(super) const SET: usize = size_of::<Set>() / WORD;
const LOCK: usize = offset_of!(Set, lock) / WORD;
/// The first word of a set's hashes, one for each of its places, 0 where there is no connection.
const HASHES: usize = offset_of!(Set, hashes) / WORD;
const FLOWS: usize = offset_of!(Set, flows) / WORD;
const FLOW: usize = size_of::<Flow>() / WORD;

/// How often a place is read before it is left out; more than ever happens unless a CPU stands still within its set.
const TRIES: usize = 1000;

/// A list of the connections under guard, to be asked for as often as needed.
#[derive(Clone, Debug)]
pub struct Connections(Arc<Mapped>);

/// A connection that the program follows, or refuses all further bytes of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Followed {
    /// The client's end.
    pub peer: SocketAddr,
    /// The service's end.
    pub local: SocketAddr,
    /// When the first byte of the request head under way came, on the clock of [`super::now`]; `None` if none is.
    pub head_since: Option<u64>,
    /// Whether the service's socket is in this network namespace; else the connection is forwarded.
    pub has_socket: bool,
    /// Whether a request of it was refused: none of its bytes passes any more.
    pub refused: bool,
    /// Whether it went on behind a refused request: its two ends count differently.
    pub kept: bool,
}

impl Connections {
    pub(super) fn new(table: Mapped) -> Self {
        Self(Arc::new(table))
    }

    /// Those of the enforcement that is pinned; `None` if there is none of this ABI.
    pub(super) fn pinned(pins: &Pins) -> Option<Self> {
        let map = Map::Array(MapData::from_pin(pins.map(map::FLOWS)).ok()?);
        tables::mapped(&map, map::FLOWS, SET).ok().map(Self::new)
    }

    /// All that are followed now.
    #[must_use]
    pub fn all(&self) -> Vec<Followed> {
        self.0.words().chunks_exact(SET).flat_map(|set| (0..WAYS).filter_map(move |way| read(set, way))).collect()
    }

    /// Places in use, and places there are. A connection keeps its place until another takes it.
    pub(super) fn fill(&self) -> (u64, u64) {
        let (mut used, mut places) = (0, 0);
        for hash in self.0.words().chunks_exact(SET).flat_map(|set| &set[HASHES..HASHES + WAYS]) {
            places += 1;
            used += u64::from(hash.load(Acquire) != 0);
        }
        (used, places)
    }
}

/// The connection at a place of a set, if one is followed there.
fn read(set: &[AtomicU64], way: usize) -> Option<Followed> {
    if set[HASHES + way].load(Acquire) == 0 {
        return None;
    }
    let Glance { hash, source, destination, ports, head_since, stage, local, kept } = (0..TRIES).find_map(|_| {
        let settled = settled(set, way);
        if settled.is_none() {
            thread::yield_now();
        }
        settled
    })?;
    if hash == 0 || stage < stage::FOLLOWED {
        return None;
    }
    let tuple = Tuple { source, destination, ports };
    Some(Followed {
        peer: SocketAddr::new(address(source, tuple.is_v6()), tuple.source_port()),
        local: SocketAddr::new(address(destination, tuple.is_v6()), tuple.destination_port()),
        head_since: (head_since != 0).then_some(head_since),
        has_socket: local != 0,
        refused: stage == stage::REFUSED,
        kept: kept != 0,
    })
}

/// What lies at a place, if no CPU is at work there: what was so before and after the set was free was so then, since no
/// connection comes back with the same times.
fn settled(set: &[AtomicU64], way: usize) -> Option<Glance> {
    let look = || glance(&set[HASHES + way], &set[FLOWS + way * FLOW..][..FLOW]);
    let (before, held, after) = (look(), set[LOCK].load(Acquire), look());
    (held == 0 && before == after).then_some(before)
}

/// What is read of a place.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Glance {
    hash: u64,
    source: [u64; 2],
    destination: [u64; 2],
    ports: u64,
    head_since: u64,
    stage: u32,
    local: u32,
    kept: u32,
}

fn glance(hash: &AtomicU64, flow: &[AtomicU64]) -> Glance {
    let word = |offset: usize| flow[offset / WORD].load(Acquire);
    let half = |offset: usize| {
        let halves = word(offset).to_ne_bytes();
        let at = offset % WORD;
        u32::from_ne_bytes([halves[at], halves[at + 1], halves[at + 2], halves[at + 3]])
    };
    let tuple = offset_of!(Flow, tuple);
    let pair = |offset: usize| [word(tuple + offset), word(tuple + offset + WORD)];
    Glance {
        hash: hash.load(Acquire),
        source: pair(offset_of!(Tuple, source)),
        destination: pair(offset_of!(Tuple, destination)),
        ports: word(tuple + offset_of!(Tuple, ports)),
        head_since: word(offset_of!(Flow, head_since)),
        stage: half(offset_of!(Flow, stage)),
        local: half(offset_of!(Flow, local)),
        kept: half(offset_of!(Flow, shift) + offset_of!(Shift, is_kept)),
    }
}

/// An address as a [`Tuple`] holds it: in network order in memory, IPv4 in the lower half of the first word.
fn address(words: [u64; 2], is_v6: bool) -> IpAddr {
    let [first, second] = words.map(u64::to_ne_bytes);
    match is_v6 {
        false => [first[0], first[1], first[2], first[3]].into(),
        true => {
            let mut bytes = [0; 16];
            bytes[..WORD].copy_from_slice(&first);
            bytes[WORD..].copy_from_slice(&second);
            bytes.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::hint::spin_loop;
    use std::sync::atomic::{
        AtomicBool,
        Ordering::{Relaxed, Release},
    };

    /// States of a place that a reader is to see while it is written.
    const SEEN: usize = 100;

    /// Turns of a loop from one of these states to the next.
    const PAUSE: usize = 100;

    /// A set as the program writes it, word by word.
    fn words(set: &Set) -> Vec<AtomicU64> {
        // SAFETY: a set is integers without padding, a whole number of words, and lives through the copy.
        let words = unsafe { std::slice::from_raw_parts(std::ptr::from_ref(set).cast::<u64>(), SET) };
        words.iter().map(|&word| AtomicU64::new(word)).collect()
    }

    fn ports(source: u16, destination: u16, v6: bool) -> u64 {
        u64::from(v6) << 63 | u64::from(source) << 32 | u64::from(destination)
    }

    fn set() -> Set {
        let mut set = Set::default();
        let v4 = Tuple {
            source: [u64::from_ne_bytes([10, 0, 0, 2, 0, 0, 0, 0]), 0],
            destination: [u64::from_ne_bytes([10, 0, 0, 1, 0, 0, 0, 0]), 0],
            ports: ports(41_000, 8000, false),
        };
        set.hashes[1] = 5;
        let shift = Shift { is_kept: 1, ..Shift::NONE };
        set.flows[1] = Flow { tuple: v4, head_since: 77, stage: stage::FOLLOWED, local: 1, shift, ..Flow::default() };
        let half = u64::from_ne_bytes([0xfd, 0x77, 0, 0, 0, 0, 0, 0]);
        let end = |last| [half, u64::from_ne_bytes([0, 0, 0, 0, 0, 0, 0, last])];
        let v6 = Tuple { source: end(2), destination: end(1), ports: ports(41_001, 8001, true) };
        set.hashes[6] = 6;
        set.flows[6] = Flow { tuple: v6, stage: stage::FOLLOWED, ..Flow::default() };
        set.hashes[0] = 9;
        set.flows[0] = Flow { tuple: v4, stage: stage::FREE, ..Flow::default() };
        set.hashes[4] = 9;
        set.flows[4] = Flow { tuple: v4, head_since: 78, stage: stage::REFUSED, ..Flow::default() };
        // Left of a connection that has gone.
        set.flows[7] = set.flows[1];
        set
    }

    #[test]
    fn what_is_followed_or_refused_is_read_with_its_ends_and_its_head() {
        let set = words(&set());
        let found: Vec<Followed> = (0..WAYS).filter_map(|way| read(&set, way)).collect();
        let end = |text: &str| text.parse().expect("an address");
        let v4 = Followed {
            peer: end("10.0.0.2:41000"),
            local: end("10.0.0.1:8000"),
            head_since: Some(77),
            has_socket: true,
            refused: false,
            kept: true,
        };
        let refused = Followed { head_since: Some(78), has_socket: false, refused: true, kept: false, ..v4 };
        let v6 = Followed {
            peer: end("[fd77::2]:41001"),
            local: end("[fd77::1]:8001"),
            head_since: None,
            has_socket: false,
            refused: false,
            kept: false,
        };
        assert_eq!(found, [v4, refused, v6]);
    }

    #[test]
    fn a_place_that_is_written_meanwhile_never_gives_a_mixture() {
        let set = words(&set());
        let source = &set[FLOWS + FLOW + offset_of!(Flow, tuple) / WORD];
        let since = &set[FLOWS + FLOW + offset_of!(Flow, head_since) / WORD];
        let write = |round: u32| {
            set[LOCK].store(1, Release);
            let [first, second, third, fourth] = round.to_be_bytes();
            source.store(u64::from_ne_bytes([first, second, third, fourth, 0, 0, 0, 0]), Release);
            since.store(round.into(), Release);
            set[LOCK].store(0, Release);
        };
        write(1);
        let (enough, mut seen, mut mixture) = (AtomicBool::new(false), HashSet::new(), None);
        thread::scope(|scope| {
            // On a busy machine it may get its turn late, so it goes on until it has been seen at work.
            let rounds = (2..=u32::MAX).take_while(|_| !enough.load(Relaxed));
            scope.spawn(|| {
                rounds.for_each(|round| {
                    write(round);
                    // As the program has other things to do in between.
                    (0..PAUSE).for_each(|_| spin_loop());
                });
            });
            while seen.len() < SEEN && mixture.is_none() {
                let Some(found) = read(&set, 1) else { continue };
                match found.peer.ip() {
                    IpAddr::V4(address) if found.head_since == Some(address.to_bits().into()) => {
                        seen.insert(address);
                    }
                    _ => mixture = Some(found),
                }
            }
            enough.store(true, Relaxed);
        });
        assert_eq!(mixture, None, "a mixture");
    }

    #[test]
    fn a_set_that_stays_held_is_left_out() {
        let set = words(&set());
        set[LOCK].store(1, Release);
        assert_eq!(read(&set, 1), None);
    }
}
