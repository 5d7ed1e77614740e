//! Statistics of listenq itself: the state and the cost of its sampling. Plain values, exposed
//! unchanged.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The source of an error: the `source` label of `listenq_sample_errors_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The dump of TCP listeners.
    InetDiag,
    /// The dump of Unix listeners.
    UnixDiag,
    /// `/proc/net/netstat`.
    Netstat,
    /// `/proc/net/snmp`.
    Snmp,
    /// The settings under `/proc/sys/net`.
    Sysctl,
    /// The discovery of namespaces.
    Namespaces,
    /// The search for socket owners.
    Owners,
    /// The scan of connections that are not accepted yet.
    Scan,
}

/// A feature that a kernel or a missing privilege can disable: the `feature` label of
/// `listenq_feature_available`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// Socket dumps over netlink. Without them, `/proc/net/tcp` provides lengths, but no limits and
    /// no drops.
    SockDiag,
    /// Dumps of Unix listeners over netlink. Without them, Unix listeners are not sampled.
    UnixDiag,
    /// Finding and entering the network namespaces of other processes.
    Namespaces,
    /// Finding the processes that hold the sockets of other users.
    Owners,
    /// Reading the cgroup of a socket without a search for its holder. Requires cgroup v2.
    Cgroup,
    /// Reading pod names from the kubelet's log directories. Not tried where there is no kubelet.
    Kubelet,
    /// Reading which connections wait, and for how long.
    Scan,
}

/// A histogram of durations in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Durations {
    /// Counts by bucket of [`Durations::BOUNDS`], not cumulative. The last count is the rest.
    pub counts: [u64; Durations::BOUNDS.len() + 1],
    /// The sum of all durations.
    pub sum: f64,
}

/// Resource usage of this process: the `process_*` metrics of every Prometheus client library.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Process {
    /// User and system CPU time used so far.
    pub cpu_seconds: f64,
    /// Open file descriptors.
    pub open_fds: Option<u64>,
    /// The soft limit of open descriptors (`RLIMIT_NOFILE`); `None` when unlimited.
    pub max_fds: Option<u64>,
    /// Size of the address space.
    pub virtual_memory_bytes: u64,
    /// Resident memory.
    pub resident_memory_bytes: u64,
    pub threads: u64,
    /// Start time, in seconds since 1970.
    pub start_time_seconds: Option<f64>,
}

/// Whether the last reload of the web configuration succeeded. The reloading code sets the flag,
/// and the sampler exposes it.
#[derive(Clone, Debug)]
pub struct Reloaded(Arc<AtomicBool>);

/// Items left out because of limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Omissions {
    /// Listeners that should have series and have none.
    pub listeners: usize,
    /// Namespaces that should have series and have none.
    pub namespaces: usize,
    /// Listen sockets that are not tracked.
    pub sockets: usize,
    /// Tracked listen sockets.
    pub tracked_sockets: usize,
    /// Overflows that had no series when they happened.
    pub unexposed_overflows: u64,
}

/// Statistics of the sampler and of the process.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SelfStats {
    pub samples: u64,
    /// Samples that were due while an earlier sample was still running or while the thread did not
    /// run.
    pub missed: u64,
    /// Failed readings, by [`Source`].
    pub errors: [u64; Source::ALL.len()],
    /// Available features, by [`Feature`]; `None` until tried.
    pub features: [Option<bool>; Feature::ALL.len()],
    /// Sampled namespaces.
    pub sampled_namespaces: usize,
    /// Existing namespaces that could not be entered; `None` before the first look.
    pub inaccessible_namespaces: Option<usize>,
    /// Namespaces that were found and are not entered yet; `None` before the first look.
    pub waiting_namespaces: Option<usize>,
    /// Items left out because of limits.
    pub omissions: Omissions,
    /// Log lines dropped because they were not read in time.
    pub dropped_log_lines: u64,
    /// The value of `--sample.interval`.
    pub target_interval: Duration,
    /// The recent mean interval between samples; `None` before the second sample.
    pub interval: Option<Duration>,
    /// Durations of samples.
    pub durations: Durations,
    /// Durations of connection scans.
    pub scans: Durations,
    /// Rows that the kernel sent for connection scans.
    pub scan_rows: u64,
    /// Whether the last reload of the web configuration succeeded; `None` without a web
    /// configuration.
    pub web_config_reloaded: Option<bool>,
    /// Resource usage of this process.
    pub process: Option<Process>,
}

// === impl SelfStats ===

impl SelfStats {
    /// Records whether a feature is available.
    pub fn set_feature(&mut self, feature: Feature, is_available: bool) {
        self.features[feature as usize] = Some(is_available);
    }
}

// === impl Reloaded ===

impl Reloaded {
    /// Whether the last reload succeeded; true before the first reload.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Records the result of a reload.
    pub fn set(&self, is_taken_over: bool) {
        self.0.store(is_taken_over, Ordering::Relaxed);
    }
}

impl Default for Reloaded {
    fn default() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }
}

// === impl Source ===

impl Source {
    /// Every source, in storage order.
    pub const ALL: [Self; 8] = [
        Self::InetDiag,
        Self::UnixDiag,
        Self::Netstat,
        Self::Snmp,
        Self::Sysctl,
        Self::Namespaces,
        Self::Owners,
        Self::Scan,
    ];

    /// The label value.
    pub const fn label(self) -> &'static str {
        match self {
            Self::InetDiag => "inet_diag",
            Self::UnixDiag => "unix_diag",
            Self::Netstat => "netstat",
            Self::Snmp => "snmp",
            Self::Sysctl => "sysctl",
            Self::Namespaces => "namespaces",
            Self::Owners => "owners",
            Self::Scan => "scan",
        }
    }
}

// === impl Feature ===

impl Feature {
    /// Every feature, in storage order.
    pub const ALL: [Self; 7] = [
        Self::SockDiag,
        Self::UnixDiag,
        Self::Namespaces,
        Self::Owners,
        Self::Cgroup,
        Self::Kubelet,
        Self::Scan,
    ];

    /// The label value.
    pub const fn label(self) -> &'static str {
        match self {
            Self::SockDiag => "sock_diag",
            Self::UnixDiag => "unix_diag",
            Self::Namespaces => "namespaces",
            Self::Owners => "owners",
            Self::Cgroup => "cgroup",
            Self::Kubelet => "kubelet",
            Self::Scan => "scan",
        }
    }

    /// The consequence of the missing feature.
    pub const fn cost(self) -> &'static str {
        match self {
            Self::SockDiag => "/proc/net/tcp gives lengths, but no limits and no drops",
            Self::UnixDiag => "Unix listeners are not sampled",
            Self::Namespaces => "only namespaces that may be entered are sampled",
            Self::Owners => {
                "sockets of other accounts have no process, and a unit or container only by their cgroup"
            }
            Self::Cgroup => {
                "units and containers are known only through the processes that hold a socket"
            }
            Self::Kubelet => "pods have no names",
            Self::Scan => {
                "the waits of connections and the abandoned ones are unknown, and the diagnoses stalled, abandoned and syn_flood are not made"
            }
        }
    }
}

// === impl Durations ===

impl Durations {
    /// Upper bounds of the buckets, in seconds. A dump of one namespace takes 20 µs, a dump of
    /// 10,000 listeners takes 10 ms, and a scan takes half a millisecond per 1,000 connections.
    pub const BOUNDS: [f64; 11] =
        [0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 1.0];

    /// Adds one duration.
    pub fn observe(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = Self::BOUNDS.iter().position(|bound| seconds <= *bound);
        self.counts[bucket.unwrap_or(Self::BOUNDS.len())] += 1;
        self.sum += seconds;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_and_features_are_stored_where_all_says() {
        for (place, source) in Source::ALL.into_iter().enumerate() {
            assert_eq!(source as usize, place);
        }
        for (place, feature) in Feature::ALL.into_iter().enumerate() {
            assert_eq!(feature as usize, place);
        }
    }

    #[test]
    fn durations_fall_into_the_bucket_that_holds_them() {
        let mut durations = Durations::default();
        for micros in [50, 51, 9_000_000] {
            durations.observe(Duration::from_micros(micros));
        }
        assert_eq!(durations.counts, [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert!((durations.sum - 9.000_101).abs() < 1e-9);
    }
}
