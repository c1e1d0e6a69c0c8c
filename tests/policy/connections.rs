//! How many connections a source and a principal have open at once, before real servers: the exact number, in whichever way
//! connections end, and with the daemon dead, too.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use enforcer_tests::client::{Connection, Ending, last};
use enforcer_tests::enforcer::Enforcer;
use enforcer_tests::netns::{Namespace, Way};
use enforcer_tests::origin::{Server, Workers};
use enforcer_tests::packet::{Frame, flag};
use enforcer_tests::process::{Process, wait_for};
use enforcer_tests::raw::{Offload, Wire};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::site::{Endings, Site, add_key, apply, events, keyed, random_key, refused, request, statuses, v4, v6};

const BOUNDS: &str = "[service]\nconnections_per_source = 5\nconnections_per_principal = 8\n\
                      [principal.one]\nlimit = \"unlimited\"\n[principal.two]\nlimit = \"unlimited\"";
/// A client that sends its request and waits for its end.
const WAITING: &str = "import socket, sys, time\n\
                       s = socket.create_connection((sys.argv[2], int(sys.argv[3])), source_address=(sys.argv[1], 0))\n\
                       s.sendall(sys.argv[4].encode())\nprint(s.recv(12)[9:].decode(), flush=True)\ntime.sleep(60)";

/// Sends a request on a connection of its own, which is kept if it is answered with 200.
fn open(site: &Site, source: IpAddr, request: &[u8]) -> Result<(Ending, Connection)> {
    let mut connection = site.connect(source)?;
    connection.send(request);
    Ok((connection.answer().0, connection))
}

/// Opens so many connections that are served.
fn hold(site: &Site, source: IpAddr, key: &str, count: usize) -> Result<Vec<Connection>> {
    let mut held = Vec::new();
    for number in 0..count {
        let (ending, connection) = open(site, source, &keyed("/", key))?;
        ensure!(ending == Ending::Answered(200), "connection {number} of {count}: {ending:?}");
        held.push(connection);
    }
    Ok(held)
}

/// Sees to it that one more connection, and no second, is served as soon as the host has noticed that one has ended.
fn admits_one(site: &Site, source: IpAddr, key: &str, held: &mut Vec<Connection>, way: &str) -> Result<()> {
    let next = wait_for("room for another connection", || {
        let (ending, connection) = open(site, source, &keyed("/", key))?;
        ensure!(ending == Ending::Answered(200) || ending == Ending::Answered(429), "behind {way}: {ending:?}");
        Ok((ending == Ending::Answered(200)).then_some(connection))
    })?;
    held.push(next);
    let (ending, _) = open(site, source, &keyed("/", key))?;
    ensure!(ending == Ending::Answered(429), "a second one behind {way}: {ending:?}");
    Ok(())
}

/// How many places of a map are in use.
fn entries(enforcer: &Enforcer<'_>, map: &str) -> Result<u64> {
    enforcer.metric(&format!("enforcer_map_entries{{map=\"{map}\"}}"))
}

/// Sees to it that nobody has a connection any more, and that none is known.
fn is_empty(enforcer: &Enforcer<'_>) -> Result<()> {
    for map in ["SUBJECTS", "CONNECTIONS"] {
        wait_for("all connections to be over", || Ok((entries(enforcer, map)? == 0).then_some(())))
            .with_context(|| format!("{map} has {:?} entries", entries(enforcer, map).ok()))?;
    }
    ensure!(events(enforcer, "connections_full")? == 0, "the tables were full");
    Ok(())
}

#[test]
fn a_source_has_as_many_as_it_may_however_they_end_and_with_no_daemon() -> Result<()> {
    for way in [Way::VethNative, Way::VethTc] {
        let site = Site::new(way)?;
        let mut origin = site.serve("plain", Workers::Threads(1))?;
        let mut enforcer = site.guard(BOUNDS)?;
        let key = add_key(&enforcer, "one")?;
        let mut held = hold(&site, v4(1), &key, 5)?;
        for number in 0..20 {
            let (ending, _) = open(&site, v4(1), &keyed("/", &key))?;
            ensure!(ending == Ending::Answered(429), "{way:?}: {number} beyond five: {ending:?}");
        }
        ensure!(refused(&enforcer, "connections")? == 20, "counted: {}", refused(&enforcer, "connections")?);
        // Those that are open go on.
        for connection in &mut held {
            connection.send(&keyed("/", &key));
            ensure!(connection.answer().0 == Ending::Answered(200), "{way:?}: one that was let in");
        }
        ensure!(origin.executed_with(&key)? == 10, "{way:?}: executed {}", origin.executed_with(&key)?);
        // Bad keys, and connections that say nothing, take no place.
        drop(held.pop());
        let silent: Vec<Connection> = (0..20).map(|_| site.connect(v4(1))).collect::<Result<_>>()?;
        for number in 0..5 {
            let (ending, _) = open(&site, v4(1), &keyed("/", &random_key(number)))?;
            ensure!(ending == Ending::Answered(401), "{way:?}: a bad key: {ending:?}");
        }
        admits_one(&site, v4(1), &key, &mut held, "a client's FIN")?;
        drop(silent);
        held.remove(0).reset()?;
        admits_one(&site, v4(1), &key, &mut held, "a client's RST")?;
        let mut closing = held.remove(0);
        closing.send(&last(keyed("/", &key)));
        ensure!(closing.answer().0 == Ending::Answered(200), "{way:?}: a last request");
        ensure!(closing.answer().0 == Ending::Closed, "{way:?}: its server keeps the connection");
        admits_one(&site, v4(1), &key, &mut held, "a server's close")?;
        // Killed, a process leaves its connections to the kernel.
        held.remove(0).reset()?;
        let killed = wait_for("a client's turn", || waiting(&site, &key))?;
        let (ending, _) = open(&site, v4(1), &keyed("/", &key))?;
        ensure!(ending == Ending::Answered(429), "{way:?}: beside a process's: {ending:?}");
        drop(killed);
        admits_one(&site, v4(1), &key, &mut held, "a client's death")?;
        enforcer.stop(Signal::SIGKILL)?;
        held.remove(0).reset()?;
        admits_one(&site, v4(1), &key, &mut held, "its daemon's death")?;
        enforcer.start()?;
        let (ending, _) = open(&site, v4(1), &keyed("/", &key))?;
        ensure!(ending == Ending::Answered(429), "{way:?}: behind a take-over: {ending:?}");
        held.remove(0).reset()?;
        admits_one(&site, v4(1), &key, &mut held, "a take-over")?;
        drop(origin);
        origin = site.serve("plain", Workers::Threads(1))?;
        drop(held);
        held = hold(&site, v4(1), &key, 5)?;
        drop((origin, held));
        is_empty(&enforcer)?;
    }
    Ok(())
}

/// A process that has a connection of the first source, if a request was served on it.
fn waiting(site: &Site, key: &str) -> Result<Option<Process>> {
    let server = site.server(v4(1));
    let mut command = site.link.client().command("python3");
    let request = String::from_utf8(keyed("/", key))?;
    command.args(["-c", WAITING, &v4(1).to_string(), &server.ip().to_string(), &server.port().to_string(), &request]);
    let folder = tempfile::tempdir()?;
    let mut process = Process::start(command, &folder.path().join("output"))?;
    let status = wait_for("an answer", || {
        let output = process.output();
        Ok((output.ends_with('\n') || process.ended()?.is_some()).then_some(output))
    })?;
    Ok((status.trim() == "200").then_some(process))
}

#[test]
fn a_connection_that_its_client_has_half_closed_counts_until_its_server_closes_it() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _origin = site.serve("slow", Server::Waitress)?;
    let enforcer = site.guard("[service]\nconnections_per_source = 1\n[principal.one]\nlimit = \"unlimited\"")?;
    let key = add_key(&enforcer, "one")?;
    let mut held = site.connect(v6(1, 1))?;
    held.send(&request("/after/2.0", &[("X-API-Key", &key)]));
    held.finish();
    let (ending, _) = open(&site, v6(1, 1), &keyed("/", &key))?;
    ensure!(ending == Ending::Answered(429), "beside one that is half closed: {ending:?}");
    ensure!(held.answer().0 == Ending::Answered(200), "it is answered all the same");
    drop(held);
    admits_one(&site, v6(1, 1), &key, &mut Vec::new(), "its end")?;
    is_empty(&enforcer)
}

#[test]
fn packets_with_anothers_address_take_no_place_of_it() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _origin = site.serve("plain", Workers::Threads(1))?;
    let enforcer = site.guard(BOUNDS)?;
    let key = add_key(&enforcer, "one")?;
    let server = site.server(v4(1));
    let hardware = [mac(&site.link.server, "srv0")?, mac(site.link.client(), "cli0")?].concat();
    site.link.client().run(|| {
        let mut wire = Wire::open("cli0")?;
        for number in 0..300u16 {
            let other = SocketAddr::new(v4(1), 2000 + number);
            let asked = keyed("/", &key);
            // Whoever does not see the SYN-ACK does not know what to acknowledge.
            for frame in [
                Frame::bare(other, server, 7, flag::SYN),
                Frame::data(other, server, 8, &asked).acking(0x1234_5678),
                Frame { flags: flag::SYN, ..Frame::data(other, server, 7, &asked) },
            ] {
                let mut frame = frame.build();
                frame[..12].copy_from_slice(&hardware);
                wait_for("room to send a frame", || Ok(wire.send(&frame, Offload::None).ok()))?;
            }
        }
        Ok(())
    })?;
    ensure!(refused(&enforcer, "unorderly")? >= 300, "{} came: it tests nothing", refused(&enforcer, "unorderly")?);
    hold(&site, v4(1), &key, 5)?;
    ensure!(refused(&enforcer, "connections")? == 0, "one of the victim's was refused");
    Ok(())
}

fn mac(namespace: &Namespace, interface: &str) -> Result<Vec<u8>> {
    let links: Value = serde_json::from_str(&namespace.ip(&["-json", "link", "show", interface])?)?;
    let text = links[0]["address"].as_str().unwrap_or_default().to_owned();
    Ok(text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?)
}

#[test]
fn a_trusted_proxys_connections_count_for_whom_it_names_in_a_header_or_for_nobody() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("slow", Server::GunicornBehindProxy("v1"))?;
    let policy = |protocol: &str| {
        format!(
            "[service]\nconnections_per_source = 1\nconnections_per_principal = 2\ntrusted_proxies = [\"{}/32\"]\n\
             proxy_protocol = \"{protocol}\"\n[principal.one]\nlimit = \"unlimited\"",
            v4(9)
        )
    };
    let enforcer = site.guard(&policy("v1"))?;
    let key = add_key(&enforcer, "one")?;
    let told = |client: u8| {
        [format!("PROXY TCP4 203.0.113.{client} 10.77.0.1 4000 8000\r\n").as_bytes(), &keyed("/after/2.0", &key)]
            .concat()
    };
    let slow = |client: u8| -> Result<Connection> {
        let mut connection = site.connect(v4(9))?;
        connection.send(&told(client));
        Ok(connection)
    };
    // Its clients are told apart, and the principal of both has two.
    let mut first = slow(1)?;
    wait_for("the first request", || Ok((entries(&enforcer, "SUBJECTS")? == 2).then_some(())))?;
    let (ending, _) = open(&site, v4(9), &told(1))?;
    ensure!(ending == Ending::Answered(429), "a second of a client: {ending:?}");
    let mut second = slow(2)?;
    wait_for("the second", || Ok((entries(&enforcer, "SUBJECTS")? == 3).then_some(())))?;
    let (ending, _) = open(&site, v4(9), &told(3))?;
    ensure!(ending == Ending::Answered(429), "a third of the principal: {ending:?}");
    ensure!((first.answer().0, second.answer().0) == (Ending::Answered(200), Ending::Answered(200)), "the first two");
    drop((first, second, origin));
    is_empty(&enforcer)?;
    // Without that header a proxy's connections are everybody's.
    let _origin = site.serve("plain", Workers::Threads(1))?;
    apply(&enforcer, &policy("off"))?;
    let forwarded = request("/", &[("X-API-Key", &key), ("X-Forwarded-For", "203.0.113.1")]);
    let mut pool = Vec::new();
    for number in 0..4 {
        let (ending, connection) = open(&site, v4(9), &forwarded)?;
        ensure!(ending == Ending::Answered(200), "{number} of a pool: {ending:?}");
        pool.push(connection);
    }
    // Who is no proxy may say what it likes.
    let (ending, _held) = open(&site, v4(2), &forwarded)?;
    ensure!(ending == Ending::Answered(200), "one: {ending:?}");
    let claimed = request("/", &[("X-API-Key", &key), ("X-Forwarded-For", "203.0.113.2")]);
    let (ending, _) = open(&site, v4(2), &claimed)?;
    ensure!(ending == Ending::Answered(429), "a second: {ending:?}");
    Ok(())
}

#[test]
fn what_would_be_refused_is_explained_counted_and_tried() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _origin = site.serve("plain", Workers::Threads(1))?;
    let enforcer = site.guard("[principal.one]\nlimit = \"unlimited\"")?;
    let key = add_key(&enforcer, "one")?;
    // Connections that are older than the bound count from their next request on.
    let mut held = hold(&site, v4(1), &key, 2)?;
    let ran = crate::site::with_policy(&enforcer, &["apply", "--confirm", "60s", "-f"], BOUNDED_BY_TWO)?;
    ensure!(ran.code == 0, "{}{}", ran.stdout, ran.stderr);
    for connection in &mut held {
        connection.send(&keyed("/", &key));
        ensure!(connection.answer().0 == Ending::Answered(200), "one that is older than the bound");
    }
    let explain = ["explain", "GET", "/", "--as", "one", "--source"];
    let source = |host: u16| v4(host).to_string();
    let said = enforcer.json(&[&explain[..], &[&source(1)]].concat())?;
    ensure!(said.to_string().contains("\"connections\""), "explained: {said}");
    let said = enforcer.json(&[&explain[..], &[&source(2)]].concat())?;
    ensure!(!said.to_string().contains("\"connections\""), "explained for another source: {said}");
    let (ending, _) = open(&site, v4(1), &keyed("/", &key))?;
    ensure!(ending == Ending::Answered(429), "on trial: {ending:?}");
    enforcer.cli(&["rollback"])?;
    let (ending, third) = open(&site, v4(1), &keyed("/", &key))?;
    ensure!(ending == Ending::Answered(200), "the trial is over: {ending:?}");
    drop((held, third));
    is_empty(&enforcer)
}

const BOUNDED_BY_TWO: &str = "[service]\nconnections_per_source = 2\n[principal.one]\nlimit = \"unlimited\"";

#[test]
fn a_service_that_observes_counts_what_is_beyond_the_bound_and_refuses_nothing() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _origin = site.serve("plain", Workers::Threads(1))?;
    let enforcer = Enforcer::guard(&site.link, crate::site::PORT, &["--mode", "observe"])?;
    apply(&enforcer, BOUNDED_BY_TWO)?;
    let key = add_key(&enforcer, "one")?;
    let held = hold(&site, v4(1), &key, 4)?;
    let would = enforcer.metric("enforcer_would_refuse_total{service=\"default\",reason=\"connections\"}")?;
    ensure!(would == 2, "{would} of four would be refused");
    drop(held);
    is_empty(&enforcer)
}

#[test]
fn each_principal_has_its_own_wherever_it_comes_from() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _origin = site.serve("plain", Workers::Threads(1))?;
    let enforcer = site.guard(BOUNDS)?;
    let (one, two) = (add_key(&enforcer, "one")?, add_key(&enforcer, "two")?);
    let mut first = hold(&site, v4(1), &one, 5)?;
    first.extend(hold(&site, v4(2), &one, 3)?);
    let (ending, _) = open(&site, v4(3), &keyed("/", &one))?;
    ensure!(ending == Ending::Answered(429), "the ninth of a principal: {ending:?}");
    // What is refused for its principal takes no place of its source.
    let mut second = hold(&site, v4(3), &two, 5)?;
    second.extend(hold(&site, v4(4), &two, 3)?);
    // A connection of one principal is none of another's: on it, the other's request is tested as its first.
    let connection = &mut second[0];
    connection.send(&keyed("/", &one));
    ensure!(connection.answer().0 == Ending::Answered(429), "a principal rides on the connection of another");
    ensure!(refused(&enforcer, "connections")? == 2, "counted: {}", refused(&enforcer, "connections")?);
    // Lowered, the bound refuses what is new, and ends nothing.
    apply(&enforcer, &BOUNDS.replace("principal = 8", "principal = 2"))?;
    for connection in &mut first {
        connection.send(&keyed("/", &one));
        ensure!(connection.answer().0 == Ending::Answered(200), "one that was open when the bound was lowered");
    }
    while first.len() > 2 {
        first.pop();
    }
    let (ending, _) = open(&site, v4(5), &keyed("/", &one))?;
    ensure!(ending == Ending::Answered(429), "a third of two: {ending:?}");
    Ok(())
}

/// A server that takes nine connections into its queue, and accepts none.
const DEAF: &str =
    "import socket, time\ns = socket.create_server(('', 8000), backlog=8)\nprint('up', flush=True)\ntime.sleep(60)";

#[test]
fn what_a_server_does_not_take_counts_for_a_while_only() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let enforcer = site.guard("[service]\nconnections_per_source = 3\n[principal.one]\nlimit = \"unlimited\"")?;
    let key = add_key(&enforcer, "one")?;
    let folder = tempfile::tempdir()?;
    let mut command = site.link.server.command("python3");
    command.args(["-c", DEAF]);
    let server = Process::start(command, &folder.path().join("output"))?;
    wait_for("the server", || Ok(server.output().contains("up").then_some(())))?;
    // Once its queue is full, it drops SYNs, too.
    let mut connections = (0..4).map(|_| site.connect(v4(1))).collect::<Result<Vec<_>>>()?;
    let mut last = connections.pop().context("a fourth")?;
    let mut queue = Vec::new();
    for number in 1..=9 {
        let mut connection = site.connect(v4(10 + number))?;
        connection.send(&keyed("/", &key));
        wait_for("another in the queue", || {
            Ok((entries(&enforcer, "CONNECTIONS")? == u64::from(number)).then_some(()))
        })?;
        queue.push(connection);
    }
    connections.iter_mut().for_each(|connection| connection.send(&keyed("/", &key)));
    wait_for("three more to count", || Ok((entries(&enforcer, "CONNECTIONS")? == 12).then_some(())))?;
    last.send(&keyed("/", &key));
    ensure!(last.answer().0 == Ending::Answered(429), "a fourth of three");
    // Nobody tells of the end of what has never begun.
    drop((connections, last));
    wait_for("three to be given up", || Ok((entries(&enforcer, "CONNECTIONS")? == 9).then_some(())))?;
    drop((queue, server));
    is_empty(&enforcer)
}

#[test]
fn who_is_not_told_of_connections_any_more_is_warned_and_told_again_by_the_next_start() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _origin = site.serve("plain", Workers::Threads(1))?;
    let mut enforcer = site.guard(BOUNDS)?;
    let key = add_key(&enforcer, "one")?;
    let warned = |enforcer: &Enforcer<'_>| -> Result<bool> {
        Ok(enforcer.run(&["doctor"])?.stdout.contains("no program is told of connections"))
    };
    ensure!(!warned(&enforcer)?, "warned for nothing");
    let pins = || -> Result<Vec<_>> {
        Ok(enforcer
            .pinned()?
            .into_iter()
            .filter(|path| path.parent().is_some_and(|up| up.ends_with("sockets")))
            .collect())
    };
    ensure!(pins()?.len() == 1, "pinned: {:?}", pins()?);
    pins()?.iter().try_for_each(std::fs::remove_file)?;
    enforcer.stop(Signal::SIGTERM)?;
    ensure!(warned(&enforcer)?, "not warned");
    // Nobody sees these end.
    let held = hold(&site, v4(1), &key, 3)?;
    enforcer.start()?;
    ensure!(!warned(&enforcer)?, "warned still");
    // They were listed at the start.
    for mut connection in held {
        connection.send(&keyed("/", &key));
        ensure!(connection.answer().0 == Ending::Answered(200), "one that began unseen");
    }
    is_empty(&enforcer)
}

#[test]
fn short_connections_by_the_thousand_leave_nothing_behind_and_are_never_more() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("plain", Server::Waitress)?;
    let enforcer = site.guard(BOUNDS)?;
    let key = add_key(&enforcer, "one")?;
    // Each is closed by its client as soon as it has been answered; eight are open at once.
    let endings = site.flood(v6(1, 1), 2000, |_| keyed("/", &key))?;
    let served = endings.get(&Ending::Answered(200)).copied().unwrap_or_default();
    let known = [Ending::Answered(200), Ending::Answered(429), Ending::Reset];
    ensure!(served > 0 && endings.keys().all(|ending| known.contains(ending)), "{endings:?}");
    ensure!(origin.executed_with(&key)? == served, "{served} served, {} executed", origin.executed_with(&key)?);
    is_empty(&enforcer)?;
    let kept = hold(&site, v6(1, 1), &key, 5)?;
    drop(kept);
    is_empty(&enforcer)
}

#[test]
fn many_that_come_at_once_are_no_more() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("plain", Workers::Threads(1))?;
    let enforcer = site.guard(BOUNDS)?;
    let key = add_key(&enforcer, "one")?;
    let opened = std::thread::scope(|scope| {
        let opening: Vec<_> = (0..40).map(|_| scope.spawn(|| open(&site, v4(1), &keyed("/", &key)))).collect();
        opening.into_iter().map(|one| one.join().expect("no client panics")).collect::<Result<Vec<_>>>()
    })?;
    let mut endings = Endings::new();
    for (ending, _) in &opened {
        *endings.entry(ending.clone()).or_insert(0) += 1;
    }
    ensure!(endings == statuses([(200, 5), (429, 35)]), "40 at once: {endings:?}");
    ensure!(origin.executed_with(&key)? == 5, "executed {}", origin.executed_with(&key)?);
    Ok(())
}
