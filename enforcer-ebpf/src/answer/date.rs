//! Dates as RFC 9110 §5.6.7 has them (IMF-fixdate).

use super::Text;

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
///
/// The calendar is the proleptic Gregorian one, counted in years that begin in March, so that a leap day is their last.
#[inline(always)]
pub(super) fn push(text: &mut Text, unix: u32) {
    let (days, second) = (unix / 86_400, unix % 86_400);
    // From 0000-03-01; an era is 400 years.
    let since = days + 719_468;
    let (era, day) = (since / 146_097, since % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 2, 0) } else { (month - 10, 1) };
    let year = year + era * 400 + next;
    push_word(text, pick(&DAYS, (days + 4) % 7));
    text.push(b',');
    text.push(b' ');
    push_two(text, day);
    text.push(b' ');
    push_word(text, pick(&MONTHS, month));
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
