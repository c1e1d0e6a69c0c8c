//! The loaded program by BPF_PROG_TEST_RUN, packet in, verdict, packet and counters out, beside the host library.

#[path = "verdicts/connections.rs"]
mod connections;
#[path = "verdicts/letters.rs"]
mod letters;
#[path = "verdicts/sequences.rs"]
mod sequences;
#[path = "verdicts/scenarios.rs"]
mod tc;
#[path = "verdicts/scenarios.rs"]
mod xdp;

use anyhow::{Context, Result, ensure};
use enforcer_ebpf::wire::flag;
use enforcer_tests::bucket::sliding;
use enforcer_tests::corpus::KEY;
use enforcer_tests::kernel::{Loaded, Program};
use enforcer_tests::packet::Frame;
use enforcer_tests::tables::Tables;

/// In ns.
const HOUR: u64 = 3_600_000_000_000;

/// The program that the scenarios of this module go through.
fn load(module: &str, tables: &Tables) -> Result<Option<Loaded>> {
    let program = if module.ends_with("tc") { Program::Tc } else { Program::Xdp };
    Loaded::new(program, tables).map(Some)
}

/// Whether that program also tells the clients of refused requests what is due to them.
fn answers(module: &str) -> bool {
    module.ends_with("tc")
}

/// Whether the kernel makes a test's packet of any frame: for traffic control it takes none that is larger than a page, or
/// that ends within its IP header. There `traffic` has large ones.
fn takes_any_frame(module: &str) -> bool {
    !module.ends_with("tc")
}

#[test]
fn nothing_of_a_request_stays_in_the_scratch() -> Result<()> {
    let tables = Tables::new().with_key(KEY, 1, 0).with_limits(1, &[sliding(100, HOUR)]);
    for program in [Program::Xdp, Program::Tc] {
        nothing_stays(&Loaded::new(program, &tables)?).with_context(|| format!("{program:?}"))?;
    }
    Ok(())
}

fn nothing_stays(loaded: &Loaded) -> Result<()> {
    let (client, server) = ("10.9.0.2:4000".parse()?, "10.9.0.1:8000".parse()?);
    loaded.watch(&Frame::bare(server, client, 0, flag::SYN | flag::ACK).acking(8).build())?;
    // Passed, refused with the key unread behind the fault, and left in the middle of the key.
    let begin = format!("GET / HTTP/1.1\r\nX-API-Key: {KEY}");
    let whole = format!("{begin}\r\n\r\n");
    let mut seq = 8;
    for request in [whole.as_str(), &begin[..begin.len() - 5], &format!("{}\0\r\nX: {whole}", &KEY[KEY.len() - 5..])] {
        loaded.judge(&Frame::data(client, server, seq, request.as_bytes()).build())?;
        seq += request.len() as u32;
        let scratch = loaded.scratch()?;
        for part in [&KEY.as_bytes()[..4], &KEY.as_bytes()[KEY.len() - 4..], b"HTTP", b"Key"] {
            ensure!(!scratch.windows(part.len()).any(|bytes| bytes == part), "{} is there", part.escape_ascii());
        }
    }
    ensure!(loaded.meter(1)?.allowed == 1, "the first request was not judged");
    Ok(())
}
