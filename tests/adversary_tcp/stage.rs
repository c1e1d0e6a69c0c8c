//! A server, the enforcer before it or not, and the scripts run against both, one after the other.
//!
//! Each run of a script has its own ports, path and key, so what the app executed and what the kernel charged can be
//! told apart afterwards. Behind the enforcer's hook the server's interface drops what is marked as lost.

use std::collections::HashMap;
use std::fmt;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use enforcer_tests::client::get;
use enforcer_tests::enforcer::Enforcer;
use enforcer_tests::netns::{Link, Way};
use enforcer_tests::origin::{Executed, Origin, Server, Workers};
use enforcer_tests::process;
use enforcer_tests::raw::{Client, Ends, Wire};

use crate::data::Identity;
use crate::play::{Pace, Player};
use crate::script::{Expectation, Script};
use crate::step::{Family, LOST, SECOND};

const PORT: u16 = 8000;
/// Ports that a run may use, and the first of all; the kernel's own clients choose theirs above 32768.
const PORTS: u16 = 4;
const FIRST_PORT: u16 = 10_000;
const CLIENT_MAC: [u8; 6] = [0x02, 0x77, 0, 0, 0, 0x64];
const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x64);
/// How long a worker may take to answer a request between two scripts; only a blocked one takes as long.
const PATIENCE: Duration = Duration::from_secs(3);
/// Bytes of a segment that brings honest bytes again.
const WHOLE: usize = 1400;
/// After so many scripts in turn that leave no worker free, the server will not come back.
const STUCK: usize = 5;
/// The key of those requests.
const PROBE: &str = "probe_00000000000000000000000000";

/// A way of playing all scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Manner {
    /// Over which IP version.
    pub(crate) family: Family,
    /// How quickly.
    pub(crate) pace: Pace,
    /// Whether checksums are left to the receiver, as a local sender's are.
    pub(crate) partial: bool,
}

impl fmt::Display for Manner {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, pace, partial } = self;
        let checksums = if *partial { "partial" } else { "whole" };
        write!(formatter, "{family:?} {pace:?} with {checksums} checksums")
    }
}

/// A server and how it is guarded.
#[derive(Clone, Debug)]
pub(crate) struct Stage {
    /// The server.
    pub(crate) server: Server,
    /// Whether it listens on `[::]`, else on `0.0.0.0`.
    pub(crate) listens_on_v6: bool,
    /// The enforcer's hook; `None` for a server that is not guarded.
    pub(crate) hook: Option<&'static str>,
    /// In which manners the scripts are played, one after the other.
    pub(crate) manners: Vec<Manner>,
}

/// What became of a script in one run.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// The script, by its place among all.
    pub(crate) script: usize,
    /// How it was played.
    pub(crate) manner: Manner,
    /// Requests with the run's key that the app executed.
    pub(crate) executed: u64,
    /// Requests without it, or with another, that the app executed.
    pub(crate) foreign: Vec<String>,
    /// Requests that the kernel charged; 0 without the enforcer.
    pub(crate) charged: u64,
    /// Answers that the client saw begin, on its last connection.
    pub(crate) answers: u64,
    /// Whether the worker served another client's request after the script; for [`Expectation::Refused`], while the
    /// script's client was still there.
    pub(crate) worker_free: bool,
    /// Whether the client had to send honest bytes again, which nothing in the script asked for.
    pub(crate) resent: bool,
    /// Why the script could not be played to its end.
    pub(crate) error: Option<String>,
}

/// One run.
struct Run<'a> {
    number: u16,
    index: usize,
    script: &'a Script,
    manner: Manner,
    identity: Identity,
}

impl Run<'_> {
    fn port(&self) -> u16 {
        FIRST_PORT + self.number * PORTS
    }

    /// Whether a request that was executed came from here. A server that runs it when the connection is gone already
    /// may not know the client's port any more.
    fn sent(&self, request: &Executed) -> bool {
        match request.port {
            0 => request.path.strip_prefix(&self.identity.path).is_some_and(|rest| rest.starts_with('/')),
            port => (self.port()..self.port() + PORTS).contains(&port),
        }
    }

    fn principal(&self) -> String {
        format!("run-{}", self.number)
    }
}

impl Stage {
    /// What it is, for messages.
    pub(crate) fn name(&self) -> String {
        let listener = if self.listens_on_v6 { "[::]" } else { "0.0.0.0" };
        format!("{} on {listener}, {}", self.server, self.hook.unwrap_or("not guarded"))
    }

    /// Whether the server serves more than one request on a connection.
    pub(crate) const fn keeps_connections(&self) -> bool {
        !matches!(self.server, Server::Gunicorn(Workers::Sync(_)) | Server::Werkzeug)
    }

    /// How many answers the last connection of a script brings that is served `count` times; a script that opens
    /// several waits for the others' itself.
    pub(crate) const fn answers_of(&self, script: &Script, count: u64) -> usize {
        if script.kept && self.keeps_connections() { count as usize } else { 1 }
    }

    /// Plays all scripts in all manners.
    ///
    /// # Errors
    /// When the stage cannot be set; what a script does is told by its outcome.
    pub(crate) fn run(&self, scripts: &[Script]) -> Result<Vec<Outcome>> {
        let link = Link::new(Way::VethNative)?;
        lay(&link)?;
        let ip = if self.listens_on_v6 { link.v6 } else { link.v4 };
        let origin = Origin::start(&link.server, "permissive", self.server, SocketAddr::new(ip, PORT))?;
        let runs = self.runs(scripts, false);
        let enforcer = self.hook.map(|hook| guard(&link, hook, &runs)).transpose()?;
        let mut outcomes = link.client().run(|| {
            let mut wire = Wire::open("cli0")?;
            let macs = (CLIENT_MAC, mac_of(&link)?);
            let probe = SocketAddr::new(ip, PORT);
            let mut outcomes: Vec<Outcome> = Vec::with_capacity(runs.len());
            for run in &runs {
                outcomes.push(self.play(run, &mut wire, macs, &link, probe, None)?);
                let stuck = outcomes.iter().rev().take_while(|outcome| !outcome.worker_free).count();
                ensure!(stuck < STUCK, "no client was served any more, {STUCK} scripts up to {} long", run.script.id);
            }
            Ok(outcomes)
        })?;
        // What was executed late is seen too.
        std::thread::sleep(Duration::from_millis(200));
        let executed = origin.executed()?;
        let charged = enforcer.as_ref().map(charges).transpose()?.unwrap_or_default();
        for (outcome, run) in outcomes.iter_mut().zip(&runs) {
            outcome.fill(run, &executed, &charged);
        }
        let strange = executed.iter().find(|request| request.key != PROBE && !runs.iter().any(|run| run.sent(request)));
        ensure!(strange.is_none(), "the app executed a request of no script: {strange:?}");
        Ok(outcomes)
    }

    /// Plays the scripts that begin without the enforcer and attach it; each has it to itself.
    ///
    /// # Errors
    /// When the stage cannot be set.
    pub(crate) fn run_attaching(&self, scripts: &[Script]) -> Result<Vec<Outcome>> {
        let hook = self.hook.context("nothing to attach")?;
        let link = Link::new(Way::VethNative)?;
        lay(&link)?;
        let ip = if self.listens_on_v6 { link.v6 } else { link.v4 };
        let probe = SocketAddr::new(ip, PORT);
        let origin = Origin::start(&link.server, "permissive", self.server, probe)?;
        let runs = self.runs(scripts, true);
        link.client().run(|| {
            let mut wire = Wire::open("cli0")?;
            let macs = (CLIENT_MAC, mac_of(&link)?);
            let mut outcomes = Vec::with_capacity(runs.len());
            for run in &runs {
                let mut enforcer = None;
                let mut attach = || -> Result<()> {
                    enforcer = Some(guard(&link, hook, std::slice::from_ref(run))?);
                    Ok(())
                };
                let mut outcome = self.play(run, &mut wire, macs, &link, probe, Some(&mut attach))?;
                let charged = enforcer.as_ref().map(charges).transpose()?.unwrap_or_default();
                outcome.fill(run, &origin.executed()?, &charged);
                outcomes.push(outcome);
            }
            Ok(outcomes)
        })
    }

    /// The runs of the scripts that attach the enforcer themselves, or of those that do not.
    fn runs<'a>(&self, scripts: &'a [Script], attaching: bool) -> Vec<Run<'a>> {
        let mut runs = Vec::new();
        for &manner in &self.manners {
            for (index, script) in scripts.iter().enumerate() {
                let sayable = script.family.is_none_or(|only| only == manner.family);
                if !sayable || script.attaches() != attaching {
                    continue;
                }
                let number = runs.len() as u16;
                let identity = Identity {
                    path: format!("/t/{}.{number}", script.id),
                    key: format!("known{number:06}{}", "k".repeat(16)),
                    unknown: format!("never{number:06}{}", "n".repeat(16)),
                };
                runs.push(Run { number, index, script, manner, identity });
            }
        }
        runs
    }

    fn play(
        &self,
        run: &Run<'_>,
        wire: &mut Wire,
        (client_mac, server_mac): ([u8; 6], [u8; 6]),
        link: &Link,
        probe: SocketAddr,
        attach: Option<&mut dyn FnMut() -> Result<()>>,
    ) -> Result<Outcome> {
        let (client, server): (IpAddr, IpAddr) = match run.manner.family {
            Family::V4 => (CLIENT_V4.into(), link.v4),
            Family::V6 => (CLIENT_V6.into(), link.v6),
        };
        let ends = Ends {
            client_mac,
            server_mac,
            client: SocketAddr::new(client, run.port()),
            server: SocketAddr::new(server, PORT),
        };
        let isn = 0x1000_0000 + u32::from(run.number) * 0x0003_0001;
        let mut client = Client::new(wire, ends, isn);
        client.partial_checksums = run.manner.partial;
        let mut played = Player::new(&mut client, &run.identity, run.manner.pace, attach).play(run.script);
        let mut resent = false;
        if let Expectation::Served(count) = run.script.expect
            && played.is_ok()
        {
            let count = self.answers_of(run.script, count);
            client.await_answers(count)?;
            // A busy host may take the segments of a burst in another order than they were sent, and a head's later
            // part that comes before an earlier one is not let through: every TCP sends it again.
            resent = client.answers() < count && client.left() > 0;
            if resent {
                played = client.deliver(WHOLE);
                client.await_answers(count)?;
            }
        }
        let while_open = self.hook.is_some() && run.script.expect == Expectation::Refused;
        let mut worker_free = while_open && serves(probe);
        client.abort()?;
        if !while_open {
            worker_free = serves(probe);
        }
        Ok(Outcome {
            script: run.index,
            manner: run.manner,
            executed: 0,
            foreign: Vec::new(),
            charged: 0,
            answers: client.answers() as u64,
            worker_free,
            resent,
            error: played.err().map(|error| format!("{error:#}")),
        })
    }
}

impl Outcome {
    /// Adds what the app and the kernel have on record of the run.
    fn fill(&mut self, run: &Run<'_>, executed: &[Executed], charged: &HashMap<String, u64>) {
        let mine = executed.iter().filter(|request| run.sent(request));
        let (own, foreign): (Vec<_>, Vec<_>) = mine.partition(|request| request.key == run.identity.key);
        self.executed = own.len() as u64;
        self.foreign = foreign.iter().map(|request| name_of(request, &run.identity)).collect();
        self.charged = charged.get(&run.principal()).copied().unwrap_or(0);
    }
}

/// What of a request that should not have been executed is worth telling.
fn name_of(request: &Executed, identity: &Identity) -> String {
    match request.key.as_str() {
        "-" => "unkeyed".to_owned(),
        key if key == identity.unknown => "unknown key".to_owned(),
        _ => format!("other: {} with {:?}", request.path, request.key),
    }
}

/// The raw client's addresses are known to the server; nobody's stack holds them. What is marked gets lost.
fn lay(link: &Link) -> Result<()> {
    let mac = CLIENT_MAC.map(|byte| format!("{byte:02x}")).join(":");
    for address in [CLIENT_V4.to_string(), CLIENT_V6.to_string()] {
        link.server.ip(&["neighbour", "add", &address, "lladdr", &mac, "dev", &link.interface, "nud", "permanent"])?;
    }
    link.server.ip(&["address", "add", &format!("{}/32", SECOND[0]), "dev", &link.interface])?;
    link.server.ip(&["address", "add", &format!("{}/128", SECOND[1]), "dev", &link.interface, "nodad"])?;
    let dscp = LOST >> 2;
    let chain = format!("type filter hook ingress device {} priority 0;", link.interface);
    let rules = format!("ip dscp {dscp} counter drop; ip6 dscp {dscp} counter drop;");
    process::run(link.server.command("nft").arg(format!("table netdev loss {{ chain loss {{ {chain} {rules} }}; }}")))?;
    Ok(())
}

fn mac_of(link: &Link) -> Result<[u8; 6]> {
    let shown = link.server.ip(&["-oneline", "link", "show", "dev", &link.interface])?;
    let text = shown.split("link/ether ").nth(1).and_then(|rest| rest.get(..17)).context("the server has no MAC")?;
    let mut mac = [0; 6];
    for (byte, digits) in mac.iter_mut().zip(text.split(':')) {
        *byte = u8::from_str_radix(digits, 16)?;
    }
    Ok(mac)
}

fn guard<'a>(link: &'a Link, hook: &str, runs: &[Run<'_>]) -> Result<Enforcer<'a>> {
    let port = PORT.to_string();
    let arguments = ["--interface", &link.interface, "--port", &port, "--hook", hook];
    let mut enforcer = Enforcer::new(&link.server, &arguments)?;
    enforcer.start()?;
    let mut lines = format!("probe,{PROBE},1000000/hour\n");
    for run in runs {
        lines += &format!("{},{},{}\n", run.principal(), run.identity.key, run.script.limit);
    }
    let ran = enforcer.run_with_input(&["key", "import", "--weak", "-"], &lines)?;
    ensure!(ran.code == 0, "the keys were not imported: {}", ran.stderr);
    Ok(enforcer)
}

/// Requests charged, by principal.
fn charges(enforcer: &Enforcer<'_>) -> Result<HashMap<String, u64>> {
    let limits = enforcer.json(&["limits"])?;
    let principals = limits["principals"].as_array().context("no principals")?;
    let charged = principals.iter().map(|principal| {
        let name = principal["name"].as_str().context("a principal without a name")?;
        Ok((name.to_owned(), principal["counts"]["allowed"].as_u64().context("no count")?))
    });
    charged.collect()
}

/// Whether an ordinary client is served now.
fn serves(address: SocketAddr) -> bool {
    let exchange = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&get("/probe", Some(PROBE)))?;
        let mut status = [0; 12];
        stream.read_exact(&mut status)?;
        Ok(status.ends_with(b" 200"))
    };
    exchange().unwrap_or(false)
}
