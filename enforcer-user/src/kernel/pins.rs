//! The pins: what lies on the BPF file system, so that enforcement needs no daemon.
//!
//! ```text
//! <bpffs-dir>/              locked by the daemon that runs
//!   v1/                     the number of the ABI
//!     maps/<MAP>
//!     links/<interface>
//! ```
//! A pinned link keeps its program attached, a program keeps its maps. The kernel reserves dots in names of this file
//! system, so `eth0.100` is pinned as `eth0%2e100`.

use std::{
    fs::{self, DirBuilder, File, TryLockError},
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::DirBuilderExt as _,
    },
    path::{Path, PathBuf},
};

use enforcer_ebpf::abi::{ABI, map};
use nix::mount::MsFlags;

use super::{
    Error, checks,
    syscall::{self, Spot},
};

/// Where distributions mount the BPF file system.
pub(super) const MOUNT_POINT: &str = "/sys/fs/bpf";

/// Ends the names of the links that watch what an interface sends.
const WATCH: &str = ":watch";

/// The interface of a link with this name.
pub fn guarded_interface(link: &str) -> &str {
    link.strip_suffix(WATCH).unwrap_or(link)
}

/// The paths of the pins of this ABI.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    root: PathBuf,
}

/// A pinned link.
#[derive(Debug)]
pub(super) struct Link {
    /// The interface's name when the link was pinned.
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) fd: OwnedFd,
    /// Where its program runs.
    pub(super) spot: Spot,
    /// Index of the interface, 0 if it is gone.
    pub(super) interface: u32,
    /// Id of the program that it holds.
    pub(super) program: u32,
    /// When it was pinned.
    pub(super) since: jiff::Timestamp,
}

/// The right to change the pins of a directory; given back when dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _directory: File,
}

/// What this start has added, removed again when dropped unless [`Added::keep`] was called.
#[derive(Debug, Default)]
pub(super) struct Added {
    maps: Vec<PathBuf>,
    directories: Vec<PathBuf>,
}

impl Pins {
    pub(super) fn new(bpffs_dir: &Path) -> Self {
        Self { root: bpffs_dir.to_path_buf() }
    }

    /// The root and its parents that do not exist, deepest first.
    fn missing(&self) -> Vec<&Path> {
        self.root.ancestors().take_while(|ancestor| !ancestor.exists()).collect()
    }

    fn version(&self) -> PathBuf {
        self.root.join(format!("v{ABI}"))
    }

    fn links_dir(&self) -> PathBuf {
        self.version().join("links")
    }

    /// The pin of a map.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.version().join("maps").join(name)
    }

    /// The pin of an interface's link.
    pub(super) fn link(&self, interface: &str) -> PathBuf {
        self.links_dir().join(encode(interface))
    }

    /// The pin of the link that watches what an interface sends; no interface's name has a colon.
    pub(super) fn watch(&self, interface: &str) -> PathBuf {
        self.link(&format!("{interface}{WATCH}"))
    }

    /// Where to pin the link of an interface: another name if a renamed interface's link has the one that it should.
    pub(super) fn free_link(&self, interface: &str, index: u32) -> PathBuf {
        let path = self.link(interface);
        if path.exists() { self.link(&format!("{interface}.{index}")) } else { path }
    }

    /// Gives a pinned link the interface's present name, if that is free; the name is for people only.
    pub(super) fn rename_link(&self, path: &Path, interface: &str) {
        let wanted = self.link(interface);
        if path != wanted && !wanted.exists() && fs::rename(path, &wanted).is_err() {
            tracing::debug!("the link of {interface} stays pinned as {}", path.display());
        }
    }

    /// Refuses a directory whose name a BPF file system would not take.
    pub(super) fn check_name(&self) -> Result<(), Error> {
        let dotted = |directory: &&Path| directory.file_name().is_some_and(|name| name.to_string_lossy().contains('.'));
        if self.missing().iter().any(dotted) { Err(Error::Dotted { dir: self.root.clone() }) } else { Ok(()) }
    }

    /// Makes sure that the directory is on a BPF file system; mounts one where distributions do, if nothing is there.
    pub(super) fn mount(&self) -> Result<(), Error> {
        if checks::is_on_bpffs(&self.root) {
            return Ok(());
        }
        let no_bpffs = |reason: String| Error::NoBpffs { dir: self.root.clone(), reason };
        if !self.root.starts_with(MOUNT_POINT) {
            return Err(no_bpffs("it is mounted only at /sys/fs/bpf of itself".to_owned()));
        }
        let is_empty = fs::read_dir(MOUNT_POINT).is_ok_and(|mut entries| entries.next().is_none());
        if !is_empty {
            return Err(no_bpffs(format!("{MOUNT_POINT} is no empty directory")));
        }
        if checks::has_own_mounts() {
            // Seen under `ip netns exec`: what is pinned there ends, unsaid, with the last process in it.
            return Err(no_bpffs(
                "this process has mounts of its own, in which a new one would end with it; enter a network namespace \
                 with `nsenter --net=/run/netns/NAME`"
                    .to_owned(),
            ));
        }
        if !checks::may_mount() {
            return Err(no_bpffs("mounting it needs CAP_SYS_ADMIN".to_owned()));
        }
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        nix::mount::mount(Some("bpf"), MOUNT_POINT, Some("bpf"), flags, Some("mode=700"))
            .map_err(|error| no_bpffs(format!("it cannot be mounted: {}", error.desc())))?;
        tracing::info!("mounted a BPF file system at {MOUNT_POINT}, where none was");
        Ok(())
    }

    /// Creates the directories that are missing, and takes the lock.
    pub(super) fn open(&self) -> Result<(Lock, Added), Error> {
        let mut added = Added::default();
        for directory in self.missing().into_iter().rev() {
            added.create_directory(directory)?;
        }
        let lock = self.lock()?;
        for directory in [self.version(), self.version().join("maps"), self.links_dir()] {
            added.create_directory(&directory)?;
        }
        Ok((lock, added))
    }

    fn lock(&self) -> Result<Lock, Error> {
        let directory = File::open(&self.root).map_err(|source| Error::path(&self.root, "opened", source))?;
        match directory.try_lock() {
            Ok(()) => Ok(Lock { _directory: directory }),
            Err(TryLockError::WouldBlock) => Err(Error::AnotherDaemon { dir: self.root.clone() }),
            Err(TryLockError::Error(source)) => Err(Error::path(&self.root, "locked", source)),
        }
    }

    /// The links pinned here; none if the directory does not exist.
    pub(super) fn links(&self) -> Result<Vec<Link>, Error> {
        let mut links = Vec::new();
        for path in entries(&self.links_dir())? {
            let fd = match syscall::open_pin(&path) {
                Ok(fd) => fd,
                // Removed since the directory was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(Error::path(path, "opened", source)),
            };
            let info = syscall::link_info(fd.as_fd());
            let Some(info) = info.map_err(|source| Error::path(&path, "asked about", source))? else {
                tracing::warn!("{} is not a link of the enforcer's: left alone", path.display());
                continue;
            };
            let modified = fs::metadata(&path).and_then(|metadata| metadata.modified());
            let since = modified.ok().and_then(|time| time.try_into().ok()).unwrap_or_else(jiff::Timestamp::now);
            links.push(Link {
                name: name_of(&path),
                path,
                fd,
                spot: info.spot,
                interface: info.interface,
                program: info.program,
                since,
            });
        }
        Ok(links)
    }

    /// Ends enforcement: detaches all links, of every ABI, then removes the maps and the directories.
    ///
    /// The caller holds the lock. Returns the interfaces that were guarded.
    pub(super) fn remove_all(&self) -> Result<Vec<String>, Error> {
        let is_version = |path: &PathBuf| {
            let name = name_of(path);
            name.strip_prefix('v')
                .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
        };
        let versions: Vec<PathBuf> = entries(&self.root)?.into_iter().filter(is_version).collect();
        let mut interfaces = Vec::new();
        for version in &versions {
            for link in entries(&version.join("links"))? {
                detach(&link)?;
                interfaces.push(guarded_interface(&name_of(&link)).to_owned());
            }
        }
        for version in &versions {
            for map in entries(&version.join("maps"))? {
                remove_file(&map)?;
            }
            for directory in [version.join("links"), version.join("maps"), version.clone()] {
                remove_directory(&directory)?;
            }
        }
        // The root may hold what is not ours, or be the mount point itself.
        let _ = fs::remove_dir(&self.root);
        interfaces.sort_unstable();
        interfaces.dedup();
        Ok(interfaces)
    }
}

/// Ends enforcement without a daemon: takes the lock and removes all pins.
pub(super) fn detach_all(bpffs_dir: &Path) -> Result<Vec<String>, Error> {
    let pins = Pins::new(bpffs_dir);
    if !bpffs_dir.exists() {
        return Ok(Vec::new());
    }
    let _lock = pins.lock()?;
    pins.remove_all()
}

/// Detaches a pinned link and removes its pin.
pub(super) fn detach(path: &Path) -> Result<(), Error> {
    // Removing the pin is enough, unless somebody else holds the link; a link that cannot be opened has only its pin.
    if let Ok(link) = syscall::open_pin(path) {
        let _ = syscall::detach_link(link.as_fd());
    }
    remove_file(path)
}

impl Added {
    fn create_directory(&mut self, path: &Path) -> Result<(), Error> {
        match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => {
                self.directories.push(path.to_path_buf());
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(source) => Err(Error::path(path, "created", source)),
        }
    }

    /// Notes the maps that are not pinned yet, before the loader pins them.
    pub(super) fn note_maps(&mut self, pins: &Pins) {
        self.maps = map::PINNED.iter().map(|name| pins.map(name)).filter(|path| !path.exists()).collect();
    }

    /// What was added stays.
    pub(super) fn keep(&mut self) {
        self.maps.clear();
        self.directories.clear();
    }
}

impl Drop for Added {
    fn drop(&mut self) {
        for map in &self.maps {
            let _ = fs::remove_file(map);
        }
        for directory in self.directories.iter().rev() {
            let _ = fs::remove_dir(directory);
        }
    }
}

/// The paths in a directory, sorted; none if it does not exist.
fn entries(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let read = match fs::read_dir(directory) {
        Ok(read) => read,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(Error::path(directory, "listed", source)),
    };
    let paths: io::Result<Vec<PathBuf>> = read.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut paths = paths.map_err(|source| Error::path(directory, "listed", source))?;
    paths.sort_unstable();
    Ok(paths)
}

fn remove_file(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::path(path, "removed", error)),
        _ => Ok(()),
    }
}

fn remove_directory(path: &Path) -> Result<(), Error> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::path(path, "removed", error)),
        _ => Ok(()),
    }
}

/// The interface that a pin is named after.
fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.replace("%2e", ".").replace("%25", "%")
}

fn encode(interface: &str) -> String {
    interface.replace('%', "%25").replace('.', "%2e")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_named_after_interfaces_without_dots() {
        let pins = Pins::new(Path::new("/sys/fs/bpf/enforcer"));
        assert_eq!(pins.link("eth0.100"), Path::new("/sys/fs/bpf/enforcer/v2/links/eth0%2e100"));
        assert_eq!(pins.map("KEYS"), Path::new("/sys/fs/bpf/enforcer/v2/maps/KEYS"));
    }

    #[test]
    fn names_survive_the_file_system() {
        for name in ["lo", "eth0.100", "a%b", "%2e", "a.b%25.c"] {
            assert_eq!(name_of(&Pins::new(Path::new("/")).link(name)), name);
        }
    }

    #[test]
    fn detaching_where_nothing_is_pinned_is_no_error() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(detach_all(&dir.path().join("absent")).expect("nothing to do"), Vec::<String>::new());
    }

    #[test]
    fn two_daemons_do_not_share_a_directory() {
        let dir = tempfile::tempdir().expect("a directory");
        let pins = Pins::new(dir.path());
        let (lock, _added) = pins.open().expect("free");
        let error = pins.open().expect_err("taken");
        assert_eq!(error.exit_code(), 14);
        drop(lock);
        pins.open().expect("free again");
    }

    #[test]
    fn what_a_failed_start_added_is_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("enforcer");
        let pins = Pins::new(&root);
        let (lock, mut added) = pins.open().expect("free");
        added.note_maps(&pins);
        fs::write(pins.map("KEYS"), []).expect("a pin");
        drop(added);
        assert!(!root.exists());
        drop(lock);
    }

    #[test]
    fn detaching_leaves_what_is_not_a_version_directory() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("vault")).expect("a directory");
        let pins = Pins::new(dir.path());
        let (lock, mut added) = pins.open().expect("free");
        added.keep();
        fs::write(pins.map("KEYS"), []).expect("a pin");
        fs::write(pins.link("eth0.1"), []).expect("a pin");
        drop(lock);
        assert_eq!(detach_all(dir.path()).expect("removed"), ["eth0.1"]);
        assert!(dir.path().join("vault").exists() && !dir.path().join("v1").exists());
    }
}
