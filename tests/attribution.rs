//! Tests the attribution of overflows to listeners: under load, restarts and scans, and for bursts
//! that no sample saw.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]
#![allow(clippy::print_stdout, reason = "the measured figures are for the reader of --nocapture")]

use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::Duration;

use listenq_lab::client::fill;
use listenq_lab::hammer::{Load, Tally, hammer};
use listenq_lab::listener::{Listen, Listener};
use listenq_lab::listenq::{Daemon, Launch};
use listenq_lab::metrics::Metrics;
use listenq_lab::netns::Netns;
use listenq_lab::scan::{Stray, stray_segments};
use listenq_lab::server::{Pace, Server};
use listenq_lab::wait::eventually;

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
const TIMEOUT: Duration = Duration::from_secs(15);
const SECOND: Duration = Duration::from_secs(1);

fn listen(ns: &Netns, backlog: i32) -> Listener {
    ns.run(|| Listen::tcp("127.0.0.1:0").backlog(backlog).open())
}

/// Clients that leave before the kernel would retransmit their SYN: each client is refused at most
/// once.
fn load(ns: &Netns, address: SocketAddr, rate: f64, seconds: u64) -> JoinHandle<Tally> {
    let lasting = Duration::from_secs(seconds);
    let patience = Duration::from_millis(300);
    ns.spawn(move || hammer(address, Load { rate, lasting, patience, at_once: 4000 }))
}

/// Scrapes until the load has ended, and checks the laws in every scrape.
fn watch(daemon: &Daemon, load: JoinHandle<Tally>) -> Tally {
    let (mut last, mut scrapes) = (daemon.scrape(), 0);
    while !load.is_finished() {
        let scrape = daemon.scrape();
        assert_laws(&last, &scrape);
        (last, scrapes) = (scrape, scrapes + 1);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(scrapes > 20, "only {scrapes} scrapes under load");
    load.join().unwrap()
}

fn assert_laws(before: &Metrics, after: &Metrics) {
    after.assert_unique();
    assert_eq!(after.fallen_since(before), [""; 0]);
    let sums = after.overflows();
    assert!(sums.accounted() <= sums.kernel, "{sums:?}");
}

/// Waits until every overflow that `nstat` shows is accounted for.
#[track_caller]
fn settled(ns: &Netns, daemon: &Daemon) -> Metrics {
    eventually("the accounted overflows to be those of nstat", TIMEOUT, || {
        let nstat = ns.nstat()["TcpExtListenOverflows"] as f64;
        let scrape = daemon.scrape();
        let sums = scrape.overflows();
        let still = ns.nstat()["TcpExtListenOverflows"] as f64 == nstat;
        (still && [sums.kernel, sums.accounted()] == [nstat; 2]).then_some(scrape)
    })
}

fn overflows(scrape: &Metrics, address: SocketAddr) -> f64 {
    scrape.at(address).overflows.unwrap()
}

/// Accepts all waiting connections, so that no FIN or SYN is refused after this.
fn calm(server: Server) -> Server {
    Server::start(server.stop(), Pace::Fast)
}

#[test]
fn the_sum_holds_at_every_scrape_and_ends_at_the_value_of_nstat() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("sum");
    let servers = [8, 16, 32].map(|backlog| listen(&ns, backlog));
    let addresses = [0, 1, 2].map(|n| servers[n].addr());
    let daemon = Launch::new(BIN).inside(&ns).start();
    let servers = Server::start_each(servers, Pace::PerSecond(50.0));
    let others = [1, 2].map(|n| load(&ns, addresses[n], 400.0, 4));
    watch(&daemon, load(&ns, addresses[0], 800.0, 4));
    let _tallies = others.map(|other| other.join().unwrap());
    let _servers: Vec<_> = servers.into_iter().map(calm).collect();
    let sums = settled(&ns, &daemon).overflows();
    println!("sum law: {sums:?}");
    assert!(sums.kernel > 1000.0 && sums.unexposed == 0.0, "{sums:?}");
}

#[test]
fn a_member_that_closes_under_load_does_not_lower_the_counters() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("member");
    let first = ns.run(|| Listen::tcp("127.0.0.1:0").reuseport().backlog(4).open());
    let address = first.addr();
    let open = || Listen::tcp(address).reuseport().backlog(4).open();
    let members: Vec<_> = (0..3).map(|_| ns.run(open)).chain([first]).collect();
    let mut members = Server::start_each(members, Pace::PerSecond(40.0));
    let daemon = Launch::new(BIN).inside(&ns).start();
    let clients = load(&ns, address, 1000.0, 4);
    eventually("overflows", TIMEOUT, || {
        (overflows(&daemon.scrape(), address) > 300.0).then_some(())
    });
    let before = daemon.scrape();
    drop(members.pop().unwrap().stop());
    watch(&daemon, clients);
    let _members: Vec<_> = members.into_iter().map(calm).collect();
    let after = settled(&ns, &daemon);
    assert_laws(&before, &after);
    assert_eq!(after.at(address).sockets, Some(3.0));
    println!("closed member: {:?}, attributed {}", after.overflows(), overflows(&after, address));
    assert!(
        overflows(&after, address) >= 0.9 * after.overflows().kernel,
        "{:?}",
        after.overflows()
    );
}

#[test]
fn a_restarted_server_keeps_its_counter_and_its_overflows() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("restart");
    let listener = listen(&ns, 8);
    let address = listener.addr();
    let mut server = Server::start(listener, Pace::PerSecond(50.0));
    let daemon = Launch::new(BIN).inside(&ns).start();
    let clients = load(&ns, address, 800.0, 6);
    for restart in 1..=3 {
        let wanted = f64::from(restart * 500);
        eventually("overflows", TIMEOUT, || {
            (overflows(&daemon.scrape(), address) > wanted).then_some(())
        });
        drop(server.stop());
        let again = ns.run(|| Listen::tcp(address).backlog(8).open());
        server = Server::start(again, Pace::PerSecond(50.0));
    }
    watch(&daemon, clients);
    let _server = calm(server);
    let scrape = settled(&ns, &daemon);
    let (attributed, sums) = (overflows(&scrape, address), scrape.overflows());
    println!("restarts: attributed {attributed} of {sums:?}");
    assert!(attributed >= 0.9 * sums.kernel, "{attributed} of {sums:?}");
    assert_eq!(attributed, sums.listeners);
}

/// Scans one idle listener while its neighbour overflows, and checks how the overflows are split.
fn assert_a_scan_attracts_no_overflow(hint: &str, head_start: Duration) {
    let ns = Netns::new(hint);
    let (idle, busy) = (listen(&ns, 128), listen(&ns, 8));
    let (idle_at, busy_at) = (idle.addr(), busy.addr());
    let daemon = Launch::new(BIN).inside(&ns).start();
    let server = Server::start(busy, Pace::PerSecond(50.0));
    let scans = [Stray::Null, Stray::SynFin, Stray::Rst].map(|kind| {
        ns.spawn(move || stray_segments(idle_at, kind, 500, Duration::from_millis(10)))
    });
    std::thread::sleep(head_start);
    watch(&daemon, load(&ns, busy_at, 800.0, 4));
    for scan in scans {
        scan.join().unwrap();
    }
    let _server = calm(server);
    eventually("the last of 1,500 stray segments", TIMEOUT, || {
        (daemon.scrape().at(idle_at).drops == Some(1500.0)).then_some(())
    });
    let scrape = settled(&ns, &daemon);
    let sums = scrape.overflows();
    let [idle, busy] = [idle_at, busy_at].map(|at| overflows(&scrape, at) / sums.kernel);
    println!("{hint}: idle {idle:.4}, busy {busy:.4}, {sums:?}");
    assert!(sums.kernel > 1000.0 && idle <= 0.01 && busy >= 0.99, "{idle}, {busy}, {sums:?}");
}

#[test]
fn a_scanned_idle_listener_gets_no_overflow_of_its_neighbour() {
    if Netns::require_root() {
        assert_a_scan_attracts_no_overflow("scan", SECOND);
    }
}

#[test]
fn a_scan_that_begins_with_the_overflow_attracts_no_overflow() {
    if Netns::require_root() {
        assert_a_scan_attracts_no_overflow("scan-at-once", Duration::ZERO);
    }
}

#[test]
fn a_burst_between_two_samples_is_attributed_and_shows_in_the_peak() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("burst");
    let (listener, neighbour) = (listen(&ns, 8), listen(&ns, 8));
    let daemon = Launch::new(BIN).args(&["--sample.interval=1s"]).inside(&ns).start();
    let samples = || daemon.scrape().value("listenq_samples_total", &[]).unwrap();
    for _ in 0..3 {
        // The next sample follows at least 500 ms after this one: long enough for the whole burst.
        let before = samples();
        eventually("the next sample", TIMEOUT, || (samples() > before).then_some(()));
        drop(ns.run(|| fill(listener.target(), 40)));
        assert!(listener.accept_all() >= 9);
        settled(&ns, &daemon);
    }
    let scrape = settled(&ns, &daemon);
    let (seen, other) = (scrape.at(listener.addr()), scrape.at(neighbour.addr()));
    assert_eq!(seen.connection_seconds, Some(0.0), "a sample saw the burst: {seen:?}");
    let sums = scrape.overflows();
    println!("bursts: {sums:?}");
    assert!(sums.kernel >= 90.0, "{sums:?}");
    assert_eq!((sums.unattributed, seen.overflows), (0.0, Some(sums.kernel)));
    assert_eq!((seen.peak_length, seen.length), (Some(9.0), Some(0.0)));
    assert_eq!((other.peak_length, other.overflows), (Some(0.0), Some(0.0)));
}

#[test]
fn the_split_between_two_listeners_equals_the_count_of_their_clients() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("split");
    let (few, many) = (listen(&ns, 8), listen(&ns, 8));
    let addresses = [few.addr(), many.addr()];
    let daemon = Launch::new(BIN).inside(&ns).start();
    let servers = Server::start_each([few, many], Pace::PerSecond(50.0));
    let beside = load(&ns, addresses[0], 200.0, 5);
    let tally = watch(&daemon, load(&ns, addresses[1], 700.0, 5));
    // On loopback the handshake is complete when `connect` returns, so a full queue refuses the
    // SYN, and the client leaves before it would send the SYN again. One client that never
    // connected is therefore one overflow. This number does not depend on `sk_drops`, by which
    // listenq splits the overflows.
    let refused = [beside.join().unwrap(), tally].map(|t| (t.started - t.connected) as f64);
    let _servers: Vec<_> = servers.into_iter().map(calm).collect();
    let scrape = settled(&ns, &daemon);
    let attributed = addresses.map(|address| overflows(&scrape, address));
    let sums = scrape.overflows();
    println!("split: refused {refused:?}, attributed {attributed:?}, {sums:?}");
    assert!(
        (refused[0] + refused[1] - sums.kernel).abs() <= 0.05 * sums.kernel,
        "{refused:?} {sums:?}"
    );
    for (refused, attributed) in refused.into_iter().zip(attributed) {
        assert!(
            (attributed - refused).abs() <= 0.05 * refused,
            "{attributed} attributed, {refused} refused"
        );
    }
}

/// A burst that no sample saw waits one sample for its listener. Here no sample follows.
#[test]
fn when_a_namespace_ends_all_its_overflows_are_accounted_for() {
    if !Netns::require_root() {
        return;
    }
    let (here, ending) = (Netns::new("watcher"), Netns::new("ends"));
    let ours = format!("--listener.include=^lq-{}-", std::process::id());
    let args = ["--netns=all", "--discovery.interval=1s", "--sample.interval=1s", &ours];
    let daemon = Launch::new(BIN).args(&args).inside(&here).start();
    let listener = listen(&ending, 8);
    let (name, kernel) = (ending.name().to_owned(), "listenq_netns_listen_overflows_total");
    eventually("the namespace to be seen", TIMEOUT, || {
        daemon.scrape().value(kernel, &[("netns", &name)])
    });
    // The first three samples of a namespace are a baseline.
    let sampled = "listenq_netns_sampled_seconds_total";
    eventually("four samples", TIMEOUT, || {
        daemon.scrape().value(sampled, &[("netns", &name)]).filter(|seconds| *seconds >= 4.0)
    });
    drop(ending.run(|| fill(listener.target(), 60)));
    assert!(listener.accept_all() >= 9);
    eventually("the kernel's count", TIMEOUT, || {
        daemon.scrape().value(kernel, &[("netns", &name)]).filter(|count| *count >= 51.0)
    });
    drop((listener, ending));
    let ended = eventually("the namespace to end", TIMEOUT, || {
        let scrape = daemon.scrape();
        let labels = [("netns", name.as_str())];
        let sampled = scrape.value("listenq_netns_last_sample_timestamp_seconds", &labels);
        sampled.is_none().then(|| scrape.of_netns(&name))
    });
    let sums = ended.overflows();
    println!("{name}: {sums:?}");
    assert_eq!((sums.accounted(), sums.unattributed), (sums.kernel, 0.0));
}
