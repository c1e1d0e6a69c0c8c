//! Real applications behind the real enforcer: gunicorn and Flask, curl and Python, over veth and over loopback.
//!
//! What counts is what the app executed; the app's own record tells.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use enforcer_tests::client::{self, Connection, Ending, curl, exchange, flood, get, python, url};
use enforcer_tests::enforcer::Enforcer;
use enforcer_tests::netns::{Link, Way};
use enforcer_tests::origin::{Origin, Workers};

const PORT: u16 = 8000;
const WAYS: [Way; 3] = Way::ALL;

fn addresses(link: &Link) -> [SocketAddr; 2] {
    [link.v4, link.v6].map(|ip: IpAddr| SocketAddr::new(ip, PORT))
}

/// Runs a test's body on every way and over both families, with a server of its own each.
fn everywhere(
    app: &str,
    workers: Workers,
    arguments: &[&str],
    body: impl Fn(&Link, &Origin, &Enforcer<'_>) -> Result<()>,
) -> Result<()> {
    for way in WAYS {
        let link = Link::new(way)?;
        for address in addresses(&link) {
            let origin = Origin::start(&link.server, app, workers, address)?;
            let enforcer = Enforcer::guard(&link, PORT, arguments)?;
            body(&link, &origin, &enforcer)
                .map_err(|error| error.context(format!("{way:?}, {address}, daemon: {:?}", enforcer.log())))?;
        }
    }
    Ok(())
}

fn refused(enforcer: &Enforcer<'_>, reason: &str) -> Result<u64> {
    enforcer.metric(&format!("enforcer_refused_total{{service=\"default\",reason=\"{reason}\"}}"))
}

#[test]
fn only_requests_with_a_registered_key_reach_the_app() -> Result<()> {
    everywhere("plain", Workers::Sync(2), &[], |link, origin, enforcer| {
        let key = enforcer.add_key("tenant", "100/hour")?;
        let (client, page) = (link.client(), url(origin.address, "/"));
        let header = format!("X-API-Key: {key}");
        ensure!(curl(client, &["--header", &header, &page])? == 200, "curl with its key is not served");
        ensure!(curl(client, &[&page])? == 401, "curl without a key is not refused");
        ensure!(
            curl(client, &["--header", "X-API-Key: not_registered", &page])? == 401,
            "an unknown key is not refused"
        );
        let served: BTreeMap<String, u64> = python(client, "flood.py", &[&page, "2", "5", &key])?;
        ensure!(served == BTreeMap::from([("200".to_owned(), 5)]), "requests with a key: {served:?}");
        let kept: BTreeMap<String, u64> = python(client, "flood.py", &[&page, "2", "5", "none"])?;
        ensure!(kept == BTreeMap::from([("401".to_owned(), 5)]), "requests without a key: {kept:?}");
        let executed = origin.await_executed(6)?;
        ensure!(executed.iter().all(|request| request.key == key), "executed: {executed:?}");
        ensure!(refused(enforcer, "unkeyed")? == 6, "unkeyed requests counted: {}", refused(enforcer, "unkeyed")?);
        ensure!(refused(enforcer, "unknown_key")? == 1, "unknown keys counted: {}", refused(enforcer, "unknown_key")?);
        Ok(())
    })
}

#[test]
fn exactly_100_of_many_concurrent_requests_reach_1_2_or_8_workers() -> Result<()> {
    for way in WAYS {
        let link = Link::new(way)?;
        let address = SocketAddr::new(link.v4, PORT);
        let enforcer = Enforcer::guard(&link, PORT, &[])?;
        let kinds = [Workers::Sync(1), Workers::Sync(2), Workers::Sync(8), Workers::Threads(2)];
        for (number, workers) in kinds.into_iter().enumerate() {
            let origin = Origin::start(&link.server, "plain", workers, address)?;
            let key = enforcer.add_key(&format!("tenant-{number}"), "100/minute")?;
            let endings = flood(link.client(), address, 8, 200, |_| get("/", Some(&key)))?;
            let expected = BTreeMap::from([(Ending::Answered(200), 100), (Ending::Answered(429), 100)]);
            ensure!(endings == expected, "{workers:?} on {way:?}: {endings:?}");
            origin.await_executed(100)?;
        }
    }
    Ok(())
}

#[test]
fn every_request_of_a_kept_connection_is_judged() -> Result<()> {
    everywhere("plain", Workers::Threads(2), &[], |link, origin, enforcer| {
        let key = enforcer.add_key("tenant", "5/hour")?;
        link.client().run(|| {
            let mut connection = Connection::open(origin.address)?;
            for number in 1..=5 {
                connection.send(&get(&format!("/?{number}"), Some(&key)));
                let (ending, _) = connection.answer();
                ensure!(ending == Ending::Answered(200), "request {number} of 5: {ending:?}");
            }
            connection.send(&get("/?6", Some(&key)));
            let (ending, _) = connection.answer();
            ensure!(ending == Ending::Answered(429), "the request over the limit: {ending:?}");
            Ok(())
        })?;
        let other = enforcer.add_key("other", "100/hour")?;
        let page = url(origin.address, "/");
        let endings: Vec<String> =
            python(link.client(), "session.py", &[&page, &other, &other, "none", &other, "unregistered_key", &other])?;
        ensure!(endings == ["200", "200", "401", "200", "401", "200"], "a session: {endings:?}");
        origin.await_executed(9)?;
        Ok(())
    })
}

#[test]
fn pipelined_requests_are_judged_one_by_one() -> Result<()> {
    everywhere("plain", Workers::Threads(1), &[], |link, origin, enforcer| {
        let key = enforcer.add_key("tenant", "100/hour")?;
        let all: Vec<u8> = (0..5).flat_map(|number| get(&format!("/?{number}"), Some(&key))).collect();
        let last_unkeyed = [all.clone(), get("/unkeyed", None)].concat();
        link.client().run(|| {
            let mut connection = Connection::open(origin.address)?;
            connection.send(&all);
            for number in 0..5 {
                let (ending, _) = connection.answer();
                ensure!(ending == Ending::Answered(200), "pipelined request {number}: {ending:?}");
            }
            let mut connection = Connection::open(origin.address)?;
            connection.send(&last_unkeyed);
            while let (Ending::Answered(status), _) = connection.answer() {
                ensure!(status == 200, "a pipelined request is answered with {status}");
            }
            Ok(())
        })?;
        let executed = origin.executed()?;
        ensure!(executed.iter().all(|request| request.key == key), "executed: {executed:?}");
        ensure!(executed.iter().filter(|request| request.path == "/").count() >= 5, "executed: {executed:?}");

        let few = enforcer.add_key("few", "3/hour")?;
        let six: Vec<u8> = (0..6).flat_map(|_| get("/", Some(&few))).collect();
        link.client().run(|| {
            let mut connection = Connection::open(origin.address)?;
            connection.send(&six);
            while let (Ending::Answered(status), _) = connection.answer() {
                ensure!(status == 200, "a pipelined request is answered with {status}");
            }
            Ok(())
        })?;
        ensure!(origin.executed_with(&few)? <= 3, "executed over the limit: {}", origin.executed_with(&few)?);
        ensure!(
            exchange_in(link, origin.address, &get("/", Some(&few)))? == Ending::Answered(429),
            "a fourth request passed"
        );
        Ok(())
    })
}

fn exchange_in(link: &Link, address: SocketAddr, request: &[u8]) -> Result<Ending> {
    link.client().run(|| exchange(address, request))
}

#[test]
fn heads_split_over_many_segments_are_read_as_one() -> Result<()> {
    for workers in [Workers::Sync(2), Workers::Threads(2)] {
        everywhere("plain", workers, &[], |link, origin, enforcer| {
            let key = enforcer.add_key("tenant", "100/hour")?;
            link.client().run(|| {
                let (keyed, unkeyed) = (get("/", Some(&key)), get("/", None));
                for (request, expected) in [(&keyed, Ending::Answered(200)), (&unkeyed, Ending::Answered(401))] {
                    for size in [1, 7, 40] {
                        let pieces: Vec<&[u8]> = request.chunks(size).collect();
                        let mut connection = Connection::open(origin.address)?;
                        connection.send_slowly(&pieces, Duration::from_millis(if size == 1 { 2 } else { 20 }));
                        let (ending, _) = connection.answer();
                        ensure!(ending == expected, "in pieces of {size}: {ending:?}");
                    }
                }
                Ok(())
            })?;
            let executed = origin.await_executed(3)?;
            ensure!(executed.iter().all(|request| request.key == key), "executed: {executed:?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn uploads_and_downloads_pass_whole_and_count_once() -> Result<()> {
    everywhere("plain", Workers::Threads(2), &[], |link, origin, enforcer| {
        let key = enforcer.add_key("tenant", "100/hour")?;
        let client = link.client();
        let mut digests = Vec::new();
        for form in ["length", "chunked"] {
            let page = url(origin.address, "/upload");
            let (status, text): (u16, String) = python(client, "upload.py", &[&page, &key, "300000", form])?;
            ensure!(status == 200 && text.starts_with("300000 "), "an upload by {form}: {status} {text}");
            digests.push(text);
        }
        ensure!(digests[0] == digests[1], "the bodies differ: {digests:?}");
        let header = format!("X-API-Key: {key}");
        ensure!(curl(client, &["--header", &header, &url(origin.address, "/download/3000000")])? == 200, "a download");
        origin.await_executed(3)?;
        let allowed = enforcer.metric("enforcer_requests_total{principal=\"tenant\",verdict=\"allowed\"}")?;
        ensure!(allowed == 3, "{allowed} requests were charged");
        Ok(())
    })
}

#[test]
fn a_body_that_looks_like_a_request_is_neither_judged_nor_executed() -> Result<()> {
    everywhere("plain", Workers::Threads(1), &[], |link, origin, enforcer| {
        let key = enforcer.add_key("tenant", "100/hour")?;
        let inner = get("/smuggled", Some("not_a_registered_key"));
        let head =
            format!("POST /upload HTTP/1.1\r\nHost: t\r\nX-API-Key: {key}\r\nContent-Length: {}\r\n\r\n", inner.len());
        link.client().run(|| {
            let mut connection = Connection::open(origin.address)?;
            connection.send(&[head.as_bytes(), &inner].concat());
            let (ending, body) = connection.answer();
            ensure!(ending == Ending::Answered(200), "the upload: {ending:?}");
            ensure!(body.starts_with(format!("{} ", inner.len()).as_bytes()), "the app read {body:?}");
            connection.send(&get("/", Some(&key)));
            let (ending, _) = connection.answer();
            ensure!(ending == Ending::Answered(200), "the next request: {ending:?}");
            Ok(())
        })?;
        origin.await_executed(2)?;
        Ok(())
    })
}

#[test]
fn a_good_client_is_served_during_and_after_a_flood_of_refused_ones() -> Result<()> {
    for way in WAYS {
        let link = Link::new(way)?;
        let address = SocketAddr::new(link.v4, PORT);
        let origin = Origin::start(&link.server, "plain", Workers::Sync(2), address)?;
        let enforcer = Enforcer::guard(&link, PORT, &[])?;
        let key = enforcer.add_key("tenant", "100000/hour")?;
        let flooding = AtomicBool::new(true);
        std::thread::scope(|scope| -> Result<()> {
            let bad = scope.spawn(|| {
                let mut sent = 0;
                while flooding.load(Ordering::Relaxed) {
                    let endings = flood(link.client(), address, 30, 60, |number| match number % 3 {
                        0 => get("/", None),
                        1 => get("/", Some("never_registered")),
                        _ => b"GET / HTTP/1.1\r\nHost : t\r\n\r\n".to_vec(),
                    })?;
                    let expected = BTreeMap::from([(Ending::Answered(400), 20), (Ending::Answered(401), 40)]);
                    ensure!(endings == expected, "refused clients saw {endings:?}");
                    sent += 60;
                }
                Ok(sent)
            });
            let good = flood(link.client(), address, 1, 100, |_| get("/", Some(&key)));
            flooding.store(false, Ordering::Relaxed);
            let Ok(bad) = bad.join() else { anyhow::bail!("the flood panicked") };
            ensure!(bad? > 0, "nothing was flooded");
            let good = good?;
            ensure!(good == BTreeMap::from([(Ending::Answered(200), 100)]), "the good client saw {good:?}");
            Ok(())
        })?;
        let after = flood(link.client(), address, 4, 20, |_| get("/", Some(&key)))?;
        ensure!(after == BTreeMap::from([(Ending::Answered(200), 20)]), "after the flood: {after:?}");
        origin.await_executed(120)?;
    }
    Ok(())
}

#[test]
fn a_client_that_ends_inside_a_head_is_reset_and_frees_the_worker() -> Result<()> {
    everywhere("plain", Workers::Sync(1), &[], |link, origin, enforcer| {
        let key = enforcer.add_key("tenant", "100/hour")?;
        link.client().run(|| {
            for unfinished in [&b"GET / HTTP/1.1\r\nHost: t\r\n"[..], b"GET /u HTTP/1.1\r\nX-API-Key: "] {
                let mut connection = Connection::open(origin.address)?;
                connection.send(unfinished);
                connection.finish();
                let (ending, _) = connection.answer();
                ensure!(ending == Ending::Reset, "after its end inside a head: {ending:?}");
            }
            ensure!(exchange(origin.address, &get("/", Some(&key)))? == Ending::Answered(200), "the worker hangs");
            Ok(())
        })?;
        origin.await_executed(1)?;
        ensure!(refused(enforcer, "fin_in_head")? == 2, "counted: {}", refused(enforcer, "fin_in_head")?);
        Ok(())
    })
}

#[test]
fn an_ipv4_client_of_a_dual_stack_server_is_judged_too() -> Result<()> {
    for way in WAYS {
        let link = Link::new(way)?;
        // Listens on the IPv6 wildcard, which takes IPv4 connections as well.
        let origin = Origin::start(&link.server, "plain", Workers::Sync(1), SocketAddr::new(link.v6, PORT))?;
        let enforcer = Enforcer::guard(&link, PORT, &[])?;
        let key = enforcer.add_key("tenant", "100/hour")?;
        let address = SocketAddr::new(link.v4, PORT);
        ensure!(exchange_in(&link, address, &get("/", Some(&key)))? == Ending::Answered(200), "{way:?}: not served");
        ensure!(
            exchange_in(&link, address, &get("/", None))? == Ending::Answered(401),
            "{way:?}: an unkeyed one passed"
        );
        origin.await_executed(1)?;
    }
    Ok(())
}

#[test]
fn ports_that_are_not_guarded_are_untouched() -> Result<()> {
    for way in WAYS {
        let link = Link::new(way)?;
        let address = SocketAddr::new(link.v4, PORT + 1);
        let origin = Origin::start(&link.server, "plain", Workers::Sync(1), address)?;
        let _enforcer = Enforcer::guard(&link, PORT, &[])?;
        ensure!(exchange_in(&link, address, &get("/", None))? == Ending::Answered(200), "{way:?}: not served");
        origin.await_executed(1)?;
    }
    Ok(())
}

#[test]
fn several_ports_are_guarded_at_once() -> Result<()> {
    let link = Link::new(Way::VethNative)?;
    let (first, second) = (SocketAddr::new(link.v4, PORT), SocketAddr::new(link.v4, PORT + 1));
    let origins = [
        Origin::start(&link.server, "plain", Workers::Sync(1), first)?,
        Origin::start(&link.server, "plain", Workers::Sync(1), second)?,
    ];
    let enforcer = Enforcer::guard(&link, PORT, &["--port", "8001"])?;
    let key = enforcer.add_key("tenant", "3/hour")?;
    for address in [first, second, first] {
        ensure!(exchange_in(&link, address, &get("/", Some(&key)))? == Ending::Answered(200), "{address} not served");
    }
    for address in [first, second] {
        ensure!(exchange_in(&link, address, &get("/", Some(&key)))? == Ending::Answered(429), "{address}: over it");
        ensure!(exchange_in(&link, address, &get("/", None))? == Ending::Answered(401), "{address}: unkeyed");
    }
    ensure!(origins[0].executed()?.len() + origins[1].executed()?.len() == 3, "the ports do not share one limit");
    Ok(())
}

#[test]
fn observe_mode_passes_everything_and_counts_what_it_would_refuse() -> Result<()> {
    everywhere("plain", Workers::Sync(2), &["--mode", "observe"], |link, origin, enforcer| {
        let key = enforcer.add_key("tenant", "2/hour")?;
        let requests = [
            get("/", Some(&key)),
            get("/", Some(&key)),
            get("/", Some(&key)),
            get("/", None),
            get("/", Some("not_registered")),
        ];
        for request in &requests {
            let ending = exchange_in(link, origin.address, request)?;
            ensure!(ending == Ending::Answered(200), "observed: {ending:?}");
        }
        origin.await_executed(5)?;
        for reason in ["over_limit", "unkeyed", "unknown_key"] {
            let counted =
                enforcer.metric(&format!("enforcer_would_refuse_total{{service=\"default\",reason=\"{reason}\"}}"))?;
            ensure!(counted == 1, "{reason} was counted {counted} times");
            ensure!(refused(enforcer, reason)? == 0, "{reason} was counted as refused");
        }
        Ok(())
    })
}

#[test]
fn refused_connections_end_where_the_server_answers_each_syn_with_a_cookie() -> Result<()> {
    for way in WAYS {
        let link = Link::new(way)?;
        link.server.run(|| Ok(std::fs::write("/proc/sys/net/ipv4/tcp_syncookies", "2")?))?;
        for address in addresses(&link) {
            let origin = Origin::start(&link.server, "plain", Workers::Threads(2), address)?;
            let enforcer = Enforcer::guard(&link, PORT, &[])?;
            let key = enforcer.add_key("tenant", "100/hour")?;
            let page = url(address, "/");
            let served: BTreeMap<String, u64> = python(link.client(), "flood.py", &[&page, "2", "5", &key])?;
            ensure!(served == BTreeMap::from([("200".to_owned(), 5)]), "with a key on {way:?}: {served:?}");
            let refused: BTreeMap<String, u64> = python(link.client(), "flood.py", &[&page, "2", "5", "none"])?;
            ensure!(refused == BTreeMap::from([("401".to_owned(), 5)]), "without a key on {way:?}: {refused:?}");
            ensure!(origin.await_executed(5)?.len() == 5, "the app executed {}", origin.executed()?.len());
        }
    }
    Ok(())
}

#[test]
fn a_drop_without_an_answer_is_there_for_those_who_want_it() -> Result<()> {
    let link = Link::new(Way::VethNative)?;
    let address = SocketAddr::new(link.v4, PORT);
    let origin = Origin::start(&link.server, "plain", Workers::Threads(2), address)?;
    let enforcer = Enforcer::guard(&link, PORT, &["--on-refuse", "drop"])?;
    let key = enforcer.add_key("tenant", "100/hour")?;
    // curl gives up: the request was never answered, nor reset.
    let unanswered = client::curl(link.client(), &["--max-time", "2", &url(address, "/")]);
    ensure!(unanswered.is_err(), "a dropped request ended with {unanswered:?}");
    ensure!(exchange_in(&link, address, &get("/", Some(&key)))? == Ending::Answered(200), "not served");
    origin.await_executed(1)?;
    ensure!(refused(&enforcer, "unkeyed")? == 1, "retransmissions were counted: {}", refused(&enforcer, "unkeyed")?);
    Ok(())
}
