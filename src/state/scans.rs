//! Combines the scans of one listener: whether connections were accepted between scans, how many
//! waiting clients have left for certain, and how long clients waited before they left.

use std::time::Duration;

use rustc_hash::FxHashMap;

use crate::diagnosis::{STALL_BY_SCANS, stalls_after};
use crate::snapshot::Cookie;
use crate::snapshot::scan::{UnixQueue, Waiting};

use super::connections::ListenerScan;
use super::leavers::Leavers;

/// How long a pause between two accepts is kept.
const PAUSE_IS_KEPT: Duration = Duration::from_secs(600);

/// The scan history of one listener.
#[derive(Clone, Debug, Default)]
pub(super) struct Scans {
    line: Line,
    /// The time of the first of the consecutive scans that found nothing accepted.
    untaken_since: Option<Duration>,
    /// Whether a scan found a client after the queue had stalled, and nothing was accepted since.
    had_victim: bool,
    gone: Option<u64>,
    /// The time of the first of the consecutive scans that found a client at the head that had
    /// waited for long.
    standing_since: Option<Duration>,
    /// The longest pause between two accepts while clients waited, and when it ended.
    pause: Option<(Duration, Duration)>,
    /// Whether nothing was accepted before `untaken_since`: how long a server takes to start is no
    /// usual pause.
    is_start: bool,
    pub(super) leavers: Leavers,
}

/// Other facts about the time between two scans.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Between {
    /// The time of the last sample that saw an empty queue or a shorter one than before.
    pub(super) fell_at: Duration,
    /// Whether the listener is known to have accepted a connection.
    pub(super) has_accepted: bool,
    /// The accepts since the last scan that the kernel's counters prove.
    pub(super) taken: Taken,
    /// A queue is standing if its first client has waited for this time or longer.
    pub(super) standing_wait: Duration,
}

/// The conclusion about accepted connections from the counters of a namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Taken {
    /// Some listener accepted, and the namespace has several listeners.
    #[default]
    Unknown,
    /// No listener accepted.
    Nothing,
    /// This listener accepted.
    Something,
}

/// Open accepted connections of a listener.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Open {
    /// The number as of the last scan; `None` where the scan did not read them.
    pub(super) now: Option<u64>,
    /// The largest number within the last hour.
    pub(super) most: u64,
}

/// The result of a scan of a queue that is not empty.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Verdict {
    /// How long the connection at the head has waited; `None` when the queue has no row.
    pub(super) oldest: Option<Duration>,
    /// Waiting connections without a client, confirmed by two scans; `None` when unknown.
    pub(super) abandoned: Option<u64>,
    /// Waiting connections whose client has not left.
    pub(super) alive: u64,
    /// Whether a client waited when the queue was first found stalled.
    pub(super) had_victim: bool,
    /// How long nothing was accepted.
    pub(super) untaken: Duration,
    /// How long no sample saw the queue become shorter.
    pub(super) unmoved: Duration,
    /// Whether a connection was accepted since the previous scan.
    pub(super) drains: bool,
    /// The time for which each scan found a client at the head that had waited for long.
    pub(super) standing: Duration,
    /// The longest earlier pause between two accepts.
    pub(super) pause: Duration,
    /// Clients that left since the previous scan.
    pub(super) left: u64,
}

/// The queue, as of the last scan.
#[derive(Clone, Debug, Default, PartialEq)]
enum Line {
    #[default]
    Empty,
    Tcp(TcpLine),
    Unix(UnixLine),
}

/// The clients of a Unix listener by listen socket, in queue order.
type UnixLine = FxHashMap<Cookie, Vec<Client>>;

/// A TCP queue as of one scan.
#[derive(Clone, Debug, Default, PartialEq)]
struct TcpLine {
    /// The rows in sorted order, each with whether its client has left.
    rows: Vec<(Cookie, bool)>,
    /// The connection that has waited longest. It is accepted before all other connections with a
    /// row.
    head: Option<Cookie>,
    length: u64,
    /// Queue entries without a row. Their clients have reset, or their rows are at another address
    /// (TPROXY, `sk_lookup`).
    unseen: u64,
    /// Unseen entries whose row was seen before: their clients have reset.
    reset: u64,
}

/// The changes of the connections of one scan until the next scan.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Change {
    /// Whether a connection was accepted; `None` when unknown.
    was_taken: Option<bool>,
    /// Clients that left.
    left: u64,
    /// Connections accepted before their client left.
    served: u64,
}

/// A client of a Unix queue.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Client {
    /// The inode of the client's socket; 0 when the client is gone.
    inode: u32,
    /// The time when the client was first seen; `None` for a client from before the first scan.
    came: Option<Duration>,
}

// === impl Scans ===

impl Scans {
    /// Forgets the queue, which was seen empty at `now`.
    pub(super) fn clear(&mut self, now: Duration) {
        self.note_pause(now);
        self.forget_line();
    }

    /// Forgets the queue because its sockets were closed.
    pub(super) fn forget_line(&mut self) {
        (self.line, self.untaken_since, self.gone) = (Line::Empty, None, None);
        (self.standing_since, self.had_victim) = (None, false);
    }

    /// Records that a socket of the listener was seen without a queue: not every client waits.
    pub(super) fn has_room_at_once(&mut self) {
        self.standing_since = None;
    }

    /// Adds the scan of a TCP listener at `at`.
    pub(super) fn tcp(&mut self, at: Duration, found: &ListenerScan, between: Between) -> Verdict {
        let rows = &found.waiting;
        let mut line = TcpLine::new(found.length, rows);
        let before = match std::mem::take(&mut self.line) {
            Line::Tcp(before) => Some(before),
            _ => None,
        };
        self.leavers.take(at, before.as_ref().map(|before| &*before.rows), rows);
        let change = before.map(|before| before.until(&mut line, between.taken));
        let is_gone = |row: &&Waiting| row.has_left();
        let closed = match self.leavers.half_close(at) {
            true => 0,
            false => rows.iter().filter(is_gone).count() as u64,
        };
        let oldest = rows.iter().filter_map(|row| row.age).max();
        let is_known = !rows.is_empty() || line.reset > 0 || found.length == 0;
        let queue = Queue {
            oldest,
            gone: is_known.then_some(closed + line.reset),
            alive: rows.iter().filter(|row| !row.is_closed).count() as u64,
        };
        self.line = Line::Tcp(line);
        self.conclude(at, change, queue, between)
    }

    /// Adds the scan of a Unix listener at `at`: the queues of its sockets. Unless the queue
    /// `was_empty` at some time, the arrival times of the clients in the first scan are unknown.
    pub(super) fn unix(
        &mut self,
        at: Duration,
        queues: &[&UnixQueue],
        was_empty: bool,
        between: Between,
    ) -> Verdict {
        let before = match std::mem::take(&mut self.line) {
            Line::Unix(before) => before,
            _ => UnixLine::default(),
        };
        let is_first = before.is_empty();
        let came = (!is_first || was_empty).then_some(at);
        let (line, change) = follow(before, queues, came);
        let everybody = || line.values().flatten();
        let first = everybody().map(|client| client.came).min().flatten();
        let gone = everybody().filter(|client| client.inode == 0).count() as u64;
        let queue = Queue {
            oldest: first.map(|came| at.saturating_sub(came)),
            gone: Some(gone),
            alive: everybody().count() as u64 - gone,
        };
        self.line = Line::Unix(line);
        self.conclude(at, (!is_first).then_some(change), queue, between)
    }

    /// Concludes a scan. `change` is `None` for the first scan, which has no scan to compare with.
    fn conclude(
        &mut self,
        at: Duration,
        change: Option<Change>,
        queue: Queue,
        between: Between,
    ) -> Verdict {
        let Change { was_taken, left, served } = change.unwrap_or_default();
        self.leavers.count(at, left, served);
        if was_taken == Some(true) {
            self.note_pause(at);
        }
        if was_taken != Some(false) {
            let has_accepted = was_taken == Some(true) || between.has_accepted;
            (self.untaken_since, self.is_start) = (Some(at), !has_accepted);
        }
        if self.untaken_since.is_some_and(|since| since < between.fell_at) {
            self.note_pause(between.fell_at);
            (self.untaken_since, self.is_start) = (Some(between.fell_at.min(at)), false);
        }
        let before = self.gone;
        self.gone = queue.gone;
        let since = *self.untaken_since.get_or_insert(at);
        let is_stalled = at.saturating_sub(since) >= stalls_after(self.pause(at));
        self.had_victim = is_stalled && (self.had_victim || queue.alive > 0);
        let agreed = |gone| if gone == 0 { Some(0) } else { before.map(|before| before.min(gone)) };
        Verdict {
            oldest: queue.oldest,
            abandoned: queue.gone.and_then(agreed),
            alive: queue.alive,
            had_victim: self.had_victim,
            untaken: at.saturating_sub(since),
            unmoved: at.saturating_sub(between.fell_at),
            drains: was_taken == Some(true),
            standing: self.standing(at, queue.oldest, between.standing_wait),
            pause: self.pause(at),
            left,
        }
    }

    fn standing(&mut self, at: Duration, oldest: Option<Duration>, wait: Duration) -> Duration {
        if oldest.is_none_or(|oldest| oldest < wait) {
            self.standing_since = None;
            return Duration::ZERO;
        }
        at.saturating_sub(*self.standing_since.get_or_insert(at))
    }

    /// Records the pause from `untaken_since` to `at`, when a connection was accepted again.
    fn note_pause(&mut self, at: Duration) {
        let Some(since) = self.untaken_since else { return };
        let pause = at.saturating_sub(since);
        if !self.is_start && pause >= STALL_BY_SCANS && pause >= self.pause(at) {
            self.pause = Some((pause, at));
        }
    }

    fn pause(&self, at: Duration) -> Duration {
        let recent = self.pause.filter(|(_, ended)| at.saturating_sub(*ended) < PAUSE_IS_KEPT);
        recent.map_or(Duration::ZERO, |(pause, _)| pause)
    }
}

/// Compares the queues of a Unix listener with `before`, its queues at the previous scan. New
/// clients get the arrival time `came`.
fn follow(
    mut before: UnixLine,
    queues: &[&UnixQueue],
    came: Option<Duration>,
) -> (UnixLine, Change) {
    let mut change = Change { was_taken: Some(false), ..Change::default() };
    let mut line = UnixLine::default();
    for queue in queues {
        let known = before.remove(&queue.cookie).unwrap_or_default();
        let taken = taken_from(&known, &queue.clients);
        change.add(&known, taken, &queue.clients);
        let mut rest = known[taken..].iter().map(|client| client.came);
        let client = |inode: &u32| Client { inode: *inode, came: rest.next().unwrap_or(came) };
        line.insert(queue.cookie, queue.clients.iter().map(client).collect());
    }
    // A missing socket was closed, or its queue was emptied.
    if !before.is_empty() {
        change.was_taken = Some(true);
    }
    (line, change)
}

/// The clients of one scan.
#[derive(Clone, Copy, Debug)]
struct Queue {
    oldest: Option<Duration>,
    gone: Option<u64>,
    alive: u64,
}

// === impl TcpLine ===

impl TcpLine {
    fn new(length: u64, rows: &[Waiting]) -> Self {
        let head = rows.iter().max_by_key(|row| row.age).map(|row| row.cookie);
        let mut all: Vec<_> = rows.iter().map(|row| (row.cookie, row.has_left())).collect();
        all.sort_unstable();
        Self { unseen: length.saturating_sub(all.len() as u64), rows: all, head, length, reset: 0 }
    }

    fn find(&self, cookie: Cookie) -> Option<bool> {
        let place = self.rows.binary_search_by_key(&cookie, |(cookie, _)| *cookie);
        place.ok().map(|place| self.rows[place].1)
    }

    /// Compares the queue with the next scan `now` and completes the unseen entries of `now`. A
    /// client that resets loses its row and keeps its place in the queue. A missing row therefore
    /// counts as reset as long as the number of entries without a row grew by as many.
    fn until(&self, now: &mut Self, taken: Taken) -> Change {
        let went = self.rows.iter().filter(|(cookie, _)| now.find(*cookie).is_none());
        let (went, went_waiting) = went.fold((0, 0), |(all, waiting), (_, has_left)| {
            (all + 1, waiting + u64::from(!has_left))
        });
        let more_unseen = now.unseen.saturating_sub(self.unseen);
        let fewer_unseen = self.unseen.saturating_sub(now.unseen);
        now.reset = (self.reset + went.min(more_unseen)).saturating_sub(fewer_unseen);
        now.reset = now.reset.min(now.unseen);
        let resets = went_waiting.min(more_unseen);
        let closed = now
            .rows
            .iter()
            .filter(|(cookie, has_left)| *has_left && self.find(*cookie) != Some(true));
        Change {
            was_taken: self.was_taken(now, went, taken),
            left: closed.count() as u64 + resets,
            served: went_waiting - resets,
        }
    }

    fn was_taken(&self, now: &Self, went: u64, taken: Taken) -> Option<bool> {
        let is_certain = went + self.unseen > now.unseen;
        if taken == Taken::Something || is_certain {
            return Some(true);
        }
        let head_stays = self.head.is_some_and(|head| now.find(head).is_some());
        let only_grew = now.length > self.length && went + self.unseen == now.unseen;
        (taken == Taken::Nothing || head_stays || only_grew).then_some(false)
    }
}

// === impl Change ===

impl Change {
    /// Adds a Unix queue: `taken` clients were accepted from the head, so the rest of `before`
    /// starts `now`.
    fn add(&mut self, before: &[Client], taken: usize, now: &[u32]) {
        if taken > 0 {
            self.was_taken = Some(true);
        }
        self.served += before[..taken].iter().filter(|client| client.inode != 0).count() as u64;
        let rest = before[taken..].iter().zip(now);
        self.left += rest.filter(|(before, now)| before.inode != 0 && **now == 0).count() as u64;
    }
}

/// The number of clients accepted from the head of `before`, so that the rest of `before` starts
/// `now`. A client that is gone keeps its place in the queue.
fn taken_from(before: &[Client], now: &[u32]) -> usize {
    let leads = |rest: &[Client]| {
        let same = |(before, now): (&Client, &u32)| *now == 0 || before.inode == *now;
        rest.len() <= now.len() && rest.iter().zip(now).all(same)
    };
    (0..=before.len()).find(|taken| leads(&before[*taken..])).unwrap_or(before.len())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::snapshot::UnixAddress;
    use crate::snapshot::scan::Local;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// A TCP queue of `length` with these connections, by cookie and age in seconds. The client of
    /// an odd cookie closed after half of the age.
    fn found(length: u64, rows: &[(u64, u64)]) -> ListenerScan {
        let local = Local { ip: Ipv4Addr::LOCALHOST.into(), port: 80, interface: 0 };
        let waiting = rows.iter().map(|(cookie, age)| Waiting {
            cookie: Cookie(*cookie),
            local,
            client: local.ip,
            age: Some(seconds(*age)),
            is_closed: cookie % 2 == 1,
            patience: (cookie % 2 == 1).then(|| seconds(*age) / 2),
        });
        let waiting = waiting.collect();
        ListenerScan { length, longest: length.max(9), waiting, ..ListenerScan::default() }
    }

    fn between(taken: Taken) -> Between {
        let has_accepted = true;
        Between { taken, has_accepted, standing_wait: seconds(1), ..Between::default() }
    }

    /// Oldest, abandoned, untaken and alive, and whether the queue drains.
    type Seen = (Option<u64>, Option<u64>, u64, u64, bool);

    fn seen(verdict: Verdict) -> Seen {
        let Verdict { oldest, abandoned, untaken, alive, drains, .. } = verdict;
        (oldest.map(|oldest| oldest.as_secs()), abandoned, untaken.as_secs(), alive, drains)
    }

    fn tcp(scans: &mut Scans, second: u64, length: u64, rows: &[(u64, u64)]) -> Seen {
        seen(scans.tcp(seconds(second), &found(length, rows), between(Taken::Unknown)))
    }

    #[test]
    fn an_unchanged_queue_means_that_nothing_was_accepted() {
        let mut scans = Scans::default();
        let mut at = |second, length, rows: &[_]| tcp(&mut scans, second, length, rows);
        assert_eq!(at(1, 2, &[(2, 4), (4, 3)]), (Some(4), Some(0), 0, 2, false));
        assert_eq!(at(2, 3, &[(2, 5), (4, 4), (6, 0)]), (Some(5), Some(0), 1, 3, false));
        assert_eq!(at(3, 2, &[(4, 5), (6, 1)]), (Some(5), Some(0), 0, 2, true));
    }

    #[test]
    fn a_stalled_queue_had_a_victim_until_a_connection_is_accepted() {
        let mut scans = Scans::default();
        let mut had_victim = |second, rows: &[_], taken| {
            scans.tcp(seconds(second), &found(2, rows), between(taken)).had_victim
        };
        let rows = [(2, 1), (4, 1)];
        assert!(![1, 5].map(|second| had_victim(second, &rows, Taken::Nothing)).contains(&true));
        assert!(had_victim(12, &rows, Taken::Nothing));
        // The clients left.
        assert!(had_victim(13, &[], Taken::Nothing) && had_victim(60, &[], Taken::Nothing));
        assert!(!had_victim(61, &[], Taken::Something));
        assert!(!had_victim(80, &[], Taken::Nothing));
    }

    #[test]
    fn a_client_that_resets_keeps_its_place() {
        let mut scans = Scans::default();
        let mut at = |second, length, rows: &[_], taken| {
            seen(scans.tcp(seconds(second), &found(length, rows), between(taken)))
        };
        at(1, 3, &[(2, 2), (4, 1), (6, 1)], Taken::Unknown);
        assert_eq!(at(2, 3, &[(2, 3), (6, 2)], Taken::Unknown), (Some(3), Some(0), 1, 2, false));
        // When the head of the queue is gone, only the counters distinguish a reset from an accept.
        assert_eq!(at(3, 3, &[(6, 3)], Taken::Nothing), (Some(3), Some(1), 2, 1, false));
        assert_eq!(at(4, 3, &[], Taken::Nothing), (None, Some(2), 3, 0, false));
        // One of the reset connections was accepted.
        assert_eq!(at(5, 2, &[], Taken::Unknown), (None, Some(2), 0, 0, true));
    }

    #[test]
    fn clients_that_reset_between_scans_do_not_hide_an_accept() {
        let mut scans = Scans::default();
        for second in 1..=40 {
            // Each second, one connection is accepted, and another one connects and resets before
            // any scan sees its row.
            let rows: Vec<_> = (second..9).map(|n| (2 * n, 60 + second - n)).collect();
            let (.., untaken, _, _) = tcp(&mut scans, second, 9, &rows);
            assert_eq!(untaken, 0, "second {second}");
        }
    }

    #[test]
    fn a_shorter_queue_between_two_scans_shows_an_accept() {
        let mut scans = Scans::default();
        let mut untaken = |second, fell_at| {
            let between = Between { fell_at: seconds(fell_at), ..between(Taken::Unknown) };
            scans.tcp(seconds(second), &found(2, &[(2, 9), (4, 9)]), between).untaken.as_secs()
        };
        assert_eq!([untaken(1, 0), untaken(20, 0), untaken(21, 15)], [0, 19, 6]);
    }

    #[test]
    fn the_counters_of_the_only_listener_show_what_rows_hide() {
        let mut scans = Scans::default();
        let mut untaken = |second, taken| {
            scans.tcp(seconds(second), &found(9, &[(2, 9)]), between(taken)).untaken.as_secs()
        };
        assert_eq!(
            [untaken(1, Taken::Unknown), untaken(9, Taken::Unknown), untaken(10, Taken::Something)],
            [0, 8, 0]
        );
    }

    #[test]
    fn rows_missing_from_the_first_scan_on_prove_nothing() {
        let mut scans = Scans::default();
        for second in 1..30 {
            assert_eq!(tcp(&mut scans, second, 9, &[]), (None, None, 0, 0, false));
        }
    }

    #[test]
    fn rows_beyond_the_queue_length_do_not_wait() {
        let mut scans = Scans::default();
        let mut closed_by_the_server =
            ListenerScan { longest: 2, ..found(2, &[(2, 38), (4, 37), (6, 1), (8, 0)]) };
        closed_by_the_server.drop_excess();
        let verdict = scans.tcp(seconds(1), &closed_by_the_server, between(Taken::Unknown));
        assert_eq!(seen(verdict), (Some(1), Some(0), 0, 2, false));
    }

    #[test]
    fn abandoned_connections_are_confirmed_by_two_scans() {
        let mut scans = Scans::default();
        let mut abandoned = |second, length, rows: &[_]| tcp(&mut scans, second, length, rows).1;
        assert_eq!(abandoned(1, 2, &[(1, 3), (3, 3)]), None);
        assert_eq!(abandoned(2, 2, &[(1, 3), (2, 3)]), Some(1));
        assert_eq!(abandoned(3, 3, &[(1, 3), (3, 1), (5, 1)]), Some(1));
    }

    #[test]
    fn clients_that_close_at_once_check_a_port_or_wait_for_the_answer() {
        let mut scans = Scans::default();
        let mut closed_at_once = found(4, &[(1, 5), (3, 5), (5, 5), (7, 5)]);
        closed_at_once.waiting.iter_mut().for_each(|row| row.patience = Some(Duration::ZERO));
        for second in 1..60 {
            let verdict = scans.tcp(seconds(second), &closed_at_once, between(Taken::Unknown));
            assert_eq!((verdict.abandoned, verdict.alive, verdict.left), (Some(0), 0, 0));
        }
        assert_eq!(scans.leavers.patience(seconds(60)), None);
    }

    #[test]
    fn a_queue_is_standing_while_its_first_client_always_waits() {
        let mut scans = Scans::default();
        let mut standing = |second, age| {
            let found = found(1, &[(second * 2, age)]);
            scans.tcp(seconds(second), &found, between(Taken::Unknown)).standing.as_secs()
        };
        assert_eq!([standing(1, 1), standing(11, 4), standing(31, 1)], [0, 10, 30]);
        assert_eq!([standing(32, 0), standing(33, 2), standing(34, 2)], [0, 0, 1]);
    }

    #[test]
    fn the_time_that_a_server_takes_to_start_is_no_usual_pause() {
        let mut scans = Scans::default();
        let mut pause = |second, head: u64, has_accepted| {
            let found = found(2, &[(head, 3), (head + 2, 2)]);
            let between = Between { has_accepted, ..between(Taken::Unknown) };
            scans.tcp(seconds(second), &found, between).pause.as_secs()
        };
        assert_eq!([pause(1, 2, false), pause(25, 2, false), pause(26, 4, true)], [0; 3]);
        assert_eq!([pause(45, 4, true), pause(46, 6, true)], [0, 20]);
    }

    #[test]
    fn a_pause_between_two_accepts_is_remembered() {
        let mut scans = Scans::default();
        let mut pause = |second, head: u64| {
            let found = found(2, &[(head, 30), (head + 2, 20)]);
            scans.tcp(seconds(second), &found, between(Taken::Unknown)).pause.as_secs()
        };
        assert_eq!([pause(1, 2), pause(25, 2), pause(26, 4), pause(31, 6)], [0, 0, 25, 25]);
        assert_eq!([pause(625, 6), pause(626, 8)], [25, 595]);
    }

    #[test]
    fn clients_that_left_are_distinguished_from_served_clients() {
        let mut scans = Scans::default();
        for second in 0..20 {
            // The first of three is accepted each second. The client of every other one has left
            // before.
            let rows = [0, 1, 2].map(|nth| (second + nth, 30 - 10 * nth));
            scans.tcp(seconds(100 + second), &found(3, &rows), between(Taken::Unknown));
        }
        let share = scans.leavers.share(seconds(120)).unwrap();
        assert!((0.45..=0.55).contains(&share), "{share}");
        assert_eq!(scans.leavers.share(seconds(300)), None);
    }

    fn queue(clients: &[u32]) -> UnixQueue {
        let address = UnixAddress::new(b"/run/a").unwrap();
        UnixQueue { cookie: Cookie(1), address, clients: clients.to_vec(), open: 0 }
    }

    #[test]
    fn unix_clients_age_from_when_they_were_first_seen() {
        let mut scans = Scans::default();
        let mut unix = |second, clients: &[u32]| {
            let between = between(Taken::Unknown);
            seen(scans.unix(seconds(second), &[&queue(clients)], true, between))
        };
        assert_eq!(unix(1, &[7, 8]), (Some(0), Some(0), 0, 2, false));
        assert_eq!(unix(3, &[0, 8, 9]), (Some(2), Some(0), 2, 2, false));
        assert_eq!(unix(4, &[0, 8, 9]), (Some(3), Some(1), 3, 2, false));
        assert_eq!(unix(5, &[8, 9]), (Some(4), Some(0), 0, 2, true));
        assert_eq!(unix(6, &[9]), (Some(3), Some(0), 0, 1, true));
    }

    #[test]
    fn the_wait_of_clients_from_before_the_first_scan_is_unknown() {
        let mut scans = Scans::default();
        let mut oldest = |second, clients: &[u32]| {
            let between = between(Taken::Unknown);
            let verdict = scans.unix(seconds(second), &[&queue(clients)], false, between);
            verdict.oldest.map(|oldest| oldest.as_secs())
        };
        assert_eq!([oldest(1, &[7]), oldest(3, &[7, 8]), oldest(4, &[8])], [None, None, Some(1)]);
    }

    #[test]
    fn the_number_of_accepts_follows_from_the_first_client_in_the_queue() {
        let before = [7, 8, 9].map(|inode| Client { inode, came: None });
        let taken = |now: &[u32]| taken_from(&before, now);
        assert_eq!([taken(&[7, 8, 9]), taken(&[8, 9, 5]), taken(&[9]), taken(&[5])], [0, 1, 2, 3]);
        assert_eq!([taken(&[0, 8, 9]), taken(&[0, 0, 0]), taken(&[])], [0, 0, 3]);
    }
}
