//! Tests exact numbers under load: half a minute, or `FIRE_SECONDS`, of overload at twenty
//! listeners in five namespaces, while servers restart, members leave their groups, listeners close
//! for good and new listeners open. The clients count the refusals of each listener.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]
#![allow(clippy::print_stdout, reason = "the measured figures are for the reader of --nocapture")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use listenq_lab::hammer::{Load, Tally, hammer};
use listenq_lab::listener::{Listen, Listener};
use listenq_lab::listenq::{Daemon, Launch};
use listenq_lab::metrics::Metrics;
use listenq_lab::netns::Netns;
use listenq_lab::rootfs::Rootfs;
use listenq_lab::server::{Pace, Server};
use listenq_lab::wait::{TIMEOUT, eventually};

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
/// The CPU budget of samples. Code without optimization takes ten times as long.
const BUDGET: &str =
    if cfg!(debug_assertions) { "--sample.cpu-budget=0.2" } else { "--sample.cpu-budget=0.02" };
const SCRAPE: Duration = Duration::from_millis(200);
/// The interval at which something happens to one listener of each namespace.
const TURN: Duration = Duration::from_secs(5);
/// The minimum number of refusals for which a share is checked: 15 % of fewer refusals are only a
/// few.
const ENOUGH: f64 = 150.0;
const BACKLOG: i32 = 8;
const NAMES: [&str; 5] = ["one", "two", "three", "four", "five"];
/// Connections accepted per second at each listener, and arrivals per second: the four listeners of
/// a namespace have different shares.
const PACE: Pace = Pace::PerSecond(15.0);
const RATES: [f64; 4] = [30.0, 45.0, 60.0, 90.0];

/// What happens to a listener during the test.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    /// Nothing.
    Steady,
    /// Its server closes the socket and opens another one at the same address in every turn.
    Restarts,
    /// A reuseport group of three that loses a member in one turn and gets it back in the next.
    Group,
    /// Closes for good after half of the time; another listener opens at another address.
    Closes,
}

/// One address under load, with its servers and clients.
struct Target {
    fate: Fate,
    address: SocketAddr,
    servers: Vec<Server>,
    clients: Option<JoinHandle<Tally>>,
}

/// A namespace with its four targets, and the targets added later.
struct Front {
    ns: Netns,
    name: &'static str,
    targets: Vec<Target>,
}

// === impl Target ===

impl Target {
    fn open(ns: &Netns, fate: Fate) -> Self {
        let listen = Listen::tcp("127.0.0.1:0").backlog(BACKLOG);
        let listen = if fate == Fate::Group { listen.reuseport() } else { listen };
        let first = ns.run(|| listen.open());
        let address = first.addr();
        let mut listeners = vec![first];
        if fate == Fate::Group {
            listeners.extend((0..2).map(|_| again(ns, address, fate)));
        }
        Self { fate, address, servers: Server::start_each(listeners, PACE), clients: None }
    }

    /// Starts clients that leave before the kernel would retransmit their SYN: each client is
    /// refused at most once.
    fn attack(&mut self, ns: &Netns, rate: f64, lasting: Duration) {
        let (address, patience) = (self.address, Duration::from_millis(400));
        let rate = if self.fate == Fate::Group { 3.0 * rate } else { rate };
        let load = Load { rate, lasting, patience, at_once: 2000 };
        self.clients = Some(ns.spawn(move || hammer(address, load)));
    }

    fn turn(&mut self, ns: &Netns, nth: u64) {
        match self.fate {
            Fate::Restarts => {
                self.servers.drain(..).for_each(|server| drop(server.stop()));
                self.servers.push(Server::start(again(ns, self.address, self.fate), PACE));
            }
            Fate::Group if nth.is_multiple_of(2) => drop(self.servers.remove(0).stop()),
            Fate::Group => {
                self.servers.push(Server::start(again(ns, self.address, self.fate), PACE))
            }
            Fate::Steady | Fate::Closes => {}
        }
    }

    /// Accepts all waiting connections: no FIN or SYN is refused after this.
    fn calm(&mut self) {
        for server in std::mem::take(&mut self.servers) {
            self.servers.push(Server::start(server.stop(), Pace::Fast));
        }
    }

    /// The number of refused clients. On loopback the handshake is complete when `connect` returns.
    /// A full queue therefore refuses the SYN, and the client leaves before it would send the SYN
    /// again: one client that never connected is one overflow. Without a listener at the port,
    /// `connect` fails at once.
    fn refused(&mut self) -> f64 {
        let tally = self.clients.take().unwrap().join().unwrap();
        assert_eq!(tally.skipped, 0, "{tally}");
        tally.unconnected as f64
    }
}

fn again(ns: &Netns, address: SocketAddr, fate: Fate) -> Listener {
    let listen = Listen::tcp(address).backlog(BACKLOG);
    ns.run(|| if fate == Fate::Group { listen.reuseport() } else { listen }.open())
}

// === impl Front ===

impl Front {
    fn open(name: &'static str) -> Self {
        let ns = Netns::new(name);
        let fates = [Fate::Steady, Fate::Restarts, Fate::Group, Fate::Closes];
        let targets = fates.map(|fate| Target::open(&ns, fate)).into();
        Self { ns, name, targets }
    }

    fn attack(&mut self, turned: usize, whole: Duration) {
        for (n, target) in self.targets.iter_mut().enumerate() {
            let lasting = if target.fate == Fate::Closes { whole / 2 } else { whole };
            target.attack(&self.ns, RATES[(n + turned) % RATES.len()], lasting);
        }
    }

    fn turn(&mut self, nth: u64) {
        for target in &mut self.targets {
            target.turn(&self.ns, nth);
        }
    }

    /// Closes one listener for good, with a full queue and just after its clients left; opens
    /// another one and starts its clients.
    fn replace(&mut self, rate: f64, lasting: Duration) {
        let closing = self.targets.iter_mut().find(|target| target.fate == Fate::Closes).unwrap();
        closing.servers.clear();
        let mut target = Target::open(&self.ns, Fate::Steady);
        target.attack(&self.ns, rate, lasting);
        self.targets.push(target);
    }

    /// Waits until every overflow that `nstat` shows is accounted for.
    fn settled(&self, daemon: &Daemon) -> Metrics {
        eventually("the accounted overflows to be those of nstat", TIMEOUT, || {
            let nstat = self.ns.nstat()["TcpExtListenOverflows"] as f64;
            let scrape = daemon.scrape().of_netns(self.name);
            let sums = scrape.overflows();
            ([sums.kernel, sums.accounted()] == [nstat; 2]).then_some(scrape)
        })
    }

    /// Checks the attributed overflows against the refusals that the clients counted.
    fn assert_split(&mut self, scrape: &Metrics) {
        let (mut judged, mut sum) = (0, 0.0);
        for target in &mut self.targets {
            let (refused, attributed) =
                (target.refused(), scrape.at(target.address).overflows.unwrap());
            sum += refused;
            let off = (attributed - refused) / refused;
            println!(
                "{} {:?}: {refused} refused, {attributed} attributed, {:+.1} %",
                self.name,
                target.fate,
                100.0 * off
            );
            if refused >= ENOUGH {
                judged += 1;
                assert!(off.abs() <= 0.15, "{} {:?}", self.name, target.fate);
            }
        }
        assert!(judged >= 4, "only {judged} were under fire");
        // The kernel's count confirms the refusals that the clients counted.
        let kernel = scrape.overflows().kernel;
        assert!((sum - kernel).abs() <= 0.01 * kernel, "{sum} refused, {kernel} counted");
    }
}

/// Checks that no label set appears twice, and no counter decreases.
fn assert_laws(before: &Metrics, after: &Metrics) {
    after.assert_unique();
    // Namespaces of other tests come and go, and others take their names.
    let is_ours = |fallen: &String| {
        let mut ours = NAMES.iter().map(|name| format!("\"netns\": \"{name}\""));
        !fallen.contains("\"netns\": ") || ours.any(|name| fallen.contains(&name))
    };
    let fallen: Vec<_> = after.fallen_since(before).into_iter().filter(is_ours).collect();
    assert_eq!(fallen, [""; 0]);
}

#[test]
fn overflows_under_load_restarts_and_churn_equal_the_refusals_of_clients() {
    if !Netns::require_root() {
        return;
    }
    let seconds = std::env::var("FIRE_SECONDS").map_or(30, |text| text.parse().unwrap());
    let whole = Duration::from_secs(seconds);
    let (mut root, own) = (Rootfs::new(), Netns::new("own"));
    let mut fronts = NAMES.map(Front::open);
    for front in &fronts {
        root.mount_netns(&front.ns, front.name);
    }
    let ours = format!("--listener.include=^({})/", NAMES.join("|"));
    let flags = ["--netns=all", &ours, &root.flag(), BUDGET];
    let daemon = Launch::new(BIN).args(&flags).inside(&own).start();
    for (n, front) in fronts.iter_mut().enumerate() {
        front.attack(n, whole);
    }
    let (begin, mut last, mut scrapes, mut turns) = (Instant::now(), daemon.scrape(), 0, 0);
    let mut due = begin + SCRAPE;
    while begin.elapsed() < whole {
        sleep(due.saturating_duration_since(Instant::now()));
        due += SCRAPE;
        let scrape = daemon.scrape();
        assert_laws(&last, &scrape);
        (last, scrapes) = (scrape, scrapes + 1);
        if begin.elapsed() > TURN * (turns + 1) {
            turns += 1;
            fronts.iter_mut().for_each(|front| front.turn(turns.into()));
            if begin.elapsed() > whole / 2 + TURN && fronts[0].targets.len() == 4 {
                let left = whole - begin.elapsed();
                fronts
                    .iter_mut()
                    .zip(RATES.iter().cycle())
                    .for_each(|(front, rate)| front.replace(*rate, left));
            }
        }
    }
    println!("fire: {scrapes} scrapes, {turns} turns");
    assert!(scrapes > 5 * seconds / 2, "only {scrapes} scrapes");
    let clients = |front: &Front| {
        front.targets.iter().all(|target| target.clients.as_ref().unwrap().is_finished())
    };
    eventually("the last clients to leave", TIMEOUT, || fronts.iter().all(clients).then_some(()));
    fronts.iter_mut().flat_map(|front| &mut front.targets).for_each(Target::calm);
    let mut unattributed = BTreeMap::new();
    for front in &mut fronts {
        let scrape = front.settled(&daemon);
        let sums = scrape.overflows();
        println!("{}: {sums:?}", front.name);
        unattributed.insert(front.name, (sums.unattributed, sums.kernel));
        front.assert_split(&scrape);
    }
    assert_laws(&last, &daemon.scrape());
    println!("fire: unattributed {unattributed:?}");
    assert!(unattributed.values().all(|(none, all)| *none <= 0.02 * all), "{unattributed:?}");
}
