//! A request's charge: all limits that apply to it, of all scopes, or none.
//!
//! What applies is written down as [`Claim`]s; then [`Charge::step`] does a bounded amount of work at a time, one attempt
//! on one limit, so that one `bpf_loop` callback in the kernel and one `while` on the host drive the same code. All limits
//! are tested before the first is charged. Two requests that race for the last place of two limits at once may both be
//! refused; more than the limit never passes.
//!
//! Behind a charge that succeeded come the limits that refuse nobody: those of policies that observe, and candidates. Of
//! each such set it is noted whether it would have refused.
//!
//! Of a request that is refused, [`Charge::penalize`] then counts it at each limit that has no room for it and
//! [penalizes](Limit::PENALIZES); of one that sets which refuse nobody would have refused, at those of theirs.

use crate::abi::{LIMITS, Limit, Policy, Scope, scope};
use crate::limit::{ATTEMPTS, Cell, Cells, Moment, Outcome, attempt, penalize, refund, would_pass};
use crate::opaque::{opaque, zero};

/// Most claims of one request; a power of two.
pub const CLAIMS: usize = 8;

/// Where the buckets of a claim are; numbers, since they lie in a map.
pub mod table {
    /// With the principal whose index is the subject's first word.
    pub const PRINCIPAL: u32 = 0;
    /// In [`crate::abi::map::BUCKETS`].
    pub const NAMED: u32 = 1;
    /// In [`crate::abi::map::SOURCE_BUCKETS`].
    pub const SOURCE: u32 = 2;
}

/// Limits that a request is charged to, and by whom they are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Claim {
    /// A [`table`].
    pub table: u32,
    /// Policy slot.
    pub policy: u32,
    /// Whose buckets.
    pub scope: Scope,
}

/// What a step is about: buckets and limits that the caller looks up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which claim.
    pub claim: usize,
    /// Whether it is about the candidate's buckets.
    pub candidate: bool,
    /// Which limit.
    pub limit: usize,
}

impl Place {
    #[inline(always)]
    const fn of(index: u64) -> Self {
        Self {
            claim: (index / PLACES) as usize & (CLAIMS - 1),
            candidate: index & LIMITS as u64 != 0,
            limit: index as usize & (LIMITS - 1),
        }
    }
}

/// A charge under way.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Charge {
    /// What applies; those behind `len` are ignored.
    claims: [Claim; CLAIMS],
    /// What was charged, for a refund.
    tokens: [u64; CLAIMS * LIMITS],
    now: Moment,
    cost: u64,
    // Whole words: on the BPF stack two halves that are set together would be stored across an alignment.
    len: u64,
    stage: u64,
    /// Claim, whether its candidate, limit; see [`Charge::place`].
    index: u64,
    tries: u64,
    /// Whether the limit under way is its policy's last. Not on the stack, which has no room.
    is_last: u64,
    /// The index that refused, or [`NONE`].
    refused: u64,
    /// Two bits for each claim: whether it observes, and whether it has a candidate.
    shadows: u64,
    /// Likewise: whether that would have refused.
    would_refuse: u64,
    /// Likewise: whether limits of it that penalize are to be looked at, if the request is refused; then, which are left.
    owed: u64,
    /// Bits [`LACKS`] and [`RESUMED`].
    lack: u64,
}

/// No limit refused.
const NONE: u64 = u64::MAX;
/// It has ended where something was not there.
const LACKS: u64 = 1;
/// It has gone on behind that.
const RESUMED: u64 = 2;
const TEST: u64 = 0;
const CHARGE: u64 = 1;
const REFUND: u64 = 2;
/// Limits that refuse nobody: tested, then charged.
const SHADOW_TEST: u64 = 3;
const SHADOW_CHARGE: u64 = 4;

/// Places of a claim: its own limits, and its candidate's.
const PLACES: u64 = 2 * LIMITS as u64;

/// The number of the lowest bit of 16 that is set, by its parts: BPF has no instruction for it.
#[inline(always)]
fn lowest(bits: u64) -> u64 {
    let (mut bits, mut number) = (bits, 0);
    for step in [8, 4, 2, 1] {
        if bits & ((1 << step) - 1) == 0 {
            bits >>= step;
            number += step;
        }
    }
    number
}

impl Default for Charge {
    fn default() -> Self {
        Self {
            claims: [Claim::default(); CLAIMS],
            tokens: [0; CLAIMS * LIMITS],
            now: Moment::default(),
            cost: 0,
            len: 0,
            stage: TEST,
            index: 0,
            tries: 0,
            is_last: 0,
            refused: NONE,
            shadows: 0,
            would_refuse: 0,
            owed: 0,
            lack: 0,
        }
    }
}

impl Charge {
    /// Steps after which a charge has come to an end.
    pub const MAX_STEPS: u32 = (CLAIMS * LIMITS) as u32 * (2 * (ATTEMPTS + 2) + 8);

    /// Calls of [`Charge::penalize`] after which it has come to an end.
    pub const MAX_PENALTIES: u32 = 2 * (CLAIMS * LIMITS) as u32 * (ATTEMPTS + 1);

    /// Begins a charge of `cost` requests (1–[`crate::limit::MAX_COST`]) at `now` (ns of CLOCK_BOOTTIME), to nothing yet.
    #[inline(always)]
    pub fn begin(&mut self, now: u64, cost: u64) {
        self.now.clock.boot = now;
        self.cost = cost;
        self.len = zero();
        self.stage = TEST;
        self.index = zero();
        self.tries = zero();
        self.refused = NONE;
        self.shadows = zero();
        self.would_refuse = zero();
        self.owed = zero();
        self.lack = zero();
    }

    /// Says what the time of day is, for limits that follow the calendar: [`Clock::offset`](crate::limit::Clock::offset). Whoever drives the steps
    /// does, before the first.
    #[inline(always)]
    pub fn set_offset(&mut self, offset: u64) {
        self.now.clock.offset = offset;
    }

    /// Adds a claim; a policy slot of 0 adds none. `false` if there is no room, which a caller never meets.
    #[inline(always)]
    pub fn claim(&mut self, claim: Claim) -> bool {
        if claim.policy == 0 {
            return true;
        }
        if self.len >= CLAIMS as u64 {
            return false;
        }
        let place = &mut self.claims[self.len as usize & (CLAIMS - 1)];
        place.table = claim.table;
        place.policy = claim.policy;
        place.scope.rule = claim.scope.rule;
        place.scope.subject[0] = claim.scope.subject[0];
        place.scope.subject[1] = claim.scope.subject[1];
        self.len += 1;
        true
    }

    /// How many claims there are.
    #[must_use]
    #[inline(always)]
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether nothing is charged.
    #[must_use]
    #[inline(always)]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A claim by its number.
    #[must_use]
    #[inline(always)]
    pub const fn at(&self, claim: usize) -> &Claim {
        &self.claims[claim & (CLAIMS - 1)]
    }

    /// Likewise, to be changed.
    #[inline(always)]
    pub const fn at_mut(&mut self, claim: usize) -> &mut Claim {
        &mut self.claims[claim & (CLAIMS - 1)]
    }

    /// The claim that refused; where none did, the first.
    #[must_use]
    #[inline(always)]
    pub const fn refused(&self) -> &Claim {
        self.at(match self.result() {
            Ok(()) => 0,
            Err(place) => place.claim,
        })
    }

    /// Requests that this one counts as.
    #[must_use]
    #[inline(always)]
    pub const fn cost(&self) -> u32 {
        self.cost as u32
    }

    /// What the next step is about.
    #[must_use]
    #[inline(always)]
    pub const fn place(&self) -> Place {
        Place::of(self.index)
    }

    /// One attempt on the limit at [`Charge::place`], whose state is `cells`; `policy` is the claim's, or its candidate
    /// where the place is that. `false` ends the charge.
    #[inline(always)]
    pub fn step<C: Cell>(&mut self, cells: &Cells<C>, policy: &Policy) -> bool {
        let Place { claim, candidate, limit: number } = self.place();
        // Its own mask: below, the number is compared, and in a branch that is never taken nothing would be left of what
        // the verifier of kernels before 6.8 knows of it.
        let limit = &policy.limits[opaque(number as u32) as usize & (LIMITS - 1)];
        self.now.enter(limit, cells);
        let len = if policy.len > LIMITS as u32 { LIMITS as u32 } else { policy.len };
        self.is_last = u64::from(number as u32 + 1 >= len);
        let is_shadow = self.stage >= SHADOW_TEST;
        // A policy that observes is met among the shadows.
        let is_over = number as u32 >= len || (!is_shadow && policy.flags & Policy::OBSERVE != 0);
        match self.stage {
            TEST | CHARGE if is_over => self.next_claim(),
            TEST if would_pass(cells, limit, &self.now, self.cost) => self.next_limit(),
            TEST => {
                self.refused = self.index;
                false
            }
            CHARGE => match attempt(cells, limit, &self.now, self.cost) {
                Outcome::Charged(token) => {
                    self.tokens[(claim * LIMITS + number) & (CLAIMS * LIMITS - 1)] = token;
                    self.tries = 0;
                    self.next_limit()
                }
                Outcome::Raced if self.tries < u64::from(ATTEMPTS) => {
                    self.tries += 1;
                    true
                }
                Outcome::Raced | Outcome::Refused => {
                    self.refused = self.index;
                    self.stage = REFUND;
                    self.tries = 0;
                    self.back()
                }
            },
            REFUND => {
                let token = self.tokens[(claim * LIMITS + number) & (CLAIMS * LIMITS - 1)];
                if !is_over && !refund(cells, limit, token, self.cost) && self.tries < u64::from(ATTEMPTS) {
                    self.tries += 1;
                    return true;
                }
                self.tries = 0;
                self.back()
            }
            SHADOW_TEST if number as u32 >= len => {
                self.index &= !(LIMITS as u64 - 1);
                self.stage = SHADOW_CHARGE;
                true
            }
            SHADOW_TEST if would_pass(cells, limit, &self.now, self.cost) => {
                self.index += 1;
                // Behind the last limit there is no place of the same set.
                if self.index & (LIMITS as u64 - 1) == 0 {
                    self.index -= LIMITS as u64;
                    self.stage = SHADOW_CHARGE;
                }
                true
            }
            SHADOW_TEST => {
                self.would_refuse |= Self::bit(claim, candidate);
                self.next_shadow()
            }
            _ if number as u32 >= len => self.next_shadow(),
            _ => {
                // Who was faster took a place that was there before: a shadow need not be exact.
                if matches!(attempt(cells, limit, &self.now, self.cost), Outcome::Raced)
                    && self.tries < u64::from(ATTEMPTS)
                {
                    self.tries += 1;
                    return true;
                }
                self.tries = 0;
                self.index += 1;
                if self.index & (LIMITS as u64 - 1) == 0 {
                    self.index -= 1;
                    return self.next_shadow();
                }
                true
            }
        }
    }

    const fn bit(claim: usize, candidate: bool) -> u64 {
        1 << (2 * claim as u64 + candidate as u64)
    }

    /// Looks at the policy of a claim, before the first step: which of its sets refuse nobody, whether there is more than
    /// one limit, and whether any of them penalizes.
    #[inline(always)]
    pub fn look_at(&mut self, claim: usize, policy: &Policy) {
        if self.len == 1 && policy.len <= 1 {
            // One limit is tested by charging it.
            self.stage = CHARGE;
        }
        if policy.flags & Policy::OBSERVE != 0 {
            self.shadows |= Self::bit(claim, false);
        } else {
            let [first, second, third, fourth] = &policy.limits;
            if (first.flags | second.flags | third.flags | fourth.flags) & Limit::PENALIZES != 0 {
                self.owed |= Self::bit(claim, false);
            }
        }
        if policy.candidate != 0 {
            self.shadows |= Self::bit(claim, true);
        }
    }

    /// Goes on behind the limit of this place.
    #[inline(always)]
    fn next_limit(&mut self) -> bool {
        if self.is_last != 0 {
            return self.next_claim();
        }
        self.index += 1;
        true
    }

    /// Goes on behind the claim of this place, and sees whether the stage is over.
    #[inline(always)]
    fn next_claim(&mut self) -> bool {
        self.index = (self.index / PLACES + 1) * PLACES;
        if self.index < self.len * PLACES {
            return true;
        }
        if self.stage == TEST {
            self.stage = CHARGE;
            self.index = 0;
            return true;
        }
        self.first_shadow(0)
    }

    /// Goes back to the place before, for a refund; `false` before the first.
    #[inline(always)]
    fn back(&mut self) -> bool {
        if self.index == 0 {
            return false;
        }
        self.index -= 1;
        if self.index & LIMITS as u64 != 0 {
            self.index -= LIMITS as u64;
        }
        true
    }

    /// Goes on behind the shadow of this place.
    #[inline(always)]
    fn next_shadow(&mut self) -> bool {
        self.first_shadow(self.index / LIMITS as u64 + 1)
    }

    /// Goes to the first shadow from this set on; `false` if there is none.
    #[inline(always)]
    fn first_shadow(&mut self, set: u64) -> bool {
        if set >= 2 * CLAIMS as u64 {
            return false;
        }
        let left = self.shadows >> set;
        if left == 0 {
            return false;
        }
        self.stage = SHADOW_TEST;
        self.index = (set + lowest(left)) * LIMITS as u64;
        true
    }

    /// Ends a charge whose limits or buckets cannot be found: refused, unless it has come to those that refuse nobody.
    #[inline(always)]
    pub fn fail(&mut self) {
        self.lack |= LACKS;
        // What is being given back is refused already, and by what only counts nothing is.
        if self.stage < REFUND {
            self.refused = self.index;
        }
    }

    /// Whether it has ended where something was not there, for the first time: once the buckets of all claims have been made
    /// it can go on.
    #[must_use]
    #[inline(always)]
    pub const fn lacks(&self) -> bool {
        self.lack == LACKS
    }

    /// Goes on where it has ended so, with the next step.
    #[inline(always)]
    pub fn resume(&mut self) {
        self.lack = RESUMED;
        if self.stage < REFUND {
            self.refused = NONE;
        }
    }

    /// Goes on behind the last step, with [`Charge::penalize`]; `false` if no limit can have to count the request yet.
    #[inline(always)]
    pub fn settle(&mut self) -> bool {
        if self.refused == NONE {
            self.owed = self.would_refuse;
        } else if self.lack & LACKS != 0 {
            self.owed = zero();
        }
        self.tries = zero();
        // No limit of the calendar counts what it refuses.
        self.now.leave_calendar();
        self.next_owed()
    }

    /// One attempt to have the limit at [`Charge::place`] count the request; `cells` are its state and `policy` as in
    /// [`Charge::step`], `None` where they are not there. `false` ends it.
    ///
    /// Where many share a bucket none counts it: one of them could keep all others out.
    #[inline(always)]
    pub fn penalize<C: Cell>(&mut self, place: Option<(&Cells<C>, &Policy)>) -> bool {
        let Place { claim, limit: number, .. } = self.place();
        let is_shared = self.at(claim).scope.subject[1] == scope::OVERFLOW;
        if let Some((cells, policy)) = place
            && !is_shared
        {
            let limit = &policy.limits[opaque(number as u32) as usize & (LIMITS - 1)];
            if limit.flags & Limit::PENALIZES != 0
                && !would_pass(cells, limit, &self.now, self.cost)
                && !penalize(cells, limit, &self.now, self.cost)
                && self.tries < u64::from(ATTEMPTS)
            {
                self.tries += 1;
                return true;
            }
        }
        self.tries = 0;
        self.index += 1;
        if self.index & (LIMITS as u64 - 1) != 0 {
            return true;
        }
        // The lowest bit is that of the set that is done with.
        self.owed &= self.owed.wrapping_sub(1);
        self.next_owed()
    }

    /// Goes to the first limit of the next set.
    #[inline(always)]
    fn next_owed(&mut self) -> bool {
        self.index = lowest(self.owed) * LIMITS as u64;
        self.owed != 0
    }

    /// What it came to, once a step has ended it.
    ///
    /// # Errors
    /// The limit that refused.
    #[inline(always)]
    pub const fn result(&self) -> Result<(), Place> {
        if self.refused == NONE { Ok(()) } else { Err(Place::of(self.refused)) }
    }

    /// Whether anything is charged that refuses nobody.
    #[must_use]
    #[inline(always)]
    pub const fn has_shadows(&self) -> bool {
        self.shadows != 0
    }

    /// Whether the limits of a claim that observes, or its candidate's, would have refused.
    #[must_use]
    #[inline(always)]
    pub const fn would_refuse(&self, claim: usize, candidate: bool) -> bool {
        self.would_refuse & Self::bit(claim, candidate) != 0
    }
}
