//! Names new listeners. Unix listeners with different socket files may share a path. The first
//! listener is named by the path alone, and a server that creates its socket file again keeps the
//! name.

use std::time::Duration;

use crate::state::listener::Address;

use super::Group;

/// The name for a new listener.
enum Naming<A> {
    /// This alias, which no other listener has.
    Called(A),
    /// The name of a closed listener that the new listener succeeds.
    Succeeds(usize),
    /// Undecided until the next dump shows whether the listener that has the name is closed.
    Undecided,
}

// === impl Group ===

impl<A: Address> Group<A> {
    /// Names the new listeners and moves the named ones to `newcomers`, ready for admission.
    pub(super) fn name_newcomers(&mut self, now: Duration) {
        if !A::SHARES_NAMES {
            return self.newcomers.append(&mut self.unnamed);
        }
        for key in std::mem::take(&mut self.unnamed) {
            match self.naming(key) {
                Naming::Called(alias) => {
                    self.by_alias.insert(alias, key);
                    self.listeners[key].call(alias);
                    self.newcomers.push(key);
                }
                Naming::Succeeds(predecessor) => self.succeed(key, predecessor, now),
                Naming::Undecided => {
                    self.unnamed.push(key);
                    self.at_rest = false;
                }
            }
        }
    }

    fn naming(&self, key: usize) -> Naming<A> {
        let address = self.listeners[key].address;
        for alias in address.aliases() {
            let Some(holder) = self.by_alias.get(&alias).copied() else {
                return Naming::Called(alias);
            };
            let holding = &self.listeners[holder];
            if !address.may_succeed(&holding.address) {
                continue;
            }
            if !holding.is_open() {
                return Naming::Succeeds(holder);
            }
            if !self.sockets.has_seen(holder) {
                return Naming::Undecided;
            }
        }
        Naming::Called(address)
    }

    /// Replaces a closed listener with the new listener that succeeds it. From now on it has a
    /// socket: without a further dump it must not be forgotten.
    fn succeed(&mut self, newcomer: usize, predecessor: usize, now: Duration) {
        let address = self.listeners.remove(newcomer).address;
        let before = std::mem::replace(&mut self.listeners[predecessor].address, address);
        self.by_address.remove(&before);
        self.by_address.insert(address, predecessor);
        self.sockets.hand_over(newcomer, predecessor);
        self.listeners[predecessor].reopen(now);
        self.at_rest = false;
    }
}
