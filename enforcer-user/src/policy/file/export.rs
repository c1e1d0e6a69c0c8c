//! A policy written as a file: everything that holds, in a stable order, so that it reads back as the same policy.

use std::fmt::{self, Write as _};

use super::VERSION;
use crate::config::Mode;
use crate::policy::document::{
    Charge, DEFAULT_SERVICE, Exemption, MODES, Override, PERS, Plan, Policy, Principal, Public, Quota, Route, Site,
    Terms, tail, word,
};
use crate::policy::method::Methods;
use crate::policy::service::{ACTIONS, OWN_LIMITS, PROXY_PROTOCOLS, Service, Spread, Time, Unregistered};

impl Policy {
    /// This policy as a file that [`super::parse`] reads as it.
    #[must_use]
    pub fn export(&self) -> String {
        let Self { services, plans, tenants, principals } = self;
        let mut text = Text(format!("version = {VERSION}\n"));
        // One that has the name of all that have none is told without it.
        let only = services.get(DEFAULT_SERVICE).filter(|_| services.len() == 1);
        if let Some(Site { service, .. }) = only {
            text.table("service");
            text.service(service);
        }
        for (section, all) in [("plan", plans), ("tenant", tenants)] {
            for (name, Plan { limits, candidate, mode }) in all {
                text.table(&format!("{section}.{}", key(name)));
                text.string("limit", limits);
                text.maybe("candidate", candidate.as_ref());
                text.string("mode", word(&MODES, *mode));
            }
        }
        for (name, one) in principals {
            text.principal(name, one);
        }
        match only {
            Some(site) => text.rules("", site),
            None => {
                for (name, site) in services {
                    text.entry("service");
                    text.string("name", name);
                    text.service(&site.service);
                    text.rules("service.", site);
                }
            }
        }
        text.0
    }
}

/// A string in quotes, with what TOML wants escaped.
fn quoted(text: impl fmt::Display) -> String {
    let mut quoted = String::from("\"");
    for c in text.to_string().chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// A key, in quotes if it needs some.
fn key(name: &str) -> String {
    let bare = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    if bare { name.to_owned() } else { quoted(name) }
}

/// The file as far as it is written.
struct Text(String);

impl Text {
    fn line(&mut self, line: fmt::Arguments<'_>) {
        // A string takes whatever is written to it.
        let _ = self.0.write_fmt(line);
        self.0.push('\n');
    }

    fn table(&mut self, name: &str) {
        self.line(format_args!("\n[{name}]"));
    }

    fn entry(&mut self, section: &str) {
        self.line(format_args!("\n[[{section}]]"));
    }

    fn plain(&mut self, field: &str, value: impl fmt::Display) {
        self.line(format_args!("{field} = {value}"));
    }

    fn string(&mut self, field: &str, value: impl fmt::Display) {
        self.plain(field, quoted(value));
    }

    fn maybe(&mut self, field: &str, value: Option<impl fmt::Display>) {
        if let Some(value) = value {
            self.string(field, value);
        }
    }

    fn list(&mut self, field: &str, values: impl IntoIterator<Item: fmt::Display>) {
        let values: Vec<_> = values.into_iter().map(quoted).collect();
        self.plain(field, format_args!("[{}]", values.join(", ")));
    }

    fn methods(&mut self, methods: Methods) {
        if methods != Methods::ALL {
            self.list("methods", methods.words());
        }
    }

    fn service(&mut self, service: &Service) {
        let Service {
            ceiling,
            source,
            guesses,
            guess_penalty,
            strict_guesses,
            preflight,
            unkeyed,
            unregistered,
            observe,
            candidates,
            key_headers,
            client_id,
            trusted_proxies,
            proxy_protocol,
            connections_per_source,
            connections_per_principal,
            keys_per_source,
            sources_per_key,
        } = service;
        self.maybe("ceiling", ceiling.as_ref());
        self.maybe("source", source.as_ref());
        self.string("guesses", guesses);
        if *guesses != crate::policy::Limits::Unlimited {
            self.string("guess_penalty", Time(*guess_penalty));
            self.plain("strict_guesses", strict_guesses);
        }
        self.string("preflight", preflight);
        self.string("unkeyed", unkeyed);
        if !observe.is_empty() {
            self.list("observe", observe.iter().map(|limit| word(&OWN_LIMITS, *limit)));
        }
        self.list("key_headers", key_headers);
        self.maybe("client_id", client_id.as_ref());
        self.list("trusted_proxies", trusted_proxies);
        self.string("proxy_protocol", word(&PROXY_PROTOCOLS, *proxy_protocol));
        for (field, most) in [
            ("connections_per_source", connections_per_source),
            ("connections_per_principal", connections_per_principal),
        ] {
            if let Some(most) = most {
                self.plain(field, most);
            }
        }
        if let Some(Unregistered { limits, max_keys }) = unregistered {
            self.table("service.unregistered");
            self.string("limit", limits);
            self.plain("max_keys", max_keys);
        }
        if !candidates.is_empty() {
            self.table("service.candidate");
            for (limit, candidate) in candidates {
                self.string(word(&OWN_LIMITS, *limit), candidate);
            }
        }
        for (field, spread) in [("keys_per_source", keys_per_source), ("sources_per_key", sources_per_key)] {
            let Spread { most, within, action } = *spread;
            self.table(&format!("service.{field}"));
            self.plain("most", most);
            self.string("within", Time(within));
            self.string("action", word(&ACTIONS, action));
        }
    }

    fn principal(&mut self, name: &str, principal: &Principal) {
        let Principal { terms, tenant, candidate, clients } = principal;
        self.table(&format!("principal.{}", key(name)));
        self.maybe("tenant", tenant.as_ref());
        match terms {
            Terms::Own(limits) => self.string("limit", limits),
            Terms::Plan { plan, instead } => {
                self.string("plan", plan);
                if let Some(Override { limits, until }) = instead {
                    self.string("limit", limits);
                    if let Some(until) = until {
                        self.plain("until", until);
                    }
                }
            }
        }
        self.maybe("candidate", candidate.as_ref());
        if !clients.is_empty() {
            self.table(&format!("principal.{}.clients", key(name)));
            for (id, limits) in clients {
                self.string(&key(id), limits);
            }
        }
    }

    fn quota(&mut self, quota: &Quota) {
        let Quota { limits, per, candidate, mode } = quota;
        self.string("limit", limits);
        self.string("per", word(&PERS, *per));
        self.maybe("candidate", candidate.as_ref());
        self.string("mode", word::<Mode>(&MODES, *mode));
    }

    /// The sections of a service; `of` is what stands before their names.
    fn rules(&mut self, of: &str, site: &Site) {
        let Site { service: _, limits, routes, public, exempt } = site;
        for (name, one) in limits {
            self.table(&format!("{of}limit.{}", key(name)));
            self.quota(one);
        }
        for one in routes {
            self.entry(&format!("{of}route"));
            self.route(one);
        }
        for Public { path, reach, methods, limits, candidate } in public {
            self.entry(&format!("{of}public"));
            self.string("path", format_args!("{path}{}", tail(path, *reach)));
            self.methods(*methods);
            self.string("limit", limits);
            self.maybe("candidate", candidate.as_ref());
        }
        for Exemption { path, reach, methods, sources, until, reason } in exempt {
            self.entry(&format!("{of}exempt"));
            self.string("path", format_args!("{path}{}", tail(path, *reach)));
            self.methods(*methods);
            self.list("sources", sources);
            self.plain("until", until);
            self.string("reason", reason);
        }
    }

    fn route(&mut self, route: &Route) {
        let Route { path, methods, charge, cost } = route;
        self.string("path", path);
        self.methods(*methods);
        match charge {
            Some(Charge::Own(quota)) => self.quota(quota),
            Some(Charge::Shared(name)) => self.string("use", name),
            None => {}
        }
        if *cost != 1 || charge.is_none() {
            self.plain("cost", cost);
        }
    }
}
