//! Network namespaces that are created for one test and deleted after it.

use std::fs;
use std::net::Ipv6Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, geteuid, kill_process};

use crate::address::interface_index;
use crate::enter::{enter, on_thread_inside};
pub use crate::ss::SsRow;
use crate::wait::within;

/// The directory of the names of `ip netns`.
const NAMES: &str = "/run/netns";
/// The prefix of every namespace of the lab; the lab changes no other namespace.
const PREFIX: &str = "lq-";

/// A network namespace with loopback up. Dropping it kills the processes inside and deletes the
/// namespace.
#[derive(Debug)]
pub struct Netns {
    name: String,
    keep: bool,
}

/// An interface created by [`Netns::add_link`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// The index inside the namespace: the scope id of the link-local address.
    pub ifindex: u32,
    /// The only address of the interface, usable at once.
    pub address: Ipv6Addr,
}

// === impl Netns ===

impl Netns {
    /// Creates a namespace `lq-<pid>-<n>-<hint>`, after deleting the namespaces of dead test
    /// processes.
    ///
    /// # Panics
    ///
    /// When `ip netns add` fails; call [`Netns::require_root`] first.
    #[must_use]
    pub fn new(hint: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        static SWEEP: Once = Once::new();
        SWEEP.call_once(sweep);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        Self::create(&format!("{PREFIX}{}-{n}-{hint}", process::id())).unwrap()
    }

    /// Creates a namespace of exactly this name, which must begin with `lq-`.
    ///
    /// # Errors
    ///
    /// When the name does not belong to the lab or `ip` fails.
    pub fn create(name: &str) -> Result<Self> {
        ensure!(
            name.starts_with(PREFIX),
            "the lab's namespaces begin with {PREFIX:?}, {name:?} does not"
        );
        ip(&["netns", "add", name])?;
        let ns = Self { name: name.to_owned(), keep: false };
        ip(&["-n", name, "link", "set", "lo", "up"])?;
        Ok(ns)
    }

    /// Adopts an existing namespace of the lab, which is deleted on drop.
    ///
    /// # Errors
    ///
    /// When the namespace does not exist or does not belong to the lab.
    pub fn adopt(name: &str) -> Result<Self> {
        ensure!(
            name.starts_with(PREFIX),
            "the lab's namespaces begin with {PREFIX:?}, {name:?} does not"
        );
        let ns = Self { name: name.to_owned(), keep: false };
        if !ns.path().exists() {
            bail!("there is no namespace {name:?} (and none was deleted)");
        }
        Ok(ns)
    }

    /// Keeps the namespace; another process deletes it.
    pub fn keep(mut self) {
        self.keep = true;
    }

    /// Whether namespaces can be created here. If not: prints a line, or panics if `CI` is `true`.
    ///
    /// # Panics
    ///
    /// Without root where `CI=true`: a test must not pass there by not running.
    #[must_use]
    #[allow(
        clippy::print_stderr,
        reason = "the reader of the test's output must see what did not run"
    )]
    pub fn require_root() -> bool {
        if geteuid().is_root() {
            return true;
        }
        let ci = std::env::var("CI").is_ok_and(|value| value == "true");
        assert!(!ci, "this test needs root to make network namespaces, and CI must not skip it");
        eprintln!("SKIPPED: needs root to make network namespaces");
        false
    }

    /// The name in `ip netns`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file of the namespace: `/run/netns/<name>`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new(NAMES).join(&self.name)
    }

    /// Runs `work` on a new thread inside the namespace and returns its value.
    ///
    /// Sockets that `work` creates belong to the namespace permanently, whichever thread uses them
    /// later.
    ///
    /// # Panics
    ///
    /// With the panic of `work`, or when the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        on_thread_inside(Some(&self.path()), work)
    }

    /// Starts `work` on a thread inside the namespace, concurrently with the caller.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let path = self.path();
        thread::spawn(move || {
            enter(&path).unwrap();
            work()
        })
    }

    /// A command that starts `program` inside the namespace, in the process created by `spawn`.
    ///
    /// `ip netns exec` needs some milliseconds to enter the namespace: only after that does
    /// dropping the namespace find the process and kill it.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Adds a veth pair with both ends inside, and gives `name` a link-local address that works at
    /// once.
    ///
    /// # Panics
    ///
    /// When `ip` fails. A name has at most 14 characters: the other end has the name `<name>p`.
    pub fn add_link(&self, name: &str) -> Link {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let address = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, (n >> 16) as u16, n as u16);
        let (peer, cidr) = (format!("{name}p"), format!("{address}/64"));
        let ip = |args: &[&str]| ip(&[&["-n", &self.name], args].concat()).unwrap();
        ip(&["link", "add", name, "type", "veth", "peer", "name", &peer]);
        ip(&["link", "set", name, "addrgenmode", "none", "up"]);
        ip(&["link", "set", &peer, "addrgenmode", "none", "up"]);
        ip(&["-6", "address", "add", &cidr, "dev", name, "nodad"]);
        let ifindex = self.run(|| interface_index(name)).expect("the link was just made");
        Link { ifindex, address }
    }

    /// Adds a veth pair with the end `name` here and the end `<name>p` in `other`: when either
    /// namespace is deleted, both ends vanish.
    ///
    /// # Panics
    ///
    /// When `ip` fails.
    pub fn add_link_to(&self, other: &Self, name: &str) {
        let peer = format!("{name}p");
        let pair = ["link", "add", name, "type", "veth", "peer", "name", &peer, "netns"];
        ip(&[&["-n", &self.name], &pair[..], &[&other.name]].concat()).unwrap();
    }

    /// Whether the namespace has an interface of this name.
    #[must_use]
    pub fn has_link(&self, name: &str) -> bool {
        self.run(|| interface_index(name)).is_ok()
    }

    /// The inode of the namespace.
    ///
    /// # Panics
    ///
    /// When the namespace was deleted.
    #[must_use]
    pub fn inode(&self) -> u64 {
        fs::metadata(self.path()).expect("the namespace is there").ino()
    }

    /// The number of processes inside, without the calling process.
    #[must_use]
    pub fn processes(&self) -> usize {
        self.pids().len()
    }

    /// Processes in this network namespace, without the calling process.
    fn pids(&self) -> Vec<Pid> {
        let text = ip(&["netns", "pids", &self.name]).unwrap_or_default();
        let pids = text.lines().filter_map(|line| Pid::from_raw(line.trim().parse().ok()?));
        pids.filter(|pid| pid.as_raw_pid().cast_unsigned() != process::id()).collect()
    }

    fn kill_all(&self) {
        within(Duration::from_secs(2), || {
            let pids = self.pids();
            for &pid in &pids {
                let _ = kill_process(pid, Signal::KILL);
            }
            pids.is_empty().then_some(())
        });
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if !self.keep {
            self.kill_all();
            let _ = ip(&["netns", "del", &self.name]);
        }
    }
}

/// Deletes the namespaces of test processes that died before they could delete them.
///
/// [`Netns::new`] calls this once per process.
pub fn sweep() {
    let Ok(names) = fs::read_dir(NAMES) else {
        return;
    };
    for name in names.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let maker =
            name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')?.0.parse::<u32>().ok());
        if maker.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            drop(Netns { name, keep: false });
        }
    }
}

/// Runs `ip` and returns its output.
pub(crate) fn ip(args: &[&str]) -> Result<String> {
    output(Command::new("ip").args(args))
}

/// Runs a command to its end and returns its output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let done =
        command.stdin(Stdio::null()).output().with_context(|| format!("starting {command:?}"))?;
    let errors = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{command:?} failed ({}): {}", done.status, errors.trim());
    Ok(String::from_utf8(done.stdout)?)
}
