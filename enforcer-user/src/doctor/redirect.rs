//! Firewall rules that bring packets for one port to another: the hook sees the port that a packet was sent to, the
//! application the one that a rule gave it.

use std::collections::HashMap;
use std::fs;
use std::io;

use netlink_packet_core::NlasIterator;
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::netlink;

// include/uapi/linux/netfilter/{nfnetlink,nf_tables,nf_tables_compat}.h
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_GETRULE: u16 = 7;
/// Size of `struct nfgenmsg`.
const HEADER: usize = 4;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFT_NAT_DNAT: u32 = 1;
const NFT_PAYLOAD_TRANSPORT_HEADER: u32 = 2;
const NFT_CMP_EQ: u32 = 0;
/// Where a TCP or UDP header holds the destination port.
const PORT_OFFSET: u32 = 2;

/// A rule that changes where packets go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Redirect {
    /// `table`, and `chain` in it.
    pub(super) table: String,
    pub(super) chain: String,
    /// The one port that the rule is for, where it says so in a way that is understood here.
    pub(super) from: Option<u16>,
    /// The port that packets come to.
    pub(super) to: Target,
}

/// The port that a rule gives to packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// The one that they had.
    Same,
    Port(u16),
    /// One that is not understood here.
    Unknown,
}

impl Redirect {
    /// Whether it brings packets for another port to `port`; `None` if that cannot be told.
    pub(super) fn leads_to(&self, port: u16, guarded: &[u16]) -> Option<bool> {
        match (self.to, self.from) {
            (Target::Same, _) => Some(false),
            (Target::Port(to), _) if to != port => Some(false),
            (_, Some(from)) if guarded.contains(&from) => Some(false),
            (Target::Port(_), Some(_)) => Some(true),
            (Target::Port(_), None) | (Target::Unknown, _) => None,
        }
    }
}

/// The nftables rules of this network namespace that redirect, `iptables-nft`'s among them; none without nftables.
///
/// # Errors
/// A failed call; it needs CAP_NET_ADMIN.
pub(super) fn all() -> io::Result<Vec<Redirect>> {
    let mut redirects = Vec::new();
    let kind = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETRULE;
    let listed = netlink::dump(NETLINK_NETFILTER, kind, &[0; HEADER], |_, payload| redirects.extend(parse(payload)));
    match listed {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EPROTONOSUPPORT | libc::EOPNOTSUPP)) => {
        }
        listed => listed?,
    }
    Ok(redirects)
}

/// Whether legacy iptables has a table of this network namespace that can redirect.
///
/// # Errors
/// A list that is there cannot be read; it needs root.
pub(super) fn legacy_nat() -> io::Result<bool> {
    for path in ["/proc/thread-self/net/ip_tables_names", "/proc/thread-self/net/ip6_tables_names"] {
        match fs::read_to_string(path) {
            Ok(names) if has_nat(&names) => return Ok(true),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

fn has_nat(names: &str) -> bool {
    // TPROXY lies in `mangle`, the other two targets that redirect in `nat`.
    names.lines().any(|name| matches!(name, "nat" | "mangle"))
}

/// Reads one rule; `None` for one that does not redirect.
fn parse(payload: &[u8]) -> Option<Redirect> {
    let attributes = payload.get(HEADER..)?;
    let (mut table, mut chain, mut expressions) = (String::new(), String::new(), Vec::new());
    for attribute in NlasIterator::new(attributes).flatten() {
        match attribute.kind() {
            NFTA_RULE_TABLE => table = netlink::text(attribute.value()),
            NFTA_RULE_CHAIN => chain = netlink::text(attribute.value()),
            NFTA_RULE_EXPRESSIONS => expressions = attribute.value().to_vec(),
            _ => {}
        }
    }
    let mut rule = Rule::default();
    for expression in NlasIterator::new(&expressions[..]).flatten() {
        rule.step(expression.value());
    }
    Some(Redirect { table, chain, from: rule.from, to: rule.to? })
}

/// What a rule's expressions have said so far.
#[derive(Default)]
struct Rule {
    /// The register that holds the packet's destination port.
    port_in: Option<u32>,
    /// Ports in registers.
    values: HashMap<u32, u16>,
    from: Option<u16>,
    to: Option<Target>,
}

impl Rule {
    fn step(&mut self, expression: &[u8]) {
        let (mut name, mut data) = (String::new(), Vec::new());
        for attribute in NlasIterator::new(expression).flatten() {
            match attribute.kind() {
                NFTA_EXPR_NAME => name = netlink::text(attribute.value()),
                NFTA_EXPR_DATA => data = attribute.value().to_vec(),
                _ => {}
            }
        }
        let fields = Fields(&data);
        match name.as_str() {
            // Register, base, offset and length.
            "payload" => {
                let place = [2, 3, 4].map(|kind| fields.number(kind));
                let is_port = place == [Some(NFT_PAYLOAD_TRANSPORT_HEADER), Some(PORT_OFFSET), Some(2)];
                self.port_in = fields.number(1).filter(|_| is_port).or(self.port_in);
            }
            // Register, operation and value.
            "cmp" if fields.number(1) == self.port_in && fields.number(2) == Some(NFT_CMP_EQ) => {
                self.from = fields.port(3);
            }
            // Register and value.
            "immediate" => {
                if let (Some(register), Some(port)) = (fields.number(1), fields.port(2)) {
                    self.values.insert(register, port);
                }
            }
            "redir" => self.to = Some(self.target(fields.number(1))),
            "tproxy" => self.to = Some(self.target(fields.number(3))),
            "nat" if fields.number(1) == Some(NFT_NAT_DNAT) => self.to = Some(self.target(fields.number(5))),
            // A target of iptables, whose data is its own.
            "target" if matches!(fields.text(1).as_str(), "DNAT" | "REDIRECT" | "TPROXY") => {
                self.to = Some(Target::Unknown);
            }
            _ => {}
        }
    }

    fn target(&self, register: Option<u32>) -> Target {
        match register {
            None => Target::Same,
            Some(register) => self.values.get(&register).map_or(Target::Unknown, |port| Target::Port(*port)),
        }
    }
}

/// The attributes of an expression; its numbers are in network order.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn value<T>(&self, kind: u16, read: impl FnOnce(&[u8]) -> Option<T>) -> Option<T> {
        let attribute = NlasIterator::new(self.0).flatten().find(|attribute| attribute.kind() == kind)?;
        read(attribute.value())
    }

    fn number(&self, kind: u16) -> Option<u32> {
        self.value(kind, |value| value.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)))
    }

    fn text(&self, kind: u16) -> String {
        self.value(kind, |value| Some(netlink::text(value))).unwrap_or_default()
    }

    /// A port as a value of two bytes.
    fn port(&self, kind: u16) -> Option<u16> {
        self.value(kind, |value| {
            let data = NlasIterator::new(value).flatten().find(|attribute| attribute.kind() == NFTA_DATA_VALUE)?;
            let bytes: [u8; 2] = data.value().try_into().ok()?;
            Some(u16::from_be_bytes(bytes))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::attribute;

    fn number(kind: u16, value: u32) -> Vec<u8> {
        attribute(kind, &value.to_be_bytes())
    }

    fn port(kind: u16, port: u16) -> Vec<u8> {
        attribute(kind, &attribute(NFTA_DATA_VALUE, &port.to_be_bytes()))
    }

    fn rule(expressions: &[(&str, Vec<Vec<u8>>)]) -> Option<Redirect> {
        let expressions: Vec<u8> = expressions
            .iter()
            .flat_map(|(name, fields)| {
                let data = attribute(NFTA_EXPR_DATA, &fields.concat());
                attribute(1, &[attribute(NFTA_EXPR_NAME, name.as_bytes()), data].concat())
            })
            .collect();
        let mut payload = vec![0; HEADER];
        payload.extend(attribute(NFTA_RULE_TABLE, b"nat\0"));
        payload.extend(attribute(NFTA_RULE_CHAIN, b"prerouting\0"));
        payload.extend(attribute(NFTA_RULE_EXPRESSIONS, &expressions));
        parse(&payload)
    }

    fn for_port(wanted: u16) -> Vec<(&'static str, Vec<Vec<u8>>)> {
        vec![
            ("payload", vec![number(1, 1), number(2, NFT_PAYLOAD_TRANSPORT_HEADER), number(3, 2), number(4, 2)]),
            ("cmp", vec![number(1, 1), number(2, NFT_CMP_EQ), port(3, wanted)]),
        ]
    }

    fn found(from: Option<u16>, to: Target) -> Option<Redirect> {
        Some(Redirect { table: "nat".into(), chain: "prerouting".into(), from, to })
    }

    #[test]
    fn a_redirection_is_read_with_both_its_ports() {
        let mut expressions = for_port(80);
        expressions.push(("immediate", vec![number(1, 9), port(2, 8000)]));
        expressions.push(("redir", vec![number(1, 9)]));
        assert_eq!(rule(&expressions), found(Some(80), Target::Port(8000)));
        expressions.pop();
        expressions.push(("nat", vec![number(1, NFT_NAT_DNAT), number(5, 9)]));
        assert_eq!(rule(&expressions), found(Some(80), Target::Port(8000)));
        assert_eq!(rule(&[("nat", vec![number(1, NFT_NAT_DNAT), number(3, 9)])]), found(None, Target::Same));
        assert_eq!(rule(&[("redir", vec![number(1, 9)])]), found(None, Target::Unknown));
        assert_eq!(rule(&[("target", vec![attribute(1, b"DNAT\0")])]), found(None, Target::Unknown));
    }

    #[test]
    fn other_rules_are_no_redirections() {
        assert_eq!(rule(&for_port(80)), None);
        assert_eq!(rule(&[("nat", vec![number(1, 0), number(5, 9)])]), None, "SNAT");
        assert_eq!(rule(&[("target", vec![attribute(1, b"MASQUERADE\0")])]), None);
    }

    #[test]
    fn only_what_brings_another_port_to_a_guarded_one_leads_past_the_guard() {
        let redirect = |from, to| Redirect { table: String::new(), chain: String::new(), from, to };
        let leads = |from, to| redirect(from, to).leads_to(8000, &[8000, 8001]);
        assert_eq!(leads(Some(80), Target::Port(8000)), Some(true));
        assert_eq!(leads(Some(8001), Target::Port(8000)), Some(false), "it was judged as a packet to 8001");
        assert_eq!(leads(Some(80), Target::Port(9000)), Some(false));
        assert_eq!(leads(None, Target::Same), Some(false));
        assert_eq!(leads(None, Target::Port(8000)), None);
        assert_eq!(leads(None, Target::Unknown), None);
    }

    #[test]
    fn only_the_tables_that_can_redirect_matter() {
        assert!(has_nat("filter\nnat\n") && has_nat("mangle\n"));
        assert!(!has_nat("filter\nraw\n") && !has_nat(""));
    }

    #[test]
    fn the_rules_of_this_namespace_can_be_listed_with_rights() {
        if let Err(error) = all() {
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
        }
    }
}
