//! libFuzzer over [`enforcer_fuzz::segments`].
#![no_main]

use enforcer_fuzz::Target;

mod driver;

libfuzzer_sys::fuzz_target!(|input: &[u8]| driver::run(Target::Segments, input));
libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, most: usize, seed: u32| {
    driver::mutate(Target::Segments, data, size, most, seed)
});
