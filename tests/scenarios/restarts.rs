//! The restart test: listenq is killed and started again twice while three pages fire, and then
//! cannot be scraped for a minute. No page may end or be sent again. The pages must contain the
//! causes: the daemon watches few listeners here, so even a build without optimization has time to
//! find the causes.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Scope};
use std::time::Duration;

use listenq_lab::client::{burst, fill};
use listenq_lab::hammer::{Load, Manner, visit};
use listenq_lab::listener::Listen;
use listenq_lab::listenq::{Daemon, Launch};
use listenq_lab::netns::Netns;
use listenq_lab::process::ServerProcess;
use listenq_lab::rootfs::Rootfs;
use listenq_lab::server::{Pace, Server};
use listenq_lab::tool::require_tool;
use listenq_lab::wait::eventually;
use rustix::process::Signal;

use super::BIN;
use super::scenes::{Burning, CALM, CpuCgroup, NO_CPU_CGROUP};
use super::stack::{Notice, Receiver, alertmanager, prometheus, quick, rules, scrapes};

/// The part of the namespace's name by which the other stack ignores this namespace.
pub(crate) const HINT: &str = "restarts";
const SECOND: Duration = Duration::from_secs(1);
/// Timeout for the three pages; they take 100 s on an idle machine.
const PAGED: Duration = Duration::from_secs(150);
/// The time for notifications that may directly follow the pages.
const SETTLE: Duration = Duration::from_secs(10);
const DOWN: Duration = Duration::from_secs(10);
/// A daemon that starts into trouble diagnoses the trouble within 15 s; the rest is for a busy
/// machine.
const DIAGNOSED: Duration = Duration::from_secs(25);
const GAP: Duration = Duration::from_secs(60);
/// The time after the gap within which the notification of a resolved page would arrive.
const AFTER: Duration = Duration::from_secs(30);
/// The number of listeners in trouble, without the throttled one.
const TROUBLED: usize = 3;

#[test]
fn restarts_and_a_gap_of_scrapes_neither_resolve_a_page_nor_repeat_it() {
    if !Netns::require_root()
        || !["prometheus", "prometheus-alertmanager"].into_iter().all(require_tool)
    {
        return;
    }
    let cgroup = CpuCgroup::new(HINT);
    if cgroup.is_none() {
        println!("SKIPPED: a throttled server: {NO_CPU_CGROUP}");
    }
    let troubled = TROUBLED + usize::from(cgroup.is_some());
    let (ns, root, stop) = (Netns::new(HINT), Rootfs::new(), AtomicBool::new(false));
    let receiver = Receiver::start(&ns);
    let daemon = start(&ns);
    let _alertmanager = alertmanager(&ns, &root, quick);
    let _prometheus = prometheus(&ns, &root, &scrapes(), &rules(&root, |text| text));
    thread::scope(|scope| {
        let _ending = Ending(&stop);
        play(&ns, scope, &stop);
        if let Some(cgroup) = &cgroup {
            scope.spawn(|| throttled(&ns, cgroup, &stop));
        }
        eventually("a page about each listener in trouble", PAGED, || {
            let pages = receiver.pages();
            let ports = pages.iter().map(|notice| notice.labels["port"].to_string());
            (ports.collect::<BTreeSet<_>>().len() == troubled).then_some(())
        });
        thread::sleep(SETTLE);
        let before = receiver.pages().len();
        check_causes(&receiver.pages(), cgroup.is_some());
        let daemon = restart(&ns, restart(&ns, daemon, troubled), troubled);
        daemon.signal(Signal::STOP);
        thread::sleep(GAP);
        daemon.signal(Signal::CONT);
        thread::sleep(AFTER);
        let after = receiver.pages().split_off(before);
        assert!(after.is_empty(), "pages ended or came again: {after:#?}");
    });
}

fn start(ns: &Netns) -> Daemon {
    let flags = ["--web.listen-address=127.0.0.1:19511", "--sample.cpu-budget=0.2"];
    // Keeps the mounts: a new mount of /sys would hide the cgroups.
    Launch::new(BIN).args(&flags).inside(ns).keeping_mounts().start()
}

/// Kills the daemon and starts another, which must find the same trouble.
fn restart(ns: &Netns, daemon: Daemon, troubled: usize) -> Daemon {
    drop(daemon);
    thread::sleep(DOWN);
    let daemon = start(ns);
    eventually("a diagnosis of each listener in trouble", DIAGNOSED, || {
        let diagnoses = daemon.scrape().series("listenq_listener_diagnosis");
        let now = diagnoses.into_iter().filter(|(_, value)| *value == 1.0);
        let ports: BTreeSet<_> = now.map(|(labels, _)| labels["port"].clone()).collect();
        (ports.len() == troubled).then_some(())
    });
    daemon
}

/// Checks that the first page about each server ends with the cause.
fn check_causes(pages: &[Notice], is_throttled: bool) {
    let summaries: Vec<_> =
        pages.iter().map(|notice| notice.annotations["summary"].as_str().unwrap()).collect();
    let says = |cause: &str| summaries.iter().any(|summary| summary.ends_with(cause));
    assert!(says(" accepts no clients: stopped by a signal"), "{summaries:#?}");
    assert!(!is_throttled || says(" refuses clients: CPU throttled"), "{summaries:#?}");
}

/// Runs a server that uses CPU time for each client, in a cgroup limited to a twentieth of a core.
fn throttled(ns: &Netns, cgroup: &CpuCgroup, stop: &AtomicBool) {
    let server = Burning::start(ns);
    thread::sleep(CALM);
    cgroup.limit(&server);
    let load = Load { rate: 10.0, lasting: 5 * SECOND, patience: 5 * SECOND, at_once: 1000 };
    repeat(stop, || drop(ns.run(|| visit(server.target, load, &Manner::default()))));
}

/// Starts a stopped server, a slow server, and a server whose queue is too short.
fn play<'scope>(ns: &'scope Netns, scope: &'scope Scope<'scope, '_>, stop: &'scope AtomicBool) {
    scope.spawn(move || {
        let server = ServerProcess::listen(ns, "127.0.0.1:0", &["--backlog=8", "--pace=fast"]);
        thread::sleep(CALM);
        server.pause();
        let (target, mut clients) = (server.target(), Vec::new());
        repeat(stop, || {
            clients.extend(ns.run(|| fill(target, 1)));
            thread::sleep(SECOND / 5);
        });
    });
    scope.spawn(move || {
        let (_server, target) = serve(ns, 32, Pace::PerSecond(4.0));
        thread::sleep(CALM);
        let load = Load { rate: 20.0, lasting: 5 * SECOND, patience: 5 * SECOND, at_once: 1000 };
        repeat(stop, || drop(ns.run(|| visit(target, load, &Manner::default()))));
    });
    scope.spawn(move || {
        let (_server, target) = serve(ns, 4, Pace::Bursts(SECOND / 20));
        thread::sleep(CALM);
        repeat(stop, || {
            ns.run(|| burst(target, 30, SECOND / 4));
            thread::sleep(SECOND);
        });
    });
}

fn repeat(stop: &AtomicBool, mut work: impl FnMut()) {
    while !stop.load(Ordering::Relaxed) {
        work();
    }
}

/// Ends the load when dropped, also when the test fails.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn serve(ns: &Netns, backlog: i32, pace: Pace) -> (Server, SocketAddr) {
    let listener = ns.run(|| Listen::tcp("127.0.0.1:0").backlog(backlog).open());
    let target = listener.target();
    (Server::start(listener, pace), target)
}
