//! Several services on one port, told apart by host, in front of one app: each with its rules, and none to be had by the name
//! of another.

use anyhow::{Context, Result, ensure};
use enforcer_tests::client::Ending;
use enforcer_tests::enforcer::Enforcer;
use enforcer_tests::netns::Way;
use enforcer_tests::origin::{Origin, Workers};

use crate::site::{PORT, Site, add_key, apply, executed_at, statuses, v4, with_policy};

const APP: &str = "by_host";
const TENANT: &str = "[principal.tenant]\nlimit = \"1000/hour\"\n[principal.narrow]\nlimit = \"10/hour\"\n";
const TWO: &str = "[[service]]\nname = \"api\"\nports = [8000]\nhosts = [\"api.test\"]\n\
                   [[service]]\nname = \"web\"\nports = [8000]\nhosts = [\"web.test\", \"www.web.test\"]\n";
/// Takes what is no other's.
const REST: &str = "[[service]]\nname = \"rest\"\nports = [8000]\n";

/// The lines of a request's head between its target and its end.
fn raw(target: &str, lines: &[&str]) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\n{}\r\n\r\n", lines.join("\r\n")).into_bytes()
}

fn to(host: &str, path: &str, key: &str) -> Vec<u8> {
    raw(path, &[&format!("Host: {host}"), &format!("X-API-Key: {key}")])
}

fn service(name: &str, rules: &str) -> String {
    format!("[[service]]\nname = \"{name}\"\nguesses = \"unlimited\"\n{rules}\n")
}

fn guard<'s>(site: &'s Site, config: &str, policy: &str) -> Result<Enforcer<'s>> {
    let link = &site.link;
    let mut enforcer = Enforcer::new(&link.server, &["--interface", &link.interface, "--hook", link.hook()])?;
    enforcer.configure(config)?;
    enforcer.start()?;
    apply(&enforcer, &(TENANT.to_owned() + policy))?;
    Ok(enforcer)
}

fn counted(enforcer: &Enforcer<'_>, what: &str, service: &str, label: &str) -> Result<u64> {
    let name = if what == "events" { "event" } else { "reason" };
    enforcer.metric(&format!("enforcer_{what}_total{{service=\"{service}\",{name}=\"{label}\"}}"))
}

fn passed(enforcer: &Enforcer<'_>) -> Result<[u64; 2]> {
    Ok([counted(enforcer, "events", "api", "allowed")?, counted(enforcer, "events", "web", "allowed")?])
}

fn serve(site: &Site) -> Result<Origin> {
    site.serve(APP, Workers::Threads(2))
}

#[test]
fn each_host_has_its_rules_however_it_is_written() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let app = serve(&site)?;
    let rules = |ceiling: u32, route: u32| {
        format!(
            "ceiling = \"{ceiling}/hour\"\n[[service.route]]\npath = \"/few\"\nlimit = \"{route}/hour\"\n\
             [[service.public]]\npath = \"/open-{ceiling}\"\nlimit = \"2/hour\""
        )
    };
    let enforcer = guard(&site, TWO, &(service("api", &rules(30, 3)) + &service("web", &rules(20, 5))))?;
    let key = add_key(&enforcer, "tenant")?;
    let send = |source, count, request: &[u8]| site.send_to(PORT, v4(source), count, request);

    // The same path has a limit and a count in each, under each of their names.
    ensure!(send(1, 6, &to("api.test", "/few", &key))? == statuses([(200, 3), (429, 3)]), "the route of api");
    ensure!(send(1, 4, &to("web.test", "/few", &key))? == statuses([(200, 4)]), "the route of web");
    ensure!(send(1, 4, &to("www.web.test", "/few", &key))? == statuses([(200, 1), (429, 3)]), "under its other name");
    ensure!(executed_at(&app, "/few")? == 8 && passed(&enforcer)? == [3, 5], "{}", enforcer.metrics()?);

    // What is another spelling of a name is no other service, and no count anew.
    for host in ["API.test", "api.test.", "Api.Test.:8000", "api.test:1", "api.test:"] {
        ensure!(send(1, 1, &to(host, "/few", &key))? == statuses([(429, 1)]), "{host} has a limit of its own");
    }
    let key_line = format!("X-API-Key: {key}");
    for (target, lines) in [
        ("http://api.test/few", vec!["Host: api.test", &key_line]),
        ("http://API.TEST:8000//few", vec![&key_line[..], "Host: api.test."]),
        ("/few", vec![&key_line[..], "Accept: */*", "hOsT:\t api.test \t"]),
    ] {
        ensure!(send(1, 1, &raw(target, &lines))? == statuses([(429, 1)]), "{target} {lines:?}");
    }
    ensure!(executed_at(&app, "/few")? == 8, "one of them was executed");

    // A path that one has made public is not public to the other's host, nor by two names at once.
    let open = |host: &str| raw("/open-30", &[&format!("Host: {host}")]);
    ensure!(send(2, 1, &open("web.test"))? == statuses([(401, 1)]), "public to another");
    ensure!(send(2, 3, &open("api.test"))? == statuses([(200, 2), (429, 1)]), "not public");
    for (target, lines) in [
        ("http://api.test/open-30", vec!["Host: web.test"]),
        ("http://web.test/open-30", vec!["Host: api.test"]),
        ("/open-30", vec!["Host: api.test", "Host: web.test"]),
        ("/open-30", vec!["Host: web.test", "X: y", "HOST: api.test"]),
        ("/open-30", vec!["Host: api.test", " web.test"]),
        ("/open-30", vec!["Host: api.test, web.test"]),
        ("/open-30", vec!["Host: web.test@api.test"]),
        ("/open-30", vec!["Host: api%2etest"]),
        ("/open-30", vec!["Host: ::1"]),
        ("/open-30", vec!["X-Forwarded-Host: api.test"]),
        ("http://web.test@api.test/open-30", vec!["Host: api.test"]),
    ] {
        ensure!(send(3, 1, &raw(target, &lines))? == statuses([(400, 1)]), "{target} {lines:?}");
    }
    ensure!(executed_at(&app, "/open-30")? == 2, "one of them was executed");

    // Who is nobody's is told so, and by whose settings: those of the first in the file.
    for host in ["nobody.test", "api.test.nobody.test", "xapi.test", "[::1]", "10.77.0.1:8000", ""] {
        ensure!(send(3, 1, &to(host, "/", &key))? == statuses([(421, 1)]), "{host:?}");
    }
    let old = format!("GET / HTTP/1.0\r\n{key_line}\r\n\r\n");
    ensure!(send(3, 1, old.as_bytes())? == statuses([(421, 1)]), "HTTP/1.0 without a host");
    ensure!(counted(&enforcer, "refused", "api", "misdirected")? == 7, "{}", enforcer.metrics()?);
    ensure!(counted(&enforcer, "refused", "web", "misdirected")? == 0, "{}", enforcer.metrics()?);

    // What is left of each: 30 − 3 − 2, and 20 − 5.
    ensure!(send(1, 26, &to("api.test", "/", &key))? == statuses([(200, 25), (429, 1)]), "the ceiling of api");
    ensure!(send(1, 16, &to("web.test", "/", &key))? == statuses([(200, 15), (429, 1)]), "the ceiling of web");
    ensure!(passed(&enforcer)? == [30, 20] && app.executed()?.len() == 50, "{}", enforcer.metrics()?);
    let answered = counted(&enforcer, "events", "web", "answered")?;
    ensure!(answered == 3 + 1 + 1, "answers to requests for web: {answered}");
    let shown = enforcer.json(&["service", "show", "web"])?;
    ensure!(shown["hosts"] == serde_json::json!(["web.test", "www.web.test"]), "{shown}");
    ensure!(shown["totals"]["allowed"] == 20, "{shown}");
    Ok(())
}

#[test]
fn a_connection_that_goes_from_host_to_host_escapes_nothing() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let app = serve(&site)?;
    let ceilings = service("api", "ceiling = \"6/hour\"") + &service("web", "ceiling = \"9/hour\"");
    let enforcer = guard(&site, TWO, &ceilings)?;
    let (tenant, narrow) = (add_key(&enforcer, "tenant")?, add_key(&enforcer, "narrow")?);
    let mut connection = site.connect(v4(1))?;
    let mut ask = |host: &str, key: &str| {
        connection.send(&to(host, "/", key));
        let (ending, body) = connection.answer();
        (ending, String::from_utf8_lossy(&body).into_owned())
    };
    let mut endings = Vec::new();
    for number in 0..20 {
        let host = if number % 2 == 0 { "api.test" } else { "Web.test:8000" };
        let (ending, body) = ask(host, &tenant);
        ensure!(ending != Ending::Answered(200) || body == format!("{host}\n"), "{host} was answered {body:?}");
        endings.push(ending);
    }
    let of = |first: usize| endings.iter().skip(first).step_by(2).filter(|one| **one == Ending::Answered(200)).count();
    ensure!((of(0), of(1)) == (6, 9), "{endings:?}");
    ensure!(app.executed()?.len() == 15 && passed(&enforcer)? == [6, 9], "{}", enforcer.metrics()?);

    // A principal's own budget is one over all of them.
    apply(&enforcer, &(TENANT.to_owned() + &service("api", "") + &service("web", "")))?;
    let mut connection = site.connect(v4(2))?;
    let mut good = 0;
    for number in 0..15 {
        connection.send(&to(["api.test", "web.test", "www.web.test"][number % 3], "/", &narrow));
        good += usize::from(connection.answer().0 == Ending::Answered(200));
    }
    ensure!(good == 10 && app.executed()?.len() == 25, "{good} passed");

    // Pipelined, and cut within the names.
    let mut connection = site.connect(v4(3))?;
    let stream =
        [to("api.test", "/p", &tenant), to("web.test", "/p", &tenant), to("nobody.test", "/p", &tenant)].concat();
    let pieces: Vec<&[u8]> = stream.chunks(29).collect();
    connection.send_slowly(&pieces, std::time::Duration::from_millis(2));
    let two = [connection.answer(), connection.answer()].map(|(ending, body)| (ending, String::from_utf8(body)));
    let expected = ["api.test\n", "web.test\n"].map(|body| (Ending::Answered(200), Ok(body.to_owned())));
    ensure!(two == expected, "{two:?}");
    ensure!(connection.answer().0 != Ending::Answered(200), "nobody's host was served");
    ensure!(executed_at(&app, "/p")? == 2, "executed");
    Ok(())
}

#[test]
fn each_host_has_its_mode_and_its_answers_and_one_service_takes_the_rest() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let app = serve(&site)?;
    let config = "[[service]]\nname = \"api\"\nports = [8000]\nhosts = [\"api.test\"]\non_refuse = \"reset\"\n\
                  [[service]]\nname = \"web\"\nports = [8000]\nhosts = [\"web.test\"]\nmode = \"observe\"\n\
                  [[service]]\nname = \"rest\"\nports = [8000]\n[service.answers.401]\nbody = \"ask us\"\n";
    let enforcer = guard(&site, config, "")?;
    let key = add_key(&enforcer, "tenant")?;
    let ask = |lines: &[&str]| -> Result<(Ending, String)> {
        let mut connection = site.connect(v4(1))?;
        connection.send(&raw("/", lines));
        let (ending, body) = connection.answer();
        Ok((ending, String::from_utf8_lossy(&body).into_owned()))
    };
    ensure!(!matches!(ask(&["Host: api.test"])?.0, Ending::Answered(_)), "api answers");
    ensure!(ask(&["Host: web.test"])? == (Ending::Answered(200), "web.test\n".into()), "web refuses");
    ensure!(ask(&["Host: nobody.test"])? == (Ending::Answered(401), "ask us".into()), "the rest answers otherwise");
    // What cannot be said to be web's is refused though web observes.
    ensure!(ask(&["Host: web.test", "Host: web.test"])?.0 == Ending::Answered(400), "what could be another's passes");
    ensure!(ask(&["Host: web.test", "A : b"])?.0 == Ending::Answered(400), "what is malformed passes");
    let keyed = ask(&["Host: nobody.test", &format!("X-API-Key: {key}")])?;
    ensure!(keyed == (Ending::Answered(200), "nobody.test\n".into()), "{keyed:?}");
    ensure!(counted(&enforcer, "would_refuse", "web", "unkeyed")? == 1, "{}", enforcer.metrics()?);
    for (name, reason, count) in [
        ("api", "unkeyed", 1),
        ("web", "unkeyed", 0),
        ("rest", "unkeyed", 1),
        ("rest", "malformed", 2),
        ("rest", "misdirected", 0),
    ] {
        ensure!(counted(&enforcer, "refused", name, reason)? == count, "{name} {reason}: {}", enforcer.metrics()?);
    }
    ensure!(app.executed()?.len() == 2, "executed");
    Ok(())
}

#[test]
fn services_share_a_port_and_part_again_and_keep_their_counts() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let app = serve(&site)?;
    let limited = |name: &str, ceiling: u32| service(name, &format!("ceiling = \"{ceiling}/hour\""));
    let both = limited("api", 5) + &limited("web", 7);
    let mut enforcer = guard(&site, TWO, &both)?;
    let key = add_key(&enforcer, "tenant")?;
    let send = |host: &str, count| site.send_to(PORT, v4(1), count, &to(host, "/", &key));
    ensure!(send("api.test", 3)? == statuses([(200, 3)]) && send("web.test", 3)? == statuses([(200, 3)]), "first");
    // www goes to api, and a third takes the rest.
    enforcer.stop(nix::sys::signal::Signal::SIGTERM)?;
    enforcer.configure(
        &(TWO
            .replace("\"api.test\"", "\"api.test\", \"www.web.test\"")
            .replace("[\"web.test\", \"www.web.test\"]", "[\"web.test\"]")
            + REST),
    )?;
    enforcer.start()?;
    ensure!(send("www.web.test", 3)? == statuses([(200, 2), (429, 1)]), "api's ceiling under its new name");
    ensure!(send("web.test", 5)? == statuses([(200, 4), (429, 1)]), "web goes on");
    ensure!(send("nobody.test", 3)? == statuses([(200, 3)]), "the rest");
    // One of them alone, under any name.
    enforcer.stop(nix::sys::signal::Signal::SIGTERM)?;
    enforcer.configure("[[service]]\nname = \"web\"\nports = [8000]\n")?;
    enforcer.start()?;
    ensure!(send("api.test", 1)? == statuses([(429, 1)]) && send("a b", 1)? == statuses([(429, 1)]), "web alone");
    ensure!(app.executed()?.len() == 5 + 7 + 3, "executed");
    Ok(())
}

#[test]
fn what_is_before_the_host_is_the_same_for_all_and_a_question_says_for_which_it_is() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _app = serve(&site)?;
    let route = |limit: &str| format!("[[service.route]]\npath = \"/few\"\nlimit = \"{limit}\"");
    let enforcer = guard(&site, TWO, &(service("api", &route("5/hour")) + &service("web", &route("6/hour"))))?;
    add_key(&enforcer, "tenant")?;
    let apart = service("api", "client_id = \"X-Client\"") + &service("web", "");
    let ran = with_policy(&enforcer, &["apply", "-f"], &apart)?;
    let place = "policy.toml:5:1: service.client_id: api and web have the same ports";
    ensure!(ran.code == 2 && ran.stderr.contains(place) && ran.stderr.contains('^'), "{} {}", ran.code, ran.stderr);
    let same = service("api", "client_id = \"X-Client\"") + &service("web", "client_id = \"X-Client\"");
    ensure!(with_policy(&enforcer, &["apply", "--dry-run", "-f"], &same)?.code == 0, "what agrees is refused");

    let ask = |more: &[&str]| {
        let question = ["explain", "GET", "/few", "--source", "10.77.16.1", "--as", "tenant"];
        enforcer.json(&[&question, more].concat())
    };
    for (more, service, limit) in [
        (&["--host", "api.test"][..], "api", "5/hour"),
        (&["--host", "WWW.web.test.:80", "--port", "8000"], "web", "6/hour"),
        (&["--service", "web"], "web", "6/hour"),
        (&["--service", "api", "--host", "web.test"], "web", "6/hour"),
    ] {
        let mut more = more.to_vec();
        if !more.contains(&"--service") && !more.contains(&"--port") {
            more.extend(["--port", "8000"]);
        }
        let said = ask(&more)?;
        let limits = said["limits"].as_array().context("no limits")?;
        ensure!(said["service"] == service && said["verdict"] == "pass", "{more:?}: {said}");
        ensure!(limits.iter().any(|row| row["rule"] == "route /few" && row["limit"] == limit), "{more:?}: {said}");
    }
    let nobody = ask(&["--port", "8000", "--host", "nobody.test"])?;
    ensure!(nobody["verdict"] == "refuse" && nobody["reason"] == "misdirected", "{nobody}");
    ensure!(nobody["told"]["status"] == 421, "{nobody}");
    ensure!(counted(&enforcer, "refused", "api", "misdirected")? == 0, "a question was counted");
    Ok(())
}
