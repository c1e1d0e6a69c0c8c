//! What is flooded: the app alone, and behind each thing that can refuse for it.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use enforcer_tests::{
    enforcer::Enforcer,
    origin::{Origin, Workers},
    process::{Process, wait_for},
};
use tempfile::TempDir;

use crate::{
    connection::Ending,
    cpu,
    kind::{FIRST_KEY, GOOD_KEY, GOOD_LIMIT, Kind, Reuse, SPENT_KEY, SPENT_LIMIT},
    stage::{PORT, Stage},
    wall::Wall,
};

/// One of those that are compared.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Its name in the table.
    pub(crate) name: &'static str,
    /// How its refusals end for a client; empty if it refuses nothing.
    pub(crate) refusals: &'static [Ending],
    /// How long a flooding connection waits for an answer.
    pub(crate) patience: Duration,
    guard: Guard,
}

/// What stands between the clients and the app.
#[derive(Debug)]
enum Guard {
    Nothing,
    /// A limiter within the app, which counts in a Redis server.
    Limiter,
    /// A proxy, in front of the app.
    Proxy(&'static Proxy),
    /// An XDP program that drops what comes from where floods come from.
    Wall,
    /// The enforcer, with these arguments and without bounds on what a source is answered.
    Unbounded(&'static [&'static str]),
    /// The enforcer as it is shipped: a source is answered so often, reset so often, and then kept out.
    Enforcer,
}

/// How long a flood waits that is to be seen although nobody answers.
const IMPATIENT: Duration = Duration::from_millis(50);

/// All of them, in the table's order. A new proxy, or a new way of the enforcer to refuse, is one entry more.
pub(crate) const PEERS: &[Peer] = &[
    Peer::new("gunicorn alone", &[], Guard::Nothing),
    Peer::new("Flask-Limiter, Redis", &[Ending::Denied], Guard::Limiter),
    Peer::new("nginx limit_req", &[Ending::Denied], Guard::Proxy(&NGINX)),
    Peer::new("HAProxy stick table", &[Ending::Denied], Guard::Proxy(&HAPROXY)),
    // Of these floods most is met with silence: who waits for a second for each request sends too few for them to be seen in
    // the cost.
    Peer { patience: IMPATIENT, ..Peer::new("bare XDP drop", &[Ending::Silent], Guard::Wall) },
    Peer {
        patience: IMPATIENT,
        ..Peer::new("enforcer", &[Ending::Denied, Ending::Reset, Ending::Closed, Ending::Silent], Guard::Enforcer)
    },
    Peer::new("enforcer, answer", &[Ending::Denied], Guard::Unbounded(&["--on-refuse", "answer"])),
    Peer::new("enforcer, reset", &[Ending::Reset], Guard::Unbounded(&["--on-refuse", "reset"])),
    Peer::new("enforcer, drop", &[Ending::Silent], Guard::Unbounded(&["--on-refuse", "drop"])),
];

/// A proxy that knows the keys and their limits.
#[derive(Debug)]
struct Proxy {
    program: &'static str,
    /// Arguments before the configuration file.
    arguments: &'static [&'static str],
    /// The configuration, with places to fill in.
    configuration: &'static str,
}

const NGINX: Proxy =
    Proxy { program: "nginx", arguments: &["-e", "stderr", "-c"], configuration: include_str!("nginx.conf") };
const HAPROXY: Proxy =
    Proxy { program: "haproxy", arguments: &["-db", "-f"], configuration: include_str!("haproxy.cfg") };

/// Where the app listens when a proxy has its port.
const BEHIND: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8001);
/// gunicorn: two workers of four threads, which keep connections.
const WORKERS: Workers = Workers::Threads(2);

/// A peer that runs; ends with its value.
#[derive(Debug)]
pub(crate) struct Running<'a> {
    // In this order: what stands in front ends first.
    enforcer: Option<Enforcer<'a>>,
    helper: Option<Process>,
    origin: Origin,
    _wall: Option<Wall>,
    _folder: TempDir,
}

impl Peer {
    const fn new(name: &'static str, refusals: &'static [Ending], guard: Guard) -> Self {
        Self { name, refusals, patience: Duration::from_secs(1), guard }
    }

    /// The floods that it is to stand; to one that reads no request all are alike.
    pub(crate) const fn kinds(&self) -> &'static [Kind] {
        if matches!(self.guard, Guard::Nothing | Guard::Wall) { &[Kind::Unkeyed] } else { &Kind::ALL }
    }

    /// The connections of those; where none is served, none is kept.
    pub(crate) const fn reuses(&self) -> &'static [Reuse] {
        if matches!(self.guard, Guard::Wall) { &[Reuse::New] } else { &Reuse::ALL }
    }

    /// Starts it, on the CPU of the calling thread.
    ///
    /// # Errors
    /// A part of it does not come up; with what it printed.
    pub(crate) fn start<'a>(&self, stage: &'a Stage) -> Result<Running<'a>> {
        let folder = tempfile::tempdir()?;
        let address = stage.address()?;
        let (server, origin) = (&stage.link.server, |app, address: SocketAddrV4| {
            Origin::start(&stage.link.server, app, WORKERS, SocketAddr::V4(address))
        });
        let (mut enforcer, mut helper, mut wall) = (None, None, None);
        let origin = match &self.guard {
            Guard::Nothing => origin("plain", address)?,
            Guard::Limiter => {
                let mut redis = server.command("redis-server");
                redis.args(["--bind", "127.0.0.1", "--port", "6379", "--save", "", "--dir"]).arg(folder.path());
                helper = Some(serving(stage, redis, (Ipv4Addr::LOCALHOST, 6379).into(), folder.path())?);
                origin("limited", address)?
            }
            Guard::Proxy(proxy) => {
                let mut command = server.command(proxy.program);
                command.args(proxy.arguments).arg(proxy.configure(folder.path(), address)?);
                let origin = origin("plain", BEHIND)?;
                helper = Some(serving(stage, command, SocketAddr::V4(address), folder.path())?);
                origin
            }
            Guard::Wall => {
                wall = Some(Wall::attach(stage)?);
                origin("plain", address)?
            }
            Guard::Unbounded(_) | Guard::Enforcer => {
                let arguments =
                    if let Guard::Unbounded(arguments) = self.guard { arguments } else { &["--penalty", "on"] };
                let origin = origin("plain", address)?;
                let guard = Enforcer::guard(&stage.link, PORT, arguments)?;
                let keys = format!(
                    "good,{GOOD_KEY},{GOOD_LIMIT}/minute\nfirst,{FIRST_KEY},{GOOD_LIMIT}/minute\n\
                     spent,{SPENT_KEY},{SPENT_LIMIT}/minute\n"
                );
                let imported = guard.run_with_input(&["key", "import", "--weak", "-"], &keys)?;
                ensure!(imported.code == 0, "the enforcer takes no keys: {}", imported.stderr);
                enforcer = Some(guard);
                origin
            }
        };
        Ok(Running { enforcer, helper, origin, _wall: wall, _folder: folder })
    }
}

impl Running<'_> {
    /// Has the enforcer, if there is one, forget what the flood's source did before.
    ///
    /// # Errors
    /// It does not.
    pub(crate) fn forget(&self) -> Result<()> {
        let Some(enforcer) = &self.enforcer else { return Ok(()) };
        let forgotten = enforcer.run(&["penalty", "rm", "--all"])?;
        ensure!(forgotten.code == 0, "the enforcer does not forget: {}", forgotten.stderr);
        Ok(())
    }

    /// Its processes.
    ///
    /// # Errors
    /// One has ended.
    pub(crate) fn processes(&mut self) -> Result<Vec<u32>> {
        let mut roots = vec![self.origin.id()];
        if let Some(helper) = &mut self.helper {
            if let Some(status) = helper.ended()? {
                bail!("it ended with {status}: {}", helper.output());
            }
            roots.push(helper.id());
        }
        if let Some(enforcer) = &mut self.enforcer {
            roots.push(enforcer.daemon()?.id());
        }
        Ok(cpu::families(&roots))
    }
}

impl Proxy {
    /// Writes the configuration and what belongs to it, and says where.
    fn configure(&self, folder: &Path, address: SocketAddrV4) -> Result<std::path::PathBuf> {
        let limits = format!("{GOOD_KEY} {GOOD_LIMIT}\n{FIRST_KEY} {GOOD_LIMIT}\n{SPENT_KEY} {SPENT_LIMIT}\n");
        fs::write(folder.join("limits.map"), limits)?;
        let values = [
            ("{folder}", folder.to_str().context("a temporary folder's name is no text")?.to_owned()),
            ("{address}", address.to_string()),
            ("{origin}", BEHIND.to_string()),
            ("{good}", GOOD_KEY.to_owned()),
            ("{first}", FIRST_KEY.to_owned()),
            ("{spent}", SPENT_KEY.to_owned()),
        ];
        let filled =
            values.iter().fold(self.configuration.to_owned(), |text, (place, value)| text.replace(place, value));
        let path = folder.join("configuration");
        fs::write(&path, filled)?;
        Ok(path)
    }
}

/// Starts a server and waits until it accepts connections.
fn serving(stage: &Stage, command: std::process::Command, address: SocketAddr, folder: &Path) -> Result<Process> {
    let mut process = Process::start(command, &folder.join("output"))?;
    wait_for("a server to accept connections", || {
        if let Some(status) = process.ended()? {
            bail!("it ended with {status}: {}", process.output());
        }
        let connect = || Ok(TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok());
        Ok(stage.link.server.run(connect)?.then_some(()))
    })?;
    Ok(process)
}
