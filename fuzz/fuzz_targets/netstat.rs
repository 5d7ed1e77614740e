//! Passes the bytes of the fuzzer to `listenq_fuzz::netstat`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| listenq_fuzz::netstat::run(bytes));
