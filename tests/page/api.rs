//! Tests the JSON of `/api/v1/listeners`.

use std::collections::BTreeSet;
use std::time::Duration;

use listenq::diagnosis::Diagnosis;
use listenq::report::Report;
use listenq::view::View;
use listenq_lab::client::fill;
use listenq_lab::listener::Listen;
use listenq_lab::listenq::Launch;
use listenq_lab::netns::Netns;
use listenq_lab::wait::{TIMEOUT, eventually};
use serde_json::Value;

use crate::BIN;
use crate::made::{Site, explained, lively};

/// Collects the path of each value, such as `listeners[].settings.somaxconn`. `[]` stands for every
/// element of a list.
fn paths(value: &Value, at: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let dot = if at.is_empty() { "" } else { "." };
                let path = format!("{at}{dot}{name}");
                paths(value, &path, found);
                found.insert(path);
            }
        }
        Value::Array(elements) => {
            found.insert(format!("{at}[]"));
            elements.iter().for_each(|element| paths(element, &format!("{at}[]"), found));
        }
        _ => {}
    }
}

/// The first column of the reference's table, in order.
fn documented() -> Vec<String> {
    let reference = include_str!("../../docs/api.md");
    let (_, rest) = reference.split_once("<!-- api -->").unwrap();
    let (table, _) = rest.split_once("<!-- /api -->").unwrap();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    rows.map(|(path, _)| path.to_owned()).collect()
}

/// A view in which every field has a value.
fn everything() -> View {
    let mut view = lively();
    let all = std::mem::take(&mut view.namespaces[0].listeners);
    view.namespaces[0].listeners = all.into_iter().map(explained).collect();
    view
}

#[test]
fn every_field_is_in_the_reference_and_nothing_else() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("fields");
    let site = Site::serve(&ns, everything());
    let json: Value = serde_json::from_str(&site.text("/api/v1/listeners")).unwrap();
    let mut found = BTreeSet::new();
    paths(&json, "", &mut found);
    // A user with a password also gets the addresses of clients.
    let report = Report::with_clients(&everything(), Duration::ZERO);
    paths(&serde_json::to_value(&report).unwrap(), "", &mut found);
    let is_list = |path: &String| found.contains(&format!("{path}[]"));
    let fields = found.iter().filter(|path| !is_list(path));
    let rows = documented();
    let documented: BTreeSet<String> = rows.iter().cloned().collect();
    assert_eq!(documented.len(), rows.len(), "no field twice");
    // The table has no row for a list of objects, only for their fields.
    let implied = |path: &&String| found.iter().any(|other| other.starts_with(&format!("{path}.")));
    let missing: Vec<_> = fields.filter(|path| !documented.contains(*path)).collect();
    assert_eq!(missing.into_iter().filter(|path| !implied(path)).count(), 0, "{found:#?}");
    let unknown: Vec<_> = documented.difference(&found).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[test]
fn a_real_daemon_answers_with_a_report() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("report");
    let listener = ns.run(|| Listen::tcp("127.0.0.1:0").backlog(4).open());
    let daemon = Launch::new(BIN).inside(&ns).start();
    let _clients = ns.run(|| fill(listener.target(), 3));
    let report = eventually("three connections", TIMEOUT, || {
        let answer = daemon.get("/api/v1/listeners", &[]);
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        let value: Value = serde_json::from_str(answer.text()).unwrap();
        let report: Report = serde_json::from_value(value.clone()).unwrap();
        assert_eq!(serde_json::to_value(&report).unwrap(), value);
        (report.listeners.first()?.length == 3).then_some(report)
    });
    let [first, own] = &report.listeners[..] else { panic!("{report:#?}") };
    assert_eq!((first.endpoint(), first.limit), (listener.addr().to_string(), Some(4)));
    assert_eq!(own.endpoint(), daemon.address().to_string());
    assert_eq!((report.namespaces, report.listeners_omitted), (1, 0));
    assert!(report.sampled_at.unwrap() > 1_700_000_000.0, "{report:#?}");
}

#[test]
fn the_numbers_of_namespaces_that_are_not_sampled_are_null_before_the_first_look() {
    if !Netns::require_root() {
        return;
    }
    let number_in = |hint, number| {
        let ns = Netns::new(hint);
        let mut view = lively();
        view.stats.inaccessible_namespaces = number;
        view.stats.waiting_namespaces = number.map(|number| number + 7);
        let site = Site::serve(&ns, view);
        let report = serde_json::from_str::<Value>(&site.text("/api/v1/listeners")).unwrap();
        let is_on_page = site.text("/").contains("7 more are not sampled yet");
        (
            report["namespaces_inaccessible"].clone(),
            report["namespaces_waiting"].clone(),
            is_on_page,
        )
    };
    assert_eq!(number_in("early", None), (Value::Null, Value::Null, false));
    assert_eq!(number_in("looked", Some(0)), (0.into(), 7.into(), true));
}

#[test]
fn listeners_in_trouble_come_first_by_precedence_and_then_the_fullest() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("order");
    let site = Site::serve(&ns, lively());
    let report: Report = serde_json::from_str(&site.text("/api/v1/listeners")).unwrap();
    let first: Vec<_> =
        report.listeners.iter().take(5).map(|l| (l.diagnosis(), l.endpoint())).collect();
    let expected = [
        // The listener is also abandoned, which follows from slow accepting.
        (Some(Diagnosis::SlowAccept), "127.0.0.1:9000"),
        (Some(Diagnosis::ShortQueue), "0.0.0.0:6379"),
        (None, "[::]:443"),
        (None, "/run/php/php8.2-fpm.sock"),
        (None, "10.0.0.7%eth0:8080"),
    ];
    assert_eq!(first, expected.map(|(diagnosis, endpoint)| (diagnosis, endpoint.to_owned())));
    assert_eq!(report.missing_features.len(), 1);
}
