//! What one listener's scans, one after the other, add up to: whether anything was taken from its queue between them,
//! and how many of those who wait are gone for sure.

use std::time::Duration;

use rustc_hash::FxHashMap;

use crate::snapshot::Cookie;
use crate::snapshot::scan::{UnixQueue, Waiting};

use super::connections::ListenerScan;

/// The scans of one listener.
#[derive(Clone, Debug, Default)]
pub(super) struct Scans {
    line: Line,
    /// When the first of the scans was that agree that nothing was taken since.
    untaken_since: Option<Duration>,
    gone: Option<u64>,
}

/// What a scan says of a queue in which somebody waits.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Verdict {
    /// How long the connection at the head has waited; `None` when all clients have reset.
    pub(super) oldest: Option<Duration>,
    /// Waiting connections without a client, agreed with the scan before; `None` when there was none.
    pub(super) abandoned: Option<u64>,
    /// For how long scans agree that nothing was taken.
    pub(super) untaken: Duration,
    /// Whether something was taken since the scan before.
    pub(super) drains: bool,
}

/// Who stands in line, as of the last scan.
#[derive(Clone, Debug, Default, PartialEq)]
enum Line {
    #[default]
    Nobody,
    Tcp {
        /// Sorted.
        cookies: Vec<Cookie>,
        /// Those who have reset: they have no row.
        reset: u64,
    },
    /// By listen socket, in the order of the queue.
    Unix(FxHashMap<Cookie, Vec<Client>>),
}

/// A client of a Unix queue.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Client {
    /// Its socket's; 0 when it is gone.
    inode: u32,
    /// When it was first seen; `None` for one that was there before anybody looked.
    came: Option<Duration>,
}

// === impl Scans ===

impl Scans {
    /// Forgets the line: the queue was seen empty.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Takes in what a scan at `at` found at a TCP listener.
    pub(super) fn tcp(&mut self, at: Duration, found: &ListenerScan) -> Verdict {
        let rows = &found.waiting;
        let mut cookies: Vec<Cookie> = rows.iter().map(|row| row.cookie).collect();
        cookies.sort_unstable();
        let reset = found.length.saturating_sub(rows.len() as u64);
        let closed = rows.iter().filter(|row| row.is_closed).count() as u64;
        let was_taken = match &self.line {
            // Whoever left must have reset, and those who have reset still stand in line.
            Line::Tcp { cookies: before, reset: reset_before } => {
                let left = before.iter().filter(|cookie| cookies.binary_search(cookie).is_err());
                Some(left.count() as u64 + reset_before > reset)
            }
            _ => None,
        };
        self.line = Line::Tcp { cookies, reset };
        let oldest = rows.iter().filter_map(|row: &Waiting| row.age).max();
        self.conclude(at, was_taken, oldest, closed + reset)
    }

    /// Takes in what a scan at `at` found at a Unix listener: the queues of its sockets. Unless it `was_empty` at some
    /// time, nobody knows when those came whom the first scan finds.
    pub(super) fn unix(&mut self, at: Duration, queues: &[&UnixQueue], was_empty: bool) -> Verdict {
        let mut before = match std::mem::take(&mut self.line) {
            Line::Unix(before) => before,
            _ => FxHashMap::default(),
        };
        let is_first = before.is_empty();
        let mut was_taken = false;
        let came = (!is_first || was_empty).then_some(at);
        let mut line: FxHashMap<Cookie, Vec<Client>> = FxHashMap::default();
        for queue in queues {
            let known = before.remove(&queue.cookie).unwrap_or_default();
            let taken = taken_from(&known, &queue.clients);
            was_taken |= taken > 0;
            let mut rest = known[taken..].iter().map(|client| client.came);
            let client = |inode: &u32| Client { inode: *inode, came: rest.next().unwrap_or(came) };
            line.insert(queue.cookie, queue.clients.iter().map(client).collect());
        }
        // A socket that is not there any more was closed, or its queue was emptied.
        was_taken |= !before.is_empty();
        let everybody = || line.values().flatten();
        let first = everybody().map(|client| client.came).min().flatten();
        let oldest = first.map(|came| at.saturating_sub(came));
        let gone = everybody().filter(|client| client.inode == 0).count() as u64;
        self.line = Line::Unix(line);
        self.conclude(at, (!is_first).then_some(was_taken), oldest, gone)
    }

    /// `was_taken` is `None` for the first scan: there is nothing to compare it with.
    fn conclude(
        &mut self,
        at: Duration,
        was_taken: Option<bool>,
        oldest: Option<Duration>,
        gone: u64,
    ) -> Verdict {
        if was_taken != Some(false) {
            self.untaken_since = Some(at);
        }
        let before = self.gone.replace(gone);
        let since = *self.untaken_since.get_or_insert(at);
        Verdict {
            oldest,
            abandoned: if gone == 0 { Some(0) } else { before.map(|before| before.min(gone)) },
            untaken: at.saturating_sub(since),
            drains: was_taken == Some(true),
        }
    }
}

/// How many were taken from the head of the queue `before`, so that what is left of it leads the queue `now`. A client
/// that is gone keeps its place.
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

    /// A TCP queue of `length` with these connections, by cookie and age in seconds; odd cookies are closed.
    fn found(length: u64, rows: &[(u64, u64)]) -> ListenerScan {
        let local = Local { ip: Ipv4Addr::LOCALHOST.into(), port: 80, interface: 0 };
        let waiting = rows.iter().map(|(cookie, age)| Waiting {
            cookie: Cookie(*cookie),
            local,
            age: Some(seconds(*age)),
            is_closed: cookie % 2 == 1,
        });
        ListenerScan { length, waiting: waiting.collect(), ..ListenerScan::default() }
    }

    fn verdict(oldest: u64, abandoned: Option<u64>, untaken: u64) -> Verdict {
        let (oldest, untaken) = (Some(seconds(oldest)), seconds(untaken));
        Verdict { oldest, abandoned, untaken, drains: false }
    }

    fn drains(verdict: Verdict) -> Verdict {
        Verdict { drains: true, ..verdict }
    }

    #[test]
    fn the_same_line_again_means_that_nothing_was_taken() {
        let mut scans = Scans::default();
        assert_eq!(scans.tcp(seconds(1), &found(2, &[(2, 4), (4, 3)])), verdict(4, Some(0), 0));
        let longer = found(3, &[(2, 5), (4, 4), (6, 0)]);
        assert_eq!(scans.tcp(seconds(2), &longer), verdict(5, Some(0), 1));
        let accepted = found(2, &[(4, 5), (6, 1)]);
        assert_eq!(scans.tcp(seconds(3), &accepted), drains(verdict(5, Some(0), 0)));
    }

    #[test]
    fn who_resets_still_stands_in_line() {
        let mut scans = Scans::default();
        scans.tcp(seconds(1), &found(3, &[(2, 1), (4, 1), (6, 1)]));
        assert_eq!(scans.tcp(seconds(2), &found(3, &[(4, 2), (6, 2)])), verdict(2, Some(0), 1));
        assert_eq!(scans.tcp(seconds(3), &found(3, &[(4, 3)])), verdict(3, Some(1), 2));
        let all_reset = scans.tcp(seconds(4), &found(3, &[]));
        assert_eq!(all_reset, Verdict { oldest: None, ..verdict(0, Some(2), 3) });
        // One that had reset was accepted.
        let taken = scans.tcp(seconds(5), &found(2, &[]));
        assert_eq!(taken, drains(Verdict { oldest: None, ..verdict(0, Some(2), 0) }));
    }

    #[test]
    fn abandoned_is_what_two_scans_agree_on() {
        let mut scans = Scans::default();
        assert_eq!(scans.tcp(seconds(1), &found(2, &[(1, 3), (3, 3)])).abandoned, None);
        assert_eq!(scans.tcp(seconds(2), &found(2, &[(1, 3), (2, 3)])).abandoned, Some(1));
        assert_eq!(scans.tcp(seconds(3), &found(3, &[(1, 3), (3, 0), (5, 0)])).abandoned, Some(1));
    }

    fn queue(clients: &[u32]) -> UnixQueue {
        let address = UnixAddress::new(b"/run/a").unwrap();
        UnixQueue { cookie: Cookie(1), address, clients: clients.to_vec() }
    }

    #[test]
    fn unix_clients_age_from_when_they_were_first_seen() {
        let mut scans = Scans::default();
        let mut unix =
            |second, clients: &[u32]| scans.unix(seconds(second), &[&queue(clients)], true);
        assert_eq!(unix(1, &[7, 8]), verdict(0, Some(0), 0));
        assert_eq!(unix(3, &[0, 8, 9]), verdict(2, Some(0), 2));
        assert_eq!(unix(4, &[0, 8, 9]), verdict(3, Some(1), 3));
        assert_eq!(unix(5, &[8, 9]), drains(verdict(4, Some(0), 0)));
        assert_eq!(unix(6, &[9]), drains(verdict(3, Some(0), 0)));
    }

    #[test]
    fn nobody_knows_how_long_those_have_waited_who_were_there_before() {
        let mut scans = Scans::default();
        let mut oldest = |second, clients: &[u32]| {
            scans
                .unix(seconds(second), &[&queue(clients)], false)
                .oldest
                .map(|oldest| oldest.as_secs())
        };
        assert_eq!([oldest(1, &[7]), oldest(3, &[7, 8]), oldest(4, &[8])], [None, None, Some(1)]);
    }

    #[test]
    fn how_many_were_taken_is_seen_by_who_leads_now() {
        let before = [7, 8, 9].map(|inode| Client { inode, came: None });
        let taken = |now: &[u32]| taken_from(&before, now);
        assert_eq!([taken(&[7, 8, 9]), taken(&[8, 9, 5]), taken(&[9]), taken(&[5])], [0, 1, 2, 3]);
        assert_eq!([taken(&[0, 8, 9]), taken(&[0, 0, 0]), taken(&[])], [0, 0, 3]);
    }
}
