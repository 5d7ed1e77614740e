//! Programs that run during a test and are killed after it.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::wait::{eventually, within};

/// Timeout for a program to end after SIGTERM.
const END: Duration = Duration::from_secs(5);

/// A running program. Dropping it sends SIGTERM, then kills the program.
#[derive(Debug)]
pub struct Running(Child);

// === impl Running ===

impl Running {
    /// Starts a command; its output goes to the output of the test.
    ///
    /// # Panics
    ///
    /// When the command cannot be started.
    #[must_use]
    pub fn start(command: &mut Command) -> Self {
        let started = command.stdin(Stdio::null()).spawn();
        Self(started.unwrap_or_else(|e| panic!("starting {command:?}: {e}")))
    }

    /// Like [`Running::start`], and waits until the process has the name `comm`: until all wrappers
    /// have called exec.
    ///
    /// # Panics
    ///
    /// When the command cannot be started or does not have the name within 5 s.
    #[must_use]
    pub fn start_as(command: &mut Command, comm: &str) -> Self {
        let running = Self::start(command);
        eventually(comm, END, || (running.comm() == comm).then_some(()));
        running
    }

    /// Returns the process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// The kernel's name of the process; empty after its end.
    #[must_use]
    pub fn comm(&self) -> String {
        let text = fs::read_to_string(format!("/proc/{}/comm", self.pid())).unwrap_or_default();
        text.trim_end().to_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A killed master leaves its workers behind; on SIGTERM it ends them.
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        if within(END, || self.0.try_wait().ok().flatten()).is_none() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}
