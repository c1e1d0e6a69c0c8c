//! All that the program has counted of principals and named rules: read as a whole to be written down, and put back into
//! maps that are new.
//!
//! What single sources have used is not in it: their table is for who comes now.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
};

use aya::{
    Ebpf,
    maps::{Map, MapError},
};
use enforcer_ebpf::abi::{self, Buckets, Meter, Principal, Scope, map, scope};

use super::{Error, Kernel, meters::Meters, syscall, tables::failed};

/// The maps that it lies in. They stay of use while the kernel changes, and when enforcement has ended.
#[derive(Clone, Debug)]
pub struct Counted {
    pub(super) meters: Meters,
    buckets: Arc<OwnedFd>,
}

impl Counted {
    /// Those of the loaded object.
    pub(super) fn open(object: &Ebpf) -> Result<Self, Error> {
        let Some(Map::HashMap(buckets)) = object.map(map::BUCKETS) else {
            return Err(Error::Foreign { what: map::BUCKETS });
        };
        let opened = |error| failed(map::BUCKETS, "opened", MapError::IoError(error));
        let buckets = buckets.fd().as_fd().try_clone_to_owned().map_err(opened)?;
        Ok(Self { meters: Meters::open(object)?, buckets: Arc::new(buckets) })
    }

    /// The principals for which anything was counted, by index. The words of each are read one after the other, while the
    /// program goes on counting.
    pub fn meters(&self) -> impl Iterator<Item = (u32, Meter)> {
        let counted = self.meters.read().map(|meter| Meter { principal: 0, key: 0, ..meter });
        (0..).zip(counted).filter(|(_, meter)| *meter != Meter::default())
    }

    /// What is counted for one principal. The words are read one after the other, while the program goes on counting.
    ///
    /// # Errors
    /// An index beyond the end of the map.
    pub fn meter(&self, index: u32) -> Result<Meter, Error> {
        self.meters.meter(index)
    }

    /// What is used by whom of limits that are not of one principal alone.
    ///
    /// # Errors
    /// A failed read.
    pub fn buckets(&self) -> Result<Vec<(Scope, Buckets)>, Error> {
        let entries = syscall::entries(self.buckets.as_fd(), abi::BUCKETS as usize);
        let mut entries = entries.map_err(|error| failed(map::BUCKETS, "read", MapError::IoError(error)))?;
        entries.retain(|(scope, buckets)| is_kept(*scope) && *buckets != Buckets::default());
        Ok(entries)
    }
}

/// Whether a rule's buckets are those of limits whose use is kept.
const fn is_kept(scope: Scope) -> bool {
    !matches!(scope::own(scope.rule), scope::ADMISSION | scope::UNREGISTERED_ADMISSION | scope::SOURCES_OF_KEY)
}

impl Kernel {
    /// What was counted.
    #[must_use]
    pub fn counted(&self) -> Counted {
        self.tables.counted.clone()
    }

    /// Whether no principal is in the maps: they are new, or nobody was there yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tables.counted.meters.principals().all(|principal| principal == Principal::default())
    }
}
