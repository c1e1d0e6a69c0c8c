//! Names of principals, and how a command says which keys it means.
//!
//! A name is what people, metrics and logs call a principal; it is never a key. A [`Selector`] picks keys by their
//! principal's name or by their id, the first hex digits of their tag.

use std::fmt;

use crate::credential;

/// What a name may be, for help texts and refusals.
pub const ACCEPTED: &str = "1 to 64 of A-Z a-z 0-9 . _ -, the first a letter or digit";

/// Shortest and longest key id in hex digits: the id that listings show, and the whole tag.
const ID_DIGITS: std::ops::RangeInclusive<usize> = 8..=32;

/// Why a name was refused. The name is not quoted: where a key was given in its place, it would be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Not of the accepted form.
    #[error("this is not a name")]
    Form,
    /// A key in the place of a name.
    #[error("this looks like a key, not like a name")]
    LooksLikeKey,
}

/// Checks a principal's name.
///
/// # Errors
/// It is not of the form [`ACCEPTED`], or it is a key that the enforcer made.
pub fn check(name: &str) -> Result<(), Invalid> {
    let bytes = name.as_bytes();
    let well_formed = (1..=64).contains(&bytes.len())
        && bytes[0].is_ascii_alphanumeric()
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte));
    if !well_formed {
        return Err(Invalid::Form);
    }
    if credential::is_generated(name.as_bytes()) {
        return Err(Invalid::LooksLikeKey);
    }
    Ok(())
}

/// Which keys a command is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    /// All keys of the principal of this name.
    pub name: Option<String>,
    /// The key whose tag begins with these lower-case hex digits.
    pub id: Option<String>,
}

impl Selector {
    /// What a selector may be, for help texts and refusals.
    pub const ACCEPTED: &'static str = "a principal's name, or a key's id of 8 to 32 hex digits; name:X or id:X where \
                                        X could be either";

    /// Reads `NAME`, `ID`, `name:NAME` or `id:ID`. A text that could be either is both.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let name = |text: &str| check(text).is_ok().then(|| text.to_owned());
        let id = |text: &str| {
            let hex = ID_DIGITS.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            hex.then(|| text.to_ascii_lowercase())
        };
        let selector = match text.split_once(':') {
            Some(("name", rest)) => Self { name: name(rest), id: None },
            Some(("id", rest)) => Self { name: None, id: id(rest) },
            Some(_) => return None,
            None => Self { name: name(text), id: id(text) },
        };
        (selector.name.is_some() || selector.id.is_some()).then_some(selector)
    }
}

impl Selector {
    /// The first and the last tag, as [`credential::tag_bytes`] of it, that begins with the id; `None` without one.
    #[must_use]
    pub fn tags(&self) -> Option<([u8; 16], [u8; 16])> {
        let id = self.id.as_ref()?;
        let padded = |digit: char| {
            let digits: String = id.chars().chain(std::iter::repeat(digit)).take(32).collect();
            Some(u128::from_str_radix(&digits, 16).ok()?.to_be_bytes())
        };
        Some((padded('0')?, padded('f')?))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.name, &self.id) {
            (Some(name), Some(_)) => write!(f, "name or id `{name}`"),
            (Some(name), None) => write!(f, "name `{name}`"),
            (None, id) => write!(f, "id `{}`", id.as_deref().unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_and_refuses_names_by_their_form() {
        for name in ["a", "alice", "9lives", "team.a_b-c", &"x".repeat(64)] {
            assert_eq!(check(name), Ok(()), "{name}");
        }
        for name in ["", ".a", "-a", "_a", "a b", "a/b", "é", "a\n", &"x".repeat(65)] {
            assert_eq!(check(name), Err(Invalid::Form), "{name:?}");
        }
    }

    #[test]
    fn refuses_a_key_in_the_place_of_a_name() {
        let key = credential::generate().expect("random bytes");
        assert_eq!(check(&key), Err(Invalid::LooksLikeKey));
    }

    #[test]
    fn an_id_is_a_range_of_tags() {
        let tags = |text: &str| Selector::parse(text).and_then(|selector| selector.tags());
        let (first, last) = tags("id:00010203f").expect("an id");
        assert_eq!((&first[..6], &last[..6]), (&[0, 1, 2, 3, 0xf0, 0][..], &[0, 1, 2, 3, 0xff, 0xff][..]));
        let whole = "000102030405060708090a0b0c0d0e0f";
        let tag: [u8; 16] = std::array::from_fn(|index| index as u8);
        assert_eq!(tags(whole), Some((tag, tag)));
        assert_eq!(tags("name:deadbeef"), None);
    }

    #[test]
    fn a_selector_is_a_name_or_an_id_or_both() {
        let both = Selector::parse("DEADBEEF").expect("both");
        assert_eq!((both.name.as_deref(), both.id.as_deref()), (Some("DEADBEEF"), Some("deadbeef")));
        let name = Selector::parse("alice").expect("a name");
        assert_eq!((name.name.as_deref(), name.id), (Some("alice"), None));
        assert_eq!(Selector::parse("name:deadbeef").map(|selector| selector.id), Some(None));
        assert_eq!(Selector::parse("id:deadbeef").map(|selector| selector.name), Some(None));
        for text in ["", "id:dead", "id:nothexxx", "name:", "tag:deadbeef", "a b"] {
            assert_eq!(Selector::parse(text), None, "{text}");
        }
    }
}
