//! Owns the endpoint under abuse: half-open clients, crowds, wrong passwords, garbage and half-done handshakes neither
//! keep a healthy scrape out, nor cost a sample, nor leave anything behind.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]
#![allow(clippy::print_stdout, reason = "the measured figures are for the reader of --nocapture")]

use std::fs;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use listenq_lab::certificate::{Authority, Subject};
use listenq_lab::hammer::{Load, Manner, Outcome, visit};
use listenq_lab::limits::raise_descriptor_limit;
use listenq_lab::listener::{Listen, Listener};
use listenq_lab::listenq::{Daemon, Launch};
use listenq_lab::metrics::Metrics;
use listenq_lab::netns::Netns;
use listenq_lab::rootfs::Rootfs;
use listenq_lab::tool::require_tool;
use listenq_lab::wait::eventually;
use rustls::crypto::ring::default_provider;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
/// Without optimization, and on a busy machine, a crowd takes its time.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the abuse lasts.
const ABUSE: Duration = Duration::from_secs(20);
/// Below the ephemeral range, where the daemon's own port is.
const PORTS: std::ops::Range<u16> = 20_000..20_500;
/// What the shipped unit allows, in KiB.
const MOST_MEMORY: u64 = 64 << 10;
/// bcrypt of "right" with cost 10, made by crypt(3).
const USERS: &str =
    "basic_auth_users:\n  alice: $2y$10$abcdefghijklmnopqrstuu1VS0P7v3ZJmd2gzBFIzgfN7OOl6Rl52\n";
const TLS: &str = "tls_server_config:\n  cert_file: server.pem\n  key_file: server.key\n";
/// `alice:right` and `alice:wrong`.
const RIGHT: &str = "Authorization: Basic YWxpY2U6cmlnaHQ=";
const WRONG: &str = "Authorization: Basic YWxpY2U6d3Jvbmc=";

/// One at a time: what the other does to the machine is not what is measured.
static TURN: Mutex<()> = Mutex::new(());

/// A daemon among 500 listeners, and another that nobody abuses: what the machine does to both is not the abuse.
struct Scene {
    ns: Netns,
    scheme: &'static str,
    root: Rootfs,
    daemon: Daemon,
    control: Daemon,
    _listeners: [Vec<Listener>; 2],
    _quiet: Netns,
}

/// How it stands with a daemon.
#[derive(Debug)]
struct State {
    samples: f64,
    missed: f64,
    descriptors: usize,
}

// === impl Scene ===

impl Scene {
    fn new(scheme: &'static str, config: &str) -> Self {
        raise_descriptor_limit();
        let root = Rootfs::new();
        let names = Subject { names: &["localhost", "127.0.0.1"], until: 2100 };
        Authority::new(root.path(), "ca").sign("server", names);
        let flag = format!("--web.config.file={}", root.file("web.yml", config).display());
        let [ns, quiet] = ["abuse", "quiet"].map(Netns::new);
        let listen = |ns: &Netns| ns.run(|| PORTS.map(open).collect());
        let listeners = [listen(&ns), listen(&quiet)];
        // Without optimization a sample of so many costs more than 2 % of a core.
        let launch = Launch::new(BIN).args(&["--sample.cpu-budget=0.5", &flag]).unready();
        let [daemon, control] = [&ns, &quiet].map(|ns| launch.clone().inside(ns).start());
        let scene =
            Self { ns, scheme, root, daemon, control, _listeners: listeners, _quiet: quiet };
        // The first check of the right password, and the first scans.
        eventually("a scrape", PATIENCE, || (scene.scrape().0 == "200").then_some(()));
        thread::sleep(Duration::from_secs(3));
        scene
    }

    /// What curl has to say of a scrape: the status, the seconds it took, the body.
    fn scrape(&self) -> (String, f64, String) {
        self.scrape_of(&self.ns, &self.daemon)
    }

    fn scrape_of(&self, ns: &Netns, daemon: &Daemon) -> (String, f64, String) {
        let mut command = ns.command("curl");
        command.args([
            "-s",
            "--compressed",
            "--max-time",
            "10",
            "-H",
            RIGHT,
            "-w",
            "\n%{http_code} %{time_total}",
        ]);
        command.arg("--cacert").arg(self.root.path().join("ca.pem"));
        let output =
            command.arg(format!("{}://{}/metrics", self.scheme, daemon.address())).output();
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        let (body, figures) = text.rsplit_once('\n').unwrap();
        let (status, seconds) = figures.split_once(' ').unwrap();
        (status.to_owned(), seconds.parse().unwrap(), body.to_owned())
    }

    fn state_of(&self, ns: &Netns, daemon: &Daemon) -> State {
        let (status, _, body) = self.scrape_of(ns, daemon);
        assert_eq!(status, "200");
        let scrape = Metrics::parse(&body).unwrap();
        let value = |name| scrape.value(name, &[]).unwrap();
        State {
            samples: value("listenq_samples_total"),
            missed: value("listenq_samples_missed_total"),
            descriptors: daemon.descriptors(),
        }
    }

    fn states(&self) -> [State; 2] {
        [self.state_of(&self.ns, &self.daemon), self.state_of(&self._quiet, &self.control)]
    }

    /// Clients who all say the same.
    fn clients(
        &self,
        count: u32,
        lasting: Duration,
        bytes: impl AsRef<[u8]>,
    ) -> JoinHandle<Outcome> {
        let load = Load {
            rate: f64::from(count) / lasting.as_secs_f64(),
            lasting,
            patience: PATIENCE,
            at_once: count as usize,
        };
        let (address, manner) = (self.daemon.address(), Manner::saying(bytes));
        self.ns.spawn(move || visit(address, load, &manner))
    }

    /// Scrapes while the abuse goes on, and looks at what became of it.
    fn endure<const N: usize>(
        &self,
        begin: impl FnOnce() -> [JoinHandle<Outcome>; N],
    ) -> [Outcome; N] {
        let [before, control_before] = self.states();
        let abuse = begin();
        let (mut scrapes, mut failed) = (Vec::new(), Vec::new());
        while abuse.iter().any(|clients| !clients.is_finished()) {
            let (status, seconds, _) = self.scrape();
            if status != "200" {
                failed.push((scrapes.len(), status, seconds));
            }
            scrapes.push(seconds);
            thread::sleep(Duration::from_millis(50));
        }
        let outcomes = abuse.map(|clients| clients.join().unwrap());
        let [after, control_after] = self.states();
        assert_eq!(failed, [], "of {} scrapes", scrapes.len());
        scrapes.sort_by(f64::total_cmp);
        let at = |share: f64| scrapes[(share * (scrapes.len() - 1) as f64) as usize];
        println!("{} scrapes, p50 {:.3} s, p99 {:.3} s", scrapes.len(), at(0.5), at(0.99));
        let [missed, control] =
            [after.missed - before.missed, control_after.missed - control_before.missed];
        let taken = after.samples - before.samples;
        println!("{taken} samples, {missed} missed; a daemon without abuse missed {control}");
        // What the machine does to both may do a little more to the one that has work.
        assert!(missed <= 2.0 * control + taken / 20.0, "{missed} missed, without abuse {control}");
        let memory = self.most_memory();
        println!("at most {memory} KiB resident");
        assert!(memory < MOST_MEMORY, "{memory} KiB");
        eventually("the descriptors of before", PATIENCE, || {
            (self.daemon.descriptors() <= before.descriptors).then_some(())
        });
        outcomes
    }

    /// The most it ever had in memory, in KiB.
    fn most_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.daemon.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

fn open(port: u16) -> Listener {
    Listen::tcp(SocketAddr::from(([127, 0, 0, 1], port))).open()
}

fn is_possible() -> bool {
    Netns::require_root() && require_tool("curl")
}

fn get(header: &str) -> String {
    format!("GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{header}\r\n\r\n")
}

/// Of those served, how many were answered with one of these status lines; all others were cut off without a word.
fn answered(outcome: &Outcome, lines: &[&str]) -> u64 {
    let said = outcome.answers.iter().filter(|(line, _)| !line.is_empty());
    said.map(|(line, count)| {
        assert!(lines.contains(&line.as_str()), "{outcome:?}");
        count
    })
    .sum()
}

#[test]
fn a_scrape_is_answered_whatever_others_send() {
    if !is_possible() {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let scene = Scene::new("http", USERS);
    let oversized = format!("GET /{} HTTP/1.1\r\n", "a".repeat(60_000));
    let garbage: Vec<u8> = (0..4096_u32).map(|n| (n * n % 251) as u8).collect();
    let crowd = Duration::from_millis(10);
    let [half_open, wrong, oversized, garbage, crowd] = scene.endure(|| {
        [
            scene.clients(1000, ABUSE, "GET /metrics HTTP/1.1\r\nHost:"),
            scene.clients(10_000, ABUSE, get(WRONG)),
            scene.clients(1000, ABUSE, oversized),
            scene.clients(1000, ABUSE, garbage),
            scene.clients(200, crowd, get(RIGHT)),
        ]
    });
    for outcome in [&half_open, &wrong, &oversized, &garbage, &crowd] {
        println!("{outcome:?}");
    }
    assert_eq!(half_open.tally.started, 1000);
    assert_eq!(answered(&half_open, &[]), 0);
    let refused = ["HTTP/1.1 401 Unauthorized", "HTTP/1.1 503 Service Unavailable"];
    assert!(answered(&wrong, &refused) > 9_000, "{wrong:?}");
    answered(&oversized, &["HTTP/1.1 431 Request Header Fields Too Large"]);
    assert!(answered(&garbage, &["HTTP/1.1 400 Bad Request"]) > 900, "{garbage:?}");
    assert_eq!(answered(&crowd, &["HTTP/1.1 200 OK"]), 200, "{crowd:?}");
}

/// The first flight of a client that speaks TLS.
fn client_hello() -> Vec<u8> {
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let config = builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let name = "localhost".try_into().unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_scrape_over_tls_is_answered_whatever_handshakes_are_left_half_done() {
    if !is_possible() {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let scene = Scene::new("https", &format!("{TLS}{USERS}"));
    let hello = client_hello();
    let outcomes = scene.endure(|| {
        [
            scene.clients(1000, ABUSE, &hello),
            scene.clients(1000, ABUSE, &hello[..hello.len() / 2]),
            scene.clients(1000, ABUSE, get(RIGHT)),
            scene.clients(1000, ABUSE, ""),
        ]
    });
    for Outcome { tally, .. } in outcomes {
        println!("{tally}");
        assert_eq!((tally.started, tally.connected), (1000, 1000), "{tally}");
    }
}
