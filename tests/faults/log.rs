//! A log without a reader.

use std::time::Duration;

use listenq_lab::Signal;
use listenq_lab::client::fill;
use listenq_lab::listener::Listen;
use listenq_lab::listenq::Launch;
use listenq_lab::netns::Netns;
use listenq_lab::pipe::FullPipe;
use listenq_lab::wait::eventually;

use super::*;

const ADDRESS: ([u8; 4], u16) = ([127, 0, 0, 1], 19_511);

#[test]
fn a_full_log_pipe_delays_no_sample_scrape_or_exit() {
    if !Netns::require_root() {
        return;
    }
    let (ns, pipe) = (Netns::new("deaf"), FullPipe::new());
    let listener = ns.run(|| Listen::tcp("127.0.0.1:0").backlog(4).open());
    let launch = Launch::new(BIN).args(&[STEADY]).inside(&ns);
    let mut daemon = launch.start_logging_to(pipe.end(), ADDRESS.into());
    // Overflows are reported in one log line.
    drop(ns.run(|| fill(listener.target(), 25)));
    eventually("a diagnosis", TIMEOUT, || {
        let held = daemon.scrape().sum("listenq_listener_diagnosis", &[]);
        (held > 0.0).then_some(())
    });
    let scrape = await_samples(&daemon, 20.0);
    assert_eq!(value(&scrape, "listenq_samples_missed_total"), 0.0);
    let stopped = daemon.stop(Signal::TERM);
    assert!(stopped.status.success(), "{stopped:?}");
    assert!(stopped.took < Duration::from_secs(3), "{stopped:?}");
}

#[test]
fn queued_log_lines_are_written_when_the_pipe_is_read() {
    if !Netns::require_root() {
        return;
    }
    let (ns, pipe) = (Netns::new("late"), FullPipe::new());
    let mut daemon = Launch::new(BIN).inside(&ns).start_logging_to(pipe.end(), ADDRESS.into());
    await_samples(&daemon, 5.0);
    let read = pipe.read();
    let says = |what: &str| read.get().iter().any(|line| line.contains(what));
    eventually("the first line", TIMEOUT, || says("message=listening").then_some(()));
    let stopped = daemon.stop(Signal::TERM);
    assert!(stopped.status.success(), "{stopped:?}");
    eventually("the last line", TIMEOUT, || says("message=stopping").then_some(()));
}

#[test]
fn a_failed_start_exits_although_the_log_pipe_is_full() {
    if !Netns::require_root() {
        return;
    }
    let (ns, pipe) = (Netns::new("mute"), FullPipe::new());
    let _first = Launch::new(BIN).inside(&ns).start_logging_to(pipe.end(), ADDRESS.into());
    // At the address of the first daemon: the second cannot listen, and its first log line is its
    // last.
    let mut second = Launch::new(BIN).inside(&ns).start_logging_to(pipe.end(), ADDRESS.into());
    let status = eventually("the end", TIMEOUT, || second.ended());
    assert_eq!(status.code(), Some(1));
}
