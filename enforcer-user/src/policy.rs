//! Limits as an operator writes them, and as the kernel computes with them.
//!
//! [`Limits`] is the parsed form of a limit string. It has one canonical spelling, which is what the store holds and
//! what every listing shows, and one compiled form, [`abi::Policy`]. A string that does not parse is refused whole;
//! there is no way from a typo to "no limit". Nothing here touches a map or a clock.

mod grammar;

use std::fmt;
use std::str::FromStr;

use enforcer_ebpf::abi;
use enforcer_ebpf::limit::{MAX_COUNT, TICK_NS};

pub use grammar::{GRAMMAR, ParseError};

/// Longest window, and longest time that a burst may take to refill, in seconds: ten years.
pub const MAX_WINDOW: u64 = 10 * 365 * 86_400;

/// All limits of one principal; they apply together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Limits {
    /// No limit, spelled out.
    Unlimited,
    /// Every request is refused.
    Blocked,
    /// One to [`abi::LIMITS`] rules; a rule's place is the place of its bucket in the kernel's meter.
    Rules(Vec<Rule>),
}

/// One limit: `count` requests in `every` units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// Requests per window, 0 to [`MAX_COUNT`].
    pub count: u32,
    /// Units per window, at least 1.
    pub every: u32,
    /// The unit of the window.
    pub unit: Unit,
    /// How requests are counted.
    pub method: Method,
}

/// A unit of time. A month is 30 days and a year 365: windows follow the kernel's clock, not a calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// 1 s.
    Second,
    /// 60 s.
    Minute,
    /// 3,600 s.
    Hour,
    /// 86,400 s.
    Day,
    /// 7 days.
    Week,
    /// 30 days.
    Month,
    /// 365 days.
    Year,
}

impl Unit {
    /// All units, shortest first.
    pub const ALL: [Self; 7] = [Self::Second, Self::Minute, Self::Hour, Self::Day, Self::Week, Self::Month, Self::Year];

    /// Its length in seconds.
    #[must_use]
    pub const fn seconds(self) -> u64 {
        match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 3_600,
            Self::Day => 86_400,
            Self::Week => 7 * 86_400,
            Self::Month => 30 * 86_400,
            Self::Year => 365 * 86_400,
        }
    }

    /// Its singular English name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Second => "second",
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
            Self::Year => "year",
        }
    }
}

/// How a rule counts; see [`abi::Algorithm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// Two windows, the last one weighted.
    Sliding,
    /// A window that begins with its first request.
    Fixed,
    /// A steady rate with room for `burst` requests at once, 1 to [`MAX_COUNT`].
    Gcra {
        /// Requests that may come at once.
        burst: u32,
    },
}

impl Method {
    /// The word for it after `algo=`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sliding => "sliding",
            Self::Fixed => "fixed",
            Self::Gcra { .. } => "gcra",
        }
    }
}

impl Rule {
    /// The window's length in seconds.
    #[must_use]
    pub const fn window(&self) -> u64 {
        self.every as u64 * self.unit.seconds()
    }

    /// ns between two requests at the steady rate, rounded up so that the rate never exceeds the rule's.
    const fn interval(&self) -> u64 {
        let window = self.window() * 1_000_000_000;
        if self.count == 0 { window } else { window.div_ceil(self.count as u64) }
    }

    /// Whether both would keep the same state in a bucket: only then a bucket's count means the same under both.
    const fn shares_bucket_with(&self, other: &Self) -> bool {
        let gcra = matches!(self.method, Method::Gcra { .. });
        self.window() == other.window() && gcra == matches!(other.method, Method::Gcra { .. })
    }

    fn compile(&self) -> abi::Limit {
        let window = self.window() * 1_000_000_000 / TICK_NS;
        let count = self.count;
        match self.method {
            Method::Sliding => {
                abi::Limit { algorithm: abi::Algorithm::Sliding as u32, count, window, interval: 0, tolerance: 0 }
            }
            Method::Fixed => {
                abi::Limit { algorithm: abi::Algorithm::Fixed as u32, count, window, interval: 0, tolerance: 0 }
            }
            Method::Gcra { burst } => {
                let interval = self.interval();
                let tolerance = interval.saturating_mul(u64::from(burst.saturating_sub(1)));
                abi::Limit { algorithm: abi::Algorithm::Gcra as u32, count, window, interval, tolerance }
            }
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, every, unit, method } = self;
        match every {
            1 => write!(f, "{count}/{}", unit.as_str())?,
            _ => write!(f, "{count}/{every}{}s", unit.as_str())?,
        }
        match method {
            Method::Sliding => Ok(()),
            Method::Fixed => f.write_str(" algo=fixed"),
            Method::Gcra { burst } => write!(f, " burst={burst}"),
        }
    }
}

impl Limits {
    /// The rules; none for [`Limits::Unlimited`] and [`Limits::Blocked`].
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        match self {
            Self::Unlimited | Self::Blocked => &[],
            Self::Rules(rules) => rules,
        }
    }

    /// These limits in an order that keeps counts: a rule takes the place of a rule of `previous` with the same
    /// window, for its bucket holds the requests already made; the others follow, longest window first.
    ///
    /// Longest first, because the longest window is the one whose count is worth the most: it stays where it is when
    /// shorter ones come and go.
    #[must_use]
    pub fn settled(self, previous: Option<&Self>) -> Self {
        let Self::Rules(rules) = self else { return self };
        let mut rest = rules;
        rest.sort_by_key(|rule| std::cmp::Reverse(rule.window()));
        let len = rest.len();
        let mut places: Vec<Option<Rule>> = vec![None; len];
        for (place, old) in previous.map_or(&[][..], Self::rules).iter().enumerate().take(len) {
            if let Some(found) = rest.iter().position(|rule| rule.shares_bucket_with(old)) {
                places[place] = Some(rest.remove(found));
            }
        }
        let mut rest = rest.into_iter();
        Self::Rules(places.into_iter().filter_map(|place| place.or_else(|| rest.next())).collect())
    }

    /// The form in which they lie in the map.
    #[must_use]
    pub fn compile(&self) -> abi::Policy {
        let mut limits = [abi::Limit::default(); abi::LIMITS];
        let len = match self {
            Self::Unlimited => 0,
            Self::Blocked => {
                limits[0] = Rule { count: 0, every: 1, unit: Unit::Second, method: Method::Fixed }.compile();
                1
            }
            Self::Rules(rules) => {
                for (limit, rule) in limits.iter_mut().zip(rules) {
                    *limit = rule.compile();
                }
                rules.len().min(abi::LIMITS) as u32
            }
        };
        abi::Policy { limits, names: names(), len, ..abi::Policy::UNLIMITED }
    }
}

/// What a principal's limits are called in answers: `default`, `default-2`, …
fn names() -> [abi::Name; abi::LIMITS] {
    std::array::from_fn(|limit| {
        let text = if limit == 0 { "default".to_owned() } else { format!("default-{}", limit + 1) };
        let mut name = abi::Name::default();
        for (place, byte) in text.bytes().enumerate().take(16) {
            name[place / 8] |= u64::from(byte) << (8 * (place % 8));
        }
        name
    })
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unlimited => f.write_str("unlimited"),
            Self::Blocked => f.write_str("blocked"),
            Self::Rules(rules) => {
                for (index, rule) in rules.iter().enumerate() {
                    if index > 0 {
                        f.write_str("; ")?;
                    }
                    rule.fmt(f)?;
                }
                Ok(())
            }
        }
    }
}

impl FromStr for Limits {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        grammar::parse(text)
    }
}

/// Whether `count` fits the kernel's counters.
const fn count_fits(count: u64) -> bool {
    count <= MAX_COUNT as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limits(text: &str) -> Limits {
        text.parse().unwrap_or_else(|error| panic!("{text:?}: {error}"))
    }

    fn error(text: &str) -> String {
        match text.parse::<Limits>() {
            Ok(limits) => panic!("{text:?} parsed as {limits}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn reads_every_accepted_spelling_into_its_canonical_form() {
        for (text, canonical) in [
            ("100/minute", "100/minute"),
            ("100 per minute", "100/minute"),
            ("100per minute", "100/minute"),
            ("  100 / minute  ", "100/minute"),
            ("100/m", "100/minute"),
            ("100/MINUTES", "100/minute"),
            ("100/mo", "100/month"),
            ("5 per 2 hours", "5/2hours"),
            ("5 PER 2 Hours", "5/2hours"),
            ("100/7days", "100/7days"),
            ("5/2 seconds", "5/2seconds"),
            ("5per2h", "5/2hours"),
            ("100/1 day", "100/day"),
            ("10/s; 100/m", "10/second; 100/minute"),
            ("10/s,100/m", "10/second; 100/minute"),
            ("10/s|100/m|1000/h;10000/d", "10/second; 100/minute; 1000/hour; 10000/day"),
            ("1/week", "1/week"),
            ("1/year", "1/year"),
            ("0/second", "0/second"),
            ("100/minute algo=sliding", "100/minute"),
            ("100/minute algo=fixed", "100/minute algo=fixed"),
            ("100/minute algo=gcra", "100/minute burst=100"),
            ("100/minute burst=20", "100/minute burst=20"),
            ("100/minute burst=20 algo=gcra", "100/minute burst=20"),
            ("100/minute ALGO=GCRA BURST=20; 5/s", "100/minute burst=20; 5/second"),
            ("unlimited", "unlimited"),
            (" Blocked ", "blocked"),
            ("268435455/second", "268435455/second"),
            ("1/3650 days", "1/3650days"),
        ] {
            assert_eq!(limits(text).to_string(), canonical, "{text:?}");
        }
    }

    #[test]
    fn says_what_is_wrong_where_and_what_is_accepted() {
        let units = "second, minute, hour, day, week, month (30 days), year (365 days), their plurals, \
                     or s, m, h, d, w, mo, y";
        let count = "a whole number from 0 to 268435455";
        for (text, message) in [
            ("", format!("column 1: the limit is empty; accepted: {GRAMMAR}")),
            ("   ", format!("column 4: the limit is empty; accepted: {GRAMMAR}")),
            ("100/mintue", format!("column 5: \"mintue\" is no unit of time; accepted: {units}")),
            ("100/", format!("column 5: the unit of time is missing; accepted: {units}")),
            ("100/5", format!("column 6: the unit of time is missing; accepted: {units}")),
            ("100", "column 4: `/` or `per` is missing after the count; accepted: `/` or `per`".into()),
            ("100 minute", "column 5: \"minute\" stands where `/` or `per` should; accepted: `/` or `per`".into()),
            ("/minute", format!("column 1: \"/\" is no count; accepted: {count}")),
            ("-1/minute", format!("column 1: \"-\" is no count; accepted: {count}")),
            ("1.5/minute", "column 2: \".5/minute\" stands where `/` or `per` should; accepted: `/` or `per`".into()),
            ("lots/minute", format!("column 1: \"lots\" is no count; accepted: {count}, or `unlimited`, or `blocked`")),
            ("268435456/minute", format!("column 1: 268435456 is too large a count; accepted: {count}")),
            ("99999999999999999999999/minute", format!("column 1: 99999999999999999999999 is too large a count; accepted: {count}")),
            ("5/0 minutes", "column 3: a window of 0 minutes; accepted: 1 or more".into()),
            ("5/11 years", "column 3: a window of 11 years; accepted: at most 10 years (3650 days)".into()),
            ("5/99999999999999999999 years", "column 3: a window of 99999999999999999999 years; accepted: at most 10 years (3650 days)".into()),
            ("10/s;", format!("column 6: a limit is missing after the separator; accepted: {GRAMMAR}")),
            ("10/s;;5/m", format!("column 6: \";\" is no count; accepted: {count}")),
            ("10/s 5/m", "column 6: \"5/m\" follows a complete limit; accepted: burst=N, algo=sliding|fixed|gcra, a separator (; , |), or the end".into()),
            ("10/s burst", "column 6: \"burst\" follows a complete limit; accepted: burst=N, algo=sliding|fixed|gcra, a separator (; , |), or the end".into()),
            ("10/s cost=2", "column 6: \"cost\" is no option; accepted: burst=N, algo=sliding|fixed|gcra".into()),
            ("10/s burst=", "column 12: the value of burst= is missing; accepted: a whole number from 1 to 268435455".into()),
            ("10/s burst=0", "column 12: \"0\" is no burst; accepted: a whole number from 1 to 268435455".into()),
            ("10/s burst=many", "column 12: \"many\" is no burst; accepted: a whole number from 1 to 268435455".into()),
            ("10/s burst=5 burst=6", "column 14: burst= stands twice; accepted: each option once".into()),
            ("10/s algo=leaky", "column 11: \"leaky\" is no algorithm; accepted: sliding, fixed, gcra".into()),
            ("10/s algo=fixed burst=5", "column 1: burst= does not go with algo=fixed; accepted: burst=N with algo=gcra, or alone".into()),
            ("10/s burst=5 algo=sliding", "column 1: burst= does not go with algo=sliding; accepted: burst=N with algo=gcra, or alone".into()),
            ("0/s burst=5", "column 1: a count of 0 has no rate; accepted: a count of 1 or more with burst= or algo=gcra, or `blocked`".into()),
            ("1/10years burst=3", "column 1: a burst of 3 takes longer than 10 years to refill; accepted: a smaller burst, or a shorter window".into()),
            ("unlimited; 5/s", "column 10: \"; 5/s\" follows `unlimited`; accepted: `unlimited` alone".into()),
            ("5/s; blocked", format!("column 6: \"blocked\" is no count; accepted: {count}")),
            ("1/s;1/m;1/h;1/d;1/w", "column 17: a fifth limit; accepted: at most 4 that apply together".into()),
            ("5/s\u{1b}[31m", "column 4: \"\\u{1b}[31m\" follows a complete limit; accepted: burst=N, algo=sliding|fixed|gcra, a separator (; , |), or the end".into()),
            ("é/s", format!("column 1: \"é\" is no count; accepted: {count}")),
        ] {
            assert_eq!(error(text), message, "{text:?}");
        }
    }

    #[test]
    fn refuses_a_text_that_is_too_long_to_be_a_limit() {
        let error = error(&" ".repeat(300));
        assert!(error.starts_with("column 257: the limit is longer than 256 bytes"), "{error}");
    }

    #[test]
    fn compiles_windows_to_ticks_and_rates_to_intervals() {
        let policy = limits("100/minute; 3/second burst=2; 5/2hours algo=fixed").compile();
        assert_eq!((policy.len, policy.flags), (3, abi::Policy::IN_USE));
        let [sliding, gcra, fixed, none] = policy.limits;
        assert_eq!(
            sliding,
            abi::Limit { algorithm: 0, count: 100, window: 60_000_000_000 / 64, interval: 0, tolerance: 0 }
        );
        assert_eq!(gcra.algorithm, abi::Algorithm::Gcra as u32);
        assert_eq!((gcra.interval, gcra.tolerance), (333_333_334, 333_333_334));
        assert_eq!((fixed.algorithm, fixed.count, fixed.window), (1, 5, 7_200_000_000_000 / 64));
        assert_eq!(none, abi::Limit::default());
    }

    #[test]
    fn compiles_the_two_words() {
        assert_eq!(limits("unlimited").compile().len, 0);
        let blocked = limits("blocked").compile();
        assert_eq!((blocked.len, blocked.limits[0].count), (1, 0));
    }

    #[test]
    fn a_changed_limit_keeps_the_place_of_its_window() {
        for (old, new, settled) in [
            ("100/minute", "50/minute", "50/minute"),
            ("100/minute", "10/second; 50/minute", "50/minute; 10/second"),
            ("100/minute; 10/second", "5/second; 1000/hour; 50/minute", "50/minute; 5/second; 1000/hour"),
            ("100/minute; 10/second", "5/second", "5/second"),
            ("100/minute burst=5", "100/minute; 7/hour burst=2", "7/hour burst=2; 100/minute"),
            ("unlimited", "10/second; 100/minute", "100/minute; 10/second"),
        ] {
            assert_eq!(limits(new).settled(Some(&limits(old))).to_string(), settled, "{old} -> {new}");
        }
        assert_eq!(limits("10/second; 100/minute").settled(None).to_string(), "100/minute; 10/second");
    }

    fn rule() -> impl Strategy<Value = Rule> {
        let method = prop_oneof![
            Just(Method::Sliding),
            Just(Method::Fixed),
            (1u32..1_000).prop_map(|burst| Method::Gcra { burst })
        ];
        (1..=MAX_COUNT, 1u32..4, prop::sample::select(&Unit::ALL[..]), method).prop_filter_map(
            "a burst refills in time",
            |(count, every, unit, method)| {
                let rule = Rule { count, every, unit, method };
                grammar::refills_in_time(&rule).then_some(rule)
            },
        )
    }

    proptest! {
        #[test]
        fn the_canonical_form_reads_back_as_itself(rules in prop::collection::vec(rule(), 1..=4)) {
            let limits = Limits::Rules(rules);
            prop_assert_eq!(limits.to_string().parse::<Limits>(), Ok(limits));
        }

        #[test]
        fn settling_loses_no_rule(new in prop::collection::vec(rule(), 1..=4), old in prop::collection::vec(rule(), 1..=4)) {
            let settled = Limits::Rules(new.clone()).settled(Some(&Limits::Rules(old)));
            let sorted = |rules: &[Rule]| { let mut texts: Vec<_> = rules.iter().map(Rule::to_string).collect(); texts.sort(); texts };
            prop_assert_eq!(sorted(settled.rules()), sorted(&new));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,40}") {
            let _ = text.parse::<Limits>();
        }

        #[test]
        fn nearly_right_text_is_parsed_or_refused_within_it(text in "[0-9sm/ ;=a-z]{0,24}") {
            if let Err(error) = text.parse::<Limits>() {
                prop_assert!((1..=text.chars().count() + 1).contains(&error.column));
            }
        }
    }
}
