//! Checks that the lab's listeners and segments have the documented effect on a real kernel.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]

mod common;

use std::time::Duration;

use common::{SECOND, listen, only};
use listenq_lab::client::{fill, is_connected, reset};
use listenq_lab::listener::Listen;
use listenq_lab::netns::Netns;
use listenq_lab::scan::{Stray, stray_segments};

#[test]
fn listen_4_holds_five_and_the_next_overflow() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("fill");
    let listener = listen(&ns, &Listen::tcp("127.0.0.1:0").backlog(4));
    let clients = ns.run(|| fill(listener.target(), 20));
    let row = only(&ns);
    // The queue holds one connection more than its limit, and a race between two CPUs may admit a
    // sixth.
    assert!((5..=6).contains(&row.recv_q), "{row:?}");
    assert_eq!((row.send_q, row.port), (4, listener.port()));
    let overflows = ns.nstat()["TcpExtListenOverflows"];
    assert!(overflows > 0 && u64::from(row.drops) >= overflows, "{overflows} overflows, {row:?}");
    drop(clients);
    assert_eq!(listener.accept_all(), row.recv_q as usize);
    assert_eq!(only(&ns).recv_q, 0);
}

#[test]
fn stray_segments_increase_only_drops() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("scan");
    let listener = listen(&ns, &Listen::tcp("127.0.0.1:0"));
    let mut drops = Vec::new();
    for kind in [Stray::Null, Stray::SynFin, Stray::Rst] {
        ns.run(|| stray_segments(listener.target(), kind, 7, Duration::ZERO));
        drops.push(only(&ns).drops);
    }
    assert_eq!(drops, [7, 14, 21]);
    let counters = ns.nstat();
    let moved = ["TcpExtListenOverflows", "TcpExtListenDrops", "TcpInCsumErrors", "TcpInErrs"]
        .map(|n| counters[n]);
    assert_eq!(moved, [0; 4]);
}

#[test]
fn counters_are_absolute_and_of_the_namespace() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("nstat");
    assert_eq!(ns.nstat()["TcpPassiveOpens"], 0);
    let listener = listen(&ns, &Listen::tcp("127.0.0.1:0"));
    let clients = ns.run(|| fill(listener.target(), 3));
    assert_eq!(ns.nstat()["TcpPassiveOpens"], 3);
    assert_eq!(ns.nstat()["TcpPassiveOpens"], 3, "a second look shows the same");
    assert!(clients.iter().all(is_connected));
}

#[test]
fn every_kind_of_listener_opens_and_is_reached() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("kinds");
    let link = ns.add_link("veth0");
    let local = format!("[{}%veth0]:0", link.address);
    let kinds = [
        Listen::tcp("127.0.0.1:0").device("lo"),
        Listen::tcp("0.0.0.0:0"),
        Listen::tcp("[::1]:0"),
        Listen::tcp("[::]:0").v6only(true),
        Listen::tcp("[::]:0").v6only(false),
        Listen::tcp("[::]:0").device("lo"),
        Listen::tcp(&local),
        Listen::tcp("127.0.0.1:0").mptcp(),
        Listen::tcp("127.0.0.1:0").defer_accept(1),
    ];
    for kind in kinds {
        let listener = listen(&ns, &kind);
        let row = only(&ns);
        assert_eq!((row.address, row.port), (listener.addr().ip(), listener.port()), "{kind:?}");
        let clients = ns.run(|| fill(listener.target(), 1));
        clients[0].send(b"x").unwrap();
        assert!(listener.accept(3 * SECOND).is_some(), "{kind:?}");
    }
}

#[test]
fn a_row_of_ss_shows_address_device_and_dual_stack() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("ss");
    let link = ns.add_link("veth0");
    let spelled = |kind: Listen| {
        let _listener = listen(&ns, &kind);
        let row = only(&ns);
        (row.address.to_string(), row.device, row.dual_stack)
    };
    let device = |name: &str| Some(name.to_owned());
    assert_eq!(spelled(Listen::tcp("[::]:0")), ("::".into(), None, true));
    assert_eq!(spelled(Listen::tcp("[::]:0").v6only(true)), ("::".into(), None, false));
    assert_eq!(
        spelled(Listen::tcp("[::]:0").device("veth0")),
        ("::".into(), device("veth0"), true)
    );
    assert_eq!(
        spelled(Listen::tcp("0.0.0.0:0").device("lo")),
        ("0.0.0.0".into(), device("lo"), false)
    );
    let local = format!("[{}%{}]:0", link.address, link.ifindex);
    assert_eq!(spelled(Listen::tcp(local)), (link.address.to_string(), device("veth0"), false));
}

#[test]
fn deferred_clients_increase_drops_without_overflow() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("defer");
    let listener = listen(&ns, &Listen::tcp("127.0.0.1:0").defer_accept(5));
    let clients = ns.run(|| fill(listener.target(), 20));
    assert_eq!((only(&ns).recv_q, only(&ns).drops), (0, 20));
    for client in &clients {
        client.send(b"x").unwrap();
    }
    assert_eq!((listener.accept_all(), ns.nstat()["TcpExtListenOverflows"]), (20, 0));
}

#[test]
fn shutdown_then_listen_keeps_the_drops() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("again");
    let listener = listen(&ns, &Listen::tcp("127.0.0.1:0").backlog(4));
    ns.run(|| stray_segments(listener.target(), Stray::Null, 5, Duration::ZERO));
    listener.shutdown_then_listen(9);
    let row = only(&ns);
    assert_eq!((row.drops, row.send_q, row.port), (5, 9, listener.port()));
}

#[test]
fn clients_that_reset_keep_their_place_in_the_queue() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("reset");
    let listener = listen(&ns, &Listen::tcp("127.0.0.1:0"));
    reset(ns.run(|| fill(listener.target(), 6)));
    assert_eq!(only(&ns).recv_q, 6);
}

#[test]
fn a_reuseport_group_shares_its_clients() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("group");
    let first = listen(&ns, &Listen::tcp("127.0.0.1:0").reuseport());
    let target = first.target();
    let second = listen(&ns, &Listen::tcp(target).reuseport());
    let _clients = ns.run(|| fill(target, 40));
    let lengths: Vec<u32> = ns.ss_listen().iter().map(|row| row.recv_q).collect();
    assert_eq!(lengths.iter().sum::<u32>(), 40);
    assert!(lengths.iter().all(|&length| length > 0), "{lengths:?}");
    assert_eq!(first.accept_all() + second.accept_all(), 40);
}
