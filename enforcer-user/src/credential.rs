//! Keys in clear, for the short time between their making and their tag: generation, checks, tags and ids.
//!
//! A generated key is `ek_`, 30 random base-62 characters (178 bits) and 6 base-62 characters of the CRC-32 of all
//! before them, so that a typo or a scanner's find can be told from a key without asking anyone. Every buffer that
//! holds a key is zeroed when it is dropped.

use enforcer_ebpf::abi::KeyTag;
use zeroize::Zeroizing;

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const PREFIX: &str = "ek_";
const RANDOM: usize = 30;
const CHECK: usize = 6;

/// Bits that a key brought from elsewhere must be able to have, unless its operator says otherwise.
pub const STRONG_BITS: f64 = 128.0;

/// A stretch that may be predicted from what stands before it counts as one character from so many bits on: in a random
/// key of any alphabet there is none as long, in one of ten million.
const PREDICTED_BITS: f64 = 32.0;

/// What is accepted in the place of a key that could be guessed, for help texts and refusals.
pub const STRONG: &str = "128 bits or more, such as 24 random letters and digits, 32 random hexadecimal digits, or a key \
                          made by `enforcer key add`";

/// What a key may be, for help texts and refusals.
pub const ACCEPTED: &str = "8 to 128 visible ASCII characters without spaces";

/// Makes a key.
///
/// # Errors
/// The system gives no random bytes.
pub fn generate() -> Result<Zeroizing<String>, getrandom::Error> {
    // Full capacity at once: a growing string would leave copies behind.
    let mut key = Zeroizing::new(String::with_capacity(PREFIX.len() + RANDOM + CHECK));
    key.push_str(PREFIX);
    let mut pool = Zeroizing::new([0u8; 64]);
    while key.len() < PREFIX.len() + RANDOM {
        getrandom::fill(&mut *pool)?;
        // 248 = 4 × 62: bytes above it would make the first characters of the alphabet likelier.
        let fair = pool.iter().filter(|&&byte| byte < 248);
        let missing = PREFIX.len() + RANDOM - key.len();
        key.extend(fair.take(missing).map(|byte| char::from(ALPHABET[usize::from(byte % 62)])));
    }
    let check = check_digits(key.as_bytes());
    key.extend(check.map(char::from));
    Ok(key)
}

fn check_digits(text: &[u8]) -> [u8; CHECK] {
    let mut rest = crc32fast::hash(text) as usize;
    let mut digits = [b'0'; CHECK];
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[rest % ALPHABET.len()];
        rest /= ALPHABET.len();
    }
    digits
}

fn has_generated_form(value: &[u8]) -> bool {
    value.len() == PREFIX.len() + RANDOM + CHECK && value.starts_with(PREFIX.as_bytes())
}

/// Whether `value` has the form of a generated key and its check digits are right.
#[must_use]
pub fn is_generated(value: &[u8]) -> bool {
    has_generated_form(value) && {
        let (text, check) = value.split_at(PREFIX.len() + RANDOM);
        check == check_digits(text)
    }
}

/// Whether `value` has the form of a generated key, but not its check digits.
#[must_use]
pub fn is_mistyped(value: &[u8]) -> bool {
    has_generated_form(value) && !is_generated(value)
}

/// The most bits of chance that a key can hold, to be judged by [`STRONG_BITS`].
///
/// Each character counts as one drawn from the smallest usual alphabet that the key is written in: binary and the like
/// (fewer than 6 characters, of which each counts), decimal and hexadecimal digits, letters of one case, with digits or
/// without, letters of both and digits, and all else as base 64. Hyphens between hexadecimal digits count
/// nothing. A stretch that repeats an earlier one, or that counts up or down (`abcdefgh`), counts as one character if its
/// characters would be worth 32 bits or more. Words are not known, nor how a key was made: what has fewer bits than this says
/// can be guessed, what has more may be guessed too.
#[must_use]
pub fn bits(value: &[u8]) -> f64 {
    if is_generated(value) {
        return RANDOM as f64 * (ALPHABET.len() as f64).log2();
    }
    let hexadecimal = value.iter().all(|byte| byte.is_ascii_hexdigit() || *byte == b'-');
    let counted: Vec<u8> = value.iter().copied().filter(|byte| !hexadecimal || *byte != b'-').collect();
    let counted = Zeroizing::new(counted);
    let each = (alphabet(&counted) as f64).log2();
    // One character over and over is worth nothing, and no stretch is long enough then.
    if each == 0.0 {
        return 0.0;
    }
    let long = (PREDICTED_BITS / each).ceil() as usize;
    let (mut at, mut worth) = (0, 0usize);
    while at < counted.len() {
        let predicted = repeats(&counted, at).max(counts_on(&counted, at));
        at += if predicted >= long { predicted } else { 1 };
        worth += 1;
    }
    worth as f64 * each
}

/// How many characters from `at` on stand in this order earlier in `value`, too; the two may overlap.
fn repeats(value: &[u8], at: usize) -> usize {
    let common = |from: usize| value[from..].iter().zip(&value[at..]).take_while(|(a, b)| a == b).count();
    (0..at).map(common).max().unwrap_or(0)
}

/// How many characters from `at` on each follow the one before by the same step, up or down the alphabet.
fn counts_on(value: &[u8], at: usize) -> usize {
    let run = |up: bool| {
        let follows =
            |pair: &[u8]| if up { pair[0].wrapping_add(1) == pair[1] } else { pair[1].wrapping_add(1) == pair[0] };
        1 + value[at..].windows(2).take_while(|pair| follows(pair)).count()
    };
    run(true).max(run(false))
}

/// How many characters has what `value` is written in.
fn alphabet(value: &[u8]) -> usize {
    let mut seen = [false; 256];
    for &byte in value {
        seen[usize::from(byte)] = true;
    }
    let distinct = seen.iter().filter(|&&seen| seen).count();
    let all = |accepts: fn(&u8) -> bool| value.iter().all(accepts);
    match () {
        () if distinct < 6 => distinct,
        () if all(u8::is_ascii_digit) => 10,
        () if all(u8::is_ascii_hexdigit) => 16,
        () if all(u8::is_ascii_lowercase) || all(u8::is_ascii_uppercase) => 26,
        () if all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()) => 36,
        () if all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit()) => 36,
        () if all(u8::is_ascii_alphanumeric) => 62,
        () => 64,
    }
}

/// A tag's bytes in the order in which they lie in the maps and in the store.
#[must_use]
pub fn tag_bytes(tag: KeyTag) -> [u8; 16] {
    let KeyTag([low, high]) = tag;
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&low.to_le_bytes());
    bytes[8..].copy_from_slice(&high.to_le_bytes());
    bytes
}

/// The tag of these bytes.
#[must_use]
pub fn tag_from_bytes(bytes: [u8; 16]) -> KeyTag {
    let word = |range: std::ops::Range<usize>| {
        bytes[range].iter().rev().fold(0u64, |word, &byte| (word << 8) | u64::from(byte))
    };
    KeyTag([word(0..8), word(8..16)])
}

/// The whole tag in 32 lower-case hex digits.
#[must_use]
pub fn tag_hex(tag: KeyTag) -> String {
    tag_bytes(tag).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The key's id: the first 8 hex digits of its tag.
#[must_use]
pub fn id(tag: KeyTag) -> String {
    let mut hex = tag_hex(tag);
    hex.truncate(8);
    hex
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_generated_key_has_its_form_and_its_check_digits() {
        let key = generate().expect("random bytes");
        assert_eq!(key.len(), 39);
        assert!(key.starts_with("ek_") && key[3..].bytes().all(|byte| byte.is_ascii_alphanumeric()));
        assert!(is_generated(key.as_bytes()) && enforcer_ebpf::key::is_valid(key.as_bytes()));
        assert!(bits(key.as_bytes()) > 178.0 && !is_mistyped(key.as_bytes()));
        assert_ne!(*key, *generate().expect("random bytes"));
    }

    #[test]
    fn the_check_digits_are_stable() {
        assert_eq!(&check_digits(b"ek_000000000000000000000000000000"), b"2ORivq");
    }

    #[test]
    fn the_random_part_uses_its_whole_alphabet_evenly() {
        let mut counts = [0u32; 128];
        for _ in 0..2_000 {
            for byte in generate().expect("random bytes")[3..33].bytes() {
                counts[usize::from(byte)] += 1;
            }
        }
        // 60,000 draws over 62 characters: 968 expected, standard deviation 31.
        for &character in ALPHABET {
            let count = counts[usize::from(character)];
            assert!((750..1_200).contains(&count), "{} came {count} times", char::from(character));
        }
    }

    #[test]
    fn counts_a_key_by_its_length_and_alphabet_and_what_is_predicted_as_nothing() {
        for (key, expected) in [
            ("0f8fad5b-d9cb-469f-a165-70867728950e", 128.0),
            ("9f86d081884c7d659a2feaa0c55ad015", 128.0),
            ("9f86d081884c7d659a2feaa0c55ad01", 124.0),
            ("zQ8kM2vN7xR4tL9wB1yH6c", 131.0),
            ("zQ8kM2vN7xR4tL9wB1yH6", 125.0),
            ("password", 37.6),
            // A word four times is a word and a character.
            ("passwordpasswordpasswordpassword", 42.3),
            ("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", 0.0),
            ("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", 17.9),
            ("zyxwvutsrqponmlkjihgfedcba9876543210", 10.3),
            ("0101010101010101010101010101010101010101010101010101010101010101", 3.0),
        ] {
            let bits = bits(key.as_bytes());
            assert!((bits - expected).abs() < 0.06, "{key}: {bits}");
        }
    }

    #[test]
    fn a_mistyped_key_is_noticed() {
        assert!(is_mistyped(b"ek_ABCDEFGHIJKLMNOPQRSTUVWXYZabcd000000"));
        assert!(!is_mistyped(b"ek_ABCDEFGHIJKLMNOPQRSTUVWXYZabcd00000"));
    }

    #[test]
    fn no_key_that_was_drawn_at_random_is_taken_for_a_weak_one() {
        for (alphabet, length) in [
            // Long enough to be strong if all happen to be decimal, too.
            (&b"0123456789abcdef"[..], 39),
            (b"0123456789", 39),
            (b"abcdefghijklmnopqrstuvwxyz", 28),
            // Long enough to be strong if it happens to have one case.
            (&ALPHABET[..], 25),
        ] {
            for _ in 0..2_000 {
                let mut key = vec![0u8; length];
                getrandom::fill(&mut key).expect("random bytes");
                key.iter_mut().for_each(|byte| *byte = alphabet[usize::from(*byte) % alphabet.len()]);
                let bits = bits(&key);
                assert!(bits >= STRONG_BITS, "{}: {bits}", String::from_utf8_lossy(&key));
            }
        }
    }

    #[test]
    fn shows_a_tag_in_the_order_of_the_map() {
        let tag = KeyTag([0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908]);
        assert_eq!(tag_hex(tag), "000102030405060708090a0b0c0d0e0f");
        assert_eq!(id(tag), "00010203");
    }

    proptest! {
        #[test]
        fn a_tag_survives_its_bytes(low: u64, high: u64) {
            let tag = KeyTag([low, high]);
            prop_assert_eq!(tag_from_bytes(tag_bytes(tag)), tag);
        }

        #[test]
        fn one_changed_character_is_noticed(place in 3usize..39, step in 1usize..62) {
            let mut key = generate().expect("random bytes").as_bytes().to_vec();
            let old = ALPHABET.iter().position(|&c| c == key[place]).expect("base 62");
            key[place] = ALPHABET[(old + step) % 62];
            prop_assert!(!is_generated(&key));
        }
    }
}
