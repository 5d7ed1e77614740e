//! Tests the recommended limit: six servers receive bursts that exceed their limits. With the limit
//! that `explain` recommends the same bursts cause no overflow, and with half of that limit they
//! do.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]
#![allow(clippy::print_stdout, reason = "the measured figures are for the reader of --nocapture")]

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use listenq_lab::client::burst;
use listenq_lab::hammer::{Load, Manner, visit};
use listenq_lab::listener::Listen;
use listenq_lab::listenq::{Daemon, run};
use listenq_lab::netns::Netns;
use listenq_lab::server::{Pace, Server};
use listenq_lab::wait::{TIMEOUT, eventually};

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
const SECOND: Duration = Duration::from_secs(1);
/// The time for which clients arrive before `explain` runs.
const OBSERVED: Duration = Duration::from_secs(15);
/// The time for which clients arrive at each new limit.
const TRIED: Duration = Duration::from_secs(8);

/// A limit counts as wrong only if each of this number of measurements fails.
const TRIES: u32 = 3;

/// A server and the bursts that it receives.
struct Bursty {
    name: &'static str,
    /// The first backlog of the server.
    backlog: i32,
    /// The size of each burst.
    clients: usize,
    clients_are: Clients,
    /// The time between two bursts.
    pause: Duration,
    /// Whether the server uses `TCP_DEFER_ACCEPT`.
    is_deferred: bool,
}

/// The behaviour of the clients of a burst.
#[derive(Clone, Copy)]
enum Clients {
    /// The clients close after this time.
    Silent(Duration),
    /// The clients send a request at once and wait for the answer.
    Asking,
}

const ALL: [Bursty; 6] = [
    Bursty::new("forty", 5, 40, Clients::Silent(Duration::from_millis(250)), SECOND),
    // The kernel repeats the SYN of a refused client after one second.
    Bursty::new("retrying", 32, 150, Clients::Silent(Duration::from_millis(2_500)), SECOND),
    Bursty::new(
        "small",
        4,
        12,
        Clients::Silent(Duration::from_millis(100)),
        Duration::from_millis(1_250),
    ),
    Bursty::new("large", 128, 300, Clients::Silent(Duration::from_millis(250)), SECOND),
    // The kernel also refuses the request of a client that was refused at the last ACK.
    Bursty::new("asking", 8, 45, Clients::Asking, SECOND),
    Bursty { is_deferred: true, ..Bursty::new("deferred", 16, 90, Clients::Asking, SECOND) },
];

// === impl Bursty ===

impl Bursty {
    const fn new(
        name: &'static str,
        backlog: i32,
        clients: usize,
        clients_are: Clients,
        pause: Duration,
    ) -> Self {
        Self { name, backlog, clients, clients_are, pause, is_deferred: false }
    }

    /// Measures the recommended limit, and returns the error, if any. On a busy machine samples are
    /// late and two bursts look like one, so a failed measurement is repeated.
    fn play(&self) -> Option<String> {
        let wrong: Option<Vec<String>> = (0..TRIES).map(|_| self.measure()).collect();
        wrong.map(|wrong| wrong.join(", "))
    }

    fn measure(&self) -> Option<String> {
        let ns = Netns::new(self.name);
        let daemon = Daemon::start(Some(&ns), BIN.as_ref(), &[]);
        let at_first =
            self.overflows(&ns, self.backlog, OBSERVED, || self.recommended(&ns, &daemon));
        let limit = at_first.1;
        let at_limit = self.overflows(&ns, limit, TRIED, || ()).0;
        let at_half = self.overflows(&ns, limit / 2, TRIED, || ()).0;
        println!(
            "{:<9} bursts of {:>3}: limit {:>3}: {:>5} overflows; {limit:>3}: {at_limit}; {:>3}: {at_half}",
            self.name,
            self.clients,
            self.backlog,
            at_first.0,
            limit / 2,
        );
        let is_right = at_first.0 > 0 && at_limit == 0 && at_half > 0;
        (!is_right).then(|| format!("{}: {limit}", self.name))
    }

    /// Sends bursts to a new server with this backlog. Returns the overflows that the kernel
    /// counted, and the result of `question` at the end.
    fn overflows<T>(
        &self,
        ns: &Netns,
        backlog: i32,
        lasting: Duration,
        question: impl FnOnce() -> T,
    ) -> (u64, T) {
        let overflows = || ns.nstat()["TcpExtListenOverflows"];
        let before = overflows();
        let seconds = if self.is_deferred { 5 } else { 0 };
        let listen = Listen::tcp("127.0.0.1:0").backlog(backlog);
        let listen = if self.is_deferred { listen.defer_accept(seconds) } else { listen };
        let listener = ns.run(|| listen.open());
        let target = listener.target();
        let server = Server::start(listener, Pace::Bursts(Duration::from_millis(50)));
        // listenq may see a new listener one second late, and then its first two bursts look like
        // one.
        thread::sleep(2 * SECOND);
        let began = Instant::now();
        while began.elapsed() < lasting {
            ns.run(|| self.come(target));
            thread::sleep(self.pause);
        }
        let answer = question();
        drop(server);
        (overflows() - before, answer)
    }

    fn come(&self, target: SocketAddr) {
        match self.clients_are {
            Clients::Silent(hold) => _ = burst(target, self.clients, hold),
            Clients::Asking => {
                let load = Load {
                    rate: self.clients as f64 * 100.0,
                    lasting: SECOND / 100,
                    patience: SECOND,
                    at_once: self.clients,
                };
                let _ = visit(target, load, &Manner::saying("hello"));
            }
        }
    }

    /// The limit that `explain` recommends.
    fn recommended(&self, ns: &Netns, daemon: &Daemon) -> i32 {
        let url = format!("--url=http://{}", daemon.address());
        eventually(&format!("a recommended limit for {}", self.name), TIMEOUT, || {
            let text = run(Some(ns), BIN.as_ref(), &["explain", &url]).stdout;
            let (_, after) = text.split_once("Raise the limit to ")?;
            let number: String =
                after.chars().take_while(|c| c.is_ascii_digit() || *c == ',').collect();
            number.replace(',', "").parse().ok()
        })
    }
}

#[test]
fn the_recommended_limit_is_enough_and_half_of_it_is_not() {
    if !Netns::require_root() {
        return;
    }
    let wrong: Vec<String> = thread::scope(|scope| {
        let scenes: Vec<_> = ALL.iter().map(|bursty| scope.spawn(|| bursty.play())).collect();
        scenes.into_iter().filter_map(|scene| scene.join().unwrap()).collect()
    });
    assert!(wrong.is_empty(), "wrong recommended limits: {wrong:?}");
}
