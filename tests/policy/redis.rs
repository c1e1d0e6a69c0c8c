//! An app that counts in Redis: exact while Redis is there, and once it is gone an outage, no limit, or one for each worker.
//! Behind the enforcer, which asks no store, the limit is the same either way.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use enforcer_tests::netns::Way;
use enforcer_tests::origin::Workers;
use enforcer_tests::process::{Process, wait_for};
use tempfile::TempDir;

use crate::site::{Site, keyed, known_key, statuses, take_over, v4};
use crate::snippets::{saturate, served};

/// Redis's own port, on the loopback of the server's namespace.
const REDIS: u16 = 6379;

/// A Redis that nothing but the app can reach, with nothing on disk; it ends with this value.
struct Redis {
    _process: Process,
    _folder: TempDir,
}

impl Redis {
    fn start(site: &Site) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut command = site.link.server.command("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &REDIS.to_string(), "--save", "", "--appendonly", "no"]);
        command.current_dir(folder.path());
        let mut process = Process::start(command, &folder.path().join("output"))?;
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), REDIS);
        wait_for("redis-server", || {
            if let Some(status) = process.ended()? {
                bail!("redis-server ended with {status}: {}", process.output());
            }
            let open = || Ok(TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok());
            Ok(site.link.server.run(open)?.then_some(()))
        })?;
        Ok(Self { _process: process, _folder: folder })
    }
}

#[test]
fn without_redis_its_clients_are_an_outage_or_unlimited_or_limited_by_each_worker() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let redis = Redis::start(&site)?;
    let origin = site.serve("by_redis", Workers::Sync(4))?;
    let shared = site.flood(v4(1), 400, |_| keyed("/error/data", &known_key(0)))?;
    ensure!(shared == statuses([(200, 100), (429, 300)]), "with Redis: {shared:?}");
    drop(redis);
    let outage = site.flood(v4(1), 400, |_| keyed("/error/data", &known_key(1)))?;
    ensure!(outage == statuses([(500, 400)]), "errors told: {outage:?}");
    let unlimited = site.flood(v4(1), 400, |_| keyed("/swallow/data", &known_key(2)))?;
    ensure!(unlimited == statuses([(200, 400)]), "errors swallowed: {unlimited:?}");
    let each = saturate(&site, &origin, "/fallback/data", &known_key(3))?;
    ensure!(served(&each) == 400, "each of four workers by itself: {each:?}");
    Ok(())
}

#[test]
fn behind_the_enforcer_100_requests_reach_the_app_with_redis_and_without() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let redis = Redis::start(&site)?;
    let origin = site.serve("by_redis", Workers::Sync(4))?;
    let owners = ["with", "outage", "swallow", "fallback"];
    let policy: String = owners.iter().map(|name| format!("[principal.{name}]\nlimit = \"100/hour\"\n")).collect();
    let enforcer = site.guard(&policy)?;
    take_over(&enforcer, [("with", 0), ("outage", 1), ("swallow", 2), ("fallback", 3)])?;
    let with = site.flood(v4(1), 400, |_| keyed("/error/data", &known_key(0)))?;
    ensure!(with == statuses([(200, 100), (429, 300)]), "with Redis: {with:?}");
    drop(redis);
    // What the app answers without its store is its own; how often it is asked is not.
    for (number, path, status) in [(1, "/error/data", 500), (2, "/swallow/data", 200), (3, "/fallback/data", 200)] {
        let endings = site.flood(v4(1), 400, |_| keyed(path, &known_key(number)))?;
        ensure!(endings == statuses([(status, 100), (429, 300)]), "{path}: {endings:?}");
    }
    for number in 0..owners.len() {
        let executed = origin.executed_with(&known_key(number))?;
        ensure!(executed == 100, "of key {number} {executed} requests reached the app");
    }
    Ok(())
}
