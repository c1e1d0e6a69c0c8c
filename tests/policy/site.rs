//! A guarded app, clients at as many addresses as a test wants, and the policy that it is guarded by.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail, ensure};
use enforcer_tests::client::{Connection, Ending};
use enforcer_tests::enforcer::{Enforcer, Ran};
use enforcer_tests::netns::{Link, Way};
use enforcer_tests::origin::{Origin, Server};
use enforcer_tests::process::PATIENCE;

pub(crate) const PORT: u16 = 8000;
/// Clients that send at once.
const AT_ONCE: usize = 8;

/// How many requests ended how.
pub(crate) type Endings = BTreeMap<Ending, usize>;

/// So many answered with each status, and nothing else.
pub(crate) fn statuses<const N: usize>(counts: [(u16, usize); N]) -> Endings {
    counts.into_iter().map(|(status, count)| (Ending::Answered(status), count)).collect()
}

/// A GET request with these fields.
pub(crate) fn request(path: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    plain_request("GET", path, fields)
}

/// A request with these fields and no body.
pub(crate) fn plain_request(method: &str, path: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("{method} {path} HTTP/1.1\r\nHost: app.test\r\nUser-Agent: enforcer-tests\r\n{fields}Accept: */*\r\n\r\n")
        .into_bytes()
}

/// A GET request with a key.
pub(crate) fn keyed(path: &str, key: &str) -> Vec<u8> {
    request(path, &[("X-API-Key", key)])
}

/// One of the keys of `apps/known.py`, of which there are 100.
pub(crate) fn known_key(number: usize) -> String {
    format!("known-key-{number:04}-0123456789")
}

/// A key of nobody's, another one for each number.
pub(crate) fn random_key(number: usize) -> String {
    format!("guess_{:016x}{number:08x}", (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// An IPv4 address of the clients, of 4096.
pub(crate) fn v4(host: u16) -> IpAddr {
    let [high, low] = host.to_be_bytes();
    Ipv4Addr::new(10, 77, 16 + high, low).into()
}

/// An IPv6 address of the clients, in one of 256 networks of 64 bits.
pub(crate) fn v6(network: u8, host: u16) -> IpAddr {
    Ipv6Addr::new(0xfd77, 0, 0, 0x100 + u16::from(network), 0, 0, 0, host).into()
}

/// A link whose client side has all addresses of [`v4`] and [`v6`].
pub(crate) struct Site {
    pub(crate) link: Link,
}

impl Site {
    pub(crate) fn new(way: Way) -> Result<Self> {
        let link = Link::new(way)?;
        // A local route makes every address beneath it the host's own.
        link.client().ip(&["route", "add", "local", "10.77.16.0/20", "dev", "lo"])?;
        link.client().ip(&["-6", "route", "add", "local", "fd77:0:0:100::/56", "dev", "lo"])?;
        // IPv6 binds to no address of a local route otherwise.
        link.client().run(|| Ok(fs::write("/proc/sys/net/ipv6/ip_nonlocal_bind", "1")?))?;
        if link.interface != "lo" {
            link.server.ip(&["route", "add", "10.77.16.0/20", "via", "10.77.0.2"])?;
            link.server.ip(&["-6", "route", "add", "fd77:0:0:100::/56", "via", "fd77::2"])?;
        }
        Ok(Self { link })
    }

    /// Serves an app to both families.
    pub(crate) fn serve(&self, app: &str, server: impl Into<Server>) -> Result<Origin> {
        self.serve_at(PORT, app, server)
    }

    /// Likewise, at another port.
    pub(crate) fn serve_at(&self, port: u16, app: &str, server: impl Into<Server>) -> Result<Origin> {
        // The wildcard of IPv6 takes IPv4 too.
        Origin::start(&self.link.server, app, server, SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port))
    }

    /// Sends so many requests to a port, one after another, each on a connection of its own.
    pub(crate) fn send_to(&self, port: u16, source: IpAddr, count: usize, request: &[u8]) -> Result<Endings> {
        let server = SocketAddr::new(self.server(source).ip(), port);
        self.link.client().run(|| {
            let mut endings = Endings::new();
            for _ in 0..count {
                let mut connection = Connection::open_from(source, server, PATIENCE)?;
                connection.send(request);
                *endings.entry(connection.answer().0).or_insert(0) += 1;
            }
            Ok(endings)
        })
    }

    /// Guards the port by a policy.
    pub(crate) fn guard(&self, policy: &str) -> Result<Enforcer<'_>> {
        let enforcer = Enforcer::guard(&self.link, PORT, &[])?;
        apply(&enforcer, policy)?;
        Ok(enforcer)
    }

    /// Where a client of this address finds the app.
    pub(crate) fn server(&self, source: IpAddr) -> SocketAddr {
        SocketAddr::new(if source.is_ipv4() { self.link.v4 } else { self.link.v6 }, PORT)
    }

    /// Sends a request on a connection of its own.
    pub(crate) fn ask(&self, source: IpAddr, request: &[u8]) -> Result<Ending> {
        self.link.client().run(|| self.ask_here(source, request))
    }

    /// Sends so many requests from one address, each on a connection of its own, several at once.
    pub(crate) fn flood(
        &self,
        source: IpAddr,
        count: usize,
        request: impl Fn(usize) -> Vec<u8> + Sync,
    ) -> Result<Endings> {
        self.flood_from(|_| source, count, request)
    }

    /// Likewise, each from an address of its own.
    pub(crate) fn flood_from(
        &self,
        source: impl Fn(usize) -> IpAddr + Sync,
        count: usize,
        request: impl Fn(usize) -> Vec<u8> + Sync,
    ) -> Result<Endings> {
        let next = AtomicUsize::new(0);
        let client = || -> Result<Endings> {
            let mut endings = Endings::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(endings);
                }
                *endings.entry(self.ask_here(source(number), &request(number))?).or_insert(0) += 1;
            }
        };
        self.link.client().run(|| {
            std::thread::scope(|scope| {
                let clients: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(client)).collect();
                let mut all = Endings::new();
                for client in clients {
                    let Ok(endings) = client.join() else { bail!("a client panicked") };
                    for (ending, count) in endings? {
                        *all.entry(ending).or_insert(0) += count;
                    }
                }
                Ok(all)
            })
        })
    }

    /// Opens a connection from one of the clients' addresses.
    pub(crate) fn connect(&self, source: IpAddr) -> Result<Connection> {
        self.link.client().run(|| Connection::open_from(source, self.server(source), PATIENCE))
    }

    fn ask_here(&self, source: IpAddr, request: &[u8]) -> Result<Ending> {
        let mut connection = Connection::open_from(source, self.server(source), PATIENCE)?;
        connection.send(request);
        Ok(connection.answer().0)
    }
}

/// Writes a policy file beside an instance's other files.
pub(crate) fn write(enforcer: &Enforcer<'_>, policy: &str) -> Result<PathBuf> {
    let file = enforcer.folder().join("policy.toml");
    fs::write(&file, format!("version = 1\n{policy}\n"))?;
    Ok(file)
}

/// Runs a command of the CLI with `policy` as the file behind it.
pub(crate) fn with_policy(enforcer: &Enforcer<'_>, command: &[&str], policy: &str) -> Result<Ran> {
    let file = write(enforcer, policy)?;
    enforcer.run(&[command, &[file.to_str().context("a path that is no text")?]].concat())
}

/// Puts a policy into effect.
pub(crate) fn apply(enforcer: &Enforcer<'_>, policy: &str) -> Result<()> {
    let ran = with_policy(enforcer, &["apply", "-f"], policy)?;
    ensure!(ran.code == 0, "the policy was not applied ({}): {}{}", ran.code, ran.stdout, ran.stderr);
    Ok(())
}

/// Makes a key of a principal that the policy names, and gives it.
pub(crate) fn add_key(enforcer: &Enforcer<'_>, principal: &str) -> Result<String> {
    Ok(enforcer.cli(&["key", "add", principal])?.trim().to_owned())
}

/// Lets principals have keys of `apps/known.py`.
pub(crate) fn take_over<const N: usize>(enforcer: &Enforcer<'_>, owners: [(&str, usize); N]) -> Result<()> {
    let lines: String = owners.iter().map(|(name, number)| format!("{name},{}\n", known_key(*number))).collect();
    let ran = enforcer.run_with_input(&["key", "import", "--weak", "-"], &lines)?;
    ensure!(ran.code == 0, "the keys were not taken over: {}", ran.stderr);
    Ok(())
}

/// Requests that were refused for a reason.
pub(crate) fn refused(enforcer: &Enforcer<'_>, reason: &str) -> Result<u64> {
    enforcer.metric(&format!("enforcer_refused_total{{service=\"default\",reason=\"{reason}\"}}"))
}

/// How often something else happened.
pub(crate) fn events(enforcer: &Enforcer<'_>, event: &str) -> Result<u64> {
    enforcer.metric(&format!("enforcer_events_total{{service=\"default\",event=\"{event}\"}}"))
}

/// Requests that the app has executed under a path.
pub(crate) fn executed_at(origin: &Origin, path: &str) -> Result<usize> {
    Ok(origin.executed()?.iter().filter(|request| request.path == path).count())
}
