//! The text of an answer: pieces of what the operator has set, and between them what is filled in.

use super::date;
use crate::abi::{ANSWER_TEXT, Answer, Name, POINTS, QUOTED, Value};
use crate::flow::Told;

/// Most bytes of a text with everything filled in.
pub const TEXT: usize = 1536;
const MASK: usize = 2047;
/// Room behind any masked place for the longest piece: the verifier cannot know that both never come together.
const ROOM: usize = MASK + 1 + ANSWER_TEXT;

/// A text under way.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Text {
    bytes: [u8; ROOM],
    len: u64,
}

impl Text {
    /// Empty.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: [0; ROOM], len: 0 }
    }

    /// Its bytes, and room for more.
    #[must_use]
    #[inline(always)]
    pub fn bytes_mut(&mut self) -> &mut [u8; ROOM] {
        &mut self.bytes
    }

    /// Its bytes, and room for more.
    #[must_use]
    #[inline(always)]
    pub const fn bytes(&self) -> &[u8; ROOM] {
        &self.bytes
    }

    /// How many bytes it has.
    #[must_use]
    #[inline(always)]
    pub const fn len(&self) -> u32 {
        self.len as u32
    }

    /// Whether it has none.
    #[must_use]
    #[inline(always)]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes all away.
    #[inline(always)]
    pub fn clear(&mut self) {
        self.len = 0;
    }

    #[inline(always)]
    pub(super) fn push(&mut self, byte: u8) {
        self.bytes[self.len as usize & MASK] = byte;
        self.len += 1;
    }

    #[inline(always)]
    fn push_connection(&mut self, keeps: bool) {
        let (word, len) = if keeps { (b"keep-alive", 10) } else { (b"close\0\0\0\0\0", 5) };
        for byte in word {
            self.push(*byte);
        }
        self.len -= 10 - len;
    }

    /// Up to its first zero; how many bytes that are.
    #[inline(always)]
    fn push_name(&mut self, name: &Name) -> usize {
        let mut len = 0;
        for word in name {
            let mut rest = *word;
            for _ in 0..8 {
                if rest & 0xff != 0 {
                    self.push(rest as u8);
                    len += 1;
                }
                rest >>= 8;
            }
        }
        len
    }

    /// In decimal.
    #[inline(always)]
    fn push_number(&mut self, number: u32) {
        let mut begun = false;
        let mut unit = 1_000_000_000;
        for _ in 0..10 {
            let digit = (number / unit) % 10;
            begun |= digit != 0 || unit == 1;
            if begun {
                self.push(b'0' + digit as u8);
            }
            unit /= 10;
        }
    }
}

impl Default for Text {
    fn default() -> Self {
        Self::new()
    }
}

/// Goes on by the piece of `answer` before its point `index`, and what is filled in there, or by what is behind the last
/// point; `false` ends the text. `copy` appends bytes of the answer's text: as many, at most [`ANSWER_TEXT`], from a place.
#[inline(always)]
pub fn piece(
    answer: &Answer,
    index: u32,
    told: &Told,
    text: &mut Text,
    copy: impl FnOnce(&mut [u8; ROOM], usize, usize, u32),
) -> bool {
    let point = answer.points[index as usize & (POINTS - 1)];
    let is_cut = told.bodiless != 0 && u32::from(point.at) >= answer.head;
    let is_last = is_cut || index >= answer.filled || index as usize >= POINTS;
    let from = if index == 0 { 0 } else { u32::from(answer.points[(index as usize - 1) & (POINTS - 1)].at) };
    let end = if told.bodiless != 0 { answer.head } else { answer.len };
    let to = if is_last { end } else { u32::from(point.at) };
    let len = to.saturating_sub(from);
    if len > 0 && len <= ANSWER_TEXT as u32 && text.len + u64::from(len) <= TEXT as u64 {
        copy(&mut text.bytes, text.len as usize & MASK, from as usize & (ANSWER_TEXT - 1), len);
        text.len += u64::from(len);
    }
    if is_last {
        return false;
    }
    if point.value == Value::Date as u16 {
        date::push(text, told.date);
    } else if point.value == Value::RetryAfter as u16 {
        text.push_number(told.retry);
    } else if point.value == Value::Connection as u16 {
        text.push_connection(told.keeps != 0);
    } else if point.value == Value::Name as u16 {
        text.push_name(&told.name);
    } else if point.value == Value::QuotedName as u16 {
        text.push(b'"');
        let len = text.push_name(&told.name);
        text.push(b'"');
        for place in 0..QUOTED - 2 {
            if place >= len {
                text.push(b' ');
            }
        }
    } else if point.value == Value::Quota as u16 {
        text.push_number(told.quota);
    } else {
        text.push_number(told.window);
    }
    true
}
