//! A client's connection that never blocks: sends a request, and says how it ended.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    os::fd::AsRawFd as _,
};

use anyhow::Result;
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt},
};
use serde::Serialize;

/// How a request ended for its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ending {
    /// Answered with 2xx.
    Served,
    /// Answered with 4xx.
    Denied,
    /// Answered with anything else.
    Failed,
    /// The connection was reset or refused, before an answer.
    Reset,
    /// The connection was closed, before an answer.
    Closed,
    /// Nothing came, for as long as the client waits.
    Silent,
}

impl Ending {
    /// All of them, each at the place of its number.
    pub(crate) const ALL: [Self; 6] =
        [Self::Served, Self::Denied, Self::Failed, Self::Reset, Self::Closed, Self::Silent];

    const fn of(status: u16) -> Self {
        match status {
            200..=299 => Self::Served,
            400..=499 => Self::Denied,
            _ => Self::Failed,
        }
    }
}

/// What a connection has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// More must come.
    Waiting,
    /// The whole answer is there; the connection is open as far as is known.
    Answered(Ending),
    /// The connection has ended without an answer.
    Ended(Ending),
}

/// Bytes read at once: more than any answer here has.
const BUFFER: usize = 4096;

/// A connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Connection {
    /// Begins to connect to `server`, from the address `source`.
    ///
    /// # Errors
    /// There is no room for a socket, or the connection is refused at once.
    pub(crate) fn open(source: Ipv4Addr, server: SocketAddrV4) -> Result<Self> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
        setsockopt(&socket, sockopt::TcpNoDelay, &true)?;
        // The port is chosen with the server's address in mind, as without bind.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(source, 0)))?;
        match connect(socket.as_raw_fd(), &SockaddrIn::from(server)) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Self { stream: socket.into(), received: Vec::new() })
    }

    /// The socket, to be waited for.
    pub(crate) const fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Sends a request, once the connection is established; [`Progress::Ended`] if it is not.
    pub(crate) fn send(&mut self, request: &[u8]) -> Progress {
        match self.stream.write(request) {
            Ok(sent) if sent == request.len() => Progress::Waiting,
            // A request is far smaller than an empty buffer.
            Ok(_) | Err(_) => Progress::Ended(Ending::Reset),
        }
    }

    /// Reads what is there.
    pub(crate) fn read(&mut self) -> Progress {
        let mut buffer = [0; BUFFER];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Progress::Ended(Ending::Closed),
                Ok(count) => {
                    self.received.extend(&buffer[..count]);
                    if let Some((status, length)) = whole_answer(&self.received) {
                        self.received.drain(..length);
                        return Progress::Answered(Ending::of(status));
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Progress::Waiting,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Progress::Ended(Ending::Reset),
            }
        }
    }
}

/// Status and length of the answer at the front of `bytes`, if it is all there. Its length must be given: none of the
/// servers here sends chunks.
fn whole_answer(bytes: &[u8]) -> Option<(u16, usize)> {
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let status = std::str::from_utf8(bytes.get(9..12)?).ok()?.parse().ok()?;
    let name = b"\r\ncontent-length:";
    let field = bytes[..head].windows(name.len()).position(|window| window.eq_ignore_ascii_case(name))?;
    let value = bytes[field + name.len()..head].trim_ascii_start().iter().take_while(|byte| byte.is_ascii_digit());
    let length = value.fold(0_usize, |length, digit| length.saturating_mul(10).saturating_add((digit - b'0').into()));
    let whole = head.saturating_add(length);
    (bytes.len() >= whole).then_some((status, whole))
}

#[cfg(test)]
mod tests {
    use super::whole_answer;

    #[test]
    fn an_answer_is_whole_when_its_body_is_there() {
        let answer = b"HTTP/1.1 429 Too Many Requests\r\nServer: x\r\ncontent-LENGTH:  5\r\n\r\nlimitHTTP/1.1 200";
        let whole = answer.len() - b"HTTP/1.1 200".len();
        assert_eq!(whole_answer(answer), Some((429, whole)));
        assert_eq!(whole_answer(&answer[..whole]), Some((429, whole)));
        assert_eq!(whole_answer(&answer[..whole - 1]), None);
        assert_eq!(whole_answer(b"HTTP/1.1 200 OK\r\n\r\n"), None);
    }
}
