//! What can go wrong between the daemon and the kernel: one sentence each, that says what, where and what to do next.
//!
//! Callers branch on [`Error::exit_code`] only; the numbers are those of the command line.

use std::{io, path::PathBuf};

use aya::{EbpfError, maps::MapError};

use super::Mode;

/// Why the program could not be loaded, attached, fed or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The process may not load and attach BPF programs.
    #[error(
        "no permission to load and attach BPF programs ({missing}): run as root, or give the process CAP_BPF, \
         CAP_NET_ADMIN and CAP_PERFMON"
    )]
    Rights {
        /// The capabilities that are missing, or what the kernel refused.
        missing: String,
    },

    /// The kernel lacks what the program is made of.
    #[error("kernel {release} is too old: the enforcer needs 6.1 or newer")]
    KernelTooOld {
        /// As `uname -r` says it.
        release: String,
    },

    /// The kernel does not describe its own structures, or not the ones that are read.
    #[error(
        "the kernel's type information (/sys/kernel/btf/vmlinux) {reason}: use a kernel built with \
         CONFIG_DEBUG_INFO_BTF=y, as distribution kernels are"
    )]
    NoBtf {
        /// What is wrong with it.
        reason: String,
    },

    /// No BPF file system where the pins belong.
    #[error(
        "{} is not on a BPF file system ({reason}): run `mount -t bpf bpf /sys/fs/bpf`, or name another place with \
         --bpffs-dir",
        dir.display()
    )]
    NoBpffs {
        /// Where the pins belong.
        dir: PathBuf,
        /// Why it was not mounted either.
        reason: String,
    },

    /// The kernel reserves dots in names of its BPF file system.
    #[error("--bpffs-dir {}: names on a BPF file system hold no dots", dir.display())]
    Dotted {
        /// Where the pins belong.
        dir: PathBuf,
    },

    /// No interface was asked for.
    #[error("no interface to guard: name one with --interface")]
    NothingToGuard,

    /// The interface does not exist in this network namespace.
    #[error("there is no interface `{name}` here; there are {present}")]
    NoInterface {
        /// The name asked for.
        name: String,
        /// Some names that exist.
        present: String,
    },

    /// The kernel runs one XDP program per interface, and one is there; or another enforcer's judges there already.
    #[error(
        "another program is attached to {interface} (id {id}, name {name}, {mode}): detach it with the tool that \
         attached it; an enforcer with another --bpffs-dir ends with `enforcer detach --bpffs-dir DIR`"
    )]
    Occupied {
        /// The interface.
        interface: String,
        /// The program's id.
        id: u32,
        /// The program's name, or `unknown` where the process may not ask.
        name: String,
        /// How it is attached.
        mode: String,
    },

    /// Another daemon holds the lock of the pins.
    #[error(
        "another enforcer already runs with {}: stop it first, or give this one its own --bpffs-dir, --state-dir, \
         --socket and --metrics",
        dir.display()
    )]
    AnotherDaemon {
        /// The directory of the pins.
        dir: PathBuf,
    },

    /// The interface cannot be attached in the wanted mode.
    #[error("{interface} cannot be attached with {mode}: {reason}")]
    CannotAttach {
        /// The interface.
        interface: String,
        /// The mode asked for, or the last one tried.
        mode: Mode,
        /// Why, and what to do.
        reason: String,
    },

    /// What leaves the interface cannot be watched, which its forwarded connections need.
    #[error(
        "{interface} forwards, and what leaves it cannot be watched: {reason}; turn forwarding off if no server is \
         behind this host"
    )]
    CannotWatch {
        /// The interface.
        interface: String,
        /// Why, and what to do.
        reason: String,
    },

    /// A pinned map is not the one that the program would create.
    #[error(
        "the map {map} pinned by an earlier run has {what} {found}, where this one needs {wanted}: run `enforcer \
         detach`, which ends enforcement and forgets the counts, and start again"
    )]
    MapMismatch {
        /// The map.
        map: &'static str,
        /// Which of its properties.
        what: &'static str,
        /// What the pinned map has.
        found: u32,
        /// What the object declares.
        wanted: u32,
    },

    /// The program reads frames, and the interface has packets only.
    #[error(
        "{interface} carries packets without Ethernet headers, as tunnels do, and the program cannot read those: guard the \
         interface that they leave the tunnel for, or let the app listen where it cannot be reached through {interface}"
    )]
    NoEthernet {
        /// The interface.
        interface: String,
    },

    /// The object lacks what the daemon relies on: it was built from other sources.
    #[error("the embedded BPF object has no {what}: build the daemon and the object from the same sources")]
    Foreign {
        /// What is missing.
        what: &'static str,
    },

    /// The object could not be read or its maps not created.
    #[error("the BPF object cannot be loaded: {0}")]
    Load(#[from] EbpfError),

    /// The kernel did not accept the program.
    #[error("the kernel refused the program ({source}): {reason}; the verifier's whole log is shown with -v")]
    Verifier {
        /// The error of the call.
        source: io::Error,
        /// The last line of the verifier's log that says something.
        reason: String,
    },

    /// A map could not be read or written.
    #[error("the map {map} cannot be {action}: {source}")]
    Map {
        /// The map.
        map: &'static str,
        /// What was tried: `read`, `written`, ….
        action: &'static str,
        /// The error of the call.
        source: MapError,
    },

    /// A map has no room for another entry.
    #[error("the map {map} is full: it has room for {capacity} entries")]
    Full {
        /// The map.
        map: &'static str,
        /// Its size.
        capacity: u32,
    },

    /// An index beyond the end of a map.
    #[error("index {index} is beyond the end of the map {map}, which has {capacity} entries")]
    OutOfRange {
        /// The map.
        map: &'static str,
        /// The index asked for.
        index: u32,
        /// Its size.
        capacity: u32,
    },

    /// A file or directory of the pins, or a file of the kernel's.
    #[error("{} cannot be {action}: {source}", path.display())]
    Path {
        /// The file or directory.
        path: PathBuf,
        /// What was tried: `created`, `removed`, ….
        action: &'static str,
        /// The error of the call.
        source: io::Error,
    },

    /// Another call into the kernel failed.
    #[error("the kernel refused to {action}: {source}")]
    Call {
        /// What was tried, as an infinitive.
        action: &'static str,
        /// The error of the call.
        source: io::Error,
    },
}

impl Error {
    /// The exit code of a command that ends with this error.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Dotted { .. } | Self::NothingToGuard => 2,
            Self::Rights { .. } => 5,
            Self::KernelTooOld { .. } => 10,
            Self::NoBtf { .. } => 11,
            Self::NoInterface { .. } => 12,
            Self::Occupied { .. } => 13,
            Self::AnotherDaemon { .. } => 14,
            Self::CannotAttach { .. } | Self::CannotWatch { .. } | Self::NoEthernet { .. } => 15,
            Self::Path { source, .. } | Self::Call { source, .. } if is_permission(source) => 5,
            Self::NoBpffs { .. }
            | Self::MapMismatch { .. }
            | Self::Foreign { .. }
            | Self::Load(_)
            | Self::Verifier { .. }
            | Self::Map { .. }
            | Self::Full { .. }
            | Self::OutOfRange { .. }
            | Self::Path { .. }
            | Self::Call { .. } => 1,
        }
    }

    pub(super) fn path(path: impl Into<PathBuf>, action: &'static str, source: io::Error) -> Self {
        Self::Path { path: path.into(), action, source }
    }
}

fn is_permission(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}
