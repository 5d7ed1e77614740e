//! Checks that server processes listen, stop, continue and end on request.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]

mod common;

use std::time::Duration;

use common::{SECOND, only};
use listenq_lab::client::fill;
use listenq_lab::hammer::{Load, Manner, visit};
use listenq_lab::netns::Netns;
use listenq_lab::process::ServerProcess;
use listenq_lab::rootfs::Rootfs;
use listenq_lab::wait::eventually;

const EMPTY: Duration = Duration::from_secs(5);

#[test]
fn the_queue_of_a_stopped_server_grows_and_is_served_later() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("stopped");
    let server = ServerProcess::listen(&ns, "127.0.0.1:0", &["--backlog=4", "--pace=fast"]);
    let _first = ns.run(|| fill(server.target(), 3));
    eventually("an empty queue", EMPTY, || (only(&ns).recv_q == 0).then_some(()));
    server.pause();
    let _more = ns.run(|| fill(server.target(), 3));
    std::thread::sleep(SECOND / 2);
    assert_eq!((only(&ns).recv_q, only(&ns).send_q), (3, 4));
    server.resume();
    eventually("an empty queue", EMPTY, || (only(&ns).recv_q == 0).then_some(()));
}

#[test]
fn a_server_at_a_path_is_stopped_too() {
    if !Netns::require_root() {
        return;
    }
    let (ns, root) = (Netns::new("path"), Rootfs::new());
    let path = root.place("lab.sock");
    let flags = ["--backlog=4", "--pace=fast", "--answer=ok"];
    let server = ServerProcess::listen(&ns, path.to_str().unwrap(), &flags);
    let queue = || ns.ss_unix(server.address()).unwrap();
    let load = Load { rate: 100.0, lasting: SECOND / 10, patience: SECOND, at_once: 100 };
    let asking = Manner::saying("hello");
    let served = ns.run(|| visit(&path, load, &asking));
    assert_eq!((served.tally.served, served.answers["ok"]), (10, 10), "{served:?}");
    server.pause();
    let stuck = ns.run(|| visit(&path, load, &asking)).tally;
    assert_eq!((stuck.connected, stuck.gave_up, stuck.again), (5, 5, 5), "{stuck}");
    assert_eq!((queue().recv_q, queue().send_q), (5, 4));
    server.resume();
    eventually("an empty queue", EMPTY, || (queue().recv_q == 0).then_some(()));
    drop(server);
    assert!(!path.exists());
}

#[test]
fn one_stopped_member_of_a_group_keeps_its_share() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("members");
    let members = ServerProcess::group(&ns, 4, "127.0.0.1:0", &["--pace=fast"]);
    assert!(members.iter().all(|member| member.address() == members[0].address()));
    members[2].pause();
    let _clients = ns.run(|| fill(members[0].target(), 80));
    let lengths = || {
        let mut lengths: Vec<u32> = ns.ss_listen().iter().map(|row| row.recv_q).collect();
        lengths.sort_unstable();
        lengths
    };
    eventually("one queue of four", EMPTY, || (lengths()[..3] == [0; 3]).then_some(()));
    assert!(lengths()[3] > 4, "{:?}", lengths());
    members[2].resume();
    eventually("no queue", EMPTY, || (lengths() == [0; 4]).then_some(()));
}

#[test]
fn a_stopped_server_ends_when_dropped() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("killed");
    let server = ServerProcess::listen(&ns, "[::1]:0", &[]);
    let pid = server.pid();
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    assert_eq!((comm.as_str(), ns.processes()), ("listenq-lab\n", 1));
    server.pause();
    drop(server);
    assert_eq!((ns.processes(), ns.ss_listen()), (0, vec![]));
}
