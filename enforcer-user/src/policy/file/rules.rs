//! The sections `[limit.NAME]`, `[[route]]`, `[[public]]` and `[[exempt]]`.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;

use enforcer_ebpf::abi::Per;
use enforcer_ebpf::limit::MAX_COST;
use toml::de::DeValue;

use super::fields::{Fields, Read, table};
use super::principals::among;
use super::problem::{Report, Reported};
use super::{Named, named, names};
use crate::policy::Limits;
use crate::policy::document::{
    Charge, Exemption, MAX_EXEMPTIONS, MAX_PUBLIC, MAX_ROUTES, MODES, PERS, Public, Quota, Route, Site,
};
use crate::policy::exemption::{self, REASON, Unfit, is_reason, is_wide};
use crate::policy::exemptions;
use crate::policy::method::Methods;
use crate::policy::path::{Pattern, Reach};
use crate::policy::routes;
use crate::prefix::Prefix;

const LIMIT: &str = "a limit such as \"20/minute\"";
/// A named limit.
pub(super) fn quota(named: &Named<'_, '_>, report: &mut Report<'_>) -> Result<Quota, Reported> {
    let fields = named.fields(&["limit", "per", "candidate", "mode"], report);
    let quota = quota_of(&fields, report)?;
    quota.ok_or_else(|| fields.refuse("limit", "it is missing", LIMIT, report))
}

fn quota_of(fields: &Fields<'_, '_>, report: &mut Report<'_>) -> Read<Quota> {
    let limits = fields.limits("limit", report);
    let per = fields.word("per", &PERS, report);
    let candidate = fields.limits("candidate", report);
    let mode = fields.word("mode", &MODES, report);
    let (per, candidate, mode) = (per?.unwrap_or(Per::Principal), candidate?, mode?);
    let limits = limits?;
    if per == Per::Service {
        for (field, limits) in [("limit", &limits), ("candidate", &candidate)] {
            if limits.as_ref().is_some_and(Limits::penalize) {
                return Err(fields.refuse_penalize(field, report));
            }
        }
    }
    Ok(limits.map(|limits| Quota { limits, per, candidate, mode: mode.unwrap_or_default() }))
}

/// Reads them out of what they stand in: the file, or a service.
pub(super) fn read(file: &Fields<'_, '_>, site: &mut Site, report: &mut Report<'_>) {
    site.limits = named(file, "limit", report, quota);
    let limits = names(file, "limit");
    let routes = entries(file, "route", MAX_ROUTES, report, |fields, report| route(fields, &limits, report));
    let public = entries(file, "public", MAX_PUBLIC, report, public);
    let places = routes.iter().map(|(span, one)| (one.identity(), span.clone())).collect();
    site.routes = once(routes, |one| one.path.identity(), |one| one.methods, "a route", report);
    site.public = once(
        public,
        |one| format!("{:?}{}", one.reach, one.path.identity()),
        |one| one.methods,
        "a public path",
        report,
    );
    let exempt = entries(file, "exempt", MAX_EXEMPTIONS, report, exempt);
    site.exempt = once(exempt, Exemption::identity, |one| one.methods, "an exemption", report);
    if !exemptions::have_room(&site.exempt) {
        file.refuse("exempt", "too many sources of all exemptions together", exemptions::room(), report);
    }
    site.sort();
    unserved(site, &places, report);
}

/// The tables of an array, each with its place.
fn entries<T>(
    file: &Fields<'_, '_>,
    section: &str,
    most: usize,
    report: &mut Report<'_>,
    mut read: impl FnMut(&Fields<'_, '_>, &mut Report<'_>) -> Result<T, Reported>,
) -> Vec<(Range<usize>, T)> {
    let Some(value) = file.get(section) else { return Vec::new() };
    let DeValue::Array(array) = value.get_ref() else {
        file.refuse(section, "this is no list of tables", format!("[[{section}]] for each"), report);
        return Vec::new();
    };
    if array.len() > most {
        let message = format!("{} of them", array.len());
        file.refuse(section, message, format!("at most {most} [[{section}]]"), report);
        return Vec::new();
    }
    let known: &[&str] = match section {
        "route" => &["path", "methods", "limit", "use", "per", "cost", "candidate", "mode"],
        "public" => &["path", "methods", "limit", "candidate"],
        _ => &["path", "methods", "sources", "until", "reason"],
    };
    let mut all = Vec::with_capacity(array.len());
    for element in array {
        let Ok(table) = table(element, section, report) else { continue };
        let fields = Fields::new(table, section.to_owned(), element.span(), known, report);
        if let Ok(one) = read(&fields, report) {
            all.push((fields.place("path"), one));
        }
    }
    all
}

/// Refuses all but the first of those that are for the same path and method: which of them holds would be anyone's guess.
fn once<T>(
    entries: Vec<(Range<usize>, T)>,
    path: impl Fn(&T) -> String,
    methods: impl Fn(&T) -> Methods,
    what: &str,
    report: &mut Report<'_>,
) -> Vec<T> {
    let mut seen: HashMap<String, Vec<(Methods, Range<usize>)>> = HashMap::with_capacity(entries.len());
    let mut all = Vec::with_capacity(entries.len());
    for (span, one) in entries {
        let methods = methods(&one);
        let others = seen.entry(path(&one)).or_default();
        let common =
            others.iter().find_map(|(other, first)| methods.common(*other).map(|common| (common, first.start)));
        match common {
            Some((common, first)) => {
                let methods = if common == Methods::ALL { "all methods".to_owned() } else { common.to_string() };
                let message = format!("path: {what} for it and {methods} stands in {} already", report.line(first));
                report.refuse(span, message, "one for each path and method; other `methods` for this one");
            }
            None => {
                others.push((methods, span));
                all.push(one);
            }
        }
    }
    all
}

/// Warns of routes that no request comes to, since others go before them.
fn unserved(site: &Site, places: &HashMap<String, Range<usize>>, report: &mut Report<'_>) {
    for (place, route) in site.routes.iter().enumerate() {
        if let (Some(hiding), Some(span)) = (routes::hiding(site, place), places.get(&route.identity())) {
            let message =
                format!("route {route}: no request comes to it, since {} goes before it", hiding.join(" or "));
            report.warn(span.clone(), message);
        }
    }
}

fn route(fields: &Fields<'_, '_>, limits: &HashSet<&str>, report: &mut Report<'_>) -> Result<Route, Reported> {
    let path = required(fields, "path", "a path such as \"/search\"", report, |fields, report| {
        fields.path_of("path", Pattern::parse, report)
    });
    let methods = methods(fields, report);
    let own = quota_of(fields, report);
    let shared = shared(fields, limits, report);
    let cost = fields.number("cost", 1..=MAX_COST as u32, report);
    let (has_limit, has_use) = (fields.has("limit"), fields.has("use"));
    let mut wrong = None;
    if has_limit && has_use {
        let accepted = "`limit` for one of its own, or `use` for one that others share";
        wrong = Some(fields.refuse("use", "both limit and use", accepted, report));
    }
    if !has_limit {
        for field in ["per", "candidate", "mode"] {
            if fields.has(field) {
                let accepted = match has_use {
                    true => "the field in the [limit] that the route uses",
                    false => "a `limit` of its own that this belongs to",
                };
                wrong = Some(fields.refuse(field, "the route has no limit of its own", accepted, report));
            }
        }
    }
    if !has_limit && !has_use && !fields.has("cost") {
        let accepted = "`limit`, `use`, or `cost`";
        wrong = Some(fields.refuse("limit", "the route says nothing", accepted, report));
    }
    let (path, methods, own, shared, cost) = (path?, methods?, own?, shared?, cost?);
    if let Some(reported) = wrong {
        return Err(reported);
    }
    let charge = own.map(Charge::Own).or(shared.map(Charge::Shared));
    Ok(Route { path, methods, charge, cost: cost.unwrap_or(1) })
}

/// The named limit that a route uses.
fn shared(fields: &Fields<'_, '_>, limits: &HashSet<&str>, report: &mut Report<'_>) -> Read<String> {
    let Some((span, name)) = fields.text("use", "the name of a limit", report)? else { return Ok(None) };
    if limits.contains(name) {
        return Ok(Some(name.to_owned()));
    }
    Err(report.refuse(span, format!("route.use: there is no limit {name:?}"), among(limits, "limit")))
}

fn public(fields: &Fields<'_, '_>, report: &mut Report<'_>) -> Result<Public, Reported> {
    let path = reaching(fields, report);
    let methods = methods(fields, report);
    let accepted = "a limit of each source such as \"60/minute\": without a key there is no other";
    let limits = required(fields, "limit", accepted, report, |fields, report| fields.bounded("limit", report));
    let candidate = fields.candidate("candidate", report);
    if fields.has("candidate") && matches!(limits, Ok(Limits::Blocked)) {
        let accepted = "a `limit`, or no candidate";
        return Err(fields.refuse(
            "candidate",
            "all such requests are refused, so it would count none",
            accepted,
            report,
        ));
    }
    let (path, reach) = path?;
    Ok(Public { path, reach, methods: methods?, limits: limits?, candidate: candidate? })
}

fn exempt(fields: &Fields<'_, '_>, report: &mut Report<'_>) -> Result<Exemption, Reported> {
    let path = reaching(fields, report);
    let methods = methods(fields, report);
    let accepted = "an array of addresses and prefixes such as [\"192.0.2.0/24\"]";
    let sources = required(fields, "sources", accepted, report, known);
    let accepted = "the time when the exemption ends, such as 2027-01-01T00:00:00Z";
    let until = required(fields, "until", accepted, report, |fields, report| fields.time("until", report));
    let accepted = "why the exemption is there, such as \"load balancer, OPS-12\"";
    let reason = required(fields, "reason", accepted, report, reason);
    if until.as_ref().is_ok_and(|until| report.is_over(*until)) {
        fields.warn("until", "the exemption is over, so it is none", report);
    }
    let (path, reach) = path?;
    Ok(Exemption { path, reach, methods: methods?, sources: sources?, until: until?, reason: reason? })
}

/// Prefixes that are not nearly everybody's.
fn known(fields: &Fields<'_, '_>, report: &mut Report<'_>) -> Read<Vec<Prefix>> {
    let Some(sources) = fields.prefixes("sources", report)? else { return Ok(None) };
    match exemption::known(&sources) {
        Ok(()) => Ok(Some(sources)),
        Err(Unfit { field, message, accepted }) => {
            Err(report.refuse(wide_place(fields, field), format!("exempt.{field}: {message}"), accepted))
        }
    }
}

/// Where the first prefix of a field stands that is nearly everybody.
pub(super) fn wide_place(fields: &Fields<'_, '_>, field: &str) -> Range<usize> {
    fields.element(field, |text| text.parse().is_ok_and(|prefix| is_wide(&prefix)))
}

fn reason(fields: &Fields<'_, '_>, report: &mut Report<'_>) -> Read<String> {
    let Some((span, text)) = fields.text("reason", REASON, report)? else { return Ok(None) };
    if is_reason(text) { Ok(Some(text.to_owned())) } else { Err(report.refuse(span, "reason: this is none", REASON)) }
}

/// A path that may end in `/*`.
fn reaching(fields: &Fields<'_, '_>, report: &mut Report<'_>) -> Result<(Pattern, Reach), Reported> {
    let accepted = "a path such as \"/health\", or \"/docs/*\" for all beneath it too";
    required(fields, "path", accepted, report, |fields, report| fields.path_of("path", Pattern::parse_reach, report))
}

/// A field that must be there.
pub(super) fn required<T>(
    fields: &Fields<'_, '_>,
    field: &str,
    accepted: &str,
    report: &mut Report<'_>,
    read: impl FnOnce(&Fields<'_, '_>, &mut Report<'_>) -> Read<T>,
) -> Result<T, Reported> {
    match read(fields, report)? {
        Some(value) => Ok(value),
        None => Err(fields.refuse(field, "it is missing", accepted, report)),
    }
}

fn methods(fields: &Fields<'_, '_>, report: &mut Report<'_>) -> Result<Methods, Reported> {
    let Some(list) = fields.list("methods", Methods::ACCEPTED, report)? else { return Ok(Methods::ALL) };
    let (mut all, mut words): (Option<Methods>, BTreeSet<&str>) = (None, BTreeSet::new());
    let mut wrong = None;
    for (span, word) in list {
        let Some(one) = Methods::one(word) else {
            wrong = Some(report.refuse(span, format!("methods: {word:?}"), Methods::ACCEPTED));
            continue;
        };
        if !words.insert(word) {
            wrong = Some(report.refuse(span, format!("methods: {word:?} stands twice"), "each once"));
        }
        all = Some(all.map_or(one, |all| all.and(one)));
    }
    wrong.map_or(Ok(all.unwrap_or(Methods::ALL)), Err)
}
