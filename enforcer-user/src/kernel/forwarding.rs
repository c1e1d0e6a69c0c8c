//! Whether an interface carries connections whose servers are behind this host.
//!
//! Only then what leaves it is watched: a server's SYN-ACK and acknowledgements take the place of the socket that is
//! not here. A bridge passes frames on by itself; else the kernel forwards where its settings let it.

use std::{fmt, fs};

use super::interface::Interface;

/// Where the servers are whose connections come over an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoints {
    /// On this host.
    Local,
    /// On this host, and behind it.
    Forwarded,
}

/// Settings that let packets which arrive on an interface be forwarded, below /proc/sys/net.
const SETTINGS: [(&str, &str); 3] = [("ipv4", "forwarding"), ("ipv6", "forwarding"), ("ipv6", "force_forwarding")];

impl Endpoints {
    /// Those of an interface, as it is set now in the network namespace of the calling thread.
    pub(super) fn of(interface: &Interface) -> Self {
        let is_on = |(family, setting): (&str, &str)| {
            // A setting that this kernel does not have is not on.
            let value = fs::read_to_string(format!("/proc/sys/net/{family}/conf/{}/{setting}", interface.name));
            value.is_ok_and(|value| value.trim() != "0")
        };
        if interface.is_bridged || SETTINGS.into_iter().any(is_on) { Self::Forwarded } else { Self::Local }
    }

    /// The words for them in tables and JSON; stable.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Forwarded => "local, forwarded",
        }
    }
}

impl fmt::Display for Endpoints {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bridge_and_its_ports_carry_the_connections_of_others() {
        let port =
            Interface { index: 0, name: "absent".to_owned(), program: None, is_bridged: true, has_ethernet: true };
        assert_eq!(Endpoints::of(&port).as_str(), "local, forwarded");
        assert_eq!(Endpoints::of(&Interface { is_bridged: false, ..port }), Endpoints::Local);
    }
}
