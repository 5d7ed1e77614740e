//! What became of all samples so far. [`State::fold`] takes in one snapshot after another and knows no clock:
//! time comes in as a value.

mod attribution;
mod burst;
mod cause_history;
mod connections;

mod exposure;
mod group;
mod held;
#[cfg(test)]
mod laws;
mod listener;
mod netns;
mod peak;
mod record;
mod refusals;
mod ring;
mod scans;
mod socket;
mod trailing;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::self_stats::SelfStats;
use crate::snapshot::owner::Owner;
use crate::snapshot::owner_reading::WatchedSocket;
use crate::snapshot::{NetnsSample, Snapshot};
use crate::view::{ListenerName, NetnsView, View};

pub use exposure::Filter;
use exposure::{Admission, Candidate};
use netns::{Key, Netns};
use peak::{Slot, Window};
pub use record::{Span, Turn};

/// How long a closed listener, and the drops of a closed socket, are remembered.
pub const GRACE: Duration = Duration::from_secs(5 * 60);

/// What the fold is told once.
#[derive(Clone, Debug)]
pub struct Config {
    /// How long a peak is shown.
    pub peak_window: Duration,
    /// How long a client waits before it gives up.
    pub client_patience: Duration,
    /// Which listeners may be shown.
    pub filter: Filter,
    /// How many of them.
    pub max_listeners: usize,
}

/// Everything listenq remembers.
#[derive(Debug)]
pub struct State {
    window: Window,
    client_patience: Duration,
    now: Duration,
    /// Snapshots taken in.
    snapshots: u64,
    namespaces: BTreeMap<Arc<str>, Netns>,
    admission: Admission,
    incidents: Vec<Incident>,
}

/// An incident that started or ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Incident {
    /// The namespace.
    pub netns: Arc<str>,
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
}

impl Default for Config {
    fn default() -> Self {
        Self {
            peak_window: Duration::from_secs(150),
            client_patience: Duration::from_secs(60),
            filter: Filter::default(),
            max_listeners: 1000,
        }
    }
}

// === impl State ===

impl State {
    /// Nothing seen yet.
    pub fn new(config: Config) -> Self {
        let Config { peak_window, client_patience, filter, max_listeners } = config;
        Self {
            window: Window::new(peak_window),
            client_patience,
            now: Duration::ZERO,
            snapshots: 0,
            namespaces: BTreeMap::new(),
            admission: Admission::new(filter, max_listeners),
            incidents: Vec::new(),
        }
    }

    /// Listeners that are not shown because there are too many.
    pub fn omitted(&self) -> usize {
        self.admission.omitted()
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
        };
        for sample in &snapshot.namespaces {
            match self.namespaces.get_mut(&sample.name) {
                Some(netns) if netns.id() == sample.id && !netns.has_ended() => {
                    netns.fold(sample, tick, &mut self.admission);
                    netns.conclude(tick.now, &mut self.incidents);
                }
                // Another namespace of the same name is an ordinary counter reset.
                _ => self.first_sight(sample, tick),
            }
        }
        if self.namespaces.len() > snapshot.namespaces.len() {
            self.end_missing();
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
        if self.admission.is_due(self.now) {
            self.give_places();
        }
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
        view.namespaces.resize_with(self.namespaces.len(), NetnsView::default);
        for (shown, netns) in view.namespaces.iter_mut().zip(self.namespaces.values()) {
            netns.show(shown);
        }
    }

    fn first_sight(&mut self, sample: &NetnsSample, tick: Tick) {
        let replaced = self.namespaces.remove(&sample.name);
        if let Some(replaced) = &replaced {
            replaced.leave(&mut self.admission);
        }
        let is_back = replaced.is_some_and(|replaced| replaced.may_be_back_in(sample));
        let mut netns = Netns::new(sample, sample.is_newborn && !is_back);
        netns.fold(sample, tick, &mut self.admission);
        self.namespaces.insert(sample.name.clone(), netns);
    }

    fn end_missing(&mut self) {
        let (now, snapshot) = (self.now, self.snapshots);
        let (admission, incidents) = (&mut self.admission, &mut self.incidents);
        self.namespaces.retain(|_, netns| {
            if !netns.was_part_of(snapshot) {
                netns.end(now, admission);
                netns.conclude(now, incidents);
            }
            let is_forgotten = netns.is_forgotten(now);
            if is_forgotten {
                netns.leave(admission);
            }
            !is_forgotten
        });
    }

    fn give_places(&mut self) {
        let mut candidates = Vec::new();
        for (name, netns) in &self.namespaces {
            let of = |candidate: Candidate<Key>| candidate.with_key((name, candidate.key));
            candidates.extend(netns.candidates().map(of));
        }
        let (incoming, outgoing) = self.admission.changes(&candidates, self.now);
        let owned = |keys: Vec<(&Arc<str>, Key)>| -> Vec<(Arc<str>, Key)> {
            keys.into_iter().map(|(name, key)| (name.clone(), key)).collect()
        };
        let (incoming, outgoing) = (owned(incoming), owned(outgoing));
        for (name, key) in outgoing {
            if let Some(netns) = self.namespaces.get_mut(&name) {
                netns.omit(key);
                self.admission.omit();
            }
        }
        for (name, key) in incoming {
            if let Some(netns) = self.namespaces.get_mut(&name) {
                netns.expose(key, self.now);
                self.admission.expose();
            }
        }
    }
}
