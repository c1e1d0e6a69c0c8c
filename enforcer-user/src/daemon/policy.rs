//! Whole policies: applied, on trial, and told.

use std::collections::{BTreeMap, HashSet};

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;

use super::forecast::RuleName;
use super::registry::{Error, Registry};
use super::rulebook::{Groups, Rulebook, Terms};
use super::tables::Seat;
use super::trial::{Change, Trial};
use super::{Daemon, forecast};
use crate::api::{ApplyPolicy, PolicyApplied, PolicyText, Refusal};
use crate::kernel;
use crate::policy::document::Policy;
use crate::policy::routes::TooLarge;
use crate::policy::{diff, file};
use crate::store::{Placed, Store};

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
        Ok((book, forecast::rules(policy, placed, seats)))
    }
}

/// The policy that holds, of these services alone.
fn of_services<'n>(
    store: &Store,
    names: impl Iterator<Item = &'n String>,
    now: Timestamp,
) -> Result<(Policy, Placed), Error> {
    let names: HashSet<&String> = names.collect();
    let (mut policy, mut placed) = store.policy(now)?;
    policy.services.retain(|name, _| names.contains(name));
    placed.services.retain(|name, _| names.contains(name));
    Ok((policy, placed))
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
        let (known, _) = store.policy(now)?;
        if names.iter().any(|name| !known.services.contains_key(name)) {
            let change = store.begin()?;
            store.write_policy(&known.with_services(names), now)?;
            change.commit()?;
        }
        let (policy, placed) = of_services(store, names.iter(), now)?;
        let groups = Groups::of(&policy, &placed);
        let terms = terms(&groups, &policy, &placed, now).into_iter().collect();
        let services = placed.services.iter().map(|(name, site)| (name.clone(), site.number)).collect();
        Ok(Held { services, groups, terms, policy, placed })
    }

    /// The policy that holds, of the services that are guarded.
    pub(super) fn policy(&self, now: Timestamp) -> Result<(Policy, Placed), Error> {
        of_services(&self.store, self.tables.seats().keys(), now)
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
        let wanted = file::parse(file, text).map_err(|problems| refuse(problems.to_string()))?;
        let seats = self.tables.seats().clone();
        if let Some(name) = wanted.services.keys().find(|&name| !seats.contains_key(name)) {
            let there: Vec<&str> = seats.keys().map(String::as_str).collect();
            let message = format!("{file}: error: no service {name:?} is guarded; accepted: {}", there.join(", "));
            return Err(refuse(message));
        }
        let wanted = wanted.with_services(seats.keys());
        let (current, held) = self.policy(now)?;
        let keyed = match prune {
            true => Some(self.store.keys()?.into_iter().map(|key| key.name).collect::<HashSet<_>>()),
            false => None,
        };
        let wanted = wanted.merged(&current, keyed.as_ref()).map_err(|conflicts| {
            let all: Vec<String> = conflicts.iter().map(|conflict| format!("{file}: error: {conflict}")).collect();
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
        let change = self.store.begin()?;
        let placed = self.store.write_policy(&wanted, now)?;
        let book = Rulebook::new(&wanted, &placed, &seats, self.secret).map_err(|error| too_large(&error))?;
        let before = terms(&Groups::of(&current, &held), &current, &held, now);
        let after = terms(&Groups::of(&wanted, &placed), &wanted, &placed, now);
        let removed = before.keys().filter(|index| !after.contains_key(index)).copied().collect();
        let changed = after.into_iter().filter(|(index, terms)| before.get(index) != Some(terms));
        let changed: Vec<Change> =
            changed.map(|(index, terms)| Change { index, is_new: !before.contains_key(&index), terms }).collect();
        let switch = self.tables.lay_out(&book, &changed, removed)?;
        let Some(seconds) = *confirm_seconds else {
            if let Err(error) = change.commit() {
                self.tables.revert(switch)?;
                return Err(error.into());
            }
            self.follow(&wanted, &placed)?;
            self.tables.switch(None)?;
            self.tables.settle(switch)?;
            return Ok(answer(None));
        };
        // The store goes on saying what holds once the time is over.
        drop(change);
        let until = kernel::now().saturating_add(seconds.saturating_mul(1_000_000_000));
        self.tables.switch(Some(until))?;
        self.trial = Some(Trial { policy: wanted, until, switch });
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        Ok(answer(now.checked_add(SignedDuration::from_secs(seconds)).ok()))
    }

    /// Keeps what is on trial.
    pub(crate) fn confirm(&mut self, now: Timestamp) -> Result<(), Error> {
        self.end_trial()?;
        let Some(Trial { policy, switch, .. }) = self.trial.take() else { return Err(not_on_trial()) };
        let change = self.store.begin()?;
        let placed = self.store.write_policy(&policy, now)?;
        change.commit()?;
        self.follow(&policy, &placed)?;
        Ok(self.tables.settle(switch)?)
    }

    /// Takes note of the policy that holds from now on. A count that was another rule's begins anew.
    fn follow(&mut self, policy: &Policy, placed: &Placed) -> Result<(), Error> {
        let rules = forecast::rules(policy, placed, self.tables.seats());
        for (index, _) in rules.iter().filter(|rule| !self.rules.contains(rule)) {
            self.tables.kernel_mut().clear_tally(*index)?;
        }
        self.groups = Groups::of(policy, placed);
        self.rules = rules;
        Ok(())
    }

    /// Ends what is on trial.
    pub(crate) fn roll_back(&mut self) -> Result<(), Error> {
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

    /// The policy that holds, as a file.
    pub(crate) fn export_policy(&self, now: Timestamp) -> Result<PolicyText, Error> {
        let (policy, _) = self.policy(now)?;
        Ok(PolicyText { text: policy.export() })
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

fn not_on_trial() -> Error {
    Error::Conflict(Refusal::new("no policy is on trial, or its time is over"))
}

/// All shares of client ids.
fn clients(policy: &Policy) -> BTreeMap<&str, &BTreeMap<String, crate::policy::Limits>> {
    let all = policy.principals.iter().map(|(name, said)| (name.as_str(), &said.clients));
    all.filter(|(_, clients)| !clients.is_empty()).collect()
}
