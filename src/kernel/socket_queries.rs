//! Asking for the TCP listen sockets that are known, one by one: a `SOCK_DIAG_BY_FAMILY` request without `NLM_F_DUMP`
//! for each, all in one `send`. Each costs the kernel a look into one bucket of the listening hash, where a dump walks
//! the whole table.
//!
//! The kernel looks up by address, port and interface and then compares the cookie: a socket that is gone, moved or
//! hidden behind another is answered with an error, never with another's numbers. Members of a reuseport group hide
//! each other, for the lookup chooses among them by a hash: such a set is not asked.

use netlink_packet_core::NLM_F_REQUEST;
use netlink_packet_sock_diag::constants::IPPROTO_TCP;

use super::diag_stream::{DumpError, malformed};
use super::inet_diag::{self, Row, SKMEMINFO};
use super::netlink::{Channel, Datagram, LastDump, SAME};

/// More sockets than these are cheaper to dump.
pub const MAX_QUERIES: usize = 8;
/// `SOCK_DIAG_BY_FAMILY`.
const BY_FAMILY: u16 = 20;
/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
const REQUEST: usize = 16 + 56;
/// Where `struct inet_diag_sockid` stands in a request.
const ID_IN_REQUEST: std::ops::Range<usize> = 24..REQUEST;
/// Where it stands in a row.
const ID_IN_ROW: std::ops::Range<usize> = 4..52;
/// The end of a request: what tells two sockets of one address apart.
const COOKIE: usize = 8;

/// The requests for the sockets of one dump, and how they were answered last.
#[derive(Default)]
pub struct Questions {
    requests: Vec<u8>,
    is_askable: bool,
    answers: LastDump,
    /// Requests that were answered with an error. As long as a dump gives the same sockets, they will be again.
    refused: Option<Vec<u8>>,
}

// === impl Questions ===

impl Questions {
    /// Asks from now on for the sockets of `dump`, unless they must be dumped.
    pub fn renew(&mut self, dump: &LastDump) {
        self.answers.forget();
        self.requests.clear();
        let put = dump.each_row(|row| put(&mut self.requests, row));
        if self.refused.as_ref() != Some(&self.requests) {
            self.refused = None;
        }
        // A dump that was not kept tells of no sockets, which is not that there are none.
        self.is_askable = !dump.is_empty()
            && put.is_ok()
            && !shares_an_address(&self.requests)
            && self.refused.is_none();
    }

    /// Whether there is anything to gain from asking: without a socket, there is nothing to ask, and that is it.
    pub fn are_askable(&self) -> bool {
        self.is_askable
    }

    /// The next answers count as others.
    pub fn forget(&mut self) {
        self.answers.forget();
    }

    /// Asks, and hands over each socket's row, unless the answers are those of last time, to the byte: gives whether
    /// they are. After an error nothing is asked until a dump gives other sockets.
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
            row(answer.ok_or_else(|| malformed("a socket that does not listen any more"))?);
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

/// Adds the request for the socket of `row`; fails when there are too many.
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
    // The states: the lookup finds whatever is there, and the row says its state.
    requests.extend([0; 4]);
    requests.extend(id);
    Ok(())
}

fn shares_an_address(requests: &[u8]) -> bool {
    let addresses = || requests.chunks_exact(REQUEST).map(|request| &request[..REQUEST - COOKIE]);
    addresses().enumerate().any(|(nth, address)| addresses().skip(nth + 1).any(|a| a == address))
}
