//! Waiting: polls until there is an answer, and reports clearly if there is none.

use std::thread;
use std::time::{Duration, Instant};

/// The usual timeout of a test: a new namespace or listener has series after 15 s, and the machine
/// may be busy. Only a failing test waits this long.
pub const TIMEOUT: Duration = Duration::from_secs(40);
/// The time between two polls.
const GAP: Duration = Duration::from_millis(10);

/// Polls until `question` returns `Some`, and returns the answer.
///
/// # Panics
///
/// When `timeout` has passed without an answer; the message contains `what`.
#[track_caller]
pub fn eventually<T>(what: &str, timeout: Duration, question: impl FnMut() -> Option<T>) -> T {
    match within(timeout, question) {
        Some(answer) => answer,
        None => panic!("waited {timeout:?} in vain for: {what}"),
    }
}

/// Polls until `question` returns `Some` or `timeout` has passed. Polls at least once.
pub fn within<T>(timeout: Duration, mut question: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(answer) = question() {
            return Some(answer);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(GAP);
    }
}
