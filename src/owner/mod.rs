//! Who is behind a listen socket: process, systemd unit, container and pod, and the places that tell.
//!
//! * [`holders`]: the processes whose `/proc/<pid>/fd` has the socket;
//! * [`cgroup_id`]: the cgroup a socket was made in, from `INET_DIAG_CGROUP_ID`;
//! * [`cgroup`]: what a cgroup's path says of unit, container and pod;
//! * [`kubelet`]: the names of that pod and container.
//!
//! Each answers one question. Which to ask, when and how often is the caller's to decide.

pub mod cgroup;
pub mod cgroup_id;
mod claim;
#[cfg(test)]
pub(crate) mod fixture;
pub mod holders;
pub mod kubelet;
pub mod lookup;
mod process;
pub mod reader;
mod text;
