//! The cost of a whole tick compared with the cost of the kernel alone, measured in one run:
//!
//! * samples of a namespace with 10, 100, 1,000 and 10,000 listeners, against a bare loop that
//!   sends the same request, receives the answer and counts its bytes;
//! * the same for 1, 4 and 8 listeners, which are queried one by one;
//! * the same for 1, 50 and 200 namespaces with 3 listeners each;
//! * the cost of a thread that only wakes up at the same interval.
//!
//! One client is connected in each namespace, because without a connection listenq reads only the
//! number of sockets. The last row of few listeners and the last row of namespaces are without a
//! client.
//!
//! Run `cargo bench --bench live` as root. Tick and bare loop alternate, so that a disturbance of
//! the machine affects both. Times are medians, and only their ratio is a measure of listenq.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a panic is the report of a bench, and its table goes to a person"
)]

use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use listenq::kernel::inet_diag::both_families;
use listenq::sampler::{Config, Sampler};
use listenq::state;
use listenq_lab::listener::{Listen, Listener};
use listenq_lab::netns::Netns;
use listenq_lab::rootfs::Rootfs;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};
use rustix::time::{ClockId, clock_gettime};

const SIZES: [usize; 4] = [10, 100, 1_000, 10_000];
/// The numbers of listeners that are queried one by one.
const FEW: [usize; 3] = [1, 4, 8];
const NAMESPACES: [usize; 3] = [1, 50, 200];
/// The time for which a thread that does nothing is measured.
const WATCHED: Duration = Duration::from_secs(10);
const INTERVALS: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(10)];
const LISTENERS_EACH: usize = 3;
/// The interval is a mean over 128 samples: it is stable after this time.
const SETTLES: Duration = Duration::from_secs(30);
/// The time for which each size is measured.
const BUDGET: Duration = Duration::from_secs(4);
const MOST_ROUNDS: usize = 4_000;
/// The number of ticks after which buffers, state and views no longer grow.
const WARM_UP: usize = 10;
/// The target ratio at 1,000 and more listeners.
const AIM: f64 = 1.15;
const NLMSG_DONE: u16 = 3;

/// Sends the request and counts the bytes of the answer, with the same buffer as the daemon and no
/// other work.
struct Bare {
    socket: Socket,
    buffer: Vec<u8>,
    request: Vec<u8>,
}

/// Both ends of an accepted connection, whose listener is closed.
type Connection = (TcpStream, TcpStream);

/// The cost of one call.
#[derive(Clone, Copy)]
struct Cost {
    wall: Duration,
    cpu: Duration,
}

/// The costs of two alternating kinds of calls.
#[derive(Default)]
struct Duel {
    tick: Vec<Cost>,
    bare: Vec<Cost>,
}

fn main() {
    // `cargo test --all-targets` also starts benchmarks, but without this argument.
    if !std::env::args().any(|argument| argument == "--bench") {
        return println!("SKIPPED: only `cargo bench --bench live` measures");
    }
    if !Netns::require_root() {
        return println!("SKIPPED: nothing was measured");
    }
    println!("medians; a tick over a bare \"send request, receive and count bytes\" loop");
    println!(" listeners  rounds   tick wall   bare wall  ratio    tick cpu    bare cpu  ratio");
    for size in SIZES {
        measure(size, true);
    }
    println!("aim: a ratio of at most {AIM} at 1,000 and 10,000 listeners");
    println!();
    println!("few listeners, the last without a connection; aim: cheaper than a dump");
    for size in FEW {
        measure(size, true);
    }
    measure(SIZES[0], false);
    println!();
    println!(
        "namespaces, {LISTENERS_EACH} listeners each; the interval achieved with the default budget"
    );
    println!(
        "namespaces  rounds   tick wall   bare wall  ratio    tick cpu    bare cpu  ratio  interval"
    );
    for count in NAMESPACES {
        measure_namespaces(count, true);
    }
    measure_namespaces(NAMESPACES[2], false);
    println!(
        "the last without a connection; aim: 200 namespaces at 200 ms or better, without at 100 ms"
    );
    println!();
    println!("at rest, what it takes a thread to wake up so often and do nothing");
    for interval in INTERVALS {
        println!("{:>10}  {:.3} % of a core", format!("{interval:?}"), 100.0 * idle(interval));
    }
}

/// The share of a core that this thread uses if it only sleeps.
fn idle(interval: Duration) -> f64 {
    let (begin, before) = (Instant::now(), thread_cpu());
    while begin.elapsed() < WATCHED {
        thread::sleep(interval);
    }
    (thread_cpu() - before).as_secs_f64() / begin.elapsed().as_secs_f64()
}

fn measure_namespaces(count: usize, are_connected: bool) {
    let namespaces: Vec<Netns> = (0..count).map(|_| Netns::new("live")).collect();
    let listeners: Vec<_> =
        namespaces.iter().map(|netns| netns.run(|| open(LISTENERS_EACH))).collect();
    let connections = namespaces.iter().filter(|_| are_connected).map(|netns| netns.run(connect));
    let connections: Vec<Connection> = connections.collect();
    let bare = namespaces.iter().map(|netns| netns.run(Bare::open)).collect();
    let config = Config { state: every_listener(), ..Config::default() };
    let mut sampler = Sampler::new(&config).unwrap();
    sampler.find_namespaces();
    let duel = fight(sampler, bare);
    println!("{}  {:>8.0?}", row(count, &duel), achieved(&config));
    drop((listeners, connections, namespaces));
}

fn measure(size: usize, is_connected: bool) {
    let netns = Netns::new("live");
    netns.run(|| {
        let (listeners, connection) = (open(size), is_connected.then(connect));
        let procfs = procfs_here();
        let duel = fight(sampler(&procfs), vec![Bare::open()]);
        drop((listeners, connection));
        println!("{}", row(size, &duel));
    });
}

/// The interval that the sampler reaches with the default budget.
fn achieved(config: &Config) -> Duration {
    let sampler = Sampler::new(config).unwrap();
    let (reader, (stop, stopped)) = (sampler.reader(), mpsc::channel());
    let running = thread::spawn(move || sampler.run(&stopped));
    thread::sleep(SETTLES);
    drop(stop);
    running.join().unwrap();
    reader.read().unwrap().view.stats.interval.unwrap()
}

fn row(size: usize, duel: &Duel) -> String {
    let [tick_wall, bare_wall] =
        [&duel.tick, &duel.bare].map(|costs| median(costs, |cost| cost.wall));
    let [tick_cpu, bare_cpu] = [&duel.tick, &duel.bare].map(|costs| median(costs, |cost| cost.cpu));
    format!(
        "{size:>10}  {:>6}  {tick_wall:>7.1} µs  {bare_wall:>7.1} µs  {:>5.2}  {tick_cpu:>7.1} µs  {bare_cpu:>7.1} µs  {:>5.2}",
        duel.tick.len(),
        tick_wall / bare_wall,
        tick_cpu / bare_cpu,
    )
}

/// Opens half of the listeners over IPv4 and half over IPv6, each at a different port.
fn open(size: usize) -> Vec<Listener> {
    let ports = 10_000..10_000 + size;
    let address = |port: usize| match port % 2 {
        0 => format!("127.0.0.1:{port}"),
        _ => format!("[::1]:{port}"),
    };
    ports.map(|port| Listen::tcp(address(port)).backlog(511).open()).collect()
}

fn connect() -> Connection {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

fn fight(mut sampler: Sampler, mut bare: Vec<Bare>) -> Duel {
    let mut duel = Duel::default();
    let mut count = || bare.iter_mut().map(Bare::count).sum::<usize>();
    for _ in 0..WARM_UP {
        sampler.sample();
        count();
    }
    let start = Instant::now();
    while start.elapsed() < BUDGET && duel.tick.len() < MOST_ROUNDS {
        duel.tick.push(cost(|| sampler.sample()));
        duel.bare.push(cost(|| assert!(count() > 0)));
    }
    duel
}

/// A procfs whose `net` belongs to the calling thread: `/proc/net` belongs to the main thread.
fn procfs_here() -> Rootfs {
    let procfs = Rootfs::new();
    for (place, target) in
        [("net", "/proc/thread-self/net"), ("self", "/proc/self"), ("sys", "/proc/sys")]
    {
        procfs.link(place, target);
    }
    procfs
}

/// A sampler of the calling thread's namespace.
fn sampler(procfs: &Rootfs) -> Sampler {
    let procfs = procfs.path().into();
    let state = every_listener();
    let config = Config { procfs, all_namespaces: false, state, ..Config::default() };
    Sampler::new(&config).unwrap()
}

fn cost(work: impl FnOnce()) -> Cost {
    let (wall, cpu) = (Instant::now(), thread_cpu());
    work();
    Cost { cpu: thread_cpu() - cpu, wall: wall.elapsed() }
}

/// The median in microseconds.
fn median(costs: &[Cost], kind: impl Fn(&Cost) -> Duration) -> f64 {
    let mut durations: Vec<Duration> = costs.iter().map(kind).collect();
    durations.sort_unstable();
    durations[durations.len() / 2].as_secs_f64() * 1e6
}

fn thread_cpu() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap()
}

// === impl Bare ===

impl Bare {
    fn open() -> Self {
        let socket = Socket::new(NETLINK_SOCK_DIAG).unwrap();
        socket.connect(&SocketAddr::new(0, 0)).unwrap();
        Self { socket, buffer: vec![0; 32 * 1024], request: both_families() }
    }

    fn count(&mut self) -> usize {
        self.socket.send(&self.request, 0).unwrap();
        let mut bytes = 0;
        loop {
            let length = self.socket.recv(&mut self.buffer.as_mut_slice(), 0).unwrap();
            bytes += length;
            if u16::from_ne_bytes([self.buffer[4], self.buffer[5]]) == NLMSG_DONE {
                return bytes;
            }
        }
    }
}

fn every_listener() -> state::Config {
    state::Config { max_listeners: usize::MAX, ..state::Config::default() }
}
