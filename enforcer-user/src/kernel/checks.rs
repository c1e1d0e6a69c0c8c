//! What must hold before anything is loaded; each check fails with an error of its own, and leaves nothing behind.

use std::{
    fs,
    os::fd::IntoRawFd,
    path::{Path, PathBuf},
};

use nix::sys::statfs;

use super::{Error, pins::MOUNT_POINT};

/// Oldest kernel, as major and minor: bpf_loop, multi-buffer XDP and cmpxchg are there, and proven, from 6.1 on.
const MIN_KERNEL: (u32, u32) = (6, 1);

// include/uapi/linux/capability.h
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// Refuses a kernel that is too old.
pub(crate) fn kernel() -> Result<(), Error> {
    const RELEASE: &str = "/proc/sys/kernel/osrelease";
    let release = fs::read_to_string(RELEASE).map_err(|source| Error::path(RELEASE, "read", source))?;
    let release = release.trim();
    // A release that begins with no version is some vendor's; the program's own load is the judge then.
    if version(release).is_some_and(|version| version < MIN_KERNEL) {
        return Err(Error::KernelTooOld { release: release.to_owned() });
    }
    Ok(())
}

/// Refuses a process that may not load, attach or trace.
pub(crate) fn rights() -> Result<(), Error> {
    const STATUS: &str = "/proc/self/status";
    let status = fs::read_to_string(STATUS).map_err(|source| Error::path(STATUS, "read", source))?;
    let missing = effective(&status).map(missing).unwrap_or_default();
    if missing.is_empty() { Ok(()) } else { Err(Error::Rights { missing: format!("without {}", missing.join(", ")) }) }
}

/// Whether the process may mount file systems.
pub(crate) fn may_mount() -> bool {
    fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| effective(&status))
        .is_some_and(|capabilities| has(capabilities, CAP_SYS_ADMIN))
}

/// Whether the process has mounts that end with it, as those of `ip netns exec` do.
pub(crate) fn has_own_mounts() -> bool {
    outside().is_some() || is_under_netns_exec()
}

/// Whether /sys is the one that `ip netns exec NAME` mounts: its source is the namespace's name (ip-netns(8)).
fn is_under_netns_exec() -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|line| {
        let mut fields = line.split(' ');
        let (source, point) = (fields.next().unwrap_or_default(), fields.next());
        point == Some("/sys") && !source.is_empty() && Path::new("/run/netns").join(source).exists()
    })
}

/// Any process that sees the host's BPF file system, for one whose parents have ended.
fn neighbour() -> Option<String> {
    let processes = fs::read_dir("/proc").ok()?.filter_map(Result::ok);
    let numbers = processes.filter_map(|entry| entry.file_name().into_string().ok());
    numbers.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).find(|name| is_on_bpffs(&host(name)))
}

/// The host's BPF file system as a process sees it.
fn host(process: &str) -> PathBuf {
    Path::new("/proc").join(process).join("root").join(MOUNT_POINT.trim_start_matches('/'))
}

/// The nearest parent of the process that sees other mounts than it does.
fn outside() -> Option<String> {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    let own = namespace("self")?;
    let mut process = "self".to_owned();
    while let Some(parent) = fs::read_to_string(format!("/proc/{process}/status")).ok().and_then(|text| parent(&text)) {
        // One that may not be looked at, as init by an ordinary process, tells nothing.
        if namespace(&parent).is_some_and(|namespace| namespace != own) {
            return Some(parent);
        }
        process = parent;
    }
    None
}

/// `dir` as this process can reach it. `ip netns exec` hides the host's BPF file system under a /sys of its own; then
/// it is reached through a process that still sees it, by a descriptor that is kept for good, since that process may end.
pub(super) fn reach(dir: &Path) -> PathBuf {
    let hidden = || -> Option<PathBuf> {
        let inner = dir.strip_prefix(MOUNT_POINT).ok()?;
        if !has_own_mounts() {
            return None;
        }
        let parent = outside().filter(|parent| is_on_bpffs(&host(parent)));
        let kept = fs::File::open(host(&parent.or_else(neighbour)?)).ok()?.into_raw_fd();
        Some(Path::new("/proc/self/fd").join(kept.to_string()).join(inner))
    };
    if is_on_bpffs(dir) { dir.to_path_buf() } else { hidden().unwrap_or_else(|| dir.to_path_buf()) }
}

/// Whether `dir`, or the nearest of its parents that exists, lies on a BPF file system.
pub(crate) fn is_on_bpffs(dir: &Path) -> bool {
    let existing = dir.ancestors().find(|ancestor| ancestor.exists());
    existing
        .and_then(|existing| statfs::statfs(existing).ok())
        .is_some_and(|found| found.filesystem_type() == statfs::BPF_FS_MAGIC)
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The effective capabilities in the text of `/proc/PID/status`.
fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// The parent's id in the text of `/proc/PID/status`; `None` where there is none.
fn parent(status: &str) -> Option<String> {
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim();
    (parent != "0").then(|| parent.to_owned())
}

fn has(capabilities: u64, capability: u32) -> bool {
    capabilities >> capability & 1 == 1
}

fn missing(capabilities: u64) -> Vec<&'static str> {
    let needed = [(CAP_BPF, "CAP_BPF"), (CAP_NET_ADMIN, "CAP_NET_ADMIN"), (CAP_PERFMON, "CAP_PERFMON")];
    needed
        .into_iter()
        // CAP_SYS_ADMIN includes the two that were split from it.
        .filter(|&(capability, _)| {
            !has(capabilities, capability) && (capability == CAP_NET_ADMIN || !has(capabilities, CAP_SYS_ADMIN))
        })
        .map(|(_, name)| name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_versions_of_distribution_kernels() {
        assert_eq!(version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(version("5.10.0"), Some((5, 10)));
        assert_eq!(version("6.8-rc1"), Some((6, 8)));
        assert_eq!(version("next"), None);
    }

    #[test]
    fn six_ten_is_newer_than_six_one() {
        assert!(version("6.10.3").is_some_and(|version| version > MIN_KERNEL));
        assert!(version("5.19.0").is_some_and(|version| version < MIN_KERNEL));
    }

    #[test]
    fn names_each_missing_capability() {
        assert_eq!(missing(0), ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"]);
        assert_eq!(missing(1 << CAP_SYS_ADMIN), ["CAP_NET_ADMIN"]);
        assert!(missing(1 << CAP_BPF | 1 << CAP_NET_ADMIN | 1 << CAP_PERFMON).is_empty());
        assert!(missing(u64::MAX).is_empty());
    }

    #[test]
    fn reads_the_effective_capabilities() {
        assert_eq!(effective("Name:\tx\nCapEff:\t000001ffffffffff\n"), Some(0x1ff_ffff_ffff));
    }

    #[test]
    fn init_has_no_parent() {
        assert_eq!(parent("Name:\tx\nPPid:\t41\n"), Some("41".to_owned()));
        assert_eq!(parent("Name:\tinit\nPPid:\t0\n"), None);
    }

    #[test]
    fn proc_is_no_bpf_file_system() {
        assert!(!is_on_bpffs(Path::new("/proc/self/absent")));
    }
}
