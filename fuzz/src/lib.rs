//! The checks of the fuzz targets. The files in `fuzz_targets/` pass the bytes of the fuzzer to them;
//! `tests/fuzz.rs` of listenq includes this file and passes the seeds and mutations of them.

pub mod cgroup;
pub mod fold;
pub mod kubelet;
pub mod netlink_datagram;
pub mod netstat;
pub mod proc_tcp;

/// The name of a target, which is also the directory of its seeds, and its function.
pub type Entry = (&'static str, fn(&[u8]));

/// All targets but `web_config`.
pub const ALL: [Entry; 6] = [
    ("cgroup", cgroup::run),
    ("fold", fold::run),
    ("kubelet", kubelet::run),
    ("netlink_datagram", netlink_datagram::run),
    ("netstat", netstat::run),
    ("proc_tcp", proc_tcp::run),
];
