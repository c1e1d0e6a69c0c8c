//! The maps go from one policy to another at one word: what is new lies ready beside what holds, until the map TRIAL lets
//! all of it hold at once, for good or for a time after which it ends by itself, also without a daemon.

use std::collections::{HashMap, HashSet};

use enforcer_ebpf::abi::{self, Client, Extent, Leaf, Per, Rule, Ruleset, Share, State};

use super::retired::Scopes;
use super::rulebook::{Chapter, Groups, Rulebook, Terms, idle_after};
use super::tables::Tables;
use crate::kernel::{self, Error, Paths};
use crate::policy::document::Policy;
use crate::policy::exemptions::{self, Entry};
use crate::policy::routes::Automaton;
use crate::policy::service::OwnLimit;
use crate::store::Placed;

/// What holds in TRIAL for what is only being moved over.
const FOR_GOOD: u64 = u64::MAX;

/// A policy that holds for a time, and what held before.
#[derive(Debug)]
pub(super) struct Trial {
    /// The policy.
    pub(super) policy: Policy,
    /// Its numbers, which the store does not have yet.
    pub(super) placed: Placed,
    /// What its principals are under beside what it says of each.
    pub(super) groups: Groups,
    /// When it ends by itself, in ns of CLOCK_BOOTTIME.
    pub(super) until: u64,
    pub(super) switch: Switch,
}

/// A change of principals' terms and of rules that lies ready.
#[derive(Debug)]
pub(super) struct Switch {
    principals: Vec<Moved>,
    /// Principals that are removed once it holds for good.
    removed: Vec<u32>,
    rules: Laid,
}

/// A principal that goes from one slot to another.
#[derive(Clone, Copy, Debug)]
struct Moved {
    index: u32,
    from: u32,
    to: u32,
}

/// Which slots and places a rulebook has.
#[derive(Clone, Debug, Default)]
pub(super) struct Laid {
    services: Vec<LaidService>,
    policies: Vec<u32>,
    clients: Vec<(Client, Share)>,
    extents: [Extent; 3],
    /// The limits of rules that count for named subjects.
    scopes: Scopes,
    /// Entries of the exemptions, and of the proxies under the bits of the services' rules.
    exempt: Vec<Entry>,
    proxies: Vec<Entry>,
}

/// Which set of rules a service is under.
#[derive(Clone, Copy, Debug)]
struct LaidService {
    slot: u32,
    ruleset: u32,
    /// [`Ruleset::trusts`].
    trusts: u64,
}

/// A principal whose terms a policy changes.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) index: u32,
    /// Whether its meter is to be cleared: nobody has had the index.
    pub(super) is_new: bool,
    pub(super) terms: Terms,
}

impl Tables {
    /// Lays out a policy beside the one that holds.
    pub(super) fn lay_out(&mut self, book: &Rulebook, changes: &[Change], removed: Vec<u32>) -> Result<Switch, Error> {
        let mut switch = Switch { principals: Vec::new(), removed, rules: Laid::default() };
        let laid = self.lay_principals(changes, &mut switch.principals).and_then(|()| self.lay_rules(book));
        match laid {
            Ok(rules) => {
                self.retired_mut().hold(&rules.scopes);
                switch.rules = rules;
                Ok(switch)
            }
            Err(error) => {
                self.take_up(&switch.principals);
                Err(error)
            }
        }
    }

    fn lay_principals(&mut self, changes: &[Change], moved: &mut Vec<Moved>) -> Result<(), Error> {
        for Change { index, is_new, terms } in changes {
            if *is_new {
                self.kernel_mut().clear_meter(*index)?;
            }
            let from = self.kernel().principal(*index)?.policy;
            let to = self.place(terms)?;
            moved.push(Moved { index: *index, from, to });
            self.kernel_mut().set_principal(*index, abi::Principal { policy: from, trial: to })?;
        }
        Ok(())
    }

    /// Takes principals' new slots away again.
    fn take_up(&mut self, moved: &[Moved]) {
        for Moved { index, from, to } in moved {
            if let Err(error) = self.kernel_mut().set_principal(*index, abi::Principal { policy: *from, trial: 0 }) {
                tracing::error!("principal {index} keeps a policy that was on trial: {error}");
            }
            self.displace(*to);
        }
    }

    fn lay_rules(&mut self, book: &Rulebook) -> Result<Laid, Error> {
        let mut laid = Laid::default();
        match self.write_rules(book, &mut laid) {
            Ok(()) => Ok(laid),
            Err(error) => {
                if let Err(error) = self.leave_trial(&laid) {
                    tracing::error!("a service keeps rules that were on trial: {error}");
                }
                self.take_up_rules(&laid);
                Err(error)
            }
        }
    }

    fn write_rules(&mut self, book: &Rulebook, laid: &mut Laid) -> Result<(), Error> {
        let held = self.laid().clone();
        let mut shares = Vec::with_capacity(book.clients.len());
        for (client, number, terms) in &book.clients {
            shares.push((*client, Share { policy: self.lay_terms(Some(terms), laid)?, number: *number }));
        }
        for scope in &book.ahead {
            self.kernel_mut().open_buckets(*scope)?;
        }
        for (number, until) in &book.exemptions {
            self.kernel_mut().set_exemption(*number, *until)?;
        }
        laid.extents = places(book, &held);
        let mut next = laid.extents.map(|extent| extent.first);
        let mut free = held.free_rulesets();
        let mut bits = held.free_bits();
        let mut roots = HashMap::new();
        for chapter in &book.chapters {
            let rules = self.lay_chapter(book, chapter, &mut next, laid)?;
            let routes = *roots.entry(chapter.leader).or_insert_with(|| match rules.routes {
                0 => 0,
                first => first | u32::from(self.next_layout()) << Ruleset::LAYOUT,
            });
            let full = Error::Full { map: abi::map::RULESETS, capacity: abi::RULESETS };
            let ruleset = free.next().ok_or(full)?;
            let trusts = match chapter.proxies.is_empty() {
                true => 0,
                false => bits.next().ok_or(Error::Full { map: abi::map::PROXIES, capacity: u64::BITS })?,
            };
            let proxies = chapter.proxies.iter().map(|entry| Entry { value: entry.value * trusts, ..*entry });
            laid.proxies = exemptions::together(&laid.proxies, &proxies.collect::<Vec<_>>());
            self.kernel_mut().set_ruleset(ruleset, &Ruleset { trusts, routes, ..rules })?;
            laid.services.push(LaidService { slot: chapter.slot, ruleset, trusts });
        }
        laid.exempt.clone_from(&book.exempt);
        let kernel = self.kernel_mut();
        kernel.set_exempt(&exemptions::together(&held.exempt, &laid.exempt))?;
        kernel.set_proxies(&exemptions::together(&held.proxies, &laid.proxies))?;
        for (client, share) in &shares {
            kernel.set_client(*client, *share)?;
        }
        laid.clients = shares;
        for LaidService { slot, ruleset, .. } in &laid.services {
            let service = kernel.service(*slot)?;
            kernel.set_service(*slot, &abi::Service { rules_trial: *ruleset, ..service })?;
        }
        Ok(())
    }

    /// Writes the paths of a service behind those before, and what its rules name; the rules, without what depends on other
    /// services.
    fn lay_chapter(
        &mut self,
        book: &Rulebook,
        chapter: &Chapter,
        next: &mut [u32; 3],
        laid: &mut Laid,
    ) -> Result<Ruleset, Error> {
        let mut rules = chapter.rules;
        for (place, limit) in [
            (&mut rules.source, OwnLimit::Source),
            (&mut rules.service, OwnLimit::Ceiling),
            (&mut rules.guesses, OwnLimit::Guesses),
            (&mut rules.preflight, OwnLimit::Preflight),
            (&mut rules.unkeyed, OwnLimit::Unkeyed),
            (&mut rules.unregistered, OwnLimit::Unregistered),
        ] {
            *place = self.lay_terms(chapter.own.get(&limit), laid)?;
        }
        if chapter.own.contains_key(&OwnLimit::Unregistered) {
            rules.unregistered_admission = self.lay_terms(Some(&book.admission_of_keys(chapter)), laid)?;
        }
        rules.admission = self.lay_terms(Some(&book.admission()), laid)?;
        let mut charges = Vec::with_capacity(chapter.charges.len());
        for (rule, terms) in &chapter.charges {
            if let Some(Terms { limits, candidate, .. }) = terms {
                laid.count_for(rule, [Some(limits), candidate.as_ref()]);
            }
            charges.push(Rule { policy: self.lay_terms(terms.as_ref(), laid)?, ..*rule });
        }
        rules.extents = std::array::from_fn(|list| {
            let extent = Extent { first: next[list], len: sizes(chapter)[list] };
            next[list] += extent.len;
            extent
        });
        let [states, leaves, numbers] =
            rules.extents.map(|Extent { first, len }| (first..first + len).collect::<Vec<_>>());
        rules.routes = states.first().copied().unwrap_or(0);
        let placed = chapter.paths.placed(&states, &leaves, &numbers);
        self.kernel_mut().set_paths(&Paths {
            states: states.iter().copied().zip(placed.states).collect::<Vec<(u32, State)>>(),
            edges: placed.edges,
            leaves: leaves.iter().copied().zip(placed.leaves).collect::<Vec<(u32, Leaf)>>(),
            rules: numbers.iter().copied().zip(charges).collect(),
        })?;
        Ok(rules)
    }

    /// A slot for terms that a rulebook names; 0 for none.
    fn lay_terms(&mut self, terms: Option<&Terms>, laid: &mut Laid) -> Result<u32, Error> {
        let Some(terms) = terms else { return Ok(0) };
        let slot = self.place(terms)?;
        laid.policies.push(slot);
        Ok(slot)
    }

    /// Gives a rulebook's slots back, and what leads on from its states.
    fn take_up_rules(&mut self, laid: &Laid) {
        for slot in &laid.policies {
            self.displace(*slot);
        }
        let [states, ..] = laid.extents;
        let is_old = |state: u32| state.wrapping_sub(states.first) < states.len;
        if let Err(error) = self.kernel_mut().remove_edges(is_old) {
            tracing::error!("paths of a policy that does not hold any more stay in the maps: {error}");
        }
    }

    /// Takes note of limits that rules had which do not hold any more.
    fn retire(&mut self, rules: &Laid) {
        let held = self.laid().scopes.clone();
        self.retired_mut().retire(&rules.scopes, &held, kernel::now());
    }

    /// Lets a policy hold from now on, all of it at once: for good, or until then in ns of CLOCK_BOOTTIME.
    pub(super) fn switch(&mut self, until: Option<u64>) -> Result<(), Error> {
        self.kernel_mut().set_trial(until.unwrap_or(FOR_GOOD))
    }

    /// Makes what is on trial what holds.
    pub(super) fn settle(&mut self, switch: Switch) -> Result<(), Error> {
        self.kernel_mut().set_trial(FOR_GOOD)?;
        let Switch { principals, removed, rules } = switch;
        for Moved { index, to, .. } in &principals {
            self.kernel_mut().set_principal(*index, abi::Principal { policy: *to, trial: 0 })?;
        }
        for index in &removed {
            self.withdraw(*index)?;
        }
        for LaidService { slot, ruleset, .. } in &rules.services {
            let service = self.kernel().service(*slot)?;
            self.kernel_mut().set_service(*slot, &abi::Service { rules: *ruleset, rules_trial: 0, ..service })?;
        }
        self.kernel_mut().set_trial(0)?;
        for Moved { from, .. } in principals {
            self.displace(from);
        }
        let held = std::mem::replace(self.laid_mut(), rules);
        self.retire(&held);
        self.set_prefixes()?;
        let known: HashSet<Client> = self.laid().clients.iter().map(|(client, _)| *client).collect();
        for (client, _) in held.clients.iter().filter(|(client, _)| !known.contains(client)) {
            self.kernel_mut().remove_client(*client);
        }
        self.take_up_rules(&held);
        Ok(())
    }

    /// Ends what is on trial.
    pub(super) fn revert(&mut self, switch: Switch) -> Result<(), Error> {
        self.kernel_mut().set_trial(0)?;
        self.retire(&switch.rules);
        self.leave_trial(&switch.rules)?;
        self.take_up(&switch.principals);
        self.take_up_rules(&switch.rules);
        self.set_prefixes()?;
        for (client, share) in self.laid().clients.clone() {
            self.kernel_mut().set_client(client, share)?;
        }
        Ok(())
    }

    /// Takes the rules that lay ready away from the services.
    fn leave_trial(&mut self, laid: &Laid) -> Result<(), Error> {
        for LaidService { slot, .. } in &laid.services {
            let service = self.kernel().service(*slot)?;
            self.kernel_mut().set_service(*slot, &abi::Service { rules_trial: 0, ..service })?;
        }
        Ok(())
    }

    /// Leaves of exemptions and proxies those of the rules that hold.
    fn set_prefixes(&mut self) -> Result<(), Error> {
        let Laid { exempt, proxies, .. } = self.laid().clone();
        self.kernel_mut().set_exempt(&exempt)?;
        self.kernel_mut().set_proxies(&proxies)
    }

    /// Takes note of the rules that an earlier daemon has left, and of the slots that they name, lest those are given out
    /// while requests are judged by them; ends what it had on trial, which can be laid out anew.
    pub(super) fn recall_rules(&mut self) -> Result<(), Error> {
        let clients = self.kernel().clients()?;
        let mut policies: Vec<u32> = clients.iter().map(|(_, share)| share.policy).collect();
        let (mut services, mut extents) = (Vec::new(), [Extent::default(); 3]);
        let mut rules_of_paths = Vec::new();
        for slot in 0..abi::SERVICES {
            let service = self.kernel().service(slot)?;
            if service.rules == 0 {
                continue;
            }
            let rules = self.kernel().ruleset(service.rules)?;
            policies.extend([rules.source, rules.service, rules.guesses, rules.preflight, rules.admission]);
            policies.extend([rules.unkeyed, rules.unregistered, rules.unregistered_admission]);
            let [.., places] = rules.extents;
            for place in places.first..places.first.saturating_add(places.len).min(abi::RULES) {
                let rule = self.kernel().rule(place)?;
                policies.push(rule.policy);
                rules_of_paths.push(rule);
            }
            extents = std::array::from_fn(|list| over_both(extents[list], rules.extents[list]));
            services.push(LaidService { slot, ruleset: service.rules, trusts: rules.trusts });
        }
        for slot in &policies {
            self.adopt(*slot)?;
        }
        // Of all that were: a path may have been begun under a trial that is over.
        for ruleset in 1..abi::RULESETS {
            let rules = self.kernel().ruleset(ruleset)?;
            self.recall_layout((rules.routes >> Ruleset::LAYOUT) as u16);
        }
        let trusted = services.iter().fold(0, |bits, service| bits | service.trusts);
        let [exempt, mut proxies] = self.kernel().prefixes()?;
        for entry in &mut proxies {
            entry.value &= trusted;
        }
        let [states, ..] = extents;
        let mut laid = Laid { services, policies, clients, extents, exempt, proxies, ..Laid::default() };
        for rule in rules_of_paths.iter().filter(|rule| rule.policy != 0) {
            let limits = self.kernel().policy(rule.policy)?;
            let candidate = self.kernel().policy(limits.candidate)?;
            laid.count_for(rule, [Some(&limits), Some(&candidate)]);
        }
        *self.laid_mut() = laid;
        self.kernel_mut().set_trial(0)?;
        for slot in 0..abi::SERVICES {
            let service = self.kernel().service(slot)?;
            if service.rules_trial != 0 {
                self.kernel_mut().set_service(slot, &abi::Service { rules_trial: 0, ..service })?;
            }
        }
        // What leads on from other states would lead on from those that are laid out in their places.
        self.kernel_mut().remove_edges(|state| state.wrapping_sub(states.first) >= states.len)
    }
}

impl Laid {
    /// Takes note of the policies that a rule's limits are counted by.
    fn count_for(&mut self, rule: &Rule, policies: [Option<&abi::Policy>; 2]) {
        if rule.per == Per::Source as u32 {
            return;
        }
        let longest = policies.into_iter().flatten().map(idle_after).max().unwrap_or(0);
        let before = self.scopes.entry(rule.scope).or_default();
        *before = longest.max(*before);
    }

    /// Sets of rules that no service is under, longest free first.
    fn free_rulesets(&self) -> impl Iterator<Item = u32> + use<> {
        let held: HashSet<u32> = self.services.iter().map(|service| service.ruleset).collect();
        let last = self.services.iter().map(|service| service.ruleset).max().unwrap_or(0);
        let around = (0..abi::RULESETS - 1).map(move |place| (last + place) % (abi::RULESETS - 1) + 1);
        around.filter(move |ruleset| !held.contains(ruleset))
    }

    /// Values of [`Ruleset::trusts`] that no rules have.
    fn free_bits(&self) -> impl Iterator<Item = u64> + use<> {
        let held = self.services.iter().fold(0, |bits, service| bits | service.trusts);
        (0..u64::BITS).map(|bit| 1 << bit).filter(move |bit| held & bit == 0)
    }
}

/// How many states, leaves and rules a service has.
fn sizes(chapter: &Chapter) -> [u32; 3] {
    let Automaton { states, leaves, rules, .. } = &chapter.paths;
    [states.len(), leaves.len(), rules.len()].map(|len| len as u32)
}

/// Places for a rulebook's states, leaves and rules, beside those of the one that holds.
fn places(book: &Rulebook, held: &Laid) -> [Extent; 3] {
    let rooms = [abi::STATES, abi::LEAVES, abi::RULES];
    std::array::from_fn(|list| {
        let len = book.chapters.iter().map(|chapter| sizes(chapter)[list]).sum();
        let Extent { first, len: before } = held.extents[list];
        // Behind those that hold, or from the first on: a rulebook has half of the room at most.
        let behind = (first + before).max(1);
        Extent { first: if len <= rooms[list].saturating_sub(behind) { behind } else { 1 }, len }
    })
}

/// The entries from the first of either to the last: what services have lies side by side.
fn over_both(one: Extent, other: Extent) -> Extent {
    match (one.len, other.len) {
        (0, _) => other,
        (_, 0) => one,
        _ => {
            let first = one.first.min(other.first);
            let end = (one.first + one.len).max(other.first.saturating_add(other.len));
            Extent { first, len: end - first }
        }
    }
}
