//! What a test registers: services, keys, principals and their policies, as the daemon would write them.

use std::collections::BTreeMap;

use enforcer_ebpf::abi::{
    ANSWER_TEXT, Answer, Client, Edge, Host, Key, KeyTag, Leaf, Limit, POINTS, Point, Policy, Rule, Ruleset, Scope,
    Service, Share, State, Value, scope,
};
use enforcer_ebpf::charge::table;
use enforcer_ebpf::key;
use enforcer_ebpf::source::Address;

use crate::reader::SECRET;

/// The rows of the maps that the daemon writes.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// Port to service.
    pub services: BTreeMap<u16, Service>,
    /// The services that no port leads to at once, but a host; their slots are behind those of the ports.
    pub hosted: Vec<Service>,
    /// Host to slot.
    pub hosts: BTreeMap<Host, u32>,
    /// The registered keys.
    pub keys: BTreeMap<KeyTag, Key>,
    /// Slot to policy; a principal of the number of a slot is under that one.
    pub policies: BTreeMap<u32, Policy>,
    /// Slot to rules.
    pub rulesets: BTreeMap<u32, Ruleset>,
    /// What leads on from a state.
    pub edges: BTreeMap<Edge, u32>,
    /// The automaton's states, from 0 on.
    pub states: Vec<State>,
    /// The rules of paths, from 0 on.
    pub leaves: Vec<Leaf>,
    /// The rules, from 0 on.
    pub rules: Vec<Rule>,
    /// The addresses of each exemption, IPv4 mapped, and when it ends in ns of Unix time.
    pub exemptions: Vec<(Vec<[u8; 16]>, u64)>,
    /// By which rules' bits an address's `X-Forwarded-For` is believed.
    pub proxies: BTreeMap<Address, u64>,
    /// What declared clients have.
    pub clients: BTreeMap<Client, Share>,
    /// Named subjects that have buckets from the beginning.
    pub named: Vec<Scope>,
    /// Index to answer.
    pub answers: BTreeMap<u32, Answer>,
}

impl Tables {
    /// One service on port 8000 with the default bounds, nothing else.
    #[must_use]
    pub fn new() -> Self {
        let mut tables = Self::default();
        tables.services.insert(8000, Service::DEFAULT);
        tables
    }

    /// Gives `value` to `principal` (1 and above).
    #[must_use]
    pub fn with_key(mut self, value: &str, principal: u32, flags: u32) -> Self {
        let key = Key { principal, flags, not_before: 0, expires: u64::MAX, policy: 0, reserved: 0 };
        self.keys.insert(key::tag(SECRET, value.as_bytes()), key);
        self
    }

    /// Answers so, at this index: `date`, `retry`, `quota`, `window`, `limit` and `connection` in braces are filled in.
    ///
    /// # Panics
    /// When the text is too long or has too many places, or another name stands in braces.
    #[must_use]
    pub fn with_answer(mut self, index: u32, head: &str, body: &str) -> Self {
        let (mut text, mut points) = (Vec::new(), Vec::new());
        for (number, part) in head.split(['{', '}']).enumerate() {
            if number % 2 == 0 {
                text.extend(part.as_bytes());
                continue;
            }
            let value = match part {
                "date" => Value::Date,
                "retry" => Value::RetryAfter,
                "quota" => Value::Quota,
                "window" => Value::Window,
                "limit" => Value::Name,
                "connection" => Value::Connection,
                other => panic!("{other} is not filled in"),
            };
            points.push(Point { at: text.len() as u16, value: value as u16 });
        }
        let head = text.len() as u32;
        text.extend(body.as_bytes());
        let mut answer = Answer {
            len: text.len() as u32,
            head,
            filled: points.len() as u32,
            reserved: 0,
            points: [Point::default(); POINTS],
            text: [0; ANSWER_TEXT],
        };
        answer.points[..points.len()].copy_from_slice(&points);
        answer.text[..text.len()].copy_from_slice(&text);
        self.answers.insert(index, answer);
        self
    }

    /// Puts `principal` under these limits.
    #[must_use]
    pub fn with_limits(mut self, principal: u32, limits: &[Limit]) -> Self {
        self.policies.insert(principal, policy(limits));
        self
    }

    /// Puts a service on port 8000 under these rules.
    #[must_use]
    pub fn with_rules(mut self, rules: Ruleset) -> Self {
        const SLOT: u32 = 1;
        self.rulesets.insert(SLOT, rules);
        self.services.entry(8000).or_insert(Service::DEFAULT).rules = SLOT;
        self
    }

    /// The buckets of named subjects that are there before the first frame: that which the daemon makes ahead in any case,
    /// and those of [`Tables::named`].
    #[must_use]
    pub fn opened(&self) -> Vec<(u32, Scope)> {
        let of_services = self.services.values().map(|service| service.number);
        let unregistered = of_services.map(|number| scope::of_service(scope::UNREGISTERED_ADMISSION, number));
        let admissions = unregistered.chain([scope::ADMISSION]).map(|rule| Scope { rule, subject: [0; 2] });
        admissions.chain(self.named.iter().copied()).map(|scope| (table::NAMED, scope)).collect()
    }
}

/// These limits, named by their numbers.
#[must_use]
pub fn policy(limits: &[Limit]) -> Policy {
    let mut policy = Policy { len: limits.len() as u32, ..Policy::UNLIMITED };
    for (number, limit) in limits.iter().enumerate() {
        policy.limits[number] = *limit;
        policy.names[number] = [u64::from(b'1') + number as u64, 0];
    }
    policy
}
