//! Tests torn dumps: a reuseport group of 1,000 sockets whose members open and close while listenq
//! samples the group.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]
#![allow(clippy::print_stdout, reason = "the measured figures are for the reader of --nocapture")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use listenq_lab::exposed::Exposed;
use listenq_lab::listener::{Listen, Listener};
use listenq_lab::listenq::{Daemon, Launch};
use listenq_lab::netns::Netns;
use listenq_lab::scan::{Stray, stray_segments};
use listenq_lab::wait::{TIMEOUT, eventually};

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
const CHURN: Duration = Duration::from_secs(5);
const MEMBERS: usize = 1000;
/// The number of members that close and open again. The other members stay open and keep the drops
/// from before the daemon started.
const RESTLESS: usize = 500;
/// Segments dropped before the daemon started: about twenty at each member.
const BEFORE: u32 = 20_000;
/// A socket is gone after two dumps without it, so a closed socket is counted for that long. The
/// value has some slack for a busy machine.
const LINGER: Duration = Duration::from_millis(400);

/// A thread that closes and opens members, one after another.
struct Churn {
    stop: Arc<AtomicBool>,
    closed: Arc<AtomicU64>,
    thread: JoinHandle<Vec<Listener>>,
}

impl Churn {
    fn start(ns: &Netns, address: SocketAddr, members: Vec<Listener>) -> Self {
        let (stop, closed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&closed));
        let thread = ns.spawn(move || {
            let mut members: std::collections::VecDeque<_> = members.into();
            while !stopped.load(Ordering::Relaxed) {
                drop(members.pop_front());
                count.fetch_add(1, Ordering::Relaxed);
                members.push_back(member(address));
                sleep(Duration::from_millis(2));
            }
            members.into()
        });
        Self { stop, closed, thread }
    }

    fn closed(&self) -> u64 {
        self.closed.load(Ordering::Relaxed)
    }

    fn stop(self) -> Vec<Listener> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn member(address: SocketAddr) -> Listener {
    Listen::tcp(address).reuseport().backlog(4).open()
}

/// The group: first the members that close and open again, with drops at every member.
fn group(ns: &Netns) -> (SocketAddr, Vec<Listener>, Vec<Listener>) {
    let first = ns.run(|| Listen::tcp("127.0.0.1:0").reuseport().backlog(4).open());
    let address = first.addr();
    let restless = ns.run(|| (0..RESTLESS).map(|_| member(address)).collect());
    let others = ns.run(|| (RESTLESS + 1..MEMBERS).map(|_| member(address)).collect::<Vec<_>>());
    ns.run(|| stray_segments(address, Stray::Null, BEFORE, Duration::ZERO));
    let drops: Vec<_> = ns.ss_listen().iter().map(|row| row.drops).collect();
    assert_eq!(drops.iter().sum::<u32>(), BEFORE);
    (address, restless, others.into_iter().chain([first]).collect())
}

/// Scrapes for `CHURN` and calls `check` with each scrape and the number of recently closed
/// members.
fn scrape_beside(
    daemon: &Daemon,
    address: SocketAddr,
    churn: &Churn,
    mut check: impl FnMut(Exposed, u64),
) {
    let begin = Instant::now();
    let mut closed = vec![(begin, churn.closed())];
    while begin.elapsed() < CHURN {
        let seen = daemon.scrape().at(address);
        closed.push((Instant::now(), churn.closed()));
        closed.retain(|(at, _)| at.elapsed() < LINGER);
        check(seen, closed.last().unwrap().1 - closed[0].1);
        sleep(Duration::from_millis(10));
    }
}

#[test]
fn torn_dumps_neither_lose_nor_double_sockets_and_add_no_drops() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("churn");
    let (address, restless, resting) = group(&ns);
    let daemon = Launch::new(BIN)
        .args(&["--sample.interval=20ms", "--sample.cpu-budget=1"])
        .inside(&ns)
        .start();
    let churn = Churn::start(&ns, address, restless);
    let mut extremes = (f64::MAX, 0.0_f64);
    scrape_beside(&daemon, address, &churn, |seen, closed| {
        let (sockets, members) = (seen.sockets.unwrap(), MEMBERS as f64);
        extremes = (extremes.0.min(sockets), extremes.1.max(sockets));
        // The thread closes one member before it opens the next one.
        assert!(sockets >= members - 1.0, "{sockets} sockets");
        assert!(
            sockets <= members + closed as f64,
            "{sockets} sockets, {closed} closed just before"
        );
        assert_eq!(seen.drops, Some(0.0), "drops from before the first sight came back");
    });
    println!("churn: {extremes:?} sockets, {} closed", churn.closed());
    assert!(churn.closed() > 500, "{} closed", churn.closed());
    let restless = churn.stop();
    let finally = eventually("exactly the living sockets", TIMEOUT, || {
        let seen = daemon.scrape().at(address);
        (seen.sockets == Some(MEMBERS as f64)).then_some(seen)
    });
    let expected = (Some(4.0 * MEMBERS as f64), Some(0.0), Some(0.0));
    assert_eq!((finally.limit, finally.drops, finally.overflows), expected);
    drop((restless, resting));
}

#[test]
fn drops_under_churn_increase_and_never_exceed_the_sent_segments() {
    if !Netns::require_root() {
        return;
    }
    const SENT: u32 = 2000;
    let ns = Netns::new("churn-drops");
    let (address, restless, resting) = group(&ns);
    let daemon = Launch::new(BIN)
        .args(&["--sample.interval=20ms", "--sample.cpu-budget=1"])
        .inside(&ns)
        .start();
    let churn = Churn::start(&ns, address, restless);
    let scan =
        ns.spawn(move || stray_segments(address, Stray::Null, SENT, Duration::from_millis(2)));
    let mut last = 0.0;
    scrape_beside(&daemon, address, &churn, |seen, _| {
        let drops = seen.drops.unwrap();
        assert!(drops >= last, "{last} drops, then {drops}");
        assert!(drops <= f64::from(SENT), "{drops} drops of {SENT}");
        last = drops;
    });
    scan.join().unwrap();
    let restless = churn.stop();
    // The drops of a closed socket since its last sample are lost: these are only a few.
    let drops = eventually("the last drops", TIMEOUT, || {
        daemon.scrape().at(address).drops.filter(|drops| *drops >= 0.95 * f64::from(SENT))
    });
    println!("churn with drops: {drops} of {SENT}");
    assert!(drops <= f64::from(SENT), "{drops} drops of {SENT}");
    drop((restless, resting));
}
