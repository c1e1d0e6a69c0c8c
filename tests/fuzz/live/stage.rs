//! A server behind the enforcer in namespaces of their own, with registered keys, and clients that send streams.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use enforcer_tests::client::{Ending, exchange, get};
use enforcer_tests::corpus::KEY;
use enforcer_tests::enforcer::Enforcer;
use enforcer_tests::netns::Link;
use enforcer_tests::origin::{Origin, Workers};
use enforcer_tests::process::PATIENCE;
use enforcer_tests::random::Random;

const PORT: u16 = 8000;
/// Streams that are under way at once.
const CLIENTS: usize = 6;
/// How long a client waits for more of an answer.
const QUIET: Duration = Duration::from_millis(150);
/// The registered keys; the last is the good client's.
const KEYS: [&str; 4] = [KEY, "other_key_1", "other_key_2", "good_client_key"];

/// A server and the enforcer before it; both end with it.
pub(crate) struct Stage<'a> {
    // In the order in which they must end.
    enforcer: Enforcer<'a>,
    origin: Origin,
    link: &'a Link,
}

impl<'a> Stage<'a> {
    /// Starts a server and the enforcer in front of it.
    pub(crate) fn new(link: &'a Link, server: Workers) -> Result<Self> {
        let origin = Origin::start(&link.server, "plain", server, SocketAddr::new(link.v4, PORT))?;
        let enforcer = Enforcer::guard(link, PORT, &[])?;
        let line = |(number, key)| format!("owner-{number},{key},1000000/hour\n");
        let lines: String = KEYS.iter().enumerate().map(line).collect();
        let ran = enforcer.run_with_input(&["key", "import", "--weak", "-"], &lines)?;
        ensure!(ran.code == 0, "importing keys: {}", ran.stderr);
        Ok(Self { enforcer, origin, link })
    }

    /// Sends each stream on a connection of its own, in pieces that `seed` cuts, and reads what comes back.
    pub(crate) fn send(&self, streams: &[Vec<u8>], seed: u64) -> Result<()> {
        let next = AtomicUsize::new(0);
        let client = || -> Result<()> {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(stream) = streams.get(number) else { return Ok(()) };
                send_one(self.origin.address, stream, &mut Random::new(seed ^ number as u64))?;
            }
        };
        self.link.client().run(|| {
            std::thread::scope(|scope| {
                let threads: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
                threads.into_iter().try_for_each(|thread| match thread.join() {
                    Ok(result) => result,
                    Err(_) => bail!("a client panicked"),
                })
            })
        })
    }

    /// Fails unless a request of a registered key is answered.
    pub(crate) fn serves_a_good_client(&self) -> Result<()> {
        let request = get("/", Some(KEYS[3]));
        let ending = self.link.client().run(|| exchange(self.origin.address, &request))?;
        ensure!(ending == Ending::Answered(200), "a good client saw {ending:?}");
        Ok(())
    }

    /// Requests that the app has executed.
    pub(crate) fn executed(&self) -> Result<usize> {
        Ok(self.origin.executed()?.len())
    }

    /// Requests that were executed and must not have been: with no registered key, or beyond those charged.
    pub(crate) fn excess(&self) -> Result<u64> {
        Ok(self.count()?.into_iter().map(|(_, executed, charged)| executed.saturating_sub(charged)).sum())
    }

    /// Fails if a request was executed that must not have been.
    pub(crate) fn is_safe(&self) -> Result<()> {
        for (key, executed, charged) in self.count()? {
            ensure!(executed <= charged, "with the key {key:?}, {executed} were executed and {charged} charged");
        }
        Ok(())
    }

    /// Each key that the app has seen, with the requests executed and charged.
    fn count(&self) -> Result<Vec<(String, u64, u64)>> {
        let mut executed = BTreeMap::new();
        for request in self.origin.executed()? {
            *executed.entry(request.key).or_insert(0) += 1;
        }
        // Charged first, executed later: so the counts are read the other way round.
        let metrics = self.enforcer.metrics()?;
        let charged = |key: &str| {
            let number = KEYS.iter().position(|known| *known == key)?;
            let series = format!("enforcer_requests_total{{principal=\"owner-{number}\",verdict=\"allowed\"}} ");
            metrics.lines().find_map(|line| line.strip_prefix(&series)?.trim().parse::<f64>().ok())
        };
        Ok(executed
            .into_iter()
            .map(|(key, executed)| {
                let charged = charged(&key).unwrap_or(0.0) as u64;
                (key, executed, charged)
            })
            .collect())
    }
}

fn send_one(address: SocketAddr, stream: &[u8], random: &mut Random) -> Result<()> {
    let mut connection = TcpStream::connect_timeout(&address, PATIENCE).context("connecting")?;
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(QUIET))?;
    let mut rest = stream;
    for _ in 0..random.below(4) {
        let (piece, behind) = rest.split_at(random.below(rest.len() + 1));
        // A connection that was reset shows when the answer is read.
        let _ = connection.write_all(piece);
        if random.once_in(2) {
            std::thread::sleep(Duration::from_millis(2));
        }
        rest = behind;
    }
    let _ = connection.write_all(rest);
    if random.once_in(2) {
        let _ = connection.shutdown(Shutdown::Write);
    }
    // Until the server ends it, or nothing more comes.
    let begin = Instant::now();
    let mut buffer = [0; 4096];
    while begin.elapsed() < Duration::from_secs(2) {
        match connection.read(&mut buffer) {
            Ok(count) if count > 0 => {}
            Ok(_) | Err(_) => break,
        }
    }
    Ok(())
}
