//! Values that the compiler knows nothing of. On BPF alone; elsewhere they are what they seem.

#![allow(unsafe_code, reason = "an instruction that changes nothing")]

/// `value`, whose range the compiler forgets.
///
/// After a comparison it would leave out the mask of an array's index; the verifier of kernels before 6.8 does not
/// carry the comparison over to the register that is used as the index, and needs the mask.
#[inline(always)]
pub(crate) fn opaque(value: u32) -> u32 {
    wide(u64::from(value)) as u32
}

/// Zero. The BPF compiler makes of plain zeros side by side a call of `memset`, a loop over bytes.
#[inline(always)]
pub(crate) fn zero() -> u64 {
    wide(0)
}

#[cfg(target_arch = "bpf")]
#[inline(always)]
fn wide(mut value: u64) -> u64 {
    // SAFETY: a move of a register onto itself.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

#[cfg(not(target_arch = "bpf"))]
fn wide(value: u64) -> u64 {
    value
}
