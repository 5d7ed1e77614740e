//! Owns 5,000 listeners: all of them in a valid scrape, and an interval that stretches and says so.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]
#![allow(clippy::print_stdout, reason = "the measured figures are for the reader of --nocapture")]

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use listenq_lab::listener::{Listen, Listener};
use listenq_lab::listenq::Launch;
use listenq_lab::metrics::Metrics;
use listenq_lab::netns::Netns;
use listenq_lab::wait::{TIMEOUT, eventually};

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
/// Below the ephemeral range, where the daemon's own port is.
const PORTS: std::ops::Range<u16> = 20_000..25_000;

fn listeners(ns: &Netns) -> Vec<Listener> {
    let open = |port: u16| Listen::tcp(format!("127.0.0.1:{port}")).open();
    ns.run(|| PORTS.map(open).collect())
}

#[test]
fn five_thousand_listeners_are_all_exposed() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("many");
    let listeners = listeners(&ns);
    let daemon = Launch::new(BIN).args(&["--listener.max=10000"]).inside(&ns).start();
    let begin = Instant::now();
    let answer = daemon.get("/metrics", &[]);
    println!("{} bytes of scrape in {:?}", answer.body.len(), begin.elapsed());
    assert_eq!(answer.status, 200, "{}", answer.text());
    let scrape = Metrics::parse(answer.text()).unwrap();
    scrape.assert_unique();
    let own = daemon.address().port();
    for name in [
        "listenq_accept_queue_length",
        "listenq_accept_queue_limit",
        "listenq_listener_sockets",
        "listenq_listener_drops_total",
        "listenq_listener_overflows_total",
    ] {
        let series = scrape.series(name);
        let ports: BTreeSet<u16> = series.iter().map(|(l, _)| l["port"].parse().unwrap()).collect();
        assert_eq!(ports, PORTS.chain([own]).collect(), "{name}");
        assert_eq!(series.len(), PORTS.len() + 1, "{name}");
    }
    drop(listeners);
}

#[test]
fn samples_of_five_thousand_stretch_the_interval_and_say_so() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("stretch");
    let listeners = listeners(&ns);
    // Less than samples of 5,000 listeners cost: 1 ms in 100.
    let daemon = Launch::new(BIN).args(&["--sample.cpu-budget=0.01"]).inside(&ns).start();
    // Without connections, only the number of sockets is read.
    let first = SocketAddr::from(([127, 0, 0, 1], PORTS.start));
    let _waiting = ns.run(|| TcpStream::connect(first).unwrap());
    let (interval, target) = eventually("a stretched interval", TIMEOUT, || {
        let scrape = daemon.scrape();
        let value = |name| scrape.value(name, &[]);
        let target = value("listenq_sample_interval_target_seconds")?;
        let interval = value("listenq_sample_interval_seconds")?;
        (interval > 1.5 * target).then_some((interval, target))
    });
    println!("interval {interval:.3} s, asked for {target} s");
    assert_eq!(target, 0.1);
    let said = daemon.log().iter().filter(|line| line.contains("sampling slower")).count();
    assert_eq!(said, 1, "{:?}", daemon.log());
    drop(listeners);
}
