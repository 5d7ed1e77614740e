//! Checks that a web site of nginx and php-fpm answers and fails like a real one.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]

use std::thread;
use std::time::Duration;

use listenq_lab::hammer::Load;
use listenq_lab::netns::Netns;
use listenq_lab::tool::require_tool;
use listenq_lab::wait::eventually;
use listenq_lab::web::{PHP, Pool, Web};

const SECOND: Duration = Duration::from_secs(1);

fn ready() -> bool {
    Netns::require_root() && require_tool("nginx") && require_tool(PHP)
}

fn load(rate: f64, lasting: Duration) -> Load {
    Load { rate, lasting, patience: 10 * SECOND, at_once: 5000 }
}

#[test]
fn a_fast_pool_of_either_kind_answers_all_clients() {
    if !ready() {
        return;
    }
    for pool in [Pool::Tcp, Pool::Unix] {
        let ns = Netns::new("fastweb");
        let site = Web::new(pool).start(&ns);
        let outcome = site.load(&ns, load(100.0, SECOND));
        assert_eq!(outcome.status(200), 100, "{outcome:?} {}", site.nginx_log());
    }
}

#[test]
fn a_stuck_pool_under_a_small_somaxconn_lets_nginx_answer_504() {
    if !ready() {
        return;
    }
    let ns = Netns::new("stuckweb");
    ns.sysctl("net.core.somaxconn", 128);
    let web = Web::new(Pool::Tcp).backlog(511).workers(2).takes(SECOND / 2).read_timeout(SECOND);
    let site = web.start(&ns);
    let row = || ns.ss_listen().into_iter().find(|row| row.port == 9000).unwrap();
    assert_eq!(row().send_q, 128);
    let patience = 3 * SECOND;
    let outcome = thread::scope(|scope| {
        let clients = scope.spawn(|| site.load(&ns, Load { patience, ..load(100.0, 4 * SECOND) }));
        // During the load: the workers continue after it.
        eventually("a full queue", 10 * SECOND, || (row().recv_q > 128).then_some(()));
        clients.join().unwrap()
    });
    assert!(outcome.status(200) >= 2, "{outcome:?}");
    assert!(outcome.status(504) > 50, "{outcome:?} {}", site.nginx_log());
    assert!(ns.nstat()["TcpExtListenOverflows"] > 0);
}

#[test]
fn a_full_unix_pool_lets_nginx_answer_502() {
    if !ready() {
        return;
    }
    let ns = Netns::new("fullweb");
    let web = Web::new(Pool::Unix).backlog(4).workers(1).takes(SECOND).read_timeout(5 * SECOND);
    let site = web.start(&ns);
    let outcome = site.load(&ns, load(50.0, SECOND));
    assert!(outcome.status(502) >= 30, "{outcome:?} {}", site.nginx_log());
    assert!(site.nginx_log().contains("(11: Resource temporarily unavailable)"));
}

#[test]
fn a_site_leaves_no_process_and_no_file_behind() {
    if !ready() {
        return;
    }
    let ns = Netns::new("goneweb");
    let site = Web::new(Pool::Unix).start(&ns);
    let path = std::path::PathBuf::from(site.pool());
    assert!(path.exists() && ns.processes() >= 4);
    drop(site);
    assert_eq!((path.exists(), ns.processes()), (false, 0));
}
