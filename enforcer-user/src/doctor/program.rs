//! BPF programs and filters of others that meet packets or connections beside ours.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use aya::programs::{ProgramError, loaded_programs};
use aya_obj::generated::{bpf_attach_type, bpf_prog_type};

use crate::kernel::syscall;

/// All programs of the system, by their ids.
#[derive(Debug, Default)]
pub(super) struct Loaded(HashMap<u32, Program>);

/// A loaded program.
#[derive(Debug)]
struct Program {
    name: String,
    kind: bpf_prog_type,
    compiled: bool,
}

impl Loaded {
    /// Lists them.
    ///
    /// # Errors
    /// A failed call; it needs CAP_SYS_ADMIN.
    pub(super) fn list() -> io::Result<Self> {
        let mut loaded = Self::default();
        for program in loaded_programs() {
            let info = match program {
                Ok(info) => info,
                // Unloaded since its id was read.
                Err(error) if errno(&error) == Some(libc::ENOENT) => continue,
                Err(error) => {
                    return Err(errno(&error).map_or_else(|| io::Error::other(error), io::Error::from_raw_os_error));
                }
            };
            let name = info.name_as_str().unwrap_or_default().to_owned();
            let program = Program { name, kind: info.program_type(), compiled: info.size_jitted() > 0 };
            loaded.0.insert(info.id(), program);
        }
        Ok(loaded)
    }

    /// A program in words: `name (id 7)`.
    pub(super) fn describe(&self, id: u32) -> String {
        match self.0.get(&id) {
            Some(Program { name, .. }) if !name.is_empty() => format!("{name} (id {id})"),
            _ => format!("a program (id {id})"),
        }
    }

    /// Whether the kernel compiled a program; `None` if it is not loaded.
    pub(super) fn is_compiled(&self, id: u32) -> Option<bool> {
        self.0.get(&id).map(|program| program.compiled)
    }

    /// Programs that can join two sockets of this host past every interface.
    pub(super) fn joining_sockets(&self) -> Vec<u32> {
        let joins = |kind| matches!(kind, bpf_prog_type::BPF_PROG_TYPE_SK_MSG | bpf_prog_type::BPF_PROG_TYPE_SK_SKB);
        let mut ids: Vec<u32> = self.0.iter().filter(|(_, program)| joins(program.kind)).map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }
}

/// The number of the call that failed, wherever in the error it is.
fn errno(error: &ProgramError) -> Option<i32> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return error.raw_os_error();
        }
        cause = error.source();
    }
    None
}

/// Ids of the programs that choose a socket for each new connection of this network namespace.
///
/// # Errors
/// A failed call.
pub(super) fn socket_lookup() -> io::Result<Vec<u32>> {
    let namespace = File::open("/proc/thread-self/ns/net")?;
    or_none(syscall::query_programs(bpf_attach_type::BPF_SK_LOOKUP, namespace.as_raw_fd().cast_unsigned()))
}

/// A kernel that does not know an attach type has nothing attached there.
fn or_none(found: io::Result<Vec<u32>>) -> io::Result<Vec<u32>> {
    match found {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(Vec::new()),
        found => found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn a_program_without_a_name_has_its_number() {
        let loaded = |kind| Loaded(HashMap::from([(7, Program { name: "x".to_owned(), kind, compiled: true })]));
        let programs = loaded(bpf_prog_type::BPF_PROG_TYPE_XDP);
        assert_eq!((programs.describe(7), programs.describe(8)), ("x (id 7)".into(), "a program (id 8)".into()));
        assert_eq!((programs.is_compiled(7), programs.is_compiled(8)), (Some(true), None));
        assert!(programs.joining_sockets().is_empty());
        assert_eq!(loaded(bpf_prog_type::BPF_PROG_TYPE_SK_MSG).joining_sockets(), [7]);
    }
}
