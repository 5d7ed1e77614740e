//! Tests the conclusions from connection rows, compared with what the test did: which waits are
//! trouble and which are not, how long clients wait before they leave, and how many connections
//! were accepted. The scenes run at the same time.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]
#![allow(clippy::print_stdout, reason = "the measured figures are for the reader of --nocapture")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use listenq::report::Report;
use listenq_lab::client::{fill, reset};
use listenq_lab::hammer::{Load, Manner, Outcome, visit};
use listenq_lab::listener::{Listen, Listener};
use listenq_lab::listenq::Daemon;
use listenq_lab::metrics::Metrics;
use listenq_lab::netns::Netns;
use listenq_lab::server::{Pace, Server, Service};
use listenq_lab::wait::{TIMEOUT, eventually, within};

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
const SECOND: Duration = Duration::from_secs(1);

/// A namespace with a daemon in it.
struct Scene {
    ns: Netns,
    daemon: Daemon,
}

// === impl Scene ===

impl Scene {
    fn new(hint: &str) -> Self {
        let ns = Netns::new(hint);
        let daemon = Daemon::start(Some(&ns), BIN.as_ref(), &[]);
        Self { ns, daemon }
    }

    fn listen(&self, backlog: i32) -> Listener {
        self.ns.run(|| Listen::tcp("127.0.0.1:0").backlog(backlog).open())
    }

    fn diagnoses(&self) -> BTreeSet<String> {
        let all = self.daemon.scrape().series("listenq_listener_diagnosis").into_iter();
        let held = all.filter(|(_, value)| *value == 1.0);
        held.map(|(labels, _)| labels["diagnosis"].clone()).collect()
    }

    /// Every diagnosis that held at any time within `time`.
    fn diagnoses_for(&self, time: Duration) -> BTreeSet<String> {
        let begin = Instant::now();
        let mut all = BTreeSet::new();
        while begin.elapsed() < time {
            all.extend(self.diagnoses());
            thread::sleep(SECOND / 2);
        }
        all
    }
}

fn load(rate: f64, seconds: u64, patience: Duration) -> Load {
    Load { rate, lasting: Duration::from_secs(seconds), patience, at_once: 4000 }
}

fn set(words: &[&str]) -> BTreeSet<String> {
    words.iter().map(ToString::to_string).collect()
}

fn of(scrape: &Metrics, name: &str, address: SocketAddr) -> Option<f64> {
    let (ip, port) = (address.ip().to_string(), address.port().to_string());
    scrape.value(name, &[("address", &ip), ("port", &port)])
}

#[test]
fn only_waits_that_delay_clients_are_trouble() {
    if !Netns::require_root() {
        return;
    }
    let scenes: [fn(); 8] = [
        a_port_that_is_only_held_and_was_scanned_once,
        a_server_that_is_not_ready_while_checks_knock,
        a_tool_that_serves_one_client_with_one_in_line,
        a_slow_server_with_a_high_limit,
        half_closing_clients_that_are_answered_late,
        a_server_that_pauses_for_long,
        a_transparent_proxy_that_serves,
        a_transparent_proxy_whose_queue_overflows,
    ];
    thread::scope(|scope| scenes.map(|scene| scope.spawn(scene)).map(|one| one.join().unwrap()));
}

fn a_port_that_is_only_held_and_was_scanned_once() {
    let scene = Scene::new("held");
    let listener = scene.listen(8);
    let target = listener.target();
    drop(scene.ns.run(|| fill(target, 1)));
    assert_eq!(scene.diagnoses_for(35 * SECOND), set(&["not_accepting"]));
}

fn a_server_that_is_not_ready_while_checks_knock() {
    let scene = Scene::new("starting");
    let listener = scene.listen(128);
    let target = listener.target();
    let checks =
        scene.ns.spawn(move || visit(target, load(1.0, 35, 3 * SECOND), &Manner::default()));
    assert_eq!(scene.diagnoses_for(35 * SECOND), set(&["not_accepting"]));
    let server = Server::start(listener, Pace::Fast);
    checks.join().unwrap();
    thread::sleep(12 * SECOND);
    assert_eq!(scene.diagnoses(), set(&[]));
    drop(server);
}

fn a_tool_that_serves_one_client_with_one_in_line() {
    let scene = Scene::new("single");
    let listener = scene.listen(5);
    let target = listener.target();
    let _first = scene.ns.run(|| fill(target, 1));
    let served = listener.accept(SECOND).expect("one client");
    let _second = scene.ns.run(|| fill(target, 1));
    assert_eq!(scene.diagnoses_for(40 * SECOND), set(&["not_accepting"]));
    drop(served);
}

fn a_slow_server_with_a_high_limit() {
    let scene = Scene::new("standing");
    let listener = scene.listen(511);
    let target = listener.target();
    let server = Server::start(listener, Pace::PerSecond(4.0));
    let clients = scene.ns.spawn(move || {
        let waiting = fill(target, 60);
        let outcome = visit(target, load(4.0, 50, 60 * SECOND), &Manner::default());
        drop(waiting);
        outcome
    });
    assert_eq!(scene.diagnoses_for(48 * SECOND), set(&["standing_queue"]));
    drop(server);
    clients.join().unwrap();
}

fn half_closing_clients_that_are_answered_late() {
    let scene = Scene::new("half");
    let listener = scene.listen(511);
    let target = listener.target();
    let server =
        Server::start_serving(listener, Pace::PerSecond(8.0), Service::Answer(b"ok\n".to_vec()));
    let clients = scene.ns.spawn(move || {
        let manner = Manner::saying("hello").half_closing();
        visit(target, load(16.0, 20, 60 * SECOND), &manner)
    });
    let all = scene.diagnoses_for(40 * SECOND);
    assert!(all.is_subset(&set(&["standing_queue"])), "{all:?}");
    let scrape = scene.daemon.scrape();
    assert_eq!(of(&scrape, "listenq_accept_queue_client_patience_seconds", target), None);
    let outcome = clients.join().unwrap();
    assert!(outcome.answered() > 250, "{outcome:?}");
    drop(server);
}

fn a_server_that_pauses_for_long() {
    let scene = Scene::new("pauses");
    let listener = scene.listen(511);
    let target = listener.target();
    let server = Server::start(listener, Pace::PerSecond(1.0 / 15.0));
    let _clients = scene.ns.run(|| fill(target, 30));
    // The first pause looks like a stall; the later pauses do not.
    thread::sleep(40 * SECOND);
    assert_eq!(scene.diagnoses_for(20 * SECOND), set(&["standing_queue"]));
    drop(server);
}

/// A listener behind TPROXY in a namespace of its own, and the namespace of its clients. Rows of
/// connections carry `ORIGINAL`, which is the address of no listener.
struct Transparent {
    scene: Scene,
    clients: Netns,
    listener: Listener,
}

/// The destination of clients behind TPROXY.
const ORIGINAL: &str = "169.254.9.9:80";

impl Transparent {
    fn new(hint: &str, backlog: i32) -> Self {
        let (scene, clients) = (Scene::new(hint), Netns::new(&format!("{hint}c")));
        scene.ns.add_link_to(&clients, "in0");
        let proxy = "tcp dport 80 tproxy to 127.0.0.1:5000 meta mark set 1 accept";
        let rules = format!(
            "table ip t {{ chain c {{ type filter hook prerouting priority mangle; {proxy}; }}; }}"
        );
        execute(&scene.ns, "ip", "address add 169.254.1.1/24 dev in0");
        execute(&scene.ns, "ip", "link set in0 up");
        execute(&scene.ns, "ip", "rule add fwmark 1 lookup 100");
        execute(&scene.ns, "ip", "route add local default dev lo table 100");
        execute(&scene.ns, "nft", &rules);
        execute(&clients, "ip", "address add 169.254.1.2/24 dev in0p");
        execute(&clients, "ip", "link set in0p up");
        execute(&clients, "ip", "route add 169.254.9.0/24 via 169.254.1.1");
        let listener = scene.ns.run(|| Listen::tcp("127.0.0.1:5000").backlog(backlog).open());
        listener.socket().set_ip_transparent_v4(true).unwrap();
        Self { scene, clients, listener }
    }

    fn visit(&self, load: Load) -> JoinHandle<Outcome> {
        let target: SocketAddr = ORIGINAL.parse().unwrap();
        self.clients.spawn(move || visit(target, load, &Manner::default()))
    }
}

fn execute(ns: &Netns, program: &str, arguments: &str) {
    let done = ns.command(program).args(arguments.split(' ')).output().unwrap();
    assert!(done.status.success(), "{program} {arguments}: {done:?}");
}

/// More and more clients wait, each of them for some seconds.
fn a_transparent_proxy_that_serves() {
    let Transparent { scene, clients, listener } = Transparent::new("tproxy", 256);
    let target: SocketAddr = ORIGINAL.parse().unwrap();
    let address = listener.addr();
    let server = Server::start(listener, Pace::PerSecond(3.0));
    let clients = clients.spawn(move || {
        let waiting = fill(target, 10);
        let outcome = visit(target, load(5.0, 45, 60 * SECOND), &Manner::default());
        drop(waiting);
        outcome
    });
    assert_eq!(scene.diagnoses_for(40 * SECOND), set(&[]));
    let scrape = scene.daemon.scrape();
    let length = scrape.at(address).length;
    assert!(length > Some(4.0), "{length:?}");
    let known = ["abandoned", "oldest_seconds"]
        .map(|name| of(&scrape, &format!("listenq_accept_queue_{name}"), address));
    assert_eq!(known, [None; 2]);
    drop(server);
    clients.join().unwrap();
}

/// What needs no rows is diagnosed there too.
fn a_transparent_proxy_whose_queue_overflows() {
    let proxy = Transparent::new("tfull", 32);
    let clients = proxy.visit(load(20.0, 32, 3 * SECOND));
    let server = Server::start(proxy.listener, Pace::PerSecond(4.0));
    assert_eq!(proxy.scene.diagnoses_for(30 * SECOND), set(&["slow_accept"]));
    drop(server);
    clients.join().unwrap();
}

#[test]
fn the_patience_of_clients_is_measured() {
    if !Netns::require_root() {
        return;
    }
    let scene = Scene::new("patience");
    let listeners = [0.5, 2.0, 8.0].map(|patience| (patience, scene.listen(511)));
    let checked = scene.listen(511);
    let visitors = |target, patience| {
        scene.ns.spawn(move || visit(target, load(4.0, 15, patience), &Manner::default()))
    };
    let clients: Vec<_> = listeners
        .iter()
        .map(|(patience, listener)| visitors(listener.target(), Duration::from_secs_f64(*patience)))
        .collect();
    let checks = visitors(checked.target(), Duration::from_millis(5));
    clients.into_iter().chain([checks]).for_each(|client| _ = client.join().unwrap());
    let name = "listenq_accept_queue_client_patience_seconds";
    for (patience, listener) in &listeners {
        let measured = eventually("a patience", 20 * SECOND, || {
            of(&scene.daemon.scrape(), name, listener.addr())
        });
        println!("clients of {patience} s: {measured:.3} s");
        assert!((measured - patience).abs() < 0.1, "{measured} is not {patience}");
    }
    assert_eq!(of(&scene.daemon.scrape(), name, checked.addr()), None);
    let left =
        of(&scene.daemon.scrape(), "listenq_listener_abandoned_total", listeners[1].1.addr());
    assert_eq!(left, Some(60.0));
    let share = |listener: &Listener| {
        of(&scene.daemon.scrape(), "listenq_accept_queue_abandoned_ratio", listener.addr())
    };
    assert_eq!(share(&listeners[2].1), Some(1.0));
}

#[test]
fn accepted_connections_are_counted_exactly() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("accepted");
    let name = ns.name().to_owned();
    let listener = ns.run(|| Listen::tcp("127.0.0.1:0").backlog(8).open());
    let daemon = Daemon::start(
        None,
        BIN.as_ref(),
        &["--netns=all", &format!("--listener.include=^{name}/")],
    );
    let total = || daemon.scrape().value("listenq_netns_accepted_total", &[("netns", &name)]);
    let begin = eventually("a first total", 20 * SECOND, total);
    let await_total = |expected: u64| {
        let expected = begin + expected as f64;
        let is_so = || (total() == Some(expected)).then_some(());
        // The total changes only at the next whole dump, which a busy machine delays.
        if within(TIMEOUT, is_so).is_none() {
            let scrape = daemon.scrape().of_netns(&name);
            panic!("{:?} accepted, not {expected}:\n{}", total(), scrape.text());
        }
    };
    let target = listener.target();
    // A burst larger than the queue, which no process accepts; some of its clients reset.
    let mut clients = ns.run(|| fill(target, 15));
    thread::sleep(2 * SECOND);
    reset(clients.split_off(5));
    await_total(0);
    let taken = listener.accept_all() as u64;
    assert!(taken >= 9, "{taken}");
    await_total(taken);
    // Under load, and then at rest.
    let server = Server::start(listener, Pace::Fast);
    drop(clients);
    let load = load(800.0, 5, 5 * SECOND);
    let outcome = ns.spawn(move || visit(target, load, &Manner::default())).join().unwrap();
    thread::sleep(SECOND);
    let taken = taken + server.accepted();
    println!("{taken} accepted, {:?}", outcome.tally);
    await_total(taken);
    // A queue that is discarded when its listener closes does not count as accepted.
    let listener = server.stop();
    let _waiting = ns.run(|| fill(target, 4));
    thread::sleep(2 * SECOND);
    drop(listener);
    thread::sleep(3 * SECOND);
    await_total(taken);
    // A new listener on the same address.
    let listener = ns.run(|| Listen::tcp(target.to_string()).backlog(8).open());
    let _more = ns.run(|| fill(target, 3));
    thread::sleep(SECOND);
    let more = listener.accept_all() as u64;
    await_total(taken + more);
}

#[test]
fn the_json_reports_whether_trouble_began_with_arrivals_or_the_server() {
    if !Netns::require_root() {
        return;
    }
    let scenes: [fn(); 2] = [a_server_that_becomes_slow, clients_that_become_more];
    thread::scope(|scope| scenes.map(|scene| scope.spawn(scene)).map(|one| one.join().unwrap()));
}

fn a_server_that_becomes_slow() {
    let scene = Alone::new("slower");
    let target = scene.listener.target();
    let clients =
        scene.ns.spawn(move || visit(target, load(40.0, 85, 5 * SECOND), &Manner::default()));
    let server = Server::start(scene.listener, Pace::Fast);
    thread::sleep(45 * SECOND);
    assert_eq!(began(&scene.daemon, &scene.name), None);
    let slow = Server::start(server.stop(), Pace::PerSecond(4.0));
    let began = eventually("a beginning", TIMEOUT, || began(&scene.daemon, &scene.name));
    println!("{began}");
    assert!(began.starts_with("a slower server "), "{began}");
    drop(slow);
    clients.join().unwrap();
}

fn clients_that_become_more() {
    let scene = Alone::new("more");
    let target = scene.listener.target();
    let server = Server::start(scene.listener, Pace::PerSecond(60.0));
    let clients = scene.ns.spawn(move || {
        let _ = visit(target, load(20.0, 45, 5 * SECOND), &Manner::default());
        visit(target, load(250.0, 40, 5 * SECOND), &Manner::default())
    });
    thread::sleep(44 * SECOND);
    assert_eq!(began(&scene.daemon, &scene.name), None);
    let began = eventually("a beginning", TIMEOUT, || began(&scene.daemon, &scene.name));
    println!("{began}");
    assert!(began.starts_with("more arrivals "), "{began}");
    drop(server);
    clients.join().unwrap();
}

/// The only listener of its namespace, and a daemon outside of the namespace.
struct Alone {
    ns: Netns,
    name: String,
    listener: Listener,
    daemon: Daemon,
}

impl Alone {
    fn new(hint: &str) -> Self {
        let ns = Netns::new(hint);
        let name = ns.name().to_owned();
        let listener = ns.run(|| Listen::tcp("127.0.0.1:0").backlog(64).open());
        let include = format!("--listener.include=^{name}/");
        let daemon = Daemon::start(None, BIN.as_ref(), &["--netns=all", &include]);
        Self { ns, name, listener, daemon }
    }
}

/// How the trouble of the listener began, from the JSON.
fn began(daemon: &Daemon, netns: &str) -> Option<String> {
    let answer = daemon.get("/api/v1/listeners", &[]);
    let report: Report = serde_json::from_str(answer.text()).unwrap();
    let listener = report.listeners.iter().find(|listener| listener.netns == netns)?;
    listener.began().map(|began| began.evidence.clone())
}
