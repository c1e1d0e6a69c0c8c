//! Addresses as operators write them, and the sources that the program tells apart by them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use enforcer_ebpf::source::Source;

/// An address, or all addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix {
    /// Its first address.
    address: IpAddr,
    /// At most 32 or 128.
    bits: u8,
}

/// A text that is neither an address nor a prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither an address nor a prefix; accepted: {ACCEPTED}", ACCEPTED = Prefix::ACCEPTED)]
pub struct Malformed(String);

impl Prefix {
    /// What is read as one.
    pub const ACCEPTED: &str =
        "an address such as 192.0.2.7 or 2001:db8::7, or a prefix such as 192.0.2.0/24 or 2001:db8::/64";

    /// All addresses that share the first `bits` of `address`; `None` if it has fewer.
    #[must_use]
    pub fn new(address: IpAddr, bits: u8) -> Option<Self> {
        let address = match address {
            IpAddr::V4(address) if bits <= 32 => Ipv4Addr::from_bits(address.to_bits() & high(bits, 32) as u32).into(),
            IpAddr::V6(address) if bits <= 128 => Ipv6Addr::from_bits(address.to_bits() & high(bits, 128)).into(),
            _ => return None,
        };
        Some(Self { address, bits })
    }

    /// What the program calls a source where this many bits make one; `None` if it looks at fewer bits by now, and so
    /// never meets this source again.
    #[must_use]
    pub fn of(source: Source, ipv4: u8, ipv6: u8) -> Option<Self> {
        let (address, bits): (IpAddr, u8) = match source.is_v6() {
            false => (Ipv4Addr::from_bits(source.prefix as u32).into(), ipv4),
            true => (Ipv6Addr::from_bits(u128::from(source.prefix) << 64).into(), ipv6),
        };
        Self::new(address, bits).filter(|prefix| prefix.address == address)
    }

    /// A prefix that says what it is: an address alone, or one with no more bits than its length counts, and none of IPv6
    /// that stands for IPv4.
    ///
    /// # Errors
    /// What is wrong with `text`, and what would be right.
    pub(crate) fn exact(text: &str) -> Result<Self, (String, String)> {
        match text.parse::<Self>() {
            Err(_) => Err((format!("{text:?} is neither an address nor a prefix"), Self::ACCEPTED.to_owned())),
            // A prefix with more address than it says is one whose length was mistyped.
            Ok(prefix) if !text.split('/').next().is_some_and(|text| text.parse() == Ok(prefix.address)) => {
                Err((format!("{text:?} has an address longer than its prefix"), prefix.to_string()))
            }
            Ok(prefix) if prefix.is_mapped() => {
                let accepted = "the addresses as those of IPv4, such as 192.0.2.0/24".to_owned();
                Err((format!("{text:?} is of IPv4 addresses"), accepted))
            }
            Ok(prefix) => Ok(prefix),
        }
    }

    /// Whether any address is in both.
    #[must_use]
    pub fn meets(self, other: Self) -> bool {
        let bits = self.bits.min(other.bits);
        self.address.is_ipv4() == other.address.is_ipv4()
            && Self::new(self.address, bits) == Self::new(other.address, bits)
    }

    /// Its first address.
    #[must_use]
    pub const fn address(self) -> IpAddr {
        self.address
    }

    /// How many bits of an address count, at most 32 or 128.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.bits
    }

    /// Whether it holds IPv4 addresses alone, written as those of IPv6 that they are mapped to.
    #[must_use]
    pub fn is_mapped(self) -> bool {
        matches!(self.address, IpAddr::V6(address) if self.bits >= 96 && address.to_ipv4_mapped().is_some())
    }

    /// 4 or 6.
    #[must_use]
    pub const fn family(self) -> u8 {
        if self.address.is_ipv4() { 4 } else { 6 }
    }
}

/// The first `bits` of `width` set.
fn high(bits: u8, width: u8) -> u128 {
    if bits == 0 { 0 } else { (u128::MAX << (width - bits)) & (u128::MAX >> (128 - width)) }
}

impl FromStr for Prefix {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let read = || {
            let address: IpAddr = address.parse().ok()?;
            let bits = match bits {
                Some(bits) if bits.bytes().all(|byte| byte.is_ascii_digit()) => bits.parse().ok()?,
                Some(_) => return None,
                None => {
                    if address.is_ipv4() {
                        32
                    } else {
                        128
                    }
                }
            };
            Self::new(address, bits)
        };
        read().ok_or_else(|| Malformed(text.to_owned()))
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().expect(text)
    }

    #[test]
    fn is_read_with_and_without_its_length() {
        for (text, shown) in [
            ("192.0.2.7", "192.0.2.7/32"),
            ("192.0.2.7/24", "192.0.2.0/24"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:db8::7", "2001:db8::7/128"),
            ("2001:db8:0:1::7/64", "2001:db8:0:1::/64"),
            ("2001:db8::/0", "::/0"),
        ] {
            assert_eq!(prefix(text).to_string(), shown);
        }
        for wrong in ["", "192.0.2", "192.0.2.7/33", "192.0.2.7/", "192.0.2.7/+8", "2001:db8::/129", "::1/-1", "alice"]
        {
            let error = wrong.parse::<Prefix>().expect_err(wrong).to_string();
            assert!(error.starts_with(&format!("{wrong:?} is neither an address nor a prefix; accepted: ")), "{error}");
        }
    }

    #[test]
    fn meets_what_it_contains_and_what_contains_it() {
        let wide = prefix("192.0.2.0/24");
        assert!(wide.meets(prefix("192.0.2.9")) && prefix("192.0.2.9").meets(wide) && wide.meets(wide));
        assert!(!wide.meets(prefix("192.0.3.0")) && !wide.meets(prefix("::/0")));
        assert!(prefix("::/0").meets(prefix("2001:db8::/64")));
    }

    #[test]
    fn a_source_is_shown_as_wide_as_it_is() {
        let four = Source { prefix: 0xc000_0200, family: 4 };
        assert_eq!(Prefix::of(four, 24, 64), Some(prefix("192.0.2.0/24")));
        assert_eq!(Prefix::of(four, 32, 64), Some(prefix("192.0.2.0/32")));
        let six = Source { prefix: 0x2001_0db8_0000_0001, family: 6 };
        assert_eq!(Prefix::of(six, 32, 64), Some(prefix("2001:db8:0:1::/64")));
        assert_eq!((prefix("::/0").family(), prefix("0.0.0.0/0").family()), (6, 4));
    }

    #[test]
    fn a_source_that_is_narrower_than_those_of_now_is_none() {
        assert_eq!(Prefix::of(Source { prefix: 0xc000_0207, family: 4 }, 24, 64), None);
        assert_eq!(Prefix::of(Source { prefix: 0x2001_0db8_0000_0001, family: 6 }, 32, 56), None);
    }
}
