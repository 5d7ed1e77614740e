//! Decides what to read of one namespace in a sample, from the results of earlier readings. Uses no
//! file and no clock.
//!
//! Every sample reads the TCP listeners. A dump finds new listeners. Querying each known listener
//! costs less for a small number of listeners, but finds no new listeners. If the namespace has no
//! TCP socket except its listeners, comparing the number of sockets is sufficient.
//!
//! At least once a second the planner looks for traffic: received segments (`snmp`) and the number
//! of sockets (`sockstat`). If either changed, the listeners are dumped, then the counters are
//! read, and the Unix listeners too. If neither changed, nothing else is read, at a sixth of the
//! cost. Counters change only with segments, but a socket may open while another closes, so
//! listeners and settings are read every four seconds in any case. If all TCP sockets are
//! listeners, querying each listener is sufficient for this reading too: a dump walks the table of
//! the whole machine. Counters are read at once when a drop counter or the set of sockets changed.
//! Unix listeners are read as long as a queue holds a connection.
//!
//! Listeners are dumped before the counters are read, at once when an answer differs from the known
//! data, and for some samples after any change: an overflow must not be attributed while a socket
//! is unseen. A new listener may be seen a second late, or four seconds late if another socket
//! closed at that moment, and its overflows count in full.
//!
//! If samples are stretched because they exceed the CPU budget, the second becomes as long as ten
//! samples, and at most two seconds.

use std::time::Duration;

use crate::kernel::sockstat::Sockstat;
use crate::snapshot::ListenSocket;

/// Interval of looks for traffic when samples come at the target interval.
const SLOW: Duration = Duration::from_secs(1);
/// Interval of looks, in samples, when the sample interval is stretched; and the upper bound of
/// that interval.
const SLOW_SAMPLES: u32 = 10;
const SLOWEST: Duration = Duration::from_secs(2);
/// Interval of reading the settings, and of readings that no look triggered.
const EVERYTHING: Duration = Duration::from_secs(4);
/// Number of samples after a change that are dumps: as long as an overflow waits to be attributed,
/// and as long as a socket that one dump missed waits for the dump that misses it again.
const WATCHFUL: u8 = 3;

/// Time and interval of a sample.
#[derive(Clone, Copy, Debug)]
pub struct SampleTime {
    /// Time on the sampler's own clock.
    pub now: Duration,
    /// Target interval of samples.
    pub interval: Duration,
}

/// Decides what to read of one namespace, and keeps the results of the last readings.
#[derive(Debug, Default)]
pub struct Planner {
    fingerprint: u64,
    overflows: Option<u64>,
    /// Number of upcoming samples that are dumps.
    watchful: u8,
    unix_waits: bool,
    /// Result of the last look; `None` if a reading failed.
    seen: Option<Look>,
    calm: Option<Calm>,
    look_due: Duration,
    everything_due: Duration,
}

/// Values that change when anything arrives in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Segments received (`InSegs`).
    pub segments: u64,
    /// Number of sockets.
    pub sockets: Sockstat,
}

/// The number of sockets when no connection waited and every TCP socket was a listener.
///
/// While the number stays the same, no connection can wait: a connection in a queue is a socket,
/// also after its client has sent a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calm {
    used: u64,
    listeners: u64,
    listeners6: u64,
}

/// The first readings of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Read the settings, and all data that no look has triggered.
    pub everything: bool,
    /// Look for traffic.
    pub look: bool,
}

/// The readings of listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    opening: Opening,
    came: bool,
    /// How to read the TCP listeners.
    pub tcp: TcpPlan,
    /// Dump the Unix listeners.
    pub unix: bool,
}

/// How to read the TCP listeners; may depend on the number of sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpPlan {
    /// If known, count the sockets first.
    pub calm: Option<Calm>,
    /// Method to use if the count equals `calm`.
    pub when_calm: TcpMethod,
    /// Method to use otherwise.
    pub otherwise: TcpMethod,
}

/// A method of reading the TCP listeners, the cheapest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpMethod {
    /// Read nothing: the last reading still holds.
    Keep,
    /// Query each known listener; dump them if that is impossible or an answer shows a change.
    Ask,
    /// Dump all listeners.
    Dump,
}

/// The counters to read after the listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterPlan {
    /// `/proc/net/snmp`.
    pub snmp: bool,
    /// `/proc/net/netstat`.
    pub netstat: bool,
}

/// Results of the readings of one sample.
#[derive(Clone, Copy, Debug)]
pub struct Outcome<'a> {
    /// The TCP listeners, and whether nothing changed since the last reading.
    pub tcp: Option<(&'a [ListenSocket], bool)>,
    /// Whether the Unix listeners were read.
    pub unix: bool,
    /// Whether the counters of `/proc/net/netstat` were read.
    pub netstat: bool,
}

// === impl SampleTime ===

impl SampleTime {
    /// Returns the interval of looks for traffic.
    fn slow(self) -> Duration {
        SLOW.max((self.interval * SLOW_SAMPLES).min(SLOWEST))
    }
}

// === impl Planner ===

impl Planner {
    /// Returns what to read first. `jitter` returns slightly less than the interval it is given.
    pub fn open(
        &mut self,
        time: SampleTime,
        mut jitter: impl FnMut(Duration) -> Duration,
    ) -> Opening {
        let everything = time.now >= self.everything_due;
        let look = everything || time.now >= self.look_due;
        if everything {
            self.everything_due = time.now + jitter(EVERYTHING);
        }
        if look {
            self.look_due = time.now + jitter(time.slow());
        }
        Opening { everything, look }
    }

    /// Returns what to read of the listeners. `look` is the result of the look, `None` if a reading
    /// failed or no look was due.
    pub fn plan(&mut self, opening: Opening, look: Option<Look>) -> Plan {
        let before = self.seen;
        let came = opening.look && (look.is_none() || look != before);
        if opening.look {
            self.seen = look;
        }
        let whole = came || opening.everything;
        Plan { opening, came, tcp: self.tcp(came, opening), unix: whole || self.unix_waits }
    }

    fn tcp(&self, came: bool, opening: Opening) -> TcpPlan {
        if came || self.watchful > 0 {
            return TcpPlan { calm: None, when_calm: TcpMethod::Dump, otherwise: TcpMethod::Dump };
        }
        let (when_calm, otherwise) = match opening.everything {
            true => (TcpMethod::Ask, TcpMethod::Dump),
            false => (TcpMethod::Keep, TcpMethod::Ask),
        };
        TcpPlan { calm: self.calm, when_calm, otherwise }
    }

    /// Whether a socket appeared or closed, or a drop counter changed, since the last reading.
    pub fn has_moved(&self, sockets: &[ListenSocket]) -> bool {
        fingerprint(sockets) != self.fingerprint
    }

    /// Records the TCP listeners of this sample. Returns whether anything except queues changed.
    pub fn take_tcp(&mut self, sockets: &[ListenSocket], is_same: bool) -> bool {
        let before = self.fingerprint;
        if !is_same {
            self.fingerprint = fingerprint(sockets);
        }
        let moved = before != self.fingerprint;
        self.watchful = if moved { WATCHFUL } else { self.watchful.saturating_sub(1) };
        moved
    }

    /// Returns the counters to read after the listeners. `moved` is whether the listeners changed,
    /// `None` if they could not be read.
    pub fn counters(&self, plan: &Plan, moved: Option<bool>) -> CounterPlan {
        let has_moved = moved == Some(true);
        CounterPlan {
            // A look has already read the file.
            snmp: has_moved && !plan.opening.look,
            netstat: moved.is_some() && (plan.came || has_moved),
        }
    }

    /// Records the growth of `ListenOverflows`.
    pub fn take_overflows(&mut self, overflows: Option<u64>) {
        if overflows != self.overflows {
            self.overflows = overflows;
            self.watchful = WATCHFUL;
        }
    }

    /// Records whether a connection waits at a Unix listener.
    pub fn take_unix(&mut self, waits: bool) {
        self.unix_waits = waits;
    }

    /// Finishes a sample; `moved` is whether its TCP listeners changed.
    pub fn close(&mut self, plan: &Plan, moved: bool, outcome: &Outcome<'_>) {
        let misses_counters = (plan.came || moved) && !outcome.netstat;
        if plan.is_whole() && (outcome.tcp.is_none() || misses_counters || !outcome.unix) {
            // The change was not read: the next look must find it again.
            self.seen = None;
        }
        if plan.opening.look {
            let sockets = self.seen.map(|seen| seen.sockets);
            let read = sockets.zip(outcome.tcp);
            self.calm = read.and_then(|(seen, (listeners, _))| Calm::of(seen, listeners));
        } else if moved || !outcome.tcp.is_some_and(|(_, is_same)| is_same) {
            // The next comparison must not use the result of the last look, which is outdated.
            self.calm = None;
        }
    }
}

// === impl Plan ===

impl Plan {
    /// Whether this sample reads more than the known listeners.
    pub fn is_whole(&self) -> bool {
        self.came || self.opening.everything
    }
}

// === impl Calm ===

impl Calm {
    /// Returns the calm state of a namespace that had these sockets just before these listeners
    /// were read.
    fn of(seen: Sockstat, sockets: &[ListenSocket]) -> Option<Self> {
        let waits = sockets.iter().any(|socket| socket.queue.length > 0);
        let listeners6 = sockets.iter().filter(|socket| socket.address.ip.is_ipv6()).count() as u64;
        let listeners = sockets.len() as u64 - listeners6;
        // Without a listener there is nothing to query.
        let is_calm = !sockets.is_empty() && !waits && seen.tcp == listeners;
        is_calm.then_some(Self { used: seen.used, listeners, listeners6 })
    }

    /// Whether the number of sockets is still the same. `tcp6` counts the IPv6 sockets and is
    /// called only if needed.
    pub fn holds(&self, sockets: Option<Sockstat>, tcp6: impl FnOnce() -> Option<u64>) -> bool {
        sockets == Some(Sockstat { used: self.used, tcp: self.listeners })
            && (self.listeners6 == 0 || tcp6() == Some(self.listeners6))
    }
}

/// Returns a hash that changes, except by chance, when any socket appears, closes or drops a
/// segment. The order of the sockets does not matter.
fn fingerprint(sockets: &[ListenSocket]) -> u64 {
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |socket: &ListenSocket| {
        let drops = u64::from(socket.drops.unwrap_or(0));
        let mixed = (socket.cookie.0.wrapping_mul(SPREAD) ^ drops).wrapping_mul(SPREAD);
        mixed ^ mixed >> 32
    };
    sockets.iter().map(mix).fold(0, u64::wrapping_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{AcceptQueue, Cookie, ListenAddress, Origin};

    const TICK: Duration = Duration::from_millis(100);

    fn socket(cookie: u64, length: u32, drops: u32) -> ListenSocket {
        ListenSocket {
            cookie: Cookie(cookie),
            address: ListenAddress { ip: "0.0.0.0".parse().unwrap(), port: 80, device: None },
            queue: AcceptQueue { length, limit: Some(5) },
            drops: Some(drops),
            origin: Origin::default(),
        }
    }

    /// A namespace whose numbers a test sets, and a planner that reads the namespace.
    #[derive(Default)]
    struct Scene {
        planner: Planner,
        now: Duration,
        look: Option<Look>,
        listeners: Vec<ListenSocket>,
        known: Vec<ListenSocket>,
        overflows: u64,
        unix_waits: bool,
        fails: bool,
    }

    /// Readings of one sample: settings, look, method for the listeners, Unix, snmp, netstat.
    #[derive(Debug, PartialEq, Eq)]
    struct Read(bool, bool, TcpMethod, bool, bool, bool);

    impl Scene {
        /// Returns one calm namespace with two listeners, sampled until no more readings are due.
        fn at_rest() -> Self {
            let mut scene = Self {
                look: Some(Look { segments: 7, sockets: Sockstat { used: 9, tcp: 2 } }),
                listeners: vec![socket(1, 0, 0), socket(2, 0, 0)],
                ..Self::default()
            };
            (0..5).for_each(|_| _ = scene.sample(TICK));
            scene
        }

        fn came(&mut self) {
            self.look.as_mut().unwrap().segments += 1;
        }

        fn connected(&mut self) {
            self.look.as_mut().unwrap().sockets.tcp += 1;
        }

        fn sample(&mut self, gap: Duration) -> Read {
            self.now += gap;
            let time = SampleTime { now: self.now, interval: TICK };
            let opening = self.planner.open(time, |pace| pace);
            let plan = self.planner.plan(opening, self.look.filter(|_| opening.look));
            let sockets = self.look.map(|look| look.sockets);
            let is_calm = plan.tcp.calm.is_some_and(|calm| calm.holds(sockets, || None));
            let mut method = if is_calm { plan.tcp.when_calm } else { plan.tcp.otherwise };
            if method == TcpMethod::Ask && self.planner.has_moved(&self.listeners) {
                method = TcpMethod::Dump;
            }
            let is_same = method == TcpMethod::Keep || self.known == self.listeners;
            self.known.clone_from(&self.listeners);
            let moved = (!self.fails).then(|| self.planner.take_tcp(&self.listeners, is_same));
            if plan.unix {
                self.planner.take_unix(self.unix_waits);
            }
            let counters = self.planner.counters(&plan, moved);
            if counters.netstat {
                self.planner.take_overflows(Some(self.overflows));
            }
            let tcp = (!self.fails).then_some((&self.listeners[..], is_same));
            let outcome = Outcome { tcp, unix: plan.unix, netstat: counters.netstat };
            self.planner.close(&plan, moved.unwrap_or(false), &outcome);
            let Opening { everything, look } = opening;
            Read(everything, look, method, plan.unix, counters.snmp, counters.netstat)
        }
    }

    #[test]
    fn the_first_sample_reads_everything() {
        let mut scene = Scene { listeners: vec![socket(1, 0, 0)], ..Scene::default() };
        scene.look = Some(Look { segments: 7, sockets: Sockstat { used: 9, tcp: 1 } });
        assert_eq!(scene.sample(TICK), Read(true, true, TcpMethod::Dump, true, false, true));
    }

    #[test]
    fn at_rest_only_sockets_are_counted() {
        use TcpMethod::{Ask, Keep};
        let mut scene = Scene::at_rest();
        let (nothing, looked) = (
            Read(false, false, Keep, false, false, false),
            Read(false, true, Keep, false, false, false),
        );
        let reads: Vec<Read> = (0..35).map(|_| scene.sample(TICK)).collect();
        let looks = reads.iter().filter(|read| **read == looked).count();
        assert_eq!(reads.iter().filter(|read| **read == nothing).count() + looks, 35);
        assert_eq!(looks, 3);
        // All TCP sockets are listeners: every four seconds each listener is queried.
        assert_eq!(scene.sample(TICK), Read(true, true, Ask, true, false, false));
    }

    #[test]
    fn what_moved_decides_what_is_read() {
        use TcpMethod::{Ask, Dump};
        type Event = fn(&mut Scene);
        let second = Duration::from_secs(1);
        let table: [(&str, Event, Duration, Read); 7] = [
            (
                "a connection between two looks",
                Scene::connected,
                TICK,
                Read(false, false, Ask, false, false, false),
            ),
            ("a segment", Scene::came, second, Read(false, true, Dump, true, false, true)),
            ("a socket", Scene::connected, second, Read(false, true, Dump, true, false, true)),
            (
                "a look that fails",
                |scene| scene.look = None,
                second,
                Read(false, true, Dump, true, false, true),
            ),
            (
                "a drop",
                |scene| {
                    scene.connected();
                    scene.listeners[0].drops = Some(1);
                },
                TICK,
                Read(false, false, Dump, false, true, true),
            ),
            (
                "a queue alone",
                |scene| {
                    scene.connected();
                    scene.listeners[0].queue.length = 1;
                },
                TICK,
                Read(false, false, Ask, false, false, false),
            ),
            (
                "four seconds",
                |scene| scene.connected(),
                5 * second,
                Read(true, true, Dump, true, false, true),
            ),
        ];
        for (name, event, gap, expected) in table {
            let mut scene = Scene::at_rest();
            event(&mut scene);
            assert_eq!(scene.sample(gap), expected, "{name}");
        }
    }

    #[test]
    fn after_a_move_the_next_samples_are_dumps() {
        for overflow in [false, true] {
            let mut scene = Scene::at_rest();
            scene.connected();
            match overflow {
                true => scene.overflows += 1,
                false => scene.listeners.push(socket(3, 0, 0)),
            }
            scene.sample(Duration::from_secs(1));
            let methods: Vec<TcpMethod> = (0..4).map(|_| scene.sample(TICK).2).collect();
            assert_eq!(methods[..3], [TcpMethod::Dump; 3]);
            assert_ne!(methods[3], TcpMethod::Dump);
        }
    }

    #[test]
    fn a_queue_at_a_unix_listener_is_read_in_every_sample() {
        let mut scene = Scene::at_rest();
        scene.unix_waits = true;
        scene.came();
        scene.sample(Duration::from_secs(1));
        assert!((0..5).all(|_| scene.sample(TICK).3));
        scene.unix_waits = false;
        scene.sample(TICK);
        assert!(!scene.sample(TICK).3);
    }

    #[test]
    fn what_could_not_be_read_is_looked_for_again() {
        let mut scene = Scene::at_rest();
        (scene.fails, scene.now) = (true, scene.now + Duration::from_secs(1));
        scene.came();
        assert_eq!(scene.sample(TICK), Read(false, true, TcpMethod::Dump, true, false, false));
        scene.fails = false;
        scene.now += Duration::from_secs(1);
        assert_eq!(scene.sample(TICK), Read(false, true, TcpMethod::Dump, true, false, true));
    }

    #[test]
    fn a_stretched_interval_slows_the_looks() {
        let slow = |millis| {
            SampleTime { now: Duration::ZERO, interval: Duration::from_millis(millis) }.slow()
        };
        assert_eq!(
            [10, 100, 150, 900].map(slow).map(|pace| pace.as_millis()),
            [1000, 1000, 1500, 2000]
        );
    }

    #[test]
    fn a_fingerprint_shows_moves_and_not_order() {
        let before = fingerprint(&[socket(1, 0, 5), socket(2, 0, 0)]);
        assert_eq!(before, fingerprint(&[socket(2, 0, 0), socket(1, 3, 5)]));
        assert_ne!(before, fingerprint(&[socket(1, 0, 5), socket(2, 0, 1)]));
        assert_ne!(before, fingerprint(&[socket(1, 0, 5)]));
        assert_ne!(before, fingerprint(&[socket(1, 0, 5), socket(3, 0, 0)]));
    }
}
