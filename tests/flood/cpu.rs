//! Whose time a flood takes: the server's processes, and the thread that receives for them.
//!
//! The server has one CPU and the clients another. Each end of the link receives in a thread of its own (threaded NAPI),
//! so that its time is its own, and not that of whoever was running when packets came.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    errno::Errno,
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

/// The CPU of the server: its processes, and what it receives with.
pub(crate) const SERVER: usize = 0;
/// The CPU of the clients.
pub(crate) const CLIENTS: usize = 1;

/// How many there are.
///
/// # Errors
/// There are fewer than the two that are needed.
pub(crate) fn count() -> Result<usize> {
    let count = std::thread::available_parallelism()?.get();
    ensure!(count > CLIENTS, "a server and its flood need a CPU each, and here is only one");
    Ok(count)
}

/// Binds a thread to a CPU, and what it starts from now on; 0 is the calling one.
///
/// # Errors
/// There is no such thread or CPU.
pub(crate) fn bind(thread: u32, cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(thread.try_into()?), &set).with_context(|| format!("binding a thread to CPU {cpu}"))
}

/// Lets a thread run before all ordinary ones, so that it does not wait for the flood that it measures beside; 0 is the
/// calling one.
///
/// # Errors
/// Without root.
pub(crate) fn prefer(thread: u32) -> Result<()> {
    let parameter = libc::sched_param { sched_priority: 1 };
    // SAFETY: the call only reads the structure, which lives until it returns.
    let result = unsafe { libc::sched_setscheduler(thread.try_into()?, libc::SCHED_FIFO, &raw const parameter) };
    Errno::result(result).map(|_| ()).context("raising a thread's priority")
}

/// The threads that receive for an interface of this name, in whatever namespace.
///
/// # Errors
/// When /proc cannot be read.
pub(crate) fn receivers(interface: &str) -> Result<BTreeSet<u32>> {
    let prefix = format!("napi/{interface}-");
    let is_one = |id: &u32| fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|name| name.starts_with(&prefix));
    Ok(numbers("/proc")?.filter(is_one).collect())
}

/// Processes with all their descendants.
pub(crate) fn families(roots: &[u32]) -> Vec<u32> {
    let mut found = roots.to_vec();
    let mut next = 0;
    while let Some(&id) = found.get(next) {
        next += 1;
        for task in numbers(&format!("/proc/{id}/task")).into_iter().flatten() {
            let children = fs::read_to_string(format!("/proc/{id}/task/{task}/children")).unwrap_or_default();
            found.extend(children.split_ascii_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    found
}

/// How long each thread of some processes has run, in ns.
#[derive(Clone, Debug)]
pub(crate) struct Usage(BTreeMap<u32, u64>);

impl Usage {
    /// As it is now.
    pub(crate) fn of(processes: impl IntoIterator<Item = u32>) -> Self {
        let tasks = processes.into_iter().flat_map(|id| {
            let tasks = numbers(&format!("/proc/{id}/task")).into_iter().flatten();
            tasks.map(move |task| (task, format!("/proc/{id}/task/{task}/schedstat")))
        });
        let time = |(task, path): (u32, String)| {
            let text = fs::read_to_string(path).ok()?;
            Some((task, text.split_ascii_whitespace().next()?.parse().ok()?))
        };
        Self(tasks.filter_map(time).collect())
    }

    /// How long they have run since; threads that have ended in between do not count.
    pub(crate) fn since(&self, earlier: &Self) -> Duration {
        let ran = |(task, now): (&u32, &u64)| now.saturating_sub(earlier.0.get(task).copied().unwrap_or(0));
        Duration::from_nanos(self.0.iter().map(ran).sum())
    }
}

/// The entries of a folder whose names are numbers.
fn numbers(folder: &str) -> Result<impl Iterator<Item = u32> + use<>> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {folder}"))?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()))
}
