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
use enforcer_ebpf::abi::{Ruleset, map};
use enforcer_ebpf::key;
use enforcer_ebpf::shortcut::{self, Shortcuts, WAYS};
use enforcer_ebpf::verdict::{Count, Reason};
use enforcer_ebpf::wire::flag;
use enforcer_tests::bucket::sliding;
use enforcer_tests::client::get;
use enforcer_tests::corpus::KEY;
use enforcer_tests::kernel::{Loaded, Program};
use enforcer_tests::packet::Frame;
use enforcer_tests::reader::SECRET;
use enforcer_tests::tables::{Tables, policy};

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

/// All but its last bits of a tag lead to a shortcut; those lie with the principal.
#[test]
fn a_shortcut_is_for_one_key_alone() -> Result<()> {
    const OTHER: &str = "key_of_another";
    let tables = Tables::new().with_key(OTHER, 2, 0).with_limits(1, &[sliding(100, HOUR)]).with_limits(2, &[]);
    let loaded = Loaded::new(Program::Judge, &tables)?;
    let (tag, meters) = (key::tag(SECRET, KEY.as_bytes()), loaded.meters()?);
    let mut shortcuts = loaded.open_array::<Shortcuts>(map::SHORTCUTS)?;
    let mut set = [0; WAYS];
    set[WAYS - 1] = shortcut::word(tag, 1);
    shortcuts.set(shortcut::set(tag), set, 0)?;
    let (client, server) = ("10.9.0.2:4000".parse()?, "10.9.0.1:8000".parse()?);
    let request = |value: &str| Frame::data(client, server, 1, &get("/", Some(value))).build();
    let unknown = || -> Result<u64> { Ok(loaded.totals()?[Count::Refused(Reason::UnknownKey).index() as usize]) };
    for (count, word) in (1..).zip([0, tag.0[1] ^ 1, !tag.0[1], tag.0[0]]) {
        meters.set_key(1, word);
        loaded.repeat(&request(KEY), 1)?;
        ensure!((unknown()?, loaded.meter(1)?.allowed) == (count, 0), "passed with {word:x}");
    }
    let refused = unknown()?;
    meters.set_key(1, tag.0[1]);
    loaded.repeat(&request(KEY), 3)?;
    ensure!((unknown()?, loaded.meter(1)?.allowed) == (refused, 3), "the shortcut is not taken");
    shortcuts.set(shortcut::set(tag), [0; WAYS], 0)?;
    loaded.repeat(&request(KEY), 1)?;
    ensure!((unknown()?, loaded.meter(1)?.allowed) == (refused + 1, 3), "a shortcut that is closed is taken");
    loaded.repeat(&request(OTHER), 1)?;
    ensure!(loaded.meter(2)?.allowed == 1, "a key without a shortcut is not known");
    Ok(())
}

/// Who is over a limit of its own can fill no table by naming sources.
#[test]
fn a_request_that_is_refused_by_a_first_limit_makes_no_buckets_for_others() -> Result<()> {
    const SOURCE: u32 = 9;
    let mut tables = Tables::new().with_key(KEY, 1, 0).with_limits(1, &[sliding(2, HOUR)]);
    tables.policies.insert(SOURCE, policy(&[sliding(100, HOUR)]));
    let loaded = Loaded::new(Program::Judge, &tables.with_rules(Ruleset { source: SOURCE, ..Ruleset::default() }))?;
    for (source, made) in [("10.9.0.2:4000", 1), ("10.9.0.3:4000", 2), ("10.9.0.4:4000", 2), ("10.9.0.2:4001", 2)] {
        let frame = Frame::data(source.parse()?, "10.9.0.1:8000".parse()?, 1, &get("/", Some(KEY))).build();
        loaded.repeat(&frame, 1)?;
        let buckets = loaded.buckets(map::SOURCE_BUCKETS)?;
        ensure!(buckets.len() == made, "{made} expected behind {source}: {buckets:?}");
        let counted: u64 = buckets.values().map(|buckets| buckets.limits[0].counts & 0xfff_ffff).sum();
        ensure!(counted == loaded.meter(1)?.allowed, "{counted} were counted for sources");
    }
    ensure!((loaded.meter(1)?.allowed, loaded.meter(1)?.limited) == (2, 2), "{:?}", loaded.meter(1)?);
    Ok(())
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
