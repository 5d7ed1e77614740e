//! The state at one instant, as shown to Prometheus and to people. The fold makes a view after each
//! sample, and all outputs read it. A published view never changes.

pub mod publish;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cause::{Awaited, Cause};
use crate::diagnosis::{Diagnosis, Evidence};
use crate::onset::Onset;
use crate::self_stats::SelfStats;
use crate::snapshot::owner::Owner;
use crate::snapshot::{Counters, Settings};

/// A namespace has no gauges if its last good sample is this old or older.
pub const STALE_AFTER: Duration = Duration::from_secs(10);

/// Everything that listenq exposes at one instant.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// The time of the view, on the fold's own clock.
    pub now: Duration,
    /// How long a client waits before it gives up (`--client-patience`).
    pub client_patience: Duration,
    /// The sampled namespaces.
    pub namespaces: Vec<NetnsView>,
    /// Statistics of listenq itself.
    pub stats: SelfStats,
}

/// One network namespace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NetnsView {
    /// The `netns` label.
    pub name: Arc<str>,
    /// The owner that the namespace was made for.
    pub owner: Arc<Owner>,
    /// The start of the counters that listenq keeps for the namespace, in seconds since 1970.
    pub started_unix_time: f64,
    /// The number of samples of TCP listeners.
    pub tcp_samples: u64,
    /// The number of samples of Unix listeners.
    pub unix_samples: u64,
    /// The time of the last good dump of TCP listeners, on the fold's own clock.
    pub tcp_sampled_at: Option<Duration>,
    /// The time of the last good dump of Unix listeners, on the fold's own clock.
    pub unix_sampled_at: Option<Duration>,
    /// The time of the last good sample, in seconds since 1970.
    pub sampled_unix_time: Option<f64>,
    /// The time that the samples cover, in seconds.
    pub sampled_seconds: f64,
    /// The last connection scan; `None` before the first one.
    pub scan: Option<NetnsScan>,
    /// The kernel's counters.
    pub counters: Counters,
    /// The kernel's settings.
    pub settings: Settings,
    /// Connections accepted from its TCP accept queues; `None` where unknown.
    pub accepted: Option<u64>,
    /// Overflows that could not be attributed to a listener; `None` where overflows are unknown.
    pub unattributed_overflows: Option<u64>,
    /// Overflows attributed to listeners that are not exposed.
    pub unexposed_overflows: Option<u64>,
    /// The revision of the listeners. An equal number means the same listeners.
    pub revision: u64,
    /// The listeners of the namespace, in no particular order.
    pub listeners: Vec<ListenerView>,
}

/// The time of the last scan of a namespace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NetnsScan {
    /// The time of the scan, on the fold's own clock.
    pub at: Duration,
    /// The time of the scan, in seconds since 1970.
    pub unix_time: f64,
    /// The time since the previous scan; `None` for the first scan.
    pub gap: Option<Duration>,
}

/// The kind of a listen socket.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// TCP. MPTCP sockets also answer as TCP.
    #[default]
    Tcp,
    /// Unix stream and seqpacket sockets.
    Unix,
}

/// The name of a listener: the labels of its series except `netns`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerName {
    /// The kind of the listen socket.
    pub protocol: Protocol,
    /// An IP literal without brackets, with `%interface` when bound to one; or the path of a Unix
    /// socket; or `@` and its abstract name.
    pub address: String,
    /// The port in digits; empty for Unix sockets.
    pub port: String,
}

/// One listener.
#[derive(Clone, Debug, PartialEq)]
pub struct ListenerView {
    pub name: Arc<ListenerName>,
    /// The owner; unknown fields are empty.
    pub owner: Arc<Owner>,
    /// The owner that alerts name, fixed for the length of an incident; `None` outside of one.
    pub alert_owner: Option<Arc<Owner>>,
    /// The start of the listener's counters, in seconds since 1970.
    pub started_unix_time: f64,
    /// The current number of its listen sockets.
    pub sockets: u32,
    /// The current queue; `None` for a closed listener that is still remembered.
    pub queue: Option<QueueView>,
    /// Queue length integrated over sampled time.
    pub connection_seconds: f64,
    /// Sampled time during which any of its sockets was full; `None` where limits are unknown.
    pub full_seconds: Option<f64>,
    /// Segments discarded while listenq watched the listener; `None` where drops are unknown.
    pub drops: Option<u64>,
    /// Overflows attributed to the listener; `None` where drops are unknown.
    pub overflows: Option<u64>,
    /// The results of the last connection scan; `None` without a recent scan.
    pub scan: Option<ScanView>,
    /// The connections that the listener accepted; `None` where other listeners of its namespace
    /// may have accepted too.
    pub accepts: Option<Arc<Accepts>>,
    /// The largest number of open accepted connections that scans found within the last hour.
    pub most_open: u64,
    /// How long clients that left its queue within the last five minutes had waited; `None` where
    /// too few clients left.
    pub patience: Option<Patience>,
    /// Clients that scans saw leave its queue; `None` before the first scan of a queue.
    pub abandoned_total: Option<u64>,
    /// The share of clients that left, among the clients that scans saw waiting within the last
    /// minute; `None` where there were few clients.
    pub abandoned_ratio: Option<f64>,
    /// The client addresses with the most waiting and half-open connections at the last scan;
    /// `None` without such connections, and where addresses are not shown.
    pub clients: Option<Arc<Clients>>,
    /// The lengths of its queue as sampled, as of the last second; `None` before it held a queue,
    /// and after it closed.
    pub lengths: Option<Arc<SampledLengths>>,
    /// The case history; `None` if the listener never held a queue, overflowed or met a full SYN
    /// queue.
    pub case: Option<Arc<Case>>,
}

/// The lengths of an accept queue as sampled: the content of a native histogram.
///
/// Samples without a queue are not recorded one by one. Their number is the number of samples since
/// the first recorded one, less the recorded ones.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SampledLengths {
    /// The number of samples by bucket, with ascending indices: the bucket `i` holds the lengths
    /// above 2^((i - 1) / 4) up to 2^(i / 4), which is schema 2 of native histograms.
    pub buckets: Vec<(u8, u64)>,
    /// The number of samples with a queue.
    pub count: u64,
    /// The sum of the lengths.
    pub sum: u64,
    /// The number of samples before the first recorded one.
    pub samples_before: u64,
    /// The time of the first sample, in seconds since 1970.
    pub started_unix_time: f64,
}

/// The clients of a queue.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Clients {
    /// Waiting and half-open connections of all clients.
    pub all: u64,
    /// The number of client addresses; `None` where there are too many: then the counts of the
    /// addresses are lower bounds.
    pub addresses: Option<usize>,
    /// The addresses with the most connections, the most first.
    pub most: Vec<Client>,
}

/// The connections of one client address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    pub address: IpAddr,
    /// Connections that wait to be accepted.
    pub waiting: u64,
    /// Connections whose handshake is not complete.
    pub half_open: u64,
}

/// The measured patience of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// The median time after which clients left.
    pub median: Duration,
    /// The number of clients from which the median was computed.
    pub clients: usize,
}

/// The results of a connection scan at one listener.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ScanView {
    /// The time of the scan, on the fold's own clock.
    pub at: Duration,
    /// Half-open connections; `None` for Unix sockets, which have none.
    pub syn_queue: Option<u64>,
    /// Open accepted connections; `None` where they were not read.
    pub open: Option<u64>,
    /// The waiting connections; `None` when the queue was seen empty since the scan.
    pub queue: Option<QueueScan>,
}

/// The results of a connection scan of a listener's queue.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct QueueScan {
    /// How long the connection at the head of the queue has waited; `None` when every client has
    /// reset.
    pub oldest: Option<Duration>,
    /// Waiting connections whose client is gone, confirmed by two scans; `None` after the first
    /// scan.
    pub abandoned: Option<u64>,
    /// Connections accepted per second while the queue was full throughout.
    pub drain_rate: Option<f64>,
}

/// The connections that a listener accepted. Known only for the sole listener of a namespace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Accepts {
    /// Connections accepted since this is the only listener of its namespace.
    pub total: u64,
    /// The mean rate over the last [`Accepts::RECENT`] slots.
    pub per_second: f64,
    /// The mean wait before accept over these slots; `None` where no connection was accepted.
    pub mean_wait: Option<Duration>,
    /// Connections accepted in each of the last [`Accepts::SLOTS`] slots of [`Accepts::SLOT`], the
    /// oldest first.
    pub history: Vec<u32>,
    /// How the present trouble began; `None` if unknown.
    pub began: Option<Began>,
}

/// The time and the kind of the beginning of trouble.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Began {
    /// The beginning on the fold's own clock, to [`Accepts::SLOT`].
    pub at: Duration,
    pub onset: Onset,
}

/// The case history of a listener as of the last look, at most a second ago.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Case {
    /// The evidence from its history.
    pub evidence: Evidence,
    /// The diagnoses that hold or have held within the grace time, in order of precedence.
    pub diagnoses: Vec<HeldDiagnosis>,
    /// The causes why the owner does not accept.
    pub causes: CauseCase,
    /// The largest length in each of the last [`Case::SLOTS`] slots of [`Case::SLOT`], the oldest
    /// first.
    pub history: Vec<u32>,
}

/// A diagnosis that holds or held before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeldDiagnosis {
    pub diagnosis: Diagnosis,
    /// The time since which the diagnosis holds, on the fold's own clock; `None` if it no longer
    /// holds.
    pub since: Option<Duration>,
}

/// The causes why the owner of a listener does not accept, from the readings of the owner.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CauseCase {
    /// The causes that hold or have held within the grace time.
    pub causes: Vec<HeldCause>,
    /// The results of the last reading of the owner; `None` while the owner is not read.
    pub numbers: Option<OwnerNumbers>,
    /// The peer that most workers wait for.
    pub awaited: Option<Awaited>,
    /// Time for which the owner's cgroup, or an ancestor, was throttled while the listener had a
    /// diagnosis.
    pub throttled: Option<Duration>,
    /// Time for which the owner's threads were runnable but not running while the listener had a
    /// diagnosis.
    pub cpu_wait: Option<Duration>,
}

/// A cause that holds or held before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeldCause {
    pub cause: Cause,
    /// The time since which the cause holds, on the fold's own clock; `None` if it no longer
    /// holds.
    pub since: Option<Duration>,
}

/// The results of the last reading of the owner of a listener.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OwnerNumbers {
    /// Pid and name of a process that accepts.
    pub process: Option<(u32, String)>,
    /// Processes that hold the socket.
    pub processes: usize,
    /// Threads of the processes that accept.
    pub threads: u64,
    /// The state letters of the threads that were read.
    pub states: String,
    /// Open descriptors of the process closest to its limit.
    pub open_fds: Option<u64>,
    /// The descriptor limit of that process.
    pub max_fds: Option<u64>,
    /// The share of CPU quota periods in which the cgroup was throttled.
    pub throttled_share: Option<f64>,
    /// The share of time for which one thread was runnable but not running.
    pub starved_share: Option<f64>,
    /// The share of the machine's time that the hypervisor took.
    pub steal_share: Option<f64>,
}

/// The accept queue of a listener, summed over all its sockets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueueView {
    pub length: u64,
    /// The sum of the limits; `None` where the limits are unknown.
    pub limit: Option<u64>,
    /// The largest length in the trailing peak window.
    pub peak_length: u64,
    /// The fullness of the fullest socket: length / (limit + 1).
    pub fullest_ratio: Option<f64>,
    /// Drops since the creation of the sockets, as `ss -m` shows them.
    pub socket_drops: Option<u64>,
}

// === impl View ===

impl View {
    /// Whether any namespace has a recent good sample, `age` after the creation of this view.
    pub fn is_ready(&self, age: Duration) -> bool {
        self.namespaces.iter().any(|netns| netns.is_fresh(Protocol::Tcp, self.now + age))
    }
}

// === impl NetnsView ===

impl NetnsView {
    /// Whether the last good dump of these listeners is recent enough at `now` for valid gauges.
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
    /// `address:port`, with brackets around IPv6; the plain name for a Unix socket.
    pub fn endpoint(&self) -> String {
        endpoint(&self.address, &self.port)
    }

    /// `netns/protocol/address:port`, the form that filters match; a Unix socket has no port.
    pub fn described(&self, netns: &str) -> String {
        described(netns, self.protocol, &self.address, &self.port)
    }

    /// The name by which alerts are grouped: the same for the replicas of a service on many hosts.
    pub fn service(&self, owner: &Owner) -> String {
        let Owner { process, unit, k8s_namespace, k8s_pod, k8s_container, .. } = owner;
        let unit = unit.rsplit('/').next().and_then(|unit| unit.strip_suffix(".service"));
        match (k8s_container.is_empty(), k8s_pod.is_empty(), unit, process.is_empty()) {
            (false, ..) => format!("{k8s_namespace}/{k8s_container}"),
            (true, false, ..) => format!("{k8s_namespace}/{k8s_pod}"),
            (true, true, Some(unit), _) => unit.into(),
            (true, true, None, false) => process.to_string(),
            _ if self.port.is_empty() => format!("socket:{}", self.address),
            _ => format!("port:{}", self.port),
        }
    }
}

/// `address:port`, with brackets around IPv6; without a port, the plain address.
pub fn endpoint(address: &str, port: &str) -> String {
    match (port.is_empty(), address.contains(':')) {
        (true, _) => address.into(),
        (false, true) => format!("[{address}]:{port}"),
        (false, false) => format!("{address}:{port}"),
    }
}

/// `netns/protocol/address:port`, and `netns/protocol/address` without a port.
pub fn described(netns: &str, protocol: Protocol, address: &str, port: &str) -> String {
    let protocol = protocol.label();
    match port.is_empty() {
        true => format!("{netns}/{protocol}/{address}"),
        false => format!("{netns}/{protocol}/{address}:{port}"),
    }
}

// === impl ListenerView ===

impl ListenerView {
    /// Creates the view of a listener whose sockets are not counted yet.
    pub fn new(name: ListenerName, started_unix_time: f64) -> Self {
        Self {
            name: Arc::new(name),
            owner: Owner::unknown(),
            alert_owner: None,
            started_unix_time,
            sockets: 0,
            queue: None,
            connection_seconds: 0.0,
            full_seconds: None,
            drops: None,
            overflows: None,
            scan: None,
            accepts: None,
            most_open: 0,
            patience: None,
            abandoned_total: None,
            abandoned_ratio: None,
            clients: None,
            lengths: None,
            case: None,
        }
    }

    /// The diagnoses that hold, in order of precedence.
    pub fn diagnoses(&self) -> impl Iterator<Item = HeldDiagnosis> {
        let held = self.case.iter().flat_map(|case| &case.diagnoses);
        held.copied().filter(|held| held.since.is_some())
    }

    /// The results of the last reading of its owner; `None` while the owner is not read.
    pub fn owner_numbers(&self) -> Option<&OwnerNumbers> {
        self.case.as_ref()?.causes.numbers.as_ref()
    }

    /// The causes that hold.
    pub fn causes(&self) -> impl Iterator<Item = HeldCause> {
        let held = self.case.iter().flat_map(|case| &case.causes.causes);
        held.copied().filter(|held| held.since.is_some())
    }

    /// How long the connection at the head of the queue has waited. Zero for an empty queue;
    /// otherwise known only from a scan.
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

    /// Open accepted connections.
    pub fn open_connections(&self) -> Option<u64> {
        self.scan?.open
    }

    /// The number of connections accepted within the clients' patience, or within `assumed` where
    /// no patience was measured. A longer queue only holds clients that have left.
    pub fn useful_limit(&self, assumed: Duration) -> Option<f64> {
        Some(
            self.drain_rate()?
                * self.patience.map_or(assumed, |patience| patience.median).as_secs_f64(),
        )
    }
}

// === impl SampledLengths ===

impl SampledLengths {
    /// The schema of the native histogram: the number of buckets per doubling is 2 to this power.
    pub const SCHEMA: i32 = 2;

    /// Starts at `unix_time`, after `samples_before` samples.
    pub fn new(samples_before: u64, unix_time: f64) -> Self {
        Self { samples_before, started_unix_time: unix_time, ..Self::default() }
    }

    /// Records a sample with a queue of `length`, at least 1.
    pub fn record(&mut self, length: u64) {
        let index = ((length as f64).log2() * f64::from(1 << Self::SCHEMA)).ceil() as u8;
        match self.buckets.binary_search_by_key(&index, |(index, _)| *index) {
            Ok(place) => self.buckets[place].1 += 1,
            Err(place) => self.buckets.insert(place, (index, 1)),
        }
        self.count += 1;
        self.sum += length;
    }

    /// The number of samples without a queue, after `samples` samples.
    pub fn empty(&self, samples: u64) -> u64 {
        samples.saturating_sub(self.samples_before + self.count)
    }
}

// === impl Clients ===

impl Clients {
    /// The most addresses that are shown.
    pub const MAX_SHOWN: usize = 10;
}

// === impl Client ===

impl Client {
    /// Waiting and half-open connections.
    pub fn all(&self) -> u64 {
        self.waiting + self.half_open
    }
}

// === impl Accepts ===

impl Accepts {
    /// The length of a history slot.
    pub const SLOT: Duration = Case::SLOT;
    /// The number of slots in five minutes.
    pub const SLOTS: usize = Case::SLOTS;
    /// The number of slots in half a minute.
    pub const RECENT: usize = 6;
}

// === impl Case ===

impl Case {
    /// The length of a history slot.
    pub const SLOT: Duration = Duration::from_secs(5);
    /// The number of slots in five minutes.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The service of a listener at `address:port` with this owner.
    fn service(address: &str, port: &str, owner: Owner) -> String {
        let name =
            ListenerName { protocol: Protocol::Tcp, address: address.into(), port: port.into() };
        name.service(&owner)
    }

    fn owner(process: &str, unit: &str) -> Owner {
        Owner { process: process.into(), unit: unit.into(), ..Owner::default() }
    }

    #[test]
    fn a_service_is_a_container_of_a_pod_else_a_unit_else_a_process_else_a_port() {
        let pod = |container: &str| Owner {
            k8s_namespace: "shop".into(),
            k8s_pod: "cart-7d9f".into(),
            k8s_container: container.into(),
            ..owner("java", "kubepods.slice/cri-containerd-1.scope")
        };
        assert_eq!(service("::", "80", pod("web")), "shop/web");
        assert_eq!(service("::", "80", pod("")), "shop/cart-7d9f");
        assert_eq!(service("::", "80", owner("java", "kafka.service")), "kafka");
        let of_user = "user@1000.service/web.service";
        assert_eq!(service("::", "80", owner("node", of_user)), "web");
        assert_eq!(service("::", "80", owner("python3", "session-3.scope")), "python3");
        assert_eq!(service("::", "80", Owner::default()), "port:80");
        assert_eq!(service("/run/a.sock", "", Owner::default()), "socket:/run/a.sock");
    }

    #[test]
    fn a_length_belongs_to_the_bucket_that_ends_at_it_or_above() {
        let mut lengths = SampledLengths::new(10, 0.0);
        for length in [1, 1, 2, 3, 4, 5, 128, 129, 65_536] {
            lengths.record(length);
        }
        // The upper bounds 1, 2, 3.4, 4, 5.7, 128, 152 and 65,536.
        let buckets = [(0, 2), (4, 1), (7, 1), (8, 1), (10, 1), (28, 1), (29, 1), (64, 1)];
        assert_eq!(lengths.buckets, buckets);
        assert_eq!((lengths.count, lengths.sum, lengths.empty(25)), (9, 65_809, 6));
    }
}
