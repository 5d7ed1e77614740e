//! Renders a view in the Prometheus text format 0.0.4. Each call renders the view again, so a
//! series whose value is unknown or whose listener is gone is absent.
//!
//! The prometheus crate encodes the metrics of listenq itself. `lines` writes the metrics of
//! listeners and namespaces, which may be thousands, because the crate needs every label of every
//! series as a separate string. For the thirteen series of one listener, the crate executed 81,600
//! instructions, where 5,600 are enough. The crate stays the reference: a test compares both
//! outputs byte by byte.

mod families;
mod lines;
mod per_subject;
pub mod protobuf;
pub mod table;

use std::time::Duration;

use prometheus::TextEncoder;

use crate::view::View;

use lines::Lines;
use table::{METRICS, Metric};

/// The Content-Type of the output of [`render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Renders `view`, `age` after the creation of the view.
pub fn render(view: &View, age: Duration) -> Result<String, prometheus::Error> {
    let mut lines = Lines::new(view);
    for metric in METRICS {
        match may_be_many(metric) {
            true => lines.write(metric, view, age),
            // The encoder refuses a family without a sample.
            false => families::of(metric, view, age)
                .map_or(Ok(()), |family| TextEncoder::new().encode_utf8(&[family], lines.text()))?,
        }
    }
    Ok(lines.finish())
}

/// Whether the metric has a series for each namespace or listener.
fn may_be_many(metric: &Metric) -> bool {
    metric.labels.starts_with(table::NETNS)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::diagnosis::Diagnosis;
    use crate::self_stats::{Feature, Process, SelfStats};
    use crate::snapshot::owner::Owner;
    use crate::snapshot::{Counter, Counters, Setting, Settings};
    use crate::view::{
        Case, HeldDiagnosis, ListenerName, ListenerView, NetnsScan, NetnsView, Protocol, QueueView,
        ScanView,
    };

    const SECOND: Duration = Duration::from_secs(1);

    fn listener(protocol: Protocol, address: &str, port: &str) -> ListenerView {
        let name = ListenerName { protocol, address: address.into(), port: port.into() };
        ListenerView {
            owner: Arc::new(Owner { process: "a \"b\"\n\\c".into(), ..Owner::default() }),
            sockets: 2,
            queue: Some(QueueView {
                length: 3,
                limit: Some(128),
                peak_length: 129,
                fullest_ratio: Some(3.0 / 129.0),
                socket_drops: None,
            }),
            connection_seconds: 1e6 / 7.0,
            full_seconds: Some(0.0),
            drops: Some(u64::MAX),
            scan: Some(ScanView { at: SECOND, syn_queue: Some(7), open: Some(3), queue: None }),
            most_open: 3,
            ..ListenerView::new(name, 1_750_000_000.25)
        }
    }

    /// One namespace is fresh. The other one knows only a Unix listener and is stale.
    pub(super) fn view() -> View {
        let (mut counters, mut settings) = (Counters::default(), Settings::default());
        counters.set(Counter::ListenOverflows, 12);
        settings.set(Setting::Somaxconn, -1);
        let held = |diagnosis, since| HeldDiagnosis { diagnosis, since };
        let diagnoses =
            vec![held(Diagnosis::Stalled, Some(SECOND)), held(Diagnosis::SlowAccept, None)];
        let closed = ListenerView { queue: None, sockets: 0, ..listener(Protocol::Tcp, "::", "1") };
        let case = Some(Arc::new(Case { diagnoses, ..Case::default() }));
        let host = NetnsView {
            name: "host".into(),
            tcp_sampled_at: Some(SECOND),
            sampled_unix_time: Some(1_750_000_000.5),
            scan: Some(NetnsScan { at: SECOND, unix_time: 0.25, gap: None }),
            counters,
            settings,
            unattributed_overflows: Some(0),
            listeners: vec![
                listener(Protocol::Unix, "/run/a\"b", ""),
                closed,
                ListenerView { case, ..listener(Protocol::Tcp, "fe80::1%a\\b", "80") },
            ],
            ..NetnsView::default()
        };
        let other = NetnsView {
            name: "a\\n".into(),
            listeners: vec![listener(Protocol::Unix, "@\n", "")],
            ..NetnsView::default()
        };
        let mut own = SelfStats { process: Some(Process::default()), ..SelfStats::default() };
        own.set_feature(Feature::Scan, true);
        View { now: SECOND, stats: own, namespaces: vec![host, other], ..View::default() }
    }

    #[test]
    fn every_line_is_as_the_prometheus_crate_writes_it() {
        for age in [Duration::ZERO, SECOND * 60] {
            let families: Vec<_> =
                METRICS.iter().filter_map(|metric| families::of(metric, &view(), age)).collect();
            let expected = TextEncoder::new().encode_to_string(&families).unwrap();
            assert_eq!(render(&view(), age).unwrap(), expected);
        }
    }
}
