//! Real connections whose first sequence number a test knows, and whose receiving socket accepts as many bytes as the
//! test wants.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, Result, ensure};
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};

use crate::process::{PATIENCE, wait_for};

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    /// Connections stay requests until their first byte (TCP_DEFER_ACCEPT).
    deferred: bool,
}

impl Listener {
    /// Listens at `address`.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn new(address: SocketAddr, deferred: bool) -> Result<Self> {
        let socket = TcpListener::bind(address).with_context(|| format!("listening at {address}"))?;
        if deferred {
            set(&socket, libc::TCP_DEFER_ACCEPT, 60)?;
        }
        Ok(Self { socket, address, deferred })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connects to it.
    ///
    /// # Errors
    /// When the connection fails, or its sequence number cannot be asked for: that needs CAP_NET_ADMIN.
    pub fn connect(&self) -> Result<Peer> {
        let client = TcpStream::connect_timeout(&self.address, PATIENCE)?;
        client.set_nodelay(true)?;
        let (first, acknowledges) = next_to_send_and_receive(&client)?;
        let listener = self.socket.try_clone()?;
        let mut peer =
            Peer { address: client.local_addr()?, client: Some(client), server: None, listener, first, acknowledges };
        if !self.deferred {
            peer.accept()?;
        }
        Ok(peer)
    }
}

/// A connection, from its client's end.
#[derive(Debug)]
pub struct Peer {
    client: Option<TcpStream>,
    server: Option<TcpStream>,
    listener: TcpListener,
    address: SocketAddr,
    first: u32,
    acknowledges: u32,
}

impl Peer {
    /// The client's address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sequence number of the client's first byte.
    #[must_use]
    pub fn first(&self) -> u32 {
        self.first
    }

    /// Sequence number of the server's first byte.
    #[must_use]
    pub fn acknowledges(&self) -> u32 {
        self.acknowledges
    }

    fn accept(&mut self) -> Result<()> {
        // Of a listener that defers, others that were left alone may come first.
        let server = loop {
            let (server, address) = self.listener.accept()?;
            if address == self.address {
                break server;
            }
        };
        server.set_read_timeout(Some(PATIENCE))?;
        self.server = Some(server);
        Ok(())
    }

    /// Lets the receiver accept so many bytes; they have been read when this returns.
    ///
    /// # Errors
    /// When the connection is over.
    pub fn send(&mut self, count: u32) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        let bytes = vec![0; count as usize];
        self.client.as_mut().context("the client has gone")?.write_all(&bytes)?;
        if self.server.is_none() {
            self.accept()?;
        }
        self.server.as_mut().context("the server has gone")?.read_exact(&mut vec![0; bytes.len()])?;
        Ok(())
    }

    /// Lets the server send so many bytes; the client has read them when this returns.
    ///
    /// # Errors
    /// When the connection is over, or was not accepted.
    pub fn respond(&mut self, count: u32) -> Result<()> {
        let bytes = vec![0; count as usize];
        self.server.as_mut().context("the server has gone")?.write_all(&bytes)?;
        self.client.as_mut().context("the client has gone")?.read_exact(&mut vec![0; bytes.len()])?;
        Ok(())
    }

    /// Ends the client's side; the receiver knows it when this returns.
    ///
    /// # Errors
    /// When the connection is over.
    pub fn finish(&mut self) -> Result<()> {
        self.client.as_mut().context("the client has gone")?.shutdown(Shutdown::Write)?;
        if self.server.is_none() {
            self.accept()?;
        }
        let read = self.server.as_mut().context("the server has gone")?.read(&mut [0])?;
        ensure!(read == 0, "a byte came that nobody sent");
        Ok(())
    }

    /// Aborts the connection from the client's side; the receiver knows it when this returns.
    ///
    /// # Errors
    /// When the receiver does not learn of it.
    pub fn reset(&mut self) -> Result<()> {
        let client = self.client.take().context("the client has gone")?;
        setsockopt(&client, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
        drop(client);
        let Some(mut server) = self.server.take() else { return Ok(()) };
        wait_for("a reset to arrive", || match server.read(&mut [0; 64]) {
            Ok(0) | Err(_) => Ok(Some(())),
            Ok(_) => Ok(None),
        })
    }

    /// Closes the server's end, and then the client's.
    ///
    /// # Errors
    /// When either has gone already.
    pub fn close_server(&mut self) -> Result<()> {
        if self.server.is_none() {
            self.send(1)?;
        }
        drop(self.server.take().context("the server has gone")?);
        let mut client = self.client.take().context("the client has gone")?;
        client.set_read_timeout(Some(PATIENCE))?;
        ensure!(client.read(&mut [0])? == 0, "the server sent something");
        Ok(())
    }
}

/// Sequence numbers of the next bytes that a connection sends and receives.
fn next_to_send_and_receive(client: &TcpStream) -> Result<(u32, u32)> {
    const REPAIR: i32 = 1;
    /// Without the window probe that ends a repair otherwise.
    const REPAIR_OFF: i32 = -1;
    const RECEIVE_QUEUE: i32 = 1;
    const SEND_QUEUE: i32 = 2;
    set(client, libc::TCP_REPAIR, REPAIR).context("asking for a sequence number")?;
    set(client, libc::TCP_REPAIR_QUEUE, SEND_QUEUE)?;
    let sends = get(client, libc::TCP_QUEUE_SEQ)?;
    set(client, libc::TCP_REPAIR_QUEUE, RECEIVE_QUEUE)?;
    let receives = get(client, libc::TCP_QUEUE_SEQ)?;
    set(client, libc::TCP_REPAIR, REPAIR_OFF)?;
    Ok((sends as u32, receives as u32))
}

fn set(socket: &impl AsFd, option: i32, value: i32) -> Result<()> {
    let len = size_of::<i32>() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open, and the value is as long as it is said to be.
    let result = unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, option, (&raw const value).cast(), len) };
    ensure!(result == 0, "setting option {option} of TCP: {}", std::io::Error::last_os_error());
    Ok(())
}

fn get(socket: &impl AsFd, option: i32) -> Result<i32> {
    let mut value = 0i32;
    let mut len = size_of::<i32>() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open, and the value is as long as it is said to be.
    let result = unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, option, (&raw mut value).cast(), &raw mut len) };
    ensure!(result == 0, "asking for option {option} of TCP: {}", std::io::Error::last_os_error());
    Ok(value)
}
