//! What becomes of sources that go on sending what is refused: how many refusals are answered, how many are met with
//! anything at all, and for how long a source is kept out that sends more.
//!
//! In the file it is a table, `[penalty]`, or one word, `penalty = "off"`; a flag stands above its switch alone.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use enforcer_ebpf::abi::Service;
use serde::Deserialize;
use toml::Spanned;

use super::bounds::{self, OutOfBounds};
use super::choice::{Choice, InPlace};
use super::{Error, Source, UnknownWord, or};
use crate::policy::Limits;

/// Refusals of one source in a second, and at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(Option<u32>);

/// How long a penalty takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Term(Duration);

/// How many bits of an address make a source, 1 to `MOST`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Width<const MOST: u8>(u8);

/// Whether there are penalties.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// There are.
    On,
    /// Every refusal is met with what `on_refuse` says, however many there are.
    Off,
}

/// The escalation in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Penalty {
    /// Whether there is any; without it the rest means nothing.
    pub switch: Switch,
    /// Refusals that are answered; those beyond are reset.
    pub answers: Rate,
    /// Refusals that bring no penalty; at least `answers`.
    pub tolerated: Rate,
    /// How long a source's first penalty takes; each further one takes twice as long.
    pub first: Term,
    /// How long a penalty takes at most; at least `first`.
    pub longest: Term,
    /// Whether sources behind which registered keys are being served get penalties too.
    pub shared: bool,
    /// Bits of an IPv4 address that make a source.
    pub ipv4: Width<32>,
    /// Bits of an IPv6 address that make a source.
    pub ipv6: Width<64>,
}

/// `[penalty]` as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Table {
    enabled: Option<bool>,
    answers: Option<Spanned<String>>,
    tolerated: Option<Spanned<String>>,
    first: Option<Spanned<String>>,
    longest: Option<Spanned<String>>,
    shared: Option<bool>,
    ipv4: Option<Spanned<u64>>,
    ipv6: Option<Spanned<u64>>,
}

impl InPlace for Table {
    const EXPECTED: &'static str = "a table, or the string \"on\" or \"off\"";
}

impl Penalty {
    pub(super) fn merge(
        above: Option<Switch>,
        written: Option<Spanned<Choice<Table>>>,
        source: &Source<'_>,
    ) -> Result<Self, Error> {
        let Some(written) = written else {
            return Ok(Self { switch: above.unwrap_or(Switch::On), ..Self::default() });
        };
        let span = written.span();
        let table = match written.into_inner() {
            Choice::Word(word) => {
                let switch = word.parse().map_err(|error| source.invalid(span, format!("penalty: {error}")))?;
                return Ok(Self { switch: above.unwrap_or(switch), ..Self::default() });
            }
            Choice::Table(table) => table,
        };
        let Table { enabled, answers, tolerated, first, longest, shared, ipv4, ipv6 } = table;
        let place = |least: &Option<Spanned<String>>, most: &Option<Spanned<String>>| {
            most.as_ref().or(least.as_ref()).map_or(span.clone(), Spanned::span)
        };
        let (rates, terms) = (place(&answers, &tolerated), place(&first, &longest));
        let default = Self::default();
        let enabled = enabled.map(|enabled| if enabled { Switch::On } else { Switch::Off });
        let penalty = Self {
            switch: or(above, enabled).unwrap_or(default.switch),
            answers: source.word("penalty.answers", answers)?.unwrap_or(default.answers),
            tolerated: source.word("penalty.tolerated", tolerated)?.unwrap_or(default.tolerated),
            first: source.word("penalty.first", first)?.unwrap_or(default.first),
            longest: source.word("penalty.longest", longest)?.unwrap_or(default.longest),
            shared: shared.unwrap_or(default.shared),
            ipv4: source.number("penalty.ipv4", ipv4)?.unwrap_or(default.ipv4),
            ipv6: source.number("penalty.ipv6", ipv6)?.unwrap_or(default.ipv6),
        };
        let Self { answers, tolerated, first, longest, .. } = penalty;
        if tolerated.is_below(answers) {
            let message = format!("penalty: tolerated ({tolerated}) is less than answers ({answers})");
            return Err(source.invalid(rates, message));
        }
        if longest < first {
            return Err(source.invalid(terms, format!("penalty: longest ({longest}) is less than first ({first})")));
        }
        Ok(penalty)
    }

    /// Sets it in what the kernel reads, where it is off by default.
    pub(super) fn apply(self, service: &mut Service) {
        let Self { switch: _, answers, tolerated, first, longest, shared, ipv4, ipv6 } = self;
        service.source_v4 = u16::from(ipv4.0);
        service.source_v6 = u16::from(ipv6.0);
        service.answers_per_second = answers.0.unwrap_or(0);
        service.tolerated_per_second = tolerated.0.unwrap_or(0);
        service.penalty_ns = first.ns();
        service.penalty_most_ns = longest.ns();
        if shared {
            service.flags |= Service::PENALISE_SHARED;
        }
    }
}

impl Default for Penalty {
    fn default() -> Self {
        Self {
            switch: Switch::On,
            answers: Rate(Some(50)),
            tolerated: Rate(Some(500)),
            first: Term(Duration::from_secs(10)),
            longest: Term(Duration::from_secs(3600)),
            shared: false,
            ipv4: Width(32),
            ipv6: Width(64),
        }
    }
}

impl FromStr for Switch {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        match text {
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            _ => Err(UnknownWord::new(text, "on, off")),
        }
    }
}

impl Rate {
    const MOST: u32 = 1_000_000;

    fn is_below(self, other: Self) -> bool {
        match (self.0, other.0) {
            (Some(this), Some(other)) => this < other,
            (Some(_), None) => true,
            (None, _) => false,
        }
    }
}

impl FromStr for Rate {
    type Err = OutOfBounds;

    /// A limit of one rule, as [`Limits`] reads it: so many a second, or `unlimited`.
    fn from_str(text: &str) -> Result<Self, OutOfBounds> {
        let rate = match text.parse::<Limits>() {
            Ok(Limits::Unlimited) => Some(None),
            Ok(limits) => match limits.rules() {
                // Its canonical form says that it has no options.
                [rule] if rule.to_string() == format!("{}/second", rule.count) => Some(Some(rule.count)),
                _ => None,
            },
            Err(_) => None,
        };
        let rate = rate.filter(|rate| rate.is_none_or(|count| (1..=Self::MOST).contains(&count)));
        rate.map(Self).ok_or_else(|| {
            let accepted = format!("1/second to {}/second, or unlimited", Self::MOST);
            OutOfBounds::new(text, accepted)
        })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(count) => write!(f, "{count}/second"),
            None => f.write_str("unlimited"),
        }
    }
}

impl Term {
    const fn ns(self) -> u64 {
        // A day at most.
        self.0.as_nanos() as u64
    }
}

impl FromStr for Term {
    type Err = OutOfBounds;

    fn from_str(text: &str) -> Result<Self, OutOfBounds> {
        let accepted = Duration::from_secs(1)..=Duration::from_secs(86_400);
        bounds::time(text, accepted, "a time from 1s to 24h, such as 10s, 1m 30s or 1h").map(Self)
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        bounds::show(self.0, f)
    }
}

impl<const MOST: u8> Width<MOST> {
    /// The number of bits.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }
}

impl<const MOST: u8> TryFrom<u64> for Width<MOST> {
    type Error = OutOfBounds;

    fn try_from(bits: u64) -> Result<Self, OutOfBounds> {
        match u8::try_from(bits) {
            Ok(bits) if (1..=MOST).contains(&bits) => Ok(Self(bits)),
            _ => Err(OutOfBounds::new(bits, format!("1 to {MOST} bits"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{Guarded, Mode, Overrides, Settings};
    use super::*;

    fn merge(above: Option<Switch>, text: &str) -> Result<Guarded, String> {
        let overrides =
            Overrides { interfaces: vec!["lo".into()], ports: vec![8000], penalty: above, ..Overrides::default() };
        let settings = Settings::merge(overrides, Path::new("e.toml"), text);
        settings.map(|mut settings| settings.services.remove(0)).map_err(|error| error.to_string())
    }

    fn numbers(text: &str) -> (u32, u32, u64, u64) {
        let service = merge(None, text).expect("settings").service();
        let second = 1_000_000_000;
        (
            service.answers_per_second,
            service.tolerated_per_second,
            service.penalty_ns / second,
            service.penalty_most_ns / second,
        )
    }

    const OFF: (u32, u32, u64, u64) = (0, 0, 0, 0);

    #[test]
    fn without_a_word_about_it_there_are_penalties() {
        assert_eq!(numbers(""), (50, 500, 10, 3600));
        let service = merge(None, "").expect("settings").service();
        assert_eq!((service.source_v4, service.source_v6), (32, 64));
        assert_eq!(service.flags & Service::PENALISE_SHARED, 0);
    }

    #[test]
    fn a_table_sets_what_it_names() {
        let text = "[penalty]\nanswers = \"5 per second\"\ntolerated = \"20/second\"\nfirst = \"1s\"\nlongest = \"24h\"\n\
                    shared = true\nipv4 = 24\nipv6 = 56";
        assert_eq!(numbers(text), (5, 20, 1, 86_400));
        let service = merge(None, text).expect("settings").service();
        assert_eq!((service.source_v4, service.source_v6), (24, 56));
        assert_ne!(service.flags & Service::PENALISE_SHARED, 0);
        assert_eq!(numbers("penalty = { first = \"1m\" }"), (50, 500, 60, 3600));
        assert_eq!(numbers("[penalty]\nanswers = \"unlimited\"\ntolerated = \"unlimited\""), (0, 0, 10, 3600));
    }

    #[test]
    fn it_is_switched_off_by_a_word_or_in_its_table_and_a_flag_stands_above() {
        for text in ["penalty = \"off\"", "[penalty]\nenabled = false\nanswers = \"5/second\""] {
            assert_eq!(numbers(text), OFF, "{text}");
        }
        assert_eq!(numbers("penalty = \"on\"").0, 50);
        let flag = |above, text| merge(Some(above), text).expect("settings").service().answers_per_second;
        assert_eq!(flag(Switch::On, "penalty = \"off\""), 50);
        assert_eq!(flag(Switch::On, "[penalty]\nenabled = false\nanswers = \"5/second\""), 5);
        assert_eq!(flag(Switch::Off, "[penalty]\nenabled = true"), 0);
        assert_eq!(flag(Switch::Off, ""), 0);
    }

    #[test]
    fn who_only_observes_gives_no_penalty() {
        let settings = merge(None, "mode = \"observe\"").expect("settings");
        assert_eq!((settings.mode, settings.penalty.switch), (Mode::Observe, Switch::On));
        assert_eq!((settings.service().answers_per_second, settings.service().penalty_ns), (0, 0));
    }

    #[test]
    fn says_where_in_the_file_something_is_wrong() {
        for (text, message) in [
            ("penalty = \"none\"", "e.toml:1:11: penalty: \"none\" is not accepted here; accepted: on, off"),
            (
                "penalty = 5",
                "e.toml:1:11: invalid type: integer `5`, expected a table, or the string \"on\" or \"off\"",
            ),
            ("[penalty]\nanswer = \"5/second\"", "e.toml:2:1: unknown field `answer`, expected one of `enabled`, "),
            (
                "[penalty]\nanswers = \"5/minute\"",
                "e.toml:2:11: penalty.answers: \"5/minute\" is not accepted here; accepted: 1/second to 1000000/second, or \
                 unlimited",
            ),
            ("[penalty]\nanswers = \"0/second\"", "e.toml:2:11: penalty.answers: \"0/second\" is not accepted here"),
            ("[penalty]\nanswers = \"5/second burst=9\"", "e.toml:2:11: penalty.answers: "),
            ("[penalty]\ntolerated = \"1000001/second\"", "e.toml:2:13: penalty.tolerated: "),
            ("[penalty]\ntolerated = \"blocked\"", "e.toml:2:13: penalty.tolerated: "),
            (
                "[penalty]\n  first = \"999ms\"",
                "e.toml:2:11: penalty.first: \"999ms\" is not accepted here; accepted: a time from 1s to 24h",
            ),
            ("[penalty]\nlongest = \"25h\"", "e.toml:2:11: penalty.longest: \"25h\" is not accepted here"),
            (
                "[penalty]\ntolerated = \"20/second\"",
                "e.toml:2:13: penalty: tolerated (20/second) is less than answers (50/second)",
            ),
            (
                "[penalty]\nanswers = \"unlimited\"",
                "e.toml:2:11: penalty: tolerated (500/second) is less than answers (unlimited)",
            ),
            ("[penalty]\nlongest = \"5s\"", "e.toml:2:11: penalty: longest (5s) is less than first (10s)"),
            ("[penalty]\nfirst = \"2h\"", "e.toml:2:9: penalty: longest (1h) is less than first (2h)"),
            ("[penalty]\nipv4 = 33", "e.toml:2:8: penalty.ipv4: \"33\" is not accepted here; accepted: 1 to 32 bits"),
            ("[penalty]\nipv6 = 65", "e.toml:2:8: penalty.ipv6: \"65\" is not accepted here; accepted: 1 to 64 bits"),
            ("[penalty]\nipv6 = 0", "e.toml:2:8: penalty.ipv6: \"0\" is not accepted here"),
            ("[penalty]\nshared = \"yes\"", "e.toml:2:10: invalid type: string \"yes\", expected a boolean"),
        ] {
            let error = merge(None, text).expect_err(text);
            assert!(error.starts_with(message) && !error.contains('\n'), "{text:?}: {error}");
        }
    }
}
