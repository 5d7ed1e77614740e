//! Runs one cell of a table: a server, its clients and a daemon in a namespace of their own.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use listenq::report::{Listener, Report};
use listenq_lab::Signal;
use listenq_lab::hammer::{Load, Manner, Outcome, Target, visit};
use listenq_lab::listener::Listen;
use listenq_lab::listenq::{Daemon, Launch, run};
use listenq_lab::netns::Netns;
use listenq_lab::rootfs::Rootfs;
use listenq_lab::running::Running;
use listenq_lab::wait::within;
use rustix::process::{Pid, kill_process};

use crate::programs::{Program, Settings, Stops, UPSTREAM};
use crate::table::Situation;
use crate::trouble::{Cgroup, Disk, hog, limit_descriptors};

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
const SECOND: Duration = Duration::from_secs(1);
/// How long a server may take to listen: a database creates its files first, and the machine is
/// busy.
const START: Duration = Duration::from_secs(60);
/// How long the server serves at first: a diagnosis needs a listener that is watched for 10 s.
const CALM: Duration = Duration::from_secs(12);
/// How long clients come, and how long the test watches the daemon.
const TROUBLE: Duration = Duration::from_secs(50);
/// How long a server runs before a restart.
const RESTART: Duration = Duration::from_secs(8);
/// Five times the load that two workers can serve with half a second per request.
const LOAD: Load = Load { rate: 20.0, lasting: TROUBLE, patience: TROUBLE, at_once: 4_000 };
/// How long the server pauses while a burst arrives.
const PAUSE: Duration = Duration::from_millis(100);
/// One client.
const ONE: Load =
    Load { rate: 10.0, lasting: Duration::from_millis(100), patience: LOAD.patience, at_once: 1 };
/// Forty clients at once.
const BURST: Load = Load {
    rate: 4_000.0,
    lasting: Duration::from_millis(10),
    patience: Duration::from_secs(3),
    at_once: 40,
};
/// The load for a server that serves no client. The clients wait until the end.
const PATIENT: Load = Load { rate: 2.0, at_once: 60, ..LOAD };
/// More load than a server can serve with 1 % of a CPU.
const MANY: Load = Load { rate: 200.0, patience: Duration::from_secs(10), at_once: 400, ..LOAD };
/// More clients that hold connections than the server accepts.
const HOLDERS: Load = Load { rate: 8.0, at_once: 40, ..LOAD };
/// The number of descriptors that a server can still open after its limit is lowered.
const SPARE: usize = 4;
/// A queue limit that a burst exceeds.
const SHORT: u32 = 4;
/// A queue limit that a slow server reaches.
const SMALL: u32 = 16;
/// Separates the output of `explain` after the first diagnosis from that after the first cause.
const CAUSE_EXPLAINED: &str = " WITH ITS CAUSE: ";
/// Held by the cell whose requests compute forever: two such cells would starve each other.
static PROCESSORS: Mutex<()> = Mutex::new(());

/// The outcome of a cell.
#[derive(Debug, Default)]
pub(crate) struct Played {
    /// The diagnoses of the listener in order of appearance, each with the seconds since the
    /// trouble began.
    pub(crate) words: Vec<(String, f64)>,
    /// The causes, in the same form.
    pub(crate) causes: Vec<(String, f64)>,
    /// The output of `explain`: after the first diagnosis, and after the first cause.
    pub(crate) explained: String,
    /// Why the situation was not as intended.
    pub(crate) problem: Option<String>,
}

/// A server, and a daemon beside it.
struct Scene<'a> {
    program: &'a Program,
    settings: Settings,
    ns: Netns,
    root: Rootfs,
    daemon: Daemon,
}

/// Runs one cell to its end.
pub(crate) fn play(program: &Program, situation: Situation) -> Played {
    let is_loop = matches!(situation, Situation::Loop | Situation::Starved);
    let _alone = is_loop.then(|| PROCESSORS.lock());
    let scene = Scene::new(program, situation);
    scene.start_and_play(situation).unwrap_or_else(Played::failed)
}

// === impl Played ===

impl Played {
    pub(crate) fn failed(problem: impl Into<String>) -> Self {
        Self { problem: Some(problem.into()), ..Self::default() }
    }

    /// Adds the diagnoses and causes that are not yet recorded.
    fn note(&mut self, listener: &Listener, now: f64) {
        let words = listener.diagnoses.iter().map(|one| one.diagnosis.label());
        add(&mut self.words, words, now);
        add(&mut self.causes, listener.causes.iter().map(|one| one.cause.label()), now);
    }
}

fn add(known: &mut Vec<(String, f64)>, words: impl Iterator<Item = &'static str>, now: f64) {
    for word in words {
        if known.iter().all(|(known, _)| known != word) {
            known.push((word.to_owned(), now));
        }
    }
}

// === impl Scene ===

impl<'a> Scene<'a> {
    fn new(program: &'a Program, situation: Situation) -> Self {
        let ns = Netns::new(&format!("{}-{}", program.name, situation.label()));
        let limit = match situation {
            Situation::Short => Some(SHORT),
            Situation::Full => Some(SMALL),
            _ => None,
        };
        let settings = Settings { limit, situation };
        if let Some(limit) = limit.filter(|_| !program.has_backlog()) {
            ns.sysctl("net.core.somaxconn", limit);
        }
        // With a new mount of /sys the daemon would see no cgroups.
        let launch = Launch::new(BIN).inside(&ns).keeping_mounts();
        let daemon = launch.args(&["--client-patience=60s"]).start();
        Self { program, settings, ns, root: Rootfs::new(), daemon }
    }

    /// Starts the server, and waits until it listens.
    fn start(&self) -> Result<Running, String> {
        // Apache ends all processes of its process group.
        let mut command = self.ns.command("setsid");
        command.args(["sh", "-c"]).arg(self.program.script(&self.root, self.settings));
        let server = Running::start(&mut command);
        match within(START, || self.listens().then_some(())) {
            Some(()) => Ok(server),
            None => Err(format!("does not listen: {}", self.log())),
        }
    }

    fn start_and_play(&self, situation: Situation) -> Result<Played, String> {
        match situation {
            Situation::Inherited => Ok(self.inherited()),
            // The server's mount namespace has only file systems that were mounted before.
            Situation::Disk => {
                let disk = Disk::mount(&self.root.path().join("disk"))?;
                let _server = self.start()?;
                self.at_a_suspended_disk(disk)
            }
            _ => self.play(situation, Some(self.start()?)),
        }
    }

    fn play(&self, situation: Situation, server: Option<Running>) -> Result<Played, String> {
        let rate = self.program.busy_rate;
        let at_half = Load { rate: rate / 2.0, patience: 10 * SECOND, ..LOAD };
        Ok(match situation {
            Situation::Busy => self.busy(Load { rate, patience: 10 * SECOND, ..LOAD }),
            Situation::Slow => self.overloaded(Load { at_once: 60, patience: TROUBLE, ..LOAD }),
            Situation::Full => self.overloaded(Load { patience: 10 * SECOND, ..LOAD }),
            Situation::Stopped => self.stopped(),
            Situation::Short => self.short(),
            Situation::Restarting => self.restarting(server, at_half),
            Situation::Frozen => self.frozen()?,
            Situation::Throttled => self.throttled()?,
            Situation::Starved => self.starved()?,
            Situation::Loop | Situation::Lock => self.overloaded(PATIENT),
            Situation::Waits => self.waiting(),
            Situation::Held => self.overloaded(HOLDERS),
            Situation::Descriptors => self.out_of_descriptors()?,
            Situation::Disk | Situation::Inherited => unreachable!("they start differently"),
        })
    }

    /// The server must serve its clients, without a diagnosis.
    fn busy(&self, load: Load) -> Played {
        self.calm();
        let (mut played, outcome) = self.watched(|| self.visit(load));
        // Some servers end a connection with RST.
        let tally = outcome.tally;
        if (tally.served + tally.reset) * 10 < tally.started * 9 {
            played.problem = Some(format!("is not healthy: {tally}; {}", self.log()));
        }
        played
    }

    fn overloaded(&self, load: Load) -> Played {
        self.calm();
        self.watched(|| self.visit(load)).0
    }

    /// Stops a server that has accepted before. Then 0.6 clients per second connect, and none
    /// leaves.
    fn stopped(&self) -> Played {
        self.calm();
        self.show_an_accept();
        match self.program.stops {
            Stops::All => self.signal(Signal::STOP),
            Stops::OneWorker => self.signal_newest(Signal::STOP),
        }
        self.watched(|| self.visit(Load { rate: 0.6, patience: TROUBLE, ..LOAD })).0
    }

    fn frozen(&self) -> Result<Played, String> {
        let cgroup = Cgroup::new("freezer")?;
        cgroup.join(&self.pids());
        self.calm();
        cgroup.freeze()?;
        Ok(self.watched_until(|| self.visit(PATIENT), || drop(cgroup)).0)
    }

    fn throttled(&self) -> Result<Played, String> {
        let cgroup = Cgroup::new("cpu")?;
        self.calm();
        cgroup.join(&self.pids());
        cgroup.throttle()?;
        Ok(self.watched(|| self.visit(MANY)).0)
    }

    /// Another process uses the only CPU that the server may use.
    fn starved(&self) -> Result<Played, String> {
        let cgroup = Cgroup::new("cpu")?;
        self.calm();
        cgroup.join(&self.pids());
        cgroup.starve()?;
        let _hog = hog(&self.pids())?;
        Ok(self.watched(|| self.visit(MANY)).0)
    }

    /// The upstream accepts nothing and answers nothing.
    fn waiting(&self) -> Played {
        let _upstream = self.ns.run(|| Listen::tcp(UPSTREAM).backlog(4096).open());
        self.overloaded(PATIENT)
    }

    fn at_a_suspended_disk(&self, disk: Disk) -> Result<Played, String> {
        self.calm();
        disk.suspend()?;
        Ok(self.watched_until(|| self.visit(PATIENT), || drop(disk)).0)
    }

    fn out_of_descriptors(&self) -> Result<Played, String> {
        self.calm();
        limit_descriptors(&self.pids(), SPARE)?;
        Ok(self.watched(|| self.visit(HOLDERS)).0)
    }

    /// Starts a server that serves no client.
    fn inherited(&self) -> Played {
        let server = self.start();
        let played = self.watched(|| self.visit(PATIENT)).0;
        Played { problem: server.err(), ..played }
    }

    /// Sends bursts while the server pauses; between the bursts the server serves all clients.
    fn short(&self) -> Played {
        self.calm();
        let began = Instant::now();
        let bursts = || {
            while began.elapsed() < TROUBLE {
                self.signal(Signal::STOP);
                thread::scope(|scope| {
                    scope.spawn(|| self.visit(BURST));
                    thread::sleep(PAUSE);
                    self.signal(Signal::CONT);
                });
                thread::sleep(3 * SECOND);
            }
        };
        self.watched(bursts).0
    }

    /// Restarts the server again and again: clients find no server for a moment, but no queue is in
    /// trouble.
    fn restarting(&self, server: Option<Running>, load: Load) -> Played {
        let began = Instant::now();
        let restarts = || {
            let mut server = server.ok_or_else(String::new);
            while began.elapsed() + 2 * RESTART < TROUBLE {
                thread::sleep(RESTART);
                drop(server);
                self.signal(Signal::KILL);
                within(START, || self.pids().is_empty().then_some(()));
                server = self.start();
            }
            server.err()
        };
        let (played, problem) = self.watched(|| {
            thread::scope(|scope| {
                let clients = scope.spawn(|| self.visit(load));
                let problem = restarts();
                let _ = clients.join();
                problem
            })
        });
        Played { problem, ..played }
    }

    /// Waits until the daemon has seen served clients and every diagnosis of a slow start has
    /// ended.
    fn calm(&self) {
        let load = Load { rate: 2.0, lasting: CALM, patience: 5 * SECOND, at_once: 500 };
        let _ = self.visit_as(Situation::Busy, load);
        let words = || {
            let mut played = Played::default();
            self.listeners().iter().for_each(|listener| played.note(listener, 0.0));
            played.words
        };
        let is_calm = within(START, || words().is_empty().then_some(()));
        assert!(is_calm.is_some(), "is in trouble before its trouble: {:?}", words());
    }

    /// Shows the daemon a client that waits and is accepted: most servers accept too fast for
    /// samples.
    fn show_an_accept(&self) {
        let becomes = |expected: bool| {
            let is = || self.listeners().iter().any(|listener| listener.length > 0) == expected;
            within(START, || is().then_some(())).is_some()
        };
        self.signal(Signal::STOP);
        let was_shown = thread::scope(|scope| {
            scope.spawn(|| self.visit_as(Situation::Busy, ONE));
            let waits = becomes(true);
            self.signal(Signal::CONT);
            waits && becomes(false)
        });
        assert!(was_shown, "the daemon did not see a client wait");
    }

    fn visit(&self, load: Load) -> Outcome {
        self.visit_as(self.settings.situation, load)
    }

    fn visit_as(&self, situation: Situation, load: Load) -> Outcome {
        let request = self.program.request(&self.root, situation);
        let (target, manner) = (self.target(), Manner::saying(request));
        self.ns.run(|| visit(target, load, &manner))
    }

    /// Runs `work` and watches the daemon for [`TROUBLE`]. Then kills the server, which ends its
    /// clients.
    fn watched<T: Send>(&self, work: impl FnOnce() -> T + Send) -> (Played, T) {
        self.watched_until(work, || ())
    }

    /// Like [`Self::watched`], but calls `release` after the signal, so that the server can end.
    fn watched_until<T: Send>(
        &self,
        work: impl FnOnce() -> T + Send,
        release: impl FnOnce(),
    ) -> (Played, T) {
        thread::scope(|scope| {
            let work = scope.spawn(work);
            let mut played = Played::default();
            let began = Instant::now();
            while began.elapsed() < TROUBLE {
                self.note(&mut played, began.elapsed().as_secs_f64());
                thread::sleep(SECOND / 4);
            }
            if played.explained.is_empty() {
                played.explained = self.explain();
            }
            self.signal(Signal::KILL);
            release();
            (played, work.join().expect("the clients do not panic"))
        })
    }

    /// Records new diagnoses and causes, and the output of `explain` some seconds after the first
    /// diagnosis and after the first cause.
    fn note(&self, played: &mut Played, now: f64) {
        self.listeners().iter().for_each(|listener| played.note(listener, now));
        let is_over =
            |words: &[(String, f64)]| words.first().is_some_and(|(_, first)| now > first + 3.0);
        let had_cause = played.explained.contains(CAUSE_EXPLAINED);
        if is_over(&played.causes) && !had_cause {
            played.explained += CAUSE_EXPLAINED;
            played.explained += &self.explain();
        } else if is_over(&played.words) && played.explained.is_empty() {
            played.explained = self.explain();
        }
    }

    /// The listeners of the server: one, or none while the server does not listen.
    fn listeners(&self) -> Vec<Listener> {
        let port = self.program.port().map_or_else(String::new, |port| port.to_string());
        let answer = self.daemon.get("/api/v1/listeners", &[]);
        let report: Report = serde_json::from_str(answer.text()).unwrap();
        report.listeners.into_iter().filter(|listener| listener.port == port).collect()
    }

    fn explain(&self) -> String {
        let url = format!("--url=http://{}", self.daemon.address());
        let target = match self.program.port() {
            Some(port) => port.to_string(),
            None => self.program.path(&self.root),
        };
        let output = run(Some(&self.ns), BIN.as_ref(), &["explain", &target, &url]);
        let text = [output.stdout, output.stderr].concat();
        // In one line: the positions of line breaks do not matter.
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    fn log(&self) -> String {
        let text = std::fs::read_to_string(self.root.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join(" | ")
    }

    fn listens(&self) -> bool {
        match self.program.port() {
            Some(port) => self.ns.ss_listen().iter().any(|row| row.port == port),
            None => self.ns.ss_unix(&self.program.path(&self.root)).is_some(),
        }
    }

    fn target(&self) -> Target {
        match self.program.port() {
            Some(port) => SocketAddr::from(([127, 0, 0, 1], port)).into(),
            None => Target::Unix(self.program.path(&self.root).into_bytes()),
        }
    }

    fn signal(&self, signal: Signal) {
        for pid in self.pids() {
            let _ = kill_process(pid, signal);
        }
    }

    /// Signals the process that was started last, which is a worker.
    fn signal_newest(&self, signal: Signal) {
        let newest = self.pids().into_iter().max_by_key(|pid| pid.as_raw_pid());
        let _ = kill_process(newest.expect("a server runs"), signal);
    }

    /// The processes of the namespace, without the daemon and the tools that inspect the namespace.
    fn pids(&self) -> Vec<Pid> {
        let output = Command::new("ip").args(["netns", "pids", self.ns.name()]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let pids = text.lines().filter_map(|line| line.trim().parse::<u32>().ok());
        let comm =
            |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let looks = |pid: u32| ["ip", "ss", "listenq", "setsid"].contains(&comm(pid).trim_end());
        let others = pids.filter(|pid| *pid != std::process::id() && !looks(*pid));
        others.filter_map(|pid| Pid::from_raw(pid.cast_signed())).collect()
    }
}

impl Drop for Scene<'_> {
    fn drop(&mut self) {
        self.signal(Signal::CONT);
    }
}
