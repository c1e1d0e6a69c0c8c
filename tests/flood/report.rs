//! The figures, as a table for people and as JSON for comparison.

use std::{collections::BTreeMap, fmt, time::Duration};

use anyhow::{Context as _, Result};
use enforcer_tests::machine;
use serde::Serialize;

use crate::{
    connection::Ending,
    course::{Cost, Measured},
    good,
    kind::Flood,
    peer::Peer,
};

/// The share of a CPU that a flood must take to be told from the idle server.
const LEAST_LOAD: f64 = 0.01;

/// A row of the table, while it is being measured.
#[derive(Debug)]
pub(crate) struct Row {
    /// Who is flooded.
    pub(crate) peer: &'static Peer,
    /// With what; `None` for the well-behaved client alone.
    pub(crate) flood: Option<Flood>,
    /// What each round has shown.
    pub(crate) rounds: Vec<Measured>,
}

impl Row {
    /// A row without figures.
    pub(crate) const fn new(peer: &'static Peer, flood: Option<Flood>) -> Self {
        Self { peer, flood, rounds: Vec::new() }
    }
}

/// All figures of one run, with what they were taken on.
#[derive(Serialize)]
pub(crate) struct Report {
    schema: &'static str,
    date: String,
    command: String,
    kernel: String,
    processor: String,
    cpus: usize,
    seconds: u64,
    rounds: usize,
    /// Requests a second of the well-behaved client.
    good_rate: u32,
    /// The table.
    pub(crate) lines: Vec<Line>,
}

/// A row's figures, each the median of its rounds.
#[derive(Serialize)]
pub(crate) struct Line {
    /// The name of who was flooded.
    pub(crate) peer: &'static str,
    /// The flood; `None` for the well-behaved client alone.
    pub(crate) flood: Option<Flood>,
    /// The share of the well-behaved client's requests that were served in time.
    pub(crate) good_percent: f64,
    /// Its latency.
    pub(crate) p50_ms: f64,
    /// Its latency; a request that was not served counts as long as the client waits.
    pub(crate) p99_ms: f64,
    /// The latter, in multiples of that without a flood.
    p99_ratio: f64,
    /// Refused requests, while the flood was alone; `None` where nothing refuses.
    refused: Option<f64>,
    /// The same for a second.
    refused_per_second: Option<f64>,
    /// What one cost the server, processes and receiving, in µs, less what the idle server costs.
    pub(crate) cpu_us: Option<f64>,
    /// How busy the server's processes were, in percent of a CPU.
    processes_percent: f64,
    /// How busy the thread that receives for them was.
    receiving_percent: f64,
    /// How all of the flood's requests ended, in the last round.
    endings: BTreeMap<String, u64>,
}

impl Report {
    /// Sums up the rounds.
    ///
    /// # Errors
    /// A row was not measured, or the system does not say what it is.
    pub(crate) fn new(command: &str, cpus: usize, seconds: u64, rounds: usize, rows: &[Row]) -> Result<Self> {
        let base = |row: &Row| rows.iter().find(|base| base.peer.name == row.peer.name && base.flood.is_none());
        let line = |row: &Row| Line::new(row, base(row).context("nothing was measured without a flood")?);
        Ok(Self {
            schema: "v1",
            date: jiff::Timestamp::now().round(jiff::Unit::Second)?.to_string(),
            command: command.to_owned(),
            kernel: machine::kernel()?,
            processor: machine::processor()?,
            cpus,
            seconds,
            rounds,
            good_rate: good::RATE,
            lines: rows.iter().map(line).collect::<Result<_>>()?,
        })
    }

    /// The figures as JSON.
    ///
    /// # Errors
    /// A figure is no number.
    pub(crate) fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}

impl Line {
    fn new(row: &Row, base: &Row) -> Result<Self> {
        let rounds: Vec<(&Measured, &Measured)> = row.rounds.iter().zip(&base.rounds).collect();
        let of = |figure: &dyn Fn(&Measured, &Measured) -> f64| {
            median(rounds.iter().map(|(measured, base)| figure(measured, base)).collect())
        };
        let endings = row.rounds.last().context("nothing was measured")?.endings;
        let refusals = if row.flood.is_some() { row.peer.refusals } else { &[] };
        let refused = |measured: &Measured| {
            refusals.iter().map(|ending| measured.alone.endings[*ending as usize] as f64).sum::<f64>()
        };
        let figure = |figure: &dyn Fn(&Measured, &Measured) -> f64| {
            // Where nothing was refused, or nothing can be told from idling, there is no price.
            let figure = if refusals.is_empty() { None } else { Some(of(figure)?) };
            Ok::<_, anyhow::Error>(figure.filter(|figure| figure.is_finite()))
        };
        Ok(Self {
            peer: row.peer.name,
            flood: row.flood,
            good_percent: of(&|measured, _| measured.service.success())?,
            p50_ms: of(&|measured, _| measured.service.quantile(0.5))?,
            p99_ms: of(&|measured, _| measured.service.quantile(0.99))?,
            p99_ratio: of(&|measured, base| measured.service.quantile(0.99) / base.service.quantile(0.99))?,
            refused: figure(&|measured, _| refused(measured))?,
            refused_per_second: figure(&|measured, _| refused(measured) / measured.alone.time.as_secs_f64())?,
            cpu_us: figure(&|measured, base| {
                let more = load(&measured.alone) - load(&base.alone);
                let time = measured.alone.time.as_secs_f64();
                if more < LEAST_LOAD { f64::NAN } else { more * time * 1e6 / refused(measured) }
            })?,
            processes_percent: of(&|measured, _| share(measured.alone.processes, &measured.alone) * 100.0)?,
            receiving_percent: of(&|measured, _| share(measured.alone.receiving, &measured.alone) * 100.0)?,
            endings: Ending::ALL
                .map(|ending| (format!("{ending:?}").to_lowercase(), endings[ending as usize]))
                .into_iter()
                .collect(),
        })
    }
}

/// How busy the server was, as a share of a CPU.
fn load(cost: &Cost) -> f64 {
    share(cost.processes + cost.receiving, cost)
}

fn share(ran: Duration, cost: &Cost) -> f64 {
    ran.as_secs_f64() / cost.time.as_secs_f64()
}

fn median(mut figures: Vec<f64>) -> Result<f64> {
    figures.sort_unstable_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().context("nothing was measured")
}

impl fmt::Display for Report {
    /// As Markdown, which is also read as it is.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, date, kernel, processor, cpus, seconds, rounds, good_rate, lines, schema: _ } = self;
        writeln!(formatter, "`{command}`: Linux {kernel}, {cpus} × {processor}, {date}.")?;
        writeln!(
            formatter,
            "{seconds} s of each flood, {rounds} round(s); a good client of {good_rate} requests/s beside it.\n"
        )?;
        let heads = [
            ("set-up", 20),
            ("flood", 11),
            ("connections", 11),
            ("good served", 11),
            ("p50 ms", 7),
            ("p99 ms", 7),
            ("× base", 7),
            ("refused/s", 9),
            ("µs/refusal", 10),
            ("flood served", 12),
        ];
        for (index, (head, width)) in heads.into_iter().enumerate() {
            if index < 3 { write!(formatter, "| {head:<width$} ")? } else { write!(formatter, "| {head:>width$} ")? }
        }
        writeln!(formatter, "|")?;
        for (index, (_, width)) in heads.into_iter().enumerate() {
            let (dashes, side) = ("-".repeat(width), if index < 3 { "-" } else { ":" });
            write!(formatter, "|-{dashes}{side}")?;
        }
        writeln!(formatter, "|")?;
        for line in lines {
            let (kind, connections) = line.flood.map_or_else(
                || ("none".to_owned(), String::new()),
                |flood| (flood.kind.to_string(), format!("{} {}", flood.connections, flood.reuse)),
            );
            let cells = [
                line.peer.to_owned(),
                kind,
                connections,
                format!("{:.1} %", line.good_percent),
                number(line.p50_ms),
                number(line.p99_ms),
                number(line.p99_ratio),
                line.refused_per_second.map(number).unwrap_or_default(),
                line.cpu_us.map(number).unwrap_or_default(),
                line.flood.map(|_| line.endings["served"].to_string()).unwrap_or_default(),
            ];
            for (index, (cell, (_, width))) in cells.iter().zip(heads).enumerate() {
                if index < 3 {
                    write!(formatter, "| {cell:<width$} ")?;
                } else {
                    write!(formatter, "| {cell:>width$} ")?;
                }
            }
            writeln!(formatter, "|")?;
        }
        Ok(())
    }
}

/// A figure with three digits that count, or all before the point.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{median, number};

    #[test]
    fn a_figure_is_the_median_of_its_rounds() {
        assert!(median(vec![9.0, 1.0, 5.0]).is_ok_and(|figure| figure.to_bits() == 5.0_f64.to_bits()));
        assert!(median(Vec::new()).is_err());
    }

    #[test]
    fn a_number_has_three_digits() {
        assert_eq!([1234.5, 123.45, 12.345, 1.2345].map(number), ["1234", "123", "12.3", "1.23"]);
    }
}
