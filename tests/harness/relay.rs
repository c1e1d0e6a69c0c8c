//! A relay between two interfaces that passes each frame on as the [`Weather`] wants: this kernel may have no netem.
//!
//! It reads and writes whole Ethernet frames with packet sockets, so it sees what is on the wire: the interfaces'
//! other ends must have their offloads off, and a frame that shows that they have not ends the relay with an error.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike as _, bind, recv, send, setsockopt, socket,
    sockopt::RcvBufForce,
};
use nix::sys::time::TimeSpec;

use crate::netns::Namespace;
use crate::weather::{Fates, Lane, Weather};

/// The longest frame on the wire: an MTU of 1500 and an Ethernet header.
const FRAME: usize = 1514;
/// Bytes that may wait to be read on each side, so that the kernel loses nothing by itself.
const RECEIVE_BUFFER: usize = 16 << 20;
/// Frames read from one side before the other side has its turn.
const BATCH: usize = 64;
/// How often an idle relay looks whether it shall end.
const IDLE: Duration = Duration::from_millis(50);

/// A running relay; ends with its value.
#[derive(Debug)]
pub struct Relay {
    thread: Option<JoinHandle<Result<[Fates; 2]>>>,
    ending: Arc<AtomicBool>,
}

impl Relay {
    /// Starts one between two interfaces of `namespace`; `weather` is that of the frames that come in at each.
    ///
    /// # Errors
    /// Without root, or when there is no such interface.
    pub fn start(namespace: &Namespace, interfaces: [&str; 2], weather: [Weather; 2], seed: u64) -> Result<Self> {
        let sides = namespace.run(|| Ok([open(interfaces[0])?, open(interfaces[1])?]))?;
        let ending = Arc::new(AtomicBool::new(false));
        let lanes = [Lane::new(weather[0], seed), Lane::new(weather[1], !seed)];
        let thread = std::thread::Builder::new().name("relay".to_owned()).spawn({
            let ending = Arc::clone(&ending);
            move || run(&sides, lanes, &ending)
        })?;
        Ok(Self { thread: Some(thread), ending })
    }

    /// Ends it; gives the fates of the frames that came in at each interface.
    ///
    /// # Errors
    /// When it had to give up: a frame was no wire frame, or an interface failed.
    pub fn finish(mut self) -> Result<[Fates; 2]> {
        self.end().context("the relay has ended before")?
    }

    fn end(&mut self) -> Option<Result<[Fates; 2]>> {
        self.ending.store(true, Ordering::Relaxed);
        let joined = self.thread.take()?.join();
        Some(joined.unwrap_or_else(|_| bail!("the relay panicked")))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// A packet socket on an interface.
fn open(interface: &str) -> Result<OwnedFd> {
    let side = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
        SockProtocol::EthAll,
    )
    .context("opening a packet socket")?;
    setsockopt(&side, RcvBufForce, &RECEIVE_BUFFER)?;
    let found = getifaddrs()?.filter(|found| found.interface_name == interface).find_map(|found| found.address);
    let address = found.with_context(|| format!("there is no interface {interface}"))?;
    ensure!(address.family() == Some(AddressFamily::Packet), "{interface} has an IP address: it takes frames itself");
    let address = address.as_link_addr().context("no link address")?;
    bind(side.as_raw_fd(), address).with_context(|| format!("binding to {interface}"))?;
    // What came before it was bound may be of another interface.
    while receive(&side, &mut [0; FRAME + 1])?.is_some() {}
    Ok(side)
}

fn run(sides: &[OwnedFd; 2], mut lanes: [Lane; 2], ending: &AtomicBool) -> Result<[Fates; 2]> {
    let begin = Instant::now();
    let mut buffer = [0; FRAME + 1];
    while !ending.load(Ordering::Relaxed) {
        for (lane, side) in lanes.iter_mut().zip(sides) {
            for _ in 0..BATCH {
                let Some(length) = receive(side, &mut buffer)? else { break };
                ensure!(length <= FRAME, "a frame of {length} bytes came in: offloads are on");
                lane.take(&buffer[..length], begin.elapsed());
            }
        }
        for (lane, side) in lanes.iter_mut().zip(sides.iter().rev()) {
            while let Some(frame) = lane.leave(begin.elapsed()) {
                deliver(side, &frame, lane)?;
            }
        }
        let next = lanes.iter().filter_map(Lane::due).min();
        let idle = next.map_or(IDLE, |next| next.saturating_sub(begin.elapsed()).min(IDLE));
        let mut ready = sides.each_ref().map(|side| PollFd::new(side.as_fd(), PollFlags::POLLIN));
        match ppoll(&mut ready, Some(TimeSpec::from_duration(idle)), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("waiting for frames"),
        }
    }
    Ok(lanes.map(|lane| lane.fates()))
}

/// The length of the next frame; its bytes are cut to the buffer's length.
fn receive(side: &OwnedFd, buffer: &mut [u8]) -> Result<Option<usize>> {
    match recv(side.as_raw_fd(), buffer, MsgFlags::MSG_TRUNC) {
        Ok(length) => Ok(Some(length)),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
        Err(error) => Err(error).context("reading a frame"),
    }
}

/// Sends a frame; one that finds the interface's queue full is lost, and counted so.
fn deliver(side: &OwnedFd, frame: &[u8], lane: &mut Lane) -> Result<()> {
    match send(side.as_raw_fd(), frame, MsgFlags::empty()) {
        Ok(_) => Ok(()),
        Err(Errno::EAGAIN | Errno::ENOBUFS) => {
            lane.overflow();
            Ok(())
        }
        Err(error) => Err(error).context("sending a frame"),
    }
}
