//! Exemptions that come and go while the daemon runs. They are part of the policy that holds, like those of a file.

use jiff::Timestamp;

use super::registry::{Error, Registry};
use crate::api::{AddExemption, HeldExemption, PolicyApplied, Refusal, RemoveExemption};
use crate::policy::document::{Exemption, MAX_EXEMPTIONS, Policy, Site, tail};
use crate::policy::exemption::Unfit;
use crate::policy::method::Methods;
use crate::policy::{diff, exemptions};

impl From<Unfit> for Error {
    fn from(Unfit { field, message, accepted }: Unfit) -> Self {
        Self::Invalid(Refusal::of(field, message, accepted))
    }
}

impl Registry {
    /// All exemptions of the services that are guarded; while a policy is on trial, that one's.
    pub(crate) fn exemptions(&self, now: Timestamp) -> Result<Vec<HeldExemption>, Error> {
        let held = match self.on_trial() {
            Some(trial) => trial.policy.clone(),
            None => self.policy_of_services(now)?.0,
        };
        let mut all = Vec::new();
        for (service, site) in &held.services {
            all.extend(site.exempt.iter().map(|one| HeldExemption::of(service, one, now)));
        }
        Ok(all)
    }

    /// Adds an exemption; one of the same paths, methods and sources gets the new end and reason.
    pub(crate) fn add_exemption(&mut self, request: &AddExemption, now: Timestamp) -> Result<PolicyApplied, Error> {
        let AddExemption { service, path, methods, sources, until, reason } = request;
        let added = Exemption::read(path, methods, sources, (now, *until), reason)?;
        self.make_room(now)?;
        self.change_policy(now, |policy, guarded| {
            let site = site_of(policy, guarded, service.as_deref())?;
            site.exempt.retain(|one| one.identity() != added.identity());
            site.exempt.push(added);
            site.sort();
            if !exemptions::have_room(&site.exempt) {
                let message = "the sources of all exemptions together are too many";
                return Err(Error::Conflict(Refusal::of("sources", message, exemptions::room())));
            }
            has_room(policy)
        })
    }

    /// Lets exemptions that are over go where there is no room for another. They go before it comes: with the number of one of them it
    /// would have that one's paths for a moment.
    fn make_room(&mut self, now: Timestamp) -> Result<(), Error> {
        let (policy, _) = self.store.policy_of_services(now)?;
        if count(&policy) < MAX_EXEMPTIONS {
            return Ok(());
        }
        self.change_policy(now, |policy, _| {
            policy.services.values_mut().for_each(|site| site.exempt.retain(|one| one.until > now));
            Ok(())
        })?;
        Ok(())
    }

    /// Takes an exemption away.
    pub(crate) fn remove_exemption(
        &mut self,
        request: &RemoveExemption,
        now: Timestamp,
    ) -> Result<PolicyApplied, Error> {
        let RemoveExemption { service, path, methods, sources } = request;
        let named = Exemption::named(path, methods, sources)?;
        self.change_policy(now, |policy, guarded| {
            let site = site_of(policy, guarded, service.as_deref())?;
            let before = site.exempt.len();
            site.exempt.retain(|one| one.identity() != named.identity());
            if site.exempt.len() == before {
                let message = format!("there is no exemption {named}; see `enforcer exempt ls`");
                return Err(Error::NotFound(Refusal::of("path", message, "one with its methods and all its sources")));
            }
            Ok(())
        })
    }

    /// Makes the policy that holds another one, from one moment on.
    fn change_policy(
        &mut self,
        now: Timestamp,
        change: impl FnOnce(&mut Policy, &[&String]) -> Result<(), Error>,
    ) -> Result<PolicyApplied, Error> {
        self.refuse_on_trial()?;
        // Services that are not guarded now keep what is said of them.
        let (current, held) = self.store.policy(now)?;
        let mut wanted = current.clone();
        change(&mut wanted, &self.tables.seats().keys().collect::<Vec<_>>())?;
        let changes = diff::diff(&current, &wanted);
        if !changes.is_empty() {
            self.hold((&current, &held), &wanted, now)?;
        }
        Ok(PolicyApplied { changes, applied: true, on_trial_until: None })
    }
}

/// What is said of the service of this name, or of the only one.
fn site_of<'p>(policy: &'p mut Policy, guarded: &[&String], name: Option<&str>) -> Result<&'p mut Site, Error> {
    let accepted = || guarded.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
    let name = match (name, guarded) {
        (Some(name), _) if guarded.iter().any(|one| *one == name) => name,
        (Some(name), _) => {
            let message = format!("no service {name:?} is guarded");
            return Err(Error::NotFound(Refusal::of("service", message, accepted())));
        }
        (None, [only]) => only,
        (None, _) => return Err(Error::Invalid(Refusal::of("service", "there are several", accepted()))),
    };
    Ok(policy.services.entry(name.to_owned()).or_default())
}

fn count(policy: &Policy) -> usize {
    policy.services.values().map(|site| site.exempt.len()).sum()
}

fn has_room(policy: &Policy) -> Result<(), Error> {
    if count(policy) > MAX_EXEMPTIONS {
        let message = format!("there are {MAX_EXEMPTIONS} exemptions, as many as there may be");
        return Err(Error::Conflict(Refusal::of("path", message, "to remove one before: `enforcer exempt rm`")));
    }
    Ok(())
}

impl HeldExemption {
    fn of(service: &str, exemption: &Exemption, now: Timestamp) -> Self {
        let Exemption { path, reach, methods, sources, until, reason } = exemption;
        let left = until.duration_since(now).as_nanos().max(0);
        Self {
            service: service.to_owned(),
            path: format!("{path}{}", tail(path, *reach)),
            methods: if *methods == Methods::ALL { Vec::new() } else { methods.words().map(str::to_owned).collect() },
            sources: sources.iter().map(ToString::to_string).collect(),
            until: *until,
            remaining_ns: u64::try_from(left).unwrap_or(u64::MAX),
            reason: reason.clone(),
        }
    }
}
