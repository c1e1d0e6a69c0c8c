//! What the HTTP machine finds beside the key where a service has rules: path, method, client, source. However the bytes
//! are cut.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use enforcer_ebpf::abi::{KeyTag, Ruleset, Service};
use enforcer_ebpf::http::{Refusal, method};
use enforcer_ebpf::key;
use enforcer_ebpf::verdict::{Malformation, Reason};
use enforcer_tests::corpus;
use enforcer_tests::reader::{Found, Reader, Rules, SECRET, Seen, address, words};
use enforcer_tests::target::{self, segments};
use proptest::collection::vec;
use proptest::prelude::*;

const KEY: &str = "live_0123456789abcdefghijklmnop";

/// The name that client ids have, as a ruleset has it.
fn with_client(name: &[u8]) -> Ruleset {
    let mut client = [0; 4];
    for (index, byte) in name.iter().enumerate() {
        client[index / 8] |= u64::from(*byte) << (8 * (index % 8));
    }
    Ruleset { client, client_len: name.len() as u32, ..Ruleset::default() }
}

/// Rules by which a key is in the fields of these names.
fn with_keys<const N: usize>(names: [&[u8]; N]) -> Ruleset {
    let mut keys = [[0; 4]; Ruleset::KEYS];
    for (words, name) in keys.iter_mut().zip(names) {
        *words = with_client(name).client;
    }
    Ruleset { keys, ..Ruleset::default() }
}

fn tags(segments: &[Vec<u8>]) -> Vec<KeyTag> {
    segments.iter().map(|segment| key::tag(SECRET, segment)).collect()
}

/// All ways to cut a stream once, and some to cut it often.
fn each_cut(stream: &[u8], mut check: impl FnMut(Vec<&[u8]>)) {
    for cut in 0..=stream.len() {
        let (first, second) = stream.split_at(cut);
        check(vec![first, second]);
    }
    for size in [1, 2, 3, 7, 31, 32, 33, 64] {
        check(stream.chunks(size).collect());
    }
}

/// What a request with these field lines leads to, the same for each cut.
fn read(rules: &Rules, line: &str, fields: &[u8]) -> Result<Found, Refusal> {
    let stream = [line.as_bytes(), b"\r\n", fields, b"\r\n"].concat();
    let whole = Reader::read_by(rules, [&stream[..]]);
    each_cut(&stream, |pieces| {
        let reader = Reader::read_by(rules, pieces.clone());
        assert_eq!((reader.seen(), reader.found()), (whole.seen(), whole.found()), "{pieces:?}");
    });
    match *whole.seen() {
        [Seen::Head { .. }] => Ok(whole.found()[0]),
        [Seen::Refused(refusal)] => Err(refusal),
        _ => panic!("{line} is no request"),
    }
}

fn read_get(rules: &Rules, fields: &str) -> Result<Found, Refusal> {
    read(rules, "GET /a HTTP/1.1", fields.as_bytes())
}

/// The key of a request with these field lines, and whether there seems to be one elsewhere, the same for each cut.
fn read_key(rules: &Rules, fields: &str) -> Result<(Option<KeyTag>, bool), Refusal> {
    let found = read_get(rules, fields)?;
    let stream = format!("GET /a HTTP/1.1\r\n{fields}\r\n");
    match *Reader::read_by(rules, [stream.as_bytes()]).seen() {
        [Seen::Head { key, .. }] => Ok((key, found.has_key_elsewhere)),
        _ => panic!("{fields:?} is not one request"),
    }
}

#[test]
fn targets_are_the_paths_that_the_corpus_says() -> Result<()> {
    let cases = target::load()?;
    ensure!(cases.len() >= 70, "only {} cases were found", cases.len());
    let rules = Rules::of_any_path();
    for case in &cases {
        let stream = case.request();
        let expected: Vec<_> = match &case.segments {
            Some(_) => vec![Seen::Head { key: None, at: stream.len() }],
            None => vec![Seen::Refused(Reason::Path.into())],
        };
        each_cut(&stream, |pieces| {
            let reader = Reader::read_by(&rules, pieces.clone());
            assert_eq!(reader.seen(), expected, "{}: {pieces:?}", case.name);
            if let Some(segments) = &case.segments {
                assert_eq!(reader.walked(), tags(segments), "{}: {pieces:?}", case.name);
            }
        });
        if case.fields.is_empty() {
            ensure!(segments(&case.target) == case.segments, "{}: the reference reads otherwise", case.name);
        }
    }
    Ok(())
}

#[test]
fn the_state_inside_a_target_does_not_depend_on_the_cuts_before_it() -> Result<()> {
    let rules = Rules::of_any_path();
    for case in target::load()?.iter().filter(|case| case.segments.is_some() && case.target.len() < 100) {
        let stream = case.request();
        for end in 1..=stream.len() {
            let whole = Reader::read_by(&rules, [&stream[..end]]);
            for size in [1, 2, 7, 31] {
                let reader = Reader::read_by(&rules, stream[..end].chunks(size));
                assert!(reader.ends_as(&whole), "{} at {end}, by {size}", case.name);
            }
        }
    }
    Ok(())
}

#[test]
fn other_bytes_that_lead_elsewhere_leave_another_state() {
    let rules = |ruleset| Rules { ruleset, peer: [1, 1], proxies: vec![[1, 1]], ..Rules::of_any_path() };
    let ruleset = Ruleset { routes: 1, trusts: 1, ..with_client(b"x-client-id") };
    let pairs = [
        ("GET /search", "GET /searcH"),
        ("GET /a/b", "GET /a%2"),
        ("PUT /a HTTP/1.1\r\n", "GET /a HTTP/1.1\r\n"),
        ("GET /a HTTP/1.1\r\nX-Client-Id: ab", "GET /a HTTP/1.1\r\nX-Client-Id: ac"),
        ("GET /a HTTP/1.1\r\nX-Client-Id: ab\r\n", "GET /a HTTP/1.1\r\nX-Client-Id: ac\r\n"),
        ("GET /a HTTP/1.1\r\nX-API-Key: live_0123\r\n", "GET /a HTTP/1.1\r\nX-API-Key: live_0124\r\n"),
        ("GET /a HTTP/1.1\r\nX-Forwarded-For: 1.2", "GET /a HTTP/1.1\r\nX-Forwarded-For: 1.3"),
        ("GET /a HTTP/1.1\r\nX-Forwarded-For: 1.2.3.4\r\n", "GET /a HTTP/1.1\r\nX-Forwarded-For: 1.2.3.5\r\n"),
        ("GET /a HTTP/1.1\r\nOrigin: x\r\n", "GET /a HTTP/1.1\r\nOrigim: x\r\n"),
    ];
    for (one, other) in pairs {
        let read = |text: &'static str| Reader::read_by(&rules(ruleset), [text.as_bytes()]);
        assert!(read(one).ends_as(&read(one)) && !read(one).ends_as(&read(other)), "{one:?} and {other:?}");
    }
    // Where another route is.
    let mut routed = rules(ruleset);
    routed.edges.insert((1, key::tag(SECRET, b"a")), 2);
    let read = |path: &str| Reader::read_by(&routed, [format!("GET {path} HTTP/1.1\r\n").as_bytes()]);
    assert!(read("/a").ends_as(&read("/a")) && !read("/a").ends_as(&read("/b")));
}

#[test]
fn a_path_is_led_through_the_automaton_as_far_as_rules_go() -> Result<()> {
    let mut rules = Rules { ruleset: Ruleset { routes: 5, ..Ruleset::default() }, ..Rules::default() };
    let tag = |segment: &str| key::tag(SECRET, segment.as_bytes());
    rules.edges.insert((5, tag("items")), 6);
    rules.others.insert(6, 7);
    rules.edges.insert((7, tag("parts")), 8);
    let route = |target: &str| read(&rules, &format!("GET {target} HTTP/1.1"), b"").map(|found| found.route);
    for (target, state) in [
        ("/", 5),
        ("/items", 6),
        ("/items/", 6),
        ("/items/7", 7),
        ("//items//7//parts?x", 8),
        ("/items/7/parts/x", 0),
        ("/x", 0),
        ("/x/items", 0),
        ("http://t/items/%37", 7),
    ] {
        assert_eq!(route(target), Ok(state), "{target}");
    }
    // Where no rule can be met any more, the path must still be one that all servers read alike.
    assert_eq!(route("/x/../items"), Err(Reason::Path.into()));
    assert_eq!(route("/x/%2e%2e/items"), Err(Reason::Path.into()));
    let stream = b"GET /items/7 HTTP/1.1\r\n\r\nGET /x HTTP/1.1\r\n\r\nGET /items HTTP/1.1\r\n\r\n";
    each_cut(stream, |pieces| {
        let states: Vec<u32> = Reader::read_by(&rules, pieces).found().iter().map(|found| found.route).collect();
        assert_eq!(states, [7, 0, 6], "a request keeps nothing of the one before");
    });
    Ok(())
}

#[test]
fn the_corpus_of_requests_is_read_by_rules_as_without_them() -> Result<()> {
    let rules = Rules { ruleset: Ruleset { routes: 1, ..with_client(b"x-client-id") }, ..Rules::of_any_path() };
    for case in corpus::load()? {
        let without = Reader::read([&case.stream[..]]);
        for size in [usize::MAX, 1, 29] {
            let reader = Reader::read_by(&rules, case.stream.chunks(size.min(case.stream.len())));
            for (seen, without) in reader.seen().iter().zip(without.seen()) {
                let is_path = *seen == Seen::Refused(Reason::Path.into());
                assert!(is_path || seen == without, "{}: {seen:?}, not {without:?}", case.name);
            }
            let is_path = reader.seen().last() == Some(&Seen::Refused(Reason::Path.into()));
            assert!(is_path || reader.seen().len() == without.seen().len(), "{}", case.name);
        }
    }
    Ok(())
}

#[test]
fn methods_have_their_numbers_in_any_case() {
    let rules = Rules::default();
    for (name, number) in [
        ("GET", method::GET),
        ("HEAD", method::HEAD),
        ("POST", method::POST),
        ("PUT", method::PUT),
        ("PATCH", method::PATCH),
        ("DELETE", method::DELETE),
        ("OPTIONS", method::OPTIONS),
        ("get", method::GET),
        ("Options", method::OPTIONS),
        ("GETS", method::OTHER),
        ("GE", method::OTHER),
        ("OPTION", method::OTHER),
        ("TRACE", method::OTHER),
        ("G-T", method::OTHER),
    ] {
        let found = read(&rules, &format!("{name} / HTTP/1.1"), b"").map(|found| found.method);
        assert_eq!(found, Ok(number), "{name}");
    }
}

#[test]
fn a_preflight_is_an_options_request_with_both_fields() {
    let rules = Rules::default();
    let both = "Origin: https://x.example\r\nAccess-Control-Request-Method: PUT\r\n";
    let is_preflight = |line, fields: &str| read(&rules, line, fields.as_bytes()).map(|found| found.is_preflight);
    let options = "OPTIONS /a HTTP/1.1";
    assert_eq!(is_preflight(options, both), Ok(true));
    assert_eq!(is_preflight(options, &both.to_lowercase()), Ok(true));
    assert_eq!(is_preflight("POST /a HTTP/1.1", both), Ok(false));
    for other in [
        "Origin: x\r\n",
        "Access-Control-Request-Method: x\r\n",
        "Origins: x\r\nAccess-Control-Request-Method: x\r\n",
        "Origin: x\r\nAccess-Control-Request-Methods: x\r\n",
        "Origin: x\r\nAccess-Control-Request-Metho: x\r\n",
        "Origin: x\r\nAccess-Control-Request-Nethod: x\r\n",
        "Origin: x\r\nAccess_Control-Request-Method: x\r\n",
    ] {
        assert_eq!(is_preflight(options, other), Ok(false), "{other}");
    }
}

#[test]
fn a_client_has_the_id_that_it_says() {
    let longest = "x-client-identification-number-";
    for name in ["x-client-id", "c", "clientid", "x-applications", longest] {
        let rules = Rules { ruleset: with_client(name.as_bytes()), ..Rules::default() };
        let client = |fields: &str| read_get(&rules, fields).map(|found| found.client);
        let KeyTag(mobile) = key::tag(SECRET, b"mobile");
        assert_eq!(client(""), Ok([0; 2]));
        assert_eq!(client(&format!("{name}: mobile\r\n")), Ok(mobile));
        assert_eq!(client(&format!("{}:\t mobile \t\r\n", name.to_uppercase())), Ok(mobile));
        assert_eq!(client(&format!("{name}x: mobile\r\n")), Ok([0; 2]));
        if name.len() > 1 {
            assert_eq!(client(&format!("{}: mobile\r\n", &name[1..])), Ok([0; 2]));
        }
        let long = "v".repeat(128);
        assert_eq!(client(&format!("{name}: {long}\r\n")), Ok(key::tag(SECRET, long.as_bytes()).0));
        for wrong in ["", " ", "a b", "\u{e9}", &"v".repeat(129)] {
            let refusal = Malformation::ClientId.into();
            assert_eq!(client(&format!("{name}: {wrong}\r\n")), Err(refusal), "{wrong:?}");
        }
        let twice = format!("{name}: mobile\r\n{name}: mobile\r\n");
        assert_eq!(client(&twice), Err(Malformation::Duplicate.into()));
        if name.contains('-') {
            let alias = format!("{}: mobile\r\n", name.replacen('-', "_", 1));
            assert_eq!(client(&alias), Err(Malformation::AliasedName.into()));
        }
    }
}

#[test]
fn key_and_client_do_not_disturb_each_other() {
    let rules = Rules { ruleset: with_client(b"x-client-id"), ..Rules::of_any_path() };
    let lines = [format!("X-API-Key: {KEY}\r\n"), "X-Client-Id: mobile\r\n".to_owned()];
    for lines in [lines.concat(), lines.iter().rev().cloned().collect()] {
        let stream = format!("GET /search HTTP/1.1\r\n{lines}\r\nGET /search HTTP/1.1\r\n\r\n");
        each_cut(stream.as_bytes(), |pieces| {
            let reader = Reader::read_by(&rules, pieces);
            let keys = reader.seen().iter().map(|seen| match seen {
                Seen::Head { key, .. } => *key,
                Seen::Refused(_) => None,
            });
            assert_eq!(keys.collect::<Vec<_>>(), [Some(key::tag(SECRET, KEY.as_bytes())), None]);
            let clients: Vec<_> = reader.found().iter().map(|found| found.client).collect();
            assert_eq!(clients, [key::tag(SECRET, b"mobile").0, [0; 2]]);
        });
    }
}

#[test]
fn a_key_in_the_url_is_noticed_and_is_none() {
    let plain = Rules::default();
    let routed = Rules::of_any_path();
    let cases = [
        ("/?api_key=x", true),
        ("/?api-key=x", true),
        ("/?API_KEY=x", true),
        ("/?apikey=x", true),
        ("/?X-Api-Key=x", true),
        ("/?key=x", true),
        ("/?key=", true),
        ("/?access_token=x", true),
        ("/?a=b&c&access_token=x", true),
        ("/?a=1234567890123456789012345678901234567890&key=x#z", true),
        ("/?", false),
        ("/?key", false),
        ("/?&", false),
        ("/?keys=x", false),
        ("/?monkey=x", false),
        ("/?a=key=x", false),
        ("/?access_tokem=x", false),
        ("/?access_token1=x", false),
        ("/key=x", false),
        ("/a&key=x", false),
        ("/?apikey/key=x", false),
    ];
    for rules in [&plain, &routed] {
        for (target, expected) in cases {
            let found = read(rules, &format!("GET {target} HTTP/1.1"), b"").map(|found| found.has_key_in_url);
            assert_eq!(found, Ok(expected), "{target}");
        }
    }
    let unruled = Reader::read([&b"GET /?key=x HTTP/1.1\r\n\r\n"[..]]);
    assert!(!unruled.found()[0].has_key_in_url && unruled.steps() < 6, "{} steps", unruled.steps());
}

#[test]
fn a_key_is_in_the_listed_fields_alone() {
    let tag = key::tag(SECRET, KEY.as_bytes());
    let usual = Rules::default();
    let listed = |ruleset| Rules { ruleset, ..Rules::default() };
    let legacy = listed(with_keys([b"x-legacy-key"]));
    let longest = listed(with_keys([b"x-api-key", b"x-l", b"a234567890123456789012345678901"]));
    let malformed = |kind: Malformation| Err(kind.into());
    let cases = [
        (&usual, format!("X-API-Key: {KEY}\r\n"), Ok((Some(tag), false))),
        (&usual, format!("X-API-Keys: {KEY}\r\n"), Ok((None, false))),
        (&usual, format!("Authorization: Bearer {KEY}\r\n"), Ok((None, true))),
        (&usual, format!("API-Key: {KEY}\r\n"), Ok((None, true))),
        (&legacy, format!("x-LEGACY-key: {KEY}\r\n"), Ok((Some(tag), false))),
        (&legacy, format!("X-Legacy-Ke: {KEY}\r\n"), Ok((None, false))),
        (&legacy, format!("X-API-Key: {KEY}\r\n"), Ok((None, true))),
        // With the usual field beside it, it is the app's own affair.
        (&legacy, format!("X-API-Key: other\r\nX-Legacy-Key: {KEY}\r\n"), Ok((Some(tag), true))),
        (&legacy, format!("X-Legacy-Key: {KEY}\r\nX-Legacy-Key: {KEY}\r\n"), malformed(Malformation::Duplicate)),
        (&legacy, format!("X_Legacy_Key: {KEY}\r\n"), malformed(Malformation::AliasedName)),
        (&longest, format!("X-API-Key: {KEY}\r\n"), Ok((Some(tag), false))),
        (&longest, format!("X-L: {KEY}\r\n"), Ok((Some(tag), false))),
        (&longest, format!("A234567890123456789012345678901: {KEY}\r\n"), Ok((Some(tag), false))),
        (&longest, format!("A2345678901234567890123456789012: {KEY}\r\n"), Ok((None, false))),
        (&longest, format!("X-L: {KEY}\r\nX-API-Key: {KEY}\r\n"), malformed(Malformation::Duplicate)),
    ];
    for (rules, lines, expected) in cases {
        assert_eq!(read_key(rules, &lines), expected, "{lines:?}");
    }
}

#[test]
fn a_key_in_a_field_or_cookie_where_keys_often_are_is_noticed_and_counts_for_none() {
    let usual = Rules::default();
    for name in [
        "Authorization",
        "aPI-kEY",
        "Api_Key",
        "ApiKey",
        "X-ApiKey",
        "X_API-Key",
        "X-Auth-Token",
        "X-Auth-Key",
        "Access-Token",
        "X-Access-Token",
        "X-API-Token",
        "X-Token",
        "X-Tenant-API-Key",
    ] {
        let rules = Rules { ruleset: with_keys([b"x-legacy-key"]), ..Rules::default() };
        assert_eq!(read_key(&rules, &format!("Host: a\r\n{name}: {KEY}\r\n")), Ok((None, true)), "{name}");
        // The end of the line before is no part of a name.
        for cut in 1..name.len().min(6) {
            let cut = &name[name.len() - cut..];
            assert_eq!(read_key(&rules, &format!("Host: xapi-\r\n{cut}: a\r\n")), Ok((None, false)), "{cut}");
        }
    }
    for name in ["Idempotency-Key", "Sec-WebSocket-Key", "X-CSRF-Token", "Authorizations", "Monkey", "Token", "Key"] {
        assert_eq!(read_key(&usual, &format!("{name}: {KEY}\r\n")), Ok((None, false)), "{name}");
    }
    for (cookies, seen) in [
        ("api_key=x", true),
        ("API-KEY=x", true),
        ("apikey=x", true),
        ("x-api-key=x", true),
        ("key=x", true),
        ("access_token=x", true),
        ("a=b; api_key=x", true),
        ("a=b;api_key=x; c=d", true),
        ("a=b;  \tapi_key=", true),
        ("a; ;;api_key=x", true),
        ("a=01234567890123456789012345678901234567890123456789012345678901234567890123456789; key=x", true),
        ("012345678901234567890123456789; api_key=x", true),
        ("", false),
        (";", false),
        ("api_key", false),
        ("api_key; a=b", false),
        ("api_keys=x; my_api_key=x", false),
        ("a=api_key=x", false),
        ("a=b, api_key=x", false),
        ("monkey=x", false),
        ("session=key", false),
    ] {
        for line in [format!("Cookie: {cookies}\r\n"), format!("cookie:{cookies}\r\nX-More: a\r\n")] {
            assert_eq!(read_key(&usual, &line), Ok((None, seen)), "{line:?}");
            // A key in its field is the key, before or behind.
            let tag = Some(key::tag(SECRET, KEY.as_bytes()));
            let keyed = format!("X-API-Key: {KEY}\r\n");
            assert_eq!(read_key(&usual, &format!("{line}{keyed}")), Ok((tag, seen)), "{line:?}");
            assert_eq!(read_key(&usual, &format!("{keyed}{line}")), Ok((tag, false)), "{line:?}");
        }
    }
    // Cookies are read as strictly as any other value.
    for (value, kind) in [
        ("a=b; api_key=\u{1}", Malformation::ControlByte),
        ("\u{7f}", Malformation::ControlByte),
        ("a\u{0}=b", Malformation::ControlByte),
        ("a=b;\rc", Malformation::LineEnding),
        ("a=b;\nX-API-Key: a", Malformation::LineEnding),
    ] {
        assert_eq!(read_key(&usual, &format!("Cookie: {value}\r\n")), Err(kind.into()), "{value:?}");
    }
    // Where it names the client, it is that.
    let rules = Rules { ruleset: with_client(b"cookie"), ..Rules::default() };
    let found = read_get(&rules, "Cookie: key=x\r\n").map(|found| (found.client, found.has_key_elsewhere));
    assert_eq!(found, Ok((key::tag(SECRET, b"key=x").0, false)));
}

#[test]
fn no_spelling_of_a_listed_field_passes_for_another() {
    let rules = Rules { ruleset: with_keys([b"x-api-key", b"x-legacy-key"]), ..Rules::default() };
    let of = |lines: &str| read_key(&rules, lines);
    let tag = Some(key::tag(SECRET, KEY.as_bytes()));
    for name in ["X-API-Key", "x-LEGACY-kEY"] {
        assert_eq!(of(&format!("{name}: {KEY}\r\n")), Ok((tag, false)), "{name}");
        // WSGI folds each of these into the variable of the field itself.
        let hyphens: Vec<_> = name.match_indices('-').map(|(at, _)| at).collect();
        for chosen in 1..1 << hyphens.len() {
            let mut alias = name.to_owned().into_bytes();
            for (_, &at) in hyphens.iter().enumerate().filter(|(number, _)| chosen >> number & 1 == 1) {
                alias[at] = b'_';
            }
            let alias = String::from_utf8_lossy(&alias);
            assert_eq!(of(&format!("{alias}: {KEY}\r\n")), Err(Malformation::AliasedName.into()), "{alias}");
            let beside = format!("X-API-Key: {KEY}\r\n{alias}: {KEY}\r\n");
            assert!(of(&beside).is_err(), "{beside:?}");
        }
        for end in 1..name.len() {
            assert_eq!(of(&format!("{}: {KEY}\r\n", &name[..end])), Ok((None, false)), "the first {end} of {name}");
        }
        for more in ["s", "-", "_", "0", "!", "-X-API-Key"] {
            for other in [format!("{name}{more}"), format!("{more}{name}")] {
                let as_key = other.to_ascii_lowercase().ends_with("api-key");
                assert_eq!(of(&format!("{other}: {KEY}\r\n")), Ok((None, as_key)), "{other}");
            }
        }
        let refused = |lines: &str, kind: Malformation| assert_eq!(of(lines), Err(kind.into()), "{lines:?}");
        refused(&format!("X-Other: a\r\n {name}: {KEY}\r\n"), Malformation::ObsFold);
        refused(&format!("{name}: {KEY}\r\n\t{KEY}\r\n"), Malformation::ObsFold);
        refused(&format!("{name} : {KEY}\r\n"), Malformation::FieldName);
    }
    for [first, second] in [["X-API-Key", "X-Legacy-Key"], ["X-Legacy-Key", "X-API-Key"]] {
        for value in [KEY, "another-key-0123456789"] {
            let both = format!("{first}: {KEY}\r\nHost: a\r\n{second}: {value}\r\n");
            assert_eq!(of(&both), Err(Malformation::Duplicate.into()), "{both:?}");
        }
    }
}

#[test]
fn a_listed_field_in_a_trailer_or_a_body_is_no_key() {
    let rules = Rules { ruleset: with_keys([b"x-legacy-key"]), ..Rules::default() };
    let post = "POST / HTTP/1.1\r\nHost: a\r\n";
    let line = format!("X-Legacy-Key: {KEY}\r\n");
    let trailer = format!("{post}Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n{line}\r\n");
    each_cut(trailer.as_bytes(), |pieces| {
        let reader = Reader::read_by(&rules, pieces);
        assert_eq!(reader.seen().len(), 2);
        assert_eq!(reader.seen()[1], Seen::Refused(Malformation::Trailer.into()));
        assert!(matches!(reader.seen()[0], Seen::Head { key: None, .. }));
    });
    let body = format!("{post}Content-Length: {}\r\n\r\n{line}{post}{line}\r\n", line.len());
    each_cut(body.as_bytes(), |pieces| {
        let reader = Reader::read_by(&rules, pieces);
        let keys = reader.seen().iter().map(|seen| match seen {
            Seen::Head { key, .. } => Ok(*key),
            Seen::Refused(refusal) => Err(*refusal),
        });
        assert_eq!(keys.collect::<Vec<_>>(), [Ok(None), Ok(Some(key::tag(SECRET, KEY.as_bytes())))]);
    });
}

#[test]
fn what_one_request_has_elsewhere_is_not_held_against_the_next() {
    let rules = Rules::default();
    let keyed = format!("GET /?key=a HTTP/1.1\r\nAuthorization: a\r\nX-API-Key: {KEY}\r\n\r\n");
    each_cut(format!("{keyed}GET / HTTP/1.1\r\n\r\n").as_bytes(), |pieces| {
        let reader = Reader::read_by(&rules, pieces);
        let found: Vec<_> =
            reader.found().iter().map(|found| (found.has_key_elsewhere, found.has_key_in_url)).collect();
        assert_eq!(found, [(true, true), (false, false)]);
    });
}

#[test]
fn a_client_id_may_be_in_a_field_where_keys_often_are() {
    for name in ["authorization", "api-key"] {
        let mobile = key::tag(SECRET, b"mobile").0;
        let rules = Rules { ruleset: with_client(name.as_bytes()), ..Rules::default() };
        let client = |lines: &str| read_get(&rules, lines).map(|found| (found.client, found.has_key_elsewhere));
        assert_eq!(client(&format!("{name}: mobile\r\n")), Ok((mobile, false)), "{name}");
        let twice = format!("{name}: mobile\r\n{name}: web\r\n");
        assert_eq!(client(&twice), Err(Malformation::Duplicate.into()), "{name}");
    }
    let rules = Rules { ruleset: with_client(b"api-key"), ..Rules::default() };
    assert_eq!(read_get(&rules, "Api_Key: mobile\r\n"), Err(Malformation::AliasedName.into()));
}

#[test]
fn a_target_beyond_the_bound_is_refused_for_its_length_whatever_stands_there() {
    let bounds = Service { max_target: 20, ..Service::DEFAULT };
    for (target, long) in [
        ("/aaaaaaaaaaaaaaaaaaa", false),
        ("/aaaaaaaaaaaaaaaaaaaa", true),
        ("/aaaaaaaaaaaaaaaaaa/", false),
        ("/aaaaaaaaaaaaaaaaaaa/", true),
        ("/aaaaaaaaaaaaaaaa%41", false),
        ("/aaaaaaaaaaaaaaaaa%41", true),
        ("/aaaaaaaaaaaaaaaaaa.", false),
        ("/aaaaaaaaaaaaaaaaaaa.", true),
        ("/?aaaaaaaaaaaaaaaaa&", false),
        ("/?aaaaaaaaaaaaaaaaaaa&", true),
        ("http://aaaaaaaaaaaaaaa/", true),
    ] {
        let stream = format!("GET {target} HTTP/1.1\r\n\r\n");
        each_cut(stream.as_bytes(), |pieces| {
            let mut reader = Reader::by(&bounds, &Rules::of_any_path());
            for piece in &pieces {
                reader.go_on(piece);
            }
            let refused = Seen::Refused(Reason::TargetTooLong.into());
            assert_eq!(reader.seen().first() == Some(&refused), long, "{target}: {:?}", reader.seen());
        });
    }
}

/// Behind the proxy 10.0.0.1, which is trusted as 10.0.0.2 and 2001:db8::1 are.
fn proxied() -> Rules {
    Rules {
        ruleset: Ruleset { trusts: 1, ..Ruleset::default() },
        peer: address("10.0.0.1"),
        proxies: ["10.0.0.1", "10.0.0.2", "2001:db8::1"].map(address).to_vec(),
        ..Rules::default()
    }
}

#[test]
fn the_source_is_the_last_that_is_no_trusted_proxy() {
    let rules = proxied();
    let source = |values: &[&str]| {
        let fields: String = values.iter().map(|value| format!("X-Forwarded-For:{value}\r\n")).collect();
        read_get(&rules, &fields).map(|found| found.source)
    };
    let is = |text: &str| Ok(Some(address(text)));
    assert_eq!(source(&[]), Ok(None));
    assert_eq!(source(&[""]), Ok(None));
    assert_eq!(source(&[" 192.0.2.1"]), is("192.0.2.1"));
    assert_eq!(source(&["192.0.2.1 ,\t192.0.2.2 "]), is("192.0.2.2"));
    assert_eq!(source(&[" 192.0.2.1, 10.0.0.2"]), is("192.0.2.1"));
    assert_eq!(source(&[" 192.0.2.1, ::ffff:10.0.0.2, [2001:db8::1]:80"]), is("192.0.2.1"));
    assert_eq!(source(&[" 192.0.2.1", " 192.0.2.2", " 10.0.0.2"]), is("192.0.2.2"));
    assert_eq!(source(&[" 10.0.0.2, 10.0.0.1"]), Ok(None));
    assert_eq!(source(&[" 192.0.2.1, unknown"]), Ok(None));
    assert_eq!(source(&[" unknown, 192.0.2.1"]), is("192.0.2.1"));
    assert_eq!(source(&[" 192.0.2.1, unknown, 10.0.0.2"]), Ok(None));
    assert_eq!(source(&[" 192.0.2.1,,", ""]), is("192.0.2.1"));
    assert_eq!(source(&[" 2001:DB8::2"]), is("2001:db8::2"));
    let aliased = read_get(&rules, "X_Forwarded_For: 192.0.2.1\r\n");
    assert_eq!(aliased, Err(Malformation::AliasedName.into()));
    assert_eq!(source(&[" 192.0.2.1\x01"]), Err(Malformation::ControlByte.into()));
    assert_eq!(source(&[" 192.0.2.1\nX: y"]), Err(Malformation::LineEnding.into()));
}

#[test]
fn nobody_else_tells_where_requests_come_from() {
    let fields = "X-Forwarded-For: 192.0.2.1\r\n";
    let stranger = Rules { peer: address("10.0.0.3"), ..proxied() };
    assert_eq!(read_get(&stranger, fields).map(|found| found.source), Ok(None));
    let off = Rules { ruleset: Ruleset::default(), ..proxied() };
    assert_eq!(read_get(&off, fields).map(|found| found.source), Ok(None));
    assert!(read_get(&off, "X_Forwarded_For: 192.0.2.1\r\n").is_ok());
    let stream = format!("GET / HTTP/1.1\r\n{fields}\r\nGET / HTTP/1.1\r\n\r\n");
    each_cut(stream.as_bytes(), |pieces| {
        let sources: Vec<_> =
            Reader::read_by(&proxied(), pieces).found().iter().map(|found| found.source.is_some()).collect();
        assert_eq!(sources, [true, false], "a request keeps nothing of the one before");
    });
}

/// An element as the standard library reads it; `None` if it is no address.
fn element(text: &str) -> Option<IpAddr> {
    let port_len = text.rsplit(':').next().map_or(0, str::len);
    if let Some(inside) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        return inside.parse().ok().map(IpAddr::V6);
    }
    let with_port = || text.parse::<SocketAddr>().ok().filter(|_| port_len <= 5).map(|address| address.ip());
    text.parse().ok().or_else(with_port)
}

/// Cuts a stream at these places.
fn cut<'a>(stream: &'a [u8], places: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<usize> = places.iter().map(|place| place.index(stream.len() + 1)).collect();
    cuts.sort_unstable();
    let mut segments = Vec::new();
    let mut begin = 0;
    for end in cuts.into_iter().chain([stream.len()]) {
        segments.push(&stream[begin..end]);
        begin = end;
    }
    segments
}

/// Addresses, and what is nearly one.
fn any_element() -> impl Strategy<Value = String> {
    let group = prop_oneof![Just(String::new()), "[0-9a-fA-F]{1,4}", "[0-9a-f]{5}"];
    prop_oneof![
        any::<[u8; 4]>().prop_map(|bytes| IpAddr::from(bytes).to_string()),
        any::<[u8; 16]>().prop_map(|bytes| IpAddr::from(bytes).to_string()),
        (any::<[u8; 16]>(), "0{0,2}[1-9][0-9]{0,4}")
            .prop_map(|(bytes, port)| format!("[{}]:{port}", IpAddr::from(bytes))),
        vec(group.clone(), 2..9).prop_map(|groups| groups.join(":")),
        (vec(group, 0..7), "[0-9]{1,3}(\\.[0-9]{1,3}){2,4}", "(:[0-9]{0,6})?")
            .prop_map(|(groups, four, port)| format!("{}:{four}{port}", groups.join(":"))),
        "[0-9]{1,3}(\\.[0-9]{1,3}){2,4}(:[0-9]{0,6})?",
        "[0-9a-f:.]{0,20}",
        "\\[?[0-9a-f:.]{1,12}\\]?(:[0-9]{0,3})?",
        "[a-z_.-]{1,10}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn random_targets_are_read_as_the_reference_reads_them(
        target in prop_oneof![
            "/([a-e./%]|%2[0-9a-fA-F]|%[0-9a-f]{2}|[!-~]|\\.\\.|//|\\?){0,30}",
            "http://([a-c:@.]|[!-~]){0,3}(/[a-e.]{0,4}|/|\\?|%2[ef]){0,5}",
            "[!-~]{1,12}",
        ],
        cuts in vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let stream = format!("GET {target} HTTP/1.1\r\n\r\n");
        let reader = Reader::read_by(&Rules::of_any_path(), cut(stream.as_bytes(), &cuts));
        match segments(target.as_bytes()) {
            Some(segments) => {
                prop_assert!(!reader.is_refused(), "{:?}", reader.seen());
                prop_assert_eq!(reader.walked(), tags(&segments));
            }
            None => prop_assert_eq!(reader.seen(), [Seen::Refused(Reason::Path.into())]),
        }
    }

    #[test]
    fn random_elements_are_read_as_the_standard_library_reads_them(
        elements in vec(any_element(), 1..4), cuts in vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let rules = proxied();
        let mut source = None;
        for text in elements.iter().filter(|text| !text.is_empty()) {
            match element(text).map(words) {
                Some(address) if rules.proxies.contains(&address) => {}
                found => source = found,
            }
        }
        let stream = format!("GET / HTTP/1.1\r\nX-Forwarded-For: {}\r\n\r\n", elements.join(", "));
        let reader = Reader::read_by(&rules, cut(stream.as_bytes(), &cuts));
        prop_assert_eq!(reader.found()[0].source, source, "{:?}", elements);
    }
}
