//! What must hold stands in `outfs::fuzz`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| outfs::fuzz::check("tree", data));
