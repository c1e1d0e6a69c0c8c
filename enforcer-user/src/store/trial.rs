//! The policy on trial: what a daemon that takes over needs to go on with it.

use rusqlite::{OptionalExtension, params};

use super::{Error, Store};

/// A policy that holds for a time, as the store keeps it. What the store says of plans, principals and rules meanwhile is
/// what holds after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTrial {
    /// When it ends, in ns of CLOCK_BOOTTIME: a time of this boot only.
    pub until: u64,
    /// The policy, as a file says it.
    pub text: String,
}

impl Store {
    /// The policy that was on trial last, unless it was kept or taken back.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn trial(&self) -> Result<Option<StoredTrial>, Error> {
        let mut statement = self.connection.prepare_cached("SELECT until, policy FROM trial")?;
        let row = |row: &rusqlite::Row<'_>| {
            Ok(StoredTrial { until: row.get::<_, i64>(0)?.cast_unsigned(), text: row.get(1)? })
        };
        Ok(statement.query_row([], row).optional()?)
    }

    /// Keeps a policy that is on trial from now on, in the place of one before.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn set_trial(&self, trial: &StoredTrial) -> Result<(), Error> {
        let mut statement =
            self.connection.prepare_cached("INSERT OR REPLACE INTO trial (id, until, policy) VALUES (1, ?1, ?2)")?;
        statement.execute(params![trial.until.cast_signed(), trial.text])?;
        Ok(())
    }

    /// Forgets what was on trial.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn forget_trial(&self) -> Result<(), Error> {
        self.connection.prepare_cached("DELETE FROM trial")?.execute([])?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_trial_is_kept_until_it_is_forgotten() {
        let dir = tempfile::tempdir().expect("a directory");
        let open = || Store::open(&dir.path().join("store.db")).expect("the store opens");
        assert_eq!(open().trial().expect("read"), None);
        for until in [5, u64::MAX - 1] {
            let trial = StoredTrial { until, text: format!("version = 1 # {until}") };
            open().set_trial(&trial).expect("written");
            assert_eq!(open().trial().expect("read"), Some(trial));
        }
        open().forget_trial().expect("written");
        assert_eq!(open().trial().expect("read"), None);
    }
}
