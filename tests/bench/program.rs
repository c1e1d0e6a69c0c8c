//! The loaded programs, with tables in which one principal may send and another may not.

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{Array, HashMap, MapData, PerCpuArray},
    programs::{TestRun as _, TestRunOptions, Xdp},
};
use enforcer_ebpf::{
    abi::{
        self, Edge, Key, LIMITS, Leaf, METHODS, Meter, Per, Policy, Principal, Rule, Ruleset, Service, State, Turn,
        global, map, scope,
    },
    key,
    limit::MAX_COUNT,
    shortcut::{self, Shortcuts},
    verdict::Count,
};

use enforcer_tests::{bucket::sliding, kernel, tables};

use crate::{
    case::{Case, KEY, PORT, SPENT_KEY, Way},
    scale,
};

/// Drops, and does nothing else.
const BARE: &str = "bench_drop";

const SECRET: [u64; 2] = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
const HOUR: u64 = 3600 * 1_000_000_000;
const DAY: u64 = 24 * HOUR;
/// Windows of the limits of many; they have as many as are asked for.
const WINDOWS: [u64; LIMITS] = [HOUR, DAY, 7 * DAY, 30 * DAY];
/// Policy slots of what is measured by [`scale`], and the first of its principals.
const MANY: u32 = 3;
const OF_ROUTE: u32 = 4;
const FIRST: u32 = 16;
/// Routes, of which [`case`](crate::case) requests the first.
const ROUTES: u32 = 100;
/// The slot of its rules.
const ROUTED: u32 = 1;

/// The programs.
pub(crate) struct Judge {
    object: Ebpf,
}

impl Judge {
    /// Loads `object` and fills its tables.
    ///
    /// # Errors
    /// The kernel refuses it, or it is not the one that this was built with.
    pub(crate) fn load(object: &[u8]) -> Result<Self> {
        let mut object = EbpfLoader::new()
            .override_global(global::KEY_SECRET, &SECRET, true)
            .override_global(global::FLOW_SECRET, &SECRET, true)
            .override_global(global::SOCKET_OFFSETS, &kernel::socket_offsets()?, true)
            .verifier_log_level(VerifierLogLevel::STATS)
            .load(object)
            .context("cannot create the maps")?;
        let ways = [Way::Decision, Way::First, Way::Later].map(Way::program);
        for name in ways.into_iter().chain(scale::PROGRAMS).chain([BARE]) {
            program_mut(&mut object, name)?.load().with_context(|| format!("cannot load {name}"))?;
        }
        let mut judge = Self { object };
        judge.guard().context("cannot fill the tables")?;
        judge.register(1, KEY, MAX_COUNT).context("cannot register a key")?;
        judge.register(2, SPENT_KEY, 1).context("cannot register a key")?;
        Ok(judge)
    }

    fn guard(&mut self) -> Result<()> {
        self.array::<u32>(map::PORTS)?.set(PORT.into(), 1, 0)?;
        self.array::<Service>(map::SERVICES)?.set(0, Service::DEFAULT, 0)?;
        Ok(())
    }

    /// A principal with one key and a sliding limit of `count` a day.
    fn register(&mut self, index: u32, value: &str, count: u32) -> Result<()> {
        self.array::<Policy>(map::POLICIES)?.set(index, tables::policy(&[sliding(count, DAY)]), 0)?;
        self.principal(index, value, index)
    }

    /// A principal with one key, under the policy in a slot.
    fn principal(&mut self, index: u32, value: &str, policy: u32) -> Result<()> {
        let principal = Principal { policy, trial: 0 }.to_word();
        self.array::<Meter>(map::METERS)?.set(
            index,
            Meter { principal, key: key::tag(SECRET, value.as_bytes()).0[1], ..Meter::default() },
            0,
        )?;
        let key = Key { principal: index, flags: 0, not_before: 0, expires: u64::MAX, policy: 0, reserved: 0 };
        let keys = self.object.map_mut(map::KEYS).context("the object has no map KEYS")?;
        let mut keys: HashMap<&mut MapData, abi::KeyTag, Key> = keys.try_into()?;
        let tag = key::tag(SECRET, value.as_bytes());
        keys.insert(tag, key, 0)?;
        let mut shortcuts = self.array::<Shortcuts>(map::SHORTCUTS)?;
        let mut set = shortcuts.get(&shortcut::set(tag), 0)?;
        if let Some(free) = set.iter_mut().find(|word| **word == 0) {
            *free = shortcut::word(tag, index);
            shortcuts.set(shortcut::set(tag), set, 0)?;
        }
        Ok(())
    }

    /// Principals of one plan, with a key each, and a hundred routes, each with a limit of its own for each principal.
    pub(crate) fn register_many(&mut self, keys: u32) -> Result<()> {
        for number in 0..keys {
            self.principal(FIRST + number, &scale::key(number), MANY)?;
        }
        self.array::<Policy>(map::POLICIES)?.set(OF_ROUTE, tables::policy(&[sliding(MAX_COUNT, HOUR)]), 0)?;
        let first = State { other: 0, leaf: 0 };
        self.array::<State>(map::STATES)?.set(1, first, 0)?;
        for route in 1..=ROUTES {
            let segment = if route == 1 { "api".to_owned() } else { format!("api{route}") };
            let abi::KeyTag(segment) = key::tag(SECRET, segment.as_bytes());
            let routes = self.object.map_mut(map::ROUTES).context("the object has no map ROUTES")?;
            let mut routes: HashMap<&mut MapData, Edge, u64> = routes.try_into()?;
            routes.insert(Edge { state: 1, segment }, u64::from(1 + route), 0)?;
            let scope = scope::ROUTES as u32 + route;
            let rule = Rule { scope, policy: OF_ROUTE, per: Per::Principal as u32, cost: 1, ..Rule::default() };
            self.array::<Rule>(map::RULES)?.set(route, rule, 0)?;
            self.array::<Leaf>(map::LEAVES)?.set(route, Leaf { rules: [route; METHODS], ..Leaf::default() }, 0)?;
            // All beneath it is the same route.
            self.array::<State>(map::STATES)?.set(1 + route, State { other: 1 + route, leaf: route }, 0)?;
        }
        self.array::<Ruleset>(map::RULESETS)?.set(ROUTED, Ruleset { routes: 1, ..Ruleset::default() }, 0)?;
        Ok(())
    }

    /// Gives each of the many so many limits, of [`LIMITS`] at most, and puts the service under the routes, or under none.
    pub(crate) fn resize(&mut self, limits: usize, routes: bool) -> Result<()> {
        let limits: Vec<_> = WINDOWS.iter().take(limits).map(|&window| sliding(MAX_COUNT, window)).collect();
        self.array::<Policy>(map::POLICIES)?.set(MANY, tables::policy(&limits), 0)?;
        let service = Service { rules: if routes { ROUTED } else { 0 }, ..Service::DEFAULT };
        self.array::<Service>(map::SERVICES)?.set(0, service, 0)?;
        Ok(())
    }

    /// Says whose turn it is.
    pub(crate) fn set_turn(&mut self, turn: Turn) -> Result<()> {
        Ok(self.array::<Turn>(map::TURN)?.set(0, turn, 0)?)
    }

    /// Runs a case twice, and makes sure that the second time is judged as the case says.
    ///
    /// # Errors
    /// It is judged otherwise.
    pub(crate) fn check(&mut self, case: &Case) -> Result<()> {
        // The first request of a principal opens its window, and uses up a limit of one.
        self.run(case.way.program(), &case.frame, 1)?;
        let before = self.total(case.count)?;
        self.run(case.way.program(), &case.frame, 1)?;
        let counted = self.total(case.count)? - before;
        ensure!(
            counted == 1,
            "a head of {} bytes was not counted as {}: this program and the object are of different versions",
            case.head,
            case.outcome
        );
        Ok(())
    }

    /// How often this was counted.
    ///
    /// # Errors
    /// The map cannot be read.
    pub(crate) fn total(&self, count: Count) -> Result<u64> {
        let totals = self.object.map(map::TOTALS).context("the object has no map TOTALS")?;
        let totals: PerCpuArray<&MapData, u64> = totals.try_into()?;
        Ok(totals.get(&count.index(), 0)?.iter().sum())
    }

    /// The mean of `repeat` judgements in ns.
    ///
    /// # Errors
    /// The kernel does not run the program.
    pub(crate) fn time(&self, case: &Case, repeat: u32) -> Result<u64> {
        self.run(case.way.program(), &case.frame, repeat)
    }

    /// The mean of `repeat` runs of the bare program in ns.
    ///
    /// # Errors
    /// The kernel does not run the program.
    pub(crate) fn time_bare(&self, case: &Case, repeat: u32) -> Result<u64> {
        self.run(BARE, &case.frame, repeat)
    }

    /// The mean of `repeat` runs of a program on a frame in ns.
    ///
    /// # Errors
    /// The kernel does not run it.
    pub(crate) fn run(&self, name: &str, frame: &[u8], repeat: u32) -> Result<u64> {
        let program = self.object.program(name).with_context(|| format!("the object has no program {name}"))?;
        let program: &Xdp = program.try_into()?;
        let options = TestRunOptions { data_in: Some(frame), repeat, ..TestRunOptions::default() };
        let result = program.test_run(options).with_context(|| format!("cannot run {name}"))?;
        u64::try_from(result.duration.as_nanos()).context("a run took centuries")
    }

    fn array<V: aya::Pod>(&mut self, name: &'static str) -> Result<Array<&mut MapData, V>> {
        let map = self.object.map_mut(name).with_context(|| format!("the object has no map {name}"))?;
        Ok(map.try_into()?)
    }
}

fn program_mut<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = object.program_mut(name).with_context(|| format!("the object has no program {name}"))?;
    Ok(program.try_into()?)
}
