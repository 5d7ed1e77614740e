//! Owns one cell: a server, its clients and a daemon in a namespace of their own, and the words that came.

use std::net::SocketAddr;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use listenq::report::Report;
use listenq_lab::Signal;
use listenq_lab::hammer::{Load, Manner, Outcome, Target, visit};
use listenq_lab::listenq::{Daemon, run};
use listenq_lab::netns::Netns;
use listenq_lab::rootfs::Rootfs;
use listenq_lab::running::Running;
use listenq_lab::wait::within;
use rustix::process::{Pid, kill_process};

use crate::programs::{Program, Settings, Stops};
use crate::table::Situation;

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
const SECOND: Duration = Duration::from_secs(1);
/// How long a server may take to listen: a database makes its files first, and the machine is busy.
const START: Duration = Duration::from_secs(60);
/// How long everything is well at first: a diagnosis needs a listener that is watched for 10 s.
const CALM: Duration = Duration::from_secs(12);
/// How long clients come, and the daemon is watched.
const TROUBLE: Duration = Duration::from_secs(50);
/// How long a server runs before it is restarted.
const RESTART: Duration = Duration::from_secs(8);
/// Five times what two workers of half a second can serve.
const LOAD: Load = Load { rate: 20.0, lasting: TROUBLE, patience: TROUBLE, at_once: 4_000 };
/// The length of a pause in which a burst comes.
const PAUSE: Duration = Duration::from_millis(100);
/// Forty clients at once.
const BURST: Load = Load {
    rate: 4_000.0,
    lasting: Duration::from_millis(10),
    patience: Duration::from_secs(3),
    at_once: 40,
};
/// A limit that a burst exceeds.
const SHORT: u32 = 4;
/// A limit that a slow server reaches.
const SMALL: u32 = 16;

/// What came of a cell.
#[derive(Debug, Default)]
pub(crate) struct Played {
    /// Each diagnosis of the listener, with the seconds from the begin of the trouble to it, in the order they came.
    pub(crate) words: Vec<(String, f64)>,
    /// What `explain` said at the end.
    pub(crate) explained: String,
    /// Why the situation was not what it should be.
    pub(crate) problem: Option<String>,
}

/// The server, and what is around it.
struct Scene<'a> {
    program: &'a Program,
    settings: Settings,
    ns: Netns,
    root: Rootfs,
    daemon: Daemon,
}

/// Plays one cell to its end.
pub(crate) fn play(program: &Program, situation: Situation) -> Played {
    let scene = Scene::new(program, situation);
    match scene.start() {
        Ok(server) => scene.play(situation, server),
        Err(problem) => Played::failed(problem),
    }
}

// === impl Played ===

impl Played {
    pub(crate) fn failed(problem: impl Into<String>) -> Self {
        Self { problem: Some(problem.into()), ..Self::default() }
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
        let is_slow = matches!(situation, Situation::Slow | Situation::Full);
        let takes = match situation {
            Situation::Slow | Situation::Full => "0.5",
            Situation::Short => "0",
            _ => "0.05",
        };
        let settings = Settings { limit, is_slow, takes };
        if let Some(limit) = limit.filter(|_| !program.has_backlog()) {
            ns.sysctl("net.core.somaxconn", limit);
        }
        let daemon = Daemon::start(Some(&ns), BIN.as_ref(), &["--client-patience=60s"]);
        Self { program, settings, ns, root: Rootfs::new(), daemon }
    }

    /// Starts the server, and waits until it listens.
    fn start(&self) -> Result<Running, String> {
        // Apache ends its whole process group.
        let mut command = self.ns.command("setsid");
        command.args(["sh", "-c"]).arg(self.program.script(&self.root, self.settings));
        let server = Running::start(&mut command);
        match within(START, || self.listens().then_some(())) {
            Some(()) => Ok(server),
            None => Err(format!("does not listen: {}", self.log())),
        }
    }

    fn play(&self, situation: Situation, server: Running) -> Played {
        let rate = self.program.busy_rate;
        match situation {
            Situation::Busy => self.busy(Load { rate, patience: 10 * SECOND, ..LOAD }),
            Situation::Slow => self.overloaded(Load { at_once: 60, patience: TROUBLE, ..LOAD }),
            Situation::Full => self.overloaded(Load { patience: 10 * SECOND, ..LOAD }),
            Situation::Stopped => self.stopped(),
            Situation::Short => self.short(),
            Situation::Restarting => {
                let load = Load { rate: rate / 2.0, patience: 10 * SECOND, ..LOAD };
                self.restarting(server, load)
            }
        }
    }

    /// No word, and the clients are served.
    fn busy(&self, load: Load) -> Played {
        self.calm();
        let (mut played, outcome) = self.watched(|| self.visit(load));
        // Some servers end a connection by RST.
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

    /// It has accepted before. Then a client comes every so often, and none leaves.
    fn stopped(&self) -> Played {
        self.calm();
        match self.program.stops {
            Stops::All => self.signal(Signal::STOP),
            Stops::OneWorker => self.signal_newest(Signal::STOP),
        }
        self.watched(|| self.visit(Load { rate: 0.6, patience: TROUBLE, ..LOAD })).0
    }

    /// Bursts come while the server pauses for a moment; between them it serves everybody.
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

    /// Its clients find no server for a moment, and no queue is in trouble.
    fn restarting(&self, server: Running, load: Load) -> Played {
        let began = Instant::now();
        let restarts = || {
            let mut server = Ok(server);
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

    /// Some clients are served, and the daemon sees it. What a slow start left behind is over then.
    fn calm(&self) {
        let settings = Settings { is_slow: false, ..self.settings };
        let load = Load { rate: 2.0, lasting: CALM, patience: 5 * SECOND, at_once: 500 };
        let _ = self.visit_as(settings, load);
        let is_calm = within(START, || self.words().is_empty().then_some(()));
        assert!(is_calm.is_some(), "is in trouble before its trouble: {:?}", self.words());
    }

    fn visit(&self, load: Load) -> Outcome {
        self.visit_as(self.settings, load)
    }

    fn visit_as(&self, settings: Settings, load: Load) -> Outcome {
        let request = self.program.request(&self.root, settings);
        let (target, manner) = (self.target(), Manner::saying(request));
        self.ns.run(|| visit(target, load, &manner))
    }

    /// Does `work`, and watches for [`TROUBLE`] what the daemon says. Then the server is killed, which ends its clients.
    fn watched<T: Send>(&self, work: impl FnOnce() -> T + Send) -> (Played, T) {
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
            (played, work.join().expect("the clients do not panic"))
        })
    }

    /// Notes the words that are new, and what `explain` says some seconds after the first.
    fn note(&self, played: &mut Played, now: f64) {
        for word in self.words() {
            if played.words.iter().all(|(known, _)| *known != word) {
                played.words.push((word, now));
            }
        }
        let is_due = played.words.first().is_some_and(|(_, first)| now > first + 3.0);
        if is_due && played.explained.is_empty() {
            played.explained = self.explain();
        }
    }

    /// The diagnoses of the server's listener that hold, in the order in which people read them.
    fn words(&self) -> Vec<String> {
        let port = self.program.port().map_or_else(String::new, |port| port.to_string());
        let answer = self.daemon.get("/api/v1/listeners", &[]);
        let report: Report = serde_json::from_str(answer.text()).unwrap();
        let ours = report.listeners.into_iter().filter(|listener| listener.port == port);
        let held = ours.flat_map(|listener| listener.diagnoses);
        held.map(|held| held.diagnosis.label().to_owned()).collect()
    }

    fn explain(&self) -> String {
        let url = format!("--url=http://{}", self.daemon.address());
        let target = match self.program.port() {
            Some(port) => port.to_string(),
            None => self.program.path(&self.root),
        };
        let output = run(Some(&self.ns), BIN.as_ref(), &["explain", &target, &url]);
        let text = [output.stdout, output.stderr].concat();
        // As one line: where it is broken does not matter.
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

    /// The process that was started last is a worker.
    fn signal_newest(&self, signal: Signal) {
        let newest = self.pids().into_iter().max_by_key(|pid| pid.as_raw_pid());
        let _ = kill_process(newest.expect("a server runs"), signal);
    }

    /// Every process of the namespace but the daemon and those that look at the namespace.
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
