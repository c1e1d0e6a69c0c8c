//! The answers to refused requests, as texts that the kernel fills in and sends.
//!
//! A template is a response as text with places in braces: `{date}`, `{retry_after}`, `{quota}`, `{window}`. Each takes a
//! value of the moment ([`Value`]); none stands in the body, whose length the head has to say.

use enforcer_ebpf::abi::{ANSWER_TEXT, Answer, AnswerKind, LIMITS, POINTS, Point, Value};

/// Most bytes of an answer with everything filled in: what the smallest MSS that hosts must take leaves (RFC 9293
/// §3.7.1), less the timestamps.
pub const LONGEST: usize = 536 - 12;

/// What can be filled in, by name, with the most bytes that it takes.
const VALUES: [(&str, Value, usize); 5] = [
    ("date", Value::Date, 29),
    ("retry_after", Value::RetryAfter, 10),
    ("quota", Value::Quota, 10),
    ("window", Value::Window, 10),
    ("connection", Value::Connection, 10),
];

/// Why a template is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A name in braces that stands for nothing.
    #[error("{{{0}}} stands for nothing; accepted: {{date}}, {{retry_after}}, {{quota}}, {{window}}, {{connection}}")]
    Unknown(String),
    /// Too many places.
    #[error("more than {POINTS} values are filled in")]
    Points,
    /// No room for it in one packet.
    #[error("{0} bytes with everything filled in; accepted: at most {LONGEST}, which fit any packet")]
    TooLong(usize),
}

/// What the answers of a service say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Texts {
    /// Realm of the challenge (RFC 9110 §11.5).
    pub realm: String,
}

impl Default for Texts {
    fn default() -> Self {
        Self { realm: "api".to_owned() }
    }
}

impl Texts {
    /// All answers, each with its index among the service's.
    ///
    /// # Errors
    /// A text that does not fit.
    pub fn compile(&self) -> Result<Vec<(u32, Answer)>, Error> {
        let problem = |status: &str| {
            let (number, title) = status.split_once(' ').unwrap_or((status, ""));
            format!(r#"{{"type":"about:blank","title":"{title}","status":{number}}}"#)
        };
        let mut answers = Vec::new();
        let mut add = |kind: u32, status: &str, fields: &str, body: &str| {
            answers.push((kind, compile(&head(status, fields, body.len()), body)?));
            Ok(())
        };
        let challenge = format!("WWW-Authenticate: ApiKey realm=\"{}\"\r\n", self.realm);
        let status = "401 Unauthorized";
        add(AnswerKind::Unauthorized as u32, status, &challenge, &problem(status))?;
        for (kind, status) in [
            (AnswerKind::Forbidden, "403 Forbidden"),
            (AnswerKind::BadRequest, "400 Bad Request"),
            (AnswerKind::ContentTooLarge, "413 Content Too Large"),
            (AnswerKind::UriTooLong, "414 URI Too Long"),
            (AnswerKind::FieldsTooLarge, "431 Request Header Fields Too Large"),
        ] {
            add(kind as u32, status, "", &problem(status))?;
        }
        for limit in 0..LIMITS as u32 {
            let name = policy_name(limit);
            let fields = format!(
                "Retry-After: {{retry_after}}\r\nRateLimit-Policy: \"{name}\";q={{quota}};w={{window}}\r\nRateLimit: \
                 \"{name}\";r=0;t={{retry_after}}\r\n"
            );
            let body = format!(
                r#"{{"type":"https://iana.org/assignments/http-problem-types#quota-exceeded","title":"Quota exceeded","status":429,"violated-policies":["{name}"]}}"#
            );
            add(AnswerKind::TooManyRequests as u32 + limit, "429 Too Many Requests", &fields, &body)?;
        }
        Ok(answers)
    }
}

/// The name of a principal's limit in answers, by its index.
fn policy_name(limit: u32) -> String {
    if limit == 0 { "default".to_owned() } else { format!("default-{}", limit + 1) }
}

/// Status line and fields.
fn head(status: &str, fields: &str, length: usize) -> String {
    format!(
        "HTTP/1.1 {status}\r\nDate: {{date}}\r\nContent-Type: application/problem+json\r\nContent-Length: {length}\r\n\
         {fields}Cache-Control: no-store\r\nConnection: {{connection}}\r\n\r\n"
    )
}

/// Turns a template into what the kernel sends.
fn compile(head: &str, body: &str) -> Result<Answer, Error> {
    let (mut text, mut points, mut room) = (Vec::new(), Vec::new(), 0);
    let mut rest = head;
    while let Some((before, behind)) = rest.split_once('{') {
        let (name, behind) = behind.split_once('}').unwrap_or((behind, ""));
        let known = VALUES.iter().find(|(known, ..)| *known == name);
        let &(_, value, longest) = known.ok_or_else(|| Error::Unknown(name.to_owned()))?;
        text.extend_from_slice(before.as_bytes());
        points.push(Point { at: text.len() as u16, value: value as u16 });
        room += longest;
        rest = behind;
    }
    text.extend_from_slice(rest.as_bytes());
    let head = text.len();
    text.extend_from_slice(body.as_bytes());
    let longest = text.len() + room;
    if longest > LONGEST.min(ANSWER_TEXT) {
        return Err(Error::TooLong(longest));
    }
    let mut answer = Answer {
        len: text.len() as u32,
        head: head as u32,
        filled: points.len() as u32,
        reserved: 0,
        points: [Point::default(); POINTS],
        text: [0; ANSWER_TEXT],
    };
    answer.points.get_mut(..points.len()).ok_or(Error::Points)?.copy_from_slice(&points);
    answer.text[..text.len()].copy_from_slice(&text);
    Ok(answer)
}
