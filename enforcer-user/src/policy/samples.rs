//! Policies for tests: any that a file could say.

use std::collections::BTreeMap;
use std::time::Duration;

use enforcer_ebpf::abi::Per;
use jiff::Timestamp;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::document::{
    Charge, DEFAULT_SERVICE, Exemption, OTHER, Override, Plan, Policy, Principal, Public, Quota, Route, Site, Terms,
};
use super::method::Methods;
use super::path::{Pattern, Reach};
use super::service::{ACTIONS, OwnLimit, PROXY_PROTOCOLS, ProxyProtocol, Service, Spread, Unregistered};
use super::{Limits, Rule};
use crate::config::Mode;

pub(crate) fn limits() -> impl Strategy<Value = Limits> {
    let texts = [
        "100/minute",
        "5/second; 7/3hours burst=2",
        "9/day; 9/hour algo=fixed",
        "blocked",
        "1/second; 1/day; 8/day name=x; 1/month align=calendar",
        "9/minute penalize=true; 4/hour burst=3 penalize=true",
    ];
    select(texts.to_vec()).prop_map(|text| text.parse::<Limits>().expect(text).canonical())
}

/// Limits as they may be where many share them.
fn shared(limits: Limits) -> Limits {
    match limits {
        Limits::Rules(rules) => Limits::Rules(rules.into_iter().map(|rule| Rule { penalize: false, ..rule }).collect()),
        limits => limits,
    }
}

fn any_limits() -> impl Strategy<Value = Limits> {
    prop_oneof![4 => limits(), 1 => Just(Limits::Unlimited)]
}

fn mode() -> impl Strategy<Value = Mode> {
    select(&[Mode::Enforce, Mode::Observe][..])
}

fn time() -> impl Strategy<Value = Timestamp> {
    (0i64..4_000_000_000).prop_map(|second| Timestamp::from_second(second).expect("a time"))
}

fn duration() -> impl Strategy<Value = Duration> {
    (1u64..86_400_000).prop_map(Duration::from_millis).prop_filter("a second or more", |time| time.as_secs() > 0)
}

fn name() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9._-]{0,3}"
}

fn methods() -> impl Strategy<Value = Methods> {
    prop_oneof![Just(u8::MAX), 1u8..=u8::MAX, select(&[1u8, 3][..])]
        .prop_map(|bits| Methods::from_bits(bits).expect("some"))
}

/// Patterns of few segments, so that many match the same path.
pub(crate) fn pattern() -> impl Strategy<Value = Pattern> {
    let segment = select(&["a", "b", "c", "{id}", "{x}", "%7B%22%5Bé"][..]);
    vec(segment, 0..5).prop_map(|segments| {
        let text: String = segments.iter().flat_map(|segment| ["/", *segment]).collect();
        Pattern::parse(if text.is_empty() { "/" } else { text.as_str() })
            .unwrap_or_else(|_| Pattern::parse("/a").expect("a path"))
    })
}

fn reach() -> impl Strategy<Value = Reach> {
    select(&[Reach::Exact, Reach::Beneath][..])
}

fn spread() -> impl Strategy<Value = Spread> {
    (1u32..65_535, duration(), select(&ACTIONS[..])).prop_map(|(most, within, (_, action))| Spread {
        most,
        within,
        action,
    })
}

fn prefixes(widest: &'static str) -> impl Strategy<Value = Vec<crate::prefix::Prefix>> {
    let texts = ["10.0.0.0/8", "10.1.0.0/16", "192.0.2.7/32", "2001:db8::/32", widest];
    proptest::sample::subsequence(texts.to_vec(), 1..=5).prop_map(|texts| {
        let mut prefixes: Vec<_> = texts.into_iter().map(|text| text.parse().expect(text)).collect();
        prefixes.sort();
        prefixes
    })
}

fn service() -> impl Strategy<Value = Service> {
    let first = (option::of(any_limits()), option::of(any_limits()), any_limits(), duration(), any::<bool>(), limits());
    let proxies = (option::of(prefixes("::/0")), select(&PROXY_PROTOCOLS[..]));
    let headers = proptest::sample::subsequence(vec!["X-API-Key", "Api-Key", "X-Legacy-Key"], 1..=3);
    let connections = (option::of(1u32..1_000_000), option::of(1u32..1_000_000));
    let unregistered = (limits(), 1..=64u32).prop_map(|(limits, max_keys)| Unregistered { limits, max_keys });
    let strangers = (prop_oneof![Just(Limits::Blocked), limits()], option::of(unregistered));
    let observe = proptest::sample::subsequence(OwnLimit::OBSERVABLE.to_vec(), 0..=OwnLimit::OBSERVABLE.len());
    let counted = (observe, vec(option::of(limits()), OwnLimit::WITH_CANDIDATE.len()));
    (first, proxies, (headers, connections), (spread(), spread()), strangers, counted).prop_map(
        |(
            (ceiling, source, guesses, penalty, strict, preflight),
            (proxies, (_, protocol)),
            (headers, (by_source, by_principal)),
            (keys, sources),
            (unkeyed, unregistered),
            (observe, candidates),
        )| {
            let default = Service::default();
            let is_bounded = source.as_ref().is_some_and(|source| *source != Limits::Unlimited);
            let guessed = guesses != Limits::Unlimited;
            let unregistered = unregistered.filter(|one| is_bounded && one.limits != Limits::Blocked);
            let is_limited = |limit: &OwnLimit| match limit {
                OwnLimit::Ceiling => ceiling.as_ref().is_some_and(|ceiling| *ceiling != Limits::Unlimited),
                OwnLimit::Source => is_bounded && unregistered.is_none(),
                _ => guessed,
            };
            let blocked = Some(Limits::Blocked);
            let candidate = |(limit, candidate): (OwnLimit, Option<Limits>)| match limit {
                OwnLimit::Ceiling if ceiling != blocked => Some((limit, shared(candidate?))),
                OwnLimit::Source if source != blocked => Some((limit, candidate?)),
                OwnLimit::Preflight if preflight != Limits::Blocked => Some((limit, candidate?)),
                OwnLimit::Unkeyed if unkeyed != Limits::Blocked => Some((limit, candidate?)),
                OwnLimit::Unregistered if unregistered.is_some() => Some((limit, candidate?)),
                _ => None,
            };
            Service {
                observe: observe.into_iter().filter(is_limited).collect(),
                candidates: OwnLimit::WITH_CANDIDATE.into_iter().zip(candidates).filter_map(candidate).collect(),
                ceiling: ceiling.map(shared),
                unkeyed,
                unregistered,
                source,
                guess_penalty: if guessed { penalty } else { default.guess_penalty },
                strict_guesses: guessed && strict,
                guesses,
                preflight,
                key_headers: headers.iter().map(|name| name.parse().expect("a field")).collect(),
                client_id: Some("X-Client-Id".parse().expect("a field")),
                proxy_protocol: if proxies.is_some() { protocol } else { ProxyProtocol::Off },
                trusted_proxies: proxies.unwrap_or_default(),
                connections_per_source: by_source,
                connections_per_principal: by_principal,
                keys_per_source: keys,
                sources_per_key: sources,
            }
        },
    )
}

fn quota() -> impl Strategy<Value = Quota> {
    let per = select(&[Per::Principal, Per::Source, Per::Service][..]);
    (any_limits(), per, option::of(limits()), mode()).prop_map(|(limits, per, candidate, mode)| match per {
        Per::Service => Quota { limits: shared(limits), per, candidate: candidate.map(shared), mode },
        _ => Quota { limits, per, candidate, mode },
    })
}

fn principal(plans: Vec<String>, tenants: Vec<String>) -> impl Strategy<Value = Principal> {
    let id = prop_oneof!["[a-z\"\\.]{1,3}", Just(OTHER.to_owned())];
    let terms = match plans.is_empty() {
        true => any_limits().prop_map(Terms::Own).boxed(),
        false => {
            let instead = (any_limits(), option::of(time())).prop_map(|(limits, until)| Override { limits, until });
            let under = (select(plans), option::of(instead)).prop_map(|(plan, instead)| Terms::Plan { plan, instead });
            prop_oneof![any_limits().prop_map(Terms::Own), under].boxed()
        }
    };
    let tenant = match tenants.is_empty() {
        true => Just(None).boxed(),
        false => option::of(select(tenants)).boxed(),
    };
    (terms, tenant, option::of(any_limits()), btree_map(id, any_limits(), 0..3))
        .prop_map(|(terms, tenant, candidate, clients)| Principal { terms, tenant, candidate, clients })
}

fn route(limits: Vec<String>) -> impl Strategy<Value = Route> {
    let own = quota().prop_map(|quota| Some(Charge::Own(quota))).boxed();
    let charge = match limits.is_empty() {
        true => prop_oneof![own, Just(None)].boxed(),
        false => prop_oneof![own, Just(None), select(limits).prop_map(|name| Some(Charge::Shared(name)))].boxed(),
    };
    (pattern(), methods(), charge, 1u32..=256).prop_map(|(path, methods, charge, cost)| Route {
        path,
        methods,
        charge,
        cost,
    })
}

fn public() -> impl Strategy<Value = Public> {
    (pattern(), reach(), methods(), limits(), option::of(limits())).prop_map(
        |(path, reach, methods, limits, candidate)| {
            let candidate = candidate.filter(|_| limits != Limits::Blocked);
            Public { path, reach, methods, limits, candidate }
        },
    )
}

fn exemption() -> impl Strategy<Value = Exemption> {
    (pattern(), reach(), methods(), prefixes("fc00::/7"), time(), "[a-zé\"\\\\ -]{0,8}x").prop_map(
        |(path, reach, methods, sources, until, reason)| Exemption { path, reach, methods, sources, until, reason },
    )
}

/// Without those that are for the same path and method as one before.
fn once<T>(all: Vec<T>, path: impl Fn(&T) -> String, methods: impl Fn(&T) -> Methods) -> Vec<T> {
    let mut seen = std::collections::HashMap::new();
    let is_new = |one: &T| {
        let bits = seen.entry(path(one)).or_insert(0u8);
        let new = *bits & methods(one).bits() == 0;
        *bits |= methods(one).bits();
        new
    };
    all.into_iter().filter(is_new).collect()
}

/// What is said of a service.
pub(crate) fn site() -> impl Strategy<Value = Site> {
    (service(), btree_map(name(), quota(), 0..4)).prop_flat_map(|(service, limits)| {
        let shared: Vec<_> = limits.keys().cloned().collect();
        (vec(route(shared), 0..8), vec(public(), 0..5), vec(exemption(), 0..5)).prop_map(
            move |(routes, public, exempt)| {
                let mut site = Site {
                    service: service.clone(),
                    limits: limits.clone(),
                    routes: once(routes, |one| one.path.identity(), |one| one.methods),
                    public: once(public, |one| format!("{:?}{}", one.reach, one.path.identity()), |one| one.methods),
                    exempt: once(exempt, Exemption::identity, |one| one.methods),
                };
                site.sort();
                site
            },
        )
    })
}

/// Any policy that a file could say; where principals have clients, a field tells them apart.
pub(crate) fn policy() -> impl Strategy<Value = Policy> {
    let plans = |of: fn(Limits) -> Limits| {
        let plan = (any_limits(), option::of(any_limits()), mode());
        let plan = plan.prop_map(move |(limits, candidate, mode)| Plan {
            limits: of(limits),
            candidate: candidate.map(of),
            mode,
        });
        btree_map(name(), plan, 0..4)
    };
    let names = prop_oneof![Just(DEFAULT_SERVICE.to_owned()), name()];
    let services = prop_oneof![
        site().prop_map(|site| BTreeMap::from([(DEFAULT_SERVICE.to_owned(), site)])),
        btree_map(names, site(), 1..4),
    ];
    (plans(|limits| limits), plans(shared), services).prop_flat_map(|(plans, tenants, services)| {
        let under: Vec<_> = plans.keys().cloned().collect();
        let of: Vec<_> = tenants.keys().cloned().collect();
        btree_map(name(), principal(under, of), 0..5).prop_map(move |principals| Policy {
            services: services.clone(),
            plans: plans.clone(),
            tenants: tenants.clone(),
            principals,
        })
    })
}

/// Principals of a large install; without optimisation a tenth, which takes as long.
pub(crate) const MANY: usize = if cfg!(debug_assertions) { 10_000 } else { 100_000 };

/// A policy of `count` principals, half of them under a plan.
pub(crate) fn large(count: usize) -> Policy {
    let limits: Limits = "100/minute; 5000/day".parse().expect("limits");
    let gold = Plan { limits: limits.clone(), candidate: None, mode: Mode::Enforce };
    let under = Terms::Plan { plan: "gold".into(), instead: None };
    let principal = |number: usize| match number % 2 {
        0 => Principal { terms: under.clone(), ..Principal::of(Limits::Unlimited) },
        _ => Principal::of(limits.clone().canonical()),
    };
    Policy {
        plans: BTreeMap::from([("gold".to_owned(), Plan { limits: gold.limits.canonical(), ..gold })]),
        principals: (0..count).map(|number| (format!("principal-{number}"), principal(number))).collect(),
        ..Policy::default()
    }
}
