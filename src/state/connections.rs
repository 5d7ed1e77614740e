//! Finds the listener of each connection. The kernel reports only the local address of a
//! connection, and looks up the listener by this address (`net/ipv4/inet_hashtables.c`). A
//! reuseport group is one listener.

use std::net::IpAddr;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::snapshot::ListenAddress;
use crate::snapshot::scan::{Local, ScannedSocket, TcpScan, Waiting};

use super::clients::ClientCounts;

/// The half-open connections of one listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct HalfOpenCount {
    pub(super) all: u64,
    /// Connections that are 3 s old or older (`HalfOpen::is_old`).
    pub(super) old: u64,
}

/// The result of a scan for one listener.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ListenerScan {
    /// The sum of the queue lengths of its sockets.
    pub(super) length: u64,
    /// The sum of the largest queue lengths of its sockets during the scan.
    pub(super) longest: u64,
    pub(super) half_open: HalfOpenCount,
    /// The waiting connections.
    pub(super) waiting: Vec<Waiting>,
    /// Open accepted connections; `None` if the scan did not read them.
    pub(super) open: Option<u64>,
    /// The clients of the waiting and half-open connections.
    pub(super) clients: ClientCounts,
}

// === impl ListenerScan ===

impl ListenerScan {
    /// Drops the rows of connections that do not wait. Rows beyond the longest queue length during
    /// the scan do not wait: they are the oldest rows, because the queue is served in order.
    pub(super) fn drop_excess(&mut self) {
        let excess = self.waiting.len().saturating_sub(self.longest as usize);
        if excess > 0 {
            self.waiting.sort_by_key(|row| std::cmp::Reverse(row.age));
            self.waiting.drain(..excess);
            self.waiting.sort_by_key(|row| row.cookie);
        }
    }
}

/// Groups the scan by listener; a listener without connections has an entry too, if `keeps_idle`
/// returns true for its address. Clients are counted if `names_clients`.
pub(super) fn by_listener(
    scan: &TcpScan,
    names_clients: bool,
    keeps_idle: impl Fn(&ListenAddress) -> bool,
) -> FxHashMap<ListenAddress, ListenerScan> {
    let busy = busy_ports(scan);
    let keeps = |socket: &&ScannedSocket| {
        socket.longest > 0 || busy.contains(&socket.local.port) || keeps_idle(&socket.address)
    };
    let mut listeners = Listeners::default();
    scan.sockets.iter().filter(keeps).for_each(|socket| listeners.add_socket(socket));
    listeners.add_connections(scan, names_clients);
    for listener in listeners.scans.values_mut() {
        listener.drop_excess();
        if names_clients {
            listener.waiting.iter().for_each(|row| listener.clients.waiting(row.client));
        }
    }
    listeners.scans
}

/// The local ports that have connections.
fn busy_ports(scan: &TcpScan) -> FxHashSet<u16> {
    let half_open = scan.half_open.iter().map(|one| one.local.port);
    let waiting = scan.waiting.iter().map(|one| one.local.port);
    let open = scan.open.iter().map(|(local, _)| local.port);
    half_open.chain(waiting).chain(open).collect()
}

/// The listeners of a scan, with an index to find the listener of a connection.
#[derive(Default)]
struct Listeners<'a> {
    scans: FxHashMap<ListenAddress, ListenerScan>,
    /// The listen sockets of each port. One member represents its reuseport group.
    by_port: FxHashMap<u16, Vec<&'a ScannedSocket>>,
    members: FxHashSet<(ListenAddress, bool)>,
    /// Results of earlier searches: there are many connections, but few local addresses.
    found: FxHashMap<Local, Option<ListenAddress>>,
}

// === impl Listeners ===

impl<'a> Listeners<'a> {
    fn add_socket(&mut self, socket: &'a ScannedSocket) {
        let listener = self.scans.entry(socket.address).or_default();
        listener.length += u64::from(socket.length);
        listener.longest += u64::from(socket.longest);
        listener.open = listener.open.or(socket.is_read.then_some(0));
        if self.members.insert((socket.address, socket.is_v6_only)) {
            self.by_port.entry(socket.local.port).or_default().push(socket);
        }
    }

    /// Adds each connection to its listener.
    fn add_connections(&mut self, scan: &TcpScan, names_clients: bool) {
        for half_open in &scan.half_open {
            let Some(listener) = self.of(&half_open.local) else { continue };
            listener.half_open.all += 1;
            listener.half_open.old += u64::from(half_open.is_old());
            if names_clients {
                listener.clients.half_open(half_open.client);
            }
        }
        for (local, connections) in &scan.open {
            let Some(listener) = self.of(local) else { continue };
            listener.open = listener.open.map(|open| open + connections);
        }
        for waiting in &scan.waiting {
            let Some(listener) = self.of(&waiting.local) else { continue };
            listener.waiting.push(*waiting);
        }
    }

    /// The listener of the connections with this local address.
    fn of(&mut self, local: &Local) -> Option<&mut ListenerScan> {
        let by_port = &self.by_port;
        let address = self.found.entry(*local).or_insert_with(|| look_up(by_port, local));
        self.scans.get_mut(address.as_ref()?)
    }
}

fn look_up(by_port: &FxHashMap<u16, Vec<&ScannedSocket>>, local: &Local) -> Option<ListenAddress> {
    let sockets = by_port.get(&local.port)?.iter();
    let ranked = sockets.filter_map(|socket| Some((rank(socket, local)?, socket)));
    ranked.max_by_key(|(rank, _)| *rank).map(|(_, socket)| socket.address)
}

/// How well a listen socket matches a connection: an exact address ranks first, then a socket bound
/// to the connection's interface, then a socket of the same address family. `None` if the socket
/// cannot be the connection's listener.
fn rank(socket: &ScannedSocket, connection: &Local) -> Option<(bool, bool, bool)> {
    let (listens, local) = (socket.local.ip.to_canonical(), connection.ip.to_canonical());
    let is_exact = listens == local;
    let is_same_family = listens.is_ipv4() == local.is_ipv4();
    let reaches_v4 = matches!(socket.local.ip, IpAddr::V6(_)) && !socket.is_v6_only;
    let is_wildcard = listens.is_unspecified() && (is_same_family || reaches_v4);
    let is_bound = socket.local.interface != 0;
    let is_elsewhere = is_bound && socket.local.interface != connection.interface;
    ((is_exact || is_wildcard) && !is_elsewhere).then_some((is_exact, is_bound, is_same_family))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::scan::HalfOpen;
    use crate::snapshot::{Cookie, DeviceName};

    fn local(ip: &str, interface: u32) -> Local {
        Local { ip: ip.parse().unwrap(), port: 80, interface }
    }

    fn socket(ip: &str, interface: u32, is_v6_only: bool) -> ScannedSocket {
        let local = local(ip, interface);
        let device = (interface != 0).then(|| DeviceName::new(&format!("if{interface}")));
        let address = ListenAddress { ip: local.ip, port: local.port, device };
        let cookie = Cookie(u64::from(interface));
        let (is_read, accepted_ago) = (true, None);
        ScannedSocket {
            cookie,
            address,
            local,
            is_v6_only,
            length: 1,
            longest: 2,
            is_read,
            accepted_ago,
        }
    }

    /// The listener of a connection to `ip` over interface `interface`.
    fn listener(sockets: &[ScannedSocket], ip: &str, interface: u32) -> Option<String> {
        let half_open = vec![HalfOpen {
            local: local(ip, interface),
            client: [10, 2, 3, 4].into(),
            repeats: 2,
        }];
        let scan = TcpScan { sockets: sockets.to_vec(), half_open, ..TcpScan::default() };
        let found = by_listener(&scan, true, |_| true);
        let mut hits = found.iter().filter(|(_, found)| found.half_open.all > 0);
        let hit = hits.next();
        assert!(hits.next().is_none() && hit.is_none_or(|(_, found)| found.half_open.old == 1));
        hit.map(|(address, _)| address.host())
    }

    #[test]
    fn the_exact_address_comes_before_the_wildcard() {
        let sockets =
            [socket("0.0.0.0", 0, false), socket("10.0.0.1", 0, false), socket("::", 0, true)];
        assert_eq!(listener(&sockets, "10.0.0.1", 0).as_deref(), Some("10.0.0.1"));
        assert_eq!(listener(&sockets, "10.0.0.2", 0).as_deref(), Some("0.0.0.0"));
        assert_eq!(listener(&sockets, "::1", 0).as_deref(), Some("::"));
    }

    #[test]
    fn ipv4_clients_reach_the_ipv6_wildcard_unless_it_is_v6_only() {
        assert_eq!(
            listener(&[socket("::", 0, false)], "::ffff:10.0.0.1", 0).as_deref(),
            Some("::")
        );
        assert_eq!(listener(&[socket("::", 0, false)], "10.0.0.1", 0).as_deref(), Some("::"));
        assert_eq!(listener(&[socket("::", 0, true)], "10.0.0.1", 0), None);
        let both = [socket("::", 0, false), socket("0.0.0.0", 0, false)];
        assert_eq!(listener(&both, "::ffff:10.0.0.1", 0).as_deref(), Some("0.0.0.0"));
    }

    #[test]
    fn a_listener_bound_to_the_interface_comes_first_and_one_bound_elsewhere_never() {
        let sockets = [socket("0.0.0.0", 0, false), socket("0.0.0.0", 3, false)];
        assert_eq!(listener(&sockets, "10.0.0.1", 3).as_deref(), Some("0.0.0.0%if3"));
        assert_eq!(listener(&sockets, "10.0.0.1", 4).as_deref(), Some("0.0.0.0"));
        assert_eq!(listener(&sockets[1..], "10.0.0.1", 4), None);
        // A link-local connection is bound to its interface, although its listener is not.
        assert_eq!(listener(&[socket("::", 0, false)], "fe80::1", 7).as_deref(), Some("::"));
    }

    #[test]
    fn a_group_is_one_listener_and_an_idle_listener_has_an_empty_entry() {
        let scan = TcpScan { sockets: vec![socket("10.0.0.1", 0, false); 3], ..TcpScan::default() };
        let found: Vec<ListenerScan> = by_listener(&scan, true, |_| true).into_values().collect();
        let expected =
            ListenerScan { length: 3, longest: 6, open: Some(0), ..ListenerScan::default() };
        assert_eq!(found, [expected]);
    }

    #[test]
    fn an_idle_listener_may_be_left_out() {
        let idle = |ip| ScannedSocket { length: 0, longest: 0, ..socket(ip, 0, false) };
        let mut sockets = vec![idle("10.0.0.1"), idle("10.0.0.2")];
        let scan = |sockets: &[ScannedSocket], half_open: &[HalfOpen]| {
            let (sockets, half_open) = (sockets.to_vec(), half_open.to_vec());
            let scan = TcpScan { sockets, half_open, ..TcpScan::default() };
            by_listener(&scan, false, |address| address.host() == "10.0.0.2")
        };
        assert_eq!(scan(&sockets, &[]).len(), 1);
        // A connection to the port of the idle listener may belong to that listener.
        let half_open = HalfOpen {
            local: local("10.0.0.1", 0),
            repeats: 0,
            client: "10.0.0.9".parse().unwrap(),
        };
        assert_eq!(scan(&sockets, &[half_open])[&sockets[0].address].half_open.all, 1);
        sockets[0].longest = 1;
        assert_eq!(scan(&sockets, &[]).len(), 2);
    }

    #[test]
    fn accepted_connections_are_counted_where_they_were_read() {
        let (here, there) = (socket("10.0.0.1", 0, false), socket("10.0.0.2", 0, false));
        let unread = ScannedSocket { is_read: false, ..there };
        let open = ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|ip| (local(ip, 0), 7));
        let scan =
            TcpScan { sockets: vec![here, unread], open: open.to_vec(), ..TcpScan::default() };
        let found = by_listener(&scan, true, |_| true);
        assert_eq!([here, unread].map(|socket| found[&socket.address].open), [Some(7), None]);
    }
}
