//! The long run: at an interval of 10 ms, with listeners and namespaces that start and end, and two
//! scrapers, the memory, descriptors and threads of the daemon do not grow, and every missed tick
//! has a reason. `SOAK_SECONDS` sets the duration; the minimum is five minutes.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]
#![allow(clippy::print_stdout, reason = "the measured figures are for the reader of --nocapture")]

use std::collections::VecDeque;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use listenq_lab::client::fill;
use listenq_lab::listener::{Listen, Listener};
use listenq_lab::listenq::{Daemon, Launch};
use listenq_lab::metrics::Metrics;
use listenq_lab::netns::Netns;
use listenq_lab::rootfs::Rootfs;

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
const INTERVAL: Duration = Duration::from_millis(10);
/// After this time every name has been used, and the allocator has reached its size.
const WARM_UP: Duration = Duration::from_secs(60);
const LONGEST_WINDOW: Duration = Duration::from_secs(300);
/// The number of turns for which a listener stays open.
const LIVES: usize = 40;
const NAMESPACES: usize = 5;
const TURN: Duration = Duration::from_millis(250);
const SCRAPES: [Duration; 2] = [Duration::from_millis(300), Duration::from_secs(1)];
/// The number of descriptors of a namespace.
const DESCRIPTORS: usize = 9;
/// The bytes that the allocator may keep in addition.
const SLACK: u64 = 2 << 20;

/// The resources of the daemon at one moment.
#[derive(Debug, Clone, Copy)]
struct Look {
    at: Duration,
    resident: u64,
    /// Descriptors without those of the other namespaces.
    descriptors: usize,
    threads: usize,
    samples: f64,
    missed: f64,
    /// The time for which the sampler's thread waited for a CPU.
    waited: Duration,
    /// Samples that took half an interval or longer.
    slow: f64,
    cpu: Duration,
}

/// The listeners and namespaces that start and end.
struct Churn<'a> {
    own: &'a Netns,
    root: &'a Rootfs,
    listeners: VecDeque<Listener>,
    namespaces: VecDeque<(Netns, Listener)>,
    turns: usize,
}

fn value(scrape: &Metrics, name: &str, labels: &[(&str, &str)]) -> f64 {
    scrape.value(name, labels).unwrap_or_else(|| panic!("no {name}"))
}

/// The second field of `schedstat`, in nanoseconds.
fn waited(daemon: &Daemon) -> Duration {
    let threads = daemon.threads();
    let (task, ..) = threads.iter().find(|(_, name, _)| name == "sampler").unwrap();
    let text = fs::read_to_string(task.join("schedstat")).unwrap();
    Duration::from_nanos(text.split(' ').nth(1).unwrap().parse().unwrap())
}

// === impl Look ===

impl Look {
    fn now(daemon: &Daemon, at: Duration) -> Self {
        let scrape = daemon.scrape();
        let others = value(&scrape, "listenq_namespaces", &[("state", "sampled")]) as usize - 1;
        let durations = "listenq_sample_duration_seconds";
        let quick = value(&scrape, &format!("{durations}_bucket"), &[("le", "0.005")]);
        Self {
            at,
            resident: daemon.resident(),
            descriptors: daemon.descriptors().saturating_sub(DESCRIPTORS * others),
            threads: daemon.threads().len(),
            samples: value(&scrape, "listenq_samples_total", &[]),
            missed: value(&scrape, "listenq_samples_missed_total", &[]),
            waited: waited(daemon),
            slow: value(&scrape, &format!("{durations}_count"), &[]) - quick,
            cpu: daemon.cpu(),
        }
    }
}

// === impl Churn ===

impl Churn<'_> {
    /// Opens one listener and closes one, at ports in turn; replaces a namespace every fourth
    /// second.
    fn turn(&mut self) {
        let port = 20_000 + self.turns % (2 * LIVES);
        let listener = self.own.run(|| Listen::tcp(format!("127.0.0.1:{port}")).backlog(4).open());
        drop(self.own.run(|| fill(listener.target(), 8)));
        self.listeners.push_back(listener);
        if self.listeners.len() > LIVES {
            self.listeners.pop_front();
        }
        if self.turns.is_multiple_of(16) {
            self.replace_namespace((self.turns / 16) % NAMESPACES);
        }
        self.turns += 1;
    }

    /// Replaces the namespace at `place`. Several namespaces have the same name over time; each is
    /// a different namespace.
    fn replace_namespace(&mut self, place: usize) {
        let link = format!("run/netns/soak{place}");
        if self.namespaces.len() == NAMESPACES {
            let _ = fs::remove_file(self.root.path().join(&link));
            self.namespaces.pop_front();
        }
        let ns = Netns::new("soaked");
        let listener = ns.run(|| Listen::tcp("127.0.0.1:8080").backlog(4).open());
        drop(ns.run(|| fill(listener.target(), 12)));
        self.root.link(&link, ns.path().to_str().unwrap());
        self.namespaces.push_back((ns, listener));
    }
}

fn scrape_until(daemon: &Daemon, pause: Duration, stop: &AtomicBool) -> u32 {
    let (mut last, mut count) = (daemon.scrape(), 0);
    while !stop.load(Ordering::Relaxed) {
        sleep(pause);
        let scrape = daemon.scrape();
        scrape.assert_unique();
        // A namespace that is replaced by another one with the same name is a counter reset; the
        // daemon's own namespace never is.
        let [before, after] = [&last, &scrape].map(|scrape| scrape.of_netns("host"));
        assert_eq!(after.fallen_since(&before), [""; 0]);
        (last, count) = (scrape, count + 1);
    }
    count
}

fn watch(daemon: &Daemon, churn: &mut Churn<'_>, lasting: Duration) -> Vec<Look> {
    let (begin, mut looks, mut due) = (Instant::now(), Vec::new(), Duration::ZERO);
    while begin.elapsed() < lasting {
        churn.turn();
        let now = begin.elapsed();
        if now > TURN * 4 * looks.len() as u32 {
            looks.push(Look::now(daemon, now));
        }
        due += TURN;
        sleep(due.saturating_sub(begin.elapsed()));
    }
    looks
}

/// Prints one window and returns its maxima: memory, descriptors, threads.
fn most(name: &str, looks: &[&Look]) -> (u64, usize, usize) {
    let (first, last) = (looks[0], looks[looks.len() - 1]);
    let most = looks.iter().fold((0, 0, 0), |most: (u64, usize, usize), look| {
        (most.0.max(look.resident), most.1.max(look.descriptors), most.2.max(look.threads))
    });
    let seconds = (last.at - first.at).as_secs_f64();
    println!(
        "{name} ({:.0} to {:.0} s): {:.1} MiB, {} descriptors, {} threads; {:.1} samples/s, {} missed, {:.2} % of a core",
        first.at.as_secs_f64(),
        last.at.as_secs_f64(),
        most.0 as f64 / f64::from(1 << 20),
        most.1,
        most.2,
        (last.samples - first.samples) / seconds,
        last.missed - first.missed,
        100.0 * (last.cpu - first.cpu).as_secs_f64() / seconds,
    );
    most
}

/// Checks the reasons for missed ticks: a tick is missed if the previous one ended late, because
/// the thread got no CPU or the sample took long.
fn assert_explained(first: &Look, last: &Look) {
    let missed = last.missed - first.missed;
    let (samples, slow) = (last.samples - first.samples, last.slow - first.slow);
    let waited = last.waited - first.waited;
    println!(
        "missed: {missed} of {samples}; {slow} samples took 5 ms or longer, {waited:.1?} without a processor"
    );
    let explained = waited.as_secs_f64() / (INTERVAL.as_secs_f64() / 2.0) + 2.0 * slow;
    assert!(missed <= explained + 0.001 * samples, "{missed} missed, {explained} explained");
}

#[test]
fn resources_do_not_grow_and_missed_ticks_have_a_reason() {
    if !Netns::require_root() {
        return;
    }
    let seconds = std::env::var("SOAK_SECONDS").map_or(1200, |text| text.parse().unwrap());
    let lasting = Duration::from_secs(seconds);
    assert!(seconds >= 300, "a soak of {seconds} s proves nothing");
    let (own, root) = (Netns::new("soak"), Rootfs::new());
    // The daemon does not see namespaces of other programs.
    for name in ["self", "thread-self", "sys", "stat"] {
        root.link(&format!("proc/{name}"), &format!("/proc/{name}"));
    }
    root.link("proc/net", "self/net");
    let procfs = format!("--path.procfs={}", root.path().join("proc").display());
    root.file("run/netns/.keep", "");
    let args = [
        "--netns=all",
        "--sample.interval=10ms",
        "--sample.cpu-budget=1",
        "--discovery.interval=1s",
        "--listener.include=^(host|soak)",
        &root.flag(),
        &procfs,
    ];
    let daemon = Launch::new(BIN).args(&args).inside(&own).start();
    let (listeners, namespaces) = (VecDeque::new(), VecDeque::new());
    let mut churn = Churn { own: &own, root: &root, listeners, namespaces, turns: 0 };
    let stop = AtomicBool::new(false);
    let looks = thread::scope(|scope| {
        let scrapers = SCRAPES.map(|pause| {
            scope.spawn({
                let (daemon, stop) = (&daemon, &stop);
                move || scrape_until(daemon, pause, stop)
            })
        });
        let looks = watch(&daemon, &mut churn, lasting);
        stop.store(true, Ordering::Relaxed);
        println!("scrapes: {:?}, turns: {}", scrapers.map(|s| s.join().unwrap()), churn.turns);
        looks
    });
    let window = LONGEST_WINDOW.min((lasting - WARM_UP) / 3);
    let within = |from: Duration| -> Vec<&Look> {
        looks.iter().filter(|look| (from..from + window).contains(&look.at)).collect()
    };
    let first = most("first", &within(WARM_UP));
    let last = most("last", &within(lasting - window));
    let after = looks.iter().find(|look| look.at >= WARM_UP).unwrap();
    assert_explained(after, &looks[looks.len() - 1]);
    assert!(last.0 <= first.0 + SLACK, "memory grew");
    // The daemon may hold one namespace more or less at the moment of the reading, and one thread
    // enters namespaces.
    assert!(
        last.1 <= first.1 + DESCRIPTORS && last.2 <= first.2 + 1,
        "descriptors or threads grew"
    );
}
