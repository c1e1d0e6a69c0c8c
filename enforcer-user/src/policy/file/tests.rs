use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::policy::document::{Charge, MAX_PRINCIPALS, Override, Principal, Terms};
use crate::policy::method::Methods;
use crate::policy::routes::resolve;
use crate::policy::samples;
use crate::policy::service::Service;

const FULL: &str = r#"
version = 1

[service]
ceiling   = "5000/second"
source    = "300/minute"
guesses   = "10/minute"
guess_penalty = "5m"
strict_guesses = false
preflight = "60/minute"
unkeyed = "30/minute"
observe = ["ceiling", "guesses"]
client_id = "X-Client-Id"
trusted_proxies = ["10.0.0.0/8"]
proxy_protocol = "off"
connections_per_source = 100
connections_per_principal = 50

[service.unregistered]
limit = "60/minute"
max_keys = 1000

[service.candidate]
ceiling = "4000/second"
source = "200/minute"
preflight = "30/minute"
unkeyed = "20/minute"
unregistered = "30/minute"

[service.keys_per_source]
most = 20
within = "10m"
action = "alert"

[service.sources_per_key]
most = 25
within = "10m"
action = "alert"

[plan.gold]
limit = "1000/minute; 500000/month"
candidate = "800/minute"
mode = "enforce"

[principal.alice]
plan = "gold"
limit = "2000/minute"
until = 2026-12-01T00:00:00Z
candidate = "1/second"
[principal.alice.clients]
mobile = "60/minute"
other = "10/minute"

[limit.search]
limit = "20/minute"
per = "principal"
candidate = "10/minute"
mode = "enforce"

[[route]]
path = "/search"
methods = ["GET", "POST"]
use = "search"
cost = 5

[[route]]
path = "/a/{id}"
limit = "20/minute"
per = "source"
mode = "observe"

[[public]]
path = "/health"
methods = ["GET"]
limit = "60/minute"
candidate = "30/minute"

[[exempt]]
path = "/health/*"
methods = ["GET"]
sources = ["10.0.0.0/8"]
until = 2027-01-01T00:00:00+01:00
reason = "load balancer, OPS-12"
"#;

fn read(text: &str) -> Policy {
    parse("p.toml", text).unwrap_or_else(|problems| panic!("{problems}"))
}

/// The first line of each problem.
fn wrong(text: &str) -> Vec<String> {
    let problems = parse("p.toml", text).expect_err(text);
    assert_eq!(problems.more, 0);
    problems
        .problems
        .iter()
        .map(|one| format!("{}:{}: {}; accepted: {}", one.line, one.column, one.message, one.accepted))
        .collect()
}

#[test]
fn the_policies_of_the_manual_are_right() {
    let manual = include_str!("../../../../docs/policy.md");
    let policies: Vec<_> = manual.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(policies.len() > 1);
    for policy in policies {
        read(&if policy.contains("version =") { policy.to_owned() } else { format!("version = 1\n{policy}") });
    }
}

#[test]
fn a_limit_that_only_observes_may_refuse_all_and_have_a_candidate() {
    let policy = read(
        "version = 1\n[service]\nsource = \"blocked\"\nobserve = [\"source\"]\n[service.candidate]\nsource = \"1/s\"",
    );
    assert_eq!(policy.services[DEFAULT_SERVICE].service.candidates.len(), 1);
    let none = read("version = 1\n[service]\nobserve = []");
    assert!(none.services[DEFAULT_SERVICE].service.observe.is_empty());
}

#[test]
fn reads_every_field() {
    let policy = read(FULL);
    let site = &policy.services[DEFAULT_SERVICE];
    assert_eq!(site.service.ceiling.as_ref().map(ToString::to_string).as_deref(), Some("5000/second"));
    assert_eq!(site.service.client_id.as_ref().map(|name| name.as_str()), Some("x-client-id"));
    assert_eq!((site.service.connections_per_source, site.service.trusted_proxies.len()), (Some(100), 1));
    assert_eq!(policy.plans["gold"].limits.to_string(), "500000/month; 1000/minute");
    let alice = &policy.principals["alice"];
    let until = Some("2026-12-01T00:00:00Z".parse().expect("a time"));
    let instead = Some(Override { limits: "2000/minute".parse().expect("a limit"), until });
    assert_eq!(alice.terms, Terms::Plan { plan: "gold".into(), instead });
    assert_eq!(alice.clients.keys().collect::<Vec<_>>(), ["mobile", "other"]);
    let routes: Vec<_> = site.routes.iter().map(|route| (route.to_string(), route.cost)).collect();
    assert_eq!(routes, [("/a/{id}".to_owned(), 1), ("/search GET,POST".into(), 5)]);
    assert_eq!(site.routes[1].charge, Some(Charge::Shared("search".into())));
    assert_eq!(site.public[0].to_string(), "/health GET");
    assert_eq!(site.exempt[0].to_string(), "/health/* GET from 10.0.0.0/8");
    assert_eq!(site.exempt[0].until.to_string(), "2026-12-31T23:00:00Z");
    assert_eq!(parse("p.toml", &policy.export()), Ok(policy));
}

/// The first line of each warning at the beginning of 2027, and what the carets stand below.
fn warned(text: &str) -> Vec<(String, String)> {
    let now = "2027-01-01T00:00:00Z".parse().expect("a time");
    let (_, warnings) = review("p.toml", text, now).unwrap_or_else(|problems| panic!("{problems}"));
    let shown = warnings.as_ref().map(ToString::to_string).unwrap_or_default();
    let problems = warnings.map(|warnings| warnings.problems).unwrap_or_default();
    let place = |one: &Problem| one.excerpt.chars().skip(one.indent).take(one.width).collect();
    let lines = shown.lines().filter(|line| line.starts_with("p.toml:")).map(str::to_owned);
    lines.zip(problems.iter().map(place)).collect()
}

#[test]
fn what_does_nothing_or_more_than_is_meant_is_warned_of_with_its_place() {
    let text = "version = 1\n[service]\ntrusted_proxies = [\"10.0.0.0/8\", \"::/0\"]\n[plan.gold]\nlimit = \"1/s\"\n\
                [principal.a]\nplan = \"gold\"\nlimit = \"2/s\"\nuntil = 2027-01-01T00:00:00Z\n\
                [[public]]\npath = \"/docs/*\"\nmethods = [\"GET\"]\nlimit = \"1/s\"\n\
                [[public]]\npath = \"/{any}/*\"\nmethods = [\"POST\"]\nlimit = \"1/s\"\n\
                [[route]]\npath = \"/docs/api\"\nmethods = [\"GET\", \"POST\"]\nlimit = \"1/s\"\n\
                [[exempt]]\npath = \"/r\"\nsources = [\"10.0.0.1\"]\nuntil = 2026-12-31T23:59:59Z\nreason = \"r\"\n";
    let expected = [
        (
            "p.toml:2:2: hint: no `ceiling` that refuses: all clients together may send as much as each of them may",
            "service",
        ),
        (
            "p.toml:3:34: warning: service.trusted_proxies: ::/0 is nearly everybody, who may then say that they are any \
             source",
            "\"::/0\"",
        ),
        (
            "p.toml:9:9: warning: principal.a.until: it is over: the limit of the plan holds, and not this `limit`",
            "2027-01-01T00:00:00Z",
        ),
        (
            "p.toml:19:1: warning: route /docs/api GET,POST: no request comes to it, since public /docs/* GET or public \
             /{any}/* POST goes before it",
            "path",
        ),
        ("p.toml:25:9: warning: exempt.until: the exemption is over, so it is none", "2026-12-31T23:59:59Z"),
    ];
    let expected: Vec<_> = expected.iter().map(|(line, place)| ((*line).to_owned(), (*place).to_owned())).collect();
    assert_eq!(warned(text), expected);
}

#[test]
fn what_does_something_is_not_warned_of() {
    let text = "version = 1\n[service]\nceiling = \"9/s\"\ntrusted_proxies = [\"10.0.0.0/8\", \"fc00::/7\"]\n[plan.gold]\n\
                limit = \"1/s\"\n[principal.a]\nplan = \"gold\"\nlimit = \"2/s\"\nuntil = 2027-01-01T00:00:01Z\n\
                [[public]]\npath = \"/docs/*\"\nmethods = [\"GET\"]\nlimit = \"1/s\"\n\
                [[public]]\npath = \"/a/b\"\nlimit = \"1/s\"\n[[public]]\npath = \"/c/d/*\"\nlimit = \"1/s\"\n\
                [[route]]\npath = \"/docs/api\"\nmethods = [\"GET\", \"POST\"]\nlimit = \"1/s\"\n\
                [[route]]\npath = \"/a/b\"\nlimit = \"1/s\"\n[[route]]\npath = \"/c/{id}\"\nlimit = \"1/s\"\n\
                [[route]]\npath = \"/{one}/{two}\"\nlimit = \"1/s\"\n\
                [[exempt]]\npath = \"/r\"\nsources = [\"10.0.0.1\"]\nuntil = 2027-01-01T00:00:01Z\nreason = \"r\"\n";
    assert_eq!(warned(text), []);
    let several = "version = 1\n[[service]]\nname = \"a\"\nceiling = \"1/s\"\n[[service]]\nname = \"b\"\n[[service]]\nname = \"c\"";
    let hints = warned(several);
    assert!(hints.len() == 1 && hints[0].0.contains("no `ceiling`, of service b"), "{hints:?}");
    assert_eq!(warned("version = 1").len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// A route is warned of exactly if no request of any path comes to it.
    #[test]
    fn routes_that_are_warned_of_are_never_served(policy in samples::policy()) {
        for site in policy.services.into_values() {
            let lone = Policy { services: [(DEFAULT_SERVICE.to_owned(), site)].into(), ..Policy::default() };
            let text = lone.export();
            let (read, warnings) = review("p.toml", &text, Timestamp::UNIX_EPOCH).expect(&text);
            let site = read.services.get(DEFAULT_SERVICE).cloned().unwrap_or_default();
            let warnings = warnings.map(|warnings| warnings.problems).unwrap_or_default();
            let served = served(&site);
            for (place, route) in site.routes.iter().enumerate() {
                let said = format!("route {route}: no request comes to it");
                let is_warned_of = warnings.iter().any(|one| one.message.starts_with(&said));
                prop_assert_eq!(is_warned_of, !served.contains(&place), "{} of {}", route, text);
            }
        }
    }
}

/// The routes that some request comes to, tried with all paths of at most five segments: those that are in patterns, and one
/// that is in none.
fn served(site: &Site) -> HashSet<usize> {
    let words = ["a", "b", "c", "{\"[é", "other"].map(|word| word.as_bytes().to_vec());
    let mut paths: Vec<Vec<Vec<u8>>> = vec![Vec::new()];
    let mut longest = paths.clone();
    for _ in 0..5 {
        let with = |path: &Vec<Vec<u8>>, word: &Vec<u8>| path.iter().chain([word]).cloned().collect::<Vec<_>>();
        longest = longest.iter().flat_map(|path| words.iter().map(move |word| with(path, word))).collect();
        paths.extend(longest.iter().cloned());
    }
    let requests = paths.iter().flat_map(|path| (0..Methods::COUNT as u32).map(move |method| (path, method)));
    requests.filter_map(|(path, method)| resolve(site, path, method).route).collect()
}

#[test]
fn what_is_not_said_has_the_defaults() {
    assert_eq!(read("version = 1"), Policy::default());
    let service = |text: &str| read(text).services[DEFAULT_SERVICE].service.clone();
    assert_eq!(service("version = 1\n[service]\ntrusted_proxies = []"), Service::default());
    let off = service("version = 1\n[service.keys_per_source]\naction = \"off\"").keys_per_source;
    assert_eq!((off.action, off.most), (None, 20));
}

#[test]
fn each_service_has_its_sections() {
    let policy = read(
        "version = 1\n[plan.gold]\nlimit = \"1/s\"\n[[service]]\nname = \"api\"\nceiling = \"9/s\"\n\
         [service.keys_per_source]\naction = \"off\"\n[service.limit.s]\nlimit = \"1/s\"\n[[service.route]]\npath = \"/a\"\n\
         use = \"s\"\n[[service]]\nname = \"web\"\n[[service.public]]\npath = \"/a\"\nlimit = \"2/s\"\n",
    );
    let (api, web) = (&policy.services["api"], &policy.services["web"]);
    assert_eq!((api.routes.len(), api.public.len(), api.limits.len()), (1, 0, 1));
    assert_eq!((web.routes.len(), web.public.len(), web.limits.len()), (0, 1, 0));
    assert_eq!((api.service.keys_per_source.action, &web.service), (None, &Service::default()));
    assert_eq!(parse("p.toml", &policy.export()), Ok(policy));
}

#[test]
fn what_is_of_no_service_or_of_two_is_refused() {
    let service = |name: &str| format!("[[service]]\nname = \"{name}\"\n");
    for (text, message) in [
        (service("a") + &service("a"), "p.toml:5:8: service.name: \"a\" stands twice"),
        ("[[service]]\nceiling = \"1/s\"\n".to_owned(), "p.toml:2:1: service.name: it is missing"),
        (service("a b"), "p.toml:3:8: service.name: this is not a name"),
        (
            service("a") + "[[route]]\npath = \"/x\"\ncost = 2\n",
            "p.toml:4:3: route: where there are several services it is of none",
        ),
        (
            // The limits of one service are not another's.
            service("a")
                + "[service.limit.s]\nlimit = \"1/s\"\n"
                + &service("b")
                + "[[service.route]]\npath = \"/x\"\nuse = \"s\"\n",
            "p.toml:10:7: route.use: there is no limit \"s\"",
        ),
        (service("a") + "port = 1\n", "p.toml:4:1: \"port\" is no field of `service`"),
        ((0..16).map(|number| service(&format!("s{number}"))).collect(), "p.toml:2:3: service: 16 of them"),
    ] {
        let error = parse("p.toml", &format!("version = 1\n{text}")).expect_err(&text).to_string();
        assert!(error.starts_with(message), "{text}: {error}");
    }
    let exempt = |name: &str, count: u32| {
        let one = |number: u32| {
            format!(
                "[[service.exempt]]\npath = \"/{number}\"\nsources = [\"::1\"]\nuntil = 2030-01-01T00:00:00Z\nreason = \"r\"\n"
            )
        };
        service(name) + &(0..count).map(one).collect::<String>()
    };
    let error = parse("p.toml", &format!("version = 1\n{}{}", exempt("a", 60), exempt("b", 5))).expect_err("too many");
    assert!(error.to_string().contains("65 exemptions of all services together; accepted: at most 64"), "{error}");
}

#[test]
fn shows_the_line_and_what_is_accepted() {
    let text = "version = 1\n[plan.gold]\nlimit = \"100/mintue\" # often\n";
    let shown = parse("p.toml", text).expect_err("a typo").to_string();
    let units = "second, minute, hour, day, week, month";
    let lines: Vec<_> = shown.lines().collect();
    assert!(
        lines[0]
            .starts_with(&format!("p.toml:3:14: plan.gold.limit: \"mintue\" is no unit of time; accepted: {units}")),
        "{shown}"
    );
    assert_eq!(lines[1..], ["    3 | limit = \"100/mintue\" # often", "      |              ^"]);
}

#[test]
fn tells_all_that_is_wrong_at_once() {
    let text = r#"
version = 2
[plans.gold]
[plan.gold]
limit = 100
mode = "watch"
[principal.alice]
plan = "silver"
[[route]]
path = "/a"
use = "search"
[[public]]
path = "/b"
"#;
    let expected = [
        "2:11: version: 2; accepted: 1",
        "3:2: \"plans\" is no field of the file; accepted: version, service, plan, tenant, principal, limit, route, public, exempt",
        "5:9: plan.gold.limit: a whole number stands here; accepted: a limit such as \"100/minute\"",
        "6:8: plan.gold.mode: \"watch\"; accepted: \"enforce\", \"observe\"",
        "8:8: there is no plan \"silver\"; accepted: gold",
        "11:7: route.use: there is no limit \"search\"; accepted: a name for which there is [limit.NAME]; there is none",
        "12:1: public.limit: it is missing; accepted: a limit of each source such as \"60/minute\": without a key there is no other",
    ];
    assert_eq!(wrong(text), expected);
    let broken = "version = \n[plan.gold\n";
    assert!(wrong(broken).len() >= 2, "{:?}", wrong(broken));
}

/// One problem in one table, with its beginning.
#[test]
fn refuses_what_is_unknown_or_contradicts_itself() {
    let many = |count: usize, one: &dyn Fn(usize) -> String| (0..count).map(one).collect::<String>();
    let clients = format!(
        "[service]\nclient_id = \"c\"\n[principal.a]\nlimit = \"1/s\"\n[principal.a.clients]\n{}",
        many(33, &|number| format!("c{number} = \"1/s\"\n"))
    );
    let routes = many(1025, &|number| format!("[[route]]\npath = \"/{number}\"\ncost = 2\n"));
    let public = many(1025, &|number| format!("[[public]]\npath = \"/{number}\"\nlimit = \"1/s\"\n"));
    let exemption = |number: usize| {
        format!("[[exempt]]\npath = \"/{number}\"\nsources = [\"::1\"]\nuntil = 2030-01-01T00:00:00Z\nreason = \"r\"\n")
    };
    let exempt = many(65, &exemption);
    let long = format!("[service]\nclient_id = \"{}\"", "a".repeat(32));
    let ends = "until = 2030-01-01T00:00:00Z";
    for (text, expected) in [
        ("", ""),
        ("[service]\nsources = \"1/s\"", "3:1: \"sources\" is no field of `service`; accepted: ceiling, source, "),
        (
            "[tenant.acme]\nmode = \"observe\"",
            "2:9: tenant.acme.limit: `limit` is missing; tenant acme would have none",
        ),
        (
            "[tenant.acme]\nlimit = \"1/s\"\n[principal.a]\nlimit = \"1/s\"\ntenant = \"amce\"",
            "6:10: there is no tenant \"amce\"; accepted: acme",
        ),
        ("[service]\npreflight = \"unlimited\"", "3:13: service.preflight: `unlimited`, where no key is needed; "),
        ("[service]\nunkeyed = \"unlimited\"", "3:11: service.unkeyed: `unlimited`, where no key is needed; "),
        ("[service]\nunkeyed = \"drop\"", "3:1: service.unkeyed: how refusals are told is no part of a policy; "),
        (
            "[service]\nsource = \"1/s\"\n[service.unregistered]\nmax_keys = 5",
            "4:10: service.unregistered.limit: it is missing; accepted: the limit of each such key",
        ),
        (
            "[service]\nsource = \"1/s\"\n[service.unregistered]\nlimit = \"1/s\"",
            "4:10: service.unregistered.max_keys: it is missing; accepted: how many such keys have a count",
        ),
        (
            "[service]\nsource = \"1/s\"\n[service.unregistered]\nlimit = \"1/s\"\nmax_keys = 8193",
            "6:12: service.unregistered.max_keys: 8193; accepted: a whole number from 1 to 8192",
        ),
        (
            "[service]\nsource = \"1/s\"\n[service.unregistered]\nlimit = \"blocked\"\nmax_keys = 5",
            "5:1: service.unregistered.limit: `blocked`; accepted: a limit",
        ),
        (
            "[service.unregistered]\nlimit = \"1/s\"\nmax_keys = 5",
            "2:10: service.unregistered: any source can make up any number of keys; accepted: `source` with a limit",
        ),
        (
            "[service]\nsource = \"unlimited\"\n[service.unregistered]\nlimit = \"1/s\"\nmax_keys = 5",
            "4:10: service.unregistered: any source can make up any number of keys; ",
        ),
        (
            "[service]\nsource = \"1/s\"\nobserve = [\"source\"]\nunregistered = { limit = \"1/s\", max_keys = 5 }",
            "5:1: service.unregistered: any source can make up any number of keys; accepted: no \"source\" in `observe`",
        ),
        (
            "[service]\nobserve = [\"preflight\"]",
            "3:12: service.observe: \"preflight\"; accepted: \"ceiling\", \"source\", \"guesses\"",
        ),
        (
            "[service]\nobserve = [\"source\"]",
            "3:1: service.observe: there is no limit \"source\"; accepted: a limit for `source`, or no \"source\" here",
        ),
        (
            "[service]\nguesses = \"unlimited\"\nobserve = [\"guesses\"]",
            "4:1: service.observe: there is no limit \"guesses\"; ",
        ),
        (
            "[service.candidate]\nguesses = \"1/s\"",
            "3:1: \"guesses\" is no field of `service.candidate`; accepted: ceiling, source, preflight, unkeyed, unregistered",
        ),
        (
            "[service.candidate]\nceiling = \"1/s penalize=true\"",
            "3:16: service.candidate.ceiling: penalize=true where many share the limit",
        ),
        (
            "[service.candidate]\nunkeyed = \"1/s\"",
            "2:10: service.candidate: unkeyed: all such requests are refused, so it would count none; \
             accepted: a limit for `unkeyed`, or no candidate",
        ),
        (
            "[service]\nsource = \"blocked\"\n[service.candidate]\nsource = \"1/s\"",
            "4:10: service.candidate: source: all such requests are refused",
        ),
        (
            "[service.candidate]\nsource = \"unlimited\"",
            "3:1: service.candidate.source: `unlimited` would refuse nobody; accepted: a limit",
        ),
        (
            "[[public]]\npath = \"/p\"\nlimit = \"blocked\"\ncandidate = \"1/s\"",
            "5:1: public.candidate: all such requests are refused, so it would count none",
        ),
        ("[service.candidate]\nunregistered = \"1/s\"", "2:10: service.candidate: unregistered: all such requests are"),
        (
            "[service]\npreflight = \"blocked\"\n[service.candidate]\npreflight = \"1/s\"",
            "4:10: service.candidate: preflight: all such requests are",
        ),
        (
            "[[service]]\nname = \"a\"\nsource = \"1/s\"\nunregistered = { limit = \"1/s\", max_keys = 5000 }\n\
             [[service]]\nname = \"b\"\nsource = \"1/s\"\nunregistered = { limit = \"1/s\", max_keys = 5000 }",
            "2:3: service: their `max_keys` come to 10000; accepted: at most 8192 in all",
        ),
        ("[service]\nguess_penalty = \"2d\"", "3:17: service.guess_penalty: \"2d\"; accepted: a time from 0s to 24h"),
        (
            "[service]\nguesses = \"unlimited\"\nstrict_guesses = true",
            "4:1: service.strict_guesses: it does not go with",
        ),
        ("[service]\nproxy_protocol = \"v1\"", "3:1: service.proxy_protocol: there are no trusted_proxies; "),
        ("[service]\ntrusted_proxies = [\"10.0.0.0/33\"]", "3:20: service.trusted_proxies: \"10.0.0.0/33\" is neither"),
        (
            "[service]\ntrusted_proxies = [\"::/129\"]",
            "3:20: service.trusted_proxies: \"::/129\" is neither an address",
        ),
        (
            "[service]\ntrusted_proxies = [\"10.0.0.1/8\"]",
            "3:20: service.trusted_proxies: \"10.0.0.1/8\" has an address longer than its prefix; accepted: 10.0.0.0/8",
        ),
        (
            "[service]\ntrusted_proxies = [\"::1\", \"::1/128\"]",
            "3:27: service.trusted_proxies: \"::1/128\" stands twice",
        ),
        (
            "[service]\nconnections_per_source = 0",
            "3:26: service.connections_per_source: 0; accepted: a whole number from 1 to 1000000",
        ),
        ("[service]\nkey_headers = []", "3:15: service.key_headers: an empty array; accepted: at least one: "),
        (
            "[service]\nkey_headers = [\"X-API-Key\", \"Authorization\"]",
            "3:29: service.key_headers: this field has a meaning of its own; ",
        ),
        ("[service]\nkey_headers = [\"X-K\", \"x-k\"]", "3:23: service.key_headers: \"x-k\" stands twice; "),
        (
            "[service]\nkey_headers = [\"A\", \"B\", \"C\", \"D\"]",
            "3:1: service.key_headers: 4 names; accepted: at most 3",
        ),
        (
            "[service]\nkey_headers = [\"X-K\"]\nclient_id = \"x-k\"",
            "4:1: service.client_id: keys are in this field; accepted: a field that is none of key_headers",
        ),
        ("[service]\nclient_id = \"X-API-Key\"", "3:13: service.client_id: this field has a meaning of its own; "),
        (&long, "3:13: service.client_id: this is no name of a field; "),
        ("[service]\nclient_id = \"X_Client_Id\"", "3:13: service.client_id: this is no name of a field; "),
        ("[service.keys_per_source]\nmost = 0", "3:8: service.keys_per_source.most: 0; "),
        ("[service.keys_per_source]\nevery = 0", "3:1: \"every\" is no field of `service.keys_per_source`; "),
        ("service = 1", "2:11: service: a whole number stands here; accepted: a table"),
        ("[plan.gold]", "2:7: plan.gold.limit: `limit` is missing; plan gold would have none; "),
        ("[plan.\".gold\"]\nlimit = \"1/s\"", "2:7: [plan]: this is not a name; accepted: 1 to 64 of"),
        ("[principal.a]", "2:12: principal.a.plan: neither plan nor limit; "),
        ("[principal.a]\nlimit = \"1/s\"\nuntil = 2030-01-01T00:00:00Z", "4:1: principal.a.until: nothing would hold"),
        (
            "[plan.g]\nlimit = \"1/s\"\n[principal.a]\nplan = \"g\"\nuntil = 2030-01-01T00:00:00Z",
            "6:1: principal.a.until: nothing",
        ),
        (
            "[plan.g]\nlimit = \"1/s\"\n[principal.a]\nplan = \"g\"\nlimit = \"2/s\"\nuntil = \"2030-01-01T00:00:00Z\"",
            "7:9: principal.a.until: a string stands here; ",
        ),
        (
            "[plan.g]\nlimit = \"1/s\"\n[principal.a]\nplan = \"g\"\nlimit = \"2/s\"\nuntil = 2030-01-01T00:00:00",
            "7:9: principal.a.until: 2030-01-01T00:00:00 has no offset; accepted: a time with its offset",
        ),
        (
            "[plan.g]\nlimit = \"1/s\"\n[principal.a]\nplan = \"g\"\nlimit = \"2/s\"\nuntil = 2030-01-01T00:00:00.5Z",
            "7:9: principal.a.until: 2030-01-01T00:00:00.5Z is within a second; ",
        ),
        (
            "[principal.a]\nlimit = \"1/s\"\n[principal.a.clients]\nx = \"1/s\"",
            "4:14: principal.a.clients: nothing tells clients apart; ",
        ),
        (
            "[service]\nclient_id = \"c\"\n[principal.a]\nlimit = \"1/s\"\n[principal.a.clients]\n\"x y\" = \"1/s\"",
            "7:1: clients: this is no client id; ",
        ),
        (&clients, "6:14: principal.a.clients: 33 client ids; accepted: at most 32"),
        (
            "[limit.a]\nper = \"key\"\nlimit = \"1/s\"",
            "3:7: limit.a.per: \"key\"; accepted: \"principal\", \"source\", \"service\"",
        ),
        ("[limit.a]", "2:8: limit.a.limit: it is missing; "),
        ("[limit.a]\nlimit = \"1/s\"\ncost = 2", "4:1: \"cost\" is no field of `limit.a`; "),
        ("[route]\npath = \"/a\"", "2:2: route: this is no list of tables; accepted: [[route]] for each"),
        ("[[route]]\nlimit = \"1/s\"", "2:1: route.path: it is missing; "),
        ("[[route]]\npath = \"/a\"", "2:1: route.limit: the route says nothing; "),
        (
            "[limit.s]\nlimit = \"1/s\"\n[[route]]\npath = \"/a\"\nlimit = \"1/s\"\nuse = \"s\"",
            "7:1: route.use: both limit and use; ",
        ),
        (
            "[limit.s]\nlimit = \"1/s\"\n[[route]]\npath = \"/a\"\nper = \"source\"\nuse = \"s\"",
            "6:1: route.per: the route has no limit of its own; ",
        ),
        (
            "[[route]]\npath = \"/a\"\ncost = 2\nmode = \"observe\"",
            "5:1: route.mode: the route has no limit of its own; ",
        ),
        ("[[route]]\npath = \"/a\"\ncost = 0", "4:8: route.cost: 0; accepted: a whole number from 1 to 256"),
        ("[[route]]\npath = \"/a\"\ncost = 257", "4:8: route.cost: 257; accepted: a whole number from 1 to 256"),
        ("[[route]]\npath = \"/a\"\ncost = -1", "4:8: route.cost: -1; "),
        ("[[route]]\npath = \"/a/x{id}\"\ncost = 2", "3:13: route.path: a brace that does not stand for one segment; "),
        ("[[route]]\npath = \"/a/../b\"\ncost = 2", "3:12: route.path: a segment that means another one; "),
        ("[[route]]\npath = \"/a%zz\"\ncost = 2", "3:11: route.path: `%` without two hex digits behind it; "),
        ("[[route]]\npath = \"/a/*\"\ncost = 2", "3:12: route.path: `*` in the path of a route; "),
        ("[[route]]\npath = \"/a\"\ncost = 2\nmethods = [\"get\"]", "5:12: methods: \"get\"; accepted: GET, HEAD, "),
        ("[[route]]\npath = \"/a\"\ncost = 2\nmethods = [\"GET\", \"GET\"]", "5:19: methods: \"GET\" stands twice; "),
        (
            "[[route]]\npath = \"/a\"\ncost = 2\nmethods = []",
            "5:11: route.methods: an empty array; accepted: at least one: GET",
        ),
        (
            "[[route]]\npath = \"/a/{id}\"\ncost = 2\n[[route]]\npath = \"/a/{x}/\"\ncost = 3",
            "6:1: path: a route for it and all methods stands in line 3 already; ",
        ),
        (&routes, "2:3: route: 1025 of them; accepted: at most 1024 [[route]]"),
        (
            "[[public]]\npath = \"/a\"\nlimit = \"unlimited\"",
            "4:9: public.limit: `unlimited`, where no key is needed; ",
        ),
        ("[[public]]\npath = \"/a/*/b\"\nlimit = \"1/s\"", "3:12: public.path: `*` inside a path; "),
        ("[[public]]\npath = \"/a\"\nlimit = \"1/s\"\ncost = 2", "5:1: \"cost\" is no field of `public`; "),
        (&public, "2:3: public: 1025 of them; "),
        ("[[exempt]]\npath = \"/a\"\nsources = [\"::1\"]\nreason = \"r\"", "2:1: exempt.until: it is missing; "),
        (&format!("[[exempt]]\npath = \"/a\"\nsources = [\"::1\"]\n{ends}"), "2:1: exempt.reason: it is missing; "),
        (
            &format!("[[exempt]]\npath = \"/a\"\nsources = [\"::1\"]\n{ends}\nreason = \" \""),
            "6:10: reason: this is none; ",
        ),
        (&format!("[[exempt]]\npath = \"/a\"\n{ends}\nreason = \"r\""), "2:1: exempt.sources: it is missing; "),
        (
            &format!("[[exempt]]\npath = \"/a\"\nsources = []\n{ends}\nreason = \"r\""),
            "4:11: exempt.sources: an empty array; ",
        ),
        (
            &format!("[[exempt]]\npath = \"/a\"\nsources = [\"10.0.0.0/8\", \"0.0.0.0/7\"]\n{ends}\nreason = \"r\""),
            "4:26: exempt.sources: 0.0.0.0/7 is nearly everybody; accepted: prefixes of 8 bits and more, of IPv6 7; ",
        ),
        (
            &format!("[[exempt]]\npath = \"/a\"\nsources = [\"::/0\"]\n{ends}\nreason = \"r\""),
            "4:12: exempt.sources: ::/0 is nearly everybody; ",
        ),
        (
            "[[exempt]]\npath = \"/a\"\nsources = [\"::1\"]\nuntil = 2027-01-01\nreason = \"r\"",
            "5:9: exempt.until: 2027-01-01 has no time of day; accepted: a time with its offset",
        ),
        (
            "[[exempt]]\npath = \"/a\"\nsources = [\"::1\"]\nuntil = 2027-01-01T00:00:00\nreason = \"r\"",
            "5:9: exempt.until: 2027-01-01T00:00:00 has no offset; ",
        ),
        (
            "[[exempt]]\npath = \"/a\"\nsources = [\"::1\"]\nuntil = 2027-01-01T00:00:00.5Z\nreason = \"r\"",
            "5:9: exempt.until: 2027-01-01T00:00:00.5Z is within a second; ",
        ),
        (
            "[[exempt]]\npath = \"/a\"\nsources = [\"::1\"]\nuntil = 1969-12-31T23:59:59Z\nreason = \"r\"",
            "5:9: exempt.until: 1969-12-31T23:59:59Z is before 1970; ",
        ),
        (&exempt, "2:3: exempt: 65 of them; accepted: at most 64 [[exempt]]"),
    ] {
        if expected.is_empty() {
            read(&format!("version = 1\n{text}"));
            continue;
        }
        let found = wrong(&format!("version = 1\n{text}"));
        assert!(
            found.len() == 1 && found[0].starts_with(expected),
            "{text}\nexpected: {expected}\nfound:    {found:#?}"
        );
    }
    assert_eq!(read(&format!("version = 1\n{}", many(64, &exemption))).services[DEFAULT_SERVICE].exempt.len(), 64);
}

#[test]
fn limits_that_many_share_count_no_refused_requests() {
    let file = |text: &str| format!("version = 1\n{text}");
    let shared = |field: &str| {
        format!(
            "{field}: penalize=true where many share the limit: one of them could keep all others refused; accepted: it on \
             limits of principals, keys, client ids and sources"
        )
    };
    for (text, place, field) in [
        ("[tenant.a]\nlimit = \"5/s penalize=true\"", "3:14", "tenant.a.limit"),
        ("[tenant.a]\nlimit = \"5/s\"\ncandidate = \"5/s; 9/m Penalize=TRUE\"", "4:23", "tenant.a.candidate"),
        ("[service]\nceiling = \"5/s penalize=true\"", "3:16", "service.ceiling"),
        ("[limit.x]\nlimit = \"5/s penalize=true\"\nper = \"service\"", "3:14", "limit.x.limit"),
        (
            "[limit.x]\nlimit = \"5/s\"\ncandidate = \"5/s burst=1 penalize=true\"\nper = \"service\"",
            "4:26",
            "limit.x.candidate",
        ),
        ("[[route]]\npath = \"/\"\nlimit = \"5/s penalize=true\"\nper = \"service\"", "4:14", "route.limit"),
    ] {
        assert_eq!(wrong(&file(text)), [format!("{place}: {}", shared(field))], "{text}");
    }
    let own = r#"
[service]
source = "5/s penalize=true"
guesses = "5/s penalize=true"
preflight = "5/s penalize=true"
client_id = "X-Client-Id"
[plan.gold]
limit = "5/s penalize=true"
candidate = "4/s penalize=true"
[principal.a]
plan = "gold"
limit = "5/s penalize=true"
[principal.a.clients]
other = "5/s penalize=true"
[limit.x]
limit = "5/s penalize=true"
[limit.y]
limit = "5/s penalize=true"
per = "source"
[[public]]
path = "/"
limit = "5/s penalize=true"
"#;
    let policy = read(&file(own));
    assert_eq!(policy.export().matches("5/second penalize=true").count(), 9);
    assert_eq!(read(&policy.export()), policy);
}

#[test]
fn what_is_wrong_with_a_service_stands_at_its_name() {
    let at = |text: &str, name: &str| at_service("p.toml", text, name, "wrong", "a").to_string();
    let several = "version = 1\n[[service]]\nname = \"a\"\n[[service]]\nname = \"b\"\n";
    assert_eq!(at(several, "b"), "p.toml:5:8: service b: wrong; accepted: a\n    5 | name = \"b\"\n      |        ^^^");
    let alone = "version = 1\n[[route]]\npath = \"/\"\ncost = 2\n";
    assert!(at(alone, DEFAULT_SERVICE).starts_with("p.toml:2:3: service default: wrong"), "{}", at(alone, "default"));
}

#[test]
fn a_name_in_which_a_key_stands_is_not_shown() {
    let key = crate::credential::generate().expect("random bytes");
    let shown = parse("p.toml", &format!("version = 1\n[principal.{}]\n", *key)).expect_err("a key").to_string();
    assert!(shown.starts_with("p.toml:2:12: [principal]: this looks like a key"), "{shown}");
    assert!(!shown.contains(&key[10..20]), "{shown}");
}

#[test]
fn what_refers_to_something_that_is_wrong_is_not_wrong_too() {
    let text = "version = 1\n[plan.g]\nlimit = \"?\"\n[limit.s]\nlimit = \"?\"\n[principal.a]\nplan = \"g\"\n[[route]]\npath = \"/a\"\nuse = \"s\"";
    assert_eq!(wrong(text).len(), 2, "{:?}", wrong(text));
}

#[test]
fn there_is_room_for_so_many_principals() {
    let mut text = "version = 1\n".to_owned();
    for number in 0..=MAX_PRINCIPALS {
        text.push_str(&format!("principal.p{number}.limit = \"1/s\"\n"));
    }
    let found = wrong(&text);
    assert!(
        found.len() == 1 && found[0].contains(": principal: 131072 principals; accepted: at most 131071"),
        "{found:?}"
    );
}

#[test]
fn writes_in_a_stable_order_what_reads_back() {
    let text = read(FULL).export();
    assert_eq!(read(&text).export(), text);
    let expected = "[principal.alice]\nplan = \"gold\"\nlimit = \"2000/minute\"\nuntil = 2026-12-01T00:00:00Z\n\
                    candidate = \"1/second\"\n\n[principal.alice.clients]\nmobile = \"60/minute\"\nother = \"10/minute\"\n";
    assert!(text.contains(expected), "{text}");
    let mut dotted = Policy::default();
    dotted.principals.insert("a.b".into(), Principal::of("1/second".parse().expect("a limit")));
    assert_eq!(read(&dotted.export()), dotted);
}

#[test]
fn reads_many_principals_in_little_time() {
    let policy = samples::large(samples::MANY);
    let text = policy.export();
    let begin = Instant::now();
    let read = read(&text);
    let parsed = begin.elapsed();
    let changes = crate::policy::diff::diff(&Policy::default(), &read);
    eprintln!("parsed in {parsed:?}, compared in {:?}", begin.elapsed() - parsed);
    assert_eq!((read == policy, changes.len()), (true, samples::MANY + 1));
    assert!(begin.elapsed().as_secs() < 60, "{:?}", begin.elapsed());
}

proptest! {
    #[test]
    fn what_is_written_reads_back_as_the_same(policy in samples::policy()) {
        let text = policy.export();
        match parse("p.toml", &text) {
            Ok(read) => prop_assert_eq!(read, policy, "{}", text),
            Err(problems) => prop_assert!(false, "{}\n{}", problems, text),
        }
    }

    #[test]
    fn no_file_makes_the_reading_panic(cut in 0..FULL.len(), with in "[\\[\\]={}\"'a-z0-9.é\n-]{0,6}") {
        let cut = FULL.floor_char_boundary(cut);
        let text = format!("{}{with}{}", &FULL[..cut], &FULL[cut..]);
        if let Err(problems) = parse("p.toml", &text) {
            prop_assert!(!problems.to_string().is_empty());
        }
    }
}

#[test]
fn services_on_the_same_ports_agree_on_what_is_before_the_host() {
    let together = [vec!["api".to_owned(), "web".to_owned()]];
    let parse = |text: &str| parse_for(&together, "p.toml", &format!("version = 1\n{text}"));
    let web = "[[service]]\nname = \"web\"\n";
    let api = "[[service]]\nname = \"api\"\n";
    assert!(parse(&format!("{api}ceiling = \"1/s\"\n{web}source = \"2/s\"\n")).is_ok());
    assert!(parse(&format!("{api}client_id = \"X-Client\"\n{web}client_id = \"X-Client\"\n")).is_ok());
    for (text, message) in [
        (
            format!("{api}client_id = \"X-Client\"\n{web}source = \"2/s\"\n"),
            "p.toml:4:1: service.client_id: api and web have the same ports",
        ),
        (
            format!("{api}{web}key_headers = [\"Api-Key\"]\n"),
            "p.toml:6:1: service.key_headers: api and web have the same ports",
        ),
        (
            format!("{web}connections_per_source = 5\n"),
            "p.toml:4:1: service.connections_per_source: api and web have the same ports",
        ),
    ] {
        let problems = parse(&text).expect_err(&text).to_string();
        assert!(problems.starts_with(message) && problems.contains('^'), "{problems}");
        // Where they have ports of their own each may have what it likes.
        assert!(super::parse("p.toml", &format!("version = 1\n{text}")).is_ok());
    }
}
