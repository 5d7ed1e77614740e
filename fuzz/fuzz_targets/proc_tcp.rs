//! Hands the fuzzer's bytes to the entry of this name.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| listenq_fuzz::proc_tcp::run(bytes));
