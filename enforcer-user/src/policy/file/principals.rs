//! The sections `[principal.NAME]`, with their clients.

use std::collections::BTreeMap;

use super::fields::{self, Fields, table};
use super::problem::{Report, Reported};
use super::{Named, Names};
use crate::policy::Limits;
use crate::policy::document::{MAX_CLIENTS, MAX_PRINCIPALS, MAX_TENANTS, OTHER, Override, Principal, Terms};

/// Most bytes of a declared client id: what the program reads of the field.
const MAX_ID: usize = enforcer_ebpf::key::MAX_LEN as usize;

pub(super) fn read(named: &Named<'_, '_>, names: &Names<'_>, report: &mut Report<'_>) -> Result<Principal, Reported> {
    let fields = named.fields(&["plan", "tenant", "limit", "until", "candidate", "clients"], report);
    let plan = plan(&fields, names, report);
    let tenant = tenant(&fields, names, report);
    let limits = fields.limits("limit", report);
    let until = fields.time("until", report);
    let candidate = fields.limits("candidate", report);
    let clients = clients(&fields, names, report);
    let ends = if fields.has("until") && !(fields.has("plan") && fields.has("limit")) {
        let accepted = "`until` with both `plan` and `limit`, for the end of an override";
        let message = "nothing would hold from then on that does not hold before";
        Err(fields.refuse("until", message, accepted, report))
    } else {
        Ok(())
    };
    let (plan, limits, until) = (plan?, limits?, until?);
    let terms = match (plan, limits) {
        (Some(plan), limits) => Terms::Plan { plan, instead: limits.map(|limits| Override { limits, until }) },
        (None, Some(limits)) => Terms::Own(limits),
        (None, None) => {
            let accepted = "`plan`, `limit`, or both for limits in place of the plan's";
            return Err(fields.refuse("plan", "neither plan nor limit", accepted, report));
        }
    };
    ends?;
    if until.is_some_and(|until| report.is_over(until)) {
        fields.warn("until", "it is over: the limit of the plan holds, and not this `limit`", report);
    }
    Ok(Principal { terms, tenant: tenant?, candidate: candidate?, clients: clients? })
}

fn plan(fields: &Fields<'_, '_>, names: &Names<'_>, report: &mut Report<'_>) -> fields::Read<String> {
    let Some((span, plan)) = fields.text("plan", "the name of a plan", report)? else { return Ok(None) };
    if names.plans.contains(plan) {
        return Ok(Some(plan.to_owned()));
    }
    Err(report.refuse(span, format!("there is no plan {plan:?}"), among(&names.plans, "plan")))
}

fn tenant(fields: &Fields<'_, '_>, names: &Names<'_>, report: &mut Report<'_>) -> fields::Read<String> {
    let Some((span, tenant)) = fields.text("tenant", "the name of a tenant", report)? else { return Ok(None) };
    if names.tenants.contains(tenant) {
        return Ok(Some(tenant.to_owned()));
    }
    Err(report.refuse(span, format!("there is no tenant {tenant:?}"), among(&names.tenants, "tenant")))
}

/// What there is of some kind, for messages.
pub(super) fn among(names: &std::collections::HashSet<&str>, section: &str) -> String {
    const SHOWN: usize = 10;
    let mut sorted: Vec<_> = names.iter().copied().collect();
    sorted.sort_unstable();
    let more = if sorted.len() > SHOWN { ", …" } else { "" };
    sorted.truncate(SHOWN);
    match sorted.is_empty() {
        true => format!("a name for which there is [{section}.NAME]; there is none"),
        false => format!("{}{more}", sorted.join(", ")),
    }
}

fn clients(
    fields: &Fields<'_, '_>,
    names: &Names<'_>,
    report: &mut Report<'_>,
) -> Result<BTreeMap<String, Limits>, Reported> {
    let Some(value) = fields.get("clients") else { return Ok(BTreeMap::new()) };
    let table = table(value, "clients", report)?;
    let mut clients = BTreeMap::new();
    let mut wrong = None;
    for (key, value) in table {
        let id = key.get_ref().as_ref();
        let valid = (1..=MAX_ID).contains(&id.len()) && id.bytes().all(|byte| (0x21..=0x7e).contains(&byte));
        if !valid {
            let accepted =
                format!("1 to {MAX_ID} visible ASCII characters without spaces, or `{OTHER}` for all the rest");
            wrong = Some(report.refuse(key.span(), "clients: this is no client id", accepted));
            continue;
        }
        let Some(text) = value.get_ref().as_str() else {
            let message = format!("clients.{id}: no limit stands here");
            wrong = Some(report.refuse(value.span(), message, "a limit such as \"60/minute\""));
            continue;
        };
        match fields::limits(value.span(), text, &format!("clients.{id}"), report) {
            Ok(limits) => {
                clients.insert(id.to_owned(), limits);
            }
            Err(reported) => wrong = Some(reported),
        }
    }
    let declared = table.keys().filter(|key| key.get_ref() != OTHER).count();
    if declared > MAX_CLIENTS {
        let accepted = format!("at most {MAX_CLIENTS}, and `{OTHER}` for all the rest");
        wrong = Some(fields.refuse("clients", format!("{declared} client ids"), accepted, report));
    }
    if !table.is_empty() && !names.clients {
        let accepted = "`client_id` in a service, the field that tells them apart";
        wrong = Some(fields.refuse("clients", "nothing tells clients apart", accepted, report));
    }
    wrong.map_or(Ok(clients), Err)
}

/// Refuses more principals and tenants than there is room for.
pub(super) fn count(file: &Fields<'_, '_>, report: &mut Report<'_>) {
    for (section, most) in [("principal", MAX_PRINCIPALS), ("tenant", MAX_TENANTS)] {
        let count = file.get(section).and_then(|value| value.get_ref().as_table()).map_or(0, toml::map::Map::len);
        if count > most {
            file.refuse(section, format!("{count} {section}s"), format!("at most {most}"), report);
        }
    }
}
