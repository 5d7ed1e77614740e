//! Tests the live page at `/`, without script and in a browser, and the JSON with the same content.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]
#![allow(clippy::print_stdout, reason = "the measured figures are for the reader of --nocapture")]

mod api;
mod driven;
mod made;
mod picture;
mod plain;

/// The program under test.
const BIN: &str = env!("CARGO_BIN_EXE_listenq");
