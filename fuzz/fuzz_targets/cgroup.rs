//! Passes the bytes of the fuzzer to `listenq_fuzz::cgroup`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| listenq_fuzz::cgroup::run(bytes));
