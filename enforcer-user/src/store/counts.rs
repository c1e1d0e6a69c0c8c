//! What was counted, in an SQLite database of its own beside the store: maps end with the boot, and a month's limit does not.
//!
//! It holds one state, which [`Counts::write`] brings up to date by what has changed. Times are the boot's that it was
//! written in, with what both clocks read then.

use std::collections::HashMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use enforcer_ebpf::abi::{Buckets, Meter, Scope};
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::{APPLICATION_ID, Error};

/// Its schema; a database of another one is begun anew.
const VERSION: i64 = 1;

const SCHEMA: &str = "
    -- What the clocks read when the rest was so, in ns.
    CREATE TABLE moment (
        id   INTEGER PRIMARY KEY CHECK (id = 1),
        boot INTEGER NOT NULL,
        unix INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE meters (
        -- principals.idx of the store.
        principal    INTEGER PRIMARY KEY,
        buckets      BLOB NOT NULL,
        allowed      INTEGER NOT NULL,
        limited      INTEGER NOT NULL,
        denied       INTEGER NOT NULL,
        would_refuse INTEGER NOT NULL,
        candidate    INTEGER NOT NULL,
        key_in_url   INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE scopes (
        rule    INTEGER NOT NULL,
        subject BLOB NOT NULL,
        buckets BLOB NOT NULL,
        PRIMARY KEY (rule, subject)
    ) STRICT, WITHOUT ROWID;
";

/// Bytes of buckets.
const BUCKETS: usize = size_of::<Buckets>();

/// What both clocks read at one moment, in ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// CLOCK_BOOTTIME.
    pub boot: u64,
    /// Unix time.
    pub unix: u64,
}

/// What was counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// When.
    pub reading: Reading,
    /// By principal's index.
    pub meters: Vec<(u32, Meter)>,
    /// By named subject.
    pub scopes: Vec<(Scope, Buckets)>,
}

/// The open database, and what it holds: a hash of each row.
#[derive(Debug)]
pub struct Counts {
    connection: Connection,
    /// `None` until all of it was written once.
    held: Option<Held>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Held {
    /// By how many seconds Unix time is ahead: the clock may be set.
    offset: i64,
    meters: HashMap<u32, u64>,
    scopes: HashMap<Scope, u64>,
}

impl Counts {
    /// Opens the database, or makes it.
    ///
    /// # Errors
    /// The file cannot be opened, or is none of these.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = |source| Error::File { path: path.to_owned(), action: "opened", source };
        // SQLite would make it as the umask says.
        fs::OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path).map_err(file)?;
        let mut connection = Connection::open(path)?;
        connection.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA trusted_schema = OFF; PRAGMA temp_store = MEMORY;",
        )?;
        let pragma = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let (version, owner) = (pragma("user_version")?, pragma("application_id")?);
        if version == 0 {
            let transaction = connection.transaction()?;
            transaction.execute_batch(SCHEMA)?;
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
            transaction.pragma_update(None, "user_version", VERSION)?;
            transaction.commit()?;
        } else if version != VERSION || owner != i64::from(APPLICATION_ID) {
            return Err(Error::Foreign { path: path.to_owned() });
        }
        Ok(Self { connection, held: None })
    }

    /// The state; `None` if none was written.
    ///
    /// # Errors
    /// The database cannot be read, or holds what was not written so.
    pub fn read(&self) -> Result<Option<State>, Error> {
        let reading = self.connection.query_row("SELECT boot, unix FROM moment", [], |row| {
            Ok(Reading { boot: row.get::<_, i64>(0)?.cast_unsigned(), unix: row.get::<_, i64>(1)?.cast_unsigned() })
        });
        let Some(reading) = reading.optional()? else { return Ok(None) };
        let mut meters = self.connection.prepare(
            "SELECT principal, buckets, allowed, limited, denied, would_refuse, candidate, key_in_url FROM meters",
        )?;
        let meters = meters.query_map([], |row| {
            let count = |column| Ok::<_, rusqlite::Error>(row.get::<_, i64>(column)?.cast_unsigned());
            let meter = Meter {
                buckets: of_bytes(&row.get(1)?),
                allowed: count(2)?,
                limited: count(3)?,
                denied: count(4)?,
                would_refuse: count(5)?,
                candidate: count(6)?,
                key_in_url: count(7)?,
                principal: 0,
                key: 0,
            };
            Ok((row.get(0)?, meter))
        })?;
        let meters = meters.collect::<Result<_, _>>()?;
        let mut scopes = self.connection.prepare("SELECT rule, subject, buckets FROM scopes")?;
        let scopes = scopes.query_map([], |row| {
            let subject: [u8; 16] = row.get(1)?;
            let (words, _) = subject.as_chunks();
            let subject = std::array::from_fn(|word| u64::from_le_bytes(words[word]));
            Ok((Scope { rule: row.get::<_, i64>(0)?.cast_unsigned(), subject }, of_bytes(&row.get(2)?)))
        })?;
        Ok(Some(State { reading, meters, scopes: scopes.collect::<Result<_, _>>()? }))
    }

    /// Makes it this state, at once or not at all.
    ///
    /// # Errors
    /// The database cannot be written; then it is what it was.
    pub fn write(
        &mut self,
        reading: Reading,
        meters: impl Iterator<Item = (u32, Meter)>,
        scopes: impl Iterator<Item = (Scope, Buckets)>,
    ) -> Result<(), Error> {
        let (boot, unix) = (reading.boot.cast_signed(), reading.unix.cast_signed());
        let transaction = self.connection.transaction()?;
        if self.held.is_none() {
            transaction.execute_batch("DELETE FROM moment; DELETE FROM meters; DELETE FROM scopes;")?;
        }
        let none = Held::default();
        let held = self.held.as_ref().unwrap_or(&none);
        let next = Held {
            offset: unix.wrapping_sub(boot) / 1_000_000_000,
            meters: write_meters(&transaction, &held.meters, meters)?,
            scopes: write_scopes(&transaction, &held.scopes, scopes)?,
        };
        if self.held.as_ref() != Some(&next) {
            transaction.execute("INSERT OR REPLACE INTO moment VALUES (1, ?1, ?2)", [boot, unix])?;
            transaction.commit()?;
            self.held = Some(next);
        }
        Ok(())
    }
}

/// Writes what has changed, and gives what is held then.
fn write_meters(
    transaction: &Transaction<'_>,
    held: &HashMap<u32, u64>,
    meters: impl Iterator<Item = (u32, Meter)>,
) -> Result<HashMap<u32, u64>, Error> {
    let mut write =
        transaction.prepare_cached("INSERT OR REPLACE INTO meters VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?;
    let mut next = HashMap::with_capacity(held.len());
    for (index, meter) in meters {
        let Meter { allowed, principal: _, key: _, buckets, limited, denied, would_refuse, candidate, key_in_url } =
            meter;
        let counts = [allowed, limited, denied, would_refuse, candidate, key_in_url].map(u64::cast_signed);
        let (buckets, [allowed, limited, denied, would_refuse, candidate, key_in_url]) = (bytes(&buckets), counts);
        let hash = hash(&(buckets, counts));
        if held.get(&index) != Some(&hash) {
            write.execute(params![index, buckets, allowed, limited, denied, would_refuse, candidate, key_in_url])?;
        }
        next.insert(index, hash);
    }
    let mut remove = transaction.prepare_cached("DELETE FROM meters WHERE principal = ?1")?;
    for index in held.keys().filter(|index| !next.contains_key(index)) {
        remove.execute([index])?;
    }
    Ok(next)
}

/// Likewise.
fn write_scopes(
    transaction: &Transaction<'_>,
    held: &HashMap<Scope, u64>,
    scopes: impl Iterator<Item = (Scope, Buckets)>,
) -> Result<HashMap<Scope, u64>, Error> {
    let mut write = transaction.prepare_cached("INSERT OR REPLACE INTO scopes VALUES (?1, ?2, ?3)")?;
    let mut next = HashMap::with_capacity(held.len());
    for (scope, buckets) in scopes {
        let buckets = bytes(&buckets);
        let hash = hash(&buckets);
        if held.get(&scope) != Some(&hash) {
            write.execute(params![scope.rule.cast_signed(), subject(&scope), buckets])?;
        }
        next.insert(scope, hash);
    }
    let mut remove = transaction.prepare_cached("DELETE FROM scopes WHERE rule = ?1 AND subject = ?2")?;
    for scope in held.keys().filter(|scope| !next.contains_key(scope)) {
        remove.execute(params![scope.rule.cast_signed(), subject(scope)])?;
    }
    Ok(next)
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

fn subject(scope: &Scope) -> [u8; 16] {
    let mut bytes = [0; 16];
    let (words, _) = bytes.as_chunks_mut();
    words.iter_mut().zip(scope.subject).for_each(|(bytes, word)| *bytes = word.to_le_bytes());
    bytes
}

/// [`Buckets::words`], each with its lowest byte first.
fn bytes(buckets: &Buckets) -> [u8; BUCKETS] {
    let mut bytes = [0; BUCKETS];
    let (words, _) = bytes.as_chunks_mut();
    words.iter_mut().zip(buckets.words()).for_each(|(bytes, word)| *bytes = word.to_le_bytes());
    bytes
}

fn of_bytes(bytes: &[u8; BUCKETS]) -> Buckets {
    let (words, _) = bytes.as_chunks();
    Buckets::of_words(|position| u64::from_le_bytes(words[position]))
}

#[cfg(test)]
mod tests {
    use enforcer_ebpf::abi::Bucket;

    use super::*;

    fn meter(used: u64) -> Meter {
        let mut meter = Meter { allowed: used, limited: u64::MAX, key_in_url: 3, ..Meter::default() };
        meter.buckets.limits[1] = Bucket { window: used, counts: 2, arrival: 3 };
        meter.buckets.candidate[3] = Bucket { window: u64::MAX, counts: used, arrival: 5 };
        meter
    }

    fn scope(rule: u64) -> Scope {
        Scope { rule, subject: [u64::MAX, 7] }
    }

    #[test]
    fn what_was_written_last_is_read_again_in_whatever_steps_it_came() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("counts.db");
        let mut counts = Counts::open(&path).expect("a new database");
        assert_eq!(counts.read().expect("read"), None);
        let first = State {
            reading: Reading { boot: 5, unix: 1_000_000_000_005 },
            meters: vec![(1, meter(1)), (2, meter(2)), (131_071, meter(3))],
            scopes: vec![(scope(16), meter(4).buckets), (scope(17), meter(5).buckets)],
        };
        // The second has no meter of 2 any more, another of 1, and another scope.
        let second = State {
            reading: Reading { boot: 6, ..first.reading },
            meters: vec![(1, meter(9)), (131_071, meter(3))],
            scopes: vec![(scope(17), meter(5).buckets), (scope(18), meter(6).buckets)],
        };
        for opened_anew in [false, true] {
            for state in [&first, &second, &first] {
                if opened_anew {
                    counts = Counts::open(&path).expect("the database");
                }
                let State { reading, meters, scopes } = state.clone();
                counts.write(reading, meters.into_iter(), scopes.into_iter()).expect("written");
                assert_eq!(counts.read().expect("read").as_ref(), Some(state));
            }
        }
        // A clock that is set matters by itself, and nothing else does where nothing has changed.
        let set = Reading { unix: first.reading.unix + 5_000_000_000, ..first.reading };
        for (reading, held) in [(set, set), (Reading { boot: 7, unix: set.unix + 2 }, set)] {
            let State { meters, scopes, .. } = first.clone();
            counts.write(reading, meters.into_iter(), scopes.into_iter()).expect("written");
            assert_eq!(counts.read().expect("read").map(|state| state.reading), Some(held));
        }
    }

    #[test]
    fn a_database_of_another_kind_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("counts.db");
        fs::write(&path, "what is this, which is no database at all and longer than a header").expect("written");
        assert!(Counts::open(&path).is_err());
        let other = folder.path().join("other.db");
        drop(super::super::Store::open(&other).expect("a store"));
        assert!(matches!(Counts::open(&other), Err(Error::Foreign { .. })));
    }
}
