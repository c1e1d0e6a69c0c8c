//! Fields that keys are in: the closed list of the policy, and no other way to bring one.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use enforcer_tests::client::Ending;
use enforcer_tests::netns::Way;
use enforcer_tests::origin::Workers;
use nix::sys::signal::Signal;

use crate::site::{Site, add_key, apply, events, executed_at, keyed, refused, request, statuses, v4};

const LIMIT: &str = "[principal.alice]\nlimit = \"30/hour\"";

#[test]
fn a_key_counts_for_one_budget_in_whichever_listed_field_it_comes_and_in_no_other() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("routes", Workers::Sync(2))?;
    let mut enforcer = site.guard(&format!("[service]\nkey_headers = [\"X-API-Key\", \"X-Legacy-Key\"]\n{LIMIT}"))?;
    let key = add_key(&enforcer, "alice")?;
    let of = |path: &str, field: &str| request(path, &[(field, &key)]);

    // Changing the field gains nothing: 30 in all.
    let endings = site.flood(v4(1), 20, |number| of("/one", ["X-API-Key", "x-legacy-KEY"][number % 2]))?;
    ensure!(endings == statuses([(200, 20)]), "{endings:?}");
    let endings = site.flood(v4(2), 20, |number| of("/one", ["X-Legacy-Key", "X-API-Key"][number % 2]))?;
    ensure!(endings == statuses([(200, 10), (429, 10)]), "{endings:?}");
    ensure!(executed_at(&origin, "/one")? == 30, "{} were executed", executed_at(&origin, "/one")?);

    // Two fields are two opinions of whose it is, the same key or not.
    let both = |second: &str| request("/two", &[("X-API-Key", &key), ("X-Legacy-Key", second)]);
    let endings = site.flood(v4(3), 4, |number| both(if number % 2 == 0 { &key } else { "another-key-0123456789" }))?;
    ensure!(endings == statuses([(400, 4)]), "{endings:?}");
    // Some servers take it for the other.
    let endings = site.flood(v4(3), 4, |_| of("/two", "X_Legacy_Key"))?;
    ensure!(endings == statuses([(400, 4)]), "{endings:?}");

    // Elsewhere it is no key, and that is counted.
    let (mismatches, unkeyed) = (events(&enforcer, "carrier_mismatch")?, refused(&enforcer, "unkeyed")?);
    ensure!((mismatches, unkeyed) == (0, 0), "{mismatches} and {unkeyed}");
    let elsewhere = [
        ("Authorization", format!("ApiKey {key}")),
        ("authorization", format!("Bearer {key}")),
        ("Api-Key", key.clone()),
        ("X-Auth-Token", key.clone()),
        ("Cookie", format!("session=a; api_key={key}")),
        ("cookie", format!("x-api-key={key}; theme=dark")),
    ];
    let endings = site.flood(v4(4), 6, |number| {
        let (field, value) = &elsewhere[number];
        request("/two", &[(field, value)])
    })?;
    ensure!(endings == statuses([(401, 6)]), "{endings:?}");
    let others = |number: usize| request("/two", &[(["X-Legacy-Keys", "X-API-Ke", "Cookie"][number % 3], &key)]);
    let endings = site.flood(v4(4), 6, others)?;
    ensure!(endings == statuses([(401, 6)]), "{endings:?}");
    let (mismatches, unkeyed) = (events(&enforcer, "carrier_mismatch")?, refused(&enforcer, "unkeyed")?);
    ensure!((mismatches, unkeyed) == (6, 12), "{mismatches} of {unkeyed} had a key elsewhere");
    ensure!(executed_at(&origin, "/two")? == 0, "{} were executed", executed_at(&origin, "/two")?);
    enforcer.stop(Signal::SIGTERM)?;
    Ok(())
}

#[test]
fn a_change_of_the_fields_holds_for_the_next_request_and_resets_no_count() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("routes", Workers::Threads(2))?;
    let mut enforcer = site.guard(LIMIT)?;
    let key = add_key(&enforcer, "alice")?;
    let endings = site.flood(v4(1), 25, |_| keyed("/", &key))?;
    ensure!(endings == statuses([(200, 25)]), "{endings:?}");

    let mut open = site.connect(v4(1))?;
    open.send(&keyed("/", &key));
    ensure!(open.answer().0 == Ending::Answered(200), "the open connection was not served");
    apply(&enforcer, &format!("[service]\nkey_headers = [\"X-Token\"]\n{LIMIT}"))?;
    open.send(&keyed("/", &key));
    ensure!(open.answer().0 == Ending::Answered(401), "the field holds no more");
    ensure!(events(&enforcer, "carrier_mismatch")? == 1, "that is a field where keys often are");
    let endings = site.flood(v4(1), 9, |_| request("/", &[("X-Token", &key)]))?;
    ensure!(endings == statuses([(200, 4), (429, 5)]), "{endings:?}");
    ensure!(executed_at(&origin, "/")? == 30, "{} were executed", executed_at(&origin, "/")?);
    enforcer.stop(Signal::SIGTERM)?;
    Ok(())
}

#[test]
fn a_key_in_the_url_is_counted_for_its_principal_and_warned_of_once() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _origin = site.serve("routes", Workers::Sync(2))?;
    let mut enforcer = site.guard("[principal.alice]\nlimit = \"2/hour\"\n[[route]]\npath = \"/one\"\ncost = 1")?;
    let key = add_key(&enforcer, "alice")?;
    site.flood(v4(1), 3, |_| keyed(&format!("/one?api_key={key}"), &key))?;
    site.flood(v4(1), 2, |_| request(&format!("/one?api_key={key}"), &[]))?;
    let of_alice = enforcer.metric("enforcer_key_in_url_total{principal=\"alice\"}")?;
    let all = events(&enforcer, "key_in_url")?;
    ensure!((of_alice, all) == (3, 5), "{of_alice} of {all} are alice's");
    ensure!(events(&enforcer, "carrier_mismatch")? == 2, "those without a key elsewhere");
    let warnings = || -> Result<usize> { Ok(enforcer.log()?.matches("named like a key").count()) };
    let begin = Instant::now();
    while warnings()? == 0 {
        ensure!(begin.elapsed() < Duration::from_secs(20), "nobody was warned");
        std::thread::sleep(Duration::from_millis(200));
    }
    site.flood(v4(1), 3, |_| keyed(&format!("/one?api_key={key}"), &key))?;
    std::thread::sleep(Duration::from_secs(6));
    ensure!(warnings()? == 1, "warned {} times", warnings()?);
    ensure!(!enforcer.log()?.contains(&key), "the log has the key");
    enforcer.stop(Signal::SIGTERM)?;
    Ok(())
}
