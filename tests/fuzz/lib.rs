//! Fuzz targets: what must hold for any input, as plain functions, and the mutations that make good inputs.
//!
//! The same functions are driven by libFuzzer (`cargo xtask fuzz`), by the kept corpus in `cargo test`, and by
//! `cargo xtask fuzz --reproduce`. An input is text as far as it can be: a stream of HTTP, a script of segments, a list
//! of limits and times.

pub mod http;
pub mod limits;
pub mod mutation;
pub mod reference;
pub mod seeds;
pub mod segments;

use enforcer_tests::random::Random;

/// What a target says of an input: nothing, or which property does not hold, in words.
pub type Check = Result<(), String>;

/// A fuzz target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Streams of HTTP.
    Http,
    /// Scripts of segments.
    Segments,
    /// Limits under a rising clock.
    Limits,
}

impl Target {
    /// All targets.
    pub const ALL: [Self; 3] = [Self::Http, Self::Segments, Self::Limits];

    /// Its name, for the command line and for its folder of the corpus.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Segments => "segments",
            Self::Limits => "limits",
        }
    }

    /// What its inputs are made of.
    #[must_use]
    pub fn tokens(self) -> Vec<&'static [u8]> {
        match self {
            Self::Http => mutation::TOKENS.to_vec(),
            Self::Segments => [segments::TOKENS, mutation::TOKENS].concat(),
            Self::Limits => limits::TOKENS.to_vec(),
        }
    }

    /// Tries an input.
    ///
    /// # Errors
    /// The property that does not hold.
    pub fn check(self, input: &[u8]) -> Check {
        match self {
            Self::Http => http::check(input),
            Self::Segments => segments::check(input),
            Self::Limits => limits::check(input),
        }
    }

    /// An input that differs from this one in a few places, and makes sense more often than not; at most `most` bytes.
    #[must_use]
    pub fn mutate(self, input: &[u8], most: usize, random: &mut Random) -> Vec<u8> {
        let mut mutated = match self {
            Self::Http => mutation::stream(input, random),
            Self::Segments => segments::mutate(input, random),
            Self::Limits => limits::mutate(input, random),
        };
        mutated.truncate(most);
        mutated
    }

    /// An input as a person reads it, with what is known about it.
    #[must_use]
    pub fn explain(self, input: &[u8]) -> String {
        match self {
            Self::Http => http::explain(input),
            Self::Segments => segments::explain(input),
            Self::Limits => String::from_utf8_lossy(input).into_owned(),
        }
    }
}
