//! A DevTools connection to a browser over two pipes, so that no port is opened.

use crate::wait::TIMEOUT;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};

/// The browser reads commands from descriptor 3 and writes to descriptor 4: the pipes of the test.
const ONTO_PIPES: &str = r#"exec "$@" 3<&0 4>&1 </dev/null >/dev/null"#;

/// A program with a DevTools connection. Dropping it kills the program and its children.
#[derive(Debug)]
pub(crate) struct Devtools {
    child: Child,
    commands: ChildStdin,
    messages: Receiver<Value>,
    last: u64,
    /// Events that the browser sent, oldest first.
    pub(crate) events: Vec<Value>,
}

// === impl Devtools ===

impl Devtools {
    /// Starts `command`, a program with the flag `--remote-debugging-pipe`, in a separate process
    /// group.
    pub(crate) fn start(command: &Command) -> Result<Self> {
        let mut shell = Command::new("sh");
        shell.args(["-c", ONTO_PIPES, "sh"]).arg(command.get_program()).args(command.get_args());
        shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = shell.process_group(0).spawn().context("starting a shell")?;
        let commands = child.stdin.take().context("stdin is piped")?;
        let answers = child.stdout.take().context("stdout is piped")?;
        let (sender, messages) = channel();
        thread::spawn(move || read(answers, &sender));
        Ok(Self { child, commands, messages, last: 0, events: Vec::new() })
    }

    /// Sends a command, to a page if a session is given, and waits for the answer.
    pub(crate) fn call(
        &mut self,
        session: Option<&str>,
        method: &str,
        params: &Value,
    ) -> Result<Value> {
        self.last += 1;
        let mut command = json!({ "id": self.last, "method": method, "params": params });
        if let Some(session) = session {
            command["sessionId"] = session.into();
        }
        let message = [command.to_string().as_bytes(), b"\0"].concat();
        self.commands.write_all(&message).with_context(|| format!("sending {method}"))?;
        let id = self.last;
        let mut answer = self.receive(method, |message| message["id"] == id)?;
        ensure!(answer["error"].is_null(), "{method} {params} failed: {}", answer["error"]);
        Ok(answer["result"].take())
    }

    /// Waits for a message, and keeps all events that arrive before the message.
    fn receive(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.messages.recv_timeout(left) {
                Ok(message) if wanted(&message) => return Ok(message),
                Ok(message) => self.events.push(message),
                Err(e) => bail!("waiting for the browser's answer to {what}: {e}"),
            }
        }
    }

    /// Waits for an event, unless the event already arrived after the `since`th event.
    pub(crate) fn await_event(&mut self, method: &str, since: usize) -> Result<()> {
        if !self.events[since..].iter().any(|event| event["method"] == method) {
            let event = self.receive(method, |message| message["method"] == method)?;
            self.events.push(event);
        }
        Ok(())
    }
}

impl Drop for Devtools {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}

/// Reads messages, each terminated by a zero byte, until the pipe is closed.
fn read(pipe: impl Read, messages: &Sender<Value>) {
    let parts = BufReader::new(pipe).split(0).map_while(Result::ok);
    for message in parts.filter_map(|part| serde_json::from_slice(&part).ok()) {
        if messages.send(message).is_err() {
            return;
        }
    }
}
