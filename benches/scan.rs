//! The cost of a connection scan: for thousands of connections on the machine, compared with bare
//! dumps with the same masks in the same run; and the share of a core that the daemon's scanner
//! uses with 100,000 connections and a stuck queue.
//!
//! Run `cargo bench --bench scan` as root. Times are medians; only their ratio and the share are a
//! measure of listenq.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a panic is the report of a bench, and its table goes to a person"
)]

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use listenq::kernel::connections::ConnectionReader;
use listenq::kernel::inet_diag::Request;
use listenq::kernel::netlink::{Channel, Datagram};
use listenq::kernel::port_filter::only_ports;
use listenq_lab::client::fill;
use listenq_lab::crowd::Crowd;
use listenq_lab::listener::Listen;
use listenq_lab::listenq::Daemon;
use listenq_lab::netns::Netns;

const SIZES: [u32; 4] = [1_000, 10_000, 50_000, 100_000];
const ROUNDS: usize = 15;
const SYN_RECV: u8 = 3;
const ESTABLISHED: u8 = 1;
const CLOSE_WAIT: u8 = 8;
/// `INET_DIAG_INFO`.
const INFO: u16 = 2;
/// The time for which the daemon's scanner is measured.
const WATCHED: Duration = Duration::from_secs(30);

fn main() {
    // `cargo test --all-targets` also starts benchmarks, but without this argument.
    if !std::env::args().any(|argument| argument == "--bench") {
        return println!("SKIPPED: only `cargo bench --bench scan` measures");
    }
    if !Netns::require_root() {
        return println!("SKIPPED: nothing was measured");
    }
    println!("connections   scan (ms)   bare (ms)   ratio   per 1,000 (ms)");
    for size in SIZES {
        let ns = Netns::new("scan");
        let _crowd = Crowd::gather(&ns, size);
        ns.run(|| compare(size));
    }
    watch_the_daemon();
}

/// Twenty connections wait at one listener; all others are accepted and idle.
fn compare(size: u32) {
    let listener = Listen::tcp("127.0.0.1:0").backlog(64).open();
    let _waiting = fill(listener.target(), 20);
    let (mut reader, mut channel) =
        (ConnectionReader::open().unwrap().unwrap(), Channel::open().unwrap());
    let mut datagram = Datagram::default();
    let mut bare: Vec<Vec<u8>> = [
        Request::states(&[SYN_RECV]).with(INFO),
        Request::states(&[ESTABLISHED, CLOSE_WAIT])
            .with(INFO)
            .filtered(only_ports(&[listener.port()])),
    ]
    .map(|request| request.build())
    .into();
    let (mut scans, mut dumps) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        assert_eq!(reader.scan(&mut datagram).unwrap().tcp.unwrap().waiting.len(), 20);
        scans.push(begin.elapsed());
        let begin = Instant::now();
        for request in &mut bare {
            channel.dump(request, &mut datagram, |_| Ok(())).unwrap();
        }
        dumps.push(begin.elapsed());
    }
    let [scan, bare] = [scans, dumps].map(|mut times| {
        times.sort_unstable();
        times[ROUNDS / 2].as_secs_f64() * 1e3
    });
    // Both ends of each connection are on this machine.
    let per_1000 = scan / f64::from(size) * 1e3 / 2.0;
    println!("{size:11}   {scan:9.2}   {bare:9.2}   {:5.2}   {per_1000:14.3}", scan / bare);
}

fn watch_the_daemon() {
    let ns = Netns::new("scanner");
    let crowd = Crowd::gather(&ns, 100_000);
    let listener = ns.run(|| Listen::tcp("127.0.0.1:0").backlog(64).open());
    let target = listener.target();
    let _waiting = ns.run(|| fill(target, 20));
    let daemon = Daemon::start(Some(&ns), Path::new(env!("CARGO_BIN_EXE_listenq")), &[]);
    thread::sleep(Duration::from_secs(2));
    let before = cpu_of_scanner(&daemon);
    thread::sleep(WATCHED);
    let share = (cpu_of_scanner(&daemon) - before) / WATCHED.as_secs_f64();
    let scrape = daemon.scrape();
    let value = |name: &str| scrape.value(name, &[]).unwrap_or(f64::NAN);
    println!(
        "with {} connections the scanner takes {:.2} % of a core: {} scans of {:.1} ms, {:.1} s apart",
        crowd.connections,
        share * 100.0,
        value("listenq_scan_duration_seconds_count"),
        value("listenq_scan_duration_seconds_sum") / value("listenq_scan_duration_seconds_count")
            * 1e3,
        value("listenq_netns_scan_interval_seconds"),
    );
}

/// The CPU time of the thread `scanner`, in seconds.
fn cpu_of_scanner(daemon: &Daemon) -> f64 {
    let threads = daemon.threads();
    let (task, ..) = threads.iter().find(|(_, name, _)| name == "scanner").unwrap();
    let text = fs::read_to_string(task.join("schedstat")).unwrap();
    text.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1e9
}
