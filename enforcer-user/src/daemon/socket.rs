//! The control socket's file: made private, taken from nobody who still listens, and removed at the end.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, socket};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::Group;
use tokio::net::UnixListener;

/// Members of this group may read over the socket.
pub(crate) const READERS: &str = "enforcer";

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file or its directory.
    #[error("the control socket {} cannot be {action}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The error of the call.
        source: io::Error,
    },
    /// Somebody listens.
    #[error("another daemon listens on {}: stop it, or give this one its own --socket", path.display())]
    Held {
        /// The socket.
        path: PathBuf,
    },
    /// Something else lies there.
    #[error("{} is there, and it is no socket: remove it, or name another --socket", path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
}

/// The socket's file, which is removed when this is dropped.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// So that a file that another daemon has put there meanwhile stays.
    identity: Option<Identity>,
}

/// Device, inode, and time of the last change, since an inode's number is soon used again.
type Identity = (u64, u64, i64, i64);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = self.identity.is_some() && identity(&self.path) == self.identity;
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!("the control socket {} cannot be removed: {error}", self.path.display());
        }
    }
}

/// Listens on `path`, in place of a socket that nobody listens on any more.
pub(super) fn listen(path: &Path) -> Result<(UnixListener, SocketFile), Error> {
    let failed = |action| move |source| Error::Io { path: path.to_owned(), action, source };
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(failed("given a directory"))?;
    }
    clear(path)?;
    let listener = bind(path).map_err(failed("bound"))?;
    let opened = match Group::from_name(READERS) {
        Ok(Some(group)) => chown(path, None, Some(group.gid.as_raw()))
            .and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o660))),
        _ => Ok(()),
    };
    let file = SocketFile { path: path.to_owned(), identity: identity(path) };
    opened.map_err(failed("opened to its group"))?;
    Ok((listener, file))
}

/// Listens with mode 0600 from the first moment: Linux gives the file the mode of the unbound socket.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    nix::sys::socket::bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    nix::sys::socket::listen(&socket, Backlog::MAXCONN)?;
    UnixListener::from_std(socket.into())
}

fn identity(path: &Path) -> Option<Identity> {
    let now = fs::symlink_metadata(path).ok()?;
    Some((now.dev(), now.ino(), now.ctime(), now.ctime_nsec()))
}

/// Removes a socket that nobody listens on.
fn clear(path: &Path) -> Result<(), Error> {
    let failed = |action| move |source| Error::Io { path: path.to_owned(), action, source };
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        metadata => metadata.map_err(failed("read"))?,
    };
    if !metadata.file_type().is_socket() {
        return Err(Error::NotASocket { path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(Error::Held { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed("replaced"))
        }
        Err(source) => Err(failed("probed")(source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_private_and_goes_with_its_daemon() {
        let root = tempfile::tempdir().expect("a directory");
        let path = root.path().join("run/control.sock");
        let (listener, file) = listen(&path).expect("listens");
        let mode = fs::metadata(&path).expect("metadata").mode() & 0o777;
        assert!(mode == 0o600 || mode == 0o660, "{mode:o}");
        drop((listener, file));
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_socket_is_replaced_only_if_nobody_listens() {
        let root = tempfile::tempdir().expect("a directory");
        let path = root.path().join("control.sock");
        let (listener, file) = listen(&path).expect("listens");
        assert!(matches!(listen(&path), Err(Error::Held { .. })));
        drop(listener);
        let (_second, second_file) = listen(&path).expect("takes its place");
        drop(file);
        assert!(path.exists(), "the first daemon does not remove the second one's socket");
        drop(second_file);
        fs::write(&path, "").expect("written");
        assert!(matches!(listen(&path), Err(Error::NotASocket { .. })));
    }
}
