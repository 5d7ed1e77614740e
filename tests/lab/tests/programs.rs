//! Checks how programs are started: inside a namespace, as the user `nobody`, without netlink; and
//! the command line tool.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]

use std::path::Path;
use std::time::{Duration, Instant};

use listenq_lab::Signal;
use listenq_lab::listener::Listen;
use listenq_lab::listenq::{Daemon, Launch, Output, run};
use listenq_lab::netns::Netns;

const LAB: &str = env!("CARGO_BIN_EXE_listenq-lab");

/// Behaves like the daemon: logs its address, is ready, has metrics, and ends on SIGTERM.
const STAND_IN: &str = r#"
import http.server, signal, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'up{unit="a,b"} 1\n' if self.path == "/metrics" else self.headers.get("x-echo", "").encode()
        self.send_response(404 if self.path == "/no" else 200)
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("level=info msg=listening address=127.0.0.1:%d" % server.server_port, "args=%s" % sys.argv[1:], file=sys.stderr, flush=True)
server.serve_forever()
"#;

fn sh(launch: Launch, script: &str) -> Output {
    launch.args(&["-c", script]).run()
}

#[test]
fn a_daemon_is_awaited_scraped_and_stopped() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("daemon");
    let mut daemon = Daemon::start(Some(&ns), Path::new("python3"), &["-c", STAND_IN]);
    assert!(daemon.log()[0].contains("args=['--web.listen-address=127.0.0.1:0']"));
    assert_eq!(ns.ss_listen()[0].port, daemon.address().port());
    let metrics = daemon.scrape();
    assert_eq!(metrics.value("up", &[("unit", "a,b")]), Some(1.0));
    assert_eq!(daemon.get("/", &[("x-echo", "hello")]).text(), "hello");
    assert_eq!(daemon.get("/no", &[]).status, 404);
    let stopped = daemon.stop(Signal::TERM);
    assert!(stopped.status.success() && stopped.took < Duration::from_secs(2), "{stopped:?}");
}

#[test]
#[should_panic(expected = "no such flag")]
fn a_daemon_that_ends_at_once_shows_its_log() {
    let _ = Launch::new("sh").args(&["-c", "echo no such flag >&2; exit 64"]).start();
}

#[test]
fn a_subcommand_gives_its_output_and_status() {
    let output = run(None, Path::new("sh"), &["-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("out\n", "err\n"));
    assert_eq!(output.status.code(), Some(3));
}

#[test]
fn a_program_runs_as_user_65534_inside_the_namespace() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("unprivileged");
    let script = "id -u; id -g; grep -E '^(CapEff|NoNewPrivs):' /proc/self/status; readlink /proc/self/ns/net";
    let output = sh(Launch::new("sh").inside(&ns).as_nobody(), script);
    let inode = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(ns.path()).unwrap());
    let expected =
        format!("65534\n65534\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\nnet:[{inode}]\n");
    assert_eq!(output.stdout, expected, "{}", output.stderr);
}

#[test]
fn without_netlink_no_netlink_socket_can_be_made() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("filter");
    let _listener = ns.run(|| Listen::tcp("127.0.0.1:4711").open());
    let script = "ip link; awk 'NR == 2 { print $2 }' /proc/net/tcp";
    let check = |output: Output, sees_links: bool| {
        assert_eq!(output.stdout.contains("LOOPBACK"), sees_links, "{output:?}");
        let refused = output
            .stderr
            .contains("Cannot open netlink socket: Address family not supported by protocol");
        assert_eq!(refused, !sees_links, "{output:?}");
        assert!(
            output.stdout.ends_with("0100007F:1267\n"),
            "other sockets work, inside: {output:?}"
        );
    };
    check(sh(Launch::new("sh").inside(&ns).without_netlink(), script), false);
    check(sh(Launch::new("sh").inside(&ns).as_nobody().without_netlink(), script), false);
    check(run(Some(&ns), Path::new(LAB), &["without-netlink", "sh", "-c", script]), false);
    // This thread and its later children still have netlink.
    check(sh(Launch::new("sh").inside(&ns), script), true);
}

#[test]
fn the_tool_fills_a_queue() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("tool");
    let listener = ns.run(|| Listen::tcp("127.0.0.1:0").backlog(4).open());
    let address = listener.addr().to_string();
    let begin = Instant::now();
    let filled = run(
        Some(&ns),
        Path::new(LAB),
        &["connect", "fill", &address, "--count", "9", "--for", "0.2"],
    );
    assert!(filled.stdout.starts_with("started=9 connected="), "{filled:?}");
    assert!(begin.elapsed() < Duration::from_secs(3));
    let scanned =
        run(Some(&ns), Path::new(LAB), &["scan", &address, "--kind", "rst", "--count", "3"]);
    assert!(scanned.status.success(), "{scanned:?}");
    assert!(ns.ss_listen()[0].recv_q >= 5);
}

#[test]
fn the_tool_listens_and_says_where() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("tool");
    let args =
        ["listen", "[::]:0", "--count", "3", "--reuseport", "--pace", "rate:10", "--for", "0.2"];
    let output = run(Some(&ns), Path::new(LAB), &args);
    let lines: Vec<&str> = output.stdout.lines().collect();
    assert!(
        lines[0].starts_with("[::]:") && lines[0] == lines[1] && lines[1] == lines[2],
        "{output:?}"
    );
    assert_eq!(lines[3..], ["accepted=0"]);
}

#[test]
fn the_tool_refuses_addresses_of_other_machines() {
    for how in
        [["connect", "fill"], ["connect", "hammer"], ["connect", "burst"], ["scan", "--count=1"]]
    {
        let output = run(None, Path::new(LAB), &[how[0], how[1], "192.0.2.1:80"]);
        assert_eq!(output.status.code(), Some(2));
        assert!(
            output.stderr.contains("192.0.2.1:80 is not a loopback address"),
            "{}",
            output.stderr
        );
    }
}

#[test]
fn the_tool_makes_and_deletes_namespaces() {
    if !Netns::require_root() {
        return;
    }
    let name = format!("lq-tool-{}", std::process::id());
    let path = Path::new("/run/netns").join(&name);
    assert!(run(None, Path::new(LAB), &["netns", "add", &name]).status.success());
    assert!(path.exists());
    assert!(run(None, Path::new(LAB), &["netns", "del", &name]).status.success());
    assert!(!path.exists());
}
