//! The connections of one namespace that no process has accepted yet: request sockets, and rows of the established
//! hash without an inode (`net/ipv4/inet_diag.c`). `tcpi_last_data_sent` of such a row is its age: the server
//! never sent anything on it.

use std::time::Duration;

use netlink_packet_core::{NlasIterator, Parseable};
use netlink_packet_sock_diag::inet::InetResponseHeader;

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
/// `struct nlattr`.
const ATTRIBUTE_HEADER: usize = 4;
/// Where `idiag_retrans` stands.
const REPEATS: usize = 3;

const ESTABLISHED: u8 = 1;
const SYN_RECV: u8 = 3;
const CLOSE_WAIT: u8 = 8;

/// Scans the namespace it was opened in. It keeps that namespace alive.
pub struct ConnectionReader {
    channel: Channel,
    devices: Devices,
    rows: u64,
}

/// A row of a LISTEN dump.
struct ListenRow {
    cookie: Cookie,
    local: Local,
    is_v6_only: bool,
    length: u32,
}

// === impl ConnectionReader ===

impl ConnectionReader {
    /// Opens a reader in the calling thread's namespace; `None` where there is no netlink.
    pub fn open() -> Result<Option<Self>, DumpError> {
        match Channel::open() {
            Err(error) if error.means_unavailable() => Ok(None),
            channel => Ok(Some(Self { channel: channel?, devices: Devices::default(), rows: 0 })),
        }
    }

    /// Rows that the kernel has sent so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Scans once. What waits is looked for only behind listeners that hold a queue.
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
        let before = self.listeners(datagram)?;
        let mut found = TcpScan::default();
        self.walk(&mut Request::states(&[SYN_RECV]).with(INFO).build(), datagram, &mut found)?;
        let queued = before.iter().filter(|row| row.length > 0);
        let ports: Vec<u16> = queued.map(|row| row.local.port).collect();
        let mut after = Vec::new();
        if !ports.is_empty() {
            let request = Request::states(&[ESTABLISHED, CLOSE_WAIT]).with(INFO);
            let mut request = request.filtered(only_ports(&ports)).build();
            self.walk(&mut request, datagram, &mut found)?;
            after = self.listeners(datagram)?;
            // A dump may show a row twice.
            found.waiting.sort_by_key(|waiting| waiting.cookie);
            found.waiting.dedup_by_key(|waiting| waiting.cookie);
        }
        let length_after = |cookie| {
            let place = after.binary_search_by_key(&cookie, |row: &ListenRow| row.cookie);
            place.ok().map(|place| after[place].length)
        };
        for row in before {
            let length = length_after(row.cookie).map_or(row.length, |after| after.min(row.length));
            found.sockets.push(self.scanned(&row, length));
        }
        Ok(found)
    }

    fn scanned(&mut self, row: &ListenRow, length: u32) -> ScannedSocket {
        let ListenRow { local, is_v6_only, .. } = *row;
        let Local { ip, port, interface } = local;
        let device = (interface != 0).then(|| self.devices.name(&self.channel, interface));
        ScannedSocket { address: ListenAddress { ip, port, device }, local, is_v6_only, length }
    }

    /// By cookie.
    fn listeners(&mut self, datagram: &mut Datagram) -> Result<Vec<ListenRow>, DumpError> {
        let mut request = Request::states(&[LISTEN]).build();
        let mut rows = Vec::new();
        self.channel.dump(&mut request, datagram, |payload| {
            rows.extend(decode_listener(payload)?);
            Ok(())
        })?;
        self.rows += rows.len() as u64;
        // A dump may show a row twice.
        rows.sort_by_key(|row: &ListenRow| row.cookie);
        rows.dedup_by_key(|row| row.cookie);
        Ok(rows)
    }

    fn walk(
        &mut self,
        request: &mut [u8],
        datagram: &mut Datagram,
        found: &mut TcpScan,
    ) -> Result<(), DumpError> {
        let rows = &mut self.rows;
        self.channel.dump(request, datagram, |payload| {
            *rows += 1;
            decode_connection(payload, found)
        })
    }

    /// The queues of Unix listeners; `None` where one of them is too long for the kernel to list: it would end the
    /// dump there without a word.
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
        Ok(Some(queues))
    }
}

fn decode_listener(payload: &[u8]) -> Result<Option<ListenRow>, DumpError> {
    let header = InetResponseHeader::parse(payload).map_err(malformed)?;
    if header.state != LISTEN {
        return Ok(None);
    }
    let v6_only = attribute(payload, V6_ONLY)?.and_then(<[u8]>::first);
    Ok(Some(ListenRow {
        cookie: Cookie::from_halves(header.socket_id.cookie),
        local: local(&header),
        is_v6_only: v6_only.is_some_and(|flag| *flag != 0),
        length: header.recv_queue,
    }))
}

/// A row of a process has an inode; a request socket has neither that nor `tcp_info`, where a child made by
/// Fast Open, in the accept queue before its handshake is over, has.
pub fn decode_connection(payload: &[u8], found: &mut TcpScan) -> Result<(), DumpError> {
    let header = InetResponseHeader::parse(payload).map_err(malformed)?;
    if header.inode != 0 {
        return Ok(());
    }
    let info = attribute(payload, INFO)?;
    if header.state == SYN_RECV && info.is_none() {
        let repeats = payload.get(REPEATS).copied().unwrap_or_default();
        found.half_open.push(HalfOpen { local: local(&header), repeats });
    } else {
        let sent = info.and_then(|info| info.get(LAST_DATA_SENT)?.try_into().ok());
        found.waiting.push(Waiting {
            cookie: Cookie::from_halves(header.socket_id.cookie),
            local: local(&header),
            age: sent.map(u32::from_ne_bytes).map(|sent| Duration::from_millis(sent.into())),
            is_closed: header.state == CLOSE_WAIT,
        });
    }
    Ok(())
}

fn local(header: &InetResponseHeader) -> Local {
    let id = &header.socket_id;
    Local { ip: id.source_address, port: id.source_port, interface: id.interface_id }
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
    fn only_connections_that_nobody_accepted_are_found() {
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
    fn clients_of_a_unix_queue_stand_in_its_order() {
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
        listener.accept().unwrap();
        assert_eq!(mine().unwrap().clients, [both[1]]);
        listener.accept().unwrap();
        assert_eq!(mine(), None);
        drop(second);
    }

    #[test]
    fn v6_only_is_told() {
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
        assert!(decode_connection(&[0; 10], &mut TcpScan::default()).is_err());
        assert!(decode_listener(&[2; 71]).is_err());
    }
}
