//! A length of time, as it stands on the command line.

use std::str::FromStr;
use std::time::Duration;

use jiff::SignedDuration;

/// Longest time that is accepted.
const MOST: Duration = Duration::from_secs(10 * 365 * 86_400);

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
    fn times_are_whole_seconds() {
        for (text, seconds) in [("90s", 90), ("5m", 300), ("2h 30m", 9_000), ("2h30m", 9_000), ("14d", 14 * 86_400)] {
            assert_eq!(text.parse::<Lasts>().map(Lasts::seconds), Ok(seconds), "{text}");
        }
        for text in ["", "5", "0s", "-5s", "1ms", "4000d", "soon"] {
            assert_eq!(text.parse::<Lasts>(), Err(NotATime), "{text}");
        }
    }
}
