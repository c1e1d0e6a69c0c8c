//! How many connections a source and a principal have at once, before a real server with threads: the exact number, in
//! whichever way connections end, with the daemon dead too.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use enforcer_tests::client::{Connection, Ending, last};
use enforcer_tests::netns::Way;
use enforcer_tests::origin::Workers;
use enforcer_tests::process::wait_for;
use nix::sys::signal::Signal;

use crate::site::{Site, add_key, apply, events, keyed, random_key, refused, v4};

const BOUNDS: &str = "[service]\nconnections_per_source = 5\nconnections_per_principal = 8\n[principal.one]\nlimit = \"unlimited\"\n[principal.two]\nlimit = \"unlimited\"";

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

#[test]
fn a_source_has_as_many_as_it_may_however_they_end_and_with_no_daemon() -> Result<()> {
    for way in [Way::VethNative, Way::VethTc] {
        let site = Site::new(way)?;
        let mut origin = site.serve("plain", Workers::Threads(1))?;
        let mut enforcer = site.guard(BOUNDS)?;
        let key = add_key(&enforcer, "one")?;
        let mut held = hold(&site, v4(1), &key, 5)?;
        let (ending, _) = open(&site, v4(1), &keyed("/", &key))?;
        ensure!(ending == Ending::Answered(429), "{way:?}: the sixth: {ending:?}");
        ensure!(refused(&enforcer, "connections")? == 1, "counted: {}", refused(&enforcer, "connections")?);
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
        enforcer.stop(Signal::SIGKILL)?;
        held.remove(0).reset()?;
        admits_one(&site, v4(1), &key, &mut held, "its daemon's death")?;
        drop(origin);
        origin = site.serve("plain", Workers::Threads(1))?;
        hold(&site, v4(1), &key, 5)?;
        drop(origin);
    }
    Ok(())
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

#[test]
fn a_thousand_connections_in_turn_leave_nothing_behind() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _origin = site.serve("plain", Workers::Threads(1))?;
    let enforcer = site.guard(BOUNDS)?;
    let key = add_key(&enforcer, "one")?;
    for number in 0..1000 {
        // A server with four threads may be behind with closing those before.
        let connection = wait_for("its turn", || {
            let (ending, connection) = open(&site, v4(1), &keyed("/", &key))?;
            Ok((ending == Ending::Answered(200)).then_some(connection))
        })?;
        if number % 2 == 0 {
            connection.reset()?;
        }
    }
    let mut held = Vec::new();
    admits_all(&site, &key, &mut held)?;
    ensure!(events(&enforcer, "connections_full")? == 0, "the table was full");
    Ok(())
}

/// Waits until five connections are open at once.
fn admits_all(site: &Site, key: &str, held: &mut Vec<Connection>) -> Result<()> {
    wait_for("five connections at once", || {
        let (ending, connection) = open(site, v4(1), &keyed("/", key))?;
        if ending == Ending::Answered(200) {
            held.push(connection);
        }
        Ok((held.len() == 5).then_some(()))
    })?;
    let (ending, _) = open(site, v4(1), &keyed("/", key))?;
    ensure!(ending == Ending::Answered(429), "a sixth: {ending:?}");
    Ok(())
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
    let served = opened.iter().filter(|(ending, _)| *ending == Ending::Answered(200)).count();
    let refused = opened.iter().filter(|(ending, _)| *ending == Ending::Answered(429)).count();
    ensure!((served, refused) == (5, 35), "{served} served, {refused} refused of 40 at once");
    ensure!(origin.executed_with(&key)? == 5, "executed {}", origin.executed_with(&key)?);
    Ok(())
}
