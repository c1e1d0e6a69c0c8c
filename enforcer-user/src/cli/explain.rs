//! `enforcer explain`

use std::fmt::Write as _;
use std::io::{self, Read as _};
use std::net::IpAddr;

use clap::Args;
use hyper::Method;
use zeroize::Zeroizing;

use super::exit::Usage;
use super::output::{Format, duration, number, table, text};
use crate::api::{Envelope, Explain, Explained, ExplainedLimit, ExplainedSpread, Told};
use crate::client::Client;

pub(super) const HELP: &str = "\
The program that judges packets is asked, on the counts as they are now: it reads the request and decides on it as it \
would on the wire, but charges nothing, counts nothing and remembers nothing. It exits with 0 whether the request would \
pass or be refused: the verdict is the first word of the answer, and `verdict` in JSON.

Each line is a limit that the request is measured by:
  RULE       what it is of: principal, source, client, key, route PATH, limit NAME, public PATH, preflight, guesses, ceiling
  BUCKET     whose requests are counted: a principal, a source, a principal's client, or all
  USED       requests that weigh on it now, without this one
  REMAINING  requests that it would let pass now
  RETRY      until it would let this one pass
  MODE       enforce; observe and candidate count and refuse nobody
  SAYS       passes; refuses: the limit that the answer names; full: it would refuse, too; would_refuse

A key is named by its id or by its principal, since the enforcer does not know keys. `--key-stdin` reads one from \
standard input, which needs the rights to change keys; it is never an argument, where `ps` shows it. The connection is \
taken to be a new one, with this request alone on it.

  enforcer explain GET /search?q=1 --source 192.0.2.7 --as alice
  enforcer explain POST /orders --source 2001:db8::7 --as 3f9a0c21 --client mobile
  enforcer explain OPTIONS / --source 192.0.2.7 -H 'Origin: https://a.test' -H 'Access-Control-Request-Method: PUT'
  enforcer explain GET / --source 192.0.2.7 --key-stdin < key.txt";

/// Longest key that is read.
const LONGEST: u64 = 4096;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The method, such as GET
    method: String,
    /// The path with its query, or another target of a request line
    target: String,
    /// The address that the connection comes from
    #[arg(long, value_name = "ADDRESS")]
    source: IpAddr,
    /// Whom it speaks for, if it is a trusted proxy: in a header of the PROXY protocol, or in X-Forwarded-For
    #[arg(long, value_name = "ADDRESS")]
    forwarded_for: Option<IpAddr>,
    /// Whose key it has: a principal's name, or a key's id [default: it has none]
    #[arg(long = "as", value_name = "NAME|ID")]
    keyed: Option<String>,
    /// Read the key itself from standard input
    #[arg(long, conflicts_with = "keyed")]
    key_stdin: bool,
    /// The client id, in the field that the policy names
    #[arg(long, value_name = "ID")]
    client: Option<String>,
    /// The port that it is sent to [default: the first of the service]
    #[arg(long)]
    port: Option<u16>,
    /// The host that it is for [default: one of the service]
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// The service that it is for [default: that of the port and host, or the only one]
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Another field of the request, such as 'Origin: https://a.test'; can be given several times
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    fields: Vec<String>,
    #[command(flatten)]
    format: Format,
}

impl Arguments {
    pub(super) async fn execute(self, client: &Client) -> anyhow::Result<()> {
        let Self {
            method,
            target,
            source,
            forwarded_for,
            keyed,
            key_stdin,
            client: id,
            port,
            host,
            service,
            fields,
            format,
        } = self;
        let key = if key_stdin { Some(read_key()?) } else { None };
        let question =
            Explain { method, target, source, forwarded_for, keyed, key, client: id, port, host, service, fields };
        let explained: Envelope<Explained> = client.send(Method::POST, "/v1/explain", &question).await?;
        format.show(&explained, |explained| show(&explained.body))
    }
}

/// The key on standard input, without the end of its line.
fn read_key() -> anyhow::Result<Zeroizing<String>> {
    // Full capacity at once: a growing buffer would leave copies behind.
    let mut key = Zeroizing::new(String::with_capacity(LONGEST as usize + 1));
    io::stdin().take(LONGEST + 1).read_to_string(&mut key)?;
    if key.len() as u64 > LONGEST {
        return Err(
            Usage(format!("standard input: longer than any key; accepted: {}", crate::credential::ACCEPTED)).into()
        );
    }
    let end = key.trim_end_matches(['\r', '\n']).len();
    key.truncate(end);
    Ok(key)
}

/// The largest `Retry-After` that is sent: what it is for passes at no time.
const NEVER: u32 = i32::MAX as u32;

fn show(explained: &Explained) -> String {
    let Explained { verdict, reason, malformed, kind, principal, key, source, path_rule, cost, .. } = explained;
    let mut shown = match (verdict.as_str(), reason) {
        ("unguarded", _) => return "unguarded: nothing guards this port, and the request reaches the app\n".to_owned(),
        (verdict, None) => verdict.to_owned(),
        (verdict, Some(reason)) => format!("{verdict}: {reason}"),
    };
    if let Some(kind) = malformed {
        let _ = write!(shown, " ({kind})");
    }
    shown.push('\n');
    let whose = match (principal, key) {
        (Some(name), Some(id)) => format!("{kind}, key {id} of {name}"),
        (None, Some(id)) => format!("{kind}, key {id}, which is nobody's"),
        _ => kind.clone(),
    };
    let _ = writeln!(shown, "taken for: {whose}, from {source}");
    if let Some(rule) = path_rule {
        let _ = writeln!(shown, "path: {rule}, counts as {cost}");
    }
    for ExplainedSpread { rule, seen, most, action, exceeded } in &explained.spreads {
        let more = if *exceeded { ", and this is one too many" } else { "" };
        let _ = writeln!(shown, "{rule}: {seen} of {most} seen ({action}){more}");
    }
    if let Some(ns) = explained.penalty_ns {
        let _ = writeln!(shown, "penalty: its source opens no connection for {}", duration(ns));
    }
    if let Some(Told { how, status, limit, retry_after_seconds }) = &explained.told {
        let status = status.map(|status| format!(" {status}")).unwrap_or_default();
        let limit = limit.as_ref().map(|name| format!(", limit {name}")).unwrap_or_default();
        let retry = match retry_after_seconds {
            Some(NEVER) => format!(", Retry-After: {NEVER} (never)"),
            Some(seconds) => format!(", Retry-After: {seconds}"),
            None => String::new(),
        };
        let _ = writeln!(shown, "its client gets: {how}{status}{limit}{retry}");
    }
    let head = ["RULE", "BUCKET", "NAME", "LIMIT", "USED", "REMAINING", "RETRY", "MODE", "SAYS"];
    shown + &table(head, explained.limits.iter().map(row))
}

fn row(one: &ExplainedLimit) -> [comfy_table::Cell; 9] {
    let ExplainedLimit { rule, bucket, name, limit, mode, used, remaining, retry_ns, says } = one;
    let retry = match retry_ns {
        Some(0) => "-".to_owned(),
        Some(ns) => duration(*ns),
        None => "never".to_owned(),
    };
    let [rule, bucket, name, limit, mode, says] = [rule, bucket, name, limit, mode, says].map(text);
    [rule, bucket, name, limit, number(used), number(remaining), number(retry), mode, says]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_its_limit_and_what_its_client_gets() {
        let limit = |rule: &str, bucket: &str, used, says: &str| ExplainedLimit {
            rule: rule.into(),
            bucket: bucket.into(),
            name: "default".into(),
            limit: "10/minute".into(),
            mode: "enforce".into(),
            used,
            remaining: 10 - used,
            retry_ns: Some(if used == 10 { 17_000_000_000 } else { 0 }),
            says: says.into(),
        };
        let told = Told {
            how: "answer".into(),
            status: Some(429),
            limit: Some("default".into()),
            retry_after_seconds: Some(17),
        };
        let explained = Explained {
            service: Some("default".into()),
            verdict: "refuse".into(),
            reason: Some("over_limit".into()),
            malformed: None,
            kind: "keyed".into(),
            principal: Some("alice".into()),
            key: Some("0011aabb".into()),
            source: "192.0.2.7/32".into(),
            path_rule: Some("route /search".into()),
            cost: 1,
            limits: vec![limit("principal", "alice", 10, "refuses"), limit("source", "192.0.2.7/32", 3, "passes")],
            spreads: vec![],
            penalty_ns: None,
            told: Some(told),
        };
        assert_eq!(
            show(&explained),
            "refuse: over_limit\n\
             taken for: keyed, key 0011aabb of alice, from 192.0.2.7/32\n\
             path: route /search, counts as 1\n\
             its client gets: answer 429, limit default, Retry-After: 17\n\
             RULE       BUCKET        NAME     LIMIT      USED  REMAINING  RETRY  MODE     SAYS\n\
             principal  alice         default  10/minute    10          0    17s  enforce  refuses\n\
             source     192.0.2.7/32  default  10/minute     3          7      -  enforce  passes\n"
        );
        let told = explained.told.map(|told| Told { retry_after_seconds: Some(0x7fff_ffff), ..told });
        let never = show(&Explained { told, ..explained });
        assert!(never.contains("limit default, Retry-After: 2147483647 (never)\n"), "{never}");
    }
}
