//! What the fuzz targets do with any bytes. The files of `fuzz_targets/` hand them on from the fuzzer; `tests/fuzz.rs` of
//! listenq takes this file in and feeds the seeds and what mutations make of them.

pub mod cgroup;
pub mod fold;
pub mod kubelet;
pub mod netlink_datagram;
pub mod netstat;
pub mod proc_tcp;

/// A target: its name, which is that of its seeds' directory, and its entry.
pub type Entry = (&'static str, fn(&[u8]));

/// Every target of this crate.
pub const ALL: [Entry; 6] = [
    ("cgroup", cgroup::run),
    ("fold", fold::run),
    ("kubelet", kubelet::run),
    ("netlink_datagram", netlink_datagram::run),
    ("netstat", netstat::run),
    ("proc_tcp", proc_tcp::run),
];
