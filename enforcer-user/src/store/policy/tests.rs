use std::time::Instant;

use enforcer_ebpf::abi::KeyTag;
use proptest::prelude::*;

use super::*;
use crate::policy::service::{OwnLimit, Service, Unregistered};
use crate::policy::{file, samples};
use crate::store::Key;

struct Fixture {
    dir: tempfile::TempDir,
    store: Store,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(&dir.path().join("store.db")).expect("the store opens");
        Self { dir, store }
    }

    /// Closes the store and opens it again.
    fn reopened(self) -> Self {
        let Self { dir, store } = self;
        drop(store);
        let store = Store::open(&dir.path().join("store.db")).expect("the store opens");
        Self { dir, store }
    }

    fn write(&self, policy: &Policy) -> Placed {
        let change = self.store.begin().expect("begins");
        let placed = self.store.write_policy(policy, now()).expect("written");
        change.commit().expect("commits");
        placed
    }

    fn read(&self) -> (Policy, Placed) {
        self.store.policy(now()).expect("read")
    }
}

fn second(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

fn now() -> Timestamp {
    second(1_700_000_000)
}

fn limits(text: &str) -> Limits {
    text.parse().expect(text)
}

fn policy(rules: &str) -> Policy {
    file::parse("p.toml", &format!("version = 1\n{rules}")).unwrap_or_else(|problems| panic!("{problems}"))
}

#[test]
fn without_a_policy_the_defaults_hold() {
    assert_eq!(Fixture::new().read(), (Policy::default(), Placed::default()));
}

#[test]
fn numbers_are_never_given_to_another() {
    let fixture = Fixture::new();
    let first = policy(
        "[service]\nclient_id = \"c\"\n[limit.s]\nlimit = \"1/s\"\n[[route]]\npath = \"/a/{id}\"\nlimit = \"1/s\"\n\
         [[route]]\npath = \"/b\"\nuse = \"s\"\n[[route]]\npath = \"/c\"\ncost = 2\n\
         [[public]]\npath = \"/a\"\nlimit = \"1/s\"\n\
         [principal.a]\nlimit = \"1/s\"\n[principal.a.clients]\nx = \"1/s\"\nother = \"1/s\"\n[principal.b]\nlimit = \"1/s\"\n",
    );
    let placed = fixture.write(&first);
    let scopes =
        |site: &PlacedSite| site.routes.iter().map(|one| one.as_ref().map(|one| one.scope)).collect::<Vec<_>>();
    let numbers = |placed: &Placed| {
        let site = &placed.services[DEFAULT_SERVICE];
        (site.limits["s"].scope, scopes(site), site.public[0].scope)
    };
    assert_eq!(numbers(&placed), (16, vec![Some(17), Some(16), None], 18));
    let index = |placed: &Placed, name: &str| placed.principals[name].index;
    assert_eq!((index(&placed, "a"), index(&placed, "b")), (1, 2));
    let clients = |placed: &Placed| {
        placed.principals["a"].clients.iter().map(|(id, one)| (id.clone(), one.number)).collect::<Vec<_>>()
    };
    assert_eq!(clients(&placed), [("other".to_owned(), 0), ("x".into(), 1)]);

    // All of it goes, others come.
    let second = policy(
        "[service]\nclient_id = \"c\"\n[limit.t]\nlimit = \"1/s\"\n[[route]]\npath = \"/a\"\nlimit = \"1/s\"\n\
         [principal.a]\nlimit = \"1/s\"\n[principal.a.clients]\ny = \"1/s\"\n[principal.c]\nlimit = \"1/s\"\n",
    );
    let placed = fixture.write(&second);
    let site = &placed.services[DEFAULT_SERVICE];
    assert_eq!((site.limits["t"].scope, scopes(site)), (19, vec![Some(20)]));
    assert_eq!((index(&placed, "a"), index(&placed, "c")), (1, 3));
    assert_eq!(clients(&placed), [("y".to_owned(), 2)]);
    assert_eq!(fixture.store.principal("b").expect("read"), None);
    assert_eq!(fixture.store.sizes().expect("sizes"), (0, 2));

    // What was there before has its number back; the name of a segment is no part of it.
    let fixture = fixture.reopened();
    let mut third = first.clone();
    third.services.get_mut(DEFAULT_SERVICE).expect("a service").routes[0].path =
        Pattern::parse("/a/{other}").expect("a path");
    let placed = fixture.write(&third);
    assert_eq!(numbers(&placed), (16, vec![Some(17), Some(16), None], 18));
    assert_eq!((index(&placed, "a"), index(&placed, "b")), (1, 2));
    assert_eq!(clients(&placed), [("other".to_owned(), 0), ("x".into(), 1)]);
    assert_eq!(fixture.read(), (third, placed));
}

#[test]
fn numbers_of_what_was_only_tried_are_its_own() {
    let fixture = Fixture::new();
    let route = |path: &str| policy(&format!("[[route]]\npath = \"{path}\"\nlimit = \"1/s\"\n"));
    let scope = |placed: Placed| placed.services[DEFAULT_SERVICE].routes[0].as_ref().map(|one| one.scope);
    let change = fixture.store.begin().expect("begins");
    fixture.store.number(&route("/tried")).expect("numbered");
    change.commit().expect("commits");
    assert_eq!(fixture.read().0, Policy::default());
    assert_eq!(scope(fixture.write(&route("/other"))), Some(17));
    assert_eq!(scope(fixture.write(&route("/tried"))), Some(16));
}

#[test]
fn exemptions_keep_their_numbers_and_take_fresh_ones() {
    let fixture = Fixture::new();
    let exemption = |path: &str| {
        format!("[[exempt]]\npath = \"{path}\"\nsources = [\"::1\"]\nuntil = 2030-01-01T00:00:00Z\nreason = \"r\"\n")
    };
    let write = |paths: &[&str]| {
        let policy = policy(&paths.iter().map(|path| exemption(path)).collect::<String>());
        let placed = fixture.write(&policy);
        let names = policy.services[DEFAULT_SERVICE].exempt.iter().map(|one| one.path.to_string());
        names.zip(placed.services[DEFAULT_SERVICE].exempt.clone()).collect::<Vec<_>>()
    };
    let pair = |path: &str, number: u32| (path.to_owned(), number);
    assert_eq!(write(&["/b", "/c"]), [pair("/b", 0), pair("/c", 1)]);
    // Number 0 has just had another meaning.
    assert_eq!(write(&["/a", "/c"]), [pair("/a", 2), pair("/c", 1)]);
    assert_eq!(write(&["/a", "/c", "/d"]), [pair("/a", 2), pair("/c", 1), pair("/d", 0)]);
    let names: Vec<String> = (0..64).map(|number| format!("/{number:02}")).collect();
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut numbers: Vec<_> = write(&all).into_iter().map(|(_, number)| number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..64).collect::<Vec<_>>());
    assert_eq!(write(&["/a"])[0].1, 0);
}

#[test]
fn a_changed_limit_keeps_its_bucket() {
    let fixture = Fixture::new();
    let rules = |limit: &str, candidate: &str| {
        policy(&format!(
            "[service]\nceiling = \"{limit}\"\nsource = \"{limit}\"\nguesses = \"{limit}\"\npreflight = \"{limit}\"\nunkeyed = \"{limit}\"\n\
             unregistered = {{ limit = \"{limit}\", max_keys = 7 }}\n\
             candidate = {{ ceiling = \"{candidate}\", source = \"{candidate}\", preflight = \"{candidate}\", \
             unkeyed = \"{candidate}\", unregistered = \"{candidate}\" }}\n\
             client_id = \"c\"\n[limit.s]\nlimit = \"{limit}\"\ncandidate = \"{candidate}\"\n\
             [[route]]\npath = \"/a\"\nlimit = \"{limit}\"\ncandidate = \"{candidate}\"\n\
             [[public]]\npath = \"/p\"\nlimit = \"{limit}\"\ncandidate = \"{candidate}\"\n\
             [plan.g]\nlimit = \"{limit}\"\ncandidate = \"{candidate}\"\n\
             [principal.a]\nplan = \"g\"\n[principal.a.clients]\nx = \"{limit}\"\n"
        ))
    };
    let first = rules("100/minute; 5/second", "9/second");
    fixture.write(&first);
    let second = rules("7/hour; 6/second; 90/minute", "8/second; 7/day");
    let placed = fixture.write(&second);
    let (limit, candidate) = (limits("90/minute; 6/second; 7/hour"), Some(limits("8/second; 7/day")));
    let quota = |scope| PlacedQuota { scope, limits: limit.clone(), candidate: candidate.clone() };
    let site = &placed.services[DEFAULT_SERVICE];
    assert_eq!(site.limits["s"], quota(16));
    assert_eq!(site.routes, [Some(quota(17))]);
    assert_eq!(site.public, [quota(18)]);
    let alice = &placed.principals["a"];
    assert_eq!((&alice.limits, &alice.candidate, &alice.clients["x"].limits), (&limit, &candidate, &limit));
    let all = Some(limit.clone());
    let service = Service {
        ceiling: all.clone(),
        source: all,
        guesses: limit.clone(),
        preflight: limit.clone(),
        unkeyed: limit.clone(),
        unregistered: Some(Unregistered { limits: limit, max_keys: 7 }),
        candidates: BTreeMap::from(OwnLimit::WITH_CANDIDATE.map(|one| (one, limits("8/second; 7/day")))),
        client_id: site.service.client_id.clone(),
        ..Service::default()
    };
    // The defaults were there before, by the minute too.
    assert_eq!(site.service, service);
    assert_eq!(fixture.reopened().read(), (second, placed));
}

#[test]
fn an_override_ends_without_a_write() {
    let fixture = Fixture::new();
    let policy = policy(
        "[plan.g]\nlimit = \"100/day; 5/second\"\n[principal.a]\nplan = \"g\"\nlimit = \"9/second; 9/minute\"\n\
         until = 2023-11-15T00:00:00Z\n",
    );
    let alice = &fixture.write(&policy).principals["a"];
    let until = "2023-11-15T00:00:00Z".parse().expect("a time");
    assert_eq!(alice.limits, limits("9/minute; 9/second"));
    // What follows counts in the bucket of the second where that has counted so far.
    assert_eq!(alice.next, Some((until, limits("100/day; 5/second"))));
    let (read, placed) = fixture.store.policy(until).expect("read");
    let alice = &placed.principals["a"];
    assert_eq!((read, &alice.limits, &alice.next), (policy, &limits("100/day; 5/second"), &None));
}

#[test]
fn one_principal_is_written_by_itself() {
    let fixture = Fixture::new();
    let mut policy = policy(
        "[service]\nclient_id = \"c\"\n[plan.g]\nlimit = \"1/second\"\ncandidate = \"2/second\"\n\
         [principal.a]\nplan = \"g\"\n[principal.b]\nplan = \"g\"\n",
    );
    fixture.write(&policy);
    let clients = BTreeMap::from([("x".to_owned(), limits("1/day"))]);
    let instead = Some(Override { limits: limits("3/second"), until: None });
    let terms = Terms::Plan { plan: "g".into(), instead };
    let principal = Principal { terms, clients, ..Principal::of(Limits::Unlimited) };
    let placed = fixture.store.write_principal("b", &principal, now()).expect("written");
    assert_eq!((placed.index, placed.limits.to_string()), (2, "3/second".to_owned()));
    assert_eq!(placed.candidate, Some(limits("2/second")));
    policy.principals.insert("b".into(), principal.clone());
    let new = fixture.store.write_principal("c", &Principal::of(limits("4/second")), now()).expect("written");
    assert_eq!(new.index, 3);
    policy.principals.insert("c".into(), Principal::of(limits("4/second")));
    let (read, all) = fixture.read();
    assert_eq!((read, &all.principals["b"], &all.principals["c"]), (policy, &placed, &new));
    let terms = Terms::Plan { plan: "silver".into(), instead: None };
    let error = fixture.store.write_principal("d", &Principal { terms, ..principal }, now()).expect_err("no plan");
    assert!(matches!(error, Error::NoPlan { .. }), "{error}");
}

#[test]
fn a_principal_with_keys_is_not_removed() {
    let fixture = Fixture::new();
    fixture.write(&policy("[principal.a]\nlimit = \"1/s\"\n"));
    let tag = KeyTag([1, 2]);
    fixture.store.add_key(&Key::new(tag, 1, now())).expect("added");
    let error = fixture.store.write_policy(&Policy::default(), now()).expect_err("keyed");
    assert!(matches!(error, Error::Keyed { .. }), "{error}");
    fixture.store.remove_key(tag).expect("removed");
    fixture.write(&Policy::default());
    assert_eq!(fixture.read(), (Policy::default(), Placed::default()));
    let again = fixture.store.add_principal("a", limits("2/second"), now()).expect("added");
    assert_eq!(again.index, 1);
    assert_eq!(fixture.read().0.principals["a"], Principal::of(limits("2/second")));
    assert!(fixture.store.add_principal("a", limits("2/second"), now()).is_err());
    assert_eq!(fixture.store.add_principal("b", limits("2/second"), now()).expect("added").index, 2);
}

#[test]
fn limits_that_are_set_stand_in_the_place_of_the_plans() {
    let fixture = Fixture::new();
    fixture.write(&policy("[plan.g]\nlimit = \"1/s\"\n[principal.a]\nplan = \"g\"\n"));
    fixture.store.set_limits(1, &limits("7/second")).expect("set");
    let instead = Some(Override { limits: limits("7/second"), until: None });
    assert_eq!(fixture.read().0.principals["a"].terms, Terms::Plan { plan: "g".into(), instead });
}

#[test]
fn services_share_no_number_and_keep_their_own() {
    let fixture = Fixture::new();
    let service = |name: &str, exempt: &str| {
        format!(
            "[[service]]\nname = \"{name}\"\n[service.limit.s]\nlimit = \"1/s\"\n[[service.route]]\npath = \"/a\"\n\
             limit = \"1/s\"\n[[service.public]]\npath = \"/p\"\nlimit = \"1/s\"\n[[service.exempt]]\npath = \"{exempt}\"\n\
             sources = [\"::1\"]\nuntil = 2030-01-01T00:00:00Z\nreason = \"r\"\n"
        )
    };
    let all = |placed: &Placed| {
        let of = |site: &PlacedSite| {
            let route = site.routes[0].as_ref().map(|one| one.scope);
            (site.number, site.limits["s"].scope, route, site.public[0].scope, site.exempt.clone())
        };
        placed.services.iter().map(|(name, site)| (name.clone(), of(site))).collect::<Vec<_>>()
    };
    let both = policy(&(service("api", "/x") + &service("default", "/x")));
    let placed = fixture.write(&both);
    let api = ("api".to_owned(), (1, 16, Some(18), 20, vec![0]));
    assert_eq!(all(&placed), [api.clone(), ("default".into(), (0, 17, Some(19), 21, vec![1]))]);
    // One that goes and comes again is the same; one that is new has a number that nobody had.
    let fixture = fixture.reopened();
    fixture.write(&policy(&service("default", "/x")));
    let placed = fixture.write(&policy(&(service("api", "/x") + &service("web", "/x"))));
    assert_eq!(all(&placed)[0].1.0, 1);
    assert_eq!(all(&placed)[1], ("web".into(), (2, 22, Some(23), 24, vec![2])));
    assert_eq!((all(&placed)[0].1.1, all(&placed)[0].1.2), (api.1.1, api.1.2));
}

#[test]
fn a_store_of_one_service_is_taken_over_with_its_numbers() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("store.db");
    let older = rusqlite::Connection::open(&path).expect("opens");
    // The schema before there were several services.
    super::super::MIGRATIONS[..4].iter().for_each(|one| older.execute_batch(one).expect("migrates"));
    let rows = "
        INSERT INTO service (id, ceiling, guesses, guess_penalty_ms, strict_guesses, preflight, trusted_proxies,
            proxy_protocol, keys_most, keys_within_ms, keys_action, sources_most, sources_within_ms, sources_action)
            VALUES (1, '9/second', '10/minute', 300000, 0, '60/minute', '', 'off', 20, 600000, 'alert', 25, 600000, 'alert');
        INSERT INTO scopes (number, identity) VALUES (16, 'limit s'), (17, 'route /b *'), (18, 'public /p *');
        INSERT INTO limits (name, limits, per, mode) VALUES ('s', '1/second', 'principal', 'enforce');
        INSERT INTO routes (path, methods, shared, cost) VALUES ('/a', 255, 's', 2);
        INSERT INTO public (path, methods, limits) VALUES ('/p', 255, '1/second');
        INSERT INTO exempt (number, path, methods, sources, until, reason) VALUES (7, '/x', 255, '::1', 1900000000, 'r');
        PRAGMA application_id = 1701733987; PRAGMA user_version = 4;
    ";
    older.execute_batch(rows).expect("written");
    drop(older);
    let (policy, _) = Store::open(&path).expect("migrates").policy(now()).expect("read");
    let expected = "version = 1\n[service]\nceiling = \"9/second\"\n[limit.s]\nlimit = \"1/second\"\n[[route]]\npath = \"/a\"\n\
                    use = \"s\"\ncost = 2\n[[public]]\npath = \"/p\"\nlimit = \"1/second\"\n[[exempt]]\npath = \"/x\"\n\
                    sources = [\"::1\"]\nuntil = 2030-03-17T17:46:40Z\nreason = \"r\"\n";
    assert_eq!(Ok(policy.export()), file::parse("p.toml", expected).map(|policy| policy.export()));
}

#[test]
fn says_which_row_it_cannot_read() {
    let fixture = Fixture::new();
    fixture.write(&policy("[[route]]\npath = \"/a\"\nlimit = \"1/s\"\n[principal.a]\nlimit = \"1/s\"\n"));
    for (statement, message) in [
        ("UPDATE routes SET per = 'key'", "the store holds what it should not, routes `/a`: per: \"key\""),
        (
            "UPDATE routes SET per = 'source', limits = '?'",
            "the store holds what it should not, routes `/a`: limits: column 1",
        ),
        (
            "UPDATE routes SET limits = '1/second'; UPDATE principals SET own = '?'",
            "the store holds what it should not, principal `a`: own: column 1",
        ),
    ] {
        fixture.store.connection.execute_batch(statement).expect("written");
        let error = fixture.store.policy(now()).expect_err(statement).to_string();
        assert!(error.starts_with(message), "{error}");
    }
}

#[test]
fn writes_many_principals_in_little_time() {
    let fixture = Fixture::new();
    let mut policy = samples::large(samples::MANY);
    let begin = Instant::now();
    fixture.write(&policy);
    let written = begin.elapsed();
    let (read, placed) = fixture.read();
    eprintln!("written in {written:?}, read in {:?}", begin.elapsed() - written);
    assert_eq!((read == policy, placed.principals.len()), (true, samples::MANY));
    if let Some(plan) = policy.plans.get_mut("gold") {
        plan.limits = limits("50/minute");
    }
    let begin = Instant::now();
    fixture.write(&policy);
    eprintln!("half of them changed in {:?}", begin.elapsed());
    assert!(begin.elapsed().as_secs() < 60, "{:?}", begin.elapsed());
}

#[test]
fn plans_and_tenants_go_in_a_time_that_no_principals_prolong() {
    let fixture = Fixture::new();
    let mut policy = samples::large(samples::MANY);
    let before = policy.clone();
    let gold = policy.plans.values().next().cloned().expect("a plan");
    for number in 0..10_000 {
        policy.plans.insert(format!("plan-{number}"), gold.clone());
    }
    for number in 0..1_000 {
        policy.tenants.insert(format!("tenant-{number}"), gold.clone());
    }
    fixture.write(&policy);
    let begin = Instant::now();
    fixture.write(&before);
    let beside = begin.elapsed();
    eprintln!("11,000 plans and tenants removed in {beside:?}");
    assert!(beside.as_secs() < 8, "{beside:?}");
    assert_eq!(fixture.read().0, before);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_is_read(policies in prop::collection::vec(samples::policy(), 1..4)) {
        let fixture = Fixture::new();
        for policy in policies {
            let placed = fixture.write(&policy);
            let (read, again) = fixture.read();
            prop_assert_eq!(&read, &policy);
            prop_assert_eq!(&again, &placed);
            // As a start reads it.
            let (mut read, mut again) = fixture.store.policy_of_services(now()).expect("read");
            prop_assert!(read.principals.is_empty() && again.principals.is_empty());
            let mut last = 0;
            let Policy { plans, principals, .. } = &mut read;
            let each = fixture.store.each_principal(plans, now(), |name, said, numbers| {
                assert!(numbers.index > last, "by index");
                last = numbers.index;
                principals.insert(name.clone(), said);
                again.principals.insert(name, numbers);
            });
            each.expect("read");
            prop_assert_eq!((read, again), (policy, placed));
        }
    }
}
