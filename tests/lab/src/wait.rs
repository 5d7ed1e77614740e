//! Owns waiting: ask again and again until an answer comes, and say plainly when none came.

use std::thread;
use std::time::{Duration, Instant};

/// The gap between two questions.
const GAP: Duration = Duration::from_millis(10);

/// Asks until `question` answers `Some`, and returns the answer.
///
/// # Panics
///
/// When `timeout` has passed without an answer; the message names `what` was awaited.
#[track_caller]
pub fn eventually<T>(what: &str, timeout: Duration, question: impl FnMut() -> Option<T>) -> T {
    match within(timeout, question) {
        Some(answer) => answer,
        None => panic!("waited {timeout:?} in vain for: {what}"),
    }
}

/// Asks until `question` answers `Some` or `timeout` has passed. It asks at least once.
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
