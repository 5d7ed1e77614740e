//! Tests which listeners have series, and how much memory thousands of short-lived listeners use.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]
#![allow(clippy::print_stdout, reason = "the measured figures are for the reader of --nocapture")]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use listenq_lab::client::fill;
use listenq_lab::listener::{Listen, Listener};
use listenq_lab::listenq::{Daemon, Launch};
use listenq_lab::metrics::Metrics;
use listenq_lab::netns::Netns;
use listenq_lab::wait::{TIMEOUT, eventually};

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
/// The daemon's own listener, which is not counted.
const WEB: [&str; 2] = ["--web.listen-address=127.0.0.1:19511", "--listener.exclude=:19511$"];

fn listen(ns: &Netns, port: u16) -> Listener {
    ns.run(|| Listen::tcp(format!("127.0.0.1:{port}")).backlog(4).open())
}

/// The ports that have series.
fn shown(scrape: &Metrics) -> BTreeSet<u16> {
    let series = scrape.series("listenq_listener_sockets").into_iter();
    series.map(|(labels, _)| labels["port"].parse().unwrap()).collect()
}

/// Fills the queue of `listener`, lets `refused` more connections fail, and accepts the connections
/// in the queue.
fn overflow(ns: &Netns, listener: &Listener, refused: usize) {
    drop(ns.run(|| fill(listener.target(), 5 + refused)));
    assert!(listener.accept_all() >= 5);
}

/// Waits until every overflow that `nstat` shows is attributed.
#[track_caller]
fn settled(ns: &Netns, daemon: &Daemon) -> Metrics {
    eventually("the attributed overflows to be those of nstat", TIMEOUT, || {
        let nstat = ns.nstat()["TcpExtListenOverflows"] as f64;
        let scrape = daemon.scrape();
        let sums = scrape.overflows();
        ([sums.kernel, sums.accounted()] == [nstat; 2]).then_some(scrape)
    })
}

#[test]
fn filters_select_listeners_with_series_and_all_overflows_count() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("filters");
    let listeners = [8001, 8002, 8003, 9001].map(|port| listen(&ns, port));
    let flags = ["--listener.include=^host/tcp/127[.]0[.]0[.]1:800", "--listener.exclude=:8002$"];
    let daemon = Launch::new(BIN).args(&flags).inside(&ns).start();
    for (listener, refused) in listeners.iter().zip([10, 20, 30, 40]) {
        overflow(&ns, listener, refused);
    }
    let scrape = settled(&ns, &daemon);
    assert_eq!(shown(&scrape), BTreeSet::from([8001, 8003]));
    let overflows = [8001, 8003].map(|port| scrape.listener("127.0.0.1", port).overflows);
    let sums = scrape.overflows();
    assert_eq!(overflows, [Some(10.0), Some(30.0)], "{sums:?}");
    assert_eq!((sums.unexposed, sums.unattributed), (60.0, 0.0));
    assert_eq!(scrape.value("listenq_listeners_omitted", &[]), Some(0.0));
    assert!(daemon.log().iter().all(|line| !line.contains("listener.max")));
}

#[test]
fn beyond_the_cap_listeners_in_trouble_have_series_and_every_overflow_counts() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("max");
    let listeners: Vec<_> = (8001..=8020).map(|port| listen(&ns, port)).collect();
    let full = [8007, 8013, 8019];
    let fills = |listener: &&Listener| full.contains(&listener.port());
    let waiting: Vec<_> = listeners.iter().filter(fills).collect();
    let _clients: Vec<_> =
        waiting.iter().map(|listener| ns.run(|| fill(listener.target(), 3))).collect();
    let flags = [&["--listener.max=5"], &WEB[..]].concat();
    let daemon = Launch::new(BIN).args(&flags).inside(&ns).start();
    let first = daemon.scrape();
    let shown_first = shown(&first);
    assert_eq!(shown_first.len(), 5);
    assert!(full.iter().all(|port| shown_first.contains(port)), "{shown_first:?}");
    let (ins, outs): (Vec<_>, Vec<_>) =
        listeners.iter().partition(|listener| shown_first.contains(&listener.port()));
    let idle = ins.iter().find(|one| !full.contains(&one.port())).unwrap();
    overflow(&ns, outs[4], 30);
    overflow(&ns, idle, 11);
    let scrape = settled(&ns, &daemon);
    let sums = scrape.overflows();
    assert_eq!((sums.listeners, sums.unexposed, sums.unattributed), (41.0, 0.0, 0.0));
    // Both listeners have series; one idle listener lost its series. A listener that keeps its
    // series keeps its counters.
    std::thread::sleep(Duration::from_secs(3));
    let last = daemon.scrape();
    let shown_last = shown(&last);
    assert!([outs[4].port(), idle.port()].iter().all(|port| shown_last.contains(port)));
    assert_eq!(shown_last.intersection(&shown_first).count(), 4, "{shown_first:?} {shown_last:?}");
    let fallen = last.fallen_since(&first);
    let stays =
        |line: &&String| shown_last.iter().any(|port| line.contains(&format!("port=\"{port}\"")));
    assert_eq!(fallen.iter().filter(stays).count(), 0, "{fallen:?}");
    assert_eq!(last.value("listenq_listeners_omitted", &[]), Some(15.0));
    let warnings = daemon.log().into_iter().filter(|line| line.contains("listener.max"));
    assert_eq!(warnings.count(), 1);
}

/// The memory that may remain after 100,000 closed sockets, in KiB. For a few thousand sockets the
/// cookie and the last drops are kept, less than 100 bytes each. A closed listener is kept as long
/// as its series, and at most 20 listeners have series. A listener without series leaves nothing:
/// its overflows are in the sum of the unexposed overflows. The rest is memory that the allocator
/// keeps from samples and scans of thousands of sockets. A leak of 100 bytes per socket would be
/// ten megabytes.
const FLAT: i64 = 7168;
/// The number of listeners that are open at once.
const CROWD: u16 = 4000;
const CROWDS: u8 = 25;
/// The crowds before the measurement. On a busy machine several crowds are remembered at the same
/// time, and the allocator keeps their memory.
const FIRST: u8 = 12;

/// Opens a crowd of listeners at `ip`, waits until listenq tracks all of them, and closes them.
fn come_and_go(ns: &Netns, daemon: &Daemon, ip: &str) {
    let ports = 20_000..20_000 + CROWD;
    let listeners: Vec<_> =
        ns.run(|| ports.map(|port| Listen::tcp(format!("{ip}:{port}")).open()).collect());
    let sockets = || daemon.scrape().value("listenq_sockets", &[("state", "tracked")]);
    eventually("all to be seen", TIMEOUT, || (sockets() >= Some(f64::from(CROWD))).then_some(()));
    drop(listeners);
    eventually("none to be seen", TIMEOUT, || (sockets() <= Some(20.0)).then_some(()));
}

/// Opens and closes 100,000 listeners; `crowd` returns the address of each crowd. Returns the
/// growth of memory in KiB.
fn growth(hint: &str, crowd: impl Fn(u8) -> String) -> Option<i64> {
    if !Netns::require_root() {
        return None;
    }
    let ns = Netns::new(hint);
    // The ephemeral ports do not overlap with the ports of the listeners.
    ns.sysctl("net.ipv4.ip_local_port_range", "60000 65000");
    let flags = [&["--listener.max=20", "--sample.cpu-budget=1"], &WEB[..]].concat();
    let daemon = Launch::new(BIN).args(&flags).inside(&ns).start();
    (0..FIRST).for_each(|n| come_and_go(&ns, &daemon, &crowd(n)));
    let (before, begin) = ((daemon.resident() / 1024) as i64, Instant::now());
    (FIRST..FIRST + CROWDS).for_each(|n| come_and_go(&ns, &daemon, &crowd(n)));
    let grown = (daemon.resident() / 1024) as i64 - before;
    let count = u32::from(CROWDS) * u32::from(CROWD);
    println!("{count} {hint}: {grown} KiB beside {before}, in {:?}", begin.elapsed());
    Some(grown)
}

#[test]
fn a_hundred_thousand_sockets_at_the_same_addresses_leave_memory_flat() {
    let Some(grown) = growth("sockets", |_| "127.0.0.1".into()) else { return };
    assert!(grown < FLAT, "{grown} KiB more");
}

#[test]
fn memory_does_not_grow_while_100_000_listeners_open_and_close() {
    let Some(grown) = growth("listeners", |n| format!("127.0.1.{n}")) else { return };
    assert!(grown < FLAT, "{grown} KiB more");
}
