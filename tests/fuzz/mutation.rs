//! Mutations that know what they change: the lines of a text, and the elements of HTTP in a stream.

use enforcer_tests::corpus::KEY;
use enforcer_tests::random::Random;

/// What streams are made of, and what parsers disagree about; also libFuzzer's dictionary.
pub const TOKENS: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b"\r\r\n",
    b"\n\r",
    b"\r\n ",
    b" ",
    b"\t",
    b"\0",
    b"\x0b",
    b"\x0c",
    b"\x7f",
    b"\x80",
    b"\xa0",
    b"\xff",
    b":",
    b": ",
    b" :",
    b";",
    b",",
    b"_",
    b"-",
    b"GET ",
    b"POST ",
    b"get ",
    b"HEAD ",
    b"CONNECT ",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01",
    b"/",
    b"http://t/",
    b"HTTP/1.1\r\n",
    b"HTTP/1.0\r\n",
    b"HTTP/1.2\r\n",
    b"HTTP/2.0\r\n",
    b"http/1.1\r\n",
    b"GET / HTTP/1.1\r\n",
    b"Host: t\r\n",
    b"X-API-Key: ",
    b"X_API_KEY: ",
    b"x-api_key:",
    b"X-API-Keys: ",
    b"Content-Length: ",
    b"Content_Length: 5\r\n",
    b"content-length:",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer_Encoding: chunked\r\n",
    b"transfer-encoding:\tChunked \r\n",
    b"Transfer-Encoding: identity, chunked\r\n",
    b"Connection: close\r\n",
    b"Connection: keep-alive\r\n",
    b"Connection: close, keep-alive\r\n",
    b"Expect: 100-continue\r\n",
    b"Upgrade: h2c\r\n",
    b"HTTP2-Settings: AAA\r\n",
    b"chunked",
    b"0",
    b"00",
    b"5",
    b"+5",
    b"0x5",
    b"4294967301",
    b"9223372036854775808",
    b"18446744073709551621",
    b"fffffffffffffff",
    b"0\r\n\r\n",
    b"5\r\nhello\r\n",
    b"5;a=b\r\nhello\r\n",
    b"hello",
    b"short",
    b"other_key_1",
    KEY.as_bytes(),
];

/// Whole requests, to stand before or behind others.
fn request(random: &mut Random) -> Vec<u8> {
    let key = match random.below(4) {
        0 => String::new(),
        1 => "X-API-Key: other_key_1\r\n".to_owned(),
        _ => format!("X-API-Key: {KEY}\r\n"),
    };
    let body: Vec<u8> = (0..random.below(30)).map(|_| *random.pick(b"abGET /\r\n0")).collect();
    let mut stream = match random.below(3) {
        0 => return format!("GET / HTTP/1.1\r\nHost: t\r\n{key}\r\n").into_bytes(),
        1 => format!("POST /u HTTP/1.1\r\n{key}Content-Length: {}\r\n\r\n", body.len()).into_bytes(),
        _ => format!("PUT /u HTTP/1.1\r\nTransfer-Encoding: chunked\r\n{key}\r\n{:x}\r\n", body.len().max(1))
            .into_bytes(),
    };
    let chunked = stream.starts_with(b"PUT");
    stream.extend(if chunked && body.is_empty() { b"x" } else { &body[..] });
    if chunked {
        stream.extend(b"\r\n0\r\n\r\n");
    }
    stream
}

/// A stream with a few of its elements changed.
#[must_use]
pub fn stream(input: &[u8], random: &mut Random) -> Vec<u8> {
    let mut stream = input.to_vec();
    for _ in 0..1 + random.below(4) {
        match random.below(12) {
            0 => {
                let at = if random.once_in(2) { 0 } else { stream.len() };
                stream.splice(at..at, request(random));
            }
            1..=4 => {
                stream = lines(&stream, random, |random| {
                    let mut line = random.pick(TOKENS).to_vec();
                    for _ in 0..random.below(3) {
                        line.extend(*random.pick(TOKENS));
                    }
                    line
                });
            }
            5 | 6 => {
                let at = random.below(stream.len() + 1);
                stream.splice(at..at, random.pick(TOKENS).iter().copied());
            }
            7 => {
                if let Some(at) = place(&stream, random, u8::is_ascii_alphabetic) {
                    stream[at] ^= 0x20;
                }
            }
            8 => {
                if let Some(at) = place(&stream, random, |byte| matches!(byte, b'-' | b'_')) {
                    stream[at] ^= b'-' ^ b'_';
                }
            }
            9 => {
                if let Some(at) = place(&stream, random, u8::is_ascii_digit) {
                    stream[at] = b'0' + random.below(10) as u8;
                }
            }
            10 => {
                // A long run, to reach bounds.
                let at = random.below(stream.len() + 1);
                let byte = *random.pick(b"aA-_ 0\t!");
                stream.splice(at..at, std::iter::repeat_n(byte, random.below(200)));
            }
            _ => bytes(&mut stream, random),
        }
    }
    stream
}

fn place(stream: &[u8], random: &mut Random, is: impl Fn(&u8) -> bool) -> Option<usize> {
    let places: Vec<usize> = stream.iter().enumerate().filter(|(_, byte)| is(byte)).map(|(at, _)| at).collect();
    if places.is_empty() { None } else { Some(*random.pick(&places)) }
}

/// Changes a byte, or takes some away.
pub fn bytes(input: &mut Vec<u8>, random: &mut Random) {
    if input.is_empty() {
        input.push(random.number() as u8);
        return;
    }
    let at = random.below(input.len());
    match random.below(4) {
        0 => input[at] = random.number() as u8,
        1 => input[at] ^= 1 << random.below(8),
        2 => {
            input.remove(at);
        }
        _ => {
            let end = (at + 1 + random.below(16)).min(input.len());
            input.drain(at..end);
        }
    }
}

/// A text with a line more, one less, one twice, two exchanged, or one changed.
#[must_use]
pub fn lines(input: &[u8], random: &mut Random, line: impl Fn(&mut Random) -> Vec<u8>) -> Vec<u8> {
    let mut lines: Vec<Vec<u8>> = input.split_inclusive(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect();
    let at = random.below(lines.len());
    match random.below(6) {
        0 if !lines.is_empty() => {
            lines.remove(at);
        }
        1 if !lines.is_empty() => {
            let again = lines[at].clone();
            lines.insert(random.below(lines.len() + 1), again);
        }
        2 if !lines.is_empty() => {
            let other = random.below(lines.len());
            lines.swap(at, other);
        }
        3 if !lines.is_empty() => bytes(&mut lines[at], random),
        _ => {
            let mut new = line(random);
            if !new.ends_with(b"\n") {
                // As the text itself ends its lines.
                let crlf = lines.first().is_some_and(|line| line.ends_with(b"\r\n"));
                new.extend(if crlf { &b"\r\n"[..] } else { b"\n" });
            }
            lines.insert(at, new);
        }
    }
    lines.concat()
}
