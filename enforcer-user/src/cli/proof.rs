//! Proofs of `enforcer verify` on the command line: where they go, and how they are checked.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
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
        let name =
            path.file_name().filter(|_| !path.is_dir()).ok_or_else(|| Usage(refused(path, "it is a directory")))?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let folder = File::open(parent).map_err(|error| Usage(refused(path, error)))?;
        Ok(Self::File { folder, name: name.to_owned() })
    }

    /// Writes the whole of it or nothing.
    pub(super) fn write(&self, proof: &str) -> io::Result<()> {
        let Self::File { folder, name } = self else { return print(proof) };
        let folder = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
        let draft = folder.join(draft(name));
        // In a folder that others may write to, nothing of theirs is followed or written over.
        let mut file = File::create_new(&draft)?;
        let written = file.write_all(proof.as_bytes()).and_then(|()| file.sync_all());
        let named = written.and_then(|()| fs::rename(&draft, folder.join(name)));
        if named.is_err() {
            // That it could not be written is what is told.
            let _ = fs::remove_file(&draft);
        }
        named
    }
}

/// What the file is called until it is whole.
fn draft(name: &OsStr) -> OsString {
    let mut draft = OsString::from(".");
    draft.push(name);
    draft.push(format!(".{}.new", std::process::id()));
    draft
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_proof_takes_the_place_of_one_before_and_follows_nothing_of_others() {
        let root = tempfile::tempdir().expect("a directory");
        let [path, other] = ["proof.json", "other"].map(|name| root.path().join(name));
        fs::write(&path, "before").expect("written");
        let destination = Destination::of(&path).expect("a destination");
        destination.write("first").expect("written");
        destination.write("second").expect("written");
        assert_eq!(fs::read_to_string(&path).expect("read"), "second");
        assert_eq!(fs::read_dir(root.path()).expect("a directory").count(), 1, "the draft is gone");

        fs::write(&other, "theirs").expect("written");
        symlink(&other, root.path().join(draft(OsStr::new("proof.json")))).expect("a link");
        destination.write("third").expect_err("the draft is there");
        assert_eq!(fs::read_to_string(&other).expect("read"), "theirs");
        assert_eq!(fs::read_to_string(&path).expect("read"), "second");
    }

    #[test]
    fn where_no_file_can_be_is_said_before_the_test() {
        let root = tempfile::tempdir().expect("a directory");
        for path in [root.path().to_owned(), root.path().join("none/proof.json"), "..".into()] {
            assert!(Destination::of(&path).is_err(), "{}", path.display());
        }
    }
}
