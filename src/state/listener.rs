//! One listener: what its sockets add up to, and what it keeps when they go.

use std::sync::Arc;
use std::time::Duration;

use crate::snapshot::{ListenAddress, UnixName};
use crate::view::{ListenerName, ListenerView, Protocol, QueueView};

use super::GRACE;
use super::blame::Suspect;
use super::exposure::{Exposure, Rank};
use super::peak::{Peak, Slot};
use super::socket::Socket;

/// How long a closed listener without series is remembered.
const UNEXPOSED_GRACE: Duration = Duration::from_millis(500);

/// What a listen socket is bound to, and with that the identity of a listener inside its namespace.
pub(super) trait Address: Copy + Eq + std::hash::Hash {
    /// What people call it.
    fn name(&self) -> ListenerName;
}

/// A listener with its history.
#[derive(Debug)]
pub(super) struct Listener<A> {
    /// Where it listens.
    pub(super) address: A,
    /// What is shown of it.
    pub(super) shown: ListenerView,
    /// What speaks for charging it.
    pub(super) suspect: Suspect,
    /// Whether it has series.
    pub(super) exposure: Exposure,
    tally: Tally,
    full: bool,
    peak: Peak,
    lift: Option<u32>,
    /// Charged in all, shown or not.
    overflows: u64,
    closed_at: Option<Duration>,
}

/// The sum over a listener's sockets at one sample.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    sockets: u32,
    length: u64,
    limit: Option<u64>,
    fullest: Option<f64>,
    full: bool,
    drops: Option<u64>,
}

// === impl Address ===

impl Address for ListenAddress {
    fn name(&self) -> ListenerName {
        ListenerName { protocol: Protocol::Tcp, address: self.host(), port: self.port.to_string() }
    }
}

impl Address for UnixName {
    fn name(&self) -> ListenerName {
        ListenerName { protocol: Protocol::Unix, address: self.label(), port: String::new() }
    }
}

// === impl Listener ===

impl<A: Address> Listener<A> {
    /// A listener just seen for the first time.
    pub(super) fn new(address: A) -> Self {
        Self {
            address,
            shown: ListenerView {
                name: Arc::new(address.name()),
                owner: Arc::default(),
                sockets: 0,
                queue: None,
                connection_seconds: 0.0,
                full_seconds: None,
                drops: None,
                overflows: None,
                scan: None,
                case: None,
            },
            suspect: Suspect::default(),
            exposure: Exposure::Omitted,
            tally: Tally::default(),
            full: false,
            peak: Peak::default(),
            lift: None,
            overflows: 0,
            closed_at: None,
        }
    }

    /// Credits `gap` to what the last sample saw, and makes ready for the next one.
    pub(super) fn begin_sample(&mut self, gap: Duration) {
        let seconds = gap.as_secs_f64();
        if let Some(queue) = &self.shown.queue {
            self.shown.connection_seconds += queue.length as f64 * seconds;
        }
        if self.full {
            self.shown.full_seconds = self.shown.full_seconds.map(|full| full + seconds);
        }
        self.tally = Tally::default();
    }

    /// New drops at one of its sockets.
    pub(super) fn dropped(&mut self, drops: u64) {
        *self.shown.drops.get_or_insert(0) += drops;
        self.suspect.dropped(drops);
    }

    /// Adds up one living socket.
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
        if socket.dropped {
            let limit = queue.limit.unwrap_or(0);
            self.lift = Some(self.lift.map_or(limit, |lift| lift.min(limit)));
        }
    }

    /// All sockets are added up.
    pub(super) fn end_sample(&mut self, slot: Slot, now: Duration) {
        let tally = self.tally;
        self.shown.sockets = tally.sockets;
        self.full = tally.full;
        if tally.sockets == 0 {
            return self.close(now);
        }
        self.closed_at = None;
        self.peak.record(slot, u32::try_from(tally.length).unwrap_or(u32::MAX));
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

    /// It has no socket any more: its counters stay for the grace time, its gauges go.
    pub(super) fn close(&mut self, now: Duration) {
        (self.shown.sockets, self.shown.queue, self.full) = (0, None, false);
        self.closed_at.get_or_insert(now);
    }

    /// Takes the charge that its suspect was given, and gives the part that it does not show. An overflow that can
    /// only be its own proves that a queue was full, though no sample saw it.
    pub(super) fn charged(&mut self, slot: Slot) -> u64 {
        let (charge, certain) = self.suspect.charge();
        if self.shown.drops.is_some() {
            let overflows = self.shown.overflows.get_or_insert(0);
            if self.exposure.is_exposed() {
                *overflows += charge;
            }
        }
        self.overflows += charge;
        if let (true, Some(limit)) = (certain, self.lift) {
            self.peak.record(slot, limit.saturating_add(1));
            if let Some(queue) = &mut self.shown.queue {
                queue.peak_length = u64::from(self.peak.largest());
            }
        }
        if !self.suspect.is_suspected() || charge > 0 {
            self.lift = None;
        }
        if self.exposure.is_exposed() { 0 } else { charge }
    }

    /// How much it is worth showing.
    pub(super) fn rank(&self) -> Rank {
        Rank { overflows: self.overflows, peak: self.peak.largest() }
    }

    /// It has no series any more: gives the overflows that they showed.
    pub(super) fn omit(&mut self) -> u64 {
        self.exposure = Exposure::Omitted;
        self.shown.overflows.as_mut().map_or(0, std::mem::take)
    }

    /// Whether the same dump again would change nothing.
    pub(super) fn is_at_rest(&self) -> bool {
        self.tally.sockets > 0
            && self.tally.length == 0
            && self.peak.largest() == 0
            && !self.suspect.is_suspected()
            // Until the first settlement it has no overflows to show.
            && self.shown.overflows.is_some() == self.shown.drops.is_some()
    }

    /// Whether it has a socket.
    pub(super) fn is_open(&self) -> bool {
        self.closed_at.is_none()
    }

    /// Whether connections wait.
    pub(super) fn holds_a_queue(&self) -> bool {
        self.tally.length > 0
    }

    /// Whether it was closed for longer than it is remembered: one without series only until its last overflows
    /// are charged, so that any number of short-lived listeners takes no memory.
    pub(super) fn is_forgotten(&self, now: Duration) -> bool {
        let remembered = if self.exposure.is_exposed() { GRACE } else { UNEXPOSED_GRACE };
        self.closed_at.is_some_and(|closed| now.saturating_sub(closed) >= remembered)
    }
}

/// A sum in which one unknown part makes the whole unknown.
fn added(first: bool, sum: Option<u64>, part: Option<u64>) -> Option<u64> {
    match first {
        true => part,
        false => Some(sum? + part?),
    }
}
