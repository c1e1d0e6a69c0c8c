//! Whole policies: applied, on trial, and told.

use std::collections::{BTreeMap, HashSet};

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp, Unit};
use tokio::sync::watch;

use super::forecast::RuleName;
use super::registry::{Error, Registry, check_index};
use super::rulebook::{Groups, Rulebook, Terms};
use super::tables::{Seat, Tables};
use super::trial::{Change, Switch, Trial};
use super::{Daemon, forecast};
use crate::api::{ApplyPolicy, PolicyApplied, PolicyText, Refusal};
use crate::kernel;
use crate::policy::document::Policy;
use crate::policy::routes::TooLarge;
use crate::policy::{diff, file};
use crate::store::{Placed, PlacedPrincipal, Principal, Store, StoredTrial};

/// Longest time for which a policy is on trial, in seconds.
pub(crate) const MOST_ON_TRIAL: u64 = 86_400;

/// What the store says.
pub(super) struct Held {
    /// The number of each service.
    pub(super) services: BTreeMap<String, u32>,
    /// What principals are under beside what is said of each.
    pub(super) groups: Groups,
    /// What each principal is under, by its index.
    pub(super) terms: Vec<(u32, Terms)>,
    /// Of principals only those that have clients.
    policy: Policy,
    placed: Placed,
}

impl Held {
    /// The rules, for services in these slots, and what those that are counted by themselves are called.
    pub(super) fn rules(
        &self,
        seats: &BTreeMap<String, Seat>,
        secret: [u64; 2],
    ) -> Result<(Rulebook, Vec<(u32, RuleName)>), Error> {
        let Self { policy, placed, .. } = self;
        let book = Rulebook::new(policy, placed, seats, secret).map_err(|error| too_large(&error))?;
        warn_of_disagreements(seats, policy);
        Ok((book, forecast::rules(policy, placed, seats)))
    }
}

/// A policy with its numbers, of these services alone.
fn of_services<'n>(
    (mut policy, mut placed): (Policy, Placed),
    names: impl Iterator<Item = &'n String>,
) -> (Policy, Placed) {
    let names: HashSet<&String> = names.collect();
    policy.services.retain(|name, _| names.contains(name));
    placed.services.retain(|name, _| names.contains(name));
    (policy, placed)
}

/// The names of services with the same ports, of each such set that one first which the ports lead to.
fn together(seats: &BTreeMap<String, Seat>) -> Vec<Vec<String>> {
    let leaders = seats.iter().filter(|(_, seat)| seat.leads());
    let sets = leaders.map(|(leader, own)| {
        let others = seats.iter().filter(|(_, seat)| seat.leader == own.number && !seat.leads());
        std::iter::once(leader).chain(others.map(|(name, _)| name)).cloned().collect::<Vec<_>>()
    });
    sets.filter(|names| names.len() > 1).collect()
}

/// Says in the log what services with the same ports do not agree on: the configuration has changed behind the policy.
fn warn_of_disagreements(seats: &BTreeMap<String, Seat>, policy: &Policy) {
    for names in together(seats) {
        let said = |name: &String| policy.services.get(name).map(|site| &site.service);
        let Some(first) = said(&names[0]) else { continue };
        for (name, other) in names[1..].iter().filter_map(|name| Some((name, said(name)?))) {
            let fields = first.disagreements(other);
            if !fields.is_empty() {
                tracing::warn!(
                    "{} and {name} have the same ports, but the policy says different {} of them: what it says of {} holds for \
                     both until another is applied",
                    names[0],
                    fields.join(", "),
                    names[0]
                );
            }
        }
    }
}

fn too_large(error: &TooLarge) -> Error {
    Error::Invalid(Refusal::of("text", error.to_string(), "fewer paths, or fewer with {id} beside names"))
}

/// What each principal is under.
fn terms(groups: &Groups, policy: &Policy, placed: &Placed, now: Timestamp) -> BTreeMap<u32, Terms> {
    let both = policy.principals.iter().filter_map(|(name, said)| Some((said, placed.principals.get(name)?)));
    both.map(|(said, placed)| (placed.index, Terms::of_principal(groups, said, placed, now))).collect()
}

impl Registry {
    /// What the store says of all principals, and of the services of these names. Those that are new get numbers.
    pub(super) fn load(store: &Store, names: &[String], now: Timestamp) -> Result<Held, Error> {
        let mut held = store.policy_of_services(now)?;
        if names.iter().any(|name| !held.0.services.contains_key(name)) {
            let (known, _) = store.policy(now)?;
            let change = store.begin()?;
            store.write_policy(&known.with_services(names), now)?;
            change.commit()?;
            held = store.policy_of_services(now)?;
        }
        let (mut policy, mut placed) = of_services(held, names.iter());
        let groups = Groups::of(&policy, &placed);
        let mut terms = Vec::new();
        let Policy { plans, principals, .. } = &mut policy;
        store.each_principal(plans, now, |name, said, numbers| {
            terms.push((numbers.index, Terms::of_principal(&groups, &said, &numbers, now)));
            // Beside its terms a principal has nothing in the maps but its clients.
            if !numbers.clients.is_empty() {
                principals.insert(name.clone(), said);
                placed.principals.insert(name, numbers);
            }
        })?;
        let services = placed.services.iter().map(|(name, site)| (name.clone(), site.number)).collect();
        Ok(Held { services, groups, terms, policy, placed })
    }

    /// The policy that holds, of the services that are guarded.
    pub(super) fn policy(&self, now: Timestamp) -> Result<(Policy, Placed), Error> {
        Ok(of_services(self.store.policy(now)?, self.tables.seats().keys()))
    }

    /// Likewise, without any principals, of which there may be many.
    pub(super) fn policy_of_services(&self, now: Timestamp) -> Result<(Policy, Placed), Error> {
        Ok(of_services(self.store.policy_of_services(now)?, self.tables.seats().keys()))
    }

    /// Makes a policy the one that holds, all of it or none; or only says what would change.
    pub(crate) fn apply_policy(&mut self, request: &ApplyPolicy, now: Timestamp) -> Result<PolicyApplied, Error> {
        let ApplyPolicy { text, file, dry_run, confirm_seconds, prune } = request;
        self.refuse_on_trial()?;
        if let Some(seconds) = confirm_seconds
            && !(1..=MOST_ON_TRIAL).contains(seconds)
        {
            let accepted = format!("1 to {MOST_ON_TRIAL} seconds");
            return Err(Error::Invalid(Refusal::of("confirm_seconds", "this is no time to confirm within", accepted)));
        }
        let refuse = |message: String| Error::Invalid(Refusal { message, field: Some("text".into()), accepted: None });
        let seats = self.tables.seats().clone();
        let wanted = file::parse_for(&together(&seats), file, text).map_err(|problems| refuse(problems.to_string()))?;
        if let Some(name) = wanted.services.keys().find(|&name| !seats.contains_key(name)) {
            let there: Vec<&str> = seats.keys().map(String::as_str).collect();
            let unknown = file::at_service(file, text, name, "no such service is guarded", &there.join(", "));
            return Err(refuse(unknown.to_string()));
        }
        let wanted = wanted.with_services(seats.keys());
        let (current, held) = self.policy(now)?;
        let keyed = match prune {
            true => Some(self.store.keys()?.into_iter().map(|key| key.name).collect::<HashSet<_>>()),
            false => None,
        };
        let wanted = wanted.merged(&current, keyed.as_ref()).map_err(|conflicts| {
            let all: Vec<String> = conflicts.iter().map(|conflict| format!("{file}: {conflict}")).collect();
            refuse(all.join("\n"))
        })?;
        let changes = diff::diff(&current, &wanted);
        let answer = |until: Option<Timestamp>| PolicyApplied {
            changes: changes.clone(),
            applied: !dry_run,
            on_trial_until: until,
        };
        if *dry_run || changes.is_empty() {
            return Ok(answer(None));
        }
        if confirm_seconds.is_some() && clients(&current) != clients(&wanted) {
            let message = "shares of client ids change, and these cannot be tried: apply them without --confirm first";
            return Err(Error::Conflict(Refusal::of("confirm_seconds", message, "no time")));
        }
        if let Some(seconds) = *confirm_seconds {
            let until = kernel::now().saturating_add(seconds.saturating_mul(1_000_000_000));
            let Self { store, tables, secret, .. } = self;
            let trial = begin_trial(store, tables, *secret, (&current, &held), (wanted, until), now)?;
            let ends = trial.ends();
            self.trial = Some(trial);
            return Ok(answer(Some(ends)));
        }
        self.hold((&current, &held), &wanted, now)?;
        Ok(answer(None))
    }

    /// Makes another policy hold for good, all of it or none.
    pub(super) fn hold(&mut self, before: (&Policy, &Placed), wanted: &Policy, now: Timestamp) -> Result<(), Error> {
        let change = self.store.begin()?;
        let (placed, switch) = lay_out(&self.store, &mut self.tables, self.secret, before, wanted, now)?;
        if let Err(error) = change.commit() {
            self.tables.revert(switch)?;
            return Err(error.into());
        }
        let (policy, placed) = of_services((wanted.clone(), placed), self.tables.seats().keys());
        self.follow(&policy, &placed)?;
        self.tables.switch(None)?;
        Ok(self.tables.settle(switch)?)
    }

    /// Goes on with what an earlier daemon has left on trial until then, in ns of CLOCK_BOOTTIME. From when the maps were
    /// brought to the store until here what held before holds.
    pub(super) fn resume_trial(
        store: &Store,
        tables: &mut Tables,
        secret: [u64; 2],
        until: u64,
        now: Timestamp,
    ) -> Result<Option<Trial>, Error> {
        let Some(StoredTrial { until: stored, text }) = store.trial()? else { return Ok(None) };
        let policy = match file::parse("the policy on trial", &text) {
            Ok(policy) if stored == until && until > kernel::now() => policy,
            Ok(_) => {
                tracing::warn!("the policy on trial was not confirmed in time: what held before holds again");
                store.forget_trial()?;
                return Ok(None);
            }
            Err(problems) => {
                tracing::error!("the policy on trial cannot be read, and what held before holds again: {problems}");
                store.forget_trial()?;
                return Ok(None);
            }
        };
        if !policy.services.keys().eq(tables.seats().keys()) {
            tracing::warn!("other services are guarded than when the policy on trial was applied: it ends");
            store.forget_trial()?;
            return Ok(None);
        }
        let (current, held) = of_services(store.policy(now)?, policy.services.keys());
        match begin_trial(store, tables, secret, (&current, &held), (policy, until), now) {
            Ok(trial) => {
                tracing::warn!("{}: it goes on behind this start", trial.told());
                Ok(Some(trial))
            }
            Err(error) => {
                tracing::error!("the policy on trial cannot go on, and what held before holds again: {error}");
                store.forget_trial()?;
                Ok(None)
            }
        }
    }

    /// Keeps what is on trial.
    pub(crate) fn confirm(&mut self, now: Timestamp) -> Result<(), Error> {
        self.end_trial()?;
        let Some(Trial { policy, .. }) = &self.trial else { return Err(not_on_trial()) };
        let change = self.store.begin()?;
        let placed = self.store.write_policy(policy, now)?;
        self.store.forget_trial()?;
        change.commit()?;
        let Some(Trial { policy, switch, .. }) = self.trial.take() else { return Err(not_on_trial()) };
        self.follow(&policy, &placed)?;
        Ok(self.tables.settle(switch)?)
    }

    /// Takes note of the policy that holds from now on. A count that was another rule's begins anew.
    fn follow(&mut self, policy: &Policy, placed: &Placed) -> Result<(), Error> {
        let rules = forecast::rules(policy, placed, self.tables.seats());
        let known: HashSet<_> = self.rules.iter().collect();
        for (index, _) in rules.iter().filter(|rule| !known.contains(rule)) {
            self.tables.kernel_mut().clear_tally(*index)?;
        }
        self.groups = Groups::of(policy, placed);
        self.rules = rules;
        Ok(())
    }

    /// Ends what is on trial.
    pub(crate) fn roll_back(&mut self) -> Result<(), Error> {
        if self.trial.is_some() {
            self.store.forget_trial()?;
        }
        let Some(Trial { switch, .. }) = self.trial.take() else { return Err(not_on_trial()) };
        Ok(self.tables.revert(switch)?)
    }

    /// Ends what is on trial if its time is over: in the kernel it has ended by itself.
    pub(crate) fn end_trial(&mut self) -> Result<(), Error> {
        if self.trial.as_ref().is_some_and(|trial| trial.until <= kernel::now()) {
            tracing::warn!("the policy on trial was not confirmed in time: what held before holds again");
            self.roll_back()?;
        }
        Ok(())
    }

    /// What is on trial, while it holds.
    pub(super) fn on_trial(&self) -> Option<&Trial> {
        self.trial.as_ref().filter(|trial| trial.until > kernel::now())
    }

    /// The policy that holds, as a file.
    pub(crate) fn export_policy(&self, now: Timestamp) -> Result<PolicyText, Error> {
        match self.on_trial() {
            Some(trial) => {
                let text = format!("# {}\n{}", trial.told(), trial.policy.export());
                Ok(PolicyText { text, on_trial_until: Some(trial.ends()) })
            }
            None => Ok(PolicyText { text: self.policy(now)?.0.export(), on_trial_until: None }),
        }
    }
}

/// Ends what is on trial, and limits in place of a plan's, once their time is over, within a second.
pub(super) async fn watch(daemon: Arc<Daemon>, mut stopped: watch::Receiver<bool>) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = stopped.wait_for(|stop| *stop) => return,
        }
        match daemon.with(|registry| registry.end_trial()).await {
            Ok(()) => {}
            Err(Error::Stopping) => return,
            Err(error) => {
                tracing::error!("a policy whose time on trial is over could not be cleared away: {error}");
            }
        }
        match daemon.with(|registry| registry.end_overrides(Timestamp::now())).await {
            Ok(()) => {}
            Err(Error::Stopping) => return,
            Err(error) => tracing::error!("limits whose time is over could not be cleared away: {error}"),
        }
    }
}

/// Lays out a policy beside the one that holds, inside a change of the store that has begun; its numbers.
fn lay_out(
    store: &Store,
    tables: &mut Tables,
    secret: [u64; 2],
    (current, held): (&Policy, &Placed),
    wanted: &Policy,
    now: Timestamp,
) -> Result<(Placed, Switch), Error> {
    let placed = store.write_policy(wanted, now)?;
    let book = Rulebook::new(wanted, &placed, tables.seats(), secret).map_err(|error| too_large(&error))?;
    let before = terms(&Groups::of(current, held), current, held, now);
    let after = terms(&Groups::of(wanted, &placed), wanted, &placed, now);
    after.keys().next_back().map_or(Ok(()), |last| check_index(*last))?;
    let removed = before.keys().filter(|index| !after.contains_key(index)).copied().collect();
    let changed = after.into_iter().filter(|(index, terms)| before.get(index) != Some(terms));
    let changed: Vec<Change> =
        changed.map(|(index, terms)| Change { index, is_new: !before.contains_key(&index), terms }).collect();
    let switch = tables.lay_out(&book, &changed, removed)?;
    Ok((placed, switch))
}

/// Lets a policy hold until then, in ns of CLOCK_BOOTTIME, and notes it for a daemon that takes over.
fn begin_trial(
    store: &Store,
    tables: &mut Tables,
    secret: [u64; 2],
    before: (&Policy, &Placed),
    (policy, until): (Policy, u64),
    now: Timestamp,
) -> Result<Trial, Error> {
    let change = store.begin()?;
    store.number(&policy)?;
    change.commit()?;
    let change = store.begin()?;
    let (placed, switch) = lay_out(store, tables, secret, before, &policy, now)?;
    // The store goes on saying what holds once the time is over.
    drop(change);
    // Noted first: what is noted and does not hold is forgotten at the next start, and the other way round it would end.
    let noted = store.set_trial(&StoredTrial { until, text: policy.export() });
    if let Err(error) = noted.map_err(Error::from).and_then(|()| Ok(tables.switch(Some(until))?)) {
        tables.revert(switch)?;
        return Err(error);
    }
    let groups = Groups::of(&policy, &placed);
    Ok(Trial { policy, placed, groups, until, switch })
}

impl Trial {
    /// The principal of this name, as the policy has it.
    pub(super) fn principal(&self, name: &str) -> Option<Principal> {
        let PlacedPrincipal { index, limits, .. } = self.placed.principals.get(name)?;
        let tenant = self.policy.principals.get(name)?.tenant.clone();
        Some(Principal { index: *index, name: name.to_owned(), limits: limits.clone(), tenant })
    }

    /// When it ends by itself.
    pub(super) fn ends(&self) -> Timestamp {
        let left = i64::try_from(self.until.saturating_sub(kernel::now())).unwrap_or(i64::MAX);
        let ends = Timestamp::now().checked_add(SignedDuration::from_nanos(left)).unwrap_or(Timestamp::MAX);
        ends.round(Unit::Second).unwrap_or(ends)
    }

    /// What says that it goes on.
    pub(super) fn told(&self) -> String {
        format!(
            "a policy is on trial until {}: `enforcer confirm` keeps it, `enforcer rollback` ends it; what held before \
             holds again after that time",
            self.ends()
        )
    }
}

fn not_on_trial() -> Error {
    Error::Conflict(Refusal::new("no policy is on trial, or its time is over"))
}

/// All shares of client ids.
fn clients(policy: &Policy) -> BTreeMap<&str, &BTreeMap<String, crate::policy::Limits>> {
    let all = policy.principals.iter().map(|(name, said)| (name.as_str(), &said.clients));
    all.filter(|(_, clients)| !clients.is_empty()).collect()
}
