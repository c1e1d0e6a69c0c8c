//! What survives: principals, their limits and their keys' tags, in SQLite.
//!
//! The file is 0600 and holds no key in clear. Its schema is numbered by `user_version`; an older one is brought up
//! to date when it is opened, a newer one is refused. Every change happens inside [`Store::begin`], which undoes it
//! unless it is committed, so that the daemon can change the maps in between.

pub mod counts;
mod policy;
mod trial;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use enforcer_ebpf::abi::KeyTag;
use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, TransactionBehavior, params};

use crate::credential;
use crate::name::Selector;
use crate::policy::Limits;
pub use policy::{Placed, PlacedClient, PlacedPrincipal, PlacedQuota, PlacedSite};
pub use trial::StoredTrial;

/// Each brings the schema from its index to the next; never change one that was released.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE install (
        -- Tag of a fixed text under the install's secret: tells whether the tags below are of this secret.
        secret_check BLOB NOT NULL CHECK (length(secret_check) = 16)
    ) STRICT;
    CREATE TABLE principals (
        -- Index in the maps PRINCIPALS and METERS; 0 is never given out, a row is never removed.
        idx     INTEGER PRIMARY KEY CHECK (idx BETWEEN 1 AND 4294967295),
        name    TEXT NOT NULL UNIQUE,
        limits  TEXT NOT NULL,
        -- Seconds since 1970.
        created INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE keys (
        tag       BLOB PRIMARY KEY CHECK (length(tag) = 16),
        principal INTEGER NOT NULL REFERENCES principals (idx),
        disabled  INTEGER NOT NULL DEFAULT 0 CHECK (disabled IN (0, 1)),
        created   INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX keys_by_principal ON keys (principal);
",
    "
    -- Limits are canonical strings; times are seconds since 1970; NULL stands for none.
    CREATE TABLE plans (
        name      TEXT PRIMARY KEY,
        limits    TEXT NOT NULL,
        candidate TEXT,
        mode      TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    -- Beside what an operator has said of a principal stands what it came to, in `limits` and `candidate`: in the order
    -- of the buckets of its meter.
    ALTER TABLE principals ADD COLUMN plan TEXT REFERENCES plans (name);
    ALTER TABLE principals ADD COLUMN own TEXT;
    ALTER TABLE principals ADD COLUMN until INTEGER;
    ALTER TABLE principals ADD COLUMN own_candidate TEXT;
    ALTER TABLE principals ADD COLUMN candidate TEXT;
    ALTER TABLE principals ADD COLUMN removed INTEGER NOT NULL DEFAULT 0 CHECK (removed IN (0, 1));
    UPDATE principals SET own = limits;
    CREATE TABLE clients (
        principal INTEGER NOT NULL REFERENCES principals (idx),
        id        TEXT NOT NULL,
        -- Within the principal, never given to another id.
        number    INTEGER NOT NULL CHECK (number BETWEEN 0 AND 4294967295),
        -- In the order of its buckets; NULL once it is removed.
        limits    TEXT,
        PRIMARY KEY (principal, id),
        UNIQUE (principal, number)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE scopes (
        -- Scope::rule, never given to another; a row is never removed.
        number    INTEGER PRIMARY KEY CHECK (number BETWEEN 16 AND 4294967295),
        -- What it is the number of: a named limit, or a path with its methods.
        identity  TEXT NOT NULL UNIQUE
    ) STRICT;
    -- In these, limits are in the order of their buckets.
    CREATE TABLE limits (
        name      TEXT PRIMARY KEY,
        limits    TEXT NOT NULL,
        per       TEXT NOT NULL,
        candidate TEXT,
        mode      TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE routes (
        path      TEXT NOT NULL,
        -- One bit for each.
        methods   INTEGER NOT NULL,
        limits    TEXT,
        per       TEXT,
        candidate TEXT,
        mode      TEXT,
        shared    TEXT REFERENCES limits (name),
        cost      INTEGER NOT NULL,
        CHECK (limits IS NULL OR shared IS NULL)
    ) STRICT;
    CREATE TABLE public (
        -- With /* at its end if it reaches beneath itself.
        path      TEXT NOT NULL,
        methods   INTEGER NOT NULL,
        limits    TEXT NOT NULL
    ) STRICT;
    CREATE TABLE exempt (
        -- Its bit in Rule::exempt.
        number    INTEGER PRIMARY KEY CHECK (number BETWEEN 0 AND 63),
        path      TEXT NOT NULL,
        methods   INTEGER NOT NULL,
        -- Prefixes with spaces between them.
        sources   TEXT NOT NULL,
        until     INTEGER NOT NULL,
        reason    TEXT NOT NULL
    ) STRICT;
    CREATE TABLE service (
        id                        INTEGER PRIMARY KEY CHECK (id = 1),
        ceiling                   TEXT,
        source                    TEXT,
        guesses                   TEXT NOT NULL,
        guess_penalty_ms          INTEGER NOT NULL,
        strict_guesses            INTEGER NOT NULL CHECK (strict_guesses IN (0, 1)),
        preflight                 TEXT NOT NULL,
        client_id                 TEXT,
        trusted_proxies           TEXT NOT NULL,
        proxy_protocol            TEXT NOT NULL,
        connections_per_source    INTEGER,
        connections_per_principal INTEGER,
        keys_most                 INTEGER NOT NULL,
        keys_within_ms            INTEGER NOT NULL,
        keys_action               TEXT NOT NULL,
        sources_most              INTEGER NOT NULL,
        sources_within_ms         INTEGER NOT NULL,
        sources_action            TEXT NOT NULL
    ) STRICT;
    ALTER TABLE keys ADD COLUMN not_before INTEGER;
    ALTER TABLE keys ADD COLUMN expires INTEGER;
    ALTER TABLE keys ADD COLUMN limits TEXT;
    ALTER TABLE keys ADD COLUMN label TEXT;
",
    "
    -- Of these, limits are in the order of their buckets.
    CREATE TABLE tenants (
        name      TEXT PRIMARY KEY,
        limits    TEXT NOT NULL,
        candidate TEXT,
        mode      TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    ALTER TABLE principals ADD COLUMN tenant TEXT REFERENCES tenants (name);
",
    "
    ALTER TABLE service ADD COLUMN key_headers TEXT NOT NULL DEFAULT 'x-api-key';
",
    "
    CREATE INDEX overrides_by_end ON principals (until) WHERE until IS NOT NULL;
",
    "
    CREATE TABLE services (
        -- abi::Service::number, never given to another; a row is never removed.
        number    INTEGER PRIMARY KEY CHECK (number BETWEEN 0 AND 4294967295),
        name      TEXT NOT NULL UNIQUE
    ) STRICT;
    INSERT INTO services (number, name) VALUES (0, 'default');
    -- Of each service, in place of the one that there was.
    CREATE TABLE sites (
        service                   INTEGER PRIMARY KEY REFERENCES services (number),
        ceiling                   TEXT,
        source                    TEXT,
        guesses                   TEXT NOT NULL,
        guess_penalty_ms          INTEGER NOT NULL,
        strict_guesses            INTEGER NOT NULL CHECK (strict_guesses IN (0, 1)),
        preflight                 TEXT NOT NULL,
        client_id                 TEXT,
        trusted_proxies           TEXT NOT NULL,
        proxy_protocol            TEXT NOT NULL,
        connections_per_source    INTEGER,
        connections_per_principal INTEGER,
        keys_most                 INTEGER NOT NULL,
        keys_within_ms            INTEGER NOT NULL,
        keys_action               TEXT NOT NULL,
        sources_most              INTEGER NOT NULL,
        sources_within_ms         INTEGER NOT NULL,
        sources_action            TEXT NOT NULL,
        key_headers               TEXT NOT NULL
    ) STRICT;
    INSERT INTO sites SELECT 0, ceiling, source, guesses, guess_penalty_ms, strict_guesses, preflight, client_id,
        trusted_proxies, proxy_protocol, connections_per_source, connections_per_principal, keys_most, keys_within_ms,
        keys_action, sources_most, sources_within_ms, sources_action, key_headers FROM service;
    DROP TABLE service;
    CREATE TABLE quotas (
        service   INTEGER NOT NULL REFERENCES services (number),
        name      TEXT NOT NULL,
        limits    TEXT NOT NULL,
        per       TEXT NOT NULL,
        candidate TEXT,
        mode      TEXT NOT NULL,
        PRIMARY KEY (service, name)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO quotas SELECT 0, name, limits, per, candidate, mode FROM limits;
    ALTER TABLE routes RENAME TO routes_of_one;
    CREATE TABLE routes (
        service   INTEGER NOT NULL REFERENCES services (number),
        path      TEXT NOT NULL,
        -- One bit for each.
        methods   INTEGER NOT NULL,
        limits    TEXT,
        per       TEXT,
        candidate TEXT,
        mode      TEXT,
        shared    TEXT,
        cost      INTEGER NOT NULL,
        CHECK (limits IS NULL OR shared IS NULL),
        FOREIGN KEY (service, shared) REFERENCES quotas (service, name)
    ) STRICT;
    INSERT INTO routes SELECT 0, path, methods, limits, per, candidate, mode, shared, cost FROM routes_of_one;
    DROP TABLE routes_of_one;
    DROP TABLE limits;
    -- A column that is added cannot refer to another table.
    ALTER TABLE public ADD COLUMN service INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE exempt ADD COLUMN service INTEGER NOT NULL DEFAULT 0;
",
    "
    CREATE TABLE trial (
        id        INTEGER PRIMARY KEY CHECK (id = 1),
        -- ns of CLOCK_BOOTTIME, as a signed number.
        until     INTEGER NOT NULL,
        -- As a file says it.
        policy    TEXT NOT NULL
    ) STRICT;
",
    "
    -- For each plan and tenant that goes, SQLite looks for a principal that refers to it.
    CREATE INDEX principals_by_plan ON principals (plan) WHERE plan IS NOT NULL;
    CREATE INDEX principals_by_tenant ON principals (tenant) WHERE tenant IS NOT NULL;
",
    "
    ALTER TABLE sites ADD COLUMN unkeyed TEXT NOT NULL DEFAULT 'blocked';
    ALTER TABLE sites ADD COLUMN unregistered TEXT;
    ALTER TABLE sites ADD COLUMN max_keys INTEGER CHECK ((max_keys IS NULL) = (unregistered IS NULL));
",
    "
    -- Words, between blanks.
    ALTER TABLE sites ADD COLUMN observe TEXT NOT NULL DEFAULT '';
    ALTER TABLE sites ADD COLUMN ceiling_candidate TEXT;
    ALTER TABLE sites ADD COLUMN source_candidate TEXT;
    ALTER TABLE sites ADD COLUMN preflight_candidate TEXT;
    ALTER TABLE sites ADD COLUMN unkeyed_candidate TEXT;
    ALTER TABLE sites ADD COLUMN unregistered_candidate TEXT;
    ALTER TABLE public ADD COLUMN candidate TEXT;
",
];

/// `enfc`, so that `file` and other tools can tell whose database this is.
const APPLICATION_ID: i32 = 0x656e_6663;

/// What [`Store::bind`] tags.
const SECRET_CHECK: &[u8] = b"enforcer key.secret";

/// Why the store could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file itself.
    #[error("the store {} cannot be {action}: {source}", path.display())]
    File {
        /// The store.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The error of the call.
        source: io::Error,
    },
    /// The schema is of a later release.
    #[error("the store {} has schema {found}, and this enforcer knows only up to {known}: run a newer enforcer", path.display())]
    Newer {
        /// The store.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// The newest known here.
        known: usize,
    },
    /// Another program's database.
    #[error("{} is a database of another program: name another --state-dir", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The keys' tags were made under another secret.
    #[error(
        "the store's keys were tagged under another secret than key.secret's: restore the key.secret that belongs to \
         store.db, or remove both and add the keys again"
    )]
    WrongSecret,
    /// A row that this program would not have written.
    #[error("the store holds a limit that does not parse, principal `{name}`: {reason}")]
    Limit {
        /// The row's principal.
        name: String,
        /// The parser's words.
        reason: String,
    },
    /// Another row that this program would not have written.
    #[error("the store holds what it should not, {row}: {reason}")]
    Row {
        /// Which one.
        row: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A principal that is to go still has keys.
    #[error("principal `{name}` cannot be removed: it has keys")]
    Keyed {
        /// The principal.
        name: String,
    },
    /// A principal that is to be under a plan that is not there.
    #[error("principal `{name}` cannot be under plan `{plan}`: there is none")]
    NoPlan {
        /// The principal.
        name: String,
        /// The plan.
        plan: String,
    },
    /// A number that is never used again has none behind it.
    #[error("the store has no number left for {0}")]
    Exhausted(&'static str),
    /// SQLite refused.
    #[error("the store cannot be used: {0}")]
    Sql(#[from] rusqlite::Error),
}

/// A principal's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// Index in the maps, from 1.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The limits that it is under, its own or its plan's; their order is that of the meter's buckets.
    pub limits: Limits,
    /// The tenant that it belongs to.
    pub tenant: Option<String>,
}

/// A key's row, with its principal's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The keyed tag.
    pub tag: KeyTag,
    /// Index of its principal.
    pub principal: u32,
    /// Name of its principal.
    pub name: String,
    /// Whether it is switched off.
    pub disabled: bool,
    /// When it was added, to the second.
    pub created: Timestamp,
    /// First valid instant, to the second; `None` = always.
    pub not_before: Option<Timestamp>,
    /// First instant no longer valid, to the second; `None` = never.
    pub expires: Option<Timestamp>,
    /// Limits of this key alone, in the order of their buckets.
    pub limits: Option<Limits>,
    /// What the operator calls it.
    pub label: Option<String>,
}

impl Key {
    /// A key that is new: good at once and for ever, with nothing of its own. Its principal's name is left out.
    #[must_use]
    pub fn new(tag: KeyTag, principal: u32, created: Timestamp) -> Self {
        Self {
            tag,
            principal,
            name: String::new(),
            disabled: false,
            created,
            not_before: None,
            expires: None,
            limits: None,
            label: None,
        }
    }
}

/// The open database.
#[derive(Debug)]
pub struct Store {
    connection: Connection,
}

/// A change under way; dropped without [`Change::commit`], it never was.
#[must_use]
pub struct Change<'s>(rusqlite::Transaction<'s>);

impl Change<'_> {
    /// Makes the change last.
    ///
    /// # Errors
    /// SQLite could not write; then the change is undone.
    pub fn commit(self) -> Result<(), Error> {
        Ok(self.0.commit()?)
    }
}

impl Store {
    /// Opens the store, makes it if there is none, and brings its schema up to date.
    ///
    /// # Errors
    /// The file cannot be opened, is of a later release, or is not a store.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = |action| move |source| Error::File { path: path.to_owned(), action, source };
        // SQLite would make it as the umask says; its WAL files take the modes of this one.
        fs::OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path).map_err(file("opened"))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(file("made private (mode 0600)"))?;
        let connection = Connection::open(path)?;
        connection.busy_timeout(std::time::Duration::from_secs(5))?;
        let mut store = Self { connection };
        store.migrate(path)?;
        // FULL: a removed key stays removed after a power cut. 64 MiB hold the pages of 100,000 new keys, which would
        // otherwise be written and read again within their one change.
        store.connection.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA trusted_schema = OFF;
             PRAGMA cache_size = -65536; PRAGMA temp_store = MEMORY;",
        )?;
        Ok(store)
    }

    /// Opens a store that is open already once more, to read it while the other is changed: each read sees what was committed
    /// before.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn reader(path: &Path) -> Result<Self, Error> {
        // Not read-only: whichever is closed last writes what is in the log into the file.
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        connection.busy_timeout(std::time::Duration::from_secs(5))?;
        connection.execute_batch("PRAGMA query_only = ON; PRAGMA trusted_schema = OFF; PRAGMA temp_store = MEMORY;")?;
        Ok(Self { connection })
    }

    fn migrate(&mut self, path: &Path) -> Result<(), Error> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let pragma = |name: &str| transaction.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let (found, owner) = (pragma("user_version")?, pragma("application_id")?);
        let tables: i64 = transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        if owner != i64::from(APPLICATION_ID) && (owner != 0 || tables != 0) {
            return Err(Error::Foreign { path: path.to_owned() });
        }
        let Some(missing) = usize::try_from(found).ok().and_then(|found| MIGRATIONS.get(found..)) else {
            return Err(Error::Newer { path: path.to_owned(), found, known: MIGRATIONS.len() });
        };
        for migration in missing {
            transaction.execute_batch(migration)?;
        }
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", MIGRATIONS.len() as i64)?;
        Ok(transaction.commit()?)
    }

    /// Ties the store to the install's secret, or checks that it is tied to it already.
    ///
    /// # Errors
    /// [`Error::WrongSecret`] if it is tied to another: every key would be unknown.
    pub fn bind(&self, secret: [u64; 2]) -> Result<(), Error> {
        let check = credential::tag_bytes(enforcer_ebpf::key::tag(secret, SECRET_CHECK));
        let bound: Option<[u8; 16]> =
            self.connection.query_row("SELECT secret_check FROM install", [], |row| row.get(0)).optional()?;
        match bound {
            Some(bound) if bound == check => Ok(()),
            Some(_) => Err(Error::WrongSecret),
            None => {
                self.connection.execute("INSERT INTO install (secret_check) VALUES (?1)", [check])?;
                Ok(())
            }
        }
    }

    /// Begins a change.
    ///
    /// # Errors
    /// Another process holds the store's write lock.
    pub fn begin(&self) -> Result<Change<'_>, Error> {
        Ok(Change(rusqlite::Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?))
    }

    /// The principal of this name.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn principal(&self, name: &str) -> Result<Option<Principal>, Error> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT idx, name, limits, tenant FROM principals WHERE name = ?1 AND removed = 0")?;
        let row = statement.query_row([name], principal_row).optional()?;
        row.map(RawPrincipal::parse).transpose()
    }

    /// All principals, by index.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn principals(&self) -> Result<Vec<Principal>, Error> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT idx, name, limits, tenant FROM principals WHERE removed = 0 ORDER BY idx")?;
        let rows = statement.query_map([], principal_row)?;
        rows.map(|row| row?.parse()).collect()
    }

    /// Index and name of each principal, and how many keys it has, by index.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn named(&self) -> Result<Vec<(u32, String, u64)>, Error> {
        let mut statement = self.connection.prepare_cached(
            "SELECT idx, name, (SELECT count(*) FROM keys WHERE principal = idx)
             FROM principals WHERE removed = 0 ORDER BY idx",
        )?;
        let rows =
            statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get::<_, i64>(2)?.unsigned_abs())))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Whether it can be read.
    ///
    /// # Errors
    /// It cannot.
    pub fn probe(&self) -> Result<(), Error> {
        Ok(self.connection.query_row("SELECT count(*) FROM install", [], |_| Ok(()))?)
    }

    /// Adds a principal, at the next index, or at the one that it had before it was removed.
    ///
    /// # Errors
    /// The store cannot be written, or has a principal of this name.
    pub fn add_principal(&self, name: &str, limits: Limits, now: Timestamp) -> Result<Principal, Error> {
        let values = params![name, limits.to_string(), now.as_second()];
        // SQLite gives the index behind the highest; asked for it, it would make a table for each answer.
        let mut added = self.connection.prepare_cached(
            "INSERT INTO principals (name, limits, own, created) VALUES (?1, ?2, ?2, ?3) ON CONFLICT (name) DO NOTHING",
        )?;
        let index = if added.execute(values)? > 0 {
            let index = self.connection.last_insert_rowid();
            u32::try_from(index).map_err(|_| Error::Exhausted("principals"))?
        } else {
            let mut again = self.connection.prepare_cached(
                "UPDATE principals SET limits = ?2, own = ?2, created = ?3, removed = 0 WHERE name = ?1 AND removed = 1
                 RETURNING idx",
            )?;
            again.query_row(values, |row| row.get(0))?
        };
        Ok(Principal { index, name: name.to_owned(), limits, tenant: None })
    }

    /// Puts a principal under limits of its own, which stand in the place of its plan's if it has one.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn set_limits(&self, index: u32, limits: &Limits) -> Result<(), Error> {
        let mut statement = self
            .connection
            .prepare_cached("UPDATE principals SET limits = ?2, own = ?2, until = NULL WHERE idx = ?1")?;
        statement.execute(params![index, limits.to_string()])?;
        Ok(())
    }

    /// All keys, by principal's name, then by age.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn keys(&self) -> Result<Vec<Key>, Error> {
        let mut statement = self.connection.prepare_cached(
            "SELECT tag, principal, name, disabled, k.created, not_before, expires, k.limits, label
             FROM keys k JOIN principals ON idx = principal
             ORDER BY name, k.created, tag",
        )?;
        let rows = statement.query_map([], key_row)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// All keys, by tag, without what the program does not judge by: names and labels. The quickest way to have them all.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn keys_by_tag(&self) -> Result<Vec<Key>, Error> {
        let mut statement = self.connection.prepare_cached(
            "SELECT tag, principal, '', disabled, created, not_before, expires, limits, NULL FROM keys ORDER BY tag",
        )?;
        let rows = statement.query_map([], key_row)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// All keys with limits of their own, by age.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn limited_keys(&self) -> Result<Vec<Key>, Error> {
        let mut statement = self.connection.prepare_cached(
            "SELECT tag, principal, name, disabled, k.created, not_before, expires, k.limits, label
             FROM keys k JOIN principals ON idx = principal
             WHERE k.limits IS NOT NULL ORDER BY k.created, tag",
        )?;
        let rows = statement.query_map([], key_row)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The key of this tag.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn key(&self, tag: KeyTag) -> Result<Option<Key>, Error> {
        let mut statement = self.connection.prepare_cached(
            "SELECT tag, principal, name, disabled, k.created, not_before, expires, k.limits, label
             FROM keys k JOIN principals ON idx = principal
             WHERE tag = ?1",
        )?;
        Ok(statement.query_row([credential::tag_bytes(tag)], key_row).optional()?)
    }

    /// The keys that `selector` names: those of its principal, and those whose tag begins with its id.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn selected(&self, selector: &Selector) -> Result<Selected, Error> {
        let mut by_name = self.connection.prepare_cached(
            "SELECT tag, principal, name, disabled, k.created, not_before, expires, k.limits, label
             FROM keys k JOIN principals ON idx = principal
             WHERE name = ?1 ORDER BY k.created, tag",
        )?;
        let mut by_id = self.connection.prepare_cached(
            "SELECT tag, principal, name, disabled, k.created, not_before, expires, k.limits, label
             FROM keys k JOIN principals ON idx = principal
             WHERE tag BETWEEN ?1 AND ?2 ORDER BY tag",
        )?;
        let by_id = match selector.tags() {
            Some((first, last)) => by_id.query_map([first, last], key_row)?.collect::<Result<_, _>>()?,
            None => Vec::new(),
        };
        Ok(Selected { by_name: by_name.query_map([&selector.name], key_row)?.collect::<Result<_, _>>()?, by_id })
    }

    /// Adds a key, whose principal is told by its index alone; `false` if the store has a key of this tag already.
    ///
    /// # Errors
    /// The store cannot be written, or there is no such principal.
    pub fn add_key(&self, key: &Key) -> Result<bool, Error> {
        let Key { tag, principal, name: _, disabled, created, not_before, expires, limits, label } = key;
        let mut statement = self.connection.prepare_cached(
            "INSERT INTO keys (tag, principal, disabled, created, not_before, expires, limits, label)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT DO NOTHING",
        )?;
        let second = |time: &Option<Timestamp>| time.map(Timestamp::as_second);
        let added = statement.execute(params![
            credential::tag_bytes(*tag),
            principal,
            disabled,
            created.as_second(),
            second(not_before),
            second(expires),
            limits.as_ref().map(Limits::to_string),
            label
        ])?;
        Ok(added > 0)
    }

    /// Removes a key; its principal stays, with its limits and its meter.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn remove_key(&self, tag: KeyTag) -> Result<(), Error> {
        self.connection.prepare_cached("DELETE FROM keys WHERE tag = ?1")?.execute([credential::tag_bytes(tag)])?;
        Ok(())
    }

    /// Switches a key off or on.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn set_disabled(&self, tag: KeyTag, disabled: bool) -> Result<(), Error> {
        let mut statement = self.connection.prepare_cached("UPDATE keys SET disabled = ?2 WHERE tag = ?1")?;
        statement.execute(params![credential::tag_bytes(tag), disabled])?;
        Ok(())
    }

    /// Sets when a key is valid: from `not_before` on, and no longer from `expires` on.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn set_validity(
        &self,
        tag: KeyTag,
        not_before: Option<Timestamp>,
        expires: Option<Timestamp>,
    ) -> Result<(), Error> {
        let mut statement =
            self.connection.prepare_cached("UPDATE keys SET not_before = ?2, expires = ?3 WHERE tag = ?1")?;
        let second = |time: Option<Timestamp>| time.map(Timestamp::as_second);
        statement.execute(params![credential::tag_bytes(tag), second(not_before), second(expires)])?;
        Ok(())
    }

    /// Sets a key's own limits, in the order of their buckets.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn set_key_limits(&self, tag: KeyTag, limits: Option<&Limits>) -> Result<(), Error> {
        let mut statement = self.connection.prepare_cached("UPDATE keys SET limits = ?2 WHERE tag = ?1")?;
        statement.execute(params![credential::tag_bytes(tag), limits.map(Limits::to_string)])?;
        Ok(())
    }

    /// Sets what the operator calls a key.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn set_label(&self, tag: KeyTag, label: Option<&str>) -> Result<(), Error> {
        let mut statement = self.connection.prepare_cached("UPDATE keys SET label = ?2 WHERE tag = ?1")?;
        statement.execute(params![credential::tag_bytes(tag), label])?;
        Ok(())
    }

    /// How many keys each principal that has some has, by the principal's index.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn keys_by_principal(&self) -> Result<HashMap<u32, u64>, Error> {
        let mut statement =
            self.connection.prepare_cached("SELECT principal, count(*) FROM keys GROUP BY principal")?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.unsigned_abs())))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// How many keys and principals there are.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn sizes(&self) -> Result<(u64, u64), Error> {
        let mut statement = self.connection.prepare_cached(
            "SELECT (SELECT count(*) FROM keys), (SELECT count(*) FROM principals WHERE removed = 0)",
        )?;
        let (keys, principals): (i64, i64) = statement.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok((keys.unsigned_abs(), principals.unsigned_abs()))
    }
}

/// What a [`Selector`] found.
#[derive(Debug, PartialEq, Eq)]
pub struct Selected {
    /// The keys of the principal of its name.
    pub by_name: Vec<Key>,
    /// The keys whose tag begins with its id.
    pub by_id: Vec<Key>,
}

struct RawPrincipal {
    index: u32,
    name: String,
    limits: String,
    tenant: Option<String>,
}

impl RawPrincipal {
    fn parse(self) -> Result<Principal, Error> {
        let Self { index, name, limits, tenant } = self;
        match limits.parse() {
            Ok(limits) => Ok(Principal { index, name, limits, tenant }),
            Err(error) => Err(Error::Limit { name, reason: error.to_string() }),
        }
    }
}

fn principal_row(row: &Row<'_>) -> rusqlite::Result<RawPrincipal> {
    Ok(RawPrincipal { index: row.get(0)?, name: row.get(1)?, limits: row.get(2)?, tenant: row.get(3)? })
}

fn key_row(row: &Row<'_>) -> rusqlite::Result<Key> {
    let time = |column| Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(column)?.map(timestamp));
    let limits: Option<String> = row.get(7)?;
    let limits = limits.map(|text| text.parse()).transpose().map_err(|error: crate::policy::ParseError| {
        rusqlite::Error::FromSqlConversionFailure(7, rusqlite::types::Type::Text, error.into())
    })?;
    Ok(Key {
        tag: credential::tag_from_bytes(row.get(0)?),
        principal: row.get(1)?,
        name: row.get(2)?,
        disabled: row.get(3)?,
        created: timestamp(row.get(4)?),
        not_before: time(5)?,
        expires: time(6)?,
        limits,
        label: row.get(8)?,
    })
}

/// A time as it lies in the store.
fn timestamp(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixture {
        dir: tempfile::TempDir,
    }

    impl Fixture {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().expect("a directory") }
        }

        fn path(&self) -> PathBuf {
            self.dir.path().join("store.db")
        }

        fn open(&self) -> Store {
            Store::open(&self.path()).expect("the store opens")
        }
    }

    fn limits(text: &str) -> Limits {
        text.parse().expect("a limit")
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1_700_000_000).expect("a time")
    }

    fn key(tag: KeyTag, of: &Principal) -> Key {
        Key { name: of.name.clone(), ..Key::new(tag, of.index, now()) }
    }

    const TAG: KeyTag = KeyTag([0x0706_0504_0302_0100, 2]);

    #[test]
    fn keys_and_limits_survive_a_restart() {
        let fixture = Fixture::new();
        let store = fixture.open();
        let change = store.begin().expect("begins");
        let alice = store.add_principal("alice", limits("100/minute"), now()).expect("added");
        store.add_key(&key(TAG, &alice)).expect("added");
        store.set_disabled(TAG, true).expect("disabled");
        store.set_limits(alice.index, &limits("5/second; 10/minute algo=fixed")).expect("set");
        change.commit().expect("commits");
        drop(store);

        let store = fixture.open();
        let key = Key { disabled: true, ..key(TAG, &alice) };
        assert_eq!(store.key(TAG).expect("key").as_ref(), Some(&key));
        assert_eq!(store.keys().expect("keys"), [key]);
        let alice = store.principal("alice").expect("read").expect("there");
        assert_eq!((alice.index, alice.limits.to_string().as_str()), (1, "5/second; 10/minute algo=fixed"));
        assert_eq!(store.sizes().expect("sizes"), (1, 1));
    }

    #[test]
    fn a_change_that_is_not_committed_never_was() {
        let fixture = Fixture::new();
        let store = fixture.open();
        let change = store.begin().expect("begins");
        store.add_principal("alice", limits("1/second"), now()).expect("added");
        drop(change);
        assert_eq!(store.principals().expect("principals"), []);
    }

    #[test]
    fn a_reader_sees_what_was_committed_and_changes_nothing() {
        let fixture = Fixture::new();
        let store = fixture.open();
        let reader = Store::reader(&fixture.path()).expect("opens");
        let change = store.begin().expect("begins");
        let alice = store.add_principal("alice", limits("1/second"), now()).expect("added");
        store.add_key(&key(TAG, &alice)).expect("added");
        let bob = store.add_principal("bob", limits("1/second"), now()).expect("added");
        assert_eq!(reader.named().expect("read"), []);
        change.commit().expect("commits");
        let named = [(alice.index, "alice".to_owned(), 1), (bob.index, "bob".to_owned(), 0)];
        assert_eq!(reader.named().expect("read"), named);
        assert!(matches!(reader.remove_key(TAG), Err(Error::Sql(_))));
        drop(store);
        drop(reader);
        let left: Vec<_> = fs::read_dir(fixture.dir.path()).expect("listed").collect();
        assert_eq!(left.len(), 1, "{left:?}");
        assert_eq!(fixture.open().named().expect("read"), named);
    }

    #[test]
    fn a_principal_without_keys_keeps_its_index() {
        let fixture = Fixture::new();
        let store = fixture.open();
        let alice = store.add_principal("alice", limits("1/second"), now()).expect("added");
        store.add_key(&key(TAG, &alice)).expect("added");
        store.remove_key(TAG).expect("removed");
        let bob = store.add_principal("bob", Limits::Unlimited, now()).expect("added");
        assert_eq!((alice.index, bob.index), (1, 2));
        assert_eq!(store.principal("alice").expect("read"), Some(alice));
    }

    #[test]
    fn finds_keys_by_name_and_by_the_beginning_of_their_tag() {
        let fixture = Fixture::new();
        let store = fixture.open();
        let alice = store.add_principal("00010203", limits("1/second"), now()).expect("added");
        let bob = store.add_principal("bob", limits("1/second"), now()).expect("added");
        store.add_key(&key(KeyTag([9, 9]), &alice)).expect("added");
        store.add_key(&key(TAG, &bob)).expect("added");
        let found = |text: &str| {
            let selected = store.selected(&Selector::parse(text).expect("a selector")).expect("read");
            let names = |keys: Vec<Key>| keys.into_iter().map(|key| key.name).collect::<Vec<_>>();
            (names(selected.by_name), names(selected.by_id))
        };
        assert_eq!(found("00010203"), (vec!["00010203".into()], vec!["bob".into()]));
        assert_eq!(found("id:0001020304"), (vec![], vec!["bob".into()]));
        assert_eq!(found("id:0001020305"), (vec![], vec![]));
        assert_eq!(found("id:000102030"), (vec![], vec!["bob".into()]));
        assert_eq!(found("id:000102031"), (vec![], vec![]));
        assert_eq!(found("id:00010203040506070200000000000000"), (vec![], vec!["bob".into()]));
        assert_eq!(found("id:00010203040506070200000000000001"), (vec![], vec![]));
        assert_eq!(found("bob"), (vec!["bob".into()], vec![]));
    }

    #[test]
    fn the_files_are_private_even_if_they_were_not() {
        let fixture = Fixture::new();
        fs::write(fixture.path(), b"").expect("written");
        fs::set_permissions(fixture.path(), fs::Permissions::from_mode(0o644)).expect("opened up");
        let store = fixture.open();
        store.add_principal("alice", limits("1/second"), now()).expect("added");
        for entry in fs::read_dir(fixture.dir.path()).expect("listed") {
            let entry = entry.expect("an entry");
            let mode = entry.metadata().expect("metadata").permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{}", entry.path().display());
        }
    }

    #[test]
    fn numbers_its_schema_and_refuses_a_later_one() {
        let fixture = Fixture::new();
        drop(fixture.open());
        drop(fixture.open());
        let connection = Connection::open(fixture.path()).expect("opens");
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).expect("read");
        assert_eq!(version, MIGRATIONS.len() as i64);
        connection.pragma_update(None, "user_version", 99).expect("written");
        drop(connection);
        let error = Store::open(&fixture.path()).expect_err("a later schema").to_string();
        let known = MIGRATIONS.len();
        let told = format!("has schema 99, and this enforcer knows only up to {known}: run a newer enforcer");
        assert!(error.ends_with(&told), "{error}");
    }

    #[test]
    fn a_store_of_the_first_schema_keeps_its_principals_and_keys() {
        let fixture = Fixture::new();
        let connection = Connection::open(fixture.path()).expect("opens");
        connection.execute_batch(MIGRATIONS[0]).expect("the first schema");
        connection
            .execute_batch(
                "INSERT INTO principals VALUES (7, 'alice', '100/minute; 5/second', 1);
                 INSERT INTO keys VALUES (x'000102030405060702000000000000ff', 7, 0, 1);",
            )
            .expect("rows");
        connection.pragma_update(None, "user_version", 1).expect("written");
        connection.pragma_update(None, "application_id", APPLICATION_ID).expect("written");
        drop(connection);
        let store = fixture.open();
        let limit = limits("100/minute; 5/second");
        let alice = Principal { index: 7, name: "alice".into(), limits: limit, tenant: None };
        assert_eq!(store.principals().expect("principals"), [alice]);
        let keys = store.keys().expect("keys");
        assert_eq!((keys.len(), keys[0].name.as_str(), keys[0].expires), (1, "alice", None));
        let (policy, placed) = store.policy(now()).expect("the policy");
        let own = crate::policy::document::Principal::of(limits("100/minute; 5/second"));
        assert_eq!((&policy.principals["alice"], placed.principals["alice"].index), (&own, 7));
    }

    #[test]
    fn a_key_has_a_time_limits_and_a_label_of_its_own() {
        let fixture = Fixture::new();
        let store = fixture.open();
        let alice = store.add_principal("alice", limits("1/second"), now()).expect("added");
        store.add_key(&key(TAG, &alice)).expect("added");
        store.set_validity(TAG, Some(now()), None).expect("set");
        store.set_key_limits(TAG, Some(&limits("5/minute"))).expect("set");
        store.set_label(TAG, Some("ci")).expect("set");
        let key = store.key(TAG).expect("read").expect("there");
        assert_eq!((key.not_before, key.expires), (Some(now()), None));
        assert_eq!((key.limits, key.label.as_deref()), (Some(limits("5/minute")), Some("ci")));
        store.set_validity(TAG, None, Some(now())).expect("set");
        store.set_key_limits(TAG, None).expect("set");
        store.set_label(TAG, None).expect("set");
        let key = store.key(TAG).expect("read").expect("there");
        assert_eq!((key.not_before, key.expires, key.limits, key.label), (None, Some(now()), None, None));
    }

    #[test]
    fn refuses_another_programs_database() {
        let fixture = Fixture::new();
        Connection::open(fixture.path()).expect("opens").execute_batch("CREATE TABLE t (x)").expect("written");
        assert!(matches!(Store::open(&fixture.path()), Err(Error::Foreign { .. })));
        fs::write(fixture.path(), "not a database at all, but long enough to be taken for one".repeat(4))
            .expect("written");
        assert!(matches!(Store::open(&fixture.path()), Err(Error::Sql(_))));
    }

    #[test]
    fn refuses_a_secret_that_its_tags_are_not_of() {
        let fixture = Fixture::new();
        let store = fixture.open();
        store.bind([1, 2]).expect("bound");
        store.bind([1, 2]).expect("still bound");
        assert!(matches!(store.bind([1, 3]), Err(Error::WrongSecret)));
    }
}
