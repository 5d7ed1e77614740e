//! Owns programs that run beside a test and are killed after it.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::wait::{eventually, within};

/// How long a program may take to end when asked to.
const END: Duration = Duration::from_secs(5);

/// A running program. Dropping it asks it to end, then kills it.
#[derive(Debug)]
pub struct Running(Child);

// === impl Running ===

impl Running {
    /// Starts a command; what it prints goes where the test's output goes.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    #[must_use]
    pub fn start(command: &mut Command) -> Self {
        let started = command.stdin(Stdio::null()).spawn();
        Self(started.unwrap_or_else(|e| panic!("starting {command:?}: {e}")))
    }

    /// As [`Running::start`], and waits until the process is called `comm`: until all wrappers have become it.
    ///
    /// # Panics
    ///
    /// When it cannot be started or is not called so within 5 s.
    #[must_use]
    pub fn start_as(command: &mut Command, comm: &str) -> Self {
        let running = Self::start(command);
        eventually(comm, END, || (running.comm() == comm).then_some(()));
        running
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// What the kernel calls it; empty when it has ended.
    #[must_use]
    pub fn comm(&self) -> String {
        let text = fs::read_to_string(format!("/proc/{}/comm", self.pid())).unwrap_or_default();
        text.trim_end().to_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A master that is killed leaves its workers behind; one that is asked takes them along.
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        if within(END, || self.0.try_wait().ok().flatten()).is_none() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}
