//! Selects the sockets whose owner to look up: sockets not seen before, sockets whose owner has
//! ended, and once a minute all sockets again, because a socket may be passed on and a process may
//! be renamed.

use std::time::Duration;

use rustc_hash::FxHashSet;

use crate::owner::lookup::REFRESH;
use crate::snapshot::{Origin, Snapshot};

/// Number of sockets that may close unnoticed before all closed sockets are dropped.
const MOST_CLOSED: usize = 4096;

/// Sockets whose owner was requested.
#[derive(Debug, Default)]
pub struct OwnerRequests {
    inodes: FxHashSet<u32>,
    /// Number of requested sockets since closed sockets were last dropped, and number of sockets
    /// left at that time.
    asked: usize,
    kept: usize,
    has_forgotten: bool,
    refresh_due: Duration,
}

// === impl OwnerRequests ===

impl OwnerRequests {
    /// Whether there may be sockets to request although no socket appeared.
    pub fn is_due(&self, now: Duration) -> bool {
        now >= self.refresh_due || self.has_forgotten
    }

    /// Marks the sockets with these inodes for a new owner lookup, if they still exist.
    pub fn forget(&mut self, inodes: &[u32]) {
        self.has_forgotten = true;
        for inode in inodes {
            self.inodes.remove(inode);
        }
    }

    /// Drops closed sockets once there may be many. `living` returns the sockets that may still be
    /// open. Returns these sockets, so that the owner lookup can drop all other sockets.
    pub fn keep_only_living(
        &mut self,
        living: impl FnOnce() -> FxHashSet<u32>,
    ) -> Option<FxHashSet<u32>> {
        if self.asked <= self.kept + MOST_CLOSED {
            return None;
        }
        let living = living();
        self.inodes.retain(|inode| living.contains(inode));
        self.inodes.shrink_to(2 * self.inodes.len());
        (self.asked, self.kept) = (0, living.len());
        Some(living)
    }

    /// Returns the sockets of this snapshot whose owner to request at `now`.
    pub fn wanted(&mut self, snapshot: &Snapshot, now: Duration) -> Vec<Origin> {
        self.has_forgotten = false;
        if now >= self.refresh_due {
            self.refresh_due = now + REFRESH;
            // This also drops closed sockets.
            self.inodes.clear();
        }
        let new = origins(snapshot).filter(|origin| self.inodes.insert(origin.inode));
        let new: Vec<Origin> = new.collect();
        self.asked += new.len();
        new
    }
}

/// Returns the origin of each socket of this snapshot.
pub fn origins(snapshot: &Snapshot) -> impl Iterator<Item = Origin> {
    let tcp = snapshot.namespaces.iter().filter_map(|netns| netns.tcp.as_ref());
    let unix = snapshot.namespaces.iter().filter_map(|netns| netns.unix.as_ref());
    let tcp = tcp.flat_map(|dump| dump.sockets.iter().map(|socket| socket.origin));
    let unix = unix.flat_map(|dump| dump.sockets.iter().map(|socket| socket.origin));
    tcp.chain(unix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{
        AcceptQueue, Cookie, Dump, ListenAddress, ListenSocket, NetnsId, NetnsSample,
    };

    fn snapshot(inodes: &[u32]) -> Snapshot {
        let socket = |inode: &u32| ListenSocket {
            cookie: Cookie((*inode).into()),
            address: ListenAddress { ip: "::".parse().unwrap(), port: 80, device: None },
            queue: AcceptQueue::default(),
            drops: None,
            origin: Origin { inode: *inode, ..Origin::default() },
        };
        let sockets = inodes.iter().map(socket).collect();
        let mut sample = NetnsSample::new(NetnsId(1), "host".into(), false);
        sample.tcp = Some(Dump { interval: Duration::ZERO, is_same: false, part: None, sockets });
        Snapshot { namespaces: vec![sample], ..Snapshot::default() }
    }

    #[test]
    fn a_socket_is_requested_once_a_minute() {
        let mut asked = OwnerRequests::default();
        let mut inodes = |inodes: &[u32], second| -> Vec<u32> {
            let wanted = asked.wanted(&snapshot(inodes), Duration::from_secs(second));
            wanted.iter().map(|origin| origin.inode).collect()
        };
        assert_eq!(inodes(&[1, 2], 0), [1, 2]);
        assert_eq!(inodes(&[1, 2, 3], 1), [3]);
        assert_eq!(inodes(&[1, 3], 59), [0u32; 0]);
        assert_eq!(inodes(&[1, 3], 60), [1, 3]);
    }

    #[test]
    fn few_of_a_hundred_thousand_closed_sockets_are_kept() {
        let mut asked = OwnerRequests::default();
        for crowd in 0..100 {
            let inodes: Vec<u32> = (crowd * 1_000..(crowd + 1) * 1_000).chain([u32::MAX]).collect();
            let new = asked.wanted(&snapshot(&inodes), Duration::from_secs(1)).len();
            // A socket that stays open is requested once.
            assert_eq!(new, if crowd == 0 { 1_001 } else { 1_000 });
            let living = asked.keep_only_living(|| inodes.iter().copied().collect());
            assert!(living.is_none_or(|living| living.len() == 1_001));
            assert!(asked.inodes.len() <= 2 * 1_001 + MOST_CLOSED, "{}", asked.inodes.len());
        }
    }

    #[test]
    fn a_socket_whose_owner_ended_is_requested_again_if_it_still_exists() {
        let mut asked = OwnerRequests::default();
        let second = Duration::from_secs(1);
        assert_eq!(asked.wanted(&snapshot(&[1, 2, 3]), second).len(), 3);
        assert!(!asked.is_due(2 * second));
        asked.forget(&[1, 2]);
        assert!(asked.is_due(2 * second));
        let wanted = asked.wanted(&snapshot(&[2, 3]), 2 * second);
        assert_eq!(wanted.iter().map(|origin| origin.inode).collect::<Vec<_>>(), [2]);
        assert!(!asked.is_due(3 * second));
    }
}
