//! The BPF file system, where programs' links and maps are pinned.

use std::fs;

use anyhow::{Context as _, Result};

use crate::{
    process,
    setup::{Setup, say},
};

const MOUNT_POINT: &str = "/sys/fs/bpf";

/// Mounts the BPF file system if it is not.
///
/// # Errors
/// This is neither root nor able to become it, or the kernel has no BPF file system.
pub(crate) fn ensure(setup: &Setup<'_>) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    if is_mounted(&mounts) {
        say("BPF file system", format_args!("mounted on {MOUNT_POINT}"));
        return Ok(());
    }
    let mut mount = process::as_root("mount", "mounting the BPF file system")?;
    setup.run(mount.args(["-t", "bpf", "bpf", MOUNT_POINT]))
}

/// Whether the table, as in /proc/self/mounts, has it.
fn is_mounted(mounts: &str) -> bool {
    mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(MOUNT_POINT) && fields.next() == Some("bpf")
    })
}

#[cfg(test)]
mod tests {
    use super::is_mounted;

    #[test]
    fn tells_the_bpf_file_system_from_others() {
        assert!(is_mounted("sysfs /sys sysfs rw 0 0\nbpf /sys/fs/bpf bpf rw,nosuid 0 0\n"));
        assert!(!is_mounted("sysfs /sys sysfs rw 0 0\nbpf /mnt/bpf bpf rw 0 0\ntmpfs /sys/fs/bpf tmpfs rw 0 0\n"));
    }
}
