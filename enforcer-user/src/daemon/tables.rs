//! The store's content as it lies in the maps: thin, since what is decided about it is decided elsewhere.
//!
//! A change is a list of [`Step`]s, each of which the kernel sees whole or not at all; if one fails, those before it are
//! undone. At a start the maps, which an earlier daemon may have filled, are brought to what the store says, without
//! touching a meter.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Instant;

use enforcer_ebpf::abi::{self, Buckets, Host, Key, KeyTag, Meter, Policy, Scope, Service, scope};
use enforcer_ebpf::http::host;

use super::retired::Retired;
use super::rulebook::{Tenant, Terms, tallies_of_service, unix_ns};
use super::slots::Slots;
use super::trial::Laid;
use crate::config::{self, Guarded, Mode};
use crate::kernel::{Error, Kernel};
use crate::store;

/// Most buckets that are forgotten at once.
const SWEPT: usize = 4096;

/// One change of the maps, with what it takes to undo it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A principal that is new: its meter is cleared, then it is put under its terms.
    Principal { index: u32, terms: Box<Terms> },
    /// A principal that goes from one's terms to another's by one store; its meter goes on.
    Terms { index: u32, from: Box<Terms>, to: Box<Terms> },
    /// A key that is new.
    Insert { tag: KeyTag, key: HeldKey },
    /// A key that is revoked.
    Remove { tag: KeyTag, key: HeldKey },
    /// A key that is changed.
    Replace { tag: KeyTag, from: HeldKey, to: HeldKey },
}

impl Step {
    /// Whether both are written in one call.
    fn is_written_with(&self, other: &Self) -> bool {
        let is_plain = |step: &Self| matches!(step, Self::Insert { key: HeldKey { limits: None, .. }, .. });
        let is_principal = |step: &Self| matches!(step, Self::Principal { .. });
        is_plain(self) && is_plain(other) || is_principal(self) && is_principal(other)
    }
}

/// A key as it is to lie in the maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HeldKey {
    /// Its value, but for the slot of its own limits.
    pub(super) value: Key,
    /// Its own limits.
    pub(super) limits: Option<Box<Terms>>,
}

impl HeldKey {
    pub(super) fn of(row: &store::Key) -> Self {
        let value = Key {
            principal: row.principal,
            flags: if row.disabled { Key::DISABLED } else { 0 },
            not_before: row.not_before.map_or(0, unix_ns),
            expires: row.expires.map_or(u64::MAX, unix_ns),
            policy: 0,
            reserved: 0,
        };
        Self { value, limits: row.limits.as_ref().map(|limits| Box::new(Terms::of_key(limits))) }
    }
}

/// Where is counted what a key uses of its own limits.
fn own_scope(KeyTag(subject): KeyTag) -> Scope {
    Scope { rule: scope::KEY, subject }
}

/// Where a service is in the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seat {
    /// Index in [`abi::map::SERVICES`].
    pub(super) slot: u32,
    /// [`Service::number`].
    pub(super) number: u32,
    /// [`Service::leader`].
    pub(super) leader: u32,
    /// [`abi::Ruleset::leaf`].
    pub(super) place: u32,
}

/// The maps, and which policy lies where in them.
#[derive(Debug)]
pub(super) struct Tables {
    kernel: Kernel,
    /// The services that are guarded, by name.
    seats: BTreeMap<String, Seat>,
    slots: Slots,
    /// The slots of the limits of keys that have some of their own.
    of_keys: HashMap<KeyTag, u32>,
    /// Where the rules that hold lie.
    laid: Laid,
    /// Number of the last layout of paths, from 1 on: what began under one that is gone is to be known by it.
    layout: u16,
    /// The limits of those that do not hold any more.
    retired: Retired,
}

impl Seat {
    /// Whether its ports lead to it, and not to another one first.
    pub(super) const fn leads(&self) -> bool {
        self.number == self.leader
    }
}

/// Whether it depends on a request's host whether a service of these ports is asked.
fn has_hosts(services: &[Guarded], guarded: &Guarded) -> bool {
    services.iter().any(|other| other.ports == guarded.ports && !other.hosts.is_empty())
}

/// A service as the kernel reads it, but for its numbers. One that only observes refuses nothing that is for its hosts; but
/// where another of the same ports refuses, all that is before the host of a request is known is refused or not for both.
fn composed(services: &[Guarded], guarded: &Guarded) -> Service {
    let mode = config::mode_of_ports(services, guarded);
    let spares = mode == Mode::Enforce && guarded.mode == Mode::Observe;
    let mut service = Guarded { mode, ..guarded.clone() }.service();
    if spares {
        service.flags |= Service::SPARE;
    }
    // What translates for those whose connections are kept finds the one that leads by the port.
    let mut same = services.iter().filter(|other| other.ports == guarded.ports);
    let keeps = same.any(|other| other.service().flags & Service::KEEP != 0);
    service.flags |= if keeps { Service::KEEP } else { 0 };
    service
}

impl Tables {
    /// Brings the maps to what the store says: missing entries are made, entries that are too many are removed, and
    /// what is right already stays untouched.
    pub(super) fn reconcile(
        kernel: Kernel,
        services: &[Guarded],
        numbers: &BTreeMap<String, u32>,
        principals: &[(u32, Terms)],
        keys: &[store::Key],
    ) -> Result<Self, Error> {
        let slots = Slots::new(abi::POLICIES);
        let (seats, laid) = (BTreeMap::new(), Laid::default());
        let mut tables =
            Self { kernel, seats, slots, of_keys: HashMap::new(), laid, layout: 0, retired: Retired::default() };
        tables.recall_rules()?;
        tables.seat(services, numbers)?;
        // Revoked keys go first: they are the ones that would be served wrongly.
        let mut wanted: HashMap<KeyTag, HeldKey> = keys.iter().map(|row| (row.tag, HeldKey::of(row))).collect();
        let (mut freed, mut changed) = (Vec::new(), Vec::new());
        for (tag, value) in tables.kernel.keys()? {
            tables.adopt(value.policy)?;
            let Some(right) = wanted.remove(&tag) else {
                tables.kernel.remove_key(tag)?;
                tables.forget_key(tag);
                freed.push(value.policy);
                continue;
            };
            if right.limits.is_some() || right.value != value {
                if value.policy != 0 {
                    tables.of_keys.insert(tag, value.policy);
                }
                changed.push((tag, right));
            }
        }
        tables.reconcile_principals(principals)?;
        freed.into_iter().for_each(|slot| tables.displace(slot));
        let (plain, limited): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|(_, key)| key.limits.is_none());
        for (tag, key) in changed.iter().chain(&limited) {
            tables.write_key(*tag, key)?;
        }
        let plain: Vec<(KeyTag, Key)> = plain.into_iter().map(|(tag, key)| (tag, key.value)).collect();
        tables.kernel.insert_keys(&plain)?;
        Ok(tables)
    }

    /// Gives each service, with its number, the slot that an earlier daemon has left it, or one that none is in.
    fn seat(&mut self, services: &[Guarded], numbers: &BTreeMap<String, u32>) -> Result<(), Error> {
        let mut left: HashMap<u32, u32> = HashMap::new();
        for slot in 1..abi::SERVICES {
            let Service { number, .. } = self.kernel.service(slot)?;
            if number != 0 {
                left.insert(number, slot);
            }
        }
        let taken: HashSet<u32> = left.values().copied().collect();
        let mut free = (1..abi::SERVICES / 2).filter(|slot| !taken.contains(slot));
        for (name, &number) in numbers {
            let slot = match left.get(&number) {
                _ if number == 0 => 0,
                Some(&slot) => slot,
                None => {
                    let slot =
                        free.next().ok_or(Error::Full { map: abi::map::SERVICES, capacity: abi::SERVICES / 2 })?;
                    self.kernel.clear_totals(slot)?;
                    tallies_of_service(slot).try_for_each(|index| self.kernel.clear_tally(index))?;
                    slot
                }
            };
            let own = services.iter().position(|guarded| guarded.name == *name);
            let (leader, place) = own.map_or((number, 0), |own| {
                let leader = config::leader(services, &services[own]).and_then(|leader| numbers.get(&leader.name));
                let before = services[..own].iter().filter(|other| other.ports == services[own].ports);
                (leader.copied().unwrap_or(number), before.count() as u32)
            });
            self.seats.insert(name.clone(), Seat { slot, number, leader, place });
        }
        Ok(())
    }

    /// Writes what a configuration says of the services; the rules of each stay.
    pub(super) fn set_services(&mut self, services: &[Guarded]) -> Result<(), super::Error> {
        for (Seat { slot, number, leader, .. }, guarded) in self.seated(services) {
            let answers = self.kernel.set_answers(slot, &guarded.answers.compile()?)?;
            let Service { rules, rules_trial, flags, .. } = self.kernel.service(slot)?;
            let mut service = Service { answers, rules, rules_trial, number, leader, ..composed(services, guarded) };
            if number == leader && has_hosts(services, guarded) {
                // Where hosts are not asked for yet, they are once their services have rules: see `set_hosts`.
                service.flags |= flags & Service::HOSTS;
            }
            self.kernel.set_service(slot, &service)?;
        }
        Ok(())
    }

    /// The services that are guarded, each with its seat.
    fn seated<'s>(&self, services: &'s [Guarded]) -> Vec<(Seat, &'s Guarded)> {
        services.iter().filter_map(|guarded| Some((*self.seats.get(&guarded.name)?, guarded))).collect()
    }

    /// Says which service each host is of, and lets the services that others share their ports with ask for it. What was said
    /// of other hosts before stays.
    pub(super) fn set_hosts(&mut self, services: &[Guarded], secret: [u64; 2]) -> Result<(), Error> {
        for (host, slot) in self.hosts(services, secret) {
            self.kernel.set_host(host, slot)?;
        }
        for (seat, guarded) in self.seated(services) {
            if seat.leads() && has_hosts(services, guarded) {
                let service = self.kernel.service(seat.slot)?;
                self.kernel.set_service(seat.slot, &Service { flags: service.flags | Service::HOSTS, ..service })?;
            }
        }
        Ok(())
    }

    /// Forgets the hosts that are no service's any more: of those ports that stay their requests are refused from now on, or
    /// are for the service that takes all others.
    pub(super) fn clear_hosts(&mut self, services: &[Guarded], secret: [u64; 2]) -> Result<(), Error> {
        let wanted = self.hosts(services, secret);
        for host in self.kernel.hosts()?.into_iter().filter(|host| !wanted.contains_key(host)) {
            self.kernel.remove_host(host)?;
        }
        Ok(())
    }

    /// The slot of each host.
    fn hosts(&self, services: &[Guarded], secret: [u64; 2]) -> HashMap<Host, u32> {
        let mut hosts = HashMap::new();
        for (seat, guarded) in self.seated(services).into_iter().filter(|(_, guarded)| has_hosts(services, guarded)) {
            let mut add = |name| hosts.insert(Host { leader: u64::from(seat.leader), name }, seat.slot);
            if guarded.hosts.is_empty() {
                add([0; 2]);
            }
            for name in &guarded.hosts {
                add(host::tag(secret, name.as_str()).0);
            }
        }
        hosts
    }

    /// Guards the ports of the services, and no others.
    pub(super) fn set_ports(&mut self, services: &[Guarded]) -> Result<(), Error> {
        let seated = self.seated(services).into_iter().filter(|(seat, _)| seat.leads());
        let ports: Vec<(u32, &[u16])> = seated.map(|(seat, guarded)| (seat.slot, &guarded.ports[..])).collect();
        self.kernel.set_ports(&ports)
    }

    /// Empties the slots of services that are not guarded any more: nothing may lead to them.
    pub(super) fn clear_seats(&mut self) -> Result<(), Error> {
        let taken: HashSet<u32> = self.seats.values().map(|seat| seat.slot).collect();
        for slot in (0..abi::SERVICES).filter(|slot| !taken.contains(slot)) {
            let Service { number, rules, answers, .. } = self.kernel.service(slot)?;
            if number != 0 || rules != 0 {
                self.kernel.set_service(slot, &Service { answers, ..Service::DEFAULT })?;
            }
        }
        Ok(())
    }

    /// The services that are guarded, by name.
    pub(super) fn seats(&self) -> &BTreeMap<String, Seat> {
        &self.seats
    }

    /// Writes a key, and its own limits into a slot before.
    fn write_key(&mut self, tag: KeyTag, key: &HeldKey) -> Result<(), Error> {
        let HeldKey { value, limits } = key;
        let policy = match limits {
            Some(terms) => self.place(terms)?,
            None => 0,
        };
        if let Err(error) = self.kernel.insert_key(tag, Key { policy, ..*value }) {
            self.displace(policy);
            return Err(error);
        }
        let before = if policy == 0 { self.of_keys.remove(&tag) } else { self.of_keys.insert(tag, policy) };
        self.displace(before.unwrap_or(0));
        Ok(())
    }

    /// Removes a key; what it has used stays until [`Tables::forget`].
    fn remove_key(&mut self, tag: KeyTag) -> Result<(), Error> {
        self.kernel.remove_key(tag)?;
        let before = self.of_keys.remove(&tag);
        self.displace(before.unwrap_or(0));
        Ok(())
    }

    /// Forgets what was counted of keys and limits that are gone, once the steps that took them away are for good.
    pub(super) fn forget(&mut self, steps: &[Step]) {
        for step in steps {
            match step {
                Step::Remove { tag, .. } => self.forget_key(*tag),
                Step::Replace { tag, from, to } if from.limits.is_some() && to.limits.is_none() => {
                    self.kernel.remove_buckets(own_scope(*tag));
                }
                _ => {}
            }
        }
    }

    fn forget_key(&mut self, tag: KeyTag) {
        self.kernel.remove_buckets(own_scope(tag));
        for Seat { number, .. } in self.seats.values() {
            let rule = scope::of_service(scope::SOURCES_OF_KEY, *number);
            self.kernel.remove_buckets(Scope { rule, subject: tag.0 });
        }
    }

    /// What a key has used of its own limits.
    pub(super) fn buckets_of_key(&self, tag: KeyTag) -> Result<Buckets, Error> {
        Ok(self.kernel.buckets(own_scope(tag))?.unwrap_or_default())
    }

    fn reconcile_principals(&mut self, principals: &[(u32, Terms)]) -> Result<(), Error> {
        // All slots that are named must be known before the first is given out.
        let mut named = HashMap::new();
        for index in 0..abi::PRINCIPALS {
            let abi::Principal { policy: slot, trial } = self.kernel.principal(index)?;
            if trial != 0 {
                // Nothing is on trial any more, and what is next has nothing to do with it.
                self.kernel.set_principal(index, abi::Principal { policy: slot, trial: 0 })?;
            }
            if slot != 0 {
                named.insert(index, slot);
            }
        }
        self.slots.reserve(principals.len());
        let last = named.values().max().map_or(0, |last| last.saturating_add(1));
        let policies = self.kernel.policies(last)?;
        named.values().try_for_each(|slot| self.adopt_of(*slot, &policies))?;
        let wanted = self.place_all(principals.iter().map(|(_, terms)| terms))?;
        for ((index, _), wanted) in principals.iter().zip(wanted) {
            let slot = named.remove(index);
            if slot == Some(wanted) {
                self.displace(wanted);
                continue;
            }
            if slot.is_none() {
                self.kernel.clear_meter(*index)?;
            }
            self.kernel.set_principal(*index, abi::Principal { policy: wanted, trial: 0 })?;
            self.displace(slot.unwrap_or(0));
        }
        for (index, slot) in named {
            self.kernel.set_principal(index, abi::Principal::default())?;
            self.displace(slot);
        }
        Ok(())
    }

    /// Takes note that a slot is named that an earlier daemon has written, and those that it names.
    pub(super) fn adopt(&mut self, slot: u32) -> Result<(), Error> {
        if slot == 0 || slot >= abi::POLICIES {
            return Ok(());
        }
        let policy = self.kernel.policy(slot)?;
        self.slots.adopt(slot, &policy);
        for other in [policy.candidate, policy.next, policy.tenant] {
            self.adopt(other)?;
        }
        Ok(())
    }

    /// Likewise, of a slot whose policy may be among the first that were read before.
    fn adopt_of(&mut self, slot: u32, policies: &[Policy]) -> Result<(), Error> {
        let Some(policy) = policies.get(slot as usize).filter(|_| slot != 0) else { return self.adopt(slot) };
        self.slots.adopt(slot, policy);
        [policy.candidate, policy.next, policy.tenant].into_iter().try_for_each(|part| self.adopt_of(part, policies))
    }

    /// A slot for one more that names these terms, whose parts have slots of their own.
    pub(super) fn place(&mut self, terms: &Terms) -> Result<u32, Error> {
        let slots = self.place_all([terms])?;
        Ok(slots[0])
    }

    /// A slot for each of these terms, likewise; all or none.
    fn place_all<'t>(&mut self, all: impl IntoIterator<Item = &'t Terms>) -> Result<Vec<u32>, Error> {
        let (mut slots, mut unwritten) = (Vec::new(), Vec::new());
        let allotted = all.into_iter().try_for_each(|terms| {
            slots.push(self.allot(terms, &mut unwritten)?);
            Ok(())
        });
        // Nothing names the slots yet.
        match allotted.and_then(|()| self.kernel.set_policies(&unwritten)) {
            Ok(()) => Ok(slots),
            Err(error) => {
                slots.into_iter().for_each(|slot| self.displace(slot));
                Err(error)
            }
        }
    }

    /// Finds a slot for terms, and takes note of what is to be written before anything names it.
    fn allot(&mut self, terms: &Terms, unwritten: &mut Vec<(u32, Policy)>) -> Result<u32, Error> {
        let Terms { limits, candidate, next, tenant } = terms;
        let mut policy = *limits;
        let mut parts = Vec::new();
        let allotted = (|| {
            if let Some(candidate) = candidate {
                policy.candidate = self.allot_one(candidate, unwritten)?;
                parts.push(policy.candidate);
            }
            if let Some((until, next)) = next {
                policy.until = *until;
                policy.next = self.allot(next, unwritten)?;
                parts.push(policy.next);
            }
            if let Some(Tenant { scope, terms }) = tenant {
                policy.tenant = self.allot(terms, unwritten)?;
                policy.tenant_scope = *scope;
                parts.push(policy.tenant);
            }
            self.allot_one(&policy, unwritten)
        })();
        if allotted.is_err() {
            parts.into_iter().for_each(|slot| self.displace(slot));
        }
        allotted
    }

    fn allot_one(&mut self, policy: &Policy, unwritten: &mut Vec<(u32, Policy)>) -> Result<u32, Error> {
        let full = Error::Full { map: abi::map::POLICIES, capacity: abi::POLICIES };
        let slot = self.slots.acquire(policy, Instant::now()).ok_or(full)?;
        if slot.write {
            unwritten.push((slot.number, *policy));
        }
        Ok(slot.number)
    }

    /// Takes note that one less names a slot, and with it its parts.
    pub(super) fn displace(&mut self, slot: u32) {
        let Some(&policy) = self.slots.held(slot) else { return };
        self.slots.release(slot, Instant::now());
        for part in [policy.candidate, policy.next, policy.tenant] {
            self.displace(part);
        }
    }

    /// Puts a principal under terms; the slot that it named before is the caller's to displace.
    fn assign(&mut self, index: u32, terms: &Terms) -> Result<(), Error> {
        let slot = self.place(terms)?;
        let assigned = self.kernel.set_principal(index, abi::Principal { policy: slot, trial: 0 });
        if assigned.is_err() {
            self.displace(slot);
        }
        assigned
    }

    /// Applies all steps, or none. What is new of one kind and stands together is written in one call.
    pub(super) fn apply(&mut self, steps: &[Step]) -> Result<(), Error> {
        let mut done = 0;
        for alike in steps.chunk_by(|one, next| one.is_written_with(next)) {
            let applied = match alike {
                [step] => self.step(step),
                [Step::Insert { .. }, ..] => self.insert_all(alike),
                _ => self.begin_all(alike),
            };
            if let Err(error) = applied {
                self.undo(&steps[..done]);
                return Err(error);
            }
            done += alike.len();
        }
        Ok(())
    }

    /// Adds keys that have no limits of their own, all or none.
    fn insert_all(&mut self, steps: &[Step]) -> Result<(), Error> {
        let added = steps.iter().filter_map(|step| match step {
            Step::Insert { tag, key } => Some((*tag, key.value)),
            _ => None,
        });
        let inserted = self.kernel.insert_keys(&added.collect::<Vec<_>>());
        if inserted.is_err() {
            // Those that were not written are not there, which is no error.
            self.undo(steps);
        }
        inserted
    }

    /// Puts principals that are new under their terms, all or none.
    fn begin_all(&mut self, steps: &[Step]) -> Result<(), Error> {
        let begun = steps.iter().filter_map(|step| match step {
            Step::Principal { index, terms } => Some((*index, &**terms)),
            _ => None,
        });
        let begun: Vec<(u32, &Terms)> = begun.collect();
        let slots = self.place_all(begun.iter().map(|(_, terms)| *terms))?;
        for (done, ((index, _), slot)) in begun.iter().zip(&slots).enumerate() {
            let principal = abi::Principal { policy: *slot, trial: 0 };
            let set = self.kernel.clear_meter(*index).and_then(|()| self.kernel.set_principal(*index, principal));
            if let Err(error) = set {
                self.undo(&steps[..done]);
                slots[done..].iter().for_each(|slot| self.displace(*slot));
                return Err(error);
            }
        }
        Ok(())
    }

    /// Undoes steps that were applied, last first.
    pub(super) fn undo(&mut self, steps: &[Step]) {
        for step in steps.iter().rev() {
            let undone = match step {
                Step::Principal { index, .. } => self.withdraw(*index),
                Step::Terms { index, from, to } => {
                    self.step(&Step::Terms { index: *index, from: to.clone(), to: from.clone() })
                }
                Step::Insert { tag, .. } => self.remove_key(*tag),
                Step::Remove { tag, key } | Step::Replace { tag, from: key, .. } => self.write_key(*tag, key),
            };
            if let Err(error) = undone {
                tracing::error!(
                    "a change could not be undone, restart the daemon to bring the maps to the store: {error}"
                );
            }
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), Error> {
        match step {
            Step::Principal { index, terms } => {
                self.kernel.clear_meter(*index)?;
                self.assign(*index, terms)
            }
            Step::Terms { index, from: _, to } => {
                let before = self.kernel.principal(*index)?.policy;
                self.assign(*index, to)?;
                self.displace(before);
                Ok(())
            }
            Step::Insert { tag, key } | Step::Replace { tag, to: key, .. } => self.write_key(*tag, key),
            Step::Remove { tag, .. } => self.remove_key(*tag),
        }
    }

    pub(super) fn withdraw(&mut self, index: u32) -> Result<(), Error> {
        let slot = self.kernel.principal(index)?.policy;
        self.kernel.set_principal(index, abi::Principal::default())?;
        self.displace(slot);
        Ok(())
    }

    /// A principal's meter.
    pub(super) fn meter(&self, index: u32) -> Result<Meter, Error> {
        self.kernel.meter(index)
    }

    /// Where the rules that hold lie.
    pub(super) fn laid(&self) -> &Laid {
        &self.laid
    }

    /// Likewise, when others come.
    pub(super) fn laid_mut(&mut self) -> &mut Laid {
        &mut self.laid
    }

    /// The number of another layout of paths.
    pub(super) fn next_layout(&mut self) -> u16 {
        self.layout = self.layout.wrapping_add(1).max(1);
        self.layout
    }

    /// Takes note of a layout that an earlier daemon has made.
    pub(super) fn recall_layout(&mut self, layout: u16) {
        self.layout = self.layout.max(layout);
    }

    /// The limits of rules that do not hold any more, when others come.
    pub(super) fn retired_mut(&mut self) -> &mut Retired {
        &mut self.retired
    }

    /// Forgets some of what was used of limits that no rules have any more, and of which nothing counts.
    pub(super) fn sweep_buckets(&mut self, now: u64) -> Result<(), Error> {
        let due = self.retired.due(now);
        if due.is_empty() {
            return Ok(());
        }
        let is_due = |scope: &Scope| u32::try_from(scope.rule).is_ok_and(|rule| due.contains(&rule));
        if self.kernel.remove_some_buckets(is_due, SWEPT)? < SWEPT {
            self.retired.forget(&due);
        }
        Ok(())
    }

    /// The kernel, for what needs no slots.
    pub(super) fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// The kernel, to configure and to attach it.
    pub(super) fn kernel_mut(&mut self) -> &mut Kernel {
        &mut self.kernel
    }

    /// Gives the kernel back.
    pub(super) fn into_kernel(self) -> Kernel {
        self.kernel
    }
}
