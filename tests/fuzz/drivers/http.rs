//! libFuzzer over [`enforcer_fuzz::http`].
#![no_main]

use enforcer_fuzz::Target;

mod driver;

libfuzzer_sys::fuzz_target!(|input: &[u8]| driver::run(Target::Http, input));
libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, most: usize, seed: u32| {
    driver::mutate(Target::Http, data, size, most, seed)
});
