//! `cargo +nightly fuzz run map_page`
#![no_main]

#[path = "../checks.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::map_page(bytes));
