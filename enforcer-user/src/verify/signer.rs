//! The keys of proofs: the one of this installation that signs, and those that others check with.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use base64ct::{Base64, Encoding as _};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use zeroize::Zeroizing;

use super::statement::sha256;

/// Name of the key's file in the state directory: the 32 bytes of an Ed25519 seed (RFC 8032, section 5.1.5).
const FILE: &str = "verify.key";
const SEED: usize = 32;

/// The bytes of a `SubjectPublicKeyInfo` that are before an Ed25519 key (RFC 8410, section 4).
const PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
const BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
const END: &str = "-----END PUBLIC KEY-----";

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file.
    #[error("{} cannot be {action}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The error of the call.
        source: io::Error,
    },
    /// The file of the key that signs is not what it should be.
    #[error("{} {reason}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what to do.
        reason: &'static str,
    },
}

impl Error {
    /// The exit code of a command that ends with this error.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => 5,
            Self::Io { .. } | Self::Wrong { .. } => 1,
        }
    }
}

fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { path, action, source }
}

/// The key of this installation. What of it is in memory is overwritten when it goes.
pub struct Signer(SigningKey);

impl Signer {
    /// The key of a state directory; one is made if there is none. A daemon may be using the directory.
    ///
    /// # Errors
    /// It cannot be read or made, is readable by others, or is no key.
    pub fn of(state_dir: &Path) -> Result<Self, Error> {
        match Self::open(state_dir) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                make(state_dir, &state_dir.join(FILE))?;
                Self::open(state_dir)
            }
            opened => opened,
        }
    }

    /// The key that a state directory has.
    ///
    /// # Errors
    /// There is none, or it cannot be read, is readable by others, or is no key.
    pub fn open(state_dir: &Path) -> Result<Self, Error> {
        let path = state_dir.join(FILE);
        let mut file = File::open(&path).map_err(failed(&path, "opened"))?;
        if file.metadata().map_err(failed(&path, "read"))?.mode() & 0o077 != 0 {
            let reason = "can be read by others than its owner: whoever has may sign in this installation's name, so \
                          remove it, and give the new public key to those who check";
            return Err(Error::Wrong { path, reason });
        }
        let mut seed = Zeroizing::new([0; SEED]);
        let is_whole = file.read_exact(&mut *seed).is_ok() && matches!(file.read(&mut [0]), Ok(0));
        if !is_whole {
            let reason = "is not 32 bytes long: restore it from a backup, or remove it, and give the new public key to \
                          those who check";
            return Err(Error::Wrong { path, reason });
        }
        Ok(Self(SigningKey::from_bytes(&seed)))
    }

    /// What others check with.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    pub(super) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

/// Makes a key. Of two commands that do so at once one is first, and its key is that of both.
fn make(state_dir: &Path, path: &Path) -> Result<(), Error> {
    DirBuilder::new().recursive(true).mode(0o700).create(state_dir).map_err(failed(state_dir, "created"))?;
    let mut seed = Zeroizing::new([0; SEED]);
    getrandom::fill(&mut *seed).map_err(|error| failed(path, "filled with random bytes")(io::Error::other(error)))?;
    // Whole and private before it has its name.
    let draft = state_dir.join(format!("{FILE}.{}.new", std::process::id()));
    let mut options = OpenOptions::new();
    let mut file =
        options.write(true).create(true).truncate(true).mode(0o600).open(&draft).map_err(failed(&draft, "created"))?;
    file.write_all(&*seed).and_then(|()| file.sync_all()).map_err(failed(&draft, "written"))?;
    let named = fs::hard_link(&draft, path);
    fs::remove_file(&draft).map_err(failed(&draft, "removed"))?;
    match named {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed(path, "put in its place")(error)),
        _ => File::open(state_dir).and_then(|folder| folder.sync_all()).map_err(failed(state_dir, "synced")),
    }
}

/// A key that proofs are checked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

/// Text that is no such key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no Ed25519 public key; accepted: what `enforcer verify --show-public-key` prints, or its middle line")]
pub struct NoKey;

impl PublicKey {
    /// The key in its PEM form (RFC 7468, section 13), or in the base64 that is in the middle of that.
    ///
    /// # Errors
    /// It is no Ed25519 key, or one whose signatures would prove nothing (of small order).
    pub fn parse(text: &str) -> Result<Self, NoKey> {
        let text = text.trim();
        let line = text.strip_prefix(BEGIN).and_then(|text| text.strip_suffix(END)).unwrap_or(text).trim();
        let bytes = Base64::decode_vec(line).map_err(|_| NoKey)?;
        let key = bytes.strip_prefix(&PREFIX[..]).and_then(|key| key.try_into().ok()).ok_or(NoKey)?;
        let key = VerifyingKey::from_bytes(key).map_err(|_| NoKey)?;
        if key.is_weak() { Err(NoKey) } else { Ok(Self(key)) }
    }

    /// What the key is called in a proof: the SHA-256 of its `SubjectPublicKeyInfo`, in hex.
    #[must_use]
    pub fn id(&self) -> String {
        sha256(&self.info())
    }

    /// Whether this is the signature that the key's owner made of `message`; strict, as every proof has only one.
    pub(super) fn accepts(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.0.verify_strict(message, &Signature::from_bytes(signature)).is_ok()
    }

    fn info(&self) -> Vec<u8> {
        [&PREFIX[..], self.0.as_bytes()].concat()
    }
}

/// The PEM form, as openssl reads it.
impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{BEGIN}\n{}\n{END}", Base64::encode_string(&self.info()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn the_key_is_made_once_is_private_and_is_never_replaced() {
        let root = tempfile::tempdir().expect("a directory");
        let state = root.path().join("a/state");
        assert!(Signer::open(&state).is_err() && !state.exists(), "to open makes nothing");
        let first = Signer::of(&state).expect("a key").public_key();
        let path = state.join(FILE);
        let mode = |path: &Path| fs::metadata(path).expect("metadata").mode() & 0o777;
        assert_eq!((mode(&state), mode(&path)), (0o700, 0o600));
        assert_eq!(fs::read_dir(&state).expect("a directory").count(), 1, "the draft is gone");
        assert_eq!(Signer::of(&state).expect("the key").public_key(), first);
        // Who comes second has the key of who came first.
        make(&state, &path).expect("made");
        assert_eq!(Signer::of(&state).expect("the key").public_key(), first);
        assert_ne!(Signer::of(&root.path().join("b")).expect("another").public_key(), first);

        let refused = || Signer::of(&state).err().map(|error| error.to_string()).unwrap_or_default();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("opened up");
        assert!(refused().contains("can be read by others"), "{}", refused());
        fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("closed");
        for length in [0, 31, 33] {
            fs::write(&path, vec![7; length]).expect("written");
            assert!(refused().contains("is not 32 bytes long"), "{length}: {}", refused());
        }
    }

    #[test]
    fn a_public_key_is_read_in_both_forms_and_nothing_else_is_one() {
        let root = tempfile::tempdir().expect("a directory");
        let key = Signer::of(root.path()).expect("a key").public_key();
        let pem = key.to_string();
        let line = pem.lines().nth(1).expect("three lines");
        assert_eq!((PublicKey::parse(&pem), PublicKey::parse(line)), (Ok(key), Ok(key)));
        assert_eq!(key.id().len(), 64);
        let of_bytes = |key: &[u8]| PublicKey::parse(&Base64::encode_string(&[&PREFIX[..], key].concat()));
        // The neutral element, of order 1: its "signatures" are anybody's.
        let mut neutral = [0; 32];
        neutral[0] = 1;
        assert_eq!(of_bytes(&neutral), Err(NoKey));
        assert_eq!(of_bytes(&key.0.as_bytes()[1..]), Err(NoKey), "a byte is missing");
        let other_kind = line.replacen("MCow", "MCox", 1);
        for wrong in ["", BEGIN, "MCowBQYDK2VwAyEA", &line[1..], &pem[1..], &other_kind, &format!("{line}x")] {
            assert_eq!(PublicKey::parse(wrong), Err(NoKey), "{wrong}");
        }
    }
}
