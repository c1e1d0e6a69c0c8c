//! Services on one port, told apart by host.

use anyhow::{Result, ensure};
use enforcer_ebpf::abi::{Host, Ruleset, Service};
use enforcer_ebpf::abi::{Leaf, Rule, State};
use enforcer_ebpf::http::host;
use enforcer_ebpf::verdict::{Count, Event, Malformation, Reason};
use enforcer_tests::bucket::sliding;
use enforcer_tests::corpus::KEY;
use enforcer_tests::reader::SECRET;
use enforcer_tests::tables::{Tables, policy};

use super::{BEGIN, Both, FEW, HOUR, Outcome, Shape, tables};

/// The service that the port leads to has number 0, the other this one.
const OTHER: u32 = 5;

/// A request for a host; the field stands before the key's.
fn get(path: &str, host: &str, key: Option<&str>) -> Vec<u8> {
    let key = key.map(|key| format!("X-API-Key: {key}\r\n")).unwrap_or_default();
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{key}\r\n").into_bytes()
}

fn name(text: &str) -> [u64; 2] {
    host::tag(SECRET, text).0
}

/// Two services on port 8000, for `lead.test` and for `other.test`: of all requests the one lets four through, the other two. The path `/` is public
/// for the other alone.
fn two(more: u32, takes_all: bool) -> Tables {
    let rules = |service, leaf| Ruleset { routes: 1, service, leaf, ..Ruleset::default() };
    let mut tables = tables().with_rules(rules(9, 0));
    tables.rulesets.insert(2, rules(10, 1));
    tables.policies.insert(9, policy(&[sliding(4, HOUR)]));
    tables.policies.insert(10, policy(&[sliding(2, HOUR)]));
    tables.states = vec![State::default(), State { other: 2, leaf: 1 }, State::default()];
    tables.leaves = vec![Leaf::default(), Leaf::default(), Leaf { rules: [1; 8], service: OTHER, reserved: 0 }];
    tables.rules = vec![Rule::default(), Rule { flags: Rule::PUBLIC, cost: 1, ..Rule::default() }];
    let lead = tables.services.entry(8000).or_insert(Service::DEFAULT);
    lead.flags |= Service::HOSTS;
    tables.hosted = vec![Service { rules: 2, number: OTHER, flags: more, ..Service::DEFAULT }];
    let mut add = |name, slot| tables.hosts.insert(Host { leader: 0, name }, slot);
    add(name("other.test"), 1);
    add(name("lead.test"), 0);
    if takes_all {
        add([0; 2], 0);
    }
    tables
}

/// How often a thing was counted, by service.
fn counts(both: &Both, count: Count) -> Result<[u64; 2]> {
    both.totals()?;
    let all = both.host.totals_by_service();
    Ok([all[0][count.index() as usize], all[1][count.index() as usize]])
}

#[test]
fn each_request_of_a_connection_is_judged_by_its_host_s_service() -> Result<()> {
    let mut both = Both::new(&two(0, false))?;
    let (lead, other) = (get("/x", "lead.test", Some(KEY)), get("/x", "OTHER.test.:8000", Some(KEY)));
    // Alternately in one segment: of the other the third is one too many, and the segment ends before it.
    let stream = [&lead[..], &other, &lead, &other, &lead, &other, &lead].concat();
    let outcome = both.stream(Shape::V4, [&stream[..]])?;
    ensure!(outcome == Outcome::Cut(3 * lead.len() + 2 * other.len()), "{outcome:?}");
    ensure!(counts(&both, Count::Event(Event::Allowed))? == [3, 2], "of which service");
    // In segments of their own, each refused by its own.
    let refused = Outcome::Reset(BEGIN.wrapping_add(1));
    ensure!(both.stream(Shape::V4, [&other[..]])? == refused, "the other's ceiling");
    ensure!(both.stream(Shape::V4, [&lead[..]])? == Outcome::Passed, "the leader's fourth");
    ensure!(both.stream(Shape::V4, [&lead[..]])? == refused, "the leader's ceiling");
    ensure!(counts(&both, Count::Refused(Reason::OverLimit))? == [1, 1], "of which service");
    Ok(())
}

#[test]
fn a_path_is_ruled_as_the_service_of_its_host_says() -> Result<()> {
    let mut both = Both::new(&two(0, false))?;
    let refused = Outcome::Reset(BEGIN.wrapping_add(1));
    ensure!(both.stream(Shape::V4, [&get("/", "other.test", None)[..]])? == Outcome::Passed, "its public path");
    ensure!(both.stream(Shape::V4, [&get("/", "lead.test", None)[..]])? == refused, "another's public path");
    ensure!(
        both.stream(Shape::V4, [&get("http://other.test/", "other.test", None)[..]])? == Outcome::Passed,
        "absolute"
    );
    ensure!(both.stream(Shape::V4, [&get("http://other.test/", "lead.test", None)[..]])? == refused, "two hosts");
    ensure!(counts(&both, Count::Malformed(Malformation::Host))? == [1, 0], "two hosts");
    ensure!(counts(&both, Count::Refused(Reason::Unkeyed))? == [1, 0], "unkeyed");
    // Behind a public request on the same connection, too.
    let stream = [get("/", "other.test", None), get("/", "lead.test", None)].concat();
    let mut both = Both::new(&two(0, false))?;
    let outcome = both.stream(Shape::V6, [&stream[..]])?;
    ensure!(outcome == Outcome::Cut(get("/", "other.test", None).len()), "{outcome:?}");
    Ok(())
}

#[test]
fn a_host_of_nobody_s_is_misdirected_or_for_the_service_that_takes_all() -> Result<()> {
    let refused = Outcome::Reset(BEGIN.wrapping_add(1));
    let strange = [
        get("/x", "nobody.test", Some(KEY)),
        get("/x", "other.test.nobody", Some(KEY)),
        get("/x", "[::1]", Some(KEY)),
        get("/x", "", Some(KEY)),
        format!("GET /x HTTP/1.0\r\nX-API-Key: {KEY}\r\n\r\n").into_bytes(),
    ];
    let mut both = Both::new(&two(0, false))?;
    for request in &strange {
        ensure!(both.stream(Shape::V4, [&request[..]])? == refused, "{} passed", request.escape_ascii());
    }
    ensure!(counts(&both, Count::Refused(Reason::Misdirected))? == [strange.len() as u64, 0], "not misdirected");
    let mut both = Both::new(&two(0, true))?;
    for request in &strange[..4] {
        ensure!(both.stream(Shape::V4, [&request[..]])? == Outcome::Passed, "{}", request.escape_ascii());
    }
    ensure!(both.stream(Shape::V4, [&strange[4][..]])? == refused, "the ceiling is not of all of them");
    ensure!(counts(&both, Count::Event(Event::Allowed))? == [4, 0], "of which service");
    Ok(())
}

#[test]
fn a_head_that_comes_in_parts_is_for_its_whole_host() -> Result<()> {
    let request = get("/", "other.test", None);
    let mut tables = two(0, false);
    tables.policies.insert(10, policy(&[sliding(1000, HOUR)]));
    let mut both = Both::new(&tables)?;
    for cut in 1..request.len() {
        // Public, it passes; of a part of its name it would be nobody's.
        let (first, second) = request.split_at(cut);
        let outcome = both.stream(Shape::V4, [first, second])?;
        ensure!(outcome == Outcome::Passed, "cut at {cut}: {outcome:?}");
    }
    let bytes: Vec<&[u8]> = request.chunks(1).collect();
    ensure!(both.stream(Shape::V6, bytes)? == Outcome::Passed, "byte by byte");
    ensure!(counts(&both, Count::Event(Event::Allowed))? == [0, request.len() as u64], "of which service");
    Ok(())
}

#[test]
fn a_head_that_comes_again_with_another_host_is_not_taken_for_the_one_that_was_paid() -> Result<()> {
    for (first, second) in [("lead.test", "nice.test"), ("nice.test", "lead.test")] {
        let mut tables = two(0, false);
        tables.hosts.insert(Host { leader: 0, name: name("nice.test") }, 1);
        let mut both = Both::new(&tables)?;
        let (paid, again) = (get("/x", first, Some(FEW)), get("/x", second, Some(FEW)));
        ensure!(paid.len() == again.len(), "they fill the same place");
        let mut connection = both.connect(Shape::V4)?;
        let begin = connection.seq;
        ensure!(both.send(&mut connection, &paid)? == Outcome::Passed, "the first");
        connection.seq = begin;
        ensure!(both.send(&mut connection, &paid)? == Outcome::Passed, "the same once more");
        ensure!(both.meter(4)?.allowed == 1, "charged twice");
        // It is another request, and paid for once more, in the other service.
        connection.seq = begin;
        ensure!(both.send(&mut connection, &again)? == Outcome::Passed, "{first} again as {second}");
        ensure!(counts(&both, Count::Event(Event::Allowed))? == [1, 1], "{first} again as {second} is not charged");
        connection.seq = begin;
        let outcome = both.send(&mut connection, &get("/x", "none.test", Some(FEW)))?;
        ensure!(outcome == Outcome::Reset(begin), "{first} again as nobody's: {outcome:?}");
        ensure!(counts(&both, Count::Refused(Reason::Misdirected))? == [1, 0], "for another reason");
        ensure!(both.meter(4)?.allowed == 2, "charged");
    }
    Ok(())
}

#[test]
fn a_principal_s_budget_is_one_over_all_hosts() -> Result<()> {
    let mut both = Both::new(&two(0, true))?;
    let hosts = ["other.test", "lead.test", "nobody.test", "other.test", "lead.test"];
    for (number, host) in hosts.into_iter().enumerate() {
        let outcome = both.stream(Shape::V4, [&get("/x", host, Some(FEW))[..]])?;
        let expected = if number < 3 { Outcome::Passed } else { Outcome::Reset(BEGIN.wrapping_add(1)) };
        ensure!(outcome == expected, "request {number}: {outcome:?}");
    }
    Ok(())
}

#[test]
fn a_service_that_spares_passes_its_own_requests_and_nobody_else_s() -> Result<()> {
    let refused = Outcome::Reset(BEGIN.wrapping_add(1));
    let mut both = Both::new(&two(Service::SPARE, false))?;
    for _ in 0..3 {
        ensure!(both.stream(Shape::V4, [&get("/x", "other.test", None)[..]])? == Outcome::Passed, "it is refused");
    }
    ensure!(counts(&both, Count::WouldRefuse(Reason::Unkeyed))? == [0, 3], "it is not counted");
    ensure!(both.stream(Shape::V4, [&get("/x", "lead.test", None)[..]])? == refused, "the leader spares");
    ensure!(both.stream(Shape::V4, [&get("/x", "a b", Some(KEY))[..]])? == refused, "what cannot be read passes");
    let stream = [get("/x", "other.test", None), get("/x", "lead.test", None)].concat();
    let outcome = both.stream(Shape::V4, [&stream[..]])?;
    ensure!(outcome == Outcome::Cut(get("/x", "other.test", None).len()), "behind one that is spared: {outcome:?}");
    // The port leads to one that spares: what is for nobody is refused all the same.
    let mut tables = two(0, false);
    tables.services.entry(8000).or_insert(Service::DEFAULT).flags |= Service::SPARE;
    let mut both = Both::new(&tables)?;
    ensure!(both.stream(Shape::V4, [&get("/x", "lead.test", None)[..]])? == Outcome::Passed, "it is refused");
    ensure!(both.stream(Shape::V4, [&get("/x", "nobody.test", Some(KEY))[..]])? == refused, "nobody's passes");
    ensure!(both.stream(Shape::V4, [&get("/x", "other.test", None)[..]])? == refused, "the other's passes");
    Ok(())
}

#[test]
fn what_is_behind_a_request_is_the_port_s_again() -> Result<()> {
    let mut tables = two(Service::OBSERVE, false);
    tables.services.entry(8000).or_insert(Service::DEFAULT).flags |= Service::OBSERVE;
    let mut both = Both::new(&tables)?;
    let stream = [get("/", "other.test", None), b"GET /\x01 HTTP/1.1\r\n\r\n".to_vec()].concat();
    ensure!(both.stream(Shape::V4, [&stream[..]])? == Outcome::Passed, "it is refused");
    ensure!(counts(&both, Count::WouldRefuse(Reason::Malformed))? == [1, 0], "of which service");
    ensure!(counts(&both, Count::Event(Event::Allowed))? == [0, 1], "of which service");
    Ok(())
}

#[test]
fn a_path_is_ruled_by_no_other_service_s_leaf() -> Result<()> {
    // As if the configuration had changed within the head: what lies there is another's.
    let mut tables = two(0, false);
    tables.leaves[2].service = OTHER + 1;
    let mut both = Both::new(&tables)?;
    let refused = Outcome::Reset(BEGIN.wrapping_add(1));
    ensure!(both.stream(Shape::V4, [&get("/", "other.test", None)[..]])? == refused, "public by another's rule");
    ensure!(both.stream(Shape::V4, [&get("/", "other.test", Some(KEY))[..]])? == Outcome::Passed, "not by its key");
    Ok(())
}
