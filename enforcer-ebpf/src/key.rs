//! The keyed tag of a key: SipHash-2-4 with 128-bit output (Aumasson & Bernstein 2012), incremental.
//!
//! A key's bytes never leave this module; what is stored, compared and shown is the tag under the install's secret.
//! Whole words are taken at a time; a value cut by a segment boundary goes on from [`Tagger`]'s state.

use crate::abi::KeyTag;
use crate::opaque::zero;

/// Shortest key in bytes.
pub const MIN_LEN: u32 = 8;
/// Longest key in bytes.
pub const MAX_LEN: u32 = 128;

/// The hash under way over the bytes of one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tagger {
    v: [u64; 4],
    /// The bytes that fill no word yet, lowest first, under `v[0]`: they may lie in a map, and are a key's.
    tail: u64,
    /// Bytes taken.
    len: u32,
}

impl Tagger {
    /// Begins a value under `secret`.
    #[must_use]
    #[inline(always)] // state stays in registers across the words of a value
    pub fn new(secret: [u64; 2]) -> Self {
        let [k0, k1] = secret;
        let first = k0 ^ 0x736f_6d65_7073_6575;
        Self {
            v: [first, k1 ^ 0x646f_7261_6e64_6f6d ^ 0xee, k0 ^ 0x6c79_6765_6e65_7261, k1 ^ 0x7465_6462_7974_6573],
            tail: first,
            len: zero() as u32,
        }
    }

    /// Its state, to go on from.
    #[must_use]
    #[inline(always)]
    pub const fn to_words(self) -> [u64; 6] {
        let [v0, v1, v2, v3] = self.v;
        [v0, v1, v2, v3, self.tail, self.len as u64]
    }

    /// Goes on from a state.
    #[must_use]
    #[inline(always)]
    pub const fn from_words(words: [u64; 6]) -> Self {
        let [v0, v1, v2, v3, tail, len] = words;
        Self { v: [v0, v1, v2, v3], tail, len: len as u32 }
    }

    /// Bytes taken so far.
    #[must_use]
    #[inline(always)]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether no byte was taken yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline(always)]
    fn compress(&mut self, word: u64) {
        self.v[3] ^= word;
        round(&mut self.v);
        round(&mut self.v);
        self.v[0] ^= word;
    }

    /// Takes the `count` lowest bytes of `word`; `count` is 1–8, the bytes above are ignored.
    #[inline(always)]
    pub fn push(&mut self, word: u64, count: u32) {
        let count = if count > 8 { 8 } else { count };
        let word = if count == 8 { word } else { word & ((1u64 << (8 * count)) - 1) };
        let held = self.len & 7;
        let mut tail = (self.tail ^ self.v[0]) | (word << (8 * held));
        if held + count >= 8 {
            self.compress(tail);
            tail = if held == 0 { 0 } else { word >> (8 * (8 - held)) };
        }
        self.tail = tail ^ self.v[0];
        self.len = self.len.wrapping_add(count);
    }

    /// Ends the value.
    #[must_use]
    #[inline(always)]
    pub fn finish(mut self) -> KeyTag {
        let last = (self.tail ^ self.v[0]) | (u64::from(self.len) << 56);
        self.compress(last);
        self.v[2] ^= 0xee;
        round(&mut self.v);
        round(&mut self.v);
        round(&mut self.v);
        round(&mut self.v);
        let low = self.v[0] ^ self.v[1] ^ self.v[2] ^ self.v[3];
        self.v[1] ^= 0xdd;
        round(&mut self.v);
        round(&mut self.v);
        round(&mut self.v);
        round(&mut self.v);
        let high = self.v[0] ^ self.v[1] ^ self.v[2] ^ self.v[3];
        KeyTag([low, high])
    }
}

/// One SipRound.
#[inline(always)]
pub(crate) fn round(v: &mut [u64; 4]) {
    let [mut v0, mut v1, mut v2, mut v3] = *v;
    v0 = v0.wrapping_add(v1);
    v1 = v1.rotate_left(13) ^ v0;
    v0 = v0.rotate_left(32);
    v2 = v2.wrapping_add(v3);
    v3 = v3.rotate_left(16) ^ v2;
    v0 = v0.wrapping_add(v3);
    v3 = v3.rotate_left(21) ^ v0;
    v2 = v2.wrapping_add(v1);
    v1 = v1.rotate_left(17) ^ v2;
    v2 = v2.rotate_left(32);
    *v = [v0, v1, v2, v3];
}

/// The tag of a whole value.
#[must_use]
pub fn tag(secret: [u64; 2], value: &[u8]) -> KeyTag {
    let mut tagger = Tagger::new(secret);
    for chunk in value.chunks(8) {
        let word = chunk.iter().rev().fold(0u64, |word, &byte| (word << 8) | u64::from(byte));
        tagger.push(word, chunk.len() as u32);
    }
    tagger.finish()
}

/// Whether `value` may be a key: 8–128 bytes, each visible ASCII (0x21–0x7E).
#[must_use]
pub fn is_valid(value: &[u8]) -> bool {
    (MIN_LEN as usize..=MAX_LEN as usize).contains(&value.len())
        && value.iter().all(|byte| (0x21..=0x7e).contains(byte))
}
