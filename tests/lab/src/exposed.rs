//! Owns what a scrape says as whole values: of one listener, of the overflows of a namespace, and of counters that must not fall.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::metrics::{Labels, Metrics};

/// All series of one listener; `None` where there is none.
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

/// The overflows of a namespace, and where they are accounted for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Overflows {
    /// The sum over all listeners.
    pub listeners: f64,
    /// Those that no listener had.
    pub unattributed: f64,
    /// Listeners that are not shown any more.
    pub unexposed: f64,
    /// What the kernel counted since it was booted or the namespace made.
    pub kernel: f64,
}

// === impl Metrics ===

impl Metrics {
    /// What is said of the TCP listener at `address`, written as the label is.
    ///
    /// # Panics
    ///
    /// When several namespaces have one there.
    #[must_use]
    #[track_caller]
    pub fn listener(&self, address: impl ToString, port: u16) -> Exposed {
        let (address, port) = (address.to_string(), port.to_string());
        self.exposed(&[("protocol", "tcp"), ("address", &address), ("port", &port)])
    }

    /// What is said of the Unix listener at `address`, written as the label is.
    ///
    /// # Panics
    ///
    /// When several namespaces have one there.
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

    /// What is said of the listener at a socket address; the IP alone is its `address` label.
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
    /// When the scrape says nothing of it.
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

    /// The counters that fell or vanished since `earlier`, each with both values.
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

    /// Every series whose `# TYPE` line says counter.
    fn counters(&self) -> HashMap<(&str, Labels), f64> {
        let types = self.text().lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let names = types.filter_map(|line| line.strip_suffix(" counter"));
        let series = |name| self.series(name).into_iter().map(move |(l, v)| ((name, l), v));
        names.flat_map(series).collect()
    }
}

// === impl Overflows ===

impl Overflows {
    /// All that are accounted for: at listeners, unattributed, or not exposed any more.
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
    fn a_counter_that_fell_or_vanished_is_named_and_a_new_one_is_not() {
        let before = scrape(&[("x=\"1\"", 5), ("x=\"2\"", 5), ("x=\"3\"", 5)]);
        let after = scrape(&[("x=\"1\"", 4), ("x=\"3\"", 5), ("x=\"4\"", 1)]);
        let mut fallen = after.fallen_since(&before);
        fallen.sort();
        assert_eq!(fallen.len(), 2, "{fallen:?}");
        assert!(fallen[0].ends_with("5 -> Some(4.0)") && fallen[1].ends_with("5 -> None"));
    }
}
