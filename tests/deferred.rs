//! Handshakes that wait for a request: who sends nothing, or what is refused, is never accepted and wakes no worker; who
//! sends what passes is served, however late and in however many pieces.
//!
//! A connection is accepted once the kernel has made its socket: it counts those (TcpPassiveOpens).

use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use enforcer_tests::client::{Connection, Ending, get, last};
use enforcer_tests::enforcer::Enforcer;
use enforcer_tests::netns::{Link, Way};
use enforcer_tests::origin::{Origin, Workers};
use enforcer_tests::process::{self, wait_for};

const PORT: u16 = 8000;
/// Long enough for what a worker would do at once.
const WHILE: Duration = Duration::from_millis(200);

/// An app of two synchronous workers behind the enforcer, on both families.
struct Site<'a> {
    link: &'a Link,
    enforcer: Enforcer<'a>,
    key: String,
    _origin: Origin,
}

impl<'a> Site<'a> {
    fn new(link: &'a Link, arguments: &[&str]) -> Result<Self> {
        // The wildcard of IPv6 takes IPv4 too.
        let any = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), PORT);
        let origin = Origin::start(&link.server, "plain", Workers::Sync(2), any)?;
        let enforcer = Enforcer::guard(link, PORT, arguments)?;
        let key = enforcer.add_key("tenant", "unlimited")?;
        Ok(Self { link, enforcer, key, _origin: origin })
    }

    fn open(&self, address: IpAddr) -> Result<Connection> {
        self.link.client().run(|| Connection::open(SocketAddr::new(address, PORT)))
    }

    /// A request on a connection of its own.
    fn ask(&self, address: IpAddr, request: &[u8]) -> Result<Ending> {
        let mut connection = self.open(address)?;
        connection.send(request);
        Ok(connection.answer().0)
    }

    fn serves(&self, address: IpAddr) -> Result<()> {
        let ending = self.ask(address, &get("/", Some(&self.key)))?;
        ensure!(ending == Ending::Answered(200), "a good request: {ending:?}");
        Ok(())
    }

    /// Connections that were made in the server's namespace by others.
    fn accepted(&self) -> Result<u64> {
        let table = self.link.server.run(|| Ok(fs::read_to_string("/proc/thread-self/net/snmp")?))?;
        let mut lines = table.lines().filter(|line| line.starts_with("Tcp:")).map(str::split_whitespace);
        let (Some(names), Some(mut values)) = (lines.next(), lines.next()) else {
            anyhow::bail!("no counters of TCP in {table}");
        };
        let place = names.into_iter().position(|name| name == "PassiveOpens").context("no PassiveOpens")?;
        Ok(values.nth(place).context("no value of PassiveOpens")?.parse()?)
    }

    /// How many more connections are accepted while `body` runs, and a while after.
    fn accepted_by(&self, body: impl FnOnce() -> Result<()>) -> Result<u64> {
        let before = self.accepted()?;
        body()?;
        sleep(WHILE);
        Ok(self.accepted()? - before)
    }

    fn deferred(&self) -> Result<u64> {
        self.enforcer.metric("enforcer_events_total{service=\"default\",event=\"deferred\"}")
    }

    /// What the server has of connections to the port, listeners aside.
    fn sockets(&self) -> Result<String> {
        let mut ss = self.link.server.command("ss");
        process::run(ss.args(["--no-header", "--tcp", "--numeric", "state", "connected", "sport", "=", ":8000"]))
    }

    fn set(&self, name: &str, value: &str) -> Result<()> {
        self.link.server.run(|| Ok(fs::write(format!("/proc/sys/net/ipv4/{name}"), value)?))
    }
}

const WAYS: [Way; 4] = [Way::VethNative, Way::VethGeneric, Way::VethTc, Way::LoopbackGeneric];

/// Has the server answer each SYN with a cookie, or none.
const COOKIES: [&str; 2] = ["1", "2"];

#[test]
fn who_sends_nothing_is_not_accepted_and_stops_no_worker() -> Result<()> {
    for way in WAYS {
        let link = Link::new(way)?;
        let site = Site::new(&link, &[])?;
        for cookies in COOKIES {
            site.set("tcp_syncookies", cookies)?;
            for address in [link.v4, link.v6] {
                let case = format!("{way:?}, {address}, cookies {cookies}");
                let before = site.deferred()?;
                let mut silent = Vec::new();
                let accepted = site.accepted_by(|| {
                    silent = (0..4).map(|_| site.open(address)).collect::<Result<Vec<_>>>()?;
                    Ok(())
                })?;
                ensure!(accepted == 0, "{case}: {accepted} of 4 silent connections were accepted");
                // On `lo` that of the health check of the harness, which is silent too, may be among them.
                ensure!(site.deferred()? >= before + 4, "{case}: {} were counted", site.deferred()? - before);
                site.serves(address).with_context(|| case.clone())?;
                // Their turn comes once they send.
                for connection in &mut silent {
                    connection.send(&get("/", Some(&site.key)));
                    let (ending, _) = connection.answer();
                    ensure!(ending == Ending::Answered(200), "{case}: {ending:?}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn who_sends_what_is_refused_is_not_accepted_whatever_is_done_about_it() -> Result<()> {
    for way in WAYS {
        for (mode, refusal) in [("answer", Ending::Answered(401)), ("reset", Ending::Reset), ("drop", Ending::Silent)] {
            let link = Link::new(way)?;
            let site = Site::new(&link, &["--on-refuse", mode])?;
            for (cookies, request) in COOKIES.into_iter().zip([get("/", None), last(get("/", None))]) {
                site.set("tcp_syncookies", cookies)?;
                let case = format!("{way:?}, {mode}, cookies {cookies}");
                let accepted = site.accepted_by(|| {
                    for address in [link.v4, link.v6] {
                        let mut connection = site.open(address)?;
                        connection.set_patience(WHILE)?;
                        connection.send(&request);
                        let (ending, _) = connection.answer();
                        let is_right = ending == refusal || mode == "reset" && ending == Ending::Silent;
                        ensure!(is_right, "{case}, {address}: {ending:?}");
                    }
                    Ok(())
                })?;
                ensure!(accepted == 0, "{case}: {accepted} were accepted");
                site.serves(link.v4).with_context(|| case.clone())?;
            }
        }
    }
    Ok(())
}

#[test]
fn who_begins_late_and_goes_on_in_pieces_is_served() -> Result<()> {
    for way in WAYS {
        let link = Link::new(way)?;
        let site = Site::new(&link, &[])?;
        for cookies in COOKIES {
            site.set("tcp_syncookies", cookies)?;
            let mut connection = site.open(link.v4)?;
            // Its SYN-ACK comes again meanwhile.
            sleep(Duration::from_millis(1500));
            let request = get("/", Some(&site.key));
            let pieces: Vec<&[u8]> = request.chunks(7).collect();
            connection.send_slowly(&pieces, Duration::from_millis(20));
            let (ending, _) = connection.answer();
            ensure!(ending == Ending::Answered(200), "{way:?}, cookies {cookies}: {ending:?}");
        }
    }
    Ok(())
}

#[test]
fn an_observer_defers_nothing() -> Result<()> {
    for way in WAYS {
        let link = Link::new(way)?;
        let site = Site::new(&link, &["--mode", "observe"])?;
        let mut connections = Vec::new();
        let accepted = site.accepted_by(|| {
            connections = (0..2).map(|_| site.open(link.v4)).collect::<Result<Vec<_>>>()?;
            Ok(())
        })?;
        ensure!(accepted == 2, "{way:?}: {accepted} of 2 were accepted");
        ensure!(site.deferred()? == 0, "{way:?}: {} were counted", site.deferred()?);
    }
    Ok(())
}

#[test]
fn a_connection_is_accepted_with_its_first_good_request_and_goes_on() -> Result<()> {
    let upload = |key: Option<&str>, size: usize| {
        let field = key.map(|key| format!("X-API-Key: {key}\r\n")).unwrap_or_default();
        let head = format!("POST /upload HTTP/1.1\r\nHost: app.test\r\n{field}Content-Length: {size}\r\n\r\n");
        [head.into_bytes(), vec![b'u'; size]].concat()
    };
    for way in WAYS {
        let link = Link::new(way)?;
        let any = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), PORT);
        let origin = Origin::start(&link.server, "plain", Workers::Threads(2), any)?;
        let enforcer = Enforcer::guard(&link, PORT, &[])?;
        let key = enforcer.add_key("tenant", "unlimited")?;
        let site = Site { link: &link, enforcer, key, _origin: origin };
        let good = site.key.as_str();
        for address in [link.v4, link.v6] {
            let mut connection = site.open(address)?;
            let mut ask = |request: Vec<u8>, status: u16, accepts: u64| -> Result<()> {
                let accepted = site.accepted_by(|| {
                    connection.send(&request);
                    let (ending, _) = connection.answer();
                    ensure!(ending == Ending::Answered(status), "{ending:?}, not {status}");
                    Ok(())
                })?;
                ensure!(accepted == accepts, "{status}: {accepted} were accepted");
                Ok(())
            };
            let mut all = || -> Result<()> {
                ask(get("/", None), 401, 0)?;
                ask(upload(None, 10), 401, 0)?;
                ask(upload(None, 20_000), 401, 0)?;
                ask(get("/", Some("nobody_knows_this_key")), 401, 0)?;
                ask(upload(Some(good), 9000), 200, 1)?;
                ask(get("/", None), 401, 0)?;
                ask(get("/download/40000", Some(good)), 200, 0)
            };
            all().with_context(|| format!("{way:?}, {address}"))?;
        }
    }
    Ok(())
}

#[test]
fn a_client_that_leaves_behind_refusals_leaves_nothing_and_is_seen_off() -> Result<()> {
    for way in WAYS {
        let link = Link::new(way)?;
        let site = Site::new(&link, &[])?;
        let accepted = site.accepted_by(|| {
            for address in [link.v4, link.v6] {
                let mut connection = site.open(address)?;
                for _ in 0..2 {
                    connection.send(&get("/", None));
                    let (ending, _) = connection.answer();
                    ensure!(ending == Ending::Answered(401), "{way:?}, {address}: {ending:?}");
                }
                ensure!(site.sockets()?.contains("SYN-RECV"), "{way:?}: what waits is gone: {}", site.sockets()?);
                connection.finish();
                let (ending, _) = connection.answer();
                ensure!(ending == Ending::Closed, "{way:?}, {address}: {ending:?}");
                // Before the kernel would look after it by itself, a second behind the SYN.
                let (begin, mut left) = (Instant::now(), site.sockets()?);
                while !left.is_empty() && begin.elapsed() < WHILE {
                    left = site.sockets()?;
                }
                ensure!(left.is_empty(), "{way:?}, {address}: left: {left}");
            }
            Ok(())
        })?;
        ensure!(accepted == 0, "{way:?}: {accepted} were accepted");
    }
    Ok(())
}

#[test]
fn who_waits_for_longer_than_the_kernel_does_learns_of_it() -> Result<()> {
    let link = Link::new(Way::VethNative)?;
    let site = Site::new(&link, &[])?;
    // Given up after 1 s and 2 s.
    site.set("tcp_synack_retries", "1")?;
    let mut silent = site.open(link.v4)?;
    let mut refused = site.open(link.v6)?;
    refused.send(&get("/", None));
    let (ending, _) = refused.answer();
    ensure!(ending == Ending::Answered(401), "{ending:?}");
    wait_for("the server to give up", || Ok(site.sockets()?.is_empty().then_some(())))?;
    for connection in [&mut silent, &mut refused] {
        connection.send(&get("/", Some(&site.key)));
        let (ending, _) = connection.answer();
        ensure!(ending == Ending::Reset, "{ending:?}");
    }
    site.serves(link.v4)
}
