//! The corpus of requests, `corpus/http/*.toml`: byte streams, what becomes of each, and why.
//!
//! A stream's text is Latin-1, so that `\u00e9` is the byte 0xE9; `{KEY}` stands for [`KEY`] and `{a*100}` for a
//! hundred `a`. `expect` says what the parser makes of it, request by request; what a server may execute of it behind
//! the enforcer follows from that and from [`REGISTERED`]: see [`Case::allowed`].

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use enforcer_ebpf::verdict::{Malformation, Reason};
use serde::Deserialize;

use crate::folder;

/// The key that `{KEY}` in a stream and `key` in its outcome mean.
pub const KEY: &str = "live_0123456789abcdefghijklmnop";

/// The keys that are registered where the corpus meets real servers, and the most requests that each allows. Any other
/// key in a stream is nobody's.
pub const REGISTERED: [(&str, usize); 5] = [
    (KEY, usize::MAX),
    ("other_key_1", usize::MAX),
    ("other_key_2", usize::MAX),
    ("other_key_3", usize::MAX),
    ("twice_key_1", 2),
];

/// What becomes of one request of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// A whole head with this key.
    Keyed(String),
    /// A whole head without a key.
    Unkeyed,
    /// Refused here; nothing after it is read. A kind exactly for [`Reason::Malformed`].
    Refused(Reason, Option<Malformation>),
}

/// One case of the corpus.
#[derive(Clone, Debug)]
pub struct Case {
    /// The file and the case's name.
    pub name: String,
    /// The client's bytes on one connection.
    pub stream: Vec<u8>,
    /// The requests of the stream, in order. A head that the stream does not end is not among them.
    pub expected: Vec<Expected>,
    /// Whether the stream ends between two requests, its last body whole.
    pub whole: bool,
    /// Why the case is here.
    pub why: String,
}

impl Case {
    /// The keys of the requests that may be executed, in order: those up to the first that is refused by the parser. Behind
    /// one that is refused for its key or for its key's limit the connection may go on.
    #[must_use]
    pub fn allowed(&self) -> Vec<&'static str> {
        let mut allowed: Vec<&'static str> = Vec::new();
        for expected in &self.expected {
            let key = match expected {
                Expected::Keyed(key) => key,
                Expected::Unkeyed => continue,
                _ => break,
            };
            let Some((key, most)) = REGISTERED.into_iter().find(|(known, _)| known == key) else { continue };
            if allowed.iter().filter(|earlier| **earlier == key).count() >= most {
                continue;
            }
            allowed.push(key);
        }
        allowed
    }

    /// Whether nothing of the stream is refused.
    #[must_use]
    pub fn is_legitimate(&self) -> bool {
        self.allowed().len() == self.expected.len()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    case: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    why: String,
    stream: String,
    expect: Vec<String>,
    #[serde(default)]
    open: bool,
}

/// All cases of the corpus, by file and place.
///
/// # Errors
/// When a file cannot be read, or a case is not understood; names both.
pub fn load() -> Result<Vec<Case>> {
    let mut paths: Vec<_> = fs::read_dir(folder().join("corpus/http"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<_>>()?;
    paths.sort();
    let mut cases = Vec::new();
    for path in paths {
        let file = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path)?;
        let read: File = toml::from_str(&text).with_context(|| format!("in corpus file {file}"))?;
        for entry in read.case {
            let name = format!("{file}: {}", entry.name);
            ensure!(!entry.why.is_empty(), "{name}: gives no reason");
            cases.push(read_case(&name, &entry).with_context(|| format!("in corpus case {name}"))?);
        }
    }
    Ok(cases)
}

fn read_case(name: &str, entry: &Entry) -> Result<Case> {
    let expected = entry.expect.iter().map(|word| read_expected(word)).collect::<Result<Vec<_>>>()?;
    let refused = expected.iter().position(|expected| matches!(expected, Expected::Refused(..)));
    ensure!(refused.is_none_or(|index| index + 1 == expected.len()), "something is expected after a refusal");
    let whole = !entry.open && refused.is_none();
    Ok(Case { name: name.to_owned(), stream: bytes(&entry.stream)?, expected, whole, why: entry.why.clone() })
}

fn read_expected(word: &str) -> Result<Expected> {
    let (word, detail) = word.split_once(' ').map_or((word, None), |(word, detail)| (word, Some(detail)));
    Ok(match (word, detail) {
        ("key", None) => Expected::Keyed(KEY.to_owned()),
        ("key", Some(other)) => Expected::Keyed(other.to_owned()),
        ("unkeyed", None) => Expected::Unkeyed,
        ("malformed", Some(kind)) => {
            let kind = Malformation::ALL.iter().find(|known| known.as_str() == kind).context("no such malformation")?;
            Expected::Refused(Reason::Malformed, Some(*kind))
        }
        (reason, None) => {
            let reason = Reason::ALL.iter().find(|known| known.as_str() == reason).context("no such reason")?;
            Expected::Refused(*reason, None)
        }
        _ => bail!("{word:?} is no outcome"),
    })
}

/// The bytes that a stream's text means.
pub(crate) fn bytes(text: &str) -> Result<Vec<u8>> {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        let (inside, after) = after.split_once('}').context("a brace is not closed")?;
        expanded.push_str(before);
        match inside.rsplit_once('*') {
            Some((repeated, times)) => expanded.push_str(&repeated.repeat(times.parse()?)),
            None if inside == "KEY" => expanded.push_str(KEY),
            None => bail!("{{{inside}}} is neither KEY nor a repetition"),
        }
        rest = after;
    }
    expanded.push_str(rest);
    expanded.chars().map(|letter| u8::try_from(u32::from(letter)).context("a letter above U+00FF")).collect()
}
