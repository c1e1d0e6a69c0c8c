//! The section `[service]`, or one of `[[service]]`.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use enforcer_ebpf::abi::{PREFIXES, Ruleset};
use toml::de::DeTable;

use super::fields::{Fields, table};
use super::problem::{Report, Reported};
use super::rules::{required, wide_place};
use crate::policy::Limits;
use crate::policy::document::{meaning, word};
use crate::policy::exemption::is_wide;
use crate::policy::service::{
    ACTIONS, FieldName, KeyHeader, NotAField, OWN_LIMITS, OwnLimit, PROXY_PROTOCOLS, ProxyProtocol, Service, Spread,
    Unregistered,
};

const FIELDS: [&str; 18] = [
    "ceiling",
    "source",
    "guesses",
    "guess_penalty",
    "strict_guesses",
    "preflight",
    "unkeyed",
    "unregistered",
    "observe",
    "candidate",
    "key_headers",
    "client_id",
    "trusted_proxies",
    "proxy_protocol",
    "connections_per_source",
    "connections_per_principal",
    "keys_per_source",
    "sources_per_key",
];

const DAY: Duration = Duration::from_secs(86_400);
/// How long a source over its guesses is refused unread.
const PENALTY: RangeInclusive<Duration> = Duration::ZERO..=DAY;
/// The window of a [`Spread`].
const WITHIN: RangeInclusive<Duration> = Duration::from_secs(1)..=DAY;

/// The fields, with `more` that the caller reads.
pub(super) fn fields<'t, 'f>(
    table: &'t DeTable<'f>,
    span: Range<usize>,
    more: &[&str],
    report: &mut Report<'_>,
) -> Fields<'t, 'f> {
    let known: Vec<&str> = more.iter().copied().chain(FIELDS).collect();
    Fields::new(table, "service".into(), span, &known, report)
}

pub(super) fn read(fields: &Fields<'_, '_>, report: &mut Report<'_>) -> Result<Service, Reported> {
    let default = Service::default();
    let ceiling = fields.shared("ceiling", report);
    let source = fields.limits("source", report);
    let guesses = fields.limits("guesses", report);
    let guess_penalty = fields.duration("guess_penalty", PENALTY, "a time from 0s to 24h, such as \"5m\"", report);
    let strict_guesses = fields.flag("strict_guesses", report);
    let preflight = fields.bounded("preflight", report);
    let unkeyed = unkeyed(fields, report);
    let unregistered = unregistered(fields, report);
    let observe = observe(fields, report);
    let candidates = candidates(fields, report);
    let key_headers = key_headers(fields, report);
    let client_id = fields.parsed("client_id", FieldName::ACCEPTED, report);
    let trusted_proxies = proxies(fields, report);
    let proxy_protocol = fields.word("proxy_protocol", &PROXY_PROTOCOLS, report);
    let connections = 1..=1_000_000;
    let connections_per_source = fields.number("connections_per_source", connections.clone(), report);
    let connections_per_principal = fields.number("connections_per_principal", connections, report);
    let keys_per_source = spread(fields, "keys_per_source", default.keys_per_source, report);
    let sources_per_key = spread(fields, "sources_per_key", default.sources_per_key, report);
    let contradictions = [
        unguessed(fields, &guesses, report),
        unproxied(fields, &trusted_proxies, &proxy_protocol, report),
        told_apart(fields, &key_headers, &client_id, report),
    ];
    let service = Service {
        ceiling: ceiling?,
        source: source?,
        guesses: guesses?.unwrap_or(default.guesses),
        guess_penalty: guess_penalty?.unwrap_or(default.guess_penalty),
        strict_guesses: strict_guesses?.unwrap_or(default.strict_guesses),
        preflight: preflight?.unwrap_or(default.preflight),
        unkeyed: unkeyed?.unwrap_or(default.unkeyed),
        unregistered: unregistered?,
        observe: observe?.unwrap_or_default(),
        candidates: candidates?.unwrap_or_default(),
        key_headers: key_headers?.unwrap_or(default.key_headers),
        client_id: client_id?,
        trusted_proxies: trusted_proxies?.unwrap_or_default(),
        proxy_protocol: proxy_protocol?.unwrap_or_default(),
        connections_per_source: connections_per_source?,
        connections_per_principal: connections_per_principal?,
        keys_per_source: keys_per_source?,
        sources_per_key: sources_per_key?,
    };
    contradictions.into_iter().collect::<Result<(), _>>()?;
    if service.strict_guesses && service.observe.contains(&OwnLimit::Guesses) {
        let message = "while `guesses` are observed nobody's good keys are refused, nor is counted which would be";
        fields.warn("strict_guesses", message, report);
    }
    [unbounded(fields, &service, report), uncounted(fields, &service, report)]
        .into_iter()
        .collect::<Result<(), _>>()?;
    Ok(service)
}

/// What becomes of requests without a key; `reject` is what [`Limits::Blocked`] comes to.
fn unkeyed(fields: &Fields<'_, '_>, report: &mut Report<'_>) -> super::fields::Read<Limits> {
    match fields.get("unkeyed").and_then(|value| value.get_ref().as_str()) {
        Some("reject") => Ok(Some(Limits::Blocked)),
        Some("drop") => {
            let accepted = "\"reject\", and `on_refuse = { unkeyed = \"drop\" }` in the configuration";
            Err(fields.refuse("unkeyed", "how refusals are told is no part of a policy", accepted, report))
        }
        _ => fields.bounded("unkeyed", report),
    }
}

/// The section for keys that are not registered.
fn unregistered(fields: &Fields<'_, '_>, report: &mut Report<'_>) -> super::fields::Read<Unregistered> {
    let Some(value) = fields.get("unregistered") else { return Ok(None) };
    let name = "service.unregistered".to_owned();
    let table = table(value, &name, report)?;
    let inner = Fields::new(table, name, fields.place("unregistered"), &["limit", "max_keys"], report);
    let accepted = "the limit of each such key, such as \"60/minute\"";
    let limits = required(&inner, "limit", accepted, report, |inner, report| inner.bounded("limit", report));
    let accepted = "how many such keys have a count of their own, such as 1000; all others share one";
    let most = 1..=Unregistered::MOST;
    let max_keys =
        required(&inner, "max_keys", accepted, report, |inner, report| inner.number("max_keys", most, report));
    let (limits, max_keys) = (limits?, max_keys?);
    if limits == Limits::Blocked {
        let accepted = "a limit such as \"60/minute\", or no such section: then these keys are refused";
        return Err(inner.refuse("limit", "`blocked`", accepted, report));
    }
    Ok(Some(Unregistered { limits, max_keys }))
}

/// Which of its own limits count only; none is what an empty array says.
fn observe(fields: &Fields<'_, '_>, report: &mut Report<'_>) -> super::fields::Read<BTreeSet<OwnLimit>> {
    if fields.is_empty_array("observe") {
        return Ok(None);
    }
    let accepted = OwnLimit::OBSERVABLE.map(|limit| format!("{:?}", word(&OWN_LIMITS, limit))).join(", ");
    let read = |text: &str| {
        let found = meaning(&OWN_LIMITS, text).filter(|limit| OwnLimit::OBSERVABLE.contains(limit));
        found.ok_or_else(|| (format!("{text:?}"), accepted.clone()))
    };
    Ok(fields.distinct("observe", &accepted, read, report)?.map(|all| all.into_iter().collect()))
}

/// The section with candidates of its own limits.
fn candidates(fields: &Fields<'_, '_>, report: &mut Report<'_>) -> super::fields::Read<BTreeMap<OwnLimit, Limits>> {
    let Some(value) = fields.get("candidate") else { return Ok(None) };
    let name = "service.candidate".to_owned();
    let table = table(value, &name, report)?;
    let known = OwnLimit::WITH_CANDIDATE.map(|limit| word(&OWN_LIMITS, limit));
    let inner = Fields::new(table, name, fields.place("candidate"), &known, report);
    let mut all = BTreeMap::new();
    let mut wrong = None;
    for limit in OwnLimit::WITH_CANDIDATE {
        let field = word(&OWN_LIMITS, limit);
        match inner.candidate(field, report) {
            Ok(Some(limits)) if limit == OwnLimit::Ceiling && limits.penalize() => {
                wrong = Some(inner.refuse_penalize(field, report));
            }
            Ok(limits) => all.extend(limits.map(|limits| (limit, limits))),
            Err(reported) => wrong = Some(reported),
        }
    }
    wrong.map_or(Ok(Some(all)), Err)
}

/// Who can make up keys has one limit after the other, so a source must have one, too, and one that refuses.
fn unbounded(fields: &Fields<'_, '_>, service: &Service, report: &mut Report<'_>) -> Result<(), Reported> {
    let is_held = service.source.as_ref().is_some_and(|limits| *limits != Limits::Unlimited);
    if service.unregistered.is_none() || is_held && !service.observe.contains(&OwnLimit::Source) {
        return Ok(());
    }
    let accepted = match is_held {
        true => "no \"source\" in `observe`",
        false => "`source` with a limit beside it, such as \"300/minute\"",
    };
    Err(fields.refuse("unregistered", "any source can make up any number of keys", accepted, report))
}

/// What there is no limit of cannot be observed, and of requests that are refused unread no candidate would count.
fn uncounted(fields: &Fields<'_, '_>, service: &Service, report: &mut Report<'_>) -> Result<(), Reported> {
    let is_limited = |limit: OwnLimit| service.own(limit).is_some_and(|limits| *limits != Limits::Unlimited);
    if let Some(limit) = service.observe.iter().find(|limit| !is_limited(**limit)) {
        let limit = word(&OWN_LIMITS, *limit);
        let message = format!("there is no limit {limit:?}");
        let accepted = format!("a limit for `{limit}`, or no {limit:?} here");
        return Err(fields.refuse("observe", message, accepted, report));
    }
    let is_refused = |limit: OwnLimit| match service.own(limit) {
        Some(limits) => *limits == Limits::Blocked && !service.observe.contains(&limit),
        None => limit == OwnLimit::Unregistered,
    };
    if let Some(limit) = service.candidates.keys().find(|limit| is_refused(**limit)) {
        let limit = word(&OWN_LIMITS, *limit);
        let message = format!("{limit}: all such requests are refused, so it would count none");
        let accepted = format!("a limit for `{limit}`, or no candidate");
        return Err(fields.refuse("candidate", message, accepted, report));
    }
    Ok(())
}

/// The fields that a key may be in.
fn key_headers(fields: &Fields<'_, '_>, report: &mut Report<'_>) -> super::fields::Read<Vec<KeyHeader>> {
    let read =
        |text: &str| text.parse().map_err(|error: NotAField| (error.to_string(), KeyHeader::ACCEPTED.to_owned()));
    let names = fields.distinct("key_headers", KeyHeader::ACCEPTED, read, report)?;
    match &names {
        Some(list) if list.len() > Ruleset::KEYS => {
            let most = format!("at most {}", Ruleset::KEYS);
            Err(fields.refuse("key_headers", format!("{} names", list.len()), most, report))
        }
        _ => Ok(names),
    }
}

/// One field cannot be both.
fn told_apart(
    fields: &Fields<'_, '_>,
    keys: &super::fields::Read<Vec<KeyHeader>>,
    client: &super::fields::Read<FieldName>,
    report: &mut Report<'_>,
) -> Result<(), Reported> {
    match (keys, client) {
        (Ok(Some(keys)), Ok(Some(client))) if keys.iter().any(|key| key.as_str() == client.as_str()) => {
            let accepted = "a field that is none of key_headers";
            Err(fields.refuse("client_id", "keys are in this field", accepted, report))
        }
        _ => Ok(()),
    }
}

/// Proxies may be none: that is what an empty array says.
fn proxies(fields: &Fields<'_, '_>, report: &mut Report<'_>) -> super::fields::Read<Vec<crate::prefix::Prefix>> {
    if fields.is_empty_array("trusted_proxies") {
        return Ok(None);
    }
    let proxies = fields.prefixes("trusted_proxies", report)?;
    match &proxies {
        Some(list) if list.len() > PREFIXES as usize => {
            let message = format!("{} prefixes", list.len());
            Err(fields.refuse("trusted_proxies", message, format!("at most {PREFIXES}"), report))
        }
        Some(list) => {
            if let Some(wide) = list.iter().find(|prefix| is_wide(prefix)) {
                let place = wide_place(fields, "trusted_proxies");
                let who = "who may then say that they are any source";
                report.warn(place, format!("service.trusted_proxies: {wide} is nearly everybody, {who}"));
            }
            Ok(proxies)
        }
        None => Ok(None),
    }
}

/// What is refused of a source over its guesses means nothing where there is no such limit.
fn unguessed(
    fields: &Fields<'_, '_>,
    guesses: &super::fields::Read<Limits>,
    report: &mut Report<'_>,
) -> Result<(), Reported> {
    if !matches!(guesses, Ok(Some(Limits::Unlimited))) {
        return Ok(());
    }
    for field in ["guess_penalty", "strict_guesses"] {
        if fields.has(field) {
            let accepted = "a limit for `guesses`, or the field left out";
            return Err(fields.refuse(field, "it does not go with guesses = \"unlimited\"", accepted, report));
        }
    }
    Ok(())
}

/// A header of proxies needs proxies: from anyone else it would be a way to choose one's source.
fn unproxied(
    fields: &Fields<'_, '_>,
    proxies: &super::fields::Read<Vec<crate::prefix::Prefix>>,
    protocol: &super::fields::Read<ProxyProtocol>,
    report: &mut Report<'_>,
) -> Result<(), Reported> {
    match (proxies, protocol) {
        (Ok(None), Ok(Some(ProxyProtocol::V1 | ProxyProtocol::V2))) => {
            let accepted = "\"off\", or `trusted_proxies` that send it";
            Err(fields.refuse("proxy_protocol", "there are no trusted_proxies", accepted, report))
        }
        _ => Ok(()),
    }
}

fn spread(fields: &Fields<'_, '_>, field: &str, default: Spread, report: &mut Report<'_>) -> Result<Spread, Reported> {
    let Some(value) = fields.get(field) else { return Ok(default) };
    let name = format!("service.{field}");
    let table = table(value, &name, report)?;
    let inner = Fields::new(table, name, fields.place(field), &["most", "within", "action"], report);
    let most = inner.number("most", 1..=65_535, report);
    let within = inner.duration("within", WITHIN, "a time from 1s to 24h, such as \"10m\"", report);
    let action = inner.word("action", &ACTIONS, report);
    Ok(Spread {
        most: most?.unwrap_or(default.most),
        within: within?.unwrap_or(default.within),
        action: action?.unwrap_or(default.action),
    })
}
