//! A segment that came back, as far as a client has to understand it.

use std::net::{IpAddr, SocketAddr};

use etherparse::{NetSlice, SlicedPacket, TcpOptionElement, TransportSlice};

/// A TCP segment that was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// Who sent it.
    pub source: SocketAddr,
    /// Whom it is for.
    pub destination: SocketAddr,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgment number.
    pub ack: u32,
    /// Whether it has SYN, ACK, FIN, RST.
    pub syn: bool,
    /// Whether the acknowledgment number holds.
    pub has_ack: bool,
    /// Whether it ends the server's side.
    pub fin: bool,
    /// Whether it aborts the connection.
    pub rst: bool,
    /// The server's timestamp (RFC 7323), if there is one.
    pub timestamp: Option<u32>,
    /// The data.
    pub payload: Vec<u8>,
}

impl Received {
    /// Reads a frame; `None` if it is no TCP segment.
    #[must_use]
    pub fn read(frame: &[u8]) -> Option<Self> {
        let packet = SlicedPacket::from_ethernet(frame).ok()?;
        let (source, destination) = match &packet.net {
            Some(NetSlice::Ipv4(ip)) => {
                (IpAddr::from(ip.header().source_addr()), IpAddr::from(ip.header().destination_addr()))
            }
            Some(NetSlice::Ipv6(ip)) => {
                (IpAddr::from(ip.header().source_addr()), IpAddr::from(ip.header().destination_addr()))
            }
            _ => return None,
        };
        let Some(TransportSlice::Tcp(tcp)) = &packet.transport else { return None };
        let timestamp = tcp.options_iterator().find_map(|option| match option {
            Ok(TcpOptionElement::Timestamp(value, _)) => Some(value),
            _ => None,
        });
        Some(Self {
            source: SocketAddr::new(source, tcp.source_port()),
            destination: SocketAddr::new(destination, tcp.destination_port()),
            seq: tcp.sequence_number(),
            ack: tcp.acknowledgment_number(),
            syn: tcp.syn(),
            has_ack: tcp.ack(),
            fin: tcp.fin(),
            rst: tcp.rst(),
            timestamp,
            payload: tcp.payload().to_vec(),
        })
    }
}
