//! Limits that all principals of a tenant share.

use anyhow::{Context, Result, ensure};
use enforcer_tests::client::Ending;
use enforcer_tests::enforcer::Enforcer;
use enforcer_tests::netns::Way;
use enforcer_tests::origin::Workers;
use nix::sys::signal::Signal;

use crate::site::{Site, add_key, apply, keyed, statuses, v4, with_policy};

/// A policy of three principals, the first two of a tenant with this limit.
fn policy(limit: &str) -> String {
    format!(
        "[tenant.acme]\n{limit}\n[plan.gold]\nlimit = \"30/hour\"\n\
         [principal.alice]\nplan = \"gold\"\ntenant = \"acme\"\n\
         [principal.bob]\nlimit = \"30/hour\"\ntenant = \"acme\"\n[principal.carol]\nlimit = \"30/hour\""
    )
}

/// What `plan` tells that a tenant's limits have refused, would have, and what their candidate would have.
fn forecast(enforcer: &Enforcer<'_>) -> Result<[u64; 3]> {
    let plan = enforcer.json(&["plan"])?;
    let rules = plan["rules"].as_array().context("no list of rules")?;
    let rule = rules.iter().find(|rule| rule["rule"] == "tenant acme").context("the tenant is not told")?;
    let count = |field: &str| rule[field].as_u64().with_context(|| format!("no {field}: {rule}"));
    Ok([count("refused")?, count("would_refuse")?, count("candidate_would_refuse")?])
}

#[test]
fn a_tenant_s_limit_holds_for_all_its_principals_together_and_for_nobody_else() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("routes", Workers::Sync(2))?;
    let mut enforcer = site.guard(&policy("limit = \"40/hour\""))?;
    let [alice, bob, carol] = ["alice", "bob", "carol"];
    let [alice, bob, carol] = [add_key(&enforcer, alice)?, add_key(&enforcer, bob)?, add_key(&enforcer, carol)?];
    let flood = |key: &str| site.flood(v4(1), 60, |_| keyed("/", key));

    let endings = flood(&alice)?;
    ensure!(endings == statuses([(200, 30), (429, 30)]), "alice by her own limit: {endings:?}");
    // What her own limit refused has cost her tenant nothing.
    let endings = flood(&bob)?;
    ensure!(endings == statuses([(200, 10), (429, 50)]), "bob by what the tenant has left: {endings:?}");
    ensure!(forecast(&enforcer)? == [50, 0, 0], "{:?}", forecast(&enforcer)?);
    let mut connection = site.connect(v4(1))?;
    connection.send(&keyed("/", &bob));
    let (ending, answer) = connection.answer();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let named = answer.contains("\"violated-policies\":[\"tenant\"");
    ensure!(ending == Ending::Answered(429) && named, "{ending:?}: {answer}");
    let limits = enforcer.json(&["limits", "bob"])?;
    let (tenant, own) = (&limits["tenants"][0], &limits["principals"][0]);
    ensure!(tenant["name"] == "acme" && own["tenant"] == "acme", "{limits}");
    ensure!(tenant["rules"][0]["used"] == 40 && tenant["rules"][0]["remaining"] == 0, "{limits}");
    ensure!(own["rules"][0]["used"] == 10, "{limits}");

    let endings = flood(&carol)?;
    ensure!(endings == statuses([(200, 30), (429, 30)]), "carol, of no tenant: {endings:?}");

    // A principal's own limit, raised, or off a plan for a time, does not lift it.
    enforcer.cli(&["limit", "set", "bob", "unlimited"])?;
    enforcer.cli(&["limit", "set", "alice", "unlimited", "--for", "1h"])?;
    enforcer.stop(Signal::SIGTERM)?;
    enforcer.start()?;
    for key in [&alice, &bob] {
        let endings = flood(key)?;
        ensure!(endings == statuses([(429, 60)]), "with a principal's limit raised: {endings:?}");
    }
    // A changed limit of the tenant goes on counting.
    let exported = enforcer.cli(&["export"])?;
    let raised = exported.replace("40/hour", "45/hour");
    ensure!(raised != exported, "the tenant is not exported: {exported}");
    apply(&enforcer, raised.trim_start_matches("version = 1\n"))?;
    let endings = flood(&alice)?;
    ensure!(endings == statuses([(200, 5), (429, 55)]), "raised from 40 to 45: {endings:?}");
    ensure!(origin.executed()?.len() == 75, "the app executed {}", origin.executed()?.len());
    Ok(())
}

#[test]
fn a_tenant_that_comes_goes_or_is_tried_takes_effect_on_all_its_principals() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _origin = site.serve("routes", Workers::Sync(2))?;
    let enforcer = site.guard(&policy("limit = \"100/hour\"\ncandidate = \"5/hour\""))?;
    let (alice, bob) = (add_key(&enforcer, "alice")?, add_key(&enforcer, "bob")?);
    let flood = |key: &str, count| site.flood(v4(1), count, |_| keyed("/", key));
    let endings = (flood(&alice, 4)?, flood(&bob, 4)?);
    ensure!(endings == (statuses([(200, 4)]), statuses([(200, 4)])), "{endings:?}");
    ensure!(forecast(&enforcer)? == [0, 0, 3], "{:?}", forecast(&enforcer)?);

    let ran = with_policy(&enforcer, &["apply", "--confirm", "1h", "-f"], &policy("limit = \"10/hour\""))?;
    ensure!(ran.code == 0, "{}{}", ran.stdout, ran.stderr);
    let endings = flood(&bob, 6)?;
    ensure!(endings == statuses([(200, 2), (429, 4)]), "on trial, with 8 used: {endings:?}");
    enforcer.cli(&["rollback"])?;
    let endings = flood(&alice, 2)?;
    ensure!(endings == statuses([(200, 2)]), "taken back: {endings:?}");

    apply(&enforcer, &policy("limit = \"3/hour\"\nmode = \"observe\""))?;
    let endings = flood(&alice, 2)?;
    ensure!(endings == statuses([(200, 2)]), "observed: {endings:?}");
    ensure!(forecast(&enforcer)?[1] == 2, "{:?}", forecast(&enforcer)?);

    let ran = with_policy(&enforcer, &["apply", "-f"], "[principal.alice]\nlimit = \"30/hour\"")?;
    ensure!(ran.code != 0 && ran.stderr.contains("keep [tenant.acme]"), "bob lost his tenant: {}", ran.stderr);
    apply(&enforcer, "[principal.alice]\nlimit = \"30/hour\"\n[principal.bob]\nlimit = \"30/hour\"")?;
    let endings = flood(&bob, 30)?;
    ensure!(endings.get(&Ending::Answered(200)) == Some(&24), "of no tenant any more: {endings:?}");
    Ok(())
}

#[test]
fn a_tenant_is_shown_by_its_name_with_its_principals_and_nobody_else() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let enforcer = site.guard(&policy("limit = \"40/hour\""))?;
    let names = |shown: &serde_json::Value, kind: &str| -> Vec<String> {
        let all = shown[kind].as_array().into_iter().flatten();
        all.filter_map(|one| Some(one["name"].as_str()?.to_owned())).collect()
    };
    let shown = enforcer.json(&["limits", "acme"])?;
    ensure!(names(&shown, "tenants") == ["acme"] && names(&shown, "principals") == ["alice", "bob"], "{shown}");
    let ran = enforcer.run(&["limits", "nobody"])?;
    ensure!(ran.code == 6, "{} {}", ran.code, ran.stderr);
    apply(
        &enforcer,
        "[tenant.empty]\nlimit = \"1/hour\"\n[principal.alice]\nlimit = \"1/hour\"\n[principal.bob]\nlimit = \"1/hour\"",
    )?;
    ensure!(enforcer.cli(&["limits", "empty"])?.contains("tenant empty"), "{}", enforcer.cli(&["limits", "empty"])?);
    Ok(())
}
