//! Tests `list --watch`: tables over time in a pipe and in a terminal, and how the command ends;
//! and that one-shot commands print no log lines.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]
#![allow(clippy::disallowed_types, reason = "the program is watched while it runs")]

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use listenq_lab::listener::Listen;
use listenq_lab::listenq::{Daemon, Launch};
use listenq_lab::netns::Netns;
use listenq_lab::wait::within;
use rustix::process::{Pid, Signal, kill_process};

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
/// The time for two tables, with some slack.
const END: Duration = Duration::from_secs(6);

fn start(command: &mut Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn watch(ns: &Netns, daemon: &Daemon) -> Command {
    let mut command = ns.command(BIN);
    command.args(["list", "--watch", &format!("--url=http://{}", daemon.address())]);
    command
}

/// Waits until the program ends, and kills it if it does not end.
#[track_caller]
fn ended(child: &mut Child) -> ExitStatus {
    let status = within(END, || child.try_wait().unwrap());
    if status.is_none() {
        child.kill().unwrap();
    }
    status.expect("it ends")
}

/// Reads lines until one contains `text` for the `number`th time.
fn read_until(out: &mut impl BufRead, text: &str, number: usize) -> String {
    let (mut all, mut line) = (String::new(), String::new());
    while all.matches(text).count() < number {
        line.clear();
        assert!(out.read_line(&mut line).unwrap() > 0, "only {all:?}");
        all.push_str(&line);
    }
    all
}

#[test]
fn a_table_is_printed_every_two_seconds_until_ctrl_c() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("watch");
    let first = ns.run(|| Listen::tcp("127.0.0.1:0").backlog(5).open());
    let daemon = Launch::new(BIN).inside(&ns).start();
    let mut child = start(&mut watch(&ns, &daemon));
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let begin = read_until(&mut out, "OWNER", 1);
    let second = ns.run(|| Listen::tcp("127.0.0.1:0").backlog(5).open());
    let text = begin + &read_until(&mut out, &format!(" {} ", second.port()), 1);
    assert!(text.contains(&format!(" {} ", first.port())), "{text}");
    assert!(text.contains("asked the daemon at") && !text.contains('\u{1b}'), "{text:?}");
    let begin = Instant::now();
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert!(ended(&mut child).success());
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert_eq!(errors, "");
}

#[test]
fn watch_ends_when_the_reader_of_the_pipe_is_gone() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("pipe");
    let daemon = Launch::new(BIN).inside(&ns).start();
    let mut child = start(&mut watch(&ns, &daemon));
    let mut out = BufReader::new(child.stdout.take().unwrap());
    read_until(&mut out, "OWNER", 1);
    drop(out);
    assert!(ended(&mut child).success());
}

#[test]
fn ctrl_c_ends_watch_during_a_blocked_write_and_a_pending_request() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("silent");
    // Connections to this listener are never accepted, so they get no answer.
    let silent = ns.run(|| Listen::tcp("127.0.0.1:0").backlog(5).open());
    let mut command = ns.command(BIN);
    command.args(["list", "--watch", &format!("--url=http://{}", silent.addr())]);
    let mut child = start(&mut command);
    std::thread::sleep(Duration::from_secs(1));
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let begin = Instant::now();
    assert!(ended(&mut child).success());
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
}

#[test]
fn in_a_terminal_each_table_replaces_the_last_one_and_fits() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("tty");
    let _listeners: Vec<_> =
        ns.run(|| (0..20).map(|_| Listen::tcp("127.0.0.1:0").backlog(5).open()).collect());
    let daemon = Launch::new(BIN).inside(&ns).start();
    let url = format!("--url=http://{}", daemon.address());
    let program = format!("stty cols 60 rows 12; exec {BIN} list --watch {url}");
    let mut command = ns.command("script");
    command.args(["--quiet", "--return", "--command", &program, "/dev/null"]);
    let mut child = start(&mut command);
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let text = read_until(&mut out, " more", 2);
    assert_eq!(text.matches("\u{1b}[H").count(), 2, "{text:?}");
    let (_, last) = text.rsplit_once("\u{1b}[H").unwrap();
    assert!(last.lines().count() < 12, "{last:?}");
    assert!(last.contains("and 13 more"), "{last:?}");
    let sequence = regex::Regex::new("\u{1b}\\[[?0-9;]*[A-Za-z]").unwrap();
    for line in last.lines() {
        let line = sequence.replace_all(line.trim_end(), "");
        assert!(line.chars().count() <= 60, "{line:?}");
    }
    child.stdin.as_mut().unwrap().write_all(b"\x03").unwrap();
    assert!(ended(&mut child).success());
}

#[test]
fn without_a_daemon_watch_samples_in_the_background() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("own");
    let listener = ns.run(|| Listen::tcp("127.0.0.1:0").backlog(5).open());
    let mut command = ns.command(BIN);
    command.args(["list", "--watch", "--url=none", "--netns=own"]);
    let mut child = start(&mut command);
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let text = read_until(&mut out, &format!(" {} ", listener.port()), 2);
    assert!(text.contains("Z  sampling\n"), "{text}");
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert!(ended(&mut child).success());
}

#[test]
fn commands_for_people_print_no_log_lines_unless_a_level_is_given() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("quiet");
    let _listener = ns.run(|| Listen::tcp("127.0.0.1:0").backlog(5).open());
    for command in [&["list"][..], &["explain", "--for=1s"], &["check", "--for=1s"]] {
        // Without netlink there is a warning to log.
        let launch = || Launch::new(BIN).inside(&ns).without_netlink().args(command);
        let quiet = launch().run();
        assert!(!quiet.stderr.contains("level="), "{}", quiet.stderr);
        let loud = launch().args(&["--log.level=info"]).run();
        assert!(loud.stderr.contains("level=warn"), "{}", loud.stderr);
    }
}
