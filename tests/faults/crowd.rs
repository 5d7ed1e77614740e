//! 50,000 listeners at once.

use std::time::{Duration, Instant};

use listenq_lab::listenq::Launch;
use listenq_lab::netns::Netns;
use listenq_lab::process::ServerProcess;
use listenq_lab::wait::eventually;

use super::*;

/// The number of listeners of each process, at the ports from 10,000 on. The daemon's own port is
/// above them.
const EACH: u32 = 12_500;
const ADDRESSES: [&str; 4] =
    ["127.0.0.1:10000", "127.0.0.2:10000", "127.0.0.3:10000", "127.0.0.4:10000"];
const ALL: f64 = 50_000.0;
const LONG: Duration = Duration::from_secs(90);
/// The bytes per listener are the same as the limit for 10,000 listeners.
const MOST_BYTES: u64 = 160 << 20;

#[test]
#[ignore = "keeps two processors busy for a minute: run by tests/release.sh"]
fn fifty_thousand_listeners_slow_down_samples_and_not_the_daemon() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("crowd");
    let daemon = Launch::new(BIN).inside(&ns).start();
    let before = daemon.scrape();
    let begin = Instant::now();
    let count = format!("--count={EACH}");
    let servers =
        ADDRESSES.map(|address| ServerProcess::listen(&ns, address, &[&count, "--quiet"]));
    println!("crowd: opened in {:?}", begin.elapsed());
    let omitted = |scrape: &Metrics| value(scrape, "listenq_listeners_omitted");
    let during = eventually("all to be counted", LONG, || {
        let scrape = daemon.scrape();
        let shown = scrape.series("listenq_accept_queue_length").len() as f64;
        (shown + omitted(&scrape) == ALL + 1.0).then_some(scrape)
    });
    during.assert_unique();
    assert_eq!(during.series("listenq_accept_queue_length").len(), 1000);
    assert_eq!(during.fallen_since(&before), [""; 0]);
    let (cpu, from, start) = (daemon.cpu(), samples(&during), Instant::now());
    std::thread::sleep(Duration::from_secs(10));
    let after = daemon.scrape();
    let share = (daemon.cpu() - cpu).as_secs_f64() / start.elapsed().as_secs_f64();
    let resident = daemon.resident();
    let interval = value(&after, "listenq_sample_interval_seconds");
    println!(
        "crowd: {:.1} MiB, {share:.3} of a core, a sample every {interval:.2} s, {} samples in 10 s, {} missed",
        resident as f64 / f64::from(1 << 20),
        samples(&after) - from,
        value(&after, "listenq_samples_missed_total"),
    );
    assert!(samples(&after) > from && daemon.is_ready());
    assert!(resident < MOST_BYTES, "{resident} bytes");
    assert_eq!(lines(&daemon, &["more listeners than --listener.max"]), 1);
    drop(servers);
    eventually("the end of the crowd", LONG, || {
        let scrape = daemon.scrape();
        let open = scrape.sum("listenq_listener_sockets", &[]);
        (open == 1.0 && omitted(&scrape) == 0.0).then_some(())
    });
}
