//! The lines of `enforcer key import`: `name,key` or `name,key,limit`, blank lines and `#` comments between them.
//!
//! Every line is checked before anything is sent. A refusal names the line and the field, and never quotes either: with
//! the columns swapped, the name would be a key.

use std::collections::HashMap;

use zeroize::Zeroizing;

use crate::api::{ImportEntry, Refusal};
use crate::policy::Limits;
use crate::{credential, name};

/// The entries of a file, and where in it each stands.
#[derive(Debug, Default)]
pub(super) struct Lines {
    pub(super) entries: Vec<ImportEntry>,
    /// The line of each entry, from 1.
    pub(super) lines: Vec<usize>,
    /// What is worth a second look: line and words.
    pub(super) warnings: Vec<(usize, String)>,
}

/// What is wrong with a line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, {field}: {message}; accepted: {accepted}")]
pub(super) struct Wrong {
    line: usize,
    field: &'static str,
    message: String,
    accepted: String,
}

impl Lines {
    /// Reads a whole file. Keys that could be guessed are warned of if they are asked for (`weak`), else refused.
    pub(super) fn parse(text: &str, weak: bool) -> Result<Self, Wrong> {
        let mut parsed = Self::default();
        let mut guessable = Vec::new();
        let mut keys: HashMap<&str, usize> = HashMap::new();
        for (index, raw) in text.lines().enumerate() {
            let line = index + 1;
            let content = raw.trim();
            if content.is_empty() || content.starts_with('#') {
                continue;
            }
            let wrong =
                |field, message: String, accepted: &str| Wrong { line, field, message, accepted: accepted.to_owned() };
            let mut fields = content.splitn(3, ',').map(str::trim);
            let name = fields.next().unwrap_or_default();
            name::check(name).map_err(|error| wrong("name", error.to_string(), name::ACCEPTED))?;
            let Some(key) = fields.next() else {
                return Err(wrong("key", "there is none behind the name".into(), "name,key or name,key,limit"));
            };
            if !enforcer_ebpf::key::is_valid(key.as_bytes()) {
                let message = format!("this is no key: {} bytes", key.len());
                return Err(wrong("key", message, credential::ACCEPTED));
            }
            if let Some(first) = keys.insert(key, line) {
                return Err(wrong("key", format!("the same key stands in line {first}"), "each key once"));
            }
            let limit = fields.next().filter(|limit| !limit.is_empty());
            if let Some(Err(error)) = limit.map(str::parse::<Limits>) {
                let message = format!("column {} of the limit: {}", error.column, error.message);
                return Err(wrong("limit", message, &error.accepted));
            }
            if credential::is_mistyped(key.as_bytes()) {
                let why = "it looks like a key of the enforcer's, but its check digits are wrong: was it mistyped?";
                parsed.warnings.push((line, why.to_owned()));
            }
            let bits = credential::bits(key.as_bytes());
            if bits < credential::STRONG_BITS {
                guessable.push((line, format!("it could be guessed: it can have {bits:.0} bits at most")));
            }
            parsed.lines.push(line);
            parsed.entries.push(ImportEntry {
                name: name.to_owned(),
                key: Zeroizing::new(key.to_owned()),
                limit: limit.map(str::to_owned),
            });
        }
        match guessable.first() {
            Some((line, why)) if !weak => {
                let others = match guessable.len() - 1 {
                    0 => String::new(),
                    others => format!(", and so can those of {others} lines more"),
                };
                let message = format!("{why}{others}; --weak takes such keys all the same");
                return Err(Wrong { line: *line, field: "key", message, accepted: credential::STRONG.to_owned() });
            }
            _ => parsed.warnings.append(&mut guessable),
        }
        Ok(parsed)
    }

    /// The daemon's words about `entries[N].field`, said of the line that entry came from.
    pub(super) fn locate(&self, refusal: &Refusal) -> Option<String> {
        let (index, field) = refusal.field.as_deref()?.strip_prefix("entries[")?.split_once("].")?;
        let line = self.lines.get(index.parse::<usize>().ok()?)?;
        let accepted = refusal.accepted.as_ref().map(|accepted| format!("; accepted: {accepted}")).unwrap_or_default();
        let message = self.rename(&refusal.message);
        Some(format!("line {line}, {field}: {message}{accepted}"))
    }

    /// Replaces another entry's number in a message by its line.
    fn rename(&self, message: &str) -> String {
        let line = |index: &str| self.lines.get(index.parse::<usize>().ok()?);
        let renamed = message.split_once("entries[").and_then(|(before, rest)| {
            let (index, after) = rest.split_once(']')?;
            Some(format!("{before}line {}{after}", line(index)?))
        });
        renamed.unwrap_or_else(|| message.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names_keys_and_limits_between_comments() {
        let text = "# keys of 2024\n\nalice,correct-horse-battery-staple-7\r\n  bob , zQ8kM2vN7xR4tL9wB1yH6cJ3 , 5/second, 10/minute \n carol,another-key-entirely-of-hers,\n";
        let lines = Lines::parse(text, true).expect("lines");
        let read: Vec<_> = lines
            .entries
            .iter()
            .map(|entry| (entry.name.as_str(), entry.key.as_str(), entry.limit.as_deref()))
            .collect();
        assert_eq!(
            read,
            [
                ("alice", "correct-horse-battery-staple-7", None),
                ("bob", "zQ8kM2vN7xR4tL9wB1yH6cJ3", Some("5/second, 10/minute")),
                ("carol", "another-key-entirely-of-hers", None),
            ]
        );
        assert_eq!(lines.lines, [3, 4, 5]);
        assert!(lines.warnings.is_empty(), "{:?}", lines.warnings);
    }

    #[test]
    fn names_the_line_and_the_field_and_never_quotes_them() {
        for (text, message) in [
            ("alice", "line 1, key: there is none behind the name; accepted: name,key or name,key,limit"),
            ("\n#\nal ice,s3cret-s3cret", "line 3, name: this is not a name; accepted: 1 to 64 of"),
            ("alice,s3cret", "line 1, key: this is no key: 6 bytes; accepted: 8 to 128 visible"),
            ("alice,s3cret with blanks", "line 1, key: this is no key: 18 bytes"),
            ("a,s3cret-s3cret\nb,s3cret-s3cret", "line 2, key: the same key stands in line 1; accepted: each key once"),
            ("a,s3cret-s3cret,100/mintue", "line 1, limit: column 5 of the limit: \"mintue\" is no unit of time"),
            ("ek_s3cret+s3cret,alice", "line 1, name: this is not a name"),
        ] {
            let error = Lines::parse(text, true).expect_err(text).to_string();
            assert!(error.starts_with(message) && !error.contains("s3cret"), "{text:?}: {error}");
        }
        let swapped = format!("{},alice-of-the-team", *credential::generate().expect("random bytes"));
        let error = Lines::parse(&swapped, false).expect_err("swapped").to_string();
        assert!(error.starts_with("line 1, name: this looks like a key, not like a name"), "{error}");
    }

    #[test]
    fn weak_keys_are_refused_by_their_line_or_taken_with_a_warning() {
        let text = "alice,6f1ed002ab5595859014ebf0951522d9\n\nbob,s3cret-s3cret\ncarol,s3cret-s3cret-2\n";
        let error = Lines::parse(text, false).expect_err("weak").to_string();
        assert_eq!(
            error,
            format!(
                "line 3, key: it could be guessed: it can have 48 bits at most, and so can those of 1 lines more; --weak takes \
                 such keys all the same; accepted: {}",
                credential::STRONG
            )
        );
        let lines = Lines::parse(text, true).expect("lines");
        assert_eq!(
            (lines.entries.len(), lines.warnings.iter().map(|(line, _)| *line).collect::<Vec<_>>()),
            (3, vec![3, 4])
        );
    }

    #[test]
    fn a_mistyped_key_is_warned_of() {
        let lines = Lines::parse("alice,ek_zQ8kM2vN7xR4tL9wB1yH6cJ3zQ8kM2000000\n", false).expect("lines");
        assert!(lines.warnings[0].1.contains("check digits"), "{:?}", lines.warnings);
    }

    #[test]
    fn the_daemons_refusals_are_said_of_lines() {
        let lines = Lines::parse("# c\na,first-key-of-a\n\nb,first-key-of-b\n", true).expect("lines");
        let refusal = Refusal::of("entries[1].limit", "`b` has another limit in entries[0]: `5/second`", "one");
        assert_eq!(
            lines.locate(&refusal).as_deref(),
            Some("line 4, limit: `b` has another limit in line 2: `5/second`; accepted: one")
        );
        assert_eq!(lines.locate(&Refusal::new("no room")), None);
    }
}
