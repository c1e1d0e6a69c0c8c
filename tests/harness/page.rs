//! Pages of the documentation that hold a table of figures, which a measurement renews.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// What stands before and after the table.
const MARKS: [&str; 2] = ["<!-- table: begin -->\n", "<!-- table: end -->\n"];

/// Puts a table in the place of a page's last one.
///
/// # Errors
/// The page cannot be read or written, or has no place for the table.
pub fn renew_table(page: &Path, table: &str) -> Result<()> {
    let text = fs::read_to_string(page).with_context(|| format!("cannot read {}", page.display()))?;
    fs::write(page, with_table(&text, table)?).with_context(|| format!("cannot write {}", page.display()))
}

fn with_table(page: &str, table: &str) -> Result<String> {
    let [begin, end] = MARKS;
    let (before, rest) = page.split_once(begin).context("the page has no mark where the table begins")?;
    let (_, after) = rest.split_once(end).context("the page has no mark where the table ends")?;
    Ok(format!("{before}{begin}\n{table}\n{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::with_table;

    #[test]
    fn a_table_takes_the_last_ones_place() {
        let page = "a\n<!-- table: begin -->\nold\n<!-- table: end -->\nb\n";
        let renewed = with_table(page, "new\n").expect("a page with marks");
        assert_eq!(renewed, "a\n<!-- table: begin -->\n\nnew\n\n<!-- table: end -->\nb\n");
        assert!(with_table("no marks", "new").is_err());
    }
}
