//! An array map in this process's memory, as atomic words: reads and writes without a system call, the same words that
//! the program on any CPU sees.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr::{self, NonNull},
    sync::atomic::AtomicU64,
};

/// The mapped values of a `BPF_F_MMAPABLE` array whose values are whole words.
#[derive(Debug)]
pub(super) struct Mapped {
    start: NonNull<AtomicU64>,
    /// Words mapped.
    len: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is reached through atomics only.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Maps the first `words` words of the array `map`.
    pub(super) fn new(map: BorrowedFd<'_>, words: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; it touches no memory of ours.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), bytes(words), protection, libc::MAP_SHARED, map.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { start, len: words })
    }

    /// All words.
    pub(super) fn words(&self) -> &[AtomicU64] {
        // SAFETY: `len` words are mapped, page-aligned, until drop; other writers write whole words, as atomics do.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping made by `new`; the borrows that `words` gave out have ended.
        unsafe { libc::munmap(self.start.as_ptr().cast(), bytes(self.len)) };
    }
}

fn bytes(words: usize) -> usize {
    words * size_of::<AtomicU64>()
}
