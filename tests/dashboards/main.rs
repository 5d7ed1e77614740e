//! Owns the dashboards: what they ask for exists, each panel explains itself, and a real Prometheus answers every query.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]
#![allow(clippy::print_stdout, reason = "the measured figures are for the reader of --nocapture")]

mod asking;
mod plan;
mod prometheus;
mod queries;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

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
/// The metric that only the alerts need: it repeats the owner and the cause, which the dashboards take from their own metrics.
const FOR_ALERTS: &str = "listenq_listener_incident";
/// A diagnosis takes 10 s of evidence, a rate two scrapes.
const TIMEOUT: Duration = Duration::from_secs(50);

#[test]
fn uids_and_titles_are_those_that_links_and_alerts_rely_on() {
    for (dashboard, (uid, title)) in Dashboard::read_all().iter().zip(ALL) {
        assert_eq!(dashboard.json["uid"], uid);
        assert_eq!(dashboard.json["title"], title);
    }
    let listener = &Dashboard::read_all()[1];
    let names: Vec<&Value> = listener.variables().iter().map(|v| &v["name"]).collect();
    assert_eq!(names, ["datasource", "job", "instance", "netns", "protocol", "address", "port"]);
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
    assert_eq!(all.difference(&shown).collect::<Vec<_>>(), [&FOR_ALERTS]);
}

#[test]
fn ranges_follow_the_scrape_interval_or_the_time_shown() {
    for query in Dashboard::read_all().iter().flat_map(Dashboard::queries) {
        for range in query.expr.split('[').skip(1) {
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
        let mut taken = BTreeMap::new();
        let mut ids = BTreeSet::new();
        for panel in dashboard.grid() {
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
            let side = |name: &str| panel["gridPos"][name].as_u64().unwrap();
            for x in side("x")..side("x") + side("w") {
                for y in side("y")..side("y") + side("h") {
                    let before = taken.insert((x, y), &panel["title"]);
                    assert_eq!(before, None, "{}: {}", dashboard.uid, panel["title"]);
                }
            }
        }
        let (right, bottom) = taken.keys().fold((0, 0), |(r, b), (x, y)| (r.max(*x), b.max(*y)));
        assert_eq!((right + 1, taken.len() as u64), (24, 24 * (bottom + 1)), "{}", dashboard.uid);
    }
}

#[test]
fn links_lead_to_dashboards_and_variables_that_exist() {
    let all = Dashboard::read_all();
    let mut followed = BTreeSet::new();
    for dashboard in &all {
        for url in dashboard.links().into_iter().filter(|url| *url != "http://${instance}/") {
            let (path, parameters) = url.split_once('?').expect(url);
            let target = all.iter().find(|t| path == format!("/d/{0}/{0}", t.uid)).expect(url);
            followed.insert((dashboard.uid, target.uid));
            for parameter in parameters.split('&').filter(|p| *p != "${__url_time_range}") {
                let given = parameter.strip_prefix("var-").and_then(|p| p.split_once('='));
                let taken = parameter.strip_prefix("${").and_then(|p| p.split_once(':'));
                let name = given.or(taken).expect(url).0;
                assert!(target.variables().iter().any(|v| v["name"] == name), "{name} in {url}");
            }
        }
    }
    let uids = ALL.map(|(uid, _)| uid);
    let each = uids.iter().flat_map(|from| uids.iter().map(move |to| (*from, *to)));
    assert_eq!(followed, each.filter(|(from, to)| from != to).collect());
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

/// Asks again and again until every query but those that may be empty has had an answer.
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
