//! Tests the diagnoses. Real servers in real trouble each get their diagnosis and no other, the
//! same one in the metric, the JSON, the page, `explain` and `check`. Busy healthy servers get
//! none.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]
#![allow(clippy::print_stdout, reason = "the measured figures are for the reader of --nocapture")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use listenq::report::Report;
use listenq_lab::client::{fill, reset};
use listenq_lab::flood::Flood;
use listenq_lab::hammer::{Load, Manner, Outcome, visit};
use listenq_lab::listener::{Listen, Listener};
use listenq_lab::listenq::{Daemon, Output, run};
use listenq_lab::netns::Netns;
use listenq_lab::process::ServerProcess;
use listenq_lab::scan::{Stray, stray_segments};
use listenq_lab::server::{Pace, Server, Service};
use listenq_lab::tool::require_tool;
use listenq_lab::wait::eventually;
use listenq_lab::web::{PHP, Pool, Web};
use socket2::Socket;

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
const SECOND: Duration = Duration::from_secs(1);
/// A diagnosis needs 10 s of evidence, and scans are one second apart.
const TIMEOUT: Duration = Duration::from_secs(25);

/// A namespace with a daemon in it.
struct Scene {
    ns: Netns,
    daemon: Daemon,
}

// === impl Scene ===

impl Scene {
    /// Creates the namespace and the daemon. Without root prints why the test is skipped, and
    /// returns `None`.
    fn new(hint: &str) -> Option<Self> {
        Self::within(Netns::require_root().then(|| Netns::new(hint))?)
    }

    fn within(ns: Netns) -> Option<Self> {
        let daemon = Daemon::start(Some(&ns), BIN.as_ref(), &["--client-patience=2s"]);
        Some(Self { ns, daemon })
    }

    fn listen(&self, backlog: i32) -> Listener {
        self.ns.run(|| Listen::tcp("127.0.0.1:0").backlog(backlog).open())
    }

    /// The diagnoses that hold, of all listeners together.
    fn diagnoses(&self) -> BTreeSet<String> {
        let scrape = self.daemon.scrape();
        let all = scrape.series("listenq_listener_diagnosis").into_iter();
        all.filter(|(_, value)| *value == 1.0)
            .map(|(labels, _)| labels["diagnosis"].clone())
            .collect()
    }

    /// The diagnoses that hold, of the listener with this port.
    fn diagnoses_of(&self, target: SocketAddr) -> BTreeSet<String> {
        let port = target.port().to_string();
        let all = self.daemon.scrape().series("listenq_listener_diagnosis").into_iter();
        all.filter(|(labels, value)| *value == 1.0 && labels["port"] == port)
            .map(|(labels, _)| labels["diagnosis"].clone())
            .collect()
    }

    /// Waits until exactly these diagnoses hold.
    #[track_caller]
    fn await_diagnoses(&self, expected: &[&str]) {
        let expected: BTreeSet<String> = expected.iter().map(ToString::to_string).collect();
        let begin = Instant::now();
        let mut last = BTreeSet::new();
        while begin.elapsed() < TIMEOUT {
            last = self.diagnoses();
            if last == expected {
                println!("{expected:?} after {:.1} s", begin.elapsed().as_secs_f64());
                return;
            }
            thread::sleep(SECOND / 5);
        }
        panic!(
            "waited for {expected:?}, found {last:?}; the log:\n{}",
            self.daemon.log().join("\n")
        );
    }

    /// Waits until exactly these diagnoses hold, the first one in first place, and appear in all
    /// outputs. Returns the text of `explain`.
    #[track_caller]
    fn await_said(&self, expected: &[&str]) -> String {
        self.await_diagnoses(expected);
        let answer = self.daemon.get("/api/v1/listeners", &[]);
        let report: Report = serde_json::from_str(answer.text()).unwrap();
        let worst = &report.listeners[0];
        let said: Vec<&str> = worst.diagnoses.iter().map(|one| one.diagnosis.label()).collect();
        assert_eq!(said, expected);
        let page = self.daemon.get("/", &[]).text().to_owned();
        let (explained, checked) = (self.ask("explain"), self.ask("check"));
        for word in expected {
            assert!(page.contains(word), "the page does not say {word}:\n{page}");
            assert!(explained.stdout.contains(word), "explain does not say {word}: {explained:?}");
        }
        let words = format!(" - {} at {}", expected.join(", "), worst.named());
        assert!(checked.stdout.contains(&words), "no {words:?}: {checked:?}");
        assert!(checked.status.code() > Some(0), "{checked:?}");
        explained.stdout
    }

    /// Checks that no diagnosis holds, and that `explain` and `check` report this.
    #[track_caller]
    fn assert_well(&self) {
        assert_eq!(self.diagnoses(), BTreeSet::new());
        let codes = ["explain", "check"].map(|command| self.ask(command).status.code());
        assert_eq!(codes, [Some(0); 2]);
        assert!(self.ask("check").stdout.starts_with("LISTENQ OK"));
    }

    /// The output of a command that asks this daemon.
    fn ask(&self, command: &str) -> Output {
        let url = format!("http://{}", self.daemon.address());
        run(Some(&self.ns), BIN.as_ref(), &[command, "--url", &url])
    }

    /// Every diagnosis that held at any time during `trouble`.
    fn diagnoses_during<T>(&self, trouble: JoinHandle<T>) -> (BTreeSet<String>, T) {
        let mut all = BTreeSet::new();
        while !trouble.is_finished() {
            all.extend(self.diagnoses_for(SECOND / 5));
        }
        (all, trouble.join().unwrap())
    }

    /// Every diagnosis that holds at any time within `time` from now.
    fn diagnoses_for(&self, time: Duration) -> BTreeSet<String> {
        let begin = Instant::now();
        let mut all = BTreeSet::new();
        while begin.elapsed() < time {
            all.extend(self.diagnoses());
            thread::sleep(SECOND / 5);
        }
        all
    }

    /// Lets the server accept one client, so that the listener is known to accept. The client
    /// stays.
    fn serve_one(&self, server: &ServerProcess) -> Vec<Socket> {
        let target = server.target();
        let client = self.ns.run(|| fill(target, 1));
        thread::sleep(SECOND / 2);
        client
    }

    fn visitors(&self, target: SocketAddr, load: Load, manner: Manner) -> JoinHandle<Outcome> {
        self.ns.spawn(move || visit(target, load, &manner))
    }

    fn log_has(&self, words: &[&str]) -> bool {
        self.daemon.log().iter().any(|line| words.iter().all(|word| line.contains(word)))
    }
}

fn load(rate: f64, seconds: u64, patience: Duration) -> Load {
    Load { rate, lasting: Duration::from_secs(seconds), patience, at_once: 4000 }
}

#[test]
fn a_stopped_server_is_stalled() {
    let Some(scene) = Scene::new("stopped") else { return };
    let server = ServerProcess::listen(&scene.ns, "127.0.0.1:0", &["--backlog=8", "--pace=fast"]);
    let served = scene.serve_one(&server);
    server.pause();
    let target = server.target();
    let clients = scene.ns.run(|| fill(target, 5));
    let explained = scene.await_said(&["stalled"]);
    assert!(!explained.contains("sysctl -w"), "{explained}");
    assert!(scene.log_has(&[
        "level=warn",
        "trouble at a listener",
        "diagnosis=stalled",
        "process=listenq-lab"
    ]));
    server.resume();
    scene.await_diagnoses(&[]);
    scene.assert_well();
    assert!(scene.log_has(&[
        "level=info",
        "trouble at a listener is over",
        "diagnoses=stalled",
        "peak=5"
    ]));
    drop((served, clients));
}

#[test]
fn a_stopped_server_whose_clients_reset_is_stalled_as_long_as_one_waits() {
    let Some(scene) = Scene::new("stopped-reset") else { return };
    let server = ServerProcess::listen(&scene.ns, "127.0.0.1:0", &["--backlog=8", "--pace=fast"]);
    let served = scene.serve_one(&server);
    server.pause();
    let target = server.target();
    let (patient, clients) = scene.ns.run(|| (fill(target, 1), fill(target, 5)));
    thread::sleep(4 * SECOND);
    reset(clients);
    scene.await_said(&["stalled", "abandoned"]);
    reset(patient);
    // No living client waits.
    scene.await_diagnoses(&["abandoned"]);
    drop(served);
}

#[test]
fn a_stopped_server_on_a_unix_socket_is_stalled() {
    let Some(scene) = Scene::new("stopped-unix") else { return };
    let path = std::env::temp_dir().join(format!("lq-stalled-{}.sock", std::process::id()));
    let flags = ["--backlog=8", "--pace=fast", "--hold-ms=600000"];
    let server = ServerProcess::listen(&scene.ns, path.to_str().unwrap(), &flags);
    // The kernel assigns the server's end of the connection to the namespace of the client.
    let served = scene.ns.run(|| UnixStream::connect(&path).unwrap());
    thread::sleep(SECOND / 2);
    server.pause();
    let target = path.clone();
    let clients =
        scene.ns.spawn(move || visit(&target, load(2.0, 3, 60 * SECOND), &Manner::default()));
    scene.await_said(&["stalled"]);
    server.resume();
    scene.await_diagnoses(&[]);
    drop(served);
    // The server holds the clients: they leave when the server ends.
    drop(server);
    clients.join().unwrap();
}

#[test]
fn one_stuck_member_of_a_group_is_an_imbalance_and_not_a_stall() {
    let Some(scene) = Scene::new("imbalance") else { return };
    let flags = ["--backlog=32", "--pace=fast"];
    let members = ServerProcess::group(&scene.ns, 4, "127.0.0.1:0", &flags);
    members[2].pause();
    // A quarter of the clients wait at the stuck member, and no client leaves.
    let target = members[0].target();
    let clients = scene.ns.run(|| fill(target, 40));
    scene.await_said(&["imbalance"]);
    assert_eq!(scene.diagnoses_for(3 * SECOND), BTreeSet::from(["imbalance".into()]));
    drop(clients);
}

#[test]
fn a_slow_server_whose_clients_give_up_is_slow_and_its_queue_abandoned() {
    let Some(scene) = Scene::new("slow") else { return };
    let listener = scene.listen(40);
    let target = listener.target();
    let server = Server::start(listener, Pace::PerSecond(10.0));
    let clients = scene.visitors(target, load(60.0, 25, SECOND), Manner::saying("hello"));
    scene.await_said(&["slow_accept", "abandoned"]);
    let (all, outcome) = scene.diagnoses_during(clients);
    println!("{:?}", outcome.tally);
    let expected = ["abandoned", "slow_accept"].map(String::from);
    assert_eq!(all, BTreeSet::from(expected));
    drop(server);
}

#[test]
fn a_burst_against_a_short_backlog_of_a_fast_server_is_a_short_queue() {
    let Some(scene) = Scene::new("burst") else { return };
    let listener = scene.listen(4);
    let target = listener.target();
    let server = Server::start(listener, Pace::Bursts(SECOND / 20));
    thread::sleep(11 * SECOND);
    let clients = scene.ns.run(|| fill(target, 60));
    let explained = scene.await_said(&["short_queue"]);
    assert!(explained.contains("limit      4"), "{explained}");
    drop((clients, server));
    let text = scene.daemon.scrape();
    assert!(text.at(target).overflows > Some(0.0));
}

#[test]
fn a_pool_with_a_clamped_backlog_behind_nginx_is_slow_and_abandoned() {
    let Some(ns) = Netns::require_root().then(|| Netns::new("pool")) else { return };
    if !(require_tool("nginx") && require_tool(PHP)) {
        return;
    }
    ns.sysctl("net.core.somaxconn", 128);
    let web =
        Web::new(Pool::Tcp).backlog(511).workers(2).takes(SECOND / 2).read_timeout(2 * SECOND);
    let site = web.start(&ns);
    let scene = Scene::within(ns).unwrap();
    let nginx = site.address();
    let clients = scene.visitors(nginx, load(100.0, 25, 30 * SECOND), Manner::http_get("/"));
    let explained = scene.await_said(&["slow_accept", "abandoned"]);
    assert!(explained.contains("pm.max_children"), "{explained}");
    let raises = ["sysctl -w", "listen.backlog ="].map(|advice| explained.contains(advice));
    assert_eq!(raises, [false; 2], "{explained}");
    let (all, outcome) = scene.diagnoses_during(clients);
    println!("{:?}, {} answers 504", outcome.tally, outcome.status(504));
    assert_eq!(all, BTreeSet::from(["abandoned", "slow_accept"].map(String::from)));
    assert!(outcome.status(504) > 0);
    let pool = scene.daemon.scrape().at(site.pool().parse().unwrap());
    assert_eq!(pool.limit, Some(128.0));
}

#[test]
fn a_fast_pool_with_a_backlog_of_8_under_bursts_is_a_short_queue() {
    let Some(ns) = Netns::require_root().then(|| Netns::new("fast-pool")) else { return };
    if !(require_tool("nginx") && require_tool(PHP)) {
        return;
    }
    let site = Web::new(Pool::Tcp).backlog(8).workers(4).start(&ns);
    let scene = Scene::within(ns).unwrap();
    thread::sleep(11 * SECOND);
    let nginx = site.address();
    let bursts = scene.ns.spawn(move || {
        for _ in 0..4 {
            let burst = Load { lasting: SECOND / 100, ..load(20_000.0, 0, 10 * SECOND) };
            assert!(visit(nginx, burst, &Manner::http_get("/")).tally.started > 100);
            thread::sleep(SECOND);
        }
    });
    let explained = scene.await_said(&["short_queue"]);
    assert!(explained.contains("listen.backlog"), "{explained}");
    let (all, ()) = scene.diagnoses_during(bursts);
    assert_eq!(all, BTreeSet::from(["short_queue".into()]));
}

#[test]
fn a_raised_somaxconn_under_a_running_server_is_a_stale_limit() {
    let Some(ns) = Netns::require_root().then(|| Netns::new("stale")) else { return };
    ns.sysctl("net.core.somaxconn", 16);
    let scene = Scene::within(ns).unwrap();
    let listener = scene.listen(4096);
    let target = listener.target();
    let server = Server::start(listener, Pace::PerSecond(5.0));
    // Settings are read every 4 s: listenq sees the listener under the old setting.
    thread::sleep(6 * SECOND);
    scene.ns.sysctl("net.core.somaxconn", 4096);
    // No client has left yet.
    let clients = scene.visitors(target, load(30.0, 15, 20 * SECOND), Manner::default());
    scene.await_said(&["slow_accept", "stale_limit"]);
    let all = scene.diagnoses_for(SECOND);
    assert_eq!(all, BTreeSet::from(["slow_accept", "stale_limit"].map(String::from)));
    drop(server);
    clients.join().unwrap();
}

#[test]
fn a_flood_of_syns_is_a_syn_flood() {
    let Some(scene) = Scene::new("flood") else { return };
    let listener = scene.listen(32);
    let target = listener.target();
    let server = Server::start(listener, Pace::Fast);
    let flood = Flood::start(&scene.ns, target, 6000, 300.0);
    scene.await_said(&["syn_flood"]);
    drop((flood, server));
}

#[test]
fn a_flood_of_a_backlog_of_8_is_a_syn_flood() {
    let Some(scene) = Scene::new("flood-8") else { return };
    let listener = scene.listen(8);
    let target = listener.target();
    let server = Server::start(listener, Pace::Fast);
    let flood = Flood::start(&scene.ns, target, 6000, 300.0);
    scene.await_said(&["syn_flood"]);
    drop((flood, server));
}

#[test]
fn a_flood_that_is_answered_with_cookies_alone_is_a_syn_flood() {
    let Some(ns) = Netns::require_root().then(|| Netns::new("flood-cookies")) else { return };
    ns.sysctl("net.ipv4.tcp_syncookies", 2);
    let scene = Scene::within(ns).unwrap();
    // The listener that the cookies are for is known only if clients from outside can reach only
    // one listener.
    let listener = scene.ns.run(|| Listen::tcp("0.0.0.0:0").backlog(128).open());
    let target = listener.target();
    let server = Server::start(listener, Pace::Fast);
    let flood = Flood::start(&scene.ns, target, 6000, 300.0);
    scene.await_said(&["syn_flood"]);
    drop((flood, server));
}

/// A flood of one of two listeners that are reached from outside. Two clients of the other listener
/// have bad lines, and fill its SYN queue. Returns the diagnoses of both within 20 s: of the
/// flooded listener, and of the other one.
fn diagnoses_of_two_listeners(hint: &str, syncookies: u32) -> [BTreeSet<String>; 2] {
    let ns = Netns::new(hint);
    ns.sysctl("net.ipv4.tcp_syncookies", syncookies);
    let scene = Scene::within(ns).unwrap();
    let listen = |backlog| scene.ns.run(|| Listen::tcp("0.0.0.0:0").backlog(backlog).open());
    let servers = [32, 1].map(|backlog| {
        let listener = listen(backlog);
        (listener.target(), Server::start(listener, Pace::Fast))
    });
    let [(flooded, _), (innocent, _)] = servers;
    let bad_lines = Flood::start(&scene.ns, innocent, 2, 4.0);
    thread::sleep(5 * SECOND);
    let flood = Flood::start(&scene.ns, flooded, 6000, 300.0);
    let begin = Instant::now();
    let mut found = [flooded, innocent].map(|_| BTreeSet::new());
    while begin.elapsed() < 20 * SECOND {
        for (target, found) in [flooded, innocent].into_iter().zip(&mut found) {
            found.extend(scene.diagnoses_of(target));
        }
        thread::sleep(SECOND / 5);
    }
    drop((flood, bad_lines, servers));
    found
}

#[test]
fn a_flood_beside_an_innocent_listener_is_called_by_the_name_of_the_flooded_one_or_none() {
    if !Netns::require_root() {
        return;
    }
    let usual = thread::spawn(|| diagnoses_of_two_listeners("flood-beside", 1));
    let [_, innocent] = diagnoses_of_two_listeners("flood-beside-cookies", 2);
    assert_eq!(innocent, BTreeSet::new());
    let [flooded, innocent] = usual.join().unwrap();
    assert_eq!(flooded, BTreeSet::from(["syn_flood".into()]));
    assert_eq!(innocent, BTreeSet::new());
}

#[test]
fn real_clients_with_cookies_are_not_a_flood() {
    let Some(ns) = Netns::require_root().then(|| Netns::new("overload-cookies")) else { return };
    ns.sysctl("net.ipv4.tcp_syncookies", 2);
    let scene = Scene::within(ns).unwrap();
    let listener = scene.listen(16);
    let target = listener.target();
    let server = Server::start(listener, Pace::PerSecond(10.0));
    let clients = scene.visitors(target, load(60.0, 20, SECOND), Manner::saying("hello"));
    let (all, outcome) = scene.diagnoses_during(clients);
    println!("{:?}: {all:?}", outcome.tally);
    assert!(all.contains("slow_accept"), "{all:?}");
    let wrong = ["syn_flood", "short_queue"].map(|word| all.contains(word));
    assert_eq!(wrong, [false; 2], "{all:?}");
    drop(server);
}

#[test]
fn a_server_that_restarts_every_three_seconds_under_load_is_slow() {
    let Some(scene) = Scene::new("crash-loop") else { return };
    let target = scene.listen(4).target();
    let clients = scene.visitors(target, load(40.0, 21, SECOND), Manner::default());
    let begin = Instant::now();
    let mut all = BTreeSet::new();
    while begin.elapsed() < 20 * SECOND {
        let listener = scene.ns.run(|| Listen::tcp(target).backlog(4).open());
        all.extend(scene.diagnoses_for(5 * SECOND / 2));
        drop(listener);
        all.extend(scene.diagnoses_for(SECOND / 2));
    }
    clients.join().unwrap();
    assert!(all.contains("slow_accept") && !all.contains("short_queue"), "{all:?}");
    let is_turn = |line: &&String| line.contains("slow_accept") && !line.contains("found why");
    let started = scene.daemon.log().iter().filter(is_turn).count();
    assert!(started <= 2, "one incident:\n{}", scene.daemon.log().join("\n"));
}

#[test]
fn a_server_restarted_right_after_somaxconn_was_raised_has_no_stale_limit() {
    let Some(ns) = Netns::require_root().then(|| Netns::new("fresh")) else { return };
    ns.sysctl("net.core.somaxconn", 16);
    let scene = Scene::within(ns).unwrap();
    let before = scene.listen(16);
    let target = before.target();
    thread::sleep(6 * SECOND);
    scene.ns.sysctl("net.core.somaxconn", 4096);
    drop(before);
    // The backlog that the server sets is equal to the earlier `somaxconn`.
    let listener = scene.ns.run(|| Listen::tcp(target).backlog(16).open());
    let server = Server::start(listener, Pace::Bursts(SECOND / 20));
    let clients = scene.ns.run(|| fill(target, 80));
    let all = scene.diagnoses_for(10 * SECOND);
    assert_eq!(all, BTreeSet::from(["short_queue".into()]));
    drop((clients, server));
}

#[test]
fn sixty_real_clients_in_one_round_trip_are_not_a_flood() {
    let Some(scene) = Scene::new("crowd") else { return };
    let there = Netns::new("crowd-there");
    let [here, _] = scene.ns.slow_link_to(&there, 200);
    let listener = scene.ns.run(|| Listen::tcp(format!("{here}:0")).backlog(16).open());
    let target = listener.target();
    let server = Server::start(listener, Pace::Fast);
    let rounds = there.spawn(move || {
        for _ in 0..10 {
            let clients = fill(target, 60);
            thread::sleep(SECOND);
            drop(clients);
        }
    });
    let (all, ()) = scene.diagnoses_during(rounds);
    let cookies = scene.daemon.scrape().value("listenq_netns_syncookies_sent_total", &[]).unwrap();
    println!("{cookies} cookies, {} accepted", server.accepted());
    assert!(cookies > 0.0 && !all.contains("syn_flood"), "{cookies} cookies: {all:?}");
}

#[test]
fn scans_deferred_and_half_closing_clients_are_not_trouble() {
    let Some(scene) = Scene::new("harmless") else { return };
    let answer = || Service::Answer(b"ok\n".to_vec());
    let plain = scene.listen(128);
    let deferred = scene.ns.run(|| Listen::tcp("127.0.0.1:0").backlog(128).defer_accept(5).open());
    let (plain_at, deferred_at) = (plain.target(), deferred.target());
    let servers = [
        Server::start_serving(plain, Pace::Fast, answer()),
        Server::start_serving(deferred, Pace::Fast, answer()),
    ];
    let half_closing =
        scene.visitors(plain_at, load(200.0, 20, SECOND), Manner::saying("a").half_closing());
    let late = scene.visitors(deferred_at, load(100.0, 20, SECOND), Manner::saying("b"));
    for _ in 0..20 {
        for kind in [Stray::Null, Stray::SynFin, Stray::Rst] {
            scene.ns.run(|| stray_segments(plain_at, kind, 20, Duration::ZERO));
        }
        assert_eq!(scene.diagnoses(), BTreeSet::new());
        thread::sleep(SECOND);
    }
    let answered = [half_closing, late].map(|clients| clients.join().unwrap().answered());
    assert!(answered[0] > 3500 && answered[1] > 1500, "{answered:?}");
    scene.assert_well();
    drop(servers);
}

#[test]
fn a_server_at_80_percent_of_its_capacity_for_a_minute_is_healthy() {
    let Some(scene) = Scene::new("busy") else { return };
    let listener = scene.listen(1024);
    let target = listener.target();
    let server = Server::start(listener, Pace::PerSecond(500.0));
    let clients = scene.visitors(target, load(400.0, 60, 10 * SECOND), Manner::default());
    let (all, outcome) = scene.diagnoses_during(clients);
    assert_eq!(all, BTreeSet::new());
    scene.assert_well();
    assert!(outcome.tally.served > 20_000, "{outcome:?}");
    assert!(
        eventually("the queue", SECOND, || scene.daemon.scrape().at(target).connection_seconds)
            > 0.0
    );
    drop(server);
}
