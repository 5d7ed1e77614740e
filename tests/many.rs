//! Tests 5,000 listeners: a valid scrape contains all of them, and dumps become less frequent while
//! listeners with a queue are sampled as often as before.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]
#![allow(clippy::print_stdout, reason = "the measured figures are for the reader of --nocapture")]

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use listenq_lab::listener::{Listen, Listener};
use listenq_lab::listenq::Launch;
use listenq_lab::metrics::Metrics;
use listenq_lab::netns::Netns;
use listenq_lab::script::Script;
use listenq_lab::tool::require_tool;
use listenq_lab::wait::{TIMEOUT, eventually};

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
/// Ports below the ephemeral range, which contains the daemon's own port.
const PORTS: std::ops::Range<u16> = 20_000..25_000;
/// The first port where `MANY_LISTENERS` says how many there are.
const FIRST_PORT: u16 = 10_000;
/// What samples, scans, discovery, owners and causes may take together. Code without optimization
/// takes ten times as long.
const SHARE: f64 = if cfg!(debug_assertions) { 0.25 } else { 0.025 };
/// The memory limit of the systemd unit and of the chart.
const MOST_MEMORY: u64 = 64 << 20;
/// A Python program whose processes run as user 4244 and listen at consecutive ports, up to 15,000
/// in each process. Each process prints a byte when it is ready.
const STRANGER: &str = "
import os, resource, socket, sys
first, end = int(sys.argv[1]), int(sys.argv[2])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
os.setuid(4244)
for begin in range(first, end, 15000):
    if os.fork() == 0:
        kept = []
        for port in range(begin, min(begin + 15000, end)):
            s = socket.socket(); s.bind(('127.0.0.1', port)); s.listen(128); kept.append(s)
        os.write(1, b'x')
        sys.stdin.read()
        os._exit(0)
sys.stdin.read()
";

/// Another user, whose processes listen at very many ports.
fn stranger(ns: &Netns, ports: std::ops::Range<u16>) -> Script {
    let args = [ports.start.to_string(), ports.end.to_string()];
    Script::start(Some(ns), STRANGER, &args, ports.len().div_ceil(15_000))
}

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
fn dumps_of_5000_listeners_are_less_frequent_and_this_is_logged() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("stretch");
    let listeners = listeners(&ns);
    // A budget below the cost of sampling 5,000 listeners: 1 ms per 100 ms.
    let daemon = Launch::new(BIN)
        .args(&["--sample.cpu-budget=0.01", "--listener.max=10000"])
        .inside(&ns)
        .start();
    // Without connections, only the number of sockets is read.
    let first = SocketAddr::from(([127, 0, 0, 1], PORTS.start));
    let _waiting = ns.run(|| TcpStream::connect(first).unwrap());
    let said = || daemon.log().iter().filter(|line| line.contains("dumps of listeners")).count();
    eventually("a longer interval of dumps", TIMEOUT, || (said() > 0).then_some(()));
    let (before, begin) = (daemon.scrape(), Instant::now());
    std::thread::sleep(Duration::from_secs(5));
    let (after, took) = (daemon.scrape(), begin.elapsed().as_secs_f64());
    let rate = |name, labels: &[(&str, &str)]| {
        (after.value(name, labels).unwrap() - before.value(name, labels).unwrap()) / took
    };
    let port = PORTS.start.to_string();
    let labels =
        [("netns", "host"), ("protocol", "tcp"), ("address", "127.0.0.1"), ("port", &*port)];
    let samples = rate("listenq_samples_total", &[]);
    let sampled = rate("listenq_netns_sampled_seconds_total", &labels[..1]);
    let waited = rate("listenq_accept_queue_connection_seconds_total", &labels);
    println!(
        "{samples:.1} samples a second, {sampled:.2} of the time, {waited:.2} connections waited"
    );
    // The listener with a queue is sampled as often as before, and all its time is credited.
    assert!(samples >= if cfg!(debug_assertions) { 1.0 } else { 5.0 }, "{samples}");
    assert!((0.8..1.2).contains(&(waited / sampled)), "{waited} within {sampled}");
    assert_eq!(said(), 1, "{:?}", daemon.log());
    drop(listeners);
}

/// With `MANY_LISTENERS=30000` or 45000 the measured minute of the release checks.
#[test]
fn very_many_listeners_cost_a_bounded_share_of_a_core_and_of_memory() {
    if !Netns::require_root() || !require_tool("python3") {
        return;
    }
    let given = std::env::var("MANY_LISTENERS").ok().map(|text| text.parse::<u16>().unwrap());
    let (count, lasting) = given.map_or((5_000, 10), |count| (count, 60));
    let ns = Netns::new("very-many");
    ns.sysctl("net.ipv4.ip_local_port_range", "60000 65000");
    let stranger = stranger(&ns, FIRST_PORT..FIRST_PORT + count);
    let begin = Instant::now();
    let daemon =
        Launch::new(BIN).args(&["--web.listen-address=127.0.0.1:9511"]).inside(&ns).start();
    let ready = begin.elapsed();
    let last = FIRST_PORT + count - 1;
    let waiting = SocketAddr::from(([127, 0, 0, 1], last));
    let _client = ns.run(|| TcpStream::connect(waiting).unwrap());
    std::thread::sleep(Duration::from_secs(15));
    let (before, cpu, begin) = (daemon.scrape(), daemon.cpu(), Instant::now());
    let mut resident = 0;
    while begin.elapsed() < Duration::from_secs(lasting) {
        std::thread::sleep(Duration::from_secs(1));
        resident = resident.max(daemon.resident());
    }
    let (cpu, took) = (daemon.cpu() - cpu, begin.elapsed().as_secs_f64());
    let after = daemon.scrape();
    let rate = |name, labels: &[(&str, &str)]| {
        (after.value(name, labels).unwrap() - before.value(name, labels).unwrap()) / took
    };
    let samples = rate("listenq_samples_total", &[]);
    let missed = rate("listenq_samples_missed_total", &[]);
    let port = last.to_string();
    let labels =
        [("netns", "host"), ("protocol", "tcp"), ("address", "127.0.0.1"), ("port", &*port)];
    let waited = rate("listenq_accept_queue_connection_seconds_total", &labels);
    let share = cpu.as_secs_f64() / took;
    println!(
        "{count} listeners: ready after {ready:.2?}, {samples:.1} samples a second, {missed:.1} missed, {:.2} % of a core, {:.1} MiB",
        100.0 * share,
        resident as f64 / f64::from(1 << 20),
    );
    // On a machine that is busy with other tests the thread may not run when a sample is due.
    let due = if given.is_none() { samples + missed } else { samples };
    assert!(due >= if cfg!(debug_assertions) { 1.0 } else { 5.0 }, "{samples} and {missed} missed");
    // Every look at the listener with a queue counts.
    assert!((0.9..1.1).contains(&waited), "{waited}");
    assert!(share < SHARE, "{share}");
    assert!(resident < MOST_MEMORY, "{resident}");
    drop(stranger);
}
