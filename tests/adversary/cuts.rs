//! How a stream is cut into the pieces that the client sends, each in a segment of its own.

/// A way of cutting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Not at all.
    Whole,
    /// Behind every byte; of a long stream, behind the first and last ones.
    Bytes,
    /// Within every line end, behind every colon and blank, and before and behind every line end.
    Lines,
    /// At a few places that differ by case and run, and are the same in every execution.
    Random,
}

/// How many bytes at each end of a long stream become pieces of their own.
const ENDS: usize = 160;
/// How many pieces a stream is cut into at most.
const MOST: usize = 400;

impl Cut {
    pub(crate) const EACH: [Self; 4] = [Self::Whole, Self::Bytes, Self::Lines, Self::Random];

    /// The pieces of `stream`; `seed` decides where the random ones end.
    pub(crate) fn pieces(self, stream: &[u8], seed: u64) -> Vec<&[u8]> {
        let len = stream.len();
        let mut places: Vec<usize> = match self {
            Self::Whole => Vec::new(),
            Self::Bytes => (1..len).filter(|place| *place <= ENDS || *place + ENDS >= len).collect(),
            Self::Lines => (1..len).filter(|place| is_edge(stream[place - 1], stream[*place])).take(MOST).collect(),
            Self::Random => {
                let mut state = seed;
                let count = 1 + next(&mut state) % 8;
                (0..count).map(|_| next(&mut state) as usize % len.max(1)).filter(|place| *place > 0).collect()
            }
        };
        places.sort_unstable();
        places.dedup();
        let mut pieces = Vec::new();
        let mut begin = 0;
        for end in places.into_iter().chain([len]) {
            pieces.push(&stream[begin..end]);
            begin = end;
        }
        pieces
    }
}

fn is_edge(before: u8, behind: u8) -> bool {
    let edge = |byte: u8| matches!(byte, b'\r' | b'\n' | b':' | b' ');
    edge(before) || edge(behind)
}

/// The next number of a xorshift generator.
fn next(state: &mut u64) -> u64 {
    let mut value = (*state).max(1);
    value ^= value << 13;
    value ^= value >> 7;
    value ^= value << 17;
    *state = value;
    value >> 11
}
