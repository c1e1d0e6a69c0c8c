//! Names of hosts, by which services on one port are told apart.

use std::fmt;
use std::str::FromStr;

use enforcer_ebpf::abi::HOSTS_EACH;

/// Most names of one service.
pub(super) const MOST: usize = HOSTS_EACH as usize;
/// Longest name in bytes (RFC 1035 §2.3.4), and its longest label.
const LONGEST: usize = 253;
const LONGEST_LABEL: usize = 63;

/// A host's name as requests have it in `Host`, in small letters, without a port and without the dot that may end it: labels
/// of letters, digits, `-` and `_`. An IPv4 address is such a name; no other is an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(String);

/// A text that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no name of a host")]
pub struct NotAHost;

impl HostName {
    /// What is accepted as one.
    pub const ACCEPTED: &str = "a name without a port, such as \"api.example.com\": labels of a-z A-Z 0-9 - _";

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostName {
    type Err = NotAHost;

    fn from_str(text: &str) -> Result<Self, NotAHost> {
        let name = text.strip_suffix('.').unwrap_or(text);
        let is_label = |label: &str| {
            (1..=LONGEST_LABEL).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        };
        if name.len() > LONGEST || !name.split('.').all(is_label) {
            return Err(NotAHost);
        }
        Ok(Self(name.to_ascii_lowercase()))
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_compared_without_case_and_without_its_last_dot() {
        let name = |text: &str| text.parse::<HostName>().map(|name| name.to_string());
        assert_eq!(name("API.Example.com."), Ok("api.example.com".into()));
        assert_eq!(name("my_app"), Ok("my_app".into()));
        assert_eq!(name("192.0.2.1"), Ok("192.0.2.1".into()));
        let long = format!("{}.{}", "a".repeat(63), "b".repeat(63));
        assert!(name(&long).is_ok());
        for wrong in ["", ".", "a..b", ".a", "a:80", "a/b", "*.a", "[::1]", "é", "a b", &"a".repeat(64)] {
            assert_eq!(name(wrong), Err(NotAHost), "{wrong}");
        }
        assert_eq!(name(&format!("{long}.{long}.a")), Err(NotAHost));
    }
}
