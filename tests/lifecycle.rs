//! The daemon's life: starts, kills, take-overs, detaches, changes under load, errors, and what it never shows.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, HashMap, Map, MapData, MapType, PerCpuArray};
use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType, loaded_programs};
use enforcer_ebpf::abi::{
    self, ABI, Answer, Buckets, Client, Edge, Host, Key, KeyTag, Leaf, Meter, Policy, Rule, Ruleset, Scope, Service,
    Sighting, State, TOTALS, map, tally,
};
use enforcer_ebpf::connection::{Connections, Subjects};
use enforcer_ebpf::flow::{Handshake, Mark, Place, Set};
use enforcer_ebpf::shortcut::Shortcuts;
use enforcer_ebpf::source::{Record, Source};
use enforcer_ebpf::wire::Tuple;
use enforcer_tests::client::{Connection, Ending, exchange, flood, get, last};
use enforcer_tests::enforcer::{self, Enforcer, Ran};
use enforcer_tests::netns::{self, Link, Namespace, Way};
use enforcer_tests::origin::{Origin, Workers};
use enforcer_tests::process;
use enforcer_tests::program::{Kind, Program};
use nix::sys::signal::Signal;
use serde_json::Value;

const PORT: u16 = 8000;

/// The ways of which each has its own kind of attachment.
const ATTACHMENTS: [Way; 4] = [Way::VethNative, Way::VethTc, Way::LoopbackGeneric, Way::LoopbackTc];

/// The programs of a guard at XDP: what judges, what answers behind it, and what meets packets that leave.
const XDP: [&str; 3] = ["enforcer_xdp", "enforcer_answer", "enforcer_watch"];
/// Those of a guard in traffic control, where one judges and answers.
const TC: [&str; 2] = ["enforcer_tc", "enforcer_watch"];

/// A link with an app on it that nothing guards yet.
fn site() -> Result<(Link, Origin)> {
    site_on(Way::VethNative)
}

fn site_on(way: Way) -> Result<(Link, Origin)> {
    let link = Link::new(way)?;
    let origin = Origin::start(&link.server, "plain", Workers::Sync(2), SocketAddr::new(link.v4, PORT))?;
    Ok((link, origin))
}

fn send(link: &Link, origin: &Origin, key: Option<&str>) -> Result<Ending> {
    link.client().run(|| exchange(origin.address, &get("/", key)))
}

fn send_many(link: &Link, origin: &Origin, key: &str, count: usize, expected: Ending) -> Result<()> {
    for number in 1..=count {
        let ending = send(link, origin, Some(key))?;
        ensure!(ending == expected, "request {number} of {count}: {ending:?} instead of {expected:?}");
    }
    Ok(())
}

/// Runs `body` while keyless requests are sent all the time, none of which may reach the app.
fn under_keyless_load<T>(link: &Link, origin: &Origin, body: impl FnOnce() -> Result<T>) -> Result<T> {
    let running = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| -> Result<usize> {
            let mut sent = 0;
            while running.load(Ordering::Relaxed) {
                // Whoever ends a connection first keeps its port for a minute: that is not to be the client.
                let endings = flood(link.client(), origin.address, 8, 16, |_| last(get("/", None)))?;
                ensure!(endings == BTreeMap::from([(Ending::Answered(401), 16)]), "keyless requests ended {endings:?}");
                sent += 16;
            }
            Ok(sent)
        });
        let result = body();
        running.store(false, Ordering::Relaxed);
        let sent = load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        ensure!(sent > 0, "no keyless request was sent meanwhile");
        ensure!(origin.executed_with("-")? == 0, "{} keyless requests were executed", origin.executed_with("-")?);
        result
    })
}

/// Names of the programs on the link's interface: XDP's, then those of traffic control.
fn attached(link: &Link) -> Result<Vec<String>> {
    let listed = process::run(link.server.command("ip").args(["-json", "link", "show", "dev", &link.interface]))?;
    let listed: Value = serde_json::from_str(&listed).context(listed)?;
    link.server.run(|| {
        let mut ids: Vec<u32> = Vec::new();
        ids.extend(listed[0]["xdp"]["prog"]["id"].as_u64().map(u32::try_from).transpose()?);
        for side in [TcAttachType::Ingress, TcAttachType::Egress] {
            let (_, programs) = SchedClassifier::query_tcx(&link.interface, side)?;
            ids.extend(programs.iter().map(ProgramInfo::id));
        }
        let name = |id: u32| {
            let info = loaded_programs().filter_map(Result::ok).find(|info| info.id() == id);
            Ok(info.and_then(|info| info.name_as_str().map(str::to_owned)).context("a program without a name")?)
        };
        ids.into_iter().map(name).collect()
    })
}

/// Attaches a program that lets everything pass, and is not the enforcer's, to XDP on the link's interface.
fn attach_foreign(link: &Link, kind: Kind) -> Result<Program> {
    let mut program = Program::load(kind, "foreign_xdp")?;
    link.server.run(|| program.attach(nix::net::if_::if_nametoindex(link.interface.as_str())?))?;
    Ok(program)
}

fn expect(ran: &Ran, code: i32, words: &[&str]) -> Result<()> {
    ensure!(ran.code == code, "ended with {} instead of {code}: {}", ran.code, ran.stderr);
    for word in words {
        ensure!(ran.stderr.contains(word), "the error does not name {word:?}: {}", ran.stderr);
    }
    ensure!(ran.stderr.contains("error: "), "not an error line: {}", ran.stderr);
    ensure!(!ran.stderr.contains("panicked") && !ran.stderr.contains("stack backtrace"), "{}", ran.stderr);
    Ok(())
}

#[test]
fn a_killed_daemon_leaves_enforcement_and_the_next_takes_over_without_a_gap_or_a_lost_count() -> Result<()> {
    for way in [Way::VethNative, Way::VethTc] {
        let (link, origin) = site_on(way)?;
        let mut enforcer = Enforcer::guard(&link, PORT, &[])?;
        let key = enforcer.add_key("tenant", "12/hour")?;
        send_many(&link, &origin, &key, 4, Ending::Answered(200))?;
        under_keyless_load(&link, &origin, || {
            enforcer.stop(Signal::SIGKILL)?;
            send_many(&link, &origin, &key, 4, Ending::Answered(200))?;
            enforcer.start()
        })?;
        let status = enforcer.json(&["status"])?;
        ensure!(status["attachments"][0]["taken_over"] == true, "not taken over: {status}");
        send_many(&link, &origin, &key, 4, Ending::Answered(200))?;
        send_many(&link, &origin, &key, 2, Ending::Answered(429))?;
        ensure!(origin.executed_with(&key)? == 12, "{} were executed", origin.executed_with(&key)?);
        let allowed = enforcer.metric("enforcer_requests_total{principal=\"tenant\",verdict=\"allowed\"}")?;
        ensure!(allowed == 12, "{allowed} are counted");
    }
    Ok(())
}

/// `ip netns exec` hides the host's BPF file system under a /sys of its own, which ends with the last process in it.
#[test]
fn under_ip_netns_exec_the_pins_are_the_hosts_and_outlive_the_daemon() -> Result<()> {
    let (link, origin) = site()?;
    let folder = tempfile::tempdir()?;
    let pins = Path::new("/sys/fs/bpf").join(netns::unique("pins"));
    let exec = |arguments: &[&str]| {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", link.server.name()]).arg(enforcer::binary()?).args(arguments);
        command
            .env("ENFORCER_SOCKET", folder.path().join("socket"))
            .env("ENFORCER_STATE_DIR", folder.path().join("state"))
            .env("ENFORCER_BPFFS_DIR", &pins);
        Ok::<_, anyhow::Error>(command)
    };
    let run = ["run", "--interface", &link.interface, "--port", "8000", "--metrics", "off"];
    let mut daemon = process::Process::start(exec(&run)?, &folder.path().join("log"))?;
    process::wait_for("the daemon to answer", || {
        ensure!(daemon.ended()?.is_none(), "`enforcer run` ended: {}", daemon.output());
        Ok(exec(&["status"])?.output()?.status.success().then_some(()))
    })?;
    daemon.signal(Signal::SIGKILL)?;
    daemon.wait()?;
    let ending = send(&link, &origin, None)?;
    ensure!(pins.join(format!("v{ABI}/links")).join(&link.interface).exists(), "no pin on the host's BPF file system");
    ensure!(ending == Ending::Answered(401), "a keyless request after the kill: {ending:?}");
    process::run(&mut exec(&["detach"])?)?;
    ensure!(!pins.exists(), "detach left {}", pins.display());
    let ending = send(&link, &origin, None)?;
    ensure!(ending == Ending::Answered(200), "a keyless request after detach: {ending:?}");
    Ok(())
}

#[test]
fn many_kills_under_load_let_nothing_through() -> Result<()> {
    for way in [Way::VethNative, Way::VethTc] {
        let (link, origin) = site_on(way)?;
        let mut enforcer = Enforcer::guard(&link, PORT, &[])?;
        let key = enforcer.add_key("tenant", "10/hour")?;
        send_many(&link, &origin, &key, 10, Ending::Answered(200))?;
        under_keyless_load(&link, &origin, || {
            for _ in 0..10 {
                enforcer.stop(Signal::SIGKILL)?;
                enforcer.start()?;
            }
            Ok(())
        })?;
        send_many(&link, &origin, &key, 2, Ending::Answered(429))?;
        ensure!(origin.executed()?.len() == 10, "{} were executed", origin.executed()?.len());
    }
    Ok(())
}

#[test]
fn a_clean_stop_leaves_enforcement_and_says_so_and_detach_ends_it_without_a_daemon() -> Result<()> {
    for way in [Way::VethNative, Way::VethTc] {
        let (link, origin) = site_on(way)?;
        let mut enforcer = Enforcer::guard(&link, PORT, &[])?;
        let key = enforcer.add_key("tenant", "100/hour")?;
        let code = enforcer.stop(Signal::SIGTERM)?;
        ensure!(code == 0, "SIGTERM ended it with {code}");
        ensure!(enforcer.log()?.contains("detach"), "it does not say how to end enforcement: {}", enforcer.log()?);
        ensure!(send(&link, &origin, None)? == Ending::Answered(401), "enforcement ended with the daemon");
        ensure!(send(&link, &origin, Some(&key))? == Ending::Answered(200), "keys ended with the daemon");
        let status = enforcer.run(&["status"])?;
        ensure!(status.code == 4 && status.stderr.contains(&link.interface), "without a daemon: {}", status.stderr);
        enforcer.cli(&["detach"])?;
        ensure!(enforcer.pinned()?.is_empty(), "left: {:?}", enforcer.pinned()?);
        ensure!(send(&link, &origin, None)? == Ending::Answered(200), "enforcement did not end");
    }
    Ok(())
}

#[test]
fn detach_with_a_daemon_ends_enforcement_and_leaves_nothing_pinned() -> Result<()> {
    for way in ATTACHMENTS {
        let link = Link::new(way)?;
        let origin = Origin::start(&link.server, "plain", Workers::Sync(1), SocketAddr::new(link.v4, PORT))?;
        let mut enforcer = Enforcer::guard(&link, PORT, &[])?;
        ensure!(!enforcer.pinned()?.is_empty(), "nothing is pinned");
        ensure!(send(&link, &origin, None)? == Ending::Answered(401), "nothing is enforced");
        let programs = if link.hook() == "tc" { &TC[..] } else { &XDP };
        ensure!(attached(&link)? == programs, "{way:?}: {:?}", attached(&link)?);
        enforcer.cli(&["detach"])?;
        let status = enforcer.daemon()?.wait()?;
        ensure!(status.success(), "the daemon ended with {status}");
        ensure!(enforcer.pinned()?.is_empty(), "left: {:?}", enforcer.pinned()?);
        ensure!(send(&link, &origin, None)? == Ending::Answered(200), "enforcement did not end");
        let attached = attached(&link)?;
        ensure!(attached.is_empty(), "still attached: {attached:?}");
    }
    Ok(())
}

#[test]
fn a_daemon_told_to_detach_on_exit_does() -> Result<()> {
    let (link, origin) = site()?;
    let mut enforcer = Enforcer::guard(&link, PORT, &["--detach-on-exit"])?;
    ensure!(send(&link, &origin, None)? == Ending::Answered(401), "nothing is enforced");
    ensure!(enforcer.stop(Signal::SIGINT)? == 0, "SIGINT");
    ensure!(enforcer.pinned()?.is_empty(), "left: {:?}", enforcer.pinned()?);
    ensure!(send(&link, &origin, None)? == Ending::Answered(200), "enforcement did not end");
    Ok(())
}

#[test]
fn keys_limits_and_counts_survive_restarts_and_even_a_detach() -> Result<()> {
    let (link, origin) = site()?;
    let mut enforcer = Enforcer::guard(&link, PORT, &[])?;
    let key = enforcer.add_key("tenant", "5/hour")?;
    let off = enforcer.add_key("off", "7/minute")?;
    enforcer.cli(&["key", "disable", "off"])?;
    send_many(&link, &origin, &key, 2, Ending::Answered(200))?;
    let before = enforcer.json(&["key", "ls"])?;
    ensure!(enforcer.stop(Signal::SIGTERM)? == 0, "SIGTERM");
    enforcer.start()?;
    ensure!(enforcer.json(&["key", "ls"])? == before, "the keys changed: {before}, {}", enforcer.json(&["key", "ls"])?);
    send_many(&link, &origin, &key, 3, Ending::Answered(200))?;
    send_many(&link, &origin, &key, 1, Ending::Answered(429))?;
    ensure!(send(&link, &origin, Some(&off))? == Ending::Answered(401), "a disabled key came back");

    enforcer.cli(&["detach"])?;
    enforcer.daemon()?.wait()?;
    enforcer.stop(Signal::SIGTERM).ok();
    enforcer.start()?;
    ensure!(send(&link, &origin, Some(&key))? == Ending::Answered(429), "what it has used is forgotten");
    ensure!(send(&link, &origin, Some(&off))? == Ending::Answered(401), "a disabled key came back after a detach");
    Ok(())
}

#[test]
fn a_new_limit_takes_effect_at_once_and_keeps_the_count() -> Result<()> {
    let (link, origin) = site()?;
    let enforcer = Enforcer::guard(&link, PORT, &[])?;
    let key = enforcer.add_key("tenant", "10/hour")?;
    send_many(&link, &origin, &key, 6, Ending::Answered(200))?;
    enforcer.cli(&["limit", "set", "tenant", "5/hour"])?;
    send_many(&link, &origin, &key, 1, Ending::Answered(429))?;
    enforcer.cli(&["limit", "set", "tenant", "8/hour"])?;
    send_many(&link, &origin, &key, 2, Ending::Answered(200))?;
    send_many(&link, &origin, &key, 1, Ending::Answered(429))?;
    let limits = enforcer.json(&["limits", "tenant"])?;
    let rule = &limits["principals"][0]["rules"][0];
    ensure!((&rule["used"], &rule["remaining"]) == (&Value::from(8), &Value::from(0)), "{limits}");
    ensure!(rule["reset_ns"].as_u64().is_some_and(|reset| reset > 0), "{limits}");
    enforcer.cli(&["limit", "set", "tenant", "blocked"])?;
    send_many(&link, &origin, &key, 1, Ending::Answered(429))?;
    enforcer.cli(&["limit", "set", "tenant", "unlimited"])?;
    send_many(&link, &origin, &key, 20, Ending::Answered(200))?;
    ensure!(origin.executed()?.len() == 28, "{} were executed", origin.executed()?.len());
    Ok(())
}

#[test]
fn a_limit_changed_again_and_again_under_load_never_lets_more_through() -> Result<()> {
    let (link, origin) = site()?;
    let enforcer = Enforcer::guard(&link, PORT, &[])?;
    let key = enforcer.add_key("tenant", "40/hour")?;
    std::thread::scope(|scope| -> Result<()> {
        let load = scope.spawn(|| flood(link.client(), origin.address, 8, 200, |_| get("/", Some(&key))));
        for round in 0..20 {
            enforcer.cli(&["limit", "set", "tenant", ["40/hour", "30/hour", "39/hour"][round % 3]])?;
        }
        load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(())
    })?;
    enforcer.cli(&["limit", "set", "tenant", "40/hour"])?;
    flood(link.client(), origin.address, 8, 50, |_| get("/", Some(&key)))?;
    ensure!(origin.executed()?.len() == 40, "{} were executed", origin.executed()?.len());
    Ok(())
}

#[test]
fn keys_are_disabled_enabled_and_removed_on_live_connections() -> Result<()> {
    let link = Link::new(Way::VethNative)?;
    let origin = Origin::start(&link.server, "plain", Workers::Threads(2), SocketAddr::new(link.v4, PORT))?;
    let enforcer = Enforcer::guard(&link, PORT, &[])?;
    let key = enforcer.add_key("tenant", "3/hour")?;
    link.client().run(|| {
        let mut connection = Connection::open(origin.address)?;
        connection.send(&get("/", Some(&key)));
        ensure!(connection.answer().0 == Ending::Answered(200), "before");
        enforcer.cli(&["key", "disable", "tenant"])?;
        connection.send(&get("/", Some(&key)));
        let (ending, _) = connection.answer();
        ensure!(ending == Ending::Answered(401), "a disabled key on a kept connection: {ending:?}");
        Ok(())
    })?;
    enforcer.cli(&["key", "enable", "tenant"])?;
    send_many(&link, &origin, &key, 1, Ending::Answered(200))?;
    enforcer.cli(&["key", "rm", "tenant"])?;
    send_many(&link, &origin, &key, 1, Ending::Answered(401))?;
    // The name again, with another key: what was used stays used.
    let other = enforcer.add_key("tenant", "3/hour")?;
    ensure!(other != key, "the same key again");
    send_many(&link, &origin, &other, 1, Ending::Answered(200))?;
    send_many(&link, &origin, &other, 1, Ending::Answered(429))?;
    origin.await_executed(3)?;
    Ok(())
}

#[test]
fn two_keys_of_one_principal_share_one_limit() -> Result<()> {
    let (link, origin) = site()?;
    let enforcer = Enforcer::guard(&link, PORT, &[])?;
    let first = enforcer.add_key("tenant", "4/hour")?;
    let second = enforcer.cli(&["key", "add", "tenant"])?.trim().to_owned();
    let other = enforcer.add_key("other", "1/hour")?;
    send_many(&link, &origin, &first, 2, Ending::Answered(200))?;
    send_many(&link, &origin, &second, 2, Ending::Answered(200))?;
    send_many(&link, &origin, &first, 1, Ending::Answered(429))?;
    send_many(&link, &origin, &second, 1, Ending::Answered(429))?;
    send_many(&link, &origin, &other, 1, Ending::Answered(200))?;
    Ok(())
}

#[test]
fn keys_are_imported_all_or_none() -> Result<()> {
    let (link, origin) = site()?;
    let enforcer = Enforcer::guard(&link, PORT, &[])?;
    let good = "# customers\n\nalice,imported_key_of_the_customer_alice,2/hour\nbob,imported_key_of_the_customer_bob\n";
    let ran = enforcer.run_with_input(&["key", "import", "-"], good)?;
    ensure!(ran.code == 0, "{}", ran.stderr);
    send_many(&link, &origin, "imported_key_of_the_customer_alice", 2, Ending::Answered(200))?;
    send_many(&link, &origin, "imported_key_of_the_customer_alice", 1, Ending::Answered(429))?;
    send_many(&link, &origin, "imported_key_of_the_customer_bob", 1, Ending::Answered(200))?;
    let before = enforcer.json(&["key", "ls"])?;
    for (bad, words) in [
        ("carol,imported_key_of_the_customer_carol\ndave,short\n", ["line 2", "key"]),
        (
            "carol,imported_key_of_the_customer_carol\n\ndave,imported_key_of_the_customer_dave,100/mintue\n",
            ["line 3", "limit"],
        ),
        ("carol,imported_key_of_the_customer_carol\ndave\n", ["line 2", "key"]),
        ("carol,imported_key_of_the_customer_carol\nbad name,imported_key_of_the_customer_dave\n", ["line 2", "name"]),
        ("carol,imported_key_of_the_customer_alice\n", ["line 1", "key"]),
        ("carol,imported_key_of_the_customer_carol\ndave,imported_key_1\n", ["line 2, key", "--weak"]),
    ] {
        let ran = enforcer.run_with_input(&["key", "import", "-"], bad)?;
        expect(&ran, 2, &words)?;
        ensure!(!ran.stderr.contains("imported_key"), "a key is shown: {}", ran.stderr);
        ensure!(enforcer.json(&["key", "ls"])? == before, "something of {bad:?} was taken");
    }
    send_many(&link, &origin, "imported_key_of_the_customer_carol", 1, Ending::Answered(401))?;
    let ran = enforcer.run_with_input(&["key", "import", "--weak", "-"], "dave,imported_key_1\n")?;
    ensure!(ran.code == 0 && ran.stderr.contains("warning: standard input: line 1, key"), "{}", ran.stderr);
    ensure!(!ran.stderr.contains("imported_key"), "a key is shown: {}", ran.stderr);
    send_many(&link, &origin, "imported_key_1", 1, Ending::Answered(200))?;
    Ok(())
}

#[test]
fn each_error_has_its_exit_code_names_its_cause_and_leaves_nothing_behind() -> Result<()> {
    let link = Link::new(Way::LoopbackGeneric)?;
    let port = PORT.to_string();
    let enforcer = Enforcer::new(&link.server, &["--port", &port])?;
    let fails = |arguments: &[&str], code: i32, words: &[&str]| -> Result<()> {
        let ran = enforcer.fail_to_start(arguments)?;
        expect(&ran, code, words).with_context(|| format!("enforcer run {arguments:?}"))?;
        ensure!(enforcer.pinned()?.is_empty(), "{arguments:?} left {:?}", enforcer.pinned()?);
        let attached = link.server.ip(&["link", "show", "dev", "lo"])?;
        ensure!(!attached.contains("xdp"), "{arguments:?} left {attached}");
        Ok(())
    };
    fails(&["--interface", "nosuch0"], 12, &["nosuch0"])?;
    fails(&["--interface", "lo", "--hook", "xdp-native"], 15, &["lo", "xdp-native"])?;
    fails(&["--interface", "lo", "--hook", "xdp"], 2, &["`xdp`", "xdp-native, xdp-generic or tc"])?;
    fails(&["--interface", "lo", "--hook", "tc", "--interface", "nosuch0"], 12, &["nosuch0"])?;
    fails(&["--interface", "lo", "--mode", "maybe"], 2, &["maybe", "observe"])?;
    fails(&["--interface", "lo", "--default-limit", "100/mintue"], 2, &["mintue"])?;
    let plain = Enforcer::new(&link.server, &["--interface", "lo"])?;
    expect(&plain.fail_to_start(&["--port", "70000"])?, 2, &["--port", "70000"])?;
    plain.configure("ports = [8000]\ninterfacse = [\"lo\"]\n")?;
    expect(&plain.fail_to_start(&[])?, 2, &["interfacse", "enforcer.toml", "2"])?;
    expect(&plain.run(&["status"])?, 4, &["control.sock"])?;
    ensure!(plain.run(&["nonsense"])?.code == 2, "an unknown subcommand");
    ensure!(plain.pinned()?.is_empty(), "left {:?}", plain.pinned()?);
    Ok(())
}

#[test]
fn a_process_without_rights_is_told_which_it_lacks() -> Result<()> {
    let namespace = Namespace::new()?;
    let enforcer = Enforcer::new(&namespace, &[])?;
    enforcer.configure("")?;
    let full = enforcer.command();
    let mut command = Command::new("timeout");
    command.arg("30");
    // nsenter itself needs its rights: they are dropped behind it.
    let words: Vec<_> = full.get_args().collect();
    let separator = words.iter().position(|word| *word == "--").context("no separator")?;
    command.arg(full.get_program()).args(&words[..=separator]);
    command.args(["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--"]).args(&words[separator + 1..]);
    for (name, value) in full.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let ran: Ran = command.args(["run", "--interface", "lo", "--port", "8000"]).output()?.into();
    expect(&ran, 5, &["CAP_BPF", "CAP_NET_ADMIN"])?;
    ensure!(enforcer.pinned()?.is_empty(), "left {:?}", enforcer.pinned()?);
    Ok(())
}

#[test]
fn a_second_daemon_with_the_same_state_or_pins_is_refused() -> Result<()> {
    let link = Link::new(Way::VethNative)?;
    let enforcer = Enforcer::guard(&link, PORT, &[])?;
    let second = enforcer.fail_to_start(&["--metrics", "off"])?;
    expect(&second, 14, &["another daemon runs", "state"])?;
    let state = enforcer.folder().join("other").display().to_string();
    let socket = enforcer.folder().join("other.sock").display().to_string();
    let same_pins = enforcer.fail_to_start(&["--metrics", "off", "--state-dir", &state, "--socket", &socket])?;
    expect(&same_pins, 14, &["another enforcer already runs", "--bpffs-dir"])?;
    Ok(())
}

/// Both would charge for each request.
#[test]
fn behind_another_enforcer_none_starts_whatever_the_hook() -> Result<()> {
    for (way, programs) in [(Way::VethNative, &XDP[..]), (Way::VethTc, &TC)] {
        let (link, origin) = site_on(way)?;
        let enforcer = Enforcer::guard(&link, PORT, &[])?;
        let key = enforcer.add_key("tenant", "100/hour")?;
        // Of its own state and pins, it meets the first one's program as anybody would.
        let other =
            Enforcer::new(&link.server, &["--interface", &link.interface, "--port", "8000", "--metrics", "off"])?;
        for hook in ["auto", "xdp-native", "xdp-generic", "tc"] {
            let ran = other.fail_to_start(&["--hook", hook])?;
            expect(&ran, 13, &[&link.interface, programs[0], "id"]).with_context(|| format!("{way:?}, {hook}"))?;
            ensure!(other.pinned()?.is_empty(), "{hook} left {:?}", other.pinned()?);
        }
        ensure!(attached(&link)? == programs, "{way:?}: {:?}", attached(&link)?);
        ensure!(send(&link, &origin, Some(&key))? == Ending::Answered(200), "the first one is disturbed");
        ensure!(send(&link, &origin, None)? == Ending::Answered(401), "the first one is disturbed");
    }
    Ok(())
}

#[test]
fn beside_a_foreign_xdp_program_only_traffic_control_is_taken() -> Result<()> {
    // Packets that the generic hook has copied come to traffic control without their Ethernet header.
    for kind in [Kind::Xdp, Kind::GenericXdp] {
        beside_a_foreign(kind).with_context(|| format!("{kind:?}"))?;
    }
    Ok(())
}

fn beside_a_foreign(kind: Kind) -> Result<()> {
    let (link, origin) = site()?;
    let _foreign = attach_foreign(&link, kind)?;
    let mut enforcer = Enforcer::new(&link.server, &["--interface", &link.interface, "--port", "8000"])?;
    for hook in ["xdp-native", "xdp-generic"] {
        let ran = enforcer.fail_to_start(&["--hook", hook])?;
        expect(&ran, 13, &[&link.interface, "foreign_xdp"]).with_context(|| hook.to_owned())?;
        ensure!(enforcer.pinned()?.is_empty(), "{hook} left {:?}", enforcer.pinned()?);
    }
    for (hook, why) in [("auto", "XDP runs another's program"), ("tc", "asked for")] {
        enforcer.configure(&format!("hook = \"{hook}\""))?;
        enforcer.start()?;
        let attachment = enforcer.json(&["status"])?["attachments"][0].clone();
        ensure!(attachment["mode"] == "tc", "{hook}: {attachment}");
        ensure!(attachment["reason"].as_str().is_some_and(|reason| reason.contains(why)), "{hook}: {attachment}");
        ensure!(attached(&link)? == ["foreign_xdp", "enforcer_tc", "enforcer_watch"], "{hook}: {:?}", attached(&link)?);
        let key = enforcer.add_key(&format!("tenant-{hook}"), "1/hour")?;
        send_many(&link, &origin, &key, 1, Ending::Answered(200))?;
        send_many(&link, &origin, &key, 1, Ending::Answered(429))?;
        ensure!(send(&link, &origin, None)? == Ending::Answered(401), "{hook}: unkeyed");
        enforcer.cli(&["detach"])?;
        enforcer.daemon()?.wait()?;
        ensure!(attached(&link)? == ["foreign_xdp"], "{hook} left {:?}", attached(&link)?);
    }
    Ok(())
}

#[test]
fn what_is_attached_in_one_mode_is_kept_in_it_and_never_put_in_another() -> Result<()> {
    let (link, origin) = site()?;
    let mut enforcer = Enforcer::new(&link.server, &["--interface", &link.interface, "--port", "8000"])?;
    for (mode, other, programs) in [("tc", "xdp-native", &TC[..]), ("xdp-native", "tc", &XDP)] {
        enforcer.configure(&format!("hook = \"{mode}\""))?;
        enforcer.start()?;
        enforcer.stop(Signal::SIGKILL)?;
        let ran = enforcer.fail_to_start(&["--hook", other])?;
        expect(&ran, 15, &[&link.interface, mode, "enforcer detach"]).with_context(|| format!("{mode} to {other}"))?;
        ensure!(attached(&link)? == programs, "after {other}: {:?}", attached(&link)?);
        ensure!(send(&link, &origin, None)? == Ending::Answered(401), "the refused {other} ended the guard");
        enforcer.configure("hook = \"auto\"")?;
        enforcer.start()?;
        let attachment = enforcer.json(&["status"])?["attachments"][0].clone();
        ensure!(attachment["mode"] == mode && attachment["taken_over"] == true, "{attachment}");
        enforcer.cli(&["detach"])?;
        enforcer.daemon()?.wait()?;
        ensure!(attached(&link)?.is_empty(), "{mode} left {:?}", attached(&link)?);
    }
    Ok(())
}

#[test]
fn commands_on_what_does_not_exist_end_with_6_and_bad_input_with_2() -> Result<()> {
    let link = Link::new(Way::LoopbackGeneric)?;
    let enforcer = Enforcer::guard(&link, PORT, &[])?;
    enforcer.add_key("tenant", "100/hour")?;
    let before = (enforcer.json(&["key", "ls"])?, enforcer.json(&["limits"])?["principals"][0]["limit"].clone());
    for missing in [
        &["key", "rm", "nobody"][..],
        &["key", "rm", "0123abcd"],
        &["key", "disable", "nobody"],
        &["key", "enable", "nobody"],
        &["limit", "set", "nobody", "1/minute"],
        &["limits", "nobody"],
    ] {
        expect(&enforcer.run(missing)?, 6, &[]).with_context(|| format!("{missing:?}"))?;
    }
    for (bad, words) in [
        (&["limit", "set", "tenant", "100/mintue"][..], &["mintue", "minute"][..]),
        (&["limit", "set", "tenant", ""], &["accepted"]),
        (&["limit", "set", "tenant", "0/minute; 1/second; 1/minute; 1/hour; 1/day"], &[]),
        (&["limit", "set", "tenant", "99999999999/minute"], &[]),
        (&["key", "add", "bad name"], &["NAME"]),
        (&["key", "add", ""], &["NAME"]),
        (&["key", "add", "somebody", "--limit", "fast"], &["limit"]),
        (&["key", "add", "somebody", "a_key_of_my_own"], &["import"]),
        (&["key", "import", "/no/such/file"], &["/no/such/file"]),
    ] {
        let ran = enforcer.run(bad)?;
        ensure!(ran.code == 2 || bad[1] == "import", "{bad:?} ended with {}: {}", ran.code, ran.stderr);
        ensure!(ran.code != 0, "{bad:?} was taken");
        for word in words {
            ensure!(ran.stderr.contains(word), "{bad:?} does not name {word:?}: {}", ran.stderr);
        }
        ensure!(!ran.stderr.contains("a_key_of_my_own"), "a key is repeated: {}", ran.stderr);
    }
    let after = (enforcer.json(&["key", "ls"])?, enforcer.json(&["limits"])?["principals"][0]["limit"].clone());
    ensure!(after == before, "something changed: {before:?} {after:?}");
    Ok(())
}

/// Sends a request to the control socket by curl; gives the status and the answer.
fn control(enforcer: &Enforcer<'_>, as_user: u32, method: &str, path: &str, body: &str) -> Result<(u16, Value)> {
    let mut command = Command::new("setpriv");
    command.arg(format!("--reuid={as_user}")).args(["--clear-groups", "curl", "--silent", "--show-error"]);
    command.args(["--max-time", "20", "--request", method, "--write-out", "\n%{http_code}", "--unix-socket"]);
    command.arg(enforcer.socket()).args(["--header", "Content-Type: application/json"]);
    if !body.is_empty() {
        command.args(["--data-binary", body]);
    }
    let printed = process::run(command.arg(format!("http://enforcer{path}")))?;
    let (answer, status) = printed.rsplit_once('\n').context("curl printed no status")?;
    let answer =
        if answer.is_empty() { Value::Null } else { serde_json::from_str(answer).context(answer.to_owned())? };
    Ok((status.parse()?, answer))
}

#[test]
fn the_control_socket_refuses_bad_input_by_its_field_and_leaves_everything_as_it_was() -> Result<()> {
    let link = Link::new(Way::LoopbackGeneric)?;
    let enforcer = Enforcer::guard(&link, PORT, &[])?;
    enforcer.add_key("tenant", "100/hour")?;
    let before = enforcer.json(&["key", "ls"])?;
    for (method, path, body, status, field) in [
        ("POST", "/v1/keys", r#"{"name":"bad name"}"#, 400, Some("name")),
        ("POST", "/v1/keys", r#"{"name":"a","limit":"100/mintue"}"#, 400, Some("limit")),
        ("POST", "/v1/keys", r#"{"name":"a","limit":5}"#, 400, Some("limit")),
        ("POST", "/v1/keys", r#"{"name":"a","key":"chosen_by_me"}"#, 400, Some("key")),
        ("POST", "/v1/keys", r#"{"limit":"1/minute"}"#, 400, None),
        ("POST", "/v1/keys", "{", 400, None),
        ("POST", "/v1/keys", "", 400, None),
        (
            "POST",
            "/v1/keys/import",
            r#"{"weak":true,"entries":[{"name":"a","key":"long_enough_1"},{"name":"b","key":"no"}]}"#,
            400,
            Some("entries[1].key"),
        ),
        ("POST", "/v1/keys/import", r#"{"entries":[{"name":"a","key":"long_enough_1"}]}"#, 400, Some("entries[0].key")),
        (
            "POST",
            "/v1/keys/import",
            r#"{"entries":[{"name":"a","key":"long_enough_1","limit":"1/minute","extra":1}]}"#,
            400,
            Some("entries[0].extra"),
        ),
        ("PUT", "/v1/limits/tenant", r#"{"limit":"fast"}"#, 400, Some("limit")),
        ("PUT", "/v1/limits/tenant", r#"{"limit":"1/minute","burst":2}"#, 400, Some("burst")),
        ("PUT", "/v1/limits/nobody", r#"{"limit":"1/minute"}"#, 404, None),
        ("DELETE", "/v1/keys/nobody", "", 404, None),
        ("POST", "/v1/keys/nobody/disable", "", 404, None),
        ("GET", "/v1/limits?name=nobody", "", 404, None),
        ("GET", "/v1/nothing", "", 404, None),
        ("GET", "/", "", 404, None),
    ] {
        let (got, answer) = control(&enforcer, 0, method, path, body)?;
        ensure!(got == status, "{method} {path} {body}: {got} {answer}");
        let error = &answer["error"];
        ensure!(
            error["message"].as_str().is_some_and(|message| !message.is_empty()),
            "{method} {path} {body}: {answer}"
        );
        if let Some(field) = field {
            ensure!(error["field"] == field, "{method} {path} {body}: {answer}");
            ensure!(!answer.to_string().contains("long_enough_1"), "a key is repeated: {answer}");
        }
    }
    ensure!(enforcer.json(&["key", "ls"])? == before, "something changed");
    ensure!(enforcer.json(&["limits", "tenant"])?["principals"][0]["limit"] == before["keys"][0]["limit"], "the limit");
    Ok(())
}

#[test]
fn strangers_may_neither_read_nor_change_and_nobody_else_reads_the_state() -> Result<()> {
    let link = Link::new(Way::LoopbackGeneric)?;
    let enforcer = Enforcer::guard(&link, PORT, &[])?;
    enforcer.add_key("tenant", "100/hour")?;
    let mode = |path: &Path| -> Result<u32> { Ok(fs::metadata(path)?.permissions().mode() & 0o777) };
    ensure!(mode(&enforcer.state_dir())? == 0o700, "the state folder: {:o}", mode(&enforcer.state_dir())?);
    for entry in fs::read_dir(enforcer.state_dir())? {
        let path = entry?.path();
        ensure!(mode(&path)? & 0o077 == 0, "{}: {:o}", path.display(), mode(&path)?);
    }
    ensure!(mode(&enforcer.socket())? & 0o007 == 0, "the socket: {:o}", mode(&enforcer.socket())?);
    // Even where the file's mode would let them in, the daemon asks who they are.
    fs::set_permissions(enforcer.folder(), fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(enforcer.socket(), fs::Permissions::from_mode(0o666))?;
    for (method, path, body) in [
        ("GET", "/v1/status", ""),
        ("GET", "/v1/keys", ""),
        ("POST", "/v1/keys", r#"{"name":"intruder"}"#),
        ("POST", "/v1/explain", r#"{"method":"GET","target":"/","source":"192.0.2.7","keyed":"tenant"}"#),
        ("DELETE", "/v1/keys/tenant", ""),
        ("POST", "/v1/detach", ""),
    ] {
        let (status, answer) = control(&enforcer, 65_534, method, path, body)?;
        ensure!(status == 403, "{method} {path}: {status} {answer}");
        ensure!(!answer.to_string().contains("tenant"), "{method} {path}: {answer}");
    }
    ensure!(control(&enforcer, 0, "GET", "/v1/status", "")?.0 == 200, "root is refused");
    Ok(())
}

/// Bytes in a row that count as a part of a key; the state of a cut value holds less than a word of them.
const PART: usize = 12;

#[test]
fn no_key_is_in_clear_in_maps_store_logs_metrics_listings_or_arguments() -> Result<()> {
    let (link, origin) = site()?;
    let mut enforcer = Enforcer::guard(&link, PORT, &["-v"])?;
    let made = enforcer.add_key("tenant", "100/hour")?;
    let brought = "imported_key_0123456789abcdef";
    let ran = enforcer.run_with_input(&["key", "import", "--weak", "-"], &format!("other,{brought}\n"))?;
    ensure!(ran.code == 0, "{}", ran.stderr);
    for key in [&made, brought] {
        send_many(&link, &origin, key, 2, Ending::Answered(200))?;
    }
    // A head cut inside its key leaves the connection's state in the middle of it.
    let halves: Vec<(String, Connection)> = [&made, brought]
        .into_iter()
        .map(|key| {
            link.client().run(|| {
                let mut connection = Connection::open(origin.address)?;
                let request = get("/", Some(key));
                let half = request.len() - "\r\nAccept: */*\r\n\r\n".len() - 4;
                connection.send_slowly(&[&request[..half]], std::time::Duration::from_millis(100));
                Ok((key.to_owned(), connection))
            })
        })
        .collect::<Result<_>>()?;

    let mut seen: Vec<(String, Vec<u8>)> = Vec::new();
    for map in map::PINNED {
        let path = enforcer.pinned()?.into_iter().find(|path| path.ends_with(map)).context("a pinned map")?;
        seen.push((format!("map {map}"), values(map, &path).with_context(|| format!("reading {map}"))?));
    }
    for entry in fs::read_dir(enforcer.state_dir())? {
        let path = entry?.path();
        seen.push((path.display().to_string(), fs::read(&path)?));
    }
    let id = enforcer.daemon()?.id();
    seen.push(("the arguments".into(), fs::read(format!("/proc/{id}/cmdline"))?));
    seen.push(("the environment".into(), fs::read(format!("/proc/{id}/environ"))?));
    seen.push(("the log".into(), enforcer.log()?.into_bytes()));
    seen.push(("the metrics".into(), enforcer.metrics()?.into_bytes()));
    for listing in [&["status"][..], &["key", "ls"], &["limits"]] {
        seen.push((format!("{listing:?}"), enforcer.cli(listing)?.into_bytes()));
        seen.push((format!("{listing:?} -o json"), enforcer.json(listing)?.to_string().into_bytes()));
    }
    let known = seen.iter().find(|(what, _)| what == "map METERS").context("the meters")?;
    ensure!(known.1.iter().any(|&byte| byte != 0), "the dumps are empty: the search would find nothing anywhere");
    for (what, bytes) in &seen {
        // A key has no NUL: only what lies between them can be a part of one.
        for piece in bytes.split(|&byte| byte == 0).filter(|piece| piece.len() >= PART) {
            for key in [made.as_bytes(), brought.as_bytes()] {
                let shown = key.windows(PART).any(|part| piece.windows(PART).any(|window| window == part));
                ensure!(!shown, "{what} holds a part of a key");
            }
        }
    }
    drop(halves);
    Ok(())
}

/// All values of a pinned map, one after the other.
fn values(name: &str, path: &Path) -> Result<Vec<u8>> {
    fn array<const N: usize>(map: MapData) -> Result<Vec<u8>> {
        let array: Array<_, [u8; N]> = Map::Array(map).try_into()?;
        Ok(array.iter().collect::<Result<Vec<_>, _>>()?.concat())
    }
    fn pairs<const K: usize, const V: usize>(map: MapData) -> Result<Vec<u8>> {
        let map = match map.info()?.map_type()? {
            MapType::LruHash => Map::LruHashMap(map),
            _ => Map::HashMap(map),
        };
        let pairs: HashMap<_, [u8; K], [u8; V]> = map.try_into()?;
        let pairs = pairs.iter().collect::<Result<Vec<_>, _>>()?;
        Ok(pairs.into_iter().flat_map(|(key, value)| [&key[..], &value].concat()).collect())
    }
    let map = MapData::from_pin(path)?;
    match name {
        map::PORTS => array::<4>(map),
        map::SERVICES => array::<{ size_of::<Service>() }>(map),
        map::POLICIES => array::<{ size_of::<Policy>() }>(map),
        map::METERS => array::<{ size_of::<Meter>() }>(map),
        map::SHORTCUTS => array::<{ size_of::<Shortcuts>() }>(map),
        map::FLOWS => array::<{ size_of::<Set>() }>(map),
        map::ANSWERS => array::<{ size_of::<Answer>() }>(map),
        map::CLOCK | map::PENALTIES | map::EXEMPTIONS | map::TRIAL => array::<8>(map),
        map::RULESETS => array::<{ size_of::<Ruleset>() }>(map),
        map::STATES => array::<{ size_of::<State>() }>(map),
        map::LEAVES => array::<{ size_of::<Leaf>() }>(map),
        map::RULES => array::<{ size_of::<Rule>() }>(map),
        map::ROUTES => pairs::<{ size_of::<Edge>() }, 8>(map),
        map::CLIENTS => pairs::<{ size_of::<Client>() }, 8>(map),
        map::HOSTS => pairs::<{ size_of::<Host>() }, 8>(map),
        map::CONNECTIONS => array::<{ size_of::<Connections>() }>(map),
        map::SUBJECTS => array::<{ size_of::<Subjects>() }>(map),
        map::BUCKETS | map::SOURCE_BUCKETS => pairs::<{ size_of::<Scope>() }, { size_of::<Buckets>() }>(map),
        map::SIGHTINGS => pairs::<{ size_of::<Sighting>() }, 8>(map),
        map::EXEMPT | map::PROXIES => {
            let trie: LpmTrie<_, [u8; 16], [u8; 8]> = Map::LpmTrie(map).try_into()?;
            let pairs = trie.iter().collect::<Result<Vec<_>, _>>()?;
            Ok(pairs.into_iter().flat_map(|(key, value)| [&key.data()[..], &value].concat()).collect())
        }
        map::TALLIES => {
            let tallies: PerCpuArray<_, [u64; tally::LEN]> = Map::PerCpuArray(map).try_into()?;
            let mut bytes = Vec::new();
            for index in 0..abi::TALLIES {
                bytes.extend(tallies.get(&index, 0)?.iter().flatten().flat_map(|count| count.to_ne_bytes()));
            }
            Ok(bytes)
        }
        map::TOTALS => {
            let totals: PerCpuArray<_, u64> = Map::PerCpuArray(map).try_into()?;
            let mut bytes = Vec::new();
            for index in 0..TOTALS * abi::SERVICES {
                bytes.extend(totals.get(&index, 0)?.iter().flat_map(|total| total.to_ne_bytes()));
            }
            Ok(bytes)
        }
        map::KEYS => pairs::<{ size_of::<KeyTag>() }, { size_of::<Key>() }>(map),
        map::MARKS => pairs::<{ size_of::<Place>() }, { size_of::<Mark>() }>(map),
        map::CHARGES => pairs::<{ size_of::<Place>() }, { size_of::<KeyTag>() }>(map),
        map::SOURCES => pairs::<{ size_of::<Source>() }, { size_of::<Record>() }>(map),
        map::HANDSHAKES => pairs::<{ size_of::<Tuple>() }, { size_of::<Handshake>() }>(map),
        other => anyhow::bail!("{other} is a map that this search does not know"),
    }
}

#[test]
fn promtool_accepts_the_metrics() -> Result<()> {
    let (link, origin) = site()?;
    let enforcer = Enforcer::guard(&link, PORT, &[])?;
    let key = enforcer.add_key("tenant", "1/hour")?;
    send_many(&link, &origin, &key, 1, Ending::Answered(200))?;
    send_many(&link, &origin, &key, 1, Ending::Answered(429))?;
    let path = enforcer.folder().join("metrics");
    let metrics = enforcer.metrics()?;
    fs::write(&path, &metrics)?;
    let checked = Command::new("promtool").args(["check", "metrics"]).stdin(fs::File::open(&path)?).output();
    let checked = checked.context("promtool is missing: install Debian's package prometheus")?;
    ensure!(checked.status.success(), "promtool: {}", String::from_utf8_lossy(&checked.stderr));
    for series in [
        "enforcer_requests_total{principal=\"tenant\",verdict=\"allowed\"} 1",
        "enforcer_requests_total{principal=\"tenant\",verdict=\"limited\"} 1",
        "enforcer_refused_total{service=\"default\",reason=\"over_limit\"} 1",
        "enforcer_refused_total{service=\"default\",reason=\"unkeyed\"} 0",
        "enforcer_keys 1",
        "enforcer_principals 1",
    ] {
        ensure!(metrics.lines().any(|line| line == series), "no line {series} in {metrics}");
    }
    for family in [
        "enforcer_malformed_total{",
        "enforcer_events_total{",
        "enforcer_map_entries{",
        "enforcer_map_capacity{",
        "enforcer_attach_info{",
        "enforcer_build_info{",
    ] {
        ensure!(metrics.lines().any(|line| line.starts_with(family)), "no series {family}…}} in {metrics}");
    }
    let health =
        process::run(link.server.command("curl").args(["--silent", "--fail", "http://127.0.0.1:9464/healthz"]))?;
    ensure!(!health.is_empty(), "/healthz answers nothing");
    Ok(())
}

#[test]
fn status_tells_where_how_and_what() -> Result<()> {
    for (way, mode) in [(Way::VethNative, "xdp-native"), (Way::LoopbackGeneric, "xdp-generic")] {
        let link = Link::new(way)?;
        let origin = Origin::start(&link.server, "plain", Workers::Sync(1), SocketAddr::new(link.v4, PORT))?;
        // Chosen, not told: native where the driver can, else generic.
        let mut enforcer = Enforcer::new(&link.server, &["--interface", &link.interface, "--port", "8000"])?;
        enforcer.start()?;
        let key = enforcer.add_key("tenant", "100/hour")?;
        ensure!(send(&link, &origin, Some(&key))? == Ending::Answered(200), "not served");
        ensure!(send(&link, &origin, None)? == Ending::Answered(401), "unkeyed");
        let status = enforcer.json(&["status"])?;
        let attachment = &status["attachments"][0];
        ensure!(attachment["interface"] == link.interface.as_str() && attachment["mode"] == mode, "{status}");
        ensure!(attachment["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "no reason: {status}");
        ensure!(status["ports"] == serde_json::json!([8000]), "{status}");
        ensure!(status["totals"]["allowed"] == 1 && status["totals"]["refused"] == 1, "{status}");
        ensure!(status["totals"]["refused_by"]["unkeyed"] == 1, "{status}");
        let table = enforcer.cli(&["status"])?;
        ensure!(table.contains(&link.interface) && table.contains(mode) && table.contains("unkeyed"), "{table}");
    }
    Ok(())
}
