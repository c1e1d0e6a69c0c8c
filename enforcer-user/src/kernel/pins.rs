//! The pins: what lies on the BPF file system, so that enforcement needs no daemon.
//!
//! ```text
//! <bpffs-dir>/              locked by the daemon that runs
//!   v1/                     the number of the ABI
//!     maps/<MAP>
//!     links/<interface>    of the programs that judge: XDP, or the ingress of traffic control
//!     answers/<interface>  of those that answer, on its ingress, what XDP refuses
//!     watches/<interface>  of those on its egress
//!     sockets/<program>    of the one that is told of connections, by its id
//!     filters/<place>      the programs of filters, where the kernel has no links for traffic control
//! ```
//! A pinned link keeps its program attached, a program keeps its maps. A filter stays by itself; its program is pinned
//! so that it is known. The kernel reserves dots in names of this file system, so `eth0.100` is pinned as `eth0%2e100`.

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
use nix::{
    fcntl::AT_FDCWD,
    mount::MsFlags,
    sys::{
        stat::{UtimensatFlags, utimensat},
        time::TimeSpec,
    },
};

use super::{
    Connections, Error, checks,
    classifier::Side,
    filter_pin::FilterPin,
    kept,
    role::Role,
    syscall::{self, LinkInfo},
};

/// Where distributions mount the BPF file system.
pub(super) const MOUNT_POINT: &str = "/sys/fs/bpf";

const FILTERS: &str = "filters";
const MAPS: &str = "maps";
const SOCKETS: &str = "sockets";
/// Where programs are kept, those that judge before those that serve them.
const KEPT: [&str; 4] = [Role::Judge.directory(), FILTERS, Role::Answer.directory(), Role::Watch.directory()];

/// The paths of the pins of this ABI.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    root: PathBuf,
}

/// A program that is kept at its place: by a pinned link, or as a filter whose program is pinned.
#[derive(Debug)]
pub(super) struct Kept {
    /// The interface's name when it was pinned.
    pub(super) name: String,
    pub(super) path: PathBuf,
    /// The link, or the filter's program.
    pub(super) fd: OwnedFd,
    /// The filter; `None` for a link.
    pub(super) filter: Option<FilterPin>,
    /// What it is for.
    pub(super) role: Role,
    /// The side of traffic control; `None` for XDP.
    pub(super) side: Option<Side>,
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

    /// The pin of a map.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.version().join(MAPS).join(name)
    }

    /// The pin of an interface's link.
    fn link(&self, interface: &str, role: Role) -> PathBuf {
        self.version().join(role.directory()).join(encode(interface))
    }

    /// The pin of a filter's program.
    pub(super) fn filter(&self, filter: &FilterPin) -> PathBuf {
        self.version().join(FILTERS).join(encode(&filter.to_name()))
    }

    /// Whether an interface of a network namespace got its qdisc for one of the filters that are pinned.
    pub(super) fn made_qdisc(&self, interface: u32, namespace: u64) -> Result<bool, Error> {
        let found = entries(&self.version().join(FILTERS))?;
        let mut filters = found.iter().filter_map(|path| FilterPin::from_name(&name_of(path)));
        Ok(filters.any(|filter| filter.made_qdisc && filter.index == interface && filter.namespace == namespace))
    }

    /// The pin of the link by which a program is told of connections.
    pub(super) fn sockets(&self, program: u32) -> PathBuf {
        self.version().join(SOCKETS).join(program.to_string())
    }

    /// Those that are there.
    pub(super) fn all_sockets(&self) -> Result<Vec<PathBuf>, Error> {
        entries(&self.version().join(SOCKETS))
    }

    /// Where to pin the link of an interface: another name if a renamed interface's link has the one that it should.
    pub(super) fn free_link(&self, interface: &str, index: u32, role: Role) -> PathBuf {
        let path = self.link(interface, role);
        if path.exists() { self.link(&format!("{interface}.{index}"), role) } else { path }
    }

    /// Gives a pinned link the interface's present name, if that is free; the name is for people only. A filter's pin
    /// keeps its own, which says where the filter is.
    pub(super) fn rename_link(&self, path: &Path, interface: &str) {
        if is_in(path, FILTERS) {
            return;
        }
        let Some(wanted) = path.parent().map(|directory| directory.join(encode(interface))) else { return };
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
        added.create_directory(&self.version())?;
        for directory in KEPT.into_iter().chain([SOCKETS, MAPS]) {
            added.create_directory(&self.version().join(directory))?;
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

    /// What is kept here; nothing if the directory does not exist.
    pub(super) fn kept(&self) -> Result<Vec<Kept>, Error> {
        let mut kept = Vec::new();
        for directory in KEPT {
            for path in entries(&self.version().join(directory))? {
                let fd = match syscall::open_pin(&path) {
                    Ok(fd) => fd,
                    // Removed since the directory was read.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(source) => return Err(Error::path(path, "opened", source)),
                };
                let found = if directory == FILTERS { filter(path.clone(), fd) } else { link(path.clone(), fd) };
                match found.map_err(|source| Error::path(&path, "asked about", source))? {
                    Some(found) => kept.push(found),
                    None => tracing::warn!("{} is not the enforcer's: left alone", path.display()),
                }
            }
        }
        Ok(kept)
    }

    /// Names of the interfaces that are guarded, in order, without opening anything; `None` if that cannot be read.
    pub(super) fn guarded(&self) -> Option<Vec<String>> {
        let mut names = Vec::new();
        for directory in KEPT {
            let found = entries(&self.version().join(directory)).ok()?;
            names.extend(found.iter().filter_map(|path| guarded_by(path)));
        }
        names.sort_unstable();
        names.dedup();
        Some(names)
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
            for directory in KEPT {
                for path in entries(&version.join(directory))? {
                    detach(&path)?;
                    interfaces.extend(guarded_by(&path));
                }
            }
        }
        for version in &versions {
            for path in entries(&version.join(SOCKETS))?.into_iter().chain(entries(&version.join(MAPS))?) {
                remove_file(&path)?;
            }
            for directory in KEPT.into_iter().chain([SOCKETS, MAPS]) {
                remove_directory(&version.join(directory))?;
            }
            remove_directory(version)?;
        }
        // The root may hold what is not ours, or be the mount point itself.
        let _ = fs::remove_dir(&self.root);
        interfaces.sort_unstable();
        interfaces.dedup();
        Ok(interfaces)
    }
}

/// Names of the interfaces that are guarded by what is pinned in a directory; `None` if that cannot be read.
pub(super) fn guarded(bpffs_dir: &Path) -> Option<Vec<String>> {
    Pins::new(bpffs_dir).guarded()
}

/// Ends enforcement without a daemon: takes the lock, and removes all pins and with them the connections that were kept.
pub(super) fn detach_all(bpffs_dir: &Path) -> Result<Vec<String>, Error> {
    let pins = Pins::new(bpffs_dir);
    if !bpffs_dir.exists() {
        return Ok(Vec::new());
    }
    let _lock = pins.lock()?;
    match Connections::pinned(&pins) {
        Some(connections) => kept::end_with(&connections, |_| true, || pins.remove_all()),
        None => pins.remove_all(),
    }
}

/// Detaches what is pinned here and removes the pin.
pub(super) fn detach(path: &Path) -> Result<(), Error> {
    if is_in(path, FILTERS) {
        if let Some(filter) = FilterPin::from_name(&name_of(path)) {
            filter.remove().map_err(|source| Error::path(path, "detached", source))?;
        }
    } else if let Ok(link) = syscall::open_pin(path) {
        // Removing the pin is enough, unless somebody else holds the link; one that cannot be opened has only its pin.
        let _ = syscall::detach_link(link.as_fd());
    }
    remove_file(path)
}

/// A pinned link; `None` if it is none of ours.
fn link(path: PathBuf, fd: OwnedFd) -> io::Result<Option<Kept>> {
    let Some(LinkInfo { interface, program, side }) = syscall::link_info(fd.as_fd())? else { return Ok(None) };
    let Some(role) = Role::ALL.into_iter().find(|role| is_in(&path, role.directory())) else { return Ok(None) };
    let (name, since) = (name_of(&path), pinned_at(&path));
    Ok(Some(Kept { name, path, fd, filter: None, role, side, interface, program, since }))
}

/// A filter by its pinned program; `None` if the name of the pin is none of ours.
fn filter(path: PathBuf, fd: OwnedFd) -> io::Result<Option<Kept>> {
    let Some(filter) = FilterPin::from_name(&name_of(&path)) else { return Ok(None) };
    let interface = if filter.runs()? { filter.index } else { 0 };
    let (name, role, program) = (filter.interface.clone(), filter.role, filter.program);
    let (side, since) = (Some(role.side()), pinned_at(&path));
    Ok(Some(Kept { name, path, fd, filter: Some(filter), role, side, interface, program, since }))
}

/// When a pin was made.
fn pinned_at(path: &Path) -> jiff::Timestamp {
    let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
    modified.ok().and_then(|time| time.try_into().ok()).unwrap_or_else(jiff::Timestamp::now)
}

/// Lets a pin have been made at another time.
pub(super) fn set_time(path: &Path, time: jiff::Timestamp) -> io::Result<()> {
    let time = TimeSpec::new(time.as_second(), time.subsec_nanosecond().into());
    Ok(utimensat(AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink)?)
}

/// Whether a pin lies in this one of the directories.
fn is_in(path: &Path, directory: &str) -> bool {
    path.parent().and_then(Path::file_name).is_some_and(|name| name == directory)
}

/// The interface that is guarded by what is pinned here; `None` for what does not judge.
fn guarded_by(path: &Path) -> Option<String> {
    if is_in(path, Role::Judge.directory()) {
        return Some(name_of(path));
    }
    let filter = is_in(path, FILTERS).then(|| FilterPin::from_name(&name_of(path))).flatten()?;
    (filter.role == Role::Judge).then_some(filter.interface)
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
        assert_eq!(pins.link("eth0.100", Role::Judge), pins.version().join("links/eth0%2e100"));
        assert_eq!(pins.map("KEYS"), Path::new(&format!("/sys/fs/bpf/enforcer/v{ABI}/maps/KEYS")));
    }

    #[test]
    fn interfaces_are_told_by_the_pins_of_what_judges_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let pins = Pins::new(dir.path());
        assert_eq!(pins.guarded(), Some(vec![]));
        let (_lock, _added) = pins.open().expect("free");
        let filter = |interface: &str, role| {
            let (interface, namespace) = (interface.to_owned(), 1);
            FilterPin { interface, index: 3, role, namespace, program: 7, made_qdisc: true }
        };
        for path in [
            pins.link("lo", Role::Judge),
            pins.link("eth0.100", Role::Judge),
            pins.link("eth0.100", Role::Answer),
            pins.link("eth2", Role::Answer),
            pins.link("br0", Role::Watch),
            pins.filter(&filter("eth1.5", Role::Judge)),
            pins.filter(&filter("eth3", Role::Answer)),
            pins.filter(&filter("br1", Role::Watch)),
        ] {
            fs::write(path, []).expect("a pin");
        }
        assert_eq!(pins.guarded(), Some(vec!["eth0.100".into(), "eth1.5".into(), "lo".into()]));
    }

    #[test]
    fn a_qdisc_was_made_if_a_filter_of_the_same_interface_and_namespace_says_so() {
        let dir = tempfile::tempdir().expect("a directory");
        let pins = Pins::new(dir.path());
        assert!(!pins.made_qdisc(3, 9).expect("no filters"));
        fs::create_dir_all(pins.version().join(FILTERS)).expect("a directory");
        let filter = |index, made_qdisc| FilterPin {
            interface: "eth0".to_owned(),
            index,
            role: Role::Watch,
            namespace: 9,
            program: 7,
            made_qdisc,
        };
        for filter in [filter(3, true), filter(4, false)] {
            fs::write(pins.filter(&filter), []).expect("a pin");
        }
        for (interface, namespace, made) in [(3, 9, true), (4, 9, false), (3, 8, false)] {
            assert_eq!(pins.made_qdisc(interface, namespace).expect("readable"), made, "{interface}, {namespace}");
        }
    }

    #[test]
    fn names_survive_the_file_system() {
        for name in ["lo", "eth0.100", "a%b", "%2e", "a.b%25.c"] {
            assert_eq!(name_of(&Pins::new(Path::new("/")).link(name, Role::Judge)), name);
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
        fs::write(pins.link("eth0.1", Role::Judge), []).expect("a pin");
        drop(lock);
        assert_eq!(detach_all(dir.path()).expect("removed"), ["eth0.1"]);
        assert!(dir.path().join("vault").exists() && !dir.path().join("v1").exists());
    }
}
