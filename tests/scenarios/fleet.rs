//! The fleet test: a real Prometheus and Alertmanager with the shipped rules watch simulated hosts,
//! which consist of metrics only. One cause on many hosts must give few notifications; many causes
//! must give one notification each. A second cluster has instances with the same names.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use listenq_lab::netns::Netns;
use listenq_lab::rootfs::Rootfs;
use listenq_lab::tool::require_tool;

use super::stack::{Notice, Receiver, alertmanager, prometheus, rules};

const METRICS: &str = "127.0.0.1:9600";
/// The number of hosts, unless `FLEET_HOSTS` says otherwise.
const HOSTS: usize = 240;
/// Services in trouble, each on a host of its own.
const SERVICES: usize = 20;
/// Hosts without the stalled service: one for each service in trouble, and ten healthy ones.
const OTHERS: usize = SERVICES + 10;
const BEGIN: Duration = Duration::from_secs(30);
/// The time within which the trouble begins, and later ends, on one host after the other.
const SPREAD: Duration = Duration::from_secs(40);
const END: Duration = Duration::from_secs(110);
/// The duration of the test: enough for the shortened holds and one group interval.
const RUN: Duration = Duration::from_secs(270);
const PHP: &str = "php-fpm";
/// The fleet, and a small cluster whose first host has the same stalled service.
static CLUSTERS: LazyLock<[(&str, usize); 2]> = LazyLock::new(|| {
    let hosts = std::env::var("FLEET_HOSTS").map_or(HOSTS, |text| text.parse().unwrap());
    [("berlin", hosts), ("oslo", 10)]
});

/// Serves the metrics of all hosts. Dropping it ends its thread.
struct Hosts {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[test]
fn a_stalled_service_on_many_hosts_is_one_page_and_twenty_services_are_twenty() {
    if !Netns::require_root()
        || !["prometheus", "prometheus-alertmanager"].into_iter().all(require_tool)
    {
        return;
    }
    let (ns, root) = (Netns::new("fleet"), Rootfs::new());
    let receiver = Receiver::start(&ns);
    let _hosts = Hosts::start(&ns);
    let _alertmanager = alertmanager(&ns, &root, shortened);
    let _prometheus = prometheus(&ns, &root, &scrapes(), &rules(&root, shortened));
    thread::sleep(RUN);
    let notices = receiver.notices();
    for to in ["/pages", "/notes"] {
        let notices: Vec<_> = notices.iter().filter(|notice| notice.to == to).collect();
        println!("{to}: {:?}", by_service(&notices));
        check_many_hosts(&notices);
        check_single_services(&notices);
        check_other_cluster(&notices);
        if to == "/pages" {
            check_fleet_page(&notices);
        }
    }
}

/// For each service with its cluster: the numbers of its notifications, each with its alerts.
fn by_service(notices: &[&Notice]) -> BTreeMap<String, BTreeMap<usize, BTreeMap<String, usize>>> {
    let mut services = BTreeMap::<_, BTreeMap<_, BTreeMap<_, _>>>::new();
    for notice in notices {
        let label = |name: &str| notice.labels[name].as_str().unwrap_or_default().to_owned();
        let state = if notice.is_firing { "firing" } else { "resolved" };
        let alerts = services.entry(of(&label("cluster"), &label("service"))).or_default();
        let alerts = alerts.entry(notice.notification).or_default();
        *alerts.entry(format!("{} {state}", label("alertname"))).or_default() += 1;
    }
    services
}

fn of(cluster: &str, service: &str) -> String {
    format!("{service} in {cluster}")
}

/// Checks that there are at most three notifications, and that few are about single hosts. Where a
/// host notified before the alert about many hosts was evaluated, its end is a fourth one.
fn check_many_hosts(notices: &[&Notice]) {
    let services = by_service(notices);
    let notifications = &services[&of("berlin", PHP)];
    let singles = notices.iter().filter(|notice| {
        notice.is_firing
            && notice.labels["service"] == PHP
            && notice.labels["cluster"] == "berlin"
            && !is_of_fleet(notice)
    });
    let singles = singles.count();
    assert!(singles < 20, "each host notifies: {notifications:#?}");
    let most = if singles > 0 { 4 } else { 3 };
    assert!(notifications.len() <= most, "{notifications:#?}");
}

/// Checks that trouble in one cluster neither mutes nor joins trouble in the other cluster.
fn check_other_cluster(notices: &[&Notice]) {
    let services = by_service(notices);
    let alerts = services[&of("oslo", PHP)].values().flat_map(BTreeMap::iter);
    let firing: Vec<_> = alerts.filter(|(alert, _)| alert.ends_with(" firing")).collect();
    assert!(matches!(firing[..], [(_, 1)]), "{firing:?}");
}

/// Checks that there is one page about all hosts, which names the service and mutes the warning
/// about all hosts. The notification of its end must list no single alert.
fn check_fleet_page(notices: &[&Notice]) {
    let of_fleet: Vec<_> = notices.iter().filter(|notice| is_of_fleet(notice)).collect();
    let is_firing: Vec<_> = of_fleet.iter().map(|notice| notice.is_firing).collect();
    assert_eq!(is_firing, [true, false], "{of_fleet:#?}");
    let summary = of_fleet[1].annotations["summary"].as_str().unwrap();
    let is_right = summary.starts_with(&format!("{PHP} has trouble on "))
        && summary.ends_with(&format!(" of {} hosts", CLUSTERS[0].1));
    assert!(is_right, "{summary}");
    let end = notices.iter().filter(|notice| notice.notification == of_fleet[1].notification);
    let listed: Vec<_> = end.map(|notice| notice.labels["alertname"].clone()).collect();
    assert_eq!(listed, ["ListenQueueManyHosts"]);
}

fn is_of_fleet(notice: &Notice) -> bool {
    notice.labels["alertname"] == "ListenQueueManyHosts"
}

/// Checks that each service has one firing notification, and that no other service has any.
fn check_single_services(notices: &[&Notice]) {
    let services = by_service(notices);
    let is_firing =
        |alerts: &&BTreeMap<String, usize>| alerts.keys().any(|alert| alert.ends_with(" firing"));
    for nth in 0..SERVICES {
        let notifications = &services[&of("berlin", &service(nth))];
        assert_eq!(notifications.values().filter(is_firing).count(), 1, "{notifications:#?}");
    }
    assert_eq!(services.len(), SERVICES + CLUSTERS.len(), "{:?}", services.keys());
}

fn service(nth: usize) -> String {
    format!("service-{nth}")
}

/// Divides `keep_firing_for` and `group_interval` by ten, for a short run.
fn shortened(text: String) -> String {
    let times = [("10m", "60s"), ("5m", "30s"), ("2m", "12s"), ("1m", "6s")];
    ["keep_firing_for", "group_interval"].into_iter().fold(text, |text, name| {
        times.iter().fold(text, |text, (from, to)| {
            text.replace(&format!("{name}: {from}\n"), &format!("{name}: {to}\n"))
        })
    })
}

/// The scrape configuration: one target per host, all at the address of one server. The path
/// contains the cluster and the number of the host.
fn scrapes() -> String {
    let configs: Vec<_> = CLUSTERS
        .iter()
        .map(|(cluster, hosts)| {
            let targets: Vec<_> = (0..*hosts).map(|host| format!("web-{host}:19511")).collect();
            format!("{{targets: {targets:?}, labels: {{cluster: {cluster}}}}}")
        })
        .collect();
    format!(
        "global: {{scrape_interval: 15s, evaluation_interval: 15s}}\n\
         scrape_configs:\n\
         - job_name: listenq\n\
         \x20 static_configs: [{}]\n\
         \x20 relabel_configs:\n\
         \x20 - {{source_labels: [__address__], target_label: instance}}\n\
         \x20 - {{source_labels: [cluster, __address__], regex: '(.+);web-(.+):.+', target_label: __metrics_path__, replacement: '/$1/$2'}}\n\
         \x20 - {{target_label: __address__, replacement: '{METRICS}'}}\n",
        configs.join(", ")
    )
}

// === impl Hosts ===

impl Hosts {
    fn start(ns: &Netns) -> Self {
        let listener = ns.run(|| TcpListener::bind(METRICS)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || serve(&listener, Instant::now(), &stopped));
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn serve(listener: &TcpListener, begin: Instant, stopped: &AtomicBool) {
    while !stopped.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => answer(stream, begin.elapsed()),
            Err(e) if e.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(5)),
            Err(e) => panic!("accepting a scrape: {e}"),
        }
    }
}

fn answer(stream: TcpStream, at: Duration) {
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut reader = BufReader::new(stream);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && reader.read_until(b'\n', &mut head).unwrap() > 0 {}
    let head = String::from_utf8(head).unwrap();
    let path = head.strip_prefix("GET /").and_then(|rest| rest.split(' ').next()).unwrap();
    let (cluster, host) = path.split_once('/').unwrap();
    let body = metrics(cluster, host.parse().unwrap(), at);
    let head =
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/plain; version=0.0.4\r\n";
    let answer = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
    // Prometheus may have closed the connection after a timeout.
    let _ = reader.get_mut().write_all(answer.as_bytes());
}

/// The metrics of a host, whose only listener is stalled and overflows for some time.
fn metrics(cluster: &str, host: usize, at: Duration) -> String {
    let hosts = CLUSTERS[0].1;
    let begin = BEGIN + SPREAD.mul_f64(host as f64 / hosts as f64);
    let end = begin + (END - BEGIN);
    let (service, is_troubled) = match (cluster, host) {
        ("oslo", _) => (PHP.to_owned(), host == 0),
        _ => match (host + OTHERS).checked_sub(hosts) {
            None => (PHP.to_owned(), true),
            Some(other) => (service(other), other < SERVICES),
        },
    };
    let of = "netns=\"host\",protocol=\"tcp\",address=\"::\",port=\"9000\"";
    let is_past = is_troubled && at >= begin;
    let is_now = is_past && at < end;
    let overflows = if is_past { (at.min(end) - begin).as_secs() * 10 + 1 } else { 0 };
    let mut text = format!(
        "process_start_time_seconds 1\n\
         listenq_listener_overflows_total{{{of}}} {overflows}\n\
         listenq_accept_queue_oldest_seconds{{{of}}} {}\n",
        if is_now { (at - begin).as_secs() } else { 0 }
    );
    if is_past {
        let (diagnosis, cause) = (u8::from(is_now), 7 * u8::from(is_now));
        let _ =
            writeln!(text, "listenq_listener_diagnosis{{{of},diagnosis=\"stalled\"}} {diagnosis}");
        let _ = writeln!(
            text,
            "listenq_listener_incident{{{of},service=\"{service}\",process=\"{service}\"}} {cause}"
        );
    }
    text
}
