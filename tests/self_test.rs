//! `enforcer verify`: passes where the policy is enforced, fails where it is not, touches nothing that is live, and leaves
//! nothing.

#[path = "policy/site.rs"]
#[expect(dead_code, reason = "the tests of policies use all of it")]
mod site;

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use enforcer_tests::enforcer::{Enforcer, Ran, binary};
use enforcer_tests::netns::Way;
use enforcer_tests::origin::Workers;
use enforcer_tests::process::{self, Process, wait_for};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::site::{PORT, Site, add_key};

/// What each check must let through where all is well.
const EXPECTED: [(&str, u64, u64); 8] = [
    ("one key from three sources", 12, 5),
    ("two keys from one source", 14, 10),
    ("no key", 1, 0),
    ("an unknown key", 1, 0),
    ("a revoked key", 1, 0),
    ("a key twice in one request", 1, 0),
    ("pipelined requests", 7, 5),
    ("requests split into many segments", 7, 5),
];

/// What was sent in each check, and what of it reached the app.
fn reached(ran: &Ran) -> Result<BTreeMap<String, (u64, u64)>> {
    let report: Value = serde_json::from_str(&ran.stdout).with_context(|| format!("{} {}", ran.stdout, ran.stderr))?;
    let checks = report["checks"].as_array().context("no checks")?;
    let row = |check: &Value| -> Result<(String, (u64, u64))> {
        let count = |field: &str| check[field].as_u64().with_context(|| format!("no {field} in {check}"));
        Ok((check["check"].as_str().context("no name")?.to_owned(), (count("sent")?, count("executed")?)))
    };
    checks.iter().map(row).collect()
}

/// What [`reached`] must say if all passed.
fn all_passed() -> BTreeMap<String, (u64, u64)> {
    EXPECTED.into_iter().map(|(check, sent, executed)| (check.to_owned(), (sent, executed))).collect()
}

/// The series that requests change.
fn counted(enforcer: &Enforcer<'_>) -> Result<Vec<String>> {
    let metrics = enforcer.metrics()?;
    let changed = ["enforcer_requests_total", "enforcer_refused_total", "enforcer_map_entries"];
    Ok(metrics.lines().filter(|line| changed.iter().any(|name| line.starts_with(name))).map(str::to_owned).collect())
}

#[test]
fn the_policy_that_holds_passes_and_nothing_live_is_touched() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("plain", Workers::Sync(1))?;
    // Keys come in another field, and a source's limit is one that each check keeps within.
    let enforcer = site.guard(
        "[service]\nkey_headers = [\"X-Token\"]\nsource = \"100/minute\"\n[principal.tenant]\nlimit = \"5/hour\"",
    )?;
    add_key(&enforcer, "tenant")?;
    let (before, keys) = (counted(&enforcer)?, enforcer.cli(&["key", "ls"])?);
    let ran = enforcer.run(&["verify", "-o", "json"])?;
    ensure!(ran.code == 0, "ended with {}: {}{}", ran.code, ran.stdout, ran.stderr);
    ensure!(reached(&ran)? == all_passed(), "{}", ran.stdout);
    ensure!(counted(&enforcer)? == before, "the counts of live traffic changed");
    ensure!(enforcer.cli(&["key", "ls"])? == keys, "keys changed");
    ensure!(origin.executed()?.is_empty(), "the app executed {:?}", origin.executed()?);
    let shown = enforcer.cli(&["verify"])?;
    ensure!(shown.contains("5 x 200, 7 x 429") && !shown.contains("FAILED"), "{shown}");
    Ok(())
}

#[test]
fn where_refusals_are_only_observed_every_check_fails_and_says_why() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let enforcer = Enforcer::guard(&site.link, PORT, &["--mode", "observe"])?;
    let ran = enforcer.run(&["verify", "-o", "json"])?;
    ensure!(ran.code == 3 && ran.stderr.contains("8 of 8 checks failed"), "{}: {}", ran.code, ran.stderr);
    for (check, (sent, executed)) in reached(&ran)? {
        ensure!(executed == sent, "{check}: {executed} of {sent} reached the app");
    }
    let ran = enforcer.run(&["verify"])?;
    ensure!(ran.code == 3 && ran.stdout.contains("The daemon observes"), "{}: {}", ran.code, ran.stdout);
    Ok(())
}

/// Tries a policy file without a daemon.
fn try_policy(policy: &str, more: &[&str]) -> Result<Ran> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("policy.toml");
    fs::write(&file, format!("version = 1\n{policy}\n"))?;
    let mut command = Command::new(binary()?);
    command.args(["verify", "-o", "json", "--policy"]).arg(&file).args(more);
    Ok(command.env_remove("ENFORCER_CONFIG").output()?.into())
}

#[test]
fn a_policy_that_lets_keyless_requests_through_or_gives_less_than_the_limit_fails() -> Result<()> {
    let policy = "[[public]]\npath = \"/open\"\nlimit = \"50/hour\"\n[[route]]\npath = \"/tight\"\nlimit = \"2/hour\"";
    let ran = try_policy(policy, &[])?;
    ensure!(ran.code == 0 && reached(&ran)? == all_passed(), "{}: {}{}", ran.code, ran.stdout, ran.stderr);
    let open = try_policy(policy, &["--path", "/open"])?;
    let through = reached(&open)?;
    ensure!(open.code == 3 && through["no key"] == (1, 1), "{}: {}", open.code, open.stdout);
    let tight = try_policy(policy, &["--path", "/tight"])?;
    let through = reached(&tight)?;
    ensure!(tight.code == 3 && through["one key from three sources"] == (12, 2), "{}: {}", tight.code, tight.stdout);
    ensure!(through["no key"] == (1, 0), "{}", tight.stdout);
    let ran = try_policy("[plan.gold]\nlimit = \"1/mintue\"", &[])?;
    ensure!(ran.code == 2 && ran.stderr.contains("mintue"), "{}: {}", ran.code, ran.stderr);
    Ok(())
}

#[test]
fn it_leaves_nothing_however_it_is_ended() -> Result<()> {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("policy.toml");
        fs::write(&file, "version = 1\n")?;
        let mut command = Command::new(binary()?);
        command.args(["verify", "--policy"]).arg(&file).env_remove("ENFORCER_CONFIG");
        let mut running = Process::start(command, &folder.path().join("output"))?;
        let net = format!("--net=/proc/{}/ns/net", running.id());
        // The link, from within the test's namespace, once the program is attached to it.
        let program = wait_for("the program to be attached", || {
            let shown = Command::new("nsenter").args([&net, "--", "ip", "-j", "link", "show", "verify0"]).output()?;
            let link: Value = serde_json::from_slice(&shown.stdout).unwrap_or_default();
            Ok(link[0]["xdp"]["prog"]["id"].as_u64())
        })?;
        let is_loaded = || -> Result<bool> {
            let mut command = Command::new("bpftool");
            command.args(["prog", "show", "id", &program.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
            Ok(command.status()?.success())
        };
        ensure!(is_loaded()?, "program {program} cannot be seen");
        running.signal(signal)?;
        let status = running.wait()?;
        ensure!(!status.success(), "{signal} ended it with {status}: {}", running.output());
        wait_for("the program to be gone", || Ok((!is_loaded()?).then_some(())))?;
        let links = process::run(Command::new("ip").args(["-o", "link"]))?;
        ensure!(!links.contains("verify0") && !links.contains("verify1"), "left: {links}");
    }
    Ok(())
}

#[test]
fn without_rights_or_a_daemon_it_says_what_is_missing() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let enforcer = Enforcer::new(&site.link.server, &[])?;
    enforcer.configure("")?;
    let ran = enforcer.run(&["verify"])?;
    ensure!(ran.code == 4 && ran.stderr.contains("no daemon answers"), "{}: {}", ran.code, ran.stderr);
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("policy.toml");
    fs::write(&file, "version = 1\n")?;
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-all", "--inh-caps=-all", "--"]).arg(binary()?).args(["verify", "--policy"]);
    let ran: Ran = command.arg(&file).env_remove("ENFORCER_CONFIG").output()?.into();
    ensure!(ran.code == 5 && ran.stderr.contains("run it as root"), "{}: {}", ran.code, ran.stderr);
    Ok(())
}
