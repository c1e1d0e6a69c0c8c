//! How the cost of a decision grows with the policy: with the number of keys, of limits and of routes.
//!
//! A program that is run many times on the same bytes finds all that it needs in the nearest cache. So here each request
//! is another key's, in an order that no prefetcher foresees: [`Turn`].

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use enforcer_ebpf::abi::{LIMITS, Turn};
use enforcer_ebpf::verdict::{Count, Event};
use enforcer_tests::{packet::Frame, peer::Peer};
use serde::Serialize;

use crate::case;
use crate::program::Judge;
use crate::report::Figure;

/// How many keys there are, each of a principal of its own.
pub(crate) const KEYS: [u32; 3] = [1, 1000, 100_000];
/// How many limits a principal has.
const LIMITS_EACH: [usize; 2] = [1, LIMITS];
/// Prime to each of [`KEYS`], and its ratio to the last is near the golden one: keys that lie side by side have their turns
/// far apart.
const STRIDE: u64 = 61_803;
/// Pieces of a round.
const PIECES: u32 = 8;
/// Keys that have their turn before each piece.
const NEAR: u32 = 1000;
/// The most that a cost may grow from the first to the last in each direction, DESIGN.
const MOST: f64 = 1.3;

/// The programs that take turns: the decision alone, and the whole way of a later segment.
const ALONE: &str = "bench_judge_next";
const WHOLE: &str = "bench_later_next";
/// What taking turns costs.
const TURN: &str = "bench_next";
/// All of them.
pub(crate) const PROGRAMS: [&str; 3] = [ALONE, WHOLE, TURN];

/// A policy, by its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Size {
    keys: u32,
    /// Of each principal.
    limits: usize,
    /// Whether there are routes, that of the request with a limit of its own for each principal.
    routes: bool,
}

impl Size {
    fn all() -> impl Iterator<Item = Self> {
        let of =
            |routes| LIMITS_EACH.into_iter().flat_map(move |limits| KEYS.map(|keys| Self { keys, limits, routes }));
        [false, true].into_iter().flat_map(of)
    }
}

/// The measurement under way.
pub(crate) struct Course {
    frame: Vec<u8>,
    /// Where the key's number lies in it.
    at: u64,
    turn: Vec<u64>,
    /// The decision alone, while its key was the only one that was registered.
    only: Vec<u64>,
    rows: Vec<(Size, [Vec<u64>; 2])>,
}

impl Course {
    /// A request on this connection, for all keys of `judge`, which are registered here: one first, whose decisions are
    /// timed in `repeat` runs, then the others.
    ///
    /// # Errors
    /// A table cannot be written, or the kernel does not run a program.
    pub(crate) fn new(judge: &mut Judge, connection: &Peer, server: SocketAddr, repeat: u32) -> Result<Self> {
        let head = case::CLIENT.replace("{key}", &format!("X-API-Key: {}", key(0)));
        let frame = Frame::data(connection.address(), server, connection.first(), head.as_bytes());
        let frame = frame.acking(connection.acknowledges()).build();
        let number = Turn::letters(0).to_ne_bytes();
        let at = frame.windows(8).position(|bytes| bytes == number).context("the frame has no key")? as u64;
        let rows = Size::all().map(|size| (size, [Vec::new(), Vec::new()])).collect();
        judge.register_many(1).context("cannot register a key")?;
        judge.resize(LIMITS_EACH[0], false)?;
        judge.set_turn(Turn { at, keys: 1, stride: 0, number: 0, letters: 0 })?;
        let only = (0..PIECES).map(|_| judge.run(ALONE, &frame, repeat)).collect::<Result<_>>()?;
        judge.register_many(KEYS.into_iter().max().context("no keys")?).context("cannot register the keys")?;
        Ok(Self { frame, at, turn: Vec::new(), only, rows })
    }

    /// One more round through all sizes, in many short pieces: so that some of each meet the machine doing nothing else.
    ///
    /// # Errors
    /// The kernel does not run a program, or a request is not allowed.
    pub(crate) fn round(&mut self, judge: &mut Judge, repeat: u32) -> Result<()> {
        let runs = repeat.div_ceil(PIECES);
        (0..PIECES).try_for_each(|_| self.piece(judge, runs))
    }

    fn piece(&mut self, judge: &mut Judge, runs: u32) -> Result<()> {
        let Self { frame, at, turn, only: _, rows } = self;
        for (size, figures) in rows {
            judge.resize(size.limits, size.routes)?;
            let keys = u64::from(size.keys);
            for (program, figures) in [ALONE, WHOLE].into_iter().zip(figures) {
                // The first time all have their turn before, so that no bucket is made while time is taken; then as many as
                // the nearest caches hold.
                let before = if figures.is_empty() { size.keys } else { size.keys.min(NEAR) };
                let had = figures.len() as u64 * u64::from(runs + before);
                let number = had % keys * STRIDE % keys;
                judge.set_turn(Turn { at: *at, keys, stride: STRIDE % keys, number, letters: 0 })?;
                judge.run(program, frame, before)?;
                let allowed = judge.total(Count::Event(Event::Allowed))?;
                figures.push(judge.run(program, frame, runs)?);
                let allowed = judge.total(Count::Event(Event::Allowed))? - allowed;
                ensure!(allowed == u64::from(runs), "{allowed} of {runs} passed with {size:?}");
            }
            turn.push(judge.run(TURN, frame, runs)?);
        }
        Ok(())
    }

    /// What it came to.
    ///
    /// # Errors
    /// There was no round.
    pub(crate) fn end(self) -> Result<Scale> {
        let turn = Figure::of(&self.turn)?;
        let less = |figures: &[u64]| -> Result<Figure> {
            let Figure { median_ns, least_ns } = Figure::of(figures)?;
            let (median_ns, least_ns) = (median_ns.checked_sub(turn.median_ns), least_ns.checked_sub(turn.least_ns));
            let [median_ns, least_ns] = [median_ns, least_ns].map(|ns| ns.context("a decision took less than a turn"));
            Ok(Figure { median_ns: median_ns?, least_ns: least_ns? })
        };
        let row = |(size, [alone, whole]): (Size, [Vec<u64>; 2])| -> Result<Row> {
            Ok(Row { size, alone: less(&alone)?, whole: less(&whole)? })
        };
        Ok(Scale { only: less(&self.only)?, rows: self.rows.into_iter().map(row).collect::<Result<_>>()?, turn })
    }
}

/// A key by its number.
pub(crate) fn key(number: u32) -> String {
    let letters = Turn::letters(u64::from(number)).to_ne_bytes().map(char::from);
    // As long as the other cases' keys.
    format!("ek_bench_turning{}", String::from_iter(letters))
}

/// The figures by size.
#[derive(Serialize)]
pub(crate) struct Scale {
    /// What writing the key costs, which is taken off the others.
    turn: Figure,
    /// The first row's decision alone, but that its key was the only one that was registered.
    only: Figure,
    rows: Vec<Row>,
}

/// What a decision costs under a policy of one size.
#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    size: Size,
    /// The decision alone.
    alone: Figure,
    /// The whole way of a later segment of its connection.
    whole: Figure,
}

/// A direction in which a policy grows.
#[derive(Clone, Copy)]
enum Direction {
    Keys,
    Limits,
    Routes,
}

impl Direction {
    const ALL: [Self; 3] = [Self::Keys, Self::Limits, Self::Routes];

    /// The size in whose place one has grown in this direction; itself if it is the first.
    fn first(self, size: Size) -> Size {
        match self {
            Self::Keys => Size { keys: KEYS[0], ..size },
            Self::Limits => Size { limits: LIMITS_EACH[0], ..size },
            Self::Routes => Size { routes: false, ..size },
        }
    }
}

impl Scale {
    /// How many times the cost of the first in a direction this row's is; nothing for the first itself.
    fn growth(&self, row: &Row, direction: Direction, figure: fn(&Row) -> &Figure) -> Option<f64> {
        let first = direction.first(row.size);
        let first = self.rows.iter().find(|other| other.size == first && first != row.size)?;
        Some(figure(row).least_ns as f64 / figure(first).least_ns as f64)
    }

    /// As a table of Markdown, of the rounds' least: what else the machine does only ever adds.
    pub(crate) fn table(&self) -> String {
        let mut lines = vec![
            "| keys | limits | routes | alone, ns | × keys | × limits | × routes | whole, ns | × keys | × limits | × routes |"
                .to_owned(),
            "|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|".to_owned(),
        ];
        for row in &self.rows {
            let Size { keys, limits, routes } = row.size;
            let mut cells = vec![keys.to_string(), limits.to_string(), if routes { "yes" } else { "no" }.to_owned()];
            for figure in [|row: &Row| &row.alone, |row: &Row| &row.whole] as [fn(&Row) -> &Figure; 2] {
                cells.push(figure(row).least_ns.to_string());
                cells.extend(Direction::ALL.map(|direction| match self.growth(row, direction, figure) {
                    Some(growth) if growth > MOST => format!("**{growth:.2}**"),
                    Some(growth) => format!("{growth:.2}"),
                    None => String::new(),
                }));
            }
            lines.push(format!("| {} |", cells.join(" | ")));
        }
        if let [Row { alone: Figure { least_ns, .. }, .. }, ..] = self.rows[..] {
            let (only, most) = (self.only.least_ns, KEYS[KEYS.len() - 1]);
            let growth = least_ns as f64 / only as f64;
            lines.push(format!(
                "\nOne key at work, alone: {only} ns when no other is registered, {least_ns} ns among {most}: {growth:.2} times."
            ));
        }
        lines.join("\n") + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::{Figure, KEYS, Row, STRIDE, Scale, Size, key};

    #[test]
    fn each_key_has_its_turn() {
        for keys in KEYS.map(u64::from) {
            let mut number = 0;
            let turns = (1..).find(|_| {
                number = (number + STRIDE % keys) % keys;
                number == 0
            });
            assert_eq!(turns, Some(keys));
        }
    }

    #[test]
    fn keys_differ_by_their_numbers() {
        let mut all: Vec<String> = (0..100_000).map(key).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 100_000);
        assert!(all.iter().all(|key| key.len() == crate::case::KEY.len()));
    }

    #[test]
    fn what_has_grown_too_much_stands_out() {
        let figure = |median_ns| Figure { median_ns, least_ns: median_ns };
        let row = |keys, limits, routes, ns| Row {
            size: Size { keys, limits, routes },
            alone: figure(ns),
            whole: figure(2 * ns),
        };
        let rows = vec![row(1, 1, false, 100), row(1000, 1, false, 130), row(1, 4, false, 131), row(1, 1, true, 90)];
        let table = Scale { turn: figure(0), only: figure(98), rows }.table();
        let cells: Vec<Vec<&str>> = table.lines().skip(2).map(|line| line.split(" | ").collect()).collect();
        assert_eq!(cells[1][4..7], ["1.30", "", ""]);
        assert_eq!(cells[2][4..7], ["", "**1.31**", ""]);
        assert_eq!(cells[3][4..7], ["", "", "0.90"]);
        assert!(table.ends_with("98 ns when no other is registered, 100 ns among 100000: 1.02 times.\n"), "{table}");
    }
}
