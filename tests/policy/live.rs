//! A policy that changes while a connection is open: each change holds for the next request on it, from when its command
//! returns, and no count is reset.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use enforcer_tests::client::{Connection, Ending};
use enforcer_tests::enforcer::Enforcer;
use enforcer_tests::netns::Way;
use enforcer_tests::origin::Workers;

use crate::site::{Endings, Site, add_key, apply, keyed, statuses, v4};

/// Sends so many requests on one connection, one after the other's answer.
fn send(connection: &mut Connection, count: usize, request: &[u8]) -> Endings {
    let mut endings = Endings::new();
    for _ in 0..count {
        connection.send(request);
        *endings.entry(connection.answer().0).or_insert(0) += 1;
    }
    endings
}

/// What is changed, and how.
struct Change {
    what: &'static str,
    /// The policy with a limit of so many an hour in this place.
    policy: fn(u32) -> String,
    /// Whether the limit is a principal's own, so that `limit set` changes it, too.
    by_command: bool,
}

const CHANGES: [Change; 5] = [
    Change {
        what: "a principal's limit",
        policy: |count| format!("[principal.tenant]\nlimit = \"{count}/hour\""),
        by_command: true,
    },
    Change {
        what: "a plan",
        policy: |count| format!("[plan.basic]\nlimit = \"{count}/hour\"\n[principal.tenant]\nplan = \"basic\""),
        by_command: false,
    },
    Change {
        what: "a route's limit",
        policy: |count| {
            format!("[principal.tenant]\nlimit = \"9000/hour\"\n[[route]]\npath = \"/items\"\nlimit = \"{count}/hour\"")
        },
        by_command: false,
    },
    Change {
        what: "a source's limit",
        policy: |count| format!("[service]\nsource = \"{count}/hour\"\n[principal.tenant]\nlimit = \"9000/hour\""),
        by_command: false,
    },
    Change {
        what: "the service's ceiling",
        policy: |count| format!("[service]\nceiling = \"{count}/hour\"\n[principal.tenant]\nlimit = \"9000/hour\""),
        by_command: false,
    },
];

fn change(enforcer: &Enforcer<'_>, change: &Change, count: u32) -> Result<()> {
    if change.by_command {
        enforcer.cli(&["limit", "set", "tenant", &format!("{count}/hour")])?;
        return Ok(());
    }
    apply(enforcer, &(change.policy)(count))
}

#[test]
fn each_limit_that_is_lowered_or_raised_holds_for_the_next_request_of_an_open_connection() -> Result<()> {
    for each in &CHANGES {
        let site = Site::new(Way::VethNative)?;
        let origin = site.serve("routes", Workers::Threads(1))?;
        let enforcer = site.guard(&(each.policy)(100))?;
        let key = add_key(&enforcer, "tenant")?;
        let request = keyed("/items/7", &key);
        let mut connection = site.connect(v4(1))?;
        let mut step = |what: &str, count: usize, expected: Endings| -> Result<()> {
            let endings = send(&mut connection, count, &request);
            ensure!(endings == expected, "{}, {what}: {endings:?}", each.what);
            Ok(())
        };
        step("at first", 70, statuses([(200, 70)]))?;
        change(&enforcer, each, 50)?;
        step("lowered below what is used", 3, statuses([(429, 3)]))?;
        change(&enforcer, each, 72)?;
        step("raised to two more", 3, statuses([(200, 2), (429, 1)]))?;
        change(&enforcer, each, 200)?;
        step("raised", 130, statuses([(200, 128), (429, 2)]))?;
        ensure!(origin.await_executed(200)?.len() == 200);
        let ports: Vec<u16> = origin.executed()?.iter().map(|request| request.port).collect();
        ensure!(ports.iter().all(|port| *port == ports[0]), "{}: it was not one connection", each.what);
    }
    Ok(())
}

#[test]
fn a_key_that_is_disabled_revoked_or_enabled_is_so_for_the_next_request_of_an_open_connection() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _origin = site.serve("plain", Workers::Threads(1))?;
    let enforcer = site.guard("[principal.tenant]\nlimit = \"10/hour\"")?;
    let key = add_key(&enforcer, "tenant")?;
    let mut connection = site.connect(v4(1))?;
    let mut step = |command: &[&str], expected: Endings| -> Result<()> {
        if !command.is_empty() {
            enforcer.cli(command)?;
        }
        let endings = send(&mut connection, 3, &keyed("/", &key));
        ensure!(endings == expected, "{command:?}: {endings:?}");
        Ok(())
    };
    step(&[], statuses([(200, 3)]))?;
    step(&["key", "disable", "tenant"], statuses([(401, 3)]))?;
    step(&["key", "enable", "tenant"], statuses([(200, 3)]))?;
    step(&["limit", "set", "tenant", "7/hour"], statuses([(200, 1), (429, 2)]))?;
    step(&["key", "rm", "tenant"], statuses([(401, 3)]))
}

/// Sets a principal's limit over the control socket; between which two moments.
fn set_limit(socket: &Path, limit: &str) -> Result<[Instant; 2]> {
    let mut stream = UnixStream::connect(socket)?;
    let body = format!("{{\"limit\":\"{limit}\"}}");
    let request = format!(
        "PUT /v1/limits/tenant HTTP/1.1\r\nHost: enforcer\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let before = Instant::now();
    stream.write_all(request.as_bytes())?;
    let mut first = [0; 15];
    stream.read_exact(&mut first)?;
    let behind = Instant::now();
    ensure!(&first == b"HTTP/1.1 200 OK", "{}", String::from_utf8_lossy(&first));
    Ok([before, behind])
}

#[test]
fn no_request_that_is_sent_behind_a_changes_return_meets_the_limit_before() -> Result<()> {
    const CHANGES: usize = 20;
    let site = Site::new(Way::VethNative)?;
    let _origin = site.serve("plain", Workers::Threads(1))?;
    let enforcer = site.guard("[principal.tenant]\nlimit = \"1000000/hour\"")?;
    let key = add_key(&enforcer, "tenant")?;
    let request = keyed("/", &key);
    let mut connection = site.connect(v4(1))?;
    let done = AtomicBool::new(false);
    let (sent, changes) = std::thread::scope(|scope| -> Result<_> {
        // When each was sent and answered, and whether it was served.
        let client = scope.spawn(|| -> Result<Vec<(Instant, Instant, bool)>> {
            let mut sent = Vec::new();
            while !done.load(Ordering::Relaxed) {
                let before = Instant::now();
                connection.send(&request);
                match connection.answer().0 {
                    Ending::Answered(status @ (200 | 429)) => sent.push((before, Instant::now(), status == 200)),
                    other => bail!("{other:?} behind {} requests", sent.len()),
                }
            }
            Ok(sent)
        });
        let changes = (0..CHANGES).map(|number| {
            std::thread::sleep(Duration::from_millis(50));
            // One that refuses, since more is used, and one that does not.
            let serves = number % 2 == 1;
            let moments = set_limit(&enforcer.socket(), if serves { "1000000/hour" } else { "1/hour" })?;
            Ok((moments, serves))
        });
        let changes: Result<Vec<([Instant; 2], bool)>> = changes.collect();
        std::thread::sleep(Duration::from_millis(50));
        done.store(true, Ordering::Relaxed);
        let Ok(sent) = client.join() else { bail!("the client panicked") };
        Ok((sent?, changes?))
    })?;

    let mut latencies = Vec::new();
    for (number, ([before, behind], serves)) in changes.iter().enumerate() {
        let next = changes.get(number + 1).map(|([next, _], _)| *next);
        let held: Vec<_> =
            sent.iter().filter(|(at, answered, _)| at > behind && next.is_none_or(|next| *answered < next)).collect();
        ensure!(held.len() > 3, "only {} requests were sent behind change {number}", held.len());
        let wrong = held.iter().filter(|(_, _, served)| served != serves).count();
        ensure!(wrong == 0, "{wrong} of {} behind change {number} met the limit before", held.len());
        let (_, first, _) = sent
            .iter()
            .find(|(at, answered, served)| answered > before && served == serves && next.is_none_or(|next| *at < next))
            .context("no request met it")?;
        latencies.push(first.saturating_duration_since(*before));
    }
    let mut trips: Vec<Duration> = sent.iter().map(|(at, answered, _)| answered.duration_since(*at)).collect();
    trips.sort_unstable();
    latencies.sort_unstable();
    let returned: Vec<Duration> = changes.iter().map(|([before, behind], _)| behind.duration_since(*before)).collect();
    eprintln!(
        "from a control call to the first answer by it: {:?} in the middle, {:?} at most; to the call's return {:?} at most; \
         a request takes {:?} in the middle ({} of them)",
        latencies[CHANGES / 2],
        latencies[CHANGES - 1],
        returned.iter().max().unwrap_or(&Duration::ZERO),
        trips[trips.len() / 2],
        trips.len()
    );
    Ok(())
}

#[test]
fn heads_that_are_begun_ahead_of_a_change_do_not_get_past_the_limits_of_paths() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("routes", Workers::Threads(1))?;
    let policy = |count: u32| {
        format!(
            "[principal.tenant]\nlimit = \"{count}/hour\"\n[[route]]\npath = \"/search/{{what}}\"\nlimit = \"2/hour\"\n\
             [[route]]\npath = \"/closed\"\nlimit = \"blocked\""
        )
    };
    let enforcer = site.guard(&policy(1000))?;
    let key = add_key(&enforcer, "tenant")?;
    let request = keyed("/search/7", &key);
    // In the middle of the path, behind it, and in its method: that one has no path yet.
    let mut begun = Vec::new();
    for cut in [8, 12, 30, 2] {
        for _ in 0..4 {
            let mut connection = site.connect(v4(1))?;
            connection.send(&request[..cut]);
            begun.push((cut, connection));
        }
    }
    apply(&enforcer, &policy(2000))?;
    let mut endings = Endings::new();
    for (cut, connection) in &mut begun {
        connection.send(&request[*cut..]);
        let (ending, _) = connection.answer();
        *endings.entry(ending).or_insert(0) += 1;
    }
    let expected = [(Ending::Reset, 12), (Ending::Answered(200), 2), (Ending::Answered(429), 2)];
    ensure!(endings == expected.into_iter().collect(), "begun ahead: {endings:?}");
    ensure!(origin.await_executed(2)?.len() == 2, "executed: {:?}", origin.executed()?);
    ensure!(enforcer.metric("enforcer_refused_total{service=\"default\",reason=\"conflict\"}")? == 12);
    Ok(())
}
