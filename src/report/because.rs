//! Causes for people: why the owner of a listener does not accept, as one sentence with the
//! numbers, and what to do.

use serde::{Deserialize, Serialize};

use crate::cause::{Awaited, Cause};
use crate::report::servers::Capacity;
use crate::report::words::{count, many};
use crate::report::{Listener, advice, recovery, servers};
use crate::snapshot::escaped;
use crate::view::{CauseCase, OwnerNumbers};

/// A cause that currently holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Because {
    pub cause: Cause,
    /// Seconds for which the cause has held.
    pub for_seconds: f64,
    /// The evidence as one sentence.
    pub evidence: String,
    /// The steps, in order.
    pub advice: Vec<String>,
}

/// The state of the owner at the last read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OwnerState {
    /// A process that accepts from the socket.
    pub accepting_pid: Option<u32>,
    /// The name of that process.
    pub accepting_process: Option<String>,
    /// Processes that hold the socket.
    pub processes: usize,
    /// Threads of the processes that accept.
    pub threads: u64,
    /// State letters of the threads that were read.
    pub thread_states: String,
    /// Open descriptors of the process closest to its limit.
    pub open_fds: Option<u64>,
    /// The descriptor limit of that process.
    pub max_fds: Option<u64>,
    /// The share of its CPU quota periods in which the process was throttled.
    pub cpu_throttled_ratio: Option<f64>,
    /// The share of time in which a thread was runnable but not running.
    pub cpu_wait_ratio: Option<f64>,
    /// The share of the machine's CPU time that the hypervisor took (steal).
    pub cpu_steal_ratio: Option<f64>,
    /// The wait of most workers, as in `10.0.0.5:3306 (recvfrom), 7 of 8 workers`.
    pub waits_for: Option<String>,
}

// === impl OwnerState ===

impl OwnerState {
    /// Returns `None` while the owner is not read.
    pub fn new(case: &CauseCase) -> Option<Self> {
        let numbers = case.numbers.as_ref()?;
        let OwnerNumbers { processes, threads, open_fds, max_fds, .. } = *numbers;
        let (accepting_pid, accepting_process) = numbers.process.clone().unzip();
        Some(Self {
            accepting_pid,
            accepting_process,
            processes,
            threads,
            thread_states: numbers.states.clone(),
            open_fds,
            max_fds,
            cpu_throttled_ratio: numbers.throttled_share,
            cpu_wait_ratio: numbers.starved_share,
            cpu_steal_ratio: numbers.steal_share,
            waits_for: case.awaited.as_ref().map(awaited),
        })
    }

    /// Describes the readings of the owner of a listener in trouble, if no cause is certain.
    pub fn looked_at(&self) -> String {
        let mut facts = vec![format!("thread states {}", self.states())];
        if let Some((open, max)) = self.open_fds.zip(self.max_fds) {
            facts.push(format!("{} of {} file descriptors", count(open), count(max)));
        }
        let shares = [
            ("CPU throttled", self.cpu_throttled_ratio),
            ("waiting for a CPU", self.cpu_wait_ratio),
            ("CPU taken by the hypervisor", self.cpu_steal_ratio),
        ];
        facts.extend(
            shares
                .iter()
                .filter_map(|(what, ratio)| Some(format!("{what} {}", percent((*ratio)?)))),
        );
        facts.join(", ")
    }

    /// The distinct state letters: `S`, `RS`.
    fn states(&self) -> String {
        let mut letters: Vec<char> = self.thread_states.chars().collect();
        letters.sort_unstable();
        letters.dedup();
        letters.into_iter().collect()
    }
}

fn percent(ratio: f64) -> String {
    format!("{:.0} %", ratio * 100.0)
}

fn percent_or(unknown: &str, ratio: Option<f64>) -> String {
    ratio.map_or(unknown.into(), percent)
}

fn awaited(awaited: &Awaited) -> String {
    let Awaited { peer, syscall, waiting, workers } = awaited;
    format!("{waiting} of {workers} workers wait for {peer} ({})", syscall.name())
}

// === impl Because ===

impl Because {
    /// Creates the text of `cause`, which has held for `for_seconds`.
    pub fn new(listener: &Listener, cause: Cause, for_seconds: f64) -> Self {
        let subject = Subject::new(listener);
        let (evidence, advice) = match recovery::is_cause_over(listener, cause) {
            true => (subject.past_evidence(cause), subject.later_advice(cause)),
            false => (subject.evidence(cause), subject.advice(cause)),
        };
        Self { cause, for_seconds, evidence, advice }
    }
}

/// The owner as the subject of a sentence.
struct Subject<'a> {
    state: OwnerState,
    /// `php-fpm (PID 4711)`.
    process: String,
    pid: String,
    unit: &'a str,
    server: Option<&'static servers::Server>,
    is_container: bool,
    open_connections: Option<u64>,
}

// === impl Subject ===

impl<'a> Subject<'a> {
    fn new(listener: &'a Listener) -> Self {
        let state = listener.owner_state.clone().unwrap_or_default();
        let owner = &listener.owner;
        let pid = state.accepting_pid.or(owner.pid);
        let name = match owner.process.is_empty() {
            true => "the server".to_owned(),
            false => escaped(owner.process.as_bytes()),
        };
        Self {
            process: pid.map_or(name.clone(), |pid| format!("{name} (PID {pid})")),
            pid: pid.map_or("PID".into(), |pid| pid.to_string()),
            unit: &owner.unit,
            server: servers::known(&owner.process),
            is_container: !owner.container_id.is_empty() || !owner.k8s_pod.is_empty(),
            open_connections: listener.open_connections,
            state,
        }
    }

    fn evidence(&self, cause: Cause) -> String {
        let Self { process, state, .. } = self;
        match cause {
            Cause::Stopped => format!("{process} is stopped {}.", self.stopped_by()),
            Cause::Frozen => format!("The cgroup of {process}, or an ancestor, is frozen."),
            Cause::Descriptors => {
                let used = self.used_descriptors();
                format!("{process} uses {used} file descriptors and has stopped accepting.")
            }
            Cause::ConnectionLimit => {
                let open = self.at_open_connections();
                format!(
                    "{process} has stopped accepting on purpose{open}: it has reached its own limit."
                )
            }
            Cause::IdleClients => {
                format!("Most workers of {process} wait for clients that send nothing.")
            }
            Cause::NobodyAccepts => {
                format!("{process} holds the socket, and no process polls it or accepts from it.")
            }
            Cause::CpuThrottled => {
                let share = percent_or("many", state.cpu_throttled_ratio);
                format!(
                    "The cgroup of {process}, or an ancestor, was CPU-throttled in {share} of its periods."
                )
            }
            Cause::CpuStarved => {
                let share = percent_or("much", state.cpu_wait_ratio);
                format!("{process} was ready to run and waited for a CPU for {share} of the time.")
            }
            Cause::CpuSteal => {
                let share = percent_or("much", state.cpu_steal_ratio);
                format!("The hypervisor took {share} of this machine's CPU time.")
            }
            Cause::CpuBound => format!("The thread of {process} that accepts uses a whole CPU."),
            Cause::MemoryStall => format!("The cgroup of {process} stalls on memory."),
            Cause::DiskWait => format!("{process} waits for a disk or another device (state D)."),
            Cause::WaitsFor => {
                let wait = state.waits_for.as_deref().unwrap_or("its workers wait for one peer");
                format!("{process}: {wait}.")
            }
            Cause::Lock => format!("All threads of {process} wait for a lock (futex)."),
        }
    }

    /// The sentence for a cause that is over: the owner accepts again.
    fn past_evidence(&self, cause: Cause) -> String {
        let process = &self.process;
        match cause {
            Cause::Stopped => format!("{process} was stopped, and runs again."),
            Cause::Frozen => format!("The cgroup of {process} was frozen, and runs again."),
            _ => format!("{process} accepts again. Cause while it did not: {}.", cause.because()),
        }
    }

    /// The advice for a cause that is over. A limit of the server will be reached again.
    fn later_advice(&self, cause: Cause) -> Vec<String> {
        match cause {
            Cause::Descriptors | Cause::ConnectionLimit => self.advice(cause),
            _ => vec![advice::NOTHING_TO_DO.into()],
        }
    }

    /// `by a signal (state T)`, `by a debugger (state t)`.
    fn stopped_by(&self) -> &'static str {
        let states = &self.state.thread_states;
        match (states.contains('T'), states.contains('t')) {
            (false, true) => "by a debugger (state t)",
            (true, false) => "by a signal (state T)",
            _ => "by a signal (state T) or a debugger (state t)",
        }
    }

    fn let_it_continue(&self) -> Vec<String> {
        let pid = &self.pid;
        let signal = format!("Let it continue: `kill -CONT {pid}`.");
        let debugger = format!(
            "Detach the debugger, or let it continue the process: `grep TracerPid /proc/{pid}/status` shows its PID."
        );
        match (self.state.thread_states.contains('T'), self.state.thread_states.contains('t')) {
            (false, true) => vec![debugger],
            (true, false) => vec![signal],
            _ => vec![signal, debugger],
        }
    }

    /// `40 of 40 allowed`; `all its` if the numbers are unknown.
    fn used_descriptors(&self) -> String {
        let used = self.state.open_fds.zip(self.state.max_fds);
        used.map_or("all its".into(), |(open, max)| {
            format!("{} of {} allowed", count(open), count(max))
        })
    }

    /// ` at 1,024 open connections`; empty if the number is unknown.
    fn at_open_connections(&self) -> String {
        let open = self.open_connections;
        open.map_or(String::new(), |open| format!(" at {}", many(open, "open connection")))
    }

    fn advice(&self, cause: Cause) -> Vec<String> {
        let pid = &self.pid;
        let one = |text: String| vec![text];
        match cause {
            Cause::Stopped => self.let_it_continue(),
            Cause::Frozen => one(self.thaw()),
            Cause::Descriptors => self.more_descriptors(),
            Cause::ConnectionLimit => vec![
                format!("Raise its connection limit: {}.", self.connection_limit()),
                "Look for clients that keep connections open without need.".into(),
            ],
            Cause::IdleClients => vec![
                "Shorten the keep-alive and request-read timeouts of the server.".into(),
                "Put a proxy that buffers slow clients in front of it.".into(),
            ],
            Cause::NobodyAccepts => vec![
                format!("See whether that process should hold the socket: `ls -l /proc/{pid}/fd`. A leaked or inherited descriptor keeps the port open."),
                "End that process, and open the socket with close-on-exec (O_CLOEXEC), so that no child inherits it.".into(),
            ],
            Cause::CpuThrottled => one(self.more_cpu()),
            Cause::CpuStarved => vec![
                "See what uses the CPUs: `top`. Move that work to another machine, or raise the weight of this server (`CPUWeight=`).".into(),
            ],
            Cause::CpuSteal => one("Move the virtual machine to a less busy host, or take an instance type with dedicated CPUs.".into()),
            Cause::CpuBound => vec![
                format!("See what it computes: `perf top -p {pid}`."),
                self.less_work_per_thread(),
            ],
            Cause::MemoryStall => one("Raise `memory.high` or the memory limit of its cgroup, or make the server use less memory.".into()),
            Cause::DiskWait => vec![
                format!("See where it waits: `cat /proc/{pid}/stack`; and which device is slow: `iostat -x 1`."),
            ],
            Cause::WaitsFor => vec![
                "Examine that peer first: this server is slow because it waits for it.".into(),
                "Give calls to it a timeout shorter than the clients' patience.".into(),
            ],
            Cause::Lock => vec![
                format!("See who holds the lock: `gdb -p {pid} -batch -ex 'thread apply all bt'`."),
                format!("If it is a deadlock, restart {}.", self.process),
            ],
        }
    }

    fn thaw(&self) -> String {
        let how = match (self.is_container, self.unit) {
            (true, _) => "`docker unpause`, `crictl` or the tool that paused the container".into(),
            (false, "") => "write 0 to its `cgroup.freeze`".into(),
            (false, unit) => format!("`systemctl thaw {unit}`"),
        };
        format!("Thaw the cgroup that `cat /proc/{}/cgroup` names: {how}.", self.pid)
    }

    fn more_cpu(&self) -> String {
        match (self.is_container, self.unit) {
            (true, _) => "Raise the CPU limit of the container or pod, or remove it.".into(),
            (false, "") => {
                format!("Raise the CPU quota of its cgroup (`cat /proc/{}/cgroup`).", self.pid)
            }
            (false, unit) => {
                format!(
                    "Raise its CPU limit: `systemctl set-property {unit} CPUQuota=N%` (an empty value removes it)."
                )
            }
        }
    }

    fn less_work_per_thread(&self) -> String {
        match self.server.map(|server| server.capacity) {
            Some(Capacity::EventLoop(setting)) => format!("Give it {setting}."),
            _ => "Move that work out of the accepting thread, or run more processes.".into(),
        }
    }

    fn more_descriptors(&self) -> Vec<String> {
        let own = match self.server.map(|server| server.name) {
            Some("nginx") => Some("`worker_rlimit_nofile` in nginx.conf"),
            Some("php-fpm") => Some("`rlimit_files` in php-fpm.conf"),
            Some("HAProxy") => Some("`ulimit-n` or `maxconn` in the section global"),
            _ => None,
        };
        let by_unit = match self.unit {
            "" => format!("raise its limit: `prlimit --pid {} --nofile=65536`", self.pid),
            unit => format!("`LimitNOFILE=65536` by `systemctl edit {unit}`, then restart it"),
        };
        let first = own.map_or(by_unit.clone(), |own| format!("{own}; or {by_unit}"));
        vec![
            format!("Allow more file descriptors: {first}."),
            format!(
                "If the number only ever grows, descriptors leak: `ls -l /proc/{}/fd`.",
                self.pid
            ),
        ]
    }

    fn connection_limit(&self) -> &'static str {
        match self.server.map(|server| server.name) {
            Some("memcached") => "`-c N` (default 1024)",
            Some("Apache httpd") | Some("Apache") => "`MaxRequestWorkers` (and `ServerLimit`)",
            Some("HAProxy") => "`maxconn` of the frontend and of the section global",
            Some("Redis") => "`maxclients`",
            Some("node") | Some("Node.js") => "`server.maxConnections`",
            Some("Tomcat") | Some("Java") => "`maxConnections` of the connector",
            Some("vsftpd") => "`max_clients`",
            Some("nginx") => "`worker_connections`",
            Some("PostgreSQL") => "`max_connections`, or a pooler in front of it",
            _ => "the directive for its largest number of connections",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::owner::Owner;

    fn listener(process: &str, unit: &str, state: OwnerState) -> Listener {
        let owner = Owner {
            process: process.into(),
            unit: unit.into(),
            pid: Some(4711),
            ..Owner::default()
        };
        Listener { owner, owner_state: Some(state), length: 9, ..Listener::default() }
    }

    fn because(cause: Cause, process: &str, unit: &str, state: OwnerState) -> Because {
        Because::new(&listener(process, unit, state), cause, 3.0)
    }

    #[test]
    fn a_throttled_unit_is_given_more_cpu_and_no_workers() {
        let state = OwnerState { cpu_throttled_ratio: Some(0.93), ..OwnerState::default() };
        let said = because(Cause::CpuThrottled, "php-fpm8.2", "php8.2-fpm.service", state);
        assert_eq!(
            said.evidence,
            "The cgroup of php-fpm8.2 (PID 4711), or an ancestor, was CPU-throttled in 93 % of its periods."
        );
        assert_eq!(
            said.advice,
            [
                "Raise its CPU limit: `systemctl set-property php8.2-fpm.service CPUQuota=N%` (an empty value removes it)."
            ]
        );
    }

    #[test]
    fn advice_on_descriptors_names_the_directive_of_the_server() {
        let state = OwnerState { open_fds: Some(40), max_fds: Some(40), ..OwnerState::default() };
        let said = because(Cause::Descriptors, "nginx", "", state);
        assert!(said.evidence.contains("40 of 40 allowed file descriptors"), "{said:?}");
        assert!(said.advice[0].contains("worker_rlimit_nofile"), "{said:?}");
        assert!(said.advice[0].contains("prlimit --pid 4711"), "{said:?}");
    }

    #[test]
    fn advice_on_a_computing_event_loop_names_the_setting_of_the_server() {
        let advice = |process| {
            because(Cause::CpuBound, process, "", OwnerState::default()).advice[1].clone()
        };
        assert_eq!(
            advice("node"),
            "Give it more processes (module cluster), and less work that blocks the event loop."
        );
        assert!(advice("php-fpm8.2").starts_with("Move that work out of the accepting thread"));
    }

    #[test]
    fn every_cause_has_a_sentence_and_advice_that_name_the_process() {
        for cause in Cause::ALL {
            let said = because(cause, "web", "web.service", OwnerState::default());
            assert!(said.evidence.ends_with('.') && !said.advice.is_empty(), "{said:?}");
            assert!(said.advice.iter().all(|step| step.ends_with('.')), "{said:?}");
        }
    }

    #[test]
    fn a_stopped_process_is_continued_by_the_debugger_that_holds_it() {
        let of = |thread_states: &str| {
            let state = OwnerState { thread_states: thread_states.into(), ..OwnerState::default() };
            because(Cause::Stopped, "web", "", state)
        };
        let (signal, debugger) = ("`kill -CONT 4711`", "`grep TracerPid /proc/4711/status`");
        let held = of("tt");
        assert_eq!(held.evidence, "web (PID 4711) is stopped by a debugger (state t).");
        assert!(held.advice.len() == 1 && held.advice[0].contains(debugger), "{held:?}");
        let stopped = of("T");
        assert_eq!(stopped.evidence, "web (PID 4711) is stopped by a signal (state T).");
        assert!(stopped.advice.len() == 1 && stopped.advice[0].contains(signal), "{stopped:?}");
        let unclear = of("");
        assert!(unclear.advice[0].contains(signal) && unclear.advice[1].contains(debugger));
        let runs = of("SS");
        assert_eq!(runs.evidence, "web (PID 4711) was stopped, and runs again.");
        assert_eq!(runs.advice, [advice::NOTHING_TO_DO]);
    }

    #[test]
    fn a_cause_that_is_over_is_in_the_past() {
        let over = |cause| {
            let state = OwnerState { thread_states: "S".into(), ..OwnerState::default() };
            Because::new(&Listener { length: 0, ..listener("nginx", "", state) }, cause, 3.0)
        };
        let lock = over(Cause::Lock);
        assert_eq!(
            lock.evidence,
            "nginx (PID 4711) accepts again. Cause while it did not: all its threads wait for a lock."
        );
        assert_eq!(lock.advice, [advice::NOTHING_TO_DO]);
        assert!(over(Cause::Descriptors).advice[0].contains("worker_rlimit_nofile"));
        assert!(over(Cause::CpuBound).evidence.contains("uses a whole CPU"));
    }

    #[test]
    fn a_name_is_escaped() {
        let said = because(Cause::Stopped, "a\u{1b}[31m", "", OwnerState::default());
        assert!(said.evidence.starts_with("a\\x1B[31m (PID 4711)"), "{said:?}");
    }

    #[test]
    fn normal_readings_are_shown_with_their_numbers() {
        let state = OwnerState {
            thread_states: "SSR".into(),
            open_fds: Some(12),
            max_fds: Some(1024),
            cpu_wait_ratio: Some(0.012),
            ..OwnerState::default()
        };
        assert_eq!(
            state.looked_at(),
            "thread states RS, 12 of 1,024 file descriptors, waiting for a CPU 1 %"
        );
    }
}
