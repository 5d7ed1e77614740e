//! Selects the owner among the processes that hold a socket: the oldest process that did not create
//! the socket for others.

use std::os::fd::OwnedFd;

use super::process::Process;

/// A process that holds a listen socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Process id in the pid namespace of the procfs that was walked.
    pub pid: u32,
    /// Start time in ticks since boot. Pid and start time together identify the process, even if
    /// the pid is reused.
    pub start_time: u64,
    /// Escaped name of the process; the kernel stores at most 15 bytes.
    pub comm: String,
    /// Text of the process's `cgroup` file, for [`owner_path`](super::cgroup::owner_path).
    pub cgroup: String,
}

/// A process that holds a wanted socket, as a candidate for its owner.
#[derive(Clone, Copy, Debug)]
pub(super) struct OwnerCandidate {
    pub(super) pid: u32,
    parent: i32,
    start_time: u64,
    /// Whether the process is a systemd: pid 1, a user's systemd, or a container's systemd.
    pub(super) passes_sockets_on: bool,
}

// === impl OwnerCandidate ===

impl OwnerCandidate {
    /// Reads `stat`; `None` if the process has ended.
    pub(super) fn of(process: &Process) -> Option<Self> {
        let stat = process.stat()?;
        Some(Self {
            pid: process.pid,
            parent: stat.ppid,
            start_time: stat.starttime,
            passes_sockets_on: process.pid == 1 || stat.comm == "systemd",
        })
    }

    /// Whether this process, not `other`, is the owner.
    pub(super) fn beats(&self, other: &Self) -> bool {
        if self.passes_sockets_on != other.passes_sockets_on {
            return other.passes_sockets_on;
        }
        if self.start_time != other.start_time {
            return self.start_time < other.start_time;
        }
        // Both processes started within one tick, usually 10 ms: a parent is older, and pids seldom
        // wrap.
        other.is_child_of(self) || !self.is_child_of(other) && self.pid < other.pid
    }

    fn is_child_of(&self, other: &Self) -> bool {
        u32::try_from(self.parent) == Ok(other.pid)
    }

    /// Reads the remaining fields; `None` if the process has ended.
    pub(super) fn read(&self, procfs: &OwnedFd) -> Option<Holder> {
        let process = Process::open(procfs, self.pid).ok()?;
        let holder = Holder {
            pid: self.pid,
            start_time: self.start_time,
            comm: process.name(),
            cgroup: process.text("cgroup"),
        };
        // This check comes last. It ensures that all fields above belong to one living process: the
        // process of the candidate.
        (process.stat()?.starttime == self.start_time).then_some(holder)
    }
}
