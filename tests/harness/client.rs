//! The clients: connections that send chosen bytes in chosen pieces, and curl and Python's `requests`.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::socket::sockopt::{Linger, SendTimeout};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage};
use nix::sys::time::TimeVal;

use crate::folder;
use crate::netns::Namespace;
use crate::origin::venv;
use crate::process;

/// How an exchange ended for the client.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    /// The app answered with this status.
    Answered(u16),
    /// The connection was reset.
    Reset,
    /// The connection was closed without an answer.
    Closed,
    /// Nothing came for a long time.
    Silent,
}

/// A connection that sends raw bytes.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Connection {
    /// Opens a connection, with every write in a segment of its own.
    ///
    /// # Errors
    /// When the server does not accept it.
    pub fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, process::PATIENCE).context("connecting")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(process::PATIENCE))?;
        Ok(Self { stream, received: Vec::new() })
    }

    /// Opens a connection from one of the client's addresses, within `time`.
    ///
    /// # Errors
    /// When the address is not there, or the server does not accept the connection in time.
    pub fn open_from(source: IpAddr, address: SocketAddr, time: Duration) -> Result<Self> {
        let family = if source.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(source, 0)))?;
        let patience = TimeVal::new(time.as_secs() as i64, i64::from(time.subsec_micros()));
        // It bounds the time for the handshake, too.
        socket::setsockopt(&socket, SendTimeout, &patience)?;
        socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(address)).context("connecting")?;
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(process::PATIENCE))?;
        stream.set_write_timeout(None)?;
        Ok(Self { stream, received: Vec::new() })
    }

    /// The client's end.
    ///
    /// # Errors
    /// When the socket does not say.
    pub fn local(&self) -> Result<SocketAddr> {
        Ok(self.stream.local_addr()?)
    }

    /// The client's port.
    ///
    /// # Errors
    /// When the socket does not tell.
    pub fn port(&self) -> Result<u16> {
        Ok(self.stream.local_addr()?.port())
    }

    /// Sets how long [`Connection::answer`] waits for more bytes; at first it is [`process::PATIENCE`].
    ///
    /// # Errors
    /// When the time is 0.
    pub fn set_patience(&mut self, time: Duration) -> Result<()> {
        Ok(self.stream.set_read_timeout(Some(time))?)
    }

    /// Sends bytes; a connection that has been reset shows when the answer is read.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Sends pieces with a pause after each, so that each is a segment.
    pub fn send_slowly(&mut self, pieces: &[&[u8]], pause: Duration) {
        for piece in pieces {
            self.send(piece);
            std::thread::sleep(pause);
        }
    }

    /// Ends the client's side.
    pub fn finish(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }

    /// Ends the connection with a RST.
    ///
    /// # Errors
    /// When the socket takes no option.
    pub fn reset(self) -> Result<()> {
        let abruptly = libc::linger { l_onoff: 1, l_linger: 0 };
        Ok(socket::setsockopt(&self.stream, Linger, &abruptly)?)
    }

    /// Reads the next answer, head and body.
    pub fn answer(&mut self) -> (Ending, Vec<u8>) {
        loop {
            if let Some((status, begin, end)) = whole_answer(&self.received) {
                let body = self.received[begin..end].to_vec();
                self.received.drain(..end);
                return (Ending::Answered(status), body);
            }
            let mut buffer = [0; 16_384];
            match self.stream.read(&mut buffer) {
                Ok(0) => return (Ending::Closed, std::mem::take(&mut self.received)),
                Ok(count) => self.received.extend(&buffer[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return (Ending::Silent, Vec::new());
                }
                Err(_) => return (Ending::Reset, Vec::new()),
            }
        }
    }
}

/// Status, begin and end of the body of the answer at the front of `bytes`, if it is all there.
fn whole_answer(bytes: &[u8]) -> Option<(u16, usize, usize)> {
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&bytes[..head]);
    let status = text.split(' ').nth(1)?.parse().ok()?;
    let length = text
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:").map(|value| value.trim().to_owned()))
        .and_then(|value| value.parse::<usize>().ok())
        .unwrap_or(0);
    (bytes.len() >= head + length).then_some((status, head, head + length))
}

/// A GET request with or without a key.
#[must_use]
pub fn get(path: &str, key: Option<&str>) -> Vec<u8> {
    let field = key.map(|key| format!("X-API-Key: {key}\r\n")).unwrap_or_default();
    format!("GET {path} HTTP/1.1\r\nHost: app.test\r\nUser-Agent: enforcer-tests\r\n{field}Accept: */*\r\n\r\n")
        .into_bytes()
}

/// The same request as its connection's last.
#[must_use]
pub fn last(mut request: Vec<u8>) -> Vec<u8> {
    request.truncate(request.len() - 2);
    request.extend(b"Connection: close\r\n\r\n");
    request
}

/// Sends one request on a connection of its own and says how it ended.
///
/// # Errors
/// When the server does not accept the connection.
pub fn exchange(address: SocketAddr, request: &[u8]) -> Result<Ending> {
    let mut connection = Connection::open(address)?;
    connection.send(request);
    Ok(connection.answer().0)
}

/// Sends `count` requests, each on a connection of its own, from `clients` threads at once; says how many ended how.
///
/// # Errors
/// When the namespace cannot be entered or a connection is not accepted.
pub fn flood(
    namespace: &Namespace,
    address: SocketAddr,
    clients: usize,
    count: usize,
    request: impl Fn(usize) -> Vec<u8> + Sync,
) -> Result<BTreeMap<Ending, usize>> {
    let next = AtomicUsize::new(0);
    let body = || {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..clients)
                .map(|_| {
                    scope.spawn(|| -> Result<Vec<Ending>> {
                        let mut endings = Vec::new();
                        loop {
                            let number = next.fetch_add(1, Ordering::Relaxed);
                            if number >= count {
                                return Ok(endings);
                            }
                            endings.push(exchange(address, &request(number))?);
                        }
                    })
                })
                .collect();
            let mut counts = BTreeMap::new();
            for thread in threads {
                let Ok(endings) = thread.join() else { bail!("a client panicked") };
                for ending in endings? {
                    *counts.entry(ending).or_insert(0) += 1;
                }
            }
            Ok(counts)
        })
    };
    namespace.run(body)
}

/// Runs curl; gives the status it saw, 0 if the connection was reset or closed.
///
/// # Errors
/// When curl cannot be started, or fails in another way than by a lost connection.
pub fn curl(namespace: &Namespace, arguments: &[&str]) -> Result<u16> {
    let mut command = namespace.command("curl");
    command.args([
        "--silent",
        "--show-error",
        "--max-time",
        "30",
        "--output",
        "/dev/null",
        "--write-out",
        "%{http_code}",
    ]);
    let output = command.args(arguments).output().context("starting curl")?;
    // 52: nothing was answered; 56: the connection was reset.
    match output.status.code() {
        Some(0) => Ok(String::from_utf8_lossy(&output.stdout).trim().parse()?),
        Some(52 | 55 | 56) => Ok(0),
        other => bail!("curl ended with {other:?}: {}", String::from_utf8_lossy(&output.stderr).trim()),
    }
}

/// Runs one of `clients/` with Python and reads the JSON that it prints.
///
/// # Errors
/// When it fails, or prints something else.
pub fn python<T: serde::de::DeserializeOwned>(namespace: &Namespace, script: &str, arguments: &[&str]) -> Result<T> {
    let path: PathBuf = folder().join("clients").join(script);
    let mut command: Command = namespace.command(venv("python")?);
    let printed = process::run(command.arg("-B").arg(path).args(arguments))?;
    serde_json::from_str(&printed).with_context(|| format!("{script} printed {printed:?}"))
}

/// The URL of a path at `address`.
#[must_use]
pub fn url(address: SocketAddr, path: &str) -> String {
    format!("http://{address}{path}")
}
