//! Tests the exposition as a whole: the golden file, the table of docs/metrics.md, the naming
//! rules, and that no label set is exposed twice.
//!
//! `LISTENQ_RENEW=1 cargo test --test exposition` renews the golden file and the table of
//! docs/metrics.md.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test stops at the first surprise")]

use std::collections::HashSet;
use std::fmt::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;

use listenq::exposition::table::{Kind, METRICS};
use listenq::exposition::{self};
use listenq::self_stats::{Feature, Process, SelfStats, Source};
use listenq::snapshot::scan::{HalfOpen, Local, Scan, ScannedSocket, TcpScan, Waiting};
use listenq::snapshot::{
    AcceptQueue, Cookie, Counter, Counters, DeviceName, Dump, ListenAddress, ListenSocket, NetnsId,
    NetnsSample, Origin, Setting, Settings, Snapshot,
};
use listenq::state::{Config, State};
use listenq::view::View;

const INTERVAL: Duration = Duration::from_millis(100);

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Compares `text` with the file, or writes the file if `LISTENQ_RENEW` is set.
fn assert_is_file(path: &str, text: &str) {
    if std::env::var_os("LISTENQ_RENEW").is_some() {
        std::fs::write(root(path), text).unwrap();
    }
    let file = std::fs::read_to_string(root(path)).unwrap();
    assert!(file == text, "{path} is out of date: LISTENQ_RENEW=1 cargo test --test exposition");
}

fn socket(cookie: u64, ip: &str, port: u16, length: u32, limit: u32, drops: u32) -> ListenSocket {
    ListenSocket {
        cookie: Cookie(cookie),
        address: ListenAddress { ip: ip.parse().unwrap(), port, device: None },
        queue: AcceptQueue { length, limit: Some(limit) },
        drops: Some(drops),
        origin: Origin::default(),
    }
}

fn settings() -> Settings {
    let mut settings = Settings::default();
    for (setting, value) in Setting::ALL.into_iter().zip([4096, 1024, 0, 1, 5]) {
        settings.set(setting, value);
    }
    settings
}

fn netstat(overflows: u64) -> Counters {
    let mut counters = Counters::default();
    for counter in Counter::ALL {
        counters.set(counter, 10 + counter as u64);
    }
    counters.set(Counter::ListenOverflows, overflows);
    counters
}

fn snmp() -> Counters {
    let mut counters = Counters::default();
    counters.set(Counter::PassiveOpens, 10 + Counter::PassiveOpens as u64);
    counters
}

/// Five ticks: a server whose queue becomes full, a group of two, a listener bound to an interface,
/// and a listener that closes. Then twelve seconds, after which the full queue has the diagnosis
/// `short_queue`.
fn story() -> View {
    let mut state = State::new(Config::default());
    let bound = DeviceName::new("eth0");
    let mut now = Duration::ZERO;
    for tick in 0..9u32 {
        let interval = if tick < 5 { INTERVAL } else { Duration::from_secs(3) };
        let full = u32::from(tick == 3);
        let mut sockets = vec![
            socket(1, "0.0.0.0", 80, full * 129, 128, u32::from(tick >= 3) * 12),
            socket(2, "::", 443, 1, 511, 0),
            socket(3, "::", 443, 2, 511, 0),
            socket(4, "fe80::1", 22, 0, 128, 0),
        ];
        sockets[3].address.device = Some(bound);
        if tick < 2 {
            sockets.push(socket(5, "127.0.0.1", 9000, 0, 0, 0));
        }
        let sample = NetnsSample {
            netstat: Some(netstat(100 + 6 * u64::from(tick >= 3))),
            snmp: Some(snmp()),
            settings: Some(settings()),
            scan: (tick >= 3).then(|| scan(&sockets)),
            tcp: Some(Dump { interval, is_same: false, part: None, sockets }),
            ..NetnsSample::new(NetnsId(1), "host".into(), false)
        };
        now += interval;
        let unix_time = 1_750_000_000.0 + now.as_secs_f64();
        state.fold(
            &Snapshot { unix_time, namespaces: vec![sample], ..Snapshot::default() },
            interval,
        );
    }
    let mut view = View::default();
    state.show(&own(), &mut view);
    view
}

/// Three connections wait at `[::]:443`; the client of one of them is gone.
fn scan(sockets: &[ListenSocket]) -> Scan {
    let local = |ip: IpAddr, port| Local { ip, port, interface: 0 };
    let scanned = sockets.iter().map(|socket| ScannedSocket {
        cookie: socket.cookie,
        address: socket.address,
        local: local(socket.address.ip, socket.address.port),
        is_v6_only: false,
        length: socket.queue.length,
        longest: socket.queue.length,
        is_read: socket.queue.length > 0,
        accepted_ago: Some(Duration::ZERO),
    });
    let waiting = (0..3).map(|nth| Waiting {
        cookie: Cookie(100 + nth),
        local: local("::1".parse().unwrap(), 443),
        client: "2001:db8::7".parse().unwrap(),
        age: Some(Duration::from_millis(250 * nth)),
        is_closed: nth == 0,
        patience: None,
    });
    let half_open = vec![HalfOpen {
        local: local("10.0.0.1".parse().unwrap(), 80),
        client: "192.0.2.7".parse().unwrap(),
        repeats: 0,
    }];
    let open = vec![(local("::1".parse().unwrap(), 443), 12)];
    let (sockets, waiting) = (scanned.collect(), waiting.collect());
    let tcp = TcpScan { sockets, half_open, waiting, open, ..TcpScan::default() };
    Scan { tcp: Some(tcp), ..Scan::default() }
}

fn own() -> SelfStats {
    let mut own = SelfStats {
        samples: 5,
        missed: 1,
        sampled_namespaces: 1,
        inaccessible_namespaces: Some(0),
        waiting_namespaces: Some(0),
        target_interval: INTERVAL,
        web_config_reloaded: Some(true),
        interval: Some(Duration::from_millis(101)),
        process: Some(Process {
            cpu_seconds: 0.25,
            open_fds: Some(12),
            max_fds: Some(1024),
            virtual_memory_bytes: 70_000_000,
            resident_memory_bytes: 6_000_000,
            threads: 3,
            start_time_seconds: Some(1_750_000_000.0),
        }),
        ..SelfStats::default()
    };
    own.errors[Source::Snmp as usize] = 5;
    own.features[Feature::SockDiag as usize] = Some(true);
    for micros in [40, 60, 60, 70, 400] {
        own.durations.observe(Duration::from_micros(micros));
    }
    own
}

fn render(view: &View, age: Duration) -> String {
    let text = exposition::render(view, age).unwrap();
    text.replace(&format!("revision=\"{}\"", listenq::REVISION), "revision=\"REVISION\"")
        .replace(listenq::VERSION, "VERSION")
}

/// The series of the text: each line with a value, without the value.
fn series(text: &str) -> Vec<&str> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.rsplit_once(' ').unwrap().0).collect()
}

#[test]
fn the_exposition_equals_the_golden_file() {
    assert_is_file("tests/golden/metrics.txt", &render(&story(), Duration::ZERO));
}

#[test]
fn law_10_a_stale_namespace_has_counters_and_no_gauges() {
    let fresh = render(&story(), Duration::ZERO);
    let stale = render(&story(), Duration::from_secs(10));
    let gone: HashSet<&str> =
        series(&fresh).into_iter().filter(|name| !series(&stale).contains(name)).collect();
    assert!(gone.iter().any(|name| name.starts_with("listenq_accept_queue_length{")));
    assert!(gone.contains("listenq_netns_somaxconn{netns=\"host\"}"));
    for name in gone {
        assert!(!name.contains("_total{"), "{name} is a counter");
    }
    assert!(
        stale.contains("listenq_netns_last_sample_timestamp_seconds{netns=\"host\"} 1750000012.5")
    );
}

#[test]
fn the_reference_has_the_table_of_metrics() {
    let mut table = String::from("| metric | type | labels | meaning |\n|---|---|---|---|\n");
    for metric in METRICS {
        let kind = format!("{:?}", metric.kind).to_lowercase();
        let labels = metric.labels.join(", ");
        writeln!(table, "| `{}` | {kind} | {labels} | {} |", metric.name, metric.help).unwrap();
    }
    let reference = std::fs::read_to_string(root("docs/metrics.md")).unwrap();
    let (before, rest) = reference.split_once("<!-- metrics -->\n").expect("the table's begin");
    let (_, after) = rest.split_once("<!-- /metrics -->").expect("the table's end");
    assert_is_file(
        "docs/metrics.md",
        &format!("{before}<!-- metrics -->\n{table}<!-- /metrics -->{after}"),
    );
}

/// Whether a byte may be part of a label name.
fn is_label(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'
}

#[test]
fn metric_names_and_help_texts_follow_the_rules() {
    let names: HashSet<&str> = METRICS.iter().map(|metric| metric.name).collect();
    assert_eq!(names.len(), METRICS.len(), "a name stands twice");
    for metric in METRICS {
        let name = metric.name;
        assert!(name.starts_with("listenq_") || name.starts_with("process_"), "{name}");
        assert_eq!(metric.kind == Kind::Counter, name.ends_with("_total"), "{name}");
        assert!(metric.help.ends_with('.') && metric.help.len() > 20, "{name}: {}", metric.help);
        assert!(metric.labels.iter().all(|label| label.bytes().all(is_label)), "{name}");
    }
}

fn address() -> impl Strategy<Value = ListenAddress> {
    let ips = ["0.0.0.0", "::", "127.0.0.1", "::ffff:127.0.0.1", "fe80::1"];
    let devices = [None, Some("eth0"), Some("a\"b\\c"), Some("eth0.1")];
    (prop::sample::select(ips.to_vec()), 1..4u16, prop::sample::select(devices.to_vec())).prop_map(
        |(ip, port, device)| ListenAddress {
            ip: ip.parse().unwrap(),
            port,
            device: device.map(DeviceName::new),
        },
    )
}

fn row() -> impl Strategy<Value = ListenSocket> {
    (0..20u64, address(), 0..9u32, prop::option::of(0..9u32), prop::option::of(0..99u32)).prop_map(
        |(cookie, address, length, limit, drops)| ListenSocket {
            cookie: Cookie(cookie),
            address,
            queue: AcceptQueue { length, limit },
            drops,
            origin: Origin::default(),
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn law_7_no_label_set_is_exposed_twice(
        ticks in prop::collection::vec((prop::collection::vec(row(), 0..24), 0..9u64), 1..20),
    ) {
        let mut state = State::new(Config::default());
        let (mut view, mut overflows) = (View::default(), 0);
        for (sockets, more) in ticks {
            overflows += more;
            let mut sample = NetnsSample::new(NetnsId(1), "host".into(), false);
            sample.tcp = Some(Dump { interval: INTERVAL, is_same: false, part: None, sockets });
            sample.netstat = Some(netstat(overflows));
            state.fold(&Snapshot { namespaces: vec![sample], ..Snapshot::default() }, INTERVAL);
            state.show(&own(), &mut view);
            let text = render(&view, Duration::ZERO);
            let all = series(&text);
            prop_assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
        }
    }
}
