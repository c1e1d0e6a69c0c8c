//! What an operator says about the service as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use enforcer_ebpf::abi::{SOURCE_BUCKETS, SpreadAction, scope};

use super::{Limits, Rule, Unit};
use crate::config::bounds;
use crate::policy::Method;
use crate::prefix::Prefix;

/// Rules that are neither a principal's nor a path's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Limits of all requests together; `None` = none.
    pub ceiling: Option<Limits>,
    /// Limits of each source over all its keys; `None` = none.
    pub source: Option<Limits>,
    /// Limits of each source's requests with bad keys.
    pub guesses: Limits,
    /// How long a source over [`Service::guesses`] is refused unread for any bad key; 0 to a day.
    pub guess_penalty: Duration,
    /// Whether its good keys are refused too for that time.
    pub strict_guesses: bool,
    /// Limits of each source's CORS preflights without a key; [`Limits::Blocked`] = they need one, never
    /// [`Limits::Unlimited`].
    pub preflight: Limits,
    /// Limits of each source's requests without a key; [`Limits::Blocked`] = they are refused, never [`Limits::Unlimited`].
    pub unkeyed: Limits,
    /// What keys may do that are not registered; `None` = nothing.
    pub unregistered: Option<Unregistered>,
    /// Which of its limits count only, of [`OwnLimit::OBSERVABLE`].
    pub observe: BTreeSet<OwnLimit>,
    /// Limits that are counted beside those that hold and refuse nobody, of [`OwnLimit::WITH_CANDIDATE`]; of strangers only where they
    /// have limits.
    pub candidates: BTreeMap<OwnLimit, Limits>,
    /// The fields that a key may be in, 1 to [`Ruleset::KEYS`](enforcer_ebpf::abi::Ruleset::KEYS); a request with two of
    /// them is refused.
    pub key_headers: Vec<KeyHeader>,
    /// The field that tells a principal's clients apart; `None` = nothing does.
    pub client_id: Option<FieldName>,
    /// Whose `X-Forwarded-For` or PROXY protocol is believed, sorted.
    pub trusted_proxies: Vec<Prefix>,
    /// What those send first on a connection.
    pub proxy_protocol: ProxyProtocol,
    /// Most connections of one source at once; `None` = any number.
    pub connections_per_source: Option<u32>,
    /// Most connections of one principal at once; `None` = any number.
    pub connections_per_principal: Option<u32>,
    /// How many good keys of one source are too many.
    pub keys_per_source: Spread,
    /// How many sources of one key are too many.
    pub sources_per_key: Spread,
}

/// A limit that a service has for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OwnLimit {
    /// [`Service::ceiling`].
    Ceiling,
    /// [`Service::source`].
    Source,
    /// [`Service::guesses`].
    Guesses,
    /// [`Service::preflight`].
    Preflight,
    /// [`Service::unkeyed`].
    Unkeyed,
    /// [`Service::unregistered`].
    Unregistered,
}

/// The words for [`OwnLimit`]: the fields in the file.
pub const OWN_LIMITS: [(&str, OwnLimit); 6] = [
    ("ceiling", OwnLimit::Ceiling),
    ("source", OwnLimit::Source),
    ("guesses", OwnLimit::Guesses),
    ("preflight", OwnLimit::Preflight),
    ("unkeyed", OwnLimit::Unkeyed),
    ("unregistered", OwnLimit::Unregistered),
];

impl OwnLimit {
    /// Those that may count only. The others are all that bounds requests which are let in without a registered key.
    pub const OBSERVABLE: [Self; 3] = [Self::Ceiling, Self::Source, Self::Guesses];

    /// Those that may have a candidate. In the place of that of guesses lies until when their source is refused.
    pub const WITH_CANDIDATE: [Self; 5] =
        [Self::Ceiling, Self::Source, Self::Preflight, Self::Unkeyed, Self::Unregistered];

    /// The number of its buckets in [`scope`].
    #[must_use]
    pub const fn scope(self) -> u64 {
        match self {
            Self::Ceiling => scope::SERVICE,
            Self::Source => scope::SOURCE,
            Self::Guesses => scope::GUESSES,
            Self::Preflight => scope::PREFLIGHT,
            Self::Unkeyed => scope::UNKEYED,
            Self::Unregistered => scope::UNREGISTERED,
        }
    }
}

/// Keys that are not registered, and pass all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unregistered {
    /// Limits of each of them; neither [`Limits::Blocked`] nor [`Limits::Unlimited`].
    pub limits: Limits,
    /// How many may be new, and so have a count of their own, within the time that limits count for; all others share one. From
    /// 1, and of all services together at most [`Unregistered::MOST`].
    pub max_keys: u32,
}

impl Unregistered {
    /// Most keys with a count of their own.
    pub const MOST: u32 = SOURCE_BUCKETS / 8;
}

/// How many of one thing for one of another are too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spread {
    /// The most within a window, from 1.
    pub most: u32,
    /// The window.
    pub within: Duration,
    /// What follows beyond; `None` = they are not counted.
    pub action: Option<SpreadAction>,
}

/// What counts of a connection or of a head before it is known which of the services on its port it is for: services on the
/// same ports have it in common.
pub const OF_PORTS: [&str; 6] = [
    "key_headers",
    "client_id",
    "trusted_proxies",
    "proxy_protocol",
    "connections_per_source",
    "connections_per_principal",
];

impl Service {
    /// One of its own limits; `None` where it has none.
    #[must_use]
    pub fn own(&self, limit: OwnLimit) -> Option<&Limits> {
        match limit {
            OwnLimit::Ceiling => self.ceiling.as_ref(),
            OwnLimit::Source => self.source.as_ref(),
            OwnLimit::Guesses => Some(&self.guesses),
            OwnLimit::Preflight => Some(&self.preflight),
            OwnLimit::Unkeyed => Some(&self.unkeyed),
            OwnLimit::Unregistered => self.unregistered.as_ref().map(|unregistered| &unregistered.limits),
        }
    }

    /// Those of [`OF_PORTS`] that are otherwise in the other.
    #[must_use]
    pub fn disagreements(&self, other: &Self) -> Vec<&'static str> {
        let agreed = [
            self.key_headers == other.key_headers,
            self.client_id == other.client_id,
            self.trusted_proxies == other.trusted_proxies,
            self.proxy_protocol == other.proxy_protocol,
            self.connections_per_source == other.connections_per_source,
            self.connections_per_principal == other.connections_per_principal,
        ];
        OF_PORTS.into_iter().zip(agreed).filter(|(_, agree)| !agree).map(|(field, _)| field).collect()
    }

    /// This with [`OF_PORTS`] of the other.
    #[must_use]
    pub fn on_ports_of(&self, other: &Self) -> Self {
        Self {
            key_headers: other.key_headers.clone(),
            client_id: other.client_id.clone(),
            trusted_proxies: other.trusted_proxies.clone(),
            proxy_protocol: other.proxy_protocol,
            connections_per_source: other.connections_per_source,
            connections_per_principal: other.connections_per_principal,
            ..self.clone()
        }
    }
}

/// The words for [`Spread::action`].
pub const ACTIONS: [(&str, Option<SpreadAction>); 4] = [
    ("alert", Some(SpreadAction::Alert)),
    ("limit", Some(SpreadAction::Limit)),
    ("penalty", Some(SpreadAction::Penalty)),
    ("off", None),
];

/// What proxies send first on a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// The request; the source is in `X-Forwarded-For`.
    #[default]
    Off,
    /// A line with the source.
    V1,
    /// A binary header with the source.
    V2,
}

/// The words for [`ProxyProtocol`].
pub const PROXY_PROTOCOLS: [(&str, ProxyProtocol); 3] =
    [("off", ProxyProtocol::Off), ("v1", ProxyProtocol::V1), ("v2", ProxyProtocol::V2)];

/// A field's name in lower case: 1 to 31 letters, digits and hyphens, none that the program reads for itself. A name with `_`
/// is that of another field for some servers, and one with other bytes of a token for the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldName(String);

/// The name, likewise, of a field that keys are in: [`FieldName`], or `X-API-Key`. What has a grammar of its own, and more
/// than a key in it, is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyHeader(String);

/// A text that is no name of such a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAField {
    /// Other bytes, or too many.
    #[error("this is no name of a field")]
    Form,
    /// The program gives it a meaning already.
    #[error("this field has a meaning of its own")]
    Taken,
}

/// Those that the program reads for something else.
const TAKEN: [&str; 10] = [
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "expect",
    "upgrade",
    "http2-settings",
    "origin",
    "access-control-request-method",
    "x-forwarded-for",
];

impl FieldName {
    /// What is accepted as one.
    pub const ACCEPTED: &str = "1 to 31 of a-z A-Z 0-9 -, such as X-Client-Id; not X-API-Key, Host, \
                                Connection, Content-Length, Transfer-Encoding, Expect, Upgrade, HTTP2-Settings, Origin, \
                                Access-Control-Request-Method or X-Forwarded-For";

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for FieldName {
    type Err = NotAField;

    fn from_str(text: &str) -> Result<Self, NotAField> {
        let name = name(text)?;
        if name == KeyHeader::USUAL || TAKEN.contains(&name.as_str()) { Err(NotAField::Taken) } else { Ok(Self(name)) }
    }
}

/// A name in lower case, if it has the form of one.
fn name(text: &str) -> Result<String, NotAField> {
    let is_readable = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if !(1..=31).contains(&text.len()) || !text.bytes().all(is_readable) {
        return Err(NotAField::Form);
    }
    Ok(text.to_ascii_lowercase())
}

impl KeyHeader {
    /// What is accepted as one.
    pub const ACCEPTED: &str = "1 to 31 of a-z A-Z 0-9 -, such as X-API-Key; none that HTTP gives a meaning, such as \
                                Authorization";

    /// The one that is looked at unless others are named.
    const USUAL: &str = "x-api-key";
    /// Those with a grammar of their own.
    const STRUCTURED: [&str; 3] = ["authorization", "proxy-authorization", "cookie"];

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for KeyHeader {
    fn default() -> Self {
        Self(Self::USUAL.to_owned())
    }
}

impl FromStr for KeyHeader {
    type Err = NotAField;

    fn from_str(text: &str) -> Result<Self, NotAField> {
        let name = name(text)?;
        let is_taken = TAKEN.iter().chain(&Self::STRUCTURED).any(|taken| *taken == name);
        if is_taken { Err(NotAField::Taken) } else { Ok(Self(name)) }
    }
}

impl fmt::Display for KeyHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for FieldName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A time as files have it.
pub(super) struct Time(pub(super) Duration);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        bounds::show(self.0, f)
    }
}

/// So many requests a minute.
fn per_minute(count: u32) -> Limits {
    Limits::Rules(vec![Rule {
        count,
        every: 1,
        unit: Unit::Minute,
        method: Method::Sliding,
        penalize: false,
        name: None,
    }])
}

impl Spread {
    /// An alert at more than `most` in ten minutes.
    const fn alert(most: u32) -> Self {
        Self { most, within: Duration::from_secs(600), action: Some(SpreadAction::Alert) }
    }
}

impl Default for Service {
    fn default() -> Self {
        Self {
            ceiling: None,
            source: None,
            guesses: per_minute(10),
            guess_penalty: Duration::from_secs(300),
            strict_guesses: false,
            preflight: per_minute(60),
            unkeyed: Limits::Blocked,
            unregistered: None,
            observe: BTreeSet::new(),
            candidates: BTreeMap::new(),
            key_headers: vec![KeyHeader::default()],
            client_id: None,
            trusted_proxies: Vec::new(),
            proxy_protocol: ProxyProtocol::Off,
            connections_per_source: None,
            connections_per_principal: None,
            keys_per_source: Spread::alert(20),
            sources_per_key: Spread::alert(25),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_for_clients_is_none_that_has_a_meaning() {
        assert_eq!("X-Client-Id".parse::<FieldName>().map(|name| name.to_string()), Ok("x-client-id".into()));
        for wrong in ["", "a b", "a:", "é", &"a".repeat(32)] {
            assert_eq!(wrong.parse::<FieldName>(), Err(NotAField::Form), "{wrong}");
        }
        for taken in ["X-API-KEY", "host", "Content-Length"] {
            assert_eq!(taken.parse::<FieldName>(), Err(NotAField::Taken), "{taken}");
        }
        for taken in TAKEN.iter().chain([&KeyHeader::USUAL]) {
            assert!(FieldName::ACCEPTED.to_ascii_lowercase().contains(taken), "{taken}");
        }
    }

    #[test]
    fn a_field_for_keys_holds_a_key_and_nothing_else() {
        assert_eq!("X-API-Key".parse::<KeyHeader>(), Ok(KeyHeader::default()));
        assert_eq!("Api-Key".parse::<KeyHeader>().map(|name| name.to_string()), Ok("api-key".into()));
        assert_eq!("X_Api_Key".parse::<KeyHeader>(), Err(NotAField::Form));
        for taken in TAKEN.iter().chain(&KeyHeader::STRUCTURED) {
            assert_eq!(taken.parse::<KeyHeader>(), Err(NotAField::Taken), "{taken}");
        }
    }

    #[test]
    fn the_defaults_are_those_of_the_limit_strings() {
        let service = Service::default();
        assert_eq!(
            (service.guesses.to_string(), service.preflight.to_string()),
            ("10/minute".into(), "60/minute".into())
        );
    }
}
