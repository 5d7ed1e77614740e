//! Scans the connections of one namespace that no process has accepted yet.
//!
//! These are request sockets and rows of the established hash without an inode
//! (`net/ipv4/inet_diag.c`). `tcpi_last_data_sent` of a row without an inode is its age, because
//! the server never sent data on the connection. Accepted connections are counted, not kept.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use netlink_packet_core::{NlasIterator, Parseable};
use netlink_packet_sock_diag::inet::InetResponseHeader;
use rustc_hash::{FxHashMap, FxHashSet};

use super::acceptors::{Acceptors, Ended};
use super::device::Devices;
use super::diag_stream::{DumpError, malformed};
use super::inet_diag::{LISTEN, MESSAGE, Request};
use super::netlink::{Channel, Datagram};
use super::port_filter::only_ports;
use super::unix_diag;
use crate::snapshot::scan::{HalfOpen, Local, Scan, ScannedSocket, TcpScan, UnixQueue, Waiting};
use crate::snapshot::{Cookie, ListenAddress};

/// `INET_DIAG_INFO`.
const INFO: u16 = 2;
/// `INET_DIAG_SKV6ONLY`.
const V6_ONLY: u16 = 11;
/// `tcpi_last_data_sent`, in milliseconds, in `struct tcp_info`.
const LAST_DATA_SENT: std::ops::Range<usize> = 44..48;
/// `tcpi_last_ack_recv`, in milliseconds.
const LAST_ACK_RECEIVED: std::ops::Range<usize> = 56..60;
/// `tcpi_bytes_acked`.
const BYTES_ACKED: std::ops::Range<usize> = 120..128;
/// `tcpi_data_segs_out`, from Linux 4.6 on.
const DATA_SEGMENTS_SENT: std::ops::Range<usize> = 156..160;
/// Size of `struct nlattr`.
const ATTRIBUTE_HEADER: usize = 4;
/// Offset of `idiag_timer`.
const TIMER: usize = 2;
/// The value of `idiag_timer` while the keepalive timer runs.
const KEEPALIVE: u8 = 2;
/// Offset of `idiag_retrans`.
const REPEATS: usize = 3;
/// `idiag_expires`, in milliseconds.
const EXPIRES: std::ops::Range<usize> = 52..56;
/// Duration of TIME_WAIT.
const TIME_WAIT_LASTS: Duration = Duration::from_secs(60);
/// Maximum number of answered half-closed connections recorded in one scan.
const MAX_ANSWERED: usize = 4_096;

const ESTABLISHED: u8 = 1;
const SYN_RECV: u8 = 3;
const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
const TIME_WAIT: u8 = 6;
const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;
const CLOSING: u8 = 11;
/// States of connections that a process may have accepted.
const ACCEPTED: &[u8] =
    &[ESTABLISHED, FIN_WAIT1, FIN_WAIT2, TIME_WAIT, CLOSE_WAIT, LAST_ACK, CLOSING];

/// Scans the namespace in which the reader was opened. The reader keeps that namespace alive.
pub struct ConnectionReader {
    channel: Channel,
    devices: Devices,
    acceptors: Acceptors,
    rows: u64,
}

/// Result of one walk over the rows.
#[derive(Debug, Default)]
pub struct Walked {
    /// Request sockets.
    pub half_open: Vec<HalfOpen>,
    /// Connections that no process has accepted.
    pub waiting: Vec<Waiting>,
    /// Number of open accepted connections by local address.
    pub open: FxHashMap<Local, u64>,
    /// Half-closed connections that a process has accepted and whose client has received data.
    pub answered: Vec<Cookie>,
}

// === impl ConnectionReader ===

impl ConnectionReader {
    /// Opens a reader in the calling thread's namespace; `None` if netlink is unavailable.
    pub fn open() -> Result<Option<Self>, DumpError> {
        match Channel::open() {
            Err(error) if error.means_unavailable() => Ok(None),
            channel => Ok(Some(Self {
                channel: channel?,
                devices: Devices::default(),
                acceptors: Acceptors::default(),
                rows: 0,
            })),
        }
    }

    /// Returns the number of rows that the kernel has sent so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Returns the total time for which scans may have delayed other dumps of the machine.
    pub fn walked(&self) -> Duration {
        self.channel.walked()
    }

    /// Runs one scan. Waiting connections are read only for listeners with a non-empty queue.
    pub fn scan(&mut self, datagram: &mut Datagram) -> Result<Scan, DumpError> {
        self.devices.refresh();
        let tcp = self.scan_tcp(datagram)?;
        let unix = match self.scan_unix(datagram) {
            Err(error) if error.means_unavailable() => None,
            unix => unix?,
        };
        Ok(Scan { age: Duration::ZERO, tcp: Some(tcp), unix })
    }

    fn scan_tcp(&mut self, datagram: &mut Datagram) -> Result<TcpScan, DumpError> {
        let mut sockets = self.listeners(datagram)?;
        let mut found = Walked::default();
        self.walk(&mut Request::states(&[SYN_RECV]).with(INFO).build(), datagram, &mut found)?;
        let queued = sockets.iter().filter(|socket| socket.length > 0);
        let ports: FxHashSet<u16> = queued.map(|socket| socket.local.port).collect();
        let mut after = FxHashMap::default();
        if !ports.is_empty() {
            let request = Request::states(&[ESTABLISHED, CLOSE_WAIT]).with(INFO);
            let filter = only_ports(&ports.iter().copied().collect::<Vec<_>>());
            self.walk(&mut request.filtered(filter).build(), datagram, &mut found)?;
            after = self.lengths(datagram, &ports)?;
        }
        self.find_acceptors(&sockets, datagram)?;
        for (nth, socket) in sockets.iter_mut().enumerate() {
            self.complete(nth, socket, &after);
            socket.is_read = ports.contains(&socket.local.port);
        }
        Ok(found.into_scan(sockets))
    }

    /// Searches for accepted connections of listeners that are not known to accept. The search for
    /// a listener ends with its first accepted connection.
    fn find_acceptors(
        &mut self,
        listeners: &[ScannedSocket],
        datagram: &mut Datagram,
    ) -> Result<(), DumpError> {
        let known = listeners.iter().map(|socket| (socket.cookie, socket.local));
        let Some(filter) = only_ports(&self.acceptors.begin(known, Instant::now())) else {
            return Ok(());
        };
        if filter.is_empty() {
            return Ok(());
        }
        let mut request = Request::states(ACCEPTED).filtered(Some(filter)).build();
        let (rows, acceptors) = (&mut self.rows, &mut self.acceptors);
        self.channel.dump(&mut request, datagram, |payload| {
            *rows += 1;
            if let Some((local, ended)) = decode_accepted(payload)? {
                acceptors.found(&local, ended);
            }
            Ok(())
        })
    }

    /// Adds the facts about the `nth` listener that its row does not contain. `after` contains the
    /// lengths of the queues that were read again.
    fn complete(&mut self, nth: usize, socket: &mut ScannedSocket, after: &FxHashMap<Cookie, u32>) {
        let interface = socket.local.interface;
        if interface != 0 {
            socket.address.device = Some(self.devices.name(&self.channel, interface));
        }
        if let Some(after) = after.get(&socket.cookie) {
            socket.longest = socket.length.max(*after);
            socket.length = socket.length.min(*after);
        }
        socket.accepted_ago = self.acceptors.accepted_ago(nth);
    }

    /// Returns the listeners, sorted by cookie. There may be very many, so the list neither grows
    /// step by step nor is it copied.
    fn listeners(&mut self, datagram: &mut Datagram) -> Result<Vec<ScannedSocket>, DumpError> {
        const NEW: usize = 64;
        let mut sockets = Vec::with_capacity(self.acceptors.len() + NEW);
        self.each_listener(datagram, |socket| sockets.push(socket))?;
        // A dump may contain a row twice.
        sockets.sort_unstable_by_key(|socket| socket.cookie);
        sockets.dedup_by_key(|socket| socket.cookie);
        Ok(sockets)
    }

    /// Returns the lengths of the queues of the listeners at these ports.
    fn lengths(
        &mut self,
        datagram: &mut Datagram,
        ports: &FxHashSet<u16>,
    ) -> Result<FxHashMap<Cookie, u32>, DumpError> {
        let mut lengths = FxHashMap::default();
        self.each_listener(datagram, |socket| {
            if ports.contains(&socket.local.port) {
                lengths.insert(socket.cookie, socket.length);
            }
        })?;
        Ok(lengths)
    }

    fn each_listener(
        &mut self,
        datagram: &mut Datagram,
        mut each: impl FnMut(ScannedSocket),
    ) -> Result<(), DumpError> {
        let mut request = Request::states(&[LISTEN]).build();
        let rows = &mut self.rows;
        self.channel.dump(&mut request, datagram, |payload| {
            if let Some(socket) = decode_listener(payload)? {
                *rows += 1;
                each(socket);
            }
            Ok(())
        })
    }

    fn walk(
        &mut self,
        request: &mut [u8],
        datagram: &mut Datagram,
        found: &mut Walked,
    ) -> Result<(), DumpError> {
        let rows = &mut self.rows;
        self.channel.dump(request, datagram, |payload| {
            *rows += 1;
            decode_connection(payload, found)
        })
    }

    /// Reads the queues of Unix listeners.
    ///
    /// Returns `None` if a queue is too long for the kernel to list. The kernel would end the dump
    /// at that queue without an error.
    fn scan_unix(&mut self, datagram: &mut Datagram) -> Result<Option<Vec<UnixQueue>>, DumpError> {
        let (mut longest, mut queued) = (0, 0);
        self.channel.dump(&mut unix_diag::request(), datagram, |payload| {
            if let Some(row) = unix_diag::decode_row(payload)?
                && row.queue.length > 0
            {
                (longest, queued) = (row.queue.length.max(longest), queued + 1);
            }
            Ok(())
        })?;
        if queued == 0 || longest > unix_diag::LONGEST_QUEUE {
            return Ok((queued == 0).then(Vec::new));
        }
        let mut queues = Vec::new();
        let rows = &mut self.rows;
        self.channel.dump(&mut unix_diag::queue_request(), datagram, |payload| {
            *rows += 1;
            queues.extend(unix_diag::decode_queue(payload)?);
            Ok(())
        })?;
        self.count_unix(&mut queues, datagram)?;
        Ok(Some(queues))
    }

    fn count_unix(
        &mut self,
        queues: &mut [UnixQueue],
        datagram: &mut Datagram,
    ) -> Result<(), DumpError> {
        let rows = &mut self.rows;
        self.channel.dump(&mut unix_diag::connection_request(), datagram, |payload| {
            *rows += 1;
            if let Some(name) = unix_diag::decode_accepted(payload)? {
                let behind = queues.iter_mut().filter(|queue| queue.address == name);
                behind.for_each(|queue| queue.open += 1);
            }
            Ok(())
        })
    }
}

/// Decodes a row of a LISTEN dump, as a listener whose connections were not read.
fn decode_listener(payload: &[u8]) -> Result<Option<ScannedSocket>, DumpError> {
    let header = InetResponseHeader::parse(payload).map_err(malformed)?;
    if header.state != LISTEN {
        return Ok(None);
    }
    let v6_only = attribute(payload, V6_ONLY)?.and_then(<[u8]>::first);
    let (local, length) = (local(&header), header.recv_queue);
    Ok(Some(ScannedSocket {
        cookie: Cookie::from_halves(header.socket_id.cookie),
        address: ListenAddress { ip: local.ip, port: local.port, device: None },
        local,
        is_v6_only: v6_only.is_some_and(|flag| *flag != 0),
        length,
        longest: length,
        is_read: false,
        accepted_ago: None,
    }))
}

/// Decodes one row into `found`.
///
/// A socket that a process holds has an inode. A request socket has neither an inode nor
/// `tcp_info`. A TCP Fast Open child is in the accept queue before its handshake is complete, and
/// has `tcp_info`.
pub fn decode_connection(payload: &[u8], found: &mut Walked) -> Result<(), DumpError> {
    let header = InetResponseHeader::parse(payload).map_err(malformed)?;
    if header.inode != 0 {
        return found.accepted(&header, payload);
    }
    let info = attribute(payload, INFO)?;
    if header.state == SYN_RECV && info.is_none() {
        let repeats = payload.get(REPEATS).copied().unwrap_or_default();
        found.half_open.push(HalfOpen { local: local(&header), client: client(&header), repeats });
    } else if !has_sent(info) {
        let has_keepalive = payload.get(TIMER) == Some(&KEEPALIVE);
        found.waiting.push(waiting(&header, info, has_keepalive));
    }
    Ok(())
}

/// Whether the server has sent data, which means that a process has accepted and closed the
/// connection.
///
/// Linux 6.1 also shows such MPTCP connections as established until the client closes them.
fn has_sent(info: Option<&[u8]>) -> bool {
    number(info, DATA_SEGMENTS_SENT).is_some_and(|segments| segments > 0)
}

fn waiting(header: &InetResponseHeader, info: Option<&[u8]>, has_keepalive: bool) -> Waiting {
    let time = |at| number(info, at).map(|time| Duration::from_millis(time.into()));
    let (age, last_ack) = (time(LAST_DATA_SENT), time(LAST_ACK_RECEIVED));
    let is_closed = header.state == CLOSE_WAIT;
    let is_measured = is_closed && !has_keepalive;
    let patience = age.zip(last_ack).filter(|_| is_measured);
    Waiting {
        cookie: Cookie::from_halves(header.socket_id.cookie),
        local: local(header),
        client: client(header),
        age,
        is_closed,
        patience: patience.map(|(age, last_ack)| age.saturating_sub(last_ack)),
    }
}

/// Decodes the local address and end state of an accepted connection; `None` if it still waits.
fn decode_accepted(payload: &[u8]) -> Result<Option<(Local, Ended)>, DumpError> {
    let header = InetResponseHeader::parse(payload).map_err(malformed)?;
    let ended = match header.state {
        ESTABLISHED | CLOSE_WAIT if header.inode == 0 => return Ok(None),
        ESTABLISHED | CLOSE_WAIT => Ended::No,
        TIME_WAIT => {
            let left = number(Some(payload), EXPIRES).unwrap_or_default();
            Ended::Ago(TIME_WAIT_LASTS.saturating_sub(Duration::from_millis(left.into())))
        }
        _ => Ended::JustNow,
    };
    Ok(Some((local(&header), ended)))
}

fn number(bytes: Option<&[u8]>, at: std::ops::Range<usize>) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes?.get(at)?.try_into().ok()?))
}

// === impl Walked ===

impl Walked {
    /// Records the row of a connection that a process holds.
    fn accepted(&mut self, header: &InetResponseHeader, payload: &[u8]) -> Result<(), DumpError> {
        *self.open.entry(local(header)).or_default() += 1;
        if header.state == CLOSE_WAIT && self.answered.len() < MAX_ANSWERED {
            let acked = attribute(payload, INFO)?.and_then(|info| info.get(BYTES_ACKED));
            if acked.is_some_and(|acked| acked != [0; 8]) {
                self.answered.push(Cookie::from_halves(header.socket_id.cookie));
            }
        }
        Ok(())
    }

    /// Converts the result into a scan and removes duplicate rows, which a dump may contain.
    fn into_scan(mut self, sockets: Vec<ScannedSocket>) -> TcpScan {
        self.waiting.sort_by_key(|waiting| waiting.cookie);
        self.waiting.dedup_by_key(|waiting| waiting.cookie);
        self.answered.sort_unstable();
        let Self { half_open, waiting, open, answered } = self;
        TcpScan { sockets, half_open, waiting, open: open.into_iter().collect(), answered }
    }
}

fn local(header: &InetResponseHeader) -> Local {
    let id = &header.socket_id;
    Local { ip: id.source_address, port: id.source_port, interface: id.interface_id }
}

fn client(header: &InetResponseHeader) -> IpAddr {
    header.socket_id.destination_address
}

fn attribute(payload: &[u8], wanted: u16) -> Result<Option<&[u8]>, DumpError> {
    for attribute in NlasIterator::new(payload.get(MESSAGE..).unwrap_or_default()) {
        let attribute = attribute.map_err(malformed)?;
        if attribute.kind() == wanted {
            let end = usize::from(attribute.length());
            return Ok(attribute.into_inner().get(ATTRIBUTE_HEADER..end));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
    use std::thread;

    use super::*;

    fn scan() -> Scan {
        ConnectionReader::open().unwrap().unwrap().scan(&mut Datagram::default()).unwrap()
    }

    #[test]
    fn only_connections_that_no_process_accepted_are_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connect = || TcpStream::connect(address).unwrap();
        let (_first, second) = (connect(), connect());
        let _accepted = listener.accept().unwrap();
        let (third, waited) = (connect(), Duration::from_millis(120));
        drop(third);
        thread::sleep(waited);

        let tcp = scan().tcp.unwrap();
        let mut waiting: Vec<Waiting> = tcp.waiting;
        waiting.retain(|waiting| waiting.local.port == address.port());
        waiting.sort_by_key(|waiting| waiting.is_closed);
        assert_eq!(
            waiting.iter().map(|waiting| waiting.is_closed).collect::<Vec<_>>(),
            [false, true]
        );
        assert!(waiting.iter().all(|waiting| waiting.local.ip == address.ip()));
        for waiting in waiting {
            let age = waiting.age.unwrap();
            assert!(age >= waited - Duration::from_millis(20), "{age:?}");
        }
        let socket = tcp.sockets.iter().find(|socket| socket.local.port == address.port());
        assert_eq!(socket.unwrap().length, 2);
        drop(second);
    }

    #[test]
    fn clients_of_a_unix_queue_are_in_queue_order() {
        let name = format!("listenq-scan-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let connect = || UnixStream::connect_addr(&address).unwrap();
        let (first, second) = (connect(), connect());
        let mine = || {
            let queues = scan().unix.unwrap();
            queues.into_iter().find(|queue| queue.address.name.label() == format!("@{name}"))
        };
        let both = mine().unwrap().clients;
        assert!(both.len() == 2 && both.iter().all(|inode| *inode != 0), "{both:?}");
        drop(first);
        assert_eq!(mine().unwrap().clients, [0, both[1]]);
        assert_eq!(mine().unwrap().open, 0);
        let accepted = listener.accept().unwrap();
        let queue = mine().unwrap();
        assert_eq!((queue.clients, queue.open), (vec![both[1]], 1));
        drop(accepted);
        assert_eq!(mine().unwrap().open, 0);
        listener.accept().unwrap();
        assert_eq!(mine(), None);
        drop(second);
    }

    #[test]
    fn the_v6_only_attribute_is_decoded() {
        use socket2::{Domain, Socket, Type};
        for v6_only in [false, true] {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
            socket.set_only_v6(v6_only).unwrap();
            let any: std::net::SocketAddr = "[::]:0".parse().unwrap();
            socket.bind(&any.into()).unwrap();
            socket.listen(1).unwrap();
            let port = socket.local_addr().unwrap().as_socket().unwrap().port();
            let sockets = scan().tcp.unwrap().sockets;
            let found = sockets.iter().find(|socket| socket.local.port == port).unwrap();
            assert_eq!(found.is_v6_only, v6_only);
        }
    }

    #[test]
    fn rubbish_fails_the_scan() {
        assert!(decode_connection(&[0; 10], &mut Walked::default()).is_err());
        assert!(decode_listener(&[2; 71]).is_err());
    }
}
