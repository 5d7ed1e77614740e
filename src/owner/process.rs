//! One process, read through its directory in procfs.
//!
//! An open directory is safe against pid reuse: reads below it fail once the process has ended.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};

use procfs::FromRead;
use procfs::process::Stat;
use rustix::fs::{AtFlags, Mode, OFlags, fstat, openat, readlinkat, statat};
use rustix::io::Errno;

use crate::snapshot::escaped;

/// An open `/proc/<pid>`.
pub(super) struct Process {
    pub(super) pid: u32,
    directory: OwnedFd,
}

// === impl Process ===

impl Process {
    /// Opens `<pid>` in the open directory `procfs`.
    pub(super) fn open(procfs: impl AsFd, pid: u32) -> rustix::io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(procfs, pid.to_string(), flags, Mode::empty())?;
        Ok(Self { pid, directory })
    }

    /// Opens `fd`, the directory of the process's descriptors.
    pub(super) fn descriptors(&self) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(&self.directory, "fd", flags, Mode::empty())
    }

    /// Reads `stat`; `None` if the process has ended.
    pub(super) fn stat(&self) -> Option<Stat> {
        Stat::from_read(self.file("stat").ok()?).ok()
    }

    /// Returns the user of the process, or root if the process made itself undumpable.
    pub(super) fn user(&self) -> Option<u32> {
        fstat(&self.directory).ok().map(|stat| stat.st_uid)
    }

    /// Returns the effective user of the process.
    pub(super) fn effective_user(&self) -> Option<u32> {
        let status = self.text("status");
        let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
        ids.split_ascii_whitespace().nth(1)?.parse().ok()
    }

    /// Reads a small text file with arbitrary bytes; empty if it cannot be read.
    pub(super) fn text(&self, name: &str) -> String {
        String::from_utf8_lossy(&self.bytes(name)).into_owned()
    }

    /// Reads the name of the process, escaped.
    pub(super) fn name(&self) -> String {
        let comm = self.bytes("comm");
        escaped(comm.strip_suffix(b"\n").unwrap_or(&comm))
    }

    /// Reads a small file; empty if it cannot be read.
    pub(super) fn bytes(&self, name: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        let read = self.file(name).and_then(|mut file| file.read_to_end(&mut bytes));
        read.map(|_| bytes).unwrap_or_default()
    }

    /// Reads a text file of at most `limit` bytes; empty if it is longer.
    pub(super) fn text_up_to(&self, name: &str, limit: usize) -> String {
        let mut bytes = Vec::new();
        let read =
            self.file(name).and_then(|file| file.take(limit as u64 + 1).read_to_end(&mut bytes));
        match read {
            Ok(length) if length <= limit => String::from_utf8(bytes).unwrap_or_default(),
            _ => String::new(),
        }
    }

    /// Opens a subdirectory, for example `task` or `fdinfo`.
    pub(super) fn directory(&self, name: &str) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(&self.directory, name, flags, Mode::empty())
    }

    /// Returns the size of `fd`, which is the number of open descriptors since Linux 6.2; 0 before.
    pub(super) fn open_fds(&self) -> Option<u64> {
        let stat = statat(&self.directory, "fd", AtFlags::empty()).ok()?;
        u64::try_from(stat.st_size).ok()
    }

    /// Returns the link target of a descriptor: `socket:[4711]`, `anon_inode:[eventpoll]`.
    pub(super) fn link(&self, fd: u32) -> Option<String> {
        let target = readlinkat(&self.directory, format!("fd/{fd}"), Vec::new()).ok()?;
        target.into_string().ok()
    }

    /// Returns the inode of the network namespace.
    pub(super) fn net_namespace(&self) -> Option<u64> {
        statat(&self.directory, "ns/net", AtFlags::empty()).ok().map(|stat| stat.st_ino)
    }

    fn file(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(openat(&self.directory, name, flags, Mode::empty())?.into())
    }
}

/// Whether the error means that the process has ended.
pub(super) fn has_ended(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::SRCH)
}

/// Whether the error means that access is denied.
pub(super) fn is_denied(error: Errno) -> bool {
    matches!(error, Errno::ACCESS | Errno::PERM)
}
