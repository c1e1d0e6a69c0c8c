//! A proxy that says where its connections come from by the PROXY protocol, before an app that reads what it says: HAProxy
//! and gunicorn, of both versions.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use enforcer_tests::client::{Connection, Ending};
use enforcer_tests::enforcer::Enforcer;
use enforcer_tests::netns::Way;
use enforcer_tests::origin::{Origin, Server, Workers};
use enforcer_tests::process::{PATIENCE, Process, wait_for};
use tempfile::TempDir;

use crate::site::{Endings, PORT, Site, add_key, apply, keyed, random_key, refused, request, statuses, v4, v6};

/// Where the proxy is, among the clients.
const PROXY: u16 = 1;

/// A version of the protocol.
struct Version {
    /// What a policy and gunicorn call it.
    name: &'static str,
    /// HAProxy's option.
    option: &'static str,
    /// A header that tells this IPv4 address.
    header: fn([u8; 4]) -> Vec<u8>,
}

const VERSIONS: [Version; 2] = [
    Version {
        name: "v1",
        option: "send-proxy",
        header: |[a, b, c, d]| format!("PROXY TCP4 {a}.{b}.{c}.{d} 10.77.0.1 4000 8000\r\n").into_bytes(),
    },
    Version {
        name: "v2",
        option: "send-proxy-v2",
        header: |source| {
            [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..], &source, &[10, 77, 0, 1, 15, 160, 31, 64]].concat()
        },
    },
];

/// A running HAProxy.
struct Proxy {
    _process: Process,
    _folder: TempDir,
    /// Where clients of IPv4 and of IPv6 find it.
    addresses: [SocketAddr; 2],
}

impl Proxy {
    /// Starts it before the app of a site; it has the trusted address of IPv4 whatever its clients have.
    fn start(site: &Site, version: &Version) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let addresses = [v4(PROXY), v6(1, PROXY)].map(|address| SocketAddr::new(address, 9000));
        let file = folder.path().join("haproxy.cfg");
        let [four, six] = addresses;
        fs::write(
            &file,
            format!(
                "global\n  maxconn 256\ndefaults\n  mode http\n  timeout connect 10s\n  timeout client 30s\n  timeout server \
                 30s\n  http-reuse never\nfrontend clients\n  bind {four}\n  bind {six}\n  default_backend app\nbackend \
                 app\n  source {}\n  server app {} {}\n",
                v4(PROXY),
                site.server(v4(PROXY)),
                version.option,
            ),
        )?;
        let mut command = site.link.client().command("haproxy");
        command.args(["-db", "-f"]).arg(&file);
        let mut process = Process::start(command, &folder.path().join("output"))?;
        wait_for("HAProxy", || {
            if let Some(status) = process.ended()? {
                bail!("haproxy ended with {status}: {} (`cargo xtask setup --tests` installs it)", process.output());
            }
            let up = || Ok(TcpStream::connect_timeout(&four, Duration::from_secs(1)).is_ok());
            Ok(site.link.client().run(up)?.then_some(()))
        })
        .context("starting haproxy")?;
        Ok(Self { _process: process, _folder: folder, addresses })
    }

    /// Sends so many requests from one address through it, each on a connection of its own.
    fn flood(
        &self,
        site: &Site,
        source: IpAddr,
        count: usize,
        request: impl Fn(usize) -> Vec<u8> + Sync,
    ) -> Result<Endings> {
        let [four, six] = self.addresses;
        let address = if source.is_ipv4() { four } else { six };
        site.link.client().run(|| {
            let mut endings = Endings::new();
            for number in 0..count {
                let mut connection = Connection::open_from(source, address, PATIENCE)?;
                connection.send(&request(number));
                *endings.entry(connection.answer().0).or_insert(0) += 1;
            }
            Ok(endings)
        })
    }
}

/// An app whose sources have ten requests an hour each, behind a proxy of this version.
fn guard<'a>(site: &'a Site, version: &Version) -> Result<(Origin, Enforcer<'a>, String)> {
    let origin = site.serve("plain", Server::GunicornBehindProxy(version.name))?;
    let enforcer = site.guard(&format!(
        "[service]\nsource = \"10/hour\"\ntrusted_proxies = [\"{}/32\"]\nproxy_protocol = \"{}\"\n[principal.tenant]\nlimit = \
         \"unlimited\"",
        v4(PROXY),
        version.name,
    ))?;
    let key = add_key(&enforcer, "tenant")?;
    Ok((origin, enforcer, key))
}

#[test]
fn clients_behind_a_proxy_have_a_limit_each_whatever_they_say() -> Result<()> {
    for version in &VERSIONS {
        let site = Site::new(Way::VethNative)?;
        let (origin, enforcer, key) = guard(&site, version)?;
        let proxy = Proxy::start(&site, version)?;
        let expected = statuses([(200, 10), (429, 20)]);
        let one = proxy.flood(&site, v4(10), 30, |_| keyed("/", &key))?;
        ensure!(one == expected, "{}: a client: {one:?}", version.name);
        let other = proxy.flood(&site, v4(11), 30, |_| keyed("/", &key))?;
        ensure!(other == expected, "{}: another: {other:?}", version.name);
        // All of a network of IPv6 are one.
        let six = proxy.flood(&site, v6(7, 1), 15, |_| keyed("/", &key))?;
        ensure!(six == statuses([(200, 10), (429, 5)]), "{}: one of IPv6: {six:?}", version.name);
        let neighbour = proxy.flood(&site, v6(7, 2), 15, |_| keyed("/", &key))?;
        ensure!(neighbour == statuses([(429, 15)]), "{}: its neighbour: {neighbour:?}", version.name);
        let forwarded =
            |number: usize| request("/", &[("X-API-Key", &key), ("X-Forwarded-For", &format!("203.0.113.{number}"))]);
        let spoofed = proxy.flood(&site, v4(12), 30, forwarded)?;
        ensure!(spoofed == expected, "{}: a client that invents addresses: {spoofed:?}", version.name);
        let guessed = proxy.flood(&site, v4(13), 20, |number| keyed("/", &random_key(number)))?;
        ensure!(guessed == statuses([(401, 10), (429, 10)]), "{}: a guesser: {guessed:?}", version.name);
        let honest = proxy.flood(&site, v4(14), 1, |_| keyed("/", &random_key(99)))?;
        ensure!(honest == statuses([(401, 1)]), "{}: its neighbour: {honest:?}", version.name);
        ensure!(origin.executed()?.len() == 40, "{}: executed {}", version.name, origin.executed()?.len());
        ensure!(refused(&enforcer, "proxy_header")? == 0, "{}: a header of HAProxy was refused", version.name);
    }
    Ok(())
}

#[test]
fn a_client_that_is_silent_behind_a_header_holds_no_worker_for_long() -> Result<()> {
    for version in &VERSIONS {
        let site = Site::new(Way::VethNative)?;
        let origin = site.serve("plain", Server::GunicornBehindProxy(version.name))?;
        let enforcer = Enforcer::guard(&site.link, PORT, &["--head-timeout", "1s"])?;
        apply(
            &enforcer,
            &format!("[service]\ntrusted_proxies = [\"{}/32\"]\nproxy_protocol = \"{}\"", v4(PROXY), version.name),
        )?;
        let key = add_key(&enforcer, "tenant")?;
        // More of them than there are workers: who is served behind them was not kept waiting by all.
        let header = (version.header)([203, 0, 113, 5]);
        let mut silent = (0..8).map(|_| site.connect(v4(PROXY))).collect::<Result<Vec<_>>>()?;
        silent.iter_mut().for_each(|connection| connection.send(&header));
        for connection in &mut silent {
            let ending = connection.answer().0;
            ensure!(ending == Ending::Reset, "{}: a silent client: {ending:?}", version.name);
        }
        let served = site.ask(v4(PROXY), &[&header[..], &keyed("/", &key)].concat())?;
        ensure!(served == Ending::Answered(200), "{}: a client behind them: {served:?}", version.name);
        drop(origin);
    }
    Ok(())
}

#[test]
fn headers_that_are_spoofed_missing_doubled_or_cut_gain_nothing() -> Result<()> {
    for version in &VERSIONS {
        let site = Site::new(Way::VethNative)?;
        let (origin, enforcer, key) = guard(&site, version)?;
        let asked = keyed("/", &key);
        let told = |number: usize| [&(version.header)([203, 0, 113, number as u8])[..], &asked].concat();
        let name = version.name;

        let spoofed = site.flood(v4(99), 30, told)?;
        ensure!(spoofed == statuses([(400, 30)]), "{name}: of a peer that is not trusted: {spoofed:?}");
        let missing = site.flood(v4(PROXY), 30, |_| asked.clone())?;
        ensure!(missing == Endings::from([(Ending::Reset, 30)]), "{name}: without a header: {missing:?}");
        let header = (version.header)([203, 0, 113, 7]);
        let doubled = site.flood(v4(PROXY), 30, |_| [&header[..], &told(8)].concat())?;
        ensure!(doubled == statuses([(400, 30)]), "{name}: two headers: {doubled:?}");
        let broken = site.flood(v4(PROXY), 30, |_| [&header[..header.len() - 3], &asked].concat())?;
        ensure!(!broken.contains_key(&Ending::Answered(200)), "{name}: a broken header: {broken:?}");
        ensure!(origin.executed()?.is_empty(), "{name}: executed {:?}", origin.executed()?);

        // Cut anywhere, and alone, it is the same header; a connection keeps its source.
        let whole = told(7);
        let mut endings = Endings::new();
        for cut in (1..=header.len()).step_by(3) {
            let mut connection = site.connect(v4(PROXY))?;
            let (first, second) = whole.split_at(cut);
            connection.send_slowly(&[first, second], Duration::from_millis(5));
            *endings.entry(connection.answer().0).or_insert(0) += 1;
        }
        let sent = header.len().div_ceil(3);
        let expected: Endings = [(200, sent.min(10)), (429, sent.saturating_sub(10))]
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .map(|(status, count)| (Ending::Answered(status), count))
            .collect();
        ensure!(endings == expected, "{name}: {sent} cut headers: {endings:?}");
        let rest = site.flood(v4(PROXY), 15, |_| whole.clone())?;
        let left = 10 - sent.min(10);
        ensure!(rest.get(&Ending::Answered(429)) == Some(&(15 - left)), "{name}: {left} were left: {rest:?}");
        ensure!(origin.executed()?.len() == 10, "{name}: executed {}", origin.executed()?.len());
        ensure!(refused(&enforcer, "proxy_header")? >= 30, "{name}: what is missing was counted otherwise");
        // Who is not trusted sends none, and is the source itself. gunicorn misses a header there and closes.
        let direct = site.ask(v4(98), &keyed("/", &random_key(1)))?;
        ensure!(direct == Ending::Answered(401), "{name}: {direct:?}");
    }
    Ok(())
}

#[test]
fn a_flood_through_a_proxy_keeps_no_syn_of_it_out() -> Result<()> {
    let version = &VERSIONS[0];
    let site = Site::new(Way::VethNative)?;
    let (_origin, enforcer, key) = guard(&site, version)?;
    let header = (version.header)([203, 0, 113, 9]);
    let unkeyed = [&header[..], &request("/", &[])].concat();
    let flooded = site.flood(v4(PROXY), 600, |_| unkeyed.clone())?;
    ensure!(flooded == statuses([(401, 600)]), "unkeyed requests through the proxy: {flooded:?}");
    let penalties = enforcer.metric("enforcer_events_total{service=\"default\",event=\"penalty\"}")?;
    ensure!(penalties == 0, "{penalties} penalties");
    let served = site.ask(v4(PROXY), &[&(version.header)([203, 0, 113, 10])[..], &keyed("/", &key)].concat())?;
    ensure!(served == Ending::Answered(200), "another client behind it: {served:?}");
    Ok(())
}

#[test]
fn what_is_explained_of_a_proxy_s_client_is_what_it_gets() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    // It knows no headers of the PROXY protocol, and what it makes of those is of no interest here.
    let _origin = site.serve("plain", Workers::Sync(2))?;
    let proxy = v4(PROXY).to_string();
    let policy = |protocol: &str| {
        format!(
            "[service]\nsource = \"3/hour\"\ntrusted_proxies = [\"{proxy}\"]\nproxy_protocol = \"{protocol}\"\n\
             [principal.tenant]\nlimit = \"1000/hour\""
        )
    };
    let enforcer = site.guard(&policy("off"))?;
    let key = add_key(&enforcer, "tenant")?;
    let explained = |source: &str, told: &str| {
        let asked = ["explain", "GET", "/", "--source", source, "--as", "tenant", "--forwarded-for", told];
        enforcer.json(&asked)
    };
    for (number, protocol) in ["off", "v1", "v2"].into_iter().enumerate() {
        apply(&enforcer, &policy(protocol))?;
        let client = format!("203.0.113.{number}");
        for used in 0..4 {
            let said = explained(&proxy, &client)?;
            let verdict = if used < 3 { "pass" } else { "refuse" };
            ensure!(said["verdict"] == verdict && said["source"] == format!("{client}/32"), "{protocol}: {said}");
            let asked = match VERSIONS.iter().find(|version| version.name == protocol) {
                Some(version) => [&(version.header)([203, 0, 113, number as u8])[..], &keyed("/", &key)].concat(),
                None => request("/", &[("X-API-Key", &key), ("X-Forwarded-For", &client)]),
            };
            let refused = site.ask(v4(PROXY), &asked)? == Ending::Answered(429);
            ensure!(refused == (verdict == "refuse"), "{protocol}: request {used} of {client}");
        }
        if protocol != "off" {
            // Whom a client says that it speaks for is not believed, though its connection comes from the proxy.
            let lied = ["-H", "X-Forwarded-For: 198.51.100.1"];
            let asked = ["explain", "GET", "/", "--source", &proxy, "--forwarded-for", &client];
            let said = enforcer.json(&[&asked[..], &lied].concat())?;
            ensure!(said["source"] == format!("{client}/32"), "{protocol}: {said}");
        }
        let ran = enforcer.run(&["explain", "GET", "/", "--source", "10.77.16.9", "--forwarded-for", &client])?;
        ensure!(ran.code == 2 && ran.stderr.contains("is no trusted proxy"), "{}: {}", ran.code, ran.stderr);
    }
    Ok(())
}
