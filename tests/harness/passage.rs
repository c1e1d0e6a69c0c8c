//! A long way from a client to a server: three namespaces, the one in the middle with a relay that makes the weather.
//!
//! All offloads are off, so that every frame is one that could be on a wire. Neighbours are known beforehand: the
//! weather shall meet the requests, not the look-up of addresses.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::netns::Namespace;
use crate::process;
use crate::relay::Relay;
use crate::weather::Weather;

/// The server's interface, which the enforcer guards.
pub const INTERFACE: &str = "srv0";
const CLIENT_INTERFACE: &str = "cli0";
/// The relay's interfaces: the client's side, and the server's.
const MIDDLE: [&str; 2] = ["mid0", "mid1"];
/// How soon a lost segment may be sent again; the system's 200 ms would only make the tests wait.
const LEAST_RETRANSMISSION_TIME: Duration = Duration::from_millis(20);

/// A server's side, a client's side, and a place for a relay between them.
#[derive(Debug)]
pub struct Passage {
    /// Where the server and the enforcer run.
    pub server: Namespace,
    /// Where the clients run.
    pub client: Namespace,
    /// The server's IPv4 address.
    pub v4: IpAddr,
    /// The server's IPv6 address.
    pub v6: IpAddr,
    middle: Namespace,
}

impl Passage {
    /// Lays a passage, without a relay yet.
    ///
    /// # Errors
    /// Without root, or when `ip` or `ethtool` fails.
    pub fn new() -> Result<Self> {
        let (server, middle, client) = (Namespace::new()?, Namespace::new()?, Namespace::new()?);
        middle.run(|| Ok(fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1")?))?;
        for (end, interface, host, side) in
            [(&client, CLIENT_INTERFACE, 2, MIDDLE[0]), (&server, INTERFACE, 1, MIDDLE[1])]
        {
            join(end, interface, host, &middle, side)?;
        }
        for (end, interface, host) in [(&client, CLIENT_INTERFACE, 2), (&server, INTERFACE, 1)] {
            route(end, interface, 3 - host)?;
        }
        Ok(Self {
            server,
            client,
            v4: Ipv4Addr::new(10, 77, 0, 1).into(),
            v6: Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1).into(),
            middle,
        })
    }

    /// From now on loses TCP segments behind the hook: after the program has judged them, before TCP has them.
    ///
    /// # Errors
    /// When `nft` fails.
    pub fn lose_behind_the_hook(&self, per_mille: u32) -> Result<()> {
        let rules = format!(
            "table netdev misfortune {{\n counter lost {{ }}\n chain behind {{\n type filter hook ingress device \
             \"{INTERFACE}\" priority 0;\n meta l4proto tcp numgen random mod 1000 < {per_mille} counter name lost \
             drop\n }}\n}}"
        );
        process::run(self.server.command("nft").arg(rules)).map(|_| ())
    }

    /// How many segments were lost behind the hook.
    ///
    /// # Errors
    /// When `nft` fails, or none are being lost there.
    pub fn lost_behind_the_hook(&self) -> Result<u64> {
        let printed =
            process::run(self.server.command("nft").args(["list", "counter", "netdev", "misfortune", "lost"]))?;
        let mut words = printed.split_whitespace().skip_while(|word| *word != "packets");
        words.nth(1).and_then(|count| count.parse().ok()).with_context(|| format!("no counter: {printed}"))
    }

    /// Segments that were sent again so far: by the client, by the server.
    ///
    /// # Errors
    /// When the kernel's counters cannot be read.
    pub fn retransmitted(&self) -> Result<[u64; 2]> {
        Ok([retransmitted(&self.client)?, retransmitted(&self.server)?])
    }

    /// Starts the relay, with the same weather in both directions; nothing passes before. The fates that it gives are
    /// those of the frames from the client, and from the server.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn relay(&self, weather: Weather, seed: u64) -> Result<Relay> {
        Relay::start(&self.middle, MIDDLE, [weather; 2], seed)
    }
}

/// Connects a host's interface with one of the relay's.
fn join(end: &Namespace, interface: &str, host: u8, middle: &Namespace, side: &str) -> Result<()> {
    end.ip(&["link", "add", interface, "type", "veth", "peer", "name", side, "netns", middle.name()])?;
    end.ip(&["link", "set", interface, "address", &hardware(host)])?;
    for (namespace, name) in [(end, interface), (middle, side)] {
        let off = ["tx", "off", "tso", "off", "gso", "off", "gro", "off"];
        process::run(namespace.command("ethtool").args(["-K", name]).args(off))?;
    }
    middle.ip(&["link", "set", side, "up"])?;
    end.ip(&["address", "add", &format!("10.77.0.{host}/24"), "dev", interface])?;
    end.ip(&["address", "add", &format!("fd77::{host}/64"), "dev", interface, "nodad"])?;
    end.ip(&["link", "set", interface, "up"]).map(|_| ())
}

/// Makes the other host, and how to reach it, known.
fn route(end: &Namespace, interface: &str, other: u8) -> Result<()> {
    let soon = format!("{}ms", LEAST_RETRANSMISSION_TIME.as_millis());
    for (address, bits) in [(format!("10.77.0.{other}"), 32), (format!("fd77::{other}"), 128)] {
        let (hardware, host) = (hardware(other), format!("{address}/{bits}"));
        end.ip(&["neighbour", "replace", &address, "lladdr", &hardware, "dev", interface, "nud", "permanent"])?;
        end.ip(&["route", "add", &host, "dev", interface, "rto_min", &soon])?;
    }
    Ok(())
}

fn hardware(host: u8) -> String {
    format!("02:00:00:00:77:{host:02x}")
}

/// `RetransSegs` of a namespace.
fn retransmitted(namespace: &Namespace) -> Result<u64> {
    let text = namespace.run(|| Ok(fs::read_to_string("/proc/thread-self/net/snmp")?))?;
    let lines: Vec<Vec<&str>> =
        text.lines().filter_map(|line| Some(line.strip_prefix("Tcp: ")?.split(' ').collect())).collect();
    ensure!(lines.len() == 2, "the kernel's TCP counters have another form");
    let place = lines[0].iter().position(|name| *name == "RetransSegs").context("no RetransSegs")?;
    lines[1].get(place).and_then(|count| count.parse().ok()).context("RetransSegs is no number")
}
