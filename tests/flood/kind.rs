//! What is flooded with: which requests, over which connections, from how many at once.

use std::{fmt, net::Ipv4Addr};

use serde::Serialize;

/// The key of the well-behaved client, whose limit is never reached.
pub(crate) const GOOD_KEY: &str = "good_client_0123456789";
/// The key, of the same length, that floods over its limit.
pub(crate) const SPENT_KEY: &str = "spent_client_012345678";
/// The key of the request that a kept connection begins with, whose limit is never reached either.
pub(crate) const FIRST_KEY: &str = "first_request_01234567";
/// The limit of [`GOOD_KEY`] and [`FIRST_KEY`], requests a minute.
pub(crate) const GOOD_LIMIT: u32 = 1_000_000;
/// The limit of [`SPENT_KEY`], requests a minute.
pub(crate) const SPENT_LIMIT: u32 = 100;
/// The last byte of the first flood's address.
const FIRST_SOURCE: u8 = 16;

/// Why a flood's requests are to be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// They have no key.
    Unkeyed,
    /// Each has another key, which nobody has.
    UnknownKey,
    /// All have one key, whose limit is used up.
    OverLimit,
}

impl Kind {
    /// One of each.
    pub(crate) const ALL: [Self; 3] = [Self::Unkeyed, Self::UnknownKey, Self::OverLimit];
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Unkeyed => "unkeyed",
            Self::UnknownKey => "unknown key",
            Self::OverLimit => "over limit",
        })
    }
}

/// What a flooding connection does after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reuse {
    /// It ends, and another takes its place.
    New,
    /// It sends the next request, unless the server has closed it. Each begins with a request that is served.
    Kept,
}

impl Reuse {
    /// One of each.
    pub(crate) const ALL: [Self; 2] = [Self::New, Self::Kept];
}

impl fmt::Display for Reuse {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::New => "new",
            Self::Kept => "kept",
        })
    }
}

/// A flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Flood {
    /// Its requests.
    pub(crate) kind: Kind,
    /// Its connections.
    pub(crate) reuse: Reuse,
    /// How many there are at once.
    pub(crate) connections: u32,
}

impl Flood {
    /// Where floods come from: each kind, with new connections and with kept ones, from an address of its own, so that
    /// what an address has done in one flood does not count in another of another kind.
    pub(crate) fn sources() -> impl Iterator<Item = Ipv4Addr> {
        (0..Kind::ALL.len() * Reuse::ALL.len()).map(Self::numbered)
    }

    /// Where this one comes from.
    pub(crate) fn source(&self) -> Ipv4Addr {
        Self::numbered(self.kind as usize * Reuse::ALL.len() + self.reuse as usize)
    }

    fn numbered(number: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, FIRST_SOURCE + number as u8)
    }
}

impl fmt::Display for Flood {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, reuse, connections } = self;
        write!(formatter, "{kind}, {connections} {reuse}")
    }
}

/// A request as bytes.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    bytes: Vec<u8>,
    /// Where a number stands that is another in each request.
    number: Option<usize>,
}

/// Digits of that number.
const DIGITS: usize = 16;

impl Request {
    /// The well-behaved client's.
    pub(crate) fn good() -> Self {
        Self::new(Some(GOOD_KEY), Reuse::New)
    }

    /// The one that a kept connection begins with.
    pub(crate) fn first() -> Self {
        Self::new(Some(FIRST_KEY), Reuse::Kept)
    }

    /// A flood's.
    pub(crate) fn of(flood: &Flood) -> Self {
        match flood.kind {
            Kind::Unkeyed => Self::new(None, flood.reuse),
            Kind::OverLimit => Self::new(Some(SPENT_KEY), flood.reuse),
            Kind::UnknownKey => {
                let (guess, digits) = ("guess_", "0".repeat(DIGITS));
                let request = Self::new(Some(&format!("{guess}{digits}")), flood.reuse);
                let place = request.bytes.windows(guess.len()).position(|window| window == guess.as_bytes());
                Self { number: place.map(|place| place + guess.len()), ..request }
            }
        }
    }

    fn new(key: Option<&str>, reuse: Reuse) -> Self {
        let key = key.map(|key| format!("X-API-Key: {key}\r\n")).unwrap_or_default();
        let close = if reuse == Reuse::New { "Connection: close\r\n" } else { "" };
        let fields = "Host: app.test\r\nUser-Agent: enforcer-flood\r\nAccept: */*\r\n";
        Self { bytes: format!("GET / HTTP/1.1\r\n{fields}{key}{close}\r\n").into_bytes(), number: None }
    }

    /// The bytes of the request of this number.
    pub(crate) fn numbered(&mut self, number: u64) -> &[u8] {
        if let Some(place) = self.number {
            for (index, byte) in self.bytes[place..place + DIGITS].iter_mut().enumerate() {
                *byte = b"0123456789abcdef"[(number >> (4 * (DIGITS - 1 - index))) as usize & 0xf];
            }
        }
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::{Flood, Kind, Request, Reuse};

    #[test]
    fn every_unknown_key_is_another_one() {
        let mut request = Request::of(&Flood { kind: Kind::UnknownKey, reuse: Reuse::Kept, connections: 1 });
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(text(request.numbered(0x1f)).contains("\r\nX-API-Key: guess_000000000000001f\r\n\r\n"));
        assert!(text(request.numbered(u64::MAX)).contains("guess_ffffffffffffffff\r\n"));
    }
}
