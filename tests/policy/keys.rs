//! Limits of one key beside its principal's.

use anyhow::{Context, Result, bail, ensure};
use enforcer_tests::client::Ending;
use enforcer_tests::enforcer::Enforcer;
use enforcer_tests::netns::Way;
use enforcer_tests::origin::Workers;
use nix::sys::signal::Signal;

use crate::site::{Site, keyed, statuses, v4};

/// Makes a key with a label, and gives it with its id.
fn add_labelled(enforcer: &Enforcer<'_>, principal: &str, label: &str) -> Result<(String, String)> {
    let key = enforcer.cli(&["key", "add", principal, "--label", label])?.trim().to_owned();
    let keys = enforcer.json(&["key", "ls"])?;
    let keys = keys["keys"].as_array().context("no list of keys")?;
    let id = keys.iter().find(|key| key["label"] == label).and_then(|key| key["id"].as_str());
    Ok((key, id.context("the key is not listed")?.to_owned()))
}

/// What `limits` tells of the one key of `tenant` that has a limit of its own: the limit, used and remaining.
fn own(enforcer: &Enforcer<'_>) -> Result<(String, u64, u64)> {
    let limits = enforcer.json(&["limits", "tenant"])?;
    let key = &limits["principals"][0]["own"][0];
    let number = |field: &str| key["rules"][0][field].as_u64().with_context(|| format!("no {field}: {limits}"));
    Ok((key["limit"].as_str().context("no limit")?.to_owned(), number("used")?, number("remaining")?))
}

/// Buckets that somebody has used.
fn buckets(enforcer: &Enforcer<'_>) -> Result<u64> {
    enforcer.metric("enforcer_map_entries{map=\"BUCKETS\"}")
}

#[test]
fn a_key_has_its_own_limit_and_its_principal_s_whichever_is_tighter() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("routes", Workers::Sync(2))?;
    let mut enforcer = site.guard("[principal.tenant]\nlimit = \"30/hour\"\n[principal.other]\nlimit = \"30/hour\"")?;
    let (ci, ci_id) = add_labelled(&enforcer, "tenant", "ci")?;
    let (web, _) = add_labelled(&enforcer, "tenant", "web")?;
    let (other, _) = add_labelled(&enforcer, "other", "theirs")?;
    enforcer.cli(&["key", "limit", &ci_id, "10/hour"])?;
    let flood = |key: &str| site.flood(v4(1), 60, |_| keyed("/", key));

    let endings = flood(&ci)?;
    ensure!(endings == statuses([(200, 10), (429, 50)]), "the limited key: {endings:?}");
    ensure!(own(&enforcer)? == ("10/hour".to_owned(), 10, 0), "it is told as {:?}", own(&enforcer)?);
    // What the key's own limit refused has cost its principal nothing; an answer names which one refused.
    let mut connection = site.connect(v4(1))?;
    connection.send(&keyed("/", &ci));
    let (ending, answer) = connection.answer();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    ensure!(
        ending == Ending::Answered(429) && answer.contains("\"violated-policies\":[\"key\""),
        "{ending:?}: {answer}"
    );

    // A switch off and on, and a restart, leave limit and count; so does a new limit.
    enforcer.cli(&["key", "disable", &ci_id])?;
    enforcer.cli(&["key", "enable", &ci_id])?;
    ensure!(site.ask(v4(1), &keyed("/", &ci))? == Ending::Answered(429), "the limit was lost with the switch");
    enforcer.stop(Signal::SIGTERM)?;
    enforcer.start()?;
    ensure!(site.ask(v4(1), &keyed("/", &ci))? == Ending::Answered(429), "the limit was lost with the daemon");
    enforcer.cli(&["key", "limit", &ci_id, "15/hour"])?;
    let endings = flood(&ci)?;
    ensure!(endings == statuses([(200, 5), (429, 55)]), "raised from 10 to 15: {endings:?}");

    // It can never do more than its principal.
    let endings = flood(&web)?;
    ensure!(endings == statuses([(200, 15), (429, 45)]), "the other key: {endings:?}");
    for (limit, gone) in [("1000/hour", 0), ("unlimited", 1)] {
        let used = buckets(&enforcer)?;
        enforcer.cli(&["key", "limit", &ci_id, limit])?;
        ensure!(buckets(&enforcer)? == used - gone, "what was used of a limit that is gone stays");
        let endings = flood(&ci)?;
        ensure!(endings == statuses([(429, 60)]), "under {limit} its principal's limit was passed: {endings:?}");
    }
    ensure!(origin.executed()?.len() == 30, "the app executed {}", origin.executed()?.len());
    let endings = flood(&other)?;
    ensure!(endings == statuses([(200, 30), (429, 30)]), "another principal: {endings:?}");
    Ok(())
}

#[test]
fn a_rotated_key_hands_its_limit_and_label_on_and_a_name_means_each_of_its_keys() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("routes", Workers::Sync(2))?;
    let enforcer = site.guard("[principal.tenant]\nlimit = \"30/hour\"")?;
    let (old, old_id) = add_labelled(&enforcer, "tenant", "ci")?;
    enforcer.cli(&["key", "limit", "tenant", "10/hour"])?;
    site.flood(v4(1), 30, |_| keyed("/", &old))?;
    let new = enforcer.cli(&["key", "rotate", &old_id, "--overlap", "1h"])?.trim().to_owned();
    site.flood(v4(1), 30, |_| keyed("/", &new))?;
    ensure!(origin.executed_with(&old)? == 10, "the old key: {}", origin.executed_with(&old)?);
    ensure!(origin.executed_with(&new)? == 10, "the new key: {}", origin.executed_with(&new)?);
    let keys = enforcer.json(&["key", "ls"])?;
    let listed = keys["keys"].as_array().context("no list of keys")?;
    let both = listed.iter().filter(|key| key["label"] == "ci" && key["own_limit"] == "10/hour");
    ensure!(both.count() == 2, "{keys}");

    let used = buckets(&enforcer)?;
    enforcer.cli(&["key", "rm", &old_id])?;
    // Its own limit's, and those of its sources.
    ensure!(buckets(&enforcer)? == used - 2, "what a revoked key has used stays");
    Ok(())
}

#[test]
fn a_key_is_shown_with_all_that_holds_for_it_but_not_itself() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _origin = site.serve("routes", Workers::Sync(2))?;
    let enforcer = site.guard(
        "[service]\nkey_headers = [\"X-Token\", \"X-API-Key\"]\n[plan.gold]\nlimit = \"30/hour\"\n\
         [tenant.acme]\nlimit = \"60/hour\"\n[principal.alice]\nplan = \"gold\"\ntenant = \"acme\"",
    )?;
    let (old, old_id) = add_labelled(&enforcer, "alice", "ci")?;
    enforcer.cli(&["key", "limit", &old_id, "10/hour"])?;
    site.flood(v4(1), 12, |_| keyed("/", &old))?;
    // Where the key goes is said with it.
    let rotated = enforcer.run(&["key", "rotate", &old_id, "--overlap", "1h"])?;
    ensure!(rotated.stderr.contains("for the field x-token or x-api-key"), "{}", rotated.stderr);
    let later = enforcer.run(&["key", "add", "alice", "--not-before", "2100-01-01T00:00:00Z"])?;
    ensure!(later.stderr.contains("for the field x-token or x-api-key"), "{}", later.stderr);

    let shown = enforcer.json(&["key", "show", &old_id])?;
    let [key] = shown["keys"].as_array().context("no keys")?.as_slice() else { bail!("one was asked for: {shown}") };
    for (field, expected) in [
        ("name", "alice"),
        ("label", "ci"),
        ("state", "good"),
        ("plan", "gold"),
        ("tenant", "acme"),
        ("limit", "30/hour"),
        ("own_limit", "10/hour"),
    ] {
        ensure!(key[field] == expected, "{field}: {key}");
    }
    let of = |rules: &str| (key[rules][0]["used"].as_u64(), key[rules][0]["remaining"].as_u64());
    ensure!((of("rules"), of("own_rules")) == ((Some(10), Some(20)), (Some(10), Some(0))), "{key}");
    ensure!(key["counts"]["allowed"] == 10 && key["counts"]["limited"] == 2, "{key}");
    ensure!(key["expires"].is_string() && key["not_before"].is_null(), "{key}");
    ensure!(
        key["beside"].as_array().is_some_and(|beside| beside.len() == 1),
        "the new key is good, the later one not: {key}"
    );

    // The whole principal: of each key its state, and none of them in clear.
    enforcer.cli(&["key", "disable", &old_id])?;
    let shown = enforcer.json(&["key", "show", "alice"])?;
    let mut states: Vec<_> = shown["keys"].as_array().context("no keys")?.iter().map(|key| &key["state"]).collect();
    states.sort_by_key(|state| state.to_string());
    ensure!(states == ["disabled", "early", "good"], "{shown}");
    let table = enforcer.cli(&["key", "show", "alice"])?;
    for key in [&old, &rotated.stdout, &later.stdout] {
        let key = key.trim();
        ensure!(!shown.to_string().contains(key) && !table.contains(key), "a key is shown: {table}");
    }
    let ran = enforcer.run(&["key", "show", "nobody"])?;
    ensure!(ran.code == 6, "nobody's keys: {} {}", ran.code, ran.stderr);
    Ok(())
}

#[test]
fn a_key_in_the_place_of_its_id_or_its_label_is_not_shown() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let enforcer = site.guard("[principal.tenant]\nlimit = \"30/hour\"")?;
    let (key, id) = add_labelled(&enforcer, "tenant", "ci")?;
    for command in [
        &["key", "limit", &key, "10/hour"][..],
        &["key", "show", &key],
        &["key", "label", &key, "web"],
        &["key", "label", &id, &key],
        &["key", "add", "tenant", "--label", &key],
    ] {
        let ran = enforcer.run(command)?;
        ensure!(ran.code != 0, "{:?} was taken", &command[..2]);
        ensure!(!ran.stderr.contains(&key) && !ran.stdout.contains(&key), "{:?} shows the key", &command[..2]);
    }
    ensure!(!enforcer.log()?.contains(&key), "the log shows the key");
    Ok(())
}

#[test]
fn a_principal_that_a_key_makes_is_under_the_plan_that_was_named() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _origin = site.serve("plain", Workers::Sync(2))?;
    let enforcer = site.guard(
        "[plan.gold]\nlimit = \"5/hour\"\n[plan.silver]\nlimit = \"3/hour\"\n[principal.own]\nlimit = \"9/hour\"",
    )?;
    let key = enforcer.cli(&["key", "add", "new", "--plan", "gold"])?.trim().to_owned();
    let other = enforcer.cli(&["key", "add", "new", "--plan", "gold"])?.trim().to_owned();
    let send = |key: &str, count| site.flood(v4(1), count, |_| keyed("/", key));
    ensure!(send(&key, 3)? == statuses([(200, 3)]) && send(&other, 3)? == statuses([(200, 2), (429, 1)]), "5 together");
    ensure!(
        enforcer.cli(&["export"])?.contains("[principal.new]\nplan = \"gold\"\n"),
        "{}",
        enforcer.cli(&["export"])?
    );
    for (arguments, code, said) in [
        (["new", "--plan", "silver"], 2, "under plan `gold` already"),
        (["own", "--plan", "gold"], 2, "limit of its own"),
        (["third", "--plan", "none"], 6, "gold, silver"),
    ] {
        let ran = enforcer.run(&[&["key", "add"][..], &arguments].concat())?;
        ensure!(ran.code == code && ran.stderr.contains(said), "{arguments:?} ends with {}: {}", ran.code, ran.stderr);
    }
    ensure!(!enforcer.cli(&["limits"])?.contains("third"), "a principal was made for nothing");

    // A limit in place of the plan's is taken away again, and what was used stays used.
    enforcer.cli(&["limit", "set", "new", "7/hour"])?;
    ensure!(send(&key, 3)? == statuses([(200, 2), (429, 1)]), "raised to 7 with 5 used");
    ensure!(enforcer.cli(&["limit", "rm", "new"])?.contains("`5/hour` now, was under `7/hour`"), "the plan's");
    ensure!(send(&key, 1)? == statuses([(429, 1)]), "lowered to 5 with 7 used");
    ensure!(!enforcer.cli(&["export"])?.contains("7/hour"), "{}", enforcer.cli(&["export"])?);
    let ran = enforcer.run(&["limit", "rm", "own"])?;
    ensure!(ran.code == 2 && ran.stderr.contains("under no plan"), "{}: {}", ran.code, ran.stderr);
    Ok(())
}
