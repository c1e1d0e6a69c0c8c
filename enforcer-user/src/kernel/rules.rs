//! The maps of rules: paths, sets of rules, exemptions, proxies, clients, and what is used of their limits.
//!
//! What the program may be reading is never edited: a new set of rules lies beside the old one until a service names it.

use std::{mem::MaybeUninit, os::fd::AsFd as _};

use aya::{
    Ebpf,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, PerCpuValues, lpm_trie::Key},
};
use enforcer_ebpf::abi::{
    self, Buckets, CONNECTION_SETS, Client, Edge, Leaf, Rule, Ruleset, SUBJECT_SETS, Scope, Share, Sighting, State,
    map, tally,
};
use enforcer_ebpf::connection::{Connections, Subjects, WAYS};

use crate::policy::exemptions::Entry;

use super::{
    Error, Kernel, MapFill, syscall,
    tables::{check, errno, failed, take, typed},
};

// include/uapi/linux/bpf.h
const BPF_NOEXIST: u64 = 1;

/// The maps, whose types have been checked.
pub(super) struct Rules {
    rulesets: Array<MapData, Ruleset>,
    routes: HashMap<MapData, Edge, u64>,
    states: Array<MapData, State>,
    leaves: Array<MapData, Leaf>,
    rules: Array<MapData, Rule>,
    exempt: LpmTrie<MapData, [u8; 16], u64>,
    exemptions: Array<MapData, u64>,
    proxies: LpmTrie<MapData, [u8; 16], u64>,
    clients: HashMap<MapData, Client, u64>,
    buckets: HashMap<MapData, Scope, Buckets>,
    source_buckets: HashMap<MapData, Scope, Buckets>,
    sightings: HashMap<MapData, Sighting, u64>,
    connections: Map,
    subjects: Map,
    tallies: PerCpuArray<MapData, [u64; tally::LEN]>,
    trial: Array<MapData, u64>,
}

/// An automaton and the rules of its paths, each entry with its place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paths {
    /// The states.
    pub states: Vec<(u32, State)>,
    /// What leads on from them.
    pub edges: Vec<(Edge, u64)>,
    /// The rules of their paths.
    pub leaves: Vec<(u32, Leaf)>,
    /// The rules.
    pub rules: Vec<(u32, Rule)>,
}

impl Rules {
    /// Takes the maps out of the loaded object.
    pub(super) fn open(object: &mut Ebpf) -> Result<Self, Error> {
        let source_buckets: Map = take(object, map::SOURCE_BUCKETS)?;
        Ok(Self {
            rulesets: typed(object, map::RULESETS)?,
            routes: typed(object, map::ROUTES)?,
            states: typed(object, map::STATES)?,
            leaves: typed(object, map::LEAVES)?,
            rules: typed(object, map::RULES)?,
            exempt: typed(object, map::EXEMPT)?,
            exemptions: typed(object, map::EXEMPTIONS)?,
            proxies: typed(object, map::PROXIES)?,
            clients: typed(object, map::CLIENTS)?,
            buckets: typed(object, map::BUCKETS)?,
            source_buckets: source_buckets.try_into().map_err(|error| failed(map::SOURCE_BUCKETS, "opened", error))?,
            sightings: typed(object, map::SIGHTINGS)?,
            connections: take(object, map::CONNECTIONS)?,
            subjects: take(object, map::SUBJECTS)?,
            tallies: typed(object, map::TALLIES)?,
            trial: typed(object, map::TRIAL)?,
        })
    }

    /// How full the maps are whose entries clients or operators make.
    ///
    /// Walks the maps: not for every request.
    ///
    /// # Errors
    /// A failed read.
    pub(super) fn fill(&self) -> Result<Vec<MapFill>, Error> {
        let fill =
            |name, entries: usize, capacity| MapFill { name, entries: entries as u64, capacity: u64::from(capacity) };
        let connections = used(map::CONNECTIONS, &self.connections, CONNECTION_SETS, |set: &Connections| {
            set.ways.iter().filter(|way| way.hash != 0).count()
        })?;
        let subjects = used(map::SUBJECTS, &self.subjects, SUBJECT_SETS, |set: &Subjects| {
            set.ways.iter().filter(|way| way.count != 0).count()
        })?;
        Ok(vec![
            fill(map::BUCKETS, self.buckets.keys().count(), abi::BUCKETS),
            fill(map::SOURCE_BUCKETS, self.source_buckets.keys().count(), abi::SOURCE_BUCKETS),
            fill(map::SIGHTINGS, self.sightings.keys().count(), abi::SIGHTINGS),
            fill(map::ROUTES, self.routes.keys().count(), abi::ROUTES),
            fill(map::CLIENTS, self.clients.keys().count(), abi::CLIENTS),
            fill(map::CONNECTIONS, connections, CONNECTION_SETS * WAYS as u32),
            fill(map::SUBJECTS, subjects, SUBJECT_SETS * WAYS as u32),
        ])
    }
}

/// Places in use in a table of sets: all of it is copied at once, since a value with a lock cannot be mapped.
fn used<T: Copy>(name: &'static str, map: &Map, sets: u32, count: impl Fn(&T) -> usize) -> Result<usize, Error> {
    let Map::Array(data) = map else { return Err(Error::Foreign { what: name }) };
    let mut keys = vec![MaybeUninit::<u32>::uninit(); sets as usize];
    let mut values = vec![MaybeUninit::<T>::uninit(); sets as usize];
    let found = syscall::lookup_batch(data.fd().as_fd(), &mut keys, &mut values)
        .map_err(|error| failed(name, "read", MapError::IoError(error)))?;
    // SAFETY: the kernel has written that many; any bytes are a value.
    Ok(values.iter().take(found).map(|value| count(unsafe { value.assume_init_ref() })).sum())
}

impl Kernel {
    /// The set of rules in a slot.
    ///
    /// # Errors
    /// A slot beyond the end of the map, or a failed read.
    pub fn ruleset(&self, slot: u32) -> Result<Ruleset, Error> {
        check(map::RULESETS, slot, abi::RULESETS)?;
        self.tables.rules.rulesets.get(&slot, 0).map_err(|error| failed(map::RULESETS, "read", error))
    }

    /// Writes a set of rules into a slot that no service names.
    ///
    /// # Errors
    /// A slot beyond the end of the map, or a failed write.
    pub fn set_ruleset(&mut self, slot: u32, rules: &Ruleset) -> Result<(), Error> {
        check(map::RULESETS, slot, abi::RULESETS)?;
        self.tables.rules.rulesets.set(slot, rules, 0).map_err(|error| failed(map::RULESETS, "written", error))
    }

    /// Writes an automaton into places that no set of rules leads to.
    ///
    /// # Errors
    /// A place beyond the end of a map, [`Error::Full`], or a failed write.
    pub fn set_paths(&mut self, paths: &Paths) -> Result<(), Error> {
        let Rules { routes, states, leaves, rules, .. } = &mut self.tables.rules;
        for (index, rule) in &paths.rules {
            check(map::RULES, *index, abi::RULES)?;
            rules.set(*index, rule, 0).map_err(|error| failed(map::RULES, "written", error))?;
        }
        for (index, leaf) in &paths.leaves {
            check(map::LEAVES, *index, abi::LEAVES)?;
            leaves.set(*index, leaf, 0).map_err(|error| failed(map::LEAVES, "written", error))?;
        }
        for (index, state) in &paths.states {
            check(map::STATES, *index, abi::STATES)?;
            states.set(*index, state, 0).map_err(|error| failed(map::STATES, "written", error))?;
        }
        for (edge, state) in &paths.edges {
            routes.insert(edge, state, 0).map_err(|error| failed(map::ROUTES, "written", error))?;
        }
        Ok(())
    }

    /// The rule at a place.
    ///
    /// # Errors
    /// A place beyond the end of the map, or a failed read.
    pub fn rule(&self, place: u32) -> Result<Rule, Error> {
        check(map::RULES, place, abi::RULES)?;
        self.tables.rules.rules.get(&place, 0).map_err(|error| failed(map::RULES, "read", error))
    }

    /// Removes what leads on from the states for which `is_old` says so: nothing leads to them any more.
    ///
    /// # Errors
    /// A failed read or write.
    pub fn remove_edges(&mut self, is_old: impl Fn(u32) -> bool) -> Result<(), Error> {
        let routes = &mut self.tables.rules.routes;
        let there: Vec<Edge> =
            routes.keys().collect::<Result<_, _>>().map_err(|error| failed(map::ROUTES, "read", error))?;
        for edge in there.into_iter().filter(|edge| is_old(edge.state as u32)) {
            routes.remove(&edge).map_err(|error| failed(map::ROUTES, "written", error))?;
        }
        Ok(())
    }

    /// Says which exemptions are for which addresses, as bits, in place of all that was said before.
    ///
    /// # Errors
    /// More ranges than there is room for, or a failed write.
    pub fn set_exempt(&mut self, entries: &[Entry]) -> Result<(), Error> {
        replace(&mut self.tables.rules.exempt, map::EXEMPT, entries)
    }

    /// Says when an exemption ends, in ns of Unix time.
    ///
    /// # Errors
    /// An index beyond the end of the map, or a failed write.
    pub fn set_exemption(&mut self, index: u32, until: u64) -> Result<(), Error> {
        check(map::EXEMPTIONS, index, abi::EXEMPTIONS)?;
        self.tables.rules.exemptions.set(index, until, 0).map_err(|error| failed(map::EXEMPTIONS, "written", error))
    }

    /// Says whose `X-Forwarded-For` is believed by which rules, in place of all that was said before.
    ///
    /// # Errors
    /// More ranges than there is room for, or a failed write.
    pub fn set_proxies(&mut self, entries: &[Entry]) -> Result<(), Error> {
        replace(&mut self.tables.rules.proxies, map::PROXIES, entries)
    }

    /// Which exemptions are for which addresses, and whose `X-Forwarded-For` is believed by which rules.
    ///
    /// # Errors
    /// A failed read.
    pub fn prefixes(&self) -> Result<[Vec<Entry>; 2], Error> {
        let rules = &self.tables.rules;
        Ok([entries(&rules.exempt, map::EXEMPT)?, entries(&rules.proxies, map::PROXIES)?])
    }

    /// All declared clients.
    ///
    /// # Errors
    /// A failed read.
    pub fn clients(&self) -> Result<Vec<(Client, Share)>, Error> {
        let shares =
            self.tables.rules.clients.iter().map(|entry| entry.map(|(client, word)| (client, Share::from_word(word))));
        shares.collect::<Result<_, _>>().map_err(|error| failed(map::CLIENTS, "read", error))
    }

    /// Says what a client has.
    ///
    /// # Errors
    /// No room, or a failed write.
    pub fn set_client(&mut self, client: Client, share: Share) -> Result<(), Error> {
        let clients = &mut self.tables.rules.clients;
        clients.insert(client, share.to_word(), 0).map_err(|error| failed(map::CLIENTS, "written", error))
    }

    /// Forgets a client; one that is not there is no error.
    pub fn remove_client(&mut self, client: Client) {
        let _ = self.tables.rules.clients.remove(&client);
    }

    /// Says what is used by a named subject, in place of what was said before.
    ///
    /// # Errors
    /// No room, or a failed write.
    pub fn set_buckets(&mut self, scope: Scope, buckets: &Buckets) -> Result<(), Error> {
        let written = self.tables.rules.buckets.insert(scope, buckets, 0);
        written.map_err(|error| failed(map::BUCKETS, "written", error))
    }

    /// Makes buckets for a scope, if there are none.
    ///
    /// # Errors
    /// No room, or a failed write.
    pub fn open_buckets(&mut self, scope: Scope) -> Result<(), Error> {
        match self.tables.rules.buckets.insert(scope, Buckets::default(), BPF_NOEXIST) {
            Err(error) if self.buckets(scope)?.is_none() => match errno(&error) {
                Some(libc::E2BIG) => Err(Error::Full { map: map::BUCKETS, capacity: abi::BUCKETS }),
                _ => Err(failed(map::BUCKETS, "written", error)),
            },
            _ => Ok(()),
        }
    }

    /// What is used by a named subject; `None` if it has used nothing.
    ///
    /// # Errors
    /// A failed read.
    pub fn buckets(&self, scope: Scope) -> Result<Option<Buckets>, Error> {
        found(self.tables.rules.buckets.get(&scope, 0), map::BUCKETS)
    }

    /// Whether there is room for named subjects that have used nothing yet. Walks the map.
    #[must_use]
    pub fn has_room_for_buckets(&self) -> bool {
        self.tables.rules.buckets.keys().count() < abi::BUCKETS as usize
    }

    /// Forgets what a named subject that is gone has used. What is not there is no error: it has used nothing.
    pub fn remove_buckets(&mut self, scope: Scope) {
        let _ = self.tables.rules.buckets.remove(&scope);
    }

    /// Forgets what so many named subjects have used at most, of those for which `is_old` says so; how many there were. Nothing
    /// may be charging them: a program that still does would charge whoever gets the place next.
    ///
    /// # Errors
    /// A failed read.
    pub fn remove_some_buckets(&mut self, is_old: impl Fn(&Scope) -> bool, most: usize) -> Result<usize, Error> {
        let keys = self.tables.rules.buckets.keys();
        let old = keys.filter(|scope| scope.as_ref().map_or(true, &is_old)).take(most);
        let old: Vec<Scope> = old.collect::<Result<_, _>>().map_err(|error| failed(map::BUCKETS, "read", error))?;
        old.iter().for_each(|scope| self.remove_buckets(*scope));
        Ok(old.len())
    }

    /// What limits have refused, or would have, by [`tally`], summed over the CPUs.
    ///
    /// # Errors
    /// An index beyond the end of the map, or a failed read.
    pub fn tally(&self, index: u32) -> Result<[u64; tally::LEN], Error> {
        check(map::TALLIES, index, abi::TALLIES)?;
        let counts = self.tables.rules.tallies.get(&index, 0).map_err(|error| failed(map::TALLIES, "read", error))?;
        let sum = |place: usize| counts.iter().fold(0, |sum: u64, counts| sum.wrapping_add(counts[place]));
        Ok(std::array::from_fn(sum))
    }

    /// Sets counts of limits to nothing, for an index that is another rule's from now on.
    ///
    /// # Errors
    /// An index beyond the end of the map, or a failed write.
    pub fn clear_tally(&mut self, index: u32) -> Result<(), Error> {
        check(map::TALLIES, index, abi::TALLIES)?;
        let tallies = &mut self.tables.rules.tallies;
        let counts = tallies.get(&index, 0).map_err(|error| failed(map::TALLIES, "read", error))?;
        let none = PerCpuValues::try_from(vec![[0; tally::LEN]; counts.len()]);
        let none = none.map_err(|error| failed(map::TALLIES, "written", error.into()))?;
        tallies.set(index, none, 0).map_err(|error| failed(map::TALLIES, "written", error))
    }

    /// Until when what is on trial holds, in ns of CLOCK_BOOTTIME; 0 if nothing is.
    ///
    /// # Errors
    /// A failed read.
    pub fn trial(&self) -> Result<u64, Error> {
        self.tables.rules.trial.get(&0, 0).map_err(|error| failed(map::TRIAL, "read", error))
    }

    /// Lets what is on trial hold until then: of all of it at once, by one word.
    ///
    /// # Errors
    /// A failed write.
    pub fn set_trial(&mut self, until: u64) -> Result<(), Error> {
        self.tables.rules.trial.set(0, until, 0).map_err(|error| failed(map::TRIAL, "written", error))
    }
}

fn found(answer: Result<Buckets, aya::maps::MapError>, name: &'static str) -> Result<Option<Buckets>, Error> {
    match answer {
        Ok(buckets) => Ok(Some(buckets)),
        Err(aya::maps::MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(failed(name, "read", error)),
    }
}

/// Makes a trie hold exactly these, adding before it removes.
fn entries(trie: &LpmTrie<MapData, [u8; 16], u64>, name: &'static str) -> Result<Vec<Entry>, Error> {
    let entry = |(key, value): (Key<[u8; 16]>, u64)| Entry { bits: key.prefix_len(), address: key.data(), value };
    let all: Result<_, _> = trie.iter().map(|found| found.map(entry)).collect();
    all.map_err(|error| failed(name, "read", error))
}

fn replace(trie: &mut LpmTrie<MapData, [u8; 16], u64>, name: &'static str, entries: &[Entry]) -> Result<(), Error> {
    for Entry { bits, address, value } in entries {
        trie.insert(&Key::new(*bits, *address), value, 0).map_err(|error| failed(name, "written", error))?;
    }
    let there: Vec<Key<[u8; 16]>> =
        trie.keys().collect::<Result<_, _>>().map_err(|error| failed(name, "read", error))?;
    for key in there {
        if !entries.iter().any(|entry| (entry.bits, entry.address) == (key.prefix_len(), key.data())) {
            trie.remove(&key).map_err(|error| failed(name, "written", error))?;
        }
    }
    Ok(())
}
