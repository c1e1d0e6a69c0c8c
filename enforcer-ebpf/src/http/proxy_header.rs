//! The header of the PROXY protocol (HAProxy's `doc/proxy-protocol.txt`, versions 1 and 2): what a trusted proxy sends
//! before the first request of a connection, to say where that comes from.
//!
//! It is read byte by byte and passes on to the server, which is to read it too. So nothing is accepted that two readers
//! could take for two addresses, and the machine begins with HTTP at the byte where every server does.

use super::bytes::Window;
use super::element::{Element, End};
use super::target::hexadecimal;
use super::{CR, Cursor, HEADED, LF, Machine, Step, phase};
use crate::opaque::zero;
use crate::source::Address;
use crate::verdict::Reason;

/// Longest header of version 1, its CRLF included (§2.1).
const LONGEST: u32 = 107;
/// Most bytes behind the fixed part of a header of version 2. A server bounds them too: nginx takes 4096 in all.
const MOST: u16 = 4080;
/// `PROXY `, as a little-endian number.
const LEAD: u64 = u64::from_le_bytes(*b"PROXY \0\0");
/// What follows it, likewise: the family, and the blank behind it where addresses follow.
const TCP: u64 = u64::from_le_bytes(*b"TCP\0\0\0\0\0");
const UNKNOWN: u64 = u64::from_le_bytes(*b"UNKNOWN\0");
/// The signature of version 2 (§2.2), likewise.
const SIGNATURE: [u64; 2] =
    [u64::from_le_bytes(*b"\r\n\r\n\0\r\nQ"), u64::from_le_bytes([b'U', b'I', b'T', b'\n', 0, 0, 0, 0])];
/// Bytes before the addresses of version 2.
const FIXED: u32 = 16;

/// Where in a line of version 1, [`Machine::seen`]; the first is 0 as at the beginning of all.
mod place {
    pub(super) const LEAD: u8 = 0;
    pub(super) const FAMILY: u8 = 1;
    pub(super) const SOURCE: u8 = 2;
    pub(super) const DESTINATION: u8 = 3;
    pub(super) const SOURCE_PORT: u8 = 4;
    pub(super) const DESTINATION_PORT: u8 = 5;
    /// Behind `UNKNOWN`: whatever stands there is not read (§2.1).
    pub(super) const REST: u8 = 6;
    pub(super) const LF: u8 = 7;
}

/// What is told of, [`Machine::method`].
mod family {
    /// Nothing: the connection's own peer is its source.
    pub(super) const NONE: u8 = 0;
    pub(super) const FOUR: u8 = 4;
    pub(super) const SIX: u8 = 6;
}

const REFUSED: Step = Step::Refused(super::Refusal { reason: Reason::ProxyHeader, kind: None });

/// The byte at `index` of a little-endian number.
const fn byte_of(word: u64, index: u32) -> u8 {
    (word >> (8 * (index & 7))) as u8
}

impl Machine {
    /// Sees to it that a connection of which nothing was read yet must begin with a header, of version 2 if `is_second`.
    #[inline(always)]
    pub fn await_header(&mut self, is_second: bool) {
        self.phase = if is_second { phase::HEADER_2 } else { phase::HEADER_1 };
        self.method = zero() as u8;
        self.value = [zero(); 6];
    }

    /// Whether a header is awaited or under way, to be read by [`Machine::header`].
    #[must_use]
    #[inline(always)]
    pub const fn is_before_http(&self) -> bool {
        matches!(self.phase, phase::HEADER_1..=phase::HEADER_REST)
    }

    /// Goes on by a byte of the header, or by all that is skipped of it.
    #[inline(always)]
    pub fn header(&mut self, window: &Window, cursor: &mut Cursor) -> Step {
        let unread = cursor.unread();
        if unread == 0 {
            return Step::Starved;
        }
        if self.pass_over(cursor) {
            return Step::More;
        }
        let byte = window.byte(cursor.pos);
        let fits = if self.phase == phase::HEADER_1 { self.text(byte) } else { self.binary(byte) };
        self.take(cursor, 1);
        if !fits {
            return REFUSED;
        }
        if self.phase == phase::START {
            self.head = 0;
        } else if self.phase == phase::HEADER_1 && self.head >= LONGEST {
            return REFUSED;
        }
        Step::More
    }

    /// Begins with HTTP.
    #[inline(always)]
    pub(super) fn end_header(&mut self) {
        self.phase = phase::START;
        self.flags = HEADED;
        self.left = zero();
        self.head = zero() as u32;
        self.fields = zero() as u16;
        self.seen = zero() as u8;
        self.digits = zero() as u8;
    }

    /// A byte of version 1; whether it may stand there.
    #[inline(always)]
    fn text(&mut self, byte: u8) -> bool {
        match self.seen {
            place::LEAD => {
                if self.head == 5 {
                    self.seen = place::FAMILY;
                }
                byte == byte_of(LEAD, self.head)
            }
            place::FAMILY => self.family(byte, self.head - 6),
            place::SOURCE | place::DESTINATION => self.address(byte),
            place::SOURCE_PORT | place::DESTINATION_PORT => self.port(byte),
            place::REST => {
                if byte == CR {
                    self.seen = place::LF;
                }
                byte == CR || matches!(byte, 0x20..=0x7e)
            }
            _ => {
                self.end_header();
                byte == LF
            }
        }
    }

    /// The byte at `index` of the family.
    #[inline(always)]
    fn family(&mut self, byte: u8, index: u32) -> bool {
        if index == 0 {
            self.digits = byte;
        }
        if self.digits == byte_of(UNKNOWN, 0) {
            if index < 7 {
                return byte == byte_of(UNKNOWN, index);
            }
            self.seen = if byte == CR { place::LF } else { place::REST };
            return byte == CR || byte == b' ';
        }
        match index {
            0..=2 => byte == byte_of(TCP, index),
            3 => {
                self.method = byte.wrapping_sub(b'0');
                self.method == family::FOUR || self.method == family::SIX
            }
            _ => {
                self.seen = place::SOURCE;
                self.digits = 0;
                byte == b' '
            }
        }
    }

    /// A byte of an address or behind it.
    #[inline(always)]
    fn address(&mut self, byte: u8) -> bool {
        let is_six = self.method == family::SIX;
        let ends = byte == b' ';
        let fits = match byte {
            b' ' | b'.' | b'0'..=b'9' => true,
            b':' => is_six,
            _ => is_six && hexadecimal(byte) < 16,
        };
        let mut element = Element::of(&mut self.value);
        element.push(byte, ends);
        if !ends {
            return fits;
        }
        let End::Address(address) = element.end() else { return false };
        let is_right = element.is_four() != is_six;
        if self.seen == place::SOURCE {
            self.told = address;
        }
        self.value = [zero(); 6];
        self.seen += 1;
        is_right
    }

    /// A byte of a port or behind it.
    #[inline(always)]
    fn port(&mut self, byte: u8) -> bool {
        let digit = byte.wrapping_sub(b'0');
        if digit < 10 {
            // A number has one form.
            let is_first = self.digits == 0 || self.left > 0;
            self.digits += 1;
            self.left = self.left * 10 + u64::from(digit);
            return is_first && self.left <= 0xffff;
        }
        let is_whole = self.digits > 0;
        self.digits = 0;
        self.left = 0;
        let end = if self.seen == place::SOURCE_PORT { b' ' } else { CR };
        self.seen = if self.seen == place::SOURCE_PORT { place::DESTINATION_PORT } else { place::LF };
        is_whole && byte == end
    }

    /// A byte of version 2; whether it may stand there.
    #[inline(always)]
    fn binary(&mut self, byte: u8) -> bool {
        let index = self.head;
        match index {
            0..=7 => byte == byte_of(SIGNATURE[0], index),
            8..=11 => byte == byte_of(SIGNATURE[1], index),
            12 => {
                self.seen = byte & 0xf;
                matches!(byte, 0x20 | 0x21)
            }
            13 => {
                let is_local = self.seen == 0;
                self.method = match byte {
                    _ if is_local => family::NONE,
                    0x11 => family::FOUR,
                    0x21 => family::SIX,
                    _ => family::NONE,
                };
                // What a proxy says of itself is not read.
                is_local || self.method != family::NONE || byte == 0
            }
            14 => {
                self.fields = u16::from(byte) << 8;
                true
            }
            15 => {
                self.fields |= u16::from(byte);
                let least = match self.method {
                    family::FOUR => 12,
                    family::SIX => 36,
                    _ => 0,
                };
                let fits = self.fields >= least && self.fields <= MOST;
                if self.method == family::NONE {
                    self.skip_rest(0);
                }
                fits
            }
            _ => {
                self.octet(byte, index.wrapping_sub(FIXED));
                true
            }
        }
    }

    /// The byte at `index` of the source's address.
    #[inline(always)]
    fn octet(&mut self, byte: u8, index: u32) {
        if index < 8 {
            self.value[0] = (self.value[0] << 8) | u64::from(byte);
        } else {
            self.value[1] = (self.value[1] << 8) | u64::from(byte);
        }
        let [first, second, ..] = self.value;
        if self.method == family::FOUR && index == 3 {
            self.told = [0, ((0xffff << 32) | first).to_be()];
            self.skip_rest(4);
        } else if index == 15 {
            self.told = [first.to_be(), second.to_be()];
            self.skip_rest(16);
        }
    }

    /// Skips what stands behind the first `read` bytes behind the fixed part: the server's own address, ports, and TLVs.
    #[inline(always)]
    fn skip_rest(&mut self, read: u16) {
        self.left = u64::from(self.fields.wrapping_sub(read));
        self.phase = phase::HEADER_REST;
        if self.left == 0 {
            self.end_header();
        }
    }

    /// Where the connection comes from, if a header has told.
    #[must_use]
    #[inline(always)]
    pub const fn told(&self) -> Option<Address> {
        if self.told[0] | self.told[1] == 0 { None } else { Some(self.told) }
    }
}
