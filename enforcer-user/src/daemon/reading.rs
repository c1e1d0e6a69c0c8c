//! What is told of all principals and keys, read beside the changes: through a connection of its own to the store, and from
//! mapped memory. To read a hundred thousand takes a while, for which no change should wait.

use std::collections::HashMap;
use std::path::Path;

use enforcer_ebpf::abi::Meter;
use jiff::Timestamp;

use super::registry::Error;
use super::report::{counts, listed};
use crate::api::Keys;
use crate::kernel::Counted;
use crate::store::{self, Principal, Store};

/// The store and the counts, to be read.
#[derive(Debug)]
pub(crate) struct Reader {
    store: Store,
    counted: Counted,
}

impl Reader {
    /// Opens the store at `path`, which is open already, once more.
    pub(super) fn open(path: &Path, counted: Counted) -> Result<Self, store::Error> {
        Ok(Self { store: Store::reader(path)?, counted })
    }

    /// How many keys and principals there are.
    pub(crate) fn sizes(&self) -> Result<(u64, u64), Error> {
        Ok(self.store.sizes()?)
    }

    /// Name, number of keys and meter of each principal, by index.
    pub(crate) fn principals(&self) -> Result<Vec<(String, u64, Meter)>, Error> {
        let named = self.store.named()?.into_iter();
        named.map(|(index, name, keys)| Ok((name, keys, self.counted.meter(index)?))).collect()
    }

    /// All keys, with their principals' counts. Of `tried` principals the limits are those.
    pub(crate) fn keys(&self, tried: Vec<Principal>) -> Result<Keys, Error> {
        // Before the principals: those that have keys stay.
        let rows = self.store.keys()?;
        let all = self.store.principals()?.into_iter().chain(tried);
        let limits: HashMap<u32, String> = all.map(|one| (one.index, one.limits.to_string())).collect();
        let now = Timestamp::now();
        let mut keys = Vec::with_capacity(rows.len());
        for row in rows {
            let limit = limits.get(&row.principal).cloned().unwrap_or_default();
            let counts = counts(&self.counted.meter(row.principal)?);
            keys.push(listed(row, limit, counts, now));
        }
        Ok(Keys { keys })
    }
}
