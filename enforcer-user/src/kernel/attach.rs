//! Links: which interface gets a new one, which earlier one is taken over, which ends; and the carrying out.
//!
//! A link is found again by the interface's index and the program's id, not by the pin's name, so that a renamed
//! interface stays guarded and a new one under an old name is not taken for it.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use aya::programs::{Xdp, loaded_programs};
use nix::errno::Errno;

use super::{
    Attachment, Error, Hook, Mode, Options, checks,
    interface::{self, Interface, Place, Program},
    pins::{self, Link, Pins},
    syscall,
};

// include/uapi/linux/if_link.h
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// What is to be done with each interface and each pinned link.
#[derive(Debug)]
pub(super) struct Plan {
    fresh: Vec<Interface>,
    take_over: Vec<TakeOver>,
    /// Links of interfaces that are not asked for.
    surplus: Vec<Link>,
    /// Links of interfaces that are gone.
    stale: Vec<Link>,
}

#[derive(Debug)]
struct TakeOver {
    interface: Interface,
    link: Link,
    mode: Mode,
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
        let (mut fresh, mut take_over) = (Vec::new(), Vec::new());
        for name in wanted {
            let interface = interface::find(&interfaces, name)?.clone();
            let Some(program) = interface.program else {
                fresh.push(interface);
                continue;
            };
            let ours = surplus
                .iter()
                .position(|link| link.interface == interface.index && link.program == program.id)
                .map(|position| surplus.swap_remove(position));
            match (ours, program.place) {
                (Some(link), Place::Software(mode)) => {
                    check_mode(&interface.name, mode, options.hook)?;
                    take_over.push(TakeOver { interface, link, mode });
                }
                _ => return Err(occupied(&interface.name, program)),
            }
        }
        Ok(Self { fresh, take_over, surplus, stale })
    }

    /// Carries the plan out: all or nothing.
    pub(super) fn execute(self, program: &Xdp, hook: Hook, pins: &Pins) -> Result<Vec<Attachment>, Error> {
        let Self { fresh, take_over, surplus, stale } = self;
        let call = |source| Error::Call { action: "describe the loaded program", source };
        let id = program.info().map_err(|error| call(io::Error::other(error)))?.id();
        let fd = program.fd().map_err(|error| call(io::Error::other(error)))?.as_fd();
        for link in &stale {
            pins::detach(&link.path)?;
        }
        let mut attachments = Vec::new();
        let mut pinned = Vec::new();
        let mut created = Created::default();
        for interface in fresh {
            let (link, mode, reason) = attach(fd, &interface, hook)?;
            let path = pins.free_link(&interface.name, interface.index);
            // Until it is pinned, the link ends with its descriptor.
            syscall::pin(link.as_fd(), &path).map_err(|source| Error::path(&path, "pinned", source))?;
            created.0.push(path.clone());
            let Interface { index, name, .. } = interface;
            pinned.push((path, name.clone()));
            let since = jiff::Timestamp::now();
            attachments.push(Attachment {
                interface: name,
                index,
                mode,
                reason,
                since,
                program: id,
                taken_over: false,
            });
        }
        replace_all(&take_over, fd)?;
        created.keep();
        for TakeOver { interface: Interface { index, name, .. }, link, mode } in take_over {
            pinned.push((link.path, name.clone()));
            let reason = "kept from the program that was attached before".to_owned();
            let (since, program, taken_over) = (link.since, id, true);
            attachments.push(Attachment { interface: name, index, mode, reason, since, program, taken_over });
        }
        for link in surplus {
            match pins::detach(&link.path) {
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

impl Created {
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
fn attach(program: BorrowedFd<'_>, interface: &Interface, hook: Hook) -> Result<(OwnedFd, Mode, String), Error> {
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
        Hook::Auto => {
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
    let flags = match mode {
        Mode::XdpNative => XDP_FLAGS_DRV_MODE,
        Mode::XdpGeneric => XDP_FLAGS_SKB_MODE,
    };
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
fn replace_all(take_over: &[TakeOver], program: BorrowedFd<'_>) -> Result<(), Error> {
    let mut replaced: Vec<(&TakeOver, Option<OwnedFd>)> = Vec::new();
    for target in take_over {
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
                Mode::XdpGeneric => describe(&error),
            };
            let reason = format!("the earlier program cannot be replaced: {why}");
            return Err(Error::CannotAttach { interface: target.interface.name.clone(), mode: target.mode, reason });
        }
        replaced.push((target, earlier));
    }
    Ok(())
}

fn occupied(interface: &str, program: Program) -> Error {
    let info = loaded_programs().filter_map(Result::ok).find(|info| info.id() == program.id);
    let name = info.as_ref().and_then(|info| info.name_as_str()).filter(|name| !name.is_empty());
    Error::Occupied {
        interface: interface.to_owned(),
        id: program.id,
        name: name.unwrap_or("unknown").to_owned(),
        mode: program.place.to_string(),
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
