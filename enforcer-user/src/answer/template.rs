//! A text with places in it that the kernel fills in at the moment of sending.

use enforcer_ebpf::abi::{ANSWER_TEXT, Answer, Name, POINTS, Point, QUOTED, Value};

/// Most bytes of an answer with everything filled in: what the smallest MSS that hosts must take leaves (RFC 9293
/// §3.7.1), less the timestamps.
pub const LONGEST: usize = 536 - 12;

/// What can be filled in, by name, with the most bytes that it takes.
const VALUES: [(&str, Value, usize); 5] = [
    ("date", Value::Date, 29),
    ("retry_after", Value::RetryAfter, 10),
    // Limits go up to 268435455 requests in ten years.
    ("quota", Value::Quota, 9),
    ("window", Value::Window, 9),
    ("limit", Value::Name, size_of::<Name>()),
];

/// Most bytes of any value. `keep-alive` has ten: whether the connection goes on is not the operator's to say.
fn longest(value: Value) -> usize {
    match value {
        Value::Connection => 10,
        Value::QuotedName => QUOTED,
        _ => VALUES.iter().find(|(_, known, _)| *known == value).map_or(0, |&(.., longest)| longest),
    }
}

/// A name in braces that stands for nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{{{0}}} stands for nothing; accepted: {{date}}, {{retry_after}}, {{quota}}, {{window}}, {{limit}}, and {{{{ for a brace"
)]
pub struct Unknown(String);

/// An answer that no packet takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooLarge {
    /// This many bytes with everything filled in.
    #[error("{0} bytes with everything filled in, {more} too many; accepted: at most {LONGEST}, which fit any network", more = .0 - LONGEST)]
    Bytes(usize),
    /// This many places.
    #[error("{0} values to be filled in; accepted: at most {POINTS}")]
    Points(usize),
}

/// A piece of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// As it is.
    Text(String),
    /// To be filled in.
    Value(Value),
}

/// A head, or a body, under way.
#[derive(Debug, Default)]
pub(super) struct Template {
    text: Vec<u8>,
    points: Vec<Point>,
    /// Most bytes that all values together take.
    room: usize,
}

/// Reads a text in which `{name}` stands for a value and `{{` for a brace; a brace before anything but a name of small
/// letters and a closing brace is itself.
///
/// # Errors
/// A name that stands for nothing.
pub(super) fn parse(text: &str) -> Result<Vec<Piece>, Unknown> {
    let mut pieces = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('{') {
        plain.push_str(before);
        if let Some(behind) = behind.strip_prefix('{') {
            plain.push('{');
            rest = behind;
        } else if let Some((name, behind)) = name(behind) {
            let value = VALUES.iter().find(|(known, ..)| *known == name).map(|&(_, value, _)| value);
            pieces.push(Piece::Text(std::mem::take(&mut plain)));
            pieces.push(Piece::Value(value.ok_or_else(|| Unknown(name.to_owned()))?));
            rest = behind;
        } else {
            plain.push('{');
            rest = behind;
        }
    }
    plain.push_str(rest);
    pieces.push(Piece::Text(plain));
    Ok(pieces)
}

/// The name before a closing brace, and what is behind that.
fn name(text: &str) -> Option<(&str, &str)> {
    let (name, behind) = text.split_once('}')?;
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    is_name.then_some((name, behind))
}

impl Template {
    /// Goes on by this text, in which a brace is a brace.
    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        self.text.extend_from_slice(text.as_bytes());
        self
    }

    /// Goes on by a value.
    pub(super) fn value(&mut self, value: Value) -> &mut Self {
        // What is cut off here is too large by far.
        self.points.push(Point { at: self.text.len() as u16, value: value as u16 });
        self.room += longest(value);
        self
    }

    /// Goes on by all of these.
    pub(super) fn pieces(&mut self, pieces: &[Piece]) -> &mut Self {
        for piece in pieces {
            match piece {
                Piece::Text(text) => self.text(text),
                Piece::Value(value) => self.value(*value),
            };
        }
        self
    }

    /// Most bytes that it has with everything filled in. A body has exactly as many: what is filled in there has a fixed
    /// length, since the head tells it.
    pub(super) fn len(&self) -> usize {
        self.text.len() + self.room
    }

    /// What the kernel reads of it, with this body.
    ///
    /// # Errors
    /// It is too large.
    pub(super) fn compile(mut self, body: &Self) -> Result<Answer, TooLarge> {
        const { assert!(LONGEST <= ANSWER_TEXT) };
        let head = self.text.len();
        self.text.extend_from_slice(&body.text);
        self.points.extend(body.points.iter().map(|point| Point { at: point.at + head as u16, value: point.value }));
        self.room += body.room;
        let Self { text, points, room } = self;
        if text.len() + room > LONGEST {
            return Err(TooLarge::Bytes(text.len() + room));
        }
        let mut answer = Answer {
            len: text.len() as u32,
            head: head as u32,
            filled: points.len() as u32,
            reserved: 0,
            points: [Point::default(); POINTS],
            text: [0; ANSWER_TEXT],
        };
        answer.points.get_mut(..points.len()).ok_or(TooLarge::Points(points.len()))?.copy_from_slice(&points);
        answer.text[..text.len()].copy_from_slice(&text);
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(text: &str) -> Template {
        let mut body = Template::default();
        body.text(text);
        body
    }

    fn shown(text: &str) -> Result<String, String> {
        let pieces = parse(text).map_err(|error| error.to_string())?;
        Ok(pieces
            .iter()
            .map(|piece| match piece {
                Piece::Text(text) => text.clone(),
                Piece::Value(value) => format!("<{value:?}>"),
            })
            .collect())
    }

    #[test]
    fn only_names_in_braces_are_places() {
        for (text, expected) in [
            ("", ""),
            ("plain", "plain"),
            ("{date}", "<Date>"),
            ("a {quota} b {retry_after}/{window}c", "a <Quota> b <RetryAfter>/<Window>c"),
            ("{{date}", "{date}"),
            ("{{{date}}", "{<Date>}"),
            ("{{{{", "{{"),
            (r#"Report-To: {"group":"x"}"#, r#"Report-To: {"group":"x"}"#),
            ("{Date} {} { date} {date", "{Date} {} { date} {date"),
            ("a}b", "a}b"),
        ] {
            assert_eq!(shown(text).as_deref(), Ok(expected), "{text}");
        }
        for (text, name) in [("{dat}", "{dat}"), ("x {retryafter}", "{retryafter}"), ("{_}", "{_}")] {
            let error = shown(text).expect_err(text);
            assert!(error.starts_with(&format!("{name} stands for nothing; accepted: {{date}}, ")), "{error}");
            assert!(error.ends_with("{window}, {limit}, and {{ for a brace"), "{error}");
        }
    }

    #[test]
    fn what_fits_to_the_byte_is_taken_and_one_more_is_not() {
        let template = || {
            let mut template = Template::default();
            template.text("0123").value(Value::Date);
            template
        };
        let room = LONGEST - 4 - 29;
        let answer = template().compile(&body(&"x".repeat(room))).expect("as long as can be");
        assert_eq!((answer.len as usize, answer.head, answer.filled), (4 + room, 4, 1));
        assert_eq!(answer.points[0], Point { at: 4, value: Value::Date as u16 });
        let error = template().compile(&body(&"x".repeat(room + 1))).expect_err("too long");
        assert_eq!(error, TooLarge::Bytes(LONGEST + 1));
        assert!(error.to_string().contains(", 1 too many;"), "{error}");
        // Far beyond what a place can be noted with.
        let mut long = Template::default();
        long.text(&"x".repeat(1 << 17)).value(Value::Date);
        assert_eq!(long.compile(&body("")), Err(TooLarge::Bytes((1 << 17) + 29)));
    }

    #[test]
    fn there_are_places_for_sixteen_values() {
        let template = |values: usize| {
            let mut template = Template::default();
            for _ in 0..values {
                template.value(Value::Quota);
            }
            template.compile(&body(""))
        };
        assert_eq!(template(POINTS).map(|answer| answer.filled), Ok(16));
        assert_eq!(template(POINTS + 1), Err(TooLarge::Points(17)));
    }
}
