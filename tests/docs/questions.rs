//! Tests the answers of docs/faq.md on the real kernel.

use std::io::Read;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use listenq_lab::client::{fill, is_connected};
use listenq_lab::listener::Listen;
use listenq_lab::netns::Netns;
use listenq_lab::server::{Pace, Server};

/// A timeout that is shorter than the first retry of a client without an answer.
const ONE_TRY: Duration = Duration::from_millis(500);

fn overflows(ns: &Netns) -> u64 {
    ns.nstat()["TcpExtListenOverflows"]
}

/// Connects twenty clients to a `listen(4)` without `accept`; returns the numbers of connections,
/// errors and overflows.
fn twenty_at_a_queue_of_four(tcp_max_syn_backlog: u32) -> (usize, usize, u64) {
    let ns = Netns::new("docs-questions");
    ns.sysctl("net.ipv4.tcp_max_syn_backlog", tcp_max_syn_backlog);
    let listener = ns.run(|| Listen::tcp("127.0.0.1:0").backlog(4).open());
    let clients = ns.run(|| fill(listener.target(), 20));
    thread::sleep(ONE_TRY);
    let connected = clients.iter().filter(|client| is_connected(client)).count();
    let refused = clients.iter().filter(|client| client.take_error().unwrap().is_some()).count();
    (connected, refused, overflows(&ns))
}

#[test]
fn a_full_queue_refuses_no_client_and_tcp_max_syn_backlog_does_not_widen_it() {
    if !Netns::require_root() {
        return;
    }
    let [small, large] = [16, 65_536].map(twenty_at_a_queue_of_four);
    // Two processors may admit a sixth client.
    let (connected, refused, overflows) = small;
    assert!((5..=6).contains(&connected), "{small:?}");
    assert_eq!((refused, overflows), (0, 20 - connected as u64), "{small:?}");
    assert!((5..=6).contains(&large.0), "{large:?}");
    assert_eq!((large.1, large.2), (0, 20 - large.0 as u64), "{large:?}");
}

#[test]
fn a_prompt_server_serves_thousands_of_connections_through_a_queue_of_four() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("docs-prompt");
    let listener = ns.run(|| Listen::tcp("127.0.0.1:0").backlog(4).open());
    let target = listener.target();
    let _server = Server::start(listener, Pace::Fast);
    let visit = || TcpStream::connect(target).unwrap().read(&mut [0]).unwrap();
    let said: usize = ns.run(|| (0..5_000).map(|_| visit()).sum());
    assert_eq!((said, overflows(&ns)), (0, 0));
}

#[test]
fn a_raised_somaxconn_changes_nothing_until_listen_is_called_again() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("docs-raised");
    let limit = || ns.ss_listen()[0].send_q;
    ns.sysctl("net.core.somaxconn", 128);
    let listener = ns.run(|| Listen::tcp("127.0.0.1:0").backlog(511).open());
    let before = limit();
    ns.sysctl("net.core.somaxconn", 4096);
    let raised = limit();
    listener.shutdown_then_listen(511);
    assert_eq!((before, raised, limit()), (128, 128, 511));
}
