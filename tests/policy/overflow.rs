//! All places for named subjects are taken: who comes then shares one with all others, is counted, and is told so.

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use enforcer_ebpf::abi::{self, Buckets, Scope};
use enforcer_tests::enforcer::Enforcer;
use enforcer_tests::netns::Way;
use enforcer_tests::origin::Workers;
use serde_json::Value;

use crate::site::{Site, add_key, events, executed_at, keyed, statuses, v4};

const POLICY: &str = "[principal.first]\nlimit = \"900/hour\"\n[principal.second]\nlimit = \"900/hour\"\n\
    [principal.third]\nlimit = \"900/hour\"\n[[route]]\npath = \"/search\"\nlimit = \"3/hour\"";

/// Takes all places that are free, for subjects of a rule that there is not.
fn fill(enforcer: &Enforcer<'_>) -> Result<()> {
    let pin = enforcer.bpffs_dir().join(format!("v{}/maps/BUCKETS", abi::ABI));
    let mut map = Map::HashMap(MapData::from_pin(&pin).with_context(|| format!("opening {}", pin.display()))?);
    let mut buckets: HashMap<_, Scope, Buckets> = HashMap::try_from(&mut map)?;
    let free = abi::BUCKETS as usize - buckets.keys().count();
    for number in 0..free as u64 {
        buckets.insert(Scope { rule: u64::from(u32::MAX), subject: [number, 0] }, Buckets::default(), 0)?;
    }
    Ok(())
}

/// What is said of the route's limit, and of the request.
fn explained(enforcer: &Enforcer<'_>, name: &str) -> Result<(String, u64, String)> {
    let said: Value = enforcer.json(&["explain", "GET", "/search", "--source", "10.77.16.1", "--as", name])?;
    let mut limits = said["limits"].as_array().context("no limits")?.iter();
    let route = limits.find(|limit| limit["rule"] == "route /search").with_context(|| format!("no route: {said}"))?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok((text(&route["bucket"]), route["used"].as_u64().context("no use")?, text(&said["verdict"])))
}

#[test]
fn who_has_no_place_shares_one_which_is_counted_and_explained() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let origin = site.serve("routes", Workers::Sync(2))?;
    let enforcer = site.guard(POLICY)?;
    let keys = ["first", "second", "third"].map(|name| add_key(&enforcer, name));
    let [first, second, third] = keys;
    let [first, second, third] = [first?, second?, third?];
    let ask = |key: &str, count| site.flood(v4(1), count, |_| keyed("/search", key));
    ensure!(ask(&first, 1)? == statuses([(200, 1)]), "a place of its own");
    ensure!(explained(&enforcer, "second")? == ("second".to_owned(), 0, "pass".to_owned()), "while there is room");
    fill(&enforcer)?;

    const SHARED: &str = "all others without room of their own";
    let is_shared = |used, verdict: &str| (SHARED.to_owned(), used, verdict.to_owned());
    ensure!(explained(&enforcer, "second")? == is_shared(0, "pass"), "{:?}", explained(&enforcer, "second")?);
    ensure!(events(&enforcer, "bucket_overflow")? == 0, "to ask was counted");
    ensure!(ask(&second, 2)? == statuses([(200, 2)]), "the first two of those without a place");
    ensure!(explained(&enforcer, "third")? == is_shared(2, "pass"), "{:?}", explained(&enforcer, "third")?);
    let endings = ask(&third, 3)?;
    ensure!(endings == statuses([(200, 1), (429, 2)]), "the third: {endings:?}");
    ensure!(explained(&enforcer, "second")? == is_shared(3, "refuse"), "{:?}", explained(&enforcer, "second")?);
    ensure!(ask(&second, 1)? == statuses([(429, 1)]), "all of them together are over it");
    let counted = events(&enforcer, "bucket_overflow")?;
    ensure!(counted == 6, "counted: {counted}");

    // Who has a place goes on by himself, and is not counted.
    ensure!(explained(&enforcer, "first")? == ("first".to_owned(), 1, "pass".to_owned()), "who has a place");
    let endings = ask(&first, 3)?;
    ensure!(endings == statuses([(200, 2), (429, 1)]), "who has a place: {endings:?}");
    ensure!(events(&enforcer, "bucket_overflow")? == 6, "who has a place was counted");
    ensure!(executed_at(&origin, "/search")? == 6, "the app executed {}", executed_at(&origin, "/search")?);
    Ok(())
}
