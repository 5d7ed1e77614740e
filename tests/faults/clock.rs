//! A wall clock that steps back. `tests/stop_and_go.rs` tests a long suspend.

use std::fs;
use std::path::PathBuf;

use listenq_lab::client::fill;
use listenq_lab::listener::Listen;
use listenq_lab::listenq::Launch;
use listenq_lab::netns::Netns;
use listenq_lab::tool::require_tool;
use listenq_lab::wait::eventually;

use super::*;

const HOUR: f64 = 3600.0;
const NOW: &str = "listenq_netns_last_sample_timestamp_seconds";

/// The library in Debian's package, for any architecture. The program `faketime` would add a
/// process between test and daemon.
fn library() -> PathBuf {
    let places = fs::read_dir("/usr/lib").unwrap().flatten().map(|entry| entry.path());
    let mut libraries = places.map(|place| place.join("faketime/libfaketimeMT.so.1"));
    libraries.find(|path| path.exists()).expect("the program needs it")
}

#[test]
fn a_clock_step_of_one_hour_changes_timestamps_and_no_counter() {
    if !Netns::require_root() || !require_tool("faketime") {
        return;
    }
    let (ns, root) = (Netns::new("clock"), Rootfs::new());
    let listener = ns.run(|| Listen::tcp("127.0.0.1:0").backlog(4).open());
    let offset = root.file("offset", "+0");
    let environment = [
        format!("LD_PRELOAD={}", library().display()),
        format!("FAKETIME_TIMESTAMP_FILE={}", offset.display()),
        "FAKETIME_NO_CACHE=1".into(),
        "FAKETIME_DONT_FAKE_MONOTONIC=1".into(),
        "NO_FAKE_STAT=1".into(),
    ];
    let words: Vec<&str> =
        ["env"].into_iter().chain(environment.iter().map(String::as_str)).collect();
    let daemon = Launch::new(BIN).args(&[STEADY]).through(&words).inside(&ns).start();
    let _clients = ns.run(|| fill(listener.target(), 5));
    let before = eventually("a full queue", TIMEOUT, || {
        Some(daemon.scrape()).filter(|scrape| scrape.at(listener.addr()).full_seconds > Some(1.0))
    });
    fs::write(&offset, "-3600").unwrap();
    let after = eventually("the step", TIMEOUT, || {
        Some(daemon.scrape()).filter(|scrape| value(scrape, NOW) < value(&before, NOW) - HOUR / 2.0)
    });
    let later = await_samples(&daemon, 30.0);
    assert_eq!(after.fallen_since(&before), [""; 0]);
    assert_eq!(later.fallen_since(&after), [""; 0]);
    let growth = |name| value(&later, name) - value(&after, name);
    let (credited, passed) = (growth("listenq_netns_sampled_seconds_total"), growth(NOW));
    println!("step back: {credited:.3} s credited in {passed:.3} s");
    assert!(passed > 1.0 && (credited / passed - 1.0).abs() < 0.2);
    let full = |scrape: &Metrics| scrape.at(listener.addr()).full_seconds.unwrap();
    assert!((full(&later) - full(&after) - credited).abs() < 1e-6);
    assert!(daemon.is_ready());
    assert_eq!(lines(&daemon, &["level=error"]), 0);
}
