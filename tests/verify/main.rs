//! What the kernel's verifier says of each program of the object: how much it walked, and how deep the stack is.
//! Run by `cargo xtask check`, as root. Nothing is attached or pinned; the maps go when this ends.

mod log;

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Btf, Ebpf, EbpfLoader, VerifierLogLevel,
    programs::{Program, ProgramError, ProgramInfo},
};
use clap::Parser;
use enforcer_ebpf::abi::{EndsOffsets, SocketOffsets, global};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::log::Statistics;

/// Load every program of a BPF object, and print what the verifier says.
#[derive(Parser)]
struct Options {
    /// The object.
    object: PathBuf,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(Options { object }: &Options) -> Result<()> {
    let bytes = fs::read(object).with_context(|| format!("cannot read {}", object.display()))?;
    let mut names: Vec<String> = open(&bytes)?.programs().map(|(name, _)| name.to_owned()).collect();
    names.sort_unstable();
    ensure!(!names.is_empty(), "{} holds no program", object.display());
    println!(
        "{:<16} {:>12} {:>8} {:>10} {:>12}  stack in bytes, by function",
        "program", "instructions", "verified", "native", "peak states"
    );
    let kernel = Btf::from_sys_fs().context("the kernel has no type information")?;
    let mut refused = Vec::new();
    for name in names {
        match line(&bytes, &name, &kernel) {
            Ok(line) => println!("{line}"),
            Err(error) => {
                eprintln!("error: {error:#}");
                refused.push(name);
            }
        }
    }
    ensure!(refused.is_empty(), "not loaded: {}", refused.join(", "));
    Ok(())
}

fn line(bytes: &[u8], name: &str, kernel: &Btf) -> Result<String> {
    let (instructions, native) = sizes(bytes, name, kernel)?;
    let Statistics { verified, peak_states, stack } = statistics(bytes, name, kernel)?;
    Ok(format!("{name:<16} {instructions:>12} {verified:>8} {native:>8} B {peak_states:>12}  {stack}"))
}

/// Creates the maps of the object, with constants that stand for the daemon's.
fn open(bytes: &[u8]) -> Result<Ebpf> {
    // Any values do, but not 0, which would let the verifier skip what they guard.
    let offsets = SocketOffsets {
        rcv_nxt: 1600,
        bytes_received: 1568,
        snd_una: 1608,
        bytes_acked: 1576,
        write_seq: 1612,
        reserved: 0,
        request_rcv_nxt: 300,
        request_snt_isn: 304,
    };
    let ends = EndsOffsets {
        port: 792,
        remote_port: 12,
        family: 16,
        state: 18,
        v4: 4,
        remote_v4: 8,
        v6: 72,
        remote_v6: 56,
        net: 48,
        inum: 136,
        protocol: 532,
        reserved: 0,
    };
    EbpfLoader::new()
        .override_global(global::KEY_SECRET, &[1u64, 2], true)
        .override_global(global::FLOW_SECRET, &[3u64, 4], true)
        .override_global(global::SOCKET_OFFSETS, &offsets, true)
        .override_global(global::ENDS_OFFSETS, &ends, true)
        .override_global(global::NAMESPACE, &4_026_531_840u32, true)
        .verifier_log_level(VerifierLogLevel::STATS)
        .load(bytes)
        .context("cannot create the maps")
}

/// Has a program verified and loaded.
fn load(object: &mut Ebpf, name: &str, kernel: &Btf) -> Result<ProgramInfo, ProgramError> {
    match object.program_mut(name) {
        Some(Program::Xdp(program)) => program.load().and_then(|()| program.info()),
        Some(Program::SchedClassifier(program)) => program.load().and_then(|()| program.info()),
        Some(Program::BtfTracePoint(program)) => {
            program.load("inet_sock_set_state", kernel).and_then(|()| program.info())
        }
        Some(Program::Iter(program)) => program.load("tcp", kernel).and_then(|()| program.info()),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// Instructions as loaded, and bytes of machine code.
fn sizes(bytes: &[u8], name: &str, kernel: &Btf) -> Result<(u32, u32)> {
    let mut object = open(bytes)?;
    let info = load(&mut object, name, kernel).with_context(|| format!("the kernel refuses {name}"))?;
    let translated = info.size_translated().context("this kernel does not tell a program's size")?;
    Ok((translated / 8, info.size_jitted()))
}

/// The verifier's own statistics.
///
/// aya hands out the verifier's log only if a load fails. So it fails here, after the verifier is done: no file
/// descriptor is left for the program.
fn statistics(bytes: &[u8], name: &str, kernel: &Btf) -> Result<Statistics> {
    let mut object = open(bytes)?;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit of open files")?;
    let next_free = fs::File::open("/dev/null").context("cannot open /dev/null")?;
    let used = u64::try_from(std::os::fd::AsRawFd::as_raw_fd(&next_free)).context("a descriptor is negative")?;
    drop(next_free);
    setrlimit(Resource::RLIMIT_NOFILE, used, hard).context("cannot lower the limit of open files")?;
    let result = load(&mut object, name, kernel);
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).context("cannot restore the limit of open files")?;
    match result {
        Err(ProgramError::LoadError { verifier_log, .. }) => {
            let log = verifier_log.to_string();
            Statistics::read(&log).with_context(|| format!("the verifier's log of {name} is not understood: {log}"))
        }
        Err(error) => Err(error).with_context(|| format!("cannot load {name}")),
        Ok(_) => bail!("{name} was loaded without a descriptor for it"),
    }
}
