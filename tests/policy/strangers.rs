//! Who has no key, or none that is registered, where a policy lets such pass: each under a limit, and never in the way of others.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use enforcer_tests::client::{Connection, Ending};
use enforcer_tests::enforcer::Enforcer;
use enforcer_tests::netns::Way;
use enforcer_tests::origin::Workers;
use serde_json::Value;

use crate::site::{Endings, Site, add_key, apply, events, keyed, random_key, refused, request, statuses, v4, v6};

const GOOD: u16 = 200;
const OVER: u16 = 429;

/// Sends requests one after another, each on a connection of its own.
fn in_turn(site: &Site, source: IpAddr, requests: impl Iterator<Item = Vec<u8>>) -> Result<Vec<u16>> {
    requests
        .map(|request| match site.ask(source, &request)? {
            Ending::Answered(status) => Ok(status),
            other => anyhow::bail!("{other:?}"),
        })
        .collect()
}

fn counted(statuses: &[u16]) -> Endings {
    let mut endings = Endings::new();
    for status in statuses {
        *endings.entry(Ending::Answered(*status)).or_insert(0) += 1;
    }
    endings
}

/// Which limits apply to a request that is asked about, as pairs of a rule and whose bucket it is; with a key that is handed in, or
/// without one.
fn explained(enforcer: &Enforcer<'_>, source: IpAddr, key: Option<&str>) -> Result<Vec<(String, String)>> {
    let source = source.to_string();
    let mut line = vec!["explain", "GET", "/", "-o", "json", "--source", &source];
    line.extend(key.map(|_| "--key-stdin"));
    let ran = enforcer.run_with_input(&line, key.unwrap_or_default())?;
    ensure!(ran.code == 0, "{}", ran.stderr);
    let told: Value = serde_json::from_str(&ran.stdout)?;
    let text = |limit: &Value, field: &str| limit[field].as_str().unwrap_or_default().to_owned();
    let limits = told["limits"].as_array().cloned().unwrap_or_default();
    Ok(limits.iter().map(|limit| (text(limit, "rule"), text(limit, "bucket"))).collect())
}

#[test]
fn requests_without_a_key_pass_within_a_limit_of_their_source_where_a_policy_says_so() -> Result<()> {
    for way in [Way::VethNative, Way::VethTc] {
        let site = Site::new(way)?;
        let origin = site.serve("routes", Workers::Sync(2))?;
        let enforcer = site.guard(
            "[service]\nunkeyed = \"5/hour\"\nguesses = \"unlimited\"\n[principal.tenant]\nlimit = \"unlimited\"",
        )?;
        let key = add_key(&enforcer, "tenant")?;
        for (source, next) in [(v4(1), v4(1)), (v4(2), v4(2)), (v6(1, 1), v6(1, 2))] {
            let first = site.flood(source, 10, |_| request("/", &[]))?;
            ensure!(first == statuses([(GOOD, 5), (OVER, 5)]), "{source} on {way:?}: {first:?}");
            // Another address of the same /64 is the same source; another field makes nobody another.
            let more = site.flood(next, 10, |number| request("/", &[("X-Client-Id", &number.to_string())]))?;
            ensure!(more == statuses([(OVER, 10)]), "{next} on {way:?}: {more:?}");
        }
        ensure!(events(&enforcer, "unkeyed")? == 60, "counted: {}", events(&enforcer, "unkeyed")?);
        // A key is a principal's still, and a bad one, or two, never pass for none.
        let good = site.flood(v4(1), 20, |_| keyed("/", &key))?;
        ensure!(good == statuses([(GOOD, 20)]), "a principal beside: {good:?}");
        let bad = site.flood(v4(3), 10, |number| keyed("/", &random_key(number)))?;
        ensure!(bad == statuses([(401, 10)]), "bad keys: {bad:?}");
        for fields in [
            &[("X-API-Key", key.as_str()), ("X-API-Key", key.as_str())][..],
            &[("X-API-Key", "")],
            &[("X-API-Key", "short")],
            &[("X_API_Key", key.as_str()), ("X-API-Key", key.as_str())],
        ] {
            let ending = site.ask(v4(3), &request("/", fields))?;
            ensure!(ending == Ending::Answered(400), "{fields:?}: {ending:?}");
        }
        // A key where none is taken from is none.
        let elsewhere = site.flood(v4(4), 10, |_| request(&format!("/?api_key={key}"), &[]))?;
        ensure!(elsewhere == statuses([(GOOD, 5), (OVER, 5)]), "a key in the query: {elsewhere:?}");
        ensure!(events(&enforcer, "carrier_mismatch")? == 10, "{}", events(&enforcer, "carrier_mismatch")?);
        ensure!(
            refused(&enforcer, "unkeyed")? == 0 && refused(&enforcer, "over_limit")? == 3 * (5 + 10) + 5,
            "other reasons"
        );
        ensure!(origin.executed()?.len() == 15 + 20 + 5, "the app executed {}", origin.executed()?.len());
    }
    Ok(())
}

#[test]
fn what_holds_for_all_holds_without_a_key_too() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("routes", Workers::Threads(2))?;
    let policy = |unkeyed: &str| {
        format!(
            "[service]\nunkeyed = \"{unkeyed}\"\nsource = \"30/hour\"\nceiling = \"1000/hour\"\n\
             [principal.tenant]\nlimit = \"unlimited\"\n\
             [[route]]\npath = \"/search\"\nlimit = \"4/hour\"\n[[route]]\npath = \"/all\"\nlimit = \"6/hour\"\nper = \"service\"\n\
             [[route]]\npath = \"/dear\"\ncost = 10\n[[public]]\npath = \"/health\"\nlimit = \"2/hour\""
        )
    };
    let enforcer = site.guard(&policy("20/hour"))?;
    let key = add_key(&enforcer, "tenant")?;
    // A route's limit of each principal is one of each source, and the principal's own is none of it.
    let searches = site.flood(v4(1), 10, |_| request("/search", &[]))?;
    ensure!(searches == statuses([(GOOD, 4), (OVER, 6)]), "{searches:?}");
    let searches = site.flood(v4(10), 10, |_| request("/search", &[]))?;
    ensure!(searches == statuses([(GOOD, 4), (OVER, 6)]), "another source's: {searches:?}");
    let searches = site.flood(v4(1), 10, |_| keyed("/search", &key))?;
    ensure!(searches == statuses([(GOOD, 4), (OVER, 6)]), "a principal's: {searches:?}");
    // One that is everybody's is one for both.
    let all = site.flood(v4(2), 4, |_| request("/all", &[]))?;
    ensure!(all == statuses([(GOOD, 4)]), "{all:?}");
    let all = site.flood(v4(3), 4, |_| keyed("/all", &key))?;
    ensure!(all == statuses([(GOOD, 2), (OVER, 2)]), "with a key: {all:?}");
    // What costs more counts as more: 20 are two of 10.
    let dear = site.flood(v4(4), 5, |_| request("/dear", &[]))?;
    ensure!(dear == statuses([(GOOD, 2), (OVER, 3)]), "{dear:?}");
    // The limit of a source is over both: 20 without a key, 10 with one.
    let first = site.flood(v4(5), 25, |_| request("/", &[]))?;
    ensure!(first == statuses([(GOOD, 20), (OVER, 5)]), "{first:?}");
    let then = site.flood(v4(5), 25, |_| keyed("/", &key))?;
    ensure!(then == statuses([(GOOD, 10), (OVER, 15)]), "with a key behind it: {then:?}");
    let health = site.flood(v4(6), 5, |_| request("/health", &[]))?;
    ensure!(health == statuses([(GOOD, 2), (OVER, 3)]), "a public path: {health:?}");
    // A change holds at once, on open connections too, and begins nothing anew.
    let mut open: Connection = site.connect(v4(7))?;
    let mut next = || -> Result<Ending> {
        open.send(&request("/", &[]));
        Ok(open.answer().0)
    };
    for _ in 0..3 {
        ensure!(next()? == Ending::Answered(GOOD), "before a change");
    }
    apply(&enforcer, &policy("4/hour"))?;
    ensure!(next()? == Ending::Answered(GOOD), "the fourth of 4");
    ensure!(next()? == Ending::Answered(OVER), "the fifth of 4");
    apply(&enforcer, &policy("reject"))?;
    ensure!(site.ask(v4(8), &request("/", &[]))? == Ending::Answered(401), "where a key is needed");
    let exported = enforcer.cli(&["export"])?;
    ensure!(exported.contains("unkeyed = \"blocked\""), "{exported}");
    apply(&enforcer, &policy("5/hour"))?;
    ensure!(site.ask(v4(7), &request("/", &[]))? == Ending::Answered(GOOD), "one more of 5 with 4 used");
    ensure!(site.ask(v4(7), &request("/", &[]))? == Ending::Answered(OVER), "the sixth of 5");
    let limits = explained(&enforcer, v4(7), None)?;
    let bucket = v4(7).to_string();
    ensure!(limits.iter().any(|(rule, of)| rule == "unkeyed" && of.starts_with(&bucket)), "{limits:?}");
    ensure!(origin.executed()?.len() == 4 + 4 + 4 + 4 + 2 + 2 + 20 + 10 + 2 + 4 + 1, "{}", origin.executed()?.len());
    Ok(())
}

#[test]
fn a_source_that_guesses_is_refused_without_a_key_too_where_that_is_strict() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("routes", Workers::Sync(1))?;
    let enforcer = site.guard("[service]\nunkeyed = \"20/hour\"\nguesses = \"3/hour\"\nstrict_guesses = true")?;
    let guesses = in_turn(&site, v4(1), (0..5).map(|number| keyed("/", &random_key(number))))?;
    ensure!(guesses == [401, 401, 401, OVER, OVER], "{guesses:?}");
    ensure!(site.ask(v4(1), &request("/", &[]))? == Ending::Answered(OVER), "without a key");
    ensure!(site.ask(v4(2), &request("/", &[]))? == Ending::Answered(GOOD), "from elsewhere");
    ensure!(
        origin.executed()?.len() == 1 && refused(&enforcer, "guessing")? == 3,
        "others: {}",
        origin.executed()?.len()
    );
    Ok(())
}

#[test]
fn keys_that_are_not_registered_have_a_limit_each_and_share_one_beyond_their_number() -> Result<()> {
    const KEYS: usize = 10;
    for way in [Way::VethNative, Way::VethTc] {
        let site = Site::new(way)?;
        let origin = site.serve("routes", Workers::Sync(2))?;
        let enforcer = site.guard(&format!(
            "[service]\nsource = \"1000/hour\"\n[service.unregistered]\nlimit = \"3/hour\"\nmax_keys = {KEYS}\n\
             [principal.tenant]\nlimit = \"5/hour\"\n[principal.gone]\nlimit = \"5/hour\"\n\
             [[route]]\npath = \"/search\"\nlimit = \"2/hour\""
        ))?;
        let (key, gone) = (add_key(&enforcer, "tenant")?, add_key(&enforcer, "gone")?);
        enforcer.cli(&["key", "disable", "gone"])?;
        // One key from two addresses has one limit.
        let own = in_turn(&site, v4(1), (0..2).map(|_| keyed("/", &random_key(0))))?;
        ensure!(own == [GOOD, GOOD], "{own:?}");
        let own = in_turn(&site, v4(2), (0..2).map(|_| keyed("/", &random_key(0))))?;
        ensure!(own == [GOOD, OVER], "from elsewhere: {own:?}");
        // The next nine have their own, and all others one together.
        let others = in_turn(&site, v4(1), (1..40).flat_map(|number| vec![keyed("/", &random_key(number)); 4]))?;
        for (number, of_one) in others.chunks(4).enumerate() {
            let expected = if number < KEYS { [GOOD, GOOD, GOOD, OVER] } else { [OVER; 4] };
            ensure!(of_one == expected, "key {}: {of_one:?}", number + 1);
        }
        let shared = 4 * (39 - (KEYS - 1)) as u64;
        let overflow = events(&enforcer, "unregistered_overflow")?;
        ensure!(overflow == shared, "{overflow} shared, not {shared}");
        // Those that had one keep it, from anywhere.
        let own = in_turn(&site, v4(9), (0..2).map(|_| keyed("/", &random_key(3))))?;
        ensure!(own == [OVER, OVER], "a key with a count of its own: {own:?}");
        // A principal is none of them, its limits its own; a key that was taken away from one does not pass as a stranger's.
        let good = site.flood(v4(1), 10, |_| keyed("/", &key))?;
        ensure!(good == statuses([(GOOD, 5), (OVER, 5)]), "a principal beside: {good:?}");
        ensure!(site.ask(v4(1), &keyed("/", &gone))? == Ending::Answered(401), "a key that is disabled");
        ensure!(site.ask(v4(1), &request("/", &[]))? == Ending::Answered(401), "no key");
        ensure!(origin.executed()?.len() == 3 + 3 * KEYS + 5, "on {way:?}: {}", origin.executed()?.len());
        // What a stranger may do on a route counts for where it comes from, so it takes nobody's place.
        ensure!(refused(&enforcer, "unknown_key")? == 0, "bad keys");
        ensure!(explained(&enforcer, v4(1), None)?.is_empty(), "without a key");
        for (number, shared) in [(0, false), (20, true), (99, true)] {
            let limits = explained(&enforcer, v4(1), Some(&random_key(number)))?;
            let of = limits.iter().find(|(rule, _)| rule == "unregistered").map(|(_, of)| of.starts_with("all "));
            ensure!(of == Some(shared), "key {number}: {limits:?}");
        }
    }
    Ok(())
}

#[test]
fn who_makes_up_keys_has_a_limit_all_the_same_and_takes_no_place_of_others() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("routes", Workers::Sync(2))?;
    let policy = "[service]\nsource = \"20/hour\"\n[service.unregistered]\nlimit = \"10/hour\"\nmax_keys = 100\n\
                  [service.keys_per_source]\nmost = 2\nwithin = \"1h\"\naction = \"limit\"\n\
                  [principal.tenant]\nlimit = \"unlimited\"\n[[route]]\npath = \"/search\"\nlimit = \"4/hour\"";
    let enforcer = site.guard(policy)?;
    let key = add_key(&enforcer, "tenant")?;
    let rotated = site.flood(v4(1), 200, |number| keyed("/", &random_key(number)))?;
    ensure!(rotated == statuses([(GOOD, 20), (OVER, 180)]), "200 keys of one source: {rotated:?}");
    // What was refused has taken no place: an honest newcomer has a count of its own.
    let newcomer = in_turn(&site, v4(6), (0..12).map(|_| keyed("/", "an-honest-newcomer-s-key")))?;
    ensure!(counted(&newcomer) == statuses([(GOOD, 10), (OVER, 2)]), "a newcomer beside: {newcomer:?}");
    ensure!(events(&enforcer, "unregistered_overflow")? == 0, "places are taken by what was refused");
    // A route's limit is one for all keys that a source makes up.
    let searches = in_turn(&site, v4(2), (0..10).map(|number| keyed("/search", &random_key(1000 + number))))?;
    ensure!(counted(&searches) == statuses([(GOOD, 4), (OVER, 6)]), "{searches:?}");
    let searches = in_turn(&site, v4(3), (0..6).map(|_| keyed("/search", &key)))?;
    ensure!(counted(&searches) == statuses([(GOOD, 4), (OVER, 2)]), "a principal's: {searches:?}");
    ensure!(events(&enforcer, "key_rotation")? == 0, "keys that anyone can make up are none to count");
    // A stranger's key with two headers, or in another field, is refused as any.
    let twice = [("X-API-Key", "a-stranger-s-key-1"), ("X-API-Key", "a-stranger-s-key-2")];
    ensure!(site.ask(v4(4), &request("/", &twice))? == Ending::Answered(400), "two keys");
    apply(&enforcer, "[principal.tenant]\nlimit = \"unlimited\"")?;
    ensure!(site.ask(v4(5), &keyed("/", &random_key(7)))? == Ending::Answered(401), "where keys must be registered");
    ensure!(origin.executed()?.len() == 38, "{}", origin.executed()?.len());
    Ok(())
}
