//! The request line and the field lines, up to the values that matter.

use super::bytes::{BASE, Window, controls, first, folded, hyphened, invisible, is_token, lowest, uncommon};
use super::{
    ASKS_METHOD, BODILESS, CHUNKED, CLIENT, CLOSE, CR, Cursor, EXPECT, HOST, HTTP_1_0, KEY_ELSEWHERE, KEYED, LED,
    LENGTH, LF, LONG, LineEnd, Lookup, Machine, ORIGIN, PROXIED, Step, Terms, UNDERSCORE, cookie, line_end, method,
    phase,
};
use crate::abi::Service;
use crate::key::Tagger;
use crate::opaque::zero;
use crate::verdict::{Malformation, Reason};

const fn name<const N: usize>(bytes: &[u8; N]) -> [u64; 4] {
    let mut words = [0u64; 4];
    let mut i = 0;
    while i < N {
        words[i / 8] |= (bytes[i] as u64) << (8 * (i % 8));
        i += 1;
    }
    words
}

const X_API_KEY: [u64; 4] = name(b"x-api-key");
/// Fields that keys are often in, by their whole names or how these end.
const AUTHORIZATION: [u64; 4] = name(b"authorization");
const KEY_ENDS: [(u64, u32); 7] = [
    // Api-Key, X-Api-Key
    (name(b"api-key")[0], 7),
    (name(b"apikey")[0], 6),
    (name(b"auth-key")[0], 8),
    // X-Auth-Token, Access-Token, Api-Token, but none against forged requests: X-CSRF-Token
    (name(b"th-token")[0], 8),
    (name(b"ss-token")[0], 8),
    (name(b"pi-token")[0], 8),
    (name(b"x-token")[0], 7),
];
const COOKIE: [u64; 4] = name(b"cookie");
const CONTENT_LENGTH: [u64; 4] = name(b"content-length");
const TRANSFER_ENCODING: [u64; 4] = name(b"transfer-encoding");
const HTTP2_SETTINGS: [u64; 4] = name(b"http2-settings");
const UPGRADE: [u64; 4] = name(b"upgrade");
const HOST_NAME: [u64; 4] = name(b"host");
const CONNECTION: [u64; 4] = name(b"connection");
const EXPECT_NAME: [u64; 4] = name(b"expect");
const ORIGIN_NAME: [u64; 4] = name(b"origin");
const ASKED_METHOD: [u64; 4] = name(b"access-control-request-method");
const X_FORWARDED_FOR: [u64; 4] = name(b"x-forwarded-for");
const SCRIPT_NAME: [u64; 4] = name(b"script-name");
const CONNECT: [u64; 4] = name(b"connect");
const PRI: [u64; 4] = name(b"pri");
/// Whether a response has a body depends on the case of the method.
const HEAD: u64 = u32::from_le_bytes(*b"HEAD") as u64;
const VERSION_1_1: u64 = u64::from_le_bytes(*b"HTTP/1.1");
const VERSION_1_0: u64 = u64::from_le_bytes(*b"HTTP/1.0");

impl Machine {
    /// The first byte that is no letter or `-` among those that a name may have; at least 32 if there is none.
    #[inline(always)]
    fn name_end(&self, window: &Window, cursor: &Cursor) -> u32 {
        let seen = u32::from(self.seen) & (BASE - 1);
        let at = cursor.pos.wrapping_add(seen);
        let mask = uncommon(window.word_behind::<0>(at));
        if mask != 0 {
            return seen + first(mask);
        }
        let mask = uncommon(window.word_behind::<8>(at));
        if mask != 0 {
            return seen + 8 + first(mask);
        }
        let mask = uncommon(window.word_behind::<16>(at));
        if mask != 0 {
            return seen + 16 + first(mask);
        }
        let mask = uncommon(window.word_behind::<24>(at));
        if mask != 0 { seen + 24 + first(mask) } else { BASE + seen }
    }

    #[inline(always)]
    pub(super) fn method(
        &mut self,
        window: &Window,
        cursor: &mut Cursor,
        terms: &Terms<'_>,
        lookup: &impl Lookup,
    ) -> Step {
        if self.seen == 0 {
            self.flags &= LED | CLOSE;
            self.fields = 0;
            self.head = 0;
            match line_end(window, cursor.pos, cursor.unread()) {
                // RFC 9112 §2.2: one CRLF before the request line is to be overlooked.
                LineEnd::Yes if self.flags & LED == 0 => {
                    self.flags |= LED;
                    cursor.pos = cursor.pos.wrapping_add(2);
                    return Step::More;
                }
                LineEnd::Cut if self.flags & LED == 0 => return Step::Starved,
                _ => {}
            }
            // RFC 9112 §9.6: the client has said that nothing follows, and no server reads it.
            if self.flags & CLOSE != 0 {
                return Step::Refused(Malformation::AfterClose.into());
            }
        }
        let len = self.name_end(window, cursor);
        if len >= BASE && cursor.unread() >= BASE {
            return Step::Refused(Malformation::Method.into());
        }
        if len >= cursor.unread() {
            return Step::Starved;
        }
        let stop = window.byte(cursor.pos.wrapping_add(len));
        if stop != b' ' {
            if is_token(stop) {
                return self.pass_uncommon(cursor, len, stop);
            }
            let kind = match (len, stop) {
                (0, CR | LF) => Malformation::LineEnding,
                (0, _) => Malformation::NotHttp,
                (_, 0x20..=0x7e | b'\t' | CR | LF) => Malformation::Method,
                _ => Malformation::NotHttp,
            };
            return Step::Refused(kind.into());
        }
        if len == 0 {
            return Step::Refused(Malformation::Method.into());
        }
        let word = folded(window.word(cursor.pos));
        // The preface of HTTP/2 is a request for servers that do not know it (RFC 9113 §3.4).
        if len == 3 && lowest(word, 3) == PRI[0] {
            return Step::Refused(Malformation::NotHttp.into());
        }
        if len == 7 && lowest(word, 7) == CONNECT[0] && terms.service.flags & Service::UPGRADE == 0 {
            return Step::Refused(Reason::Upgrade.into());
        }
        self.flags &= !(LED | UNDERSCORE);
        if len == 4 && lowest(window.word(cursor.pos), 4) == HEAD {
            self.flags |= BODILESS;
        }
        self.seen = 0;
        self.target = 0;
        self.take(cursor, len.wrapping_add(1));
        self.method = number(word, len) as u8;
        self.begin_target(terms, lookup);
        Step::More
    }

    /// Says how the target is to be read.
    #[inline(always)]
    fn begin_target(&mut self, terms: &Terms<'_>, lookup: &impl Lookup) {
        let Terms { service, rules, peer, secret } = *terms;
        self.route = rules.routes;
        // Where the host is to be known, the target may name it.
        if rules.routes != 0 || service.flags & Service::HOSTS != 0 {
            self.value = Tagger::new(secret).to_words();
            self.phase = phase::FORM;
        } else if service.rules | service.rules_trial != 0 {
            self.phase = phase::PATH;
        } else {
            self.phase = phase::TARGET;
        }
        self.forward_from_peer();
        let peer = self.told().unwrap_or(peer);
        if rules.trusts != 0 && lookup.is_trusted(peer, rules.trusts) {
            self.flags |= PROXIED;
        }
    }

    /// A token's byte that is neither letter nor `-`, at `len` below [`BASE`]: goes on behind it.
    #[inline(always)]
    fn pass_uncommon(&mut self, cursor: &mut Cursor, len: u32, byte: u8) -> Step {
        if byte == b'_' {
            self.flags |= UNDERSCORE;
        }
        self.seen = (len + 1) as u8;
        if len + 1 < BASE {
            return Step::More;
        }
        if self.phase == phase::START {
            return Step::Refused(Malformation::Method.into());
        }
        self.pass_long(cursor)
    }

    /// The first [`BASE`] bytes of a name are a token's: it is none that matters.
    #[inline(always)]
    fn pass_long(&mut self, cursor: &mut Cursor) -> Step {
        self.take(cursor, BASE);
        self.flags |= LONG;
        self.seen = 0;
        Step::More
    }

    #[inline(always)]
    pub(super) fn target(&mut self, window: &Window, cursor: &mut Cursor) -> Step {
        let (len, stopped) = run(window, cursor, invisible);
        self.target = self.target.wrapping_add(len);
        self.take(cursor, len);
        if stopped { self.target_end(window, cursor) } else { Step::More }
    }

    /// The byte behind a target.
    #[inline(always)]
    pub(super) fn target_end(&mut self, window: &Window, cursor: &mut Cursor) -> Step {
        match window.byte(cursor.pos) {
            b' ' if self.target > 0 => {
                self.take(cursor, 1);
                self.phase = phase::VERSION;
                Step::More
            }
            // HTTP/0.9 has no version.
            CR | LF if self.target > 0 => Step::Refused(Malformation::Version.into()),
            _ => Step::Refused(Malformation::Target.into()),
        }
    }

    #[inline(always)]
    pub(super) fn version(&mut self, window: &Window, cursor: &mut Cursor) -> Step {
        let unread = cursor.unread();
        let word = window.word(cursor.pos);
        // Refused at the first wrong byte: some servers run a request line that has no version.
        if lowest(word, unread) != lowest(VERSION_1_1, unread) && lowest(word, unread) != lowest(VERSION_1_0, unread) {
            return Step::Refused(Malformation::Version.into());
        }
        if unread <= 8 {
            return Step::Starved;
        }
        match line_end(window, cursor.pos.wrapping_add(8), unread - 8) {
            LineEnd::Cut => Step::Starved,
            LineEnd::No => Step::Refused(Malformation::Version.into()),
            LineEnd::Yes => {
                if word == VERSION_1_0 {
                    self.flags |= HTTP_1_0;
                }
                self.take(cursor, 10);
                self.phase = phase::LINE;
                Step::More
            }
        }
    }

    /// A field line up to its value, the value too where it does not matter, or the end of the head.
    #[inline(always)]
    pub(super) fn line(&mut self, window: &Window, cursor: &mut Cursor, terms: &Terms<'_>) -> Step {
        if self.phase == phase::LINE {
            if self.seen == 0 && self.flags & LONG == 0 {
                match line_end(window, cursor.pos, cursor.unread()) {
                    LineEnd::Yes => {
                        self.take(cursor, 2);
                        return self.head_end(terms);
                    }
                    LineEnd::Cut => return Step::Starved,
                    LineEnd::No => {}
                }
            }
            let len = self.name_end(window, cursor);
            if len >= BASE && cursor.unread() >= BASE {
                return self.pass_long(cursor);
            }
            if len >= cursor.unread() {
                return Step::Starved;
            }
            let stop = window.byte(cursor.pos.wrapping_add(len));
            if stop != b':' {
                return self.no_colon(cursor, len, stop);
            }
            if let Some(step) = self.name(window, cursor, len, terms) {
                return step;
            }
        }
        let (len, stopped) = run(window, cursor, controls);
        self.take(cursor, len);
        if !stopped {
            return Step::More;
        }
        self.value_end(window, cursor)
    }

    /// The byte at which reading a value stops: a blank in it, or the end of its line.
    #[inline(always)]
    pub(super) fn value_end(&mut self, window: &Window, cursor: &mut Cursor) -> Step {
        let stop = window.byte(cursor.pos);
        if stop == b'\t' {
            self.take(cursor, 1);
            return Step::More;
        }
        match line_end(window, cursor.pos, cursor.unread()) {
            LineEnd::Yes => {
                self.take(cursor, 2);
                self.phase = phase::LINE;
                Step::More
            }
            LineEnd::Cut => Step::Starved,
            LineEnd::No if stop == CR || stop == LF => Step::Refused(Malformation::LineEnding.into()),
            LineEnd::No => Step::Refused(Malformation::ControlByte.into()),
        }
    }

    #[inline(always)]
    fn no_colon(&mut self, cursor: &mut Cursor, len: u32, stop: u8) -> Step {
        if is_token(stop) {
            return self.pass_uncommon(cursor, len, stop);
        }
        let begins = len == 0 && self.flags & LONG == 0;
        let kind = match stop {
            b' ' | b'\t' if begins => Malformation::ObsFold,
            CR | LF => Malformation::LineEnding,
            _ => Malformation::FieldName,
        };
        Step::Refused(kind.into())
    }

    /// The field named by the `len` bytes before a colon. `None`: its value does not matter.
    #[inline(always)]
    fn name(&mut self, window: &Window, cursor: &mut Cursor, len: u32, terms: &Terms<'_>) -> Option<Step> {
        let Terms { service, rules, secret, .. } = *terms;
        let long = self.flags & LONG != 0;
        if len == 0 && !long {
            return Some(Step::Refused(Malformation::FieldName.into()));
        }
        self.fields += 1;
        if u32::from(self.fields) > service.max_fields {
            return Some(Step::Refused(Reason::HeadTooLarge.into()));
        }
        let at = cursor.pos;
        let underscore = self.flags & UNDERSCORE != 0;
        self.flags &= !(LONG | UNDERSCORE);
        self.seen = 0;
        self.take(cursor, len.wrapping_add(1));
        self.phase = phase::VALUE;
        // Names of one length at most meet here, so one or two comparisons settle what the field is.
        let mut first = folded(window.word_behind::<0>(at));
        let mut second = folded(window.word_behind::<8>(at));
        let mut third = folded(window.word_behind::<16>(at));
        let mut fourth = folded(window.word_behind::<24>(at));
        if underscore {
            first = hyphened(first);
            second = hyphened(second);
            third = hyphened(third);
            fourth = hyphened(fourth);
        }
        if long {
            return None;
        }
        let whole = [
            lowest(first, len),
            lowest(second, len.saturating_sub(8)),
            lowest(third, len.saturating_sub(16)),
            lowest(fourth, len.saturating_sub(24)),
        ];
        let [usual, others @ ..] = &rules.keys;
        let is_listed = if usual[0] == 0 { is(&whole, &X_API_KEY) } else { is(&whole, usual) };
        let step = match len {
            _ if is_listed | others.iter().any(|name| is(&whole, name)) => {
                let again = self.flags & KEYED != 0;
                self.flags |= KEYED;
                self.phase = phase::KEY_LEAD;
                self.value = Tagger::new(secret).to_words();
                again.then_some(Malformation::Duplicate)
            }
            14 if first == CONTENT_LENGTH[0] && lowest(second, 6) == CONTENT_LENGTH[1] => {
                let again = self.flags & LENGTH != 0;
                let both = self.flags & CHUNKED != 0;
                self.flags |= LENGTH;
                self.phase = phase::LENGTH_LEAD;
                self.left = 0;
                self.digits = 0;
                if both { Some(Malformation::Framing) } else { again.then_some(Malformation::Duplicate) }
            }
            17 if first == TRANSFER_ENCODING[0]
                && second == TRANSFER_ENCODING[1]
                && lowest(third, 1) == TRANSFER_ENCODING[2] =>
            {
                let again = self.flags & CHUNKED != 0;
                let both = self.flags & LENGTH != 0;
                let old = self.flags & HTTP_1_0 != 0;
                self.flags |= CHUNKED;
                self.phase = phase::CODING_LEAD;
                if both {
                    Some(Malformation::Framing)
                } else if old {
                    // RFC 9112 §6.1: a 1.0 message with Transfer-Encoding has faulty framing.
                    Some(Malformation::TransferEncoding)
                } else {
                    again.then_some(Malformation::Duplicate)
                }
            }
            4 if lowest(first, 4) == HOST_NAME[0] => {
                let again = self.flags & HOST != 0;
                self.flags |= HOST;
                if service.flags & Service::HOSTS != 0 {
                    self.begin_host(secret);
                }
                again.then_some(Malformation::Duplicate)
            }
            10 if first == CONNECTION[0] && lowest(second, 2) == CONNECTION[1] => {
                self.phase = phase::LIST;
                None
            }
            6 if lowest(first, 6) == EXPECT_NAME[0] => {
                let again = self.flags & EXPECT != 0;
                let old = self.flags & HTTP_1_0 != 0;
                self.flags |= EXPECT;
                self.phase = phase::EXPECT_LEAD;
                if old { Some(Malformation::Expect) } else { again.then_some(Malformation::Duplicate) }
            }
            7 if lowest(first, 7) == UPGRADE[0] && service.flags & Service::UPGRADE == 0 => {
                return Some(Step::Refused(Reason::Upgrade.into()));
            }
            14 if first == HTTP2_SETTINGS[0] && lowest(second, 6) == HTTP2_SETTINGS[1] => {
                return Some(Step::Refused(Reason::Upgrade.into()));
            }
            // An alias counts for nothing: who sends it needs a key.
            6 if !underscore && lowest(first, 6) == ORIGIN_NAME[0] => {
                self.flags |= ORIGIN;
                return None;
            }
            29 if !underscore
                && first == ASKED_METHOD[0]
                && second == ASKED_METHOD[1]
                && third == ASKED_METHOD[2]
                && lowest(fourth, 5) == ASKED_METHOD[3] =>
            {
                self.flags |= ASKS_METHOD;
                return None;
            }
            15 if rules.trusts != 0 && first == X_FORWARDED_FOR[0] && lowest(second, 7) == X_FORWARDED_FOR[1] => {
                if self.flags & PROXIED != 0 {
                    self.phase = phase::FORWARDED;
                    self.value = [zero(); 6];
                }
                None
            }
            // One server takes it, from peers that it trusts, for the part of the path that its routes are below.
            11 if underscore && rules.routes != 0 && first == SCRIPT_NAME[0] && lowest(second, 3) == SCRIPT_NAME[1] => {
                return Some(Step::Refused(Reason::Path.into()));
            }
            _ if is(&whole, &rules.client) => {
                let again = self.flags & CLIENT != 0;
                self.flags |= CLIENT;
                self.phase = phase::CLIENT_LEAD;
                self.value = Tagger::new(secret).to_words();
                again.then_some(Malformation::Duplicate)
            }
            // Behind the client's, which may be one of these. Where there is a key no cookie matters.
            6 if whole[0] == COOKIE[0] && self.flags & KEYED == 0 => {
                self.phase = phase::LIST;
                self.seen = cookie::NAME;
                return Some(Step::More);
            }
            _ if is(&whole, &AUTHORIZATION) | ends_as_key(window.word(cursor.pos.wrapping_sub(9))) => {
                self.flags |= KEY_ELSEWHERE;
                return None;
            }
            _ => return None,
        };
        if underscore {
            return Some(Step::Refused(Malformation::AliasedName.into()));
        }
        if let Some(kind) = step {
            return Some(Step::Refused(kind.into()));
        }
        if self.phase == phase::VALUE { None } else { Some(Step::More) }
    }

    #[inline(always)]
    fn head_end(&mut self, terms: &Terms<'_>) -> Step {
        let has_body = self.flags & CHUNKED != 0 || (self.flags & LENGTH != 0 && self.left > 0);
        if terms.service.flags & Service::HOSTS != 0 && self.lacks_host() {
            return Step::Refused(Malformation::Host.into());
        }
        // RFC 9110 §10.1.1: without a body there is nothing to wait for; one server reads on as if there were.
        if self.flags & EXPECT != 0 && !has_body {
            return Step::Refused(Malformation::Expect.into());
        }
        self.phase = if self.flags & CHUNKED != 0 {
            self.left = 0;
            self.digits = 0;
            phase::CHUNK_SIZE
        } else if self.flags & LENGTH != 0 && self.left > 0 {
            phase::BODY
        } else {
            phase::START
        };
        Step::Head
    }
}

/// Whether a name of at least one byte is this one; words of 0 are none. Without a branch, since each doubles what is to
/// be verified.
#[inline(always)]
fn is(name: &[u64; 4], other: &[u64; 4]) -> bool {
    (name[0] ^ other[0]) | (name[1] ^ other[1]) | (name[2] ^ other[2]) | (name[3] ^ other[3]) == 0
}

/// Whether a name is a field's that keys are often in, by the eight bytes before its colon: of a shorter one what stands
/// before it is among them, but no end of these has a CR or LF.
#[inline(always)]
fn ends_as_key(last: u64) -> bool {
    let last = hyphened(folded(last));
    let mut found = false;
    for (end, len) in KEY_ENDS {
        found |= last >> (8 * (8 - len)) == end;
    }
    found
}

/// The [`method`] of a folded word of `len` letters.
#[inline(always)]
fn number(word: u64, len: u32) -> u32 {
    let word = lowest(word, len);
    match len {
        3 if word == const { name(b"get")[0] } => method::GET,
        3 if word == const { name(b"put")[0] } => method::PUT,
        4 if word == const { name(b"head")[0] } => method::HEAD,
        4 if word == const { name(b"post")[0] } => method::POST,
        5 if word == const { name(b"patch")[0] } => method::PATCH,
        6 if word == const { name(b"delete")[0] } => method::DELETE,
        7 if word == const { name(b"options")[0] } => method::OPTIONS,
        _ => method::OTHER,
    }
}

/// How many of the next 64 bytes come before the first of a class, and whether there is one.
#[inline(always)]
pub(super) fn run(window: &Window, cursor: &Cursor, class: impl Fn(u64) -> u64) -> (u32, bool) {
    let at = cursor.pos;
    let unread = cursor.unread();
    let masks = |mask: u64, before: u32| {
        let len = before + first(mask);
        if len < unread { (len, true) } else { (unread, false) }
    };
    macro_rules! word {
        ($behind:literal) => {
            let mask = class(window.word_behind::<$behind>(at));
            if mask != 0 {
                return masks(mask, $behind);
            }
        };
    }
    word!(0);
    word!(8);
    word!(16);
    word!(24);
    word!(32);
    word!(40);
    word!(48);
    word!(56);
    if unread > 64 { (64, false) } else { (unread, false) }
}
