//! What the daemon tells about itself, its keys and their use; it changes nothing.

use std::collections::{HashMap, HashSet};

use enforcer_ebpf::abi::{self, Bucket, KeyTag, Meter, Scope, scope};
use enforcer_ebpf::limit::{self, Clock};
use enforcer_ebpf::verdict::{Count, Event, Malformation, Reason};
use jiff::{SignedDuration, Timestamp};

use super::answering;
use super::reaper::tally::Tally;
use super::registry::{Error, Registry, select};
use super::rulebook::Tenant;
use crate::api::{
    Attachment, Counts, Key, KeyLimits, KeyShown, KeysShown, Limits, MapFill, PrincipalLimits, RuleUsage,
    ServiceStatus, SharedLimits, Status, Totals,
};
use crate::config::{Guarded, Metrics, OnRefuse, Settings};
use crate::metrics::Snapshot;
use crate::name::Selector;
use crate::policy::LimitName;
use crate::{credential, kernel, policy, store};

pub(super) fn counts(meter: &Meter) -> Counts {
    let Meter { allowed, limited, denied, would_refuse, .. } = *meter;
    Counts { allowed, limited, denied, would_refuse }
}

/// What a key is good for now.
fn state(row: &store::Key, now: Timestamp) -> &'static str {
    match (row.not_before, row.expires) {
        _ if row.disabled => "disabled",
        (_, Some(expires)) if expires <= now => "expired",
        (Some(not_before), _) if not_before > now => "early",
        _ => "good",
    }
}

/// A key of a principal with this limit and these counts.
pub(super) fn listed(row: store::Key, limit: String, counts: Counts, now: Timestamp) -> Key {
    Key {
        id: credential::id(row.tag),
        tag: credential::tag_hex(row.tag),
        state: state(&row, now).to_owned(),
        name: row.name,
        label: row.label,
        enabled: !row.disabled,
        not_before: row.not_before,
        expires: row.expires,
        limit,
        own_limit: row.limits.as_ref().map(ToString::to_string),
        created: row.created,
        counts,
    }
}

/// What was counted, by [`Count::index`].
type Counters = [u64; abi::TOTALS as usize];

/// A service and its totals.
fn service(guarded: &Guarded, totals: Totals) -> ServiceStatus {
    let Guarded { name, ports, hosts, on_refuse, mode, head_timeout, max_open_heads, .. } = guarded;
    let words = |reason: Reason, word: OnRefuse| (reason.as_str().to_owned(), word.as_str().to_owned());
    let abi::Service { max_head, max_fields, max_target, max_body, .. } = guarded.service();
    ServiceStatus {
        name: name.clone(),
        ports: ports.clone(),
        hosts: hosts.iter().map(ToString::to_string).collect(),
        mode: mode.as_str().to_owned(),
        on_refuse: on_refuse.usual().as_str().to_owned(),
        on_refuse_by: on_refuse.exceptions().iter().map(|(reason, word)| words(*reason, *word)).collect(),
        head_timeout_ns: head_timeout.ns(),
        max_open_heads: max_open_heads.get(),
        max_head,
        max_fields,
        max_target,
        max_body,
        penalties: guarded.penalises(),
        totals,
    }
}

/// The totals by verdict and by reason.
fn totals(counters: &Counters) -> Totals {
    let count = |count: Count| counters.get(count.index() as usize).copied().unwrap_or(0);
    let reasons =
        |kind: fn(Reason) -> Count| Reason::ALL.iter().map(move |&reason| (reason.as_str(), count(kind(reason))));
    let named = |(word, count): (&str, u64)| (word.to_owned(), count);
    Totals {
        allowed: count(Count::Event(Event::Allowed)),
        refused: reasons(Count::Refused).map(|(_, count)| count).sum(),
        would_refuse: reasons(Count::WouldRefuse).map(|(_, count)| count).sum(),
        refused_by: reasons(Count::Refused).map(named).collect(),
        would_refuse_by: reasons(Count::WouldRefuse).map(named).collect(),
        malformed_by: Malformation::ALL
            .iter()
            .map(|&kind| named((kind.as_str(), count(Count::Malformed(kind)))))
            .collect(),
        events: Event::ALL.iter().map(|&event| named((event.as_str(), count(Count::Event(event))))).collect(),
    }
}

/// The rules of limits and what is left of them, at `boot_ns` on the kernel's clock, which is `now`.
fn rules(said: &policy::Limits, buckets: &[Bucket], boot_ns: u64, now: Timestamp) -> Vec<RuleUsage> {
    let policy = said.compile(LimitName::DEFAULT);
    let limits = policy.limits.iter().zip(buckets);
    let clock = Clock { boot: boot_ns, offset: (now.as_nanosecond() as u64).wrapping_sub(boot_ns) };
    let usage = |(rule, (limit, bucket)): (&crate::policy::Rule, (&abi::Limit, &abi::Bucket))| {
        let limit::Usage { used, remaining, reset, retry } = limit::usage(bucket, limit, clock);
        let later = SignedDuration::from_nanos(i64::try_from(reset).unwrap_or(i64::MAX));
        RuleUsage {
            rule: rule.to_string(),
            algorithm: rule.method.as_str().to_owned(),
            count: rule.count,
            window_seconds: rule.window(),
            used,
            remaining,
            reset_ns: reset,
            reset: now.checked_add(later).unwrap_or(Timestamp::MAX),
            retry_ns: (retry != u64::MAX).then_some(retry),
        }
    };
    said.rules().iter().zip(limits).map(usage).collect()
}

impl Registry {
    /// Whether the maps and the store can be read.
    pub(crate) fn probe(&self) -> Result<(), Error> {
        self.store.probe()?;
        self.tables.kernel().totals(0)?;
        Ok(())
    }

    /// The keys that a selector names, with all that holds for them.
    pub(crate) fn show_keys(&self, selector: &Selector) -> Result<KeysShown, Error> {
        let rows = select(&self.store, selector)?;
        let Some(first) = rows.first() else { return Ok(KeysShown { keys: Vec::new() }) };
        // A selector names keys of one principal.
        let principal = first.name.clone();
        let (boot_ns, now) = (kernel::now(), Timestamp::now());
        let (said, placed) = self.stance(&principal, now)?;
        let meter = self.tables.meter(placed.index)?;
        let all = self.store.selected(&Selector { name: Some(principal), id: None })?.by_name;
        let good: Vec<KeyTag> = all.iter().filter(|row| state(row, now) == "good").map(|row| row.tag).collect();
        let mut keys = Vec::with_capacity(rows.len());
        for row in rows {
            let own_rules = match &row.limits {
                Some(limits) => rules(limits, &self.tables.buckets_of_key(row.tag)?.limits, boot_ns, now),
                None => Vec::new(),
            };
            keys.push(KeyShown {
                plan: said.plan().map(str::to_owned),
                tenant: said.tenant.clone(),
                beside: good.iter().filter(|tag| **tag != row.tag).map(|tag| credential::id(*tag)).collect(),
                rules: rules(&placed.limits, &meter.buckets.limits, boot_ns, now),
                own_rules,
                key: listed(row, placed.limits.to_string(), counts(&meter), now),
            });
        }
        Ok(KeysShown { keys })
    }

    /// The limits of one principal, of a tenant with its principals, or of all, and what is left of them. Where a principal
    /// and a tenant have one name, it is the principal's.
    pub(crate) fn limits(&self, name: Option<&str>) -> Result<Limits, Error> {
        let groups = self.on_trial().map_or(&self.groups, |trial| &trial.groups);
        let mut rows = match name.map(|name| (name, self.principal(name))) {
            None => self.principals()?,
            Some((tenant, Err(Error::NotFound(_)))) if groups.tenants.contains_key(tenant) => {
                let mut all = self.principals()?;
                all.retain(|principal| principal.tenant.as_deref() == Some(tenant));
                all
            }
            Some((_, principal)) => vec![principal?],
        };
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        let keys = self.store.keys_by_principal()?;
        let (boot_ns, now) = (kernel::now(), Timestamp::now());
        let mut own: HashMap<u32, Vec<KeyLimits>> = HashMap::new();
        for key in self.store.limited_keys()? {
            let Some(limits) = &key.limits else { continue };
            let buckets = self.tables.buckets_of_key(key.tag)?;
            own.entry(key.principal).or_default().push(KeyLimits {
                id: credential::id(key.tag),
                label: key.label,
                limit: limits.to_string(),
                rules: rules(limits, &buckets.limits, boot_ns, now),
            });
        }
        // Those of the principals, or the one that was asked for.
        let of_rows = rows.iter().filter_map(|row| row.tenant.as_deref());
        let wanted = of_rows.chain(name.filter(|_| rows.is_empty())).collect::<HashSet<_>>();
        let mut tenants = Vec::new();
        for (tenant, (limits, Tenant { scope, .. })) in &groups.tenants {
            if name.is_some() && !wanted.contains(tenant.as_str()) {
                continue;
            }
            let buckets = self.tables.kernel().buckets(Scope { rule: u64::from(*scope), subject: [0; 2] })?;
            tenants.push(SharedLimits {
                name: tenant.clone(),
                limit: limits.to_string(),
                rules: rules(limits, &buckets.unwrap_or_default().limits, boot_ns, now),
            });
        }
        let mut principals = Vec::with_capacity(rows.len());
        for principal in rows {
            let meter = self.tables.meter(principal.index)?;
            principals.push(PrincipalLimits {
                limit: principal.limits.to_string(),
                rules: rules(&principal.limits, &meter.buckets.limits, boot_ns, now),
                keys: keys.get(&principal.index).copied().unwrap_or(0),
                own: own.remove(&principal.index).unwrap_or_default(),
                counts: counts(&meter),
                tenant: principal.tenant,
                name: principal.name,
            });
        }
        let mut services = Vec::new();
        for (service, (limits, number)) in groups.ceilings.iter().filter(|_| name.is_none()) {
            let rule = scope::of_service(scope::SERVICE, *number);
            let buckets = self.tables.kernel().buckets(Scope { rule, subject: [0; 2] })?;
            services.push(SharedLimits {
                name: service.clone(),
                limit: limits.to_string(),
                rules: rules(limits, &buckets.unwrap_or_default().limits, boot_ns, now),
            });
        }
        Ok(Limits { principals, tenants, services, on_trial_until: self.on_trial().map(|trial| trial.ends()) })
    }

    /// What was counted of each service.
    fn totals<'s>(&self, settings: &'s Settings) -> Result<Vec<(&'s Guarded, Counters)>, Error> {
        let seats = self.tables.seats();
        let seated = settings.services.iter().filter_map(|guarded| Some((guarded, seats.get(&guarded.name)?)));
        seated.map(|(guarded, seat)| Ok((guarded, self.tables.kernel().totals(seat.slot)?))).collect()
    }

    /// The state of the whole, with so many keys and principals.
    pub(crate) fn status(
        &self,
        settings: &Settings,
        since: Timestamp,
        reaped: &Tally,
        (keys, principals): (u64, u64),
    ) -> Result<Status, Error> {
        let kernel = self.tables.kernel();
        let fill = |fill: kernel::MapFill| MapFill {
            map: fill.name.to_owned(),
            entries: fill.entries,
            capacity: fill.capacity,
        };
        let attachment = |attachment: &kernel::Attachment| Attachment {
            interface: attachment.interface.clone(),
            index: attachment.index,
            mode: attachment.mode.to_string(),
            reason: attachment.reason.clone(),
            answers: attachment.cannot_answer.is_none(),
            cannot_answer: attachment.cannot_answer.clone(),
            endpoints: attachment.endpoints.to_string(),
            since: attachment.since,
            program: attachment.program,
            taken_over: attachment.taken_over,
        };
        let (mut services, mut together) = (Vec::new(), [0; abi::TOTALS as usize]);
        for (guarded, counters) in self.totals(settings)? {
            for (sum, count) in together.iter_mut().zip(counters) {
                *sum += count;
            }
            services.push(service(guarded, totals(&counters)));
        }
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            abi: abi::ABI,
            pid: std::process::id(),
            since,
            existing: settings.existing.as_str().to_owned(),
            services,
            ports: settings.ports(),
            attachments: kernel.attachments().iter().map(attachment).collect(),
            warnings: kernel
                .warnings()
                .into_iter()
                .chain(answering::refused(settings, kernel))
                .chain(self.on_trial().map(|trial| trial.told()))
                .collect(),
            on_trial_until: self.on_trial().map(|trial| trial.ends()),
            default_limit: settings.default_limit.to_string(),
            keys,
            principals,
            totals: totals(&together),
            reaped: reaped.counts().map(|(cause, ended, _)| (cause.to_owned(), ended)).collect(),
            would_reap: reaped.counts().map(|(cause, _, would)| (cause.to_owned(), would)).collect(),
            maps: kernel.fill()?.into_iter().map(fill).collect(),
            socket: settings.socket.clone(),
            metrics: match settings.metrics {
                Metrics::Off => None,
                Metrics::At(address) => Some(address.to_string()),
            },
            state_dir: settings.state_dir.clone(),
            bpffs_dir: settings.bpffs_dir.clone(),
        })
    }

    /// What the metrics are rendered from.
    pub(crate) fn snapshot(
        &self,
        settings: &Settings,
        reaped: &Tally,
        principals: Vec<(String, u64, Meter)>,
    ) -> Result<Snapshot, Error> {
        let kernel = self.tables.kernel();
        let mut rules = Vec::new();
        for (index, rule) in &self.rules {
            rules.push((rule.service.clone(), rule.rule.clone(), kernel.tally(*index)?));
        }
        let attachments = kernel.attachments().iter();
        let services = self.totals(settings)?.into_iter();
        Ok(Snapshot {
            rules,
            keys: principals.iter().map(|(_, keys, _)| keys).sum(),
            principals,
            totals: services.map(|(guarded, counters)| (guarded.name.clone(), counters)).collect(),
            reaped: reaped.counts().collect(),
            maps: kernel.fill()?.into_iter().map(|fill| (fill.name.to_owned(), fill.entries, fill.capacity)).collect(),
            penalties: self.count_penalties(settings)?,
            attachments: attachments.map(|at| (at.interface.clone(), at.mode.to_string())).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_summed_by_verdict_and_kept_by_reason() {
        let mut counters = [0; abi::TOTALS as usize];
        counters[Count::Refused(Reason::Unkeyed).index() as usize] = 3;
        counters[Count::Refused(Reason::OverLimit).index() as usize] = 4;
        counters[Count::WouldRefuse(Reason::Unkeyed).index() as usize] = 5;
        counters[Count::Event(Event::Allowed).index() as usize] = 6;
        let totals = totals(&counters);
        assert_eq!((totals.allowed, totals.refused, totals.would_refuse), (6, 7, 5));
        assert_eq!((totals.refused_by["unkeyed"], totals.refused_by["over_limit"]), (3, 4));
        assert_eq!(totals.refused_by.len(), Reason::ALL.len());
        assert_eq!(totals.malformed_by.len(), Malformation::ALL.len());
    }

    #[test]
    fn each_rule_is_read_from_its_own_bucket() {
        let limits: crate::policy::Limits = "10/second algo=gcra; 100/minute".parse().expect("limits");
        let boot_ns = 1_000_000_000_000;
        let mut meter = Meter::default();
        meter.buckets.limits[0].arrival = boot_ns + 300_000_000;
        let now = Timestamp::UNIX_EPOCH;
        let [gcra, sliding] = rules(&limits, &meter.buckets.limits, boot_ns, now).try_into().expect("two rules");
        assert_eq!((gcra.rule.as_str(), gcra.used, gcra.remaining), ("10/second burst=10", 3, 7));
        assert_eq!((gcra.reset_ns, gcra.reset.as_millisecond(), gcra.retry_ns), (300_000_000, 300, Some(0)));
        assert_eq!((sliding.rule.as_str(), sliding.used, sliding.remaining), ("100/minute", 0, 100));
        assert_eq!((sliding.window_seconds, sliding.algorithm.as_str()), (60, "sliding"));
    }
}
