//! Owns the scenes: each a kind of trouble, or of health, in a namespace of its own, all at the same time.

use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
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
use listenq_lab::web::{Pool, Web};

const SECOND: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(50);
/// How long everything is healthy at first: a diagnosis needs a listener that was watched for 10 s.
const CALM: Duration = Duration::from_secs(12);

/// What a scene is called, and what happens in it.
pub(crate) type Doings = (&'static str, fn(&Scene));

/// Every scene.
pub(crate) const ALL: [Doings; 16] = [
    ("idle", idle),
    ("busy", busy),
    ("port-scan", port_scan),
    ("deferred-half-closing", deferred_half_closing),
    ("restarting", restarting),
    ("burst", one_burst),
    ("born-overflowing", born_overflowing),
    ("short-queue", short_queue),
    ("slow-php-fpm", slow_php_fpm),
    ("stopped", stopped),
    ("stopped-unix", stopped_unix),
    ("slow-unix", slow_unix),
    ("giving-up", giving_up),
    ("reuseport-member", reuseport_member),
    ("syn-flood", syn_flood),
    ("somaxconn-raised", somaxconn_raised),
];

/// A scene under way.
pub(crate) struct Scene {
    name: &'static str,
    end: Instant,
    began: Mutex<Instant>,
}

// === impl Scene ===

impl Scene {
    pub(crate) fn until(end: Instant, name: &'static str) -> Self {
        Self { name, end, began: Mutex::new(Instant::now()) }
    }

    /// When its trouble began.
    pub(crate) fn began(&self) -> Instant {
        *self.began.lock().unwrap()
    }

    fn netns(&self) -> Netns {
        Netns::new(self.name)
    }

    /// From here on it is trouble.
    fn begin(&self) {
        *self.began.lock().unwrap() = Instant::now();
    }

    fn left(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }

    fn wait(&self) {
        thread::sleep(self.left());
    }

    /// Does this every so often until the end.
    fn repeat(&self, gap: Duration, mut work: impl FnMut()) {
        while self.left() > Duration::ZERO {
            work();
            thread::sleep(gap.min(self.left()));
        }
    }

    /// A client every so often, and none leaves before the end.
    fn queue_up(&self, ns: &Netns, target: SocketAddr, gap: Duration) {
        let mut clients = Vec::new();
        self.repeat(gap, || clients.extend(ns.run(|| fill(target, 1))));
    }

    /// `rate` clients a second until the end; the last ones stay for their patience.
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

/// A server, and where it is.
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

/// At 80 % of what it can.
fn busy(scene: &Scene) {
    let ns = scene.netns();
    let (_server, target) = serve(&ns, 128, Pace::PerSecond(100.0));
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

/// Two seconds of more clients than the queue holds, for a server that is fast.
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

/// Its first sample finds it with all its overflows, and no more come.
fn born_overflowing(scene: &Scene) {
    thread::sleep(5 * CALM);
    scene.begin();
    let ns = scene.netns();
    let (_server, target) = serve(&ns, 4, Pace::Bursts(TICK));
    ns.run(|| burst(target, 60, SECOND / 4));
    scene.wait();
}

/// Fast, but its queue is shorter than what comes at once.
fn short_queue(scene: &Scene) {
    let ns = scene.netns();
    let (_server, target) = serve(&ns, 4, Pace::Bursts(TICK));
    thread::sleep(CALM);
    scene.begin();
    scene.repeat(SECOND, || {
        ns.run(|| burst(target, 30, SECOND / 4));
    });
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

/// Clients still come: it overflows, too.
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
    let path = std::path::PathBuf::from(&path);
    let _ = ns.run(|| visit(&path, few, &Manner::default()));
}

/// A Unix queue has no overflows: only the time full shows the trouble.
fn slow_unix(scene: &Scene) {
    let ns = scene.netns();
    let path = socket_path(scene);
    let listener = ns.run(|| UnixListener::open(Kind::Stream, &path, 4));
    let _server = Server::start(listener, Pace::PerSecond(4.0));
    thread::sleep(CALM);
    scene.begin();
    let to = std::path::PathBuf::from(&path);
    let _ = scene.visit(&ns, &to, 20.0, 10 * SECOND, &Manner::default());
    let _ = std::fs::remove_file(&path);
}

/// The queue is deep, and clients leave long before their turn.
fn giving_up(scene: &Scene) {
    let ns = scene.netns();
    let (_server, target) = serve(&ns, 4096, Pace::PerSecond(5.0));
    thread::sleep(CALM);
    scene.begin();
    let _ = scene.visit(&ns, target, 12.0, SECOND, &Manner::saying("hello"));
}

/// Its queue grows while the queues of its siblings are empty; no client is turned away yet.
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

/// Raised, and the server not restarted: what comes at once is near the old limit still.
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
