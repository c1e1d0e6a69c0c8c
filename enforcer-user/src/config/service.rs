//! The services of a configuration: what is guarded where, and what becomes of a request that is refused there.
//!
//! Services on one port are told apart by the host that a request names. What is to be known of such a port before is the
//! same for all of them, and that of their [`leader`] where it cannot be.
//!
//! What the file says outside of `[[service]]` holds for all services, what one of these says for itself, and what flags
//! and environment say stands above both.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

use enforcer_ebpf::abi::Service;
use serde::Deserialize;
use toml::Spanned;

use super::choice::Choice;
use super::host::{self, HostName};
use super::sizes::{self, SizeOverrides, Sizes};
use super::{
    Error, HeadTimeout, Mode, OnRefuse, OpenHeads, Penalty, Refusals, Source, Switch, answers, merge_ports, or,
    penalty, refusals,
};
use crate::answer::Texts;
use crate::name;
use crate::policy::document::{DEFAULT_SERVICE, MAX_SERVICES};

/// A guarded service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guarded {
    /// What it is called, in the policy too.
    pub name: String,
    /// Its TCP ports, sorted, at least one. Services that have one in common have all.
    pub ports: Vec<u16>,
    /// The hosts that it is for, sorted; of services with the same ports only one has none, and is for all others.
    pub hosts: Vec<HostName>,
    /// What is done with a refused request.
    pub on_refuse: Refusals,
    /// What refused requests are answered; all of it can be sent.
    pub answers: Texts,
    /// Whether refusals happen or are counted only.
    pub mode: Mode,
    /// How long a connection may wait for its first byte, and a head for its last.
    pub head_timeout: HeadTimeout,
    /// How many connections of one source may so wait at once.
    pub max_open_heads: OpenHeads,
    /// How large a request may be.
    pub sizes: Sizes,
    /// What becomes of sources that go on sending what is refused.
    pub penalty: Penalty,
}

/// `[[service]]` as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    name: Spanned<String>,
    ports: Spanned<Vec<Spanned<u16>>>,
    hosts: Option<Spanned<Vec<Spanned<String>>>>,
    on_refuse: Option<Spanned<Choice<refusals::Table>>>,
    answers: Option<Spanned<answers::Written>>,
    mode: Option<Spanned<String>>,
    head_timeout: Option<Spanned<String>>,
    max_open_heads: Option<Spanned<u64>>,
    max_head: Option<Spanned<u64>>,
    max_fields: Option<Spanned<u64>>,
    max_target: Option<Spanned<u64>>,
    max_body: Option<Spanned<u64>>,
    penalty: Option<Spanned<Choice<penalty::Table>>>,
}

/// What may stand in a service, and outside of all of them.
#[derive(Debug, Default)]
pub(super) struct Common {
    pub(super) on_refuse: Option<Spanned<Choice<refusals::Table>>>,
    pub(super) answers: Option<Spanned<answers::Written>>,
    pub(super) mode: Option<Spanned<String>>,
    pub(super) head_timeout: Option<Spanned<String>>,
    pub(super) max_open_heads: Option<Spanned<u64>>,
    pub(super) max_head: Option<Spanned<u64>>,
    pub(super) max_fields: Option<Spanned<u64>>,
    pub(super) max_target: Option<Spanned<u64>>,
    pub(super) max_body: Option<Spanned<u64>>,
    pub(super) penalty: Option<Spanned<Choice<penalty::Table>>>,
}

/// What flags and environment say.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Above {
    pub(super) on_refuse: Option<OnRefuse>,
    pub(super) mode: Option<Mode>,
    pub(super) head_timeout: Option<HeadTimeout>,
    pub(super) max_open_heads: Option<OpenHeads>,
    pub(super) sizes: SizeOverrides,
    pub(super) penalty: Option<Switch>,
}

impl Written {
    /// Its ports alone.
    pub(super) fn into_ports(self) -> Vec<Spanned<u16>> {
        self.ports.into_inner()
    }
}

impl Guarded {
    /// The service as the kernel reads it, without its number and rules.
    #[must_use]
    pub fn service(&self) -> Service {
        let flags = match self.mode {
            Mode::Enforce if self.on_refuse.answer() => Service::ANSWER | Service::KEEP,
            Mode::Enforce => 0,
            Mode::Observe => Service::OBSERVE,
        };
        let head_timeout_ns = self.head_timeout.ns();
        let mut service = Service { flags, head_timeout_ns, actions: self.on_refuse.actions(), ..Service::DEFAULT };
        self.sizes.apply(&mut service);
        if self.penalises() {
            self.penalty.apply(&mut service);
        }
        service
    }

    /// Whether sources get penalties. Who only observes refuses nobody, and so counts nobody's refusals.
    #[must_use]
    pub fn penalises(&self) -> bool {
        self.mode == Mode::Enforce && self.penalty.switch == Switch::On
    }
}

impl fmt::Display for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self.mode {
            Mode::Enforce => "enforcing",
            Mode::Observe => "observing, and refusing nothing,",
        };
        let ports: Vec<String> = self.ports.iter().map(u16::to_string).collect();
        let hosts: Vec<&str> = self.hosts.iter().map(HostName::as_str).collect();
        let hosts = if hosts.is_empty() { String::new() } else { format!(", hosts {}", hosts.join(", ")) };
        match self.name.as_str() {
            DEFAULT_SERVICE => write!(f, "{verb} ports {}{hosts}", ports.join(", ")),
            name => write!(f, "{verb} {name}, ports {}{hosts}", ports.join(", ")),
        }
    }
}

/// The service that is made of what is said of all.
fn usual(common: Common, above: Above, source: &Source<'_>) -> Result<Guarded, Error> {
    let default = Guarded {
        name: DEFAULT_SERVICE.to_owned(),
        ports: Vec::new(),
        hosts: Vec::new(),
        on_refuse: Refusals::default(),
        answers: Texts::default(),
        mode: Mode::default(),
        head_timeout: HeadTimeout::default(),
        max_open_heads: OpenHeads::default(),
        sizes: Sizes::default(),
        penalty: Penalty::default(),
    };
    over(&default, common, above, source)
}

/// A service of which this is said, where all else is as in `usual`.
fn over(usual: &Guarded, own: Common, above: Above, source: &Source<'_>) -> Result<Guarded, Error> {
    let Common {
        on_refuse,
        answers,
        mode,
        head_timeout,
        max_open_heads,
        max_head,
        max_fields,
        max_target,
        max_body,
        penalty,
    } = own;
    let written = sizes::Written { head: max_head, fields: max_fields, target: max_target, body: max_body };
    Ok(Guarded {
        name: usual.name.clone(),
        ports: usual.ports.clone(),
        hosts: Vec::new(),
        on_refuse: match (on_refuse, above.on_refuse) {
            (None, None) => usual.on_refuse.clone(),
            (written, above) => Refusals::merge(above, written, source)?,
        },
        answers: match answers {
            None => usual.answers.clone(),
            written => answers::merge(written, source)?,
        },
        mode: or(above.mode, source.word("mode", mode)?).unwrap_or(usual.mode),
        head_timeout: or(above.head_timeout, source.word("head_timeout", head_timeout)?).unwrap_or(usual.head_timeout),
        max_open_heads: or(above.max_open_heads, source.number("max_open_heads", max_open_heads)?)
            .unwrap_or(usual.max_open_heads),
        sizes: usual.sizes.merge(above.sizes, written, source)?,
        penalty: match penalty {
            None => Penalty { switch: above.penalty.unwrap_or(usual.penalty.switch), ..usual.penalty },
            written => Penalty::merge(above.penalty, written, source)?,
        },
    })
}

/// All services: those of the file, or the one of the ports that stand outside of any.
pub(super) fn merge(
    ports: Vec<u16>,
    written: &[Spanned<u16>],
    services: Option<Spanned<Vec<Written>>>,
    common: Common,
    above: Above,
    source: &Source<'_>,
) -> Result<Vec<Guarded>, Error> {
    let usual = usual(common, above, source)?;
    let Some(services) = services else {
        return Ok(vec![Guarded { ports: merge_ports(ports, written, source)?, ..usual }]);
    };
    if !ports.is_empty() {
        let message = "the file has [[service]]: give each its ports there".to_owned();
        return Err(Error::Value { setting: "--port (ENFORCER_PORT)", message });
    }
    if let Some(port) = written.first() {
        return Err(source.invalid(port.span(), "ports: where there are [[service]] a port stands in one of them"));
    }
    let span = services.span();
    let services = services.into_inner();
    if services.is_empty() || services.len() > MAX_SERVICES {
        let message = format!("service: {} of them; accepted: 1 to {MAX_SERVICES}", services.len());
        return Err(source.invalid(span, message));
    }
    let mut names: HashMap<String, Range<usize>> = HashMap::new();
    let mut all: Vec<(Guarded, Places)> = Vec::with_capacity(services.len());
    for one in services {
        let Written { name, ports, .. } = &one;
        let (span, name) = (name.span(), name.get_ref().clone());
        if let Err(error) = name::check(&name) {
            return Err(source.invalid(span, format!("service.name: {error}; accepted: {}", name::ACCEPTED)));
        }
        if names.insert(name.clone(), span.clone()).is_some() {
            return Err(source.invalid(span, format!("service.name: {name:?} stands twice")));
        }
        if ports.get_ref().is_empty() {
            return Err(source.invalid(ports.span(), format!("service.ports: {name} has none")));
        }
        let places = Places::of(&one);
        let hosts = read_hosts(one.hosts.as_ref(), source)?;
        let ports = merge_ports(Vec::new(), ports.get_ref(), source)?;
        let Written {
            name: _,
            ports: _,
            hosts: _,
            on_refuse,
            answers,
            mode,
            head_timeout,
            max_open_heads,
            max_head,
            max_fields,
            max_target,
            max_body,
            penalty,
        } = one;
        let own = Common {
            on_refuse,
            answers,
            mode,
            head_timeout,
            max_open_heads,
            max_head,
            max_fields,
            max_target,
            max_body,
            penalty,
        };
        let guarded = Guarded { name, ports, hosts, ..over(&usual, own, above, source)? };
        for (other, theirs) in &all {
            together(other, theirs, &guarded, &places, source)?;
        }
        all.push((guarded, places));
    }
    Ok(all.into_iter().map(|(guarded, _)| guarded).collect())
}

fn read_hosts(written: Option<&Spanned<Vec<Spanned<String>>>>, source: &Source<'_>) -> Result<Vec<HostName>, Error> {
    let Some(written) = written else { return Ok(Vec::new()) };
    let count = written.get_ref().len();
    if !(1..=host::MOST).contains(&count) {
        let message = format!("service.hosts: {count} of them; accepted: 1 to {}, or none of the field", host::MOST);
        return Err(source.invalid(written.span(), message));
    }
    let mut hosts = Vec::with_capacity(count);
    for one in written.get_ref() {
        let host: HostName = one.get_ref().parse().map_err(|error| {
            let message = format!("service.hosts: {:?}: {error}; accepted: {}", one.get_ref(), HostName::ACCEPTED);
            source.invalid(one.span(), message)
        })?;
        if hosts.contains(&host) {
            return Err(source.invalid(one.span(), format!("service.hosts: {host} stands twice")));
        }
        hosts.push(host);
    }
    hosts.sort_unstable();
    Ok(hosts)
}

/// Where a service says what services on the same ports must agree on.
struct Places {
    name: Range<usize>,
    ports: Vec<(u16, Range<usize>)>,
    hosts: Vec<(String, Range<usize>)>,
    fields: [(&'static str, Option<Range<usize>>); 7],
}

impl Places {
    fn of(written: &Written) -> Self {
        fn place<T>(field: &Option<Spanned<T>>) -> Option<Range<usize>> {
            field.as_ref().map(Spanned::span)
        }
        let hosts = written.hosts.iter().flat_map(|hosts| hosts.get_ref());
        Self {
            name: written.name.span(),
            ports: written.ports.get_ref().iter().map(|port| (*port.get_ref(), port.span())).collect(),
            hosts: hosts.map(|host| (host.get_ref().clone(), host.span())).collect(),
            fields: [
                ("head_timeout", place(&written.head_timeout)),
                ("max_open_heads", place(&written.max_open_heads)),
                ("max_head", place(&written.max_head)),
                ("max_fields", place(&written.max_fields)),
                ("max_target", place(&written.max_target)),
                ("max_body", place(&written.max_body)),
                ("penalty", place(&written.penalty)),
            ],
        }
    }
}

/// Sees that a service can be told apart from one before it in the file.
fn together(
    first: &Guarded,
    first_places: &Places,
    second: &Guarded,
    places: &Places,
    source: &Source<'_>,
) -> Result<(), Error> {
    let (owner, name) = (&first.name, &second.name);
    let Some((port, span)) = places.ports.iter().find(|(port, _)| first.ports.contains(port)) else { return Ok(()) };
    if first.hosts.is_empty() && second.hosts.is_empty() {
        let message = format!("service.ports: {port} is {owner}'s already; accepted: `hosts` for one of them or both");
        return Err(source.invalid(span.clone(), message));
    }
    if first.ports != second.ports {
        let all: Vec<String> = first.ports.iter().map(u16::to_string).collect();
        let message = format!(
            "service.ports: {port} is {owner}'s, too, so all must be; accepted: [{}], or none of these",
            all.join(", ")
        );
        return Err(source.invalid(span.clone(), message));
    }
    let is_theirs = |text: &str| text.parse().is_ok_and(|host: HostName| first.hosts.contains(&host));
    if let Some((host, span)) = places.hosts.iter().find(|(host, _)| is_theirs(host)) {
        return Err(source.invalid(span.clone(), format!("service.hosts: {host:?} is {owner}'s already")));
    }
    let [head, fields, target, body] = std::array::from_fn(|size| first.sizes.all()[size] == second.sizes.all()[size]);
    let times = first.head_timeout == second.head_timeout;
    let agreed = [
        times,
        first.max_open_heads == second.max_open_heads,
        head,
        fields,
        target,
        body,
        first.penalty == second.penalty,
    ];
    let fields = places.fields.iter().zip(&first_places.fields).zip(agreed);
    for (((field, here), (_, there)), agree) in fields {
        if !agree {
            let span = here.clone().or_else(|| there.clone()).unwrap_or_else(|| places.name.clone());
            let message = format!(
                "service.{field}: {owner} and {name} have the same ports, and {field} counts before it is known for which of \
                 them a request is; accepted: the same for both"
            );
            return Err(source.invalid(span, message));
        }
    }
    Ok(())
}

/// The service that a service's ports lead to, by which all goes that is before a request's host: of those with the same
/// ports the one for all hosts that are no other's, else the first in the file.
#[must_use]
pub fn leader<'s>(services: &'s [Guarded], one: &Guarded) -> Option<&'s Guarded> {
    let mut same = services.iter().filter(|other| other.ports == one.ports);
    same.clone().find(|other| other.hosts.is_empty()).or_else(|| same.next())
}

/// Whether what cannot be said to be for one of the services with the same ports as this one is refused, or counted only:
/// refused, if one of them enforces.
#[must_use]
pub fn mode_of_ports(services: &[Guarded], one: &Guarded) -> Mode {
    let enforces = |other: &Guarded| other.ports == one.ports && other.mode == Mode::Enforce;
    if services.iter().any(enforces) { Mode::Enforce } else { Mode::Observe }
}

/// The services that ports lead to, each as it is for what waits there for a first request.
#[must_use]
pub fn leaders(services: &[Guarded]) -> Vec<Guarded> {
    let leads = |one: &&Guarded| leader(services, one).is_some_and(|leader| leader.name == one.name);
    let of_ports = |one: &Guarded| Guarded { mode: mode_of_ports(services, one), ..one.clone() };
    services.iter().filter(leads).map(of_ports).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{Overrides, Settings};
    use super::*;

    fn merge(overrides: Overrides, text: &str) -> Result<Vec<Guarded>, String> {
        let overrides = Overrides { interfaces: vec!["lo".into()], ..overrides };
        let settings = Settings::merge(overrides, Path::new("e.toml"), text);
        settings.map(|settings| settings.services).map_err(|error| error.to_string())
    }

    const TWO: &str = r#"
        mode = "observe"
        max_head = 8000
        on_refuse = "reset"
        [penalty]
        ipv4 = 24
        [[service]]
        name = "api"
        ports = [8001, 8000]
        mode = "enforce"
        [service.on_refuse]
        default = "answer"
        unkeyed = "drop"
        [[service]]
        name = "web"
        ports = [9000]
        max_head = 4000
        penalty = "off"
    "#;

    #[test]
    fn what_a_service_does_not_say_is_as_in_the_rest_of_the_file() {
        let [api, web] = merge(Overrides::default(), TWO).expect("settings").try_into().expect("two");
        assert_eq!((api.name.as_str(), &api.ports[..], api.mode), ("api", &[8000, 8001][..], Mode::Enforce));
        assert_eq!((api.on_refuse.usual(), api.on_refuse.exceptions().len()), (OnRefuse::Answer, 1));
        assert_eq!((api.service().max_head, api.service().source_v4), (8000, 24));
        assert_eq!((web.name.as_str(), &web.ports[..], web.mode), ("web", &[9000][..], Mode::Observe));
        assert_eq!((web.on_refuse.usual(), web.service().max_head, web.penalises()), (OnRefuse::Reset, 4000, false));
    }

    #[test]
    fn flags_stand_above_every_service() {
        let overrides = Overrides {
            mode: Some(Mode::Enforce),
            on_refuse: Some(OnRefuse::Drop),
            penalty: Some(Switch::Off),
            ..Overrides::default()
        };
        for one in merge(overrides, TWO).expect("settings") {
            assert_eq!((one.mode, one.on_refuse.usual(), one.penalises()), (Mode::Enforce, OnRefuse::Drop, false));
            assert!(one.on_refuse.exceptions().is_empty());
        }
    }

    #[test]
    fn a_port_and_a_name_are_of_one_service() {
        let service = |name: &str, ports: &str| format!("[[service]]\nname = \"{name}\"\nports = {ports}\n");
        for (text, message) in [
            (service("a", "[1]") + &service("a", "[2]"), "e.toml:5:8: service.name: \"a\" stands twice"),
            (
                service("a", "[1, 2]") + &service("b", "[2]"),
                "e.toml:6:10: service.ports: 2 is a's already; accepted: `hosts`",
            ),
            (service("a", "[]"), "e.toml:3:9: service.ports: a has none"),
            (service("a b", "[1]"), "e.toml:2:8: service.name: this is not a name"),
            (service("a", "[0]"), "e.toml:3:10: ports: 0 is no port"),
            ("ports = [1]\n".to_owned() + &service("a", "[2]"), "e.toml:1:10: ports: where there are [[service]]"),
            ("service = []".to_owned(), "e.toml:1:11: service: 0 of them"),
            ("[[service]]\nname = \"a\"\n".to_owned(), "e.toml:1:1: missing field `ports`"),
            ("[[service]]\nname = \"a\"\nports = [1]\nport = 2\n".to_owned(), "e.toml:4:1: unknown field `port`"),
        ] {
            let error = merge(Overrides::default(), &text).expect_err(&text);
            assert!(error.starts_with(message) && !error.contains('\n'), "{text}: {error}");
        }
        let error = merge(Overrides { ports: vec![1], ..Overrides::default() }, TWO).expect_err("both");
        assert!(error.starts_with("--port (ENFORCER_PORT): the file has [[service]]"), "{error}");
    }

    #[test]
    fn services_on_one_port_are_told_apart_by_their_hosts() {
        let text = r#"
            [[service]]
            name = "api"
            ports = [8000, 8001]
            hosts = ["API.example.com.", "api"]
            [[service]]
            name = "rest"
            ports = [8001, 8000]
            mode = "observe"
            [[service]]
            name = "other"
            ports = [9000]
            hosts = ["api"]
        "#;
        let all = merge(Overrides::default(), text).expect("settings");
        let names: Vec<&str> = all[0].hosts.iter().map(HostName::as_str).collect();
        assert_eq!(names, ["api", "api.example.com"]);
        assert_eq!(all[0].to_string(), "enforcing api, ports 8000, 8001, hosts api, api.example.com");
        let led = all.iter().map(|one| leader(&all, one).map_or("", |leader| &leader.name));
        assert_eq!(led.collect::<Vec<_>>(), ["rest", "rest", "other"]);
    }

    #[test]
    fn services_on_one_port_agree_on_what_is_before_the_host() {
        let service = |name: &str, more: &str| format!("[[service]]\nname = \"{name}\"\nports = [1, 2]\n{more}\n");
        let a = service("a", "hosts = [\"a\"]");
        for (text, message) in [
            (a.clone() + &service("b", "hosts = [\"b\", \"A.\"]"), "e.toml:8:15: service.hosts: \"A.\" is a's already"),
            (service("a", "") + &service("b", ""), "e.toml:7:10: service.ports: 1 is a's already; accepted: `hosts`"),
            (
                a.clone() + "[[service]]\nname = \"b\"\nports = [2, 3]\nhosts = [\"b\"]\n",
                "e.toml:7:10: service.ports: 2 is a's, too, so all must be; accepted: [1, 2], or none",
            ),
            (
                a.clone() + &service("b", "max_head = 4000"),
                "e.toml:8:12: service.max_head: a and b have the same ports",
            ),
            (
                service("a", "hosts = [\"a\"]\nhead_timeout = \"5s\"") + &service("b", ""),
                "e.toml:5:16: service.head_timeout: a and b have the same ports",
            ),
            (a.clone() + &service("b", "penalty = \"off\""), "e.toml:8:11: service.penalty: a and b have"),
            (service("a", "hosts = []"), "e.toml:4:9: service.hosts: 0 of them; accepted: 1 to 64"),
            (service("a", "hosts = [\"a:80\"]"), "e.toml:4:10: service.hosts: \"a:80\": this is no name of a host"),
            (service("a", "hosts = [\"a\", \"A\"]"), "e.toml:4:15: service.hosts: a stands twice"),
        ] {
            let error = merge(Overrides::default(), &text).expect_err(&text);
            assert!(error.starts_with(message) && !error.contains('\n'), "{text}: {error}");
        }
    }
}
