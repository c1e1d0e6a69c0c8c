//! A value that the compiler forgets the range of.
//!
//! After a comparison it would leave out the mask of an array's index; the verifier of kernels before 6.8 does not
//! carry the comparison over to the register that is used as the index, and needs the mask.

#![allow(unsafe_code, reason = "an instruction that changes nothing, on BPF alone")]

/// `value`, of unknown range to the compiler.
#[inline(always)]
pub(super) fn opaque(value: u32) -> u32 {
    #[cfg(target_arch = "bpf")]
    {
        let mut wide = u64::from(value);
        // SAFETY: a move of a register onto itself.
        unsafe { core::arch::asm!("{0} = {0}", inout(reg) wide, options(nomem, nostack, preserves_flags)) };
        wide as u32
    }
    #[cfg(not(target_arch = "bpf"))]
    value
}
