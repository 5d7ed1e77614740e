//! What listenq knows of itself: how its sampling goes and what it costs. Plain values, shown as they are.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Where an error can come from: the `source` label of `listenq_sample_errors_total`.
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
    /// The look around for namespaces.
    Namespaces,
    /// The look for the owners of sockets.
    Owners,
    /// The scan of connections that nobody accepted yet.
    Scan,
}

/// What can be missing on a kernel or for want of a privilege: the `feature` label of `listenq_feature_available`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// Socket dumps over netlink; without it `/proc/net/tcp` gives lengths, but no limits and no drops.
    SockDiag,
    /// Dumps of Unix listeners over netlink; without it there are none.
    UnixDiag,
    /// Seeing and entering the network namespaces of others.
    Namespaces,
    /// Seeing who holds the sockets of others.
    Owners,
    /// Telling the cgroup of a socket without looking for its holder: needs cgroup v2.
    Cgroup,
    /// Telling the names of pods from the kubelet's log directories; not tried where there is no kubelet.
    Kubelet,
    /// Seeing which connections wait, and for how long.
    Scan,
}

/// How long samples took, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Durations {
    /// How many took at most as long as [`Durations::BOUNDS`] says; not cumulative, the last is the rest.
    pub counts: [u64; Durations::BOUNDS.len() + 1],
    /// All of them together.
    pub sum: f64,
}

/// What this process uses: the `process_*` metrics of every Prometheus client library.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Process {
    /// User and system time used so far.
    pub cpu_seconds: f64,
    /// Descriptors open now.
    pub open_fds: Option<u64>,
    /// Descriptors allowed (`RLIMIT_NOFILE`, soft); `None` when unlimited.
    pub max_fds: Option<u64>,
    /// Address space.
    pub virtual_memory_bytes: u64,
    /// Memory resident.
    pub resident_memory_bytes: u64,
    /// Threads.
    pub threads: u64,
    /// When it was started, in seconds since 1970.
    pub start_time_seconds: Option<f64>,
}

/// Whether the last change of the web configuration was taken over; set where it is read anew, shown by the sampler.
#[derive(Clone, Debug)]
pub struct Reloaded(Arc<AtomicBool>);

/// What is left out because there is too much of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Omissions {
    /// Listeners that should have series and have none.
    pub listeners: usize,
    /// Namespaces that should have series and have none.
    pub namespaces: usize,
    /// Listen sockets that are not tracked.
    pub sockets: usize,
    /// Listen sockets that are.
    pub tracked_sockets: usize,
    /// Overflows that had no series when they happened.
    pub unexposed_overflows: u64,
}

/// The sampler's account of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SelfStats {
    /// Samples taken.
    pub samples: u64,
    /// Samples that were due while an earlier one was still being taken, or the thread did not run.
    pub missed: u64,
    /// Failed readings, by [`Source`].
    pub errors: [u64; Source::ALL.len()],
    /// Features at hand, by [`Feature`]; `None` until tried.
    pub features: [Option<bool>; Feature::ALL.len()],
    /// Namespaces that are sampled.
    pub sampled_namespaces: usize,
    /// Namespaces that are there and could not be entered.
    pub inaccessible_namespaces: usize,
    /// What is left out because there is too much of it.
    pub omissions: Omissions,
    /// Log lines dropped because they were not read in time.
    pub dropped_log_lines: u64,
    /// What `--sample.interval` asks for.
    pub target_interval: Duration,
    /// The mean gap between samples lately; `None` before the second.
    pub interval: Option<Duration>,
    /// How long samples took.
    pub durations: Durations,
    /// How long connection scans took.
    pub scans: Durations,
    /// Rows that the kernel sent for them.
    pub scan_rows: u64,
    /// Whether the last change of the web configuration was taken over; `None` without one.
    pub web_config_reloaded: Option<bool>,
    /// What this process uses.
    pub process: Option<Process>,
}

// === impl SelfStats ===

impl SelfStats {
    /// Notes whether a feature is at hand.
    pub fn set_feature(&mut self, feature: Feature, is_available: bool) {
        self.features[feature as usize] = Some(is_available);
    }
}

// === impl Reloaded ===

impl Reloaded {
    /// Whether it was; true before the first change.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Says how a change went.
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
    /// Every source, in the order it is stored.
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
    /// Every feature, in the order it is stored.
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

    /// What its want costs.
    pub const fn cost(self) -> &'static str {
        match self {
            Self::SockDiag => "/proc/net/tcp gives lengths, but no limits and no drops",
            Self::UnixDiag => "there are no Unix listeners",
            Self::Namespaces => "only namespaces that may be entered are sampled",
            Self::Owners => {
                "sockets of other accounts have no process, and a unit or container only by their cgroup"
            }
            Self::Cgroup => {
                "units and containers are known only through the processes that hold a socket"
            }
            Self::Kubelet => "pods have no names",
            Self::Scan => {
                "how long connections wait and whose clients are gone is not known, and of diagnoses those are missing that need it: stalled, abandoned, syn_flood"
            }
        }
    }
}

// === impl Durations ===

impl Durations {
    /// Upper bounds of the buckets, in seconds: a dump of one namespace takes 20 µs, one of 10,000 listeners 10 ms,
    /// a scan half a millisecond for each 1,000 connections.
    pub const BOUNDS: [f64; 11] =
        [0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 1.0];

    /// Counts one more.
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
