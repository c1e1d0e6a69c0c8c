//! The loaded programs, with tables in which one principal may send and another may not.

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{Array, HashMap, MapData, PerCpuArray},
    programs::{TestRun as _, TestRunOptions, Xdp},
};
use enforcer_ebpf::{
    abi::{self, Algorithm, Key, LIMITS, Limit, Policy, Principal, Service, global, map},
    key,
    limit::{MAX_COUNT, TICK_NS},
};

use enforcer_tests::kernel;

use crate::case::{Case, KEY, PORT, SPENT_KEY, Way};

/// Drops, and does nothing else.
const BARE: &str = "bench_drop";

const SECRET: [u64; 2] = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
const DAY: u64 = 24 * 3600 * 1_000_000_000 / TICK_NS;

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
        for name in [Way::Decision.program(), Way::First.program(), Way::Later.program(), BARE] {
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
        let limit = Limit { algorithm: Algorithm::Sliding as u32, count, window: DAY, ..Limit::default() };
        let mut limits = [Limit::default(); LIMITS];
        limits[0] = limit;
        self.array::<Policy>(map::POLICIES)?.set(index, Policy { limits, len: 1, ..Policy::UNLIMITED }, 0)?;
        self.array::<u64>(map::PRINCIPALS)?.set(index, Principal { policy: index, trial: 0 }.to_word(), 0)?;
        let key = Key { principal: index, flags: 0, not_before: 0, expires: u64::MAX, policy: 0, reserved: 0 };
        let keys = self.object.map_mut(map::KEYS).context("the object has no map KEYS")?;
        let mut keys: HashMap<&mut MapData, abi::KeyTag, Key> = keys.try_into()?;
        keys.insert(key::tag(SECRET, value.as_bytes()), key, 0)?;
        Ok(())
    }

    /// Runs a case twice, and makes sure that the second time is judged as the case says.
    ///
    /// # Errors
    /// It is judged otherwise.
    pub(crate) fn check(&mut self, case: &Case) -> Result<()> {
        // The first request of a principal opens its window, and uses up a limit of one.
        self.run(case.way.program(), case, 1)?;
        let before = self.total(case)?;
        self.run(case.way.program(), case, 1)?;
        let counted = self.total(case)? - before;
        ensure!(
            counted == 1,
            "a head of {} bytes was not counted as {}: this program and the object are of different versions",
            case.head,
            case.outcome
        );
        Ok(())
    }

    fn total(&self, case: &Case) -> Result<u64> {
        let totals = self.object.map(map::TOTALS).context("the object has no map TOTALS")?;
        let totals: PerCpuArray<&MapData, u64> = totals.try_into()?;
        Ok(totals.get(&case.count.index(), 0)?.iter().sum())
    }

    /// The mean of `repeat` judgements in ns.
    ///
    /// # Errors
    /// The kernel does not run the program.
    pub(crate) fn time(&self, case: &Case, repeat: u32) -> Result<u64> {
        self.run(case.way.program(), case, repeat)
    }

    /// The mean of `repeat` runs of the bare program in ns.
    ///
    /// # Errors
    /// The kernel does not run the program.
    pub(crate) fn time_bare(&self, case: &Case, repeat: u32) -> Result<u64> {
        self.run(BARE, case, repeat)
    }

    fn run(&self, name: &str, case: &Case, repeat: u32) -> Result<u64> {
        let program = self.object.program(name).with_context(|| format!("the object has no program {name}"))?;
        let program: &Xdp = program.try_into()?;
        let options = TestRunOptions { data_in: Some(&case.frame), repeat, ..TestRunOptions::default() };
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
