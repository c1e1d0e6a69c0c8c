//! Clients that send half a head, or a byte now and then, and connections older than the guard: what ends them frees the
//! workers, and honest slowness is left alone. Who sends nothing at all is in `deferred`.
//!
//! The synchronous workers are two, and each serves one connection at a time: two connections that send half a head stop
//! the whole app. Lower bounds of times only are asserted, which a loaded machine does not break.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use enforcer_tests::client::{Connection, Ending, get};
use enforcer_tests::enforcer::Enforcer;
use enforcer_tests::netns::{Link, Namespace, Way};
use enforcer_tests::origin::{Origin, Workers};
use enforcer_tests::process::wait_for;
use nix::sys::signal::Signal;

const PORT: u16 = 8000;
/// The time for a head, where it is short.
const SHORT: Duration = Duration::from_secs(2);
/// Longer than the time for a head and two of the daemon's rounds.
const LONG: Duration = Duration::from_secs(5);

/// What a client is slow at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slowness {
    HalfHead,
    /// A byte of a head every now and then.
    Drip,
}

/// A link with the app behind both families, served by `workers`.
fn site(way: Way, workers: Workers) -> Result<(Link, Origin)> {
    let link = Link::new(way)?;
    // The wildcard of IPv6 takes IPv4 too, as IPv4-mapped connections.
    let any = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), PORT);
    let origin = Origin::start(&link.server, "slow", workers, any)?;
    Ok((link, origin))
}

fn open(link: &Link, address: IpAddr) -> Result<Connection> {
    link.client().run(|| Connection::open(SocketAddr::new(address, PORT)))
}

/// Opens connections and begins a head on each.
fn begin_all(link: &Link, address: IpAddr, count: usize, head: &[u8]) -> Result<Vec<Connection>> {
    let begin = |_| {
        // So that their order is one in ms, too.
        sleep(Duration::from_millis(50));
        let mut connection = open(link, address)?;
        connection.send(&head[..20]);
        Ok(connection)
    };
    (0..count).map(begin).collect()
}

/// A request on a connection of its own.
fn serve(link: &Link, address: IpAddr, key: &str) -> Result<Ending> {
    let mut connection = open(link, address)?;
    connection.send(&get("/", Some(key)));
    Ok(connection.answer().0)
}

/// The last a connection has to say, within a time that an app that works needs by far.
fn ending_within(connection: &mut Connection, time: Duration) -> Result<Ending> {
    connection.set_patience(time)?;
    Ok(connection.answer().0)
}

fn reaped(enforcer: &Enforcer<'_>, cause: &str) -> Result<u64> {
    enforcer.metric(&format!("enforcer_reaped_total{{cause=\"{cause}\"}}"))
}

fn would_reap(enforcer: &Enforcer<'_>, cause: &str) -> Result<u64> {
    enforcer.metric(&format!("enforcer_would_reap_total{{cause=\"{cause}\"}}"))
}

fn nothing_reaped(enforcer: &Enforcer<'_>) -> Result<()> {
    let metrics = enforcer.metrics()?;
    let ended: Vec<_> =
        metrics.lines().filter(|line| line.starts_with("enforcer_reaped_total") && !line.ends_with(" 0")).collect();
    ensure!(ended.is_empty(), "ended: {ended:?}");
    Ok(())
}

/// Opens as many connections as there are workers, each as slow as `slowness` says, and says how each ended for the
/// client, and not before which time.
fn be_slow(link: &Link, address: IpAddr, slowness: Slowness) -> Result<Vec<(Ending, Duration)>> {
    let head = get("/", Some("any_key_will_do"));
    let one = || -> Result<(Ending, Duration)> {
        let mut connection = open(link, address)?;
        let begin = Instant::now();
        match slowness {
            Slowness::HalfHead => connection.send(&head[..head.len() / 2]),
            Slowness::Drip => {
                for byte in head.chunks(1) {
                    connection.send(byte);
                    connection.set_patience(Duration::from_millis(300))?;
                    match connection.answer().0 {
                        Ending::Silent => {}
                        ending => return Ok((ending, begin.elapsed())),
                    }
                }
            }
        }
        Ok((ending_within(&mut connection, 4 * LONG)?, begin.elapsed()))
    };
    scope(|scope| {
        let clients: Vec<_> = (0..2).map(|_| scope.spawn(one)).collect();
        clients.into_iter().map(|client| client.join().ok().context("a client panicked")?).collect()
    })
}

#[test]
fn without_the_bound_two_slow_connections_stop_the_app() -> Result<()> {
    // What is prevented; and proof that the other tests would show it.
    let (link, _origin) = site(Way::LoopbackGeneric, Workers::Sync(2))?;
    let enforcer = Enforcer::guard(&link, PORT, &["--head-timeout", "1h"])?;
    let key = enforcer.add_key("tenant", "unlimited")?;
    ensure!(serve(&link, link.v4, &key)? == Ending::Answered(200), "the app does not serve");
    let mut half = begin_all(&link, link.v4, 2, &get("/", Some(&key)))?;
    let mut request = open(&link, link.v4)?;
    request.send(&get("/", Some(&key)));
    let ending = ending_within(&mut request, LONG)?;
    ensure!(ending == Ending::Silent, "two halves of heads do not stop two workers: {ending:?}");
    for connection in &mut half {
        connection.finish();
    }
    ensure!(ending_within(&mut request, 4 * LONG)? == Ending::Answered(200), "the app does not recover");
    nothing_reaped(&enforcer)
}

#[test]
fn slow_connections_are_reset_on_both_sides_after_the_time_for_a_head() -> Result<()> {
    for way in [Way::VethNative, Way::LoopbackGeneric] {
        let (link, origin) = site(way, Workers::Sync(2))?;
        let enforcer = Enforcer::guard(&link, PORT, &["--head-timeout", "2s"])?;
        let key = enforcer.add_key("tenant", "unlimited")?;
        for (address, slowness, cause) in [
            (link.v4, Slowness::HalfHead, "slow_head"),
            (link.v6, Slowness::HalfHead, "slow_head"),
            (link.v4, Slowness::Drip, ""),
        ] {
            let case = format!("{way:?}, {address}, {slowness:?}");
            let before = reaped(&enforcer, cause)?;
            for (ending, after) in be_slow(&link, address, slowness)? {
                // Who is about to send when the RST comes learns of it by that, and reads an end.
                let is_reset = ending == Ending::Reset || slowness == Slowness::Drip && ending == Ending::Closed;
                ensure!(is_reset, "{case}: {ending:?}");
                ensure!(after >= SHORT, "{case}: ended after {after:?} already");
            }
            if slowness != Slowness::Drip {
                // The daemon counts behind the RST.
                wait_for("the count", || Ok((reaped(&enforcer, cause)? >= before + 2).then_some(())))?;
                ensure!(
                    reaped(&enforcer, cause)? == before + 2,
                    "{case}: {} counted",
                    reaped(&enforcer, cause)? - before
                );
            }
            let ending = serve(&link, address, &key)?;
            ensure!(ending == Ending::Answered(200), "{case}: the workers are not free: {ending:?}");
        }
        ensure!(origin.executed_with("any_key_will_do")? == 0, "a slow request was executed");
        let status = enforcer.cli(&["status"])?;
        ensure!(status.contains("slow_head"), "status shows no ended connections: {status}");
    }
    Ok(())
}

#[test]
fn slow_bodies_slow_answers_and_idle_connections_are_left_alone() -> Result<()> {
    for way in [Way::VethNative, Way::LoopbackGeneric] {
        let (link, _origin) = site(way, Workers::Threads(2))?;
        let enforcer = Enforcer::guard(&link, PORT, &["--head-timeout", "1s", "--max-open-heads", "1"])?;
        let key = enforcer.add_key("tenant", "unlimited")?;
        let served = |connection: &mut Connection, what: &str| -> Result<()> {
            let ending = ending_within(connection, 6 * LONG)?;
            ensure!(ending == Ending::Answered(200), "{way:?}, {what}: {ending:?}");
            Ok(())
        };
        let upload = || -> Result<()> {
            let mut connection = open(&link, link.v4)?;
            let head =
                format!("POST /upload HTTP/1.1\r\nHost: app.test\r\nX-API-Key: {key}\r\nContent-Length: 20\r\n\r\n");
            connection.send(head.as_bytes());
            connection.send_slowly(&[b"x".as_slice(); 20], LONG / 20);
            served(&mut connection, "a slow upload")
        };
        let chunks = || -> Result<()> {
            let mut connection = open(&link, link.v6)?;
            let head = format!(
                "POST /upload HTTP/1.1\r\nHost: app.test\r\nX-API-Key: {key}\r\nTransfer-Encoding: chunked\r\n\r\n"
            );
            connection.send(head.as_bytes());
            connection.send_slowly(&[b"1\r\nx\r\n".as_slice(); 10], LONG / 10);
            connection.send(b"0\r\n\r\n");
            served(&mut connection, "a slow chunked upload")
        };
        let wait = || -> Result<()> {
            let mut connection = open(&link, link.v6)?;
            connection.send(&get(&format!("/after/{:.1}", LONG.as_secs_f64()), Some(&key)));
            served(&mut connection, "a slow answer")
        };
        let idle = || -> Result<()> {
            let mut connection = open(&link, link.v4)?;
            for _ in 0..2 {
                connection.send(&get("/", Some(&key)));
                served(&mut connection, "an idle connection")?;
                sleep(LONG);
            }
            connection.send(&get("/", Some(&key)));
            served(&mut connection, "an idle connection")
        };
        scope(|scope| {
            let clients = [scope.spawn(upload), scope.spawn(chunks), scope.spawn(wait), scope.spawn(idle)];
            clients.into_iter().try_for_each(|client| client.join().ok().context("a client panicked")?)
        })?;
        nothing_reaped(&enforcer)?;
    }
    Ok(())
}

#[test]
fn of_one_source_the_oldest_connections_beyond_the_bound_are_reset() -> Result<()> {
    let (link, _origin) = site(Way::VethNative, Workers::Threads(2))?;
    let enforcer = Enforcer::guard(&link, PORT, &["--head-timeout", "1h", "--max-open-heads", "3"])?;
    let key = enforcer.add_key("tenant", "unlimited")?;
    let request = get("/", Some(&key));
    let mut of_v4 = begin_all(&link, link.v4, 5, &request)?;
    // Another source, within its own bound.
    let mut of_v6 = begin_all(&link, link.v6, 3, &request)?;
    for (number, connection) in of_v4.iter_mut().take(2).enumerate() {
        let ending = ending_within(connection, 4 * LONG)?;
        ensure!(ending == Ending::Reset, "number {number} of 5: {ending:?}");
    }
    sleep(SHORT);
    for connection in of_v4.iter_mut().skip(2).chain(&mut of_v6) {
        connection.send(&request[20..]);
        let ending = ending_within(connection, 4 * LONG)?;
        ensure!(ending == Ending::Answered(200), "one of the younger ones: {ending:?}");
    }
    ensure!(reaped(&enforcer, "source")? == 2, "{} counted", reaped(&enforcer, "source")?);
    Ok(())
}

#[test]
fn an_observer_ends_nothing_and_counts_each_connection_once() -> Result<()> {
    let (link, _origin) = site(Way::LoopbackGeneric, Workers::Threads(2))?;
    let mut kept = open(&link, link.v4)?;
    kept.send(&get("/", None));
    ensure!(ending_within(&mut kept, 4 * LONG)? == Ending::Answered(200), "before the guard");
    let enforcer = Enforcer::guard(&link, PORT, &["--mode", "observe", "--head-timeout", "1s"])?;
    ensure!(would_reap(&enforcer, "existing")? == 1, "{} existing", would_reap(&enforcer, "existing")?);
    let request = get("/", None);
    let mut silent = open(&link, link.v4)?;
    let mut half = open(&link, link.v6)?;
    half.send(&request[..20]);
    wait_for("the counts", || {
        Ok((would_reap(&enforcer, "silent")? > 0 && would_reap(&enforcer, "slow_head")? > 0).then_some(()))
    })?;
    sleep(LONG / 2);
    let counts = [would_reap(&enforcer, "silent")?, would_reap(&enforcer, "slow_head")?];
    ensure!(counts == [1, 1], "counted: {counts:?}");
    nothing_reaped(&enforcer)?;
    silent.send(&request);
    half.send(&request[20..]);
    kept.send(&request);
    for connection in [&mut silent, &mut half, &mut kept] {
        ensure!(ending_within(connection, 4 * LONG)? == Ending::Answered(200), "an observed connection");
    }
    Ok(())
}

/// Connections that are older than the guard, each with what has come on it.
struct Older {
    /// A request, which was answered.
    idle: Connection,
    /// A request whose answer takes its time.
    waiting: Connection,
    /// Half a head.
    half: Connection,
    /// Nothing.
    silent: Connection,
}

impl Older {
    fn open(link: &Link, key: &str) -> Result<Self> {
        let mut older = Self {
            idle: open(link, link.v4)?,
            waiting: open(link, link.v6)?,
            half: open(link, link.v4)?,
            silent: open(link, link.v6)?,
        };
        older.idle.send(&get("/", Some(key)));
        ensure!(ending_within(&mut older.idle, 4 * LONG)? == Ending::Answered(200), "before the guard");
        older.waiting.send(&get("/after/10.0", Some(key)));
        older.half.send(&get("/", Some(key))[..20]);
        Ok(older)
    }
}

/// An enforcer that is stopped, with a key in its store, and `existing` in its file.
fn stopped<'a>(link: &'a Link, existing: &str) -> Result<(Enforcer<'a>, String)> {
    let mut enforcer = Enforcer::guard(link, PORT, &[])?;
    let key = enforcer.add_key("tenant", "unlimited")?;
    enforcer.cli(&["detach"])?;
    enforcer.daemon()?.wait()?;
    enforcer.configure(&format!("existing = {existing:?}"))?;
    Ok((enforcer, key))
}

#[test]
fn connections_older_than_the_guard_are_reset_unless_nothing_has_come_on_them() -> Result<()> {
    for way in [Way::VethNative, Way::LoopbackGeneric] {
        let (link, _origin) = site(way, Workers::Threads(2))?;
        let (mut enforcer, key) = stopped(&link, "reset")?;
        let mut older = Older::open(&link, &key)?;
        enforcer.start()?;
        for (what, connection) in
            [("idle", &mut older.idle), ("waiting", &mut older.waiting), ("half", &mut older.half)]
        {
            let ending = ending_within(connection, LONG)?;
            ensure!(ending == Ending::Reset, "{way:?}, {what}: {ending:?}");
        }
        older.silent.send(&get("/", Some(&key)));
        let ending = ending_within(&mut older.silent, 4 * LONG)?;
        ensure!(ending == Ending::Answered(200), "{way:?}, silent: {ending:?}");
        ensure!(reaped(&enforcer, "existing")? == 3, "{} counted", reaped(&enforcer, "existing")?);
        let log = enforcer.log()?;
        ensure!(log.contains("3 connections are older than the guard") && log.contains("3 reset"), "{log}");
    }
    Ok(())
}

#[test]
fn a_silent_connection_that_is_older_than_the_guard_is_reset_after_the_time_for_a_head() -> Result<()> {
    for way in [Way::VethNative, Way::LoopbackGeneric] {
        let (link, _origin) = site(way, Workers::Sync(2))?;
        let (mut enforcer, key) = stopped(&link, "reset")?;
        enforcer.configure("head_timeout = \"2s\"")?;
        let mut silent = [open(&link, link.v4)?, open(&link, link.v6)?];
        enforcer.start()?;
        for connection in &mut silent {
            let ending = ending_within(connection, 4 * LONG)?;
            ensure!(ending == Ending::Reset, "{way:?}: {ending:?}");
        }
        wait_for("the count", || Ok((reaped(&enforcer, "silent")? == 2).then_some(())))?;
        let ending = serve(&link, link.v4, &key)?;
        ensure!(ending == Ending::Answered(200), "{way:?}: the workers are not free: {ending:?}");
    }
    Ok(())
}

#[test]
fn adopted_connections_go_on_until_their_client_sends_again() -> Result<()> {
    for way in [Way::VethNative, Way::LoopbackGeneric] {
        let (link, origin) = site(way, Workers::Threads(2))?;
        let (mut enforcer, key) = stopped(&link, "adopt")?;
        let mut older = Older::open(&link, &key)?;
        enforcer.start()?;
        let ending = ending_within(&mut older.waiting, 6 * LONG)?;
        ensure!(ending == Ending::Answered(200), "{way:?}, waiting: {ending:?}");
        older.silent.send(&get("/", Some(&key)));
        let ending = ending_within(&mut older.silent, 4 * LONG)?;
        ensure!(ending == Ending::Answered(200), "{way:?}, silent: {ending:?}");
        nothing_reaped(&enforcer)?;
        let executed = origin.executed()?.len();
        older.idle.send(&get("/", Some(&key)));
        older.half.send(&get("/", Some(&key))[20..]);
        for (what, connection) in [("idle", &mut older.idle), ("half", &mut older.half)] {
            let ending = ending_within(connection, 4 * LONG)?;
            ensure!(ending == Ending::Reset, "{way:?}, {what}: {ending:?}");
        }
        ensure!(origin.executed()?.len() == executed, "a request on an adopted connection was executed");
        ensure!(enforcer.log()?.contains("left alone until the client sends again"), "{}", enforcer.log()?);
    }
    Ok(())
}

#[test]
fn a_guard_that_is_taken_over_keeps_its_connections() -> Result<()> {
    let (link, _origin) = site(Way::VethNative, Workers::Threads(2))?;
    let (mut enforcer, key) = stopped(&link, "adopt")?;
    let mut adopted = open(&link, link.v6)?;
    adopted.send(&get("/", None));
    ensure!(ending_within(&mut adopted, 4 * LONG)? == Ending::Answered(200), "before the guard");
    enforcer.start()?;
    // For the daemons that take over.
    enforcer.configure("existing = \"reset\"")?;
    let mut kept = open(&link, link.v4)?;
    for _ in 0..3 {
        kept.send(&get("/", Some(&key)));
        let ending = ending_within(&mut kept, 4 * LONG)?;
        ensure!(ending == Ending::Answered(200), "a kept connection: {ending:?}");
        enforcer.stop(Signal::SIGKILL)?;
        enforcer.start()?;
    }
    let ending = ending_within(&mut adopted, SHORT)?;
    ensure!(ending == Ending::Silent, "an adopted connection: {ending:?}");
    nothing_reaped(&enforcer)
}

#[test]
fn a_slow_head_that_is_forwarded_is_counted_once_and_not_ended() -> Result<()> {
    let [client, router, server] = [Namespace::new()?, Namespace::new()?, Namespace::new()?];
    for (near, name, far, peer, net) in [(&router, "rt0", &client, "cli0", 1), (&router, "rt1", &server, "srv0", 2)] {
        near.ip(&["link", "add", name, "type", "veth", "peer", "name", peer, "netns", far.name()])?;
        for (namespace, interface, host) in [(near, name, 1), (far, peer, 2)] {
            namespace.ip(&["address", "add", &format!("10.78.{net}.{host}/24"), "dev", interface])?;
            namespace.ip(&["link", "set", interface, "up"])?;
        }
        far.ip(&["route", "add", "default", "via", &format!("10.78.{net}.1")])?;
    }
    // The thread's namespace decides whose setting this is.
    router.run(|| Ok(std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?))?;
    let address = SocketAddr::new([10, 78, 2, 2].into(), PORT);
    let _origin = Origin::start(&server, "slow", Workers::Threads(2), address)?;
    let port = PORT.to_string();
    // Both sides: what the server agreed to and has accepted is told by its own packets.
    let guard = ["--interface", "rt0,rt1", "--port", &port, "--head-timeout", "1s"];
    let mut enforcer = Enforcer::new(&router, &guard)?;
    enforcer.start()?;
    let key = enforcer.add_key("tenant", "unlimited")?;
    let request = get("/", Some(&key));
    let mut half = client.run(|| Connection::open(address))?;
    half.send(&request[..20]);
    wait_for("the count", || Ok((would_reap(&enforcer, "forwarded")? > 0).then_some(())))?;
    ensure!(ending_within(&mut half, SHORT)? == Ending::Silent, "it was ended");
    ensure!(would_reap(&enforcer, "forwarded")? == 1, "{} counted", would_reap(&enforcer, "forwarded")?);
    nothing_reaped(&enforcer)
}
