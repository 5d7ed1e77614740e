//! Tracks which listen sockets are alive. Dumps are not atomic: a socket missing from one dump is
//! still alive, and a socket missing from two dumps is gone. The last drops of a gone socket are
//! kept in case it returns.

use std::collections::VecDeque;
use std::time::Duration;

use rustc_hash::FxHashMap;
use slab::Slab;

use crate::snapshot::{AcceptQueue, Cookie, ListenSocket};

use super::GRACE;

/// The number of gone sockets whose last drops are kept, per namespace. A gone socket that returns
/// does so soon, after two consecutive dumps missed it.
const MOST_GONE: usize = 4096;

/// A listen socket as last seen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Socket {
    /// The index of its listener.
    pub(super) listener: usize,
    pub(super) queue: AcceptQueue,
    pub(super) drops: Option<u32>,
    /// The inode of the socket, by which its owner is found.
    pub(super) inode: u32,
    /// The id of the cgroup in which it was created.
    pub(super) cgroup: Option<u64>,
    /// Its rank in the order in which the sockets of its group were first seen.
    pub(super) born: u64,
    /// Whether `sk_drops` had grown when the socket was last seen.
    pub(super) dropped: bool,
    /// Whether it is known to have accepted a connection.
    pub(super) has_accepted: bool,
    pub(super) first_seen: Duration,
    /// The time when its queue last became shorter, or when the socket was first seen.
    pub(super) fell_at: Duration,
    /// The time when an accept was last seen to remove a connection from its queue.
    pub(super) taken_at: Option<Duration>,
    /// The time since which its queue is at its limit.
    pub(super) brimming_since: Option<Duration>,
    cookie: Cookie,
    seen: u64,
}

#[derive(Clone, Copy, Debug)]
struct Gone {
    drops: Option<u32>,
    at: Duration,
}

/// The listen sockets of one namespace.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    living: Slab<Socket>,
    by_cookie: FxHashMap<Cookie, usize>,
    /// The slab place of each row of the last dump, in row order. The order of the next dump is
    /// nearly always the same.
    order: Vec<usize>,
    gone: FxHashMap<Cookie, Gone>,
    /// The time and cookie of each socket that went, the oldest first. Some of the sockets have
    /// returned since.
    went: VecDeque<(Duration, Cookie)>,
    births: u64,
    dumps: u64,
    /// Number of future dumps that still show sockets from before listenq started.
    baseline_dumps: u64,
    is_baseline: bool,
    seen: usize,
}

// === impl Socket ===

impl Socket {
    fn moved(&mut self, queue: AcceptQueue, now: Duration) {
        if queue.length < self.queue.length {
            // Only an accept removes a connection from a queue: a connection that resets keeps its
            // place.
            self.taken_at = Some(now);
            self.has_accepted = true;
        }
        if queue.length < self.queue.length || self.queue.length == 0 {
            self.fell_at = now;
        }
        match queue.is_brimming() {
            true => _ = self.brimming_since.get_or_insert(now),
            false => self.brimming_since = None,
        }
        self.queue = queue;
    }
}

// === impl Sockets ===

impl Sockets {
    /// An empty set. Sockets in the first `baseline_dumps` dumps existed before.
    pub(super) fn new(baseline_dumps: u64) -> Self {
        Self { baseline_dumps, ..Self::default() }
    }

    /// Begins a new dump.
    pub(super) fn begin_dump(&mut self) {
        self.pass_over();
        self.dumps += 1;
        self.seen = 0;
    }

    /// Skips a dump that is identical to the last one.
    pub(super) fn pass_over(&mut self) {
        self.is_baseline = self.baseline_dumps > 0;
        self.baseline_dumps = self.baseline_dumps.saturating_sub(1);
    }

    /// Whether this dump shows sockets that existed before listenq started.
    pub(super) fn is_baseline(&self) -> bool {
        self.is_baseline
    }

    /// Whether the last dump contained every living socket.
    pub(super) fn are_all_seen(&self) -> bool {
        self.seen == self.living.len()
    }

    /// The listener of the socket in the `nth` row, if the socket is tracked.
    pub(super) fn listener_of(&self, nth: usize, cookie: Cookie) -> Option<usize> {
        self.place(nth, cookie).map(|place| self.living[place].listener)
    }

    /// Skips the `nth` row, whose socket is not tracked.
    pub(super) fn pass_over_row(&mut self, nth: usize) {
        match self.order.get_mut(nth) {
            Some(expected) => *expected = usize::MAX,
            None => self.order.push(usize::MAX),
        }
    }

    /// Starts to track a socket in a namespace where sockets were left out. The socket may be old,
    /// so its drops so far are not new.
    pub(super) fn begin_at(&mut self, row: &ListenSocket<impl Copy>) {
        if !self.by_cookie.contains_key(&row.cookie) {
            self.gone.entry(row.cookie).or_insert(Gone { drops: row.drops, at: Duration::ZERO });
        }
    }

    /// Stops tracking the sockets of each listener for which `gives_up` returns true.
    pub(super) fn give_up(&mut self, mut gives_up: impl FnMut(usize) -> bool) {
        let by_cookie = &mut self.by_cookie;
        self.living.retain(|_, socket| {
            let is_given_up = gives_up(socket.listener);
            if is_given_up {
                by_cookie.remove(&socket.cookie);
            }
            !is_given_up
        });
    }

    /// Adds the `nth` row, whose address belongs to `listener`. Returns the new drops.
    pub(super) fn see(
        &mut self,
        nth: usize,
        row: &ListenSocket<impl Copy>,
        listener: usize,
        now: Duration,
    ) -> u64 {
        let place = self.place(nth, row.cookie).unwrap_or_else(|| self.insert(row, listener, now));
        match self.order.get_mut(nth) {
            Some(expected) => *expected = place,
            None => self.order.push(place),
        }
        let socket = &mut self.living[place];
        self.seen += usize::from(socket.seen != self.dumps);
        let drops = new_drops(socket.drops, row.drops);
        socket.listener = listener;
        socket.moved(row.queue, now);
        socket.drops = row.drops;
        socket.dropped = drops > 0;
        socket.seen = self.dumps;
        drops
    }

    /// Ends the dump. Removes each socket that two dumps have missed, and passes it to `vanished`.
    pub(super) fn end_dump(&mut self, now: Duration, mut vanished: impl FnMut(Socket)) {
        if self.are_all_seen() {
            return;
        }
        let (dumps, gone, by_cookie) = (self.dumps, &mut self.gone, &mut self.by_cookie);
        let went = &mut self.went;
        self.living.retain(|_, socket| {
            let stays = socket.seen + 1 >= dumps;
            if !stays {
                // A socket without drops needs no entry: if it returns, it counts as new.
                if socket.drops != Some(0) {
                    gone.insert(socket.cookie, Gone { drops: socket.drops, at: now });
                    went.push_back((now, socket.cookie));
                }
                by_cookie.remove(&socket.cookie);
                vanished(*socket);
            }
            stays
        });
    }

    /// Frees the memory that the living sockets do not need.
    pub(super) fn shrink_to_fit(&mut self) {
        self.living.shrink_to_fit();
        self.order.shrink_to_fit();
    }

    /// Forgets sockets that were gone for the grace time, and the oldest ones above [`MOST_GONE`].
    pub(super) fn forget(&mut self, now: Duration) {
        while let Some((at, cookie)) = self.went.front().copied()
            && (self.went.len() > MOST_GONE || now.saturating_sub(at) >= GRACE)
        {
            self.went.pop_front();
            // The socket may have returned and gone again since.
            if self.gone.get(&cookie).is_some_and(|gone| gone.at == at) {
                self.gone.remove(&cookie);
            }
        }
    }

    /// Whether the last dump showed the socket.
    pub(super) fn is_current(&self, socket: &Socket) -> bool {
        socket.seen == self.dumps
    }

    /// Whether the last dump showed a socket of this listener.
    pub(super) fn has_seen(&self, listener: usize) -> bool {
        self.living().any(|socket| socket.listener == listener && self.is_current(socket))
    }

    /// Moves the sockets of one listener to another listener.
    pub(super) fn hand_over(&mut self, from: usize, to: usize) {
        for (_, socket) in self.living.iter_mut().filter(|(_, socket)| socket.listener == from) {
            socket.listener = to;
        }
    }

    /// Records that the address of the socket with this cookie had an accepted connection at `at`.
    /// Before the socket was first seen, another socket may have accepted the connection.
    pub(super) fn prove(&mut self, cookie: Cookie, at: Duration) {
        if let Some(place) = self.by_cookie.get(&cookie) {
            let socket = &mut self.living[*place];
            socket.has_accepted |= at >= socket.first_seen;
        }
    }

    /// Records that every living socket has accepted a connection.
    pub(super) fn prove_all(&mut self) {
        self.living.iter_mut().for_each(|(_, socket)| socket.has_accepted = true);
    }

    /// The living sockets.
    pub(super) fn living(&self) -> impl Iterator<Item = &Socket> {
        self.living.iter().map(|(_, socket)| socket)
    }

    /// The places of the living sockets whose listener `filter` accepts.
    pub(super) fn places(&self, filter: impl Fn(usize) -> bool) -> impl Iterator<Item = usize> {
        let of = self.living.iter().filter(move |(_, socket)| filter(socket.listener));
        of.map(|(place, _)| place)
    }

    /// The living socket at a place.
    pub(super) fn get(&self, place: usize) -> Option<&Socket> {
        self.living.get(place)
    }

    fn place(&self, nth: usize, cookie: Cookie) -> Option<usize> {
        let expected = self.order.get(nth).copied();
        let is_there =
            |place: &usize| self.living.get(*place).is_some_and(|socket| socket.cookie == cookie);
        expected.filter(is_there).or_else(|| self.by_cookie.get(&cookie).copied())
    }

    fn insert(&mut self, row: &ListenSocket<impl Copy>, listener: usize, now: Duration) -> usize {
        let born_with = match self.is_baseline {
            true => row.drops,
            false => Some(0),
        };
        let remembered = self.gone.remove(&row.cookie).map(|gone| gone.drops);
        self.births += 1;
        let place = self.living.insert(Socket {
            listener,
            queue: row.queue,
            drops: remembered.unwrap_or(born_with),
            inode: row.origin.inode,
            cgroup: row.origin.cgroup,
            born: self.births,
            dropped: false,
            has_accepted: false,
            first_seen: now,
            fell_at: now,
            taken_at: None,
            brimming_since: None,
            cookie: row.cookie,
            seen: 0,
        });
        self.by_cookie.insert(row.cookie, place);
        place
    }
}

/// The growth of one socket's u32 counter. A smaller value is an older value from a torn dump and
/// counts as no growth.
fn new_drops(before: Option<u32>, after: Option<u32>) -> u64 {
    let (Some(before), Some(after)) = (before, after) else { return 0 };
    match after.wrapping_sub(before) {
        growth if growth <= i32::MAX as u32 => u64::from(growth),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Origin;

    const SECOND: Duration = Duration::from_secs(1);

    /// Applies one dump of (cookie, drops) rows. Returns the new drops of all sockets.
    fn dump(sockets: &mut Sockets, now: Duration, rows: &[(u64, u32)]) -> u64 {
        sockets.begin_dump();
        let see = |(nth, (cookie, drops)): (usize, &(u64, u32))| {
            let row = ListenSocket {
                cookie: Cookie(*cookie),
                address: (),
                queue: AcceptQueue::default(),
                drops: Some(*drops),
                origin: Origin::default(),
            };
            sockets.see(nth, &row, 0, Duration::ZERO)
        };
        let new = rows.iter().enumerate().map(see).sum();
        sockets.end_dump(now, |_| ());
        sockets.forget(now);
        new
    }

    #[test]
    fn a_socket_that_returns_within_the_grace_time_adds_only_new_drops() {
        let mut sockets = Sockets::new(0);
        let seen = [(0, &[(1, 7)][..]), (1, &[]), (2, &[]), (3, &[(1, 9)]), (4, &[]), (5, &[])];
        let new = seen.map(|(second, rows)| dump(&mut sockets, SECOND * second, rows));
        assert_eq!(new, [7, 0, 0, 2, 0, 0]);
        assert_eq!((sockets.gone.len(), sockets.went.len()), (1, 2));
        // The entry from the first time it went has expired; the entry from the second time has
        // not.
        let later = SECOND * 3 + GRACE;
        assert_eq!(dump(&mut sockets, later, &[(1, 10)]), 1);
        assert_eq!(dump(&mut sockets, later + GRACE, &[]), 0);
        assert_eq!((sockets.gone.len(), sockets.went.len()), (0, 0));
    }

    #[test]
    fn the_oldest_gone_sockets_are_forgotten_first() {
        let mut sockets = Sockets::new(0);
        let crowd =
            |from: u64| -> Vec<(u64, u32)> { (from..from + 3000).map(|n| (n, 5)).collect() };
        for (n, from) in [0, 3000].into_iter().enumerate() {
            let at = SECOND * n as u32 * 10;
            assert_eq!(dump(&mut sockets, at, &crowd(from)), 15_000);
            assert_eq!(dump(&mut sockets, at + SECOND, &[]), 0);
            assert_eq!(dump(&mut sockets, at + 2 * SECOND, &[]), 0);
        }
        assert_eq!((sockets.gone.len(), sockets.went.len()), (MOST_GONE, MOST_GONE));
        // Every socket of the second dump of many sockets is kept.
        assert_eq!(dump(&mut sockets, 20 * SECOND, &crowd(3000)), 0);
    }

    #[test]
    fn drops_wrap_at_32_bits_and_never_decrease() {
        assert_eq!(new_drops(Some(u32::MAX), Some(4)), 5);
        assert_eq!(new_drops(Some(10), Some(9)), 0);
        assert_eq!(new_drops(None, Some(9)), 0);
        assert_eq!(new_drops(Some(9), None), 0);
    }
}
