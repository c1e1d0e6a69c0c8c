//! Sources that go on sending what is refused: answered, then reset, then kept out for a time that grows, whatever the
//! daemon does meanwhile; and that nobody else is.
//!
//! The rates and times are small, so that a few dozen requests bring a penalty. Lower bounds of times are asserted, and
//! what the program says of the upper ones, neither of which a loaded machine breaks.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use enforcer_ebpf::abi;
use enforcer_ebpf::source::{Record, Source};
use enforcer_tests::client::{Connection, Ending, get};
use enforcer_tests::enforcer::Enforcer;
use enforcer_tests::netns::{Link, Namespace, Way};
use enforcer_tests::origin::{Origin, Workers};
use enforcer_tests::packet::{Frame, flag};
use enforcer_tests::process::wait_for;
use enforcer_tests::raw::{Offload, Wire};
use nix::sys::signal::Signal;
use serde_json::Value;

const PORT: u16 = 8000;
const ANSWERS: f64 = 5.0;
const TOLERATED: f64 = 20.0;
const RULES: &str = "answers = \"5/second\"\ntolerated = \"20/second\"";
/// Time for a connection, of which an honest one needs a thousandth.
const SHORT: Duration = Duration::from_millis(300);

/// How a request ended, or that there was no connection for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    Served,
    Answered(u16),
    Reset,
    Silent,
    KeptOut,
}

/// What becomes of requests one after the other.
struct Flood {
    /// How those ended that had a connection.
    fates: BTreeMap<Fate, usize>,
    /// From the first to the last of those.
    time: Duration,
    /// When the last of those was sent: the penalty began thereafter.
    last: Instant,
}

/// A link with the app behind both families, and clients at several addresses.
struct Site {
    link: Link,
    origin: Origin,
}

impl Site {
    fn new(way: Way) -> Result<Self> {
        let link = Link::new(way)?;
        let interface = if link.interface == "lo" { "lo" } else { "cli0" };
        for host in [11, 12, 13] {
            for address in [
                format!("10.77.0.{host}/24"),
                format!("10.77.1.{host}/24"),
                format!("fd77::{host}/64"),
                format!("fd77:0:0:1::{host}/64"),
            ] {
                let nodad: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
                link.client().ip(&[&["address", "add", &address, "dev", interface], nodad].concat())?;
            }
        }
        if interface == "cli0" {
            link.server.ip(&["route", "add", "10.77.1.0/24", "dev", "srv0"])?;
            link.server.ip(&["-6", "route", "add", "fd77:0:0:1::/64", "dev", "srv0"])?;
        }
        // The wildcard of IPv6 takes IPv4 too, as IPv4-mapped connections.
        let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), PORT);
        let origin = Origin::start(&link.server, "plain", Workers::Sync(2), any)?;
        Ok(Self { link, origin })
    }

    /// Guards it, with these rules behind those of all tests.
    fn guard(&self, rules: &str) -> Result<Enforcer<'_>> {
        let port = PORT.to_string();
        let link = &self.link;
        let arguments = ["--interface", &link.interface, "--port", &port, "--hook", link.hook(), "--penalty", "on"];
        let mut enforcer = Enforcer::new(&link.server, &arguments)?;
        enforcer.configure(&format!("[penalty]\n{RULES}\n{rules}\n"))?;
        enforcer.start()?;
        Ok(enforcer)
    }

    fn server(&self, source: IpAddr) -> SocketAddr {
        SocketAddr::new(if source.is_ipv4() { self.link.v4 } else { self.link.v6 }, PORT)
    }

    /// A request on a connection of its own.
    fn ask(&self, source: IpAddr, key: Option<&str>) -> Result<Fate> {
        self.link.client().run(|| Ok(self.ask_here(source, key)))
    }

    /// Likewise, on a thread that is where the clients are.
    fn ask_here(&self, source: IpAddr, key: Option<&str>) -> Fate {
        let Ok(mut connection) = Connection::open_from(source, self.server(source), SHORT) else {
            return Fate::KeptOut;
        };
        connection.send(&get("/", key));
        // A worker may be busy with another; only what nobody answers takes so long.
        let patience = if key.is_some() { Duration::from_secs(10) } else { SHORT };
        let _ = connection.set_patience(patience);
        match connection.answer().0 {
            Ending::Answered(200) => Fate::Served,
            Ending::Answered(status) => Fate::Answered(status),
            Ending::Reset | Ending::Closed => Fate::Reset,
            Ending::Silent => Fate::Silent,
        }
    }

    /// Sends unkeyed requests one after the other until the source is kept out.
    fn flood(&self, source: IpAddr) -> Result<Flood> {
        self.link.client().run(|| {
            let begin = Instant::now();
            let (mut fates, mut last) = (BTreeMap::new(), begin);
            for _ in 0..1000 {
                let now = Instant::now();
                let fate = self.ask_here(source, None);
                if fate == Fate::KeptOut {
                    return Ok(Flood { fates, time: last - begin, last });
                }
                last = now;
                *fates.entry(fate).or_insert(0) += 1;
            }
            anyhow::bail!("{source} sent 1000 requests that were refused and is not kept out: {fates:?}")
        })
    }

    /// Likewise, many at once: their connections are open when the penalty begins.
    fn rush(&self, source: IpAddr) -> Result<()> {
        self.link.client().run(|| {
            let kept_out = AtomicBool::new(false);
            scope(|scope| {
                for _ in 0..10 {
                    scope.spawn(|| {
                        let refused =
                            |_| !kept_out.load(Ordering::Relaxed) && self.ask_here(source, None) != Fate::KeptOut;
                        if !(0..100).all(refused) {
                            kept_out.store(true, Ordering::Relaxed);
                        }
                    });
                }
            });
            ensure!(kept_out.into_inner(), "{source} sent 1000 requests at once and is not kept out");
            Ok(())
        })
    }

    /// Waits until the source can connect again, and says how its request ended and how long that took.
    fn await_entry(&self, source: IpAddr, since: Instant) -> Result<(Fate, Duration)> {
        wait_for("the end of a penalty", || {
            let fate = self.ask(source, None)?;
            Ok((fate != Fate::KeptOut).then_some((fate, since.elapsed())))
        })
    }
}

fn v4(net: u8, host: u8) -> IpAddr {
    [10, 77, net, host].into()
}

fn v6(net: u16, host: u16) -> IpAddr {
    Ipv6Addr::new(0xfd77, 0, 0, net, 0, 0, 0, host).into()
}

/// What the CLI lists of a source, by how it is written there.
fn listed(enforcer: &Enforcer<'_>, source: &str) -> Result<Option<Value>> {
    let listing = enforcer.json(&["penalty", "ls", "--all"])?;
    let sources = listing["sources"].as_array().context("no list of sources")?;
    Ok(sources.iter().find(|listed| listed["source"] == source).cloned())
}

fn penalties(enforcer: &Enforcer<'_>) -> Result<u64> {
    enforcer.metric("enforcer_events_total{service=\"default\",event=\"penalty\"}")
}

/// From the first answer to the end of the second penalty, for one source, while another is served.
fn escalates(site: &Site, enforcer: &Enforcer<'_>, source: IpAddr, name: &str) -> Result<()> {
    let Flood { fates, time, last } = site.flood(source)?;
    let count = |fate| fates.get(&fate).copied().unwrap_or(0) as f64;
    let (answered, reset, silent) = (count(Fate::Answered(401)), count(Fate::Reset), count(Fate::Silent));
    let seconds = time.as_secs_f64();
    ensure!(answered + reset + silent == fates.values().sum::<usize>() as f64, "{fates:?}");
    ensure!(
        (ANSWERS..=ANSWERS + ANSWERS * seconds + 1.0).contains(&answered),
        "{answered} answers in {time:?}: {fates:?}"
    );
    // The one that brings the penalty is met with silence, and a RST when it is sent again.
    let all = answered + reset + silent;
    ensure!(
        (TOLERATED + 1.0..=TOLERATED + TOLERATED * seconds + 2.0).contains(&all) && silent <= 1.0,
        "{all} refusals in {time:?}: {fates:?}"
    );
    let listed_now = listed(enforcer, name)?.context("it is not listed")?;
    ensure!(listed_now["strikes"] == 1, "{listed_now}");

    let (fate, time) = site.await_entry(source, last)?;
    ensure!(fate == Fate::Answered(401), "after its penalty it is met with {fate:?}");
    ensure!(time >= Duration::from_secs(1), "the first penalty took {time:?}");

    let begin = Instant::now();
    site.rush(source)?;
    let again = listed(enforcer, name)?.context("it is not listed")?;
    let remaining = again["remaining_ns"].as_u64().unwrap_or(0);
    ensure!(again["strikes"] == 2, "{again}");
    ensure!(remaining <= 2_000_000_000, "{again}");
    let (fate, time) = site.await_entry(source, begin)?;
    ensure!(time >= Duration::from_secs(2), "the second penalty took {time:?} and ended with {fate:?}");
    Ok(())
}

#[test]
fn refusals_are_answered_then_reset_then_bring_penalties_that_grow_and_another_address_is_served_all_along()
-> Result<()> {
    for way in Way::ALL {
        let site = Site::new(way)?;
        let enforcer = site.guard("first = \"1s\"")?;
        let key = enforcer.add_key("tenant", "unlimited")?;
        let over = AtomicBool::new(false);
        let served = scope(|scope| -> Result<usize> {
            let good = scope.spawn(|| {
                site.link.client().run(|| {
                    let mut served = 0;
                    while !over.load(Ordering::Relaxed) {
                        for source in [v4(0, 12), v6(1, 0x12)] {
                            let begin = Instant::now();
                            let fate = site.ask_here(source, Some(&key));
                            let time = begin.elapsed();
                            ensure!(fate == Fate::Served, "{source} is met with {fate:?} after {time:?}");
                            served += 1;
                        }
                        sleep(Duration::from_millis(5));
                    }
                    Ok(served)
                })
            });
            let (site, enforcer) = (&site, &enforcer);
            let bad = [(v4(0, 11), "10.77.0.11/32"), (v6(0, 0x11), "fd77::/64")]
                .map(|(source, name)| (name, scope.spawn(move || escalates(site, enforcer, source, name))));
            let escalated = bad.into_iter().try_for_each(|(name, bad)| match bad.join() {
                Ok(escalated) => escalated.context(name),
                Err(_) => anyhow::bail!("the client at {name} panicked"),
            });
            over.store(true, Ordering::Relaxed);
            let Ok(good) = good.join() else { anyhow::bail!("the good client panicked") };
            escalated.and(good)
        })
        .map_err(|error| error.context(format!("{way:?}, daemon: {:?}", enforcer.log())))?;
        ensure!(served > 20, "the other address sent {served} requests only");
        ensure!(penalties(&enforcer)? == 4, "{} penalties on {way:?}", penalties(&enforcer)?);
        let dropped = enforcer.metric("enforcer_events_total{service=\"default\",event=\"penalised\"}")?;
        ensure!(dropped > 4, "{dropped} packets were dropped");
        site.origin.await_executed(served)?;
    }
    Ok(())
}

#[test]
fn a_penalty_outlives_the_daemon_is_taken_over_and_ends_without_one() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let mut enforcer = site.guard("first = \"5s\"")?;
    let last = site.flood(v4(0, 11))?.last;
    enforcer.stop(Signal::SIGKILL)?;
    ensure!(site.ask(v4(0, 11), None)? == Fate::KeptOut, "let in while no daemon runs");
    enforcer.start()?;
    let taken_over = listed(&enforcer, "10.77.0.11/32")?.context("the next daemon does not list it")?;
    ensure!(taken_over["strikes"] == 1 && taken_over["until"].is_string(), "{taken_over}");
    ensure!(site.ask(v4(0, 11), None)? == Fate::KeptOut, "let in by the next daemon's start");
    enforcer.stop(Signal::SIGKILL)?;
    let (fate, time) = site.await_entry(v4(0, 11), last)?;
    ensure!(fate == Fate::Answered(401), "after its penalty it is met with {fate:?}");
    ensure!(time >= Duration::from_secs(5), "the penalty took {time:?}");
    Ok(())
}

/// A client with a key sends beside a flood, each from this address; how its requests ended.
fn beside_a_flood(site: &Site, key: &str, good: IpAddr, bad: IpAddr) -> Result<BTreeMap<Fate, usize>> {
    let over = AtomicBool::new(false);
    site.link.client().run(|| {
        scope(|scope| {
            for _ in 0..5 {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        site.ask_here(bad, None);
                    }
                });
            }
            let begin = Instant::now();
            let mut fates = BTreeMap::new();
            while begin.elapsed() < Duration::from_secs(1) {
                *fates.entry(site.ask_here(good, Some(key))).or_insert(0) += 1;
                sleep(Duration::from_millis(5));
            }
            over.store(true, Ordering::Relaxed);
            Ok(fates)
        })
    })
}

#[test]
fn a_source_behind_which_a_key_is_served_is_not_kept_out_unless_that_is_asked_for() -> Result<()> {
    for way in Way::ALL {
        let site = Site::new(way)?;
        let mut enforcer = site.guard("first = \"2s\"")?;
        let key = enforcer.add_key("tenant", "unlimited")?;
        for source in [v4(0, 11), v6(0, 0x11)] {
            let case = format!("{way:?}, {source}");
            // Its refusals begin only after it was served, and are too many before it is served again.
            ensure!(site.ask(source, Some(&key))? == Fate::Served, "{case}: not served before the flood");
            site.link.client().run(|| {
                for _ in 0..30 {
                    ensure!(site.ask_here(source, None) != Fate::KeptOut, "{case}: kept out though a key was served");
                }
                Ok(())
            })?;
            let fates = beside_a_flood(&site, &key, source, source)?;
            ensure!(fates.keys().all(|fate| *fate == Fate::Served), "{case}: {fates:?}");
        }
        ensure!(penalties(&enforcer)? == 0, "{} penalties on {way:?}", penalties(&enforcer)?);
        let source = listed(&enforcer, "10.77.0.11/32")?.context("it is not listed")?;
        ensure!(source["served"].is_string() && source["until"].is_null(), "{source}");

        enforcer.stop(Signal::SIGTERM)?;
        enforcer.configure(&format!("[penalty]\n{RULES}\nfirst = \"2s\"\nshared = true\n"))?;
        enforcer.start()?;
        let fates = beside_a_flood(&site, &key, v4(0, 11), v4(0, 11))?;
        ensure!(fates.contains_key(&Fate::KeptOut), "with `shared` on {way:?}: {fates:?}");
        ensure!(penalties(&enforcer)? > 0, "with `shared` there is no penalty on {way:?}");
    }
    Ok(())
}

#[test]
fn penalties_are_listed_and_ended_by_the_command_and_on_record() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let enforcer = site.guard("first = \"10m\"")?;
    let none = enforcer.cli(&["penalty", "ls"])?;
    ensure!(none == "No source is under a penalty.\n", "{none}");
    for (source, name, address) in [
        (v4(0, 11), "10.77.0.11/32", "10.77.0.11"),
        (v6(0, 0x11), "fd77::/64", "fd77::9"),
        (v4(0, 13), "10.77.0.13/32", "10.77.0.0/24"),
    ] {
        site.flood(source)?;
        let listing = enforcer.json(&["penalty", "ls"])?;
        let [listed_now] = listing["sources"].as_array().context("no list")?.as_slice() else {
            anyhow::bail!("not one source alone is listed: {listing}");
        };
        let remaining = listed_now["remaining_ns"].as_u64().unwrap_or(0);
        ensure!(listed_now["source"] == name && listed_now["strikes"] == 1, "{listed_now}");
        ensure!((1..=600_000_000_000).contains(&remaining), "{listed_now}");
        ensure!(listed_now["refused"].as_u64() > Some(20) && listed_now["served"].is_null(), "{listed_now}");
        let table = enforcer.cli(&["penalty", "ls"])?;
        ensure!(table.starts_with("SERVICE") && table.contains(name) && table.contains("10m"), "{table}");
        ensure!(enforcer.metric("enforcer_penalties")? == 1, "the gauge: {}", enforcer.metric("enforcer_penalties")?);

        let said = enforcer.cli(&["penalty", "rm", address])?;
        ensure!(said.contains(&format!("Penalty of {name} ended\n")), "{said}");
        let fate = site.ask(source, None)?;
        ensure!(fate == Fate::Answered(401), "let in again it is met with {fate:?}");
        let after = listed(&enforcer, name)?.context("it is not known any more")?;
        ensure!(after["strikes"] == 0 && after["until"].is_null(), "{after}");
        let said = enforcer.cli(&["penalty", "rm", address])?;
        ensure!(said.contains(&format!("{name} was under no penalty\n")), "{said}");
        let log = enforcer.log()?;
        ensure!(log.contains(&format!("penalties ended: {name}")), "{log}");
        ensure!(log.contains("DELETE /v1/penalties/") && log.contains("uid=0"), "{log}");
    }
    ensure!(enforcer.metric("enforcer_penalties")? == 0, "the gauge still counts");
    for (arguments, code, words) in [
        (&["penalty", "rm", "192.0.2.1"][..], 6, "no request from 192.0.2.1/32 was refused"),
        (&["penalty", "rm", "fd77:0:0:1::/64"], 6, "no request from fd77:0:0:1::/64 was refused"),
        (&["penalty", "rm", "alice"], 2, "neither an address nor a prefix"),
        (&["penalty", "rm"], 2, "ADDRESS|PREFIX"),
        (&["penalty", "rm", "--all", "192.0.2.1"], 2, "--all"),
    ] {
        let ran = enforcer.run(arguments)?;
        ensure!(ran.code == code && ran.stderr.contains(words), "{arguments:?}: {ran:?}");
    }
    site.flood(v4(0, 11))?;
    site.flood(v6(0, 0x11))?;
    let said = enforcer.cli(&["penalty", "rm", "--all"])?;
    ensure!(said == "Penalty of 10.77.0.11/32 ended\nPenalty of fd77::/64 ended\n", "{said}");
    for source in [v4(0, 11), v6(0, 0x11)] {
        ensure!(site.ask(source, None)? == Fate::Answered(401), "{source} is not let in");
    }
    ensure!(enforcer.cli(&["penalty", "rm", "--all"])? == "No source was under a penalty\n", "twice");
    Ok(())
}

fn mac(namespace: &Namespace, interface: &str) -> Result<Vec<u8>> {
    let links: Value = serde_json::from_str(&namespace.ip(&["-json", "link", "show", interface])?)?;
    let text = links[0]["address"].as_str().unwrap_or_default().to_owned();
    Ok(text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?)
}

#[test]
fn packets_with_anothers_address_bring_no_penalty_on_it() -> Result<()> {
    for way in [Way::VethNative, Way::VethTc] {
        let site = Site::new(way)?;
        let enforcer = site.guard("first = \"10m\"")?;
        let key = enforcer.add_key("tenant", "unlimited")?;
        let addressed = [mac(&site.link.server, "srv0")?, mac(site.link.client(), "cli0")?].concat();
        for victim in [v4(0, 13), v6(1, 0x13)] {
            let (case, server) = (format!("{way:?}, {victim}"), site.server(victim));
            // Whoever sends in its name knows even the ports of a connection that it has.
            let mut open = site.link.client().run(|| Connection::open_from(victim, server, SHORT))?;
            let port = open.local()?.port();
            let unkeyed = get("/", None);
            site.link.client().run(|| {
                let mut wire = Wire::open("cli0")?;
                for number in 0..300u32 {
                    let other = SocketAddr::new(victim, 2000 + number as u16);
                    let same = SocketAddr::new(victim, port);
                    let seq = number.wrapping_mul(0x9e37_79b9);
                    for frame in [
                        Frame::data(other, server, seq, &unkeyed),
                        Frame::data(same, server, seq, &unkeyed).acking(seq),
                        Frame::bare(other, server, seq, flag::SYN),
                        Frame { flags: flag::SYN, ..Frame::data(other, server, seq, &unkeyed) },
                    ] {
                        let mut frame = frame.build();
                        frame[..12].copy_from_slice(&addressed);
                        // The interface takes only so many at once.
                        wait_for("room to send a frame", || Ok(wire.send(&frame, Offload::None).ok()))?;
                    }
                }
                Ok(())
            })?;
            ensure!(penalties(&enforcer)? == 0, "{case}: {} penalties", penalties(&enforcer)?);
            let totals = &enforcer.json(&["status"])?["totals"];
            for (kind, count) in [
                ("data without a connection", &totals["events"]["after_refusal"]),
                ("SYNs with data", &totals["refused_by"]["unorderly"]),
            ] {
                ensure!(count.as_u64() >= Some(300), "{case}: of {kind} {count} came, which tests nothing: {totals}");
            }
            let known = enforcer.json(&["penalty", "ls", "--all"])?;
            let sources = known["sources"].as_array().context("no list")?;
            ensure!(sources.iter().all(|source| source["refused"] == 0), "{case}: {known}");
            open.send(&get("/", Some(&key)));
            ensure!(open.answer().0 == Ending::Answered(200), "{case}: its open connection is not served");
            ensure!(site.ask(victim, Some(&key))? == Fate::Served, "{case}: it is not served");
        }
    }
    Ok(())
}

#[test]
fn neighbours_share_a_penalty_as_far_as_the_prefix_goes() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let enforcer = site.guard("first = \"10m\"\nipv4 = 24")?;
    for (bad, name, neighbour, other) in
        [(v4(0, 11), "10.77.0.0/24", v4(0, 12), v4(1, 12)), (v6(0, 0x11), "fd77::/64", v6(0, 0x12), v6(1, 0x12))]
    {
        ensure!(site.ask(neighbour, None)? == Fate::Answered(401), "{neighbour} is not answered before");
        site.flood(bad)?;
        ensure!(listed(&enforcer, name)?.is_some_and(|source| source["strikes"] == 1), "{name} is not listed");
        ensure!(site.ask(neighbour, None)? == Fate::KeptOut, "{neighbour} is let in");
        ensure!(site.ask(other, None)? == Fate::Answered(401), "{other} is kept out");
    }
    Ok(())
}

#[test]
fn without_penalties_every_refusal_is_answered() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let port = PORT.to_string();
    let mut enforcer = Enforcer::new(
        &site.link.server,
        &["--interface", "srv0", "--port", &port, "--hook", "xdp-native", "--penalty", "off"],
    )?;
    enforcer.configure(&format!("[penalty]\n{RULES}\nfirst = \"1s\"\n"))?;
    enforcer.start()?;
    site.link.client().run(|| {
        for number in 0..100 {
            let fate = site.ask_here(v4(0, 11), None);
            ensure!(fate == Fate::Answered(401), "request {number} is met with {fate:?}");
        }
        Ok(())
    })?;
    ensure!(enforcer.cli(&["penalty", "ls", "--all"])?.starts_with("Penalties are off"), "`penalty ls`");
    Ok(())
}

#[test]
fn connections_that_are_open_when_a_penalty_begins_keep_no_worker_waiting() -> Result<()> {
    for way in Way::ALL {
        let site = Site::new(way)?;
        let enforcer = site.guard("first = \"10m\"\nshared = true")?;
        let key = enforcer.add_key("tenant", "unlimited")?;
        let server = site.server(v4(0, 11));
        let mut open = site
            .link
            .client()
            .run(|| (0..4).map(|_| Connection::open_from(v4(0, 11), server, SHORT)).collect::<Result<Vec<_>>>())?;
        site.flood(v4(0, 11))?;
        ensure!(site.ask(v4(0, 11), None)? == Fate::KeptOut, "{way:?}: not kept out");
        let mut keyed = open.remove(0);
        for connection in &mut open {
            connection.send(&get("/", None));
        }
        let fate = site.ask(v4(0, 12), Some(&key))?;
        ensure!(fate == Fate::Served, "{way:?}: beside connections of a source that is kept out: {fate:?}");
        keyed.send(&get("/", Some(&key)));
        ensure!(keyed.answer().0 == Ending::Answered(200), "{way:?}: a keyed request on an open connection");
    }
    Ok(())
}

#[test]
fn a_table_full_of_sources_is_counted_and_listed() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let enforcer = site.guard("first = \"10m\"")?;
    let pin = enforcer.bpffs_dir().join(format!("v{}/maps/SOURCES", abi::ABI));
    let mut map = Map::LruHashMap(MapData::from_pin(&pin).with_context(|| format!("opening {}", pin.display()))?);
    let mut sources: HashMap<_, Source, Record> = HashMap::try_from(&mut map)?;
    for prefix in 0..2 * u64::from(abi::SOURCES) {
        let record = Record { until: if prefix % 2 == 0 { u64::MAX } else { 0 }, ..Record::default() };
        sources.insert(Source { prefix, family: 4 }, record, 0)?;
    }
    // Without one that the program gave, the gauge is 0 without a look.
    ensure!(enforcer.metric("enforcer_penalties")? == 0, "counted without a penalty");
    site.flood(v4(0, 11))?;
    let listing = enforcer.json(&["penalty", "ls", "--all"])?;
    let listed = listing["sources"].as_array().context("no list")?;
    // The kernel makes room ahead of need.
    let capacity = abi::SOURCES as usize;
    ensure!((capacity / 2..=capacity).contains(&listed.len()), "{} of {capacity} are listed", listed.len());
    let penalised = listed.iter().filter(|source| source["until"].is_string()).count() as u64;
    ensure!(enforcer.metric("enforcer_penalties")? == penalised, "{penalised} are listed as under a penalty");
    // Who sends then has a place all the same.
    ensure!(self::listed(&enforcer, "10.77.0.11/32")?.is_some(), "no place was made");
    Ok(())
}
