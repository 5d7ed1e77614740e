//! A daemon under attack, and a second daemon without attack. An effect that both show comes from
//! the machine.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
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
use listenq_lab::wait::{TIMEOUT, eventually};

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
/// The first port of the listeners. It is below the ephemeral range, which contains the daemon's
/// port.
const FIRST_PORT: u16 = 20_000;
/// How much of the 64 MiB of the shipped unit listenq may use: resident memory and socket buffers.
const MOST_MEMORY: u64 = 48 << 20;
/// The size in bytes of the pages of the optimized program and its libraries.
const PROGRAM: u64 = 8 << 20;
/// How many seconds a healthy scrape may take in addition to twice the slowest scrape of the daemon
/// that is not attacked.
const SCRAPE_TIME: f64 = if cfg!(debug_assertions) { 8.0 } else { 1.0 };
/// The share of samples that may be missed in addition to those of the daemon that is not attacked.
/// Without optimization answers take ten times as long. On a machine without an idle processor that
/// time is lost to the sampler.
const MISSED: f64 = if cfg!(debug_assertions) { 0.25 } else { 0.05 };
/// A cgroup v2 directory, for a run in an emulated kernel: the daemon starts there, with
/// `memory.max` set to 64 MiB.
const CGROUP: &str = "ABUSE_CGROUP";
/// bcrypt of "right" with cost 10, made by crypt(3).
pub(crate) const USERS: &str =
    "basic_auth_users:\n  alice: $2y$10$abcdefghijklmnopqrstuu1VS0P7v3ZJmd2gzBFIzgfN7OOl6Rl52\n";
pub(crate) const TLS: &str =
    "tls_server_config:\n  cert_file: server.pem\n  key_file: server.key\n";
/// `alice:right` and `alice:wrong`.
pub(crate) const RIGHT: &str = "Authorization: Basic YWxpY2U6cmlnaHQ=";
pub(crate) const WRONG: &str = "Authorization: Basic YWxpY2U6d3Jvbmc=";

pub(crate) struct Scene {
    pub(crate) ns: Netns,
    pub(crate) scheme: &'static str,
    pub(crate) root: Rootfs,
    pub(crate) daemon: Daemon,
    control: Daemon,
    _listeners: [Vec<Listener>; 2],
    _quiet: Netns,
}

/// The daemon's own counters and its number of descriptors.
#[derive(Debug)]
struct State {
    samples: f64,
    missed: f64,
    descriptors: usize,
}

/// The largest figures seen at one instant.
#[derive(Debug, Default, Clone, Copy)]
struct Memory {
    resident: u64,
    sockets: u64,
    total: u64,
    /// TCP memory of the whole machine, the attacker's ends included.
    machine: u64,
}

/// The durations of scrapes, and the scrapes that failed.
#[derive(Debug, Default)]
struct Scrapes {
    seconds: Vec<f64>,
    failed: Vec<(usize, String, f64)>,
}

// === impl Scene ===

impl Scene {
    /// Starts both daemons with the web configuration `config`, each with `listeners` listeners.
    pub(crate) fn new(scheme: &'static str, config: &str, listeners: u16) -> Self {
        raise_descriptor_limit();
        let root = Rootfs::new();
        let names = Subject { names: &["localhost", "127.0.0.1"], until: 2100 };
        Authority::new(root.path(), "ca").sign("server", names);
        let flag = format!("--web.config.file={}", root.file("web.yml", config).display());
        let [ns, quiet] = ["abuse", "quiet"].map(Netns::new);
        let ports = FIRST_PORT..FIRST_PORT + listeners;
        let listen = |ns: &Netns| ns.run(|| ports.clone().map(open).collect());
        let all = [listen(&ns), listen(&quiet)];
        // Without optimization a sample of this many listeners costs more than 2 % of a core.
        let start = |program: &Path, ns: &Netns| {
            let launch = Launch::new(program).args(&["--sample.cpu-budget=0.5", &flag]);
            launch.unready().inside(ns).start()
        };
        let (daemon, control) = (start(&program(&root), &ns), start(Path::new(BIN), &quiet));
        Self { ns, scheme, root, daemon, control, _listeners: all, _quiet: quiet }
    }

    /// Waits until the right password was checked once and the first scans are done.
    pub(crate) fn settled(self) -> Self {
        eventually("a scrape", TIMEOUT, || (self.scrape().0 == "200").then_some(()));
        thread::sleep(Duration::from_secs(3));
        self
    }

    /// Scrapes from an address that takes no part in the attack; returns the status, the seconds
    /// that the scrape took, and the body.
    pub(crate) fn scrape(&self) -> (String, f64, String) {
        self.scrape_of(&self.ns, &self.daemon)
    }

    fn scrape_of(&self, ns: &Netns, daemon: &Daemon) -> (String, f64, String) {
        let mut command = ns.command("curl");
        command.args(["-s", "--compressed", "--interface", "127.0.0.9", "--max-time", "10"]);
        command.args(["-H", RIGHT, "-w", "\n%{http_code} %{time_total}"]);
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

    /// Starts clients from 250 addresses. All clients send the same bytes.
    pub(crate) fn clients(
        &self,
        count: u32,
        lasting: Duration,
        bytes: impl AsRef<[u8]>,
    ) -> JoinHandle<Outcome> {
        let load = Load {
            rate: f64::from(count) / lasting.as_secs_f64(),
            lasting,
            patience: TIMEOUT,
            at_once: count as usize,
        };
        let (address, manner) = (self.daemon.address(), Manner::saying(bytes));
        self.ns.spawn(move || visit(address, load, &manner))
    }

    /// Runs an attack and scrapes meanwhile. Every scrape must be answered in time, the attack must
    /// not cause missed samples, and memory must stay below the limit.
    pub(crate) fn endure<T, const N: usize>(
        &self,
        what: &str,
        begin: impl FnOnce() -> [JoinHandle<T>; N],
    ) -> [T; N] {
        let [before, control_before] = self.states();
        let abuse = begin();
        let (is_over, mut most) = (AtomicBool::new(false), Memory::default());
        let (mut scrapes, mut control_scrapes) = (Scrapes::default(), Scrapes::default());
        thread::scope(|scope| {
            let watch = scope.spawn(|| self.watch_memory(&is_over));
            while abuse.iter().any(|clients| !clients.is_finished()) {
                scrapes.note(self.scrape());
                control_scrapes.note(self.scrape_of(&self._quiet, &self.control));
                thread::sleep(Duration::from_millis(50));
            }
            is_over.store(true, Ordering::Relaxed);
            most = watch.join().unwrap();
        });
        let outcomes = abuse.map(|clients| clients.join().unwrap());
        let [after, control_after] = self.states();
        println!("{what}, {}: {scrapes}; without attack {control_scrapes}", self.scheme);
        assert_eq!(scrapes.failed, [], "{what}: of {} scrapes", scrapes.seconds.len());
        let slowest = SCRAPE_TIME + 2.0 * control_scrapes.at(1.0);
        assert!(scrapes.at(1.0) < slowest, "{what}: {scrapes}; without attack {control_scrapes}");
        let [missed, control] =
            [after.missed - before.missed, control_after.missed - control_before.missed];
        let taken = after.samples - before.samples;
        println!("  {taken} samples, {missed} missed; a daemon without attack missed {control}");
        // An effect of the machine on both daemons may be a little larger on the attacked one.
        let most_missed = 2.0 * control + (taken * MISSED).max(10.0);
        assert!(missed <= most_missed, "{what}: {missed} missed, without attack {control}");
        println!("  at most {most}");
        assert!(most.total < MOST_MEMORY, "{what}: {most}");
        self.check_cgroup();
        eventually("the descriptors of before", TIMEOUT, || {
            (self.daemon.descriptors() <= before.descriptors).then_some(())
        });
        outcomes
    }

    fn watch_memory(&self, is_over: &AtomicBool) -> Memory {
        let (begin, mut most) = (machine_memory(), Memory::default());
        while !is_over.load(Ordering::Relaxed) {
            let [resident, sockets] =
                [self.resident(), socket_memory(&self.ns, self.daemon.address())];
            most.resident = most.resident.max(resident);
            most.sockets = most.sockets.max(sockets);
            most.total = most.total.max(resident + sockets);
            most.machine = most.machine.max(machine_memory().saturating_sub(begin));
            thread::sleep(Duration::from_millis(50));
        }
        most
    }

    /// Resident memory in bytes. Without optimization the program is three times as large, so its
    /// pages count at most as much as those of the optimized program.
    fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.daemon.pid())).unwrap();
        let of = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
        };
        let file = of("RssFile:");
        of("RssAnon:") + if cfg!(debug_assertions) { file.min(PROGRAM) } else { file }
    }

    /// Checks the peak memory that the kernel measured for the cgroup, if the run has one.
    fn check_cgroup(&self) {
        let Some(directory) = cgroup() else { return };
        let read = |name: &str| fs::read_to_string(directory.join(name)).unwrap();
        let (peak, events) = (read("memory.peak"), read("memory.events"));
        println!("  memory.peak {}", peak.trim());
        assert!(peak.trim().parse::<u64>().unwrap() < MOST_MEMORY, "{peak}");
        assert!(events.contains("oom_kill 0\n"), "{events}");
    }
}

/// The program to start. With a cgroup it is a script that enters the cgroup and then executes the
/// daemon, because the kernel attributes memory to the cgroup that allocates it.
fn program(root: &Rootfs) -> PathBuf {
    let Some(directory) = cgroup() else { return BIN.into() };
    let procs = directory.join("cgroup.procs");
    let text = format!("#!/bin/sh\necho $$ >{}\nexec {BIN} \"$@\"\n", procs.display());
    let script = root.file("enter", text);
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    script
}

fn cgroup() -> Option<PathBuf> {
    std::env::var_os(CGROUP).map(PathBuf::from)
}

fn open(port: u16) -> Listener {
    Listen::tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).open()
}

/// The buffers of all sockets at this end, as the kernel accounts them: received, queued for
/// sending, and reserved.
pub(crate) fn socket_memory(ns: &Netns, end: SocketAddr) -> u64 {
    let port = format!("sport = :{}", end.port());
    let output = ns.command("ss").args(["-tanmHO", &port]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(accounted).sum()
}

fn accounted(line: &str) -> u64 {
    let Some((_, memory)) = line.split_once("skmem:(") else { return 0 };
    let fields = memory.split([',', ')']);
    let of = |name: &str| {
        let values =
            fields.clone().filter_map(|field| field.strip_prefix(name)?.parse::<u64>().ok());
        values.sum::<u64>()
    };
    of("r") + of("w") + of("f")
}

/// Bytes of TCP memory of the whole machine.
fn machine_memory() -> u64 {
    let text = fs::read_to_string("/proc/net/sockstat").unwrap();
    let tcp = text.lines().find_map(|line| line.strip_prefix("TCP: ")).unwrap();
    let pages = tcp.rsplit_once("mem ").unwrap().1;
    pages.trim().parse::<u64>().unwrap() * 4096
}

pub(crate) fn is_possible() -> bool {
    Netns::require_root() && require_tool("curl")
}

// === impl Memory ===

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [resident, sockets, total, machine] =
            [self.resident, self.sockets, self.total, self.machine].map(|bytes| bytes >> 10);
        write!(f, "{resident} KiB resident, {sockets} KiB in sockets, {total} KiB together; ")?;
        write!(f, "TCP memory of the machine grew by {machine} KiB")
    }
}

// === impl Scrapes ===

impl Scrapes {
    fn note(&mut self, (status, seconds, _): (String, f64, String)) {
        if status != "200" {
            self.failed.push((self.seconds.len(), status, seconds));
        }
        self.seconds.push(seconds);
        self.seconds.sort_by(f64::total_cmp);
    }

    fn at(&self, share: f64) -> f64 {
        self.seconds[(share * (self.seconds.len() - 1) as f64) as usize]
    }
}

impl std::fmt::Display for Scrapes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (count, failed) = (self.seconds.len(), self.failed.len());
        let [median, p99, slowest] = [0.5, 0.99, 1.0].map(|share| self.at(share));
        write!(f, "{count} scrapes, {failed} failed, p50 {median:.3} s, p99 {p99:.3} s, ")?;
        write!(f, "slowest {slowest:.3} s")
    }
}
