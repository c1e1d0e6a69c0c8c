//! Limits under a rising clock, beside models that remember every instant.
//!
//! An input is text: a line `fixed COUNT WINDOW`, `sliding COUNT WINDOW`, `gcra BURST INTERVAL`, `calendar COUNT WINDOW`,
//! `month COUNT 0` or `year COUNT 0` for each limit (times in ns), with ` penalize` behind it if it is to count what it
//! refuses, which apply together; a line with a number for each
//! request, the ns since the one before it, and another with what it costs if that is not 1; and a line `set SECONDS` where
//! the time of day is set on, or back if that is negative.

use enforcer_ebpf::abi::{LIMITS, Limit, align};
use enforcer_ebpf::limit::{self, Clock, TICK_NS};
use enforcer_tests::bucket::{self, Shared, calendar, fixed, gcra, penalizing, sliding};
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
const SECOND: u64 = 1_000_000_000;
/// The time of day at [`BEGIN`], 2026-01-31T23:59:50Z, and the span that it can be set in: 1970 to 2200.
const UNIX: i64 = 1_769_903_990;
const DATES: std::ops::Range<i64> = 0..7_258_118_400;
/// Requests of an input that are tried.
const MOST: usize = 600;

/// What inputs are made of.
pub const TOKENS: &[&[u8]] = &[
    b"fixed ",
    b"sliding ",
    b"gcra ",
    b"calendar ",
    b"month ",
    b"set -",
    b" penalize",
    b"\n0",
    b"64",
    b"86400",
    b"1000000000",
    b"60000000000",
    b"31536000000000000",
];

/// Something that happens.
enum Step {
    /// So many ns later a request comes, which costs so much.
    Request(u64, u64),
    /// The time of day is set by these seconds.
    Set(i64),
}

/// What an input means; lines that mean nothing are overlooked.
fn read(input: &[u8]) -> (Vec<Limit>, Vec<Step>) {
    let (mut limits, mut steps) = (Vec::new(), Vec::new());
    for line in String::from_utf8_lossy(input).lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            [kind, count, time, ref more @ ..] if limits.len() < LIMITS && matches!(more, [] | ["penalize"]) => {
                let (Ok(count), Ok(time)) = (count.parse::<u32>(), time.parse::<u64>()) else { continue };
                let (count, time) = (count.min(limit::MAX_COUNT), time.clamp(TICK_NS, LONGEST));
                let limit = match kind {
                    "fixed" => fixed(count, time),
                    "sliding" => sliding(count, time),
                    "gcra" => gcra(count.min(1 << 8), time),
                    "calendar" => calendar(count, time.next_multiple_of(SECOND), align::MULTIPLE),
                    "month" => calendar(count, 30 * 86_400 * SECOND, align::MONTH),
                    "year" => calendar(count, 365 * 86_400 * SECOND, align::YEAR),
                    _ => continue,
                };
                limits.push(if more.is_empty() { limit } else { penalizing(limit) });
            }
            _ if steps.len() >= MOST => {}
            ["set", seconds] => steps.extend(seconds.parse().map(Step::Set)),
            [step] => steps.extend(step.parse().map(|step| Step::Request(step, 1))),
            [step, cost] => {
                let (Ok(step), Ok(cost)) = (step.parse(), cost.parse::<u64>()) else { continue };
                steps.push(Step::Request(step, cost.clamp(1, limit::MAX_COST)));
            }
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
    let (mut boot, mut set) = (BEGIN, 0i64);
    for (number, step) in steps.iter().enumerate() {
        let date = |boot: u64, set: i64| (UNIX + ((boot - BEGIN) / SECOND) as i64).saturating_add(set);
        let (step, cost) = match *step {
            Step::Request(step, cost) => (step, cost),
            Step::Set(seconds) => {
                let to = set.saturating_add(seconds);
                set = if DATES.contains(&date(boot, to)) { to } else { set };
                continue;
            }
        };
        let Some(next) = boot.checked_add(step).filter(|next| *next < LAST && DATES.contains(&date(*next, set))) else {
            break;
        };
        boot = next;
        let offset = ((UNIX + set) as u64).wrapping_mul(SECOND).wrapping_sub(BEGIN);
        let now = Clock { boot, offset };
        let fail = |what: String| Err(format!("request {number} at {} ns: {what}", boot - BEGIN));
        let remaining: Vec<u64> =
            limits.iter().zip(&buckets).map(|(limit, bucket)| limit::remaining(&bucket.bucket(), limit, now)).collect();
        // None is looked at behind one that refuses.
        let mut would_pass = Vec::new();
        for ((model, limit), remaining) in models.iter_mut().zip(&limits).zip(&remaining) {
            model.meet(limit, now);
            would_pass.push(model.would_pass(limit, now, cost));
            if *remaining < cost {
                break;
            }
        }
        let charged = bucket::charge_all(&std::array::from_fn(|index| buckets[index].cells()), &policy, now, cost);
        let expected = would_pass.iter().all(|passes| *passes);
        if charged.is_ok() && !expected {
            return fail(format!("it passed, by the models {would_pass:?}"));
        }
        if let Err(index) = charged {
            let Some(index) = Some(index as usize).filter(|index| *index < would_pass.len()) else {
                return fail(format!("limit {index} refused, which is not there or not the first to"));
            };
            if would_pass[index] && !models[index].is_bound(&limits[index]) {
                return fail(format!("limit {index} refused it, by the models {would_pass:?}"));
            }
        }
        if charged.is_ok() != remaining.iter().all(|remaining| *remaining >= cost) {
            return fail(format!("{charged:?}, although {remaining:?} remained"));
        }
        if charged.is_ok() {
            for (model, limit) in models.iter_mut().zip(&limits) {
                model.admit(limit, now, cost);
            }
        } else {
            for ((model, limit), remaining) in models.iter_mut().zip(&limits).zip(remaining) {
                if remaining < cost {
                    model.refuse(limit, now, cost);
                }
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
    mutation::lines(input, random, |random| match random.below(8) {
        0 | 1 => {
            let kind = *random.pick(&["fixed", "sliding", "gcra", "calendar", "month", "year"]);
            let option = *random.pick(&["", "", " penalize"]);
            format!("{kind} {} {}{option}", random.below(12), number(random)).into_bytes()
        }
        2 => {
            let sign = *random.pick(&["", "-"]);
            format!("set {sign}{}", number(random) / 1_000_000).into_bytes()
        }
        3 => format!("{} {}", number(random), random.below(6)).into_bytes(),
        _ => number(random).to_string().into_bytes(),
    })
}
