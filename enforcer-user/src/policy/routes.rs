//! Which rules hold for a path and method, and the automaton by which the program finds that out.
//!
//! Of the routes whose path a request's path begins with, and whose methods its method is among, the longest holds; of
//! equally long ones the one that has, from the left, the first literal where the other has `{id}`. A public path goes
//! before any route, and exemptions beside both. [`resolve`] says it by looking at all of them; [`compile`] turns them into
//! a deterministic automaton over segments that comes to the same with one step for each segment. Services that are told
//! apart by host have one together, since a path is read before its host: it comes to the rules of each.

mod automaton;

use super::document::{Exemption, Public, Route, Site};
use super::method::Methods;
use super::path::{Pattern, Reach, Segment};

pub use automaton::{Automaton, Branch, Origin, Room, TooLarge, compile};

/// What holds for a path and method, as places in the lists of the [`Site`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolution {
    /// The exemptions; each is for its sources alone.
    pub exempt: Vec<usize>,
    /// The public path; if there is one, no route holds.
    pub public: Option<usize>,
    /// The route.
    pub route: Option<usize>,
}

/// What holds for a path, by its decoded segments ([`super::path::segments`]), and the number of a method
/// ([`enforcer_ebpf::http::method`]).
#[must_use]
pub fn resolve(site: &Site, path: &[Vec<u8>], method: u32) -> Resolution {
    let is_for = |one: &Exemption| one.methods.has(method) && one.path.matches(one.reach, path);
    let exempt = site.exempt.iter().enumerate().filter(|(_, one)| is_for(one)).map(|(place, _)| place).collect();
    let is_public = |one: &Public| one.methods.has(method) && one.path.matches(one.reach, path);
    let public = site.public.iter().enumerate().filter(|(_, one)| is_public(one));
    // An exact path goes before one that reaches beneath itself.
    let public = public.min_by(|(_, a), (_, b)| a.path.precedence(&b.path).then(a.reach.cmp(&b.reach)));
    if let Some((place, _)) = public {
        return Resolution { exempt, public: Some(place), route: None };
    }
    let is_route = |one: &Route| one.methods.has(method) && one.path.leads_to(path);
    let routes = site.routes.iter().enumerate().filter(|(_, one)| is_route(one));
    let route = routes.min_by(|(_, a), (_, b)| Pattern::precedence(&a.path, &b.path)).map(|(place, _)| place);
    Resolution { exempt, public: None, route }
}

/// What takes all requests of one of the routes, so that none comes to it: the public paths and routes that go before it, as
/// they are shown. `None` if some come to it.
#[must_use]
pub fn hiding(site: &Site, place: usize) -> Option<Vec<String>> {
    let route = site.routes.get(place)?;
    let mut hiding = Vec::new();
    for method in (0..Methods::COUNT as u32).filter(|&method| route.methods.has(method)) {
        // A segment that is in no pattern, so that as few as can be match beside it.
        let fresh = || b"\0".to_vec();
        let mut path: Vec<Vec<u8>> = route
            .path
            .segments()
            .iter()
            .map(|segment| match segment {
                Segment::Literal(bytes) => bytes.clone(),
                Segment::Any(_) => fresh(),
            })
            .collect();
        loop {
            let found = resolve(site, &path, method);
            if found.route == Some(place) {
                return None;
            }
            let public = found.public.map(|place| &site.public[place]);
            let other = found.route.map(|place| &site.routes[place]);
            let shown = public.map(|one| format!("public {one}")).or_else(|| other.map(|one| format!("route {one}")));
            hiding.extend(shown.filter(|shown| !hiding.contains(shown)));
            // What reaches beneath itself goes on doing so; an exact path leaves what is longer.
            if public.is_none_or(|one| one.reach == Reach::Beneath) {
                break;
            }
            path.push(fresh());
        }
    }
    Some(hiding)
}

#[cfg(test)]
mod tests;
