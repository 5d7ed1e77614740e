//! SIGKILL, and a new start at the same address.

use std::time::Instant;

use listenq_lab::Signal;
use listenq_lab::client::fill;
use listenq_lab::listener::Listen;
use listenq_lab::listenq::Launch;
use listenq_lab::netns::Netns;
use listenq_lab::wait::eventually;

use super::*;

const ADDRESS: &str = "--web.listen-address=127.0.0.1:19511";

#[test]
fn after_sigkill_a_restart_begins_at_once_from_a_new_baseline() {
    if !Netns::require_root() {
        return;
    }
    let (own, other, mut root) = (Netns::new("killed"), Netns::new("held"), Rootfs::new());
    own.add_link_to(&other, "held");
    root.mount_netns(&other, "other");
    let listener = own.run(|| Listen::tcp("127.0.0.1:0").backlog(4).open());
    let [rootfs, procfs] = secluded(&root);
    let args = ["--netns=all", "--discovery.interval=1s", STEADY, ADDRESS, &rootfs, &procfs];
    let launch = Launch::new(BIN).args(&args).inside(&own);
    let mut daemon = launch.clone().start();
    let refuse = || {
        drop(own.run(|| fill(listener.target(), 25)));
        listener.accept_all();
        own.nstat()["TcpExtListenOverflows"] as f64
    };
    let attributed = |daemon: &Daemon, expected: f64| {
        eventually("the overflows", TIMEOUT, || {
            let seen = daemon.scrape().of_netns("host").at(listener.addr()).overflows;
            (seen == Some(expected)).then_some(())
        });
    };
    let first = refuse();
    attributed(&daemon, first);
    // A client that stays connected keeps the address in use.
    let client = own.run(|| std::net::TcpStream::connect(daemon.address()).unwrap());
    daemon.stop(Signal::KILL);
    let begin = Instant::now();
    let daemon = launch.start();
    println!("killed: ready again after {:?}", begin.elapsed());
    drop(client);
    let scrape = await_samples(&daemon, 5.0).of_netns("host");
    assert_eq!((scrape.overflows().kernel, scrape.overflows().accounted()), (first, 0.0));
    let second = refuse();
    attributed(&daemon, second - first);
    root.unmount_all();
    drop(other);
    eventually("the other namespace to end", TIMEOUT, || (!own.has_link("held")).then_some(()));
}
