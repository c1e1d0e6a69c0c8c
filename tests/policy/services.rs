//! Several services on one machine, told apart by their ports: each with counts, rules and answers of its own, and the keys
//! of all.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use enforcer_tests::client::Ending;
use enforcer_tests::enforcer::Enforcer;
use enforcer_tests::netns::Way;
use enforcer_tests::origin::Workers;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::site::{Site, add_key, apply, executed_at, keyed, random_key, request, statuses, v4, with_policy};

const API: u16 = 8000;
const WEB: u16 = 9000;

const TWO: &str = "[[service]]\nname = \"api\"\nports = [8000]\n[[service]]\nname = \"web\"\nports = [9000, 9001]\n";

/// Guards two services by a policy.
fn guard<'s>(site: &'s Site, config: &str, policy: &str) -> Result<Enforcer<'s>> {
    let link = &site.link;
    let mut enforcer = Enforcer::new(&link.server, &["--interface", &link.interface, "--hook", link.hook()])?;
    enforcer.configure(config)?;
    enforcer.start()?;
    apply(&enforcer, policy)?;
    Ok(enforcer)
}

/// A service of a policy.
fn service(name: &str, rules: &str) -> String {
    format!("[[service]]\nname = \"{name}\"\nguesses = \"unlimited\"\n{rules}\n")
}

const TENANT: &str = "[principal.tenant]\nlimit = \"1000/hour\"\n[principal.narrow]\nlimit = \"10/hour\"\n";

fn refused(enforcer: &Enforcer<'_>, service: &str, reason: &str) -> Result<u64> {
    enforcer.metric(&format!("enforcer_refused_total{{service=\"{service}\",reason=\"{reason}\"}}"))
}

/// What a rule of a service has refused.
fn rule_refused(enforcer: &Enforcer<'_>, service: &str, rule: &str) -> Result<u64> {
    enforcer.metric(&format!("enforcer_rule_refused_total{{service=\"{service}\",rule=\"{rule}\"}}"))
}

#[test]
fn each_service_counts_for_itself_and_a_principal_over_all_of_them() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let (api, web) = (site.serve_at(API, "routes", Workers::Sync(2))?, site.serve_at(WEB, "routes", Workers::Sync(2))?);
    let rules = |ceiling: &str, source: &str, route: &str| {
        format!(
            "ceiling = \"{ceiling}\"\nsource = \"{source}\"\n[[service.route]]\npath = \"/few\"\nlimit = \"{route}\"\n\
             [[service.public]]\npath = \"/open\"\nlimit = \"{route}\""
        )
    };
    let policy = TENANT.to_owned()
        + &service("api", &rules("30/hour", "20/hour", "3/hour"))
        + &service("web", &rules("25/hour", "15/hour", "5/hour"));
    let enforcer = guard(&site, TWO, &policy)?;
    let key = add_key(&enforcer, "tenant")?;
    let send = |port, source, count, path: &str| site.send_to(port, v4(source), count, &keyed(path, &key));

    // The same path has a limit and a count in each.
    ensure!(send(API, 1, 6, "/few")? == statuses([(200, 3), (429, 3)]), "the route of api");
    ensure!(send(WEB, 1, 9, "/few")? == statuses([(200, 5), (429, 4)]), "the route of web");
    // So has a source, and all that come together: 3 + 17 of one source, then 10 of another are left of 30.
    ensure!(send(API, 1, 30, "/")? == statuses([(200, 17), (429, 13)]), "the source at api");
    ensure!(send(WEB, 1, 30, "/")? == statuses([(200, 10), (429, 20)]), "the source at web");
    ensure!(send(API, 2, 15, "/")? == statuses([(200, 10), (429, 5)]), "the ceiling of api");
    ensure!(send(WEB, 2, 15, "/")? == statuses([(200, 10), (429, 5)]), "the ceiling of web");
    let open = |port| site.send_to(port, v4(3), 6, &request("/open", &[]));
    ensure!(open(API)? == statuses([(429, 6)]) && open(WEB)? == statuses([(429, 6)]), "behind the ceilings");
    ensure!((api.executed()?.len(), web.executed()?.len()) == (30, 25), "executed: {:?}", api.executed()?.len());
    ensure!((executed_at(&api, "/few")?, executed_at(&web, "/few")?) == (3, 5), "at the route");

    // Each tells its own.
    let limits = enforcer.json(&["limits"])?;
    let used = |place: usize| {
        (limits["services"][place]["name"].as_str(), limits["services"][place]["rules"][0]["used"].as_u64())
    };
    ensure!((used(0), used(1)) == ((Some("api"), Some(30)), (Some("web"), Some(25))), "{limits}");
    let told = |rule: &str| {
        Ok::<_, anyhow::Error>([rule_refused(&enforcer, "api", rule)?, rule_refused(&enforcer, "web", rule)?])
    };
    ensure!(told("route /few")? == [3, 4] && told("source")? == [13, 20], "{}", enforcer.metrics()?);
    ensure!(told("ceiling")? == [5 + 6, 5 + 6], "{}", enforcer.metrics()?);
    ensure!(refused(&enforcer, "api", "over_limit")? == 3 + 13 + 5 + 6, "{}", enforcer.metrics()?);
    let allowed =
        |name: &str| enforcer.metric(&format!("enforcer_events_total{{service=\"{name}\",event=\"allowed\"}}"));
    ensure!((allowed("api")?, allowed("web")?) == (30, 25), "{}", enforcer.metrics()?);
    let status = enforcer.json(&["service", "ls"])?;
    let counts = |place: usize| status["services"][place]["totals"]["allowed"].as_u64();
    ensure!((counts(0), counts(1)) == (Some(30), Some(25)), "{status}");
    ensure!(enforcer.json(&["service", "show", "web"])?["ports"] == serde_json::json!([9000, 9001]), "its ports");
    let ran = enforcer.run(&["service", "show", "wbe"])?;
    ensure!(ran.code == 6 && ran.stderr.contains("api, web"), "{} {}", ran.code, ran.stderr);
    let total = enforcer.json(&["status"])?["totals"]["allowed"].as_u64();
    ensure!(total == Some(55), "together: {total:?}");

    // A principal's budget is one, whichever service it asks.
    apply(&enforcer, &(TENANT.to_owned() + &service("api", "") + &service("web", "")))?;
    let narrow = add_key(&enforcer, "narrow")?;
    let send = |port, count| site.send_to(port, v4(4), count, &keyed("/", &narrow));
    ensure!(send(API, 6)? == statuses([(200, 6)]) && send(WEB, 6)? == statuses([(200, 4), (429, 2)]), "the budget");
    ensure!(send(API, 2)? == statuses([(429, 2)]), "behind it");
    Ok(())
}

#[test]
fn each_service_has_its_mode_its_answers_and_its_penalties() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let (api, web) = (site.serve_at(API, "plain", Workers::Sync(2))?, site.serve_at(WEB, "plain", Workers::Sync(2))?);
    let config = "[[service]]\nname = \"api\"\nports = [8000]\non_refuse = \"reset\"\n[service.penalty]\nanswers = \"1/second\"\n\
                  tolerated = \"2/second\"\nfirst = \"1h\"\nlongest = \"1h\"\n\
                  [[service]]\nname = \"web\"\nports = [9000]\nmode = \"observe\"\n";
    let link = &site.link;
    let arguments = ["--interface", &link.interface, "--hook", link.hook(), "--penalty", "on"];
    let mut enforcer = Enforcer::new(&link.server, &arguments)?;
    enforcer.configure(config)?;
    enforcer.start()?;
    apply(&enforcer, &(TENANT.to_owned() + &service("api", "") + &service("web", "")))?;
    let unkeyed = request("/", &[]);
    // One source, refused at api until its SYNs are dropped there, is served at web.
    let first = site.send_to(API, v4(1), 1, &unkeyed)?;
    ensure!(first.get(&Ending::Answered(401)).is_none() && first.len() == 1, "api answered: {first:?}");
    for _ in 0..20 {
        let _ = site.send_to(API, v4(1), 1, &unkeyed);
        if enforcer.json(&["penalty", "ls"])?["sources"].as_array().is_some_and(|sources| !sources.is_empty()) {
            break;
        }
    }
    let penalties = enforcer.json(&["penalty", "ls"])?;
    let [penalty] = penalties["sources"].as_array().context("no list")?.as_slice() else {
        anyhow::bail!("not one penalty: {penalties}")
    };
    ensure!(penalty["service"] == "api", "{penalty}");
    ensure!(site.send_to(API, v4(1), 1, &unkeyed).is_err(), "it is let in at api");
    ensure!(
        site.send_to(WEB, v4(1), 5, &unkeyed)? == statuses([(200, 5)]),
        "web observes, and knows no penalty of api's"
    );
    let would = enforcer.metric("enforcer_would_refuse_total{service=\"web\",reason=\"unkeyed\"}")?;
    ensure!(would == 5 && refused(&enforcer, "web", "unkeyed")? == 0, "{}", enforcer.metrics()?);
    ensure!(api.executed()?.is_empty() && web.executed()?.len() == 5, "executed");
    ensure!(enforcer.run(&["penalty", "rm", "--all", "--service", "web"])?.stdout.contains("No source"), "of web");
    let ran = enforcer.run(&["penalty", "rm", "--all", "--service", "api"])?;
    ensure!(ran.stdout.contains("Penalty of 10.77.16.1/32 in api ended"), "{} {}", ran.stdout, ran.stderr);
    ensure!(site.send_to(API, v4(1), 1, &unkeyed)?.len() == 1, "it is not let in");
    Ok(())
}

#[test]
fn guesses_and_trusted_proxies_are_those_of_the_service() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _servers = (site.serve_at(API, "plain", Workers::Sync(2))?, site.serve_at(WEB, "plain", Workers::Sync(2))?);
    let trusting = format!("source = \"2/hour\"\ntrusted_proxies = [\"{}\"]", v4(7));
    let guessing = "[[service]]\nname = \"web\"\nguesses = \"3/hour\"\nsource = \"2/hour\"\n";
    let enforcer = guard(&site, TWO, &(TENANT.to_owned() + &service("api", &trusting) + guessing))?;
    let key = add_key(&enforcer, "tenant")?;
    let guess = |port, number| site.send_to(port, v4(1), 1, &keyed("/", &random_key(number)));
    for number in 0..3 {
        ensure!(guess(WEB, number)? == statuses([(401, 1)]), "guess {number}");
    }
    ensure!(guess(WEB, 3)? == statuses([(429, 1)]), "one too many at web");
    ensure!(guess(API, 4)? == statuses([(401, 1)]), "api has no such limit, and no such penalty");
    let from = |port, source: u32| {
        let source = format!("192.0.2.{source}");
        let request = request("/", &[("X-API-Key", &key), ("X-Forwarded-For", &source)]);
        site.send_to(port, v4(7), 1, &request)
    };
    for source in 0..4 {
        ensure!(from(API, source)? == statuses([(200, 1)]), "api believes the proxy");
        let expected = if source < 2 { 200 } else { 429 };
        ensure!(from(WEB, source)? == statuses([(expected, 1)]), "web does not: {source}");
    }
    Ok(())
}

#[test]
fn a_policy_on_trial_is_on_trial_in_all_services_and_ends_in_all_of_them() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _servers = (site.serve_at(API, "routes", Workers::Sync(2))?, site.serve_at(WEB, "routes", Workers::Sync(2))?);
    let route = |limit: &str| format!("[[service.route]]\npath = \"/few\"\nlimit = \"{limit}\"");
    let policy = |api: &str, web: &str| TENANT.to_owned() + &service("api", &route(api)) + &service("web", &route(web));
    let mut enforcer = guard(&site, TWO, &policy("20/hour", "30/hour"))?;
    let key = add_key(&enforcer, "tenant")?;
    let send = |port, count| site.send_to(port, v4(1), count, &keyed("/few", &key));
    ensure!(send(API, 4)? == statuses([(200, 4)]) && send(WEB, 4)? == statuses([(200, 4)]), "before");
    let ran = with_policy(&enforcer, &["apply", "--confirm", "6s", "-f"], &policy("5/hour", "6/hour"))?;
    ensure!(ran.code == 0 && ran.stdout.contains("service web route /few"), "{}{}", ran.stdout, ran.stderr);
    enforcer.stop(Signal::SIGKILL)?;
    ensure!(send(API, 3)? == statuses([(200, 1), (429, 2)]), "on trial at api");
    ensure!(send(WEB, 3)? == statuses([(200, 2), (429, 1)]), "on trial at web");
    sleep(Duration::from_secs(7));
    ensure!(send(API, 20)? == statuses([(200, 15), (429, 5)]), "api behind it");
    ensure!(send(WEB, 30)? == statuses([(200, 24), (429, 6)]), "web behind it");

    // A daemon that takes over finds what belongs to which, and goes on counting in it.
    enforcer.start()?;
    ensure!(send(API, 1)? == statuses([(429, 1)]) && send(WEB, 1)? == statuses([(429, 1)]), "behind a take-over");
    apply(&enforcer, &policy("22/hour", "33/hour"))?;
    ensure!(send(API, 5)? == statuses([(200, 2), (429, 3)]), "api, raised");
    ensure!(send(WEB, 5)? == statuses([(200, 3), (429, 2)]), "web, raised");
    let exported = enforcer.cli(&["export"])?;
    apply(&enforcer, exported.strip_prefix("version = 1\n").context("no version")?)?;
    ensure!(enforcer.cli(&["export"])? == exported, "it does not read back as itself");
    Ok(())
}

#[test]
fn services_come_go_and_change_their_ports_without_a_gap_or_another_s_count() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let (api, web) = (site.serve_at(API, "plain", Workers::Sync(2))?, site.serve_at(WEB, "plain", Workers::Sync(2))?);
    let limited = |name: &str, ceiling: u32| service(name, &format!("ceiling = \"{ceiling}/hour\""));
    let mut enforcer = guard(&site, TWO, &(TENANT.to_owned() + &limited("api", 5) + &limited("web", 7)))?;
    let key = add_key(&enforcer, "tenant")?;
    let send = |port, count| site.send_to(port, v4(1), count, &keyed("/", &key));
    ensure!(
        send(API, 6)? == statuses([(200, 5), (429, 1)]) && send(WEB, 8)? == statuses([(200, 7), (429, 1)]),
        "first"
    );

    // Port 9000 goes to api, web goes, and a third one comes.
    enforcer.stop(Signal::SIGTERM)?;
    let moved = "[[service]]\nname = \"api\"\nports = [9000]\n[[service]]\nname = \"new\"\nports = [8000]\n";
    enforcer.configure(moved)?;
    enforcer.start()?;
    ensure!(send(WEB, 2)? == statuses([(429, 2)]), "api's ceiling is reached at its new port, too");
    ensure!(send(API, 6)? == statuses([(200, 6)]), "the new one has no ceiling, and nobody's count");
    ensure!(site.send_to(API, v4(1), 1, &request("/", &[]))? == statuses([(401, 1)]), "it is guarded");
    let names: Vec<Value> = enforcer.json(&["status"])?["services"]
        .as_array()
        .context("no list")?
        .iter()
        .map(|one| one["totals"]["allowed"].clone())
        .collect();
    ensure!(names == [5, 6], "what was counted: {names:?}");
    let ran = with_policy(&enforcer, &["apply", "-f"], &limited("web", 1))?;
    ensure!(
        ran.code == 2 && ran.stderr.contains("service web: no such service is guarded") && ran.stderr.contains("^^^^^"),
        "{} {}",
        ran.code,
        ran.stderr
    );
    ensure!(!enforcer.cli(&["export"])?.contains("name = \"web\""), "what holds nowhere is told as if it held");

    // The one that went comes back with what it had.
    enforcer.stop(Signal::SIGTERM)?;
    enforcer.configure(TWO)?;
    enforcer.start()?;
    ensure!(send(WEB, 1)? == statuses([(429, 1)]) && send(API, 1)? == statuses([(429, 1)]), "again");
    ensure!((api.executed()?.len(), web.executed()?.len()) == (5 + 6, 7), "executed");
    Ok(())
}

#[test]
fn a_question_is_about_a_service() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let route = |limit: &str| format!("[[service.route]]\npath = \"/few\"\nlimit = \"{limit}\"");
    let policy = TENANT.to_owned()
        + &service("api", &format!("ceiling = \"9/hour\"\n{}", route("5/hour")))
        + &service("web", &route("6/hour"));
    let enforcer = guard(&site, TWO, &policy)?;
    add_key(&enforcer, "tenant")?;
    let ask = |more: &[&str]| {
        let question = ["explain", "GET", "/few", "--source", "10.77.16.1", "--as", "tenant"];
        enforcer.json(&[&question, more].concat())
    };
    let limits = |explained: &Value| -> Vec<String> {
        let rows = explained["limits"].as_array().into_iter().flatten();
        rows.map(|row| format!("{} {}", row["rule"], row["limit"]).replace('"', "")).collect()
    };
    let api = ask(&["--service", "api"])?;
    ensure!(api["service"] == "api" && api["verdict"] == "pass", "{api}");
    ensure!(limits(&api) == ["principal 1000/hour", "route /few 5/hour", "ceiling 9/hour"], "{api}");
    let web = ask(&["--port", "9001"])?;
    ensure!(web["service"] == "web", "{web}");
    ensure!(limits(&web) == ["principal 1000/hour", "route /few 6/hour"], "{web}");
    ensure!(ask(&["--port", "1"])?["verdict"] == "unguarded", "a port of nobody's");
    for (more, message) in [
        (&[][..], "there are several services"),
        (&["--service", "wbe"], "no service `wbe` is guarded"),
        (&["--service", "web", "--port", "8000"], "8000 is no port of web"),
    ] {
        let question = ["explain", "GET", "/few", "--source", "10.77.16.1"];
        let ran = enforcer.run(&[&question, more].concat())?;
        ensure!(ran.code != 0 && ran.stderr.contains(message), "{more:?}: {} {}", ran.code, ran.stderr);
    }
    let plan = enforcer.json(&["plan"])?;
    let rules = plan["rules"].as_array().context("no rules")?;
    let routes = rules.iter().filter(|rule| rule["rule"] == "route /few").map(|rule| &rule["service"]);
    ensure!(routes.collect::<Vec<_>>() == ["api", "web"], "{plan}");
    Ok(())
}
