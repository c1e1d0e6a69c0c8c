//! What a measurement was taken on.

use std::fs;

use anyhow::{Context as _, Result};

/// The kernel's release.
///
/// # Errors
/// When the system does not say it.
pub fn kernel() -> Result<String> {
    Ok(read("/proc/sys/kernel/osrelease")?.trim().to_owned())
}

/// The processor's name, which some architectures do not give.
///
/// # Errors
/// When the system does not say what it runs on.
pub fn processor() -> Result<String> {
    let information = read("/proc/cpuinfo")?;
    let named = information.lines().filter_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let name = named.map(|(_, name)| name.trim().to_owned()).next();
    Ok(name.unwrap_or_else(|| "unnamed processor".to_owned()))
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
}
