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
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
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
    /// Type of its hardware addresses, which says what its frames begin with.
    pub(crate) hardware: u16,
    /// Index of the interface that it is a member of.
    pub(crate) master: Option<u32>,
    /// Its kind, such as `bridge` or `veth`; empty for hardware.
    pub(crate) kind: String,
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

impl Interface {
    /// Whether its frames begin with an Ethernet header.
    pub(super) fn has_ethernet(&self) -> bool {
        // include/uapi/linux/if_arp.h
        const ETHER: u16 = 1;
        const LOOPBACK: u16 = 772;
        matches!(self.hardware, ETHER | LOOPBACK)
    }

    /// Whether packets for other hosts go through it: it is a bridge, a bridge's member, or IP forwarding is on for it.
    pub(super) fn forwards(&self, all: &[Self]) -> bool {
        let is_bridge = |interface: &Self| interface.kind == "bridge";
        let is_member = |index| all.iter().any(|other| other.index == index && is_bridge(other));
        is_bridge(self) || self.master.is_some_and(is_member) || self.routes()
    }

    /// Whether it forwards at the level of IP.
    fn routes(&self) -> bool {
        // /proc/sys shows the network namespace of who reads it.
        let is_on = |family: &str| {
            let path = format!("/proc/sys/net/{family}/conf/{}/forwarding", self.name);
            std::fs::read_to_string(path).is_ok_and(|value| value.trim() != "0")
        };
        is_on("ipv4") || is_on("ipv6")
    }
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
    let index = u32::from_ne_bytes(*head.get(4..)?.first_chunk()?);
    let hardware = u16::from_ne_bytes(*head.get(2..)?.first_chunk()?);
    let (mut name, mut program, mut master, mut kind) = (None, None, None, String::new());
    for attribute in NlasIterator::new(attributes) {
        let Ok(attribute) = attribute else { break };
        match attribute.kind() {
            IFLA_IFNAME => name = Some(netlink::text(attribute.value())),
            IFLA_XDP => program = NlasIterator::new(attribute.value()).flatten().find_map(parse_program),
            IFLA_MASTER => master = attribute.value().first_chunk().map(|index| u32::from_ne_bytes(*index)),
            IFLA_LINKINFO => {
                let mut parts = NlasIterator::new(attribute.value()).flatten();
                let found = parts.find(|part| part.kind() == IFLA_INFO_KIND);
                kind = found.map(|part| netlink::text(part.value())).unwrap_or_default();
            }
            _ => {}
        }
    }
    Some(Interface { index, name: name?, program, hardware, master, kind })
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

    fn interface(index: u32, name: &str, program: Option<Program>) -> Interface {
        Interface { index, name: name.to_owned(), program, hardware: 0, master: None, kind: String::new() }
    }

    #[test]
    fn bridges_and_their_members_forward() {
        let bridge = Interface { kind: "bridge".to_owned(), ..interface(3, "absent0", None) };
        let member = Interface { master: Some(3), ..interface(4, "absent1", None) };
        let of_a_bond = Interface { master: Some(5), ..interface(6, "absent2", None) };
        let all = [bridge.clone(), member.clone(), of_a_bond.clone()];
        assert!(bridge.forwards(&all) && member.forwards(&all) && !of_a_bond.forwards(&all));
    }

    #[test]
    fn finds_the_loopback_interface() {
        let interfaces = all().expect("netlink answers");
        let lo = find(&interfaces, "lo").expect("lo exists");
        assert_eq!(lo.index, 1);
    }

    #[test]
    fn names_what_there_is_instead_of_a_missing_interface() {
        let interfaces = [interface(1, "lo", None)];
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
        let wanted = interface(7, "veth", Some(program));
        assert_eq!(parse(&payload), Some(wanted));
    }
}
