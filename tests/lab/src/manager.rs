//! A service manager: a real systemd, booted in separate namespaces with only the given units.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::netns::{Netns, output};
use crate::rootfs::Rootfs;
use crate::wait::{eventually, within};

/// The path of systemd on Debian.
pub const SYSTEMD: &str = "/lib/systemd/systemd";
/// Timeout of the boot.
const BOOT_TIME: Duration = Duration::from_secs(20);
/// Runs inside the new namespaces. Its mounts are invisible outside, and as on every machine with
/// systemd later mounts are visible to all services.
const BOOT: &str = r"set -eu
files=$1
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs tmpfs /var/log
mount -t tmpfs tmpfs /mnt
cp -r $files/units $files/bin /mnt
mount -t tmpfs tmpfs /run
cp -r /mnt/units /mnt/bin /run
umount /mnt
if mountpoint -q /sys/fs/cgroup; then umount -R -l /sys/fs/cgroup; fi
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount --make-rshared /
exec env -i container=lab SYSTEMD_UNIT_PATH=/run/units PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --log-target=null --show-status=no
";
/// Units that other units depend on by default; without them systemd starts nothing.
const TARGETS: [&str; 7] =
    ["basic", "default", "multi-user", "network", "shutdown", "sockets", "sysinit"];

/// A running systemd. Dropping it kills systemd and all processes it started.
#[derive(Debug)]
pub struct Manager {
    child: Child,
    pid: u32,
    cgroup: PathBuf,
    _files: Rootfs,
}

// === impl Manager ===

impl Manager {
    /// Boots systemd inside `ns`. Each of `units` is a file name and its text, with drop-ins as
    /// `NAME.service.d/NAME.conf`; `programs` are in `/run/bin`. No unit runs yet.
    ///
    /// # Panics
    ///
    /// When systemd does not boot.
    #[must_use]
    pub fn boot(ns: &Netns, units: &[(&str, &str)], programs: &[&Path]) -> Self {
        let files = Rootfs::new();
        for target in TARGETS {
            files.file(&format!("units/{target}.target"), "[Unit]\nDefaultDependencies=no\n");
        }
        for (name, text) in units {
            files.file(&format!("units/{name}"), text);
        }
        for program in programs {
            let name = program.file_name().and_then(|name| name.to_str()).expect("a name");
            let to = files.file(&format!("bin/{name}"), "");
            fs::copy(program, to).expect("a program");
        }
        let cgroup = cgroups().join(ns.name());
        fs::create_dir(&cgroup).expect("a cgroup");
        let mut command = Command::new("sh");
        let enter = "echo $$ >\"$1/cgroup.procs\"; shift; exec \"$@\"";
        command.args(["-c", enter, "sh"]).arg(&cgroup).args(["ip", "netns", "exec", ns.name()]);
        command.args(["unshare", "--fork", "--kill-child", "--pid", "--mount", "--uts", "--ipc"]);
        command.args(["--cgroup", "sh", "-c", BOOT, "sh"]).arg(files.path());
        let child = command.stdin(Stdio::null()).spawn();
        let child = child.unwrap_or_else(|e| panic!("starting {command:?}: {e}"));
        let mut manager = Self { child, pid: 0, cgroup, _files: files };
        manager.pid = eventually("systemd", BOOT_TIME, || manager.find());
        eventually("systemd to answer", BOOT_TIME, || {
            manager.ask(&["is-active", "default.target"]).filter(|said| said == "active")
        });
        manager
    }

    /// The process that became systemd.
    fn find(&self) -> Option<u32> {
        let unshare = self.child.id();
        let children =
            fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).ok()?;
        let pid: u32 = children.trim().parse().ok()?;
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        (comm.trim_end() == "systemd").then_some(pid)
    }

    /// A command run among the services: it sees their processes, mounts and network.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.pid.to_string(), "-m", "-p", "-n", program]);
        command
    }

    /// Starts a unit and waits until the unit runs; a service of `Type=notify` is ready then.
    ///
    /// # Panics
    ///
    /// With the status of the unit, when it does not run.
    pub fn start(&self, unit: &str) {
        let started = output(self.command("systemctl").args(["start", unit]));
        let status = || self.ask(&["status", "--no-pager", unit]).unwrap_or_default();
        started.unwrap_or_else(|e| panic!("{e:#}\n{}", status()));
    }

    /// A property of a unit, as reported by `systemctl show`.
    ///
    /// # Panics
    ///
    /// When systemd does not answer.
    #[must_use]
    pub fn property(&self, unit: &str, name: &str) -> String {
        self.ask(&["show", "--value", "--property", name, unit]).expect("systemd answers")
    }

    /// Threads of a service, with the ids outside the namespaces.
    #[must_use]
    pub fn threads(&self, unit: &str) -> Vec<u32> {
        let path = self.cgroup.join("system.slice").join(unit).join("cgroup.threads");
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    fn ask(&self, args: &[&str]) -> Option<String> {
        let output = self.command("systemctl").args(args).stdin(Stdio::null()).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        within(Duration::from_secs(5), || remove_cgroups(&self.cgroup).ok());
    }
}

/// The mount point of cgroup v2.
fn cgroups() -> PathBuf {
    let mounts = fs::read_to_string("/proc/mounts").expect("a table of mounts");
    let is_v2 = |line: &&str| line.split(' ').nth(2) == Some("cgroup2");
    let line = mounts.lines().find(is_v2).expect("cgroup v2 is mounted");
    line.split(' ').nth(1).expect("a place").into()
}

/// Removes a cgroup and its descendants, innermost first; their files vanish with them.
fn remove_cgroups(path: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(path)?.flatten().filter(|entry| entry.path().is_dir()) {
        remove_cgroups(&entry.path())?;
    }
    fs::remove_dir(path)
}
