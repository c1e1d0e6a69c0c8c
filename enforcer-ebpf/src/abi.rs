//! What lies in the BPF maps: names, keys, values, sizes. Both sides are compiled from this file.
//!
//! [`ABI`] names the directory of the pins; any change of a type here must change it. All values are multiples of
//! eight bytes without padding, so that no uninitialised byte reaches a map.

/// Number of this layout; part of the pin directory's name (`v3`).
pub const ABI: u32 = 3;

/// Names of the maps, with who writes and who reads each.
pub mod map {
    /// `Array<u32>`, index = TCP port: service slot + 1, or 0 where nothing is guarded. Daemon → kernel.
    pub const PORTS: &str = "PORTS";
    /// `Array<Service>`, index = service slot. Daemon → kernel.
    pub const SERVICES: &str = "SERVICES";
    /// `HashMap<KeyTag, Key>`. Daemon → kernel.
    pub const KEYS: &str = "KEYS";
    /// `Array<u64>` (mmapable), index = principal: [`super::Principal`] as a word. Daemon → kernel.
    pub const PRINCIPALS: &str = "PRINCIPALS";
    /// `Array<Policy>`, index = policy slot; a slot is never changed while a principal names it. Daemon → kernel.
    pub const POLICIES: &str = "POLICIES";
    /// `Array<Meter>` (mmapable), index = principal. Kernel → daemon; the daemon only clears one before it hands the
    /// principal's index out.
    pub const METERS: &str = "METERS";
    /// `PerCpuArray<u64>`, index = [`crate::verdict::Count::index`]. Kernel → daemon.
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
    /// `Array<u64>`, one entry: CLOCK_REALTIME − CLOCK_BOOTTIME in ns, for the dates of answers. Daemon → kernel.
    pub const CLOCK: &str = "CLOCK";
    /// `LruHashMap<source::Source, source::Record>`: the sources of refused requests. Kernel; the daemon lists them, and
    /// ends penalties.
    pub const SOURCES: &str = "SOURCES";
    /// `Array<u64>`, one entry: when the last of all penalties ends, CLOCK_BOOTTIME in ns. Kernel → daemon.
    pub const PENALTIES: &str = "PENALTIES";
    /// `PerCpuArray<Scratch>`: the packet under judgement. Kernel only.
    pub const SCRATCH: &str = "SCRATCH";
    /// `PerCpuArray<answer::Sheet>`: the answer that is being written. Kernel only.
    pub const SHEET: &str = "SHEET";

    /// The maps that outlive the daemon.
    pub const PINNED: &[&str] = &[
        PORTS, SERVICES, KEYS, PRINCIPALS, POLICIES, METERS, TOTALS, FLOWS, MARKS, CHARGES, HANDSHAKES, ANSWERS, CLOCK,
        SOURCES, PENALTIES,
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
}

/// Entries of [`map::PORTS`].
pub const PORTS: u32 = 65_536;
/// Entries of [`map::SERVICES`].
pub const SERVICES: u32 = 64;
/// Default entries of [`map::KEYS`].
pub const KEYS: u32 = 131_072;
/// Default entries of [`map::PRINCIPALS`] and [`map::METERS`]; index 0 is never given out.
pub const PRINCIPALS: u32 = 131_072;
/// Default entries of [`map::POLICIES`]; index 0 is never given out.
pub const POLICIES: u32 = 131_072;
/// Entries of [`map::TOTALS`].
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
/// Entries of [`map::SOURCES`].
pub const SOURCES: u32 = 65_536;
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
    /// Index in [`map::PRINCIPALS`] and [`map::METERS`].
    pub principal: u32,
    /// [`Key::DISABLED`] or 0.
    pub flags: u32,
    /// First valid instant, CLOCK_BOOTTIME in ns; 0 = always.
    pub not_before: u64,
    /// First instant no longer valid, CLOCK_BOOTTIME in ns; `u64::MAX` = never.
    pub expires: u64,
}

impl Key {
    /// Flag: the key is refused with [`crate::verdict::Reason::KeyDisabled`].
    pub const DISABLED: u32 = 1;
}

/// Which policy a principal is under: one word, so that a change is one store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Principal {
    /// Index in [`map::POLICIES`]; 0 = none, which refuses.
    pub policy: u32,
}

impl Principal {
    /// The word that lies in the map.
    #[must_use]
    pub const fn to_word(self) -> u64 {
        self.policy as u64
    }

    /// Reads the map's word.
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        Self { policy: word as u32 }
    }
}

/// Limits that apply together. Never changed in place while in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Policy {
    /// The limits; those behind `len` are ignored.
    pub limits: [Limit; LIMITS],
    /// How many of `limits` apply, 0 = unlimited (spelled out by the operator).
    pub len: u32,
    /// [`Policy::IN_USE`] where the slot holds a policy; a principal that names another refuses everything.
    pub flags: u32,
}

impl Policy {
    /// Flag: the slot has been written.
    pub const IN_USE: u32 = 1;
}

/// One limit, as the kernel computes with it. Times in ticks of 64 ns for windows, in ns for GCRA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Limit {
    /// An [`Algorithm`]'s index.
    pub algorithm: u32,
    /// Requests per window; at most [`crate::limit::MAX_COUNT`]; 0 = all refused.
    pub count: u32,
    /// Window in ticks of [`crate::limit::TICK_NS`] ns.
    pub window: u64,
    /// GCRA: ns between two requests at the steady rate.
    pub interval: u64,
    /// GCRA: how far, in ns, a client may run ahead: (burst − 1) × interval.
    pub tolerance: u64,
}

/// How a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Algorithm {
    /// Two counters: this window's, and the last one's weighted by how much of it still overlaps.
    Sliding = 0,
    /// A window that begins with its first request.
    Fixed = 1,
    /// A rate and a burst (generic cell rate algorithm).
    Gcra = 2,
}

/// The state of one limit: three words, each changed by compare-and-swap alone. See [`crate::limit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Bucket {
    /// Where the current window begins.
    pub window: u64,
    /// The counts of the current and the previous window.
    pub counts: u64,
    /// GCRA: theoretical arrival time, CLOCK_BOOTTIME in ns.
    pub arrival: u64,
}

/// All that the kernel keeps about a principal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Meter {
    /// One for each of the policy's limits, in their order.
    pub buckets: [Bucket; LIMITS],
    /// Requests passed.
    pub allowed: u64,
    /// Requests refused over a limit.
    pub limited: u64,
    /// Requests refused because the key was disabled or outside its validity.
    pub denied: u64,
    /// Requests that would have been refused, but the service observes (they were passed, and are not in `allowed`).
    pub would_refuse: u64,
}

/// A guarded service. Each field is valid by itself, so an update needs no atomicity over them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Service {
    /// [`Service::OBSERVE`], [`Service::UPGRADE`], [`Service::ANSWER`], [`Service::KEEP`],
    /// [`Service::PENALISE_SHARED`].
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
    /// 429, over the policy's first limit; the other limits' follow, by index.
    TooManyRequests = 6,
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
    /// What is filled in, by its place in the text, ascending; all of them before the body.
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
}

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

const _: () = {
    assert!(size_of::<KeyTag>() == 16);
    assert!(size_of::<Key>() == 24);
    assert!(size_of::<Limit>() == 32);
    assert!(size_of::<Policy>() == 136);
    assert!(size_of::<Bucket>() == 24);
    assert!(size_of::<Meter>() == 128);
    assert!(size_of::<Service>() == 96);
    assert!(size_of::<Answer>() == 16 + 4 * POINTS + ANSWER_TEXT);
    assert!(size_of::<SocketOffsets>() == 32);
};
