//! Mutated streams against real servers behind the real daemon; the app's own record of what it executed is the oracle.
//!
//! Whatever bytes come: no request is executed without a registered key, none that was not charged, and a good client
//! between them is served.

mod stage;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use enforcer_fuzz::{Target, seeds};
use enforcer_tests::netns::{Link, Way};
use enforcer_tests::origin::Workers;
use enforcer_tests::random::Random;

use stage::Stage;

/// The servers that take their turns.
const SERVERS: [Workers; 2] = [Workers::Threads(2), Workers::Sync(4)];
/// Streams between two looks at what was executed.
const BATCH: usize = 96;

/// Send mutated streams to real servers behind the enforcer, in network namespaces of their own, as root.
#[derive(Parser)]
struct Options {
    /// How long, in seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Where a stream is kept that got through.
    #[arg(long)]
    failures: PathBuf,
    /// What the mutations begin with; the same number gives the same streams.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    let mut pool: Vec<Vec<u8>> = seeds::load(Target::Http)?.into_iter().map(|(_, seed)| seed).collect();
    let mut random = Random::new(options.seed);
    let each = Duration::from_secs(options.seconds) / SERVERS.len() as u32;
    let mut clean = true;
    for server in SERVERS {
        let link = Link::new(Way::VethNative)?;
        let stage = Stage::new(&link, server)?;
        let begin = Instant::now();
        let mut sent = 0;
        while begin.elapsed() < each && clean {
            let batch: Vec<Vec<u8>> = (0..BATCH).map(|_| next(&mut pool, &mut random)).collect();
            stage.send(&batch, random.number())?;
            sent += batch.len();
            stage.serves_a_good_client()?;
            if let Err(error) = stage.is_safe() {
                println!("FAILED: {error}");
                keep(&stage, &batch, &options.failures)?;
                clean = false;
            }
        }
        let seconds = begin.elapsed().as_secs_f64();
        let state = if clean { "clean" } else { "FAILED" };
        println!(
            "{server:?}: {sent} streams in {seconds:.0} s, {:.0} a second, {} requests executed: {state}",
            sent as f64 / seconds,
            stage.executed()?
        );
    }
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn next(pool: &mut [Vec<u8>], random: &mut Random) -> Vec<u8> {
    let from = random.below(pool.len());
    let stream = Target::Http.mutate(&pool[from], 8192, random);
    if random.once_in(8) {
        pool[from].clone_from(&stream);
    }
    stream
}

/// Sends the streams of a batch again, one by one, and keeps those that get something through; all of them, if none
/// does it alone.
fn keep(stage: &Stage<'_>, batch: &[Vec<u8>], folder: &Path) -> Result<()> {
    let write = |number: usize| -> Result<()> {
        let path = folder.join(format!("stream-{}-{number}", std::process::id()));
        std::fs::write(&path, &batch[number]).with_context(|| format!("writing {}", path.display()))?;
        println!("kept {}\n{}", path.display(), Target::Http.explain(&batch[number]));
        Ok(())
    };
    let mut found = false;
    for (number, stream) in batch.iter().enumerate() {
        let before = stage.excess()?;
        stage.send(std::slice::from_ref(stream), 0)?;
        if stage.excess()? > before {
            write(number)?;
            found = true;
        }
    }
    if !found {
        (0..batch.len()).try_for_each(write)?;
    }
    Ok(())
}
