//! The thread that reads the owners of listeners in trouble.
//!
//! It reads once a second, off the sampling path, and uses at most 1/200 of a core over a minute.
//! Without listeners in trouble it sleeps until the next request.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::owner::reader::OwnerReader;
use crate::snapshot::owner_reading::{OwnerReading, WatchedSocket};

use super::background::Background;
use super::thread_cpu;

/// Interval between reads of owners.
const INTERVAL: Duration = Duration::from_secs(1);
/// Inverse of the share of a core that reads may use: 1/200.
const SHARE: u32 = 200;
/// Maximum saved CPU time: one minute's share, so that the first reads after new trouble come once
/// a second at any cost.
const MOST_SAVED: Duration = Duration::from_millis(300);

/// One reading of the owner of a listen socket, with the inode of that socket.
pub type OwnerLook = (u32, Arc<OwnerReading>);

/// Handle of the running thread. Dropping the handle ends the thread.
pub struct CauseWatch {
    due: Duration,
    is_busy: bool,
    budget: Budget,
    background: Arc<Background>,
    requests: Sender<Vec<WatchedSocket>>,
    rounds: Receiver<Round>,
}

/// The readings of one round, by inode of the listen socket.
struct Round {
    looks: Vec<OwnerLook>,
    cpu: Duration,
}

/// CPU time that is saved and not yet spent.
#[derive(Clone, Copy, Debug)]
struct Budget {
    saved: Duration,
    at: Duration,
}

// === impl Budget ===

impl Default for Budget {
    fn default() -> Self {
        Self { saved: MOST_SAVED, at: Duration::ZERO }
    }
}

impl Budget {
    /// Spends `cpu` at `now`. Returns the wait until the missing CPU time is saved.
    fn spend(&mut self, now: Duration, cpu: Duration) -> Duration {
        self.saved = (self.saved + now.saturating_sub(self.at) / SHARE).min(MOST_SAVED);
        let wait = cpu.saturating_sub(self.saved) * SHARE;
        self.saved = self.saved.saturating_sub(cpu);
        // The CPU time saved during the wait pays for the missing time.
        self.at = now + wait;
        wait
    }
}

// === impl CauseWatch ===

impl CauseWatch {
    /// Starts the thread.
    pub fn start(
        procfs: PathBuf,
        rootfs: PathBuf,
        background: Arc<Background>,
    ) -> io::Result<Self> {
        let (requests, asked) = channel();
        let (sender, rounds) = channel();
        let work = move || run(OwnerReader::new(&procfs, &rootfs), &asked, &sender);
        thread::Builder::new().name("causes".into()).spawn(work)?;
        Ok(Self {
            due: Duration::ZERO,
            is_busy: false,
            budget: Budget::default(),
            background,
            requests,
            rounds,
        })
    }

    /// Whether a round may be requested at `now`.
    pub fn is_due(&self, now: Duration) -> bool {
        !self.is_busy && now >= self.due
    }

    /// Requests one round of readings.
    pub fn ask(&mut self, now: Duration, sockets: Vec<WatchedSocket>) {
        self.due = now + INTERVAL;
        // If the thread has ended, causes stay unknown. The log already reported the end of the
        // thread.
        self.is_busy = !sockets.is_empty() && self.requests.send(sockets).is_ok();
    }

    /// Returns the readings of the round that ended since the last call, without blocking.
    pub fn looks(&mut self, now: Duration) -> Vec<OwnerLook> {
        let Ok(Round { looks, cpu }) = self.rounds.try_recv() else { return Vec::new() };
        self.is_busy = false;
        let wait = self.budget.spend(now, cpu).max(self.background.spend(now, cpu));
        self.due = self.due.max(now + wait);
        looks
    }
}

/// Runs until the request or result channel is closed.
fn run(mut reader: OwnerReader, asked: &Receiver<Vec<WatchedSocket>>, rounds: &Sender<Round>) {
    while let Ok(sockets) = asked.recv() {
        let (begin, started) = (thread_cpu(), Instant::now());
        let inodes = sockets.iter().map(|socket| socket.inode).collect();
        reader.keep_only(&inodes);
        let look = |socket: WatchedSocket| (socket.inode, Arc::new(reader.read(socket)));
        let looks: Vec<OwnerLook> = sockets.into_iter().map(look).collect();
        let cpu = thread_cpu().saturating_sub(begin);
        tracing::trace!(looks = looks.len(), ?cpu, took = ?started.elapsed(), "looked at owners");
        if rounds.send(Round { looks, cpu }).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Returns the start times of rounds with this cost during one hour.
    fn starts(cost: Duration) -> Vec<Duration> {
        let (mut budget, mut now, mut starts) = (Budget::default(), Duration::ZERO, Vec::new());
        while now < 3600 * SECOND {
            starts.push(now);
            now += SECOND.max(budget.spend(now, cost));
        }
        starts
    }

    #[test]
    fn looks_come_once_a_second_at_first_and_stay_within_the_share_in_the_long_run() {
        let cheap = starts(Duration::from_millis(2));
        assert_eq!(cheap.len(), 3600);
        let costly = starts(Duration::from_millis(25));
        assert_eq!(costly[10], 10 * SECOND);
        let used = Duration::from_millis(25) * u32::try_from(costly.len()).unwrap();
        assert!(used <= 3600 * SECOND / SHARE + MOST_SAVED + Duration::from_millis(25), "{used:?}");
    }
}
