//! A policy of a hundred thousand keys, each of a principal with a limit of its own: how long it takes to be imported, to be
//! loaded and to be changed, and how much memory all maps have. Times are printed, and not judged but for how they grow.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::maps::MapData;
use enforcer_tests::client::{Ending, exchange, get};
use enforcer_tests::enforcer::Enforcer;
use enforcer_tests::netns::{Link, Way};
use enforcer_tests::origin::{Origin, Workers};
use nix::sys::signal::Signal;

const PORT: u16 = 8000;
const KEYS: u32 = 100_000;
/// Changes of one kind whose times are taken.
const CHANGES: u32 = 50;
/// The most that all maps may have in bytes.
const MEMORY: u64 = 256 << 20;

fn key(number: u32) -> String {
    format!("capacity-key-{number:06}")
}

/// What a start came to.
struct Start {
    /// Processor time of the daemon until it answers: what else the machine does adds nothing.
    processor: Duration,
    /// How long the store took to be read and the maps to be filled, by its own word.
    filling: Duration,
}

/// Starts a daemon whose maps are empty.
fn start(enforcer: &mut Enforcer<'_>) -> Result<Start> {
    enforcer.stop(Signal::SIGTERM)?;
    enforcer.cli(&["detach"])?;
    enforcer.start()?;
    let about = std::fs::read_to_string(format!("/proc/{}/stat", enforcer.daemon()?.id()))?;
    // Behind the name, of which anything may be a part: utime and stime are the 14th and the 15th field, proc(5).
    let fields: Vec<&str> = about.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks: u64 =
        fields.get(11..13).context("no times")?.iter().map(|ticks| ticks.parse::<u64>()).sum::<Result<_, _>>()?;
    let log = enforcer.log()?;
    let line =
        log.lines().rev().find(|line| line.contains("brought the maps to")).context("it does not say how long")?;
    let filling = line.split(" in ").nth(1).and_then(|rest| rest.split(' ').next()).context("another line")?;
    Ok(Start { processor: Duration::from_millis(10 * ticks), filling: Duration::from_millis(filling.parse()?) })
}

/// Imports keys, each of a principal of its own with a limit of its own, so that none share a slot.
fn import(enforcer: &Enforcer<'_>, numbers: Range<u32>) -> Result<()> {
    let count = numbers.len();
    let mut lines = String::new();
    for number in numbers {
        writeln!(lines, "tenant-{number},{},{}/hour", key(number), number + 1)?;
    }
    let begin = Instant::now();
    let ran = enforcer.run_with_input(&["key", "import", "--weak", "-"], &lines)?;
    ensure!(ran.code == 0, "{}", ran.stderr);
    eprintln!("{count:>6} keys imported in {:?}", begin.elapsed());
    Ok(())
}

/// Sends a change over the control socket; how long its answer took.
fn change(enforcer: &Enforcer<'_>, method: &str, path: &str, body: &str) -> Result<Duration> {
    let begin = Instant::now();
    let mut stream = UnixStream::connect(enforcer.socket())?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: enforcer\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let time = begin.elapsed();
    ensure!(answer.starts_with("HTTP/1.1 200"), "{method} {path}: {answer}");
    Ok(time)
}

/// Changes one of all keys again and again; each holds for the request that is sent once it is answered.
fn change_one_of_all(enforcer: &Enforcer<'_>, link: &Link, address: SocketAddr) -> Result<()> {
    let number = KEYS / 2;
    let shown = enforcer.json(&["key", "show", &format!("tenant-{number}")])?;
    let id = shown["keys"][0]["id"].as_str().context("no id")?;
    let ends_with = |expected: u16| -> Result<()> {
        let ending = link.client().run(|| exchange(address, &get("/", Some(&key(number)))))?;
        ensure!(ending == Ending::Answered(expected), "{ending:?} in the place of {expected}");
        Ok(())
    };
    let switch = |turn: u32| -> Result<Duration> {
        let (verb, expected) = if turn % 2 == 0 { ("disable", 401) } else { ("enable", 200) };
        let time = change(enforcer, "POST", &format!("/v1/keys/{id}/{verb}"), "")?;
        ends_with(expected)?;
        Ok(time)
    };
    let limit = |turn: u32| -> Result<Duration> {
        let (limit, expected) = if turn % 2 == 0 { ("blocked", 429) } else { ("100000/hour", 200) };
        let body = format!("{{\"limit\":\"{limit}\"}}");
        let time = change(enforcer, "PUT", &format!("/v1/limits/tenant-{number}"), &body)?;
        ends_with(expected)?;
        Ok(time)
    };
    let kinds: [(&str, &dyn Fn(u32) -> Result<Duration>); 2] = [("a key switched", &switch), ("a limit set", &limit)];
    for (name, one) in kinds {
        let mut times = (0..CHANGES).map(one).collect::<Result<Vec<_>>>()?;
        times.sort_unstable();
        let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
        eprintln!("{name} among {KEYS}: {median:?} in the median of {CHANGES}, {longest:?} at most");
    }
    Ok(())
}

/// Changes a limit while somebody else reads all that there is, again and again: no change waits until that is read.
fn change_while_all_is_read(enforcer: &Enforcer<'_>) -> Result<()> {
    let is_over = AtomicBool::new(false);
    let path = format!("/v1/limits/tenant-{}", KEYS / 2);
    let (changes, reads) = std::thread::scope(|scope| {
        let reading = scope.spawn(|| -> Result<Vec<Duration>> {
            let mut times = Vec::new();
            while !is_over.load(Relaxed) {
                let begin = Instant::now();
                enforcer.metrics()?;
                times.push(begin.elapsed());
            }
            Ok(times)
        });
        let one = |turn| {
            let time = change(enforcer, "PUT", &path, &format!("{{\"limit\":\"{}/hour\"}}", 100_000 + turn))?;
            // Apart, so that they fall on all of a reading.
            std::thread::sleep(Duration::from_millis(40));
            Ok(time)
        };
        let changes = (0..2 * CHANGES).map(one).collect::<Result<Vec<_>>>();
        is_over.store(true, Relaxed);
        Ok::<_, anyhow::Error>((changes?, reading.join().map_err(|_| anyhow::anyhow!("a panic"))??))
    })?;
    let middle = |mut times: Vec<Duration>| {
        times.sort_unstable();
        (times[times.len() / 2], times[times.len() - 1])
    };
    let ((change, longest), (read, _)) = (middle(changes), middle(reads));
    eprintln!(
        "a limit set while the metrics are read: {change:?} in the median, {longest:?} at most; read in {read:?}"
    );
    // One that waits for a reading to end waits half of it in the median.
    ensure!(change < read / 8, "{change:?} beside readings of {read:?}");
    Ok(())
}

/// Imports more keys than there is room for, which are refused, all of them, and take nothing of what is there.
fn import_too_many(enforcer: &Enforcer<'_>, link: &Link, address: SocketAddr) -> Result<()> {
    let held = || -> Result<u64> {
        let status = enforcer.json(&["status"])?;
        let maps = status["maps"].as_array().context("no maps")?;
        let keys = maps.iter().find(|map| map["map"] == "KEYS").context("no KEYS")?;
        keys["entries"].as_u64().context("no entries")
    };
    let mut lines = String::new();
    for number in KEYS..enforcer_ebpf::abi::KEYS + 1 {
        writeln!(lines, "late,{}", key(number))?;
    }
    let ran = enforcer.run_with_input(&["key", "import", "--weak", "-"], &lines)?;
    ensure!(ran.code != 0 && ran.stderr.contains("KEYS"), "{} {}", ran.code, ran.stderr);
    ensure!(held()? == u64::from(KEYS), "{} keys are held", held()?);
    for (number, expected) in [(KEYS - 1, 200), (KEYS, 401), (enforcer_ebpf::abi::KEYS - 1, 401)] {
        let ending = link.client().run(|| exchange(address, &get("/", Some(&key(number)))))?;
        ensure!(ending == Ending::Answered(expected), "key {number}: {ending:?}");
    }
    // There is room for all but one of them.
    let (most, _) = lines.trim_end().rsplit_once('\n').context("one line")?;
    let ran = enforcer.run_with_input(&["key", "import", "--weak", "-"], most)?;
    ensure!(ran.code == 0 && held()? == u64::from(enforcer_ebpf::abi::KEYS), "{}: {} keys", ran.stderr, held()?);
    let ending = link.client().run(|| exchange(address, &get("/", Some(&key(KEYS)))))?;
    ensure!(ending == Ending::Answered(200), "{ending:?}");
    Ok(())
}

/// Bytes that the kernel has for all maps that outlive the daemon, by its own word.
fn memory(enforcer: &Enforcer<'_>) -> Result<Vec<(u64, String)>> {
    let mut all = Vec::new();
    for path in enforcer.pinned()? {
        let Ok(map) = MapData::from_pin(&path) else { continue };
        let about = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd()))?;
        // Programs and links are pinned too, and taken for maps.
        if !about.contains("map_type:") {
            continue;
        }
        let bytes = about.lines().find_map(|line| line.strip_prefix("memlock:")).context("no memlock")?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        all.push((bytes.trim().parse()?, name));
    }
    all.sort_unstable();
    Ok(all)
}

#[test]
fn the_time_to_load_grows_with_the_keys_not_with_their_square_and_the_maps_have_256_mib_at_most() -> Result<()> {
    let link = Link::new(Way::VethNative)?;
    let address = (link.v4, PORT).into();
    let origin = Origin::start(&link.server, "plain", Workers::Threads(2), address)?;
    let mut enforcer = Enforcer::guard(&link, PORT, &[])?;
    let mut starts = Vec::new();
    for keys in [0, KEYS / 10, KEYS] {
        let before = if keys == KEYS { KEYS / 10 } else { 0 };
        import(&enforcer, before..keys)?;
        let start = start(&mut enforcer)?;
        let Start { processor, filling } = start;
        eprintln!(
            "{keys:>6} keys: {processor:?} of processor time until the daemon answers; store read and maps filled in \
             {filling:?}"
        );
        starts.push(start);
    }
    let [none, tenth, all] = starts.try_into().map_err(|_| anyhow::anyhow!("three starts"))?;
    let [tenth, all] = [tenth, all].map(|start| start.processor.saturating_sub(none.processor));
    // Ten times as long, and more by caches and by how coarse the figure is; the square would be a hundred times.
    ensure!(all < 40 * tenth.max(Duration::from_millis(50)), "{tenth:?} for a tenth, {all:?} for all");

    ensure!(enforcer.metric("enforcer_keys")? == u64::from(KEYS));
    ensure!(enforcer.metric("enforcer_principals")? == u64::from(KEYS));
    // The first has one request an hour, the last as many as there are keys.
    for (number, endings) in [(0, [200, 429]), (KEYS - 1, [200, 200])] {
        for expected in endings {
            let ending = link.client().run(|| exchange(address, &get("/", Some(&key(number)))))?;
            ensure!(ending == Ending::Answered(expected), "key {number}: {ending:?}");
        }
    }
    ensure!(origin.executed()?.len() == 3);
    change_one_of_all(&enforcer, &link, address)?;
    change_while_all_is_read(&enforcer)?;
    import_too_many(&enforcer, &link, address)?;

    let memory = memory(&enforcer)?;
    let all: u64 = memory.iter().map(|(bytes, _)| bytes).sum();
    for (bytes, name) in memory.iter().rev().take(12) {
        eprintln!("{:>6.1} MiB {name}", *bytes as f64 / f64::from(1 << 20));
    }
    eprintln!("{:>6.1} MiB in {} maps", all as f64 / f64::from(1 << 20), memory.len());
    ensure!(memory.len() >= enforcer_ebpf::abi::map::PINNED.len(), "only {} maps were found", memory.len());
    ensure!(all <= MEMORY, "{all} bytes");
    Ok(())
}
