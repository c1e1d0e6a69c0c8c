//! `X-Forwarded-For`: where requests come from that a trusted proxy hands on.
//!
//! Each proxy appends the address that it was called from. So from the right, those of trusted proxies are skipped, and
//! the first other one is the source: what stands left of it anybody may have written. Read from the left, that is the
//! last that is not trusted; if it is no address the proxy itself is the source.

use super::bytes::Window;
use super::target::hexadecimal;
use super::{CR, Cursor, FORWARDED, LF, LineEnd, Lookup, Machine, Step, is_blank, line_end, phase};
use crate::opaque::zero;
use crate::source::Address;
use crate::verdict::Malformation;

/// An element of the list, byte by byte: an IPv4 or IPv6 address (RFC 4291 §2.2), in brackets or not, with a port or not.
///
/// It stays in the words that it is kept in: with all of it in registers there would be no room on the BPF stack. The first
/// two words are the address up to a `::`, from the left, the higher half first, as numbers; the next two what is behind
/// that, from the right; the others are fields.
pub(super) struct Element<'a>(&'a mut [u64; 6]);

/// A byte of an element's state: its word, and its lowest bit there. The number under way is the lower half of the first of
/// these words.
#[derive(Clone, Copy)]
struct Field(usize, u32);

/// Digits of the number under way.
const DIGITS: Field = Field(4, 32);
/// Bytes of the address.
const OCTETS: Field = Field(4, 40);
/// 1 + the bytes before a `::`; 0 if there was none.
const GAP: Field = Field(4, 48);
const DOTS: Field = Field(4, 56);
/// Colons directly before.
const COLONS: Field = Field(5, 0);
/// 1 behind a blank that came behind something.
const ENDED: Field = Field(5, 8);
/// A [`place`].
const PLACE: Field = Field(5, 16);

/// No number of bits: the byte may not stand there.
const UNFIT: u32 = 1;

/// Where in an element.
mod place {
    /// Before it.
    pub(super) const BEFORE: u32 = 0;
    pub(super) const ADDRESS: u32 = 1;
    pub(super) const BRACKETS: u32 = 2;
    /// Behind the address, which is whole.
    pub(super) const BEHIND: u32 = 3;
    pub(super) const PORT: u32 = 4;
    /// In what is no address.
    pub(super) const LOST: u32 = 5;
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

impl<'a> Element<'a> {
    /// The one whose state is in these words; all 0 before its first byte.
    #[inline(always)]
    pub(super) const fn of(words: &'a mut [u64; 6]) -> Self {
        Self(words)
    }

    #[inline(always)]
    const fn get(&self, Field(word, bit): Field) -> u32 {
        (self.0[word] >> bit) as u32 & 0xff
    }

    #[inline(always)]
    const fn set(&mut self, Field(word, bit): Field, value: u32) {
        self.0[word] = (self.0[word] & !(0xff << bit)) | ((value as u64 & 0xff) << bit);
    }

    #[inline(always)]
    const fn value(&self) -> u32 {
        self.0[4] as u32
    }

    #[inline(always)]
    const fn set_value(&mut self, value: u32) {
        self.0[4] = (self.0[4] & !0xffff_ffff) | value as u64;
    }

    /// Takes a byte, or what ends it.
    ///
    /// Which number it ends is found out first, and that is put into the address in one place: the BPF stack has no room for
    /// many copies of it.
    #[inline(always)]
    pub(super) fn push(&mut self, byte: u8, ends: bool) {
        if self.get(PLACE) == place::LOST || (ends && self.get(PLACE) != place::ADDRESS) {
            return;
        }
        if is_blank(byte) && !ends {
            self.set(ENDED, u32::from(self.get(PLACE) != place::BEFORE));
            return;
        }
        let digit = hexadecimal(byte);
        let bits = if ends {
            self.last()
        } else if self.get(ENDED) != 0 {
            UNFIT
        } else if digit < 16 {
            self.digit(digit)
        } else {
            match byte {
                b':' => self.colon(),
                b'.' => self.dot(),
                b'[' if self.get(PLACE) == place::BEFORE => {
                    self.set(PLACE, place::BRACKETS);
                    0
                }
                // An IPv4 address stands in none.
                b']' if self.get(PLACE) == place::BRACKETS && !self.is_nearly_four() => {
                    self.set(PLACE, place::BEHIND);
                    self.last()
                }
                _ => UNFIT,
            }
        };
        if bits == UNFIT || (bits > 0 && !self.put(bits)) {
            self.set(PLACE, place::LOST);
        } else if ends {
            self.set(PLACE, place::BEHIND);
        }
    }

    /// What it is, behind what ends it.
    #[inline(always)]
    pub(super) const fn end(&self) -> End {
        let is_whole = match self.get(PLACE) {
            place::BEFORE => return End::Nothing,
            place::BEHIND => true,
            place::PORT => self.get(DIGITS) > 0 && self.value() <= 0xffff,
            _ => false,
        };
        let [mut first, mut second, third, fourth, ..] = *self.0;
        let is_full = if self.get(GAP) > 0 {
            first |= third;
            second |= fourth;
            self.get(OCTETS) <= 14
        } else if self.is_four() {
            second = (0xffff << 32) | (first >> 32);
            first = 0;
            true
        } else {
            self.get(OCTETS) == 16
        };
        if is_whole && is_full { End::Address([first.to_be(), second.to_be()]) } else { End::Unreadable }
    }

    #[inline(always)]
    const fn is_in_address(&self) -> bool {
        self.get(PLACE) == place::ADDRESS || self.get(PLACE) == place::BRACKETS
    }

    #[inline(always)]
    const fn digit(&mut self, digit: u8) -> u32 {
        if self.get(PLACE) == place::PORT {
            self.set_value(self.value() * 10 + digit as u32);
            self.set(DIGITS, self.get(DIGITS) + 1);
            return if digit < 10 && self.get(DIGITS) <= 5 { 0 } else { UNFIT };
        }
        if self.get(PLACE) == place::BEFORE {
            self.set(PLACE, place::ADDRESS);
        }
        // Behind one colon that nothing stands before no number follows.
        let follows = self.get(COLONS) != 1 || self.get(OCTETS) > 0;
        self.set_value((self.value() << 4) | digit as u32);
        self.set(DIGITS, self.get(DIGITS) + 1);
        self.set(COLONS, 0);
        if follows && self.get(DIGITS) <= 4 && self.is_in_address() { 0 } else { UNFIT }
    }

    #[inline(always)]
    const fn colon(&mut self) -> u32 {
        if self.get(PLACE) == place::BEFORE {
            self.set(PLACE, place::ADDRESS);
        }
        if self.get(PLACE) == place::BEHIND || (self.get(PLACE) == place::ADDRESS && self.is_nearly_four()) {
            let bits = if self.get(PLACE) == place::BEHIND { 0 } else { 8 };
            self.set(PLACE, place::PORT);
            return bits;
        }
        if !self.is_in_address() || self.get(DOTS) > 0 {
            return UNFIT;
        }
        if self.get(DIGITS) > 0 {
            self.set(COLONS, 1);
            return 16;
        }
        if self.get(COLONS) == 0 {
            self.set(COLONS, 1);
            return if self.get(OCTETS) == 0 { 0 } else { UNFIT };
        }
        let is_first = self.get(COLONS) == 1 && self.get(GAP) == 0;
        self.set(COLONS, 2);
        self.set(GAP, self.get(OCTETS) + 1);
        if is_first { 0 } else { UNFIT }
    }

    #[inline(always)]
    const fn dot(&mut self) -> u32 {
        self.set(DOTS, self.get(DOTS) + 1);
        if self.get(DOTS) <= 3 && self.is_in_address() { 8 } else { UNFIT }
    }

    /// Whether it is an IPv4 address so far, up to its last byte.
    #[inline(always)]
    const fn is_nearly_four(&self) -> bool {
        self.get(DOTS) == 3 && self.get(OCTETS) == 3 && self.get(GAP) == 0
    }

    /// Whether it was written as an IPv4 address, behind its end.
    #[inline(always)]
    pub(super) const fn is_four(&self) -> bool {
        self.get(GAP) == 0 && self.get(DOTS) == 3 && self.get(OCTETS) == 4
    }

    /// The bits of the address's last number.
    #[inline(always)]
    const fn last(&self) -> u32 {
        match (self.get(DOTS), self.get(DIGITS)) {
            (3, _) => 8,
            (0, 0) if self.get(COLONS) == 2 => 0,
            (0, 1..) => 16,
            _ => UNFIT,
        }
    }

    /// Puts the number into so many bits of the address, behind those that are there: 16 are a group of IPv6, and 8 a byte
    /// in decimal, which was read as a hexadecimal number. A leading zero is octal for some.
    #[inline(always)]
    const fn put(&mut self, bits: u32) -> bool {
        let mut value = self.value() as u64;
        if bits == 8 {
            let [hundreds, tens, ones] = [value >> 8, (value >> 4) & 15, value & 15];
            value = hundreds * 100 + tens * 10 + ones;
            let is_shortest = match self.get(DIGITS) {
                1 => true,
                2 => tens > 0,
                3 => hundreds > 0,
                _ => false,
            };
            if !is_shortest || tens > 9 || ones > 9 || value > 255 {
                return false;
            }
        }
        let at = 8 * self.get(OCTETS);
        if at + bits > 128 {
            return false;
        }
        if self.get(GAP) > 0 {
            self.0[2] = (self.0[2] << bits) | (self.0[3] >> (64 - bits));
            self.0[3] = (self.0[3] << bits) | value;
        } else if at < 64 {
            self.0[0] |= value << ((64 - bits - at) & 63);
        } else {
            self.0[1] |= value << ((128 - bits - at) & 63);
        }
        self.set(OCTETS, self.get(OCTETS) + bits / 8);
        self.set_value(0);
        self.set(DIGITS, 0);
        true
    }
}

impl Machine {
    /// The request comes from where the connection does.
    #[inline(always)]
    pub(super) fn forward_from_peer(&mut self) {
        match self.told() {
            Some([first, second]) => {
                self.source = [first, second];
                self.flags |= FORWARDED;
            }
            None => self.flags &= !FORWARDED,
        }
    }

    /// A byte of the list.
    #[inline(always)]
    pub(super) fn elements(&mut self, window: &Window, cursor: &mut Cursor, trusts: u64, lookup: &impl Lookup) -> Step {
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
        let mut element = Element::of(&mut self.value);
        element.push(byte, ends);
        if ends {
            match element.end() {
                End::Nothing => {}
                End::Address(address) if lookup.is_trusted(address, trusts) => {}
                End::Address(address) => {
                    self.source = address;
                    self.flags |= FORWARDED;
                }
                End::Unreadable => self.forward_from_peer(),
            }
            self.value = [zero(); 6];
        }
        if is_end {
            self.phase = phase::LINE;
        }
        Step::More
    }
}
