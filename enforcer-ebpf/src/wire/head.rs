//! The first bytes of a frame, read and written at masked offsets.

/// How many bytes of a frame are parsed; all headers up to TCP's first 20 bytes must lie within.
pub const HEAD: u32 = 256;
const MASK: usize = HEAD as usize - 1;
const SLACK: usize = 8;

/// The first [`HEAD`] bytes of a frame; what the frame does not have reads as whatever was there, so lengths are
/// checked before.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub struct Head {
    bytes: [u8; HEAD as usize + SLACK],
}

impl Head {
    /// All zero.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: [0; HEAD as usize + SLACK] }
    }

    /// Where a frame's bytes are written, and read back.
    #[must_use]
    #[inline(always)]
    pub fn bytes_mut(&mut self) -> &mut [u8; HEAD as usize + SLACK] {
        &mut self.bytes
    }

    /// The byte at `at`.
    #[must_use]
    #[inline(always)]
    pub fn u8(&self, at: u32) -> u8 {
        self.bytes[at as usize & MASK]
    }

    /// The number at `at`, network order.
    #[must_use]
    #[inline(always)]
    pub fn u16(&self, at: u32) -> u16 {
        let at = at as usize & MASK;
        u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    /// The number at `at`, network order.
    #[must_use]
    #[inline(always)]
    pub fn u32(&self, at: u32) -> u32 {
        u32::from_be(self.u32_raw(at))
    }

    /// Four bytes as they lie in memory.
    #[must_use]
    #[inline(always)]
    pub fn u32_raw(&self, at: u32) -> u32 {
        let at = at as usize & MASK;
        let b = &self.bytes;
        u32::from_ne_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
    }

    /// Eight bytes as they lie in memory.
    #[must_use]
    #[inline(always)]
    pub fn u64_raw(&self, at: u32) -> u64 {
        let at = at as usize & MASK;
        let b = &self.bytes;
        u64::from_ne_bytes([b[at], b[at + 1], b[at + 2], b[at + 3], b[at + 4], b[at + 5], b[at + 6], b[at + 7]])
    }

    /// Writes a byte.
    #[inline(always)]
    pub fn set_u8(&mut self, at: u32, value: u8) {
        self.bytes[at as usize & MASK] = value;
    }

    /// Writes a number in network order.
    #[inline(always)]
    pub fn set_u16(&mut self, at: u32, value: u16) {
        let at = at as usize & MASK;
        let [high, low] = value.to_be_bytes();
        self.bytes[at] = high;
        self.bytes[at + 1] = low;
    }

    /// Writes four bytes as they lie in memory.
    #[inline(always)]
    pub fn set_u32_raw(&mut self, at: u32, value: u32) {
        self.set_u32(at, u32::from_be(value));
    }

    /// Writes eight bytes as they lie in memory.
    #[inline(always)]
    pub fn set_u64_raw(&mut self, at: u32, value: u64) {
        self.set_u32_raw(at, value as u32);
        self.set_u32_raw(at.wrapping_add(4), (value >> 32) as u32);
    }

    /// Writes a number in network order.
    #[inline(always)]
    pub fn set_u32(&mut self, at: u32, value: u32) {
        self.set_u16(at, (value >> 16) as u16);
        self.set_u16(at.wrapping_add(2), value as u16);
    }
}

impl Default for Head {
    fn default() -> Self {
        Self::new()
    }
}
