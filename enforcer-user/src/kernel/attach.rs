//! The carrying out of a plan: programs attached, replaced and detached, all of them or none.
//!
//! What is new comes first and is taken back if anything fails; then the programs of earlier daemons are replaced, each
//! in one step; what is not wanted any more ends last.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
};

use aya::Ebpf;
use aya_obj::generated::bpf_attach_type;
use nix::errno::Errno;

use super::{
    Attachment, Connections, Error, Hook, Mode, classifier,
    filter_pin::{self, FilterPin},
    forwarding::Endpoints,
    interface::{self, Interface},
    kept,
    load::{self, Verified},
    pins::{self, Kept, Pins},
    plan::{Plan, Target, occupied},
    replace::{self, Replacement},
    role::Role,
    syscall,
};

// include/uapi/linux/{if_link,bpf}.h
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
const BPF_F_BEFORE: u32 = 1 << 3;

/// What came of an attempt: the pin, or in words why this mode does not work here. The outer error is one that no other
/// mode would cure.
type Attempt = Result<Result<PathBuf, String>, Error>;

/// Pins made by this call, detached again when dropped unless [`Created::keep`] was called.
#[derive(Default)]
struct Created(Vec<PathBuf>);

/// Carries a plan out.
pub(super) fn execute(
    plan: Plan,
    object: &mut Ebpf,
    hook: Hook,
    pins: &Pins,
    connections: &Connections,
) -> Result<Vec<Attachment>, Error> {
    let Plan { targets, mut surplus, stale } = plan;
    for kept in &stale {
        pins::detach(&kept.path)?;
    }
    let mut created = Created::default();
    let mut named: Vec<(PathBuf, String)> = Vec::new();
    let mut attachments = Vec::new();
    let mut replacements = Vec::new();
    for target in targets {
        let name = target.interface.name.clone();
        // Before anything is judged: a connection whose handshake was not seen is refused.
        let mut cannot_keep = None;
        if target.watch.is_none() {
            match watch(&target.interface, object, pins)? {
                Ok(path) => {
                    created.0.push(path.clone());
                    named.push((path, name.clone()));
                }
                Err(reason) if target.endpoints == Endpoints::Forwarded => {
                    return Err(Error::CannotWatch { interface: name, reason });
                }
                Err(why) => cannot_keep = Some(why),
            }
        }
        let (program, mode, reason) = match &target.judge {
            Some((_, mode)) => {
                let reason = "kept from the program that was attached before".to_owned();
                (load::judge(object, *mode)?.id, *mode, reason)
            }
            None => {
                let (path, mode, reason) = attach(&target, object, hook, pins)?;
                created.0.push(path.clone());
                named.push((path, name.clone()));
                (load::judge(object, mode)?.id, mode, reason)
            }
        };
        let (mut answer, mut cannot_answer) = (None, None);
        if mode != Mode::Tc {
            let program = load::answer(object)?;
            answer = Some(program.id);
            if target.answer.is_none() {
                match attach_tc(&program, &target.interface, Role::Answer, pins)? {
                    Ok(path) => {
                        created.0.push(path.clone());
                        named.push((path, name.clone()));
                    }
                    Err(why) => (answer, cannot_answer) = (None, Some(why)),
                }
            }
        }
        attachments.push(Attachment {
            interface: name,
            index: target.interface.index,
            mode,
            reason,
            answer,
            cannot_answer,
            cannot_keep,
            endpoints: target.endpoints,
            since: target.judge.as_ref().map_or_else(jiff::Timestamp::now, |(kept, _)| kept.since),
            program,
            taken_over: target.judge.is_some(),
        });
        let Target { interface, judge, answer, watch, .. } = target;
        if let Some((kept, mode)) = judge {
            let program = load::judge(object, mode)?;
            replacements.push(Replacement { interface: interface.name.clone(), kept, program, mode });
        }
        match answer {
            Some(kept) if mode != Mode::Tc => {
                let program = load::answer(object)?;
                replacements.push(Replacement { interface: interface.name.clone(), kept, program, mode: Mode::Tc });
            }
            answer => surplus.extend(answer),
        }
        if let Some(kept) = watch {
            let program = load::watch(object)?;
            replacements.push(Replacement { interface: interface.name, kept, program, mode: Mode::Tc });
        }
    }
    replace::all(&replacements, pins)?;
    created.keep();
    named.extend(replace::finish(replacements));
    let end_all = || surplus.iter().for_each(end);
    if surplus.iter().any(|surplus| surplus.role != Role::Answer) {
        // Which connections came over an interface is not known.
        kept::end_with(connections, |_| true, end_all);
    } else {
        end_all();
    }
    for (path, name) in named {
        pins.rename_link(&path, &name);
    }
    attachments.sort_by(|one, other| one.interface.cmp(&other.interface));
    Ok(attachments)
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

/// Ends what is not wanted any more.
fn end(kept: &Kept) {
    let name = &kept.name;
    match (kept.role, pins::detach(&kept.path)) {
        (Role::Judge, Ok(())) => tracing::info!("{name} is no longer guarded: it is not asked for any more"),
        (Role::Judge, Err(error)) => tracing::warn!("{name} stays guarded: {error}"),
        (_, Ok(())) => tracing::debug!("{} has ended", kept.path.display()),
        (_, Err(error)) => tracing::warn!("{error}"),
    }
}

/// Attaches the program that judges: its pin, its mode, and why that mode.
fn attach(target: &Target, object: &mut Ebpf, hook: Hook, pins: &Pins) -> Result<(PathBuf, Mode, String), Error> {
    let Target { interface, foreign, .. } = target;
    let mut attempt = |mode| attempt(interface, object, mode, pins);
    let cannot = |mode, reason| Error::CannotAttach { interface: interface.name.clone(), mode, reason };
    let (mode, otherwise) = target.modes(hook);
    let refused = match attempt(mode)? {
        Ok(path) => {
            let reason = match (hook, foreign) {
                (Hook::Auto, Some(program)) => format!("XDP runs another's program there (id {})", program.id),
                (Hook::Auto, None) => "the driver has native XDP".to_owned(),
                _ => "asked for".to_owned(),
            };
            return Ok((path, mode, reason));
        }
        Err(why) if hook == Hook::XdpNative => format!("{why}; --hook auto takes what the interface can"),
        Err(why) => why,
    };
    let Some(mode) = otherwise else { return Err(cannot(mode, refused)) };
    match attempt(mode)? {
        Ok(path) => Ok((path, mode, refused)),
        Err(why) => Err(cannot(mode, format!("{refused}, and {why}"))),
    }
}

fn attempt(interface: &Interface, object: &mut Ebpf, mode: Mode, pins: &Pins) -> Attempt {
    let program = load::judge(object, mode)?;
    match mode {
        Mode::XdpNative => attach_xdp(&program, interface, mode, XDP_FLAGS_DRV_MODE, pins),
        Mode::XdpGeneric => attach_xdp(&program, interface, mode, XDP_FLAGS_SKB_MODE, pins),
        Mode::Tc => attach_tc(&program, interface, Role::Judge, pins),
    }
}

/// Attaches the program that takes note of what leaves; gives its pin.
fn watch(interface: &Interface, object: &mut Ebpf, pins: &Pins) -> Attempt {
    let program = load::watch(object)?;
    attach_tc(&program, interface, Role::Watch, pins)
}

fn attach_xdp(program: &Verified, interface: &Interface, mode: Mode, flags: u32, pins: &Pins) -> Attempt {
    match syscall::create_link(program.fd.as_fd(), interface.index, bpf_attach_type::BPF_XDP, flags) {
        Ok(link) => pin(&link, interface, Role::Judge, pins).map(Ok),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST)) => {
            // It was free when the plan was made; whoever came in between is named.
            let found = interface::all()?.into_iter().find(|found| found.index == interface.index);
            match found.and_then(|found| found.program) {
                Some(program) => Err(occupied(&interface.name, program)),
                None => Ok(Err(why_not(mode, &error))),
            }
        }
        Err(error) => refused(&error, interface, why_not(mode, &error)),
    }
}

/// Attaches a program in traffic control, before all that are there.
fn attach_tc(program: &Verified, interface: &Interface, role: Role, pins: &Pins) -> Attempt {
    let side = role.side();
    let listed = classifier::tcx(interface.index, side);
    let has_tcx = listed.map_err(|source| Error::Call { action: "list the programs of traffic control", source })?;
    if has_tcx.is_none() {
        return add_filter(program, interface, role, pins);
    }
    match syscall::create_link(program.fd.as_fd(), interface.index, side.attach_type(), BPF_F_BEFORE) {
        Ok(link) => pin(&link, interface, role, pins).map(Ok),
        Err(error) => refused(&error, interface, why_not(Mode::Tc, &error)),
    }
}

/// Adds a filter, where the kernel has no tcx. Its pin comes first: without one nobody would know it.
fn add_filter(program: &Verified, interface: &Interface, role: Role, pins: &Pins) -> Attempt {
    let side = role.side();
    let made_qdisc = match classifier::add_qdisc(interface.index) {
        Ok(made) => made,
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            return Ok(Err(format!(
                "another qdisc is in the place of clsact: see `tc qdisc show dev {0}`, and remove it by `tc qdisc del \
                 dev {0} ingress` if nothing needs it",
                interface.name
            )));
        }
        Err(error) => return refused(&error, interface, format!("it gets no clsact qdisc ({})", describe(&error))),
    };
    let call = |source| Error::Call { action: load::NAME_NAMESPACE, source };
    let namespace = filter_pin::namespace().map_err(call)?;
    let filter = FilterPin {
        interface: interface.name.clone(),
        index: interface.index,
        role,
        namespace,
        program: program.id,
        // The last of both sides' filters removes it, whichever was first.
        made_qdisc: made_qdisc || pins.made_qdisc(interface.index, namespace)?,
    };
    let path = pins.filter(&filter);
    // Dropped, it removes the qdisc with the pin.
    let mut created = Created(vec![path.clone()]);
    syscall::pin(program.fd.as_fd(), &path).map_err(|source| Error::path(&path, "pinned", source))?;
    match classifier::add(interface.index, side, program.fd.as_fd(), program.name) {
        Ok(()) => {
            created.keep();
            Ok(Ok(path))
        }
        // EINVAL: of another kind or protocol than ours.
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::EEXIST | libc::EINVAL))
                && classifier::has_first_priority(interface.index, side).unwrap_or(false) =>
        {
            Ok(Err(format!(
                "another's filter has the first priority of traffic control: see `tc filter show dev {} {side}`",
                interface.name
            )))
        }
        Err(error) => refused(&error, interface, why_not(Mode::Tc, &error)),
    }
}

/// Until it is pinned, a link ends with its descriptor.
fn pin(link: &OwnedFd, interface: &Interface, role: Role, pins: &Pins) -> Result<PathBuf, Error> {
    let path = pins.free_link(&interface.name, interface.index, role);
    syscall::pin(link.as_fd(), &path).map_err(|source| Error::path(&path, "pinned", source))?;
    Ok(path)
}

/// A refusal to attach: for lack of rights no mode would do.
fn refused(error: &io::Error, interface: &Interface, why: String) -> Attempt {
    if error.kind() == io::ErrorKind::PermissionDenied {
        return Err(Error::Rights { missing: format!("the kernel refused to attach to {}", interface.name) });
    }
    Ok(Err(why))
}

/// Why an interface cannot be attached in a mode.
pub(super) fn why_not(mode: Mode, error: &io::Error) -> String {
    match (mode, error.raw_os_error()) {
        (Mode::XdpNative, Some(libc::EOPNOTSUPP)) => "its driver has no native XDP".to_owned(),
        (Mode::XdpNative, Some(libc::ERANGE)) => "its driver refuses native XDP at the present MTU".to_owned(),
        (Mode::XdpNative, Some(libc::EINVAL | libc::E2BIG | libc::ENOSPC)) => format!(
            "its driver refuses native XDP with the present settings ({}), such as the MTU, LRO or the queues",
            describe(error)
        ),
        (Mode::XdpNative, _) => format!("native XDP fails ({})", describe(error)),
        (Mode::XdpGeneric, _) => format!("generic XDP fails ({})", describe(error)),
        (Mode::Tc, _) => format!("traffic control takes no program ({})", describe(error)),
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
    fn says_in_words_why_an_interface_cannot_be_attached() {
        let reason = |mode, number| why_not(mode, &io::Error::from_raw_os_error(number));
        assert_eq!(reason(Mode::XdpNative, libc::EOPNOTSUPP), "its driver has no native XDP");
        assert!(reason(Mode::XdpNative, libc::ERANGE).contains("MTU"));
        assert_eq!(reason(Mode::XdpNative, libc::ENOMEM), "native XDP fails (Out of memory)");
        assert_eq!(reason(Mode::Tc, libc::ENOMEM), "traffic control takes no program (Out of memory)");
    }
}
