//! Drives the HTTP machine over a stream as the kernel does: segment by segment, window by window, step by step.

use enforcer_ebpf::abi::{KeyTag, Service};
use enforcer_ebpf::http::bytes::{BASE, CAPACITY, Window};
use enforcer_ebpf::http::{Cursor, Machine, Refusal, Step};

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

/// A machine with its window.
pub struct Reader {
    machine: Machine,
    window: Box<Window>,
    bounds: Service,
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
        Self {
            machine: Machine::default(),
            window: Box::default(),
            bounds: *bounds,
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
        loop {
            self.steps += 1;
            match self.machine.step(&self.window, &mut cursor, &self.bounds, SECRET) {
                Step::More => {}
                Step::Starved => break,
                Step::Head => {
                    let at = self.taken + cursor.pos as usize - BASE as usize;
                    self.seen.push(Seen::Head { key: self.machine.key(), at });
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
