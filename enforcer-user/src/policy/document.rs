//! All that an operator can say about the services of a machine: plans and principals, which they share, and of each
//! service its limits, its routes, and what needs no key.
//!
//! A [`Policy`] is a value. It comes from a file or out of the store, two of them have a difference, and whichever way it
//! was made, what it refers to is there: [`Policy::merged`] and the reading of files see to that. Limits in it are in the
//! order of [`Limits::canonical`]; which bucket each of them has is known to the store alone.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use enforcer_ebpf::abi::{self, Per};
use jiff::Timestamp;

use super::Limits;
use super::method::Methods;
use super::path::{Pattern, Reach};
use super::service::Service;
use crate::config::Mode;
use crate::prefix::Prefix;

/// Most routes.
pub const MAX_ROUTES: usize = 1024;
/// Most public paths.
pub const MAX_PUBLIC: usize = 1024;
/// Most exemptions: the bits of a word.
pub const MAX_EXEMPTIONS: usize = abi::EXEMPTIONS as usize;
/// Most declared client ids of one principal, beside [`OTHER`].
pub const MAX_CLIENTS: usize = 32;
/// Most tenants.
pub const MAX_TENANTS: usize = 4096;
/// Most principals: the entries of the map, of which the first is never given out.
pub const MAX_PRINCIPALS: usize = abi::PRINCIPALS as usize - 1;

/// Stands among a principal's clients for all ids that are not declared, and for requests without one.
pub const OTHER: &str = "other";

/// The words for [`Mode`].
pub const MODES: [(&str, Mode); 2] = [(Mode::Enforce.as_str(), Mode::Enforce), (Mode::Observe.as_str(), Mode::Observe)];
/// The words for [`Per`].
pub const PERS: [(&str, Per); 3] = [("principal", Per::Principal), ("source", Per::Source), ("service", Per::Service)];

/// The word for a value, by a list of both.
pub(crate) fn word<T: Copy + PartialEq>(words: &[(&'static str, T)], value: T) -> &'static str {
    words.iter().find(|(_, known)| *known == value).map_or("", |(word, _)| word)
}

/// What a word stands for, likewise.
pub(crate) fn meaning<T: Copy>(words: &[(&str, T)], word: &str) -> Option<T> {
    words.iter().find(|(known, _)| *known == word).map(|(_, meaning)| *meaning)
}

/// The name of the service of a configuration that names none. Its number is 0.
pub const DEFAULT_SERVICE: &str = "default";
/// Most services at once.
pub const MAX_SERVICES: usize = abi::SERVICES_MOST as usize;

/// A whole policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// What is said of each service, by name; of one that is not there, nothing.
    pub services: BTreeMap<String, Site>,
    /// Plans, by name.
    pub plans: BTreeMap<String, Plan>,
    /// Tenants, by name: likewise, but all principals of one share the limits.
    pub tenants: BTreeMap<String, Plan>,
    /// Principals, by name.
    pub principals: BTreeMap<String, Principal>,
}

/// What is said of one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Site {
    /// What holds for it as a whole.
    pub service: Service,
    /// Limits that routes share, by name.
    pub limits: BTreeMap<String, Quota>,
    /// Routes, sorted; no two for the same path and method.
    pub routes: Vec<Route>,
    /// What needs no key, likewise.
    pub public: Vec<Public>,
    /// What has neither key nor limit, sorted; no two for the same paths, methods and sources.
    pub exempt: Vec<Exemption>,
}

/// What many principals have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The limits of each principal under it.
    pub limits: Limits,
    /// Limits that are counted beside them and refuse nobody.
    pub candidate: Option<Limits>,
    /// Whether the limits refuse.
    pub mode: Mode,
}

/// One principal, which is the same to all services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// Where its limits come from.
    pub terms: Terms,
    /// The tenant that it belongs to, whose limits hold beside its own.
    pub tenant: Option<String>,
    /// Limits that are counted beside them and refuse nobody, in place of its plan's.
    pub candidate: Option<Limits>,
    /// What each of its declared client ids, and [`OTHER`], has of its budget.
    pub clients: BTreeMap<String, Limits>,
}

/// Where a principal's limits come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Terms {
    /// They are its own.
    Own(Limits),
    /// They are a plan's.
    Plan {
        /// The plan's name.
        plan: String,
        /// Limits in their place.
        instead: Option<Override>,
    },
}

/// Limits in the place of a plan's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// The limits.
    pub limits: Limits,
    /// When the plan's hold again; to the second.
    pub until: Option<Timestamp>,
}

/// Limits for whom they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quota {
    /// The limits.
    pub limits: Limits,
    /// For whom they are.
    pub per: Per,
    /// Limits that are counted beside them and refuse nobody.
    pub candidate: Option<Limits>,
    /// Whether the limits refuse.
    pub mode: Mode,
}

/// A rule for a path and all beneath it; of those that match the one with the longest path holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The path.
    pub path: Pattern,
    /// The methods.
    pub methods: Methods,
    /// What its requests are charged to beside their principal; `None` if only its cost is of interest.
    pub charge: Option<Charge>,
    /// Requests that one counts as, for all limits that apply; 1 to [`enforcer_ebpf::limit::MAX_COST`].
    pub cost: u32,
}

/// What the requests of a route are charged to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Charge {
    /// Limits of its own.
    Own(Quota),
    /// The named limit, which others share.
    Shared(String),
}

/// A path that needs no key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Public {
    /// The path.
    pub path: Pattern,
    /// Whether what lies beneath it is public too.
    pub reach: Reach,
    /// The methods.
    pub methods: Methods,
    /// The limits of each source; never [`Limits::Unlimited`].
    pub limits: Limits,
    /// Limits that are counted beside them and refuse nobody.
    pub candidate: Option<Limits>,
}

/// A path that has neither key nor limit for some sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exemption {
    /// The path.
    pub path: Pattern,
    /// Whether it is for what lies beneath it too.
    pub reach: Reach,
    /// The methods.
    pub methods: Methods,
    /// For whom, sorted, at least one.
    pub sources: Vec<Prefix>,
    /// When it ends; to the second.
    pub until: Timestamp,
    /// Why it is there.
    pub reason: String,
}

impl Principal {
    /// A principal of its own limits.
    #[must_use]
    pub const fn of(limits: Limits) -> Self {
        Self { terms: Terms::Own(limits), tenant: None, candidate: None, clients: BTreeMap::new() }
    }

    /// Its plan's name.
    #[must_use]
    pub fn plan(&self) -> Option<&str> {
        match &self.terms {
            Terms::Own(_) => None,
            Terms::Plan { plan, .. } => Some(plan),
        }
    }
}

impl Terms {
    /// The limits that hold at `now`, and what takes their place at which time; `None` if there is no such plan.
    #[must_use]
    pub fn at<'p>(&'p self, plans: &'p BTreeMap<String, Plan>, now: Timestamp) -> Option<InForce<'p>> {
        let (plan, instead) = match self {
            Self::Own(limits) => return Some(InForce { limits, next: None }),
            Self::Plan { plan, instead } => (&plans.get(plan)?.limits, instead),
        };
        Some(match instead {
            Some(Override { limits, until: None }) => InForce { limits, next: None },
            Some(Override { limits, until: Some(until) }) if *until > now => {
                InForce { limits, next: Some((*until, plan)) }
            }
            Some(_) | None => InForce { limits: plan, next: None },
        })
    }
}

/// What a principal's terms come to at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InForce<'p> {
    /// The limits.
    pub limits: &'p Limits,
    /// From when on others hold, and which.
    pub next: Option<(Timestamp, &'p Limits)>,
}

impl Route {
    /// What tells it from others: its paths and methods.
    #[must_use]
    pub fn identity(&self) -> String {
        format!("{} {}", self.path.identity(), self.methods)
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(&self.path, Reach::Exact, self.methods, f)
    }
}

impl Public {
    /// What tells it from others: its paths and methods.
    #[must_use]
    pub fn identity(&self) -> String {
        format!("{}{} {}", self.path.identity(), tail(&self.path, self.reach), self.methods)
    }
}

impl fmt::Display for Public {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(&self.path, self.reach, self.methods, f)
    }
}

impl Exemption {
    /// What tells it from others: its paths, methods and sources.
    #[must_use]
    pub fn identity(&self) -> String {
        let sources: Vec<_> = self.sources.iter().map(Prefix::to_string).collect();
        format!("{}{} {} {}", self.path.identity(), tail(&self.path, self.reach), self.methods, sources.join(","))
    }
}

impl fmt::Display for Exemption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(&self.path, self.reach, self.methods, f)?;
        for (place, source) in self.sources.iter().enumerate() {
            write!(f, "{}{source}", if place == 0 { " from " } else { ", " })?;
        }
        Ok(())
    }
}

/// What is written behind a path that reaches beneath itself.
pub(crate) fn tail(path: &Pattern, reach: Reach) -> &'static str {
    match reach {
        Reach::Exact => "",
        Reach::Beneath if path.segments().is_empty() => "*",
        Reach::Beneath => "/*",
    }
}

/// The path, and the methods unless it is for all.
fn show(path: &Pattern, reach: Reach, methods: Methods, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "{path}{}", tail(path, reach))?;
    if methods == Methods::ALL { Ok(()) } else { write!(f, " {methods}") }
}

/// Something that a policy would leave without what it refers to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// A principal that keeps what it has, whose plan goes.
    #[error(
        "principal {principal}, which the file does not name, is under plan {plan}, which the file does not have \
         either: keep [plan.{plan}], or name the principal"
    )]
    Plan {
        /// The principal.
        principal: String,
        /// Its plan.
        plan: String,
    },
    /// A principal that keeps what it has, whose tenant goes.
    #[error(
        "principal {principal}, which the file does not name, belongs to tenant {tenant}, which the file does not have \
         either: keep [tenant.{tenant}], or name the principal"
    )]
    Tenant {
        /// The principal.
        principal: String,
        /// Its tenant.
        tenant: String,
    },
    /// A principal that keeps what it has, whose clients are not told apart any more.
    #[error(
        "principal {principal}, which the file does not name, has clients: keep `client_id` in a service, or name the \
         principal"
    )]
    Clients {
        /// The principal.
        principal: String,
    },
    /// More principals than there is room for.
    #[error("{0} principals with those that the file does not name; accepted: at most {MAX_PRINCIPALS}")]
    Principals(usize),
}

impl Policy {
    /// This policy, as a file says it, over the one that holds: a principal that the file does not name keeps what it
    /// has. With `prune`, the names of all principals that have keys, those without go.
    ///
    /// # Errors
    /// All that would lack what it refers to.
    pub fn merged(mut self, current: &Self, prune: Option<&HashSet<String>>) -> Result<Self, Vec<Conflict>> {
        let mut conflicts = Vec::new();
        for (name, principal) in &current.principals {
            if self.principals.contains_key(name) || prune.is_some_and(|keyed| !keyed.contains(name)) {
                continue;
            }
            if let Some(plan) = principal.plan().filter(|&plan| !self.plans.contains_key(plan)) {
                conflicts.push(Conflict::Plan { principal: name.clone(), plan: plan.to_owned() });
            }
            if let Some(tenant) = principal.tenant.as_ref().filter(|&tenant| !self.tenants.contains_key(tenant)) {
                conflicts.push(Conflict::Tenant { principal: name.clone(), tenant: tenant.clone() });
            }
            if !principal.clients.is_empty() && !self.tells_clients_apart() {
                conflicts.push(Conflict::Clients { principal: name.clone() });
            }
            self.principals.insert(name.clone(), principal.clone());
        }
        if self.principals.len() > MAX_PRINCIPALS {
            conflicts.push(Conflict::Principals(self.principals.len()));
        }
        if conflicts.is_empty() { Ok(self) } else { Err(conflicts) }
    }

    /// Whether a field tells clients apart, in any service.
    #[must_use]
    pub fn tells_clients_apart(&self) -> bool {
        self.services.values().any(|site| site.service.client_id.is_some())
    }

    /// This policy with something said of each of these services: of those that it does not name, what holds by default.
    #[must_use]
    pub fn with_services<'n>(mut self, names: impl IntoIterator<Item = &'n String>) -> Self {
        for name in names {
            self.services.entry(name.clone()).or_default();
        }
        self
    }

    /// This policy with all limits in their own order; [`crate::store`] has them in that of their buckets.
    #[must_use]
    pub(crate) fn into_canonical(mut self) -> Self {
        let canonical = |limits: &mut Limits| *limits = std::mem::replace(limits, Limits::Blocked).canonical();
        let Self { services, plans, tenants, principals: _ } = &mut self;
        for Site { service, limits, routes, public, exempt: _ } in services.values_mut() {
            let own = routes.iter_mut().filter_map(|route| match &mut route.charge {
                Some(Charge::Own(quota)) => Some(quota),
                Some(Charge::Shared(_)) | None => None,
            });
            for Quota { limits, candidate, .. } in limits.values_mut().chain(own) {
                canonical(limits);
                candidate.iter_mut().for_each(canonical);
            }
            let Service { ceiling, source, guesses, preflight, unkeyed, unregistered, candidates, .. } = service;
            let unregistered = unregistered.iter_mut().map(|unregistered| &mut unregistered.limits);
            let optional = ceiling.iter_mut().chain(source).chain(unregistered);
            optional.chain([guesses, preflight, unkeyed]).chain(candidates.values_mut()).for_each(canonical);
            for Public { limits, candidate, .. } in public {
                canonical(limits);
                candidate.iter_mut().for_each(canonical);
            }
        }
        for Plan { limits, candidate, .. } in plans.values_mut().chain(tenants.values_mut()) {
            canonical(limits);
            candidate.iter_mut().for_each(canonical);
        }
        self
    }
}

impl Site {
    /// Brings what has no order of its own into the one of its fields.
    pub(crate) fn sort(&mut self) {
        self.routes.sort_by_cached_key(|route| (route.path.clone(), route.methods));
        self.public.sort_by_cached_key(|public| (public.path.clone(), public.reach, public.methods));
        self.exempt.sort_by_cached_key(|one| (one.path.clone(), one.reach, one.methods, one.sources.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(text: &str) -> Limits {
        text.parse().expect(text)
    }

    fn plan(text: &str) -> Plan {
        Plan { limits: limits(text), candidate: None, mode: Mode::Enforce }
    }

    fn under(plan: &str) -> Principal {
        Principal { terms: Terms::Plan { plan: plan.into(), instead: None }, ..Principal::of(Limits::Unlimited) }
    }

    #[test]
    fn an_override_ends_by_itself() {
        let plans = BTreeMap::from([("gold".to_owned(), plan("1/second"))]);
        let second = |second| Timestamp::from_second(second).expect("a time");
        let until =
            |until| Terms::Plan { plan: "gold".into(), instead: Some(Override { limits: limits("9/second"), until }) };
        let own = limits("9/second");
        let gold = &plans["gold"].limits;
        let terms = until(Some(second(100)));
        let next = Some((second(100), gold));
        assert_eq!(terms.at(&plans, second(99)), Some(InForce { limits: &own, next }));
        assert_eq!(terms.at(&plans, second(100)), Some(InForce { limits: gold, next: None }));
        assert_eq!(until(None).at(&plans, second(100)), Some(InForce { limits: &own, next: None }));
        assert_eq!(terms.at(&BTreeMap::new(), second(0)), None);
    }

    #[test]
    fn a_principal_that_the_file_does_not_name_keeps_what_it_has() {
        let mut current = Policy::default();
        current.plans.insert("gold".into(), plan("1/second"));
        current.principals.insert("alice".into(), under("gold"));
        current.principals.insert("bob".into(), Principal::of(limits("2/second")));
        let mut file = Policy::default();
        file.principals.insert("bob".into(), Principal::of(limits("3/second")));
        let conflict = Conflict::Plan { principal: "alice".into(), plan: "gold".into() };
        assert_eq!(file.clone().merged(&current, None), Err(vec![conflict.clone()]));
        let keyed = HashSet::from(["alice".to_owned()]);
        assert_eq!(file.clone().merged(&current, Some(&keyed)), Err(vec![conflict]));
        assert_eq!(file.clone().merged(&current, Some(&HashSet::new())), Ok(file.clone()));
        file.plans.insert("gold".into(), plan("4/second"));
        let merged = file.merged(&current, None).expect("merges");
        assert_eq!(merged.principals["alice"], under("gold"));
        assert_eq!(merged.principals["bob"], Principal::of(limits("3/second")));
    }

    #[test]
    fn a_principal_that_is_kept_needs_its_tenant() {
        let mut current = Policy::default();
        current.tenants.insert("acme".into(), plan("1/second"));
        let alice = Principal { tenant: Some("acme".into()), ..Principal::of(Limits::Unlimited) };
        current.principals.insert("alice".into(), alice);
        let conflict = Conflict::Tenant { principal: "alice".into(), tenant: "acme".into() };
        assert_eq!(Policy::default().merged(&current, None), Err(vec![conflict]));
    }

    #[test]
    fn clients_that_are_kept_need_the_field_that_tells_them_apart() {
        let mut current = Policy::default();
        let clients = BTreeMap::from([("mobile".to_owned(), limits("1/second"))]);
        current.principals.insert("alice".into(), Principal { clients, ..Principal::of(Limits::Unlimited) });
        let conflict = Conflict::Clients { principal: "alice".into() };
        assert_eq!(Policy::default().merged(&current, None), Err(vec![conflict]));
    }
}
