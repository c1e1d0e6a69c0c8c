//! From a frame to a segment: Ethernet, VLAN tags, IPv4 and IPv6 with their options and extension headers, TCP.
//!
//! The first [`HEAD`] bytes of the frame are parsed where they lie; every read is masked into that array, so no
//! length that a client writes can lead outside. What cannot be parsed to its end is an error of its own, never
//! "not TCP": on a guarded host it is dropped, not passed.

pub mod head;

use core::net::IpAddr;

use crate::opaque::opaque;
use crate::verdict::Reason;
pub use head::{HEAD, Head};

/// EtherTypes and protocol numbers (IEEE 802.1Q, IANA).
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
const QINQ: u16 = 0x88a8;
pub(crate) const TCP: u8 = 6;

/// Most VLAN tags that are walked.
const VLAN_TAGS: usize = 2;
/// Most IPv6 extension headers that are walked.
const EXTENSIONS: usize = 8;

/// TCP flag bits (RFC 9293 §3.1).
pub mod flag {
    /// No more data from sender.
    pub const FIN: u8 = 0x01;
    /// Synchronize sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// Hand the data to the application.
    pub const PSH: u8 = 0x08;
    /// The acknowledgment field counts.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer counts.
    pub const URG: u8 = 0x20;
}

/// The two ends of a connection, as the client's packets name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(C)]
pub struct Tuple {
    /// Source address, network order in memory; an IPv4 address fills the lower half of the first word.
    pub source: [u64; 2],
    /// Destination address, likewise.
    pub destination: [u64; 2],
    /// Source port in the upper half, destination port in the lower, host order; bit 63 is set for IPv6.
    pub ports: u64,
}

impl Tuple {
    const V6: u64 = 1 << 63;

    /// A connection from this address to this port, of which nothing else is known; an IPv4 address may be mapped.
    #[must_use]
    pub const fn between(source: IpAddr, port: u16) -> Self {
        match source.to_canonical() {
            IpAddr::V4(source) => {
                let first = u32::from_ne_bytes(source.octets()) as u64;
                Self { source: [first, 0], destination: [0; 2], ports: port as u64 }
            }
            IpAddr::V6(source) => {
                let both = u128::from_ne_bytes(source.octets());
                // The word that lies first in memory is the lower one: all targets are little endian.
                let source = [both as u64, (both >> 64) as u64];
                Self { source, destination: [0; 2], ports: port as u64 | Self::V6 }
            }
        }
    }

    /// Whether the addresses are IPv6.
    #[must_use]
    #[inline(always)]
    pub const fn is_v6(&self) -> bool {
        self.ports & Self::V6 != 0
    }

    /// The same connection as the other end's packets name it.
    #[must_use]
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        let ports = (self.ports & Self::V6) | ((self.ports & 0xffff) << 32) | self.source_port() as u64;
        Self { source: self.destination, destination: self.source, ports }
    }

    /// The source address as an IPv6 address, an IPv4 address mapped (RFC 4291 §2.5.5.2); in network order in memory.
    #[must_use]
    #[inline(always)]
    pub const fn mapped_source(&self) -> [u64; 2] {
        if self.is_v6() { self.source } else { [0, (self.source[0] << 32) | 0xffff_0000] }
    }

    /// The client's port.
    #[must_use]
    #[inline(always)]
    pub const fn source_port(&self) -> u16 {
        (self.ports >> 32) as u16
    }

    /// The service's port.
    #[must_use]
    #[inline(always)]
    pub const fn destination_port(&self) -> u16 {
        self.ports as u16
    }
}

/// A TCP segment and where it lies in its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Segment {
    /// Who talks to whom.
    pub tuple: Tuple,
    /// Sequence number of the first byte (of the SYN, if there is one).
    pub seq: u32,
    /// Acknowledgment number.
    pub ack: u32,
    /// Where the IP header begins in the frame.
    pub ip: u32,
    /// Where the TCP header begins.
    pub tcp: u32,
    /// Where the payload begins.
    pub payload: u32,
    /// Bytes of payload, bounded by the IP length.
    pub len: u32,
    /// [`flag`] bits.
    pub flags: u32,
    /// 1 if this is an IP fragment.
    pub fragment: u32,
}

impl Segment {
    /// All zero.
    pub const EMPTY: Self = Self {
        tuple: Tuple { source: [0; 2], destination: [0; 2], ports: 0 },
        seq: 0,
        ack: 0,
        ip: 0,
        tcp: 0,
        payload: 0,
        len: 0,
        flags: 0,
        fragment: 0,
    };

    /// Whether all of these flags are set.
    #[must_use]
    #[inline(always)]
    pub const fn has(&self, flags: u8) -> bool {
        self.flags & flags as u32 == flags as u32
    }

    /// The sequence number behind the payload and FIN.
    #[must_use]
    #[inline(always)]
    pub const fn end(&self) -> u32 {
        self.seq.wrapping_add(self.len).wrapping_add(self.flags & flag::FIN as u32)
    }
}

/// Why a frame is no segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotTcp {
    /// Not TCP over IP, or a later fragment (it carries no port, and is nothing without its first): passed.
    Other,
    /// TCP, or what may hide it, whose headers lead beyond what is parsed.
    Unreadable(Reason),
}

const UNPARSABLE: NotTcp = NotTcp::Unreadable(Reason::Unparsable);

/// Parses the first bytes of a frame of `frame` bytes.
///
/// # Errors
/// [`NotTcp`] where there is no segment, or none that can be read.
#[inline(always)]
pub fn parse(head: &Head, frame: u32, segment: &mut Segment) -> Result<(), NotTcp> {
    let mut at = 12u32;
    let mut ether_type = head.u16(at);
    for _ in 0..VLAN_TAGS {
        if ether_type != VLAN && ether_type != QINQ {
            break;
        }
        at += 4;
        ether_type = head.u16(at);
    }
    if at + 2 > frame {
        return Err(NotTcp::Other);
    }
    segment.ip = at + 2;
    segment.fragment = 0;
    match ether_type {
        IPV4 => parse_v4(head, frame, segment),
        IPV6 => parse_v6(head, frame, segment),
        // The stack goes on untagging; we do not.
        VLAN | QINQ => Err(UNPARSABLE),
        _ => Err(NotTcp::Other),
    }
}

#[inline(always)]
fn parse_v4(head: &Head, frame: u32, segment: &mut Segment) -> Result<(), NotTcp> {
    let ip = segment.ip;
    if ip + 20 > frame || head.u8(ip + 9) != TCP {
        return Err(NotTcp::Other);
    }
    let first = head.u8(ip);
    let header = u32::from(first & 0xf) * 4;
    // 0 where the host itself has merged more than the field can say (iph_totlen, include/linux/ip.h).
    let total = match head.u16(ip + 2) {
        0 => frame - ip,
        total => u32::from(total),
    };
    // The stack discards these before any port is looked at (ip_rcv_core).
    if first >> 4 != 4 || header < 20 || total < header || ip + total > frame {
        return Err(NotTcp::Other);
    }
    let fragment = head.u16(ip + 6);
    if fragment & 0x1fff != 0 {
        return Err(NotTcp::Other);
    }
    segment.fragment = u32::from(fragment & 0x2000 != 0);
    segment.tuple.source = [u64::from(head.u32_raw(ip + 12)), 0];
    segment.tuple.destination = [u64::from(head.u32_raw(ip + 16)), 0];
    parse_tcp(head, ip + header, ip + total, 0, segment)
}

#[inline(always)]
fn parse_v6(head: &Head, frame: u32, segment: &mut Segment) -> Result<(), NotTcp> {
    let ip = segment.ip;
    if ip + 40 > frame {
        return Err(NotTcp::Other);
    }
    // Likewise (ipv6_payload_len, include/linux/ipv6.h; before, with a jumbo payload option, RFC 2675).
    let end = match head.u16(ip + 4) {
        0 => frame,
        len => ip + 40 + u32::from(len),
    };
    if head.u8(ip) >> 4 != 6 || end > frame {
        return Err(NotTcp::Other);
    }
    let mut next = head.u8(ip + 6);
    let mut at = ip + 40;
    for _ in 0..EXTENSIONS {
        // Hop-by-hop, routing, fragment, destination options and authentication headers (RFC 8200 §4, RFC 4302).
        if !matches!(next, 0 | 43 | 44 | 51 | 60) {
            break;
        }
        if at + 8 > end || at + 8 > HEAD {
            return Err(UNPARSABLE);
        }
        at = opaque(at);
        let words = u32::from(head.u8(at + 1));
        let len = match next {
            44 => {
                let offset = head.u16(at + 2);
                if offset & 0xfff8 != 0 {
                    return Err(NotTcp::Other);
                }
                segment.fragment = 1;
                8
            }
            51 => (words + 2) * 4,
            _ => (words + 1) * 8,
        };
        next = head.u8(at);
        at += len;
    }
    if matches!(next, 0 | 43 | 44 | 51 | 60) {
        return Err(UNPARSABLE);
    }
    if next != TCP {
        return Err(NotTcp::Other);
    }
    segment.tuple.source = [head.u64_raw(ip + 8), head.u64_raw(ip + 16)];
    segment.tuple.destination = [head.u64_raw(ip + 24), head.u64_raw(ip + 32)];
    parse_tcp(head, at, end, Tuple::V6, segment)
}

#[inline(always)]
fn parse_tcp(head: &Head, at: u32, end: u32, family: u64, segment: &mut Segment) -> Result<(), NotTcp> {
    if at + 20 > HEAD || (segment.fragment != 0 && at + 20 > end) {
        return Err(UNPARSABLE);
    }
    // Shorter than a header, or than its own header says: discarded by the stack (tcp_v4_rcv).
    if at + 20 > end {
        return Err(NotTcp::Other);
    }
    let at = opaque(at);
    let header = u32::from(head.u8(at + 12) >> 4) * 4;
    if header < 20 || at + header > end {
        return Err(NotTcp::Other);
    }
    segment.tuple.ports = family | (u64::from(head.u16(at)) << 32) | u64::from(head.u16(at + 2));
    segment.seq = head.u32(at + 4);
    segment.ack = head.u32(at + 8);
    segment.flags = u32::from(head.u8(at + 13));
    segment.tcp = at;
    segment.payload = at + header;
    segment.len = end - segment.payload;
    Ok(())
}
