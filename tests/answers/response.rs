//! What must stand in an answer.

use anyhow::{Context, Result, ensure};
use jiff::{Timestamp, ToSpan};
use serde_json::Value;

use crate::client::Response;

/// How far the date of an answer may be off.
const SECONDS_OFF: i64 = 2;

/// The limit that an answer names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Quota {
    /// Its name.
    pub(crate) name: String,
    /// Requests per window.
    pub(crate) count: u64,
    /// Seconds of its window.
    pub(crate) window: u64,
    /// Seconds until another request will be served.
    pub(crate) retry: u64,
}

impl Response {
    /// The value of a field that must stand once.
    pub(crate) fn field(&self, name: &str) -> Result<&str> {
        let mut found = self.fields.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        let (_, value) = found.next().with_context(|| format!("no {name} in {:?}", self.fields))?;
        ensure!(found.next().is_none(), "more than one {name} in {:?}", self.fields);
        Ok(value)
    }

    fn has(&self, name: &str) -> bool {
        self.fields.iter().any(|(known, _)| known.eq_ignore_ascii_case(name))
    }

    /// Fails if this is not a right answer with `status` to a request of `method` that was made behind `since`, or says
    /// another word of the connection's future.
    pub(crate) fn expect(&self, status: u16, method: &str, since: Timestamp, connection: &str) -> Result<()> {
        ensure!(self.status == status, "{} instead of {status}: {}", self.status, self.body);
        let date = jiff::fmt::rfc2822::parse(self.field("Date")?)?.timestamp();
        let (earliest, latest) = (since - SECONDS_OFF.seconds(), Timestamp::now() + SECONDS_OFF.seconds());
        ensure!(earliest <= date && date <= latest, "dated {date}, between {since} and now");
        ensure!(self.field("Date")?.ends_with(" GMT"), "dated {}", self.field("Date")?);
        ensure!(self.field("Content-Type")? == "application/problem+json", "{:?}", self.fields);
        ensure!(self.field("Cache-Control")? == "no-store", "{:?}", self.fields);
        ensure!(self.field("Connection")? == connection, "{:?}", self.fields);
        let length: usize = self.field("Content-Length")?.parse()?;
        ensure!(length > 0, "it would have no body");
        if method == "HEAD" {
            ensure!(self.body.is_empty(), "a body to HEAD: {}", self.body);
        } else {
            ensure!(self.body.len() == length, "{length} bytes are said, {} came", self.body.len());
            let problem: Value = serde_json::from_str(&self.body).with_context(|| self.body.clone())?;
            // That of 429 has none, to make room for names of policies (it is advisory: RFC 9457 §3.1.2).
            ensure!(problem.get("status").is_none_or(|told| *told == status), "{problem}");
            ensure!(problem["type"].is_string() && problem["title"].is_string(), "{problem}");
        }
        ensure!(self.has("WWW-Authenticate") == (status == 401), "{:?}", self.fields);
        for name in ["Retry-After", "RateLimit", "RateLimit-Policy"] {
            ensure!(self.has(name) == (status == 429), "{:?}", self.fields);
        }
        Ok(())
    }

    /// What it says of the limit that is used up.
    pub(crate) fn quota(&self) -> Result<Quota> {
        let retry: u64 = self.field("Retry-After")?.parse().context("Retry-After is no whole number")?;
        ensure!(retry >= 1, "Retry-After: {retry}");
        let (name, limit) = item(self.field("RateLimit")?)?;
        let (policy, quota) = item(self.field("RateLimit-Policy")?)?;
        ensure!(name == policy, "the limit {name}, but the policy {policy}");
        ensure!(limit == [("r", 0), ("t", retry)], "RateLimit: {limit:?}, Retry-After: {retry}");
        let [("q", count), ("w", window)] = quota[..] else { anyhow::bail!("RateLimit-Policy: {quota:?}") };
        Ok(Quota { name: name.to_owned(), count, window, retry })
    }
}

/// The one item of a structured field (RFC 9651): a string with parameters that are integers.
fn item(field: &str) -> Result<(&str, Vec<(&str, u64)>)> {
    let wrong = || format!("no structured field: {field:?}");
    let (name, rest) = field.strip_prefix('"').and_then(|rest| rest.split_once('"')).with_context(wrong)?;
    let parameters = rest.strip_prefix(';').with_context(wrong)?.split(';').map(|parameter| {
        let (key, value) = parameter.split_once('=').with_context(wrong)?;
        Ok((key, value.parse().with_context(wrong)?))
    });
    Ok((name, parameters.collect::<Result<_>>()?))
}
