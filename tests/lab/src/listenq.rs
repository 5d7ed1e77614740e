//! The running daemon: its log, its pages, its end.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::address::reachable;
use crate::http::{self, Response};
pub use crate::launch::{Launch, Output, run};
use crate::metrics::Metrics;
use crate::netns::Netns;
use crate::wait::within;

/// Timeout for the daemon to listen, and then to be ready.
const START: Duration = Duration::from_secs(10);
/// Timeout for the daemon to end after a signal.
const END: Duration = Duration::from_secs(30);

/// A running daemon. It is killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    netns: Option<PathBuf>,
    address: SocketAddr,
    log: Log,
}

/// The end of the daemon.
#[derive(Debug, Clone, Copy)]
pub struct Stopped {
    pub status: ExitStatus,
    /// The time from the signal to the end.
    pub took: Duration,
}

/// The lines the daemon wrote to stderr, and the thread that reads them.
#[derive(Debug)]
struct Log {
    lines: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
}

// === impl Daemon ===

impl Daemon {
    /// Starts the daemon with these arguments and waits until it is ready; see [`Launch::start`].
    #[must_use]
    pub fn start(ns: Option<&Netns>, binary: &Path, args: &[&str]) -> Self {
        Launch::new(binary).args(args).maybe_inside(ns).start()
    }

    /// Waits until the child has logged its listen address and, if requested, is ready.
    pub(crate) fn attach(mut child: Child, netns: Option<PathBuf>, await_ready: bool) -> Self {
        let (log, listening) = Log::follow(&mut child);
        let mut daemon = Self { child, netns, address: ([0, 0, 0, 0], 0).into(), log };
        match listening.recv_timeout(START) {
            Ok(address) => daemon.address = reachable(address),
            Err(_) => daemon.fail("did not say where it listens"),
        }
        if await_ready && within(START, || daemon.is_ready().then_some(())).is_none() {
            daemon.fail("was not ready");
        }
        daemon
    }

    /// Waits until the child, whose log is elsewhere, is ready.
    pub(crate) fn attach_at(child: Child, netns: Option<PathBuf>, address: SocketAddr) -> Self {
        let log = Log { lines: Arc::default(), reader: None };
        let daemon = Self { child, netns, address, log };
        if within(START, || daemon.is_ready().then_some(())).is_none() {
            daemon.fail("was not ready");
        }
        daemon
    }

    /// The address of the daemon inside its namespace.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The process id: neither `ip netns exec` nor `setpriv` forks.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The number of open descriptors.
    ///
    /// # Panics
    ///
    /// When the daemon has ended.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("it runs").count()
    }

    /// The CPU time used by the daemon.
    ///
    /// # Panics
    ///
    /// When the daemon has ended.
    #[must_use]
    pub fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("it runs");
        let (_, rest) = stat.rsplit_once(") ").expect("a name in brackets");
        let ticks =
            rest.split(' ').skip(11).take(2).map(|field| field.parse::<u32>().expect("a number"));
        Duration::from_millis(10) * ticks.sum::<u32>()
    }

    /// The memory of the daemon in bytes.
    ///
    /// # Panics
    ///
    /// When the daemon has ended.
    #[must_use]
    pub fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
        1024 * line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number")
    }

    /// The threads of the daemon: see [`threads_of`].
    ///
    /// # Panics
    ///
    /// When the daemon has ended.
    #[must_use]
    pub fn threads(&self) -> Vec<(PathBuf, String, PathBuf)> {
        threads_of(self.pid())
    }

    /// The log so far, one line each.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.log.lines()
    }

    /// Whether `/-/ready` answers 200.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        http::get(self.netns.as_deref(), self.address, "/-/ready", &[])
            .is_ok_and(|answer| answer.status == 200)
    }

    /// Sends a GET for a page from inside the namespace, with these request headers.
    ///
    /// # Panics
    ///
    /// With the log, when no answer arrived.
    #[must_use]
    #[track_caller]
    pub fn get(&self, path: &str, headers: &[(&str, &str)]) -> Response {
        match http::get(self.netns.as_deref(), self.address, path, headers) {
            Ok(answer) => answer,
            Err(e) => self.fail(&format!("gave no answer: {e:#}")),
        }
    }

    /// Scrapes `/metrics`.
    ///
    /// # Panics
    ///
    /// When the answer is not 200 or not an exposition.
    #[must_use]
    #[track_caller]
    pub fn scrape(&self) -> Metrics {
        let answer = self.get("/metrics", &[]);
        assert_eq!(answer.status, 200, "{}", answer.text());
        Metrics::parse(answer.text()).unwrap_or_else(|e| panic!("{e:#}"))
    }

    /// Sends a signal to the daemon.
    ///
    /// # Panics
    ///
    /// When the daemon has already ended.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap_or_else(|e| self.fail(&format!("took no signal: {e}")));
    }

    /// The exit status, if the daemon has ended.
    #[must_use]
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("waiting for a child")
    }

    /// Sends a signal and waits for the daemon's end; the log is complete then.
    ///
    /// # Panics
    ///
    /// When the daemon still runs after 30 s.
    pub fn stop(&mut self, signal: Signal) -> Stopped {
        let begin = Instant::now();
        self.signal(signal);
        let Some(status) = within(END, || self.ended()) else { self.fail("did not end") };
        let took = begin.elapsed();
        self.log.finish();
        Stopped { status, took }
    }

    #[track_caller]
    fn fail(&self, what: &str) -> ! {
        panic!("the daemon {what}; its log:\n{}", self.log().join("\n"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// === impl Log ===

impl Log {
    /// Follows the child's stderr; the channel receives its listen address.
    fn follow(child: &mut Child) -> (Self, Receiver<SocketAddr>) {
        let stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let (found, listening) = channel();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&lines);
        let reader = thread::spawn(move || read_lines(stderr, &log, &found));
        (Self { lines, reader: Some(reader) }, listening)
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for the end of stderr.
    fn finish(&mut self) {
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// The threads of a process: for each, its directory below `/proc`, its name, and the link to its
/// network namespace.
///
/// # Panics
///
/// When the process has ended.
#[must_use]
pub fn threads_of(pid: u32) -> Vec<(PathBuf, String, PathBuf)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").flatten();
    let look = |task: PathBuf| {
        // The order matters: a new thread has the name of its creator until it sets its own name,
        // and then enters the namespace.
        let netns = fs::read_link(task.join("ns/net")).ok()?;
        let name = fs::read_to_string(task.join("comm")).ok()?.trim_end().to_owned();
        Some((task, name, netns))
    };
    tasks.filter_map(|task| look(task.path())).collect()
}

fn read_lines(mut pipe: impl BufRead, log: &Mutex<Vec<String>>, found: &Sender<SocketAddr>) {
    let mut bytes = Vec::new();
    while pipe.read_until(b'\n', &mut bytes).is_ok_and(|n| n > 0) {
        let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
        if let Some(address) = listening_address(&line) {
            let _ = found.send(address);
        }
        log.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        bytes.clear();
    }
}

/// The address in a log line with "listening", in logfmt or JSON.
fn listening_address(line: &str) -> Option<SocketAddr> {
    if !line.to_lowercase().contains("listening") {
        return None;
    }
    let (_, rest) = line.split_once("address=").or_else(|| line.split_once("\"address\":"))?;
    let value = rest.trim_start_matches([' ', '"']).split([' ', '"', ',', '}']).next()?;
    value.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_found_in_either_log_format() {
        let found = |line| listening_address(line).map(|address| address.to_string());
        assert_eq!(
            found("level=info msg=listening address=127.0.0.1:4711 tls=false").unwrap(),
            "127.0.0.1:4711"
        );
        assert_eq!(found("message=\"Listening on\" address=\"[::]:1\"").unwrap(), "[::]:1");
        assert_eq!(
            found("{\"message\":\"listening\",\"address\":\"0.0.0.0:80\"}").unwrap(),
            "0.0.0.0:80"
        );
        assert_eq!(found("level=warn msg=other address=127.0.0.1:1"), None);
    }
}
