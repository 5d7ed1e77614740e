//! Tests the dashboards: the metrics and labels in their queries exist, each panel has a
//! description, and a real Prometheus answers every query.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]
#![allow(clippy::print_stdout, reason = "the measured figures are for the reader of --nocapture")]

mod asking;
mod plan;
mod prometheus;
mod queries;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use listenq::cause::Cause;
use listenq::exposition::table::METRICS;
use listenq_lab::hammer::{Load, Manner, visit};
use listenq_lab::listener::Listen;
use listenq_lab::listenq::{Daemon, Launch};
use listenq_lab::metrics::Labels;
use listenq_lab::netns::Netns;
use listenq_lab::server::{Pace, Server};
use listenq_lab::tool::require_tool;
use listenq_lab::unix::{Kind, UnixListener};
use listenq_lab::wait::eventually;
use serde_json::Value;

use plan::{ALL, Dashboard, Query, Values, may_be_empty};
use prometheus::Prometheus;
use queries::metrics_of;

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
const SECOND: Duration = Duration::from_secs(1);
/// Timeout for a result: a diagnosis needs 10 s of evidence, a rate needs two scrapes.
const TIMEOUT: Duration = Duration::from_secs(50);

#[test]
fn uids_and_titles_are_those_that_links_and_alerts_rely_on() {
    for (dashboard, (uid, title)) in Dashboard::read_all().iter().zip(ALL) {
        assert_eq!(dashboard.json["uid"], uid);
        assert_eq!(dashboard.json["title"], title);
    }
    let listener = &Dashboard::read_all()[1];
    let names: Vec<&Value> = listener.variables().iter().map(|v| &v["name"]).collect();
    let names = &names[..8];
    let shown =
        ["datasource", "job", "cluster", "instance", "netns", "protocol", "address", "port"];
    assert_eq!(names, shown);
}

#[test]
fn every_query_names_metrics_and_labels_that_exist_and_every_metric_is_shown() {
    let mut shown = BTreeSet::new();
    for dashboard in Dashboard::read_all() {
        for query in dashboard.queries() {
            let filled = dashboard.fill(&query.expr, &Values::new());
            shown.extend(metrics_of(&query.place, &filled));
        }
    }
    let all: BTreeSet<&str> = METRICS.iter().map(|metric| metric.name).collect();
    assert_eq!(all.difference(&shown).collect::<Vec<_>>(), Vec::<&&str>::new());
}

#[test]
fn ranges_follow_the_scrape_interval_or_the_time_shown() {
    let strings = regex::Regex::new(r#""(?:[^"\\]|\\.)*""#).unwrap();
    for query in Dashboard::read_all().iter().flat_map(Dashboard::queries) {
        for range in strings.replace_all(&query.expr, "").split('[').skip(1) {
            assert!(range.starts_with("$__"), "{}: {}", query.place, query.expr);
        }
        assert!(!query.expr.contains("rate(") || query.expr.contains("[$__rate_interval]"));
    }
}

#[test]
fn every_panel_explains_itself() {
    for dashboard in Dashboard::read_all() {
        let mut titles = BTreeSet::new();
        for panel in dashboard.panels() {
            let title = panel["title"].as_str().unwrap();
            assert!(titles.insert(title), "{}: {title} twice", dashboard.uid);
            let defaults = &panel["fieldConfig"]["defaults"];
            for text in [&panel["description"], &defaults["noValue"]] {
                let text = text.as_str().unwrap_or_default();
                assert!(
                    text.len() > 10 && text.ends_with(['.', '?', '!', ')']),
                    "{title}: {text:?}"
                );
            }
            assert!(defaults["unit"].as_str().is_some_and(|unit| !unit.is_empty()), "{title}");
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        }
    }
}

#[test]
fn panels_fill_the_grid_without_gap_and_overlap() {
    for dashboard in Dashboard::read_all() {
        let grids = dashboard.grids();
        let ids: Vec<u64> = grids.iter().copied().flatten().map(id_of).collect();
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "{}", dashboard.uid);
        for grid in grids {
            assert_filled(dashboard.uid, grid);
        }
    }
}

fn id_of(panel: &Value) -> u64 {
    panel["id"].as_u64().unwrap()
}

/// Checks that exactly one panel covers each cell between the first and the last line of the grid.
#[track_caller]
fn assert_filled(uid: &str, grid: &[Value]) {
    let mut taken = BTreeMap::new();
    for panel in grid {
        let side = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        for x in side("x")..side("x") + side("w") {
            for y in side("y")..side("y") + side("h") {
                let before = taken.insert((y, x), &panel["title"]);
                assert_eq!(before, None, "{uid}: {}", panel["title"]);
            }
        }
    }
    let right = taken.keys().map(|(_, x)| x + 1).max().unwrap();
    let (top, bottom) = (taken.keys().next().unwrap().0, taken.keys().next_back().unwrap().0);
    assert_eq!((right, taken.len() as u64), (24, 24 * (bottom + 1 - top)), "{uid}");
}

#[test]
fn listenq_itself_is_in_a_collapsed_row() {
    for dashboard in Dashboard::read_all().iter().filter(|d| d.uid != "listenq-listener") {
        let rows = dashboard.grids()[0].iter().filter(|panel| panel["collapsed"] == true);
        assert!(rows.map(|row| &row["title"]).any(|title| title == "listenq itself"));
    }
}

#[test]
fn links_lead_to_dashboards_and_variables_that_exist() {
    let all = Dashboard::read_all();
    let mut followed = BTreeSet::new();
    for dashboard in &all {
        let own = |url: &&str| url.starts_with("/d/listenq-");
        for url in dashboard.links().into_iter().filter(own) {
            let (path, parameters) = url.split_once('?').expect(url);
            let target = all.iter().find(|t| path == format!("/d/{0}/{0}", t.uid)).expect(url);
            followed.insert((dashboard.uid, target.uid));
            for name in parameters_of(parameters) {
                assert!(target.has_variable(name), "{name} in {url}");
            }
        }
    }
    let uids = ALL.map(|(uid, _)| uid);
    let each = uids.iter().flat_map(|from| uids.iter().map(move |to| (*from, *to)));
    assert_eq!(followed, each.filter(|(from, to)| from != to).collect());
}

/// The variables that the parameters of an address set.
fn parameters_of(parameters: &str) -> impl Iterator<Item = &str> {
    parameters.split('&').filter(|p| *p != "${__url_time_range}").map(|parameter| {
        let given = parameter.strip_prefix("var-").and_then(|p| p.split_once('='));
        let taken = parameter.strip_prefix("${").and_then(|p| p.split_once(':'));
        given.or(taken).expect(parameter).0
    })
}

#[test]
fn other_links_lead_to_the_daemon_its_runbooks_and_to_dashboards_that_a_variable_names() {
    let runbook = "https://github.com/listenq/listenq/blob/main/deploy/runbooks/${__data.fields.alertname}.md";
    let known = BTreeMap::from([
        ("/d/${node_dashboard}/node", "instance"),
        ("/d/${pod_dashboard}/pod", "pod"),
    ]);
    for dashboard in Dashboard::read_all() {
        let mut followed = BTreeSet::new();
        for url in dashboard.links().into_iter().filter(|url| !url.starts_with("/d/listenq-")) {
            let Some((path, parameters)) = url.split_once('?') else {
                assert!(url == runbook || url == "http://${instance}/", "{url}");
                continue;
            };
            let needed = known.get(path).expect(url);
            assert!(parameters_of(parameters).any(|name| name == *needed), "{url}");
            let uid = path.trim_start_matches("/d/${").split('}').next().unwrap();
            assert!(dashboard.has_variable(uid), "{uid} in {url}");
            followed.insert(path);
        }
        let all = known
            .keys()
            .copied()
            .filter(|path| dashboard.uid != "listenq-fleet" || path.contains("pod"));
        assert_eq!(followed, all.collect(), "{}", dashboard.uid);
    }
}

#[test]
fn causes_have_the_numbers_that_the_daemon_gives_them() {
    let names: BTreeMap<String, &str> =
        Cause::ALL.iter().map(|c| (c.number().to_string(), c.label())).collect();
    for (dashboard, title) in [(0, "Listeners in trouble now"), (2, "All listeners")] {
        let dashboard = &Dashboard::read_all()[dashboard];
        let panel = dashboard.panels().find(|panel| panel["title"] == title).unwrap();
        let overrides = panel["fieldConfig"]["overrides"].as_array().unwrap();
        let column = overrides.iter().find(|o| o["matcher"]["options"] == "cause").unwrap();
        let options = &column["properties"][0]["value"][0]["options"];
        let shown = options.as_object().unwrap().iter().filter(|(number, _)| *number != "0");
        let shown = shown.map(|(number, to)| (number.clone(), to["text"].as_str().unwrap()));
        assert_eq!(shown.collect::<BTreeMap<_, _>>(), names);
    }
}

#[test]
fn prometheus_answers_every_query_at_rest_and_in_trouble() {
    if !Netns::require_root() || !require_tool("prometheus") {
        return;
    }
    let ns = Netns::new("dashboards");
    let slow = ns.run(|| Listen::tcp("127.0.0.1:8080").backlog(16).open());
    let left = ns.run(|| Listen::tcp("127.0.0.1:8081").backlog(40).open());
    let targets = [slow.target(), left.target()];
    let daemon = daemon(&ns);
    let prometheus = Prometheus::start(&ns, &[daemon.address()]);
    let instance = daemon.address().to_string();
    let values = Values::from([
        ("job", "listenq"),
        ("instance", &*instance),
        ("netns", "host"),
        ("protocol", "tcp"),
        ("address", "127.0.0.1"),
        ("port", "8080"),
    ]);
    assert_answers(&prometheus, &values, &may_be_empty(&["well", "ever"]));

    let servers = [slow, left].map(|listener| Server::start(listener, Pace::PerSecond(5.0)));
    let load = |rate, patience| Load { rate, lasting: 20 * SECOND, patience, at_once: 4000 };
    let patient = ns.spawn(move || visit(targets[0], load(30.0, 10 * SECOND), &Manner::default()));
    let hurried = ns.spawn(move || visit(targets[1], load(40.0, SECOND), &Manner::saying("hello")));
    assert_answers(&prometheus, &values, &may_be_empty(&["ever"]));
    drop(servers);
    patient.join().unwrap();
    hurried.join().unwrap();
}

#[test]
fn two_clusters_that_share_an_instance_are_distinguished_and_owners_can_be_chosen() {
    if !Netns::require_root() || !require_tool("prometheus") {
        return;
    }
    let ns = Netns::new("clusters");
    let slow = ns.run(|| Listen::tcp("127.0.0.1:8080").backlog(4).open());
    let target = slow.target();
    let daemons = [daemon(&ns), daemon(&ns), daemon(&ns)];
    let of = |daemon: &Daemon, cluster| {
        format!(
            "{{targets: ['{}'], labels: {{instance: web, cluster: '{cluster}'}}}}",
            daemon.address()
        )
    };
    // Prometheus drops an empty label, so the last daemon has no cluster.
    let clusters = ["north", "south", ""];
    let targets = [0, 1, 2].map(|i| of(&daemons[i], clusters[i])).join(", ");
    let prometheus = Prometheus::start_with(&ns, &targets);
    let server = Server::start(slow, Pace::PerSecond(2.0));
    let load = Load { rate: 30.0, lasting: 40 * SECOND, patience: 10 * SECOND, at_once: 4000 };
    let clients = ns.spawn(move || visit(target, load, &Manner::default()));

    let fleet = &Dashboard::read_all()[0];
    let queries = fleet.queries();
    let shown = |panel: &str, chosen: &[(&str, &str)]| {
        let query = queries.iter().find(|query| query.place.contains(panel)).unwrap();
        let values = chosen.iter().copied().chain([("job", "listenq")]).collect();
        prometheus.series(&fleet.fill(&query.expr, &values), query.is_range)
    };
    // The first six queries are the columns of the table; the last query ranks over the time range.
    let tables =
        ["A", "B", "C", "D", "E", "F"].map(|id| format!("| Listeners in trouble now | {id}"));
    let tables = tables.into_iter().chain(["| Most refusals in this time range | A".to_owned()]);
    let service = eventually("an incident", TIMEOUT, || {
        let incidents = daemons[0].scrape().series("listenq_listener_incident");
        incidents.into_iter().next().map(|(labels, _)| labels["service"].clone())
    });
    let services = format!("port:1|{service}");
    for table in tables {
        eventually(&table, TIMEOUT, || (shown(&table, &[]) == 3).then_some(()));
        assert_eq!(shown(&table, &[("cluster", "south")]), 1, "{table}");
        assert_eq!(shown(&table, &[("cluster", fleet.option("cluster", "None"))]), 1, "{table}");
        assert_eq!(shown(&table, &[("cluster", "west")]), 0, "{table}");
        assert_eq!(shown(&table, &[("service", "port:1")]), 0, "{table}");
        assert_eq!(shown(&table, &[("service", &services)]), 3, "{table}");
    }
    // Prometheus refuses a query whose join is ambiguous.
    let (netns, address) = (("netns", "host"), ("address", "127.0.0.1"));
    let one = [
        ("job", "listenq"),
        ("instance", "web"),
        netns,
        ("protocol", "tcp"),
        address,
        ("port", "8080"),
    ];
    for dashboard in Dashboard::read_all() {
        for query in dashboard.queries() {
            let _ = prometheus.series(&dashboard.fill(&query.expr, &one.into()), query.is_range);
        }
    }
    assert_clusters_can_be_chosen(&prometheus, &one);
    drop(server);
    clients.join().unwrap();
}

/// Checks on Listener and Host that "All" includes the instance without a cluster, and that "None"
/// selects only that instance.
#[track_caller]
fn assert_clusters_can_be_chosen(prometheus: &Prometheus, one: &[(&str, &str)]) {
    let queries = ["", "| $port | port", "| All listeners | A"];
    for (dashboard, place) in Dashboard::read_all().iter().zip(queries).skip(1) {
        let none = dashboard.option("cluster", "None");
        let queries = dashboard.queries();
        let query = queries.iter().find(|query| query.place.ends_with(place)).expect(place);
        let clusters = |chosen| {
            let values = one.iter().copied().chain([("cluster", chosen)]).collect();
            let expr = dashboard.fill(&query.expr, &values);
            let found = prometheus.ask(&expr, None, SystemTime::now());
            let cluster = |one: &Value| one["metric"]["cluster"].as_str().unwrap_or("").to_owned();
            found.iter().map(cluster).collect::<BTreeSet<_>>()
        };
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(clusters(".*"), set(&["", "north", "south"]), "{}", query.place);
        assert_eq!(clusters("north"), set(&["north"]), "{}", query.place);
        assert_eq!(clusters(none), set(&[""]), "{}", query.place);
    }
}

#[test]
fn the_link_to_the_node_contains_its_host_for_every_form_of_an_instance() {
    if !Netns::require_root() || !require_tool("prometheus") {
        return;
    }
    let hosts = [
        ("web-1:19511", "web-1"),
        ("web-1", "web-1"),
        ("192.0.2.7:19511", "192.0.2.7"),
        ("192.0.2.7", "192.0.2.7"),
        ("[2001:db8::1]:19511", "[2001:db8::1]"),
        ("[2001:db8::2]", "[2001:db8::2]"),
        ("2001:db8::3", "[2001:db8::3]"),
        ("2001:db8:1:2:3:4:5:6", "[2001:db8:1:2:3:4:5:6]"),
        ("::ffff:192.0.2.7", "[::ffff:192.0.2.7]"),
        ("::1", "[::1]"),
    ];
    let ns = Netns::new("node");
    let daemon = daemon(&ns);
    let address = daemon.address();
    let of = |(instance, _): (&str, &str)| {
        format!("{{targets: ['{address}'], labels: {{instance: '{instance}', myhost: wrong}}}}")
    };
    let prometheus = Prometheus::start_with(&ns, &hosts.map(of).join(", "));
    let reporting = || prometheus.series(r#"listenq_build_info{job="listenq"}"#, false);
    eventually("scrapes", TIMEOUT, || (reporting() == hosts.len()).then_some(()));
    // The node of an instance that is down is the one to look at.
    drop(daemon);
    eventually("the end of the series", TIMEOUT, || (reporting() == 0).then_some(()));
    for dashboard in &Dashboard::read_all()[1..] {
        for (instance, host) in hosts {
            let found = values_of(dashboard, &prometheus, "host", instance);
            assert_eq!(found, [host], "{}: {instance}", dashboard.uid);
        }
    }
}

/// The values of a variable for an instance: the results of its query, reduced by its expression.
fn values_of(d: &Dashboard, prometheus: &Prometheus, name: &str, instance: &str) -> Vec<String> {
    let variable = d.variables().iter().find(|variable| variable["name"] == name).unwrap();
    let place = format!("{} | ${name} | {name}", d.uid);
    let query = d.queries().into_iter().find(|query| query.place == place).unwrap();
    let expr = d.fill(&query.expr, &Values::from([("job", "listenq"), ("instance", instance)]));
    let reduced = variable["regex"].as_str().unwrap().trim_matches('/');
    let reduced = regex::Regex::new(reduced).unwrap();
    let texts = prometheus.ask(&expr, None, SystemTime::now()).into_iter().map(|one| text_of(&one));
    texts.map(|text| reduced.captures(&text).expect(&text)[1].to_owned()).collect()
}

/// A series as Grafana's `query_result` writes it.
fn text_of(series: &Value) -> String {
    let labels = series["metric"].as_object().unwrap().iter();
    let labels = labels.filter(|(name, _)| *name != "__name__");
    let labels: Vec<String> = labels.map(|(name, value)| format!("{name}={value}")).collect();
    format!("listenq_build_info{{{}}} 1 1000", labels.join(","))
}

#[test]
fn restarts_of_the_server_and_of_listenq_are_marked() {
    if !Netns::require_root() || !require_tool("prometheus") {
        return;
    }
    let ns = Netns::new("restarts");
    let open = || ns.run(|| Listen::tcp("127.0.0.1:8080").open());
    let start =
        || Launch::new(BIN).args(&["--web.listen-address=127.0.0.1:19511"]).inside(&ns).start();
    let (listener, daemon) = (open(), start());
    let prometheus = Prometheus::start(&ns, &[daemon.address()]);
    let dashboard = &Dashboard::read_all()[1];
    let queries = dashboard.queries();
    let (instance, address) = (("instance", "127.0.0.1:19511"), ("address", "127.0.0.1"));
    let values = [
        ("job", "listenq"),
        instance,
        ("netns", "host"),
        ("protocol", "tcp"),
        address,
        ("port", "8080"),
    ];
    let marks = |name: &str| {
        let query =
            queries.iter().find(|q| q.place.ends_with(&format!("| {name} | {name}"))).unwrap();
        prometheus.series(&dashboard.fill(&query.expr, &values.into()), false)
    };
    let sockets = r#"count_over_time(listenq_listener_sockets{port="8080"}[20s]) > 10"#;
    eventually("scrapes", TIMEOUT, || (prometheus.series(sockets, false) == 1).then_some(()));
    assert_eq!((marks("Restarts of the server"), marks("Restarts of listenq")), (0, 0));

    drop(listener);
    let closed = r#"listenq_listener_sockets{port="8080"} == 0"#;
    let gone = || {
        (prometheus.series(closed, false) == 1
            || prometheus.series(r#"listenq_listener_sockets{port="8080"}"#, false) == 0)
            .then_some(())
    };
    eventually("the closed listener", TIMEOUT, gone);
    let _again = open();
    let marked = |name: &str| eventually(name, TIMEOUT, || (marks(name) == 1).then_some(()));
    marked("Restarts of the server");
    assert_eq!(marks("Restarts of listenq"), 0);

    drop(daemon);
    let _daemon = start();
    marked("Restarts of listenq");
}

#[test]
fn a_listener_with_any_name_is_chosen_by_its_labels() {
    if !Netns::require_root() || !require_tool("prometheus") {
        return;
    }
    let ns = Netns::new("names");
    let link = ns.add_link("wan");
    let open = |kind, name: &[u8]| ns.run(|| UnixListener::open(kind, name, 4));
    let unix = [open(Kind::Stream, b"\0a.b|c*(d)"), open(Kind::Stream, b"\0\xffback\\slash")];
    let target = format!("[{}%{}]:80", link.address, link.ifindex);
    let tcp = ns.run(|| [Listen::tcp(target).device("wan").open(), Listen::tcp("[::]:443").open()]);
    let daemon = daemon(&ns);
    let prometheus = Prometheus::start(&ns, &[daemon.address()]);
    let instance = daemon.address().to_string();
    let listeners = eventually("listeners", TIMEOUT, || {
        let series = daemon.scrape().series("listenq_listener_info");
        (series.len() >= unix.len() + tcp.len()).then_some(series)
    });
    let dashboard = &Dashboard::read_all()[1];
    let queries = dashboard.queries();
    let owner = queries.iter().find(|query| query.place.contains("| Owner |")).unwrap();
    for (labels, _) in listeners {
        let expr = dashboard.fill(&owner.expr, &one(&labels, &instance));
        let found = || (prometheus.series(&expr, false) == 1).then_some(());
        eventually(&expr, TIMEOUT, found);
    }
}

fn daemon(ns: &Netns) -> Daemon {
    Launch::new(BIN).args(&["--scan.interval=1s", "--client-patience=5s"]).inside(ns).start()
}

fn one<'a>(labels: &'a Labels, instance: &'a str) -> Values<'a> {
    let labels = labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    labels.chain([("job", "listenq"), ("instance", instance)]).collect()
}

/// Repeats the queries until each of them has had a result, except those that may be empty.
#[track_caller]
fn assert_answers(prometheus: &Prometheus, values: &Values<'_>, may_be_empty: &BTreeSet<String>) {
    let begin = Instant::now();
    let dashboards = Dashboard::read_all();
    let fill = |dashboard: &Dashboard, query: Query| Query {
        expr: dashboard.fill(&query.expr, values),
        ..query
    };
    let mut open: Vec<Query> =
        dashboards.iter().flat_map(|d| d.queries().into_iter().map(move |q| fill(d, q))).collect();
    let all = open.len();
    while begin.elapsed() < TIMEOUT {
        open.retain(|query| prometheus.series(&query.expr, query.is_range) == 0);
        if open.iter().all(|query| may_be_empty.contains(&query.place)) {
            println!("{} of {all} queries answered after {:?}", all - open.len(), begin.elapsed());
            return;
        }
        std::thread::sleep(SECOND);
    }
    open.retain(|query| !may_be_empty.contains(&query.place));
    let empty: Vec<String> = open.iter().map(|q| format!("{}: {}", q.place, q.expr)).collect();
    panic!("without an answer:\n{}", empty.join("\n"));
}
