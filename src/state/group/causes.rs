//! Selects the listeners whose owners are read, and applies the owner readings.

use std::hash::BuildHasher;
use std::time::Duration;

use rustc_hash::{FxBuildHasher, FxHashMap};

use crate::snapshot::owner_reading::{SocketOwnerReading, WatchedSocket};
use crate::state::listener::Address;
use crate::state::socket::Socket;

use super::Group;

// === impl Group ===

impl<A: Address> Group<A> {
    /// For each listener in trouble with a known owner or cgroup: the socket with the longest
    /// queue.
    pub(in crate::state) fn watched(&self) -> Vec<WatchedSocket> {
        if self.at_rest {
            return Vec::new();
        }
        let mut longest: FxHashMap<usize, &Socket> = FxHashMap::default();
        for socket in self.sockets.living() {
            if self.listeners[socket.listener].is_in_trouble() {
                let entry = longest.entry(socket.listener).or_insert(socket);
                if socket.queue.length > entry.queue.length {
                    *entry = socket;
                }
            }
        }
        let watched = longest.into_iter().filter_map(|(listener, socket)| {
            let listener = &self.listeners[listener];
            let owner = &listener.shown.owner;
            let local = listener.address.local();
            (owner.pid.is_some() || socket.cgroup.is_some()).then_some(WatchedSocket {
                inode: socket.inode,
                pid: owner.pid,
                start_time: owner.start_time,
                cgroup: socket.cgroup,
                local,
                source: FxBuildHasher.hash_one(listener.source),
            })
        });
        watched.collect()
    }

    /// Applies owner readings, which are keyed by the inode of a socket.
    pub(in crate::state) fn apply_owner_readings(
        &mut self,
        now: Duration,
        readings: &[SocketOwnerReading],
    ) {
        for (inode, owner) in readings {
            let Some(socket) = self.sockets.living().find(|socket| socket.inode == *inode) else {
                continue;
            };
            let members = || self.sockets.living().filter(|one| one.listener == socket.listener);
            let taken_at = members().filter_map(|member| member.taken_at).max();
            let has_accepted = members().any(|member| member.has_accepted);
            self.listeners[socket.listener].owner_read(now, owner, taken_at, has_accepted);
        }
    }
}
