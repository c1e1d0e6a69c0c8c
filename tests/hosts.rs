//! The host that the HTTP machine finds where services are told apart by it: as the target and the field name it, however
//! the bytes are cut; and what it refuses, since servers could read another one.

use enforcer_ebpf::abi::{Ruleset, Service};
use enforcer_ebpf::http::{Refusal, host};
use enforcer_ebpf::verdict::{Malformation, Reason};
use enforcer_tests::reader::{Reader, Rules, SECRET, Seen};
use proptest::prelude::*;

const SHARED: Service = Service { flags: Service::HOSTS, rules: 1, ..Service::DEFAULT };

fn tag(name: &str) -> [u64; 2] {
    host::tag(SECRET, name).0
}

/// What a request comes to: its host's tag, all 0 if it names none. The same for each cut, as is the state behind each.
fn read(request: &str) -> Result<[u64; 2], Refusal> {
    read_by(&SHARED, request)
}

fn read_by(service: &Service, request: &str) -> Result<[u64; 2], Refusal> {
    let rules = Rules { ruleset: Ruleset { routes: 1, ..Ruleset::default() }, ..Rules::of_any_path() };
    let go = |pieces: &[&[u8]]| {
        let mut reader = Reader::by(service, &rules);
        pieces.iter().for_each(|piece| reader.go_on(piece));
        reader
    };
    let stream = request.as_bytes();
    let whole = go(&[stream]);
    for cut in 0..=stream.len() {
        let (first, second) = stream.split_at(cut);
        let reader = go(&[first, second]);
        assert_eq!((reader.seen(), reader.found()), (whole.seen(), whole.found()), "{request:?} cut at {cut}");
        let bytewise: Vec<&[u8]> = first.chunks(1).collect();
        assert!(go(&[first]).ends_as(&go(&bytewise)) || go(&[first]).is_refused(), "{request:?} up to {cut}");
    }
    match *whole.seen() {
        [Seen::Head { .. }] => Ok(whole.found()[0].host),
        [Seen::Refused(refusal)] => Err(refusal),
        ref seen => panic!("{request:?} is no request: {seen:?}"),
    }
}

fn with_field(value: &str) -> String {
    format!("GET / HTTP/1.1\r\nA: b\r\nHost:{value}\r\nX-API-Key: live_0123456789\r\n\r\n")
}

#[test]
fn a_name_is_the_same_in_any_case_with_a_port_and_with_a_last_dot() {
    let long = format!("{}.{}.example", "a".repeat(63), "b".repeat(63));
    for (value, name) in [
        (" api.example.com", "api.example.com"),
        ("api.example.com", "api.example.com"),
        ("\t API.Example.COM \t", "api.example.com"),
        (" api.example.com.", "api.example.com"),
        (" api.example.com:8000", "api.example.com"),
        (" api.example.com.:8000", "api.example.com"),
        (" api.example.com:", "api.example.com"),
        (" my_app-1", "my_app-1"),
        (" 192.0.2.1:80", "192.0.2.1"),
        (" [2001:DB8::1]:80", "[2001:db8::1]"),
        (" [::ffff:192.0.2.1]", "[::ffff:192.0.2.1]"),
        (&format!(" {long}"), &long),
    ] {
        assert_eq!(read(&with_field(value)), Ok(tag(name)), "{value:?}");
    }
    for value in ["", " ", "\t\t"] {
        assert_eq!(read(&with_field(value)), Ok([0; 2]), "{value:?} names no host");
    }
    let all = ["a", "b", "a.b", "ab", "a-b", "a_b", "0", "[::1]", "::1"].map(tag);
    for (place, one) in all.iter().enumerate() {
        assert!(!all[..place].contains(one), "two names have one tag");
    }
}

#[test]
fn what_servers_could_read_as_another_host_is_refused() {
    let malformed = Err(Malformation::Host.into());
    for value in [
        " a b",
        " a,b",
        " a@b",
        " user:pw@a",
        " a%2eb",
        " a..b",
        " .a",
        " .",
        " ..",
        " a...",
        " :80",
        " a:80:81",
        " a:8x",
        " ::1",
        " [::1",
        " [::1]a",
        " []a",
        " [g]",
        " [::1%25eth0]",
        " a/b",
        " a?b",
        " a#b",
        " a\\b",
        " http://a",
        " *",
        " a\u{e9}",
        " a;b",
        " ~a",
        " a.[::1]",
        " a:80.",
        " 'a'",
        " \"a\"",
    ] {
        assert_eq!(read(&with_field(value)), malformed, "{value:?}");
    }
    assert_eq!(read(&with_field(" a\0")), malformed);
    // A name that goes on in the next line, a second field, and one in disguise.
    for (fields, kind) in [
        ("Host: a\r\n b\r\n", Malformation::ObsFold),
        ("Host:\r\n a\r\n", Malformation::ObsFold),
        ("Host: a\r\nHost: a\r\n", Malformation::Duplicate),
        ("Host: a\r\nA: b\r\nhOST: b\r\n", Malformation::Duplicate),
        ("Host : a\r\n", Malformation::FieldName),
        ("Host: a\rb\r\n", Malformation::Host),
        ("X-Host: a\r\n", Malformation::Host),
        ("Hosts: a\r\n", Malformation::Host),
        ("", Malformation::Host),
    ] {
        let request = format!("GET / HTTP/1.1\r\n{fields}\r\n");
        assert_eq!(read(&request), Err(kind.into()), "{fields:?}");
    }
}

#[test]
fn the_target_names_the_host_and_the_field_must_say_the_same() {
    let request = |target: &str, host: &str| format!("GET {target} HTTP/1.1\r\n{host}\r\n");
    for (target, host, name) in [
        ("http://api.test/x", "Host: api.test\r\n", "api.test"),
        ("http://API.test:80/x", "Host: api.TEST.\r\n", "api.test"),
        ("HTTP://[::1]/", "Host: [::1]:8000\r\n", "[::1]"),
        ("/http://b.test/", "Host: a.test\r\n", "a.test"),
        ("/?http://b.test/", "Host: a.test\r\n", "a.test"),
        ("*", "Host: a.test\r\n", "a.test"),
    ] {
        assert_eq!(read(&request(target, host)), Ok(tag(name)), "{target} {host:?}");
    }
    for (target, host) in [
        ("http://a.test/", "Host: b.test\r\n"),
        ("http://a.test/", "Host:\r\n"),
        ("http://a.test/", ""),
        ("http://a.test/", "Host: a.test\r\nHost: a.test\r\n"),
    ] {
        let refused = read(&request(target, host)).expect_err(target);
        assert_eq!(refused.reason, Reason::Malformed, "{target} {host:?}");
    }
    for target in [
        "http://a.test",
        "http:///",
        "http://@a.test/",
        "http://a@b.test/",
        "http://a.test?x",
        "http://a.test#x",
        "https://a.test/",
        "http://a..test/",
        "http://.a/",
        "http://[::1/",
        "http://a.test:x/",
        "http:/a.test/",
        "a.test:80",
        "http://a%2etest/",
    ] {
        assert_eq!(read(&request(target, "Host: a.test\r\n")), Err(Reason::Path.into()), "{target}");
    }
    // Without a version that has the field, the target alone says it, or nothing does.
    assert_eq!(read("GET http://a.test/ HTTP/1.0\r\n\r\n"), Ok(tag("a.test")));
    assert_eq!(read("GET / HTTP/1.0\r\n\r\n"), Ok([0; 2]));
    assert_eq!(read("GET / HTTP/1.0\r\nHost: a.test\r\n\r\n"), Ok(tag("a.test")));
}

#[test]
fn one_request_s_host_is_not_the_next_one_s() {
    let stream = "GET / HTTP/1.0\r\nConnection: keep-alive\r\nHost: a.test\r\n\r\nGET / HTTP/1.0\r\n\r\n";
    let mut reader = Reader::by(&SHARED, &Rules::of_any_path());
    reader.go_on(stream.as_bytes());
    let hosts: Vec<_> = reader.found().iter().map(|found| found.host).collect();
    assert_eq!(hosts, [tag("a.test"), [0; 2]]);
}

#[test]
fn where_nothing_depends_on_it_no_host_is_asked_for() {
    let alone = Service { rules: 1, ..Service::DEFAULT };
    for request in [with_field(" a..b, c"), "GET / HTTP/1.1\r\n\r\n".to_owned()] {
        assert_eq!(read_by(&alone, &request), Ok([0; 2]), "{request}");
    }
}

/// Names, and what is nearly one.
fn name() -> impl Strategy<Value = String> {
    proptest::collection::vec(
        proptest::sample::select(vec!["a", "Zz", "9", "-", "_", ".", "a.b", ":", "8", "%", "@", " "]),
        0..12,
    )
    .prop_map(|parts| parts.concat())
}

/// The name in the field's value as a reader sees it that takes it apart as a whole; `None` if it is none.
fn reference(value: &str) -> Option<[u64; 2]> {
    let value = value.trim_matches([' ', '\t']);
    if value.is_empty() {
        return Some([0; 2]);
    }
    let (name, port) = value.split_once(':').unwrap_or((value, ""));
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let is_name = name.split('.').all(is_label) && port.bytes().all(|byte| byte.is_ascii_digit());
    is_name.then(|| tag(&name.to_ascii_lowercase()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn random_values_are_read_as_the_reference_reads_them(value in name()) {
        let expected = reference(&value).ok_or(Refusal::from(Malformation::Host));
        prop_assert_eq!(read(&with_field(&value)), expected, "{:?}", value);
    }

    #[test]
    fn a_target_and_a_field_agree_only_if_they_name_one_host(first in name(), second in name()) {
        let read = read(&format!("GET http://{first}/ HTTP/1.1\r\nHost: {second}\r\n\r\n"));
        match (reference(&first), reference(&second)) {
            (Some(one), Some(other)) if one == other && !first.contains(' ') && one != [0; 2] => {
                prop_assert_eq!(read, Ok(one));
            }
            _ => prop_assert!(read.is_err(), "{:?} {:?}", first, second),
        }
    }
}
