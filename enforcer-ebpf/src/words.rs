//! Copies, word by word: of a whole value the BPF compiler makes a loop over bytes.

#![allow(unsafe_code, reason = "a value as the words that it is made of")]

/// Copies a value that is made of whole words: all that lies in maps is.
#[inline(always)]
pub fn copy<T: Copy>(from: &T, to: &mut T) {
    const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() == 8) };
    let from = core::ptr::from_ref(from).cast::<u64>();
    let to = core::ptr::from_mut(to).cast::<u64>();
    for index in 0..size_of::<T>() / 8 {
        // SAFETY: both are as long, and aligned.
        unsafe { to.add(index).write_volatile(from.add(index).read_volatile()) };
    }
}
