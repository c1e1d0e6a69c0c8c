//! Links: which interface gets a new one, which earlier one is taken over, which ends; and the carrying out.
//!
//! An interface has one link that judges what arrives and, where packets for other hosts go through it, one that watches
//! what it sends: it stands for the sockets that are not here.
//!
//! A link is found again by the interface's index and the program's id, not by the pin's name, so that a renamed
//! interface stays guarded and a new one under an old name is not taken for it.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use aya::{
    Ebpf,
    programs::{Program as Loaded, loaded_programs},
};
use nix::errno::Errno;

use super::{
    Attachment, Endpoints, Error, Hook, Mode, Options, checks,
    interface::{self, Interface, Place, Program},
    load,
    pins::{self, Link, Pins},
    syscall::{self, Spot},
};

// include/uapi/linux/if_link.h
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// What is to be done with each interface and each pinned link.
#[derive(Debug)]
pub(super) struct Plan {
    fresh: Vec<Fresh>,
    take_over: Vec<TakeOver>,
    /// Interfaces whose sent packets are to be watched, each with the link that does so already.
    watch: Vec<(Interface, Option<Link>)>,
    /// Links that are not asked for.
    surplus: Vec<Link>,
    /// Links of interfaces that are gone.
    stale: Vec<Link>,
}

#[derive(Debug)]
struct Fresh {
    interface: Interface,
    hook: Hook,
    /// Why not as asked for.
    reason: Option<String>,
}

#[derive(Debug)]
struct TakeOver {
    interface: Interface,
    link: Link,
    mode: Mode,
}

/// A loaded program.
#[derive(Clone, Copy)]
struct Judge<'a> {
    fd: BorrowedFd<'a>,
    id: u32,
}

/// Links made by this call, detached again when dropped unless [`Created::keep`] was called.
#[derive(Default)]
struct Created(Vec<PathBuf>);

impl Plan {
    /// Looks at the interfaces and at the pinned links; changes nothing.
    ///
    /// # Errors
    /// An interface that does not exist, that another program is attached to, or whose mode would have to change.
    pub(super) fn make(options: &Options, pins: &Pins) -> Result<Self, Error> {
        if options.interfaces.is_empty() {
            return Err(Error::NothingToGuard);
        }
        let mut wanted: Vec<&str> = Vec::new();
        for name in &options.interfaces {
            if !wanted.contains(&name.as_str()) {
                wanted.push(name);
            }
        }
        let interfaces = interface::all()?;
        let links = if checks::is_on_bpffs(&options.bpffs_dir) { pins.links()? } else { Vec::new() };
        let (mut surplus, stale): (Vec<Link>, Vec<Link>) = links.into_iter().partition(|link| link.interface != 0);
        let mut take = |wanted: &dyn Fn(&Link) -> bool| {
            surplus.iter().position(wanted).map(|position| surplus.swap_remove(position))
        };
        let (mut fresh, mut take_over, mut watch) = (Vec::new(), Vec::new(), Vec::new());
        for name in wanted {
            let interface = interface::find(&interfaces, name)?.clone();
            if !interface.has_ethernet() {
                return Err(Error::NoEthernet { interface: interface.name });
            }
            let index = interface.index;
            if interface.forwards(&interfaces) {
                let link = take(&|link| link.interface == index && link.spot == Spot::Egress);
                watch.push((interface.clone(), link));
            }
            let (program, hook) = (interface.program, options.hook);
            let xdp = program.and_then(|program| {
                take(&|link| link.interface == index && link.spot == Spot::Xdp && link.program == program.id)
            });
            let tc = take(&|link| link.interface == index && link.spot == Spot::Ingress);
            match (xdp, tc, program.map(|program| program.place)) {
                (Some(link), _, Some(Place::Software(mode))) => {
                    check_mode(&interface.name, mode, hook)?;
                    take_over.push(TakeOver { interface, link, mode });
                }
                (_, Some(link), _) => {
                    check_mode(&interface.name, Mode::Tc, hook)?;
                    take_over.push(TakeOver { interface, link, mode: Mode::Tc });
                }
                (_, _, None) => fresh.push(Fresh { interface, hook, reason: None }),
                (_, _, Some(_)) => {
                    let Some(program) = program else { continue };
                    let other = named(program).0;
                    // Behind another enforcer each request would be charged by both.
                    if !matches!(hook, Hook::Auto | Hook::Tc) || other == load::XDP {
                        return Err(occupied(&interface.name, program));
                    }
                    let reason = Some(format!("the XDP program {other} of somebody else is attached"));
                    fresh.push(Fresh { interface, hook: Hook::Tc, reason });
                }
            }
        }
        Ok(Self { fresh, take_over, watch, surplus, stale })
    }

    /// The programs that it needs.
    pub(super) fn programs(&self, hook: Hook) -> Vec<&'static str> {
        let tc = self.fresh.iter().any(|fresh| fresh.hook == Hook::Tc);
        let tc = tc || self.take_over.iter().any(|taken| taken.mode == Mode::Tc) || hook == Hook::Tc;
        let xdp = self.fresh.iter().any(|fresh| fresh.hook != Hook::Tc);
        let xdp = xdp || self.take_over.iter().any(|taken| taken.mode != Mode::Tc);
        let all = [(xdp, load::XDP), (tc, load::TC), (!self.watch.is_empty(), load::WATCH)];
        all.into_iter().filter(|(needed, _)| *needed).map(|(_, name)| name).collect()
    }

    /// Carries the plan out: all or nothing.
    pub(super) fn execute(self, object: &Ebpf, pins: &Pins) -> Result<Vec<Attachment>, Error> {
        let Self { fresh, take_over, watch, surplus, stale } = self;
        for link in &stale {
            pins::detach(&link.path)?;
        }
        let mut attachments = Vec::new();
        let mut pinned = Vec::new();
        let mut created = Created::default();
        // Before anything is judged by what they see.
        for (interface, link) in &watch {
            let program = judge(object, load::WATCH)?;
            if let Some(link) = link {
                let reason = |source| Error::Call { action: "replace the program that watches what is sent", source };
                syscall::update_link(link.fd.as_fd(), program.fd).map_err(reason)?;
                continue;
            }
            let link = syscall::create_tc_link(program.fd, interface.index, Spot::Egress).map_err(|error| {
                let reason = why_not_tc(&error);
                Error::CannotAttach { interface: interface.name.clone(), mode: Mode::Tc, reason }
            })?;
            created.pin(link.as_fd(), pins.watch(&interface.name))?;
        }
        let endpoints = |index| match watch.iter().any(|(interface, _)| interface.index == index) {
            true => Endpoints::LocalAndForwarded,
            false => Endpoints::Local,
        };
        for Fresh { interface, hook, reason } in fresh {
            let (link, mode, why) = attach(object, &interface, hook)?;
            let path = pins.free_link(&interface.name, interface.index);
            // Until it is pinned, the link ends with its descriptor.
            created.pin(link.as_fd(), path.clone())?;
            let Interface { index, name, .. } = interface;
            pinned.push((path, name.clone()));
            attachments.push(Attachment {
                interface: name,
                index,
                mode,
                reason: reason.unwrap_or(why),
                since: jiff::Timestamp::now(),
                program: judge(object, program_of(mode))?.id,
                endpoints: endpoints(index),
                taken_over: false,
            });
        }
        replace_all(object, &take_over)?;
        created.keep();
        for TakeOver { interface: Interface { index, name, .. }, link, mode } in take_over {
            pinned.push((link.path, name.clone()));
            attachments.push(Attachment {
                interface: name,
                index,
                mode,
                reason: "kept from the program that was attached before".to_owned(),
                since: link.since,
                program: judge(object, program_of(mode))?.id,
                endpoints: endpoints(index),
                taken_over: true,
            });
        }
        for link in surplus {
            match pins::detach(&link.path) {
                Ok(()) if link.spot == Spot::Egress => {}
                Ok(()) => tracing::info!("{} is no longer guarded: it is not asked for any more", link.name),
                Err(error) => tracing::warn!("{} stays guarded: {error}", link.name),
            }
        }
        for (path, name) in pinned {
            pins.rename_link(&path, &name);
        }
        attachments.sort_by(|one, other| one.interface.cmp(&other.interface));
        Ok(attachments)
    }
}

/// A program that was loaded.
fn judge<'a>(object: &'a Ebpf, name: &'static str) -> Result<Judge<'a>, Error> {
    let call = |error| Error::Call { action: "describe the loaded program", source: io::Error::other(error) };
    let (fd, info) = match object.program(name) {
        Some(Loaded::Xdp(program)) => (program.fd(), program.info()),
        Some(Loaded::SchedClassifier(program)) => (program.fd(), program.info()),
        _ => return Err(Error::Foreign { what: name }),
    };
    Ok(Judge { fd: fd.map_err(call)?.as_fd(), id: info.map_err(call)?.id() })
}

/// The program that judges in this mode.
const fn program_of(mode: Mode) -> &'static str {
    match mode {
        Mode::XdpNative | Mode::XdpGeneric => load::XDP,
        Mode::Tc => load::TC,
    }
}

impl Created {
    fn pin(&mut self, link: BorrowedFd<'_>, path: PathBuf) -> Result<(), Error> {
        syscall::pin(link, &path).map_err(|source| Error::path(&path, "pinned", source))?;
        self.0.push(path);
        Ok(())
    }

    fn keep(&mut self) {
        self.0.clear();
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        for path in &self.0 {
            if let Err(error) = pins::detach(path) {
                tracing::warn!("{error}");
            }
        }
    }
}

/// A link's mode cannot be changed; ending and making it anew would let packets through in between.
fn check_mode(interface: &str, mode: Mode, hook: Hook) -> Result<(), Error> {
    let wanted = match hook {
        Hook::Auto => return Ok(()),
        Hook::XdpNative => Mode::XdpNative,
        Hook::XdpGeneric => Mode::XdpGeneric,
        Hook::Tc => Mode::Tc,
    };
    if wanted == mode {
        return Ok(());
    }
    let reason = format!(
        "an earlier daemon attached it with {mode}, and a change would leave it unguarded for a moment: run `enforcer \
         detach` first, or start with --hook auto"
    );
    Err(Error::CannotAttach { interface: interface.to_owned(), mode: wanted, reason })
}

/// Makes a link: its descriptor, its mode, and why that mode.
fn attach(object: &Ebpf, interface: &Interface, hook: Hook) -> Result<(OwnedFd, Mode, String), Error> {
    if hook == Hook::Tc {
        let link = syscall::create_tc_link(judge(object, load::TC)?.fd, interface.index, Spot::Ingress);
        let cannot = |error| Error::CannotAttach {
            interface: interface.name.clone(),
            mode: Mode::Tc,
            reason: why_not_tc(&error),
        };
        return Ok((link.map_err(cannot)?, Mode::Tc, "asked for".to_owned()));
    }
    let program = judge(object, load::XDP)?.fd;
    let cannot = |mode, reason| Error::CannotAttach { interface: interface.name.clone(), mode, reason };
    let native = |error: &io::Error| format!("{}; --hook auto falls back to xdp-generic", why_not_native(error));
    match hook {
        Hook::XdpNative => match link(program, interface, Mode::XdpNative)? {
            Ok(link) => Ok((link, Mode::XdpNative, "asked for".to_owned())),
            Err(error) => Err(cannot(Mode::XdpNative, native(&error))),
        },
        Hook::XdpGeneric => match link(program, interface, Mode::XdpGeneric)? {
            Ok(link) => Ok((link, Mode::XdpGeneric, "asked for".to_owned())),
            Err(error) => Err(cannot(Mode::XdpGeneric, describe(&error))),
        },
        Hook::Auto | Hook::Tc => {
            let refused = match link(program, interface, Mode::XdpNative)? {
                Ok(link) => return Ok((link, Mode::XdpNative, "the driver has native XDP".to_owned())),
                Err(error) => why_not_native(&error),
            };
            match link(program, interface, Mode::XdpGeneric)? {
                Ok(link) => Ok((link, Mode::XdpGeneric, refused)),
                Err(error) => Err(cannot(Mode::XdpGeneric, format!("{}, and {refused}", describe(&error)))),
            }
        }
    }
}

/// Makes a link in one mode. The outer error is one that no other mode would cure.
fn link(program: BorrowedFd<'_>, interface: &Interface, mode: Mode) -> Result<io::Result<OwnedFd>, Error> {
    let flags = if mode == Mode::XdpNative { XDP_FLAGS_DRV_MODE } else { XDP_FLAGS_SKB_MODE };
    match syscall::create_link(program, interface.index, flags) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST)) => {
            // It was free when the plan was made; whoever came in between is named.
            let found = interface::all()?.into_iter().find(|found| found.index == interface.index);
            match found.and_then(|found| found.program) {
                Some(program) => Err(occupied(&interface.name, program)),
                None => Ok(Err(error)),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(Error::Rights { missing: format!("the kernel refused to attach to {}", interface.name) })
        }
        result => Ok(result),
    }
}

/// Puts the program in place of all earlier ones, or of none.
fn replace_all(object: &Ebpf, take_over: &[TakeOver]) -> Result<(), Error> {
    let mut replaced: Vec<(&TakeOver, Option<OwnedFd>)> = Vec::new();
    for target in take_over {
        let program = judge(object, program_of(target.mode))?.fd;
        let earlier = syscall::program_by_id(target.link.program).ok();
        if let Err(error) = syscall::update_link(target.link.fd.as_fd(), program) {
            for (target, earlier) in replaced {
                let restored = earlier.map(|earlier| syscall::update_link(target.link.fd.as_fd(), earlier.as_fd()));
                if !matches!(restored, Some(Ok(()))) {
                    tracing::warn!("{} keeps the new program, on the same maps", target.interface.name);
                }
            }
            let why = match target.mode {
                Mode::XdpNative => why_not_native(&error),
                Mode::XdpGeneric | Mode::Tc => describe(&error),
            };
            let reason = format!("the earlier program cannot be replaced: {why}");
            return Err(Error::CannotAttach { interface: target.interface.name.clone(), mode: target.mode, reason });
        }
        replaced.push((target, earlier));
    }
    Ok(())
}

fn occupied(interface: &str, program: Program) -> Error {
    let (name, mode) = named(program);
    Error::Occupied { interface: interface.to_owned(), id: program.id, name, mode }
}

/// A program's name, and where it runs.
fn named(program: Program) -> (String, String) {
    let info = loaded_programs().filter_map(Result::ok).find(|info| info.id() == program.id);
    let name = info.as_ref().and_then(|info| info.name_as_str()).filter(|name| !name.is_empty());
    (name.unwrap_or("unknown").to_owned(), program.place.to_string())
}

fn why_not_tc(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EINVAL) => "the kernel has no tcx, which came with Linux 6.6".to_owned(),
        _ => describe(error),
    }
}

fn why_not_native(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => "its driver has no native XDP".to_owned(),
        Some(libc::ERANGE) => "its driver refuses native XDP at the present MTU".to_owned(),
        Some(libc::EINVAL | libc::E2BIG | libc::ENOSPC) => format!(
            "its driver refuses native XDP with the present settings ({}), such as the MTU, LRO or the queues",
            describe(error)
        ),
        _ => format!("native XDP fails ({})", describe(error)),
    }
}

/// The error's text without its number.
fn describe(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |number| Errno::from_raw(number).desc().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_kept_unless_another_is_forced() {
        assert!(check_mode("lo", Mode::XdpGeneric, Hook::Auto).is_ok());
        assert!(check_mode("lo", Mode::XdpGeneric, Hook::XdpGeneric).is_ok());
        let error = check_mode("lo", Mode::XdpGeneric, Hook::XdpNative).expect_err("the mode would change");
        assert_eq!(error.exit_code(), 15);
        assert!(error.to_string().contains("enforcer detach"), "{error}");
    }

    #[test]
    fn says_in_words_why_an_interface_has_no_native_xdp() {
        let reason = |number| why_not_native(&io::Error::from_raw_os_error(number));
        assert_eq!(reason(libc::EOPNOTSUPP), "its driver has no native XDP");
        assert!(reason(libc::ERANGE).contains("MTU"));
        assert_eq!(reason(libc::ENOMEM), "native XDP fails (Out of memory)");
    }
}
