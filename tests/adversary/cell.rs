//! The conditions that a stream is sent under, and which of their combinations are run.

use std::fmt;

use enforcer_tests::origin::Server;

use crate::cuts::Cut;

/// The hooks that are run, as `--hook` takes them. `"tc"` belongs here as soon as `enforcer run` takes it.
pub(crate) const HOOKS: [&str; 2] = ["xdp-native", "xdp-generic"];

/// The family of the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const EACH: [Self; 2] = [Self::V4, Self::V6];
}

/// One combination of conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) server: Server,
    /// Where the program runs.
    pub(crate) hook: &'static str,
    pub(crate) family: Family,
    /// Whether transmit checksums are left to the device.
    pub(crate) offload: bool,
    pub(crate) cut: Cut,
}

impl fmt::Display for Cell {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { server, hook, family, offload, cut } = self;
        let offload = if *offload { "on" } else { "off" };
        write!(formatter, "{server}, {hook}, {family:?}, checksum offload {offload}, {cut:?}")
    }
}

impl Cell {
    fn every() -> Vec<Self> {
        let mut cells = Vec::new();
        for server in Server::EACH {
            for hook in HOOKS {
                for family in Family::EACH {
                    for offload in [true, false] {
                        for cut in Cut::EACH {
                            cells.push(Self { server, hook, family, offload, cut });
                        }
                    }
                }
            }
        }
        cells
    }

    /// The pairs of conditions that this combination shows, each as its place and its names.
    fn pairs(&self) -> Vec<(usize, String)> {
        let names = [
            self.server.to_string(),
            self.hook.to_owned(),
            format!("{:?}", self.family),
            self.offload.to_string(),
            format!("{:?}", self.cut),
        ];
        let mut pairs = Vec::new();
        for first in 0..names.len() {
            for second in first + 1..names.len() {
                pairs.push((first * names.len() + second, format!("{} {}", names[first], names[second])));
            }
        }
        pairs
    }
}

/// Combinations that show every pair of conditions at least once; other `number`s give other combinations.
pub(crate) fn pairwise(number: usize) -> Vec<Cell> {
    let mut candidates = Cell::every();
    let count = candidates.len();
    // Of equally good ones the first is taken, and which one that is differs by number.
    candidates.rotate_left(number * 37 % count);
    let mut missing: Vec<(usize, String)> = Vec::new();
    for pair in candidates.iter().flat_map(Cell::pairs) {
        if !missing.contains(&pair) {
            missing.push(pair);
        }
    }
    let mut chosen = Vec::new();
    while !missing.is_empty() {
        let shows = |cell: &Cell| cell.pairs().iter().filter(|pair| missing.contains(pair)).count();
        let mut best = candidates[0];
        let mut most = 0;
        for cell in &candidates {
            let count = shows(cell);
            if count > most {
                (best, most) = (*cell, count);
            }
        }
        missing.retain(|pair| !best.pairs().contains(pair));
        chosen.push(best);
    }
    chosen
}
