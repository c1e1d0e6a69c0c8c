//! The sources of refused requests: who is under a penalty, and how one ends before its time.
//!
//! Nothing of this is in the store: penalties are the program's own, and last as long as the pinned maps.

use enforcer_ebpf::source::{Record, Source};
use jiff::{SignedDuration, Timestamp};

use super::registry::{Error, Registry};
use crate::api::{EndedPenalty, PenalisedSource, Penalties, PenaltiesEnded, Refusal};
use crate::config::{Penalty, Settings};
use crate::kernel;
use crate::prefix::Prefix;

/// Of a source that the program may meet again, how it is called.
fn prefix(source: Source, penalty: &Penalty) -> Option<Prefix> {
    Prefix::of(source, penalty.ipv4.bits(), penalty.ipv6.bits())
}

/// What is told of a source, at `boot_ns` on the kernel's clock, which is `now`.
fn describe(prefix: Prefix, record: &Record, boot_ns: u64, now: Timestamp) -> PenalisedSource {
    let Record { answered: _, tolerated: _, until, served, refused, strikes } = *record;
    let time = |ns: u64| {
        let away = SignedDuration::from_nanos(
            (i128::from(ns) - i128::from(boot_ns)).clamp(i64::MIN.into(), i64::MAX.into()) as i64,
        );
        now.checked_add(away).unwrap_or(if ns > boot_ns { Timestamp::MAX } else { Timestamp::MIN })
    };
    PenalisedSource {
        source: prefix.to_string(),
        family: prefix.family(),
        refused,
        strikes,
        until: (until > boot_ns).then(|| time(until)),
        remaining_ns: until.saturating_sub(boot_ns),
        served: (served != 0).then(|| time(served)),
    }
}

impl Registry {
    /// The sources that are under a penalty, or all that are known, by address.
    pub(crate) fn penalties(&self, settings: &Settings, all: bool) -> Result<Penalties, Error> {
        let enabled = settings.penalises();
        let (boot_ns, now) = (kernel::now(), Timestamp::now());
        let known = self.tables.kernel().sources()?;
        let mut named: Vec<(Prefix, Record)> = known
            .into_iter()
            // Where they are off, the program does not ask for them.
            .map(|(source, record)| (source, Record { until: if enabled { record.until } else { 0 }, ..record }))
            .filter(|(_, record)| all || record.until > boot_ns)
            .filter_map(|(source, record)| Some((prefix(source, &settings.penalty)?, record)))
            .collect();
        named.sort_unstable_by_key(|(prefix, _)| *prefix);
        Ok(Penalties {
            enabled,
            sources: named.iter().map(|(prefix, record)| describe(*prefix, record, boot_ns, now)).collect(),
        })
    }

    /// How many sources are under a penalty.
    pub(super) fn count_penalties(&self) -> Result<u64, Error> {
        let kernel = self.tables.kernel();
        let boot_ns = kernel::now();
        // A full table is walked in 10 to 20 ms, which a scrape takes only where it must.
        if kernel.last_penalty()? <= boot_ns {
            return Ok(0);
        }
        Ok(kernel.sources()?.iter().filter(|(_, record)| record.until > boot_ns).count() as u64)
    }

    /// Ends the penalties of all sources that a prefix meets, or of all that have one.
    pub(crate) fn end_penalties(&mut self, penalty: &Penalty, wanted: Option<Prefix>) -> Result<PenaltiesEnded, Error> {
        let boot_ns = kernel::now();
        let kernel = self.tables.kernel_mut();
        let mut meant: Vec<(Prefix, Source, bool)> = kernel
            .sources()?
            .into_iter()
            .filter_map(|(source, record)| Some((prefix(source, penalty)?, source, record.until > boot_ns)))
            .filter(|(prefix, _, penalised)| match wanted {
                Some(wanted) => wanted.meets(*prefix),
                None => *penalised,
            })
            .collect();
        if let (Some(wanted), []) = (wanted, meant.as_slice()) {
            let message = format!("no request from {wanted} was refused of late");
            return Err(Error::NotFound(Refusal::of("source", message, "a source of `enforcer penalty ls --all`")));
        }
        meant.sort_unstable_by_key(|(prefix, ..)| *prefix);
        for (_, source, _) in &meant {
            kernel.forgive(*source)?;
        }
        let ended = |(prefix, _, changed): (Prefix, Source, bool)| EndedPenalty { source: prefix.to_string(), changed };
        Ok(PenaltiesEnded { sources: meant.into_iter().map(ended).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_the_kernel_are_told_as_times_of_day() {
        let second = 1_000_000_000;
        let boot_ns = 1_000 * second;
        let now = Timestamp::from_second(1_800_000_000).expect("a time");
        let record = Record {
            until: boot_ns + 40 * second,
            served: boot_ns - 7 * second,
            refused: 9,
            strikes: 3,
            ..Record::default()
        };
        let prefix: Prefix = "192.0.2.7".parse().expect("an address");
        let told = describe(prefix, &record, boot_ns, now);
        assert_eq!((told.source.as_str(), told.family, told.refused, told.strikes), ("192.0.2.7/32", 4, 9, 3));
        assert_eq!(told.until.map(Timestamp::as_second), Some(1_800_000_040));
        assert_eq!(told.remaining_ns, 40 * second);
        assert_eq!(told.served.map(Timestamp::as_second), Some(1_799_999_993));
        let over = describe(prefix, &record, record.until, now);
        assert_eq!((over.until, over.remaining_ns), (None, 0));
        assert_eq!(describe(prefix, &Record::default(), boot_ns, now).served, None);
    }
}
