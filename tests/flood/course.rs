//! A flood's course: the well-behaved client beside it, and what both cost the server.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    cpu::{self, Usage},
    flooder::{self, BEGINNING, Counts, Tally},
    good::{self, Service},
    kind::{Flood, Reuse},
    peer::{Peer, Running},
    stage::{GOOD, Stage},
};

/// Between the flood's begin and that of the measurement.
const WARM_UP: Duration = Duration::from_millis(300);
/// For so long the server must have been idle before the next flood …
const LULL: Duration = Duration::from_millis(100);
/// … and so long it may take until it is.
const SETTLING: Duration = Duration::from_secs(5);
/// Between two looks whether all connections flood.
const LOOK: Duration = Duration::from_millis(10);

/// What was measured.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    /// What the flood alone, or without one nothing, cost the server.
    pub(crate) alone: Cost,
    /// How the well-behaved client fared beside the flood.
    pub(crate) service: Service,
    /// How the flood's requests ended, in all.
    pub(crate) endings: Counts,
}

/// What some time cost the server.
#[derive(Clone, Debug)]
pub(crate) struct Cost {
    /// How long it was.
    pub(crate) time: Duration,
    /// How long the server's processes ran meanwhile.
    pub(crate) processes: Duration,
    /// How long the thread that receives for them ran.
    pub(crate) receiving: Duration,
    /// How the flood's requests ended meanwhile.
    pub(crate) endings: Counts,
}

/// Measures a flood, or, with `None`, the client alone. A third of `time` the flood is alone.
///
/// # Errors
/// A client or a part of the server failed.
pub(crate) fn run(
    stage: &Stage,
    peer: &Peer,
    running: &mut Running<'_>,
    flood: Option<&Flood>,
    time: Duration,
) -> Result<Measured> {
    settle(stage, running)?;
    running.forget()?;
    let (tally, ending) = (Tally::default(), AtomicBool::new(false));
    thread::scope(|scope| {
        let flooding =
            flood.map(|flood| scope.spawn(|| in_namespace(stage, || send(stage, peer, flood, &tally, &ending))));
        if let Some(flood) = flood {
            await_begin(flood, &tally);
        }
        let measured = measure(stage, running, &tally, time);
        ending.store(true, Ordering::Relaxed);
        if let Some(flooding) = flooding {
            let Ok(flooded) = flooding.join() else { bail!("the flooder panicked") };
            flooded.context("flooding")?;
        }
        measured
    })
}

fn measure(stage: &Stage, running: &mut Running<'_>, tally: &Tally, time: Duration) -> Result<Measured> {
    thread::sleep(WARM_UP);
    let alone = cost(stage, running, tally, time / 3)?;
    let service = in_namespace(stage, || {
        cpu::bind(0, cpu::CLIENTS)?;
        cpu::prefer(0)?;
        good::ask(stage.address()?, GOOD, time - time / 3)
    })
    .context("asking beside the flood")?;
    Ok(Measured { alone, service, endings: tally.read() })
}

/// What `time` from now costs.
fn cost(stage: &Stage, running: &mut Running<'_>, tally: &Tally, time: Duration) -> Result<Cost> {
    let (processes, receivers) = (running.processes()?, stage.receivers()?);
    let usage = || [&processes, &receivers].map(|ids| Usage::of(ids.iter().copied()));
    let (begin, before, earlier) = (Instant::now(), usage(), tally.read());
    thread::sleep(time);
    let (now, endings) = (usage(), tally.read());
    let [processes, receiving] = [0, 1].map(|place| now[place].since(&before[place]));
    let endings = std::array::from_fn(|ending| endings[ending] - earlier[ending]);
    Ok(Cost { time: begin.elapsed(), processes, receiving, endings })
}

fn send(stage: &Stage, peer: &Peer, flood: &Flood, tally: &Tally, ending: &AtomicBool) -> Result<()> {
    cpu::bind(0, cpu::CLIENTS)?;
    flooder::flood(stage.address()?, flood, peer.patience, tally, ending)
}

/// Waits until all connections that are to be kept have had their first request served, or for as long as that may take.
fn await_begin(flood: &Flood, tally: &Tally) {
    let begin = Instant::now();
    while flood.reuse == Reuse::Kept && tally.begun() < flood.connections.into() && begin.elapsed() < BEGINNING {
        thread::sleep(LOOK);
    }
}

fn in_namespace<T: Send>(stage: &Stage, body: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    stage.link.client().run(body)
}

/// Clears what the last flood has left, until the server has nothing to do, or for as long as that may take.
fn settle(stage: &Stage, running: &mut Running<'_>) -> Result<()> {
    let begin = Instant::now();
    loop {
        stage.clear()?;
        let processes = [running.processes()?, stage.receivers()?].concat();
        let before = Usage::of(processes.iter().copied());
        thread::sleep(LULL);
        if Usage::of(processes).since(&before) < LULL / 10 || begin.elapsed() > SETTLING {
            // What was under way at the first time is there now.
            return stage.clear();
        }
    }
}
