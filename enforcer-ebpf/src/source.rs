//! Where requests come from, and what becomes of sources that go on sending what is refused: first they are answered, then
//! reset, then met with silence, and at last kept out: their SYNs are dropped, for a time that grows.
//!
//! Only refusals on connections that exist are counted, so nobody can bring a penalty on the address of another. Nothing
//! here lets a request pass: it decides what a refusal costs, no more. So its numbers may be lost or miscounted by CPUs
//! that meet one source at once, and a source that gives way to others in its table begins anew.

use crate::abi::{Service, scope};
use crate::answer::SECOND;
use crate::wire::Tuple;

/// ns for which a source counts as one behind which registered keys are served.
pub const SERVED_NS: u64 = 60_000_000_000;
/// Most doublings of a penalty: one of a day has 47 bits, and must not wrap.
const DOUBLINGS: u32 = 16;

/// An address of either family: 16 bytes in network order in memory, an IPv4 address mapped (RFC 4291 §2.5.5.2).
pub type Address = [u64; 2];

/// The sources that are told apart: an IPv4 address or an IPv6 prefix, as wide as the service says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(C)]
pub struct Source {
    /// The first 64 bits of an IPv6 address, or an IPv4 address below 32 zeros, as a number; what is beyond the prefix is
    /// 0.
    pub prefix: u64,
    /// 4 or 6 in the lower half. In the upper half the number of the service that knows it so: what a source does to one
    /// service is no matter of another's.
    pub family: u64,
}

/// What is known of a source that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Record {
    /// When its refusals so far would have been few enough to be answered, CLOCK_BOOTTIME in ns (a theoretical arrival
    /// time, as in [`crate::limit`]).
    pub answered: u64,
    /// Likewise, to bring no penalty.
    pub tolerated: u64,
    /// When its penalty ends, CLOCK_BOOTTIME in ns; 0 if it never had one.
    pub until: u64,
    /// When a registered key was last served from it.
    pub served: u64,
    /// Refusals counted.
    pub refused: u64,
    /// Penalties that it had, one after another.
    pub strikes: u64,
}

/// What a refusal is met with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Level {
    /// What the service says.
    AsSet = 0,
    /// A RST at most.
    Reset = 1,
    /// Silence.
    Silence = 2,
}

impl Level {
    /// The level of this number.
    #[must_use]
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::AsSet,
            1 => Self::Reset,
            _ => Self::Silence,
        }
    }
}

impl Source {
    /// The source of a client's packets, as it has penalties: whatever host it asks for.
    #[must_use]
    #[inline(always)]
    pub const fn of(tuple: &Tuple, service: &Service) -> Self {
        let first = u64::from_be(tuple.source[0]);
        // An IPv4 address fills the first bytes in memory: the upper half.
        let source = if tuple.is_v6() { Self::six(first, service) } else { Self::four(first >> 32, service) };
        source.at_port(service)
    }

    /// It as the service knows it that its port leads to.
    #[must_use]
    #[inline(always)]
    pub const fn at_port(self, service: &Service) -> Self {
        let Self { prefix, family } = self;
        Self { prefix, family: scope::of_service(family & u32::MAX as u64, service.leader) }
    }

    /// The source that an address belongs to.
    #[must_use]
    #[inline(always)]
    pub const fn at(address: Address, service: &Service) -> Self {
        let [first, second] = [u64::from_be(address[0]), u64::from_be(address[1])];
        if first == 0 && second >> 32 == 0xffff {
            Self::four(second & 0xffff_ffff, service)
        } else {
            Self::six(first, service)
        }
    }

    #[inline(always)]
    const fn six(first: u64, service: &Service) -> Self {
        let bits = service.source_v6 & 63;
        let prefix = if bits == 0 { first } else { first & (u64::MAX << (64 - bits)) };
        Self { prefix, family: scope::of_service(6, service.number) }
    }

    #[inline(always)]
    const fn four(address: u64, service: &Service) -> Self {
        let bits = service.source_v4 & 31;
        let prefix = if bits == 0 { address } else { address & (0xffff_ffff << (32 - bits)) };
        Self { prefix, family: scope::of_service(4, service.number) }
    }

    /// Whether it is an IPv6 prefix.
    #[must_use]
    pub const fn is_v6(&self) -> bool {
        self.family as u32 == 6
    }

    /// [`Service::number`] of the service that knows it so.
    #[must_use]
    pub const fn service(&self) -> u32 {
        (self.family >> 32) as u32
    }
}

impl Record {
    /// Counts a refusal at `now` (CLOCK_BOOTTIME in ns), and says what it is met with.
    #[inline(always)]
    pub const fn refuse(&mut self, now: u64, service: &Service) -> Level {
        self.refused += 1;
        let too_many = exceeds(&mut self.tolerated, now, service.tolerated_per_second);
        let unanswered = exceeds(&mut self.answered, now, service.answers_per_second);
        if too_many {
            let shared = self.served != 0 && now.saturating_sub(self.served) < SERVED_NS;
            if service.penalty_ns != 0 && (!shared || service.flags & Service::PENALISE_SHARED != 0) {
                self.penalise(now, service);
            }
            return Level::Silence;
        }
        if unanswered { Level::Reset } else { Level::AsSet }
    }

    /// Begins a penalty, unless one goes on.
    #[inline(always)]
    pub const fn penalise(&mut self, now: u64, service: &Service) {
        if now < self.until {
            return;
        }
        // Who was good for as long as the longest penalty begins anew.
        if now - self.until > service.penalty_most_ns {
            self.strikes = 0;
        }
        let doublings = if self.strikes < DOUBLINGS as u64 { self.strikes as u32 } else { DOUBLINGS };
        let long = service.penalty_ns << doublings;
        let time = if long < service.penalty_most_ns { long } else { service.penalty_most_ns };
        self.until = now.saturating_add(time);
        self.strikes += 1;
        // When it ends, so has the flood that it was for.
        self.tolerated = 0;
    }
}

/// Counts one more at `now`; whether they are more than `rate` a second by then, and more than that at once. A rate of 0
/// is none.
#[inline(always)]
const fn exceeds(arrival: &mut u64, now: u64, rate: u32) -> bool {
    if rate == 0 {
        return false;
    }
    let begin = if *arrival > now { *arrival } else { now };
    if begin - now >= SECOND {
        return true;
    }
    *arrival = begin + SECOND / rate as u64;
    false
}

const _: () = {
    assert!(size_of::<Source>() == 16);
    assert!(size_of::<Record>() == 48);
};

#[cfg(test)]
mod tests {
    use super::{Level, Record, SECOND, SERVED_NS, Source};
    use crate::abi::Service;
    use crate::wire::Tuple;

    const RULES: Service = Service {
        answers_per_second: 10,
        tolerated_per_second: 100,
        penalty_ns: 10 * SECOND,
        penalty_most_ns: 60 * SECOND,
        ..Service::DEFAULT
    };
    const BEGIN: u64 = 1 << 40;

    fn at_once(record: &mut Record, now: u64, count: usize) -> Vec<Level> {
        (0..count).map(|_| record.refuse(now, &RULES)).collect()
    }

    #[test]
    fn many_refusals_are_answered_then_reset_then_met_with_silence_and_a_penalty() {
        let mut record = Record::default();
        let levels = at_once(&mut record, BEGIN, 101);
        let number = |level| levels.iter().filter(|found| **found == level).count();
        assert_eq!([Level::AsSet, Level::Reset, Level::Silence].map(number), [10, 90, 1]);
        assert_eq!(record.until, BEGIN + 10 * SECOND);
    }

    #[test]
    fn a_second_later_as_many_are_answered_again() {
        let mut record = Record::default();
        at_once(&mut record, BEGIN, 50);
        let levels = at_once(&mut record, BEGIN + SECOND, 11);
        assert_eq!(levels.iter().filter(|level| **level == Level::AsSet).count(), 10);
    }

    #[test]
    fn penalties_grow_up_to_a_bound_and_are_forgiven() {
        let mut record = Record::default();
        let mut now = BEGIN;
        let mut times = Vec::new();
        for _ in 0..5 {
            at_once(&mut record, now, 101);
            times.push((record.until - now) / SECOND);
            now = record.until + SECOND;
        }
        assert_eq!(times, [10, 20, 40, 60, 60]);
        now = record.until + 61 * SECOND;
        at_once(&mut record, now, 101);
        assert_eq!((record.until - now) / SECOND, 10);
    }

    #[test]
    fn a_source_with_registered_keys_behind_it_gets_no_penalty_unless_asked_for() {
        let mut record = Record { served: BEGIN - SECOND, ..Record::default() };
        assert_eq!(at_once(&mut record, BEGIN, 101)[100], Level::Silence);
        assert_eq!(record.until, 0);
        let later = BEGIN + SERVED_NS;
        at_once(&mut record, later, 101);
        assert_ne!(record.until, 0);
        let rules = Service { flags: Service::PENALISE_SHARED, ..RULES };
        let mut record = Record { served: BEGIN, ..Record::default() };
        for _ in 0..101 {
            record.refuse(BEGIN, &rules);
        }
        assert_ne!(record.until, 0);
    }

    #[test]
    fn no_rates_are_no_bounds() {
        let rules = Service { answers_per_second: 0, tolerated_per_second: 0, ..RULES };
        let mut record = Record::default();
        assert!((0..1000).all(|_| record.refuse(BEGIN, &rules) == Level::AsSet));
    }

    #[test]
    fn addresses_of_one_prefix_are_one_source() {
        let four = |address: [u8; 4]| Tuple { source: [u64::from(u32::from_ne_bytes(address)), 0], ..Tuple::default() };
        let all = Service { source_v4: 32, source_v6: 64, ..RULES };
        assert_ne!(Source::of(&four([10, 0, 0, 1]), &all), Source::of(&four([10, 0, 0, 2]), &all));
        assert_eq!(Source::of(&four([10, 0, 0, 1]), &all), Source { prefix: 0x0a00_0001, family: 4 });
        let wide = Service { source_v4: 24, ..RULES };
        assert_eq!(Source::of(&four([10, 0, 0, 1]), &wide), Source::of(&four([10, 0, 0, 2]), &wide));
        let six = |last: u8, host: u8| {
            let mut address = [0x20, 1, 0xd, 0xb8, 0, 0, 0, last, 0, 0, 0, 0, 0, 0, 0, host];
            address[15] = host;
            let (words, _) = address.as_chunks();
            let source = [u64::from_ne_bytes(words[0]), u64::from_ne_bytes(words[1])];
            Tuple { source, ports: 1 << 63, ..Tuple::default() }
        };
        assert_eq!(Source::of(&six(1, 1), &all), Source::of(&six(1, 2), &all));
        assert_ne!(Source::of(&six(1, 1), &all), Source::of(&six(2, 1), &all));
        let wide = Service { source_v6: 56, ..RULES };
        assert_eq!(Source::of(&six(1, 1), &wide), Source::of(&six(2, 1), &wide));
        for service in [&all, &wide, &Service { source_v4: 24, ..RULES }] {
            for tuple in [four([10, 1, 2, 3]), four([255, 255, 255, 255]), six(1, 2), six(255, 255)] {
                assert_eq!(Source::at(tuple.mapped_source(), service), Source::of(&tuple, service));
            }
        }
    }
}
