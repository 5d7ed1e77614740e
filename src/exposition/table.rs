//! The table of all metrics: name, type, help, labels and value source. The exposition, the table
//! of docs/metrics.md, the golden file and the tests read this table.

use std::time::Duration;

use crate::self_stats::{Durations, Feature, Process, SelfStats, Source};
use crate::snapshot::owner::Owner;
use crate::snapshot::{Counter, Setting};
use crate::view::{ListenerView, NetnsView, Protocol, QueueView, View};

/// One metric.
#[derive(Clone, Copy)]
pub struct Metric {
    /// The full metric name.
    pub name: &'static str,
    /// Gauge, counter or histogram.
    pub kind: Kind,
    /// One or more sentences that explain the metric to a first-time reader.
    pub help: &'static str,
    /// The label names, in the order of the label values.
    pub labels: &'static [&'static str],
    /// The source of its values.
    pub value: Value,
}

/// A callback for each series: its subject, the values of its labels beyond those of the subject,
/// and its value.
pub type Series<'a> = dyn FnMut(Subject<'_>, &[&str], f64) + 'a;

/// The subject of a series. Its labels come first, and all its series share them.
#[derive(Clone, Copy)]
pub enum Subject<'a> {
    /// listenq itself: no labels.
    SelfStats,
    /// A namespace and its index.
    Netns(usize, &'a NetnsView),
    /// A listener and its namespace. The index counts through all namespaces.
    Listener(usize, &'a NetnsView, &'a ListenerView),
}

/// The type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A value that can go up and down.
    Gauge,
    /// A value that only goes up while its series exists.
    Counter,
    /// Counts by bucket.
    Histogram,
}

/// The source of the values of a metric. A series is absent where its value is `None`.
#[derive(Clone, Copy)]
pub enum Value {
    /// The queue of each listener; absent while its namespace is stale.
    Queue(fn(&QueueView) -> Option<f64>),
    /// Each listener; absent while its namespace is stale.
    ListenerGauge(fn(&ListenerView, &View) -> Option<f64>),
    /// Each listener.
    Listener(fn(&ListenerView) -> Option<f64>),
    /// Each namespace.
    Netns(fn(&NetnsView) -> Option<f64>),
    /// A kernel counter of each namespace.
    Counter(Counter),
    /// A kernel setting of each namespace; absent while it is stale.
    Setting(Setting),
    /// listenq itself.
    SelfStats(fn(&SelfStats) -> Option<f64>),
    /// The process of listenq.
    Process(fn(&Process) -> Option<f64>),
    /// The diagnoses of each listener; absent while its namespace is stale.
    Diagnoses,
    /// The causes of each listener; absent while its namespace is stale.
    Causes,
    /// Several series of listenq itself, each with its own label values.
    Labelled(fn(&View, &mut Series<'_>)),
    /// Durations of listenq itself.
    Durations(fn(&SelfStats) -> &Durations),
}

/// The label names of a listener.
pub const LISTENER: &[&str] = &["netns", "protocol", "address", "port"];
/// The label names of a namespace.
pub const NETNS: &[&str] = &["netns"];

/// Every metric.
pub const METRICS: &[Metric] = &[
    // Per listener: the current queue.
    gauge(
        "listenq_accept_queue_length",
        "Connections that wait in the listener's accept queue now, all its sockets together; one instant, not a mean.",
        LISTENER,
        Value::Queue(|queue| Some(queue.length as f64)),
    ),
    gauge(
        "listenq_accept_queue_limit",
        "Connections the accept queue may hold, min(listen backlog, somaxconn) summed over the listener's sockets; the kernel admits one more to each.",
        LISTENER,
        Value::Queue(|queue| Some(queue.limit? as f64)),
    ),
    gauge(
        "listenq_accept_queue_peak_length",
        "Largest accept queue length known in the trailing peak window; it slides with time and is never reset by a scrape, and a burst between two samples shows only if it overflowed.",
        LISTENER,
        Value::Queue(|queue| Some(queue.peak_length as f64)),
    ),
    gauge(
        "listenq_accept_queue_fullest_ratio",
        "Length over limit + 1 of the fullest socket of the listener; 1 or more is full, and it is not the mean over a reuseport group.",
        LISTENER,
        Value::Queue(|queue| queue.fullest_ratio),
    ),
    counter(
        "listenq_accept_queue_connection_seconds_total",
        "Accept queue length integrated over sampled time; its rate over the rate of listenq_netns_sampled_seconds_total is the mean length, and it is not the time any one connection waited.",
        LISTENER,
        Value::Listener(|listener| Some(listener.connection_seconds)),
    ),
    counter(
        "listenq_accept_queue_full_seconds_total",
        "Sampled time during which any socket of the listener was full; fullness between two samples is not seen.",
        LISTENER,
        Value::Listener(|listener| listener.full_seconds),
    ),
    gauge(
        "listenq_accept_queue_oldest_seconds",
        "Time that the longest-waiting connection in the queue has waited, as of the last connection scan (Unix sockets: since it was first seen; absent if its arrival is unknown); 0 when the queue is empty, absent when it was not scanned; accepted connections do not count.",
        LISTENER,
        Value::ListenerGauge(|listener, _| Some(listener.oldest()?.as_secs_f64())),
    ),
    gauge(
        "listenq_accept_queue_abandoned",
        "Waiting connections whose client has closed or reset, agreed by two connection scans; a client that closed within 100 ms may have closed only its own half and is not counted, nor is one that was accepted and given up later; one that half-closed later and still reads looks like one that left. Absent where connections wait that the scan cannot see (TPROXY, sk_lookup).",
        LISTENER,
        Value::ListenerGauge(|listener, _| Some(listener.abandoned()? as f64)),
    ),
    gauge(
        "listenq_accept_queue_drain_rate",
        "Connections accepted per second while the queue was full throughout (length over the oldest wait); absent otherwise, and not the rate of a queue with room.",
        LISTENER,
        Value::ListenerGauge(|listener, _| listener.drain_rate()),
    ),
    gauge(
        "listenq_accept_queue_useful_limit",
        "Drain rate times the clients' patience (measured, else --client-patience): a longer queue only holds clients that have left; absent with the drain rate, and never the effective limit.",
        LISTENER,
        Value::ListenerGauge(|listener, view| listener.useful_limit(view.client_patience)),
    ),
    gauge(
        "listenq_accept_queue_client_patience_seconds",
        "Median time after which clients left this queue, over at least 20 that left within the last five minutes; clients that left within 100 ms (port checks), that a scan saw answered after they half-closed, or whose listener has keepalive do not count. Absent otherwise, too short while the queue overflows (a client may spend a part of its timeout half open), and not the patience of clients that were accepted in time.",
        LISTENER,
        Value::ListenerGauge(|listener, _| Some(listener.patience?.median.as_secs_f64())),
    ),
    gauge(
        "listenq_accept_queue_abandoned_ratio",
        "Share of the clients seen waiting by connection scans within the last minute that left before they were accepted; absent where fewer than ten were seen, and clients accepted between two scans or refused are not among them.",
        LISTENER,
        Value::ListenerGauge(|listener, _| listener.abandoned_ratio),
    ),
    counter(
        "listenq_listener_abandoned_total",
        "Clients that connection scans saw leave the accept queue by a close later than 100 ms or a reset, and those that half-closed later than 100 ms; those that came and left between two scans, or were refused, are not counted.",
        LISTENER,
        Value::Listener(|listener| Some(listener.abandoned_total? as f64)),
    ),
    gauge(
        "listenq_listener_open_connections",
        "Accepted connections of the listener that are open, as of the last connection scan; absent when its connections were not scanned, which happens only while its port holds a queue.",
        LISTENER,
        Value::ListenerGauge(|listener, _| Some(listener.open_connections()? as f64)),
    ),
    gauge(
        "listenq_syn_queue_length",
        "Half-open connections of the listener, as of the last connection scan; absent when it was not scanned, and not part of the accept queue.",
        LISTENER,
        Value::ListenerGauge(|listener, _| Some(listener.scan?.syn_queue? as f64)),
    ),
    counter(
        "listenq_listener_drops_total",
        "Segments discarded at the listener for any reason (sk_drops), many of them harmless; not a count of refused connections.",
        LISTENER,
        Value::Listener(|listener| Some(listener.drops? as f64)),
    ),
    counter(
        "listenq_listener_overflows_total",
        "Overflows of the namespace's ListenOverflows attributed to this listener; the sum over listeners is exact, the split between listeners that overflow at once is an estimate.",
        LISTENER,
        Value::Listener(|listener| Some(listener.overflows? as f64)),
    ),
    gauge(
        "listenq_listener_sockets",
        "Listen sockets behind the listener now, several with SO_REUSEPORT; 0 while a closed listener is still remembered.",
        LISTENER,
        Value::ListenerGauge(|listener, _| Some(f64::from(listener.sockets))),
    ),
    gauge(
        "listenq_listener_info",
        "A constant 1 labelled by the owner of the listener; an empty label is unknown or does not apply, and may be filled later.",
        &[
            "netns",
            "protocol",
            "address",
            "port",
            "process",
            "unit",
            "container_id",
            "k8s_namespace",
            "k8s_pod",
            "k8s_container",
        ],
        Value::Labelled(|view, series| {
            for (subject, listener) in listeners(view, None) {
                let Owner {
                    process,
                    unit,
                    container_id,
                    k8s_namespace,
                    k8s_pod,
                    k8s_container,
                    ..
                } = &*listener.owner;
                let owner: [&str; 6] =
                    [process, unit, container_id, k8s_namespace, k8s_pod, k8s_container];
                series(subject, &owner, 1.0);
            }
        }),
    ),
    gauge(
        "listenq_listener_incident",
        "Only while a listener is in trouble (a diagnosis, an overflow, a peak above half of its limit) and for six minutes after: the number of the first cause that holds, 0 where none is certain; docs/causes.md has the numbers. The owner labels stay the same for that time, and service groups alerts: namespace/container, unit, process, or port:N where the owner is not known.",
        &[
            "netns",
            "protocol",
            "address",
            "port",
            "service",
            "process",
            "unit",
            "k8s_namespace",
            "k8s_pod",
            "k8s_container",
        ],
        Value::Labelled(|view, series| {
            for (subject, listener) in listeners(view, None) {
                let Some(owner) = &listener.alert_owner else { continue };
                let Owner { process, unit, k8s_namespace, k8s_pod, k8s_container, .. } = &**owner;
                let service = listener.name.service(owner);
                let labels: [&str; 6] =
                    [&service, process, unit, k8s_namespace, k8s_pod, k8s_container];
                let cause = listener.causes().next().map_or(0, |held| held.cause.number());
                series(subject, &labels, f64::from(cause));
            }
        }),
    ),
    gauge(
        "listenq_listener_diagnosis",
        "Whether a kind of trouble holds at the listener (1) or has held within the last five minutes (0); a diagnosis that never held is absent, and each holds for at least 10 s.",
        &["netns", "protocol", "address", "port", "diagnosis"],
        Value::Diagnoses,
    ),
    gauge(
        "listenq_listener_cause",
        "Whether a reason why the listener's owner does not accept holds (1) or has held within the last five minutes (0); only for listeners with a diagnosis, and absent where no reason was certain.",
        &["netns", "protocol", "address", "port", "cause"],
        Value::Causes,
    ),
    gauge(
        "listenq_owner_open_fds",
        "Open file descriptors of the process closest to its limit among those that hold the listener's socket; absent while the listener has no diagnosis.",
        LISTENER,
        Value::ListenerGauge(|listener, _| Some(listener.owner_numbers()?.open_fds? as f64)),
    ),
    gauge(
        "listenq_owner_max_fds",
        "File descriptors that process may open (soft RLIMIT_NOFILE); absent while the listener has no diagnosis.",
        LISTENER,
        Value::ListenerGauge(|listener, _| Some(listener.owner_numbers()?.max_fds? as f64)),
    ),
    counter(
        "listenq_owner_cpu_throttled_seconds_total",
        "Time the cgroup of the listener's owner, or an ancestor, was throttled by its CPU quota, summed over processors; counted only while the listener has a diagnosis.",
        LISTENER,
        Value::Listener(|listener| Some(listener.case.as_ref()?.causes.throttled?.as_secs_f64())),
    ),
    counter(
        "listenq_owner_cpu_wait_seconds_total",
        "Time the owner's threads that were looked at were runnable but not running, throttling included; counted only while the listener has a diagnosis.",
        LISTENER,
        Value::Listener(|listener| Some(listener.case.as_ref()?.causes.cpu_wait?.as_secs_f64())),
    ),
    // Per namespace: the kernel's counters.
    kernel_counter(
        "listenq_netns_listen_overflows_total",
        "Refusals because an accept queue of the namespace was full (TcpExt ListenOverflows); it does not say whose queue.",
        Counter::ListenOverflows,
    ),
    kernel_counter(
        "listenq_netns_listen_drops_total",
        "Connection requests to listeners of the namespace that the kernel dropped (TcpExt ListenDrops); overflows are only one of their causes.",
        Counter::ListenDrops,
    ),
    kernel_counter(
        "listenq_netns_tcp_req_q_full_do_cookies_total",
        "SYNs answered by a cookie because a SYN queue was full (TcpExt TCPReqQFullDoCookies); a burst of real clients does this too, not only a flood.",
        Counter::TcpReqQFullDoCookies,
    ),
    kernel_counter(
        "listenq_netns_tcp_req_q_full_drop_total",
        "SYNs dropped because a SYN queue was full and cookies are off (TcpExt TCPReqQFullDrop); not accept queue overflows.",
        Counter::TcpReqQFullDrop,
    ),
    kernel_counter(
        "listenq_netns_syncookies_sent_total",
        "SYN cookies sent (TcpExt SyncookiesSent); alone no sign of a flood.",
        Counter::SyncookiesSent,
    ),
    kernel_counter(
        "listenq_netns_syncookies_recv_total",
        "Handshakes that came back with a valid SYN cookie (TcpExt SyncookiesRecv); not all of them found room in the accept queue.",
        Counter::SyncookiesRecv,
    ),
    kernel_counter(
        "listenq_netns_syncookies_failed_total",
        "ACKs whose SYN cookie was not valid (TcpExt SyncookiesFailed); late or stray segments count too.",
        Counter::SyncookiesFailed,
    ),
    kernel_counter(
        "listenq_netns_tcp_fast_open_listen_overflow_total",
        "Fast Open requests over a listener's Fast Open limit (TcpExt TCPFastOpenListenOverflow); these fall back to a plain handshake and are not refused.",
        Counter::TcpFastOpenListenOverflow,
    ),
    kernel_counter(
        "listenq_netns_tcp_defer_accept_drop_total",
        "Bare ACKs put aside by TCP_DEFER_ACCEPT until data comes (TcpExt TCPDeferAcceptDrop); not lost connections.",
        Counter::TcpDeferAcceptDrop,
    ),
    kernel_counter(
        "listenq_netns_embryonic_rsts_total",
        "Resets received for half-open connections (TcpExt EmbryonicRsts); port scans do this.",
        Counter::EmbryonicRsts,
    ),
    kernel_counter(
        "listenq_netns_tcp_migrate_req_failure_total",
        "Connections lost because their reuseport member closed and no other could take them (TcpExt TCPMigrateReqFailure); zero unless tcp_migrate_req is used.",
        Counter::TcpMigrateReqFailure,
    ),
    kernel_counter(
        "listenq_netns_passive_opens_total",
        "Connections established at listening sockets (Tcp PassiveOpens); not the number that processes accepted.",
        Counter::PassiveOpens,
    ),
    kernel_counter(
        "listenq_netns_attempt_fails_total",
        "Connection attempts that failed, outgoing ones among them (Tcp AttemptFails); not only those of listeners.",
        Counter::AttemptFails,
    ),
    counter(
        "listenq_netns_accepted_total",
        "Connections taken out of the TCP accept queues: growth of PassiveOpens minus growth of the summed length minus connections discarded when a listener closed. Late by one whole dump (up to two seconds, more where the CPU budget delays dumps), never more than were accepted, and absent where MPTCP joins came, which PassiveOpens counts too.",
        NETNS,
        Value::Netns(|netns| Some(netns.accepted? as f64)),
    ),
    // Per namespace: overflows.
    counter(
        "listenq_netns_unattributed_overflows_total",
        "Overflows that could not be attributed to a listener; with listenq_listener_overflows_total and listenq_netns_unexposed_overflows_total they add up to the growth of listenq_netns_listen_overflows_total, not to its value.",
        NETNS,
        Value::Netns(|netns| Some(netns.unattributed_overflows? as f64)),
    ),
    counter(
        "listenq_netns_unexposed_overflows_total",
        "Overflows attributed to listeners that are not exposed; they are part of the sum.",
        NETNS,
        Value::Netns(|netns| Some(netns.unexposed_overflows? as f64)),
    ),
    // Per namespace: settings.
    setting(
        "listenq_netns_somaxconn",
        "Cap on the backlog of listen(2) in the namespace (net.core.somaxconn); it binds at the next listen call, not at once.",
        Setting::Somaxconn,
    ),
    setting(
        "listenq_netns_tcp_max_syn_backlog",
        "Half-open connections per listener where SYN cookies are off (net.ipv4.tcp_max_syn_backlog); not a cap on the accept queue.",
        Setting::TcpMaxSynBacklog,
    ),
    setting(
        "listenq_netns_tcp_abort_on_overflow",
        "Whether an overflow at the last ACK of a handshake answers with a reset (net.ipv4.tcp_abort_on_overflow); with 0 the client gets no answer.",
        Setting::TcpAbortOnOverflow,
    ),
    setting(
        "listenq_netns_tcp_syncookies",
        "Whether a full SYN queue is answered with cookies (net.ipv4.tcp_syncookies: 0 never, 1 when full, 2 always); not a protection of the accept queue.",
        Setting::TcpSyncookies,
    ),
    setting(
        "listenq_netns_tcp_synack_retries",
        "How often a SYN-ACK is repeated before a half-open connection is given up (net.ipv4.tcp_synack_retries); not the client's own retries.",
        Setting::TcpSynackRetries,
    ),
    gauge(
        "listenq_netns_info",
        "A constant 1 labelled by the container and pod the namespace was made for; an empty label is not known, or does not apply.",
        &["netns", "container_id", "k8s_namespace", "k8s_pod"],
        Value::Labelled(|view, series| {
            for (subject, netns) in namespaces(view) {
                let Owner { container_id, k8s_namespace, k8s_pod, .. } = &*netns.owner;
                series(subject, &[container_id, k8s_namespace, k8s_pod], 1.0);
            }
        }),
    ),
    // Per namespace: sampling coverage.
    counter(
        "listenq_netns_sampled_seconds_total",
        "Time covered by samples of the namespace; stalls and suspends are not credited, so it may grow slower than the clock.",
        NETNS,
        Value::Netns(|netns| Some(netns.sampled_seconds)),
    ),
    gauge(
        "listenq_netns_last_sample_timestamp_seconds",
        "When the namespace last gave a good sample, in seconds since 1970; not when it was scraped.",
        NETNS,
        Value::Netns(|netns| netns.sampled_unix_time),
    ),
    gauge(
        "listenq_netns_scan_timestamp_seconds",
        "When the last connection scan of the namespace began, in seconds since 1970; scan gauges are as of then, and gone when that is too long ago.",
        NETNS,
        Value::Netns(|netns| Some(netns.scan?.unix_time)),
    ),
    gauge(
        "listenq_netns_scan_interval_seconds",
        "Time between the last two connection scans of the namespace; idle ones are scanned seldom, and it is not what --scan.interval asks for.",
        NETNS,
        Value::Netns(|netns| Some(netns.scan?.gap?.as_secs_f64())),
    ),
    // listenq itself.
    gauge(
        "listenq_build_info",
        "A constant 1 labelled by version and revision of listenq; not the version of the kernel.",
        &["version", "revision"],
        Value::Labelled(|_, series| {
            series(Subject::SelfStats, &[crate::VERSION, crate::REVISION], 1.0)
        }),
    ),
    gauge(
        "listenq_sample_interval_seconds",
        "Mean gap between recent samples as achieved; it may be longer than the configured gap.",
        &[],
        Value::SelfStats(|own| Some(own.interval?.as_secs_f64())),
    ),
    gauge(
        "listenq_sample_interval_target_seconds",
        "Mean gap between samples configured with --sample.interval; not the achieved one.",
        &[],
        Value::SelfStats(|own| Some(own.target_interval.as_secs_f64())),
    ),
    counter(
        "listenq_samples_total",
        "Samples taken, failed ones included; not scrapes.",
        &[],
        Value::SelfStats(|own| Some(own.samples as f64)),
    ),
    counter(
        "listenq_samples_missed_total",
        "Samples that were due while an earlier one still ran or listenq was not given a processor; they are skipped, not made up for.",
        &[],
        Value::SelfStats(|own| Some(own.missed as f64)),
    ),
    counter(
        "listenq_sample_errors_total",
        "Readings that failed, by source; each leaves its own numbers as they were and does not fail the sample.",
        &["source"],
        Value::Labelled(|view, series| {
            for source in Source::ALL {
                series(
                    Subject::SelfStats,
                    &[source.label()],
                    view.stats.errors[source as usize] as f64,
                );
            }
        }),
    ),
    Metric {
        name: "listenq_sample_duration_seconds",
        kind: Kind::Histogram,
        help: "How long samples took from the first reading to the end of the fold, on the clock; not processor time.",
        labels: &[],
        value: Value::Durations(|own| &own.durations),
    },
    Metric {
        name: "listenq_scan_duration_seconds",
        kind: Kind::Histogram,
        help: "How long connection scans took, one namespace each, on the clock; not processor time, which is never more than 1 % of a core.",
        labels: &[],
        value: Value::Durations(|own| &own.scans),
    },
    counter(
        "listenq_scan_rows_total",
        "Sockets that the kernel listed for connection scans; not the connections that it had to walk.",
        &[],
        Value::SelfStats(|own| Some(own.scan_rows as f64)),
    ),
    gauge(
        "listenq_namespaces",
        "Network namespaces by state: sampled, there and inaccessible, waiting to be entered because of the CPU budget or because users other than root have very many, or omitted, which are sampled and have no series because of --netns.max; those that cannot even be seen are not counted.",
        &["state"],
        Value::Labelled(|view, series| {
            series(Subject::SelfStats, &["sampled"], view.stats.sampled_namespaces as f64);
            let not_sampled = [
                ("inaccessible", view.stats.inaccessible_namespaces),
                ("waiting", view.stats.waiting_namespaces),
            ];
            for (state, count) in not_sampled {
                if let Some(count) = count {
                    series(Subject::SelfStats, &[state], count as f64);
                }
            }
            series(Subject::SelfStats, &["omitted"], view.stats.omissions.namespaces as f64);
        }),
    ),
    gauge(
        "listenq_sockets",
        "Listen sockets by state: tracked, or omitted because of --sockets.max; omitted ones hold no queue, as far as there is room for those that do.",
        &["state"],
        Value::Labelled(|view, series| {
            let omissions = &view.stats.omissions;
            series(Subject::SelfStats, &["tracked"], omissions.tracked_sockets as f64);
            series(Subject::SelfStats, &["omitted"], omissions.sockets as f64);
        }),
    ),
    counter(
        "listenq_unexposed_overflows_total",
        "Overflows of listeners that had no series when they happened, of all namespaces; unlike listenq_netns_unexposed_overflows_total neither what forgotten listeners had shown nor what a filter leaves out.",
        &[],
        Value::SelfStats(|own| Some(own.omissions.unexposed_overflows as f64)),
    ),
    counter(
        "listenq_log_lines_dropped_total",
        "Log lines dropped because standard error was not read in time; lines that a summary replaced are not counted.",
        &[],
        Value::SelfStats(|own| Some(own.dropped_log_lines as f64)),
    ),
    gauge(
        "listenq_listeners_omitted",
        "Listeners without series because of --listener.max, or because their user, service or namespace brought many new ones; those left out by --listener.include or --listener.exclude are not counted.",
        &[],
        Value::SelfStats(|own| Some(own.omissions.listeners as f64)),
    ),
    gauge(
        "listenq_feature_available",
        "Whether a feature of listenq works here (1) or lacks a privilege or a kernel module (0); absent when it was not tried.",
        &["feature"],
        Value::Labelled(|view, series| {
            for feature in Feature::ALL {
                if let Some(available) = view.stats.features[feature as usize] {
                    series(Subject::SelfStats, &[feature.label()], f64::from(available));
                }
            }
        }),
    ),
    gauge(
        "listenq_web_config_last_reload_successful",
        "Whether the last change of --web.config.file or of a file it names was applied (1), or was invalid and the earlier configuration stays in use (0); absent without that flag.",
        &[],
        Value::SelfStats(|own| own.web_config_reloaded.map(f64::from)),
    ),
    // The process, with the same metrics as every Prometheus client library.
    counter(
        "process_cpu_seconds_total",
        "Total user and system CPU time spent by listenq in seconds.",
        &[],
        Value::Process(|process| Some(process.cpu_seconds)),
    ),
    gauge(
        "process_open_fds",
        "Number of open file descriptors of listenq.",
        &[],
        Value::Process(|process| Some(process.open_fds? as f64)),
    ),
    gauge(
        "process_max_fds",
        "Maximum number of open file descriptors of listenq; absent when unlimited.",
        &[],
        Value::Process(|process| Some(process.max_fds? as f64)),
    ),
    gauge(
        "process_virtual_memory_bytes",
        "Virtual memory size of listenq in bytes.",
        &[],
        Value::Process(|process| Some(process.virtual_memory_bytes as f64)),
    ),
    gauge(
        "process_resident_memory_bytes",
        "Resident memory size of listenq in bytes.",
        &[],
        Value::Process(|process| Some(process.resident_memory_bytes as f64)),
    ),
    gauge(
        "process_threads",
        "Number of threads of listenq.",
        &[],
        Value::Process(|process| Some(process.threads as f64)),
    ),
    gauge(
        "process_start_time_seconds",
        "Start time of listenq since unix epoch in seconds.",
        &[],
        Value::Process(|process| process.start_time_seconds),
    ),
];

const fn gauge(
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    value: Value,
) -> Metric {
    Metric { name, kind: Kind::Gauge, help, labels, value }
}

const fn counter(
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    value: Value,
) -> Metric {
    Metric { name, kind: Kind::Counter, help, labels, value }
}

const fn kernel_counter(name: &'static str, help: &'static str, counter: Counter) -> Metric {
    Metric { name, kind: Kind::Counter, help, labels: NETNS, value: Value::Counter(counter) }
}

const fn setting(name: &'static str, help: &'static str, setting: Setting) -> Metric {
    Metric { name, kind: Kind::Gauge, help, labels: NETNS, value: Value::Setting(setting) }
}

// === impl Metric ===

impl Metric {
    /// Calls `series` for each series of this metric in `view`, `age` after the creation of the
    /// view.
    pub fn each(&self, view: &View, age: Duration, series: &mut Series<'_>) {
        match self.value {
            Value::Queue(value) => {
                each_listener(view, Some(age), series, |listener| value(listener.queue.as_ref()?));
            }
            Value::ListenerGauge(value) => {
                each_listener(view, Some(age), series, |listener| value(listener, view));
            }
            Value::Listener(value) => each_listener(view, None, series, value),
            Value::Netns(value) => each_netns(view, None, series, value),
            Value::Counter(counter) => {
                each_netns(view, None, series, |netns| Some(netns.counters.get(counter)? as f64));
            }
            Value::Setting(setting) => {
                each_netns(view, Some(age), series, |netns| {
                    Some(netns.settings.get(setting)? as f64)
                });
            }
            Value::SelfStats(value) => one(value(&view.stats), series),
            Value::Process(value) => one(view.stats.process.as_ref().and_then(value), series),
            Value::Labelled(each) => each(view, series),
            Value::Diagnoses => each_diagnosis(view, age, series),
            Value::Causes => each_cause(view, age, series),
            Value::Durations(_) => {}
        }
    }
}

fn one(value: Option<f64>, series: &mut Series<'_>) {
    if let Some(value) = value {
        series(Subject::SelfStats, &[], value);
    }
}

/// With `age`, visits only namespaces whose last good sample is recent enough.
fn each_netns(
    view: &View,
    age: Option<Duration>,
    series: &mut Series<'_>,
    value: impl Fn(&NetnsView) -> Option<f64>,
) {
    for (subject, netns) in namespaces(view) {
        let is_shown = age.is_none_or(|age| netns.is_fresh(Protocol::Tcp, view.now + age));
        if let Some(value) = value(netns).filter(|_| is_shown) {
            series(subject, &[], value);
        }
    }
}

fn each_listener(
    view: &View,
    age: Option<Duration>,
    series: &mut Series<'_>,
    value: impl Fn(&ListenerView) -> Option<f64>,
) {
    for (subject, listener) in listeners(view, age) {
        if let Some(value) = value(listener) {
            series(subject, &[], value);
        }
    }
}

fn each_diagnosis(view: &View, age: Duration, series: &mut Series<'_>) {
    for (subject, listener) in listeners(view, Some(age)) {
        for held in listener.case.iter().flat_map(|case| &case.diagnoses) {
            series(subject, &[held.diagnosis.label()], f64::from(held.since.is_some()));
        }
    }
}

fn each_cause(view: &View, age: Duration, series: &mut Series<'_>) {
    for (subject, listener) in listeners(view, Some(age)) {
        for held in listener.case.iter().flat_map(|case| &case.causes.causes) {
            series(subject, &[held.cause.label()], f64::from(held.since.is_some()));
        }
    }
}

/// Every namespace, in index order.
pub fn namespaces(view: &View) -> impl Iterator<Item = (Subject<'_>, &NetnsView)> {
    view.namespaces.iter().enumerate().map(|(place, netns)| (Subject::Netns(place, netns), netns))
}

/// Every listener, in index order. With `age`, only listeners of a protocol whose last good sample
/// is recent enough.
pub fn listeners(
    view: &View,
    age: Option<Duration>,
) -> impl Iterator<Item = (Subject<'_>, &ListenerView)> {
    let all = view.namespaces.iter().flat_map(move |netns| {
        let is_shown = |protocol| age.is_none_or(|age| netns.is_fresh(protocol, view.now + age));
        let (tcp, unix) = (is_shown(Protocol::Tcp), is_shown(Protocol::Unix));
        netns.listeners.iter().map(move |listener| {
            let is_shown = match listener.name.protocol {
                Protocol::Tcp => tcp,
                Protocol::Unix => unix,
            };
            (netns, listener, is_shown)
        })
    });
    all.enumerate()
        .filter(|(_, (.., is_shown))| *is_shown)
        .map(|(place, (netns, listener, _))| (Subject::Listener(place, netns, listener), listener))
}

// === impl Subject ===

impl<'a> Subject<'a> {
    /// The values of its labels, in the order of their names.
    pub fn labels(self) -> impl Iterator<Item = &'a str> {
        let (netns, listener) = match self {
            Self::SelfStats => (None, None),
            Self::Netns(_, netns) => (Some(&*netns.name), None),
            Self::Listener(_, netns, listener) => (Some(&*netns.name), Some(&*listener.name)),
        };
        let listener = listener.map(|name| [name.protocol.label(), &name.address, &name.port]);
        netns.into_iter().chain(listener.into_iter().flatten())
    }
}
