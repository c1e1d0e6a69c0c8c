//! Prefixes as they lie in the program's tries, where an address finds the longest of them alone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use enforcer_ebpf::abi::PREFIXES;

use super::document::Exemption;
use crate::prefix::Prefix;

/// Where IPv4 addresses lie among those of IPv6 (RFC 4291 §2.5.5.2).
const MAPPED_BITS: u32 = 96;

/// An entry of a trie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Bits of the address that count; IPv4 addresses are mapped, so 96 more than theirs.
    pub bits: u32,
    /// In network order.
    pub address: [u8; 16],
    /// What its addresses have.
    pub value: u64,
}

/// The entries of [`enforcer_ebpf::abi::map::EXEMPT`]: for each prefix the exemptions that its addresses have, those of shorter prefixes
/// among them. `bits` has the number of each exemption, by its place.
#[must_use]
pub fn exempt(exemptions: &[Exemption], bits: &[u32]) -> Vec<Entry> {
    let named = exemptions.iter().zip(bits);
    entries(named.flat_map(|(one, &bit)| one.sources.iter().map(move |&source| (source, 1 << (bit & 63)))))
}

/// Whether the tries have room for the sources of a service's exemptions.
#[must_use]
pub fn have_room(exemptions: &[Exemption]) -> bool {
    // Another prefix may be needed for the addresses that IPv6 maps.
    exemptions.iter().map(|one| one.sources.len()).sum::<usize>() < PREFIXES as usize
}

/// For how many sources there is room, in words.
#[must_use]
pub fn room() -> String {
    format!("at most {}", PREFIXES - 1)
}

/// The entries of [`enforcer_ebpf::abi::map::PROXIES`], with the value 1; addresses that are none of these have the value 0
/// or no entry.
#[must_use]
pub fn proxies(prefixes: &[Prefix]) -> Vec<Entry> {
    entries(prefixes.iter().map(|&prefix| (prefix, 1)))
}

/// Entries by which an address has what it has by either of two lists.
#[must_use]
pub fn together(first: &[Entry], second: &[Entry]) -> Vec<Entry> {
    let by_place = |entries: &[Entry]| -> BTreeMap<(u32, u128), u64> {
        entries.iter().map(|entry| ((entry.bits, u128::from_be_bytes(entry.address)), entry.value)).collect()
    };
    let lists = [by_place(first), by_place(second)];
    let places: BTreeSet<(u32, u128)> = lists.iter().flat_map(BTreeMap::keys).copied().collect();
    let of = |list: &BTreeMap<(u32, u128), u64>, (bits, address): (u32, u128)| {
        let longest = |bits: u32| list.get(&(bits, address & u128::MAX.checked_shl(128 - bits).unwrap_or(0)));
        (0..=bits).rev().find_map(longest).copied().unwrap_or(0)
    };
    let entry = |place: (u32, u128)| {
        let value = lists.iter().fold(0, |value, list| value | of(list, place));
        Entry { bits: place.0, address: place.1.to_be_bytes(), value }
    };
    places.into_iter().map(entry).collect()
}

fn entries(prefixes: impl Iterator<Item = (Prefix, u64)>) -> Vec<Entry> {
    let mut own: BTreeMap<Prefix, u64> = BTreeMap::new();
    for (prefix, bits) in prefixes {
        *own.entry(prefix).or_default() |= bits;
    }
    // An IPv6 prefix that contains the mapped addresses must not speak for those of IPv4.
    let four = Prefix::new(IpAddr::from([0; 4]), 0);
    if let Some(four) = four.filter(|_| own.keys().any(|prefix| prefix.family() == 6 && contains_mapped(*prefix))) {
        own.entry(four).or_default();
    }
    let longer = |inner: Prefix| (0..=inner.bits()).filter_map(move |bits| Prefix::new(inner.address(), bits));
    let all = own.keys().map(|&prefix| {
        let value = longer(prefix).filter_map(|outer| own.get(&outer)).fold(0, |value, bits| value | bits);
        entry(prefix, value)
    });
    all.collect()
}

/// Whether the mapped IPv4 addresses lie in an IPv6 prefix.
fn contains_mapped(prefix: Prefix) -> bool {
    let mapped = IpAddr::from([0, 0, 0, 0, 0, 0xffff, 0, 0]);
    Prefix::new(mapped, prefix.bits()) == Some(prefix)
}

fn entry(prefix: Prefix, value: u64) -> Entry {
    let bits = u32::from(prefix.bits());
    match prefix.address() {
        IpAddr::V4(address) => Entry { bits: bits + MAPPED_BITS, address: address.to_ipv6_mapped().octets(), value },
        IpAddr::V6(address) => Entry { bits, address: address.octets(), value },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().expect(text)
    }

    /// What the kernel's trie finds for an address.
    fn found(entries: &[Entry], address: IpAddr) -> u64 {
        let octets = match address {
            IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
            IpAddr::V6(address) => address.octets(),
        };
        let whole = u128::from_be_bytes(octets);
        let is_in = |entry: &Entry| {
            let other = u128::from_be_bytes(entry.address);
            entry.bits == 0 || (whole ^ other) >> (128 - entry.bits) == 0
        };
        let longest = entries.iter().filter(|entry| is_in(entry)).max_by_key(|entry| entry.bits);
        longest.map_or(0, |entry| entry.value)
    }

    #[test]
    fn all_addresses_of_one_family_are_none_of_the_other() {
        let entries = proxies(&[prefix("::/0")]);
        assert_eq!(found(&entries, "2001:db8::1".parse().expect("six")), 1);
        assert_eq!(found(&entries, "192.0.2.1".parse().expect("four")), 0);
        assert_eq!(proxies(&[prefix("2001:db8::/32")]).len(), 1);
    }

    fn address() -> impl Strategy<Value = IpAddr> {
        // Few bits, so that prefixes meet.
        prop_oneof![
            any::<[bool; 3]>().prop_map(|[a, b, c]| IpAddr::from([u8::from(a) << 7, 0, u8::from(b), u8::from(c)])),
            any::<[bool; 3]>().prop_map(|[a, b, c]| IpAddr::from([
                u16::from(a) << 15,
                0,
                0,
                0,
                0,
                u16::from(b) * 0xffff,
                0,
                u16::from(c)
            ])),
        ]
    }

    fn prefixes() -> impl Strategy<Value = Prefix> {
        let any = (address(), 0u8..=128).prop_map(|(address, bits)| {
            let most = if address.is_ipv4() { 32 } else { 128 };
            Prefix::new(address, bits % (most + 1)).expect("few enough bits")
        });
        any.prop_filter("files have no mapped ones", |prefix| !prefix.is_mapped())
    }

    proptest! {
        #[test]
        fn two_lists_together_say_what_both_say(
            first in prop::collection::vec(prefixes(), 0..6),
            second in prop::collection::vec(prefixes(), 0..6),
            addresses in prop::collection::vec(address(), 8),
        ) {
            let [first, second] = [(first, 1), (second, 2)].map(|(prefixes, bit)| {
                entries(prefixes.into_iter().map(|prefix| (prefix, bit)))
            });
            let both = together(&first, &second);
            for address in addresses {
                prop_assert_eq!(found(&both, address), found(&first, address) | found(&second, address), "{}", address);
            }
        }

        #[test]
        fn an_address_finds_what_all_its_prefixes_say(
            list in prop::collection::vec((prefixes(), 0u32..4), 0..8),
            addresses in prop::collection::vec(address(), 8),
        ) {
            let entries = entries(list.iter().map(|&(prefix, bit)| (prefix, 1 << bit)));
            for address in addresses.into_iter().filter(|address| match address {
                // A mapped address on the wire is an IPv4 one to the program.
                IpAddr::V6(address) => address.to_ipv4_mapped().is_none(),
                IpAddr::V4(_) => true,
            }) {
                let host = Prefix::new(address, if address.is_ipv4() { 32 } else { 128 }).expect("a host");
                let expected = list.iter().filter(|(prefix, _)| prefix.meets(host)).fold(0, |all, (_, bit)| all | 1 << bit);
                prop_assert_eq!(found(&entries, address), expected, "{}", address);
            }
        }
    }
}
