//! The header of the PROXY protocol before a connection's first request, however it is cut: what it tells of the source, and
//! what is none.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use enforcer_ebpf::abi::Ruleset;
use enforcer_ebpf::http::Refusal;
use enforcer_ebpf::source::Address;
use enforcer_ebpf::verdict::Reason;
use enforcer_tests::reader::{Reader, Rules, Seen, address, words};
use proptest::prelude::*;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
/// The signature of version 2.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const SIX: &str = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";

/// Behind the trusted proxy 10.0.0.1, which sends headers of the version of this flag; 10.0.0.2 is trusted too.
fn rules(version: u32) -> Rules {
    Rules {
        ruleset: Ruleset { flags: version, trusts: 1, ..Ruleset::default() },
        peer: address("10.0.0.1"),
        proxies: ["10.0.0.1", "10.0.0.2"].map(address).to_vec(),
        ..Rules::default()
    }
}

/// All ways to cut a stream once, and byte by byte.
fn each_cut(stream: &[u8], mut check: impl FnMut(Vec<&[u8]>)) {
    for cut in 0..=stream.len() {
        let (first, second) = stream.split_at(cut);
        check(vec![first, second]);
    }
    check(stream.chunks(1).collect());
}

/// What the first requests behind a header come from by these rules, the same for each cut; `None` is the connection's own
/// peer.
fn sources(rules: &Rules, stream: &[u8]) -> Result<Vec<Option<Address>>, Refusal> {
    let whole = Reader::read_by(rules, [stream]);
    each_cut(stream, |pieces| {
        let reader = Reader::read_by(rules, pieces);
        let said = [&reader, &whole].map(|reader| reader.seen().len());
        assert_eq!((said[0], reader.found()), (said[1], whole.found()), "{}", stream.escape_ascii());
        assert_eq!(reader.seen().last(), whole.seen().last(), "{}", stream.escape_ascii());
        assert!(reader.is_refused() || reader.ends_as(&whole), "{}", stream.escape_ascii());
    });
    match whole.seen().last() {
        Some(Seen::Refused(refusal)) => Err(*refusal),
        _ => Ok(whole.found().iter().map(|found| found.source).collect()),
    }
}

/// What the request behind a header comes from.
fn told(version: u32, header: &[u8]) -> Result<Option<Address>, Refusal> {
    sources(&rules(version), &[header, REQUEST].concat()).map(|sources| {
        assert_eq!(sources.len(), 1, "{}", header.escape_ascii());
        sources[0]
    })
}

fn line(line: &str) -> Result<Option<Address>, Refusal> {
    told(Ruleset::PROXY_1, format!("{line}\r\n").as_bytes())
}

const REFUSED: Result<Option<Address>, Refusal> = Err(Refusal { reason: Reason::ProxyHeader, kind: None });

#[test]
fn a_line_tells_the_source_of_all_that_follows() {
    assert_eq!(line("PROXY TCP4 192.0.2.1 10.0.0.9 65535 80"), Ok(Some(address("192.0.2.1"))));
    assert_eq!(line("PROXY TCP4 255.255.255.255 255.255.255.255 0 65535"), Ok(Some(address("255.255.255.255"))));
    assert_eq!(line("PROXY TCP6 2001:DB8::1 ::1 1 2"), Ok(Some(address("2001:db8::1"))));
    assert_eq!(line(&format!("PROXY TCP6 {SIX} {SIX} 65535 65535")), Ok(Some(address(SIX))));
    // Of an IPv4 client to an IPv6 address: it stays the IPv4 source that it is.
    assert_eq!(line("PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2"), Ok(Some(address("192.0.2.1"))));
    assert_eq!(line("PROXY UNKNOWN"), Ok(None));
    assert_eq!(line(&format!("PROXY UNKNOWN {SIX} {SIX} 65535 65535")), Ok(None));
    let stream = [b"PROXY TCP4 192.0.2.1 10.0.0.9 1 80\r\n".as_slice(), REQUEST, REQUEST].concat();
    let source = Some(address("192.0.2.1"));
    assert_eq!(sources(&rules(Ruleset::PROXY_1), &stream), Ok(vec![source, source]));
}

#[test]
fn what_is_no_line_of_version_1_is_refused() {
    for text in [
        "",
        "GET / HTTP/1.1",
        "proxy TCP4 192.0.2.1 10.0.0.9 1 80",
        " PROXY TCP4 192.0.2.1 10.0.0.9 1 80",
        "PROXY  TCP4 192.0.2.1 10.0.0.9 1 80",
        "PROXY",
        "PROXY ",
        "PROXY TCP4",
        "PROXY TCP5 192.0.2.1 10.0.0.9 1 80",
        "PROXY UDP4 192.0.2.1 10.0.0.9 1 80",
        "PROXY TCP4 192.0.2.1",
        "PROXY TCP4 192.0.2.1 10.0.0.9 1",
        "PROXY TCP4 192.0.2.1 10.0.0.9 1 ",
        "PROXY TCP4 192.0.2.1 10.0.0.9 1 80 ",
        "PROXY TCP4 192.0.2.1 10.0.0.9 1 80 2",
        "PROXY TCP4  192.0.2.1 10.0.0.9 1 80",
        "PROXY TCP4 192.0.2.1\t10.0.0.9 1 80",
        "PROXY TCP4 192.0.2.01 10.0.0.9 1 80",
        "PROXY TCP4 192.0.2.256 10.0.0.9 1 80",
        "PROXY TCP4 192.0.2 10.0.0.9 1 80",
        "PROXY TCP4 192.0.2.1.1 10.0.0.9 1 80",
        "PROXY TCP4 192.0.2.a 10.0.0.9 1 80",
        "PROXY TCP4 192.0.2.1:5 10.0.0.9 1 80",
        "PROXY TCP4 ::1 ::1 1 80",
        "PROXY TCP4 192.0.2.1 ::1 1 80",
        "PROXY TCP4 192.0.2.1 10.0.0 1 80",
        "PROXY TCP6 192.0.2.1 10.0.0.9 1 80",
        "PROXY TCP6 192.0.2.1:5 ::1 1 80",
        "PROXY TCP6 ::1 192.0.2.1 1 80",
        "PROXY TCP6 [::1] ::1 1 80",
        "PROXY TCP6 ::1%lo ::1 1 80",
        "PROXY TCP6 1::2::3 ::1 1 80",
        "PROXY TCP6 1:2:3:4:5:6:7 ::1 1 80",
        "PROXY TCP6 1:2:3:4:5:6:7:8:9 ::1 1 80",
        "PROXY TCP6 12345::1 ::1 1 80",
        "PROXY TCP4 192.0.2.1 10.0.0.9 65536 80",
        "PROXY TCP4 192.0.2.1 10.0.0.9 1 65536",
        "PROXY TCP4 192.0.2.1 10.0.0.9 01 80",
        "PROXY TCP4 192.0.2.1 10.0.0.9 00 80",
        "PROXY TCP4 192.0.2.1 10.0.0.9 +1 80",
        "PROXY TCP4 192.0.2.1 10.0.0.9 1 0x50",
        "PROXY UNKNOWNX",
        "PROXY UNKNOW",
        "PROXY UNKNOWN \x01",
        "PROXY UNKNOWN \u{e9}",
        "PROXY UNKNOWN a\nb",
        "PROXY TCP4 192.0.2.1 10.0.0.9 1 80\r",
        "PROXY TCP4 192.0.2.1 10.0.0.9 1 80\n",
    ] {
        assert_eq!(line(text), REFUSED, "{text:?}");
    }
    assert_eq!(told(Ruleset::PROXY_1, b"PROXY TCP4 192.0.2.1 10.0.0.9 1 80\n"), REFUSED);
    assert_eq!(told(Ruleset::PROXY_1, &v2(0x21, 0x11, &FOUR)), REFUSED);
    // The longest that there is, and one byte more.
    for (len, expected) in [(91, Ok(None)), (92, REFUSED)] {
        assert_eq!(line(&format!("PROXY UNKNOWN {}", "x".repeat(len))), expected, "{len}");
    }
}

const FOUR: [u8; 12] = [192, 0, 2, 1, 10, 0, 0, 9, 0xff, 0xff, 0, 80];

fn six(source: &str) -> Vec<u8> {
    let source: Ipv6Addr = source.parse().expect("an address");
    [&source.octets()[..], &Ipv6Addr::LOCALHOST.octets(), &[1, 2, 0, 80]].concat()
}

/// A header of version 2.
fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let len = (block.len() as u16).to_be_bytes();
    [SIGNATURE, &[command, family], &len, block].concat()
}

#[test]
fn a_binary_header_tells_the_source_of_all_that_follows() {
    let read = |command, family, block: &[u8]| told(Ruleset::PROXY_2, &v2(command, family, block));
    let source = Ok(Some(address("192.0.2.1")));
    assert_eq!(read(0x21, 0x11, &FOUR), source);
    assert_eq!(read(0x21, 0x21, &six("2001:db8::1")), Ok(Some(address("2001:db8::1"))));
    assert_eq!(read(0x21, 0x21, &six("::ffff:192.0.2.1")), source);
    // Another header in a TLV is a TLV's bytes.
    let tlvs = [&FOUR[..], &[3, 0, 4, 1, 2, 3, 4], &v2(0x21, 0x11, &FOUR)].concat();
    assert_eq!(read(0x21, 0x11, &tlvs), source);
    assert_eq!(read(0x21, 0x11, &[&FOUR[..], &[0xff; 4068]].concat()), source);
    assert_eq!(read(0x21, 0x00, &[]), Ok(None));
    assert_eq!(read(0x21, 0x00, &[1, 2, 3]), Ok(None));
    assert_eq!(read(0x20, 0x00, &[]), Ok(None));
    assert_eq!(read(0x20, 0x11, &FOUR), Ok(None));
    assert_eq!(read(0x20, 0x77, &[1]), Ok(None));
    assert_eq!(read(0x21, 0x21, &six("::")), Ok(None));
}

#[test]
fn what_is_no_header_of_version_2_is_refused() {
    let read = |command, family, block: &[u8]| told(Ruleset::PROXY_2, &v2(command, family, block));
    for index in 0..SIGNATURE.len() {
        let mut header = v2(0x21, 0x11, &FOUR);
        header[index] ^= 1;
        assert_eq!(told(Ruleset::PROXY_2, &header), REFUSED, "byte {index} of the signature");
    }
    for command in (0..=0xff).filter(|command| ![0x20, 0x21].contains(command)) {
        assert_eq!(read(command, 0x11, &FOUR), REFUSED, "{command:#x}");
    }
    for family in (1..=0xff).filter(|family| ![0x11, 0x21].contains(family)) {
        assert_eq!(read(0x21, family, &six("::1")), REFUSED, "{family:#x}");
    }
    assert_eq!(read(0x21, 0x11, &FOUR[..11]), REFUSED);
    assert_eq!(read(0x21, 0x21, &six("::1")[..35]), REFUSED);
    assert_eq!(read(0x21, 0x11, &[&FOUR[..], &[0xff; 4069]].concat()), REFUSED);
    assert_eq!(read(0x20, 0x00, &[0; 4081]), REFUSED);
    assert_eq!(told(Ruleset::PROXY_2, b"PROXY TCP4 192.0.2.1 10.0.0.9 1 80\r\n"), REFUSED);
    assert_eq!(told(Ruleset::PROXY_2, b""), REFUSED);
}

#[test]
fn a_second_header_is_no_request() {
    let first = b"PROXY TCP4 192.0.2.1 10.0.0.9 1 80\r\n".to_vec();
    for (version, header) in [(Ruleset::PROXY_1, first), (Ruleset::PROXY_2, v2(0x21, 0x11, &FOUR))] {
        let refused = told(version, &[&header[..], &header].concat()).map_err(|refusal| refusal.reason);
        assert_eq!(refused, Err(Reason::Malformed));
        let later = sources(&rules(version), &[&header[..], REQUEST, &header].concat());
        assert_eq!(later.map_err(|refusal| refusal.reason), Err(Reason::Malformed));
    }
}

#[test]
fn of_peers_that_are_not_trusted_and_without_the_policy_a_header_is_no_request() {
    for (version, header) in [
        (Ruleset::PROXY_1, b"PROXY TCP4 192.0.2.1 10.0.0.9 1 80\r\n".to_vec()),
        (Ruleset::PROXY_2, v2(0x21, 0x11, &FOUR)),
    ] {
        let stream = [&header[..], REQUEST].concat();
        for rules in [rules(0), Rules { peer: address("10.0.0.3"), ..rules(version) }] {
            let refused = sources(&rules, &stream).map_err(|refusal| refusal.reason);
            assert_eq!(refused, Err(Reason::Malformed));
            assert_eq!(sources(&rules, REQUEST), Ok(vec![None]));
        }
    }
}

#[test]
fn forwarded_for_goes_on_from_the_address_in_the_header() {
    let rules = rules(Ruleset::PROXY_1);
    let source = |header: &str, values: &str| {
        let stream = format!("{header}\r\nGET / HTTP/1.1\r\nX-Forwarded-For: {values}\r\n\r\nGET / HTTP/1.1\r\n\r\n");
        sources(&rules, stream.as_bytes())
    };
    let client = Some(address("192.0.2.1"));
    let proxy = Some(address("10.0.0.2"));
    let from_client = "PROXY TCP4 192.0.2.1 10.0.0.9 1 80";
    let from_proxy = "PROXY TCP4 10.0.0.2 10.0.0.9 1 80";
    // What the client itself says of where it comes from is believed of nobody.
    assert_eq!(source(from_client, "203.0.113.7"), Ok(vec![client, client]));
    assert_eq!(source(from_client, "nonsense"), Ok(vec![client, client]));
    assert_eq!(source(from_proxy, "203.0.113.7, 192.0.2.1"), Ok(vec![client, proxy]));
    assert_eq!(source(from_proxy, "203.0.113.7, nonsense"), Ok(vec![proxy, proxy]));
    assert_eq!(source(from_proxy, "10.0.0.1"), Ok(vec![proxy, proxy]));
    // The proxy speaks for itself.
    assert_eq!(source("PROXY UNKNOWN", "192.0.2.1"), Ok(vec![client, None]));
}

/// A line of version 1 as the standard library reads it.
fn reference(line: &str) -> Option<Option<Address>> {
    let parts: Vec<&str> = line.strip_prefix("PROXY ")?.split(' ').collect();
    if parts[0] == "UNKNOWN" {
        return Some(None);
    }
    let [family, source, destination, source_port, destination_port] = parts[..] else { return None };
    for port in [source_port, destination_port] {
        if port.parse::<u16>().ok()?.to_string() != port {
            return None;
        }
    }
    let read = |text: &str| match family {
        "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        "TCP6" => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        _ => None,
    };
    read(destination)?;
    let source = words(read(source)?);
    Some((source != [0; 2]).then_some(source))
}

fn any_address() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(|bytes| Ipv4Addr::from(bytes).to_string()),
        any::<[u16; 8]>().prop_map(|groups| Ipv6Addr::from(groups).to_string()),
        any::<[bool; 8]>().prop_map(|groups| Ipv6Addr::from(groups.map(u16::from)).to_string()),
        any::<[u8; 4]>().prop_map(|bytes| Ipv4Addr::from(bytes).to_ipv6_mapped().to_string()),
        "[0-9a-f:.]{0,12}",
    ]
}

fn any_line() -> impl Strategy<Value = String> {
    let family = prop_oneof![4 => Just("TCP4"), 4 => Just("TCP6"), 1 => Just("UNKNOWN"), 1 => Just("TCP")];
    let port = || prop_oneof![any::<u16>().prop_map(|port| port.to_string()), "[0-9]{0,6}"];
    let whole =
        (family, any_address(), any_address(), port(), port()).prop_map(|(family, source, destination, from, to)| {
            format!("PROXY {family} {source} {destination} {from} {to}")
        });
    // Some with one byte that is another.
    (whole, any::<prop::sample::Index>(), prop::option::weighted(0.3, "[ -~]")).prop_map(|(mut line, at, byte)| {
        if let Some(byte) = byte {
            let at = at.index(line.len());
            line.replace_range(at..=at, &byte);
        }
        line
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn lines_are_read_as_the_standard_library_reads_them(text in any_line()) {
        prop_assume!(text.len() <= 105);
        let read = Reader::read_by(&rules(Ruleset::PROXY_1), [text.as_bytes(), b"\r\n", REQUEST]);
        let source = read.found().first().map(|found| found.source);
        prop_assert_eq!(source, reference(&text), "{}", text);
    }
}
