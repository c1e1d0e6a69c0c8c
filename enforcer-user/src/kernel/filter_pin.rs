//! The pins of filters, which cannot be pinned themselves: what is pinned is the program, under a name that says where
//! the filter is.
//!
//! `eth0:3:ingress:4026531840:71:q`: the interface's name and index, the filter's role, the network namespace, the
//! program's id, and whether the qdisc was made for the filter. The kernel allows no colon in the name of an interface.

use std::{
    fs, io,
    os::{fd::BorrowedFd, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use super::{classifier, role::Role};
use crate::sockets;

/// Where a filter is, as its pin's name tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FilterPin {
    pub(super) interface: String,
    pub(super) index: u32,
    pub(super) role: Role,
    /// Inode of the network namespace.
    pub(super) namespace: u64,
    pub(super) program: u32,
    /// Whether the interface got its qdisc for this filter.
    pub(super) made_qdisc: bool,
}

impl FilterPin {
    /// The name of the pin, not yet as the file system takes it.
    pub(super) fn to_name(&self) -> String {
        let Self { interface, index, role, namespace, program, made_qdisc } = self;
        let qdisc = if *made_qdisc { ":q" } else { "" };
        format!("{interface}:{index}:{}:{namespace}:{program}{qdisc}", role.as_str())
    }

    /// Reads a pin's name.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        let mut parts = name.split(':');
        let pin = Self {
            interface: parts.next()?.to_owned(),
            index: parts.next()?.parse().ok()?,
            role: Role::from_word(parts.next()?)?,
            namespace: parts.next()?.parse().ok()?,
            program: parts.next()?.parse().ok()?,
            made_qdisc: match parts.next() {
                None => false,
                Some("q") => true,
                Some(_) => return None,
            },
        };
        parts.next().is_none().then_some(pin)
    }

    /// Whether it is in the network namespace of the calling thread.
    pub(super) fn is_here(&self) -> bool {
        namespace().is_ok_and(|namespace| namespace == self.namespace)
    }

    /// Whether the filter is there with this program.
    pub(super) fn runs(&self) -> io::Result<bool> {
        Ok(self.within(|| classifier::runs(self.index, self.role.side(), self.program))?.unwrap_or(false))
    }

    /// Puts another program in place of this filter's, in one step.
    pub(super) fn replace(&self, program: BorrowedFd<'_>, name: &str) -> io::Result<()> {
        classifier::replace(self.index, self.role.side(), program, name)
    }

    /// Removes the filter, and the qdisc that was made for it if nothing else uses it.
    pub(super) fn remove(&self) -> io::Result<()> {
        self.within(|| {
            classifier::remove(self.index, self.role.side(), self.program)?;
            if self.made_qdisc {
                match classifier::remove_qdisc(self.index) {
                    Err(error) if !is_gone(&error) => return Err(error),
                    _ => {}
                }
            }
            Ok(())
        })
        .map(drop)
    }

    /// Does `work` in the filter's network namespace; `None` if that is gone.
    fn within<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<Option<T>> {
        if self.is_here() {
            return work().map(Some);
        }
        match find_namespace(self.namespace) {
            Some(path) => sockets::within(&path, work).map_err(io::Error::other)?.map(Some),
            None => Ok(None),
        }
    }
}

/// Inode of the network namespace of the calling thread.
pub(super) fn namespace() -> io::Result<u64> {
    Ok(fs::metadata("/proc/thread-self/ns/net")?.ino())
}

/// A file by which a network namespace can be entered: a process's that is in it, or one that keeps it.
fn find_namespace(inode: u64) -> Option<PathBuf> {
    let file_system = fs::metadata("/proc/thread-self/ns/net").ok()?.dev();
    let is_it = |path: &Path| fs::metadata(path).is_ok_and(|data| data.ino() == inode && data.dev() == file_system);
    let entries = |directory: &str| fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let kept = entries("/run/netns");
    kept.chain(entries("/proc").map(|process| process.join("ns/net"))).find(|path| is_it(path))
}

/// Whether an error says that there is nothing to remove.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT | libc::EINVAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_where_a_filter_is() {
        for (role, made_qdisc) in [(Role::Judge, true), (Role::Answer, true), (Role::Watch, false)] {
            let interface = "eth0.100".to_owned();
            let pin = FilterPin { interface, index: 3, role, namespace: 4_026_531_840, program: 71, made_qdisc };
            assert_eq!(FilterPin::from_name(&pin.to_name()), Some(pin));
        }
        for name in ["eth0", "eth0:3:ingress:4:5:x", "eth0:3:ingress:4:5:q:", "eth0:3:up:4:5", "eth0:3:egress:4:"] {
            assert_eq!(FilterPin::from_name(name), None, "{name}");
        }
    }

    #[test]
    fn a_namespace_is_found_by_its_inode() {
        let inode = namespace().expect("this namespace");
        assert!(find_namespace(inode).is_some());
        assert_eq!(find_namespace(1), None);
    }
}
