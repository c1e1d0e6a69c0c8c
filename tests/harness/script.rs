//! Scripts of what happens to a few connections, in lines that a person writes and a fuzzer changes.
//!
//! ```text
//! open 0              connection 0 begins (or `open 0 ISN`)
//! next 0 20           the next 20 bytes of its stream
//! send 0 5 10         the 10 bytes of its stream from the 5th on: again, ahead, or across what was sent
//! fake 0 5 10         10 bytes of the other stream in their place
//! reset 0 5           a RST at the 5th byte
//! wait 100            100 ms
//! ====
//! the stream that every connection's client has to send
//! ====
//! the other stream
//! ```
//! Behind the first three, words say how the segment is: `fin`, `urg`, `syn`, `rst`, `noack`, `lost` (the receiver's stack
//! never takes it), `garbled OFFSET VALUE` (a byte of the frame is another). Lines that mean nothing are overlooked.

use std::fmt;
use std::net::SocketAddr;

use crate::packet::{Frame, flag};

/// Connections that a script can name.
pub const CONNECTIONS: usize = 12;
/// Longest segment in bytes.
const MAX_LEN: usize = 4000;
/// Ends the lines, and the first stream.
const SEPARATOR: &[u8] = b"====\n";

/// How a segment is sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manner {
    /// Flags beside ACK.
    pub flags: u8,
    /// It has no ACK.
    pub without_ack: bool,
    /// The receiver's stack never takes it, whatever becomes of it before.
    pub lost: bool,
    /// The byte at this place of the frame is this one.
    pub garbled: Option<(usize, u8)>,
}

/// Which bytes are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bytes {
    /// The next so many of the stream.
    Next(usize),
    /// So many of the stream, from this place on.
    Stream(usize, usize),
    /// So many of the other stream, from this place on.
    Other(usize, usize),
}

/// One thing that happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A connection's SYN.
    Open {
        /// Which connection.
        connection: usize,
        /// Its initial sequence number, if it is not its usual one.
        isn: Option<u32>,
        /// How it is sent.
        manner: Manner,
    },
    /// A segment.
    Send {
        /// Of which connection.
        connection: usize,
        /// With which data.
        bytes: Bytes,
        /// How it is sent.
        manner: Manner,
    },
    /// A RST.
    Reset {
        /// Of which connection.
        connection: usize,
        /// At which place of its stream.
        at: usize,
    },
    /// Time passes.
    Wait {
        /// How much, in ms.
        ms: u32,
    },
}

/// A script.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    /// What happens, in order.
    pub events: Vec<Event>,
    /// What every connection's client has to send.
    pub stream: Vec<u8>,
    /// Other bytes, for the same places.
    pub other: Vec<u8>,
}

impl Script {
    /// Reads a script; at most `most` of its events.
    #[must_use]
    pub fn parse(text: &[u8], most: usize) -> Self {
        let (head, rest) = split(text);
        let (stream, other) = split(rest);
        let lines = String::from_utf8_lossy(head);
        let events = lines.lines().filter_map(event).take(most).collect();
        // The line's end before the separator belongs to it.
        let stream = if other.is_empty() { stream } else { stream.strip_suffix(b"\n").unwrap_or(stream) };
        Self { events, stream: stream.to_vec(), other: other.to_vec() }
    }

    /// The text of the script.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut text: Vec<u8> = self.events.iter().flat_map(|event| format!("{event}\n").into_bytes()).collect();
        text.extend(SEPARATOR);
        text.extend(&self.stream);
        if !self.other.is_empty() {
            text.push(b'\n');
            text.extend(SEPARATOR);
            text.extend(&self.other);
        }
        text
    }

    /// Whether a connection begins twice.
    #[must_use]
    pub fn opens_again(&self) -> bool {
        let mut opened = [false; CONNECTIONS];
        self.events.iter().any(|event| match event {
            Event::Open { connection, .. } => std::mem::replace(&mut opened[*connection], true),
            _ => false,
        })
    }

    /// Whether the client sends nothing but its stream, and every connection begins once.
    #[must_use]
    pub fn is_honest(&self) -> bool {
        let mut opened = [false; CONNECTIONS];
        let plain = |manner: &Manner| manner.flags == 0 && !manner.without_ack && manner.garbled.is_none();
        self.events.iter().all(|event| match event {
            Event::Open { connection, isn: None, manner } => {
                plain(manner) && !std::mem::replace(&mut opened[*connection], true)
            }
            Event::Send { connection, bytes: Bytes::Next(_) | Bytes::Stream(..), manner } => {
                plain(manner) && opened[*connection]
            }
            Event::Wait { .. } => true,
            Event::Open { .. } | Event::Send { .. } | Event::Reset { .. } => false,
        })
    }
}

/// What stands before and behind the first separator at a line's begin.
fn split(text: &[u8]) -> (&[u8], &[u8]) {
    let is_here = |at: &usize| text[*at..].starts_with(SEPARATOR) && (*at == 0 || text[at - 1] == b'\n');
    match (0..text.len()).find(is_here) {
        Some(at) => (&text[..at], &text[at + SEPARATOR.len()..]),
        None => (text, &[]),
    }
}

fn event(line: &str) -> Option<Event> {
    let mut words = line.split_ascii_whitespace();
    let verb = words.next()?;
    let mut rest = words.clone();
    let mut number = || words.next()?.parse::<u32>().ok();
    if verb == "wait" {
        return Some(Event::Wait { ms: number()? });
    }
    let connection = number()? as usize % CONNECTIONS;
    let place = |number: Option<u32>| number.map(|number| number as usize);
    Some(match verb {
        "open" => {
            let isn = number();
            rest.nth(usize::from(isn.is_some()));
            Event::Open { connection, isn, manner: manner(rest) }
        }
        "next" => {
            let bytes = Bytes::Next(place(number())?);
            rest.nth(1);
            Event::Send { connection, bytes, manner: manner(rest) }
        }
        "send" | "fake" => {
            let (at, len) = (place(number())?, place(number())?);
            rest.nth(2);
            let bytes = if verb == "send" { Bytes::Stream(at, len) } else { Bytes::Other(at, len) };
            Event::Send { connection, bytes, manner: manner(rest) }
        }
        "reset" => Event::Reset { connection, at: place(number())? },
        _ => return None,
    })
}

fn manner<'a>(mut words: impl Iterator<Item = &'a str>) -> Manner {
    let mut manner = Manner::default();
    while let Some(word) = words.next() {
        match word {
            "fin" => manner.flags |= flag::FIN,
            "urg" => manner.flags |= flag::URG,
            "syn" => manner.flags |= flag::SYN,
            "rst" => manner.flags |= flag::RST,
            "noack" => manner.without_ack = true,
            "lost" => manner.lost = true,
            "garbled" => {
                let mut number = || words.next()?.parse::<usize>().ok();
                if let (Some(at), Some(value)) = (number(), number()) {
                    manner.garbled = Some((at, value as u8));
                }
            }
            _ => {}
        }
    }
    manner
}

impl fmt::Display for Manner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (bit, word) in [(flag::FIN, "fin"), (flag::URG, "urg"), (flag::SYN, "syn"), (flag::RST, "rst")] {
            if self.flags & bit != 0 {
                write!(f, " {word}")?;
            }
        }
        if self.without_ack {
            write!(f, " noack")?;
        }
        if self.lost {
            write!(f, " lost")?;
        }
        if let Some((at, value)) = self.garbled {
            write!(f, " garbled {at} {value}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open { connection, isn: None, manner } => write!(f, "open {connection}{manner}"),
            Self::Open { connection, isn: Some(isn), manner } => write!(f, "open {connection} {isn}{manner}"),
            Self::Send { connection, bytes: Bytes::Next(len), manner } => write!(f, "next {connection} {len}{manner}"),
            Self::Send { connection, bytes: Bytes::Stream(at, len), manner } => {
                write!(f, "send {connection} {at} {len}{manner}")
            }
            Self::Send { connection, bytes: Bytes::Other(at, len), manner } => {
                write!(f, "fake {connection} {at} {len}{manner}")
            }
            Self::Reset { connection, at } => write!(f, "reset {connection} {at}"),
            Self::Wait { ms } => write!(f, "wait {ms}"),
        }
    }
}

/// A client that plays a script: knows where each connection stands.
#[derive(Clone, Debug)]
pub struct Client {
    /// The two ends of each connection, client first.
    pub ends: [(SocketAddr, SocketAddr); CONNECTIONS],
    /// Sequence number of each connection's SYN.
    pub isns: [u32; CONNECTIONS],
    /// Sequence number of each server's first byte, which the client acknowledges.
    pub acks: [u32; CONNECTIONS],
    cursors: [usize; CONNECTIONS],
}

impl Default for Client {
    fn default() -> Self {
        Self {
            ends: std::array::from_fn(usual_ends),
            // Some wrap around within a short stream.
            isns: std::array::from_fn(|number| 0xffff_fff0u32.wrapping_add((number as u32).wrapping_mul(0x4000_0007))),
            acks: [1; CONNECTIONS],
            cursors: [0; CONNECTIONS],
        }
    }
}

/// The ends of a connection, of addresses that belong to nobody; every other one is of IPv6.
fn usual_ends(number: usize) -> (SocketAddr, SocketAddr) {
    let port = 20_000 + number as u16;
    if number.is_multiple_of(2) {
        (([10, 9, 0, 1], port).into(), ([10, 9, 0, 2], 8000).into())
    } else {
        (([0xfd09, 0, 0, 0, 0, 0, 0, 1], port).into(), ([0xfd09, 0, 0, 0, 0, 0, 0, 2], 8000).into())
    }
}

impl Client {
    /// Sequence number of a place in a connection's stream.
    #[must_use]
    pub fn seq(&self, connection: usize, at: usize) -> u32 {
        self.isns[connection].wrapping_add(1).wrapping_add(at as u32)
    }

    /// The frame of a segment of a connection.
    #[must_use]
    pub fn frame(&self, connection: usize, seq: u32, flags: u8, payload: &[u8]) -> Frame {
        let (client, server) = self.ends[connection];
        Frame { flags, ack: self.acks[connection], ..Frame::data(client, server, seq, payload) }
    }

    /// What the server answers when it has accepted all before `next`; a SYN-ACK to a SYN.
    #[must_use]
    pub fn answer(&self, connection: usize, next: u32, to_syn: bool) -> Vec<u8> {
        let (client, server) = self.ends[connection];
        let first = self.acks[connection];
        let (seq, flags) = if to_syn { (first.wrapping_sub(1), flag::SYN | flag::ACK) } else { (first, flag::ACK) };
        Frame::bare(server, client, seq, flags).acking(next).build()
    }

    /// The frame that an event puts on the wire, if it does; of a new connection, its SYN.
    pub fn play(&mut self, event: &Event, script: &Script) -> Option<Vec<u8>> {
        let (frame, manner) = match event {
            Event::Open { connection, isn, manner } => {
                if let Some(isn) = isn {
                    self.isns[*connection] = *isn;
                }
                self.cursors[*connection] = 0;
                let syn = Frame { ack: 0, ..self.frame(*connection, self.isns[*connection], flag::SYN, &[]) };
                (Frame { flags: flag::SYN | manner.flags, ..syn }, manner)
            }
            Event::Send { connection, bytes, manner } => {
                let (from, at, len) = match *bytes {
                    Bytes::Next(len) => {
                        let at = self.cursors[*connection];
                        self.cursors[*connection] = at.saturating_add(len).min(script.stream.len());
                        (&script.stream, at, len)
                    }
                    Bytes::Stream(at, len) => (&script.stream, at, len),
                    Bytes::Other(at, len) => (&script.other, at, len),
                };
                let rest = from.get(at..).unwrap_or_default();
                let ack = if manner.without_ack { 0 } else { flag::ACK };
                let payload = &rest[..len.min(MAX_LEN).min(rest.len())];
                (self.frame(*connection, self.seq(*connection, at), manner.flags | ack, payload), manner)
            }
            Event::Reset { connection, at } => {
                let frame = self.frame(*connection, self.seq(*connection, *at), flag::RST | flag::ACK, &[]);
                return Some(frame.build());
            }
            Event::Wait { .. } => return None,
        };
        let mut bytes = frame.build();
        if let Some((at, value)) = manner.garbled
            && let Some(byte) = bytes.get_mut(at)
        {
            *byte = value;
        }
        Some(bytes)
    }
}

impl Event {
    /// The connection that it is about.
    #[must_use]
    pub fn connection(&self) -> Option<usize> {
        match self {
            Self::Open { connection, .. } | Self::Send { connection, .. } | Self::Reset { connection, .. } => {
                Some(*connection)
            }
            Self::Wait { .. } => None,
        }
    }

    /// Whether the receiver's stack never takes what it puts on the wire.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        match self {
            Self::Open { manner, .. } | Self::Send { manner, .. } => manner.lost,
            Self::Reset { .. } | Self::Wait { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Script;

    #[test]
    fn a_script_reads_back_as_it_was_written() {
        let text = b"open 0\nopen 3 77 lost\nnext 0 20 fin urg\nsend 1 5 10 noack garbled 3 255\nfake 0 5 10 lost\n\
            reset 0 5\nwait 100\n====\nGET / HTTP/1.1\r\n\r\n\n====\nother";
        let script = Script::parse(text, 100);
        assert_eq!(script.events.len(), 7);
        assert_eq!(script.stream, b"GET / HTTP/1.1\r\n\r\n");
        assert_eq!(String::from_utf8_lossy(&script.to_bytes()), String::from_utf8_lossy(text));
    }
}
