//! Policies that are tried: they end by themselves, or are kept.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use enforcer_tests::client::Ending;
use enforcer_tests::enforcer::Enforcer;
use enforcer_tests::netns::Way;
use enforcer_tests::origin::Workers;
use enforcer_tests::pin;
use nix::sys::signal::Signal;

use crate::site::{Site, add_key, apply, keyed, request, statuses, v4, with_policy};

const WIDE: &str = "[principal.tenant]\nlimit = \"20/hour\"";
const NARROW: &str = "[principal.tenant]\nlimit = \"10/hour\"";

#[test]
fn a_policy_on_trial_ends_by_itself_with_its_daemon_dead_and_no_count_is_lost() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _origin = site.serve("plain", Workers::Sync(2))?;
    let mut enforcer = site.guard(WIDE)?;
    let key = add_key(&enforcer, "tenant")?;
    let send = |count| site.flood(v4(1), count, |_| keyed("/", &key));
    ensure!(send(8)? == statuses([(200, 8)]), "before");
    let ran = with_policy(&enforcer, &["apply", "--confirm", "5s", "-f"], NARROW)?;
    ensure!(ran.code == 0, "{}", ran.stderr);
    let tried = send(5)?;
    ensure!(tried == statuses([(200, 2), (429, 3)]), "on trial: {tried:?}");
    enforcer.stop(Signal::SIGKILL)?;
    ensure!(send(2)? == statuses([(429, 2)]), "it ended with its daemon, not with its time");
    sleep(Duration::from_secs(5));
    let after = send(12)?;
    ensure!(after == statuses([(200, 10), (429, 2)]), "behind its time: {after:?}");
    enforcer.start()?;
    let export = enforcer.cli(&["export"])?;
    ensure!(export.contains("20/hour") && !export.contains("10/hour"), "the store has kept it: {export}");
    Ok(())
}

#[test]
fn proxies_and_exemptions_on_trial_end_with_it_although_its_daemon_is_dead() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _origin = site.serve("routes", Workers::Sync(2))?;
    let rules = |proxy: u16, path: &str, until: u16| {
        format!(
            "[service]\nsource = \"3/hour\"\ntrusted_proxies = [\"{}\"]\n[principal.tenant]\nlimit = \"1000/hour\"\n\
             [[exempt]]\npath = \"{path}\"\nsources = [\"{}\"]\nuntil = {until}-01-01T00:00:00Z\nreason = \"a probe\"",
            v4(proxy),
            v4(9)
        )
    };
    let mut enforcer = site.guard(&rules(7, "/one", 2098))?;
    let key = add_key(&enforcer, "tenant")?;
    let told = |proxy: u16, first: usize| {
        let request = |number: usize| {
            let source = format!("192.0.2.{}", first + number);
            request("/", &[("X-API-Key", &key), ("X-Forwarded-For", &source)])
        };
        site.flood(v4(proxy), 5, request)
    };
    let probe = |path: &str| site.ask(v4(9), &request(path, &[]));
    ensure!(told(7, 0)? == statuses([(200, 5)]), "each that the trusted proxy tells is a source");
    ensure!(probe("/one")? == Ending::Answered(200) && probe("/two")? == Ending::Answered(401), "the exempt path");

    let ran = with_policy(&enforcer, &["apply", "--confirm", "6s", "-f"], &rules(8, "/two", 2098))?;
    ensure!(ran.code == 0, "{}", ran.stderr);
    enforcer.stop(Signal::SIGKILL)?;
    ensure!(told(8, 10)? == statuses([(200, 5)]), "the proxy on trial");
    ensure!(told(7, 20)? == statuses([(200, 3), (429, 2)]), "the one before it");
    ensure!(probe("/one")? == Ending::Answered(401) && probe("/two")? == Ending::Answered(200), "the path on trial");
    sleep(Duration::from_secs(7));
    ensure!(told(8, 30)? == statuses([(200, 3), (429, 2)]), "the proxy that was on trial");
    ensure!(told(7, 40)? == statuses([(200, 5)]), "the one that holds again");
    ensure!(probe("/one")? == Ending::Answered(200) && probe("/two")? == Ending::Answered(401), "what is exempt again");

    // A daemon that takes over finds whose they are, and a policy that is confirmed leaves nothing of the one before.
    enforcer.start()?;
    ensure!(told(7, 50)? == statuses([(200, 5)]) && told(8, 60)? == statuses([(429, 5)]), "behind a take-over");
    apply(&enforcer, &rules(8, "/two", 2099))?;
    ensure!(told(8, 70)? == statuses([(200, 5)]) && told(7, 80)? == statuses([(429, 5)]), "behind a change for good");
    ensure!(
        probe("/one")? == Ending::Answered(401) && probe("/two")? == Ending::Answered(200),
        "the path of the change"
    );
    enforcer.stop(Signal::SIGTERM)?;
    Ok(())
}

#[test]
fn a_take_over_writes_to_no_slot_that_requests_are_judged_by() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let mut enforcer = site.guard(
        "[service]\nsource = \"11/hour\"\nceiling = \"12/hour\"\nguesses = \"13/hour\"\nclient_id = \"X-Client\"\n\
         [principal.tenant]\nlimit = \"14/hour\"\n[principal.tenant.clients]\nmobile = \"15/hour\"\n[limit.search]\n\
         limit = \"16/hour\"\ncandidate = \"17/hour\"\n[[route]]\npath = \"/s\"\nuse = \"search\"\n[[route]]\n\
         path = \"/r\"\nlimit = \"18/hour\"\n[[public]]\npath = \"/p\"\nlimit = \"19/hour\"",
    )?;
    let policies = |enforcer: &Enforcer<'_>| {
        let pins = enforcer.pinned()?;
        let pin = pins.iter().find(|pin| pin.ends_with("maps/POLICIES")).context("no map of policies")?;
        pin::content(pin)
    };
    let before = policies(&enforcer)?;
    let used = before.values().filter(|policy| policy.iter().any(|&byte| byte != 0)).count();
    ensure!(used > 9, "only {used} slots are used");
    for _ in 0..2 {
        enforcer.stop(Signal::SIGKILL)?;
        enforcer.start()?;
        ensure!(policies(&enforcer)? == before, "the limits of one slot have become another's");
    }
    Ok(())
}

#[test]
fn a_policy_on_trial_is_kept_or_ended_and_nothing_else_changes_meanwhile() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _origin = site.serve("plain", Workers::Sync(2))?;
    let enforcer = site.guard(WIDE)?;
    let key = add_key(&enforcer, "tenant")?;
    let send = |count| site.flood(v4(1), count, |_| keyed("/", &key));
    for (end, limit) in [("rollback", "20/hour"), ("confirm", "10/hour")] {
        let ran = with_policy(&enforcer, &["apply", "--confirm", "60s", "-f"], NARROW)?;
        let status = enforcer.json(&["status"])?;
        ensure!(ran.code == 0, "{}", ran.stderr);
        ensure!(status["warnings"].to_string().contains("a policy is on trial until"), "{status}");
        let [export, limits, keys] =
            [&["export"][..], &["limits"], &["key", "ls"]].map(|command| enforcer.json(command));
        let (export, limits, keys) = (export?, limits?, keys?);
        for told in [&status, &export, &limits] {
            ensure!(told["on_trial_until"].is_string(), "nothing says that it is on trial: {told}");
        }
        let text = export["text"].as_str().context("a text")?;
        ensure!(text.starts_with("# a policy is on trial until") && text.contains("10/hour"), "{text}");
        ensure!(limits["principals"][0]["limit"] == "10/hour", "what holds is another limit: {limits}");
        ensure!(keys["keys"][0]["limit"] == "10/hour", "what holds is another limit: {keys}");
        ensure!(enforcer.cli(&["limits", "tenant"])?.contains("on trial until"), "{}", enforcer.cli(&["limits"])?);
        let ran = enforcer.run(&["limit", "set", "tenant", "1/second"])?;
        ensure!(ran.code != 0 && ran.stderr.contains("on trial"), "a limit changed: {}", ran.stderr);
        enforcer.cli(&[end])?;
        ensure!(enforcer.cli(&["export"])?.contains(limit), "behind {end}: {}", enforcer.cli(&["export"])?);
        ensure!(!enforcer.cli(&["limits"])?.contains("on trial"), "behind {end}: {}", enforcer.cli(&["limits"])?);
    }
    ensure!(send(12)? == statuses([(200, 10), (429, 2)]), "confirmed");
    apply(&enforcer, WIDE)?;
    ensure!(send(12)? == statuses([(200, 10), (429, 2)]), "raised: the count stays");
    let ran = enforcer.run(&["confirm"])?;
    ensure!(ran.code != 0 && ran.stderr.contains("no policy is on trial"), "{}", ran.stderr);
    Ok(())
}

#[test]
fn a_trial_goes_on_behind_a_restart_and_is_kept_or_ends_at_its_own_time() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _origin = site.serve("routes", Workers::Sync(2))?;
    let mut enforcer = site.guard(WIDE)?;
    let key = add_key(&enforcer, "tenant")?;
    let send = |count| site.flood(v4(1), count, |_| keyed("/", &key));
    let route = format!("{NARROW}\n[[route]]\npath = \"/one\"\nlimit = \"3/hour\"");
    let on_route = |count| site.flood(v4(1), count, |_| keyed("/one", &key));
    let tried = |enforcer: &Enforcer<'_>, time: &str| -> Result<()> {
        let ran = with_policy(enforcer, &["apply", "--confirm", time, "-f"], &route)?;
        ensure!(ran.code == 0, "{}", ran.stderr);
        Ok(())
    };

    tried(&enforcer, "20s")?;
    let began = Instant::now();
    let before = on_route(2)?;
    ensure!(before == statuses([(200, 2)]), "on trial: {before:?}");
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        enforcer.stop(signal)?;
        enforcer.start()?;
        ensure!(enforcer.log()?.contains("goes on behind this start"), "{}", enforcer.log()?);
        let status = enforcer.json(&["status"])?;
        ensure!(status["warnings"].to_string().contains("a policy is on trial"), "{status}");
    }
    ensure!(on_route(2)? == statuses([(200, 1), (429, 1)]), "the count of its route is another's behind a start");
    ensure!(send(9)? == statuses([(200, 7), (429, 2)]), "its limit does not hold behind a start");
    let ran = enforcer.run(&["limit", "set", "tenant", "1/second"])?;
    ensure!(ran.code != 0 && ran.stderr.contains("on trial"), "a limit changed: {}", ran.stderr);
    ensure!(began.elapsed() < Duration::from_secs(20), "the machine is too slow for this test");
    sleep(Duration::from_millis(21_500).saturating_sub(began.elapsed()));
    ensure!(send(12)? == statuses([(200, 10), (429, 2)]), "behind its own time");
    ensure!(enforcer.run(&["confirm"])?.stderr.contains("no policy is on trial"), "it can be kept behind its time");

    tried(&enforcer, "60s")?;
    enforcer.stop(Signal::SIGKILL)?;
    enforcer.start()?;
    ensure!(send(1)? == statuses([(429, 1)]), "20 of 10 are used");
    enforcer.cli(&["confirm"])?;
    ensure!(enforcer.cli(&["export"])?.contains("10/hour"), "{}", enforcer.cli(&["export"])?);
    ensure!(send(1)? == statuses([(429, 1)]), "confirmed");

    tried_and_taken_back(&enforcer)?;
    enforcer.stop(Signal::SIGKILL)?;
    enforcer.start()?;
    let status = enforcer.json(&["status"])?;
    ensure!(!status["warnings"].to_string().contains("on trial"), "what was taken back goes on: {status}");
    Ok(())
}

/// Tries a policy, and takes it back.
fn tried_and_taken_back(enforcer: &Enforcer<'_>) -> Result<()> {
    let ran = with_policy(enforcer, &["apply", "--confirm", "60s", "-f"], WIDE)?;
    ensure!(ran.code == 0, "{}", ran.stderr);
    enforcer.cli(&["rollback"])?;
    Ok(())
}

#[test]
fn what_a_dead_daemon_had_on_trial_is_no_part_of_the_next_trial() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _origin = site.serve("plain", Workers::Sync(2))?;
    let mut enforcer = site.guard(WIDE)?;
    let key = add_key(&enforcer, "tenant")?;
    let ran = with_policy(&enforcer, &["apply", "--confirm", "2s", "-f"], "[principal.tenant]\nlimit = \"1/hour\"")?;
    ensure!(ran.code == 0, "{}", ran.stderr);
    enforcer.stop(Signal::SIGKILL)?;
    sleep(Duration::from_secs(3));
    enforcer.start()?;
    let other = format!("[service]\nceiling = \"1000/hour\"\n{WIDE}");
    let ran = with_policy(&enforcer, &["apply", "--confirm", "60s", "-f"], &other)?;
    ensure!(ran.code == 0, "{}", ran.stderr);
    let sent = site.flood(v4(1), 22, |_| keyed("/", &key))?;
    ensure!(sent == statuses([(200, 20), (429, 2)]), "the tenant is judged by what is over: {sent:?}");
    Ok(())
}

#[test]
fn no_path_of_a_dead_daemon_s_trial_leads_to_a_rule_of_another() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _origin = site.serve("routes", Workers::Sync(2))?;
    let public = |path: &str| format!("[[public]]\npath = \"/{path}\"\nlimit = \"100/hour\"\n");
    let mut enforcer = site.guard(&public("health"))?;
    let tried = ["one", "two", "three"].map(public).concat();
    let ran = with_policy(&enforcer, &["apply", "--confirm", "2s", "-f"], &tried)?;
    ensure!(ran.code == 0, "{}", ran.stderr);
    ensure!(site.ask(v4(1), &request("/one", &[]))? == Ending::Answered(200), "on trial");
    enforcer.stop(Signal::SIGKILL)?;
    sleep(Duration::from_secs(3));
    for _ in 0..2 {
        enforcer.start()?;
        for path in ["/one", "/two", "/three"] {
            let ending = site.ask(v4(1), &request(path, &[]))?;
            ensure!(ending == Ending::Answered(401), "{path} is public by another's rule: {ending:?}");
        }
        ensure!(site.ask(v4(1), &request("/health", &[]))? == Ending::Answered(200), "what holds");
        enforcer.stop(Signal::SIGKILL)?;
    }
    Ok(())
}

#[test]
fn a_head_that_is_begun_under_a_trial_has_no_way_past_the_rules_of_a_daemon_that_starts_behind_it() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("routes", Workers::Threads(1))?;
    let closed = "[principal.tenant]\nlimit = \"100/hour\"\n[[route]]\npath = \"/closed\"\nlimit = \"blocked\"";
    let mut enforcer = site.guard(closed)?;
    let key = add_key(&enforcer, "tenant")?;
    let tried = closed.replace("/closed", "/other");
    let ran = with_policy(&enforcer, &["apply", "--confirm", "60s", "-f"], &tried)?;
    ensure!(ran.code == 0, "{}", ran.stderr);
    let request = keyed("/closed/7", &key);
    let mut begun = Vec::new();
    for cut in [8, 12, 13, 40] {
        let mut connection = site.connect(v4(1))?;
        connection.send(&request[..cut]);
        begun.push((cut, connection));
    }
    enforcer.cli(&["rollback"])?;
    enforcer.stop(Signal::SIGKILL)?;
    enforcer.start()?;
    for (cut, mut connection) in begun {
        connection.send(&request[cut..]);
        let (ending, _) = connection.answer();
        ensure!(ending == Ending::Reset, "begun with {cut} bytes: {ending:?}");
    }
    ensure!(site.ask(v4(1), &request)? == Ending::Answered(429), "what holds");
    ensure!(origin.executed()?.is_empty(), "executed: {:?}", origin.executed()?);
    Ok(())
}

#[test]
fn principals_that_are_new_wait_for_the_end_of_a_trial() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let enforcer = site.guard(WIDE)?;
    add_key(&enforcer, "tenant")?;
    let both = format!("{NARROW}\n[principal.other]\nlimit = \"5/hour\"");
    let ran = with_policy(&enforcer, &["apply", "--confirm", "60s", "-f"], &both)?;
    ensure!(ran.code == 0, "{}", ran.stderr);
    for name in ["other", "third"] {
        let ran = enforcer.run(&["key", "add", name])?;
        ensure!(ran.code != 0 && ran.stderr.contains("on trial"), "{name} has come: {}", ran.stderr);
    }
    add_key(&enforcer, "tenant")?;
    enforcer.cli(&["confirm"])?;
    for name in ["other", "third"] {
        add_key(&enforcer, name)?;
    }
    Ok(())
}

#[test]
fn what_was_used_of_a_route_on_trial_is_no_other_route_s() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _origin = site.serve("routes", Workers::Sync(2))?;
    let enforcer = site.guard(WIDE)?;
    let key = add_key(&enforcer, "tenant")?;
    let routed = |path: &str| format!("{WIDE}\n[[route]]\npath = \"{path}\"\nlimit = \"3/hour\"");
    let send = |path: &str, count| site.flood(v4(1), count, |_| keyed(path, &key));
    for (path, end) in [("/one", "rollback"), ("/two", "confirm")] {
        let ran = with_policy(&enforcer, &["apply", "--confirm", "60s", "-f"], &routed(path))?;
        ensure!(ran.code == 0, "{}", ran.stderr);
        let tried = send(path, 4)?;
        ensure!(tried == statuses([(200, 3), (429, 1)]), "{path}, and none before it: {tried:?}");
        enforcer.cli(&[end])?;
    }
    ensure!(send("/two", 1)? == statuses([(429, 1)]), "what was used on trial is lost behind it");
    apply(&enforcer, &routed("/one"))?;
    ensure!(send("/one", 1)? == statuses([(429, 1)]), "what comes back begins anew");
    Ok(())
}
