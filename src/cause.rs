//! Decides why the owner of a listener does not accept: a pure function from readings over time to
//! the names of causes that metric, command, page, alert and runbook share.
//!
//! Each cause needs positive evidence that lasts: every rule evaluates the readings of the last
//! [`WINDOW`], and a rule without the readings it needs finds no cause. [`crate::diagnosis`]
//! decides whether a listener is in trouble; causes are evaluated only for listeners with a
//! diagnosis.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::snapshot::owner_reading::{
    CgroupReading, OwnerReading, Periods, ProcessReading, Syscall, ThreadReading, Wait,
};

/// The window over which readings are evaluated.
pub const WINDOW: Duration = Duration::from_secs(10);
/// The minimum time for which evidence must hold.
pub const LASTING: Duration = Duration::from_secs(3);
/// The minimum number of readings that must agree.
const AGREEING: usize = 3;
/// The minimum number of readings to evaluate, even if they cover more than [`WINDOW`].
const MIN_READINGS: usize = 5;
/// The minimum share of throttled periods of a cgroup for [`Cause::CpuThrottled`].
const THROTTLED_SHARE: f64 = 0.25;
/// The minimum number of periods over which a share of throttled periods is meaningful.
const MIN_PERIODS: u64 = 10;
/// The minimum share of time with a thread runnable but not running for [`Cause::CpuStarved`].
const STARVED_SHARE: f64 = 0.25;
/// The minimum share of the machine's time taken by the hypervisor for [`Cause::CpuSteal`].
const STEAL_SHARE: f64 = 0.1;
/// The minimum share of time with the accepting thread on a processor for [`Cause::CpuBound`].
const BOUND_SHARE: f64 = 0.9;
/// The minimum share of time with the cgroup stalled on memory for [`Cause::MemoryStall`].
const MEMORY_SHARE: f64 = 0.1;
/// The minimum share of readings with the accepting threads in state D for [`Cause::DiskWait`].
const DISK_SHARE: f64 = 0.6;
/// The share of a server's workers, or of its accepting threads, that must be in the same wait.
const WORKERS_SHARE: f64 = 0.5;

/// A reason why the owner of a listener does not accept fast enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Every thread of every accepting process is stopped by a signal or a debugger.
    Stopped,
    /// The cgroup, or an ancestor, is frozen.
    Frozen,
    /// An accepting process has reached its descriptor limit.
    Descriptors,
    /// The server stopped accepting on purpose: it has reached its own connection limit.
    ConnectionLimit,
    /// The workers wait for clients that send nothing.
    IdleClients,
    /// No process that holds the socket waits for connections.
    NobodyAccepts,
    /// The CPU quota of the cgroup, or of an ancestor, is used up.
    CpuThrottled,
    /// The threads are runnable but do not run.
    CpuStarved,
    /// The hypervisor gives the machine's CPU time to other guests.
    CpuSteal,
    /// The accepting thread is on a processor all the time.
    CpuBound,
    /// The cgroup stalls on memory.
    MemoryStall,
    /// The accepting threads wait for a disk or another device.
    DiskWait,
    /// The workers wait for the same peer.
    WaitsFor,
    /// All threads wait for a futex.
    Lock,
}

/// A set of causes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Causes(u16);

/// The facts known about the listener itself.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ListenerFacts {
    /// Time since a connection was last seen to be taken from the queue; `None` if none was seen to
    /// be taken yet.
    pub taken_ago: Option<Duration>,
    /// Accepted connections that are open, as read by scans.
    pub open_connections: Option<u64>,
    /// The queue limit.
    pub limit: Option<u64>,
    /// Whether the listener is known to have accepted a connection.
    pub has_accepted: bool,
}

/// One reading, its time, and the facts about the listener at that time.
#[derive(Clone, Debug, PartialEq)]
pub struct Timed {
    /// Time of the reading, on the clock of the state.
    pub at: Duration,
    /// The reading of the owner.
    pub owner: Arc<OwnerReading>,
    /// The facts about the listener at that time.
    pub listener: ListenerFacts,
}

/// The peer that most workers wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Awaited {
    /// The address of the peer.
    pub peer: SocketAddr,
    /// The system call in which the workers wait.
    pub syscall: Syscall,
    /// Number of worker threads that wait for the peer.
    pub waiting: usize,
    /// Number of worker threads that were read.
    pub workers: usize,
}

// === impl Cause ===

impl Cause {
    /// Every cause, in the order in which causes are shown.
    pub const ALL: [Self; 14] = [
        Self::Stopped,
        Self::Frozen,
        Self::Descriptors,
        Self::ConnectionLimit,
        Self::IdleClients,
        Self::NobodyAccepts,
        Self::CpuThrottled,
        Self::CpuStarved,
        Self::CpuSteal,
        Self::CpuBound,
        Self::MemoryStall,
        Self::DiskWait,
        Self::WaitsFor,
        Self::Lock,
    ];

    /// The number of the cause, from 1, that alerts use. The number of a cause never changes.
    pub const fn number(self) -> u8 {
        self as u8 + 1
    }

    /// The label value.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Frozen => "frozen",
            Self::Descriptors => "descriptors",
            Self::ConnectionLimit => "connection_limit",
            Self::IdleClients => "idle_clients",
            Self::NobodyAccepts => "nobody_accepts",
            Self::CpuThrottled => "cpu_throttled",
            Self::CpuStarved => "cpu_starved",
            Self::CpuSteal => "cpu_steal",
            Self::CpuBound => "cpu_bound",
            Self::MemoryStall => "memory_stall",
            Self::DiskWait => "disk_wait",
            Self::WaitsFor => "waits_for",
            Self::Lock => "lock",
        }
    }

    /// Whether the server accepts nothing at all while the cause holds.
    pub const fn stops_accepting(self) -> bool {
        matches!(
            self,
            Self::Stopped
                | Self::Frozen
                | Self::Descriptors
                | Self::ConnectionLimit
                | Self::NobodyAccepts
        )
    }

    /// The cause as the end of "slow because …".
    pub const fn because(self) -> &'static str {
        match self {
            Self::Stopped => "the process is stopped",
            Self::Frozen => "its cgroup is frozen",
            Self::Descriptors => "it has used up its file descriptors",
            Self::ConnectionLimit => "it has reached its own connection limit",
            Self::IdleClients => "idle clients hold its workers",
            Self::NobodyAccepts => "no process accepts from this socket",
            Self::CpuThrottled => "its cgroup is CPU-throttled",
            Self::CpuStarved => "it waits for a CPU that other processes use",
            Self::CpuSteal => "the hypervisor takes the machine's CPU time",
            Self::CpuBound => "the thread that accepts uses a whole CPU",
            Self::MemoryStall => "its cgroup stalls on memory",
            Self::DiskWait => "it waits for a disk",
            Self::WaitsFor => "its workers wait for another server",
            Self::Lock => "all its threads wait for a lock",
        }
    }
}

// === impl Causes ===

impl Causes {
    /// Adds one cause.
    pub fn insert(&mut self, cause: Cause) {
        self.0 |= 1 << cause as u16;
    }

    /// Whether the set contains the cause.
    pub fn contains(self, cause: Cause) -> bool {
        self.0 & 1 << cause as u16 != 0
    }

    /// Whether the set is empty.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// All causes of the set, in the order of [`Cause::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Cause> {
        Cause::ALL.into_iter().filter(move |cause| self.contains(*cause))
    }
}

impl FromIterator<Cause> for Causes {
    fn from_iter<I: IntoIterator<Item = Cause>>(causes: I) -> Self {
        let mut all = Self::default();
        causes.into_iter().for_each(|cause| all.insert(cause));
        all
    }
}

/// Returns the causes for which the readings, oldest first, give evidence. Some causes exclude
/// others: the threads of a stopped, frozen or throttled process show neither starvation nor what
/// they wait for.
pub fn causes(readings: &[Timed]) -> Causes {
    let readings = recent(readings);
    if readings.len() < AGREEING || span(readings) < LASTING {
        return Causes::default();
    }
    if lasts(readings, is_stopped) {
        return [Cause::Stopped].into_iter().collect();
    }
    if lasts(readings, is_frozen) {
        return [Cause::Frozen].into_iter().collect();
    }
    Cause::ALL.into_iter().filter(|cause| has_evidence(*cause, readings)).collect()
}

fn has_evidence(cause: Cause, readings: &[Timed]) -> bool {
    match cause {
        Cause::Stopped | Cause::Frozen => false,
        Cause::Descriptors => is_out_of_descriptors(readings),
        Cause::ConnectionLimit => is_at_connection_limit(readings),
        Cause::IdleClients => is_held_by_clients(readings),
        Cause::NobodyAccepts => accepts_nobody(readings),
        Cause::CpuThrottled => is_throttled(readings),
        Cause::CpuStarved => !is_throttled(readings) && is_starved(readings),
        Cause::CpuSteal => is_stolen_from(readings),
        Cause::CpuBound => is_bound(readings),
        Cause::MemoryStall => is_short_of_memory(readings),
        // The kernel also puts a thread into state D when it throttles the thread at memory.high.
        Cause::DiskWait => !is_short_of_memory(readings) && waits_for_disk(readings),
        Cause::WaitsFor => awaited(readings).is_some(),
        Cause::Lock => lasts_for_all_threads(readings, is_locked),
    }
}

/// Returns the readings of the last [`WINDOW`], or the last [`MIN_READINGS`] if those are more.
fn recent(readings: &[Timed]) -> &[Timed] {
    let Some(last) = readings.last() else { return readings };
    let first = readings.partition_point(|one| one.at + WINDOW < last.at);
    &readings[first.min(readings.len().saturating_sub(MIN_READINGS))..]
}

fn span(readings: &[Timed]) -> Duration {
    match readings {
        [first, .., last] => last.at.saturating_sub(first.at),
        _ => Duration::ZERO,
    }
}

/// Whether `rule` holds in every reading of the last [`LASTING`], or in each of the last
/// [`AGREEING`] readings if those are more.
fn lasts(readings: &[Timed], rule: impl Fn(&Timed) -> bool) -> bool {
    let Some(last) = readings.last() else { return false };
    let first = readings.partition_point(|one| one.at + LASTING < last.at);
    readings[first.min(readings.len().saturating_sub(AGREEING))..].iter().all(rule)
}

/// Like [`lasts`], but includes earlier readings until every thread was read: of a process with
/// many threads, one reading contains only a part.
fn lasts_for_all_threads(readings: &[Timed], rule: impl Fn(&Timed) -> bool) -> bool {
    let lengths = AGREEING..=readings.len();
    let mut ends = lengths.map(|length| &readings[readings.len() - length..]);
    let complete = ends.find(|end| span(end) >= LASTING && have_all_threads(end));
    complete.is_some_and(|end| end.iter().all(rule))
}

/// Whether the readings contain every thread of the processes in the last reading.
fn have_all_threads(readings: &[Timed]) -> bool {
    let threads_of = |pid: u32| {
        let processes = readings.iter().flat_map(|one| &one.owner.processes);
        let threads = processes.filter(|process| process.pid == pid).flat_map(|one| &one.threads);
        threads.map(|thread| thread.tid).collect::<HashSet<u32>>().len()
    };
    let last = readings.last().map(|last| &last.owner.processes);
    last.into_iter().flatten().all(|one| threads_of(one.pid) >= one.thread_count as usize)
}

// --- One reading.

fn is_stopped(reading: &Timed) -> bool {
    let acceptors = reading.owner.acceptors();
    !acceptors.is_empty() && acceptors.iter().all(|process| process.is_stopped())
}

fn is_frozen(reading: &Timed) -> bool {
    reading.owner.cgroups.iter().any(|cgroup| cgroup.frozen == Some(true))
}

fn is_locked(reading: &Timed) -> bool {
    let acceptors = reading.owner.acceptors();
    let mut threads = acceptors.iter().flat_map(|process| &process.threads).peekable();
    threads.peek().is_some() && threads.all(|thread| thread.wait == Wait::Futex)
}

/// Whether the waits of all threads of the process could be read.
fn sees_waits(process: &ProcessReading) -> bool {
    process.threads.iter().all(|thread| thread.wait != Wait::Unknown)
}

/// Whether the socket has holders, and all of them are known not to wait for connections at it.
fn is_left_alone(reading: &Timed) -> bool {
    let holders = &reading.owner.processes;
    let waits = |process: &ProcessReading| {
        process.polls != Some(false)
            || !sees_waits(process)
            || process.threads.iter().any(|thread| thread.wait == Wait::Accept)
    };
    !holders.is_empty() && !holders.iter().any(waits)
}

// --- Several readings.

fn ends(readings: &[Timed]) -> Option<(&Timed, &Timed)> {
    Some((readings.first()?, readings.last()?))
}

/// Whether no connection was taken from the queue during the readings. A server over its descriptor
/// limit may still accept if the limit was lowered below the number of open descriptors.
fn takes_nothing(readings: &[Timed]) -> bool {
    lasts(readings, |one| one.listener.taken_ago.is_none_or(|ago| ago >= Duration::from_secs(1)))
}

fn is_out_of_descriptors(readings: &[Timed]) -> bool {
    let is_out = |one: &Timed| one.owner.acceptors().iter().any(|process| process.is_out_of_fds());
    lasts(readings, is_out) && takes_nothing(readings)
}

fn open_connections_are_steady(readings: &[Timed]) -> bool {
    let mut open = readings.iter().map(|one| one.listener.open_connections);
    let Some(Some(first)) = open.next() else { return false };
    first > 0 && open.all(|open| open == Some(first))
}

fn is_at_connection_limit(readings: &[Timed]) -> bool {
    let has_zero_limit = |one: &Timed| one.listener.limit == Some(0);
    let looks_away = |one: &Timed| is_left_alone(one) && waits_for_events(one);
    let stopped_on_purpose =
        lasts_for_all_threads(readings, looks_away) || lasts(readings, has_zero_limit);
    stopped_on_purpose
        && !is_busy_elsewhere(readings)
        && !is_out_of_descriptors(readings)
        && open_connections_are_steady(readings)
        && takes_nothing(readings)
}

/// Whether a process that holds the socket waits for events. A process that hangs elsewhere did not
/// stop watching the socket on purpose.
fn waits_for_events(reading: &Timed) -> bool {
    let mut threads = reading.owner.processes.iter().flat_map(|process| &process.threads);
    threads.any(|thread| thread.wait == Wait::Events)
}

/// Whether the workers wait for something other than connections. Such workers do not watch the
/// socket either, but not on purpose.
fn is_busy_elsewhere(readings: &[Timed]) -> bool {
    let waits_elsewhere = |thread: &ThreadReading| {
        matches!(thread.wait, Wait::Client | Wait::Peer(..) | Wait::Futex) || thread.state != 'S'
    };
    let is_held = |thread: &ThreadReading| matches!(thread.wait, Wait::Client | Wait::Peer(..));
    holds_for_workers(readings, waits_elsewhere) || holds_connections(readings, is_held)
}

fn accepts_nobody(readings: &[Timed]) -> bool {
    let has_connections = |one: &Timed| one.listener.open_connections.is_none_or(|open| open > 0);
    lasts_for_all_threads(readings, is_left_alone)
        && !readings.iter().any(has_connections)
        && !readings.iter().any(|one| one.listener.has_accepted)
        // A running worker may poll the socket at any time.
        && !holds_for_workers(readings, |thread| thread.state == 'R')
}

fn is_throttled(readings: &[Timed]) -> bool {
    throttled_share(readings).is_some_and(|share| share >= THROTTLED_SHARE)
}

/// Returns the largest share of throttled periods of a cgroup over the readings.
pub fn throttled_share(readings: &[Timed]) -> Option<f64> {
    let readings = recent(readings);
    let (first, last) = ends(readings)?;
    let shares = last.owner.cgroups.iter().filter_map(|after| {
        let before = same_cgroup(&first.owner, after)?;
        share_of_periods(before.periods?, after.periods?)
    });
    shares.max_by(f64::total_cmp)
}

fn same_cgroup<'a>(reading: &'a OwnerReading, cgroup: &CgroupReading) -> Option<&'a CgroupReading> {
    reading.cgroups.iter().find(|one| one.path == cgroup.path)
}

fn share_of_periods(before: Periods, after: Periods) -> Option<f64> {
    let all = after.all.checked_sub(before.all)?;
    let throttled = after.throttled.checked_sub(before.throttled)?;
    (all >= MIN_PERIODS).then(|| throttled as f64 / all as f64)
}

/// Returns the growth of a time of a thread between the first and the last reading that contain the
/// thread, as a share of the time between these readings.
fn thread_share(
    readings: &[Timed],
    tid: u32,
    time: impl Fn(&ThreadReading) -> Duration,
) -> Option<f64> {
    let mut seen = readings.iter().filter_map(|one| Some((one.at, find_thread(one, tid)?)));
    let (from, first) = seen.next()?;
    let (to, last) = seen.next_back()?;
    let gap = to.saturating_sub(from);
    let grown = time(last).checked_sub(time(first))?;
    (gap >= LASTING).then(|| grown.as_secs_f64() / gap.as_secs_f64())
}

fn find_thread(reading: &Timed, tid: u32) -> Option<&ThreadReading> {
    reading.owner.processes.iter().flat_map(|process| &process.threads).find(|one| one.tid == tid)
}

/// Returns the threads of the accepting processes in the last reading.
fn accepting_threads(readings: &[Timed]) -> Vec<ThreadReading> {
    let Some(last) = readings.last() else { return Vec::new() };
    last.owner.acceptors().iter().flat_map(|process| &process.threads).copied().collect()
}

/// Returns the threads that accept: threads that were seen to wait for connections or events, or
/// the main threads if no such thread was seen.
fn threads_that_accept(readings: &[Timed]) -> Vec<u32> {
    let Some(last) = readings.last() else { return Vec::new() };
    let acceptors: Vec<u32> = last.owner.acceptors().iter().map(|process| process.pid).collect();
    let of_acceptors = |process: &&ProcessReading| acceptors.contains(&process.pid);
    let processes = readings.iter().flat_map(|one| &one.owner.processes).filter(of_acceptors);
    let waits = |thread: &&ThreadReading| matches!(thread.wait, Wait::Accept | Wait::Events);
    let threads = processes.flat_map(|process| &process.threads).filter(waits);
    let mut seen: Vec<u32> = threads.map(|thread| thread.tid).collect();
    seen.sort_unstable();
    seen.dedup();
    if seen.is_empty() { acceptors } else { seen }
}

/// Returns the largest share of time for which an accepting thread was runnable but not running.
pub fn starved_share(readings: &[Timed]) -> Option<f64> {
    let readings = recent(readings);
    let threads = accepting_threads(readings);
    let shares =
        threads.iter().filter_map(|one| thread_share(readings, one.tid, |thread| thread.runnable));
    shares.max_by(f64::total_cmp)
}

fn is_starved(readings: &[Timed]) -> bool {
    starved_share(readings).is_some_and(|share| share >= STARVED_SHARE)
}

fn is_bound(readings: &[Timed]) -> bool {
    let bound = |tid: &u32| {
        thread_share(readings, *tid, |thread| thread.on_cpu)
            .is_some_and(|share| share >= BOUND_SHARE)
    };
    threads_that_accept(readings).iter().any(bound)
}

/// Returns the share of the machine's time that the hypervisor took over the readings.
pub fn steal_share(readings: &[Timed]) -> Option<f64> {
    let (first, last) = ends(recent(readings))?;
    let all = last.owner.machine.all.checked_sub(first.owner.machine.all)?;
    let steal = last.owner.machine.steal.checked_sub(first.owner.machine.steal)?;
    (all > 0).then(|| steal as f64 / all as f64)
}

fn is_stolen_from(readings: &[Timed]) -> bool {
    steal_share(readings).is_some_and(|share| share >= STEAL_SHARE)
}

fn is_short_of_memory(readings: &[Timed]) -> bool {
    let gap = span(readings).as_secs_f64();
    let share = ends(readings).and_then(|(first, last)| {
        let before = own_cgroup(&first.owner)?.memory_stalled?;
        let after = own_cgroup(&last.owner)?.memory_stalled?;
        Some(after.checked_sub(before)?.as_secs_f64() / gap)
    });
    share.is_some_and(|share| share >= MEMORY_SHARE) || hits_high(readings)
}

/// Returns the version 2 cgroup of the owner. The pressure and events of its ancestors include
/// those of its neighbours; its own pressure includes stalls at the limits of its ancestors.
///
/// The root cgroup of the machine does not count: its pressure is that of all processes, and it has
/// no `memory.events`.
fn own_cgroup(owner: &OwnerReading) -> Option<&CgroupReading> {
    let own = owner.cgroups.iter().find(|cgroup| cgroup.path.starts_with('/'))?;
    (own.path != "/" || own.memory_high.is_some()).then_some(own)
}

/// Whether `memory.high` was hit between each two consecutive readings.
fn hits_high(readings: &[Timed]) -> bool {
    let high = |one: &Timed| own_cgroup(&one.owner)?.memory_high;
    readings.windows(2).all(|pair| high(&pair[0]).zip(high(&pair[1])).is_some_and(|(a, b)| b > a))
}

fn waits_for_disk(readings: &[Timed]) -> bool {
    let accepting = threads_that_accept(readings);
    let in_disk = |one: &&Timed| {
        let threads = accepting.iter().filter_map(|tid| find_thread(one, *tid));
        let waiting = threads.filter(|thread| thread.state == 'D').count();
        waiting > 0 && waiting as f64 >= accepting.len() as f64 * WORKERS_SHARE
    };
    let count = readings.iter().filter(in_disk).count();
    count as f64 >= readings.len() as f64 * DISK_SHARE
        || holds_connections(readings, |thread| thread.state == 'D')
}

/// Returns the threads that do the work of a server: all threads that were read, or only those of
/// the accepting processes if other processes hold the socket too.
fn workers(reading: &Timed) -> Vec<ThreadReading> {
    let threads = reading.owner.processes.iter().flat_map(|process| &process.threads).copied();
    let acceptors = reading.owner.acceptors().len();
    let masters = reading.owner.processes.len().saturating_sub(acceptors);
    // A master process holds the socket and does no work itself.
    match masters {
        0 => threads.collect(),
        _ => reading.owner.acceptors().iter().flat_map(|one| &one.threads).copied().collect(),
    }
}

/// Whether `rule` holds for most workers in every reading that [`lasts`] evaluates.
fn holds_for_workers(readings: &[Timed], rule: impl Fn(&ThreadReading) -> bool) -> bool {
    lasts(readings, |one| {
        let workers = workers(one);
        let held = workers.iter().filter(|thread| rule(thread)).count();
        held > 0 && held as f64 > workers.len() as f64 * WORKERS_SHARE
    })
}

/// Whether the threads for which `rule` holds are at least two and explain most open connections of
/// the listener: each thread holds the connection that it serves. Threads of other kinds, which
/// many servers have, do not matter.
fn holds_connections(readings: &[Timed], rule: impl Fn(&ThreadReading) -> bool) -> bool {
    lasts(readings, |one| {
        let threads = one.owner.processes.iter().flat_map(|process| &process.threads);
        let held = threads.filter(|thread| rule(thread)).count() as u64;
        held >= 2 && one.listener.open_connections.is_some_and(|open| held * 2 > open)
    })
}

fn is_held_by_clients(readings: &[Timed]) -> bool {
    let by_client = |thread: &ThreadReading| thread.wait == Wait::Client;
    holds_for_workers(readings, by_client) || holds_connections(readings, by_client)
}

/// Returns the peer for which most workers wait in all evaluated readings, if there is one.
pub fn awaited(readings: &[Timed]) -> Option<Awaited> {
    let readings = recent(readings);
    let peer = most_awaited(readings.last()?)?;
    let waits =
        |thread: &ThreadReading| matches!(thread.wait, Wait::Peer(at, _) if at == peer.peer);
    let holds_all = || takes_nothing(readings) && holds_connections(readings, waits);
    (holds_for_workers(readings, waits) || holds_all()).then_some(peer)
}

fn most_awaited(reading: &Timed) -> Option<Awaited> {
    let workers = workers(reading);
    let mut counts: HashMap<SocketAddr, (usize, Syscall)> = HashMap::new();
    for thread in &workers {
        if let Wait::Peer(peer, syscall) = thread.wait {
            counts.entry(peer).or_insert((0, syscall)).0 += 1;
        }
    }
    let (peer, (waiting, syscall)) = counts.into_iter().max_by_key(|(peer, (n, _))| (*n, *peer))?;
    Some(Awaited { peer, syscall, waiting, workers: workers.len() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::owner_reading::MachineReading;

    const SECOND: Duration = Duration::from_secs(1);

    fn thread(tid: u32) -> ThreadReading {
        let (on_cpu, runnable) = (Duration::ZERO, Duration::ZERO);
        ThreadReading { tid, state: 'S', on_cpu, runnable, wait: Wait::Other }
    }

    fn process(pid: u32) -> ProcessReading {
        let (open_fds, max_fds) = (Some(20), Some(1024));
        let threads = vec![ThreadReading { wait: Wait::Accept, ..thread(pid) }];
        ProcessReading {
            pid,
            parent: 1,
            open_fds,
            max_fds,
            thread_count: 1,
            threads,
            ..ProcessReading::default()
        }
    }

    fn owner() -> OwnerReading {
        OwnerReading { processes: vec![process(7)], ..OwnerReading::default() }
    }

    fn facts() -> ListenerFacts {
        ListenerFacts {
            taken_ago: Some(5 * SECOND),
            open_connections: Some(8),
            limit: Some(128),
            has_accepted: true,
        }
    }

    /// Returns the causes of eight readings, one per second. `change` changes the reading of a
    /// second.
    fn said(change: impl Fn(u32, &mut OwnerReading, &mut ListenerFacts)) -> Vec<Cause> {
        let reading = |second| {
            let (mut owner, mut listener) = (owner(), facts());
            change(second, &mut owner, &mut listener);
            Timed { at: 100 * SECOND + second * SECOND, owner: Arc::new(owner), listener }
        };
        causes(&(0..8).map(reading).collect::<Vec<_>>()).iter().collect()
    }

    fn with_thread(change: impl Fn(u32, &mut ThreadReading)) -> Vec<Cause> {
        said(|second, owner, _| change(second, &mut owner.processes[0].threads[0]))
    }

    fn with_cgroup(change: impl Fn(u64, &mut CgroupReading)) -> Vec<Cause> {
        said(|second, owner, _| {
            let mut cgroup = CgroupReading { path: "/a".into(), ..CgroupReading::default() };
            change(second.into(), &mut cgroup);
            owner.cgroups =
                vec![cgroup, CgroupReading { path: "/".into(), ..CgroupReading::default() }];
        })
    }

    #[test]
    fn all_lists_causes_in_the_order_of_their_discriminants() {
        for (place, cause) in Cause::ALL.into_iter().enumerate() {
            assert_eq!(cause as usize, place);
        }
    }

    #[test]
    fn a_normal_server_has_no_cause() {
        assert_eq!(said(|_, _, _| ()), []);
    }

    #[test]
    fn too_few_or_too_close_readings_give_no_cause() {
        let owner = Arc::new(OwnerReading {
            processes: vec![ProcessReading {
                threads: vec![ThreadReading { state: 'T', ..thread(7) }],
                ..process(7)
            }],
            ..OwnerReading::default()
        });
        let one = |at| Timed { at, owner: owner.clone(), listener: facts() };
        assert!(causes(&[one(SECOND)]).is_empty());
        assert!(causes(&[one(SECOND), one(2 * SECOND), one(3 * SECOND)]).is_empty());
    }

    #[test]
    fn a_server_is_stopped_if_all_threads_of_all_accepting_processes_are() {
        assert_eq!(with_thread(|_, thread| thread.state = 'T'), [Cause::Stopped]);
        // The process continues within the time that evidence must last.
        assert_eq!(
            with_thread(|second, thread| thread.state = if second < 6 { 'T' } else { 'S' }),
            []
        );
        // A stopped child that does not accept, beside a worker that does.
        let twin = said(|_, owner, _| {
            let stopped = ThreadReading { state: 'T', ..thread(9) };
            owner.processes.push(ProcessReading {
                parent: 7,
                threads: vec![stopped],
                ..process(9)
            });
        });
        assert_eq!(twin, []);
    }

    #[test]
    fn a_frozen_ancestor_is_frozen() {
        let frozen = said(|_, owner, _| {
            let ancestor = CgroupReading { frozen: Some(true), ..CgroupReading::default() };
            owner.cgroups = vec![CgroupReading::default(), ancestor];
        });
        assert_eq!(frozen, [Cause::Frozen]);
    }

    #[test]
    fn a_reached_descriptor_limit_is_a_cause_only_if_no_connection_is_taken() {
        let full = |owner: &mut OwnerReading| owner.processes[0].max_fds = Some(20);
        assert_eq!(said(|_, owner, _| full(owner)), [Cause::Descriptors]);
        let accepts = said(|_, owner, listener| {
            full(owner);
            listener.taken_ago = Some(SECOND / 5);
        });
        assert_eq!(accepts, []);
        let below = said(|_, owner, _| owner.processes[0].max_fds = Some(21));
        assert_eq!(below, []);
    }

    #[test]
    fn connection_limit_needs_an_unwatched_socket_and_steady_connections() {
        let away = |owner: &mut OwnerReading| {
            owner.processes[0].polls = Some(false);
            owner.processes[0].threads[0].wait = Wait::Events;
        };
        assert_eq!(said(|_, owner, _| away(owner)), [Cause::ConnectionLimit]);
        let comes_and_goes = said(|second, owner, listener| {
            away(owner);
            listener.open_connections = Some(second.into());
        });
        assert_eq!(comes_and_goes, []);
        let memcached = said(|_, _, listener| listener.limit = Some(0));
        assert_eq!(memcached, [Cause::ConnectionLimit]);
        let hangs = said(|_, owner, _| {
            away(owner);
            owner.processes[0].threads[0].wait = Wait::Other;
        });
        assert_eq!(hangs, []);
        let held_by_clients = said(|_, owner, _| {
            away(owner);
            owner.processes[0].threads[0].wait = Wait::Client;
        });
        assert_eq!(held_by_clients, [Cause::IdleClients]);
        let unknown = said(|_, owner, listener| {
            away(owner);
            listener.open_connections = None;
        });
        assert_eq!(unknown, []);
    }

    #[test]
    fn a_socket_that_is_not_watched_and_never_accepted_has_no_acceptor() {
        let leaked = |change: fn(&mut OwnerReading, &mut ListenerFacts)| {
            said(move |_, owner, listener| {
                owner.processes[0].polls = Some(false);
                owner.processes[0].threads[0].wait = Wait::Other;
                (listener.has_accepted, listener.open_connections) = (false, Some(0));
                change(owner, listener);
            })
        };
        assert_eq!(leaked(|_, _| ()), [Cause::NobodyAccepts]);
        assert_eq!(leaked(|owner, _| owner.processes[0].threads[0].state = 'R'), []);
        assert_eq!(leaked(|owner, _| owner.processes[0].threads[0].wait = Wait::Unknown), []);
        assert_eq!(leaked(|_, listener| listener.has_accepted = true), []);
        // Half of the threads were never read.
        assert_eq!(leaked(|owner, _| owner.processes[0].thread_count = 2), []);
    }

    #[test]
    fn a_cgroup_throttled_in_most_periods_is_cpu_throttled() {
        let throttled = |share: f64| {
            with_cgroup(move |second, cgroup| {
                let all = second * 10;
                cgroup.periods = Some(Periods { all, throttled: (all as f64 * share) as u64 });
            })
        };
        assert_eq!(throttled(0.9), [Cause::CpuThrottled]);
        assert_eq!(throttled(0.1), []);
        // The throttled time is summed over all processors and is no evidence.
        let busy =
            with_cgroup(|second, cgroup| cgroup.throttled = Some(Duration::from_secs(second * 30)));
        assert_eq!(busy, []);
    }

    #[test]
    fn a_runnable_thread_that_does_not_run_is_starved_unless_throttled() {
        let starved =
            |second: u32, thread: &mut ThreadReading| thread.runnable = second * SECOND / 2;
        assert_eq!(with_thread(starved), [Cause::CpuStarved]);
        assert_eq!(with_thread(|second, thread| thread.runnable = second * SECOND / 8), []);
        let throttled = said(|second, owner, _| {
            starved(second, &mut owner.processes[0].threads[0]);
            let all = u64::from(second) * 10;
            let periods = Some(Periods { all, throttled: all });
            owner.cgroups = vec![CgroupReading { periods, ..CgroupReading::default() }];
        });
        assert_eq!(throttled, [Cause::CpuThrottled]);
    }

    #[test]
    fn a_large_share_of_stolen_time_is_cpu_steal() {
        let steal = |share: u64| {
            said(move |second, owner, _| {
                let all = u64::from(second) * 200;
                owner.machine = MachineReading { steal: all * share / 100, all };
            })
        };
        assert_eq!(steal(30), [Cause::CpuSteal]);
        assert_eq!(steal(3), []);
    }

    #[test]
    fn an_accepting_thread_that_never_waits_is_cpu_bound() {
        let busy = |second: u32, thread: &mut ThreadReading| {
            (thread.on_cpu, thread.state, thread.wait) =
                (second * SECOND * 97 / 100, 'R', Wait::Other);
        };
        assert_eq!(with_thread(busy), [Cause::CpuBound]);
        let worker_is_busy = said(|second, owner, _| {
            let mut worker = thread(8);
            busy(second, &mut worker);
            owner.processes[0].threads.push(worker);
        });
        assert_eq!(worker_is_busy, []);
    }

    #[test]
    fn memory_stalls_and_hits_of_memory_high_are_a_memory_stall() {
        let stalled = |millis: u64| {
            with_cgroup(move |second, cgroup| {
                cgroup.memory_stalled = Some(Duration::from_millis(second * millis));
            })
        };
        assert_eq!(stalled(300), [Cause::MemoryStall]);
        assert_eq!(stalled(20), []);
        assert_eq!(
            with_cgroup(|second, cgroup| cgroup.memory_high = Some(second * 3)),
            [Cause::MemoryStall]
        );
        assert_eq!(with_cgroup(|_, cgroup| cgroup.memory_high = Some(9)), []);
    }

    #[test]
    fn memory_stalls_of_neighbours_below_the_same_ancestor_are_no_memory_stall() {
        let elsewhere = said(|second, owner, _| {
            let own = CgroupReading {
                path: "/a".into(),
                memory_high: Some(0),
                ..CgroupReading::default()
            };
            let root = CgroupReading {
                path: "/".into(),
                memory_stalled: Some(second * SECOND / 2),
                memory_high: Some(second.into()),
                ..CgroupReading::default()
            };
            owner.cgroups = vec![own, root];
        });
        assert_eq!(elsewhere, []);
    }

    #[test]
    fn memory_stalls_of_the_machine_are_no_memory_stall_of_a_server_in_its_root_cgroup() {
        let in_root = |memory_high| {
            said(move |second, owner, _| {
                let memory_stalled = Some(second * SECOND / 2);
                let root = CgroupReading { path: "/".into(), ..CgroupReading::default() };
                owner.cgroups = vec![CgroupReading { memory_stalled, memory_high, ..root }];
            })
        };
        assert_eq!(in_root(None), []);
        // The root of a container's cgroup namespace has `memory.events`.
        assert_eq!(in_root(Some(0)), [Cause::MemoryStall]);
    }

    #[test]
    fn state_d_during_a_memory_stall_is_no_disk_wait() {
        let stalled = said(|second, owner, _| {
            let memory_stalled = Some(second * SECOND * 3 / 10);
            owner.cgroups = vec![CgroupReading {
                path: "/a".into(),
                memory_stalled,
                ..CgroupReading::default()
            }];
            owner.processes[0].threads[0].state = 'D';
        });
        assert_eq!(stalled, [Cause::MemoryStall]);
    }

    #[test]
    fn accepting_threads_in_state_d_wait_for_a_disk() {
        assert_eq!(with_thread(|_, thread| thread.state = 'D'), [Cause::DiskWait]);
        assert_eq!(
            with_thread(|second, thread| thread.state = if second % 4 == 0 { 'D' } else { 'S' }),
            []
        );
    }

    fn database() -> SocketAddr {
        "10.0.0.5:3306".parse().unwrap()
    }

    /// Adds eight workers to a master. The first `waiting` workers have the wait `wait`.
    fn pool(owner: &mut OwnerReading, waiting: u32, wait: Wait) {
        let worker = |n: u32| ProcessReading {
            parent: 7,
            threads: vec![ThreadReading {
                wait: if n < waiting { wait } else { Wait::Other },
                ..thread(20 + n)
            }],
            ..process(20 + n)
        };
        owner.processes[0].threads[0].wait = Wait::Other;
        owner.processes.extend((0..8).map(worker));
    }

    #[test]
    fn most_workers_waiting_for_one_peer_is_a_wait_for_that_peer() {
        let wait = Wait::Peer(database(), Syscall::Receive);
        assert_eq!(said(|_, owner, _| pool(owner, 7, wait)), [Cause::WaitsFor]);
        assert_eq!(said(|_, owner, _| pool(owner, 3, wait)), []);
        let mut reading = owner();
        pool(&mut reading, 7, wait);
        let found =
            most_awaited(&Timed { at: SECOND, owner: Arc::new(reading), listener: facts() });
        let expected =
            Awaited { peer: database(), syscall: Syscall::Receive, waiting: 7, workers: 8 };
        assert_eq!(found, Some(expected));
    }

    #[test]
    fn most_workers_waiting_for_clients_is_idle_clients() {
        assert_eq!(said(|_, owner, _| pool(owner, 8, Wait::Client)), [Cause::IdleClients]);
        assert_eq!(said(|_, owner, _| pool(owner, 2, Wait::Client)), []);
    }

    /// Returns the causes of a pool of two threads beside a main thread and an event loop.
    /// `waiting` of the two threads have the wait `wait`, and `open` connections are open. The
    /// event loop no longer watches the socket.
    fn busy_pool(waiting: u32, wait: Wait, open: u64) -> Vec<Cause> {
        said(|_, owner, listener| {
            let process = &mut owner.processes[0];
            process.polls = Some(false);
            let pool = (0..2).map(|n| if n < waiting { wait } else { Wait::Futex });
            let others = [Wait::Futex, Wait::Events, Wait::Futex, Wait::Other];
            process.threads = (20..)
                .zip(pool.chain(others))
                .map(|(tid, wait)| ThreadReading { wait, ..thread(tid) })
                .collect();
            process.thread_count = 6;
            listener.open_connections = Some(open);
        })
    }

    #[test]
    fn threads_that_hold_most_connections_are_evidence_despite_other_threads() {
        let wait = Wait::Peer(database(), Syscall::Receive);
        assert_eq!(busy_pool(2, wait, 2), [Cause::WaitsFor]);
        assert_eq!(busy_pool(2, Wait::Client, 2), [Cause::IdleClients]);
        // One thread always reads from a job queue; or two threads wait for a database while eight
        // connections are open.
        assert_eq!(busy_pool(1, wait, 1), []);
        assert!(!busy_pool(2, wait, 8).contains(&Cause::WaitsFor));
    }

    #[test]
    fn state_d_of_the_main_thread_or_of_all_busy_threads_is_disk_wait() {
        let states = |main: char, pool: char, open: u64| {
            said(move |_, owner, listener| {
                let thread = |(tid, state)| ThreadReading { state, ..thread(tid) };
                let all = (7..).zip([main, pool, pool, 'S', 'S', 'S', 'S']).map(thread);
                owner.processes[0].threads = all.collect();
                listener.open_connections = Some(open);
            })
        };
        assert_eq!(states('D', 'S', 1), [Cause::DiskWait]);
        assert_eq!(states('S', 'D', 2), [Cause::DiskWait]);
        assert_eq!(states('S', 'D', 8), []);
    }

    /// Returns the causes that are found for Node.js: the threads of its pool wait on futexes, and
    /// its thread for timers waits at another epoll instance. `change` changes the main thread.
    fn node(change: impl Fn(u32, &mut ThreadReading)) -> Vec<Cause> {
        said(|second, owner, listener| {
            let process = &mut owner.processes[0];
            let waits = [Wait::Other, Wait::Other, Wait::Futex, Wait::Futex, Wait::Futex];
            let thread = |(tid, wait)| ThreadReading { wait, ..thread(tid) };
            process.threads = (7..).zip(waits).map(thread).collect();
            (process.thread_count, process.polls) = (5, Some(true));
            change(second, &mut process.threads[0]);
            listener.open_connections = Some(1);
        })
    }

    #[test]
    fn the_main_thread_accepts_if_no_other_thread_waits_at_the_socket() {
        assert_eq!(node(|_, main| main.state = 'D'), [Cause::DiskWait]);
        let computes = |second, main: &mut ThreadReading| {
            (main.state, main.on_cpu) = ('R', second * SECOND);
        };
        assert_eq!(node(computes), [Cause::CpuBound]);
        assert_eq!(node(|_, _| ()), []);
        // Another thread waits at the socket, and the main thread does other work.
        let helper = |change: fn(u32, &mut ThreadReading)| {
            said(move |second, owner, _| {
                let process = &mut owner.processes[0];
                let acceptor = ThreadReading { wait: Wait::Events, ..thread(8) };
                process.threads = vec![thread(7), acceptor];
                (process.thread_count, process.polls) = (2, Some(true));
                change(second, &mut process.threads[0]);
            })
        };
        assert_eq!(helper(|_, main| main.state = 'D'), []);
        assert_eq!(helper(|second, main| main.on_cpu = second * SECOND), []);
    }

    #[test]
    fn a_lock_needs_a_reading_of_every_thread() {
        let turns = |count: u32| {
            said(move |second, owner, _| {
                let threads = (0..4).map(|n| ThreadReading {
                    wait: Wait::Futex,
                    ..thread(20 + (second * 4 + n) % count)
                });
                owner.processes[0].threads = threads.collect();
                owner.processes[0].thread_count = count;
            })
        };
        assert_eq!([turns(4), turns(16), turns(32)], [[Cause::Lock], [Cause::Lock], [Cause::Lock]]);
        assert_eq!(turns(33), []);
    }

    #[test]
    fn all_threads_on_a_futex_is_a_lock_unless_one_waits_elsewhere() {
        assert_eq!(with_thread(|_, thread| thread.wait = Wait::Futex), [Cause::Lock]);
        let pool_rests = said(|_, owner, _| {
            owner.processes[0].threads.push(ThreadReading { wait: Wait::Futex, ..thread(8) });
        });
        assert_eq!(pool_rests, []);
    }
}
