//! One listener: the sums over its sockets, and the state that outlives its sockets.

use std::sync::Arc;
use std::time::Duration;

use crate::cause::ListenerFacts;
use crate::diagnosis::{Evidence, WINDOW};
use crate::snapshot::owner_reading::{LocalEnd, OwnerReading};
use crate::snapshot::{AcceptQueue, ListenAddress, UnixAddress, UnixFile};
use crate::view::{
    ListenerName, ListenerView, Protocol, QueueScan, QueueView, SampledLengths, ScanView,
};

use super::accepted::{Flow, Totals};
use super::alert_owner::AlertOwner;
use super::attribution::DropEvidence;
use super::connections::HalfOpenCount;
use super::exposure::{Admission, Exposure, Level, PROBATION, Rank};
use super::peak::{Peak, Window};
use super::record::{Coverage, IncidentEvent, Record};
use super::scans::{Open, Verdict};
use super::socket::Socket;
use super::source::Source;
use super::{GRACE, Tick, trailing};

/// The window for the largest number of open connections.
const OPEN_WINDOW: Duration = Duration::from_secs(3600);

/// The results of a scan for one listener, other than its queue.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Beside {
    /// `None` for Unix sockets, which have no half-open connections.
    pub(super) half_open: Option<HalfOpenCount>,
    /// Open accepted connections.
    pub(super) open: Option<u64>,
}

/// How long a closed listener without series is remembered.
const UNEXPOSED_GRACE: Duration = Duration::from_millis(500);

/// A closed listener to which no overflow can be attributed is remembered for this time: until the
/// sample after the one in which it is gone. Counters that were read before may include connections
/// that the listener accepted.
const NEXT_SAMPLE: Duration = Duration::from_nanos(1);

/// A queue counts as near its limit above this share of the limit. The alert about such queues has
/// a higher threshold.
const NEAR_LIMIT: f64 = 0.5;

/// The number of half-open connections from which a listener gets a record. Fewer are enough if the
/// SYN queue holds fewer.
const MANY_HALF_OPEN: u64 = 16;

/// The address of a listen socket, and the identity of a listener within its namespace.
pub(super) trait Address: Copy + Eq + std::hash::Hash {
    /// Whether connections have a handshake, so that they may be half open.
    const HAS_HANDSHAKE: bool;
    /// Whether several listeners may have the same name.
    const SHARES_NAMES: bool;

    /// The name to display.
    fn name(&self) -> ListenerName;

    /// Whether only clients on the same machine can connect.
    fn is_local(&self) -> bool;

    /// The address that its clients connect to; `None` for Unix sockets.
    fn local(&self) -> Option<LocalEnd> {
        None
    }

    /// The candidates for its name, the shortest first: a listener gets the first name that no
    /// other listener has.
    fn aliases(&self) -> impl Iterator<Item = Self>;

    /// Whether this may be another socket of the server that had the name of `other` before.
    fn may_succeed(&self, other: &Self) -> bool;
}

/// A listener with its history.
#[derive(Debug)]
pub(super) struct Listener<A> {
    /// The address that the listener is bound to.
    pub(super) address: A,
    /// The address form that the listener's name is built from.
    pub(super) alias: A,
    /// The view of the listener.
    pub(super) shown: ListenerView,
    /// The evidence that overflows belong to this listener.
    pub(super) evidence: DropEvidence,
    /// Whether the listener has series.
    pub(super) exposure: Exposure,
    /// The source that places and names are counted for.
    pub(super) source: Source,
    /// A hash of the listener's labels.
    pub(super) name_hash: u64,
    /// The time from which the listener may have series even if it is idle.
    pub(super) due_at: Duration,
    /// The history of the listener's queue; `None` while there is nothing to remember.
    pub(super) record: Option<Box<Record>>,
    /// The lengths of its queue as sampled; `None` before it held a queue.
    lengths: Option<Box<SampledLengths>>,
    /// An incident that ended because the listener was closed.
    event: Option<Box<IncidentEvent>>,
    opened_at: Duration,
    /// Whether any sample showed the listener with an empty queue.
    was_empty: bool,
    /// The time before this sample.
    coverage: Coverage,
    /// New drops of this sample.
    new_drops: u64,
    tally: Tally,
    full: bool,
    peak: Peak,
    most_open: Peak,
    /// The accepted connections, if this is the only listener.
    flow: Option<Box<Flow>>,
    lift: Option<u32>,
    /// All attributed overflows, with or without series.
    overflows: u64,
    /// The time of the last overflow.
    overflowed_at: Option<Duration>,
    /// Whether the listener queued, dropped or overflowed while listenq watched.
    has_mattered: bool,
    closed_at: Option<Duration>,
    alert_owner: AlertOwner,
}

/// The sum over a listener's sockets in one sample.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    sockets: u32,
    length: u64,
    limit: Option<u64>,
    fullest: Option<f64>,
    full: bool,
    brimming: u32,
    /// The fewest connections that must arrive before one of the listener's queues overflows.
    room: Option<u64>,
    /// Sockets with an empty queue.
    empty: u32,
    drops: Option<u64>,
}

// === impl Address ===

impl Address for ListenAddress {
    const HAS_HANDSHAKE: bool = true;
    const SHARES_NAMES: bool = false;

    fn local(&self) -> Option<LocalEnd> {
        Some(ListenAddress::local(self))
    }

    fn name(&self) -> ListenerName {
        ListenerName { protocol: Protocol::Tcp, address: self.host(), port: self.port.to_string() }
    }

    fn is_local(&self) -> bool {
        self.ip.to_canonical().is_loopback()
    }

    fn aliases(&self) -> impl Iterator<Item = Self> {
        [*self].into_iter()
    }

    fn may_succeed(&self, _: &Self) -> bool {
        false
    }
}

impl Address for UnixAddress {
    const HAS_HANDSHAKE: bool = false;
    const SHARES_NAMES: bool = true;

    fn name(&self) -> ListenerName {
        let path = self.name.label();
        let address = match self.file {
            None => path,
            Some(UnixFile { device: 0, inode }) => format!("{path}~{inode}"),
            Some(UnixFile { device, inode }) => format!("{path}~{inode}.{device}"),
        };
        ListenerName { protocol: Protocol::Unix, address, port: String::new() }
    }

    fn is_local(&self) -> bool {
        true
    }

    /// The path, the path with the inode, and the path with inode and device.
    fn aliases(&self) -> impl Iterator<Item = Self> {
        let file = |device| move |file: UnixFile| UnixFile { device, ..file };
        let files = [None, self.file.map(file(0)), self.file];
        let distinct = if self.file.is_some() { files.len() } else { 1 };
        files.into_iter().take(distinct).map(|file| Self { file, ..*self })
    }

    /// Requires the same filesystem: a file on another filesystem may belong to any user, who can
    /// create the file in their own mount namespace.
    fn may_succeed(&self, other: &Self) -> bool {
        self.is_on_device_of(other)
    }
}

// === impl Listener ===

impl<A: Address> Listener<A> {
    /// Creates a listener that was first seen at `now`.
    pub(super) fn new(address: A, source: Source, due_at: Duration, tick: Tick) -> Self {
        Self {
            address,
            alias: address,
            shown: ListenerView::new(address.name(), tick.unix_time),
            evidence: DropEvidence::default(),
            exposure: Exposure::Excluded,
            source,
            name_hash: 0,
            due_at,
            record: None,
            lengths: None,
            event: None,
            opened_at: tick.now,
            was_empty: false,
            coverage: Coverage::default(),
            new_drops: 0,
            tally: Tally::default(),
            full: false,
            peak: Peak::default(),
            most_open: Peak::default(),
            flow: None,
            lift: None,
            overflows: 0,
            overflowed_at: None,
            has_mattered: false,
            closed_at: None,
            alert_owner: AlertOwner::default(),
        }
    }

    /// Credits `gap` to the state of the last sample, and resets the sums for the next sample.
    pub(super) fn begin_sample(&mut self, gap: Duration) {
        let seconds = gap.as_secs_f64();
        if let Some(queue) = &self.shown.queue {
            self.shown.connection_seconds += queue.length as f64 * seconds;
        }
        let if_true = |is_true| if is_true { gap } else { Duration::ZERO };
        self.coverage = Coverage {
            sampled: gap,
            full: if_true(self.full),
            loaded: if_true(is_loaded(self.shown.queue.as_ref())),
        };
        if self.full {
            self.shown.full_seconds = self.shown.full_seconds.map(|full| full + seconds);
        }
        self.tally = Tally::default();
        self.new_drops = 0;
    }

    /// Adds new drops of one of the listener's sockets.
    pub(super) fn dropped(&mut self, drops: u64) {
        *self.shown.drops.get_or_insert(0) += drops;
        self.has_mattered = true;
        self.new_drops += drops;
        self.evidence.dropped(drops);
    }

    /// Adds one living socket to the sums.
    pub(super) fn add(&mut self, socket: &Socket) {
        let queue = socket.queue;
        let first = self.tally.sockets == 0;
        let tally = &mut self.tally;
        tally.sockets += 1;
        tally.length += u64::from(queue.length);
        tally.limit = added(first, tally.limit, queue.limit.map(u64::from));
        tally.drops = added(first, tally.drops, socket.drops.map(u64::from));
        if let Some(fullness) = queue.fullness() {
            tally.fullest = Some(tally.fullest.map_or(fullness, |fullest| fullest.max(fullness)));
        }
        tally.full |= queue.is_full();
        tally.brimming += u32::from(queue.is_brimming());
        tally.room = Some(tally.room.map_or(room(queue), |least| least.min(room(queue))));
        tally.empty += u32::from(queue.length == 0);
        if socket.dropped {
            let limit = queue.limit.unwrap_or(0);
            self.lift = Some(self.lift.map_or(limit, |lift| lift.min(limit)));
        }
    }

    /// Ends the sample after all sockets are added. `samples` is the number of samples before it;
    /// `is_dump` is false for a reading between two dumps.
    pub(super) fn end_sample(&mut self, samples: u64, tick: Tick, is_dump: bool) {
        let tally = self.tally;
        self.shown.sockets = tally.sockets;
        self.full = tally.full;
        if let Some(record) = &mut self.record {
            record.covered(tick.now, self.coverage);
        }
        if tally.sockets == 0 {
            return self.close(tick.now);
        }
        self.reopen(tick.now);
        match (is_dump, tally.room.unwrap_or(0)) {
            (true, room) => self.evidence.has_room(room),
            (false, room) => self.evidence.had_room(room),
        }
        if tally.length > 0 {
            let lengths = self
                .lengths
                .get_or_insert_with(|| SampledLengths::new(samples, tick.unix_time).into());
            lengths.record(tally.length);
        }
        self.remember(tick.now);
        self.peak.record(tick.slot, u32::try_from(tally.length).unwrap_or(u32::MAX));
        self.show_queue();
    }

    fn show_queue(&mut self) {
        let tally = self.tally;
        if tally.limit.is_some() {
            self.shown.full_seconds.get_or_insert(0.0);
        }
        if tally.drops.is_some() {
            self.shown.drops.get_or_insert(0);
        }
        self.shown.queue = Some(QueueView {
            length: tally.length,
            limit: tally.limit,
            peak_length: u64::from(self.peak.largest()),
            fullest_ratio: tally.fullest,
            socket_drops: tally.drops,
        });
    }

    /// Handles a listener that has a socket at `now`, which ends the time in which it was closed.
    pub(super) fn reopen(&mut self, now: Duration) {
        if self.closed_at.take().is_some_and(|closed| !is_restart(closed, now)) {
            (self.opened_at, self.due_at) = (now, now + PROBATION);
        }
    }

    fn remember(&mut self, now: Duration) {
        let Tally { sockets, length, brimming, empty, .. } = self.tally;
        if length > 0 {
            self.has_mattered = true;
            self.record.get_or_insert_default();
        } else if let Some(scan) = &mut self.shown.scan {
            scan.queue = None;
        }
        self.was_empty |= length == 0;
        if let Some(record) = &mut self.record {
            record.sampled(now, length);
            record.brimming(now, brimming > 0, brimming == sockets);
            if self.new_drops > 0 {
                record.dropped(now, self.new_drops);
            }
            if length == 0 {
                record.emptied(now);
            } else if empty > 0 {
                record.has_room_at_once();
            }
        }
    }

    /// Applies a scan at `at` that found `length` connections in the listener's queues.
    pub(super) fn scanned(
        &mut self,
        at: Duration,
        length: u64,
        beside: Beside,
        look: impl FnOnce(&mut Record) -> Verdict,
    ) {
        let syn_queue = beside.half_open.map(|half_open| half_open.all);
        let open = self.opened(at, beside.open);
        let mut view = ScanView { at, syn_queue, open: open.now, queue: None };
        let many = self.tally.limit.unwrap_or(MANY_HALF_OPEN).clamp(1, MANY_HALF_OPEN);
        let holds_many = syn_queue.is_some_and(|all| all >= many);
        if length > 0 || holds_many {
            self.record.get_or_insert_default().was_active(at);
        }
        if let Some(record) = &mut self.record {
            let verdict = (length > 0).then(|| look(record));
            record.scanned(at, length, verdict, beside.half_open.unwrap_or_default(), open);
            view.queue = verdict.map(|verdict| QueueScan {
                oldest: verdict.oldest,
                abandoned: verdict.abandoned,
                drain_rate: record.drain_rate(at, length, verdict),
            });
            let left = verdict.map_or(0, |verdict| verdict.left);
            *self.shown.abandoned_total.get_or_insert(0) += left;
        }
        self.shown.scan = Some(view);
    }

    fn opened(&mut self, at: Duration, open: Option<u64>) -> Open {
        if let Some(open) = open {
            let slot = Window::new(OPEN_WINDOW).slot_at(at);
            self.most_open.record(slot, u32::try_from(open).unwrap_or(u32::MAX));
        }
        self.shown.most_open = u64::from(self.most_open.largest());
        Open { now: open, most: self.shown.most_open }
    }

    /// Discards the last scan, which is too old.
    pub(super) fn forget_scan(&mut self) {
        self.shown.scan = None;
        if let Some(record) = &mut self.record {
            record.forget_scan();
        }
    }

    /// Updates the diagnoses from the record.
    ///
    /// `evidence` contains facts from the sockets and the namespace. `repeated_cookies` is the
    /// share of the namespace's overflows that repeat a cookie.
    pub(super) fn conclude(
        &mut self,
        now: Duration,
        evidence: Evidence,
        repeated_cookies: f64,
    ) -> Option<IncidentEvent> {
        if self.closed_at.is_some_and(|closed| !is_restart(closed, now)) {
            self.end();
            return self.take_event();
        }
        let record = self.record.as_mut()?;
        let queue = self.shown.queue.as_ref();
        let watched = now.saturating_sub(self.opened_at).min(trailing::covered(now));
        let (peak_ratio, is_loaded) = (peak_ratio(queue), is_loaded(queue));
        let counts_overflows = self.shown.overflows.is_some();
        let evidence = Evidence { watched, peak_ratio, is_loaded, counts_overflows, ..evidence };
        let (case, event) = record.conclude(now, evidence, repeated_cookies);
        if record.is_in_trouble() || peak_ratio > NEAR_LIMIT {
            self.alert_owner.troubled(now);
        }
        let is_shown = self.closed_at.is_none() || record.is_in_trouble();
        self.shown.case = is_shown.then_some(case);
        self.shown.patience = record.scans.leavers.patience(now);
        self.shown.abandoned_ratio = record.scans.leavers.share(now);
        if record.is_over(now) {
            (self.record, self.shown.case) = (None, None);
        }
        self.show_lengths();
        event
    }

    fn show_lengths(&mut self) {
        let lengths = self.lengths.as_deref();
        if lengths.map(|new| new.count) != self.shown.lengths.as_ref().map(|old| old.count) {
            self.shown.lengths = lengths.cloned().map(Arc::new);
        }
    }

    /// Updates the owner that alerts name. Returns whether the owner changed.
    pub(super) fn name_alert_owner(&mut self, now: Duration) -> bool {
        let Self { alert_owner, shown, .. } = self;
        let owner = alert_owner.update(now, &shown.owner);
        let is_same = owner.map(Arc::as_ptr) == shown.alert_owner.as_ref().map(Arc::as_ptr);
        if !is_same {
            shown.alert_owner = owner.cloned();
        }
        !is_same
    }

    /// Whether the listener has a diagnosis that holds.
    pub(super) fn is_in_trouble(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.is_in_trouble())
    }

    /// Applies a reading of the owner. `taken_at` is the last time at which a sample saw an
    /// accepted connection; `has_accepted` is whether any is known.
    pub(super) fn owner_read(
        &mut self,
        now: Duration,
        owner: &Arc<OwnerReading>,
        taken_at: Option<Duration>,
        has_accepted: bool,
    ) {
        let limit = self.shown.queue.as_ref().and_then(|queue| queue.limit);
        let Some(record) = &mut self.record else { return };
        let by_samples = taken_at.map(|at| now.saturating_sub(at));
        let by_scans = record.untaken();
        let taken_ago = by_samples.into_iter().chain(by_scans).min();
        let open_connections = self.shown.open_connections();
        let facts = ListenerFacts { taken_ago, open_connections, limit, has_accepted };
        record.causes.read(now, owner.clone(), facts);
    }

    /// Applies the number of connections that the listener accepted; `None` if the number is
    /// unknown. Returns whether the view changed.
    pub(super) fn accepted(&mut self, now: Duration, accepted: Option<u64>) -> bool {
        let Some(accepted) = accepted else {
            self.flow = None;
            return self.shown.accepts.take().is_some();
        };
        let totals = Totals {
            connection_seconds: self.shown.connection_seconds,
            full_seconds: self.shown.full_seconds.unwrap_or(0.0),
            overflows: self.overflows,
            length: self.tally.length,
        };
        let flow = self.flow.get_or_insert_with(|| Box::new(Flow::new(now, totals)));
        let shown = flow.accepted(now, accepted, totals);
        let is_due = shown.is_some();
        self.shown.accepts = shown.or_else(|| self.shown.accepts.take());
        is_due
    }

    /// Whether any sample showed the listener with an empty queue: then listenq watched since
    /// before the waiting connections arrived.
    pub(super) fn was_empty(&self) -> bool {
        self.was_empty
    }

    /// Takes the incident that ended because the listener was closed.
    pub(super) fn take_event(&mut self) -> Option<IncidentEvent> {
        self.event.take().map(|event| *event)
    }

    /// Closes the listener, which has no socket: its counters stay for the grace time and its
    /// gauges end. Its history stays for a restart.
    pub(super) fn close(&mut self, now: Duration) {
        (self.shown.sockets, self.shown.queue, self.full) = (0, None, false);
        self.shown.scan = None;
        (self.shown.patience, self.shown.abandoned_ratio) = (None, None);
        (self.shown.accepts, self.flow) = (None, None);
        (self.shown.lengths, self.lengths) = (None, None);
        (self.shown.most_open, self.most_open) = (0, Peak::default());
        if let Some(record) = &mut self.record {
            record.closed();
            self.shown.case = self.shown.case.take().filter(|_| record.is_in_trouble());
        }
        self.closed_at.get_or_insert(now);
    }

    /// Ends the incident and removes the diagnoses: the listener is closed for good.
    pub(super) fn end(&mut self) {
        self.shown.case = None;
        if let Some(event) = self.record.take().and_then(|mut record| record.end()) {
            self.event = Some(Box::new(event));
        }
    }

    /// Counts the overflows that the last settlement attributed to the listener. An overflow that
    /// no other listener can have had proves that a queue was full, even if no sample saw the full
    /// queue.
    pub(super) fn take_attributed(&mut self, repeated_cookies: f64, tick: Tick) -> u64 {
        let (attributed, certain) = self.evidence.attributed();
        if attributed > 0 {
            (self.overflowed_at, self.has_mattered) = (Some(tick.now), true);
            self.alert_owner.troubled(tick.now);
        }
        if attributed > 0 && (self.is_open() || self.record.is_some()) {
            let repeated = (attributed as f64 * repeated_cookies).round() as u64;
            self.remember_overflows(tick.now, attributed, repeated, certain);
        }
        if self.shown.drops.is_some() {
            *self.shown.overflows.get_or_insert(0) += attributed;
        }
        self.overflows += attributed;
        if let (true, Some(limit)) = (certain, self.lift) {
            self.peak.record(tick.slot, limit.saturating_add(1));
            if let Some(queue) = &mut self.shown.queue {
                queue.peak_length = u64::from(self.peak.largest());
            }
        }
        if !self.evidence.is_some() || attributed > 0 {
            self.lift = None;
        }
        attributed
    }

    /// Records overflows, and how many of them repeat a cookie.
    fn remember_overflows(&mut self, now: Duration, overflows: u64, repeated: u64, certain: bool) {
        let record = self.record.get_or_insert_default();
        if let (true, Some(limit)) = (certain, self.lift) {
            record.peaked(now, limit.saturating_add(1));
        }
        record.overflowed(now, overflows, repeated, self.tally.limit.unwrap_or(0));
    }

    /// The listener's rank for a place.
    pub(super) fn rank(&self, now: Duration) -> Rank {
        Rank { level: self.level(now), overflows: self.overflows, peak: self.peak.largest() }
    }

    fn level(&self, now: Duration) -> Level {
        let overflowed_within =
            |time| self.overflowed_at.is_some_and(|at| now.saturating_sub(at) < time);
        let is_diagnosed = self.record.as_ref().is_some_and(|record| record.is_diagnosed());
        if is_diagnosed || self.is_open() && overflowed_within(WINDOW) {
            Level::Troubled
        } else if overflowed_within(GRACE) {
            Level::Past
        } else if !self.is_open() {
            Level::Closed
        } else if self.peak.largest() > 0 {
            Level::Queued
        } else {
            Level::Calm
        }
    }

    /// Clears and returns the overflows in the view: the listener has no series, so they count as
    /// unexposed.
    pub(super) fn hide_overflows(&mut self) -> u64 {
        self.shown.overflows.as_mut().map_or(0, std::mem::take)
    }

    /// Whether another identical dump would change nothing.
    pub(super) fn is_at_rest(&self) -> bool {
        self.tally.sockets > 0
            && self.tally.length == 0
            && self.peak.largest() == 0
            && !self.evidence.is_some()
            && self.record.is_none()
            && !self.alert_owner.is_in_incident()
            // Before the first settlement the view has no overflows.
            && self.shown.overflows.is_some() == self.shown.drops.is_some()
    }

    /// Whether the listener queued, dropped or overflowed while listenq watched.
    pub(super) fn has_mattered(&self) -> bool {
        self.has_mattered
    }

    /// Releases the listener's place: the listener is forgotten.
    pub(super) fn leave(&self, admission: &mut Admission, now: Duration) {
        match self.exposure {
            Exposure::Hidden => admission.less_hidden(),
            _ => admission.listeners.forget(self.source, self.name_hash, self.exposure, now),
        }
    }

    /// Whether the listener has a socket.
    pub(super) fn is_open(&self) -> bool {
        self.closed_at.is_none()
    }

    /// Sets the name of the listener from `alias`.
    pub(super) fn call(&mut self, alias: A) {
        self.alias = alias;
        self.shown.name = Arc::new(alias.name());
    }

    /// Whether one of the listener's queues is near its limit.
    pub(super) fn is_near_full(&self) -> bool {
        self.tally.brimming > 0
    }

    /// Whether the listener was closed for longer than it is remembered.
    ///
    /// A listener without series is remembered only until its last overflows are attributed, so
    /// that many short-lived listeners use no memory. A listener that never queued or dropped
    /// anything has no overflows to wait for.
    pub(super) fn is_forgotten(&self, now: Duration) -> bool {
        let remembered = match (self.exposure.is_exposed(), self.has_mattered) {
            (true, true) => GRACE,
            (true, false) => PROBATION,
            (false, false) if self.evidence.is_blank() => NEXT_SAMPLE,
            (false, _) => UNEXPOSED_GRACE,
        };
        self.closed_at.is_some_and(|closed| now.saturating_sub(closed) >= remembered)
    }
}

/// Whether a listener that was closed at `closed_at` counts as restarting at `now`: it was closed
/// for less than the window. A listener may restart repeatedly.
fn is_restart(closed_at: Duration, now: Duration) -> bool {
    now.saturating_sub(closed_at) < WINDOW
}

fn is_loaded(queue: Option<&QueueView>) -> bool {
    queue.and_then(|queue| queue.fullest_ratio).is_some_and(|ratio| ratio > 0.5)
}

fn peak_ratio(queue: Option<&QueueView>) -> f64 {
    let ratio =
        queue.and_then(|queue| Some(queue.peak_length as f64 / (queue.limit? as f64 + 1.0)));
    ratio.unwrap_or(0.0)
}

/// The number of connections that must arrive before this queue overflows; 0 if the limit is
/// unknown.
fn room(queue: AcceptQueue) -> u64 {
    queue.limit.map_or(0, |limit| (u64::from(limit) + 1).saturating_sub(queue.length.into()))
}

/// Adds to a sum; the sum is unknown if any part is unknown.
fn added(first: bool, sum: Option<u64>, part: Option<u64>) -> Option<u64> {
    match first {
        true => part,
        false => Some(sum? + part?),
    }
}
