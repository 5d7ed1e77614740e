//! One reading of the owner of a listen socket: its processes, threads and cgroups, and the
//! machine. Plain values; [`crate::cause`] evaluates them over time.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// The inode of a listen socket, and a reading of its owner.
pub type SocketOwnerReading = (u32, Arc<OwnerReading>);

/// One reading of the owner of a listen socket.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OwnerReading {
    /// The processes that hold the socket; empty without permission to read any.
    pub processes: Vec<ProcessReading>,
    /// The cgroups of those processes, the innermost first, each followed by its ancestors.
    pub cgroups: Vec<CgroupReading>,
    /// The processor time of the machine.
    pub machine: MachineReading,
}

/// One process that holds the socket.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProcessReading {
    /// The process id in the pid namespace of the procfs that was read.
    pub pid: u32,
    /// The parent's process id.
    pub parent: u32,
    /// The process name (`comm`).
    pub name: String,
    /// Open file descriptors: `st_size` of `/proc/PID/fd` from Linux 6.2 on, otherwise counted.
    pub open_fds: Option<u64>,
    /// The soft `RLIMIT_NOFILE`; `None` when it is unlimited or unknown.
    pub max_fds: Option<u64>,
    /// Whether one of its epoll instances watches the socket (`tfd:` lines of `fdinfo`); `None`
    /// when unknown.
    pub polls: Option<bool>,
    /// The number of threads. `threads` contains at most as many threads as the reader reads at a
    /// time.
    pub thread_count: u32,
    /// The threads that were read.
    pub threads: Vec<ThreadReading>,
}

/// One thread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ThreadReading {
    pub tid: u32,
    /// The letter of `/proc/PID/task/TID/stat`: `R`, `S`, `D`, `T`, `t`, `Z`.
    pub state: char,
    /// Time on a processor (first number of `schedstat`).
    pub on_cpu: Duration,
    /// Time runnable but not running (second number of `schedstat`). The value also rises while its
    /// cgroup is throttled.
    pub runnable: Duration,
    /// What the thread waits for (`/proc/PID/task/TID/syscall`).
    pub wait: Wait,
}

/// What a thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wait {
    /// Not readable: the privileges of the feature `owners` are missing.
    Unknown,
    /// The thread runs, or waits for something that no other variant names.
    Other,
    /// A connection at the listen socket: `accept`, or `poll` of one descriptor.
    Accept,
    /// Events: `epoll_wait`, `poll` or `select` of several descriptors. An `epoll_wait` counts only
    /// if no other epoll instance of the process watches the listen socket.
    Events,
    /// A futex.
    Futex,
    /// Data from, or to, a client of this listener.
    Client,
    /// Data from, or to, another peer: a database, an upstream.
    Peer(SocketAddr, Syscall),
}

/// The system call in which a thread waits for a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Syscall {
    /// `read`, `readv`.
    Read,
    /// `recvfrom`, `recvmsg`.
    Receive,
    /// `write`, `sendto`, `sendmsg`.
    Send,
    /// `connect`.
    Connect,
    /// `poll`, `ppoll`, `select` of one descriptor.
    Poll,
}

/// One cgroup. A value that its controllers do not report is `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CgroupReading {
    /// The cgroup's path below the mount of its hierarchy.
    pub path: String,
    /// v2 `cgroup.events`, v1 `freezer.state`.
    pub frozen: Option<bool>,
    /// `nr_periods` and `nr_throttled` of `cpu.stat`.
    pub periods: Option<Periods>,
    /// v2 `throttled_usec`, v1 `throttled_time` of `cpu.stat`, summed over processors. The sum can
    /// exceed wall time.
    pub throttled: Option<Duration>,
    /// `total` of the line `some` of `memory.pressure` (v2).
    pub memory_stalled: Option<Duration>,
    /// `high` of `memory.events` (v2).
    pub memory_high: Option<u64>,
}

/// Periods of a CPU quota, counted since the creation of the cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Periods {
    /// All periods.
    pub all: u64,
    /// Periods in which the quota was used up.
    pub throttled: u64,
}

/// The first line of `/proc/stat`, in clock ticks of all processors since boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MachineReading {
    /// Time the hypervisor gave to other guests.
    pub steal: u64,
    /// Total time, including steal.
    pub all: u64,
}

/// The address of a listener, used to distinguish its clients from other peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LocalEnd {
    /// `0.0.0.0` and `::` stand for every address.
    pub ip: IpAddr,
    pub port: u16,
}

/// A listen socket whose owner is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchedSocket {
    /// The inode of the listen socket.
    pub inode: u32,
    /// A process that holds the socket; `None` if no process can be read.
    pub pid: Option<u32>,
    /// The start time of that process, in clock ticks since boot.
    pub start_time: u64,
    /// The id of the version 2 cgroup in which it was created, where the kernel reports it.
    pub cgroup: Option<u64>,
    /// The local end of the socket; `None` for Unix sockets.
    pub local: Option<LocalEnd>,
    /// A number that the sockets of one user, service or namespace share. Readings are divided
    /// fairly among these numbers.
    pub source: u64,
}

// === impl Syscall ===

impl Syscall {
    /// The name of the system call.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Receive => "recvfrom",
            Self::Send => "send",
            Self::Connect => "connect",
            Self::Poll => "poll",
        }
    }
}

// === impl ProcessReading ===

impl ProcessReading {
    /// Whether every thread was read and is stopped by a signal or a debugger.
    pub fn is_stopped(&self) -> bool {
        !self.threads.is_empty()
            && self.threads.iter().all(|thread| matches!(thread.state, 'T' | 't'))
    }

    /// Whether the process watches the socket for connections.
    pub fn watches(&self) -> bool {
        let waits = |thread: &ThreadReading| thread.wait == Wait::Accept;
        self.polls == Some(true) || self.threads.iter().any(waits)
    }

    /// Whether the process watches the socket, or waits for events of sockets that are not known,
    /// as `select` does.
    pub fn may_watch(&self) -> bool {
        let waits = |thread: &ThreadReading| thread.wait == Wait::Events;
        self.watches() || (self.polls.is_none() && self.threads.iter().any(waits))
    }

    /// Whether the process has reached its descriptor limit.
    pub fn is_out_of_fds(&self) -> bool {
        self.open_fds.zip(self.max_fds).is_some_and(|(open, max)| open >= max)
    }

    /// The share of its descriptor limit in use.
    pub fn fd_ratio(&self) -> Option<f64> {
        let (open, max) = self.open_fds.zip(self.max_fds)?;
        (max > 0).then(|| open as f64 / max as f64)
    }
}

// === impl OwnerReading ===

impl OwnerReading {
    /// The processes that accept: where known, the processes that watch the socket or wait in
    /// `accept`. Otherwise the holders of the socket that are not the parent of another holder,
    /// since a master process holds the socket without accepting.
    pub fn acceptors(&self) -> Vec<&ProcessReading> {
        let waiting: Vec<_> = self.processes.iter().filter(|process| process.watches()).collect();
        if !waiting.is_empty() {
            return waiting;
        }
        let is_parent = |one: &ProcessReading| {
            self.processes.iter().any(|other| other.parent == one.pid && other.pid != one.pid)
        };
        self.processes.iter().filter(|process| !is_parent(process)).collect()
    }

    /// The process closest to its descriptor limit.
    pub fn closest_to_fd_limit(&self) -> Option<&ProcessReading> {
        let with_ratio = self.processes.iter().filter_map(|one| Some((one.fd_ratio()?, one)));
        with_ratio.max_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, process)| process)
    }

    /// The throttled time of the owner: the largest value of the innermost cgroup and its
    /// ancestors.
    pub fn throttled(&self) -> Option<Duration> {
        self.cgroups.iter().filter_map(|cgroup| cgroup.throttled).max()
    }
}
