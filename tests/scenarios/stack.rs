//! The stack: listenq, Prometheus and Alertmanager in a namespace of their own, with the shipped
//! files, and a receiver that stores every notification.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use listenq_lab::http;
use listenq_lab::listenq::{Daemon, Launch};
use listenq_lab::netns::Netns;
use listenq_lab::rootfs::Rootfs;
use listenq_lab::running::Running;
use listenq_lab::wait::eventually;
use serde_json::Value;

use super::restarts;

const START: Duration = Duration::from_secs(60);
/// The address to which alertmanager.yml sends notifications.
const RECEIVER: &str = "127.0.0.1:9095";
const LISTENQ: &str = "127.0.0.1:19511";
pub(crate) const PROMETHEUS: &str = "127.0.0.1:9090";
const ALERTMANAGER: &str = "127.0.0.1:9093";

/// One alert in one notification.
#[derive(Clone, Debug)]
pub(crate) struct Notice {
    /// The number of the notification.
    pub(crate) notification: usize,
    /// The path to which the notification was sent.
    pub(crate) to: String,
    pub(crate) at: Instant,
    pub(crate) is_firing: bool,
    pub(crate) labels: Value,
    pub(crate) annotations: Value,
}

/// The running stack. Its processes end when this is dropped.
pub(crate) struct Stack {
    pub(crate) daemon: Daemon,
    receiver: Receiver,
    // The processes end in the order of these fields.
    _prometheus: Running,
    _alertmanager: Running,
    _root: Rootfs,
    ns: Netns,
}

/// Receives and stores every notification. Its thread ends when this is dropped.
pub(crate) struct Receiver {
    notices: Arc<Mutex<Vec<Notice>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

// === impl Stack ===

impl Stack {
    /// Starts the stack, and waits until Prometheus has scraped listenq.
    pub(crate) fn start(binary: &str) -> Self {
        let (ns, root) = (Netns::new("stack"), Rootfs::new());
        let receiver = Receiver::start(&ns);
        let ours = format!("--listener.include=^lq-{}-", std::process::id());
        let others = format!("--listener.exclude=^lq-[0-9]+-[0-9]+-{}/", restarts::HINT);
        // Without optimization a sample costs about ten times as much.
        let flags = [
            "--netns=all",
            "--web.listen-address=127.0.0.1:19511",
            "--sample.cpu-budget=0.2",
            &ours,
            &others,
        ];
        // Keeps the mounts: a new mount of /sys would hide the cgroups.
        let daemon = Launch::new(binary).args(&flags).inside(&ns).keeping_mounts().start();
        let stack = Self {
            daemon,
            receiver,
            _prometheus: prometheus(&ns, &root, &scrapes(), &rules(&root, |text| text)),
            _alertmanager: alertmanager(&ns, &root, quick),
            _root: root,
            ns,
        };
        stack.await_ready();
        stack
    }

    /// Every notification so far.
    pub(crate) fn notices(&self) -> Vec<Notice> {
        self.receiver.notices()
    }

    /// The series that Prometheus returns for a query.
    pub(crate) fn query(&self, path: &str) -> Vec<Value> {
        let answer = http::get(Some(&self.ns.path()), PROMETHEUS.parse().unwrap(), path, &[]);
        let answer: Value = serde_json::from_str(answer.unwrap().text()).unwrap();
        answer["data"]["result"].as_array().expect(path).clone()
    }

    fn await_ready(&self) {
        let is_ready = |address: &str| {
            http::get(Some(&self.ns.path()), address.parse().unwrap(), "/-/ready", &[])
                .is_ok_and(|answer| answer.status == 200)
        };
        eventually("Prometheus and Alertmanager", START, || {
            (is_ready(PROMETHEUS) && is_ready(ALERTMANAGER)).then_some(())
        });
        eventually("a scrape", START, || {
            let found = self.query("/api/v1/query?query=listenq_build_info");
            (!found.is_empty()).then_some(())
        });
    }
}

/// The scrape configuration for the daemon.
pub(crate) fn scrapes() -> String {
    format!(
        "global: {{scrape_interval: 5s, evaluation_interval: 5s}}\n\
         scrape_configs: [{{job_name: listenq, static_configs: [{{targets: ['{LISTENQ}']}}]}}]\n"
    )
}

/// Shortens `group_interval` of Alertmanager: the servers of several scenes belong to one process,
/// so their alerts have the same service and share a group.
pub(crate) fn quick(text: String) -> String {
    text.replace("group_interval: 1m", "group_interval: 5s")
}

/// A copy of a shipped file, with changes.
fn shipped(root: &Rootfs, name: &str, change: impl Fn(String) -> String) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus").join(name);
    root.file(name, change(fs::read_to_string(path).unwrap()))
}

/// The shipped rules, with changes.
pub(crate) fn rules(root: &Rootfs, change: impl Fn(String) -> String) -> Vec<PathBuf> {
    ["alerts.yml", "recording.yml"].map(|name| shipped(root, name, &change)).into()
}

/// Starts Prometheus with this scrape configuration and these rules.
pub(crate) fn prometheus(ns: &Netns, root: &Rootfs, scrapes: &str, rules: &[PathBuf]) -> Running {
    let config = format!(
        "{scrapes}rule_files: {rules:?}\n\
         alerting: {{alertmanagers: [{{static_configs: [{{targets: ['{ALERTMANAGER}']}}]}}]}}\n",
    );
    let mut command = ns.command("prometheus");
    command.arg("--config.file").arg(root.file("prometheus.yml", config));
    command.arg("--storage.tsdb.path").arg(root.place("prometheus"));
    command.args(["--log.level=warn", "--web.listen-address", PROMETHEUS]);
    Running::start_as(&mut command, "prometheus")
}

/// Starts Alertmanager with the shipped configuration, with changes.
pub(crate) fn alertmanager(
    ns: &Netns,
    root: &Rootfs,
    change: impl Fn(String) -> String,
) -> Running {
    let mut command = ns.command("prometheus-alertmanager");
    command.arg("--config.file").arg(shipped(root, "alertmanager.yml", change));
    command.arg("--storage.path").arg(root.place("alertmanager"));
    command.args(["--log.level=warn", "--cluster.listen-address=", "--web.listen-address"]);
    Running::start_as(command.arg(ALERTMANAGER), "prometheus-aler")
}

// === impl Receiver ===

impl Receiver {
    pub(crate) fn start(ns: &Netns) -> Self {
        let listener = ns.run(|| TcpListener::bind(RECEIVER)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (notices, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let (kept, stopped) = (Arc::clone(&notices), Arc::clone(&stop));
        let thread = thread::spawn(move || receive(&listener, &kept, &stopped));
        Self { notices, stop, thread: Some(thread) }
    }

    /// Every notification so far.
    pub(crate) fn notices(&self) -> Vec<Notice> {
        self.notices.lock().unwrap().clone()
    }

    /// The notifications to the pager.
    pub(crate) fn pages(&self) -> Vec<Notice> {
        self.notices().into_iter().filter(|notice| notice.to == "/pages").collect()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn receive(listener: &TcpListener, kept: &Mutex<Vec<Notice>>, stopped: &AtomicBool) {
    let mut notification = 0;
    while !stopped.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => {
                notification += 1;
                kept.lock().unwrap().extend(notices(stream, notification));
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(20)),
            Err(e) => panic!("accepting a notification: {e}"),
        }
    }
}

/// Reads one request and answers it.
fn notices(stream: TcpStream, notification: usize) -> Vec<Notice> {
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut reader = BufReader::new(stream);
    let (mut to, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if line.trim().is_empty() {
            break;
        }
        if let Some(rest) = line.strip_prefix("POST ") {
            to = rest.split(' ').next().unwrap().to_owned();
        } else if let Some(rest) = line.to_lowercase().strip_prefix("content-length:") {
            length = rest.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    reader.get_mut().write_all(answer).unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap();
    let alerts = body["alerts"].as_array().cloned().unwrap_or_default();
    let notice = |alert: Value| Notice {
        notification,
        to: to.clone(),
        at: Instant::now(),
        is_firing: alert["status"] == "firing",
        labels: alert["labels"].clone(),
        annotations: alert["annotations"].clone(),
    };
    alerts.into_iter().map(notice).collect()
}
