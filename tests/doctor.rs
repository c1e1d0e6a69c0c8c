//! `enforcer doctor` in real namespaces: each way around the guard is there, is used, and is named; closed, it is not.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use enforcer_tests::client::{self, Ending, exchange, get};
use enforcer_tests::enforcer::{self, Enforcer, Ran};
use enforcer_tests::folder;
use enforcer_tests::netns::{Link, Namespace, Way};
use enforcer_tests::origin::venv;
use enforcer_tests::process::{self, Process, wait_for};
use enforcer_tests::program::{Kind, Program};
use serde_json::Value;
use tempfile::TempDir;

const PORT: u16 = 8000;

/// A gunicorn with one worker, on any number of addresses.
struct App {
    process: Process,
    folder: TempDir,
}

impl App {
    /// Starts it in `namespace`, bound as gunicorn's `--bind` takes it; the first is an address and a port.
    fn start(namespace: &Namespace, binds: &[&str]) -> Result<Self> {
        let temporary = tempfile::tempdir()?;
        let mut command = namespace.command(venv("gunicorn")?);
        for bind in binds {
            command.args(["--bind", bind]);
        }
        command.args(["--workers", "1", "--graceful-timeout", "1", "--log-level", "warning"]);
        command.args(["--no-control-socket", "--chdir"]).arg(folder().join("apps")).arg("plain:app");
        command.env("EXECUTION_LOG", temporary.path().join("executed")).env("PYTHONDONTWRITEBYTECODE", "1");
        fs::write(temporary.path().join("executed"), "")?;
        let mut process = Process::start(command, &temporary.path().join("output"))?;
        let mut address: SocketAddr = binds.first().context("no address")?.parse()?;
        if address.ip().is_unspecified() {
            address.set_ip(IpAddr::from([127, 0, 0, 1]));
        }
        wait_for("gunicorn", || {
            if let Some(status) = process.ended()? {
                bail!("gunicorn ended with {status}: {}", process.output());
            }
            let up = process.children().len() == 1
                && namespace.run(|| Ok(TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()))?;
            Ok(up.then_some(()))
        })?;
        Ok(Self { process, folder: temporary })
    }

    /// How many requests it has executed.
    fn executed(&self) -> Result<usize> {
        Ok(fs::read_to_string(self.folder.path().join("executed"))?.lines().count())
    }

    /// Sends a keyless request from `namespace` and says whether the app executed it.
    fn is_reached(&self, namespace: &Namespace, address: SocketAddr) -> Result<bool> {
        let before = self.executed()?;
        let ending = namespace.run(|| exchange(address, &get("/", None)))?;
        let executed = self.executed()? > before;
        ensure!(executed == (ending == Ending::Answered(200)), "executed: {executed}, but it ended as {ending:?}");
        Ok(executed)
    }
}

/// A process that only opens sockets.
fn doors(namespace: &Namespace, sockets: &[&str], folder: &Path) -> Result<Process> {
    let mut command = namespace.command(venv("python")?);
    command.arg(enforcer_tests::folder().join("apps/doors.py")).args(sockets);
    let mut process = Process::start(command, &folder.join("doors"))?;
    wait_for("the sockets to open", || {
        ensure!(process.ended()?.is_none(), "doors.py ended: {}", process.output());
        Ok(process.output().lines().any(|line| line == "open").then_some(()))
    })?;
    Ok(process)
}

/// What an examination said.
struct Said {
    ran: Ran,
    findings: Vec<Value>,
}

impl Said {
    fn read(ran: Ran) -> Result<Self> {
        let answer: Value =
            serde_json::from_str(&ran.stdout).with_context(|| format!("{}: {}", ran.stdout, ran.stderr))?;
        ensure!(answer["schema"] == "v1", "no envelope: {answer}");
        let findings = answer["findings"].as_array().context("no findings")?.clone();
        for finding in &findings {
            for field in ["level", "check", "what", "where", "next"] {
                ensure!(finding[field].is_string(), "no {field}: {finding}");
            }
            ensure!(finding["level"] == "ok" || finding["next"] != "", "nothing to do next: {finding}");
        }
        Ok(Self { ran, findings })
    }

    fn of(enforcer: &Enforcer<'_>, arguments: &[&str]) -> Result<Self> {
        if !enforcer.folder().join("enforcer.toml").exists() {
            enforcer.configure("")?;
        }
        Self::read(enforcer.run(&[&["doctor", "-o", "json"], arguments].concat())?)
    }

    /// The places of all findings of a level and kind, in order.
    fn places(&self, level: &str, check: &str) -> Vec<&str> {
        let wanted = self.findings.iter().filter(|one| one["level"] == level && one["check"] == check);
        wanted.filter_map(|finding| finding["where"].as_str()).collect()
    }

    fn bypasses(&self) -> Vec<(&str, &str)> {
        let bypasses = self.findings.iter().filter(|finding| finding["level"] == "bypass");
        bypasses.filter_map(|one| Some((one["check"].as_str()?, one["where"].as_str()?))).collect()
    }

    /// Exactly these bypasses, as (check, where), and the exit code that goes with them.
    fn expect(&self, bypasses: &[(&str, &str)]) -> Result<()> {
        ensure!(self.bypasses() == bypasses, "{:?} instead of {bypasses:?}: {:#?}", self.bypasses(), self.findings);
        let code = if bypasses.is_empty() { 0 } else { 3 };
        let Ran { code: ended, stderr, .. } = &self.ran;
        ensure!(*ended == code, "ended with {ended} instead of {code}: {stderr} {:#?}", self.findings);
        Ok(())
    }

    /// The one finding of this kind at this place.
    fn finding(&self, check: &str, place: &str) -> Result<&Value> {
        let found = self.findings.iter().find(|finding| finding["check"] == check && finding["where"] == place);
        found.with_context(|| format!("no {check} at {place}: {:#?}", self.findings))
    }
}

fn veth() -> Result<Link> {
    Link::new(Way::VethNative)
}

/// An enforcer on these interfaces and ports, in the mode that every interface can.
fn guard<'a>(link: &'a Link, interfaces: &str, ports: &str) -> Result<Enforcer<'a>> {
    guard_by(link, interfaces, ports, "xdp-generic")
}

fn guard_by<'a>(link: &'a Link, interfaces: &str, ports: &str, hook: &str) -> Result<Enforcer<'a>> {
    let arguments = ["--interface", interfaces, "--port", ports, "--hook", hook, "--metrics", "off"];
    let mut enforcer = Enforcer::new(&link.server, &arguments)?;
    enforcer.start()?;
    Ok(enforcer)
}

fn at(ip: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(ip.into(), port)
}

/// Writes a setting of a namespace, named by its path below `/proc/sys`.
fn set(namespace: &Namespace, setting: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/{setting}");
    namespace.run(|| fs::write(&path, value).with_context(|| format!("writing {path}")))
}

/// A second pair of interfaces between the two sides: `srv1` with 10.78.0.1, `cli1` with 10.78.0.2.
fn second_nic(link: &Link) -> Result<()> {
    let (server, client) = (&link.server, link.client());
    server.ip(&["link", "add", "srv1", "type", "veth", "peer", "name", "cli1", "netns", client.name()])?;
    for (namespace, interface, address) in [(server, "srv1", "10.78.0.1/24"), (client, "cli1", "10.78.0.2/24")] {
        namespace.ip(&["address", "add", address, "dev", interface])?;
        namespace.ip(&["link", "set", interface, "up"])?;
    }
    Ok(())
}

#[test]
fn an_unguarded_lo_is_named_and_so_it_is_at_the_start() -> Result<()> {
    let link = veth()?;
    let app = App::start(&link.server, &["0.0.0.0:8000"])?;
    let enforcer = guard(&link, &link.interface, "8000")?;
    ensure!(app.is_reached(&link.server, at([127, 0, 0, 1], PORT))?, "lo is no way in");
    ensure!(!app.is_reached(link.client(), at(link.v4, PORT))?, "the guard does not hold");
    let said = Said::of(&enforcer, &[])?;
    said.expect(&[("unguarded_interface", "lo, port 8000")])?;
    ensure!(said.ran.stderr.trim() == "error: there is a way around the guard", "{}", said.ran.stderr);
    let what = said.finding("unguarded_interface", "lo, port 8000")?["what"].to_string();
    let who = format!("gunicorn (pid {} and 1 more) listens on 0.0.0.0:8000", app.process.id());
    ensure!(what.contains(&who), "{what} does not name {who}");
    wait_for("the warning in the daemon's log", || {
        Ok(enforcer.log()?.contains("a way around the guard: lo, port 8000: gunicorn").then_some(()))
    })?;
    let table = enforcer.run(&["doctor"])?;
    let first = table.stdout.lines().nth(1).unwrap_or_default();
    ensure!(table.code == 3 && first.starts_with("BYPASS  lo, port 8000"), "{}: {}", table.code, table.stdout);
    Ok(())
}

#[test]
fn with_every_interface_guarded_there_is_no_way_around() -> Result<()> {
    let link = veth()?;
    let app = App::start(&link.server, &["[::]:8000"])?;
    let enforcer = guard(&link, "srv0,lo", "8000")?;
    for address in [at([127, 0, 0, 1], PORT), at(link.v4, PORT), at(link.v6, PORT)] {
        ensure!(!app.is_reached(&link.server, address)?, "{address} reaches the app");
    }
    let said = Said::of(&enforcer, &[])?;
    said.expect(&[])?;
    let what = said.finding("coverage", "port 8000")?["what"].to_string();
    ensure!(what.contains("listens on [::]:8000") && what.contains("lo, srv0"), "{what}");
    ensure!(said.places("ok", "guard").len() == 1);
    ensure!(!enforcer.log()?.contains("a way around the guard"), "{}", enforcer.log()?);
    Ok(())
}

#[test]
fn what_would_be_guarded_is_judged_before_anything_is_attached() -> Result<()> {
    let link = veth()?;
    let app = App::start(&link.server, &["[::]:8000"])?;
    let enforcer = Enforcer::new(&link.server, &[])?;
    Said::of(&enforcer, &["--interface", "srv0", "--port", "8000"])?
        .expect(&[("unguarded_interface", "lo, port 8000")])?;
    Said::of(&enforcer, &["--interface", "srv0,lo", "--port", "8000"])?.expect(&[])?;
    enforcer.configure("interfaces = [\"lo\"]\nports = [8000]\n")?;
    let said = Said::of(&enforcer, &[])?;
    said.expect(&[("unguarded_interface", "srv0, port 8000")])?;
    ensure!(said.places("note", "guard").len() == 1, "it does not say that nothing is attached");
    ensure!(app.executed()? == 0, "something was sent to the app");
    ensure!(enforcer.pinned()?.is_empty(), "something was pinned");
    Ok(())
}

#[test]
fn a_port_that_the_attached_program_does_not_guard_is_open_everywhere() -> Result<()> {
    let link = veth()?;
    let _app = App::start(&link.server, &["0.0.0.0:8000"])?;
    let enforcer = guard(&link, "srv0,lo", "8001")?;
    let ways = [("unguarded_interface", "lo, port 8000"), ("unguarded_interface", "srv0, port 8000")];
    let said = Said::of(&enforcer, &["--port", "8000"])?;
    said.expect(&ways)?;
    ensure!(said.places("note", "no_listener") == ["port 8001"], "{:?}", said.findings);
    Ok(())
}

#[test]
fn a_second_nic_is_a_way_to_every_address() -> Result<()> {
    let link = veth()?;
    second_nic(&link)?;
    // Bound to the first interface's address; Linux takes packets to it on the second all the same.
    let app = App::start(&link.server, &["10.77.0.1:8000"])?;
    let mut enforcer = guard(&link, "srv0,lo", "8000")?;
    link.client().ip(&["route", "replace", "10.77.0.1/32", "via", "10.78.0.1"])?;
    ensure!(app.is_reached(link.client(), at(link.v4, PORT))?, "the second interface is no way in");
    Said::of(&enforcer, &[])?.expect(&[("unguarded_interface", "srv1, port 8000")])?;
    enforcer.stop(nix::sys::signal::Signal::SIGTERM)?;
    drop(enforcer);
    let enforcer = guard(&link, "srv0,lo,srv1", "8000")?;
    ensure!(!app.is_reached(link.client(), at(link.v4, PORT))?, "the guard does not hold");
    Said::of(&enforcer, &[])?.expect(&[])?;
    link.server.ip(&["link", "set", "srv1", "down"])?;
    let said = Said::of(&enforcer, &["--interface", "srv1,srv9"])?;
    said.expect(&[])?;
    ensure!(said.places("warning", "down_interface") == ["srv1"], "{:?}", said.findings);
    ensure!(said.places("warning", "missing_interface") == ["srv9"], "{:?}", said.findings);
    Ok(())
}

#[test]
fn a_loopback_listener_needs_lo_alone_until_its_network_is_routed() -> Result<()> {
    let link = veth()?;
    let app = App::start(&link.server, &["127.0.0.1:8000"])?;
    let enforcer = guard(&link, "lo", "8000")?;
    Said::of(&enforcer, &[])?.expect(&[])?;
    set(&link.server, "net/ipv4/conf/srv0/route_localnet", "1")?;
    Said::of(&enforcer, &[])?.expect(&[("unguarded_interface", "srv0, port 8000")])?;
    let client = link.client();
    client.ip(&["address", "del", "127.0.0.1/8", "dev", "lo"])?;
    client.ip(&["route", "add", "127.0.0.1/32", "via", "10.77.0.1", "src", "10.77.0.2"])?;
    set(client, "net/ipv4/conf/cli0/route_localnet", "1")?;
    ensure!(app.is_reached(client, at([127, 0, 0, 1], PORT))?, "routing 127.0.0.1 is no way in");
    Ok(())
}

#[test]
fn a_unix_socket_of_the_app_is_named() -> Result<()> {
    let link = veth()?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("app.sock").display().to_string();
    let app = App::start(&link.server, &["0.0.0.0:8000", &format!("unix:{path}")])?;
    let enforcer = guard(&link, "srv0,lo", "8000")?;
    let status = client::curl(&link.server, &["--unix-socket", &path, "http://app/"])?;
    ensure!(status == 200 && app.executed()? == 1, "the Unix socket is no way in: {status}");
    Said::of(&enforcer, &[])?.expect(&[("unix_socket", &path)])?;
    Ok(())
}

#[test]
fn another_port_of_the_app_is_named_until_it_is_guarded_too() -> Result<()> {
    let link = veth()?;
    let app = App::start(&link.server, &["0.0.0.0:8000", "127.0.0.1:9000"])?;
    let folder = tempfile::tempdir()?;
    // Another program's ports are no ways to the app.
    let _other = doors(&link.server, &["tcp:0.0.0.0:9001", "udp:0.0.0.0:9001"], folder.path())?;
    let enforcer = guard(&link, "srv0,lo", "8000")?;
    ensure!(app.is_reached(&link.server, at([127, 0, 0, 1], 9000))?, "the other port is no way in");
    Said::of(&enforcer, &[])?.expect(&[("other_port", "port 9000")])?;
    drop(enforcer);
    let enforcer = guard(&link, "srv0,lo", "8000,9000")?;
    ensure!(!app.is_reached(&link.server, at([127, 0, 0, 1], 9000))?, "the guard does not hold");
    Said::of(&enforcer, &[])?.expect(&[])
}

#[test]
fn udp_and_multipath_on_the_guarded_port_are_named() -> Result<()> {
    let link = veth()?;
    let folder = tempfile::tempdir()?;
    let enforcer = guard(&link, "srv0,lo", "8000,8001")?;
    let mut app = doors(&link.server, &["tcp:0.0.0.0:8000", "udp:0.0.0.0:8000", "mptcp:0.0.0.0:8001"], folder.path())?;
    Said::of(&enforcer, &[])?.expect(&[("multipath", "port 8001"), ("udp_socket", "UDP port 8000")])?;
    app.end();
    let said = Said::of(&enforcer, &[])?;
    said.expect(&[])?;
    ensure!(said.places("note", "no_listener") == ["port 8000", "port 8001"], "{:?}", said.findings);
    Ok(())
}

#[test]
fn a_listener_bound_to_an_interface_needs_that_alone() -> Result<()> {
    let link = veth()?;
    second_nic(&link)?;
    let folder = tempfile::tempdir()?;
    let _app = doors(&link.server, &["dev:srv0:0.0.0.0:8000"], folder.path())?;
    let enforcer = guard(&link, "srv0", "8000")?;
    Said::of(&enforcer, &[])?.expect(&[])
}

#[test]
fn another_namespace_is_examined_by_its_name_or_its_file() -> Result<()> {
    let link = veth()?;
    let _app = App::start(&link.server, &["0.0.0.0:8000"])?;
    let enforcer = guard(&link, &link.interface, "8000")?;
    let examine = |arguments: &[&str]| {
        let mut command = link.client().command(enforcer::binary()?);
        command.env("ENFORCER_BPFFS_DIR", enforcer.bpffs_dir()).args(["doctor", "-o", "json"]).args(arguments);
        Said::read(command.output()?.into())
    };
    let name = link.server.name();
    let path = format!("/run/netns/{name}");
    for namespace in [name, &path] {
        let place = format!("lo, port 8000 of {namespace}");
        let said = examine(&["--netns", namespace])?;
        said.expect(&[("unguarded_interface", &place)])?;
        let next = said.finding("unguarded_interface", &place)?["next"].to_string();
        ensure!(next.contains(&format!("nsenter --net={path} ")), "{next}");
    }
    // Without it, only the namespace of the command is looked at.
    let said = examine(&[])?;
    said.expect(&[])?;
    ensure!(said.places("note", "no_listener") == ["port 8000"], "{:?}", said.findings);
    let said = examine(&["--netns", "absent"])?;
    ensure!(said.ran.code == 1 && said.places("error", "namespace") == ["/run/netns/absent"], "{:?}", said.findings);
    Ok(())
}

#[test]
fn another_namespaces_interface_of_the_same_number_is_not_taken_for_guarded() -> Result<()> {
    let link = veth()?;
    let enforcer = guard(&link, "srv0", "8000")?;
    let index = |namespace: &Namespace, name: &str| namespace.run(|| Ok(nix::net::if_::if_nametoindex(name)?));
    let (guarded, other) = (index(&link.server, "srv0")?, index(link.client(), "cli0")?);
    ensure!(guarded == other, "the pair has the numbers {guarded} and {other}: this shows nothing");
    let folder = tempfile::tempdir()?;
    let _app = doors(link.client(), &["tcp:10.77.0.2:8000"], folder.path())?;
    let name = link.client().name();
    let ways = [format!("cli0, port 8000 of {name}"), format!("lo, port 8000 of {name}")];
    let said = Said::of(&enforcer, &["--netns", name])?;
    said.expect(&[("unguarded_interface", &ways[0]), ("unguarded_interface", &ways[1])])
}

#[test]
fn programs_of_others_are_named_wherever_they_are_attached() -> Result<()> {
    let link = veth()?;
    second_nic(&link)?;
    let folder = tempfile::tempdir()?;
    let _app = doors(&link.server, &["dev:srv0:0.0.0.0:8000"], folder.path())?;
    let enforcer = guard(&link, "srv0", "8000")?;
    Said::of(&enforcer, &[])?.expect(&[])?;
    // Beside the guard on its own interface, and in its place on another.
    let index = |name: &str| link.server.run(|| Ok(nix::net::if_::if_nametoindex(name)?));
    let (first, second) = (index("srv0")?, index("srv1")?);
    let mut programs = [
        (Program::load(Kind::Xdp, "others_xdp")?, second),
        (Program::load(Kind::Tcx, "others_tcx")?, first),
        (Program::load(Kind::SocketLookup, "others_lookup")?, 0),
    ];
    link.server.run(|| {
        for (program, target) in &mut programs {
            let namespace = fs::File::open("/proc/thread-self/ns/net")?;
            let descriptor = std::os::fd::AsRawFd::as_raw_fd(&namespace).cast_unsigned();
            program.attach(if *target == 0 { descriptor } else { *target })?;
        }
        Ok(())
    })?;
    let _message = Program::load(Kind::SocketMessage, "others_message")?;
    process::run(link.server.command("tc").args(["qdisc", "add", "dev", "srv0", "clsact"]))?;
    let filter = ["filter", "add", "dev", "srv0", "ingress", "bpf", "bytecode", "1,6 0 0 0,"];
    process::run(link.server.command("tc").args(filter))?;
    let said = Said::of(&enforcer, &[])?;
    said.expect(&[])?;
    for (check, place, words) in [
        ("xdp_program", "srv1", &["others_xdp"][..]),
        ("tc_program", "srv0", &["others_tcx", "a bpf filter"]),
        ("socket_lookup", "this namespace", &["others_lookup"]),
        ("socket_map", "kernel", &["others_message"]),
    ] {
        let finding = said.finding(check, place)?;
        ensure!(finding["level"] == "warning", "{finding}");
        let what = finding["what"].to_string();
        ensure!(words.iter().all(|word| what.contains(word)), "{what} names no {words:?}");
    }
    ensure!(
        !said.findings.iter().any(|finding| finding["what"].to_string().contains("enforcer_xdp")),
        "it warns of itself"
    );
    Ok(())
}

#[test]
fn another_enforcers_program_is_no_guard_of_this_one() -> Result<()> {
    let link = veth()?;
    let _app = App::start(&link.server, &["10.77.0.1:8000"])?;
    let enforcer = guard(&link, "lo", "8000")?;
    let _other = guard(&link, "srv0", "9999")?;
    let said = Said::of(&enforcer, &[])?;
    said.expect(&[("unguarded_interface", "srv0, port 8000")])?;
    ensure!(said.finding("xdp_program", "srv0")?["what"].to_string().contains("enforcer_xdp"));
    Ok(())
}

#[test]
fn a_firewall_rule_that_brings_another_port_is_named_until_that_is_guarded() -> Result<()> {
    let link = veth()?;
    let app = App::start(&link.server, &["0.0.0.0:8000"])?;
    let rules =
        "table ip web { chain in { type nat hook prerouting priority dstnat; tcp dport 80 redirect to :8000; }; }";
    process::run(link.server.command("nft").arg(rules))?;
    let enforcer = guard(&link, "srv0,lo", "8000")?;
    ensure!(app.is_reached(link.client(), at(link.v4, 80))?, "the rule is no way in");
    let said = Said::of(&enforcer, &[])?;
    said.expect(&[("redirect", "table web, chain in")])?;
    let what = said.finding("redirect", "table web, chain in")?["what"].to_string();
    ensure!(what.contains("port 80 to port 8000"), "{what}");
    drop(enforcer);
    let enforcer = guard(&link, "srv0,lo", "8000,80")?;
    ensure!(!app.is_reached(link.client(), at(link.v4, 80))?, "the guard does not hold");
    Said::of(&enforcer, &[])?.expect(&[])
}

#[test]
fn devices_on_devices_are_followed_to_where_the_program_is() -> Result<()> {
    let link = veth()?;
    let server = &link.server;
    // Two siblings on the link's interface, of which one is another host's.
    server.ip(&["link", "add", "mv0", "link", "srv0", "type", "macvlan", "mode", "bridge"])?;
    server.ip(&["link", "add", "mv1", "link", "srv0", "type", "macvlan", "mode", "bridge"])?;
    let sibling = Namespace::new()?;
    server.ip(&["link", "set", "mv1", "netns", sibling.name()])?;
    for (namespace, interface, address) in [(server, "mv0", "10.79.0.1/24"), (&sibling, "mv1", "10.79.0.2/24")] {
        namespace.ip(&["address", "add", address, "dev", interface])?;
        namespace.ip(&["link", "set", interface, "up"])?;
    }
    let app = App::start(server, &["0.0.0.0:8000"])?;
    // What a sibling sends comes to srv0 behind its driver, and so past a program in the driver.
    let enforcer = guard_by(&link, "srv0,lo", "8000", "auto")?;
    ensure!(app.is_reached(&sibling, at([10, 79, 0, 1], PORT))?, "the sibling has no way in");
    let said = Said::of(&enforcer, &[])?;
    said.expect(&[("unguarded_interface", "mv0, port 8000")])?;
    let what = said.finding("unguarded_interface", "mv0, port 8000")?["what"].to_string();
    ensure!(what.contains("srv0 is guarded, but others on srv0 reach mv0 past it"), "{what}");
    drop(enforcer);
    for (interfaces, hook) in [("srv0,lo", "xdp-generic"), ("srv0,lo,mv0", "auto")] {
        let enforcer = guard_by(&link, interfaces, "8000", hook)?;
        ensure!(!app.is_reached(&sibling, at([10, 79, 0, 1], PORT))?, "{interfaces}, {hook}: the guard does not hold");
        Said::of(&enforcer, &[])?.expect(&[])?;
    }

    server.ip(&["link", "del", "mv0"])?;
    sibling.ip(&["link", "del", "mv1"])?;
    server.ip(&["link", "add", "br0", "type", "bridge"])?;
    server.ip(&["address", "flush", "dev", "srv0"])?;
    server.ip(&["link", "set", "srv0", "master", "br0"])?;
    server.ip(&["address", "add", "10.77.0.1/24", "dev", "br0"])?;
    server.ip(&["link", "set", "br0", "up"])?;
    let enforcer = guard(&link, "lo", "8000")?;
    wait_for("the bridge to forward", || {
        Ok(app.is_reached(link.client(), at(link.v4, PORT)).unwrap_or(false).then_some(()))
    })?;
    Said::of(&enforcer, &[])?.expect(&[("unguarded_interface", "br0, port 8000")])?;
    drop(enforcer);
    for interfaces in ["lo,br0", "lo,srv0"] {
        let enforcer = guard(&link, interfaces, "8000")?;
        ensure!(!app.is_reached(link.client(), at(link.v4, PORT))?, "{interfaces}: the guard does not hold");
        let said = Said::of(&enforcer, &[])?;
        said.expect(&[])?;
        let members = said.places("warning", "members");
        ensure!(members.is_empty() == interfaces.contains("br0"), "{interfaces}: {members:?}");
    }
    Ok(())
}

#[test]
fn an_interface_of_bare_packets_is_refused_and_named_as_none() -> Result<()> {
    let link = veth()?;
    link.server.ip(&["tuntap", "add", "tun0", "mode", "tun"])?;
    link.server.ip(&["address", "add", "10.80.0.1/24", "dev", "tun0"])?;
    link.server.ip(&["link", "set", "tun0", "up"])?;
    let folder = tempfile::tempdir()?;
    let _app = doors(&link.server, &["tcp:0.0.0.0:8000"], folder.path())?;
    let arguments = ["--interface", "srv0,lo,tun0", "--port", "8000"];
    let enforcer = Enforcer::new(&link.server, &arguments)?;
    let ran = enforcer.fail_to_start(&[])?;
    ensure!(ran.code == 15 && ran.stderr.contains("without Ethernet headers"), "{}: {}", ran.code, ran.stderr);
    Said::of(&enforcer, &arguments)?.expect(&[("unreadable_interface", "tun0")])
}

#[test]
fn the_servers_side_of_fast_open_and_an_observing_guard_are_warned_of() -> Result<()> {
    let link = Link::new(Way::LoopbackGeneric)?;
    let folder = tempfile::tempdir()?;
    let _app = doors(&link.server, &["tcp:127.0.0.1:8000"], folder.path())?;
    let enforcer = Enforcer::guard(&link, PORT, &["--mode", "observe"])?;
    let said = Said::of(&enforcer, &[])?;
    said.expect(&[])?;
    ensure!(said.places("warning", "observe").len() == 1 && said.places("warning", "fast_open").is_empty());
    set(&link.server, "net/ipv4/tcp_fastopen", "3")?;
    let said = Said::of(&enforcer, &[])?;
    ensure!(said.places("warning", "fast_open") == ["net.ipv4.tcp_fastopen"], "{:?}", said.findings);
    Ok(())
}

#[test]
fn what_may_not_be_looked_at_is_said_and_ends_with_5() -> Result<()> {
    let link = Link::new(Way::LoopbackGeneric)?;
    let folder = tempfile::tempdir()?;
    let _app = doors(&link.server, &["tcp:127.0.0.1:8000"], folder.path())?;
    let mut command = link.server.command("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all", "--"]);
    // The binary may lie where that user cannot go.
    let binary = folder.path().join("enforcer");
    fs::copy(enforcer::binary()?, &binary)?;
    process::run(Command::new("chmod").args(["-R", "a+rx"]).arg(folder.path()))?;
    command.arg(&binary).args(["doctor", "--interface", "lo", "--port", "8000", "-o", "json"]);
    command.env_remove("ENFORCER_CONFIG").current_dir("/");
    let said = Said::read(command.output()?.into())?;
    ensure!(said.ran.code == 5, "ended with {}: {}", said.ran.code, said.ran.stderr);
    for check in ["rights", "processes", "programs"] {
        let denied =
            said.findings.iter().any(|one| one["check"] == check && one["level"] == "error" && one["denied"] == true);
        ensure!(denied, "nothing is said of {check}: {:#?}", said.findings);
    }
    Ok(())
}

#[test]
fn with_nothing_to_examine_it_says_how_to_name_a_port() -> Result<()> {
    let link = Link::new(Way::LoopbackGeneric)?;
    let enforcer = Enforcer::new(&link.server, &[])?;
    enforcer.configure("")?;
    let ran = enforcer.run(&["doctor"])?;
    ensure!(ran.code == 2 && ran.stderr.contains("--port N"), "{}: {}", ran.code, ran.stderr);
    enforcer.configure("ports = [0]\n")?;
    let ran = enforcer.run(&["doctor"])?;
    ensure!(ran.code == 2 && ran.stderr.contains("enforcer.toml:1:10"), "{}: {}", ran.code, ran.stderr);
    Ok(())
}
