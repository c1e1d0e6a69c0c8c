//! The requests that are judged: three sizes of head, each with the outcomes and the ways that cost differently.

use std::net::SocketAddr;

use enforcer_ebpf::verdict::{Count, Event, Reason};
use enforcer_tests::{packet::Frame, peer::Peer};

/// The key of a principal whose limit is never reached.
pub(crate) const KEY: &str = "ek_bench_allowed_0123456";
/// The key, of the same length, of a principal whose limit is used up.
pub(crate) const SPENT_KEY: &str = "ek_bench_limited_0123456";
/// The guarded port.
pub(crate) const PORT: u16 = 8000;

/// What is run on a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// The decision alone, as on a new connection, without the table of connections.
    Decision,
    /// The whole way, as the first segment of a connection: its socket is looked up, and it is entered in the table.
    First,
    /// The whole way, as a later segment.
    Later,
}

impl Way {
    /// The program.
    pub(crate) const fn program(self) -> &'static str {
        match self {
            Self::Decision => "bench_judge",
            Self::First => "bench_first",
            Self::Later => "bench_later",
        }
    }
}

/// One request.
pub(crate) struct Case {
    /// What is run.
    pub(crate) way: Way,
    /// Its outcome, for the table.
    pub(crate) outcome: &'static str,
    /// The length of its head in bytes.
    pub(crate) head: usize,
    /// The frame that it comes in.
    pub(crate) frame: Vec<u8>,
    /// What is counted when it is judged.
    pub(crate) count: Count,
}

/// As short as a request can be.
const SHORT: &str = "GET / HTTP/1.1\r\n{key}\r\n\r\n";

/// What Python requests sends.
pub(crate) const CLIENT: &str = "GET /api HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nUser-Agent: python-requests/2.34.2\r\n\
                      Accept-Encoding: gzip, deflate\r\nAccept: */*\r\nConnection: keep-alive\r\n{key}\r\n\r\n";

/// What a browser sends.
const BROWSER: &str = "GET /rates?base=EUR&page=2 HTTP/1.1\r\nHost: api.example.com\r\nConnection: keep-alive\r\n\
    sec-ch-ua: \"Chromium\";v=\"142\", \"Google Chrome\";v=\"142\", \"Not_A Brand\";v=\"99\"\r\nsec-ch-ua-mobile: ?0\r\n\
    sec-ch-ua-platform: \"Linux\"\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) \
    Chrome/142.0.0.0 Safari/537.36\r\nAccept: application/json, text/plain, */*\r\n{key}\r\nSec-Fetch-Site: same-site\r\n\
    Sec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\nReferer: https://www.example.com/exchange\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-GB,en;q=0.9,de;q=0.8\r\n\
    Cookie: session=3f9c0a41d7e2; theme=dark; consent=functional.statistics; cart=9b1f04c6e8a\r\n\r\n";

impl Case {
    /// All cases, by size and then by outcome, on this connection.
    pub(crate) fn all(connection: &Peer, server: SocketAddr) -> Vec<Self> {
        let allowed = ("allowed", format!("X-API-Key: {KEY}"), Count::Event(Event::Allowed));
        let decisions = [
            allowed.clone(),
            // As long as the others, so that sizes compare.
            ("unkeyed", format!("X-API-Kez: {KEY}"), Count::Refused(Reason::Unkeyed)),
            ("over limit", format!("X-API-Key: {SPENT_KEY}"), Count::Refused(Reason::OverLimit)),
        ];
        let mut kinds: Vec<_> = decisions.into_iter().map(|kind| (Way::Decision, kind)).collect();
        kinds.extend([Way::First, Way::Later].map(|way| (way, allowed.clone())));
        let case = |template: &str, (way, (outcome, key, count)): &(Way, (&'static str, String, Count))| {
            let head = template.replace("{key}", key);
            let frame = Frame::data(connection.address(), server, connection.first(), head.as_bytes());
            let frame = frame.acking(connection.acknowledges()).build();
            Self { way: *way, outcome, head: head.len(), frame, count: *count }
        };
        let of_size = |template| kinds.iter().map(move |kind| case(template, kind)).collect::<Vec<_>>();
        [SHORT, CLIENT, BROWSER].into_iter().flat_map(of_size).collect()
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn heads_have_the_sizes_that_the_budget_is_set_for() {
        let key = format!("X-API-Key: {}", super::KEY);
        let sizes = [super::SHORT, super::CLIENT, super::BROWSER].map(|head| head.replace("{key}", &key).len());
        assert_eq!(sizes, [55, 185, 700]);
    }
}
