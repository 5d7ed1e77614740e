//! The thread that reads the owners of listeners in trouble.
//!
//! It reads once a second, off the sampling path, and uses at most 1/200 of a core over a minute.
//! A round that would use too much CPU time ends early, and the next round reads the other owners.
//! Processes that are costly to read have a budget of their own, so that they do not delay the
//! others.
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
use crate::snapshot::owner_reading::{SocketOwnerReading, WatchedSocket};

use super::background::Background;
use super::thread_cpu;

/// Interval between reads of owners.
const INTERVAL: Duration = Duration::from_secs(1);
/// Inverse of the share of a core that reads may use: 1/200.
const SHARE: u32 = 200;
/// Maximum saved CPU time of each lane: together one minute's share, so that the first reads after
/// new trouble come once a second at any cost.
const MOST_SAVED: [Duration; LANES] = [Duration::from_millis(200), Duration::from_millis(100)];
/// Cost from which a read of one process is costly.
const COSTLY: Duration = Duration::from_millis(5);
/// Time without a read after which a lane leaves its share to the other lane.
const UNUSED: Duration = Duration::from_secs(60);
/// The cheap reads, and the costly reads.
const LANES: usize = 2;
/// Share of a core that reads may always use, whatever other background tasks cost: 1/400.
const OWN_SHARE: f64 = 0.0025;
/// Part of the saved CPU time that one round may use: 1/8.
const PART: u32 = 8;

/// Handle of the running thread. Dropping the handle ends the thread.
pub struct CauseWatch {
    lanes: [Lane; LANES],
    is_busy: bool,
    background: Arc<Background>,
    requests: Sender<Request>,
    rounds: Receiver<Round>,
}

/// The budget of reads of similar cost.
#[derive(Clone, Copy, Debug)]
struct Lane {
    due: Duration,
    budget: Budget,
    /// When a read last used CPU time.
    used_at: Option<Duration>,
}

/// The sockets whose owners are to be read, and the CPU time after which the reads of each lane
/// end; `None` for a lane that is not due.
struct Request {
    sockets: Vec<WatchedSocket>,
    cpu: [Option<Duration>; LANES],
}

/// The rounds in which the sockets, processes and sources were last read.
#[derive(Debug, Default)]
struct ReadRounds {
    sockets: FxHashMap<u32, u64>,
    processes: FxHashMap<ProcessKey, u64>,
    sources: FxHashMap<u64, u64>,
    /// The CPU time of the last read of each process.
    costs: FxHashMap<ProcessKey, Duration>,
    round: u64,
}

/// A process and its source.
type ProcessKey = (u64, Option<u32>);

/// The readings of one round, by inode of the listen socket.
struct Round {
    readings: Vec<SocketOwnerReading>,
    cpu: [Duration; LANES],
}

/// CPU time that is saved and not yet spent.
#[derive(Clone, Copy, Debug)]
struct Budget {
    saved: Duration,
    most_saved: Duration,
    at: Duration,
}

// === impl Budget ===

impl Budget {
    fn new(most_saved: Duration) -> Self {
        Self { saved: most_saved, most_saved, at: Duration::ZERO }
    }

    /// Returns the CPU time that a round at `now` may use: the share of one second, or a part of
    /// the savings. `share` is the inverse of the share of a core.
    fn round(&self, now: Duration, share: u32) -> Duration {
        let saved = self.saved + now.saturating_sub(self.at) / share;
        (saved.min(self.most_saved) / PART).max(INTERVAL / share)
    }

    /// Spends `cpu` at `now`. Returns the wait until the missing CPU time is saved.
    fn spend(&mut self, now: Duration, cpu: Duration, share: u32) -> Duration {
        self.saved = (self.saved + now.saturating_sub(self.at) / share).min(self.most_saved);
        let wait = cpu.saturating_sub(self.saved) * share;
        self.saved = self.saved.saturating_sub(cpu);
        // The CPU time saved during the wait covers the missing time.
        self.at = now + wait;
        wait
    }
}

// === impl Lane ===

impl Lane {
    fn new(most_saved: Duration) -> Self {
        Self { due: Duration::ZERO, budget: Budget::new(most_saved), used_at: None }
    }

    fn is_used(&self, now: Duration) -> bool {
        self.used_at.is_some_and(|at| now.saturating_sub(at) < UNUSED)
    }

    /// Returns the CPU time that reads at `now` may use; `None` before they are due.
    fn ask(&mut self, now: Duration, share: u32) -> Option<Duration> {
        (now >= self.due).then(|| {
            self.due = now + INTERVAL;
            self.budget.round(now, share)
        })
    }

    /// Spends `cpu` at `now`. `delay` is that of the shared budget.
    fn spend(&mut self, now: Duration, cpu: Duration, share: u32, delay: Duration) {
        self.used_at = Some(now);
        let wait = self.budget.spend(now, cpu, share).max(delay);
        self.due = self.due.max(now + wait);
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
        let lanes = MOST_SAVED.map(Lane::new);
        Ok(Self { lanes, is_busy: false, background, requests, rounds })
    }

    /// Whether a round may be requested at `now`.
    pub fn is_due(&self, now: Duration) -> bool {
        !self.is_busy && self.lanes.iter().any(|lane| now >= lane.due)
    }

    /// Requests one round of readings.
    pub fn ask(&mut self, now: Duration, sockets: Vec<WatchedSocket>) {
        let share = SHARE * self.lanes_used(now);
        let cpu = self.lanes.each_mut().map(|lane| lane.ask(now, share));
        // If the thread has ended, causes stay unknown. The log already reported the end of the
        // thread.
        let request = Request { sockets, cpu };
        self.is_busy = !request.sockets.is_empty() && self.requests.send(request).is_ok();
    }

    /// Returns the readings of the round that ended since the last call, without blocking.
    pub fn readings(&mut self, now: Duration) -> Vec<SocketOwnerReading> {
        let Ok(Round { readings, cpu }) = self.rounds.try_recv() else { return Vec::new() };
        self.is_busy = false;
        let used = self.lanes_used(now);
        for (lane, cpu) in self.lanes.iter_mut().zip(cpu).filter(|(_, cpu)| !cpu.is_zero()) {
            let delay = self.background.spend_of(OWN_SHARE / f64::from(used), now, cpu);
            lane.spend(now, cpu, SHARE * used, delay);
        }
        readings
    }

    /// Returns the number of lanes that share the CPU time.
    fn lanes_used(&self, now: Duration) -> u32 {
        self.lanes.iter().map(|lane| u32::from(lane.is_used(now))).sum::<u32>().max(1)
    }
}

/// Runs until the request or result channel is closed.
fn run(mut reader: OwnerReader, asked: &Receiver<Request>, rounds: &Sender<Round>) {
    let mut read = ReadRounds::default();
    while let Ok(Request { sockets, cpu: allowed }) = asked.recv() {
        let (mut begin, started) = (thread_cpu(), Instant::now());
        let inodes = sockets.iter().map(|socket| socket.inode).collect();
        reader.keep_only(&inodes);
        let mut readings: Vec<SocketOwnerReading> = Vec::new();
        let mut cpu = [Duration::ZERO; LANES];
        for socket in read.in_order(sockets) {
            let lane = read.lane(&socket);
            if allowed[lane].is_none_or(|allowed| cpu[lane] >= allowed) {
                continue;
            }
            readings.push((socket.inode, Arc::new(reader.read(socket))));
            let end = thread_cpu();
            let cost = end.saturating_sub(begin);
            begin = end;
            // The next reading of a process that used a stored table may have to read it again.
            read.note(&socket, cost.max(reader.take_table_cost()));
            cpu[lane] += cost;
        }
        tracing::debug!(readings = readings.len(), ?cpu, took = ?started.elapsed(), "read owners");
        if rounds.send(Round { readings, cpu }).is_err() {
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
        self.costs.retain(|process, _| processes.contains(process));
    }

    /// Returns the lane of a socket, chosen by the cost of the last read of its process.
    fn lane(&self, socket: &WatchedSocket) -> usize {
        let cost = self.costs.get(&process(socket));
        usize::from(cost.is_some_and(|cost| *cost >= COSTLY))
    }

    /// Records that a socket was read in this round, and the cost.
    fn note(&mut self, socket: &WatchedSocket, cost: Duration) {
        self.costs.insert(process(socket), cost);
        self.sockets.insert(socket.inode, self.round);
        self.processes.insert(process(socket), self.round);
        self.sources.insert(socket.source, self.round);
    }
}

fn process(socket: &WatchedSocket) -> ProcessKey {
    (socket.source, socket.pid)
}

/// Returns the round in which `key` was last read; 0 if `key` was not read.
fn last<K: Hash + Eq>(rounds: &FxHashMap<K, u64>, key: K) -> u64 {
    rounds.get(&key).copied().unwrap_or(0)
}

/// Returns the number of earlier calls for this key.
fn next<K: Hash + Eq>(counts: &mut FxHashMap<K, usize>, key: K) -> usize {
    let count = counts.entry(key).or_default();
    *count += 1;
    *count - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    const SAVED: Duration = Duration::from_millis(300);

    /// Returns the start times of rounds with this cost during one hour.
    fn starts(cost: Duration) -> Vec<Duration> {
        let (mut budget, mut now, mut starts) = (Budget::new(SAVED), Duration::ZERO, Vec::new());
        while now < 3600 * SECOND {
            starts.push(now);
            now += SECOND.max(budget.spend(now, cost, SHARE));
        }
        starts
    }

    /// Reads processes with these costs in milliseconds for an hour, as often as their lanes allow.
    /// Returns how often each was read, and the CPU time of all.
    fn reads(costs: [u64; 2]) -> ([u32; 2], Duration) {
        let background = Arc::new(Background::default());
        let (requests, _asked) = channel();
        let (_sender, rounds) = channel();
        let lanes = MOST_SAVED.map(Lane::new);
        let mut watch = CauseWatch { lanes, is_busy: false, background, requests, rounds };
        let (mut reads, mut all) = ([0; 2], Duration::ZERO);
        for second in 0..3600 {
            let now = second * SECOND;
            let share = SHARE * watch.lanes_used(now);
            for (nth, cost) in costs.iter().enumerate() {
                let cost = Duration::from_millis(*cost);
                let lane = &mut watch.lanes[usize::from(cost >= COSTLY)];
                if lane.ask(now, share).is_some() {
                    lane.spend(now, cost, share, Duration::ZERO);
                    reads[nth] += 1;
                    all += cost;
                }
            }
        }
        (reads, all)
    }

    #[test]
    fn a_costly_process_does_not_delay_a_cheap_one() {
        let ([cheap, costly], all) = reads([1, 100]);
        assert_eq!(cheap, 3600);
        assert!(costly > 80, "{costly}");
        assert!(all <= 3600 * SECOND / SHARE + SAVED + Duration::from_millis(100), "{all:?}");
    }

    #[test]
    fn rounds_start_once_a_second_at_first_and_keep_to_the_share_over_an_hour() {
        let cheap = starts(Duration::from_millis(2));
        assert_eq!(cheap.len(), 3600);
        let costly = starts(Duration::from_millis(25));
        assert_eq!(costly[10], 10 * SECOND);
        let used = Duration::from_millis(25) * u32::try_from(costly.len()).unwrap();
        assert!(used <= 3600 * SECOND / SHARE + SAVED + Duration::from_millis(25), "{used:?}");
    }

    fn socket(inode: u32, pid: u32, source: u64) -> WatchedSocket {
        let (pid, start_time, cgroup, local) = (Some(pid), 0, None, None);
        WatchedSocket { inode, pid, start_time, cgroup, local, source }
    }

    /// Returns the inodes that a round reads if it has time for `most` readings.
    fn round(read: &mut ReadRounds, sockets: &[WatchedSocket], most: usize) -> Vec<u32> {
        let order: Vec<_> = read.in_order(sockets.to_vec()).into_iter().take(most).collect();
        order.iter().for_each(|socket| read.note(socket, Duration::from_millis(1)));
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
        let mut budget = Budget::new(SAVED);
        assert_eq!(budget.round(Duration::ZERO, SHARE), SAVED / PART);
        budget.spend(SECOND, SAVED, SHARE);
        assert_eq!(budget.round(2 * SECOND, SHARE), SECOND / SHARE);
        assert_eq!(budget.round(3600 * SECOND, SHARE), SAVED / PART);
    }
}
