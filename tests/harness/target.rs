//! Request targets, `corpus/targets.toml`: which path each is, and where servers could read another.
//!
//! And the normalisation of paths once more, plainly and on the whole target at once, to hold the machine against.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::corpus::bytes;
use crate::folder;

/// One request line, and fields that could change what it means.
#[derive(Clone, Debug)]
pub struct Case {
    /// The case's name.
    pub name: String,
    /// The method.
    pub method: String,
    /// The target.
    pub target: Vec<u8>,
    /// Field lines, each with its end.
    pub fields: Vec<u8>,
    /// The segments of the path; `None` if it is refused.
    pub segments: Option<Vec<Vec<u8>>>,
    /// Why the case is here.
    pub why: String,
}

impl Case {
    /// The request on a connection that ends behind it.
    #[must_use]
    pub fn request(&self) -> Vec<u8> {
        let mut request = [self.method.as_bytes(), b" ", &self.target, b" HTTP/1.1\r\nHost: t\r\n"].concat();
        request.extend(&self.fields);
        request.extend(b"Connection: close\r\n\r\n");
        request
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
    #[serde(default = "get")]
    method: String,
    target: String,
    #[serde(default)]
    fields: String,
    path: Option<Vec<String>>,
}

fn get() -> String {
    "GET".to_owned()
}

/// All cases.
///
/// # Errors
/// When the file cannot be read, or a case is not understood.
pub fn load() -> Result<Vec<Case>> {
    let text = fs::read_to_string(folder().join("corpus/targets.toml"))?;
    let file: File = toml::from_str(&text).context("in the corpus of targets")?;
    let read = |entry: Entry| {
        ensure!(!entry.why.is_empty(), "{}: gives no reason", entry.name);
        let segments = entry.path.map(|path| path.iter().map(|text| bytes(text)).collect::<Result<_>>()).transpose()?;
        let (target, fields) = (bytes(&entry.target)?, bytes(&entry.fields)?);
        Ok(Case { name: entry.name, method: entry.method, target, fields, segments, why: entry.why })
    };
    file.case.into_iter().map(read).collect()
}

/// The segments of the path of a target that is all visible ASCII; `None` where servers may differ about them.
#[must_use]
pub fn segments(target: &[u8]) -> Option<Vec<Vec<u8>>> {
    if target == b"*" {
        return Some(vec![b"*".to_vec()]);
    }
    let path = if target.starts_with(b"/") {
        target
    } else {
        let (scheme, rest) = target.split_at_checked(7)?;
        let at = rest.iter().position(|byte| b"/?#%\\".contains(byte))?;
        if !scheme.eq_ignore_ascii_case(b"http://") || at == 0 || rest[at] != b'/' {
            return None;
        }
        &rest[at..]
    };
    let path = path.split(|byte| *byte == b'?').next()?;
    if path.contains(&b'#') || path.contains(&b'\\') {
        return None;
    }
    let mut segments = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        let segment = decoded(part)?;
        if segment == b"." || segment == b".." {
            return None;
        }
        if !segment.is_empty() {
            segments.push(segment);
        }
    }
    Some(segments)
}

fn decoded(part: &[u8]) -> Option<Vec<u8>> {
    let mut pieces = part.split(|byte| *byte == b'%');
    let mut bytes = pieces.next()?.to_vec();
    for piece in pieces {
        let digits = std::str::from_utf8(piece.get(..2)?).ok().filter(|digits| !digits.starts_with('+'))?;
        let byte = u8::from_str_radix(digits, 16).ok()?;
        if byte.is_ascii_control() || byte == b'/' || byte == b'\\' {
            return None;
        }
        bytes.push(byte);
        bytes.extend(&piece[2..]);
    }
    Some(bytes)
}
