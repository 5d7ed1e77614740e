//! The attribution laboratory: finds which listener had each overflow, and compares with the
//! refusals counted from packets.
//!
//! The kernel counts overflows per namespace, and listenq attributes them to listeners. Each mix is
//! a separate namespace with two to six listeners. Some listeners overflow; others only have
//! harmless drops: deferred accept, stray segments, lost SYN-ACKs. `ATTRIBUTION_ROUNDS` repeats all
//! mixes with other rates and for longer; `tests/release.sh` sets it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]
#![allow(clippy::print_stdout, reason = "the measured figures are for the reader of --nocapture")]

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use listenq_lab::capture::{Capture, Refusals, Watched};
use listenq_lab::client::burst;
use listenq_lab::hammer::{Load, Manner, visit};
use listenq_lab::listener::{Listen, Listener};
use listenq_lab::listenq::{Daemon, Launch};
use listenq_lab::metrics::Metrics;
use listenq_lab::netns::Netns;
use listenq_lab::scan::{Stray, stray_segments};
use listenq_lab::server::{Pace, Server};
use listenq_lab::wait::eventually;

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
const TIMEOUT: Duration = Duration::from_secs(30);
/// The time for which a mix is under load.
const LASTING: Duration = Duration::from_secs(8);
/// The kernel retransmits a SYN-ACK after one second. After this time the packets show how each
/// handshake ended.
const AFTERMATH: Duration = Duration::from_millis(1500);
/// A client leaves before it would send its SYN again.
const LEAVES: Duration = Duration::from_millis(400);
/// The time for which a listener that gets more clients later is healthy.
const HEALTHY: Duration = Duration::from_secs(2);
const RESTARTS: Duration = Duration::from_millis(1500);
/// The minimum number of overflows with which a mix is checked.
const ENOUGH: f64 = 300.0;

/// Allowed errors, as shares: the overflows of an innocent listener, of all overflows; the error at
/// any other listener, of its own refusals; and the unattributed overflows, of all overflows.
const INNOCENT: f64 = 0.01;
const SPLIT: f64 = 0.05;
const UNATTRIBUTED: f64 = 0.02;
/// The allowed difference between the refusals in the packets and the kernel's count, as a share.
const TRUTH: f64 = 0.01;

/// How clients arrive.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Clients {
    /// Arrivals per second, and the longest stay of each client.
    Steady(f64, Duration),
    /// The number of clients at once, and the pause after them.
    Bursts(usize, Duration),
}

/// One listener of a mix, with its clients.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Port {
    backlog: i32,
    members: usize,
    deferred: bool,
    pace: Pace,
    clients: Clients,
    /// Stray segments per second.
    strays: f64,
    /// Whether every third SYN-ACK is lost.
    lossy: bool,
    restarts: bool,
    /// Whether only a tenth of its clients arrive in the first seconds, so that the listener is
    /// healthy then.
    grows: bool,
}

/// The listeners of one namespace.
struct Mix {
    name: &'static str,
    ports: Vec<Port>,
}

/// A running listener.
struct Running {
    port: Port,
    address: SocketAddr,
    servers: Vec<Server>,
}

/// The results for one listener.
struct Shown {
    port: Port,
    truth: Refusals,
    attributed: f64,
    peak: f64,
}

/// The results of a mix.
struct Outcome {
    name: &'static str,
    kernel: f64,
    unattributed: f64,
    accounted: f64,
    ports: Vec<Shown>,
}

/// A server that accepts everything at once.
fn healthy(backlog: i32, rate: f64) -> Port {
    Port {
        backlog,
        members: 1,
        deferred: false,
        pace: Pace::Fast,
        clients: Clients::Steady(rate, LEAVES),
        strays: 0.0,
        lossy: false,
        restarts: false,
        grows: false,
    }
}

/// A server that accepts `pace` connections per second while `rate` clients arrive per second.
fn overloaded(backlog: i32, pace: f64, rate: f64) -> Port {
    Port { pace: Pace::PerSecond(pace), ..healthy(backlog, rate) }
}

/// A server that accepts all waiting connections at intervals, with clients that arrive all at
/// once.
fn bursty(backlog: i32, size: usize, every: u64) -> Port {
    let clients = Clients::Bursts(size, Duration::from_millis(every));
    let pace = Pace::Bursts(Duration::from_millis(25));
    Port { pace, clients, ..healthy(backlog, 0.0) }
}

// === impl Port ===

impl Port {
    fn deferred(self) -> Self {
        Self { deferred: true, ..self }
    }

    fn scanned(self, strays: f64) -> Self {
        Self { strays, ..self }
    }

    fn lossy(self) -> Self {
        Self { lossy: true, ..self }
    }

    fn restarting(self) -> Self {
        Self { restarts: true, ..self }
    }

    fn growing(self) -> Self {
        Self { grows: true, ..self }
    }

    fn members(self, members: usize) -> Self {
        Self { members, ..self }
    }

    fn staying(self, millis: u64) -> Self {
        match self.clients {
            Clients::Steady(rate, _) => {
                Self { clients: Clients::Steady(rate, Duration::from_millis(millis)), ..self }
            }
            _ => self,
        }
    }

    /// The same listener with other rates.
    fn scaled(self, by: f64) -> Self {
        let clients = match self.clients {
            Clients::Steady(rate, stays) => Clients::Steady(rate * by, stays),
            Clients::Bursts(size, every) => Clients::Bursts(size, every.div_f64(by)),
        };
        Self { clients, strays: self.strays * by, ..self }
    }

    fn listen(self, ns: &Netns, address: impl ToString) -> Listener {
        let mut listen = Listen::tcp(address).backlog(self.backlog);
        if self.members > 1 {
            listen = listen.reuseport();
        }
        if self.deferred {
            listen = listen.defer_accept(5);
        }
        ns.run(|| listen.open())
    }

    fn open(self, ns: &Netns) -> Running {
        let first = self.listen(ns, "127.0.0.1:0");
        let address = first.addr();
        let others = (1..self.members).map(|_| self.listen(ns, address));
        let servers = Server::start_each(others.chain([first]), self.pace);
        Running { port: self, address, servers }
    }

    /// Whether the queue was never longer than half of its limit.
    fn is_innocent(self, peak: f64, truth: u64) -> bool {
        truth == 0 && 2.0 * peak <= f64::from(self.backlog) + 1.0
    }
}

// === impl Running ===

impl Running {
    /// Starts the clients and the scanner of this listener for `lasting`.
    fn attack(&self, ns: &Netns, lasting: Duration) -> Vec<JoinHandle<()>> {
        let (port, address) = (self.port, self.address);
        let mut threads = Vec::new();
        if port.strays > 0.0 {
            let spacing = Duration::from_secs_f64(1.0 / port.strays);
            let count = (lasting.as_secs_f64() * port.strays) as u32;
            threads.push(ns.spawn(move || stray_segments(address, Stray::Null, count, spacing)));
        }
        match port.clients {
            Clients::Steady(rate, patience) => {
                let manner = if port.deferred { Manner::saying("x") } else { Manner::default() };
                let healthy = if port.grows { HEALTHY } else { Duration::ZERO };
                let load = move |rate, lasting| {
                    let load = Load { rate, lasting, patience, at_once: 4000 };
                    drop(visit(address, load, &manner));
                };
                threads.push(ns.spawn(move || {
                    load(rate / 10.0, healthy);
                    load(rate, lasting - healthy);
                }));
            }
            Clients::Bursts(size, every) => {
                threads.push(ns.spawn(move || bursts(address, size, every, lasting)));
            }
        }
        threads
    }

    fn restart(&mut self, ns: &Netns) {
        self.servers.drain(..).for_each(|server| drop(server.stop()));
        self.servers.push(Server::start(self.port.listen(ns, self.address), self.port.pace));
    }

    /// Accepts all waiting connections: no client is refused after this.
    fn calm(&mut self) {
        for server in std::mem::take(&mut self.servers) {
            self.servers.push(Server::start(server.stop(), Pace::Fast));
        }
    }
}

fn bursts(address: SocketAddr, size: usize, every: Duration, lasting: Duration) {
    let begin = Instant::now();
    while begin.elapsed() < lasting {
        burst(address, size, Duration::from_millis(50));
        sleep(every);
    }
}

// === impl Mix ===

impl Mix {
    fn run(&self, scale: f64, lasting: Duration) -> Outcome {
        let ns = Netns::new(&self.name[..self.name.len().min(12)]);
        let scaled = self.ports.iter().map(|port| port.scaled(scale));
        let mut running: Vec<_> = scaled.map(|port| port.open(&ns)).collect();
        lose_syn_acks(&ns, &running);
        let watched =
            |one: &Running| Watched { port: one.address.port(), deferred: one.port.deferred };
        let watched: Vec<_> = running.iter().map(watched).collect();
        let daemon = Launch::new(BIN).inside(&ns).start();
        // The first dumps are a baseline.
        sleep(Duration::from_secs(1));
        let capture = Capture::start(&ns, &watched);
        self.attack(&ns, &mut running, lasting);
        running.iter_mut().for_each(Running::calm);
        sleep(AFTERMATH);
        let scrape = settled(&ns, &daemon);
        self.outcome(&scrape, &running, &capture.stop())
    }

    fn attack(&self, ns: &Netns, running: &mut [Running], lasting: Duration) {
        let threads: Vec<_> = running.iter().flat_map(|one| one.attack(ns, lasting)).collect();
        let mut restarted = Instant::now();
        while threads.iter().any(|thread| !thread.is_finished()) {
            if restarted.elapsed() >= RESTARTS {
                running.iter_mut().filter(|one| one.port.restarts).for_each(|one| one.restart(ns));
                restarted = Instant::now();
            }
            sleep(Duration::from_millis(20));
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    fn outcome(
        &self,
        scrape: &Metrics,
        running: &[Running],
        truth: &std::collections::HashMap<u16, Refusals>,
    ) -> Outcome {
        let shown = |one: &Running| {
            let seen = scrape.at(one.address);
            Shown {
                port: one.port,
                truth: truth.get(&one.address.port()).copied().unwrap_or_default(),
                attributed: seen.overflows.unwrap(),
                peak: seen.peak_length.unwrap(),
            }
        };
        let overflows = scrape.overflows();
        Outcome {
            name: self.name,
            kernel: overflows.kernel,
            unattributed: overflows.unattributed,
            accounted: overflows.accounted(),
            ports: running.iter().map(shown).collect(),
        }
    }
}

/// Drops every third SYN-ACK that the lossy listeners send.
fn lose_syn_acks(ns: &Netns, running: &[Running]) {
    let mut rules = String::from("table inet lab { chain in { type filter hook input priority 0;");
    for one in running.iter().filter(|one| one.port.lossy) {
        let port = one.address.port();
        write!(
            rules,
            " tcp sport {port} tcp flags & (syn|ack) == (syn|ack) numgen inc mod 3 == 0 drop;"
        )
        .unwrap();
    }
    if running.iter().any(|one| one.port.lossy) {
        let done = ns.command("nft").arg(format!("{rules} }}; }}")).output().unwrap();
        assert!(
            done.status.success(),
            "nft (package nftables): {}",
            String::from_utf8_lossy(&done.stderr)
        );
    }
}

/// Waits until every overflow that `nstat` shows is accounted for.
#[track_caller]
fn settled(ns: &Netns, daemon: &Daemon) -> Metrics {
    eventually("the accounted overflows to be those of nstat", TIMEOUT, || {
        let nstat = ns.nstat()["TcpExtListenOverflows"] as f64;
        let scrape = daemon.scrape();
        let overflows = scrape.overflows();
        let still = ns.nstat()["TcpExtListenOverflows"] as f64 == nstat;
        (still && [overflows.kernel, overflows.accounted()] == [nstat; 2]).then_some(scrape)
    })
}

// === impl Outcome ===

impl Outcome {
    /// The errors of the result, in sentences.
    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut check = |holds: bool, says: String| {
            if !holds {
                faults.push(format!("{}: {says}", self.name));
            }
        };
        let truth: u64 = self.ports.iter().map(|one| one.truth.all()).sum();
        check(self.kernel >= ENOUGH, format!("only {} overflows", self.kernel));
        check(
            (truth as f64 - self.kernel).abs() <= TRUTH * self.kernel,
            format!("the wire shows {truth} refusals, the kernel counted {}", self.kernel),
        );
        check(self.accounted == self.kernel, format!("{} accounted for", self.accounted));
        check(
            self.unattributed <= UNATTRIBUTED * self.kernel,
            format!("{} of {} unattributed", self.unattributed, self.kernel),
        );
        for (nth, one) in self.ports.iter().enumerate() {
            let (truth, off) = (one.truth.all(), one.attributed - one.truth.all() as f64);
            let is_right = match one.port.is_innocent(one.peak, truth) {
                true => one.attributed <= INNOCENT * self.kernel,
                false => off.abs() <= self.tolerance(truth),
            };
            check(is_right, format!("listener {nth}: {} of {truth}", one.attributed));
        }
        faults
    }

    /// The allowed error: a twentieth of the listener's refusals, and at least a hundredth of all
    /// overflows.
    fn tolerance(&self, truth: u64) -> f64 {
        (SPLIT * truth as f64).max(INNOCENT * self.kernel)
    }

    fn row(&self) -> String {
        let mut row =
            format!("{:<22} kernel {:>5} none {:>3}", self.name, self.kernel, self.unattributed);
        for one in &self.ports {
            let Refusals { at_syn, at_ack } = one.truth;
            let kind =
                if one.port.is_innocent(one.peak, one.truth.all()) { "innocent" } else { "" };
            write!(row, " | {}/{}+{at_ack} peak {} {kind}", one.attributed, at_syn, one.peak)
                .unwrap();
        }
        row
    }
}

fn mixes() -> Vec<Mix> {
    let mix = |name, ports: &[Port]| Mix { name, ports: ports.to_vec() };
    let deferred = || healthy(511, 400.0).deferred();
    let steady = || overloaded(8, 30.0, 200.0);
    vec![
        mix("deferred", &[deferred(), overloaded(8, 30.0, 150.0)]),
        mix("scanned", &[healthy(128, 20.0).scanned(200.0), steady()]),
        mix("lossy", &[healthy(511, 100.0).lossy().staying(1500), steady()]),
        mix("equal", &[steady(), overloaded(16, 30.0, 200.0)]),
        mix("unequal", &[overloaded(8, 30.0, 50.0), overloaded(8, 30.0, 400.0)]),
        mix("bursty", &[bursty(8, 40, 250), deferred()]),
        mix(
            "bursty-beside-full",
            &[bursty(8, 60, 400), steady(), healthy(128, 50.0).scanned(100.0)],
        ),
        mix("restarting", &[steady().restarting(), deferred()]),
        mix("group", &[overloaded(4, 15.0, 300.0).members(4), deferred(), deferred()]),
        mix(
            "tiny-and-huge",
            &[
                overloaded(0, 20.0, 100.0),
                overloaded(1, 20.0, 100.0),
                healthy(4096, 300.0).deferred(),
            ],
        ),
        mix(
            "huge-full",
            &[Port { pace: Pace::Never, ..healthy(300, 200.0) }, overloaded(4, 30.0, 150.0)],
        ),
        mix(
            "six",
            &[
                steady(),
                overloaded(32, 30.0, 150.0),
                healthy(511, 200.0).deferred(),
                healthy(128, 20.0).scanned(100.0),
                healthy(64, 50.0),
                healthy(511, 50.0).lossy().staying(1500),
            ],
        ),
        mix("deferred-full", &[overloaded(8, 40.0, 200.0).deferred().growing(), steady()]),
        mix("scanned-full", &[steady().scanned(100.0).growing(), steady().growing()]),
        mix("retrying", &[steady().staying(4000), overloaded(8, 30.0, 100.0).staying(4000)]),
        mix("alone", &[overloaded(16, 30.0, 200.0).deferred()]),
    ]
}

/// The `nth` factor between 0.6 and 1.4.
fn factor(nth: usize) -> f64 {
    if nth == 0 { 1.0 } else { 0.6 + 0.8 * ((nth as f64 * 0.618_034) % 1.0) }
}

#[test]
fn overflows_are_attributed_to_the_listeners_that_had_them() {
    if !Netns::require_root() {
        return;
    }
    let rounds = std::env::var("ATTRIBUTION_ROUNDS").map_or(1, |rounds| rounds.parse().unwrap());
    let only = std::env::var("ATTRIBUTION_MIX").unwrap_or_default();
    let mut faults = Vec::new();
    for round in 0..rounds {
        let lasting = if round == 0 { LASTING } else { LASTING * 2 };
        let wanted: Vec<Mix> = mixes().into_iter().filter(|mix| mix.name.contains(&only)).collect();
        for side_by_side in wanted.chunks(8) {
            faults.extend(run_all(side_by_side, factor(round), lasting));
        }
    }
    assert_eq!(faults, [""; 0]);
}

fn run_all(mixes: &[Mix], scale: f64, lasting: Duration) -> Vec<String> {
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let run = |mix| {
            scope.spawn(move || {
                let outcome = Mix::run(mix, scale, lasting);
                println!("{}", outcome.row());
                outcome
            })
        };
        let threads: Vec<_> = mixes.iter().map(run).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let again = |(mix, outcome): (&Mix, &Outcome)| match outcome.faults() {
        faults if faults.is_empty() => faults,
        // Mixes side by side take the processor from each other. A wrong rule is wrong alone too.
        faults => {
            println!("again, alone: {faults:?}");
            let outcome = Mix::run(mix, scale, lasting);
            println!("{}", outcome.row());
            outcome.faults()
        }
    };
    mixes.iter().zip(&outcomes).flat_map(again).collect()
}
