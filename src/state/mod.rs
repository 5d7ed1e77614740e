//! The accumulated state of all samples. [`State::fold`] applies one snapshot after another and
//! reads no clock: time is an argument.

mod accepted;
mod alert_owner;
mod attribution;
mod burst;
mod cause_history;
mod clients;
mod connections;
mod cookie_credit;
mod exposure;
mod group;
mod held;
#[cfg(test)]
mod laws;
mod leavers;
mod listener;
mod netns;
mod peak;
mod places;
mod record;
mod refusals;
mod ring;
mod scans;
mod socket;
mod source;
mod tracking;
mod trailing;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub use crate::self_stats::Omissions;
use crate::self_stats::SelfStats;
use crate::snapshot::owner::Owner;
use crate::snapshot::owner_reading::WatchedSocket;
use crate::snapshot::{NetnsSample, Snapshot};
use crate::view::{ListenerName, NetnsView, View};

pub use exposure::Filter;
use exposure::{Admission, Exposure};
use netns::{Key, Netns, Trace};
use peak::{Slot, Window};
use places::Candidate;
pub use record::{IncidentEvent, IncidentSummary};
pub use source::Source;

/// How long a closed listener, and the drops of a closed socket, are remembered.
pub const GRACE: Duration = Duration::from_secs(5 * 60);

/// The most ended namespaces for which a [`Trace`] is kept after they are forgotten.
const MOST_TRACES: usize = 4096;

/// The settings of [`State`].
#[derive(Clone, Debug)]
pub struct Config {
    /// How long a peak is shown.
    pub peak_window: Duration,
    /// How long a client waits before it gives up.
    pub client_patience: Duration,
    /// Every client counts as waiting if the first client has waited for this time or longer.
    pub standing_wait: Duration,
    /// Whether the addresses of clients are counted and shown.
    pub names_clients: bool,
    /// Selects the listeners that may have series.
    pub filter: Filter,
    /// The most listeners that have series.
    pub max_listeners: usize,
    /// The most namespaces that have series.
    pub max_namespaces: usize,
    /// The number of sockets that are tracked.
    pub max_sockets: usize,
}

/// All state of listenq that persists between samples.
#[derive(Debug)]
pub struct State {
    window: Window,
    client_patience: Duration,
    standing_wait: Duration,
    names_clients: bool,
    now: Duration,
    /// The number of snapshots applied.
    snapshots: u64,
    namespaces: BTreeMap<Arc<str>, Netns>,
    /// Ended namespaces that were forgotten within the grace time.
    traces: BTreeMap<Arc<str>, Trace>,
    admission: Admission,
    /// The candidates of the last assignment of places, with the position of their namespace. Kept
    /// to reuse the allocation, which is some megabytes for many listeners.
    candidates: Vec<Candidate<(usize, Key)>>,
    incidents: Vec<IncidentNotice>,
}

/// An incident that started or ended.
#[derive(Clone, Debug, PartialEq)]
pub struct IncidentNotice {
    pub netns: Arc<str>,
    /// The user, service or namespace that the listener belongs to.
    pub source: Source,
    pub name: Arc<ListenerName>,
    /// The owner of the listener.
    pub owner: Arc<Owner>,
    /// The start or the end of the incident.
    pub event: IncidentEvent,
    /// The time, on the clock of the fold.
    pub at: Duration,
}

/// The time of a sample.
#[derive(Clone, Copy, Debug)]
struct Tick {
    /// The time on the clock of the fold.
    now: Duration,
    /// The number of the snapshot: two snapshots may have the same `now`.
    snapshot: u64,
    /// The time in seconds since 1970.
    unix_time: f64,
    /// The slot of the peak window that contains `now`.
    slot: Slot,
    /// Every client counts as waiting if the first client has waited for this time or longer.
    standing_wait: Duration,
    /// Whether the addresses of clients are counted and shown.
    names_clients: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            peak_window: Duration::from_secs(150),
            client_patience: Duration::from_secs(60),
            standing_wait: Duration::from_secs(1),
            names_clients: true,
            filter: Filter::default(),
            max_listeners: 1000,
            max_namespaces: 512,
            max_sockets: 12_000,
        }
    }
}

// === impl State ===

impl State {
    /// Creates an empty state.
    pub fn new(config: Config) -> Self {
        let Config {
            peak_window,
            client_patience,
            standing_wait,
            names_clients,
            filter,
            max_listeners,
            max_namespaces,
            max_sockets,
        } = config;
        Self {
            window: Window::new(peak_window),
            client_patience,
            standing_wait,
            names_clients,
            now: Duration::ZERO,
            snapshots: 0,
            namespaces: BTreeMap::new(),
            traces: BTreeMap::new(),
            admission: Admission::new(filter, max_listeners, max_namespaces, max_sockets),
            candidates: Vec::new(),
            incidents: Vec::new(),
        }
    }

    /// The numbers of listeners, namespaces and sockets that are left out because of the limits.
    pub fn omissions(&self) -> Omissions {
        Omissions {
            listeners: self.admission.omitted_listeners(),
            namespaces: self.admission.omitted_namespaces(),
            sockets: self.admission.tracking.omitted(),
            tracked_sockets: self.admission.tracking.tracked(),
            unexposed_overflows: self.admission.unexposed_overflows(),
        }
    }

    /// Applies one snapshot that was taken `elapsed` after the previous one.
    pub fn fold(&mut self, snapshot: &Snapshot, elapsed: Duration) {
        self.now += elapsed;
        self.snapshots += 1;
        let tick = self.tick(snapshot.unix_time);
        for sample in &snapshot.namespaces {
            self.fold_netns(sample, tick);
        }
        if self.namespaces.len() > snapshot.namespaces.len() {
            self.end_missing(tick);
        }
        self.apply_owners(snapshot);
        if self.admission.tracking.excess() > 0 {
            let tracking = &mut self.admission.tracking;
            self.namespaces.values_mut().for_each(|netns| netns.trim(tracking, tick.now));
        }
        if self.admission.is_due(self.now) {
            self.give_places();
        }
        if self.admission.end_sample() {
            let hidden = self.namespaces.values_mut().map(Netns::hide_overflows).sum();
            self.admission.count_unexposed(hidden);
        }
    }

    fn tick(&self, unix_time: f64) -> Tick {
        Tick {
            now: self.now,
            snapshot: self.snapshots,
            unix_time,
            slot: self.window.slot_at(self.now),
            standing_wait: self.standing_wait,
            names_clients: self.names_clients,
        }
    }

    fn fold_netns(&mut self, sample: &NetnsSample, tick: Tick) {
        match self.namespaces.get_mut(&sample.name) {
            Some(netns) if netns.id() == sample.id && !netns.has_ended() => {
                netns.fold(sample, tick, &mut self.admission);
                netns.conclude(tick.now, &mut self.admission, &mut self.incidents);
            }
            // A different namespace with the same name is an ordinary counter reset.
            _ => self.first_sight(sample, tick),
        }
    }

    /// Applies the readings of owners, and the owners that were found.
    fn apply_owners(&mut self, snapshot: &Snapshot) {
        if !snapshot.owner_readings.is_empty() {
            for netns in self.namespaces.values_mut() {
                netns.apply_owner_readings(self.now, &snapshot.owner_readings);
            }
        }
        if !snapshot.owners.is_empty() {
            for netns in self.namespaces.values_mut() {
                netns.set_owners(&snapshot.owners);
            }
        }
    }

    /// The inodes of all tracked sockets.
    pub fn inodes(&self) -> impl Iterator<Item = u32> {
        self.namespaces.values().flat_map(Netns::inodes)
    }

    /// The sockets of listeners in trouble whose owner is known; their owners are to be read.
    pub fn watched(&self) -> Vec<WatchedSocket> {
        self.namespaces.values().flat_map(Netns::watched).collect()
    }

    /// Takes the incidents that started or ended since the last call.
    pub fn take_incidents(&mut self) -> impl Iterator<Item = IncidentNotice> {
        self.incidents.drain(..)
    }

    /// Copies the state into `view` and reuses the memory of `view` if it is large enough.
    pub fn show(&self, stats: &SelfStats, view: &mut View) {
        view.now = self.now;
        view.client_patience = self.client_patience;
        view.stats.clone_from(stats);
        let exposed = || self.namespaces.values().filter(|netns| netns.is_exposed());
        view.namespaces.resize_with(exposed().count(), NetnsView::default);
        for (shown, netns) in view.namespaces.iter_mut().zip(exposed()) {
            netns.show(shown);
        }
    }

    fn first_sight(&mut self, sample: &NetnsSample, tick: Tick) {
        let mut replaced = self.namespaces.remove(&sample.name);
        if let Some(replaced) = &mut replaced {
            replaced.leave(self.now, &mut self.admission);
        }
        let is_replacement = replaced.is_some();
        let trace = replaced.map(|replaced| replaced.trace()).or(self.traces.remove(&sample.name));
        let is_back = trace.is_some_and(|trace| trace.may_be_back_in(sample));
        let exposure = self.admission.enter_netns();
        let is_newborn = sample.is_newborn && !is_back;
        let mut netns = Netns::new(sample, is_newborn, exposure, tick);
        if is_replacement {
            self.admission.hurry();
        } else if !is_newborn {
            self.admission.hurry_newcomer();
        }
        netns.fold(sample, tick, &mut self.admission);
        self.namespaces.insert(sample.name.clone(), netns);
    }

    fn end_missing(&mut self, tick: Tick) {
        let (now, snapshot) = (tick.now, tick.snapshot);
        let (admission, incidents) = (&mut self.admission, &mut self.incidents);
        let traces = &mut self.traces;
        self.namespaces.retain(|name, netns| {
            if !netns.was_part_of(snapshot) {
                netns.end(tick, admission);
                netns.conclude(now, admission, incidents);
            }
            let is_forgotten = netns.is_forgotten(now);
            if is_forgotten {
                netns.leave(now, admission);
                traces.insert(name.clone(), netns.trace());
            }
            !is_forgotten
        });
        traces.retain(|_, trace| now.saturating_sub(trace.ended_at) < GRACE);
        while traces.len() > MOST_TRACES {
            let oldest = traces.iter().min_by_key(|(_, trace)| trace.ended_at);
            let Some(name) = oldest.map(|(name, _)| name.clone()) else { break };
            traces.remove(&name);
        }
    }

    /// Assigns places to the namespaces and listeners with the highest rank.
    fn give_places(&mut self) {
        let changes = self.give_netns_places() + self.give_listener_places();
        self.admission.given(self.now, changes);
    }

    fn give_netns_places(&mut self) -> usize {
        let (now, admission) = (self.now, &mut self.admission);
        let candidates: Vec<_> = self
            .namespaces
            .iter()
            .map(|(name, netns)| netns.candidate(now).with_key(name))
            .collect();
        let changes = admission.namespaces.assign(&candidates, now).map(Arc::clone);
        for name in &changes.outgoing {
            if let Some(netns) = self.namespaces.get_mut(name) {
                admission.more_hidden();
                netns.omit(now, admission);
            }
        }
        for (name, is_paid) in &changes.incoming {
            if let Some(netns) = self.namespaces.get_mut(name) {
                admission.less_hidden();
                netns.expose(Exposure::Exposed { since: now, is_paid: *is_paid });
            }
        }
        changes.len()
    }

    /// Assigns places to listeners; only listeners of namespaces with series can have series.
    fn give_listener_places(&mut self) -> usize {
        let (now, admission, candidates) = (self.now, &mut self.admission, &mut self.candidates);
        candidates.clear();
        let exposed = self.namespaces.values().enumerate().filter(|(_, netns)| netns.is_exposed());
        for (nth, netns) in exposed {
            let of = |candidate: Candidate<Key>| candidate.with_key((nth, candidate.key));
            candidates.extend(netns.candidates(now).map(of));
        }
        let changes = admission.listeners.assign(candidates, now);
        for (nth, key) in &changes.outgoing {
            if let Some(netns) = self.namespaces.values_mut().nth(*nth) {
                admission.more_hidden();
                netns.omit_listener(*key);
            }
        }
        for ((nth, key), is_paid) in &changes.incoming {
            if let Some(netns) = self.namespaces.values_mut().nth(*nth) {
                admission.less_hidden();
                netns.expose_listener(*key, Exposure::Exposed { since: now, is_paid: *is_paid });
            }
        }
        changes.len()
    }
}
