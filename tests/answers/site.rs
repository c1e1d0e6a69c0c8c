//! An app behind the enforcer, in each place where the enforcer can stand.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use enforcer_tests::client::url;
use enforcer_tests::enforcer::Enforcer;
use enforcer_tests::netns::{Link, Namespace, Way};
use enforcer_tests::origin::{Origin, Workers};
use enforcer_tests::process;
use enforcer_tests::program::{Kind, Program};

/// Where the app listens.
pub(crate) const PORT: u16 = 8000;
/// The client's interface, on a veth pair.
pub(crate) const CLIENT_INTERFACE: &str = "cli0";

/// Where the program stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the driver of a veth pair.
    Native,
    /// Likewise; the driver at the other end runs an XDP program too, and then the pair hands its frames on otherwise.
    NativeFacingXdp,
    /// In the generic hook of a veth pair.
    Generic,
    /// In the traffic control of a veth pair.
    Tc,
    /// In the generic hook of `lo`.
    LoopbackGeneric,
    /// In the traffic control of `lo`.
    LoopbackTc,
}

impl Place {
    /// All of them.
    pub(crate) const ALL: [Self; 6] =
        [Self::Native, Self::NativeFacingXdp, Self::Generic, Self::Tc, Self::LoopbackGeneric, Self::LoopbackTc];
    /// Those where a client's frames can be heard on an interface of its own.
    pub(crate) const WIRED: [Self; 4] = [Self::Native, Self::NativeFacingXdp, Self::Generic, Self::Tc];
    /// One for each hook.
    pub(crate) const HOOKS: [Self; 3] = [Self::Native, Self::Generic, Self::Tc];

    const fn way(self) -> Way {
        match self {
            Self::Native | Self::NativeFacingXdp => Way::VethNative,
            Self::Generic => Way::VethGeneric,
            Self::Tc => Way::VethTc,
            Self::LoopbackGeneric => Way::LoopbackGeneric,
            Self::LoopbackTc => Way::LoopbackTc,
        }
    }
}

/// What a test has in one place.
pub(crate) struct Site<'a> {
    /// The way from the clients to the app.
    pub(crate) link: &'a Link,
    /// The app, on both families.
    pub(crate) origin: &'a Origin,
    /// The enforcer.
    pub(crate) enforcer: &'a Enforcer<'a>,
}

impl Site<'_> {
    /// The app's addresses.
    pub(crate) fn addresses(&self) -> [SocketAddr; 2] {
        [self.link.v4, self.link.v6].map(|ip: IpAddr| SocketAddr::new(ip, PORT))
    }

    /// The URLs of a path of the app.
    pub(crate) fn urls(&self, path: &str) -> [String; 2] {
        self.addresses().map(|address| url(address, path))
    }

    /// How often a thing was counted.
    pub(crate) fn event(&self, event: &str) -> Result<u64> {
        self.enforcer.metric(&format!("enforcer_events_total{{service=\"default\",event=\"{event}\"}}"))
    }

    /// How many requests were refused for a reason.
    pub(crate) fn refused(&self, reason: &str) -> Result<u64> {
        self.enforcer.metric(&format!("enforcer_refused_total{{service=\"default\",reason=\"{reason}\"}}"))
    }

    /// Fails if the server has a connection left from one of these ports.
    pub(crate) fn has_no_connection_from(&self, ports: &[u16]) -> Result<()> {
        let mut ss = self.link.server.command("ss");
        let listed =
            process::run(ss.args(["--no-header", "--tcp", "--numeric", "state", "all", "sport", "=", ":8000"]))?;
        let left: Vec<&str> = listed
            .lines()
            .filter(|line| ports.iter().any(|port| line.trim_end().ends_with(&format!(":{port}"))))
            .collect();
        ensure!(left.is_empty(), "the server has connections left: {left:?}");
        Ok(())
    }
}

/// How long a server may take to be rid of its clients.
const REST: Duration = Duration::from_secs(10);

/// Fails if the app does not come to rest once its clients have gone: if a connection is left that a worker could wait
/// on, or one waits for a worker.
pub(crate) fn comes_to_rest(server: &Namespace) -> Result<()> {
    let begin = Instant::now();
    loop {
        let mut ss = server.command("ss");
        let listed = process::run(ss.args(["--no-header", "--tcp", "--numeric", "--all", "sport", "=", ":8000"]))?;
        let waits = |line: &&str| {
            let mut words = line.split_whitespace();
            match (words.next(), words.next()) {
                // No worker knows of it: a SYN that comes a second time, behind the end of its connection, begins another.
                (Some("TIME-WAIT" | "SYN-RECV"), _) => false,
                // Connections that nobody has accepted.
                (Some("LISTEN"), received) => received != Some("0"),
                _ => true,
            }
        };
        let left: Vec<&str> = listed.lines().filter(waits).collect();
        if left.is_empty() {
            return Ok(());
        }
        ensure!(begin.elapsed() < REST, "after {REST:?} the server has left: {left:#?}");
        sleep(Duration::from_millis(20));
    }
}

/// Runs a test's body in these places, with an app and an enforcer of its own in each, and sees that the app comes to rest behind it.
pub(crate) fn everywhere(
    places: &[Place],
    app: &str,
    workers: Workers,
    arguments: &[&str],
    body: impl Fn(&Site<'_>) -> Result<()>,
) -> Result<()> {
    for &place in places {
        let link = Link::new(place.way())?;
        let mut facing = Program::load(Kind::Xdp, "facing_xdp")?;
        if place == Place::NativeFacingXdp {
            link.client().run(|| facing.attach(nix::net::if_::if_nametoindex(CLIENT_INTERFACE)?))?;
        }
        // The wildcard of IPv6 takes IPv4 too.
        let origin = Origin::start(&link.server, app, workers, SocketAddr::new(Ipv6Addr::LOCALHOST.into(), PORT))?;
        let enforcer = Enforcer::guard(&link, PORT, arguments)?;
        let site = Site { link: &link, origin: &origin, enforcer: &enforcer };
        let tested = body(&site).and_then(|()| comes_to_rest(&link.server));
        tested.with_context(|| format!("{place:?}, daemon: {:?}", enforcer.log()))?;
    }
    Ok(())
}
