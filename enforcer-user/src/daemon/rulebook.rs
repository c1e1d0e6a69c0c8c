//! A policy as it is to lie in the maps, but for the slots and places that are given out when it is written.
//!
//! Pure: whoever calls has the policy and its numbers from the store, and writes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use enforcer_ebpf::abi::{self, Client, Per, Rule, Ruleset, Scope, Spread, scope};
use enforcer_ebpf::key;
use enforcer_ebpf::limit::{self, TICK_NS};
use jiff::Timestamp;

use super::tables::Seat;
use crate::config::Mode;
use crate::policy::document::{self, Charge, OTHER, Plan, Policy, Principal, Site};
use crate::policy::exemptions::{self, Entry};
use crate::policy::routes::{self, Automaton, Branch, Origin, Room, TooLarge};
use crate::policy::service::{self, FieldName, OWN_LIMITS, OwnLimit, ProxyProtocol, Service};
use crate::policy::{LimitName, Limits};
use crate::store::{Placed, PlacedPrincipal, PlacedQuota, PlacedSite};

/// First index in [`abi::map::TALLIES`] of plans; those below are scopes'.
const PLANS: u32 = abi::TALLIES / 2;
/// Indices for each service: the numbers of [`scope`] below [`scope::ROUTES`].
const EACH: u32 = scope::ROUTES as u32;
/// First index of what services count for themselves; only those of slot 0 lie among the scopes'.
const SERVICES: u32 = abi::TALLIES - abi::SERVICES * EACH;
/// Share of [`abi::map::SOURCE_BUCKETS`] that may be new within the longest window: the rest is for what an LRU table
/// holds back on each CPU.
const ADMITTED: u32 = abi::SOURCE_BUCKETS / 4 * 3;

/// Limits with what goes with them: each is a policy of its own in the maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Terms {
    /// The limits that hold, without the slots of the others.
    pub(super) limits: abi::Policy,
    /// What is counted beside them.
    pub(super) candidate: Option<abi::Policy>,
    /// When others hold in their place, in ns of CLOCK_BOOTTIME, and which.
    pub(super) next: Option<(u64, Box<Terms>)>,
    /// What holds beside them for all principals of a tenant together.
    pub(super) tenant: Option<Tenant>,
}

/// A tenant, as it lies in the maps. Most have many principals, all of which name the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tenant {
    /// [`Scope::rule`] of its buckets.
    pub(super) scope: u32,
    /// Its limits.
    pub(super) terms: Arc<Terms>,
}

/// What principals are under beside what is said of each, and what all requests of a service are.
#[derive(Clone, Debug, Default)]
pub(super) struct Groups {
    /// The plans, with the index of each in [`abi::map::TALLIES`].
    plans: BTreeMap<String, (Plan, u32)>,
    /// The tenants, with their limits in the order of their buckets.
    pub(super) tenants: BTreeMap<String, (Limits, Tenant)>,
    /// The ceilings of services that have one, likewise, with the services' numbers.
    pub(super) ceilings: BTreeMap<String, (Limits, u32)>,
}

impl Groups {
    /// The names of plans.
    pub(super) fn plans(&self) -> impl Iterator<Item = &String> {
        self.plans.keys()
    }

    /// Those of a policy with its numbers.
    pub(super) fn of(policy: &Policy, placed: &Placed) -> Self {
        let tenant = |(name, quota): (&String, &PlacedQuota)| {
            let mode = policy.tenants.get(name).map_or(Mode::Enforce, |tenant| tenant.mode);
            let PlacedQuota { scope, limits, candidate } = quota;
            let tally = tally_of_scope(u64::from(*scope));
            let terms = Terms::of(limits, LimitName::TENANT, mode, candidate.as_ref(), tally);
            (name.clone(), (limits.clone(), Tenant { scope: *scope, terms: Arc::new(terms) }))
        };
        let ceilings = placed.services.iter().filter_map(|(name, site)| {
            let limits = site.service.ceiling.clone()?;
            Some((name.clone(), (limits, site.number)))
        });
        Self {
            plans: tallied(&policy.plans).map(|(name, plan, tally)| (name.clone(), (plan.clone(), tally))).collect(),
            tenants: placed.tenants.iter().map(tenant).collect(),
            ceilings: ceilings.collect(),
        }
    }
}

/// What a policy's rules come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rulebook {
    /// Those of each service.
    pub(super) chapters: Vec<Chapter>,
    /// ns within which no source or key that is new may take the place of one that counts, in any service.
    window: u64,
    /// For which addresses which exemptions are.
    pub(super) exempt: Vec<Entry>,
    /// The number of each exemption, and when it ends in ns of Unix time.
    pub(super) exemptions: Vec<(u32, u64)>,
    /// What client ids have: the id, its number within its principal, and its limits.
    pub(super) clients: Vec<(Client, u32, Terms)>,
    /// Buckets that must be there before they are needed: those of all who come too late to have their own.
    pub(super) ahead: Vec<Scope>,
}

/// What a service's rules come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chapter {
    /// The slot of the service.
    pub(super) slot: u32,
    /// That of the service whose paths are its paths, too: its own, or that of a chapter before.
    pub(super) leader: u32,
    /// The rules, without slots and places.
    pub(super) rules: Ruleset,
    /// The limits that it has for itself.
    pub(super) own: BTreeMap<OwnLimit, Terms>,
    /// How many keys that are not registered have a count of their own.
    pub(super) max_keys: u32,
    /// The automaton of its paths and of those of the services that it leads; its rules have neither scope nor policy. Empty
    /// where another leads.
    pub(super) paths: Automaton,
    /// Scope, for whom, and limits of each of its rules.
    pub(super) charges: Vec<(Rule, Option<Terms>)>,
    /// Whose `X-Forwarded-For` is believed.
    pub(super) proxies: Vec<Entry>,
    /// ns within which as many sources may be new as have room.
    window: u64,
}

/// A time of day as the maps have it, ns of Unix time: 0 for all before 1970, and the end of time for all that these cannot
/// say, from 2554 on.
pub(super) fn unix_ns(time: Timestamp) -> u64 {
    u64::try_from(time.as_nanosecond().max(0)).unwrap_or(u64::MAX)
}

/// The index in [`abi::map::TALLIES`] of a scope's limits; 0 where there is no room.
pub(super) fn tally_of_scope(number: u64) -> u32 {
    u32::try_from(number).ok().filter(|number| *number < PLANS).unwrap_or(0)
}

/// The index in [`abi::map::TALLIES`] of what the service in a slot counts for itself, by its number in [`scope`].
pub(super) fn tally_of_service(slot: u32, number: u64) -> u32 {
    if slot == 0 { tally_of_scope(number) } else { SERVICES + slot * EACH + number as u32 }
}

/// All indices in [`abi::map::TALLIES`] of what the service in a slot counts for itself.
pub(super) fn tallies_of_service(slot: u32) -> impl Iterator<Item = u32> {
    (1..scope::ROUTES).map(move |number| tally_of_service(slot, number))
}

/// The plans, each with its index in [`abi::map::TALLIES`], by its place among their names; 0 where there is no room.
pub(super) fn tallied(plans: &BTreeMap<String, Plan>) -> impl Iterator<Item = (&String, &Plan, u32)> {
    let indices = (PLANS..SERVICES).chain(std::iter::repeat(0));
    plans.iter().zip(indices).map(|((name, plan), index)| (name, plan, index))
}

impl Terms {
    pub(super) fn of(limits: &Limits, name: LimitName, mode: Mode, candidate: Option<&Limits>, tally: u32) -> Self {
        let flags = abi::Policy::IN_USE | if mode == Mode::Observe { abi::Policy::OBSERVE } else { 0 };
        Self {
            limits: abi::Policy { flags, tally, ..limits.compile(name) },
            candidate: candidate.map(|limits| limits.compile(name)),
            next: None,
            tenant: None,
        }
    }

    /// Those of one key beside its principal's.
    pub(super) fn of_key(limits: &Limits) -> Self {
        Self::of(limits, LimitName::KEY, Mode::Enforce, None, tally_of_scope(scope::KEY))
    }

    /// Those of a principal.
    pub(super) fn of_principal(groups: &Groups, said: &Principal, placed: &PlacedPrincipal, now: Timestamp) -> Self {
        let Groups { plans, tenants, ceilings: _ } = groups;
        let tenant = said.tenant.as_ref().and_then(|name| tenants.get(name)).map(|(_, tenant)| tenant.clone());
        let terms = Self::of_one(plans, said, placed, now);
        let next = terms.next.map(|(until, next)| (until, Box::new(Self { tenant: tenant.clone(), ..*next })));
        Self { next, tenant, ..terms }
    }

    /// Likewise, without its tenant.
    fn of_one(
        plans: &BTreeMap<String, (Plan, u32)>,
        said: &Principal,
        placed: &PlacedPrincipal,
        now: Timestamp,
    ) -> Self {
        let plan = said.plan().and_then(|name| plans.get_key_value(name));
        let candidate = placed.candidate.as_ref();
        let own = || Self::of(&placed.limits, LimitName::DEFAULT, Mode::Enforce, candidate, 0);
        let Some((name, (plan, tally))) = plan else { return own() };
        let (label, tally) = (LimitName::of_plan(name), *tally);
        if !has_override(said, now) {
            return Self::of(&placed.limits, label, plan.mode, candidate, tally);
        }
        // In the place of a plan's limits stand some of the principal's own, which are enforced.
        let next = placed
            .next
            .as_ref()
            .map(|(until, limits)| (unix_ns(*until), Box::new(Self::of(limits, label, plan.mode, None, tally))));
        Self { next, ..own() }
    }
}

/// Whether a principal's own limits stand in the place of its plan's now.
fn has_override(said: &Principal, now: Timestamp) -> bool {
    match &said.terms {
        document::Terms::Own(_) => true,
        document::Terms::Plan { instead, .. } => {
            instead.as_ref().is_some_and(|instead| instead.until.is_none_or(|until| until > now))
        }
    }
}

/// What answers call a limit that a service has for itself.
const fn name_of(limit: OwnLimit) -> LimitName {
    match limit {
        OwnLimit::Ceiling => LimitName::SERVICE,
        OwnLimit::Source => LimitName::SOURCE,
        OwnLimit::Guesses => LimitName::GUESS,
        OwnLimit::Preflight => LimitName::PREFLIGHT,
        OwnLimit::Unkeyed => LimitName::UNKEYED,
        OwnLimit::Unregistered => LimitName::UNREGISTERED,
    }
}

/// One that the service in a slot has; `None` where there is nothing to count, or nobody to count it of.
fn own_terms(service: &Service, limit: OwnLimit, slot: u32) -> Option<Terms> {
    let (said, candidate) = (service.own(limit), service.candidates.get(&limit));
    let limits = match (limit, said) {
        (OwnLimit::Preflight | OwnLimit::Unkeyed, Some(Limits::Blocked)) | (OwnLimit::Unregistered, None) => {
            return None;
        }
        (_, None | Some(Limits::Unlimited)) if candidate.is_none() => return None,
        _ => said.unwrap_or(&Limits::Unlimited),
    };
    let mode = if service.observe.contains(&limit) { Mode::Observe } else { Mode::Enforce };
    Some(Terms::of(limits, name_of(limit), mode, candidate, tally_of_service(slot, limit.scope())))
}

/// A field's name, at most 31 bytes, as the kernel compares it.
fn name_words(name: &str) -> [u64; 4] {
    let mut bytes = [0; 32];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    let (words, _) = bytes.as_chunks();
    std::array::from_fn(|word| u64::from_le_bytes(words[word]))
}

fn ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn spread(spread: &service::Spread) -> Spread {
    match spread.action {
        None => Spread::default(),
        Some(action) => Spread { most: spread.most, action: action as u32, window: ns(spread.within) },
    }
}

impl Rulebook {
    /// Of a policy with its numbers, for the services in these slots.
    ///
    /// # Errors
    /// Its paths need more room than there is.
    pub(super) fn new(
        policy: &Policy,
        placed: &Placed,
        seats: &BTreeMap<String, Seat>,
        secret: [u64; 2],
    ) -> Result<Self, TooLarge> {
        // Room for what is there beside what comes.
        let mut room = Room {
            states: Room::ALL.states / 2,
            edges: Room::ALL.edges / 2,
            leaves: Room::ALL.leaves / 2,
            rules: Room::ALL.rules / 2,
        };
        let overflow = |rule| Scope { rule, subject: [0, scope::OVERFLOW] };
        let all = |rule| Scope { rule, subject: [0; 2] };
        let mut ahead = vec![all(scope::ADMISSION), overflow(scope::KEY), overflow(scope::CLIENT)];
        ahead.extend(placed.tenants.values().map(|quota| all(u64::from(quota.scope))));
        let (mut chapters, mut exempt, mut exemptions) = (Vec::new(), Vec::new(), Vec::new());
        let said = |(name, seat): (&String, &Seat)| {
            Some(Volume { seat: *seat, site: policy.services.get(name)?, placed: placed.services.get(name)? })
        };
        let volumes: Vec<Volume<'_>> = seats.iter().filter_map(said).collect();
        let (leaders, others): (Vec<&Volume<'_>>, Vec<&Volume<'_>>) = volumes.iter().partition(|one| one.seat.leads());
        for volume in leaders.into_iter().chain(others) {
            let Volume { seat, site, placed: numbers } = *volume;
            let chapter = Chapter::new(volume, &volumes, secret, room)?;
            let Automaton { states, edges, leaves, rules, .. } = &chapter.paths;
            room = Room {
                states: room.states - states.len(),
                edges: room.edges - edges.len(),
                leaves: room.leaves - leaves.len(),
                rules: room.rules - rules.len(),
            };
            ahead.extend(
                [scope::SERVICE, scope::UNREGISTERED_ADMISSION].map(|own| all(scope::of_service(own, seat.number))),
            );
            let named =
                chapter.charges.iter().filter(|(rule, terms)| terms.is_some() && rule.per != Per::Source as u32);
            ahead.extend(named.map(|(rule, _)| overflow(u64::from(rule.scope))));
            exempt = exemptions::together(&exempt, &exemptions::exempt(&site.exempt, &numbers.exempt));
            let numbers = site.exempt.iter().zip(&numbers.exempt);
            exemptions.extend(numbers.map(|(one, &number)| (number, unix_ns(one.until))));
            chapters.push(chapter);
        }
        ahead.sort_unstable();
        ahead.dedup();
        let window = chapters.iter().map(|chapter| chapter.window).max().unwrap_or(0);
        let clients = clients(placed, secret);
        Ok(Self { chapters, window, exempt, exemptions, clients, ahead })
    }

    /// What lets new sources in, of all services.
    pub(super) fn admission(&self) -> Terms {
        admission(self.window, ADMITTED, tally_of_scope(scope::ADMISSION))
    }

    /// What lets new keys in that are not registered, of one service.
    pub(super) fn admission_of_keys(&self, chapter: &Chapter) -> Terms {
        admission(self.window, chapter.max_keys, tally_of_service(chapter.slot, scope::UNREGISTERED_ADMISSION))
    }
}

/// What is said of a service, with its numbers.
struct Volume<'a> {
    seat: Seat,
    site: &'a Site,
    placed: &'a PlacedSite,
}

impl Chapter {
    /// Of a service, `all` of which there are.
    fn new(
        &Volume { seat, placed, .. }: &Volume<'_>,
        all: &[Volume<'_>],
        secret: [u64; 2],
        room: Room,
    ) -> Result<Self, TooLarge> {
        let Seat { slot, number, leader, place } = seat;
        let mut led: Vec<&Volume<'_>> = all.iter().filter(|one| seat.leads() && one.seat.leader == number).collect();
        led.sort_by_key(|one| one.seat.place);
        let branches: Vec<Branch<'_>> = led
            .iter()
            .map(|one| Branch { site: one.site, bits: &one.placed.exempt, service: one.seat.number })
            .collect();
        let paths = routes::compile(&branches, secret, room)?;
        let charges: Vec<(Rule, Option<Terms>)> = paths
            .rules
            .iter()
            .zip(&paths.origins)
            .map(|(rule, (branch, origin))| charge(led[*branch].site, led[*branch].placed, rule, *origin))
            .collect();
        let led_by = all.iter().find(|one| one.seat.number == leader);
        let leader = led_by.map_or(slot, |one| one.seat.slot);
        let mut flags = 0;
        let said =
            &led_by.map_or_else(|| placed.service.clone(), |one| placed.service.on_ports_of(&one.placed.service));
        if said.strict_guesses {
            flags |= Ruleset::STRICT_GUESSES;
        }
        flags |= match said.proxy_protocol {
            ProxyProtocol::Off => 0,
            ProxyProtocol::V1 => Ruleset::PROXY_1,
            ProxyProtocol::V2 => Ruleset::PROXY_2,
        };
        let client = said.client_id.as_ref().map_or("", FieldName::as_str);
        let mut keys = [[0; 4]; Ruleset::KEYS];
        for (words, name) in keys.iter_mut().zip(&said.key_headers) {
            *words = name_words(name.as_str());
        }
        let rules = Ruleset {
            flags,
            leaf: place,
            client_len: client.len() as u32,
            client: name_words(client),
            keys,
            // Where they count only, nobody is kept out for them.
            guess_penalty_ns: if said.observe.contains(&OwnLimit::Guesses) { 0 } else { ns(said.guess_penalty) },
            keys_of_source: spread(&said.keys_per_source),
            sources_of_key: spread(&said.sources_per_key),
            connections_of_source: said.connections_per_source.unwrap_or(0),
            connections_of_principal: said.connections_per_principal.unwrap_or(0),
            ..Ruleset::default()
        };
        let own = OWN_LIMITS.into_iter().filter_map(|(_, limit)| Some((limit, own_terms(said, limit, slot)?)));
        let own: BTreeMap<OwnLimit, Terms> = own.collect();
        // Who is no principal is counted by source where a limit is per principal.
        let are_known = ![OwnLimit::Unkeyed, OwnLimit::Unregistered].iter().any(|limit| own.contains_key(limit));
        let by_source = charges.iter().filter(|(rule, _)| !are_known || rule.per == Per::Source as u32);
        let by_source = by_source.filter_map(|(_, terms)| terms.as_ref());
        let windows = own.iter().filter(|(limit, _)| **limit != OwnLimit::Ceiling).map(|(_, terms)| terms);
        let windows = windows.chain(by_source).map(longest);
        let spreads = [rules.keys_of_source.window, rules.guess_penalty_ns];
        let window = windows.chain(spreads).max().unwrap_or(0);
        let proxies = exemptions::proxies(&said.trusted_proxies);
        Ok(Self {
            slot,
            leader,
            rules,
            own,
            max_keys: said.unregistered.as_ref().map_or(0, |unregistered| unregistered.max_keys),
            paths,
            charges,
            proxies,
            window,
        })
    }
}

/// How long limits count, in ns. Not their candidates: that one of these forgets a source is no reason to let fewer in.
fn longest(terms: &Terms) -> u64 {
    idle_after(&terms.limits)
}

/// ns after a policy's last charge until nothing of its buckets counts.
pub(super) fn idle_after(policy: &abi::Policy) -> u64 {
    let limits = policy.limits.iter().take(policy.len as usize);
    limits
        // Refused requests that count put a rate off by another burst at most.
        .map(|limit| (limit.window * TICK_NS * 2).max(limit.tolerance.saturating_mul(2).saturating_add(limit.interval)))
        .max()
        .unwrap_or(0)
}

/// What lets so many that are new in within this time.
fn admission(within: u64, most: u32, tally: u32) -> Terms {
    let within = within.clamp(1_000_000_000, 86_400_000_000_000 * 366);
    let limits = abi::Policy {
        limits: {
            let mut limits = [abi::Limit::default(); abi::LIMITS];
            limits[0] = abi::Limit {
                algorithm: abi::Algorithm::Sliding as u16,
                count: most.min(limit::MAX_COUNT),
                window: within / TICK_NS,
                ..abi::Limit::default()
            };
            limits
        },
        len: 1,
        tally,
        ..abi::Policy::UNLIMITED
    };
    Terms { limits, candidate: None, next: None, tenant: None }
}

/// A rule with its scope, and its limits.
fn charge(site: &Site, placed: &PlacedSite, rule: &Rule, origin: Origin) -> (Rule, Option<Terms>) {
    let terms = |quota: &PlacedQuota, name, mode| {
        Terms::of(&quota.limits, name, mode, quota.candidate.as_ref(), tally_of_scope(u64::from(quota.scope)))
    };
    match origin {
        Origin::Exempt => (*rule, None),
        Origin::Public(place) => {
            let quota = &placed.public[place];
            (Rule { scope: quota.scope, ..*rule }, Some(terms(quota, LimitName::PUBLIC, Mode::Enforce)))
        }
        Origin::Route(place) => {
            let Some(quota) = &placed.routes[place] else { return (*rule, None) };
            let (name, mode) = match &site.routes[place].charge {
                Some(Charge::Shared(name)) => {
                    let mode = site.limits.get(name).map_or(Mode::Enforce, |quota| quota.mode);
                    (LimitName::of_plan(name), mode)
                }
                Some(Charge::Own(quota)) => (LimitName::ROUTE, quota.mode),
                None => (LimitName::ROUTE, Mode::Enforce),
            };
            (Rule { scope: quota.scope, ..*rule }, Some(terms(quota, name, mode)))
        }
    }
}

fn clients(placed: &Placed, secret: [u64; 2]) -> Vec<(Client, u32, Terms)> {
    let mut clients = Vec::new();
    for principal in placed.principals.values() {
        for (id, client) in &principal.clients {
            let tag = if id == OTHER { [0; 2] } else { key::tag(secret, id.as_bytes()).0 };
            let terms =
                Terms::of(&client.limits, LimitName::CLIENT, Mode::Enforce, None, tally_of_scope(scope::CLIENT));
            clients.push((Client { principal: u64::from(principal.index), id: tag }, client.number, terms));
        }
    }
    clients
}
