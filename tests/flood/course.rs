//! A flood's course: the well-behaved client beside it, and what both cost the server.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    cpu::{self, Usage},
    flooder::{self, Counts, Tally},
    good::{self, Service},
    kind::Flood,
    peer::Running,
    stage::{GOOD, Stage},
};

/// Between the flood's begin and that of the measurement.
const WARM_UP: Duration = Duration::from_millis(300);
/// For so long the server must have been idle before the next flood …
const LULL: Duration = Duration::from_millis(100);
/// … and so long it may take until it is.
const SETTLING: Duration = Duration::from_secs(5);

/// What was measured.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    /// How long.
    pub(crate) time: Duration,
    /// How long the server's processes and its receiving thread ran meanwhile.
    pub(crate) cpu: Duration,
    /// How the well-behaved client fared.
    pub(crate) service: Service,
    /// How the flood's requests ended meanwhile.
    pub(crate) endings: Counts,
}

/// Measures a flood, or, with `None`, the client alone.
///
/// # Errors
/// A client or a part of the server failed.
pub(crate) fn run(stage: &Stage, running: &mut Running<'_>, flood: Option<&Flood>, time: Duration) -> Result<Measured> {
    settle(stage, running)?;
    let (tally, ending) = (Tally::default(), AtomicBool::new(false));
    thread::scope(|scope| {
        let flooding = flood.map(|flood| scope.spawn(|| in_namespace(stage, || send(stage, flood, &tally, &ending))));
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
    let processes = [running.processes()?, stage.receivers()?].concat();
    let begin = (Instant::now(), Usage::of(processes.iter().copied()), tally.read());
    let service = in_namespace(stage, || {
        cpu::bind(0, cpu::CLIENTS)?;
        cpu::prefer(0)?;
        good::ask(stage.address()?, GOOD, time)
    })
    .context("asking beside the flood")?;
    let now = Usage::of(processes);
    let endings = tally.read();
    Ok(Measured {
        time: begin.0.elapsed(),
        cpu: now.since(&begin.1),
        service,
        endings: std::array::from_fn(|ending| endings[ending] - begin.2[ending]),
    })
}

fn send(stage: &Stage, flood: &Flood, tally: &Tally, ending: &AtomicBool) -> Result<()> {
    cpu::bind(0, cpu::CLIENTS)?;
    flooder::flood(stage.address()?, flood, tally, ending)
}

fn in_namespace<T: Send>(stage: &Stage, body: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    stage.link.client().run(body)
}

/// Waits until the server has nothing left to do of the last flood, or for as long as that may take.
fn settle(stage: &Stage, running: &mut Running<'_>) -> Result<()> {
    let begin = Instant::now();
    loop {
        let processes = [running.processes()?, stage.receivers()?].concat();
        let before = Usage::of(processes.iter().copied());
        thread::sleep(LULL);
        if Usage::of(processes).since(&before) < LULL / 10 || begin.elapsed() > SETTLING {
            return Ok(());
        }
    }
}
