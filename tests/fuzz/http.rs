//! Streams of HTTP through the machine alone, cut in many ways, beside the reference and beside another parser.

use std::fmt::Write as _;

use enforcer_ebpf::abi::{KeyTag, Service};
use enforcer_ebpf::key;
use enforcer_tests::other_parser::compare_seen;
use enforcer_tests::random::Random;
use enforcer_tests::reader::{Reader, SECRET, Seen};

use crate::Check;
use crate::reference::{self, End, Reading};

/// Bytes that the machine may hold before it counts them: those of a name under way.
const LAG: usize = 32;

/// Bounds that short streams reach.
pub const NARROW: Service =
    Service { max_head: 300, max_fields: 5, max_target: 40, max_body: 1000, ..Service::DEFAULT };

/// Holds the machine to all its promises over this stream.
///
/// # Errors
/// The promise that it breaks.
pub fn check(stream: &[u8]) -> Check {
    let seen = check_within(stream, &Service::DEFAULT)?;
    compare_seen(stream, &seen)?;
    check_within(stream, &NARROW).map_err(|error| format!("under narrow bounds: {error}"))?;
    Ok(())
}

fn check_within(stream: &[u8], bounds: &Service) -> Result<Vec<Seen>, String> {
    let (by_byte, refused_at) = byte_by_byte(stream, bounds)?;
    let expected = reference::read(stream, bounds);
    compare(&by_byte, refused_at, &expected, stream.len())?;
    let mut random = Random::of(stream);
    for round in 0..4 {
        let segments = if round == 0 { vec![stream] } else { cut(stream, &mut random) };
        let mut reader = Reader::within(bounds);
        for segment in &segments {
            reader.go_on(segment);
        }
        bounded(&reader, stream.len(), segments.len())?;
        if !agree(reader.seen(), by_byte.seen()) {
            let lengths: Vec<usize> = segments.iter().map(|segment| segment.len()).collect();
            return Err(format!(
                "in segments of {lengths:?} it says {:?}, byte by byte {:?}",
                reader.seen(),
                by_byte.seen()
            ));
        }
    }
    Ok(by_byte.seen().to_vec())
}

/// Whether two readings of a stream are one. Of two things that are wrong with it, which is met first may depend on how
/// it was cut.
fn agree(one: &[Seen], other: &[Seen]) -> bool {
    one.len() == other.len()
        && one.iter().zip(other).all(|pair| pair.0 == pair.1 || matches!(pair, (Seen::Refused(_), Seen::Refused(_))))
}

/// Reads a stream a byte at a time; tells after how many it is refused.
fn byte_by_byte(stream: &[u8], bounds: &Service) -> Result<(Reader, Option<usize>), String> {
    let mut reader = Reader::within(bounds);
    let mut refused_at = None;
    for (index, byte) in stream.iter().enumerate() {
        reader.go_on(std::slice::from_ref(byte));
        if reader.is_refused() {
            refused_at = Some(index + 1);
            break;
        }
    }
    bounded(&reader, stream.len(), stream.len())?;
    Ok((reader, refused_at))
}

/// Every step reads a byte, but for a few at the begin and the end of an element and of a segment.
fn bounded(reader: &Reader, len: usize, segments: usize) -> Check {
    let most = 2 * len + 3 * segments + 3;
    if reader.steps() > most {
        return Err(format!("{} steps for {len} bytes in {segments} segments, more than {most}", reader.steps()));
    }
    Ok(())
}

/// Cuts a stream at a few places, mostly near each other and near the ends of lines.
fn cut<'a>(stream: &'a [u8], random: &mut Random) -> Vec<&'a [u8]> {
    let mut cuts: Vec<usize> = (0..1 + random.below(8)).map(|_| random.below(stream.len() + 1)).collect();
    let lines: Vec<usize> = stream.iter().enumerate().filter(|(_, byte)| **byte == b'\r').map(|(at, _)| at).collect();
    if !lines.is_empty() {
        cuts.extend((0..random.below(4)).map(|_| (*random.pick(&lines) + random.below(4)).min(stream.len())));
    }
    cuts.sort_unstable();
    cuts.dedup();
    let begins = std::iter::once(0).chain(cuts.iter().copied());
    let ends = cuts.iter().copied().chain([stream.len()]);
    begins.zip(ends).map(|(begin, end)| &stream[begin..end]).filter(|segment| !segment.is_empty()).collect()
}

/// The machine accepts what the reference does, and refuses what it does, no earlier and hardly later.
fn compare(reader: &Reader, refused_at: Option<usize>, expected: &Reading, len: usize) -> Check {
    let heads: Vec<(Option<KeyTag>, usize)> = reader
        .seen()
        .iter()
        .filter_map(|seen| match *seen {
            Seen::Head { key, at } => Some((key, at)),
            Seen::Refused(_) => None,
        })
        .collect();
    let tag = |value: &Vec<u8>| key::tag(SECRET, value);
    let wanted: Vec<_> = expected.heads.iter().map(|head| (head.key.as_ref().map(tag), head.end)).collect();
    if heads != wanted {
        return Err(format!("its heads are {heads:?}, by the reference {wanted:?} ({expected:?})"));
    }
    let is_between = reader.is_between_requests();
    match (expected.end, refused_at) {
        (End::Refused(wanted), Some(at)) if (wanted..=wanted + LAG).contains(&at) => Ok(()),
        (End::Refused(wanted), None) if wanted + LAG > len => Ok(()),
        (End::Refused(wanted), at) => Err(format!("refused at {at:?}, by the reference at {wanted}")),
        (_, Some(at)) => {
            Err(format!("refused at {at}: {:?}, by the reference {:?}", reader.seen().last(), expected.end))
        }
        (end, None) if is_between == (end == End::Between) => Ok(()),
        (end, None) => Err(format!("ends between requests: {is_between}, by the reference {end:?}")),
    }
}

/// The stream as text, with what the reference reads in it.
#[must_use]
pub fn explain(stream: &[u8]) -> String {
    let mut text = String::new();
    for line in stream.split_inclusive(|&byte| byte == b'\n') {
        let _ = writeln!(text, "    {}", line.escape_ascii());
    }
    for (bounds, name) in [(Service::DEFAULT, "the default bounds"), (NARROW, "narrow bounds")] {
        let Reading { heads, end, .. } = reference::read(stream, &bounds);
        let _ = writeln!(text, "by the reference, under {name}:");
        for head in heads {
            let key = head.key.map_or_else(|| "no key".to_owned(), |key| format!("key {}", key.escape_ascii()));
            let _ = writeln!(text, "    a head up to {}, {key}", head.end);
        }
        let _ = writeln!(text, "    {end:?}");
    }
    text
}
