//! A short run of the fuzzers, the same every time: the kept corpus, and mutations of it from a fixed seed.

use anyhow::{Context as _, Result, ensure};
use enforcer_fuzz::{Target, seeds};
use enforcer_tests::random::Random;

/// Tries every seed, then `times` inputs that come of them by mutation.
fn run(target: Target, times: usize) -> Result<()> {
    let seeds = seeds::load(target)?;
    ensure!(seeds.len() >= 5, "only {} seeds were found", seeds.len());
    for (name, seed) in &seeds {
        try_one(target, seed).with_context(|| format!("the seed {name}"))?;
    }
    let mut random = Random::new(1);
    // A pool that grows: mutations of mutations go further than those of seeds alone.
    let mut pool: Vec<Vec<u8>> = seeds.into_iter().map(|(_, seed)| seed).collect();
    for _ in 0..times {
        let from = random.pick(&pool).clone();
        let input = target.mutate(&from, 4096, &mut random);
        try_one(target, &input)?;
        if random.once_in(4) {
            let place = random.below(pool.len() * 2);
            if place < pool.len() { pool[place] = input } else { pool.push(input) }
        }
    }
    Ok(())
}

fn try_one(target: Target, input: &[u8]) -> Result<()> {
    if let Err(error) = target.check(input) {
        anyhow::bail!("{error}\n{}\nthe input: {}", target.explain(input), input.escape_ascii());
    }
    Ok(())
}

#[test]
fn streams_are_read_as_by_the_reference_however_they_are_cut() -> Result<()> {
    run(Target::Http, 3000)
}

#[test]
fn receivers_accept_only_what_was_judged_and_honest_clients_are_served() -> Result<()> {
    run(Target::Segments, 6000)
}

#[test]
fn limits_are_their_models() -> Result<()> {
    run(Target::Limits, 3000)
}
