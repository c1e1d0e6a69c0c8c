//! Which policy lies in which slot of the map POLICIES. Pure: it decides, the caller writes.
//!
//! A slot that a principal names is never changed. Principals with equal policies share one, so that a hundred thousand
//! of them under one limit need one slot. A slot that nobody names any more rests for [`REST`], because a CPU may have
//! read its number just before; then the one that has rested longest is used again.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use enforcer_ebpf::abi::Policy;

/// How long a freed slot rests. The program runs for microseconds; this is a margin for any delay of a CPU.
pub(super) const REST: Duration = Duration::from_secs(1);

/// The allotment of slots 1 to `capacity` − 1.
#[derive(Debug)]
pub(super) struct Slots {
    capacity: u32,
    /// Slots that principals name: their content and by how many they are named.
    named: HashMap<u32, (Arc<Policy>, u64)>,
    /// A slot with this content that more principals may share.
    shared: HashMap<Arc<Policy>, u32>,
    /// Slots that nobody names, longest free first.
    resting: VecDeque<(u32, Instant)>,
    /// No slot from here on was named yet, except those in `named` and in `ahead`.
    fresh: u32,
    /// Slots from `fresh` on that rest: an earlier daemon had named them.
    ahead: HashSet<u32>,
}

/// A slot for a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) number: u32,
    /// Whether the policy must be written into it before a principal may name it.
    pub(super) write: bool,
}

impl Slots {
    pub(super) fn new(capacity: u32) -> Self {
        Self {
            capacity,
            named: HashMap::new(),
            shared: HashMap::new(),
            resting: VecDeque::new(),
            fresh: 1,
            ahead: HashSet::new(),
        }
    }

    /// Makes room for as many policies more, lest it be made again and again while they come.
    pub(super) fn reserve(&mut self, policies: usize) {
        self.named.reserve(policies);
        self.shared.reserve(policies);
    }

    /// What a slot holds that something names.
    pub(super) fn held(&self, number: u32) -> Option<&Policy> {
        self.named.get(&number).map(|(held, _)| &**held)
    }

    /// Takes note that one more principal names `number`, which holds `policy`.
    pub(super) fn adopt(&mut self, number: u32, policy: &Policy) {
        if let Some((_, principals)) = self.named.get_mut(&number) {
            *principals += 1;
            return;
        }
        let policy = Arc::new(*policy);
        self.named.insert(number, (Arc::clone(&policy), 1));
        self.shared.entry(policy).or_insert(number);
    }

    /// A slot for one more principal under `policy`; `None` if all are taken or rest.
    pub(super) fn acquire(&mut self, policy: &Policy, now: Instant) -> Option<Slot> {
        if let Some(&number) = self.shared.get(policy)
            && let Some((_, principals)) = self.named.get_mut(&number)
        {
            *principals += 1;
            return Some(Slot { number, write: false });
        }
        let number = self.unused(now)?;
        let policy = Arc::new(*policy);
        self.named.insert(number, (Arc::clone(&policy), 1));
        self.shared.insert(policy, number);
        Some(Slot { number, write: true })
    }

    fn unused(&mut self, now: Instant) -> Option<u32> {
        while self.named.contains_key(&self.fresh) || self.ahead.remove(&self.fresh) {
            self.fresh += 1;
        }
        if self.fresh < self.capacity {
            self.fresh += 1;
            return Some(self.fresh - 1);
        }
        let (number, since) = *self.resting.front()?;
        if now.saturating_duration_since(since) < REST {
            return None;
        }
        self.resting.pop_front();
        Some(number)
    }

    /// Takes note that one principal less names `number`.
    pub(super) fn release(&mut self, number: u32, now: Instant) {
        let Some((content, principals)) = self.named.get_mut(&number) else { return };
        *principals = principals.saturating_sub(1);
        if *principals > 0 {
            return;
        }
        let content = Arc::clone(content);
        self.named.remove(&number);
        if self.shared.get(&content) == Some(&number) {
            self.shared.remove(&content);
        }
        self.resting.push_back((number, now));
        if number >= self.fresh {
            self.ahead.insert(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{LimitName, Limits};

    fn policy(text: &str) -> Policy {
        text.parse::<Limits>().expect("a limit").compile(LimitName::DEFAULT)
    }

    fn number(slots: &mut Slots, text: &str, now: Instant) -> Option<u32> {
        slots.acquire(&policy(text), now).map(|slot| slot.number)
    }

    #[test]
    fn equal_policies_share_a_slot_and_others_do_not() {
        let (mut slots, now) = (Slots::new(10), Instant::now());
        assert_eq!(slots.acquire(&policy("1/second"), now), Some(Slot { number: 1, write: true }));
        assert_eq!(slots.acquire(&policy("1/second"), now), Some(Slot { number: 1, write: false }));
        assert_eq!(slots.acquire(&policy("1/second algo=fixed"), now), Some(Slot { number: 2, write: true }));
        slots.release(1, now);
        assert!(slots.named.contains_key(&1), "another principal names it still");
        slots.release(1, now);
        assert!(!slots.named.contains_key(&1));
        assert_eq!(slots.acquire(&policy("1/second"), now), Some(Slot { number: 3, write: true }));
    }

    #[test]
    fn a_freed_slot_rests_and_the_longest_free_comes_first() {
        let (mut slots, start) = (Slots::new(3), Instant::now());
        assert_eq!(number(&mut slots, "1/second", start), Some(1));
        assert_eq!(number(&mut slots, "2/second", start), Some(2));
        assert_eq!(number(&mut slots, "3/second", start), None, "0 is never given out, and 1 and 2 are taken");
        slots.release(2, start);
        slots.release(1, start + REST / 2);
        assert_eq!(number(&mut slots, "3/second", start + REST / 2), None);
        assert_eq!(number(&mut slots, "3/second", start + REST), Some(2));
        assert_eq!(number(&mut slots, "4/second", start + REST), None);
        assert_eq!(number(&mut slots, "4/second", start + 2 * REST), Some(1));
    }

    #[test]
    fn what_an_earlier_daemon_wrote_is_kept_and_not_overwritten() {
        let (mut slots, now) = (Slots::new(5), Instant::now());
        slots.adopt(2, &policy("1/second"));
        slots.adopt(2, &policy("1/second"));
        slots.adopt(3, &policy("1/second"));
        assert_eq!(slots.held(2), Some(&policy("1/second")));
        assert_eq!(number(&mut slots, "1/second", now), Some(2));
        assert_eq!(number(&mut slots, "5/second", now), Some(1));
        assert_eq!(number(&mut slots, "6/second", now), Some(4));
        slots.release(3, now);
        assert_eq!(number(&mut slots, "7/second", now), None, "3 rests");
        assert_eq!(number(&mut slots, "7/second", now + REST), Some(3));
    }

    #[test]
    fn what_an_earlier_daemon_wrote_rests_too_once_it_is_freed() {
        let (mut slots, now) = (Slots::new(4), Instant::now());
        slots.adopt(2, &policy("1/second"));
        slots.release(2, now);
        assert_eq!(number(&mut slots, "5/second", now), Some(1));
        assert_eq!(number(&mut slots, "6/second", now), Some(3));
        assert_eq!(number(&mut slots, "7/second", now), None, "2 rests");
        assert_eq!(number(&mut slots, "7/second", now + REST), Some(2));
    }
}
