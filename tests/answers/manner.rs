//! How a client sends a request that is refused, and when it reads.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use enforcer_tests::client::{get, last};
use enforcer_tests::process::PATIENCE;

/// Long enough for an answer to come, and for what must not follow it.
const WHILE: Duration = Duration::from_millis(100);
/// Bytes of a body that is sent behind the answer.
const LATE: usize = 50_000;

/// A client's manner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// It sends all at once, and takes its time to read.
    Plain,
    /// The end of its side comes with the request, in one segment.
    EndWithRequest,
    /// It ends its side once the answer is there, and reads then.
    EndBehindAnswer,
    /// It sends the body once the answer is there, and reads then.
    LateBody,
}

/// What a client did.
pub(crate) struct Played {
    /// Its port.
    pub(crate) port: u16,
    /// When it had read everything.
    pub(crate) read: Instant,
    /// What it read, up to the end of the server's side.
    pub(crate) bytes: Vec<u8>,
}

impl Manner {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Plain, Self::EndWithRequest, Self::EndBehindAnswer, Self::LateBody];

    /// Sends a request without a key, reads all that comes, and leaves.
    ///
    /// # Errors
    /// When the connection is reset before it has been read to its end.
    pub(crate) fn play(self, address: SocketAddr) -> Result<Played> {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let port = stream.local_addr()?.port();
        let length = format!("Content-Length: {LATE}\r\n");
        let head = format!("POST /upload HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n{length}\r\n").into_bytes();
        if self == Self::EndWithRequest {
            hold_back(&stream)?;
        }
        stream.write_all(&if self == Self::LateBody { head } else { last(get("/", None)) })?;
        if self == Self::EndWithRequest {
            stream.shutdown(Shutdown::Write)?;
        }
        std::thread::sleep(WHILE);
        match self {
            Self::Plain | Self::EndWithRequest => {}
            Self::EndBehindAnswer => stream.shutdown(Shutdown::Write)?,
            Self::LateBody => {
                for piece in vec![b'u'; LATE].chunks(LATE / 5) {
                    stream.write_all(piece).context("sending a late body")?;
                    std::thread::sleep(WHILE / 10);
                }
            }
        }
        std::thread::sleep(WHILE);
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).context("reading the answer")?;
        Ok(Played { port, read: Instant::now(), bytes })
    }
}

/// Lets what is written wait for more, or for the end (TCP_CORK).
fn hold_back(stream: &TcpStream) -> Result<()> {
    let (on, fd) = (1i32, stream.as_raw_fd());
    let size = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the value is as long as it is said to be.
    let set = unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_CORK, (&raw const on).cast(), size) };
    ensure!(set == 0, "setting TCP_CORK: {}", std::io::Error::last_os_error());
    Ok(())
}
