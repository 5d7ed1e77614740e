//! The advice for a diagnosis: what to do and what to avoid, with commands, directives and values.

use std::time::Duration;

use crate::cause::Cause;
use crate::diagnosis::{Diagnosis, STALL};
use crate::report::Listener;
use crate::report::because::Because;
use crate::report::command_scope::{CommandScope, ss};
use crate::report::evidence;
use crate::report::limit::{self, Cap, Target};
use crate::report::recovery;
use crate::report::servers::{self, Backlog, Capacity, Effect, LimitZero, Server};
use crate::report::words::{count, rate, time};
use crate::snapshot::printable;
use crate::view::Protocol;

/// The step for trouble that is over.
pub const NOTHING_TO_DO: &str =
    "Nothing to do now: the diagnosis ends within seconds unless the trouble returns.";

/// The meaning, evidence and advice of one diagnosis of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advice {
    /// The meaning of the diagnosis.
    pub meaning: String,
    /// Why listenq makes the diagnosis: one sentence with the numbers.
    pub evidence: String,
    /// The steps, in order.
    pub steps: Vec<String>,
    /// Actions that do not help or do harm.
    pub avoid: Vec<String>,
}

/// A listener and the known facts about its server.
struct Advisor<'a> {
    listener: &'a Listener,
    scope: CommandScope,
    server: Option<&'static Server>,
    /// The process name, as written in a sentence.
    process: String,
}

/// Returns the meaning of a diagnosis in one sentence.
pub const fn meaning(diagnosis: Diagnosis) -> &'static str {
    match diagnosis {
        Diagnosis::Imbalance => {
            "One socket of the group is full or stuck while others have room: its process hangs, or the kernel gives \
             it more than its share."
        }
        Diagnosis::Stalled => {
            "The server accepts nothing: its process is stopped or hangs, or all its workers are busy."
        }
        Diagnosis::Abandoned => {
            "Clients leave before they are accepted: the wait is longer than their patience."
        }
        Diagnosis::SlowAccept => "Connections come faster than the server accepts them.",
        Diagnosis::StandingQueue => {
            "The queue is not full, but it never empties: every client waits before it is accepted."
        }
        Diagnosis::ShortQueue => {
            "A burst exceeded the limit of the queue; between bursts the server keeps up."
        }
        Diagnosis::StaleLimit => {
            "The limit is still an earlier, lower net.core.somaxconn: the server has not called listen(2) since it was raised."
        }
        Diagnosis::SynFlood => {
            "Clients start handshakes and do not finish them: the SYN queue is full, the accept queue is not."
        }
        Diagnosis::NotAccepting => {
            "Connections wait at a listener that was never seen to accept one: the server is not ready yet, only reserves \
             the port, or serves one client at a time."
        }
    }
}

/// Returns the meaning of a diagnosis whose trouble is over.
const fn past_meaning(diagnosis: Diagnosis) -> &'static str {
    match diagnosis {
        Diagnosis::Imbalance => {
            "One socket of the group was full or stuck while others had room. None is now."
        }
        Diagnosis::Stalled => "The server accepted nothing for a time. Its queue moves again.",
        Diagnosis::Abandoned => "Clients left before they were accepted. The queue is empty now.",
        Diagnosis::SlowAccept => {
            "Connections came faster than the server accepted them. The queue is empty now."
        }
        Diagnosis::StandingQueue => {
            "The queue did not empty for a time: every client waited. It is empty now."
        }
        Diagnosis::NotAccepting => {
            "Connections waited at a listener that was never seen to accept one. The queue is empty now."
        }
        Diagnosis::ShortQueue | Diagnosis::StaleLimit | Diagnosis::SynFlood => meaning(diagnosis),
    }
}

/// Returns the meaning of `diagnosis` for `listener` in its present state.
fn present_meaning(listener: &Listener, diagnosis: Diagnosis) -> &'static str {
    if recovery::is_over(listener, diagnosis) {
        return past_meaning(diagnosis);
    }
    match diagnosis {
        Diagnosis::StandingQueue if !has_room(listener) => {
            "The queue never empties: every client waits before it is accepted."
        }
        _ => meaning(diagnosis),
    }
}

/// Whether a standing queue has room, as it has by definition until it fills up.
fn has_room(listener: &Listener) -> bool {
    let is_over_limit = listener.limit.is_some_and(|limit| listener.length > limit);
    !listener.is_full() && !is_over_limit && !listener.holds(Diagnosis::SlowAccept)
}

/// Whether there is nothing to do once the trouble of `diagnosis` is over. A slow server needs more
/// capacity also after its queue became empty.
const fn ends_without_steps(diagnosis: Diagnosis) -> bool {
    matches!(diagnosis, Diagnosis::Imbalance | Diagnosis::Stalled | Diagnosis::NotAccepting)
}

/// Returns the meaning of `diagnosis` for `listener`, and the advice.
pub fn for_listener(listener: &Listener, diagnosis: Diagnosis) -> Advice {
    let advisor = Advisor::new(listener);
    let evidence = evidence::sentence(listener, diagnosis);
    if let Some(cause) = listener.cause_of(diagnosis) {
        let cause = cause.label();
        let meaning = format!("This follows from {cause}: see the advice for {cause}.");
        return Advice { meaning, evidence, steps: Vec::new(), avoid: Vec::new() };
    }
    let meaning = present_meaning(listener, diagnosis).to_owned();
    let is_done = ends_without_steps(diagnosis) && recovery::is_over(listener, diagnosis);
    let (steps, avoid) = match (advisor.limit_zero(), diagnosis) {
        (_, Diagnosis::Stalled) if is_done && listener.length > 0 => {
            (advisor.look_then_more_capacity(), Vec::new())
        }
        _ if is_done => (vec![NOTHING_TO_DO.into()], Vec::new()),
        (_, Diagnosis::Imbalance) => advisor.imbalance(),
        (_, Diagnosis::SynFlood) => advisor.syn_flood(),
        (Some(zero), _) => advisor.at_limit_zero(zero),
        (None, Diagnosis::Stalled) => advisor.stalled(),
        (None, Diagnosis::Abandoned) => advisor.abandoned(),
        (None, Diagnosis::SlowAccept) => advisor.slow_accept(),
        (None, Diagnosis::StandingQueue) => advisor.standing_queue(),
        (None, Diagnosis::ShortQueue) => advisor.short_queue(),
        (None, Diagnosis::StaleLimit) => advisor.stale_limit(),
        (None, Diagnosis::NotAccepting) => advisor.not_accepting(),
    };
    let causes = listener.causes.iter().filter(|because| explains(because.cause, diagnosis));
    Advice { meaning, evidence, steps, avoid }.because(causes.collect())
}

/// Whether the cause explains the diagnosis. A burst can exceed the queue of any server, so only a
/// cause that keeps the server from accepting at all explains a short queue.
pub const fn explains(cause: Cause, diagnosis: Diagnosis) -> bool {
    match diagnosis {
        Diagnosis::Imbalance
        | Diagnosis::Stalled
        | Diagnosis::Abandoned
        | Diagnosis::SlowAccept
        | Diagnosis::StandingQueue
        | Diagnosis::NotAccepting => true,
        Diagnosis::ShortQueue => cause.stops_accepting(),
        Diagnosis::StaleLimit | Diagnosis::SynFlood => false,
    }
}

/// Why the server of `listener` set the limit to 0 itself; `None` if the server did not.
pub fn limit_zero(listener: &Listener) -> Option<String> {
    let advisor = Advisor::new(listener);
    Some(format!("{} set it to 0 because {}", advisor.process, advisor.limit_zero()?.reason))
}

/// Returns the effect of a full queue on a client.
pub fn cost_of_full(listener: &Listener) -> &'static str {
    let resets = listener.settings.tcp_abort_on_overflow.is_some_and(|value| value != 0);
    match (listener.protocol, resets) {
        (Protocol::Unix, _) => {
            "A client that meets the full queue waits in connect(2), or gets EAGAIN at once if it does not block \
             (nginx then answers 502)."
        }
        (Protocol::Tcp, false) => {
            "A client that meets the full queue gets no answer and retries after 1, 3 and 7 s (from Linux 6.5 on \
             every second at first): it is slow, or times out."
        }
        (Protocol::Tcp, true) => {
            "A client that meets the full queue is reset at the end of its handshake \
             (net.ipv4.tcp_abort_on_overflow is on), or gets no answer and retries after 1, 3 and 7 s."
        }
    }
}

// === impl Advice ===

impl Advice {
    /// Returns the advice with the causes added: the advice of the causes replaces the general
    /// steps.
    fn because(self, causes: Vec<&Because>) -> Self {
        if causes.is_empty() {
            return self;
        }
        let sentences = causes.iter().map(|because| because.evidence.as_str());
        let evidence =
            [self.evidence.as_str()].into_iter().chain(sentences).collect::<Vec<_>>().join(" ");
        let steps = causes.iter().flat_map(|because| because.advice.iter().cloned()).collect();
        Self { evidence, steps, ..self }
    }
}

// === impl Advisor ===

impl<'a> Advisor<'a> {
    fn new(listener: &'a Listener) -> Self {
        let process = &*listener.owner.process;
        Self {
            listener,
            scope: CommandScope::of(listener),
            server: servers::known(process),
            process: match process.is_empty() {
                true => "the server".into(),
                false => printable(process),
            },
        }
    }

    fn imbalance(&self) -> (Vec<String>, Vec<String>) {
        let which = match self.listener.recent.map_or(0, |recent| recent.sockets_brimming) {
            0 => "stuck socket, the one with the largest Recv-Q",
            _ => "full socket, the one whose Recv-Q is near its Send-Q",
        };
        let steps = vec![
            format!(
                "Find the {which}, and its process: {}.",
                self.scope.run(&ss(self.listener, "mp"))
            ),
            "See where that process (PID) hangs: `cat /proc/PID/stack`, `strace -f -p PID`. Restart it; the \
             connections that wait in its socket are lost then."
                .into(),
            "If none hangs, the kernel distributes connections unevenly: open the socket once and let all workers \
             accept from it, without SO_REUSEPORT (nginx: no `reuseport`)."
                .into(),
        ];
        let avoid = "Do not raise the backlog: the other sockets have room, and connections never move to them.";
        (steps, vec![avoid.into()])
    }

    fn stalled(&self) -> (Vec<String>, Vec<String>) {
        let mut steps = self.find_what_holds_it();
        steps.extend(self.if_busy());
        steps.push(format!(
            "If it hangs: restart {}; the connections that wait are lost then.",
            self.process
        ));
        let avoid =
            "Do not raise the backlog: nothing is accepted, a longer queue only fills later.";
        (steps, vec![avoid.into()])
    }

    /// Steps to find the process that accepts nothing. A process unknown to listenq may hold the
    /// socket by accident.
    fn find_what_holds_it(&self) -> Vec<String> {
        let mut steps = Vec::from_iter(self.pid().is_none().then(|| self.find_process()));
        let (which, pid) = match self.pid() {
            Some(pid) => (format!("PID {pid}"), pid.to_string()),
            None => ("that process (PID)".into(), "PID".into()),
        };
        steps.push(format!(
            "See what {which} does: `grep State /proc/{pid}/status` (T is stopped: `kill -CONT {pid}`; t is held by a \
             debugger), `cat /proc/{pid}/stack`, `strace -f -p {pid}`."
        ));
        if self.server.is_none() {
            steps.push(
                "If that process does not serve this address, it inherited the socket or leaked it: end that process, \
                 and have its parent close the descriptor before exec (O_CLOEXEC)."
                    .into(),
            );
        }
        steps
    }

    fn abandoned(&self) -> (Vec<String>, Vec<String>) {
        let mut steps = self.look_then_more_capacity();
        steps.extend(self.lower());
        let avoid = "Do not raise the backlog: clients leave before they are accepted, and the server then works for \
                     clients that have left.";
        (steps, vec![avoid.into()])
    }

    fn slow_accept(&self) -> (Vec<String>, Vec<String>) {
        let mut steps = match self.accepts_nothing() {
            true => [self.find_what_holds_it(), Vec::from_iter(self.if_busy())].concat(),
            false => self.look_then_more_capacity(),
        };
        steps.push(
            "Shed load in front of the server until it keeps up: set a rate limit, or add machines.".into(),
        );
        steps.extend(self.lower());
        let longer = match self.drain_time() {
            Some(text) => format!("Do not raise the backlog: {text}; a longer queue makes clients wait longer."),
            None => "Do not raise the backlog: the queue would be longer and just as full, and clients would wait \
                     longer."
                .into(),
        };
        (steps, vec![longer])
    }

    fn standing_queue(&self) -> (Vec<String>, Vec<String>) {
        let avoid = match has_room(self.listener) {
            true => {
                "Do not raise the backlog: the queue has room, and each client waits behind those before it."
            }
            false => {
                "Do not raise the backlog: each client waits behind those before it, and would wait longer."
            }
        };
        (self.look_then_more_capacity(), vec![avoid.into()])
    }

    fn accepts_nothing(&self) -> bool {
        let untaken = self.listener.recent.and_then(|recent| recent.untaken_seconds);
        untaken.is_some_and(|untaken| Duration::from_secs_f64(untaken.max(0.0)) >= STALL)
    }

    fn short_queue(&self) -> (Vec<String>, Vec<String>) {
        let steps = match limit::target(self.listener) {
            Target::LongEnough => self.look_then_more_capacity(),
            Target::Useful { limit } => {
                self.raise(limit, "clients beyond that leave before they are accepted")
            }
            Target::Enough { limit, burst } => self.raise(limit, &self.burst(burst, limit)),
            Target::Double { limit } => self.raise(
                limit,
                "twice the present limit, because the size of the burst is not known",
            ),
        };
        let mut avoid =
            vec!["Do not set the maximum: a longer queue does not serve clients faster.".into()];
        if self.listener.protocol == Protocol::Tcp {
            avoid.push(
                "Do not raise net.ipv4.tcp_max_syn_backlog for this: that is a cap on half-open connections."
                    .into(),
            );
        }
        (steps, avoid)
    }

    fn stale_limit(&self) -> (Vec<String>, Vec<String>) {
        if let Some(Backlog::Fixed(fixed)) = self.backlog()
            && limit::per_socket(self.listener) == Some(u64::from(fixed))
        {
            return (vec![self.fixed(fixed)], Vec::new());
        }
        let check = self.scope.run(&ss(self.listener, ""));
        let mut steps = vec![
            format!("Have it call listen(2) again: {}.", self.relisten()),
            format!("Then check the limit, which is the Send-Q of {check}."),
        ];
        if let Target::Enough { limit, .. } | Target::Useful { limit } | Target::Double { limit } =
            limit::target(self.listener)
            && self.has_directive()
        {
            let set = self.set_backlog(limit);
            steps.push(format!(
                "If the limit is still the same, the server asks for no more: {set}."
            ));
        }
        let avoid = "Do not raise net.core.somaxconn further: an open socket keeps its limit.";
        (steps, vec![avoid.into()])
    }

    fn syn_flood(&self) -> (Vec<String>, Vec<String>) {
        let port = &self.listener.port;
        let peers = format!("ss -Htn state syn-recv 'sport = :{port}'");
        let cookies = match self.listener.settings.tcp_syncookies {
            Some(0) => format!(
                "Turn SYN cookies on: {}.",
                self.scope.run("sysctl -w net.ipv4.tcp_syncookies=1")
            ),
            _ => "Leave SYN cookies on (net.ipv4.tcp_syncookies = 1): with them, real clients can still connect.".into(),
        };
        let steps = vec![
            cookies,
            format!(
                "See which addresses the half-open connections come from: the last column of {}.",
                self.scope.run(&peers)
            ),
            "Filter these addresses upstream: at the provider, the load balancer or the firewall."
                .into(),
        ];
        let avoid = "Do not add workers or raise the backlog: the accept queue has room, and these handshakes are \
                     never finished.";
        (steps, vec![avoid.into()])
    }

    fn not_accepting(&self) -> (Vec<String>, Vec<String>) {
        let wait = "Do nothing if the server is still starting, only reserves the port, or serves one client at a time.";
        let steps = [vec![wait.into()], self.find_what_holds_it()].concat();
        (steps, Vec::new())
    }

    fn at_limit_zero(&self, zero: &LimitZero) -> (Vec<String>, Vec<String>) {
        let avoid = format!(
            "Do not raise the backlog: {} set the limit to 0 because {}.",
            self.process, zero.reason
        );
        (zero.steps.iter().map(ToString::to_string).collect(), vec![avoid])
    }

    fn limit_zero(&self) -> Option<&'static LimitZero> {
        let zero = self.server?.at_limit_zero.as_ref();
        zero.filter(|_| self.listener.limit == Some(0))
    }

    /// The process that accepts, else the process that holds the socket, if known.
    fn pid(&self) -> Option<u32> {
        let state = self.listener.owner_state.as_ref();
        state.and_then(|state| state.accepting_pid).or(self.listener.owner.pid)
    }

    fn find_process(&self) -> String {
        format!("Find its process: {}.", self.scope.run(&ss(self.listener, "p")))
    }

    fn look_then_more_capacity(&self) -> Vec<String> {
        let look = match self.pid() {
            Some(pid) => format!(
                "See what keeps its workers busy: `strace -f -p {pid}` shows what PID {pid} waits for."
            ),
            None => format!(
                "See what keeps its workers busy: {} names the process (PID), `strace -f -p PID` what it waits for.",
                self.scope.run(&ss(self.listener, "p"))
            ),
        };
        match self.server {
            Some(_) => vec![self.more_capacity(), look],
            None => vec![look, self.more_capacity()],
        }
    }

    fn more_capacity(&self) -> String {
        match self.server {
            Some(server) => format!(
                "Let {} accept more{}: {}.",
                self.process,
                if_it_is(server, "; if it is"),
                server.capacity.setting()
            ),
            None => {
                format!("If it is busy, give {} more workers, threads or processors.", self.process)
            }
        }
    }

    /// The step for a server that runs, but accepts nothing because its requests keep it busy.
    fn if_busy(&self) -> Option<String> {
        let server = self.server?;
        let guess = if_it_is(server, ", if it is");
        match server.capacity {
            Capacity::Workers(setting) => Some(format!(
                "If it runs and all its workers are busy: see what they wait for (a database, an upstream). This \
                 gives it more workers: {setting}{guess}."
            )),
            Capacity::EventLoop(setting) => Some(format!(
                "If it runs and a request keeps its thread from accepting: see what that request computes or waits \
                 for. This helps {}: {setting}{guess}.",
                self.process
            )),
            Capacity::Loop(_) => None,
        }
    }

    /// Advice to lower the limit, if the limit exceeds the useful limit and can be set for this
    /// server alone.
    fn lower(&self) -> Option<String> {
        if !self.has_directive() {
            return None;
        }
        let useful = limit::useful_per_socket(self.listener)?.max(1);
        let drain_rate = self.listener.drain_rate?;
        let patience = match (self.listener.patience(), self.listener.assumed_patience()) {
            (Some(measured), _) => format!(" ({measured})"),
            (None, Some(assumed)) => {
                format!(" (if clients wait for {}, `--client-patience`)", time(assumed))
            }
            (None, None) => String::new(),
        };
        (limit::per_socket(self.listener)? > useful).then(|| {
            format!(
                "Lower the limit to {}: at {} clients further back leave before they are accepted{patience}. For that, {}; {}.",
                count(useful),
                rate(drain_rate),
                self.set_backlog(useful),
                self.relisten()
            )
        })
    }

    /// The source of the server's backlog. A limit above a server's constant does not come from the
    /// server.
    fn backlog(&self) -> Option<Backlog> {
        let backlog = self.server?.backlog;
        match backlog {
            Backlog::Fixed(fixed)
                if limit::per_socket(self.listener)
                    .is_some_and(|limit| limit > u64::from(fixed)) =>
            {
                None
            }
            _ => Some(backlog),
        }
    }

    /// Whether the backlog has a setting of its own; assumed for an unknown server.
    fn has_directive(&self) -> bool {
        self.backlog().is_none_or(|backlog| matches!(backlog, Backlog::Directive { .. }))
    }

    /// `the server accepts 9.8 per second, so a full queue of 128 already means a wait of 13 s`.
    fn drain_time(&self) -> Option<String> {
        let (drain_rate, limit) = (self.listener.drain_rate?, self.listener.limit?);
        (drain_rate > 0.0).then(|| {
            format!(
                "the server accepts {}, so a full queue of {} already means a wait of {}",
                rate(drain_rate),
                count(limit),
                time(limit as f64 / drain_rate)
            )
        })
    }

    fn burst(&self, burst: u64, limit: u64) -> String {
        let each = match self.listener.sockets {
            0 | 1 => "",
            _ => ", shared by its sockets",
        };
        let rounded = if limit.is_power_of_two() {
            ", rounded up to a power of two"
        } else {
            ", and no more"
        };
        format!(
            "the largest burst within one second was about {} connections{each}{rounded}",
            count(burst)
        )
    }

    /// Steps to raise the limit: first the cap that binds, then the server.
    fn raise(&self, limit: u64, why: &str) -> Vec<String> {
        match self.backlog().filter(|_| !self.asks_for_more()) {
            Some(Backlog::Fixed(fixed)) => return vec![self.fixed(fixed)],
            Some(Backlog::Derived { rule, remedy }) => return vec![self.derived(rule, remedy)],
            _ => {}
        }
        let mut steps = vec![format!("Raise the limit to {}: {why}.", count(limit))];
        let somaxconn = self.listener.settings.somaxconn.map(i64::unsigned_abs);
        let capped = somaxconn.filter(|cap| *cap < limit);
        if let Some(now) = capped {
            let set = self.scope.set_somaxconn(limit);
            steps.push(format!("First raise net.core.somaxconn, {} now: {set}.", count(now)));
        }
        let set = format!("{}; {}", self.set_backlog(limit), self.relisten());
        steps.push(match limit::binding(self.listener) {
            Cap::Somaxconn(_) if !self.has_directive() => {
                format!("Then {}: {}.", self.relisten(), self.set_backlog(limit))
            }
            Cap::Somaxconn(_) => format!("Then, unless its backlog is that high already, {set}."),
            Cap::Backlog(_) if capped.is_some() => format!("Then {set}."),
            Cap::Backlog(asked) => format!("The server's backlog is {}: {set}.", count(asked)),
            Cap::Unknown => {
                let look = self.scope.run("sysctl net.core.somaxconn");
                format!("Check that {look} allows it; {set}.")
            }
        });
        steps
    }

    /// Whether `net.core.somaxconn` is lower than the backlog that the server requests by default.
    fn asks_for_more(&self) -> bool {
        match (limit::binding(self.listener), self.backlog()) {
            (Cap::Somaxconn(limit), Some(Backlog::Fixed(fixed))) => limit < u64::from(fixed),
            (Cap::Somaxconn(_), backlog) => backlog.is_some(),
            _ => false,
        }
    }

    fn fixed(&self, fixed: u32) -> String {
        format!(
            "{} always asks for {}, whatever the settings are: have fewer clients connect at once, or put a proxy in \
             front of it.",
            self.process,
            count(u64::from(fixed))
        )
    }

    fn derived(&self, rule: &str, remedy: &str) -> String {
        let server = self.server.map_or("", |server| server.name);
        let guess = self.server.map_or_else(String::new, |server| if_it_is(server, ", if it is"));
        match guess.is_empty() {
            true => format!("The backlog of {server} is {rule}: {remedy}."),
            false => format!("The backlog of {}{guess}, is {rule}: {remedy}.", self.process),
        }
    }

    /// `set A in B (default: C)`.
    fn set_backlog(&self, limit: u64) -> String {
        let (Some(server), Some(backlog)) = (self.server, self.backlog()) else {
            return format!(
                "set the backlog that {} passes to listen(2), wherever it is configured, to {limit}{}",
                self.process,
                self.opened_by_another()
            );
        };
        let guess = match server.is_a_guess {
            true => format!("if it is {}, ", server.name),
            false => String::new(),
        };
        match backlog {
            Backlog::Directive { text, place, default } => {
                let text = text.replacen('N', &limit.to_string(), 1);
                format!("{guess}set `{text}` in {place} (default: {default})")
            }
            Backlog::Derived { rule, .. } => {
                format!("{guess}the backlog of {} is {rule}", server.name)
            }
            Backlog::Somaxconn => {
                format!(
                    "{} asks for all that net.core.somaxconn allows when it starts",
                    self.process
                )
            }
            Backlog::Fixed(fixed) => format!("{guess}its backlog is always {fixed}"),
        }
    }

    /// Step for a server with a constant backlog whose limit is higher than the constant.
    fn opened_by_another(&self) -> String {
        match self.server.map(|server| server.backlog) {
            Some(Backlog::Fixed(fixed)) => format!(
                " ({} itself asks for {}: a socket unit or another program opened this socket)",
                self.process,
                count(u64::from(fixed))
            ),
            _ => String::new(),
        }
    }

    /// The action that makes the server call `listen(2)` again.
    fn relisten(&self) -> String {
        let process = &self.process;
        match self.server.map(|server| server.effect) {
            Some(Effect::RestartOnly) => {
                format!("restart {process} (a reload keeps the socket and its limit)")
            }
            Some(Effect::Reload(command)) => {
                format!("reload {process} (`{command}` of its master), which listens again")
            }
            Some(Effect::ReloadWhenChanged(command)) => format!(
                "restart {process} (`{command}` is enough where the number in its configuration changed)"
            ),
            Some(Effect::StopAndStart(hot)) => format!(
                "stop {process} and start it again (not by {hot}: with a changed bind that fails with EADDRINUSE and \
                 leaves no server)"
            ),
            Some(Effect::Commands(commands)) => {
                format!("restart {process}, or run {commands}")
            }
            Some(Effect::SocketUnit) => {
                "`systemctl daemon-reload`, stop the service, restart its .socket".into()
            }
            Some(Effect::Restart) | None => format!("restart {process}"),
        }
    }
}

/// Returns `words` and the server's name if the process may be another server, else an empty
/// string.
fn if_it_is(server: &Server, words: &str) -> String {
    match server.is_a_guess {
        true => format!("{words} {}", server.name),
        false => String::new(),
    }
}

// === impl Capacity ===

impl Capacity {
    const fn setting(self) -> &'static str {
        match self {
            Self::Workers(setting) | Self::EventLoop(setting) | Self::Loop(setting) => setting,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::because::OwnerState;
    use crate::report::servers::SERVERS;
    use crate::report::{Caps, Diagnosed, Recent};
    use crate::snapshot::owner::Owner;

    fn listener(process: &str, limit: u64, somaxconn: i64) -> Listener {
        Listener {
            netns: "host".into(),
            protocol: Protocol::Tcp,
            address: "127.0.0.1".into(),
            port: "9000".into(),
            owner: Owner { process: process.into(), ..Owner::default() },
            sockets: 1,
            length: limit + 1,
            limit: Some(limit),
            peak_length: limit + 1,
            overflows: Some(41),
            settings: Caps { somaxconn: Some(somaxconn), ..Caps::default() },
            recent: Some(Recent { largest_burst: Some(50), ..overflowing() }),
            ..Listener::default()
        }
    }

    fn overflowing() -> Recent {
        Recent { overflows: 41, watched_seconds: 30.0, ..Recent::default() }
    }

    /// A listener with a slow drain: 10 connections per second, and clients wait for a minute.
    fn slow(process: &str, limit: u64, somaxconn: i64) -> Listener {
        let listener = listener(process, limit, somaxconn);
        Listener { drain_rate: Some(10.0), useful_limit: Some(600.0), ..listener }
    }

    fn steps(listener: &Listener, diagnosis: Diagnosis) -> String {
        for_listener(listener, diagnosis).steps.join("\n")
    }

    #[test]
    fn a_short_queue_of_a_known_server_names_its_directive() {
        assert_eq!(
            for_listener(&listener("php-fpm8.2", 8, 4_096), Diagnosis::ShortQueue),
            Advice {
                meaning: meaning(Diagnosis::ShortQueue).into(),
                evidence: "41 refusals within the last 30 s, full for only 0 s of it: a burst of about 50 exceeded \
                           the limit of 8."
                    .into(),
                steps: vec![
                    "Raise the limit to 64: the largest burst within one second was about 50 connections, rounded up \
                     to a power of two."
                        .into(),
                    "The server's backlog is 8: set `listen.backlog = 64` in the file of the pool (pool.d/*.conf) \
                     (default: all that somaxconn allows, 511 in old versions); restart php-fpm8.2 (a reload keeps \
                     the socket and its limit)."
                        .into(),
                ],
                avoid: vec![
                    "Do not set the maximum: a longer queue does not serve clients faster.".into(),
                    "Do not raise net.ipv4.tcp_max_syn_backlog for this: that is a cap on half-open connections."
                        .into(),
                ],
            }
        );
    }

    #[test]
    fn a_short_queue_at_somaxconn_raises_somaxconn_in_its_namespace_first() {
        let mut nginx = listener("nginx", 128, 128);
        let text = steps(&nginx, Diagnosis::ShortQueue);
        let first =
            "\nFirst raise net.core.somaxconn, 128 now: `sysctl -w net.core.somaxconn=256`, ";
        assert!(text.contains(first), "{text}");
        let then = "\nThen, unless its backlog is that high already, set `listen ADDRESS:PORT backlog=256;` in \
                    nginx.conf (default: 511); restart nginx (`nginx -s reload` is enough where the number in its \
                    configuration changed).";
        assert!(text.ends_with(then), "{text}");
        nginx.netns = "blue".into();
        let text = steps(&nginx, Diagnosis::ShortQueue);
        assert!(text.contains("`ip netns exec blue sysctl -w net.core.somaxconn=256`"), "{text}");
        nginx.owner.container_id = "0123456789abcdef".into();
        let text = steps(&nginx, Diagnosis::ShortQueue);
        assert!(text.contains("`docker run --sysctl net.core.somaxconn=256`"), "{text}");
        let go = steps(&listener("nats-server", 128, 128), Diagnosis::ShortQueue);
        let then = "\nThen restart nats-server: nats-server asks for all that net.core.somaxconn allows when it starts.";
        assert!(go.ends_with(then), "{go}");
    }

    #[test]
    fn the_limit_is_for_the_burst_and_not_for_the_sum_of_refusals() {
        let bursts = |largest_burst| Listener {
            recent: Some(Recent { overflows: 7_000, largest_burst, ..overflowing() }),
            ..listener("redis-server", 128, 4_096)
        };
        let text = steps(&bursts(Some(400)), Diagnosis::ShortQueue);
        assert!(text.starts_with("Raise the limit to 512: "), "{text}");
        assert!(!text.contains("somaxconn"), "{text}");
        let text = steps(&bursts(None), Diagnosis::ShortQueue);
        assert!(text.starts_with("Raise the limit to 256: twice the present limit, "), "{text}");
    }

    #[test]
    fn puma_is_stopped_and_started_and_never_restarted_hot() {
        for diagnosis in [Diagnosis::ShortQueue, Diagnosis::StaleLimit] {
            let text = steps(&listener("puma 5.6.5 (tcp", 8, 4_096), diagnosis);
            assert!(
                text.contains("stop puma 5.6.5 (tcp and start it again (not by a hot restart"),
                "{text}"
            );
            assert!(!text.contains("restart puma"), "{text}");
        }
    }

    #[test]
    fn a_backlog_that_follows_from_other_settings_has_its_own_remedy() {
        let text = steps(&listener("postgres", 144, 4_096), Diagnosis::ShortQueue);
        let pooler = "The backlog of PostgreSQL is 2 x (`max_connections` + about 22): put a pooler (PgBouncer) in \
                      front, so that clients keep their connections; do not raise `max_connections` for this.";
        assert_eq!(text, pooler);
        let text = steps(&listener("master", 100, 4_096), Diagnosis::ShortQueue);
        assert!(
            text.starts_with("The backlog of master, if it is Postfix, is `default_"),
            "{text}"
        );
    }

    #[test]
    fn memcached_with_a_limit_of_0_has_reached_its_connection_limit() {
        for diagnosis in [Diagnosis::ShortQueue, Diagnosis::SlowAccept, Diagnosis::Stalled] {
            let text = steps(&listener("memcached", 0, 4_096), diagnosis);
            assert!(text.starts_with("Raise the connection limit (`-c N`"), "{text}");
            assert!(!text.contains("listen-backlog"), "{text}");
        }
        let full = steps(&listener("memcached", 8, 4_096), Diagnosis::ShortQueue);
        assert!(full.contains("`--listen-backlog=64`"), "{full}");
        let other = steps(&listener("nginx", 0, 4_096), Diagnosis::ShortQueue);
        assert!(other.starts_with("Raise the limit"), "{other}");
    }

    #[test]
    fn advice_for_a_stalled_server_names_workers_only_if_connections_wait_for_them() {
        let stopped = |process| steps(&listener(process, 80, 4_096), Diagnosis::Stalled);
        for process in ["mariadbd", "redis-server", "nginx", "sleep"] {
            let text = stopped(process);
            assert!(!text.contains("workers are busy") && !text.contains("thread_cache"), "{text}");
        }
        let text = stopped("gunicorn");
        assert!(
            text.contains("This gives it more workers: `--workers` and `--threads`."),
            "{text}"
        );
        let text = stopped("java");
        assert!(text.contains("of the Connector, if it is Tomcat."), "{text}");
    }

    #[test]
    fn advice_for_an_event_loop_that_accepts_nothing_names_what_blocks_it() {
        let recent = Some(Recent { untaken_seconds: Some(40.0), ..overflowing() });
        let blocked = |process| Listener { recent, ..listener(process, 16, 4_096) };
        for diagnosis in [Diagnosis::SlowAccept, Diagnosis::Stalled] {
            let text = steps(&blocked("uvicorn"), diagnosis);
            assert!(text.contains("This helps uvicorn: `--workers`, and less work"), "{text}");
            let text = steps(&blocked("redis-server"), diagnosis);
            assert!(text.contains("This helps redis-server: fewer slow commands"), "{text}");
            let text = steps(&blocked("php-fpm8.2"), diagnosis);
            assert!(text.contains("This gives it more workers: `pm.max_children`"), "{text}");
            // A request does not keep these servers from accepting.
            for process in ["nginx", "mariadbd", "mosquitto", "sleep"] {
                let text = steps(&blocked(process), diagnosis);
                assert!(!text.contains("If it runs and"), "{text}");
            }
        }
    }

    #[test]
    fn trouble_that_is_over_needs_no_restart() {
        let over = |cause: Option<Cause>| {
            let mut empty = Listener { length: 0, ..listener("python3", 5, 4_096) };
            empty.causes = cause.iter().map(|cause| Because::new(&empty, *cause, 5.0)).collect();
            for_listener(&empty, Diagnosis::Stalled)
        };
        let advice = over(None);
        assert_eq!(
            (advice.meaning.as_str(), advice.steps, advice.avoid),
            (past_meaning(Diagnosis::Stalled), vec![NOTHING_TO_DO.into()], Vec::<String>::new())
        );
        let advice = over(Some(Cause::Stopped));
        assert!(advice.evidence.ends_with("python3 was stopped, and runs again."), "{advice:?}");
        assert_eq!(advice.steps, [NOTHING_TO_DO]);
        // The server reaches its limit again.
        let limits = over(Some(Cause::Descriptors)).steps.join("\n");
        assert!(limits.starts_with("Allow more file descriptors"), "{limits}");
        // A server that accepts again while clients wait may be very slow.
        let recent = Some(Recent { untaken_seconds: Some(0.4), ..overflowing() });
        let moving = Listener { recent, ..listener("gunicorn", 5, 4_096) };
        let text = steps(&moving, Diagnosis::Stalled);
        assert!(text.contains("`--workers`") && !text.contains("estart"), "{text}");
        // A slow server with an empty queue still needs workers.
        let empty = Listener { length: 0, ..slow("php-fpm8.2", 128, 4_096) };
        let slow = for_listener(&empty, Diagnosis::SlowAccept);
        assert_eq!(slow.meaning, past_meaning(Diagnosis::SlowAccept));
        assert!(slow.steps[0].starts_with("Let php-fpm8.2 accept more"), "{slow:?}");
    }

    #[test]
    fn a_standing_queue_that_fills_up_has_no_room() {
        let texts = |listener: &Listener| {
            let Advice { meaning, avoid, .. } = for_listener(listener, Diagnosis::StandingQueue);
            format!("{meaning} {}", avoid.join(" "))
        };
        let standing = Listener { length: 58, ..listener("nginx", 64, 4_096) };
        let room = texts(&standing);
        assert!(room.contains("is not full") && room.contains("has room"), "{room}");
        let mut slow = standing.clone();
        slow.diagnoses = vec![Diagnosed::new(&slow, Diagnosis::SlowAccept, 5.0)];
        for full in [listener("nginx", 64, 4_096), slow] {
            let text = texts(&full);
            assert!(!text.contains("not full") && !text.contains("room"), "{text}");
            assert!(text.contains("never empties") && text.contains("Do not raise"), "{text}");
        }
    }

    #[test]
    fn steps_name_a_process_that_is_known() {
        let mut known = listener("web", 8, 4_096);
        known.owner.pid = Some(4711);
        for diagnosis in Diagnosis::ALL {
            if diagnosis == Diagnosis::Imbalance {
                continue;
            }
            let text = steps(&known, diagnosis);
            assert!(!text.contains("(PID)") && !text.contains("Find its process"), "{text}");
        }
        assert!(steps(&known, Diagnosis::Stalled).contains("`strace -f -p 4711`"));
        known.owner_state = Some(OwnerState { accepting_pid: Some(17), ..OwnerState::default() });
        assert!(steps(&known, Diagnosis::SlowAccept).contains("`strace -f -p 17`"));
    }

    #[test]
    fn a_patience_measured_while_the_queue_overflows_lowers_no_limit() {
        let php = || Listener { patience_seconds: Some(3.0), ..slow("php-fpm8.2", 1_000, 4_096) };
        let text = steps(&php(), Diagnosis::SlowAccept);
        assert!(!text.contains("Lower the limit"), "{text}");
        let calm = Some(Recent { overflows: 0, ..overflowing() });
        let text = steps(&Listener { recent: calm, ..php() }, Diagnosis::SlowAccept);
        assert!(text.contains("Lower the limit to 600: ") && text.contains("3.0 s"), "{text}");
        assert!(!text.contains("client-patience"), "{text}");
    }

    #[test]
    fn more_workers_are_not_advised_for_a_leaked_descriptor() {
        let recent = Some(Recent { untaken_seconds: Some(40.0), ..overflowing() });
        let leaked = Listener { recent, ..listener("sleep", 8, 4_096) };
        for diagnosis in [Diagnosis::SlowAccept, Diagnosis::Stalled, Diagnosis::NotAccepting] {
            let text = steps(&leaked, diagnosis);
            assert!(text.contains("inherited the socket or leaked it"), "{text}");
            assert!(!text.contains("workers, threads"), "{text}");
        }
    }

    #[test]
    fn a_limit_above_the_useful_limit_is_not_advised() {
        let useful = |useful_limit| Listener {
            useful_limit: Some(useful_limit),
            drain_rate: Some(useful_limit / 60.0),
            recent: Some(Recent { largest_burst: Some(552), ..overflowing() }),
            ..listener("redis-server", 511, 4_096)
        };
        let text = steps(&useful(520.0), Diagnosis::ShortQueue);
        assert!(text.starts_with("Raise the limit to 520: "), "{text}");
        let text = steps(&useful(400.0), Diagnosis::ShortQueue);
        assert!(!text.contains("Raise"), "{text}");
    }

    #[test]
    fn raising_a_constant_backlog_is_not_advised() {
        for diagnosis in [Diagnosis::ShortQueue, Diagnosis::StaleLimit] {
            let text = steps(&listener("sshd", 128, 4_096), diagnosis);
            assert!(
                text.starts_with("sshd always asks for 128, whatever the settings are: "),
                "{text}"
            );
            // Another process opened this socket.
            let text = steps(&listener("sshd", 300, 4_096), diagnosis);
            assert!(!text.contains("always asks"), "{text}");
            assert!(text.contains("(sshd itself asks for 128: a socket unit or another"), "{text}");
        }
    }

    #[test]
    fn somaxconn_below_a_constant_backlog_is_raised() {
        let text = steps(&listener("sshd", 16, 16), Diagnosis::ShortQueue);
        assert!(text.contains("First raise net.core.somaxconn, 16 now"), "{text}");
        assert!(text.ends_with("\nThen restart sshd: its backlog is always 128."), "{text}");
        let text = steps(&listener("postgres", 16, 16), Diagnosis::ShortQueue);
        assert!(text.contains("First raise net.core.somaxconn, 16 now"), "{text}");
        let text = steps(&listener("sshd", 128, 128), Diagnosis::ShortQueue);
        assert!(text.starts_with("sshd always asks for 128"), "{text}");
    }

    #[test]
    fn a_slow_server_needs_capacity_and_a_queue_of_useful_length() {
        let php = slow("php-fpm8.2", 1_000, 4_096);
        let advice = for_listener(&php, Diagnosis::SlowAccept);
        assert_eq!(
            advice.steps,
            [
                "Let php-fpm8.2 accept more: `pm.max_children` in the file of the pool (pool.d/*.conf).",
                "See what keeps its workers busy: `ss -tlnp 'sport = :9000'` names the process (PID), `strace -f -p \
                 PID` what it waits for.",
                "Shed load in front of the server until it keeps up: set a rate limit, or add machines.",
                "Lower the limit to 600: at 10 per second clients further back leave before they are accepted (if \
                 clients wait for 60 s, `--client-patience`). For that, \
                 set `listen.backlog = 600` in the file of the pool (pool.d/*.conf) (default: all that somaxconn \
                 allows, 511 in old versions); restart php-fpm8.2 (a reload keeps the socket and its limit).",
            ]
        );
        assert_eq!(
            advice.avoid,
            [
                "Do not raise the backlog: the server accepts 10 per second, so a full queue of 1,000 already means a \
                 wait of 100 s; a longer queue makes clients wait longer."
            ]
        );
        let short = steps(&slow("php-fpm8.2", 128, 4_096), Diagnosis::SlowAccept);
        assert!(!short.contains("Lower"), "{short}");
    }

    #[test]
    fn a_short_queue_has_a_cause_only_where_the_server_accepts_nothing() {
        let said = |cause| {
            let mut listener = listener("nginx", 8, 4_096);
            listener.diagnoses = vec![Diagnosed::new(&listener, Diagnosis::ShortQueue, 5.0)];
            listener.causes = vec![Because::new(&listener, cause, 5.0)];
            (listener.because(), steps(&listener, Diagnosis::ShortQueue))
        };
        let (because, steps) = said(Cause::Descriptors);
        assert!(because.contains("descriptors") && !steps.contains("Raise the limit"), "{steps}");
        let (because, steps) = said(Cause::CpuStarved);
        assert!(because.is_empty() && steps.contains("Raise the limit"), "{because}: {steps}");
    }

    #[test]
    fn a_diagnosis_that_follows_from_another_has_no_advice_of_its_own() {
        let mut stuck = listener("redis-server", 8, 4_096);
        for (cause, follower) in [
            (Diagnosis::Stalled, Diagnosis::SlowAccept),
            (Diagnosis::Imbalance, Diagnosis::ShortQueue),
            (Diagnosis::SlowAccept, Diagnosis::Abandoned),
            (Diagnosis::StandingQueue, Diagnosis::Abandoned),
        ] {
            stuck.diagnoses = Vec::new();
            stuck.diagnoses = vec![Diagnosed::new(&stuck, cause, 1.0)];
            let advice = for_listener(&stuck, follower);
            let label = cause.label();
            let meaning = format!("This follows from {label}: see the advice for {label}.");
            assert_eq!(advice.meaning, meaning);
            assert!(advice.steps.is_empty() && advice.avoid.is_empty());
            assert!(!advice.evidence.contains("burst"), "{}", advice.evidence);
        }
    }

    #[test]
    fn a_socket_that_is_stuck_is_not_called_full() {
        let mut group = listener("nginx", 128, 128);
        group.recent = Some(Recent { sockets_stuck: 1, ..Recent::default() });
        assert!(steps(&group, Diagnosis::Imbalance).starts_with("Find the stuck socket, "));
        group.recent = Some(Recent { sockets_brimming: 1, ..Recent::default() });
        assert!(steps(&group, Diagnosis::Imbalance).starts_with("Find the full socket, "));
    }

    #[test]
    fn a_longer_queue_is_advised_only_for_a_short_queue() {
        let processes = SERVERS.iter().flat_map(|server| server.processes);
        let mut asked = 0;
        for process in processes.copied().chain(["", "own-server"]) {
            for diagnosis in Diagnosis::ALL {
                let Advice { meaning, evidence, steps, avoid } =
                    for_listener(&slow(process.trim_end_matches('*'), 128, 128), diagnosis);
                let wants_more = steps.iter().any(|step| step.starts_with("Raise the limit"));
                assert!(!wants_more || diagnosis == Diagnosis::ShortQueue, "{process}: {steps:?}");
                asked += usize::from(wants_more);
                assert!(!steps.is_empty());
                for text in [&[meaning, evidence], &*steps, &*avoid].concat() {
                    assert!(text.ends_with('.') && !text.contains("  "), "{text:?}");
                }
            }
        }
        assert!(asked > 40, "{asked}");
    }

    #[test]
    fn advice_for_a_stale_limit_describes_the_effect_of_a_reload() {
        let nginx = steps(&listener("nginx", 128, 4_096), Diagnosis::StaleLimit);
        assert!(
            nginx.starts_with("Have it call listen(2) again: restart nginx (`nginx -s reload`"),
            "{nginx}"
        );
        assert!(nginx.contains("the Send-Q of `ss -tln 'sport = :9000'`"), "{nginx}");
        let go = steps(&listener("prometheus", 128, 4_096), Diagnosis::StaleLimit);
        assert_eq!(go.lines().count(), 2, "{go}");
    }

    #[test]
    fn names_chosen_by_users_are_quoted_in_commands() {
        let mut hostile = listener("$(reboot)", 8, 128);
        (hostile.netns, hostile.address) = ("a;b".into(), "@`reboot`".into());
        (hostile.protocol, hostile.port) = (Protocol::Unix, String::new());
        let text = steps(&hostile, Diagnosis::Stalled);
        assert!(text.contains("`ip netns exec 'a;b' ss -xlp | grep -F -- '@`reboot`'`"), "{text}");
    }

    #[test]
    fn the_cost_of_a_full_queue_depends_on_the_socket() {
        let tcp = listener("nginx", 1, 1);
        assert!(cost_of_full(&tcp).contains("1, 3 and 7 s"));
        let caps = Caps { tcp_abort_on_overflow: Some(1), ..tcp.settings };
        assert!(cost_of_full(&Listener { settings: caps, ..tcp.clone() }).contains("is reset"));
        assert!(cost_of_full(&Listener { protocol: Protocol::Unix, ..tcp }).contains("EAGAIN"));
    }
}
