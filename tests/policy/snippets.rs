//! Four limiters as they are written again and again: a dictionary in a handler, Flask-Limiter by address, by key in each
//! worker's memory, and by client id and key. Each lets through what it should not, and none does behind the enforcer.

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use enforcer_tests::client::{Ending, get};
use enforcer_tests::netns::Way;
use enforcer_tests::origin::{Origin, Workers};
use nix::sys::signal::Signal;

use crate::site::{
    Endings, Site, add_key, keyed, known_key, random_key, refused, request, statuses, take_over, v4, v6,
};

/// Sends requests with one key until every worker has executed more than its limit of 100; how they ended.
pub(crate) fn saturate(site: &Site, origin: &Origin, path: &str, key: &str) -> Result<Endings> {
    let before = origin.executed()?.len();
    let (mut endings, mut by_worker) = (Endings::new(), BTreeMap::<u32, usize>::new());
    for _ in 0..12 {
        for (ending, count) in site.flood(v4(1), 400, |_| keyed(path, key))? {
            *endings.entry(ending).or_insert(0) += count;
        }
        by_worker.clear();
        for request in &origin.executed()?[before..] {
            *by_worker.entry(request.worker).or_insert(0) += 1;
        }
        if by_worker.len() == origin.workers() && by_worker.values().all(|executed| *executed > 100) {
            return Ok(endings);
        }
    }
    anyhow::bail!("some workers were hardly asked: {by_worker:?}")
}

/// How many were answered with 200.
pub(crate) fn served(endings: &Endings) -> usize {
    endings.get(&Ending::Answered(200)).copied().unwrap_or(0)
}

#[test]
fn a_dictionary_in_a_handler_lets_keyless_and_random_keys_through_and_gives_each_worker_the_limit() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("naive", Workers::Sync(4))?;
    ensure!(site.flood(v4(1), 1000, |_| get("/", None))? == statuses([(200, 1000)]), "keyless requests are limited");
    let random = site.flood(v4(1), 1000, |number| keyed("/", &random_key(number)))?;
    ensure!(random == statuses([(200, 1000)]), "random keys are limited: {random:?}");
    let endings = saturate(&site, &origin, "/", &known_key(0))?;
    ensure!(served(&endings) == 400, "one key at four workers: {endings:?}");
    Ok(())
}

#[test]
fn behind_the_enforcer_the_dictionary_sees_no_keyless_no_random_and_exactly_100() -> Result<()> {
    for way in Way::ALL {
        let site = Site::new(way)?;
        let origin = site.serve("naive", Workers::Sync(4))?;
        let enforcer = site.guard("[principal.tenant]\nlimit = \"100/minute\"")?;
        take_over(&enforcer, [("tenant", 0)])?;
        let maps = || -> Result<BTreeMap<String, f64>> {
            let metrics = enforcer.metrics()?;
            let entries = metrics.lines().filter_map(|line| line.strip_prefix("enforcer_map_entries{map=\""));
            entries
                .map(|line| {
                    let (map, value) = line.split_once("\"} ").context("a line of metrics")?;
                    Ok((map.to_owned(), value.parse()?))
                })
                .collect()
        };
        let before = maps()?;

        let keyless = site.flood(v4(1), 1000, |_| get("/", None))?;
        ensure!(keyless == statuses([(401, 1000)]), "keyless on {way:?}: {keyless:?}");
        // Ten guesses of a source in a minute are told so; the others are not looked at.
        let random = site.flood(v4(1), 1000, |number| keyed("/", &random_key(number)))?;
        ensure!(random == statuses([(401, 10), (429, 990)]), "random keys on {way:?}: {random:?}");
        ensure!(origin.executed()?.is_empty(), "the app executed {:?}", origin.executed()?);
        for (reason, count) in [("unkeyed", 1000), ("unknown_key", 10), ("guessing", 990)] {
            ensure!(refused(&enforcer, reason)? == count, "{reason}: {}", refused(&enforcer, reason)?);
        }
        // One source was here, under a few rules; what connections take is bounded by itself.
        let after = maps()?;
        let growth = |map: &str| -> Result<f64> {
            let entries = |maps: &BTreeMap<String, f64>| maps.get(map).copied().context("no such map in the metrics");
            Ok(entries(&after)? - entries(&before)?)
        };
        for (map, room) in [("KEYS", 0.0), ("BUCKETS", 0.0), ("SOURCE_BUCKETS", 4.0), ("SIGHTINGS", 0.0)] {
            ensure!(growth(map)? <= room, "{map} grew by {} on {way:?}", growth(map)?);
        }
        let metrics = enforcer.metrics()?;
        let mut named = metrics.lines().filter(|line| line.starts_with("enforcer_requests_total{"));
        ensure!(named.all(|line| line.contains("principal=\"tenant\"")), "random keys made counters: {metrics}");

        let one = site.flood(v4(1), 1000, |_| keyed("/", &known_key(0)))?;
        ensure!(one == statuses([(200, 100), (429, 900)]), "one key on {way:?}: {one:?}");
        ensure!(origin.executed_with(&known_key(0))? == 100, "executed {}", origin.executed_with(&known_key(0))?);
    }
    Ok(())
}

#[test]
fn a_limiter_by_address_counts_no_bad_key_and_lets_neighbours_starve_each_other() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("by_address", Workers::Sync(1))?;
    let keyless = site.flood(v4(1), 1000, |_| get("/data", None))?;
    let guessed = site.flood(v4(1), 1000, |number| keyed("/data", &random_key(number)))?;
    ensure!([&keyless, &guessed] == [&statuses([(401, 1000)]); 2], "bad keys are counted: {keyless:?}, {guessed:?}");
    ensure!(origin.executed()?.len() == 2000, "each guess costs a worker's time");
    let first = site.flood(v4(1), 100, |_| keyed("/data", &known_key(0)))?;
    ensure!(first == statuses([(200, 100)]), "the first key is hindered by guesses: {first:?}");
    let second = site.flood(v4(1), 100, |_| keyed("/data", &known_key(1)))?;
    ensure!(second == statuses([(429, 100)]), "another key of the same address: {second:?}");
    let spread = site.flood_from(|number| v4(2 + (number % 5) as u16), 500, |_| keyed("/data", &known_key(0)))?;
    ensure!(spread == statuses([(200, 500)]), "one key of five addresses: {spread:?}");
    Ok(())
}

#[test]
fn behind_the_enforcer_keys_are_counted_wherever_they_come_from_and_guesses_stop_at_ten() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    // Eight workers: what the app itself counts of an address would else hide what reaches it.
    let origin = site.serve("by_address", Workers::Sync(8))?;
    let enforcer = site.guard(
        "[principal.first]\nlimit = \"100/hour\"\n[principal.second]\nlimit = \"100/hour\"\n[principal.roaming]\nlimit = \"100/hour\"",
    )?;
    take_over(&enforcer, [("first", 0), ("second", 1), ("roaming", 2)])?;
    for source in [v4(1), v6(1, 1)] {
        let guessed = site.flood(source, 200, |number| keyed("/data", &random_key(number)))?;
        ensure!(guessed == statuses([(401, 10), (429, 190)]), "guesses of {source}: {guessed:?}");
    }
    ensure!(origin.executed()?.is_empty(), "guesses reached the app");
    for number in [0, 1] {
        site.flood(v4(1), 300, |_| keyed("/data", &known_key(number)))?;
        let executed = origin.executed_with(&known_key(number))?;
        ensure!(executed == 100, "of key {number}, from the address of another, {executed} reached the app");
    }
    let sources = [v4(2), v4(3), v4(4), v6(2, 1), v6(3, 1)];
    site.flood_from(|number| sources[number % 5], 500, |_| keyed("/data", &known_key(2)))?;
    let executed = origin.executed_with(&known_key(2))?;
    ensure!(executed == 100, "of one key from five addresses {executed} reached the app");
    Ok(())
}

#[test]
fn a_limiter_in_each_workers_memory_gives_as_many_limits_as_there_are_workers() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    for workers in [1, 2, 4, 8] {
        let origin = site.serve("by_key", Workers::Sync(workers))?;
        let endings = saturate(&site, &origin, "/data", &known_key(0))?;
        ensure!(served(&endings) == 100 * workers, "{workers} workers: {endings:?}");
    }
    let origin = site.serve("by_key", Workers::Sync(2))?;
    // No safeguard for who has many keys, and none for who writes a limit wrongly.
    let rotated = site.flood(v4(1), 1000, |number| keyed("/data", &known_key(number % 50)))?;
    ensure!(rotated == statuses([(200, 1000)]), "50 keys of one source: {rotated:?}");
    let typo = site.flood(v4(1), 1000, |_| keyed("/typo", &known_key(99)))?;
    ensure!(typo == statuses([(200, 1000)]), "a limit with a typo: {typo:?}");
    ensure!(origin.executed()?.len() == 2000, "the app executed {}", origin.executed()?.len());
    Ok(())
}

#[test]
fn behind_the_enforcer_the_limit_is_the_same_at_1_to_32_workers_and_over_restarts_of_app_and_daemon() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let mut enforcer = site.guard(
        "[principal.one]\nlimit = \"100/hour\"\n[principal.two]\nlimit = \"100/hour\"\n[principal.eight]\nlimit = \"100/hour\"\n\
         [principal.many]\nlimit = \"100/hour\"",
    )?;
    take_over(&enforcer, [("one", 1), ("two", 2), ("eight", 8), ("many", 32)])?;
    for workers in [1, 2, 8, 32] {
        let key = known_key(workers);
        let mut executed = 0;
        for (count, allowed) in [(40, 40), (40, 40), (140, 20)] {
            // Each time another app, whose memory is empty.
            let origin = site.serve("by_key", Workers::Sync(workers))?;
            let endings = site.flood(v4(1), count, |_| keyed("/data", &key))?;
            ensure!(served(&endings) == allowed, "{workers} workers, {allowed} left: {endings:?}");
            executed += origin.executed_with(&key)?;
            enforcer.stop(if allowed == 40 { Signal::SIGKILL } else { Signal::SIGTERM })?;
            enforcer.start()?;
        }
        ensure!(executed == 100, "{workers} workers executed {executed}");
    }
    Ok(())
}

#[test]
fn a_limit_before_the_check_of_keys_stores_every_guess_and_lets_keyless_clients_starve_each_other() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("by_default", Workers::Sync(1))?;
    let guessed = site.flood(v4(1), 1000, |number| keyed("/data", &random_key(number)))?;
    ensure!(guessed == statuses([(401, 1000)]), "guesses: {guessed:?}");
    let mut counters = site.connect(v4(1))?;
    counters.send(&keyed("/counters", &known_key(0)));
    let (ending, body) = counters.answer();
    let stored: usize = String::from_utf8(body)?.trim().parse().with_context(|| format!("{ending:?}"))?;
    ensure!(stored >= 1000, "{stored} counters are stored");
    let keyless = site.flood(v4(2), 300, |_| get("/data", None))?;
    ensure!(keyless == statuses([(401, 100), (429, 200)]), "keyless: {keyless:?}");
    ensure!(site.ask(v4(3), &get("/data", None))? == Ending::Answered(429), "another address has a count of its own");
    ensure!(origin.executed()?.len() == 1302, "the app executed {}", origin.executed()?.len());
    Ok(())
}

#[test]
fn behind_the_enforcer_keyless_clients_share_nothing_and_a_window_s_edge_lets_nothing_more_through() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("by_default", Workers::Sync(1))?;
    let enforcer = site.guard("[principal.tenant]\nlimit = \"100/hour\"")?;
    take_over(&enforcer, [("tenant", 0)])?;
    let keyless = site.flood(v4(2), 300, |_| get("/data", None))?;
    ensure!(keyless == statuses([(401, 300)]), "keyless: {keyless:?}");
    ensure!(site.ask(v4(3), &get("/data", None))? == Ending::Answered(401), "another address is told of a limit");
    ensure!(origin.executed()?.is_empty(), "the app executed {:?}", origin.executed()?);
    let good = site.flood(v4(2), 100, |_| keyed("/data", &known_key(0)))?;
    ensure!(good == statuses([(200, 100)]), "the tenant is hindered: {good:?}");
    Ok(())
}

/// One request to begin a window of ten seconds, 99 near its end, 150 behind it: how many of the last were served, and how
/// long after the end of the window the last of them ended.
fn around_the_edge(site: &Site, key: &str) -> Result<(usize, Duration)> {
    let window = Duration::from_secs(10);
    // The window begins between the two.
    let earliest = Instant::now();
    site.ask(v4(1), &keyed("/data", key))?;
    let latest = Instant::now();
    sleep(Duration::from_secs(6).saturating_sub(earliest.elapsed()));
    let near = site.flood(v4(1), 99, |_| keyed("/data", key))?;
    ensure!(near == statuses([(200, 99)]), "near the end of the window: {near:?}");
    ensure!(earliest.elapsed() < window, "the machine is too slow for this test: {:?}", earliest.elapsed());
    sleep((window + Duration::from_millis(100)).saturating_sub(latest.elapsed()));
    let behind = site.flood(v4(1), 150, |_| keyed("/data", key))?;
    Ok((served(&behind), earliest.elapsed() - window))
}

#[test]
fn a_fixed_window_lets_twice_its_limit_through_at_its_edge_and_a_sliding_one_does_not() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("at_edge", Workers::Sync(1))?;
    let (passed, _) = around_the_edge(&site, &known_key(0))?;
    ensure!(passed == 100, "of the app's second window {passed} were served");

    let enforcer = site.guard("[principal.tenant]\nlimit = \"100 per 10 seconds\"")?;
    take_over(&enforcer, [("tenant", 1)])?;
    let (passed, time) = around_the_edge(&site, &known_key(1))?;
    let executed = origin.executed_with(&known_key(1))? - 100;
    // Ten a second are given back as the old window slides out.
    let most = time.as_millis() as usize / 100 + 1;
    ensure!(
        passed == executed && passed <= most,
        "{passed} passed within {time:?} behind the edge, {executed} executed"
    );
    Ok(())
}

#[test]
fn a_client_id_in_the_key_of_a_limit_lets_everything_through() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("by_client", Workers::Sync(1))?;
    let rotated =
        |number: usize| request("/data", &[("X-API-Key", &known_key(0)), ("X-Client-Id", &format!("client-{number}"))]);
    let endings = site.flood(v4(1), 2000, rotated)?;
    ensure!(endings == statuses([(200, 2000)]), "one key, 2000 client ids: {endings:?}");
    ensure!(origin.executed()?.len() == 2000, "the app executed {}", origin.executed()?.len());
    Ok(())
}

#[test]
fn behind_the_enforcer_2000_client_ids_of_a_key_share_its_100_and_declared_ones_have_their_parts() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("by_client", Workers::Sync(1))?;
    let enforcer = site.guard(
        "[service]\nclient_id = \"X-Client-Id\"\n[principal.whole]\nlimit = \"100/hour\"\n\
         [principal.shared]\nlimit = \"100/hour\"\n\
         [principal.shared.clients]\nmobile = \"60/hour\"\nweb = \"30/hour\"\nother = \"10/hour\"",
    )?;
    take_over(&enforcer, [("whole", 0), ("shared", 1)])?;
    let of = |key: usize, client: &str| request("/data", &[("X-API-Key", &known_key(key)), ("X-Client-Id", client)]);
    site.flood(v4(1), 2000, |number| of(0, &format!("client-{number}")))?;
    let executed = origin.executed_with(&known_key(0))?;
    ensure!(executed == 100, "2000 client ids got {executed} requests through");

    let mut before = 0;
    // Who is not declared cannot use up what the others have.
    for (client, share) in [("undeclared", 10), ("another", 0), ("mobile", 60), ("web", 30), ("mobile", 0)] {
        site.flood(v4(1), 200, |_| of(1, client))?;
        let executed = origin.executed_with(&known_key(1))?;
        ensure!(executed - before == share, "{client} got {} through, not {share}", executed - before);
        before = executed;
    }
    let without = site.flood(v4(1), 10, |_| keyed("/data", &known_key(1)))?;
    ensure!(without == statuses([(429, 10)]), "without a client id: {without:?}");
    Ok(())
}

#[test]
fn a_limit_is_its_key_s_wherever_it_is_sent_from_and_however_it_is_sent() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("plain", Workers::Threads(2))?;
    let enforcer = site.guard(
        "[principal.roaming]\nlimit = \"90/hour\"\n[principal.first]\nlimit = \"50/hour\"\n\
         [principal.second]\nlimit = \"50/hour\"\n[principal.few]\nlimit = \"3/hour\"\n[principal.gone]\nlimit = \"50/hour\"",
    )?;
    let [roaming, first, second, few, gone] =
        ["roaming", "first", "second", "few", "gone"].map(|name| add_key(&enforcer, name));
    let (roaming, first, second, few, gone) = (roaming?, first?, second?, few?, gone?);
    enforcer.cli(&["key", "rm", "gone"])?;

    // One key of three sources: its limit in total.
    let sources = [v4(1), v4(2), v6(1, 1)];
    let spread = site.flood_from(|number| sources[number % 3], 180, |_| keyed("/", &roaming))?;
    ensure!(spread == statuses([(200, 90), (429, 90)]), "one key of three sources: {spread:?}");
    // Two keys of one source: each its own.
    let both = site.flood(v4(3), 200, |number| keyed("/", if number.is_multiple_of(2) { &first } else { &second }))?;
    ensure!(both == statuses([(200, 100), (429, 100)]), "two keys of one source: {both:?}");
    ensure!(origin.executed_with(&first)? == 50 && origin.executed_with(&second)? == 50, "not each its own");

    let twice = request("/", &[("X-API-Key", &roaming), ("X-API-Key", &first)]);
    for (what, bad, status) in [
        ("without a key", get("/", None), 401),
        ("an unknown key", keyed("/", &random_key(1)), 401),
        ("a revoked key", keyed("/", &gone), 401),
        ("a key in the query", get(&format!("/?api_key={first}"), None), 401),
        ("a key in a cookie", request("/", &[("Cookie", &format!("X-API-Key={first}"))]), 401),
        ("two keys", twice, 400),
        ("a key by another name", request("/", &[("X_API_Key", &first)]), 400),
    ] {
        let ending = site.ask(v4(4), &bad)?;
        ensure!(ending == Ending::Answered(status), "{what}: {ending:?}");
    }

    // Requests in one segment are judged one by one, and one in many pieces once.
    let five: Vec<u8> = (0..5).flat_map(|_| keyed("/", &few)).collect();
    let mut pipelined = site.connect(v4(5))?;
    pipelined.send(&five);
    while let (Ending::Answered(status), _) = pipelined.answer() {
        ensure!(status == 200, "a pipelined request is answered with {status}");
    }
    let whole = keyed("/", &few);
    let pieces: Vec<&[u8]> = whole.chunks(16).collect();
    let mut rest = Vec::new();
    for _ in 0..5 {
        let mut connection = site.connect(v4(5))?;
        connection.send_slowly(&pieces, Duration::from_millis(5));
        rest.push(connection.answer().0);
    }
    ensure!(rest.last() == Some(&Ending::Answered(429)), "requests in pieces: {rest:?}");
    ensure!(origin.executed_with(&few)? == 3, "of 3 an hour {} were executed", origin.executed_with(&few)?);
    ensure!(origin.executed()?.len() == 193, "the app executed {}", origin.executed()?.len());
    Ok(())
}
