//! Passes the bytes of the fuzzer to `listenq_fuzz::netlink_datagram`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| listenq_fuzz::netlink_datagram::run(bytes));
