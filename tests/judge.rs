//! The host library on whole packets, without the kernel: what `verdicts` holds the loaded program against.

#[path = "verdicts/scenarios.rs"]
mod scenarios;

use anyhow::Result;
use enforcer_tests::kernel::Loaded;
use enforcer_tests::tables::Tables;

/// Nothing: the scenarios run on the library alone.
fn load(_: &Tables) -> Result<Option<Loaded>> {
    Ok(None)
}
