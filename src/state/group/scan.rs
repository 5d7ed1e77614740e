//! Takes in what connection scans found.

use std::time::Duration;

use rustc_hash::FxHashMap;

use crate::snapshot::scan::{TcpScan, UnixQueue};
use crate::snapshot::{ListenAddress, UnixAddress};
use crate::state::connections::by_listener;
use crate::state::listener::Address;

use super::Group;

// === impl Group ===

impl Group<ListenAddress> {
    /// Takes in what a scan at `at` found.
    pub(in crate::state) fn take_scan(&mut self, at: Duration, scan: &TcpScan) {
        self.scanned();
        for (address, found) in by_listener(scan) {
            if let Some(listener) = self.by_address.get(&address) {
                let half_open = Some([found.half_open, found.old_half_open]);
                self.listeners[*listener]
                    .scanned(at, found.length, half_open, |record| record.scans.tcp(at, &found));
            }
        }
    }
}

impl Group<UnixAddress> {
    /// Takes in the queues that a scan at `at` found; who is not among them has none.
    pub(in crate::state) fn take_scan(&mut self, at: Duration, queues: &[UnixQueue]) {
        self.scanned();
        let mut by_name: FxHashMap<UnixAddress, Vec<&UnixQueue>> = FxHashMap::default();
        for queue in queues {
            by_name.entry(queue.address).or_default().push(queue);
        }
        for (_, listener) in self.listeners.iter_mut().filter(|(_, listener)| listener.is_open()) {
            let queues = by_name.remove(&listener.address).unwrap_or_default();
            let length = queues.iter().map(|queue| queue.clients.len() as u64).sum();
            let was_empty = listener.was_empty();
            listener.scanned(at, length, None, |record| record.scans.unix(at, &queues, was_empty));
        }
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

    /// A scan may find a listener in trouble though its dump did not move.
    fn scanned(&mut self) {
        self.revision += 1;
        self.at_rest = false;
    }
}
