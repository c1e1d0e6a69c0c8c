//! The paths that real servers see, beside those that the machine finds: no path that a server would route is taken for
//! another one here.
//!
//! The servers run without the enforcer: what counts is what they make of each target.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use anyhow::{Context, Result, bail, ensure};
use enforcer_ebpf::http::method;
use enforcer_ebpf::key;
use enforcer_tests::netns::Namespace;
use enforcer_tests::origin::{Executed, Origin, Server};
use enforcer_tests::process::PATIENCE;
use enforcer_tests::reader::{Reader, Rules, SECRET};
use enforcer_tests::target::{self, Case};

/// The first of the servers' ports.
const PORT: u16 = 8000;

/// What a server made of a request.
#[derive(Debug)]
struct Seen {
    server: Server,
    /// The request that the app was called with; `None` if the server refused it.
    executed: Option<Executed>,
}

/// Sends each case to each server.
fn run(cases: &[Case]) -> Result<Vec<Vec<Seen>>> {
    let namespace = Namespace::new()?;
    let origins = std::thread::scope(|scope| {
        let threads: Vec<_> = (PORT..)
            .zip(Server::EACH)
            .map(|(port, server)| {
                let (namespace, address) = (&namespace, SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
                scope.spawn(move || Ok((server, Origin::start(namespace, "permissive", server, address)?)))
            })
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| bail!("a thread panicked")));
        joined.collect::<Result<Vec<_>>>()
    })?;
    let see = |case: &Case, server: Server, origin: &Origin| {
        let before = origin.executed()?.len();
        namespace.run(|| ask(origin.address, &case.request()))?;
        let mut executed = origin.executed()?.split_off(before);
        ensure!(executed.len() < 2, "{}: {server} executed {executed:?}", case.name);
        Ok(Seen { server, executed: executed.pop() })
    };
    let each = |case: &Case| {
        origins
            .iter()
            .map(|(server, origin)| see(case, *server, origin).with_context(|| format!("{}: {server}", case.name)))
            .collect()
    };
    cases.iter().map(each).collect()
}

/// Sends a request and waits until the server has closed the connection.
fn ask(address: SocketAddr, request: &[u8]) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request)?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => Err(error).context("no answer"),
        _ => Ok(()),
    }
}

/// The segments of the path that an app was called with, as Flask routes it: slashes merged, none at the end.
fn routed(executed: &Executed) -> Result<Vec<Vec<u8>>> {
    let path = unescaped(&executed.path)?;
    Ok(path.split(|byte| *byte == b'/').filter(|segment| !segment.is_empty()).map(<[u8]>::to_vec).collect())
}

/// The bytes of what the record has escaped: `PATH_INFO` is Latin-1 (PEP 3333).
fn unescaped(text: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = text.chars();
    while let Some(letter) = rest.next() {
        if letter != '\\' {
            bytes.push(u8::try_from(u32::from(letter))?);
            continue;
        }
        bytes.push(match rest.next() {
            Some('x') => u8::from_str_radix(&rest.by_ref().take(2).collect::<String>(), 16)?,
            Some('n') => b'\n',
            Some('r') => b'\r',
            Some('t') => b'\t',
            Some('\\') => b'\\',
            other => bail!("{other:?} in {text:?}"),
        });
    }
    Ok(bytes)
}

/// Whether this server gives its app another path than the machine finds, but none that a route could be.
fn is_known(server: Server, case: &Case, path: &[Vec<u8>]) -> bool {
    // Some paths go through UTF-8, and what is none is lost.
    let lossy = |segment: &Vec<u8>| String::from_utf8_lossy(segment).into_owned().into_bytes();
    let is_lossy = case.segments.as_ref().is_some_and(|segments| segments.iter().map(lossy).eq(path.iter().cloned()));
    // h11 leaves an absolute form whole.
    let is_whole = path.first().is_some_and(|first| first.eq_ignore_ascii_case(b"http:"));
    is_lossy || (server == Server::UvicornH11 && is_whole)
}

/// What is wrong with how the machine reads this request, given what a server makes of it.
fn judge(case: &Case, seen: &Seen) -> Result<Option<String>> {
    let Some(executed) = &seen.executed else { return Ok(None) };
    let request = case.request();
    let reader = Reader::read_by(&Rules::of_any_path(), [&request[..]]);
    let [found] = *reader.found() else { return Ok(None) };
    let path = routed(executed)?;
    let tags: Vec<_> = path.iter().map(|segment| key::tag(SECRET, segment)).collect();
    if reader.walked() != tags && !is_known(seen.server, case, &path) {
        let path: Vec<_> = path.iter().map(|segment| String::from_utf8_lossy(segment)).collect();
        return Ok(Some(format!("{}: {} sees the path {path:?}", case.name, seen.server)));
    }
    let is_get = executed.method.eq_ignore_ascii_case("GET");
    if is_get != (found.method == method::GET) {
        return Ok(Some(format!("{}: {} sees the method {}", case.name, seen.server, executed.method)));
    }
    Ok(None)
}

#[test]
fn no_server_routes_a_path_that_is_taken_for_another_here() -> Result<()> {
    let cases = target::load()?;
    let seen = run(&cases)?;
    let mut wrong = Vec::new();
    let (mut served, mut harmful) = (0, BTreeSet::new());
    for (case, seen) in cases.iter().zip(&seen) {
        for seen in seen {
            wrong.extend(judge(case, seen)?);
            let Some(executed) = &seen.executed else { continue };
            if case.segments.is_some() {
                served += 1;
            } else if routed(executed)? == [b"search"] {
                harmful.insert(&case.name);
            }
        }
    }
    ensure!(wrong.is_empty(), "{} of them:\n{}", wrong.len(), wrong.join("\n"));
    eprintln!("{served} requests served; refused here, and /search for some server: {harmful:#?}");
    // Without these the suite would show nothing.
    ensure!(served > 150, "only {served} requests were served");
    ensure!(harmful.len() > 5, "no server is fooled by any target that is refused here");
    Ok(())
}

#[test]
fn a_path_that_is_taken_for_another_is_found() -> Result<()> {
    let case = |target: &str| -> Result<Case> {
        let mut cases = target::load()?;
        let mut case = cases.swap_remove(0);
        (case.target, case.segments) = (target.into(), target::segments(target.as_bytes()));
        Ok(case)
    };
    let seen = |server: Server, method: &str, path: &str| Seen {
        server,
        executed: Some(Executed { key: "-".into(), method: method.into(), path: path.into(), worker: 1, port: 1 }),
    };
    let is_found = |target: &str, server: Server, method: &str, path: &str| -> Result<bool> {
        Ok(judge(&case(target)?, &seen(server, method, path))?.is_some())
    };
    ensure!(!is_found("/a/b", Server::Waitress, "GET", "//a/b/")?, "what is alike is complained of");
    ensure!(!is_found("/%e9", Server::Waitress, "GET", "/\\xe9")?, "what is alike is complained of");
    ensure!(is_found("/a/b", Server::Waitress, "GET", "/b")?, "another path is not found");
    ensure!(is_found("/a/b", Server::UvicornH11, "GET", "/b")?, "another path is not found");
    ensure!(is_found("/a%2eb", Server::Waitress, "GET", "/a/b")?, "another path is not found");
    ensure!(is_found("/a/b", Server::Waitress, "POST", "/a/b")?, "another method is not found");
    ensure!(!is_found("/a/../b", Server::Waitress, "GET", "/b")?, "what is refused is complained of");
    Ok(())
}
