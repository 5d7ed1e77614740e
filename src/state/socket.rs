//! Which listen sockets live. Dumps are not atomic: a socket missing from one of them still lives, missing
//! from two it is gone, and its last drops are remembered in case it comes back.

use std::time::Duration;

use rustc_hash::FxHashMap;

use crate::snapshot::{AcceptQueue, Cookie, ListenSocket};

use super::GRACE;

/// A first look may miss sockets; what turns up in the first dumps was there before.
const BASELINE_DUMPS: u64 = 3;

/// A listen socket, as last seen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Socket {
    /// The listener it stands behind.
    pub(super) listener: usize,
    /// Its queue.
    pub(super) queue: AcceptQueue,
    /// Its `sk_drops`.
    pub(super) drops: Option<u32>,
    /// Whether drops were new when it was last seen.
    pub(super) dropped: bool,
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
    living: FxHashMap<Cookie, Socket>,
    gone: FxHashMap<Cookie, Gone>,
    dumps: u64,
    seen: usize,
}

// === impl Sockets ===

impl Sockets {
    /// A new dump begins.
    pub(super) fn begin_dump(&mut self) {
        self.dumps += 1;
        self.seen = 0;
    }

    /// Takes in one row. `listener` is where its address belongs. Gives the new drops, and whether the socket
    /// came from another listener or from nowhere.
    pub(super) fn see(&mut self, row: &ListenSocket, listener: usize) -> u64 {
        let born_with = match self.dumps <= BASELINE_DUMPS {
            true => row.drops,
            false => Some(0),
        };
        let gone = &mut self.gone;
        let socket = self.living.entry(row.cookie).or_insert_with(|| {
            let remembered = gone.remove(&row.cookie).map(|gone| gone.drops);
            Socket {
                listener,
                queue: row.queue,
                drops: remembered.unwrap_or(born_with),
                dropped: false,
                seen: 0,
            }
        });
        if socket.seen != self.dumps {
            self.seen += 1;
        }
        let drops = new_drops(socket.drops, row.drops);
        *socket = Socket {
            listener,
            queue: row.queue,
            drops: row.drops,
            dropped: drops > 0,
            seen: self.dumps,
        };
        drops
    }

    /// The listener of a living socket.
    pub(super) fn listener_of(&self, cookie: Cookie) -> Option<usize> {
        self.living.get(&cookie).map(|socket| socket.listener)
    }

    /// The dump has ended: sockets that it was the second to miss are gone, and handed over.
    pub(super) fn end_dump(&mut self, now: Duration, mut vanished: impl FnMut(Socket)) {
        if self.seen == self.living.len() {
            return;
        }
        let (dumps, gone) = (self.dumps, &mut self.gone);
        self.living.retain(|cookie, socket| {
            let stays = socket.seen + 1 >= dumps;
            if !stays {
                gone.insert(*cookie, Gone { drops: socket.drops, at: now });
                vanished(*socket);
            }
            stays
        });
    }

    /// Forgets sockets that were gone for the grace time.
    pub(super) fn forget(&mut self, now: Duration) {
        self.gone.retain(|_, gone| now.saturating_sub(gone.at) < GRACE);
    }

    /// The sockets that live.
    pub(super) fn living(&self) -> impl Iterator<Item = &Socket> {
        self.living.values()
    }
}

/// The growth of a u32 counter of one socket. A step back is an older value of a torn dump: no growth.
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

    #[test]
    fn drops_wrap_and_never_step_back() {
        assert_eq!(new_drops(Some(u32::MAX), Some(4)), 5);
        assert_eq!(new_drops(Some(10), Some(9)), 0);
        assert_eq!(new_drops(None, Some(9)), 0);
        assert_eq!(new_drops(Some(9), None), 0);
    }
}
