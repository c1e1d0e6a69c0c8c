//! What is wrong with a file, and where: with the line, and what would be accepted in its place.

use std::fmt;
use std::ops::Range;

use serde::Serialize;

use crate::credential;

/// Most problems of one file that are told; the rest is counted.
const MOST: usize = 100;
/// Most characters of a line that are shown.
const SHOWN: usize = 120;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
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

/// All that is wrong with a file, by place.
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
            let Problem { line, column, message, accepted, excerpt, indent, width } = problem;
            let gap = if place == 0 { "" } else { "\n" };
            write!(f, "{gap}{file}:{line}:{column}: {message}")?;
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

/// The file under reading, and what was found wrong so far.
pub(super) struct Report<'f> {
    text: &'f str,
    found: Vec<(Range<usize>, String, String)>,
    more: usize,
}

impl<'f> Report<'f> {
    pub(super) const fn new(text: &'f str) -> Self {
        Self { text, found: Vec::new(), more: 0 }
    }

    /// Whether nothing is wrong so far.
    pub(super) const fn is_clean(&self) -> bool {
        self.found.is_empty()
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
        if self.found.len() < MOST {
            self.found.push((span, message.into(), accepted.into()));
        } else {
            self.more += 1;
        }
        Reported
    }

    /// Where in the file a place is, as `line N`.
    pub(super) fn line(&self, at: usize) -> String {
        format!("line {}", self.text.get(..at).unwrap_or(self.text).matches('\n').count() + 1)
    }

    /// All of it; `None` if nothing is wrong.
    pub(super) fn finish(self, file: &str) -> Option<Problems> {
        let Self { text, mut found, more } = self;
        found.sort_by_key(|(span, ..)| span.start);
        let problems: Vec<_> =
            found.into_iter().map(|(span, message, accepted)| problem(text, span, message, accepted)).collect();
        (!problems.is_empty()).then(|| Problems { file: file.to_owned(), problems, more })
    }
}

fn problem(text: &str, span: Range<usize>, message: String, accepted: String) -> Problem {
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
        let mut report = Report::new(text);
        let Reported = report.refuse(span, "wrong", "right");
        report.finish("p.toml").expect("a problem").to_string()
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
        let mut report = Report::new(&text);
        let Reported = report.refuse(6..10, format!("{:?} is wrong", *key), "");
        let shown = report.finish("p.toml").expect("a problem").to_string();
        assert!(!shown.contains(&key[4..]) && shown.contains(&"*".repeat(39)), "{shown}");
    }

    #[test]
    fn tells_all_in_their_order_and_counts_those_beyond() {
        let mut report = Report::new("a\nb\n");
        for _ in 0..MOST {
            report.refuse(2..3, "second", "");
        }
        report.refuse(0..1, "lost", "");
        let problems = report.finish("p.toml").expect("problems");
        assert_eq!((problems.problems.len(), problems.more), (MOST, 1));
        let mut report = Report::new("a\nb\n");
        report.refuse(2..3, "second", "");
        report.refuse(0..1, "first", "");
        let shown = report.finish("p.toml").expect("problems").to_string();
        assert!(shown.find("first") < shown.find("second"), "{shown}");
    }
}
