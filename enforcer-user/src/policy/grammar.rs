//! The grammar of limit strings: a superset of Flask-Limiter's, so that a limit can be copied from an app's code.
//!
//! Every refusal names the column, what was found there and what is accepted instead. White space is free between
//! tokens and case does not matter.

use winnow::ascii::{Caseless, digit1, multispace0};
use winnow::combinator::opt;
use winnow::error::ParserError;
use winnow::prelude::*;
use winnow::stream::{LocatingSlice, Location, Stream};
use winnow::token::{one_of, take_while};

use enforcer_ebpf::abi::LIMITS;
use enforcer_ebpf::limit::{MAX_COST, MAX_COUNT};

use super::{LimitName, Limits, MAX_WINDOW, Method, Rule, Unit, count_fits};

/// The grammar in one line, for help texts and refusals.
pub const GRAMMAR: &str = "COUNT/[N]UNIT or COUNT per [N] UNIT, with burst=N, algo=sliding|fixed|gcra or align=calendar, \
                           penalize=true, cost=N and name=ID behind it, up to 4 of them separated by `;`; or `unlimited`; or `blocked`";

const OPTIONS: &str = "burst=N, algo=sliding|fixed|gcra, align=calendar, penalize=true, cost=N, name=ID";
const NAMES: &str = "1 to 16 of a-z 0-9 - _";
const UNITS: &str = "second, minute, hour, day, week, month (30 days), year (365 days), their plurals, \
                     or s, m, h, d, w, mo, y";
const DELIMITERS: &str = "`/` or `per`";
const SEPARATORS: [char; 3] = [';', ',', '|'];

/// Longest limit string in bytes; four rules with all options, canonically spelled, need little more than half of it.
const MAX_LEN: usize = 512;

/// Why a limit string was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {message}; accepted: {accepted}")]
pub struct ParseError {
    /// Where, in characters from 1.
    pub column: usize,
    /// What is wrong there.
    pub message: String,
    /// What would be right.
    pub accepted: String,
}

type Input<'a> = LocatingSlice<&'a str>;

/// A refusal whose place is a byte offset still.
#[derive(Debug)]
struct Refusal {
    offset: usize,
    message: String,
    accepted: String,
}

impl<'a> ParserError<Input<'a>> for Refusal {
    type Inner = Self;

    fn from_input(input: &Input<'a>) -> Self {
        Self::new(input.current_token_start(), format!("{} is not understood", found(input)), GRAMMAR)
    }

    fn into_inner(self) -> Result<Self, Self> {
        Ok(self)
    }
}

impl Refusal {
    fn new(offset: usize, message: impl Into<String>, accepted: impl Into<String>) -> Self {
        Self { offset, message: message.into(), accepted: accepted.into() }
    }
}

/// Parses a whole limit string.
pub(super) fn parse(text: &str) -> Result<Limits, ParseError> {
    let mut input = LocatingSlice::new(text);
    let parsed = if text.len() > MAX_LEN {
        Err(Refusal::new(MAX_LEN, format!("the limit is longer than {MAX_LEN} bytes"), GRAMMAR))
    } else {
        list(&mut input)
    };
    parsed.map_err(|Refusal { offset, message, accepted }| {
        let column = 1 + text.char_indices().take_while(|(index, _)| *index < offset).count();
        ParseError { column, message, accepted }
    })
}

/// The rest of the input up to white space, quoted for a message: short, and without control characters.
fn found(input: &Input<'_>) -> String {
    let rest: &str = input.as_ref();
    let word = rest.split_whitespace().next().unwrap_or("");
    quoted(word)
}

fn quoted(text: &str) -> String {
    const SHOWN: usize = 32;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("\"{}…\"", text[..end].escape_debug()),
        None => format!("\"{}\"", text.escape_debug()),
    }
}

fn at_end(input: &Input<'_>) -> bool {
    input.eof_offset() == 0
}

fn white<'a>(input: &mut Input<'a>) -> Result<&'a str, Refusal> {
    multispace0.parse_next(input)
}

fn word<'a>(input: &mut Input<'a>) -> Result<&'a str, Refusal> {
    take_while(0.., |c: char| c.is_ascii_alphabetic()).parse_next(input)
}

/// `limit (separator limit)*`, or one of the two words.
fn list(input: &mut Input<'_>) -> Result<Limits, Refusal> {
    white(input)?;
    if at_end(input) {
        return Err(Refusal::new(input.current_token_start(), "the limit is empty", GRAMMAR));
    }
    if let Some(limits) = alone(input)? {
        return Ok(limits);
    }
    let mut rules = Vec::new();
    loop {
        white(input)?;
        let start = input.current_token_start();
        if at_end(input) {
            return Err(Refusal::new(start, "a limit is missing after the separator", GRAMMAR));
        }
        if rules.len() == LIMITS {
            return Err(Refusal::new(start, "a fifth limit", format!("at most {LIMITS} that apply together")));
        }
        let rule = rule(input)?;
        if let Some(name) = rule.name.filter(|name| rules.iter().any(|other: &Rule| other.name == Some(*name))) {
            return Err(Refusal::new(start, format!("a second limit with the name {name}"), "another name"));
        }
        rules.push(rule);
        white(input)?;
        if at_end(input) {
            return Ok(Limits::Rules(rules));
        }
        let start = input.current_token_start();
        if opt(one_of::<_, _, Refusal>(SEPARATORS)).parse_next(input)?.is_none() {
            let accepted = format!("{OPTIONS}, a separator (; , |), or the end");
            return Err(Refusal::new(start, format!("{} follows a complete limit", found(input)), accepted));
        }
    }
}

/// `unlimited` or `blocked`, if the input begins with a letter.
fn alone(input: &mut Input<'_>) -> Result<Option<Limits>, Refusal> {
    let start = input.current_token_start();
    let name = word(input)?;
    let limits = match name.to_ascii_lowercase().as_str() {
        "" => return Ok(None),
        "unlimited" => Limits::Unlimited,
        "blocked" => Limits::Blocked,
        _ => {
            let accepted = format!("a whole number from 0 to {MAX_COUNT}, or `unlimited`, or `blocked`");
            return Err(Refusal::new(start, format!("{} is no count", quoted(name)), accepted));
        }
    };
    let end = input.current_token_start();
    white(input)?;
    if at_end(input) {
        return Ok(Some(limits));
    }
    let rest: &str = input.as_ref();
    Err(Refusal::new(end, format!("{} follows `{limits}`", quoted(rest)), format!("`{limits}` alone")))
}

/// `count ("/" | "per") [n] unit option*`
fn rule(input: &mut Input<'_>) -> Result<Rule, Refusal> {
    let start = input.current_token_start();
    let count = count(input)?;
    delimiter(input)?;
    let (every, unit) = window(input)?;
    let Options { burst, algorithm, calendar, penalize, cost, name } = options(input)?;
    let whole = |message: String, accepted: &str| Refusal::new(start, message, accepted);
    let (count, burst) = match cost {
        Some(cost) => at_cost(count, burst, algorithm, cost).map_err(|(message, accepted)| whole(message, accepted))?,
        None => (count, burst),
    };
    let method = match (algorithm, burst) {
        (Some(algorithm @ (Algorithm::Sliding | Algorithm::Fixed)), Some(_)) => {
            let message = format!("burst= does not go with algo={}", algorithm.as_str());
            return Err(whole(message, "burst=N with algo=gcra, or alone"));
        }
        (None, Some(_)) if calendar => {
            return Err(whole("burst= does not go with align=calendar".into(), "burst=N with algo=gcra, or alone"));
        }
        (Some(algorithm @ (Algorithm::Sliding | Algorithm::Gcra)), _) if calendar => {
            let message = format!("align=calendar does not go with algo={}", algorithm.as_str());
            return Err(whole(message, "align=calendar with algo=fixed, or alone"));
        }
        (None | Some(Algorithm::Fixed), None) if calendar => Method::Calendar,
        (None | Some(Algorithm::Sliding), None) => Method::Sliding,
        (Some(Algorithm::Fixed), None) => Method::Fixed,
        (Some(Algorithm::Gcra) | None, burst) => Method::Gcra { burst: burst.unwrap_or(count) },
    };
    if calendar && every > 1 && matches!(unit, Unit::Week | Unit::Month | Unit::Year) {
        let message = format!("a calendar window of {every} {}s", unit.as_str());
        return Err(whole(message, "1 week, month or year, or any number of shorter units"));
    }
    let (penalize, place) = penalize.unwrap_or((false, start));
    if penalize && !method.can_penalize() {
        let other = if calendar { "align=calendar" } else { "algo=fixed" };
        let message = format!("penalize=true does not go with {other}, whose window ends when it ends");
        return Err(Refusal::new(place, message, "penalize=true with algo=sliding or algo=gcra, or alone"));
    }
    let rule = Rule { count, every, unit, method, penalize, name };
    if let Method::Gcra { .. } = method {
        if count == 0 {
            let accepted = "a count of 1 or more with burst= or algo=gcra, or `blocked`";
            return Err(whole("a count of 0 has no rate".into(), accepted));
        }
        refills_in_time(&rule).map_err(|(message, accepted)| whole(message, accepted))?;
    }
    Ok(rule)
}

/// What is left of a count and a burst where each request takes `cost` of them: then as many requests pass as with that cost
/// and the whole count, since no part of a request passes. Of a rate such a part is worth something, and is not cut.
fn at_cost(
    count: u32,
    burst: Option<u32>,
    algorithm: Option<Algorithm>,
    cost: u32,
) -> Result<(u32, Option<u32>), (String, &'static str)> {
    if count != 0 && cost > count || burst.is_some_and(|burst| cost > burst) {
        return Err((format!("no request of cost {cost} would ever pass"), "a cost up to the count and the burst"));
    }
    let has_rate = burst.is_some() || matches!(algorithm, Some(Algorithm::Gcra));
    if has_rate && !count.is_multiple_of(cost) {
        let message = format!("{count} at a steady rate for requests of cost {cost}");
        return Err((message, "a count that is a multiple of the cost"));
    }
    Ok((count / cost, burst.map(|burst| burst / cost)))
}

/// Whether a burst refills within [`MAX_WINDOW`], and the dearest request's time is a number of 64 bits; so no sum or product of
/// GCRA times wraps.
pub(super) fn refills_in_time(rule: &Rule) -> Result<(), (String, &'static str)> {
    let Method::Gcra { burst } = rule.method else { return Ok(()) };
    if rule.interval().checked_mul(u64::from(burst)).is_none_or(|time| time > MAX_WINDOW * 1_000_000_000) {
        let message = format!("a burst of {burst} takes longer than 10 years to refill");
        return Err((message, "a smaller burst, or a shorter window"));
    }
    if rule.interval().checked_mul(MAX_COST).is_none() {
        return Err(("less than one request in two years".to_owned(), "a higher count, or a shorter window"));
    }
    Ok(())
}

fn count(input: &mut Input<'_>) -> Result<u32, Refusal> {
    let accepted = format!("a whole number from 0 to {MAX_COUNT}");
    let start = input.current_token_start();
    let Some(digits) = opt(digit1::<_, Refusal>).parse_next(input)? else {
        let name = word(input)?;
        let rest: &str = input.as_ref();
        let found = match (name, rest.chars().next()) {
            ("", Some(first)) => quoted(first.encode_utf8(&mut [0; 4])),
            _ => quoted(name),
        };
        return Err(Refusal::new(start, format!("{found} is no count"), accepted));
    };
    match digits.parse::<u64>() {
        Ok(count) if count_fits(count) => Ok(count as u32),
        _ => Err(Refusal::new(start, format!("{digits} is too large a count"), accepted)),
    }
}

fn delimiter(input: &mut Input<'_>) -> Result<(), Refusal> {
    white(input)?;
    let start = input.current_token_start();
    let slash = opt("/".void()).parse_next(input)?;
    if slash.is_none() && opt(Caseless("per").void()).parse_next(input)?.is_none() {
        let message = match at_end(input) {
            true => format!("{DELIMITERS} is missing after the count"),
            false => format!("{} stands where {DELIMITERS} should", found(input)),
        };
        return Err(Refusal::new(start, message, DELIMITERS));
    }
    white(input)?;
    Ok(())
}

/// `[n] unit`
fn window(input: &mut Input<'_>) -> Result<(u32, Unit), Refusal> {
    let start = input.current_token_start();
    let digits = opt(digit1::<_, Refusal>).parse_next(input)?;
    white(input)?;
    let place = input.current_token_start();
    let name = word(input)?;
    let unit = match name {
        "" if at_end(input) => Err(Refusal::new(place, "the unit of time is missing", UNITS)),
        "" => Err(Refusal::new(place, format!("{} is no unit of time", found(input)), UNITS)),
        _ => unit(name).ok_or_else(|| Refusal::new(place, format!("{} is no unit of time", quoted(name)), UNITS)),
    }?;
    let Some(digits) = digits else { return Ok((1, unit)) };
    let refusal = |accepted: &str| Refusal::new(start, format!("a window of {digits} {}s", unit.as_str()), accepted);
    match digits.parse::<u32>() {
        Ok(0) => Err(refusal("1 or more")),
        Ok(every) if u64::from(every) * unit.seconds() <= MAX_WINDOW => Ok((every, unit)),
        _ => Err(refusal("at most 10 years (3650 days)")),
    }
}

fn unit(name: &str) -> Option<Unit> {
    Some(match name.to_ascii_lowercase().as_str() {
        "s" | "sec" | "secs" | "second" | "seconds" => Unit::Second,
        "m" | "min" | "mins" | "minute" | "minutes" => Unit::Minute,
        "h" | "hr" | "hrs" | "hour" | "hours" => Unit::Hour,
        "d" | "day" | "days" => Unit::Day,
        "w" | "week" | "weeks" => Unit::Week,
        "mo" | "month" | "months" => Unit::Month,
        "y" | "yr" | "yrs" | "year" | "years" => Unit::Year,
        _ => return None,
    })
}

#[derive(Clone, Copy)]
enum Algorithm {
    Sliding,
    Fixed,
    Gcra,
}

impl Algorithm {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Sliding => "sliding",
            Self::Fixed => "fixed",
            Self::Gcra => "gcra",
        }
    }
}

#[derive(Default)]
struct Options {
    burst: Option<u32>,
    algorithm: Option<Algorithm>,
    calendar: bool,
    /// With the place where it stands.
    penalize: Option<(bool, usize)>,
    cost: Option<u32>,
    name: Option<LimitName>,
}

/// `(("burst=" n) | ("algo=" name) | "align=calendar" | ("penalize=" flag) | ("cost=" n) | ("name=" id))*`, each at most once.
fn options(input: &mut Input<'_>) -> Result<Options, Refusal> {
    let mut options = Options::default();
    loop {
        let before = input.checkpoint();
        white(input)?;
        let start = input.current_token_start();
        let option = word(input)?;
        if option.is_empty() || opt("=".void()).parse_next(input)?.is_none() {
            input.reset(&before);
            return Ok(options);
        }
        let place = input.current_token_start();
        let value: &str =
            take_while(0.., |c: char| !c.is_whitespace() && !SEPARATORS.contains(&c)).parse_next(input)?;
        let option = option.to_ascii_lowercase();
        let twice = match option.as_str() {
            "burst" => options.burst.replace(whole_value("burst", place, value)?).is_some(),
            "cost" => options.cost.replace(whole_value("cost", place, value)?).is_some(),
            "algo" => options.algorithm.replace(algorithm_value(place, value)?).is_some(),
            "align" => std::mem::replace(&mut options.calendar, calendar_value(place, value)?),
            "penalize" => options.penalize.replace((flag_value(place, value)?, start)).is_some(),
            "name" => options.name.replace(name_value(place, value)?).is_some(),
            _ => return Err(Refusal::new(start, format!("{} is no option", quoted(&option)), OPTIONS)),
        };
        if twice {
            return Err(Refusal::new(start, format!("{option}= stands twice"), "each option once"));
        }
    }
}

fn whole_value(option: &str, place: usize, value: &str) -> Result<u32, Refusal> {
    let accepted = format!("a whole number from 1 to {MAX_COUNT}");
    match value.parse::<u64>() {
        Ok(number) if number > 0 && count_fits(number) => Ok(number as u32),
        _ if value.is_empty() => Err(Refusal::new(place, format!("the value of {option}= is missing"), accepted)),
        _ => Err(Refusal::new(place, format!("{} is no {option}", quoted(value)), accepted)),
    }
}

fn algorithm_value(place: usize, value: &str) -> Result<Algorithm, Refusal> {
    Ok(match value.to_ascii_lowercase().as_str() {
        "sliding" => Algorithm::Sliding,
        "fixed" => Algorithm::Fixed,
        "gcra" => Algorithm::Gcra,
        "" => return Err(Refusal::new(place, "the value of algo= is missing", "sliding, fixed, gcra")),
        _ => return Err(Refusal::new(place, format!("{} is no algorithm", quoted(value)), "sliding, fixed, gcra")),
    })
}

/// `true`: there is one alignment.
fn calendar_value(place: usize, value: &str) -> Result<bool, Refusal> {
    match value.to_ascii_lowercase().as_str() {
        "calendar" => Ok(true),
        "" => Err(Refusal::new(place, "the value of align= is missing", "calendar")),
        _ => Err(Refusal::new(place, format!("{} is no alignment", quoted(value)), "calendar")),
    }
}

fn flag_value(place: usize, value: &str) -> Result<bool, Refusal> {
    match value.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        "" => Err(Refusal::new(place, "the value of penalize= is missing", "true, false")),
        _ => Err(Refusal::new(place, format!("{} is neither true nor false", quoted(value)), "true, false")),
    }
}

fn name_value(place: usize, value: &str) -> Result<LimitName, Refusal> {
    if value.is_empty() {
        return Err(Refusal::new(place, "the value of name= is missing", NAMES));
    }
    LimitName::new(value)
        .filter(|_| !value.contains(|c: char| c.is_ascii_uppercase() || c == '.'))
        .ok_or_else(|| Refusal::new(place, format!("{} is no name of a limit", quoted(value)), NAMES))
}
