//! The fields of a table, each read as what it should be; what is not is reported and the rest goes on.

use std::fmt;
use std::ops::{Range, RangeInclusive};
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Report, Reported};
use crate::config::bounds;
use crate::policy::document::meaning;
use crate::policy::path::Misread;
use crate::policy::{Limits, ParseError};
use crate::prefix::Prefix;

/// What a field that may be absent is read as.
pub(super) type Read<T> = Result<Option<T>, Reported>;

/// A table whose fields are all known.
pub(super) struct Fields<'t, 'f> {
    table: &'t DeTable<'f>,
    /// What it is called in messages, such as `plan.gold`; empty for the file.
    name: String,
    /// Where it begins.
    span: Range<usize>,
}

/// A table by what was found in the place of one, or the refusal.
pub(super) fn table<'t, 'f>(
    value: &'t Spanned<DeValue<'f>>,
    name: &str,
    report: &mut Report<'_>,
) -> Result<&'t DeTable<'f>, Reported> {
    match value.get_ref() {
        DeValue::Table(table) => Ok(table),
        other => Err(report.refuse(value.span(), format!("{name}: {} stands here", kind(other)), "a table")),
    }
}

const fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a time",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

impl<'t, 'f> Fields<'t, 'f> {
    /// The fields of `table`, which is called `name` and begins at `span`; all but the `known` ones are refused.
    pub(super) fn new(
        table: &'t DeTable<'f>,
        name: String,
        span: Range<usize>,
        known: &[&str],
        report: &mut Report<'_>,
    ) -> Self {
        for (key, _) in table {
            if !known.contains(&key.get_ref().as_ref()) {
                let place = if name.is_empty() { "the file".into() } else { format!("`{name}`") };
                let message = format!("{:?} is no field of {place}", key.get_ref());
                report.refuse(key.span(), message, known.join(", "));
            }
        }
        Self { table, name, span }
    }

    /// The name of a field in messages.
    fn path(&self, field: &str) -> String {
        if self.name.is_empty() { field.to_owned() } else { format!("{}.{field}", self.name) }
    }

    /// Where a field stands, or where its table begins.
    pub(super) fn place(&self, field: &str) -> Range<usize> {
        self.table.get_key_value(field).map_or_else(|| self.span.clone(), |(key, _)| key.span())
    }

    pub(super) fn get(&self, field: &str) -> Option<&'t Spanned<DeValue<'f>>> {
        self.table.get(field)
    }

    pub(super) fn has(&self, field: &str) -> bool {
        self.table.contains_key(field)
    }

    /// Whether an array stands there with nothing in it.
    pub(super) fn is_empty_array(&self, field: &str) -> bool {
        self.get(field).and_then(|value| value.get_ref().as_array()).is_some_and(|array| array.is_empty())
    }

    /// Refuses a field, or its absence.
    pub(super) fn refuse(
        &self,
        field: &str,
        message: impl fmt::Display,
        accepted: impl Into<String>,
        report: &mut Report<'_>,
    ) -> Reported {
        report.refuse(self.place(field), format!("{}: {message}", self.path(field)), accepted)
    }

    /// Warns of the value of a field.
    pub(super) fn warn(&self, field: &str, message: impl fmt::Display, report: &mut Report<'_>) {
        let place = self.get(field).map_or_else(|| self.place(field), Spanned::span);
        report.warn(place, format!("{}: {message}", self.path(field)));
    }

    /// Refuses the value of a field.
    fn refuse_value(
        &self,
        field: &str,
        value: &Spanned<DeValue<'_>>,
        message: impl fmt::Display,
        accepted: impl Into<String>,
        report: &mut Report<'_>,
    ) -> Reported {
        report.refuse(value.span(), format!("{}: {message}", self.path(field)), accepted)
    }

    fn refuse_kind(
        &self,
        field: &str,
        value: &Spanned<DeValue<'_>>,
        accepted: &str,
        report: &mut Report<'_>,
    ) -> Reported {
        self.refuse_value(field, value, format!("{} stands here", kind(value.get_ref())), accepted, report)
    }

    pub(super) fn text(&self, field: &str, accepted: &str, report: &mut Report<'_>) -> Read<(Range<usize>, &'t str)> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match value.get_ref() {
            DeValue::String(text) => Ok(Some((value.span(), text.as_ref()))),
            _ => Err(self.refuse_kind(field, value, accepted, report)),
        }
    }

    /// A text that is read by its type's own rules.
    pub(super) fn parsed<T: FromStr<Err: fmt::Display>>(
        &self,
        field: &str,
        accepted: &str,
        report: &mut Report<'_>,
    ) -> Read<T> {
        let Some((span, text)) = self.text(field, accepted, report)? else { return Ok(None) };
        let read = text
            .parse()
            .map_err(|error: T::Err| report.refuse(span, format!("{}: {error}", self.path(field)), accepted));
        read.map(Some)
    }

    pub(super) fn limits(&self, field: &str, report: &mut Report<'_>) -> Read<Limits> {
        let Some((span, text)) = self.text(field, "a limit such as \"100/minute\"", report)? else { return Ok(None) };
        limits(span, text, &self.path(field), report).map(Some)
    }

    /// Limits of a bucket that many share.
    pub(super) fn shared(&self, field: &str, report: &mut Report<'_>) -> Read<Limits> {
        let limits = self.limits(field, report)?;
        match limits {
            Some(limits) if limits.penalize() => Err(self.refuse_penalize(field, report)),
            limits => Ok(limits),
        }
    }

    /// Refuses that limits which many share count what they refuse.
    pub(super) fn refuse_penalize(&self, field: &str, report: &mut Report<'_>) -> Reported {
        const OPTION: &str = "penalize=true";
        let written = self.get(field).and_then(|value| Some((value.span(), value.get_ref().as_str()?)));
        let place = written.map_or_else(
            || self.place(field),
            |(span, text)| match text.to_ascii_lowercase().find(OPTION) {
                Some(at) => Range {
                    end: within(span.clone(), text, at + OPTION.len() - 1, report).end,
                    ..within(span, text, at, report)
                },
                None => span,
            },
        );
        let message = format!(
            "{}: {OPTION} where many share the limit: one of them could keep all others refused",
            self.path(field)
        );
        report.refuse(place, message, "it on limits of principals, keys, client ids and sources")
    }

    /// Limits that must be some.
    pub(super) fn bounded(&self, field: &str, report: &mut Report<'_>) -> Read<Limits> {
        let limits = self.limits(field, report)?;
        match self.get(field) {
            Some(value) if limits == Some(Limits::Unlimited) => {
                let message = "`unlimited`, where no key is needed";
                let accepted = "a limit such as \"60/minute\", or \"blocked\"";
                Err(self.refuse_value(field, value, message, accepted, report))
            }
            _ => Ok(limits),
        }
    }

    /// Limits that are counted beside others.
    pub(super) fn candidate(&self, field: &str, report: &mut Report<'_>) -> Read<Limits> {
        match self.limits(field, report)? {
            Some(Limits::Unlimited) => {
                Err(self.refuse(field, "`unlimited` would refuse nobody", "a limit such as \"60/minute\"", report))
            }
            limits => Ok(limits),
        }
    }

    /// One of some words.
    pub(super) fn word<T: Copy>(&self, field: &str, words: &[(&str, T)], report: &mut Report<'_>) -> Read<T> {
        let accepted = || words.iter().map(|(word, _)| format!("{word:?}")).collect::<Vec<_>>().join(", ");
        let Some(value) = self.get(field) else { return Ok(None) };
        let DeValue::String(text) = value.get_ref() else {
            return Err(self.refuse_kind(field, value, &accepted(), report));
        };
        match meaning(words, text) {
            Some(meaning) => Ok(Some(meaning)),
            None => Err(self.refuse_value(field, value, format!("{text:?}"), accepted(), report)),
        }
    }

    pub(super) fn flag(&self, field: &str, report: &mut Report<'_>) -> Read<bool> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match value.get_ref() {
            DeValue::Boolean(flag) => Ok(Some(*flag)),
            _ => Err(self.refuse_kind(field, value, "true, false", report)),
        }
    }

    pub(super) fn number(&self, field: &str, range: RangeInclusive<u32>, report: &mut Report<'_>) -> Read<u32> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let accepted = match range.start() == range.end() {
            true => range.start().to_string(),
            false => format!("a whole number from {} to {}", range.start(), range.end()),
        };
        let DeValue::Integer(integer) = value.get_ref() else {
            return Err(self.refuse_kind(field, value, &accepted, report));
        };
        match u32::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(self.refuse_value(field, value, integer, accepted, report)),
        }
    }

    pub(super) fn duration(
        &self,
        field: &str,
        range: RangeInclusive<Duration>,
        accepted: &'static str,
        report: &mut Report<'_>,
    ) -> Read<Duration> {
        let Some((span, text)) = self.text(field, accepted, report)? else { return Ok(None) };
        match bounds::time(text, range, accepted) {
            Ok(duration) => Ok(Some(duration)),
            Err(_) => Err(report.refuse(span, format!("{}: {text:?}", self.path(field)), accepted)),
        }
    }

    /// A point in time, to the second.
    pub(super) fn time(&self, field: &str, report: &mut Report<'_>) -> Read<Timestamp> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let accepted = "a time with its offset and whole seconds, without quotes, such as 2026-12-01T00:00:00Z";
        let DeValue::Datetime(written) = value.get_ref() else {
            return Err(self.refuse_kind(field, value, accepted, report));
        };
        let wrong = match written.to_string().parse::<Timestamp>() {
            _ if written.time.is_none() => "has no time of day",
            _ if written.offset.is_none() => "has no offset",
            Ok(time) if time.subsec_nanosecond() != 0 => "is within a second",
            Ok(time) if time < Timestamp::UNIX_EPOCH => "is before 1970",
            Ok(time) => return Ok(Some(time)),
            Err(_) => "is no time",
        };
        Err(self.refuse_value(field, value, format!("{written} {wrong}"), accepted, report))
    }

    /// Where the first of an array stands that is so, or the field.
    pub(super) fn element(&self, field: &str, is_so: impl Fn(&str) -> bool) -> Range<usize> {
        let elements = self.get(field).and_then(|value| value.get_ref().as_array()).into_iter().flatten();
        let mut found = elements.filter(|element| element.get_ref().as_str().is_some_and(&is_so));
        found.next().map_or_else(|| self.place(field), Spanned::span)
    }

    /// The values of an array that is not empty, with their places.
    pub(super) fn list(
        &self,
        field: &str,
        accepted: &str,
        report: &mut Report<'_>,
    ) -> Read<Vec<(Range<usize>, &'t str)>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let DeValue::Array(array) = value.get_ref() else {
            return Err(self.refuse_kind(field, value, &format!("an array of {accepted}"), report));
        };
        let mut list = Vec::with_capacity(array.len());
        let mut wrong = None;
        for element in array {
            match element.get_ref() {
                DeValue::String(text) => list.push((element.span(), text.as_ref())),
                _ => wrong = Some(self.refuse_kind(field, element, accepted, report)),
            }
        }
        if array.is_empty() {
            let message = "an empty array";
            wrong = Some(self.refuse_value(field, value, message, format!("at least one: {accepted}"), report));
        }
        wrong.map_or(Ok(Some(list)), Err)
    }

    /// Addresses, sorted, each once.
    pub(super) fn prefixes(&self, field: &str, report: &mut Report<'_>) -> Read<Vec<Prefix>> {
        let mut prefixes = self.distinct(field, Prefix::ACCEPTED, Prefix::exact, report)?;
        if let Some(prefixes) = &mut prefixes {
            prefixes.sort_unstable();
        }
        Ok(prefixes)
    }

    /// The values of an array that is not empty, as `read` has them or refuses them, with what it accepts; each once.
    pub(super) fn distinct<T: PartialEq>(
        &self,
        field: &str,
        accepted: &str,
        read: impl Fn(&str) -> Result<T, (String, String)>,
        report: &mut Report<'_>,
    ) -> Read<Vec<T>> {
        let Some(list) = self.list(field, accepted, report)? else { return Ok(None) };
        let mut values = Vec::with_capacity(list.len());
        let mut wrong = None;
        for (span, text) in list {
            let found = match read(text) {
                Ok(value) if values.contains(&value) => Err((format!("{text:?} stands twice"), "each once".to_owned())),
                found => found,
            };
            match found {
                Ok(value) => values.push(value),
                Err((message, accepted)) => {
                    wrong = Some(report.refuse(span, format!("{}: {message}", self.path(field)), accepted));
                }
            }
        }
        wrong.map_or(Ok(Some(values)), Err)
    }

    /// A path, by the rules of what it is for.
    pub(super) fn path_of<T>(
        &self,
        field: &str,
        read: impl FnOnce(&str) -> Result<T, Misread>,
        report: &mut Report<'_>,
    ) -> Read<T> {
        let accepted = crate::policy::path::PATTERN;
        let Some((span, text)) = self.text(field, accepted, report)? else { return Ok(None) };
        let pattern = read(text).map_err(|Misread { at, message, accepted }| {
            report.refuse(within(span, text, at, report), format!("{}: {message}", self.path(field)), accepted)
        });
        pattern.map(Some)
    }
}

/// Limits in their own order.
pub(super) fn limits(span: Range<usize>, text: &str, name: &str, report: &mut Report<'_>) -> Result<Limits, Reported> {
    match text.parse::<Limits>() {
        Ok(limits) => Ok(limits.canonical()),
        Err(ParseError { column, message, accepted }) => {
            let at = text.char_indices().nth(column.saturating_sub(1)).map_or(text.len(), |(at, _)| at);
            Err(report.refuse(within(span, text, at, report), format!("{name}: {message}"), accepted))
        }
    }
}

/// The place of a byte of a string in the file; the whole string if escapes stand in between.
fn within(span: Range<usize>, text: &str, at: usize, report: &Report<'_>) -> Range<usize> {
    let written = report.source(span.clone());
    if written.len() != text.len() + 2 || written.get(1..=text.len()) != Some(text) {
        return span;
    }
    let start = span.start + 1 + at;
    let width = text.get(at..).and_then(|rest| rest.chars().next()).map_or(1, char::len_utf8);
    start..start + width
}
