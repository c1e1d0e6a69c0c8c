//! What was counted, behind a boot, which takes the maps away.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use enforcer_tests::enforcer::Enforcer;
use enforcer_tests::netns::Way;
use enforcer_tests::origin::Workers;
use nix::sys::signal::Signal;
use rusqlite::Connection;

use crate::site::{Site, add_key, keyed, statuses, v4};

const POLICY: &str = "
[plan.gold]
limit = \"12/hour; 14/year align=calendar\"
candidate = \"9/day\"
[tenant.acme]
limit = \"20/day\"
[principal.alice]
plan = \"gold\"
tenant = \"acme\"
[principal.bob]
limit = \"10/day burst=10\"
tenant = \"acme\"
[[route]]
path = \"/search\"
limit = \"4/hour\"
";

/// Lets the machine be off for so long.
fn off_for(state: &Path, seconds: i64) -> Result<()> {
    let counts = Connection::open(state.join("counts.db"))?;
    counts.execute("UPDATE moment SET unix = unix - ?1", [seconds * 1_000_000_000])?;
    Ok(())
}

fn counted(enforcer: &Enforcer<'_>, principal: &str, verdict: &str) -> Result<u64> {
    enforcer.metric(&format!("enforcer_requests_total{{principal=\"{principal}\",verdict=\"{verdict}\"}}"))
}

#[test]
fn what_was_used_of_a_limit_is_used_behind_a_boot_too_for_as_long_as_its_window_lasts() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _origin = site.serve("routes", Workers::Sync(2))?;
    let mut enforcer = site.guard(POLICY)?;
    let (alice, bob) = (add_key(&enforcer, "alice")?, add_key(&enforcer, "bob")?);
    let ask = |key: &str, path: &str, count| site.flood(v4(1), count, |_| keyed(path, key));
    ensure!(ask(&alice, "/", 7)? == statuses([(200, 7)]), "alice's first");
    ensure!(ask(&alice, "/search", 3)? == statuses([(200, 3)]), "alice's searches");
    ensure!(ask(&bob, "/", 6)? == statuses([(200, 6)]), "bob's first");

    // A crash: what was written within the last seconds holds.
    sleep(Duration::from_secs(6));
    enforcer.stop(Signal::SIGKILL)?;
    enforcer.boot()?;
    ensure!(ask(&alice, "/", 1)? == statuses([(200, 1)]), "without enforcement a request is refused");
    enforcer.start()?;
    ensure!(counted(&enforcer, "alice", "allowed")? == 10, "not as many as before the boot");
    let searches = ask(&alice, "/search", 3)?;
    ensure!(searches == statuses([(200, 1), (429, 2)]), "of 4 an hour, 3 of them used before the boot: {searches:?}");
    let more = ask(&alice, "/", 5)?;
    ensure!(more == statuses([(200, 1), (429, 4)]), "of 12 an hour, 11 of them used: {more:?}");
    let of_bob = ask(&bob, "/", 5)?;
    ensure!(of_bob == statuses([(200, 2), (429, 3)]), "of the tenant's 20 a day, 18 of them used: {of_bob:?}");
    ensure!(counted(&enforcer, "alice", "allowed")? == 12 && counted(&enforcer, "alice", "limited")? == 6, "counts");

    // A clean stop, and two hours without power: hours are over, days and years are not.
    enforcer.stop(Signal::SIGTERM)?;
    enforcer.boot()?;
    off_for(&enforcer.state_dir(), 2 * 3600)?;
    enforcer.start()?;
    enforcer.cli(&["apply", "-f", &policy_without_tenant(&enforcer)?])?;
    let of_the_year = ask(&alice, "/", 4)?;
    ensure!(of_the_year == statuses([(200, 2), (429, 2)]), "of 14 a year, 12 of them used: {of_the_year:?}");
    let of_the_day = ask(&bob, "/", 5)?;
    ensure!(
        of_the_day == statuses([(200, 2), (429, 3)]),
        "of a burst of 10, 8 of them used, none back yet: {of_the_day:?}"
    );

    // A day later bob's burst is there again.
    enforcer.stop(Signal::SIGTERM)?;
    enforcer.boot()?;
    off_for(&enforcer.state_dir(), 24 * 3600)?;
    enforcer.start()?;
    let of_the_day = ask(&bob, "/", 12)?;
    ensure!(of_the_day == statuses([(200, 10), (429, 2)]), "a day later: {of_the_day:?}");
    Ok(())
}

/// Writes the policy down without its tenant, and says where.
fn policy_without_tenant(enforcer: &Enforcer<'_>) -> Result<String> {
    let path = enforcer.folder().join("without.toml");
    let policy = POLICY.replace("[tenant.acme]\nlimit = \"20/day\"\n", "").replace("tenant = \"acme\"\n", "");
    fs::write(&path, format!("version = 1\n{policy}"))?;
    Ok(path.display().to_string())
}

#[test]
fn counts_that_cannot_be_read_are_put_aside_and_keep_nobody_unguarded() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _origin = site.serve("routes", Workers::Sync(2))?;
    let mut enforcer = site.guard("[principal.alice]\nlimit = \"3/day\"")?;
    let alice = add_key(&enforcer, "alice")?;
    let ask = |count| site.flood(v4(1), count, |_| keyed("/", &alice));
    ensure!(ask(4)? == statuses([(200, 3), (429, 1)]), "three a day");
    enforcer.stop(Signal::SIGTERM)?;

    // With its maps a daemon needs none of it.
    let counts = enforcer.state_dir().join("counts.db");
    fs::write(&counts, "a text where a database was: longer than the header of a database, to be sure")?;
    enforcer.start()?;
    ensure!(ask(1)? == statuses([(429, 1)]), "what the maps hold is lost");
    let aside = enforcer.state_dir().join("counts.unread");
    ensure!(fs::read_to_string(&aside)?.starts_with("a text"), "it was not put aside");
    ensure!(enforcer.log()?.contains("counts.unread"), "nothing is said of it: {}", enforcer.log()?);

    // Written again at once.
    enforcer.stop(Signal::SIGTERM)?;
    enforcer.boot()?;
    enforcer.start()?;
    ensure!(ask(1)? == statuses([(429, 1)]), "what was counted is lost");
    Ok(())
}
