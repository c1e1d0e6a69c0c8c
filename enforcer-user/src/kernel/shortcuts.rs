//! The shortcuts from keys to their principals, never ahead of KEYS: [`enforcer_ebpf::shortcut`].
//!
//! A shortcut is closed before its key changes, and opened behind it; so whenever the daemon ends, each that is open is
//! right, and one that is missing is opened at the next start.

use std::sync::atomic::{
    AtomicU64,
    Ordering::{Relaxed, Release, SeqCst},
};

use enforcer_ebpf::abi::{Key, KeyTag, PRINCIPALS};
use enforcer_ebpf::shortcut::{self, WAYS};

use super::mapped::Mapped;

/// All shortcuts, as the program sees them.
#[derive(Debug)]
pub(super) struct Shortcuts {
    words: Mapped,
    /// Where each principal's word lies, plus 1; 0 = it has none.
    places: Vec<u32>,
}

/// [`enforcer_ebpf::abi::Meter::key`] of each principal.
pub(super) trait Meters {
    /// That of this principal; `None` beyond the last.
    fn key(&self, principal: u32) -> Option<&AtomicU64>;
}

impl Shortcuts {
    /// Takes over what an earlier daemon has left, with these keys: what is not right is closed, and what is missing opened.
    pub(super) fn new(words: Mapped, meters: &impl Meters, keys: &[(KeyTag, Key)]) -> Self {
        let mut shortcuts = Self { words, places: vec![0; PRINCIPALS as usize] };
        let mut right = vec![false; shortcuts.words.words().len()];
        for &(tag, key) in keys.iter().filter(|(_, key)| is_plain(key)) {
            let is_of = |meter: &AtomicU64| meter.load(Relaxed) == tag.0[1];
            if meters.key(key.principal).is_some_and(is_of)
                && let Some(place) = shortcuts.find(tag, shortcut::word(tag, key.principal))
            {
                right[place] = true;
                shortcuts.places[key.principal as usize] = place as u32 + 1;
            }
        }
        for (word, _) in shortcuts.words.words().iter().zip(right).filter(|(_, right)| !right) {
            word.store(0, SeqCst);
        }
        for &(tag, key) in keys {
            if shortcuts.places.get(key.principal as usize) == Some(&0) {
                shortcuts.open(tag, &key, meters);
            }
        }
        shortcuts
    }

    /// Opens the shortcut of a key as it lies in KEYS, if it can have one, in the place of that of another of its principal's.
    pub(super) fn open(&mut self, tag: KeyTag, key: &Key, meters: &impl Meters) {
        let principal = key.principal;
        let (true, Some(meter)) = (is_plain(key), meters.key(principal)) else { return };
        let Some(place) = self.find(tag, 0) else { return };
        self.leave(principal);
        meter.store(tag.0[1], Relaxed);
        self.words.words()[place].store(shortcut::word(tag, principal), Release);
        self.places[principal as usize] = place as u32 + 1;
    }

    /// Closes the shortcut of a key, if it has one.
    pub(super) fn close(&mut self, tag: KeyTag) {
        let same = |word: u64| word != 0 && shortcut::word(tag, shortcut::principal(word)) == word;
        let word = self.set(tag).iter().map(|word| word.load(Relaxed)).find(|&word| same(word));
        if let Some(word) = word {
            self.leave(shortcut::principal(word));
        }
    }

    fn leave(&mut self, principal: u32) {
        let place = std::mem::take(&mut self.places[principal as usize]);
        if place != 0 {
            // Seen by all CPUs before anything that is written behind it.
            self.words.words()[place as usize - 1].store(0, SeqCst);
        }
    }

    /// Where in its set a tag's words have this one.
    fn find(&self, tag: KeyTag, word: u64) -> Option<usize> {
        let way = self.set(tag).iter().position(|other| other.load(Relaxed) == word)?;
        Some(shortcut::set(tag) as usize * WAYS + way)
    }

    fn set(&self, tag: KeyTag) -> &[AtomicU64] {
        let first = shortcut::set(tag) as usize * WAYS;
        &self.words.words()[first..first + WAYS]
    }
}

/// Whether a key only says whose it is.
fn is_plain(key: &Key) -> bool {
    *key == Key { principal: key.principal, ..Key::PLAIN }
}

#[cfg(test)]
mod tests {
    use std::{
        error::Error,
        fs::File,
        os::fd::{AsFd as _, FromRawFd as _},
    };

    use enforcer_ebpf::abi::SHORTCUTS;

    use super::*;

    impl Meters for Vec<AtomicU64> {
        fn key(&self, principal: u32) -> Option<&AtomicU64> {
            self.get(principal as usize)
        }
    }

    /// Memory that outlives a daemon, as a map does.
    struct Left(File, Vec<AtomicU64>);

    impl Left {
        fn new() -> Result<Self, Box<dyn Error>> {
            // SAFETY: a name that ends with 0.
            let fd = unsafe { libc::memfd_create(c"shortcuts".as_ptr(), libc::MFD_CLOEXEC) };
            if fd < 0 {
                return Err(std::io::Error::last_os_error().into());
            }
            // SAFETY: it is open, and nobody else's.
            let file = unsafe { File::from_raw_fd(fd) };
            file.set_len((WORDS * size_of::<u64>()) as u64)?;
            Ok(Self(file, (0..PRINCIPALS).map(|_| AtomicU64::new(0)).collect()))
        }

        fn taken_over(&self, keys: &[(KeyTag, Key)]) -> Result<Shortcuts, Box<dyn Error>> {
            Ok(Shortcuts::new(Mapped::new(self.0.as_fd(), WORDS)?, &self.1, keys))
        }

        /// What the program finds.
        fn found(&self, shortcuts: &Shortcuts, tag: KeyTag) -> Option<u32> {
            let set = std::array::from_fn(|way| shortcuts.set(tag)[way].load(Relaxed));
            let principal = shortcut::find(&set, tag);
            (principal != 0 && self.1[principal as usize].load(Relaxed) == tag.0[1]).then_some(principal)
        }
    }

    const WORDS: usize = SHORTCUTS as usize * WAYS;

    fn plain(principal: u32) -> Key {
        Key { principal, ..Key::PLAIN }
    }

    /// Tags of one set.
    fn tag(number: u64) -> KeyTag {
        KeyTag([(number << 40) | 7, number])
    }

    #[test]
    fn the_last_of_a_principals_keys_has_the_shortcut_until_it_is_closed() -> Result<(), Box<dyn Error>> {
        let left = Left::new()?;
        let mut shortcuts = left.taken_over(&[])?;
        shortcuts.open(tag(1), &plain(5), &left.1);
        assert_eq!(left.found(&shortcuts, tag(1)), Some(5));
        assert_eq!(left.found(&shortcuts, tag(2)), None);
        shortcuts.open(tag(2), &plain(5), &left.1);
        assert_eq!((left.found(&shortcuts, tag(1)), left.found(&shortcuts, tag(2))), (None, Some(5)));
        shortcuts.close(tag(1));
        assert_eq!(left.found(&shortcuts, tag(2)), Some(5));
        shortcuts.close(tag(2));
        assert_eq!(left.found(&shortcuts, tag(2)), None);
        assert!(shortcuts.words.words().iter().all(|word| word.load(Relaxed) == 0));
        Ok(())
    }

    #[test]
    fn a_key_that_says_more_than_whose_it_is_has_none() -> Result<(), Box<dyn Error>> {
        let left = Left::new()?;
        let mut shortcuts = left.taken_over(&[])?;
        let more = [
            Key { flags: Key::DISABLED, ..plain(1) },
            Key { not_before: 1, ..plain(1) },
            Key { expires: u64::MAX - 1, ..plain(1) },
            Key { policy: 1, ..plain(1) },
            plain(PRINCIPALS),
        ];
        for key in more {
            shortcuts.open(tag(1), &key, &left.1);
            assert_eq!(left.found(&shortcuts, tag(1)), None, "{key:?}");
        }
        Ok(())
    }

    #[test]
    fn a_set_that_is_full_takes_no_more_and_keeps_what_it_has() -> Result<(), Box<dyn Error>> {
        let left = Left::new()?;
        let mut shortcuts = left.taken_over(&[])?;
        let most = WAYS as u32;
        for number in 1..=most + 1 {
            shortcuts.open(tag(number.into()), &plain(number), &left.1);
        }
        for number in 1..=most {
            assert_eq!(left.found(&shortcuts, tag(number.into())), Some(number));
        }
        assert_eq!(left.found(&shortcuts, tag((most + 1).into())), None);
        shortcuts.close(tag(3));
        shortcuts.open(tag((most + 1).into()), &plain(most + 1), &left.1);
        assert_eq!(left.found(&shortcuts, tag((most + 1).into())), Some(most + 1));
        Ok(())
    }

    #[test]
    fn a_start_closes_what_is_not_right_and_opens_what_is_missing() -> Result<(), Box<dyn Error>> {
        let left = Left::new()?;
        let mut shortcuts = left.taken_over(&[])?;
        for number in 1..=4 {
            shortcuts.open(tag(number), &plain(number as u32), &left.1);
        }
        drop(shortcuts);
        // 1 stays, 2 is disabled, 3 is another's, 4 is revoked, 5 was never opened; 6 is 1's second key.
        let disabled = Key { flags: Key::DISABLED, ..plain(2) };
        let keys = [(tag(6), plain(1)), (tag(1), plain(1)), (tag(2), disabled), (tag(3), plain(7)), (tag(5), plain(5))];
        let shortcuts = left.taken_over(&keys)?;
        let found: Vec<_> = (1..=6).map(|number| left.found(&shortcuts, tag(number))).collect();
        assert_eq!(found, [Some(1), None, Some(7), None, Some(5), None]);
        Ok(())
    }
}
