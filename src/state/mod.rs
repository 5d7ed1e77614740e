//! What became of all samples so far. [`State::fold`] takes in one snapshot after another and knows no clock:
//! time comes in as a value.

mod accepted;
mod attribution;
mod burst;
mod cause_history;
mod connections;
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
pub use record::{Span, Turn};
pub use source::Source;
pub use source::person;

/// How long a closed listener, and the drops of a closed socket, are remembered.
pub const GRACE: Duration = Duration::from_secs(5 * 60);

/// The most namespaces of which something is remembered that ended and were forgotten.
const MOST_TRACES: usize = 4096;

/// What the fold is told once.
#[derive(Clone, Debug)]
pub struct Config {
    /// How long a peak is shown.
    pub peak_window: Duration,
    /// How long a client waits before it gives up.
    pub client_patience: Duration,
    /// From this wait of the first client on every client waits.
    pub standing_wait: Duration,
    /// Which listeners may be shown.
    pub filter: Filter,
    /// How many of them.
    pub max_listeners: usize,
    /// How many namespaces may be shown.
    pub max_namespaces: usize,
    /// How many sockets are tracked.
    pub max_sockets: usize,
}

/// Everything listenq remembers.
#[derive(Debug)]
pub struct State {
    window: Window,
    client_patience: Duration,
    standing_wait: Duration,
    now: Duration,
    /// Snapshots taken in.
    snapshots: u64,
    namespaces: BTreeMap<Arc<str>, Netns>,
    /// Namespaces that ended and were forgotten within the grace time.
    traces: BTreeMap<Arc<str>, Trace>,
    admission: Admission,
    incidents: Vec<Incident>,
}

/// An incident that started or ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Incident {
    /// The namespace.
    pub netns: Arc<str>,
    /// The user, service or namespace that the listener belongs to.
    pub source: Source,
    /// The listener.
    pub name: Arc<ListenerName>,
    /// Who is behind it.
    pub owner: Arc<Owner>,
    /// What is told.
    pub turn: Turn,
    /// When, on the fold's own clock.
    pub at: Duration,
}

/// When a sample was taken.
#[derive(Clone, Copy, Debug)]
struct Tick {
    /// On the fold's own clock.
    now: Duration,
    /// Which snapshot it is, counted: two may be taken at the same time of the clock.
    snapshot: u64,
    /// In seconds since 1970.
    unix_time: f64,
    /// The slot of the peak window it falls into.
    slot: Slot,
    /// From this wait of the first client on every client waits.
    standing_wait: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            peak_window: Duration::from_secs(150),
            client_patience: Duration::from_secs(60),
            standing_wait: Duration::from_secs(1),
            filter: Filter::default(),
            max_listeners: 1000,
            max_namespaces: 512,
            max_sockets: 20_000,
        }
    }
}

// === impl State ===

impl State {
    /// Nothing seen yet.
    pub fn new(config: Config) -> Self {
        let Config {
            peak_window,
            client_patience,
            standing_wait,
            filter,
            max_listeners,
            max_namespaces,
            max_sockets,
        } = config;
        Self {
            window: Window::new(peak_window),
            client_patience,
            standing_wait,
            now: Duration::ZERO,
            snapshots: 0,
            namespaces: BTreeMap::new(),
            traces: BTreeMap::new(),
            admission: Admission::new(filter, max_listeners, max_namespaces, max_sockets),
            incidents: Vec::new(),
        }
    }

    /// What is left out because there is too much of it.
    pub fn omissions(&self) -> Omissions {
        Omissions {
            listeners: self.admission.omitted_listeners(),
            namespaces: self.admission.omitted_namespaces(),
            sockets: self.admission.tracking.omitted(),
            tracked_sockets: self.admission.tracking.tracked(),
            unexposed_overflows: self.admission.unexposed_overflows(),
        }
    }

    /// Takes in one snapshot, taken `elapsed` after the last.
    pub fn fold(&mut self, snapshot: &Snapshot, elapsed: Duration) {
        self.now += elapsed;
        self.snapshots += 1;
        let tick = Tick {
            now: self.now,
            snapshot: self.snapshots,
            unix_time: snapshot.unix_time,
            slot: self.window.slot_at(self.now),
            standing_wait: self.standing_wait,
        };
        for sample in &snapshot.namespaces {
            match self.namespaces.get_mut(&sample.name) {
                Some(netns) if netns.id() == sample.id && !netns.has_ended() => {
                    netns.fold(sample, tick, &mut self.admission);
                    netns.conclude(tick.now, &mut self.admission, &mut self.incidents);
                }
                // Another namespace of the same name is an ordinary counter reset.
                _ => self.first_sight(sample, tick),
            }
        }
        if self.namespaces.len() > snapshot.namespaces.len() {
            self.end_missing(tick);
        }
        if !snapshot.looks.is_empty() {
            for netns in self.namespaces.values_mut() {
                netns.look(self.now, &snapshot.looks);
            }
        }
        if !snapshot.claims.is_empty() {
            for netns in self.namespaces.values_mut() {
                netns.claim(&snapshot.claims);
            }
        }
        if self.admission.tracking.excess() > 0 {
            let tracking = &mut self.admission.tracking;
            self.namespaces.values_mut().for_each(|netns| netns.trim(tracking, tick.now));
        }
        if self.admission.is_due(self.now) {
            self.give_places();
        }
        if self.admission.is_urgent() {
            self.admission.calm_down();
            let hidden = self.namespaces.values_mut().map(Netns::hide_overflows).sum();
            self.admission.count_unexposed(hidden);
        }
    }

    /// The inodes of all sockets that are tracked.
    pub fn inodes(&self) -> impl Iterator<Item = u32> {
        self.namespaces.values().flat_map(Netns::inodes)
    }

    /// The sockets of listeners in trouble whose owner is known: their owners are to be looked at.
    pub fn watched(&self) -> Vec<WatchedSocket> {
        self.namespaces.values().flat_map(Netns::watched).collect()
    }

    /// Incidents that started or ended since this was last asked.
    pub fn take_incidents(&mut self) -> impl Iterator<Item = Incident> {
        self.incidents.drain(..)
    }

    /// Copies what is known into `view`, into the memory it already has where that is enough.
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
        let mut netns = Netns::new(sample, is_newborn, exposure, tick.now);
        if !is_newborn || is_replacement {
            self.admission.hurry();
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

    /// Gives series to the namespaces and listeners that are worth most.
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

    /// Only listeners of namespaces that have series can have some.
    fn give_listener_places(&mut self) -> usize {
        let (now, admission) = (self.now, &mut self.admission);
        let mut candidates = Vec::new();
        for (name, netns) in self.namespaces.iter().filter(|(_, netns)| netns.is_exposed()) {
            let of = |candidate: Candidate<Key>| candidate.with_key((name, candidate.key));
            candidates.extend(netns.candidates(now).map(of));
        }
        let own = |(name, key): (&Arc<str>, Key)| (Arc::clone(name), key);
        let changes = admission.listeners.assign(&candidates, now).map(own);
        for (name, key) in &changes.outgoing {
            if let Some(netns) = self.namespaces.get_mut(name) {
                admission.more_hidden();
                netns.omit_listener(*key);
            }
        }
        for ((name, key), is_paid) in &changes.incoming {
            if let Some(netns) = self.namespaces.get_mut(name) {
                admission.less_hidden();
                netns.expose_listener(*key, Exposure::Exposed { since: now, is_paid: *is_paid });
            }
        }
        changes.len()
    }
}
