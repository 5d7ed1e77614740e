//! Checks that servers accept, and that clients arrive and leave, as configured.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]

mod common;

use std::time::Instant;

use common::{SECOND, listen, only, target_in};
use listenq_lab::client::{burst, fill};
use listenq_lab::hammer::{Load, Manner, hammer, visit};
use listenq_lab::listener::Listen;
use listenq_lab::netns::Netns;
use listenq_lab::rootfs::Rootfs;
use listenq_lab::server::{Pace, Server, Service};
use listenq_lab::unix::{Kind, UnixListener, Waited, wait_in_line};
use listenq_lab::wait::eventually;

#[test]
fn a_burst_connects_and_disconnects() {
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
fn a_fast_server_serves_all_clients() {
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
    // The first turn of the server is immediate.
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

/// The number of connections that wait at a listener and were closed by their client.
fn close_wait(ns: &Netns) -> usize {
    let mut command = ns.command("ss");
    let output = command.args(["-HOtn", "state", "close-wait"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().count()
}

#[test]
fn clients_that_leave_by_fin_stay_in_the_table_and_those_that_reset_do_not() {
    if !Netns::require_root() {
        return;
    }
    for (manner, in_table) in
        [(Manner::saying("hello"), 20), (Manner::saying("hello").resetting(), 0)]
    {
        let ns = Netns::new("leave");
        let listener = listen(&ns, &Listen::tcp("127.0.0.1:0"));
        let load = Load { rate: 100.0, lasting: SECOND / 5, patience: SECOND / 2, at_once: 100 };
        let tally = ns.run(|| visit(listener.target(), load, &manner)).tally;
        assert_eq!((tally.connected, tally.gave_up, tally.unconnected), (20, 20, 0), "{tally}");
        assert_eq!((only(&ns).recv_q, close_wait(&ns)), (20, in_table), "{manner:?}");
    }
}

#[test]
fn clients_at_a_full_queue_give_up_and_clients_without_a_listener_are_refused() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("beyond");
    let listener = listen(&ns, &Listen::tcp("127.0.0.1:0").backlog(4));
    let target = listener.target();
    let load = Load { rate: 100.0, lasting: SECOND / 5, patience: SECOND / 2, at_once: 100 };
    let tally = ns.run(|| visit(target, load, &Manner::default())).tally;
    assert_eq!((tally.started, tally.gave_up, tally.failed), (20, 20, 0), "{tally}");
    assert!(tally.unconnected >= 10, "{tally}");
    drop(listener);
    let tally = ns.run(|| visit(target, load, &Manner::default())).tally;
    assert_eq!((tally.started, tally.refused, tally.failed), (20, 20, 20), "{tally}");
}

#[test]
fn half_closing_clients_are_answered_by_a_fast_server() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("half");
    let listener = listen(&ns, &Listen::tcp("127.0.0.1:0"));
    let target = listener.target();
    let server = Server::start_serving(listener, Pace::Fast, Service::Answer(b"ok\n".to_vec()));
    let load = Load { rate: 500.0, lasting: SECOND, patience: SECOND, at_once: 500 };
    let manner = Manner::saying("hello").half_closing();
    let outcome = ns.run(|| visit(target, load, &manner));
    assert_eq!((outcome.tally.served, outcome.answers["ok"]), (500, 500), "{outcome:?}");
    assert_eq!(server.accepted(), 500);
}

#[test]
fn a_half_closed_client_waits_in_close_wait_until_it_is_answered() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("halfway");
    let listener = listen(&ns, &Listen::tcp("127.0.0.1:0"));
    let target = listener.target();
    let load = Load { rate: 100.0, lasting: SECOND / 10, patience: 5 * SECOND, at_once: 500 };
    let clients = ns.spawn(move || visit(target, load, &Manner::default().half_closing()));
    eventually("ten in the queue", SECOND, || (close_wait(&ns) == 10).then_some(()));
    assert_eq!(only(&ns).recv_q, 10);
    let _server = Server::start_serving(listener, Pace::Fast, Service::Answer(b"ok\n".to_vec()));
    assert_eq!(clients.join().unwrap().answers["ok"], 10);
}

#[test]
fn unix_clients_wait_for_a_place_in_the_queue() {
    if !Netns::require_root() {
        return;
    }
    let (ns, root) = (Netns::new("line"), Rootfs::new());
    let path = root.place("line.sock");
    let name = path.to_str().unwrap();
    let listener = UnixListener::open(Kind::Stream, name, 4);
    let begin = Instant::now();
    let waited = wait_in_line(name, 9, SECOND / 2);
    assert_eq!(waited, Waited { connected: 5, gave_up: 4, failed: 0 });
    assert!(begin.elapsed() >= SECOND / 2);
    let _server = Server::start(listener, Pace::PerSecond(100.0));
    let waited = ns.run(|| wait_in_line(name, 30, 5 * SECOND));
    assert_eq!(waited, Waited { connected: 30, gave_up: 0, failed: 0 });
}
