//! The inputs that fuzzing begins with: the kept corpus, and for streams the parser's own.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use enforcer_tests::corpus;

use crate::Target;

/// The folder of a target's kept inputs.
#[must_use]
pub fn folder(target: Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name())
}

/// All of a target's first inputs, with their names, always in the same order.
///
/// # Errors
/// When a file cannot be read or a case of the parser's corpus is not understood.
pub fn load(target: Target) -> Result<Vec<(String, Vec<u8>)>> {
    let folder = folder(target);
    let mut paths = std::fs::read_dir(&folder)
        .with_context(|| format!("reading {}", folder.display()))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<Vec<_>>>()?;
    paths.sort();
    let mut seeds = Vec::new();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        seeds.push((name, std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?));
    }
    if target == Target::Http {
        seeds.extend(corpus::load()?.into_iter().map(|case| (case.name, case.stream)));
    }
    Ok(seeds)
}
