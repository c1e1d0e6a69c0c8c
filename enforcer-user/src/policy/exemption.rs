//! What an exemption may say, by a file and by a command alike.

use jiff::Timestamp;

use super::document::Exemption;
use super::method::Methods;
use super::path::{Misread, Pattern};
use crate::prefix::Prefix;

/// What is accepted as a reason.
pub(crate) const REASON: &str = "1 to 200 characters in one line";
const MAX_REASON: usize = 200;
/// Bits of the widest prefixes that are not nearly everybody: as the largest private networks have (RFC 1918, RFC 4193).
const WIDEST_IPV4: u8 = 8;
const WIDEST_IPV6: u8 = 7;

/// A word that no exemption has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}; accepted: {accepted}")]
pub struct Unfit {
    /// Which of its fields.
    pub field: &'static str,
    /// What is wrong with it.
    pub message: String,
    /// What would be right.
    pub accepted: String,
}

impl Unfit {
    fn new(field: &'static str, message: impl Into<String>, accepted: impl Into<String>) -> Self {
        Self { field, message: message.into(), accepted: accepted.into() }
    }
}

/// Whether a prefix is nearly everybody.
pub(crate) fn is_wide(prefix: &Prefix) -> bool {
    prefix.bits() < if prefix.family() == 4 { WIDEST_IPV4 } else { WIDEST_IPV6 }
}

/// Sees that sources are not nearly everybody: these would need neither key nor limit.
///
/// # Errors
/// One is.
pub(crate) fn known(sources: &[Prefix]) -> Result<(), Unfit> {
    let Some(prefix) = sources.iter().find(|prefix| is_wide(prefix)) else { return Ok(()) };
    let accepted = format!(
        "prefixes of {WIDEST_IPV4} bits and more, of IPv6 {WIDEST_IPV6}; for everybody there is [[public]], with a limit"
    );
    Err(Unfit::new("sources", format!("{prefix} is nearly everybody"), accepted))
}

/// Whether this says why an exemption is there.
pub(crate) fn is_reason(text: &str) -> bool {
    !text.trim().is_empty() && text.chars().count() <= MAX_REASON && !text.chars().any(char::is_control)
}

impl Exemption {
    /// An exemption by its words; for all methods if none is named.
    ///
    /// # Errors
    /// The first word that a file could not have either, or an end that is no time to come at `now`.
    pub fn read(
        path: &str,
        methods: &[String],
        sources: &[String],
        (now, until): (Timestamp, Timestamp),
        reason: &str,
    ) -> Result<Self, Unfit> {
        let named = Self::named(path, methods, sources)?;
        if until <= now || until.subsec_nanosecond() != 0 {
            let accepted = "a time to come in whole seconds, when the exemption ends";
            return Err(Unfit::new("until", format!("{until} is none"), accepted));
        }
        if !is_reason(reason) {
            return Err(Unfit::new("reason", "this is none", REASON));
        }
        Ok(Self { until, reason: reason.to_owned(), ..named })
    }

    /// The one of these words, by which it is told from others; without an end and a reason.
    ///
    /// # Errors
    /// As for [`Exemption::read`].
    pub fn named(path: &str, methods: &[String], sources: &[String]) -> Result<Self, Unfit> {
        let (path, reach) = Pattern::parse_reach(path).map_err(|Misread { at, message, accepted }| {
            Unfit::new("path", format!("{message}, at byte {at} of {path:?}"), accepted)
        })?;
        let mut all: Option<Methods> = None;
        for word in methods {
            let unknown = || Unfit::new("methods", format!("there is no {word:?}"), Methods::ACCEPTED);
            let one = Methods::one(word).ok_or_else(unknown)?;
            all = Some(all.map_or(one, |all| all.and(one)));
        }
        let read =
            |text: &String| Prefix::exact(text).map_err(|(message, accepted)| Unfit::new("sources", message, accepted));
        let mut sources = sources.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        sources.sort_unstable();
        sources.dedup();
        if sources.is_empty() {
            return Err(Unfit::new("sources", "there is none", Prefix::ACCEPTED));
        }
        known(&sources)?;
        let methods = all.unwrap_or(Methods::ALL);
        Ok(Self { path, reach, methods, sources, until: Timestamp::MAX, reason: String::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::document::{DEFAULT_SERVICE, Policy};
    use crate::policy::file;

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    fn read(
        path: &str,
        methods: &[&str],
        sources: &[&str],
        until: Timestamp,
        reason: &str,
    ) -> Result<Exemption, Unfit> {
        Exemption::read(path, &words(methods), &words(sources), (second(100), until), reason)
    }

    #[test]
    fn words_are_read_as_a_file_is() {
        let until = second(4_102_444_800);
        for (path, methods, sources) in [
            ("/ready", &[][..], &["10.0.0.0/8"][..]),
            ("/docs/*", &["GET", "POST"], &["2001:db8::/64", "192.0.2.7"]),
            ("/*", &["GET", "HEAD"], &["fc00::/7"]),
        ] {
            let own = read(path, methods, sources, until, "OPS-12").expect(path);
            let methods = if methods.is_empty() { String::new() } else { format!("methods = {methods:?}\n") };
            let text = format!(
                "version = 1\n[[exempt]]\npath = {path:?}\n{methods}sources = {sources:?}\nuntil = {until}\nreason = \"OPS-12\""
            );
            let Policy { mut services, .. } = file::parse("p.toml", &text).expect("a policy");
            let site = services.remove(DEFAULT_SERVICE).expect("the service");
            assert_eq!(site.exempt, [own]);
        }
    }

    #[test]
    fn what_a_file_refuses_is_refused_with_the_field() {
        let field = |path, methods, sources, until, reason| {
            read(path, methods, sources, second(until), reason).expect_err("it is refused").field
        };
        let (some, one) = (&["10.0.0.0/8"][..], &["GET"][..]);
        for path in ["ready", "/a/*/b", "/a/../b", "/a?b=c", "/%2F", ""] {
            assert_eq!(field(path, one, some, 200, "why"), "path", "{path}");
        }
        for methods in [&["get"][..], &["GET", "*"], &[""]] {
            assert_eq!(field("/", methods, some, 200, "why"), "methods", "{methods:?}");
        }
        let sources: [&[&str]; 8] = [
            &[],
            &["0.0.0.0/0"],
            &["10.0.0.0/7"],
            &["192.0.2.7", "::/6"],
            &["10.0.0.1/8"],
            &["::ffff:10.0.0.0/104"],
            &["here"],
            &[""],
        ];
        for sources in sources {
            assert_eq!(field("/", one, sources, 200, "why"), "sources", "{sources:?}");
        }
        assert_eq!(field("/", one, some, 100, "why"), "until", "it is over when it begins");
        let within = Timestamp::new(200, 1).expect("a time");
        assert_eq!(read("/", one, some, within, "why").expect_err("within a second").field, "until");
        for reason in ["", "  ", "a\nb", "a\x1b[1m", &"x".repeat(201)] {
            assert_eq!(field("/", one, some, 200, reason), "reason", "{reason:?}");
        }
    }
}
