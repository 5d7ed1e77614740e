//! Owns what is left when a source is missing: no netlink, a kernel with fewer counters, a file that breaks.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use listenq_lab::client::fill;
use listenq_lab::exposed::Exposed;
use listenq_lab::listener::Listen;
use listenq_lab::listenq::{Daemon, Launch};
use listenq_lab::metrics::Metrics;
use listenq_lab::netns::Netns;
use listenq_lab::wait::eventually;

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
const PATIENCE: Duration = Duration::from_secs(10);
/// What needs netlink.
const NEEDS_SOCK_DIAG: [&str; 7] = [
    "listenq_accept_queue_limit",
    "listenq_accept_queue_fullest_ratio",
    "listenq_accept_queue_full_seconds_total",
    "listenq_listener_drops_total",
    "listenq_listener_overflows_total",
    "listenq_netns_unattributed_overflows_total",
    "listenq_netns_unexposed_overflows_total",
];
/// What needs the kernel's own count of overflows.
const NEEDS_OVERFLOWS: [&str; 4] = [
    "listenq_netns_listen_overflows_total",
    "listenq_listener_overflows_total",
    "listenq_netns_unattributed_overflows_total",
    "listenq_netns_unexposed_overflows_total",
];

/// A procfs that is the real one but for `net/netstat`. Removed when dropped.
struct FakeProcfs(PathBuf);

// === impl FakeProcfs ===

impl FakeProcfs {
    fn new(hint: &str, netstat: &str, nets: &[&str]) -> Self {
        let root = std::env::temp_dir().join(format!("listenq-{}-{hint}", std::process::id()));
        fs::create_dir_all(root.join("net")).unwrap();
        let nets = nets.iter().map(|name| format!("net/{name}"));
        for name in ["self", "sys", "stat", "uptime"].map(str::to_owned).into_iter().chain(nets) {
            symlink(format!("/proc/{name}"), root.join(name)).unwrap();
        }
        let fake = Self(root);
        fake.write_netstat(netstat);
        fake
    }

    /// Writes into the same file: whoever has it open reads the new text.
    fn write_netstat(&self, text: &str) {
        fs::write(self.0.join("net/netstat"), text).unwrap();
    }

    fn launch(&self, ns: &Netns) -> Launch {
        Launch::new(BIN).args(&[&format!("--path.procfs={}", self.0.display())]).inside(ns)
    }
}

impl Drop for FakeProcfs {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Those of `names` that the scrape says anything of.
fn present<'a>(scrape: &Metrics, names: &[&'a str]) -> Vec<&'a str> {
    names.iter().copied().filter(|name| !scrape.series(name).is_empty()).collect()
}

fn warnings(daemon: &Daemon) -> Vec<String> {
    let log = daemon.log();
    log.into_iter()
        .filter(|line| line.contains("level=warn") || line.contains("level=error"))
        .collect()
}

fn await_samples(daemon: &Daemon, more: f64) {
    let samples = || daemon.scrape().value("listenq_samples_total", &[]).unwrap();
    let before = samples();
    eventually("more samples", PATIENCE, || (samples() >= before + more).then_some(()));
}

#[test]
fn without_netlink_lengths_remain_and_the_rest_is_absent() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("no-netlink");
    let listener = ns.run(|| Listen::tcp("127.0.0.1:0").backlog(4).open());
    let v6 = ns.run(|| Listen::tcp("[::1]:0").reuseport().open());
    let twin = ns.run(|| Listen::tcp(v6.addr()).reuseport().open());
    let clients = ns.run(|| (fill(listener.target(), 20), fill(v6.target(), 3)));
    // /proc/net/tcp is dear: that its cost stretches the interval is another warning, and not the matter here.
    let launch = Launch::new(BIN).args(&["--sample.cpu-budget=1"]).inside(&ns);
    let daemon = launch.without_netlink().start();
    await_samples(&daemon, 15.0);
    let scrape = daemon.scrape();
    let available = scrape.value("listenq_feature_available", &[("feature", "sock_diag")]);
    assert_eq!((available, present(&scrape, &NEEDS_SOCK_DIAG)), (Some(0.0), vec![]));
    let seen = scrape.at(listener.addr());
    let length = ns.ss_listen().iter().find(|r| r.port == listener.port()).unwrap().recv_q;
    let expected = Exposed {
        sockets: Some(1.0),
        length: Some(f64::from(length)),
        peak_length: Some(f64::from(length)),
        connection_seconds: seen.connection_seconds,
        ..Exposed::default()
    };
    assert_eq!(seen, expected);
    assert!(length >= 5 && seen.connection_seconds > Some(1.0), "{seen:?}");
    let group = scrape.at(v6.addr());
    assert_eq!((group.sockets, group.length), (Some(2.0), Some(3.0)));
    let overflows = scrape.value("listenq_netns_listen_overflows_total", &[]);
    assert!(overflows >= Some(14.0), "{overflows:?}");
    let said = warnings(&daemon);
    let features = ["=sock_diag", "=unix_diag", "=scan"];
    let names = |(line, feature): (&String, &str)| line.contains(feature);
    assert!(said.len() == 3 && said.iter().zip(features).all(names), "{said:?}");
    drop((clients, twin));
}

#[test]
fn counters_that_the_kernel_does_not_have_are_absent() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("old-kernel");
    let netstat = "TcpExt: SyncookiesSent Future ListenOverflows\nTcpExt: 3 -1 7\n";
    let procfs = FakeProcfs::new("old-kernel", netstat, &["snmp", "tcp", "tcp6"]);
    let daemon = procfs.launch(&ns).start();
    let scrape = daemon.scrape();
    let value = |word: &str| scrape.value(&format!("listenq_netns_{word}_total"), &[]);
    let known = ["syncookies_sent", "listen_overflows", "unattributed_overflows"].map(value);
    assert_eq!(known, [3.0, 7.0, 0.0].map(Some));
    let unknown = [
        "listen_drops",
        "tcp_req_q_full_do_cookies",
        "tcp_req_q_full_drop",
        "syncookies_recv",
        "syncookies_failed",
        "tcp_fast_open_listen_overflow",
        "tcp_defer_accept_drop",
        "embryonic_rsts",
        "tcp_migrate_req_failure",
    ];
    assert_eq!(unknown.map(value), [None; 9]);
    assert!(value("passive_opens").is_some() && value("attempt_fails").is_some());
}

#[test]
fn without_listen_overflows_there_is_no_blame_and_not_a_blame_of_0() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("no-overflows");
    let listener = ns.run(|| Listen::tcp("127.0.0.1:0").backlog(4).open());
    let netstat = "TcpExt: SyncookiesSent\nTcpExt: 3\n";
    let procfs = FakeProcfs::new("no-overflows", netstat, &["snmp", "tcp", "tcp6"]);
    let daemon = procfs.launch(&ns).start();
    let clients = ns.run(|| fill(listener.target(), 20));
    let seen = eventually("drops", PATIENCE, || {
        Some(daemon.scrape()).filter(|scrape| scrape.at(listener.addr()).drops >= Some(14.0))
    });
    assert_eq!(seen.at(listener.addr()).limit, Some(4.0));
    assert_eq!(present(&seen, &NEEDS_OVERFLOWS), [""; 0]);
    drop(clients);
}

#[test]
fn a_netstat_that_breaks_costs_its_own_counters_alone() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("broken");
    let listener = ns.run(|| Listen::tcp("127.0.0.1:0").backlog(16).open());
    let procfs = FakeProcfs::new("broken", "TcpExt: ListenOverflows\nTcpExt: 7\n", &["snmp"]);
    let daemon = procfs.launch(&ns).start();
    let errors = |source| {
        daemon.scrape().value("listenq_sample_errors_total", &[("source", source)]).unwrap()
    };
    let before = daemon.scrape();
    procfs.write_netstat("no table\n");
    eventually("two failed readings", PATIENCE, || (errors("netstat") >= 2.0).then_some(()));
    let clients = ns.run(|| fill(listener.target(), 5));
    let after = eventually("the clients", PATIENCE, || {
        Some(daemon.scrape()).filter(|scrape| scrape.at(listener.addr()).length == Some(5.0))
    });
    assert_eq!(after.fallen_since(&before), [""; 0]);
    assert_eq!(["inet_diag", "snmp", "sysctl"].map(errors), [0.0; 3]);
    let said = warnings(&daemon);
    assert!(said.len() == 1 && said[0].contains("net/netstat"), "{said:?}");
    drop(clients);
}

#[test]
fn without_any_way_to_dump_it_serves_but_is_not_ready() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("blind");
    let procfs = FakeProcfs::new("blind", "TcpExt: ListenOverflows\nTcpExt: 7\n", &["snmp"]);
    let launch = procfs.launch(&ns).args(&["--sample.cpu-budget=1"]);
    let daemon = launch.without_netlink().unready().start();
    await_samples(&daemon, 10.0);
    assert_eq!(["/-/healthy", "/-/ready"].map(|path| daemon.get(path, &[]).status), [200, 503]);
    let scrape = daemon.scrape();
    assert!(scrape.value("listenq_sample_errors_total", &[("source", "inet_diag")]) >= Some(10.0));
    assert_eq!(
        present(&scrape, &["listenq_listener_sockets", "listenq_accept_queue_length"]),
        [""; 0]
    );
    // One for each source that is left, one for the feature.
    let said = warnings(&daemon);
    let says = |what| said.iter().any(|line| line.contains(what));
    assert!(said.len() == 3 && says("net/tcp") && says("=unix_diag") && says("=scan"), "{said:?}");
}
