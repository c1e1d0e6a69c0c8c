//! The figures, as a table for people and as JSON for comparison.

use std::fmt;

use anyhow::{Context as _, Result};
use enforcer_tests::machine;
use serde::Serialize;

use crate::case::{Case, Way};
use crate::scale::Scale;

/// The budget of a decision, DESIGN: ns for each byte of the head …
const BUDGET_PER_BYTE: f64 = 0.4;
/// … and ns besides.
const BUDGET_FIXED: f64 = 200.0;

/// The budget of what a connection adds to a decision, DESIGN: ns for its first segment …
const BUDGET_FIRST: i64 = 400;
/// … and for a later one.
const BUDGET_LATER: i64 = 150;

/// All figures of one run, with what they were taken on.
#[derive(Serialize)]
pub(crate) struct Report {
    schema: &'static str,
    date: String,
    command: &'static str,
    kernel: String,
    processor: String,
    rounds: u32,
    repeat: u32,
    bare_drop: Figure,
    decisions: Vec<Decision>,
    /// What the connection adds to an allowed decision: the table's entry and the socket's look-up.
    segments: Vec<Segment>,
    /// By the size of the policy.
    scale: Scale,
}

/// One measured thing: of the rounds' means, in ns.
#[derive(Serialize)]
pub(crate) struct Figure {
    /// The one in the middle.
    pub(crate) median_ns: u64,
    /// The least.
    pub(crate) least_ns: u64,
}

#[derive(Serialize)]
struct Decision {
    head_bytes: usize,
    outcome: &'static str,
    #[serde(flatten)]
    figure: Figure,
    budget_ns: f64,
    /// Median less budget: negative is inside.
    distance_ns: f64,
}

/// A segment's whole way.
#[derive(Serialize)]
struct Segment {
    head_bytes: usize,
    /// Whether it is its connection's first.
    first: bool,
    #[serde(flatten)]
    figure: Figure,
    /// Median less that of the decision alone.
    added_ns: i64,
    budget_ns: i64,
}

impl Report {
    /// Sums up the rounds.
    ///
    /// # Errors
    /// There was no round, or the system does not say what it is.
    pub(crate) fn new<'a>(
        rounds: u32,
        repeat: u32,
        bare: &[u64],
        cases: impl Iterator<Item = (&'a Case, &'a Vec<u64>)>,
        scale: Scale,
    ) -> Result<Self> {
        let cases: Vec<_> = cases.collect();
        let decision = |&(case, figures): &(&Case, &Vec<u64>)| -> Result<Decision> {
            let figure = Figure::of(figures)?;
            let budget_ns = BUDGET_PER_BYTE * case.head as f64 + BUDGET_FIXED;
            let distance_ns = figure.median_ns as f64 - budget_ns;
            Ok(Decision { head_bytes: case.head, outcome: case.outcome, figure, budget_ns, distance_ns })
        };
        let decisions: Vec<Decision> =
            cases.iter().filter(|(case, _)| case.way == Way::Decision).map(decision).collect::<Result<_>>()?;
        let segment = |&(case, figures): &(&Case, &Vec<u64>)| -> Result<Segment> {
            let figure = Figure::of(figures)?;
            let alone = decisions.iter().find(|alone| alone.head_bytes == case.head && alone.outcome == case.outcome);
            let alone = alone.context("the decision alone was not measured")?.figure.median_ns;
            let added_ns = figure.median_ns.cast_signed() - alone.cast_signed();
            let first = case.way == Way::First;
            let budget_ns = if first { BUDGET_FIRST } else { BUDGET_LATER };
            Ok(Segment { head_bytes: case.head, first, figure, added_ns, budget_ns })
        };
        let segments =
            cases.iter().filter(|(case, _)| case.way != Way::Decision).map(segment).collect::<Result<_>>()?;
        Ok(Self {
            schema: "v1",
            date: jiff::Timestamp::now().round(jiff::Unit::Second)?.to_string(),
            command: "cargo xtask bench",
            kernel: machine::kernel()?,
            processor: machine::processor()?,
            rounds,
            repeat,
            bare_drop: Figure::of(bare)?,
            decisions,
            segments,
            scale,
        })
    }

    /// The table by the size of the policy, for the documentation.
    pub(crate) fn by_size(&self) -> String {
        let Self { kernel, processor, date, rounds, scale, .. } = self;
        let table = scale.table();
        format!(
            "`cargo xtask bench --docs`: Linux {kernel}, {processor}, {date}; the least of {rounds} rounds.\n\n{table}"
        )
    }

    /// The figures as JSON.
    ///
    /// # Errors
    /// A figure is no number.
    pub(crate) fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}

impl Figure {
    /// Of the rounds' means.
    ///
    /// # Errors
    /// There was no round.
    pub(crate) fn of(figures: &[u64]) -> Result<Self> {
        let mut sorted = figures.to_vec();
        sorted.sort_unstable();
        let median_ns = *sorted.get(sorted.len() / 2).context("nothing was measured")?;
        Ok(Self { median_ns, least_ns: sorted[0] })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            schema: _,
            date,
            command: _,
            kernel,
            processor,
            rounds,
            repeat,
            bare_drop,
            decisions,
            segments,
            scale,
        } = self;
        writeln!(formatter, "Linux {kernel}, {processor}, {date}")?;
        writeln!(
            formatter,
            "ns per decision, {rounds} rounds of {repeat} runs; budget: {BUDGET_PER_BYTE} × bytes + {BUDGET_FIXED}\n"
        )?;
        writeln!(
            formatter,
            "{:>10}  {:<10} {:>7} {:>7} {:>7} {:>9}",
            "head bytes", "outcome", "median", "least", "budget", "distance"
        )?;
        let Figure { median_ns, least_ns } = bare_drop;
        writeln!(formatter, "{:>10}  {:<10} {median_ns:>7} {least_ns:>7}", "any", "bare drop")?;
        for Decision { head_bytes, outcome, figure: Figure { median_ns, least_ns }, budget_ns, distance_ns } in
            decisions
        {
            writeln!(
                formatter,
                "{head_bytes:>10}  {outcome:<10} {median_ns:>7} {least_ns:>7} {budget_ns:>7.0} {distance_ns:>+9.0}"
            )?;
        }
        writeln!(
            formatter,
            "\n{:>10}  {:<10} {:>7} {:>7} {:>7} {:>9}",
            "head bytes", "segment", "median", "least", "added", "budget"
        )?;
        for Segment { head_bytes, first, figure: Figure { median_ns, least_ns }, added_ns, budget_ns } in segments {
            let name = if *first { "first" } else { "later" };
            writeln!(
                formatter,
                "{head_bytes:>10}  {name:<10} {median_ns:>7} {least_ns:>7} {added_ns:>+7} {budget_ns:>9}"
            )?;
        }
        write!(formatter, "\n{}", scale.table())
    }
}

#[cfg(test)]
mod tests {
    use super::Figure;

    #[test]
    fn a_figure_is_the_median_and_the_least_of_its_rounds() {
        let figure = Figure::of(&[9, 1, 5, 100, 6]).expect("five rounds");
        assert_eq!((figure.median_ns, figure.least_ns), (6, 1));
        assert!(Figure::of(&[]).is_err());
    }
}
