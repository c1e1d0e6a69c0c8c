//! Fixed windows beside those of the Python library `limits`, which Flask-Limiter counts with: the real one, on the same
//! times. No rights needed, but the tests' virtual environment.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use enforcer_ebpf::limit::{Clock, Outcome};
use enforcer_tests::bucket::{self, Shared, fixed};
use enforcer_tests::origin::venv;
use enforcer_tests::random::Random;
use serde::{Deserialize, Serialize};

const SECOND: u64 = 1_000_000_000;
/// Where its clock begins, in Unix time: any instant will do.
const UNIX: u64 = 1_767_225_600;
/// A machine would have been up for 60 years.
const LAST: u64 = 60 * 365 * 86_400 * 8;

/// The library's units, in seconds. Its year has twelve months of 30 days.
const UNITS: [(&str, u64); 6] =
    [("second", 1), ("minute", 60), ("hour", 3_600), ("day", 86_400), ("month", 30 * 86_400), ("year", 360 * 86_400)];

/// Requests to one limit.
#[derive(Debug, Serialize)]
struct Case {
    limit: String,
    ask: bool,
    /// Eighths of a second of Unix time, and a cost.
    requests: Vec<(u64, u64)>,
    #[serde(skip)]
    count: u32,
    #[serde(skip)]
    seconds: u64,
}

/// What the library says of a case.
#[derive(Debug, Deserialize)]
struct Verdicts {
    seconds: u64,
    passed: Vec<bool>,
}

/// Asks the library.
fn library(cases: &[Case]) -> Result<Vec<Verdicts>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("parity/fixed_window.py");
    let input = cases.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?.join("\n");
    let mut child = Command::new(venv("python")?).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("it has no input")?;
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "it ended with {}", output.status);
    writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    let text = String::from_utf8(output.stdout)?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| format!("it said {line:?}"))).collect()
}

/// What we say of a case.
fn ours(case: &Case) -> Vec<bool> {
    let (bucket, limit) = (Shared::default(), fixed(case.count, case.seconds * SECOND));
    let passes = |&(eighths, cost): &(u64, u64)| {
        // One tick of both clocks: an eighth of a second is a whole number of ours.
        let boot = (1 << 40) + (eighths - UNIX * 8) * (SECOND / 8);
        matches!(bucket::charge(&bucket.cells(), &limit, Clock::of_boot(boot), cost), Outcome::Charged(_))
    };
    case.requests.iter().map(passes).collect()
}

/// A limit of this unit, and requests: many at once, many at the very ends of windows, some much later.
fn case(random: &mut Random, (unit, seconds): (&str, u64), ask: bool) -> Case {
    let (count, every) = (random.below(12) as u32, 1 + random.below(3) as u64);
    let window = every * seconds * 8;
    let mut time = 0;
    let mut requests = Vec::new();
    for _ in 0..300 {
        time += match random.below(8) {
            0..=2 => 0,
            3 | 4 => random.number() % (window / 8 + 2),
            5 => [window - 1, window, window + 1][random.below(3)],
            // On the end of the window that the first request opened, if no other has.
            6 => window - time % window,
            _ => random.number() % (3 * window),
        };
        if time >= LAST {
            break;
        }
        let cost = if ask { 1 + random.below(4) as u64 } else { 1 };
        requests.push((UNIX * 8 + time, cost));
    }
    Case { limit: format!("{count} per {every} {unit}"), ask, requests, count, seconds: every * seconds }
}

#[test]
fn fixed_windows_are_those_of_the_library_at_every_step() -> Result<()> {
    let mut random = Random::new(1);
    let mut cases = Vec::new();
    for unit in UNITS {
        for number in 0..60 {
            cases.push(case(&mut random, unit, number % 2 == 1));
        }
    }
    let (mut passed, mut refused) = (0, 0);
    for (case, theirs) in cases.iter().zip(library(&cases)?) {
        ensure!(theirs.seconds == case.seconds, "{}: its window has {} s", case.limit, theirs.seconds);
        ensure!(theirs.passed.len() == case.requests.len(), "{}: not all were answered", case.limit);
        for ((request, theirs), ours) in case.requests.iter().zip(&theirs.passed).zip(ours(case)) {
            ensure!(*theirs == ours, "{case:?}: at {request:?} it says {theirs}, we {ours}");
            *(if ours { &mut passed } else { &mut refused }) += 1;
        }
    }
    ensure!(passed > 10_000 && refused > 10_000, "{passed} passed and {refused} were refused: these tell little");
    Ok(())
}

#[test]
fn what_is_refused_costs_nothing_with_us_and_something_with_the_librarys_hit() -> Result<()> {
    let now = UNIX * 8;
    let case = |ask| {
        let requests = vec![(now, 8), (now, 5), (now, 1), (now, 1), (now, 1)];
        Case { limit: "10 per minute".into(), ask, requests, count: 10, seconds: 60 }
    };
    let cases = [case(false), case(true)];
    let verdicts: Vec<_> = library(&cases)?.into_iter().map(|verdicts| verdicts.passed).collect();
    assert_eq!(verdicts, [[true, false, false, false, false], [true, false, true, true, false]]);
    assert_eq!(ours(&cases[0]), verdicts[1]);
    Ok(())
}
