//! The plan of an attach: for each interface what is kept there already and what is to be there, and what must end.
//!
//! What is kept is found again by the interface's index and the program's id, not by the pin's name, so that a renamed
//! interface stays guarded and a new one under an old name is not taken for it. No packet may be judged twice: an
//! interface has one guard, in one mode, and a change of the mode is refused because it would leave a gap.

use aya::{Ebpf, programs::loaded_programs};

use super::{
    Attachment, Error, Hook, Mode, Options, checks,
    classifier::{self, Side},
    forwarding::Endpoints,
    interface::{self, Interface, Place, Program},
    load,
    pins::{Kept, Pins},
    role::Role,
};

/// What is to be done with each interface, and with all that is kept.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) targets: Vec<Target>,
    /// Kept on interfaces that are not asked for, or watching those that need it no more.
    pub(super) surplus: Vec<Kept>,
    /// Kept where the interface, or the filter, or what it serves is gone.
    pub(super) stale: Vec<Kept>,
}

/// An interface to be guarded.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) interface: Interface,
    pub(super) endpoints: Endpoints,
    /// What judges there for an earlier daemon, to be taken over.
    pub(super) judge: Option<(Kept, Mode)>,
    /// What answers there for an earlier daemon, to be taken over.
    pub(super) answer: Option<Kept>,
    /// What watches there for an earlier daemon, to be taken over.
    pub(super) watch: Option<Kept>,
    /// Another's XDP program there.
    pub(super) foreign: Option<Program>,
}

impl Plan {
    /// Looks at the interfaces and at what is pinned; changes nothing.
    ///
    /// # Errors
    /// An interface that does not exist, that another program is in the way on, or whose mode would have to change.
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
        let kept = if checks::is_on_bpffs(&options.bpffs_dir) { pins.kept()? } else { Vec::new() };
        let (mut surplus, mut stale): (Vec<Kept>, Vec<Kept>) = kept.into_iter().partition(|kept| kept.interface != 0);
        let mut targets = Vec::new();
        for name in wanted {
            let interface = interface::find(&interfaces, name)?.clone();
            if !interface.has_ethernet {
                return Err(Error::NoEthernet { interface: interface.name });
            }
            let mut target = Target::make(interface, options.hook, &mut surplus)?;
            if target.judge.is_none() {
                // What judged is gone: nothing is left for it to answer, and its place may be needed.
                stale.extend(target.answer.take());
            }
            targets.push(target);
        }
        Ok(Self { targets, surplus, stale })
    }

    /// Has the programs verified that are needed for sure.
    pub(super) fn verify(&self, object: &mut Ebpf, hook: Hook) -> Result<(), Error> {
        for target in &self.targets {
            let mode = target.modes(hook).0;
            load::judge(object, mode)?;
            if mode != Mode::Tc {
                load::answer(object)?;
            }
            if target.endpoints == Endpoints::Forwarded {
                load::watch(object)?;
            }
        }
        Ok(())
    }
}

impl Target {
    /// Takes what is kept on the interface out of `kept`.
    fn make(interface: Interface, hook: Hook, kept: &mut Vec<Kept>) -> Result<Self, Error> {
        let (index, name) = (interface.index, interface.name.clone());
        let mut take = |is_it: &dyn Fn(&Kept) -> Result<bool, Error>| -> Result<Option<Kept>, Error> {
            for position in 0..kept.len() {
                if kept[position].interface == index && is_it(&kept[position])? {
                    return Ok(Some(kept.swap_remove(position)));
                }
            }
            Ok(None)
        };
        let xdp = interface.program;
        let by_xdp = take(&|kept| Ok(kept.side.is_none() && xdp.is_some_and(|program| program.id == kept.program)))?;
        let by_tc = take(&|kept| runs(kept, Role::Judge))?;
        let answer = take(&|kept| runs(kept, Role::Answer))?;
        let watch = take(&|kept| runs(kept, Role::Watch))?;
        let (judge, foreign) = match (by_xdp, by_tc, xdp.map(|program| program.place)) {
            (Some(kept), _, Some(Place::Software(mode))) => (Some((kept, mode)), None),
            (Some(_), _, _) => (None, xdp),
            (None, Some(kept), _) => (Some((kept, Mode::Tc)), xdp),
            (None, None, _) => (None, xdp),
        };
        if let Some((_, mode)) = &judge {
            check_mode(&name, *mode, hook)?;
        }
        let endpoints = Endpoints::of(&interface);
        let target = Self { interface, endpoints, judge, answer, watch, foreign };
        target.check_others(hook)?;
        Ok(target)
    }

    /// Refuses an interface on which another program is in the way: one in the only place of XDP, or another
    /// enforcer's, since both would charge for each request.
    fn check_others(&self, hook: Hook) -> Result<(), Error> {
        let Self { interface, judge, foreign, .. } = self;
        if let Some(program) = foreign {
            let is_enforcer = program_name(program.id).as_deref() == Some(load::XDP);
            let needs_xdp = matches!(hook, Hook::XdpNative | Hook::XdpGeneric);
            if needs_xdp || is_enforcer {
                return Err(occupied(&interface.name, *program));
            }
        }
        let ours = judge.as_ref().map(|(kept, _)| kept.program);
        let is_other = |id: &u32| Some(*id) != ours && program_name(*id).as_deref() == Some(load::TC);
        let ids = classifier::programs(interface.index, Side::Ingress).map_err(list_error)?;
        match ids.into_iter().find(is_other) {
            Some(id) => Err(occupied(&interface.name, Program { id, place: Place::Software(Mode::Tc) })),
            None => Ok(()),
        }
    }

    /// The mode to attach in, and the one for where that is refused.
    pub(super) const fn modes(&self, hook: Hook) -> (Mode, Option<Mode>) {
        match (&self.judge, hook) {
            (Some((_, mode)), _) => (*mode, None),
            (None, Hook::XdpNative) => (Mode::XdpNative, None),
            (None, Hook::XdpGeneric) => (Mode::XdpGeneric, None),
            (None, Hook::Tc) => (Mode::Tc, None),
            // XDP has one place, and nobody else's program is ever put aside.
            (None, Hook::Auto) if self.foreign.is_some() => (Mode::Tc, None),
            (None, Hook::Auto) => (Mode::XdpNative, Some(Mode::XdpGeneric)),
        }
    }
}

/// What has changed since the interfaces were attached so that only the next start can follow.
pub(super) fn warnings(attachments: &[Attachment]) -> Vec<String> {
    let Ok(interfaces) = interface::all() else { return Vec::new() };
    let changed = |at: &&Attachment| {
        at.endpoints == Endpoints::Local
            && interfaces
                .iter()
                .any(|interface| interface.index == at.index && Endpoints::of(interface) == Endpoints::Forwarded)
    };
    let say = |at: &Attachment| {
        format!(
            "{} forwards now, and did not when the daemon started: connections to servers behind this host are refused \
             until the daemon is started again, which lets nothing through meanwhile",
            at.interface
        )
    };
    attachments.iter().filter(changed).map(say).collect()
}

/// Whether what is kept for this runs in traffic control of this network namespace; other namespaces have the same
/// indexes of interfaces.
fn runs(kept: &Kept, role: Role) -> Result<bool, Error> {
    let Some(side) = kept.side.filter(|_| kept.role == role) else { return Ok(false) };
    if let Some(filter) = &kept.filter {
        // That it runs was asked in its own namespace.
        return Ok(filter.is_here());
    }
    let listed = classifier::tcx(kept.interface, side).map_err(list_error)?;
    Ok(listed.is_some_and(|ids| ids.contains(&kept.program)))
}

fn list_error(source: std::io::Error) -> Error {
    Error::Call { action: "list the programs of traffic control", source }
}

/// The mode of what is attached cannot be changed; ending and making it anew would let packets through in between.
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

/// The error for an interface where a program is in the way.
pub(super) fn occupied(interface: &str, program: Program) -> Error {
    Error::Occupied {
        interface: interface.to_owned(),
        id: program.id,
        name: program_name(program.id).unwrap_or_else(|| "unknown".to_owned()),
        mode: program.place.to_string(),
    }
}

/// A program's name; `None` if it has none, or the process may not ask.
fn program_name(id: u32) -> Option<String> {
    let info = loaded_programs().filter_map(Result::ok).find(|info| info.id() == id)?;
    info.name_as_str().filter(|name| !name.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_takes_traffic_control_only_beside_anothers_xdp_program() {
        let interface =
            Interface { index: 1, name: "lo".to_owned(), program: None, is_bridged: false, has_ethernet: true };
        let free =
            Target { interface, endpoints: Endpoints::Local, judge: None, answer: None, watch: None, foreign: None };
        assert_eq!(free.modes(Hook::Auto), (Mode::XdpNative, Some(Mode::XdpGeneric)));
        assert_eq!(free.modes(Hook::XdpNative), (Mode::XdpNative, None));
        let foreign = Some(Program { id: 7, place: Place::Software(Mode::XdpGeneric) });
        let shared = Target { foreign, ..free };
        assert_eq!(shared.modes(Hook::Auto), (Mode::Tc, None));
    }

    #[test]
    fn a_mode_is_kept_unless_another_is_forced() {
        assert!(check_mode("lo", Mode::XdpGeneric, Hook::Auto).is_ok());
        assert!(check_mode("lo", Mode::XdpGeneric, Hook::XdpGeneric).is_ok());
        assert!(check_mode("lo", Mode::Tc, Hook::Tc).is_ok());
        for (mode, hook) in
            [(Mode::XdpGeneric, Hook::XdpNative), (Mode::Tc, Hook::XdpNative), (Mode::XdpNative, Hook::Tc)]
        {
            let error = check_mode("lo", mode, hook).expect_err("the mode would change");
            assert_eq!(error.exit_code(), 15);
            assert!(error.to_string().contains("enforcer detach"), "{error}");
        }
    }
}
