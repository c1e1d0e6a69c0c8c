//! The bytes that a step sends: requests by name, slices of them, text, and what is put together of these.
//!
//! `keyed`, `unkeyed` and `unknown` are requests of the same length that differ only where the key stands, so that one
//! can take the other's place in the sequence space. Every script has its own path and key.

use anyhow::{Context, Result, bail};

/// What the requests of one run of a script are made of.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// The path below which the run's requests lie, without a slash at its end.
    pub(crate) path: String,
    /// Its registered key.
    pub(crate) key: String,
    /// A key of the same length that is not registered.
    pub(crate) unknown: String,
}

/// An expression over bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Data(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    source: Source,
    from: Option<Bound>,
    to: Option<Bound>,
    times: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    Keyed,
    Unkeyed,
    Unknown,
    Post,
    PostUnkeyed,
    Text(String),
}

/// A place in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bound {
    /// Bytes from the beginning, or, if negative, from the end.
    At(isize),
    /// Where the line of the key begins.
    Line,
    /// Where the key begins.
    Value,
    /// Where the empty line's CRLF and the one before it begin.
    Blank,
}

/// Bytes of the body of `post`.
const BODY: usize = 64;

impl Data {
    /// Reads `A+B+…`, each a name or a quoted text, with an optional `[FROM:TO]` and an optional `*TIMES`.
    ///
    /// # Errors
    /// When it is not understood.
    pub(crate) fn read(text: &str) -> Result<Self> {
        split(text, '+').iter().map(|part| Part::read(part)).collect::<Result<_>>().map(Self)
    }

    /// The bytes.
    ///
    /// # Errors
    /// When a slice lies outside of its request.
    pub(crate) fn bytes(&self, identity: &Identity) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for part in &self.0 {
            bytes.extend(part.bytes(identity)?);
        }
        Ok(bytes)
    }
}

impl Part {
    fn read(text: &str) -> Result<Self> {
        let (text, times) = match text.rsplit_once('*') {
            Some((before, times)) if !times.contains('"') => (before, times.parse()?),
            _ => (text, 1),
        };
        if let Some(quoted) = text.strip_prefix('"') {
            let inside = quoted.strip_suffix('"').context("a text is not closed")?;
            return Ok(Self { source: Source::Text(inside.to_owned()), from: None, to: None, times });
        }
        let (name, slice) = match text.split_once('[') {
            Some((name, slice)) => (name, Some(slice.strip_suffix(']').context("a slice is not closed")?)),
            None => (text, None),
        };
        let source = match name {
            "keyed" => Source::Keyed,
            "unkeyed" => Source::Unkeyed,
            "unknown" => Source::Unknown,
            "post" => Source::Post,
            "unkeyed_post" => Source::PostUnkeyed,
            _ => bail!("{name:?} names no bytes"),
        };
        let (from, to) = match slice {
            Some(slice) => slice.split_once(':').context("a slice is FROM:TO")?,
            None => ("", ""),
        };
        Ok(Self { source, from: Bound::read(from)?, to: Bound::read(to)?, times })
    }

    fn bytes(&self, identity: &Identity) -> Result<Vec<u8>> {
        let Identity { path, key, unknown } = identity;
        let whole = match &self.source {
            Source::Keyed => request("GET", &format!("{path}/k"), "X-API-Key", key, ""),
            Source::Unkeyed => request("GET", &format!("{path}/u"), "X-Nothing", key, ""),
            Source::Unknown => request("GET", &format!("{path}/n"), "X-API-Key", unknown, ""),
            Source::Post => post(&format!("{path}/k"), "X-API-Key", key),
            Source::PostUnkeyed => post(&format!("{path}/u"), "X-Nothing", key),
            Source::Text(text) => unescape(&text.replace("{PATH}", path).replace("{KEY}", key))?,
        };
        let from = self.from.map_or(Ok(0), |bound| bound.place(&whole))?;
        let to = self.to.map_or(Ok(whole.len()), |bound| bound.place(&whole))?;
        Ok(whole.get(from..to).context("a slice lies outside of its request")?.repeat(self.times))
    }
}

impl Bound {
    fn read(text: &str) -> Result<Option<Self>> {
        Ok(Some(match text {
            "" => return Ok(None),
            "line" => Self::Line,
            "value" => Self::Value,
            "blank" => Self::Blank,
            number => Self::At(number.parse().with_context(|| format!("{number:?} is no place"))?),
        }))
    }

    fn place(self, bytes: &[u8]) -> Result<usize> {
        let find = |wanted: &[u8]| bytes.windows(wanted.len()).position(|window| window == wanted);
        let line = || find(b"\r\nX-").map(|at| at + 2).context("no line of a key");
        match self {
            Self::At(at) => {
                let at = if at < 0 { bytes.len().checked_add_signed(at) } else { usize::try_from(at).ok() };
                at.context("a place before the beginning")
            }
            Self::Line => line(),
            Self::Value => Ok(line()? + "X-API-Key: ".len()),
            Self::Blank => find(b"\r\n\r\n").context("no empty line"),
        }
    }
}

fn request(method: &str, path: &str, name: &str, value: &str, more: &str) -> Vec<u8> {
    format!("{method} {path} HTTP/1.1\r\nHost: t\r\n{name}: {value}\r\n{more}\r\n").into_bytes()
}

fn post(path: &str, name: &str, value: &str) -> Vec<u8> {
    let mut bytes = request("POST", path, name, value, &format!("Content-Length: {BODY}\r\n"));
    bytes.extend([b'b'; BODY]);
    bytes
}

/// Splits at `separator` outside of quotes.
pub(crate) fn split(text: &str, separator: char) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut quoted = false;
    for letter in text.chars() {
        quoted ^= letter == '"';
        match parts.last_mut() {
            Some(part) if letter != separator || quoted => part.push(letter),
            _ => parts.push(String::new()),
        }
    }
    parts
}

fn unescape(text: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        bytes.push(match (letter, letter == '\\') {
            (_, true) => match letters.next() {
                Some('r') => b'\r',
                Some('n') => b'\n',
                Some('x') => {
                    let digits: String = letters.by_ref().take(2).collect();
                    u8::from_str_radix(&digits, 16)?
                }
                other => bail!("{other:?} escapes nothing"),
            },
            (letter, false) => u8::try_from(letter).context("a letter above U+00FF")?,
        });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::{Data, Identity};

    fn bytes(text: &str) -> Vec<u8> {
        let identity = Identity { path: "/t/x".into(), key: "key_0000".into(), unknown: "none_000".into() };
        Data::read(text).and_then(|data| data.bytes(&identity)).expect("data")
    }

    #[test]
    fn keyed_and_other_requests_are_of_one_length() {
        assert_eq!(bytes("keyed").len(), bytes("unkeyed").len());
        assert_eq!(bytes("keyed").len(), bytes("unknown").len());
        assert_eq!(bytes("keyed[:value]").len(), bytes("unkeyed[:value]").len());
    }

    #[test]
    fn slices_and_sums_are_read() {
        assert_eq!(bytes("keyed[:value]+keyed[value:]"), bytes("keyed"));
        assert_eq!(bytes("keyed[blank:]"), b"\r\n\r\n");
        assert_eq!(bytes("keyed[:-4]+\"\\r\\n\\x0d\\x0a\""), bytes("keyed"));
        assert_eq!(bytes("\"a + b\"*2"), b"a + ba + b");
        assert_eq!(bytes("keyed[line:value]"), b"X-API-Key: ");
    }
}
