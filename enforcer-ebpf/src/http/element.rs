//! `X-Forwarded-For`: where requests come from that a trusted proxy hands on.
//!
//! Each proxy appends the address that it was called from. So from the right, those of trusted proxies are skipped, and
//! the first other one is the source: what stands left of it anybody may have written. Read from the left, that is the
//! last that is not trusted; if it is no address the proxy itself is the source.

use super::bytes::Window;
use super::target::hexadecimal;
use super::{CR, Cursor, FORWARDED, LF, LineEnd, Lookup, Machine, Step, is_blank, line_end, phase};
use crate::source::Address;
use crate::verdict::Malformation;

/// An element of the list, byte by byte: an IPv4 or IPv6 address (RFC 4291 §2.2), in brackets or not, with a port or not.
#[derive(Clone, Copy)]
pub(super) struct Element {
    /// The address up to a `::` from the left, the higher half first, as numbers.
    address: [u64; 2],
    /// And behind it, from the right.
    behind: [u64; 2],
    /// The number under way, and its digits.
    value: u32,
    digits: u8,
    /// Bytes of the address.
    octets: u8,
    /// 1 + the bytes before a `::`; 0 if there was none.
    gap: u8,
    dots: u8,
    /// Colons directly before.
    colons: u8,
    /// 1 behind a blank that came behind something.
    ended: u8,
    /// A [`place`].
    place: u8,
}

/// No number of bits: the byte may not stand there.
const UNFIT: u32 = 1;

/// Where in an element.
mod place {
    /// Before it.
    pub(super) const BEFORE: u8 = 0;
    pub(super) const ADDRESS: u8 = 1;
    pub(super) const BRACKETS: u8 = 2;
    /// Behind the address, which is whole.
    pub(super) const BEHIND: u8 = 3;
    pub(super) const PORT: u8 = 4;
    /// In what is no address.
    pub(super) const LOST: u8 = 5;
}

/// What an element is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Empty: none (RFC 9110 §5.6.1.2).
    Nothing,
    /// An address.
    Address(Address),
    /// No address: a name, or nonsense.
    Unreadable,
}

impl Element {
    /// Before its first byte.
    #[inline(always)]
    pub(super) fn new() -> Self {
        Self::from_words([0; 6])
    }

    #[inline(always)]
    pub(super) const fn to_words(self) -> [u64; 6] {
        let numbers = self.value as u64
            | ((self.digits as u64) << 32)
            | ((self.octets as u64) << 40)
            | ((self.gap as u64) << 48)
            | ((self.dots as u64) << 56);
        let places = self.colons as u64 | ((self.ended as u64) << 8) | ((self.place as u64) << 16);
        [self.address[0], self.address[1], self.behind[0], self.behind[1], numbers, places]
    }

    #[inline(always)]
    pub(super) const fn from_words(words: [u64; 6]) -> Self {
        let [first, second, third, fourth, numbers, places] = words;
        Self {
            address: [first, second],
            behind: [third, fourth],
            value: numbers as u32,
            digits: (numbers >> 32) as u8,
            octets: (numbers >> 40) as u8,
            gap: (numbers >> 48) as u8,
            dots: (numbers >> 56) as u8,
            colons: places as u8,
            ended: (places >> 8) as u8,
            place: (places >> 16) as u8,
        }
    }

    /// Takes a byte, or what ends it.
    ///
    /// Which number it ends is found out first, and that is put into the address in one place: the BPF stack has no room for
    /// many copies of it.
    #[inline(always)]
    pub(super) fn push(&mut self, byte: u8, ends: bool) {
        if self.place == place::LOST || (ends && self.place != place::ADDRESS) {
            return;
        }
        if is_blank(byte) && !ends {
            self.ended = u8::from(self.place != place::BEFORE);
            return;
        }
        let digit = hexadecimal(byte);
        let bits = if ends {
            self.last()
        } else if self.ended != 0 {
            UNFIT
        } else if digit < 16 {
            self.digit(digit)
        } else {
            match byte {
                b':' => self.colon(),
                b'.' => self.dot(),
                b'[' if self.place == place::BEFORE => {
                    self.place = place::BRACKETS;
                    0
                }
                // An IPv4 address stands in none.
                b']' if self.place == place::BRACKETS && !self.is_four() => {
                    self.place = place::BEHIND;
                    self.last()
                }
                _ => UNFIT,
            }
        };
        if bits == UNFIT || (bits > 0 && !self.put(bits)) {
            self.place = place::LOST;
        } else if ends {
            self.place = place::BEHIND;
        }
    }

    /// What it is, behind what ends it.
    #[inline(always)]
    pub(super) const fn end(&self) -> End {
        let is_whole = match self.place {
            place::BEFORE => return End::Nothing,
            place::BEHIND => true,
            place::PORT => self.digits > 0 && self.value <= 0xffff,
            _ => false,
        };
        let [mut first, mut second] = self.address;
        let is_full = if self.gap > 0 {
            first |= self.behind[0];
            second |= self.behind[1];
            self.octets <= 14
        } else if self.dots == 3 && self.octets == 4 {
            second = (0xffff << 32) | (first >> 32);
            first = 0;
            true
        } else {
            self.octets == 16
        };
        if is_whole && is_full { End::Address([first.to_be(), second.to_be()]) } else { End::Unreadable }
    }

    #[inline(always)]
    const fn is_in_address(&self) -> bool {
        self.place == place::ADDRESS || self.place == place::BRACKETS
    }

    #[inline(always)]
    const fn digit(&mut self, digit: u8) -> u32 {
        if self.place == place::PORT {
            self.value = self.value * 10 + digit as u32;
            self.digits += 1;
            return if digit < 10 && self.digits <= 5 { 0 } else { UNFIT };
        }
        if self.place == place::BEFORE {
            self.place = place::ADDRESS;
        }
        // Behind one colon that nothing stands before no number follows.
        let follows = self.colons != 1 || self.octets > 0;
        self.value = (self.value << 4) | digit as u32;
        self.digits += 1;
        self.colons = 0;
        if follows && self.digits <= 4 && self.is_in_address() { 0 } else { UNFIT }
    }

    #[inline(always)]
    const fn colon(&mut self) -> u32 {
        if self.place == place::BEFORE {
            self.place = place::ADDRESS;
        }
        if self.place == place::BEHIND || (self.place == place::ADDRESS && self.is_four()) {
            let bits = if self.place == place::BEHIND { 0 } else { 8 };
            self.place = place::PORT;
            return bits;
        }
        if !self.is_in_address() || self.dots > 0 {
            return UNFIT;
        }
        if self.digits > 0 {
            self.colons = 1;
            return 16;
        }
        if self.colons == 0 {
            self.colons = 1;
            return if self.octets == 0 { 0 } else { UNFIT };
        }
        let is_first = self.colons == 1 && self.gap == 0;
        self.colons = 2;
        self.gap = self.octets + 1;
        if is_first { 0 } else { UNFIT }
    }

    #[inline(always)]
    const fn dot(&mut self) -> u32 {
        self.dots += 1;
        if self.dots <= 3 && self.is_in_address() { 8 } else { UNFIT }
    }

    /// Whether it is an IPv4 address so far, up to its last byte.
    #[inline(always)]
    const fn is_four(&self) -> bool {
        self.dots == 3 && self.octets == 3 && self.gap == 0
    }

    /// The bits of the address's last number.
    #[inline(always)]
    const fn last(&self) -> u32 {
        match (self.dots, self.digits) {
            (3, _) => 8,
            (0, 0) if self.colons == 2 => 0,
            (0, 1..) => 16,
            _ => UNFIT,
        }
    }

    /// Puts the number into so many bits of the address, behind those that are there: 16 are a group of IPv6, and 8 a byte
    /// in decimal, which was read as a hexadecimal number. A leading zero is octal for some.
    #[inline(always)]
    const fn put(&mut self, bits: u32) -> bool {
        let mut value = self.value as u64;
        if bits == 8 {
            let [hundreds, tens, ones] = [value >> 8, (value >> 4) & 15, value & 15];
            value = hundreds * 100 + tens * 10 + ones;
            let is_shortest = match self.digits {
                1 => true,
                2 => tens > 0,
                3 => hundreds > 0,
                _ => false,
            };
            if !is_shortest || tens > 9 || ones > 9 || value > 255 {
                return false;
            }
        }
        let at = 8 * self.octets as u32;
        if at + bits > 128 {
            return false;
        }
        if self.gap > 0 {
            self.behind[0] = (self.behind[0] << bits) | (self.behind[1] >> (64 - bits));
            self.behind[1] = (self.behind[1] << bits) | value;
        } else if at < 64 {
            self.address[0] |= value << ((64 - bits - at) & 63);
        } else {
            self.address[1] |= value << ((128 - bits - at) & 63);
        }
        self.octets += (bits / 8) as u8;
        self.value = 0;
        self.digits = 0;
        true
    }
}

impl Machine {
    /// A byte of the list.
    #[inline(always)]
    pub(super) fn elements(&mut self, window: &Window, cursor: &mut Cursor, lookup: &impl Lookup) -> Step {
        let mut element = Element::from_words(self.value);
        let byte = window.byte(cursor.pos);
        let is_end = match line_end(window, cursor.pos, cursor.unread()) {
            LineEnd::Cut => return Step::Starved,
            LineEnd::Yes => true,
            LineEnd::No if byte == CR || byte == LF => return Step::Refused(Malformation::LineEnding.into()),
            LineEnd::No if (byte < b' ' && byte != b'\t') || byte == 0x7f => {
                return Step::Refused(Malformation::ControlByte.into());
            }
            LineEnd::No => false,
        };
        self.take(cursor, if is_end { 2 } else { 1 });
        let ends = is_end || byte == b',';
        element.push(byte, ends);
        if ends {
            match element.end() {
                End::Nothing => {}
                End::Address(address) if lookup.is_trusted(address) => {}
                End::Address(address) => {
                    self.source = address;
                    self.flags |= FORWARDED;
                }
                End::Unreadable => self.flags &= !FORWARDED,
            }
            element = Element::new();
        }
        self.value = element.to_words();
        if is_end {
            self.phase = phase::LINE;
        }
        Step::More
    }
}
