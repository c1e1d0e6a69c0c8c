//! Limits under a rising clock, beside models that remember every instant.
//!
//! An input is text: a line `fixed COUNT WINDOW`, `sliding COUNT WINDOW` or `gcra BURST INTERVAL` for each limit (times
//! in ns), which apply together, and a line with a number for each request: the ns since the one before it.

use enforcer_ebpf::abi::{LIMITS, Limit};
use enforcer_ebpf::limit::{self, TICK_NS};
use enforcer_tests::bucket::{self, Shared, fixed, gcra, sliding};
use enforcer_tests::limiter_model::Model;
use enforcer_tests::random::Random;
use enforcer_tests::tables;

use crate::{Check, mutation};

/// Where the clock begins; 0 is what marks an unused bucket.
const BEGIN: u64 = 1 << 40;
/// Where it ends: a machine would have been up for 70 years.
const LAST: u64 = 70 * 365 * 86_400 * 1_000_000_000;
/// A year and a day, the longest window that the grammar of limits has, in ns.
const LONGEST: u64 = 366 * 86_400 * 1_000_000_000;
/// Requests of an input that are tried.
const MOST: usize = 600;

/// What inputs are made of.
pub const TOKENS: &[&[u8]] =
    &[b"fixed ", b"sliding ", b"gcra ", b"\n0", b"64", b"1000000000", b"60000000000", b"31536000000000000"];

/// What an input means; lines that mean nothing are overlooked.
fn read(input: &[u8]) -> (Vec<Limit>, Vec<u64>) {
    let (mut limits, mut steps) = (Vec::new(), Vec::new());
    for line in String::from_utf8_lossy(input).lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            [kind, count, time] if limits.len() < LIMITS => {
                let (Ok(count), Ok(time)) = (count.parse::<u32>(), time.parse::<u64>()) else { continue };
                let (count, time) = (count.min(limit::MAX_COUNT), time.clamp(TICK_NS, LONGEST));
                limits.push(match kind {
                    "fixed" => fixed(count, time),
                    "sliding" => sliding(count, time),
                    "gcra" => gcra(count.min(1 << 8), time),
                    _ => continue,
                });
            }
            [step] if steps.len() < MOST => steps.extend(step.parse::<u64>()),
            _ => {}
        }
    }
    (limits, steps)
}

/// Charges as the input says, and holds every answer against the models.
///
/// # Errors
/// The request whose answer differs.
pub fn check(input: &[u8]) -> Check {
    let (limits, steps) = read(input);
    let policy = tables::policy(&limits);
    let buckets: [Shared; LIMITS] = Default::default();
    let mut models: Vec<Model> = limits.iter().map(|limit| Model::of(limit, BEGIN)).collect();
    let mut now = BEGIN;
    for (number, step) in steps.iter().enumerate() {
        let Some(next) = now.checked_add(*step).filter(|next| *next < LAST) else { break };
        now = next;
        let fail = |what: String| Err(format!("request {number} at {} ns: {what}", now - BEGIN));
        let would_pass: Vec<bool> =
            models.iter().zip(&limits).map(|(model, limit)| model.would_pass(limit, now)).collect();
        let remaining: Vec<u64> =
            limits.iter().zip(&buckets).map(|(limit, bucket)| limit::remaining(&bucket.bucket(), limit, now)).collect();
        let charged = bucket::charge_all(&std::array::from_fn(|index| buckets[index].cells()), &policy, now, 1);
        let expected = would_pass.iter().all(|passes| *passes);
        if charged.is_ok() && !expected {
            return fail(format!("it passed, by the models {would_pass:?}"));
        }
        if let Err(index) = charged {
            let Some(index) = Some(index as usize).filter(|index| *index < limits.len()) else {
                return fail(format!("limit {index} refused, which there is not"));
            };
            if would_pass[index] && !models[index].is_bound(&limits[index]) {
                return fail(format!("limit {index} refused it, by the models {would_pass:?}"));
            }
        }
        if charged.is_ok() != remaining.iter().all(|remaining| *remaining > 0) {
            return fail(format!("{charged:?}, although {remaining:?} remained"));
        }
        if charged.is_ok() {
            for (model, limit) in models.iter_mut().zip(&limits) {
                model.admit(limit, now);
            }
        }
    }
    Ok(())
}

/// Changes some lines.
#[must_use]
pub fn mutate(input: &[u8], random: &mut Random) -> Vec<u8> {
    let number = |random: &mut Random| {
        let magnitude = *random.pick(&[1u64, 64, 1_000, 1_000_000, 1_000_000_000, 60_000_000_000, 86_400_000_000_000]);
        magnitude.saturating_mul(random.number() % 20)
    };
    mutation::lines(input, random, |random| {
        if random.once_in(4) {
            let kind = *random.pick(&["fixed", "sliding", "gcra"]);
            format!("{kind} {} {}", random.below(12), number(random)).into_bytes()
        } else {
            number(random).to_string().into_bytes()
        }
    })
}
