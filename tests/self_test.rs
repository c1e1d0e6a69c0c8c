//! `enforcer verify`: passes where the policy is enforced, fails where it is not, touches nothing that is live, and leaves
//! nothing.

#[path = "policy/site.rs"]
#[expect(dead_code, reason = "the tests of policies use all of it")]
mod site;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
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
    // Who is let in by the policy itself is no failure.
    let strangers = "[service]\nsource = \"100/hour\"\nunkeyed = \"50/hour\"\n[service.unregistered]\nlimit = \"50/hour\"\n\
                     max_keys = 100";
    let ran = try_policy(strangers, &[])?;
    let through = reached(&ran)?;
    ensure!(ran.code == 0, "{}: {}{}", ran.code, ran.stdout, ran.stderr);
    ensure!(
        ["no key", "an unknown key", "a revoked key"].iter().all(|check| through[*check] == (1, 1)),
        "{}",
        ran.stdout
    );
    let ran = try_policy("[plan.gold]\nlimit = \"1/mintue\"", &[])?;
    ensure!(ran.code == 2 && ran.stderr.contains("mintue"), "{}: {}", ran.code, ran.stderr);
    Ok(())
}

/// The commands of the handbook by which openssl checks a proof.
fn openssl_commands() -> Result<&'static str> {
    let text = include_str!("../docs/security.md");
    let mut blocks = text.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.find(|block| block.contains("openssl pkeyutl")).context("the handbook has no such commands")
}

#[test]
fn a_proof_says_what_was_tried_and_is_checked_without_root_a_daemon_or_this_program() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _origin = site.serve("plain", Workers::Sync(3))?;
    let mut enforcer = site.guard("[principal.tenant]\nlimit = \"5/hour\"")?;
    let key = add_key(&enforcer, "tenant")?;
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    let [proof, public] = [path("proof.json"), path("enforcer.pub")];
    let ran = enforcer.run(&["verify", "--proof", &proof])?;
    ensure!(ran.code == 0, "ended with {}: {}{}", ran.code, ran.stdout, ran.stderr);
    ensure!(ran.stdout.contains("Behind port 8000: 3 workers"), "{}", ran.stdout);
    fs::write(&public, enforcer.cli(&["verify", "--show-public-key"])?)?;
    let policy = folder.path().join("policy.toml");
    fs::write(&policy, enforcer.cli(&["export"])?)?;
    enforcer.stop(Signal::SIGTERM)?;

    // Nobody in particular, who cannot read the state.
    let check = |proof: &str, more: &[&str]| -> Result<Ran> {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(binary()?);
        command.args(["verify", "-o", "json", "--check", proof]).args(more).current_dir("/");
        Ok(command.env_remove("ENFORCER_CONFIG").env_remove("ENFORCER_STATE_DIR").output()?.into())
    };
    fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755))?;
    let ran = check(&proof, &["--public-key", &public])?;
    ensure!(ran.code == 0 && reached(&ran)? == all_passed(), "{}: {}{}", ran.code, ran.stdout, ran.stderr);
    let stated: Value = serde_json::from_str(&ran.stdout)?;
    ensure!(stated["workers"] == serde_json::json!({"ports": [8000], "workers": 3, "names": ["gunicorn"]}), "{stated}");
    let digest = process::run(Command::new("sha256sum").arg(&policy))?;
    ensure!(stated["policy_of"] == "daemon", "{stated}");
    ensure!(digest.starts_with(stated["policy_sha256"].as_str().context("no digest")?), "{digest}: {stated}");
    let [host, kernel] = ["-n", "-r"].map(|which| process::run(Command::new("uname").arg(which)));
    ensure!(stated["host"] == host?.trim(), "{stated}");
    ensure!(stated["kernel"].as_str().context("no kernel")?.starts_with(kernel?.trim()), "{stated}");
    let line = fs::read_to_string(&public)?.lines().nth(1).context("no line")?.to_owned();
    ensure!(check(&proof, &["--public-key", &line])?.code == 0, "by the key itself");

    // What is not that proof is none.
    let text = fs::read_to_string(&proof)?;
    ensure!(!text.contains(&key) && !ran.stdout.contains(&key), "a key is in it");
    let other = path("other.pub");
    let fresh = Enforcer::new(&site.link.server, &[])?;
    fresh.configure("")?;
    fs::write(&other, fresh.cli(&["verify", "--show-public-key"])?)?;
    let ran = check(&proof, &["--public-key", &other])?;
    ensure!(
        ran.code == 3 && ran.stderr.contains("the signature is not that of the key"),
        "{}: {}",
        ran.code,
        ran.stderr
    );
    let envelope: Value = serde_json::from_str(&text)?;
    let payload = envelope["payload"].as_str().context("no payload")?;
    let changed = payload.replacen(['A', 'B'], "C", 1);
    for (wrong, code) in [
        (text.replace(payload, &changed), 3),
        (text.replace("verify.v1+json", "verify.v2+json"), 3),
        (text[..text.len() / 2].to_owned(), 2),
        (String::new(), 2),
    ] {
        let file = path("wrong.json");
        fs::write(&file, &wrong)?;
        let ran = check(&file, &["--public-key", &public])?;
        ensure!(ran.code == code && ran.stdout.is_empty(), "{}: {wrong}: {}", ran.code, ran.stderr);
    }
    let ran = check(&proof, &["--public-key", &path("nothing")])?;
    ensure!(ran.code == 2 && ran.stderr.contains("--public-key"), "{}: {}", ran.code, ran.stderr);

    // As the handbook says, with a program of others.
    let openssl = |commands: &str| -> Result<Ran> {
        Ok(Command::new("sh").args(["-euc", commands]).current_dir(folder.path()).output()?.into())
    };
    let ran = openssl(openssl_commands()?)?;
    ensure!(ran.code == 0 && ran.stdout.contains("Signature Verified Successfully"), "{}{}", ran.stdout, ran.stderr);
    fs::write(&proof, text.replace(payload, &changed))?;
    let ran = openssl(openssl_commands()?)?;
    ensure!(ran.code != 0, "a changed payload: {}", ran.stdout);
    Ok(())
}

#[test]
fn what_failed_is_proven_too() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let state = folder.path().join("state").display().to_string();
    let proof = folder.path().join("proof.json").display().to_string();
    let policy = "[[public]]\npath = \"/open\"\nlimit = \"50/hour\"";
    let ran = try_policy(policy, &["--path", "/open", "--proof", &proof, "--state-dir", &state])?;
    ensure!(ran.code == 3 && reached(&ran)?["no key"] == (1, 1), "{}: {}{}", ran.code, ran.stdout, ran.stderr);
    let check = |more: &[&str]| -> Result<Ran> {
        let mut command = Command::new(binary()?);
        command.args(["verify", "--check", &proof, "--state-dir"]).args(more);
        Ok(command.env_remove("ENFORCER_CONFIG").output()?.into())
    };
    let ran = check(&[&state])?;
    ensure!(ran.code == 3 && ran.stdout.contains("FAILED"), "{}: {}{}", ran.code, ran.stdout, ran.stderr);
    ensure!(ran.stdout.contains("signed with") && ran.stderr.contains("checks failed"), "{}{}", ran.stdout, ran.stderr);
    // To check makes no key.
    let elsewhere = folder.path().join("elsewhere");
    let ran = check(&[&elsewhere.display().to_string()])?;
    ensure!(ran.code == 1 && ran.stderr.contains("--public-key"), "{}: {}", ran.code, ran.stderr);
    ensure!(!elsewhere.exists(), "a key was made");
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
