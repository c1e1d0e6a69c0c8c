//! What the drivers share: a broken property ends the process, and half of the mutations are ours.

use enforcer_fuzz::Target;
use enforcer_tests::random::Random;

/// Tries an input.
///
/// # Panics
/// When a property does not hold; libFuzzer then keeps the input.
pub(crate) fn run(target: Target, input: &[u8]) {
    if let Err(error) = target.check(input) {
        panic!("{error}\n{}", target.explain(input));
    }
}

/// Mutates the first `size` bytes of `data` into at most `most`; gives how many there are then.
pub(crate) fn mutate(target: Target, data: &mut [u8], size: usize, most: usize, seed: u32) -> usize {
    let mut random = Random::new(u64::from(seed));
    // libFuzzer knows its dictionary, the comparisons that failed, and the other inputs.
    if random.once_in(2) {
        return libfuzzer_sys::fuzzer_mutate(data, size, most);
    }
    let mutated = target.mutate(&data[..size], most.min(data.len()), &mut random);
    data[..mutated.len()].copy_from_slice(&mutated);
    mutated.len()
}
