//! Tests namespaces that start and end while one daemon runs: every counter is right while they
//! live, and nothing is kept afterwards.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]
#![allow(clippy::disallowed_types, reason = "a namespace without a mount is held by a program")]

use std::collections::HashMap;
use std::fs;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use listenq_lab::client::fill;
use listenq_lab::listener::{Listen, Listener};
use listenq_lab::listenq::{Daemon, Launch};
use listenq_lab::metrics::Metrics;
use listenq_lab::netns::Netns;
use listenq_lab::rootfs::Rootfs;
use listenq_lab::running::Running;
use listenq_lab::wait::{TIMEOUT, eventually, within};

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
/// Law 6: the time within which an ended namespace is released.
const LET_GO: Duration = Duration::from_secs(10);
const OVERFLOWS: &str = "listenq_netns_listen_overflows_total";
const SOMAXCONN: &str = "listenq_netns_somaxconn";

/// Runs one test at a time: each daemon sees the namespaces of all tests, and some tests count the
/// daemon's resources.
fn alone() -> Option<MutexGuard<'static, ()>> {
    static ALONE: Mutex<()> = Mutex::new(());
    Netns::require_root().then(|| ALONE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A daemon that watches all namespaces. Only listeners of this process may have series, so that
/// listeners of other tests take no places.
fn watcher() -> Launch {
    let ours = format!("--listener.include=^lq-{}-", std::process::id());
    Launch::new(BIN).args(&["--netns=all", "--discovery.interval=1s", &ours])
}

/// A namespace with a listener that already refused connections.
struct Pod {
    ns: Netns,
    listener: Listener,
}

impl Pod {
    fn new(n: usize) -> Self {
        let ns = Netns::new(&format!("pod{n}"));
        let listener = ns.run(|| Listen::tcp("127.0.0.1:0").backlog(4).open());
        let pod = Self { ns, listener };
        pod.overflow(10 + n);
        pod
    }

    /// Fills the queue, lets `refused` more connections fail, and accepts the connections in the
    /// queue.
    fn overflow(&self, refused: usize) {
        drop(self.ns.run(|| fill(self.listener.target(), 5 + refused)));
        assert!(self.listener.accept_all() >= 5);
    }

    fn refused(&self) -> f64 {
        self.ns.nstat()["TcpExtListenOverflows"] as f64
    }

    /// Waits until the kernel counter, the sum and the listener in the scrape equal the value of
    /// `nstat`.
    fn assert_as_nstat(&self, daemon: &Daemon) {
        let name = self.ns.name();
        let (mut nstat, mut seen) = (0.0, None);
        let agrees = within(TIMEOUT, || {
            nstat = self.refused();
            let scrape = daemon.scrape().of_netns(name);
            scrape.value(OVERFLOWS, &[])?;
            let (sums, listener) = (scrape.overflows(), scrape.at(self.listener.addr()).overflows);
            seen = Some((sums, listener));
            let is_right = [sums.kernel, sums.accounted()] == [nstat; 2] && listener == Some(nstat);
            is_right.then_some(())
        });
        assert!(agrees.is_some(), "{name}: nstat {nstat}, sums and listener {seen:?}");
        assert!(nstat >= 10.0);
    }

    /// Like [`assert_as_nstat`](Self::assert_as_nstat), for a namespace that had overflows before
    /// the daemon started: those overflows are attributed to no listener.
    fn assert_as_nstat_since_start(&self, daemon: &Daemon) {
        eventually("the overflows of the second burst", TIMEOUT, || {
            let scrape = daemon.scrape().of_netns(self.ns.name());
            let sums = scrape.value(OVERFLOWS, &[]).map(|_| scrape.overflows())?;
            (sums.kernel == self.refused() && sums.accounted() == 100.0).then_some(())
        });
    }
}

/// The descriptors of a namespace: two netlink sockets, four counter files and five settings.
const EACH_NAMESPACE: usize = 11;

/// The descriptors of the daemon beyond those of the sampled namespaces, and its threads. Other
/// tests also create namespaces; `None` if some ended between the two readings.
fn holdings(daemon: &Daemon) -> Option<[usize; 2]> {
    let sampled = daemon.scrape().value("listenq_namespaces", &[("state", "sampled")]).unwrap();
    let of_namespaces = EACH_NAMESPACE * sampled as usize;
    Some([daemon.descriptors().checked_sub(of_namespaces)?, daemon.threads().len()])
}

fn value(scrape: &Metrics, name: &str, netns: &str) -> Option<f64> {
    scrape.value(name, &[("netns", netns)])
}

/// Waits until the setting of `netns` is `expected`.
#[track_caller]
fn await_somaxconn(daemon: &Daemon, netns: &str, expected: Option<f64>) -> Metrics {
    eventually(&format!("somaxconn of {netns} to be {expected:?}"), TIMEOUT, || {
        let scrape = daemon.scrape();
        scrape.assert_unique();
        (value(&scrape, SOMAXCONN, netns) == expected).then_some(scrape)
    })
}

#[test]
fn fifty_short_lived_namespaces_count_as_nstat_does_and_are_all_released() {
    let Some(_alone) = alone() else { return };
    let daemon = watcher().start();
    let before = eventually("a look at all holdings", TIMEOUT, || holdings(&daemon));
    let mut most = 0;
    for turn in 0..5 {
        let pods: Vec<Pod> = (0..10).map(|n| Pod::new(10 * turn + n)).collect();
        pods.iter().for_each(|pod| pod.assert_as_nstat(&daemon));
        pods.iter().for_each(|pod| pod.overflow(25));
        pods.iter().for_each(|pod| pod.assert_as_nstat(&daemon));
        most = most.max(daemon.descriptors());
    }
    assert!(most >= before[0] + 10 * EACH_NAMESPACE, "{most} descriptors for ten, {before:?}");
    let mut after = before;
    let is_back = within(TIMEOUT, || {
        after = holdings(&daemon)?;
        (after[0] <= before[0] && after[1] <= before[1]).then_some(())
    });
    assert!(is_back.is_some(), "[descriptors, threads] were {before:?} and are {after:?}");
}

#[test]
fn an_ended_namespace_is_released_within_ten_seconds() {
    let Some(_alone) = alone() else { return };
    let (witness, ns) = (Netns::new("witness"), Netns::new("ended"));
    // The other end of the link vanishes when the kernel destroys the namespace.
    ns.add_link_to(&witness, "tie");
    let name = ns.name().to_owned();
    // At the default interval, which most installations use.
    let daemon = Launch::new(BIN).args(&["--netns=all"]).start();
    await_somaxconn(&daemon, &name, Some(4096.0));
    assert!(witness.has_link("tiep"));
    drop(ns);
    let begin = Instant::now();
    eventually("the end of a namespace", LET_GO, || (!witness.has_link("tiep")).then_some(()));
    assert!(begin.elapsed() < LET_GO);
    await_somaxconn(&daemon, &name, None);
}

#[test]
fn a_namespace_of_a_process_is_named_by_its_inode_and_released_after_it() {
    let Some(_alone) = alone() else { return };
    let witness = Netns::new("witness");
    let daemon = watcher().start();
    let holder = Running::start_as(Command::new("unshare").args(["-n", "sleep", "60"]), "sleep");
    let pid = holder.pid().to_string();
    let link = ["link", "add", "tiep", "type", "veth", "peer", "name", "tie", "netns", &pid];
    let made = Command::new("ip").args(["-n", witness.name()]).args(link).status().unwrap();
    assert!(made.success());
    let text = fs::read_link(format!("/proc/{pid}/ns/net")).unwrap().display().to_string();
    let inode = text.trim_start_matches("net:[").trim_end_matches(']').to_owned();
    let name = format!("netns:{inode}");
    await_somaxconn(&daemon, &name, Some(4096.0));
    drop(holder);
    eventually("its end", LET_GO, || (!witness.has_link("tiep")).then_some(()));
    await_somaxconn(&daemon, &name, None);
}

#[test]
fn names_that_are_taken_get_the_inode_and_two_mounts_are_one_namespace() {
    let Some(_alone) = alone() else { return };
    let mut rootfs = Rootfs::new();
    let (host, twice) = (Netns::new("host"), Netns::new("twice"));
    host.sysctl("net.core.somaxconn", 71);
    twice.sysctl("net.core.somaxconn", 72);
    rootfs.mount_netns(&host, "host");
    rootfs.mount_netns(&twice, "b");
    rootfs.mount_netns(&twice, "a");
    let own = Netns::new("own");
    own.sysctl("net.core.somaxconn", 73);
    let daemon = watcher().args(&[&rootfs.flag()]).inside(&own).start();
    let scrape = await_somaxconn(&daemon, &format!("host~{}", host.inode()), Some(71.0));
    assert_eq!(value(&scrape, SOMAXCONN, "host"), Some(73.0));
    assert_eq!(value(&scrape, SOMAXCONN, "a"), Some(72.0));
    for again in ["b".to_owned(), format!("a~{}", twice.inode()), twice.name().to_owned()] {
        assert_eq!(value(&scrape, SOMAXCONN, &again), None, "{again}");
    }
}

#[test]
fn a_recreated_namespace_of_the_same_name_is_a_counter_reset() {
    let Some(_alone) = alone() else { return };
    let first = Pod::new(30);
    let name = first.ns.name().to_owned();
    let daemon = watcher().start();
    first.overflow(100);
    first.assert_as_nstat_since_start(&daemon);
    drop(first);
    let ns = Netns::create(&name).unwrap();
    let listener = ns.run(|| Listen::tcp("127.0.0.1:0").backlog(4).open());
    let second = Pod { ns, listener };
    second.overflow(20);
    second.assert_as_nstat(&daemon);
    assert!(second.refused() < 60.0);
    let scrape = daemon.scrape();
    scrape.assert_unique();
    let namesakes: Vec<_> = scrape
        .series(OVERFLOWS)
        .into_iter()
        .filter(|(labels, _)| labels["netns"].starts_with(&name))
        .collect();
    assert_eq!(namesakes.len(), 1, "{namesakes:?}");
}

/// The service restarts just when listenq looks for namespaces, and another process holds the
/// namespace by a descriptor meanwhile.
#[test]
fn a_namespace_that_returns_counts_no_overflow_from_its_absence() {
    let Some(_alone) = alone() else { return };
    let (mut rootfs, pod) = (Rootfs::new(), Pod::new(40));
    let name = pod.ns.name().to_owned();
    // The namespace exists at startup, so its 50 overflows are a baseline.
    rootfs.mount_netns(&pod.ns, &name);
    let daemon = watcher().args(&[&rootfs.flag()]).start();
    for more in [0, 7] {
        await_somaxconn(&daemon, &name, Some(4096.0));
        if more > 0 {
            pod.overflow(more);
        }
        let sums = || {
            let scrape = daemon.scrape().of_netns(&name);
            let sums = scrape.value(OVERFLOWS, &[]).map(|_| scrape.overflows())?;
            Some((sums.kernel, sums.accounted()))
        };
        let expected = Some((pod.refused(), more as f64));
        assert!(pod.refused() >= 50.0 + more as f64);
        let _ = within(TIMEOUT, || (sums() == expected).then_some(()));
        // Attribution takes three samples: a wrong attribution would appear within this time.
        thread::sleep(Duration::from_secs(1));
        assert_eq!(sums(), expected);
        rootfs.unmount_all();
        await_somaxconn(&daemon, &name, None);
        rootfs.mount_netns(&pod.ns, &name);
    }
}

#[test]
fn with_netns_own_no_other_namespace_is_seen() {
    let Some(_alone) = alone() else { return };
    let (own, other) = (Netns::new("own"), Pod::new(0));
    let daemon =
        Launch::new(BIN).args(&["--netns=own", "--discovery.interval=1s"]).inside(&own).start();
    eventually("three seconds of samples", TIMEOUT, || {
        let sampled = value(&daemon.scrape(), "listenq_netns_sampled_seconds_total", "host");
        sampled.is_some_and(|sampled| sampled > 3.0).then_some(())
    });
    other.overflow(9);
    let scrape = daemon.scrape();
    let seen = scrape.series(OVERFLOWS);
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!(seen[0].0["netns"], "host");
    assert_eq!(scrape.of_netns(other.ns.name()).series("listenq_listener_sockets"), []);
    assert_eq!(scrape.value("listenq_namespaces", &[("state", "sampled")]), Some(1.0));
}

#[test]
fn every_namespace_has_its_own_settings() {
    let Some(_alone) = alone() else { return };
    let pair = [Netns::new("left"), Netns::new("right")];
    let daemon = watcher().start();
    for round in [100, 200] {
        for (ns, more) in pair.iter().zip([1, 2]) {
            ns.sysctl("net.core.somaxconn", round + more);
        }
        for (ns, more) in pair.iter().zip([1, 2]) {
            await_somaxconn(&daemon, ns.name(), Some(f64::from(round + more)));
        }
    }
}

#[test]
fn no_thread_is_left_in_another_namespace() {
    let Some(_alone) = alone() else { return };
    let daemon = watcher().start();
    let own = fs::read_link(format!("/proc/{}/ns/net", daemon.pid())).unwrap();
    let (mut looks, mut strays) = (0, HashMap::new());
    let deadline = Instant::now() + Duration::from_secs(6);
    while Instant::now() < deadline {
        let _come_and_go: Vec<Netns> = (0..5).map(|_| Netns::new("hop")).collect();
        for _ in 0..300 {
            let threads = daemon.threads();
            assert!(threads.len() >= 3, "{threads:?}");
            for (task, name, netns) in threads.into_iter().filter(|(_, _, netns)| *netns != own) {
                // A thread that reads one namespace is inside it for less than a millisecond, and
                // ends there.
                assert_eq!(name, "netns", "{} is in {}", task.display(), netns.display());
                let since = *strays.entry(task.clone()).or_insert_with(Instant::now);
                assert!(since.elapsed() < Duration::from_millis(500), "{}", task.display());
            }
            looks += 1;
        }
    }
    assert!(looks >= 1000, "only {looks} looks");
}
