//! The results of one connection scan in one namespace: the listeners, their half-open and waiting
//! connections, and the number of their accepted connections. The kernel does not report the
//! listener of a connection: the state determines the listener.

use std::net::IpAddr;
use std::time::Duration;

use super::{Cookie, ListenAddress, UnixAddress};

/// The shortest wait of a client that left because of the wait. A client that closes earlier has
/// another reason.
pub const LEFT_AT_ONCE: Duration = Duration::from_millis(100);

/// A connection scan of one namespace. `None` means that the part could not be read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scan {
    /// The time from the scan to the sample that contains it.
    pub age: Duration,
    pub tcp: Option<TcpScan>,
    /// The Unix listeners that held a queue.
    pub unix: Option<Vec<UnixQueue>>,
}

/// TCP listeners and their connections.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TcpScan {
    /// The listen sockets.
    pub sockets: Vec<ScannedSocket>,
    /// Request sockets: the handshake is not finished.
    pub half_open: Vec<HalfOpen>,
    /// Connections that no process has accepted.
    pub waiting: Vec<Waiting>,
    /// Open accepted connections by local end.
    pub open: Vec<(Local, u64)>,
    /// Half-closed connections that a process has accepted and whose client has received data
    /// since. Sorted.
    pub answered: Vec<Cookie>,
}

/// A listen socket as read by a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScannedSocket {
    pub cookie: Cookie,
    /// Its address as shown in labels.
    pub address: ListenAddress,
    /// Its address as the kernel reports it.
    pub local: Local,
    /// Whether IPv4 clients cannot reach a socket that listens on `::` (`IPV6_V6ONLY`).
    pub is_v6_only: bool,
    /// The smaller of the lengths before and after the walk. This number of connections waited at
    /// some time in between.
    pub length: u32,
    /// The larger of the two lengths. Connections beyond this number do not wait, even if their
    /// rows look like those of waiting connections.
    pub longest: u32,
    /// Whether the connections of its port were read.
    pub is_read: bool,
    /// Time since the address of the socket last had an accepted connection, or zero if the socket
    /// itself is known to have accepted one; `None` if no accepted connection is known. The kernel
    /// shows a connection for one minute after the server closed it (TIME_WAIT).
    pub accepted_ago: Option<Duration>,
}

/// The local end of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Local {
    /// The address. The address of a connection is never a wildcard.
    pub ip: IpAddr,
    pub port: u16,
    /// The index of the interface it is bound to, or 0.
    pub interface: u32,
}

/// A half-open connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HalfOpen {
    pub local: Local,
    /// The address of the client.
    pub client: IpAddr,
    /// How often its SYN-ACK was repeated.
    pub repeats: u8,
}

/// A connection that waits to be accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub cookie: Cookie,
    pub local: Local,
    /// The address of the client.
    pub client: IpAddr,
    /// How long the connection has waited; `None` where the kernel does not report it.
    pub age: Option<Duration>,
    /// Whether the client has closed the connection, or its own half of it.
    pub is_closed: bool,
    /// How long the client waited before it closed; `None` if the kernel does not report the time,
    /// or if keepalive probes make the kernel of the client answer after the client has left.
    pub patience: Option<Duration>,
}

/// The queue of a Unix listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixQueue {
    pub cookie: Cookie,
    /// The address of the socket.
    pub address: UnixAddress,
    /// The inodes of the waiting clients, the longest-waiting first; 0 means that the client is
    /// gone.
    pub clients: Vec<u32>,
    /// Open accepted connections to this name.
    pub open: u64,
}

// === impl Waiting ===

impl Waiting {
    /// Whether the client waited before it closed. A client that closes at once either checks a
    /// port, or closes only its own half and waits for the answer: both look alike.
    pub fn has_left(&self) -> bool {
        self.is_closed && self.patience.is_none_or(|patience| patience >= LEFT_AT_ONCE)
    }
}

// === impl HalfOpen ===

impl HalfOpen {
    /// Whether the connection has been half open for 3 s or longer: the SYN-ACK is repeated after
    /// 1 s, and again 2 s later.
    pub fn is_old(&self) -> bool {
        self.repeats >= 2
    }
}
