//! Exemptions by command: at once, for a time, part of the policy that holds, and within the bounds of a file's.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use enforcer_tests::client::Ending;
use enforcer_tests::enforcer::Enforcer;
use enforcer_tests::netns::Way;
use enforcer_tests::origin::Workers;
use enforcer_tests::process::wait_for;
use nix::sys::signal::Signal;

use crate::site::{Site, add_key, apply, events, keyed, request, statuses, v4, with_policy};

const TENANT: &str = "[principal.tenant]\nlimit = \"3/hour\"";

/// `enforcer exempt add` for one address.
fn add(enforcer: &Enforcer<'_>, path: &str, source: &str, lasts: &str) -> Result<()> {
    enforcer.cli(&["exempt", "add", path, "--source", source, "--for", lasts, "--reason", "OPS-12"])?;
    Ok(())
}

#[test]
fn an_exemption_holds_for_the_next_request_of_an_open_connection_and_so_does_its_end() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("routes", Workers::Threads(1))?;
    let enforcer = site.guard(TENANT)?;
    let key = add_key(&enforcer, "tenant")?;
    let near = v4(1).to_string();
    let mut open = site.connect(v4(1))?;
    let mut other = site.connect(v4(2))?;
    let mut ask = |request: &[u8]| {
        open.send(request);
        open.answer().0
    };
    for expected in [200, 200, 200, 429] {
        let ending = ask(&keyed("/ready", &key));
        ensure!(ending == Ending::Answered(expected), "before: {ending:?}");
    }
    add(&enforcer, "/ready", &near, "1h")?;
    for _ in 0..5 {
        let ending = ask(&request("/ready", &[]));
        ensure!(ending == Ending::Answered(200), "exempt: {ending:?}");
        // With a key it is exempt, too, and is charged to nobody.
        let ending = ask(&keyed("/ready", &key));
        ensure!(ending == Ending::Answered(200), "exempt with a key: {ending:?}");
    }
    ensure!(ask(&request("/ready/more", &[])) == Ending::Answered(401), "what lies beneath the path");
    ensure!(ask(&request("/items/1", &[])) == Ending::Answered(401), "another path");
    other.send(&request("/ready", &[("X-Forwarded-For", &near)]));
    ensure!(other.answer().0 == Ending::Answered(401), "another source");
    enforcer.cli(&["exempt", "rm", "/ready", "--source", &near])?;
    ensure!(ask(&request("/ready", &[])) == Ending::Answered(401), "removed");
    ensure!(events(&enforcer, "exempt")? == 10, "counted: {}", events(&enforcer, "exempt")?);
    ensure!(origin.executed()?.len() == 13, "the app executed {}", origin.executed()?.len());
    Ok(())
}

#[test]
fn it_outlives_its_daemon_and_ends_by_itself_without_one() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _origin = site.serve("routes", Workers::Sync(2))?;
    let mut enforcer = site.guard(TENANT)?;
    let [long, short] = [v4(1), v4(2)];
    add(&enforcer, "/ready", &long.to_string(), "1h")?;
    let before = Instant::now();
    add(&enforcer, "/ready", &short.to_string(), "8s")?;
    let ready = |source| site.ask(source, &request("/ready", &[]));
    enforcer.stop(Signal::SIGKILL)?;
    ensure!(ready(long)? == Ending::Answered(200) && ready(short)? == Ending::Answered(200), "with the daemon dead");
    ensure!(before.elapsed() < Duration::from_secs(8), "the machine is too slow for this test");
    wait_for("the end of the exemption", || Ok((ready(short)? == Ending::Answered(401)).then_some(())))?;
    ensure!(before.elapsed() >= Duration::from_secs(8), "it has ended before its time");
    ensure!(ready(long)? == Ending::Answered(200), "the other has ended with it");
    enforcer.start()?;
    ensure!(ready(long)? == Ending::Answered(200) && ready(short)? == Ending::Answered(401), "behind the start");
    let listed = enforcer.cli(&["exempt", "ls"])?;
    ensure!(listed.contains("over") && listed.contains("59m") && listed.contains("OPS-12"), "{listed}");
    Ok(())
}

#[test]
fn it_is_part_of_the_policy_that_holds_and_goes_with_one_that_does_not_have_it() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _origin = site.serve("routes", Workers::Sync(2))?;
    let enforcer = site.guard(TENANT)?;
    let ready = |path: &str| site.ask(v4(1), &request(path, &[]));
    let source = v4(1).to_string();
    let added = enforcer.cli(&[
        "exempt", "add", "/docs/*", "--source", &source, "--method", "GET", "--for", "1h", "--reason", "OPS-12",
    ])?;
    ensure!(added.contains("exempt /docs/* GET") && added.contains("added") && added.contains("OPS-12"), "{added}");
    let first = enforcer.cli(&["export"])?;
    ensure!(first.contains("[[exempt]]") && first.contains("path = \"/docs/*\""), "{first}");
    // Once more: the same one, for longer.
    let longer = enforcer.cli(&[
        "exempt", "add", "/docs/*", "--source", &source, "--method", "GET", "--for", "2h", "--reason", "OPS-13",
    ])?;
    ensure!(longer.contains("until") && longer.contains("reason OPS-12 → OPS-13"), "{longer}");
    let exported = enforcer.cli(&["export"])?;
    ensure!(exported.matches("[[exempt]]").count() == 1 && exported.contains("OPS-13"), "{exported}");
    let file = enforcer.folder().join("exported.toml");
    std::fs::write(&file, &exported)?;
    let same = enforcer.cli(&["apply", "-f", file.to_str().context("no text")?])?;
    ensure!(same.contains("Nothing differs"), "what is exported is what holds: {same}");
    ensure!(ready("/docs/a")? == Ending::Answered(200), "it does not hold");

    let shown = with_policy(&enforcer, &["apply", "--dry-run", "-f"], TENANT)?;
    ensure!(shown.stdout.contains("exempt /docs/* GET") && shown.stdout.contains("removed"), "{}", shown.stdout);
    // While a policy is on trial nothing else of it changes.
    let ran = with_policy(&enforcer, &["apply", "--confirm", "60s", "-f"], TENANT)?;
    ensure!(ran.code == 0 && ready("/docs/a")? == Ending::Answered(401), "{}", ran.stderr);
    let add = ["exempt", "add", "/ready", "--source", &source, "--for", "1h", "--reason", "x"];
    let ran = enforcer.run(&add)?;
    ensure!(ran.code == 2 && ran.stderr.contains("on trial"), "{}: {}", ran.code, ran.stderr);
    enforcer.cli(&["rollback"])?;
    ensure!(ready("/docs/a")? == Ending::Answered(200), "behind the trial");
    apply(&enforcer, TENANT)?;
    ensure!(ready("/docs/a")? == Ending::Answered(401), "a file without it was applied");
    ensure!(enforcer.cli(&["exempt", "ls"])?.contains("Nobody is exempt"), "it is still listed");
    Ok(())
}

#[test]
fn its_bounds_are_those_of_a_file() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let enforcer = site.guard(TENANT)?;
    let before = enforcer.cli(&["export"])?;
    let refuse = |[path, source, lasts, reason]: [&str; 4], code: i32, said: &str| -> Result<()> {
        let mut command = vec!["exempt", "add", path];
        for (flag, value) in ["--source", "--for", "--reason"].into_iter().zip([source, lasts, reason]) {
            if !value.is_empty() {
                command.extend([flag, value]);
            }
        }
        let ran = enforcer.run(&command)?;
        ensure!(ran.code == code && ran.stderr.contains(said), "{command:?}: {}: {}", ran.code, ran.stderr);
        Ok(())
    };
    refuse(["/ready", "0.0.0.0/0", "1h", "why"], 2, "nearly everybody")?;
    refuse(["/ready", "10.0.0.0/7", "1h", "why"], 2, "nearly everybody")?;
    refuse(["/ready", "10.0.0.1/8", "1h", "why"], 2, "10.0.0.0/8")?;
    refuse(["ready", "10.0.0.0/8", "1h", "why"], 2, "path")?;
    refuse(["/a/../b", "10.0.0.0/8", "1h", "why"], 2, "path")?;
    refuse(["/ready", "10.0.0.0/8", "", "why"], 2, "--for")?;
    refuse(["/ready", "10.0.0.0/8", "1h", ""], 2, "--reason")?;
    refuse(["/ready", "10.0.0.0/8", "1h", "two\nlines"], 2, "one line")?;
    refuse(["/ready", "10.0.0.0/8", "20000d", "why"], 2, "--for")?;
    let ran = enforcer.run(&["exempt", "rm", "/ready", "--source", "10.0.0.0/8"])?;
    ensure!(
        ran.code == 6 && ran.stderr.contains("no exemption /ready from 10.0.0.0/8"),
        "{}: {}",
        ran.code,
        ran.stderr
    );
    let elsewhere = ["--service", "web"];
    let command = ["exempt", "rm", "/ready", "--source", "10.0.0.0/8"];
    let ran = enforcer.run(&[&command[..], &elsewhere].concat())?;
    ensure!(ran.code == 6 && ran.stderr.contains("no service \"web\""), "{}: {}", ran.code, ran.stderr);
    ensure!(enforcer.cli(&["export"])? == before, "something was refused, and changed the policy");

    // As many as there may be, one of which is over soon.
    let entry = |number: usize, until: &str| {
        format!(
            "[[exempt]]\npath = \"/p{number}\"\nsources = [\"10.0.0.0/8\"]\nuntil = {until}\nreason = \"OPS-{number}\"\n"
        )
    };
    let full: String = (0..64).map(|number| entry(number, "2100-01-01T00:00:00Z")).collect();
    apply(&enforcer, &format!("{TENANT}\n{full}"))?;
    refuse(["/ready", "10.0.0.0/8", "1h", "why"], 2, "as many as there may be")?;
    // Another end for one that is there needs no room.
    add(&enforcer, "/p7", "10.0.0.0/8", "1s")?;
    sleep(Duration::from_secs(3));
    add(&enforcer, "/ready", &v4(1).to_string(), "1h")?;
    let listed = enforcer.json(&["exempt", "ls"])?;
    let paths: Vec<&str> =
        listed["exemptions"].as_array().context("no list")?.iter().filter_map(|one| one["path"].as_str()).collect();
    ensure!(paths.len() == 64 && paths.contains(&"/ready") && !paths.contains(&"/p7"), "{paths:?}");
    Ok(())
}

#[test]
fn it_is_for_the_service_that_it_names_and_leaves_those_alone_that_are_not_guarded() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _origins = [8000, 9000].map(|port| site.serve_at(port, "routes", Workers::Sync(1)));
    let link = &site.link;
    let mut enforcer = Enforcer::new(&link.server, &["--interface", &link.interface, "--hook", link.hook()])?;
    let config = |names: &[(&str, u16)]| -> String {
        names.iter().map(|(name, port)| format!("[[service]]\nname = \"{name}\"\nports = [{port}]\n")).collect()
    };
    enforcer.configure(&config(&[("api", 8000), ("web", 9000)]))?;
    enforcer.start()?;
    let source = v4(1).to_string();
    let add = |enforcer: &Enforcer<'_>, more: &[&str]| {
        let command = ["exempt", "add", "/ready", "--source", &source, "--for", "1h", "--reason", "OPS-12"];
        enforcer.run(&[&command[..], more].concat())
    };
    let ran = add(&enforcer, &[])?;
    ensure!(ran.code == 2 && ran.stderr.contains("api, web"), "{}: {}", ran.code, ran.stderr);
    ensure!(add(&enforcer, &["--service", "web"])?.code == 0, "the service");
    let ready = |port| site.send_to(port, v4(1), 1, &request("/ready", &[]));
    ensure!(ready(9000)? == statuses([(200, 1)]) && ready(8000)? == statuses([(401, 1)]), "in its service alone");
    // A change of the one does not take away what is said of the other, which is not guarded meanwhile.
    enforcer.stop(Signal::SIGTERM)?;
    enforcer.configure(&config(&[("api", 8000)]))?;
    enforcer.start()?;
    ensure!(add(&enforcer, &[])?.code == 0, "the only service");
    ensure!(ready(8000)? == statuses([(200, 1)]), "it does not hold");
    enforcer.stop(Signal::SIGTERM)?;
    enforcer.configure(&config(&[("api", 8000), ("web", 9000)]))?;
    enforcer.start()?;
    ensure!(ready(9000)? == statuses([(200, 1)]) && ready(8000)? == statuses([(200, 1)]), "both behind the start");
    Ok(())
}
