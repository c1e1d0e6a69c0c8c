//! How the use of a limit is shown, wherever it is.

use comfy_table::Cell;

use super::output::{duration, number, text};
use crate::api::RuleUsage;

/// The columns of [`rows`].
pub(super) const HEADER: [&str; 4] = ["LIMIT", "USED", "REMAINING", "RESET"];

/// A row for each rule of a limit.
pub(super) fn rows(limit: &str, rules: &[RuleUsage]) -> Vec<[Cell; 4]> {
    if rules.is_empty() {
        return vec![[text(limit), number("-"), number("-"), number("-")]];
    }
    let row = |rule: &RuleUsage| {
        let reset = if rule.used == 0 { "-".to_owned() } else { duration(rule.reset_ns) };
        [text(&rule.rule), number(rule.used), number(rule.remaining), number(reset)]
    };
    rules.iter().map(row).collect()
}
