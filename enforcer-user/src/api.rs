//! What goes over the control socket, for both ends: requests, answers and errors.
//!
//! Answers are what `-o json` prints, inside an [`Envelope`]: integers are raw, times are RFC 3339. Requests refuse
//! fields that they do not know. The only key in clear on the way out is [`KeyAdded::key`].

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::policy::diff::Change;

/// Version of these types; a change that breaks a reader changes it.
pub const SCHEMA: &str = "v1";

/// Largest request body in bytes.
pub const MAX_BODY: usize = 32 << 20;

/// An answer with its schema's version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Envelope<T> {
    /// [`SCHEMA`].
    pub schema: String,
    /// The answer itself.
    #[serde(flatten)]
    pub body: T,
}

impl<T> Envelope<T> {
    /// Puts `body` in an envelope of this version.
    pub fn new(body: T) -> Self {
        Self { schema: SCHEMA.to_owned(), body }
    }
}

/// The body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// What went wrong.
    pub error: Refusal,
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// One sentence for people.
    pub message: String,
    /// The field that is to blame, as a path into the request; absent if none is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What that field accepts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepted: Option<String>,
}

impl Refusal {
    /// A refusal that is no field's fault.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), field: None, accepted: None }
    }

    /// A refusal of one field.
    pub fn of(field: impl Into<String>, message: impl Into<String>, accepted: impl Into<String>) -> Self {
        Self { message: message.into(), field: Some(field.into()), accepted: Some(accepted.into()) }
    }
}

/// `POST /v1/keys`
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddKey {
    /// The principal; made if it is new.
    pub name: String,
    /// What the key is called beside its principal's other keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Its limit; the default one if the principal is new, and its own if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
    /// Its plan, in place of a limit; the one that it is under if it is not new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
    /// First valid instant, to the second; at once without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// First instant no longer valid, to the second; never without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
}

/// `POST /v1/keys/rotate`
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotateKey {
    /// A key's id, or the name of a principal with one good key.
    pub key: String,
    /// For how long the old key goes on.
    pub overlap_seconds: u64,
}

/// `PUT /v1/keys/{name-or-id}/limit`
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetKeyLimit {
    /// The limit of each of these keys, beside its principal's; `unlimited` takes it away.
    pub limit: String,
}

/// `PUT /v1/keys/{name-or-id}/label`
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetLabel {
    /// What the keys are called; nothing without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

/// Answer to [`RotateKey`]. Its debug form would show the key, so it has none.
#[derive(Serialize, Deserialize)]
pub struct KeyRotated {
    /// The new key in clear; nobody can ask for it again.
    pub key: Zeroizing<String>,
    /// Its id.
    pub id: String,
    /// Its principal, which is the old one's.
    pub name: String,
    /// Id of the old key.
    pub old: String,
    /// When that ends.
    pub old_expires: Timestamp,
    /// As in [`KeyAdded::fields`].
    pub fields: Vec<String>,
}

/// `POST /v1/policy`
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyPolicy {
    /// The policy file.
    pub text: String,
    /// Its name, for errors.
    pub file: String,
    /// Only say what would change.
    #[serde(default)]
    pub dry_run: bool,
    /// It ends by itself unless it is confirmed within so many seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm_seconds: Option<u64>,
    /// Remove principals without keys that it does not name.
    #[serde(default)]
    pub prune: bool,
}

/// Answer to [`ApplyPolicy`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyApplied {
    /// What differs from what held.
    pub changes: Vec<Change>,
    /// Whether it holds now.
    pub applied: bool,
    /// Until when it must be confirmed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_trial_until: Option<Timestamp>,
}

/// `POST /v1/exemptions`; the answer is a [`PolicyApplied`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddExemption {
    /// The service; the only one without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The path; with `/*` at its end, what lies beneath it too.
    pub path: String,
    /// The methods; all without.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// Addresses and prefixes.
    pub sources: Vec<String>,
    /// When it ends, to the second.
    pub until: Timestamp,
    /// Why it is there.
    pub reason: String,
}

/// `DELETE /v1/exemptions`; the answer is a [`PolicyApplied`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveExemption {
    /// As in [`AddExemption`], as all that follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The path.
    pub path: String,
    /// The methods.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// All of its sources.
    pub sources: Vec<String>,
}

/// `GET /v1/exemptions`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exemptions {
    /// All, by service and path; while a policy is on trial, that one's.
    pub exemptions: Vec<HeldExemption>,
}

/// An exemption, of a file or of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldExemption {
    /// Its service.
    pub service: String,
    /// Its path.
    pub path: String,
    /// Its methods, of which GET stands for HEAD, too; all without.
    pub methods: Vec<String>,
    /// Its sources.
    pub sources: Vec<String>,
    /// When it ends.
    pub until: Timestamp,
    /// How long that is; 0 when it is over.
    pub remaining_ns: u64,
    /// Why it is there.
    pub reason: String,
}

/// `GET /v1/policy`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyText {
    /// The policy that holds, as a file.
    pub text: String,
    /// Until when it is on trial; absent if it holds for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_trial_until: Option<Timestamp>,
}

/// `GET /v1/plan`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forecast {
    /// Whom a candidate or a limit that observes would have refused, most often first.
    pub principals: Vec<PrincipalForecast>,
    /// Every rule that is counted by itself.
    pub rules: Vec<RuleForecast>,
}

/// What a candidate, or a limit that observes, would have done to a principal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrincipalForecast {
    /// Its name.
    pub name: String,
    /// Its limit.
    pub limit: String,
    /// The limit that is counted beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub candidate: Option<String>,
    /// Requests passed.
    pub allowed: u64,
    /// Requests that limits which only observe, or whose service does, would have refused.
    pub would_refuse: u64,
    /// Requests that a candidate would have refused: of its own limit, its plan, its tenant or a route.
    pub candidate_would_refuse: u64,
}

/// What a rule has refused, and would have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleForecast {
    /// The service that it is of; absent for what all of them share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// What it is called: `plan gold`, `route /search`, `source`.
    pub rule: String,
    /// Requests that its limits refused.
    pub refused: u64,
    /// Requests that they would have refused, were they enforced.
    pub would_refuse: u64,
    /// Requests that its candidate would have refused.
    pub candidate_would_refuse: u64,
}

/// `POST /v1/explain`. Its debug form would show the key, so it has none.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Explain {
    /// The method, as the request line has it.
    pub method: String,
    /// The target, likewise.
    pub target: String,
    /// Where the connection comes from.
    pub source: IpAddr,
    /// Whom the trusted proxy that this is tells to speak for: in a header of the PROXY protocol where the service expects
    /// one, else in `X-Forwarded-For`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forwarded_for: Option<IpAddr>,
    /// Whose key it has: an id, or a principal's name; none without, and without [`Explain::key`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keyed: Option<String>,
    /// The key itself, in the place of [`Explain::keyed`]: for those who may change keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Zeroizing<String>>,
    /// The client id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// The port; without it the first of the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The host; without it one of the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The service; without it the only one, or that of the port and host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Other fields, as lines without their ends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<String>,
}

/// Answer to [`Explain`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// `pass`, `refuse`, `would_refuse` (it passes, since the service observes) or `unguarded`.
    pub verdict: String,
    /// The service that it is for; absent if it is unguarded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Why it is refused, by the word of the metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What is wrong with a `malformed` one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub malformed: Option<String>,
    /// What it is taken for: `exempt`, `public`, `preflight`, `keyed`; `unread` if its head was refused before that.
    pub kind: String,
    /// The principal; absent if the key is nobody's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// Id of its key; absent without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The source that it counts for.
    pub source: String,
    /// The path's rule: `route /search`, `public /health`, `exempt /ready from 10.0.0.0/8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_rule: Option<String>,
    /// Requests that it counts as.
    pub cost: u32,
    /// Every limit that it is measured by, in their order.
    pub limits: Vec<ExplainedLimit>,
    /// Keys of its source, and sources of its key, where they are counted.
    pub spreads: Vec<ExplainedSpread>,
    /// ns for which its source opens no connection; absent if it is under no penalty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub penalty_ns: Option<u64>,
    /// What its client gets if it is refused; absent if it passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told: Option<Told>,
}

/// A limit and what is used of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedLimit {
    /// The rule that it is of: `principal`, `source`, `route /search`, `limit search`, `ceiling` and so on.
    pub rule: String,
    /// Whose use is counted: a principal, a source, `alice/mobile` for a client id, a key's id, or `all`.
    pub bucket: String,
    /// Its name in answers.
    pub name: String,
    /// The limit, in its canonical form.
    pub limit: String,
    /// `enforce`, `observe` or `candidate`.
    pub mode: String,
    /// Requests that weigh on it now, without this one.
    pub used: u64,
    /// Requests that it would let pass now.
    pub remaining: u64,
    /// ns until it would let this one pass; 0 if it does, absent if never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_ns: Option<u64>,
    /// `passes`, `refuses` (it is the one that the refusal names), `full` (it would, too) or `would_refuse`.
    pub says: String,
}

/// Distinct pairs of a key and a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedSpread {
    /// `keys_per_source` or `sources_per_key`.
    pub rule: String,
    /// How many were met in the window, without this one if it is new.
    pub seen: u64,
    /// The most.
    pub most: u32,
    /// `alert`, `limit` or `penalty`.
    pub action: String,
    /// Whether this one is one too many.
    pub exceeded: bool,
}

/// What the client of a refused request gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// `answer`, `reset` or `silence`.
    pub how: String,
    /// The answer's status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The limit that it names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
    /// Its `Retry-After`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u32>,
}

/// Answer to `POST /v1/policy/confirm` and `POST /v1/policy/rollback`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrialEnded {
    /// Whether it was kept.
    pub kept: bool,
}

/// `POST /v1/keys/import`
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportKeys {
    /// All of them are taken, or none.
    pub entries: Vec<ImportEntry>,
    /// Also keys that could be guessed: that can have fewer than [`crate::credential::STRONG_BITS`].
    #[serde(default)]
    pub weak: bool,
}

/// One key to import.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportEntry {
    /// The principal; made if it is new.
    pub name: String,
    /// The key in clear.
    pub key: Zeroizing<String>,
    /// As in [`AddKey::limit`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
}

impl std::fmt::Debug for ImportEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, key: _, limit } = self;
        f.debug_struct("ImportEntry").field("name", name).field("limit", limit).finish_non_exhaustive()
    }
}

/// `PUT /v1/limits/{name}`
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetLimit {
    /// The new limit.
    pub limit: String,
    /// When the plan's limit holds again; for good without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

/// Answer to [`AddKey`]. Its debug form would show the key, so it has none.
#[derive(Serialize, Deserialize)]
pub struct KeyAdded {
    /// The key in clear; nobody can ask for it again.
    pub key: Zeroizing<String>,
    /// Its id.
    pub id: String,
    /// Its principal.
    pub name: String,
    /// The principal's limit.
    pub limit: String,
    /// Whether the principal is new.
    pub new_principal: bool,
    /// The fields that the key may be sent in, in lower case.
    pub fields: Vec<String>,
}

/// A key as everybody may see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// First 8 hex digits of its tag.
    pub id: String,
    /// Its whole tag, 32 hex digits.
    pub tag: String,
    /// Its principal.
    pub name: String,
    /// What it is called beside its principal's other keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Whether it is switched on.
    pub enabled: bool,
    /// `good`, `disabled`, `expired` or `early`, now.
    pub state: String,
    /// First valid instant; absent if it was good from the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// First instant no longer valid; absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// The principal's limit.
    pub limit: String,
    /// The limit of this key alone beside that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub own_limit: Option<String>,
    /// When it was added.
    pub created: Timestamp,
    /// The principal's counts, over all its keys.
    pub counts: Counts,
}

/// A principal's requests since its counters began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Passed.
    pub allowed: u64,
    /// Refused over a limit.
    pub limited: u64,
    /// Refused because the key was disabled.
    pub denied: u64,
    /// Passed, but would have been refused if the service did not observe only.
    pub would_refuse: u64,
}

/// `GET /v1/keys`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keys {
    /// By name, then by age.
    pub keys: Vec<Key>,
}

/// `GET /v1/keys/{name-or-id}`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeysShown {
    /// By age.
    pub keys: Vec<KeyShown>,
}

/// One key and all that holds for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyShown {
    /// As in the listing.
    #[serde(flatten)]
    pub key: Key,
    /// The plan of its principal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
    /// The tenant of its principal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Ids of its principal's other keys that are good now; while it ends, this is the overlap of its rotation.
    pub beside: Vec<String>,
    /// The parts of the principal's limit, used by all its keys.
    pub rules: Vec<RuleUsage>,
    /// The parts of its own limit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub own_rules: Vec<RuleUsage>,
}

/// Answer to a removal, a disabling or an enabling, and to a change of a limit or label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeysChanged {
    /// The keys that the command was about.
    pub keys: Vec<ChangedKey>,
}

/// One key of [`KeysChanged`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedKey {
    /// Its id.
    pub id: String,
    /// Its principal.
    pub name: String,
    /// Whether anything changed: a disabled key can be disabled again.
    pub changed: bool,
}

/// Answer to [`ImportKeys`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeysImported {
    /// Keys that are new.
    pub imported: u64,
    /// Keys that their principals had already.
    pub unchanged: u64,
    /// Principals that are new.
    pub new_principals: u64,
}

/// `GET /v1/limits`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// By name.
    pub principals: Vec<PrincipalLimits>,
    /// All tenants, or that of the one principal that was asked for, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tenants: Vec<SharedLimits>,
    /// The ceilings of services that have one, by name; none where one principal was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<SharedLimits>,
    /// Until when a policy is on trial, whose limits these are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_trial_until: Option<Timestamp>,
}

/// The limit that all principals of a tenant share, or all requests of a service, and what is left of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedLimits {
    /// The tenant, or the service.
    pub name: String,
    /// The limit in canonical form.
    pub limit: String,
    /// The parts of it; none if it is `unlimited` or `blocked`.
    pub rules: Vec<RuleUsage>,
}

/// A principal's limit and what is left of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrincipalLimits {
    /// The principal.
    pub name: String,
    /// The tenant that it belongs to, whose limit holds too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Its limit in canonical form.
    pub limit: String,
    /// The parts of it; none if it is `unlimited` or `blocked`.
    pub rules: Vec<RuleUsage>,
    /// Its keys, disabled ones included.
    pub keys: u64,
    /// Those of its keys that have limits of their own beside this.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub own: Vec<KeyLimits>,
    /// Its counts.
    pub counts: Counts,
}

/// The limit of one key beside its principal's, and what is left of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyLimits {
    /// The key's id.
    pub id: String,
    /// Its label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The limit in canonical form.
    pub limit: String,
    /// The parts of it; none if it is `blocked`.
    pub rules: Vec<RuleUsage>,
}

/// One rule of a limit and its use now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleUsage {
    /// The rule in canonical form.
    pub rule: String,
    /// `sliding`, `fixed` or `gcra`.
    pub algorithm: String,
    /// Requests per window.
    pub count: u32,
    /// The window's length in seconds.
    pub window_seconds: u64,
    /// Requests that weigh on the rule now.
    pub used: u64,
    /// Requests that would pass now.
    pub remaining: u64,
    /// ns until nothing of `used` is left, if nothing more is sent.
    pub reset_ns: u64,
    /// The same as a time.
    pub reset: Timestamp,
    /// ns until one more request would pass: 0 if it would now, absent if never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_ns: Option<u64>,
}

/// Answer to [`SetLimit`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitChanged {
    /// The principal.
    pub name: String,
    /// Its limit now.
    pub limit: String,
    /// Its limit before.
    pub previous: String,
}

/// `GET /v1/penalties`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Penalties {
    /// Whether there are any to come; those under way end by themselves.
    pub enabled: bool,
    /// IPv4 first, by address.
    pub sources: Vec<PenalisedSource>,
}

/// A source of refused requests, whether or not it is under a penalty now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PenalisedSource {
    /// The service that knows it so.
    pub service: String,
    /// Its addresses: `192.0.2.7/32`.
    pub source: String,
    /// 4 or 6.
    pub family: u8,
    /// Refusals counted.
    pub refused: u64,
    /// Penalties that it had one after another, this one included.
    pub strikes: u64,
    /// When its penalty ends; absent if it is under none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// ns until then; 0 if it is under none.
    pub remaining_ns: u64,
    /// When a registered key was last served from it; absent if that was never noted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub served: Option<Timestamp>,
}

/// Answer to `DELETE /v1/penalties` and to one below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PenaltiesEnded {
    /// The sources that the command was about.
    pub sources: Vec<EndedPenalty>,
}

/// One source of [`PenaltiesEnded`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedPenalty {
    /// The service that knew it so.
    pub service: String,
    /// Its addresses.
    pub source: String,
    /// Whether it was under a penalty.
    pub changed: bool,
}

/// Answer to `POST /v1/detach`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detached {
    /// The interfaces that were guarded.
    pub interfaces: Vec<String>,
}

/// `GET /v1/status`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Of the daemon.
    pub version: String,
    /// Number of the maps' layout.
    pub abi: u32,
    /// Of the daemon.
    pub pid: u32,
    /// When the daemon was ready.
    pub since: Timestamp,
    /// What became of connections older than the guard: `reset` or `adopt`.
    pub existing: String,
    /// What is guarded, in the order of the configuration.
    pub services: Vec<ServiceStatus>,
    /// The TCP ports of all services.
    pub ports: Vec<u16>,
    /// Where the program is attached.
    pub attachments: Vec<Attachment>,
    /// What has changed since the start so that only the next start can follow, and what is asked for and cannot be.
    pub warnings: Vec<String>,
    /// Until when a policy is on trial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_trial_until: Option<Timestamp>,
    /// The limit of a new principal that is given none.
    pub default_limit: String,
    /// Registered keys, disabled ones included.
    pub keys: u64,
    /// Principals, those without keys included.
    pub principals: u64,
    /// All that was counted of all services since the maps were made.
    pub totals: Totals,
    /// Connections that this daemon has ended, by cause.
    pub reaped: BTreeMap<String, u64>,
    /// Connections that it has left alone where it would have ended them, by cause.
    pub would_reap: BTreeMap<String, u64>,
    /// How full the maps are.
    pub maps: Vec<MapFill>,
    /// The control socket.
    pub socket: PathBuf,
    /// The address of the metrics; absent if they are off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<String>,
    /// The state directory.
    pub state_dir: PathBuf,
    /// The directory of the pins.
    pub bpffs_dir: PathBuf,
}

/// A guarded service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// What it is called.
    pub name: String,
    /// Its TCP ports.
    pub ports: Vec<u16>,
    /// The hosts that it is for; none: all, or all that are no other's with the same ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// `enforce` or `observe`.
    pub mode: String,
    /// What is done with a refused request: `answer`, `reset` or `drop`.
    pub on_refuse: String,
    /// The same, by reason, where something else is done for it.
    pub on_refuse_by: BTreeMap<String, String>,
    /// Longest time for a connection's first byte and for a head, in ns.
    pub head_timeout_ns: u64,
    /// Connections of one source that may wait for these at once.
    pub max_open_heads: u32,
    /// Longest request head in bytes.
    pub max_head: u32,
    /// Most fields of a head.
    pub max_fields: u32,
    /// Longest request target in bytes.
    pub max_target: u32,
    /// Largest `Content-Length` in bytes.
    pub max_body: u64,
    /// Whether sources that go on sending what is refused get penalties.
    pub penalties: bool,
    /// All that was counted of it since it has its place in the maps; of the service that has the first place, what belongs
    /// to none, too.
    pub totals: Totals,
}

/// Where and how the program is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The interface.
    pub interface: String,
    /// Its index.
    pub index: u32,
    /// `xdp-native`, `xdp-generic` or `tc`.
    pub mode: String,
    /// Why this mode.
    pub reason: String,
    /// Whether refused requests can be answered there.
    pub answers: bool,
    /// Why they cannot; absent if they can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cannot_answer: Option<String>,
    /// Where the servers are whose connections come over it: `local`, or `local, forwarded`.
    pub endpoints: String,
    /// Since when a program of the enforcer's has been attached there.
    pub since: Timestamp,
    /// Id of the program.
    pub program: u32,
    /// Whether the link was there before this daemon.
    pub taken_over: bool,
}

/// What the kernel counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Requests passed and charged.
    pub allowed: u64,
    /// Requests and segments refused, over all reasons.
    pub refused: u64,
    /// Requests passed that would have been refused, over all reasons.
    pub would_refuse: u64,
    /// `refused` by reason.
    pub refused_by: BTreeMap<String, u64>,
    /// `would_refuse` by reason.
    pub would_refuse_by: BTreeMap<String, u64>,
    /// What was wrong with the malformed ones.
    pub malformed_by: BTreeMap<String, u64>,
    /// What else happened to packets.
    pub events: BTreeMap<String, u64>,
}

/// How full a map is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapFill {
    /// The map.
    pub map: String,
    /// Entries in use.
    pub entries: u64,
    /// Entries that it has room for.
    pub capacity: u64,
}
