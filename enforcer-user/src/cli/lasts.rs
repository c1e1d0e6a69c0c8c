//! Lengths and points of time, as they stand on the command line.

use std::str::FromStr;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// Longest time that is accepted.
const MOST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// A length of time up to this many seconds, which `words` say.
pub(super) fn up_to(most: u64, words: &'static str) -> impl Fn(&str) -> Result<Lasts, String> + Clone {
    let accepted = move || format!("accepted: 1s to {words} in whole seconds, such as 90s, 5m, 2h 30m");
    move |text| match text.parse::<Lasts>() {
        Ok(lasts) if lasts.seconds() <= most => Ok(lasts),
        Ok(_) => Err(format!("this is too long; {}", accepted())),
        Err(_) => Err(format!("this is no length of time; {}", accepted())),
    }
}

/// A point in time, as it stands on the command line.
pub(super) fn point(text: &str) -> Result<Timestamp, String> {
    let accepted = "a time with its offset, such as 2027-01-01T00:00:00Z or 2027-01-01T09:30:00+02:00";
    text.parse().map_err(|_| format!("this is no point in time; accepted: {accepted}"))
}

/// A length of time in whole seconds, 1 s to ten years, such as `90s`, `2h 30m` or `14d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lasts(pub(super) SignedDuration);

/// A text that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no length of time; accepted: 1s to 3650d in whole seconds, such as 90s, 5m, 2h 30m, 14d")]
pub(super) struct NotATime;

impl Lasts {
    /// Whole seconds.
    pub(super) fn seconds(self) -> u64 {
        self.0.unsigned_abs().as_secs()
    }
}

impl FromStr for Lasts {
    type Err = NotATime;

    fn from_str(text: &str) -> Result<Self, NotATime> {
        let mut total = SignedDuration::ZERO;
        for part in text.split_whitespace() {
            let part = match part.strip_suffix('d').map(str::parse::<i64>) {
                Some(Ok(days)) => SignedDuration::from_secs(days.checked_mul(86_400).ok_or(NotATime)?),
                _ => part.parse::<SignedDuration>().map_err(|_| NotATime)?,
            };
            total = total.checked_add(part).ok_or(NotATime)?;
        }
        let is_whole = total.subsec_nanos() == 0;
        if is_whole && total >= SignedDuration::from_secs(1) && total.unsigned_abs() <= MOST {
            Ok(Self(total))
        } else {
            Err(NotATime)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_accepted_is_said_as_far_as_it_goes() {
        let day = up_to(86_400, "24h");
        assert_eq!(day("24h").map(Lasts::seconds), Ok(86_400));
        for (text, said) in [("25h", "too long"), ("0s", "no length of time"), ("soon", "no length of time")] {
            let error = day(text).expect_err(text);
            assert!(error.contains(said) && error.contains("1s to 24h"), "{error}");
        }
        assert_eq!(point("1970-01-01T01:00:00+01:00"), Ok(Timestamp::UNIX_EPOCH));
        for text in ["tomorrow", "2027-01-01", "2027-01-01T00:00:00"] {
            assert!(point(text).expect_err(text).contains("this is no point in time; accepted: a time with"), "{text}");
        }
    }

    #[test]
    fn times_are_whole_seconds() {
        for (text, seconds) in [("90s", 90), ("5m", 300), ("2h 30m", 9_000), ("2h30m", 9_000), ("14d", 14 * 86_400)] {
            assert_eq!(text.parse::<Lasts>().map(Lasts::seconds), Ok(seconds), "{text}");
        }
        for text in ["", "5", "0s", "-5s", "1ms", "4000d", "soon"] {
            assert_eq!(text.parse::<Lasts>(), Err(NotATime), "{text}");
        }
    }
}
