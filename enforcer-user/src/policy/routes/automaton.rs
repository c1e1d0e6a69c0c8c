//! The automaton of the paths of a service, or of several, by subset construction.
//!
//! A state stands for what the segments so far have come to: the patterns that they lead into, each at its place, and for
//! each service and method the rule that holds unless a longer pattern is completed. Patterns are completed in the order of their
//! length, so that the last one found is the longest, and what came before can be forgotten.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;

use enforcer_ebpf::abi::{self, Edge, KeyTag, Leaf, Per, Rule, State};
use enforcer_ebpf::key;

use crate::policy::document::{Charge, Site};
use crate::policy::method::Methods;
use crate::policy::path::{Pattern, Reach, Segment};

/// Entries of the maps that an automaton may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Of [`abi::map::STATES`].
    pub states: usize,
    /// Of [`abi::map::ROUTES`].
    pub edges: usize,
    /// Of [`abi::map::LEAVES`].
    pub leaves: usize,
    /// Of [`abi::map::RULES`].
    pub rules: usize,
}

impl Room {
    /// All that the maps have; the first entry of the arrays stands for none.
    pub const ALL: Self = Self {
        states: abi::STATES as usize - 1,
        edges: abi::ROUTES as usize,
        leaves: abi::LEAVES as usize - 1,
        rules: abi::RULES as usize - 1,
    };
}

/// What a rule's limits and scope come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// This of [`Site::routes`].
    Route(usize),
    /// This of [`Site::public`].
    Public(usize),
    /// Exemptions alone: whoever they are not for has no rule of the path.
    Exempt,
}

/// The automaton. Numbers in it are places in these lists, counted from 1; 0 stands for none, as in the maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Automaton {
    /// The states; the first is the one of a path without segments.
    pub states: Vec<State>,
    /// Which state a segment leads to from another, where it is another than that of any segment.
    pub edges: Vec<(Edge, u64)>,
    /// The leaves; of a state the number is that of its first, behind which are those of the other branches.
    pub leaves: Vec<Leaf>,
    /// The rules, without scope and policy, which only the caller knows.
    pub rules: Vec<Rule>,
    /// What each of the rules comes from, and the branch that it is of.
    pub origins: Vec<(usize, Origin)>,
}

impl Automaton {
    /// The state of a path without segments; 0 where there is nothing to look at.
    #[must_use]
    pub const fn first(&self) -> u32 {
        if self.states.is_empty() { 0 } else { 1 }
    }

    /// This automaton in other places: number `n` of each list becomes the entry `n - 1` of what is given for it.
    ///
    /// # Panics
    /// A list is shorter than the one that it is for.
    #[must_use]
    pub fn placed(&self, states: &[u32], leaves: &[u32], rules: &[u32]) -> Self {
        let at = |places: &[u32], number: u32| match number.checked_sub(1) {
            Some(place) => places[place as usize],
            None => 0,
        };
        let state = |state: u64| u64::from(at(states, state as u32));
        Self {
            states: self
                .states
                .iter()
                .map(|&State { other, leaf }| State { other: at(states, other), leaf: at(leaves, leaf) })
                .collect(),
            edges: self
                .edges
                .iter()
                .map(|&(Edge { state: from, segment }, to)| (Edge { state: state(from), segment }, state(to)))
                .collect(),
            leaves: self
                .leaves
                .iter()
                .map(|leaf| Leaf { rules: leaf.rules.map(|rule| at(rules, rule)), ..*leaf })
                .collect(),
            rules: self.rules.clone(),
            origins: self.origins.clone(),
        }
    }
}

/// The paths need more room than there is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct TooLarge {
    /// Of what there is not enough.
    pub what: &'static str,
    /// How many of it there may be.
    pub room: usize,
    /// The paths that take part in the most states, with how many; the first is the one to change.
    pub paths: Vec<(String, usize)>,
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, room, paths } = self;
        write!(f, "the paths need more than {room} {what}, most of them for ")?;
        for (place, (path, count)) in paths.iter().enumerate() {
            write!(f, "{}{path} ({count} states)", if place == 0 { "" } else { ", " })?;
        }
        f.write_str("; accepted: fewer {id} segments in paths that could be the same request's, or fewer paths")
    }
}

/// The paths of one service.
#[derive(Clone, Copy, Debug)]
pub struct Branch<'s> {
    /// What is said of it.
    pub site: &'s Site,
    /// The number of each exemption, by its place.
    pub bits: &'s [u32],
    /// [`abi::Service::number`].
    pub service: u32,
}

/// One pattern, with what it is for.
struct Path<'p> {
    /// The place of its branch.
    branch: usize,
    pattern: &'p Pattern,
    reach: Reach,
    methods: Methods,
    subject: Subject,
    /// Tags of its literals, by segment; of `{id}` nothing.
    tags: Vec<Option<[u64; 2]>>,
}

#[derive(Clone, Copy)]
enum Subject {
    Route(usize),
    Public(usize),
    /// One bit.
    Exempt(u64),
}

/// What holds for one method.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Held {
    exempt: u64,
    public: Option<u32>,
    route: Option<u32>,
}

/// What holds for each method, of one branch after the other.
type Table = Vec<Held>;

/// What the segments so far have come to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Situation {
    /// The patterns that are not completed yet and still can be.
    open: Vec<u32>,
    /// How many of their segments have come; 0 without any, so that what differs in nothing else is one.
    at: usize,
    /// What of completed patterns reaches beneath them.
    beneath: Table,
    /// What holds for a path that ends here.
    here: Table,
}

impl Situation {
    /// Whether no path that goes on from here has a rule, nor the one that ends here.
    fn is_dead(&self) -> bool {
        self.open.is_empty() && is_empty(&self.here) && is_empty(&self.beneath)
    }
}

/// Whether nothing holds for any method.
fn is_empty(table: &Table) -> bool {
    table.iter().all(|held| *held == Held::default())
}

/// Turns the paths of services into an automaton. Tags of segments are under `secret`.
///
/// # Errors
/// It would not fit into `room`.
pub fn compile(branches: &[Branch<'_>], secret: [u64; 2], room: Room) -> Result<Automaton, TooLarge> {
    let paths = paths(branches, secret);
    let mut construction = Construction {
        branches,
        paths: &paths,
        secret,
        room,
        numbers: HashMap::new(),
        situations: Vec::new(),
        leaves: HashMap::new(),
        rules: HashMap::new(),
        identities: HashSet::new(),
        automaton: Automaton::default(),
    };
    construction.run()?;
    Ok(construction.automaton)
}

fn paths<'p>(branches: &[Branch<'p>], secret: [u64; 2]) -> Vec<Path<'p>> {
    let mut all: Vec<_> = branches.iter().enumerate().flat_map(|(branch, one)| paths_of(branch, one, secret)).collect();
    // Those that are completed together are taken in this order, and the last one holds.
    all.sort_by(|a, b| b.pattern.precedence(a.pattern).then(b.reach.cmp(&a.reach)));
    all
}

fn paths_of<'p>(branch: usize, &Branch { site, bits, .. }: &Branch<'p>, secret: [u64; 2]) -> Vec<Path<'p>> {
    let path = |pattern: &'p Pattern, reach, methods, subject| {
        let tags = pattern.segments().iter().map(|segment| match segment {
            Segment::Literal(bytes) => Some(key::tag(secret, bytes).0),
            Segment::Any(_) => None,
        });
        Path { branch, pattern, reach, methods, subject, tags: tags.collect() }
    };
    let routes = site.routes.iter().enumerate();
    let routes = routes.map(|(place, one)| path(&one.path, Reach::Beneath, one.methods, Subject::Route(place)));
    let public = site.public.iter().enumerate();
    let public = public.map(|(place, one)| path(&one.path, one.reach, one.methods, Subject::Public(place)));
    let exempt = site.exempt.iter().zip(bits);
    let exempt = exempt.map(|(one, &bit)| path(&one.path, one.reach, one.methods, Subject::Exempt(1 << (bit & 63))));
    routes.chain(public).chain(exempt).collect()
}

struct Construction<'c> {
    branches: &'c [Branch<'c>],
    paths: &'c [Path<'c>],
    secret: [u64; 2],
    room: Room,
    /// Number of each situation's state.
    numbers: HashMap<Situation, u32>,
    /// Situations by their state's number − 1.
    situations: Vec<Situation>,
    leaves: HashMap<Vec<Leaf>, u32>,
    rules: HashMap<(usize, Origin, u64), u32>,
    /// [`Rule::identity`] of them, of each branch.
    identities: HashSet<(usize, u32)>,
    automaton: Automaton,
}

impl Construction<'_> {
    fn run(&mut self) -> Result<(), TooLarge> {
        let all = (0..self.paths.len() as u32).collect();
        let nothing = vec![Held::default(); self.branches.len() * Methods::COUNT];
        let first = self.situation(all, 0, &nothing);
        self.state(first)?;
        let mut done = 0;
        while done < self.situations.len() {
            let situation = self.situations[done].clone();
            let leaf = self.leaf(&situation.here)?;
            let (literals, any) = self.ways(&situation);
            let next = self.situation(any.clone(), situation.at + 1, &situation.beneath);
            let other = self.state(next)?;
            for (tag, mut open) in literals {
                open.extend(&any);
                open.sort_unstable();
                let next = self.situation(open, situation.at + 1, &situation.beneath);
                let next = self.state(next)?;
                if next != other {
                    let edge = Edge { state: done as u64 + 1, segment: tag };
                    self.automaton.edges.push((edge, u64::from(next)));
                    self.check("segments", self.automaton.edges.len(), self.room.edges)?;
                }
            }
            self.automaton.states.push(State { other, leaf });
            done += 1;
        }
        Ok(())
    }

    /// The open patterns of a situation by their next segment: a literal's tag, or any.
    fn ways(&self, situation: &Situation) -> (BTreeMap<[u64; 2], Vec<u32>>, Vec<u32>) {
        let mut literals: BTreeMap<[u64; 2], Vec<u32>> = BTreeMap::new();
        let mut any = Vec::new();
        for &number in &situation.open {
            match self.paths[number as usize].tags.get(situation.at) {
                Some(Some(tag)) => literals.entry(*tag).or_default().push(number),
                Some(None) => any.push(number),
                None => {}
            }
        }
        (literals, any)
    }

    /// What it comes to when `open` have come through `at` segments, `beneath` what was completed before.
    fn situation(&self, open: Vec<u32>, at: usize, beneath: &Table) -> Situation {
        let (complete, open): (Vec<u32>, Vec<u32>) =
            open.into_iter().partition(|&number| self.paths[number as usize].tags.len() == at);
        let mut reaching = beneath.clone();
        let mut here = beneath.clone();
        for number in complete {
            let path = &self.paths[number as usize];
            for method in (0..Methods::COUNT).filter(|&method| path.methods.has(method as u32)) {
                let place = path.branch * Methods::COUNT + method;
                hold(&mut here[place], path.subject);
                if path.reach == Reach::Beneath {
                    hold(&mut reaching[place], path.subject);
                }
            }
        }
        // A route behind a public path never holds.
        for held in here.iter_mut().chain(&mut reaching) {
            if held.public.is_some() {
                held.route = None;
            }
        }
        let at = if open.is_empty() { 0 } else { at };
        Situation { open, at, beneath: reaching, here }
    }

    /// The number of a situation's state.
    fn state(&mut self, situation: Situation) -> Result<u32, TooLarge> {
        if situation.is_dead() {
            return Ok(0);
        }
        let next = self.situations.len() + 1;
        match self.numbers.entry(situation) {
            Entry::Occupied(known) => Ok(*known.get()),
            Entry::Vacant(place) => {
                self.situations.push(place.key().clone());
                place.insert(next as u32);
                self.check("states", next, self.room.states)?;
                Ok(next as u32)
            }
        }
    }

    fn leaf(&mut self, table: &Table) -> Result<u32, TooLarge> {
        if is_empty(table) {
            return Ok(0);
        }
        let mut leaves = Vec::with_capacity(self.branches.len());
        for (branch, held) in table.chunks(Methods::COUNT).enumerate() {
            let mut leaf = Leaf { service: self.branches[branch].service, ..Leaf::default() };
            for (rule, held) in leaf.rules.iter_mut().zip(held) {
                *rule = self.rule(branch, held)?;
            }
            leaves.push(leaf);
        }
        let next = self.automaton.leaves.len() + 1;
        if let Some(&known) = self.leaves.get(&leaves) {
            return Ok(known);
        }
        self.automaton.leaves.extend(&leaves);
        self.leaves.insert(leaves, next as u32);
        self.check("leaves", self.automaton.leaves.len(), self.room.leaves)?;
        Ok(next as u32)
    }

    fn rule(&mut self, branch: usize, held: &Held) -> Result<u32, TooLarge> {
        let Held { exempt, public, route } = *held;
        let (origin, per, cost, flags) = match (public, route) {
            (Some(place), _) => (Origin::Public(place as usize), Per::Source, 1, Rule::PUBLIC),
            (None, Some(place)) => {
                let site = self.branches[branch].site;
                let route = &site.routes[place as usize];
                (Origin::Route(place as usize), per(site, &route.charge), route.cost, 0)
            }
            (None, None) if exempt == 0 => return Ok(0),
            (None, None) => (Origin::Exempt, Per::Principal, 1, 0),
        };
        if let Some(&known) = self.rules.get(&(branch, origin, exempt)) {
            return Ok(known);
        }
        let next = self.automaton.rules.len() + 1;
        self.rules.insert((branch, origin, exempt), next as u32);
        let identity = self.identity(branch, origin, exempt);
        self.automaton.rules.push(Rule { exempt, per: per as u32, cost, flags, identity, ..Rule::default() });
        self.automaton.origins.push((branch, origin));
        self.check("rules", next, self.room.rules)?;
        Ok(next as u32)
    }

    /// [`Rule::identity`]: of what the rule is, and of whom it exempts, since one of them has passed uncharged.
    fn identity(&mut self, branch: usize, origin: Origin, exempt: u64) -> u32 {
        let site = self.branches[branch].site;
        let of = match origin {
            Origin::Route(place) => format!("route {}", site.routes[place].identity()),
            Origin::Public(place) => format!("public {}", site.public[place].identity()),
            Origin::Exempt => "exempt".to_owned(),
        };
        // Of thousands two may have the same 32 bits: the second takes others.
        let attempts = (0u32..).map(|attempt| {
            let KeyTag([word, _]) = key::tag(self.secret, format!("{of} {exempt:x} {attempt}").as_bytes());
            word as u32
        });
        let mut fresh = attempts.filter(|identity| *identity != 0 && self.identities.insert((branch, *identity)));
        fresh.next().unwrap_or(0)
    }

    fn check(&self, what: &'static str, count: usize, room: usize) -> Result<(), TooLarge> {
        if count <= room {
            return Ok(());
        }
        const NAMED: usize = 5;
        let mut parts = vec![0; self.paths.len()];
        for situation in &self.situations {
            for &number in &situation.open {
                parts[number as usize] += 1;
            }
        }
        let mut seen = BTreeSet::new();
        let mut paths: Vec<_> =
            self.paths.iter().zip(parts).map(|(path, count)| (path.pattern.to_string(), count)).collect();
        paths.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        paths.retain(|(path, _)| seen.insert(path.clone()));
        paths.truncate(NAMED);
        Err(TooLarge { what, room, paths })
    }
}

fn per(site: &Site, charge: &Option<Charge>) -> Per {
    match charge {
        Some(Charge::Own(quota)) => quota.per,
        Some(Charge::Shared(name)) => site.limits.get(name).map_or(Per::Principal, |quota| quota.per),
        None => Per::Principal,
    }
}

/// Lets a completed pattern hold; those before it were shorter, or have a literal later.
fn hold(held: &mut Held, subject: Subject) {
    match subject {
        Subject::Route(place) => held.route = Some(place as u32),
        Subject::Public(place) => held.public = Some(place as u32),
        Subject::Exempt(bit) => held.exempt |= bit,
    }
}
