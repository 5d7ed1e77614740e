//! One network namespace: its listeners and counters, and how they go together.

use std::sync::Arc;
use std::time::Duration;

use crate::snapshot::owner::Owner;
use crate::snapshot::owner_reading::{OwnerReading, WatchedSocket};
use crate::snapshot::scan::Scan;
use crate::snapshot::{
    Claims, Counter, Counters, ListenAddress, NetnsId, NetnsSample, Setting, Settings, UnixName,
};
use crate::view::{ListenerView, NetnsScan, NetnsView, Protocol};

use super::attribution::Ledger;
use super::exposure::{Admission, Candidate};
use super::group::{Context, Group};
use super::refusals::Cookies;
use super::trailing::Trailing;
use super::{GRACE, Incident, Tick};

/// A first look may miss sockets; what turns up in the first dumps was there before.
const BASELINE_DUMPS: u64 = 3;

/// How often conclusions are drawn.
const CONCLUDE: Duration = Duration::from_secs(1);

/// A scan is too old to say anything after so much time, or so many gaps between scans.
const SCAN_STALE: Duration = Duration::from_secs(15);
const SCAN_STALE_GAPS: u32 = 3;

/// Earlier caps that are remembered.
const RAISES: usize = 8;

/// A listener of a namespace.
pub(super) type Key = (Protocol, usize);

/// A namespace with its history.
#[derive(Debug)]
pub(super) struct Netns {
    id: NetnsId,
    is_newborn: bool,
    name: Arc<str>,
    owner: Arc<Owner>,
    tcp: Group<ListenAddress>,
    unix: Group<UnixName>,
    ledger: Ledger,
    counters: Counters,
    settings: Settings,
    sampled_unix_time: Option<f64>,
    sampled_seconds: f64,
    scan: Option<NetnsScan>,
    scan_is_shown: bool,
    /// SYN cookies sent, and received.
    cookies: Trailing<[u64; 2]>,
    cookie_returns: Cookies,
    /// Overflows, and those that repeat a cookie: before the last conclusion, and since.
    repeats: [Repeats; 2],
    /// Earlier values of `somaxconn`, and when each was last read before it was raised.
    raised: Vec<(u32, Duration)>,
    settings_read_at: Duration,
    concluded_at: Duration,
    unexposed: u64,
    /// The last snapshot it was part of.
    snapshot: u64,
    ended_at: Option<Duration>,
}

/// Overflows of a namespace, and cookies that clients repeat.
#[derive(Clone, Copy, Debug, Default)]
struct Repeats {
    overflows: u64,
    cookies: u64,
}

// === impl Netns ===

impl Netns {
    /// A namespace just seen for the first time. One that came up under watch counts from nothing.
    pub(super) fn new(sample: &NetnsSample, is_newborn: bool) -> Self {
        let baseline_dumps = if is_newborn { 0 } else { BASELINE_DUMPS };
        Self {
            id: sample.id,
            is_newborn,
            name: sample.name.clone(),
            owner: sample.owner.clone(),
            tcp: Group::new(baseline_dumps),
            unix: Group::new(baseline_dumps),
            ledger: Ledger::default(),
            counters: Counters::default(),
            settings: Settings::default(),
            sampled_unix_time: None,
            sampled_seconds: 0.0,
            scan: None,
            scan_is_shown: false,
            cookies: Trailing::default(),
            cookie_returns: Cookies::default(),
            repeats: Default::default(),
            raised: Vec::new(),
            settings_read_at: Duration::ZERO,
            concluded_at: Duration::ZERO,
            unexposed: 0,
            snapshot: 0,
            ended_at: None,
        }
    }

    /// Which namespace this is.
    pub(super) fn id(&self) -> NetnsId {
        self.id
    }

    /// Takes in one sample. What it could not read stays as it was.
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
            self.unix.fold(dump, tick, &self.ledger);
            self.unix.admit(admission, &self.name, tick.now);
        }
        // Without a dump the counters wait too: overflows are charged to what the dump says.
        if let Some(dump) = &sample.tcp {
            let credited = self.tcp.fold(dump, tick, &self.ledger);
            self.sampled_seconds += credited.as_secs_f64();
            self.sampled_unix_time = Some(tick.unix_time);
            self.tcp.admit(admission, &self.name, tick.now);
            let overflows = self.fold_counters(sample, tick.now);
            if self.knows_overflows() {
                self.unexposed += self.tcp.settle(&mut self.ledger, overflows, tick);
            }
        }
        if let Some(scan) = &sample.scan {
            self.take_scan(scan, tick);
        }
        self.forget(tick.now, admission);
    }

    /// Draws the conclusions of the last second, and tells which incidents started or ended with them.
    pub(super) fn conclude(&mut self, now: Duration, incidents: &mut Vec<Incident>) {
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
        let mut told = |name: &Arc<_>, owner: &Arc<_>, turn| {
            let (netns, name, owner) = (self.name.clone(), Arc::clone(name), Arc::clone(owner));
            incidents.push(Incident { netns, name, owner, turn, at: now });
        };
        self.tcp.conclude(&context, &mut told);
        self.unix.conclude(&context, &mut told);
    }

    fn context(&self, now: Duration) -> Context {
        let cookies = self.cookies.within(now);
        let [cookies_sent, cookies_received] =
            cookies.fold([0, 0], |[sent, received], [s, r]| [sent + s, received + r]);
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
        if let Some(tcp) = &scan.tcp {
            self.tcp.take_scan(at, tcp);
        }
        match &scan.unix {
            Some(queues) => self.unix.take_scan(at, queues),
            // One of the queues is too long to be told of: what the last scan said is not kept for fresh.
            None => self.unix.forget_scan(),
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

    /// Whether it is only remembered: an inode may come to stand for another namespace.
    pub(super) fn has_ended(&self) -> bool {
        self.ended_at.is_some()
    }

    /// Whether `sample` may be of this namespace, which nobody seemed to hold any more: then it has a history. An inode alone
    /// does not tell, for it is given to the next namespace at once; but that one has counted less.
    pub(super) fn may_be_back_in(&self, sample: &NetnsSample) -> bool {
        let mut newer = [&sample.netstat, &sample.snmp].into_iter().flatten();
        self.id == sample.id
            && !self.counters.are_all_zero()
            && newer.all(|newer| self.counters.may_become(newer))
    }

    /// Whether it was part of that snapshot.
    pub(super) fn was_part_of(&self, snapshot: u64) -> bool {
        self.snapshot == snapshot
    }

    /// It is not there any more: its counters stay for the grace time, its gauges go.
    pub(super) fn end(&mut self, now: Duration, admission: &mut Admission) {
        if self.ended_at.is_none() {
            self.ended_at = Some(now);
            self.tcp.close(now);
            self.unix.close(now);
            (self.scan, self.sampled_unix_time) = (None, None);
        }
        self.forget(now, admission);
    }

    /// Whether it ended so long ago that nothing of it is remembered.
    pub(super) fn is_forgotten(&self, now: Duration) -> bool {
        self.ended_at.is_some_and(|ended| now.saturating_sub(ended) >= GRACE)
    }

    /// Copies what is shown into `view`, into the memory it already has.
    pub(super) fn show(&self, view: &mut NetnsView) {
        let NetnsView {
            name,
            owner,
            tcp_sampled_at,
            unix_sampled_at,
            sampled_unix_time,
            sampled_seconds,
            scan,
            counters,
            settings,
            unattributed_overflows,
            unexposed_overflows,
            revision,
            listeners,
        } = view;
        // What stands here may be another namespace, shown when there were more or fewer.
        let is_same = Arc::ptr_eq(name, &self.name);
        name.clone_from(&self.name);
        owner.clone_from(&self.owner);
        *tcp_sampled_at = self.tcp.sampled_at();
        *unix_sampled_at = self.unix.sampled_at();
        *sampled_unix_time = self.sampled_unix_time;
        *sampled_seconds = self.sampled_seconds;
        *scan = self.scan;
        *counters = self.counters;
        *settings = self.settings;
        *unattributed_overflows = self.knows_overflows().then(|| self.ledger.unattributed());
        *unexposed_overflows = self.knows_overflows().then_some(self.unexposed);
        let now = self.tcp.revision() + self.unix.revision();
        if std::mem::replace(revision, now) != now || !is_same {
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

    /// Takes over the counters; the growth of `ListenOverflows` since it was last read, if it was read.
    fn fold_counters(&mut self, sample: &NetnsSample, now: Duration) -> Option<u64> {
        let before = self.counters.get(Counter::ListenOverflows);
        self.count_cookies(sample, now);
        for counters in [&sample.netstat, &sample.snmp].into_iter().flatten() {
            self.counters.update(counters);
        }
        let after = sample.netstat?.get(Counter::ListenOverflows)?;
        // The first reading is a baseline, but in a namespace that came up under watch.
        let baseline = if self.is_newborn { 0 } else { after };
        Some(after.saturating_sub(before.unwrap_or(baseline)))
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
        sums[0] += sent;
        sums[1] += received;
        let repeats = &mut self.repeats[1];
        repeats.overflows += overflows;
        repeats.cookies += self.cookie_returns.grew(now, sent, received);
    }

    /// Without drops nobody can be charged; without the kernel's counter there is nothing to charge.
    fn knows_overflows(&self) -> bool {
        !self.tcp.lacks_drops() && self.counters.get(Counter::ListenOverflows).is_some()
    }

    fn forget(&mut self, now: Duration, admission: &mut Admission) {
        self.unexposed += self.tcp.forget(now, admission);
        self.unix.forget(now, admission);
    }

    /// The sockets of listeners in trouble whose owner is known.
    pub(super) fn watched(&self) -> impl Iterator<Item = WatchedSocket> {
        self.tcp.watched().into_iter().chain(self.unix.watched())
    }

    /// Takes in looks at owners.
    pub(super) fn look(&mut self, now: Duration, looks: &[(u32, Arc<OwnerReading>)]) {
        self.tcp.look(now, looks);
        self.unix.look(now, looks);
    }

    /// Takes in owners that were found.
    pub(super) fn claim(&mut self, claims: &Claims) {
        self.tcp.claim(claims);
        self.unix.claim(claims);
    }

    /// The listeners, for whoever gives the places.
    pub(super) fn candidates(&self) -> impl Iterator<Item = Candidate<Key>> {
        let of = |protocol| {
            move |candidate: Candidate<usize>| candidate.with_key((protocol, candidate.key))
        };
        let tcp = self.tcp.candidates().map(of(Protocol::Tcp));
        tcp.chain(self.unix.candidates().map(of(Protocol::Unix)))
    }

    /// A listener gets series.
    pub(super) fn expose(&mut self, (protocol, key): Key, now: Duration) {
        match protocol {
            Protocol::Tcp => self.tcp.expose(key, now),
            Protocol::Unix => self.unix.expose(key, now),
        }
    }

    /// A listener loses its series.
    pub(super) fn omit(&mut self, (protocol, key): Key) {
        self.unexposed += match protocol {
            Protocol::Tcp => self.tcp.omit(key),
            Protocol::Unix => self.unix.omit(key),
        };
    }

    /// Every listener gives its place back: another namespace takes this one's name.
    pub(super) fn leave(&self, admission: &mut Admission) {
        for candidate in self.candidates() {
            admission.leave(candidate.exposure);
        }
    }
}

// === impl Repeats ===

impl Repeats {
    /// The share of the overflows that repeat a cookie.
    fn share(both: [Self; 2]) -> f64 {
        let overflows: u64 = both.iter().map(|one| one.overflows).sum();
        let cookies: u64 = both.iter().map(|one| one.cookies).sum();
        if overflows == 0 { 0.0 } else { cookies as f64 / overflows as f64 }
    }
}

fn is_stale(scan: NetnsScan, now: Duration) -> bool {
    let gaps = scan.gap.unwrap_or_default() * SCAN_STALE_GAPS;
    now.saturating_sub(scan.at) > gaps.max(SCAN_STALE)
}
