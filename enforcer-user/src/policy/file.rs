//! The policy as a file: TOML that is read strictly, and written so that it reads back as the same policy.
//!
//! A field that is not known is an error, as is one of another type, a name that nothing has, and whatever contradicts
//! itself. All that is wrong is told at once, each thing with its line. Keys never stand in it.

mod export;
mod fields;
mod principals;
mod problem;
mod rules;
mod service;

use std::collections::{BTreeMap, HashSet};

use jiff::Timestamp;
use toml::de::{DeTable, DeValue};

use super::document::{DEFAULT_SERVICE, MAX_EXEMPTIONS, MAX_SERVICES, Plan, Site};
use super::service::{OwnLimit, Service, Unregistered};
use super::{Limits, Policy};
use fields::{Fields, table};
use problem::Report;
pub use problem::{Level, Problem, Problems};

/// The version of the format that is read and written.
pub const VERSION: u32 = 1;

const SECTIONS: [&str; 9] = ["version", "service", "plan", "tenant", "principal", "limit", "route", "public", "exempt"];

/// Reads a policy; `file` is its name in messages.
///
/// # Errors
/// All that is wrong with it.
pub fn parse(file: &str, text: &str) -> Result<Policy, Problems> {
    parse_for(&[], file, text)
}

/// Likewise, for services of which `together` are the names of those that have the same ports.
///
/// # Errors
/// All that is wrong with it, what these do not agree on among it.
pub fn parse_for(together: &[Vec<String>], file: &str, text: &str) -> Result<Policy, Problems> {
    parse_at(together, file, text, Timestamp::now()).map(|(policy, _)| policy)
}

/// Reads a policy, and says what of it does nothing at `now`, or more than is likely to be meant.
///
/// # Errors
/// All that is wrong with it.
pub fn review(file: &str, text: &str, now: Timestamp) -> Result<(Policy, Option<Problems>), Problems> {
    parse_at(&[], file, text, now)
}

fn parse_at(
    together: &[Vec<String>],
    file: &str,
    text: &str,
    now: Timestamp,
) -> Result<(Policy, Option<Problems>), Problems> {
    let mut report = Report::new(text, now);
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        report.refuse(error.span().unwrap_or_default(), error.message().trim_end().replace('\n', ", "), "");
    }
    // What a broken line hides would be missed elsewhere: syntax first, then sense.
    let mut policy = Policy::default();
    if report.is_clean() {
        read(document.get_ref(), &mut policy, together, &mut report);
    }
    report.finish(file).map(|warnings| (policy, warnings))
}

/// What is wrong with what a policy that reads well says of a service, at its name; what holds alone is of the service that
/// needs none.
#[must_use]
pub fn at_service(file: &str, text: &str, name: &str, message: &str, accepted: &str) -> Problems {
    let (document, _) = DeTable::parse_recoverable(text);
    let sections = document.get_ref();
    let elements = sections.get("service").and_then(|value| value.get_ref().as_array()).into_iter().flatten();
    let names = elements.filter_map(|element| element.get_ref().as_table()?.get("name"));
    let named = names.into_iter().find(|value| value.get_ref().as_str() == Some(name));
    let alone =
        || SECTIONS.iter().find_map(|section| sections.get_key_value(*section).filter(|_| *section != "version"));
    let place = named.map(|value| value.span()).or_else(|| alone().map(|(key, _)| key.span())).unwrap_or_default();
    problem::one(file, text, place, format!("service {name}: {message}"), accepted)
}

/// Names that a file defines, whether or not what it says of them could be read.
struct Names<'t> {
    plans: HashSet<&'t str>,
    tenants: HashSet<&'t str>,
    /// Whether anything tells a principal's clients apart.
    clients: bool,
}

/// The names of the tables of a section.
fn names<'t>(fields: &Fields<'t, '_>, section: &str) -> HashSet<&'t str> {
    match fields.get(section).map(|value| value.get_ref()) {
        Some(DeValue::Table(table)) => table.keys().map(|key| key.get_ref().as_ref()).collect(),
        _ => HashSet::new(),
    }
}

fn read(document: &DeTable<'_>, policy: &mut Policy, together: &[Vec<String>], report: &mut Report<'_>) {
    let file = Fields::new(document, String::new(), 0..0, &SECTIONS, report);
    if let Ok(None) = file.number("version", VERSION..=VERSION, report) {
        file.refuse("version", "it is missing", "version = 1", report);
    }
    let clients = match file.get("service").map(|value| value.get_ref()) {
        Some(DeValue::Table(table)) => table.contains_key("client_id"),
        Some(DeValue::Array(array)) => {
            array.iter().any(|one| one.get_ref().as_table().is_some_and(|table| table.contains_key("client_id")))
        }
        _ => false,
    };
    let names = Names { plans: names(&file, "plan"), tenants: names(&file, "tenant"), clients };
    policy.plans = named(&file, "plan", report, |named, report| plan(named, Fields::limits, report));
    policy.tenants = named(&file, "tenant", report, |named, report| plan(named, Fields::shared, report));
    policy.principals = named(&file, "principal", report, |fields, report| principals::read(fields, &names, report));
    principals::count(&file, report);
    match file.get("service").map(|value| value.get_ref()) {
        Some(DeValue::Array(array)) => {
            services(&file, policy, report);
            let tables: Vec<_> = array.iter().filter_map(|one| one.get_ref().as_table()).collect();
            agree(&tables, policy, together, report);
        }
        Some(DeValue::Table(table)) => {
            one_service(&file, policy, report);
            agree(&[table], policy, together, report);
        }
        _ => one_service(&file, policy, report),
    }
    unbounded(&file, policy, report);
    let exempt: usize = policy.services.values().map(|site| site.exempt.len()).sum();
    if exempt > MAX_EXEMPTIONS {
        let message = format!("{exempt} exemptions of all services together");
        report.refuse(file.place("service"), message, format!("at most {MAX_EXEMPTIONS}"));
    }
}

/// Hints, once, at a ceiling where there is none that refuses.
fn unbounded(file: &Fields<'_, '_>, policy: &Policy, report: &mut Report<'_>) {
    let is_unbounded = |service: &Service| service.ceiling.is_none() || service.observe.contains(&OwnLimit::Ceiling);
    let without = policy.services.iter().find(|(_, site)| is_unbounded(&site.service));
    if !policy.services.is_empty() && without.is_none() {
        return;
    }
    let of = match (without, policy.services.len()) {
        (Some((name, _)), 2..) => format!(", of service {name}"),
        _ => String::new(),
    };
    let place = if file.has("service") { "service" } else { "version" };
    let message = format!("no `ceiling`{of} that refuses: all clients together may send as much as each of them may");
    report.hint(file.place(place), message);
}

/// The sections that stand in a service where there are several, and alone where there is one.
const OF_SERVICE: [&str; 4] = ["limit", "route", "public", "exempt"];

/// The one service, whose name needs not be said.
fn one_service(file: &Fields<'_, '_>, policy: &mut Policy, report: &mut Report<'_>) {
    let mut site = Site::default();
    if let Some(value) = file.get("service") {
        let Ok(table) = table(value, "service", report) else { return };
        let fields = service::fields(table, file.place("service"), &[], report);
        if let Ok(service) = service::read(&fields, report) {
            site.service = service;
        }
    }
    rules::read(file, &mut site, report);
    if file.has("service") || OF_SERVICE.iter().any(|section| file.has(section)) {
        policy.services.insert(DEFAULT_SERVICE.to_owned(), site);
    }
}

/// The services of `[[service]]`, each with its name.
fn services(file: &Fields<'_, '_>, policy: &mut Policy, report: &mut Report<'_>) {
    for section in OF_SERVICE.iter().filter(|section| file.has(section)) {
        let accepted = format!("it in the [[service]] that it is for, as `service.{section}`");
        file.refuse(section, "where there are several services it is of none", accepted, report);
    }
    let array = file.get("service").and_then(|value| value.get_ref().as_array());
    for element in array.into_iter().flatten() {
        let Ok(table) = table(element, "service", report) else { continue };
        let known = ["name"].into_iter().chain(OF_SERVICE).collect::<Vec<_>>();
        let fields = service::fields(table, element.span(), &known, report);
        let name = service_name(&fields, policy, report);
        let service = service::read(&fields, report);
        let mut site = Site::default();
        rules::read(&fields, &mut site, report);
        if let (Ok(name), Ok(service)) = (name, service) {
            policy.services.insert(name, Site { service, ..site });
        }
    }
    if policy.services.len() > MAX_SERVICES {
        let message = format!("{} of them", policy.services.len());
        file.refuse("service", message, format!("at most {MAX_SERVICES} [[service]]"), report);
    }
    let unregistered = policy.services.values().filter_map(|site| site.service.unregistered.as_ref());
    let keys: u32 = unregistered.map(|unregistered| unregistered.max_keys).sum();
    if keys > Unregistered::MOST {
        let message = format!("their `max_keys` come to {keys}");
        file.refuse("service", message, format!("at most {} in all", Unregistered::MOST), report);
    }
}

/// Sees that services with the same ports agree on what counts before it is known for which of them a request is.
fn agree(tables: &[&DeTable<'_>], policy: &Policy, together: &[Vec<String>], report: &mut Report<'_>) {
    let default = Service::default();
    let said = |name: &str| policy.services.get(name).map_or(&default, |site| &site.service);
    let place = |name: &str, field: &str| {
        let is_of = |table: &&&DeTable<'_>| {
            let named = table.get("name").and_then(|value| value.get_ref().as_str());
            named.unwrap_or(DEFAULT_SERVICE) == name
        };
        tables.iter().find(is_of)?.get_key_value(field).map(|(key, _)| key.span())
    };
    for names in together {
        let Some((first, others)) = names.split_first() else { continue };
        for other in others {
            for field in said(first).disagreements(said(other)) {
                let Some(span) = place(other, field).or_else(|| place(first, field)) else { continue };
                let message = format!(
                    "service.{field}: {first} and {other} have the same ports, and it counts before it is known for which \
                     of them a request is"
                );
                report.refuse(span, message, "the same for both; one that the file does not name has the default");
            }
        }
    }
}

/// The name of a service, which no other has.
fn service_name(
    fields: &Fields<'_, '_>,
    policy: &Policy,
    report: &mut Report<'_>,
) -> Result<String, problem::Reported> {
    let accepted = format!("the name that the service has in the configuration, {}", crate::name::ACCEPTED);
    let Some((span, name)) = fields.text("name", &accepted, report)? else {
        return Err(fields.refuse("name", "it is missing", accepted, report));
    };
    if let Err(error) = crate::name::check(name) {
        return Err(report.refuse(span, format!("service.name: {error}"), accepted));
    }
    if policy.services.contains_key(name) {
        return Err(report.refuse(span, format!("service.name: {name:?} stands twice"), "one [[service]] for each"));
    }
    Ok(name.to_owned())
}

/// The tables of a section by their names, such as `[plan.gold]`.
fn named<T>(
    file: &Fields<'_, '_>,
    section: &str,
    report: &mut Report<'_>,
    mut read: impl FnMut(&Named<'_, '_>, &mut Report<'_>) -> Result<T, problem::Reported>,
) -> BTreeMap<String, T> {
    let Some(value) = file.get(section) else { return BTreeMap::new() };
    let Ok(tables) = table(value, section, report) else { return BTreeMap::new() };
    let mut all = BTreeMap::new();
    for (key, value) in tables {
        let name = key.get_ref().as_ref();
        // Not quoted: what stands here may be a key.
        if let Err(error) = crate::name::check(name) {
            report.refuse(key.span(), format!("[{section}]: {error}"), crate::name::ACCEPTED);
            continue;
        }
        let path = format!("{section}.{name}");
        if let Ok(table) = table(value, &path, report) {
            let named = Named { path, table, span: key.span() };
            if let Ok(one) = read(&named, report) {
                all.insert(name.to_owned(), one);
            }
        }
    }
    all
}

/// A table that has a name.
struct Named<'t, 'f> {
    /// Its name, with its section before it.
    path: String,
    table: &'t DeTable<'f>,
    span: std::ops::Range<usize>,
}

impl<'t, 'f> Named<'t, 'f> {
    fn fields(&self, known: &[&str], report: &mut Report<'_>) -> Fields<'t, 'f> {
        Fields::new(self.table, self.path.clone(), self.span.clone(), known, report)
    }
}

/// A plan, or a tenant, of which the same is said; `read` reads limits of it.
fn plan<'t, 'f>(
    named: &Named<'t, 'f>,
    read: impl Fn(&Fields<'t, 'f>, &str, &mut Report<'_>) -> fields::Read<Limits>,
    report: &mut Report<'_>,
) -> Result<Plan, problem::Reported> {
    let fields = named.fields(&["limit", "candidate", "mode"], report);
    let limits = read(&fields, "limit", report);
    let candidate = read(&fields, "candidate", report);
    let mode = fields.word("mode", &super::document::MODES, report);
    let Some(limits) = limits? else {
        let message = format!("`limit` is missing; {} would have none", named.path.replacen('.', " ", 1));
        return Err(fields.refuse("limit", message, "a limit such as \"100/minute\", or \"unlimited\"", report));
    };
    Ok(Plan { limits, candidate: candidate?, mode: mode?.unwrap_or_default() })
}

#[cfg(test)]
mod tests;
