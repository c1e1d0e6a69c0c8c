//! What lies in the BPF maps: names, keys, values, sizes. Both sides are compiled from this file.
//!
//! [`ABI`] names the directory of the pins; any change of a type here must change it. All values are multiples of
//! eight bytes without padding, so that no uninitialised byte reaches a map.

/// Number of this layout; part of the pin directory's name (`v11`).
pub const ABI: u32 = 11;

/// Names of the maps, with who writes and who reads each.
pub mod map {
    /// `Array<u32>`, index = TCP port: service slot + 1, or 0 where nothing is guarded. Daemon → kernel.
    pub const PORTS: &str = "PORTS";
    /// `Array<Service>`, index = service slot. Daemon → kernel.
    pub const SERVICES: &str = "SERVICES";
    /// `HashMap<Host, u64>`: the slot of the service that a host is of. Daemon → kernel.
    pub const HOSTS: &str = "HOSTS";
    /// `HashMap<KeyTag, Key>`. Daemon → kernel.
    pub const KEYS: &str = "KEYS";
    /// `Array<shortcut::Shortcuts>` (mmapable), index = [`crate::shortcut::set`]. Daemon → kernel.
    pub const SHORTCUTS: &str = "SHORTCUTS";
    /// `Array<Policy>`, index = policy slot; a slot is never changed while anything names it. Daemon → kernel.
    pub const POLICIES: &str = "POLICIES";
    /// `Array<Meter>` (mmapable), index = principal. Kernel → daemon; the daemon writes two words of it, and clears the others
    /// before it hands the principal's index out.
    pub const METERS: &str = "METERS";
    /// `Array<Ruleset>`, index = ruleset slot; a slot is never changed while a service names it. Daemon → kernel.
    pub const RULESETS: &str = "RULESETS";
    /// `HashMap<Edge, u64>`: the state that a segment of a path leads to from another. Daemon → kernel.
    pub const ROUTES: &str = "ROUTES";
    /// `Array<State>`, index = state of the automaton of paths. Daemon → kernel.
    pub const STATES: &str = "STATES";
    /// `Array<Leaf>`, index = [`super::State::leaf`]. Daemon → kernel.
    pub const LEAVES: &str = "LEAVES";
    /// `Array<Rule>`, index = [`super::Leaf::rules`]. Daemon → kernel.
    pub const RULES: &str = "RULES";
    /// `LpmTrie<[u8; 16], u64>`: which exemptions are for an address, as bits; IPv4 is mapped (RFC 4291 §2.5.5.2). Daemon → kernel.
    pub const EXEMPT: &str = "EXEMPT";
    /// `Array<u64>`, index = exemption: when it ends, Unix time in ns. Daemon → kernel.
    pub const EXEMPTIONS: &str = "EXEMPTIONS";
    /// `LpmTrie<[u8; 16], u64>`: likewise, by which rules' [`super::Ruleset::trusts`] an address's `X-Forwarded-For` is
    /// believed. Daemon → kernel.
    pub const PROXIES: &str = "PROXIES";
    /// `HashMap<Client, u64>`: [`super::Share`] as a word. Daemon → kernel.
    pub const CLIENTS: &str = "CLIENTS";
    /// `HashMap<Scope, Buckets>`: what is used of limits whose subjects an operator has named. Kernel → daemon, which
    /// removes those of subjects that are gone.
    pub const BUCKETS: &str = "BUCKETS";
    /// `LruHashMap<Scope, Buckets>`: what is used of limits by source. Kernel → daemon.
    pub const SOURCE_BUCKETS: &str = "SOURCE_BUCKETS";
    /// `LruHashMap<Sighting, u64>`: which keys were seen from which sources, for [`super::Spread`]. Kernel only.
    pub const SIGHTINGS: &str = "SIGHTINGS";
    /// `Array<connection::Connections>`, index = hash of a connection modulo the entries: the connections of local sockets,
    /// and whom each counts for. Kernel only.
    pub const CONNECTIONS: &str = "CONNECTIONS";
    /// `Array<connection::Subjects>`, index = hash of a source or principal modulo the entries: how many each has. Kernel
    /// only.
    pub const SUBJECTS: &str = "SUBJECTS";
    /// `PerCpuArray<[u64; 4]>`, index = [`super::Policy::tally`]: see [`super::tally`]. Kernel → daemon.
    pub const TALLIES: &str = "TALLIES";
    /// `Array<u64>`, one entry: until when what is on trial holds, CLOCK_BOOTTIME in ns; 0 = nothing is. Daemon → kernel.
    pub const TRIAL: &str = "TRIAL";
    /// `PerCpuArray<u64>`, index = service slot × [`super::TOTALS`] + [`crate::verdict::Count::index`]. What belongs to no
    /// service counts in slot 0. Kernel → daemon, which clears those of a slot that becomes another service's.
    pub const TOTALS: &str = "TOTALS";
    /// `Array<flow::Set>` (mmapable), index = hash of a connection modulo the entries. Kernel only; the daemon reads
    /// which connections are followed, and since when each sends a head.
    pub const FLOWS: &str = "FLOWS";
    /// `LruHashMap<flow::Place, flow::Mark>`: what was judged but not accepted yet, beyond what a connection's own entry
    /// holds. Kernel only.
    pub const MARKS: &str = "MARKS";
    /// `LruHashMap<flow::Place, KeyTag>`: which heads of that were charged, and to whom. Kernel only.
    pub const CHARGES: &str = "CHARGES";
    /// `LruHashMap<Tuple, flow::Handshake>`: handshakes of forwarded connections, until their first byte. Kernel only.
    pub const HANDSHAKES: &str = "HANDSHAKES";
    /// `Array<Answer>`, index = [`super::Service::answers`] + [`AnswerKind`](super::AnswerKind): what refused requests are
    /// answered; those that a service names are never changed. Daemon → kernel.
    pub const ANSWERS: &str = "ANSWERS";
    /// `Array<u64>`, one entry: CLOCK_REALTIME − CLOCK_BOOTTIME in ns, for the dates of answers and for windows that
    /// follow the calendar. Daemon → kernel.
    pub const CLOCK: &str = "CLOCK";
    /// `LruHashMap<source::Source, source::Record>`: the sources of refused requests. Kernel; the daemon lists them, and
    /// ends penalties.
    pub const SOURCES: &str = "SOURCES";
    /// `Array<u64>`, one entry: when the last of all penalties ends, CLOCK_BOOTTIME in ns. Kernel → daemon.
    pub const PENALTIES: &str = "PENALTIES";
    /// `PerCpuArray<u32>`, one entry: where in TOTALS begins what is counted for the service of the packet under judgement.
    /// Kernel only.
    pub const COUNTING: &str = "COUNTING";
    /// `PerCpuArray<Scratch>`: the packet under judgement. Kernel only.
    pub const SCRATCH: &str = "SCRATCH";
    /// `PerCpuArray<answer::Sheet>`: the answer that is being written. Kernel only.
    pub const SHEET: &str = "SHEET";
    /// `Array<judge::explain::Explanation>`, one entry: a request that is asked about, and what would become of it. Never
    /// pinned. Daemon → kernel → daemon.
    pub const EXPLANATION: &str = "EXPLANATION";
    /// `Array<judge::explain::Explaining>`, one entry: that request while it is judged. Never pinned. Kernel only.
    pub const EXPLAINING: &str = "EXPLAINING";
    /// `Array<Turn>`, one entry: whose turn it is in measurements. Never pinned. Bench → kernel.
    pub const TURN: &str = "TURN";

    /// The maps that outlive the daemon.
    pub const PINNED: &[&str] = &[
        PORTS,
        SERVICES,
        HOSTS,
        KEYS,
        SHORTCUTS,
        POLICIES,
        METERS,
        TOTALS,
        FLOWS,
        MARKS,
        CHARGES,
        HANDSHAKES,
        ANSWERS,
        CLOCK,
        SOURCES,
        PENALTIES,
        RULESETS,
        ROUTES,
        STATES,
        LEAVES,
        RULES,
        EXEMPT,
        EXEMPTIONS,
        PROXIES,
        CLIENTS,
        BUCKETS,
        SOURCE_BUCKETS,
        SIGHTINGS,
        CONNECTIONS,
        SUBJECTS,
        TALLIES,
        TRIAL,
    ];
}

/// Names of the constants that the loader sets before the program is verified.
pub mod global {
    /// `[u64; 2]`: secret of the key tags, from the state directory.
    pub const KEY_SECRET: &str = "KEY_SECRET";
    /// `[u64; 2]`: secret of the flow table's hash; the daemon derives it from the key secret, so that a table that
    /// is taken over stays readable.
    pub const FLOW_SECRET: &str = "FLOW_SECRET";
    /// `u32`: entries of [`super::map::FLOWS`] − 1, as a mask.
    pub const FLOW_MASK: &str = "FLOW_MASK";
    /// [`super::SocketOffsets`]: where the running kernel keeps what we read of a socket.
    pub const SOCKET_OFFSETS: &str = "SOCKET_OFFSETS";
    /// [`super::EndsOffsets`]: where it keeps whose a socket is.
    pub const ENDS_OFFSETS: &str = "ENDS_OFFSETS";
    /// `u32`: inode of the network namespace whose sockets are followed.
    pub const NAMESPACE: &str = "NAMESPACE";
}

/// Entries of [`map::PORTS`].
pub const PORTS: u32 = 65_536;
/// Entries of [`map::SERVICES`].
pub const SERVICES: u32 = 64;
/// Services at once: half of the slots have two sets of [`map::ANSWERS`] each, and those that come lie beside those that go.
pub const SERVICES_MOST: u32 = 15;
/// Hosts of one service.
pub const HOSTS_EACH: u32 = 64;
/// Entries of [`map::HOSTS`]: those that come lie beside those that go.
pub const HOSTS: u32 = 2 * (SERVICES_MOST * HOSTS_EACH + SERVICES_MOST);
/// Default entries of [`map::KEYS`].
pub const KEYS: u32 = 131_072;
/// Default entries of [`map::METERS`]; index 0 is never given out.
pub const PRINCIPALS: u32 = 131_072;
/// Entries of [`map::SHORTCUTS`], each a set of [`crate::shortcut::WAYS`]; a power of two.
pub const SHORTCUTS: u32 = 16_384;
/// Default entries of [`map::POLICIES`]; index 0 is never given out.
pub const POLICIES: u32 = 131_072;
/// Entries of [`map::TOTALS`] for each service.
pub const TOTALS: u32 = 128;
/// Default entries of [`map::FLOWS`], each a set of [`crate::flow::WAYS`] connections; a power of two.
pub const FLOW_SETS: u32 = 8_192;
/// Entries of [`map::MARKS`].
pub const MARKS: u32 = 65_536;
/// Entries of [`map::CHARGES`].
pub const CHARGES: u32 = 65_536;
/// Entries of [`map::HANDSHAKES`].
pub const HANDSHAKES: u32 = 65_536;
/// Entries of [`map::ANSWERS`] for each service; a power of two.
pub const ANSWERS_EACH: u32 = 16;
/// Entries of [`map::ANSWERS`].
pub const ANSWERS: u32 = SERVICES * ANSWERS_EACH;

/// The slot of the service that an index in [`map::ANSWERS`] is of: each has two sets, of which one is in use.
#[must_use]
#[inline(always)]
pub const fn slot_of_answer(index: u32) -> u32 {
    index / ANSWERS_EACH % (SERVICES / 2)
}

/// Entries of [`map::SOURCES`].
pub const SOURCES: u32 = 65_536;
/// Entries of [`map::RULESETS`]; index 0 is never given out: a service without rules.
pub const RULESETS: u32 = 64;
/// Entries of [`map::ROUTES`].
pub const ROUTES: u32 = 32_768;
/// Entries of [`map::STATES`]; index 0 stands for a path that is not routed.
pub const STATES: u32 = 16_384;
/// Entries of [`map::LEAVES`]; index 0 has no rules.
pub const LEAVES: u32 = 8_192;
/// Entries of [`map::RULES`]; index 0 stands for none.
pub const RULES: u32 = 8_192;
/// Most prefixes of one policy in [`map::EXEMPT`] and in [`map::PROXIES`], where those of two lie together.
pub const PREFIXES: u32 = 4_096;
/// Exemptions at once: the bits of a word.
pub const EXEMPTIONS: u32 = 64;
/// Entries of [`map::CLIENTS`].
pub const CLIENTS: u32 = 65_536;
/// Default entries of [`map::BUCKETS`].
pub const BUCKETS: u32 = 131_072;
/// Default entries of [`map::SOURCE_BUCKETS`].
pub const SOURCE_BUCKETS: u32 = 65_536;
/// Entries of [`map::SIGHTINGS`].
pub const SIGHTINGS: u32 = 131_072;
/// Entries of [`map::CONNECTIONS`], each a set of [`crate::connection::WAYS`]; a power of two.
pub const CONNECTION_SETS: u32 = 32_768;
/// Entries of [`map::SUBJECTS`], likewise.
pub const SUBJECT_SETS: u32 = 32_768;
/// Entries of [`map::TALLIES`]; a power of two. Index 0 is for what has none.
pub const TALLIES: u32 = 8_192;
/// Methods that are told apart, see [`crate::http::method`]; a power of two.
pub const METHODS: usize = 8;
/// Room for reasons; a power of two.
pub const REASONS: usize = 32;
/// Limits that apply together to one principal.
pub const LIMITS: usize = 4;

/// A key's identity: SipHash-2-4-128 of its trimmed value under the install's secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(C)]
pub struct KeyTag(pub [u64; 2]);

/// A registered key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Key {
    /// Index in [`map::METERS`].
    pub principal: u32,
    /// [`Key::DISABLED`] or 0.
    pub flags: u32,
    /// First valid instant, Unix time in ns; 0 = always.
    pub not_before: u64,
    /// First instant no longer valid, likewise; `u64::MAX` = never.
    pub expires: u64,
    /// Slot of the limits of this key alone, beside its principal's; 0 = none.
    pub policy: u32,
    /// 0.
    pub reserved: u32,
}

impl Key {
    /// Flag: the key is refused with [`crate::verdict::Reason::KeyDisabled`].
    pub const DISABLED: u32 = 1;

    /// One that only says whose it is; of nobody yet.
    pub const PLAIN: Self = Self { principal: 0, flags: 0, not_before: 0, expires: u64::MAX, policy: 0, reserved: 0 };
}

/// Which policy a principal is under: one word, so that a change is one store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Principal {
    /// Index in [`map::POLICIES`]; 0 = none, which refuses.
    pub policy: u32,
    /// The policy in its place while a trial goes on ([`map::TRIAL`]); 0 = the same.
    pub trial: u32,
}

impl Principal {
    /// The word that lies in the map.
    #[must_use]
    pub const fn to_word(self) -> u64 {
        ((self.trial as u64) << 32) | self.policy as u64
    }

    /// Reads the map's word.
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        Self { policy: word as u32, trial: (word >> 32) as u32 }
    }

    /// The slot that holds now.
    #[must_use]
    #[inline(always)]
    pub const fn slot(self, on_trial: bool) -> u32 {
        if on_trial && self.trial != 0 { self.trial } else { self.policy }
    }
}

/// Limits that apply together, of any scope. Never changed in place while in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Policy {
    /// The limits; those behind `len` are ignored.
    pub limits: [Limit; LIMITS],
    /// What each is called in answers.
    pub names: [Name; LIMITS],
    /// How many of `limits` apply, 0 = unlimited (spelled out by the operator).
    pub len: u32,
    /// [`Policy::IN_USE`] and [`Policy::OBSERVE`]. A principal that names a slot that is not in use refuses everything.
    pub flags: u32,
    /// Slot of limits that are counted beside these and refuse nobody; 0 = none.
    pub candidate: u32,
    /// Index in [`map::TALLIES`].
    pub tally: u32,
    /// When this policy ends, Unix time in ns; `u64::MAX` = never. Then `next` holds in its place.
    pub until: u64,
    /// The slot that holds from `until` on; that one has no end.
    pub next: u32,
    /// Slot of the limits that all principals of a tenant share, charged beside these; 0 = it has none.
    pub tenant: u32,
    /// [`Scope::rule`] of the tenant's buckets.
    pub tenant_scope: u32,
    /// 0.
    pub reserved: u32,
}

/// A limit's name in answers: 1–16 visible ASCII bytes, lowest first, then zeros.
pub type Name = [u64; 2];

impl Policy {
    /// No limits, in use, without end.
    pub const UNLIMITED: Self = Self {
        limits: [Limit { algorithm: 0, flags: 0, count: 0, window: 0, interval: 0, tolerance: 0 }; LIMITS],
        names: [[0; 2]; LIMITS],
        len: 0,
        flags: Self::IN_USE,
        candidate: 0,
        tally: 0,
        until: u64::MAX,
        next: 0,
        tenant: 0,
        tenant_scope: 0,
        reserved: 0,
    };
    /// Flag: the slot has been written.
    pub const IN_USE: u32 = 1;
    /// Flag: what these limits would refuse is counted, and passes.
    pub const OBSERVE: u32 = 2;
}

/// What is counted for each [`Policy::tally`].
pub mod tally {
    /// Requests that its limits refused.
    pub const REFUSED: usize = 0;
    /// Requests that they would have refused, were they enforced.
    pub const WOULD_REFUSE: usize = 1;
    /// Requests that its candidate would have refused.
    pub const CANDIDATE: usize = 2;
    /// How many there are; a power of two.
    pub const LEN: usize = 4;
}

/// One limit, as the kernel computes with it. Times in ticks of 64 ns for windows, in ns for GCRA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(C)]
pub struct Limit {
    /// An [`Algorithm`]'s index.
    pub algorithm: u16,
    /// [`Limit::PENALIZES`].
    pub flags: u16,
    /// Requests per window; at most [`crate::limit::MAX_COUNT`]; 0 = all refused.
    pub count: u32,
    /// Window in ticks of [`crate::limit::TICK_NS`] ns.
    pub window: u64,
    /// GCRA: ns between two requests at the steady rate. Fixed: an [`align`]. Sliding: 0.
    pub interval: u64,
    /// GCRA: how far, in ns, a client may run ahead: (burst − 1) × interval.
    pub tolerance: u64,
}

impl Limit {
    /// Flag: a request that it refuses is counted, too: see [`crate::limit::penalize`].
    pub const PENALIZES: u16 = 1;
}

/// Where the windows of a fixed limit begin; numbers, since they lie in a map.
pub mod align {
    /// With a first request.
    pub const NONE: u64 = 0;
    /// At multiples of the window, whole seconds, since 1970-01-01 in UTC; those of seven days on Mondays.
    pub const MULTIPLE: u64 = 1;
    /// With the months of UTC; the limit's window is their nominal length.
    pub const MONTH: u64 = 2;
    /// With the years of UTC, likewise.
    pub const YEAR: u64 = 3;
}

/// How a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Algorithm {
    /// Two counters: this window's, and the last one's weighted by how much of it still overlaps.
    Sliding = 0,
    /// A window that begins with its first request, or as the calendar has it.
    Fixed = 1,
    /// A rate and a burst (generic cell rate algorithm).
    Gcra = 2,
}

/// The state of one limit: three words, each changed by compare-and-swap alone. See [`crate::limit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Bucket {
    /// Where the current window begins, in ticks of CLOCK_BOOTTIME from [`crate::limit::EPOCH`] on; in seconds of Unix time
    /// if it follows the calendar.
    pub window: u64,
    /// The counts of the current and the previous window.
    pub counts: u64,
    /// GCRA: theoretical arrival time, CLOCK_BOOTTIME in ns.
    pub arrival: u64,
}

/// What is used of a policy's limits by one of those that it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Buckets {
    /// One for each of the policy's limits, in their order.
    pub limits: [Bucket; LIMITS],
    /// One for each limit of its candidate.
    pub candidate: [Bucket; LIMITS],
}

impl Buckets {
    /// Words that they are made of.
    pub const WORDS: usize = 6 * LIMITS;

    /// Their words, as they lie in the maps: of each bucket the window, the counts and the arrival.
    pub fn words(&self) -> impl Iterator<Item = u64> {
        self.limits.iter().chain(&self.candidate).flat_map(|bucket| [bucket.window, bucket.counts, bucket.arrival])
    }

    /// Those of such words, each by its position.
    pub fn of_words(word: impl Fn(usize) -> u64) -> Self {
        let bucket = |number: usize| {
            let first = 3 * number;
            Bucket { window: word(first), counts: word(first + 1), arrival: word(first + 2) }
        };
        let limits = core::array::from_fn(bucket);
        Self { limits, candidate: core::array::from_fn(|number| bucket(LIMITS + number)) }
    }
}

/// All that the kernel keeps about a principal, what most requests touch first: of many principals each is met with its
/// entry in no cache, and a line is 64 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Meter {
    /// Requests passed.
    pub allowed: u64,
    /// The [`Principal`] as a word. Daemon → kernel.
    pub principal: u64,
    /// The second word of the tag whose [`crate::shortcut`] leads here. Daemon → kernel.
    pub key: u64,
    /// What is used of its limits.
    pub buckets: Buckets,
    /// Requests refused over a limit.
    pub limited: u64,
    /// Requests refused because the key was disabled or outside its validity.
    pub denied: u64,
    /// Requests that would have been refused, but the service or a limit that applies observes (they were passed; where only
    /// a limit observes they are in `allowed` too).
    pub would_refuse: u64,
    /// Requests that a candidate of limits that apply would have refused.
    pub candidate: u64,
    /// Requests with one of its keys that had a query parameter named like a key, too, passed or not.
    pub key_in_url: u64,
}

/// Whose buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(C)]
pub struct Scope {
    /// A [`scope`] number, or a route's or tenant's from [`scope::ROUTES`] on, which the daemon never gives to another;
    /// [`scope::SERVICE`] and [`scope::SOURCES_OF_KEY`] with [`Service::number`] in the upper half.
    pub rule: u64,
    /// Who: a [`crate::source::Source`], a key's tag, a principal and a client's number, or 0.
    pub subject: [u64; 2],
}

/// Numbers of the rules whose buckets are kept by [`Scope`].
pub mod scope {
    /// All requests of one source.
    pub const SOURCE: u64 = 1;
    /// Bad keys of one source; `candidate[0].arrival` is until when all are refused unread.
    pub const GUESSES: u64 = 2;
    /// CORS preflights of one source.
    pub const PREFLIGHT: u64 = 3;
    /// All requests of a service.
    pub const SERVICE: u64 = 4;
    /// Sources that are new to [`super::map::SOURCE_BUCKETS`].
    pub const ADMISSION: u64 = 5;
    /// One key's own limits.
    pub const KEY: u64 = 6;
    /// A client id of a principal.
    pub const CLIENT: u64 = 7;
    /// Distinct keys of one source; `limits[0].counts` is how many, `limits[0].window` since when.
    pub const KEYS_OF_SOURCE: u64 = 8;
    /// Distinct sources of one key; likewise.
    pub const SOURCES_OF_KEY: u64 = 9;
    /// Requests of one source without a key.
    pub const UNKEYED: u64 = 10;
    /// A key that is not registered; with [`super::Service::number`] in the upper half, since the subject is the tag alone.
    pub const UNREGISTERED: u64 = 11;
    /// Such keys that are new to [`super::map::SOURCE_BUCKETS`]; likewise.
    pub const UNREGISTERED_ADMISSION: u64 = 12;
    /// The first number of routes, named limits and tenants.
    pub const ROUTES: u64 = 16;
    /// The subject's second word for all sources that are not let in: no address family. The first is [`super::Service::number`].
    pub const OVERFLOW: u64 = u64::MAX;

    /// The number of a rule that the service of this [`super::Service::number`] counts for itself.
    #[must_use]
    #[inline(always)]
    pub const fn of_service(rule: u64, number: u32) -> u64 {
        ((number as u64) << 32) | rule
    }

    /// The number of a rule, whichever service counts it for itself.
    #[must_use]
    #[inline(always)]
    pub const fn own(rule: u64) -> u64 {
        rule & u32::MAX as u64
    }

    /// The [`super::Service::number`] in a rule.
    #[must_use]
    #[inline(always)]
    pub const fn service(rule: u64) -> u32 {
        (rule >> 32) as u32
    }
}

/// Too many of one thing for one of another: distinct keys of a source, distinct sources of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(C)]
pub struct Spread {
    /// The most within a window; 0 = any number.
    pub most: u32,
    /// A [`SpreadAction`].
    pub action: u32,
    /// ns of a window, which begins with its first sighting.
    pub window: u64,
}

/// What follows when a [`Spread`] is exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum SpreadAction {
    /// It is counted.
    Alert = 0,
    /// Requests with those that came too late are refused.
    Limit = 1,
    /// Likewise, and the source gets a penalty.
    Penalty = 2,
}

/// A pair that was seen within a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(C)]
pub struct Sighting {
    /// [`scope::KEYS_OF_SOURCE`] or [`scope::SOURCES_OF_KEY`].
    pub rule: u64,
    /// When the window began.
    pub window: u64,
    /// The source.
    pub source: [u64; 2],
    /// The key.
    pub key: [u64; 2],
}

/// All rules of a service but the limits of its principals. Never changed in place while in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(C)]
pub struct Ruleset {
    /// [`Ruleset::STRICT_GUESSES`], [`Ruleset::PROXY_1`], [`Ruleset::PROXY_2`].
    pub flags: u32,
    /// Index in [`map::STATES`] that a path begins in, and in the upper half the number of the layout that it is of, which no
    /// other has that a path may have begun under; 0 = paths are not looked at.
    pub routes: u32,
    /// Policy slot for each source; 0 = none. So for the slots below.
    pub source: u32,
    /// Policy slot for all requests together.
    pub service: u32,
    /// Policy slot for the bad keys of each source.
    pub guesses: u32,
    /// Policy slot for the CORS preflights of each source; 0 = they need a key.
    pub preflight: u32,
    /// Policy slot for requests of each source without a key; 0 = they are refused.
    pub unkeyed: u32,
    /// Policy slot for each key that is not registered; 0 = they are refused.
    pub unregistered: u32,
    /// Policy slot for such keys that are new.
    pub unregistered_admission: u32,
    /// Policy slot for sources that are new.
    pub admission: u32,
    /// Bytes of `client`; 0 = clients are not told apart.
    pub client_len: u32,
    /// Which of the leaves behind [`State::leaf`] is this service's.
    pub leaf: u32,
    /// Name of the field with the client's id, in lower case, then zeros; at most 31 bytes.
    pub client: [u64; 4],
    /// Names of the fields that a key may be in, as that of `client`; words of 0 = none. If there is none at all it is
    /// `X-API-Key`.
    pub keys: [[u64; 4]; Ruleset::KEYS],
    /// The bit of [`map::PROXIES`] that those have whose `X-Forwarded-For` is believed; 0 = nobody's is. Two sets of rules that
    /// lie beside each other have two bits.
    pub trusts: u64,
    /// ns for which a source over `guesses` is refused unread for bad keys.
    pub guess_penalty_ns: u64,
    /// Distinct keys of one source.
    pub keys_of_source: Spread,
    /// Distinct sources of one key.
    pub sources_of_key: Spread,
    /// Most open connections of one source; 0 = any number.
    pub connections_of_source: u32,
    /// Most open connections of one principal; likewise.
    pub connections_of_principal: u32,
    /// For the daemon: where its paths lie in [`map::STATES`], [`map::LEAVES`] and [`map::RULES`].
    pub extents: [Extent; 3],
}

/// Entries of an array side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(C)]
pub struct Extent {
    /// The first.
    pub first: u32,
    /// How many.
    pub len: u32,
}

impl Ruleset {
    /// Most fields that a key may be in.
    pub const KEYS: usize = 3;
    /// Where in [`Ruleset::routes`] the number of the layout begins.
    pub const LAYOUT: u32 = 16;
    /// Flag: a source over `guesses` is refused for good keys too.
    pub const STRICT_GUESSES: u32 = 1;
    /// Flag: connections of trusted proxies begin with a header of the PROXY protocol, version 1.
    pub const PROXY_1: u32 = 4;
    /// Flag: likewise, version 2; never beside [`Ruleset::PROXY_1`].
    pub const PROXY_2: u32 = 8;

    /// Whether sources or principals may have so many connections only.
    #[must_use]
    #[inline(always)]
    pub const fn counts_connections(&self) -> bool {
        (self.connections_of_source | self.connections_of_principal) != 0
    }
}

/// A segment of a path that leads on from a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(C)]
pub struct Edge {
    /// The state.
    pub state: u64,
    /// The segment's tag under the key secret, once decoded.
    pub segment: [u64; 2],
}

/// A state of the automaton of paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(C)]
pub struct State {
    /// The state behind any segment that no [`Edge`] leads on by; 0 = the path is not routed.
    pub other: u32,
    /// Index in [`map::LEAVES`] of a path that ends here: of the first, if there is one for each of several services; 0 =
    /// no rules.
    pub leaf: u32,
}

/// The rules that a service has of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(C)]
pub struct Leaf {
    /// Index in [`map::RULES`] for each method.
    pub rules: [u32; METHODS],
    /// [`Service::number`]: no other service is to be judged by them.
    pub service: u32,
    /// 0.
    pub reserved: u32,
}

/// What holds for a path and method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(C)]
pub struct Rule {
    /// Which exemptions are for this path and method, as bits.
    pub exempt: u64,
    /// [`Scope::rule`] of its buckets.
    pub scope: u32,
    /// Policy slot; 0 = no limits of its own.
    pub policy: u32,
    /// A [`Per`].
    pub per: u32,
    /// Requests that one counts as, 1 to [`crate::limit::MAX_COST`].
    pub cost: u32,
    /// [`Rule::PUBLIC`].
    pub flags: u32,
    /// Tells it from the service's other rules, and stays when it lies elsewhere; 0 = no rule.
    pub identity: u32,
}

impl Rule {
    /// Flag: no key is needed.
    pub const PUBLIC: u32 = 1;
}

/// For whom a rule's limits are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Per {
    /// Each principal.
    Principal = 0,
    /// Each source.
    Source = 1,
    /// All together.
    Service = 2,
}

/// A declared client id of a principal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(C)]
pub struct Client {
    /// The principal's index.
    pub principal: u64,
    /// The id's tag under the key secret; 0 for all ids that are not declared, and for none.
    pub id: [u64; 2],
}

/// What a client id has of its principal's budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Share {
    /// Policy slot.
    pub policy: u32,
    /// The id's number within the principal, for its [`Scope`]; never given to another.
    pub number: u32,
}

impl Share {
    /// The word that lies in the map.
    #[must_use]
    pub const fn to_word(self) -> u64 {
        ((self.number as u64) << 32) | self.policy as u64
    }

    /// Reads the map's word.
    #[must_use]
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self { policy: word as u32, number: (word >> 32) as u32 }
    }
}

/// Keys that take turns in one packet, for measurements: who runs a program many times on the same bytes would measure one
/// key only, all of whose entries lie in the nearest cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Turn {
    /// Where in the frame the key's eight last bytes lie.
    pub at: u64,
    /// How many keys there are, at least 1.
    pub keys: u64,
    /// How far on the next one is, modulo `keys`: prime to it, so that each has its turn.
    pub stride: u64,
    /// The one whose turn it is.
    pub number: u64,
    /// Its eight bytes: [`Turn::letters`].
    pub letters: u64,
}

impl Turn {
    /// The eight bytes, in memory's order, that tell a key by its number: letters from `a` to `p`.
    #[must_use]
    #[inline(always)]
    pub const fn letters(number: u64) -> u64 {
        let halves = (number | (number << 16)) & 0x0000_ffff_0000_ffff;
        let bytes = (halves | (halves << 8)) & 0x00ff_00ff_00ff_00ff;
        let digits = (bytes | (bytes << 4)) & 0x0f0f_0f0f_0f0f_0f0f;
        digits + u64::from_ne_bytes([b'a'; 8])
    }
}

/// A host of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(C)]
pub struct Host {
    /// [`Service::leader`].
    pub leader: u64,
    /// [`crate::http::host::tag`] of its name under the key secret; 0 for all that have no entry, and for none.
    pub name: [u64; 2],
}

/// A guarded service. Each field is valid by itself, so an update needs no atomicity over them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Service {
    /// [`Service::OBSERVE`], [`Service::UPGRADE`], [`Service::ANSWER`], [`Service::KEEP`],
    /// [`Service::PENALISE_SHARED`], [`Service::HOSTS`], [`Service::SPARE`].
    pub flags: u32,
    /// Longest request head in bytes, request line and final CRLF included.
    pub max_head: u32,
    /// Most field lines of a head.
    pub max_fields: u32,
    /// Longest request target in bytes.
    pub max_target: u32,
    /// Largest declared `Content-Length` in bytes.
    pub max_body: u64,
    /// ns from the first byte of a head within which it must end.
    pub head_timeout_ns: u64,
    /// Index of its first entry in [`map::ANSWERS`].
    pub answers: u32,
    /// Refusals of one source that are answered, a second and at once; those beyond are reset. 0 = all.
    pub answers_per_second: u32,
    /// Refusals of one source that are met with anything, likewise; with the next its penalty begins. 0 = all.
    pub tolerated_per_second: u32,
    /// Bits of an IPv4 address that make a source, 1–32.
    pub source_v4: u16,
    /// Bits of an IPv6 address that make a source, 1–64.
    pub source_v6: u16,
    /// ns of a source's first penalty, a day at most; each further one takes twice as long. 0 = none.
    pub penalty_ns: u64,
    /// ns of the longest penalty, at least `penalty_ns`.
    pub penalty_most_ns: u64,
    /// Index in [`map::RULESETS`]; 0 = no rules but the limits of principals.
    pub rules: u32,
    /// The slot in its place while a trial goes on; 0 = the same.
    pub rules_trial: u32,
    /// Tells it from all other services that there are or were; 0 in slot 0, and in no other that is in use.
    pub number: u32,
    /// Number of the service that a port leads to: of those that are told apart by host the one that is asked before the
    /// host is known; else its own. Sources have their penalties under it.
    pub leader: u32,
    /// [`crate::verdict::Action`] for each [`crate::verdict::Reason`], by index.
    pub actions: [u8; REASONS],
}

impl Service {
    /// Flag: count what would be refused, and pass it.
    pub const OBSERVE: u32 = 1;
    /// Flag: allow `CONNECT` and `Upgrade`; what follows on the connection is not judged.
    pub const UPGRADE: u32 = 2;

    /// Flag: [`crate::verdict::Action::Answer`] is among the actions, and the program that answers is attached.
    pub const ANSWER: u32 = 4;

    /// Flag: connections of refused requests may be kept: the program that translates what servers send is attached.
    pub const KEEP: u32 = 8;

    /// Flag: penalties also for sources behind which registered keys are served.
    pub const PENALISE_SHARED: u32 = 16;

    /// Flag: the request's host says which service it is for ([`map::HOSTS`]).
    pub const HOSTS: u32 = 32;

    /// Flag: requests for its hosts are counted only, though others on its ports are refused.
    pub const SPARE: u32 = 64;

    /// Whether what is decided on requests that are for it is counted only.
    #[must_use]
    #[inline(always)]
    pub const fn spares(&self) -> bool {
        self.flags & (Self::OBSERVE | Self::SPARE) != 0
    }

    /// Whether it only counts what it would refuse.
    #[must_use]
    #[inline(always)]
    pub const fn observes(&self) -> bool {
        self.flags & Self::OBSERVE != 0
    }

    /// The [`crate::verdict::Action`] for the [`crate::verdict::Reason`] of this index.
    #[must_use]
    #[inline(always)]
    pub const fn action(&self, reason: u32) -> u8 {
        self.actions[reason as usize & (REASONS - 1)]
    }

    /// The bounds that no service exceeds (DESIGN: 16 KiB, 100 fields, 8190-byte target).
    pub const DEFAULT: Self = Self {
        flags: 0,
        max_head: 16_384,
        max_fields: 100,
        max_target: 8_190,
        max_body: 1 << 40,
        head_timeout_ns: 30_000_000_000,
        answers: 0,
        answers_per_second: 0,
        tolerated_per_second: 0,
        source_v4: 32,
        source_v6: 64,
        penalty_ns: 0,
        penalty_most_ns: 0,
        rules: 0,
        rules_trial: 0,
        number: 0,
        leader: 0,
        actions: [crate::verdict::Action::Reset as u8; REASONS],
    };
}

/// Most bytes of an answer's text; with the [`Point`]s filled in it must fit the smallest MSS that is common (536 for
/// IPv4), or it may be lost on the way.
pub const ANSWER_TEXT: usize = 1024;
/// Most places of an answer that are filled in; a power of two.
pub const POINTS: usize = 16;

/// The responses that the kernel sends in place of a server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum AnswerKind {
    /// 401: no key, or none that is good.
    Unauthorized = 0,
    /// 403: what this service does not allow.
    Forbidden = 1,
    /// 400: not the one strict reading of RFC 9112.
    BadRequest = 2,
    /// 413: the declared body is too large.
    ContentTooLarge = 3,
    /// 414: the target is too long.
    UriTooLong = 4,
    /// 431: the head is too large.
    FieldsTooLarge = 5,
    /// 429: over a limit, which is named.
    TooManyRequests = 6,
    /// 429: keys are being guessed, tried out or passed on.
    AbnormalUsage = 7,
    /// 421: no service is for this host.
    Misdirected = 8,
}

/// A response as text with places to be filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Answer {
    /// Bytes of `text` that count; 0 where nothing is answered.
    pub len: u32,
    /// Of those, the bytes before the body: all that a HEAD request is answered.
    pub head: u32,
    /// How many of `points` count.
    pub filled: u32,
    /// 0.
    pub reserved: u32,
    /// What is filled in, by its place in the text, ascending; in the body only what has a fixed length.
    pub points: [Point; POINTS],
    /// Status line, fields, empty line, body.
    pub text: [u8; ANSWER_TEXT],
}

/// A place in an answer that is filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Point {
    /// Bytes of the text before it.
    pub at: u16,
    /// A [`Value`].
    pub value: u16,
}

/// What is filled into an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Value {
    /// The date as RFC 9110 §5.6.7 writes it, 29 bytes.
    Date = 0,
    /// Whole seconds until a request can pass, rounded up, at least 1.
    RetryAfter = 1,
    /// Requests that the limit allows in a window.
    Quota = 2,
    /// The limit's window in whole seconds.
    Window = 3,
    /// `keep-alive` or `close`.
    Connection = 4,
    /// The limit's [`Name`].
    Name = 5,
    /// Likewise, in quotes, with spaces behind it up to [`QUOTED`] bytes: for a body, whose length is told before it.
    QuotedName = 6,
}

/// Bytes of [`Value::QuotedName`].
pub const QUOTED: usize = 18;

/// Offsets in bytes within the running kernel's structures, from its BTF.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct SocketOffsets {
    /// `tcp_sock.rcv_nxt`, u32.
    pub rcv_nxt: u32,
    /// `tcp_sock.bytes_received`, u64.
    pub bytes_received: u32,
    /// `tcp_sock.snd_una`, u32.
    pub snd_una: u32,
    /// `tcp_sock.bytes_acked`, u64.
    pub bytes_acked: u32,
    /// `tcp_sock.write_seq`, u32.
    pub write_seq: u32,
    /// 0.
    pub reserved: u32,
    /// `tcp_request_sock.rcv_nxt`, u32.
    pub request_rcv_nxt: u32,
    /// `tcp_request_sock.snt_isn`, u32.
    pub request_snt_isn: u32,
}

/// Likewise, of what says whose a socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct EndsOffsets {
    /// `inet_sock.inet_sport`, u16: the socket's own port, which is still there when it closes, unlike `skc_num`.
    pub port: u32,
    /// `sock_common.skc_dport`, u16.
    pub remote_port: u32,
    /// `sock_common.skc_family`, u16.
    pub family: u32,
    /// `sock_common.skc_state`, u8.
    pub state: u32,
    /// `sock_common.skc_rcv_saddr`, u32.
    pub v4: u32,
    /// `sock_common.skc_daddr`, u32.
    pub remote_v4: u32,
    /// `sock_common.skc_v6_rcv_saddr`, 16 bytes.
    pub v6: u32,
    /// `sock_common.skc_v6_daddr`, 16 bytes.
    pub remote_v6: u32,
    /// `sock_common.skc_net`, a pointer.
    pub net: u32,
    /// `net.ns` and in it `ns_common.inum`, u32.
    pub inum: u32,
    /// `sock.sk_protocol`, u16.
    pub protocol: u32,
    /// 0.
    pub reserved: u32,
}

const _: () = {
    assert!(size_of::<KeyTag>() == 16);
    assert!(size_of::<Key>() == 32);
    assert!(size_of::<Limit>() == 32);
    assert!(size_of::<Policy>() == 232);
    assert!(size_of::<Bucket>() == 24);
    assert!(size_of::<Buckets>() == 192);
    assert!(size_of::<Meter>() == 256);
    assert!(size_of::<Scope>() == 24);
    assert!(size_of::<Sighting>() == 48);
    assert!(size_of::<Ruleset>() == 256);
    assert!(size_of::<Edge>() == 24);
    assert!(size_of::<State>() == 8);
    assert!(size_of::<Leaf>() == 40);
    assert!(size_of::<Rule>() == 32);
    assert!(size_of::<Client>() == 24);
    assert!(size_of::<Host>() == 24);
    assert!(size_of::<Service>() == 112);
    assert!(size_of::<Answer>() == 16 + 4 * POINTS + ANSWER_TEXT);
    assert!(size_of::<SocketOffsets>() == 32);
    assert!(size_of::<EndsOffsets>() == 48);
};
