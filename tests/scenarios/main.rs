//! The scenario run: every kind of trouble must cause its own alert and no other, and a healthy
//! listener must cause none, with a real Prometheus, a real Alertmanager and the shipped files.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]
#![allow(clippy::print_stdout, reason = "the table is for the reader of --nocapture")]

#[path = "../dashboards/asking.rs"]
mod asking;
mod fleet;
#[allow(dead_code, reason = "the tests of the dashboards use the rest of it")]
#[path = "../dashboards/plan.rs"]
mod plan;
mod restarts;
mod scenes;
mod stack;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use listenq_lab::netns::Netns;
use listenq_lab::tool::require_tool;
use listenq_lab::web::PHP;

use asking::path;
use plan::{Dashboard, Values, may_be_empty};
use scenes::{Played, Scene};
use stack::{Notice, Stack};
use table::{Fired, ITSELF, Table, Verdict, short};

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
/// The duration of the run. The slowest alert needs three minutes of slow accepting, and some
/// seconds before and after.
const RUN: Duration = Duration::from_secs(250);
/// The longest time from the beginning of a sustained overflow to its notification.
const IN_TIME: Duration = Duration::from_secs(120);
/// The time before the end of the run at which every scene still runs, however long its last
/// clients take.
const SHORTLY: Duration = Duration::from_secs(20);

#[test]
fn every_trouble_causes_its_own_alert_and_no_other() {
    let tools = ["prometheus", "prometheus-alertmanager", "nginx", "python3", PHP];
    if !Netns::require_root() || !tools.into_iter().all(require_tool) {
        return;
    }
    let mut table = Table::read();
    let stack = Stack::start(BIN);
    let played = play();
    for (scene, why) in played.iter().filter_map(|(scene, of)| Some((scene, of.skipped?))) {
        println!("SKIPPED: {scene}: {why}");
        table.rows.remove(scene.as_str());
    }
    let unanswered = unanswered(&stack, SystemTime::now() - SHORTLY);
    let mut notices = stack.notices();
    notices.retain(is_ours);
    let fired = first_notices(&notices, &played);
    let verdicts = table.judge(&fired);
    table.print(&verdicts);
    let mut wrong: Vec<_> = verdicts.iter().filter_map(Verdict::complaint).collect();
    wrong.extend(late(&fired));
    wrong.extend(misdirected(&notices));
    wrong.extend(misattributed(&notices, &played));
    wrong.extend(unsaid(&notices));
    wrong.extend(unanswered);
    assert!(wrong.is_empty(), "{wrong:#?}\n{}", stack.daemon.log().join("\n"));
}

#[test]
fn the_table_has_every_scene_and_every_alert() {
    let table = Table::read();
    let played = scenes::ALL.iter().map(|(name, _)| *name).chain([ITSELF]);
    assert_eq!(table.rows.keys().copied().collect::<BTreeSet<_>>(), played.collect());
    let text = include_str!("../../deploy/prometheus/alerts.yml");
    let names = text.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    assert_eq!(table.alerts(), names.map(short).collect());
}

#[test]
fn a_missing_alert_a_forbidden_alert_and_an_alert_of_an_unknown_scene_are_wrong() {
    let table = Table::read();
    let expected = table
        .rows
        .iter()
        .flat_map(|(scene, row)| row.expected.iter().map(move |alert| (*scene, *alert)));
    let all: Vec<(&str, &str)> = expected.collect();
    let fired = |of: &[(&str, &str)]| -> Fired {
        of.iter()
            .map(|(scene, alert)| ((scene.to_string(), alert.to_string()), Duration::ZERO))
            .collect()
    };
    let complaints = |fired: Fired| -> Vec<String> {
        table.judge(&fired).iter().filter_map(Verdict::complaint).collect()
    };
    assert_eq!(complaints(fired(&all)), Vec::<String>::new());
    let strays = [("idle", "Overflowed"), ("elsewhere", "Stalled"), ("stopped", "Overflowed")];
    let wrong = complaints(fired(&[&all[1..], &strays].concat()));
    let missing = format!("{}: {} MISSING", all[0].0, all[0].1);
    let expected = [&missing, "elsewhere: Stalled FORBIDDEN", "idle: Overflowed FORBIDDEN"];
    assert_eq!(wrong, expected);
}

/// Runs all scenes to their end.
fn play() -> BTreeMap<String, Played> {
    let begin = Instant::now();
    let scenes = scenes::ALL.map(|(name, doings)| {
        thread::spawn(move || {
            let scene = Scene::until(begin + RUN, name);
            doings(&scene);
            (name.to_owned(), scene.played())
        })
    });
    let mut played = BTreeMap::from([(ITSELF.to_owned(), Played::since(begin))]);
    played.extend(scenes.map(|scene| scene.join().unwrap()));
    played
}

fn first_notices(notices: &[Notice], played: &BTreeMap<String, Played>) -> Fired {
    let mut fired = Fired::new();
    for notice in notices.iter().filter(|notice| notice.is_firing) {
        let scene = scene_of(notice);
        let alert = short(notice.labels["alertname"].as_str().unwrap()).to_owned();
        let after = played
            .get(&scene)
            .map_or(Duration::ZERO, |of| notice.at.saturating_duration_since(of.began));
        fired.entry((scene, alert)).or_insert(after);
    }
    fired
}

/// Whether an alert is about a namespace of this run. listenq also sees the other namespaces of the
/// machine. Alerts about their listeners are ignored; alerts about the kernel's counters in them
/// are not.
fn is_ours(notice: &Notice) -> bool {
    let netns = notice.labels["netns"].as_str();
    let ours = format!("lq-{}-", std::process::id());
    netns.is_none_or(|netns| netns == "host" || netns.starts_with(&ours))
        && scene_of(notice) != restarts::HINT
}

/// The scene of a notification, from the namespace's name `lq-<pid>-<n>-<scene>`.
fn scene_of(notice: &Notice) -> String {
    let netns = notice.labels["netns"].as_str().unwrap_or_default();
    netns.splitn(4, '-').nth(3).unwrap_or(ITSELF).to_owned()
}

/// Pages that came too late.
fn late(fired: &Fired) -> Vec<String> {
    let pages = fired.iter().filter(|((_, alert), _)| alert == "Overflowing" || alert == "Stalled");
    pages
        .filter(|(_, after)| **after > IN_TIME)
        .map(|((scene, alert), after)| format!("{scene} set off {alert} after {after:?}"))
        .collect()
}

/// Notifications that went to the pager and are not critical, or are critical and did not go there.
fn misdirected(notices: &[Notice]) -> Vec<String> {
    let is_right =
        |notice: &&Notice| (notice.labels["severity"] == "critical") == (notice.to == "/pages");
    notices.iter().filter(|notice| !is_right(notice)).map(|notice| format!("{notice:?}")).collect()
}

/// Alerts about a healthy listener beside one in trouble.
fn misattributed(notices: &[Notice], played: &BTreeMap<String, Played>) -> Vec<String> {
    let is_wrong = |notice: &&Notice| {
        let port = notice.labels["port"].as_str().and_then(|port| port.parse().ok());
        played.get(&scene_of(notice)).is_some_and(|of| port.is_some() && of.healthy == port)
    };
    notices.iter().filter(is_wrong).map(|notice| format!("{notice:?}")).collect()
}

/// Notices whose template failed or whose summary is long, and pages that do not name the owner.
fn unsaid(notices: &[Notice]) -> Vec<String> {
    let says = |notice: &&Notice| {
        let text = notice.annotations["description"].as_str().unwrap_or_default();
        let summary = notice.annotations["summary"].as_str().unwrap_or_default();
        let names_owner = notice.labels["process"].is_string();
        let is_right = |text: &str| !text.is_empty() && !text.contains("error");
        let is_short = summary.len() <= 80;
        is_right(text) && is_right(summary) && is_short && (names_owner || notice.to != "/pages")
    };
    notices.iter().filter(|notice| !says(notice)).map(|notice| format!("{notice:?}")).collect()
}

/// Queries of the dashboards without a result at a time at which all listeners of the run existed.
fn unanswered(stack: &Stack, at: SystemTime) -> Vec<String> {
    let listeners = stack.query(&path("listenq_listener_info", None, at));
    let chosen: Vec<Values<'_>> =
        listeners.iter().map(|series| values(&series["metric"])).collect();
    let is_answered = |dashboard: &Dashboard, query: &plan::Query| {
        let mut paths = chosen.iter().map(|values| {
            let seconds = query.is_range.then_some(RUN.as_secs() / 2);
            path(&dashboard.fill(&query.expr, values), seconds, at)
        });
        paths.any(|path| !stack.query(&path).is_empty())
    };
    let (mut wrong, may_be_empty) = (Vec::new(), may_be_empty(&["ever"]));
    for dashboard in Dashboard::read_all() {
        let queries = dashboard.queries();
        let asked = queries.iter().filter(|query| !may_be_empty.contains(&query.place));
        let empty = asked.filter(|query| !is_answered(&dashboard, query));
        wrong.extend(empty.map(|query| format!("{} has no answer: {}", query.place, query.expr)));
    }
    wrong
}

/// The labels of a series as values for the dashboard variables of the same names.
fn values(labels: &serde_json::Value) -> Values<'_> {
    let labels = labels.as_object().unwrap().iter();
    labels.filter_map(|(name, value)| Some((name.as_str(), value.as_str()?))).collect()
}
