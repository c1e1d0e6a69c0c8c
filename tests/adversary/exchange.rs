//! The client of one run: sends the pieces, and watches until nothing more is to come.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use enforcer_tests::process::PATIENCE;

/// How the connection stood when the client left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The server, or the enforcer, ended it.
    Ended,
    /// All the answers came that were waited for.
    Answered,
    /// Nothing was to be waited for, and nothing came for a while.
    Quiet,
    /// What was waited for did not come.
    Silent,
}

/// What the client waits for before it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// So many final answers, or the end of the connection.
    Answers(usize),
    /// The end of the connection.
    End,
    /// The end of the connection, or nothing for a while.
    Quiet,
}

/// What one run looked like to the client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    /// The client's port.
    pub(crate) port: u16,
    /// Final answers received.
    pub(crate) answers: usize,
    /// How it ended.
    pub(crate) ending: Ending,
}

/// Ports that have been used towards one server, so that a port tells one run.
pub(crate) type Ports = Mutex<BTreeSet<u16>>;

/// How long nothing has to come before a connection that nothing is expected of is taken to be at rest.
const REST: Duration = Duration::from_millis(300);
/// Between two pieces: long enough for the first to leave before the second is written.
const PAUSE: Duration = Duration::from_micros(150);

/// Sends `pieces` on a connection of its own.
///
/// # Errors
/// When the server does not accept the connection.
pub(crate) fn exchange(address: SocketAddr, ports: &Ports, pieces: &[&[u8]], until: Until) -> Result<Outcome> {
    let (mut stream, port) = open(address, ports)?;
    for (number, piece) in pieces.iter().enumerate() {
        if number > 0 {
            std::thread::sleep(PAUSE);
        }
        // A connection that has been ended shows below.
        if stream.write_all(piece).is_err() {
            break;
        }
    }
    stream.set_read_timeout(Some(REST))?;
    let (mut received, begin) = (Vec::new(), Instant::now());
    let ending = loop {
        if let Until::Answers(wanted) = until
            && answers(&received) >= wanted
        {
            break Ending::Answered;
        }
        let mut buffer = [0; 16_384];
        match stream.read(&mut buffer) {
            Ok(0) => break Ending::Ended,
            Ok(count) => received.extend(&buffer[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if until == Until::Quiet {
                    break Ending::Quiet;
                }
                if is_refused_and_goes_on(&received) {
                    break Ending::Answered;
                }
                if begin.elapsed() > PATIENCE {
                    break Ending::Silent;
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break Ending::Ended,
        }
    };
    Ok(Outcome { port, answers: answers(&received), ending })
}

/// Whether the enforcer has refused a request, and left the connection open for others.
fn is_refused_and_goes_on(received: &[u8]) -> bool {
    let has = |words: &[u8]| received.windows(words.len()).any(|window| window == words);
    has(b"Content-Type: application/problem+json\r\n") && has(b"\r\nConnection: keep-alive\r\n")
}

/// Opens a connection from a port that was not used before.
fn open(address: SocketAddr, ports: &Ports) -> Result<(TcpStream, u16)> {
    loop {
        let stream = TcpStream::connect_timeout(&address, PATIENCE).context("connecting")?;
        let port = stream.local_addr()?.port();
        if ports.lock().map_err(|_| anyhow::anyhow!("another client panicked"))?.insert(port) {
            stream.set_nodelay(true)?;
            return Ok((stream, port));
        }
    }
}

/// How many answers begin in `received`, interim ones not counted.
fn answers(received: &[u8]) -> usize {
    let begins = received.windows(13).filter(|window| window.starts_with(b"HTTP/1.") && window[8] == b' ');
    begins.filter(|window| window[9] != b'1').count()
}
