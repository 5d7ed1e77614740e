//! Tests the connection scan: how long connections wait, which clients are gone, and to which
//! listener each connection belongs, compared with what the test did and when.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]
#![allow(clippy::print_stdout, reason = "the measured figures are for the reader of --nocapture")]

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use listenq_lab::client::{fill, reset};
use listenq_lab::flood::Flood;
use listenq_lab::hammer::{Load, hammer};
use listenq_lab::listener::{Listen, Listener};
use listenq_lab::listenq::Daemon;
use listenq_lab::metrics::Metrics;
use listenq_lab::netns::Netns;
use listenq_lab::server::{Pace, Server};
use listenq_lab::unix::{Kind, UnixListener};
use listenq_lab::wait::{TIMEOUT, eventually};
use socket2::Socket;

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
/// The error from the resolution of the clock and from the duration of the scan, in seconds.
const SLACK: f64 = 0.050;

fn since_1970() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

fn listen(ns: &Netns, address: &str, backlog: i32) -> Listener {
    ns.run(|| Listen::tcp(address).backlog(backlog).open())
}

fn of(scrape: &Metrics, name: &str, address: SocketAddr) -> Option<f64> {
    let (ip, port) = (address.ip().to_string(), address.port().to_string());
    scrape.value(name, &[("address", &ip), ("port", &port)])
}

fn scanned_at(scrape: &Metrics) -> Option<f64> {
    scrape.value("listenq_netns_scan_timestamp_seconds", &[("netns", "host")])
}

/// The first scrape that shows a scan started after `begin`.
fn scanned_after(daemon: &Daemon, begin: f64) -> Metrics {
    eventually("a scan", TIMEOUT, || {
        let scrape = daemon.scrape();
        (scanned_at(&scrape)? > begin).then_some(scrape)
    })
}

/// A scrape after two further scans: facts that two scans must confirm are known.
fn scanned_twice(daemon: &Daemon) -> Metrics {
    let first = scanned_after(daemon, since_1970());
    scanned_after(daemon, scanned_at(&first).unwrap() + 0.001)
}

fn longest_scan(scrape: &Metrics) -> f64 {
    scrape.value("listenq_scan_duration_seconds_sum", &[]).unwrap()
}

#[test]
fn ages_equal_the_time_since_the_clients_connected() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("ages");
    let listener = listen(&ns, "127.0.0.1:0", 64);
    let daemon = Daemon::start(Some(&ns), BIN.as_ref(), &[]);
    let mut came = Vec::new();
    let mut clients: Vec<Socket> = Vec::new();
    for _ in 0..5 {
        came.push(since_1970());
        clients.extend(ns.run(|| fill(listener.target(), 3)));
        thread::sleep(Duration::from_millis(1_300));
    }
    let mut worst: f64 = 0.0;
    for came in came {
        let scrape = scanned_after(&daemon, since_1970());
        let oldest = of(&scrape, "listenq_accept_queue_oldest_seconds", listener.addr()).unwrap();
        let truth = scanned_at(&scrape).unwrap() - came;
        worst = worst.max((oldest - truth).abs());
        assert!((oldest - truth).abs() < SLACK + longest_scan(&scrape), "{oldest} is not {truth}");
        // The three connections that waited longest are accepted; the next ones are now the oldest.
        assert_eq!((0..3).filter_map(|_| listener.accept(Duration::ZERO)).count(), 3);
    }
    println!("five ages, the worst off by {:.1} ms", worst * 1e3);
    let emptied = eventually("an empty queue", TIMEOUT, || {
        let scrape = daemon.scrape();
        (scrape.at(listener.addr()).length == Some(0.0)).then_some(scrape)
    });
    let zero = ["oldest_seconds", "abandoned"]
        .map(|name| of(&emptied, &format!("listenq_accept_queue_{name}"), listener.addr()));
    assert_eq!(zero, [Some(0.0); 2]);
}

#[test]
fn abandoned_is_exact_after_clients_left_by_fin_and_by_rst() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("abandoned");
    let listener = listen(&ns, "127.0.0.1:0", 64);
    let mut clients = ns.run(|| fill(listener.target(), 20));
    let daemon = Daemon::start(Some(&ns), BIN.as_ref(), &[]);
    let abandoned =
        |scrape: &Metrics| of(scrape, "listenq_accept_queue_abandoned", listener.addr());
    assert_eq!(abandoned(&scanned_twice(&daemon)), Some(0.0));
    drop(clients.split_off(13));
    assert_eq!(abandoned(&scanned_twice(&daemon)), Some(7.0));
    reset(clients.split_off(8));
    let scrape = scanned_twice(&daemon);
    assert_eq!((abandoned(&scrape), scrape.at(listener.addr()).length), (Some(12.0), Some(20.0)));
    reset(clients);
    let scrape = scanned_twice(&daemon);
    assert_eq!(abandoned(&scrape), Some(20.0));
}

#[test]
fn connections_are_attributed_to_the_listener_that_the_kernel_chose() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("whose");
    let link = ns.add_link("lq0");
    let open = |listen: Listen| ns.run(|| listen.open());
    let dual = open(Listen::tcp("[::]:0").v6only(false));
    let only_v6 = open(Listen::tcp("[::]:7001").v6only(true));
    let v4_beside = open(Listen::tcp("0.0.0.0:7001").reuseport());
    let exact = open(Listen::tcp("127.0.0.2:7001").reuseport());
    let bound = open(Listen::tcp("[::]:7002").v6only(true).device("lq0"));
    let unbound = open(Listen::tcp("[::]:7002").v6only(true).device("lo"));
    let group: Vec<Listener> =
        std::iter::successors(Some(open(Listen::tcp("127.0.0.1:7003").reuseport())), |_| {
            Some(open(Listen::tcp("127.0.0.1:7003").reuseport()))
        })
        .take(3)
        .collect();
    let connect = |address: &str, n| ns.run(|| fill(address.parse().unwrap(), n));
    let dual_port = dual.port();
    let _clients = [
        connect(&format!("127.0.0.1:{dual_port}"), 2),
        connect(&format!("[::1]:{dual_port}"), 3),
        connect("[::1]:7001", 4),
        connect("127.0.0.1:7001", 5),
        connect("127.0.0.2:7001", 6),
        connect("[::1]:7002", 1),
        connect(&format!("[{}%{}]:7002", link.address, link.ifindex), 2),
        connect("127.0.0.1:7003", 9),
    ];
    let daemon = Daemon::start(Some(&ns), BIN.as_ref(), &[]);
    thread::sleep(Duration::from_millis(500));
    // The queues of two listeners are emptied: a connection that is attributed to one of them is
    // missing at its real listener.
    assert_eq!([exact.accept_all(), bound.accept_all()], [6, 2]);
    let scrape = scanned_twice(&daemon);
    let oldest = |address: &str, port: u16| {
        let port = port.to_string();
        let labels = [("address", address), ("port", port.as_str())];
        let seconds = scrape.value("listenq_accept_queue_oldest_seconds", &labels).unwrap();
        let abandoned = scrape.value("listenq_accept_queue_abandoned", &labels).unwrap();
        // A row that is attributed to another listener is missing here, and counts as a client that
        // has reset.
        (seconds >= 0.5, abandoned)
    };
    let waits =
        [("::", dual_port), ("::", 7001), ("0.0.0.0", 7001), ("::%lo", 7002), ("127.0.0.1", 7003)];
    assert_eq!(waits.map(|(address, port)| oldest(address, port)), [(true, 0.0); 5]);
    let emptied = [("127.0.0.2", 7001), ("::%lq0", 7002)];
    assert_eq!(emptied.map(|(address, port)| oldest(address, port)), [(false, 0.0); 2]);
    drop((dual, only_v6, v4_beside, unbound, group));
}

#[test]
fn half_open_connections_are_counted_only_at_their_listener() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("half-open");
    let (flooded, calm) = (listen(&ns, "127.0.0.1:0", 64), listen(&ns, "127.0.0.1:0", 64));
    Flood::start(&ns, flooded.addr(), 30, 1000.0).finish();
    let daemon = Daemon::start(Some(&ns), BIN.as_ref(), &[]);
    let scrape = scanned_twice(&daemon);
    let lengths = [&flooded, &calm].map(|one| of(&scrape, "listenq_syn_queue_length", one.addr()));
    assert_eq!(lengths, [Some(30.0), Some(0.0)]);
    assert_eq!(scrape.at(flooded.addr()).length, Some(0.0));
}

#[test]
fn unix_clients_wait_from_when_they_were_first_seen() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("unix-ages");
    let name = format!("\0lq-ages-{}", std::process::id());
    let listener = ns.run(|| UnixListener::open(Kind::Stream, &name, 16));
    let daemon = Daemon::start(Some(&ns), BIN.as_ref(), &[]);
    let came = since_1970();
    let mut clients = ns.run(|| listener.fill(5));
    let label = format!("@{}", &name[1..]);
    let value = |scrape: &Metrics, name: &str| scrape.value(name, &[("address", &label)]);
    thread::sleep(Duration::from_secs(4));
    let scrape = scanned_twice(&daemon);
    let oldest = value(&scrape, "listenq_accept_queue_oldest_seconds").unwrap();
    let truth = scanned_at(&scrape).unwrap() - came;
    println!("a Unix client waited {truth:.2} s, listenq says {oldest:.2} s");
    // The Unix dump, once per second, sees the connection first; the scan of the next second
    // follows.
    assert!(oldest > truth - 3.0 && oldest <= truth + SLACK, "{oldest} is not {truth}");
    drop(clients.split_off(2));
    let scrape = scanned_twice(&daemon);
    assert_eq!(value(&scrape, "listenq_accept_queue_abandoned"), Some(3.0));
    assert_eq!(value(&scrape, "listenq_syn_queue_length"), None);
}

#[test]
fn the_drain_rate_is_known_while_the_queue_is_full_and_only_then() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("drain");
    let (slow, idle) = (listen(&ns, "127.0.0.1:0", 20), listen(&ns, "127.0.0.1:0", 20));
    let target = slow.target();
    let server = Server::start(slow, Pace::PerSecond(20.0));
    let daemon = Daemon::start(Some(&ns), BIN.as_ref(), &["--client-patience=3s"]);
    let clients = ns.spawn(move || {
        let lasting = Duration::from_secs(9);
        hammer(target, Load { rate: 60.0, lasting, patience: Duration::from_secs(4), at_once: 500 })
    });
    let rate = eventually("a drain rate", Duration::from_secs(9), || {
        let scrape = daemon.scrape();
        let rate = of(&scrape, "listenq_accept_queue_drain_rate", target)?;
        let useful = of(&scrape, "listenq_accept_queue_useful_limit", target).unwrap();
        assert!((useful - 3.0 * rate).abs() < 1e-6, "{useful} is not 3 s of {rate}");
        assert_eq!(of(&scrape, "listenq_accept_queue_drain_rate", idle.addr()), None);
        Some(rate)
    });
    println!("accepts 20 connections a second, listenq says {rate:.1}");
    assert!((14.0..=26.0).contains(&rate), "{rate}");
    clients.join().unwrap();
    let listener = server.stop();
    let server = Server::start(listener, Pace::Fast);
    eventually("an end of the drain rate", TIMEOUT, || {
        of(&daemon.scrape(), "listenq_accept_queue_drain_rate", target).is_none().then_some(())
    });
    drop(server);
}
