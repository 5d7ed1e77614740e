//! Tracks which listen sockets have accepted a connection.
//!
//! The kernel keeps no count of accepted connections per listener. Accepted connections stay in the
//! socket table while they are open, and for one minute (TIME_WAIT) after the server closes them.

use std::time::{Duration, Instant};

use rustc_hash::FxHashSet;

use crate::snapshot::Cookie;
use crate::snapshot::scan::Local;

/// Maximum number of listeners whose accepted connections one scan searches for. A longer filter of
/// ports costs more than it saves; later scans search for those of the remaining listeners.
const MOST_WANTED: usize = 100;

/// State of an accepted connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The connection is open.
    No,
    /// The server is closing the connection.
    JustNow,
    /// Time since the server closed the connection.
    Ago(Duration),
}

/// The listen sockets of one namespace.
#[derive(Debug, Default)]
pub(super) struct Acceptors {
    /// The listen sockets of the last scan, sorted by cookie.
    known: Vec<Acceptor>,
    /// Positions in `known` of the listeners of this scan, sorted by port.
    wanted: Vec<usize>,
    scans: usize,
    now: Option<Instant>,
}

#[derive(Debug)]
struct Acceptor {
    cookie: Cookie,
    local: Local,
    /// Whether another socket listened on the same address before. Connections of the earlier
    /// socket prove nothing.
    has_predecessor: bool,
    has_accepted: bool,
    /// `None` for most sockets: there may be very many.
    past: Option<Box<Past>>,
}

/// The times that separate the connections of a socket from those of an earlier socket.
#[derive(Clone, Copy, Debug, Default)]
struct Past {
    /// Time when the socket was first seen; `None` if it existed at the first scan.
    since: Option<Instant>,
    /// The latest time at which a process closed an accepted connection of this address. An earlier
    /// socket may have accepted that connection.
    closed_at: Option<Instant>,
}

// === impl Acceptors ===

impl Acceptors {
    /// Returns the number of listen sockets of the last scan.
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// Records the current listen sockets, which are sorted by cookie. Returns the ports to search
    /// for accepted connections.
    pub(super) fn begin(
        &mut self,
        listeners: impl ExactSizeIterator<Item = (Cookie, Local)> + Clone,
        now: Instant,
    ) -> Vec<u16> {
        let cookies = listeners.clone().map(|(cookie, _)| cookie);
        if !self.known.iter().map(|acceptor| acceptor.cookie).eq(cookies) {
            self.replace(listeners, (self.scans > 0).then_some(now));
        }
        self.scans += 1;
        self.now = Some(now);
        self.choose()
    }

    /// Replaces the known sockets. New ones were first seen at `since`.
    fn replace(
        &mut self,
        listeners: impl ExactSizeIterator<Item = (Cookie, Local)>,
        since: Option<Instant>,
    ) {
        let mut before = std::mem::take(&mut self.known);
        let earlier: FxHashSet<Local> = before.iter().map(|acceptor| acceptor.local).collect();
        self.known.reserve_exact(listeners.len());
        self.known.extend(listeners.map(|(cookie, local)| {
            let place = before.binary_search_by_key(&cookie, |acceptor| acceptor.cookie);
            let known = place.ok().map(|place| before[place].take());
            known.unwrap_or_else(|| Acceptor {
                cookie,
                local,
                has_predecessor: earlier.contains(&local),
                has_accepted: false,
                past: since.map(|at| Past { since: Some(at), closed_at: None }.into()),
            })
        }));
    }

    /// Selects the listeners of this scan, and returns their ports. If there are too many, each
    /// scan selects a different part of them.
    fn choose(&mut self) -> Vec<u16> {
        let known = &self.known;
        let unknown = || (0..known.len()).filter(|nth| !known[*nth].has_accepted);
        let parts = unknown().count().div_ceil(MOST_WANTED).max(1);
        let part = self.scans % parts;
        let port = |nth: &usize| known[*nth].local.port;
        self.wanted = unknown().skip(part * MOST_WANTED).take(MOST_WANTED).collect();
        self.wanted.sort_by_key(port);
        let mut ports: Vec<u16> = self.wanted.iter().map(port).collect();
        ports.dedup();
        ports
    }

    /// Records an accepted connection.
    pub(super) fn found(&mut self, connection: &Local, ended: Ended) {
        let known = &self.known;
        let first = self.wanted.partition_point(|nth| known[*nth].local.port < connection.port);
        for nth in &self.wanted[first..] {
            let acceptor = &mut self.known[*nth];
            if acceptor.local.port != connection.port {
                return;
            }
            acceptor.found(connection, ended, self.now);
        }
    }

    /// Time since the address of the `nth` current listen socket last had an accepted connection,
    /// or zero if the socket itself is known to have accepted one.
    pub(super) fn accepted_ago(&self, nth: usize) -> Option<Duration> {
        let acceptor = self.known.get(nth)?;
        if acceptor.has_accepted {
            return Some(Duration::ZERO);
        }
        self.now
            .zip(acceptor.past.as_ref()?.closed_at)
            .map(|(now, closed_at)| now.duration_since(closed_at))
    }
}

// === impl Acceptor ===

impl Acceptor {
    /// Moves the socket out of a list, which keeps its cookie.
    fn take(&mut self) -> Self {
        Self { past: self.past.take(), ..*self }
    }

    /// Records a connection that a process accepted.
    fn found(&mut self, connection: &Local, ended: Ended, now: Option<Instant>) {
        let listens = self.local.ip.to_canonical();
        if !listens.is_unspecified() && listens != connection.ip.to_canonical() {
            return;
        }
        match ended {
            Ended::No | Ended::JustNow => self.has_accepted |= !self.has_predecessor,
            Ended::Ago(ago) => {
                let closed_at = now.and_then(|now| now.checked_sub(ago));
                let past = self.past.get_or_insert_default();
                past.closed_at = past.closed_at.max(closed_at);
                // A connection closed before this socket was first seen may belong to an earlier
                // socket.
                let is_later = |since| closed_at.is_some_and(|closed_at| closed_at > since);
                self.has_accepted |= past.since.is_none_or(is_later);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(ip: &str, port: u16) -> Local {
        Local { ip: ip.parse().unwrap(), port, interface: 0 }
    }

    fn row(cookie: u64, local: Local) -> (Cookie, Local) {
        (Cookie(cookie), local)
    }

    fn ago(seconds: u64) -> Ended {
        Ended::Ago(Duration::from_secs(seconds))
    }

    #[test]
    fn an_accepted_connection_proves_its_own_listener_only() {
        let mut acceptors = Acceptors::default();
        let begin = Instant::now();
        let rows = [
            row(1, local("10.0.0.1", 80)),
            row(2, local("10.0.0.2", 80)),
            row(3, local("::", 80)),
            row(4, local("0.0.0.0", 81)),
        ];
        assert_eq!(acceptors.begin(rows.iter().copied(), begin), [80, 81]);
        acceptors.found(&local("::ffff:10.0.0.1", 80), Ended::No);
        let known = |acceptors: &Acceptors| {
            [0, 1, 2, 3].map(|nth| acceptors.accepted_ago(nth) == Some(Duration::ZERO))
        };
        // The wildcard socket may have accepted the connection as well. A false "has accepted" is
        // better than calling the socket a lock port.
        assert_eq!(known(&acceptors), [true, false, true, false]);
        assert_eq!(acceptors.begin(rows.iter().copied(), begin), [80, 81]);
        acceptors.found(&local("127.0.0.1", 81), ago(59));
        assert_eq!(known(&acceptors), [true, false, true, true]);
        assert_eq!(acceptors.begin(rows.iter().copied(), begin), [80]);
    }

    #[test]
    fn the_connections_of_an_earlier_socket_prove_nothing() {
        let mut acceptors = Acceptors::default();
        let begin = Instant::now();
        let here = local("10.0.0.1", 80);
        acceptors.begin([row(1, here)].iter().copied(), begin);
        acceptors.begin([row(2, here)].iter().copied(), begin + Duration::from_secs(10));
        acceptors.found(&here, Ended::No);
        assert_eq!(acceptors.accepted_ago(0), None);
        acceptors.found(&here, ago(1));
        assert_eq!(acceptors.accepted_ago(0), Some(Duration::from_secs(1)));
        acceptors.begin([row(2, here)].iter().copied(), begin + Duration::from_secs(20));
        acceptors.found(&here, ago(11));
        assert_eq!(acceptors.accepted_ago(0), Some(Duration::from_secs(11)));
        acceptors.found(&here, ago(9));
        assert_eq!(acceptors.accepted_ago(0), Some(Duration::ZERO));
    }

    #[test]
    fn many_listeners_are_looked_for_in_turn() {
        let mut acceptors = Acceptors::default();
        let rows: Vec<(Cookie, Local)> =
            (1..=250).map(|n| row(n, local("0.0.0.0", 1_000 + n as u16))).collect();
        let mut asked: Vec<u16> =
            (0..3).flat_map(|_| acceptors.begin(rows.iter().copied(), Instant::now())).collect();
        asked.sort_unstable();
        assert_eq!(asked, (1_001..=1_250).collect::<Vec<u16>>());
    }
}
