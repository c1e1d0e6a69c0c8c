//! Which processes hold which sockets, and which processes belong together, from `/proc`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::Path;

/// Processes whose sockets are others': who passes a socket on is not who serves on it.
const SUPERVISORS: [&str; 3] = ["systemd", "init", "inetd"];

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) name: String,
    parent: u32,
}

/// The processes that this one can see.
#[derive(Clone, Debug, Default)]
pub(super) struct Processes {
    by_id: BTreeMap<u32, Process>,
    /// By the number of a socket's inode.
    holders: HashMap<u64, BTreeSet<u32>>,
    /// How many may not be looked into.
    pub(super) hidden: usize,
}

impl Processes {
    /// Looks at all processes.
    ///
    /// # Errors
    /// `/proc` cannot be listed; a process that ends meanwhile is none.
    pub(super) fn survey() -> io::Result<Self> {
        let mut processes = Self::default();
        for entry in fs::read_dir("/proc")? {
            let entry = entry?;
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let Ok(stat) = fs::read(entry.path().join("stat")) else { continue };
            let Some(process) = parse_stat(&String::from_utf8_lossy(&stat)) else { continue };
            processes.by_id.insert(id, process);
            match sockets(&entry.path().join("fd")) {
                Ok(inodes) => processes.hold(id, inodes),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => processes.hidden += 1,
                Err(_) => {}
            }
        }
        Ok(processes)
    }

    fn hold(&mut self, id: u32, inodes: impl IntoIterator<Item = u64>) {
        for inode in inodes {
            self.holders.entry(inode).or_default().insert(id);
        }
    }

    /// Who holds a socket and serves on it.
    pub(super) fn holders(&self, inode: u64) -> BTreeSet<u32> {
        let mut holders = self.holders.get(&inode).cloned().unwrap_or_default();
        holders.retain(|id| !self.is_supervisor(*id));
        holders
    }

    /// Those of them that are the parents of no other of them.
    pub(super) fn without_parents(&self, members: &BTreeSet<u32>) -> BTreeSet<u32> {
        let parents: BTreeSet<u32> =
            members.iter().filter_map(|id| self.by_id.get(id)).map(|process| process.parent).collect();
        members.difference(&parents).copied().collect()
    }

    /// What a process is called.
    pub(super) fn name(&self, id: u32) -> Option<&str> {
        self.by_id.get(&id).map(|process| process.name.as_str())
    }

    fn is_supervisor(&self, id: u32) -> bool {
        self.by_id.get(&id).is_some_and(|process| SUPERVISORS.contains(&process.name.as_str()))
    }

    /// These processes, all that descend from them, and parents under the same name: a master and its workers.
    pub(super) fn family(&self, members: &BTreeSet<u32>) -> BTreeSet<u32> {
        let mut family = members.clone();
        for id in members {
            let (mut id, mut seen) = (*id, BTreeSet::new());
            while let Some(process) = self.by_id.get(&id).filter(|_| seen.insert(id)) {
                let parent = self.by_id.get(&process.parent);
                if parent.is_none_or(|parent| parent.name != process.name) {
                    break;
                }
                id = process.parent;
                family.insert(id);
            }
        }
        // Until no process is added: ids wrap around, so a child's need not be above its parent's.
        loop {
            let children = |id: &u32| self.by_id.get(id).is_some_and(|process| family.contains(&process.parent));
            let added: Vec<u32> =
                self.by_id.keys().filter(|id| !family.contains(id) && children(id)).copied().collect();
            if added.is_empty() {
                return family;
            }
            family.extend(added);
        }
    }

    /// Who holds these sockets, in words: `gunicorn (pid 812 and 4 more)`.
    pub(super) fn describe(&self, inodes: impl IntoIterator<Item = u64>) -> String {
        let all: BTreeSet<u32> =
            inodes.into_iter().flat_map(|inode| self.holders.get(&inode)).flatten().copied().collect();
        let serving: BTreeSet<u32> = all.iter().copied().filter(|id| !self.is_supervisor(*id)).collect();
        let ids = if serving.is_empty() { all } else { serving };
        let Some(first) = ids.first() else { return "a process that cannot be seen from here".to_owned() };
        let name = self.by_id.get(first).map_or("?", |process| process.name.as_str());
        match ids.len() - 1 {
            0 => format!("{name} (pid {first})"),
            more => format!("{name} (pid {first} and {more} more)"),
        }
    }
}

/// Reads `/proc/PID/stat`; the name in it may hold anything, parentheses and spaces included.
fn parse_stat(stat: &str) -> Option<Process> {
    let (_, rest) = stat.split_once('(')?;
    let (name, rest) = rest.rsplit_once(')')?;
    let parent = rest.split_whitespace().nth(1)?.parse().ok()?;
    Some(Process { name: name.to_owned(), parent })
}

/// The inodes of the sockets among a process's descriptors.
fn sockets(descriptors: &Path) -> io::Result<Vec<u64>> {
    let mut inodes = Vec::new();
    for entry in fs::read_dir(descriptors)? {
        // One that is closed meanwhile has no target any more.
        let Ok(target) = fs::read_link(entry?.path()) else { continue };
        inodes.extend(target.to_str().and_then(parse_link));
    }
    Ok(inodes)
}

/// The inode in the target of a socket's descriptor.
fn parse_link(target: &str) -> Option<u64> {
    target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Processes as (id, parent, name, inodes).
    pub(in crate::doctor) fn processes(list: &[(u32, u32, &str, &[u64])]) -> Processes {
        let mut processes = Processes::default();
        for &(id, parent, name, inodes) in list {
            processes.by_id.insert(id, Process { name: name.to_owned(), parent });
            processes.hold(id, inodes.iter().copied());
        }
        processes
    }

    #[test]
    fn this_process_holds_its_sockets() {
        use std::os::{fd::AsRawFd as _, unix::net::UnixDatagram};
        let socket = UnixDatagram::unbound().expect("a socket");
        let link = fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).expect("a link");
        let inode = link.to_str().and_then(parse_link);
        let processes = Processes::survey().expect("/proc");
        assert!(processes.holders(inode.expect("a socket's link")).contains(&std::process::id()));
    }

    #[test]
    fn a_name_may_hold_parentheses_and_spaces() {
        let process = parse_stat("42 (a ) (b) S 7 42 42 0").expect("a process");
        assert_eq!((process.name.as_str(), process.parent), ("a ) (b", 7));
        assert_eq!(parse_stat("42 a S 7"), None);
    }

    #[test]
    fn a_family_is_the_workers_and_their_master_but_not_the_shell_that_started_it() {
        let processes = processes(&[
            (1, 0, "systemd", &[]),
            (9, 1, "bash", &[]),
            (20, 9, "gunicorn", &[5]),
            (21, 20, "gunicorn", &[5]),
            (7, 21, "worker", &[]),
            (30, 9, "redis", &[]),
        ]);
        let family = processes.family(&BTreeSet::from([21]));
        assert_eq!(family, BTreeSet::from([7, 20, 21]));
        assert_eq!(processes.describe([5]), "gunicorn (pid 20 and 1 more)");
    }

    #[test]
    fn who_passes_a_socket_on_does_not_serve_on_it() {
        let processes = processes(&[(1, 0, "systemd", &[5, 6]), (20, 1, "gunicorn", &[5])]);
        assert_eq!(processes.holders(5), BTreeSet::from([20]));
        assert!(processes.holders(6).is_empty());
        assert_eq!(processes.describe([6]), "systemd (pid 1)");
        assert_eq!(processes.describe([7]), "a process that cannot be seen from here");
    }

    #[test]
    fn a_process_that_is_its_own_ancestor_ends_no_search() {
        let processes = processes(&[(4, 5, "a", &[]), (5, 4, "a", &[])]);
        assert_eq!(processes.family(&BTreeSet::from([4])), BTreeSet::from([4, 5]));
    }
}
