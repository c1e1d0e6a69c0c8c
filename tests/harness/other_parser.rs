//! The HTTP machine beside `httparse`, a parser that many servers are built on: it may only refuse more.

use enforcer_ebpf::abi::KeyTag;
use enforcer_ebpf::key;

use crate::reader::{Reader, SECRET, Seen};

/// One request as another parser reads it: its key, if any, and where its head and its body end.
struct Oracle {
    keys: Vec<Vec<u8>>,
    head: usize,
    end: Option<usize>,
}

/// The request at the front of `bytes` as httparse reads it; `None` if it refuses it or needs more.
fn oracle(bytes: &[u8]) -> Option<Oracle> {
    let mut fields = [httparse::EMPTY_HEADER; 256];
    let mut request = httparse::Request::new(&mut fields);
    let httparse::Status::Complete(head) = request.parse(bytes).ok()? else { return None };
    let values = |name: &str| -> Vec<Vec<u8>> {
        let named = |field: &&httparse::Header<'_>| field.name.eq_ignore_ascii_case(name);
        request.headers.iter().filter(named).map(|field| field.value.trim_ascii().to_vec()).collect()
    };
    let end = match (values("content-length").first(), values("transfer-encoding").first()) {
        (None, None) => Some(head),
        (Some(length), _) => {
            let length: Option<usize> = std::str::from_utf8(length).ok().and_then(|length| length.parse().ok());
            length.and_then(|length| head.checked_add(length)).filter(|end| *end <= bytes.len())
        }
        (None, Some(_)) => chunked_end(bytes, head),
    };
    Some(Oracle { keys: values("x-api-key"), head, end })
}

/// Where the chunked body that begins at `at` ends, without trailers.
fn chunked_end(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let httparse::Status::Complete((begin, size)) = httparse::parse_chunk_size(bytes.get(at..)?).ok()? else {
            return None;
        };
        at = at.checked_add(begin)?.checked_add(usize::try_from(size).ok()?)?;
        if bytes.get(at..at.checked_add(2)?)? != b"\r\n" {
            return None;
        }
        at += 2;
        if size == 0 {
            return Some(at);
        }
    }
}

/// Holds each head that the machine accepts against the other parser: there it must be a head too, with the same key,
/// that ends at the same byte, in a request that ends where the machine's does.
///
/// # Errors
/// Says where they differ.
pub fn compare(stream: &[u8]) -> Result<(), String> {
    compare_seen(stream, Reader::read([stream]).seen())
}

/// The same for what the machine said of the stream.
///
/// # Errors
/// Says where they differ.
pub fn compare_seen(stream: &[u8], seen: &[Seen]) -> Result<(), String> {
    let mut begin = 0;
    for seen in seen {
        let &Seen::Head { key, at } = seen else { return Ok(()) };
        let Some(oracle) = oracle(&stream[begin..]) else {
            return Err(format!("httparse reads no head at {begin}, the machine one that ends at {at}"));
        };
        if begin + oracle.head != at {
            return Err(format!("the head at {begin} ends at {} for httparse, at {at} for us", begin + oracle.head));
        }
        let keys: Vec<KeyTag> = oracle.keys.iter().map(|value| key::tag(SECRET, value)).collect();
        if keys != Vec::from_iter(key) {
            return Err(format!("httparse sees the keys {:?} at {begin}", oracle.keys));
        }
        match oracle.end {
            Some(end) => begin += end,
            // What follows belongs to a body that has not all come, or that the machine refuses.
            None => begin = stream.len(),
        }
    }
    Ok(())
}
