//! What is wrong with a file, or looks wrong, and where: with the line, and what would be accepted in its place.

use std::fmt;
use std::ops::Range;

use jiff::Timestamp;
use serde::Serialize;

use crate::credential;

/// Most problems of one file that are told; the rest is counted.
const MOST: usize = 100;
/// Most characters of a line that are shown.
const SHOWN: usize = 120;

/// What a problem means for the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// It is no policy.
    Error,
    /// It is one, of which a part does nothing, or more than was meant.
    Warning,
    /// It is one that could be better.
    Hint,
}

impl Level {
    /// What stands before the message.
    const fn prefix(self) -> &'static str {
        match self {
            Self::Error => "",
            Self::Warning => "warning: ",
            Self::Hint => "hint: ",
        }
    }
}

/// One thing that is wrong, or looks so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What it means.
    pub level: Level,
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// What is wrong there.
    pub message: String,
    /// What would be right; empty where the message says it.
    pub accepted: String,
    /// The line, or the part of it that matters.
    pub excerpt: String,
    /// Characters of the excerpt before the place.
    pub indent: usize,
    /// Characters of the place, at least 1.
    pub width: usize,
}

/// All that is wrong with a file, or looks so, by place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
pub struct Problems {
    /// The file's name.
    pub file: String,
    /// At least one.
    pub problems: Vec<Problem>,
    /// How many there are beyond these.
    pub more: usize,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, problems, more } = self;
        for (place, problem) in problems.iter().enumerate() {
            let Problem { level, line, column, message, accepted, excerpt, indent, width } = problem;
            let (gap, level) = (if place == 0 { "" } else { "\n" }, level.prefix());
            write!(f, "{gap}{file}:{line}:{column}: {level}{message}")?;
            if !accepted.is_empty() {
                write!(f, "; accepted: {accepted}")?;
            }
            let margin = line.to_string().len().max(5);
            write!(f, "\n{line:>margin$} | {excerpt}\n{:margin$} | {:indent$}{:^<width$}", "", "", "")?;
        }
        if *more > 0 {
            write!(f, "\n{file}: and {more} more")?;
        }
        Ok(())
    }
}

/// A refusal that the [`Report`] has already.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reported;

/// The file under reading, and what was found so far.
pub(super) struct Report<'f> {
    text: &'f str,
    /// The time at which it is read: what ends has ended, or not.
    now: Timestamp,
    errors: Found,
    warnings: Found,
}

/// What was found: what it means, where, the message, and what would be accepted.
#[derive(Default)]
struct Found {
    told: Vec<(Level, Range<usize>, String, String)>,
    more: usize,
}

impl Found {
    fn push(&mut self, level: Level, span: Range<usize>, message: String, accepted: String) {
        if self.told.len() < MOST {
            self.told.push((level, span, message, accepted));
        } else {
            self.more += 1;
        }
    }

    /// All of it; `None` if there is nothing.
    fn finish(self, file: &str, text: &str) -> Option<Problems> {
        let Self { mut told, more } = self;
        told.sort_by_key(|(_, span, ..)| span.start);
        let problems: Vec<_> = told.into_iter().map(|found| problem(text, found)).collect();
        (!problems.is_empty()).then(|| Problems { file: file.to_owned(), problems, more })
    }
}

impl<'f> Report<'f> {
    pub(super) fn new(text: &'f str, now: Timestamp) -> Self {
        Self { text, now, errors: Found::default(), warnings: Found::default() }
    }

    /// Whether nothing is wrong so far.
    pub(super) const fn is_clean(&self) -> bool {
        self.errors.told.is_empty()
    }

    /// Whether a time is over.
    pub(super) fn is_over(&self, time: Timestamp) -> bool {
        time <= self.now
    }

    /// The text between two places.
    pub(super) fn source(&self, span: Range<usize>) -> &'f str {
        self.text.get(span).unwrap_or_default()
    }

    /// Takes note of something that is wrong.
    pub(super) fn refuse(
        &mut self,
        span: Range<usize>,
        message: impl Into<String>,
        accepted: impl Into<String>,
    ) -> Reported {
        self.errors.push(Level::Error, span, message.into(), accepted.into());
        Reported
    }

    /// Takes note of something that does nothing, or more than is likely to be meant.
    pub(super) fn warn(&mut self, span: Range<usize>, message: impl Into<String>) {
        self.warnings.push(Level::Warning, span, message.into(), String::new());
    }

    /// Takes note of something that could be better.
    pub(super) fn hint(&mut self, span: Range<usize>, message: impl Into<String>) {
        self.warnings.push(Level::Hint, span, message.into(), String::new());
    }

    /// Where in the file a place is, as `line N`.
    pub(super) fn line(&self, at: usize) -> String {
        format!("line {}", self.text.get(..at).unwrap_or(self.text).matches('\n').count() + 1)
    }

    /// What is worth a warning or a hint, if any.
    ///
    /// # Errors
    /// All that is wrong.
    pub(super) fn finish(self, file: &str) -> Result<Option<Problems>, Problems> {
        let Self { text, now: _, errors, warnings } = self;
        match errors.finish(file, text) {
            None => Ok(warnings.finish(file, text)),
            Some(problems) => Err(problems),
        }
    }
}

/// One thing alone that is wrong.
pub(super) fn one(file: &str, text: &str, span: Range<usize>, message: String, accepted: &str) -> Problems {
    let problems = vec![problem(text, (Level::Error, span, message, accepted.to_owned()))];
    Problems { file: file.to_owned(), problems, more: 0 }
}

fn problem(text: &str, (level, span, message, accepted): (Level, Range<usize>, String, String)) -> Problem {
    let start = text.floor_char_boundary(span.start);
    let before = &text[..start];
    let begin = before.rfind('\n').map_or(0, |newline| newline + 1);
    let end = text[start..].find('\n').map_or(text.len(), |newline| start + newline);
    let last = text.floor_char_boundary(span.end).clamp(start, end);
    let column = text[begin..start].chars().count();
    // One character for one: the caret stays below its place.
    let line: Vec<char> =
        without_keys(&text[begin..end]).chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let skipped = column.saturating_sub(SHOWN / 2).min(line.len().saturating_sub(SHOWN));
    let excerpt: String = line.iter().skip(skipped).take(SHOWN).collect();
    let indent = column - skipped;
    let width = text[start..last].chars().count().clamp(1, SHOWN.saturating_sub(indent).max(1));
    Problem {
        level,
        line: before.matches('\n').count() + 1,
        column: column + 1,
        message: without_keys(&message),
        accepted,
        excerpt: excerpt.trim_end().to_owned(),
        indent,
        width,
    }
}

/// The text with every key that the enforcer has made overwritten, character by character: someone may have written one
/// where a name should be.
fn without_keys(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c.is_ascii_alphanumeric() || c == '_') {
        let (before, from) = rest.split_at(at);
        let end = from.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(from.len());
        let (word, behind) = from.split_at(end);
        shown.push_str(before);
        match credential::is_generated(word.as_bytes()) {
            true => shown.extend(std::iter::repeat_n('*', word.len())),
            false => shown.push_str(word),
        }
        rest = behind;
    }
    shown + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, span: Range<usize>) -> String {
        let mut report = Report::new(text, Timestamp::UNIX_EPOCH);
        let Reported = report.refuse(span, "wrong", "right");
        report.finish("p.toml").expect_err("a problem").to_string()
    }

    #[test]
    fn shows_the_line_with_a_caret_below_the_place() {
        assert_eq!(
            shown("a = 1\n\tbé = 22 # c\n", 13..15),
            "p.toml:2:7: wrong; accepted: right\n    2 |  bé = 22 # c\n      |       ^^"
        );
        assert_eq!(shown("ab", 2..2), "p.toml:1:3: wrong; accepted: right\n    1 | ab\n      |   ^");
        assert_eq!(shown("", 0..0), "p.toml:1:1: wrong; accepted: right\n    1 | \n      | ^");
        assert_eq!(shown("a\nb", 0..3), "p.toml:1:1: wrong; accepted: right\n    1 | a\n      | ^");
    }

    #[test]
    fn a_warning_is_no_error_and_is_lost_behind_one() {
        let mut report = Report::new("a\nb\n", Timestamp::UNIX_EPOCH);
        report.warn(2..3, "odd");
        report.hint(0..1, "better");
        let shown = report.finish("p.toml").expect("no error").expect("warnings").to_string();
        let [first, .., _] = shown.lines().collect::<Vec<_>>()[..] else { panic!("{shown}") };
        assert!(first == "p.toml:1:1: hint: better" && shown.contains("\np.toml:2:1: warning: odd\n"), "{shown}");
        let mut report = Report::new("a", Timestamp::UNIX_EPOCH);
        report.warn(0..1, "odd");
        let Reported = report.refuse(0..1, "wrong", "");
        assert_eq!(report.finish("p.toml").expect_err("an error").problems.len(), 1);
    }

    #[test]
    fn shows_the_part_of_a_long_line_that_matters() {
        let text = format!("{}X{}", "a".repeat(300), "b".repeat(300));
        let shown = shown(&text, 300..301);
        let lines: Vec<_> = shown.lines().collect();
        assert!(lines[0].starts_with("p.toml:1:301: "), "{shown}");
        assert_eq!(lines[1].find('X'), lines[2].find('^'));
        assert!(lines[1].chars().count() < SHOWN + 10, "{shown}");
    }

    #[test]
    fn shows_no_key() {
        let key = credential::generate().expect("random bytes");
        let text = format!("[plan.{}]", *key);
        let mut report = Report::new(&text, Timestamp::UNIX_EPOCH);
        let Reported = report.refuse(6..10, format!("{:?} is wrong", *key), "");
        let shown = report.finish("p.toml").expect_err("a problem").to_string();
        assert!(!shown.contains(&key[4..]) && shown.contains(&"*".repeat(39)), "{shown}");
    }

    #[test]
    fn tells_all_in_their_order_and_counts_those_beyond() {
        let mut report = Report::new("a\nb\n", Timestamp::UNIX_EPOCH);
        for _ in 0..MOST {
            report.refuse(2..3, "second", "");
        }
        report.refuse(0..1, "lost", "");
        let problems = report.finish("p.toml").expect_err("problems");
        assert_eq!((problems.problems.len(), problems.more), (MOST, 1));
        let mut report = Report::new("a\nb\n", Timestamp::UNIX_EPOCH);
        report.refuse(2..3, "second", "");
        report.refuse(0..1, "first", "");
        let shown = report.finish("p.toml").expect_err("problems").to_string();
        assert!(shown.find("first") < shown.find("second"), "{shown}");
    }
}
