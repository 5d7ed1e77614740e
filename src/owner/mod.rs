//! Finds the owner of a listen socket: process, systemd unit, container and pod.
//!
//! * [`holders`]: the processes whose `/proc/<pid>/fd` contains the socket;
//! * [`cgroup_id`]: the cgroup that created a socket, from `INET_DIAG_CGROUP_ID`;
//! * [`cgroup`]: unit, container and pod from a cgroup path;
//! * [`kubelet`]: the names of that pod and container.
//!
//! Each module answers one question. The caller decides which question to ask, when and how often.

mod candidate;
pub mod cgroup;
pub mod cgroup_id;
mod connections;
#[cfg(test)]
pub(crate) mod fixture;
pub mod holders;
pub mod kubelet;
pub mod lookup;
mod process;
pub mod reader;
mod text;
