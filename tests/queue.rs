//! Tests the accept queue in a scrape: length, limit, fullness and their counters, against a real
//! kernel.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]

use listenq_lab::client::fill;
use listenq_lab::exposed::Exposed;
use listenq_lab::listener::{Listen, Listener};
use listenq_lab::listenq::{Daemon, Launch};
use listenq_lab::netns::Netns;
use listenq_lab::wait::{TIMEOUT, eventually};

const BIN: &str = env!("CARGO_BIN_EXE_listenq");

/// A namespace with a daemon and one listener that no process accepts from.
fn scene(hint: &str, backlog: i32) -> (Netns, Daemon, Listener) {
    let ns = Netns::new(hint);
    let listener = ns.run(|| Listen::tcp("127.0.0.1:0").backlog(backlog).open());
    let daemon = Launch::new(BIN).inside(&ns).start();
    (ns, daemon, listener)
}

fn exposed(daemon: &Daemon, listener: &Listener) -> Exposed {
    daemon.scrape().at(listener.addr())
}

/// Waits until the listener's series satisfy the condition.
#[track_caller]
fn await_series(
    daemon: &Daemon,
    listener: &Listener,
    what: &str,
    wanted: impl Fn(&Exposed) -> bool,
) -> Exposed {
    eventually(what, TIMEOUT, || Some(exposed(daemon, listener)).filter(&wanted))
}

/// Waits until every overflow of the kernel is accounted for, and returns their number.
#[track_caller]
fn await_agreement(ns: &Netns, daemon: &Daemon) -> f64 {
    eventually("the accounted overflows to be those of nstat", TIMEOUT, || {
        let before = ns.nstat()["TcpExtListenOverflows"];
        let sums = daemon.scrape().overflows();
        let still = ns.nstat()["TcpExtListenOverflows"] == before;
        (still && sums.accounted() == before as f64 && sums.kernel == before as f64)
            .then_some(sums.kernel)
    })
}

#[test]
fn a_filled_listen_4_is_full_and_its_counters_rise() {
    if !Netns::require_root() {
        return;
    }
    let (ns, daemon, listener) = scene("full", 4);
    let clients = ns.run(|| fill(listener.target(), 20));
    let full = await_series(&daemon, &listener, "a full queue", |q| q.length > q.limit);
    // The queue holds one connection more than its limit, and a race between two CPUs may admit a
    // sixth.
    let length = full.length.unwrap();
    assert!((5.0..=6.0).contains(&length), "{full:?}");
    let shown = [full.sockets, full.limit, full.fullest_ratio, full.peak_length];
    assert_eq!(shown, [1.0, 4.0, length / 5.0, length].map(Some));

    let later = await_series(&daemon, &listener, "a second of fullness", |q| {
        q.full_seconds.unwrap() - full.full_seconds.unwrap() > 1.0
    });
    let grown = later.full_seconds.unwrap() - full.full_seconds.unwrap();
    let waited = later.connection_seconds.unwrap() - full.connection_seconds.unwrap();
    assert!((waited / grown - length).abs() < 1e-6, "{full:?} {later:?}");

    let overflows = await_agreement(&ns, &daemon);
    assert!(overflows >= 14.0, "{overflows} overflows of 20 clients at 5 places");
    assert_eq!(exposed(&daemon, &listener).overflows, Some(overflows));
    drop(clients);
}

#[test]
fn a_drained_queue_is_empty_and_keeps_its_peak() {
    if !Netns::require_root() {
        return;
    }
    let (ns, daemon, listener) = scene("drain", 16);
    let clients = ns.run(|| fill(listener.target(), 10));
    await_series(&daemon, &listener, "ten waiting", |q| q.length == Some(10.0));
    drop(clients);
    assert_eq!(listener.accept_all(), 10);
    let empty = await_series(&daemon, &listener, "an empty queue", |q| q.length == Some(0.0));
    assert!(empty.connection_seconds.unwrap() > 0.0, "{empty:?}");
    let expected = Exposed {
        sockets: Some(1.0),
        length: Some(0.0),
        limit: Some(16.0),
        peak_length: Some(10.0),
        fullest_ratio: Some(0.0),
        connection_seconds: empty.connection_seconds,
        full_seconds: Some(0.0),
        drops: Some(0.0),
        overflows: Some(0.0),
    };
    assert_eq!(empty, expected);
}

#[test]
fn listen_0_is_full_with_one() {
    if !Netns::require_root() {
        return;
    }
    let (ns, daemon, listener) = scene("zero", 0);
    let empty = exposed(&daemon, &listener);
    assert_eq!([empty.limit, empty.length, empty.fullest_ratio], [Some(0.0); 3]);
    let clients = ns.run(|| fill(listener.target(), 5));
    let full = await_series(&daemon, &listener, "a full queue", |q| q.length > q.limit);
    let length = full.length.unwrap();
    assert!((1.0..=2.0).contains(&length), "{full:?}");
    assert_eq!([full.limit, full.fullest_ratio], [Some(0.0), Some(length)]);
    await_series(&daemon, &listener, "fullness to be credited", |q| q.full_seconds > Some(0.3));
    drop(clients);
}

#[test]
fn shutdown_then_listen_keeps_the_counters() {
    if !Netns::require_root() {
        return;
    }
    let (ns, daemon, listener) = scene("again", 4);
    drop(ns.run(|| fill(listener.target(), 20)));
    await_series(&daemon, &listener, "a full queue", |q| q.full_seconds > Some(0.2));
    let before = daemon.scrape();
    listener.shutdown_then_listen(8);
    let fresh = await_series(&daemon, &listener, "the new limit", |q| q.limit == Some(8.0));
    assert_eq!((fresh.sockets, fresh.length), (Some(1.0), Some(0.0)));

    let earlier = exposed(&daemon, &listener).overflows.unwrap();
    assert!(earlier >= 14.0, "{earlier} overflows before");
    drop(ns.run(|| fill(listener.target(), 30)));
    listener.accept_all();
    let total = await_agreement(&ns, &daemon);
    let after = daemon.scrape();
    assert_eq!(after.fallen_since(&before), [""; 0]);
    assert_eq!(after.at(listener.addr()).overflows, Some(total));
    assert!(total >= earlier + 20.0, "{earlier} overflows before, {total} after");
}

#[test]
fn a_closed_listener_keeps_its_counters_and_loses_its_gauges() {
    if !Netns::require_root() {
        return;
    }
    let (ns, daemon, listener) = scene("closed", 4);
    let address = listener.addr();
    let clients = ns.run(|| fill(listener.target(), 20));
    await_series(&daemon, &listener, "a full queue", |q| q.full_seconds > Some(0.2));
    drop(clients);
    listener.accept_all();
    await_agreement(&ns, &daemon);
    await_series(&daemon, &listener, "an empty queue", |q| q.length == Some(0.0));
    let open = daemon.scrape();
    drop(listener);
    let closed = eventually("the closed listener to have no socket", TIMEOUT, || {
        Some(daemon.scrape()).filter(|scrape| scrape.at(address).sockets == Some(0.0))
    });
    let expected = Exposed {
        sockets: Some(0.0),
        length: None,
        limit: None,
        peak_length: None,
        fullest_ratio: None,
        ..open.at(address)
    };
    assert_eq!(closed.at(address), expected);
    assert_eq!(closed.fallen_since(&open), [""; 0]);
    assert_eq!(closed.overflows().accounted(), open.overflows().accounted());
}

#[test]
fn sockets_lengths_and_limits_of_a_reuseport_group_add_up() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("group");
    let first = ns.run(|| Listen::tcp("127.0.0.1:0").reuseport().backlog(3).open());
    let member = |backlog| Listen::tcp(first.addr()).reuseport().backlog(backlog);
    let others: Vec<_> = [5, 7, 90].map(|backlog| ns.run(|| member(backlog).open())).into();
    let daemon = Launch::new(BIN).inside(&ns).start();
    let clients = ns.run(|| fill(first.target(), 60));
    let rows: Vec<_> = ns.ss_listen().into_iter().filter(|r| r.port == first.port()).collect();
    let fullness = rows.iter().map(|r| f64::from(r.recv_q) / f64::from(r.send_q + 1));
    let fullest = fullness.fold(0.0, f64::max);
    let length = f64::from(rows.iter().map(|r| r.recv_q).sum::<u32>());
    let group = await_series(&daemon, &first, "the clients", |q| q.length == Some(length));
    assert!(fullest >= 1.0 && rows.len() == 4, "{rows:?}");
    let shown = [group.sockets, group.limit, group.fullest_ratio, group.peak_length];
    assert_eq!(shown, [4.0, 105.0, fullest, length].map(Some));
    drop((clients, others));
}
