//! The state directory: one daemon at a time, and the secret of the key tags.
//!
//! The directory is 0700. The lock is the kernel's and ends with the process, so that a killed daemon leaves none.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// Name of the store.
const STORE: &str = "store.db";
/// Name of the database of what was counted.
const COUNTS: &str = "counts.db";
/// Name of the secret's file: 16 random bytes.
const SECRET: &str = "key.secret";

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or the directory itself.
    #[error("{} cannot be {action}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The error of the call.
        source: io::Error,
    },
    /// The lock is held.
    #[error("another daemon runs with the state directory {}: stop it, or give this one its own --state-dir, --socket, --bpffs-dir and --metrics", path.display())]
    Held {
        /// The directory.
        path: PathBuf,
    },
    /// The secret's file is not what it should be.
    #[error("{} {reason}", path.display())]
    Secret {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what to do.
        reason: &'static str,
    },
}

fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { path, action, source }
}

/// The directory, held by this process for as long as this lives.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    lock: File,
}

impl StateDir {
    /// Makes the directory if there is none, makes it private, and locks it.
    ///
    /// # Errors
    /// It cannot be made or opened, or another daemon holds it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(path).map_err(failed(path, "created"))?;
        let lock = File::open(path).map_err(failed(path, "opened"))?;
        let metadata = lock.metadata().map_err(failed(path, "read"))?;
        if metadata.mode() & 0o077 != 0 {
            fs::set_permissions(path, Permissions::from_mode(0o700))
                .map_err(failed(path, "made private (mode 0700)"))?;
        }
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), lock }),
            Err(TryLockError::WouldBlock) => Err(Error::Held { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => Err(failed(path, "locked")(source)),
        }
    }

    /// Path of the store.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.path.join(STORE)
    }

    /// Path of the database of what was counted.
    #[must_use]
    pub fn counts(&self) -> PathBuf {
        self.path.join(COUNTS)
    }

    /// Reads the secret of the key tags, or makes it at the first start.
    ///
    /// # Errors
    /// It cannot be read or written, is not 16 bytes, is readable by others, or is gone while the store is there.
    pub fn secret(&self) -> Result<[u64; 2], Error> {
        let path = self.path.join(SECRET);
        let mut bytes = Zeroizing::new([0u8; 17]);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.make_secret(&path),
            Err(source) => return Err(failed(&path, "opened")(source)),
        };
        if file.metadata().map_err(failed(&path, "read"))?.mode() & 0o077 != 0 {
            let reason =
                "can be read by others than its owner: run `chmod 600` on it, and think of who may have read it";
            return Err(Error::Secret { path, reason });
        }
        let mut len = 0;
        loop {
            match file.read(&mut bytes[len..]).map_err(failed(&path, "read"))? {
                0 => break,
                more => len += more,
            }
        }
        if len != 16 {
            let reason = "is not 16 bytes long: restore it from a backup, or remove it together with store.db and add all keys again";
            return Err(Error::Secret { path, reason });
        }
        Ok(words(&bytes))
    }

    fn make_secret(&self, path: &Path) -> Result<[u64; 2], Error> {
        if self.store().exists() {
            let reason = "is missing, and without it no key of store.db is known: restore it from a backup, or remove \
                          store.db and add all keys again";
            return Err(Error::Secret { path: path.to_owned(), reason });
        }
        let mut bytes = Zeroizing::new([0u8; 17]);
        getrandom::fill(&mut bytes[..16])
            .map_err(|error| failed(path, "filled with random bytes")(io::Error::other(error)))?;
        // Under another name first: a start that is cut short leaves no half of a secret.
        let draft = self.path.join("key.secret.new");
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)
            .map_err(failed(&draft, "created"))?;
        file.write_all(&bytes[..16]).and_then(|()| file.sync_all()).map_err(failed(&draft, "written"))?;
        fs::rename(&draft, path).map_err(failed(path, "put in its place"))?;
        self.lock.sync_all().map_err(failed(&self.path, "synced"))?;
        Ok(words(&bytes))
    }
}

/// The two words, each little-endian, of the first 16 bytes.
fn words(bytes: &[u8; 17]) -> [u64; 2] {
    let word = |from: usize| bytes[from..from + 8].iter().rev().fold(0, |word, &byte| (word << 8) | u64::from(byte));
    [word(0), word(8)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("metadata").mode() & 0o777
    }

    #[test]
    fn the_directory_and_the_secret_are_private_and_the_secret_stays() {
        let root = tempfile::tempdir().expect("a directory");
        let path = root.path().join("a/state");
        let first = {
            let state = StateDir::open(&path).expect("opens");
            state.secret().expect("a secret")
        };
        assert_eq!((mode(&path), mode(&path.join(SECRET))), (0o700, 0o600));
        assert_ne!(first, [0, 0]);
        let state = StateDir::open(&path).expect("opens again");
        assert_eq!(state.secret().expect("the secret"), first);
        assert_eq!(fs::read(path.join(SECRET)).expect("read")[..8], first[0].to_le_bytes());
    }

    #[test]
    fn a_second_daemon_is_turned_away() {
        let root = tempfile::tempdir().expect("a directory");
        let first = StateDir::open(root.path()).expect("opens");
        assert!(matches!(StateDir::open(root.path()), Err(Error::Held { .. })));
        drop(first);
        assert!(StateDir::open(root.path()).is_ok());
    }

    #[test]
    fn a_directory_that_others_could_read_is_closed() {
        let root = tempfile::tempdir().expect("a directory");
        fs::set_permissions(root.path(), Permissions::from_mode(0o755)).expect("opened up");
        let _state = StateDir::open(root.path()).expect("opens");
        assert_eq!(mode(root.path()), 0o700);
    }

    #[test]
    fn a_secret_that_is_wrong_is_never_replaced() {
        let root = tempfile::tempdir().expect("a directory");
        let state = StateDir::open(root.path()).expect("opens");
        let secret = root.path().join(SECRET);
        fs::write(&secret, [1; 15]).expect("written");
        fs::set_permissions(&secret, Permissions::from_mode(0o600)).expect("closed");
        assert!(state.secret().expect_err("too short").to_string().contains("is not 16 bytes long"));
        fs::write(&secret, [1; 17]).expect("written");
        assert!(state.secret().expect_err("too long").to_string().contains("is not 16 bytes long"));
        fs::set_permissions(&secret, Permissions::from_mode(0o640)).expect("opened up");
        assert!(state.secret().expect_err("readable").to_string().contains("can be read by others"));
        fs::remove_file(&secret).expect("removed");
        fs::write(state.store(), b"").expect("written");
        assert!(state.secret().expect_err("gone").to_string().contains("is missing"));
    }
}
