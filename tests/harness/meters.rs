//! The words of METERS that the daemon writes, while the program may be changing those beside them.

use std::{
    mem::offset_of,
    os::fd::{AsFd as _, AsRawFd as _},
    ptr::{self, NonNull},
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context as _, Result, bail};
use aya::maps::Map;
use enforcer_ebpf::abi::{Meter, Principal};

/// The meters, in this process's memory.
pub struct Meters {
    start: NonNull<AtomicU64>,
    /// Meters mapped.
    len: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is reached through atomics only.
unsafe impl Send for Meters {}
// SAFETY: as above.
unsafe impl Sync for Meters {}

impl Meters {
    /// Maps the meters of `map`.
    ///
    /// # Errors
    /// It is no array of meters, or cannot be mapped.
    pub fn map(map: &Map) -> Result<Self> {
        let Map::Array(data) = map else { bail!("no array") };
        let info = data.info()?;
        if info.value_size() as usize != size_of::<Meter>() {
            bail!("not of meters");
        }
        let len = info.max_entries() as usize;
        let (bytes, protection) = (len * size_of::<Meter>(), libc::PROT_READ | libc::PROT_WRITE);
        let fd = data.fd().as_fd().as_raw_fd();
        // SAFETY: a new mapping at an address of the kernel's choice; it touches no memory of ours.
        let start = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, libc::MAP_SHARED, fd, 0) };
        if start == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error()).context("mmap");
        }
        Ok(Self { start: NonNull::new(start.cast()).context("mapped at address 0")?, len })
    }

    /// Puts a principal under a policy, by one store.
    ///
    /// # Panics
    /// There is no such principal.
    pub fn set_principal(&self, index: u32, principal: Principal) {
        self.word(index, offset_of!(Meter, principal)).store(principal.to_word(), Ordering::Release);
    }

    /// Lets the shortcut of a tag with this second word lead to a principal.
    ///
    /// # Panics
    /// There is no such principal.
    pub fn set_key(&self, index: u32, word: u64) {
        self.word(index, offset_of!(Meter, key)).store(word, Ordering::Release);
    }

    fn word(&self, index: u32, offset: usize) -> &AtomicU64 {
        let index = index as usize;
        assert!(index < self.len, "no meter {index}");
        // SAFETY: within the mapping, which lasts as long as this.
        unsafe { self.start.byte_add(index * size_of::<Meter>() + offset).as_ref() }
    }
}

impl Drop for Meters {
    fn drop(&mut self) {
        // SAFETY: the mapping made by `map`; the borrows that `word` gave out have ended.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len * size_of::<Meter>()) };
    }
}
