//! Gives new listeners their names. Unix listeners of several files may share a path: the first has the path alone, and a
//! server that makes its socket file again keeps it.

use crate::state::listener::Address;

use super::Group;

/// What a newcomer is called.
enum Naming<A> {
    /// By this alias, which nobody has.
    Called(A),
    /// As the listener that was closed and whose successor it is.
    Succeeds(usize),
    /// The next dump will show whether the listener that has the name is closed.
    Undecided,
}

// === impl Group ===

impl<A: Address> Group<A> {
    /// Names the newcomers; those that can be admitted are in `newcomers` after it.
    pub(super) fn name_newcomers(&mut self) {
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
                Naming::Succeeds(predecessor) => self.succeed(key, predecessor),
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

    /// The newcomer's socket is another one of a listener that was closed: it takes its place.
    fn succeed(&mut self, newcomer: usize, predecessor: usize) {
        let address = self.listeners.remove(newcomer).address;
        let before = std::mem::replace(&mut self.listeners[predecessor].address, address);
        self.by_address.remove(&before);
        self.by_address.insert(address, predecessor);
        self.sockets.hand_over(newcomer, predecessor);
        self.at_rest = false;
    }
}
