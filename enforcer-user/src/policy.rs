//! Limits as an operator writes them, and as the kernel computes with them.
//!
//! [`Limits`] is the parsed form of a limit string. It has one canonical spelling, which is what the store holds and
//! what every listing shows, and one compiled form, [`abi::Policy`]. A string that does not parse is refused whole;
//! there is no way from a typo to "no limit". Nothing here touches a map or a clock.

mod grammar;
mod limit_name;

pub mod diff;
pub mod document;
pub mod exemption;
pub mod exemptions;
pub mod file;
pub mod method;
pub mod path;
pub mod routes;
#[cfg(test)]
pub(crate) mod samples;
pub mod service;

use std::fmt;
use std::str::FromStr;

use enforcer_ebpf::abi;
use enforcer_ebpf::limit::{MAX_COUNT, TICK_NS};

pub use document::Policy;
pub use grammar::{GRAMMAR, ParseError};
pub use limit_name::LimitName;

/// Longest window, and longest time that a burst may take to refill, in seconds: ten years.
pub const MAX_WINDOW: u64 = 10 * 365 * 86_400;

/// The limits of one subject, a principal or a source, say; they apply together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Limits {
    /// No limit, spelled out.
    Unlimited,
    /// Every request is refused.
    Blocked,
    /// One to [`abi::LIMITS`] rules; a rule's place is the place of its bucket in the kernel.
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
    /// Whether those that it refuses are, too; only where that means anything: [`Method::can_penalize`].
    pub penalize: bool,
    /// What it is called; by what it belongs to, if `None`.
    pub name: Option<LimitName>,
}

/// A unit of time. A month is 30 days and a year 365, but where windows follow the calendar.
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
    /// A window that begins with a multiple of its length, a week, a month or a year in UTC.
    Calendar,
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
            Self::Fixed | Self::Calendar => "fixed",
            Self::Gcra { .. } => "gcra",
        }
    }

    /// Whether it makes a difference if refused requests are counted: a fixed window ends when it ends.
    #[must_use]
    pub const fn can_penalize(self) -> bool {
        matches!(self, Self::Sliding | Self::Gcra { .. })
    }
}

impl Rule {
    /// The window's length in seconds; a calendar's months and years are as long as they are.
    #[must_use]
    pub const fn window(&self) -> u64 {
        self.every as u64 * self.unit.seconds()
    }

    /// ns between two requests at the steady rate, rounded up so that the rate never exceeds the rule's.
    const fn interval(&self) -> u64 {
        let window = self.window() * 1_000_000_000;
        if self.count == 0 { window } else { window.div_ceil(self.count as u64) }
    }

    /// Where its windows begin, a number of [`abi::align`].
    const fn align(&self) -> u64 {
        match (self.method, self.unit) {
            (Method::Calendar, Unit::Month) => abi::align::MONTH,
            (Method::Calendar, Unit::Year) => abi::align::YEAR,
            (Method::Calendar, _) => abi::align::MULTIPLE,
            _ => abi::align::NONE,
        }
    }

    /// Whether both would keep the same state in a bucket: only then a bucket's count means the same under both.
    const fn shares_bucket_with(&self, other: &Self) -> bool {
        let gcra = matches!(self.method, Method::Gcra { .. });
        self.window() == other.window()
            && gcra == matches!(other.method, Method::Gcra { .. })
            && self.align() == other.align()
    }

    /// The limit that a compiled one was, but for its name and for how its window was written.
    #[must_use]
    pub fn of(limit: &abi::Limit) -> Self {
        let seconds = limit.window * TICK_NS / 1_000_000_000;
        let is_fixed = limit.algorithm == abi::Algorithm::Fixed as u16;
        let divides = |unit: &&Unit| seconds != 0 && seconds.is_multiple_of(unit.seconds());
        let most = if is_fixed && matches!(limit.interval, abi::align::MONTH | abi::align::YEAR) {
            Unit::Year
        } else {
            Unit::Week
        };
        let units = Unit::ALL.iter().rev().skip_while(|unit| **unit != most);
        let unit = units.copied().find(|unit| divides(&unit)).unwrap_or(Unit::Second);
        let method = match limit.algorithm {
            algorithm if algorithm == abi::Algorithm::Gcra as u16 => {
                let burst = limit.tolerance.checked_div(limit.interval).map_or(1, |ahead| ahead + 1);
                Method::Gcra { burst: u32::try_from(burst).unwrap_or(MAX_COUNT) }
            }
            algorithm if algorithm == abi::Algorithm::Sliding as u16 => Method::Sliding,
            _ if limit.interval == abi::align::NONE => Method::Fixed,
            _ => Method::Calendar,
        };
        let every = u32::try_from(seconds / unit.seconds()).unwrap_or(u32::MAX).max(1);
        let penalize = limit.flags & abi::Limit::PENALIZES != 0;
        Self { count: limit.count, every, unit, method, penalize, name: None }
    }

    fn compile(&self) -> abi::Limit {
        let (algorithm, interval, tolerance) = match self.method {
            Method::Sliding => (abi::Algorithm::Sliding, 0, 0),
            Method::Fixed | Method::Calendar => (abi::Algorithm::Fixed, self.align(), 0),
            Method::Gcra { burst } => {
                let interval = self.interval();
                (abi::Algorithm::Gcra, interval, interval.saturating_mul(u64::from(burst.saturating_sub(1))))
            }
        };
        let window = self.window() * 1_000_000_000 / TICK_NS;
        let flags = if self.penalize { abi::Limit::PENALIZES } else { 0 };
        abi::Limit { algorithm: algorithm as u16, flags, count: self.count, window, interval, tolerance }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, every, unit, method, penalize, name } = self;
        match every {
            1 => write!(f, "{count}/{}", unit.as_str())?,
            _ => write!(f, "{count}/{every}{}s", unit.as_str())?,
        }
        match method {
            Method::Sliding => {}
            Method::Fixed => f.write_str(" algo=fixed")?,
            Method::Calendar => f.write_str(" align=calendar")?,
            Method::Gcra { burst } => write!(f, " burst={burst}")?,
        }
        if *penalize {
            f.write_str(" penalize=true")?;
        }
        match name {
            Some(name) => write!(f, " name={name}"),
            None => Ok(()),
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
        if rules.len() < 2 {
            // There is one order.
            return Self::Rules(rules);
        }
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

    /// These limits in an order of their own, longest window first: what two policies are compared by.
    #[must_use]
    pub fn canonical(self) -> Self {
        let Self::Rules(mut rules) = self else { return self };
        rules.sort_by_cached_key(|rule| (std::cmp::Reverse(rule.window()), rule.to_string()));
        Self::Rules(rules)
    }

    /// Whether any of the rules counts what it refuses.
    #[must_use]
    pub fn penalize(&self) -> bool {
        self.rules().iter().any(|rule| rule.penalize)
    }

    /// What each of the limits is called, where those without a name of their own are called `default` and, from the
    /// second on, `default-2` and so on by their places. No two are called the same.
    #[must_use]
    pub fn names(&self, default: LimitName) -> Vec<LimitName> {
        let Self::Rules(rules) = self else { return vec![default] };
        let mut taken: Vec<_> = rules.iter().filter_map(|rule| rule.name).collect();
        let name = |(place, rule): (usize, &Rule)| {
            rule.name.unwrap_or_else(|| {
                let free = (place + 1..).map(|number| default.numbered(number)).find(|name| !taken.contains(name));
                let free = free.expect("few are taken");
                taken.push(free);
                free
            })
        };
        rules.iter().enumerate().map(name).collect()
    }

    /// The form in which they lie in the map, enforced, without a candidate, an end or a tally; `default` is the name of
    /// those that have none of their own.
    #[must_use]
    pub fn compile(&self, default: LimitName) -> abi::Policy {
        const BLOCKED: Rule =
            Rule { count: 0, every: 1, unit: Unit::Second, method: Method::Fixed, penalize: false, name: None };
        let rules = match self {
            Self::Unlimited => &[],
            Self::Blocked => &[BLOCKED][..],
            Self::Rules(rules) => rules,
        };
        let (mut limits, mut names) = ([abi::Limit::default(); abi::LIMITS], [abi::Name::default(); abi::LIMITS]);
        for (place, (rule, name)) in rules.iter().zip(self.names(default)).enumerate().take(abi::LIMITS) {
            (limits[place], names[place]) = (rule.compile(), name.compile());
        }
        abi::Policy { limits, names, len: rules.len().min(abi::LIMITS) as u32, ..abi::Policy::UNLIMITED }
    }
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
    fn a_compiled_limit_is_told_as_it_was_written() {
        for text in [
            "100/minute",
            "20/hour algo=fixed",
            "5/2hours",
            "50/second burst=200",
            "10/day align=calendar",
            "9/month align=calendar",
            "7/week",
            "0/second algo=fixed",
            "20/minute penalize=true",
            "50/second burst=200 penalize=true",
        ] {
            let policy = limits(text).compile(LimitName::DEFAULT);
            assert_eq!(Rule::of(&policy.limits[0]).to_string(), text);
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
            ("100/minute penalize=true", "100/minute penalize=true"),
            ("100/m Penalize=TRUE algo=sliding; 5/s", "100/minute penalize=true; 5/second"),
            ("100/m name=x penalize=true cost=5 burst=10", "20/minute burst=2 penalize=true name=x"),
            ("100/m penalize=false algo=fixed", "100/minute algo=fixed"),
            ("100/minute cost=1", "100/minute"),
            ("100/minute cost=3; 0/hour cost=7", "33/minute; 0/hour"),
            ("100/day align=calendar cost=100 name=x", "1/day align=calendar name=x"),
            ("100/minute burst=20 cost=5", "20/minute burst=4"),
            ("100/minute burst=7 cost=5", "20/minute burst=1"),
            ("100/minute algo=gcra cost=5", "20/minute burst=20"),
            ("100/minute ALGO=GCRA BURST=20; 5/s", "100/minute burst=20; 5/second"),
            ("500000/month align=calendar", "500000/month align=calendar"),
            ("5/2hours align=calendar algo=fixed", "5/2hours align=calendar"),
            ("5/s ALGO=fixed ALIGN=Calendar name=a", "5/second align=calendar name=a"),
            ("10/7days align=calendar", "10/7days align=calendar"),
            ("10/1 week align=calendar;10/y align=calendar", "10/week align=calendar; 10/year align=calendar"),
            ("100/m name=per-minute_1; 9/s burst=3 name=0", "100/minute name=per-minute_1; 9/second burst=3 name=0"),
            ("9/s name=x algo=gcra,9/m name=y algo=fixed", "9/second burst=9 name=x; 9/minute algo=fixed name=y"),
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
            ("10/s 5/m", "column 6: \"5/m\" follows a complete limit; accepted: burst=N, algo=sliding|fixed|gcra, align=calendar, penalize=true, cost=N, name=ID, a separator (; , |), or the end".into()),
            ("10/s burst", "column 6: \"burst\" follows a complete limit; accepted: burst=N, algo=sliding|fixed|gcra, align=calendar, penalize=true, cost=N, name=ID, a separator (; , |), or the end".into()),
            ("10/s weight=2", "column 6: \"weight\" is no option; accepted: burst=N, algo=sliding|fixed|gcra, align=calendar, penalize=true, cost=N, name=ID".into()),
            ("10/s burst=", "column 12: the value of burst= is missing; accepted: a whole number from 1 to 268435455".into()),
            ("10/s burst=0", "column 12: \"0\" is no burst; accepted: a whole number from 1 to 268435455".into()),
            ("10/s burst=many", "column 12: \"many\" is no burst; accepted: a whole number from 1 to 268435455".into()),
            ("10/s burst=5 burst=6", "column 14: burst= stands twice; accepted: each option once".into()),
            ("10/s burst=5/m", "column 12: \"5/m\" is no burst; accepted: a whole number from 1 to 268435455".into()),
            ("10/s align=", "column 12: the value of align= is missing; accepted: calendar".into()),
            ("10/s align=monday", "column 12: \"monday\" is no alignment; accepted: calendar".into()),
            ("10/s align=calendar align=calendar", "column 21: align= stands twice; accepted: each option once".into()),
            ("10/s algo=sliding align=calendar", "column 1: align=calendar does not go with algo=sliding; accepted: align=calendar with algo=fixed, or alone".into()),
            ("10/s cost=11", "column 1: no request of cost 11 would ever pass; accepted: a cost up to the count and the burst".into()),
            ("10/s burst=4 cost=5", "column 1: no request of cost 5 would ever pass; accepted: a cost up to the count and the burst".into()),
            ("10/s burst=4 cost=3", "column 1: 10 at a steady rate for requests of cost 3; accepted: a count that is a multiple of the cost".into()),
            ("10/s algo=gcra cost=3", "column 1: 10 at a steady rate for requests of cost 3; accepted: a count that is a multiple of the cost".into()),
            ("10/s cost=0", format!("column 11: \"0\" is no cost; accepted: a whole number from 1 to {MAX_COUNT}")),
            ("10/s cost=2 cost=2", "column 13: cost= stands twice; accepted: each option once".into()),
            ("10/s algo=gcra align=calendar", "column 1: align=calendar does not go with algo=gcra; accepted: align=calendar with algo=fixed, or alone".into()),
            ("10/s align=calendar burst=5", "column 1: burst= does not go with align=calendar; accepted: burst=N with algo=gcra, or alone".into()),
            ("10/2weeks align=calendar", "column 1: a calendar window of 2 weeks; accepted: 1 week, month or year, or any number of shorter units".into()),
            ("1/s; 10/3 months align=calendar", "column 6: a calendar window of 3 months; accepted: 1 week, month or year, or any number of shorter units".into()),
            ("10/2y align=calendar", "column 1: a calendar window of 2 years; accepted: 1 week, month or year, or any number of shorter units".into()),
            ("10/s name=", "column 11: the value of name= is missing; accepted: 1 to 16 of a-z 0-9 - _".into()),
            ("10/s name=Fast", "column 11: \"Fast\" is no name of a limit; accepted: 1 to 16 of a-z 0-9 - _".into()),
            ("10/s name=a.b", "column 11: \"a.b\" is no name of a limit; accepted: 1 to 16 of a-z 0-9 - _".into()),
            ("10/s name=\"a\"", "column 11: \"\\\"a\\\"\" is no name of a limit; accepted: 1 to 16 of a-z 0-9 - _".into()),
            ("10/s name=seventeen-letters", "column 11: \"seventeen-letters\" is no name of a limit; accepted: 1 to 16 of a-z 0-9 - _".into()),
            ("10/s name=a name=b", "column 13: name= stands twice; accepted: each option once".into()),
            ("10/s name=a; 5/m name=a", "column 14: a second limit with the name a; accepted: another name".into()),
            ("10/s penalize=", "column 15: the value of penalize= is missing; accepted: true, false".into()),
            ("10/s penalize=yes", "column 15: \"yes\" is neither true nor false; accepted: true, false".into()),
            ("10/s penalize=true penalize=false", "column 20: penalize= stands twice; accepted: each option once".into()),
            ("5/s; 10/s algo=fixed penalize=true", "column 22: penalize=true does not go with algo=fixed, whose window ends when it ends; accepted: penalize=true with algo=sliding or algo=gcra, or alone".into()),
            ("10/s penalize=true align=calendar", "column 6: penalize=true does not go with align=calendar, whose window ends when it ends; accepted: penalize=true with algo=sliding or algo=gcra, or alone".into()),
            ("10/s algo=leaky", "column 11: \"leaky\" is no algorithm; accepted: sliding, fixed, gcra".into()),
            ("10/s algo=fixed burst=5", "column 1: burst= does not go with algo=fixed; accepted: burst=N with algo=gcra, or alone".into()),
            ("10/s burst=5 algo=sliding", "column 1: burst= does not go with algo=sliding; accepted: burst=N with algo=gcra, or alone".into()),
            ("0/s burst=5", "column 1: a count of 0 has no rate; accepted: a count of 1 or more with burst= or algo=gcra, or `blocked`".into()),
            ("2/10years burst=2", "column 1: less than one request in two years; accepted: a higher count, or a shorter window".into()),
            ("1/10years burst=3", "column 1: a burst of 3 takes longer than 10 years to refill; accepted: a smaller burst, or a shorter window".into()),
            ("unlimited; 5/s", "column 10: \"; 5/s\" follows `unlimited`; accepted: `unlimited` alone".into()),
            ("5/s; blocked", format!("column 6: \"blocked\" is no count; accepted: {count}")),
            ("1/s;1/m;1/h;1/d;1/w", "column 17: a fifth limit; accepted: at most 4 that apply together".into()),
            ("5/s\u{1b}[31m", "column 4: \"\\u{1b}[31m\" follows a complete limit; accepted: burst=N, algo=sliding|fixed|gcra, align=calendar, penalize=true, cost=N, name=ID, a separator (; , |), or the end".into()),
            ("é/s", format!("column 1: \"é\" is no count; accepted: {count}")),
        ] {
            assert_eq!(error(text), message, "{text:?}");
        }
    }

    #[test]
    fn refuses_a_text_that_is_too_long_to_be_a_limit() {
        let error = error(&" ".repeat(600));
        assert!(error.starts_with("column 513: the limit is longer than 512 bytes"), "{error}");
    }

    #[test]
    fn compiles_windows_to_ticks_and_rates_to_intervals() {
        let policy = limits("100/minute; 3/second burst=2; 5/2hours algo=fixed").compile(LimitName::DEFAULT);
        assert_eq!((policy.len, policy.flags), (3, abi::Policy::IN_USE));
        assert_eq!((policy.candidate, policy.tally, policy.until, policy.next), (0, 0, u64::MAX, 0));
        let [sliding, gcra, fixed, none] = policy.limits;
        assert_eq!(
            sliding,
            abi::Limit { algorithm: 0, flags: 0, count: 100, window: 60_000_000_000 / 64, interval: 0, tolerance: 0 }
        );
        assert_eq!(gcra.algorithm, abi::Algorithm::Gcra as u16);
        assert_eq!((gcra.interval, gcra.tolerance), (333_333_334, 333_333_334));
        assert_eq!((fixed.algorithm, fixed.count, fixed.window), (1, 5, 7_200_000_000_000 / 64));
        assert_eq!((fixed.interval, fixed.tolerance), (abi::align::NONE, 0));
        assert_eq!(none, abi::Limit::default());
    }

    #[test]
    fn compiles_alignments() {
        let fixed = abi::Algorithm::Fixed as u16;
        for (text, align, seconds) in [
            ("1/2hours align=calendar", abi::align::MULTIPLE, 7_200),
            ("1/week align=calendar", abi::align::MULTIPLE, 604_800),
            ("1/30days align=calendar", abi::align::MULTIPLE, 2_592_000),
            ("1/month align=calendar", abi::align::MONTH, 2_592_000),
            ("1/year align=calendar", abi::align::YEAR, 31_536_000),
        ] {
            let window = seconds * 1_000_000_000 / 64;
            let expected = abi::Limit { algorithm: fixed, flags: 0, count: 1, window, interval: align, tolerance: 0 };
            assert_eq!(limits(text).compile(LimitName::DEFAULT).limits[0], expected, "{text}");
        }
    }

    #[test]
    fn every_limit_has_a_name_of_its_own() {
        for (text, names) in [
            ("blocked", &["gold"][..]),
            ("1/s", &["gold"]),
            ("1/s; 1/m; 1/h; 1/d", &["gold", "gold-2", "gold-3", "gold-4"]),
            ("1/s name=burst; 1/m; 1/h name=hourly; 1/d", &["burst", "gold-2", "hourly", "gold-4"]),
            ("1/s name=gold-2; 1/m; 1/h", &["gold-2", "gold-3", "gold-4"]),
            ("1/s; 1/m name=gold", &["gold-2", "gold"]),
        ] {
            let gold = LimitName::of_plan("gold");
            let (limits, policy) = (limits(text), limits(text).compile(gold));
            let given = limits.names(gold);
            assert_eq!(given.iter().map(LimitName::as_str).collect::<Vec<_>>(), names, "{text}");
            for (place, words) in policy.names.iter().enumerate() {
                assert_eq!(*words, given.get(place).map_or([0; 2], LimitName::compile), "{text}");
            }
        }
    }

    #[test]
    fn compiles_the_two_words() {
        let unlimited = limits("unlimited").compile(LimitName::DEFAULT);
        assert_eq!((unlimited.len, unlimited.names), (0, Default::default()));
        let blocked = limits("blocked").compile(LimitName::DEFAULT);
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
            ("100/minute", "50/minute name=a; 9/day", "50/minute name=a; 9/day"),
            ("100/minute", "50/minute algo=fixed; 9/day", "50/minute algo=fixed; 9/day"),
            // Windows that begin elsewhere count something else.
            ("9/s; 5/day algo=fixed", "5/s; 5/day align=calendar", "5/second; 5/day align=calendar"),
            // Whether refused requests count, too, is no matter of what is counted already.
            ("9/s; 5/day penalize=true", "5/s; 5/day", "5/second; 5/day"),
            ("9/s; 5/day", "5/s; 5/day penalize=true", "5/second; 5/day penalize=true"),
            ("9/day; 5/s", "5/s align=calendar; 5/day; 5/h", "5/day; 5/hour; 5/second align=calendar"),
            (
                "9/s; 5/month align=calendar",
                "1/month align=calendar; 5/s; 7/h",
                "5/second; 1/month align=calendar; 7/hour",
            ),
            ("9/s; 5/month align=calendar", "1/30days align=calendar; 5/h", "1/30days align=calendar; 5/hour"),
            ("9/s; 5/week align=calendar", "1/d; 1/h; 1/7days align=calendar", "1/day; 1/7days align=calendar; 1/hour"),
        ] {
            assert_eq!(limits(new).settled(Some(&limits(old))).to_string(), settled, "{old} -> {new}");
        }
        assert_eq!(limits("10/second; 100/minute").settled(None).to_string(), "100/minute; 10/second");
    }

    fn rule() -> impl Strategy<Value = Rule> {
        let method = prop_oneof![
            Just(Method::Sliding),
            Just(Method::Fixed),
            Just(Method::Calendar),
            (1u32..1_000).prop_map(|burst| Method::Gcra { burst })
        ];
        let name = prop::option::of("[a-z0-9_-]{1,16}");
        (1..=MAX_COUNT, 1u32..4, prop::sample::select(&Unit::ALL[..]), method, any::<bool>(), name).prop_filter_map(
            "a burst refills in time, and a calendar has one month at a time",
            |(count, every, unit, method, penalize, name)| {
                let name = name.and_then(|name| LimitName::new(&name));
                let penalize = penalize && method.can_penalize();
                let rule = Rule { count, every, unit, method, penalize, name };
                let is_in_calendar = method != Method::Calendar || every == 1 || unit.seconds() <= 86_400;
                (grammar::refills_in_time(&rule).is_ok() && is_in_calendar).then_some(rule)
            },
        )
    }

    fn rules() -> impl Strategy<Value = Vec<Rule>> {
        prop::collection::vec(rule(), 1..=4).prop_filter("names differ", |rules| {
            let names: Vec<_> = rules.iter().filter_map(|rule| rule.name).collect();
            names.iter().enumerate().all(|(place, name)| !names[..place].contains(name))
        })
    }

    proptest! {
        #[test]
        fn the_canonical_form_reads_back_as_itself(rules in rules()) {
            let limits = Limits::Rules(rules);
            prop_assert_eq!(limits.to_string().parse::<Limits>(), Ok(limits));
        }

        #[test]
        fn settling_loses_no_rule(new in rules(), old in rules()) {
            let settled = Limits::Rules(new.clone()).settled(Some(&Limits::Rules(old)));
            let sorted = |rules: &[Rule]| { let mut texts: Vec<_> = rules.iter().map(Rule::to_string).collect(); texts.sort(); texts };
            prop_assert_eq!(sorted(settled.rules()), sorted(&new));
        }

        #[test]
        fn all_names_differ(rules in rules(), default in "[a-z]{1,16}|[a-z]-[2-4]") {
            let default = LimitName::new(&default).expect("a name");
            let names = Limits::Rules(rules.clone()).names(default);
            prop_assert_eq!(names.len(), rules.len());
            prop_assert!(names.iter().enumerate().all(|(place, name)| !names[..place].contains(name)), "{:?}", names);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,40}") {
            let _ = text.parse::<Limits>();
        }

        #[test]
        fn nearly_right_text_is_parsed_or_refused_within_it(
            text in "[0-9sm/ ;=a-z]{0,24}|[0-9]{1,3}/(s|mo|2w)( (name|align|algo|burst|penalize)=(calendar|fixed|true|[a-z0-9.-]{0,18})){0,3}",
        ) {
            if let Err(error) = text.parse::<Limits>() {
                prop_assert!((1..=text.chars().count() + 1).contains(&error.column));
            }
        }
    }
}
