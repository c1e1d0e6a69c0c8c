//! What rules have refused, and whom candidates and rules that observe would have refused.

use std::collections::BTreeMap;

use enforcer_ebpf::abi::{scope, tally};
use jiff::Timestamp;

use super::registry::{Error, Registry};
use super::rulebook::{tallied, tally_of_scope, tally_of_service};
use super::tables::Seat;
use crate::api::{Forecast, PrincipalForecast, RuleForecast};
use crate::policy::document::{Charge, Policy, Site};
use crate::policy::service::OWN_LIMITS;
use crate::store::{Placed, PlacedSite};

/// What a rule is called.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RuleName {
    /// The service that it is of; `None` for what all of them share.
    pub(crate) service: Option<String>,
    /// `plan gold`, `route /search`, `source`.
    pub(crate) rule: String,
}

/// All rules that are counted by themselves: their index in the map of tallies, and what they are called.
pub(super) fn rules(policy: &Policy, placed: &Placed, seats: &BTreeMap<String, Seat>) -> Vec<(u32, RuleName)> {
    let shared = |rule: String| RuleName { service: None, rule };
    let keys = [(scope::KEY, "keys"), (scope::CLIENT, "clients")];
    let mut rules: Vec<(u32, RuleName)> =
        keys.into_iter().map(|(number, name)| (tally_of_scope(number), shared(name.to_owned()))).collect();
    rules.extend(tallied(&policy.plans).map(|(name, _, index)| (index, shared(format!("plan {name}")))));
    let tenants = placed.tenants.iter();
    rules.extend(
        tenants.map(|(name, quota)| (tally_of_scope(u64::from(quota.scope)), shared(format!("tenant {name}")))),
    );
    for (name, seat) in seats {
        if let (Some(site), Some(placed)) = (policy.services.get(name), placed.services.get(name)) {
            let named = of_service(seat.slot, site, placed).into_iter();
            rules.extend(named.map(|(index, rule)| (index, RuleName { service: Some(name.clone()), rule })));
        }
    }
    rules.retain(|(index, _)| *index != 0);
    rules
}

/// Those of the service in a slot.
fn of_service(slot: u32, site: &Site, placed: &PlacedSite) -> Vec<(u32, String)> {
    let own = OWN_LIMITS.map(|(name, limit)| (tally_of_service(slot, limit.scope()), name.to_owned()));
    let mut rules: Vec<(u32, String)> = own.into();
    let limits = placed.limits.iter();
    rules.extend(limits.map(|(name, quota)| (tally_of_scope(u64::from(quota.scope)), format!("limit {name}"))));
    for (route, quota) in site.routes.iter().zip(&placed.routes) {
        if let (Some(Charge::Own(_)), Some(quota)) = (&route.charge, quota) {
            rules.push((tally_of_scope(u64::from(quota.scope)), format!("route {route}")));
        }
    }
    for (public, quota) in site.public.iter().zip(&placed.public) {
        rules.push((tally_of_scope(u64::from(quota.scope)), format!("public {public}")));
    }
    rules
}

impl Registry {
    /// What rules have refused, and would have.
    pub(crate) fn forecast(&self, now: Timestamp) -> Result<Forecast, Error> {
        let (policy, placed) = self.policy(now)?;
        let mut answer = Forecast { principals: Vec::new(), rules: Vec::new() };
        for (name, seat) in &placed.principals {
            let meter = self.tables.meter(seat.index)?;
            answer.principals.push(PrincipalForecast {
                name: name.clone(),
                limit: seat.limits.to_string(),
                candidate: seat.candidate.as_ref().map(ToString::to_string),
                allowed: meter.allowed,
                would_refuse: meter.would_refuse,
                candidate_would_refuse: meter.candidate,
            });
        }
        answer.principals.retain(|one| one.would_refuse + one.candidate_would_refuse > 0);
        answer.principals.sort_by_key(|one| std::cmp::Reverse(one.candidate_would_refuse.max(one.would_refuse)));
        for (index, RuleName { service, rule }) in rules(&policy, &placed, self.tables.seats()) {
            let counts = self.tables.kernel().tally(index)?;
            answer.rules.push(RuleForecast {
                service,
                rule,
                refused: counts[tally::REFUSED],
                would_refuse: counts[tally::WOULD_REFUSE],
                candidate_would_refuse: counts[tally::CANDIDATE],
            });
        }
        Ok(answer)
    }
}
