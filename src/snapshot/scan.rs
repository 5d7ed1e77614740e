//! What one connection scan saw in one namespace: the listeners, their half-open and waiting connections, and the number
//! of their accepted ones. The kernel does not report which listener a connection belongs to: the state decides that.

use std::net::IpAddr;
use std::time::Duration;

use super::{Cookie, ListenAddress, UnixAddress};

/// A client that closes earlier than this did not leave for the wait.
pub const LEFT_AT_ONCE: Duration = Duration::from_millis(100);

/// A connection scan of one namespace. `None` = that part could not be read: nothing is known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scan {
    /// How long before the sample it comes with it was taken.
    pub age: Duration,
    /// The TCP part.
    pub tcp: Option<TcpScan>,
    /// The Unix listeners that held a queue.
    pub unix: Option<Vec<UnixQueue>>,
}

/// TCP listeners and the connections on their way into a process.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TcpScan {
    /// The listen sockets.
    pub sockets: Vec<ScannedSocket>,
    /// Request sockets: the handshake is not finished.
    pub half_open: Vec<HalfOpen>,
    /// Connections that no process has accepted.
    pub waiting: Vec<Waiting>,
    /// Accepted connections that are open, by their local end.
    pub open: Vec<(Local, u64)>,
    /// Half-closed connections that a process has accepted and whose client has received data since. Sorted.
    pub answered: Vec<Cookie>,
}

/// A listen socket, as a scan sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScannedSocket {
    /// Its cookie.
    pub cookie: Cookie,
    /// Where it listens, in people's terms.
    pub address: ListenAddress,
    /// Where it listens, in the kernel's.
    pub local: Local,
    /// Whether IPv4 clients do not reach it though it listens on `::` (`IPV6_V6ONLY`).
    pub is_v6_only: bool,
    /// The smaller of the lengths before and after the walk: the connections were there at some time in between.
    pub length: u32,
    /// The larger of the two: connections beyond it do not wait, whatever their rows look like.
    pub longest: u32,
    /// Whether the connections of its port were read.
    pub is_read: bool,
    /// Whether the connection table proves that it has accepted.
    pub has_accepted: bool,
}

/// The local end of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Local {
    /// The address; of a connection never a wildcard.
    pub ip: IpAddr,
    /// The port.
    pub port: u16,
    /// The index of the interface it is bound to, or 0.
    pub interface: u32,
}

/// A half-open connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HalfOpen {
    /// Its local end.
    pub local: Local,
    /// How often its SYN-ACK was repeated.
    pub repeats: u8,
}

/// A connection that waits to be accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Which one.
    pub cookie: Cookie,
    /// Its local end.
    pub local: Local,
    /// How long it has waited; `None` where the kernel does not say.
    pub age: Option<Duration>,
    /// Whether the client has closed it, or its own half of it.
    pub is_closed: bool,
    /// How long the client waited before that; `None` where the kernel does not say, and where keepalive probes make
    /// the client's kernel answer after the client has left.
    pub patience: Option<Duration>,
}

/// A Unix listener's queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixQueue {
    /// Which socket.
    pub cookie: Cookie,
    /// What it listens on.
    pub address: UnixAddress,
    /// The inodes of the waiting clients, the longest-waiting first; 0 = that client is gone.
    pub clients: Vec<u32>,
    /// Accepted connections to this name that are open.
    pub open: u64,
}

// === impl Waiting ===

impl Waiting {
    /// Whether the client waited before it closed. One that closes at once checks a port, or closes only its own half
    /// and waits for the answer: both look alike.
    pub fn has_left(&self) -> bool {
        self.is_closed && self.patience.is_none_or(|patience| patience >= LEFT_AT_ONCE)
    }
}

// === impl HalfOpen ===

impl HalfOpen {
    /// Whether it is open for 3 s or longer: the SYN-ACK is repeated after 1 s, and again 2 s later.
    pub fn is_old(&self) -> bool {
        self.repeats >= 2
    }
}
