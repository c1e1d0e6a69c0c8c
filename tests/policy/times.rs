//! Times from and until which keys and limits hold.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use enforcer_tests::netns::Way;
use enforcer_tests::origin::Workers;
use enforcer_tests::process::wait_for;

use crate::site::{Site, add_key, keyed, request, statuses, v4};

#[test]
fn a_rotated_key_is_good_when_the_old_one_was_to_be() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _origin = site.serve("routes", Workers::Sync(2))?;
    let enforcer = site.guard("[principal.alice]\nlimit = \"30/hour\"\n[principal.bob]\nlimit = \"30/hour\"")?;
    enforcer.cli(&["key", "add", "alice", "--lasts", "4s"])?;
    let brief = enforcer.cli(&["key", "rotate", "alice", "--overlap", "1s"])?.trim().to_owned();
    enforcer.cli(&["key", "add", "bob", "--not-before", "2100-01-01T00:00:00Z"])?;
    let later = enforcer.cli(&["key", "rotate", "bob", "--overlap", "1h"])?.trim().to_owned();
    let ask = |key: &str| site.flood(v4(1), 1, |_| keyed("/", key));
    ensure!(ask(&later)? == statuses([(401, 1)]), "a key of 2100 is good: {:?}", ask(&later)?);
    ensure!(ask(&brief)? == statuses([(200, 1)]), "a key is not good: {:?}", ask(&brief)?);
    sleep(Duration::from_secs(5));
    ensure!(ask(&brief)? == statuses([(401, 1)]), "a key is good after its end: {:?}", ask(&brief)?);
    Ok(())
}

#[test]
fn a_limit_for_a_time_ends_in_what_is_shown_too_and_never_in_place_of_one_without_a_time() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _origin = site.serve("routes", Workers::Sync(2))?;
    let enforcer = site.guard(
        "[plan.gold]\nlimit = \"30/hour\"\n[principal.alice]\nplan = \"gold\"\n\
         [principal.mallory]\nplan = \"gold\"\nlimit = \"blocked\"",
    )?;
    let (alice, mallory) = (add_key(&enforcer, "alice")?, add_key(&enforcer, "mallory")?);
    enforcer.cli(&["limit", "set", "alice", "1/hour", "--for", "6s"])?;
    ensure!(enforcer.json(&["limits", "alice"])?["principals"][0]["limit"] == "1/hour", "it does not hold");
    wait_for("the plan's limit to be shown", || {
        Ok((enforcer.json(&["limits", "alice"])?["principals"][0]["limit"] == "30/hour").then_some(()))
    })?;
    let exported = enforcer.cli(&["export"])?;
    ensure!(!exported.contains("until"), "what has ended is exported: {exported}");
    ensure!(site.flood(v4(1), 3, |_| keyed("/", &alice))? == statuses([(200, 3)]), "the plan's limit does not hold");

    let refused = enforcer.run(&["limit", "set", "mallory", "1/minute", "--for", "1s"])?;
    ensure!(refused.code != 0 && refused.stderr.contains("`blocked`"), "{}", refused.stderr);
    sleep(Duration::from_secs(2));
    let endings = site.flood(v4(1), 3, |_| keyed("/", &mallory))?;
    ensure!(endings == statuses([(429, 3)]), "a blocked principal is let in: {endings:?}");
    Ok(())
}

#[test]
fn times_beyond_what_the_kernel_can_say_are_for_ever() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _origin = site.serve("routes", Workers::Sync(2))?;
    let exempt = format!("path = \"/health\"\nsources = [\"{}/32\"]\nreason = \"probe\"", v4(2));
    let enforcer = site.guard(&format!(
        "[plan.gold]\nlimit = \"2/hour\"\n\
         [principal.alice]\nplan = \"gold\"\nlimit = \"4/hour\"\nuntil = 9999-01-01T00:00:00Z\n\
         [principal.bob]\nplan = \"gold\"\n\
         [[exempt]]\n{exempt}\nuntil = 9999-01-01T00:00:00Z"
    ))?;
    let alice = add_key(&enforcer, "alice")?;
    let bob = enforcer.cli(&["key", "add", "bob", "--not-before", "9999-01-01T00:00:00Z"])?.trim().to_owned();
    let ask = |key: &str, count| site.flood(v4(1), count, |_| keyed("/", key));
    let endings = ask(&alice, 6)?;
    ensure!(endings == statuses([(200, 4), (429, 2)]), "an override until 9999: {endings:?}");
    let endings = ask(&bob, 1)?;
    ensure!(endings == statuses([(401, 1)]), "a key from 9999 on: {endings:?}");
    let endings = site.flood(v4(2), 3, |_| request("/health", &[]))?;
    ensure!(endings == statuses([(200, 3)]), "an exemption until 9999: {endings:?}");
    Ok(())
}
