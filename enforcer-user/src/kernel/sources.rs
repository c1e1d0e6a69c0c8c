//! The sources of refused requests, as the program keeps them: listed, and let in again.
//!
//! The program goes on writing there meanwhile. An entry that is written back may lose a refusal that was counted in
//! between, which no verdict hangs on.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd},
};

use aya::maps::{HashMap, Map, MapData, MapError};
use enforcer_ebpf::{
    abi::{self, map},
    source::{Record, Source},
};

use super::{Error, Kernel, syscall, tables::failed};

// include/uapi/linux/bpf.h
const BPF_EXIST: u64 = 2;

/// The map, whose types have been checked.
pub(super) struct Sources(Map);

impl Sources {
    pub(super) fn new(map: Map) -> Result<Self, Error> {
        let mut sources = Self(map);
        sources.entries()?;
        Ok(sources)
    }

    fn entries(&mut self) -> Result<HashMap<&mut MapData, Source, Record>, Error> {
        HashMap::try_from(&mut self.0).map_err(|error| failed(map::SOURCES, "opened", error))
    }

    fn descriptor(&self) -> Result<BorrowedFd<'_>, Error> {
        match &self.0 {
            Map::LruHashMap(data) => Ok(data.fd().as_fd()),
            _ => Err(Error::Foreign { what: map::SOURCES }),
        }
    }
}

impl Kernel {
    /// All sources that are known, in no order.
    ///
    /// # Errors
    /// A failed read.
    pub fn sources(&self) -> Result<Vec<(Source, Record)>, Error> {
        // One call, since a walk key by key could meet one that has just given way.
        let entries = syscall::entries(self.tables.sources.descriptor()?, abi::SOURCES as usize);
        entries.map_err(|error| failed(map::SOURCES, "read", MapError::IoError(error)))
    }

    /// When the last of all penalties ends or has ended, on the clock of [`super::now`]; 0 if there was none. An upper
    /// bound: it stays as it is when a penalty is ended before its time.
    ///
    /// # Errors
    /// A failed read.
    pub fn last_penalty(&self) -> Result<u64, Error> {
        self.tables.penalties.get(&0, 0).map_err(|error| failed(map::PENALTIES, "read", error))
    }

    /// Ends the penalty of a source, and forgets those before it; one that has given way meanwhile is no error.
    ///
    /// PENALTIES is left as it is: the program asks for a source's own record before that time, and does not after it.
    ///
    /// # Errors
    /// A failed read or write.
    pub fn forgive(&mut self, source: Source) -> Result<(), Error> {
        let mut sources = self.tables.sources.entries()?;
        let record = match sources.get(&source, 0) {
            Ok(record) => record,
            Err(MapError::KeyNotFound) => return Ok(()),
            Err(error) => return Err(failed(map::SOURCES, "read", error)),
        };
        let Record { answered: _, tolerated: _, until: _, served, refused, strikes: _ } = record;
        let forgiven = Record { served, refused, ..Record::default() };
        match sources.insert(source, forgiven, BPF_EXIST) {
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
            written => written.map_err(|error| failed(map::SOURCES, "written", error)),
        }
    }
}
