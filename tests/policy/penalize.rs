//! Limits that count what they refuse: who does not slow down stays out, who waits is let in, and nobody else is harmed.

use std::net::IpAddr;
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use enforcer_tests::client::Ending;
use enforcer_tests::enforcer::Enforcer;
use enforcer_tests::netns::Way;
use enforcer_tests::origin::Workers;

use crate::site::{Site, add_key, apply, executed_at, keyed, statuses, v4, with_policy};

/// What a client met that sends two requests a second.
#[derive(Debug, Default)]
struct Met {
    /// The number of each request that was served.
    served: Vec<usize>,
    refused: usize,
}

/// Sends two requests a second for so long, whatever comes of them.
fn go_on(site: &Site, source: IpAddr, key: &str, time: Duration) -> Result<Met> {
    let begin = Instant::now();
    let mut met = Met::default();
    for number in 0.. {
        sleep((begin + Duration::from_millis(500) * number).saturating_duration_since(Instant::now()));
        if begin.elapsed() >= time {
            break;
        }
        match site.ask(source, &keyed(&format!("/by/{source}"), key))? {
            Ending::Answered(200) => met.served.push(number as usize),
            Ending::Answered(429) => met.refused += 1,
            other => bail!("{other:?}"),
        }
    }
    Ok(met)
}

/// Sends one that is refused; gives how long its client is to wait.
fn retry_after(site: &Site, source: IpAddr, key: &str) -> Result<Duration> {
    let mut curl = site.link.client().command("curl");
    curl.args(["-sS", "-i", "-m", "10", "--interface", &source.to_string(), "-H", &format!("X-API-Key: {key}")]);
    let output = curl.arg(format!("http://{}/", site.server(source))).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(text.starts_with("HTTP/1.1 429 "), "{text}");
    let seconds = text.lines().find_map(|line| line.strip_prefix("Retry-After: ")?.trim().parse().ok());
    Ok(Duration::from_secs(seconds.context("no Retry-After")?))
}

/// What is used of a principal's first rule, and the rule.
fn usage(enforcer: &Enforcer<'_>, name: &str) -> Result<(u64, String)> {
    let listing = enforcer.json(&["limits", name])?;
    let rule = &listing["principals"][0]["rules"][0];
    Ok((rule["used"].as_u64().context("no use")?, rule["rule"].as_str().context("no rule")?.to_owned()))
}

#[test]
fn who_goes_on_stays_refused_and_is_let_in_once_it_has_waited_as_long_as_it_was_told() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("routes", Workers::Sync(2))?;
    let enforcer = site.guard(
        "[principal.sliding]\nlimit = \"5/10seconds penalize=true\"\n\
         [principal.steady]\nlimit = \"5/10seconds burst=5 penalize=true\"\n\
         [principal.plain]\nlimit = \"5/10seconds\"",
    )?;
    let clients = ["sliding", "steady", "plain"].into_iter().zip(1..);
    let clients: Vec<_> =
        clients.map(|(name, host)| Ok((name, v4(host), add_key(&enforcer, name)?))).collect::<Result<_>>()?;
    let met = scope(|scope| {
        let threads: Vec<_> = clients
            .iter()
            .map(|(_, source, key)| scope.spawn(|| go_on(&site, *source, key, Duration::from_secs(32))))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow!("a client panicked"))?)
            .collect::<Result<Vec<_>>>()
    })?;
    let [sliding, steady, plain] = &met[..] else { bail!("{met:?}") };
    ensure!(sliding.served == [0, 1, 2, 3, 4] && sliding.refused > 40, "{sliding:?}");
    // The first five at once, and one for each of the two seconds in which they came.
    ensure!(steady.served.len() <= 7 && steady.served.iter().all(|number| *number < 12), "{steady:?}");
    ensure!(plain.served.len() >= 12 && plain.served.last() > Some(&40), "{plain:?}");
    for ((name, source, _), met) in clients.iter().zip(&met) {
        let (passed, executed) = (met.served.len(), executed_at(&origin, &format!("/by/{source}"))?);
        ensure!(executed == passed, "{name}: {executed} were executed of {passed}");
    }
    // Each is refused once more, and then waits as long as it is told then.
    scope(|scope| {
        let waits = |(name, source, key): &(&'static str, IpAddr, String)| wait(&site, &enforcer, name, *source, key);
        let threads: Vec<_> = clients[..2].iter().map(|client| scope.spawn(move || waits(client))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a client panicked"))?)
    })
}

/// Has a client wait that goes on being refused, until it is let in.
fn wait(site: &Site, enforcer: &Enforcer<'_>, name: &str, source: IpAddr, key: &str) -> Result<()> {
    let told = retry_after(site, source, key)?;
    let asked = Instant::now();
    ensure!((Duration::from_secs(6)..=Duration::from_secs(16)).contains(&told), "{name} is to wait for {told:?}");
    sleep(told.saturating_sub(Duration::from_secs(3)));
    // What is explained is not counted.
    let explained = enforcer.json(&["explain", "GET", "/", "--source", &source.to_string(), "--as", name])?;
    ensure!(explained["verdict"] == "refuse", "{name} would be let in too early: {explained}");
    sleep((asked + told).saturating_duration_since(Instant::now()));
    let ending = site.ask(source, &keyed("/", key))?;
    ensure!(ending == Ending::Answered(200), "{name} had waited for {told:?}: {ending:?}");
    Ok(())
}

#[test]
fn what_one_sends_too_much_of_harms_nobody_else() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("routes", Workers::Sync(2))?;
    let enforcer = site.guard(
        "[service]\nceiling = \"1000/hour\"\nsource = \"10/hour penalize=true\"\n[tenant.acme]\nlimit = \"40/hour\"\n\
         [principal.loud]\ntenant = \"acme\"\nlimit = \"20/hour penalize=true\"\n\
         [principal.calm]\ntenant = \"acme\"\nlimit = \"12/hour penalize=true\"\n\
         [[route]]\npath = \"/few\"\nlimit = \"2/hour penalize=true\"",
    )?;
    let (loud, calm) = (add_key(&enforcer, "loud")?, add_key(&enforcer, "calm")?);
    // Refused by its source, these are no use of its principal, nor of the tenant.
    let endings = site.flood(v4(1), 100, |_| keyed("/", &loud))?;
    ensure!(endings == statuses([(200, 10), (429, 90)]), "from one source: {endings:?}");
    ensure!(usage(&enforcer, "loud")? == (10, "20/hour penalize=true".into()), "{:?}", usage(&enforcer, "loud")?);
    // From other sources it has the rest, and then its own limit counts on.
    let endings = site.flood_from(|number| v4(2 + (number % 20) as u16), 100, |_| keyed("/", &loud))?;
    ensure!(endings == statuses([(200, 10), (429, 90)]), "from many: {endings:?}");
    ensure!(usage(&enforcer, "loud")?.0 == 40, "{:?}", usage(&enforcer, "loud")?);
    // The other has all of its own, of the route's share and of the tenant's, at an address that the first has used, too.
    let endings = site.flood(v4(2), 4, |_| keyed("/few", &calm))?;
    ensure!(endings == statuses([(200, 2), (429, 2)]), "the route: {endings:?}");
    let endings = site.flood_from(|number| v4(30 + number as u16), 20, |_| keyed("/", &calm))?;
    ensure!(endings == statuses([(200, 10), (429, 10)]), "the other's own: {endings:?}");
    let tenant = enforcer.json(&["limits", "calm"])?["tenants"][0]["rules"][0]["used"].as_u64();
    ensure!(tenant == Some(32), "of the tenant's limit {tenant:?} are used");
    ensure!(origin.executed()?.len() == 32, "{} were executed", origin.executed()?.len());
    Ok(())
}

#[test]
fn it_can_be_turned_on_and_off_and_is_shown_and_no_count_is_reset_by_it() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let _origin = site.serve("routes", Workers::Sync(2))?;
    let policy = |option: &str| format!("[principal.alice]\nlimit = \"10/hour{option}\"");
    let enforcer = site.guard(&policy(""))?;
    let key = add_key(&enforcer, "alice")?;
    let send = |count, passed| -> Result<()> {
        let endings = site.flood(v4(1), count, |_| keyed("/", &key))?;
        let expected = statuses([(200, passed), (429, count - passed)]);
        ensure!(endings == expected, "{endings:?}, not {expected:?}");
        Ok(())
    };
    send(14, 10)?;
    ensure!(usage(&enforcer, "alice")? == (10, "10/hour".into()), "{:?}", usage(&enforcer, "alice")?);
    let dry = with_policy(&enforcer, &["apply", "--dry-run", "-f"], &policy(" penalize=true"))?;
    ensure!(dry.stdout.contains("10/hour → 10/hour penalize=true"), "{}", dry.stdout);
    apply(&enforcer, &policy(" penalize=true"))?;
    let exported = enforcer.cli(&["export"])?;
    ensure!(exported.contains("limit = \"10/hour penalize=true\""), "{exported}");
    for (sent, used) in [(4, 14), (50, 20)] {
        let endings = site.flood(v4(1), sent, |_| keyed("/", &key))?;
        ensure!(endings == statuses([(429, sent)]), "{endings:?}");
        ensure!(
            usage(&enforcer, "alice")? == (used, "10/hour penalize=true".into()),
            "{:?}",
            usage(&enforcer, "alice")?
        );
    }
    let explained = enforcer.cli(&["explain", "GET", "/", "--source", "10.77.16.1", "--as", "alice"])?;
    ensure!(explained.contains("10/hour penalize=true"), "{explained}");
    // What was counted stays; raised, there is as much as above that.
    apply(&enforcer, &policy(""))?;
    ensure!(usage(&enforcer, "alice")? == (20, "10/hour".into()), "{:?}", usage(&enforcer, "alice")?);
    enforcer.cli(&["limit", "set", "alice", "25/hour penalize=true"])?;
    let endings = site.flood(v4(1), 7, |_| keyed("/", &key))?;
    ensure!(endings == statuses([(200, 5), (429, 2)]), "{endings:?}");
    for shared in ["[tenant.acme]\nlimit = \"9/hour penalize=true\"", "[service]\nceiling = \"9/hour penalize=true\""] {
        let ran = with_policy(&enforcer, &["apply", "-f"], shared)?;
        ensure!(ran.code == 2 && ran.stderr.contains("one of them could keep all others refused"), "{}", ran.stderr);
    }
    Ok(())
}
