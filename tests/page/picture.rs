//! Makes the picture of the page in the README: real servers in real trouble, for five minutes.
#![allow(clippy::disallowed_types, reason = "servers are programs")]

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use listenq_lab::browser::{Browser, CHROMIUM, Scheme};
use listenq_lab::client::burst;
use listenq_lab::hammer::{Load, Manner, visit};
use listenq_lab::listenq::Launch;
use listenq_lab::netns::Netns;
use listenq_lab::running::Running;
use listenq_lab::tool::{feed, require_tool};
use listenq_lab::web::{PHP, Pool, Web};

use crate::BIN;

/// How long the servers run: a little longer than the time range of a chart.
const LASTING: Duration = Duration::from_secs(310);
const MOST_BYTES: usize = 150_000;
const TOOLS: [&str; 5] = [CHROMIUM, PHP, "nginx", "pngquant", "python3"];
/// A server with its own process name. After each pause it accepts all waiting connections.
const SERVER: &str = r#"
import socket, sys, time
name, address, port, backlog, pause = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
with open("/proc/self/comm", "w") as comm:
    comm.write(name)
listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
listener.setblocking(False)
listener.bind((address, port))
listener.listen(backlog)
while True:
    time.sleep(pause / 1000)
    try:
        while True:
            listener.accept()[0].close()
    except BlockingIOError:
        pass
"#;

/// Starts a server with the process name `name`; `pause` is in milliseconds.
fn server(ns: &Netns, name: &str, at: (&str, u16), backlog: u32, pause: u32) -> Running {
    let (address, port) = at;
    let numbers = [port.to_string(), backlog.to_string(), pause.to_string()];
    let mut command = ns.command("python3");
    Running::start_as(command.args(["-c", SERVER, name, address]).args(numbers), name)
}

fn calm_servers(ns: &Netns) -> Vec<Running> {
    let calm: [(&str, (&str, u16), u32); 4] = [
        ("sshd", ("0.0.0.0", 22), 128),
        ("redis-server", ("127.0.0.1", 6379), 511),
        ("postgres", ("127.0.0.1", 5432), 200),
        ("node", ("::", 3000), 511),
    ];
    calm.map(|(name, at, backlog)| server(ns, name, at, backlog, 30)).into()
}

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn load(rate: f64, patience: u64) -> Load {
    Load { rate, lasting: LASTING, patience: Duration::from_secs(patience), at_once: 2_000 }
}

/// Starts the clients: more than the pool can serve, clients of a worker that hangs, bursts, and
/// clients of a server that keeps up.
fn clients(ns: &Netns) -> Vec<JoinHandle<()>> {
    let bursts = || {
        let begin = Instant::now();
        while begin.elapsed() < LASTING {
            burst(local(7000), 40, Duration::from_millis(100));
            thread::sleep(Duration::from_secs(4));
        }
    };
    vec![
        ns.spawn(|| drop(visit(local(8080), load(30.0, 5), &Manner::http_get("/")))),
        ns.spawn(|| drop(visit(local(9100), load(0.5, 300), &Manner::default()))),
        ns.spawn(|| drop(visit(local(3000), load(400.0, 5), &Manner::default()))),
        ns.spawn(bursts),
    ]
}

#[test]
#[ignore = "writes docs/page.png again, which takes five minutes"]
fn renew_the_picture_of_the_readme() {
    if !Netns::require_root() || !TOOLS.iter().all(|t| require_tool(t)) {
        return;
    }
    let ns = Netns::new("picture");
    let _site = Web::new(Pool::Tcp)
        .backlog(128)
        .takes(Duration::from_millis(400))
        .read_timeout(Duration::from_secs(4))
        .start(&ns);
    let _calm = calm_servers(&ns);
    let _short = server(&ns, "checkout", ("127.0.0.1", 7000), 8, 120);
    let _group =
        [30, 30, 30, 3_600_000].map(|pause| server(&ns, "ingest", ("127.0.0.1", 9100), 64, pause));
    let named = ["unshare", "--uts", "sh", "-c", "hostname web-1; exec \"$@\"", "sh"];
    let arguments = ["--web.listen-address=127.0.0.1:19511", "--listener.exclude=unix/"];
    let _daemon = Launch::new(BIN).args(&arguments).through(&named).inside(&ns).start();
    let _clients = clients(&ns);
    let mut browser = Browser::start(&ns);
    browser.view(1_280, 800, Scheme::Light);
    thread::sleep(LASTING - Duration::from_secs(5));
    browser.open("http://127.0.0.1:19511/");
    let (png, _) = feed("pngquant", &["--speed=1", "256", "-"], &browser.screenshot());
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    fs::create_dir_all(&docs).unwrap();
    fs::write(docs.join("page.png"), &png).unwrap();
    assert!(png.len() < MOST_BYTES, "{} bytes", png.len());
}
