//! A client of one connection: sends bytes from an address of its own, and reads the statuses that come back.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::time::{sleep, timeout};

/// How long an answer may take. One that is refused without an answer takes so long.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two pieces, so that each is a segment.
const PAUSE: Duration = Duration::from_millis(5);

/// Sends `pieces`, each as a segment, on a new connection, and gives the statuses of at most `requests` answers.
pub(super) async fn visit(
    source: Ipv4Addr,
    server: SocketAddr,
    pieces: &[&[u8]],
    requests: usize,
) -> anyhow::Result<Vec<u16>> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(source.into(), 0)).with_context(|| format!("binding {source}"))?;
    let connected = timeout(PATIENCE, socket.connect(server)).await;
    let mut stream = connected.context("no connection to the origin")?.context("no connection to the origin")?;
    stream.set_nodelay(true)?;
    for (number, piece) in pieces.iter().enumerate() {
        if number > 0 {
            sleep(PAUSE).await;
        }
        // What was refused before its end leaves no one to write to; its answer tells.
        if stream.write_all(piece).await.is_err() {
            break;
        }
    }
    let mut bytes = Vec::new();
    let read = async {
        while statuses(&bytes).len() < requests {
            // A reset is an end, too.
            match stream.read_buf(&mut bytes).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
    };
    let _ = timeout(PATIENCE, read).await;
    Ok(statuses(&bytes))
}

/// The statuses of the answers in `bytes`; no body of theirs looks like a status line.
fn statuses(bytes: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(bytes);
    text.split("HTTP/1.1 ").skip(1).filter_map(|rest| rest.get(..3)?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_status_of_each_answer_and_of_none_that_is_cut_short() {
        assert_eq!(statuses(b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 429 Too Many Requests\r\n\r\n{}HTTP/1.1 4"), [200, 429]);
        assert!(statuses(b"").is_empty());
    }
}
