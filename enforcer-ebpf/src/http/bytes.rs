//! Byte classes, eight bytes at a time, and the window that they are read from.
//!
//! Masks have bit 7 of a byte set where the byte is of the class; words are little endian, so the lowest set bit is
//! the first byte of the stream. Masks made by subtraction may have further bits set above the first: only
//! [`first`] of them is exact, which is all that is used.

/// Bytes kept in front of fresh ones: the longest element that must be seen whole (a field name, a method).
pub const BASE: u32 = 32;
/// Fresh bytes that a window takes.
pub const CAPACITY: u32 = 4064;
const MASK: usize = 4095;
/// Bytes that may be read behind the masked position.
const SLACK: usize = 80;

/// A piece of the stream in memory whose every masked read is in bounds, whatever position is asked for.
#[repr(C, align(8))]
pub struct Window {
    bytes: [u8; MASK + 1 + SLACK],
}

impl Window {
    /// An empty one.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: [0; MASK + 1 + SLACK] }
    }

    /// The byte at `at`.
    #[must_use]
    #[inline(always)]
    pub fn byte(&self, at: u32) -> u8 {
        self.bytes[at as usize & MASK]
    }

    /// The eight bytes at `at`, first lowest.
    #[must_use]
    #[inline(always)]
    pub fn word(&self, at: u32) -> u64 {
        self.word_behind::<0>(at)
    }

    /// The eight bytes at `at + BEHIND`; `BEHIND` is at most 72.
    #[must_use]
    #[inline(always)]
    pub fn word_behind<const BEHIND: usize>(&self, at: u32) -> u64 {
        const { assert!(BEHIND + 8 <= SLACK) };
        let at = (at as usize & MASK) + BEHIND;
        let b = &self.bytes;
        u64::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3], b[at + 4], b[at + 5], b[at + 6], b[at + 7]])
    }

    /// The [`BASE`] bytes before `end`.
    #[must_use]
    #[inline(always)]
    pub fn last(&self, end: u32) -> [u64; 4] {
        let at = end.wrapping_sub(BASE);
        [self.word_behind::<0>(at), self.word_behind::<8>(at), self.word_behind::<16>(at), self.word_behind::<24>(at)]
    }

    /// Puts bytes kept by [`Window::last`] in front.
    #[inline(always)]
    pub fn keep(&mut self, words: [u64; 4]) {
        for (index, word) in words.iter().enumerate() {
            for (offset, byte) in word.to_le_bytes().iter().enumerate() {
                self.bytes[index * 8 + offset] = *byte;
            }
        }
    }

    /// Where fresh bytes are written.
    #[inline(always)]
    pub fn fresh(&mut self) -> &mut [u8] {
        &mut self.bytes[BASE as usize..]
    }
}

impl Default for Window {
    fn default() -> Self {
        Self::new()
    }
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = ONES << 7;
const LOWS: u64 = !HIGHS;

const fn all(byte: u8) -> u64 {
    ONES * byte as u64
}

/// Index (0–7) of the first byte of a mask that is not 0.
#[must_use]
#[inline(always)]
pub const fn first(mask: u64) -> u32 {
    let lowest = mask & mask.wrapping_neg();
    ((((lowest >> 7).wrapping_sub(1) & ONES).wrapping_mul(ONES)) >> 56) as u32
}

/// Bytes equal to `byte`.
#[must_use]
#[inline(always)]
pub const fn equal(word: u64, byte: u8) -> u64 {
    let word = word ^ all(byte);
    word.wrapping_sub(ONES) & !word & HIGHS
}

/// Bytes below `byte`, which is at most 0x80.
#[inline(always)]
const fn below(word: u64, byte: u8) -> u64 {
    word.wrapping_sub(all(byte)) & !word & HIGHS
}

/// Bytes at which reading a field value must look: controls, HTAB and DEL.
#[must_use]
#[inline(always)]
pub const fn controls(word: u64) -> u64 {
    below(word, 0x20) | equal(word, 0x7f)
}

/// Bytes outside 0x21–0x7E.
#[must_use]
#[inline(always)]
pub const fn invisible(word: u64) -> u64 {
    below(word, 0x21) | equal(word, 0x7f) | (word & HIGHS)
}

/// Bytes of a path at which reading it must look: those outside 0x21–0x7E, and `/`, `.`, `%`, `?`, `#` and `\`.
#[must_use]
#[inline(always)]
pub const fn special(word: u64) -> u64 {
    invisible(word)
        | equal(word, b'/')
        | equal(word, b'.')
        | equal(word, b'%')
        | equal(word, b'?')
        | equal(word, b'#')
        | equal(word, b'\\')
}

/// Bytes that are neither letters nor `-`: what nearly all names and methods are made of.
#[must_use]
#[inline(always)]
pub const fn uncommon(word: u64) -> u64 {
    // Sums of seven-bit numbers carry into no other byte, so every bit of this mask is exact.
    let letter = (word & LOWS) | all(0x20);
    let letters = letter.wrapping_add(all(0x80 - b'a')) & !letter.wrapping_add(all(0x80 - (b'z' + 1)));
    let other = (word & LOWS) ^ all(b'-');
    let hyphens = !(other + LOWS);
    // 0x01–0x1A | 0x20 are no letters: 'a' is 0x61. Bytes of 0x80 and above are refused by their own top bit.
    (!(letters | hyphens) | word) & HIGHS
}

/// Bytes that are no part of a host's label: neither letters nor digits, `-` or `_`.
#[must_use]
#[inline(always)]
pub const fn unnamed(word: u64) -> u64 {
    // As above.
    let low = word & LOWS;
    let digits = low.wrapping_add(all(0x80 - b'0')) & !low.wrapping_add(all(0x80 - (b'9' + 1)));
    let underscores = !((low ^ all(b'_')) + LOWS);
    uncommon(word) & (!(digits | underscores) | word)
}

/// Whether a byte may stand in a token (RFC 9110 §5.6.2).
#[must_use]
#[inline(always)]
pub const fn is_token(byte: u8) -> bool {
    const LOW: u64 = {
        let mut bits = 0u64;
        let set = b"!#$%&'*+-.0123456789";
        let mut i = 0;
        while i < set.len() {
            bits |= 1 << set[i];
            i += 1;
        }
        bits
    };
    const HIGH: u64 = {
        let mut bits = 0u64;
        let set = b"^_`|~ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        let mut i = 0;
        while i < set.len() {
            bits |= 1 << (set[i] - 64);
            i += 1;
        }
        bits
    };
    match byte {
        0..=63 => (LOW >> byte) & 1 != 0,
        64..=127 => (HIGH >> (byte - 64)) & 1 != 0,
        _ => false,
    }
}

/// Letters in lower case; injective on tokens.
#[must_use]
#[inline(always)]
pub const fn folded(word: u64) -> u64 {
    word | all(0x20)
}

/// `_` as `-`, in a folded word (there `_` has become 0x7F, which is no token's byte).
#[must_use]
#[inline(always)]
pub const fn hyphened(word: u64) -> u64 {
    let other = (word & LOWS) ^ all(0x7f);
    let underscores = !(other + LOWS) & !word & HIGHS;
    word ^ ((underscores >> 7) * (0x7f ^ b'-') as u64)
}

/// The `count` lowest bytes of a word; `count` of 8 and more takes all.
#[must_use]
#[inline(always)]
pub const fn lowest(word: u64, count: u32) -> u64 {
    if count >= 8 { word } else { word & ((1 << (8 * count)) - 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words_with(byte: u8, at: usize) -> u64 {
        let mut bytes = *b"abcdefgh";
        bytes[at] = byte;
        u64::from_le_bytes(bytes)
    }

    #[test]
    fn classes_hold_for_every_byte_at_every_place() {
        for byte in 0..=255u8 {
            for at in 0..8 {
                let word = words_with(byte, at);
                let found = |mask: u64| (mask != 0).then(|| first(mask) as usize);
                let expected = |is: bool| is.then_some(at);
                assert_eq!(found(controls(word)), expected(byte < 0x20 || byte == 0x7f), "controls {byte:#x} at {at}");
                assert_eq!(found(invisible(word)), expected(!(0x21..=0x7e).contains(&byte)), "invisible {byte:#x}");
                let is_special = !(0x21..=0x7e).contains(&byte) || b"/.%?#\\".contains(&byte);
                assert_eq!(found(special(word)), expected(is_special), "special {byte:#x} at {at}");
                let common = byte.is_ascii_alphabetic() || byte == b'-';
                assert_eq!(found(uncommon(word)), expected(!common), "uncommon {byte:#x} at {at}");
                let named = common || byte.is_ascii_digit() || byte == b'_';
                assert_eq!(found(unnamed(word)), expected(!named), "unnamed {byte:#x} at {at}");
            }
        }
    }

    #[test]
    fn tokens_are_those_of_rfc_9110() {
        for byte in 0..=255u8 {
            let expected = byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            assert_eq!(is_token(byte), expected, "{byte:#x}");
        }
    }

    #[test]
    fn an_underscore_reads_as_a_hyphen_and_nothing_else_does() {
        for byte in (0..=255u8).filter(|byte| is_token(*byte)) {
            let bytes = hyphened(folded(words_with(byte, 3))).to_le_bytes();
            let expected = if byte == b'_' { b'-' } else { byte | 0x20 };
            assert_eq!(bytes[3], expected, "{byte:#x}");
        }
    }
}
