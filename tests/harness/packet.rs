//! Frames as a network would bring them: Ethernet, VLAN tags, IPv4 or IPv6, TCP, with right lengths and checksums.
//!
//! Built by hand, byte for byte, so that a test can also make what no library would; the tests read frames back with
//! `etherparse`, so builder and reader never share a mistake.

use std::net::{IpAddr, SocketAddr};

/// TCP flags.
pub mod flag {
    /// The sender has no more data.
    pub const FIN: u8 = 0x01;
    /// A connection begins.
    pub const SYN: u8 = 0x02;
    /// The connection is aborted.
    pub const RST: u8 = 0x04;
    /// Hand the data up.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement number holds.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer holds.
    pub const URG: u8 = 0x20;
}

/// EtherType of a customer's VLAN tag (802.1Q).
pub const VLAN: u16 = 0x8100;
/// EtherType of a provider's VLAN tag (802.1ad).
pub const QINQ: u16 = 0x88a8;

/// One TCP segment in its frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The sender.
    pub source: SocketAddr,
    /// The receiver; of the same family.
    pub destination: SocketAddr,
    /// VLAN tags, outermost first: EtherType of the tag and VLAN id.
    pub tags: Vec<(u16, u16)>,
    /// IPv4 options, or IPv6 extension headers as (type, bytes); see [`Frame::build`].
    pub ip_options: Vec<u8>,
    /// IPv6 extension headers before TCP: type of the header, and all its bytes but the first (the next header).
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// IPv4: the flags and fragment offset word.
    pub fragment: u16,
    /// TCP sequence number.
    pub seq: u32,
    /// TCP acknowledgement number.
    pub ack: u32,
    /// TCP flags, of [`flag`].
    pub flags: u8,
    /// TCP options, a multiple of four bytes.
    pub tcp_options: Vec<u8>,
    /// The data.
    pub payload: Vec<u8>,
    /// Bytes of the frame behind the IP packet.
    pub trailer: Vec<u8>,
}

impl Frame {
    /// A segment with ACK and PSH.
    #[must_use]
    pub fn data(source: SocketAddr, destination: SocketAddr, seq: u32, payload: &[u8]) -> Self {
        Self {
            source,
            destination,
            tags: Vec::new(),
            ip_options: Vec::new(),
            extensions: Vec::new(),
            fragment: 0x4000,
            seq,
            ack: 1,
            flags: flag::ACK | flag::PSH,
            tcp_options: Vec::new(),
            payload: payload.to_vec(),
            trailer: Vec::new(),
        }
    }

    /// A segment without data.
    #[must_use]
    pub fn bare(source: SocketAddr, destination: SocketAddr, seq: u32, flags: u8) -> Self {
        let ack = if flags & flag::ACK == 0 { 0 } else { 1 };
        Self { flags, ack, ..Self::data(source, destination, seq, &[]) }
    }

    /// The same with another acknowledgement number.
    #[must_use]
    pub fn acking(mut self, ack: u32) -> Self {
        self.ack = ack;
        self
    }

    /// The same behind these VLAN tags.
    #[must_use]
    pub fn tagged(mut self, tags: &[(u16, u16)]) -> Self {
        self.tags = tags.to_vec();
        self
    }

    /// The bytes of the frame.
    ///
    /// # Panics
    /// When the two addresses are of different families, or options are not whole words.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let mut bytes = vec![0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2];
        for &(kind, id) in &self.tags {
            bytes.extend(kind.to_be_bytes());
            bytes.extend(id.to_be_bytes());
        }
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                bytes.extend(0x0800u16.to_be_bytes());
                self.ipv4(&mut bytes, source.octets(), destination.octets());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                bytes.extend(0x86ddu16.to_be_bytes());
                self.ipv6(&mut bytes, source.octets(), destination.octets());
            }
            _ => panic!("a frame has addresses of one family"),
        }
        bytes.extend(&self.trailer);
        bytes
    }

    fn ipv4(&self, bytes: &mut Vec<u8>, source: [u8; 4], destination: [u8; 4]) {
        assert_eq!(self.ip_options.len() % 4, 0, "IP options are whole words");
        let pseudo = [&source[..], &destination[..]].concat();
        let tcp = self.tcp(&pseudo);
        let header = 20 + self.ip_options.len();
        let begin = bytes.len();
        bytes.push(0x40 | (header / 4) as u8);
        bytes.push(0);
        bytes.extend(((header + tcp.len()) as u16).to_be_bytes());
        bytes.extend(0x1234u16.to_be_bytes());
        bytes.extend(self.fragment.to_be_bytes());
        bytes.extend([64, 6, 0, 0]);
        bytes.extend(source);
        bytes.extend(destination);
        bytes.extend(&self.ip_options);
        let sum = checksum(&bytes[begin..]);
        bytes[begin + 10..begin + 12].copy_from_slice(&sum.to_be_bytes());
        bytes.extend(tcp);
    }

    fn ipv6(&self, bytes: &mut Vec<u8>, source: [u8; 16], destination: [u8; 16]) {
        let pseudo = [&source[..], &destination[..]].concat();
        let tcp = self.tcp(&pseudo);
        let mut between = Vec::new();
        for (index, (_, rest)) in self.extensions.iter().enumerate() {
            between.push(self.extensions.get(index + 1).map_or(6, |next| next.0));
            between.extend(rest);
        }
        bytes.extend([0x60, 0, 0, 0]);
        bytes.extend(((between.len() + tcp.len()) as u16).to_be_bytes());
        bytes.push(self.extensions.first().map_or(6, |first| first.0));
        bytes.push(64);
        bytes.extend(source);
        bytes.extend(destination);
        bytes.extend(between);
        bytes.extend(tcp);
    }

    fn tcp(&self, pseudo: &[u8]) -> Vec<u8> {
        assert_eq!(self.tcp_options.len() % 4, 0, "TCP options are whole words");
        let mut tcp = Vec::with_capacity(20 + self.tcp_options.len() + self.payload.len());
        tcp.extend(self.source.port().to_be_bytes());
        tcp.extend(self.destination.port().to_be_bytes());
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(self.ack.to_be_bytes());
        tcp.push((((20 + self.tcp_options.len()) / 4) as u8) << 4);
        tcp.push(self.flags);
        tcp.extend(0xffffu16.to_be_bytes());
        tcp.extend([0, 0, 0, 0]);
        tcp.extend(&self.tcp_options);
        tcp.extend(&self.payload);
        let mut summed = pseudo.to_vec();
        summed.extend((tcp.len() as u32).to_be_bytes());
        summed.extend([0, 0, 0, 6]);
        summed.extend(&tcp);
        let sum = checksum(&summed);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        tcp
    }
}

/// The Internet checksum (RFC 1071) of `bytes`.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u64 =
        bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::{Frame, VLAN, flag};
    use etherparse::{NetHeaders, PacketHeaders, TransportHeader};

    fn check(frame: &Frame) {
        let bytes = frame.build();
        let read = PacketHeaders::from_ethernet_slice(&bytes).expect("a frame that etherparse reads");
        let Some(TransportHeader::Tcp(tcp)) = &read.transport else { panic!("no TCP in {read:?}") };
        assert_eq!((tcp.sequence_number, tcp.source_port), (frame.seq, frame.source.port()));
        let sum = match &read.net {
            Some(NetHeaders::Ipv4(ip, _)) => {
                assert_eq!(ip.header_checksum, ip.calc_header_checksum());
                tcp.calc_checksum_ipv4(ip, read.payload.slice())
            }
            Some(NetHeaders::Ipv6(ip, _)) => tcp.calc_checksum_ipv6(ip, read.payload.slice()),
            other => panic!("no IP in {other:?}"),
        };
        assert_eq!(sum.ok(), Some(tcp.checksum));
        assert_eq!(read.payload.slice(), frame.payload);
    }

    #[test]
    fn builds_frames_that_another_implementation_reads_and_finds_valid() {
        let v4 = |host: u8| std::net::SocketAddr::from(([10, 9, 0, host], 8000));
        let v6 = |host: u16| std::net::SocketAddr::from(([0xfd09, 0, 0, 0, 0, 0, 0, host], 8000));
        check(&Frame::data(v4(1), v4(2), 7, b"hello"));
        check(&Frame::bare(v4(1), v4(2), 7, flag::SYN));
        check(&Frame::data(v6(1), v6(2), 7, b"odd"));
        check(&Frame::data(v4(1), v4(2), 7, b"x").tagged(&[(VLAN, 5)]));
        check(&Frame { ip_options: vec![1; 8], tcp_options: vec![1; 12], ..Frame::data(v4(1), v4(2), 7, b"abc") });
        let hop_by_hop = vec![0, 1, 4, 0, 0, 0, 0];
        check(&Frame { extensions: vec![(0, hop_by_hop)], ..Frame::data(v6(1), v6(2), 7, b"abc") });
    }
}
