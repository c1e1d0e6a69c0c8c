//! Dates as RFC 9110 §5.6.7 has them (IMF-fixdate).

use super::Text;
use crate::calendar::Date;

/// Three letters in one number.
const fn word(letters: &[u8; 3]) -> u32 {
    letters[0] as u32 | (letters[1] as u32) << 8 | (letters[2] as u32) << 16
}

const DAYS: [u32; 7] =
    [word(b"Sun"), word(b"Mon"), word(b"Tue"), word(b"Wed"), word(b"Thu"), word(b"Fri"), word(b"Sat")];
const MONTHS: [u32; 12] = [
    word(b"Jan"),
    word(b"Feb"),
    word(b"Mar"),
    word(b"Apr"),
    word(b"May"),
    word(b"Jun"),
    word(b"Jul"),
    word(b"Aug"),
    word(b"Sep"),
    word(b"Oct"),
    word(b"Nov"),
    word(b"Dec"),
];

/// Appends the date of a second of Unix time.
#[inline(always)]
pub(super) fn push(text: &mut Text, unix: u32) {
    let (days, second) = (unix / 86_400, unix % 86_400);
    let date = Date::from_days(days);
    let year = date.year();
    push_word(text, pick(&DAYS, (days + 4) % 7));
    text.push(b',');
    text.push(b' ');
    push_two(text, date.day());
    text.push(b' ');
    push_word(text, pick(&MONTHS, date.month()));
    text.push(b' ');
    push_two(text, year / 100);
    push_two(text, year % 100);
    text.push(b' ');
    push_two(text, second / 3_600);
    text.push(b':');
    push_two(text, second / 60 % 60);
    text.push(b':');
    push_two(text, second % 60);
    text.push(b' ');
    push_word(text, word(b"GMT"));
}

/// The word at an index, chosen without a table in memory: such a one would be another map.
#[inline(always)]
fn pick<const N: usize>(words: &[u32; N], index: u32) -> u32 {
    let mut picked = 0;
    for (at, word) in words.iter().enumerate() {
        picked |= word & 0u32.wrapping_sub(u32::from(at as u32 == index));
    }
    picked
}

#[inline(always)]
fn push_word(text: &mut Text, word: u32) {
    text.push(word as u8);
    text.push((word >> 8) as u8);
    text.push((word >> 16) as u8);
}

/// Two digits.
#[inline(always)]
fn push_two(text: &mut Text, number: u32) {
    text.push(b'0' + (number / 10 % 10) as u8);
    text.push(b'0' + (number % 10) as u8);
}
