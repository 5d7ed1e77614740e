//! A procfs that hides processes, denies access to them, or loses them.

use std::time::Duration;

use listenq_lab::client::fill;
use listenq_lab::fault::Fault;
use listenq_lab::listener::{Listen, Listener};
use listenq_lab::listenq::Launch;
use listenq_lab::netns::Netns;
use listenq_lab::tool::require_tool;
use listenq_lab::wait::eventually;

use super::*;

/// Mounts a procfs in which a user without capabilities sees only its own processes.
const HIDDEN: &str = "mount -t proc -o hidepid=invisible proc /proc && exec \"$@\"";

fn listen(ns: &Netns) -> Listener {
    ns.run(|| Listen::tcp("127.0.0.1:0").backlog(4).open())
}

fn is_named(daemon: &Daemon, listener: &Listener) -> bool {
    let (port, process) = (listener.port().to_string(), comm());
    let labels = [("port", &*port), ("process", &process)];
    daemon.scrape().of_netns("host").value("listenq_listener_info", &labels).is_some()
}

#[test]
fn processes_that_vanish_during_a_search_lose_only_their_names() {
    if !Netns::require_root() || !require_tool("strace") {
        return;
    }
    let ns = Netns::new("vanish");
    let first = listen(&ns);
    let daemon = Launch::new(BIN).args(&["--discovery.interval=1s"]).inside(&ns).start();
    eventually("an owner", TIMEOUT, || is_named(&daemon, &first).then_some(()));
    let before = daemon.scrape();
    let fault =
        Fault::inject(&daemon, "scout", "openat,readlinkat,getdents64", "error=ESRCH:when=3+4");
    let mut more = Vec::new();
    for _ in 0..8 {
        more.push(listen(&ns));
        std::thread::sleep(Duration::from_millis(500));
        let scrape = daemon.scrape();
        scrape.assert_unique();
        assert_eq!(scrape.fallen_since(&before), [""; 0]);
        assert!(is_named(&daemon, &first));
    }
    assert!(fault.hits() > 2, "{}", fault.hits());
    drop(fault);
    let last = listen(&ns);
    eventually("the owner of a new socket", TIMEOUT, || is_named(&daemon, &last).then_some(()));
    assert_eq!(daemon.scrape().sum("listenq_listener_sockets", &[]), 11.0);
}

#[test]
fn hidden_processes_disable_two_features_with_one_log_line_each() {
    if !Netns::require_root() || !require_tool("unshare") {
        return;
    }
    let ns = Netns::new("hidepid");
    let listener = listen(&ns);
    let unprivileged =
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"];
    let words = [&["unshare", "--mount", "sh", "-c", HIDDEN, "sh"], &unprivileged[..]].concat();
    let args = ["--netns=all", "--discovery.interval=1s", "--listener.include=^host/"];
    let daemon = Launch::new(BIN).args(&args).through(&words).inside(&ns).start();
    drop(ns.run(|| fill(listener.target(), 25)));
    let scrape = eventually("both features to be lost", TIMEOUT, || {
        let scrape = daemon.scrape();
        let lost = ["namespaces", "owners"].map(|name| feature(&scrape, name));
        (lost == [Some(0.0); 2]).then_some(scrape)
    });
    await_samples(&daemon, 30.0);
    for name in ["namespaces", "owners"] {
        assert_eq!(lines(&daemon, &["level=warn", &format!("feature={name} ")]), 1, "{name}");
    }
    let overflows = ns.nstat()["TcpExtListenOverflows"] as f64;
    assert!(overflows >= 20.0 && scrape.of_netns("host").at(listener.addr()).limit == Some(4.0));
}

#[test]
fn a_denied_search_disables_features_and_attributes_no_old_overflow() {
    if Netns::require_root() && require_tool("strace") {
        lose_permission("openat,statx,readlinkat", &["namespaces", "owners"]);
    }
}

#[test]
fn denied_processes_disable_a_feature_and_attribute_no_old_overflow() {
    if Netns::require_root() && require_tool("strace") {
        lose_permission("statx", &["namespaces"]);
    }
}

/// Denies the scout's `calls` for some time, which makes `features` unavailable.
fn lose_permission(calls: &str, features: &[&str]) {
    let (own, other) = (Netns::new("denied"), Netns::new("other"));
    let mut root = Rootfs::new();
    root.mount_netns(&other, "other");
    let (mine, theirs) = (listen(&own), listen(&other));
    drop(other.run(|| fill(theirs.target(), 25)));
    theirs.accept_all();
    let ours = "--listener.include=^(host|other)/";
    let args = ["--netns=all", "--discovery.interval=1s", ours, &root.flag()];
    let daemon = Launch::new(BIN).args(&args).inside(&own).start();
    let all = |value| {
        let scrape = daemon.scrape();
        features.iter().all(|name| feature(&scrape, name) == Some(value)).then_some(scrape)
    };
    let before = eventually("the features", TIMEOUT, || all(1.0));
    let fault = Fault::inject(&daemon, "scout", calls, "error=EACCES");
    let _asks_for_its_owner = listen(&own);
    let during = eventually("the features to be lost", TIMEOUT, || all(0.0));
    during.assert_unique();
    assert_eq!(during.fallen_since(&before), [""; 0]);
    for name in features {
        assert_eq!(lines(&daemon, &["level=warn", &format!("feature={name} ")]), 1, "{name}");
    }
    let scrape = await_samples(&daemon, 10.0);
    assert_eq!(scrape.of_netns("host").at(mine.addr()).limit, Some(4.0));
    eventually("the other to be let go", TIMEOUT, || {
        daemon.scrape().of_netns("other").at(theirs.addr()).limit.is_none().then_some(())
    });
    drop(fault);
    let _asks_for_its_owner_too = listen(&own);
    eventually("the features", TIMEOUT, || all(1.0));
    let back = eventually("the other to be back", TIMEOUT, || {
        let scrape = daemon.scrape().of_netns("other");
        (scrape.at(theirs.addr()).limit == Some(4.0)).then_some(scrape)
    });
    // Refusals from before the namespace was lost are not new.
    await_samples(&daemon, 20.0);
    assert_eq!((back.overflows().kernel >= 20.0, back.overflows().accounted()), (true, 0.0));
    assert_eq!(daemon.scrape().of_netns("other").overflows().accounted(), 0.0);
}
