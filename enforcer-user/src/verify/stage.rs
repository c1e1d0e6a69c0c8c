//! Namespaces of this process alone: the guarded side's, the client's, and the mounts.
//!
//! The kernel takes them away with the process, and with them the link, the pins and what is attached: nothing has to be
//! removed, and nothing is left when the process is killed.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, anyhow};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use tokio::runtime::Runtime;

use super::link;

/// Why there is no stage.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The right to make namespaces, mounts or interfaces is missing.
    #[error("`enforcer verify` needs the right to make network and mount namespaces (CAP_SYS_ADMIN): run it as root")]
    Permission,
    /// Another failure.
    #[error("the link of the test cannot be made: {what}: {source}")]
    System {
        /// What failed.
        what: &'static str,
        /// The error of the call.
        source: io::Error,
    },
}

impl Error {
    fn of(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::PermissionDenied => Self::Permission,
            _ => Self::System { what, source },
        }
    }

    /// The exit code of a command that ends with this error.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Permission => 5,
            Self::System { .. } => 1,
        }
    }
}

/// The two sides and the folder that only this process sees.
#[derive(Debug)]
pub struct Stage {
    folder: PathBuf,
    client: File,
}

impl Stage {
    /// Moves the calling thread, and those that it begins from now on, to the guarded side. The folder for temporary
    /// files is an empty one for them from now on.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn enter() -> Result<Self, Error> {
        let system = |what| move |error: nix::Error| Error::of(what)(error.into());
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).map_err(system("new namespaces"))?;
        let none = None::<&str>;
        // Mounts of a shared parent would be seen by all.
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(system("mounts of its own"))?;
        let folder = std::env::temp_dir();
        mount(Some("tmpfs"), &folder, Some("tmpfs"), MsFlags::empty(), Some("mode=0700,size=256m"))
            .map_err(system("a file system in memory"))?;
        let stage = Self { client: elsewhere()?, folder };
        fs::create_dir(stage.pins()).map_err(Error::of("a folder for the pins"))?;
        mount(Some("bpf"), &stage.pins(), Some("bpf"), MsFlags::empty(), none).map_err(system("a BPF file system"))?;
        link::make(stage.client.as_fd()).map_err(Error::of("a veth pair"))?;
        link::raise_guarded().map_err(Error::of("the guarded end of the pair"))?;
        stage.on_client_side(link::raise_client)?.map_err(Error::of("the client's end of the pair"))?;
        Ok(stage)
    }

    /// An empty folder in memory.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The directory of the pins.
    pub(super) fn pins(&self) -> PathBuf {
        self.folder.join("bpf")
    }

    /// Runs `work` on the client's side, with a runtime whose sockets are there.
    pub(super) fn as_client<T: Send>(
        &self,
        work: impl FnOnce(Runtime) -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        let run = || work(tokio::runtime::Builder::new_current_thread().enable_all().build()?);
        self.on_client_side(run).context("the client's side cannot be entered")?
    }

    fn on_client_side<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        on_thread(|| {
            setns(self.client.as_fd(), CloneFlags::CLONE_NEWNET)
                .map_err(|error| Error::of("the client's namespace")(error.into()))?;
            Ok(work())
        })
    }
}

/// A network namespace that nothing is in.
fn elsewhere() -> Result<File, Error> {
    on_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|error| Error::of("a second namespace")(error.into()))?;
        File::open("/proc/thread-self/ns/net").map_err(Error::of("a second namespace"))
    })
}

/// Runs `work` on a thread that ends with it, so that no other is in its namespace.
fn on_thread<T: Send>(work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    thread::scope(|scope| {
        let ended = scope.spawn(work).join();
        ended.unwrap_or_else(|_| Err(Error::of("a thread")(io::Error::other(anyhow!("it panicked")))))
    })
}
