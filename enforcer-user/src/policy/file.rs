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

use toml::de::{DeTable, DeValue};

use super::Policy;
use super::document::Plan;
use fields::{Fields, table};
use problem::Report;
pub use problem::{Problem, Problems};

/// The version of the format that is read and written.
pub const VERSION: u32 = 1;

const SECTIONS: [&str; 9] = ["version", "service", "plan", "tenant", "principal", "limit", "route", "public", "exempt"];

/// Reads a policy; `file` is its name in messages.
///
/// # Errors
/// All that is wrong with it.
pub fn parse(file: &str, text: &str) -> Result<Policy, Problems> {
    let mut report = Report::new(text);
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        report.refuse(error.span().unwrap_or_default(), error.message().trim_end().replace('\n', ", "), "");
    }
    // What a broken line hides would be missed elsewhere: syntax first, then sense.
    let mut policy = Policy::default();
    if report.is_clean() {
        read(document.get_ref(), &mut policy, &mut report);
    }
    match report.finish(file) {
        None => Ok(policy),
        Some(problems) => Err(problems),
    }
}

/// Names that a file defines, whether or not what it says of them could be read.
struct Names<'t> {
    plans: HashSet<&'t str>,
    tenants: HashSet<&'t str>,
    limits: HashSet<&'t str>,
    /// Whether anything tells a principal's clients apart.
    clients: bool,
}

fn read(document: &DeTable<'_>, policy: &mut Policy, report: &mut Report<'_>) {
    let file = Fields::new(document, String::new(), 0..0, &SECTIONS, report);
    if let Ok(None) = file.number("version", VERSION..=VERSION, report) {
        file.refuse("version", "it is missing", "version = 1", report);
    }
    let names = |section: &str| match file.get(section).map(|value| value.get_ref()) {
        Some(DeValue::Table(table)) => table.keys().map(|key| key.get_ref().as_ref()).collect(),
        _ => HashSet::new(),
    };
    let mut section = |value| {
        let fields = service::fields(table(value, "service", report)?, file.place("service"), report);
        service::read(&fields, report)
    };
    if let Some(Ok(service)) = file.get("service").map(&mut section) {
        policy.service = service;
    }
    let clients = match file.get("service").map(|value| value.get_ref()) {
        Some(DeValue::Table(table)) => table.contains_key("client_id"),
        _ => false,
    };
    let names = Names { plans: names("plan"), tenants: names("tenant"), limits: names("limit"), clients };
    policy.plans = named(&file, "plan", report, plan);
    policy.tenants = named(&file, "tenant", report, plan);
    policy.principals = named(&file, "principal", report, |fields, report| principals::read(fields, &names, report));
    principals::count(&file, report);
    policy.limits = named(&file, "limit", report, rules::quota);
    rules::read(&file, &names, policy, report);
    policy.sort();
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

/// A plan, or a tenant, of which the same is said.
fn plan(named: &Named<'_, '_>, report: &mut Report<'_>) -> Result<Plan, problem::Reported> {
    let fields = named.fields(&["limit", "candidate", "mode"], report);
    let limits = fields.limits("limit", report);
    let candidate = fields.limits("candidate", report);
    let mode = fields.word("mode", &super::document::MODES, report);
    let Some(limits) = limits? else {
        let message = format!("`limit` is missing; {} would have none", named.path.replacen('.', " ", 1));
        return Err(fields.refuse("limit", message, "a limit such as \"100/minute\", or \"unlimited\"", report));
    };
    Ok(Plan { limits, candidate: candidate?, mode: mode?.unwrap_or_default() })
}

#[cfg(test)]
mod tests;
