//! The scenes. Each makes one kind of trouble, or one kind of healthy load, in a namespace of its
//! own. All scenes run at the same time.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use listenq_lab::client::{burst, fill};
use listenq_lab::flood::Flood;
use listenq_lab::hammer::{Load, Manner, Outcome, Target, visit};
use listenq_lab::listener::{Listen, Listener};
use listenq_lab::netns::Netns;
use listenq_lab::process::ServerProcess;
use listenq_lab::scan::{Stray, stray_segments};
use listenq_lab::server::{Pace, Server, Service};
use listenq_lab::unix::{Kind, UnixListener};
use listenq_lab::wait::within;
use listenq_lab::web::{Pool, Web};

const SECOND: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(50);
/// How long a scene is healthy at first: a diagnosis needs a listener that was watched for 10 s.
pub(crate) const CALM: Duration = Duration::from_secs(12);

pub(crate) const NO_CPU_CGROUP: &str = "no version 1 cgroup controller cpu here";

/// The name of a scene, and the function that runs the scene.
pub(crate) type Doings = (&'static str, fn(&Scene));

/// Every scene.
pub(crate) const ALL: [Doings; 21] = [
    ("idle", idle),
    ("busy", busy),
    ("port-scan", port_scan),
    ("deferred-half-closing", deferred_half_closing),
    ("restarting", restarting),
    ("slow-start", slow_start),
    ("single-client", single_client),
    ("burst", one_burst),
    ("born-overflowing", born_overflowing),
    ("short-queue", short_queue),
    ("beside-deferred", beside_deferred),
    ("crash-loop", crash_loop),
    ("slow-php-fpm", slow_php_fpm),
    ("cpu-throttled", cpu_throttled),
    ("stopped", stopped),
    ("stopped-unix", stopped_unix),
    ("slow-unix", slow_unix),
    ("giving-up", giving_up),
    ("reuseport-member", reuseport_member),
    ("syn-flood", syn_flood),
    ("somaxconn-raised", somaxconn_raised),
];

/// A scene that runs.
pub(crate) struct Scene {
    name: &'static str,
    end: Instant,
    played: Mutex<Played>,
}

/// The result of a scene.
#[derive(Clone, Copy)]
pub(crate) struct Played {
    pub(crate) began: Instant,
    /// The port of a healthy listener beside the one in trouble.
    pub(crate) healthy: Option<u16>,
    /// Why this machine cannot run the scene.
    pub(crate) skipped: Option<&'static str>,
}

// === impl Played ===

impl Played {
    pub(crate) fn since(began: Instant) -> Self {
        Self { began, healthy: None, skipped: None }
    }
}

// === impl Scene ===

impl Scene {
    pub(crate) fn until(end: Instant, name: &'static str) -> Self {
        Self { name, end, played: Mutex::new(Played::since(Instant::now())) }
    }

    pub(crate) fn played(&self) -> Played {
        *self.played.lock().unwrap()
    }

    fn netns(&self) -> Netns {
        Netns::new(self.name)
    }

    /// Records that the trouble begins now.
    fn begin(&self) {
        self.played.lock().unwrap().began = Instant::now();
    }

    fn left(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }

    fn wait(&self) {
        thread::sleep(self.left());
    }

    /// Repeats `work` until the end, with pauses of `gap`.
    fn repeat(&self, gap: Duration, mut work: impl FnMut()) {
        while self.left() > Duration::ZERO {
            work();
            thread::sleep(gap.min(self.left()));
        }
    }

    /// Connects one client per `gap`; no client leaves before the end.
    fn queue_up(&self, ns: &Netns, target: SocketAddr, gap: Duration) {
        let mut clients = Vec::new();
        self.repeat(gap, || clients.extend(ns.run(|| fill(target, 1))));
    }

    /// Connects `rate` clients per second until the end; the last ones stay for up to `patience`.
    fn visit(
        &self,
        ns: &Netns,
        to: impl Into<Target>,
        rate: f64,
        patience: Duration,
        manner: &Manner,
    ) -> Outcome {
        let load = Load { rate, lasting: self.left(), patience, at_once: 4000 };
        let (to, outcome) = (to.into(), |to: Target| visit(to, load, manner));
        ns.run(|| outcome(to))
    }
}

fn listen(ns: &Netns, backlog: i32) -> Listener {
    ns.run(|| Listen::tcp("127.0.0.1:0").backlog(backlog).open())
}

/// Starts a server; returns the server and its address.
fn serve(ns: &Netns, backlog: i32, pace: Pace) -> (Server, SocketAddr) {
    let listener = listen(ns, backlog);
    let target = listener.target();
    (Server::start(listener, pace), target)
}

fn idle(scene: &Scene) {
    let ns = scene.netns();
    let _server = serve(&ns, 128, Pace::Fast);
    scene.wait();
}

/// A server at 80 % of its capacity. The queue has room for the seconds in which a busy machine
/// does not run the server.
fn busy(scene: &Scene) {
    let ns = scene.netns();
    let (_server, target) = serve(&ns, 1024, Pace::PerSecond(100.0));
    let outcome = scene.visit(&ns, target, 80.0, 10 * SECOND, &Manner::default());
    assert!(outcome.tally.served > outcome.tally.started * 9 / 10, "{outcome:?}");
}

fn port_scan(scene: &Scene) {
    let ns = scene.netns();
    let (_server, target) = serve(&ns, 128, Pace::Fast);
    scene.repeat(SECOND, || {
        for kind in [Stray::Null, Stray::SynFin, Stray::Rst] {
            ns.run(|| stray_segments(target, kind, 20, Duration::ZERO));
        }
        ns.run(|| drop(fill(target, 3)));
    });
}

fn deferred_half_closing(scene: &Scene) {
    let ns = scene.netns();
    let deferred = ns.run(|| Listen::tcp("127.0.0.1:0").defer_accept(5).open());
    let (plain, answer) = (listen(&ns, 128), || Service::Answer(b"ok\n".to_vec()));
    let (plain_at, deferred_at) = (plain.target(), deferred.target());
    let _servers = [plain, deferred].map(|at| Server::start_serving(at, Pace::Fast, answer()));
    let half_closing = Manner::saying("a").half_closing();
    thread::scope(|scope| {
        scope.spawn(|| scene.visit(&ns, plain_at, 30.0, SECOND, &half_closing));
        scope.spawn(|| scene.visit(&ns, deferred_at, 30.0, SECOND, &Manner::saying("b")));
    });
}

fn restarting(scene: &Scene) {
    let ns = scene.netns();
    let (server, target) = serve(&ns, 128, Pace::Fast);
    let mut server = Some(server);
    thread::scope(|scope| {
        scope.spawn(|| scene.visit(&ns, target, 30.0, SECOND, &Manner::default()));
        scene.repeat(20 * SECOND, || {
            drop(server.take());
            thread::sleep(SECOND / 2);
            let listener = ns.run(|| Listen::tcp(target).open());
            server = Some(Server::start(listener, Pace::Fast));
        });
    });
}

/// A server that listens long before it accepts, while clients connect: it is not ready yet.
fn slow_start(scene: &Scene) {
    let ns = scene.netns();
    let listener = listen(&ns, 128);
    let target = listener.target();
    let few = Load { rate: 1.0, lasting: 6 * CALM, patience: 8 * CALM, at_once: 100 };
    thread::scope(|scope| {
        let clients = scope.spawn(|| ns.run(|| visit(target, few, &Manner::default())).tally);
        thread::sleep(5 * CALM);
        let _server = Server::start(listener, Pace::Fast);
        let tally = clients.join().unwrap();
        assert_eq!(tally.served, tally.started, "{tally:?}");
        scene.wait();
    });
}

/// A server that serves one client for 40 s while the next client waits.
fn single_client(scene: &Scene) {
    const EACH: Duration = Duration::from_secs(40);
    let ns = scene.netns();
    let listener = listen(&ns, 1);
    let target = listener.target();
    let _server = Server::start_holding(listener, Pace::PerSecond(1.0 / EACH.as_secs_f64()), EACH);
    let load = Load { rate: 0.5, lasting: scene.left() - 2 * EACH, patience: 3 * EACH, at_once: 2 };
    let tally = ns.run(|| visit(target, load, &Manner::default())).tally;
    assert!(tally.served == tally.started && tally.served > 3, "{tally:?}");
}

/// A fast server with more clients than its queue holds, for two seconds.
fn one_burst(scene: &Scene) {
    let ns = scene.netns();
    let (_server, target) = serve(&ns, 4, Pace::Bursts(TICK));
    thread::sleep(3 * CALM);
    scene.begin();
    for _ in 0..8 {
        ns.run(|| burst(target, 30, SECOND / 4));
    }
    scene.wait();
}

/// A listener whose overflows all happen before its first sample.
fn born_overflowing(scene: &Scene) {
    thread::sleep(5 * CALM);
    scene.begin();
    let ns = scene.netns();
    let (_server, target) = serve(&ns, 4, Pace::Bursts(TICK));
    ns.run(|| burst(target, 60, SECOND / 4));
    scene.wait();
}

/// A fast server whose queue is shorter than the bursts.
fn short_queue(scene: &Scene) {
    let ns = scene.netns();
    let (_server, target) = serve(&ns, 4, Pace::Bursts(TICK));
    thread::sleep(CALM);
    scene.begin();
    scene.repeat(SECOND, || {
        ns.run(|| burst(target, 30, SECOND / 4));
    });
}

/// A short queue beside a deferred listener whose clients send nothing, which the kernel counts as
/// drops.
fn beside_deferred(scene: &Scene) {
    let ns = scene.netns();
    let (_server, target) = serve(&ns, 4, Pace::Bursts(TICK));
    let deferred = ns.run(|| Listen::tcp("127.0.0.1:0").defer_accept(5).open());
    let silent = deferred.target();
    let _deferred = Server::start(deferred, Pace::Fast);
    scene.played.lock().unwrap().healthy = Some(silent.port());
    thread::sleep(CALM);
    scene.begin();
    thread::scope(|scope| {
        scope.spawn(|| scene.visit(&ns, silent, 30.0, 2 * SECOND, &Manner::default()));
        scene.repeat(SECOND, || {
            ns.run(|| burst(target, 30, SECOND / 4));
        });
    });
}

/// A server that restarts again and again, and accepts few of its clients before it ends.
fn crash_loop(scene: &Scene) {
    let ns = scene.netns();
    let (server, target) = serve(&ns, 4, Pace::Fast);
    thread::sleep(CALM);
    drop(server);
    scene.begin();
    thread::scope(|scope| {
        scope.spawn(|| scene.visit(&ns, target, 20.0, SECOND, &Manner::default()));
        scene.repeat(SECOND, || {
            let listener = ns.run(|| Listen::tcp(target).backlog(4).open());
            let _server = Server::start(listener, Pace::PerSecond(2.0));
            thread::sleep(3 * SECOND);
        });
    });
}

/// A server that uses CPU time for each client, in a cgroup limited to a twentieth of a core.
fn cpu_throttled(scene: &Scene) {
    let ns = scene.netns();
    let Some(cgroup) = CpuCgroup::new(scene.name) else {
        scene.played.lock().unwrap().skipped = Some(NO_CPU_CGROUP);
        return;
    };
    let server = Burning::start(&ns);
    thread::sleep(CALM);
    cgroup.limit(&server);
    scene.begin();
    let _ = scene.visit(&ns, server.target, 10.0, 5 * SECOND, &Manner::default());
}

/// A server that answers each connection after 50 ms of work. The server ends when this is dropped.
pub(crate) struct Burning {
    child: Child,
    pub(crate) target: SocketAddr,
}

impl Burning {
    pub(crate) fn start(ns: &Netns) -> Self {
        let server = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/causes/server.py");
        let mut command = ns.command("python3");
        command.arg(server).arg("burn").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut port = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
        let target = ([127, 0, 0, 1], port.trim().parse().unwrap()).into();
        // The server begins when it reads a line.
        child.stdin.take().unwrap().write_all(b"\n").unwrap();
        Self { child, target }
    }
}

impl Drop for Burning {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A cgroup with a CPU limit. The cgroup is removed when this is dropped.
pub(crate) struct CpuCgroup(PathBuf);

impl CpuCgroup {
    /// Creates a cgroup; `None` if the controller is not mounted as version 1, which the caller
    /// reports.
    pub(crate) fn new(hint: &str) -> Option<Self> {
        let root = Path::new("/sys/fs/cgroup/cpu");
        let path = root.join(format!("listenq-{hint}-{}", std::process::id()));
        root.join("cpu.cfs_quota_us").exists().then(|| {
            fs::create_dir_all(&path).unwrap();
            Self(path)
        })
    }

    /// Limits the server to a twentieth of a core.
    pub(crate) fn limit(&self, server: &Burning) {
        fs::write(self.0.join("cpu.cfs_quota_us"), "5000").unwrap();
        fs::write(self.0.join("cgroup.procs"), server.child.id().to_string()).unwrap();
    }
}

impl Drop for CpuCgroup {
    fn drop(&mut self) {
        // The kernel removes the killed process after a moment.
        let _ = within(5 * SECOND, || fs::remove_dir(&self.0).ok());
    }
}

fn slow_php_fpm(scene: &Scene) {
    let ns = scene.netns();
    ns.sysctl("net.core.somaxconn", 128);
    let web = Web::new(Pool::Tcp).workers(2).takes(SECOND / 2).read_timeout(2 * SECOND);
    let site = web.start(&ns);
    thread::sleep(CALM);
    scene.begin();
    let outcome = scene.visit(&ns, site.address(), 40.0, 10 * SECOND, &Manner::http_get("/"));
    assert!(outcome.status(504) > 100, "{outcome:?}");
}

/// A stopped server whose clients still connect, so its queue overflows too.
fn stopped(scene: &Scene) {
    let ns = scene.netns();
    let server = ServerProcess::listen(&ns, "127.0.0.1:0", &["--backlog=8", "--pace=fast"]);
    thread::sleep(CALM);
    server.pause();
    scene.begin();
    scene.queue_up(&ns, server.target(), SECOND / 5);
}

fn stopped_unix(scene: &Scene) {
    let ns = scene.netns();
    let path = socket_path(scene);
    let flags = ["--backlog=8", "--pace=fast", "--hold-ms=600000"];
    let server = ServerProcess::listen(&ns, &path, &flags);
    // A server that never accepted is not stalled.
    let _served = ns.run(|| UnixStream::connect(&path).unwrap());
    thread::sleep(CALM);
    server.pause();
    scene.begin();
    let few = Load { rate: 1.0, lasting: 4 * SECOND, patience: scene.left(), at_once: 10 };
    let path = PathBuf::from(&path);
    let _ = ns.run(|| visit(&path, few, &Manner::default()));
}

/// A slow server at a Unix socket. A Unix queue has no overflow counter: only the full time shows
/// the trouble.
fn slow_unix(scene: &Scene) {
    let ns = scene.netns();
    let path = socket_path(scene);
    let listener = ns.run(|| UnixListener::open(Kind::Stream, &path, 4));
    let _server = Server::start(listener, Pace::PerSecond(4.0));
    thread::sleep(CALM);
    scene.begin();
    let to = PathBuf::from(&path);
    let _ = scene.visit(&ns, &to, 20.0, 10 * SECOND, &Manner::default());
    let _ = std::fs::remove_file(&path);
}

/// A server with a long queue whose clients leave long before it accepts them.
fn giving_up(scene: &Scene) {
    let ns = scene.netns();
    let (_server, target) = serve(&ns, 4096, Pace::PerSecond(5.0));
    thread::sleep(CALM);
    scene.begin();
    let _ = scene.visit(&ns, target, 12.0, SECOND, &Manner::saying("hello"));
}

/// A reuseport member whose queue grows while the queues of the other members are empty; no client
/// is refused yet.
fn reuseport_member(scene: &Scene) {
    let ns = scene.netns();
    let members = ServerProcess::group(&ns, 4, "127.0.0.1:0", &["--backlog=128", "--pace=fast"]);
    thread::sleep(CALM);
    members[2].pause();
    scene.begin();
    scene.queue_up(&ns, members[0].target(), SECOND * 2 / 3);
}

fn syn_flood(scene: &Scene) {
    let ns = scene.netns();
    let (_server, target) = serve(&ns, 32, Pace::Fast);
    thread::sleep(CALM);
    scene.begin();
    let _flood = Flood::start(&ns, target, 60_000, 200.0);
    scene.wait();
}

/// `somaxconn` was raised and the server was not restarted: bursts still come near the old limit.
fn somaxconn_raised(scene: &Scene) {
    let ns = scene.netns();
    ns.sysctl("net.core.somaxconn", 16);
    let (_server, target) = serve(&ns, 4096, Pace::Bursts(SECOND));
    thread::sleep(CALM);
    ns.sysctl("net.core.somaxconn", 4096);
    scene.begin();
    scene.repeat(SECOND, || {
        ns.run(|| burst(target, 15, 2 * SECOND));
    });
}

fn socket_path(scene: &Scene) -> String {
    let file = format!("lq-{}-{}.sock", std::process::id(), scene.name);
    std::env::temp_dir().join(file).to_str().unwrap().to_owned()
}
