//! Servers in separate processes, so that a test can stop a process as `kill -STOP` does, or a
//! single thread.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use rustix::process::{Pid, Signal, kill_process};

use crate::address::{parse, reachable};
use crate::netns::{Netns, output};
use crate::wait::{TIMEOUT, eventually};

/// The name of the lab's tool for cargo and the kernel.
const TOOL: &str = "listenq-lab";

/// A process that listens: `listenq-lab listen`. Dropping it kills the process, even while it is
/// stopped.
#[derive(Debug)]
pub struct ServerProcess {
    child: Child,
    address: String,
}

// === impl ServerProcess ===

impl ServerProcess {
    /// Starts the process inside `ns` at an address, whose port may be 0, or at the path of a Unix
    /// stream, and waits until it listens. The flags are those of `listenq-lab listen`, such as
    /// `--backlog=4`, `--pace=fast`, `--answer=ok`, `--defer-accept=5`. The process ends by itself
    /// after ten minutes.
    ///
    /// # Panics
    ///
    /// When the process does not listen.
    #[must_use]
    pub fn listen(ns: &Netns, address: &str, flags: &[&str]) -> Self {
        let mut command = ns.command(tool());
        command.args(["listen", address, "--for=600"]).args(flags);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let child = command.spawn().unwrap_or_else(|e| panic!("starting {command:?}: {e}"));
        let mut process = Self { child, address: String::new() };
        let said = process.child.stdout.take().expect("stdout is piped");
        BufReader::new(said).read_line(&mut process.address).expect("a line of text");
        assert!(process.address.ends_with('\n'), "{command:?} does not listen");
        process.address.pop();
        process
    }

    /// Starts `n` separate processes at one address (`SO_REUSEPORT`).
    ///
    /// # Panics
    ///
    /// When a process does not listen.
    #[must_use]
    pub fn group(ns: &Netns, n: usize, address: &str, flags: &[&str]) -> Vec<Self> {
        let flags = [flags, &["--reuseport"]].concat();
        let mut members: Vec<Self> = Vec::with_capacity(n);
        for _ in 0..n {
            let address = members.first().map_or(address, |first| first.address()).to_owned();
            members.push(Self::listen(ns, &address, &flags));
        }
        members
    }

    /// The listen address, with the port chosen by the kernel, or the path.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The address that clients connect to.
    ///
    /// # Panics
    ///
    /// When the process listens at a path.
    #[must_use]
    pub fn target(&self) -> SocketAddr {
        reachable(parse(&self.address).expect("the address of a TCP listener"))
    }

    /// The process id; the kernel's name of the process is `listenq-lab`.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Stops the process (`SIGSTOP`) and waits until all threads are stopped; the kernel keeps
    /// queueing connections.
    ///
    /// # Panics
    ///
    /// When the process does not stop.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
        eventually("a stopped process", TIMEOUT, || self.stands_still().then_some(()));
    }

    /// Continues the process (`SIGCONT`).
    ///
    /// # Panics
    ///
    /// When the process does not continue.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
        eventually("a running process", TIMEOUT, || (!self.stands_still()).then_some(()));
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }

    /// Whether every thread is in state `T`.
    fn stands_still(&self) -> bool {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("it runs").flatten();
        let stopped = |task: &Path| {
            let stat = fs::read_to_string(task.join("stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
        };
        tasks.map(|task| task.path()).all(|task| stopped(&task))
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if self.address.starts_with('/') {
            let _ = fs::remove_file(&self.address);
        }
    }
}

/// A stopped thread of another process, whose other threads run. Dropping it continues the thread,
/// if the thread still exists.
#[derive(Debug)]
pub struct Frozen {
    stop: Arc<AtomicBool>,
    tracer: Option<JoinHandle<()>>,
}

// === impl Frozen ===

impl Frozen {
    /// Stops the thread of this id.
    ///
    /// # Panics
    ///
    /// When the thread cannot be traced.
    #[must_use]
    pub fn new(thread: u32) -> Self {
        let thread = nix::unistd::Pid::from_raw(thread.cast_signed());
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, (stands, is_standing)) = (Arc::clone(&stop), channel());
        // Only the thread that traces a thread may continue it.
        let tracer = thread::spawn(move || {
            ptrace::seize(thread, ptrace::Options::empty()).expect("a thread to trace");
            ptrace::interrupt(thread).expect("it runs");
            waitpid(thread, Some(WaitPidFlag::__WALL)).expect("it stops");
            stands.send(()).expect("the caller waits");
            // A killed thread is gone only after its tracer has waited for it.
            let flags = WaitPidFlag::__WALL | WaitPidFlag::WNOHANG;
            while !stopped.load(Ordering::Relaxed)
                && waitpid(thread, Some(flags)) == Ok(WaitStatus::StillAlive)
            {
                thread::sleep(Duration::from_millis(20));
            }
            let _ = ptrace::detach(thread, None);
        });
        is_standing.recv().expect("a thread that stands still");
        Self { stop, tracer: Some(tracer) }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.tracer.take().map(JoinHandle::join);
    }
}

/// The lab's tool beside the running test, built if necessary: cargo builds the tool only for the
/// lab's own tests.
///
/// # Panics
///
/// When the tool cannot be built.
#[must_use]
pub fn tool() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let this = std::env::current_exe().expect("the running program has a path");
        let profile = this.parent().and_then(Path::parent).expect("target/<profile>/deps/<test>");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "--locked", "--workspace", "--bin", TOOL]);
        build.arg("--target-dir").arg(profile.parent().expect("target"));
        if profile.ends_with("release") {
            build.arg("--release");
        }
        output(build.current_dir(env!("CARGO_MANIFEST_DIR"))).unwrap();
        profile.join(TOOL)
    })
}
