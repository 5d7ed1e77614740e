//! What to do about a diagnosis, and what not: commands and directives with their values.

use crate::diagnosis::Diagnosis;
use crate::report::Listener;
use crate::report::command_scope::{CommandScope, ss};
use crate::report::evidence;
use crate::report::limit::{self, Cap, Target};
use crate::report::servers::{self, Backlog, Effect, Server};
use crate::report::words::{count, many, rate, time};
use crate::snapshot::escaped;

/// All there is to say of a diagnosis of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advice {
    /// What the word means.
    pub meaning: &'static str,
    /// Why it is said of this listener: one sentence with the numbers.
    pub evidence: String,
    /// What to do, in this order.
    pub steps: Vec<String>,
    /// What would not help or make it worse.
    pub avoid: Vec<String>,
}

/// A listener and what is known of its kind.
struct Case<'a> {
    listener: &'a Listener,
    place: CommandScope,
    server: Option<&'static Server>,
    /// How its process is called in a sentence.
    process: String,
}

/// What the word means, in a line.
pub const fn meaning(diagnosis: Diagnosis) -> &'static str {
    match diagnosis {
        Diagnosis::Imbalance => {
            "One socket of the group is full or stuck while others have room: its process hangs, or the \
             kernel deals it more than its share."
        }
        Diagnosis::Stalled => {
            "Nothing is taken from the queue: the process hangs, is stopped, or all its workers are busy."
        }
        Diagnosis::Abandoned => {
            "Clients leave before they are accepted: the wait is longer than their patience."
        }
        Diagnosis::SlowAccept => "Connections come faster than the server accepts them.",
        Diagnosis::StandingQueue => {
            "The queue is not full, but it never empties: every client waits before it is accepted."
        }
        Diagnosis::ShortQueue => {
            "A burst met a queue that was too short for it; the server itself keeps up."
        }
        Diagnosis::StaleLimit => {
            "The limit is that of an earlier, lower net.core.somaxconn: the server has not called listen(2) since."
        }
        Diagnosis::SynFlood => {
            "Handshakes are begun and left open until the SYN queue is full; the accept queue is not."
        }
        Diagnosis::NotAccepting => {
            "Connections wait at a listener that was never seen to accept one: not ready yet, a port that is only held, \
             or a tool that serves one client at a time."
        }
    }
}

/// What `diagnosis` means for `listener`, and what to do about it.
pub fn for_listener(listener: &Listener, diagnosis: Diagnosis) -> Advice {
    let case = Case::new(listener);
    if let Some(cause) = listener.cause_of(diagnosis) {
        return follows(listener, diagnosis, cause);
    }
    let (steps, avoid) = match diagnosis {
        Diagnosis::Imbalance => case.imbalance(),
        Diagnosis::Stalled => case.stalled(),
        Diagnosis::Abandoned => case.abandoned(),
        Diagnosis::SlowAccept | Diagnosis::StandingQueue => case.slow_accept(),
        Diagnosis::ShortQueue => case.short_queue(),
        Diagnosis::StaleLimit => case.stale_limit(),
        Diagnosis::SynFlood => case.syn_flood(),
        Diagnosis::NotAccepting => case.not_accepting(),
    };
    let evidence = evidence::sentence(listener, diagnosis);
    Advice { meaning: meaning(diagnosis), evidence, steps, avoid }
}

/// Advice of its own would contradict that about the cause.
fn follows(listener: &Listener, diagnosis: Diagnosis, cause: Diagnosis) -> Advice {
    let meaning = match cause {
        Diagnosis::Imbalance => {
            "This follows from imbalance: one socket is full while others have room."
        }
        _ => "This follows from stalled: the queue fills because nothing is taken from it.",
    };
    let step = format!("Do what is said of {}.", cause.label());
    let evidence = evidence::sentence(listener, diagnosis);
    Advice { meaning, evidence, steps: vec![step], avoid: Vec::new() }
}

/// What a client that meets the full queue sees.
pub fn cost_of_full(listener: &Listener) -> &'static str {
    let resets = listener.settings.tcp_abort_on_overflow.is_some_and(|value| value != 0);
    match (listener.protocol.as_str(), resets) {
        ("unix", _) => {
            "A client that meets the full queue waits in connect(2), or gets EAGAIN at once if it does not block \
             (nginx then answers 502)."
        }
        (_, false) => {
            "A client that meets the full queue hears nothing and tries again after 1, 3 and 7 s (from Linux 6.5 \
             on every second at first): it is slow by that, or times out."
        }
        (_, true) => {
            "A client that meets the full queue is reset at the end of its handshake \
             (net.ipv4.tcp_abort_on_overflow is on), or hears nothing and tries again after 1, 3 and 7 s."
        }
    }
}

// === impl Case ===

impl<'a> Case<'a> {
    fn new(listener: &'a Listener) -> Self {
        let process = &*listener.owner.process;
        Self {
            listener,
            place: CommandScope::of(listener),
            server: servers::known(process),
            process: match process.is_empty() {
                true => "the server".into(),
                false => escaped(process.as_bytes()),
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
                self.place.run(&ss(self.listener, "mp"))
            ),
            "See where that process (PID) hangs: `cat /proc/PID/stack`, `strace -f -p PID`. Restart it; the \
             connections that wait in its socket are lost then."
                .into(),
            "If none hangs, the kernel deals connections unevenly: open the socket once and let all workers accept \
             from it, without SO_REUSEPORT (nginx: no `reuseport`)."
                .into(),
        ];
        let avoid = "Do not raise the backlog: the other sockets have room, and connections never move to them.";
        (steps, vec![avoid.into()])
    }

    fn stalled(&self) -> (Vec<String>, Vec<String>) {
        let mut steps = vec![
            self.find_process(),
            "See what that process (PID) does: `grep State /proc/PID/status` (T is stopped: `kill -CONT PID`), \
             `cat /proc/PID/stack`, `strace -f -p PID`."
                .into(),
            format!(
                "If all its workers are busy: see what they wait for (a database, an upstream). {}",
                self.more_capacity()
            ),
            format!("If it hangs: restart {}; the connections that wait are lost then.", self.process),
        ];
        steps.extend(self.lower());
        let avoid = "Do not raise the backlog: nothing is taken from the queue, a longer one only fills later.";
        (steps, vec![avoid.into()])
    }

    fn abandoned(&self) -> (Vec<String>, Vec<String>) {
        let mut steps = vec![self.more_capacity()];
        steps.extend(self.lower());
        steps.push(self.look_at_workers());
        let avoid = "Do not raise the backlog: clients leave before they are accepted, and the server then works for \
                     clients who are gone.";
        (steps, vec![avoid.into()])
    }

    fn slow_accept(&self) -> (Vec<String>, Vec<String>) {
        let mut steps = vec![self.more_capacity(), self.look_at_workers()];
        steps.push(
            "Shed load in front of it until it keeps up: a rate limit, or other machines.".into(),
        );
        steps.extend(self.lower());
        let longer = match self.drain_time() {
            Some(text) => format!("Do not raise the backlog: {text}; a longer queue only adds to that."),
            None => "Do not raise the backlog: the queue would be longer and just as full, and clients would wait \
                     longer."
                .into(),
        };
        (steps, vec![longer])
    }

    fn short_queue(&self) -> (Vec<String>, Vec<String>) {
        let steps = match limit::target(self.listener) {
            Target::LongEnough => vec![self.more_capacity()],
            Target::Useful { limit } => {
                let why = "more than that is accepted only after clients have left";
                self.raise(limit, why)
            }
            Target::Enough { limit, burst } => self.raise(limit, &self.burst(burst, limit)),
        };
        let mut avoid = vec![
            "Do not set it as high as it goes: a queue holds clients, it does not serve them."
                .into(),
        ];
        if self.listener.protocol != "unix" {
            avoid.push(
                "Do not raise net.ipv4.tcp_max_syn_backlog for this: that is a cap on half-open connections."
                    .into(),
            );
        }
        (steps, avoid)
    }

    fn stale_limit(&self) -> (Vec<String>, Vec<String>) {
        if let Some(Server { backlog: Backlog::Fixed(fixed), .. }) = self.server {
            let steps = vec![format!(
                "{} asks for {fixed} whatever the settings are: neither a restart nor a setting changes that.",
                self.process
            )];
            return (steps, Vec::new());
        }
        let check = self.place.run(&ss(self.listener, ""));
        let mut steps = vec![
            format!("Have it call listen(2) again: {}.", self.relisten()),
            format!("Then look at the limit, the Send-Q of {check}."),
        ];
        if let Target::Enough { limit, .. } | Target::Useful { limit } =
            limit::target(self.listener)
            && self.has_directive()
        {
            let set = self.set_backlog(limit);
            steps.push(format!("If it is the same, the server asks for no more: {set}."));
        }
        let avoid =
            "Do not raise net.core.somaxconn further: a socket that is open does not see it.";
        (steps, vec![avoid.into()])
    }

    fn syn_flood(&self) -> (Vec<String>, Vec<String>) {
        let port = &self.listener.port;
        let peers = format!("ss -Htn state syn-recv 'sport = :{port}'");
        let cookies = match self.listener.settings.tcp_syncookies {
            Some(0) => format!(
                "Turn SYN cookies on: {}.",
                self.place.run("sysctl -w net.ipv4.tcp_syncookies=1")
            ),
            _ => "Leave SYN cookies on (net.ipv4.tcp_syncookies = 1): real clients still get in by them.".into(),
        };
        let steps = vec![
            cookies,
            format!("See where they come from, the last column of {}.", self.place.run(&peers)),
            "Filter those upstream: at the provider, the load balancer or the firewall.".into(),
        ];
        let avoid = "Do not add workers or raise the backlog: the accept queue has room, and these handshakes are \
                     never finished.";
        (steps, vec![avoid.into()])
    }

    fn not_accepting(&self) -> (Vec<String>, Vec<String>) {
        let steps = vec![
            "Nothing to do if it is not meant to accept, or not ready yet.".into(),
            self.find_process(),
        ];
        (steps, Vec::new())
    }

    fn find_process(&self) -> String {
        format!("Find its process: {}.", self.place.run(&ss(self.listener, "p")))
    }

    fn look_at_workers(&self) -> String {
        format!(
            "See what keeps its workers: {} names the process (PID), `strace -f -p PID` what it waits for.",
            self.place.run(&ss(self.listener, "p"))
        )
    }

    fn more_capacity(&self) -> String {
        match self.server {
            Some(Server { capacity, is_a_guess: false, .. }) => {
                format!("Let {} accept more: {capacity}.", self.process)
            }
            Some(Server { capacity, name, .. }) => {
                format!("Let {} accept more; if it is {name}: {capacity}.", self.process)
            }
            None => format!("Give {} more workers, threads or processors.", self.process),
        }
    }

    /// Where the limit is above the useful one, and can be set for this server alone.
    fn lower(&self) -> Option<String> {
        if !self.has_directive() {
            return None;
        }
        let useful = limit::useful_per_socket(self.listener)?.max(1);
        let drain_rate = self.listener.drain_rate?;
        (limit::per_socket(self.listener)? > useful).then(|| {
            format!(
                "Lower the limit to {}: it accepts {}, and whoever stands further back has left when it is their \
                 turn. For that, {}; {}.",
                count(useful),
                rate(drain_rate),
                self.set_backlog(useful),
                self.relisten()
            )
        })
    }

    /// Whether its backlog can be set by itself; of an unknown server we suppose so.
    fn has_directive(&self) -> bool {
        self.server.is_none_or(|server| matches!(server.backlog, Backlog::Directive { .. }))
    }

    /// `it accepts 9.8 a second, so a full queue of 128 is a wait of 13 s already`.
    fn drain_time(&self) -> Option<String> {
        let (drain_rate, limit) = (self.listener.drain_rate?, self.listener.limit?);
        (drain_rate > 0.0).then(|| {
            format!(
                "it accepts {}, so a full queue of {} is a wait of {} already",
                rate(drain_rate),
                count(limit),
                time(limit as f64 / drain_rate)
            )
        })
    }

    fn burst(&self, burst: u64, limit: u64) -> String {
        let overflows = self.listener.recent.map_or(0, |recent| recent.overflows);
        let waited = count(burst - overflows);
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
            "up to {waited} waited and there were {} in the last 30 s, {} in all{each}{rounded}",
            many(overflows, "overflow"),
            count(burst)
        )
    }

    /// First the cap that binds, then the server.
    fn raise(&self, limit: u64, why: &str) -> Vec<String> {
        if let Some(Server { backlog: Backlog::Fixed(fixed), .. }) = self.server {
            return vec![format!(
                "{} asks for {fixed} whatever the settings are: let clients come less at once, or put something in \
                 front of it.",
                self.process
            )];
        }
        let mut steps = vec![format!("Raise the limit to {}: {why}.", count(limit))];
        let somaxconn = self.listener.settings.somaxconn;
        let is_capped = somaxconn.is_some_and(|cap| cap.unsigned_abs() < limit);
        if is_capped {
            let now = somaxconn.map_or(0, i64::unsigned_abs);
            let set = self.place.set_somaxconn(limit);
            steps.push(format!(
                "First net.core.somaxconn, which caps it at {} now: {set}.",
                count(now)
            ));
        }
        let set = self.set_backlog(limit);
        let relisten = self.relisten();
        steps.push(match limit::binding(self.listener) {
            Cap::Somaxconn(_) => {
                format!("Then {set}, unless it asks for that much already; {relisten}.")
            }
            Cap::Backlog(_) if is_capped => format!("Then {set}; {relisten}."),
            Cap::Backlog(asked) => {
                format!("The server asked for {}: {set}; {relisten}.", count(asked))
            }
            Cap::Unknown => {
                let look = self.place.run("sysctl net.core.somaxconn");
                format!("See that {look} allows it; {set}; {relisten}.")
            }
        });
        steps
    }

    /// `set A in B (default C)`.
    fn set_backlog(&self, limit: u64) -> String {
        let Some(Server { backlog, name, is_a_guess, .. }) = self.server else {
            return format!(
                "set the backlog that {} passes to listen(2), wherever it is configured, to {limit}",
                self.process
            );
        };
        let guess = if *is_a_guess { format!("if it is {name}, ") } else { String::new() };
        match backlog {
            Backlog::Directive { text, place, default } => {
                let text = text.replacen('N', &limit.to_string(), 1);
                format!("{guess}set `{text}` in {place} (default: {default})")
            }
            Backlog::Derived(from) => format!("{guess}the backlog of {name} is {from}"),
            Backlog::Somaxconn => {
                format!(
                    "{} asks for all that net.core.somaxconn allows when it starts",
                    self.process
                )
            }
            Backlog::Fixed(fixed) => format!("{guess}its backlog is always {fixed}"),
        }
    }

    /// What makes it call `listen(2)` again.
    fn relisten(&self) -> String {
        match self.server.map(|server| server.effect) {
            Some(Effect::RestartOnly) => {
                format!("restart {} (a reload keeps the socket and its limit)", self.process)
            }
            Some(Effect::ReloadWhenChanged(command)) => format!(
                "restart {} (`{command}` is enough where the number in its configuration has changed)",
                self.process
            ),
            Some(Effect::SocketUnit) => {
                "`systemctl daemon-reload`, stop the service, restart its .socket".into()
            }
            Some(Effect::Restart) | None => format!("restart {}", self.process),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::servers::SERVERS;
    use crate::report::{Caps, Diagnosed, Recent};
    use crate::snapshot::owner::Owner;

    fn listener(process: &str, limit: u64, somaxconn: i64) -> Listener {
        Listener {
            netns: "host".into(),
            protocol: "tcp".into(),
            address: "127.0.0.1".into(),
            port: "9000".into(),
            owner: Owner { process: process.into(), ..Owner::default() },
            sockets: 1,
            length: limit + 1,
            limit: Some(limit),
            peak_length: limit + 1,
            overflows: Some(41),
            settings: Caps { somaxconn: Some(somaxconn), ..Caps::default() },
            recent: Some(Recent { overflows: 41, watched_seconds: 30.0, ..Recent::default() }),
            ..Listener::default()
        }
    }

    /// Draining slowly: 10 a second, and clients wait for a minute.
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
                meaning: "A burst met a queue that was too short for it; the server itself keeps up.",
                evidence: "41 overflows in the last 30 s, and full for only 0 s of it: a burst went over its \
                           limit of 8."
                    .into(),
                steps: vec![
                    "Raise the limit to 64: up to 9 waited and there were 41 overflows in the last 30 s, 50 in \
                     all, rounded up to a power of two."
                        .into(),
                    "The server asked for 8: set `listen.backlog = 64` in the file of the pool (pool.d/*.conf) \
                     (default: 511, newer versions all that somaxconn allows); restart php-fpm8.2 (a reload \
                     keeps the socket and its limit)."
                        .into(),
                ],
                avoid: vec![
                    "Do not set it as high as it goes: a queue holds clients, it does not serve them.".into(),
                    "Do not raise net.ipv4.tcp_max_syn_backlog for this: that is a cap on half-open \
                     connections."
                        .into(),
                ],
            }
        );
    }

    #[test]
    fn a_short_queue_under_somaxconn_raises_that_first_where_the_listener_is() {
        let mut nginx = listener("nginx", 128, 128);
        let text = steps(&nginx, Diagnosis::ShortQueue);
        assert!(
            text.contains(
                "\nFirst net.core.somaxconn, which caps it at 128 now: `sysctl -w net.core.somaxconn=256`, "
            ),
            "{text}"
        );
        let then = "\nThen set `listen ADDRESS:PORT backlog=256;` in nginx.conf (default: 511), unless it asks for \
                    that much already; restart nginx (`nginx -s reload` is enough where the number in its \
                    configuration has changed).";
        assert!(text.ends_with(then), "{text}");
        nginx.netns = "blue".into();
        let text = steps(&nginx, Diagnosis::ShortQueue);
        assert!(text.contains("`ip netns exec blue sysctl -w net.core.somaxconn=256`"), "{text}");
        nginx.owner.container_id = "0123456789abcdef".into();
        let text = steps(&nginx, Diagnosis::ShortQueue);
        assert!(text.contains("`docker run --sysctl net.core.somaxconn=256`"), "{text}");
    }

    #[test]
    fn a_short_queue_is_never_made_longer_than_useful() {
        let useful = |useful_limit| Listener {
            useful_limit: Some(useful_limit),
            drain_rate: Some(useful_limit / 60.0),
            ..listener("redis-server", 511, 4_096)
        };
        let text = steps(&useful(520.0), Diagnosis::ShortQueue);
        assert!(text.starts_with("Raise the limit to 520: "), "{text}");
        let text = steps(&useful(400.0), Diagnosis::ShortQueue);
        assert!(!text.contains("Raise"), "{text}");
    }

    #[test]
    fn a_backlog_that_nobody_can_set_is_not_to_be_raised() {
        for diagnosis in [Diagnosis::ShortQueue, Diagnosis::StaleLimit] {
            let text = steps(&listener("sshd", 128, 4_096), diagnosis);
            assert!(text.starts_with("sshd asks for 128 whatever the settings are: "), "{text}");
        }
    }

    #[test]
    fn a_slow_server_needs_capacity_and_a_queue_of_useful_length() {
        let php = slow("php-fpm8.2", 1_000, 4_096);
        let advice = for_listener(&php, Diagnosis::SlowAccept);
        assert_eq!(
            advice.steps,
            [
                "Let php-fpm8.2 accept more: `pm.max_children` in the file of the pool (pool.d/*.conf).",
                "See what keeps its workers: `ss -tlnp 'sport = :9000'` names the process (PID), `strace -f -p \
                 PID` what it waits for.",
                "Shed load in front of it until it keeps up: a rate limit, or other machines.",
                "Lower the limit to 600: it accepts 10 a second, and whoever stands further back has left when \
                 it is their turn. For that, set `listen.backlog = 600` in the file of the pool (pool.d/*.conf) \
                 (default: 511, newer versions all that somaxconn allows); restart php-fpm8.2 (a reload keeps \
                 the socket and its limit).",
            ]
        );
        assert_eq!(
            advice.avoid,
            [
                "Do not raise the backlog: it accepts 10 a second, so a full queue of 1,000 is a wait of 100 s \
              already; a longer queue only adds to that."
            ]
        );
        let short = steps(&slow("php-fpm8.2", 128, 4_096), Diagnosis::SlowAccept);
        assert!(!short.contains("Lower"), "{short}");
    }

    #[test]
    fn what_follows_from_another_diagnosis_has_no_advice_of_its_own() {
        let mut stuck = listener("redis-server", 8, 4_096);
        for (cause, follower) in [
            (Diagnosis::Stalled, Diagnosis::SlowAccept),
            (Diagnosis::Imbalance, Diagnosis::ShortQueue),
        ] {
            stuck.diagnoses = Vec::new();
            stuck.diagnoses = vec![Diagnosed::new(&stuck, cause, 1.0)];
            let advice = for_listener(&stuck, follower);
            assert_eq!(advice.steps, [format!("Do what is said of {}.", cause.label())]);
            assert!(advice.avoid.is_empty() && advice.meaning.contains(cause.label()));
            assert!(!advice.evidence.contains("burst"), "{}", advice.evidence);
        }
    }

    #[test]
    fn a_socket_that_is_stuck_is_not_called_full() {
        let mut group = listener("nginx", 128, 128);
        assert!(steps(&group, Diagnosis::Imbalance).starts_with("Find the stuck socket, "));
        group.recent = Some(Recent { sockets_brimming: 1, ..Recent::default() });
        assert!(steps(&group, Diagnosis::Imbalance).starts_with("Find the full socket, "));
    }

    #[test]
    fn only_a_short_queue_is_told_to_be_longer() {
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
                for text in [&[meaning.to_owned(), evidence], &*steps, &*avoid].concat() {
                    assert!(text.ends_with('.') && !text.contains("  "), "{text:?}");
                }
            }
        }
        assert!(asked > 40, "{asked}");
    }

    #[test]
    fn a_stale_limit_needs_another_listen_and_says_what_a_reload_does() {
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
    fn names_that_somebody_chose_reach_no_shell() {
        let mut hostile = listener("$(reboot)", 8, 128);
        (hostile.netns, hostile.address) = ("a;b".into(), "@`reboot`".into());
        (hostile.protocol, hostile.port) = ("unix".into(), String::new());
        let text = steps(&hostile, Diagnosis::Stalled);
        assert!(text.contains("`ip netns exec 'a;b' ss -xlp | grep -F -- '@`reboot`'`"), "{text}");
    }

    #[test]
    fn what_a_client_sees_depends_on_the_socket() {
        let tcp = listener("nginx", 1, 1);
        assert!(cost_of_full(&tcp).contains("1, 3 and 7 s"));
        let caps = Caps { tcp_abort_on_overflow: Some(1), ..tcp.settings };
        assert!(cost_of_full(&Listener { settings: caps, ..tcp.clone() }).contains("is reset"));
        assert!(cost_of_full(&Listener { protocol: "unix".into(), ..tcp }).contains("EAGAIN"));
    }
}
