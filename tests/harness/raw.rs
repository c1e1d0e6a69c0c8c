//! A TCP client whose every byte is chosen: what no operating system would send, and what only a lossy network makes.
//!
//! [`Segment`] says what a frame is to be, right or wrong in any part; [`Wire`] sends it past the local stack and
//! hears what comes back; [`Client`] keeps what a client must know of a connection, so that a script need not.

mod client;
mod ip;
mod received;
mod segment;
mod wire;

pub use client::{Client, Handshake};
pub use ip::{Extension, Ip, Piece};
pub use received::Received;
pub use segment::{Checksum, Ends, Mac, Segment, flag};
pub use wire::{Offload, Wire};
