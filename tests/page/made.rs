//! A simulated machine: this process serves its view as the daemon serves a real one. Tests use it
//! for what the kernel does not do on demand: names that contain markup, a thousand listeners, five
//! minutes of history.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use listenq::cause::Cause;
use listenq::diagnosis::{Diagnosis, Evidence, ScanEvidence, Sockets};
use listenq::http::{AllowedHosts, Servers, router};
use listenq::onset::{Beginning, Onset};
use listenq::self_stats::{Feature, SelfStats};
use listenq::snapshot::owner::Owner;
use listenq::snapshot::{Setting, Settings};
use listenq::view::publish::{Publisher, Reader};
use listenq::view::{
    Accepts, Began, Case, CauseCase, Client, Clients, HeldCause, HeldDiagnosis, ListenerName,
    ListenerView, NetnsView, OwnerNumbers, Protocol, QueueScan, QueueView, ScanView, View,
};
use listenq_lab::http::{Response, get};
use listenq_lab::netns::Netns;
use tokio::sync::oneshot;

/// A name that closes and opens every kind of markup.
pub(crate) const HOSTILE: &str =
    r#"</title></style><script>alert(1)</script><img src=x onerror=alert(1)>"'&amp;"#;
/// The time at which the view was made. Its samples are later, so they never become stale.
const NOW: Duration = Duration::from_secs(1_000);
const LATER: Duration = Duration::from_secs(1_000_000);

/// A server for a view. It stops when dropped.
pub(crate) struct Site {
    address: SocketAddr,
    netns: std::path::PathBuf,
    publisher: Mutex<Publisher>,
    stop: Option<oneshot::Sender<()>>,
    server: Option<JoinHandle<()>>,
}

// === impl Site ===

impl Site {
    /// Serves `view` on a port of `ns`.
    pub(crate) fn serve(ns: &Netns, view: View) -> Self {
        let listener = ns.run(|| TcpListener::bind("127.0.0.1:0").unwrap());
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let mut publisher = Publisher::default();
        publisher.publish(|published| *published = view);
        let reader = publisher.reader();
        let server = thread::spawn(move || serve(listener, reader, stopped));
        let publisher = Mutex::new(publisher);
        Self { address, netns: ns.path(), publisher, stop: Some(stop), server: Some(server) }
    }

    /// Replaces the served view.
    pub(crate) fn publish(&self, view: View) {
        self.publisher.lock().unwrap().publish(|published| *published = view);
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn get(&self, path: &str, headers: &[(&str, &str)]) -> Response {
        get(Some(&self.netns), self.address, path, headers).unwrap()
    }

    pub(crate) fn text(&self, path: &str) -> String {
        let answer = self.get(path, &[]);
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.text().to_owned()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.server.take().map(JoinHandle::join);
    }
}

fn serve(listener: TcpListener, reader: Reader, stopped: oneshot::Receiver<()>) {
    let router = router(reader, "/metrics", AllowedHosts::new(&[], "/".as_ref()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut servers = Servers::default();
        let serving = servers.start(listener, router, None).unwrap();
        tokio::select! {
            result = serving => result.unwrap(),
            _ = stopped => {}
        }
    });
}

/// A machine with these listeners in namespace `host`.
pub(crate) fn view(listeners: Vec<ListenerView>) -> View {
    let mut settings = Settings::default();
    settings.set(Setting::Somaxconn, 4_096);
    let host = NetnsView {
        name: "host".into(),
        tcp_sampled_at: Some(LATER),
        unix_sampled_at: Some(LATER),
        sampled_unix_time: Some(1_700_000_000.0),
        settings,
        listeners,
        ..NetnsView::default()
    };
    let mut own = SelfStats {
        sampled_namespaces: 1,
        interval: Some(Duration::from_micros(100_400)),
        ..SelfStats::default()
    };
    own.set_feature(Feature::SockDiag, true);
    View { now: NOW, client_patience: Duration::from_secs(60), namespaces: vec![host], stats: own }
}

/// An idle listener at `address:port`; without port it is a Unix socket.
pub(crate) fn idle(address: &str, port: &str, process: &str) -> ListenerView {
    let protocol = if port.is_empty() { Protocol::Unix } else { Protocol::Tcp };
    let name = ListenerName { protocol, address: address.into(), port: port.into() };
    let unit = format!("{process}.service");
    ListenerView {
        owner: Arc::new(Owner { process: process.into(), unit: unit.into(), ..Owner::default() }),
        sockets: 1,
        queue: Some(queue(0, 511)),
        full_seconds: Some(0.0),
        drops: Some(0),
        overflows: Some(0),
        ..ListenerView::new(name, 0.0)
    }
}

fn queue(length: u64, limit: u64) -> QueueView {
    QueueView {
        length,
        limit: Some(limit),
        peak_length: length,
        fullest_ratio: Some(length as f64 / (limit + 1) as f64),
        socket_drops: Some(0),
    }
}

/// The listener with a queue of `length` now, and this history.
pub(crate) fn busy(
    listener: ListenerView,
    length: u64,
    limit: u64,
    history: &[u32],
) -> ListenerView {
    let queue_scan = QueueScan {
        oldest: Some(Duration::from_millis(1_234)),
        abandoned: Some(length / 3),
        drain_rate: None,
    };
    let scan = ScanView { at: NOW, syn_queue: Some(2), open: Some(12), queue: Some(queue_scan) };
    let evidence = Evidence {
        watched: Duration::from_secs(30),
        sockets: Sockets { all: 1, ..Sockets::default() },
        scan: Some(ScanEvidence { length, ..ScanEvidence::default() }),
        ..Evidence::default()
    };
    let case = Case { evidence, history: history.to_vec(), ..Case::default() };
    let peak = history.iter().copied().max().unwrap_or_default();
    ListenerView {
        queue: Some(QueueView { peak_length: length.max(peak.into()), ..queue(length, limit) }),
        scan: Some(scan),
        case: Some(Arc::new(case)),
        ..listener
    }
}

/// The listener with these diagnoses, in trouble for 12 s.
pub(crate) fn troubled(mut listener: ListenerView, diagnoses: &[Diagnosis]) -> ListenerView {
    let since = Some(NOW.saturating_sub(Duration::from_secs(12)));
    let mut case = listener.case.as_deref().cloned().unwrap_or_default();
    case.diagnoses =
        diagnoses.iter().map(|diagnosis| HeldDiagnosis { diagnosis: *diagnosis, since }).collect();
    listener.case = Some(Arc::new(case));
    let queue = listener.scan.as_mut().and_then(|scan| scan.queue.as_mut());
    queue.unwrap().drain_rate = Some(21.4);
    ListenerView {
        overflows: Some(1_284),
        full_seconds: Some(184.0),
        drops: Some(1_311),
        ..listener
    }
}

/// The listener with a cause, the numbers of its owner, its accepts and its clients.
pub(crate) fn explained(mut listener: ListenerView) -> ListenerView {
    let since = Some(NOW.saturating_sub(Duration::from_secs(5)));
    let mut case = listener.case.as_deref().cloned().unwrap_or_default();
    let numbers = OwnerNumbers { states: "S".into(), open_fds: Some(9), ..OwnerNumbers::default() };
    let causes = vec![HeldCause { cause: Cause::CpuThrottled, since }];
    case.causes = CauseCase { causes, numbers: Some(numbers), ..CauseCase::default() };
    listener.case = Some(Arc::new(case));
    let (mean_wait, history) = (Some(Duration::from_millis(25)), waves(9));
    let onset = Onset { beginning: Beginning::SlowerServer, before: 9.5, after: 1.2 };
    let began = Some(Began { at: NOW.saturating_sub(Duration::from_secs(40)), onset });
    let accepts = Accepts { total: 950, per_second: 9.5, mean_wait, history, began };
    let client = Client { address: [10, 2, 3, 4].into(), waiting: 90, half_open: 6 };
    let clients = Clients { all: 129, addresses: Some(4), most: vec![client] };
    let (accepts, clients) = (Some(Arc::new(accepts)), Some(Arc::new(clients)));
    ListenerView { accepts, clients, ..listener }
}

/// Sixty lengths of a queue that swings between 0 and `most`.
pub(crate) fn waves(most: u32) -> Vec<u32> {
    let wave = |slot: u32| (f64::from(slot) / 5.0).sin().powi(2) * f64::from(most);
    (0..60).map(|slot| wave(slot) as u32).collect()
}

/// A machine with listeners of every kind and state.
pub(crate) fn lively() -> View {
    let mut full = waves(129);
    full[40..].fill(129);
    let php = troubled(
        busy(idle("127.0.0.1", "9000", "php-fpm8.2"), 129, 128, &full),
        &[Diagnosis::Abandoned, Diagnosis::SlowAccept],
    );
    let redis = busy(idle("0.0.0.0", "6379", "redis-server"), 12, 511, &waves(511));
    let mut listeners = vec![
        idle("@/tmp/.X11-unix/X0", "", "Xorg"),
        busy(idle("10.0.0.7%eth0", "8080", "java"), 0, 100, &waves(85)),
        busy(idle("/run/php/php8.2-fpm.sock", "", "php-fpm8.2"), 3, 4_096, &waves(7)),
        busy(idle("::", "443", "nginx"), 60, 511, &waves(90)),
        troubled(redis, &[Diagnosis::ShortQueue]),
        php,
    ];
    listeners.extend((5_000..5_020).map(|port| idle("127.0.0.1", &port.to_string(), "postgres")));
    let mut view = view(listeners);
    view.stats.set_feature(Feature::Owners, false);
    view
}

/// A machine where every name is [`HOSTILE`], in each part of the page.
pub(crate) fn hostile() -> View {
    let name: Arc<str> = HOSTILE.into();
    let owner = Arc::new(Owner {
        process: name.clone(),
        pid: Some(7),
        start_time: 7,
        unit: name.clone(),
        container_id: name.clone(),
        k8s_namespace: name.clone(),
        k8s_pod: name.clone(),
        k8s_container: name.clone(),
    });
    let owned = |listener: ListenerView| ListenerView { owner: owner.clone(), ..listener };
    let short = || busy(idle(HOSTILE, "", "a"), 5, 4, &waves(5));
    let mut view = view(vec![
        troubled(owned(short()), &Diagnosis::ALL),
        owned(busy(idle("::1", HOSTILE, "a"), 5, 4, &waves(5))),
        owned(idle("@x", "", "a")),
    ]);
    view.namespaces[0].name = name;
    view
}
