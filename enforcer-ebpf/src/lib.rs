//! What the enforcer decides, without the kernel: pure, `no_std`, no allocation, no clock, no panic.
//!
//! The same code is compiled into the BPF program (`src/kernel`, the binary of this crate), into the host tests
//! and into the fuzzers; what the kernel runs is what was tested.
//!
//! # Layout, in the order of a packet
//! - [`wire`]: Ethernet, VLAN, IP, TCP → one [`wire::Segment`]
//! - [`flow`]: the table of connections; which bytes of a segment are new, and from which state they are read
//! - [`http`]: the resumable HTTP/1.1 framing machine
//! - [`key`]: the keyed tag of an `X-API-Key` value
//! - [`limit`]: sliding, fixed and GCRA limiters, changed by compare-and-swap
//! - [`calendar`]: where the windows of those begin that follow it
//! - [`charge`]: all limits that apply to a request, or none
//! - [`spread`]: too many keys of one source, or sources of one key
//! - [`connection`]: how many connections a source or a principal has open
//! - [`verdict`]: why a request is refused, and what is done about it
//! - [`judge`]: the whole way, over a [`judge::World`] that the kernel and the tests each provide
//! - [`source`]: what becomes of sources that go on sending what is refused
//! - [`reply`]: the packet that a refused one is turned into
//! - [`answer`]: what its client is sent
//! - [`shift`]: how both ends count from then on, where the connection is kept
//! - [`abi`]: what lies in the BPF maps, for both sides
#![cfg_attr(not(test), no_std)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![deny(unsafe_code)]

pub mod abi;
pub mod answer;
pub mod calendar;
pub mod charge;
pub mod connection;
pub mod flow;
pub mod http;
pub mod judge;
pub mod key;
pub mod limit;
mod opaque;
#[cfg(feature = "user")]
mod pod;
pub mod reply;
pub mod shift;
pub mod shortcut;
pub mod source;
pub mod spread;
pub mod verdict;
pub mod wire;
pub mod words;
