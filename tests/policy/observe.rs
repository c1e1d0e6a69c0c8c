//! Rules that only watch, and candidates beside real limits: they count and refuse nobody.

use anyhow::{Context, Result, ensure};
use enforcer_tests::enforcer::Enforcer;
use enforcer_tests::netns::Way;
use enforcer_tests::origin::Workers;
use serde_json::Value;

use crate::site::{PORT, Site, add_key, apply, executed_at, keyed, request, statuses, v4};

/// Requests of a principal that were let through though a rule or a candidate would have refused them.
fn would_refuse(enforcer: &Enforcer<'_>, name: &str) -> Result<u64> {
    let listing = enforcer.json(&["key", "ls"])?;
    let keys = listing["keys"].as_array().context("no list of keys")?;
    let key = keys.iter().find(|key| key["name"] == name).context("the principal has no key")?;
    key["counts"]["would_refuse"].as_u64().context("no count of what would be refused")
}

#[test]
fn a_rule_that_observes_refuses_nobody_while_those_beside_it_do() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("routes", Workers::Sync(2))?;
    let policy = |mode: &str| {
        format!(
            "[principal.tenant]\nlimit = \"1000/hour\"\n\
             [[route]]\npath = \"/watched\"\nlimit = \"10/hour\"\nmode = \"{mode}\"\n\
             [[route]]\npath = \"/held\"\nlimit = \"10/hour\""
        )
    };
    let enforcer = site.guard(&policy("observe"))?;
    let key = add_key(&enforcer, "tenant")?;
    let watched = site.flood(v4(1), 50, |_| keyed("/watched", &key))?;
    ensure!(watched == statuses([(200, 50)]), "the rule that observes: {watched:?}");
    let held = site.flood(v4(1), 50, |_| keyed("/held", &key))?;
    ensure!(held == statuses([(200, 10), (429, 40)]), "the rule beside it: {held:?}");
    ensure!(would_refuse(&enforcer, "tenant")? == 40, "counted: {}", would_refuse(&enforcer, "tenant")?);
    let plan = enforcer.json(&["plan"])?;
    ensure!(plan["principals"][0]["name"] == "tenant" && plan["principals"][0]["would_refuse"] == 40, "whom: {plan}");
    // It has counted all the while: to enforce it is to refuse at once.
    apply(&enforcer, &policy("enforce"))?;
    let enforced = site.flood(v4(1), 20, |_| keyed("/watched", &key))?;
    ensure!(enforced == statuses([(429, 20)]), "once it is enforced: {enforced:?}");
    ensure!(
        executed_at(&origin, "/watched")? == 50 && executed_at(&origin, "/held")? == 10,
        "{:?}",
        origin.executed()?
    );
    Ok(())
}

#[test]
fn a_candidate_counts_what_it_would_have_refused_beside_the_limit_that_does() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("routes", Workers::Sync(2))?;
    let enforcer = site.guard(
        "[plan.basic]\nlimit = \"100/hour\"\ncandidate = \"60/hour\"\n\
         [principal.heavy]\nplan = \"basic\"\n[principal.light]\nplan = \"basic\"",
    )?;
    let (heavy, light) = (add_key(&enforcer, "heavy")?, add_key(&enforcer, "light")?);
    let endings = site.flood(v4(1), 150, |_| keyed("/", &heavy))?;
    ensure!(endings == statuses([(200, 100), (429, 50)]), "the limit: {endings:?}");
    let endings = site.flood(v4(1), 50, |_| keyed("/", &light))?;
    ensure!(endings == statuses([(200, 50)]), "a principal below both: {endings:?}");
    // Of the hundred that passed, forty were beyond the candidate; what the limit refused is not its doing.
    let json: Value = serde_json::from_str(&enforcer.cli(&["plan", "-o", "json"])?)?;
    ensure!(json["principals"][0]["candidate_would_refuse"] == 40, "counted: {json}");
    ensure!(would_refuse(&enforcer, "heavy")? == 0, "its limit refuses what it counts");
    let plan = enforcer.cli(&["plan"])?;
    ensure!(
        plan.contains("heavy") && !plan.lines().any(|line| line.starts_with("light")),
        "whom the candidate would have refused: {plan}"
    );
    ensure!(origin.executed()?.len() == 150, "the app executed {}", origin.executed()?.len());
    Ok(())
}

#[test]
fn each_rule_has_counts_of_its_own_and_a_plan_does_not_inherit_anothers() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _origin = site.serve("routes", Workers::Sync(2))?;
    let rest = "[plan.gold]\nlimit = \"30/hour\"\ncandidate = \"20/hour\"\n\
                [plan.watched]\nlimit = \"5/hour\"\nmode = \"observe\"\n\
                [principal.tenant]\nplan = \"gold\"\n[principal.other]\nplan = \"watched\"\n\
                [[route]]\npath = \"/few\"\nlimit = \"3/hour\"";
    let enforcer = site.guard(rest)?;
    let (key, other) = (add_key(&enforcer, "tenant")?, add_key(&enforcer, "other")?);
    let count = |what: &str, rule: &str| {
        // What all services share is of none.
        let service = if rule.starts_with("route") { "default" } else { "" };
        enforcer.metric(&format!("enforcer_rule_{what}_total{{service=\"{service}\",rule=\"{rule}\"}}"))
    };
    site.flood(v4(1), 10, |_| keyed("/few", &key))?;
    site.flood(v4(1), 40, |_| keyed("/", &key))?;
    site.flood(v4(1), 9, |_| keyed("/", &other))?;
    let counts = |expected: [u64; 5]| -> Result<()> {
        let found = [
            count("refused", "plan gold")?,
            count("candidate_would_refuse", "plan gold")?,
            count("would_refuse", "plan watched")?,
            count("refused", "plan watched")?,
            count("refused", "route /few")?,
        ];
        ensure!(found == expected, "{found:?}, not {expected:?}: {}", enforcer.metrics()?);
        Ok(())
    };
    counts([13, 10, 4, 0, 7])?;
    // A plan whose name comes before: all others count elsewhere, and begin anew.
    apply(&enforcer, &format!("[plan.basic]\nlimit = \"1/hour\"\n{rest}"))?;
    ensure!(count("refused", "plan basic")? == 0, "it has another's count");
    counts([0, 0, 0, 0, 7])?;
    site.flood(v4(1), 2, |_| keyed("/", &key))?;
    counts([2, 0, 0, 0, 7])
}

#[test]
fn where_the_service_observes_a_rule_has_refused_nobody() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _origin = site.serve("routes", Workers::Sync(2))?;
    let enforcer = Enforcer::guard(&site.link, PORT, &["--mode", "observe"])?;
    apply(&enforcer, "[plan.gold]\nlimit = \"5/hour\"\n[principal.tenant]\nplan = \"gold\"")?;
    let key = add_key(&enforcer, "tenant")?;
    let endings = site.flood(v4(1), 9, |_| keyed("/", &key))?;
    ensure!(endings == statuses([(200, 9)]), "the service observes: {endings:?}");
    let plan = enforcer.json(&["plan"])?;
    let rules = plan["rules"].as_array().context("no list of rules")?;
    let gold = rules.iter().find(|rule| rule["rule"] == "plan gold").context("the plan is not told")?;
    ensure!(gold["refused"] == 0 && gold["would_refuse"] == 4, "{gold}");
    let whom = plan["principals"].as_array().context("no list of principals")?;
    ensure!(whom.iter().any(|whom| whom["name"] == "tenant" && whom["would_refuse"] == 4), "{plan}");
    Ok(())
}

#[test]
fn limits_of_the_service_itself_observe_and_have_candidates() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("routes", Workers::Sync(2))?;
    let policy = |observe: &str| {
        format!(
            "[service]\nsource = \"10/hour\"\nceiling = \"1000/hour\"\nguesses = \"4/hour\"\nunkeyed = \"20/hour\"\n\
             {observe}\n[service.candidate]\nceiling = \"25/hour\"\nunkeyed = \"5/hour\"\n\
             [[public]]\npath = \"/open\"\nlimit = \"10/hour\"\ncandidate = \"3/hour\"\n\
             [principal.tenant]\nlimit = \"1000/hour\"",
        )
    };
    let observe = "observe = [\"source\", \"guesses\"]";
    let enforcer = site.guard(&policy(observe))?;
    let key = add_key(&enforcer, "tenant")?;
    let keyed_ones = site.flood(v4(1), 30, |_| keyed("/", &key))?;
    ensure!(keyed_ones == statuses([(200, 30)]), "a source beyond its limit: {keyed_ones:?}");
    let open = site.flood(v4(1), 12, |_| request("/open", &[]))?;
    ensure!(open == statuses([(200, 10), (429, 2)]), "a public path: {open:?}");
    let unkeyed = site.flood(v4(1), 8, |_| request("/", &[]))?;
    ensure!(unkeyed == statuses([(200, 8)]), "requests without a key: {unkeyed:?}");
    let guesses = site.flood(v4(2), 9, |_| keyed("/", "never_registered_key"))?;
    ensure!(guesses == statuses([(401, 9)]), "bad keys beyond their limit: {guesses:?}");
    // Counted are 30 and 8 of the source, 48 of the service: what the path's limit refused is not.
    let plan = enforcer.json(&["plan"])?;
    let rules = plan["rules"].as_array().context("no list of rules")?;
    for (name, expected) in [
        ("source", [0, 28, 0]),
        ("ceiling", [0, 0, 23]),
        ("guesses", [0, 5, 0]),
        ("unkeyed", [0, 0, 3]),
        ("public /open", [2, 0, 7]),
    ] {
        let rule = rules.iter().find(|rule| rule["rule"] == name).with_context(|| format!("no {name} in {plan}"))?;
        let counts = ["refused", "would_refuse", "candidate_would_refuse"].map(|field| rule[field].as_u64());
        ensure!(counts == expected.map(Some), "{name}: {rule}");
    }
    let source = v4(1).to_string();
    let explained = enforcer.json(&["explain", "GET", "/", "--source", &source, "--as", "tenant"])?;
    let limits = explained["limits"].as_array().context("no list of limits")?;
    for (rule, mode, says) in [("source", "observe", "would_refuse"), ("ceiling", "candidate", "would_refuse")] {
        let is_so = |one: &&Value| one["rule"] == rule && one["mode"] == mode && one["says"] == says;
        ensure!(explained["verdict"] == "pass" && limits.iter().any(|one| is_so(&one)), "{rule}: {explained}");
    }
    // To enforce it is to refuse at once; what was counted is.
    apply(&enforcer, &policy(""))?;
    let enforced = site.flood(v4(1), 5, |_| keyed("/", &key))?;
    ensure!(enforced == statuses([(429, 5)]), "once it is enforced: {enforced:?}");
    let guesses = site.flood(v4(2), 2, |_| keyed("/", "never_registered_key"))?;
    ensure!(guesses == statuses([(429, 2)]), "bad keys, once that is enforced: {guesses:?}");
    // And the way back ends what is refused unread.
    apply(&enforcer, &policy(observe))?;
    let guesses = site.flood(v4(2), 2, |_| keyed("/", "never_registered_key"))?;
    ensure!(guesses == statuses([(401, 2)]), "bad keys, once that is observed again: {guesses:?}");
    ensure!(origin.executed()?.len() == 48, "the app executed {}", origin.executed()?.len());
    Ok(())
}
