//! The host library on whole packets, without the kernel: what `verdicts` holds the loaded program against.

#[path = "verdicts/scenarios.rs"]
mod scenarios;

use anyhow::Result;
use enforcer_tests::kernel::Loaded;
use enforcer_tests::tables::Tables;

/// Nothing: the scenarios run on the library alone.
fn load(_: &str, _: &Tables) -> Result<Option<Loaded>> {
    Ok(None)
}

/// Nobody is told anything where no program is.
fn answers(_: &str) -> bool {
    false
}

/// All of them.
fn takes_any_frame(_: &str) -> bool {
    true
}
