//! Tests that listenq agrees with `ss -ltnm`: 200 random listeners, every row by value, as root and
//! as the user `nobody`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]

use std::collections::BTreeMap;
use std::net::SocketAddr;

use fastrand::Rng;
use listenq_lab::client::fill;
use listenq_lab::listener::{Listen, Listener};
use listenq_lab::listenq::{Daemon, Launch};
use listenq_lab::netns::{Netns, SsRow};
use listenq_lab::wait::{TIMEOUT, eventually, within};

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
const LISTENERS: usize = 200;
/// The last two values are above the namespace's `somaxconn` of 4096.
const BACKLOGS: [i32; 9] = [0, 1, 4, 50, 128, 511, 4096, 5000, 70_000];

/// All sockets behind one address and port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Row {
    sockets: u64,
    length: u64,
    limit: u64,
    drops: u64,
}

/// Rows by address, including `%interface`, and port.
type Table = BTreeMap<(String, u16), Row>;

/// The kinds of listener: host, whether it is bound to loopback by name, whether it is IPv6 only.
fn kinds(rng: &mut Rng, link_local: &str) -> Vec<(String, Option<&'static str>, Option<bool>)> {
    let loopback = format!("127.{}.{}.{}", rng.u8(..), rng.u8(..), rng.u8(1..255));
    vec![
        (loopback, None, None),
        ("127.0.0.1".into(), None, None),
        ("0.0.0.0".into(), None, None),
        ("0.0.0.0".into(), Some("lo"), None),
        ("[::1]".into(), None, None),
        ("[::]".into(), None, Some(false)),
        ("[::]".into(), None, Some(true)),
        ("[::]".into(), Some("lo"), Some(false)),
        ("[::]".into(), Some("lo"), Some(true)),
        ("[::ffff:127.0.0.1]".into(), None, None),
        (link_local.into(), None, None),
    ]
}

/// One random listener at `port`: one socket, or a reuseport group of up to five.
fn open(rng: &mut Rng, link_local: &str) -> Vec<Listener> {
    let kinds = kinds(rng, link_local);
    let (host, device, v6only) = kinds[rng.usize(..kinds.len())].clone();
    let members = if rng.u8(..5) == 0 { rng.u8(2..=5) } else { 1 };
    let (mut port, mut opened) = (0, Vec::new());
    for _ in 0..members {
        let mut listen = Listen::tcp(format!("{host}:{port}"));
        listen = listen.backlog(BACKLOGS[rng.usize(..BACKLOGS.len())]);
        listen = if members > 1 { listen.reuseport() } else { listen };
        listen = device.into_iter().fold(listen, Listen::device);
        listen = v6only.into_iter().fold(listen, Listen::v6only);
        opened.push(listen.open());
        port = opened[0].port();
    }
    opened
}

/// Pairs of listeners that differ only by family or only by interface.
fn twins(link: &str) -> Vec<Listener> {
    let v4 = Listen::tcp("0.0.0.0:0").open();
    let v6 = Listen::tcp(format!("[::]:{}", v4.port())).v6only(true).open();
    let lo = Listen::tcp("0.0.0.0:0").device("lo").open();
    let eth = Listen::tcp(lo.addr()).device(link).backlog(7).open();
    vec![v4, v6, lo, eth]
}

/// The address that clients connect to. A v4-mapped address is reached over IPv4.
fn target(listener: &Listener) -> SocketAddr {
    let SocketAddr::V6(v6) = listener.target() else { return listener.target() };
    match v6.ip().to_ipv4_mapped() {
        Some(v4) => (v4, v6.port()).into(),
        None => v6.into(),
    }
}

fn add(table: &mut Table, key: (String, u16), row: Row) {
    let sum = table.entry(key).or_default();
    sum.sockets += row.sockets;
    sum.length += row.length;
    sum.limit += row.limit;
    sum.drops += row.drops;
}

fn from_ss(ns: &Netns) -> Table {
    let mut table = Table::new();
    for SsRow { address, port, device, dual_stack: _, recv_q, send_q, drops } in ns.ss_listen() {
        let host = device.map_or(address.to_string(), |device| format!("{address}%{device}"));
        let [length, limit, drops] = [recv_q, send_q, drops].map(u64::from);
        add(&mut table, (host, port), Row { sockets: 1, length, limit, drops });
    }
    table
}

fn from_list(launch: &Launch) -> Table {
    let output = launch.clone().args(&["list", "--json"]).run();
    assert!(output.status.success(), "{}", output.stderr);
    let rows: Vec<serde_json::Value> = serde_json::from_str(&output.stdout).unwrap();
    let mut table = Table::new();
    for row in &rows {
        let key = (row["address"].as_str().unwrap().to_owned(), row["port"].as_str().unwrap());
        assert_eq!((row["netns"].as_str(), row["protocol"].as_str()), (Some("host"), Some("tcp")));
        let [sockets, length, limit, drops] =
            ["sockets", "length", "limit", "drops"].map(|name| row[name].as_u64().unwrap());
        let twice =
            table.insert((key.0, key.1.parse().unwrap()), Row { sockets, length, limit, drops });
        assert_eq!(twice, None, "{row}");
    }
    table
}

/// The rows from `/metrics`. Its drops count from the first sample, so they are not compared here.
fn from_metrics(daemon: &Daemon) -> Table {
    let metrics = daemon.scrape();
    metrics.assert_unique();
    let mut table = Table::new();
    let mut take = |name: &str, row: fn(u64) -> Row| {
        for (labels, value) in metrics.series(name) {
            let key = (labels["address"].clone(), labels["port"].parse().unwrap());
            add(&mut table, key, row(value as u64));
        }
    };
    take("listenq_listener_sockets", |sockets| Row { sockets, ..Row::default() });
    take("listenq_accept_queue_length", |length| Row { length, ..Row::default() });
    take("listenq_accept_queue_limit", |limit| Row { limit, ..Row::default() });
    table
}

fn without_drops(table: Table) -> Table {
    table.into_iter().map(|(key, row)| (key, Row { drops: 0, ..row })).collect()
}

/// The rows that differ, with both values.
fn differences(ss: &Table, seen: &Table) -> Vec<String> {
    let keys = ss.keys().chain(seen.keys()).collect::<std::collections::BTreeSet<_>>();
    let differ = keys.into_iter().filter(|key| ss.get(*key) != seen.get(*key));
    differ
        .map(|key| format!("{key:?}: ss {:?}, listenq {:?}", ss.get(key), seen.get(key)))
        .collect()
}

/// Compares `listenq list` with `ss` before and after it: if both runs of `ss` agree, `list` must
/// agree with them.
fn assert_list_agrees(ns: &Netns, launch: &Launch) {
    let (ss, list) = eventually("ss to say the same twice", TIMEOUT, || {
        let (before, list) = (from_ss(ns), from_list(launch));
        (from_ss(ns) == before).then_some((before, list))
    });
    assert_eq!(differences(&ss, &list), [""; 0]);
}

/// Compares `/metrics` with `ss`. The daemon may be one sample behind `ss`.
fn assert_metrics_agree(ns: &Netns, daemon: &Daemon) {
    let mut last = Vec::new();
    let agreed = within(TIMEOUT, || {
        last = differences(&without_drops(from_ss(ns)), &from_metrics(daemon));
        last.is_empty().then_some(())
    });
    assert!(agreed.is_some(), "{last:#?}");
}

#[test]
fn every_row_of_200_random_listeners_equals_ss() {
    if !Netns::require_root() {
        return;
    }
    let seed = 19_511;
    let (ns, mut rng) = (Netns::new("agree"), Rng::with_seed(seed));
    ns.sysctl("net.core.somaxconn", 4096);
    let link = ns.add_link("veth0");
    let link_local = format!("[{}%veth0]", link.address);
    // First, because a twin needs the port of the other in its own family or at its own address.
    let twins = ns.run(|| twins("veth0"));
    let random = || (0..LISTENERS).map(|_| open(&mut rng, &link_local)).collect::<Vec<_>>();
    let listeners = ns.run(random);
    let filled = listeners.iter().step_by(4).map(|group| target(&group[0]));
    let clients: Vec<_> = filled.map(|address| ns.run(|| fill(address, 9))).collect();

    let ss = from_ss(&ns);
    let has = |wanted: fn(&Row) -> bool| ss.values().any(wanted);
    assert!(ss.len() >= LISTENERS + twins.len() && has(|row| row.sockets > 1), "{ss:?}");
    assert!(has(|row| row.length > row.limit) && has(|row| row.drops > 0), "{ss:?}");

    let root = Launch::new(BIN).inside(&ns);
    let unprivileged = root.clone().as_nobody();
    let daemons = [root.clone().start(), unprivileged.clone().start()];
    for launch in [&root, &unprivileged] {
        assert_list_agrees(&ns, launch);
    }
    for daemon in &daemons {
        assert_metrics_agree(&ns, daemon);
    }
    drop(clients);
}

#[test]
fn listeners_of_one_port_differ_by_family_and_interface() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("twins");
    ns.add_link("veth0");
    let twins = ns.run(|| twins("veth0"));
    let daemon = Launch::new(BIN).inside(&ns).start();
    let (families, interfaces) = (twins[0].port(), twins[2].port());
    let limits = |scrape: listenq_lab::metrics::Metrics| {
        [
            ("0.0.0.0", families),
            ("::", families),
            ("0.0.0.0%lo", interfaces),
            ("0.0.0.0%veth0", interfaces),
        ]
        .map(|(address, port)| scrape.listener(address, port).limit)
    };
    assert_eq!(limits(daemon.scrape()), [128.0, 128.0, 128.0, 7.0].map(Some));
}
