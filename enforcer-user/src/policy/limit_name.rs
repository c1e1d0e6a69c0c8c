//! What a limit is called in answers, events and metrics.

use std::fmt;

use enforcer_ebpf::abi;

/// A limit's name: 1 to [`LimitName::MAX_LEN`] of `A-Z a-z 0-9 . _ -`. Those that an operator gives have no capitals and
/// no dots; those of plans are what plans are called.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct LimitName([u8; Self::MAX_LEN]);

impl LimitName {
    /// Longest name in bytes.
    pub const MAX_LEN: usize = size_of::<abi::Name>();

    /// Of a principal's own limits.
    pub const DEFAULT: Self = Self::of("default");
    /// Of the limits that all principals of a tenant share.
    pub const TENANT: Self = Self::of("tenant");
    /// Of the limits of each source.
    pub const SOURCE: Self = Self::of("source");
    /// Of the limits of all requests of a service together.
    pub const SERVICE: Self = Self::of("service");
    /// Of the limits of a source's bad keys.
    pub const GUESS: Self = Self::of("guess");
    /// Of the limits of a source's CORS preflights.
    pub const PREFLIGHT: Self = Self::of("preflight");
    /// Of the limits of a source's requests without a key.
    pub const UNKEYED: Self = Self::of("unkeyed");
    /// Of the limits of a key that is not registered.
    pub const UNREGISTERED: Self = Self::of("unregistered");
    /// Of a public path's limits.
    pub const PUBLIC: Self = Self::of("public");
    /// Of a route's own limits.
    pub const ROUTE: Self = Self::of("route");
    /// Of a key's own limits.
    pub const KEY: Self = Self::of("key");
    /// Of the limits of a principal's client id.
    pub const CLIENT: Self = Self::of("client");

    const fn of(text: &str) -> Self {
        let mut bytes = [0; Self::MAX_LEN];
        let mut at = 0;
        while at < text.len() {
            bytes[at] = text.as_bytes()[at];
            at += 1;
        }
        Self(bytes)
    }

    /// The name that a text is; `None` if it cannot be one.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let fits = (1..=Self::MAX_LEN).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        fits.then(|| Self::of(text))
    }

    /// The name of a plan's limits: the plan's, or [`LimitName::DEFAULT`] where that is too long.
    #[must_use]
    pub fn of_plan(plan: &str) -> Self {
        Self::new(plan).unwrap_or(Self::DEFAULT)
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let len = self.0.iter().position(|byte| *byte == 0).unwrap_or(Self::MAX_LEN);
        std::str::from_utf8(&self.0[..len]).expect("ASCII")
    }

    /// The name of the limit of this number, from 1, where several have it; the first has it as it is.
    pub(super) fn numbered(&self, number: usize) -> Self {
        if number == 1 {
            return *self;
        }
        let suffix = format!("-{number}");
        let mut text = self.as_str().to_owned();
        text.truncate(Self::MAX_LEN - suffix.len());
        Self::of(&(text + &suffix))
    }

    /// The form in which it lies in the map.
    #[must_use]
    pub fn compile(&self) -> abi::Name {
        let (words, _) = self.0.as_chunks();
        [u64::from_le_bytes(words[0]), u64::from_le_bytes(words[1])]
    }
}

impl fmt::Display for LimitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for LimitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_1_to_16_harmless_characters() {
        for name in ["a", "per-minute_2", "Gold.2026", "sixteen-letters-"] {
            assert_eq!(LimitName::new(name).expect(name).as_str(), name);
        }
        for text in ["", "seventeen-letters", "a b", "a\"", "a\\", "é", "a;b", "\0"] {
            assert_eq!(LimitName::new(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_plans_name_that_is_too_long_is_not_cut_to_another_plans() {
        assert_eq!(LimitName::of_plan("gold").as_str(), "gold");
        assert_eq!(LimitName::of_plan("gold-for-early-customers"), LimitName::DEFAULT);
    }

    #[test]
    fn numbers_stand_behind_what_fits_before_them() {
        assert_eq!(LimitName::DEFAULT.numbered(1), LimitName::DEFAULT);
        assert_eq!(LimitName::DEFAULT.numbered(2).as_str(), "default-2");
        assert_eq!(LimitName::of("sixteen-letters-").numbered(4).as_str(), "sixteen-letter-4");
    }

    #[test]
    fn the_first_letter_is_the_lowest_byte() {
        assert_eq!(LimitName::of("ab").compile(), [0x6261, 0]);
        assert_eq!(LimitName::of("sixteen-letters-").compile()[1] >> 56, u64::from(b'-'));
    }
}
