//! Other doors of the process that serves a guarded port, behind which it may serve the same application.

use std::collections::BTreeSet;

use super::finding::{Finding, Level};
use super::process::Processes;
use super::scene::Scene;

/// File names of sockets on which a server takes commands, not requests.
const CONTROL_SOCKETS: [&str; 1] = ["gunicorn.ctl"];

/// The processes behind the listeners of guarded ports, their masters and their workers.
pub(super) fn family(scenes: &[Scene], ports: &[u16], processes: &Processes) -> BTreeSet<u32> {
    let listeners = scenes.iter().flat_map(|scene| &scene.listeners);
    let guarded = listeners.filter(|listener| ports.contains(&listener.address.port()));
    processes.family(&guarded.flat_map(|listener| processes.holders(listener.inode.into())).collect())
}

/// Findings on the sockets of a namespace that are the family's, or that share a guarded port.
pub(super) fn examine(scene: &Scene, ports: &[u16], family: &BTreeSet<u32>, processes: &Processes) -> Vec<Finding> {
    let is_family = |inode: u64| !family.is_disjoint(&processes.holders(inode));
    let who = |inode: u64| processes.describe([inode]);
    let mut findings = Vec::new();
    for listener in &scene.listeners {
        let inode = listener.inode.into();
        if !ports.contains(&listener.address.port()) && is_family(inode) {
            let what = format!("{}, which serves a guarded port, also listens on {}", who(inode), listener.address);
            let next =
                format!("guard it too: --port {}; or do not let it serve the app there", listener.address.port());
            let place = format!("port {}", listener.address.port());
            findings.push(Finding::new(Level::Bypass, "other_port", scene.place(&place), what, next));
        }
    }
    for bound in scene.multipath.iter().filter(|bound| ports.contains(&bound.address.port())) {
        let what = format!(
            "{} listens on {} with multipath TCP: a client can spread a request over several connections, which are \
             judged one by one",
            who(bound.inode),
            bound.address
        );
        let next = "turn it off: sysctl net.mptcp.enabled=0, or in the server (GODEBUG=multipathtcp=0 for Go), and \
                    restart the server";
        let place = format!("port {}", bound.address.port());
        findings.push(Finding::new(Level::Bypass, "multipath", scene.place(&place), what, next));
    }
    for unix in scene.unix.iter().filter(|unix| is_family(unix.inode)) {
        findings.push(on_unix(&unix.path, &who(unix.inode), scene));
    }
    for bound in scene.udp.iter().filter(|bound| ports.contains(&bound.address.port())) {
        let place = scene.place(&format!("UDP port {}", bound.address.port()));
        let who = who(bound.inode);
        findings.push(if is_family(bound.inode) {
            let what = format!("{who} also takes UDP on {}: requests over HTTP/3 are not judged", bound.address);
            let next = "turn HTTP/3 off in the server, or close the UDP port with a firewall";
            Finding::new(Level::Bypass, "udp_socket", place, what, next)
        } else {
            let what = format!("{who} takes UDP on {}, which is not judged", bound.address);
            Finding::new(Level::Note, "udp_socket", place, what, "close it with a firewall if it leads to the app")
        });
    }
    findings
}

fn on_unix(path: &str, who: &str, scene: &Scene) -> Finding {
    let is_control = path.rsplit('/').next().is_some_and(|name| CONTROL_SOCKETS.contains(&name));
    let place = scene.place(if path.is_empty() { "an unnamed Unix socket" } else { path });
    if is_control {
        let what = format!("{who} takes commands on a Unix socket, which by its name serves no requests");
        return Finding::new(Level::Note, "unix_socket", place, what, "see that only its own user may open it");
    }
    let what = format!("{who}, which serves a guarded port, also listens on a Unix socket, which no packet reaches");
    let next = "do not let it serve the app there; a proxy before it (nginx) must pass requests to the guarded port";
    Finding::new(Level::Bypass, "unix_socket", place, what, next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::process::tests::processes;
    use crate::doctor::socket::{Bound, Unix};
    use crate::sockets::Listener;

    fn listener(address: &str, inode: u32) -> Listener {
        let address = address.parse().expect("an address");
        Listener { address, v6_only: false, interface: 0, inode, uid: 0 }
    }

    fn bound(address: &str, inode: u64) -> Bound {
        Bound { address: address.parse().expect("an address"), inode }
    }

    /// A master with a worker on port 8000 (socket 5), and another program.
    fn found(scene: Scene) -> Vec<(Level, String, String)> {
        let processes =
            processes(&[(20, 1, "gunicorn", &[5, 6]), (21, 20, "gunicorn", &[5, 7]), (30, 1, "redis", &[8])]);
        let scenes = [Scene { listeners: [vec![listener("0.0.0.0:8000", 5)], scene.listeners].concat(), ..scene }];
        let family = family(&scenes, &[8000], &processes);
        let findings = examine(&scenes[0], &[8000], &family, &processes);
        findings.into_iter().map(|finding| (finding.level, finding.check, finding.place)).collect()
    }

    fn one(level: Level, check: &str, place: &str) -> Vec<(Level, String, String)> {
        vec![(level, check.to_owned(), place.to_owned())]
    }

    #[test]
    fn another_port_of_the_same_process_is_a_way_past() {
        let scene = |inode| Scene { listeners: vec![listener("127.0.0.1:9000", inode)], ..Scene::default() };
        assert_eq!(found(scene(6)), one(Level::Bypass, "other_port", "port 9000"));
        assert_eq!(found(scene(7)), one(Level::Bypass, "other_port", "port 9000"), "a worker's own");
        assert_eq!(found(scene(8)), [], "another program's");
        assert_eq!(found(Scene::default()), []);
    }

    #[test]
    fn a_unix_socket_of_the_same_process_is_a_way_past_unless_it_takes_commands() {
        let scene = |path: &str, inode| Scene { unix: vec![Unix { path: path.into(), inode }], ..Scene::default() };
        assert_eq!(found(scene("/run/app.sock", 6)), one(Level::Bypass, "unix_socket", "/run/app.sock"));
        assert_eq!(found(scene("", 6)), one(Level::Bypass, "unix_socket", "an unnamed Unix socket"));
        assert_eq!(found(scene("/run/app.sock", 8)), []);
        assert_eq!(found(scene("/run/gunicorn.ctl", 6)), one(Level::Note, "unix_socket", "/run/gunicorn.ctl"));
    }

    #[test]
    fn udp_on_a_guarded_port_is_a_way_past_if_it_is_the_same_processs() {
        let scene = |address, inode| Scene { udp: vec![bound(address, inode)], ..Scene::default() };
        assert_eq!(found(scene("0.0.0.0:8000", 6)), one(Level::Bypass, "udp_socket", "UDP port 8000"));
        assert_eq!(found(scene("0.0.0.0:8000", 8)), one(Level::Note, "udp_socket", "UDP port 8000"));
        assert_eq!(found(scene("0.0.0.0:53", 6)), []);
    }

    #[test]
    fn a_multipath_listener_is_a_way_past() {
        let scene = |address| Scene { multipath: vec![bound(address, 5)], ..Scene::default() };
        assert_eq!(found(scene("0.0.0.0:8000")), one(Level::Bypass, "multipath", "port 8000"));
        assert_eq!(found(scene("0.0.0.0:8001")), []);
    }
}
