//! METERS, mapped: under which policy each principal is, the rest of its shortcut's tag, and what is counted for it.

use std::{
    mem::offset_of,
    sync::{
        Arc,
        atomic::{
            AtomicU64,
            Ordering::{Relaxed, Release},
        },
    },
};

use aya::Ebpf;
use enforcer_ebpf::abi::{Buckets, Meter, Principal, map};

use super::{
    Error, Kernel,
    mapped::Mapped,
    shortcuts,
    tables::{mapped_of, out_of_range},
};

/// Words of a meter, and before its fields.
const METER: usize = size_of::<Meter>() / size_of::<u64>();
const PRINCIPAL: usize = offset_of!(Meter, principal) / size_of::<u64>();
const KEY: usize = offset_of!(Meter, key) / size_of::<u64>();
const BEFORE: usize = offset_of!(Meter, buckets) / size_of::<u64>();

/// All meters, by principal's index.
#[derive(Clone, Debug)]
pub(super) struct Meters(Arc<Mapped>);

impl Meters {
    /// Those of the loaded object.
    pub(super) fn open(object: &Ebpf) -> Result<Self, Error> {
        Ok(Self(Arc::new(mapped_of(object, map::METERS, METER)?)))
    }

    /// How many there is room for.
    pub(super) fn len(&self) -> usize {
        self.all().len()
    }

    /// Under which policy each is.
    pub(super) fn principals(&self) -> impl Iterator<Item = Principal> {
        self.all().iter().map(|words| Principal::from_word(words[PRINCIPAL].load(Relaxed)))
    }

    /// What is counted for each. The words of one are read one after the other, while the program goes on counting.
    pub(super) fn read(&self) -> impl Iterator<Item = Meter> {
        self.all().iter().map(meter)
    }

    /// What is counted for one, likewise.
    pub(super) fn meter(&self, index: u32) -> Result<Meter, Error> {
        self.get(index).map(meter)
    }

    fn all(&self) -> &[[AtomicU64; METER]] {
        self.0.words().as_chunks().0
    }

    fn get(&self, index: u32) -> Result<&[AtomicU64; METER], Error> {
        self.all().get(index as usize).ok_or_else(|| out_of_range(map::METERS, index, self.len()))
    }
}

impl shortcuts::Meters for Meters {
    fn key(&self, principal: u32) -> Option<&AtomicU64> {
        Some(&self.all().get(principal as usize)?[KEY])
    }
}

impl Kernel {
    /// Which policy a principal is under.
    ///
    /// # Errors
    /// An index beyond the end of the map.
    pub fn principal(&self, index: u32) -> Result<Principal, Error> {
        Ok(Principal::from_word(self.meters().get(index)?[PRINCIPAL].load(Relaxed)))
    }

    /// Moves a principal to another policy, by one store: every request meets the old one or the new one.
    ///
    /// # Errors
    /// An index beyond the end of the map.
    pub fn set_principal(&mut self, index: u32, principal: Principal) -> Result<(), Error> {
        self.meters().get(index)?[PRINCIPAL].store(principal.to_word(), Release);
        Ok(())
    }

    /// What the program counts for a principal. The words are read one after the other, while it goes on counting.
    ///
    /// # Errors
    /// An index beyond the end of the map.
    pub fn meter(&self, index: u32) -> Result<Meter, Error> {
        self.meters().meter(index)
    }

    /// Says what was counted for a principal, word by word, before the program counts for it.
    ///
    /// # Errors
    /// An index beyond the end of the map.
    pub fn set_meter(&mut self, index: u32, meter: &Meter) -> Result<(), Error> {
        let Meter { allowed, principal: _, key: _, buckets, limited, denied, would_refuse, candidate, key_in_url } =
            meter;
        let words = self.meters().get(index)?;
        words[0].store(*allowed, Relaxed);
        let behind = [*limited, *denied, *would_refuse, *candidate, *key_in_url];
        words[BEFORE..].iter().zip(buckets.words().chain(behind)).for_each(|(word, value)| word.store(value, Relaxed));
        Ok(())
    }

    /// Sets a meter to nothing used and nothing counted, for an index that is handed out anew.
    ///
    /// # Errors
    /// An index beyond the end of the map.
    pub fn clear_meter(&mut self, index: u32) -> Result<(), Error> {
        self.set_meter(index, &Meter::default())
    }

    fn meters(&self) -> &Meters {
        &self.tables.counted.meters
    }
}

fn meter(words: &[AtomicU64; METER]) -> Meter {
    let word = |position: usize| words[position].load(Relaxed);
    let behind = |number: usize| word(BEFORE + Buckets::WORDS + number);
    Meter {
        allowed: word(0),
        principal: word(PRINCIPAL),
        key: word(KEY),
        buckets: Buckets::of_words(|position| word(BEFORE + position)),
        limited: behind(0),
        denied: behind(1),
        would_refuse: behind(2),
        candidate: behind(3),
        key_in_url: behind(4),
    }
}
