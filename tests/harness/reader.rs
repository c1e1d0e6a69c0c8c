//! Drives the HTTP machine over a stream as the kernel does: segment by segment, window by window, step by step.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;

use enforcer_ebpf::abi::{KeyTag, Ruleset, Service};
use enforcer_ebpf::http::bytes::{BASE, CAPACITY, Window};
use enforcer_ebpf::http::{Cursor, Lookup, Machine, Refusal, Step, Terms};
use enforcer_ebpf::source::Address;

/// The secret of the key tags in tests without a daemon.
pub const SECRET: [u64; 2] = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];

/// What the machine said of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A head is complete, with this key; `at` counts the stream's bytes up to its end.
    Head {
        /// The key's tag.
        key: Option<KeyTag>,
        /// Where the head ends.
        at: usize,
    },
    /// Nothing from here on may be seen.
    Refused(Refusal),
}

/// What the machine found in a head beside the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// An [`enforcer_ebpf::http::method`] number.
    pub method: u32,
    /// Where the path ended in the automaton.
    pub route: u32,
    /// The client id's tag.
    pub client: [u64; 2],
    /// The host's tag, where services are told apart by it.
    pub host: [u64; 2],
    /// Where a trusted proxy says that it comes from.
    pub source: Option<Address>,
    /// Whether it is a CORS preflight.
    pub is_preflight: bool,
    /// Whether a parameter is named like a key.
    pub has_key_in_url: bool,
    /// Whether there is what is often a key where none is taken from.
    pub has_key_elsewhere: bool,
}

/// The rules that a stream is read by, and what is looked up under them.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// The rules.
    pub ruleset: Ruleset,
    /// The states that segments lead to.
    pub edges: BTreeMap<(u32, KeyTag), u32>,
    /// Those that any other segment leads to.
    pub others: BTreeMap<u32, u32>,
    /// The trusted proxies.
    pub proxies: Vec<Address>,
    /// Where the connection comes from.
    pub peer: Address,
    /// The segments that were looked up.
    pub walked: RefCell<Vec<KeyTag>>,
}

/// An address as the machine has it.
#[must_use]
pub fn words(address: IpAddr) -> Address {
    let bytes = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    };
    let (words, _) = bytes.as_chunks();
    [u64::from_ne_bytes(words[0]), u64::from_ne_bytes(words[1])]
}

/// The address of this text, likewise.
///
/// # Panics
/// When it is none.
#[must_use]
pub fn address(text: &str) -> Address {
    words(text.parse().expect("an address"))
}

impl Rules {
    /// Rules under which every segment is looked up, and leads to state 1.
    #[must_use]
    pub fn of_any_path() -> Self {
        let ruleset = Ruleset { routes: 1, ..Ruleset::default() };
        Self { ruleset, others: BTreeMap::from([(1, 1)]), ..Self::default() }
    }
}

impl Lookup for Rules {
    fn next(&self, state: u32, segment: KeyTag) -> u32 {
        assert_ne!(state, 0, "looked up on a path that is not routed");
        self.walked.borrow_mut().push(segment);
        let other = || self.others.get(&state).copied().unwrap_or_default();
        self.edges.get(&(state, segment)).copied().unwrap_or_else(other)
    }

    fn is_trusted(&self, address: Address, trusts: u64) -> bool {
        trusts != 0 && self.proxies.contains(&address)
    }
}

/// A machine with its window.
pub struct Reader {
    machine: Machine,
    window: Box<Window>,
    bounds: Service,
    rules: Rules,
    found: Vec<Found>,
    taken: usize,
    steps: usize,
    seen: Vec<Seen>,
}

impl Reader {
    /// Reads a stream that comes in these segments.
    #[must_use]
    pub fn read<'a>(segments: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut reader = Self::within(&Service::DEFAULT);
        for segment in segments {
            reader.go_on(segment);
        }
        reader
    }

    /// Begins to read under these bounds.
    #[must_use]
    pub fn within(bounds: &Service) -> Self {
        Self::by(bounds, &Rules::default())
    }

    /// Reads a stream that comes in these segments by these rules, of a service whose ruleset is in slot 1.
    #[must_use]
    pub fn read_by<'a>(rules: &Rules, segments: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut reader = Self::by(&Service { rules: 1, ..Service::DEFAULT }, rules);
        for segment in segments {
            reader.go_on(segment);
        }
        reader
    }

    /// Begins to read under these bounds and rules.
    #[must_use]
    pub fn by(bounds: &Service, rules: &Rules) -> Self {
        let mut machine = Machine::default();
        let headers = rules.ruleset.flags & (Ruleset::PROXY_1 | Ruleset::PROXY_2);
        if headers != 0 && rules.is_trusted(rules.peer, rules.ruleset.trusts) {
            machine.await_header(headers == Ruleset::PROXY_2);
        }
        Self {
            machine,
            window: Box::default(),
            bounds: *bounds,
            rules: rules.clone(),
            found: Vec::new(),
            taken: 0,
            steps: 0,
            seen: Vec::new(),
        }
    }

    /// Reads the stream's next segment; nothing behind a refusal.
    pub fn go_on(&mut self, segment: &[u8]) {
        for piece in segment.chunks(CAPACITY as usize) {
            self.take(piece);
        }
    }

    fn take(&mut self, piece: &[u8]) {
        if self.is_refused() {
            return;
        }
        let begin = self.machine.resume(&mut self.window);
        self.window.fresh()[..piece.len()].copy_from_slice(piece);
        let mut cursor = Cursor { pos: begin, end: BASE + piece.len() as u32 };
        let terms = Terms { service: &self.bounds, rules: &self.rules.ruleset, peer: self.rules.peer, secret: SECRET };
        loop {
            self.steps += 1;
            let step = if self.machine.is_before_http() {
                self.machine.header(&self.window, &mut cursor)
            } else {
                self.machine.step(&self.window, &mut cursor, &terms, &self.rules)
            };
            match step {
                Step::More => {}
                Step::Starved => break,
                Step::Head => {
                    let at = self.taken + cursor.pos as usize - BASE as usize;
                    self.seen.push(Seen::Head { key: self.machine.key(), at });
                    self.found.push(Found {
                        method: self.machine.method_number(),
                        route: self.machine.route(),
                        client: self.machine.client(),
                        host: self.machine.host(),
                        source: self.machine.forwarded(),
                        is_preflight: self.machine.is_preflight(),
                        has_key_elsewhere: self.machine.has_key_elsewhere(),
                        has_key_in_url: self.machine.has_key_in_url(),
                    });
                }
                Step::Refused(refusal) => {
                    self.seen.push(Seen::Refused(refusal));
                    return;
                }
            }
        }
        self.machine.suspend(&self.window, cursor);
        self.taken += piece.len();
    }

    /// What was said, in the stream's order.
    #[must_use]
    pub fn seen(&self) -> &[Seen] {
        &self.seen
    }

    /// What was found in each head, in the stream's order.
    #[must_use]
    pub fn found(&self) -> &[Found] {
        &self.found
    }

    /// The segments of paths that were looked up, in the stream's order.
    #[must_use]
    pub fn walked(&self) -> Vec<KeyTag> {
        self.rules.walked.borrow().clone()
    }

    /// How many steps the machine took.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// Whether the stream was refused.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        matches!(self.seen.last(), Some(Seen::Refused(_)))
    }

    /// Whether the stream ends between two requests.
    #[must_use]
    pub fn is_between_requests(&self) -> bool {
        self.machine.is_between_requests()
    }

    /// Whether what follows would be read as the other reader would read it.
    #[must_use]
    pub fn ends_as(&self, other: &Self) -> bool {
        self.machine.is_as(&other.machine)
    }
}
