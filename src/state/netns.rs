//! One network namespace: its listeners, its counters and the attribution between them.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxBuildHasher;

use crate::snapshot::owner::Owner;
use crate::snapshot::owner_reading::{SocketOwnerReading, WatchedSocket};
use crate::snapshot::scan::Scan;
use crate::snapshot::{
    Counter, Counters, Identity, ListenAddress, NetnsId, NetnsSample, OWN_NETNS, Origin,
    OwnersByInode, Setting, Settings, UnixAddress,
};
use crate::view::{ListenerView, NetnsScan, NetnsView, Protocol};

use super::accepted::Accepted;
use super::attribution::{Attribution, Reading};
use super::cookie_credit::{CookieCount, CookieCredit};
use super::exposure::{Admission, Exposure, Level, PROBATION, Rank};
use super::group::{Context, Group};
use super::places::Candidate;
use super::refusals::Cookies;
use super::scans::{Between, Taken};
use super::source::Source;
use super::tracking::Tracking;
use super::trailing::Trailing;
use super::{GRACE, IncidentNotice, Tick};

/// The number of first dumps that are a baseline. A dump may miss sockets, so sockets that first
/// appear in these dumps were open before.
const BASELINE_DUMPS: u64 = 3;

/// The interval at which diagnoses are updated.
const CONCLUDE: Duration = Duration::from_secs(1);

/// A scan is stale after this time, or after [`SCAN_STALE_GAPS`] gaps between scans if that is
/// longer.
const SCAN_STALE: Duration = Duration::from_secs(15);
/// An overflow is attributed at most three samples after the reading that shows it.
const RECENT_READINGS: usize = 4;
/// The age from which a reading has nothing to do with the overflows attributed now.
const RECENT: Duration = Duration::from_millis(500);
const SCAN_STALE_GAPS: u32 = 3;

/// The number of earlier `somaxconn` values that are remembered.
const RAISES: usize = 8;

/// The key of a listener within its namespace.
pub(super) type Key = (Protocol, usize);

/// The identity of a namespace, and the user that created it.
#[derive(Clone, Debug)]
pub(super) struct Scope {
    /// The `netns` label.
    pub(super) name: Arc<str>,
    id: NetnsId,
    made_by: Option<u32>,
}

/// A namespace with its history.
#[derive(Debug)]
pub(super) struct Netns {
    scope: Scope,
    is_newborn: bool,
    identity: Identity,
    exposure: Exposure,
    /// The time from which the namespace may have series even if it is idle.
    due_at: Duration,
    name_hash: u64,
    owner: Arc<Owner>,
    tcp: Group<ListenAddress>,
    unix: Group<UnixAddress>,
    attribution: Attribution,
    accepted: Accepted,
    /// The total of accepted connections at the time of the last scan.
    accepted_at_scan: Option<u64>,
    counters: Counters,
    settings: Settings,
    sampled_unix_time: Option<f64>,
    /// The start of the counters that listenq keeps for the namespace, in seconds since 1970.
    started_unix_time: f64,
    sampled_seconds: f64,
    scan: Option<NetnsScan>,
    scan_is_shown: bool,
    cookies: Trailing<CookieCount>,
    cookie_credit: CookieCredit,
    cookie_returns: Cookies,
    /// Overflows, and overflows that repeat a cookie: before the last conclusion, and since.
    repeats: [Repeats; 2],
    /// The repeated cookies of the last readings, with their times.
    recent_repeats: [(Duration, Repeats); RECENT_READINGS],
    /// Earlier values of `somaxconn`, each with the time at which it was last read before
    /// `somaxconn` was raised.
    raised: Vec<(u32, Duration)>,
    settings_read_at: Duration,
    concluded_at: Duration,
    /// The last snapshot that contained the namespace.
    snapshot: u64,
    ended_at: Option<Duration>,
}

/// The overflows of a namespace, and the cookies that clients repeat.
#[derive(Clone, Copy, Debug, Default)]
struct Repeats {
    overflows: u64,
    cookies: u64,
}

/// The state by which a namespace that seemed to have ended is recognized.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trace {
    id: NetnsId,
    counters: Counters,
    pub(super) ended_at: Duration,
}

// === impl Trace ===

impl Trace {
    /// Whether `sample` may belong to the same namespace, which then has a history.
    ///
    /// The inode alone is no proof: the kernel reuses an inode at once for the next namespace. But
    /// the counters of the next namespace are lower.
    pub(super) fn may_be_back_in(&self, sample: &NetnsSample) -> bool {
        let mut newer = [&sample.netstat, &sample.snmp].into_iter().flatten();
        self.id == sample.id
            && !self.counters.are_all_zero()
            && newer.all(|newer| self.counters.may_become(newer))
    }
}

// === impl Scope ===

impl Scope {
    /// The source of a listener in this namespace.
    pub(super) fn source(&self, origin: Origin) -> Source {
        Source::of_listener(&self.name, self.id, self.made_by, origin)
    }
}

// === impl Netns ===

impl Netns {
    /// Creates a namespace that was first seen in `sample`. The counters of a namespace that
    /// started while listenq watched count from zero.
    pub(super) fn new(
        sample: &NetnsSample,
        is_newborn: bool,
        exposure: Exposure,
        tick: Tick,
    ) -> Self {
        let now = tick.now;
        let baseline_dumps = if is_newborn { 0 } else { BASELINE_DUMPS };
        let scope = Scope { name: sample.name.clone(), id: sample.id, made_by: sample.made_by };
        Self {
            is_newborn,
            identity: sample.identity,
            exposure,
            due_at: if is_newborn { now + PROBATION } else { now },
            name_hash: FxBuildHasher.hash_one(&*sample.name),
            owner: sample.owner.clone(),
            tcp: Group::new(scope.clone(), baseline_dumps),
            unix: Group::new(scope.clone(), baseline_dumps),
            scope,
            attribution: Attribution::default(),
            accepted: Accepted::new(is_newborn),
            accepted_at_scan: None,
            counters: Counters::default(),
            settings: Settings::default(),
            sampled_unix_time: None,
            started_unix_time: tick.unix_time,
            sampled_seconds: 0.0,
            scan: None,
            scan_is_shown: false,
            cookies: Trailing::default(),
            cookie_credit: CookieCredit::default(),
            cookie_returns: Cookies::default(),
            repeats: Default::default(),
            recent_repeats: Default::default(),
            raised: Vec::new(),
            settings_read_at: Duration::ZERO,
            concluded_at: Duration::ZERO,
            snapshot: 0,
            ended_at: None,
        }
    }

    pub(super) fn id(&self) -> NetnsId {
        self.scope.id
    }

    /// Applies one sample. Values that the sample could not read stay unchanged.
    pub(super) fn fold(&mut self, sample: &NetnsSample, tick: Tick, admission: &mut Admission) {
        self.snapshot = tick.snapshot;
        if !Arc::ptr_eq(&self.owner, &sample.owner) {
            self.owner = sample.owner.clone();
        }
        if let Some(settings) = sample.settings {
            self.note_raise(&settings);
            (self.settings, self.settings_read_at) = (settings, tick.now);
        }
        if let Some(dump) = &sample.unix {
            self.unix.fold(dump, tick, &self.attribution, &mut admission.tracking);
            self.unix.admit(admission, tick.now);
        }
        let is_part = sample.tcp.as_ref().is_some_and(|dump| dump.part.is_some());
        // Without a dump the counters wait too: attribution needs the dump.
        if let Some(dump) = &sample.tcp {
            if std::mem::replace(&mut self.identity, sample.identity) != sample.identity {
                self.tcp.restart(BASELINE_DUMPS, &mut admission.tracking);
            }
            let credited = self.tcp.fold(dump, tick, &self.attribution, &mut admission.tracking);
            self.sampled_seconds += credited.as_secs_f64();
            self.sampled_unix_time = Some(tick.unix_time);
            if !is_part {
                self.settle(sample, tick, admission);
            }
        }
        if let Some(scan) = &sample.scan {
            self.take_scan(scan, tick);
        }
        self.unix.forget(tick.now, admission);
        if !is_part {
            self.tcp.forget(tick.now, admission);
        }
    }

    /// Applies the counters after a dump.
    fn settle(&mut self, sample: &NetnsSample, tick: Tick, admission: &mut Admission) {
        self.tcp.admit(admission, tick.now);
        // These are the counters of the previous sample.
        let accepted =
            self.accepted.sampled(&self.counters, sample.snmp.as_ref(), self.tcp.queues());
        self.tcp.accepted(tick.now, accepted, self.accepted.total().is_some());
        let reading = self.fold_counters(sample, tick.now);
        if self.knows_overflows() {
            let repeated = self.recently_repeated(tick.now);
            self.tcp.settle(&mut self.attribution, reading, repeated, tick, admission);
        }
    }

    /// Updates the diagnoses once per second, and adds the incidents that started or ended to
    /// `incidents`.
    pub(super) fn conclude(
        &mut self,
        now: Duration,
        admission: &mut Admission,
        incidents: &mut Vec<IncidentNotice>,
    ) {
        if now.saturating_sub(self.concluded_at) < CONCLUDE && !self.has_ended() {
            return;
        }
        self.concluded_at = now;
        if self.scan_is_shown && self.scan.is_none_or(|scan| is_stale(scan, now)) {
            self.scan_is_shown = false;
            self.tcp.forget_scan();
            self.unix.forget_scan();
        }
        let context = self.context(now);
        self.repeats = [self.repeats[1], Repeats::default()];
        self.tcp.conclude(&context, admission, incidents);
        self.unix.conclude(&context, admission, incidents);
    }

    fn context(&self, now: Duration) -> Context {
        let (cookies_sent, cookies_received) = self
            .cookies
            .within(now)
            .fold((0, 0), |(sent, received), one| (sent + one.sent, received + one.received));
        let (settings, raised) = (self.settings, self.raised.clone());
        let repeated_cookies = Repeats::share(self.repeats);
        Context { now, settings, raised, cookies_sent, cookies_received, repeated_cookies }
    }

    fn take_scan(&mut self, scan: &Scan, tick: Tick) {
        let at = tick.now.saturating_sub(scan.age);
        let before = self.scan.replace(NetnsScan {
            at,
            unix_time: tick.unix_time - scan.age.as_secs_f64(),
            gap: None,
        });
        self.scan_is_shown = true;
        if let (Some(new), Some(before)) = (&mut self.scan, before) {
            new.gap = Some(at.saturating_sub(before.at));
        }
        let Tick { standing_wait, names_clients, .. } = tick;
        let between = Between { standing_wait, ..Between::default() };
        if let Some(tcp) = &scan.tcp {
            let taken = self.taken();
            let between = Between { taken, ..between };
            let at_cap = self.tcp.take_scan(at, tcp, between, names_clients, &self.settings);
            if let Some((listener, cookies)) = self.cookie_credit.scanned(at_cap) {
                self.tcp.credit_cookies(listener, tick.now, cookies);
            }
        }
        match &scan.unix {
            Some(queues) => self.unix.take_scan(at, queues, between),
            // A queue is too long for the kernel to list: the result of the last scan is out of
            // date.
            None => self.unix.forget_scan(),
        }
    }

    /// Whether connections were accepted since the last scan.
    fn taken(&mut self) -> Taken {
        let total = self.accepted.total();
        let before = std::mem::replace(&mut self.accepted_at_scan, total);
        match before.zip(total) {
            Some((before, total)) if before == total => Taken::Nothing,
            Some(_) if self.tcp.is_alone() => Taken::Something,
            _ => Taken::Unknown,
        }
    }

    fn note_raise(&mut self, settings: &Settings) {
        let of = |settings: &Settings| u32::try_from(settings.get(Setting::Somaxconn)?).ok();
        let (Some(before), Some(after)) = (of(&self.settings), of(settings)) else { return };
        if after > before {
            self.raised.retain(|(value, _)| *value != before);
            self.raised.push((before, self.settings_read_at));
            let too_many = self.raised.len().saturating_sub(RAISES);
            self.raised.drain(..too_many);
        }
    }

    /// Whether the namespace has ended and is only remembered. Its inode may be reused by another
    /// namespace.
    pub(super) fn has_ended(&self) -> bool {
        self.ended_at.is_some()
    }

    /// The trace to keep after the namespace is forgotten.
    pub(super) fn trace(&self) -> Trace {
        Trace {
            id: self.scope.id,
            counters: self.counters,
            ended_at: self.ended_at.unwrap_or_default(),
        }
    }

    /// Whether snapshot number `snapshot` contained the namespace.
    pub(super) fn was_part_of(&self, snapshot: u64) -> bool {
        self.snapshot == snapshot
    }

    /// Ends the namespace: its counters stay for the grace time and its gauges end.
    pub(super) fn end(&mut self, tick: Tick, admission: &mut Admission) {
        if self.ended_at.is_none() {
            self.ended_at = Some(tick.now);
            // No further dump follows: overflows that waited for a dump are attributed now.
            self.tcp.finish(&mut self.attribution, tick, admission);
            self.tcp.close(tick.now, &mut admission.tracking);
            self.unix.close(tick.now, &mut admission.tracking);
            (self.scan, self.sampled_unix_time) = (None, None);
        }
        self.forget(tick.now, admission);
    }

    /// Whether the namespace ended so long ago that it is no longer remembered.
    pub(super) fn is_forgotten(&self, now: Duration) -> bool {
        let remembered = match (self.is_exposed(), self.has_mattered()) {
            (true, true) => GRACE,
            (true, false) => PROBATION,
            (false, _) => Duration::ZERO,
        };
        self.ended_at.is_some_and(|ended| now.saturating_sub(ended) >= remembered)
    }

    pub(super) fn is_exposed(&self) -> bool {
        self.exposure.is_exposed()
    }

    fn has_mattered(&self) -> bool {
        self.attribution.unattributed() > 0
            || self.tcp.attributed() > 0
            || self.tcp.has_mattered()
            || self.unix.has_mattered()
    }

    /// Copies the state into `view` and reuses the memory of `view`.
    pub(super) fn show(&self, view: &mut NetnsView) {
        let NetnsView {
            name,
            owner,
            started_unix_time,
            tcp_samples,
            unix_samples,
            tcp_sampled_at,
            unix_sampled_at,
            sampled_unix_time,
            sampled_seconds,
            scan,
            counters,
            settings,
            accepted,
            unattributed_overflows,
            unexposed_overflows,
            revision,
            listeners,
        } = view;
        // `view` may hold another namespace: the number of shown namespaces may have changed.
        let is_same = Arc::ptr_eq(name, &self.scope.name);
        name.clone_from(&self.scope.name);
        owner.clone_from(&self.owner);
        *started_unix_time = self.started_unix_time;
        (*tcp_samples, *unix_samples) = (self.tcp.samples(), self.unix.samples());
        *tcp_sampled_at = self.tcp.sampled_at();
        *unix_sampled_at = self.unix.sampled_at();
        *sampled_unix_time = self.sampled_unix_time;
        *sampled_seconds = self.sampled_seconds;
        *scan = self.scan;
        *counters = self.counters;
        *settings = self.settings;
        *accepted = self.accepted.total();
        *unattributed_overflows = self.knows_overflows().then(|| self.attribution.unattributed());
        let now = self.tcp.revision() + self.unix.revision();
        if std::mem::replace(revision, now) != now || !is_same {
            let is_known = self.knows_overflows();
            *unexposed_overflows = is_known.then(|| self.tcp.unexposed_overflows());
            self.show_listeners(listeners);
        }
    }

    fn show_listeners(&self, listeners: &mut Vec<ListenerView>) {
        let mut source = self.tcp.shown().chain(self.unix.shown());
        let mut shown = 0;
        for (old, new) in listeners.iter_mut().zip(&mut source) {
            old.clone_from(new);
            shown += 1;
        }
        listeners.truncate(shown);
        listeners.extend(source.cloned());
    }

    /// Applies the counters. Returns the growth of the counters that attribution needs.
    fn fold_counters(&mut self, sample: &NetnsSample, now: Duration) -> Reading {
        let growth =
            |read: &Option<Counters>, counter| self.growth((*read)?.get(counter)?, counter);
        let reading = Reading {
            now,
            overflows: growth(&sample.netstat, Counter::ListenOverflows),
            opens: growth(&sample.snmp, Counter::PassiveOpens),
            deferred: growth(&sample.netstat, Counter::TcpDeferAcceptDrop),
        };
        self.count_cookies(sample, now);
        for counters in [&sample.netstat, &sample.snmp].into_iter().flatten() {
            self.counters.update(counters);
        }
        reading
    }

    /// The growth of a counter. The first reading is a baseline, except in a namespace that started
    /// while listenq watched.
    fn growth(&self, after: u64, counter: Counter) -> Option<u64> {
        let baseline = if self.is_newborn { 0 } else { after };
        Some(after.saturating_sub(self.counters.get(counter).unwrap_or(baseline)))
    }

    fn count_cookies(&mut self, sample: &NetnsSample, now: Duration) {
        let Some(netstat) = &sample.netstat else { return };
        let growth = |counter| {
            let (before, after) = (self.counters.get(counter)?, netstat.get(counter)?);
            Some(after.saturating_sub(before))
        };
        let counters = [Counter::SyncookiesSent, Counter::SyncookiesRecv];
        let [sent, received] = counters.map(|counter| growth(counter).unwrap_or(0));
        let overflows = growth(Counter::ListenOverflows).unwrap_or(0);
        let sums = self.cookies.at(now);
        sums.sent += sent;
        sums.received += received;
        self.cookie_credit.counted(CookieCount { sent, received });
        let read = Repeats { overflows, cookies: self.cookie_returns.grew(now, sent, received) };
        self.repeats[1].overflows += read.overflows;
        self.repeats[1].cookies += read.cookies;
        self.recent_repeats.rotate_left(1);
        self.recent_repeats[RECENT_READINGS - 1] = (now, read);
    }

    /// The share of the overflows attributed now that repeat a cookie.
    fn recently_repeated(&self, now: Duration) -> f64 {
        let is_recent = |(at, _): &&(Duration, Repeats)| now.saturating_sub(*at) < RECENT;
        Repeats::share(self.recent_repeats.iter().filter(is_recent).map(|(_, read)| *read))
    }

    /// Whether overflows can be attributed: this needs the drops of each socket and
    /// `ListenOverflows`.
    fn knows_overflows(&self) -> bool {
        !self.tcp.lacks_drops() && self.counters.get(Counter::ListenOverflows).is_some()
    }

    fn forget(&mut self, now: Duration, admission: &mut Admission) {
        self.tcp.forget(now, admission);
        self.unix.forget(now, admission);
    }

    /// The inodes of all tracked sockets of the namespace.
    pub(super) fn inodes(&self) -> impl Iterator<Item = u32> {
        self.tcp.inodes().chain(self.unix.inodes())
    }

    /// The sockets of listeners in trouble whose owner is known.
    pub(super) fn watched(&self) -> impl Iterator<Item = WatchedSocket> {
        self.tcp.watched().into_iter().chain(self.unix.watched())
    }

    /// Applies owner readings.
    pub(super) fn apply_owner_readings(&mut self, now: Duration, readings: &[SocketOwnerReading]) {
        self.tcp.apply_owner_readings(now, readings);
        self.unix.apply_owner_readings(now, readings);
    }

    /// Applies the owners that were found.
    pub(super) fn set_owners(&mut self, owners: &OwnersByInode) {
        self.tcp.set_owners(owners);
        self.unix.set_owners(owners);
    }

    /// The namespace as a candidate for a place.
    pub(super) fn candidate(&self, now: Duration) -> Candidate<()> {
        let levels = self.candidates(now).map(|listener| listener.rank.level);
        let level = match (&*self.scope.name == OWN_NETNS, self.has_ended()) {
            (true, _) => Level::Own,
            (false, true) => levels.max().unwrap_or_default(),
            (false, false) => levels.max().unwrap_or_default().max(Level::Calm),
        };
        Candidate {
            key: (),
            exposure: self.exposure,
            rank: Rank { level, ..Rank::default() },
            due_at: self.due_at,
            source: Source::of_netns(self.scope.made_by),
            name: self.name_hash,
        }
    }

    /// The namespace's listeners that are candidates for places.
    pub(super) fn candidates(&self, now: Duration) -> impl Iterator<Item = Candidate<Key>> {
        let of = |protocol| {
            move |candidate: Candidate<usize>| candidate.with_key((protocol, candidate.key))
        };
        let tcp = self.tcp.candidates(now).map(of(Protocol::Tcp));
        tcp.chain(self.unix.candidates(now).map(of(Protocol::Unix)))
    }

    /// Drops idle sockets while too many are tracked.
    pub(super) fn trim(&mut self, tracking: &mut Tracking, now: Duration) {
        self.tcp.trim(tracking, now);
        self.unix.trim(tracking, now);
    }

    /// Gives the namespace series.
    pub(super) fn expose(&mut self, exposure: Exposure) {
        self.exposure = exposure;
    }

    /// Removes the series of the namespace and of its listeners.
    pub(super) fn omit(&mut self, now: Duration, admission: &mut Admission) {
        self.exposure = Exposure::Hidden;
        let exposed: Vec<_> =
            self.candidates(now).filter(|one| one.exposure.is_exposed()).collect();
        for listener in exposed {
            admission.listeners.give_up(listener.name, now);
            admission.more_hidden();
            self.omit_listener(listener.key);
        }
    }

    /// Gives a listener series.
    pub(super) fn expose_listener(&mut self, (protocol, key): Key, exposure: Exposure) {
        match protocol {
            Protocol::Tcp => self.tcp.expose(key, exposure),
            Protocol::Unix => self.unix.expose(key, exposure),
        }
    }

    /// Removes the series of a listener.
    pub(super) fn omit_listener(&mut self, (protocol, key): Key) {
        match protocol {
            Protocol::Tcp => self.tcp.omit(key),
            Protocol::Unix => self.unix.omit(key),
        }
    }

    /// Clears and returns the overflows of this sample at listeners without series, after places
    /// were assigned.
    pub(super) fn hide_overflows(&mut self) -> u64 {
        self.tcp.hide_overflows()
    }

    /// Releases the places of the namespace and of its listeners: the namespace is forgotten, or
    /// another namespace takes its name. The series that the namespace had count for the user that
    /// created it.
    pub(super) fn leave(&mut self, now: Duration, admission: &mut Admission) {
        self.tcp.untrack(&mut admission.tracking);
        self.unix.untrack(&mut admission.tracking);
        self.tcp.leave(admission, now);
        self.unix.leave(admission, now);
        let maker = Source::of_netns(self.scope.made_by);
        match self.exposure {
            Exposure::Hidden => admission.less_hidden(),
            _ => admission.namespaces.forget(maker, self.name_hash, self.exposure, now),
        }
    }
}

// === impl Repeats ===

impl Repeats {
    /// The share of the overflows that repeat a cookie.
    fn share(readings: impl IntoIterator<Item = Self>) -> f64 {
        let (overflows, cookies) = readings
            .into_iter()
            .fold((0, 0), |sum, read| (sum.0 + read.overflows, sum.1 + read.cookies));
        if overflows == 0 { 0.0 } else { (cookies as f64 / overflows as f64).min(1.0) }
    }
}

fn is_stale(scan: NetnsScan, now: Duration) -> bool {
    let gaps = scan.gap.unwrap_or_default() * SCAN_STALE_GAPS;
    now.saturating_sub(scan.at) > gaps.max(SCAN_STALE)
}
