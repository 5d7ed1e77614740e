//! Applies the results of connection scans.

use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;

use crate::snapshot::scan::{TcpScan, UnixQueue};
use crate::snapshot::{ListenAddress, Settings, UnixAddress};
use crate::state::connections::by_listener;
use crate::state::cookie_credit::CookieCount;
use crate::state::listener::{Address, Beside};
use crate::state::scans::Between;

use super::Group;
use super::conclude::half_open_cap;

/// Stands for all listeners that are not tracked.
const UNTRACKED: usize = usize::MAX;

// === impl Group ===

impl Group<ListenAddress> {
    /// Applies the result of a scan at `at`. `between` holds other facts about the time since the
    /// previous scan. Returns the listeners whose SYN queue is at its cap.
    pub(in crate::state) fn take_scan(
        &mut self,
        at: Duration,
        scan: &TcpScan,
        between: Between,
        names_clients: bool,
        settings: &Settings,
    ) -> Vec<usize> {
        self.scanned();
        self.prove_accepted(at, scan);
        let fell = self.fell_at();
        let (by_address, listeners) = (&self.by_address, &self.listeners);
        let keeps_idle = |address: &ListenAddress| {
            let listener = by_address.get(address).map(|key| &listeners[*key]);
            listener.is_some_and(|one| one.exposure.is_exposed() || one.record.is_some())
        };
        let caps = self.half_open_caps(scan, settings);
        let mut at_cap = Vec::new();
        for (address, mut found) in by_listener(scan, names_clients, keeps_idle) {
            let key = self.by_address.get(&address);
            let cap = key.and_then(|key| caps.get(key)).copied().unwrap_or(0);
            if found.half_open.all > 0 && found.half_open.all >= cap {
                at_cap.push(key.copied().unwrap_or(UNTRACKED));
            }
            let Some(listener) = key else { continue };
            let beside = Beside { half_open: Some(found.half_open), open: found.open };
            let between = between.with(fell.get(listener));
            let listener = &mut self.listeners[*listener];
            listener.shown.clients = std::mem::take(&mut found.clients).most().map(Arc::new);
            listener.scanned(at, found.length, beside, |record| {
                record.scans.leavers.answered(at, &scan.answered);
                record.scans.tcp(at, &found, between)
            });
        }
        at_cap
    }

    /// Records which sockets have accepted a connection.
    fn prove_accepted(&mut self, at: Duration, scan: &TcpScan) {
        for socket in &scan.sockets {
            if let Some(ago) = socket.accepted_ago {
                self.sockets.prove(socket.cookie, at.saturating_sub(ago));
            }
        }
    }

    /// The capacity of the SYN queue of each listener; empty if the scan found no half-open
    /// connection to compare with it.
    fn half_open_caps(&self, scan: &TcpScan, settings: &Settings) -> FxHashMap<usize, u64> {
        let mut caps = FxHashMap::default();
        if scan.half_open.is_empty() {
            return caps;
        }
        for socket in self.sockets.living() {
            let cap = socket.queue.limit.map_or(0, |limit| half_open_cap(settings, limit));
            *caps.entry(socket.listener).or_default() += cap;
        }
        caps
    }

    /// Attributes SYN cookies to a listener.
    pub(in crate::state) fn credit_cookies(
        &mut self,
        listener: usize,
        now: Duration,
        cookies: CookieCount,
    ) {
        let record = self.listeners.get_mut(listener).and_then(|one| one.record.as_mut());
        if let Some(record) = record {
            record.credit_cookies(now, cookies);
        }
    }
}

impl Group<UnixAddress> {
    /// Applies the queues that a scan at `at` found; a listener that is missing from `queues` has
    /// an empty queue.
    pub(in crate::state) fn take_scan(
        &mut self,
        at: Duration,
        queues: &[UnixQueue],
        between: Between,
    ) {
        self.scanned();
        let proven = queues.iter().filter(|queue| queue.open > 0);
        proven.for_each(|queue| self.sockets.prove(queue.cookie, at));
        let fell = self.fell_at();
        let mut by_name: FxHashMap<UnixAddress, Vec<&UnixQueue>> = FxHashMap::default();
        for queue in queues {
            by_name.entry(queue.address).or_default().push(queue);
        }
        for (key, listener) in self.listeners.iter_mut().filter(|(_, listener)| listener.is_open())
        {
            let queues = by_name.remove(&listener.address).unwrap_or_default();
            let length = queues.iter().map(|queue| queue.clients.len() as u64).sum();
            let (was_empty, between) = (listener.was_empty(), between.with(fell.get(&key)));
            let open = queues.iter().map(|queue| queue.open).max();
            listener.scanned(at, length, Beside { open, half_open: None }, |record| {
                record.scans.unix(at, &queues, was_empty, between)
            });
        }
    }
}

impl Between {
    fn with(self, queue: Option<&(Duration, bool)>) -> Self {
        let (fell_at, has_accepted) = queue.copied().unwrap_or_default();
        Self { fell_at, has_accepted, ..self }
    }
}

impl<A: Address> Group<A> {
    /// Discards the last scan, which is too old.
    pub(in crate::state) fn forget_scan(&mut self) {
        self.scanned();
        for (_, listener) in &mut self.listeners {
            listener.forget_scan();
        }
    }

    /// For each listener with a queue: the time at which its queue was last seen to shrink or to be
    /// empty, and whether the listener is known to have accepted a connection.
    fn fell_at(&self) -> FxHashMap<usize, (Duration, bool)> {
        let mut all: FxHashMap<usize, (Duration, bool)> = FxHashMap::default();
        for socket in self.sockets.living().filter(|socket| socket.queue.length > 0) {
            let (fell_at, has_accepted) = all.entry(socket.listener).or_default();
            *fell_at = socket.fell_at.max(*fell_at);
            *has_accepted |= socket.has_accepted;
        }
        all
    }

    /// Marks the group as changed: a scan may find a listener in trouble although the dump did not
    /// change.
    fn scanned(&mut self) {
        self.revision += 1;
        self.at_rest = false;
    }
}
