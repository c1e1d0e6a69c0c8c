//! One line of a script: a verb, what it sends, and in what way that is odd.
//!
//! The whole language stands in [`Step::read`], [`Verb`] and [`Oddity::read`]; `adversary/tcp/README.md` explains it.

use anyhow::{Context, Result, bail, ensure};
use enforcer_tests::raw::{Checksum, Client, Extension, Ip, Mac, Piece, Segment, flag};

use crate::data::{Data, Identity, split};

/// The type of service that the server's interface drops behind the enforcer: the mark of what gets lost.
pub(crate) const LOST: u8 = 0x44;
/// The server's second addresses.
pub(crate) const SECOND: [&str; 2] = ["10.77.0.9", "fd77::9"];
/// Addresses of nobody.
const FOREIGN: [&str; 2] = ["10.99.0.9", "fd99::9"];

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Opens a connection: `connect`, with `isn=`, `timestamps`, `hold` (no third segment).
    Connect,
    /// Sends honest data, the next of the stream unless `at=` says where.
    Send,
    /// Sends honest data that the enforcer sees and the server does not.
    Lose,
    /// Sends data that is not of the honest stream: nothing counts on it.
    Decoy,
    /// A segment with FIN; `decoy flags=FA` is one that does not count.
    Fin,
    /// A segment with RST.
    Rst,
    /// A segment with SYN.
    Syn,
    /// A bare acknowledgment.
    Ack,
    /// Sends the honest stream again until the server has it, in pieces of `size=` bytes.
    Deliver,
    /// Waits for that many answers on the connection.
    Answers(usize),
    /// Waits for the server to end the connection.
    Closed,
    /// Takes what comes for so many ms.
    Sleep(u64),
    /// Starts the enforcer, which did not run until here.
    Attach,
    /// Acknowledges no more of what comes.
    Mute,
    /// Shows another window from now on.
    Window(u16),
}

/// How a segment is odd, or where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Oddity {
    At(i64),
    AtNext(i64),
    Behind(Data),
    Ack(i64),
    Flags(u16),
    Urgent(u16),
    Window(u16),
    Checksum(Checksum),
    HeaderWords(u8),
    Options(Vec<u8>),
    Timestamp(i64),
    NoTimestamp,
    Ttl(u8),
    Tos(u8),
    Length(i32),
    Version(u8),
    IpHeaderWords(u8),
    IpChecksum,
    IpOptions(Vec<u8>),
    FragmentWord(u16),
    Id(u16),
    Fragments { size: usize, reversed: bool },
    Piece(Piece),
    Extension(Extension),
    NextHeader(u8),
    Mac(Mac),
    Tag(u16, u16),
    Trailer(Data),
    Destination(&'static [&'static str; 2]),
    SegmentSize(u16),
}

/// A line of a script.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    /// The line, for messages.
    pub(crate) line: String,
    /// What it does.
    pub(crate) verb: Verb,
    /// What it sends.
    pub(crate) data: Option<Data>,
    /// In what way.
    pub(crate) oddities: Vec<Oddity>,
    /// How often.
    pub(crate) times: usize,
    /// Bytes of a piece, where the data goes in pieces.
    pub(crate) size: Option<usize>,
    /// `connect`: the client's first sequence number.
    pub(crate) isn: Option<u32>,
    /// `connect`: the first sequence number of the connection before.
    pub(crate) same_isn: bool,
    /// `connect`: use timestamps.
    pub(crate) timestamps: bool,
    /// `connect`: send no third segment.
    pub(crate) hold: bool,
    /// `connect`: from another port than before.
    pub(crate) new_port: bool,
}

impl Step {
    /// Reads a line.
    ///
    /// # Errors
    /// When it is not understood.
    pub(crate) fn read(line: &str) -> Result<Self> {
        let words: Vec<String> = split(line, ' ').into_iter().filter(|word| !word.is_empty()).collect();
        let (verb, mut rest) = words.split_first().context("an empty step")?;
        let mut argument = || -> Result<&String> {
            let (first, others) = rest.split_first().with_context(|| format!("{verb} of what?"))?;
            rest = others;
            Ok(first)
        };
        let mut data = None;
        let verb = match verb.as_str() {
            "connect" => Verb::Connect,
            "send" | "lose" | "decoy" => {
                data = Some(Data::read(argument()?)?);
                match verb.as_str() {
                    "send" => Verb::Send,
                    "lose" => Verb::Lose,
                    _ => Verb::Decoy,
                }
            }
            "fin" => Verb::Fin,
            "rst" => Verb::Rst,
            "syn" => Verb::Syn,
            "ack" => Verb::Ack,
            "deliver" => Verb::Deliver,
            "answers" => Verb::Answers(argument()?.parse()?),
            "closed" => Verb::Closed,
            "sleep" => Verb::Sleep(argument()?.parse()?),
            "attach" => Verb::Attach,
            "mute" => Verb::Mute,
            "window" => Verb::Window(argument()?.parse()?),
            _ => bail!("{verb:?} is no verb"),
        };
        let mut step = Self {
            line: line.to_owned(),
            verb,
            data,
            oddities: Vec::new(),
            times: 1,
            size: None,
            isn: None,
            same_isn: false,
            timestamps: false,
            hold: false,
            new_port: false,
        };
        for word in rest {
            step.word(word).with_context(|| format!("in {word:?}"))?;
        }
        Ok(step)
    }

    fn word(&mut self, word: &str) -> Result<()> {
        match word.split_once('=').unwrap_or((word, "")) {
            ("times", count) => self.times = count.parse()?,
            ("size", size) => self.size = Some(size.parse()?),
            ("isn", "again") => self.same_isn = true,
            ("isn", number) => self.isn = Some(number_of(number)?),
            ("timestamps", "") => self.timestamps = true,
            ("hold", "") => self.hold = true,
            ("port", "new") => self.new_port = true,
            ("data", data) => self.data = Some(Data::read(data)?),
            (name, value) => self.oddities.push(Oddity::read(name, value)?),
        }
        Ok(())
    }

    /// The place in the stream that it names, if it does; `next` is the next honest one.
    ///
    /// # Errors
    /// When it is named by data that cannot be built.
    pub(crate) fn place(&self, next: i64, identity: &Identity) -> Result<Option<i64>> {
        for oddity in &self.oddities {
            return Ok(Some(match oddity {
                Oddity::At(place) => *place,
                Oddity::AtNext(by) => next + by,
                Oddity::Behind(data) => data.bytes(identity)?.len() as i64,
                _ => continue,
            }));
        }
        Ok(None)
    }

    /// Whether it can be said over this IP version only.
    pub(crate) fn family(&self) -> Option<Family> {
        self.oddities.iter().find_map(|oddity| match oddity {
            Oddity::IpHeaderWords(_) | Oddity::IpChecksum | Oddity::IpOptions(_) | Oddity::FragmentWord(_) => {
                Some(Family::V4)
            }
            Oddity::Extension(_) | Oddity::NextHeader(_) => Some(Family::V6),
            _ => None,
        })
    }
}

/// What a segment is made in.
#[derive(Clone, Copy)]
pub(crate) struct Around<'a> {
    /// What the script's requests are made of.
    pub(crate) identity: &'a Identity,
    /// Whether the connection is one over IPv6.
    pub(crate) v6: bool,
    /// The connection, once it has begun.
    pub(crate) client: Option<&'a Client<'a>>,
}

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Family {
    V4,
    V6,
}

impl Oddity {
    fn read(name: &str, value: &str) -> Result<Self> {
        let byte = || number_of(value).and_then(|number| Ok(u8::try_from(number)?));
        let half = || number_of(value).and_then(|number| Ok(u16::try_from(number)?));
        Ok(match (name, value) {
            ("behind", data) => Self::Behind(Data::read(data)?),
            ("at", value) => match value.strip_prefix("next") {
                Some("") => Self::AtNext(0),
                Some(by) => Self::AtNext(by.parse()?),
                None => Self::At(value.parse()?),
            },
            ("ack", by) => Self::Ack(by.parse()?),
            ("flags", letters) => Self::Flags(flags(letters)?),
            ("urg", pointer) => Self::Urgent(pointer.parse()?),
            ("win", window) => Self::Window(window.parse()?),
            ("badsum", "") => Self::Checksum(Checksum::Wrong),
            ("zerosum", "") => Self::Checksum(Checksum::Zero),
            ("partial", "") => Self::Checksum(Checksum::Partial),
            ("doff", _) => Self::HeaderWords(byte()?),
            ("opt", hex) => Self::Options(bytes(hex)?),
            ("ts", "none") => Self::NoTimestamp,
            ("ts", by) => Self::Timestamp(by.parse()?),
            ("ttl", _) => Self::Ttl(byte()?),
            ("tos", _) => Self::Tos(byte()?),
            ("iplen", by) => Self::Length(by.parse()?),
            ("ipver", _) => Self::Version(byte()?),
            ("ihl", _) => Self::IpHeaderWords(byte()?),
            ("badipsum", "") => Self::IpChecksum,
            ("ipopt", hex) => Self::IpOptions(bytes(hex)?),
            ("fragword", _) => Self::FragmentWord(half()?),
            ("id", _) => Self::Id(half()?),
            ("fragment", size) => match size.strip_suffix(",reversed") {
                Some(size) => Self::Fragments { size: size.parse()?, reversed: true },
                None => Self::Fragments { size: size.parse()?, reversed: false },
            },
            ("piece", piece) => Self::Piece(read_piece(piece)?),
            ("ext", extension) => {
                let (kind, rest) = extension.split_once(':').context("an extension header is NUMBER:BYTES")?;
                Self::Extension(Extension { kind: kind.parse()?, rest: bytes(rest)? })
            }
            ("nexthdr", _) => Self::NextHeader(byte()?),
            ("mac", "other") => Self::Mac(Mac::Other),
            ("mac", "broadcast") => Self::Mac(Mac::Broadcast),
            ("mac", "multicast") => Self::Mac(Mac::Multicast),
            ("vlan", tag) => {
                let (kind, id) = tag.split_once(':').context("a tag is KIND:TAG in hex")?;
                Self::Tag(u16::from_str_radix(kind, 16)?, u16::from_str_radix(id, 16)?)
            }
            ("trailer", data) => Self::Trailer(Data::read(data)?),
            ("to", "second") => Self::Destination(&SECOND),
            ("to", "foreign") => Self::Destination(&FOREIGN),
            ("gso", size) => Self::SegmentSize(size.parse()?),
            _ => bail!("{name:?} with {value:?} is nothing that a segment can be"),
        })
    }

    /// Whether the sender's interface could still finish the checksum of a segment that is odd in this way only.
    pub(crate) fn leaves_offload(&self) -> bool {
        matches!(
            self,
            Self::At(_)
                | Self::AtNext(_)
                | Self::Behind(_)
                | Self::Ack(_)
                | Self::Flags(_)
                | Self::Window(_)
                | Self::Checksum(_)
                | Self::Timestamp(_)
                | Self::Tos(_)
                | Self::SegmentSize(_)
        )
    }

    /// Makes a segment so.
    ///
    /// # Errors
    /// When it cannot be, or its data not be built.
    pub(crate) fn apply(&self, segment: &mut Segment, around: Around<'_>) -> Result<()> {
        let ip: &mut Ip = &mut segment.ip;
        match self {
            Self::At(_) | Self::AtNext(_) | Self::Behind(_) => {}
            Self::Ack(by) => segment.ack = segment.ack.wrapping_add(*by as u32),
            Self::Flags(flags) => segment.flags = *flags,
            Self::Urgent(pointer) => (segment.urgent, segment.flags) = (*pointer, segment.flags | flag::URG),
            Self::Window(window) => segment.window = *window,
            Self::Checksum(checksum) => segment.checksum = *checksum,
            Self::HeaderWords(words) => segment.header_words = Some(*words),
            Self::Options(options) => segment.options.extend(options),
            Self::Timestamp(by) => {
                let option = around.client.and_then(|client| client.timestamp_option(*by));
                segment.options = option.context("the connection has no timestamps")?;
            }
            Self::NoTimestamp => segment.options.clear(),
            Self::Ttl(ttl) => ip.ttl = *ttl,
            Self::Tos(tos) => ip.tos = *tos,
            Self::Length(by) => ip.length = *by,
            Self::Version(version) => ip.version = Some(*version),
            Self::IpHeaderWords(words) => ip.header_words = Some(*words),
            Self::IpChecksum => ip.wrong_checksum = true,
            Self::IpOptions(options) => ip.options.extend(options),
            Self::FragmentWord(word) => ip.fragment_word = Some(*word),
            Self::Id(id) => ip.id = *id,
            Self::Fragments { size, reversed } => {
                ensure!(size.is_multiple_of(8) && *size > 0, "fragments are multiples of eight bytes");
                let extensions: usize = ip.extensions.iter().map(|extension| 1 + extension.rest.len()).sum();
                let length = extensions + 20 + segment.options.len().next_multiple_of(4) + segment.payload.len();
                ip.pieces = (0..length)
                    .step_by(*size)
                    .map(|offset| Piece { offset, length: *size, more: offset + size < length })
                    .collect();
                if *reversed {
                    ip.pieces.reverse();
                }
            }
            Self::Piece(piece) => ip.pieces.push(*piece),
            Self::Extension(extension) => ip.extensions.push(extension.clone()),
            Self::NextHeader(number) => ip.next_header = Some(*number),
            Self::Mac(mac) => segment.mac = *mac,
            Self::Tag(kind, tag) => segment.tags.push((*kind, *tag)),
            Self::Trailer(data) => segment.trailer = data.bytes(around.identity)?,
            Self::Destination(addresses) => ip.destination = Some(addresses[usize::from(around.v6)].parse()?),
            Self::SegmentSize(size) => {
                (segment.checksum, segment.segment_size) = (Checksum::Partial, *size);
            }
        }
        Ok(())
    }
}

fn read_piece(text: &str) -> Result<Piece> {
    let mut parts = text.split(':');
    let (offset, length, last) = (parts.next(), parts.next(), parts.next());
    let more = match last {
        Some("more") => true,
        Some("last") => false,
        _ => bail!("a piece is OFFSET:LENGTH:more or OFFSET:LENGTH:last"),
    };
    Ok(Piece { offset: offset.unwrap_or_default().parse()?, length: length.unwrap_or_default().parse()?, more })
}

fn flags(letters: &str) -> Result<u16> {
    letters.chars().try_fold(0, |flags, letter| {
        Ok(flags
            | match letter {
                'F' => flag::FIN,
                'S' => flag::SYN,
                'R' => flag::RST,
                'P' => flag::PSH,
                'A' => flag::ACK,
                'U' => flag::URG,
                'E' => flag::ECE,
                'C' => flag::CWR,
                // The ninth bit and the reserved ones.
                '9' => 0x100,
                'r' => 0xe00,
                '-' => 0,
                _ => bail!("{letter:?} is no flag"),
            })
    })
}

fn number_of(text: &str) -> Result<u32> {
    Ok(match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16)?,
        None => text.parse()?,
    })
}

fn bytes(hex: &str) -> Result<Vec<u8>> {
    ensure!(hex.len().is_multiple_of(2) && hex.is_ascii(), "hex digits come in pairs");
    (0..hex.len()).step_by(2).map(|at| Ok(u8::from_str_radix(&hex[at..at + 2], 16)?)).collect()
}
