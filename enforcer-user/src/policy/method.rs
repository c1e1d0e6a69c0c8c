//! The methods that rules tell apart.

use std::fmt;

use enforcer_ebpf::http::method;

/// The words for them, by their numbers.
const WORDS: [&str; 8] = {
    let mut words = [""; 8];
    words[method::GET as usize] = "GET";
    words[method::HEAD as usize] = "HEAD";
    words[method::POST as usize] = "POST";
    words[method::PUT as usize] = "PUT";
    words[method::PATCH as usize] = "PATCH";
    words[method::DELETE as usize] = "DELETE";
    words[method::OPTIONS as usize] = "OPTIONS";
    words[method::OTHER as usize] = "OTHER";
    words
};

/// A set of methods, never empty. With GET it has HEAD, for which servers run the same (RFC 9110 §9.3.2): a rule that forgot
/// it would be gone round by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Methods(u8);

impl Methods {
    /// All there are.
    pub const ALL: Self = Self(u8::MAX);

    /// How many are told apart.
    pub const COUNT: usize = WORDS.len();

    /// What is accepted in a list of them.
    pub const ACCEPTED: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, and OTHER for all others";

    /// The number of a method's name in a request, see [`method`]; any name that is not told apart is
    /// [`method::OTHER`]. Case does not matter, as in the program: some servers run `get` as GET.
    #[must_use]
    pub fn number(name: &str) -> u32 {
        let number = WORDS.iter().position(|word| word.eq_ignore_ascii_case(name));
        number.map_or(method::OTHER, |number| number as u32)
    }

    /// The set of one method, by its word; for GET, of that and HEAD.
    #[must_use]
    pub fn one(word: &str) -> Option<Self> {
        WORDS.iter().position(|&known| known == word).and_then(|number| Self::from_bits(1 << number))
    }

    /// The set of these bits, and of HEAD if GET is among them; `None` without one.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        if bits & 1 << method::GET != 0 {
            return Some(Self(bits | 1 << method::HEAD));
        }
        if bits == 0 { None } else { Some(Self(bits)) }
    }

    /// One bit for each method, by its number.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether the method of this number is in it.
    #[must_use]
    pub const fn has(self, number: u32) -> bool {
        number < u8::BITS && self.0 & 1 << number != 0
    }

    /// Those of both sets.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those that are in both sets, if any.
    #[must_use]
    pub const fn common(self, other: Self) -> Option<Self> {
        Self::from_bits(self.0 & other.0)
    }

    /// The words of those in it; GET stands for HEAD, too.
    pub fn words(self) -> impl Iterator<Item = &'static str> {
        let is_named = move |number| self.has(number) && !(number == method::HEAD && self.has(method::GET));
        WORDS.iter().enumerate().filter(move |&(number, _)| is_named(number as u32)).map(|(_, &word)| word)
    }
}

impl fmt::Display for Methods {
    /// `GET,POST`, or `*` for all of them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ALL {
            return f.write_str("*");
        }
        for (place, word) in self.words().enumerate() {
            if place > 0 {
                f.write_str(",")?;
            }
            f.write_str(word)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_has_a_word_and_a_number() {
        for (number, word) in WORDS.into_iter().enumerate() {
            assert_eq!((Methods::number(word) as usize, word.is_empty()), (number, false));
            assert!(Methods::one(word).is_some_and(|set| set.has(number as u32)));
        }
        assert_eq!((Methods::number("get"), Methods::number("PROPFIND")), (method::GET, method::OTHER));
        assert_eq!(Methods::one("PROPFIND"), None);
    }

    #[test]
    fn head_goes_with_get() {
        let [get, head, post] = ["GET", "HEAD", "POST"].map(|word| Methods::one(word).expect("a method"));
        assert!(get.has(method::HEAD) && !head.has(method::GET) && !post.has(method::HEAD));
        assert_eq!((get.and(head), get.common(head), get.common(post)), (get, Some(head), None));
    }

    #[test]
    fn a_set_is_shown_in_the_order_of_its_numbers() {
        let set = ["POST", "GET", "OTHER"].iter().filter_map(|word| Methods::one(word)).reduce(Methods::and);
        assert_eq!(set.map(|set| set.to_string()).as_deref(), Some("GET,POST,OTHER"));
        assert_eq!(Methods::ALL.to_string(), "*");
        assert_eq!(Methods::from_bits(1 << method::HEAD).map(|set| set.to_string()).as_deref(), Some("HEAD"));
        assert_eq!((Methods::from_bits(0), Methods::ALL.has(7), Methods::ALL.has(8)), (None, true, false));
    }
}
