//! The thread that reads the owners of listeners in trouble.
//!
//! It reads once a second, off the sampling path, and uses at most 1/200 of a core over a minute.
//! A round that would use too much CPU time ends early, and the next round reads the other owners.
//! Users, services and namespaces take turns, and so do the processes of each: a process with a
//! thousand listeners in trouble does not delay the owner of another one. Without listeners in
//! trouble the thread sleeps until the next request.

use std::hash::Hash;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustc_hash::{FxHashMap, FxHashSet};

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
/// Share of a core that reads may use whatever other background tasks cost: 1/400.
const OWN_SHARE: f64 = 0.0025;
/// Part of the saved CPU time that one round may use: 1/8.
const PART: u32 = 8;

/// One reading of the owner of a listen socket, with the inode of that socket.
pub type OwnerLook = (u32, Arc<OwnerReading>);

/// Handle of the running thread. Dropping the handle ends the thread.
pub struct CauseWatch {
    due: Duration,
    is_busy: bool,
    budget: Budget,
    background: Arc<Background>,
    requests: Sender<Request>,
    rounds: Receiver<Round>,
}

/// The sockets whose owners are to be read, and the CPU time after which the round ends.
struct Request {
    sockets: Vec<WatchedSocket>,
    cpu: Duration,
}

/// The rounds in which the sockets, processes and sources were last read.
#[derive(Debug, Default)]
struct ReadRounds {
    sockets: FxHashMap<u32, u64>,
    processes: FxHashMap<ProcessKey, u64>,
    sources: FxHashMap<u64, u64>,
    round: u64,
}

/// A process and its source.
type ProcessKey = (u64, Option<u32>);

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
    /// The CPU time that a round at `now` may use: a second's share, or a part of the savings.
    fn round(&self, now: Duration) -> Duration {
        let saved = self.saved + now.saturating_sub(self.at) / SHARE;
        (saved.min(MOST_SAVED) / PART).max(INTERVAL / SHARE)
    }

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
        let request = Request { sockets, cpu: self.budget.round(now) };
        self.is_busy = !request.sockets.is_empty() && self.requests.send(request).is_ok();
    }

    /// Returns the readings of the round that ended since the last call, without blocking.
    pub fn looks(&mut self, now: Duration) -> Vec<OwnerLook> {
        let Ok(Round { looks, cpu }) = self.rounds.try_recv() else { return Vec::new() };
        self.is_busy = false;
        let delay = self.background.spend_of(OWN_SHARE, now, cpu);
        let wait = self.budget.spend(now, cpu).max(delay);
        self.due = self.due.max(now + wait);
        looks
    }
}

/// Runs until the request or result channel is closed.
fn run(mut reader: OwnerReader, asked: &Receiver<Request>, rounds: &Sender<Round>) {
    let mut read = ReadRounds::default();
    while let Ok(Request { sockets, cpu: allowed }) = asked.recv() {
        let (begin, started) = (thread_cpu(), Instant::now());
        let used = || thread_cpu().saturating_sub(begin);
        let inodes = sockets.iter().map(|socket| socket.inode).collect();
        reader.keep_only(&inodes);
        let mut looks: Vec<OwnerLook> = Vec::new();
        for socket in read.in_order(sockets) {
            looks.push((socket.inode, Arc::new(reader.read(socket))));
            read.note(&socket);
            if used() >= allowed {
                break;
            }
        }
        let cpu = used();
        tracing::trace!(looks = looks.len(), ?cpu, took = ?started.elapsed(), "looked at owners");
        if rounds.send(Round { looks, cpu }).is_err() {
            return;
        }
    }
}

// === impl ReadRounds ===

impl ReadRounds {
    /// Begins a round. Returns the sockets in the order in which to read them: one socket of each
    /// source first, then a second one of each. A source's processes take turns in the same way. Of
    /// equals, the one that was read longest ago comes first.
    fn in_order(&mut self, mut sockets: Vec<WatchedSocket>) -> Vec<WatchedSocket> {
        self.round += 1;
        self.keep_only(&sockets);
        let (mut of_process, mut of_source) = (FxHashMap::default(), FxHashMap::default());
        sockets.sort_by_key(|socket| last(&self.sockets, socket.inode));
        sockets.sort_by_cached_key(|socket| {
            let process = process(socket);
            (next(&mut of_process, process), last(&self.processes, process))
        });
        sockets.sort_by_cached_key(|socket| {
            (next(&mut of_source, socket.source), last(&self.sources, socket.source))
        });
        sockets
    }

    fn keep_only(&mut self, sockets: &[WatchedSocket]) {
        let inodes: FxHashSet<u32> = sockets.iter().map(|socket| socket.inode).collect();
        let processes: FxHashSet<ProcessKey> = sockets.iter().map(process).collect();
        let sources: FxHashSet<u64> = sockets.iter().map(|socket| socket.source).collect();
        self.sockets.retain(|inode, _| inodes.contains(inode));
        self.processes.retain(|process, _| processes.contains(process));
        self.sources.retain(|source, _| sources.contains(source));
    }

    /// Records that a socket was read in this round.
    fn note(&mut self, socket: &WatchedSocket) {
        self.sockets.insert(socket.inode, self.round);
        self.processes.insert(process(socket), self.round);
        self.sources.insert(socket.source, self.round);
    }
}

fn process(socket: &WatchedSocket) -> ProcessKey {
    (socket.source, socket.pid)
}

/// The round in which `key` was last read; 0 if it was not read.
fn last<K: Hash + Eq>(rounds: &FxHashMap<K, u64>, key: K) -> u64 {
    rounds.get(&key).copied().unwrap_or(0)
}

/// The number of earlier calls for this key.
fn next<K: Hash + Eq>(counts: &mut FxHashMap<K, usize>, key: K) -> usize {
    let count = counts.entry(key).or_default();
    *count += 1;
    *count - 1
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

    fn socket(inode: u32, pid: u32, source: u64) -> WatchedSocket {
        let (pid, start_time, cgroup, local) = (Some(pid), 0, None, None);
        WatchedSocket { inode, pid, start_time, cgroup, local, source }
    }

    /// The inodes that a round reads which has time for `most` readings.
    fn round(read: &mut ReadRounds, sockets: &[WatchedSocket], most: usize) -> Vec<u32> {
        let order: Vec<_> = read.in_order(sockets.to_vec()).into_iter().take(most).collect();
        order.iter().for_each(|socket| read.note(socket));
        order.into_iter().map(|socket| socket.inode).collect()
    }

    #[test]
    fn sources_and_their_processes_take_turns() {
        // One process with five sockets, another process of the same source, and another source.
        let mut sockets: Vec<_> = (1..=5).map(|inode| socket(inode, 1, 1)).collect();
        sockets.extend([socket(6, 2, 1), socket(7, 3, 2)]);
        let rounds = |most| {
            let mut read = ReadRounds::default();
            [(); 4].map(|()| round(&mut read, &sockets, most))
        };
        assert_eq!(rounds(1).concat(), [1, 7, 6, 7]);
        assert_eq!(rounds(2), [[1, 7], [6, 7], [2, 7], [6, 7]]);
        assert_eq!(rounds(3)[..2], [[1, 7, 6], [2, 7, 6]]);
        assert_eq!(rounds(9)[0], [1, 7, 6, 2, 3, 4, 5]);
    }

    #[test]
    fn a_round_uses_a_part_of_the_savings_and_at_least_the_share_of_a_second() {
        let mut budget = Budget::default();
        assert_eq!(budget.round(Duration::ZERO), MOST_SAVED / PART);
        budget.spend(SECOND, MOST_SAVED);
        assert_eq!(budget.round(2 * SECOND), SECOND / SHARE);
        assert_eq!(budget.round(3600 * SECOND), MOST_SAVED / PART);
    }
}
