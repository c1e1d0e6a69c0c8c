//! An app's own Flask-Limiter as a policy: what `enforcer import flask-limiter` makes of a real app, and that the policy then
//! does what the app did.

#[path = "policy/site.rs"]
#[expect(dead_code, reason = "the tests of policies use all of it")]
mod site;

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use enforcer_tests::client::Ending;
use enforcer_tests::enforcer::{Ran, binary};
use enforcer_tests::folder;
use enforcer_tests::netns::Way;
use enforcer_tests::origin::{Workers, venv};
use toml::{Table, Value};

use crate::site::{Site, known_key, plain_request, v4};

/// Runs the import in the folder of the apps.
fn import(arguments: &[&str]) -> Result<Ran> {
    let apps = folder().join("apps");
    let mut command = Command::new(binary()?);
    command.args(["import", "flask-limiter"]).args(arguments).arg("--python").arg(venv("python")?);
    Ok(command.current_dir(apps).env("EXECUTION_LOG", "/dev/null").output()?.into())
}

/// A route's fields as one line: its methods, and what counts it.
fn line(route: &Table) -> Result<(String, String)> {
    let text = |name: &str| route.get(name).map(|value| format!(" {name}={value}")).unwrap_or_default();
    let path = route["path"].as_str().unwrap_or_default();
    let rest: String = ["limit", "use", "per", "cost"].iter().map(|name| text(name)).collect();
    Ok((format!("{path}{}", text("methods")), rest.replace('"', "").trim().to_owned()))
}

#[test]
fn every_limit_of_an_app_becomes_one_of_the_policy_or_is_named() -> Result<()> {
    let ran = import(&["shop:app"])?;
    ensure!(ran.code == 0, "{}", ran.stderr);
    let policy: Table = ran.stdout.parse()?;
    let plan = &policy["plan"]["flask-limiter"]["limit"];
    ensure!(plan.as_str() == Some("150/hour algo=fixed"), "the plan: {plan}");
    let routes = policy["route"].as_array().into_iter().flatten().filter_map(Value::as_table);
    let routes: BTreeMap<String, String> = routes.map(line).collect::<Result<_>>()?;
    let defaults = "limit=10/minute algo=fixed; 2000/day algo=fixed";
    let expected = BTreeMap::from(
        [
            ("/static", "limit=unlimited"),
            ("/", defaults),
            ("/search", "limit=20/minute algo=fixed cost=5"),
            ("/goods", "use=items"),
            ("/items methods=[\"GET\"]", "use=items"),
            ("/items methods=[\"POST\"]", "limit=5/minute algo=fixed; 50/hour algo=fixed"),
            ("/user/{number}/orders methods=[\"GET\"]", defaults),
            ("/user/{number}/orders methods=[\"POST\"]", "limit=3/minute algo=fixed"),
            ("/report/a", "use=reports"),
            ("/report/b", "use=reports"),
            ("/files", "limit=7/minute algo=fixed per=source"),
            ("/login", "limit=3/minute algo=fixed"),
            ("/computed", "limit=TODO"),
            ("/typo", defaults),
            ("/client", "limit=6/minute algo=fixed"),
            ("/common methods=[\"GET\"]", "limit=100/360 days algo=fixed per=service"),
            ("/common methods=[\"PUT\"]", "limit=100/360 days algo=fixed per=service"),
            ("/account", "limit=8/minute algo=fixed"),
            ("/{version}/ping", defaults),
            ("/health", "limit=unlimited"),
            ("/admin/users", "limit=4/minute algo=fixed"),
        ]
        .map(|(path, count)| (path.to_owned(), count.to_owned())),
    );
    ensure!(routes == expected, "the routes: {routes:#?}");
    let limits = format!("{}", policy["limit"]).replace('"', "");
    ensure!(
        limits.contains("12/minute algo=fixed") && limits.contains("10/minute algo=fixed"),
        "named limits: {limits}"
    );

    let lost = [
        "`request_filter`",
        "`by_client_and_key` looks at X-API-Key and X-Client-Id",
        "`by_user` ended with LookupError",
        "`everybody` tells the same",
        "`login`: `deduct_when`",
        "`computed`: the limit is made by `<lambda>` (shop.py:",
        "does not understand `100/mintue`",
        "`health` is exempt",
        "`v<int:version>` in `/v<int:version>/ping`",
        "what follows the variable part of `/files/<path:name>/edit`",
        "`/files/<path:name>/edit` (edit) has the path of a rule before it",
        "`search`: its cost counts",
    ];
    for loss in lost {
        ensure!(ran.stderr.contains(loss), "{loss} is not on standard error: {}", ran.stderr);
        let commented = ran.stdout.lines().any(|line| line.starts_with("# - ") && line.contains(loss));
        ensure!(commented, "{loss} is in no comment: {}", ran.stdout);
    }
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), &ran.stdout)?;
    let checked: Ran = Command::new(binary()?).arg("check").arg(file.path()).output()?.into();
    let line = ran.stdout.lines().position(|line| line == "limit = \"TODO\"").map(|line| line + 1);
    let place = format!("{}:{}:", file.path().display(), line.context("nothing is to be written")?);
    ensure!(checked.code == 2 && checked.stderr.contains(&place), "{place}: {}", checked.stderr);
    let told = ran.stderr.lines().filter(|line| line.starts_with("warning: ")).count();
    let commented = ran.stdout.lines().filter(|line| line.starts_with("# - ")).count();
    ensure!(told == commented && ran.stderr.lines().count() == told, "more or less is told: {}", ran.stderr);
    Ok(())
}

#[test]
fn an_app_is_found_as_its_server_finds_it_and_what_is_wrong_is_said() -> Result<()> {
    let of_app = import(&["shop:app"])?;
    let file = tempfile::NamedTempFile::new()?;
    let path = file.path().to_string_lossy().into_owned();
    let made = import(&["shop:create_app()", "-o", &path])?;
    ensure!(made.code == 0 && made.stdout.is_empty(), "{}{}", made.stdout, made.stderr);
    let text = fs::read_to_string(&path)?;
    ensure!(text.replace("shop:create_app()", "shop:app") == of_app.stdout, "another policy: {text}");
    let named = import(&["shop:create_app"])?;
    ensure!(named.stdout.replace("shop:create_app", "shop:app") == of_app.stdout, "another policy: {}", named.stderr);
    for (app, code, said) in [
        ("shop", 2, "MODULE:APP"),
        (":app", 2, "MODULE:APP"),
        ("nowhere:app", 1, "No module named 'nowhere'"),
        ("shop:nothing", 1, "no attribute 'nothing'"),
        ("plain:app", 1, "0 limiters"),
    ] {
        let ran = import(&[app])?;
        ensure!(ran.code == code && ran.stderr.contains(said), "{app} ends with {}: {}", ran.code, ran.stderr);
    }
    Ok(())
}

#[test]
fn the_policy_lets_through_what_the_app_s_own_limiter_served() -> Result<()> {
    let site = Site::new(Way::VethNative)?;
    let requests = [
        ("GET", "/", 20),
        ("GET", "/search", 10),
        ("GET", "/goods", 6),
        ("GET", "/items", 10),
        ("POST", "/items", 10),
        ("GET", "/user/7/orders", 20),
        ("POST", "/user/7/orders", 10),
        ("GET", "/report/a", 8),
        ("GET", "/report/b", 8),
        ("GET", "/files/a/b", 20),
        ("GET", "/client", 20),
        ("PUT", "/common", 5),
        ("GET", "/admin/users", 20),
    ];
    let key = known_key(0);
    let served = || -> Result<Vec<usize>> {
        requests
            .iter()
            .map(|(method, path, count)| {
                let fields = [("X-API-Key", key.as_str()), ("Content-Length", "0")];
                let endings = site.flood(v4(1), *count, |_| plain_request(method, path, &fields))?;
                Ok(endings.get(&Ending::Answered(200)).copied().unwrap_or(0))
            })
            .collect()
    };
    let alone = {
        // One worker: its memory is the only one.
        let _origin = site.serve("shop", Workers::Sync(1))?;
        served()?
    };
    ensure!(alone == [10, 4, 6, 4, 5, 10, 3, 8, 4, 7, 6, 5, 4], "the app alone: {alone:?}");

    let policy = import(&["shop:app"])?.stdout.replace("version = 1", "").replace("\"TODO\"", "\"unlimited\"");
    let origin = site.serve("routes", Workers::Sync(4))?;
    let enforcer = site.guard(&format!("{policy}\n[principal.tenant]\nplan = \"flask-limiter\""))?;
    site::take_over(&enforcer, [("tenant", 0)])?;
    let behind = served()?;
    ensure!(behind == alone, "behind the enforcer: {behind:?}");
    ensure!(origin.executed_with(&key)? == alone.iter().sum::<usize>(), "the app executed something else");
    Ok(())
}
