//! The words that CPUs share. The BPF target has no `compare_exchange`; its instructions exist as intrinsics.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd, atomic_xchg};

use enforcer_ebpf::limit::Cell;

/// A word of a map's value.
#[derive(Clone, Copy)]
pub(crate) struct Word(*mut u64);

impl Word {
    /// # Safety
    /// The pointer is to an aligned word of a map's value, valid while the program runs.
    #[inline(always)]
    pub(crate) unsafe fn new(word: *mut u64) -> Self {
        Self(word)
    }

    /// Adds, for good.
    #[inline(always)]
    pub(crate) fn add(self, count: u64) {
        // SAFETY: as `new` demands.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(self.0, count) };
    }

    /// Stores, behind all that was written before.
    #[inline(always)]
    pub(crate) fn release(self, value: u64) {
        // SAFETY: as `new` demands.
        unsafe { atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(self.0, value) };
    }
}

impl Cell for Word {
    #[inline(always)]
    fn load(&self) -> u64 {
        // SAFETY: as `new` demands. An atomic load does not exist on this target; an aligned word is read whole.
        unsafe { core::ptr::read_volatile(self.0) }
    }

    #[inline(always)]
    fn swap(&self, old: u64, new: u64) -> bool {
        // SAFETY: as `new` demands.
        unsafe { atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(self.0, old, new).1 }
    }
}
