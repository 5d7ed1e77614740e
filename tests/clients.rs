//! Tests the addresses of waiting clients: which users see them, and that the numbers are true.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use listenq::report::{Client, Clients, Listener, Report};
use listenq_lab::flood::syn_flood;
use listenq_lab::listener::Listen;
use listenq_lab::listenq::{Daemon, Launch};
use listenq_lab::netns::Netns;
use listenq_lab::wait::eventually;
use socket2::{Domain, Socket, Type};

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
const TIMEOUT: Duration = Duration::from_secs(20);
/// A bcrypt hash of "right".
const RIGHT: &str = "$2y$08$abcdefghijklmnopqrstuuM7WmALSPQG/ubL8NksTdR4H7Y2WXZ..";
/// `alice:right`.
const ALICE: (&str, &str) = ("Authorization", "Basic YWxpY2U6cmlnaHQ=");

/// A directory for control sockets and a web configuration; removed when dropped.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        let path = PathBuf::from(format!("/run/listenq-test-{}-clients", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Opens connections from one address, which stay open until dropped.
fn connect(from: [u8; 4], to: SocketAddr, count: usize) -> Vec<Socket> {
    let connect = |_| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
        socket.connect(&to.into()).unwrap();
        socket
    };
    (0..count).map(connect).collect()
}

fn at(report: &Report, port: u16) -> Listener {
    let port = port.to_string();
    report.listeners.iter().find(|listener| listener.port == port).unwrap().clone()
}

fn from_json(daemon: &Daemon, port: u16, headers: &[(&str, &str)]) -> Option<Clients> {
    let answer = daemon.get("/api/v1/listeners", headers);
    assert_eq!(answer.status, 200, "{}", answer.text());
    at(&serde_json::from_str(answer.text()).unwrap(), port).clients
}

fn client(last: u8, waiting: u64) -> Client {
    Client { address: IpAddr::from([127, 0, 0, last]), waiting, half_open: 0 }
}

#[test]
fn only_local_and_authenticated_users_see_the_addresses_of_clients() {
    if !Netns::require_root() {
        return;
    }
    let (ns, directory) = (Netns::new("clients"), Directory::new());
    // Both families: IPv4 clients have mapped addresses here.
    let listener = ns.run(|| Listen::tcp("[::]:0").backlog(64).open());
    let port = listener.port();
    let target = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let web = directory.file("web.yml");
    fs::write(&web, format!("basic_auth_users:\n  alice: {RIGHT}\n")).unwrap();
    let launch = |socket: &str| {
        Launch::new(BIN).env("LISTENQ_CONTROL_SOCKET", &directory.file(socket)).inside(&ns)
    };
    let open = launch("open.sock").start();
    let guarded = launch("guarded.sock").args(&["--web.config.file", &web]).unready().start();
    let never = launch("never.sock").args(&["--scan.client-addresses=never"]).start();
    let _clients = ns.run(|| {
        [
            connect([127, 0, 0, 2], target, 6),
            connect([127, 0, 0, 3], target, 3),
            connect([127, 0, 0, 4], target, 1),
        ]
    });

    let most = vec![client(2, 6), client(3, 3), client(4, 1)];
    let expected = Some(Clients { connections: 10, addresses: Some(3), most });
    let asked = |socket: &str| {
        let output = launch(socket).args(&["explain", "--json", &port.to_string()]).run();
        serde_json::from_str::<Listener>(&output.stdout).unwrap()
    };
    for socket in ["open.sock", "guarded.sock"] {
        eventually("the clients over the control socket", TIMEOUT, || {
            (asked(socket).clients == expected).then_some(())
        });
    }
    // Over HTTP with a password.
    assert_eq!(from_json(&guarded, port, &[ALICE]), expected);
    assert_eq!(guarded.get("/api/v1/listeners", &[]).status, 401);
    let page = guarded.get("/", &[ALICE]);
    assert!(page.text().contains("6 of 10 from 127.0.0.2, 3 from 127.0.0.3"), "{}", page.text());
    // Over HTTP without a password, and with the feature disabled.
    assert_eq!(from_json(&open, port, &[]), None);
    assert_eq!(from_json(&open, port, &[ALICE]), None);
    for path in ["/", "/api/v1/listeners", "/metrics"] {
        assert!(!open.get(path, &[]).text().contains("127.0.0.2"), "{path}");
    }
    assert!(!guarded.get("/metrics", &[ALICE]).text().contains("127.0.0.2"));
    eventually("a scan of all three", TIMEOUT, || asked("never.sock").oldest_seconds);
    assert_eq!(asked("never.sock").clients, None);
    let text = launch("open.sock").args(&["explain", &port.to_string()]).run().stdout;
    assert!(
        text.contains("6 of 10 from 127.0.0.2, 3 from 127.0.0.3, 1 from 127.0.0.4\n"),
        "{text}"
    );
    drop(never);

    // A client that left no longer counts; half-open connections count.
    let _ = listener.accept_all();
    syn_flood(&ns, target, 30, 300.0);
    let clients = eventually("half-open connections", TIMEOUT, || {
        asked("open.sock").clients.filter(|clients| clients.connections >= 20)
    });
    assert!(
        clients.most.iter().all(|client| client.waiting == 0 && client.half_open > 0),
        "{clients:?}"
    );
    assert_eq!(from_json(&open, port, &[]), None);
}
