//! The network interfaces of this namespace and the XDP programs on them, asked over netlink.
//!
//! Only the attributes that matter are read, so that one which a newer kernel adds or changes cannot get in the way.
//! `/sys/class/net` would not do: it shows the namespace that mounted /sys.

use std::{fmt, io};

use netlink_packet_core::{NlaBuffer, NlasIterator};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::{Error, Mode};
use crate::netlink;

// include/uapi/linux/{rtnetlink,if_link}.h
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_DRV_PROG_ID: u16 = 5;
const IFLA_XDP_SKB_PROG_ID: u16 = 6;
const IFLA_XDP_HW_PROG_ID: u16 = 7;
/// Size of `struct ifinfomsg`.
pub(crate) const HEADER: usize = 16;

/// Names shown when one is not found.
const SHOWN: usize = 8;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// The XDP program on it.
    pub(crate) program: Option<Program>,
    /// Whether it is a bridge, or belongs to one.
    pub(crate) is_bridged: bool,
    /// Whether its frames begin with an Ethernet header.
    pub(crate) has_ethernet: bool,
}

/// An XDP program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) id: u32,
    pub(crate) place: Place,
}

/// Where an interface runs a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Software(Mode),
    Hardware,
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Software(mode) => mode.fmt(formatter),
            Self::Hardware => formatter.write_str("offloaded to the card"),
        }
    }
}

/// All interfaces of this network namespace.
pub(super) fn all() -> Result<Vec<Interface>, Error> {
    dump().map_err(|source| Error::Call { action: "list the network interfaces", source })
}

/// The interface with this name.
pub(super) fn find<'a>(interfaces: &'a [Interface], name: &str) -> Result<&'a Interface, Error> {
    interfaces.iter().find(|interface| interface.name == name).ok_or_else(|| {
        let mut present: Vec<&str> = interfaces.iter().take(SHOWN).map(|interface| interface.name.as_str()).collect();
        if interfaces.len() > SHOWN {
            present.push("more");
        }
        Error::NoInterface { name: name.to_owned(), present: present.join(", ") }
    })
}

fn dump() -> io::Result<Vec<Interface>> {
    let mut interfaces = Vec::new();
    list(|payload| interfaces.extend(parse(payload)))?;
    Ok(interfaces)
}

/// Gives the payload of the RTM_NEWLINK of each interface of this network namespace to `each`.
pub(crate) fn list(mut each: impl FnMut(&[u8])) -> io::Result<()> {
    netlink::dump(NETLINK_ROUTE, RTM_GETLINK, &[0; HEADER], |kind, payload| {
        if kind == RTM_NEWLINK {
            each(payload);
        }
    })
}

/// Reads the payload of one RTM_NEWLINK; `None` for one without a name.
pub(crate) fn parse(payload: &[u8]) -> Option<Interface> {
    let (head, attributes) = payload.split_at_checked(HEADER)?;
    // include/uapi/linux/if_arp.h
    const ETHER: u16 = 1;
    const LOOPBACK: u16 = 772;
    let index = u32::from_ne_bytes(*head.get(4..)?.first_chunk()?);
    let hardware = u16::from_ne_bytes(*head.get(2..)?.first_chunk()?);
    let mut name = None;
    let (mut program, mut is_bridged) = (None, false);
    for attribute in NlasIterator::new(attributes) {
        let Ok(attribute) = attribute else { break };
        match attribute.kind() {
            IFLA_IFNAME => name = Some(netlink::text(attribute.value())),
            IFLA_XDP => program = NlasIterator::new(attribute.value()).flatten().find_map(parse_program),
            IFLA_LINKINFO => is_bridged = NlasIterator::new(attribute.value()).flatten().any(names_bridge),
            _ => {}
        }
    }
    Some(Interface { index, name: name?, program, is_bridged, has_ethernet: matches!(hardware, ETHER | LOOPBACK) })
}

/// Whether a part of an IFLA_LINKINFO says that the interface, or what it belongs to, is a bridge.
fn names_bridge(attribute: NlaBuffer<&[u8]>) -> bool {
    matches!(attribute.kind(), IFLA_INFO_KIND | IFLA_INFO_SLAVE_KIND) && netlink::text(attribute.value()) == "bridge"
}

fn parse_program(attribute: NlaBuffer<&[u8]>) -> Option<Program> {
    let place = match attribute.kind() {
        IFLA_XDP_DRV_PROG_ID => Place::Software(Mode::XdpNative),
        IFLA_XDP_SKB_PROG_ID => Place::Software(Mode::XdpGeneric),
        IFLA_XDP_HW_PROG_ID => Place::Hardware,
        _ => return None,
    };
    let id = u32::from_ne_bytes(*attribute.value().first_chunk()?);
    (id != 0).then_some(Program { id, place })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_loopback_interface() {
        let interfaces = all().expect("netlink answers");
        let lo = find(&interfaces, "lo").expect("lo exists");
        assert_eq!(lo.index, 1);
    }

    #[test]
    fn names_what_there_is_instead_of_a_missing_interface() {
        let interfaces =
            [Interface { index: 1, name: "lo".to_owned(), program: None, is_bridged: false, has_ethernet: false }];
        let error = find(&interfaces, "eth9").expect_err("it does not exist");
        assert_eq!(error.to_string(), "there is no interface `eth9` here; there are lo");
        assert_eq!(error.exit_code(), 12);
    }

    #[test]
    fn reads_name_index_and_program() {
        let mut payload = vec![0u8; HEADER];
        payload[4..8].copy_from_slice(&7u32.to_ne_bytes());
        payload.extend([9, 0, 3, 0]);
        payload.extend(b"veth\0\0\0\0");
        payload.extend([12, 0, 43, 0, 8, 0, 6, 0]);
        payload.extend(42u32.to_ne_bytes());
        let program = Program { id: 42, place: Place::Software(Mode::XdpGeneric) };
        let wanted = Interface {
            index: 7,
            name: "veth".to_owned(),
            program: Some(program),
            is_bridged: false,
            has_ethernet: false,
        };
        assert_eq!(parse(&payload), Some(wanted.clone()));
        for kind in [IFLA_INFO_KIND, IFLA_INFO_SLAVE_KIND] {
            let info = netlink::attribute(IFLA_LINKINFO, &netlink::attribute(kind, b"bridge\0"));
            let wanted = Interface { is_bridged: true, ..wanted.clone() };
            assert_eq!(parse(&[&payload[..], &info].concat()), Some(wanted));
        }
    }
}
