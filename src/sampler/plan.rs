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
//! Whole dumps have a budget of their own ([`dumps`](super::dumps)), because their cost depends on
//! the kernel, the memory of the machine and the number of listeners. If the budget allows no dump
//! now, the sample only queries the listeners selected at the last dump ([`selected`]): all of
//! them, or those that hold a queue if there are very many. The dump is made up for as soon as the
//! budget allows it. Until then the counters wait too, because overflows are attributed after a
//! dump only; growing overflows make the dump urgent. If all listeners are queried, nothing looks
//! for traffic until then: overflows change a drop counter.
//!
//! Unix listeners have a share of a core, too. Up to Linux 5.15 their dump walks all Unix sockets
//! of the machine, whatever the namespace, so the measured cost of a dump decides how often it
//! comes.
//!
//! If samples are stretched because they exceed the CPU budget, the second becomes as long as ten
//! samples, and at most two seconds.

use std::hash::{Hash, Hasher};
use std::time::Duration;

use rustc_hash::{FxHashMap, FxHasher};

use super::dumps::Allowed;
use super::turns::Cost;
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
/// Number of samples after a change that are dumps. An overflow waits this long to be attributed,
/// and a socket missing from one dump waits this long for a second dump without it.
const WATCHFUL: u8 = 3;

/// Maximum interval of dumps of the Unix listeners.
const SLOWEST_UNIX: Duration = Duration::from_secs(60);

/// Number of listeners up to which all of them are queried instead of dumped, unless a dump costs
/// less than half as much. For more listeners, a dump must cost more than twice as much.
const FEW: usize = 8;
/// Number of listeners up to which all of them can be queried.
const MAX_ALL: usize = 128;
/// Maximum number of listeners to query if there are more than [`MAX_ALL`].
const MAX_QUEUED: usize = 256;
/// Assumed cost of one query before the first measurement.
const UNKNOWN_QUERY: Duration = Duration::from_micros(2);

/// Time and interval of a sample.
#[derive(Clone, Copy, Debug)]
pub struct SampleTime {
    /// Time on the sampler's own clock.
    pub now: Duration,
    /// Target interval of samples.
    pub interval: Duration,
    /// Interval of whole dumps, if the budget makes it longer than `interval`.
    pub dump_interval: Duration,
    /// The whole dumps that the budget allows.
    pub dumps: Allowed,
    /// Share of a core for dumps of the Unix listeners.
    pub unix_share: f64,
}

/// Decides what to read of one namespace, and keeps the results of the last readings.
#[derive(Debug, Default)]
pub struct Planner {
    fingerprint: u64,
    overflows: Option<u64>,
    /// Number of upcoming samples that are dumps.
    watchful: u8,
    unix: UnixDumps,
    has_dumped: bool,
    /// Whether a dump was due and the budget did not allow it.
    postponed: bool,
    costs: Costs,
    /// Number of listeners selected for queries, and whether these are all listeners.
    selected: usize,
    asks_all: bool,
    /// Hash of the listeners from which these were selected.
    identity: u64,
    /// Result of the last look; `None` if a reading failed.
    seen: Option<Look>,
    calm: Option<Calm>,
    look_due: Duration,
    everything_due: Duration,
}

/// Costs of one query and of one dump in a namespace.
#[derive(Clone, Copy, Debug, Default)]
struct Costs {
    query: Option<Duration>,
    dump: Option<Duration>,
}

/// Decides when to dump the Unix listeners.
#[derive(Clone, Copy, Debug, Default)]
struct UnixDumps {
    cost: Cost,
    /// Earliest time of the next dump.
    due: Duration,
    /// Whether a connection waits at a listener.
    waits: bool,
    /// Whether a dump is due that the share did not allow yet.
    is_owed: bool,
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
    /// The share allows a dump of the Unix listeners.
    pub allows_unix: bool,
}

/// The readings of listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    opening: Opening,
    came: bool,
    /// How to read the TCP listeners.
    pub tcp: TcpPlan,
    /// Whether this sample makes up for a postponed dump, if it dumps.
    makes_up: bool,
    /// Whether a dump is due.
    wants_dump: bool,
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
    /// Query the selected listeners. A dump is due, but the budget does not allow it.
    AskOnly,
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

/// How the TCP listeners were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpOutcome {
    /// Whether nothing changed since the last reading.
    pub is_same: bool,
    /// Whether a dump is still due.
    pub owes_dump: bool,
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
    /// The first sample of samples with this interval, without a limit on dumps.
    pub fn every(interval: Duration) -> Self {
        let (now, dump_interval) = (Duration::ZERO, Duration::ZERO);
        Self { now, interval, dump_interval, dumps: Allowed::All, unix_share: f64::INFINITY }
    }

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
        let look = (everything || time.now >= self.look_due) && !self.waits_for_dump();
        if everything {
            self.everything_due = time.now + jitter(EVERYTHING);
        }
        if look {
            self.look_due = time.now + jitter(time.slow());
        }
        Opening { everything, look, allows_unix: time.now >= self.unix.due }
    }

    /// Whether a look would find nothing new: a dump is due anyway, and every overflow until then
    /// changes the drop counter of a listener that is queried.
    fn waits_for_dump(&self) -> bool {
        self.postponed && self.asks_all
    }

    /// Returns what to read of the listeners. `look` is the result of the look, `None` if a reading
    /// failed or no look was due.
    pub fn plan(&mut self, opening: Opening, look: Option<Look>, dumps: Allowed) -> Plan {
        let before = self.seen;
        let came = opening.look && (look.is_none() || look != before);
        if opening.look {
            self.seen = look;
        }
        let (whole, makes_up) = (came || opening.everything, self.postponed);
        let wants_dump = came || makes_up || self.watchful > 0;
        let tcp = match wants_dump {
            true => TcpPlan::always(self.dump(dumps)),
            false => self.tcp(opening, dumps),
        };
        let unix = self.unix.plan(whole, opening.allows_unix);
        Plan { opening, came, tcp, makes_up, wants_dump, unix }
    }

    fn tcp(&self, opening: Opening, dumps: Allowed) -> TcpPlan {
        let (when_calm, otherwise) = match opening.everything {
            true => (self.ask(dumps), self.dump(dumps)),
            false => (TcpMethod::Keep, self.ask(dumps)),
        };
        TcpPlan { calm: self.calm, when_calm, otherwise }
    }

    /// Returns the method for a dump that is due.
    fn dump(&self, dumps: Allowed) -> TcpMethod {
        let is_allowed = match dumps {
            Allowed::All => true,
            Allowed::Urgent => self.watchful > 0,
            Allowed::None => false,
        };
        // Without a first dump there is nothing to query.
        if is_allowed || !self.has_dumped { TcpMethod::Dump } else { TcpMethod::AskOnly }
    }

    /// Returns the method for a reading of the known listeners.
    fn ask(&self, dumps: Allowed) -> TcpMethod {
        match dumps {
            _ if !self.has_dumped => TcpMethod::Dump,
            Allowed::All if !self.asks_all || self.costs.prefer_dump(self.selected) => {
                TcpMethod::Dump
            }
            Allowed::None => TcpMethod::AskOnly,
            _ if !self.asks_all => TcpMethod::AskOnly,
            _ => TcpMethod::Ask,
        }
    }

    /// Whether the listeners to query may differ from those selected last. If there are very many
    /// listeners, these depend on the queues.
    pub fn listeners_differ(&mut self, sockets: &[ListenSocket]) -> bool {
        let are_few = sockets.len() <= MAX_ALL;
        let identity = if are_few { identity(sockets) } else { self.identity.wrapping_add(1) };
        let differ = std::mem::replace(&mut self.identity, identity) != identity;
        if differ {
            self.select(sockets.len(), are_few);
        }
        differ
    }

    /// Records the number of listeners selected for queries, and whether these are all listeners.
    pub fn select(&mut self, selected: usize, are_all: bool) {
        (self.selected, self.asks_all) = (selected, are_all);
    }

    /// Records the time that queries of the selected listeners took, and whether all of them were
    /// answered.
    pub fn asked(&mut self, took: Duration, is_complete: bool) {
        self.asks_all &= is_complete;
        if let Some(each) = took.checked_div(self.selected.try_into().unwrap_or(u32::MAX)) {
            add_cost(&mut self.costs.query, each);
        }
    }

    /// Records the time that a dump took.
    pub fn dumped(&mut self, took: Duration) {
        self.has_dumped = true;
        add_cost(&mut self.costs.dump, took);
    }

    /// Whether a reading of the known listeners is as good as a dump: no dump was due and nothing
    /// except queues changed.
    pub fn is_sufficient(&self, plan: &Plan, is_complete: bool, sockets: &[ListenSocket]) -> bool {
        !plan.wants_dump && self.asks_all && is_complete && !self.has_moved(sockets)
    }

    /// Whether a socket appeared or closed, or a drop counter changed, since the last reading.
    pub fn has_moved(&self, sockets: &[ListenSocket]) -> bool {
        fingerprint(sockets) != self.fingerprint
    }

    /// Records the TCP listeners of this sample. Returns whether anything except queues changed.
    pub fn take_tcp(&mut self, sockets: &[ListenSocket], outcome: TcpOutcome) -> bool {
        let before = self.fingerprint;
        if !outcome.is_same {
            self.fingerprint = fingerprint(sockets);
        }
        let moved = before != self.fingerprint;
        self.postponed = outcome.owes_dump;
        if !outcome.owes_dump {
            self.watchful = if moved { WATCHFUL } else { self.watchful.saturating_sub(1) };
        }
        moved
    }

    /// Records that a dump is due and that nothing was read in its place.
    pub fn postpone(&mut self) {
        self.postponed = true;
    }

    /// Whether a dump is still due after this sample.
    pub fn owes_dump(&self) -> bool {
        self.postponed
    }

    /// Returns the counters to read after the listeners. `moved` is whether the listeners changed,
    /// `None` if they could not be read.
    pub fn counters(&self, plan: &Plan, moved: Option<bool>) -> CounterPlan {
        let has_moved = moved == Some(true);
        let makes_up = plan.makes_up && !self.postponed;
        // Growing overflows would make the dump urgent, but they change drop counters, too.
        let waits = self.waits_for_dump();
        CounterPlan {
            // A look has already read the file.
            snmp: (has_moved || makes_up) && !plan.opening.look,
            netstat: moved.is_some() && (has_moved || makes_up || plan.came && !waits),
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
        self.unix.waits = waits;
    }

    /// Records a dump of the Unix listeners that used `took`. Returns the interval of these dumps.
    pub fn unix_dumped(&mut self, time: SampleTime, took: Duration) -> Duration {
        self.unix.dumped(time, took).max(time.interval)
    }

    /// Finishes a sample; `moved` is whether its TCP listeners changed.
    pub fn close(&mut self, plan: &Plan, moved: bool, outcome: &Outcome<'_>) {
        let misses_counters = (plan.came || moved) && !outcome.netstat;
        if self.postponed {
            // The dump that follows reads the counters.
            self.calm = None;
            return;
        }
        let misses_unix = plan.unix && !outcome.unix;
        if plan.is_whole() && (outcome.tcp.is_none() || misses_counters || misses_unix) {
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

// === impl TcpPlan ===

impl TcpPlan {
    /// Uses the method whatever the number of sockets.
    fn always(method: TcpMethod) -> Self {
        Self { calm: None, when_calm: method, otherwise: method }
    }
}

// === impl UnixDumps ===

impl UnixDumps {
    /// Whether this sample dumps. `is_whole` is whether listeners may have changed.
    fn plan(&mut self, is_whole: bool, is_allowed: bool) -> bool {
        let is_due = is_whole || self.is_owed || self.waits;
        self.is_owed = is_due && !is_allowed;
        is_due && is_allowed
    }

    fn dumped(&mut self, time: SampleTime, took: Duration) -> Duration {
        self.cost.add(took);
        let seconds = self.cost.known().unwrap_or_default().as_secs_f64() / time.unix_share;
        let interval = Duration::from_secs_f64(seconds).min(SLOWEST_UNIX);
        self.due = time.now + interval;
        interval
    }
}

// === impl Costs ===

impl Costs {
    /// Whether a dump costs less than `count` queries. Both measures vary, so the usual choice for
    /// this number stays until the other costs less than half.
    fn prefer_dump(&self, count: usize) -> bool {
        let Some(dump) = self.dump else { return false };
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let queries = self.query.unwrap_or(UNKNOWN_QUERY).saturating_mul(count);
        match count as usize <= FEW {
            true => 2 * dump < queries,
            false => dump < queries.saturating_mul(2),
        }
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

/// Adds a measurement to a moving cost. A lower cost counts at once, a higher cost gradually,
/// because a measured time may include the time of other threads.
fn add_cost(cost: &mut Option<Duration>, took: Duration) {
    const FORGET: u32 = 8;
    let before = cost.unwrap_or(took);
    *cost = Some(if took < before { took } else { before + (took - before) / FORGET });
}

/// Returns the positions of the listeners to query until the next dump with a different result, and
/// whether these are all listeners.
///
/// If there are very many listeners, the selected listeners are those that hold a queue, fairly by
/// the user who created them: the fullest queue of each user first, then the second of each user.
pub fn selected(sockets: &[ListenSocket]) -> (Vec<usize>, bool) {
    if sockets.len() <= MAX_ALL {
        let places = (0..sockets.len()).filter(|place| !hides(sockets, *place)).collect::<Vec<_>>();
        let are_all = places.len() == sockets.len();
        return (places, are_all);
    }
    let fullness = |place: usize| sockets[place].queue.fullness().unwrap_or(f64::INFINITY);
    let holds = |place: &usize| sockets[*place].queue.length > 0;
    let mut queued: Vec<usize> = (0..sockets.len()).filter(holds).collect();
    queued.sort_by(|a, b| fullness(*b).total_cmp(&fullness(*a)));
    let mut ranks: FxHashMap<Option<u32>, usize> = FxHashMap::default();
    let rank = |place: usize| {
        let rank = ranks.entry(sockets[place].origin.uid).or_default();
        *rank += 1;
        (*rank, place)
    };
    let mut ranked: Vec<(usize, usize)> = queued.into_iter().map(rank).collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    let mut places: Vec<usize> =
        ranked.into_iter().take(MAX_QUEUED).map(|(_, place)| place).collect();
    places.sort_unstable();
    (places, false)
}

/// Returns a hash of the sockets, their addresses and their order.
fn identity(sockets: &[ListenSocket]) -> u64 {
    let mut hasher = FxHasher::default();
    for socket in sockets {
        (socket.cookie, socket.address).hash(&mut hasher);
    }
    hasher.finish()
}

/// Whether another socket has the same address: a query then finds only one of the two sockets.
fn hides(sockets: &[ListenSocket], place: usize) -> bool {
    let address = sockets[place].address;
    sockets.iter().enumerate().any(|(other, socket)| other != place && socket.address == address)
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

    /// A namespace whose numbers a test sets, and the planner of that namespace.
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
        dumps: Allowed,
        /// Cost of a dump of the Unix listeners, and the share of a core for them.
        unix_cost: Duration,
        unix_share: Option<f64>,
    }

    /// Readings of one sample: settings, look, method for the listeners, Unix, snmp, netstat.
    #[derive(Debug, PartialEq, Eq)]
    struct Read(bool, bool, TcpMethod, bool, bool, bool);

    impl Scene {
        /// Returns an idle namespace with two listeners, sampled until no more readings are due.
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
            let time = SampleTime {
                now: self.now,
                interval: TICK,
                dump_interval: Duration::ZERO,
                dumps: self.dumps,
                unix_share: self.unix_share.unwrap_or(f64::INFINITY),
            };
            let opening = self.planner.open(time, |pace| pace);
            let plan = self.planner.plan(opening, self.look.filter(|_| opening.look), self.dumps);
            let sockets = self.look.map(|look| look.sockets);
            let is_calm = plan.tcp.calm.is_some_and(|calm| calm.holds(sockets, || None));
            let mut method = if is_calm { plan.tcp.when_calm } else { plan.tcp.otherwise };
            if method == TcpMethod::Ask && self.planner.has_moved(&self.listeners) {
                method = TcpMethod::Dump;
            }
            let is_same = method == TcpMethod::Keep || self.known == self.listeners;
            let owes_dump = method == TcpMethod::AskOnly
                && !self.planner.is_sufficient(&plan, true, &self.listeners);
            self.known.clone_from(&self.listeners);
            if method == TcpMethod::Dump && !self.fails {
                self.planner.dumped(Duration::from_micros(20));
                self.planner.select(self.listeners.len(), true);
            }
            let outcome = TcpOutcome { is_same, owes_dump };
            let moved = (!self.fails).then(|| self.planner.take_tcp(&self.listeners, outcome));
            if plan.unix {
                self.planner.unix_dumped(time, self.unix_cost);
                self.planner.take_unix(self.unix_waits);
            }
            let counters = self.planner.counters(&plan, moved);
            if counters.netstat {
                self.planner.take_overflows(Some(self.overflows));
            }
            let tcp = (!self.fails).then_some((&self.listeners[..], is_same));
            let outcome = Outcome { tcp, unix: plan.unix, netstat: counters.netstat };
            self.planner.close(&plan, moved.unwrap_or(false), &outcome);
            let Opening { everything, look, .. } = opening;
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
    fn in_an_idle_namespace_only_sockets_are_counted() {
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
    fn the_kind_of_change_determines_the_readings() {
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
    fn after_a_change_the_next_samples_are_dumps() {
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

    /// Calls `sample` until it has dumped. Returns the number of samples before the dump.
    fn until_dump(scene: &mut Scene) -> (usize, Read) {
        for before in 0..100 {
            let read = scene.sample(TICK);
            if read.2 == TcpMethod::Dump {
                return (before, read);
            }
        }
        panic!("no dump in 100 samples");
    }

    #[test]
    fn a_postponed_dump_is_made_later_and_followed_by_the_counters() {
        use TcpMethod::{AskOnly, Dump};
        type Event = fn(&mut Scene);
        let (second, quick) = (Duration::from_secs(1), TICK);
        // The event, the time until the sample after it, and whether the counters are read then:
        // only if a drop counter shows that they may have changed.
        let table: [(&str, Event, Duration, Allowed, bool); 6] = [
            ("a segment", Scene::came, second, Allowed::None, false),
            ("a segment, urgent only", Scene::came, second, Allowed::Urgent, false),
            ("a socket", Scene::connected, second, Allowed::Urgent, false),
            ("four seconds", Scene::connected, 5 * second, Allowed::Urgent, false),
            (
                "a drop",
                |scene| {
                    scene.connected();
                    scene.listeners[0].drops = Some(1);
                },
                quick,
                Allowed::None,
                true,
            ),
            ("a look that fails", |scene| scene.look = None, second, Allowed::None, false),
        ];
        for (name, event, gap, dumps, netstat) in table {
            let mut scene = Scene::at_rest();
            event(&mut scene);
            scene.dumps = dumps;
            let first = scene.sample(gap);
            assert_eq!((first.2, first.5), (AskOnly, netstat), "{name}");
            assert!(scene.planner.owes_dump(), "{name}");
            assert!((0..5).all(|_| scene.sample(quick).2 == AskOnly), "{name}");
            scene.dumps = Allowed::All;
            let (before, read) = until_dump(&mut scene);
            // The counters that waited for the dump are read after it.
            assert_eq!((before, read.2, read.5), (0, Dump, true), "{name}");
            assert!(!scene.planner.owes_dump(), "{name}");
        }
    }

    #[test]
    fn growing_overflows_make_a_dump_urgent() {
        let mut scene = Scene::at_rest();
        scene.dumps = Allowed::Urgent;
        scene.came();
        assert_eq!(scene.sample(Duration::from_secs(1)).2, TcpMethod::AskOnly);
        assert_eq!(scene.sample(TICK).2, TcpMethod::AskOnly);
        scene.overflows += 1;
        scene.listeners[0].drops = Some(1);
        // The sample that finds the growth does not dump; the next three do.
        assert_eq!(scene.sample(TICK), Read(false, false, TcpMethod::AskOnly, false, true, true));
        let methods: Vec<TcpMethod> = (0..4).map(|_| scene.sample(TICK).2).collect();
        assert_eq!(methods[..3], [TcpMethod::Dump; 3]);
        assert_ne!(methods[3], TcpMethod::Dump);
    }

    #[test]
    fn while_a_dump_waits_traffic_is_looked_for_only_if_some_listeners_are_not_queried() {
        for all in [true, false] {
            let mut scene = Scene::at_rest();
            scene.dumps = Allowed::None;
            scene.came();
            scene.sample(SLOW);
            scene.planner.select(2, all);
            let looks = (0..20).filter(|_| {
                scene.came();
                scene.sample(TICK).1
            });
            assert_eq!(looks.count(), if all { 0 } else { 2 });
        }
    }

    #[test]
    fn changed_queues_of_known_listeners_need_no_dump() {
        let mut scene = Scene::at_rest();
        scene.dumps = Allowed::None;
        scene.connected();
        scene.listeners[0].queue.length = 1;
        assert_eq!(scene.sample(TICK), Read(false, false, TcpMethod::AskOnly, false, false, false));
        assert!(!scene.planner.owes_dump());
    }

    #[test]
    fn the_first_dump_is_made_whatever_the_budget_allows() {
        let mut scene = Scene { listeners: vec![socket(1, 0, 0)], ..Scene::default() };
        scene.look = Some(Look { segments: 7, sockets: Sockstat { used: 9, tcp: 1 } });
        scene.dumps = Allowed::None;
        assert_eq!(scene.sample(TICK).2, TcpMethod::Dump);
    }

    #[test]
    fn the_cheaper_of_dump_and_queries_is_used() {
        let micros = Duration::from_micros;
        // Listeners, cost of a query, cost of a dump, and whether to dump.
        let table = [
            // With 16,384 buckets.
            (1, Some(2), 11, false),
            (8, Some(2), 14, false),
            (9, Some(2), 14, true),
            (100, Some(2), 52, true),
            // On Linux 6.1 with 65,536 buckets.
            (8, Some(3), 600, false),
            (60, Some(3), 600, false),
            (60, None, 600, false),
            (128, Some(3), 600, true),
            // On Linux 5.15, with 32 buckets.
            (8, Some(2), 7, true),
            (3, Some(2), 6, false),
        ];
        for (count, query, dump, expected) in table {
            let costs = Costs { query: query.map(micros), dump: Some(micros(dump)) };
            assert_eq!(costs.prefer_dump(count), expected, "{count} {query:?} {dump}");
        }
        assert!(!Costs::default().prefer_dump(1));
    }

    #[test]
    fn a_lower_cost_counts_at_once() {
        let mut cost = None;
        for took in [30, 10, 90] {
            add_cost(&mut cost, Duration::from_micros(took));
        }
        assert_eq!(cost, Some(Duration::from_micros(20)));
    }

    #[test]
    fn of_very_many_listeners_those_with_a_queue_are_queried_fairly_by_user() {
        let mut sockets: Vec<ListenSocket> =
            (0..1_000).map(|n| ListenSocket { address: at(n), ..socket(n.into(), 0, 0) }).collect();
        assert_eq!(selected(&sockets), (vec![], false));
        let mut queued = |place: usize, uid, length| {
            sockets[place].origin.uid = Some(uid);
            sockets[place].queue.length = length;
        };
        // One user fills many queues, another has two connections.
        (0..600).for_each(|place| queued(place, 1_000, 6));
        (700..702).for_each(|place| queued(place, 0, 1));
        let (places, are_all) = selected(&sockets);
        assert_eq!((places.len(), are_all), (MAX_QUEUED, false));
        assert!(places.contains(&700) && places.contains(&701) && places.is_sorted());
    }

    #[test]
    fn a_few_listeners_are_all_queried_except_where_they_hide_each_other() {
        let of = |ports: &[u16]| -> Vec<ListenSocket> {
            let one = |port: &u16| ListenSocket { address: at(*port), ..socket(1, 0, 0) };
            ports.iter().map(one).collect()
        };
        assert_eq!(selected(&of(&[1, 2, 3])), (vec![0, 1, 2], true));
        assert_eq!(selected(&of(&[1, 2, 1])), (vec![1], false));
        assert_eq!(selected(&[]), (vec![], true));
    }

    fn at(port: u16) -> ListenAddress {
        ListenAddress { ip: "0.0.0.0".parse().unwrap(), port, device: None }
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
    fn costly_dumps_of_unix_listeners_come_less_often() {
        let millis = Duration::from_millis;
        // Cost of a dump, share of a core, whether a connection waits, and dumps in 60 s.
        let table = [
            (millis(0), Some(0.005), true, 550..=600),
            (millis(1), Some(0.005), true, 295..=305),
            (millis(10), Some(0.005), true, 29..=33),
            (millis(10), None, true, 550..=600),
            // Without a queue, each look that finds traffic leads to a dump if the share allows it.
            (millis(1), Some(0.005), false, 50..=70),
            (millis(10), Some(0.005), false, 20..=33),
            (millis(1_000), Some(0.005), true, 1..=3),
        ];
        for (cost, share, waits, expected) in table {
            let mut scene = Scene::at_rest();
            (scene.unix_cost, scene.unix_share, scene.unix_waits) = (cost, share, waits);
            scene.came();
            scene.sample(SLOW);
            let mut dumps = 0;
            for _ in 0..600 {
                scene.came();
                dumps += u32::from(scene.sample(TICK).3);
            }
            assert!(expected.contains(&dumps), "{cost:?} {share:?} {waits}: {dumps}");
        }
    }

    #[test]
    fn a_postponed_dump_of_unix_listeners_is_made_later() {
        let mut scene = Scene::at_rest();
        (scene.unix_cost, scene.unix_share) = (Duration::from_millis(10), Some(0.005));
        // Measures the cost.
        for _ in 0..8 {
            scene.came();
            assert!(scene.sample(10 * SLOW).3);
        }
        // A socket appears, and nothing changes afterwards.
        scene.connected();
        assert!(!scene.sample(SLOW).3);
        let reads: Vec<bool> = (0..10).map(|_| scene.sample(TICK).3).collect();
        assert_eq!(reads.iter().filter(|is_read| **is_read).count(), 1, "{reads:?}");
    }

    #[test]
    fn after_a_failed_reading_the_next_look_reads_again() {
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
        let slow = |millis| SampleTime::every(Duration::from_millis(millis)).slow();
        assert_eq!(
            [10, 100, 150, 900].map(slow).map(|pace| pace.as_millis()),
            [1000, 1000, 1500, 2000]
        );
    }

    #[test]
    fn a_fingerprint_depends_on_sockets_and_drops_and_not_on_order() {
        let before = fingerprint(&[socket(1, 0, 5), socket(2, 0, 0)]);
        assert_eq!(before, fingerprint(&[socket(2, 0, 0), socket(1, 3, 5)]));
        assert_ne!(before, fingerprint(&[socket(1, 0, 5), socket(2, 0, 1)]));
        assert_ne!(before, fingerprint(&[socket(1, 0, 5)]));
        assert_ne!(before, fingerprint(&[socket(1, 0, 5), socket(3, 0, 0)]));
    }
}
