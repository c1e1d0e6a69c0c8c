//! One connection on which requests are served and refused in turn, for as long as it lives: every response is the right
//! one, in its order, and the app executes what was charged, no more.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use enforcer_tests::client::{Connection, Ending, get, python, url};
use enforcer_tests::enforcer::Enforcer;
use enforcer_tests::netns::{Link, Namespace, Way};
use enforcer_tests::origin::{Origin, Workers};
use enforcer_tests::passage::{INTERFACE, Passage};
use enforcer_tests::weather::Weather;
use nix::sys::signal::Signal;

const PORT: u16 = 8000;
/// Requests on a connection.
const COUNT: u64 = 10_000;

/// Lets a client alternate over one connection, and holds what was executed against what was charged.
fn alternate(client: &Namespace, origin: &Origin, enforcer: &Enforcer<'_>, seed: u64) -> Result<()> {
    let key = enforcer.add_key(&format!("tenant-{seed}"), "1000000/hour")?;
    let arguments = [url(origin.address, ""), key.clone(), COUNT.to_string(), seed.to_string()];
    let arguments = arguments.each_ref().map(String::as_str);
    let statuses: BTreeMap<String, u64> = python(client, "alternating.py", &arguments)?;
    let half = BTreeMap::from([("200".to_owned(), COUNT / 2), ("401".to_owned(), COUNT / 2)]);
    ensure!(statuses == half, "{statuses:?}");
    let executed = origin.executed()?;
    ensure!(executed.iter().all(|request| request.key == key), "the app executed a request without its key");
    ensure!(executed.len() as u64 == COUNT / 2, "the app executed {}", executed.len());
    let metric = |name: &str| enforcer.metric(name);
    let refused = metric("enforcer_refused_total{service=\"default\",reason=\"unkeyed\"}")?
        + metric("enforcer_refused_total{service=\"default\",reason=\"unknown_key\"}")?;
    ensure!(refused == COUNT / 2, "{refused} were refused");
    ensure!(
        metric("enforcer_events_total{service=\"default\",event=\"allowed\"}")? == COUNT / 2,
        "others were charged"
    );
    Ok(())
}

#[test]
fn ten_thousand_requests_are_served_and_refused_in_turn_on_one_connection() -> Result<()> {
    for (seed, way) in Way::ALL.into_iter().enumerate() {
        let link = Link::new(way)?;
        let address = SocketAddr::new([link.v4, link.v6][seed % 2], PORT);
        let origin = Origin::start(&link.server, "bulk", Workers::Threads(2), address)?;
        let enforcer = Enforcer::guard(&link, PORT, &[])?;
        alternate(link.client(), &origin, &enforcer, seed as u64)
            .with_context(|| format!("{way:?}, {address}, daemon: {:?}", enforcer.log()))?;
        ensure!(
            enforcer.metric("enforcer_events_total{service=\"default\",event=\"answered_again\"}")? == 0,
            "answers got lost"
        );
    }
    Ok(())
}

#[test]
fn the_same_holds_where_packets_are_lost_doubled_and_overtaken() -> Result<()> {
    // The hooks at the same time: most of it is waiting for what is sent again.
    std::thread::scope(|scope| {
        let hooks = ["xdp-native", "xdp-generic", "tc"].into_iter().enumerate();
        let running: Vec<_> =
            hooks.map(|(seed, hook)| (hook, scope.spawn(move || alternate_in_bad_weather(hook, seed)))).collect();
        running.into_iter().try_for_each(|(hook, running)| {
            running.join().ok().context("a client panicked")?.with_context(|| hook.to_owned())
        })
    })
}

fn alternate_in_bad_weather(hook: &str, seed: usize) -> Result<()> {
    let weather = Weather { lost: 20, doubled: 10, held: 50, ..Weather::default() };
    let passage = Passage::new()?;
    let host: IpAddr = [passage.v6, passage.v4][seed % 2];
    let origin = Origin::start(&passage.server, "bulk", Workers::Threads(2), SocketAddr::new(host, PORT))?;
    let port = PORT.to_string();
    let mut enforcer = Enforcer::new(&passage.server, &["--interface", INTERFACE, "--hook", hook, "--port", &port])?;
    enforcer.start()?;
    let relay = passage.relay(weather, 0x5eed + seed as u64)?;
    alternate(&passage.client, &origin, &enforcer, seed as u64)
        .with_context(|| format!("daemon: {:?}", enforcer.log()))?;
    let fates = relay.finish()?;
    let befell = fates.iter().all(|fates| fates.lost > 0 && fates.doubled > 0 && fates.held > 0);
    ensure!(befell, "the weather was better: {fates:?}");
    ensure!(
        enforcer.metric("enforcer_events_total{service=\"default\",event=\"answered_again\"}")? > 0,
        "no answer got lost"
    );
    Ok(())
}

/// What leaves kept connections without anybody who translates them.
#[derive(Clone, Copy, Debug)]
enum End {
    /// `enforcer detach`.
    Detach,
    /// Likewise, where no daemon runs.
    DetachAlone,
    /// Another start, with this file.
    Start(&'static str),
}

/// Settings under which connections are kept.
const KEEPING: &str = "interfaces = [\"srv0\", \"lo\"]\nports = [8000]\nhook = \"tc\"\n";

#[test]
fn a_kept_connection_is_reset_once_nobody_translates_it_any_more_and_others_go_on() -> Result<()> {
    let file = |way: Way| KEEPING.replace("tc", if way == Way::VethTc { "tc" } else { "auto" });
    for (way, end) in [
        (Way::VethNative, End::Detach),
        (Way::VethTc, End::Detach),
        (Way::VethNative, End::DetachAlone),
        (Way::VethTc, End::Start("interfaces = [\"srv0\", \"lo\"]\nports = [8000]\nmode = \"observe\"")),
        (Way::VethTc, End::Start("interfaces = [\"srv0\", \"lo\"]\nports = [8001]")),
        (Way::VethTc, End::Start("interfaces = [\"lo\"]\nports = [8000]")),
    ] {
        let link = Link::new(way)?;
        let origin = Origin::start(&link.server, "plain", Workers::Threads(2), SocketAddr::new(link.v4, PORT))?;
        let mut enforcer = Enforcer::new(&link.server, &[])?;
        enforcer.configure(&file(way))?;
        enforcer.start()?;
        let key = enforcer.add_key("tenant", "unlimited")?;
        ended(&link, &origin, &mut enforcer, &key, end)
            .with_context(|| format!("{way:?}, {end:?}, daemon: {:?}", enforcer.log()))?;
    }
    Ok(())
}

fn ended(link: &Link, origin: &Origin, enforcer: &mut Enforcer<'_>, key: &str, end: End) -> Result<()> {
    let open = |keys: &[Option<&str>]| {
        link.client().run(|| {
            let mut connection = Connection::open(origin.address)?;
            for key in keys {
                connection.send(&get("/", *key));
                let wanted = Ending::Answered(if key.is_some() { 200 } else { 401 });
                let (ending, _) = connection.answer();
                ensure!(ending == wanted, "with {key:?}: {ending:?}");
            }
            Ok(connection)
        })
    };
    let mut kept = open(&[Some(key), None, Some(key)])?;
    let mut other = open(&[Some(key), Some(key)])?;
    match end {
        End::Detach => enforcer.cli(&["detach"]).map(drop)?,
        End::DetachAlone => {
            enforcer.stop(Signal::SIGKILL)?;
            enforcer.cli(&["detach"])?;
        }
        End::Start(file) => {
            enforcer.stop(Signal::SIGTERM)?;
            enforcer.configure(file)?;
            enforcer.start()?;
        }
    }
    // It learns it at once, although it has not sent anything.
    kept.set_patience(Duration::from_secs(2))?;
    let (ending, bytes) = kept.answer();
    ensure!(ending == Ending::Reset && bytes.is_empty(), "the kept one: {ending:?}");
    other.send(&get("/", Some(key)));
    let (ending, _) = other.answer();
    ensure!(ending == Ending::Answered(200), "the other: {ending:?}");
    Ok(())
}
