//! Tests what remains when a source is missing: no netlink, a kernel with fewer counters, a broken
//! file.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]
#![allow(clippy::print_stdout, reason = "the measured figures are for the reader of --nocapture")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use listenq::kernel::diag_modules::ModuleWatch;
use listenq::kernel::listen::Scratch;
use listenq::sampler::netns::{NetnsReader, SampleTime};
use listenq::self_stats::SelfStats;
use listenq::snapshot::{NetnsId, NetnsSample, Snapshot};
use listenq::state::{self, State};
use listenq::view::{ListenerView, View};
use listenq_lab::client::fill;
use listenq_lab::exposed::Exposed;
use listenq_lab::listener::Listen;
use listenq_lab::listenq::{Daemon, Launch};
use listenq_lab::metrics::Metrics;
use listenq_lab::netns::Netns;
use listenq_lab::rootfs::Rootfs;
use listenq_lab::seccomp::forbid_requests;
use listenq_lab::tool::require_tool;
use listenq_lab::wait::{TIMEOUT, eventually};

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
/// Metrics that need netlink.
const NEEDS_SOCK_DIAG: [&str; 7] = [
    "listenq_accept_queue_limit",
    "listenq_accept_queue_fullest_ratio",
    "listenq_accept_queue_full_seconds_total",
    "listenq_listener_drops_total",
    "listenq_listener_overflows_total",
    "listenq_netns_unattributed_overflows_total",
    "listenq_netns_unexposed_overflows_total",
];
/// Metrics that need the kernel's count of overflows.
const NEEDS_OVERFLOWS: [&str; 4] = [
    "listenq_netns_listen_overflows_total",
    "listenq_listener_overflows_total",
    "listenq_netns_unattributed_overflows_total",
    "listenq_netns_unexposed_overflows_total",
];

/// A copy of the real procfs with another `net/netstat`. Removed when dropped.
struct FakeProcfs(PathBuf);

// === impl FakeProcfs ===

impl FakeProcfs {
    fn new(hint: &str, netstat: &str, nets: &[&str]) -> Self {
        let root = std::env::temp_dir().join(format!("listenq-{}-{hint}", std::process::id()));
        fs::create_dir_all(root.join("net")).unwrap();
        let nets = nets.iter().map(|name| format!("net/{name}"));
        for name in
            ["self", "sys", "stat", "uptime", "2"].map(str::to_owned).into_iter().chain(nets)
        {
            symlink(format!("/proc/{name}"), root.join(name)).unwrap();
        }
        let fake = Self(root);
        fake.write_netstat(netstat);
        fake
    }

    /// Overwrites the same file: a process that has the file open reads the new text.
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

/// The metrics of `names` that the scrape contains.
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
    eventually("more samples", TIMEOUT, || (samples() >= before + more).then_some(()));
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
    // Reading /proc/net/tcp is expensive. A longer interval because of this cost would log another
    // warning, which is not tested here.
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
fn without_the_overflow_counter_attributed_overflows_are_absent() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("no-overflows");
    let listener = ns.run(|| Listen::tcp("127.0.0.1:0").backlog(4).open());
    let netstat = "TcpExt: SyncookiesSent\nTcpExt: 3\n";
    let procfs = FakeProcfs::new("no-overflows", netstat, &["snmp", "tcp", "tcp6"]);
    let daemon = procfs.launch(&ns).start();
    let clients = ns.run(|| fill(listener.target(), 20));
    let seen = eventually("drops", TIMEOUT, || {
        Some(daemon.scrape()).filter(|scrape| scrape.at(listener.addr()).drops >= Some(14.0))
    });
    assert_eq!(seen.at(listener.addr()).limit, Some(4.0));
    assert_eq!(present(&seen, &NEEDS_OVERFLOWS), [""; 0]);
    drop(clients);
}

#[test]
fn a_broken_netstat_affects_only_its_own_counters() {
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
    eventually("two failed readings", TIMEOUT, || (errors("netstat") >= 2.0).then_some(()));
    let clients = ns.run(|| fill(listener.target(), 5));
    let after = eventually("the clients", TIMEOUT, || {
        Some(daemon.scrape()).filter(|scrape| scrape.at(listener.addr()).length == Some(5.0))
    });
    assert_eq!(after.fallen_since(&before), [""; 0]);
    assert_eq!(["inet_diag", "snmp", "sysctl"].map(errors), [0.0; 3]);
    let said = warnings(&daemon);
    assert!(said.len() == 1 && said[0].contains("net/netstat"), "{said:?}");
    drop(clients);
}

#[test]
fn without_any_dump_the_daemon_serves_and_is_not_ready() {
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
    // One warning for each remaining source, and one for the feature.
    let said = warnings(&daemon);
    let says = |what| said.iter().any(|line| line.contains(what));
    assert!(said.len() == 3 && says("net/tcp") && says("=unix_diag") && says("=scan"), "{said:?}");
}

/// Each request without a module makes the kernel start `modprobe`.
#[test]
fn a_missing_module_is_requested_once_for_all_namespaces() {
    if !Netns::require_root() || !require_tool("strace") {
        return;
    }
    let (own, others) = (Netns::new("no-diag"), (0..20).map(|_| Netns::new("no-diag")));
    let (mut root, others) = (Rootfs::new(), others.collect::<Vec<_>>());
    for (n, other) in others.iter().enumerate() {
        root.mount_netns(other, &format!("other-{n}"));
    }
    let listener = own.run(|| Listen::tcp("127.0.0.1:0").backlog(4).open());
    let clients = own.run(|| fill(listener.target(), 20));
    let log = root.place("requests");
    let strace = ["strace", "-D", "-f", "-qq", "-e", "trace=sendto", "-o", log.to_str().unwrap()];
    let args = ["--netns=all", "--discovery.interval=1s", "--sample.cpu-budget=1", &root.flag()];
    let daemon = Launch::new(BIN).args(&args).inside(&own).without_diag().through(&strace).start();
    // Every system call of the daemon is traced, so samples are slow.
    await_samples(&daemon, 10.0);
    let scrape = daemon.scrape();
    let features = ["sock_diag", "unix_diag", "scan"]
        .map(|name| scrape.value("listenq_feature_available", &[("feature", name)]));
    assert_eq!(features, [Some(0.0); 3]);
    let other = scrape.value("listenq_netns_sampled_seconds_total", &[("netns", "other-7")]);
    assert!(other > Some(0.0), "{other:?}");
    let sent = fs::read_to_string(&log).unwrap();
    let requests = sent.lines().filter(|line| line.contains("ENOENT")).count();
    println!("{requests} requests by 21 namespaces in 10 samples");
    // One request for each module.
    assert_eq!(requests, 2, "{sent}");
    let at = format!("--url=http://{}", daemon.address());
    let check = Launch::new(BIN).args(&["check", &at]).inside(&own).run();
    assert_eq!(check.status.code(), Some(3), "{}", check.stdout);
    assert!(check.stdout.contains("modprobe tcp_diag") && !check.stdout.contains("overflows="));
    let explain = Launch::new(BIN).args(&["explain", &at]).inside(&own).run().stdout;
    assert!(
        explain.contains("modprobe tcp_diag") && !explain.contains("No trouble found"),
        "{explain}"
    );
    drop(clients);
}

/// Overflows from before the module appeared are not attributed.
#[test]
fn a_module_that_appears_is_used_at_the_next_look() {
    if !Netns::require_root() {
        return;
    }
    let (ns, root) = (Netns::new("heals"), Rootfs::new());
    let listener = ns.run(|| Listen::tcp("127.0.0.1:0").backlog(4).open());
    let mut clients = ns.run(|| fill(listener.target(), 20));
    let mut scratch = Scratch::default();
    let mut reader = ns.run(|| {
        forbid_requests().unwrap();
        NetnsReader::open_here(Path::new("/proc"), &mut Scratch::default()).unwrap()
    });
    let sample = NetnsSample::new(NetnsId(1), "host".into(), false);
    let mut snapshot = Snapshot { namespaces: vec![sample], ..Snapshot::default() };
    let (mut state, mut view) = (State::new(state::Config::default()), View::default());
    let (tick, mut now) = (Duration::from_millis(100), Duration::ZERO);
    let mut see = |samples| -> ListenerView {
        let mut stats = SelfStats::default();
        for _ in 0..samples {
            now += tick;
            let time = SampleTime { now, ..SampleTime::every(tick) };
            reader.read(time, &mut snapshot.namespaces[0], &mut stats, &mut scratch);
            state.fold(&snapshot, tick);
        }
        state.show(&stats, &mut view);
        view.namespaces[0].listeners[0].clone()
    };
    let before = see(15);
    let queue = before.queue.unwrap();
    assert_eq!((queue.limit, before.drops, before.overflows), (None, None, None));
    let mut modules = ModuleWatch::new(root.path());
    modules.look(Instant::now());
    assert_eq!(see(1).queue.unwrap().limit, None);
    root.file("modules", "tcp_diag 16384 0 - Live 0x0\n");
    modules.look(Instant::now());
    let healed = see(15);
    let limit = healed.queue.unwrap().limit;
    assert_eq!((limit, healed.drops, healed.overflows), (Some(4), Some(0), Some(0)));
    assert!(healed.connection_seconds > before.connection_seconds);
    clients.extend(ns.run(|| fill(listener.target(), 9)));
    let after = see(15);
    assert!(after.drops >= Some(9) && after.overflows >= Some(9), "{after:?}");
}
