//! LISTEN dumps of any number of listeners, byte by byte as Linux 6.18 sends them to a process
//! without capabilities. A recording of 10,000 listeners would be too large to keep, and would
//! differ every time. `tests/allocations.rs` compares the layout with the running kernel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use listenq::kernel::diag_stream::{self, Progress};
use listenq::kernel::inet_diag;
use listenq::snapshot::{Dump, ListenSocket, NetnsId, NetnsSample, Snapshot};

/// The `nlmsg_seq` of every message.
pub(crate) const SEQUENCE: u32 = 7;
/// The mean gap between samples.
pub(crate) const INTERVAL: Duration = Duration::from_millis(100);
/// The kernel fills the datagrams of a long-lived netlink socket up to this size.
const DATAGRAM: usize = 32 * 1024;
/// Coprime to every size used. A dump is in the order of a hash table, not in the order in which
/// sockets were opened.
const SHUFFLE: usize = 7919;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const TCP_LISTEN: u8 = 10;
const NLM_F_MULTI: u16 = 2;
/// `nlmsg_type` of the end of a dump.
pub(crate) const NLMSG_DONE: u16 = 3;
/// `nlmsg_type` of a row: the type of the request, `TCPDIAG_GETSOCK`.
const TCPDIAG_GETSOCK: u16 = 18;
const SHUTDOWN: u16 = 8;
const SKV6ONLY: u16 = 11;
const CGROUP_ID: u16 = 21;
const SOCKOPT: u16 = 22;
const SKMEMINFO: u16 = 7;

/// One listen socket, with the values of its row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listener {
    /// The address that the socket listens at.
    pub(crate) address: SocketAddr,
    /// `idiag_cookie`.
    pub(crate) cookie: u64,
    /// `idiag_inode`.
    pub(crate) inode: u32,
    /// `idiag_rqueue`.
    pub(crate) length: u32,
    /// `idiag_wqueue`.
    pub(crate) limit: u32,
    /// The ninth word of SKMEMINFO.
    pub(crate) drops: u32,
}

/// Creates `count` listeners at rest, of both families, with wildcard and other addresses.
pub(crate) fn listeners(count: usize) -> Vec<Listener> {
    (0..count).map(|place| listener(place * SHUFFLE % count)).collect()
}

fn listener(number: usize) -> Listener {
    let ip: IpAddr = match number % 4 {
        0 => Ipv4Addr::UNSPECIFIED.into(),
        1 => Ipv6Addr::UNSPECIFIED.into(),
        2 => Ipv4Addr::new(10, 0, 0, 1).into(),
        _ => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1).into(),
    };
    Listener {
        address: SocketAddr::new(ip, 10_000 + number as u16),
        cookie: 4096 + number as u64,
        inode: 260_000 + number as u32,
        length: 0,
        limit: 511,
        drops: 0,
    }
}

/// The datagrams that answer a dump request: each contains as many whole rows as fit, and the last
/// one only the end.
pub(crate) fn datagrams(listeners: &[Listener]) -> Vec<Vec<u8>> {
    let mut datagrams = vec![Vec::new()];
    for message in listeners.iter().map(message) {
        if datagrams.last().is_some_and(|last| last.len() + message.len() > DATAGRAM) {
            datagrams.push(Vec::new());
        }
        datagrams.last_mut().into_iter().for_each(|last| last.extend(&message));
    }
    datagrams.push(framed(NLMSG_DONE, &0u32.to_ne_bytes()));
    datagrams
}

/// The message of one row: netlink header, `struct inet_diag_msg`, attributes.
pub(crate) fn message(listener: &Listener) -> Vec<u8> {
    let mut row = header(listener);
    attribute(&mut row, SHUTDOWN, &[0]);
    if listener.address.is_ipv6() {
        attribute(&mut row, SKV6ONLY, &[1]);
    }
    attribute(&mut row, CGROUP_ID, &1u64.to_ne_bytes());
    attribute(&mut row, SOCKOPT, &[0x12, 0]);
    let meminfo = [0, 131_072, 0, 4_194_304, 0, 0, 0, 0, listener.drops];
    attribute(&mut row, SKMEMINFO, meminfo.map(u32::to_ne_bytes).as_flattened());
    framed(TCPDIAG_GETSOCK, &row)
}

fn header(listener: &Listener) -> Vec<u8> {
    let family = if listener.address.is_ipv4() { AF_INET } else { AF_INET6 };
    let mut row = vec![family, TCP_LISTEN, 0, 0];
    row.extend(listener.address.port().to_be_bytes());
    row.extend([0; 2]);
    row.extend(sixteen(listener.address.ip()));
    row.extend([0; 16 + 4]);
    row.extend((listener.cookie as u32).to_ne_bytes());
    row.extend(((listener.cookie >> 32) as u32).to_ne_bytes());
    for word in [0, listener.length, listener.limit, 0, listener.inode] {
        row.extend(u32::to_ne_bytes(word));
    }
    row
}

fn sixteen(ip: IpAddr) -> [u8; 16] {
    let mut bytes = [0; 16];
    match ip {
        IpAddr::V4(ip) => bytes[..4].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => bytes = ip.octets(),
    }
    bytes
}

fn attribute(row: &mut Vec<u8>, kind: u16, value: &[u8]) {
    row.extend((4 + value.len() as u16).to_ne_bytes());
    row.extend(kind.to_ne_bytes());
    row.extend(value);
    row.resize(row.len().next_multiple_of(4), 0);
}

fn framed(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut message = (16 + payload.len() as u32).to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(NLM_F_MULTI.to_ne_bytes());
    message.extend(SEQUENCE.to_ne_bytes());
    message.extend(1303u32.to_ne_bytes());
    message.extend(payload);
    message
}

/// Decodes a whole dump into `sockets`, as the reader does with the datagrams that it receives.
///
/// # Panics
///
/// When the dump cannot be decoded or has no end.
pub(crate) fn decode(datagrams: &[Vec<u8>], sockets: &mut Vec<ListenSocket>) {
    sockets.clear();
    let mut progress = Progress::More;
    for datagram in datagrams {
        progress = diag_stream::decode(datagram, SEQUENCE, |payload| {
            sockets.extend(inet_diag::decode_row(payload)?.map(|row| row.socket));
            Ok(())
        })
        .unwrap();
    }
    assert_eq!(progress, Progress::Done);
}

/// The snapshot of one namespace with these listeners, in a tick that reads only the dump.
pub(crate) fn snapshot(listeners: &[Listener]) -> Snapshot {
    let mut dump = Dump { interval: INTERVAL, is_same: false, part: None, sockets: Vec::new() };
    decode(&datagrams(listeners), &mut dump.sockets);
    let sample = NetnsSample::new(NetnsId(1), "host".into(), false);
    let namespaces = vec![NetnsSample { tcp: Some(dump), ..sample }];
    Snapshot { namespaces, ..Snapshot::default() }
}
