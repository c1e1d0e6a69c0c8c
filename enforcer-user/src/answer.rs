//! The answers to refused requests, as texts that the kernel fills in and sends.
//!
//! # Layout
//! - `part`: what operators set in them, read strictly
//! - `template`: a text with places in it, and what the kernel reads of that

mod part;
mod template;

use std::collections::BTreeMap;

use enforcer_ebpf::abi::{Answer, AnswerKind, Value};
use enforcer_ebpf::verdict::Reason;

pub use part::{Field, MediaType, Realm, Unfit};
use template::Template;
pub use template::{LONGEST, TooLarge};

/// The statuses that requests are answered with, and the answer of each.
const STATUSES: [(u16, &str, AnswerKind); 9] = [
    (400, "Bad Request", AnswerKind::BadRequest),
    (401, "Unauthorized", AnswerKind::Unauthorized),
    (403, "Forbidden", AnswerKind::Forbidden),
    (413, "Content Too Large", AnswerKind::ContentTooLarge),
    (414, "URI Too Long", AnswerKind::UriTooLong),
    (421, "Misdirected Request", AnswerKind::Misdirected),
    (TOO_MANY_REQUESTS, "Too Many Requests", AnswerKind::TooManyRequests),
    (TOO_MANY_REQUESTS, "Too Many Requests", AnswerKind::AbnormalUsage),
    (431, "Request Header Fields Too Large", AnswerKind::FieldsTooLarge),
];
/// The status of those over a limit.
pub(crate) const TOO_MANY_REQUESTS: u16 = 429;

/// The status that requests are answered with that are refused for this; `None` where nothing is answered.
pub(crate) fn status(reason: Reason) -> Option<u16> {
    let kind = reason.answer()?;
    STATUSES.iter().find(|(.., answer)| *answer == kind).map(|(status, ..)| *status)
}

const PROBLEM: &str = "application/problem+json";
/// Where the types of problems with quotas are registered (draft-ietf-httpapi-ratelimit-headers).
const PROBLEM_TYPES: &str = "https://iana.org/assignments/http-problem-types";

/// What the answers of a service say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Texts {
    /// Realm of the challenge in 401.
    pub realm: Realm,
    /// Fields of all answers.
    pub fields: Vec<Field>,
    /// Whether 429 has `X-RateLimit-Limit`, `-Remaining` and `-Reset` too.
    pub legacy_headers: bool,
    /// What is set for one status, by its number.
    pub own: BTreeMap<u16, Own>,
}

/// What is set for one status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// In place of the problem in JSON (RFC 9457).
    pub body: Option<String>,
    /// In place of `application/problem+json`.
    pub content_type: Option<MediaType>,
    /// Fields behind those of all answers.
    pub fields: Vec<Field>,
}

/// An answer that cannot be sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer {status} has {reason}")]
pub struct Unsendable {
    /// Its status.
    pub status: u16,
    /// Why.
    pub reason: TooLarge,
}

impl Texts {
    /// All answers, each with its index among the service's.
    ///
    /// # Errors
    /// An answer that is too large.
    pub fn compile(&self) -> Result<Vec<(u32, Answer)>, Unsendable> {
        let answer = |(status, title, kind)| {
            let answer = self.answer(status, title, kind).map_err(|reason| Unsendable { status, reason })?;
            Ok((kind as u32, answer))
        };
        STATUSES.into_iter().map(answer).collect()
    }

    fn answer(&self, status: u16, title: &str, kind: AnswerKind) -> Result<Answer, TooLarge> {
        let own = self.own.get(&status).cloned().unwrap_or_default();
        let content_type = own.content_type.as_ref().map_or(PROBLEM, MediaType::as_str);
        let mut body = Template::default();
        match own.body {
            Some(text) => body.text(&text),
            None => self.problem(&mut body, status, title, kind),
        };
        let mut head = Template::default();
        head.text(&format!("HTTP/1.1 {status} {title}\r\nDate: ")).value(Value::Date);
        head.text(&format!("\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n", body.len()));
        match kind {
            AnswerKind::Unauthorized => {
                head.text(&format!("WWW-Authenticate: ApiKey realm=\"{}\"\r\n", self.realm.as_str()));
            }
            AnswerKind::TooManyRequests => self.quota(&mut head),
            AnswerKind::AbnormalUsage => {
                head.text("Retry-After: ").value(Value::RetryAfter).text("\r\n");
            }
            _ => {}
        }
        for field in self.fields.iter().chain(&own.fields) {
            head.pieces(field.pieces()).text("\r\n");
        }
        head.text("Cache-Control: no-store\r\nConnection: ").value(Value::Connection).text("\r\n\r\n");
        head.compile(&body)
    }

    /// The fields of a limit: RFC 9110 §10.2.3, and draft-ietf-httpapi-ratelimit-headers.
    fn quota(&self, head: &mut Template) {
        head.text("Retry-After: ").value(Value::RetryAfter);
        head.text("\r\nRateLimit-Policy: \"").value(Value::Name).text("\";q=").value(Value::Quota);
        head.text(";w=").value(Value::Window);
        head.text("\r\nRateLimit: \"").value(Value::Name).text("\";r=0;t=").value(Value::RetryAfter).text("\r\n");
        if self.legacy_headers {
            head.text("X-RateLimit-Limit: ").value(Value::Quota);
            head.text("\r\nX-RateLimit-Remaining: 0\r\nX-RateLimit-Reset: ").value(Value::RetryAfter).text("\r\n");
        }
    }

    /// The body that says what is wrong, where the operator sets none (RFC 9457).
    fn problem<'t>(&self, body: &'t mut Template, status: u16, title: &str, kind: AnswerKind) -> &'t mut Template {
        // Beside the older fields there is no room for what their names say anyway.
        let members = if self.legacy_headers { "" } else { "\"title\":\"Quota exceeded\",\"status\":429," };
        match kind {
            AnswerKind::TooManyRequests => body
                .text(&format!("{{\"type\":\"{PROBLEM_TYPES}#quota-exceeded\",{members}\"violated-policies\":["))
                .value(Value::QuotedName)
                .text("]}"),
            AnswerKind::AbnormalUsage => body.text(&format!(
                r#"{{"type":"{PROBLEM_TYPES}#abnormal-usage-detected","title":"Abnormal usage detected","status":429}}"#
            )),
            _ => body.text(&format!(r#"{{"type":"about:blank","title":"{title}","status":{status}}}"#)),
        }
    }
}

#[cfg(test)]
mod tests {
    use enforcer_ebpf::abi::Name;
    use enforcer_ebpf::answer::{Text, piece};
    use enforcer_ebpf::flow::Told;
    use jiff::Timestamp;
    use jiff::civil::Date;
    use jiff::fmt::rfc2822::DateTimePrinter;
    use jiff::tz::Offset;

    use super::*;

    const UNAUTHORIZED: u16 = 401;

    /// What the kernel makes of an answer, by its own code.
    fn fill(answer: &Answer, told: &Told) -> String {
        let mut text = Text::new();
        let copy = |bytes: &mut [u8], at: usize, from: usize, len: u32| {
            bytes[at..][..len as usize].copy_from_slice(&answer.text[from..][..len as usize]);
        };
        let mut index = 0;
        while piece(answer, index, told, &mut text, |bytes, at, from, len| copy(bytes, at, from, len)) {
            index += 1;
        }
        String::from_utf8(text.bytes()[..text.len() as usize].to_vec()).expect("text")
    }

    /// The answer with this index.
    fn answer(texts: &Texts, kind: u32) -> Answer {
        let answers = texts.compile().expect("answers");
        answers.into_iter().find(|(index, _)| *index == kind).expect("an answer").1
    }

    /// Everything that can be filled in, at its longest.
    fn long() -> Told {
        Told {
            date: u32::MAX,
            retry: 0x7fff_ffff,
            quota: 268_435_455,
            window: 315_360_000,
            keeps: 1,
            name: name("sixteen-letters-"),
            ..Told::NOTHING
        }
    }

    fn name(text: &str) -> Name {
        let mut bytes = [0; 16];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        let (words, _) = bytes.as_chunks();
        [u64::from_le_bytes(words[0]), u64::from_le_bytes(words[1])]
    }

    /// Reads an answer as a client does: status, fields, body.
    fn read(answer: &str) -> (u16, Vec<(String, String)>, String) {
        let mut fields = [httparse::EMPTY_HEADER; 32];
        let mut response = httparse::Response::new(&mut fields);
        let parsed = response.parse(answer.as_bytes()).expect("a response");
        let httparse::Status::Complete(head) = parsed else { panic!("no end of the head: {answer}") };
        assert_eq!(response.version, Some(1));
        let value = |field: &httparse::Header<'_>| String::from_utf8(field.value.to_vec()).expect("text");
        let fields = response.headers.iter().map(|field| (field.name.to_owned(), value(field))).collect();
        (response.code.expect("a status"), fields, answer[head..].to_owned())
    }

    fn field<'a>(fields: &'a [(String, String)], name: &str) -> Option<&'a str> {
        let mut found = fields.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        let first = found.next()?;
        assert_eq!(found.next(), None, "{name} twice");
        Some(&first.1)
    }

    /// Texts of an operator who sets all there is.
    fn full() -> Texts {
        let own = Own {
            body: Some("{\"slow\":{}}\n".to_owned()),
            content_type: Some("application/json".parse().expect("a type")),
            fields: vec![Field::parse("X-Q: {quota} of {{window}", true).expect("a field")],
        };
        Texts {
            realm: "shop {1}".parse().expect("a realm"),
            fields: vec![Field::parse("Access-Control-Allow-Origin: *", false).expect("a field")],
            legacy_headers: true,
            own: [(TOO_MANY_REQUESTS, own)].into(),
        }
    }

    #[test]
    fn every_answer_fits_any_packet_and_is_a_whole_response() {
        for texts in [Texts::default(), Texts { legacy_headers: true, ..Texts::default() }, full()] {
            let mut statuses = Vec::new();
            for (_, answer) in texts.compile().expect("answers") {
                let whole = fill(&answer, &long());
                assert!(whole.len() <= LONGEST, "{} bytes: {whole}", whole.len());
                let (status, fields, body) = read(&whole);
                assert_eq!(field(&fields, "Content-Length"), Some(body.len().to_string().as_str()));
                assert_eq!(field(&fields, "Connection"), Some("keep-alive"));
                assert_eq!(field(&fields, "Cache-Control"), Some("no-store"));
                assert_eq!(field(&fields, "Date"), Some("Sun, 07 Feb 2106 06:28:15 GMT"));
                assert!(field(&fields, "Content-Type").is_some());
                assert_eq!(field(&fields, "WWW-Authenticate").is_some(), status == UNAUTHORIZED);
                assert_eq!(field(&fields, "Retry-After").is_some(), status == TOO_MANY_REQUESTS);
                let head = fill(&answer, &Told { bodiless: 1, ..long() });
                assert_eq!(head + &body, whole, "the answer to HEAD is the same without the body");
                statuses.push(status);
            }
            assert_eq!(statuses, [400, 401, 403, 413, 414, 421, 429, 429, 431]);
        }
    }

    #[test]
    fn the_challenge_names_the_realm_and_the_problem_no_cause() {
        let told = Told { date: 0, ..Told::NOTHING };
        assert_eq!(
            fill(&answer(&Texts::default(), AnswerKind::Unauthorized as u32), &told),
            "HTTP/1.1 401 Unauthorized\r\n\
             Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n\
             Content-Type: application/problem+json\r\n\
             Content-Length: 58\r\n\
             WWW-Authenticate: ApiKey realm=\"api\"\r\n\
             Cache-Control: no-store\r\n\
             Connection: close\r\n\
             \r\n\
             {\"type\":\"about:blank\",\"title\":\"Unauthorized\",\"status\":401}"
        );
    }

    #[test]
    fn a_limit_that_is_used_up_is_told_with_its_name() {
        let told =
            Told { date: 1_709_164_800, retry: 17, quota: 100, window: 60, name: name("default-2"), ..Told::NOTHING };
        let second = AnswerKind::TooManyRequests as u32;
        let text = fill(&answer(&Texts { legacy_headers: true, ..Texts::default() }, second), &told);
        let (_, fields, body) = read(&text);
        for (name, value) in [
            ("Date", "Thu, 29 Feb 2024 00:00:00 GMT"),
            ("Retry-After", "17"),
            ("RateLimit-Policy", "\"default-2\";q=100;w=60"),
            ("RateLimit", "\"default-2\";r=0;t=17"),
            ("X-RateLimit-Limit", "100"),
            ("X-RateLimit-Remaining", "0"),
            ("X-RateLimit-Reset", "17"),
        ] {
            assert_eq!(field(&fields, name), Some(value), "{name}");
        }
        let problem: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(problem["violated-policies"], serde_json::json!(["default-2"]));
        let without = fill(&answer(&Texts::default(), second), &told);
        assert_eq!(field(&read(&without).1, "X-RateLimit-Limit"), None);
    }

    #[test]
    fn what_an_operator_sets_stands_where_it_belongs_and_braces_of_bodies_stay() {
        let texts = full();
        let (_, fields, body) = read(&fill(&answer(&texts, AnswerKind::TooManyRequests as u32), &long()));
        assert_eq!(body, "{\"slow\":{}}\n");
        assert_eq!(field(&fields, "Content-Type"), Some("application/json"));
        assert_eq!(field(&fields, "X-Q"), Some("268435455 of {window}"));
        assert_eq!(field(&fields, "Access-Control-Allow-Origin"), Some("*"));
        let (_, fields, _) = read(&fill(&answer(&texts, AnswerKind::Unauthorized as u32), &long()));
        assert_eq!(field(&fields, "WWW-Authenticate"), Some("ApiKey realm=\"shop {1}\""));
        assert_eq!((field(&fields, "Access-Control-Allow-Origin"), field(&fields, "X-Q")), (Some("*"), None));
    }

    #[test]
    fn the_documentation_says_how_much_room_is_left() {
        for (legacy_headers, bytes, values) in [(false, 56, 9), (true, 7, 11)] {
            let text = answer(&Texts { legacy_headers, ..Texts::default() }, AnswerKind::TooManyRequests as u32);
            assert_eq!((LONGEST - fill(&text, &long()).len(), text.filled), (bytes, values));
        }
    }

    #[test]
    fn what_is_too_large_is_told_with_its_status() {
        let own = Own { body: Some("x".repeat(LONGEST)), ..Own::default() };
        let error = Texts { own: [(414, own)].into(), ..Texts::default() }.compile().expect_err("too large");
        assert_eq!(error.status, 414);
        let length =
            fill(&answer(&Texts::default(), AnswerKind::UriTooLong as u32), &Told { bodiless: 1, ..long() }).len();
        // Three digits of the length instead of two.
        assert_eq!(error.reason, TooLarge::Bytes(length + 1 + LONGEST));
        let fields = vec![Field::parse("Access-Control-Allow-Origin: *", false).expect("a field")];
        let texts = Texts { legacy_headers: true, fields, ..Texts::default() };
        let error = texts.compile().expect_err("too large");
        assert_eq!((error.status, error.reason), (TOO_MANY_REQUESTS, TooLarge::Bytes(LONGEST + 32 - 7)));
    }

    #[test]
    fn dates_are_those_of_the_calendar_at_any_second() {
        let answer = answer(&Texts::default(), AnswerKind::Forbidden as u32);
        let expected = fill(&answer, &Told::NOTHING);
        let check = |date: u32| {
            let timestamp = Timestamp::from_second(i64::from(date)).expect("a time");
            let shown = DateTimePrinter::new().timestamp_to_rfc9110_string(&timestamp).expect("a date");
            assert_eq!(
                fill(&answer, &Told { date, ..Told::NOTHING }),
                expected.replace("Thu, 01 Jan 1970 00:00:00 GMT", &shown)
            );
        };
        // The days around each New Year and each end of February, to the second; 2100 has no 29th.
        for year in 1970..2106 {
            for (month, day) in [(1, 1), (2, 28), (2, 29), (3, 1), (12, 31)] {
                let Ok(date) = Date::new(year, month, day) else { continue };
                let begin = Offset::UTC.to_timestamp(date.at(0, 0, 0, 0)).expect("a day");
                let midnight = u32::try_from(begin.as_second()).expect("within 32 bits");
                for second in [0, 1, 59, 60, 3_599, 3_600, 43_200, 86_399] {
                    check(midnight + second);
                }
            }
        }
        // And all others here and there.
        (0..=u32::MAX).step_by(1_000_003).for_each(check);
        check(u32::MAX);
    }

    #[test]
    fn numbers_are_written_without_leading_zeros() {
        let text = |number| {
            let told = Told { retry: number, quota: number, window: number, ..Told::NOTHING };
            fill(&answer(&Texts::default(), AnswerKind::TooManyRequests as u32), &told)
        };
        let once = text(0);
        for number in [1, 9, 10, 99, 100, 101, 1_000_000_000, 0x7fff_ffff, u32::MAX] {
            let expected = once
                .replace("Retry-After: 0", &format!("Retry-After: {number}"))
                .replace("q=0;w=0", &format!("q={number};w={number}"))
                .replace("t=0", &format!("t={number}"));
            assert_eq!(text(number), expected);
        }
    }
}
