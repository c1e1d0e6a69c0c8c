//! The policy in the store, with what must outlive it: numbers that are never given to another, and which bucket each
//! limit has, so that a changed limit goes on counting where the old one was.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::str::FromStr;
use std::time::Duration;

use enforcer_ebpf::abi::scope;
use jiff::Timestamp;
use rusqlite::{Row, ToSql, params};

use super::{Error, Store, timestamp};
use crate::policy::Limits;
use crate::policy::document::{
    Charge, DEFAULT_SERVICE, Exemption, MAX_EXEMPTIONS, MODES, OTHER, Override, PERS, Plan, Policy, Principal, Public,
    Quota, Route, Site, Terms, meaning, tail, word,
};
use crate::policy::method::Methods;
use crate::policy::path::{Pattern, Reach};
use crate::policy::service::{ACTIONS, OWN_LIMITS, OwnLimit, PROXY_PROTOCOLS, Service, Spread, Unregistered};

/// A policy's numbers, and its limits in the order of their buckets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placed {
    /// The services of which something is said, by name.
    pub services: BTreeMap<String, PlacedSite>,
    /// All principals, by name.
    pub principals: BTreeMap<String, PlacedPrincipal>,
    /// Tenants, by name.
    pub tenants: BTreeMap<String, PlacedQuota>,
}

/// A service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlacedSite {
    /// [`enforcer_ebpf::abi::Service::number`].
    pub number: u32,
    /// What is said of it as a whole, its limits in the order of their buckets.
    pub service: Service,
    /// Named limits, by name.
    pub limits: BTreeMap<String, PlacedQuota>,
    /// What each of [`Site::routes`] is charged to, its own or a named limit; `None` if only its cost is of interest.
    pub routes: Vec<Option<PlacedQuota>>,
    /// What each of [`Site::public`] is charged to.
    pub public: Vec<PlacedQuota>,
    /// The number of each of [`Site::exempt`], 0 to 63: its bit in the rules of paths, which no service's other has.
    pub exempt: Vec<u32>,
}

/// A principal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedPrincipal {
    /// Index in the maps, from 1; its own also when it was removed for a while.
    pub index: u32,
    /// The limits that hold.
    pub limits: Limits,
    /// From when on others hold, and which.
    pub next: Option<(Timestamp, Limits)>,
    /// Its own candidate, or its plan's.
    pub candidate: Option<Limits>,
    /// Its declared client ids, and [`OTHER`].
    pub clients: BTreeMap<String, PlacedClient>,
}

/// What a client id has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedClient {
    /// Its number within the principal; 0 for [`OTHER`].
    pub number: u32,
    /// Its limits.
    pub limits: Limits,
}

/// Limits with a scope of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedQuota {
    /// [`enforcer_ebpf::abi::Scope::rule`] of their buckets, from [`scope::ROUTES`] on.
    pub scope: u32,
    /// The limits.
    pub limits: Limits,
    /// Their candidate.
    pub candidate: Option<Limits>,
}

/// What the store keeps of a principal beside what a policy says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seat {
    index: u32,
    /// Limits and candidate that hold, in the order of their buckets.
    limits: Limits,
    candidate: Option<Limits>,
    removed: bool,
    /// All client ids that it ever had: their number, and the limits of those that it has.
    clients: BTreeMap<String, (u32, Option<Limits>)>,
}

/// The rows, with limits in the order of their buckets where [`Seat`] does not have it.
#[derive(Default)]
struct Rows {
    policy: Policy,
    seats: HashMap<String, Seat>,
    scopes: HashMap<String, u32>,
    /// The number of each service that there ever was.
    numbers: HashMap<String, u32>,
    /// The number of each exemption, by its service.
    exempt: HashMap<String, Vec<u32>>,
}

/// Limits in the order of the buckets of those before, if there were any.
fn settled(limits: &Limits, before: Option<&Limits>) -> Limits {
    limits.clone().settled(before)
}

fn settled_quota(quota: &Quota, before: Option<&Quota>) -> Quota {
    Quota {
        limits: settled(&quota.limits, before.map(|before| &before.limits)),
        candidate: quota
            .candidate
            .as_ref()
            .map(|candidate| settled(candidate, before.and_then(|before| before.candidate.as_ref()))),
        ..quota.clone()
    }
}

fn tenant_identity(name: &str) -> String {
    format!("tenant {name}")
}

/// What scopes of one service are known by.
#[derive(Clone, Copy)]
struct Identities<'n> {
    service: &'n str,
}

impl Identities<'_> {
    /// Those of the service that needs no name have none, and so those of before there were several.
    fn of(self, what: impl std::fmt::Display) -> String {
        match self.service {
            DEFAULT_SERVICE => what.to_string(),
            service => format!("service {service} {what}"),
        }
    }

    fn limit(self, name: &str) -> String {
        self.of(format_args!("limit {name}"))
    }

    fn route(self, route: &Route) -> String {
        self.of(format_args!("route {}", route.identity()))
    }

    fn public(self, public: &Public) -> String {
        self.of(format_args!("public {}", public.identity()))
    }
}

impl Store {
    /// The policy that holds, and its numbers; of limits that end, those that hold at `now`.
    ///
    /// # Errors
    /// The store cannot be read, or holds what this program would not have written.
    pub fn policy(&self, now: Timestamp) -> Result<(Policy, Placed), Error> {
        let rows = self.rows()?;
        let placed = rows.placed(now)?;
        Ok((rows.policy.into_canonical(), placed))
    }

    /// Likewise, without any principals.
    ///
    /// # Errors
    /// The store cannot be read, or holds what this program would not have written.
    pub fn policy_of_services(&self, now: Timestamp) -> Result<(Policy, Placed), Error> {
        let rows = self.rows_of_services()?;
        let placed = rows.placed(now)?;
        Ok((rows.policy.into_canonical(), placed))
    }

    /// Tells of each principal, by index: its name, what is said of it, and its numbers; of limits that end, those that hold
    /// at `now`. `plans` are those of the policy that holds.
    ///
    /// # Errors
    /// The store cannot be read, or holds what this program would not have written.
    pub fn each_principal(
        &self,
        plans: &BTreeMap<String, Plan>,
        now: Timestamp,
        mut each: impl FnMut(String, Principal, PlacedPrincipal),
    ) -> Result<(), Error> {
        self.each_seat(None, |name, seat, said| {
            if let Some(said) = said {
                let placed = seat.placed(&name, &said, plans, now)?;
                each(name, said, placed);
            }
            Ok(())
        })
    }

    /// Makes a policy the one that holds, all of it, and says its numbers. A principal that it does not name is removed.
    /// What stays keeps its numbers, and each limit its bucket.
    ///
    /// # Errors
    /// The store cannot be written, or a principal to be removed has keys.
    pub fn write_policy(&self, policy: &Policy, now: Timestamp) -> Result<Placed, Error> {
        let old = self.rows()?;
        let mut new = old.succeeded_by(policy)?;
        let mut next = old.seats.values().map(|seat| seat.index).max().unwrap_or(0);
        for (name, principal) in &policy.principals {
            let known = old.seats.get(name);
            let index = match known {
                Some(seat) => seat.index,
                None => {
                    next = next.checked_add(1).ok_or(Error::Exhausted("principals"))?;
                    next
                }
            };
            let seat = seat(name, principal, known, index, &policy.plans, now)?;
            new.seats.insert(name.clone(), seat);
        }
        self.write_rules(&old, &new)?;
        for (name, principal) in &policy.principals {
            let before = (old.seats.get(name), old.policy.principals.get(name));
            self.write_seat(name, principal, &new.seats[name], before, now)?;
        }
        for (name, seat) in new.seats.iter_mut().filter(|(name, _)| !policy.principals.contains_key(*name)) {
            if !seat.removed {
                self.remove_seat(name, seat.index)?;
                seat.removed = true;
            }
        }
        for plan in old.policy.plans.keys().filter(|&plan| !policy.plans.contains_key(plan)) {
            self.connection.prepare_cached("DELETE FROM plans WHERE name = ?1")?.execute([plan])?;
        }
        for tenant in old.policy.tenants.keys().filter(|&tenant| !policy.tenants.contains_key(tenant)) {
            self.connection.prepare_cached("DELETE FROM tenants WHERE name = ?1")?.execute([tenant])?;
        }
        new.placed(now)
    }

    /// Makes one principal what is said of it, and says its numbers.
    ///
    /// # Errors
    /// The store cannot be written, or has no such plan.
    pub fn write_principal(&self, name: &str, principal: &Principal, now: Timestamp) -> Result<PlacedPrincipal, Error> {
        let plans = self.plans()?;
        let (known, said) = self.seat(name)?.unzip();
        let said = said.flatten();
        let count = "SELECT coalesce(max(idx), 0) + 1 FROM principals";
        let free = self.connection.query_row(count, [], |row| row.get::<_, u32>(0));
        let index = known.as_ref().map_or_else(|| free, |seat| Ok(seat.index))?;
        let seat = seat(name, principal, known.as_ref(), index, &plans, now)?;
        self.write_seat(name, principal, &seat, (known.as_ref(), said.as_ref()), now)?;
        seat.placed(name, principal, &plans, now)
    }

    /// The principals whose limits in place of their plan's were to hold until a second that is over at `now`: the program
    /// ends them within it.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn overridden_until(&self, now: Timestamp) -> Result<Vec<String>, Error> {
        let mut statement = self.connection.prepare_cached("SELECT name FROM principals WHERE until < ?1")?;
        Ok(statement.query_map([now.as_second()], |row| row.get(0))?.collect::<Result<_, _>>()?)
    }

    /// What is said of one principal, and its numbers; `None` if there is none of this name.
    ///
    /// # Errors
    /// The store cannot be read, or holds what this program would not have written.
    pub fn stance(&self, name: &str, now: Timestamp) -> Result<Option<(Principal, PlacedPrincipal)>, Error> {
        match self.seat(name)? {
            Some((seat, Some(said))) => {
                let placed = seat.placed(name, &said, &self.plans()?, now)?;
                Ok(Some((said, placed)))
            }
            _ => Ok(None),
        }
    }

    /// Gives numbers to a policy's services and limits that have none yet: what is counted under them is of no others, even
    /// if the policy never holds for good.
    ///
    /// # Errors
    /// The store cannot be written, or has no number left.
    pub fn number(&self, policy: &Policy) -> Result<(), Error> {
        let old = self.rows()?;
        let new = old.succeeded_by(policy)?;
        self.write_numbers(&old, &new)
    }

    fn write_numbers(&self, old: &Rows, new: &Rows) -> Result<(), Error> {
        let connection = &self.connection;
        for (name, number) in new.numbers.iter().filter(|(name, _)| !old.numbers.contains_key(*name)) {
            let mut statement = connection.prepare_cached("INSERT INTO services (number, name) VALUES (?1, ?2)")?;
            statement.execute(params![number, name])?;
        }
        for (identity, number) in new.scopes.iter().filter(|(identity, _)| !old.scopes.contains_key(*identity)) {
            let mut statement = connection.prepare_cached("INSERT INTO scopes (number, identity) VALUES (?1, ?2)")?;
            statement.execute(params![number, identity])?;
        }
        Ok(())
    }

    fn write_rules(&self, old: &Rows, new: &Rows) -> Result<(), Error> {
        self.write_numbers(old, new)?;
        let connection = &self.connection;
        let Policy { services, plans, tenants, principals: _ } = &new.policy;
        for (table, all, before) in [("plans", plans, &old.policy.plans), ("tenants", tenants, &old.policy.tenants)] {
            for (name, one) in all.iter().filter(|(name, one)| before.get(*name) != Some(one)) {
                let Plan { limits, candidate, mode } = one;
                let mut statement = connection.prepare_cached(&format!(
                    "INSERT INTO {table} (name, limits, candidate, mode) VALUES (?1, ?2, ?3, ?4)
                     ON CONFLICT DO UPDATE SET limits = ?2, candidate = ?3, mode = ?4",
                ))?;
                statement.execute(params![name, limits.to_string(), text(candidate.as_ref()), word(&MODES, *mode)])?;
            }
        }
        // Few rows, and nothing but each other refers to them.
        connection.execute_batch(
            "DELETE FROM routes; DELETE FROM quotas; DELETE FROM public; DELETE FROM exempt; DELETE FROM sites;",
        )?;
        for (name, site) in services {
            let number = new.number(name)?;
            self.write_service(number, &site.service)?;
            self.write_site(number, site, new.exempt.get(name).map_or(&[][..], Vec::as_slice))?;
        }
        Ok(())
    }

    fn write_site(&self, service: u32, site: &Site, numbers: &[u32]) -> Result<(), Error> {
        let connection = &self.connection;
        let Site { service: _, limits, routes, public, exempt } = site;
        for (name, quota) in limits {
            let mut statement = connection.prepare_cached(
                "INSERT INTO quotas (service, name, limits, per, candidate, mode) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?;
            let Quota { limits, per, candidate, mode } = quota;
            let (per, mode) = (word(&PERS, *per), word(&MODES, *mode));
            statement.execute(params![service, name, limits.to_string(), per, text(candidate.as_ref()), mode])?;
        }
        for Route { path, methods, charge, cost } in routes {
            let mut statement = connection.prepare_cached(
                "INSERT INTO routes (service, path, methods, limits, per, candidate, mode, shared, cost)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?;
            let (own, shared) = match charge {
                Some(Charge::Own(quota)) => (Some(quota), None),
                Some(Charge::Shared(name)) => (None, Some(name)),
                None => (None, None),
            };
            statement.execute(params![
                service,
                path.to_string(),
                methods.bits(),
                text(own.map(|own| &own.limits)),
                own.map(|own| word(&PERS, own.per)),
                text(own.and_then(|own| own.candidate.as_ref())),
                own.map(|own| word(&MODES, own.mode)),
                shared,
                cost,
            ])?;
        }
        for Public { path, reach, methods, limits, candidate } in public {
            let mut statement = connection.prepare_cached(
                "INSERT INTO public (service, path, methods, limits, candidate) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?;
            let path = format!("{path}{}", tail(path, *reach));
            statement.execute(params![service, path, methods.bits(), limits.to_string(), text(candidate.as_ref())])?;
        }
        for (Exemption { path, reach, methods, sources, until, reason }, number) in exempt.iter().zip(numbers) {
            let mut statement = connection.prepare_cached(
                "INSERT INTO exempt (number, service, path, methods, sources, until, reason)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?;
            let path = format!("{path}{}", tail(path, *reach));
            let sources = joined(sources);
            statement.execute(params![number, service, path, methods.bits(), sources, until.as_second(), reason])?;
        }
        Ok(())
    }

    fn write_service(&self, number: u32, service: &Service) -> Result<(), Error> {
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
        let mut statement = self.connection.prepare_cached(
            "INSERT INTO sites (service, ceiling, source, guesses, guess_penalty_ms, strict_guesses, preflight, key_headers,
                 client_id, trusted_proxies, proxy_protocol, connections_per_source, connections_per_principal, keys_most,
                 keys_within_ms, keys_action, sources_most, sources_within_ms, sources_action, unkeyed,
                 unregistered, max_keys, observe, ceiling_candidate, source_candidate, preflight_candidate, unkeyed_candidate,
                 unregistered_candidate)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23,
                 ?24, ?25, ?26, ?27, ?28)",
        )?;
        let action = |spread: &Spread| word(&ACTIONS, spread.action);
        let observe: Vec<&str> = observe.iter().map(|limit| word(&OWN_LIMITS, *limit)).collect();
        let candidate = |limit| text(candidates.get(&limit));
        statement.execute(params![
            number,
            text(ceiling.as_ref()),
            text(source.as_ref()),
            guesses.to_string(),
            milliseconds(*guess_penalty),
            strict_guesses,
            preflight.to_string(),
            joined(key_headers),
            text(client_id.as_ref()),
            joined(trusted_proxies),
            word(&PROXY_PROTOCOLS, *proxy_protocol),
            connections_per_source,
            connections_per_principal,
            keys_per_source.most,
            milliseconds(keys_per_source.within),
            action(keys_per_source),
            sources_per_key.most,
            milliseconds(sources_per_key.within),
            action(sources_per_key),
            unkeyed.to_string(),
            text(unregistered.as_ref().map(|unregistered| &unregistered.limits)),
            unregistered.as_ref().map(|unregistered| unregistered.max_keys),
            joined(&observe),
            candidate(OwnLimit::Ceiling),
            candidate(OwnLimit::Source),
            candidate(OwnLimit::Preflight),
            candidate(OwnLimit::Unkeyed),
            candidate(OwnLimit::Unregistered),
        ])?;
        Ok(())
    }

    fn write_seat(
        &self,
        name: &str,
        principal: &Principal,
        seat: &Seat,
        before: (Option<&Seat>, Option<&Principal>),
        now: Timestamp,
    ) -> Result<(), Error> {
        let (known, said) = before;
        if known.is_some_and(|known| known == seat) && said == Some(principal) {
            return Ok(());
        }
        let Principal { terms, tenant, candidate, clients: _ } = principal;
        let (plan, own, until) = match terms {
            Terms::Own(limits) => (None, Some(limits), None),
            Terms::Plan { plan, instead: None } => (Some(plan), None, None),
            Terms::Plan { plan, instead: Some(Override { limits, until }) } => (Some(plan), Some(limits), *until),
        };
        let mut statement = self.connection.prepare_cached(
            "INSERT INTO principals (idx, name, limits, candidate, plan, own, until, own_candidate, created, tenant)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
             ON CONFLICT (idx) DO UPDATE SET limits = ?3, candidate = ?4, plan = ?5, own = ?6, until = ?7,
                 own_candidate = ?8, tenant = ?10, removed = 0",
        )?;
        statement.execute(params![
            seat.index,
            name,
            seat.limits.to_string(),
            text(seat.candidate.as_ref()),
            plan,
            text(own),
            until.map(Timestamp::as_second),
            text(candidate.as_ref()),
            now.as_second(),
            tenant,
        ])?;
        for (id, client) in &seat.clients {
            if known.and_then(|known| known.clients.get(id)) != Some(client) {
                let (number, limits) = client;
                let mut statement = self.connection.prepare_cached(
                    "INSERT INTO clients (principal, id, number, limits) VALUES (?1, ?2, ?3, ?4)
                     ON CONFLICT (principal, id) DO UPDATE SET limits = ?4",
                )?;
                statement.execute(params![seat.index, id, number, text(limits.as_ref())])?;
            }
        }
        Ok(())
    }

    fn remove_seat(&self, name: &str, index: u32) -> Result<(), Error> {
        let mut keyed = self.connection.prepare_cached("SELECT EXISTS (SELECT 1 FROM keys WHERE principal = ?1)")?;
        if keyed.query_row([index], |row| row.get(0))? {
            return Err(Error::Keyed { name: name.to_owned() });
        }
        let mut statement = self.connection.prepare_cached(
            "UPDATE principals SET removed = 1, plan = NULL, own = NULL, until = NULL, own_candidate = NULL, tenant = NULL
             WHERE idx = ?1",
        )?;
        statement.execute([index])?;
        self.connection.prepare_cached("UPDATE clients SET limits = NULL WHERE principal = ?1")?.execute([index])?;
        Ok(())
    }

    fn rows(&self) -> Result<Rows, Error> {
        let mut rows = self.rows_of_services()?;
        // Collected at once, which takes less time than to add them to a map one by one.
        let mut principals = Vec::new();
        self.each_seat(None, |name, seat, said| {
            principals.extend(said.map(|said| (name.clone(), said)));
            rows.seats.insert(name, seat);
            Ok(())
        })?;
        rows.policy.principals = principals.into_iter().collect();
        Ok(rows)
    }

    /// All rows but those of principals.
    fn rows_of_services(&self) -> Result<Rows, Error> {
        let mut rows = Rows::default();
        rows.policy.plans = self.plans()?;
        rows.policy.tenants = self.each("tenants", "name", plan)?.into_iter().collect();
        let number = |row: &Row<'_>| Ok((row.get::<_, String>("name")?, row.get("number")?));
        rows.numbers = self.each("services", "name", number)?.into_iter().collect();
        let names: HashMap<u32, String> = rows.numbers.iter().map(|(name, number)| (*number, name.clone())).collect();
        let of = |row: &Row<'_>| {
            let number: u32 = row.get("service")?;
            names.get(&number).cloned().ok_or_else(|| Wrong::Value(format!("there is no service {number}")))
        };
        let services = &mut rows.policy.services;
        for (name, service) in self.each("sites", "service", |row| Ok((of(row)?, service(row)?)))? {
            services.insert(name, Site { service, ..Site::default() });
        }
        let named = |row: &Row<'_>| Ok((of(row)?, row.get::<_, String>("name")?, quota(row)?));
        for (of, name, quota) in self.each("quotas", "name", named)? {
            services.entry(of).or_default().limits.insert(name, quota);
        }
        for (of, route) in self.each("routes", "path", |row| Ok((of(row)?, route(row)?)))? {
            services.entry(of).or_default().routes.push(route);
        }
        for (of, public) in self.each("public", "path", |row| Ok((of(row)?, public(row)?)))? {
            services.entry(of).or_default().public.push(public);
        }
        // Places change when the rows are sorted, identities do not.
        let mut numbers: HashMap<(String, String), u32> = HashMap::new();
        for (of, (number, one)) in self.each("exempt", "path", |row| Ok((of(row)?, exemption(row)?)))? {
            numbers.insert((of.clone(), one.identity()), number);
            services.entry(of).or_default().exempt.push(one);
        }
        let scope = |row: &Row<'_>| Ok((row.get::<_, String>("identity")?, row.get("number")?));
        rows.scopes = self.each("scopes", "identity", scope)?.into_iter().collect();
        for (name, site) in services {
            site.sort();
            let number = |one: &Exemption| numbers.get(&(name.clone(), one.identity())).copied();
            rows.exempt.insert(name.clone(), site.exempt.iter().filter_map(number).collect());
        }
        Ok(rows)
    }

    /// All rows of a table, each by its name's column.
    fn each<T>(&self, table: &str, name: &str, read: impl Fn(&Row<'_>) -> Result<T, Wrong>) -> Result<Vec<T>, Error> {
        let mut statement = self.connection.prepare_cached(&format!("SELECT * FROM {table}"))?;
        let mut rows = statement.query([])?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            let of = || format!("{table} `{}`", row.get::<_, String>(name).unwrap_or_default());
            all.push(read(row).map_err(|wrong| wrong.of(of))?);
        }
        Ok(all)
    }

    fn plans(&self) -> Result<BTreeMap<String, Plan>, Error> {
        Ok(self.each("plans", "name", plan)?.into_iter().collect())
    }

    /// What each service says of itself, by name.
    ///
    /// # Errors
    /// The store cannot be read, or holds what this program would not have written.
    pub fn services(&self) -> Result<BTreeMap<String, Service>, Error> {
        let mut statement = self.connection.prepare_cached(
            "SELECT services.name AS name, sites.* FROM sites JOIN services ON services.number = sites.service",
        )?;
        let mut rows = statement.query([])?;
        let mut all = BTreeMap::new();
        while let Some(row) = rows.next()? {
            let name: String = row.get("name")?;
            let service = service(row).map_err(|wrong| wrong.of(|| format!("service `{name}`")))?;
            all.insert(name, service);
        }
        Ok(all)
    }

    /// Tells of the principals, with those that are removed, or of the one of a name.
    fn each_seat(
        &self,
        name: Option<&str>,
        mut each: impl FnMut(String, Seat, Option<Principal>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut clients: HashMap<u32, BTreeMap<String, (u32, Option<Limits>)>> = HashMap::new();
        let mut statement = self.connection.prepare_cached(
            "SELECT c.* FROM clients c JOIN principals ON idx = principal WHERE ?1 IS NULL OR name = ?1",
        )?;
        let mut rows = statement.query([name])?;
        while let Some(row) = rows.next()? {
            let id: String = row.get("id")?;
            let limits = maybe(row, "limits").map_err(|wrong| wrong.of(|| format!("client `{id}`")))?;
            clients.entry(row.get("principal")?).or_default().insert(id, (row.get("number")?, limits));
        }
        // By its own statement: an index serves the one, not both.
        let of = if name.is_some() { "name = ?1" } else { "?1 IS NULL" };
        let mut statement = self.connection.prepare_cached(&format!(
            "SELECT idx, name, removed, limits, candidate, plan, own, until, own_candidate, tenant
             FROM principals WHERE {of} ORDER BY idx",
        ))?;
        let mut rows = statement.query([name])?;
        // Most principals are under one of a few limits.
        let mut limits = Parsed::default();
        while let Some(row) = rows.next()? {
            let name: String = row.get(seat_column::NAME)?;
            let clients = clients.remove(&row.get(seat_column::INDEX)?).unwrap_or_default();
            let seat = seat_of(row, clients, &mut limits);
            let (seat, said) = seat.map_err(|wrong| wrong.of(|| format!("principal `{name}`")))?;
            each(name, seat, said)?;
        }
        Ok(())
    }

    /// The principal of a name, also if it is removed.
    fn seat(&self, name: &str) -> Result<Option<(Seat, Option<Principal>)>, Error> {
        let mut found = None;
        self.each_seat(Some(name), |_, seat, said| {
            found = Some((seat, said));
            Ok(())
        })?;
        Ok(found)
    }
}

/// What a principal's seat becomes.
fn seat(
    name: &str,
    principal: &Principal,
    known: Option<&Seat>,
    index: u32,
    plans: &BTreeMap<String, Plan>,
    now: Timestamp,
) -> Result<Seat, Error> {
    let in_force = principal.terms.at(plans, now).ok_or_else(|| no_plan(name, principal))?;
    let candidate = candidate(principal, plans);
    let mut clients = known.map(|seat| seat.clients.clone()).unwrap_or_default();
    for (id, (_, limits)) in &mut clients {
        *limits = principal.clients.get(id).map(|new| settled(new, limits.as_ref()));
    }
    let mut free = clients.values().map(|(number, _)| *number).max().unwrap_or(0);
    for (id, limits) in &principal.clients {
        if !clients.contains_key(id) {
            let number = match id.as_str() {
                OTHER => 0,
                _ => {
                    free = free.checked_add(1).ok_or(Error::Exhausted("client ids"))?;
                    free
                }
            };
            clients.insert(id.clone(), (number, Some(settled(limits, None))));
        }
    }
    Ok(Seat {
        index,
        limits: settled(in_force.limits, known.map(|seat| &seat.limits)),
        candidate: candidate.map(|one| settled(one, known.and_then(|seat| seat.candidate.as_ref()))),
        removed: false,
        clients,
    })
}

/// The candidate of a principal: its own, or its plan's.
fn candidate<'p>(principal: &'p Principal, plans: &'p BTreeMap<String, Plan>) -> Option<&'p Limits> {
    let of_plan = || principal.plan().and_then(|plan| plans.get(plan)).and_then(|plan| plan.candidate.as_ref());
    principal.candidate.as_ref().or_else(of_plan)
}

fn no_plan(name: &str, principal: &Principal) -> Error {
    Error::NoPlan { name: name.to_owned(), plan: principal.plan().unwrap_or_default().to_owned() }
}

impl Seat {
    /// What it is at `now`: since it was written, an override may have ended.
    fn placed(
        &self,
        name: &str,
        principal: &Principal,
        plans: &BTreeMap<String, Plan>,
        now: Timestamp,
    ) -> Result<PlacedPrincipal, Error> {
        let in_force = principal.terms.at(plans, now).ok_or_else(|| no_plan(name, principal))?;
        let limits = settled(in_force.limits, Some(&self.limits));
        let next = in_force.next.map(|(until, next)| (until, settled(next, Some(&limits))));
        let clients = self.clients.iter().filter_map(|(id, (number, limits))| {
            Some((id.clone(), PlacedClient { number: *number, limits: limits.clone()? }))
        });
        Ok(PlacedPrincipal {
            index: self.index,
            limits,
            next,
            candidate: self.candidate.clone(),
            clients: clients.collect(),
        })
    }
}

impl Rows {
    /// The rows of another policy: numbers of what is new, limits in the order of the buckets of those before. Seats are as
    /// before.
    fn succeeded_by(&self, policy: &Policy) -> Result<Self, Error> {
        let mut scopes = self.scopes.clone();
        let mut next = scopes.values().max().map_or(scope::ROUTES as u32, |last| last.saturating_add(1));
        let mut numbers = self.numbers.clone();
        let mut free = numbers.values().max().map_or(0, |last| last.saturating_add(1));
        for name in policy.services.keys() {
            if let Entry::Vacant(place) = numbers.entry(name.clone()) {
                place.insert(free);
                free = free.checked_add(1).ok_or(Error::Exhausted("services"))?;
            }
        }
        let sites = || policy.services.iter().map(|(name, site)| (Identities { service: name }, site));
        let named = sites().flat_map(|(of, site)| site.limits.keys().map(move |name| of.limit(name)));
        let tenants = policy.tenants.keys().map(|name| tenant_identity(name));
        let routes = sites().flat_map(|(of, site)| {
            let own = site.routes.iter().filter(|route| matches!(route.charge, Some(Charge::Own(_))));
            own.map(move |route| of.route(route))
        });
        let public = sites().flat_map(|(of, site)| site.public.iter().map(move |public| of.public(public)));
        let identities: Vec<String> = named.chain(tenants).chain(routes).chain(public).collect();
        for identity in identities {
            if let Entry::Vacant(place) = scopes.entry(identity) {
                place.insert(next);
                next = next.checked_add(1).ok_or(Error::Exhausted("limits of paths"))?;
            }
        }
        let Policy { services, plans, tenants, principals } = policy;
        let old = &self.policy;
        let tenant = |(name, one): (&String, &Plan)| {
            let Plan { limits, candidate, mode } = one;
            let before = old.tenants.get(name);
            let of = before.and_then(|before| before.candidate.as_ref());
            let limits = settled(limits, before.map(|before| &before.limits));
            let candidate = candidate.as_ref().map(|candidate| settled(candidate, of));
            (name.clone(), Plan { limits, candidate, mode: *mode })
        };
        let unsaid = Site::default();
        let sites = services.iter().map(|(name, site)| {
            let before = old.services.get(name).unwrap_or(&unsaid);
            (name.clone(), settled_site(site, before))
        });
        let new = Policy {
            services: sites.collect(),
            plans: plans.clone(),
            tenants: tenants.iter().map(tenant).collect(),
            principals: principals.clone(),
        };
        let exempt = self.exemptions(services)?;
        Ok(Self { policy: new, seats: self.seats.clone(), scopes, numbers, exempt })
    }

    /// The numbers of exemptions. One that stays, its end too, keeps its own; a new one takes none that another had just now while
    /// there are others, since the program may still go by what that was for.
    fn exemptions(&self, services: &BTreeMap<String, Site>) -> Result<HashMap<String, Vec<u32>>, Error> {
        let told_by = |name: &str, one: &Exemption| (name.to_owned(), one.identity(), one.until);
        let mut old = HashMap::new();
        for (name, site) in &self.policy.services {
            let numbers = self.exempt.get(name).into_iter().flatten().copied();
            old.extend(site.exempt.iter().map(|one| told_by(name, one)).zip(numbers));
        }
        let all = services.iter().flat_map(|(name, site)| site.exempt.iter().map(move |one| (name, one)));
        let known: Vec<_> = all.map(|(name, one)| (name, old.get(&told_by(name, one)).copied())).collect();
        let kept: HashSet<_> = known.iter().filter_map(|(_, number)| *number).collect();
        let had: HashSet<_> = old.values().copied().collect();
        let all = 0..MAX_EXEMPTIONS as u32;
        let fresh = all.clone().filter(|number| !had.contains(number));
        let mut free = fresh.chain(all.filter(|number| had.contains(number) && !kept.contains(number)));
        let mut numbers: HashMap<String, Vec<u32>> = HashMap::new();
        for (name, known) in known {
            let number = known.or_else(|| free.next()).ok_or(Error::Exhausted("exemptions"))?;
            numbers.entry(name.clone()).or_default().push(number);
        }
        Ok(numbers)
    }

    /// The number of a service.
    fn number(&self, name: &str) -> Result<u32, Error> {
        self.numbers.get(name).copied().ok_or_else(|| numberless(format!("service `{name}`")))
    }

    /// The number of a scope.
    fn scope(&self, identity: String) -> Result<u32, Error> {
        self.scopes.get(&identity).copied().ok_or_else(|| numberless(identity))
    }

    fn placed(&self, now: Timestamp) -> Result<Placed, Error> {
        let Policy { services, plans, tenants, principals } = &self.policy;
        let mut shared = BTreeMap::new();
        for (name, Plan { limits, candidate, mode: _ }) in tenants {
            let (limits, candidate) = (limits.clone(), candidate.clone());
            let scope = self.scope(tenant_identity(name))?;
            shared.insert(name.clone(), PlacedQuota { scope, limits, candidate });
        }
        let mut placed = BTreeMap::new();
        for (name, principal) in principals {
            let seat = self.seats.get(name).ok_or_else(|| numberless(name.clone()))?;
            placed.insert(name.clone(), seat.placed(name, principal, plans, now)?);
        }
        let mut sites = BTreeMap::new();
        for (name, site) in services {
            sites.insert(name.clone(), self.placed_site(name, site)?);
        }
        Ok(Placed { services: sites, principals: placed, tenants: shared })
    }

    fn placed_site(&self, name: &str, site: &Site) -> Result<PlacedSite, Error> {
        let of = Identities { service: name };
        let quota = |identity, quota: &Quota| {
            let Quota { limits, candidate, .. } = quota.clone();
            Ok::<_, Error>(PlacedQuota { scope: self.scope(identity)?, limits, candidate })
        };
        let mut named = BTreeMap::new();
        for (name, one) in &site.limits {
            named.insert(name.clone(), quota(of.limit(name), one)?);
        }
        let route = |route: &Route| match &route.charge {
            Some(Charge::Own(own)) => quota(of.route(route), own).map(Some),
            Some(Charge::Shared(name)) => named.get(name).cloned().map(Some).ok_or_else(|| numberless(name.clone())),
            None => Ok(None),
        };
        let routes = site.routes.iter().map(route).collect::<Result<_, _>>()?;
        let public = site.public.iter().map(|public| {
            let (limits, candidate) = (public.limits.clone(), public.candidate.clone());
            Ok::<_, Error>(PlacedQuota { scope: self.scope(of.public(public))?, limits, candidate })
        });
        let public = public.collect::<Result<_, _>>()?;
        Ok(PlacedSite {
            number: self.number(name)?,
            service: site.service.clone(),
            limits: named,
            routes,
            public,
            exempt: self.exempt.get(name).cloned().unwrap_or_default(),
        })
    }
}

fn numberless(row: String) -> Error {
    Error::Row { row, reason: "it has no number".into() }
}

/// What is said of a service, with limits in the order of the buckets of those before.
fn settled_site(site: &Site, old: &Site) -> Site {
    let Site { service, limits, routes, public, exempt } = site;
    let before: HashMap<_, _> = old.routes.iter().map(|route| (route.identity(), route)).collect();
    let route = |route: &Route| {
        let before = before.get(&route.identity()).and_then(|before| before.charge.as_ref());
        let charge = route.charge.as_ref().map(|charge| match (charge, before) {
            (Charge::Own(quota), Some(Charge::Own(before))) => Charge::Own(settled_quota(quota, Some(before))),
            (Charge::Own(quota), _) => Charge::Own(settled_quota(quota, None)),
            (Charge::Shared(name), _) => Charge::Shared(name.clone()),
        });
        Route { charge, ..route.clone() }
    };
    let paths: HashMap<_, _> = old.public.iter().map(|public| (public.identity(), public)).collect();
    let optional =
        |limits: &Option<Limits>, before: Option<&Limits>| limits.as_ref().map(|limits| settled(limits, before));
    let public = public.iter().map(|public| {
        let before = paths.get(&public.identity());
        Public {
            limits: settled(&public.limits, before.map(|before| &before.limits)),
            candidate: optional(&public.candidate, before.and_then(|before| before.candidate.as_ref())),
            ..public.clone()
        }
    });
    let candidates = service
        .candidates
        .iter()
        .map(|(limit, candidate)| (*limit, settled(candidate, old.service.candidates.get(limit))));
    Site {
        service: Service {
            ceiling: optional(&service.ceiling, old.service.ceiling.as_ref()),
            source: optional(&service.source, old.service.source.as_ref()),
            guesses: settled(&service.guesses, Some(&old.service.guesses)),
            preflight: settled(&service.preflight, Some(&old.service.preflight)),
            unkeyed: settled(&service.unkeyed, Some(&old.service.unkeyed)),
            unregistered: service.unregistered.as_ref().map(|unregistered| {
                let before = old.service.unregistered.as_ref().map(|before| &before.limits);
                Unregistered { limits: settled(&unregistered.limits, before), ..*unregistered }
            }),
            candidates: candidates.collect(),
            ..service.clone()
        },
        limits: limits.iter().map(|(name, one)| (name.clone(), settled_quota(one, old.limits.get(name)))).collect(),
        routes: routes.iter().map(route).collect(),
        public: public.collect(),
        exempt: exempt.clone(),
    }
}

/// A value that cannot be read, of a row that its reader names.
enum Wrong {
    Value(String),
    Sql(rusqlite::Error),
}

impl Wrong {
    fn of(self, row: impl FnOnce() -> String) -> Error {
        match self {
            Self::Value(reason) => Error::Row { row: row(), reason },
            Self::Sql(error) => Error::Sql(error),
        }
    }
}

impl From<rusqlite::Error> for Wrong {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

/// Texts of limits that were read before.
#[derive(Default)]
struct Parsed(HashMap<String, Limits>);

impl Parsed {
    fn read(&mut self, row: &Row<'_>, column: usize) -> Result<Option<Limits>, Wrong> {
        let Some(text) = row.get_ref(column)?.as_str_or_null().map_err(rusqlite::Error::from)? else { return Ok(None) };
        if let Some(known) = self.0.get(text) {
            return Ok(Some(known.clone()));
        }
        let name = || row.as_ref().column_name(column).unwrap_or_default();
        let limits: Limits = text.parse().map_err(|error| Wrong::Value(format!("{}: {error}", name())))?;
        self.0.insert(text.to_owned(), limits.clone());
        Ok(Some(limits))
    }
}

fn maybe<T: FromStr<Err: std::fmt::Display>>(row: &Row<'_>, column: &str) -> Result<Option<T>, Wrong> {
    let text: Option<String> = row.get(column)?;
    let parse = |text: String| text.parse().map_err(|error| Wrong::Value(format!("{column}: {error}")));
    text.map(parse).transpose()
}

fn parsed<T: FromStr<Err: std::fmt::Display>>(row: &Row<'_>, column: &str) -> Result<T, Wrong> {
    maybe(row, column)?.ok_or_else(|| Wrong::Value(format!("{column}: there is none")))
}

fn by_word<T: Copy>(row: &Row<'_>, column: &str, words: &[(&str, T)]) -> Result<T, Wrong> {
    let text: String = row.get(column)?;
    meaning(words, &text).ok_or_else(|| Wrong::Value(format!("{column}: {text:?}")))
}

fn plan(row: &Row<'_>) -> Result<(String, Plan), Wrong> {
    let limits = parsed(row, "limits")?;
    let plan = Plan { limits, candidate: maybe(row, "candidate")?, mode: by_word(row, "mode", &MODES)? };
    Ok((row.get("name")?, plan))
}

fn quota(row: &Row<'_>) -> Result<Quota, Wrong> {
    Ok(Quota {
        limits: parsed(row, "limits")?,
        per: by_word(row, "per", &PERS)?,
        candidate: maybe(row, "candidate")?,
        mode: by_word(row, "mode", &MODES)?,
    })
}

fn methods(row: &Row<'_>) -> Result<Methods, Wrong> {
    Methods::from_bits(row.get("methods")?).ok_or_else(|| Wrong::Value("methods: there are none".into()))
}

fn reaching(row: &Row<'_>) -> Result<(Pattern, Reach), Wrong> {
    let path: String = row.get("path")?;
    Pattern::parse_reach(&path).map_err(|error| Wrong::Value(format!("path: {error}")))
}

fn route(row: &Row<'_>) -> Result<Route, Wrong> {
    let path: String = row.get("path")?;
    let path = Pattern::parse(&path).map_err(|error| Wrong::Value(format!("path: {error}")))?;
    let (own, shared): (Option<String>, Option<String>) = (row.get("limits")?, row.get("shared")?);
    let charge = match (own, shared) {
        (Some(_), _) => Some(Charge::Own(quota(row)?)),
        (None, Some(name)) => Some(Charge::Shared(name)),
        (None, None) => None,
    };
    Ok(Route { path, methods: methods(row)?, charge, cost: row.get("cost")? })
}

fn public(row: &Row<'_>) -> Result<Public, Wrong> {
    let (path, reach) = reaching(row)?;
    Ok(Public {
        path,
        reach,
        methods: methods(row)?,
        limits: parsed(row, "limits")?,
        candidate: maybe(row, "candidate")?,
    })
}

fn exemption(row: &Row<'_>) -> Result<(u32, Exemption), Wrong> {
    let (path, reach) = reaching(row)?;
    let one = Exemption {
        path,
        reach,
        methods: methods(row)?,
        sources: list(row, "sources")?,
        until: timestamp(row.get("until")?),
        reason: row.get("reason")?,
    };
    Ok((row.get("number")?, one))
}

fn service(row: &Row<'_>) -> Result<Service, Wrong> {
    let observe: String = row.get("observe")?;
    let observed = |word: &str| meaning(&OWN_LIMITS, word).ok_or_else(|| Wrong::Value(format!("observe: {word:?}")));
    let mut candidates = BTreeMap::new();
    for limit in OwnLimit::WITH_CANDIDATE {
        let candidate = maybe(row, &format!("{}_candidate", word(&OWN_LIMITS, limit)))?;
        candidates.extend(candidate.map(|candidate| (limit, candidate)));
    }
    let time = |column: &str| Ok::<_, Wrong>(Duration::from_millis(row.get::<_, u32>(column)?.into()));
    let spread = |most: &str, within: &str, action: &str| {
        Ok::<_, Wrong>(Spread { most: row.get(most)?, within: time(within)?, action: by_word(row, action, &ACTIONS)? })
    };
    Ok(Service {
        ceiling: maybe(row, "ceiling")?,
        source: maybe(row, "source")?,
        guesses: parsed(row, "guesses")?,
        guess_penalty: time("guess_penalty_ms")?,
        strict_guesses: row.get("strict_guesses")?,
        preflight: parsed(row, "preflight")?,
        unkeyed: parsed(row, "unkeyed")?,
        unregistered: match maybe(row, "unregistered")? {
            Some(limits) => Some(Unregistered { limits, max_keys: row.get("max_keys")? }),
            None => None,
        },
        observe: observe.split_whitespace().map(observed).collect::<Result<_, _>>()?,
        candidates,
        key_headers: list(row, "key_headers")?,
        client_id: maybe(row, "client_id")?,
        trusted_proxies: list(row, "trusted_proxies")?,
        proxy_protocol: by_word(row, "proxy_protocol", &PROXY_PROTOCOLS)?,
        connections_per_source: row.get("connections_per_source")?,
        connections_per_principal: row.get("connections_per_principal")?,
        keys_per_source: spread("keys_most", "keys_within_ms", "keys_action")?,
        sources_per_key: spread("sources_most", "sources_within_ms", "sources_action")?,
    })
}

/// The columns of a principal's row, by their places: to find each by its name takes longer than to read it.
mod seat_column {
    pub(super) const INDEX: usize = 0;
    pub(super) const NAME: usize = 1;
    pub(super) const REMOVED: usize = 2;
    pub(super) const LIMITS: usize = 3;
    pub(super) const CANDIDATE: usize = 4;
    pub(super) const PLAN: usize = 5;
    pub(super) const OWN: usize = 6;
    pub(super) const UNTIL: usize = 7;
    pub(super) const OWN_CANDIDATE: usize = 8;
    pub(super) const TENANT: usize = 9;
}

/// A principal's row: its seat, and what is said of it unless it is removed.
fn seat_of(
    row: &Row<'_>,
    clients: BTreeMap<String, (u32, Option<Limits>)>,
    limits: &mut Parsed,
) -> Result<(Seat, Option<Principal>), Wrong> {
    let removed: bool = row.get(seat_column::REMOVED)?;
    let seat = Seat {
        index: row.get(seat_column::INDEX)?,
        limits: limits.read(row, seat_column::LIMITS)?.unwrap_or(Limits::Blocked),
        candidate: limits.read(row, seat_column::CANDIDATE)?,
        removed,
        clients,
    };
    if removed {
        return Ok((seat, None));
    }
    let plan: Option<String> = row.get(seat_column::PLAN)?;
    let until: Option<i64> = row.get(seat_column::UNTIL)?;
    let own = limits.read(row, seat_column::OWN)?.map(Limits::canonical);
    let terms = match (plan, own) {
        (Some(plan), Some(limits)) => {
            Terms::Plan { plan, instead: Some(Override { limits, until: until.map(timestamp) }) }
        }
        (Some(plan), None) => Terms::Plan { plan, instead: None },
        (None, Some(limits)) => Terms::Own(limits),
        (None, None) => return Err(Wrong::Value("it has neither a plan nor limits".into())),
    };
    let said = seat.clients.iter().filter_map(|(id, (_, limits))| Some((id.clone(), limits.clone()?.canonical())));
    let candidate = limits.read(row, seat_column::OWN_CANDIDATE)?.map(Limits::canonical);
    let principal = Principal { terms, tenant: row.get(seat_column::TENANT)?, candidate, clients: said.collect() };
    Ok((seat, Some(principal)))
}

fn list<T: FromStr<Err: std::fmt::Display>>(row: &Row<'_>, column: &str) -> Result<Vec<T>, Wrong> {
    let text: String = row.get(column)?;
    let parse = |word: &str| word.parse().map_err(|error| Wrong::Value(format!("{column}: {error}")));
    text.split_whitespace().map(parse).collect()
}

fn joined(values: &[impl ToString]) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// A value as it is written, for what may be none.
fn text(value: Option<&impl ToString>) -> Option<String> {
    value.map(ToString::to_string)
}

/// At most a day, as they are read.
fn milliseconds(time: Duration) -> impl ToSql {
    time.as_millis() as i64
}

#[cfg(test)]
mod tests;
