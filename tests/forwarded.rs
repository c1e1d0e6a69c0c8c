//! Connections that the guarded host only forwards: routed or bridged, over every hook, both families.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use enforcer_tests::client::{Connection, Ending, exchange, flood, get};
use enforcer_tests::enforcer::Enforcer;
use enforcer_tests::netns::Namespace;
use enforcer_tests::origin::{Origin, Workers};
use enforcer_tests::packet::{Frame, flag};
use enforcer_tests::process::wait_for;
use enforcer_tests::raw::{Offload, Wire};

const PORT: u16 = 8000;
const HOOKS: [&str; 3] = ["xdp-native", "xdp-generic", "tc"];
/// Connections that the table has room for.
const FLOWS: usize = 65_536;

/// A client, a host between, and a server.
struct Site {
    client: Namespace,
    between: Namespace,
    server: Namespace,
}

impl Site {
    /// Two networks, with a router between.
    fn routed() -> Result<Self> {
        let site = Self::wired()?;
        for (near, interface, far, peer, net) in
            [(&site.between, "fw0", &site.client, "cli0", 1), (&site.between, "fw1", &site.server, "srv0", 2)]
        {
            for (namespace, interface, host) in [(near, interface, 1), (far, peer, 2)] {
                namespace.ip(&["address", "add", &format!("10.78.{net}.{host}/24"), "dev", interface])?;
                namespace.ip(&["address", "add", &format!("fd78:{net}::{host}/64"), "dev", interface, "nodad"])?;
            }
            far.ip(&["route", "add", "default", "via", &format!("10.78.{net}.1")])?;
            far.ip(&["-6", "route", "add", "default", "via", &format!("fd78:{net}::1")])?;
        }
        // The thread's namespace decides whose setting this is.
        site.between.run(|| {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
            Ok(std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")?)
        })?;
        Ok(site)
    }

    /// One network, with a bridge between.
    fn bridged() -> Result<Self> {
        let site = Self::wired()?;
        site.between.ip(&["link", "add", "br0", "type", "bridge"])?;
        site.between.ip(&["link", "set", "br0", "up"])?;
        for port in ["fw0", "fw1"] {
            site.between.ip(&["link", "set", port, "master", "br0"])?;
        }
        for (namespace, interface, net, host) in [(&site.client, "cli0", 2, 9), (&site.server, "srv0", 2, 2)] {
            namespace.ip(&["address", "add", &format!("10.78.{net}.{host}/24"), "dev", interface])?;
            namespace.ip(&["address", "add", &format!("fd78:{net}::{host}/64"), "dev", interface, "nodad"])?;
        }
        Ok(site)
    }

    fn wired() -> Result<Self> {
        let site = Self { client: Namespace::new()?, between: Namespace::new()?, server: Namespace::new()? };
        for (name, far, peer) in [("fw0", &site.client, "cli0"), ("fw1", &site.server, "srv0")] {
            site.between.ip(&["link", "add", name, "type", "veth", "peer", "name", peer, "netns", far.name()])?;
            site.between.ip(&["link", "set", name, "up"])?;
            far.ip(&["link", "set", peer, "up"])?;
        }
        Ok(site)
    }

    /// Guards the client's side of the host between.
    fn guard(&self, hook: &str) -> Result<Enforcer<'_>> {
        let port = PORT.to_string();
        let mut enforcer = Enforcer::new(&self.between, &["--interface", "fw0", "--port", &port, "--hook", hook])?;
        enforcer.start()?;
        Ok(enforcer)
    }
}

fn addresses() -> [SocketAddr; 2] {
    let v4: IpAddr = [10, 78, 2, 2].into();
    let v6: IpAddr = [0xfd78, 2, 0, 0, 0, 0, 0, 2].into();
    [v4, v6].map(|ip| SocketAddr::new(ip, PORT))
}

/// All that a guard promises, for one server.
fn holds(site: &Site, hook: &str, address: SocketAddr) -> Result<()> {
    let origin = Origin::start(&site.server, "plain", Workers::Threads(2), address)?;
    let older = site.client.run(|| {
        let mut older = Connection::open(address)?;
        older.send(b"GET / HTTP/1.1\r\n");
        Ok(older)
    })?;
    let enforcer = site.guard(hook)?;
    let attachment = &enforcer.json(&["status"])?["attachments"][0];
    ensure!(attachment["mode"] == hook && attachment["endpoints"] == "local, forwarded", "{attachment}");
    let key = enforcer.add_key("tenant", "20/hour")?;
    let request = get("/", Some(&key));
    let send = |request: &[u8]| site.client.run(|| exchange(address, request));
    ensure!(send(&request)? == Ending::Answered(200), "a keyed request is not served");
    ensure!(send(&get("/", None))? == Ending::Answered(401), "an unkeyed request is not refused on the client's side");
    ensure!(send(&get("/", Some("never_registered")))? == Ending::Answered(401), "an unknown key is not refused");

    // One that is older than the guard is not parsed from its middle.
    let mut older = older;
    older.send(&request["GET / HTTP/1.1\r\n".len()..]);
    ensure!(!matches!(older.answer().0, Ending::Answered(_)), "an older connection was answered");

    site.client.run(|| {
        let mut kept = Connection::open(address)?;
        for _ in 0..3 {
            kept.send(&request);
            ensure!(kept.answer().0 == Ending::Answered(200), "a request of a kept connection is not served");
        }
        let padding = "p".repeat(4000);
        let fields: String = (0..3).map(|number| format!("X-Padding-{number}: {padding}\r\n")).collect();
        let long = format!("GET / HTTP/1.1\r\nHost: app.test\r\n{fields}X-API-Key: {key}\r\n\r\n");
        kept.send(long.as_bytes());
        ensure!(kept.answer().0 == Ending::Answered(200), "a head of 12 KiB is not served");
        Ok(())
    })?;
    origin.await_executed(5)?;
    let endings = flood(&site.client, address, 4, 40, |_| request.clone())?;
    let served = endings.get(&Ending::Answered(200)).copied().unwrap_or(0);
    ensure!(served == 15, "of 15 that were left {served} were served: {endings:?}");
    let executed = origin.await_executed(20)?;
    ensure!(executed.iter().all(|request| request.key == key), "executed: {executed:?}");
    Ok(())
}

#[test]
fn routed_connections_are_guarded_at_every_hook() -> Result<()> {
    for hook in HOOKS {
        for address in addresses() {
            let site = Site::routed()?;
            holds(&site, hook, address).map_err(|error| error.context(format!("{hook}, {address}")))?;
        }
    }
    Ok(())
}

#[test]
fn bridged_connections_are_guarded_at_every_hook() -> Result<()> {
    for (hook, address) in HOOKS.into_iter().zip(addresses().into_iter().cycle()) {
        let site = Site::bridged()?;
        holds(&site, hook, address).map_err(|error| error.context(format!("{hook}, {address}")))?;
    }
    Ok(())
}

#[test]
fn a_flood_of_syns_breaks_no_connection_lets_nothing_through_and_keeps_nobody_out() -> Result<()> {
    let site = Site::routed()?;
    let [address, _] = addresses();
    let origin = Origin::start(&site.server, "plain", Workers::Threads(2), address)?;
    let enforcer = site.guard("xdp-native")?;
    let key = enforcer.add_key("tenant", "unlimited")?;
    let request = get("/", Some(&key));
    let mut kept = site.client.run(|| Connection::open(address))?;
    kept.send(&request);
    ensure!(kept.answer().0 == Ending::Answered(200), "not served before the flood");

    let mac = |interface: &str, namespace: &Namespace| -> Result<Vec<u8>> {
        let links: serde_json::Value = serde_json::from_str(&namespace.ip(&["-json", "link", "show", interface])?)?;
        let text = links[0]["address"].as_str().unwrap_or_default().to_owned();
        Ok(text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?)
    };
    let addressed = [mac("fw0", &site.between)?, mac("cli0", &site.client)?].concat();
    site.client.run(|| {
        let mut wire = Wire::open("cli0")?;
        for number in 0..10 * FLOWS {
            let client = SocketAddr::new([10, 78, 1, 2].into(), 1024 + (number % 60_000) as u16);
            let mut frame = Frame::bare(client, address, number as u32, flag::SYN).build();
            frame[..12].copy_from_slice(&addressed);
            // The interface takes only so many at once.
            wait_for("room to send a SYN", || Ok(wire.send(&frame, Offload::None).ok()))?;
        }
        Ok(())
    })?;
    kept.send(&request);
    ensure!(kept.answer().0 == Ending::Answered(200), "a kept connection was broken");
    ensure!(site.client.run(|| exchange(address, &get("/", None)))? == Ending::Answered(401), "an unkeyed one");
    ensure!(site.client.run(|| exchange(address, &request))? == Ending::Answered(200), "a new client is kept out");
    let executed = origin.await_executed(3)?;
    ensure!(executed.iter().all(|request| request.key == key), "executed: {executed:?}");
    Ok(())
}
