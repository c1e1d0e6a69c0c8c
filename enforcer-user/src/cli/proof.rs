//! Proofs of `enforcer verify` on the command line: where they go, and how they are checked.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::Usage;
use super::output::print;
use crate::api::Envelope;
use crate::verify::Statement;
use crate::verify::proof::{self, MOST};
use crate::verify::signer::{PublicKey, Signer};

/// Where a proof goes. It is made before the test, for which the folder for temporary files is another.
#[derive(Debug)]
pub(super) enum Destination {
    Stdout,
    /// A name in a folder.
    File {
        folder: File,
        name: OsString,
    },
}

impl Destination {
    pub(super) fn of(path: &Path) -> anyhow::Result<Self> {
        if path.as_os_str() == "-" {
            return Ok(Self::Stdout);
        }
        let name = path.file_name().filter(|_| !path.is_dir()).with_context(|| refused(path, "it is a directory"))?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let folder = File::open(parent).map_err(|error| Usage(refused(path, error)))?;
        Ok(Self::File { folder, name: name.to_owned() })
    }

    /// Writes the whole of it or nothing.
    pub(super) fn write(&self, proof: &str) -> io::Result<()> {
        let Self::File { folder, name } = self else { return print(proof) };
        let folder = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
        let mut draft = OsString::from(".");
        draft.push(name);
        draft.push(".new");
        let draft = folder.join(draft);
        fs::write(&draft, proof)?;
        fs::rename(draft, folder.join(name))
    }
}

fn refused(path: &Path, why: impl std::fmt::Display) -> String {
    format!("--proof {}: {why}", path.display())
}

/// The key that `--public-key` names: by a file, or itself.
pub(super) fn public_key(text: &str) -> anyhow::Result<PublicKey> {
    if let Ok(key) = PublicKey::parse(text) {
        return Ok(key);
    }
    let wrong = |why: &dyn std::fmt::Display| Usage(format!("--public-key {text}: {why}"));
    let file = read(Path::new(text)).map_err(|error| wrong(&error))?;
    Ok(PublicKey::parse(&file).map_err(|error| wrong(&error))?)
}

/// The key of the installation whose state directory this is.
pub(super) fn own_key(state_dir: &Path) -> anyhow::Result<PublicKey> {
    let signer = Signer::open(state_dir).context("without --public-key, this installation's key is needed")?;
    Ok(signer.public_key())
}

/// What a file states, if the signature is the key's.
pub(super) fn check(path: &Path, key: &PublicKey) -> anyhow::Result<Envelope<Statement>> {
    let text = if path.as_os_str() == "-" { bounded(io::stdin()) } else { read(path) };
    let text = text.map_err(|error| Usage(format!("{} cannot be read: {error}", path.display())))?;
    Ok(proof::check(&text, key)?)
}

fn read(path: &Path) -> io::Result<String> {
    bounded(File::open(path)?)
}

fn bounded(from: impl io::Read) -> io::Result<String> {
    let mut text = String::new();
    from.take(MOST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MOST {
        return Err(io::Error::other(format!("it is larger than {MOST} bytes")));
    }
    Ok(text)
}
