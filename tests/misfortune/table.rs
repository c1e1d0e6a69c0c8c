//! What was measured, for people to read. Nothing of it is asserted.

use std::fmt::Write as _;
use std::io::Write as _;

use anyhow::Result;

use crate::course::Outcome;

/// What the enforcer may do with a good segment that TCP then has to send again, or that it has already.
const EVENTS: [&str; 6] = ["out_of_order", "old_data", "retransmitted", "forgotten", "not_established", "contended"];

/// Prints a run's table, past the test runner's capture.
///
/// # Errors
/// When stderr is closed.
pub(crate) fn print(outcome: &Outcome) -> Result<()> {
    let mut text = format!("\n{}, {}\n", outcome.weather, outcome.hook);
    for (name, report) in &outcome.reports {
        let total: f64 = report.seconds.values().sum();
        write!(text, "  {name:<9} {:>6} served in {total:>6.1} s:", report.served)?;
        for (what, seconds) in &report.seconds {
            write!(text, " {what} {seconds:.1}")?;
        }
        text.push('\n');
    }
    for (from, fates) in ["clients", "servers"].into_iter().zip(outcome.fates) {
        writeln!(
            text,
            "  frames from the {from}: {} seen, {} lost, {} overflowed, {} doubled, {} held back, {} delivered",
            fates.seen, fates.lost, fates.overflowed, fates.doubled, fates.held, fates.delivered
        )?;
    }
    let [clients, servers] = outcome.retransmitted;
    write!(text, "  sent again: {clients} by the clients, {servers} by the servers;")?;
    writeln!(text, " lost behind the hook: {}", outcome.lost_behind)?;
    text.push_str("  events:");
    for event in EVENTS {
        write!(
            text,
            " {event} {}",
            outcome.metric(&format!("enforcer_events_total{{service=\"default\",event=\"{event}\"}}"))
        )?;
    }
    text.push('\n');
    std::io::stderr().write_all(text.as_bytes())?;
    Ok(())
}
