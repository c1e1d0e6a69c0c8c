//! Ways around a limit, each with the number of requests that it gains: many keys of one source, guessed keys, one key of
//! many sources, many addresses of one network, and what a client says of itself.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use enforcer_tests::client::{Ending, get};
use enforcer_tests::enforcer::Enforcer;
use enforcer_tests::netns::Way;
use enforcer_tests::origin::{Origin, Workers};
use enforcer_tests::process::wait_for;

use crate::site::{Endings, Site, add_key, events, keyed, known_key, random_key, refused, request, statuses, v4, v6};

/// Principals by number, each with 1000 requests an hour and one key of `apps/known.py`.
fn tenants(enforcer: &Enforcer<'_>, count: usize) -> Result<()> {
    let lines: String = (0..count).map(|number| format!("tenant-{number},{},1000/hour\n", known_key(number))).collect();
    let ran = enforcer.run_with_input(&["key", "import", "--weak", "-"], &lines)?;
    ensure!(ran.code == 0, "the keys were not taken over: {}", ran.stderr);
    Ok(())
}

/// Distinct keys in what the app executed.
fn keys(origin: &Origin) -> Result<usize> {
    let mut keys: Vec<_> = origin.executed()?.into_iter().map(|request| request.key).collect();
    keys.sort();
    keys.dedup();
    Ok(keys.len())
}

#[test]
fn fifty_keys_of_one_source_are_twenty() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("plain", Workers::Sync(2))?;
    let enforcer = site.guard("[service.keys_per_source]\nmost = 20\nwithin = \"1h\"\naction = \"limit\"")?;
    tenants(&enforcer, 50)?;
    let rotated = site.flood(v4(1), 500, |number| keyed("/", &known_key(number % 50)))?;
    ensure!(rotated == statuses([(200, 200), (429, 300)]), "50 keys of one source: {rotated:?}");
    ensure!(keys(&origin)? == 20, "requests of {} keys were executed", keys(&origin)?);
    ensure!(refused(&enforcer, "key_rotation")? == 300, "counted: {}", refused(&enforcer, "key_rotation")?);
    // It is the source's matter, not the keys'.
    let elsewhere = site.flood_from(|number| v4(100 + number as u16), 50, |number| keyed("/", &known_key(number)))?;
    ensure!(elsewhere == statuses([(200, 50)]), "the same keys, each of a source of its own: {elsewhere:?}");
    Ok(())
}

#[test]
fn by_default_many_keys_of_one_source_are_told_and_refuse_nobody() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("plain", Workers::Sync(2))?;
    let enforcer = site.guard("")?;
    tenants(&enforcer, 30)?;
    let rotated = site.flood(v4(1), 90, |number| keyed("/", &known_key(number % 30)))?;
    ensure!(rotated == statuses([(200, 90)]), "30 keys of one source: {rotated:?}");
    ensure!(events(&enforcer, "key_rotation")? == 10, "told of {} keys", events(&enforcer, "key_rotation")?);
    ensure!(origin.executed()?.len() == 90, "the app executed {}", origin.executed()?.len());
    Ok(())
}

#[test]
fn guesses_end_at_ten_a_minute_and_hinder_no_good_key() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("plain", Workers::Sync(2))?;
    let enforcer = site.guard("[principal.tenant]\nlimit = \"1000/hour\"")?;
    let key = add_key(&enforcer, "tenant")?;
    let gone = add_key(&enforcer, "tenant")?;
    let id = enforcer.json(&["key", "ls"])?["keys"]
        .as_array()
        .and_then(|keys| keys.last())
        .and_then(|key| key["id"].as_str().map(str::to_owned));
    let id = id.ok_or_else(|| anyhow::anyhow!("no keys are listed"))?;
    enforcer.cli(&["key", "disable", &format!("id:{id}")])?;
    let disabled = if site.ask(v4(9), &keyed("/", &gone))? == Ending::Answered(401) { &gone } else { &key };
    let good = if disabled == &gone { &key } else { &gone };
    let before = origin.executed()?.len();

    // Unknown and disabled ones are one and the same guess.
    let guess = |number: usize| {
        keyed("/", if number.is_multiple_of(2) { disabled.clone() } else { random_key(number) }.as_str())
    };
    let guessed = site.flood(v4(1), 100, guess)?;
    ensure!(guessed == statuses([(401, 10), (429, 90)]), "guesses: {guessed:?}");
    let other = site.flood(v6(1, 1), 100, |number| keyed("/", &random_key(number)))?;
    ensure!(other == statuses([(401, 10), (429, 90)]), "another source's guesses: {other:?}");
    ensure!(events(&enforcer, "guess_penalty")? == 2, "{} penalties", events(&enforcer, "guess_penalty")?);
    ensure!(refused(&enforcer, "guessing")? == 180, "counted: {}", refused(&enforcer, "guessing")?);
    let served = site.flood(v4(1), 50, |_| keyed("/", good))?;
    ensure!(served == statuses([(200, 50)]), "the good key of that source: {served:?}");
    ensure!(origin.executed()?.len() == before + 50, "{:?}", origin.executed()?);
    Ok(())
}

#[test]
fn a_guess_penalty_ends_and_strict_guesses_refuse_good_keys_for_its_time() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _origin = site.serve("plain", Workers::Sync(2))?;
    let enforcer = site.guard(
        "[service]\nguesses = \"3/second\"\nguess_penalty = \"3s\"\nstrict_guesses = true\n[principal.tenant]\nlimit = \"1000/hour\"",
    )?;
    let key = add_key(&enforcer, "tenant")?;
    // As fast as they come, more than three fall into one second.
    let begin = std::time::Instant::now();
    let guessed = site.flood(v4(1), 40, |number| keyed("/", &random_key(number)))?;
    let penalised = guessed.get(&Ending::Answered(429)).copied().unwrap_or(0);
    ensure!(penalised > 0, "40 guesses within {:?}: {guessed:?}", begin.elapsed());
    ensure!(
        site.ask(v4(1), &keyed("/", &key))? == Ending::Answered(429),
        "a good key is served in spite of strict_guesses"
    );
    ensure!(site.ask(v4(2), &keyed("/", &key))? == Ending::Answered(200), "another source pays for it");
    wait_for("the end of a guess penalty", || {
        Ok((site.ask(v4(1), &keyed("/", &key))? == Ending::Answered(200)).then_some(()))
    })?;
    ensure!(begin.elapsed().as_secs() >= 3, "the penalty took {:?}", begin.elapsed());
    ensure!(site.ask(v4(1), &keyed("/", &random_key(99)))? == Ending::Answered(401), "the next guess is not looked at");
    Ok(())
}

#[test]
fn a_leaked_key_works_for_as_many_sources_as_it_may_have() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("plain", Workers::Sync(2))?;
    let enforcer = site.guard(
        "[service.sources_per_key]\nmost = 25\nwithin = \"1h\"\naction = \"limit\"\n[principal.tenant]\nlimit = \"1000/hour\"\n[principal.other]\nlimit = \"1000/hour\"",
    )?;
    let key = add_key(&enforcer, "tenant")?;
    let other = add_key(&enforcer, "other")?;
    let own = site.ask(v4(1), &keyed("/", &key))?;
    ensure!(own == Ending::Answered(200), "its owner: {own:?}");
    // 40 more, of which the addresses of one /64 are one.
    let source = |number: usize| match number % 40 {
        near @ 0..20 => v4(2 + near as u16),
        far => v6(far as u8, 1 + (number / 40) as u16),
    };
    let leaked = site.flood_from(source, 160, |_| keyed("/", &key))?;
    ensure!(leaked == statuses([(200, 96), (429, 64)]), "24 of 40 more sources, 4 requests each: {leaked:?}");
    ensure!(refused(&enforcer, "key_shared")? == 64, "counted: {}", refused(&enforcer, "key_shared")?);
    ensure!(site.ask(v4(1), &keyed("/", &key))? == Ending::Answered(200), "its owner is locked out");
    ensure!(site.ask(v4(500), &keyed("/", &other))? == Ending::Answered(200), "another key is hindered");
    ensure!(origin.executed_with(&key)? == 98, "the app executed {}", origin.executed_with(&key)?);
    Ok(())
}

/// All requests of clients that take another address for each.
fn rotate(site: &Site, key: &str, source: impl Fn(u16) -> IpAddr + Sync) -> Result<Endings> {
    site.flood_from(|number| source(number as u16), 150, |_| keyed("/", key))
}

#[test]
fn all_addresses_of_a_64_share_a_source_s_limit_and_those_of_others_do_not() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("plain", Workers::Sync(2))?;
    let enforcer = site.guard("[service]\nsource = \"100/hour\"\n[principal.tenant]\nlimit = \"unlimited\"")?;
    let key = add_key(&enforcer, "tenant")?;
    let within = rotate(&site, &key, |number| v6(7, 1 + number))?;
    ensure!(within == statuses([(200, 100), (429, 50)]), "150 addresses of one /64: {within:?}");
    let without = rotate(&site, &key, |number| v6(10 + number as u8, 1))?;
    ensure!(without == statuses([(200, 150)]), "150 networks: {without:?}");
    // Of IPv4 each address is a source.
    let v4s = rotate(&site, &key, |number| v4(10 + number))?;
    ensure!(v4s == statuses([(200, 150)]), "150 addresses of IPv4: {v4s:?}");
    // Its limit is over all its keys.
    let second = add_key(&enforcer, "tenant")?;
    let keys = site.flood(v4(1), 150, |number| keyed("/", if number.is_multiple_of(2) { &key } else { &second }))?;
    ensure!(keys == statuses([(200, 100), (429, 50)]), "two keys of one source: {keys:?}");
    ensure!(origin.executed()?.len() == 500, "the app executed {}", origin.executed()?.len());
    Ok(())
}

#[test]
fn what_a_client_says_of_its_address_is_believed_of_trusted_proxies_alone() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("plain", Workers::Sync(2))?;
    let proxies = [v4(1), v4(2), v6(1, 1)];
    let enforcer = site.guard(&format!(
        "[service]\nsource = \"10/hour\"\ntrusted_proxies = [\"{}/31\", \"{}/32\", \"{}/64\"]\n[principal.tenant]\nlimit = \"unlimited\"",
        v4(0), v4(2), v6(1, 0),
    ))?;
    let key = add_key(&enforcer, "tenant")?;
    let via = |forwarded: &str| request("/", &[("X-API-Key", &key), ("X-Forwarded-For", forwarded)]);
    let spoofed = site.flood(v4(99), 50, |number| via(&format!("192.0.2.{number}")))?;
    ensure!(spoofed == statuses([(200, 10), (429, 40)]), "an address that is no proxy: {spoofed:?}");
    // What stands left of the client's address is the client's own invention; trusted hops right of it are passed over.
    let padded = site.flood(proxies[0], 50, |number| via(&format!("192.0.2.{number}, 203.0.113.7")))?;
    ensure!(padded == statuses([(200, 10), (429, 40)]), "a client that invents hops: {padded:?}");
    let chained =
        site.flood(proxies[1], 50, |number| via(&format!("192.0.2.{number},203.0.113.7 , {}", proxies[0])))?;
    ensure!(chained == statuses([(429, 50)]), "the same client behind two proxies: {chained:?}");
    let many = site.flood(proxies[0], 50, |number| via(&format!("203.0.113.{}", 100 + number)))?;
    ensure!(many == statuses([(200, 50)]), "50 clients of a proxy: {many:?}");
    // Each address of a /64 is the same client there, too.
    let six = site.flood(proxies[2], 50, |number| via(&format!("2001:db8::{number:x}")))?;
    ensure!(six == statuses([(200, 10), (429, 40)]), "a client with IPv6: {six:?}");
    // What is no address stands for the proxy itself, and does not open a door.
    let nonsense = site.flood(proxies[0], 50, |number| via(&format!("client-{number}")))?;
    let served = nonsense.get(&Ending::Answered(200)).copied().unwrap_or(0);
    ensure!(served <= 10, "50 that are no addresses: {nonsense:?}");
    let executed = origin.executed()?.len();
    ensure!(executed == 80 + served, "the app executed {executed}");
    Ok(())
}

#[test]
fn guesses_and_public_paths_are_counted_by_the_client_behind_a_proxy_and_not_by_the_proxy() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _origin = site.serve("plain", Workers::Sync(2))?;
    let _enforcer = site.guard(&format!("[service]\ntrusted_proxies = [\"{}/32\"]", v4(1)))?;
    let via = |forwarded: &str, key: &str| request("/", &[("X-API-Key", key), ("X-Forwarded-For", forwarded)]);
    let guessed = site.flood(v4(1), 50, |number| via("203.0.113.7", &random_key(number)))?;
    ensure!(guessed == statuses([(401, 10), (429, 40)]), "one guesser behind the proxy: {guessed:?}");
    let honest = site.ask(v4(1), &via("203.0.113.8", &random_key(99)))?;
    ensure!(honest == Ending::Answered(401), "its neighbour pays for it: {honest:?}");
    let direct = site.ask(v4(2), &get("/", None))?;
    ensure!(direct == Ending::Answered(401), "an unkeyed request: {direct:?}");
    Ok(())
}
