//! Netlink failures: no memory, signals, errors in the middle of a dump.

use std::time::{Duration, Instant};

use listenq_lab::client::fill;
use listenq_lab::fault::Fault;
use listenq_lab::listener::{Listen, Listener};
use listenq_lab::listenq::Launch;
use listenq_lab::netns::Netns;
use listenq_lab::tool::require_tool;
use listenq_lab::wait::eventually;

use super::*;

/// `NLMSG_DONE` of 20 bytes with `NLM_F_DUMP_INTR`, in place of the header that the kernel wrote.
const INTERRUPTED: &str = "poke_exit=@arg2=1400000003001200";
/// The rows of this number of listeners take several datagrams.
const MANY: u16 = 600;

fn is_possible() -> bool {
    Netns::require_root() && require_tool("strace")
}

fn many(ns: &Netns) -> Vec<Listener> {
    let open = |n: u16| Listen::tcp(format!("127.0.0.1:{}", 20_000 + n)).open();
    ns.run(|| (0..MANY).map(open).collect())
}

#[test]
fn without_netlink_memory_an_error_is_logged_and_no_overflow_is_lost() {
    if !is_possible() {
        return;
    }
    let ns = Netns::new("enobufs");
    let listener = ns.run(|| Listen::tcp("127.0.0.1:0").backlog(4).open());
    let daemon = Launch::new(BIN).args(&[STEADY]).inside(&ns).start();
    let before = await_samples(&daemon, 5.0);
    let fault = Fault::inject(&daemon, "sampler", "recvfrom", "error=ENOBUFS");
    drop(ns.run(|| fill(listener.target(), 25)));
    listener.accept_all();
    eventually("503 of /-/ready", TIMEOUT, || (!daemon.is_ready()).then_some(()));
    let during = daemon.scrape();
    during.assert_unique();
    assert_eq!(during.fallen_since(&before), [""; 0]);
    let seen = during.at(listener.addr());
    assert_eq!((seen.length, seen.limit, seen.drops), (None, None, Some(0.0)));
    assert!(fault.hits() > 20 && errors(&during, "inet_diag") > 20.0);
    assert_eq!(lines(&daemon, &["a reading failed", "source=inet_diag"]), 1);
    drop(fault);
    let overflows = ns.nstat()["TcpExtListenOverflows"] as f64;
    let after = eventually("the overflows of meanwhile", TIMEOUT, || {
        let scrape = daemon.scrape();
        (scrape.at(listener.addr()).overflows == Some(overflows)).then_some(scrape)
    });
    assert!(overflows >= 20.0 && daemon.is_ready());
    assert_eq!(after.fallen_since(&during), [""; 0]);
}

#[test]
fn a_signal_in_every_second_call_has_no_effect() {
    if !is_possible() {
        return;
    }
    let ns = Netns::new("eintr");
    let _listeners = many(&ns);
    let daemon = Launch::new(BIN).args(&[STEADY]).inside(&ns).start();
    let fault =
        Fault::inject(&daemon, "sampler", "recvfrom,sendto,pread64", "error=EINTR:when=1+2");
    let scrape = await_samples(&daemon, 20.0);
    assert!(fault.hits() > 50, "{}", fault.hits());
    assert_eq!(scrape.sum("listenq_sample_errors_total", &[]), 0.0);
    assert_eq!(scrape.series("listenq_accept_queue_length").len(), usize::from(MANY) + 1);
}

#[test]
fn a_dump_interrupted_again_and_again_is_never_published_in_part() {
    if !is_possible() {
        return;
    }
    let ns = Netns::new("intr");
    let _listeners = many(&ns);
    let daemon = Launch::new(BIN).args(&[STEADY]).inside(&ns).start();
    let (mut last, begin) = (daemon.scrape(), Instant::now());
    let fault = Fault::inject(&daemon, "sampler", "recvfrom", &format!("{INTERRUPTED}:when=3+5"));
    while begin.elapsed() < Duration::from_secs(5) {
        let scrape = daemon.scrape();
        assert_eq!(scrape.sum("listenq_listener_sockets", &[]), f64::from(MANY) + 1.0);
        assert_eq!(scrape.series("listenq_accept_queue_length").len(), usize::from(MANY) + 1);
        assert_eq!(scrape.fallen_since(&last), [""; 0]);
        last = scrape;
    }
    let failed = errors(&last, "inet_diag");
    println!("interrupted: {failed} of {} samples failed, {} hits", samples(&last), fault.hits());
    assert!(failed > 5.0 && fault.hits() > 5);
    assert_eq!(lines(&daemon, &["a reading failed", "source=inet_diag", "interrupted"]), 1);
    drop(fault);
    eventually("a report of success", TIMEOUT, || {
        (lines(&daemon, &["readings succeed again", "source=inet_diag"]) == 1).then_some(())
    });
}

#[test]
fn a_namespace_that_ends_during_its_dump_is_released() {
    if !is_possible() {
        return;
    }
    let (own, dying, mut root) = (Netns::new("lives"), Netns::new("dies"), Rootfs::new());
    own.add_link_to(&dying, "dumped");
    let listeners = many(&dying);
    root.mount_netns(&dying, "dies");
    let [rootfs, procfs] = secluded(&root);
    let args = ["--netns=all", "--discovery.interval=1s", STEADY, &rootfs, &procfs];
    let daemon = Launch::new(BIN).args(&args).inside(&own).start();
    let sockets =
        |daemon: &Daemon| daemon.scrape().of_netns("dies").sum("listenq_listener_sockets", &[]);
    assert_eq!(sockets(&daemon), f64::from(MANY));
    // Each datagram is delayed, so that the namespace ends between two datagrams.
    let fault = Fault::inject(&daemon, "sampler", "recvfrom", "delay_enter=150000");
    eventually("a dump under way", TIMEOUT, || (fault.hits() > 3).then_some(()));
    drop(listeners);
    root.unmount_all();
    drop(dying);
    let begin = Instant::now();
    eventually("the end of the namespace", TIMEOUT, || (!own.has_link("dumped")).then_some(()));
    println!("dying: let go after {:?}", begin.elapsed());
    drop(fault);
    let scrape = await_samples(&daemon, 10.0);
    scrape.assert_unique();
    assert_eq!(scrape.sum("listenq_sample_errors_total", &[]), 0.0);
    assert_eq!(sockets(&daemon), 0.0);
    assert!(daemon.is_ready());
}
