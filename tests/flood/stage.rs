//! Where a flood takes place: a server's and a clients' network namespace, with a CPU each.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
};

use anyhow::{Context as _, Result, bail, ensure};
use enforcer_tests::{
    netns::{Link, Namespace, Way},
    process,
};

use crate::{cpu, kind::Flood};

/// The port that is flooded.
pub(crate) const PORT: u16 = 8000;
/// The address of the well-behaved client; [floods](Flood::source) come from others.
pub(crate) const GOOD: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 3);

/// The server's interface.
pub(crate) const SERVER: &str = "srv0";
/// Both ends' interfaces, and the CPU of each.
const ENDS: [(&str, usize); 2] = [(SERVER, cpu::SERVER), ("cli0", cpu::CLIENTS)];

/// A stage; removed with its value.
#[derive(Debug)]
pub(crate) struct Stage {
    /// The way from the clients to the server.
    pub(crate) link: Link,
    /// Receiving threads of other interfaces of the same names.
    others: BTreeSet<u32>,
}

impl Stage {
    /// Sets it up.
    ///
    /// # Errors
    /// Without root, or when the kernel has no threads that receive.
    pub(crate) fn new() -> Result<Self> {
        let mut others = BTreeSet::new();
        for (interface, _) in ENDS {
            others.extend(cpu::receivers(interface)?);
        }
        let link = Link::new(Way::VethNative)?;
        for source in Flood::sources().chain([GOOD]) {
            link.client().ip(&["address", "add", &format!("{source}/24"), "dev", "cli0"])?;
        }
        for (namespace, (interface, _)) in [&link.server, link.client()].into_iter().zip(ENDS) {
            // A veth receives by NAPI, and so in a thread, if it merges segments and the other end does not send
            // merged ones; else the sender's CPU receives.
            process::run(namespace.command("ethtool").args(["-K", interface, "gro", "on", "tso", "off"]))?;
            thread_receiving(namespace, interface)?;
            set(namespace, "net/ipv4/ip_local_port_range", "1024 65535")?;
            set(namespace, "net/core/somaxconn", "4096")?;
            set(namespace, "net/ipv4/tcp_max_syn_backlog", "4096")?;
        }
        Ok(Self { link, others })
    }

    /// The address that is flooded.
    ///
    /// # Errors
    /// The link has no IPv4 address.
    pub(crate) fn address(&self) -> Result<SocketAddrV4> {
        let IpAddr::V4(host) = self.link.v4 else { bail!("the link's address is none of IPv4") };
        Ok(SocketAddrV4::new(host, PORT))
    }

    /// Binds the receiving threads of both ends to their CPUs, and gives the server's.
    ///
    /// Attaching a program to an interface replaces its thread, so this comes after.
    ///
    /// # Errors
    /// There are none.
    pub(crate) fn receivers(&self) -> Result<Vec<u32>> {
        let mut own = Vec::new();
        for (interface, cpu) in ENDS {
            let threads: Vec<u32> = cpu::receivers(interface)?.difference(&self.others).copied().collect();
            ensure!(!threads.is_empty(), "{interface} does not receive in a thread");
            for &thread in &threads {
                cpu::bind(thread, cpu)?;
                cpu::prefer(thread)?;
            }
            own.push(threads);
        }
        Ok(own.swap_remove(0))
    }

    /// Ends what the last flood has left at both ends, such as connections whose requests were dropped.
    ///
    /// # Errors
    /// `ss` fails.
    pub(crate) fn clear(&self) -> Result<()> {
        for (namespace, side) in [(self.link.client(), "dport"), (&self.link.server, "sport")] {
            process::run(namespace.command("ss").args(["--tcp", "--kill", side, "=", &format!(":{PORT}")]))?;
        }
        Ok(())
    }
}

/// Has an interface receive in threads of its own. `ip netns exec` shows the namespace's interfaces in /sys.
fn thread_receiving(namespace: &Namespace, interface: &str) -> Result<()> {
    let command = format!("echo 1 > /sys/class/net/{interface}/threaded");
    let mut ip = std::process::Command::new("ip");
    process::run(ip.args(["netns", "exec", namespace.name(), "sh", "-c", &command])).map(|_| ())
}

fn set(namespace: &Namespace, name: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/{name}");
    namespace.run(|| fs::write(&path, value).with_context(|| format!("writing {path}")))
}
