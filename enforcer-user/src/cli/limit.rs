//! `enforcer limit set`, `enforcer limit rm` and `enforcer limits`.

use clap::{Args, Subcommand};
use hyper::Method;
use jiff::Timestamp;

use super::key::check_name;
use super::lasts::Lasts;
use super::output::{Format, Watch, number, table, text};
use super::usage;
use crate::api::{
    Envelope, KeyLimits, LimitChanged, Limits as Listing, PrincipalLimits, RuleUsage, SetLimit, SharedLimits,
};
use crate::client::Client;
use crate::policy::Limits;

const SET_HELP: &str = "\
It takes effect with the next request, and what was used stays used: lowered from 100 to 50 with 70 used, the next is \
refused; raised to 200, there are 130 left. A rule goes on counting where a rule with the same window did; one that is \
changed from or to burst= (gcra) begins anew.

LIMIT is COUNT/UNIT, COUNT/N UNITS or COUNT per N UNITS, up to four of them separated by `;` `,` or `|`, all of which \
apply together. Units: second, minute, hour, day, week, month (30 days), year (365 days), or s m h d w mo y.

Options behind a rule:
  burst=N        a steady rate, with room for N requests at once
  algo=sliding   two windows, the last one weighted by how much of it still overlaps (the default)
  algo=fixed     a window that begins with its first request, as Flask-Limiter's default counts
  algo=gcra      as burst=COUNT
  align=calendar with algo=fixed: windows begin with the hours, days, months or years of UTC
  penalize=true  requests that it refuses count, too: who does not slow down stays refused; not with algo=fixed
  cost=N         each request counts as N: 100/minute cost=5 is 20/minute, and shown so
  name=NAME      what the rule is called in answers
`unlimited` takes all limits away; `blocked`, or a count of 0, refuses every request.

  enforcer limit set alice '100/minute'
  enforcer limit set alice '5 per 2 hours; 100/7days'
  enforcer limit set alice '50/second burst=200'";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Put a principal, with all its keys, under another limit at once
    #[command(after_help = SET_HELP)]
    Set(Set),
    /// Take the limit away that a principal has in place of its plan's, which holds again
    Rm(Remove),
}

#[derive(Debug, Args)]
pub(super) struct Remove {
    /// Name of the principal
    name: String,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, Args)]
pub(super) struct Set {
    /// Name of the principal
    name: String,
    /// The new limit, such as '100/minute; 10/second'
    limit: Limits,
    /// For how long, such as 2h; then the limit of its plan holds again, also if no daemon runs
    #[arg(long = "for", value_name = "TIME")]
    lasts: Option<Lasts>,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, Args)]
pub(super) struct ListArguments {
    /// Name of a principal, or of a tenant with its principals [default: all]
    name: Option<String>,
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    watch: Watch,
}

impl Command {
    pub(super) async fn execute(self, client: &Client) -> anyhow::Result<()> {
        let (changed, format): (Envelope<LimitChanged>, Format) = match self {
            Self::Set(Set { name, limit, lasts, format }) => {
                check_name(&name)?;
                let until = lasts.map(|lasts| Timestamp::now() + lasts.0);
                let request = SetLimit { limit: limit.to_string(), until };
                (client.send(Method::PUT, &format!("/v1/limits/{name}"), &request).await?, format)
            }
            Self::Rm(Remove { name, format }) => {
                check_name(&name)?;
                (client.act(Method::DELETE, &format!("/v1/limits/{name}")).await?, format)
            }
        };
        format.show(&changed, |changed| {
            let LimitChanged { name, limit, previous } = &changed.body;
            match limit == previous {
                true => format!("`{name}` is under `{limit}` already\n"),
                false => format!("`{name}` is under `{limit}` now, was under `{previous}`\n"),
            }
        })
    }
}

impl ListArguments {
    pub(super) async fn execute(self, client: &Client) -> anyhow::Result<()> {
        let Self { name, format, watch } = self;
        let path = match &name {
            Some(name) => {
                check_name(name)?;
                format!("/v1/limits?name={name}")
            }
            None => "/v1/limits".to_owned(),
        };
        watch.show(format, async || Ok(client.get::<Listing>(&path).await?), |listing| show(&listing.body)).await
    }
}

fn show(Listing { principals, tenants, services, on_trial_until }: &Listing) -> String {
    if principals.is_empty() && tenants.is_empty() {
        return "There are no principals yet: `enforcer key add NAME` makes one with its first key.\n".to_owned();
    }
    let [limit, used, remaining, reset] = usage::HEADER;
    let mut shown = table(
        ["NAME", limit, used, remaining, reset, "KEYS"],
        shared("service", services).chain(shared("tenant", tenants)).chain(principals.iter().flat_map(rows)),
    );
    if let Some(until) = on_trial_until {
        shown.push_str(&format!("\nThese are the limits of a policy on trial until {until}.\n"));
    }
    shown
}

fn shared<'l>(what: &'l str, all: &'l [SharedLimits]) -> impl Iterator<Item = [comfy_table::Cell; 6]> + 'l {
    let of =
        move |SharedLimits { name, limit, rules }: &SharedLimits| usage(&format!("{what} {name}"), limit, rules, "-");
    all.iter().flat_map(of)
}

fn rows(principal: &PrincipalLimits) -> Vec<[comfy_table::Cell; 6]> {
    let PrincipalLimits { name, tenant: _, limit, rules, keys, own, counts: _ } = principal;
    let mut rows = usage(name, limit, rules, &keys.to_string());
    for KeyLimits { id, label, limit, rules } in own {
        let key = label.as_ref().map_or_else(|| id.clone(), |label| format!("{id} ({label})"));
        rows.extend(usage(&format!("{name}, key {key}"), limit, rules, "-"));
    }
    rows
}

/// A row for each rule of a limit.
fn usage(name: &str, limit: &str, rules: &[RuleUsage], keys: &str) -> Vec<[comfy_table::Cell; 6]> {
    let whole = |[limit, used, remaining, reset]: [comfy_table::Cell; 4]| {
        [text(name), limit, used, remaining, reset, number(keys)]
    };
    usage::rows(limit, rules).into_iter().map(whole).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Counts, RuleUsage};
    use jiff::Timestamp;

    #[test]
    fn each_rule_has_its_line() {
        let rule = |rule: &str, used, remaining, reset_ns| RuleUsage {
            rule: rule.into(),
            algorithm: "sliding".into(),
            count: 100,
            window_seconds: 60,
            used,
            remaining,
            reset_ns,
            reset: Timestamp::UNIX_EPOCH,
            retry_ns: Some(0),
        };
        let principal = |name: &str, limit: &str, rules| PrincipalLimits {
            name: name.into(),
            tenant: None,
            limit: limit.into(),
            rules,
            keys: 1,
            own: Vec::new(),
            counts: Counts::default(),
        };
        let rules = vec![rule("100/minute", 70, 30, 65_000_000_000), rule("10/second", 0, 10, 0)];
        let own = |id: &str, label: Option<&str>, limit: &str, rules| KeyLimits {
            id: id.into(),
            label: label.map(str::to_owned),
            limit: limit.into(),
            rules,
        };
        let keys = vec![
            own("0a1b2c3d", Some("ci"), "20/minute", vec![rule("20/minute", 5, 15, 1_000_000_000)]),
            own("4e5f6a7b", None, "blocked", vec![]),
        ];
        let tenant = SharedLimits {
            name: "acme".into(),
            limit: "90/minute".into(),
            rules: vec![rule("90/minute", 75, 15, 65_000_000_000)],
        };
        let listing = Listing {
            services: vec![SharedLimits {
                name: "api".into(),
                limit: "5000/second".into(),
                rules: vec![rule("5000/second", 2, 4998, 1_000_000_000)],
            }],
            tenants: vec![tenant],
            principals: vec![
                PrincipalLimits { own: keys, ..principal("alice", "100/minute; 10/second", rules) },
                principal("root", "unlimited", vec![]),
            ],
            on_trial_until: None,
        };
        assert_eq!(
            show(&listing),
            "NAME                      LIMIT        USED  REMAINING  RESET  KEYS\n\
             service api               5000/second     2       4998     1s     -\n\
             tenant acme               90/minute      75         15  1m 5s     -\n\
             alice                     100/minute     70         30  1m 5s     1\n\
             alice                     10/second       0         10      -     1\n\
             alice, key 0a1b2c3d (ci)  20/minute       5         15     1s     -\n\
             alice, key 4e5f6a7b       blocked         -          -      -     -\n\
             root                      unlimited       -          -      -     1\n"
        );
        let tried = show(&Listing { on_trial_until: Some(Timestamp::UNIX_EPOCH), ..listing });
        assert!(
            tried.ends_with("\n\nThese are the limits of a policy on trial until 1970-01-01T00:00:00Z.\n"),
            "{tried}"
        );
    }
}
