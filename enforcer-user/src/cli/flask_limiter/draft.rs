//! A policy that is being written: its parts, and its text with the losses as comments.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

/// Whom a limit counts apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Per {
    Principal,
    Source,
    Service,
}

impl Per {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Principal => "principal",
            Self::Source => "source",
            Self::Service => "service",
        }
    }
}

/// A limit string, and whom it counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) limit: String,
    pub(super) per: Per,
}

/// What a route's requests are counted against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Count {
    /// Nothing.
    Nothing,
    /// A limit that this function makes for each request, in whose place one is to be written.
    Unknown(String),
    /// A limit of its own.
    Own(Counted),
    /// A named limit.
    Shared(String),
}

/// A route.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) path: String,
    /// Absent: all.
    pub(super) methods: Option<Vec<String>>,
    pub(super) count: Count,
    pub(super) cost: u32,
    /// Which endpoint of the app it is.
    pub(super) endpoint: String,
}

/// A policy.
#[derive(Debug, Default)]
pub(super) struct Draft {
    /// Where it comes from.
    pub(super) origin: String,
    /// Limits of each source, of each principal, and of all requests, over all routes.
    pub(super) over_all: BTreeMap<Per, String>,
    /// Named limits.
    pub(super) limits: BTreeMap<String, Counted>,
    pub(super) routes: Vec<Route>,
    /// What could not be said, or is not the same.
    pub(super) losses: Vec<String>,
}

/// Stands where a limit is to be written. It is none, so that no policy is applied with it.
pub(super) const TODO: &str = "TODO";

/// The plan that stands for the app's limits over all routes.
pub(super) const PLAN: &str = "flask-limiter";

impl Draft {
    /// Notes a loss, once.
    pub(super) fn lose(&mut self, loss: impl Into<String>) {
        let loss = loss.into();
        if !self.losses.contains(&loss) {
            self.losses.push(loss);
        }
    }

    /// Takes a named limit in, and gives the name that it has got: another limit may have this one.
    pub(super) fn name(&mut self, wanted: &str, counted: Counted) -> String {
        let clean = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
        let base: String = wanted.chars().map(clean).collect();
        let base = base.trim_start_matches(['-', '_']);
        let base = if base.is_empty() { "shared" } else { &base[..base.len().min(60)] };
        let mut name = base.to_owned();
        for number in 2.. {
            match self.limits.get(&name) {
                Some(other) if *other != counted => name = format!("{base}-{number}"),
                _ => break,
            }
        }
        self.limits.insert(name.clone(), counted);
        name
    }
}

/// A TOML string.
fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

impl fmt::Display for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { origin, over_all, limits, routes, losses } = self;
        let comment = |f: &mut fmt::Formatter<'_>, text: &str| writeln!(f, "# {}", text.replace(['\n', '\r'], " "));
        comment(f, origin)?;
        comment(f, "Read it, then: enforcer check FILE; enforcer apply -f FILE --dry-run; enforcer apply -f FILE.")?;
        if !losses.is_empty() {
            writeln!(f, "#\n# Not the same as in the app:")?;
            losses.iter().try_for_each(|loss| comment(f, &format!("- {loss}")))?;
        }
        writeln!(f, "\nversion = 1")?;
        let service = [(Per::Service, "ceiling"), (Per::Source, "source")];
        let service: Vec<_> = service.iter().filter_map(|(per, field)| Some((field, over_all.get(per)?))).collect();
        if !service.is_empty() {
            writeln!(f, "\n[service]")?;
            service.iter().try_for_each(|(field, limit)| writeln!(f, "{field} = {}", quoted(limit)))?;
        }
        writeln!(
            f,
            "\n# Over all routes together. Give it to those who call the app:\n# [principal.alice]\n# plan = \"{PLAN}\""
        )?;
        let limit = over_all.get(&Per::Principal).map_or("unlimited", String::as_str);
        writeln!(f, "[plan.{PLAN}]\nlimit = {}", quoted(limit))?;
        for (name, Counted { limit, per }) in limits {
            writeln!(f, "\n[limit.{name}]\nlimit = {}", quoted(limit))?;
            write_per(f, *per)?;
        }
        routes.iter().try_for_each(|route| write!(f, "{route}"))
    }
}

fn write_per(f: &mut fmt::Formatter<'_>, per: Per) -> fmt::Result {
    if per == Per::Principal { Ok(()) } else { writeln!(f, "per = \"{}\"", per.as_str()) }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, methods, count, cost, endpoint } = self;
        writeln!(f, "\n[[route]] # {}", endpoint.replace(['\n', '\r'], " "))?;
        writeln!(f, "path = {}", quoted(path))?;
        if let Some(methods) = methods {
            let mut list = String::new();
            for method in methods {
                write!(list, "{}{}", if list.is_empty() { "" } else { ", " }, quoted(method))?;
            }
            writeln!(f, "methods = [{list}]")?;
        }
        match count {
            Count::Nothing => writeln!(f, "limit = \"unlimited\"")?,
            Count::Unknown(function) => {
                let function = function.replace(['\n', '\r'], " ");
                writeln!(f, "# {TODO}: a limit in the place of the one that {function} makes for each request")?;
                writeln!(f, "limit = {}", quoted(TODO))?;
            }
            Count::Shared(name) => writeln!(f, "use = {}", quoted(name))?,
            Count::Own(Counted { limit, per }) => {
                writeln!(f, "limit = {}", quoted(limit))?;
                write_per(f, *per)?;
            }
        }
        if *cost == 1 { Ok(()) } else { writeln!(f, "cost = {cost}") }
    }
}
