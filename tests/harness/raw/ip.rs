//! The IP packets around a segment: options, extension headers, fragments, and fields that are wrong.

use std::net::IpAddr;

use crate::packet::checksum;

const TCP: u8 = 6;
const FRAGMENT: u8 = 44;
const MORE_FRAGMENTS: u16 = 0x2000;
const DONT_FRAGMENT: u16 = 0x4000;

/// A part of the IP payload that becomes a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it begins, in bytes; a multiple of eight where the fragments are to be right.
    pub offset: usize,
    /// How long it is; cut at the payload's end.
    pub length: usize,
    /// Whether it says that more come.
    pub more: bool,
}

/// An IPv6 extension header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// Its number (RFC 8200 §4).
    pub kind: u8,
    /// All its bytes but the first, which is the next header's number.
    pub rest: Vec<u8>,
}

/// The IP layer of a segment; the default is right in everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Another destination than the server.
    pub destination: Option<IpAddr>,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Type of service or traffic class.
    pub tos: u8,
    /// IPv4: identification of the packet. IPv6: of its fragments.
    pub id: u16,
    /// Another version than the family's.
    pub version: Option<u8>,
    /// IPv4: another header length, in words.
    pub header_words: Option<u8>,
    /// What is added to the length field.
    pub length: i32,
    /// IPv4: a wrong header checksum.
    pub wrong_checksum: bool,
    /// IPv4: options, in whole words.
    pub options: Vec<u8>,
    /// IPv4: another word of flags and fragment offset.
    pub fragment_word: Option<u16>,
    /// IPv6: headers before TCP.
    pub extensions: Vec<Extension>,
    /// IPv6: another number than TCP's for what follows the last header.
    pub next_header: Option<u8>,
    /// The fragments, in the order in which they are sent; none for a packet in one piece.
    pub pieces: Vec<Piece>,
}

impl Default for Ip {
    fn default() -> Self {
        Self {
            destination: None,
            ttl: 64,
            tos: 0,
            id: 0,
            version: None,
            header_words: None,
            length: 0,
            wrong_checksum: false,
            options: Vec::new(),
            fragment_word: None,
            extensions: Vec::new(),
            next_header: None,
            pieces: Vec::new(),
        }
    }
}

impl Ip {
    /// Bytes before the TCP header in a packet of one piece.
    pub(super) fn header_length(&self, v6: bool) -> usize {
        match v6 {
            true => 40 + self.extensions.iter().map(|extension| 1 + extension.rest.len()).sum::<usize>(),
            false => 20 + self.options.len(),
        }
    }

    /// The packets that bring `tcp`.
    pub(super) fn packets(&self, source: IpAddr, destination: IpAddr, tcp: &[u8]) -> Vec<Vec<u8>> {
        let (first, payload) = self.extended(tcp);
        let build = |piece: Option<Piece>| {
            let bytes = piece.map_or(&payload[..], |piece| {
                let end = payload.len().min(piece.offset + piece.length);
                &payload[piece.offset.min(end)..end]
            });
            match (source, destination) {
                (IpAddr::V6(source), IpAddr::V6(destination)) => {
                    self.v6(source.octets(), destination.octets(), first, bytes, piece)
                }
                (IpAddr::V4(source), IpAddr::V4(destination)) => {
                    self.v4(source.octets(), destination.octets(), bytes, piece)
                }
                _ => Vec::new(),
            }
        };
        if self.pieces.is_empty() {
            return vec![build(None)];
        }
        self.pieces.iter().map(|&piece| build(Some(piece))).collect()
    }

    /// The extension headers and TCP, and the number of the first of them.
    fn extended(&self, tcp: &[u8]) -> (u8, Vec<u8>) {
        let last = self.next_header.unwrap_or(TCP);
        let mut payload = Vec::new();
        for (index, extension) in self.extensions.iter().enumerate() {
            payload.push(self.extensions.get(index + 1).map_or(last, |next| next.kind));
            payload.extend(&extension.rest);
        }
        payload.extend(tcp);
        (self.extensions.first().map_or(last, |first| first.kind), payload)
    }

    fn v4(&self, source: [u8; 4], destination: [u8; 4], payload: &[u8], piece: Option<Piece>) -> Vec<u8> {
        let header = 20 + self.options.len();
        let words = self.header_words.unwrap_or((header / 4) as u8);
        let right = match piece {
            Some(piece) => (piece.offset / 8) as u16 | if piece.more { MORE_FRAGMENTS } else { 0 },
            None => DONT_FRAGMENT,
        };
        let fragment = self.fragment_word.unwrap_or(right);
        let mut packet = vec![self.version.unwrap_or(4) << 4 | words, self.tos];
        packet.extend(adjusted(header + payload.len(), self.length));
        packet.extend(self.id.to_be_bytes());
        packet.extend(fragment.to_be_bytes());
        packet.extend([self.ttl, TCP, 0, 0]);
        packet.extend(source);
        packet.extend(destination);
        packet.extend(&self.options);
        let sum = checksum(&packet) ^ u16::from(self.wrong_checksum);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend(payload);
        packet
    }

    fn v6(&self, source: [u8; 16], destination: [u8; 16], first: u8, payload: &[u8], piece: Option<Piece>) -> Vec<u8> {
        let mut packet = vec![self.version.unwrap_or(6) << 4 | self.tos >> 4, self.tos << 4, 0, 0];
        let fragment = piece.map(|piece| {
            let mut header = vec![first, 0];
            header.extend(((piece.offset & !7) as u16 | u16::from(piece.more)).to_be_bytes());
            header.extend(u32::from(self.id).to_be_bytes());
            header
        });
        let between = fragment.as_deref().unwrap_or_default();
        packet.extend(adjusted(between.len() + payload.len(), self.length));
        packet.extend([if piece.is_some() { FRAGMENT } else { first }, self.ttl]);
        packet.extend(source);
        packet.extend(destination);
        packet.extend(between);
        packet.extend(payload);
        packet
    }
}

fn adjusted(length: usize, by: i32) -> [u8; 2] {
    ((length as i32).wrapping_add(by) as u16).to_be_bytes()
}
