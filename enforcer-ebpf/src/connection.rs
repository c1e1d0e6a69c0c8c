//! How many connections a source or a principal has open at once.
//!
//! The kernel tells when a local socket's connection is established and when it is over, each exactly once, whatever way
//! it ends (the tracepoint `inet_sock_set_state`). Between the two it stands in a table of connections, which says whom it
//! counts for: its source and one principal, those of the last request on it that passed. How many each has is in a second
//! table. Both are set-associative like that of [`crate::flow`], with a lock for each set, and in both nobody gives way to
//! another who counts: what finds no room is refused.
//!
//! A first request passes before its connection is established, since it is what ends the handshake. So a connection can be
//! entered before ([`Connection::since`]); should the socket never come to be, since the listener's queue was full or the
//! packet was lost, it counts for [`STALE_NS`] at most ([`sweep`]).
//!
//! One lock is held at a time. So a count goes up before whoever it is for is written to the connection, and down after it
//! was taken out of it, by the one who took it out: never is one lost or counted twice, whatever happens in between.

#![allow(non_camel_case_types, reason = "the kernel knows the lock by the name of its type")]

use core::ops::DerefMut;

use crate::flow::Hasher;
use crate::opaque::{opaque, zero};
use crate::source::Source;

/// Places of a set.
pub const WAYS: usize = 8;
/// ns after which a connection that was entered and never established is taken out again.
pub const STALE_NS: u64 = 5_000_000_000;

/// What bpf_spin_lock(2) locks; the kernel finds it by this name in the type of a map's value.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct bpf_spin_lock {
    /// The kernel's.
    pub val: u32,
}

/// A connection of a local socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Connection {
    /// Hash of its two ends; 0 = none is here.
    pub hash: u64,
    /// 0 once it is established; before, when a request of it last passed, CLOCK_BOOTTIME in ns.
    pub since: u64,
    /// Where its source's count is, a [`place`]; 0 if it does not count for its source.
    pub source: u32,
    /// Where its principal's is, likewise.
    pub principal: u32,
    /// That principal.
    pub holder: u32,
    /// 0.
    pub reserved: u32,
}

/// Connections whose hashes end alike.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Connections {
    /// Held by who works on it.
    pub lock: bpf_spin_lock,
    /// 0.
    pub reserved: u32,
    /// The connections.
    pub ways: [Connection; WAYS],
}

/// What is counted for a source or a principal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Subject {
    /// Hash of who it is.
    pub hash: u64,
    /// Its connections; 0 = nobody is here.
    pub count: u64,
}

/// Sources and principals whose hashes end alike.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Subjects {
    /// Held by who works on it.
    pub lock: bpf_spin_lock,
    /// 0.
    pub reserved: u32,
    /// Who has connections.
    pub ways: [Subject; WAYS],
}

const _: () = {
    assert!(size_of::<Connection>() == 32);
    assert!(size_of::<Connections>() == 8 + WAYS * 32);
    assert!(size_of::<Subject>() == 16);
    assert!(size_of::<Subjects>() == 8 + WAYS * 16);
};

/// The two tables. A set is locked until it is dropped, and nothing is called meanwhile.
pub trait Tables {
    /// A locked set of connections.
    type Connections: DerefMut<Target = Connections>;
    /// A locked set of subjects.
    type Subjects: DerefMut<Target = Subjects>;

    /// Locks the set of connections that a hash falls into; `None` if there is none.
    fn connections(&self, hash: u64) -> Option<Self::Connections>;
    /// Locks the set of subjects that a hash falls into, or of this number; likewise.
    fn subjects(&self, hash: u64) -> Option<Self::Subjects>;
    /// The number of the set of subjects of a hash.
    fn subject_set(&self, hash: u64) -> u32;
}

/// Whose counts a connection no longer stands in: they are to go down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Left {
    /// The place of its source's.
    pub source: u32,
    /// The place of its principal's.
    pub principal: u32,
}

impl Left {
    const NOBODY: Self = Self { source: 0, principal: 0 };
}

/// What is known of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Whether it is in the table, or there is room for it.
    pub has_room: bool,
    /// Where its source's count is that it stands in; 0 = in none.
    pub source: u32,
    /// The principal that it counts for; 0 = none.
    pub holder: u32,
}

/// What became of letting a connection count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Held {
    /// It counts until it is established, or has not been for too long.
    Entered = 0,
    /// It is established, and counts until its end.
    Open = 1,
    /// There was no room.
    NoRoom = 2,
}

/// What became of counting one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It counts, at this place.
    At(u32),
    /// As many as may be are there.
    Full,
    /// There is no room for another subject.
    NoRoom,
}

/// Numbers of places in a set that stand for none.
const FULL: u32 = WAYS as u32;
const NO_ROOM: u32 = WAYS as u32 + 1;

/// The number of a place among all subjects, never 0.
#[inline(always)]
const fn place(set: u32, way: u32) -> u32 {
    1 + set * WAYS as u32 + way
}

impl Connections {
    #[inline(always)]
    fn find(&self, hash: u64) -> u32 {
        let mut found = FULL;
        for way in 0..WAYS {
            if self.ways[way].hash == hash {
                found = way as u32;
            }
        }
        found
    }

    /// A free place, or that of a connection that has never come to be.
    #[inline(always)]
    fn room(&self, now: u64) -> u32 {
        let mut found = FULL;
        for way in 0..WAYS {
            let connection = &self.ways[way];
            if connection.hash == 0 || (found == FULL && connection.is_stale(now)) {
                found = way as u32;
            }
        }
        found
    }

    /// What is known of a connection; whether there is room for it, if nothing is.
    #[inline(always)]
    fn look(&self, hash: u64, now: u64) -> Entry {
        let way = self.find(hash);
        if way == FULL {
            return Entry { has_room: self.room(now) != FULL, source: 0, holder: 0 };
        }
        let connection = &self.ways[opaque(way) as usize & (WAYS - 1)];
        Entry { has_room: true, source: connection.source, holder: connection.holder }
    }

    /// The way of a connection, which is entered if it is not here, and whose counts the one stood in whose place it took;
    /// [`FULL`] if there is no room.
    #[inline(always)]
    fn enter(&mut self, hash: u64, now: u64) -> (u32, Left) {
        let found = self.find(hash);
        if found != FULL {
            return (found, Left::NOBODY);
        }
        let way = self.room(now);
        if way == FULL {
            return (FULL, Left::NOBODY);
        }
        let connection = &mut self.ways[opaque(way) as usize & (WAYS - 1)];
        let left = connection.clear();
        connection.hash = hash;
        connection.since = now;
        (way, left)
    }

    /// A connection is established; whether it is in, and whose counts are to go down for that.
    #[inline(always)]
    fn open(&mut self, hash: u64, now: u64) -> (bool, Left) {
        let (way, left) = self.enter(hash, now);
        if way == FULL {
            return (false, left);
        }
        self.ways[opaque(way) as usize & (WAYS - 1)].since = zero();
        (true, left)
    }

    /// Lets a connection count for these places of subjects as well, 0 for none; what became of that, and whose counts are to
    /// go down for it: of whom it counted for before, and of whom it displaced.
    #[inline(always)]
    fn hold(&mut self, now: u64, hold: &Hold, holder: u32) -> (Held, Left, Left) {
        let (way, displaced) = self.enter(hold.connection, now);
        if way == FULL {
            return (Held::NoRoom, Left { source: hold.source, principal: hold.principal }, displaced);
        }
        let connection = &mut self.ways[opaque(way) as usize & (WAYS - 1)];
        let mut left = Left::NOBODY;
        if hold.source != 0 {
            left.source = connection.source;
            connection.source = hold.source;
        }
        if hold.principal != 0 {
            left.principal = connection.principal;
            connection.principal = hold.principal;
            connection.holder = holder;
        }
        if connection.since == 0 {
            return (Held::Open, left, displaced);
        }
        connection.since = now;
        (Held::Entered, left, displaced)
    }

    /// Takes a connection out.
    #[inline(always)]
    fn leave(&mut self, hash: u64) -> Left {
        let way = self.find(hash);
        if way == FULL { Left::NOBODY } else { self.ways[opaque(way) as usize & (WAYS - 1)].clear() }
    }

    /// Takes out the connection at a place if it has never come to be.
    #[inline(always)]
    fn leave_stale(&mut self, way: u32, now: u64) -> Left {
        let connection = &mut self.ways[opaque(way) as usize & (WAYS - 1)];
        if connection.is_stale(now) { connection.clear() } else { Left::NOBODY }
    }
}

impl Connection {
    #[inline(always)]
    const fn is_stale(&self, now: u64) -> bool {
        self.hash != 0 && self.since != 0 && now.saturating_sub(self.since) > STALE_NS
    }

    /// Makes its place free.
    #[inline(always)]
    fn clear(&mut self) -> Left {
        let left = Left { source: self.source, principal: self.principal };
        self.hash = zero();
        self.since = zero();
        self.source = zero() as u32;
        self.principal = zero() as u32;
        self.holder = zero() as u32;
        left
    }
}

impl Subjects {
    /// Counts one more, if that makes no more than `most`: its way, [`FULL`] or [`NO_ROOM`].
    #[inline(always)]
    fn take(&mut self, hash: u64, most: u64) -> u32 {
        let mut found = NO_ROOM;
        for way in 0..WAYS {
            let Subject { hash: known, count } = self.ways[way];
            if count == 0 && found == NO_ROOM {
                found = way as u32;
            }
            if count != 0 && known == hash {
                found = if count < most { way as u32 } else { FULL };
                break;
            }
        }
        if found < FULL {
            let subject = &mut self.ways[opaque(found) as usize & (WAYS - 1)];
            subject.hash = hash;
            subject.count += 1;
        }
        found
    }

    /// How many there are.
    #[inline(always)]
    fn count(&self, hash: u64) -> u64 {
        let mut found = 0;
        for way in 0..WAYS {
            if self.ways[way].hash == hash {
                found += self.ways[way].count;
            }
        }
        found
    }

    #[inline(always)]
    fn give(&mut self, way: u32) {
        let subject = &mut self.ways[opaque(way) as usize & (WAYS - 1)];
        subject.count = subject.count.saturating_sub(1);
    }
}

/// What a request has taken for its connection before it is charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Hold {
    /// Hash of the connection; 0 if there is nothing to be settled.
    pub connection: u64,
    /// The place of its source's count; 0 if none was taken. So for the principal.
    pub source: u32,
    /// The place of its principal's.
    pub principal: u32,
}

/// Who connections are counted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// A source.
    Source(Source),
    /// A principal, in the services of this [`crate::abi::Service::leader`].
    Principal(u32, u32),
}

impl Who {
    /// Its hash under the tables' secret.
    #[must_use]
    #[inline(always)]
    pub fn hash(self, secret: [u64; 2]) -> u64 {
        let mut hasher = Hasher::new(secret);
        match self {
            Self::Source(Source { prefix, family }) => {
                hasher.take(family);
                hasher.take(prefix);
            }
            Self::Principal(principal, service) => {
                hasher.take(u64::from(service) << 32);
                hasher.take(u64::from(principal));
            }
        }
        hasher.finish()
    }
}

/// Looks for a connection.
#[inline(always)]
pub fn look(tables: &impl Tables, hash: u64, now: u64) -> Option<Entry> {
    tables.connections(hash).map(|set| set.look(hash, now))
}

/// Counts one more connection of a subject, if it has less than `most`.
#[inline(always)]
pub fn take(tables: &impl Tables, hash: u64, most: u32) -> Taken {
    let Some(mut set) = tables.subjects(hash) else { return Taken::NoRoom };
    let way = set.take(hash, u64::from(most));
    drop(set);
    match way {
        FULL => Taken::Full,
        NO_ROOM => Taken::NoRoom,
        way => Taken::At(place(tables.subject_set(hash), way)),
    }
}

/// How many a subject has.
#[inline(always)]
pub fn count(tables: &impl Tables, hash: u64) -> u64 {
    tables.subjects(hash).map_or(0, |set| set.count(hash))
}

/// Lets a connection count for who was taken for it, and no longer for the principal before.
#[inline(always)]
pub fn hold(tables: &impl Tables, hold: &Hold, holder: u32, now: u64) -> Held {
    let Some(mut set) = tables.connections(hold.connection) else { return Held::NoRoom };
    let (held, left, displaced) = set.hold(now, hold, holder);
    drop(set);
    give(tables, left);
    give(tables, displaced);
    held
}

/// Lets counts go down again.
#[inline(always)]
pub fn give(tables: &impl Tables, Left { source, principal }: Left) {
    give_one(tables, source);
    give_one(tables, principal);
}

#[inline(always)]
fn give_one(tables: &impl Tables, place: u32) {
    if place == 0 {
        return;
    }
    let place = place - 1;
    if let Some(mut set) = tables.subjects(u64::from(place / WAYS as u32)) {
        set.give(place & (WAYS as u32 - 1));
    }
}

/// A connection is established; `false` if there is no room for it.
#[inline(always)]
pub fn open(tables: &impl Tables, hash: u64, now: u64) -> bool {
    let Some(mut set) = tables.connections(hash) else { return false };
    let (is_in, left) = set.open(hash, now);
    drop(set);
    give(tables, left);
    is_in
}

/// A connection is over.
#[inline(always)]
pub fn close(tables: &impl Tables, hash: u64) {
    let Some(mut set) = tables.connections(hash) else { return };
    let left = set.leave(hash);
    drop(set);
    give(tables, left);
}

/// Takes out of a set whatever was entered and has never come to be.
#[inline(always)]
pub fn sweep(tables: &impl Tables, set: u32, now: u64) {
    for way in 0..WAYS as u32 {
        let Some(mut set) = tables.connections(u64::from(set)) else { return };
        let left = set.leave_stale(way, now);
        drop(set);
        give(tables, left);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{RefCell, RefMut};

    use super::*;

    const NOW: u64 = 1 << 40;

    /// Tables of one set each.
    #[derive(Default)]
    struct Small(RefCell<Connections>, RefCell<Subjects>);

    impl<'a> Tables for &'a Small {
        type Connections = RefMut<'a, Connections>;
        type Subjects = RefMut<'a, Subjects>;

        fn connections(&self, _hash: u64) -> Option<RefMut<'a, Connections>> {
            Some(self.0.borrow_mut())
        }

        fn subjects(&self, _hash: u64) -> Option<RefMut<'a, Subjects>> {
            Some(self.1.borrow_mut())
        }

        fn subject_set(&self, _hash: u64) -> u32 {
            0
        }
    }

    impl Small {
        /// A request of a principal whose hash is its number passes, from the source whose hash is 100.
        fn pass(&self, connection: u64, principal: u32, now: u64) -> bool {
            let entry = look(&self, connection, now).expect("a set");
            if !entry.has_room {
                return false;
            }
            let mut hold_ = Hold { connection, source: 0, principal: 0 };
            if entry.source == 0 {
                let Taken::At(place) = take(&self, 100, 4) else { return false };
                hold_.source = place;
            }
            if entry.holder != principal {
                let Taken::At(place) = take(&self, u64::from(principal), 2) else {
                    give(&self, Left { source: hold_.source, principal: 0 });
                    return false;
                };
                hold_.principal = place;
            }
            hold(&self, &hold_, principal, now) != Held::NoRoom
        }

        fn counts(&self, hashes: &[u64]) -> Vec<u64> {
            hashes.iter().map(|&hash| count(&self, hash)).collect()
        }
    }

    #[test]
    fn a_connection_counts_once_for_its_source_and_for_the_principal_that_used_it_last() {
        let tables = Small::default();
        assert!(tables.pass(1, 7, NOW) && open(&&tables, 1, NOW) && open(&&tables, 1, NOW));
        assert!(tables.pass(1, 7, NOW) && tables.pass(2, 7, NOW));
        assert_eq!(tables.counts(&[100, 7]), [2, 2]);
        assert!(!tables.pass(3, 7, NOW), "a third of two");
        assert_eq!(tables.counts(&[100, 7]), [2, 2]);
        assert!(tables.pass(1, 8, NOW), "moved");
        assert_eq!(tables.counts(&[100, 7, 8]), [2, 1, 1]);
        assert!(tables.pass(3, 7, NOW));
        close(&&tables, 1);
        close(&&tables, 1);
        assert_eq!(tables.counts(&[100, 7, 8]), [2, 2, 0]);
        close(&&tables, 2);
        close(&&tables, 3);
        assert_eq!(tables.counts(&[100, 7, 8]), [0, 0, 0]);
        assert!(tables.0.borrow().ways.iter().all(|way| way.hash == 0));
    }

    #[test]
    fn what_is_taken_for_a_connection_without_room_is_given_back() {
        let tables = Small::default();
        let Taken::At(place) = take(&&tables, 100, 1) else { panic!("no place") };
        assert_eq!(take(&&tables, 100, 1), Taken::Full);
        for number in 1..=WAYS as u64 {
            assert!(open(&&tables, number, NOW));
        }
        assert_eq!(hold(&&tables, &Hold { connection: 9, source: place, principal: 0 }, 0, NOW), Held::NoRoom);
        assert_eq!(count(&&tables, 100), 0);
    }

    #[test]
    fn one_that_never_comes_to_be_counts_for_a_while_and_one_that_is_established_until_its_end() {
        let tables = Small::default();
        assert!(tables.pass(1, 7, NOW) && tables.pass(2, 8, NOW) && open(&&tables, 2, NOW));
        sweep(&&tables, 0, NOW + STALE_NS);
        assert_eq!(tables.counts(&[100, 7, 8]), [2, 1, 1]);
        // Its request came again.
        assert!(tables.pass(1, 7, NOW + STALE_NS));
        sweep(&&tables, 0, NOW + 2 * STALE_NS);
        assert_eq!(tables.counts(&[100, 7, 8]), [2, 1, 1]);
        sweep(&&tables, 0, NOW + 2 * STALE_NS + 1);
        assert_eq!(tables.counts(&[100, 7, 8]), [1, 0, 1]);
        // Established after all, it counts for nobody before its next request.
        assert!(open(&&tables, 1, NOW + 3 * STALE_NS));
        assert_eq!(count(&&tables, 100), 1);
    }

    #[test]
    fn nobody_who_counts_gives_way() {
        let tables = Small::default();
        for number in 1..=WAYS as u64 {
            assert!(open(&&tables, number, NOW));
        }
        assert!(!open(&&tables, 9, NOW + 2 * STALE_NS) && !tables.pass(9, 1, NOW + 2 * STALE_NS));
        assert_eq!(tables.counts(&[100, 1]), [0, 0]);
        close(&&tables, 5);
        assert!(open(&&tables, 9, NOW));
        for number in 1..=WAYS as u64 {
            assert!(matches!(take(&&tables, number, 1), Taken::At(_)));
        }
        assert_eq!(take(&&tables, 9, 1), Taken::NoRoom);
        assert_eq!(take(&&tables, 8, 1), Taken::Full);
    }

    #[test]
    fn what_has_never_come_to_be_gives_way() {
        let tables = Small::default();
        let pass = |connection: u64, now: u64| {
            let Taken::At(source) = take(&&tables, 100, 100) else { panic!("no place") };
            hold(&&tables, &Hold { connection, source, principal: 0 }, 0, now)
        };
        for number in 1..=WAYS as u64 {
            assert_eq!(pass(number, NOW), Held::Entered);
        }
        assert_eq!((pass(9, NOW + STALE_NS), count(&&tables, 100)), (Held::NoRoom, 8));
        assert!((10..18).all(|number| pass(number, NOW + STALE_NS + 1) == Held::Entered));
        assert_eq!(count(&&tables, 100), 8);
    }

    #[test]
    fn sources_and_principals_are_told_apart() {
        let hash = |who: Who| who.hash([1, 2]);
        let source = |prefix, family| hash(Who::Source(Source { prefix, family }));
        assert_ne!(source(7, 4), source(7, 6));
        assert_ne!(source(7, 4), source(8, 4));
        assert_ne!(hash(Who::Principal(7, 0)), hash(Who::Principal(8, 0)));
        assert_ne!(hash(Who::Principal(7, 0)), hash(Who::Principal(7, 1)));
        assert_ne!(hash(Who::Principal(7, 0)), source(7, 0x100));
    }
}
