//! Tracks which listen sockets have accepted a connection.
//!
//! The kernel keeps no count of accepted connections per listener. Accepted connections stay in the
//! socket table while they are open, and for one minute (TIME_WAIT) after the server closes them.

use std::time::{Duration, Instant};

use rustc_hash::{FxHashMap, FxHashSet};

use crate::snapshot::Cookie;
use crate::snapshot::scan::Local;

use super::connections::ListenRow;

/// Maximum number of ports in one filter. A longer filter costs more than it saves; later scans
/// look for the remaining ports.
const MAX_PORTS: usize = 100;

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
    known: FxHashMap<Cookie, Acceptor>,
    /// Listeners that this scan looks for.
    wanted: Vec<(Cookie, Local)>,
    scans: u64,
    now: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Acceptor {
    local: Local,
    /// Time when the socket was first seen; `None` if it existed at the first scan.
    since: Option<Instant>,
    /// Whether another socket listened on the same address before. Connections of the earlier
    /// socket prove nothing.
    has_predecessor: bool,
    has_accepted: bool,
    /// The latest time at which a process closed an accepted connection of this address. An earlier
    /// socket may have accepted that connection.
    closed_at: Option<Instant>,
    scan: u64,
}

// === impl Acceptors ===

impl Acceptors {
    /// Records the current listen sockets and returns the ports to search for accepted connections.
    pub(super) fn begin(&mut self, listeners: &[ListenRow], now: Instant) -> Vec<u16> {
        let since = (self.scans > 0).then_some(now);
        self.scans += 1;
        self.now = Some(now);
        let scan = self.scans;
        let has_new = listeners.iter().any(|row| !self.known.contains_key(&row.cookie));
        let earlier: FxHashSet<Local> = match has_new {
            true => self.known.values().map(|acceptor| acceptor.local).collect(),
            false => FxHashSet::default(),
        };
        for ListenRow { cookie, local, .. } in listeners {
            let acceptor = self.known.entry(*cookie).or_insert_with(|| {
                let has_predecessor = earlier.contains(local);
                Acceptor {
                    local: *local,
                    since,
                    has_predecessor,
                    has_accepted: false,
                    closed_at: None,
                    scan,
                }
            });
            acceptor.scan = scan;
        }
        self.known.retain(|_, acceptor| acceptor.scan == scan);
        self.choose()
    }

    /// Selects the ports of this scan. With too many ports, each scan searches a different part.
    fn choose(&mut self) -> Vec<u16> {
        let unknown = self.known.iter().filter(|(_, acceptor)| !acceptor.has_accepted);
        self.wanted = unknown.map(|(cookie, acceptor)| (*cookie, acceptor.local)).collect();
        let parts = self.wanted.len().div_ceil(MAX_PORTS).max(1) as u64;
        self.wanted.sort_unstable_by_key(|(cookie, local)| (local.port, *cookie));
        let part = (self.scans % parts) as usize;
        self.wanted = self.wanted.chunks(MAX_PORTS).nth(part).unwrap_or_default().to_vec();
        let mut ports: Vec<u16> = self.wanted.iter().map(|(_, local)| local.port).collect();
        ports.dedup();
        ports
    }

    /// Records an accepted connection.
    pub(super) fn found(&mut self, connection: &Local, ended: Ended) {
        let first = self.wanted.partition_point(|(_, local)| local.port < connection.port);
        for (cookie, local) in &self.wanted[first..] {
            if local.port != connection.port {
                return;
            }
            if let Some(acceptor) = self.known.get_mut(cookie) {
                acceptor.found(connection, ended, self.now);
            }
        }
    }

    /// Time since the address of the socket last had an accepted connection, or zero if the socket
    /// itself is known to have accepted one.
    pub(super) fn accepted_ago(&self, cookie: Cookie) -> Option<Duration> {
        let acceptor = self.known.get(&cookie)?;
        if acceptor.has_accepted {
            return Some(Duration::ZERO);
        }
        self.now.zip(acceptor.closed_at).map(|(now, closed_at)| now.duration_since(closed_at))
    }
}

// === impl Acceptor ===

impl Acceptor {
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
                self.closed_at = self.closed_at.max(closed_at);
                // A connection closed before this socket was first seen may belong to an earlier
                // socket.
                let is_later = |since| closed_at.is_some_and(|closed_at| closed_at > since);
                self.has_accepted |= self.since.is_none_or(is_later);
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

    fn row(cookie: u64, local: Local) -> ListenRow {
        ListenRow { cookie: Cookie(cookie), local, is_v6_only: false, length: 0 }
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
        assert_eq!(acceptors.begin(&rows, begin), [80, 81]);
        acceptors.found(&local("::ffff:10.0.0.1", 80), Ended::No);
        let known = |acceptors: &Acceptors| {
            [1, 2, 3, 4].map(|n| acceptors.accepted_ago(Cookie(n)) == Some(Duration::ZERO))
        };
        // The wildcard socket may have accepted the connection as well. A false "has accepted" is
        // better than calling the socket a lock port.
        assert_eq!(known(&acceptors), [true, false, true, false]);
        assert_eq!(acceptors.begin(&rows, begin), [80, 81]);
        acceptors.found(&local("127.0.0.1", 81), ago(59));
        assert_eq!(known(&acceptors), [true, false, true, true]);
        assert_eq!(acceptors.begin(&rows, begin), [80]);
    }

    #[test]
    fn the_connections_of_an_earlier_socket_prove_nothing() {
        let mut acceptors = Acceptors::default();
        let begin = Instant::now();
        let here = local("10.0.0.1", 80);
        acceptors.begin(&[row(1, here)], begin);
        acceptors.begin(&[row(2, here)], begin + Duration::from_secs(10));
        acceptors.found(&here, Ended::No);
        assert_eq!(acceptors.accepted_ago(Cookie(2)), None);
        acceptors.found(&here, ago(1));
        assert_eq!(acceptors.accepted_ago(Cookie(2)), Some(Duration::from_secs(1)));
        acceptors.begin(&[row(2, here)], begin + Duration::from_secs(20));
        acceptors.found(&here, ago(11));
        assert_eq!(acceptors.accepted_ago(Cookie(2)), Some(Duration::from_secs(11)));
        acceptors.found(&here, ago(9));
        assert_eq!(acceptors.accepted_ago(Cookie(2)), Some(Duration::ZERO));
    }

    #[test]
    fn many_listeners_are_looked_for_in_turn() {
        let mut acceptors = Acceptors::default();
        let rows: Vec<ListenRow> =
            (1..=250).map(|n| row(n, local("0.0.0.0", 1_000 + n as u16))).collect();
        let mut asked: Vec<u16> =
            (0..3).flat_map(|_| acceptors.begin(&rows, Instant::now())).collect();
        asked.sort_unstable();
        assert_eq!(asked, (1_001..=1_250).collect::<Vec<u16>>());
    }
}
