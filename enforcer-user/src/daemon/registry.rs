//! Principals, keys and limits: each operation checks everything, then changes the store and the maps, or neither.
//!
//! The store's transaction stays open while the maps are changed, and is committed last. A daemon that dies in between
//! finds the maps ahead of the store, and its next start brings them back: the operator was never told otherwise.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use enforcer_ebpf::abi::{self, KeyTag};
use jiff::{SignedDuration, Timestamp};

use super::forecast::RuleName;
use super::rulebook::{Groups, Terms};
use super::tables::{HeldKey, Step, Tables};
use super::trial::Trial;
use crate::api::{
    AddKey, ChangedKey, ImportEntry, ImportKeys, KeyAdded, KeyRotated, KeysChanged, KeysImported, LimitChanged,
    Refusal, RotateKey,
};
use crate::config::Mode;
use crate::name::{self, Selector};
use crate::policy::document::{self, Override};
use crate::policy::{LimitName, Limits};
use crate::store::{PlacedPrincipal, Principal, Store};
use crate::{credential, kernel, store};

/// Why an operation was not carried out; nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The request is wrong by itself.
    #[error("{0}")]
    Invalid(Refusal),
    /// It names something that does not exist.
    #[error("{0}")]
    NotFound(Refusal),
    /// It does not go with what is there.
    #[error("{0}")]
    Conflict(Refusal),
    /// The daemon has detached and is about to end.
    #[error("the daemon is stopping")]
    Stopping,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The kernel failed.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    /// No random bytes for a key.
    #[error("the system gives no random bytes for a key: {0}")]
    Random(#[from] getrandom::Error),
}

/// The daemon's knowledge of principals and keys, in the store and in the maps.
pub(crate) struct Registry {
    pub(super) store: Store,
    pub(super) tables: Tables,
    pub(super) secret: [u64; 2],
    pub(super) default_limit: Limits,
    /// The plans and tenants that hold.
    pub(super) groups: Groups,
    /// The rules that hold and are counted by themselves: their index in the map of tallies, and what they are called.
    pub(super) rules: Vec<(u32, RuleName)>,
    /// A policy that holds until it is confirmed, or its time is over.
    pub(super) trial: Option<Trial>,
}

/// Longest time that a rotated key goes on beside the new one, in seconds: a year.
const MOST_OVERLAP: i64 = 365 * 86_400;

/// What may stand in a field `limit`.
fn parse_limit(field: &str, text: &str) -> Result<Limits, Error> {
    text.parse().map_err(|error: crate::policy::ParseError| {
        let message = format!("the limit does not parse: column {}: {}", error.column, error.message);
        Error::Invalid(Refusal::of(field, message, error.accepted))
    })
}

fn check_name(field: &str, text: &str) -> Result<(), Error> {
    name::check(text).map_err(|error| Error::Invalid(Refusal::of(field, error.to_string(), name::ACCEPTED)))
}

impl Registry {
    /// Carries out a change: `plan` writes the store and says what follows for the maps.
    fn change<T>(&mut self, plan: impl FnOnce(&Store, &Limits) -> Result<(Vec<Step>, T), Error>) -> Result<T, Error> {
        let Self { store, tables, default_limit, .. } = self;
        let change = store.begin()?;
        let (steps, answer) = plan(store, default_limit)?;
        tables.apply(&steps)?;
        if let Err(error) = change.commit() {
            tables.undo(&steps);
            return Err(error.into());
        }
        tables.forget(&steps);
        Ok(answer)
    }

    /// The fields that keys are taken from, by one service or another.
    fn key_fields(&self) -> Result<Vec<String>, Error> {
        let said = self.store.services()?;
        let guarded = said.iter().filter(|(name, _)| self.tables.seats().contains_key(*name));
        let mut fields: Vec<String> = Vec::new();
        for name in guarded.flat_map(|(_, service)| &service.key_headers) {
            if !fields.iter().any(|field| field == name.as_str()) {
                fields.push(name.as_str().to_owned());
            }
        }
        Ok(fields)
    }

    /// Makes a key for a principal, which is made too if it is new.
    pub(crate) fn add_key(&mut self, request: &AddKey, now: Timestamp) -> Result<KeyAdded, Error> {
        let AddKey { name, label, limit, plan, not_before, expires } = request;
        check_name("name", name)?;
        if let Some(label) = label {
            check_name("label", label)?;
        }
        let limit = limit.as_deref().map(|text| parse_limit("limit", text)).transpose()?;
        if let (Some(_), Some(_)) = (&limit, plan) {
            return Err(Error::Invalid(Refusal::of("plan", "a limit is named already", "a plan or a limit")));
        }
        let planned = plan.as_deref().map(|plan| self.under(name, plan, now)).transpose()?.flatten();
        let key = credential::generate()?;
        let tag = enforcer_ebpf::key::tag(self.secret, key.as_bytes());
        let fields = self.key_fields()?;
        let on_trial = self.trial.is_some();
        self.change(|store, default| {
            let mut steps = Vec::new();
            let mut principals = Principals { on_trial, ..Principals::new(store, default, now) };
            let (principal, new_principal) = match planned {
                Some(Planned { said, groups }) => (&principals.make(name, &said, &groups, &mut steps)?, true),
                None => principals.get(name, limit.as_ref(), &mut steps, "limit")?,
            };
            let key_row = store::Key {
                not_before: not_before.map(to_second),
                expires: expires.map(to_second),
                label: label.clone(),
                ..store::Key::new(tag, principal.index, now)
            };
            insert_made(store, &key_row, &mut steps)?;
            let answer = KeyAdded {
                key,
                id: credential::id(tag),
                name: name.clone(),
                limit: principal.limits.to_string(),
                new_principal,
                fields,
            };
            Ok((steps, answer))
        })
    }

    /// A principal that is to be under a plan, if there is none of its name yet; one that there is must be under it.
    fn under(&self, name: &str, plan: &str, now: Timestamp) -> Result<Option<Planned>, Error> {
        check_name("plan", plan)?;
        if self.trial.is_some() && self.store.principal(name)?.is_none() {
            return Err(on_trial());
        }
        if !self.groups.plans().any(|known| known == plan) {
            let there = self.groups.plans().map(String::as_str).take(10).collect::<Vec<_>>().join(", ");
            let accepted = if there.is_empty() { "none: a policy makes plans".to_owned() } else { there };
            return Err(Error::NotFound(Refusal::of("plan", format!("there is no plan `{plan}`"), accepted)));
        }
        let Some((said, placed)) = self.store.stance(name, now)? else {
            let terms = document::Terms::Plan { plan: plan.to_owned(), instead: None };
            let said = document::Principal { terms, ..document::Principal::of(Limits::Blocked) };
            return Ok(Some(Planned { said, groups: self.groups.clone() }));
        };
        match said.plan() {
            Some(of) if of == plan => Ok(None),
            Some(of) => {
                let message = format!("`{name}` is under plan `{of}` already, which a policy can change");
                Err(Error::Conflict(Refusal::of("plan", message, format!("`{of}`, or no plan"))))
            }
            None => {
                let limits = &placed.limits;
                let message =
                    format!("`{name}` is under a limit of its own, `{limits}`; a policy can put it under a plan");
                Err(Error::Conflict(Refusal::of("plan", message, "no plan")))
            }
        }
    }

    /// Takes in keys from elsewhere, all of them or none.
    pub(crate) fn import_keys(&mut self, request: &ImportKeys, now: Timestamp) -> Result<KeysImported, Error> {
        let entries = check_entries(request, self.secret)?;
        let on_trial = self.trial.is_some();
        self.change(|store, default| {
            let mut steps = Vec::new();
            let principals = match entries.len() {
                MANY.. => Principals::all(store, default, now)?,
                _ => Principals::new(store, default, now),
            };
            let mut principals = Principals { on_trial, ..principals };
            // Apart from the principals', so that each kind is written in one call.
            let mut inserts = Vec::with_capacity(entries.len());
            let mut answer = KeysImported { imported: 0, unchanged: 0, new_principals: 0 };
            for (position, Checked { name, tag, limit }) in entries.iter().enumerate() {
                let field = format!("entries[{position}]");
                let (principal, new) = principals.get(name, limit.as_ref(), &mut steps, &format!("{field}.limit"))?;
                answer.new_principals += u64::from(new);
                if insert_key(store, &store::Key::new(*tag, principal.index, now), &mut inserts)? {
                    answer.imported += 1;
                    continue;
                }
                match store.key(*tag)? {
                    Some(known) if known.principal != principal.index => {
                        let message = format!("the key is registered already, for `{}`", known.name);
                        let accepted = "a key that no other principal has";
                        return Err(Error::Conflict(Refusal::of(format!("{field}.key"), message, accepted)));
                    }
                    _ => answer.unchanged += 1,
                }
            }
            steps.append(&mut inserts);
            Ok((steps, answer))
        })
    }

    /// Revokes keys. Their principals keep their limits and their counts.
    pub(crate) fn remove_keys(&mut self, selector: &Selector) -> Result<KeysChanged, Error> {
        self.change(|store, _| {
            let mut steps = Vec::new();
            let mut keys = Vec::new();
            for row in select(store, selector)? {
                store.remove_key(row.tag)?;
                steps.push(Step::Remove { tag: row.tag, key: HeldKey::of(&row) });
                keys.push(ChangedKey { id: credential::id(row.tag), name: row.name, changed: true });
            }
            Ok((steps, KeysChanged { keys }))
        })
    }

    /// Makes a new key beside one that goes on for a while: both count for the same principal. The new one is good when the
    /// old one was to be.
    pub(crate) fn rotate_key(&mut self, request: &RotateKey, now: Timestamp) -> Result<KeyRotated, Error> {
        let RotateKey { key: selector, overlap_seconds } = request;
        let selector = Selector::parse(selector).ok_or_else(|| {
            Error::Invalid(Refusal::of("key", "this is neither a name nor an id", Selector::ACCEPTED))
        })?;
        let overlap = i64::try_from(*overlap_seconds).ok().filter(|seconds| *seconds <= MOST_OVERLAP);
        let overlap = overlap.ok_or_else(|| {
            let accepted = format!("0 to {MOST_OVERLAP} seconds");
            Error::Invalid(Refusal::of("overlap_seconds", "this is no time for both keys", accepted))
        })?;
        let ends = now.checked_add(SignedDuration::from_secs(overlap)).unwrap_or(Timestamp::MAX);
        let fresh = credential::generate()?;
        let tag = enforcer_ebpf::key::tag(self.secret, fresh.as_bytes());
        let fields = self.key_fields()?;
        self.change(|store, _| {
            let good = |row: &store::Key| !row.disabled && row.expires.is_none_or(|expires| expires > now);
            let rows: Vec<store::Key> = select(store, &selector)?.into_iter().filter(good).collect();
            let [old] = rows.as_slice() else {
                let message = match rows.len() {
                    0 => format!("no key of `{selector}` is good any more: `enforcer key add` makes one"),
                    many => format!("`{selector}` has {many} keys: name the one to rotate by its id"),
                };
                return Err(Error::Conflict(Refusal::of("key", message, "the id of one key")));
            };
            let expires = old.expires.map_or(ends, |expires| expires.min(ends));
            let mut steps = Vec::new();
            let key = store::Key {
                not_before: old.not_before,
                expires: old.expires,
                limits: old.limits.clone(),
                label: old.label.clone(),
                ..store::Key::new(tag, old.principal, now)
            };
            insert_made(store, &key, &mut steps)?;
            store.set_validity(old.tag, old.not_before, Some(expires))?;
            let ending = store::Key { expires: Some(expires), ..old.clone() };
            steps.push(replace(old, &ending));
            let answer = KeyRotated {
                key: fresh,
                id: credential::id(tag),
                name: old.name.clone(),
                old: credential::id(old.tag),
                old_expires: expires,
                fields,
            };
            Ok((steps, answer))
        })
    }

    /// Switches keys off or on.
    pub(crate) fn set_disabled(&mut self, selector: &Selector, disabled: bool) -> Result<KeysChanged, Error> {
        self.change(|store, _| {
            let mut steps = Vec::new();
            let mut keys = Vec::new();
            for row in select(store, selector)? {
                let changed = row.disabled != disabled;
                if changed {
                    store.set_disabled(row.tag, disabled)?;
                    steps.push(replace(&row, &store::Key { disabled, ..row.clone() }));
                }
                keys.push(ChangedKey { id: credential::id(row.tag), name: row.name, changed });
            }
            Ok((steps, KeysChanged { keys }))
        })
    }

    /// Puts each of these keys under a limit of its own beside its principal's, or takes that away (`unlimited`); what it
    /// has used of it stays used.
    pub(crate) fn set_key_limit(&mut self, selector: &Selector, limit: &str) -> Result<KeysChanged, Error> {
        let wanted = Some(parse_limit("limit", limit)?).filter(|limits| *limits != Limits::Unlimited);
        self.change(|store, _| {
            let mut steps = Vec::new();
            let mut keys = Vec::new();
            for row in select(store, selector)? {
                let limits = wanted.clone().map(|wanted| wanted.settled(row.limits.as_ref()));
                let changed = row.limits != limits;
                if changed {
                    store.set_key_limits(row.tag, limits.as_ref())?;
                    steps.push(replace(&row, &store::Key { limits, ..row.clone() }));
                }
                keys.push(ChangedKey { id: credential::id(row.tag), name: row.name, changed });
            }
            Ok((steps, KeysChanged { keys }))
        })
    }

    /// Calls keys something, for people, or nothing any more.
    pub(crate) fn set_label(&mut self, selector: &Selector, label: Option<&str>) -> Result<KeysChanged, Error> {
        if let Some(label) = label {
            check_name("label", label)?;
        }
        self.change(|store, _| {
            let mut keys = Vec::new();
            for row in select(store, selector)? {
                let changed = row.label.as_deref() != label;
                if changed {
                    store.set_label(row.tag, label)?;
                }
                keys.push(ChangedKey { id: credential::id(row.tag), name: row.name, changed });
            }
            Ok((Vec::new(), KeysChanged { keys }))
        })
    }

    /// Puts a principal under another limit, for good or until then; what it has used stays used.
    pub(crate) fn set_limit(
        &mut self,
        name: &str,
        limit: &str,
        until: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<LimitChanged, Error> {
        let wanted = parse_limit("limit", limit)?;
        self.set_terms(name, now, |said| match (said, until) {
            (document::Terms::Plan { instead: Some(Override { limits, until: None }), plan }, Some(_)) => {
                let message = format!(
                    "`{name}` has a limit of its own, `{limits}`, in place of its plan's, and would go back to plan \
                     `{plan}` after that time: set a limit without a time, or take its own out by `enforcer limit rm {name}`"
                );
                Err(Error::Conflict(Refusal::of("until", message, "no time")))
            }
            (document::Terms::Plan { plan, .. }, until) => {
                let instead = Some(Override { limits: wanted, until });
                Ok(document::Terms::Plan { plan: plan.clone(), instead })
            }
            (document::Terms::Own(_), None) => Ok(document::Terms::Own(wanted)),
            (document::Terms::Own(_), Some(_)) => {
                let message = format!("`{name}` is under no plan, to which it could go back: leave out the time");
                Err(Error::Conflict(Refusal::of("until", message, "no time")))
            }
        })
    }

    /// Takes the limit away that a principal has in place of its plan's, which holds again; what it has used stays used.
    pub(crate) fn remove_limit(&mut self, name: &str, now: Timestamp) -> Result<LimitChanged, Error> {
        self.set_terms(name, now, |said| match said {
            document::Terms::Plan { plan, .. } => Ok(document::Terms::Plan { plan: plan.clone(), instead: None }),
            document::Terms::Own(limits) => {
                let message = format!(
                    "`{name}` is under no plan, whose limit could hold in place of `{limits}`: `enforcer limit set` gives \
                     it another"
                );
                Err(Error::Conflict(Refusal::of("name", message, "a principal that is under a plan")))
            }
        })
    }

    /// Puts a principal under other terms.
    fn set_terms(
        &mut self,
        name: &str,
        now: Timestamp,
        terms: impl FnOnce(&document::Terms) -> Result<document::Terms, Error>,
    ) -> Result<LimitChanged, Error> {
        check_name("name", name)?;
        self.refuse_on_trial()?;
        let groups = self.groups.clone();
        self.change(|store, _| {
            let (said, before) = store.stance(name, now)?.ok_or_else(|| no_principal(name))?;
            let terms = terms(&said.terms)?;
            let (placed, steps) = place(store, &groups, name, (&said, &before), terms, now)?;
            let (limit, previous) = (placed.limits.to_string(), before.limits.to_string());
            Ok((steps, LimitChanged { name: name.to_owned(), limit, previous }))
        })
    }

    /// Forgets the limits in place of a plan's whose time is over at `now`: the program follows the plan since then, and so
    /// does now what is shown and exported.
    pub(super) fn end_overrides(&mut self, now: Timestamp) -> Result<(), Error> {
        // What was before a trial may come back.
        if self.trial.is_some() {
            return Ok(());
        }
        for name in self.store.overridden_until(now)? {
            let groups = self.groups.clone();
            self.change(|store, _| {
                let (said, before) = store.stance(&name, now)?.ok_or_else(|| no_principal(&name))?;
                let document::Terms::Plan { plan, .. } = &said.terms else { return Ok((Vec::new(), ())) };
                tracing::info!("the limits of `{name}` in place of those of plan `{plan}` have ended");
                let terms = document::Terms::Plan { plan: plan.clone(), instead: None };
                let (_, steps) = place(store, &groups, &name, (&said, &before), terms, now)?;
                Ok((steps, ()))
            })?;
        }
        Ok(())
    }

    /// What changes principals and rules waits until what is on trial holds, or does not.
    pub(super) fn refuse_on_trial(&self) -> Result<(), Error> {
        match &self.trial {
            None => Ok(()),
            Some(_) => Err(on_trial()),
        }
    }

    /// All principals as they are judged now, by index: while a policy is on trial, as that says.
    pub(super) fn principals(&self) -> Result<Vec<Principal>, Error> {
        let stored = self.store.principals()?;
        let tried = self.tried();
        if tried.is_empty() {
            return Ok(stored);
        }
        let all: BTreeMap<u32, Principal> = stored.into_iter().chain(tried).map(|one| (one.index, one)).collect();
        Ok(all.into_values().collect())
    }

    /// The principals of a policy that is on trial, as that says.
    pub(crate) fn tried(&self) -> Vec<Principal> {
        let Some(trial) = self.on_trial() else { return Vec::new() };
        trial.policy.principals.keys().filter_map(|name| trial.principal(name)).collect()
    }

    /// The principal of this name as it is judged now; there must be one.
    pub(super) fn principal(&self, name: &str) -> Result<Principal, Error> {
        match self.on_trial().and_then(|trial| trial.principal(name)) {
            Some(principal) => Ok(principal),
            None => self.store.principal(name)?.ok_or_else(|| no_principal(name)),
        }
    }

    /// What is said of one principal, and its numbers, as it is judged now; there must be one.
    pub(super) fn stance(&self, name: &str, now: Timestamp) -> Result<(document::Principal, PlacedPrincipal), Error> {
        let tried = self.on_trial().and_then(|Trial { policy, placed, .. }| {
            Some((policy.principals.get(name)?.clone(), placed.principals.get(name)?.clone()))
        });
        match tried {
            Some(stance) => Ok(stance),
            None => self.store.stance(name, now)?.ok_or_else(|| no_principal(name)),
        }
    }
}

/// What waits until a trial is over.
fn on_trial() -> Error {
    Error::Conflict(Refusal::new("a policy is on trial: `enforcer confirm` keeps it, `enforcer rollback` ends it"))
}

/// Puts a principal under other terms; what it is then, and what brings the maps there.
fn place(
    store: &Store,
    groups: &Groups,
    name: &str,
    (said, before): (&document::Principal, &PlacedPrincipal),
    terms: document::Terms,
    now: Timestamp,
) -> Result<(PlacedPrincipal, Vec<Step>), Error> {
    let wanted = document::Principal { terms, ..said.clone() };
    let placed = store.write_principal(name, &wanted, now)?;
    let from = Terms::of_principal(groups, said, before, now);
    let to = Terms::of_principal(groups, &wanted, &placed, now);
    let mut steps = Vec::new();
    if from != to {
        steps.push(Step::Terms { index: placed.index, from: from.into(), to: to.into() });
    }
    Ok((placed, steps))
}

/// A principal that is to be made under a plan.
struct Planned {
    said: document::Principal,
    groups: Groups,
}

/// What says that there is no principal of this name.
fn no_principal(name: &str) -> Error {
    let message = format!("there is no principal `{name}`: `enforcer key ls` shows those that have keys");
    Error::NotFound(Refusal::of("name", message, "the name of a principal"))
}

/// The keys that a selector names; at least one.
pub(super) fn select(store: &Store, selector: &Selector) -> Result<Vec<store::Key>, Error> {
    let store::Selected { by_name, by_id } = store.selected(selector)?;
    let refuse = |message: String| Refusal::of("name-or-id", message, Selector::ACCEPTED);
    match (by_name.is_empty(), by_id.len()) {
        (true, 0) => {
            let message = format!("no key has the {selector}: `enforcer key ls` shows all keys");
            Err(Error::NotFound(refuse(message)))
        }
        (false, 0) => Ok(by_name),
        (true, 1) => Ok(by_id),
        (true, _) => {
            let message =
                format!("{} keys have the {selector}: give more digits of the tag (`key ls -o json`)", by_id.len());
            Err(Error::Conflict(refuse(message)))
        }
        (false, _) => {
            let message = format!("{selector} is both a principal's name and a key's id");
            Err(Error::Conflict(refuse(message)))
        }
    }
}

/// The step from one state of a key to another.
fn replace(from: &store::Key, to: &store::Key) -> Step {
    Step::Replace { tag: from.tag, from: HeldKey::of(from), to: HeldKey::of(to) }
}

/// Adds a key and the step that goes with it; `false` if the store has one of its tag already.
fn insert_key(store: &Store, key: &store::Key, steps: &mut Vec<Step>) -> Result<bool, Error> {
    let is_new = store.add_key(key)?;
    if is_new {
        steps.push(Step::Insert { tag: key.tag, key: HeldKey::of(key) });
    }
    Ok(is_new)
}

/// Likewise, of a key that was made a moment ago.
fn insert_made(store: &Store, key: &store::Key, steps: &mut Vec<Step>) -> Result<(), Error> {
    match insert_key(store, key, steps)? {
        true => Ok(()),
        false => Err(Error::Conflict(Refusal::new("the key that was made is registered already: try again"))),
    }
}

/// A time to the second, as the store has it.
fn to_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// Refuses a principal that no number is left for.
pub(super) fn check_index(index: u32) -> Result<(), Error> {
    if index < abi::PRINCIPALS {
        return Ok(());
    }
    let most = abi::PRINCIPALS - 1;
    let message = format!(
        "no number is left for a new principal: a state directory has {most}, and that of a principal that was removed \
         is not given to another. Use names that there were before, or another state directory, which begins without \
         counts"
    );
    Err(Error::Conflict(Refusal::new(message)))
}

/// From so many entries on, an import reads all principals at once, which takes less time than to look each up.
const MANY: usize = 1000;

/// The principals of one change: each is looked up, or made, once.
struct Principals<'s> {
    store: &'s Store,
    default: &'s Limits,
    now: Timestamp,
    known: HashMap<String, Principal>,
    /// Whether there are no others.
    is_complete: bool,
    /// Whether a policy is on trial, whose new principals have the next indices.
    on_trial: bool,
}

impl<'s> Principals<'s> {
    fn new(store: &'s Store, default: &'s Limits, now: Timestamp) -> Self {
        Self { store, default, now, known: HashMap::new(), is_complete: false, on_trial: false }
    }

    /// Likewise, with all of them looked up.
    fn all(store: &'s Store, default: &'s Limits, now: Timestamp) -> Result<Self, Error> {
        let known = store.principals()?.into_iter().map(|principal| (principal.name.clone(), principal)).collect();
        Ok(Self { store, default, now, known, is_complete: true, on_trial: false })
    }

    /// Makes a principal of what is said of it.
    fn make(
        &self,
        name: &str,
        said: &document::Principal,
        groups: &Groups,
        steps: &mut Vec<Step>,
    ) -> Result<Principal, Error> {
        if self.on_trial {
            return Err(on_trial());
        }
        let placed = self.store.write_principal(name, said, self.now)?;
        check_index(placed.index)?;
        let terms = Terms::of_principal(groups, said, &placed, self.now).into();
        steps.push(Step::Principal { index: placed.index, terms });
        let PlacedPrincipal { index, limits, .. } = placed;
        Ok(Principal { index, name: name.to_owned(), limits, tenant: None })
    }

    /// The principal of this name and whether this call made it. A limit that is asked for must be the one it has.
    fn get(
        &mut self,
        name: &str,
        wanted: Option<&Limits>,
        steps: &mut Vec<Step>,
        field: &str,
    ) -> Result<(&Principal, bool), Error> {
        let (principal, new) = match self.known.entry(name.to_owned()) {
            Entry::Occupied(known) => (&*known.into_mut(), false),
            Entry::Vacant(place) => match if self.is_complete { None } else { self.store.principal(name)? } {
                Some(principal) => (&*place.insert(principal), false),
                None if self.on_trial => return Err(on_trial()),
                None => {
                    let limits = wanted.unwrap_or(self.default).clone().settled(None);
                    let principal = self.store.add_principal(name, limits, self.now)?;
                    check_index(principal.index)?;
                    steps.push(Step::Principal {
                        index: principal.index,
                        terms: Terms::of(&principal.limits, LimitName::DEFAULT, Mode::Enforce, None, 0).into(),
                    });
                    (&*place.insert(principal), true)
                }
            },
        };
        let same = wanted.is_none_or(|wanted| wanted.clone().settled(Some(&principal.limits)) == principal.limits);
        if !same {
            let has = &principal.limits;
            let message = format!(
                "`{name}` is under `{has}` already, and all its keys share it: change it with `enforcer limit set {name} LIMIT`"
            );
            return Err(Error::Conflict(Refusal::of(field, message, format!("`{has}`, or no limit"))));
        }
        Ok((principal, new))
    }
}

/// An entry to import that is right by itself.
struct Checked {
    name: String,
    tag: KeyTag,
    limit: Option<Limits>,
}

/// Checks all entries before anything is written, and lets a name's limit stand in any of its entries.
fn check_entries(ImportKeys { entries, weak }: &ImportKeys, secret: [u64; 2]) -> Result<Vec<Checked>, Error> {
    let mut seen: HashMap<KeyTag, usize> = HashMap::with_capacity(entries.len());
    let mut limits: HashMap<&str, (usize, Limits)> = HashMap::new();
    let mut checked = Vec::with_capacity(entries.len());
    for (position, ImportEntry { name, key, limit }) in entries.iter().enumerate() {
        let field = |field: &str| format!("entries[{position}].{field}");
        check_name(&field("name"), name)?;
        if !enforcer_ebpf::key::is_valid(key.as_bytes()) {
            let message = format!("the key of `{name}` is not of the accepted form");
            return Err(Error::Invalid(Refusal::of(field("key"), message, credential::ACCEPTED)));
        }
        if !weak && credential::bits(key.as_bytes()) < credential::STRONG_BITS {
            let message = format!("the key of `{name}` could be guessed; `weak` takes such keys all the same");
            return Err(Error::Invalid(Refusal::of(field("key"), message, credential::STRONG)));
        }
        let tag = enforcer_ebpf::key::tag(secret, key.as_bytes());
        if let Some(first) = seen.insert(tag, position) {
            let message = format!("the same key stands in entries[{first}] already");
            return Err(Error::Invalid(Refusal::of(field("key"), message, "each key once")));
        }
        if let Some(text) = limit {
            let wanted = parse_limit(&field("limit"), text)?;
            match limits.entry(name) {
                Entry::Vacant(place) => {
                    place.insert((position, wanted));
                }
                Entry::Occupied(known) => {
                    let (first, known) = known.get();
                    if wanted.settled(Some(known)) != *known {
                        let message = format!("`{name}` has another limit in entries[{first}]: `{known}`");
                        return Err(Error::Invalid(Refusal::of(field("limit"), message, "one limit for each name")));
                    }
                }
            }
        }
        checked.push(Checked { name: name.clone(), tag, limit: None });
    }
    for entry in &mut checked {
        entry.limit = limits.get(entry.name.as_str()).map(|(_, limits)| limits.clone());
    }
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, key: &str, limit: Option<&str>) -> ImportEntry {
        ImportEntry { name: name.into(), key: key.to_owned().into(), limit: limit.map(str::to_owned) }
    }

    fn refused<const N: usize>(entries: [ImportEntry; N], weak: bool) -> Refusal {
        match check_entries(&ImportKeys { entries: entries.into(), weak }, [1, 2]) {
            Err(Error::Invalid(refusal)) => refusal,
            Err(error) => panic!("another error: {error}"),
            Ok(_) => panic!("accepted"),
        }
    }

    #[test]
    fn an_entry_that_is_wrong_is_named_and_its_key_is_not_shown() {
        let good = || entry("alice", "correct-horse-battery", None);
        for (bad, field) in [
            (entry("-alice", "another-key-altogether", None), "entries[1].name"),
            (entry("alice", "short", None), "entries[1].key"),
            (entry("alice", "white space in it", None), "entries[1].key"),
            (entry("bob", "correct-horse-battery", None), "entries[1].key"),
            (entry("alice", "another-key-altogether", Some("100/mintue")), "entries[1].limit"),
        ] {
            let secret = bad.key.clone();
            let refusal = refused([good(), bad], true);
            assert_eq!(refusal.field.as_deref(), Some(field), "{refusal}");
            assert!(!refusal.message.contains(secret.as_str()), "{refusal}");
        }
    }

    #[test]
    fn a_key_that_could_be_guessed_is_refused_unless_such_keys_are_asked_for() {
        let strong = || entry("alice", "6f1ed002ab5595859014ebf0951522d9", None);
        let weak = || entry("bob", "6f1ed002ab5595859014ebf0951522d", None);
        let refusal = refused([strong(), weak()], false);
        assert_eq!(refusal.field.as_deref(), Some("entries[1].key"));
        assert!(refusal.message.contains("`weak`") && !refusal.message.contains("6f1ed002"), "{refusal}");
        let taken = check_entries(&ImportKeys { entries: vec![strong(), weak()], weak: true }, [1, 2]);
        assert_eq!(taken.unwrap_or_else(|error| panic!("{error}")).len(), 2);
    }

    #[test]
    fn a_limit_in_one_entry_holds_for_all_entries_of_the_name() {
        let entries = vec![
            entry("alice", "first-key-of-alice", None),
            entry("alice", "second-key-of-alice", Some("5/second")),
            entry("alice", "third-key-of-alice", Some("5 per second")),
            entry("bob", "first-key-of-bob", None),
        ];
        let checked =
            check_entries(&ImportKeys { entries, weak: true }, [1, 2]).unwrap_or_else(|error| panic!("{error}"));
        let limits: Vec<_> = checked.iter().map(|entry| entry.limit.as_ref().map(Limits::to_string)).collect();
        assert_eq!(limits, [Some("5/second".into()), Some("5/second".into()), Some("5/second".into()), None]);
    }

    #[test]
    fn two_limits_for_one_name_are_refused() {
        let first = entry("alice", "first-key-of-alice", Some("5/second"));
        let refusal = refused([first, entry("alice", "second-key-of-alice", Some("6/second"))], true);
        assert_eq!(refusal.message, "`alice` has another limit in entries[0]: `5/second`");
        assert_eq!(refusal.field.as_deref(), Some("entries[1].limit"));
    }
}
