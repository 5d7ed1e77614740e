//! Checks that servers accept, and clients come and leave, as they are told.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]

mod common;

use std::time::Instant;

use common::{SECOND, listen, only, target_in};
use listenq_lab::client::{burst, fill};
use listenq_lab::hammer::{Load, hammer};
use listenq_lab::listener::Listen;
use listenq_lab::netns::Netns;
use listenq_lab::server::{Pace, Server};
use listenq_lab::wait::eventually;

#[test]
fn a_burst_comes_and_goes() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("burst");
    let server = Server::start(listen(&ns, &Listen::tcp("127.0.0.1:0")), Pace::Fast);
    let target = target_in(&ns);
    assert_eq!(ns.run(|| burst(target, 30, SECOND / 10)), 30);
    eventually("30 accepted", SECOND, || (server.accepted() == 30).then_some(()));
}

#[test]
fn a_slow_server_accepts_at_its_pace_and_impatient_clients_leave() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("slow");
    let server =
        Server::start(listen(&ns, &Listen::tcp("127.0.0.1:0").backlog(5)), Pace::PerSecond(50.0));
    let target = target_in(&ns);
    let load = Load { rate: 200.0, lasting: 2 * SECOND, patience: SECOND / 2, at_once: 500 };
    let begin = Instant::now();
    let tally = ns.run(|| hammer(target, load));
    let most = begin.elapsed().as_secs_f64() * 50.0 + 2.0;
    assert_eq!((tally.started, tally.failed, tally.skipped), (400, 0, 0));
    assert_eq!(tally.served + tally.gave_up, 400);
    assert!((70..=most as u64).contains(&server.accepted()), "{}", server.accepted());
    assert!(tally.gave_up > 100, "{tally}");
}

#[test]
fn a_fast_server_serves_everyone() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("fast");
    let listener = listen(&ns, &Listen::tcp("127.0.0.1:0").backlog(1000));
    let target = listener.target();
    let server = Server::start(listener, Pace::Fast);
    let load = Load { rate: 2000.0, lasting: SECOND, patience: 5 * SECOND, at_once: 2000 };
    let tally = ns.run(|| hammer(target, load));
    assert_eq!((tally.served, tally.connected, server.accepted()), (2000, 2000, 2000), "{tally}");
}

#[test]
fn a_server_in_bursts_lets_the_queue_grow() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("bursts");
    let listener = listen(&ns, &Listen::tcp("127.0.0.1:0"));
    let target = listener.target();
    let server = Server::start(listener, Pace::Bursts(SECOND));
    // Its first turn comes at once.
    std::thread::sleep(SECOND / 10);
    let _clients = ns.run(|| fill(target, 8));
    assert_eq!((only(&ns).recv_q, server.accepted()), (8, 0));
    eventually("the burst", 2 * SECOND, || (server.accepted() == 8).then_some(()));
}

#[test]
fn a_server_stops_within_100_ms_and_gives_its_listener_back() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("stop");
    for pace in [Pace::Fast, Pace::PerSecond(0.1), Pace::Never, Pace::Bursts(60 * SECOND)] {
        let server = Server::start(listen(&ns, &Listen::tcp("127.0.0.1:0")), pace);
        let _clients = ns.run(|| fill(target_in(&ns), 5));
        let begin = Instant::now();
        let listener = server.stop();
        assert!(begin.elapsed() < SECOND / 10, "{pace:?} took {:?}", begin.elapsed());
        assert_eq!(only(&ns).port, listener.port());
    }
}
