//! Keys are in no map, file, log, metric or listing, and an attacker learns nothing of which keys there are.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use enforcer_tests::client::Ending;
use enforcer_tests::netns::Way;
use enforcer_tests::origin::Workers;
use enforcer_tests::process;
use nix::sys::signal::Signal;

use crate::site::{Site, add_key, keyed, random_key, request, v4, write};

/// Whether a file below `folder` holds any of these.
fn holds(folder: &Path, wanted: &[Vec<u8>]) -> Result<bool> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let found = match entry.file_type()? {
            // A BPF file system has pins, not files.
            kind if kind.is_dir() && entry.file_name() == "bpf" => false,
            kind if kind.is_dir() => holds(&entry.path(), wanted)?,
            kind if kind.is_file() => contains(&fs::read(entry.path())?, wanted),
            _ => false,
        };
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}

fn contains(bytes: &[u8], wanted: &[Vec<u8>]) -> bool {
    wanted.iter().any(|key| bytes.windows(key.len()).any(|window| window == key))
}

#[test]
fn keys_are_in_no_map_file_log_metric_or_listing() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("routes", Workers::Sync(2))?;
    let mut enforcer = site.guard(
        "[service]\nclient_id = \"X-Client-Id\"\n[principal.tenant]\nlimit = \"10/hour\"\n[principal.tenant.clients]\nmobile = \"5/hour\"\nother = \"5/hour\"\n\
         [[route]]\npath = \"/search\"\nlimit = \"5/hour\"\n[[public]]\npath = \"/open\"\nlimit = \"5/hour\"",
    )?;
    let key = add_key(&enforcer, "tenant")?;
    let guess = random_key(7);
    for sent in [&key, &guess] {
        site.flood(v4(1), 20, |_| keyed("/search", sent))?;
        site.flood(v4(1), 5, |_| {
            request(&format!("/?api_key={sent}"), &[("X-Client-Id", "mobile"), ("X-API-Key", sent)])
        })?;
        site.flood(v4(1), 5, |_| keyed("/open", sent))?;
    }
    ensure!(origin.executed_with(&key)? > 0, "the key was of no use");
    let wanted = [key, guess].map(String::into_bytes).to_vec();

    for key in &wanted {
        let line = ["explain", "GET", "/search", "--source", "10.77.16.1", "--key-stdin", "-o", "json"];
        let ran = enforcer.run_with_input(&line, &String::from_utf8_lossy(key))?;
        ensure!(ran.code == 0, "{}", ran.stderr);
        ensure!(!contains(format!("{}{}", ran.stdout, ran.stderr).as_bytes(), &wanted), "an explanation shows a key");
    }
    let policy = write(&enforcer, "[principal.tenant]\nlimit = \"20/hour\"")?;
    let policy = policy.to_str().context("a path that is no text")?.to_owned();
    for command in [
        &["key", "ls"][..],
        &["key", "ls", "-o", "json"],
        &["limits"],
        &["limits", "-o", "json"],
        &["status", "-o", "json"],
        &["export"],
        &["apply", "-f", &policy, "--dry-run"],
        &["check", &policy],
        &["penalty", "ls", "--all"],
    ] {
        let ran = enforcer.run(command)?;
        ensure!(ran.code == 0, "{command:?} ended with {}: {}", ran.code, ran.stderr);
        ensure!(!contains(format!("{}{}", ran.stdout, ran.stderr).as_bytes(), &wanted), "{command:?} shows a key");
    }
    ensure!(!contains(enforcer.metrics()?.as_bytes(), &wanted), "the metrics show a key");
    // What a policy adds to the maps that `lifecycle` searches.
    for name in ["BUCKETS", "SOURCE_BUCKETS", "SIGHTINGS", "CLIENTS"] {
        let pinned = enforcer.pinned()?.into_iter().find(|path| path.ends_with(name));
        let pinned = pinned.with_context(|| format!("{name} is not pinned"))?;
        let mut command = std::process::Command::new("bpftool");
        let dump = process::run(command.args(["--json", "map", "dump", "pinned"]).arg(&pinned))?;
        // It prints bytes as a list of numbers in hex.
        let numbers = dump.split('"').filter_map(|part| u8::from_str_radix(part.strip_prefix("0x")?, 16).ok());
        let bytes: Vec<u8> = numbers.collect();
        ensure!(!bytes.is_empty(), "{name} is empty: the search would find nothing anywhere");
        ensure!(!contains(&bytes, &wanted), "{name} holds a key");
    }
    enforcer.stop(Signal::SIGTERM)?;
    ensure!(!contains(enforcer.log()?.as_bytes(), &wanted), "the log shows a key");
    ensure!(!holds(enforcer.folder(), &wanted)?, "a file holds a key");
    Ok(())
}

#[test]
fn bad_keys_get_the_same_bytes_whatever_is_wrong_with_them() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("routes", Workers::Sync(2))?;
    let enforcer = site.guard("[service]\nguesses = \"unlimited\"\n[principal.tenant]\nlimit = \"10/hour\"")?;
    let gone = add_key(&enforcer, "tenant")?;
    enforcer.cli(&["key", "disable", "tenant"])?;
    let mut answers = Vec::new();
    for request in [keyed("/", &gone), keyed("/", &random_key(1)), request("/", &[])] {
        let mut connection = site.connect(v4(1))?;
        connection.send(&request);
        let (ending, body) = connection.answer();
        ensure!(ending == Ending::Answered(401), "{ending:?}");
        answers.push(body);
    }
    answers.dedup();
    ensure!(answers.len() == 1, "answers differ: {answers:?}");
    ensure!(origin.executed()?.is_empty(), "the app executed {:?}", origin.executed()?);
    Ok(())
}
