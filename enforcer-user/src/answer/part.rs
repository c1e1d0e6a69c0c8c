//! What an operator sets in answers. None of it can end a line, or say anything about where the answer ends.

use std::str::FromStr;

use enforcer_ebpf::abi::Value;

use super::template::{self, Piece, Unknown};

/// Fields that say where an answer ends or when it was made, or that have a setting of their own.
const TAKEN: [&str; 6] = ["connection", "content-length", "content-type", "date", "retry-after", "transfer-encoding"];

/// Why a text cannot stand in an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It is not of this form.
    #[error("{found:?} is not accepted here; accepted: {accepted}")]
    Form {
        /// The text.
        found: String,
        /// The form.
        accepted: &'static str,
    },
    /// A field that is not the operator's to set.
    #[error("{0} is set by the enforcer itself")]
    Taken(String),
    /// A field whose value names what stands for nothing.
    #[error(transparent)]
    Unknown(#[from] Unknown),
    /// A field whose value names what is known only in a 429.
    #[error("what it fills in is known only where a limit is used up; accepted here: {{date}}, and {{{{ for a brace")]
    OnlyOverLimit,
}

/// The realm of a challenge (RFC 9110 §11.5), as it stands between quotes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Realm(String);

/// A media type (RFC 9110 §8.3.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaType(String);

/// A field line without its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field(Vec<Piece>);

impl Realm {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Realm {
    fn default() -> Self {
        Self("api".to_owned())
    }
}

impl FromStr for Realm {
    type Err = Unfit;

    fn from_str(text: &str) -> Result<Self, Unfit> {
        let accepted = "visible ASCII characters and spaces, without `\"` and `\\`";
        let fits = !text.is_empty() && is_value(text) && !text.contains(['"', '\\']);
        if fits { Ok(Self(text.to_owned())) } else { Err(Unfit::form(text, accepted)) }
    }
}

impl MediaType {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for MediaType {
    type Err = Unfit;

    fn from_str(text: &str) -> Result<Self, Unfit> {
        let accepted = "a media type such as application/json or text/plain; charset=utf-8";
        let essence = text.split_once(';').map_or(text, |(essence, _)| essence);
        let fits = essence.split_once('/').is_some_and(|(main, sub)| is_token(main) && is_token(sub)) && is_value(text);
        if fits { Ok(Self(text.to_owned())) } else { Err(Unfit::form(text, accepted)) }
    }
}

impl Field {
    /// Reads `Name: value`. In the value, `{name}` stands for what is filled in and `{{` for a brace; besides the date
    /// that is known only of those who are over their limit, and so is an error where `over_limit` is not set.
    ///
    /// # Errors
    /// See [`Unfit`].
    pub fn parse(text: &str, over_limit: bool) -> Result<Self, Unfit> {
        let accepted = "`Name: value`, the name of letters, digits and !#$%&'*+-.^_`|~, the value of visible ASCII \
                        characters and spaces";
        let parts = text.split_once(':').map(|(name, value)| (name, value.trim_matches(' ')));
        let Some((name, value)) = parts.filter(|(name, value)| is_token(name) && is_value(value)) else {
            return Err(Unfit::form(text, accepted));
        };
        if TAKEN.iter().any(|taken| name.eq_ignore_ascii_case(taken)) {
            return Err(Unfit::Taken(name.to_owned()));
        }
        let mut pieces = vec![Piece::Text(format!("{name}: "))];
        pieces.extend(template::parse(value)?);
        let is_known = |piece: &Piece| over_limit || matches!(piece, Piece::Text(_) | Piece::Value(Value::Date));
        if pieces.iter().all(is_known) { Ok(Self(pieces)) } else { Err(Unfit::OnlyOverLimit) }
    }

    pub(super) fn pieces(&self) -> &[Piece] {
        &self.0
    }
}

impl Unfit {
    fn form(found: &str, accepted: &'static str) -> Self {
        Self::Form { found: found.to_owned(), accepted }
    }
}

/// Whether it is a token (RFC 9110 §5.6.2).
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// Whether every recipient reads it alike in a field's value.
fn is_value(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_realm_cannot_end_its_quotes_or_its_line() {
        for right in ["api", "the shop's API {v2}", "a/b;c"] {
            assert_eq!(right.parse::<Realm>().expect(right).as_str(), right);
        }
        for wrong in ["", "a\"b", "a\\b", "a\r\nX: y", "a\tb", "a\u{e9}", "\u{7f}"] {
            let error = wrong.parse::<Realm>().expect_err(wrong).to_string();
            assert!(error.starts_with(&format!("{wrong:?} is not accepted here; accepted: visible ASCII")), "{error}");
        }
    }

    #[test]
    fn a_media_type_has_two_tokens_and_may_have_parameters() {
        for right in ["text/plain", "application/problem+json", "text/plain; charset=utf-8", "a/b;c=\"d\""] {
            assert_eq!(right.parse::<MediaType>().expect(right).as_str(), right);
        }
        for wrong in ["", "text", "text/", "/plain", "text/pl ain", "text/plain\r\nX: y", "text/plain; a=\n", "a/b/c"] {
            assert!(wrong.parse::<MediaType>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_field_is_one_line_of_a_name_and_a_value() {
        for right in
            ["X: y", "X:y", "Access-Control-Allow-Origin: *", "X-Empty:", "X: {\"a\":1}", "!#$%&'*+-.^_`|~: a:b"]
        {
            assert!(Field::parse(right, false).is_ok(), "{right}");
        }
        for wrong in [
            "",
            "X",
            ": y",
            "X : y",
            " X: y",
            "X: y\r\nZ: w",
            "X: y\n",
            "X: a\0b",
            "X: a\tb",
            "X: \u{e9}",
            "X\u{e9}: y",
        ] {
            assert!(matches!(Field::parse(wrong, true), Err(Unfit::Form { .. })), "{wrong:?}");
        }
    }

    #[test]
    fn what_frames_and_dates_an_answer_cannot_be_set() {
        for name in ["Connection", "content-length", "CONTENT-TYPE", "Date", "Retry-After", "Transfer-Encoding"] {
            let error = Field::parse(&format!("{name}: 1"), true).expect_err(name);
            assert_eq!(error.to_string(), format!("{name} is set by the enforcer itself"));
        }
    }

    #[test]
    fn what_is_filled_in_must_be_known_there() {
        assert!(Field::parse("X-At: {date} {{quota}", false).is_ok());
        assert!(Field::parse("X-Quota: {quota}/{window}", true).is_ok());
        assert_eq!(Field::parse("X-Quota: {quota}", false), Err(Unfit::OnlyOverLimit));
        assert!(matches!(Field::parse("X: {quotas}", true), Err(Unfit::Unknown(_))));
    }
}
