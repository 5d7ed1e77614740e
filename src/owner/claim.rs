//! Which of the processes that hold a socket is the one to name: the oldest that did not make it for others.

use std::os::fd::OwnedFd;

use super::process::Process;
use crate::snapshot::escaped;

/// A process that holds a listen socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its id in the pid namespace of the procfs that was walked.
    pub pid: u32,
    /// When it was started, in ticks since boot: with the pid this is the process and no later one.
    pub start_time: u64,
    /// Its name, escaped; 15 bytes at most in the kernel.
    pub comm: String,
    /// The text of its `cgroup` file, for [`telling_path`](super::cgroup::telling_path).
    pub cgroup: String,
}

/// A process found to hold a wanted socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    pub(super) pid: u32,
    parent: i32,
    start_time: u64,
    /// Whether it is a systemd: pid 1, a user's, or a container's.
    pub(super) passes_sockets_on: bool,
}

// === impl Claim ===

impl Claim {
    /// Reads `stat`; `None` when the process has ended.
    pub(super) fn of(process: &Process) -> Option<Self> {
        let stat = process.stat()?;
        Some(Self {
            pid: process.pid,
            parent: stat.ppid,
            start_time: stat.starttime,
            passes_sockets_on: process.pid == 1 || stat.comm == "systemd",
        })
    }

    /// Whether this is the one to name.
    pub(super) fn beats(&self, other: &Self) -> bool {
        if self.passes_sockets_on != other.passes_sockets_on {
            return other.passes_sockets_on;
        }
        if self.start_time != other.start_time {
            return self.start_time < other.start_time;
        }
        // Started within one tick, mostly 10 ms: a parent is older, and pids seldom wrap.
        other.is_child_of(self) || !self.is_child_of(other) && self.pid < other.pid
    }

    fn is_child_of(&self, other: &Self) -> bool {
        u32::try_from(self.parent) == Ok(other.pid)
    }

    /// Reads the rest, unless the process has ended.
    pub(super) fn read(&self, procfs: &OwnedFd) -> Option<Holder> {
        let process = Process::open(procfs, self.pid).ok()?;
        let comm = process.bytes("comm");
        let holder = Holder {
            pid: self.pid,
            start_time: self.start_time,
            comm: escaped(comm.strip_suffix(b"\n").unwrap_or(&comm)),
            cgroup: process.text("cgroup"),
        };
        // Last, so that all of the above is of one living process: the one that made the claim.
        (process.stat()?.starttime == self.start_time).then_some(holder)
    }
}
