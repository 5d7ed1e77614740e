//! Passes the bytes of the fuzzer to `listenq_fuzz::proc_tcp`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| listenq_fuzz::proc_tcp::run(bytes));
