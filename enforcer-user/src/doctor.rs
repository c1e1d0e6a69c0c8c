//! `enforcer doctor`: every way around the hook that can be seen from here, and what the hook needs of the system.
//!
//! It looks and never touches: no packet is sent, nothing is attached, no daemon is asked. What it judges is what is
//! attached, by the pins; where nothing is, what would be after a start. A look that fails is a finding, never silence.
//!
//! # Layout
//! - `finding`: what comes out
//! - `scene`: a network namespace as it is, from `device`, `socket`, `redirect`
//! - `process`: who holds which socket
//! - `coverage`: interfaces against listeners
//! - `sibling`: other doors of the same process
//! - `interface`: others' programs, offloads, stacks; from `program`, `offload`
//! - `system`: kernel and rights
//! - `workers`: how many processes serve on a port, for `enforcer verify`

mod coverage;
mod device;
mod finding;
mod interface;
mod offload;
mod process;
mod program;
mod redirect;
mod scene;
mod sibling;
mod socket;
mod system;
mod workers;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

pub use finding::{Finding, Level};
pub use scene::Namespace;
use serde::{Deserialize, Serialize};
pub use workers::{Workers, workers};

use crate::kernel::{self, Guard};
use crate::sockets;
use process::Processes;
use program::Loaded;
use scene::{Guarding, Scene};

/// What is to be examined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Interfaces that are to be guarded.
    pub interfaces: Vec<String>,
    /// Ports that are to be guarded; those that are guarded already are examined with them.
    pub ports: Vec<u16>,
    /// Network namespaces beside that of the calling thread.
    pub namespaces: Vec<Namespace>,
    /// Where the pins lie, as the operator names it.
    pub bpffs_dir: PathBuf,
    /// The same, as this process reaches it; see [`kernel::reach`].
    pub pins: PathBuf,
}

/// What an examination gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The ports that were examined, in order: those asked for and those guarded.
    pub ports: Vec<u16>,
    /// The network namespaces that were examined, beside that of the command.
    pub namespaces: Vec<String>,
    /// What was found, the worst first.
    pub findings: Vec<Finding>,
}

impl Report {
    /// How many findings there are of a level.
    #[must_use]
    pub fn count(&self, level: Level) -> usize {
        self.findings.iter().filter(|finding| finding.level == level).count()
    }
}

/// Examines what the scope says.
///
/// Blocks for as long as the kernel needs to list its sockets, processes and programs.
#[must_use]
pub fn examine(scope: &Scope) -> Report {
    let mut findings = Vec::new();
    let guard = kernel::guard(&scope.pins).unwrap_or_else(|error| {
        findings.push(system::of_kernel("guard", &scope.bpffs_dir.display().to_string(), &error));
        None
    });
    let ports = ports(scope, guard.as_ref());
    findings.extend(guarded(scope, guard.as_ref()));
    let processes = Processes::survey().unwrap_or_else(|error| {
        findings.push(Finding::failed("processes", "/proc", "the processes cannot be listed", &error));
        Processes::default()
    });
    let loaded = Loaded::list().unwrap_or_else(|error| {
        findings.push(Finding::failed("programs", "kernel", "the loaded programs cannot be listed", &error));
        Loaded::default()
    });
    let attached = guard.as_ref().and_then(|guard| guard.places.first()).map(|place| place.program);
    findings.extend(system::examine(scope, attached.and_then(|program| loaded.is_compiled(program))));
    findings.extend(joining(&loaded));

    let mut scenes = Vec::new();
    let here = guard.as_ref().map_or(Guarding::Planned(&scope.interfaces), Guarding::Real);
    let (scene, found) = look(None, here, &loaded, &ports);
    findings.extend(interface::named(&scene, here, &scope.interfaces));
    findings.extend(found);
    scenes.push(scene);
    // Interfaces that are only planned are those of the namespace that the enforcer is run in.
    let there = guard.as_ref().map_or(Guarding::Planned(&[]), Guarding::Real);
    for namespace in &scope.namespaces {
        let (path, named) = (namespace.path.clone(), Some(namespace.clone()));
        match sockets::within(&path, || look(named, there, &loaded, &ports)) {
            Ok((scene, found)) => {
                findings.extend(found);
                scenes.push(scene);
            }
            Err(error) => findings.push(unreachable(namespace, error)),
        }
    }

    let family = sibling::family(&scenes, &ports, &processes);
    for scene in &scenes {
        let guarding = if scene.namespace.is_none() { here } else { there };
        findings.extend(coverage::examine(scene, guarding, &ports, &processes));
        findings.extend(sibling::examine(scene, &ports, &family, &processes));
    }
    findings.extend(unseen(&scenes, &ports, &processes));
    findings.sort_by(|one, other| (one.level, &one.check, &one.place).cmp(&(other.level, &other.check, &other.place)));
    let namespaces = scope.namespaces.iter().map(|namespace| namespace.name.clone()).collect();
    Report { ports, namespaces, findings }
}

/// A scene, and what can only be asked for within its namespace.
fn look(namespace: Option<Namespace>, guarding: Guarding<'_>, loaded: &Loaded, ports: &[u16]) -> (Scene, Vec<Finding>) {
    let (scene, mut findings) = Scene::look(namespace);
    findings.extend(interface::examine(&scene, guarding, loaded));
    findings.extend(interface::stacked(&scene, guarding));
    findings.extend(redirects(&scene, ports));
    findings.extend(settings(&scene, ports));
    let place = scene.place("this namespace");
    match program::socket_lookup() {
        Ok(ids) if ids.is_empty() => {}
        Ok(ids) => {
            let names: Vec<String> = ids.into_iter().map(|id| loaded.describe(id)).collect();
            let what = format!("{} chooses sockets for connections, whatever port they came to", names.join(", "));
            let next = "see that it gives no connection of another port to the app: bpftool net";
            findings.push(Finding::new(Level::Warning, "socket_lookup", place, what, next));
        }
        Err(error) => findings.push(Finding::failed(
            "socket_lookup",
            place,
            "programs that choose sockets cannot be listed",
            &error,
        )),
    }
    (scene, findings)
}

/// The ports to examine, in order.
fn ports(scope: &Scope, guard: Option<&Guard>) -> Vec<u16> {
    let guarded = guard.map_or(&[][..], |guard| &guard.ports);
    let ports: BTreeSet<u16> = scope.ports.iter().chain(guarded).copied().collect();
    ports.into_iter().collect()
}

/// Findings on what is guarded at all.
fn guarded(scope: &Scope, guard: Option<&Guard>) -> Vec<Finding> {
    let place = scope.bpffs_dir.display().to_string();
    let list = |ports: &[u16]| ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    let Some(guard) = guard else {
        let (what, next) = match scope.interfaces.join(", ") {
            names if names.is_empty() => {
                ("nothing is attached, and no interface is named".to_owned(), "name those to guard with --interface")
            }
            names => (format!("nothing is attached yet: {names} counts as guarded here"), "enforcer run"),
        };
        return vec![Finding::new(Level::Note, "guard", place, what, next)];
    };
    let what = format!("attached to {} interfaces, ports {}", guard.places.len(), list(&guard.ports));
    let mut findings = vec![Finding::ok("guard", place.clone(), what)];
    if !guard.observed.is_empty() {
        let what = format!("requests to {} are counted and never refused", list(&guard.observed));
        findings.push(Finding::new(Level::Warning, "observe", place.clone(), what, "enforcer run --mode enforce"));
    }
    findings.extend(connections(guard, &place));
    findings
}

/// Findings on whether open connections can be counted.
fn connections(guard: &Guard, place: &str) -> Vec<Finding> {
    let ports = guard.bounded.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    let mut findings = Vec::new();
    if !guard.follows {
        let bounds = if ports.is_empty() { String::new() } else { format!(", and those of ports {ports} are bounded") };
        let what = format!("no program is told of connections that begin and end{bounds}");
        findings.push(Finding::new(Level::Warning, "connections", place, what, "enforcer run"));
    }
    if !guard.forwarding.is_empty() && !guard.bounded.is_empty() {
        let what = format!(
            "connections to ports {ports} of servers behind this host are not bounded, and {} carries such",
            guard.forwarding.join(", ")
        );
        let next = "guard them where their servers run, or turn forwarding off";
        findings.push(Finding::new(Level::Warning, "connections", place, what, next));
    }
    findings
}

fn joining(loaded: &Loaded) -> Option<Finding> {
    let ids = loaded.joining_sockets();
    if ids.is_empty() {
        return None;
    }
    let names: Vec<String> = ids.into_iter().map(|id| loaded.describe(id)).collect();
    let what = format!("{} can join sockets of this host to each other, past every interface", names.join(", "));
    let next = "see that it leaves the app's sockets alone: bpftool prog, bpftool map";
    Some(Finding::new(Level::Warning, "socket_map", "kernel", what, next))
}

/// Findings on firewall rules that bring packets to guarded ports.
fn redirects(scene: &Scene, ports: &[u16]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for redirect in &scene.redirects {
        let place = scene.place(&format!("table {}, chain {}", redirect.table, redirect.chain));
        let leads: Vec<(u16, Option<bool>)> =
            ports.iter().map(|&port| (port, redirect.leads_to(port, ports))).collect();
        let next = "guard the port that it redirects from instead, or remove it: nft list ruleset";
        if let Some((port, _)) = leads.iter().find(|(_, leads)| *leads == Some(true)) {
            let from = redirect.from.map_or("another port".to_owned(), |from| format!("port {from}"));
            let what = format!("a firewall rule brings packets for {from} to port {port}, past the guard");
            findings.push(Finding::new(Level::Bypass, "redirect", place, what, next));
        } else if leads.iter().any(|(_, leads)| leads.is_none()) {
            let what = "a firewall rule redirects packets, and may bring others to a guarded port";
            findings.push(Finding::new(Level::Warning, "redirect", place, what, next));
        }
    }
    findings.dedup();
    if scene.legacy_nat {
        let what = "legacy iptables has a table whose rules may redirect packets, and they cannot be read here";
        let next = "see that none brings another port to a guarded one: iptables-legacy-save, ip6tables-legacy-save";
        findings.push(Finding::new(Level::Note, "redirect", scene.place("legacy iptables"), what, next));
    }
    findings
}

/// Findings on settings of the namespace's TCP.
fn settings(scene: &Scene, ports: &[u16]) -> Option<Finding> {
    let serves = scene.listeners.iter().any(|listener| ports.contains(&listener.address.port()));
    if !scene.fast_open || !serves {
        return None;
    }
    let what = "TCP Fast Open is on for servers: clients that use it are refused, since data in a SYN is not judged";
    let next = "sysctl net.ipv4.tcp_fastopen=1";
    Some(Finding::new(Level::Warning, "fast_open", scene.place("net.ipv4.tcp_fastopen"), what, next))
}

/// Findings on ports without a listener, and on listeners whose processes cannot be seen.
fn unseen(scenes: &[Scene], ports: &[u16], processes: &Processes) -> Vec<Finding> {
    let listeners = || scenes.iter().flat_map(|scene| &scene.listeners);
    let mut findings = Vec::new();
    for &port in ports {
        let place = format!("port {port}");
        let mut on_port = listeners().filter(|listener| listener.address.port() == port).peekable();
        if on_port.peek().is_none() {
            let what = "nothing listens on it here";
            let next = "start the app, or name its namespace with --netns";
            findings.push(Finding::new(Level::Note, "no_listener", place, what, next));
        } else if on_port.any(|listener| processes.holders(listener.inode.into()).is_empty()) {
            let what = format!(
                "a process that listens on it cannot be seen ({} processes cannot be looked into), so its other sockets \
                 are not known",
                processes.hidden
            );
            let denied = processes.hidden > 0;
            let (level, next) = if denied {
                (Level::Error, "run it as root")
            } else {
                (Level::Warning, "run it outside of the container, where all processes are seen")
            };
            findings.push(Finding { denied, ..Finding::new(level, "processes", place, what, next) });
        }
    }
    findings
}

fn unreachable(namespace: &Namespace, error: sockets::Error) -> Finding {
    let place = namespace.path.display().to_string();
    match error {
        sockets::Error::Namespace { source, .. } => {
            Finding::failed("namespace", place, "this network namespace cannot be entered", &source)
        }
        error => Finding::failed("namespace", place, "it cannot be examined", &std::io::Error::other(error)),
    }
}

impl Namespace {
    /// A namespace as an operator names it: by its name for `ip netns`, or by its file.
    #[must_use]
    pub fn named(name: &str) -> Self {
        let path = if name.contains('/') { PathBuf::from(name) } else { Path::new("/run/netns").join(name) };
        Self { name: name.to_owned(), path }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::process::tests::processes;
    use crate::doctor::redirect::{Redirect, Target};
    use crate::sockets::Listener;

    fn scope(interfaces: &[&str], ports: &[u16]) -> Scope {
        let interfaces = interfaces.iter().map(|&name| name.to_owned()).collect();
        let bpffs_dir = PathBuf::from("/sys/fs/bpf/absent");
        Scope { interfaces, ports: ports.to_vec(), namespaces: Vec::new(), pins: bpffs_dir.clone(), bpffs_dir }
    }

    fn listening(port: u16) -> Scene {
        let address = std::net::SocketAddr::from(([0, 0, 0, 0], port));
        let listeners = vec![Listener { address, v6_only: false, interface: 0, inode: 5, uid: 0 }];
        Scene { listeners, ..Scene::default() }
    }

    fn levels(findings: &[Finding]) -> Vec<(Level, &str)> {
        findings.iter().map(|finding| (finding.level, finding.check.as_str())).collect()
    }

    #[test]
    fn guarded_ports_are_examined_with_those_that_are_asked_for() {
        let guard = Guard { ports: vec![8000, 8001], ..Guard::default() };
        assert_eq!(ports(&scope(&[], &[9000, 8001]), Some(&guard)), [8000, 8001, 9000]);
        assert_eq!(ports(&scope(&[], &[9000]), None), [9000]);
    }

    #[test]
    fn says_whether_anything_is_attached_and_whether_it_only_observes() {
        let found = guarded(&scope(&["lo"], &[]), None);
        assert_eq!(levels(&found), [(Level::Note, "guard")]);
        assert!(found[0].what.contains("lo counts as guarded"));
        let mut guard = Guard { ports: vec![8000], follows: true, ..Guard::default() };
        assert_eq!(levels(&guarded(&scope(&[], &[]), Some(&guard))), [(Level::Ok, "guard")]);
        guard.observed = vec![8000];
        let found = guarded(&scope(&[], &[]), Some(&guard));
        assert_eq!(levels(&found), [(Level::Ok, "guard"), (Level::Warning, "observe")]);
    }

    #[test]
    fn says_where_open_connections_are_not_counted() {
        let mut guard = Guard { ports: vec![8000], follows: true, forwarding: vec!["br0".into()], ..Guard::default() };
        assert_eq!(connections(&guard, "pins"), []);
        guard.bounded = vec![8000];
        let found = connections(&guard, "pins");
        assert_eq!(levels(&found), [(Level::Warning, "connections")]);
        assert!(found[0].what.contains("br0"), "{found:?}");
        guard.forwarding.clear();
        guard.follows = false;
        let found = connections(&guard, "pins");
        assert!(levels(&found) == [(Level::Warning, "connections")] && found[0].what.contains("8000"), "{found:?}");
    }

    #[test]
    fn a_rule_that_brings_another_port_is_a_way_past_and_one_that_is_not_understood_a_warning() {
        let scene = |from, to| {
            let redirect = Redirect { table: "t".into(), chain: "c".into(), from, to };
            Scene { redirects: vec![redirect], ..Scene::default() }
        };
        let found = |from, to| redirects(&scene(from, to), &[8000]);
        let past = found(Some(80), Target::Port(8000));
        assert_eq!(levels(&past), [(Level::Bypass, "redirect")]);
        assert_eq!(past[0].place, "table t, chain c");
        assert_eq!(levels(&found(None, Target::Unknown)), [(Level::Warning, "redirect")]);
        assert_eq!(found(None, Target::Port(9000)), []);
        let legacy = Scene { legacy_nat: true, ..Scene::default() };
        assert_eq!(levels(&redirects(&legacy, &[8000])), [(Level::Note, "redirect")]);
    }

    #[test]
    fn fast_open_matters_where_a_guarded_port_is_served() {
        let mut scene = listening(8000);
        assert_eq!(settings(&scene, &[8000]), None);
        scene.fast_open = true;
        assert_eq!(settings(&scene, &[8000]).map(|finding| finding.level), Some(Level::Warning));
        assert_eq!(settings(&scene, &[8001]), None);
    }

    #[test]
    fn a_port_without_a_listener_is_noted_and_a_listener_without_a_process_is_not_passed_over() {
        let known = processes(&[(20, 1, "gunicorn", &[5])]);
        assert_eq!(levels(&unseen(&[listening(8000)], &[8000], &known)), []);
        assert_eq!(levels(&unseen(&[listening(8001)], &[8000], &known)), [(Level::Note, "no_listener")]);
        let mut unknown = processes(&[]);
        assert_eq!(levels(&unseen(&[listening(8000)], &[8000], &unknown)), [(Level::Warning, "processes")]);
        unknown.hidden = 3;
        let found = unseen(&[listening(8000)], &[8000], &unknown);
        assert_eq!(levels(&found), [(Level::Error, "processes")]);
        assert!(found[0].denied);
    }

    #[test]
    fn namespaces_are_named_as_ip_names_them_or_by_their_files() {
        assert_eq!(Namespace::named("blue").path, Path::new("/run/netns/blue"));
        assert_eq!(Namespace::named("/proc/7/ns/net").path, Path::new("/proc/7/ns/net"));
    }

    #[test]
    fn a_namespace_that_is_not_there_is_an_error() {
        let mut scope = scope(&["lo"], &[8000]);
        scope.namespaces.push(Namespace::named("/nonexistent/ns"));
        let found = examine(&scope).findings;
        let of = |check: &str| found.iter().filter(|finding| finding.check == check).count();
        assert_eq!((of("namespace"), of("kernel")), (1, 1), "{found:?}");
        assert!(found.is_sorted_by_key(|finding| finding.level));
    }
}
