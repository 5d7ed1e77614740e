//! Netlink and procfs readers. Receiving contains no logic and decoding opens no file; the readers
//! produce a [`snapshot`](crate::snapshot).

mod acceptors;
pub mod cgroup_stat;
pub mod connections;
pub mod device;
pub mod diag_modules;
pub mod diag_stream;
pub mod dump_locks;
pub mod inet_diag;
pub mod listen;
pub mod namespaces;
pub mod netlink;
pub mod netstat;
pub mod own_process;
pub mod port_filter;
pub mod proc_tcp;
pub mod procfs_file;
pub mod socket_queries;
pub mod sockstat;
pub mod sysctl;
pub mod thread_stat;
pub mod unix_diag;
