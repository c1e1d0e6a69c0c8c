//! What an examination finds: one sentence each, with a place and a next step.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How bad a finding is, worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Requests can reach the application without being judged.
    Bypass,
    /// Something could not be looked at, or a start would fail for it.
    Error,
    /// Requests may be judged wrongly, refused or missed under conditions that cannot be seen from here.
    Warning,
    /// Worth knowing.
    Note,
    /// Looked at, and good.
    Ok,
}

/// One result of an examination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// A word for this kind of finding; stable.
    pub check: String,
    /// What is the case.
    pub what: String,
    /// Where: an interface, a port, a path, a namespace.
    #[serde(rename = "where")]
    pub place: String,
    /// What to do next; empty where there is nothing to do.
    pub next: String,
    /// Whether this is a look that was not permitted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub denied: bool,
}

impl Level {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
            Self::Ok => "ok",
        }
    }
}

impl Finding {
    pub(super) fn new(
        level: Level,
        check: &str,
        place: impl Into<String>,
        what: impl Into<String>,
        next: impl Into<String>,
    ) -> Self {
        let (check, place, what, next) = (check.to_owned(), place.into(), what.into(), next.into());
        Self { level, check, what, place, next, denied: false }
    }

    /// Something that is as it should be.
    pub(super) fn ok(check: &str, place: impl Into<String>, what: impl Into<String>) -> Self {
        Self::new(Level::Ok, check, place, what, "")
    }

    /// A look that failed.
    pub(super) fn failed(check: &str, place: impl Into<String>, what: &str, error: &std::io::Error) -> Self {
        let denied = error.kind() == std::io::ErrorKind::PermissionDenied;
        let next = if denied { "run it as root" } else { "look at it by hand" };
        Self { denied, ..Self::new(Level::Error, check, place, format!("{what}: {error}"), next) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { level: _, check: _, what, place, next, denied: _ } = self;
        write!(formatter, "{place}: {what}")?;
        if next.is_empty() { Ok(()) } else { write!(formatter, " ({next})") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_comes_first() {
        let mut levels = [Level::Ok, Level::Warning, Level::Bypass, Level::Note, Level::Error];
        levels.sort();
        assert_eq!(levels.map(Level::as_str), ["bypass", "error", "warning", "note", "ok"]);
    }

    #[test]
    fn a_look_that_is_not_permitted_says_so() {
        let error = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let finding = Finding::failed("processes", "/proc", "processes cannot be seen", &error);
        assert_eq!((finding.level, finding.denied), (Level::Error, true));
        assert!(finding.next.contains("root"));
        let other = Finding::failed("processes", "/proc", "no", &std::io::Error::from(std::io::ErrorKind::NotFound));
        assert!(!other.denied);
    }
}
