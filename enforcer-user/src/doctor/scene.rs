//! A network namespace as it is now: its devices, its sockets, the settings that open further ways, and what is guarded.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::device::{self, Device};
use super::finding::Finding;
use super::redirect::{self, Redirect};
use super::socket::{self, Bound, Unix};
use crate::kernel::Guard;
use crate::sockets::{self, Listener};

/// A network namespace to be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// What the operator calls it.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
}

/// What is there.
#[derive(Clone, Debug, Default)]
pub(super) struct Scene {
    /// `None` for the namespace that the enforcer is run in.
    pub(super) namespace: Option<Namespace>,
    pub(super) devices: Vec<Device>,
    pub(super) listeners: Vec<Listener>,
    pub(super) multipath: Vec<Bound>,
    pub(super) unix: Vec<Unix>,
    pub(super) udp: Vec<Bound>,
    pub(super) redirects: Vec<Redirect>,
    /// Whether the tables of legacy iptables, whose rules nftables does not show, include one that redirects.
    pub(super) legacy_nat: bool,
    /// Names of the devices that take packets to 127.0.0.0/8 from outside.
    pub(super) loopback_routed: Vec<String>,
    /// Whether sockets outside of a VRF take connections from inside.
    pub(super) crosses_vrfs: bool,
    /// Whether the server's side of TCP Fast Open is on.
    pub(super) fast_open: bool,
}

/// What is guarded in a namespace.
#[derive(Clone, Copy, Debug)]
pub(super) enum Guarding<'a> {
    /// What is attached.
    Real(&'a Guard),
    /// What would be, after a start with these interfaces.
    Planned(&'a [String]),
}

impl Guarding<'_> {
    /// Whether packets for `port` that arrive on `device` meet the program.
    pub(super) fn covers(self, device: &Device, port: u16) -> bool {
        match self {
            Self::Real(guard) => guard.ports.contains(&port) && self.is_at(device),
            Self::Planned(interfaces) => interfaces.contains(&device.name),
        }
    }

    /// Whether the program is attached to `device`. An index alone would not do: other namespaces have the same ones.
    pub(super) fn is_at(self, device: &Device) -> bool {
        match self {
            Self::Real(guard) => guard.places.iter().any(|place| {
                place.interface == device.index
                    && (device.program.is_some_and(|program| program.id == place.program)
                        || device.classifiers.contains(&place.program))
            }),
            Self::Planned(interfaces) => interfaces.contains(&device.name),
        }
    }
}

impl Scene {
    /// Looks at the namespace of the calling thread; what cannot be looked at becomes a finding.
    pub(super) fn look(namespace: Option<Namespace>) -> (Self, Vec<Finding>) {
        let mut scene = Self { namespace, ..Self::default() };
        let mut failed = Vec::new();
        let place = scene.place("this namespace");
        let mut note = |check, what, error: io::Error| failed.push(Finding::failed(check, &*place, what, &error));
        match device::all() {
            Ok(devices) => scene.devices = devices,
            Err(error) => note("interfaces", "the interfaces cannot be listed", error),
        }
        match sockets::listeners() {
            Ok(listeners) => scene.listeners = listeners,
            Err(sockets::Error::List(error)) => note("listeners", "the TCP sockets cannot be listed", error),
            Err(error) => note("listeners", "the TCP sockets cannot be listed", io::Error::other(error)),
        }
        match socket::multipath() {
            Ok(multipath) => scene.multipath = multipath,
            Err(error) => note("listeners", "the multipath TCP sockets cannot be listed", error),
        }
        match socket::unix() {
            Ok(unix) => scene.unix = unix,
            Err(error) => note("unix_socket", "the Unix sockets cannot be listed", error),
        }
        match socket::udp() {
            Ok(udp) => scene.udp = udp,
            Err(error) => note("udp_socket", "the UDP sockets cannot be listed", error),
        }
        match redirect::all() {
            Ok(redirects) => scene.redirects = redirects,
            Err(error) => note("redirect", "the firewall's rules cannot be listed", error),
        }
        match redirect::legacy_nat() {
            Ok(there) => scene.legacy_nat = there,
            Err(error) => note("redirect", "the tables of legacy iptables cannot be listed", error),
        }
        let all = setting("net/ipv4/conf/all/route_localnet").unwrap_or(0) != 0;
        let routed = |name: &str| all || setting(&format!("net/ipv4/conf/{name}/route_localnet")).unwrap_or(0) != 0;
        scene.loopback_routed =
            scene.devices.iter().map(|device| device.name.clone()).filter(|name| routed(name)).collect();
        scene.crosses_vrfs = setting("net/ipv4/tcp_l3mdev_accept").unwrap_or(0) != 0;
        scene.fast_open = setting("net/ipv4/tcp_fastopen").unwrap_or(0) & FAST_OPEN_SERVER != 0;
        (scene, failed)
    }

    /// A place of this namespace, in words.
    pub(super) fn place(&self, place: &str) -> String {
        match &self.namespace {
            Some(namespace) => format!("{place} of {}", namespace.name),
            None => place.to_owned(),
        }
    }

    pub(super) fn device(&self, index: u32) -> Option<&Device> {
        self.devices.iter().find(|device| device.index == index)
    }
}

/// Bit of `tcp_fastopen` for servers (`Documentation/networking/ip-sysctl.rst`).
const FAST_OPEN_SERVER: i64 = 2;

/// A number below `/proc/sys`, of the calling thread's namespace; `None` if the kernel has no such setting.
pub(super) fn setting(path: &str) -> Option<i64> {
    fs::read_to_string(format!("/proc/sys/{path}")).ok()?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::doctor::device::{Framing, Lower};
    use crate::kernel::Guarded;
    use crate::kernel::Mode;
    use crate::kernel::interface::{Place, Program};

    /// A device that is up, of this kind, with a program of this id if it is not 0.
    pub(in crate::doctor) fn device(index: u32, name: &str, kind: &str, program: u32) -> Device {
        let framing = if name == "lo" { Framing::Loopback } else { Framing::Ethernet };
        let place = Place::Software(Mode::XdpGeneric);
        Device {
            index,
            name: name.to_owned(),
            up: true,
            framing,
            kind: kind.to_owned(),
            master: None,
            lower: Lower::None,
            program: (program != 0).then_some(Program { id: program, place }),
            classifiers: Vec::new(),
        }
    }

    #[test]
    fn a_pinned_link_guards_the_device_that_has_its_program() {
        let guard = Guard { places: vec![Guarded { interface: 2, program: 7 }], ports: vec![8000], ..Guard::default() };
        let guarding = Guarding::Real(&guard);
        assert!(guarding.covers(&device(2, "eth0", "", 7), 8000));
        assert!(!guarding.covers(&device(2, "eth0", "", 7), 8001), "another port");
        assert!(!guarding.covers(&device(2, "eth0", "", 9), 8000), "another namespace's device of this index");
        assert!(!guarding.covers(&device(3, "eth1", "", 7), 8000), "another device");
        assert!(!guarding.covers(&device(2, "eth0", "", 0), 8000));
    }

    #[test]
    fn a_program_in_traffic_control_guards_the_device_too() {
        let guard = Guard { places: vec![Guarded { interface: 2, program: 7 }], ports: vec![8000], ..Guard::default() };
        let mut device = device(2, "eth0", "", 9);
        device.classifiers = vec![5, 7];
        assert!(Guarding::Real(&guard).is_at(&device));
        device.classifiers = vec![5];
        assert!(!Guarding::Real(&guard).is_at(&device));
    }

    #[test]
    fn this_namespace_can_be_looked_at() {
        let (scene, failed) = Scene::look(None);
        assert!(scene.devices.iter().any(|device| device.name == "lo"));
        assert!(failed.iter().all(|finding| finding.denied), "{failed:?}");
    }
}
