//! The kernel as the daemon sees it: one handle that loads the programs, attaches them, and reads and writes their maps.
//!
//! The order is what keeps a start closed: [`Kernel::load`] creates or reuses the pinned maps and has the programs
//! verified, the daemon then fills the tables, and only [`Kernel::attach`] lets packets meet them. While a
//! program of an earlier daemon is still attached, it enforces with the same pinned maps until it is replaced in one
//! step. What a start that fails has created is removed again.
//!
//! # Layout, in the order of a start
//! - `checks`, `btf`, `interface`: what must hold before anything is touched
//! - `pins`, `filter_pin`, `role`: the directory on the BPF file system, its lock, links and maps
//! - `load`: the object, its constants, its maps, the verifier
//! - `forwarding`: whether an interface carries the connections of servers behind this host
//! - `classifier`: traffic control, with tcx or with filters
//! - `tables`, `mapped`: the typed maps
//! - `connections`, `sources`: those that the program follows, and those that it has refused
//! - `meters`, `counted`: what was counted, to be written down and put back
//! - `kept`: connections that end with what they rest on
//! - `followed`: the program that is told of every connection's beginning and end
//! - `plan`, `attach`, `replace`: links and filters made, taken over, and ended
//! - `explain`: what would become of a request
//! - `guard`: what is pinned, for those who only look
//! - `log`: the program's log lines
//! - `syscall`, `error`: bpf(2) calls that aya lacks; all that can go wrong

mod attach;
pub(crate) mod btf;
pub(crate) mod checks;
pub(crate) mod classifier;
mod connections;
mod counted;
mod error;
mod explain;
mod filter_pin;
mod followed;
mod forwarding;
mod guard;
pub(crate) mod interface;
mod kept;
mod load;
mod log;
mod mapped;
mod meters;
mod pins;
mod plan;
mod replace;
mod role;
mod rules;
mod shortcuts;
mod sources;
pub(crate) mod syscall;
mod tables;

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use aya::Ebpf;

use self::{
    classifier::Side,
    pins::{Added, Lock, Pins},
    plan::Plan,
    tables::Tables,
};
pub use self::{
    connections::{Connections, Followed},
    counted::Counted,
    error::Error,
    forwarding::Endpoints,
    guard::{Guard, Guarded, guard},
    load::object,
    log::Logger,
    rules::Paths,
    tables::{Clock, MapFill},
};

/// What to guard, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// Names of the interfaces; one that is named twice is guarded once.
    pub interfaces: Vec<String>,
    /// How to attach.
    pub hook: Hook,
    /// Where the pins lie, on a BPF file system.
    pub bpffs_dir: PathBuf,
    /// Secret of the key tags.
    pub key_secret: [u64; 2],
    /// Connections that can be followed at once; rounded up to a power of two.
    pub flows: u32,
    /// Whether the program writes log lines, for [`Kernel::logger`] to drain; they cost time on every packet that
    /// writes one.
    pub log: bool,
}

/// How a program is to be attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hook {
    /// In the driver where it can, else in the kernel's own receive path; in traffic control where another's XDP program
    /// has the only place.
    #[default]
    Auto,
    /// In the driver, or not at all.
    XdpNative,
    /// In the kernel's own receive path.
    XdpGeneric,
    /// In traffic control.
    Tc,
}

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The driver runs it, before a socket buffer exists.
    XdpNative,
    /// The kernel's receive path runs it.
    XdpGeneric,
    /// Traffic control runs it, on packets that arrive.
    Tc,
}

/// An interface under guard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The interface's name.
    pub interface: String,
    /// The interface's index.
    pub index: u32,
    /// How the program is attached.
    pub mode: Mode,
    /// Why in this mode, for people.
    pub reason: String,
    /// Id of the program that answers behind XDP; `None` if the one that judges does, or none can.
    pub answer: Option<u32>,
    /// Why refused requests cannot be answered there, for people; `None` where they can.
    pub cannot_answer: Option<String>,
    /// Why connections of refused requests cannot be kept there, for people; `None` where they can.
    pub cannot_keep: Option<String>,
    /// Where the servers are whose connections come over the interface, as it was when the daemon started.
    pub endpoints: Endpoints,
    /// Since when the interface has been guarded without a gap.
    pub since: jiff::Timestamp,
    /// The program's id in the kernel.
    pub program: u32,
    /// Whether a program of an earlier daemon was replaced.
    pub taken_over: bool,
}

/// The loaded programs and their maps.
///
/// Dropping it leaves enforcement as it is, once [`Kernel::attach`] has succeeded.
pub struct Kernel {
    object: Ebpf,
    tables: Tables,
    attachments: Vec<Attachment>,
    pins: Pins,
    // Before the lock, so that what a failed start created is gone when the next one may begin.
    added: Added,
    _lock: Lock,
}

impl Kernel {
    /// Checks the system, locks the directory of the pins, creates or reuses the maps, and has the programs verified.
    ///
    /// No packet meets them yet.
    ///
    /// # Errors
    /// Each check has its own error; nothing that this call created is left behind.
    pub fn load(options: &Options) -> Result<Self, Error> {
        checks::kernel()?;
        checks::rights()?;
        let offsets = btf::offsets()?;
        let pins = Pins::new(&options.bpffs_dir);
        pins.check_name()?;
        Plan::make(options, &pins)?;
        pins.mount()?;
        let (lock, mut added) = pins.open()?;
        added.note_maps(&pins);
        let mut object = load::load(options, &pins, offsets)?;
        Plan::make(options, &pins)?.verify(&mut object, options.hook)?;
        load::followers(&mut object)?;
        let tables = Tables::open(&mut object)?;
        Ok(Self { object, tables, attachments: Vec::new(), pins, added, _lock: lock })
    }

    /// Attaches the program to every interface asked for, in place of an earlier daemon's where there is one, and ends
    /// the guard of interfaces that are not asked for any more.
    ///
    /// To be called once the tables are filled.
    ///
    /// # Errors
    /// None of the interfaces has changed then: those attached by this call are detached, those taken over have their
    /// earlier program again (without CAP_SYS_ADMIN, which opening that needs, they keep this one, on the same maps).
    pub fn attach(&mut self, options: &Options) -> Result<(), Error> {
        let plan = Plan::make(options, &self.pins)?;
        let connections = self.connections();
        // Before the first request is judged, so that its connection is known.
        let following = followed::follow(&mut self.object, &self.pins)?;
        self.attachments = attach::execute(plan, &mut self.object, options.hook, &self.pins, &connections)?;
        following.keep()?;
        self.added.keep();
        Ok(())
    }

    /// What has changed since the start so that only the next start can follow: one sentence each.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        plan::warnings(&self.attachments)
    }

    /// Looks whether the programs that answer are still where they were attached. [`Attachment::cannot_answer`] tells it
    /// of those that are not.
    pub fn look_for_answers(&mut self) {
        for at in &mut self.attachments {
            let Some(program) = at.answer else { continue };
            // What cannot be asked is taken to be as it was.
            if classifier::programs(at.index, Side::Ingress).is_ok_and(|ids| !ids.contains(&program)) {
                at.answer = None;
                let next =
                    "its program was removed from traffic control, which the next start of the daemon puts right";
                at.cannot_answer = Some(next.to_owned());
            }
        }
    }

    /// Why refused requests are not answered, in words: one of the interfaces cannot send answers. `None` where all can.
    #[must_use]
    pub fn cannot_answer(&self) -> Option<String> {
        let why =
            |at: &Attachment| Some(format!("{} cannot send answers: {}", at.interface, at.cannot_answer.as_ref()?));
        self.attachments.iter().find_map(why)
    }

    /// The interfaces under guard.
    #[must_use]
    pub fn attachments(&self) -> &[Attachment] {
        &self.attachments
    }

    /// The program's log lines, if it writes any; once.
    pub fn logger(&mut self) -> Option<Logger> {
        Logger::open(&mut self.object)
    }

    /// Ends enforcement: detaches the programs, then removes the maps and the directories.
    ///
    /// Returns the interfaces that were guarded.
    ///
    /// # Errors
    /// A pin that cannot be removed.
    pub fn detach(mut self) -> Result<Vec<String>, Error> {
        self.added.keep();
        kept::end_with(&self.connections(), |_| true, || self.pins.remove_all())
    }
}

/// The pin directory as this process can reach it: under `ip netns exec` that is not the path that others use.
#[must_use]
pub fn reach(bpffs_dir: &Path) -> PathBuf {
    checks::reach(bpffs_dir)
}

/// Names of the interfaces that are guarded by what is pinned, in order; `None` if that cannot be read.
#[must_use]
pub fn pinned(bpffs_dir: &Path) -> Option<Vec<String>> {
    pins::guarded(bpffs_dir)
}

/// Ends enforcement without a daemon: detaches the programs, then removes the maps and the directories.
///
/// Returns the interfaces that were guarded; none if nothing is pinned.
///
/// # Errors
/// A pin that cannot be removed; [`Error::AnotherDaemon`] if a daemon runs with this directory.
pub fn detach(bpffs_dir: &Path) -> Result<Vec<String>, Error> {
    pins::detach_all(bpffs_dir)
}

/// CLOCK_BOOTTIME in ns: the program's clock.
#[must_use]
pub fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec. It cannot fail: the clock exists since 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

impl Hook {
    /// The word for it on the command line and in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::XdpNative => "xdp-native",
            Self::XdpGeneric => "xdp-generic",
            Self::Tc => "tc",
        }
    }
}

impl FromStr for Hook {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        let all = [Self::Auto, Self::XdpNative, Self::XdpGeneric, Self::Tc];
        match all.into_iter().find(|hook| hook.as_str() == word) {
            Some(hook) => Ok(hook),
            None => Err(format!("`{word}` is no hook: auto, xdp-native, xdp-generic or tc")),
        }
    }
}

impl Mode {
    /// The word for it in tables, JSON and metrics; stable.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::XdpNative => "xdp-native",
            Self::XdpGeneric => "xdp-generic",
            Self::Tc => "tc",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Kernel").field("attachments", &self.attachments).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_are_read_as_they_are_written() {
        for hook in [Hook::Auto, Hook::XdpNative, Hook::XdpGeneric, Hook::Tc] {
            assert_eq!(hook.to_string().parse(), Ok(hook));
        }
        assert!("xdp".parse::<Hook>().is_err_and(|error| error.contains("xdp-native")));
    }

    #[test]
    fn the_clock_goes_forward() {
        let earlier = now();
        assert!(earlier > 0 && now() >= earlier);
    }
}
