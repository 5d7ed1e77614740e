//! The content of a scrape as whole values: one listener, the overflows of a namespace, and
//! counters that must not fall.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::metrics::{Labels, Metrics};

/// All series of one listener; `None` for a missing series.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Exposed {
    /// `listenq_listener_sockets`
    pub sockets: Option<f64>,
    /// `listenq_accept_queue_length`
    pub length: Option<f64>,
    /// `listenq_accept_queue_limit`
    pub limit: Option<f64>,
    /// `listenq_accept_queue_peak_length`
    pub peak_length: Option<f64>,
    /// `listenq_accept_queue_fullest_ratio`
    pub fullest_ratio: Option<f64>,
    /// `listenq_accept_queue_connection_seconds_total`
    pub connection_seconds: Option<f64>,
    /// `listenq_accept_queue_full_seconds_total`
    pub full_seconds: Option<f64>,
    /// `listenq_listener_drops_total`
    pub drops: Option<f64>,
    /// `listenq_listener_overflows_total`
    pub overflows: Option<f64>,
}

/// The overflows of a namespace, and how they are attributed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Overflows {
    /// The sum over all listeners.
    pub listeners: f64,
    /// Overflows attributed to no listener.
    pub unattributed: f64,
    /// Overflows of listeners that are no longer exposed.
    pub unexposed: f64,
    /// The kernel's count since boot or since the namespace was created.
    pub kernel: f64,
}

// === impl Metrics ===

impl Metrics {
    /// The series of the TCP listener at `address`, in the form of the label.
    ///
    /// # Panics
    ///
    /// When several namespaces have a listener at the address.
    #[must_use]
    #[track_caller]
    pub fn listener(&self, address: impl ToString, port: u16) -> Exposed {
        let (address, port) = (address.to_string(), port.to_string());
        self.exposed(&[("protocol", "tcp"), ("address", &address), ("port", &port)])
    }

    /// The series of the Unix listener at `address`, in the form of the label.
    ///
    /// # Panics
    ///
    /// When several namespaces have a listener at the address.
    #[must_use]
    #[track_caller]
    pub fn unix_listener(&self, address: &str) -> Exposed {
        self.exposed(&[("protocol", "unix"), ("address", address), ("port", "")])
    }

    #[track_caller]
    fn exposed(&self, labels: &[(&str, &str)]) -> Exposed {
        let value = |name: &str| self.value(name, labels);
        Exposed {
            sockets: value("listenq_listener_sockets"),
            length: value("listenq_accept_queue_length"),
            limit: value("listenq_accept_queue_limit"),
            peak_length: value("listenq_accept_queue_peak_length"),
            fullest_ratio: value("listenq_accept_queue_fullest_ratio"),
            connection_seconds: value("listenq_accept_queue_connection_seconds_total"),
            full_seconds: value("listenq_accept_queue_full_seconds_total"),
            drops: value("listenq_listener_drops_total"),
            overflows: value("listenq_listener_overflows_total"),
        }
    }

    /// The series of the listener at a socket address; the IP alone is the `address` label.
    #[must_use]
    #[track_caller]
    pub fn at(&self, address: std::net::SocketAddr) -> Exposed {
        let ip: IpAddr = address.ip();
        self.listener(ip, address.port())
    }

    /// The overflows of the only namespace.
    ///
    /// # Panics
    ///
    /// When the scrape has no such series.
    #[must_use]
    #[track_caller]
    pub fn overflows(&self) -> Overflows {
        let value = |name: &str| {
            self.value(name, &[]).unwrap_or_else(|| panic!("no {name} in:\n{}", self.text()))
        };
        Overflows {
            listeners: self.sum("listenq_listener_overflows_total", &[]),
            unattributed: value("listenq_netns_unattributed_overflows_total"),
            unexposed: value("listenq_netns_unexposed_overflows_total"),
            kernel: value("listenq_netns_listen_overflows_total"),
        }
    }

    /// The counters that decreased or vanished since `earlier`, each with both values.
    #[must_use]
    pub fn fallen_since(&self, earlier: &Self) -> Vec<String> {
        let now = self.counters();
        let fell = |(key, before): (&(&str, Labels), &f64)| {
            let after = now.get(key).copied();
            after
                .is_none_or(|after| after < *before)
                .then(|| format!("{key:?}: {before} -> {after:?}"))
        };
        earlier.counters().iter().filter_map(fell).collect()
    }

    /// Every series whose `# TYPE` line contains `counter`.
    fn counters(&self) -> HashMap<(&str, Labels), f64> {
        let types = self.text().lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let names = types.filter_map(|line| line.strip_suffix(" counter"));
        let series = |name| self.series(name).into_iter().map(move |(l, v)| ((name, l), v));
        names.flat_map(series).collect()
    }
}

// === impl Overflows ===

impl Overflows {
    /// All attributed overflows: of listeners, unattributed, or no longer exposed.
    #[must_use]
    pub fn accounted(&self) -> f64 {
        self.listeners + self.unattributed + self.unexposed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scrape(values: &[(&str, u32)]) -> Metrics {
        let lines = values.iter().map(|(labels, value)| format!("a_total{{{labels}}} {value}\n"));
        Metrics::parse(&format!("# TYPE a_total counter\n{}b 9\n", lines.collect::<String>()))
            .unwrap()
    }

    #[test]
    fn decreased_and_missing_counters_are_reported_and_new_ones_are_not() {
        let before = scrape(&[("x=\"1\"", 5), ("x=\"2\"", 5), ("x=\"3\"", 5)]);
        let after = scrape(&[("x=\"1\"", 4), ("x=\"3\"", 5), ("x=\"4\"", 1)]);
        let mut fallen = after.fallen_since(&before);
        fallen.sort();
        assert_eq!(fallen.len(), 2, "{fallen:?}");
        assert!(fallen[0].ends_with("5 -> Some(4.0)") && fallen[1].ends_with("5 -> None"));
    }
}
