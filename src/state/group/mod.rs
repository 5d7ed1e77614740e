//! The listeners of one namespace and protocol, and the sockets behind them.

mod causes;
mod conclude;
mod scan;

use std::cmp::Reverse;
use std::time::Duration;

use rustc_hash::FxHashMap;
use slab::Slab;

use crate::snapshot::{Claims, Dump, ListenSocket};
use crate::view::ListenerView;

use crate::state::Tick;
use crate::state::attribution::{Ledger, Suspect};
use crate::state::exposure::{Admission, Candidate, Exposure};
use crate::state::listener::{Address, Listener};
use crate::state::socket::Sockets;

pub(super) use conclude::Context;

/// Time is credited only over gaps of at most so many intervals: a longer one is a stall or a suspend.
const CREDITED_INTERVALS: u32 = 10;

/// Listeners that are dumped together.
#[derive(Debug)]
pub(super) struct Group<A> {
    sockets: Sockets,
    listeners: Slab<Listener<A>>,
    by_address: FxHashMap<A, usize>,
    sampled_at: Option<Duration>,
    /// Whether the same dump again would change nothing.
    at_rest: bool,
    /// Goes up whenever anything that is shown may have changed.
    revision: u64,
    drops_missing: bool,
    /// Listeners first seen in this dump.
    newcomers: Vec<usize>,
}

// === impl Group ===

impl<A: Address> Group<A> {
    /// No listeners yet; what the first `baseline_dumps` show was there before.
    pub(super) fn new(baseline_dumps: u64) -> Self {
        Self {
            sockets: Sockets::new(baseline_dumps),
            listeners: Slab::new(),
            by_address: FxHashMap::default(),
            sampled_at: None,
            at_rest: false,
            revision: 0,
            drops_missing: false,
            newcomers: Vec::new(),
        }
    }

    /// When the last good dump was taken.
    pub(super) fn sampled_at(&self) -> Option<Duration> {
        self.sampled_at
    }

    /// Whether a row came without drops: then nobody can be charged.
    pub(super) fn lacks_drops(&self) -> bool {
        self.drops_missing
    }

    /// What is shown of each listener that has series.
    pub(super) fn shown(&self) -> impl Iterator<Item = &ListenerView> {
        let exposed = self.listeners.iter().filter(|(_, listener)| listener.exposure.is_exposed());
        exposed.map(|(_, listener)| &listener.shown)
    }

    /// Goes up whenever anything that is shown may have changed.
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// Takes in one dump. Gives the time credited to the one before it.
    pub(super) fn fold(&mut self, dump: &Dump<A>, tick: Tick, ledger: &Ledger) -> Duration {
        let gap = self.credited(dump.interval, tick.now);
        self.at_rest = self.at_rest && dump.is_same;
        if self.at_rest {
            self.sockets.pass_over();
        } else {
            self.fold_rows(dump, tick, ledger, gap);
        }
        gap
    }

    fn fold_rows(&mut self, dump: &Dump<A>, tick: Tick, ledger: &Ledger, gap: Duration) {
        self.revision += 1;
        for (_, listener) in &mut self.listeners {
            listener.begin_sample(gap);
        }
        self.sockets.begin_dump();
        for (nth, row) in dump.sockets.iter().enumerate() {
            self.see(nth, row, tick.now);
        }
        let listeners = &mut self.listeners;
        self.sockets.end_dump(tick.now, |socket| {
            listeners[socket.listener].suspect.vanished(ledger, socket.queue.is_full());
        });
        for socket in self.sockets.living() {
            self.listeners[socket.listener].add(socket);
        }
        self.at_rest = self.sockets.are_all_seen();
        for (_, listener) in &mut self.listeners {
            listener.end_sample(tick);
            if listener.holds_a_queue() {
                listener.suspect.queued(ledger);
            }
            self.at_rest &= listener.is_at_rest();
        }
    }

    /// Lets the newcomers in, those with the longest queues first.
    pub(super) fn admit(&mut self, admission: &mut Admission, netns: &str, now: Duration) {
        let listeners = &mut self.listeners;
        self.newcomers.sort_by_key(|key| Reverse(listeners[*key].rank()));
        for key in self.newcomers.drain(..) {
            let listener = &mut listeners[key];
            listener.exposure = admission.enter(netns, &listener.shown.name, now);
        }
    }

    /// Takes in owners that were found. Of several claims on a reuseport group, the oldest member's counts.
    pub(super) fn claim(&mut self, claims: &Claims) {
        self.revision += 1;
        let mut oldest = FxHashMap::default();
        for socket in self.sockets.living() {
            let entry = oldest.entry(socket.listener).or_insert(*socket);
            if socket.born < entry.born {
                *entry = *socket;
            }
        }
        for socket in self.sockets.living() {
            let Some(owner) = claims.get(&socket.inode) else { continue };
            let is_oldest =
                oldest.get(&socket.listener).is_some_and(|oldest| oldest.born == socket.born);
            let shown = &mut self.listeners[socket.listener].shown;
            if is_oldest || shown.owner.is_unknown() {
                shown.owner = owner.clone();
            }
        }
    }

    /// Charges overflows to the listeners. Gives those charged to listeners that have no series.
    pub(super) fn settle(
        &mut self,
        ledger: &mut Ledger,
        overflows: Option<u64>,
        tick: Tick,
    ) -> u64 {
        if self.at_rest {
            ledger.settle(overflows, &mut []);
            return 0;
        }
        let mut suspects: Vec<&mut Suspect> = self
            .listeners
            .iter_mut()
            .map(|(_, listener)| &mut listener.suspect)
            .filter(|suspect| suspect.is_suspected())
            .collect();
        ledger.settle(overflows, &mut suspects);
        self.listeners.iter_mut().map(|(_, listener)| listener.charged(tick)).sum()
    }

    /// The listeners, for whoever gives the places.
    pub(super) fn candidates(&self) -> impl Iterator<Item = Candidate<usize>> {
        self.listeners.iter().map(|(key, listener)| Candidate {
            key,
            exposure: listener.exposure,
            rank: listener.rank(),
            is_open: listener.is_open(),
        })
    }

    /// A listener gets series.
    pub(super) fn expose(&mut self, key: usize, now: Duration) {
        self.revision += 1;
        self.listeners[key].exposure = Exposure::Exposed(now);
    }

    /// A listener loses its series. Gives the overflows that they showed.
    pub(super) fn omit(&mut self, key: usize) -> u64 {
        self.revision += 1;
        self.listeners[key].omit()
    }

    /// Forgets listeners and sockets that were gone for the grace time. Gives the overflows that they
    /// showed.
    pub(super) fn forget(&mut self, now: Duration, admission: &mut Admission) -> u64 {
        self.sockets.forget(now);
        if self.at_rest {
            return 0;
        }
        let Self { listeners, by_address, revision, .. } = self;
        let mut overflows = 0;
        listeners.retain(|_, listener| {
            let forgotten = listener.is_forgotten(now);
            if forgotten {
                // No dump need have come: of a namespace that ended, none does.
                *revision += 1;
                by_address.remove(&listener.address);
                admission.leave(listener.exposure);
                overflows += listener.shown.overflows.unwrap_or(0);
            }
            !forgotten
        });
        overflows
    }

    /// The namespace has ended, and with it every listener.
    pub(super) fn close(&mut self, now: Duration) {
        self.sampled_at = None;
        self.sockets = Sockets::new(0);
        self.at_rest = false;
        self.revision += 1;
        for (_, listener) in &mut self.listeners {
            listener.close(now);
            listener.end();
        }
    }

    /// The time since the last dump, unless it is too long to know anything about.
    fn credited(&mut self, interval: Duration, now: Duration) -> Duration {
        let gap = self.sampled_at.replace(now).map_or(Duration::ZERO, |at| now.saturating_sub(at));
        match gap <= interval * CREDITED_INTERVALS {
            true => gap,
            false => Duration::ZERO,
        }
    }

    fn see(&mut self, nth: usize, row: &ListenSocket<A>, now: Duration) {
        let listener = match self.sockets.listener_of(nth, row.cookie) {
            Some(known) if self.listeners[known].address == row.address => known,
            _ => self.listener_at(row.address, now),
        };
        let drops = self.sockets.see(nth, row, listener, now);
        if drops > 0 {
            self.listeners[listener].dropped(drops);
        }
        self.drops_missing |= row.drops.is_none();
    }

    fn listener_at(&mut self, address: A, now: Duration) -> usize {
        let (listeners, newcomers) = (&mut self.listeners, &mut self.newcomers);
        *self.by_address.entry(address).or_insert_with(|| {
            let key = listeners.insert(Listener::new(address, now));
            newcomers.push(key);
            key
        })
    }
}
