//! The conditions that a stream is sent under, and which of their combinations are run.

use std::collections::BTreeSet;
use std::fmt;

use enforcer_tests::origin::Server;

use crate::cuts::Cut;

/// The hooks that are run, as `--hook` takes them.
pub(crate) const HOOKS: [&str; 3] = ["xdp-native", "xdp-generic", "tc"];

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

    /// Each pair of this combination's conditions, as a number.
    fn pairs(&self) -> Vec<usize> {
        let place = |found: Option<usize>| found.unwrap_or_default();
        let conditions = [
            place(Server::EACH.iter().position(|server| *server == self.server)),
            place(HOOKS.iter().position(|hook| *hook == self.hook)),
            usize::from(self.family == Family::V6),
            usize::from(self.offload),
            place(Cut::EACH.iter().position(|cut| *cut == self.cut)),
        ];
        let mut pairs = Vec::new();
        for first in 0..conditions.len() {
            for second in first + 1..conditions.len() {
                pairs.push(((first * 8 + second) * 8 + conditions[first]) * 8 + conditions[second]);
            }
        }
        pairs
    }
}

/// Combinations that show every pair of conditions at least once; other `number`s give other combinations.
pub(crate) fn pairwise(number: usize) -> Vec<Cell> {
    let mut cells: Vec<(Cell, Vec<usize>)> = Cell::every().into_iter().map(|cell| (cell, cell.pairs())).collect();
    let count = cells.len();
    // Of equally good ones the first is taken, and which one that is differs by number.
    cells.rotate_left(number * 37 % count);
    let mut missing: BTreeSet<usize> = cells.iter().flat_map(|(_, pairs)| pairs.clone()).collect();
    let mut chosen = Vec::new();
    while !missing.is_empty() {
        let mut most = (0, 0);
        for (place, (_, pairs)) in cells.iter().enumerate() {
            let count = pairs.iter().filter(|pair| missing.contains(pair)).count();
            if count > most.0 {
                most = (count, place);
            }
        }
        let (cell, pairs) = &cells[most.1];
        missing.retain(|pair| !pairs.contains(pair));
        chosen.push(*cell);
    }
    chosen
}
