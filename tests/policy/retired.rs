//! Limits that are taken away: what was used of them is kept while it counts, and takes no place for good.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use enforcer_tests::client::Ending;
use enforcer_tests::enforcer::Enforcer;
use enforcer_tests::netns::Way;
use enforcer_tests::origin::Workers;

use crate::site::{Site, add_key, apply, keyed, v4};

/// Buckets that somebody has used, or that are there ahead.
fn buckets(enforcer: &Enforcer<'_>) -> Result<u64> {
    enforcer.metric("enforcer_map_entries{map=\"BUCKETS\"}")
}

#[test]
fn what_was_used_of_limits_that_are_gone_goes_once_it_does_not_count() -> Result<()> {
    const NONE: &str = "[principal.one]\nlimit = \"9000/hour\"\n[principal.two]\nlimit = \"9000/hour\"\n";
    let routed = format!(
        "{NONE}[[route]]\npath = \"/short\"\nlimit = \"2/second\"\n[[route]]\npath = \"/long\"\nlimit = \"2/hour\"\n"
    );
    let site = Site::new(Way::VethNative)?;
    let _origin = site.serve("routes", Workers::Sync(2))?;
    let mut enforcer = site.guard(NONE)?;
    let keys = [add_key(&enforcer, "one")?, add_key(&enforcer, "two")?];
    // From how many sources each key comes is counted, too.
    for key in &keys {
        ensure!(site.ask(v4(1), &keyed("/", key))? == Ending::Answered(200), "a key without routes is refused");
    }
    let before = buckets(&enforcer)?;
    let use_up = |path: &str| -> Result<()> {
        for key in &keys {
            let asked = |_| site.ask(v4(1), &keyed(path, key));
            let endings = (0..3).map(asked).collect::<Result<Vec<_>>>()?;
            ensure!(endings[2] == Ending::Answered(429), "{path}: {endings:?}");
        }
        Ok(())
    };
    // For each route one for all that come too late, and for each principal one.
    apply(&enforcer, &routed)?;
    use_up("/short")?;
    use_up("/long")?;
    ensure!(buckets(&enforcer)? == before + 6, "{before} before, {} at work", buckets(&enforcer)?);

    // A daemon that takes over knows of the rules that are in the maps.
    enforcer.stop(nix::sys::signal::Signal::SIGTERM)?;
    enforcer.start()?;
    apply(&enforcer, NONE)?;
    let gone = Instant::now();
    while buckets(&enforcer)? != before + 3 {
        ensure!(gone.elapsed() < Duration::from_secs(40), "{} after {:?}", buckets(&enforcer)?, gone.elapsed());
        std::thread::sleep(Duration::from_millis(500));
    }
    ensure!(gone.elapsed() > Duration::from_secs(10), "gone after {:?}, while programs may charge it", gone.elapsed());

    // What goes on counting is there still, and what is gone was nothing.
    apply(&enforcer, &routed)?;
    for key in &keys {
        ensure!(site.ask(v4(1), &keyed("/long", key))? == Ending::Answered(429), "a count was lost with its route");
    }
    use_up("/short")?;
    ensure!(buckets(&enforcer)? == before + 6, "{} when they are back", buckets(&enforcer)?);
    Ok(())
}
