//! Creates causes from outside: cgroups, a busy CPU, a suspended file system, descriptor limits.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use listenq_lab::running::Running;
use rustix::process::Pid;

const CGROUPS: &str = "/sys/fs/cgroup";
/// The CPU that starved servers share with another process.
const SHARED_CPU: &str = "0";

/// A cgroup with one controller, version 1 or 2. Dropping it thaws its processes, moves them to the
/// root and removes it.
pub(crate) struct Cgroup {
    path: PathBuf,
    root: PathBuf,
}

/// An ext4 file system in a file. Dropping it resumes and unmounts it.
pub(crate) struct Disk(PathBuf);

// === impl Cgroup ===

impl Cgroup {
    /// Creates a cgroup; an error names what is missing on this machine.
    pub(crate) fn new(controller: &str) -> Result<Self, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let hierarchies = [Path::new(CGROUPS).join(controller), CGROUPS.into()];
        let is_hierarchy = |root: &&PathBuf| root.join("cgroup.procs").exists();
        let root = hierarchies.iter().find(is_hierarchy).ok_or("no cgroup hierarchy")?.clone();
        // Only version 2 has this file. Version 2 freezes without a controller.
        let control = root.join("cgroup.subtree_control");
        if control.exists() && controller != "freezer" {
            write(&control, &format!("+{controller}"))?;
        }
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = root.join(format!("listenq-{controller}-{}-{n}", std::process::id()));
        fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { path, root })
    }

    pub(crate) fn join(&self, pids: &[Pid]) {
        for pid in pids {
            // The process may have ended.
            let _ = write(&self.path.join("cgroup.procs"), &pid.as_raw_pid().to_string());
        }
    }

    pub(crate) fn freeze(&self) -> Result<(), String> {
        self.set(&[("freezer.state", "FROZEN")], &[("cgroup.freeze", "1")])
    }

    fn thaw(&self) -> Result<(), String> {
        self.set(&[("freezer.state", "THAWED")], &[("cgroup.freeze", "0")])
    }

    /// Allows 1 % of a CPU.
    pub(crate) fn throttle(&self) -> Result<(), String> {
        let version_1 = [("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "1000")];
        self.set(&version_1, &[("cpu.max", "1000 100000")])
    }

    /// Sets the lowest CPU weight.
    pub(crate) fn starve(&self) -> Result<(), String> {
        self.set(&[("cpu.shares", "2")], &[("cpu.weight", "1")])
    }

    fn set(&self, version_1: &[(&str, &str)], version_2: &[(&str, &str)]) -> Result<(), String> {
        let is_version_1 = version_1.iter().all(|(file, _)| self.path.join(file).exists());
        let settings = if is_version_1 { version_1 } else { version_2 };
        settings.iter().try_for_each(|(file, value)| write(&self.path.join(file), value))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = self.thaw();
        for pid in fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = write(&self.root.join("cgroup.procs"), pid);
        }
        let _ = fs::remove_dir(&self.path);
    }
}

// === impl Disk ===

impl Disk {
    /// Creates this directory and mounts a new file system there.
    pub(crate) fn mount(directory: &Path) -> Result<Self, String> {
        fs::create_dir_all(directory).map_err(|error| error.to_string())?;
        let image = directory.with_extension("img");
        sh(&format!(
            "truncate -s 16M {image} && mkfs.ext4 -q {image} && mount -o loop {image} {directory} && chmod 777 {directory}",
            image = image.display(),
            directory = directory.display()
        ))?;
        Ok(Self(directory.to_owned()))
    }

    /// Suspends writes.
    pub(crate) fn suspend(&self) -> Result<(), String> {
        sh(&format!("fsfreeze -f {}", self.0.display()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let directory = self.0.display();
        let _ = sh(&format!("fsfreeze -u {directory}; umount -l {directory}"));
    }
}

/// Starts a process that uses a whole CPU, and binds `pids` to the same CPU.
pub(crate) fn hog(pids: &[Pid]) -> Result<Running, String> {
    for pid in pids {
        sh(&format!("taskset -acp {SHARED_CPU} {} >/dev/null", pid.as_raw_pid()))?;
    }
    let mut command = Command::new("taskset");
    Ok(Running::start(command.args(["-c", SHARED_CPU, "sh", "-c", "while :; do :; done"])))
}

/// Limits each of these processes to the descriptors that it uses now, and `spare` more.
pub(crate) fn limit_descriptors(pids: &[Pid], spare: usize) -> Result<(), String> {
    for pid in pids {
        let pid = pid.as_raw_pid();
        let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        let limit = open.count() + spare;
        sh(&format!("prlimit --pid {pid} --nofile={limit}:{limit}"))?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

fn sh(script: &str) -> Result<(), String> {
    let status = Command::new("sh").args(["-c", script]).stdin(Stdio::null()).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        other => Err(format!("{script}: {other:?}")),
    }
}
