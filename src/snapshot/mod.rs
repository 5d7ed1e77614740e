//! The results of one sample in kernel terms: plain values copied from netlink and procfs, with
//! types that give the values a meaning. Uses no file, clock or socket.

mod escape;
pub mod owner;
pub mod owner_reading;
pub mod scan;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;

use crate::snapshot::owner::Owner;
use crate::snapshot::owner_reading::{LocalEnd, SocketOwnerReading};

pub use escape::{escaped, printable};
use scan::Scan;

/// The kernel's identifier of one listen socket inside its namespace (`idiag_cookie`). Where only
/// `/proc/net/tcp` is available, the socket's inode replaces the cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cookie(pub u64);

/// Kind of value that the cookies of a dump contain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Identity {
    /// The kernel's cookies.
    #[default]
    Cookie,
    /// The inode of each socket (`/proc/net/tcp`).
    Inode,
}

/// An accept queue as the kernel reports it for one LISTEN row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AcceptQueue {
    /// Connections that finished the handshake and wait for `accept(2)` (`sk_ack_backlog`).
    pub length: u32,
    /// The queue limit (`sk_max_ack_backlog`); `None` where the source does not report it.
    pub limit: Option<u32>,
}

/// A network interface name, stored inline: `IFNAMSIZ` bytes, padded with NUL.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceName([u8; 16]);

/// The address of a listen socket. With protocol and namespace, it identifies a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenAddress {
    /// The bound address; `0.0.0.0` and `::` are different listeners.
    pub ip: IpAddr,
    pub port: u16,
    /// The interface of the socket: `SO_BINDTODEVICE`, or the zone of a link-local address.
    pub device: Option<DeviceName>,
}

/// A Unix socket name (`sun_path`), stored inline: a path, or NUL and an abstract name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UnixName {
    bytes: [u8; UnixName::LONGEST],
    length: u8,
}

/// The address of a Unix listen socket. Several sockets may have one name: containers with separate
/// root directories, or a socket whose file another server removed and made again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UnixAddress {
    /// The path or the abstract name.
    pub name: UnixName,
    /// The file at the path; `None` for an abstract name.
    pub file: Option<UnixFile>,
}

/// The socket file of a Unix socket, even after its removal (`UNIX_DIAG_VFS`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UnixFile {
    /// The device number of its filesystem.
    pub device: u32,
    /// The lower 32 bits of its inode number.
    pub inode: u32,
}

/// One LISTEN row. Its address is a [`ListenAddress`] or a [`UnixAddress`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenSocket<A = ListenAddress> {
    pub cookie: Cookie,
    /// The address of the socket.
    pub address: A,
    /// The accept queue of the socket.
    pub queue: AcceptQueue,
    /// `sk_drops`: segments discarded at this socket since its creation, modulo 2^32.
    pub drops: Option<u32>,
    /// The data that leads to the socket's owner.
    pub origin: Origin,
}

/// The data that leads from a listen socket to its owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The inode in the links of `/proc/<pid>/fd`.
    pub inode: u32,
    /// The cgroup v2 of its creator (`INET_DIAG_CGROUP_ID`), where the kernel reports it.
    pub cgroup: Option<u64>,
    /// The user id of its creator in listenq's own user namespace, where the kernel reports it.
    pub uid: Option<u32>,
}

/// The rows of one complete LISTEN dump, or answers for each socket of the last dump when these
/// answers show no need for a new dump. A dump is not atomic: it may miss a living socket or
/// contain a socket twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dump<A = ListenAddress> {
    /// The current target interval between dumps.
    pub interval: Duration,
    /// Whether the dump is identical to the last good dump.
    pub is_same: bool,
    /// The positions of the rows that were read in place of a dump that is due; `None` for a
    /// complete reading. The other rows are those of the last complete reading, and the counters of
    /// the namespace wait for the next one.
    pub part: Option<Arc<[usize]>>,
    /// The rows, in the kernel's order.
    pub sockets: Vec<ListenSocket<A>>,
}

/// The `netns` label of listenq's own namespace.
pub const OWN_NETNS: &str = "host";
/// The beginning of the `netns` label of a namespace without a name; its inode follows.
pub const UNNAMED_NETNS: &str = "netns:";

/// A network namespace: the inode of its `ns/net` link. The inode is unique while a process or file
/// holds the namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetnsId(pub u64);

/// The kernel counters that listenq exposes per namespace, by kernel name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Refusals because an accept queue was full.
    ListenOverflows,
    /// Segments to listeners that did not lead to a connection.
    ListenDrops,
    /// SYNs answered with a cookie because the SYN queue was full.
    TcpReqQFullDoCookies,
    /// SYNs dropped because the SYN queue was full.
    TcpReqQFullDrop,
    /// SYN cookies sent.
    SyncookiesSent,
    /// Handshakes completed with a cookie.
    SyncookiesRecv,
    /// ACKs with an invalid cookie.
    SyncookiesFailed,
    /// Fast Open requests over the Fast Open queue's limit.
    TcpFastOpenListenOverflow,
    /// ACKs ignored because of `TCP_DEFER_ACCEPT`.
    TcpDeferAcceptDrop,
    /// Half-open connections reset.
    EmbryonicRsts,
    /// Half-open connections that could not move to another member of a reuseport group.
    TcpMigrateReqFailure,
    /// Connections established from LISTEN (`/proc/net/snmp`).
    PassiveOpens,
    /// Connection attempts that failed (`/proc/net/snmp`).
    AttemptFails,
    /// Subflows that joined an MPTCP connection.
    MpJoinAckRx,
}

/// Values of [`Counter`]s; `None` for a counter that the kernel does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters([Option<u64>; Counter::ALL.len()]);

/// The kernel settings that listenq exposes per namespace, by kernel name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// The limit of every `listen(2)` backlog.
    Somaxconn,
    /// The limit of half-open connections per listener where cookies are off.
    TcpMaxSynBacklog,
    /// Whether the kernel answers an overflow at the last ACK with a reset.
    TcpAbortOnOverflow,
    /// Whether the kernel answers a full SYN queue with cookies.
    TcpSyncookies,
    /// How often a SYN-ACK is repeated.
    TcpSynackRetries,
}

/// Values of [`Setting`]s; `None` for a setting that could not be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings([Option<i64>; Setting::ALL.len()]);

/// The results of one sample in one namespace. `None` means that the data was not read in this
/// sample, or that the reading failed.
#[derive(Clone, Debug, PartialEq)]
pub struct NetnsSample {
    /// The identity of the namespace.
    pub id: NetnsId,
    /// The `netns` label.
    pub name: Arc<str>,
    /// The owner for which the namespace was created.
    pub owner: Arc<Owner>,
    /// Whether the namespace appeared while listenq was running. Then all its counts are included
    /// in full.
    pub is_newborn: bool,
    /// The user id that owns its user namespace (`NS_GET_OWNER_UID`); `None` where unknown.
    pub made_by: Option<u32>,
    /// The TCP listen sockets.
    pub tcp: Option<Dump>,
    /// Kind of value that the cookies of its TCP sockets contain.
    pub identity: Identity,
    /// The Unix listen sockets.
    pub unix: Option<Dump<UnixAddress>>,
    /// `/proc/net/netstat`, read after the dump.
    pub netstat: Option<Counters>,
    /// `/proc/net/snmp`, read after the dump.
    pub snmp: Option<Counters>,
    /// The five settings under `/proc/sys/net`.
    pub settings: Option<Settings>,
    /// A connection scan that finished since the last sample.
    pub scan: Option<Scan>,
}

/// The results of one sample in all namespaces.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// The time of the sample, in seconds since 1970.
    pub unix_time: f64,
    /// The namespaces. Each name is unique.
    pub namespaces: Vec<NetnsSample>,
    /// Owners found since the last snapshot, by the inode of their sockets.
    pub owners: OwnersByInode,
    /// Readings of the owners of listeners in trouble since the last snapshot, by socket inode.
    pub owner_readings: Vec<SocketOwnerReading>,
}

/// Owners by socket inode.
pub type OwnersByInode = FxHashMap<u32, Arc<Owner>>;

// === impl NetnsSample ===

impl NetnsSample {
    /// A sample without any reading.
    pub fn new(id: NetnsId, name: Arc<str>, is_newborn: bool) -> Self {
        Self {
            id,
            name,
            owner: Arc::default(),
            is_newborn,
            made_by: None,
            tcp: None,
            identity: Identity::default(),
            unix: None,
            netstat: None,
            snmp: None,
            settings: None,
            scan: None,
        }
    }
}

// === impl UnixName ===

impl UnixName {
    /// `sizeof(sun_path)`.
    pub const LONGEST: usize = 108;

    /// The name as the kernel sends it (`UNIX_DIAG_NAME`); `None` for a socket without a name or
    /// with a name that is too long.
    pub fn new(name: &[u8]) -> Option<Self> {
        let name = match name {
            [] => return None,
            [0, ..] => name,
            // A path may include its terminating NUL.
            _ => name.split(|byte| *byte == 0).next()?,
        };
        let mut bytes = [0; Self::LONGEST];
        bytes.get_mut(..name.len())?.copy_from_slice(name);
        Some(Self { bytes, length: u8::try_from(name.len()).ok()? })
    }

    /// The `address` label: the path, or `@` and the abstract name.
    pub fn label(&self) -> String {
        match &self.bytes[..usize::from(self.length)] {
            [0, name @ ..] => format!("@{}", escaped(name)),
            // A path that begins with @ must not look like an abstract name.
            [b'@', rest @ ..] => format!("\\x40{}", escaped(rest)),
            path => escaped(path),
        }
    }
}

impl UnixAddress {
    /// Creates the address of an abstract name, or of a path without a known file.
    pub fn new(name: &[u8]) -> Option<Self> {
        Some(Self { name: UnixName::new(name)?, file: None })
    }

    /// Whether the two sockets are, or may be, on one filesystem.
    pub fn is_on_device_of(&self, other: &Self) -> bool {
        self.file.map(|file| file.device) == other.file.map(|file| file.device)
    }
}

impl fmt::Debug for UnixAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, file } = self;
        write!(f, "{name:?}")?;
        file.map_or(Ok(()), |UnixFile { device, inode }| write!(f, "~{inode}.{device}"))
    }
}

impl fmt::Debug for UnixName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label())
    }
}

// === impl Cookie ===

impl Cookie {
    /// Joins the two native u32 values of `sock_diag`, the lower half first.
    pub fn from_halves(raw: [u8; 8]) -> Self {
        let [a, b, c, d, e, f, g, h] = raw;
        let (low, high) = (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]));
        Self(u64::from(high) << 32 | u64::from(low))
    }
}

// === impl AcceptQueue ===

impl AcceptQueue {
    /// Whether the length exceeds the limit: the kernel admits limit + 1 connections.
    pub fn is_full(self) -> bool {
        self.limit.is_some_and(|limit| self.length > limit)
    }

    /// Whether the queue is at its limit, or so close that a slow server has just accepted one
    /// connection.
    pub fn is_brimming(self) -> bool {
        let Some(limit) = self.limit else { return false };
        let (length, limit) = (u64::from(self.length), u64::from(limit));
        length > 0 && (length >= limit || length * 10 >= (limit + 1) * 9)
    }

    /// The length divided by the capacity (limit + 1): 1 or more is full.
    pub fn fullness(self) -> Option<f64> {
        let limit = self.limit?;
        Some(f64::from(self.length) / (f64::from(limit) + 1.0))
    }
}

// === impl DeviceName ===

impl DeviceName {
    /// Keeps the first 15 bytes of a name, the kernel's maximum.
    pub fn new(name: &str) -> Self {
        let mut bytes = [0; 16];
        let length = name.len().min(15);
        bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
        Self(bytes)
    }

    fn as_bytes(&self) -> &[u8] {
        self.0.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escaped(self.as_bytes()))
    }
}

impl fmt::Debug for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// === impl ListenAddress ===

impl ListenAddress {
    /// The local end without the interface.
    pub fn local(&self) -> LocalEnd {
        LocalEnd { ip: self.ip, port: self.port }
    }

    /// The `address` label: an IP literal without brackets, with `%interface` if the socket is
    /// bound to one.
    pub fn host(&self) -> String {
        match self.device {
            Some(device) => format!("{}%{device}", self.ip),
            None => self.ip.to_string(),
        }
    }
}

// === impl Counter ===

impl Counter {
    /// Every counter, in storage order.
    pub const ALL: [Self; 14] = [
        Self::ListenOverflows,
        Self::ListenDrops,
        Self::TcpReqQFullDoCookies,
        Self::TcpReqQFullDrop,
        Self::SyncookiesSent,
        Self::SyncookiesRecv,
        Self::SyncookiesFailed,
        Self::TcpFastOpenListenOverflow,
        Self::TcpDeferAcceptDrop,
        Self::EmbryonicRsts,
        Self::TcpMigrateReqFailure,
        Self::PassiveOpens,
        Self::AttemptFails,
        Self::MpJoinAckRx,
    ];

    /// The name in `/proc/net/netstat` (or `snmp`) and in `nstat`.
    pub const fn kernel_name(self) -> &'static str {
        match self {
            Self::ListenOverflows => "ListenOverflows",
            Self::ListenDrops => "ListenDrops",
            Self::TcpReqQFullDoCookies => "TCPReqQFullDoCookies",
            Self::TcpReqQFullDrop => "TCPReqQFullDrop",
            Self::SyncookiesSent => "SyncookiesSent",
            Self::SyncookiesRecv => "SyncookiesRecv",
            Self::SyncookiesFailed => "SyncookiesFailed",
            Self::TcpFastOpenListenOverflow => "TCPFastOpenListenOverflow",
            Self::TcpDeferAcceptDrop => "TCPDeferAcceptDrop",
            Self::EmbryonicRsts => "EmbryonicRsts",
            Self::TcpMigrateReqFailure => "TCPMigrateReqFailure",
            Self::PassiveOpens => "PassiveOpens",
            Self::AttemptFails => "AttemptFails",
            Self::MpJoinAckRx => "MPJoinAckRx",
        }
    }
}

// === impl Counters ===

impl Counters {
    /// The value, if the kernel has this counter.
    pub fn get(&self, counter: Counter) -> Option<u64> {
        self.0[counter as usize]
    }

    /// Sets one value.
    pub fn set(&mut self, counter: Counter, value: u64) {
        self.0[counter as usize] = Some(value);
    }

    /// Whether `newer` can be a later reading of the same counters: no counter decreases.
    pub fn may_become(&self, newer: &Self) -> bool {
        let both = self.0.iter().zip(newer.0);
        both.filter_map(|(old, new)| Some((*old)?.le(&new?))).all(|is_more| is_more)
    }

    /// Whether at least one counter was read and all read counters are zero.
    pub fn are_all_zero(&self) -> bool {
        self.0.iter().flatten().count() > 0 && self.0.iter().flatten().all(|value| *value == 0)
    }

    /// Copies every value that `newer` contains.
    pub fn update(&mut self, newer: &Self) {
        for (old, new) in self.0.iter_mut().zip(newer.0) {
            *old = new.or(*old);
        }
    }
}

// === impl Setting ===

impl Setting {
    /// Every setting, in storage order.
    pub const ALL: [Self; 5] = [
        Self::Somaxconn,
        Self::TcpMaxSynBacklog,
        Self::TcpAbortOnOverflow,
        Self::TcpSyncookies,
        Self::TcpSynackRetries,
    ];

    /// The file below `sys/` of procfs.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Somaxconn => "net/core/somaxconn",
            Self::TcpMaxSynBacklog => "net/ipv4/tcp_max_syn_backlog",
            Self::TcpAbortOnOverflow => "net/ipv4/tcp_abort_on_overflow",
            Self::TcpSyncookies => "net/ipv4/tcp_syncookies",
            Self::TcpSynackRetries => "net/ipv4/tcp_synack_retries",
        }
    }
}

// === impl Settings ===

impl Settings {
    /// The value, if it could be read.
    pub fn get(&self, setting: Setting) -> Option<i64> {
        self.0[setting as usize]
    }

    /// Sets one value.
    pub fn set(&mut self, setting: Setting, value: i64) {
        self.0[setting as usize] = Some(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn law_5_full_means_more_than_the_limit() {
        let queue = |length, limit| AcceptQueue { length, limit };
        assert!(!queue(4, Some(4)).is_full());
        assert!(queue(5, Some(4)).is_full());
        assert!(queue(1, Some(0)).is_full());
        assert!(!queue(9, None).is_full());
        assert_eq!(queue(5, Some(4)).fullness(), Some(1.0));
        assert_eq!(queue(5, None).fullness(), None);
    }

    #[test]
    fn the_label_of_a_bound_address_contains_the_interface() {
        let address = ListenAddress {
            ip: "fe80::1".parse().unwrap(),
            port: 80,
            device: Some(DeviceName::new("eth0")),
        };
        assert_eq!(address.host(), "fe80::1%eth0");
    }

    #[test]
    fn unix_names_are_paths_or_abstract() {
        let label = |name: &[u8]| UnixName::new(name).map(|name| name.label());
        assert_eq!(label(b"/run/a.sock\0"), Some("/run/a.sock".into()));
        assert_eq!(label(b"\0app\0x"), Some("@app\\x00x".into()));
        assert_eq!(label(b"@app"), Some("\\x40app".into()));
        assert_eq!(label(b"a\\b\xff\n\""), Some("a\\x5Cb\\xFF\\x0A\"".into()));
        // U+202E reverses the text after it.
        assert_eq!(label("a\u{202e}b".as_bytes()), Some("a\\xE2\\x80\\xAEb".into()));
        assert_eq!(label(b""), None);
        assert_eq!(label(&[b'a'; 109]), None);
        assert!(label(&[b'a'; 108]).is_some());
    }

    #[test]
    fn escaped_text_is_not_escaped_again() {
        assert_eq!(printable("a\\x5Cb"), "a\\x5Cb");
        assert_eq!(printable("\u{1b}[31m"), "\\x1B[31m");
    }

    #[test]
    fn all_lists_counters_in_storage_order() {
        for (place, counter) in Counter::ALL.into_iter().enumerate() {
            assert_eq!(counter as usize, place);
        }
        for (place, setting) in Setting::ALL.into_iter().enumerate() {
            assert_eq!(setting as usize, place);
        }
    }
}
