//! One connection on which requests are served and refused in turn, for as long as it lives: every response is the right
//! one, in its order, and the app executes what was charged, no more.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use enforcer_tests::client::{python, url};
use enforcer_tests::enforcer::Enforcer;
use enforcer_tests::netns::{Link, Namespace, Way};
use enforcer_tests::origin::{Origin, Workers};
use enforcer_tests::passage::{INTERFACE, Passage};
use enforcer_tests::weather::Weather;

const PORT: u16 = 8000;
/// Requests on a connection.
const COUNT: u64 = 10_000;
/// Requests on a connection in bad weather, where each takes far longer.
const FEW: u64 = 1_000;

/// Lets a client alternate over one connection, and holds what was executed against what was charged.
fn alternate(client: &Namespace, origin: &Origin, enforcer: &Enforcer<'_>, count: u64, seed: u64) -> Result<()> {
    let key = enforcer.add_key(&format!("tenant-{seed}"), "1000000/hour")?;
    let arguments = [url(origin.address, ""), key.clone(), count.to_string(), seed.to_string()];
    let arguments = arguments.each_ref().map(String::as_str);
    let statuses: BTreeMap<String, u64> = python(client, "alternating.py", &arguments)?;
    let half = BTreeMap::from([("200".to_owned(), count / 2), ("401".to_owned(), count / 2)]);
    ensure!(statuses == half, "{statuses:?}");
    let executed = origin.executed()?;
    ensure!(executed.iter().all(|request| request.key == key), "the app executed a request without its key");
    ensure!(executed.len() as u64 == count / 2, "the app executed {}", executed.len());
    let metric = |name: &str| enforcer.metric(name);
    let refused = metric("enforcer_refused_total{reason=\"unkeyed\"}")?
        + metric("enforcer_refused_total{reason=\"unknown_key\"}")?;
    ensure!(refused == count / 2, "{refused} were refused");
    ensure!(metric("enforcer_events_total{event=\"allowed\"}")? == count / 2, "others were charged");
    Ok(())
}

#[test]
fn ten_thousand_requests_are_served_and_refused_in_turn_on_one_connection() -> Result<()> {
    for (seed, way) in Way::ALL.into_iter().enumerate() {
        let link = Link::new(way)?;
        let address = SocketAddr::new([link.v4, link.v6][seed % 2], PORT);
        let origin = Origin::start(&link.server, "bulk", Workers::Threads(2), address)?;
        let enforcer = Enforcer::guard(&link, PORT, &[])?;
        alternate(link.client(), &origin, &enforcer, COUNT, seed as u64)
            .with_context(|| format!("{way:?}, {address}, daemon: {:?}", enforcer.log()))?;
        ensure!(enforcer.metric("enforcer_events_total{event=\"answered_again\"}")? == 0, "answers got lost");
    }
    Ok(())
}

#[test]
fn the_same_holds_where_two_percent_of_all_packets_are_lost() -> Result<()> {
    let weather = Weather { lost: 20, ..Weather::default() };
    for (seed, hook) in ["xdp-native", "xdp-generic", "tc"].into_iter().enumerate() {
        let passage = Passage::new()?;
        let host: IpAddr = [passage.v6, passage.v4][seed % 2];
        let origin = Origin::start(&passage.server, "bulk", Workers::Threads(2), SocketAddr::new(host, PORT))?;
        let port = PORT.to_string();
        let arguments = ["--interface", INTERFACE, "--hook", hook, "--port", &port];
        let mut enforcer = Enforcer::new(&passage.server, &arguments)?;
        enforcer.start()?;
        let relay = passage.relay(weather, 0x5eed + seed as u64)?;
        alternate(&passage.client, &origin, &enforcer, FEW, seed as u64)
            .with_context(|| format!("{hook}, daemon: {:?}", enforcer.log()))?;
        let fates = relay.finish()?;
        ensure!(fates.iter().all(|fate| fate.lost > 0), "nothing was lost: {fates:?}");
        ensure!(enforcer.metric("enforcer_events_total{event=\"answered_again\"}")? > 0, "no answer got lost");
    }
    Ok(())
}
