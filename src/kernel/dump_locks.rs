//! Learns from listenq's own requests whether one socket dump delays all others on the machine.
//!
//! Up to Linux 6.8 `sock_diag_mutex` and `inet_diag_table_mutex` are held while a request is
//! answered, and for a filtered walk over all connections that is the whole walk
//! (`net/core/sock_diag.c`, `net/ipv4/inet_diag.c`). A short request of another thread then ends
//! only after the walk. Later kernels have no such lock, and short requests end during the walk.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Score at which dumps count as serialized.
const SERIAL: u8 = 3;
/// Maximum score.
const MAX_SCORE: u8 = 6;
/// What a short request that ended during a walk subtracts. Requests that end together with a walk
/// by coincidence are rare, because walks that matter are much longer than short requests.
const WITHIN: u8 = 2;

/// The walks of this process, and what short requests of other threads show about them.
#[derive(Debug)]
pub struct DumpLocks {
    /// Odd while a thread walks.
    walk: AtomicU64,
    score: AtomicU8,
}

/// How a short request and a walk of another thread overlapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Overlap {
    /// No walk ran when the request began.
    None,
    /// The request ended during the walk.
    Within,
    /// The walk ended before the request did.
    Outlasted,
}

// === impl DumpLocks ===

impl DumpLocks {
    /// Nothing is known yet.
    pub(crate) const fn new() -> Self {
        Self { walk: AtomicU64::new(0), score: AtomicU8::new(0) }
    }

    /// Returns the state of the process.
    pub fn of_process() -> &'static Self {
        static LOCKS: DumpLocks = DumpLocks::new();
        &LOCKS
    }

    /// Sends the request of a walk. Only one thread may walk. Returns the time that it took, too.
    pub(super) fn walk<T>(&self, send: impl FnOnce() -> T) -> (T, Duration) {
        let begin = Instant::now();
        self.walk.fetch_add(1, Ordering::SeqCst);
        let sent = send();
        self.walk.fetch_add(1, Ordering::SeqCst);
        (sent, begin.elapsed())
    }

    /// Sends a short request.
    pub(super) fn request<T>(&self, send: impl FnOnce() -> T) -> T {
        let before = self.walk.load(Ordering::SeqCst);
        let sent = send();
        let overlap = Overlap::of(before, self.walk.load(Ordering::SeqCst));
        let score = self.score.load(Ordering::Relaxed);
        self.score.store(overlap.scored(score), Ordering::Relaxed);
        sent
    }

    /// Whether a walk delays the requests of all other threads and processes.
    pub fn are_serial(&self) -> bool {
        self.score.load(Ordering::Relaxed) >= SERIAL
    }
}

// === impl Overlap ===

impl Overlap {
    /// `before` and `after` are the walk counter at the beginning and end of a short request.
    fn of(before: u64, after: u64) -> Self {
        match (before % 2 == 1, before == after) {
            (false, _) => Self::None,
            (true, true) => Self::Within,
            (true, false) => Self::Outlasted,
        }
    }

    fn scored(self, score: u8) -> u8 {
        match self {
            Self::None => score,
            Self::Within => score.saturating_sub(WITHIN),
            Self::Outlasted => (score + 1).min(MAX_SCORE),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::thread;

    use super::*;

    #[test]
    fn overlaps_decide_whether_dumps_are_serial() {
        use Overlap::{None, Outlasted, Within};
        let table: [(&[Overlap], bool); 7] = [
            (&[], false),
            (&[None; 100], false),
            (&[Outlasted; 2], false),
            (&[Outlasted; 3], true),
            (&[Outlasted, Within, Outlasted, Within, Outlasted, Within, Outlasted], false),
            // One request came before the walk had the lock.
            (&[Outlasted, Outlasted, Outlasted, Outlasted, Outlasted, Within], true),
            (&[Outlasted, Outlasted, Outlasted, Within], false),
        ];
        for (overlaps, expected) in table {
            let score = overlaps.iter().fold(0, |score, overlap| overlap.scored(score));
            assert_eq!(score >= SERIAL, expected, "{overlaps:?}");
        }
        assert_eq!(
            [Overlap::of(2, 3), Overlap::of(3, 3), Overlap::of(3, 4)],
            [None, Within, Outlasted]
        );
    }

    /// Runs walks of 50 ms and short requests beside them; `lock` is held by both.
    fn learned(lock: Option<&Mutex<()>>) -> bool {
        let locks = DumpLocks::new();
        let held = |time| {
            let _guard = lock.map(|lock| lock.lock().unwrap());
            thread::sleep(time);
        };
        let walk = || {
            for _ in 0..8 {
                locks.walk(|| held(Duration::from_millis(50)));
                // A waiting request gets the lock.
                thread::sleep(Duration::from_millis(5));
            }
        };
        thread::scope(|scope| {
            let walks = scope.spawn(walk);
            while !walks.is_finished() {
                locks.request(|| held(Duration::from_micros(10)));
                thread::sleep(Duration::from_millis(10));
            }
        });
        locks.are_serial()
    }

    #[test]
    fn a_lock_is_learned_and_its_absence_is_too() {
        assert!(learned(Some(&Mutex::new(()))));
        assert!(!learned(None));
    }
}
