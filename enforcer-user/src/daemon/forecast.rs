//! What rules have refused, and whom candidates and rules that observe would have refused.

use enforcer_ebpf::abi::{scope, tally};
use jiff::Timestamp;

use super::registry::{Error, Registry};
use super::rulebook::{tally_of_plan, tally_of_scope};
use crate::api::{Forecast, PrincipalForecast, RuleForecast};
use crate::policy::document::{Charge, Policy};
use crate::store::Placed;

/// All rules that are counted by themselves: their index in the map of tallies, and what they are called.
pub(super) fn rules(policy: &Policy, placed: &Placed) -> Vec<(u32, String)> {
    let service = [
        (scope::SOURCE, "source"),
        (scope::GUESSES, "guesses"),
        (scope::PREFLIGHT, "preflight"),
        (scope::SERVICE, "ceiling"),
        (scope::KEY, "keys"),
        (scope::CLIENT, "clients"),
    ];
    let mut rules: Vec<(u32, String)> =
        service.into_iter().map(|(number, name)| (tally_of_scope(number), name.to_owned())).collect();
    let plans = policy.plans.keys().map(|name| (tally_of_plan(&policy.plans, name), format!("plan {name}")));
    rules.extend(plans);
    let tenants = placed.tenants.iter();
    rules.extend(tenants.map(|(name, quota)| (tally_of_scope(u64::from(quota.scope)), format!("tenant {name}"))));
    let limits = placed.limits.iter();
    rules.extend(limits.map(|(name, quota)| (tally_of_scope(u64::from(quota.scope)), format!("limit {name}"))));
    for (route, quota) in policy.routes.iter().zip(&placed.routes) {
        if let (Some(Charge::Own(_)), Some(quota)) = (&route.charge, quota) {
            rules.push((tally_of_scope(u64::from(quota.scope)), format!("route {route}")));
        }
    }
    for (public, quota) in policy.public.iter().zip(&placed.public) {
        rules.push((tally_of_scope(u64::from(quota.scope)), format!("public {public}")));
    }
    rules.retain(|(index, _)| *index != 0);
    rules
}

impl Registry {
    /// What rules have refused, and would have.
    pub(crate) fn forecast(&self, now: Timestamp) -> Result<Forecast, Error> {
        let (policy, placed) = self.store.policy(now)?;
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
        for (index, rule) in rules(&policy, &placed) {
            let counts = self.tables.kernel().tally(index)?;
            answer.rules.push(RuleForecast {
                rule,
                refused: counts[tally::REFUSED],
                would_refuse: counts[tally::WOULD_REFUSE],
                candidate_would_refuse: counts[tally::CANDIDATE],
            });
        }
        Ok(answer)
    }
}
