//! Reads the JSON of the dashboards in the repository: panels, queries, variables and links.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

/// The dashboards, by uid and title.
pub(crate) const ALL: [(&str, &str); 3] = [
    ("listenq-fleet", "listenq / Fleet"),
    ("listenq-listener", "listenq / Listener"),
    ("listenq-host", "listenq / Host"),
];

/// The list of queries that may have no result.
const MAY_BE_EMPTY: &str = include_str!("may-be-empty.txt");

pub(crate) struct Dashboard {
    pub(crate) uid: &'static str,
    pub(crate) json: Value,
}

/// One query of a panel, an annotation or a variable.
#[derive(Clone)]
pub(crate) struct Query {
    /// The dashboard, panel and query, for error messages.
    pub(crate) place: String,
    /// The expression as written, with variables.
    pub(crate) expr: String,
    /// Whether it is a range query; otherwise it is an instant query.
    pub(crate) is_range: bool,
}

/// The values of the variables of a dashboard.
pub(crate) type Values<'a> = BTreeMap<&'a str, &'a str>;

// === impl Dashboard ===

impl Dashboard {
    pub(crate) fn read_all() -> Vec<Self> {
        ALL.iter().map(|(uid, _)| Self::read(uid)).collect()
    }

    fn read(uid: &'static str) -> Self {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboards").join(format!("{uid}.json"));
        let text = std::fs::read_to_string(&path).unwrap();
        Self { uid, json: serde_json::from_str(&text).unwrap() }
    }

    /// The grids of panels: the grid of the dashboard with its headings, and one for each collapsed
    /// row.
    pub(crate) fn grids(&self) -> Vec<&[Value]> {
        let top = self.json["panels"].as_array().unwrap();
        let rows = top.iter().filter(|panel| panel["collapsed"] == true);
        let inside = rows.map(|row| row["panels"].as_array().unwrap().as_slice());
        std::iter::once(top.as_slice()).chain(inside).collect()
    }

    /// All panels without headings.
    pub(crate) fn panels(&self) -> impl Iterator<Item = &Value> {
        self.grids().into_iter().flatten().filter(|panel| panel["type"] != "row")
    }

    pub(crate) fn variables(&self) -> &[Value] {
        self.json["templating"]["list"].as_array().unwrap()
    }

    pub(crate) fn has_variable(&self, name: &str) -> bool {
        self.variables().iter().any(|variable| variable["name"] == name)
    }

    /// Every query that Grafana sends for this dashboard.
    pub(crate) fn queries(&self) -> Vec<Query> {
        let panels = self.panels().flat_map(|panel| {
            let title = panel["title"].as_str().unwrap();
            panel["targets"].as_array().unwrap().iter().map(move |target| (title, target))
        });
        let annotations = self.json["annotations"]["list"].as_array().unwrap().iter();
        let annotations = annotations.map(|mark| (mark["name"].as_str().unwrap(), &mark["target"]));
        let shown = panels.chain(annotations).map(|(title, target)| Query {
            place: format!("{} | {title} | {}", self.uid, target["refId"].as_str().unwrap()),
            expr: target["expr"].as_str().unwrap().to_owned(),
            is_range: target["range"] == true,
        });
        shown.chain(self.variables().iter().filter_map(|v| self.variable_query(v))).collect()
    }

    /// The query for the series whose labels are the values of a variable.
    fn variable_query(&self, variable: &Value) -> Option<Query> {
        let query = variable["query"]["query"].as_str()?;
        let name = variable["name"].as_str().unwrap();
        let series = match query.strip_prefix("query_result(") {
            Some(result) => result.strip_suffix(')').unwrap(),
            None => {
                query.strip_prefix("label_values(")?.strip_suffix(&format!(", {name})")).unwrap()
            }
        };
        let place = format!("{} | ${name} | {name}", self.uid);
        Some(Query { place, expr: series.to_owned(), is_range: false })
    }

    /// The value of an option that a variable has in addition to the results of its query.
    pub(crate) fn option(&self, name: &str, text: &str) -> &str {
        let variable = self.variables().iter().find(|variable| variable["name"] == name).unwrap();
        let options = variable["staticOptions"].as_array().into_iter().flatten();
        let option = options.clone().find(|option| option["text"] == text);
        let option = option.unwrap_or_else(|| panic!("{}: ${name} has no {text}", self.uid));
        option["value"].as_str().unwrap()
    }

    /// Replaces the variables of a query as Grafana does. A variable with the option "All" has that
    /// value unless `values` contains another one.
    pub(crate) fn fill(&self, expr: &str, values: &Values<'_>) -> String {
        let mut filled = expr.to_owned();
        for (name, time) in [("rate_interval", "20s"), ("range", "60s"), ("interval", "5s")] {
            filled = filled.replace(&format!("$__{name}"), time);
        }
        for variable in self.variables() {
            let name = variable["name"].as_str().unwrap();
            let value = match variable["includeAll"] == true {
                true => values.get(name).unwrap_or(&".*").to_string(),
                false => values.get(name).unwrap_or(&"").replace('\\', "\\\\").replace('"', "\\\""),
            };
            filled = filled.replace(&format!("\"${name}\""), &format!("\"{value}\""));
        }
        // Grafana keeps `$1`, since there is no such variable: label_replace reads it.
        let left = filled.replace("$1", "");
        assert!(!left.contains('$'), "{}: a variable without a value: {filled}", self.uid);
        filled
    }

    /// The address of every link.
    pub(crate) fn links(&self) -> Vec<&str> {
        let mut found = Vec::new();
        collect_links(&self.json, &mut found);
        found
    }
}

fn collect_links<'a>(json: &'a Value, found: &mut Vec<&'a str>) {
    match json {
        Value::Object(members) => {
            found.extend(members.get("url").and_then(Value::as_str));
            members.values().for_each(|member| collect_links(member, found));
        }
        Value::Array(members) => members.iter().for_each(|member| collect_links(member, found)),
        _ => {}
    }
}

/// The places of the queries that may be empty at these times.
///
/// # Panics
///
/// When the list names a place that does not exist, or gives no reason.
pub(crate) fn may_be_empty(times: &[&str]) -> BTreeSet<String> {
    let dashboards = Dashboard::read_all();
    let places: BTreeSet<String> =
        dashboards.iter().flat_map(Dashboard::queries).map(|query| query.place).collect();
    let lines = MAY_BE_EMPTY.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let rows = lines.map(|line| {
        let [uid, panel, query, time, reason] = line.splitn(5, " | ").collect::<Vec<_>>()[..]
        else {
            panic!("not a row of the list: {line}");
        };
        let place = [uid, panel, query].join(" | ");
        assert!(places.contains(&place), "no such query: {line}");
        assert!(["well", "ever"].contains(&time) && reason.len() > 10, "{line}");
        (place, time)
    });
    rows.filter(|(_, time)| times.contains(time)).map(|(place, _)| place).collect()
}
