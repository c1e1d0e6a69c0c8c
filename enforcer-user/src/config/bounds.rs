//! How long a request head may take, and how many may be unfinished at once.

use std::borrow::Cow;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use jiff::SignedDuration;

/// Longest time that a connection may send nothing at first, and that a request head may take from its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadTimeout(Duration);

/// Most connections of one source that may wait for their first byte or within a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenHeads(u32);

/// A value that is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is not accepted here; accepted: {accepted}")]
pub struct OutOfBounds {
    found: String,
    accepted: Cow<'static, str>,
}

impl OutOfBounds {
    pub(super) fn new(found: impl fmt::Display, accepted: impl Into<Cow<'static, str>>) -> Self {
        Self { found: found.to_string(), accepted: accepted.into() }
    }
}

impl HeadTimeout {
    /// The time.
    #[must_use]
    pub const fn duration(self) -> Duration {
        self.0
    }

    /// The time in ns, as the kernel reads it.
    #[must_use]
    pub const fn ns(self) -> u64 {
        // An hour at most.
        self.0.as_nanos() as u64
    }
}

impl Default for HeadTimeout {
    fn default() -> Self {
        Self(Duration::from_secs(30))
    }
}

impl FromStr for HeadTimeout {
    type Err = OutOfBounds;

    fn from_str(text: &str) -> Result<Self, OutOfBounds> {
        let accepted = Duration::from_secs(1)..=Duration::from_secs(3600);
        time(text, accepted, "a time from 1s to 1h, such as 10s, 1m 30s or 2500ms").map(Self)
    }
}

impl fmt::Display for HeadTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(self.0, f)
    }
}

/// A time with its unit, within a range that `words` describe.
pub(crate) fn time(
    text: &str,
    accepted: RangeInclusive<Duration>,
    words: &'static str,
) -> Result<Duration, OutOfBounds> {
    let duration = text.parse::<SignedDuration>().ok().and_then(|duration| Duration::try_from(duration).ok());
    duration.filter(|duration| accepted.contains(duration)).ok_or_else(|| OutOfBounds::new(text, words))
}

/// Writes a time as [`time`] reads it.
pub(crate) fn show(duration: Duration, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match SignedDuration::try_from(duration) {
        Ok(duration) => write!(f, "{duration:#}"),
        Err(_) => write!(f, "{}s", duration.as_secs()),
    }
}

impl OpenHeads {
    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl Default for OpenHeads {
    fn default() -> Self {
        Self(64)
    }
}

impl TryFrom<u64> for OpenHeads {
    type Error = OutOfBounds;

    fn try_from(number: u64) -> Result<Self, OutOfBounds> {
        match number {
            1..=1_000_000 => Ok(Self(number as u32)),
            _ => Err(OutOfBounds::new(number, "1 to 1000000 connections")),
        }
    }
}

impl FromStr for OpenHeads {
    type Err = OutOfBounds;

    fn from_str(text: &str) -> Result<Self, OutOfBounds> {
        match text.parse::<u64>() {
            Ok(number) => Self::try_from(number),
            Err(_) => Err(OutOfBounds::new(text, "1 to 1000000 connections")),
        }
    }
}

impl fmt::Display for OpenHeads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_with_its_unit_and_read_as_it_is_shown() {
        for (text, ms, shown) in [
            ("10s", 10_000, "10s"),
            ("2500ms", 2_500, "2s 500ms"),
            ("1m 30s", 90_000, "1m 30s"),
            ("1h", 3_600_000, "1h"),
            ("1 second", 1_000, "1s"),
        ] {
            let timeout: HeadTimeout = text.parse().expect(text);
            assert_eq!(timeout.duration(), Duration::from_millis(ms), "{text}");
            assert_eq!(timeout.to_string(), shown);
            assert_eq!(shown.parse(), Ok(timeout));
        }
        assert_eq!("30s".parse(), Ok(HeadTimeout::default()));
        assert_eq!(HeadTimeout::default().ns(), 30_000_000_000);
    }

    #[test]
    fn a_time_without_a_unit_or_out_of_bounds_is_refused() {
        for wrong in ["", "10", "0s", "999ms", "3601s", "1d", "-5s", "soon", "5 s s"] {
            let error = wrong.parse::<HeadTimeout>().expect_err(wrong).to_string();
            assert_eq!(
                error,
                format!(
                    "{wrong:?} is not accepted here; accepted: a time from 1s to 1h, such as 10s, 1m 30s or 2500ms"
                )
            );
        }
    }

    #[test]
    fn a_number_of_heads_is_at_least_one() {
        assert_eq!("64".parse(), Ok(OpenHeads::default()));
        assert_eq!(OpenHeads::try_from(1_000_000).map(OpenHeads::get), Ok(1_000_000));
        for wrong in ["0", "1000001", "-1", "many", ""] {
            assert!(wrong.parse::<OpenHeads>().is_err(), "{wrong}");
        }
    }
}
