//! Checks that namespaces are private, and are deleted after the test.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]
#![allow(clippy::disallowed_types, reason = "a test of starting programs names their type")]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use listenq_lab::listener::Listen;
use listenq_lab::listenq::run;
use listenq_lab::netns::{Netns, sweep};
use listenq_lab::wait::eventually;

#[test]
fn a_namespace_is_gone_after_drop_and_its_processes_with_it() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("gone");
    let path = ns.path();
    let mut child = ns.command("sleep").arg("600").spawn().unwrap();
    let inside = || (netns_of(&child) == fs::metadata(&path).unwrap().ino()).then_some(());
    eventually("the child to be inside", Duration::from_secs(1), inside);
    drop(ns);
    assert!(!path.exists());
    let status =
        eventually("the child's end", Duration::from_secs(1), || child.try_wait().unwrap());
    assert_eq!(status.signal(), Some(9));
}

fn netns_of(child: &Child) -> u64 {
    fs::metadata(format!("/proc/{}/ns/net", child.id())).unwrap().ino()
}

#[test]
fn namespaces_of_dead_tests_are_deleted() {
    if !Netns::require_root() {
        return;
    }
    // No process has this id: it is above every possible pid_max.
    let name = format!("lq-4194305-{}-left", std::process::id());
    assert!(run(None, Path::new("ip"), &["netns", "add", &name]).status.success());
    sweep();
    let path = Path::new("/run/netns").join(name);
    eventually("it to be gone", Duration::from_secs(2), || (!path.exists()).then_some(()));
}

#[test]
fn a_namespace_is_gone_after_a_panic() {
    if !Netns::require_root() {
        return;
    }
    let mut path = None;
    let panic = catch_unwind(AssertUnwindSafe(|| {
        let ns = Netns::new("panic");
        path = Some(ns.path());
        ns.run(|| panic!("on purpose"))
    }));
    assert_eq!(panic.unwrap_err().downcast_ref(), Some(&"on purpose"), "the panic comes through");
    assert!(!path.unwrap().exists());
}

#[test]
fn sockets_stay_in_the_namespace_they_were_made_in() {
    if !Netns::require_root() {
        return;
    }
    let (ns, other) = (Netns::new("mine"), Netns::new("other"));
    let listener = ns.run(|| Listen::tcp("127.0.0.1:0").open());
    assert_eq!(ns.ss_listen()[0].port, listener.port());
    assert_eq!(other.ss_listen(), []);
}

#[test]
fn sysctls_apply_to_the_namespace() {
    if !Netns::require_root() {
        return;
    }
    let (ns, other) = (Netns::new("tuned"), Netns::new("default"));
    let before = other.sysctl_get("net.core.somaxconn");
    ns.sysctl("net.core.somaxconn", 7);
    assert_eq!(
        (ns.sysctl_get("net.core.somaxconn"), other.sysctl_get("net.core.somaxconn")),
        ("7".into(), before)
    );
    let _listener = ns.run(|| Listen::tcp("127.0.0.1:0").backlog(100).open());
    assert_eq!(ns.ss_listen()[0].send_q, 7);
}

#[test]
fn the_lab_takes_over_no_namespace_of_others() {
    assert!(Netns::create("production").is_err());
    assert!(Netns::adopt("production").is_err());
    assert!(Netns::adopt("lq-does-not-exist").is_err());
}
