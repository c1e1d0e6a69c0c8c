//! `enforcer key show`

use std::fmt::Write as _;

use clap::Args;
use comfy_table::Cell;
use jiff::Timestamp;

use super::check_selector;
use crate::api::{Counts, Key, KeyShown, KeysShown, RuleUsage};
use crate::cli::output::{Format, Watch, duration, second, table, text};
use crate::cli::usage;
use crate::client::Client;

#[derive(Debug, Args)]
pub(in crate::cli) struct Show {
    /// A key's id, or a principal's name for all its keys
    #[arg(value_name = "NAME|ID")]
    selector: String,
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    watch: Watch,
}

impl Show {
    pub(super) async fn execute(self, client: &Client) -> anyhow::Result<()> {
        let Self { selector, format, watch } = self;
        check_selector(&selector)?;
        let path = format!("/v1/keys/{selector}");
        let ask = async || Ok(client.get::<KeysShown>(&path).await?);
        watch.show(format, ask, |shown| show(&shown.body, Timestamp::now())).await
    }
}

fn show(KeysShown { keys }: &KeysShown, now: Timestamp) -> String {
    keys.iter().map(|key| about(key, now)).collect::<Vec<_>>().join("\n")
}

/// A line for what is so, then a table of the limits.
fn about(KeyShown { key, plan, tenant, beside, rules, own_rules }: &KeyShown, now: Timestamp) -> String {
    let Key { id, name, label, state, not_before, expires, created, limit, own_limit, counts, .. } = key;
    let label = label.as_ref().map(|label| format!(" ({label})")).unwrap_or_default();
    let mut shown = format!("key {id}{label} of {name}: {state}\n");
    let mut line = |what: &str, is: &dyn std::fmt::Display| {
        // A string takes all.
        let _ = writeln!(shown, "{what}: {is}");
    };
    line("made", &second(*created));
    if let Some(not_before) = not_before {
        line("good from", &second(*not_before));
    }
    if let Some(expires) = expires {
        let left = u64::try_from(expires.as_nanosecond() - now.as_nanosecond()).unwrap_or(0);
        let left = if left > 0 { format!(", in {}", duration(left)) } else { String::new() };
        line("expires", &format!("{}{left}", second(*expires)));
    }
    if !beside.is_empty() {
        line("good beside it", &beside.join(", "));
    }
    if let Some(plan) = plan {
        line("plan", plan);
    }
    if let Some(tenant) = tenant {
        line("tenant", tenant);
    }
    let Counts { allowed, limited, denied, would_refuse } = counts;
    let counted = format!("{allowed} allowed, {limited} limited, {denied} denied, {would_refuse} would be refused");
    line("requests of all keys of its principal", &counted);
    let [limits, used, remaining, reset] = usage::HEADER;
    let own = own_limit.iter().flat_map(|limit| usage("this key", limit, own_rules));
    let limits = table(["WHOSE", limits, used, remaining, reset], own.chain(usage(name, limit, rules)));
    shown + &limits
}

/// A row for each rule of a limit.
fn usage(whose: &str, limit: &str, rules: &[RuleUsage]) -> Vec<[Cell; 5]> {
    let whole = |[limit, used, remaining, reset]: [Cell; 4]| [text(whose), limit, used, remaining, reset];
    usage::rows(limit, rules).into_iter().map(whole).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(rule: &str, used: u64, remaining: u64) -> RuleUsage {
        RuleUsage {
            rule: rule.into(),
            algorithm: "sliding".into(),
            count: 100,
            window_seconds: 60,
            used,
            remaining,
            reset_ns: 65_000_000_000,
            reset: Timestamp::UNIX_EPOCH,
            retry_ns: Some(0),
        }
    }

    #[test]
    fn tells_what_holds_and_leaves_out_what_there_is_not() {
        let at = |second| Timestamp::from_second(second).expect("a time");
        let key = Key {
            id: "0a1b2c3d".into(),
            tag: "0a1b2c3d000000000000000000000000".into(),
            name: "alice".into(),
            label: Some("ci".into()),
            enabled: true,
            state: "good".into(),
            not_before: None,
            expires: Some(at(7_200)),
            limit: "100/minute".into(),
            own_limit: Some("20/minute".into()),
            created: at(60),
            counts: Counts { allowed: 5, limited: 1, denied: 0, would_refuse: 0 },
        };
        let rotated = KeyShown {
            key: key.clone(),
            plan: Some("gold".into()),
            tenant: Some("acme".into()),
            beside: vec!["4e5f6a7b".into()],
            rules: vec![rule("100/minute", 5, 95)],
            own_rules: vec![rule("20/minute", 4, 16)],
        };
        let plain = KeyShown {
            key: Key { label: None, expires: None, own_limit: None, limit: "unlimited".into(), ..key },
            plan: None,
            tenant: None,
            beside: vec![],
            rules: vec![],
            own_rules: vec![],
        };
        assert_eq!(
            show(&KeysShown { keys: vec![rotated, plain] }, at(3_600)),
            "key 0a1b2c3d (ci) of alice: good\n\
             made: 1970-01-01T00:01:00Z\n\
             expires: 1970-01-01T02:00:00Z, in 1h\n\
             good beside it: 4e5f6a7b\n\
             plan: gold\n\
             tenant: acme\n\
             requests of all keys of its principal: 5 allowed, 1 limited, 0 denied, 0 would be refused\n\
             WHOSE     LIMIT       USED  REMAINING  RESET\n\
             this key  20/minute      4         16  1m 5s\n\
             alice     100/minute     5         95  1m 5s\n\
             \n\
             key 0a1b2c3d of alice: good\n\
             made: 1970-01-01T00:01:00Z\n\
             requests of all keys of its principal: 5 allowed, 1 limited, 0 denied, 0 would be refused\n\
             WHOSE  LIMIT      USED  REMAINING  RESET\n\
             alice  unlimited     -          -      -\n"
        );
    }
}
