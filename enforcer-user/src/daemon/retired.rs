//! Limits that no rules name any more, until nothing that was used of them counts. Pure: whoever calls has the clock.
//!
//! Limits that are taken away and come back go on where they were, so what was used of them outlives them: until their
//! longest window is over, when it would be nothing anyway. Then it is forgotten, lest the map of it fill up with what was.
//! No program can be charging it any more: rules that are gone are read by no packet that came a moment later.

use std::collections::{HashMap, HashSet};

/// Longer than a program runs that still has the rules which were before, in ns.
const MOMENT: u64 = 10_000_000_000;

/// [`enforcer_ebpf::abi::Scope::rule`] of limits, and ns after their last charge until nothing of it counts.
pub(super) type Scopes = HashMap<u32, u64>;

/// From when on each may be forgotten, in ns of CLOCK_BOOTTIME.
#[derive(Debug, Default)]
pub(super) struct Retired(HashMap<u32, u64>);

impl Retired {
    /// Takes note that rules with these limits do not hold from `now` on, but those that `held` has.
    pub(super) fn retire(&mut self, scopes: &Scopes, held: &Scopes, now: u64) {
        for (scope, longest) in scopes.iter().filter(|(scope, _)| !held.contains_key(scope)) {
            let due = now.saturating_add(*longest).saturating_add(MOMENT);
            let before = self.0.entry(*scope).or_default();
            *before = due.max(*before);
        }
    }

    /// Takes note that rules with these limits lie ready, or hold.
    pub(super) fn hold(&mut self, scopes: &Scopes) {
        self.0.retain(|scope, _| !scopes.contains_key(scope));
    }

    /// Those of which nothing counts.
    pub(super) fn due(&self, now: u64) -> HashSet<u32> {
        self.0.iter().filter(|(_, due)| **due <= now).map(|(scope, _)| *scope).collect()
    }

    /// Takes note that nothing is there any more of these.
    pub(super) fn forget(&mut self, scopes: &HashSet<u32>) {
        self.0.retain(|scope, _| !scopes.contains(scope));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000_000_000;

    fn scopes<const N: usize>(scopes: [u32; N]) -> Scopes {
        scopes.into_iter().map(|scope| (scope, HOUR)).collect()
    }

    #[test]
    fn what_was_used_of_limits_is_kept_until_their_longest_window_is_over() {
        let mut retired = Retired::default();
        retired.retire(&scopes([16, 17]), &scopes([17]), 5);
        assert_eq!(retired.due(5 + HOUR), HashSet::new());
        assert_eq!(retired.due(5 + HOUR + MOMENT), HashSet::from([16]));
        retired.forget(&HashSet::from([16]));
        assert_eq!(retired.due(u64::MAX), HashSet::new());
    }

    #[test]
    fn limits_that_come_back_are_kept_and_go_once_more_by_their_last_end() {
        let mut retired = Retired::default();
        retired.retire(&scopes([16, 17]), &scopes([]), 0);
        retired.hold(&scopes([16]));
        assert_eq!(retired.due(u64::MAX), HashSet::from([17]));
        retired.retire(&scopes([16]), &scopes([]), HOUR);
        assert_eq!(retired.due(HOUR + MOMENT), HashSet::from([17]));
        assert_eq!(retired.due(2 * HOUR + MOMENT), HashSet::from([16, 17]));
        // A shorter window that ends earlier does not shorten the wait for the longer.
        retired.retire(&HashMap::from([(16, 1)]), &scopes([]), HOUR);
        assert_eq!(retired.due(HOUR + MOMENT + 1), HashSet::from([17]));
    }
}
