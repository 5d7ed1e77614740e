//! Tests the causes: real servers that stop accepting, each for one reason, and the cause that
//! listenq must report for each. Similar servers without that reason must get no cause. Prints the
//! matrix with the seconds until the cause appears.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]
#![allow(
    clippy::disallowed_types,
    reason = "the servers are Python, and `ip` lists their processes"
)]
#![allow(clippy::print_stdout, reason = "the measured figures are for the reader of --nocapture")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use listenq_lab::client::try_fill;
use listenq_lab::listener::Listen;
use listenq_lab::listenq::{Daemon, Launch, run};
use listenq_lab::netns::Netns;
use listenq_lab::wait::{TIMEOUT, eventually, within};
use rustix::process::{Pid, Signal, kill_process};

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
const SERVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/causes/server.py");
/// Timeout for a cause: a diagnosis needs 10 s of evidence and a cause 3 s more; the rest is for a
/// busy machine.
const WITHIN: Duration = Duration::from_secs(40);
/// The version 2 hierarchy of a hybrid machine.
const UNIFIED: &str = "unified";
/// How long a server without the reason must stay without a cause after it has a diagnosis.
const STAYS: Duration = Duration::from_secs(12);

/// A server of `server.py` in a namespace of its own, and a daemon that watches it.
struct Scene {
    ns: Netns,
    daemon: Daemon,
    child: Child,
    address: SocketAddr,
}

impl Scene {
    /// A server that listenq has seen accept.
    fn new(mode: &str, argument: Option<&str>) -> Self {
        let ns = Netns::new(mode);
        Self::within(ns, mode, argument)
    }

    fn within(ns: Netns, mode: &str, argument: Option<&str>) -> Self {
        let scene = Self::unproven(ns, mode, argument);
        scene.prove();
        scene
    }

    /// A server that listenq has not seen accept.
    fn unproven(ns: Netns, mode: &str, argument: Option<&str>) -> Self {
        let mut command = ns.command("python3");
        command.args([SERVER, mode]).args(argument);
        let daemon = Launch::new(BIN).inside(&ns).keeping_mounts();
        Self::start(ns, daemon, command)
    }

    /// A server in this version 2 cgroup, and a daemon that may not inspect processes.
    fn unprivileged(cgroup: &Cgroup, mode: &str) -> Self {
        let ns = Netns::new("unprivileged");
        let mut command = Command::new("sh");
        // `ip netns exec` mounts a new /sys without cgroups.
        let procs = cgroup.0.join("cgroup.procs");
        let program = format!("exec ip netns exec {} python3 {SERVER} {mode}", ns.name());
        let join = format!("echo $$ > {} && {program}", procs.display());
        command.args(["-c", &join]);
        let daemon = Launch::new(BIN).inside(&ns).as_nobody().keeping_mounts();
        let scene = Self::start(ns, daemon, command);
        scene.prove();
        scene
    }

    /// Starts the server before the daemon: the listeners that a daemon finds at its start have
    /// series at once.
    fn start(ns: Netns, daemon: Launch, mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut port = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port.trim().parse().unwrap()));
        Self { ns, daemon: daemon.start(), child, address }
    }

    /// Lets samples see that the server accepts: a queue with a connection, which becomes empty.
    fn prove(&self) {
        let is = |length: f64| {
            let scrape = self.daemon.scrape();
            (scrape.at(self.address).length == Some(length)).then_some(())
        };
        eventually("an empty queue", TIMEOUT, || is(0.0));
        kill_process(self.pid(), Signal::STOP).unwrap();
        let client = self.ns.run(|| TcpStream::connect(self.address).unwrap());
        eventually("a connection in the queue", TIMEOUT, || is(1.0));
        kill_process(self.pid(), Signal::CONT).unwrap();
        read(client);
        eventually("an empty queue again", TIMEOUT, || is(0.0));
    }

    /// Makes connections that the server serves.
    fn serve_some(&self) {
        for _ in 0..20 {
            read(self.ns.run(|| TcpStream::connect(self.address).unwrap()));
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts the trouble of the server.
    fn begin(&mut self) {
        writeln!(self.child.stdin.as_mut().unwrap()).unwrap();
        thread::sleep(Duration::from_millis(300));
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn holding(&self, metric: &str, label: &str) -> BTreeSet<String> {
        let series = self.daemon.scrape().series(metric);
        let of = series.into_iter().filter(|(labels, value)| {
            *value == 1.0 && labels["port"] == self.address.port().to_string()
        });
        of.map(|(labels, _)| labels[label].clone()).collect()
    }

    fn causes(&self) -> BTreeSet<String> {
        self.holding("listenq_listener_cause", "cause")
    }

    fn diagnoses(&self) -> BTreeSet<String> {
        self.holding("listenq_listener_diagnosis", "diagnosis")
    }

    /// Waits for exactly this cause; returns the output of `explain`.
    fn await_cause(&self, expected: &str) -> Result<String, String> {
        let begin = Instant::now();
        while begin.elapsed() < WITHIN {
            let causes = self.causes();
            if causes.contains(expected) && causes.len() == 1 {
                println!("{expected:<18} {:>5.1} s", begin.elapsed().as_secs_f64());
                self.assert_logged(expected)?;
                return Ok(self.explain());
            }
            if !causes.is_empty() && !causes.contains(expected) {
                return Err(format!("{expected}: found {causes:?}\n{}", self.explain()));
            }
            thread::sleep(Duration::from_millis(250));
        }
        Err(format!(
            "{expected}: {:?}, diagnoses {:?}\n{}",
            self.causes(),
            self.diagnoses(),
            self.explain()
        ))
    }

    /// Checks that exactly one log line has the cause and the PID: the line about the start of the
    /// trouble, or one further line.
    fn assert_logged(&self, cause: &str) -> Result<(), String> {
        // `not_accepting` is information, not an incident.
        if self.diagnoses().iter().all(|word| word == "not_accepting") {
            return Ok(());
        }
        // A daemon that may not inspect processes knows no PID.
        let is_blind = self.daemon.log().iter().any(|line| line.contains("feature=owners"));
        let pid = if is_blind { "" } else { "pid=" };
        let words = [format!("cause={cause}"), pid.into(), "diagnosis=".into()];
        let logged = || {
            let log = self.daemon.log();
            let has = |line: &&String| words.iter().all(|word| line.contains(word));
            let more = log.iter().filter(|line| line.contains("found why")).count();
            (log.iter().filter(has).count() == 1 && more <= 1)
                .then(|| println!("{cause:<18} logged"))
        };
        let is_logged = within(Duration::from_secs(3), logged);
        is_logged.ok_or_else(|| format!("{cause}: {}", self.daemon.log().join("\n")))
    }

    fn explain(&self) -> String {
        let url = format!("http://{}", self.daemon.address());
        let port = self.address.port().to_string();
        run(Some(&self.ns), BIN.as_ref(), &["explain", &port, "--url", &url]).stdout
    }

    /// Connects `per_second` clients per second until `stop` is set; ignores refused connections.
    fn load(&self, per_second: u32, stop: &AtomicBool) {
        self.ns.run(|| {
            let mut clients = std::collections::VecDeque::new();
            while !stop.load(Ordering::Relaxed) {
                let timeout = Duration::from_millis(300);
                clients.push_back(TcpStream::connect_timeout(&self.address, timeout));
                if clients.len() > 200 {
                    clients.pop_front();
                }
                thread::sleep(Duration::from_secs(1) / per_second);
            }
        });
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = kill_process(self.pid(), Signal::CONT);
        // The namespace contains only the server's workers and children.
        let pids = Command::new("ip").args(["netns", "pids", self.ns.name()]).output();
        for pid in String::from_utf8(pids.unwrap().stdout).unwrap().split_whitespace() {
            let pid: i32 = pid.parse().unwrap();
            if pid.cast_unsigned() != self.daemon.pid() {
                let _ = Pid::from_raw(pid).map(|pid| kill_process(pid, Signal::KILL));
            }
        }
        let _ = self.child.wait();
    }
}

/// A version 1 cgroup of one controller. The cgroup is removed when this is dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    /// Creates a cgroup; `None` if the controller is not mounted as version 1, which the caller
    /// reports.
    fn new(controller: &str, hint: &str) -> Option<Self> {
        let root = PathBuf::from("/sys/fs/cgroup").join(controller);
        if !root.join("cgroup.procs").exists() {
            return None;
        }
        let path = root.join(format!("listenq-{hint}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Some(Self(path))
    }

    fn child(&self, name: &str) -> Self {
        let path = self.0.join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn set(&self, file: &str, value: &str) {
        fs::write(self.0.join(file), value).unwrap();
    }

    fn join(&self, pid: Pid) {
        self.set("cgroup.procs", &pid.as_raw_nonzero().to_string());
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if self.0.join("freezer.state").exists() {
            let _ = fs::write(self.0.join("freezer.state"), "THAWED");
        }
        for pid in fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = fs::write(self.0.join("../cgroup.procs"), pid);
        }
        let _ = fs::remove_dir(&self.0);
    }
}

/// Reads until the server closes the connection.
fn read(mut client: TcpStream) {
    client.set_read_timeout(Some(WITHIN)).unwrap();
    // A server may end a connection with RST.
    let _ = client.read_to_end(&mut Vec::new());
}

type Outcome = Result<(), String>;
/// A cause and the scene that makes it.
type Cell = (&'static str, fn() -> Outcome);

fn expect(text: &str, words: &[&str]) -> Outcome {
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match words.iter().find(|word| !flat.contains(*word)) {
        Some(word) => Err(format!("explain does not say {word:?}:\n{text}")),
        None => Ok(()),
    }
}

/// Waits until connections queue at a server in trouble; returns the clients.
fn wait_in_line(scene: &Scene, clients: usize) -> Vec<impl Sized + use<>> {
    scene.ns.run(|| try_fill(scene.address, clients).unwrap())
}

fn stopped() -> Outcome {
    let scene = Scene::new("serve", None);
    kill_process(scene.pid(), Signal::STOP).unwrap();
    let _clients = wait_in_line(&scene, 6);
    let pid = scene.child.id().to_string();
    expect(&scene.await_cause("stopped")?, &["is stopped", &pid, &format!("kill -CONT {pid}")])
}

fn stopped_without_a_proof_that_it_accepts() -> Outcome {
    let scene = Scene::unproven(Netns::new("resets"), "resets", None);
    scene.serve_some();
    kill_process(scene.pid(), Signal::STOP).unwrap();
    let _clients = wait_in_line(&scene, 6);
    scene.await_cause("stopped")?;
    let is_stalled = || scene.diagnoses().contains("stalled").then_some(());
    within(WITHIN, is_stalled).ok_or_else(|| format!("resets: {:?}", scene.diagnoses()))
}

fn frozen() -> Outcome {
    let Some(cgroup) = Cgroup::new("freezer", "frozen") else { return skip("freezer") };
    let scene = Scene::new("serve", None);
    // The freezer of the parent freezes the child.
    cgroup.child("inner").join(scene.pid());
    cgroup.set("freezer.state", "FROZEN");
    let _clients = wait_in_line(&scene, 6);
    let found = scene.await_cause("frozen");
    cgroup.set("freezer.state", "THAWED");
    expect(&found?, &["is frozen"])?;
    drop(scene);
    thread::sleep(Duration::from_millis(200));
    let _ = fs::remove_dir(cgroup.0.join("inner"));
    Ok(())
}

fn frozen_and_not_to_be_looked_at() -> Outcome {
    let Some(cgroup) = Cgroup::new(UNIFIED, "unprivileged") else { return skip(UNIFIED) };
    let scene = Scene::unprivileged(&cgroup, "serve");
    cgroup.set("cgroup.freeze", "1");
    let _clients = wait_in_line(&scene, 6);
    let found = scene.await_cause("frozen");
    cgroup.set("cgroup.freeze", "0");
    expect(&found?, &["is frozen"])
}

fn throttled_and_not_to_be_looked_at() -> Outcome {
    let Some(unified) = Cgroup::new(UNIFIED, "unprivileged-quota") else { return skip(UNIFIED) };
    let Some(cgroup) = Cgroup::new("cpu", "unprivileged-quota") else { return skip("cpu") };
    let scene = Scene::unprivileged(&unified, "burn");
    throttle(&cgroup, scene)
}

fn descriptors() -> Outcome {
    let mut scene = Scene::new("descriptors", None);
    scene.begin();
    let _clients = wait_in_line(&scene, 32);
    expect(&scene.await_cause("descriptors")?, &["of 24 allowed file descriptors"])
}

fn connection_limit() -> Outcome {
    let mut scene = Scene::new("limit", Some("5"));
    scene.begin();
    let _clients = wait_in_line(&scene, 14);
    expect(&scene.await_cause("connection_limit")?, &["own limit"])
}

fn idle_clients() -> Outcome {
    let mut scene = Scene::new("idle", None);
    scene.begin();
    let _clients = wait_in_line(&scene, 14);
    expect(&scene.await_cause("idle_clients")?, &["clients that send nothing"])
}

fn waits_for() -> Outcome {
    let ns = Netns::new("waits");
    let database = ns.run(|| Listen::tcp("127.0.0.1:0").backlog(64).open());
    let peer = database.addr().to_string();
    let mut scene = Scene::within(ns, "waits", Some(&peer));
    scene.begin();
    let _clients = wait_in_line(&scene, 14);
    expect(&scene.await_cause("waits_for")?, &[&format!("workers wait for {peer} (recvfrom)")])
}

fn lock() -> Outcome {
    let mut scene = Scene::new("lock", None);
    scene.begin();
    let _clients = wait_in_line(&scene, 6);
    expect(&scene.await_cause("lock")?, &["wait for a lock"])
}

fn cpu_bound() -> Outcome {
    let mut scene = Scene::new("loop", None);
    scene.begin();
    let _clients = wait_in_line(&scene, 6);
    // On a busy machine the loop of the server waits for a processor, which is `cpu_starved`.
    let begin = Instant::now();
    while begin.elapsed() < WITHIN {
        let causes = scene.causes();
        if causes.contains("cpu_bound") || causes.contains("cpu_starved") {
            println!("{causes:?} {:>5.1} s", begin.elapsed().as_secs_f64());
            return Ok(());
        }
        thread::sleep(Duration::from_millis(250));
    }
    Err(format!("cpu_bound: {:?}\n{}", scene.causes(), scene.explain()))
}

fn disk_wait() -> Outcome {
    let mut scene = Scene::new("disk", None);
    scene.begin();
    let _clients = wait_in_line(&scene, 6);
    expect(&scene.await_cause("disk_wait")?, &["state D"])
}

fn cpu_throttled() -> Outcome {
    let Some(cgroup) = Cgroup::new("cpu", "quota") else { return skip("cpu") };
    throttle(&cgroup, Scene::new("burn", None))
}

/// Gives the server too little CPU, and waits for the cause.
fn throttle(cgroup: &Cgroup, mut scene: Scene) -> Outcome {
    // The parent cgroup has the quota, as the cgroup of a pod does for its containers.
    let inner = cgroup.child("inner");
    cgroup.set("cpu.cfs_quota_us", "5000");
    inner.join(scene.pid());
    scene.begin();
    let stop = AtomicBool::new(false);
    let found = thread::scope(|scope| {
        scope.spawn(|| scene.load(20, &stop));
        let found = scene.await_cause("cpu_throttled");
        stop.store(true, Ordering::Relaxed);
        found
    });
    cgroup.set("cpu.cfs_quota_us", "-1");
    drop((scene, inner));
    expect(&found?, &["CPU-throttled", "Raise"])
}

fn skip(controller: &str) -> Outcome {
    println!(
        "SKIPPED: no version 1 cgroup controller {controller} here; tests/release.sh has it in a virtual machine"
    );
    Ok(())
}

/// Checks that a server that is slow for no visible reason gets no cause, even beside a server that
/// has a reason.
fn innocent(hint: &str, trouble: impl FnOnce(&mut Scene) -> Box<dyn Kept>) -> Outcome {
    let mut scene = Scene::new(hint, None);
    let _kept = trouble(&mut scene);
    let begin = Instant::now();
    while begin.elapsed() < STAYS {
        let causes = scene.causes();
        if !causes.is_empty() {
            return Err(format!("{hint}: {causes:?} for an innocent server\n{}", scene.explain()));
        }
        thread::sleep(Duration::from_millis(250));
    }
    println!("{hint:<18} no cause");
    Ok(())
}

/// A value that must live as long as a scene.
trait Kept {}
impl<T> Kept for T {}

/// A healthy pool whose idle threads wait on a futex.
fn healthy_pool() -> Outcome {
    innocent("single", |scene| {
        scene.begin();
        let clients = wait_in_line(scene, 6);
        Box::new(clients)
    })
}

/// A stopped child that does not accept, beside its parent that does.
fn stopped_neighbour() -> Outcome {
    innocent("serve", |scene| {
        scene.begin();
        let mut neighbour = Scene::new("serve", None);
        neighbour.begin();
        kill_process(neighbour.pid(), Signal::STOP).unwrap();
        Box::new(neighbour)
    })
}

#[test]
fn every_cause_is_reported_and_no_other() {
    if !Netns::require_root() {
        return;
    }
    let cells: [Cell; 15] = [
        ("stopped", stopped),
        ("stopped, resets its clients", stopped_without_a_proof_that_it_accepts),
        ("frozen", frozen),
        ("frozen, unprivileged", frozen_and_not_to_be_looked_at),
        ("cpu_throttled, unprivileged", throttled_and_not_to_be_looked_at),
        ("descriptors", descriptors),
        ("connection_limit", connection_limit),
        ("idle_clients", idle_clients),
        ("waits_for", waits_for),
        ("lock", lock),
        ("cpu_bound", cpu_bound),
        ("disk_wait", disk_wait),
        ("cpu_throttled", cpu_throttled),
        ("healthy pool", healthy_pool),
        ("stopped neighbour", stopped_neighbour),
    ];
    let running = cells.map(|(name, cell)| (name, thread::spawn(cell)));
    let mut failed = Vec::new();
    for (name, cell) in running {
        match cell.join() {
            Ok(Ok(())) => {}
            Ok(Err(why)) => failed.push(format!("{name}: {why}")),
            Err(_) => failed.push(format!("{name}: panicked")),
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}
