//! What is known at one instant, as it is shown: made by the fold after each sample, read by everything
//! that answers a person or Prometheus. Nothing here changes once it is published.

pub mod publish;

use std::sync::Arc;
use std::time::Duration;

use crate::cause::{Awaited, Cause};
use crate::diagnosis::{Diagnosis, Evidence};
use crate::self_stats::SelfStats;
use crate::snapshot::owner::Owner;
use crate::snapshot::{Counters, Settings};

/// A namespace without a good sample for so long has no gauges until it has one again.
pub const STALE_AFTER: Duration = Duration::from_secs(10);

/// Everything there is to show.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// When it was made, on the fold's own clock.
    pub now: Duration,
    /// How long a client waits before it gives up (`--client-patience`).
    pub client_patience: Duration,
    /// The namespaces that are sampled.
    pub namespaces: Vec<NetnsView>,
    /// The sampler's account of itself.
    pub stats: SelfStats,
}

/// One network namespace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NetnsView {
    /// The `netns` label.
    pub name: Arc<str>,
    /// Who it was made for.
    pub owner: Arc<Owner>,
    /// When the last good dump of TCP listeners was taken, on the fold's own clock.
    pub tcp_sampled_at: Option<Duration>,
    /// When the last good dump of Unix listeners was taken, on the fold's own clock.
    pub unix_sampled_at: Option<Duration>,
    /// When the last good sample was taken, in seconds since 1970.
    pub sampled_unix_time: Option<f64>,
    /// How much time the samples cover.
    pub sampled_seconds: f64,
    /// The last connection scan; `None` while there is none.
    pub scan: Option<NetnsScan>,
    /// The kernel's counters.
    pub counters: Counters,
    /// The kernel's settings.
    pub settings: Settings,
    /// Connections taken out of its TCP accept queues; `None` where that is not known.
    pub accepted: Option<u64>,
    /// Overflows that could not be attributed to a listener; `None` where overflows are not known.
    pub unattributed_overflows: Option<u64>,
    /// Overflows attributed to listeners that are not shown.
    pub unexposed_overflows: Option<u64>,
    /// Which state of the listeners this is: the same number, the same listeners.
    pub revision: u64,
    /// Its listeners, in no particular order.
    pub listeners: Vec<ListenerView>,
}

/// When a namespace was scanned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NetnsScan {
    /// On the fold's own clock.
    pub at: Duration,
    /// In seconds since 1970.
    pub unix_time: f64,
    /// Since the scan before; `None` for the first.
    pub gap: Option<Duration>,
}

/// What kind of socket listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP, and MPTCP, which answers as TCP.
    Tcp,
    /// Unix stream and seqpacket.
    Unix,
}

/// What a listener is called: the labels of its series, besides `netns`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerName {
    /// What kind of socket listens.
    pub protocol: Protocol,
    /// IP literal without brackets, `%interface` appended when bound to one; the path of a Unix socket, or `@`
    /// and its abstract name.
    pub address: String,
    /// In digits; empty for Unix sockets.
    pub port: String,
}

/// One listener.
#[derive(Clone, Debug, PartialEq)]
pub struct ListenerView {
    /// What it is called.
    pub name: Arc<ListenerName>,
    /// Who is behind it, as far as known.
    pub owner: Arc<Owner>,
    /// Listen sockets behind it now.
    pub sockets: u32,
    /// Its queue now; `None` while it is closed and only remembered.
    pub queue: Option<QueueView>,
    /// Length integrated over sampled time.
    pub connection_seconds: f64,
    /// Sampled time during which any of its sockets was full; `None` where limits are not known.
    pub full_seconds: Option<f64>,
    /// Segments discarded under watch; `None` where drops are not known.
    pub drops: Option<u64>,
    /// Overflows attributed to it; `None` where drops are not known.
    pub overflows: Option<u64>,
    /// What the last connection scan found; `None` where there was none lately.
    pub scan: Option<ScanView>,
    /// The connections that it accepted; `None` where other listeners of its namespace may have accepted as well.
    pub accepts: Option<Arc<Accepts>>,
    /// The most accepted connections that scans found open at once within the last hour.
    pub most_open: u64,
    /// The median time after which clients left its queue within the last five minutes; `None` where too few did.
    pub patience: Option<Duration>,
    /// Clients that scans saw leave its queue; `None` before the first scan of a queue.
    pub abandoned_total: Option<u64>,
    /// The share of the clients that scans saw waiting within the last minute that left; `None` where they were few.
    pub abandoned_ratio: Option<f64>,
    /// How it came to this; `None` as long as it never held a queue, overflowed or met a full SYN queue.
    pub case: Option<Arc<Case>>,
}

/// What a connection scan found at one listener.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ScanView {
    /// When it was scanned, on the fold's own clock.
    pub at: Duration,
    /// Half-open connections; `None` for Unix sockets, which have none.
    pub syn_queue: Option<u64>,
    /// Accepted connections that are open; `None` where they were not read.
    pub open: Option<u64>,
    /// Who waited; `None` when the queue was seen empty since.
    pub queue: Option<QueueScan>,
}

/// What a connection scan found in a listener's queue.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct QueueScan {
    /// How long the connection at the head of the queue has waited; `None` when every client has reset.
    pub oldest: Option<Duration>,
    /// Waiting connections whose client is gone, agreed by two scans; `None` after the first.
    pub abandoned: Option<u64>,
    /// Connections accepted per second while the queue was full throughout.
    pub drain_rate: Option<f64>,
}

/// The connections that a listener accepted; known where it is the only one of its namespace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Accepts {
    /// Since it is the only one and watched.
    pub total: u64,
    /// The mean of the last [`Accepts::RECENT`] slots.
    pub per_second: f64,
    /// How long a connection waited to be accepted, in the mean of these slots; `None` where none was accepted.
    pub mean_wait: Option<Duration>,
    /// Connections accepted in each of the last [`Accepts::SLOTS`] slots of [`Accepts::SLOT`], the oldest first.
    pub history: Vec<u32>,
}

/// The case history of a listener: as it was when it was last looked at, at most a second ago.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Case {
    /// What its history adds up to.
    pub evidence: Evidence,
    /// The diagnoses that hold or have held within the grace time, in order of precedence.
    pub diagnoses: Vec<HeldDiagnosis>,
    /// Why the owner does not accept.
    pub causes: CauseCase,
    /// The largest length in each of the last [`Case::SLOTS`] slots of [`Case::SLOT`], the oldest first.
    pub history: Vec<u32>,
}

/// A diagnosis that holds or has held.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeldDiagnosis {
    /// Which one.
    pub diagnosis: Diagnosis,
    /// Since when it holds, on the fold's own clock; `None` when it does not hold any more.
    pub since: Option<Duration>,
}

/// Why the owner of a listener does not accept, as far as looks at it found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CauseCase {
    /// The causes that hold or have held within the grace time.
    pub causes: Vec<HeldCause>,
    /// What the last look at the owner read; `None` while nobody looks.
    pub numbers: Option<OwnerNumbers>,
    /// What most workers wait for.
    pub awaited: Option<Awaited>,
    /// Time its cgroup, or an ancestor, was throttled while the listener had a diagnosis.
    pub throttled: Option<Duration>,
    /// Time its threads were runnable but not running while the listener had a diagnosis.
    pub cpu_wait: Option<Duration>,
}

/// A cause that holds or has held.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeldCause {
    /// Which one.
    pub cause: Cause,
    /// Since when it holds, on the fold's own clock; `None` when it no longer holds.
    pub since: Option<Duration>,
}

/// What the last look at the owner of a listener read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OwnerNumbers {
    /// Pid and name of a process that accepts.
    pub process: Option<(u32, String)>,
    /// Processes that hold the socket.
    pub processes: usize,
    /// Threads of those that accept.
    pub threads: u64,
    /// The state letters of the threads that were looked at.
    pub states: String,
    /// Open descriptors of the process closest to its limit.
    pub open_fds: Option<u64>,
    /// The descriptor limit of that process.
    pub max_fds: Option<u64>,
    /// The share of its CPU quota's periods in which it was throttled.
    pub throttled_share: Option<f64>,
    /// The share of time that one of its threads was runnable but not running.
    pub starved_share: Option<f64>,
    /// The share of the machine's time that the hypervisor took.
    pub steal_share: Option<f64>,
}

/// The accept queue of a listener: all its sockets together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueueView {
    /// Connections waiting.
    pub length: u64,
    /// Sum of the limits; `None` where they are not known.
    pub limit: Option<u64>,
    /// Largest length in the trailing peak window.
    pub peak_length: u64,
    /// How full the fullest of its sockets is: length / (limit + 1).
    pub fullest_ratio: Option<f64>,
    /// Drops since the sockets were made, as `ss -m` shows them.
    pub socket_drops: Option<u64>,
}

// === impl View ===

impl View {
    /// Whether any namespace has a good sample young enough, `age` after this view was made.
    pub fn is_ready(&self, age: Duration) -> bool {
        self.namespaces.iter().any(|netns| netns.is_fresh(Protocol::Tcp, self.now + age))
    }
}

// === impl NetnsView ===

impl NetnsView {
    /// Whether its last good dump of these listeners is young enough at `now` for their gauges to be true.
    pub fn is_fresh(&self, protocol: Protocol, now: Duration) -> bool {
        let sampled_at = match protocol {
            Protocol::Tcp => self.tcp_sampled_at,
            Protocol::Unix => self.unix_sampled_at,
        };
        sampled_at.is_some_and(|at| now.saturating_sub(at) < STALE_AFTER)
    }
}

// === impl ListenerName ===

impl ListenerName {
    /// `address:port`, with brackets round IPv6; a Unix socket's name as it is.
    pub fn endpoint(&self) -> String {
        endpoint(&self.address, &self.port)
    }

    /// `netns/protocol/address:port`, as the filters see it; a Unix socket has no port.
    pub fn described(&self, netns: &str) -> String {
        described(netns, self.protocol.label(), &self.address, &self.port)
    }
}

/// `address:port`, with brackets round IPv6; without a port, the address as it is.
pub fn endpoint(address: &str, port: &str) -> String {
    match (port.is_empty(), address.contains(':')) {
        (true, _) => address.into(),
        (false, true) => format!("[{address}]:{port}"),
        (false, false) => format!("{address}:{port}"),
    }
}

/// `netns/protocol/address:port`, and `netns/protocol/address` without a port.
pub fn described(netns: &str, protocol: &str, address: &str, port: &str) -> String {
    match port.is_empty() {
        true => format!("{netns}/{protocol}/{address}"),
        false => format!("{netns}/{protocol}/{address}:{port}"),
    }
}

// === impl ListenerView ===

impl ListenerView {
    /// The diagnoses that hold, in order of precedence.
    pub fn diagnoses(&self) -> impl Iterator<Item = HeldDiagnosis> {
        let held = self.case.iter().flat_map(|case| &case.diagnoses);
        held.copied().filter(|held| held.since.is_some())
    }

    /// What the last look at its owner read; `None` while nobody looks.
    pub fn owner_numbers(&self) -> Option<&OwnerNumbers> {
        self.case.as_ref()?.causes.numbers.as_ref()
    }

    /// The causes that hold.
    pub fn causes(&self) -> impl Iterator<Item = HeldCause> {
        let held = self.case.iter().flat_map(|case| &case.causes.causes);
        held.copied().filter(|held| held.since.is_some())
    }

    /// How long the connection at the head of the queue has waited: none is no wait at all; otherwise only a scan knows.
    pub fn oldest(&self) -> Option<Duration> {
        match self.queue?.length {
            0 => Some(Duration::ZERO),
            _ => self.scan?.queue?.oldest,
        }
    }

    /// Waiting connections whose client is gone.
    pub fn abandoned(&self) -> Option<u64> {
        match self.queue?.length {
            0 => Some(0),
            _ => self.scan?.queue?.abandoned,
        }
    }

    /// Connections accepted per second while the queue was full throughout.
    pub fn drain_rate(&self) -> Option<f64> {
        self.scan?.queue?.drain_rate
    }

    /// Accepted connections that are open.
    pub fn open_connections(&self) -> Option<u64> {
        self.scan?.open
    }

    /// The number of connections accepted within the patience of the clients, which is `assumed` where none was
    /// measured: a longer queue only holds clients that have left.
    pub fn useful_limit(&self, assumed: Duration) -> Option<f64> {
        Some(self.drain_rate()? * self.patience.unwrap_or(assumed).as_secs_f64())
    }
}

// === impl Accepts ===

impl Accepts {
    /// How long a slot of the history is.
    pub const SLOT: Duration = Case::SLOT;
    /// Five minutes of them.
    pub const SLOTS: usize = Case::SLOTS;
    /// Half a minute of them.
    pub const RECENT: usize = 6;
}

// === impl Case ===

impl Case {
    /// How long a slot of the history is.
    pub const SLOT: Duration = Duration::from_secs(5);
    /// Five minutes of them.
    pub const SLOTS: usize = 60;
}

// === impl Protocol ===

impl Protocol {
    /// The label value.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Unix => "unix",
        }
    }
}
