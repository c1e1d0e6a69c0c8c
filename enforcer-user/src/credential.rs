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

/// Fewer estimated bits than this and a key counts as weak.
const WEAK_BITS: f64 = 96.0;

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

/// Why a key that was brought from elsewhere is worth a second look; `None` if it seems strong.
///
/// The estimate is an upper bound: length and alphabet say how strong a key can be, never how it was made.
#[must_use]
pub fn weakness(value: &[u8]) -> Option<&'static str> {
    if has_generated_form(value) && !is_generated(value) {
        return Some("it looks like a key of the enforcer's, but its check digits are wrong: was it mistyped?");
    }
    let mut seen = [false; 256];
    for &byte in value {
        seen[usize::from(byte)] = true;
    }
    let distinct = seen.iter().filter(|&&seen| seen).count();
    let bits = value.len() as f64 * (alphabet(value) as f64).log2();
    (distinct < 8 || bits < WEAK_BITS)
        .then_some("it could be guessed: prefer at least 24 random characters, or a key made by `enforcer key add`")
}

/// How many characters the smallest usual alphabet has that `value` is written in.
fn alphabet(value: &[u8]) -> usize {
    let all = |accepts: fn(&u8) -> bool| value.iter().all(accepts);
    match () {
        () if all(u8::is_ascii_digit) => 10,
        () if all(|byte| byte.is_ascii_hexdigit() || *byte == b'-') => 16,
        () if all(u8::is_ascii_lowercase) || all(u8::is_ascii_uppercase) => 26,
        () if all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()) => 36,
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
        assert_eq!(weakness(key.as_bytes()), None);
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
    fn tells_weak_keys_from_strong_ones() {
        for strong in
            ["0f8fad5b-d9cb-469f-a165-70867728950e", "9f86d081884c7d659a2feaa0c55ad015", "zQ8kM2vN7xR4tL9wB1yH6cJ3"]
        {
            assert_eq!(weakness(strong.as_bytes()), None, "{strong}");
        }
        for weak in ["password", "1234567890123456", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "secret-key-1"] {
            assert!(weakness(weak.as_bytes()).is_some_and(|why| why.contains("guessed")), "{weak}");
        }
        let mistyped = format!("{}000000", "ek_ABCDEFGHIJKLMNOPQRSTUVWXYZabcd");
        assert!(weakness(mistyped.as_bytes()).is_some_and(|why| why.contains("check digits")));
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
