//! The request target where it is looked into: its path as segments, its query as names of parameters.
//!
//! Servers read some paths in more than one way: dot segments, separators in disguise, fragments, absolute forms of other
//! schemes. Where paths have rules these are refused, so that no path is ruled as one and served as another. What is left
//! is split at `/`, without empty segments, and each segment is decoded once.

use super::bytes::{Window, equal, first, folded, hyphened, invisible, lowest, special};
use super::head::run;
use super::{Cursor, KEY_IN_URL, Lookup, Machine, Step, Terms, phase};
use crate::abi::KeyTag;
use crate::key::Tagger;
use crate::verdict::{Malformation, Reason};

/// What a segment is so far.
pub(super) mod seen {
    pub(in crate::http) const NOTHING: u8 = 0;
    /// `.`
    pub(in crate::http) const DOT: u8 = 1;
    /// `..`
    pub(in crate::http) const DOTS: u8 = 2;
    /// Anything else.
    pub(in crate::http) const MORE: u8 = 3;
}

/// The one scheme of an absolute form, in lower case.
const SCHEME: u64 = u64::from_le_bytes(*b"http://\0");
const SCHEME_LEN: u32 = 7;

/// Names of parameters and cookies that keys are put into elsewhere, folded and with `-` for `_`, and the longest with the
/// `=` behind it.
const API_KEY: u64 = u64::from_le_bytes(*b"api-key\0");
const APIKEY: u64 = u64::from_le_bytes(*b"apikey\0\0");
const X_API_KEY: [u64; 2] = [u64::from_le_bytes(*b"x-api-ke"), b'y' as u64];
const KEY: u64 = u64::from_le_bytes(*b"key\0\0\0\0\0");
const ACCESS_TOKEN: [u64; 2] = [u64::from_le_bytes(*b"access-t"), u64::from_le_bytes(*b"oken\0\0\0\0")];
pub(super) const PARAMETER: u32 = 13;

/// Whether keys are put under this name elsewhere: its first sixteen bytes, and how many there are.
#[inline(always)]
pub(super) fn is_key_name(low: u64, high: u64, len: u32) -> bool {
    let (low, high) = (hyphened(folded(low)), hyphened(folded(high)));
    let (low, high) = (lowest(low, len), lowest(high, len.saturating_sub(8)));
    match len {
        3 => low == KEY,
        6 => low == APIKEY,
        7 => low == API_KEY,
        9 => [low, high] == X_API_KEY,
        12 => [low, high] == ACCESS_TOKEN,
        _ => false,
    }
}

impl Machine {
    /// Which form the target has.
    #[inline(always)]
    pub(super) fn form(&mut self, window: &Window, cursor: &mut Cursor) -> Step {
        match window.byte(cursor.pos) {
            b'/' => {}
            // For servers it is a path of this one segment.
            b'*' => {
                if cursor.unread() < 2 {
                    return Step::Starved;
                }
                if matches!(window.byte(cursor.pos.wrapping_add(1)), 0x21..=0x7e) {
                    return Step::Refused(Reason::Path.into());
                }
            }
            b'h' | b'H' => {
                let unread = cursor.unread();
                let unread = if unread > SCHEME_LEN { SCHEME_LEN } else { unread };
                let word = window.word(cursor.pos);
                // Folded, a control byte may look like one of these.
                if lowest(invisible(word), unread) != 0 || lowest(folded(word), unread) != lowest(SCHEME, unread) {
                    return Step::Refused(Reason::Path.into());
                }
                if unread < SCHEME_LEN {
                    return Step::Starved;
                }
                self.go_on(cursor, SCHEME_LEN);
                self.phase = phase::AUTHORITY;
                return Step::More;
            }
            0x21..=0x7e => return Step::Refused(Reason::Path.into()),
            _ => return Step::Refused(Malformation::Target.into()),
        }
        self.phase = phase::SEGMENT;
        Step::More
    }

    /// What stands before the path of an absolute form. One without a path is its own path for some servers.
    #[inline(always)]
    pub(super) fn authority(&mut self, window: &Window, cursor: &mut Cursor) -> Step {
        let (len, stopped) = run(window, cursor, |word| {
            invisible(word)
                | equal(word, b'/')
                | equal(word, b'%')
                | equal(word, b'?')
                | equal(word, b'#')
                | equal(word, b'\\')
        });
        self.go_on(cursor, len);
        if !stopped {
            return Step::More;
        }
        if window.byte(cursor.pos) != b'/' || self.target == SCHEME_LEN {
            return Step::Refused(Reason::Path.into());
        }
        self.phase = phase::SEGMENT;
        Step::More
    }

    /// A part of a segment, or what ends it.
    #[inline(always)]
    pub(super) fn segment(
        &mut self,
        window: &Window,
        cursor: &mut Cursor,
        terms: &Terms<'_>,
        lookup: &impl Lookup,
    ) -> Step {
        // Where no rule can be met any more, the path is still to be one that all servers read alike.
        let taken = match self.route() {
            0 => run(window, cursor, special).0,
            _ => self.hash(window, cursor, special, |word| word),
        };
        if taken > 0 {
            self.seen = seen::MORE;
            self.go_on(cursor, taken);
            if taken >= 32 || cursor.unread() == 0 {
                return Step::More;
            }
        }
        let stop = window.byte(cursor.pos);
        let (byte, len) = match stop {
            b'/' | b'?' | b' ' => {
                if !self.end_segment(terms, lookup) {
                    return Step::Refused(Reason::Path.into());
                }
                match stop {
                    b' ' => return self.target_end(window, cursor),
                    b'?' => self.phase = phase::PARAMETER,
                    _ => {}
                }
                self.go_on(cursor, 1);
                return Step::More;
            }
            b'.' => (b'.', 1),
            b'%' => {
                let high = hexadecimal(window.byte(cursor.pos.wrapping_add(1)));
                let low = hexadecimal(window.byte(cursor.pos.wrapping_add(2)));
                let unread = cursor.unread();
                if (unread > 1 && high > 15) || (unread > 2 && low > 15) {
                    return Step::Refused(Reason::Path.into());
                }
                if unread < 3 {
                    return Step::Starved;
                }
                match (high << 4) | low {
                    // Separators, and what ends a string in C.
                    0..=0x1f | b'/' | b'\\' | 0x7f => return Step::Refused(Reason::Path.into()),
                    byte => (byte, 3),
                }
            }
            b'#' | b'\\' => return Step::Refused(Reason::Path.into()),
            _ => return self.target_end(window, cursor),
        };
        self.seen = if byte == b'.' && self.seen < seen::DOTS { self.seen + 1 } else { seen::MORE };
        if self.route() != 0 {
            let mut tagger = Tagger::from_words(self.value);
            tagger.push(u64::from(byte), 1);
            self.value = tagger.to_words();
        }
        self.go_on(cursor, len);
        Step::More
    }

    /// Ends a segment; `false` where servers do not agree on what it does to the path.
    #[inline(always)]
    fn end_segment(&mut self, terms: &Terms<'_>, lookup: &impl Lookup) -> bool {
        if matches!(self.seen, seen::DOT | seen::DOTS) {
            return false;
        }
        let state = self.route();
        if self.seen != seen::NOTHING && state != 0 {
            let tag: KeyTag = Tagger::from_words(self.value).finish();
            self.route = (self.route ^ state) | lookup.next(state, tag);
            self.value = Tagger::new(terms.secret).to_words();
        }
        self.seen = seen::NOTHING;
        true
    }

    /// The name of a parameter, if it can be one that matters.
    #[inline(always)]
    pub(super) fn parameter(&mut self, window: &Window, cursor: &mut Cursor) -> Step {
        let (low, high) = (window.word(cursor.pos), window.word_behind::<8>(cursor.pos));
        let ends = |word| invisible(word) | equal(word, b'=') | equal(word, b'&');
        let len = match (ends(low), ends(high)) {
            (0, 0) => 16,
            (0, mask) => 8 + first(mask),
            (mask, _) => first(mask),
        };
        let unread = cursor.unread();
        if len >= unread && unread < PARAMETER {
            return Step::Starved;
        }
        if is_key_name(low, high, len) && window.byte(cursor.pos.wrapping_add(len)) == b'=' {
            self.flags |= KEY_IN_URL;
        }
        self.phase = phase::QUERY;
        Step::More
    }

    /// What comes before the next name of a parameter.
    #[inline(always)]
    pub(super) fn query(&mut self, window: &Window, cursor: &mut Cursor) -> Step {
        let separator = if self.phase == phase::PATH { b'?' } else { b'&' };
        let (len, stopped) = run(window, cursor, |word| invisible(word) | equal(word, separator));
        self.go_on(cursor, len);
        if !stopped {
            return Step::More;
        }
        if window.byte(cursor.pos) != separator {
            return self.target_end(window, cursor);
        }
        self.go_on(cursor, 1);
        self.phase = phase::PARAMETER;
        Step::More
    }

    /// Takes bytes of the target.
    #[inline(always)]
    fn go_on(&mut self, cursor: &mut Cursor, count: u32) {
        self.target = self.target.wrapping_add(count);
        self.take(cursor, count);
    }
}

/// The value of a hexadecimal digit; of any other byte more than 15.
#[inline(always)]
pub(super) const fn hexadecimal(byte: u8) -> u8 {
    match byte {
        b'0'..=b'9' => byte - b'0',
        b'a'..=b'f' | b'A'..=b'F' => (byte | 0x20) - b'a' + 10,
        _ => 16,
    }
}
