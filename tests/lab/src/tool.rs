//! External programs that check or unpack the output of listenq: they read it on stdin, and their
//! output is read to its end.

use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;

use crate::launch::Output;

/// Whether `program` is installed. If not: prints a line, or panics if `CI` is `true`.
///
/// # Panics
///
/// If the program is missing while `CI=true`: a test must not pass there by not running.
#[must_use]
#[allow(clippy::print_stderr, reason = "the reader of the test's output must see what did not run")]
pub fn require_tool(program: &str) -> bool {
    let quiet =
        Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if quiet.is_ok() {
        return true;
    }
    let ci = std::env::var("CI").is_ok_and(|value| value == "true");
    assert!(!ci, "this test needs {program}, and CI must not skip it");
    eprintln!("SKIPPED: needs {program}");
    false
}

/// Runs `program` with `input` on its stdin; returns its output as bytes and as text.
///
/// # Panics
///
/// When the program cannot be started.
#[must_use]
pub fn feed(program: &str, args: &[&str], input: &[u8]) -> (Vec<u8>, Output) {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("starting {command:?}: {e}"));
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let done = thread::scope(|scope| {
        // A program may close its stdin early: only its exit status counts.
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output().expect("waiting for a child")
    });
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let output =
        Output { status: done.status, stdout: text(&done.stdout), stderr: text(&done.stderr) };
    (done.stdout, output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_returns_its_input() {
        let (bytes, output) = feed("cat", &[], b"\xff one");
        assert_eq!((bytes.as_slice(), output.status.success()), (&b"\xff one"[..], true));
    }
}
