//! Schedules connection scans and runs them on a thread off the sampling path.
//!
//! A scan walks every connection of the machine, so all scans together never use more than 1/100 of
//! a core. Where a walk delays every other dump of the machine ([`dump_locks`]), scans walk for at
//! most 1/200 of the time.

use std::cmp::Ordering;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::kernel::connections::ConnectionReader;
use crate::kernel::diag_stream::DumpError;
use crate::kernel::dump_locks;
use crate::kernel::netlink::Datagram;
use crate::snapshot::scan::Scan;
use crate::snapshot::{Counter, Counters, NetnsId, NetnsSample};

use super::background::Background;
use super::thread_cpu;

/// Pause after a scan, as a multiple of the CPU time of the scan.
const REST: u32 = 99;
/// Pause after a scan whose walks delayed other dumps, as a multiple of the time of the walks.
const SERIAL_REST: u32 = 199;
/// Share of a core that scans may always use, whatever other background tasks cost: 1/200.
const OWN_SHARE: f64 = 0.005;
/// Gap between scans of a namespace in which a queue is filling up or does not become empty.
const UNDER_PRESSURE: Duration = Duration::from_secs(1);
/// Factor by which the gap grows for a namespace with neither a queue nor failing handshakes.
const IDLE: u32 = 12;
/// A queue that was never empty during this time counts as pressure.
const LASTING: Duration = Duration::from_secs(1);
/// Time during which the SYN counters count as changing after a change.
const MOVING: Duration = Duration::from_secs(3);

/// Scan state of one namespace, with the reader that scans it. The reader is either here or with
/// the scanner.
pub struct ScanSlot {
    reader: Option<ConnectionReader>,
    is_own: bool,
    scanned_at: Option<Duration>,
    /// Time when the namespace was first seen.
    known_since: Option<Duration>,
    tcp: Queues,
    unix: Queues,
    syn_sum: Option<u64>,
    syn_moved_at: Option<Duration>,
}

/// Queues of one protocol at the last sample.
#[derive(Clone, Copy, Debug, Default)]
struct Queues {
    wait_since: Option<Duration>,
    is_brimming: bool,
}

/// Handle of the scan thread, and the time when it may receive the next task. Dropping the handle
/// ends the thread.
pub struct Scanning {
    interval: Duration,
    free_at: Duration,
    is_busy: bool,
    background: Arc<Background>,
    /// Whether walks delay other dumps.
    are_serial: bool,
    tasks: Sender<Task>,
    reports: Receiver<ScanResult>,
}

struct Task {
    id: NetnsId,
    reader: ConnectionReader,
}

/// Result of a finished scan.
pub struct ScanResult {
    pub id: NetnsId,
    /// Reader to return to the namespace.
    pub reader: ConnectionReader,
    pub result: Result<Scan, DumpError>,
    pub took: Duration,
    /// Number of rows that the kernel sent.
    pub rows: u64,
    cpu: Duration,
    /// Time for which the walks of the scan may have delayed other dumps.
    walked: Duration,
    at: Instant,
}

// === impl ScanSlot ===

impl ScanSlot {
    /// Creates the scan state of a namespace; without a reader the namespace is never scanned.
    pub fn new(reader: Option<ConnectionReader>, is_own: bool) -> Self {
        let (tcp, unix) = (Queues::default(), Queues::default());
        let (scanned_at, known_since, syn_sum, syn_moved_at) = (None, None, None, None);
        Self { reader, is_own, scanned_at, known_since, tcp, unix, syn_sum, syn_moved_at }
    }

    /// Updates the scan state from a sample taken at `now`.
    pub fn look(&mut self, now: Duration, sample: &NetnsSample) {
        self.known_since.get_or_insert(now);
        if let Some(dump) = sample.tcp.as_ref().filter(|dump| !dump.is_same) {
            self.tcp.look(now, dump.sockets.iter().map(|socket| socket.queue));
        }
        if let Some(dump) = &sample.unix {
            self.unix.look(now, dump.sockets.iter().map(|socket| socket.queue));
        }
        if let Some(sum) = sample.netstat.as_ref().and_then(failing_handshakes)
            && self.syn_sum.replace(sum).is_some_and(|before| before != sum)
        {
            self.syn_moved_at = Some(now);
        }
    }

    /// Returns the reader after a scan that ended at `now`.
    pub fn give_back(&mut self, reader: ConnectionReader, now: Duration) {
        self.reader = Some(reader);
        self.scanned_at = Some(now);
    }

    /// Borrows the reader for a scan on this thread.
    pub fn reader(&mut self) -> Option<&mut ConnectionReader> {
        self.reader.as_mut()
    }

    /// Whether a scan would find a waiting connection.
    pub fn holds_a_queue(&self) -> bool {
        self.tcp.wait_since.or(self.unix.wait_since).is_some()
    }

    /// Returns the time since the last scan, in multiples of the scan interval, if a scan is due.
    ///
    /// Urgent namespaces have a shorter interval. A namespace that was never scanned became due
    /// when it was first seen.
    fn overdue(&self, now: Duration, interval: Duration) -> Option<f64> {
        self.reader.as_ref()?;
        let interval = self.interval(now, interval);
        let waited = match self.scanned_at {
            Some(scanned_at) => now.saturating_sub(scanned_at),
            None => interval + now.saturating_sub(self.known_since.unwrap_or(now)),
        };
        let share = waited.as_secs_f64() / interval.as_secs_f64();
        (share >= 1.0).then_some(share)
    }

    fn interval(&self, now: Duration, interval: Duration) -> Duration {
        let moves = self.syn_moved_at.is_some_and(|at| now.saturating_sub(at) < MOVING);
        if moves || self.tcp.press(now) || self.unix.press(now) {
            interval.min(UNDER_PRESSURE)
        } else if self.is_own || self.holds_a_queue() {
            interval
        } else {
            interval * IDLE
        }
    }
}

/// Returns a sum that changes when a SYN queue is full or handshakes stay incomplete.
fn failing_handshakes(netstat: &Counters) -> Option<u64> {
    let counters =
        [Counter::TcpReqQFullDoCookies, Counter::TcpReqQFullDrop, Counter::SyncookiesSent];
    counters.into_iter().filter_map(|counter| netstat.get(counter)).reduce(|a, b| a.wrapping_add(b))
}

// === impl Queues ===

impl Queues {
    fn look(&mut self, now: Duration, queues: impl Iterator<Item = crate::snapshot::AcceptQueue>) {
        let (mut waits, mut brims) = (false, false);
        for queue in queues {
            waits |= queue.length > 0;
            brims |= queue.is_brimming();
        }
        self.is_brimming = brims;
        match waits {
            true => _ = self.wait_since.get_or_insert(now),
            false => self.wait_since = None,
        }
    }

    fn press(&self, now: Duration) -> bool {
        self.is_brimming
            || self.wait_since.is_some_and(|since| now.saturating_sub(since) >= LASTING)
    }
}

// === impl Scanning ===

impl Scanning {
    /// Starts the thread. `interval` is the gap between two scans of a namespace with a queue.
    pub fn start(interval: Duration, background: Arc<Background>) -> io::Result<Self> {
        let (tasks, given) = channel();
        let (sender, reports) = channel();
        thread::Builder::new().name("scanner".into()).spawn(move || work(&given, &sender))?;
        let (free_at, is_busy, are_serial) = (Duration::ZERO, false, dump_locks::are_serial());
        if are_serial {
            tracing::info!(
                "connection scans delay other socket dumps on this kernel: scanning less often"
            );
        }
        Ok(Self { interval, free_at, is_busy, background, are_serial, tasks, reports })
    }

    /// Passes the most urgent namespace to the scanner, if a scan is due and the budget allows it.
    pub fn give<'a>(
        &mut self,
        now: Duration,
        places: impl Iterator<Item = (NetnsId, &'a mut ScanSlot)>,
    ) {
        if self.is_busy || now < self.free_at {
            return;
        }
        let due = |(id, place): (NetnsId, &'a mut ScanSlot)| {
            Some((place.overdue(now, self.interval)?, id, place))
        };
        // Of equally urgent namespaces the first is scanned: the own namespace.
        let needier =
            |a: &(f64, _, _), b: &(f64, _, _)| a.0.total_cmp(&b.0).then(Ordering::Greater);
        let neediest = places.filter_map(due).max_by(needier);
        let Some((_, id, place)) = neediest else { return };
        if let Some(reader) = place.reader.take() {
            // If the thread has ended, nothing is scanned. The log already reported the end of the
            // thread.
            self.is_busy = self.tasks.send(Task { id, reader }).is_ok();
        }
    }

    /// Returns the scan that ended since the last call.
    pub fn report(&mut self, now: Duration) -> Option<ScanResult> {
        let report = self.reports.try_recv().ok()?;
        self.is_busy = false;
        let delay = self.background.spend_of(OWN_SHARE, now, report.cpu);
        self.free_at = now + rest(report.cpu, report.walked, self.are_serial).max(delay);
        Some(report)
    }
}

/// Returns the pause after a scan that used `cpu` and walked for `walked`. `are_serial` is whether
/// a walk delays the dumps of all other processes: then the time of walks counts, and it may be
/// longer than their CPU time, because a walk that waits for a processor still holds the lock.
fn rest(cpu: Duration, walked: Duration, are_serial: bool) -> Duration {
    match are_serial {
        true => (cpu * REST).max(walked * SERIAL_REST),
        false => cpu * REST,
    }
}

// === impl ScanResult ===

impl ScanResult {
    /// Runs a scan on this thread.
    fn new(Task { id, mut reader }: Task, datagram: &mut Datagram) -> Self {
        let (at, cpu, rows) = (Instant::now(), thread_cpu(), reader.rows());
        let walked = reader.walked();
        let result = reader.scan(datagram);
        let (took, cpu) = (at.elapsed(), thread_cpu().saturating_sub(cpu));
        let (rows, walked) = (reader.rows() - rows, reader.walked() - walked);
        Self { id, reader, result, took, rows, cpu, walked, at }
    }

    /// Returns the time since the scan began.
    pub fn age(&self) -> Duration {
        self.at.elapsed()
    }
}

/// Runs until the task or result channel is closed.
fn work(tasks: &Receiver<Task>, reports: &Sender<ScanResult>) {
    let mut datagram = Datagram::default();
    while let Ok(task) = tasks.recv() {
        if reports.send(ScanResult::new(task, &mut datagram)).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::AcceptQueue;

    const INTERVAL: Duration = Duration::from_secs(5);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn place(is_own: bool, lengths: &[u32]) -> ScanSlot {
        let mut place = ScanSlot::new(ConnectionReader::open().unwrap(), is_own);
        place.scanned_at = Some(seconds(100));
        let queues = lengths.iter().map(|length| AcceptQueue { length: *length, limit: Some(10) });
        place.tcp.look(seconds(99), queues);
        place
    }

    /// Returns the seconds after the last scan at which the namespace is due again.
    fn gap(place: &ScanSlot) -> u64 {
        let is_due = |gap: &u64| place.overdue(seconds(100 + gap), INTERVAL).is_some();
        (0..100).find(is_due).unwrap()
    }

    #[test]
    fn namespaces_under_pressure_are_scanned_often_and_idle_ones_seldom() {
        assert_eq!(gap(&place(false, &[0])), 60);
        assert_eq!(gap(&place(true, &[0])), 5);
        assert_eq!(gap(&place(false, &[0, 10])), 1);
        // A connection has waited since second 99.
        assert_eq!(gap(&place(false, &[1])), 1);
        let mut moving = place(false, &[0]);
        moving.syn_moved_at = Some(seconds(100));
        assert_eq!(gap(&moving), 1);
    }

    #[test]
    fn a_namespace_never_scanned_is_due_at_once_but_after_those_under_pressure() {
        let mut fresh = place(false, &[0]);
        (fresh.scanned_at, fresh.known_since) = (None, Some(seconds(100)));
        assert_eq!(fresh.overdue(seconds(100), INTERVAL), Some(1.0));
        assert_eq!(fresh.overdue(seconds(160), INTERVAL), Some(2.0));
        let waits = place(false, &[1]);
        assert!(waits.overdue(seconds(103), INTERVAL) > fresh.overdue(seconds(103), INTERVAL));
        fresh.reader = None;
        assert_eq!(fresh.overdue(seconds(160), INTERVAL), None);
    }

    #[test]
    fn walks_that_delay_other_dumps_are_spaced_by_their_time() {
        let millis = Duration::from_millis;
        // CPU time and time of the walks in ms, whether they delay other dumps, and the pause in
        // ms.
        let table = [
            (10, 8, false, 990),
            (10, 8, true, 1_592),
            (10, 4, true, 990),
            (1, 1, true, 199),
            // A walk that waited for a processor.
            (10, 500, false, 990),
            (10, 500, true, 99_500),
            (0, 0, true, 0),
        ];
        for (cpu, walked, are_serial, expected) in table {
            let pause = rest(millis(cpu), millis(walked), are_serial);
            assert_eq!(pause, millis(expected), "{cpu} {walked} {are_serial}");
        }
    }

    #[test]
    fn of_equally_due_namespaces_the_first_is_scanned() {
        let mut scanning = Scanning::start(INTERVAL, Arc::default()).unwrap();
        let mut places = [place(true, &[0]), place(false, &[0])];
        places.iter_mut().for_each(|place| place.scanned_at = None);
        let named = (1..).map(NetnsId).zip(&mut places);
        scanning.give(seconds(100), named);
        assert!(places[0].reader.is_none() && places[1].reader.is_some());
    }

    #[test]
    fn the_scanner_rests_a_hundred_times_as_long_as_it_works() {
        let mut scanning = Scanning::start(INTERVAL, Arc::default()).unwrap();
        scanning.are_serial = false;
        let mut place = place(true, &[10]);
        place.scanned_at = None;
        scanning.give(seconds(1), [(NetnsId(1), &mut place)].into_iter());
        assert!(scanning.is_busy && place.reader.is_none());
        let report = loop {
            if let Some(report) = scanning.report(seconds(2)) {
                break report;
            }
            thread::sleep(Duration::from_millis(1));
        };
        assert_eq!(report.id, NetnsId(1));
        assert!(report.result.is_ok() && report.rows > 0);
        assert_eq!(scanning.free_at, seconds(2) + report.cpu * REST);
        let free_at = scanning.free_at;
        place.give_back(report.reader, seconds(2));
        scanning.give(free_at - Duration::from_nanos(1), [(NetnsId(1), &mut place)].into_iter());
        assert!(place.reader.is_some());
    }
}
