//! The network devices of a namespace, and how they lie on each other.

use std::io;

use netlink_packet_core::NlasIterator;

use crate::kernel::Mode;
use crate::kernel::classifier::{self, Side};
use crate::kernel::interface::{self, HEADER, Interface, Place, Program};
use crate::netlink;

// include/uapi/linux/{if,if_arp,if_link}.h
const IFF_UP: u32 = 1;
const ARPHRD_ETHER: u16 = 1;
const ARPHRD_LOOPBACK: u16 = 772;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_MACVLAN_MODE: u16 = 1;
const MACVLAN_MODE_BRIDGE: u32 = 4;
const IFLA_IPVLAN_FLAGS: u16 = 2;
const IPVLAN_F_PRIVATE_OR_VEPA: u8 = 3;

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) up: bool,
    pub(super) framing: Framing,
    /// What it is, as `ip -d link` says it: `veth`, `bridge`, …; empty for hardware and `lo`.
    pub(super) kind: String,
    /// Index of the bridge, bond or VRF that it belongs to.
    pub(super) master: Option<u32>,
    /// Whether its frames come through another device, which meets them first.
    pub(super) lower: Lower,
    /// The XDP program on it.
    pub(super) program: Option<Program>,
    /// Ids of the programs that traffic control runs on what arrives.
    pub(super) classifiers: Vec<u32>,
}

/// What its packets begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Ethernet,
    Loopback,
    /// Anything else, mostly bare IP packets.
    Other,
}

/// The device below, for kinds that take their frames unchanged from one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lower {
    None,
    /// All frames come through the device with this index.
    All(u32),
    /// Frames from outside come through the device with this index; those of its siblings are put behind its driver.
    BehindDriver(u32),
    /// Frames from outside come through the device with this index; those of its siblings do not.
    FromOutside(u32),
    /// It lies in another network namespace.
    Elsewhere,
}

impl Device {
    pub(super) fn is_loopback(&self) -> bool {
        self.framing == Framing::Loopback
    }

    /// Whether its program also meets frames that others put behind its driver.
    pub(super) fn sees_behind_driver(&self) -> bool {
        self.program.is_some_and(|program| program.place == Place::Software(Mode::XdpGeneric))
    }

    pub(super) fn is_vrf(&self) -> bool {
        self.kind == "vrf"
    }

    /// Whether it takes the frames of its members as its own, before any protocol sees them.
    pub(super) fn takes_over(&self) -> bool {
        matches!(self.kind.as_str(), "bridge" | "bond" | "team" | "openvswitch")
    }

    /// Whether its members' frames are all that it receives from outside.
    pub(super) fn is_sum_of_members(&self) -> bool {
        matches!(self.kind.as_str(), "bridge" | "bond" | "team")
    }
}

/// The devices of this network namespace.
///
/// # Errors
/// A failed call.
pub(super) fn all() -> io::Result<Vec<Device>> {
    let mut devices = Vec::new();
    interface::list(|payload| devices.extend(parse(payload)))?;
    for device in &mut devices {
        device.classifiers = classifiers(device.index)?;
    }
    Ok(devices)
}

/// Ids of the programs that traffic control runs on what arrives at an interface; none if it is gone by now.
fn classifiers(interface: u32) -> io::Result<Vec<u32>> {
    match classifier::programs(interface, Side::Ingress) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(Vec::new()),
        // Who may not list programs is told so where the programs of others are looked for.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(Vec::new()),
        found => found,
    }
}

/// Reads the payload of one RTM_NEWLINK; `None` for one that is cut short or has no name.
fn parse(payload: &[u8]) -> Option<Device> {
    let Interface { index, name, program, .. } = interface::parse(payload)?;
    let (head, attributes) = payload.split_at_checked(HEADER)?;
    let framing = match u16::from_ne_bytes(*head.get(2..)?.first_chunk()?) {
        ARPHRD_ETHER => Framing::Ethernet,
        ARPHRD_LOOPBACK => Framing::Loopback,
        _ => Framing::Other,
    };
    let up = netlink::word(head.get(8..)?)? & IFF_UP != 0;
    let (mut kind, mut siblings_meet) = (String::new(), true);
    let (mut master, mut below, mut elsewhere) = (None, None, false);
    for attribute in NlasIterator::new(attributes) {
        let Ok(attribute) = attribute else { break };
        match attribute.kind() {
            IFLA_LINK => below = netlink::word(attribute.value()),
            IFLA_LINK_NETNSID => elsewhere = true,
            IFLA_MASTER => master = netlink::word(attribute.value()),
            IFLA_LINKINFO => (kind, siblings_meet) = parse_kind(attribute.value()),
            _ => {}
        }
    }
    let lower = match (kind.as_str(), below) {
        ("vlan" | "macvlan" | "macvtap" | "ipvlan" | "ipvtap", Some(_)) if elsewhere => Lower::Elsewhere,
        ("vlan", Some(below)) => Lower::All(below),
        // macvlan_queue_xmit sends to the lower device's receive path, ipvlan_xmit_mode_l2 and _l3 to the sibling.
        ("macvlan" | "macvtap", Some(below)) if siblings_meet => Lower::BehindDriver(below),
        ("ipvlan" | "ipvtap", Some(below)) if siblings_meet => Lower::FromOutside(below),
        ("macvlan" | "macvtap" | "ipvlan" | "ipvtap", Some(below)) => Lower::All(below),
        _ => Lower::None,
    };
    Some(Device { index, name, up, framing, kind, master, lower, program, classifiers: Vec::new() })
}

/// Reads an IFLA_LINKINFO: the kind, and whether siblings on one lower device reach each other past it.
fn parse_kind(value: &[u8]) -> (String, bool) {
    let (mut kind, mut data) = (String::new(), Vec::new());
    for attribute in NlasIterator::new(value).flatten() {
        match attribute.kind() {
            IFLA_INFO_KIND => kind = netlink::text(attribute.value()),
            IFLA_INFO_DATA => data = attribute.value().to_vec(),
            _ => {}
        }
    }
    let find = |wanted| NlasIterator::new(&data[..]).flatten().find(|attribute| attribute.kind() == wanted);
    let siblings_meet = match kind.as_str() {
        "macvlan" | "macvtap" => {
            find(IFLA_MACVLAN_MODE).and_then(|mode| netlink::word(mode.value())) == Some(MACVLAN_MODE_BRIDGE)
        }
        "ipvlan" | "ipvtap" => find(IFLA_IPVLAN_FLAGS)
            .and_then(|flags| flags.value().first().copied())
            .is_none_or(|flags| flags & IPVLAN_F_PRIVATE_OR_VEPA == 0),
        _ => true,
    };
    (kind, siblings_meet)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::attribute;

    const IFLA_IFNAME: u16 = 3;

    fn link(hardware: u16, flags: u32, attributes: &[(u16, &[u8])]) -> Device {
        let mut payload = vec![0u8; HEADER];
        payload[2..4].copy_from_slice(&hardware.to_ne_bytes());
        payload[4..8].copy_from_slice(&7u32.to_ne_bytes());
        payload[8..12].copy_from_slice(&flags.to_ne_bytes());
        payload.extend(attribute(IFLA_IFNAME, b"dev0\0"));
        for (kind, value) in attributes {
            payload.extend(attribute(*kind, value));
        }
        parse(&payload).expect("a device")
    }

    fn info(kind: &str, data: &[u8]) -> Vec<u8> {
        [attribute(IFLA_INFO_KIND, kind.as_bytes()), attribute(IFLA_INFO_DATA, data)].concat()
    }

    #[test]
    fn this_machine_has_a_loopback_device() {
        let devices = all().expect("netlink answers");
        let lo = devices.iter().find(|device| device.name == "lo").expect("lo exists");
        assert!(lo.is_loopback() && lo.lower == Lower::None && lo.master.is_none(), "{lo:?}");
    }

    #[test]
    fn tells_ethernet_from_bare_packets_and_up_from_down() {
        let eth = link(ARPHRD_ETHER, IFF_UP, &[]);
        assert_eq!((eth.index, eth.name.as_str(), eth.framing, eth.up), (7, "dev0", Framing::Ethernet, true));
        const ARPHRD_NONE: u16 = 0xfffe;
        let tun = link(ARPHRD_NONE, 0, &[(IFLA_LINKINFO, &info("tun", &[]))]);
        assert_eq!((tun.kind.as_str(), tun.framing, tun.up), ("tun", Framing::Other, false));
    }

    #[test]
    fn a_vlan_lies_on_its_device_and_a_macvlan_only_for_what_comes_from_outside() {
        let below = 3u32.to_ne_bytes();
        let lower = |kind: &str, data: &[u8], more: &[(u16, &[u8])]| {
            let info = info(kind, data);
            link(ARPHRD_ETHER, IFF_UP, &[&[(IFLA_LINK, &below[..]), (IFLA_LINKINFO, &info)], more].concat()).lower
        };
        assert_eq!(lower("vlan", &[], &[]), Lower::All(3));
        let mode = |mode: u32| attribute(IFLA_MACVLAN_MODE, &mode.to_ne_bytes());
        assert_eq!(lower("macvlan", &mode(MACVLAN_MODE_BRIDGE), &[]), Lower::BehindDriver(3));
        assert_eq!(lower("macvlan", &mode(2), &[]), Lower::All(3));
        let flags = |flags: u16| attribute(IFLA_IPVLAN_FLAGS, &flags.to_ne_bytes());
        assert_eq!(lower("ipvlan", &flags(0), &[]), Lower::FromOutside(3));
        assert_eq!(lower("ipvlan", &flags(1), &[]), Lower::All(3));
        assert_eq!(lower("vlan", &[], &[(IFLA_LINK_NETNSID, &[0; 4])]), Lower::Elsewhere);
    }

    #[test]
    fn the_peer_of_a_veth_and_the_carrier_of_a_tunnel_are_no_lower_devices() {
        for kind in ["veth", "vxlan", "gre"] {
            let device =
                link(ARPHRD_ETHER, IFF_UP, &[(IFLA_LINK, &3u32.to_ne_bytes()), (IFLA_LINKINFO, &info(kind, &[]))]);
            assert_eq!(device.lower, Lower::None, "{kind}");
        }
    }

    #[test]
    fn a_member_knows_its_master() {
        assert_eq!(link(ARPHRD_ETHER, IFF_UP, &[(IFLA_MASTER, &9u32.to_ne_bytes())]).master, Some(9));
    }
}
