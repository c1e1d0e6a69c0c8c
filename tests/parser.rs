//! The HTTP machine on the corpus, on generated requests and beside another parser, however the bytes are cut.

use anyhow::{Result, ensure};
use enforcer_ebpf::abi::KeyTag;
use enforcer_ebpf::http::Refusal;
use enforcer_ebpf::key;
use enforcer_tests::corpus::{self, Case, Expected};
use enforcer_tests::other_parser::compare;
use enforcer_tests::reader::{Reader, SECRET, Seen};
use proptest::collection::vec;
use proptest::prelude::*;

fn expected(case: &Case) -> Vec<Result<Option<KeyTag>, Refusal>> {
    case.expected
        .iter()
        .map(|expected| match expected {
            Expected::Keyed(value) => Ok(Some(key::tag(SECRET, value.as_bytes()))),
            Expected::Unkeyed => Ok(None),
            &Expected::Refused(reason, kind) => Err(Refusal { reason, kind }),
        })
        .collect()
}

fn outcomes(reader: &Reader) -> Vec<Result<Option<KeyTag>, Refusal>> {
    let outcome = |seen: &Seen| match *seen {
        Seen::Head { key, .. } => Ok(key),
        Seen::Refused(refusal) => Err(refusal),
    };
    reader.seen().iter().map(outcome).collect()
}

#[test]
fn the_corpus_is_read_as_it_says() -> Result<()> {
    let cases = corpus::load()?;
    ensure!(cases.len() >= 150, "only {} cases were found", cases.len());
    let mut wrong = Vec::new();
    for case in &cases {
        let reader = Reader::read([&case.stream[..]]);
        let (seen, expected) = (outcomes(&reader), expected(case));
        if seen != expected {
            wrong.push(format!("{}: {seen:?}, not {expected:?}", case.name));
        }
        let refused = seen.iter().any(Result::is_err);
        if !refused && reader.is_between_requests() != case.whole {
            wrong.push(format!("{}: ends elsewhere", case.name));
        }
    }
    ensure!(wrong.is_empty(), "{} cases are read otherwise:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

#[test]
fn a_cut_at_any_byte_changes_no_verdict() -> Result<()> {
    for case in corpus::load()? {
        let whole = Reader::read([&case.stream[..]]);
        // What is longer is filler in its middle.
        let places = (0..=case.stream.len()).filter(|cut| *cut < 18_000 || cut + 1_000 > case.stream.len());
        for cut in places {
            let (first, second) = case.stream.split_at(cut);
            let reader = Reader::read([first, second]);
            assert_eq!(reader.seen(), whole.seen(), "{} cut at {cut}", case.name);
        }
    }
    Ok(())
}

#[test]
fn a_segment_for_each_byte_changes_no_verdict() -> Result<()> {
    for case in corpus::load()? {
        for size in [1, 2, 3, 7, 8, 9, 31, 32, 33, 63, 64, 65] {
            let reader = Reader::read(case.stream.chunks(size));
            let whole = Reader::read([&case.stream[..]]);
            assert_eq!(reader.seen(), whole.seen(), "{} in segments of {size}", case.name);
        }
    }
    Ok(())
}

#[test]
fn the_state_behind_any_byte_does_not_depend_on_the_cuts_before_it() -> Result<()> {
    // What lets a retransmission in other pieces be held against what was read before.
    for case in corpus::load()?.iter().filter(|case| case.stream.len() < 300) {
        for end in 1..=case.stream.len() {
            let stream = &case.stream[..end];
            let whole = Reader::read([stream]);
            if outcomes(&whole).iter().any(Result::is_err) {
                break;
            }
            for size in [1, 2, 7, 31, 64] {
                assert!(Reader::read(stream.chunks(size)).ends_as(&whole), "{} at {end}, by {size}", case.name);
            }
        }
    }
    Ok(())
}

#[test]
fn the_corpus_differs_from_httparse_only_by_refusing_more() -> Result<()> {
    for case in corpus::load()? {
        if let Err(difference) = compare(&case.stream) {
            panic!("{}: {difference}", case.name);
        }
    }
    Ok(())
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

/// A request that is valid, with its key.
fn valid_request() -> impl Strategy<Value = (Vec<u8>, Option<String>)> {
    let method = prop_oneof![Just("GET".to_owned()), Just("POST".to_owned()), "[A-Z][A-Z!#$%&'*+.^_`|~0-9-]{0,14}"]
        .prop_filter("not ours to pass", |method| !["CONNECT", "PRI"].contains(&method.as_str()));
    let target = prop_oneof![Just("/".to_owned()), "/[!-~]{0,60}", "http://t/[!-~]{0,20}"];
    let name = "[A-Wa-w][A-Za-z0-9!#$%&'*+.^`|~-]{0,50}".prop_filter("a name that matters", |name| {
        let special = ["content-length", "transfer-encoding", "host", "upgrade", "http2-settings"];
        !special.contains(&name.to_ascii_lowercase().as_str())
    });
    let field = (name, "[ \t]{0,3}", "[\t -~\u{80}-\u{ff}]{0,90}");
    let key = prop::option::of(("[xX]-[aA][pP][iI]-[kK][eE][yY]", "[ \t]{0,40}", "[!-~]{8,128}", "[ \t]{0,40}"));
    let body = prop_oneof![
        4 => Just(Body::None),
        2 => vec(any::<u8>(), 0..200).prop_map(Body::Length),
        2 => vec(vec(any::<u8>(), 1..100), 0..5).prop_map(Body::Chunked),
    ];
    (method, target, prop_oneof![Just("1.1"), Just("1.0")], vec(field, 0..12), key, any::<prop::sample::Index>(), body)
        .prop_map(|(method, target, version, fields, key, place, body)| {
            let version = if matches!(body, Body::Chunked(_)) { "1.1" } else { version };
            let mut lines: Vec<String> =
                fields.iter().map(|(name, blank, value)| format!("{name}:{blank}{value}")).collect();
            let place = place.index(lines.len() + 1);
            if let Some((name, before, value, after)) = &key {
                lines.insert(place, format!("{name}:{before}{value}{after}"));
            }
            lines.extend(body.field());
            let text = format!(
                "{method} {target} HTTP/{version}\r\n{}\r\n",
                lines.iter().map(|line| format!("{line}\r\n")).collect::<String>()
            );
            let mut bytes: Vec<u8> = text.chars().map(|letter| letter as u8).collect();
            bytes.extend(body.bytes());
            (bytes, key.map(|(_, _, value, _)| value))
        })
}

#[derive(Clone, Debug)]
enum Body {
    None,
    Length(Vec<u8>),
    Chunked(Vec<Vec<u8>>),
}

impl Body {
    fn field(&self) -> Option<String> {
        match self {
            Self::None => None,
            Self::Length(bytes) => Some(format!("Content-Length: {}", bytes.len())),
            Self::Chunked(_) => Some("Transfer-Encoding: chunked".to_owned()),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::None => Vec::new(),
            Self::Length(bytes) => bytes.clone(),
            Self::Chunked(chunks) => {
                let mut bytes = Vec::new();
                for chunk in chunks {
                    bytes.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
                    bytes.extend(chunk);
                    bytes.extend(b"\r\n");
                }
                bytes.extend(b"0\r\n\r\n");
                bytes
            }
        }
    }
}

/// A change of one byte: what servers disagree about most, or anything.
#[derive(Clone, Copy, Debug)]
enum Change {
    Insert(u8),
    Replace(u8),
    Remove,
}

fn change() -> impl Strategy<Value = Change> {
    let byte = prop_oneof![prop::sample::select(b"\r\n\t :;,-_\0\x0b\x7f\x80\xff0aFxX".to_vec()), any::<u8>()];
    prop_oneof![byte.clone().prop_map(Change::Insert), byte.prop_map(Change::Replace), Just(Change::Remove)]
}

fn apply(stream: &mut Vec<u8>, place: prop::sample::Index, change: Change) {
    let at = place.index(stream.len());
    match change {
        Change::Insert(byte) => stream.insert(at, byte),
        Change::Replace(byte) => stream[at] = byte,
        Change::Remove => {
            stream.remove(at);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn valid_requests_are_all_read_however_they_are_cut(
        requests in vec(valid_request(), 1..6), cuts in vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let stream: Vec<u8> = requests.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
        let keys: Vec<_> = requests
            .iter()
            .map(|(_, value)| Ok(value.as_ref().map(|value| key::tag(SECRET, value.as_bytes()))))
            .collect();
        let reader = Reader::read(cut(&stream, &cuts));
        prop_assert_eq!(outcomes(&reader), keys, "{}", String::from_utf8_lossy(&stream));
        prop_assert!(reader.is_between_requests());
        prop_assert_eq!(compare(&stream), Ok(()));
    }

    #[test]
    fn damaged_requests_differ_from_httparse_only_by_refusal_and_never_by_their_cuts(
        requests in vec(valid_request(), 1..4),
        changes in vec((any::<prop::sample::Index>(), change()), 1..6),
        cuts in vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let mut stream: Vec<u8> = requests.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
        for (place, change) in changes {
            apply(&mut stream, place, change);
        }
        let whole = Reader::read([&stream[..]]);
        let reader = Reader::read(cut(&stream, &cuts));
        prop_assert_eq!(reader.seen(), whole.seen(), "{}", String::from_utf8_lossy(&stream));
        prop_assert_eq!(compare(&stream), Ok(()), "{}", String::from_utf8_lossy(&stream));
    }

    #[test]
    fn damaged_cases_of_the_corpus_differ_from_httparse_only_by_refusal_and_never_by_their_cuts(
        case in any::<prop::sample::Index>(),
        changes in vec((any::<prop::sample::Index>(), change()), 1..4),
        cuts in vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let mut stream = CORPUS.with(|cases| case.get(cases).stream.clone());
        for (place, change) in changes {
            apply(&mut stream, place, change);
        }
        let whole = Reader::read([&stream[..]]);
        let reader = Reader::read(cut(&stream, &cuts));
        prop_assert_eq!(reader.seen(), whole.seen(), "{}", String::from_utf8_lossy(&stream));
        prop_assert_eq!(compare(&stream), Ok(()), "{}", String::from_utf8_lossy(&stream));
    }
}

thread_local! {
    static CORPUS: Vec<Case> = corpus::load().expect("the corpus is read by other tests too");
}
