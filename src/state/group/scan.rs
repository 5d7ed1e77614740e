//! Takes in what connection scans found.

use std::time::Duration;

use rustc_hash::FxHashMap;

use crate::snapshot::scan::{TcpScan, UnixQueue};
use crate::snapshot::{ListenAddress, UnixAddress};
use crate::state::connections::by_listener;
use crate::state::listener::{Address, Beside};
use crate::state::scans::Between;

use super::Group;

// === impl Group ===

impl Group<ListenAddress> {
    /// Takes in what a scan at `at` found. `between` says what else is known of the time since the scan before.
    pub(in crate::state) fn take_scan(&mut self, at: Duration, scan: &TcpScan, between: Between) {
        self.scanned();
        let proven = scan.sockets.iter().filter(|socket| socket.has_accepted);
        proven.for_each(|socket| self.sockets.prove(socket.cookie));
        let fell = self.fell_at();
        for (address, found) in by_listener(scan) {
            let Some(listener) = self.by_address.get(&address) else { continue };
            let beside = Beside {
                half_open: Some([found.half_open, found.old_half_open]),
                open: found.open,
            };
            let between = between.with(fell.get(listener));
            self.listeners[*listener].scanned(at, found.length, beside, |record| {
                record.scans.leavers.answered(at, &scan.answered);
                record.scans.tcp(at, &found, between)
            });
        }
    }
}

impl Group<UnixAddress> {
    /// Takes in the queues that a scan at `at` found; a listener that is not among them has none.
    pub(in crate::state) fn take_scan(
        &mut self,
        at: Duration,
        queues: &[UnixQueue],
        between: Between,
    ) {
        self.scanned();
        let proven = queues.iter().filter(|queue| queue.open > 0);
        proven.for_each(|queue| self.sockets.prove(queue.cookie));
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
    fn with(self, fell_at: Option<&Duration>) -> Self {
        Self { fell_at: fell_at.copied().unwrap_or_default(), ..self }
    }
}

impl<A: Address> Group<A> {
    /// The last scan is too old to say anything.
    pub(in crate::state) fn forget_scan(&mut self) {
        self.scanned();
        for (_, listener) in &mut self.listeners {
            listener.forget_scan();
        }
    }

    /// When each listener that holds a queue was last seen with a shorter one, or an empty one.
    fn fell_at(&self) -> FxHashMap<usize, Duration> {
        let mut all: FxHashMap<usize, Duration> = FxHashMap::default();
        for socket in self.sockets.living().filter(|socket| socket.queue.length > 0) {
            let fell_at = all.entry(socket.listener).or_default();
            *fell_at = socket.fell_at.max(*fell_at);
        }
        all
    }

    /// A scan may find a listener in trouble though its dump did not move.
    fn scanned(&mut self) {
        self.revision += 1;
        self.at_rest = false;
    }
}
