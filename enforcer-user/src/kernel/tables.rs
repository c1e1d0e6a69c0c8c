//! The typed maps: what the daemon writes for the program, and what it reads of it.
//!
//! Each write is one entry and valid by itself, so the program never sees half of a change. METERS is mapped memory: a
//! principal is moved to another policy by one store, and a meter is read without a system call.

use std::{
    os::fd::AsFd as _,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::SystemTime,
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, IterableMap as _, Map, MapData, MapError, PerCpuArray, PerCpuValues},
};
use enforcer_ebpf::abi::{self, Answer, Host, Key, KeyTag, Policy, Principal, Service, map};
use enforcer_ebpf::judge::explain::Explanation;
use enforcer_ebpf::shortcut::WAYS;

use super::{
    Error, Kernel,
    connections::{self, Connections, Followed},
    counted::Counted,
    kept,
    mapped::Mapped,
    rules::Rules,
    shortcuts::Shortcuts,
    sources::Sources,
    syscall,
};

// include/uapi/linux/bpf.h
const BPF_NOEXIST: u64 = 1;
const BPF_EXIST: u64 = 2;

/// How full a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapFill {
    /// The map's name.
    pub name: &'static str,
    /// Entries in use.
    pub entries: u64,
    /// Entries there is room for.
    pub capacity: u64,
}

/// What tells the program the time of day, which it knows only since the boot.
#[derive(Clone, Debug)]
pub struct Clock(Arc<Mapped>);

impl Clock {
    /// Tells it the time. To be called now and then: the time of day is set, and slewed.
    pub fn set(&self) {
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let offset = (unix.as_nanos() as u64).wrapping_sub(super::now());
        for word in self.0.words() {
            word.store(offset, Relaxed);
        }
    }
}

/// The maps that the daemon reads and writes.
pub(super) struct Tables {
    services: Array<MapData, Service>,
    answers: Array<MapData, Answer>,
    clock: Clock,
    hosts: HashMap<MapData, Host, u64>,
    ports: Array<MapData, u32>,
    /// What `ports` holds.
    guarded: Vec<u32>,
    keys: HashMap<MapData, KeyTag, Key>,
    /// Entries of `keys`.
    key_count: u64,
    key_capacity: u32,
    shortcuts: Shortcuts,
    policies: Array<MapData, Policy>,
    pub(super) counted: Counted,
    totals: PerCpuArray<MapData, u64>,
    connections: Connections,
    pub(super) sources: Sources,
    pub(super) penalties: Array<MapData, u64>,
    pub(super) rules: Rules,
    pub(super) explanation: Array<MapData, Explanation>,
}

impl Tables {
    /// Takes the maps out of the loaded object.
    pub(super) fn open(object: &mut Ebpf) -> Result<Self, Error> {
        let ports: Array<MapData, u32> = typed(object, map::PORTS)?;
        let guarded = syscall::entries(ports.map().fd().as_fd(), ports.len() as usize);
        let guarded: Vec<(u32, u32)> = guarded.map_err(|error| failed(map::PORTS, "read", MapError::IoError(error)))?;
        let guarded = guarded.into_iter().map(|(_, service)| service).collect();
        let keys = take(object, map::KEYS)?;
        let Map::HashMap(data) = &keys else { return Err(Error::Foreign { what: map::KEYS }) };
        let info = data.info().map_err(|error| failed(map::KEYS, "asked about", error))?;
        let key_capacity = info.max_entries();
        let keys: HashMap<MapData, KeyTag, Key> =
            keys.try_into().map_err(|error| failed(map::KEYS, "opened", error))?;
        // Before its map is taken out of the object.
        let counted = Counted::open(object)?;
        let held = all(&keys, key_capacity)?;
        let shortcuts = Shortcuts::new(mapped_of(object, map::SHORTCUTS, WAYS)?, &counted.meters, &held);
        Ok(Self {
            services: typed(object, map::SERVICES)?,
            answers: typed(object, map::ANSWERS)?,
            hosts: typed(object, map::HOSTS)?,
            clock: Clock(Arc::new(mapped_of(object, map::CLOCK, 1)?)),
            ports,
            guarded,
            keys,
            key_count: held.len() as u64,
            key_capacity,
            shortcuts,
            policies: typed(object, map::POLICIES)?,
            counted,
            totals: typed(object, map::TOTALS)?,
            connections: Connections::new(mapped_of(object, map::FLOWS, connections::SET)?),
            sources: Sources::new(take(object, map::SOURCES)?)?,
            penalties: typed(object, map::PENALTIES)?,
            rules: Rules::open(object)?,
            explanation: typed(object, map::EXPLANATION)?,
        })
    }
}

impl Kernel {
    /// The service in a slot.
    ///
    /// # Errors
    /// A slot beyond the end of the map, or a failed read.
    pub fn service(&self, slot: u32) -> Result<Service, Error> {
        check(map::SERVICES, slot, abi::SERVICES)?;
        self.tables.services.get(&slot, 0).map_err(|error| failed(map::SERVICES, "read", error))
    }

    /// Writes a service. Where it keeps no connections any more, those that were kept end.
    ///
    /// # Errors
    /// A slot beyond the end of the map, or a failed read or write.
    pub fn set_service(&mut self, slot: u32, service: &Service) -> Result<(), Error> {
        let kept = self.service(slot)?.flags & Service::KEEP;
        let Tables { services, connections, guarded, .. } = &mut self.tables;
        let mut write = || services.set(slot, service, 0).map_err(|error| failed(map::SERVICES, "written", error));
        if kept & !service.flags == 0 {
            return write();
        }
        let is_of = |one: &Followed| guarded.get(usize::from(one.local.port())) == Some(&(slot + 1));
        kept::end_with(connections, is_of, write)
    }

    /// Writes the answers of the service in a slot, each at its [`abi::AnswerKind`]; gives the index of the first, for
    /// [`Service::answers`].
    ///
    /// There is room for two sets, and that in use is never edited: a program of an earlier daemon may be sending it.
    ///
    /// # Errors
    /// A slot or a kind beyond the end of the map, or a failed read or write.
    pub fn set_answers(&mut self, slot: u32, answers: &[(u32, Answer)]) -> Result<u32, Error> {
        check(map::SERVICES, slot, abi::SERVICES / 2)?;
        let service = self.service(slot)?;
        let table = &mut self.tables.answers;
        let mut same = true;
        for (kind, answer) in answers {
            check(map::ANSWERS, *kind, abi::ANSWERS_EACH)?;
            let index = service.answers + kind;
            same &= table.get(&index, 0).map_err(|error| failed(map::ANSWERS, "read", error))? == *answer;
        }
        if same {
            return Ok(service.answers);
        }
        let first = slot * abi::ANSWERS_EACH;
        let free = if service.answers == first { first + abi::ANSWERS / 2 } else { first };
        for (kind, answer) in answers {
            table.set(free + kind, answer, 0).map_err(|error| failed(map::ANSWERS, "written", error))?;
        }
        Ok(free)
    }

    /// What tells the program the time of day; it stays of use while this changes.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.tables.clock.clone()
    }

    /// Guards exactly these TCP ports, each with the service in its slot. All others become unguarded, and connections that
    /// were kept end where nobody goes on keeping them. No port that stays or goes to another service is unguarded meanwhile.
    ///
    /// # Errors
    /// A slot beyond the end of the map, or a failed read or write. Ports are added before others are taken away.
    pub fn set_ports(&mut self, services: &[(u32, &[u16])]) -> Result<(), Error> {
        let (mut wanted, mut kept) = (vec![0; usize::from(u16::MAX) + 1], vec![false; usize::from(u16::MAX) + 1]);
        for (slot, ports) in services {
            let keeps = self.service(*slot)?.flags & Service::KEEP != 0;
            for port in *ports {
                wanted[usize::from(*port)] = slot + 1;
                kept[usize::from(*port)] = keeps;
            }
        }
        let Tables { ports: table, guarded, connections, .. } = &mut self.tables;
        let changed = (0..=u16::MAX).filter(|&port| guarded[usize::from(port)] != wanted[usize::from(port)]);
        // Only where a port was guarded can connections have been kept.
        let is_lost = |port: u16| guarded[usize::from(port)] != 0 && !kept[usize::from(port)];
        let (lost, others): (Vec<u16>, Vec<u16>) = changed.partition(|&port| is_lost(port));
        let mut write = |ports: &[u16]| {
            for &port in ports {
                let value = wanted[usize::from(port)];
                table.set(u32::from(port), value, 0).map_err(|error| failed(map::PORTS, "written", error))?;
                guarded[usize::from(port)] = value;
            }
            Ok(())
        };
        write(&others)?;
        if lost.is_empty() {
            return Ok(());
        }
        kept::end_with(connections, |one| lost.contains(&one.local.port()), || write(&lost))
    }

    /// The hosts of all services.
    ///
    /// # Errors
    /// A failed read.
    pub fn hosts(&self) -> Result<Vec<Host>, Error> {
        let hosts: Result<_, MapError> = self.tables.hosts.keys().collect();
        hosts.map_err(|error| failed(map::HOSTS, "read", error))
    }

    /// Says that a host is of the service in a slot.
    ///
    /// # Errors
    /// A slot beyond the end of the map, no room, or a failed write.
    pub fn set_host(&mut self, host: Host, slot: u32) -> Result<(), Error> {
        check(map::SERVICES, slot, abi::SERVICES)?;
        let hosts = &mut self.tables.hosts;
        hosts.insert(host, u64::from(slot), 0).map_err(|error| failed(map::HOSTS, "written", error))
    }

    /// Forgets a host.
    ///
    /// # Errors
    /// A failed write.
    pub fn remove_host(&mut self, host: Host) -> Result<(), Error> {
        self.tables.hosts.remove(&host).map_err(|error| failed(map::HOSTS, "written", error))
    }

    /// All keys.
    ///
    /// # Errors
    /// A failed read.
    pub fn keys(&self) -> Result<Vec<(KeyTag, Key)>, Error> {
        all(&self.tables.keys, self.tables.key_capacity)
    }

    /// Adds a key, or replaces what is known of it.
    ///
    /// # Errors
    /// [`Error::Full`], or a failed write.
    pub fn insert_key(&mut self, tag: KeyTag, key: Key) -> Result<(), Error> {
        let Tables { keys, key_count, key_capacity, shortcuts, counted, .. } = &mut self.tables;
        shortcuts.close(tag);
        match keys.insert(tag, key, BPF_NOEXIST) {
            Ok(()) => *key_count += 1,
            Err(error) if errno(&error) == Some(libc::EEXIST) => {
                keys.insert(tag, key, BPF_EXIST).map_err(|error| failed(map::KEYS, "written", error))?;
            }
            Err(error) if errno(&error) == Some(libc::E2BIG) => {
                return Err(Error::Full { map: map::KEYS, capacity: *key_capacity });
            }
            Err(error) => return Err(failed(map::KEYS, "written", error)),
        }
        shortcuts.open(tag, &key, &counted.meters);
        Ok(())
    }

    /// Adds keys that are not there.
    ///
    /// # Errors
    /// [`Error::Full`], or a failed write: then some of them are there.
    pub fn insert_keys(&mut self, added: &[(KeyTag, Key)]) -> Result<(), Error> {
        let Tables { keys, key_count, key_capacity, shortcuts, counted, .. } = &mut self.tables;
        let (tags, values): (Vec<KeyTag>, Vec<Key>) = added.iter().copied().unzip();
        tags.iter().for_each(|tag| shortcuts.close(*tag));
        let written = syscall::update_batch(keys.map().fd().as_fd(), &tags, &values);
        let done = written.as_ref().map_or_else(|(done, _)| *done, |()| added.len());
        *key_count += done as u64;
        added[..done].iter().for_each(|(tag, key)| shortcuts.open(*tag, key, &counted.meters));
        written.map_err(|(_, error)| match error.raw_os_error() {
            Some(libc::E2BIG) => Error::Full { map: map::KEYS, capacity: *key_capacity },
            _ => failed(map::KEYS, "written", MapError::IoError(error)),
        })
    }

    /// Removes a key; one that is not there is no error.
    ///
    /// # Errors
    /// A failed write.
    pub fn remove_key(&mut self, tag: KeyTag) -> Result<(), Error> {
        self.tables.shortcuts.close(tag);
        match self.tables.keys.remove(&tag) {
            Ok(()) => {
                self.tables.key_count -= 1;
                Ok(())
            }
            Err(MapError::KeyNotFound) => Ok(()),
            Err(error) if errno(&error) == Some(libc::ENOENT) => Ok(()),
            Err(error) => Err(failed(map::KEYS, "written", error)),
        }
    }

    /// The policy in a slot.
    ///
    /// # Errors
    /// A slot beyond the end of the map, or a failed read.
    pub fn policy(&self, slot: u32) -> Result<Policy, Error> {
        check(map::POLICIES, slot, abi::POLICIES)?;
        self.tables.policies.get(&slot, 0).map_err(|error| failed(map::POLICIES, "read", error))
    }

    /// The policies in the first slots, so many at most.
    ///
    /// # Errors
    /// A failed read.
    pub fn policies(&self, most: u32) -> Result<Vec<Policy>, Error> {
        let entries = syscall::entries(self.tables.policies.map().fd().as_fd(), most.min(abi::POLICIES) as usize);
        let entries: Vec<(u32, Policy)> =
            entries.map_err(|error| failed(map::POLICIES, "read", MapError::IoError(error)))?;
        Ok(entries.into_iter().map(|(_, policy)| policy).collect())
    }

    /// Writes policies into slots that no principal names.
    ///
    /// # Errors
    /// A slot beyond the end of the map, or a failed write: then some of them are there.
    pub fn set_policies(&mut self, policies: &[(u32, Policy)]) -> Result<(), Error> {
        if let Some((slot, _)) = policies.iter().find(|(slot, _)| *slot >= abi::POLICIES) {
            return Err(out_of_range(map::POLICIES, *slot, abi::POLICIES as usize));
        }
        let (slots, values): (Vec<u32>, Vec<Policy>) = policies.iter().copied().unzip();
        let written = syscall::update_batch(self.tables.policies.map().fd().as_fd(), &slots, &values);
        written.map_err(|(_, error)| failed(map::POLICIES, "written", MapError::IoError(error)))
    }

    /// The counts of all that happened to the service in a slot, by [`enforcer_ebpf::verdict::Count::index`], summed over
    /// the CPUs; in slot 0 what happened to none, too.
    ///
    /// # Errors
    /// A slot beyond the end of the map, or a failed read.
    pub fn totals(&self, slot: u32) -> Result<[u64; abi::TOTALS as usize], Error> {
        check(map::TOTALS, slot, abi::SERVICES)?;
        let mut totals = [0u64; abi::TOTALS as usize];
        for (index, total) in (slot * abi::TOTALS..).zip(&mut totals) {
            let counts = self.tables.totals.get(&index, 0).map_err(|error| failed(map::TOTALS, "read", error))?;
            *total = counts.iter().fold(0, |sum, &count| sum.wrapping_add(count));
        }
        Ok(totals)
    }

    /// Sets those counts to nothing, for a slot that is another service's from now on.
    ///
    /// # Errors
    /// A slot beyond the end of the map, or a failed read or write.
    pub fn clear_totals(&mut self, slot: u32) -> Result<(), Error> {
        check(map::TOTALS, slot, abi::SERVICES)?;
        let totals = &mut self.tables.totals;
        for index in slot * abi::TOTALS..(slot + 1) * abi::TOTALS {
            let counts = totals.get(&index, 0).map_err(|error| failed(map::TOTALS, "read", error))?;
            let none = PerCpuValues::try_from(vec![0; counts.len()]);
            let none = none.map_err(|error| failed(map::TOTALS, "written", error.into()))?;
            totals.set(index, none, 0).map_err(|error| failed(map::TOTALS, "written", error))?;
        }
        Ok(())
    }

    /// How full the maps are: KEYS, METERS, POLICIES, FLOWS, BUCKETS, SOURCE_BUCKETS, SIGHTINGS, ROUTES, CLIENTS,
    /// CONNECTIONS, SUBJECTS.
    ///
    /// A principal counts while it is under a policy, a policy while a principal is under it, and a connection from its
    /// first data until another takes its place.
    ///
    /// # Errors
    /// A failed read.
    pub fn fill(&self) -> Result<Vec<MapFill>, Error> {
        let Tables { key_count, key_capacity, counted, connections, .. } = &self.tables;
        let mut named = vec![false; abi::POLICIES as usize];
        let (mut used, mut policies) = (0, 0);
        let meters = &counted.meters;
        for Principal { policy, .. } in meters.principals() {
            if policy == 0 {
                continue;
            }
            used += 1;
            if let Some(named) = named.get_mut(policy as usize).filter(|named| !**named) {
                *named = true;
                policies += 1;
            }
        }
        let capacity = meters.len() as u64;
        let (followed, room) = connections.fill();
        let mut fills = vec![
            MapFill { name: map::KEYS, entries: *key_count, capacity: u64::from(*key_capacity) },
            MapFill { name: map::METERS, entries: used, capacity },
            MapFill { name: map::POLICIES, entries: policies, capacity: u64::from(abi::POLICIES) },
            MapFill { name: map::FLOWS, entries: followed, capacity: room },
        ];
        fills.extend(self.tables.rules.fill()?);
        Ok(fills)
    }

    /// The connections that the program follows; the answer stays of use while this changes.
    #[must_use]
    pub fn connections(&self) -> Connections {
        self.tables.connections.clone()
    }
}

/// All keys.
fn all(keys: &HashMap<MapData, KeyTag, Key>, capacity: u32) -> Result<Vec<(KeyTag, Key)>, Error> {
    let entries = syscall::entries(keys.map().fd().as_fd(), capacity as usize);
    entries.map_err(|error| failed(map::KEYS, "read", MapError::IoError(error)))
}

pub(super) fn take(object: &mut Ebpf, name: &'static str) -> Result<Map, Error> {
    object.take_map(name).ok_or(Error::Foreign { what: name })
}

pub(super) fn typed<T: TryFrom<Map, Error = MapError>>(object: &mut Ebpf, name: &'static str) -> Result<T, Error> {
    take(object, name)?.try_into().map_err(|error| failed(name, "opened", error))
}

/// Maps an array of the object likewise. It stays in the object: a program that is verified later names
/// its maps by their descriptors.
pub(super) fn mapped_of(object: &Ebpf, name: &'static str, value_words: usize) -> Result<Mapped, Error> {
    mapped(object.map(name).ok_or(Error::Foreign { what: name })?, name, value_words)
}

/// Maps an array whose values are `value_words` words.
pub(super) fn mapped(map: &Map, name: &'static str, value_words: usize) -> Result<Mapped, Error> {
    let data = array(map, name)?;
    let info = data.info().map_err(|error| failed(name, "asked about", error))?;
    let value_size = value_words * size_of::<u64>();
    if info.value_size() as usize != value_size {
        let source = MapError::InvalidValueSize { size: info.value_size() as usize, expected: value_size };
        return Err(failed(name, "opened", source));
    }
    let words = info.max_entries() as usize * value_words;
    Mapped::new(data.fd().as_fd(), words).map_err(|error| failed(name, "mapped", MapError::IoError(error)))
}

fn array<'a>(map: &'a Map, name: &'static str) -> Result<&'a MapData, Error> {
    match map {
        Map::Array(data) => Ok(data),
        _ => Err(Error::Foreign { what: name }),
    }
}

pub(super) fn check(map: &'static str, index: u32, capacity: u32) -> Result<(), Error> {
    if index < capacity { Ok(()) } else { Err(Error::OutOfRange { map, index, capacity }) }
}

pub(super) fn out_of_range(map: &'static str, index: u32, capacity: usize) -> Error {
    Error::OutOfRange { map, index, capacity: capacity as u32 }
}

pub(super) fn failed(map: &'static str, action: &'static str, source: MapError) -> Error {
    Error::Map { map, action, source }
}

/// The number of the failed system call within a map's error.
pub(super) fn errno(error: &MapError) -> Option<i32> {
    match error {
        MapError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    }
}
