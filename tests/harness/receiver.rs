//! The receiving host as the enforcer's packets meet it: a small TCP that accepts as Linux does, and knows its bytes.
//!
//! The first copy of a byte in order wins; what comes ahead is kept, the first copy of it too; RST counts only at exactly
//! the next byte (RFC 5961), SYN and segments without ACK not at all on an open connection.

use std::collections::BTreeMap;

use enforcer_ebpf::flow::{self, after, receiver};
use etherparse::{NetHeaders, PacketHeaders, TcpHeader, TransportHeader};

/// How far ahead of the next byte data may be.
const WINDOW: u32 = 65_535;

/// One end of a connection, and of those that came before it between the same two addresses.
#[derive(Clone, Debug, Default)]
pub struct Receiver {
    open: Option<Open>,
    /// Connections that have begun.
    begun: u32,
    /// What the connections that have ended had received.
    past: Vec<Received>,
}

/// A connection that is open.
#[derive(Clone, Debug)]
struct Open {
    base: u32,
    next: u32,
    received: Received,
    ahead: BTreeMap<u32, u8>,
    end: Option<u32>,
}

/// What an application could read of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// The sender has said that there are no more.
    pub is_finished: bool,
    /// A byte was taken out of the stream, as urgent data.
    pub is_edited: bool,
}

impl Receiver {
    /// What the host says of the connection when it is asked.
    #[must_use]
    pub fn socket(&self) -> flow::Receiver {
        match &self.open {
            // Its application never writes.
            Some(open) => flow::Receiver {
                state: receiver::STREAM,
                next: open.next,
                base: open.base,
                server: self.server(),
                written: self.server(),
            },
            None => flow::Receiver { state: receiver::LISTENING, ..flow::Receiver::ABSENT },
        }
    }

    /// Sequence number of the present connection's first byte the other way; no two have the same.
    #[must_use]
    pub fn server(&self) -> u32 {
        self.begun.wrapping_mul(0x0101_0101)
    }

    /// Sequence number of the next byte, if there is a connection.
    #[must_use]
    pub fn next(&self) -> Option<u32> {
        self.open.as_ref().map(|open| open.next)
    }

    /// What the connections have received, the present one last.
    pub fn received(&self) -> impl Iterator<Item = &Received> {
        self.past.iter().chain(self.open.as_ref().map(|open| &open.received))
    }

    /// Takes a frame, as far as the stack does.
    pub fn deliver(&mut self, frame: &[u8]) {
        let Some((tcp, payload)) = read(frame) else { return };
        let Some(open) = &mut self.open else {
            if tcp.syn && !tcp.ack && !tcp.rst && !tcp.fin {
                let base = tcp.sequence_number.wrapping_add(1);
                let received = Received::default();
                self.begun += 1;
                self.open = Some(Open { base, next: base, received, ahead: BTreeMap::new(), end: None });
            }
            return;
        };
        if tcp.rst {
            if tcp.sequence_number == open.next
                && let Some(open) = self.open.take()
            {
                self.past.push(open.received);
            }
            return;
        }
        if !tcp.syn && tcp.ack {
            open.take(&tcp, payload);
        }
    }
}

impl Open {
    fn take(&mut self, tcp: &TcpHeader, payload: &[u8]) {
        let seq = tcp.sequence_number;
        let end = seq.wrapping_add(payload.len() as u32);
        if seq.wrapping_sub(self.next) as i32 > WINDOW as i32 || self.received.is_finished {
            return;
        }
        if tcp.urg && after(end, self.next) {
            self.received.is_edited = true;
        }
        if after(seq, self.next) {
            for (index, byte) in payload.iter().enumerate() {
                self.ahead.entry(seq.wrapping_add(index as u32)).or_insert(*byte);
            }
        } else if after(end, self.next) {
            let old = self.next.wrapping_sub(seq) as usize;
            self.received.bytes.extend(&payload[old..]);
            self.next = end;
        }
        if tcp.fin && !after(self.next, end) && self.end.is_none() {
            self.end = Some(end);
        }
        while let Some(byte) = self.ahead.remove(&self.next) {
            self.received.bytes.push(byte);
            self.next = self.next.wrapping_add(1);
        }
        let next = self.next;
        self.ahead.retain(|at, _| after(*at, next));
        if self.end == Some(self.next) {
            self.received.is_finished = true;
            self.next = self.next.wrapping_add(1);
        }
    }
}

/// A frame's segment and its data, if it is whole and right to its last checksum.
#[must_use]
pub fn read(frame: &[u8]) -> Option<(TcpHeader, &[u8])> {
    let read = PacketHeaders::from_ethernet_slice(frame).ok()?;
    let TransportHeader::Tcp(tcp) = read.transport? else { return None };
    let payload = read.payload.slice();
    let sum = match &read.net {
        Some(NetHeaders::Ipv4(ip, _)) => {
            if ip.header_checksum != ip.calc_header_checksum() {
                return None;
            }
            tcp.calc_checksum_ipv4(ip, payload)
        }
        Some(NetHeaders::Ipv6(ip, _)) => tcp.calc_checksum_ipv6(ip, payload),
        _ => return None,
    };
    (sum.ok() == Some(tcp.checksum)).then_some((tcp, payload))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::Receiver;
    use crate::packet::{Frame, flag};

    fn frame(seq: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let end = |host| SocketAddr::from(([10, 9, 0, host], 8000));
        Frame { flags, ..Frame::data(end(1), end(2), seq, payload) }.build()
    }

    #[test]
    fn the_first_copy_of_a_byte_wins_whether_it_comes_in_order_or_ahead() {
        let mut receiver = Receiver::default();
        receiver.deliver(&frame(u32::MAX - 1, flag::SYN, b""));
        for (seq, bytes) in [(u32::MAX, "ab"), (u32::MAX, "XYc"), (3, "ef"), (2, "d!"), (4, "??g")] {
            receiver.deliver(&frame(seq, flag::ACK, bytes.as_bytes()));
        }
        receiver.deliver(&frame(7, flag::ACK | flag::FIN, b""));
        let received: Vec<_> = receiver.received().collect();
        assert_eq!(received.len(), 1);
        assert_eq!(String::from_utf8_lossy(&received[0].bytes), "abcd!f?g");
        assert!(received[0].is_finished && !received[0].is_edited);
    }

    #[test]
    fn only_an_exact_reset_ends_a_connection_and_a_syn_then_begins_another() {
        let mut receiver = Receiver::default();
        receiver.deliver(&frame(9, flag::SYN, b""));
        receiver.deliver(&frame(11, flag::RST, b""));
        receiver.deliver(&frame(99, flag::SYN, b""));
        assert_eq!(receiver.next(), Some(10));
        receiver.deliver(&frame(10, flag::RST, b""));
        assert_eq!(receiver.next(), None);
        receiver.deliver(&frame(99, flag::SYN, b""));
        assert_eq!(receiver.next(), Some(100));
        assert_eq!(receiver.received().count(), 2);
    }
}
