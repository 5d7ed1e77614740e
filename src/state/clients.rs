//! Counts the connections of each client address, in bounded memory.

use std::net::IpAddr;

use rustc_hash::FxHashMap;

use crate::view::{Client, Clients};

/// The most addresses counted at a time.
const MAX_ADDRESSES: usize = 1024;

/// Connections that wait or are half open, by client address.
///
/// The counts are exact up to [`MAX_ADDRESSES`] addresses. Beyond, each further address lowers all
/// counts by one (Misra and Gries): no address that has more than 1 in 1,025 connections is lost,
/// and no count is too high.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ClientCounts {
    counts: FxHashMap<IpAddr, Count>,
    all: u64,
    is_inexact: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Count {
    waiting: u64,
    half_open: u64,
}

// === impl ClientCounts ===

impl ClientCounts {
    /// Counts a connection that waits to be accepted.
    pub(super) fn waiting(&mut self, address: IpAddr) {
        self.add(address, Count { waiting: 1, half_open: 0 });
    }

    /// Counts a half-open connection.
    pub(super) fn half_open(&mut self, address: IpAddr) {
        self.add(address, Count { waiting: 0, half_open: 1 });
    }

    fn add(&mut self, address: IpAddr, one: Count) {
        self.all += 1;
        let address = address.to_canonical();
        if let Some(count) = self.counts.get_mut(&address) {
            count.waiting += one.waiting;
            count.half_open += one.half_open;
        } else if self.counts.len() < MAX_ADDRESSES {
            self.counts.insert(address, one);
        } else {
            self.is_inexact = true;
            self.counts.retain(|_, count| count.lower());
        }
    }

    /// The addresses with the most connections, the most first; `None` without connections.
    pub(super) fn most(self) -> Option<Clients> {
        let Self { counts, all, is_inexact } = self;
        let addresses = counts.len();
        let mut most: Vec<Client> = counts
            .into_iter()
            .map(|(address, Count { waiting, half_open })| Client { address, waiting, half_open })
            .collect();
        most.sort_unstable_by_key(|client| (std::cmp::Reverse(client.all()), client.address));
        most.truncate(Clients::MAX_SHOWN);
        let addresses = (!is_inexact).then_some(addresses);
        (all > 0).then_some(Clients { all, addresses, most })
    }
}

// === impl Count ===

impl Count {
    /// Subtracts one connection. Returns whether any connection is left.
    fn lower(&mut self) -> bool {
        let count = if self.half_open > 0 { &mut self.half_open } else { &mut self.waiting };
        *count -= 1;
        self.waiting + self.half_open > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(nth: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(0x0a00_0000 + nth).into()
    }

    #[test]
    fn the_addresses_with_the_most_connections_come_first() {
        let mut counts = ClientCounts::default();
        (0..96).for_each(|_| counts.waiting(address(1)));
        (0..20).for_each(|_| counts.half_open(address(2)));
        (0..5).for_each(|nth| counts.waiting(address(10 + nth)));
        counts.waiting("::ffff:10.0.0.2".parse().unwrap());
        let clients = counts.most().unwrap();
        assert_eq!((clients.all, clients.addresses), (122, Some(7)));
        let [first, second] = [1, 2].map(address);
        assert_eq!(
            clients.most[..2],
            [
                Client { address: first, waiting: 96, half_open: 0 },
                Client { address: second, waiting: 1, half_open: 20 },
            ]
        );
        assert_eq!(ClientCounts::default().most(), None);
    }

    #[test]
    fn a_flood_of_addresses_hides_no_client_with_many_and_takes_bounded_memory() {
        let mut counts = ClientCounts::default();
        for nth in 0..100_000 {
            counts.half_open(address(1_000 + nth));
            if nth % 100 == 0 {
                counts.waiting(address(1));
            }
            assert!(counts.counts.len() <= MAX_ADDRESSES);
        }
        let clients = counts.most().unwrap();
        assert_eq!((clients.all, clients.addresses), (101_000, None));
        assert_eq!(clients.most[0].address, address(1));
        assert!((900..=1_000).contains(&clients.most[0].waiting), "{clients:?}");
        assert_eq!(clients.most.len(), Clients::MAX_SHOWN);
    }
}
