//! What a test registers: services, keys, principals and their policies, as the daemon would write them.

use std::collections::BTreeMap;

use enforcer_ebpf::abi::{Key, KeyTag, LIMITS, Limit, Policy, Service};
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

    /// Puts `principal` under these limits.
    #[must_use]
    pub fn with_limits(mut self, principal: u32, limits: &[Limit]) -> Self {
        let mut policy = Policy { limits: [Limit::default(); LIMITS], len: limits.len() as u32, flags: Policy::IN_USE };
        policy.limits[..limits.len()].copy_from_slice(limits);
        self.policies.insert(principal, policy);
        self
    }
}
