//! Who serves on guarded ports: how many processes there are that one limit must hold for.

use std::collections::BTreeSet;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::process::Processes;
use crate::sockets;

/// The processes behind guarded ports, by who holds the sockets that listen there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workers {
    /// The ports.
    pub ports: Vec<u16>,
    /// The processes that hold a socket that listens on one of them, but for those that only started others that do,
    /// as the master of a server with several workers has.
    pub workers: usize,
    /// What they are called, each name once.
    pub names: Vec<String>,
}

/// Who serves on `ports` in the network namespace of the calling thread.
///
/// # Errors
/// The sockets or the processes cannot be listed.
pub fn workers(ports: &[u16]) -> anyhow::Result<Workers> {
    let listeners = sockets::listeners()?;
    let inodes = listeners.iter().filter(|one| ports.contains(&one.address.port())).map(|one| u64::from(one.inode));
    let processes = Processes::survey().context("the processes cannot be listed")?;
    Ok(among(ports, inodes, &processes))
}

fn among(ports: &[u16], inodes: impl Iterator<Item = u64>, processes: &Processes) -> Workers {
    let workers = processes.without_parents(&inodes.flat_map(|inode| processes.holders(inode)).collect());
    let names: BTreeSet<&str> = workers.iter().filter_map(|id| processes.name(*id)).collect();
    Workers { ports: ports.to_vec(), workers: workers.len(), names: names.into_iter().map(str::to_owned).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::process::tests::processes;

    #[test]
    fn a_master_is_no_worker_of_its_workers_and_one_process_alone_is() {
        let all = processes(&[
            (9, 1, "bash", &[]),
            (20, 9, "gunicorn", &[5]),
            (21, 20, "gunicorn", &[5]),
            (22, 20, "gunicorn", &[5]),
            (30, 9, "flask", &[6]),
        ]);
        let found = |inodes: &[u64]| {
            let Workers { ports, workers, names } = among(&[8000], inodes.iter().copied(), &all);
            (ports, workers, names.join(" "))
        };
        assert_eq!(found(&[5]), (vec![8000], 2, "gunicorn".to_owned()));
        assert_eq!(found(&[6]), (vec![8000], 1, "flask".to_owned()));
        assert_eq!(found(&[5, 6]), (vec![8000], 3, "flask gunicorn".to_owned()));
        assert_eq!(found(&[7]), (vec![8000], 0, String::new()));
    }
}
