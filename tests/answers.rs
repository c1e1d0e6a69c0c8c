//! What the clients of refused requests get: an answer that every client can read, and none of another's; and what the
//! server is left with.

#[path = "answers/client.rs"]
mod client;
#[path = "answers/frames.rs"]
mod frames;
#[path = "answers/manner.rs"]
mod manner;
#[path = "answers/proxy.rs"]
mod proxy;
#[path = "answers/response.rs"]
mod response;
#[path = "answers/site.rs"]
mod site;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use enforcer_tests::capture::Capture;
use enforcer_tests::client::{Connection, Ending, exchange, flood, get, last, url};
use enforcer_tests::enforcer::Enforcer;
use enforcer_tests::origin::{Origin, Workers};
use enforcer_tests::passage::{INTERFACE, Passage};
use enforcer_tests::process;
use enforcer_tests::weather::Weather;
use jiff::Timestamp;

use crate::client::{Client, Request, wrk};
use crate::frames::Frames;
use crate::manner::{Manner, Played};
use crate::proxy::Kind;
use crate::response::Quota;
use crate::site::{CLIENT_INTERFACE, PORT, Place, Site, comes_to_rest, everywhere};

/// Bytes of an upload that is refused at its head, long before its end.
const LARGE: usize = 20_000_000;

/// Keys, by what becomes of their requests.
struct Keys {
    good: String,
    disabled: String,
    /// The first of its two requests is left.
    few: String,
}

impl Keys {
    fn add(site: &Site<'_>) -> Result<Self> {
        let keys = Self {
            good: field(&site.enforcer.add_key("good", "unlimited")?),
            disabled: field(&site.enforcer.add_key("disabled", "unlimited")?),
            few: field(&site.enforcer.add_key("few", "1/hour")?),
        };
        site.enforcer.cli(&["key", "disable", "disabled"])?;
        Ok(keys)
    }

    /// Requests of every kind that is refused, with the status of the answer; and one that is served.
    fn requests(&self) -> Vec<(u16, Request)> {
        let good = || Some(self.good.clone());
        let post = |field, size| Request { method: "POST", path: "/upload".to_owned(), field, size };
        let head = Request { method: "HEAD", ..Request::get("/", None) };
        vec![
            (401, Request::get("/", None)),
            (401, Request::get("/", Some("X-API-Key: never_registered".to_owned()))),
            (401, Request::get("/", Some(self.disabled.clone()))),
            (401, head),
            (401, post(None, LARGE)),
            (413, post(good(), LARGE + 1)),
            (414, Request::get(&format!("/{}", "a".repeat(9000)), good())),
            (431, Request::get("/", Some(format!("X-Padding: {}", "p".repeat(20_000))))),
            (400, Request::get("/", Some(self.good.replacen('-', "_", 2)))),
            (429, Request::get("/", Some(self.few.clone()))),
            (200, Request::get("/", good())),
            (403, Request::get("/", Some("Upgrade: websocket".to_owned()))),
        ]
    }
}

fn field(key: &str) -> String {
    format!("X-API-Key: {key}")
}

#[test]
fn every_client_reads_every_answer_in_every_place() -> Result<()> {
    everywhere(&Place::ALL, "plain", Workers::Sync(4), &["--max-body", "20000000"], |site| {
        let keys = Keys::add(site)?;
        let [v4, _] = site.urls("");
        let used = Client::Curl.run(site.link.client(), &[v4], &[Request::get("/", Some(keys.few.clone()))])?;
        ensure!(used[0].status == 200, "the only request of a key is not served: {}", used[0].status);
        let one = |client: Client| -> Result<()> {
            let mut requests = keys.requests();
            if !client.can_upgrade() {
                requests.pop();
            }
            let (statuses, requests): (Vec<u16>, Vec<Request>) = requests.into_iter().unzip();
            let since = Timestamp::now();
            let responses = client.run(site.link.client(), &site.urls(""), &requests)?;
            for (number, response) in responses.iter().enumerate() {
                let (request, status) = (&requests[number % requests.len()], statuses[number % requests.len()]);
                let told =
                    || format!("{client:?}, {number}, {} {:.40}, {:.60?}", request.method, request.path, request.field);
                if status == 200 {
                    ensure!(response.status == 200, "not served: {response:?}, {}", told());
                    continue;
                }
                // Other refusals leave it open where the request ends; of a large one the rest would have to be taken; and
                // Node is told to ask for no more.
                let keeps = matches!(status, 401 | 429) && request.size == 0 && client != Client::Node;
                let connection = if keeps { "keep-alive" } else { "close" };
                response.expect(status, request.method, since, connection).with_context(told)?;
                if status == 401 {
                    ensure!(response.field("WWW-Authenticate")? == r#"ApiKey realm="api""#, "{response:?}, {}", told());
                }
                if status == 429 {
                    let Quota { name, count, window, retry } = response.quota().with_context(told)?;
                    ensure!((name.as_str(), count, window) == ("default", 1, 3600) && retry <= 7200, "{response:?}");
                }
            }
            Ok(())
        };
        scope(|scope| {
            let clients: Vec<_> = Client::ALL.into_iter().map(|client| scope.spawn(move || one(client))).collect();
            clients.into_iter().try_for_each(|client| client.join().ok().context("a client panicked")?)
        })?;
        for url in site.urls("/") {
            let (refused, all) = wrk(site.link.client(), &url)?;
            ensure!(refused == all && all > 50, "wrk read {refused} refusals in {all} answers");
        }
        let executed = site.origin.await_executed(1 + 2 * Client::ALL.len())?;
        let keyed = |key: &str| keys.good.ends_with(key) || keys.few.ends_with(key);
        ensure!(executed.iter().all(|request| keyed(&request.key)), "executed: {executed:?}");
        Ok(())
    })
}

#[test]
fn a_browser_keeps_the_connection_of_refused_requests() -> Result<()> {
    everywhere(&Place::HOOKS, "plain", Workers::Threads(2), &[], |site| {
        let keys = Keys::add(site)?;
        let head = Request { method: "HEAD", ..Request::get("/", None) };
        let upload = |field, size| Request { method: "POST", path: "/upload".to_owned(), field, size };
        let (good, few) = (Some(keys.good.clone()), Some(keys.few.clone()));
        let plan = [
            (200, Request::get("/", good.clone())),
            (401, Request::get("/", None)),
            (401, head),
            (200, Request::get("/download/200000", good.clone())),
            (200, Request::get("/", few.clone())),
            (429, Request::get("/", few.clone())),
            (401, upload(None, 5000)),
            (200, upload(good.clone(), 5000)),
            (429, upload(few, 1)),
            (200, Request::get("/", good)),
        ];
        let (statuses, requests): (Vec<u16>, Vec<Request>) = plan.into_iter().unzip();
        let ([url, _], since) = (site.urls(""), Timestamp::now());
        let responses = Client::Chromium.run(site.link.client(), &[url], &requests)?;
        let seen: Vec<u16> = responses.iter().map(|response| response.status).collect();
        ensure!(seen == statuses, "{seen:?}, not {statuses:?}");
        for (response, request) in responses.iter().zip(&requests) {
            let told = || format!("{request:?}: {:.300?}", response.body);
            ensure!(response.connection == responses[0].connection, "another connection: {}", told());
            match response.status {
                200 if request.path.starts_with("/download") => ensure!(response.body.len() == 200_000, "{}", told()),
                200 => ensure!(!response.body.is_empty(), "{}", told()),
                status => response.expect(status, request.method, since, "keep-alive").with_context(told)?,
            }
        }
        let executed = site.origin.await_executed(5)?;
        ensure!(executed.iter().all(|request| request.key != "-"), "executed: {executed:?}");
        Ok(())
    })
}

#[test]
fn a_client_that_waits_as_long_as_it_is_told_is_served() -> Result<()> {
    everywhere(&[Place::Native], "plain", Workers::Sync(2), &[], |site| {
        let one = |name: &str, rule: &str, count: u64| -> Result<()> {
            let ([_, address], [_, url]) = (site.addresses(), site.urls(""));
            let key = site.enforcer.add_key(name, rule)?;
            let request = [Request::get("/", Some(field(&key)))];
            let send = || Client::Curl.run(site.link.client(), std::slice::from_ref(&url), &request);
            // It takes its time to start: what there is has been used up before.
            let use_up = || (0..count).try_for_each(|_| exchange(address, &get("/", Some(&key))).map(drop));
            let next = |_| site.link.client().run(use_up).and_then(|()| send());
            let refused = (0..10).map(next).find(|all| !matches!(all, Ok(all) if all[0].status == 200));
            let quota = refused.context("ten requests were served")??[0].quota()?;
            ensure!((quota.count, quota.window) == (count, 2) && quota.retry <= 4, "{quota:?}");
            sleep(Duration::from_secs(quota.retry));
            let served = send()?;
            ensure!(served[0].status == 200, "after {} s {:?}", quota.retry, served[0]);
            Ok(())
        };
        let rules = [
            ("sliding", "2 per 2 seconds", 2),
            ("fixed", "2 per 2 seconds algo=fixed", 2),
            ("gcra", "1 per 2 seconds algo=gcra", 1),
        ];
        scope(|scope| {
            let all = rules.map(|(name, rule, count)| (name, scope.spawn(move || one(name, rule, count))));
            all.into_iter().try_for_each(|(name, one)| {
                one.join().ok().context("a client panicked")?.with_context(|| name.to_owned())
            })
        })
    })
}

#[test]
fn an_answer_is_one_right_segment_and_no_reset_overtakes_it() -> Result<()> {
    everywhere(&Place::WIRED, "plain", Workers::Sync(2), &[], |site| {
        site.link.set_checksum_offload(false)?;
        let mut answered = 0;
        for address in site.addresses() {
            for manner in Manner::ALL {
                let capture = Capture::start(site.link.client(), CLIENT_INTERFACE)?;
                let played = site.link.client().run(|| manner.play(address));
                let Played { port, read, bytes } = played.with_context(|| format!("{manner:?}, {address}"))?;
                ensure!(bytes.starts_with(b"HTTP/1.1 401 "), "{manner:?}: {}", bytes.escape_ascii());
                // What the client's own end brings, too.
                sleep(Duration::from_millis(50));
                let frames = Frames::of(&capture.finish()?, port);
                frames.expect_one_answer(read).with_context(|| format!("{manner:?}, {address}"))?;
                site.has_no_connection_from(&[port])?;
                answered += 1;
            }
        }
        ensure!(site.event("answered")? == answered, "{} were counted as answered", site.event("answered")?);
        ensure!(site.event("answered_again")? == 0, "{} were answered again", site.event("answered_again")?);
        ensure!(site.refused("unkeyed")? == answered, "{} were refused", site.refused("unkeyed")?);
        ensure!(site.origin.executed()?.is_empty(), "something was executed");
        Ok(())
    })
}

#[test]
fn on_a_kept_connection_every_segment_is_right_and_in_its_order() -> Result<()> {
    everywhere(&Place::WIRED, "plain", Workers::Threads(2), &[], |site| {
        site.link.set_checksum_offload(false)?;
        let (good, few) = (site.enforcer.add_key("good", "unlimited")?, site.enforcer.add_key("few", "1/hour")?);
        let upload = |key: Option<&str>| {
            let field = key.map(|key| format!("X-API-Key: {key}\r\n")).unwrap_or_default();
            let head = format!("POST /upload HTTP/1.1\r\nHost: app.test\r\n{field}Content-Length: 5000\r\n\r\n");
            [head.as_bytes(), &[b'u'; 5000]].concat()
        };
        let [v4, v6] = site.addresses();
        for (address, used) in [(v4, 200), (v6, 429)] {
            let capture = Capture::start(site.link.client(), CLIENT_INTERFACE)?;
            let port = site.link.client().run(|| {
                let mut connection = Connection::open(address)?;
                let begin = [(get("/", Some(&good)), 200), (get("/", Some(&few)), used)];
                let round = [
                    (get("/", None), 401),
                    (get("/", Some(&few)), 429),
                    (get("/download/100000", Some(&good)), 200),
                    (upload(None), 401),
                    (upload(Some(&good)), 200),
                ];
                let requests = begin.into_iter().chain((0..10).flat_map(|_| round.clone()));
                for (number, (request, status)) in requests.enumerate() {
                    connection.send(&request);
                    let (ending, _) = connection.answer();
                    ensure!(ending == Ending::Answered(status), "request {number}: {ending:?}, not {status}");
                }
                connection.port()
            })?;
            // What its end brings, too.
            sleep(Duration::from_millis(50));
            Frames::of(&capture.finish()?, port).expect_orderly().with_context(|| format!("{address}"))?;
        }
        Ok(())
    })
}

#[test]
fn an_answer_that_is_lost_comes_again_the_same_and_is_neither_charged_nor_counted_again() -> Result<()> {
    everywhere(&Place::WIRED, "plain", Workers::Sync(2), &[], |site| {
        let client = site.link.client();
        let keys = ["first", "second"].map(|name| site.enforcer.add_key(name, "1/hour"));
        let [first, second] = keys;
        let keys = [first?, second?];
        for (address, key) in site.addresses().into_iter().zip(&keys) {
            let ending = client.run(|| exchange(address, &get("/", Some(key))))?;
            ensure!(ending == Ending::Answered(200), "the only request of a key: {ending:?}");
        }
        // The client's interface loses each answer twice.
        let rules = format!(
            "table netdev misfortune {{ chain answers {{ type filter hook ingress device \"{CLIENT_INTERFACE}\" \
             priority 0; tcp sport {PORT} tcp flags & fin == fin numgen inc mod 3 < 2 drop; }}; }}"
        );
        process::run(client.command("nft").arg(rules))?;
        for (count, (address, key)) in (1..).zip(site.addresses().into_iter().zip(&keys)) {
            let capture = Capture::start(client, CLIENT_INTERFACE)?;
            let (port, ending) = client.run(|| {
                let mut connection = Connection::open(address)?;
                connection.send(&last(get("/", Some(key))));
                Ok((connection.port()?, connection.answer().0))
            })?;
            ensure!(ending == Ending::Answered(429), "{address}: {ending:?}");
            Frames::of(&capture.finish()?, port).expect_repeated(3)?;
            let counts = [site.refused("over_limit")?, site.event("answered")?, site.event("answered_again")?];
            ensure!(counts == [count, count, 2 * count], "refused, answered, answered again: {counts:?}");
        }
        for (name, key) in ["first", "second"].iter().zip(&keys) {
            let counted = |verdict: &str| {
                site.enforcer.metric(&format!("enforcer_requests_total{{principal=\"{name}\",verdict=\"{verdict}\"}}"))
            };
            let counts = (counted("allowed")?, counted("limited")?, site.origin.executed_with(key)?);
            ensure!(counts == (1, 1, 1), "{name}: {counts:?} allowed, limited, executed");
        }
        Ok(())
    })
}

#[test]
fn a_refused_request_behind_an_unfinished_one_ends_both_sides_without_an_answer() -> Result<()> {
    everywhere(&Place::ALL, "slow", Workers::Threads(2), &[], |site| {
        let key = site.enforcer.add_key("tenant", "unlimited")?;
        for (count, address) in (1..).zip(site.addresses()) {
            let port = site.link.client().run(|| {
                let mut connection = Connection::open(address)?;
                connection.send(&get("/after/1.0", Some(&key)));
                sleep(Duration::from_millis(100));
                connection.send(&get("/", None));
                let (ending, bytes) = connection.answer();
                ensure!(ending == Ending::Reset && bytes.is_empty(), "{ending:?}, {}", bytes.escape_ascii());
                connection.port()
            })?;
            site.has_no_connection_from(&[port])?;
            let counts = [site.refused("unkeyed")?, site.event("reset_client")?, site.event("answered")?];
            ensure!(counts == [count, count, 0], "refused, reset, answered: {counts:?}");
        }
        Ok(())
    })
}

#[test]
fn a_refused_request_behind_a_finished_one_is_answered_and_its_connection_goes_on() -> Result<()> {
    everywhere(&Place::ALL, "plain", Workers::Threads(2), &[], |site| {
        let key = site.enforcer.add_key("tenant", "unlimited")?;
        for address in site.addresses() {
            site.link.client().run(|| {
                let mut connection = Connection::open(address)?;
                for _ in 0..2 {
                    connection.send(&get("/", Some(&key)));
                    let (ending, _) = connection.answer();
                    ensure!(ending == Ending::Answered(200), "a good request: {ending:?}");
                }
                for (key, status) in [(None, 401), (None, 401), (Some(key.as_str()), 200)] {
                    connection.send(&get("/", key));
                    let (ending, _) = connection.answer();
                    ensure!(ending == Ending::Answered(status), "one with {key:?}: {ending:?}");
                }
                Ok(())
            })?;
        }
        Ok(())
    })
}

#[test]
fn a_refused_request_that_came_in_parts_ends_its_connection() -> Result<()> {
    // The app has its first part: what followed would be the rest of it.
    everywhere(&Place::HOOKS, "plain", Workers::Threads(2), &[], |site| {
        let key = site.enforcer.add_key("tenant", "unlimited")?;
        let [address, _] = site.addresses();
        site.link.client().run(|| {
            let mut connection = Connection::open(address)?;
            connection.send(&get("/", Some(&key)));
            let (ending, _) = connection.answer();
            ensure!(ending == Ending::Answered(200), "a good request: {ending:?}");
            connection.send(b"GET /hidden HTTP/1.1\r\nHost: a\r\nX-Begun: ");
            sleep(Duration::from_millis(100));
            connection.send(b"here\r\n\r\n");
            let (ending, _) = connection.answer();
            ensure!(ending == Ending::Answered(401), "one in parts: {ending:?}");
            connection.send(&get("/", Some(&key)));
            let (ending, _) = connection.answer();
            ensure!(!matches!(ending, Ending::Answered(_)), "behind it: {ending:?}");
            Ok(())
        })?;
        let executed = site.origin.executed()?;
        ensure!(executed.len() == 1, "the app executed {executed:?}");
        Ok(())
    })
}

#[test]
fn a_flood_of_refused_requests_keeps_no_worker_from_a_good_client() -> Result<()> {
    for (mode, refusal) in [("answer", Ending::Answered(401)), ("reset", Ending::Reset)] {
        everywhere(&Place::HOOKS, "plain", Workers::Sync(2), &["--on-refuse", mode], |site| {
            let key = site.enforcer.add_key("tenant", "unlimited")?;
            let [address, _] = site.addresses();
            let flooding = AtomicBool::new(true);
            scope(|scope| -> Result<()> {
                let bad = scope.spawn(|| -> Result<BTreeMap<Ending, usize>> {
                    let mut endings = BTreeMap::new();
                    while flooding.load(Ordering::Relaxed) {
                        for (ending, count) in flood(site.link.client(), address, 32, 320, |_| get("/", None))? {
                            *endings.entry(ending).or_insert(0) += count;
                        }
                    }
                    Ok(endings)
                });
                let good = site.link.client().run(|| good_requests(address, &key));
                flooding.store(false, Ordering::Relaxed);
                let Ok(bad) = bad.join() else { bail!("the flood panicked") };
                let (bad, good) = (bad?, good?);
                ensure!(bad.len() == 1 && bad.get(&refusal) > Some(&300), "{mode}, the flood saw {bad:?}");
                ensure!(good >= 20, "{mode}: the good client was served {good} times only");
                Ok(())
            })?;
            let executed = site.origin.executed()?;
            ensure!(executed.iter().all(|request| request.key == key), "an unkeyed request was executed");
            Ok(())
        })?;
    }
    Ok(())
}

/// Sends keyed requests for three seconds, each on a connection of its own; how many, if all of them were served.
fn good_requests(address: SocketAddr, key: &str) -> Result<usize> {
    let (begin, mut served) = (Instant::now(), 0);
    while begin.elapsed() < Duration::from_secs(2) {
        let ending = exchange(address, &get("/", Some(key)))?;
        ensure!(ending == Ending::Answered(200), "the good client, behind {served} requests: {ending:?}");
        served += 1;
    }
    Ok(served)
}

#[test]
fn every_refused_request_is_answered_and_counted_once_in_bad_weather() -> Result<()> {
    let weather = Weather { lost: 50, doubled: 50, held: 250, ..Weather::default() };
    for (seed, hook) in (1..).zip(["xdp-native", "xdp-generic", "tc"]) {
        let passage = Passage::new()?;
        let hosts = [passage.v4, passage.v6].map(|ip| SocketAddr::new(ip, PORT));
        let origin = Origin::start(&passage.server, "plain", Workers::Sync(4), hosts[1])?;
        let port = PORT.to_string();
        let mut enforcer =
            Enforcer::new(&passage.server, &["--interface", INTERFACE, "--port", &port, "--hook", hook])?;
        enforcer.start()?;
        let few = enforcer.add_key("few", "1/hour")?;
        let relay = passage.relay(weather, seed)?;
        let ending = passage.client.run(|| exchange(hosts[0], &get("/", Some(&few))))?;
        ensure!(ending == Ending::Answered(200), "{hook}: the only request of a key: {ending:?}");
        let upload = Request { method: "POST", path: "/upload".to_owned(), field: None, size: 200_000 };
        let plan = [
            vec![Request::get("/", None); 5],
            vec![Request::get("/", Some(field(&few))); 5],
            vec![Request { method: "HEAD", ..Request::get("/", None) }; 2],
            vec![upload; 1],
        ]
        .concat();
        let one = |client: Client, host: SocketAddr| -> Result<()> {
            let since = Timestamp::now();
            for (response, request) in client.run(&passage.client, &[url(host, "")], &plan)?.iter().zip(&plan) {
                let status = if request.field.is_some() { 429 } else { 401 };
                response
                    // Whether the request came whole and in time for its turn is the weather's doing.
                    .expect(status, request.method, since, response.field("Connection")?)
                    .with_context(|| format!("{client:?}, {request:?}"))?;
            }
            Ok(())
        };
        scope(|scope| {
            let clients = [Client::Curl, Client::Requests].map(|client| hosts.map(|host| (client, host)));
            let running: Vec<_> =
                clients.as_flattened().iter().map(|&(client, host)| scope.spawn(move || one(client, host))).collect();
            running.into_iter().try_for_each(|client| client.join().ok().context("a client panicked")?)
        })
        .with_context(|| format!("{hook}: {:?}", enforcer.metrics()))?;
        comes_to_rest(&passage.server).with_context(|| hook.to_owned())?;
        let fates = relay.finish()?;
        ensure!(fates.iter().all(|fates| fates.lost > 0 && fates.doubled > 0 && fates.held > 0), "{fates:?}");
        for (reason, each) in [("unkeyed", 8), ("over_limit", 5)] {
            let counted =
                enforcer.metric(&format!("enforcer_refused_total{{service=\"default\",reason=\"{reason}\"}}"))?;
            ensure!(counted == 4 * each, "{hook}: {counted} were refused as {reason}, of {}", 4 * each);
        }
        ensure!(origin.executed()?.len() == 1, "{hook}: executed {:?}", origin.executed()?);
    }
    Ok(())
}

#[test]
fn through_a_reverse_proxy_every_client_gets_its_own_answer() -> Result<()> {
    everywhere(&Place::HOOKS, "plain", Workers::Threads(2), &[], |site| {
        let (good, few) = (site.enforcer.add_key("good", "unlimited")?, site.enforcer.add_key("few", "1/hour")?);
        let [address, _] = site.addresses();
        let ending = site.link.client().run(|| exchange(address, &get("/", Some(&few))))?;
        ensure!(ending == Ending::Answered(200), "the only request of a key: {ending:?}");
        for kind in Kind::ALL {
            let proxy = kind.start(site.link.client(), address)?;
            let one = |client: usize| -> Result<()> {
                for number in 0..40 {
                    // Every answer of the app has a length of its own.
                    let size = 1 + client * 1000 + number;
                    let path = format!("/download/{size}");
                    let (key, status) = match (client + number) % 3 {
                        0 => (Some(&*good), 200),
                        1 => (None, 401),
                        _ => (Some(&*few), 429),
                    };
                    let mut connection = Connection::open(proxy.address)?;
                    connection.send(&get(&path, key));
                    let (ending, body) = connection.answer();
                    let right = ending == Ending::Answered(status) && (body.len() == size) == (status == 200);
                    ensure!(
                        right,
                        "{kind:?}, client {client}, {number}: {ending:?} with {} bytes, not {status}",
                        body.len()
                    );
                }
                Ok(())
            };
            let all = || -> Result<()> {
                let one = &one;
                scope(|scope| {
                    // Threads are in the namespace that they are started in.
                    let clients: Vec<_> = (0..6).map(|client| scope.spawn(move || one(client))).collect();
                    clients.into_iter().try_for_each(|client| client.join().ok().context("a client panicked")?)
                })
            };
            site.link.client().run(all)?;
        }
        Ok(())
    })
}
