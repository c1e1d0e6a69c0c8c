//! Network namespaces of a test's own, and the ways from a client to a server that the tests use.
//!
//! A namespace is removed with its value, and with it its interfaces and whatever was attached to them.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

use crate::{process, root};

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A name that no other value of any test process has; at most 12 bytes, so that it also fits an interface.
#[must_use]
pub fn unique(prefix: &str) -> String {
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}{:x}x{number:x}", std::process::id())
}

/// A network namespace.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Creates one, with `lo` up.
    ///
    /// # Errors
    /// Without root, or when `ip` fails.
    pub fn new() -> Result<Self> {
        root::require()?;
        let name = unique("ef");
        process::run(Command::new("ip").args(["netns", "add", &name]))?;
        let namespace = Self { name };
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Its name, as `ip netns` lists it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Runs `ip` in it.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn ip(&self, arguments: &[&str]) -> Result<String> {
        process::run(Command::new("ip").args(["-n", &self.name]).args(arguments))
    }

    /// A command that will run in it, in the mounts of the test (`ip netns exec` would hide the BPF file system).
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Runs `body` on a thread of its own within the namespace; threads and processes that it starts are there too.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the error of `body`.
    ///
    /// # Panics
    /// When `body` does.
    pub fn run<T: Send>(&self, body: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let file = File::open(self.path()).with_context(|| format!("opening {}", self.path().display()))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(file.as_fd(), CloneFlags::CLONE_NEWNET).context("entering a network namespace")?;
                body()
            });
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = process::run(Command::new("ip").args(["netns", "del", &self.name]));
    }
}

/// The kinds of way from client to server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A veth pair between two namespaces; the driver runs the program.
    VethNative,
    /// A veth pair between two namespaces; the kernel's generic hook runs the program.
    VethGeneric,
    /// The loopback interface of one namespace; the kernel's generic hook runs the program.
    LoopbackGeneric,
    /// A veth pair between two namespaces; traffic control runs the program.
    VethTc,
    /// The loopback interface of one namespace; traffic control runs the program.
    LoopbackTc,
}

impl Way {
    /// One of each hook.
    pub const ALL: [Self; 3] = [Self::VethNative, Self::LoopbackGeneric, Self::VethTc];
}

/// A server's side and a client's side, and how they reach each other.
#[derive(Debug)]
pub struct Link {
    /// Which kind it is.
    pub way: Way,
    /// Where the server, and the enforcer, run.
    pub server: Namespace,
    client: Option<Namespace>,
    /// The server's interface.
    pub interface: String,
    /// The server's IPv4 address.
    pub v4: IpAddr,
    /// The server's IPv6 address.
    pub v6: IpAddr,
}

impl Link {
    /// Lays a link of this kind.
    ///
    /// # Errors
    /// Without root, or when `ip` fails.
    pub fn new(way: Way) -> Result<Self> {
        match way {
            Way::VethNative | Way::VethGeneric | Way::VethTc => Self::veth(way),
            Way::LoopbackGeneric | Way::LoopbackTc => Ok(Self {
                way,
                server: Namespace::new()?,
                client: None,
                interface: "lo".to_owned(),
                v4: Ipv4Addr::LOCALHOST.into(),
                v6: Ipv6Addr::LOCALHOST.into(),
            }),
        }
    }

    fn veth(way: Way) -> Result<Self> {
        let (server, client) = (Namespace::new()?, Namespace::new()?);
        server.ip(&["link", "add", "srv0", "type", "veth", "peer", "name", "cli0", "netns", client.name()])?;
        for (namespace, interface, host) in [(&server, "srv0", "1"), (&client, "cli0", "2")] {
            namespace.ip(&["address", "add", &format!("10.77.0.{host}/24"), "dev", interface])?;
            namespace.ip(&["address", "add", &format!("fd77::{host}/64"), "dev", interface, "nodad"])?;
            namespace.ip(&["link", "set", interface, "up"])?;
        }
        Ok(Self {
            way,
            server,
            client: Some(client),
            interface: "srv0".to_owned(),
            v4: Ipv4Addr::new(10, 77, 0, 1).into(),
            v6: Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1).into(),
        })
    }

    /// Where the clients run.
    #[must_use]
    pub fn client(&self) -> &Namespace {
        self.client.as_ref().unwrap_or(&self.server)
    }

    /// Turns the offload of transmit checksums on or off at both ends. While it is on, the checksums of frames between
    /// the two are partial, and frames may be larger than the MTU.
    ///
    /// # Errors
    /// On a loopback, which cannot, and when `ethtool` fails.
    pub fn set_checksum_offload(&self, on: bool) -> Result<()> {
        let client = self.client.as_ref().context("a loopback's offloads are fixed")?;
        for (namespace, interface) in [(&self.server, "srv0"), (client, "cli0")] {
            let state = if on { "on" } else { "off" };
            process::run(namespace.command("ethtool").args(["-K", interface, "tx", state]))?;
        }
        Ok(())
    }

    /// What `--hook` makes the program run as the link's kind says.
    #[must_use]
    pub fn hook(&self) -> &'static str {
        match self.way {
            Way::VethNative => "xdp-native",
            Way::VethGeneric | Way::LoopbackGeneric => "xdp-generic",
            Way::VethTc | Way::LoopbackTc => "tc",
        }
    }
}
