//! The object: its constants are set, its maps created or reused, and those of its programs verified that are needed.
//!
//! aya reuses whatever map is pinned under a name, so the shapes are compared before: a program on a map of another
//! shape would read and write beyond its values.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::{
    Btf, Ebpf, EbpfError, EbpfLoader, include_bytes_aligned,
    maps::MapInfo,
    programs::{Program, ProgramError},
};
use enforcer_ebpf::{
    abi::{EndsOffsets, SocketOffsets, global, map},
    flow, key,
};

use super::{Error, Mode, Options, filter_pin, pins::Pins};

/// The BPF object, with its BTF.
static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/enforcer-bpf"));

/// The BPF object that this program brings: what judges.
#[must_use]
pub fn object() -> &'static [u8] {
    OBJECT
}

/// Judges, as XDP.
pub(super) const XDP: &str = "enforcer_xdp";
/// Judges, in traffic control.
pub(super) const TC: &str = "enforcer_tc";
/// Answers, in traffic control, what XDP refuses.
const ANSWER: &str = "enforcer_answer";
/// Takes note of what servers behind this host send.
const WATCH: &str = "enforcer_watch";

/// Says what would become of a request; never attached.
pub(super) const EXPLAIN: &str = "enforcer_explain";

/// Is told of connections that are established or over.
pub(super) const SOCKETS: &str = "enforcer_sockets";
/// Is told of those that were there before.
pub(super) const OLDER: &str = "enforcer_older";
/// Takes out of the table what has never come to be; never attached.
pub(super) const SWEEP: &str = "enforcer_sweep";

/// In the words of [`Error::Call`].
pub(super) const NAME_NAMESPACE: &str = "name the network namespace";

/// A program that the kernel has verified.
#[derive(Debug)]
pub(super) struct Verified {
    pub(super) name: &'static str,
    pub(super) id: u32,
    pub(super) fd: OwnedFd,
}

/// Loads the object; no program is verified yet.
pub(super) fn load(options: &Options, pins: &Pins, offsets: (SocketOffsets, EndsOffsets)) -> Result<Ebpf, Error> {
    let flow_sets = flow_sets(options.flows);
    let flow_mask = flow_sets - 1;
    compare_maps(flow_sets, pins)?;
    // The pinned connections are found by this secret, so it must be the same at every start.
    let flow_secret = key::tag(options.key_secret, b"flow table").0;
    let namespace = filter_pin::namespace().map_err(|source| Error::Call { action: NAME_NAMESPACE, source })?;
    let (socket, ends) = offsets;
    // The kernel's own number for it.
    let namespace = namespace as u32;
    let log_level = if options.log { aya_log::Level::Debug as u8 } else { 0 };
    let mut loader = EbpfLoader::new();
    loader
        .override_global(global::KEY_SECRET, &options.key_secret, true)
        .override_global(global::FLOW_SECRET, &flow_secret, true)
        .override_global(global::FLOW_MASK, &flow_mask, true)
        .override_global(global::SOCKET_OFFSETS, &socket, true)
        .override_global(global::ENDS_OFFSETS, &ends, true)
        .override_global(global::NAMESPACE, &namespace, true)
        .override_global(aya_log::LEVEL, &log_level, false)
        .map_max_entries(map::FLOWS, flow_sets);
    for &name in map::PINNED {
        loader.map_pin_path(name, pins.map(name));
    }
    loader.load(OBJECT).map_err(|error| {
        if is_refused(&error) {
            Error::Rights { missing: "the kernel refused to create the maps".to_owned() }
        } else {
            Error::Load(error)
        }
    })
}

/// The program that judges in a mode.
pub(super) fn judge(object: &mut Ebpf, mode: Mode) -> Result<Verified, Error> {
    verified(object, if mode == Mode::Tc { TC } else { XDP })
}

/// The program that answers where XDP judges.
pub(super) fn answer(object: &mut Ebpf) -> Result<Verified, Error> {
    verified(object, ANSWER)
}

/// The program that watches what leaves.
pub(super) fn watch(object: &mut Ebpf) -> Result<Verified, Error> {
    verified(object, WATCH)
}

/// The program that says what would become of a request.
pub(super) fn explain(object: &mut Ebpf) -> Result<Verified, Error> {
    verified(object, EXPLAIN)
}

/// The program that takes out of the table of connections what has never come to be.
pub(super) fn sweep(object: &mut Ebpf) -> Result<Verified, Error> {
    verified(object, SWEEP)
}

/// Has the programs verified that are told of connections.
pub(super) fn followers(object: &mut Ebpf) -> Result<(), Error> {
    let kernel = Btf::from_sys_fs().map_err(|error| Error::NoBtf { reason: format!("cannot be read ({error})") })?;
    for name in [SOCKETS, OLDER] {
        match object.program_mut(name) {
            Some(Program::BtfTracePoint(program)) => program.load("inet_sock_set_state", &kernel),
            Some(Program::Iter(program)) => program.load("tcp", &kernel),
            _ => return Err(Error::Foreign { what: name }),
        }
        .map_err(verifier_error)?;
    }
    Ok(())
}

/// A program, which is verified if it was not yet: that takes time, so nothing is that is not needed.
fn verified(object: &mut Ebpf, name: &'static str) -> Result<Verified, Error> {
    let program = object.program_mut(name).ok_or(Error::Foreign { what: name })?;
    if program.fd().is_err() {
        match program {
            Program::Xdp(program) => program.load(),
            Program::SchedClassifier(program) => program.load(),
            _ => return Err(Error::Foreign { what: name }),
        }
        .map_err(verifier_error)?;
    }
    let call = |source| Error::Call { action: "describe the loaded program", source };
    let id = program.info().map_err(|error| call(io::Error::other(error)))?.id();
    let fd = program.fd().map_err(|error| call(io::Error::other(error)))?;
    let fd = fd.as_fd().try_clone_to_owned().map_err(call)?;
    Ok(Verified { name, id, fd })
}

/// Sets of the table of connections: a power of two, since a hash is cut to an index by a mask.
fn flow_sets(connections: u32) -> u32 {
    const LARGEST: u32 = 1 << 20;
    connections.div_ceil(flow::WAYS as u32).clamp(1, LARGEST).next_power_of_two()
}

/// Refuses maps pinned by an earlier run that are not what this object declares.
fn compare_maps(flow_sets: u32, pins: &Pins) -> Result<(), Error> {
    let object = aya_obj::Object::parse(OBJECT).map_err(EbpfError::from)?;
    for &name in map::PINNED {
        let Some(declared) = object.maps.get(name) else {
            return Err(Error::Foreign { what: name });
        };
        let path = pins.map(name);
        if !path.exists() {
            continue;
        }
        let read = |source| Error::Map { map: name, action: "read", source };
        let pinned = MapInfo::from_pin(&path).map_err(read)?;
        let max_entries = if name == map::FLOWS { flow_sets } else { declared.max_entries() };
        let shape = [
            ("map type", pinned.map_type().map_err(read)? as u32, declared.map_type()),
            ("key size", pinned.key_size(), declared.key_size()),
            ("value size", pinned.value_size(), declared.value_size()),
            ("max_entries", pinned.max_entries(), max_entries),
            ("map flags", pinned.map_flags(), declared.map_flags()),
        ];
        if let Some((what, found, wanted)) = shape.into_iter().find(|(_, found, wanted)| found != wanted) {
            return Err(Error::MapMismatch { map: name, what, found, wanted });
        }
    }
    Ok(())
}

/// Whether the error comes from a system call that was not permitted.
fn is_refused(error: &EbpfError) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied) {
            return true;
        }
        cause = error.source();
    }
    false
}

fn verifier_error(error: ProgramError) -> Error {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            tracing::debug!("the verifier's log:\n{log}");
            let reason = verifier_reason(&log).to_owned();
            if reason.is_empty() && io_error.kind() == io::ErrorKind::PermissionDenied {
                return Error::Rights { missing: "the kernel refused to load the program".to_owned() };
            }
            Error::Verifier { source: io_error, reason }
        }
        error => Error::Load(error.into()),
    }
}

/// The last line of a verifier's log that says why.
fn verifier_reason(log: &str) -> &str {
    const STATISTICS: &[&str] = &["processed ", "verification time", "stack depth"];
    let says_why = |line: &&str| !line.is_empty() && !STATISTICS.iter().any(|start| line.starts_with(start));
    log.lines().map(str::trim).rfind(says_why).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_rounded_up_to_a_power_of_two_of_sets() {
        let sets = [0, 1, 8, 9, 65_536, 65_537, u32::MAX].map(flow_sets);
        assert_eq!(sets, [1, 1, 1, 2, 8_192, 16_384, 1 << 20]);
    }

    #[test]
    fn the_object_declares_all_that_is_pinned_and_the_programs() {
        let object = aya_obj::Object::parse(OBJECT).expect("a BPF object");
        for &name in map::PINNED {
            assert!(object.maps.contains_key(name), "no map {name}");
        }
        for name in [XDP, TC, ANSWER, WATCH, EXPLAIN, SOCKETS, OLDER, SWEEP] {
            assert!(object.programs.contains_key(name), "no program {name}");
        }
    }

    #[test]
    fn the_object_keeps_its_types() {
        let object = aya_obj::Object::parse(OBJECT).expect("a BPF object");
        assert!(object.btf.is_some() && object.btf_ext.is_some(), "bpf_loop callbacks need func_info");
    }

    #[test]
    fn the_reason_is_the_last_line_before_the_statistics() {
        let log = "0: (79) r1 = *(u64 *)(r1 +0)\nR1 invalid mem access 'scalar'\nprocessed 2 insns (limit 1000000)\n\n";
        assert_eq!(verifier_reason(log), "R1 invalid mem access 'scalar'");
        assert_eq!(verifier_reason(""), "");
    }
}
