//! Limits by path and method, what needs no key, what one request costs, and the limit of all requests together.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use enforcer_tests::client::Ending;
use enforcer_tests::netns::Way;
use enforcer_tests::origin::Workers;
use jiff::{SignedDuration, Timestamp};

use crate::site::{
    Site, add_key, apply, events, executed_at, keyed, plain_request, refused, request, statuses, v4, v6, with_policy,
};

#[test]
fn a_path_has_one_limit_however_it_is_written() -> Result<()> {
    for way in [Way::VethNative, Way::VethTc] {
        let site = Site::new(way)?;
        let origin = site.serve("routes", Workers::Threads(2))?;
        let enforcer = site
            .guard("[principal.tenant]\nlimit = \"unlimited\"\n[[route]]\npath = \"/search\"\nlimit = \"20/hour\"")?;
        let key = add_key(&enforcer, "tenant")?;
        let spellings = [
            "/search",
            "/search/",
            "//search",
            "/search?q=1",
            "/%73earch",
            "/s%65arch/",
            "///search//",
            "/sea%72ch?%2F..",
            "/search/deep/er",
            "http://app.test/search",
            "http://other.test//%73%65%61%72%63%68",
        ];
        let endings = site.flood(v4(1), 220, |number| keyed(spellings[number % spellings.len()], &key))?;
        ensure!(endings == statuses([(200, 20), (429, 200)]), "on {way:?}: {endings:?}");
        // What servers read in two ways reaches none.
        let tricks = [
            "/x/../search",
            "/./search",
            "/x/%2e%2e/search",
            "/x/.%2E/search",
            "/search%2Fdeep",
            "/search%5Cdeep",
            "/search\\deep",
            "/%00search",
            "/search%0d",
            "/search%7f",
            "/search%",
            "/search%4",
            "/search%zz",
            "/search#top",
        ];
        for trick in tricks {
            let ending = site.ask(v4(1), &keyed(trick, &key))?;
            ensure!(ending == Ending::Answered(400), "{trick} on {way:?}: {ending:?}");
        }
        ensure!(refused(&enforcer, "path")? + refused(&enforcer, "malformed")? == tricks.len() as u64, "other reasons");
        // Other paths are others: case counts, and so does the end of a segment.
        for other in ["/Search", "/searches", "/x/search", "/%2573earch", "/"] {
            let ending = site.ask(v4(1), &keyed(other, &key))?;
            ensure!(ending == Ending::Answered(200), "{other} on {way:?}: {ending:?}");
        }
        ensure!(origin.executed()?.len() == 25, "the app executed {}", origin.executed()?.len());
    }
    Ok(())
}

#[test]
fn the_longest_path_and_the_method_choose_the_limit() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("routes", Workers::Sync(2))?;
    let enforcer = site.guard(
        "[principal.tenant]\nlimit = \"unlimited\"\n\
         [[route]]\npath = \"/\"\nlimit = \"5/hour\"\n\
         [[route]]\npath = \"/user\"\nlimit = \"6/hour\"\n\
         [[route]]\npath = \"/user/{id}/orders\"\nlimit = \"7/hour\"\n\
         [[route]]\npath = \"/user/me/orders\"\nmethods = [\"GET\"]\nlimit = \"8/hour\"\n\
         [[route]]\npath = \"/user/me/orders\"\nmethods = [\"POST\"]\nlimit = \"3/hour\"",
    )?;
    let key = add_key(&enforcer, "tenant")?;
    for (method, paths, allowed) in [
        ("GET", &["/", "/nothing", "/x/y/z"][..], 5),
        ("GET", &["/user", "/user/7", "/user/7/invoices"], 6),
        ("GET", &["/user/7/orders", "/user/8/orders", "/user/8/orders/1"], 7),
        ("GET", &["/user/me/orders", "/user/me/orders/1"], 8),
        ("POST", &["/user/me/orders", "/user/me/orders/1"], 3),
    ] {
        let before = origin.executed()?.len();
        let fields = [("X-API-Key", key.as_str()), ("Content-Length", "0")];
        site.flood(v4(1), 30, |number| plain_request(method, paths[number % paths.len()], &fields))?;
        let executed = origin.executed()?.len() - before;
        ensure!(executed == allowed, "{method} {paths:?}: {executed} reached the app, not {allowed}");
    }
    Ok(())
}

#[test]
fn a_route_s_limit_is_each_principal_s_or_each_source_s_or_everybody_s() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("routes", Workers::Sync(2))?;
    let enforcer = site.guard(
        "[principal.alice]\nlimit = \"unlimited\"\n[principal.bob]\nlimit = \"unlimited\"\n\
         [[route]]\npath = \"/principal\"\nlimit = \"10/hour\"\n\
         [[route]]\npath = \"/source\"\nlimit = \"10/hour\"\nper = \"source\"\n\
         [[route]]\npath = \"/service\"\nlimit = \"10/hour\"\nper = \"service\"",
    )?;
    let keys = [add_key(&enforcer, "alice")?, add_key(&enforcer, "bob")?];
    // Two principals, each from two sources.
    for (path, allowed) in [("/principal", 20), ("/source", 20), ("/service", 10)] {
        let source = |number: usize| v4(1 + (number / 2 % 2) as u16);
        site.flood_from(source, 120, |number| keyed(path, &keys[number % 2]))?;
        ensure!(executed_at(&origin, path)? == allowed, "{path}: {} reached the app", executed_at(&origin, path)?);
    }
    Ok(())
}

#[test]
fn routes_share_a_named_limit_and_a_principal_s_own_holds_over_all_of_them() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("routes", Workers::Sync(2))?;
    let enforcer = site.guard(
        "[principal.alice]\nlimit = \"50/hour\"\n[principal.bob]\nlimit = \"12/hour\"\n\
         [limit.reports]\nlimit = \"30/hour\"\n\
         [[route]]\npath = \"/report/a\"\nuse = \"reports\"\n[[route]]\npath = \"/report/b\"\nuse = \"reports\"",
    )?;
    let (alice, bob) = (add_key(&enforcer, "alice")?, add_key(&enforcer, "bob")?);
    let paths = ["/report/a", "/report/b"];
    site.flood(v4(1), 100, |number| keyed(paths[number % 2], &alice))?;
    ensure!(origin.executed_with(&alice)? == 30, "the two routes: {}", origin.executed_with(&alice)?);
    // What was refused there cost nothing here.
    site.flood(v4(1), 100, |_| keyed("/elsewhere", &alice))?;
    ensure!(origin.executed_with(&alice)? == 50, "all routes: {}", origin.executed_with(&alice)?);
    site.flood(v4(1), 100, |number| keyed(paths[number % 2], &bob))?;
    ensure!(origin.executed_with(&bob)? == 12, "whose own limit is smaller: {}", origin.executed_with(&bob)?);
    Ok(())
}

#[test]
fn a_request_counts_as_its_route_says_and_passes_only_where_there_is_room_for_all_of_it() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("routes", Workers::Sync(2))?;
    let enforcer = site.guard(
        "[principal.tenant]\nlimit = \"24/hour\"\n[[route]]\npath = \"/export\"\ncost = 5\n\
         [principal.other]\nlimit = \"unlimited\"\n[[route]]\npath = \"/search\"\nlimit = \"20/hour\"\ncost = 5",
    )?;
    let (key, other) = (add_key(&enforcer, "tenant")?, add_key(&enforcer, "other")?);
    site.flood(v4(1), 20, |_| keyed("/export", &key))?;
    ensure!(executed_at(&origin, "/export")? == 4, "24 at 5 each: {}", executed_at(&origin, "/export")?);
    site.flood(v4(1), 20, |_| keyed("/cheap", &key))?;
    ensure!(executed_at(&origin, "/cheap")? == 4, "what is left, at 1 each: {}", executed_at(&origin, "/cheap")?);
    site.flood(v4(1), 20, |_| keyed("/search", &other))?;
    ensure!(executed_at(&origin, "/search")? == 4, "20 at 5 each: {}", executed_at(&origin, "/search")?);
    Ok(())
}

#[test]
fn all_principals_together_stay_under_the_ceiling() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("routes", Workers::Sync(2))?;
    let enforcer = site.guard(
        "[service]\nceiling = \"100/hour\"\n[plan.basic]\nlimit = \"40/hour\"\n\
         [principal.a]\nplan = \"basic\"\n[principal.b]\nplan = \"basic\"\n[principal.c]\nplan = \"basic\"",
    )?;
    let keys = [add_key(&enforcer, "a")?, add_key(&enforcer, "b")?, add_key(&enforcer, "c")?];
    for key in &keys[..2] {
        site.flood(v4(1), 60, |_| keyed("/", key))?;
        ensure!(origin.executed_with(key)? == 40, "its plan: {}", origin.executed_with(key)?);
    }
    site.flood(v4(2), 60, |_| keyed("/", &keys[2]))?;
    ensure!(origin.executed_with(&keys[2])? == 20, "the ceiling: {}", origin.executed_with(&keys[2])?);
    ensure!(refused(&enforcer, "over_limit")? == 80, "counted: {}", refused(&enforcer, "over_limit")?);
    Ok(())
}

#[test]
fn a_public_path_needs_no_key_and_has_a_limit_for_each_source() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("routes", Workers::Sync(2))?;
    let enforcer = site.guard(
        "[principal.tenant]\nlimit = \"1000/hour\"\n\
         [[public]]\npath = \"/health\"\nmethods = [\"GET\"]\nlimit = \"60/hour\"\n\
         [[public]]\npath = \"/docs/*\"\nlimit = \"30/hour\"\n\
         [[route]]\npath = \"/health\"\nlimit = \"5/hour\"",
    )?;
    let key = add_key(&enforcer, "tenant")?;
    for source in [v4(1), v6(1, 1)] {
        let open = site.flood(source, 100, |_| request("/health", &[]))?;
        ensure!(open == statuses([(200, 60), (429, 40)]), "{source}: {open:?}");
        let beneath = site.flood(source, 60, |number| request(&format!("/docs/{}", number % 3), &[]))?;
        ensure!(beneath == statuses([(200, 30), (429, 30)]), "{source}, beneath: {beneath:?}");
    }
    // It is this path and these methods, in whatever spelling, and nothing beneath.
    let ending = site.ask(v4(3), &request("//%68ealth/", &[]))?;
    ensure!(ending == Ending::Answered(200), "another spelling: {ending:?}");
    for (method, path) in
        [("GET", "/health/deep"), ("POST", "/health"), ("GET", "/healthy"), ("GET", "/Health"), ("GET", "/")]
    {
        let ending = site.ask(v4(3), &plain_request(method, path, &[("Content-Length", "0")]))?;
        ensure!(ending == Ending::Answered(401), "{method} {path} without a key: {ending:?}");
    }
    // A route may have the same path: it is for the other methods.
    let posted =
        site.flood(v4(4), 20, |_| plain_request("POST", "/health", &[("X-API-Key", &key), ("Content-Length", "0")]))?;
    ensure!(posted == statuses([(200, 5), (429, 15)]), "POST with a key: {posted:?}");
    // A key, good or bad, changes nothing on a public path.
    for key in [key.as_str(), "nobodys-key-0123456789"] {
        ensure!(site.ask(v4(5), &keyed("/health", key))? == Ending::Answered(200), "a key on a public path is refused");
    }
    ensure!(
        executed_at(&origin, "/docs/0")? > 0 && executed_at(&origin, "/health/deep")? == 0,
        "{:?}",
        origin.executed()?
    );
    Ok(())
}

#[test]
fn an_exemption_is_for_its_sources_path_and_time_alone() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("routes", Workers::Sync(2))?;
    let public = "[[public]]\npath = \"/health\"\nlimit = \"5/hour\"";
    let enforcer = site.guard(public)?;
    let until = Timestamp::now() + SignedDuration::from_secs(15);
    let exempt = format!(
        "[[exempt]]\npath = \"/health\"\nmethods = [\"GET\"]\nsources = [\"{}/32\", \"{}/64\"]\nuntil = {until:.0}\n\
         reason = \"OPS-12\"",
        v4(1),
        v6(1, 0),
    );
    apply(&enforcer, &format!("{public}\n{exempt}"))?;
    for source in [v4(1), v6(1, 77)] {
        let open = site.flood(source, 30, |_| request("/health", &[]))?;
        ensure!(open == statuses([(200, 30)]), "{source}: {open:?}");
    }
    ensure!(events(&enforcer, "exempt")? == 60, "counted: {}", events(&enforcer, "exempt")?);
    let near = v4(1).to_string();
    for source in [v4(2), v6(2, 1)] {
        let others = site.flood(source, 20, |_| request("/health", &[("X-Forwarded-For", &near)]))?;
        ensure!(others == statuses([(200, 5), (429, 15)]), "{source}: {others:?}");
    }
    ensure!(site.ask(v4(1), &request("/", &[]))? == Ending::Answered(401), "another path needs no key");
    ensure!(Timestamp::now() < until, "the machine is too slow for this test");
    sleep(Duration::try_from(until - Timestamp::now() + SignedDuration::from_secs(1)).unwrap_or_default());
    let over = site.flood(v4(1), 20, |_| request("/health", &[]))?;
    ensure!(over == statuses([(200, 5), (429, 15)]), "after the exemption: {over:?}");
    ensure!(origin.executed()?.len() == 75, "the app executed {}", origin.executed()?.len());
    Ok(())
}

#[test]
fn preflights_need_no_key_and_have_a_limit_of_their_own() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("routes", Workers::Sync(2))?;
    let asked = [("Origin", "https://shop.test"), ("Access-Control-Request-Method", "POST")];
    let enforcer = site.guard("[service]\npreflight = \"60/hour\"")?;
    for source in [v4(1), v6(1, 1)] {
        let preflights = site.flood(source, 100, |_| plain_request("OPTIONS", "/orders", &asked))?;
        ensure!(preflights == statuses([(200, 60), (429, 40)]), "{source}: {preflights:?}");
    }
    // What only looks like one is none.
    for (method, fields) in [("OPTIONS", &asked[..1]), ("OPTIONS", &asked[1..]), ("OPTIONS", &[]), ("GET", &asked[..])]
    {
        let ending = site.ask(v4(2), &plain_request(method, "/orders", fields))?;
        ensure!(ending == Ending::Answered(401), "{method} with {fields:?}: {ending:?}");
    }
    apply(&enforcer, "[service]\npreflight = \"blocked\"")?;
    let ending = site.ask(v4(3), &plain_request("OPTIONS", "/orders", &asked))?;
    ensure!(ending == Ending::Answered(401), "where preflights need a key: {ending:?}");
    ensure!(origin.executed()?.len() == 120, "the app executed {}", origin.executed()?.len());
    Ok(())
}

#[test]
fn what_needs_no_key_has_a_limit_or_known_sources_and_an_end() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("routes", Workers::Sync(1))?;
    let enforcer = site.guard("[[public]]\npath = \"/health\"\nlimit = \"60/hour\"")?;
    for (policy, named) in [
        ("[[public]]\npath = \"/open\"", "limit"),
        ("[[public]]\npath = \"/open\"\nlimit = \"100/mintue\"", "mintue"),
        ("[[exempt]]\npath = \"/open\"\nuntil = 2100-01-01T00:00:00Z\nreason = \"x\"", "sources"),
        ("[[exempt]]\npath = \"/open\"\nsources = [\"10.0.0.0/8\"]\nreason = \"x\"", "until"),
        ("[[exempt]]\npath = \"/open\"\nsources = [\"10.0.0.0/8\"]\nuntil = 2100-01-01T00:00:00Z", "reason"),
        (
            "[[exempt]]\npath = \"/open\"\nsources = [\"0.0.0.0/0\"]\nuntil = 2100-01-01T00:00:00Z\nreason = \"x\"",
            "everybody",
        ),
        ("[[public]]\npath = \"/open\"\nlimit = \"unlimited\"", "unlimited"),
        ("[service]\npreflight = \"unlimited\"", "unlimited"),
        ("[[public]]\npath = \"/open\"\nlimit = \"60/hour\"\nkeyless = true", "keyless"),
        ("[service]\nunkeyed = \"allow\"", "unkeyed"),
    ] {
        for command in [&["check"][..], &["apply", "-f"]] {
            let ran = with_policy(&enforcer, command, policy)?;
            let told = format!("{}{}", ran.stdout, ran.stderr);
            ensure!(ran.code != 0, "{command:?} takes {policy}");
            ensure!(told.contains("policy.toml") && told.contains(named) && told.contains('^'), "{policy}: {told}");
        }
        ensure!(site.ask(v4(1), &request("/open", &[]))? == Ending::Answered(401), "{policy} has opened a path");
    }
    // What was refused has changed nothing.
    ensure!(site.ask(v4(1), &request("/health", &[]))? == Ending::Answered(200), "the policy before is gone");
    ensure!(origin.executed()?.len() == 1, "the app executed {:?}", origin.executed()?);
    Ok(())
}

#[test]
fn what_a_policy_says_in_vain_is_warned_of_without_a_daemon_and_refuses_nothing() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let enforcer = site.guard("")?;
    let policy = "[service]\nceiling = \"9/second\"\n[[public]]\npath = \"/docs/*\"\nlimit = \"1/hour\"\n\
                  [[route]]\npath = \"/docs/api\"\nlimit = \"1/hour\"";
    for (command, code, warned) in [
        (&["check"][..], 0, true),
        (&["check", "--strict"], 1, true),
        (&["apply", "--dry-run", "-f"], 0, true),
        (&["apply", "-f"], 0, false),
    ] {
        let ran = with_policy(&enforcer, command, policy)?;
        ensure!(ran.code == code, "{command:?} ends with {}: {}", ran.code, ran.stderr);
        let told = ran.stderr.contains("policy.toml:8:1: warning: route /docs/api: no request comes to it")
            && ran.stderr.contains("8 | path = \"/docs/api\"\n      | ^^^^");
        ensure!(told == warned && !ran.stdout.contains("warning"), "{command:?}: {}{}", ran.stdout, ran.stderr);
    }
    // A hint alone is none.
    let ran = with_policy(&enforcer, &["check", "--strict"], "[[route]]\npath = \"/\"\nlimit = \"1/hour\"")?;
    ensure!(ran.code == 0 && ran.stderr.contains("hint: no `ceiling`"), "{}", ran.stderr);
    Ok(())
}
