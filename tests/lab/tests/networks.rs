//! Checks floods, narrow links and crowds against the counters of the kernel.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]
#![allow(clippy::print_stderr, reason = "a measurement is for the reader of the output")]

mod common;

use std::time::{Duration, Instant};

use common::{SECOND, listen, only};
use listenq_lab::client::{fill, is_connected};
use listenq_lab::crowd::Crowd;
use listenq_lab::flood::{Flood, syn_flood};
use listenq_lab::hammer::{Load, Manner, visit};
use listenq_lab::listener::Listen;
use listenq_lab::netns::Netns;
use listenq_lab::server::{Pace, Server};
use listenq_lab::wait::eventually;

/// The number of rows that `ss` shows in a state.
fn rows(ns: &Netns, state: &str) -> usize {
    let output = ns.command("ss").args(["-HOtn", "state", state]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().count()
}

#[test]
fn a_flood_fills_the_syn_queue_and_overflows_nothing() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("flood");
    let listener = listen(&ns, &Listen::tcp("127.0.0.1:0").backlog(16));
    let target = listener.target();
    let begin = Instant::now();
    syn_flood(&ns, target, 1000, 1000.0);
    assert!(begin.elapsed() < 2 * SECOND, "{:?}", begin.elapsed());
    assert_eq!((rows(&ns, "syn-recv"), only(&ns).recv_q), (17, 0));
    let counters = ns.nstat();
    assert_eq!(counters["TcpExtTCPReqQFullDoCookies"], 983);
    assert_eq!(counters["TcpExtSyncookiesSent"], 983);
    assert_eq!((counters["TcpExtListenOverflows"], counters["TcpEstabResets"]), (0, 0));
    assert_eq!(counters["TcpOutRsts"], 0);
    // Clients that complete the handshake are still served.
    let _server = Server::start(listener, Pace::Fast);
    let load = Load { rate: 100.0, lasting: SECOND / 2, patience: SECOND, at_once: 100 };
    assert_eq!(ns.run(|| visit(target, load, &Manner::default())).tally.served, 50);
}

#[test]
fn a_flood_runs_beside_the_test_until_it_is_dropped() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("beside");
    let listener = listen(&ns, &Listen::tcp("127.0.0.1:0"));
    let flood = Flood::start(&ns, listener.target(), 100_000, 1000.0);
    eventually("some SYNs", SECOND, || (flood.sent() > 20).then_some(()));
    drop(flood);
    let begun = ns.nstat()["TcpInSegs"];
    std::thread::sleep(SECOND / 10);
    assert!((20..5000).contains(&begun) && ns.nstat()["TcpInSegs"] == begun, "{begun}");
}

#[test]
fn sixty_clients_in_one_round_trip_are_all_served_though_most_need_cookies() {
    if !Netns::require_root() {
        return;
    }
    let (server_side, client_side) = (Netns::new("narrow"), Netns::new("far"));
    let [here, _] = server_side.slow_link_to(&client_side, 200);
    let listener = listen(&server_side, &Listen::tcp(format!("{here}:0")).backlog(16));
    let target = listener.target();
    let server = Server::start_holding(listener, Pace::Fast, 10 * SECOND);
    let clients = client_side.run(|| fill(target, 60));
    let in_flight = clients.iter().filter(|client| !is_connected(client)).count();
    eventually("sixty served", 5 * SECOND, || (server.accepted() == 60).then_some(()));
    let counters = server_side.nstat();
    let cookies = counters["TcpExtSyncookiesSent"];
    eprintln!("in flight when the last had begun: {in_flight}; cookies: {cookies}");
    assert!((20..=43).contains(&cookies), "{cookies}");
    assert_eq!(counters["TcpExtListenOverflows"], 0);
}

#[test]
fn a_crowd_connects_and_disconnects() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("crowd");
    let crowd = Crowd::gather(&ns, 20_000);
    eprintln!("{} connections took {:?}", crowd.connections, crowd.took);
    assert_eq!((crowd.pids().len(), Crowd::ends(&ns)), (4, 40_000));
    assert_eq!(ns.nstat()["TcpExtListenOverflows"], 0);
    drop(crowd);
    let end = Duration::from_secs(10);
    eventually("the end", end, || (Crowd::ends(&ns) == 0).then_some(()));
    assert_eq!(ns.processes(), 0);
}

#[test]
fn deferred_clients_are_accepted_after_their_first_data() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("deferred");
    let listener = listen(&ns, &Listen::tcp("127.0.0.1:0").defer_accept(5));
    let target = listener.target();
    let silent = ns.run(|| fill(target, 10));
    assert_eq!((rows(&ns, "syn-recv"), only(&ns).recv_q), (10, 0));
    let load = Load { rate: 100.0, lasting: SECOND / 5, patience: SECOND, at_once: 100 };
    let tally = ns.run(|| visit(target, load, &Manner::saying("hello"))).tally;
    assert_eq!((tally.connected, tally.gave_up, only(&ns).recv_q), (20, 20, 20), "{tally}");
    listenq_lab::client::say(&silent, b"hello");
    eventually("thirty", SECOND, || (only(&ns).recv_q == 30).then_some(()));
    assert_eq!(ns.nstat()["TcpExtListenOverflows"], 0);
}
