//! BPF programs and filters of others that meet packets or connections beside ours.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use aya::programs::{ProgramError, loaded_programs};
use aya_obj::generated::{bpf_attach_type, bpf_prog_type};
use netlink_packet_core::NlasIterator;
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::kernel::syscall;
use crate::netlink;

// include/uapi/linux/{rtnetlink,pkt_sched,pkt_cls}.h
const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;
/// Size of `struct tcmsg`.
const HEADER: usize = 20;
/// The ingress side of clsact, and the ingress qdisc.
const INGRESS: u32 = 0xffff_fff2;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_ID: u16 = 11;

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

/// A filter of traffic control.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    /// `bpf`, `flower`, `u32`, …
    pub(super) kind: String,
    /// What it calls itself, if it is a program.
    pub(super) name: String,
    /// Its program's id; 0 for none.
    pub(super) id: u32,
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

/// Ids of the programs that tcx runs on an interface's ingress, in their order; none on kernels without tcx.
///
/// # Errors
/// A failed call.
pub(super) fn tcx(interface: u32) -> io::Result<Vec<u32>> {
    or_none(syscall::query_programs(bpf_attach_type::BPF_TCX_INGRESS, interface))
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

/// The filters on an interface's ingress.
///
/// # Errors
/// A failed call.
pub(super) fn filters(interface: u32) -> io::Result<Vec<Filter>> {
    let mut request = [0; HEADER];
    request[4..8].copy_from_slice(&interface.to_ne_bytes());
    request[12..16].copy_from_slice(&INGRESS.to_ne_bytes());
    let mut filters = Vec::new();
    netlink::dump(NETLINK_ROUTE, RTM_GETTFILTER, &request, |kind, payload| {
        if kind == RTM_NEWTFILTER {
            filters.extend(parse(payload));
        }
    })?;
    Ok(filters)
}

/// Reads one RTM_NEWTFILTER; `None` for the head of a list, which has no options.
fn parse(payload: &[u8]) -> Option<Filter> {
    let (mut kind, mut options) = (String::new(), None);
    for attribute in NlasIterator::new(payload.get(HEADER..)?).flatten() {
        match attribute.kind() {
            TCA_KIND => kind = netlink::text(attribute.value()),
            TCA_OPTIONS => options = Some(attribute.value().to_vec()),
            _ => {}
        }
    }
    let options = options?;
    let (mut name, mut id) = (String::new(), 0);
    for attribute in NlasIterator::new(&options[..]).flatten().filter(|_| kind == "bpf") {
        match attribute.kind() {
            TCA_BPF_NAME => name = netlink::text(attribute.value()),
            TCA_BPF_ID => id = netlink::word(attribute.value()).unwrap_or(0),
            _ => {}
        }
    }
    Some(Filter { kind, name, id })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::tests::attribute;

    fn filter(attributes: &[Vec<u8>]) -> Option<Filter> {
        parse(&[vec![0; HEADER], attributes.concat()].concat())
    }

    #[test]
    fn a_filter_is_read_with_its_program() {
        let options = [attribute(TCA_BPF_NAME, b"other\0"), attribute(TCA_BPF_ID, &9u32.to_ne_bytes())].concat();
        let found = filter(&[attribute(TCA_KIND, b"bpf\0"), attribute(TCA_OPTIONS, &options)]);
        assert_eq!(found, Some(Filter { kind: "bpf".into(), name: "other".into(), id: 9 }));
        let found = filter(&[attribute(TCA_KIND, b"flower\0"), attribute(TCA_OPTIONS, &options)]);
        assert_eq!(found, Some(Filter { kind: "flower".into(), name: String::new(), id: 0 }));
    }

    #[test]
    fn the_head_of_a_list_of_filters_is_no_filter() {
        assert_eq!(filter(&[attribute(TCA_KIND, b"bpf\0")]), None);
        assert_eq!(parse(&[0; 3]), None);
    }

    #[test]
    fn a_program_without_a_name_has_its_number() {
        let loaded = |kind| Loaded(HashMap::from([(7, Program { name: "x".to_owned(), kind, compiled: true })]));
        let programs = loaded(bpf_prog_type::BPF_PROG_TYPE_XDP);
        assert_eq!((programs.describe(7), programs.describe(8)), ("x (id 7)".into(), "a program (id 8)".into()));
        assert_eq!((programs.is_compiled(7), programs.is_compiled(8)), (Some(true), None));
        assert!(programs.joining_sockets().is_empty());
        assert_eq!(loaded(bpf_prog_type::BPF_PROG_TYPE_SK_MSG).joining_sockets(), [7]);
    }

    #[test]
    fn the_loopback_device_can_be_asked() {
        assert!(filters(1).is_ok());
    }
}
