//! The server behind the guard: answers every request at once, and counts those that reach it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const END: &[u8] = b"\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
/// Largest head that it reads; those of the checks are far smaller.
const MOST: usize = 16 << 10;

/// A server that is up.
#[derive(Debug)]
pub(super) struct Origin {
    executed: Arc<AtomicUsize>,
}

impl Origin {
    /// Listens at `address`, in the calling thread's namespace, until the runtime ends.
    pub(super) async fn listen(address: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))?;
        let executed = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&executed);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&counted)));
            }
        });
        Ok(Self { executed })
    }

    /// How many requests have reached it so far.
    pub(super) fn executed(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.executed)
    }
}

/// Answers the heads of one connection; none of the checks sends a body.
async fn serve(mut stream: TcpStream, executed: Arc<AtomicUsize>) -> io::Result<()> {
    let mut bytes = Vec::new();
    while stream.read_buf(&mut bytes).await? > 0 && bytes.len() <= MOST {
        while let Some(at) = bytes.windows(END.len()).position(|window| window == END) {
            bytes.drain(..at + END.len());
            executed.fetch_add(1, Ordering::SeqCst);
            stream.write_all(ANSWER).await?;
        }
    }
    Ok(())
}
