//! Tests sampled time: how much is credited while the daemon runs, and that a gap credits nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]
#![allow(clippy::print_stdout, reason = "the measured figures are for the reader of --nocapture")]

use std::thread::sleep;
use std::time::{Duration, Instant};

use listenq_lab::Signal;
use listenq_lab::client::fill;
use listenq_lab::listener::{Listen, Listener};
use listenq_lab::listenq::{Daemon, Launch};
use listenq_lab::metrics::Metrics;
use listenq_lab::netns::Netns;
use listenq_lab::wait::{TIMEOUT, eventually};

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
const HELD: Duration = Duration::from_secs(4);

fn scene(hint: &str) -> (Netns, Daemon, Listener) {
    let ns = Netns::new(hint);
    let listener = ns.run(|| Listen::tcp("127.0.0.1:0").backlog(4).open());
    // Keeps the configured interval on any machine: with a longer interval, fewer samples are
    // missed in the same time.
    let daemon = Launch::new(BIN).args(&["--sample.cpu-budget=1"]).inside(&ns).start();
    (ns, daemon, listener)
}

fn value(scrape: &Metrics, name: &str) -> f64 {
    scrape.value(name, &[]).unwrap_or_else(|| panic!("no {name}"))
}

/// The growth of a series of the daemon, or of its only namespace, between two scrapes.
fn growth(before: &Metrics, after: &Metrics, name: &str) -> f64 {
    value(after, name) - value(before, name)
}

/// The first scrape with at least `more` samples more than `since`.
fn after_samples(daemon: &Daemon, since: &Metrics, more: f64) -> Metrics {
    eventually("more samples", TIMEOUT, || {
        Some(daemon.scrape()).filter(|now| growth(since, now, "listenq_samples_total") >= more)
    })
}

#[test]
fn a_stopped_daemon_credits_no_time_and_continues() {
    stop_for(3);
}

#[test]
#[ignore = "half a minute of waiting: run by tests/release.sh"]
fn a_suspended_daemon_credits_no_time_and_continues() {
    stop_for(30);
}

fn stop_for(seconds: u8) {
    if !Netns::require_root() {
        return;
    }
    let stopped = f64::from(seconds);
    let (ns, daemon, listener) = scene("stop");
    let clients = ns.run(|| fill(listener.target(), 5));
    eventually("a full queue", TIMEOUT, || {
        (daemon.scrape().at(listener.addr()).full_seconds > Some(0.3)).then_some(())
    });
    let before = daemon.scrape();
    daemon.signal(Signal::STOP);
    sleep(Duration::from_secs(seconds.into()));
    daemon.signal(Signal::CONT);
    let after = after_samples(&daemon, &before, 2.0);

    let missed = growth(&before, &after, "listenq_samples_missed_total");
    let due = 10.0 * stopped;
    assert!((due - 5.0..=due + 10.0).contains(&missed), "{missed} missed of {due}");
    let passed = growth(&before, &after, "listenq_netns_last_sample_timestamp_seconds");
    let credited = growth(&before, &after, "listenq_netns_sampled_seconds_total");
    println!("stopped: {missed} missed, {passed:.3} s passed, {credited:.3} s credited");
    assert!(
        passed > stopped && credited < passed - stopped + 0.2,
        "{credited} of {passed} s credited"
    );
    // The queue was full all the time, so all credited time is full time.
    let [from, to] = [&before, &after].map(|scrape| scrape.at(listener.addr()));
    let full = to.full_seconds.unwrap() - from.full_seconds.unwrap();
    let length = to.connection_seconds.unwrap() - from.connection_seconds.unwrap();
    assert!((full - credited).abs() < 1e-6, "{full} s full, {credited} s credited");
    assert!((length - 5.0 * credited).abs() < 1e-6, "{length} for {credited} s");

    let later = after_samples(&daemon, &after, 10.0);
    let credited = growth(&after, &later, "listenq_netns_sampled_seconds_total");
    let passed = growth(&after, &later, "listenq_netns_last_sample_timestamp_seconds");
    assert!((credited / passed - 1.0).abs() < 0.15, "{credited} of {passed} s credited");
    assert!(daemon.is_ready());
    drop(clients);
}

#[test]
fn a_queue_full_for_four_seconds_is_credited_with_four() {
    if !Netns::require_root() {
        return;
    }
    let (ns, daemon, listener) = scene("held");
    let begin = Instant::now();
    let clients = ns.run(|| fill(listener.target(), 5));
    sleep(HELD);
    drop(clients);
    assert_eq!(listener.accept_all(), 5);
    let truth = begin.elapsed().as_secs_f64();
    let before = daemon.scrape();
    let queue = after_samples(&daemon, &before, 2.0).at(listener.addr());
    let (full, waited) = (queue.full_seconds.unwrap(), queue.connection_seconds.unwrap());
    println!("held: {full:.3} s full of {truth:.3}, {waited:.3} connection seconds");
    assert!((full / truth - 1.0).abs() < 0.15, "{full} of {truth} s");
    assert!((waited / (5.0 * truth) - 1.0).abs() < 0.15, "{waited} of 5 times {truth} s");
    assert_eq!((queue.length, queue.peak_length), (Some(0.0), Some(5.0)));
}

#[test]
fn a_queue_below_its_limit_is_credited_by_length_and_not_as_full() {
    if !Netns::require_root() {
        return;
    }
    let (ns, daemon, listener) = scene("half");
    let begin = Instant::now();
    let clients = ns.run(|| fill(listener.target(), 2));
    sleep(HELD / 2);
    drop(clients);
    assert_eq!(listener.accept_all(), 2);
    let truth = begin.elapsed().as_secs_f64();
    let before = daemon.scrape();
    let queue = after_samples(&daemon, &before, 2.0).at(listener.addr());
    let waited = queue.connection_seconds.unwrap();
    assert!((waited / (2.0 * truth) - 1.0).abs() < 0.2, "{waited} of 2 times {truth} s");
    assert_eq!(queue.full_seconds, Some(0.0));
}
