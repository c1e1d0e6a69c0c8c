//! What would become of a request, in words: the program says it ([`Kernel::explain`](crate::kernel::Kernel::explain)),
//! and here its numbers get the names of the store and of the policy.

use std::cell::Cell;
use std::net::{IpAddr, Ipv6Addr};

use enforcer_ebpf::abi::{self, Bucket, Buckets, KeyTag, Limit, Per, Ruleset, Scope, Service, SpreadAction, scope};
use enforcer_ebpf::answer::measure;
use enforcer_ebpf::charge::{self, Claim, Place, table};
use enforcer_ebpf::flow;
use enforcer_ebpf::judge::explain::{Explanation, outcome};
use enforcer_ebpf::judge::{self, Decision, party};
use enforcer_ebpf::limit::{self, Clock};
use enforcer_ebpf::source::{Level, Source};
use enforcer_ebpf::spread;
use enforcer_ebpf::verdict::{Action, Malformation, Reason};
use enforcer_ebpf::wire::Tuple;
use jiff::Timestamp;
use zeroize::Zeroizing;

use super::registry::{Error, Registry, select};
use crate::api::{Explain, Explained, ExplainedLimit, ExplainedSpread, Refusal, Told};
use crate::config::{Guarded, Settings, leader};
use crate::kernel::Kernel;
use crate::name::Selector;
use crate::policy::document::{Charge, OTHER, Site};
use crate::policy::method::Methods;
use crate::policy::routes::{Resolution, resolve};
use crate::policy::{Limits, Rule, path, service};
use crate::prefix::Prefix;
use crate::store::Placed;
use crate::{answer, credential, store};

/// Stands in a head for a key that only its tag is known of.
const STAND_IN: &str = "known-by-its-tag-alone";
/// A host that no service is for.
const NOBODYS: &str = "localhost";
/// Most bytes of a head that is asked about; more is refused by any service.
const LONGEST: usize = 32 * 1024;

/// A request's head, which is zeroed when it is dropped: a key may be in it.
fn head(
    question: &Explain,
    service: &service::Service,
    host: &str,
    key: Option<&str>,
    client: Option<(&str, &str)>,
    forwarded: Option<IpAddr>,
) -> Result<Zeroizing<Vec<u8>>, Error> {
    let Explain { method, target, fields, .. } = question;
    let refuse = |field: &str, message: &str, accepted: &str| Error::Invalid(Refusal::of(field, message, accepted));
    let said = [("method", method.as_str()), ("target", target), ("host", host)]
        .into_iter()
        .chain(fields.iter().map(|line| ("fields", line.as_str())));
    for (field, text) in said.chain(question.client.iter().map(|text| ("client", text.as_str()))) {
        if text.contains(['\r', '\n']) {
            return Err(refuse(field, "a line ends in it", "one line"));
        }
    }
    if key.is_some_and(|key| key.contains(['\r', '\n'])) {
        return Err(refuse("key", "a line ends in the key", credential::ACCEPTED));
    }
    for line in fields {
        let name = line.split(':').next().unwrap_or_default().trim().to_ascii_lowercase().replace('_', "-");
        if service.key_headers.iter().any(|field| field.as_str() == name) {
            return Err(refuse("fields", "a key is never taken from there", "a field that is no key's"));
        }
    }
    let mut head = Zeroizing::new(Vec::with_capacity(LONGEST));
    let mut write = |parts: &[&str]| parts.iter().for_each(|part| head.extend_from_slice(part.as_bytes()));
    let len = method.len() + target.len() + host.len() + fields.iter().map(|line| line.len() + 2).sum::<usize>();
    if len + key.map_or(0, str::len) + question.client.as_ref().map_or(0, String::len) > LONGEST - 256 {
        return Err(refuse("target", "this is longer than any request that is read", "16 KiB of a head"));
    }
    write(&[method, " ", target, " HTTP/1.1\r\nHost: ", host, "\r\n"]);
    if let (Some(key), Some(field)) = (key, service.key_headers.first()) {
        write(&[field.as_str(), ": ", key, "\r\n"]);
    }
    if let Some((name, value)) = client {
        write(&[name, ": ", value, "\r\n"]);
    }
    if let Some(address) = forwarded {
        write(&["X-Forwarded-For: ", &address.to_string(), "\r\n"]);
    }
    for line in fields {
        write(&[line, "\r\n"]);
    }
    write(&["\r\n"]);
    debug_assert!(head.len() >= Kernel::SHORTEST);
    Ok(head)
}

/// Where the program is to take the connection to come from, and what stands in `X-Forwarded-For`. A header of the PROXY
/// protocol is in the place of the connection's own address, so none is read.
fn forwarded(question: &Explain, service: &service::Service) -> Result<(IpAddr, Option<IpAddr>), Error> {
    let Explain { source, forwarded_for, .. } = question;
    let Some(told) = *forwarded_for else { return Ok((*source, None)) };
    let whole = Prefix::new(source.to_canonical(), if source.to_canonical().is_ipv4() { 32 } else { 128 });
    let is_trusted = whole.is_some_and(|whole| service.trusted_proxies.iter().any(|proxies| proxies.meets(whole)));
    if !is_trusted {
        let message = format!("{source} is no trusted proxy, whom it speaks for is not believed");
        let accepted = service.trusted_proxies.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        return Err(Error::Invalid(Refusal::of("source", message, format!("a trusted proxy: {accepted}"))));
    }
    match service.proxy_protocol {
        service::ProxyProtocol::Off => Ok((*source, Some(told))),
        service::ProxyProtocol::V1 | service::ProxyProtocol::V2 => Ok((told, None)),
    }
}

/// What the numbers of an explanation are called.
struct Names<'a> {
    /// What is said of the service.
    site: &'a Site,
    placed: &'a Placed,
    service: &'a Service,
    found: &'a Resolution,
}

impl Names<'_> {
    fn principal(&self, index: u32) -> Option<String> {
        let named = self.placed.principals.iter().find(|(_, principal)| principal.index == index);
        named.map(|(name, _)| name.clone())
    }

    /// The path's rule.
    fn path_rule(&self, kind: &str, address: IpAddr) -> Option<String> {
        let Resolution { exempt, public, route } = self.found;
        if kind == "exempt" {
            let is_for = |place: &&usize| {
                let whole = Prefix::new(address, if address.is_ipv4() { 32 } else { 128 });
                whole.is_some_and(|whole| self.site.exempt[**place].sources.iter().any(|of| of.meets(whole)))
            };
            return exempt.iter().find(is_for).map(|place| format!("exempt {}", self.site.exempt[*place]));
        }
        match (public, route) {
            (Some(place), _) => Some(format!("public {}", self.site.public[*place])),
            (None, Some(place)) => Some(format!("route {}", self.site.routes[*place])),
            (None, None) => None,
        }
    }

    /// Which rule a claim's limits are of.
    fn rule(&self, claim: &Claim) -> String {
        if let Some(tenant) = self.tenant(claim) {
            return format!("tenant {tenant}");
        }
        let number = scope::own(claim.scope.rule);
        if let Some((name, _)) = service::OWN_LIMITS.iter().find(|(_, limit)| limit.scope() == number) {
            return (*name).to_owned();
        }
        let fixed = match number {
            _ if claim.table == table::PRINCIPAL => "principal",
            scope::KEY => "key",
            scope::CLIENT => "client",
            _ => {
                let route = self.found.route.map(|place| &self.site.routes[place]);
                return match (self.found.public, route) {
                    (Some(place), _) => format!("public {}", self.site.public[place]),
                    (None, Some(route)) => match &route.charge {
                        Some(Charge::Shared(name)) => format!("limit {name}"),
                        _ => format!("route {route}"),
                    },
                    (None, None) => format!("rule {}", claim.scope.rule),
                };
            }
        };
        fixed.to_owned()
    }

    /// The tenant whose limits a claim is of.
    fn tenant(&self, claim: &Claim) -> Option<&String> {
        let mut tenants = self.placed.tenants.iter();
        let is_named = claim.table == table::NAMED;
        tenants.find(|(_, quota)| is_named && u64::from(quota.scope) == claim.scope.rule).map(|(name, _)| name)
    }

    /// Whose use of them is counted.
    fn bucket(&self, claim: &Claim, per: u32) -> String {
        let Scope { rule, subject: [first, second] } = claim.scope;
        if scope::own(rule) == scope::UNREGISTERED {
            return match second {
                scope::OVERFLOW => "all keys without room of their own".to_owned(),
                _ => credential::id(KeyTag(claim.scope.subject)),
            };
        }
        if claim.table == table::SOURCE {
            return match second {
                scope::OVERFLOW => "all sources without room of their own".to_owned(),
                _ => self.source(Source { prefix: first, family: second }),
            };
        }
        if judge::is_shared(claim) {
            return "all others without room of their own".to_owned();
        }
        if let Some(tenant) = self.tenant(claim) {
            return tenant.clone();
        }
        let index = first as u32;
        let principal = || self.principal(index).unwrap_or_else(|| format!("principal {index}"));
        match scope::own(rule) {
            _ if claim.table == table::PRINCIPAL => principal(),
            scope::KEY => credential::id(KeyTag(claim.scope.subject)),
            scope::CLIENT => {
                let name = principal();
                let clients = self.placed.principals.get(&name).map(|placed| &placed.clients);
                let id = clients.and_then(|all| all.iter().find(|(_, one)| u64::from(one.number) == second));
                format!("{name}/{}", id.map_or(OTHER, |(id, _)| id.as_str()))
            }
            scope::SERVICE => "all".to_owned(),
            _ if per == Per::Service as u32 => "all".to_owned(),
            _ => principal(),
        }
    }

    fn source(&self, source: Source) -> String {
        let [v4, v6] = [self.service.source_v4, self.service.source_v6].map(|bits| bits as u8);
        Prefix::of(source, v4, v6).map_or_else(String::new, |prefix| prefix.to_string())
    }
}

/// An address as the program has it: in network order in memory, of IPv4 mapped.
fn address([first, second]: [u64; 2]) -> IpAddr {
    let both = (u128::from(second) << 64) | u128::from(first);
    IpAddr::V6(Ipv6Addr::from(both.to_le_bytes())).to_canonical()
}

/// Whether the limits that it was last charged to are limits at all, and not the places where pairs are counted.
fn is_charged(refused: Option<Reason>, kind: u64) -> bool {
    match refused {
        None => kind != u64::from(party::EXEMPT),
        Some(reason) => reason.is_guess() || matches!(reason, Reason::OverLimit | Reason::Guessing),
    }
}

/// One limit; `place` is where it stands, `refusing` where the one does that refuses.
fn limit_row(said: &Explanation, policy: &abi::Policy, place: Place, refusing: Option<Place>) -> ExplainedLimit {
    let buckets = &said.buckets[place.claim];
    let bucket: &Bucket = if place.candidate { &buckets.candidate[place.limit] } else { &buckets.limits[place.limit] };
    let limit: &Limit = &policy.limits[place.limit];
    let clock = Clock { boot: said.now, offset: said.offset };
    let cost = u64::from(said.charge.cost());
    let limit::Usage { used, remaining, .. } = limit::usage(bucket, limit, clock);
    let retry = limit::retry(bucket, limit, clock, cost);
    let mode = match place.candidate {
        true => "candidate",
        false if policy.flags & abi::Policy::OBSERVE != 0 => "observe",
        false => "enforce",
    };
    let says = match remaining >= cost {
        _ if refusing == Some(place) => "refuses",
        true => "passes",
        false if mode == "enforce" => "full",
        false => "would_refuse",
    };
    let name: Vec<u8> = policy.names[place.limit].iter().flat_map(|word| word.to_le_bytes()).collect();
    ExplainedLimit {
        rule: String::new(),
        bucket: String::new(),
        name: String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned(),
        // A count of nothing is a limit of any window.
        limit: if limit.count == 0 { Limits::Blocked.to_string() } else { Rule::of(limit).to_string() },
        mode: mode.to_owned(),
        used,
        remaining,
        retry_ns: (retry != u64::MAX).then_some(retry),
        says: says.to_owned(),
    }
}

/// What is counted of its pair of a source and a key.
fn spreads(said: &Explanation) -> Vec<ExplainedSpread> {
    let Ruleset { keys_of_source, sources_of_key, .. } = &said.rules;
    let both = [("keys_per_source", keys_of_source), ("sources_per_key", sources_of_key)].into_iter().enumerate();
    both.filter(|(_, (_, spread))| spread.most != 0)
        .map(|(place, (rule, spread))| ExplainedSpread {
            rule: rule.to_owned(),
            seen: spread::counted(said.pairs[place], spread, said.now),
            most: spread.most,
            action: match spread.action {
                action if action == SpreadAction::Alert as u32 => "alert",
                action if action == SpreadAction::Limit as u32 => "limit",
                _ => "penalty",
            }
            .to_owned(),
            exceeded: said.exceeded & 1 << place != 0,
        })
        .collect()
}

/// The service that a request is for, and the port that it is sent to.
fn asked_for<'s>(question: &Explain, settings: &'s Settings) -> Result<(&'s Guarded, u16), Error> {
    let refuse =
        |field: &str, message: String, accepted: String| Err(Error::Invalid(Refusal::of(field, message, accepted)));
    let named = match &question.service {
        Some(name) => Some(settings.service(name).ok_or_else(|| super::no_service(settings, name))?),
        None => None,
    };
    match (named, question.port) {
        (Some(service), Some(port)) if !service.ports.contains(&port) => {
            refuse("port", format!("{port} is no port of {}", service.name), service.to_string())
        }
        (Some(service), port) => Ok((service, port.or(service.ports.first().copied()).unwrap_or(0))),
        (None, Some(port)) => {
            let of_port = settings.services.iter().find(|service| service.ports.contains(&port));
            let of_port = of_port.and_then(|one| leader(&settings.services, one));
            // One that nothing guards is asked about as if it were the first's, and the program says so.
            of_port.or(settings.services.first()).map(|service| (service, port)).ok_or(Error::Stopping)
        }
        (None, None) => match &settings.services[..] {
            [service] => Ok((service, service.ports.first().copied().unwrap_or(0))),
            several => {
                let names: Vec<&str> = several.iter().map(|service| service.name.as_str()).collect();
                let message = "there are several services: say which one, or the port".to_owned();
                refuse("service", message, names.join(", "))
            }
        },
    }
}

impl Registry {
    /// What would become of a request, with nothing coming of it.
    pub(crate) fn explain(
        &mut self,
        question: &Explain,
        settings: &Settings,
        now: Timestamp,
    ) -> Result<Explained, Error> {
        let (policy, placed) = match self.on_trial() {
            Some(trial) => (trial.policy.clone(), trial.placed.clone()),
            None => self.policy(now)?,
        };
        let (guarded, port) = asked_for(question, settings)?;
        let host = match (&question.host, guarded.hosts.first()) {
            (Some(host), _) => host.as_str(),
            (None, Some(first)) => first.as_str(),
            (None, None) => NOBODYS,
        };
        let site = policy.services.get(&guarded.name).cloned().unwrap_or_default();
        let client = match (&question.client, &site.service.client_id) {
            (None, _) => None,
            (Some(id), Some(field)) => Some((field.as_str(), id.as_str())),
            (Some(_), None) => {
                let message = "the policy names no field for client ids (`client_id` of the service)";
                return Err(Error::Invalid(Refusal::of("client", message, "none")));
            }
        };
        let known = question.keyed.as_deref().map(|text| self.key_of(text, now)).transpose()?;
        let key = match (&question.key, known) {
            (Some(_), Some(_)) => {
                return Err(Error::Invalid(Refusal::of("key", "a key is named already", "a key, or whose it is")));
            }
            (Some(key), None) => Some(key.as_str()),
            (None, Some(_)) => Some(STAND_IN),
            (None, None) => None,
        };
        let (source, forwarded) = forwarded(question, &site.service)?;
        let head = head(question, &site.service, host, key, client, forwarded)?;
        let kernel = self.tables.kernel_mut();
        let asked = Explanation::question(Tuple::between(source, port), known, kernel.has_room_for_buckets());
        let said = kernel.explain(&asked, &head)?;
        // Its host says for which of several it is.
        let seats = self.tables.seats();
        let is_for = |one: &&Guarded| seats.get(&one.name).is_some_and(|seat| seat.number == said.service.number);
        let guarded = settings.services.iter().find(is_for).unwrap_or(guarded);
        let site = policy.services.get(&guarded.name).cloned().unwrap_or_default();
        let segments = path::segments(question.target.as_bytes()).unwrap_or_default();
        let found = match path::segments(question.target.as_bytes()) {
            Ok(_) => resolve(&site, &segments, Methods::number(&question.method)),
            Err(_) => Resolution::default(),
        };
        let names = Names { site: &site, placed: &placed, service: &said.service, found: &found };
        let explained = explained(&said, &names, self.tables.kernel())?;
        let is_guarded = said.outcome != outcome::UNGUARDED;
        // A proxy's connections are kept out by its own address, and by nobody's that it speaks for.
        let penalty_ns = explained.penalty_ns.filter(|_| source == question.source);
        Ok(Explained { service: is_guarded.then(|| guarded.name.clone()), penalty_ns, ..explained })
    }

    /// The key of an id, or of a principal's name: of several the first that is good.
    fn key_of(&self, text: &str, now: Timestamp) -> Result<KeyTag, Error> {
        let selector = Selector::parse(text).ok_or_else(|| {
            Error::Invalid(Refusal::of("keyed", "this is neither a name nor an id", Selector::ACCEPTED))
        })?;
        let keys = select(&self.store, &selector)?;
        let is_good = |key: &&store::Key| {
            !key.disabled && key.not_before.is_none_or(|begin| begin <= now) && key.expires.is_none_or(|end| end > now)
        };
        let key = keys.iter().find(is_good).or_else(|| keys.first());
        key.map(|key| key.tag).ok_or_else(|| Error::NotFound(Refusal::of("keyed", "it has no key", Selector::ACCEPTED)))
    }
}

/// Puts an explanation into words.
fn explained(said: &Explanation, names: &Names<'_>, kernel: &Kernel) -> Result<Explained, Error> {
    let decision = Decision::from_word(said.decision);
    let reason_of = |number: u64| Reason::from_index(number as u8).unwrap_or(Reason::Unparsable);
    let is_decided = said.outcome == outcome::DECIDED;
    let refused = match said.outcome {
        outcome::DECIDED => decision.refused,
        outcome::REFUSED => Some(reason_of(said.reason)),
        outcome::INCOMPLETE => Some(Reason::Unparsable),
        _ => None,
    };
    let malformed = u8::try_from(said.kind).ok().and_then(|kind| Malformation::from_index(kind.checked_sub(1)?));
    let kind = match said.party as u32 {
        _ if !is_decided => "unread",
        party::EXEMPT => "exempt",
        party::PUBLIC => "public",
        party::KEYED => "keyed",
        party::UNKEYED => "unkeyed",
        party::UNREGISTERED => "unregistered",
        _ => "preflight",
    };
    let place = if is_decided { address(said.address) } else { address(said.tuple.mapped_source()) };
    let limits = if is_decided && is_charged(refused, said.party) { limits(said, names, kernel)? } else { Vec::new() };
    let is_counted = kind == "keyed" && !refused.is_some_and(|reason| reason.is_guess() || reason == Reason::Guessing);
    let verdict = match refused {
        _ if said.outcome == outcome::UNGUARDED => "unguarded",
        None => "pass",
        Some(Reason::Misdirected) if !said.service.observes() => "refuse",
        Some(_) if is_decided && said.service.spares() => "would_refuse",
        Some(_) if said.service.observes() => "would_refuse",
        Some(_) => "refuse",
    };
    let is_penalised = said.service.penalty_ns != 0 && said.record.until > said.now;
    let words = place_words(said, names);
    Ok(Explained {
        verdict: verdict.to_owned(),
        service: None,
        reason: refused.map(|reason| reason.as_str().to_owned()),
        malformed: malformed.map(|kind| kind.as_str().to_owned()),
        kind: kind.to_owned(),
        principal: if is_decided { names.principal(decision.principal) } else { None },
        key: (is_decided && said.tag != KeyTag::default()).then(|| credential::id(said.tag)),
        source: words.unwrap_or_else(|| place.to_string()),
        path_rule: if is_decided { names.path_rule(kind, place) } else { None },
        cost: if is_decided { said.rule.cost } else { 1 },
        limits,
        spreads: if is_counted { spreads(said) } else { Vec::new() },
        penalty_ns: is_penalised.then(|| said.record.until - said.now),
        told: match refused {
            Some(reason) if verdict == "refuse" => Some(told(said, reason, kernel)?),
            _ => None,
        },
    })
}

/// The source that it counts for; `None` where it was not read so far.
fn place_words(said: &Explanation, names: &Names<'_>) -> Option<String> {
    let at = match said.outcome {
        outcome::UNGUARDED => return None,
        outcome::DECIDED => said.address,
        _ => said.tuple.mapped_source(),
    };
    Some(names.source(Source::at(at, &said.service)))
}

/// Every limit that it is measured by.
fn limits(said: &Explanation, names: &Names<'_>, kernel: &Kernel) -> Result<Vec<ExplainedLimit>, Error> {
    let refusing = said.charge.result().err();
    let mut rows = Vec::new();
    for number in 0..said.charge.len() {
        let claim = said.charge.at(number);
        let own = kernel.policy(claim.policy)?;
        let candidate = if own.candidate == 0 { None } else { Some(kernel.policy(own.candidate)?) };
        let (rule, bucket) = (names.rule(claim), names.bucket(claim, said.rule.per));
        for (candidate, policy) in [(false, Some(own)), (true, candidate)] {
            let Some(policy) = policy else { continue };
            for limit in 0..(policy.len as usize).min(abi::LIMITS) {
                let row = limit_row(said, &policy, Place { claim: number, candidate, limit }, refusing);
                rows.push(ExplainedLimit { rule: rule.clone(), bucket: bucket.clone(), ..row });
            }
        }
    }
    Ok(rows)
}

/// A word of a bucket that nobody else has.
#[derive(Clone, Copy)]
struct Word<'b>(&'b Cell<u64>);

impl limit::Cell for Word<'_> {
    fn load(&self) -> u64 {
        self.0.get()
    }

    fn swap(&self, old: u64, new: u64) -> bool {
        self.0.replace(new) == old
    }
}

/// The buckets of the claim at `place`, whose limits these are, behind a charge that was refused: where limits penalize, they
/// count it.
fn penalized(charge: &charge::Charge, policy: &abi::Policy, buckets: &Buckets, place: usize) -> Buckets {
    let words: Vec<Cell<u64>> = buckets.words().map(Cell::new).collect();
    let mut charge = *charge;
    let mut goes_on = charge.settle();
    while goes_on {
        let Place { claim, limit, .. } = charge.place();
        let [window, counts, arrival] = [0, 1, 2].map(|word| Word(&words[3 * limit + word]));
        let cells = limit::Cells { window, counts, arrival };
        goes_on = charge.penalize((claim == place).then_some((&cells, policy)));
    }
    Buckets::of_words(|number| words[number].get())
}

/// What its client gets, as the program would settle it.
fn told(said: &Explanation, reason: Reason, kernel: &Kernel) -> Result<Told, Error> {
    let Explanation { service, rules, .. } = said;
    let mut record = said.record;
    // What a trusted proxy hands on is answered however often it comes.
    let level = if said.proxied != 0 { Level::AsSet } else { record.refuse(said.now, service) };
    let action = service.action(reason as u32);
    let nothing = Told { how: "silence".to_owned(), status: None, limit: None, retry_after_seconds: None };
    if action == Action::Drop as u8 || level == Level::Silence {
        return Ok(nothing);
    }
    let status = answer::status(reason);
    let answers = service.flags & Service::ANSWER != 0 && action == Action::Answer as u8 && level == Level::AsSet;
    if !answers || status.is_none() {
        return Ok(Told { how: "reset".to_owned(), ..nothing });
    }
    let mut limit = None;
    let mut retry = None;
    if matches!(reason, Reason::OverLimit | Reason::Guessing) && !said.charge.is_empty() {
        let claim = said.charge.refused();
        let place = said.charge.result().err().map_or(0, |place| place.claim);
        let policy = kernel.policy(claim.policy)?;
        let mut buckets: Buckets = penalized(&said.charge, &policy, &said.buckets[place], place);
        if reason == Reason::Guessing && said.charge.result().is_err() {
            // It is with this one that the penalty begins.
            buckets.candidate[0].arrival = said.now.saturating_add(rules.guess_penalty_ns);
        }
        let clock = Clock { boot: said.now, offset: said.offset };
        let mut told = flow::Told { cost: said.charge.cost(), scope: claim.scope, ..flow::Told::NOTHING };
        let retry_of = |bucket: &Bucket, limit: &Limit, cost: u64| limit::retry(bucket, limit, clock, cost);
        measure(&mut told, &policy, &buckets, said.now, retry_of);
        retry = Some(told.retry);
        if reason == Reason::OverLimit {
            let name: Vec<u8> = told.name.iter().flat_map(|word| word.to_le_bytes()).collect();
            limit = Some(String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned());
        }
    } else if matches!(reason, Reason::KeyRotation | Reason::KeyShared) {
        let spread = if reason == Reason::KeyShared { &rules.sources_of_key } else { &rules.keys_of_source };
        retry = u32::try_from(spread.window.div_ceil(1_000_000_000)).ok();
    }
    Ok(Told { how: "answer".to_owned(), status, limit, retry_after_seconds: retry })
}
