//! Frames out of and into an interface, past the stack: an AF_PACKET socket.
//!
//! Frames go with a virtio header (`PACKET_VNET_HDR`), which says what is left to the interface: to finish a checksum,
//! to cut a frame into segments. So the receiver sees what a local sender with offloads would send.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};

/// Bytes of `struct virtio_net_hdr` (linux/virtio_net.h).
const HEADER: usize = 10;
const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;

/// A frame may be as long as a whole IP packet before it is cut.
const LONGEST: usize = 65_536 + 128;

/// Bytes that may wait to be read, so that the kernel loses nothing of a burst.
const RECEIVE_BUFFER: usize = 16 << 20;

/// What is left to the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// Nothing.
    None,
    /// To finish the checksum over the bytes from `start` on, which stands `offset` bytes behind that.
    Checksum {
        /// Where the TCP header begins.
        start: u16,
        /// Where the checksum stands in it.
        offset: u16,
    },
    /// To cut the payload into segments, and to finish their checksums.
    Segmentation {
        /// Where the TCP header begins.
        start: u16,
        /// Where the checksum stands in it.
        offset: u16,
        /// Where the payload begins.
        header: u16,
        /// Bytes of payload of each segment.
        size: u16,
        /// Whether it is TCP over IPv6.
        v6: bool,
    },
}

impl Offload {
    fn header(self) -> [u8; HEADER] {
        let (flags, kind, length, size, start, offset) = match self {
            Self::None => (0, 0, 0, 0, 0, 0),
            Self::Checksum { start, offset } => (NEEDS_CSUM, 0, 0, 0, start, offset),
            Self::Segmentation { start, offset, header, size, v6 } => {
                (NEEDS_CSUM, if v6 { GSO_TCPV6 } else { GSO_TCPV4 }, header, size, start, offset)
            }
        };
        let mut bytes = [0; HEADER];
        (bytes[0], bytes[1]) = (flags, kind);
        for (index, value) in [length, size, start, offset].into_iter().enumerate() {
            bytes[2 + 2 * index..4 + 2 * index].copy_from_slice(&value.to_ne_bytes());
        }
        bytes
    }
}

/// An interface of the calling thread's network namespace.
#[derive(Debug)]
pub struct Wire {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl Wire {
    /// Opens an interface; frames for other hardware addresses than its own are heard too.
    ///
    /// # Errors
    /// Without CAP_NET_RAW, or when there is no such interface.
    pub fn open(interface: &str) -> Result<Self> {
        let wire = Self::listen(interface)?;
        set(&wire.socket, libc::PACKET_IGNORE_OUTGOING, 1).context("setting PACKET_IGNORE_OUTGOING")?;
        Ok(wire)
    }

    /// Likewise; what the host itself sends there is heard too.
    ///
    /// # Errors
    /// As [`Wire::open`].
    pub fn listen(interface: &str) -> Result<Self> {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: no pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, i32::from(protocol)) };
        ensure!(fd >= 0, "opening an AF_PACKET socket: {}", io::Error::last_os_error());
        // SAFETY: a descriptor that was opened above and that nobody else has.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER).context("setting SO_RCVBUFFORCE")?;
        set(&socket, libc::PACKET_VNET_HDR, 1).context("setting PACKET_VNET_HDR")?;
        let interface = CString::new(interface)?;
        // SAFETY: a string that ends with NUL.
        let index = unsafe { libc::if_nametoindex(interface.as_ptr()) };
        ensure!(index != 0, "no interface {interface:?}: {}", io::Error::last_os_error());
        // SAFETY: all zeros is a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = index as i32;
        let size = size_of::<libc::sockaddr_ll>() as u32;
        // SAFETY: an address of that size.
        let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) };
        ensure!(bound == 0, "binding to {interface:?}: {}", io::Error::last_os_error());
        Ok(Self { socket, buffer: vec![0; LONGEST] })
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// When the interface does not take it.
    pub fn send(&mut self, frame: &[u8], offload: Offload) -> Result<()> {
        let bytes = [&offload.header()[..], frame].concat();
        // SAFETY: that many bytes are there.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        let error = io::Error::last_os_error();
        ensure!(usize::try_from(sent) == Ok(bytes.len()), "sending a frame of {} bytes: {error}", frame.len());
        Ok(())
    }

    /// The next frame that arrives before `deadline`.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn receive(&mut self, deadline: Instant) -> Result<Option<&[u8]>> {
        loop {
            // SAFETY: the buffer is as long as that.
            let read =
                unsafe { libc::recv(self.socket.as_raw_fd(), self.buffer.as_mut_ptr().cast(), self.buffer.len(), 0) };
            if let Ok(read) = usize::try_from(read) {
                return Ok(Some(&self.buffer[HEADER.min(read)..read]));
            }
            let error = io::Error::last_os_error();
            match error.kind() {
                io::ErrorKind::WouldBlock => {}
                io::ErrorKind::Interrupted => continue,
                _ => return Err(error).context("receiving a frame"),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            wait(&self.socket, left)?;
        }
    }
}

fn set(socket: &OwnedFd, option: i32, value: i32) -> io::Result<()> {
    let size = size_of::<i32>() as u32;
    // SAFETY: a value of that size.
    let done =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, (&raw const value).cast(), size) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn wait(socket: &OwnedFd, time: Duration) -> Result<()> {
    let mut waited = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let time = libc::timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) };
    // SAFETY: one descriptor, one time, no signal mask.
    let done = unsafe { libc::ppoll(&raw mut waited, 1, &raw const time, std::ptr::null()) };
    let error = io::Error::last_os_error();
    ensure!(done >= 0 || error.kind() == io::ErrorKind::Interrupted, "waiting for a frame: {error}");
    Ok(())
}
