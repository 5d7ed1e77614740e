//! One network namespace: its sockets, listeners and counters, and how they go together.

use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;
use slab::Slab;

use crate::snapshot::{
    Counter, Counters, Dump, ListenAddress, ListenSocket, NetnsSample, Settings,
};
use crate::view::NetnsView;

use super::blame::{Ledger, Suspect};
use super::listener::Listener;
use super::peak::Slot;
use super::socket::Sockets;

/// Time is credited only over gaps of at most so many intervals: a longer one is a stall or a suspend.
const CREDITED_INTERVALS: u32 = 10;

/// When a sample was taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tick {
    /// On the fold's own clock.
    pub(super) now: Duration,
    /// In seconds since 1970.
    pub(super) unix: f64,
    /// The interval at which samples are meant to come just now.
    pub(super) interval: Duration,
    /// The slot of the peak window it falls into.
    pub(super) slot: Slot,
}

/// A namespace with its history.
#[derive(Debug)]
pub(super) struct Netns {
    name: Arc<str>,
    sockets: Sockets,
    listeners: Slab<Listener>,
    by_address: FxHashMap<ListenAddress, usize>,
    ledger: Ledger,
    counters: Counters,
    settings: Settings,
    sampled_at: Option<Duration>,
    sampled_unix: Option<f64>,
    sampled_seconds: f64,
    drops_missing: bool,
    unexposed: u64,
}

// === impl Netns ===

impl Netns {
    /// A namespace just seen for the first time.
    pub(super) fn new(name: Arc<str>) -> Self {
        Self {
            name,
            sockets: Sockets::default(),
            listeners: Slab::new(),
            by_address: FxHashMap::default(),
            ledger: Ledger::default(),
            counters: Counters::default(),
            settings: Settings::default(),
            sampled_at: None,
            sampled_unix: None,
            sampled_seconds: 0.0,
            drops_missing: false,
            unexposed: 0,
        }
    }

    /// Takes in one sample. What it could not read stays as it was.
    pub(super) fn fold(&mut self, sample: &NetnsSample, tick: Tick) {
        if let Some(settings) = sample.settings {
            self.settings = settings;
        }
        // Without a dump the counters wait too: overflows are charged to what the dump says.
        let Some(dump) = &sample.dump else { return };
        self.fold_dump(dump, tick);
        let overflows = self.fold_counters(sample);
        self.settle(overflows, tick.slot);
        self.forget(tick.now);
    }

    /// Copies what is shown into `view`, into the memory it already has.
    pub(super) fn show(&self, view: &mut NetnsView) {
        let NetnsView {
            name,
            sampled_at,
            sampled_unix,
            sampled_seconds,
            counters,
            settings,
            unattributed_overflows,
            unexposed_overflows,
            listeners,
        } = view;
        name.clone_from(&self.name);
        *sampled_at = self.sampled_at;
        *sampled_unix = self.sampled_unix;
        *sampled_seconds = self.sampled_seconds;
        *counters = self.counters;
        *settings = self.settings;
        *unattributed_overflows = self.knows_overflows().then(|| self.ledger.unattributed());
        *unexposed_overflows = self.knows_overflows().then_some(self.unexposed);
        listeners.truncate(self.listeners.len());
        let mut source = self.listeners.iter().map(|(_, listener)| &listener.shown);
        for (old, new) in listeners.iter_mut().zip(&mut source) {
            old.clone_from(new);
        }
        listeners.extend(source.cloned());
    }

    fn fold_dump(&mut self, dump: &Dump, tick: Tick) {
        self.credit(tick);
        self.sockets.begin_dump();
        for (nth, row) in dump.sockets.iter().enumerate() {
            self.see(nth, row);
        }
        let (listeners, ledger) = (&mut self.listeners, &self.ledger);
        self.sockets.end_dump(tick.now, |socket| {
            listeners[socket.listener].suspect.vanished(ledger, socket.queue.is_full());
        });
        for socket in self.sockets.living() {
            self.listeners[socket.listener].add(socket);
        }
        for (_, listener) in &mut self.listeners {
            listener.end_sample(tick.slot, tick.now);
            if listener.holds_a_queue() {
                listener.suspect.queued(&self.ledger);
            }
        }
    }

    fn credit(&mut self, tick: Tick) {
        let gap = self.sampled_at.map_or(Duration::ZERO, |at| tick.now.saturating_sub(at));
        let gap = match gap <= tick.interval * CREDITED_INTERVALS {
            true => gap,
            false => Duration::ZERO,
        };
        for (_, listener) in &mut self.listeners {
            listener.begin_sample(gap);
        }
        self.sampled_seconds += gap.as_secs_f64();
        self.sampled_at = Some(tick.now);
        self.sampled_unix = Some(tick.unix);
    }

    fn see(&mut self, nth: usize, row: &ListenSocket) {
        let listener = match self.sockets.listener_of(nth, row.cookie) {
            Some(known) if self.listeners[known].address == row.address => known,
            _ => self.listener_at(row.address),
        };
        let drops = self.sockets.see(nth, row, listener);
        if drops > 0 {
            self.listeners[listener].dropped(drops);
        }
        self.drops_missing |= row.drops.is_none();
    }

    fn listener_at(&mut self, address: ListenAddress) -> usize {
        let listeners = &mut self.listeners;
        *self.by_address.entry(address).or_insert_with(|| listeners.insert(Listener::new(address)))
    }

    /// Takes over the counters; the growth of `ListenOverflows` since it was last read, if it was read.
    fn fold_counters(&mut self, sample: &NetnsSample) -> Option<u64> {
        let before = self.counters.get(Counter::ListenOverflows);
        for counters in [&sample.netstat, &sample.snmp].into_iter().flatten() {
            self.counters.update(counters);
        }
        let after = sample.netstat?.get(Counter::ListenOverflows)?;
        // The first reading is a baseline.
        Some(after.saturating_sub(before.unwrap_or(after)))
    }

    fn settle(&mut self, overflows: Option<u64>, slot: Slot) {
        if !self.knows_overflows() {
            return;
        }
        let mut suspects: Vec<&mut Suspect> = self
            .listeners
            .iter_mut()
            .map(|(_, listener)| &mut listener.suspect)
            .filter(|suspect| suspect.is_suspected())
            .collect();
        self.ledger.settle(overflows, &mut suspects);
        for (_, listener) in &mut self.listeners {
            listener.charged(slot);
        }
    }

    /// Without drops nobody can be charged; without the kernel's counter there is nothing to charge.
    fn knows_overflows(&self) -> bool {
        !self.drops_missing && self.counters.get(Counter::ListenOverflows).is_some()
    }

    fn forget(&mut self, now: Duration) {
        self.sockets.forget(now);
        let (by_address, unexposed) = (&mut self.by_address, &mut self.unexposed);
        self.listeners.retain(|_, listener| {
            let forgotten = listener.is_forgotten(now);
            if forgotten {
                by_address.remove(&listener.address);
                *unexposed += listener.shown.overflows.unwrap_or(0);
            }
            !forgotten
        });
    }
}
