//! Real containers: run by `runc` from a bundle that the test creates, without a runtime, an image
//! or a network.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::netns::output;
use crate::rootfs::Rootfs;
use crate::wait::within;

/// The mount point of cgroup version 1 hierarchies with version 2 beside them, or of version 2
/// alone.
const CGROUPS: &str = "/sys/fs/cgroup";
/// A server that listens at every address of its namespace.
const SERVER: &str = "import signal, socket, sys
listener = socket.socket()
listener.bind(('0.0.0.0', int(sys.argv[1])))
listener.listen(21)
signal.pause()";

/// The network namespace of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// A new namespace.
    New,
    /// The namespace of this file.
    At(PathBuf),
}

/// The recipe of a container: a server written in Python at one port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// The container id: 64 hexadecimal digits.
    pub id: String,
    /// The path in every cgroup hierarchy.
    pub cgroup: String,
    pub network: Network,
    /// The port of the server.
    pub port: u16,
    /// The user id, without any capability.
    pub user: u32,
}

/// A running container. Dropping it kills the container and removes its cgroups.
#[derive(Debug)]
pub struct Container {
    id: String,
    cgroup: String,
    pid: u32,
    bundle: Rootfs,
}

/// A container id; the first 12 digits are already unique.
#[must_use]
pub fn fresh_id() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{}{n:04x}{}", id_prefix(), "0123456789abc".repeat(4))
}

/// Whether this process gave the id to one of its containers.
#[must_use]
pub fn is_own_id(id: &str) -> bool {
    id.starts_with(&id_prefix())
}

fn id_prefix() -> String {
    format!("{:08x}", process::id())
}

/// The mount of this machine's `/usr`, read-only.
pub(crate) fn usr() -> Value {
    json!({"destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"]})
}

// === impl Container ===

impl Container {
    /// Starts the container.
    ///
    /// # Panics
    ///
    /// With the output of `runc`, when the container does not run.
    #[must_use]
    pub fn start(recipe: &Recipe) -> Self {
        // A container that does not start is dropped, and so cleaned up.
        let mut container = Self::lay(&recipe.id, &recipe.cgroup, &recipe.config());
        let out = container.bundle.file("out", "");
        let open = || Stdio::from(fs::File::create(&out).expect("a file"));
        let mut command = container.runc();
        let command = command.args(["run", "--detach", "--bundle"]).arg(container.bundle.path());
        let started = command.arg(&container.id).stdout(open()).stderr(open()).status();
        let said = fs::read_to_string(&out).unwrap_or_default();
        assert!(started.is_ok_and(|status| status.success()), "runc run: {said}");
        container.find_pid();
        container
    }

    /// Creates the bundle, in whose root this machine's `/usr` will be mounted; nothing runs yet.
    pub(crate) fn lay(id: &str, cgroup: &str, config: &Value) -> Self {
        let bundle = Rootfs::new();
        for directory in ["bin", "lib", "lib64"] {
            bundle.link(&format!("rootfs/{directory}"), &format!("usr/{directory}"));
        }
        bundle.file("config.json", config.to_string());
        Self { id: id.to_owned(), cgroup: cgroup.to_owned(), pid: 0, bundle }
    }

    /// Runs the container as long as the command runs, on the command's standard streams.
    pub(crate) fn run_attached(&self) -> Command {
        let mut command = self.runc();
        command.args(["run", "--bundle"]).arg(self.bundle.path()).arg(&self.id);
        command
    }

    /// Asks the runtime for the container's first process.
    pub(crate) fn find_pid(&mut self) {
        let state = output(self.runc().args(["state", &self.id])).unwrap();
        let state: Value = serde_json::from_str(&state).expect("runc prints JSON");
        self.pid = u32::try_from(state["pid"].as_u64().expect("a pid")).expect("a pid");
    }

    /// Runs a program in the container, with options of `runc exec`.
    pub(crate) fn exec(&self, options: &[&str], args: &[&str]) -> Output {
        let mut command = self.runc();
        command.arg("exec").args(options).arg(&self.id).args(args);
        command.output().expect("runc runs")
    }

    /// The first process, with its pid outside the container.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The file of the container's network namespace.
    #[must_use]
    pub fn netns(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.pid).into()
    }

    fn runc(&self) -> Command {
        let mut command = Command::new("runc");
        command.arg("--root").arg(self.bundle.path().join("state")).stdin(Stdio::null());
        command
    }

    /// Removes the directories of the container's cgroup, innermost first, as far as they are
    /// empty.
    fn remove_cgroups(&self) {
        let hierarchies = fs::read_dir(CGROUPS).into_iter().flatten().flatten();
        let roots = hierarchies.map(|entry| entry.path()).chain([CGROUPS.into()]);
        let relative = Path::new(self.cgroup.trim_start_matches('/'));
        for root in roots {
            for path in relative.ancestors().filter(|path| *path != Path::new("")) {
                let _ = fs::remove_dir(root.join(path));
            }
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let delete = || output(self.runc().args(["delete", "--force", &self.id])).ok();
        let _ = within(Duration::from_secs(5), delete);
        self.remove_cgroups();
    }
}

// === impl Recipe ===

impl Recipe {
    /// The configuration of the bundle: this machine's `/usr`, read-only, contains all programs.
    fn config(&self) -> Value {
        let network = match &self.network {
            Network::New => json!({"type": "network"}),
            Network::At(path) => json!({"type": "network", "path": path}),
        };
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": self.user, "gid": self.user},
                "args": ["/usr/bin/python3", "-c", SERVER, self.port.to_string()],
                "env": ["PATH=/usr/bin"],
                "cwd": "/",
            },
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                usr(),
            ],
            "linux": {
                "cgroupsPath": self.cgroup,
                "namespaces": [network, {"type": "pid"}, {"type": "mount"}],
            },
        })
    }
}
