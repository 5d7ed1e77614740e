//! Tests the interface to systemd: a real notification socket and real inherited sockets.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]

use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use listenq_lab::Signal;
use listenq_lab::listenq::Launch;
use listenq_lab::netns::Netns;
use listenq_lab::rootfs::Rootfs;
use listenq_lab::tool::require_tool;
use listenq_lab::wait::eventually;

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
const TIMEOUT: Duration = Duration::from_secs(10);

/// The next message to the service manager.
fn told(socket: &UnixDatagram) -> String {
    let mut bytes = [0; 256];
    let length = socket.recv(&mut bytes).expect("a message in time");
    String::from_utf8_lossy(&bytes[..length]).trim_end().to_owned()
}

#[test]
fn the_service_manager_is_notified_of_readiness_samples_and_stop() {
    if !Netns::require_root() {
        return;
    }
    let (ns, root) = (Netns::new("notify"), Rootfs::new());
    let path = root.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    let launch = Launch::new(BIN).env("NOTIFY_SOCKET", path.to_str().unwrap());
    let mut daemon = launch.env("WATCHDOG_USEC", "600000").inside(&ns).start();
    assert_eq!(told(&socket), "READY=1");
    let begin = Instant::now();
    for _ in 0..5 {
        assert_eq!(told(&socket), "WATCHDOG=1");
    }
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    daemon.stop(Signal::TERM);
    assert_eq!(
        eventually("the end", TIMEOUT, || Some(told(&socket)).filter(|t| t != "WATCHDOG=1")),
        "STOPPING=1"
    );
}

#[test]
fn a_socket_passed_by_systemd_is_served() {
    if !Netns::require_root() || !require_tool("systemd-socket-activate") {
        return;
    }
    let ns = Netns::new("activate");
    // The first connection activates listenq and waits until listenq accepts it.
    let address = "127.0.0.1:19511";
    let wake = ns.spawn(move || {
        eventually("the socket", TIMEOUT, || TcpStream::connect(address).ok());
    });
    let through = ["systemd-socket-activate", "-l", address, "--setenv=LISTENQ_NETNS=own"];
    let launch = Launch::new(BIN).args(&["--web.systemd-socket"]).inside(&ns);
    let daemon = launch.through(&through).start();
    wake.join().unwrap();
    assert_eq!(daemon.address().to_string(), address);
    assert_eq!(daemon.get("/-/ready", &[]).status, 200);
}

#[test]
fn a_missing_socket_of_systemd_is_an_error() {
    let output = Launch::new(BIN).args(&["--web.systemd-socket"]).run();
    assert_eq!(output.status.code(), Some(1), "{}", output.stderr);
    assert!(output.stderr.contains("--web.systemd-socket") && output.stderr.lines().count() == 1);
}
