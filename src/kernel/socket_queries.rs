//! Queries known TCP listen sockets one by one: one `SOCK_DIAG_BY_FAMILY` request without
//! `NLM_F_DUMP` per socket.
//!
//! Each query makes the kernel search one bucket of the listening hash, while a dump walks the
//! whole table.
//!
//! The kernel looks up the socket by address, port and interface and then compares the cookie. For
//! a socket that is gone, moved or hidden behind another socket, the kernel returns an error, never
//! the numbers of another socket. Members of a reuseport group hide each other, because the lookup
//! selects one of them by a hash: most of their queries fail.

use std::net::IpAddr;

use netlink_packet_core::NLM_F_REQUEST;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use rustc_hash::FxHashSet;

use super::diag_stream::DumpError;
use super::inet_diag::{self, Row, SKMEMINFO};
use super::netlink::{Channel, Datagram, LastDump, SAME};
use crate::snapshot::ListenSocket;

/// `SOCK_DIAG_BY_FAMILY`.
const BY_FAMILY: u16 = 20;
/// Size of `struct nlmsghdr` and `struct inet_diag_req_v2`.
const REQUEST: usize = 16 + 56;
/// Range of `struct inet_diag_sockid` in a request.
const ID_IN_REQUEST: std::ops::Range<usize> = 24..REQUEST;
/// Range of `struct inet_diag_sockid` in a row.
const ID_IN_ROW: std::ops::Range<usize> = 4..52;

/// A `struct inet_diag_sockid`.
type Id = [u8; ID_IN_REQUEST.end - ID_IN_REQUEST.start];

/// A socket to query: its position in the last dump, and the interface it is bound to, or 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    pub place: usize,
    pub interface: u32,
}

/// The requests for sockets of the last dump, and the last answers.
#[derive(Default)]
pub struct Questions {
    asked: Vec<Asked>,
    requests: Vec<u8>,
    answers: LastDump,
    /// Sockets whose query the kernel answered with an error although dumps contain them.
    refused: FxHashSet<Id>,
    /// Whether a socket was left out because the kernel refuses its query.
    leaves_out: bool,
}

/// The result of querying sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answers {
    /// Whether no answer changed a socket.
    pub is_same: bool,
    /// Whether every socket was queried and answered.
    pub is_complete: bool,
}

// === impl Questions ===

impl Questions {
    /// Builds requests for these sockets of the last dump.
    pub fn renew(&mut self, sockets: &[ListenSocket], asked: impl Iterator<Item = Asked>) {
        self.answers.forget();
        self.requests.clear();
        self.asked.clear();
        let mut still_refused = FxHashSet::default();
        for one in asked {
            let Some(socket) = sockets.get(one.place) else { continue };
            let request = request(socket, one.interface);
            match id(&request).filter(|id| self.refused.contains(id)) {
                Some(refused) => _ = still_refused.insert(refused),
                None => {
                    self.asked.push(one);
                    self.requests.extend(request);
                }
            }
        }
        self.leaves_out = !still_refused.is_empty();
        self.refused = still_refused;
    }

    /// Whether there is nothing to query.
    pub fn is_empty(&self) -> bool {
        self.asked.is_empty()
    }

    /// Makes the next answers count as different.
    pub fn forget(&mut self) {
        self.answers.forget();
    }

    /// Queries the sockets and updates them in `sockets`. A socket that is not answered stays as it
    /// is, and is not queried again before the next dump that differs.
    pub fn ask(
        &mut self,
        channel: &mut Channel,
        datagram: &mut Datagram,
        sockets: &mut [ListenSocket],
    ) -> Result<Answers, DumpError> {
        let Self { asked, requests, answers, leaves_out, .. } = self;
        let (mut answered, mut has_changed) = (0, false);
        let mut lost = Vec::new();
        let is_same = channel.ask(requests, REQUEST, datagram, answers, |nth, answer| {
            let request = &requests[nth * REQUEST..][..REQUEST];
            let socket = asked.get(nth).and_then(|one| sockets.get_mut(one.place));
            let Some(socket) = socket else { return };
            match answer.ok().and_then(|payload| row(payload, &request[ID_IN_REQUEST])) {
                Some(row) => {
                    let new = ListenSocket { address: socket.address, ..row.socket };
                    has_changed |= *socket != new;
                    *socket = new;
                    answered += 1;
                }
                None => lost.push(nth),
            }
        })?;
        let is_complete = !*leaves_out && (is_same || answered == asked.len());
        if !lost.is_empty() {
            self.leave_out(&lost);
        }
        Ok(Answers { is_same: !has_changed, is_complete })
    }

    /// Removes the sockets that were not answered.
    fn leave_out(&mut self, lost: &[usize]) {
        self.answers.forget();
        self.leaves_out = true;
        for nth in lost.iter().rev() {
            self.asked.remove(*nth);
            let request: Vec<u8> =
                self.requests.drain(nth * REQUEST..(nth + 1) * REQUEST).collect();
            self.refused.extend(id(&request));
        }
    }
}

/// Decodes an answer; `None` if it is not the row of the listening socket with this id.
fn row(payload: &[u8], id: &[u8]) -> Option<Row> {
    if payload.get(ID_IN_ROW) != Some(id) {
        return None;
    }
    inet_diag::decode_row(payload).ok()?
}

/// Returns the id in a request.
fn id(request: &[u8]) -> Option<Id> {
    request.get(ID_IN_REQUEST)?.try_into().ok()
}

/// Builds the request for one socket.
fn request(socket: &ListenSocket, interface: u32) -> [u8; REQUEST] {
    let (family, address) = match socket.address.ip {
        IpAddr::V4(ip) => (AF_INET, first(&ip.octets())),
        IpAddr::V6(ip) => (AF_INET6, ip.octets()),
    };
    let mut request = [0; REQUEST];
    let mut put = |at: usize, bytes: &[u8]| request[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &(REQUEST as u32).to_ne_bytes());
    put(4, &BY_FAMILY.to_ne_bytes());
    put(6, &NLM_F_REQUEST.to_ne_bytes());
    put(8, &SAME.to_ne_bytes());
    // The states stay 0: the lookup ignores them, and the row contains the state of the socket.
    put(16, &[family, IPPROTO_TCP, 1 << (SKMEMINFO - 1)]);
    // `struct inet_diag_sockid`: a listener has no remote port and address.
    put(24, &socket.address.port.to_be_bytes());
    put(28, &address);
    put(60, &interface.to_ne_bytes());
    put(64, &(socket.cookie.0 as u32).to_ne_bytes());
    put(68, &((socket.cookie.0 >> 32) as u32).to_ne_bytes());
    request
}

/// Pads an IPv4 address as the kernel does.
fn first(octets: &[u8; 4]) -> [u8; 16] {
    let mut address = [0; 16];
    address[..4].copy_from_slice(octets);
    address
}
