use std::collections::HashMap;

use enforcer_ebpf::abi::{self, Edge, KeyTag, Rule, Ruleset, Service};
use enforcer_ebpf::http::bytes::{BASE, CAPACITY, Window};
use enforcer_ebpf::http::{Cursor, Lookup, Machine as Reader, Refusal, Step, Terms};
use enforcer_ebpf::key;
use enforcer_ebpf::source::Address;
use enforcer_ebpf::verdict::Reason;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::policy::document::{Charge, DEFAULT_SERVICE, Site};
use crate::policy::method::Methods;
use crate::policy::path::segments;
use crate::policy::{file, samples};

const SECRET: [u64; 2] = [3, 5];

/// The automaton of one service.
fn compile_one(site: &Site, bits: &[u32], room: Room) -> Result<Automaton, TooLarge> {
    compile(&[Branch { site, bits, service: 0 }], SECRET, room)
}

/// The automaton, run as the program does.
struct Machine {
    automaton: Automaton,
    edges: HashMap<Edge, u64>,
}

impl Machine {
    fn new(automaton: Automaton) -> Self {
        let edges = automaton.edges.iter().copied().collect();
        Self { automaton, edges }
    }

    fn of(policy: &Site) -> Self {
        let bits: Vec<u32> = (0..policy.exempt.len() as u32).collect();
        Self::new(compile_one(policy, &bits, Room::ALL).expect("fits"))
    }

    /// The number of the rule of a path and method, 0 = none.
    fn rule(&self, path: &[Vec<u8>], method: u32) -> u32 {
        self.rule_at(self.state(path), method)
    }

    /// The state that a path ends in.
    fn state(&self, path: &[Vec<u8>]) -> u32 {
        let mut state = self.automaton.first();
        for segment in path {
            if state == 0 {
                return 0;
            }
            state = self.next(state, key::tag(SECRET, segment));
        }
        state
    }

    /// The number of the rule of a method where a path has ended.
    fn rule_at(&self, state: u32, method: u32) -> u32 {
        self.leaf_at(state, 0).map_or(0, |leaf| leaf.rules[method as usize])
    }

    /// What a branch has where a path has ended.
    fn leaf_at(&self, state: u32, branch: u32) -> Option<abi::Leaf> {
        let automaton = &self.automaton;
        let first = automaton.states[state.checked_sub(1)? as usize].leaf.checked_sub(1)?;
        Some(automaton.leaves[(first + branch) as usize])
    }

    /// What the program's reading of a request comes to: the number of the rule that holds.
    fn read(&self, method: &str, target: &[u8]) -> Result<u32, Refusal> {
        let request = [method.as_bytes(), b" ", target, b" HTTP/1.1\r\nHost: t\r\n\r\n"].concat();
        let ruleset = Ruleset { routes: self.automaton.first(), ..Ruleset::default() };
        let service = Service { rules: 1, ..Service::DEFAULT };
        let terms = Terms { service: &service, rules: &ruleset, peer: Address::default(), secret: SECRET };
        let (mut reader, mut window) = (Reader::default(), Box::<Window>::default());
        for piece in request.chunks(CAPACITY as usize) {
            let pos = reader.resume(&mut window);
            window.fresh()[..piece.len()].copy_from_slice(piece);
            let mut cursor = Cursor { pos, end: BASE + piece.len() as u32 };
            loop {
                match reader.step(&window, &mut cursor, &terms, self) {
                    Step::More => {}
                    Step::Starved => break,
                    Step::Head => return Ok(self.rule_at(reader.route(), reader.method_number())),
                    Step::Refused(refusal) => return Err(refusal),
                }
            }
            reader.suspend(&window, cursor);
        }
        panic!("{} has no end", String::from_utf8_lossy(&request));
    }

    fn resolution(&self, path: &[Vec<u8>], method: u32) -> (Resolution, Option<Rule>) {
        self.resolution_of(self.rule(path, method))
    }

    fn resolution_of(&self, rule: u32) -> (Resolution, Option<Rule>) {
        let Some(number) = rule.checked_sub(1) else { return (Resolution::default(), None) };
        let rule = self.automaton.rules[number as usize];
        let exempt = (0..64).filter(|bit| rule.exempt & 1 << bit != 0).collect();
        let (_, origin) = self.automaton.origins[number as usize];
        let resolution = match origin {
            Origin::Route(place) => Resolution { exempt, public: None, route: Some(place) },
            Origin::Public(place) => Resolution { exempt, public: Some(place), route: None },
            Origin::Exempt => Resolution { exempt, public: None, route: None },
        };
        (resolution, Some(rule))
    }
}

impl Lookup for Machine {
    fn next(&self, state: u32, segment: KeyTag) -> u32 {
        let edge = Edge { state: u64::from(state), segment: segment.0 };
        let other = self.automaton.states[state as usize - 1].other;
        self.edges.get(&edge).map_or(other, |&next| next as u32)
    }

    fn is_trusted(&self, _: Address, _: u64) -> bool {
        false
    }
}

fn policy(rules: &str) -> Site {
    let policy = file::parse("p.toml", &format!("version = 1\n{rules}"));
    let mut policy = policy.unwrap_or_else(|problems| panic!("{problems}"));
    policy.services.remove(DEFAULT_SERVICE).expect("a service")
}

/// A policy of routes that differ in their costs, which count from 2.
fn routes(paths: &[&str]) -> Site {
    let entry = |(place, path)| format!("[[route]]\npath = \"{path}\"\ncost = {}\n", place + 2);
    policy(&paths.iter().enumerate().map(entry).collect::<String>())
}

/// The path of the route that holds.
fn found(policy: &Site, path: &str, method: u32) -> Option<String> {
    let path = segments(path.as_bytes()).expect("a path");
    let (resolution, _) = Machine::of(policy).resolution(&path, method);
    assert_eq!(resolution, resolve(policy, &path, method));
    let route = resolution.route.map(|place| policy.routes[place].to_string());
    route.or(resolution.public.map(|place| format!("public {}", policy.public[place])))
}

#[test]
fn the_longest_path_holds_and_a_literal_goes_before_any_segment() {
    let policy = routes(&["/a/{id}/b", "/a/x", "/a", "/{any}/x/b/c"]);
    for (path, route) in [
        ("/a", Some("/a")),
        ("/a/x", Some("/a/x")),
        // The literal leads nowhere further; the longer path is found through `{id}`.
        ("/a/x/b", Some("/a/{id}/b")),
        ("/a/x/b/c", Some("/{any}/x/b/c")),
        ("/a/x/b/d", Some("/a/{id}/b")),
        ("/a/x/c", Some("/a/x")),
        ("/a/y", Some("/a")),
        ("/a/y/b/z/z", Some("/a/{id}/b")),
        ("/b", None),
        ("/", None),
        ("//a//x/", Some("/a/x")),
        ("/%61/%78", Some("/a/x")),
        ("/A", None),
    ] {
        assert_eq!(found(&policy, path, 0).as_deref(), route, "{path}");
    }
}

#[test]
fn a_pattern_stands_at_different_segments_of_one_path() {
    let policy = routes(&["/{a}/{b}/x", "/x/{b}/{c}/x"]);
    assert_eq!(found(&policy, "/x/x/x/x", 0).as_deref(), Some("/x/{b}/{c}/x"));
    assert_eq!(found(&policy, "/x/x/x", 0).as_deref(), Some("/{a}/{b}/x"));
    assert_eq!(found(&policy, "/x/x", 0), None);
}

#[test]
fn a_longer_route_of_other_methods_leaves_a_shorter_one() {
    let policy =
        policy("[[route]]\npath = \"/a\"\ncost = 2\n[[route]]\npath = \"/a/b\"\nmethods = [\"GET\"]\ncost = 3\n");
    assert_eq!(found(&policy, "/a/b", Methods::number("GET")).as_deref(), Some("/a/b GET"));
    assert_eq!(found(&policy, "/a/b", Methods::number("HEAD")).as_deref(), Some("/a/b GET"));
    assert_eq!(found(&policy, "/a/b", Methods::number("POST")).as_deref(), Some("/a"));
    assert_eq!(found(&policy, "/a/b", Methods::number("PROPFIND")).as_deref(), Some("/a"));
}

#[test]
fn public_goes_before_any_route_for_its_methods() {
    let policy = policy(
        "[[route]]\npath = \"/a/b/c\"\ncost = 2\n[[route]]\npath = \"/h\"\ncost = 2\n\
         [[public]]\npath = \"/a/*\"\nmethods = [\"GET\"]\nlimit = \"1/s\"\n[[public]]\npath = \"/h\"\nlimit = \"1/s\"\n",
    );
    let (get, post) = (Methods::number("GET"), Methods::number("POST"));
    assert_eq!(found(&policy, "/a/b/c", get).as_deref(), Some("public /a/* GET"));
    assert_eq!(found(&policy, "/a/b/c", post).as_deref(), Some("/a/b/c"));
    assert_eq!(found(&policy, "/a", get).as_deref(), Some("public /a/* GET"));
    assert_eq!(found(&policy, "/h", post).as_deref(), Some("public /h"));
    assert_eq!(found(&policy, "/h/i", post).as_deref(), Some("/h"));
}

#[test]
fn rules_say_what_they_are_and_whom_they_are_not_for() {
    let policy = policy(
        "[limit.s]\nlimit = \"1/s\"\nper = \"service\"\n[[route]]\npath = \"/r\"\nuse = \"s\"\ncost = 7\n\
         [[public]]\npath = \"/p\"\nlimit = \"1/s\"\n\
         [[exempt]]\npath = \"/*\"\nsources = [\"::1\"]\nuntil = 2030-01-01T00:00:00Z\nreason = \"r\"\n",
    );
    let bits = [40];
    let machine = Machine::new(compile_one(&policy, &bits, Room::ALL).expect("fits"));
    let rule = |path: &str| machine.resolution(&segments(path.as_bytes()).expect("a path"), 0).1.expect("a rule");
    let exempt = 1 << 40;
    let route = Rule { exempt, per: abi::Per::Service as u32, cost: 7, ..Rule::default() };
    let but_for_identity = |path: &str| Rule { identity: 0, ..rule(path) };
    assert_eq!(but_for_identity("/r/x"), route);
    let public = Rule { exempt, per: abi::Per::Source as u32, cost: 1, flags: Rule::PUBLIC, ..Rule::default() };
    assert_eq!(but_for_identity("/p"), public);
    assert_eq!(but_for_identity("/q"), Rule { exempt, per: abi::Per::Principal as u32, cost: 1, ..Rule::default() });
}

#[test]
fn a_rule_is_known_by_what_it_is_of_wherever_it_lies() {
    let exempt = "[[exempt]]\npath = \"/h\"\nsources = [\"::1\"]\nuntil = 2030-01-01T00:00:00Z\nreason = \"r\"\n";
    let route =
        |path, methods, cost| format!("[[route]]\npath = \"{path}\"\nmethods = [\"{methods}\"]\ncost = {cost}\n");
    let public = |path| format!("[[public]]\npath = \"{path}\"\nlimit = \"1/s\"\n");
    let old =
        [route("/r", "GET", 2), route("/r", "POST", 2), route("/h", "GET", 2), public("/p"), exempt.into()].concat();
    // Others before it, other limits and costs: it is the same rule.
    let new = [
        route("/a", "GET", 3),
        public("/b"),
        public("/p"),
        route("/r", "GET", 9),
        route("/h", "GET", 2),
        exempt.into(),
    ];
    let (old, new) = (policy(&old), policy(&new.concat()));
    let rule = |site: &Site, bit, path: &str, method| {
        let machine = Machine::new(compile_one(site, &[bit], Room::ALL).expect("fits"));
        machine.resolution(&segments(path.as_bytes()).expect("a path"), method).1.expect("a rule").identity
    };
    let (get, post) = (Methods::number("GET"), Methods::number("POST"));
    assert_eq!(rule(&old, 1, "/r/x", get), rule(&new, 1, "/r", get));
    assert_eq!(rule(&old, 1, "/p", get), rule(&new, 1, "/p", get));
    assert_eq!(rule(&old, 1, "/h", get), rule(&new, 1, "/h", get));
    // Of all that differ in anything else it is told apart, and each is one.
    let others = [
        rule(&old, 1, "/r", get),
        rule(&old, 1, "/r", post),
        rule(&old, 1, "/p", get),
        rule(&old, 1, "/h", get),
        rule(&old, 2, "/h", get),
        rule(&old, 1, "/h", post),
        rule(&new, 1, "/a", get),
        rule(&new, 1, "/b", get),
    ];
    for (place, other) in others.iter().enumerate() {
        assert!(*other != 0 && !others[..place].contains(other), "{place}: {others:x?}");
    }
}

#[test]
fn what_other_services_have_changes_no_identity() {
    let site = routes(&["/a", "/b"]);
    let branch = |service| Branch { site: &site, bits: &[], service };
    let identities = |branches: &[Branch<'_>]| {
        let automaton = compile(branches, SECRET, Room::ALL).expect("fits");
        let rules = automaton.rules.iter().zip(&automaton.origins);
        let mut all: Vec<_> = rules.map(|(rule, (branch, origin))| (*branch, *origin, rule.identity)).collect();
        all.sort_unstable();
        all
    };
    let one = identities(&[branch(1)]);
    let of_second = one.iter().map(|(_, origin, identity)| (1, *origin, *identity));
    assert_eq!(identities(&[branch(1), branch(2)]), one.iter().copied().chain(of_second).collect::<Vec<_>>());
}

#[test]
fn without_paths_there_is_nothing_to_look_at() {
    let machine = Machine::of(&Site::default());
    assert_eq!((machine.automaton.first(), machine.automaton == Automaton::default()), (0, true));
}

#[test]
fn a_thousand_paths_need_a_state_for_each_segment() {
    let paths: Vec<_> = (0..1024).map(|number| format!("/api/v1/n{number}/{{id}}")).collect();
    let policy = routes(&paths.iter().take(255).map(String::as_str).collect::<Vec<_>>());
    let automaton = Machine::of(&policy).automaton;
    // The root, /api, /api/v1, and two for each path.
    assert_eq!((automaton.states.len(), automaton.edges.len()), (3 + 2 * 255, 2 + 255));
    assert_eq!((automaton.leaves.len(), automaton.rules.len()), (255, 255));
}

#[test]
fn says_which_paths_need_too_much_room() {
    // Each has a literal at one of the segments: the states tell which of them have come, all subsets.
    let wild = |at: usize, len: usize| -> String {
        (0..len).map(|segment| if segment == at { "/x".into() } else { format!("/{{s{segment}}}") }).collect()
    };
    let mut paths: Vec<String> = (0..16).map(|at| wild(at, 16)).collect();
    paths.push("/harmless".into());
    let policy = routes(&paths.iter().map(String::as_str).collect::<Vec<_>>());
    let error = compile_one(&policy, &[], Room::ALL).expect_err("too large");
    assert_eq!((error.what, error.room, error.paths.len()), ("states", abi::STATES as usize - 1, 5));
    let text = error.to_string();
    assert!(text.starts_with("the paths need more than 16383 states, most of them for /{s0}/"), "{text}");
    assert!(!text.contains("harmless"), "{text}");
    let small = |what: &str, room| {
        let error = compile_one(&routes(&["/a", "/b"]), &[], room).expect_err(what);
        assert_eq!((error.what, error.room), (what, 1));
    };
    small("states", Room { states: 1, ..Room::ALL });
    small("segments", Room { edges: 1, ..Room::ALL });
    small("leaves", Room { leaves: 1, ..Room::ALL });
    small("rules", Room { rules: 1, ..Room::ALL });
    let exact = Room { states: 3, edges: 2, leaves: 2, rules: 2 };
    assert!(compile_one(&routes(&["/a", "/b"]), &[], exact).is_ok());
}

#[test]
fn is_placed_where_there_is_room() {
    let policy = routes(&["/a/{id}", "/b"]);
    let machine = Machine::of(&policy);
    let numbers = |len: usize, from: u32| (0..len as u32).map(|place| from + 2 * place).collect::<Vec<_>>();
    let Automaton { states, edges: _, leaves, rules, origins: _ } = &machine.automaton;
    let (at, leaf_at, rule_at) = (numbers(states.len(), 100), numbers(leaves.len(), 50), numbers(rules.len(), 7));
    let placed = machine.automaton.placed(&at, &leaf_at, &rule_at);
    // Read through the places, it is the same automaton.
    let back = |number: u32, from: u32| if number == 0 { 0 } else { (number - from) / 2 + 1 };
    for (there, here) in placed.states.iter().zip(states) {
        assert_eq!((back(there.other, 100), back(there.leaf, 50)), (here.other, here.leaf));
    }
    for ((there, to), (here, next)) in placed.edges.iter().zip(&machine.automaton.edges) {
        assert_eq!((back(there.state as u32, 100), back(*to as u32, 100)), (here.state as u32, *next as u32));
        assert_eq!(there.segment, here.segment);
    }
    for (there, here) in placed.leaves.iter().zip(leaves) {
        assert_eq!(there.rules.map(|rule| back(rule, 7)), here.rules);
    }
    assert_eq!(placed.rules, *rules);
}

/// Paths over the segments of [`samples::pattern`], and some that no pattern has.
fn path() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let segments = ["a", "b", "c", "{id}", "{\"[é", "z"].map(|segment| segment.as_bytes().to_vec());
    vec(select(segments.to_vec()), 0..7)
}

/// Targets as clients write them, and as they would like them to be read.
fn target() -> impl Strategy<Value = String> {
    let parts = [
        "a",
        "b",
        "c",
        "%61",
        "%7B%22%5B%C3%A9",
        "%7b\"%5B%c3%a9",
        "{id}",
        "z",
        "",
        ".",
        "..",
        "%2e",
        "%2E%2e",
        "...",
        "a%2Fb",
        "a%5cb",
        "a%00",
        "%7f",
        "a%",
        "a%4",
        "a#b",
        "a\\b",
        "%2561",
        "a?b/c",
        "*",
        "a%20b",
    ];
    let usual = select(parts[..8].to_vec());
    let path = vec(prop_oneof![8 => usual, 1 => select(parts.to_vec())], 0..6).prop_map(|parts| parts.join("/"));
    let begin = ["/", "/", "/", "/", "//", "http://t/", "HTTP://t:80//", "https://t/", "http://t", "", "*"];
    (select(begin.to_vec()), path)
        .prop_map(|(begin, path)| format!("{begin}{path}"))
        .prop_filter("there is a target", |target| !target.is_empty())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_automaton_finds_what_looking_at_all_paths_finds(
        policy in samples::site(),
        paths in vec((path(), 0u32..8), 32),
    ) {
        let machine = Machine::of(&policy);
        for (path, method) in paths {
            let (found, rule) = machine.resolution(&path, method);
            let expected = resolve(&policy, &path, method);
            prop_assert_eq!(&found, &expected, "{:?} {}", path, method);
            let cost = expected.route.map_or(1, |place| policy.routes[place].cost);
            let per = match expected.route.and_then(|place| policy.routes[place].charge.as_ref()) {
                Some(Charge::Own(quota)) => quota.per,
                Some(Charge::Shared(name)) => policy.limits[name].per,
                None if expected.public.is_some() => abi::Per::Source,
                None => abi::Per::Principal,
            };
            let flags = if expected.public.is_some() { Rule::PUBLIC } else { 0 };
            if let Some(rule) = rule {
                prop_assert_eq!((rule.cost, rule.per, rule.flags), (cost, per as u32, flags));
            }
        }
    }

    #[test]
    fn an_automaton_of_several_finds_for_each_what_its_own_finds(
        sites in vec(samples::site(), 2..4),
        paths in vec((path(), 0u32..8), 32),
    ) {
        // Exemptions of all of them are told apart by their bits.
        let first = |branch: usize| 20 * branch as u32;
        let bits: Vec<Vec<u32>> = sites
            .iter()
            .enumerate()
            .map(|(branch, site)| (first(branch)..first(branch) + site.exempt.len() as u32).collect())
            .collect();
        let branches: Vec<Branch<'_>> = sites
            .iter()
            .zip(&bits)
            .zip(7u32..)
            .map(|((site, bits), service)| Branch { site, bits, service })
            .collect();
        let machine = Machine::new(compile(&branches, SECRET, Room::ALL).expect("fits"));
        for (path, method) in paths {
            let state = machine.state(&path);
            for (branch, site) in sites.iter().enumerate() {
                let expected = resolve(site, &path, method);
                let Some(leaf) = machine.leaf_at(state, branch as u32) else {
                    prop_assert_eq!(expected, Resolution::default());
                    continue;
                };
                prop_assert_eq!(leaf.service, 7 + branch as u32);
                let number = leaf.rules[method as usize];
                let (mut found, _) = machine.resolution_of(number);
                found.exempt.iter_mut().for_each(|bit| *bit -= first(branch) as usize);
                prop_assert_eq!(found, expected, "{:?} {} of {}", path, method, branch);
                if let Some(place) = number.checked_sub(1) {
                    prop_assert_eq!(machine.automaton.origins[place as usize].0, branch);
                }
            }
        }
    }

    #[test]
    fn a_request_is_read_as_its_path_is(
        policy in samples::site(),
        targets in vec((target(), select(&["GET", "HEAD", "POST", "OPTIONS", "PROPFIND", "get"][..])), 16),
    ) {
        let machine = Machine::of(&policy);
        prop_assume!(machine.automaton.first() != 0);
        for (target, method) in targets {
            match (machine.read(method, target.as_bytes()), segments(target.as_bytes())) {
                (Ok(rule), Ok(path)) => {
                    let expected = resolve(&policy, &path, Methods::number(method));
                    prop_assert_eq!(machine.resolution_of(rule).0, expected, "{} {}", method, target);
                }
                (Err(refusal), Err(_)) => prop_assert_eq!(refusal, Refusal::from(Reason::Path), "{}", target),
                (read, path) => prop_assert!(false, "{}: {:?}, but {:?}", target, read, path),
            }
        }
    }
}
