//! How answers look: tables for people, JSON for programs, once or again and again.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use clap::{Args, ValueEnum};
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use jiff::Timestamp;
use serde::Serialize;

/// `-o`
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Format {
    /// How to print: a table for people, or JSON for programs
    #[arg(short, long, value_enum, default_value_t = Kind::Table, value_name = "FORMAT")]
    output: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Columns for people
    Table,
    /// An object with `"schema":"v1"`, raw integers and RFC 3339 times
    Json,
}

impl Format {
    pub(super) fn is_json(self) -> bool {
        self.output == Kind::Json
    }

    /// Prints `answer` to standard output.
    pub(super) fn show<T: Serialize>(self, answer: &T, table: impl FnOnce(&T) -> String) -> anyhow::Result<()> {
        let text = match self.output {
            Kind::Table => table(answer),
            Kind::Json => serde_json::to_string_pretty(answer)? + "\n",
        };
        Ok(print(&text)?)
    }
}

/// `--watch`
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Watch {
    /// Print again every SECONDS (1 if none are given), until interrupted
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "1",
          value_parser = seconds)]
    watch: Option<Duration>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let accepted = 0.1..=86_400.0;
    match text.parse::<f64>() {
        Ok(seconds) if accepted.contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("accepted: seconds from 0.1 to 86400".to_owned()),
    }
}

impl Watch {
    /// Prints what `ask` answers, once or again and again; JSON comes as one line each time then.
    pub(super) async fn show<T: Serialize>(
        self,
        format: Format,
        ask: impl AsyncFn() -> anyhow::Result<T>,
        table: impl Fn(&T) -> String,
    ) -> anyhow::Result<()> {
        let Some(period) = self.watch else { return format.show(&ask().await?, table) };
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let answer = ask().await?;
            let text = match format.output {
                Kind::Json => serde_json::to_string(&answer)? + "\n",
                // Cursor home, then clear: the table stays in its place.
                Kind::Table if io::stdout().is_terminal() => format!("\x1b[H\x1b[2J{}", table(&answer)),
                Kind::Table => table(&answer) + "\n",
            };
            print(&text)?;
        }
    }
}

/// Writes to standard output. A reader that has gone, as in `enforcer key ls | head`, ends the program quietly.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        written => written,
    }
}

/// Says something to the person at the terminal, on standard error.
pub(super) fn say(text: &str) {
    // Nothing can be said about a standard error that is closed.
    let _ = writeln!(io::stderr(), "{text}");
}

/// A table without borders, wide as it needs to be: `awk` and people both read it.
pub(super) fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [Cell; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    let mut empty = true;
    for row in rows {
        table.add_row(row);
        empty = false;
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    if empty { String::new() } else { table.trim_fmt() + "\n" }
}

/// A cell of text.
pub(super) fn text(text: impl ToString) -> Cell {
    Cell::new(text.to_string())
}

/// A cell of a number.
pub(super) fn number(number: impl ToString) -> Cell {
    Cell::new(number.to_string()).set_alignment(CellAlignment::Right)
}

/// A time to the second.
pub(super) fn second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// A cell of a time, to the second.
pub(super) fn time(time: Timestamp) -> Cell {
    text(second(time))
}

/// A length of time in its two largest units, rounded up to seconds: `42s`, `3m 5s`, `2d 4h`.
pub(super) fn duration(ns: u64) -> String {
    let seconds = ns.div_ceil(1_000_000_000);
    let parts = [(seconds / 86_400, "d"), (seconds / 3_600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let first = parts.iter().position(|(count, _)| *count > 0).unwrap_or(parts.len() - 1);
    let shown = parts.iter().skip(first).take(2).enumerate();
    let words = shown
        .filter(|(place, (count, _))| *place == 0 || *count > 0)
        .map(|(_, (count, unit))| format!("{count}{unit}"));
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short_and_never_too_short() {
        for (ns, text) in [
            (0, "0s"),
            (1, "1s"),
            (42_000_000_000, "42s"),
            (60_000_000_000, "1m"),
            (185_000_000_000, "3m 5s"),
            (3_600_000_000_001, "1h"),
            (187_200_000_000_000, "2d 4h"),
        ] {
            assert_eq!(duration(ns), text, "{ns}");
        }
    }

    #[test]
    fn a_table_has_a_header_and_no_trailing_blanks() {
        let table = table(["NAME", "USED"], [[text("alice"), number(7)], [text("bob"), number(12)]]);
        assert_eq!(table, "NAME   USED\nalice     7\nbob      12\n");
    }

    #[test]
    fn watching_takes_seconds() {
        assert_eq!(seconds("2.5"), Ok(Duration::from_millis(2500)));
        for wrong in ["0", "-1", "x", "nan", "1e9"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
