//! `enforcer explain` says what a request then gets, and nothing comes of its being asked.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use enforcer_tests::enforcer::Enforcer;
use enforcer_tests::netns::Way;
use enforcer_tests::origin::Workers;
use enforcer_tests::pin;
use serde_json::Value;

use crate::site::{Endings, PORT, Site, add_key, keyed, random_key, refused, statuses, v4, v6};

const POLICY: &str = "[service]\nsource = \"6/hour\"\nguesses = \"3/hour\"\npreflight = \"2/hour\"\n\
    client_id = \"X-Client-Id\"\n\
    [service.sources_per_key]\nmost = 2\nwithin = \"1h\"\naction = \"limit\"\n\
    [plan.wide]\nlimit = \"1000/hour\"\ncandidate = \"2/hour\"\n\
    [principal.tenant]\nlimit = \"100/minute; 4/hour\"\n[principal.tenant.clients]\nmobile = \"2/hour\"\n\
    [principal.wide]\nplan = \"wide\"\n[principal.searcher]\nplan = \"wide\"\n[principal.costly]\nlimit = \"7/hour\"\n\
    [principal.steady]\nlimit = \"2/hour burst=2\"\n[principal.spread]\nlimit = \"100/hour\"\n\
    [principal.brief]\nlimit = \"100/hour\"\n[principal.off]\nlimit = \"100/hour\"\n\
    [principal.odd]\nlimit = \"100/hour\"\n[principal.pushy]\nlimit = \"2/hour penalize=true\"\n\
    [principal.rushed]\nlimit = \"2/hour burst=3 penalize=true\"\n\
    [[route]]\npath = \"/search\"\nlimit = \"2/hour\"\n[[route]]\npath = \"/costly\"\ncost = 3\n\
    [[route]]\npath = \"/watched\"\nlimit = \"1/hour\"\nmode = \"observe\"\n\
    [[public]]\npath = \"/health\"\nlimit = \"2/hour\"\n\
    [[exempt]]\npath = \"/ready\"\nsources = [\"10.77.16.9/32\"]\nuntil = 2099-01-01T00:00:00Z\nreason = \"probe\"";

/// Whose key a request has.
#[derive(Clone, Copy)]
enum Whose {
    Nobody,
    Principal(&'static str),
    /// A key that is not registered, by its number.
    Guess(usize),
}
use Whose::{Guess, Nobody, Principal};

/// A request, and how often it is sent.
struct Case {
    times: usize,
    source: IpAddr,
    whose: Whose,
    line: (&'static str, &'static str),
    fields: &'static [&'static str],
}

fn case(times: usize, source: IpAddr, whose: Whose, method: &'static str, target: &'static str) -> Case {
    Case { times, source, whose, line: (method, target), fields: &[] }
}

fn cases() -> Vec<Case> {
    let asks: &[&str] = &["Origin: https://a.test", "Access-Control-Request-Method: PUT"];
    let odd = |target| case(1, v4(30), Principal("odd"), "GET", target);
    let wrong = |fields| Case { fields, ..case(1, v4(31), Principal("odd"), "GET", "/") };
    vec![
        case(5, v4(1), Principal("tenant"), "GET", "/"),
        case(1, v4(1), Principal("tenant"), "HEAD", "/"),
        case(7, v4(2), Principal("wide"), "GET", "/"),
        case(3, v4(3), Principal("searcher"), "GET", "/search/a?b=1"),
        case(1, v4(3), Principal("searcher"), "GET", "//se%61rch/"),
        case(3, v4(4), Principal("costly"), "GET", "/costly"),
        case(3, v6(1, 1), Principal("steady"), "GET", "/"),
        case(5, v4(32), Principal("pushy"), "GET", "/"),
        case(6, v4(33), Principal("rushed"), "GET", "/"),
        case(2, v4(29), Principal("wide"), "GET", "/watched"),
        case(5, v4(5), Guess(1), "GET", "/"),
        case(1, v4(5), Principal("off"), "GET", "/"),
        case(2, v4(6), Nobody, "GET", "/"),
        case(1, v4(9), Nobody, "GET", "/ready"),
        case(1, v4(10), Nobody, "GET", "/ready"),
        case(3, v4(11), Nobody, "GET", "/health"),
        case(1, v4(11), Guess(2), "GET", "/health"),
        Case { fields: asks, ..case(3, v4(12), Nobody, "OPTIONS", "/anything") },
        case(1, v4(13), Principal("brief"), "GET", "/"),
        case(1, v4(14), Principal("off"), "GET", "/"),
        case(1, v4(15), Principal("spread"), "GET", "/"),
        case(1, v4(16), Principal("spread"), "GET", "/"),
        case(2, v4(17), Principal("spread"), "GET", "/"),
        odd("/a/%2e%2e/b"),
        odd("/a%2Fb"),
        odd("/a%zz"),
        odd("*"),
        wrong(&["Content-Length: x"]),
        wrong(&["Content-Length: 1", "Transfer-Encoding: chunked"]),
        wrong(&["X_Api_Key2: a", "Connection: close, keep-alive"]),
    ]
}

/// What was said, or what came.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    /// The reason and status of a refusal, and the limit that it names.
    refused: Option<(String, u64, Option<String>)>,
    /// Its `Retry-After`.
    retry: Option<u64>,
}

struct Stage<'s> {
    site: &'s Site,
    enforcer: &'s Enforcer<'s>,
    keys: &'s BTreeMap<&'static str, String>,
}

impl Stage<'_> {
    fn key(&self, whose: Whose) -> Option<String> {
        match whose {
            Nobody => None,
            Principal(name) => self.keys.get(name).cloned(),
            Guess(number) => Some(random_key(number)),
        }
    }

    fn explain(&self, case: &Case) -> Result<Value> {
        let source = case.source.to_string();
        let mut line = vec!["explain", case.line.0, case.line.1, "--source", &source, "-o", "json"];
        let ran = match case.whose {
            Guess(number) => {
                line.push("--key-stdin");
                line.extend(case.fields.iter().flat_map(|field| ["-H", *field]));
                self.enforcer.run_with_input(&line, &format!("{}\n", random_key(number)))?
            }
            whose => {
                if let Principal(name) = whose {
                    line.extend(["--as", name]);
                }
                line.extend(case.fields.iter().flat_map(|field| ["-H", *field]));
                self.enforcer.run(&line)?
            }
        };
        ensure!(ran.code == 0, "{line:?} ended with {}: {}", ran.code, ran.stderr);
        Ok(serde_json::from_str(&ran.stdout)?)
    }

    /// What an explanation comes to.
    fn said(explained: &Value) -> Result<Outcome> {
        match explained["verdict"].as_str() {
            Some("pass") => return Ok(Outcome { refused: None, retry: None }),
            Some("refuse") => {}
            other => bail!("verdict {other:?}"),
        }
        let reason = explained["reason"].as_str().context("no reason")?.to_owned();
        let told = &explained["told"];
        ensure!(told["how"] == "answer", "told {told}");
        let limit = told["limit"].as_str().map(str::to_owned);
        let refused = Some((reason, told["status"].as_u64().context("no status")?, limit));
        Ok(Outcome { refused, retry: told["retry_after_seconds"].as_u64() })
    }

    fn reasons(&self) -> Result<BTreeMap<String, u64>> {
        let status = self.enforcer.json(&["status"])?;
        Ok(serde_json::from_value(status["totals"]["refused_by"].clone())?)
    }

    /// Sends it, and says what came.
    fn send(&self, case: &Case) -> Result<Outcome> {
        let before = self.reasons()?;
        let mut curl = self.site.link.client().command("curl");
        curl.args(["-sS", "-i", "-m", "10", "--http1.1", "--request-target", case.line.1, "--interface"]);
        curl.arg(case.source.to_string());
        match case.line.0 {
            "HEAD" => curl.arg("-I"),
            method => curl.args(["-X", method]),
        };
        for field in case.fields.iter().map(|field| (*field).to_owned()) {
            curl.args(["-H", &field]);
        }
        if let Some(key) = self.key(case.whose) {
            curl.args(["-H", &format!("X-API-Key: {key}")]);
        }
        let output = curl.arg(format!("http://{}/", self.site.server(case.source))).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let status: u64 = text.split(' ').nth(1).context("no answer")?.parse()?;
        let after = self.reasons()?;
        let new: Vec<&String> =
            after.iter().filter(|(reason, count)| before[*reason] < **count).map(|(it, _)| it).collect();
        let retry = text.lines().find_map(|line| line.strip_prefix("Retry-After: ")?.trim().parse().ok());
        let name =
            text.lines().find_map(|line| Some(line.strip_prefix("RateLimit: \"")?.split('"').next()?.to_owned()));
        Ok(match new.as_slice() {
            [] => Outcome { refused: None, retry: None },
            [reason] => Outcome { refused: Some(((*reason).clone(), status, name)), retry },
            many => bail!("refused for {many:?}"),
        })
    }
}

/// All keys of the policy's principals; one has ended, one is switched off.
fn keys(enforcer: &Enforcer<'_>) -> Result<BTreeMap<&'static str, String>> {
    let names = ["tenant", "wide", "searcher", "costly", "steady", "spread", "odd", "off", "pushy", "rushed"];
    let mut keys = BTreeMap::new();
    for name in names {
        keys.insert(name, add_key(enforcer, name)?);
    }
    keys.insert("brief", enforcer.cli(&["key", "add", "brief", "--lasts", "1s"])?.trim().to_owned());
    enforcer.cli(&["key", "disable", "off"])?;
    sleep(Duration::from_secs(2));
    Ok(keys)
}

#[test]
fn what_is_explained_is_what_a_request_then_gets() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _origin = site.serve("routes", Workers::Sync(2))?;
    let enforcer = site.guard(POLICY)?;
    let keys = keys(&enforcer)?;
    let stage = Stage { site: &site, enforcer: &enforcer, keys: &keys };
    let mut met: BTreeMap<String, usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    for case in cases() {
        for time in 0..case.times {
            let explained = stage.explain(&case)?;
            let said = Stage::said(&explained)?;
            let came = stage.send(&case)?;
            let label = match &came.refused {
                None => "pass".to_owned(),
                Some((reason, _, limit)) => format!("{reason} {}", limit.as_deref().unwrap_or("-")),
            };
            *met.entry(label).or_default() += 1;
            // A second may end between the two.
            let close = match (said.retry, came.retry) {
                (Some(said), Some(came)) => said.abs_diff(came) <= 5,
                // HEAD and the like have the field, too; an answer without it must be said to have none.
                (said, came) => said == came,
            };
            if said.refused != came.refused || !close {
                wrong.push(format!("{:?} from {}, time {time}: said {said:?}, came {came:?}", case.line, case.source));
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    // The table must have led to all of these.
    let wanted = [
        "pass",
        "over_limit source",
        "over_limit route",
        "over_limit default",
        "over_limit public",
        "over_limit preflight",
        "guessing -",
        "unknown_key -",
        "unkeyed -",
        "key_expired -",
        "key_disabled -",
        "key_shared -",
        "path -",
        "malformed -",
    ];
    let missing: Vec<_> = wanted.iter().filter(|label| !met.contains_key(**label)).collect();
    ensure!(missing.is_empty(), "never met: {missing:?} of {met:?}");
    Ok(())
}

#[test]
fn nothing_comes_of_asking() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _origin = site.serve("routes", Workers::Sync(2))?;
    let enforcer = site.guard(POLICY)?;
    let keys = keys(&enforcer)?;
    let stage = Stage { site: &site, enforcer: &enforcer, keys: &keys };
    for case in cases() {
        stage.send(&case)?;
    }
    let state = || -> Result<BTreeMap<_, _>> {
        let mut state = BTreeMap::new();
        for pin in enforcer.pinned()? {
            // The daemon sets this one each second.
            if pin.parent().is_some_and(|folder| folder.ends_with("maps")) && !pin.ends_with("CLOCK") {
                state.insert(pin.clone(), pin::content(&pin)?);
            }
        }
        Ok(state)
    };
    let before = state()?;
    ensure!(before.len() > 20, "few maps: {:?}", before.keys());
    for case in cases() {
        for source in [case.source, v4(1000)] {
            stage.explain(&Case { source, ..case })?;
        }
    }
    let after = state()?;
    for (pin, content) in &before {
        ensure!(after.get(pin) == Some(content), "{} has changed", pin.display());
    }
    // And the comparison sees what a request leaves.
    stage.send(&case(1, v4(1001), Principal("wide"), "GET", "/"))?;
    ensure!(state()? != before, "a request has left nothing");
    Ok(())
}

#[test]
fn asking_while_requests_are_judged_changes_no_count() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("routes", Workers::Sync(2))?;
    let enforcer = site.guard("[principal.tenant]\nlimit = \"300/hour\"")?;
    let key = add_key(&enforcer, "tenant")?;
    let stage = Stage { site: &site, enforcer: &enforcer, keys: &BTreeMap::new() };
    let question = case(1, v4(1), Principal("tenant"), "GET", "/");
    let (asked, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (endings, asks) = std::thread::scope(|scope| {
        let asks = scope.spawn(|| -> Result<()> {
            while !done.load(Ordering::Relaxed) {
                let explained = stage.explain(&question)?;
                let used = explained["limits"][0]["used"].as_u64().context("no count")?;
                ensure!(used <= 300, "{explained}");
                asked.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        let flood = || -> Result<Endings> {
            let mut all = Endings::new();
            for round in 0..200 {
                if round >= 5 && (asked.load(Ordering::Relaxed) >= 20 || asks.is_finished()) {
                    break;
                }
                for (ending, count) in site.flood(v4(1), 100, |_| keyed("/", &key))? {
                    *all.entry(ending).or_default() += count;
                }
            }
            Ok(all)
        };
        let endings = flood();
        done.store(true, Ordering::Relaxed);
        (endings, asks.join())
    });
    let Ok(asks) = asks else { bail!("the one that asks panicked") };
    asks?;
    ensure!(asked.load(Ordering::Relaxed) >= 20, "it was hardly asked");
    let endings = endings?;
    let sent: usize = endings.values().sum();
    ensure!(endings == statuses([(200, 300), (429, sent - 300)]), "{endings:?}");
    ensure!(origin.executed()?.len() == 300, "the app executed {}", origin.executed()?.len());
    ensure!(refused(&enforcer, "over_limit")? == sent as u64 - 300, "refusals were counted that were none");
    Ok(())
}

#[test]
fn every_rule_is_named_with_its_bucket_and_what_observes_says_what_it_would() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _origin = site.serve("routes", Workers::Sync(2))?;
    let enforcer = site.guard(POLICY)?;
    let keys = keys(&enforcer)?;
    let stage = Stage { site: &site, enforcer: &enforcer, keys: &keys };
    let watched = case(3, v4(1), Principal("wide"), "GET", "/watched");
    for _ in 0..watched.times {
        stage.send(&watched)?;
    }
    let explained = stage.explain(&watched)?;
    let rows: Vec<[&str; 4]> = explained["limits"]
        .as_array()
        .context("no limits")?
        .iter()
        .map(|row| ["rule", "bucket", "mode", "says"].map(|field| row[field].as_str().unwrap_or_default()))
        .collect();
    let wanted = [
        ["principal", "wide", "enforce", "passes"],
        ["principal", "wide", "candidate", "would_refuse"],
        ["source", "10.77.16.1/32", "enforce", "passes"],
        ["route /watched", "wide", "observe", "would_refuse"],
    ];
    ensure!(rows == wanted && explained["verdict"] == "pass", "{explained}");
    ensure!(explained["limits"][0]["used"] == 3 && explained["limits"][0]["limit"] == "1000/hour", "{explained}");
    let mobile = ["explain", "GET", "/", "--source", "10.77.16.2", "--as", "tenant", "--client", "mobile"];
    let shown = enforcer.cli(&mobile)?;
    ensure!(shown.starts_with("pass\n") && shown.contains("tenant/mobile"), "{shown}");
    let unguarded = enforcer.cli(&["explain", "GET", "/", "--source", "10.77.16.2", "--port", "1"])?;
    ensure!(unguarded.starts_with("unguarded") && PORT != 1, "{unguarded}");
    for (line, why) in [
        (
            &["explain", "GET", "/", "--source", "10.77.16.2", "-H", "X_API-Key: 0123456789"][..],
            "never taken from there",
        ),
        (&["explain", "GET", "/ HTTP/1.1\r\nX-API-Key: a", "--source", "10.77.16.2"], "a line ends in it"),
    ] {
        let ran = enforcer.run(line)?;
        ensure!(ran.code == 2 && ran.stderr.contains(why), "{}: {}", ran.code, ran.stderr);
    }
    Ok(())
}
