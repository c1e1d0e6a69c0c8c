//! How two policies differ: a list of named changes, for people and as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::document::{
    Charge, DEFAULT_SERVICE, Exemption, MODES, Override, PERS, Plan, Policy, Principal, Public, Quota, Route, Site,
    Terms, word,
};
use super::service::{ACTIONS, KeyHeader, OWN_LIMITS, PROXY_PROTOCOLS, Service, Spread, Time, Unregistered};
use crate::prefix::Prefix;

/// What a change is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// A service as a whole; it has no name of its own.
    Service,
    /// A plan.
    Plan,
    /// A tenant.
    Tenant,
    /// A principal.
    Principal,
    /// A named limit.
    Limit,
    /// A route, by its path and methods.
    Route,
    /// A public path, likewise.
    Public,
    /// An exemption, by its path, methods and sources.
    Exempt,
}

impl Subject {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Plan => "plan",
            Self::Tenant => "tenant",
            Self::Principal => "principal",
            Self::Limit => "limit",
            Self::Route => "route",
            Self::Public => "public",
            Self::Exempt => "exempt",
        }
    }
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It is new.
    Added,
    /// It goes.
    Removed,
    /// Some of its fields are others.
    Changed,
}

/// One thing that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The service that it is of; `None` for what all of them share.
    pub service: Option<String>,
    /// What it is.
    pub subject: Subject,
    /// Which one; of a service as a whole nothing.
    pub name: String,
    /// What becomes of it.
    pub action: Action,
    /// The fields that differ; of what is new all that it has, of what goes none.
    pub fields: Vec<Field>,
}

/// A field that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Field {
    /// Its name in the file.
    pub field: String,
    /// What it was; `None` = nothing.
    pub from: Option<String>,
    /// What it becomes; `None` = nothing.
    pub to: Option<String>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, subject, name, action, fields } = self;
        // The one that needs no name is told without.
        if let Some(service) = service.as_ref().filter(|name| *name != DEFAULT_SERVICE) {
            write!(f, "service {service}")?;
            if *subject != Subject::Service {
                write!(f, " {}", subject.as_str())?;
            }
        } else {
            f.write_str(subject.as_str())?;
        }
        if !name.is_empty() {
            write!(f, " {name}")?;
        }
        match action {
            Action::Added => f.write_str(" added")?,
            Action::Removed => f.write_str(" removed")?,
            Action::Changed => {}
        }
        for (place, Field { field, from, to }) in fields.iter().enumerate() {
            write!(f, "{}{field} ", if place == 0 { ": " } else { ", " })?;
            match (action, from.as_deref(), to.as_deref()) {
                (Action::Added, _, to) => f.write_str(to.unwrap_or("none"))?,
                (_, from, to) => write!(f, "{} → {}", from.unwrap_or("none"), to.unwrap_or("none"))?,
            }
        }
        Ok(())
    }
}

/// The field that differs only in the names of its segments: with another path it would be another rule.
const PATH: &str = "path";

/// The fields of something, in the order in which they are told.
type Told = Vec<(String, String)>;

/// All that differs from `old` in `new`, by subject, then by name.
#[must_use]
pub fn diff(old: &Policy, new: &Policy) -> Vec<Change> {
    let mut changes = Vec::new();
    let none = Site::default();
    let names: BTreeSet<&String> = old.services.keys().chain(new.services.keys()).collect();
    let sites = names.iter().map(|&name| {
        let of = |policy: &'_ Policy| policy.services.get(name).cloned().unwrap_or_else(|| none.clone());
        (name, of(old), of(new))
    });
    let sites: Vec<_> = sites.collect();
    for (name, old, new) in &sites {
        if old.service != new.service {
            let fields = fields(service(&old.service), service(&new.service));
            let (service, subject) = (Some((*name).clone()), Subject::Service);
            changes.push(Change { service, subject, name: String::new(), action: Action::Changed, fields });
        }
    }
    let name = |name: &String| name.clone();
    let mut shared = Changes { service: None, changes: &mut changes };
    shared.each(Subject::Plan, by_name(&old.plans), by_name(&new.plans), |key, _| name(key), plan);
    shared.each(Subject::Tenant, by_name(&old.tenants), by_name(&new.tenants), |key, _| name(key), plan);
    let principals = (by_name(&old.principals), by_name(&new.principals));
    shared.each(Subject::Principal, principals.0, principals.1, |key, _| name(key), principal);
    for (of, old, new) in &sites {
        let mut own = Changes { service: Some(of), changes: &mut changes };
        own.each(Subject::Limit, by_name(&old.limits), by_name(&new.limits), |key, _| name(key), quota);
        let routes = (by(&old.routes, Route::identity), by(&new.routes, Route::identity));
        own.each(Subject::Route, routes.0, routes.1, |_, one| one.to_string(), route);
        let paths = (by(&old.public, Public::identity), by(&new.public, Public::identity));
        own.each(Subject::Public, paths.0, paths.1, |_, one| one.to_string(), public);
        let exempt = (by(&old.exempt, Exemption::identity), by(&new.exempt, Exemption::identity));
        own.each(Subject::Exempt, exempt.0, exempt.1, |_, one| one.to_string(), exemption);
    }
    changes
}

fn by_name<T>(all: &BTreeMap<String, T>) -> BTreeMap<&String, &T> {
    all.iter().collect()
}

fn by<T>(all: &[T], identity: impl Fn(&T) -> String) -> BTreeMap<String, &T> {
    all.iter().map(|one| (identity(one), one)).collect()
}

/// What differs so far, and of which service what comes next is.
struct Changes<'c> {
    service: Option<&'c String>,
    changes: &'c mut Vec<Change>,
}

impl Changes<'_> {
    fn each<K: Ord + Clone, T: PartialEq>(
        &mut self,
        subject: Subject,
        old: BTreeMap<K, &T>,
        new: BTreeMap<K, &T>,
        name: impl Fn(&K, &T) -> String,
        told: impl Fn(&T) -> Told,
    ) {
        let gone = old.keys().filter(|key| !new.contains_key(key)).cloned();
        let all: BTreeSet<K> = gone.chain(new.keys().cloned()).collect();
        for key in all {
            let change = match (old.get(&key), new.get(&key)) {
                (Some(old), Some(new)) if old == new => continue,
                (Some(old), Some(new)) => (name(&key, new), Action::Changed, fields(told(old), told(new))),
                (None, Some(new)) => {
                    // Its name says the path.
                    let told = told(new).into_iter().filter(|(field, _)| field != PATH).collect();
                    (name(&key, new), Action::Added, fields(Vec::new(), told))
                }
                (Some(old), None) => (name(&key, old), Action::Removed, Vec::new()),
                (None, None) => continue,
            };
            let (name, action, fields) = change;
            self.changes.push(Change { service: self.service.cloned(), subject, name, action, fields });
        }
    }
}

/// The fields that differ, those that go last.
fn fields(old: Told, new: Told) -> Vec<Field> {
    let mut before: BTreeMap<String, String> = old.iter().cloned().collect();
    let mut fields = Vec::new();
    for (field, to) in new {
        let from = before.remove(&field);
        if from.as_ref() != Some(&to) {
            fields.push(Field { field, from, to: Some(to) });
        }
    }
    let gone = old.into_iter().filter(|(field, _)| before.contains_key(field));
    fields.extend(gone.map(|(field, from)| Field { field, from: Some(from), to: None }));
    fields
}

/// Appends a field that is there.
fn maybe(told: &mut Told, field: &str, value: Option<impl fmt::Display>) {
    if let Some(value) = value {
        told.push((field.to_owned(), value.to_string()));
    }
}

fn tell(told: &mut Told, field: &str, value: impl fmt::Display) {
    maybe(told, field, Some(value));
}

fn service(service: &Service) -> Told {
    let Service {
        ceiling,
        source,
        guesses,
        guess_penalty,
        strict_guesses,
        preflight,
        unkeyed,
        unregistered,
        observe,
        candidates,
        key_headers,
        client_id,
        trusted_proxies,
        proxy_protocol,
        connections_per_source,
        connections_per_principal,
        keys_per_source,
        sources_per_key,
    } = service;
    let mut told = Told::new();
    maybe(&mut told, "ceiling", ceiling.as_ref());
    maybe(&mut told, "source", source.as_ref());
    tell(&mut told, "guesses", guesses);
    tell(&mut told, "guess_penalty", Time(*guess_penalty));
    tell(&mut told, "strict_guesses", strict_guesses);
    tell(&mut told, "preflight", preflight);
    tell(&mut told, "unkeyed", unkeyed);
    if let Some(Unregistered { limits, max_keys }) = unregistered {
        tell(&mut told, "unregistered", format_args!("{limits} for each of {max_keys}"));
    }
    if !observe.is_empty() {
        tell(&mut told, "observe", observe.iter().map(|limit| word(&OWN_LIMITS, *limit)).collect::<Vec<_>>().join(" "));
    }
    for (limit, candidate) in candidates {
        tell(&mut told, &format!("candidate.{}", word(&OWN_LIMITS, *limit)), candidate);
    }
    let key_headers: Vec<&str> = key_headers.iter().map(KeyHeader::as_str).collect();
    tell(&mut told, "key_headers", key_headers.join(" "));
    maybe(&mut told, "client_id", client_id.as_ref());
    if !trusted_proxies.is_empty() {
        tell(&mut told, "trusted_proxies", trusted_proxies.iter().map(Prefix::to_string).collect::<Vec<_>>().join(" "));
    }
    tell(&mut told, "proxy_protocol", word(&PROXY_PROTOCOLS, *proxy_protocol));
    maybe(&mut told, "connections_per_source", connections_per_source.as_ref());
    maybe(&mut told, "connections_per_principal", connections_per_principal.as_ref());
    for (field, spread) in [("keys_per_source", keys_per_source), ("sources_per_key", sources_per_key)] {
        let Spread { most, within, action } = *spread;
        tell(&mut told, field, format_args!("{} above {most} in {}", word(&ACTIONS, action), Time(within)));
    }
    told
}

fn plan(plan: &Plan) -> Told {
    let Plan { limits, candidate, mode } = plan;
    let mut told = Told::new();
    tell(&mut told, "limit", limits);
    maybe(&mut told, "candidate", candidate.as_ref());
    tell(&mut told, "mode", word(&MODES, *mode));
    told
}

fn principal(principal: &Principal) -> Told {
    let Principal { terms, tenant, candidate, clients } = principal;
    let mut told = Told::new();
    maybe(&mut told, "tenant", tenant.as_ref());
    match terms {
        Terms::Own(limits) => tell(&mut told, "limit", limits),
        Terms::Plan { plan, instead } => {
            tell(&mut told, "plan", plan);
            if let Some(Override { limits, until }) = instead {
                tell(&mut told, "limit", limits);
                maybe(&mut told, "until", until.as_ref());
            }
        }
    }
    maybe(&mut told, "candidate", candidate.as_ref());
    for (id, limits) in clients {
        tell(&mut told, &format!("clients.{id}"), limits);
    }
    told
}

fn quota(quota: &Quota) -> Told {
    let Quota { limits, per, candidate, mode } = quota;
    let mut told = Told::new();
    tell(&mut told, "limit", limits);
    tell(&mut told, "per", word(&PERS, *per));
    maybe(&mut told, "candidate", candidate.as_ref());
    tell(&mut told, "mode", word(&MODES, *mode));
    told
}

fn route(route: &Route) -> Told {
    let Route { path, methods: _, charge, cost } = route;
    let mut told = Told::new();
    match charge {
        Some(Charge::Own(own)) => told = quota(own),
        Some(Charge::Shared(name)) => tell(&mut told, "use", name),
        None => {}
    }
    tell(&mut told, "cost", cost);
    tell(&mut told, PATH, path);
    told
}

fn public(public: &Public) -> Told {
    let Public { path, reach: _, methods: _, limits, candidate } = public;
    let mut told = Told::new();
    tell(&mut told, "limit", limits);
    maybe(&mut told, "candidate", candidate.as_ref());
    tell(&mut told, PATH, path);
    told
}

fn exemption(exemption: &Exemption) -> Told {
    let Exemption { path, reach: _, methods: _, sources: _, until, reason } = exemption;
    let mut told = Told::new();
    tell(&mut told, "until", until);
    tell(&mut told, "reason", reason);
    tell(&mut told, PATH, path);
    told
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::{file, samples};

    fn policy(rules: &str) -> Policy {
        file::parse("p.toml", &format!("version = 1\n{rules}")).unwrap_or_else(|problems| panic!("{problems}"))
    }

    fn told(old: &str, new: &str) -> Vec<String> {
        diff(&policy(old), &policy(new)).iter().map(Change::to_string).collect()
    }

    #[test]
    fn names_what_changes_and_how() {
        let old = "[service]\nceiling = \"9/s\"\n[plan.gold]\nlimit = \"100/minute\"\n[plan.lead]\nlimit = \"1/s\"\n\
                   [principal.alice]\nplan = \"gold\"\nlimit = \"5/s\"\n[[route]]\npath = \"/a/{id}\"\ncost = 2\n";
        let new = "[service]\nsource = \"8/s\"\n[plan.gold]\nlimit = \"50/minute\"\nmode = \"observe\"\n\
                   [principal.alice]\nplan = \"gold\"\n[[route]]\npath = \"/a/{x}\"\ncost = 2\n\
                   [[route]]\npath = \"/search\"\nmethods = [\"GET\"]\nlimit = \"20/minute\"\n";
        assert_eq!(
            told(old, new),
            [
                "service: source none → 8/second, ceiling 9/second → none",
                "plan gold: limit 100/minute → 50/minute, mode enforce → observe",
                "plan lead removed",
                "principal alice: limit 5/second → none",
                "route /a/{x}: path /a/{id} → /a/{x}",
                "route /search GET added: limit 20/minute, per principal, mode enforce, cost 1",
            ]
        );
        assert_eq!(told(new, new), Vec::<String>::new());
    }

    #[test]
    fn names_the_service_that_a_change_is_of() {
        let old = "[[service]]\nname = \"api\"\nceiling = \"9/s\"\n[[service.route]]\npath = \"/a\"\ncost = 2\n";
        let new =
            "[[service]]\nname = \"api\"\n[[service]]\nname = \"web\"\n[[service.route]]\npath = \"/a\"\ncost = 2\n";
        assert_eq!(
            told(old, new),
            [
                "service api: ceiling 9/second → none",
                "service api route /a removed",
                "service web route /a added: cost 2",
            ]
        );
    }

    #[test]
    fn the_order_of_limits_is_no_change() {
        assert_eq!(told("[plan.g]\nlimit = \"1/s; 9/day\"", "[plan.g]\nlimit = \"9/day; 1/s\""), Vec::<String>::new());
    }

    #[test]
    fn is_told_as_json_too() {
        let changes = diff(&policy("[plan.g]\nlimit = \"1/s\""), &policy("[plan.g]\nlimit = \"2/s\""));
        let json = r#"[{"service":null,"subject":"plan","name":"g","action":"changed","fields":[{"field":"limit","from":"1/second","to":"2/second"}]}]"#;
        assert_eq!(serde_json::to_string(&changes).expect("JSON"), json);
        assert_eq!(serde_json::from_str::<Vec<Change>>(json).expect("changes"), changes);
    }

    proptest! {
        #[test]
        fn there_is_a_change_wherever_policies_differ(old in samples::policy(), new in samples::policy()) {
            prop_assert!(diff(&old, &old).is_empty());
            let changes = diff(&old, &new);
            prop_assert_eq!(changes.is_empty(), old == new);
            for change in &changes {
                prop_assert!(change.action != Action::Changed || !change.fields.is_empty(), "{}", change);
            }
            let backwards = diff(&new, &old);
            prop_assert_eq!(changes.len(), backwards.len());
        }
    }
}
