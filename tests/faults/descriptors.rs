//! Descriptors that run out.

use std::net::TcpStream;
use std::thread::sleep;
use std::time::Duration;

use listenq_lab::listenq::Launch;
use listenq_lab::netns::Netns;
use listenq_lab::wait::eventually;

use super::*;

const FEW: [&str; 2] = ["prlimit", "--nofile=32:32"];
/// Enough descriptors for two namespaces besides the daemon's own.
const SOME: [&str; 2] = ["prlimit", "--nofile=90:90"];
const HELD: Duration = Duration::from_secs(3);

#[test]
fn clients_that_use_the_last_descriptor_wait_and_samples_continue() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("few");
    let daemon = Launch::new(BIN).args(&[STEADY]).through(&FEW).inside(&ns).start();
    let (before, cpu, at_rest) = (daemon.scrape(), daemon.cpu(), daemon.descriptors());
    let address = daemon.address();
    let clients: Vec<TcpStream> =
        ns.run(|| (0..60).map(|_| TcpStream::connect(address).unwrap()).collect());
    eventually("the last descriptor to be taken", TIMEOUT, || {
        (daemon.descriptors() >= 31).then_some(())
    });
    sleep(HELD);
    let used = daemon.cpu() - cpu;
    drop(clients);
    // Reading `process_*` needs descriptors: these metrics were absent, and are present again.
    let after = eventually("an answer", TIMEOUT, || {
        let scrape = daemon.is_ready().then(|| daemon.scrape())?;
        scrape.value("process_cpu_seconds_total", &[]).map(|_| scrape)
    });
    let more = samples(&after) - samples(&before);
    println!(
        "32 descriptors: {at_rest} at rest; {more} samples and {used:?} of CPU while all were taken"
    );
    assert!(more >= 20.0, "{more} samples");
    assert!(used < HELD / 4, "{used:?} of CPU");
    assert_eq!(after.fallen_since(&before), [""; 0]);
    let sources = ["inet_diag", "unix_diag", "netstat", "snmp", "sysctl"];
    assert_eq!(sources.map(|source| errors(&after, source)), [0.0; 5]);
    eventually("the descriptors of before", TIMEOUT, || {
        (daemon.descriptors() <= at_rest).then_some(())
    });
}

#[test]
fn namespaces_without_descriptors_are_counted_and_added_later() {
    if !Netns::require_root() {
        return;
    }
    let (own, mut root) = (Netns::new("own"), Rootfs::new());
    let mut others = Vec::from(["a", "b", "c", "d"].map(Netns::new));
    for other in &others {
        root.mount_netns(other, &other.name()[other.name().len() - 1..]);
    }
    let [rootfs, procfs] = secluded(&root);
    let args = ["--netns=all", "--discovery.interval=1s", STEADY, &rootfs, &procfs];
    let daemon = Launch::new(BIN).args(&args).through(&SOME).inside(&own).start();
    let count = |state| daemon.scrape().value("listenq_namespaces", &[("state", state)]).unwrap();
    assert_eq!([count("sampled"), count("inaccessible")], [3.0, 2.0]);
    assert_eq!(lines(&daemon, &["level=warn", "limit=90"]), 1);
    root.unmount_first(3);
    others.drain(..3);
    eventually("the last namespace", TIMEOUT, || {
        ([count("sampled"), count("inaccessible")] == [2.0, 0.0]).then_some(())
    });
    let scrape = await_samples(&daemon, 10.0).of_netns("d");
    assert!(value(&scrape, "listenq_netns_sampled_seconds_total") > 0.0);
    assert!(daemon.is_ready());
}
