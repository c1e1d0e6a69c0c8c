//! What the enforcer needs of the system: the checks of a start, without a start.

use std::io;
use std::path::Path;

use super::Scope;
use super::finding::{Finding, Level};
use super::scene::setting;
use super::socket;
use crate::kernel::{self, btf, checks};

/// [`kernel::Error::exit_code`] of what is not permitted.
const DENIED: u8 = 5;

/// Findings on the kernel, its settings, and what this process may do; `compiled` is whether the attached program is.
pub(super) fn examine(scope: &Scope, compiled: Option<bool>) -> Vec<Finding> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    vec![
        required("kernel", "kernel", format!("{} is new enough", release.trim()), checks::kernel()),
        required(
            "btf",
            "/sys/kernel/btf/vmlinux",
            "the kernel's type information has all that is read".to_owned(),
            btf::offsets().map(drop),
        ),
        required("rights", "this process", "it may load and attach programs".to_owned(), checks::rights()),
        pins(&scope.bpffs_dir, &scope.pins),
        jit(compiled, setting("net/core/bpf_jit_enable")),
        reaper(socket::can_destroy()),
    ]
}

/// A requirement of a start, by the start's own check.
fn required(check: &str, place: &str, good: String, checked: Result<(), kernel::Error>) -> Finding {
    match checked {
        Ok(()) => Finding::ok(check, place, good),
        Err(error) => of_kernel(check, place, &error),
    }
}

/// An error of a start, which says by itself what to do.
pub(super) fn of_kernel(check: &str, place: &str, error: &kernel::Error) -> Finding {
    let denied = error.exit_code() == DENIED;
    let next = if denied { "run it as root" } else { "`enforcer run` does not start until then" };
    Finding { denied, ..Finding::new(Level::Error, check, place, error.to_string(), next) }
}

fn pins(bpffs_dir: &Path, reached: &Path) -> Finding {
    let place = bpffs_dir.display().to_string();
    if checks::is_on_bpffs(reached) {
        return Finding::ok("bpffs", place, "it lies on a BPF file system");
    }
    let what = "no BPF file system is mounted there";
    if bpffs_dir.starts_with("/sys/fs/bpf") && checks::may_mount() && !checks::has_own_mounts() {
        return Finding::new(Level::Note, "bpffs", place, what, "`enforcer run` mounts it");
    }
    Finding::new(Level::Error, "bpffs", place, what, "mount -t bpf bpf /sys/fs/bpf")
}

/// `compiled` is what the kernel says of the program that is attached, `setting` what it does with new ones, which only
/// the first network namespace shows.
fn jit(compiled: Option<bool>, setting: Option<i64>) -> Finding {
    let place = "net.core.bpf_jit_enable";
    match compiled.or(setting.map(|setting| setting != 0)) {
        Some(true) => Finding::ok("jit", place, "programs are compiled"),
        Some(false) => {
            let what = "programs are interpreted, which makes each packet several times slower";
            let next = "sysctl net.core.bpf_jit_enable=1, then start `enforcer run` again";
            Finding::new(Level::Warning, "jit", place, what, next)
        }
        None => {
            let what = "whether programs will be compiled can be seen in the first network namespace only";
            Finding::new(Level::Note, "jit", place, what, "ask there: sysctl net.core.bpf_jit_enable")
        }
    }
}

fn reaper(can: io::Result<bool>) -> Finding {
    let place = "kernel";
    match can {
        Ok(true) => Finding::ok("destroy", place, "silent and slow connections can be ended"),
        Ok(false) => Finding::new(
            Level::Warning,
            "destroy",
            place,
            "built without CONFIG_INET_DIAG_DESTROY: silent and slow connections cannot be ended, and keep workers",
            "use a kernel that is built with it, as distribution kernels are, and give the server a timeout",
        ),
        Err(error) => Finding::failed("destroy", place, "whether connections can be ended cannot be told", &error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_that_would_fail_is_an_error_and_one_for_rights_is_denied() {
        let old =
            required("kernel", "kernel", String::new(), Err(kernel::Error::KernelTooOld { release: "5.10".into() }));
        assert_eq!((old.level, old.denied), (Level::Error, false));
        assert!(old.what.contains("5.10 is too old"));
        let rights = required("rights", "", String::new(), Err(kernel::Error::Rights { missing: "CAP_BPF".into() }));
        assert_eq!((rights.level, rights.denied), (Level::Error, true));
        assert_eq!(required("kernel", "kernel", "6.1".into(), Ok(())).level, Level::Ok);
    }

    #[test]
    fn interpreted_programs_are_a_warning() {
        let level = |compiled, setting| jit(compiled, setting).level;
        assert_eq!((level(None, Some(0)), level(None, Some(1))), (Level::Warning, Level::Ok));
        assert_eq!((level(Some(false), Some(1)), level(Some(true), None)), (Level::Warning, Level::Ok));
        assert_eq!(level(None, None), Level::Note);
    }

    #[test]
    fn a_kernel_that_cannot_end_connections_is_a_warning() {
        assert_eq!(reaper(Ok(false)).level, Level::Warning);
        assert_eq!(reaper(Ok(true)).level, Level::Ok);
    }

    #[test]
    fn a_directory_that_is_no_bpf_file_system_is_an_error() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(pins(dir.path(), dir.path()).level, Level::Error);
    }
}
