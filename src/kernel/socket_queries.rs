//! Queries the known TCP listen sockets one by one: one `SOCK_DIAG_BY_FAMILY` request without
//! `NLM_F_DUMP` per socket, all in one `send`.
//!
//! Each query makes the kernel search one bucket of the listening hash, while a dump walks the
//! whole table.
//!
//! The kernel looks up the socket by address, port and interface and then compares the cookie. For
//! a socket that is gone, moved or hidden behind another socket, the kernel returns an error, never
//! the numbers of another socket. Members of a reuseport group hide each other, because the lookup
//! selects one of them by a hash: such sets are not queried.

use netlink_packet_core::NLM_F_REQUEST;
use netlink_packet_sock_diag::constants::IPPROTO_TCP;

use super::diag_stream::{DumpError, malformed};
use super::inet_diag::{self, Row, SKMEMINFO};
use super::netlink::{Channel, Datagram, LastDump, SAME};

/// Maximum number of sockets to query; a dump is cheaper for more sockets.
pub const MAX_QUERIES: usize = 8;
/// `SOCK_DIAG_BY_FAMILY`.
const BY_FAMILY: u16 = 20;
/// Size of `struct nlmsghdr` and `struct inet_diag_req_v2`.
const REQUEST: usize = 16 + 56;
/// Range of `struct inet_diag_sockid` in a request.
const ID_IN_REQUEST: std::ops::Range<usize> = 24..REQUEST;
/// Range of `struct inet_diag_sockid` in a row.
const ID_IN_ROW: std::ops::Range<usize> = 4..52;
/// Size of the cookie at the end of a request, which distinguishes two sockets of one address.
const COOKIE: usize = 8;

/// The requests for the sockets of one dump, and the last answers.
#[derive(Default)]
pub struct Questions {
    requests: Vec<u8>,
    is_askable: bool,
    answers: LastDump,
    /// Requests that the kernel answered with an error. While a dump returns the same sockets, the
    /// kernel would refuse the requests again.
    refused: Option<Vec<u8>>,
}

// === impl Questions ===

impl Questions {
    /// Builds requests for the sockets of `dump`, unless those sockets must be dumped.
    pub fn renew(&mut self, dump: &LastDump) {
        self.answers.forget();
        self.requests.clear();
        let put = dump.each_row(|row| put(&mut self.requests, row));
        if self.refused.as_ref() != Some(&self.requests) {
            self.refused = None;
        }
        // A dump that was not kept contains no sockets, which does not mean that there are none.
        self.is_askable = !dump.is_empty()
            && put.is_ok()
            && !shares_an_address(&self.requests)
            && self.refused.is_none();
    }

    /// Whether a query is useful. Without a socket there is nothing to query.
    pub fn are_askable(&self) -> bool {
        self.is_askable
    }

    /// Makes the next answers count as different.
    pub fn forget(&mut self) {
        self.answers.forget();
    }

    /// Queries the sockets and passes each row to `row`, unless the answers are byte-identical to
    /// the last answers.
    ///
    /// Returns whether the answers are identical. After an error no query is sent until a dump
    /// returns other sockets.
    pub fn ask(
        &mut self,
        channel: &mut Channel,
        datagram: &mut Datagram,
        mut row: impl FnMut(Row),
    ) -> Result<bool, DumpError> {
        let mut requests = self.requests.chunks_exact(REQUEST);
        let checked = |payload: &[u8]| {
            if payload.get(ID_IN_ROW) != requests.next().map(|request| &request[ID_IN_REQUEST]) {
                return Err(malformed("a socket that was not asked for"));
            }
            let answer = inet_diag::decode_row(payload)?;
            row(answer.ok_or_else(|| malformed("a socket that no longer listens"))?);
            Ok(())
        };
        let count = self.requests.len() / REQUEST;
        let answered = channel.ask(&self.requests, count, datagram, &mut self.answers, checked);
        if answered.is_err() {
            self.is_askable = false;
            self.refused = Some(self.requests.clone());
        }
        answered
    }
}

/// Adds the request for the socket of `row`; fails if there are too many sockets.
fn put(requests: &mut Vec<u8>, row: &[u8]) -> Result<(), DumpError> {
    if requests.len() / REQUEST == MAX_QUERIES {
        return Err(malformed("too many sockets to ask for"));
    }
    let (Some(family), Some(id)) = (row.first(), row.get(ID_IN_ROW)) else {
        return Err(malformed("a row without its socket"));
    };
    requests.extend((REQUEST as u32).to_ne_bytes());
    requests.extend(BY_FAMILY.to_ne_bytes());
    requests.extend(NLM_F_REQUEST.to_ne_bytes());
    requests.extend(SAME.to_ne_bytes());
    requests.extend([0; 4]);
    requests.extend([*family, IPPROTO_TCP, 1 << (SKMEMINFO - 1), 0]);
    // The states field: the lookup ignores states, and the row contains the state of the socket.
    requests.extend([0; 4]);
    requests.extend(id);
    Ok(())
}

fn shares_an_address(requests: &[u8]) -> bool {
    let addresses = || requests.chunks_exact(REQUEST).map(|request| &request[..REQUEST - COOKIE]);
    addresses().enumerate().any(|(nth, address)| addresses().skip(nth + 1).any(|a| a == address))
}
