//! The rights that a test needs. A test that lacks them fails; it is never skipped, so a green run ran everything.

use anyhow::{Result, ensure};

/// Fails with what to do unless the test runs as root.
///
/// # Errors
/// When the effective user is not root.
pub fn require() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "this test creates network namespaces and loads BPF programs: run it as root, by `cargo xtask test`"
    );
    Ok(())
}
