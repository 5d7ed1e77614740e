//! A Python program whose processes run beside a test, for example those of another user.

use std::io::Read;
use std::process::{Child, Command, Stdio};

use crate::netns::Netns;

/// The program. Dropping it closes the standard input of its processes, which ends them.
#[derive(Debug)]
pub struct Script(Child);

// === impl Script ===

impl Script {
    /// Starts `source` with these arguments, inside `ns` if there is one, and waits until each of
    /// its `processes` has printed a byte.
    ///
    /// # Panics
    ///
    /// When it does not start, or ends before that.
    #[must_use]
    pub fn start(ns: Option<&Netns>, source: &str, args: &[String], processes: usize) -> Self {
        let mut command = ns.map_or_else(|| Command::new("python3"), |ns| ns.command("python3"));
        command.args(["-c", source]).args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("starting {command:?}: {e}"));
        let output = child.stdout.as_mut().expect("stdout is piped");
        output.read_exact(&mut vec![0; processes]).expect("a byte of each process");
        Self(child)
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
