//! The gate of the BPF object: nothing in it can panic.
//!
//! A panic in a BPF program compiles and links; only the verifier refuses it, and does not say why. The call stands in
//! the symbol table, by its name.

use std::fs;

use anyhow::{Context as _, Result, bail};
use object::{Object as _, ObjectSymbol as _};

use crate::{
    process::{self, at},
    setup,
    workspace::Workspace,
};

/// What the names of panicking functions contain, mangled or not.
const PANICS: &[&str] = &["panicking", "panic_fmt", "panic_bounds_check"];

/// Builds the daemon, and with it the object, and looks at the object's symbols.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    process::run(workspace.cargo().args(["build", "--locked", "--package=enforcer-user", "--bin=enforcer"]))?;
    let path = setup::object(workspace);
    let bytes = fs::read(&path).with_context(at("read", &path))?;
    let file =
        object::File::parse(bytes.as_slice()).with_context(|| format!("{} is no object file", path.display()))?;
    let names: Vec<&str> = file.symbols().filter_map(|symbol| symbol.name().ok()).collect();
    let panics: Vec<&str> = names.iter().copied().filter(|name| panics(name)).collect();
    if !panics.is_empty() {
        bail!(
            "{} can panic, which the verifier refuses; find the index, division or slice behind: {}",
            path.display(),
            panics.join(", ")
        );
    }
    println!("{}: {} bytes, {} symbols, none of them panics", path.display(), bytes.len(), names.len());
    Ok(())
}

fn panics(symbol: &str) -> bool {
    PANICS.iter().any(|part| symbol.contains(part))
}

#[cfg(test)]
mod tests {
    use super::panics;

    #[test]
    fn knows_a_panic_by_its_name() {
        assert!(panics("_ZN4core9panicking18panic_bounds_check17h0123456789abcdefE"));
        assert!(panics("_RNvNtCs123_4core9panicking9panic_fmt"));
        assert!(!panics("enforcer_xdp"));
    }
}
