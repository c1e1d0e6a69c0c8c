//! The BPF object in the running kernel, attached to nothing: packets go in by BPF_PROG_TEST_RUN.

use std::borrow::BorrowMut;
use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};
use aya::programs::{BtfTracePoint, Iter, Program as Loadable, SchedClassifier, TestRun, TestRunOptions, Xdp};
use aya::{Btf, Ebpf, EbpfLoader, Pod, TestRunResult};
use enforcer_ebpf::abi::{
    Answer, Buckets, Client, Edge, EndsOffsets, Host, Key as ApiKey, KeyTag, Leaf, Meter, Policy, Principal, Rule,
    Ruleset, Scope, Service, SocketOffsets, State, TOTALS, global, map,
};
use enforcer_ebpf::answer::Sheet;
use enforcer_ebpf::connection::{Connections, Subjects};
use enforcer_ebpf::flow::{Flow, Set};
use enforcer_ebpf::judge::Scratch;
use enforcer_ebpf::shortcut::{self, Shortcuts, WAYS};

use crate::meters::Meters;
use crate::reader::SECRET;
use crate::tables::Tables;
use crate::world::{self, Fate};
use crate::{enforcer, process, root};

// Action codes of XDP and of traffic control (include/uapi/linux/{bpf,pkt_cls}.h).
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const TC_ACT_SHOT: u32 = 2;
const TC_ACT_REDIRECT: u32 = 7;
const TC_ACT_UNSPEC: u32 = u32::MAX;
/// More bytes than a program makes a frame longer by.
const LONGEST: usize = 1024;

/// Takes note of what servers send.
const WATCH: &str = "enforcer_watch";
/// Is told of connections, of those that are older, and looks for those that never came to be.
const SOCKETS: &str = "enforcer_sockets";
const OLDER: &str = "enforcer_older";
const SWEEP: &str = "enforcer_sweep";

/// The object that the daemon embeds: the one that `ENFORCER_BPF_OBJECT` names, else the build's.
///
/// # Errors
/// It is not there.
pub fn object() -> Result<Vec<u8>> {
    let path = match std::env::var_os("ENFORCER_BPF_OBJECT") {
        Some(path) => PathBuf::from(path),
        None => {
            // The daemon's build leaves it in the target folder, beside the profile's.
            let binary = enforcer::binary()?;
            let target = binary.parent().and_then(|profile| profile.parent());
            target.context("no target folder")?.join("bpf/bpfel-unknown-none/bpf/enforcer-bpf")
        }
    };
    std::fs::read(&path).with_context(|| format!("reading the BPF object {}", path.display()))
}

/// Where the running kernel keeps what the program reads of a socket, by another reader of its BTF than the daemon's.
///
/// # Errors
/// When bpftool does not tell.
pub fn socket_offsets() -> Result<SocketOffsets> {
    let types = types()?;
    let offset = |structure, member| offset(&types, structure, member);
    Ok(SocketOffsets {
        rcv_nxt: offset("tcp_sock", "rcv_nxt")?,
        bytes_received: offset("tcp_sock", "bytes_received")?,
        snd_una: offset("tcp_sock", "snd_una")?,
        bytes_acked: offset("tcp_sock", "bytes_acked")?,
        write_seq: offset("tcp_sock", "write_seq")?,
        reserved: 0,
        request_rcv_nxt: offset("tcp_request_sock", "rcv_nxt")?,
        request_snt_isn: offset("tcp_request_sock", "snt_isn")?,
    })
}

/// Likewise, of whose a socket is.
fn ends_offsets() -> Result<EndsOffsets> {
    let types = types()?;
    let offset = |structure, member| offset(&types, structure, member);
    let common = |member| offset("sock_common", member);
    Ok(EndsOffsets {
        port: offset("inet_sock", "inet_sport")?,
        // In unions without a name, at the beginning of include/net/sock.h's sock_common.
        remote_v4: 0,
        v4: 4,
        remote_port: 12,
        family: common("skc_family")?,
        state: common("skc_state")?,
        v6: common("skc_v6_rcv_saddr")?,
        remote_v6: common("skc_v6_daddr")?,
        net: common("skc_net")?,
        inum: offset("net", "ns")? + offset("ns_common", "inum")?,
        protocol: offset("sock", "sk_protocol")?,
        reserved: 0,
    })
}

/// The running kernel's types, as bpftool prints them.
fn types() -> Result<String> {
    let mut bpftool = Command::new("bpftool");
    process::run(bpftool.args(["btf", "dump", "file", "/sys/kernel/btf/vmlinux", "format", "raw"]))
}

fn offset(types: &str, structure: &str, member: &str) -> Result<u32> {
    let named = format!(" STRUCT '{structure}' ");
    let begin = types.lines().skip_while(|line| !line.contains(&named)).skip(1);
    let member = format!("'{member}' ");
    let bits = begin
        .take_while(|line| line.starts_with('\t'))
        .find(|line| line.trim_start().starts_with(&member))
        .and_then(|line| line.split("bits_offset=").nth(1))
        .with_context(|| format!("bpftool shows no {member}in {structure}"))?;
    Ok(bits.trim().parse::<u32>()? / 8)
}

/// Where the IP packet in a frame ends, by its own length.
fn ip_end(frame: &[u8]) -> usize {
    let word =
        |at: usize| frame.get(at..at + 2).map_or(0, |bytes| usize::from(u16::from_be_bytes([bytes[0], bytes[1]])));
    let mut at = 12;
    while matches!(word(at), 0x8100 | 0x88a8) {
        at += 4;
    }
    let ip = at + 2;
    if word(at) == 0x86dd { ip + 40 + word(ip + 4) } else { ip + word(ip + 2) }
}

/// A program of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// The one that is attached to interfaces as XDP.
    Xdp,
    /// The one that is attached to the ingress of their traffic control.
    Tc,
    /// The one that judges each packet as the first of its connection, whatever was before.
    Judge,
}

impl Program {
    const fn name(self) -> &'static str {
        match self {
            Self::Xdp => "enforcer_xdp",
            Self::Tc => "enforcer_tc",
            Self::Judge => "bench_judge",
        }
    }
}

/// The object with one of its programs loaded.
pub struct Loaded {
    object: Ebpf,
    program: Program,
    services: u32,
}

impl Loaded {
    /// Loads the object and a program of it, and writes the tables.
    ///
    /// # Errors
    /// Without root, or when the kernel refuses the object or a table.
    pub fn new(program: Program, tables: &Tables) -> Result<Self> {
        Self::load(&mut EbpfLoader::new(), program, tables)
    }

    /// Loads an attached program so that it understands the sockets of the network namespace that it is run in, with a
    /// table of connections of so many sets, a power of two.
    ///
    /// # Errors
    /// As [`Loaded::new`], or when the kernel's type information cannot be read.
    pub fn with_sockets(program: Program, tables: &Tables, sets: u32) -> Result<Self> {
        let (offsets, mask) = (socket_offsets()?, sets - 1);
        let mut loader = EbpfLoader::new();
        loader.override_global(global::SOCKET_OFFSETS, &offsets, true).override_global(global::FLOW_MASK, &mask, true);
        Self::load(&mut loader, program, tables)
    }

    fn load<'a>(loader: &mut EbpfLoader<'a>, program: Program, tables: &Tables) -> Result<Self> {
        root::require()?;
        let mut object = loader
            .override_global(global::KEY_SECRET, &SECRET, true)
            .override_global(global::FLOW_SECRET, &SECRET, true)
            .load(&object()?)
            .context("loading the BPF object")?;
        for name in [program.name(), WATCH] {
            match object.program_mut(name).context("no such program")? {
                Loadable::Xdp(xdp) => xdp.load(),
                Loadable::SchedClassifier(classifier) => classifier.load(),
                other => bail!("{name} is a program of another type: {:?}", other.prog_type()),
            }
            .with_context(|| format!("loading {name}"))?;
        }
        let services = (tables.services.len() + tables.hosted.len()) as u32;
        let mut loaded = Self { object, program, services };
        loaded.write(tables)?;
        Ok(loaded)
    }

    /// Likewise, in the network namespace of the calling thread, whose connections it is told of from now on.
    ///
    /// # Errors
    /// As [`Loaded::with_sockets`].
    pub fn following(program: Program, tables: &Tables, sets: u32) -> Result<Self> {
        let (offsets, ends, mask) = (socket_offsets()?, ends_offsets()?, sets - 1);
        let namespace = std::fs::metadata("/proc/thread-self/ns/net")?.ino() as u32;
        let mut loader = EbpfLoader::new();
        loader
            .override_global(global::SOCKET_OFFSETS, &offsets, true)
            .override_global(global::ENDS_OFFSETS, &ends, true)
            .override_global(global::NAMESPACE, &namespace, true)
            .override_global(global::FLOW_MASK, &mask, true);
        let mut loaded = Self::load(&mut loader, program, tables)?;
        let kernel = Btf::from_sys_fs()?;
        let object = &mut loaded.object;
        let sockets: &mut BtfTracePoint = object.program_mut(SOCKETS).context("no such program")?.try_into()?;
        sockets.load("inet_sock_set_state", &kernel)?;
        sockets.attach()?;
        let older: &mut Iter = object.program_mut(OLDER).context("no such program")?.try_into()?;
        older.load("tcp", &kernel)?;
        let sweep: &mut Xdp = object.program_mut(SWEEP).context("no such program")?.try_into()?;
        sweep.load()?;
        Ok(loaded)
    }

    /// Tells the program of the connections that there are in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the kernel does not list them.
    pub fn tell_of_older(&mut self) -> Result<()> {
        let older: &mut Iter = self.object.program_mut(OLDER).context("no such program")?.try_into()?;
        let link = older.attach()?;
        older.take_link(link)?.into_file()?.read_to_end(&mut Vec::new())?;
        Ok(())
    }

    /// Lets the program look for connections that never came to be.
    ///
    /// # Errors
    /// When the kernel refuses the run.
    pub fn sweep(&self) -> Result<()> {
        let sweep: &Xdp = self.object.program(SWEEP).context("no such program")?.try_into()?;
        let mut options = TestRunOptions::new();
        options.data_in = Some(&[0; 64]);
        sweep.test_run(options).context("BPF_PROG_TEST_RUN")?;
        Ok(())
    }

    /// How many connections are in the table.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn connections(&self) -> Result<usize> {
        let map = self.object.map(map::CONNECTIONS).context("no map of connections")?;
        let map: Array<_, Connections> = map.try_into()?;
        let mut count = 0;
        for set in map.iter() {
            count += set?.ways.iter().filter(|way| way.hash != 0).count();
        }
        Ok(count)
    }

    /// How many connections each source and principal has that has any, by its hash.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn subjects(&self) -> Result<BTreeMap<u64, u64>> {
        let map = self.object.map(map::SUBJECTS).context("no map of subjects")?;
        let map: Array<_, Subjects> = map.try_into()?;
        let mut subjects = BTreeMap::new();
        for set in map.iter() {
            subjects.extend(world::subjects(&set?));
        }
        Ok(subjects)
    }

    /// Writes the tables over those that were written before.
    ///
    /// # Errors
    /// When a map cannot be written.
    pub fn write(&mut self, tables: &Tables) -> Result<()> {
        for (slot, (&port, service)) in (0u32..).zip(&tables.services) {
            self.array::<Service>(map::SERVICES)?.set(slot, service, 0)?;
            self.array::<u32>(map::PORTS)?.set(u32::from(port), slot + 1, 0)?;
        }
        for (slot, service) in (tables.services.len() as u32..).zip(&tables.hosted) {
            self.array::<Service>(map::SERVICES)?.set(slot, service, 0)?;
        }
        let mut hosts: HashMap<_, Host, u64> = self.map(map::HOSTS)?.try_into()?;
        for (host, &slot) in &tables.hosts {
            hosts.insert(host, u64::from(slot), 0)?;
        }
        for (&index, answer) in &tables.answers {
            self.array::<Answer>(map::ANSWERS)?.set(index, answer, 0)?;
        }
        let keys = self.object.map_mut(map::KEYS).context("no map of keys")?;
        let mut keys: HashMap<_, KeyTag, ApiKey> = keys.try_into()?;
        for (tag, key) in &tables.keys {
            keys.insert(tag, key, 0)?;
        }
        let meters = self.meters()?;
        let mut shortcuts = self.open_array::<Shortcuts>(map::SHORTCUTS)?;
        for (&tag, key) in &tables.keys {
            let mut set = shortcuts.get(&shortcut::set(tag), 0)?;
            set.iter_mut().filter(|word| shortcut::find(&[**word; WAYS], tag) != 0).for_each(|word| *word = 0);
            // About half of the keys that may have one do, so that both ways are gone.
            let is_plain = *key == ApiKey { principal: key.principal, ..ApiKey::PLAIN };
            if is_plain
                && tag.0[1] % 2 == 1
                && let Some(free) = set.iter_mut().find(|word| **word == 0)
            {
                *free = shortcut::word(tag, key.principal);
                meters.set_key(key.principal, tag.0[1]);
            }
            shortcuts.set(shortcut::set(tag), set, 0)?;
        }
        for (&slot, policy) in &tables.policies {
            self.array::<Policy>(map::POLICIES)?.set(slot, policy, 0)?;
            meters.set_principal(slot, Principal { policy: slot, trial: 0 });
        }
        self.write_rules(tables)
    }

    /// Writes what of the tables are rules; what those before had more of stays.
    ///
    /// # Errors
    /// The kernel takes none of it.
    pub fn write_rules(&mut self, tables: &Tables) -> Result<()> {
        for (&slot, rules) in &tables.rulesets {
            self.array::<Ruleset>(map::RULESETS)?.set(slot, rules, 0)?;
        }
        for (index, state) in (0u32..).zip(&tables.states) {
            self.array::<State>(map::STATES)?.set(index, state, 0)?;
        }
        for (index, leaf) in (0u32..).zip(&tables.leaves) {
            self.array::<Leaf>(map::LEAVES)?.set(index, leaf, 0)?;
        }
        for (index, rule) in (0u32..).zip(&tables.rules) {
            self.array::<Rule>(map::RULES)?.set(index, rule, 0)?;
        }
        let mut exempt: BTreeMap<[u8; 16], u64> = BTreeMap::new();
        for (index, (addresses, until)) in (0u32..).zip(&tables.exemptions) {
            self.array::<u64>(map::EXEMPTIONS)?.set(index, until, 0)?;
            for address in addresses {
                *exempt.entry(*address).or_default() |= 1 << index;
            }
        }
        let mut trie: LpmTrie<_, [u8; 16], u64> = self.map(map::EXEMPT)?.try_into()?;
        for (address, bits) in exempt {
            trie.insert(&Key::new(128, address), bits, 0)?;
        }
        let mut proxies: LpmTrie<_, [u8; 16], u64> = self.map(map::PROXIES)?.try_into()?;
        for (address, &sets) in &tables.proxies {
            let [first, second] = address.map(u64::to_ne_bytes);
            let mut octets = [0; 16];
            octets[..8].copy_from_slice(&first);
            octets[8..].copy_from_slice(&second);
            proxies.insert(&Key::new(128, octets), sets, 0)?;
        }
        let mut routes: HashMap<_, Edge, u64> = self.map(map::ROUTES)?.try_into()?;
        for (edge, &state) in &tables.edges {
            routes.insert(edge, u64::from(state), 0)?;
        }
        let mut clients: HashMap<_, Client, u64> = self.map(map::CLIENTS)?.try_into()?;
        for (client, share) in &tables.clients {
            clients.insert(client, share.to_word(), 0)?;
        }
        let mut buckets: HashMap<_, Scope, Buckets> = self.map(map::BUCKETS)?.try_into()?;
        for (_, scope) in tables.opened() {
            buckets.insert(scope, Buckets::default(), 0)?;
        }
        Ok(())
    }

    /// Says what the time of day is, as the daemon does: CLOCK_REALTIME − CLOCK_BOOTTIME in ns.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn set_clock(&mut self, offset: u64) -> Result<()> {
        self.array::<u64>(map::CLOCK)?.set(0, offset, 0).context("writing the clock")
    }

    fn map(&mut self, name: &str) -> Result<&mut Map> {
        self.object.map_mut(name).with_context(|| format!("no map {name}"))
    }

    fn array<V: Pod>(&mut self, name: &str) -> Result<Array<impl BorrowMut<MapData>, V>> {
        let map = self.object.map_mut(name).with_context(|| format!("no map {name}"))?;
        Ok(Array::try_from(map)?)
    }

    fn run(&self, options: TestRunOptions<'_>) -> Result<TestRunResult> {
        match self.object.program(self.program.name()).context("no such program")? {
            Loadable::Xdp(xdp) => xdp.test_run(options),
            Loadable::SchedClassifier(classifier) => classifier.test_run(options),
            other => bail!("a program of another type: {:?}", other.prog_type()),
        }
        .context("BPF_PROG_TEST_RUN")
    }

    /// Whether the program lets a packet go on that it answers so.
    fn passes(&self, answer: u32) -> Result<bool> {
        match (self.program, answer) {
            (Program::Tc, TC_ACT_UNSPEC) | (Program::Xdp | Program::Judge, XDP_PASS) => Ok(true),
            (Program::Tc, TC_ACT_SHOT | TC_ACT_REDIRECT) | (Program::Xdp | Program::Judge, XDP_DROP) => Ok(false),
            (program, other) => bail!("{} answered {other}", program.name()),
        }
    }

    /// Hands a frame to the program.
    ///
    /// # Errors
    /// When the kernel refuses the run, or the program answers another action than to pass, drop or redirect.
    pub fn judge(&self, frame: &[u8]) -> Result<Fate> {
        self.meet(frame).map(|(fate, _)| fate)
    }

    /// Likewise; with what is to be sent in the frame's place, which a test run does not send.
    ///
    /// # Errors
    /// As [`Self::judge`].
    pub fn meet(&self, frame: &[u8]) -> Result<(Fate, Option<Vec<u8>>)> {
        let mut out = vec![0; frame.len() + LONGEST];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut out);
        let result = self.run(options)?;
        if !self.passes(result.return_value)? {
            out.truncate(result.data_size_out as usize);
            let is_sent_back = self.program == Program::Tc && result.return_value == TC_ACT_REDIRECT;
            return Ok((Fate::Dropped, is_sent_back.then_some(out)));
        }
        out.truncate(result.data_size_out as usize);
        if out != frame {
            // What is behind the IP packet is not received, and XDP leaves it there.
            out.truncate(ip_end(&out));
        }
        Ok((Fate::Passed(out), None))
    }

    /// Shows a frame that leaves for a client to the program that takes note of those.
    ///
    /// # Errors
    /// When the kernel refuses the run.
    pub fn watch(&self, frame: &[u8]) -> Result<()> {
        let classifier: &SchedClassifier = self.object.program(WATCH).context("no such program")?.try_into()?;
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        let result = classifier.test_run(options).context("BPF_PROG_TEST_RUN")?;
        ensure!(result.return_value == TC_ACT_UNSPEC, "{WATCH} answered {}", result.return_value);
        Ok(())
    }

    /// Hands a frame to the program `times` times.
    ///
    /// # Errors
    /// When the kernel refuses the run, or the program answers another action than pass and drop.
    pub fn repeat(&self, frame: &[u8], times: u32) -> Result<()> {
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.repeat = times;
        let result = self.run(options)?;
        self.passes(result.return_value).map(drop)
    }

    /// The counters over all CPUs and services, by [`enforcer_ebpf::verdict::Count::index`].
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn totals(&self) -> Result<[u64; TOTALS as usize]> {
        let all = self.totals_by_service()?;
        Ok(std::array::from_fn(|index| all.iter().map(|totals| totals[index]).sum()))
    }

    /// Those of each service, in the order of their ports, then of those that only hosts lead to.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn totals_by_service(&self) -> Result<Vec<[u64; TOTALS as usize]>> {
        let map = self.object.map(map::TOTALS).context("no map of totals")?;
        let map: PerCpuArray<_, u64> = map.try_into()?;
        let of = |slot: u32| {
            let mut totals = [0; TOTALS as usize];
            for (index, total) in (slot * TOTALS..).zip(&mut totals) {
                *total = map.get(&index, 0)?.iter().sum();
            }
            Ok(totals)
        };
        (0..self.services).map(of).collect()
    }

    /// The followed connections in the first `sets` sets of the table, by their hashes.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn flows(&self, sets: u32) -> Result<BTreeMap<u64, Flow>> {
        let map = self.object.map(map::FLOWS).context("no map of connections")?;
        let map: Array<_, Set> = map.try_into()?;
        let mut flows = BTreeMap::new();
        for index in 0..sets {
            let set = map.get(&index, 0)?;
            ensure!(set.lock == 0, "set {index} is left locked");
            flows.extend(world::flows(&set));
        }
        Ok(flows)
    }

    /// Lets it seem that the connections in the first `sets` sets have been seen to leave where they are translated: a test's
    /// packet is no socket's, and so is none that does.
    ///
    /// # Errors
    /// When the map cannot be read or written.
    pub fn see_leaving(&mut self, sets: u32) -> Result<()> {
        let mut map = self.array::<Set>(map::FLOWS)?;
        for index in 0..sets {
            let mut set = map.get(&index, 0)?;
            for flow in &mut set.flows {
                flow.leaves = 1;
            }
            map.set(index, set, 0)?;
        }
        Ok(())
    }

    /// What lies in the scratch and on the sheet of all CPUs between two packets.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn scratch(&self) -> Result<Vec<u8>> {
        let scratch = self.object.map(map::SCRATCH).context("no scratch")?;
        let scratch: PerCpuArray<_, [u8; size_of::<Scratch>()]> = scratch.try_into()?;
        let sheet = self.object.map(map::SHEET).context("no sheet")?;
        let sheet: PerCpuArray<_, [u8; size_of::<Sheet>()]> = sheet.try_into()?;
        let (scratch, sheet) = (scratch.get(&0, 0)?, sheet.get(&0, 0)?);
        Ok(scratch.iter().flatten().chain(sheet.iter().flatten()).copied().collect())
    }

    /// An array once more, to be written while other threads run the program.
    ///
    /// # Errors
    /// When there is none of this name, or it cannot be opened.
    pub fn open_array<V: Pod>(&self, name: &str) -> Result<Array<MapData, V>> {
        let Some(Map::Array(data)) = self.object.map(name) else { bail!("no array {name}") };
        let again = MapData::from_id(data.info()?.id())?;
        Ok(Map::Array(again).try_into()?)
    }

    /// The meters once more, likewise.
    ///
    /// # Errors
    /// When they cannot be mapped.
    pub fn meters(&self) -> Result<Meters> {
        Meters::map(self.object.map(map::METERS).context("no map of meters")?)
    }

    /// The buckets in one of the maps of buckets.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn buckets(&self, name: &str) -> Result<BTreeMap<Scope, Buckets>> {
        let map = self.object.map(name).with_context(|| format!("no map {name}"))?;
        let map: HashMap<_, Scope, Buckets> = map.try_into()?;
        Ok(map.iter().collect::<Result<_, _>>()?)
    }

    /// What is counted of a principal, without the words that the daemon writes.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn meter(&self, principal: u32) -> Result<Meter> {
        let map = self.object.map(map::METERS).context("no map of meters")?;
        let map: Array<_, Meter> = map.try_into()?;
        Ok(Meter { principal: 0, key: 0, ..map.get(&principal, 0)? })
    }
}

/// The clock since the boot, to hundredths of a second.
///
/// # Errors
/// When /proc does not tell it.
pub fn boot() -> Result<Duration> {
    let uptime = std::fs::read_to_string("/proc/uptime")?;
    let seconds = uptime.split(' ').next().context("no time in /proc/uptime")?;
    Ok(Duration::try_from_secs_f64(seconds.parse()?)?)
}
