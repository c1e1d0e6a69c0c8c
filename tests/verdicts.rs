//! The loaded program by BPF_PROG_TEST_RUN, packet in, verdict, packet and counters out, beside the host library.

#[path = "verdicts/scenarios.rs"]
mod scenarios;

use anyhow::Result;
use enforcer_tests::kernel::{Loaded, Program};
use enforcer_tests::tables::Tables;

/// The program that is attached to interfaces.
fn load(tables: &Tables) -> Result<Option<Loaded>> {
    Loaded::new(Program::Attached, tables).map(Some)
}
