//! One TCP segment and the frames that carry it, with every field open to be wrong.
//!
//! Checksums and lengths are right unless the segment says otherwise, and are then wrong in exactly the way it says.

use std::net::{IpAddr, SocketAddr};

use crate::packet::checksum;
use crate::raw::ip::Ip;
use crate::raw::wire::Offload;

/// TCP flags, those of the ninth bit and the reserved ones included (RFC 9293 §3.1, RFC 3540).
pub mod flag {
    /// No more data.
    pub const FIN: u16 = 0x001;
    /// A connection begins.
    pub const SYN: u16 = 0x002;
    /// The connection is aborted.
    pub const RST: u16 = 0x004;
    /// Hand the data up.
    pub const PSH: u16 = 0x008;
    /// The acknowledgment number holds.
    pub const ACK: u16 = 0x010;
    /// The urgent pointer holds.
    pub const URG: u16 = 0x020;
    /// Congestion was seen.
    pub const ECE: u16 = 0x040;
    /// The congestion window was reduced.
    pub const CWR: u16 = 0x080;
}

/// Bytes of a TCP header without options.
const HEADER: usize = 20;
/// Where the checksum stands in it.
const CHECKSUM: u16 = 16;

/// The addresses of both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The client's hardware address.
    pub client_mac: [u8; 6],
    /// The server's hardware address.
    pub server_mac: [u8; 6],
    /// The client.
    pub client: SocketAddr,
    /// The server; of the same family.
    pub server: SocketAddr,
}

/// What stands in TCP's checksum field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// The right sum.
    Right,
    /// The right sum with one bit turned.
    Wrong,
    /// Zero.
    Zero,
    /// The pseudo-header's sum, for the receiving side to go on from, as a local sender with checksum offload leaves
    /// it.
    Partial,
}

/// Whom the frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mac {
    /// The server.
    Server,
    /// Another host.
    Other,
    /// Everybody.
    Broadcast,
    /// A group.
    Multicast,
}

/// A segment. Build it by [`Segment::new`] and change what is to be different.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgment number.
    pub ack: u32,
    /// Of [`flag`]; bits 9–11 are the reserved ones.
    pub flags: u16,
    /// The window field, as it stands.
    pub window: u16,
    /// The urgent pointer.
    pub urgent: u16,
    /// TCP options; filled up with NOPs to whole words.
    pub options: Vec<u8>,
    /// Header length in words, if it is to be wrong.
    pub header_words: Option<u8>,
    /// The checksum.
    pub checksum: Checksum,
    /// Cut the frame into segments of this size on its way, as TCP segmentation offload does; 0 for never.
    pub segment_size: u16,
    /// The data.
    pub payload: Vec<u8>,
    /// The IP layer.
    pub ip: Ip,
    /// Whom the frame is for.
    pub mac: Mac,
    /// VLAN tags, outermost first: EtherType of the tag and the two bytes behind it.
    pub tags: Vec<(u16, u16)>,
    /// Bytes of the frame behind the IP packet.
    pub trailer: Vec<u8>,
}

impl Segment {
    /// A right segment.
    #[must_use]
    pub fn new(seq: u32, ack: u32, flags: u16, payload: &[u8]) -> Self {
        Self {
            seq,
            ack,
            flags,
            window: 0xffff,
            urgent: 0,
            options: Vec::new(),
            header_words: None,
            checksum: Checksum::Right,
            segment_size: 0,
            payload: payload.to_vec(),
            ip: Ip::default(),
            mac: Mac::Server,
            tags: Vec::new(),
            trailer: Vec::new(),
        }
    }

    /// The frames, in the order in which they are sent, each with what the interface has still to do to it.
    #[must_use]
    pub fn frames(&self, ends: &Ends) -> Vec<(Vec<u8>, Offload)> {
        let destination = self.ip.destination.unwrap_or(ends.server.ip());
        let source = ends.client.ip();
        let tcp = self.tcp(ends, source, destination);
        let link = self.link(ends, source.is_ipv6());
        let header = self.ip.header_length(source.is_ipv6());
        self.ip
            .packets(source, destination, &tcp)
            .into_iter()
            .map(|packet| {
                let frame = [&link[..], &packet, &self.trailer].concat();
                (frame, self.offload(link.len() + header, source.is_ipv6()))
            })
            .collect()
    }

    /// `tcp` is where the TCP header begins in the frame.
    fn offload(&self, tcp: usize, v6: bool) -> Offload {
        if self.checksum != Checksum::Partial {
            return Offload::None;
        }
        let start = tcp as u16;
        if self.segment_size == 0 {
            return Offload::Checksum { start, offset: CHECKSUM };
        }
        let header = start + (HEADER + self.padded_options().len()) as u16;
        Offload::Segmentation { start, offset: CHECKSUM, header, size: self.segment_size, v6 }
    }

    fn link(&self, ends: &Ends, v6: bool) -> Vec<u8> {
        let mut bytes = match self.mac {
            Mac::Server => ends.server_mac,
            Mac::Other => [0x02, 0xee, 0, 0, 0, 0xee],
            Mac::Broadcast => [0xff; 6],
            Mac::Multicast => [0x01, 0x00, 0x5e, 0, 0, 1],
        }
        .to_vec();
        bytes.extend(ends.client_mac);
        for (kind, tag) in &self.tags {
            bytes.extend(kind.to_be_bytes());
            bytes.extend(tag.to_be_bytes());
        }
        bytes.extend(if v6 { 0x86ddu16 } else { 0x0800 }.to_be_bytes());
        bytes
    }

    fn padded_options(&self) -> Vec<u8> {
        let mut options = self.options.clone();
        options.resize(options.len().next_multiple_of(4), 1);
        options
    }

    fn tcp(&self, ends: &Ends, source: IpAddr, destination: IpAddr) -> Vec<u8> {
        let options = self.padded_options();
        let words = self.header_words.unwrap_or(((HEADER + options.len()) / 4) as u8);
        let mut tcp = Vec::with_capacity(HEADER + options.len() + self.payload.len());
        tcp.extend(ends.client.port().to_be_bytes());
        tcp.extend(ends.server.port().to_be_bytes());
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(self.ack.to_be_bytes());
        tcp.push(words << 4 | (self.flags >> 8) as u8);
        tcp.push(self.flags as u8);
        tcp.extend(self.window.to_be_bytes());
        tcp.extend([0, 0]);
        tcp.extend(self.urgent.to_be_bytes());
        tcp.extend(&options);
        tcp.extend(&self.payload);

        let pseudo = pseudo_header(source, destination, tcp.len());
        let right = checksum(&[&pseudo[..], &tcp].concat());
        let sum = match self.checksum {
            Checksum::Right => right,
            Checksum::Wrong => right ^ 1,
            Checksum::Zero => 0,
            Checksum::Partial => !checksum(&pseudo),
        };
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        tcp
    }
}

fn pseudo_header(source: IpAddr, destination: IpAddr, length: usize) -> Vec<u8> {
    let mut pseudo = Vec::with_capacity(40);
    for address in [source, destination] {
        match address {
            IpAddr::V4(address) => pseudo.extend(address.octets()),
            IpAddr::V6(address) => pseudo.extend(address.octets()),
        }
    }
    pseudo.extend((length as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, 6]);
    pseudo
}
