//! The sources of refused requests: who is under a penalty, and how one ends before its time.
//!
//! Nothing of this is in the store: penalties are the program's own, and last as long as the pinned maps.

use enforcer_ebpf::source::{Record, Source};
use jiff::{SignedDuration, Timestamp};

use super::registry::{Error, Registry};
use crate::api::{EndedPenalty, PenalisedSource, Penalties, PenaltiesEnded, Refusal};
use crate::config::{Guarded, Penalty, Settings};
use crate::kernel;
use crate::prefix::Prefix;

/// What is told of a source, at `boot_ns` on the kernel's clock, which is `now`.
fn describe(service: &str, prefix: Prefix, record: &Record, boot_ns: u64, now: Timestamp) -> PenalisedSource {
    let Record { answered: _, tolerated: _, until, served, refused, strikes } = *record;
    let time = |ns: u64| {
        let away = SignedDuration::from_nanos(
            (i128::from(ns) - i128::from(boot_ns)).clamp(i64::MIN.into(), i64::MAX.into()) as i64,
        );
        now.checked_add(away).unwrap_or(if ns > boot_ns { Timestamp::MAX } else { Timestamp::MIN })
    };
    PenalisedSource {
        service: service.to_owned(),
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
    /// The service that knows a source so, and what the source is called there; `None` if it is not met again.
    fn known_by<'s>(&self, settings: &'s Settings, source: Source) -> Option<(&'s Guarded, Prefix)> {
        let (name, _) = self.tables.seats().iter().find(|(_, seat)| seat.number == source.service())?;
        let guarded = settings.service(name)?;
        let Penalty { ipv4, ipv6, .. } = guarded.penalty;
        Some((guarded, Prefix::of(source, ipv4.bits(), ipv6.bits())?))
    }

    /// The sources that are under a penalty, or all that are known, by service and address.
    pub(crate) fn penalties(&self, settings: &Settings, all: bool) -> Result<Penalties, Error> {
        let (boot_ns, now) = (kernel::now(), Timestamp::now());
        let known = self.tables.kernel().sources()?.into_iter();
        let mut named: Vec<(&str, Prefix, Record)> = known
            .filter_map(|(source, record)| {
                let (guarded, prefix) = self.known_by(settings, source)?;
                // Where they are off, the program does not ask for them.
                let until = if guarded.penalises() { record.until } else { 0 };
                Some((guarded.name.as_str(), prefix, Record { until, ..record }))
            })
            .filter(|(_, _, record)| all || record.until > boot_ns)
            .collect();
        named.sort_unstable_by_key(|(service, prefix, _)| (*service, *prefix));
        let sources = named.iter();
        Ok(Penalties {
            enabled: settings.services.iter().any(Guarded::penalises),
            sources: sources
                .map(|(service, prefix, record)| describe(service, *prefix, record, boot_ns, now))
                .collect(),
        })
    }

    /// How many sources are under a penalty, of each service that there are penalties for.
    pub(super) fn count_penalties(&self, settings: &Settings) -> Result<u64, Error> {
        let kernel = self.tables.kernel();
        let boot_ns = kernel::now();
        // A full table is walked in 10 to 20 ms, which a scrape takes only where it must.
        if !settings.services.iter().any(Guarded::penalises) || kernel.last_penalty()? <= boot_ns {
            return Ok(0);
        }
        let penalised = kernel.sources()?.into_iter().filter(|(_, record)| record.until > boot_ns);
        let is_kept_out = |source| self.known_by(settings, source).is_some_and(|(guarded, _)| guarded.penalises());
        Ok(penalised.filter(|(source, _)| is_kept_out(*source)).count() as u64)
    }

    /// Ends the penalties of all sources that a prefix meets, or of all that have one; in one service, or in all.
    pub(crate) fn end_penalties(
        &mut self,
        settings: &Settings,
        service: Option<&str>,
        wanted: Option<Prefix>,
    ) -> Result<PenaltiesEnded, Error> {
        if let Some(name) = service.filter(|name| settings.service(name).is_none()) {
            return Err(super::no_service(settings, name));
        }
        let boot_ns = kernel::now();
        let known = self.tables.kernel().sources()?.into_iter();
        let mut meant: Vec<(&str, Prefix, Source, bool)> = known
            .filter_map(|(source, record)| {
                let (guarded, prefix) = self.known_by(settings, source)?;
                Some((guarded.name.as_str(), prefix, source, record.until > boot_ns))
            })
            .filter(|(name, ..)| service.is_none_or(|service| service == *name))
            .filter(|(_, prefix, _, penalised)| match wanted {
                Some(wanted) => wanted.meets(*prefix),
                None => *penalised,
            })
            .collect();
        if let (Some(wanted), []) = (wanted, meant.as_slice()) {
            let message = format!("no request from {wanted} was refused of late");
            return Err(Error::NotFound(Refusal::of("source", message, "a source of `enforcer penalty ls --all`")));
        }
        meant.sort_unstable_by_key(|(service, prefix, ..)| (*service, *prefix));
        for (_, _, source, _) in &meant {
            self.tables.kernel_mut().forgive(*source)?;
        }
        let ended = |(service, prefix, _, changed): (&str, Prefix, Source, bool)| EndedPenalty {
            service: service.to_owned(),
            source: prefix.to_string(),
            changed,
        };
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
        let told = describe("api", prefix, &record, boot_ns, now);
        assert_eq!((told.source.as_str(), told.family, told.refused, told.strikes), ("192.0.2.7/32", 4, 9, 3));
        assert_eq!(told.until.map(Timestamp::as_second), Some(1_800_000_040));
        assert_eq!(told.remaining_ns, 40 * second);
        assert_eq!(told.served.map(Timestamp::as_second), Some(1_799_999_993));
        let over = describe("api", prefix, &record, record.until, now);
        assert_eq!((over.until, over.remaining_ns), (None, 0));
        assert_eq!(describe("api", prefix, &Record::default(), boot_ns, now).served, None);
    }
}
