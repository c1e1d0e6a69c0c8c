//! RFC 9112's framing as the enforcer promises it, written a second time: plainly and slowly, one byte after another
//! over the whole stream, in the order of the grammar.
//!
//! It shares no code with the machine that it is held against, and says for every stream where each head ends, what
//! its key is, and behind which byte no continuation could be accepted any more.

use enforcer_ebpf::abi::Service;

/// One request head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The key's value.
    pub key: Option<Vec<u8>>,
    /// Bytes of the stream up to its end.
    pub end: usize,
}

/// Where a stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Between two requests.
    Between,
    /// In a head.
    Head,
    /// In a body.
    Body,
    /// It is refused, and these first bytes of it are enough to say so.
    Refused(usize),
}

/// What a stream means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The whole heads, in their order.
    pub heads: Vec<Head>,
    /// What comes behind them.
    pub end: End,
    /// What is refused is the body of the last of them.
    pub is_body_refused: bool,
}

/// Reads a stream.
#[must_use]
pub fn read(stream: &[u8], bounds: &Service) -> Reading {
    let mut text = Text { bytes: stream, at: 0, limit: usize::MAX };
    let mut heads = Vec::new();
    let mut is_body_refused = false;
    let end = loop {
        let begin = text.at;
        let framing = match head(&mut text, bounds) {
            Ok((head, framing)) => {
                heads.push(head);
                framing
            }
            Err(Stop::Open) if stream[begin..].is_empty() || stream[begin..] == *b"\r\n" => break End::Between,
            Err(Stop::Open) => break End::Head,
            Err(Stop::Refused) => break End::Refused(text.at),
        };
        text.limit = usize::MAX;
        match body(&mut text, &framing) {
            Ok(()) => {}
            Err(Stop::Open) => break End::Body,
            Err(Stop::Refused) => {
                is_body_refused = true;
                break End::Refused(text.at);
            }
        }
        if framing.closes {
            break if text.next().is_ok() { End::Refused(text.at) } else { End::Between };
        }
    };
    Reading { heads, end, is_body_refused }
}

/// Why reading stops.
enum Stop {
    /// The stream ends here.
    Open,
    /// The byte that was read last may not stand there.
    Refused,
}

type Result<T> = std::result::Result<T, Stop>;

/// A stream being read.
struct Text<'a> {
    bytes: &'a [u8],
    at: usize,
    /// No byte of a head may stand behind this place.
    limit: usize,
}

impl Text<'_> {
    fn next(&mut self) -> Result<u8> {
        let Some(&byte) = self.bytes.get(self.at) else { return Err(Stop::Open) };
        self.at += 1;
        if self.at > self.limit { Err(Stop::Refused) } else { Ok(byte) }
    }

    fn expect(&mut self, wanted: u8) -> Result<()> {
        if self.next()? == wanted { Ok(()) } else { Err(Stop::Refused) }
    }

    /// The first byte behind any blanks.
    fn behind_blanks(&mut self) -> Result<u8> {
        loop {
            let byte = self.next()?;
            if !is_blank(byte) {
                return Ok(byte);
            }
        }
    }

    /// The end of a line whose next byte has been read: CR, and LF behind it.
    fn line_end(&mut self, byte: u8) -> Result<()> {
        if byte == b'\r' { self.expect(b'\n') } else { Err(Stop::Refused) }
    }

    /// The same behind blanks.
    fn blank_line_end(&mut self, byte: u8) -> Result<()> {
        let byte = if is_blank(byte) { self.behind_blanks()? } else { byte };
        self.line_end(byte)
    }
}

const fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// RFC 9110 §5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn refuse_if(wrong: bool) -> Result<()> {
    if wrong { Err(Stop::Refused) } else { Ok(()) }
}

/// How a request's body is framed, and what else a head says of what follows.
#[derive(Default)]
struct Framing {
    old_version: bool,
    host: bool,
    key: Option<Vec<u8>>,
    length: Option<u64>,
    chunked: bool,
    expects: bool,
    closes: bool,
    keeps: bool,
}

fn head(text: &mut Text<'_>, bounds: &Service) -> Result<(Head, Framing)> {
    let mut byte = text.next()?;
    let mut begin = text.at - 1;
    // RFC 9112 §2.2: one empty line before the request line is to be overlooked.
    if byte == b'\r' {
        text.expect(b'\n')?;
        begin = text.at;
        byte = text.next()?;
    }
    text.limit = begin.saturating_add(bounds.max_head as usize);
    refuse_if(text.at > text.limit)?;
    method(text, byte, bounds)?;
    target(text, bounds)?;
    let mut framing = Framing { old_version: version(text)?, ..Framing::default() };
    let mut fields = 0;
    loop {
        let byte = text.next()?;
        if byte == b'\r' {
            text.expect(b'\n')?;
            break;
        }
        let name = field_name(text, byte)?;
        fields += 1;
        refuse_if(fields > bounds.max_fields)?;
        field_value(text, &name, &mut framing, bounds)?;
    }
    // What is waited for is a body.
    refuse_if(framing.expects && !framing.chunked && framing.length.unwrap_or(0) == 0)?;
    Ok((Head { key: framing.key.take(), end: text.at }, framing))
}

/// Longest method that is read.
const MAX_METHOD: usize = 31;

fn method(text: &mut Text<'_>, first: u8, bounds: &Service) -> Result<()> {
    let mut method = Vec::new();
    let mut byte = first;
    while is_token(byte) {
        method.push(byte);
        refuse_if(method.len() > MAX_METHOD)?;
        byte = text.next()?;
    }
    refuse_if(byte != b' ' || method.is_empty())?;
    // A preface of HTTP/2 (RFC 9113 §3.4), and a tunnel.
    refuse_if(method.eq_ignore_ascii_case(b"PRI"))?;
    refuse_if(method.eq_ignore_ascii_case(b"CONNECT") && bounds.flags & Service::UPGRADE == 0)
}

fn target(text: &mut Text<'_>, bounds: &Service) -> Result<()> {
    let mut len = 0;
    loop {
        let byte = text.next()?;
        if byte == b' ' && len > 0 {
            return Ok(());
        }
        len += 1;
        refuse_if(!(0x21..=0x7e).contains(&byte) || len > bounds.max_target)?;
    }
}

/// Whether the version is the older one.
fn version(text: &mut Text<'_>) -> Result<bool> {
    for &wanted in b"HTTP/1." {
        text.expect(wanted)?;
    }
    let minor = text.next()?;
    refuse_if(minor != b'0' && minor != b'1')?;
    text.expect(b'\r')?;
    text.expect(b'\n')?;
    Ok(minor == b'0')
}

/// A field's name, up to its colon, in lower case.
fn field_name(text: &mut Text<'_>, first: u8) -> Result<Vec<u8>> {
    let mut name = Vec::new();
    let mut byte = first;
    while is_token(byte) {
        name.push(byte.to_ascii_lowercase());
        byte = text.next()?;
    }
    refuse_if(byte != b':' || name.is_empty())?;
    Ok(name)
}

fn field_value(text: &mut Text<'_>, name: &[u8], framing: &mut Framing, bounds: &Service) -> Result<()> {
    // WSGI servers make one variable of a name with `_` and of the same with `-`.
    let folded: Vec<u8> = name.iter().map(|&byte| if byte == b'_' { b'-' } else { byte }).collect();
    match &folded[..] {
        b"x-api-key" | b"content-length" | b"transfer-encoding" if folded != name => Err(Stop::Refused),
        b"x-api-key" => {
            refuse_if(framing.key.is_some())?;
            framing.key = Some(key(text)?);
            Ok(())
        }
        b"content-length" => {
            refuse_if(framing.length.is_some() || framing.chunked)?;
            framing.length = Some(length(text, bounds)?);
            Ok(())
        }
        b"transfer-encoding" => {
            refuse_if(framing.length.is_some() || framing.chunked || framing.old_version)?;
            framing.chunked = true;
            only(text, b"chunked")
        }
        b"host" => {
            refuse_if(framing.host)?;
            framing.host = true;
            any_value(text).map(|_| ())
        }
        b"http2-settings" => Err(Stop::Refused),
        b"upgrade" if bounds.flags & Service::UPGRADE == 0 => Err(Stop::Refused),
        b"connection" => connection_options(text, framing),
        b"expect" => {
            refuse_if(framing.expects || framing.old_version)?;
            framing.expects = true;
            only(text, b"100-continue")
        }
        _ => any_value(text).map(|_| ()),
    }
}

/// A value that may be anything but controls, up to its line's end.
fn any_value(text: &mut Text<'_>) -> Result<Vec<u8>> {
    let mut value = Vec::new();
    loop {
        let byte = text.next()?;
        match byte {
            b'\r' => {
                text.expect(b'\n')?;
                return Ok(value);
            }
            b'\t' | 0x20..=0x7e | 0x80..=0xff => value.push(byte),
            _ => return Err(Stop::Refused),
        }
    }
}

fn key(text: &mut Text<'_>) -> Result<Vec<u8>> {
    let mut value = Vec::new();
    let mut byte = text.behind_blanks()?;
    while (0x21..=0x7e).contains(&byte) {
        value.push(byte);
        refuse_if(value.len() > 128)?;
        byte = text.next()?;
    }
    refuse_if(value.len() < 8)?;
    text.blank_line_end(byte)?;
    Ok(value)
}

fn length(text: &mut Text<'_>, bounds: &Service) -> Result<u64> {
    let mut digits = Vec::new();
    let mut byte = text.behind_blanks()?;
    while byte.is_ascii_digit() {
        digits.push(byte);
        refuse_if(digits.len() > 19)?;
        byte = text.next()?;
    }
    let length = String::from_utf8_lossy(&digits).parse().map_err(|_| Stop::Refused)?;
    refuse_if(length > bounds.max_body)?;
    text.blank_line_end(byte)?;
    Ok(length)
}

/// A value that is this word and nothing else.
fn only(text: &mut Text<'_>, word: &[u8]) -> Result<()> {
    let mut byte = text.behind_blanks()?;
    for wanted in word {
        refuse_if(byte.to_ascii_lowercase() != *wanted)?;
        byte = text.next()?;
    }
    text.blank_line_end(byte)
}

/// Options with commas or blanks between them (whoever leaves the comma out means two, too): `close` and `keep-alive`
/// not both.
fn connection_options(text: &mut Text<'_>, framing: &mut Framing) -> Result<()> {
    let mut option = Vec::new();
    loop {
        let byte = text.next()?;
        if !matches!(byte, b',' | b' ' | b'\t' | b'\r') {
            refuse_if(byte.is_ascii_control())?;
            option.push(byte.to_ascii_lowercase());
            continue;
        }
        framing.closes |= option == b"close";
        framing.keeps |= option == b"keep-alive";
        refuse_if(framing.closes && framing.keeps)?;
        option.clear();
        if byte == b'\r' {
            return text.expect(b'\n');
        }
    }
}

fn body(text: &mut Text<'_>, framing: &Framing) -> Result<()> {
    if let Some(length) = framing.length {
        return skip(text, length);
    }
    if !framing.chunked {
        return Ok(());
    }
    loop {
        let size = chunk_size(text)?;
        if size == 0 {
            // No trailers.
            text.expect(b'\r')?;
            return text.expect(b'\n');
        }
        skip(text, size)?;
        text.expect(b'\r')?;
        text.expect(b'\n')?;
    }
}

/// A chunk's size, with its line's end; no extensions.
fn chunk_size(text: &mut Text<'_>) -> Result<u64> {
    let mut digits = String::new();
    let mut byte = text.next()?;
    while byte.is_ascii_hexdigit() {
        digits.push(char::from(byte));
        refuse_if(digits.len() > 15)?;
        byte = text.next()?;
    }
    let size = u64::from_str_radix(&digits, 16).map_err(|_| Stop::Refused)?;
    text.line_end(byte)?;
    Ok(size)
}

fn skip(text: &mut Text<'_>, count: u64) -> Result<()> {
    let left = (text.bytes.len() - text.at) as u64;
    if count > left {
        text.at = text.bytes.len();
        return Err(Stop::Open);
    }
    text.at += count as usize;
    Ok(())
}
