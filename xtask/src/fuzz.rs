//! `cargo xtask fuzz`: the fuzzers of tests/fuzz, built with coverage and driven by libFuzzer, or against real servers.
//!
//! Everything that a run leaves behind lies in target/fuzz: inputs that reached something new, logs, and inputs for
//! which a property does not hold.

mod build;
mod job;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use self::{
    build::Fuzzers,
    job::{Job, State},
};
use crate::{
    process::{self, at},
    setup,
    workspace::Workspace,
};

/// The targets, as tests/fuzz names them.
const TARGETS: [&str; 3] = ["http", "segments", "limits"];
/// How often a run says how it stands.
const INTERVAL: Duration = Duration::from_secs(10);

/// Fuzz the library that the kernel runs, beside reference models; with --live, the daemon with real servers.
///
/// Ends with executions per second and how long each target ran clean. When a property does not hold, the input is kept
/// and explained, and the status is not 0.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// http (streams), segments (scripts of packets) or limits; all of them, one after another, if none is named.
    #[arg(value_parser = TARGETS)]
    target: Option<String>,
    /// How long each target runs, in seconds.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    seconds: u64,
    /// Processes at once for each target; they share what they find.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    jobs: u32,
    /// Send mutated streams to real servers behind the real daemon, in network namespaces, as root.
    #[arg(long, conflicts_with_all = ["target", "reproduce", "keep", "jobs"])]
    live: bool,
    /// Try this input of the target again, and explain it.
    #[arg(long, value_name = "FILE", requires = "target", conflicts_with_all = ["keep", "jobs"])]
    reproduce: Option<PathBuf>,
    /// Add to tests/fuzz/corpus what reaches code that nothing there does; as few inputs as do.
    #[arg(long)]
    keep: bool,
}

/// Runs what is asked for.
///
/// # Errors
/// The set-up or the build failed, or a fuzzer could not be run.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let workspace = Workspace::read()?;
    if options.live {
        return live(&workspace, options.seconds);
    }
    if let (Some(target), Some(input)) = (&options.target, &options.reproduce) {
        return reproduce(&workspace, target, input);
    }
    setup::for_fuzz(&workspace)?;
    let fuzzers = Fuzzers::build(&workspace)?;
    let mut clean = true;
    for target in TARGETS {
        if options.target.as_deref().is_none_or(|wanted| wanted == target) {
            let folders = Folders::make(&workspace, target)?;
            clean &= fuzz(&fuzzers, target, &folders, options)?;
            if options.keep {
                process::run(
                    fuzzers
                        .command(target)
                        .args(["-merge=1", "-max_len=4096"])
                        .args([&workspace.root().join("tests/fuzz/corpus").join(target), &folders.found]),
                )?;
            }
        }
    }
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Where a target's run keeps its files.
struct Folders {
    /// The first inputs, written anew for each run.
    seeds: PathBuf,
    /// Inputs that reached something new.
    found: PathBuf,
    logs: PathBuf,
    failures: PathBuf,
}

impl Folders {
    fn make(workspace: &Workspace, target: &str) -> Result<Self> {
        let base = workspace.target().join("fuzz");
        let folder = |name: &str| base.join(name).join(target);
        let folders =
            Self { seeds: folder("seeds"), found: folder("found"), logs: folder("logs"), failures: folder("failures") };
        let _ = fs::remove_dir_all(&folders.seeds);
        for folder in [&folders.seeds, &folders.found, &folders.logs, &folders.failures] {
            fs::create_dir_all(folder).with_context(at("make", folder))?;
        }
        Ok(folders)
    }

    fn dictionary(&self) -> PathBuf {
        self.logs.join("tokens.dict")
    }
}

/// Runs a target; whether all properties held.
fn fuzz(fuzzers: &Fuzzers, target: &str, folders: &Folders, options: &Options) -> Result<bool> {
    process::run(
        fuzzers
            .replay(target)
            .arg(format!("--seeds={}", folders.seeds.display()))
            .arg(format!("--dictionary={}", folders.dictionary().display())),
    )?;
    let begin = Instant::now();
    let mut jobs = Vec::new();
    for number in 0..options.jobs {
        let mut command = fuzzers.command(target);
        command
            .arg(format!("-max_total_time={}", options.seconds))
            .arg(format!("-seed={}", number + 1))
            .arg(format!("-artifact_prefix={}/", folders.failures.display()))
            .arg(format!("-dict={}", folders.dictionary().display()))
            .args(["-max_len=4096", "-timeout=20", "-rss_limit_mb=4096", "-reload=1", "-print_final_stats=1"])
            .args([&folders.found, &folders.seeds]);
        jobs.push(Job::start(command, &folders.logs.join(format!("{number}.log")))?);
    }
    let failed = watch(target, &mut jobs, begin)?;
    let seconds = begin.elapsed().as_secs_f64();
    let executed: u64 = jobs.iter().map(Job::executed).sum();
    let rate = executed as f64 / seconds;
    let run = format!("{target}: {executed} executions in {seconds:.0} s, {rate:.0} a second, by {} jobs", jobs.len());
    let Some(number) = failed else {
        println!("{run}: clean");
        return Ok(true);
    };
    println!("{run}: FAILED");
    let Some(input) = jobs[number].kept_input() else {
        bail!("the fuzzer ended without keeping an input; {} says why", jobs[number].log().display());
    };
    // That it fails is known; what it prints explains why.
    let _ = process::run(fuzzers.replay(target).arg(&input));
    println!("to try it again: cargo xtask fuzz {target} --reproduce {}", input.display());
    Ok(false)
}

/// Waits until all jobs have ended, or one has failed: gives its number, and ends the others.
fn watch(target: &str, jobs: &mut [Job], begin: Instant) -> Result<Option<usize>> {
    let mut told = Instant::now();
    loop {
        let states = jobs.iter_mut().map(Job::state).collect::<Result<Vec<_>>>()?;
        if let Some(failed) = states.iter().position(|state| *state == State::Failed) {
            jobs.iter_mut().for_each(Job::end);
            return Ok(Some(failed));
        }
        if states.iter().all(|state| *state == State::Clean) {
            return Ok(None);
        }
        if told.elapsed() >= INTERVAL {
            told = Instant::now();
            let executed: u64 = jobs.iter().map(Job::executed).sum();
            eprintln!("{target}: {executed} executions in {} s", begin.elapsed().as_secs());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn reproduce(workspace: &Workspace, target: &str, input: &Path) -> Result<ExitCode> {
    process::run(workspace.cargo().args(["build", "--locked", "--package=enforcer-fuzz", "--bin=fuzz-replay"]))?;
    let mut command = std::process::Command::new(workspace.binary("fuzz-replay"));
    let held = command.arg(target).arg(input).status().context("cannot start fuzz-replay")?.success();
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn live(workspace: &Workspace, seconds: u64) -> Result<ExitCode> {
    setup::for_tests(workspace)?;
    process::run(workspace.cargo().args(["build", "--locked", "--package=enforcer-user", "--bin=enforcer"]))?;
    process::run(workspace.cargo().args(["build", "--locked", "--package=enforcer-fuzz", "--bin=fuzz-live"]))?;
    let kept = workspace.target().join("fuzz/failures/live");
    fs::create_dir_all(&kept).with_context(at("make", &kept))?;
    // `env`, since sudo keeps none of ours.
    let mut command = process::as_root("env", "making network namespaces")?;
    command
        .arg(format!("ENFORCER_BIN={}", workspace.binary("enforcer").display()))
        .arg(workspace.binary("fuzz-live"))
        .arg(format!("--seconds={seconds}"))
        .arg(format!("--failures={}", kept.display()));
    process::show(&command);
    let held = command.status().context("cannot start fuzz-live")?.success();
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
