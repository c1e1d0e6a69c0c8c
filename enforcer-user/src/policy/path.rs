//! Paths: how a request's target is read, and the patterns that rules have for it.
//!
//! A path is a list of segments, percent-decoded once. The reading is the program's own (docs/architecture.md), so
//! whatever servers read in two ways is refused here too, and no pattern can be written that would never match.

use std::cmp::Ordering;
use std::fmt;

/// Longest pattern in bytes.
const MAX_PATTERN: usize = 1024;

/// What a target may begin with.
const TARGET: &str = "a path that begins with `/`, http:// with a host and such a path, or `*`";

/// The segments of a path, each decoded.
pub type Segments = Vec<Vec<u8>>;

/// A path that is not read in one way alone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}; accepted: {accepted}")]
pub struct Misread {
    /// Where, in bytes from 0.
    pub at: usize,
    /// What is wrong there.
    pub message: String,
    /// What would be right.
    pub accepted: &'static str,
}

impl Misread {
    fn new(at: usize, message: impl Into<String>, accepted: &'static str) -> Self {
        Self { at, message: message.into(), accepted }
    }
}

const PLAIN: &str = "a path in which servers read no byte in two ways: without `\\`, `#`, %2F, %5C, control characters, \
                     and segments that are `.` or `..`";

/// The segments of a request's target, in origin-form, in absolute-form of `http`, or `*`, which servers take for a path of
/// this one segment. What stands behind `?` is no path.
///
/// # Errors
/// The path is not read in one way alone; such a request is refused with [`enforcer_ebpf::verdict::Reason::Path`].
pub fn segments(target: &[u8]) -> Result<Segments, Misread> {
    if target == b"*" {
        return Ok(vec![b"*".to_vec()]);
    }
    let end = target.iter().position(|&byte| byte == b'?').unwrap_or(target.len());
    let target = &target[..end];
    let at = if target.starts_with(b"/") { 0 } else { authority_end(target)? };
    split(target, at).map(|(at, segment)| decode(segment, at)).collect()
}

/// Where the path of an absolute-form begins.
fn authority_end(target: &[u8]) -> Result<usize, Misread> {
    const SCHEME: &[u8] = b"http://";
    let scheme = target.get(..SCHEME.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(SCHEME));
    let rest = if scheme { &target[SCHEME.len()..] } else { &[] };
    let len = rest.iter().position(|byte| b"/#%\\".contains(byte)).filter(|&len| len > 0 && rest[len] == b'/');
    len.map(|len| SCHEME.len() + len).ok_or_else(|| Misread::new(0, "this is no path", TARGET))
}

/// The segments that are not empty, with their places, from `at` on.
fn split(path: &[u8], at: usize) -> impl Iterator<Item = (usize, &[u8])> {
    let mut next = at;
    path[at..].split(|&byte| byte == b'/').filter_map(move |segment| {
        let at = next;
        next += segment.len() + 1;
        (!segment.is_empty()).then_some((at, segment))
    })
}

const fn is_ambiguous(byte: u8) -> bool {
    matches!(byte, b'\\' | b'#' | 0..=0x1f | 0x7f)
}

fn ambiguous(at: usize, byte: u8) -> Misread {
    Misread::new(at, format!("{:?} in a path", char::from(byte)), PLAIN)
}

/// Decodes one segment, completely and once.
fn decode(segment: &[u8], at: usize) -> Result<Vec<u8>, Misread> {
    let mut decoded = Vec::with_capacity(segment.len());
    let mut next = 0;
    while let Some(&byte) = segment.get(next) {
        if is_ambiguous(byte) {
            return Err(ambiguous(at + next, byte));
        }
        if byte != b'%' {
            decoded.push(byte);
            next += 1;
            continue;
        }
        let digit = |offset: usize| segment.get(next + offset).and_then(|&byte| char::from(byte).to_digit(16));
        let (Some(high), Some(low)) = (digit(1), digit(2)) else {
            return Err(Misread::new(
                at + next,
                "`%` without two hex digits behind it",
                "%25 for the character itself",
            ));
        };
        match (high << 4 | low) as u8 {
            code @ (b'/' | b'\\' | 0..=0x1f | 0x7f) => {
                return Err(Misread::new(at + next, format!("%{code:02X} in a path"), PLAIN));
            }
            code => decoded.push(code),
        }
        next += 3;
    }
    match decoded.as_slice() {
        b"." | b".." => Err(Misread::new(at, "a segment that means another one", PLAIN)),
        _ => Ok(decoded),
    }
}

/// Writes a decoded segment as [`segments`] reads it.
fn encode(segment: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for &byte in segment {
        // RFC 3986 §3.3, without what a pattern gives a meaning to.
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => write!(f, "{}", char::from(byte))?,
            b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'+' | b',' | b';' | b'=' | b':'
            | b'@' => write!(f, "{}", char::from(byte))?,
            _ => write!(f, "%{byte:02X}")?,
        }
    }
    Ok(())
}

/// A path as it is shown: its segments encoded, with `/` before each.
#[must_use]
pub fn show(segments: &[Vec<u8>]) -> impl fmt::Display {
    struct Shown<'s>(&'s [Vec<u8>]);

    impl fmt::Display for Shown<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            if self.0.is_empty() {
                return f.write_str("/");
            }
            for segment in self.0 {
                f.write_str("/")?;
                encode(segment, f)?;
            }
            Ok(())
        }
    }

    Shown(segments)
}

/// One segment of a pattern.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Segment {
    /// These bytes.
    Literal(Vec<u8>),
    /// Any segment, by the name that the operator gave it.
    Any(String),
}

/// The path that a rule is for: this one, or all that begin with it; the rule says which.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pattern {
    segments: Vec<Segment>,
}

/// How far a pattern with `/*` at its end reaches, and one without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reach {
    /// This path alone.
    Exact,
    /// This path and all beneath it.
    Beneath,
}

/// What a pattern may be, for refusals.
pub const PATTERN: &str = "a path that begins with `/`; {name} stands for one segment";

impl Pattern {
    /// Reads a pattern that needs no `*`: what it reaches is known without.
    ///
    /// # Errors
    /// It is no path, or no request's path could match it.
    pub fn parse(text: &str) -> Result<Self, Misread> {
        let pattern = Self::read(text)?;
        match text.find('*') {
            Some(at) => {
                let accepted = "the path alone, which reaches all beneath it; %2A for the character itself";
                Err(Misread::new(at, "`*` in the path of a route", accepted))
            }
            None => Ok(pattern),
        }
    }

    /// Reads a pattern that reaches beneath itself if it ends in `/*`.
    ///
    /// # Errors
    /// As for [`Pattern::parse`].
    pub fn parse_reach(text: &str) -> Result<(Self, Reach), Misread> {
        let (text, reach) = match text.strip_suffix("/*") {
            Some("") => ("/", Reach::Beneath),
            Some(prefix) => (prefix, Reach::Beneath),
            None => (text, Reach::Exact),
        };
        let pattern = Self::read(text)?;
        match text.find('*') {
            Some(at) => {
                let accepted = "`/*` at the end, for all beneath; %2A for the character itself";
                Err(Misread::new(at, "`*` inside a path", accepted))
            }
            None => Ok((pattern, reach)),
        }
    }

    fn read(text: &str) -> Result<Self, Misread> {
        if !text.starts_with('/') {
            return Err(Misread::new(0, "this is no path", PATTERN));
        }
        if text.len() > MAX_PATTERN {
            return Err(Misread::new(MAX_PATTERN, "the path is too long", "at most 1024 bytes"));
        }
        if let Some(at) = text.find('?') {
            return Err(Misread::new(
                at,
                "a query is no part of a path",
                "the path alone; %3F for the character itself",
            ));
        }
        let segments = split(text.as_bytes(), 0).map(|(at, segment)| read_segment(segment, at));
        Ok(Self { segments: segments.collect::<Result<_, _>>()? })
    }

    /// Its segments.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// What tells it from others: two patterns with the same identity match the same paths.
    #[must_use]
    pub fn identity(&self) -> String {
        let nameless = self.segments.iter().map(|segment| match segment {
            Segment::Literal(bytes) => Segment::Literal(bytes.clone()),
            Segment::Any(_) => Segment::Any(String::new()),
        });
        Self { segments: nameless.collect() }.to_string()
    }

    /// Whether a path begins with it.
    #[must_use]
    pub fn leads_to(&self, path: &[Vec<u8>]) -> bool {
        self.segments.len() <= path.len()
            && self.segments.iter().zip(path).all(|(segment, part)| match segment {
                Segment::Literal(bytes) => bytes == part,
                Segment::Any(_) => true,
            })
    }

    /// Whether it matches a path.
    #[must_use]
    pub fn matches(&self, reach: Reach, path: &[Vec<u8>]) -> bool {
        self.leads_to(path) && (reach == Reach::Beneath || self.segments.len() == path.len())
    }

    /// Which of two patterns that match the same path goes before: the longer one is less; of equally long ones the one
    /// that has, from the left, the first literal where the other has any segment.
    #[must_use]
    pub fn precedence(&self, other: &Self) -> Ordering {
        let wild = |pattern: &Self| {
            pattern.segments.iter().map(|segment| matches!(segment, Segment::Any(_))).collect::<Vec<_>>()
        };
        other.segments.len().cmp(&self.segments.len()).then_with(|| wild(self).cmp(&wild(other)))
    }
}

fn read_segment(segment: &[u8], at: usize) -> Result<Segment, Misread> {
    let accepted = "a whole segment such as {id}, its name of a-z A-Z 0-9 _; %7B and %7D for the characters themselves";
    let Some(brace) = segment.iter().position(|byte| b"{}".contains(byte)) else {
        return decode(segment, at).map(Segment::Literal);
    };
    let name = segment.strip_prefix(b"{").and_then(|rest| rest.strip_suffix(b"}"));
    match name.and_then(|name| str::from_utf8(name).ok()) {
        Some("") => Err(Misread::new(at, "`{}` has no name", accepted)),
        Some(name) if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') => {
            Ok(Segment::Any(name.to_owned()))
        }
        _ => Err(Misread::new(at + brace, "a brace that does not stand for one segment", accepted)),
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.segments.is_empty() {
            return f.write_str("/");
        }
        for segment in &self.segments {
            f.write_str("/")?;
            match segment {
                Segment::Literal(bytes) => encode(bytes, f)?,
                Segment::Any(name) => write!(f, "{{{name}}}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(target: &str) -> String {
        match segments(target.as_bytes()) {
            Ok(path) => show(&path).to_string(),
            Err(Misread { at, message, accepted: _ }) => format!("{at}: {message}"),
        }
    }

    #[test]
    fn reads_a_target_as_the_program_does() {
        for (target, path) in [
            ("/", "/"),
            ("*", "/%2A"),
            ("*?", "0: this is no path"),
            ("//", "/"),
            ("/a/b", "/a/b"),
            ("//a///b//", "/a/b"),
            ("/a/b?c=/d\\#", "/a/b"),
            ("?a", "0: this is no path"),
            ("/%61/%7e%25", "/a/~%25"),
            ("/%2561", "/%2561"),
            ("/%41", "/A"),
            ("/a%3Fb%23", "/a%3Fb%23"),
            ("/A", "/A"),
            ("/...", "/..."),
            ("/.a", "/.a"),
            ("http://h/a", "/a"),
            ("http://h/", "/"),
            ("http://h", "0: this is no path"),
            ("http://h?x", "0: this is no path"),
            ("http:///a", "0: this is no path"),
            ("https://h/a", "0: this is no path"),
            ("http://h%41/a", "0: this is no path"),
            ("HTTP://h//a/?x", "/a"),
            ("a", "0: this is no path"),
            ("h:443", "0: this is no path"),
            ("", "0: this is no path"),
            ("http://h\\a/b", "0: this is no path"),
            ("/a\\b", "2: '\\\\' in a path"),
            ("/a#b", "2: '#' in a path"),
            ("/a%2fb", "2: %2F in a path"),
            ("/a/%5C", "3: %5C in a path"),
            ("/%00", "1: %00 in a path"),
            ("/%1F", "1: %1F in a path"),
            ("/%7f", "1: %7F in a path"),
            ("/%20", "/%20"),
            ("/%", "1: `%` without two hex digits behind it"),
            ("/a%4", "2: `%` without two hex digits behind it"),
            ("/a%4/1", "2: `%` without two hex digits behind it"),
            ("/%+1", "1: `%` without two hex digits behind it"),
            ("/a/.", "3: a segment that means another one"),
            ("/a/%2e%2E/b", "3: a segment that means another one"),
            ("/..", "1: a segment that means another one"),
        ] {
            assert_eq!(read(target), path, "{target}");
        }
    }

    /// The corpus of the whole project, in which each path is what real servers have shown it to be.
    #[test]
    fn reads_every_target_of_the_corpus_as_it_says() {
        #[derive(serde::Deserialize)]
        struct Corpus {
            case: Vec<Case>,
        }

        #[derive(serde::Deserialize)]
        struct Case {
            target: String,
            #[serde(default)]
            fields: String,
            path: Option<Vec<String>>,
        }

        let text = include_str!("../../../tests/corpus/targets.toml");
        let corpus: Corpus = toml::from_str(text).expect("the corpus");
        let bytes =
            |text: &String| text.chars().map(|c| u8::try_from(u32::from(c)).expect("a byte")).collect::<Vec<_>>();
        let cases: Vec<_> = corpus.case.iter().filter(|case| case.fields.is_empty()).collect();
        assert!(cases.len() >= 60, "{} cases", cases.len());
        for Case { target, path, .. } in cases {
            let path = path.as_ref().map(|path| path.iter().map(bytes).collect::<Vec<_>>());
            assert_eq!(segments(&bytes(target)).ok(), path, "{target}");
        }
    }

    #[test]
    fn reads_patterns_and_refuses_what_could_not_match() {
        for (text, shown) in [
            ("/", "/"),
            ("/a//b/", "/a/b"),
            ("/a/{id}/b", "/a/{id}/b"),
            ("/{user_id}", "/{user_id}"),
            ("/%7Bid%7D", "/%7Bid%7D"),
            ("/%2A", "/%2A"),
            ("/é", "/%C3%A9"),
            ("/a b", "/a%20b"),
        ] {
            let pattern = Pattern::parse(text).expect(text);
            assert_eq!(pattern.to_string(), shown, "{text}");
            assert_eq!(Pattern::parse(shown), Ok(pattern));
        }
        for (text, message) in [
            ("a", "0: this is no path"),
            ("", "0: this is no path"),
            ("*", "0: this is no path"),
            ("/a?b", "2: a query is no part of a path"),
            ("/a/{}", "3: `{}` has no name"),
            ("/a/{id", "3: a brace that does not stand for one segment"),
            ("/a/x{id}", "4: a brace that does not stand for one segment"),
            ("/a/{i-d}", "3: a brace that does not stand for one segment"),
            ("/a/{a}{b}", "3: a brace that does not stand for one segment"),
            ("/a/id}", "5: a brace that does not stand for one segment"),
            ("/a/../b", "3: a segment that means another one"),
            ("/a%2Fb", "2: %2F in a path"),
            ("/a\\b", "2: '\\\\' in a path"),
            ("/a/*", "3: `*` in the path of a route"),
            ("/a*", "2: `*` in the path of a route"),
        ] {
            let Misread { at, message: found, accepted: _ } = Pattern::parse(text).expect_err(text);
            assert_eq!(format!("{at}: {found}"), message, "{text}");
        }
        assert_eq!(Pattern::parse(&format!("/{}", "a".repeat(1024))).expect_err("too long").at, 1024);
    }

    #[test]
    fn a_star_at_the_end_reaches_beneath() {
        let reach = |text: &str| Pattern::parse_reach(text).map(|(pattern, reach)| (pattern.to_string(), reach));
        assert_eq!(reach("/a"), Ok(("/a".into(), Reach::Exact)));
        assert_eq!(reach("/a/*"), Ok(("/a".into(), Reach::Beneath)));
        assert_eq!(reach("/*"), Ok(("/".into(), Reach::Beneath)));
        assert_eq!(reach("/a/*/b").expect_err("inside").at, 3);
        assert_eq!(reach("/a/*/*").expect_err("twice").at, 3);
    }

    #[test]
    fn names_of_segments_tell_no_patterns_apart() {
        let identity = |text: &str| Pattern::parse(text).expect(text).identity();
        assert_eq!(identity("/a/{id}"), identity("/a/{other}"));
        assert_ne!(identity("/a/{id}"), identity("/a/id"));
        assert_ne!(identity("/a/{id}"), identity("/a/%7B%7D"));
    }

    #[test]
    fn the_longer_goes_before_and_a_literal_before_any_segment_from_the_left() {
        let mut patterns: Vec<_> = ["/", "/{a}/{b}", "/{a}/x", "/x", "/x/{b}", "/x/x", "/{a}/x/y"]
            .map(|text| Pattern::parse(text).expect(text))
            .into();
        patterns.sort_by(Pattern::precedence);
        let sorted: Vec<_> = patterns.iter().map(Pattern::to_string).collect();
        assert_eq!(sorted, ["/{a}/x/y", "/x/x", "/x/{b}", "/{a}/x", "/{a}/{b}", "/x", "/"]);
    }

    proptest! {
        #[test]
        fn a_shown_path_reads_back_as_itself(path in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..6), 0..5)) {
            let shown = show(&path).to_string();
            match segments(shown.as_bytes()) {
                Ok(read) => prop_assert_eq!(read, path),
                Err(_) => {
                    let unclear = |segment: &Vec<u8>| {
                        let wrong = |byte: &u8| matches!(*byte, b'/' | b'\\' | 0..=0x1f | 0x7f);
                        segment == b"." || segment == b".." || segment.iter().any(wrong)
                    };
                    prop_assert!(path.iter().any(unclear), "{:?}", path);
                }
            }
        }

        #[test]
        fn no_target_makes_the_reading_panic(target in prop::collection::vec(prop::sample::select(&b"/%2e5Cf.?*:#\\a{}"[..]), 0..24)) {
            let _ = segments(&target);
            let _ = Pattern::parse(&String::from_utf8_lossy(&target));
            let _ = Pattern::parse_reach(&String::from_utf8_lossy(&target));
        }
    }
}
