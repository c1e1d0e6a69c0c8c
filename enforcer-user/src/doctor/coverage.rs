//! Which interfaces a listener can be reached through, and which of them are guarded. Pure: all it knows is the scene.
//!
//! Linux takes a packet to any of its addresses on any interface, so a listener on one interface's address is reachable
//! through all of them; only 127.0.0.0/8, ::1 and a socket bound to an interface are exceptions.

use std::net::IpAddr;

use super::device::{Device, Framing, Lower};
use super::finding::{Finding, Level};
use super::process::Processes;
use super::scene::{Guarding, Scene};
use crate::sockets::Listener;

/// Deepest stack of devices that is followed.
const MAX_DEPTH: u32 = 8;

/// How the program stands to the packets that arrive on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Sight {
    /// It meets them there.
    Guarded,
    /// It meets all of them on these devices before.
    Through(String),
    /// It meets them there, and cannot read them.
    Blind,
    /// It does not meet all of them.
    Open(Gap),
}

/// What passes a device unseen.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Gap {
    Everything,
    /// What siblings on the guarded device of this name send.
    Siblings(String),
    /// What comes through these members.
    Members(String),
    /// It may be seen in the namespace of its lower device, and that cannot be told from here.
    Elsewhere,
}

/// Findings on each guarded port that has a listener.
pub(super) fn examine(scene: &Scene, guarding: Guarding<'_>, ports: &[u16], processes: &Processes) -> Vec<Finding> {
    ports.iter().flat_map(|&port| examine_port(scene, guarding, port, processes)).collect()
}

fn examine_port(scene: &Scene, guarding: Guarding<'_>, port: u16, processes: &Processes) -> Vec<Finding> {
    let listeners: Vec<&Listener> = scene.listeners.iter().filter(|listener| listener.address.port() == port).collect();
    let mut findings = Vec::new();
    let mut closed = Vec::new();
    for device in scene.devices.iter().filter(|device| receives(device, scene)) {
        let reached: Vec<&Listener> =
            listeners.iter().copied().filter(|listener| reaches(device, listener, scene)).collect();
        if reached.is_empty() {
            continue;
        }
        match sight(device, scene, guarding, port, MAX_DEPTH) {
            Sight::Guarded => closed.push(device.name.clone()),
            Sight::Through(devices) => closed.push(format!("{} (through {devices})", device.name)),
            Sight::Blind => findings.push(blind(device, &reached, scene, processes)),
            Sight::Open(gap) => findings.push(open(device, &gap, port, &reached, scene, processes)),
        }
    }
    if findings.is_empty() && !listeners.is_empty() {
        let who = who(&listeners, processes);
        let what = format!("{who}, and every way in is guarded: {}", closed.join(", "));
        findings.push(Finding::ok("coverage", scene.place(&format!("port {port}")), what));
    }
    findings
}

/// Whether packets that arrive on the device reach protocols as that device's.
fn receives(device: &Device, scene: &Scene) -> bool {
    let master = device.master.and_then(|index| scene.device(index));
    device.up && !master.is_some_and(Device::takes_over)
}

/// Whether a connection that comes in on `device` can reach the listener.
fn reaches(device: &Device, listener: &Listener, scene: &Scene) -> bool {
    let address = listener.address.ip().to_canonical();
    if listener.interface != 0 {
        // The host's own connections to an address with a scope come over `lo` all the same.
        let is_own = device.is_loopback() && address.is_ipv6();
        return device.index == listener.interface || device.master == Some(listener.interface) || is_own;
    }
    let master = device.master.and_then(|index| scene.device(index));
    let in_vrf = device.is_vrf() || master.is_some_and(Device::is_vrf);
    if in_vrf && !scene.crosses_vrfs {
        return false;
    }
    match address {
        IpAddr::V4(v4) if v4.is_loopback() => device.is_loopback() || scene.loopback_routed.contains(&device.name),
        address if address.is_loopback() => device.is_loopback(),
        _ => true,
    }
}

fn sight(device: &Device, scene: &Scene, guarding: Guarding<'_>, port: u16, depth: u32) -> Sight {
    if guarding.covers(device, port) {
        return if device.framing == Framing::Other { Sight::Blind } else { Sight::Guarded };
    }
    if depth == 0 {
        return Sight::Open(Gap::Everything);
    }
    // The device below, and whether it is seen.
    let below = |index| {
        let lower = scene.device(index)?;
        let seen = match sight(lower, scene, guarding, port, depth - 1) {
            Sight::Guarded => lower.name.clone(),
            Sight::Through(devices) => devices,
            Sight::Blind | Sight::Open(_) => return None,
        };
        Some(seen)
    };
    match device.lower {
        Lower::All(index) => below(index).map_or(Sight::Open(Gap::Everything), Sight::Through),
        Lower::BehindDriver(index)
            if scene.device(index).is_some_and(|lower| guarding.covers(lower, port) && lower.sees_behind_driver()) =>
        {
            below(index).map_or(Sight::Open(Gap::Everything), Sight::Through)
        }
        Lower::BehindDriver(index) | Lower::FromOutside(index) => {
            Sight::Open(below(index).map_or(Gap::Everything, Gap::Siblings))
        }
        Lower::Elsewhere => Sight::Open(Gap::Elsewhere),
        Lower::None if device.is_sum_of_members() => through_members(device, scene, guarding, port, depth),
        Lower::None => Sight::Open(Gap::Everything),
    }
}

fn through_members(device: &Device, scene: &Scene, guarding: Guarding<'_>, port: u16, depth: u32) -> Sight {
    let members = scene.devices.iter().filter(|member| member.up && member.master == Some(device.index));
    let (mut seen, mut unseen) = (Vec::new(), Vec::new());
    for member in members {
        match sight(member, scene, guarding, port, depth - 1) {
            Sight::Guarded => seen.push(member.name.clone()),
            Sight::Through(devices) => seen.push(devices),
            Sight::Blind | Sight::Open(_) => unseen.push(member.name.clone()),
        }
    }
    match (seen.is_empty(), unseen.is_empty()) {
        (true, _) => Sight::Open(Gap::Everything),
        (false, true) => Sight::Through(seen.join(" and ")),
        (false, false) => Sight::Open(Gap::Members(unseen.join(", "))),
    }
}

/// Whose listeners these are, and where they listen: `gunicorn (pid 7) listens on 0.0.0.0:8000`.
pub(super) fn who(listeners: &[&Listener], processes: &Processes) -> String {
    let mut addresses: Vec<String> = listeners.iter().map(|listener| listener.address.to_string()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    let who = processes.describe(listeners.iter().map(|listener| listener.inode.into()));
    format!("{who} listens on {}", addresses.join(" and "))
}

fn open(device: &Device, gap: &Gap, port: u16, reached: &[&Listener], scene: &Scene, processes: &Processes) -> Finding {
    let name = &device.name;
    let what = match gap {
        Gap::Everything if device.is_loopback() => "connections from this host itself are not judged".to_owned(),
        Gap::Everything => format!("what arrives on {}{name} is not judged", article(&device.kind)),
        Gap::Siblings(lower) => format!("{lower} is guarded, but others on {lower} reach {name} past it"),
        Gap::Members(members) => format!("what arrives through {members} is not judged"),
        Gap::Elsewhere => {
            format!("what arrives on {name} is not judged here, whatever its lower device's namespace does")
        }
    };
    let what = format!("{}: {what}", who(reached, processes));
    let next = match &scene.namespace {
        None => format!("guard it too: add --interface {name} to `enforcer run`"),
        Some(namespace) => format!(
            "run an enforcer in it: nsenter --net={} enforcer run --interface {name} --port {port} with its own \
             --state-dir, --socket and --bpffs-dir",
            namespace.path.display()
        ),
    };
    Finding::new(Level::Bypass, "unguarded_interface", scene.place(&format!("{name}, port {port}")), what, next)
}

fn blind(device: &Device, reached: &[&Listener], scene: &Scene, processes: &Processes) -> Finding {
    let name = &device.name;
    let what = format!(
        "{}: {name} carries packets without Ethernet headers, which the program on it cannot read",
        who(reached, processes)
    );
    let next = format!("close the port on {name} with a firewall, or bind the app to other interfaces");
    Finding::new(Level::Bypass, "unreadable_interface", scene.place(name), what, next)
}

/// The kind of a device before its name, for those whose packets no other device shows.
fn article(kind: &str) -> String {
    const TUNNELS: [&str; 13] = [
        "vxlan",
        "geneve",
        "gre",
        "gretap",
        "erspan",
        "ipip",
        "sit",
        "ip6tnl",
        "ip6gre",
        "wireguard",
        "tun",
        "xfrm",
        "vti",
    ];
    if TUNNELS.contains(&kind) { format!("the {kind} tunnel ") } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::process::tests::processes;
    use crate::doctor::scene::Namespace;
    use crate::doctor::scene::tests::device;
    use std::net::SocketAddr;

    fn listener(address: &str) -> Listener {
        let address: SocketAddr = address.parse().expect("an address");
        Listener { address, v6_only: false, interface: 0, inode: 5, uid: 0 }
    }

    fn scene(devices: Vec<Device>, listeners: &[&str]) -> Scene {
        Scene { devices, listeners: listeners.iter().map(|address| listener(address)).collect(), ..Scene::default() }
    }

    fn host() -> Vec<Device> {
        vec![device(1, "lo", "", 0), device(2, "eth0", "", 0)]
    }

    /// (level, place) of all findings with these interfaces guarded.
    fn found(scene: &Scene, guarded: &[&str]) -> Vec<(Level, String)> {
        let guarded: Vec<String> = guarded.iter().map(|&name| name.to_owned()).collect();
        let processes = processes(&[(20, 1, "gunicorn", &[5])]);
        let findings = examine(scene, Guarding::Planned(&guarded), &[8000], &processes);
        findings.into_iter().map(|finding| (finding.level, finding.place)).collect()
    }

    fn open(name: &str) -> (Level, String) {
        (Level::Bypass, format!("{name}, port 8000"))
    }

    fn closed() -> Vec<(Level, String)> {
        vec![(Level::Ok, "port 8000".to_owned())]
    }

    #[test]
    fn a_wildcard_listener_is_reached_through_every_interface_that_is_up() {
        let mut scene = scene(host(), &["0.0.0.0:8000"]);
        assert_eq!(found(&scene, &["eth0"]), [open("lo")]);
        assert_eq!(found(&scene, &[]), [open("lo"), open("eth0")]);
        assert_eq!(found(&scene, &["lo", "eth0"]), closed());
        scene.devices.push(device(3, "eth1", "", 0));
        assert_eq!(found(&scene, &["lo", "eth0"]), [open("eth1")]);
        scene.devices[2].up = false;
        assert_eq!(found(&scene, &["lo", "eth0"]), closed());
    }

    #[test]
    fn an_ipv6_listener_is_reached_as_an_ipv4_one_is() {
        assert_eq!(found(&scene(host(), &["[::]:8000"]), &["eth0"]), [open("lo")]);
        assert_eq!(found(&scene(host(), &["[::1]:8000"]), &["eth0"]), [open("lo")]);
        assert_eq!(found(&scene(host(), &["[::1]:8000"]), &["lo"]), closed());
        assert_eq!(found(&scene(host(), &["[::ffff:127.0.0.1]:8000"]), &["lo"]), closed());
    }

    #[test]
    fn a_loopback_address_needs_lo_alone_unless_its_network_is_routed() {
        let mut scene = scene(host(), &["127.0.0.1:8000"]);
        assert_eq!(found(&scene, &["lo"]), closed());
        assert_eq!(found(&scene, &["eth0"]), [open("lo")]);
        scene.loopback_routed.push("eth0".to_owned());
        assert_eq!(found(&scene, &["lo"]), [open("eth0")]);
    }

    #[test]
    fn an_interfaces_own_address_is_reached_through_all_others_too() {
        let scene = scene(host(), &["10.0.0.1:8000"]);
        assert_eq!(found(&scene, &["eth0"]), [open("lo")]);
    }

    #[test]
    fn a_socket_bound_to_an_interface_is_reached_through_that_alone() {
        let mut scene = scene(host(), &["0.0.0.0:8000"]);
        scene.listeners[0].interface = 2;
        assert_eq!(found(&scene, &["eth0"]), closed());
        assert_eq!(found(&scene, &["lo"]), [open("eth0")]);
        scene.listeners[0].address = "[fe80::1]:8000".parse().expect("an address");
        assert_eq!(found(&scene, &["eth0"]), [open("lo")], "the host's own connections");
    }

    #[test]
    fn other_ports_and_no_listeners_are_nobodys_way_in() {
        assert_eq!(found(&scene(host(), &["0.0.0.0:8001"]), &[]), []);
    }

    #[test]
    fn a_bridge_is_seen_through_all_its_ports_or_by_itself() {
        let port = |index, name: &str| Device { master: Some(4), ..device(index, name, "veth", 0) };
        let devices = vec![device(4, "br0", "bridge", 0), port(5, "p0"), port(6, "p1")];
        let scene = scene(devices, &["10.0.0.1:8000"]);
        assert_eq!(found(&scene, &["br0"]), closed());
        assert_eq!(found(&scene, &["p0", "p1"]), closed());
        assert_eq!(found(&scene, &["p0"]), [open("br0")]);
        assert_eq!(found(&scene, &[]), [open("br0")], "its ports are no ways of their own");
    }

    #[test]
    fn a_vlan_is_seen_on_its_device_and_what_has_siblings_by_itself() {
        let upper = |kind: &str, lower| Device { lower, ..device(7, "up0", kind, 0) };
        let mut devices = host();
        devices.push(upper("vlan", Lower::All(2)));
        assert_eq!(found(&scene(devices.clone(), &["0.0.0.0:8000"]), &["lo", "eth0"]), closed());
        assert_eq!(found(&scene(devices, &["0.0.0.0:8000"]), &["lo"]), [open("eth0"), open("up0")]);
        for lower in [Lower::FromOutside(2), Lower::BehindDriver(2), Lower::Elsewhere] {
            let mut devices = host();
            devices.push(upper("macvlan", lower));
            let scene = scene(devices, &["0.0.0.0:8000"]);
            assert_eq!(found(&scene, &["lo", "eth0"]), [open("up0")], "{lower:?}");
            assert_eq!(found(&scene, &["lo", "eth0", "up0"]), closed(), "{lower:?}");
        }
    }

    #[test]
    fn frames_put_behind_a_driver_are_seen_by_a_program_that_runs_there() {
        for (lower, seen) in [(Lower::BehindDriver(2), true), (Lower::FromOutside(2), false)] {
            // The program of this device runs in the kernel's receive path, not in the driver.
            let mut devices = vec![device(1, "lo", "", 0), device(2, "eth0", "", 7)];
            devices.push(Device { lower, ..device(7, "up0", "macvlan", 0) });
            let scene = scene(devices, &["0.0.0.0:8000"]);
            let expected = if seen { closed() } else { vec![open("up0")] };
            assert_eq!(found(&scene, &["lo", "eth0"]), expected, "{lower:?}");
        }
    }

    #[test]
    fn a_tunnel_is_not_seen_on_the_device_that_carries_it() {
        let mut devices = host();
        devices.push(device(8, "vx0", "vxlan", 0));
        let scene = scene(devices, &["0.0.0.0:8000"]);
        assert_eq!(found(&scene, &["lo", "eth0"]), [open("vx0")]);
    }

    #[test]
    fn a_guard_on_bare_packets_is_none() {
        let mut devices = host();
        devices.push(Device { framing: Framing::Other, ..device(9, "tun0", "tun", 0) });
        let scene = scene(devices, &["0.0.0.0:8000"]);
        assert_eq!(found(&scene, &["lo", "eth0", "tun0"]), [(Level::Bypass, "tun0".to_owned())]);
    }

    #[test]
    fn a_vrf_is_a_way_in_only_where_sockets_cross_it() {
        let mut devices = host();
        devices.push(device(10, "red", "vrf", 0));
        devices.push(Device { master: Some(10), ..device(11, "eth1", "", 0) });
        let mut scene = scene(devices, &["0.0.0.0:8000"]);
        assert_eq!(found(&scene, &["lo", "eth0"]), closed());
        scene.crosses_vrfs = true;
        assert_eq!(found(&scene, &["lo", "eth0"]), [open("red"), open("eth1")]);
        scene.crosses_vrfs = false;
        scene.listeners[0].interface = 10;
        assert_eq!(found(&scene, &[]), [open("red"), open("eth1")]);
    }

    #[test]
    fn devices_that_lie_on_each_other_in_a_circle_end_the_search() {
        let mut devices = vec![device(1, "a", "vlan", 0), device(2, "b", "vlan", 0)];
        devices[0].lower = Lower::All(2);
        devices[1].lower = Lower::All(1);
        assert_eq!(found(&scene(devices, &["0.0.0.0:8000"]), &[]), [open("a"), open("b")]);
    }

    #[test]
    fn says_who_listens_where_and_what_to_do() {
        let mut scene = scene(vec![device(1, "lo", "", 0)], &["0.0.0.0:8000", "[::]:8000"]);
        let processes = processes(&[(20, 1, "gunicorn", &[5]), (21, 20, "gunicorn", &[5])]);
        let examine = |scene: &Scene| examine(scene, Guarding::Planned(&[]), &[8000], &processes).remove(0);
        let finding = examine(&scene);
        assert_eq!(
            finding.what,
            "gunicorn (pid 20 and 1 more) listens on 0.0.0.0:8000 and [::]:8000: connections from this host itself are \
             not judged"
        );
        assert_eq!(finding.next, "guard it too: add --interface lo to `enforcer run`");
        scene.namespace = Some(Namespace { name: "blue".into(), path: "/run/netns/blue".into() });
        let finding = examine(&scene);
        assert_eq!(finding.place, "lo, port 8000 of blue");
        assert!(finding.next.contains("nsenter --net=/run/netns/blue enforcer run --interface lo --port 8000"));
    }
}
