//! Traffic control of an interface: which programs it runs, by tcx or as filters, and our filters on it.
//!
//! Kernels from 6.6 on have tcx, whose links `attach` makes and `pins` keeps. Older ones have filters of the clsact
//! qdisc, which stay without a descriptor and cannot be pinned. Ours have one fixed place, so that a later daemon finds
//! them, replaces them in one step, and removes them; the pins tell which program they must have to be ours.

use std::{
    fmt, io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use aya_obj::generated::bpf_attach_type;
use netlink_packet_core::NlasIterator;
use netlink_sys::protocols::NETLINK_ROUTE;

use super::syscall;
use crate::netlink::{self, attribute};

// include/uapi/linux/{netlink,rtnetlink,pkt_sched,pkt_cls,if_ether}.h
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
const TC_H_CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
const ETH_P_ALL: u16 = 3;
/// Size of `struct tcmsg`.
const HEADER: usize = 20;

/// Where our filters are: the first priority, and a handle that nobody else uses.
const PRIORITY: u16 = 1;
const HANDLE: u32 = 0x0e4f_0ce5;

/// Which packets of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Those that arrive.
    Ingress,
    /// Those that leave.
    Egress,
}

/// A filter of traffic control.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    /// `bpf`, `flower`, `u32`, …
    pub(crate) kind: String,
    /// What it calls itself, if it is a program.
    pub(crate) name: String,
    /// Its program's id; 0 for none.
    pub(crate) id: u32,
    /// Its priority; filters with a lower number run before.
    pub(super) priority: u16,
    /// Whether it is at the place of our filters.
    pub(super) is_at_our_place: bool,
}

impl Side {
    /// The type of attachment that tcx has for it.
    pub(super) const fn attach_type(self) -> bpf_attach_type {
        match self {
            Self::Ingress => bpf_attach_type::BPF_TCX_INGRESS,
            Self::Egress => bpf_attach_type::BPF_TCX_EGRESS,
        }
    }

    /// The parent of its filters.
    const fn parent(self) -> u32 {
        match self {
            Self::Ingress => 0xffff_fff2,
            Self::Egress => 0xffff_fff3,
        }
    }
}

impl fmt::Display for Side {
    /// The word for it on the command line of `tc`, and in the names of pins.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// Ids of the programs that tcx runs on one side of an interface, in their order; `None` on kernels without tcx.
///
/// # Errors
/// A failed call.
pub(crate) fn tcx(interface: u32, side: Side) -> io::Result<Option<Vec<u32>>> {
    match syscall::query_programs(side.attach_type(), interface) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
        found => found.map(Some),
    }
}

/// Ids of all programs that traffic control runs on one side of an interface.
///
/// # Errors
/// A failed call.
pub(crate) fn programs(interface: u32, side: Side) -> io::Result<Vec<u32>> {
    let mut ids = tcx(interface, side)?.unwrap_or_default();
    ids.extend(filters(interface, side)?.into_iter().map(|filter| filter.id).filter(|id| *id != 0));
    Ok(ids)
}

/// The filters on one side of an interface.
///
/// # Errors
/// A failed call.
pub(crate) fn filters(interface: u32, side: Side) -> io::Result<Vec<Filter>> {
    let mut filters = Vec::new();
    netlink::dump(NETLINK_ROUTE, RTM_GETTFILTER, &header(interface, 0, side.parent(), 0), |kind, payload| {
        if kind == RTM_NEWTFILTER {
            filters.extend(parse(payload));
        }
    })?;
    Ok(filters)
}

/// Makes sure that an interface has the qdisc that filters need; whether it was made now.
///
/// # Errors
/// EBUSY: a qdisc of another kind is in its place; else a failed call, as where the kernel has no such qdisc.
pub(super) fn add_qdisc(interface: u32) -> io::Result<bool> {
    let mut request = header(interface, CLSACT_HANDLE, TC_H_CLSACT, 0).to_vec();
    request.extend(attribute(TCA_KIND, b"clsact\0"));
    match netlink::change(NETLINK_ROUTE, RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &request) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => match qdisc(interface)? {
            Some(kind) if kind == "clsact" => Ok(false),
            _ => Err(io::Error::from_raw_os_error(libc::EBUSY)),
        },
        Err(error) => Err(error),
    }
}

/// Removes the qdisc of an interface, unless it has filters.
///
/// # Errors
/// A failed call.
pub(super) fn remove_qdisc(interface: u32) -> io::Result<()> {
    for side in [Side::Ingress, Side::Egress] {
        if !filters(interface, side)?.is_empty() {
            return Ok(());
        }
    }
    let mut request = header(interface, CLSACT_HANDLE, TC_H_CLSACT, 0).to_vec();
    request.extend(attribute(TCA_KIND, b"clsact\0"));
    netlink::act(NETLINK_ROUTE, RTM_DELQDISC, &request)
}

/// Adds our filter with a program.
///
/// # Errors
/// EEXIST: there is one; else a failed call.
pub(super) fn add(interface: u32, side: Side, program: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let request = filter(interface, side, program, name);
    netlink::change(NETLINK_ROUTE, RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, &request)
}

/// Replaces the program of our filter in one step: every packet meets the old one or the new one.
///
/// # Errors
/// ENOENT: there is none; else a failed call.
pub(super) fn replace(interface: u32, side: Side, program: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    netlink::change(NETLINK_ROUTE, RTM_NEWTFILTER, 0, &filter(interface, side, program, name))
}

/// Removes our filter, if it has this program.
///
/// # Errors
/// A failed call.
pub(super) fn remove(interface: u32, side: Side, program: u32) -> io::Result<()> {
    if !runs(interface, side, program)? {
        return Ok(());
    }
    let mut request = header(interface, HANDLE, side.parent(), place()).to_vec();
    request.extend(attribute(TCA_KIND, b"bpf\0"));
    netlink::act(NETLINK_ROUTE, RTM_DELTFILTER, &request)
}

/// Whether our filter is there with this program; not if the interface is gone.
///
/// # Errors
/// A failed call.
pub(super) fn runs(interface: u32, side: Side, program: u32) -> io::Result<bool> {
    match filters(interface, side) {
        Ok(filters) => Ok(filters.iter().any(|filter| filter.is_at_our_place && filter.id == program)),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether there are filters, of whatever kind, at the priority of ours.
///
/// # Errors
/// A failed call.
pub(super) fn has_first_priority(interface: u32, side: Side) -> io::Result<bool> {
    Ok(filters(interface, side)?.iter().any(|filter| filter.priority == PRIORITY))
}

/// The kind of the qdisc in the place of clsact.
fn qdisc(interface: u32) -> io::Result<Option<String>> {
    let mut found = None;
    netlink::dump(NETLINK_ROUTE, RTM_GETQDISC, &header(interface, 0, 0, 0), |kind, payload| {
        let number = |at: usize| payload.get(at..).and_then(netlink::word);
        if kind == RTM_NEWQDISC && number(4) == Some(interface) && number(12) == Some(TC_H_CLSACT) {
            let attributes = payload.get(HEADER..).unwrap_or_default();
            let kind = NlasIterator::new(attributes).flatten().find(|attribute| attribute.kind() == TCA_KIND);
            found = kind.map(|kind| netlink::text(kind.value()));
        }
    })?;
    Ok(found)
}

/// Priority and protocol of our filters, as `tcm_info` has them.
const fn place() -> u32 {
    (PRIORITY as u32) << 16 | ETH_P_ALL.to_be() as u32
}

/// A `struct tcmsg`.
fn header(interface: u32, handle: u32, parent: u32, info: u32) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[4..8].copy_from_slice(&interface.to_ne_bytes());
    header[8..12].copy_from_slice(&handle.to_ne_bytes());
    header[12..16].copy_from_slice(&parent.to_ne_bytes());
    header[16..20].copy_from_slice(&info.to_ne_bytes());
    header
}

/// Our filter with a program.
fn filter(interface: u32, side: Side, program: BorrowedFd<'_>, name: &str) -> Vec<u8> {
    let options = [
        attribute(TCA_BPF_FD, &program.as_raw_fd().to_ne_bytes()),
        attribute(TCA_BPF_NAME, format!("{name}\0").as_bytes()),
        attribute(TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes()),
    ];
    let mut request = header(interface, HANDLE, side.parent(), place()).to_vec();
    request.extend(attribute(TCA_KIND, b"bpf\0"));
    request.extend(attribute(TCA_OPTIONS, &options.concat()));
    request
}

/// Reads one RTM_NEWTFILTER; `None` for the head of a list, which has no options.
fn parse(payload: &[u8]) -> Option<Filter> {
    let (header, attributes) = payload.split_at_checked(HEADER)?;
    let (mut kind, mut options) = (String::new(), None);
    for attribute in NlasIterator::new(attributes).flatten() {
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
    let number = |at: usize| header.get(at..).and_then(netlink::word);
    let info = number(16)?;
    let is_at_our_place = number(8) == Some(HANDLE) && info == place();
    Some(Filter { kind, name, id, priority: (info >> 16) as u16, is_at_our_place })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(header: &[u8; HEADER], attributes: &[Vec<u8>]) -> Option<Filter> {
        parse(&[header.to_vec(), attributes.concat()].concat())
    }

    #[test]
    fn a_filter_is_read_with_its_program_and_place() {
        let options = [attribute(TCA_BPF_NAME, b"other\0"), attribute(TCA_BPF_ID, &9u32.to_ne_bytes())].concat();
        let found = read(&[0; HEADER], &[attribute(TCA_KIND, b"bpf\0"), attribute(TCA_OPTIONS, &options)]);
        let other = Filter { kind: "bpf".into(), name: "other".into(), id: 9, priority: 0, is_at_our_place: false };
        assert_eq!(found, Some(other.clone()));
        let ours = header(3, HANDLE, Side::Egress.parent(), place());
        let found = read(&ours, &[attribute(TCA_KIND, b"bpf\0"), attribute(TCA_OPTIONS, &options)]);
        assert_eq!(found, Some(Filter { priority: PRIORITY, is_at_our_place: true, ..other }));
        let found = read(&[0; HEADER], &[attribute(TCA_KIND, b"flower\0"), attribute(TCA_OPTIONS, &options)]);
        assert_eq!(
            found,
            Some(Filter { kind: "flower".into(), name: String::new(), id: 0, priority: 0, is_at_our_place: false })
        );
    }

    #[test]
    fn the_head_of_a_list_of_filters_is_no_filter() {
        assert_eq!(read(&[0; HEADER], &[attribute(TCA_KIND, b"bpf\0")]), None);
        assert_eq!(parse(&[0; 3]), None);
    }

    #[test]
    fn the_loopback_device_can_be_asked() {
        assert!(filters(1, Side::Ingress).is_ok());
        assert!(!runs(1, Side::Egress, 0).expect("an answer"));
    }
}
