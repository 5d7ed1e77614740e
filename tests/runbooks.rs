//! Tests that alerts, runbooks, README, docs, dashboards and the table of metrics agree with each
//! other.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use listenq::cause::Cause;
use listenq::diagnosis::Diagnosis;
use listenq::exposition::protobuf::LENGTHS;
use listenq::exposition::table::{Kind, METRICS};
use listenq::http::runbooks::RUNBOOKS;
use listenq_lab::listenq::Launch;
use listenq_lab::netns::Netns;
use regex::Regex;

const BIN: &str = env!("CARGO_BIN_EXE_listenq");

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(root(path)).unwrap()
}

/// All files with this extension below a directory, except those of npm; empty if the directory is
/// missing.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    let entries = entries.filter(|path| !path.ends_with("node_modules"));
    let inside = |path: PathBuf| match path.is_dir() {
        true => files(&path, extension),
        false => vec![path],
    };
    let wanted = |path: &PathBuf| path.extension().is_some_and(|end| end == extension);
    entries.flat_map(inside).filter(wanted).collect()
}

/// The alerts of alerts.yml.
fn alerts() -> BTreeSet<String> {
    let text = read("deploy/prometheus/alerts.yml");
    let names = text.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    names.map(str::to_owned).collect()
}

/// All texts that contain names of metrics, with their paths. The table in docs/metrics.md is not
/// included, because it is generated from the table of metrics.
fn texts() -> Vec<(String, String)> {
    let mut paths = files(&root("deploy/runbooks"), "md");
    paths.extend(files(&root("deploy/prometheus"), "yml"));
    paths.extend(files(&root("tests/rules"), "yml"));
    paths.extend(files(&root("dashboards"), "json"));
    paths.extend(files(&root("docs"), "md"));
    paths.push(root("README.md"));
    let mut texts: Vec<_> = paths
        .iter()
        .filter(|path| !path.file_name().unwrap().to_string_lossy().starts_with("package"))
        .map(|path| (path.display().to_string(), fs::read_to_string(path).unwrap()))
        .collect();
    let reference = texts.iter_mut().find(|(place, _)| place.ends_with("docs/metrics.md"));
    let (_, reference) = reference.unwrap();
    let (before, rest) = reference.split_once("<!-- metrics -->").unwrap();
    let (_, after) = rest.split_once("<!-- /metrics -->").unwrap();
    *reference = format!("{before}{after}");
    texts
}

/// Names that start like a metric but are none: a prefix, a variable of the Ansible role, and
/// OpenTelemetry names without their suffixes.
const NO_METRICS: [&str; 4] = [
    "process_",
    "listenq_environment",
    "listenq_accept_queue_full_seconds",
    "listenq_listener_overflows",
];

/// The names of metrics in a text, without recorded series (`level:metric:operations`).
fn metrics_in(text: &str) -> BTreeSet<String> {
    let name = Regex::new(r"[a-zA-Z_:][a-zA-Z0-9_:]*").unwrap();
    let names = name.find_iter(text).map(|found| found.as_str());
    let ours = names.filter(|name| name.starts_with("listenq_") || name.starts_with("process_"));
    let ours = ours.filter(|name| !name.contains(':') && !NO_METRICS.contains(name));
    ours.map(str::to_owned).collect()
}

/// Names of all metrics in the exposition.
fn exposed() -> BTreeSet<String> {
    // Only the protobuf format contains the native histogram.
    let names = METRICS.iter().chain([&LENGTHS]).flat_map(|metric| {
        let ends: &[&str] =
            if metric.kind == Kind::Histogram { &["", "_bucket", "_sum", "_count"] } else { &[""] };
        ends.iter().map(|end| format!("{}{end}", metric.name))
    });
    names.collect()
}

#[test]
fn every_alert_has_a_runbook_and_every_runbook_an_alert() {
    let served: BTreeSet<_> = RUNBOOKS.iter().map(|runbook| runbook.alert.to_owned()).collect();
    let stem = |path: PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
    let written: BTreeSet<_> =
        files(&root("deploy/runbooks"), "md").into_iter().map(stem).collect();
    assert_eq!(served, alerts());
    assert_eq!(written, alerts());
}

#[test]
fn every_runbook_has_the_four_headings_a_check_by_hand_and_what_not_to_do() {
    let alert = Regex::new("ListenQueue[A-Za-z]+").unwrap();
    for runbook in RUNBOOKS {
        let headings: Vec<_> = runbook.text.lines().filter(|line| line.starts_with('#')).collect();
        let title = format!("# {}", runbook.alert);
        let parts = ["## Meaning", "## Impact", "## Diagnosis", "## Mitigation"];
        assert_eq!(headings, [&[&*title], &parts[..]].concat(), "{}", runbook.alert);
        let (_, mitigation) = runbook.text.split_once("## Mitigation").unwrap();
        for must in ["Worked: ", "\nDo not:\n\n- "] {
            assert!(mitigation.contains(must), "{} lacks {must:?}", runbook.alert);
        }
        let by_hand = ["ss -", "nstat -"].iter().any(|tool| runbook.text.contains(tool));
        assert!(by_hand, "{} needs listenq to be confirmed", runbook.alert);
        for other in alert.find_iter(runbook.text) {
            assert!(alerts().contains(other.as_str()), "{}: {}", runbook.alert, other.as_str());
        }
    }
}

#[test]
fn every_metric_that_is_named_anywhere_exists() {
    let exposed = exposed();
    for (place, text) in texts() {
        let unknown: Vec<_> =
            metrics_in(&text).into_iter().filter(|name| !exposed.contains(name)).collect();
        assert!(unknown.is_empty(), "{place} names {unknown:?}");
    }
}

#[test]
fn every_metric_is_used_or_explained_somewhere() {
    let named: BTreeSet<_> = texts().iter().flat_map(|(_, text)| metrics_in(text)).collect();
    let unused: Vec<_> =
        METRICS.iter().map(|metric| metric.name).filter(|name| !named.contains(*name)).collect();
    assert!(unused.is_empty(), "no text explains these: {unused:#?}");
}

#[test]
fn every_recorded_series_is_used_and_every_used_one_is_recorded() {
    let name = Regex::new("(- record: )?\\b([a-z]+:[a-z0-9_]+:[a-z0-9]+)\\b").unwrap();
    let (mut recorded, mut asked) = (BTreeSet::new(), BTreeSet::new());
    for (_, text) in texts().iter().filter(|(place, _)| !place.contains("tests/rules")) {
        for found in name.captures_iter(text) {
            let into = if found.get(1).is_some() { &mut recorded } else { &mut asked };
            into.insert(found[2].to_owned());
        }
    }
    assert_eq!(recorded, asked);
}

#[test]
fn every_diagnosis_has_an_alert_and_alerts_use_only_known_diagnoses() {
    let text = read("deploy/prometheus/alerts.yml");
    let asked = Regex::new(r#"diagnosis=~?"([a-z_|]+)""#).unwrap();
    let asked: BTreeSet<_> = asked
        .captures_iter(&text)
        .flat_map(|found| found[1].split('|').map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let alarming = Diagnosis::ALL.iter().filter(|one| !one.is_information());
    assert_eq!(asked, alarming.map(|one| one.label().to_owned()).collect());
}

/// The words of the first column of a table, in order.
fn rows(path: &str) -> Vec<String> {
    let row = Regex::new("(?m)^\\| `([a-z_]+)` \\|").unwrap();
    row.captures_iter(&read(path)).map(|found| found[1].to_owned()).collect()
}

#[test]
fn every_diagnosis_and_every_cause_has_its_row_in_the_docs() {
    let diagnoses = Diagnosis::ALL.iter().map(|one| one.label());
    assert_eq!(rows("docs/diagnoses.md"), diagnoses.collect::<Vec<_>>());
    assert_eq!(
        rows("docs/causes.md"),
        Cause::ALL.iter().map(|one| one.label()).collect::<Vec<_>>()
    );
}

#[test]
fn every_cause_has_its_number_in_the_docs() {
    for cause in Cause::ALL {
        let row = format!("\n| `{}` | {} | ", cause.label(), cause.number());
        assert!(read("docs/causes.md").contains(&row), "{row}");
    }
}

#[test]
fn no_rule_uses_drops() {
    let text = read("deploy/prometheus/alerts.yml") + &read("deploy/prometheus/recording.yml");
    let drops: Vec<_> =
        metrics_in(&text).into_iter().filter(|name| name.contains("drop")).collect();
    assert!(drops.is_empty(), "{drops:?}");
}

#[test]
fn the_daemon_serves_each_runbook_under_the_name_of_its_alert() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("runbooks");
    let daemon = Launch::new(BIN).inside(&ns).start();
    let list = daemon.get("/runbooks/", &[]);
    assert_eq!((list.status, list.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let link = Regex::new("<a href=\"([^\"]+)\">").unwrap();
    let links: BTreeSet<_> =
        link.captures_iter(list.text()).map(|found| found[1].to_owned()).collect();
    assert_eq!(links, alerts());
    for alert in links {
        let answer = daemon.get(&format!("/runbooks/{alert}"), &[]);
        let kind = answer.header("content-type");
        assert_eq!((answer.status, kind), (200, Some("text/plain; charset=utf-8")));
        assert_eq!(answer.text(), read(&format!("deploy/runbooks/{alert}.md")));
    }
    assert_eq!(daemon.get("/runbooks/ListenQueueNothing", &[]).status, 404);
    assert_eq!(daemon.get("/runbooks/..%2FREADME", &[]).status, 404);
}
