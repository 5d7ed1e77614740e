//! Tests listenq when the machine has a fault: each fault of docs/faults.md is created for real and
//! then removed.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]
#![allow(clippy::print_stdout, reason = "the measured figures are for the reader of --nocapture")]

mod clock;
mod crowd;
mod descriptors;
mod end;
mod log;
mod netlink;
mod procfs;

use std::fs;

use listenq_lab::listenq::Daemon;
use listenq_lab::metrics::Metrics;
use listenq_lab::rootfs::Rootfs;
use listenq_lab::wait::{TIMEOUT, eventually};

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
/// Tests measure time by the number of samples, so the interval must not become longer.
const STEADY: &str = "--sample.cpu-budget=1";

fn value(scrape: &Metrics, name: &str) -> f64 {
    scrape.value(name, &[]).unwrap_or_else(|| panic!("no {name}"))
}

fn samples(scrape: &Metrics) -> f64 {
    value(scrape, "listenq_samples_total")
}

fn errors(scrape: &Metrics, source: &str) -> f64 {
    scrape.value("listenq_sample_errors_total", &[("source", source)]).unwrap()
}

fn feature(scrape: &Metrics, name: &str) -> Option<f64> {
    scrape.value("listenq_feature_available", &[("feature", name)])
}

fn await_samples(daemon: &Daemon, more: f64) -> Metrics {
    let before = samples(&daemon.scrape());
    eventually("more samples", TIMEOUT, || {
        Some(daemon.scrape()).filter(|scrape| samples(scrape) >= before + more)
    })
}

/// The number of log lines that contain all of these words.
fn lines(daemon: &Daemon, words: &[&str]) -> usize {
    daemon.log().iter().filter(|line| words.iter().all(|word| line.contains(word))).count()
}

/// The name of this process, which owns the listeners of the test.
fn comm() -> String {
    fs::read_to_string("/proc/self/comm").unwrap().trim_end().to_owned()
}

/// Sets up a root directory that shows only the daemon's process and the namespaces that are
/// mounted there. Returns the flags for it.
fn secluded(root: &Rootfs) -> [String; 2] {
    for name in ["self", "thread-self", "sys", "stat", "uptime"] {
        root.link(&format!("proc/{name}"), &format!("/proc/{name}"));
    }
    root.link("proc/net", "self/net");
    [root.flag(), format!("--path.procfs={}", root.path().join("proc").display())]
}
