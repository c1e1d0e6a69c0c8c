//! What a test registers: services, keys, principals and their policies, as the daemon would write them.

use std::collections::BTreeMap;

use enforcer_ebpf::abi::{ANSWER_TEXT, Answer, Key, KeyTag, LIMITS, Limit, POINTS, Point, Policy, Service, Value};
use enforcer_ebpf::key;

use crate::reader::SECRET;

/// The rows of the maps that the daemon writes.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// Port to service.
    pub services: BTreeMap<u16, Service>,
    /// The registered keys.
    pub keys: BTreeMap<KeyTag, Key>,
    /// Principal to policy.
    pub policies: BTreeMap<u32, Policy>,
    /// Index to answer.
    pub answers: BTreeMap<u32, Answer>,
}

impl Tables {
    /// One service on port 8000 with the default bounds, nothing else.
    #[must_use]
    pub fn new() -> Self {
        let mut tables = Self::default();
        tables.services.insert(8000, Service::DEFAULT);
        tables
    }

    /// Gives `value` to `principal` (1 and above).
    #[must_use]
    pub fn with_key(mut self, value: &str, principal: u32, flags: u32) -> Self {
        let key = Key { principal, flags, not_before: 0, expires: u64::MAX };
        self.keys.insert(key::tag(SECRET, value.as_bytes()), key);
        self
    }

    /// Answers so, at this index: `date`, `retry`, `quota`, `window` and `connection` in braces are filled in.
    ///
    /// # Panics
    /// When the text is too long or has too many places, or another name stands in braces.
    #[must_use]
    pub fn with_answer(mut self, index: u32, head: &str, body: &str) -> Self {
        let (mut text, mut points) = (Vec::new(), Vec::new());
        for (number, part) in head.split(['{', '}']).enumerate() {
            if number % 2 == 0 {
                text.extend(part.as_bytes());
                continue;
            }
            let value = match part {
                "date" => Value::Date,
                "retry" => Value::RetryAfter,
                "quota" => Value::Quota,
                "window" => Value::Window,
                "connection" => Value::Connection,
                other => panic!("{other} is not filled in"),
            };
            points.push(Point { at: text.len() as u16, value: value as u16 });
        }
        let head = text.len() as u32;
        text.extend(body.as_bytes());
        let mut answer = Answer {
            len: text.len() as u32,
            head,
            filled: points.len() as u32,
            reserved: 0,
            points: [Point::default(); POINTS],
            text: [0; ANSWER_TEXT],
        };
        answer.points[..points.len()].copy_from_slice(&points);
        answer.text[..text.len()].copy_from_slice(&text);
        self.answers.insert(index, answer);
        self
    }

    /// Puts `principal` under these limits.
    #[must_use]
    pub fn with_limits(mut self, principal: u32, limits: &[Limit]) -> Self {
        let mut policy = Policy { limits: [Limit::default(); LIMITS], len: limits.len() as u32, flags: Policy::IN_USE };
        policy.limits[..limits.len()].copy_from_slice(limits);
        self.policies.insert(principal, policy);
        self
    }
}
