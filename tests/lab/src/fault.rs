//! Faults: system calls of one daemon thread that fail, are delayed or return false results
//! (`strace --inject`).

use std::fs;
use std::path::PathBuf;
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::listenq::Daemon;
use crate::running::Running;
use crate::wait::eventually;

/// Timeout for strace to attach to the thread.
const ATTACH: Duration = Duration::from_secs(10);

/// A fault that lasts until it is dropped.
#[derive(Debug)]
pub struct Fault {
    tracer: Option<Running>,
    log: PathBuf,
}

// === impl Fault ===

impl Fault {
    /// Injects `effect` into the system calls `calls` (`recvfrom,sendto`) of the daemon's thread of
    /// this name. `effect` has the syntax of strace: `error=ENOBUFS`, `error=EINTR:when=1+2`,
    /// `delay_enter=300000`.
    ///
    /// # Panics
    ///
    /// When there is no such thread, or the thread cannot be traced.
    #[must_use]
    pub fn inject(daemon: &Daemon, thread: &str, calls: &str, effect: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let log = std::env::temp_dir().join(format!("lq-fault-{}-{n}", process::id()));
        let threads = daemon.threads();
        let task = threads.iter().find(|(_, name, _)| name == thread).map(|(task, ..)| task);
        let task = task.unwrap_or_else(|| panic!("no thread {thread} in {threads:?}"));
        let tid = task.file_name().expect("a directory of a thread");
        let mut command = Command::new("strace");
        command.arg("-qq").arg("-o").arg(&log).arg("-p").arg(tid);
        command.args(["-e", &format!("trace={calls}"), "-e", &format!("inject={calls}:{effect}")]);
        let tracer = Some(Running::start(&mut command));
        let fault = Self { tracer, log };
        eventually("a traced thread", ATTACH, || {
            let status = fs::read_to_string(task.join("status")).unwrap_or_default();
            let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"))?;
            (tracer.trim() != "0").then_some(())
        });
        fault
    }

    /// The number of system calls that were hit.
    #[must_use]
    pub fn hits(&self) -> usize {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let is_hit = |line: &&str| line.contains("(INJECTED") || line.contains("(DELAYED");
        log.lines().filter(is_hit).count()
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        drop(self.tracer.take());
        let _ = fs::remove_file(&self.log);
    }
}
